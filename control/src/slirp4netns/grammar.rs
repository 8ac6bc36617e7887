//! The command line of slirp4netns, and what it comes to.
//!
//! [`getopt::canonical`] has brought the line into one form before clap reads it, so the messages about options are
//! those of the C library; those about values are slirp4netns's, because callers look for them, with reason and
//! remedy behind them where these do not say so. Of several values of an option the last one counts.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};
use usernet_core::config::{Announced, MacAddr, Net4, Net6, Protocols, Services, Timeouts};
use usernet_core::rules::{Access, Closed, DnsService, HostLoopback, LoopbackClients};
use usernet_driver::namespace::Target;
use usernet_driver::{BUSY_POLL, BackendChoice, Outbound, Threads};

use super::api::Guest;
use crate::getopt::{self, Order};
use crate::networks::{Cidr4, Cidr6, CidrError, stable_mac};
use crate::plan::{
    Announcement, Api, ApiProtocol, Link, Log, LogFormat, MTU_MAX, Namespace, Plan, Resolvers,
};
use crate::program::Program;
use crate::sandbox::Policy;

/// The MTU without `--mtu`.
const MTU_DEFAULT: u16 = 1_500;
/// The least that a TAP takes (`ETH_MIN_MTU`), which the kernel says too late.
const MTU_MIN: u16 = 68;
/// The least MTU of IPv6 (RFC 8200, section 5).
const MTU_MIN_IPV6: u16 = 1_280;

/// Host part of the DNS address.
const DNS_HOST: u8 = 3;
/// Host part of the first address that DHCP leases.
const DHCP_FIRST_HOST: u8 = 15;
/// Host part of the last one.
const DHCP_LAST_HOST: u8 = 30;

/// The longest path of a Unix socket, with its terminating zero (`sun_path`).
const SOCKET_PATH_BYTES: usize = 108;

/// What stands above the options in `--help`.
const HELP: &str = "\
{usage-heading} {usage}
User-mode networking for unprivileged network namespaces.

{options}
";

/// The options as they are written.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "slirp4netns",
    override_usage = "slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]",
    help_template = HELP,
    args_override_self = true,
    disable_help_flag = true,
    disable_version_flag = true,
    max_term_width = 110
)]
pub(crate) struct Line {
    /// bring up the interface, with address and default route, and lo
    #[arg(short = 'c', long)]
    configure: bool,

    /// end when something happens on this descriptor
    #[arg(short = 'e', long, value_name = "FD")]
    exit_fd: Option<String>,

    /// write "1" to this descriptor and close it when the network is ready
    #[arg(short = 'r', long, value_name = "FD")]
    ready_fd: Option<String>,

    /// specify MTU (default=1500, max=65521)
    #[arg(short = 'm', long, value_name = "MTU")]
    mtu: Option<String>,

    /// enable IPv6 (fd00::/64)
    #[arg(short = '6', long)]
    enable_ipv6: bool,

    /// specify API socket path
    #[arg(short = 'a', long, value_name = "PATH")]
    api_socket: Option<OsString>,

    /// specify network address CIDR (default=10.0.2.0/24)
    #[arg(long, value_name = "CIDR")]
    cidr: Option<String>,

    /// prohibit connecting to 127.0.0.1:* on the host namespace
    #[arg(long)]
    disable_host_loopback: bool,

    /// specify network namespace type ([path|pid|tapfd], default=pid)
    #[arg(long, value_name = "TYPE")]
    netns_type: Option<String>,

    /// specify user namespace path
    #[arg(long, value_name = "PATH")]
    userns_path: Option<OsString>,

    /// give up files and all capabilities but CAP_NET_BIND_SERVICE (done without it too)
    #[arg(long)]
    enable_sandbox: bool,

    /// limit the system calls (done without it too)
    #[arg(long)]
    enable_seccomp: bool,

    /// the address or interface that IPv4 leaves from
    #[arg(long, value_name = "IPv4|IFACE")]
    outbound_addr: Option<String>,

    /// the address or interface that IPv6 leaves from
    #[arg(long, value_name = "IPv6|IFACE")]
    outbound_addr6: Option<String>,

    /// answer nothing at 10.0.2.3 (or the DNS address of --cidr)
    #[arg(long)]
    disable_dns: bool,

    /// specify the MAC address of the TAP (only valid with -c)
    #[arg(long, value_name = "MAC")]
    macaddress: Option<String>,

    /// specify the target type ([netns|bess], default=netns)
    #[arg(long, value_name = "TYPE")]
    target_type: Option<String>,

    /// show this help and exit
    #[arg(short = 'h', long, action = ArgAction::Help)]
    help: Option<bool>,

    /// show version and exit
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,

    /// What to connect to, and the device's name.
    #[arg(hide = true)]
    operands: Vec<OsString>,
}

/// What a command line asks for that is no network.
#[derive(Debug)]
pub(crate) enum Stop {
    /// `--help`: this text.
    Help(String),
    /// `--version`.
    Version,
    /// It is wrong: this line, and how to write it right.
    Usage(String),
    /// A value in it is wrong: this line.
    Value(String),
}

/// What a command line comes to.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The network.
    pub(crate) plan: Plan,
    /// What is to be told on the way, one line each.
    pub(crate) warnings: Vec<String>,
}

/// The definition of the command line, for the table of options and completions.
pub(crate) fn command() -> clap::Command {
    Line::command().version("0")
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    command().render_help().to_string()
}

/// Reads a command line without a name in front.
pub(crate) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Asked, Stop> {
    let mut command = command();
    let canonical = getopt::canonical(&command, args, Order::Any);
    let canonical = canonical.map_err(|error| usage(error.to_string()))?;
    let line = std::iter::once(OsString::from(Program::Slirp4netns.name())).chain(canonical);
    let line = command.try_get_matches_from_mut(line).and_then(|m| Line::from_arg_matches(&m));
    line.map_err(|error| stop(&error))?.asked()
}

fn usage(what: impl Into<String>) -> Stop {
    Stop::Usage(what.into())
}

fn value(what: impl Into<String>) -> Stop {
    Stop::Value(what.into())
}

/// What clap says of a line that has the form that [`getopt::canonical`] gives it.
fn stop(error: &clap::Error) -> Stop {
    match error.kind() {
        ErrorKind::DisplayHelp => Stop::Help(help()),
        ErrorKind::DisplayVersion => Stop::Version,
        ErrorKind::InvalidUtf8 => usage("an argument is not valid UTF-8; only paths may be so"),
        _ => usage(error.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}

impl Line {
    fn asked(self) -> Result<Asked, Stop> {
        let mut warnings = Vec::new();
        let mtu = mtu(self.mtu.as_deref())?;
        let exit_fd = descriptor("exit-fd", self.exit_fd.as_deref())?;
        let ready_fd = descriptor("ready-fd", self.ready_fd.as_deref())?;
        if exit_fd.is_some() && exit_fd == ready_fd {
            return Err(usage("--ready-fd and --exit-fd name the same descriptor"));
        }
        if self.macaddress.is_some() && !self.configure {
            return Err(usage(
                "--macaddr cannot be specified when --configure or -c is not specified",
            ));
        }
        let link = self.link(&mut warnings)?;
        let net4 = self.cidr.as_deref().map_or(Ok(Cidr4::default()), cidr)?.net();
        let mut net6 = self.enable_ipv6.then(|| Cidr6::default().net());
        if net6.is_some() && mtu < MTU_MIN_IPV6 {
            net6 = None;
            warnings
                .push(format!("--mtu={mtu} is below the {MTU_MIN_IPV6} that IPv6 needs: no IPv6"));
        }
        let guest_mac = self.macaddress.as_deref().map(mac_address).transpose()?;
        let outbound = outbound(self.outbound_addr.as_deref(), self.outbound_addr6.as_deref())?;
        let api = self.api_socket.map(|path| api(path, net4, net6)).transpose()?;
        let announced = Announced {
            pool4: Some((host(net4, DHCP_FIRST_HOST), host(net4, DHCP_LAST_HOST))),
            ..Announced::of_networks(Some(net4), net6)
        };
        let plan = Plan {
            program: Program::Slirp4netns,
            // Always, whether it was asked for or not.
            sandbox: Policy::Auto,
            link,
            mtu: Some(mtu),
            host_mac: stable_mac(net4.gateway),
            guest_mac: guest_mac.unwrap_or(stable_mac(net4.guest)),
            net4: Some(net4),
            net6,
            further: Vec::new(),
            services: Services::all(),
            announced,
            protocols: Protocols::all(),
            access: access(net4, net6, self.disable_host_loopback, self.disable_dns),
            resolvers: Resolvers::OfHost,
            forwards: Vec::new(),
            outward: Vec::new(),
            automatic: Vec::new(),
            outbound,
            timeouts: Timeouts::default(),
            backend: BackendChoice::Auto,
            busy_poll: BUSY_POLL,
            api,
            ready_fd,
            exit_fd,
            pid_file: None,
            pcap: None,
            log: Log { level: tracing::Level::WARN, format: LogFormat::Text },
            log_file: None,
            announcement: Announcement::Nothing,
            lets_go_of_caller: false,
            run_as: None,
            outlives_namespace: false,
            tunnels: Vec::new(),
            tunnel_api: None,
            warnings: Vec::new(),
        };
        let announcement =
            Announcement::TapAnd(summary(&plan, guest_mac, self.disable_host_loopback));
        Ok(Asked { plan: Plan { announcement, ..plan }, warnings })
    }

    /// What the operands name.
    fn link(&self, warnings: &mut Vec<String>) -> Result<Link, Stop> {
        match self.target_type.as_deref() {
            None | Some("netns") => {}
            Some("bess") => return self.bess(),
            Some(_) => return Err(usage("--target-type must be either \"netns\" or \"bess\"")),
        }
        if let Some(path) = &self.userns_path
            && !PathBuf::from(path).exists()
        {
            return Err(usage(format!("userns path doesn't exist: {}", path.display())));
        }
        let mut operands = self.operands.iter();
        let Some(target) = operands.next() else {
            return Err(usage("what to connect to is missing: write slirp4netns PID tap0"));
        };
        if self.netns_type.as_deref() == Some("tapfd") {
            return self.tap_descriptor(target);
        }
        let Some(tap_name) = operands.next() else {
            return Err(usage(format!(
                "the name of the device is missing: write slirp4netns {} tap0",
                target.display()
            )));
        };
        if operands.next().is_some() {
            warnings.push(
                "too many arguments: what follows the name of the device is ignored".to_owned(),
            );
        }
        Ok(Link::Namespace(Namespace {
            target: self.target(target)?,
            userns: self.userns_path.clone().map(PathBuf::from),
            tap_name: tap_name.to_string_lossy().into_owned(),
            further: Vec::new(),
            routes: Vec::new(),
            configure: self.configure,
            loopback_up: false,
            adopt: true,
            offload: true,
            workers: Threads::ONE,
        }))
    }

    /// `--target-type=bess`: a socket to listen on, for one User Mode Linux.
    fn bess(&self) -> Result<Link, Stop> {
        for (is_given, option) in [
            (self.configure, "--configure"),
            (self.netns_type.is_some(), "--netns-type"),
            (self.userns_path.is_some(), "--userns-path"),
        ] {
            if is_given {
                return Err(usage(format!("{option} conflicts with --target-type=bess")));
            }
        }
        let [path] = &self.operands[..] else {
            let what = if self.operands.is_empty() {
                "the path of the socket is missing"
            } else {
                "too many arguments"
            };
            return Err(usage(format!("{what}: write slirp4netns --target-type=bess PATH")));
        };
        if path.len() >= SOCKET_PATH_BYTES {
            return Err(value(format!(
                "the specified BESS socket path is too long (>= {SOCKET_PATH_BYTES})"
            )));
        }
        Ok(Link::Socket(PathBuf::from(path)))
    }

    /// `--netns-type=tapfd`: a TAP that the caller has opened.
    fn tap_descriptor(&self, operand: &OsStr) -> Result<Link, Stop> {
        let fd = operand.to_str().and_then(number::<RawFd>).filter(|&fd| fd >= 0);
        let fd =
            fd.ok_or_else(|| usage("FD must be a non-negative integer when --netns-type=tapfd"))?;
        if self.configure || self.userns_path.is_some() {
            return Err(usage(
                "--netns-type=tapfd takes a device as it is: leave --configure and --userns-path away",
            ));
        }
        Ok(Link::Tap(fd))
    }

    /// The network namespace that an operand names. Any other type than `pid` is a path, as it always was.
    fn target(&self, operand: &OsStr) -> Result<Target, Stop> {
        if matches!(self.netns_type.as_deref(), None | Some("pid")) {
            let pid = operand.to_str().and_then(number).filter(|&pid| pid > 0);
            return pid.map(Target::Pid).ok_or_else(|| {
                let is_path = operand.as_encoded_bytes().contains(&b'/');
                let remedy = if is_path { ": add --netns-type=path" } else { "" };
                usage(format!("PID must be a positive integer{remedy}"))
            });
        }
        let path = PathBuf::from(operand);
        match path.metadata() {
            Ok(_) => Ok(Target::Path(path)),
            Err(error) => Err(usage(format!(
                "existing path expected when --netns-type=path: {}: {error}",
                path.display()
            ))),
        }
    }
}

/// A number as `strtol` reads it: blanks and a sign in front, nothing behind.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let text = text.trim_ascii_start();
    text.strip_prefix('+').unwrap_or(text).parse().ok()
}

fn mtu(text: Option<&str>) -> Result<u16, Stop> {
    let Some(text) = text else { return Ok(MTU_DEFAULT) };
    match number(text) {
        Some(mtu @ MTU_MIN..=MTU_MAX) => Ok(mtu),
        Some(1..MTU_MIN) => {
            Err(value(format!("cannot set MTU: a device takes {MTU_MIN} at least")))
        }
        Some(_) | None => Err(usage(format!("MTU must be a positive integer (< {})", MTU_MAX + 1))),
    }
}

fn descriptor(option: &str, text: Option<&str>) -> Result<Option<RawFd>, Stop> {
    let Some(text) = text else { return Ok(None) };
    match number(text) {
        Some(fd @ 0..) => Ok(Some(fd)),
        Some(_) | None => Err(usage(format!("{option} must be a non-negative integer"))),
    }
}

fn cidr(text: &str) -> Result<Cidr4, Stop> {
    text.parse().map_err(|error| {
        value(match error {
            CidrError::Form(_) => match text.split_once('/') {
                Some((address, prefix)) if is_dotted(address) && number::<u8>(prefix).is_some() => {
                    format!("invalid network address: {address}")
                }
                Some(_) | None => format!("invalid CIDR: {text}"),
            },
            CidrError::Length { max } => format!("prefix length needs to be 1-{max}"),
            CidrError::HostBits(network) => {
                format!("CIDR needs to be a network address like {network}, not like {text}")
            }
            CidrError::Reserved(other) => {
                format!("invalid CIDR: {text} overlaps {other}, whose addresses are special")
            }
        })
    })
}

/// Whether it has the form of an IPv4 address.
fn is_dotted(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.split('.').count() == 4 && text.split('.').all(is_number)
}

/// A host of the guest's network.
fn host(net: Net4, number: u8) -> Ipv4Addr {
    let mask = u32::MAX << (32 - u32::from(net.prefix));
    Ipv4Addr::from_bits(net.guest.to_bits() & mask | u32::from(number))
}

/// Six bytes of one or two hexadecimal digits.
fn mac_address(text: &str) -> Result<MacAddr, Stop> {
    let wrong = || {
        value(
            "macaddress has to be a valid MAC address (hex string, 6 bytes, each byte separated by a ':'), \
             neither zero nor multicast",
        )
    };
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| matches!(p.len(), 1 | 2) && !p.starts_with('+'));
        let part = part.and_then(|part| u8::from_str_radix(part, 16).ok());
        *byte = part.ok_or_else(wrong)?;
    }
    let mac = MacAddr(mac);
    if parts.next().is_some() || mac.is_multicast() || mac == MacAddr::default() {
        return Err(wrong());
    }
    Ok(mac)
}

fn access(net4: Net4, net6: Option<Net6>, is_loopback_closed: bool, is_dns_off: bool) -> Access {
    let (loopback, closed) = match is_loopback_closed {
        false => (HostLoopback::All, Closed::Refused),
        true => (HostLoopback::None, Closed::NetUnreachable),
    };
    Access {
        closed,
        dns: if is_dns_off { DnsService::Dropped } else { DnsService::Forwarded },
        // They appear as the gateway, and reach what listens on the guest's address, not on its loopback.
        loopback_clients: LoopbackClients::Link,
        ..Access::of_networks(Some(net4), net6, loopback)
    }
}

fn outbound(v4: Option<&str>, v6: Option<&str>) -> Result<Outbound, Stop> {
    let mut outbound = Outbound::default();
    if let Some(text) = v4 {
        match text.parse::<Ipv4Addr>() {
            Ok(address) => outbound.v4 = Some(address),
            Err(_) => outbound.interface4 = Some(interface("outbound-addr", "ipv4", text)?),
        }
    }
    if let Some(text) = v6 {
        match text.parse::<Ipv6Addr>() {
            Ok(address) => outbound.v6 = Some(address),
            Err(_) => outbound.interface6 = Some(interface("outbound-addr6", "ipv6", text)?),
        }
    }
    Ok(outbound)
}

/// The name of an interface that is there.
fn interface(option: &str, family: &str, name: &str) -> Result<String, Stop> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Err(value(format!(
            "{option} has to be valid {family} address or interface name, which {name:?} is not"
        ))),
    }
}

/// What is printed when the network is there.
fn summary(plan: &Plan, mac: Option<MacAddr>, is_loopback_closed: bool) -> String {
    let mut lines = vec!["Starting slirp".to_owned()];
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        lines.push(format!("* {:<16} {value}", format!("{name}:")));
    };
    line("MTU", &plan.mtu.unwrap_or(MTU_DEFAULT));
    if let Some(net) = plan.net4 {
        line("Network", &host(net, 0));
        line("Netmask", &Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(net.prefix))));
        line("Gateway", &net.gateway);
        line("DNS", &host(net, DNS_HOST));
        line("DHCP begin", &host(net, DHCP_FIRST_HOST));
        line("DHCP end", &host(net, DHCP_LAST_HOST));
        line("Recommended IP", &net.guest);
    }
    if let Some(api) = &plan.api {
        line("API Socket", &api.path.display());
    }
    if let Some(MacAddr([a, b, c, d, e, f])) = mac {
        line("MAC address", &format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
    }
    if let Some(net) = plan.net4.filter(|_| !is_loopback_closed) {
        lines.push(format!(
            "WARNING: 127.0.0.1:* on the host is accessible as {} (set --disable-host-loopback to prohibit \
             connecting to 127.0.0.1:*)",
            net.gateway
        ));
    }
    lines.join("\n")
}

fn api(path: OsString, net4: Net4, net6: Option<Net6>) -> Result<Api, Stop> {
    if path.len() >= SOCKET_PATH_BYTES {
        return Err(value(format!(
            "the specified API socket path is too long (>= {SOCKET_PATH_BYTES})"
        )));
    }
    let guest = Guest { v4: net4.guest, v6: net6.map(|net6| net6.guest) };
    Ok(Api { path: path.into(), protocol: ApiProtocol::Slirp4netns(guest) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, Stop> {
        read(line.split_whitespace().map(OsString::from))
    }

    fn plan(line: &str) -> Plan {
        asked(line).unwrap_or_else(|stop| panic!("{line}: {stop:?}")).plan
    }

    fn namespace(line: &str) -> Namespace {
        match plan(line).link {
            Link::Namespace(namespace) => namespace,
            other @ (Link::Tap(_) | Link::Socket(_)) => panic!("a namespace, not {other:?}"),
        }
    }

    /// What is said, and whether the help stands beside it.
    fn wrong(line: &str) -> (String, bool) {
        match asked(line) {
            Err(Stop::Usage(what)) => (what, true),
            Err(Stop::Value(what)) => (what, false),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent_and_the_help_lists_every_option() {
        command().debug_assert();
        let help = help();
        assert!(
            help.starts_with("Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]\n"),
            "{help}"
        );
        for argument in command().get_arguments().filter_map(|a| a.get_long().map(str::to_owned)) {
            assert!(help.contains(&format!("--{argument}")), "--{argument} is missing: {help}");
        }
    }

    #[test]
    fn without_options_the_defaults_are_the_original_s() {
        let plan = plan("1 tap0");
        let net4 = plan.net4.unwrap();
        assert_eq!((plan.mtu, plan.net6), (Some(1500), None));
        assert_eq!(net4.guest, Ipv4Addr::new(10, 0, 2, 100));
        assert_eq!((net4.gateway, net4.prefix), (Ipv4Addr::new(10, 0, 2, 2), 24));
        assert_eq!(net4.dns, Some(Ipv4Addr::new(10, 0, 2, 3)));
        let pool = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 30));
        assert_eq!(plan.announced.pool4, Some(pool));
        assert_eq!(plan.access.host_loopback, HostLoopback::All);
        assert_eq!(plan.access.dns, DnsService::Forwarded);
        assert!(plan.api.is_none() && plan.ready_fd.is_none() && plan.exit_fd.is_none());
        let namespace = namespace("1 tap0");
        assert!(!namespace.configure && namespace.adopt);
        assert_eq!((namespace.target, &*namespace.tap_name), (Target::Pid(1), "tap0"));
    }

    #[test]
    fn podman_s_line_is_read() {
        let line = "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c -e 3 -r 4 \
                    --api-socket /tmp/a.net --netns-type=path /proc/self/ns/net tap0";
        let plan = plan(line);
        assert_eq!((plan.mtu, plan.exit_fd, plan.ready_fd), (Some(65_520), Some(3), Some(4)));
        assert_eq!(plan.access.host_loopback, HostLoopback::None);
        assert_eq!(plan.access.closed, Closed::NetUnreachable);
        let guest = Guest { v4: [10, 0, 2, 100].into(), v6: Some("fd00::64".parse().unwrap()) };
        let protocol = ApiProtocol::Slirp4netns(guest);
        assert_eq!(plan.api, Some(Api { path: "/tmp/a.net".into(), protocol }));
        let namespace = namespace(line);
        assert_eq!(namespace.target, Target::Path("/proc/self/ns/net".into()));
        assert!(namespace.configure);
    }

    #[test]
    fn options_are_read_by_getopt_rules() {
        for line in [
            "-c6m9000 1 tap0",
            "-c -6 -m 9000 1 tap0",
            "1 --configure tap0 --mtu 9000 --enable-ipv6",
            "--conf --mt=9000 --enable-i 1 tap0",
            "-m1 -m 9000 -c -c -6 -- 1 tap0",
        ] {
            let plan = plan(line);
            assert_eq!((plan.mtu, plan.net6.is_some()), (Some(9_000), true), "{line}");
            assert!(namespace(line).configure, "{line}");
        }
        assert!(matches!(asked("--help"), Err(Stop::Help(_))));
        assert!(matches!(asked("-v 1 tap0"), Err(Stop::Version)));
    }

    #[test]
    fn what_is_wrong_with_the_line_is_said_beside_the_help() {
        for (line, what) in [
            ("--bogus 1 tap0", "unrecognized option '--bogus'"),
            ("--mtu", "option '--mtu' requires an argument"),
            ("-z 1 tap0", "invalid option -- 'z'"),
            ("--enable-ipv6=1 1 tap0", "option '--enable-ipv6' doesn't allow an argument"),
            ("--mtu=0 1 tap0", "MTU must be a positive integer (< 65522)"),
            ("--mtu=65522 1 tap0", "MTU must be a positive integer (< 65522)"),
            ("--mtu=1500x 1 tap0", "MTU must be a positive integer (< 65522)"),
            ("--exit-fd=-1 1 tap0", "exit-fd must be a non-negative integer"),
            ("--ready-fd=x 1 tap0", "ready-fd must be a non-negative integer"),
            ("abc tap0", "PID must be a positive integer"),
            ("0 tap0", "PID must be a positive integer"),
            ("/run/netns/x tap0", "PID must be a positive integer: add --netns-type=path"),
            ("", "what to connect to is missing: write slirp4netns PID tap0"),
            ("7", "the name of the device is missing: write slirp4netns 7 tap0"),
            ("--userns-path=/nonexistent 1 tap0", "userns path doesn't exist: /nonexistent"),
            (
                "--macaddress=02:00:00:00:00:01 1 tap0",
                "--macaddr cannot be specified when --configure or -c is not specified",
            ),
            ("--target-type=x 1 tap0", "--target-type must be either \"netns\" or \"bess\""),
            ("--target-type=bess -c /s", "--configure conflicts with --target-type=bess"),
            (
                "--target-type=bess --netns-type=pid /s",
                "--netns-type conflicts with --target-type=bess",
            ),
            (
                "--target-type=bess /s 1 2",
                "too many arguments: write slirp4netns --target-type=bess PATH",
            ),
            ("--netns-type=tapfd x", "FD must be a non-negative integer when --netns-type=tapfd"),
        ] {
            assert_eq!(wrong(line), (what.to_owned(), true), "{line}");
        }
        let (missing, _) = wrong("--netns-type=path /nonexistent tap0");
        assert!(
            missing.starts_with("existing path expected when --netns-type=path: "),
            "{missing}"
        );
    }

    #[test]
    fn what_is_wrong_with_a_value_is_said_alone() {
        for (line, what) in [
            ("--cidr=24", "invalid CIDR: 24"),
            ("--cidr=foo", "invalid CIDR: foo"),
            ("--cidr=10.0.2.0", "invalid CIDR: 10.0.2.0"),
            ("--cidr=256.0.0.0/24", "invalid network address: 256.0.0.0"),
            (
                "--cidr=10.0.2.100/24",
                "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24",
            ),
            ("--cidr=10.0.2.0/26", "prefix length needs to be 1-25"),
            ("--cidr=0.0.0.0/0", "prefix length needs to be 1-25"),
        ] {
            assert_eq!(wrong(&format!("{line} 1 tap0")), (what.to_owned(), false), "{line}");
        }
        let long = "a".repeat(108);
        for (line, what) in [
            (format!("--api-socket={long}"), "the specified API socket path is too long (>= 108)"),
            ("-c --macaddress=foo".to_owned(), "macaddress has to be a valid MAC address"),
            ("-c --macaddress=01:00:00:00:00:01".to_owned(), "neither zero nor multicast"),
            (
                "-c --macaddress=0:1:2:3:4:5:6".to_owned(),
                "macaddress has to be a valid MAC address",
            ),
            (
                "--outbound-addr=::1".to_owned(),
                "outbound-addr has to be valid ipv4 address or interface",
            ),
            (
                "--outbound-addr6=1.2.3.4".to_owned(),
                "outbound-addr6 has to be valid ipv6 address or",
            ),
            ("--mtu=67".to_owned(), "cannot set MTU: a device takes 68 at least"),
        ] {
            let (said, has_help) = wrong(&format!("{line} 1 tap0"));
            assert!(said.contains(what) && !has_help, "{line}: {said}");
        }
    }

    #[test]
    fn addresses_and_interfaces_to_leave_from_are_one_per_family() {
        let outbound = plan("--outbound-addr=192.0.2.1 --outbound-addr6=lo 1 tap0").outbound;
        assert_eq!(outbound.v4, Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!((outbound.interface4, outbound.interface6.as_deref()), (None, Some("lo")));
        let outbound = plan("--outbound-addr=lo --outbound-addr6=2001:db8::1 1 tap0").outbound;
        assert_eq!((outbound.interface4.as_deref(), outbound.interface6), (Some("lo"), None));
        assert_eq!(outbound.v6, Some("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn a_network_of_the_caller_s_moves_every_address() {
        let plan = plan("-c --cidr=192.168.128.0/17 --macaddress=0:1:2:a:B:ff 1 tap0");
        let net4 = plan.net4.unwrap();
        assert_eq!(net4.guest, Ipv4Addr::new(192, 168, 128, 100));
        let first = Ipv4Addr::new(192, 168, 128, 15);
        assert_eq!(plan.announced.pool4.map(|pool| pool.0), Some(first));
        assert_eq!(plan.guest_mac, MacAddr([0, 1, 2, 10, 11, 255]));
    }

    #[test]
    fn an_mtu_too_small_for_ipv6_costs_ipv6_and_says_so() {
        let asked = asked("-6 -m 1000 1 tap0").unwrap();
        assert!(asked.plan.net6.is_none());
        assert_eq!(asked.warnings, ["--mtu=1000 is below the 1280 that IPv6 needs: no IPv6"]);
    }

    #[test]
    fn what_is_set_up_is_told_as_the_original_tells_it() {
        let Announcement::TapAnd(text) = plan("-c -a /tmp/s 1 tap0").announcement else {
            panic!("slirp4netns says what it set up");
        };
        let expected = [
            "Starting slirp",
            "* MTU:             1500",
            "* Network:         10.0.2.0",
            "* Netmask:         255.255.255.0",
            "* Gateway:         10.0.2.2",
            "* DNS:             10.0.2.3",
            "* DHCP begin:      10.0.2.15",
            "* DHCP end:        10.0.2.30",
            "* Recommended IP:  10.0.2.100",
            "* API Socket:      /tmp/s",
        ];
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..expected.len()], expected);
        assert!(
            lines[10].starts_with("WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2 ")
        );
    }
}
