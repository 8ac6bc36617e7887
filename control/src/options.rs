//! The command line of `usernetd`.

use std::ffi::OsString;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, Parser, ValueEnum};
use tracing::Level;
use usernet_core::config::{Announced, MacAddr, Protocols, Services, Timeouts};
use usernet_core::rules::{Access, HostLoopback, Prefix};
use usernet_driver::namespace::Target;
use usernet_driver::{BUSY_POLL, BackendChoice, Outbound, Threads};

use crate::networks::{Cidr4, Cidr6, stable_mac};
use crate::plan::{
    Announcement, Api, ApiProtocol, Link, Log, LogFormat, MTU_MAX, Namespace, Plan, Resolvers,
};
use crate::program::Program;
use crate::sandbox::Policy;
use crate::spec::{PortRange, Spec};
use crate::wireguard::{TunnelFile, Wanted, network};

/// The smallest MTU: what every IPv4 host must take (RFC 791).
const MTU_MIN: i64 = 576;
/// The smallest MTU with IPv6 (RFC 8200, section 5).
const MTU_MIN_IPV6: u16 = 1280;
/// The most resolvers on the command line.
const RESOLVERS_MAX: usize = 8;

/// Help of `--forward`.
const FORWARD_HELP: &str = "Host ports that lead to the guest: \
    [HOST_ADDR[%IFACE]:]HOST_PORT[-END][:[GUEST_ADDR:]GUEST_PORT[-END]][/tcp|/udp]";

/// Help of `--outward`.
const OUTWARD_HELP: &str = "Ports of the namespace's loopback that lead to this host's: \
    [NS_ADDR[%IFACE]:]NS_PORT[-END][:[HOST_ADDR:]HOST_PORT[-END]][/tcp|/udp]";

const EXAMPLES: &str = "\
Examples:
  A namespace that process 4242 is in, its port 80 on port 8080 of this host:
      usernetd --netns 4242 --forward 8080:80

  A namespace by path, in a user namespace that is entered first:
      usernetd --netns /proc/4242/ns/net --userns /proc/4242/ns/user

  UDP and a range, on one address only, IPv6 in brackets:
      usernetd --netns 4242 --forward 127.0.0.1:5353:53/udp --forward [::1]:8000-8010

  The database on this host's loopback, as localhost:5432 in the namespace:
      usernetd --netns 4242 --outward 5432

  Everything by a WireGuard tunnel, nothing when that is down, this host's network excepted:
      usernetd --netns 4242 --wireguard wg0.conf --wireguard-split 192.168.0.0/16

  Controlled while it runs, ended with the program that holds the other end of descriptor 5:
      usernetd --netns 4242 --api-socket /run/user/1000/net.sock --exit-fd 5

  In the place of another tool, also where it is called by that name:
      usernetd slirp4netns --help
      usernetd pasta --help

Exit status: 0 ended (namespace, exit descriptor, signal or request), 1 something could not be done,
2 wrong usage.";

/// Network for a network namespace, without privileges.
///
/// Opens a TAP device in the namespace, gives it addresses and routes, and translates what comes through it
/// into ordinary sockets of this host, and back. Runs in the foreground, says in one line what it set up, and
/// ends when the namespace ends, leaving nothing behind.
#[derive(Clone, Debug, Parser)]
#[command(name = "usernetd", version, after_long_help = EXAMPLES, after_help = "More: --help")]
pub struct Options {
    /// The network namespace: a path (/proc/PID/ns/net, /run/netns/NAME) or the id of a process in it
    #[arg(long, value_name = "PATH|PID")]
    pub netns: NetnsOption,

    /// The user namespace that owns it, entered first; found by itself where it can be
    #[arg(long, value_name = "PATH")]
    pub userns: Option<PathBuf>,

    // Not a doc comment: rustdoc would take the brackets for links.
    #[allow(missing_docs, reason = "clap's help says it")]
    #[arg(long = "forward", short = 'f', value_name = "SPEC", help = FORWARD_HELP)]
    pub forwards: Vec<Spec>,

    // As above.
    #[allow(missing_docs, reason = "clap's help says it")]
    #[arg(long = "outward", value_name = "SPEC", help = OUTWARD_HELP, value_parser = Spec::outward)]
    pub outward: Vec<Spec>,

    /// The device's name in the namespace
    #[arg(long, value_name = "NAME", default_value = "tap0", value_parser = interface_name)]
    pub tap_name: String,

    /// MTU of the device; default: that of this host's way out, or 1500
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(MTU_MIN..=i64::from(MTU_MAX)))]
    pub mtu: Option<u16>,

    /// The guest's IPv4 network: gateway .2, DNS .3, guest .100 [default: 10.0.2.0/24]
    #[arg(long, value_name = "CIDR")]
    pub cidr: Option<Cidr4>,

    /// The guest's IPv6 network: gateway ::2, DNS ::3, guest ::64 [default: fd00::/64]
    #[arg(long, value_name = "CIDR", conflicts_with = "no_ipv6")]
    pub cidr6: Option<Cidr6>,

    /// No IPv6 on the device
    #[arg(long)]
    pub no_ipv6: bool,

    /// A resolver to ask instead of those in /etc/resolv.conf; may be given several times
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = resolver)]
    pub dns: Vec<SocketAddr>,

    /// Which services on this host's loopback the gateway address reaches: ports as 80,8000-8010
    #[arg(long, value_name = "none|all|PORTS", default_value = "none", value_parser = host_loopback)]
    pub host_loopback: HostLoopback,

    /// Where connections of the guest leave from: a local address (one per family) or an interface
    #[arg(long, value_name = "ADDR|IFACE")]
    pub outbound: Vec<OutboundOption>,

    /// How the kernel is asked; auto: io_uring where it works
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    pub backend: BackendOption,

    /// How many microseconds to stay awake for an answer that is expected soon; 0: always sleep at once, which spares
    /// CPU time and doubles round trips
    #[arg(long, value_name = "MICROSECONDS", default_value_t = BUSY_POLL.as_micros() as u16, value_parser = clap::value_parser!(u16).range(..=1000))]
    pub busy_poll: u16,

    /// Do not use the TAP's checksum and segmentation offload
    #[arg(long)]
    pub no_offload: bool,

    /// Only open the device: no addresses, no routes, not up
    #[arg(long)]
    pub no_configure: bool,

    /// The device's Ethernet address; default: made from the guest's IPv4 address
    #[arg(long, value_name = "ADDR", value_parser = mac_address)]
    pub mac: Option<MacAddr>,

    /// Time after which a silent UDP mapping ends
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub udp_idle: Duration,

    /// The same for mappings that only spoke to port 53
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub dns_idle: Duration,

    /// How many threads translate, each with a queue of the device: 1 to 16, or half of the processors up to 4; with 2 or 3
    /// processors one, and a second one without a queue for some of several downloads
    #[arg(long, value_name = "auto|COUNT", default_value = "auto", value_parser = workers)]
    pub workers: Workers,

    /// A WireGuard tunnel in the namespace, as a file of wg-quick describes it and is called; may be given several times
    #[arg(long, value_name = "FILE")]
    pub wireguard: Vec<TunnelFile>,

    /// Networks outside of the tunnels, by the plain path: 192.0.2.0/24,2001:db8::/32
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub wireguard_split: Vec<Prefix>,

    /// Listen for `wg` on the unix socket NAME.sock of each tunnel in this directory
    #[arg(long, value_name = "DIR", requires = "wireguard")]
    pub wireguard_api: Option<PathBuf>,

    /// No plain path: the guest reaches nothing but by its tunnels
    #[arg(long)]
    pub isolated: bool,

    /// Listen for control requests on this unix socket; without it there is none
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,

    /// Write "1" to this descriptor and close it as soon as the network is there
    #[arg(long, value_name = "FD", value_parser = descriptor)]
    pub ready_fd: Option<RawFd>,

    /// End when this descriptor (the end of a pipe, a pidfd) is closed at its other end
    #[arg(long, value_name = "FD", value_parser = descriptor)]
    pub exit_fd: Option<RawFd>,

    /// Write the process id to this file; removed at the end
    #[arg(long, value_name = "PATH")]
    pub pid_file: Option<PathBuf>,

    /// Write every frame to this file (pcap)
    #[arg(long, value_name = "PATH")]
    pub pcap: Option<PathBuf>,

    /// How far it confines itself when it is set up; what is missing is told, and shown by `usernet status`
    #[arg(long, value_name = "POLICY", default_value = "auto")]
    pub sandbox: Policy,

    /// What is told on standard error
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: LogLevelOption,

    /// How it is told, the line at the start included
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormatOption,
}

impl Options {
    /// Reads a command line without a name in front; prints what is wrong with it, or help, and exits.
    pub fn from_command_line(args: impl IntoIterator<Item = OsString>) -> Self {
        let name = OsString::from(Program::Usernetd.name());
        match Self::checked(std::iter::once(name).chain(args)) {
            Ok(options) => options,
            Err(error) => error.exit(),
        }
    }

    /// Reads a command line. The first argument is the program.
    pub fn checked<T: Into<OsString> + Clone>(
        args: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let options = Self::try_parse_from(args)?;
        match options.conflict() {
            None => Ok(options),
            Some(what) => Err(Self::command().error(ErrorKind::ValueValidation, what)),
        }
    }

    /// What they come to, if they are [checked](Self::checked). Options that were not given have their defaults in it.
    pub fn plan(self) -> Plan {
        self.planned()
            .expect("whether the tunnels can be was found out when the options were checked")
    }

    fn planned(mut self) -> Result<Plan, String> {
        let tunnels = Wanted {
            files: mem::take(&mut self.wireguard),
            split: mem::take(&mut self.wireguard_split),
            api: self.wireguard_api.take(),
            is_isolated: self.isolated,
        };
        let mut plan = self.plan_without_tunnels();
        tunnels.apply(&mut plan)?;
        Ok(plan)
    }

    fn plan_without_tunnels(self) -> Plan {
        let net4 = self.cidr.unwrap_or_default().net();
        let net6 = (!self.no_ipv6).then(|| self.cidr6.unwrap_or_default().net());
        let format = self.log_format.format();
        Plan {
            program: Program::Usernetd,
            link: Link::Namespace(Namespace {
                target: self.netns.target(),
                userns: self.userns,
                tap_name: self.tap_name,
                further: Vec::new(),
                routes: Vec::new(),
                configure: !self.no_configure,
                loopback_up: false,
                adopt: false,
                offload: !self.no_offload,
                workers: self.workers.threads(),
            }),
            mtu: self.mtu,
            host_mac: stable_mac(net4.gateway),
            guest_mac: self.mac.unwrap_or(stable_mac(net4.guest)),
            net4: Some(net4),
            net6,
            further: Vec::new(),
            services: Services::all(),
            announced: Announced::of_networks(Some(net4), net6),
            protocols: Protocols::all(),
            access: Access::of_networks(Some(net4), net6, self.host_loopback),
            resolvers: match self.dns {
                none if none.is_empty() => Resolvers::OfHost,
                these => Resolvers::These(these),
            },
            forwards: self.forwards,
            outward: self.outward,
            automatic: Vec::new(),
            outbound: outbound(self.outbound),
            timeouts: Timeouts {
                udp_idle: self.udp_idle,
                dns_idle: self.dns_idle,
                ..Timeouts::default()
            },
            backend: self.backend.choice(),
            busy_poll: Duration::from_micros(self.busy_poll.into()),
            api: self.api_socket.map(|path| Api { path, protocol: ApiProtocol::Native }),
            ready_fd: self.ready_fd,
            exit_fd: self.exit_fd,
            pid_file: self.pid_file,
            pcap: self.pcap,
            sandbox: self.sandbox,
            log: Log { level: self.log_level.level(), format },
            log_file: None,
            announcement: Announcement::Summary(format),
            lets_go_of_caller: false,
            run_as: None,
            outlives_namespace: false,
            tunnels: Vec::new(),
            tunnel_api: None,
            warnings: Vec::new(),
        }
    }

    /// What is wrong among options that are right each for itself.
    fn conflict(&self) -> Option<String> {
        if let Some(mtu) = self.mtu
            && mtu < MTU_MIN_IPV6
            && !self.no_ipv6
        {
            return Some(format!(
                "--mtu {mtu} is below the {MTU_MIN_IPV6} that IPv6 needs: raise it, or add --no-ipv6"
            ));
        }
        if self.ready_fd.is_some() && self.ready_fd == self.exit_fd {
            return Some("--ready-fd and --exit-fd name the same descriptor".to_owned());
        }
        if self.dns.len() > RESOLVERS_MAX {
            return Some(format!("--dns may be given {RESOLVERS_MAX} times at most"));
        }
        let net = self.cidr.unwrap_or_default().net();
        if self.mac.is_some_and(|mac| mac == stable_mac(net.gateway)) {
            return Some("--mac is the address that the gateway has".to_owned());
        }
        if !self.wireguard_split.is_empty() && self.wireguard.is_empty() && !self.isolated {
            return Some(
                "--wireguard-split is for tunnels: add --wireguard or --isolated".to_owned(),
            );
        }
        if let Err(what) = self.clone().planned() {
            return Some(format!("--wireguard: {what}"));
        }
        let count =
            |is: fn(&OutboundOption) -> bool| self.outbound.iter().filter(|o| is(o)).count();
        let is_twice = count(|o| matches!(o, OutboundOption::V4(_))) > 1
            || count(|o| matches!(o, OutboundOption::V6(_))) > 1
            || count(|o| matches!(o, OutboundOption::Interface(_))) > 1;
        is_twice.then(|| {
            "--outbound takes one IPv4 address, one IPv6 address and one interface at most"
                .to_owned()
        })
    }
}

/// How `--netns` names a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsOption {
    /// That of a process.
    Pid(i32),
    /// A file.
    Path(PathBuf),
}

impl NetnsOption {
    fn target(self) -> Target {
        match self {
            Self::Pid(pid) => Target::Pid(pid),
            Self::Path(path) => Target::Path(path),
        }
    }
}

impl FromStr for NetnsOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("give a path or a process id".to_owned());
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Self::Path(text.into()));
        }
        match text.parse() {
            Ok(pid) if pid > 0 => Ok(Self::Pid(pid)),
            Ok(_) | Err(_) => Err("not a process id; a file of that name is ./NAME".to_owned()),
        }
    }
}

impl std::fmt::Display for NetnsOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "{pid}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// One `--outbound`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundOption {
    /// A local IPv4 address.
    V4(Ipv4Addr),
    /// A local IPv6 address.
    V6(Ipv6Addr),
    /// An interface.
    Interface(String),
}

impl FromStr for OutboundOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(IpAddr::V4(ip)) => Ok(Self::V4(ip)),
            Ok(IpAddr::V6(ip)) => Ok(Self::V6(ip)),
            Err(_) => interface_name(text)
                .map(Self::Interface)
                .map_err(|_| "neither an IP address nor an interface name".to_owned()),
        }
    }
}

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendOption {
    /// io_uring where it works, else epoll.
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// epoll.
    Epoll,
}

impl BackendOption {
    fn choice(self) -> BackendChoice {
        match self {
            Self::Auto => BackendChoice::Auto,
            Self::IoUring => BackendChoice::IoUring,
            Self::Epoll => BackendChoice::Epoll,
        }
    }
}

/// The most workers: each has tables and memory of its own, and a guest rarely more cores than these keep busy.
pub const WORKERS_MAX: u8 = 16;

/// The most that are started unasked.
const WORKERS_UNASKED_MAX: u8 = 4;

/// `--workers`: how many there are is decided at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// As many as are worth it on this machine: `docs/decisions/0007-workers.md`.
    Auto,
    /// So many.
    Count(u8),
}

impl Workers {
    /// How many those are here.
    pub fn threads(self) -> Threads {
        match self {
            Self::Auto => std::thread::available_parallelism()
                .map_or(Threads::ONE, |cpus| for_processors(cpus.get())),
            Self::Count(count) => Threads { owners: count, borrowers: 0 },
        }
    }
}

/// Half of the processors are the guest's and its peers': they have as much to do with each byte as we have. Where that is one,
/// a second thread is lent some of several downloads.
fn for_processors(cpus: usize) -> Threads {
    let owners = u8::try_from(cpus / 2).unwrap_or(u8::MAX).clamp(1, WORKERS_UNASKED_MAX);
    Threads { owners, borrowers: u8::from(owners == 1 && cpus > 1) }
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevelOption {
    /// What ended or hindered something.
    Error,
    /// And what is missing.
    Warn,
    /// And changes of state.
    Info,
    /// And what led to them.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevelOption {
    fn level(self) -> Level {
        match self {
            Self::Error => Level::ERROR,
            Self::Warn => Level::WARN,
            Self::Info => Level::INFO,
            Self::Debug => Level::DEBUG,
            Self::Trace => Level::TRACE,
        }
    }
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormatOption {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormatOption {
    fn format(self) -> LogFormat {
        match self {
            Self::Text => LogFormat::Text,
            Self::Json => LogFormat::Json,
        }
    }
}

fn outbound(options: Vec<OutboundOption>) -> Outbound {
    let mut outbound = Outbound::default();
    for option in options {
        match option {
            OutboundOption::V4(ip) => outbound.v4 = Some(ip),
            OutboundOption::V6(ip) => outbound.v6 = Some(ip),
            OutboundOption::Interface(name) => {
                outbound.interface4 = Some(name.clone());
                outbound.interface6 = Some(name);
            }
        }
    }
    outbound
}

/// `IFNAMSIZ` without the NUL; what `dev_valid_name()` of the kernel takes, and no `%`, which it would read as
/// a pattern.
fn interface_name(text: &str) -> Result<String, String> {
    let is_wrong = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    let has_length = (1..=15).contains(&text.len());
    if !has_length || text.contains(is_wrong) || text == "." || text == ".." {
        return Err(
            "not an interface name; it has 1 to 15 characters without / : % and spaces".into()
        );
    }
    Ok(text.to_owned())
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    let address = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 53),
        Err(_) => text
            .parse::<SocketAddr>()
            .map_err(|_| "not ADDR or ADDR:PORT (IPv6 with a port in brackets)".to_owned())?,
    };
    if address.ip().is_multicast() || address.ip().is_unspecified() || address.port() == 0 {
        return Err("nobody can answer there".to_owned());
    }
    Ok(address)
}

fn host_loopback(text: &str) -> Result<HostLoopback, String> {
    match text {
        "none" => Ok(HostLoopback::None),
        "all" => Ok(HostLoopback::All),
        list => {
            let ports = list.split(',').map(|part| {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let range = first.parse().ok().zip(last.parse().ok());
                let range = range.and_then(|(first, last)| PortRange::new(first, last));
                range.map(|r| (r.first(), r.last())).ok_or_else(|| {
                    format!("\"{part}\" is not a port; write none, all or ports as 80,8000-8010")
                })
            });
            ports.collect::<Result<_, _>>().map(HostLoopback::Ports)
        }
    }
}

fn mac_address(text: &str) -> Result<MacAddr, String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part =
            parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
        *byte = value.ok_or("write six bytes as in 52:55:0a:00:02:64")?;
    }
    let mac = MacAddr(mac);
    if parts.next().is_some() {
        return Err("write six bytes as in 52:55:0a:00:02:64".to_owned());
    }
    if mac.is_multicast() || mac == MacAddr::default() {
        return Err("a device cannot have a multicast or all-zero address".to_owned());
    }
    Ok(mac)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400u64) => Ok(Duration::from_secs(seconds)),
        Ok(_) | Err(_) => Err("write a number of seconds, 1 to 86400".to_owned()),
    }
}

fn workers(text: &str) -> Result<Workers, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Workers::Auto),
        Ok(count @ 1..=WORKERS_MAX) => Ok(Workers::Count(count)),
        Ok(_) | Err(_) => Err(format!("write auto, or a number from 1 to {WORKERS_MAX}")),
    }
}

fn descriptor(text: &str) -> Result<RawFd, String> {
    match text.parse() {
        Ok(fd) if fd >= 0 => Ok(fd),
        Ok(_) | Err(_) => Err("not the number of a file descriptor".to_owned()),
    }
}

/// The definition of the command line, for completions and man pages. Its help is complete.
pub fn command() -> clap::Command {
    Options::command().arg_required_else_help(true).mut_arg("netns", |a| a.action(ArgAction::Set))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let args = std::iter::once("usernetd").chain(line.split_whitespace());
        Options::checked(args).map_err(|e| {
            assert_eq!(e.exit_code(), 2, "{line}: wrong usage exits with 2");
            e.to_string()
        })
    }

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_option_is_taken() {
        let options = parse(
            "--netns 42 --userns /u --forward 8080:80 -f 53:53/udp --tap-name t --mtu 9000 \
             --cidr 10.9.0.0/16 --cidr6 fd01::/64 --dns 9.9.9.9 --dns [::1]:5353 \
             --host-loopback 80,8000-8010 --outbound 192.0.2.1 --outbound eth0 --backend epoll \
             --no-offload --no-configure --mac 02:00:00:00:00:01 --udp-idle 5 --dns-idle 6 --workers 1 --busy-poll 0 \
             --api-socket /a --ready-fd 3 --exit-fd 4 --pid-file /p --pcap /c --log-level debug \
             --log-format json",
        )
        .unwrap();
        assert_eq!(options.netns, NetnsOption::Pid(42));
        assert_eq!(options.forwards.len(), 2);
        assert_eq!(options.dns[1], "[::1]:5353".parse().unwrap());
        assert_eq!(options.host_loopback, HostLoopback::Ports(vec![(80, 80), (8000, 8010)]));
        assert_eq!(options.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
        assert_eq!(options.udp_idle, Duration::from_secs(5));
        assert_eq!(options.busy_poll, 0);
        let path = parse("--netns /proc/1/ns/net").unwrap();
        assert_eq!(path.netns, NetnsOption::Path("/proc/1/ns/net".into()));
    }

    #[test]
    fn half_of_the_processors_work_for_a_guest_unasked_but_no_more_than_four() {
        let counts = [1, 2, 3, 4, 7, 8, 9, 64, 1024].map(for_processors);
        let borrowers = counts.map(|threads| threads.borrowers);
        assert_eq!(borrowers, [0, 1, 1, 0, 0, 0, 0, 0, 0]);
        let counts = counts.map(|threads| threads.owners);
        assert_eq!(counts, [1, 1, 1, 2, 3, 4, 4, 4, 4]);
        assert_eq!(parse("--netns 1 --workers 16").unwrap().workers, Workers::Count(16));
        assert_eq!(parse("--netns 1").unwrap().workers, Workers::Auto);
    }

    #[test]
    fn every_wrong_value_is_told_with_its_option() {
        for (line, told) in [
            ("", "--netns"),
            ("--netns 1 --bogus", "--bogus"),
            ("--netns 0", "process id"),
            ("--netns 1 --forward 80:", "a port is missing"),
            ("--netns 1 --mtu 100", "576"),
            ("--netns 1 --mtu 70000", "65521"),
            ("--netns 1 --mtu 1000", "--no-ipv6"),
            ("--netns 1 --cidr 10.0.2.1/24", "the network is 10.0.2.0/24"),
            ("--netns 1 --cidr6 fd00::/64 --no-ipv6", "cannot be used with"),
            ("--netns 1 --dns example.com", "ADDR:PORT"),
            ("--netns 1 --host-loopback 80,x", "\"x\" is not a port"),
            ("--netns 1 --outbound a/b", "neither"),
            ("--netns 1 --outbound 1.2.3.4 --outbound 1.2.3.5", "one IPv4 address"),
            ("--netns 1 --backend kqueue", "io-uring"),
            ("--netns 1 --mac 01:00:00:00:00:00", "multicast"),
            ("--netns 1 --mac 52:55:0a:00:02:02", "gateway"),
            ("--netns 1 --mac 52:55:0a:00:02", "six bytes"),
            ("--netns 1 --udp-idle 0", "seconds"),
            ("--netns 1 --busy-poll 1001", "1001"),
            ("--netns 1 --workers 0", "1 to 16"),
            ("--netns 1 --workers 17", "1 to 16"),
            ("--netns 1 --workers none", "auto"),
            ("--netns 1 --ready-fd x", "descriptor"),
            ("--netns 1 --ready-fd 5 --exit-fd 5", "same descriptor"),
            ("--netns 1 --tap-name 0123456789abcdef", "interface name"),
            ("--netns 1 --log-level loud", "warn"),
            ("--netns 1 --wireguard /nonexistent/wg0.conf", "cannot read /nonexistent/wg0.conf"),
            ("--netns 1 --wireguard-split 192.0.2.0/24", "add --wireguard or --isolated"),
            ("--netns 1 --isolated --wireguard-split 192.0.2.0/33", "ADDRESS/LENGTH"),
            ("--netns 1 --wireguard-api /run/x", "--wireguard"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(told), "{line}: {error}");
        }
    }
}
