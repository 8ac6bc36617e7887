//! What the words of a command line mean: every value in its type, and what contradicts itself refused.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User};
use usernet_core::config::{DomainName, MacAddr};

use super::grammar::Grammar;
use super::ports::{Ports, PortsError};
use crate::plan::MTU_MAX;

/// The smallest MTU of IPv4.
const MTU_MIN: u16 = 68;
/// What fits into a frame of IEEE 802.3, rounded to words.
const MTU_DEFAULT: u16 = 65_520;
/// The kernel's own, where ours is not wanted.
const MTU_OF_KERNEL: u16 = 1_500;

/// Our Ethernet address, the one that pasta's users know.
const MAC: MacAddr = MacAddr([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

/// The smallest and the usual size of a log file.
const LOG_BYTES_MIN: u64 = 4_096;
const LOG_BYTES: u64 = 1 << 20;

/// The most search domains: as many as `resolv.conf(5)` may have.
const DOMAINS_MAX: usize = 32;

/// A value that is none, or several that contradict each other.
#[derive(Debug, thiserror::Error)]
pub(super) enum OptionsError {
    /// One value.
    #[error("Invalid {what}: {value}; {want}")]
    Invalid { what: &'static str, value: String, want: &'static str },
    /// What it says it all.
    #[error("{0}")]
    Conflict(String),
    /// `-t`, `-u`, `-T`, `-U`.
    #[error(transparent)]
    Ports(#[from] PortsError),
}

fn invalid(what: &'static str, value: &str, want: &'static str) -> OptionsError {
    let value = value.chars().take(64).collect();
    OptionsError::Invalid { what, value, want }
}

/// One value per family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

impl Families {
    /// Both, as far as they are there.
    pub(super) fn iter(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }

    fn set(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) => self.v4 = Some(v4),
            IpAddr::V6(v6) => self.v6 = Some(v6),
        }
    }
}

/// `none`, or what is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given<T> {
    /// Nothing was said.
    Default,
    /// `none`.
    None,
    /// This.
    These(T),
}

/// What is to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The namespace of a process.
    Pid(i32),
    /// A namespace by its file.
    Path(PathBuf),
    /// A command in a namespace of its own; empty: a shell.
    Command(Vec<OsString>),
}

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verbosity {
    Quiet,
    Usual,
    Debug,
    Trace,
}

/// A command line that makes sense.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) subject: Subject,
    /// None: that of the process, or the one that owns the namespace.
    pub(super) userns: Option<PathBuf>,
    pub(super) verbosity: Verbosity,
    pub(super) log_bytes: u64,
    pub(super) run_as: Option<(Uid, Gid)>,
    /// Of the interface.
    pub(super) mtu: u16,
    pub(super) is_mtu_told: bool,
    pub(super) address: Families,
    /// Prefix lengths that were given with the addresses or for them.
    pub(super) prefix4: Option<u8>,
    pub(super) prefix6: Option<u8>,
    pub(super) gateway: Families,
    pub(super) outbound: Families,
    pub(super) mac: MacAddr,
    pub(super) ns_mac: Option<MacAddr>,
    pub(super) dns: Given<Vec<IpAddr>>,
    pub(super) search: Given<Vec<DomainName>>,
    pub(super) hostname: Option<DomainName>,
    pub(super) fqdn: Option<DomainName>,
    pub(super) map_host_loopback: Given<Families>,
    pub(super) map_guest_addr: Given<Families>,
    pub(super) dns_forward: Families,
    pub(super) dns_host: Families,
    pub(super) tcp_ports: Option<Ports>,
    pub(super) udp_ports: Option<Ports>,
    pub(super) tcp_ns: Option<Ports>,
    pub(super) udp_ns: Option<Ports>,
    /// Switches, and words that need no reading.
    pub(super) line: Grammar,
}

impl Options {
    /// What a line means.
    pub(super) fn read(line: Grammar) -> Result<Self, OptionsError> {
        refuse(&line)?;
        let ports = |specs: &[String]| Ports::read(specs.iter().map(String::as_str));
        let (mtu, is_mtu_told) = mtu(line.mtu.as_deref())?;
        let mut address = Families::default();
        let (mut prefix4, mut prefix6) = netmask(&line.netmask)?;
        for text in &line.address {
            let (ip, prefix) = own_address(text)?;
            address.set(ip);
            match ip {
                IpAddr::V4(_) => prefix4 = prefix.or(prefix4),
                IpAddr::V6(_) => prefix6 = prefix.or(prefix6),
            }
        }
        Ok(Self {
            subject: subject(&line)?,
            userns: line.userns.clone(),
            verbosity: verbosity(&line),
            log_bytes: log_bytes(line.log_size.as_deref())?,
            run_as: line.runas.as_deref().map(run_as).transpose()?,
            mtu,
            is_mtu_told,
            address,
            prefix4,
            prefix6,
            gateway: families("gateway address", &line.gateway)?,
            outbound: families("outbound address", &line.outbound)?,
            mac: line.mac_addr.as_deref().map_or(Ok(MAC), mac)?,
            ns_mac: line.ns_mac_addr.as_deref().map(mac).transpose()?,
            dns: resolvers(&line.dns)?,
            search: domains(&line.search)?,
            hostname: line.hostname.as_deref().map(|name| domain("host name", name)).transpose()?,
            fqdn: line.fqdn.as_deref().map(|name| domain("FQDN", name)).transpose()?,
            map_host_loopback: mapped("address to remap to host", &line.map_host_loopback)?,
            map_guest_addr: mapped("address to remap to guest's", &line.map_guest_addr)?,
            dns_forward: families("DNS forwarding address", &line.dns_forward)?,
            dns_host: families("host nameserver", &line.dns_host)?,
            tcp_ports: ports(&line.tcp_ports)?,
            udp_ports: ports(&line.udp_ports)?,
            tcp_ns: ports(&line.tcp_ns)?,
            udp_ns: ports(&line.udp_ns)?,
            line,
        })
    }

    /// Whether IPv4 is wanted.
    pub(super) fn has_v4(&self) -> bool {
        !self.line.ipv6_only
    }

    /// Whether IPv6 is wanted.
    pub(super) fn has_v6(&self) -> bool {
        !self.line.ipv4_only
    }
}

/// What cannot be done, or not together.
fn refuse(line: &Grammar) -> Result<(), OptionsError> {
    let for_machines = [
        ("--socket", line.socket.is_some()),
        ("--fd", line.fd.is_some()),
        ("--one-off", line.one_off),
        ("--vhost-user", line.vhost_user),
        ("--print-capabilities", line.print_capabilities),
        ("--repair-path", line.repair_path.is_some()),
        ("--no-dhcp-dns", line.no_dhcp_dns),
        ("--no-dhcp-search", line.no_dhcp_search),
    ];
    let conflict = |told: String| Err(OptionsError::Conflict(told));
    if let Some((option, _)) = for_machines.into_iter().find(|(_, is_given)| *is_given) {
        return conflict(format!(
            "{option} is for passt mode (virtual machines) only: leave it out for a namespace"
        ));
    }
    if line.ipv4_only && line.ipv6_only {
        return conflict("--ipv4-only and --ipv6-only exclude each other: give one of them".into());
    }
    if line.userns.is_some() && line.netns_only {
        return conflict("--userns and --netns-only exclude each other: give one of them".into());
    }
    Ok(())
}

fn verbosity(line: &Grammar) -> Verbosity {
    match (line.trace, line.debug, line.quiet) {
        (true, _, _) => Verbosity::Trace,
        (false, true, _) => Verbosity::Debug,
        (false, false, true) => Verbosity::Quiet,
        (false, false, false) => Verbosity::Usual,
    }
}

/// A first operand of digits only is a process; anything else is a command.
fn subject(line: &Grammar) -> Result<Subject, OptionsError> {
    if let Some(netns) = &line.netns {
        if !line.operands.is_empty() {
            return Err(OptionsError::Conflict(
                "Both --netns and PID or command given: leave one of them out".into(),
            ));
        }
        let is_name = netns.components().count() == 1 && netns.is_relative();
        let path = if is_name { PathBuf::from("/run/netns").join(netns) } else { netns.clone() };
        return Ok(Subject::Path(path));
    }
    let pid = match line.operands.as_slice() {
        [only] => only.to_str().filter(|text| text.bytes().all(|b| b.is_ascii_digit())),
        [..] => None,
    };
    match pid {
        Some(text) => match text.parse() {
            Ok(pid) if pid > 0 => Ok(Subject::Pid(pid)),
            Ok(_) | Err(_) => Err(invalid("PID", text, "it is the number of a process")),
        },
        None if line.userns.is_some() && line.operands.is_empty() => Err(OptionsError::Conflict(
            "--userns needs --netns or a PID: say which network namespace".into(),
        )),
        None => Ok(Subject::Command(line.operands.clone())),
    }
}

fn mtu(text: Option<&str>) -> Result<(u16, bool), OptionsError> {
    let Some(text) = text else { return Ok((MTU_DEFAULT, true)) };
    match text.parse() {
        Ok(0) => Ok((MTU_OF_KERNEL, false)),
        Ok(mtu @ MTU_MIN..=MTU_MAX) => Ok((mtu, true)),
        Ok(_) | Err(_) => Err(invalid("MTU", text, "it is 68 to 65521 bytes, or 0 for none")),
    }
}

fn log_bytes(text: Option<&str>) -> Result<u64, OptionsError> {
    let Some(text) = text else { return Ok(LOG_BYTES) };
    let bytes = text.parse().ok().filter(|&bytes| bytes >= LOG_BYTES_MIN);
    bytes.ok_or_else(|| invalid("--log-size", text, "it is 4096 bytes or more"))
}

/// `UID`, `UID:GID`, `LOGIN` or `LOGIN:GROUP`. The group of a number is the same number.
fn run_as(text: &str) -> Result<(Uid, Gid), OptionsError> {
    let (user, group) = match text.split_once(':') {
        None => (text, None),
        Some((user, group)) => (user, Some(group)),
    };
    let (user, own) = match user.parse() {
        Ok(id) => (Some(Uid::from_raw(id)), Some(Gid::from_raw(id))),
        Err(_) => {
            let found = User::from_name(user).ok().flatten();
            (found.as_ref().map(|user| user.uid), found.map(|user| user.gid))
        }
    };
    let group = match group.map(|group| (group, group.parse())) {
        None => own,
        Some((_, Ok(id))) => Some(Gid::from_raw(id)),
        Some((name, Err(_))) => Group::from_name(name).ok().flatten().map(|group| group.gid),
    };
    let both = user.zip(group);
    both.ok_or_else(|| invalid("--runas option", text, "no such user or group"))
}

/// The last mask of each family: dotted or up to 32 bits it is for IPv4, longer for IPv6.
fn netmask(texts: &[String]) -> Result<(Option<u8>, Option<u8>), OptionsError> {
    let (mut v4, mut v6) = (None, None);
    for text in texts {
        let dotted = text.parse::<Ipv4Addr>().ok().map(Ipv4Addr::to_bits);
        let is_mask = |bits: &u32| bits.leading_ones() + bits.trailing_zeros() == 32;
        match (dotted.filter(is_mask), text.parse::<u8>()) {
            (Some(bits), _) => v4 = u8::try_from(bits.leading_ones()).ok(),
            (None, Ok(bits @ 0..=32)) => v4 = Some(bits),
            (None, Ok(64)) => v6 = Some(64),
            (None, _) => {
                return Err(invalid("netmask", text, "write it as 24 or 255.255.255.0"));
            }
        }
    }
    Ok((v4, v6))
}

/// An address for the guest, with a prefix length or not.
fn own_address(text: &str) -> Result<(IpAddr, Option<u8>), OptionsError> {
    let wrong = || invalid("address", text, "it is an address that the namespace can have");
    let (ip, prefix) = match text.split_once('/') {
        None => (text, None),
        Some((ip, prefix)) => (ip, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
    };
    let ip = ip.parse().map_err(|_| wrong())?;
    let bits_max = match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let is_right = is_unicast(ip) && prefix.is_none_or(|prefix| prefix <= bits_max);
    is_right.then_some((ip, prefix)).ok_or_else(wrong)
}

fn is_unicast(ip: IpAddr) -> bool {
    let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !is_broadcast
}

/// Addresses of both families, of each the last one.
fn families(what: &'static str, texts: &[String]) -> Result<Families, OptionsError> {
    let mut families = Families::default();
    for text in texts {
        let ip = text.parse::<IpAddr>().ok();
        // The host's own resolver may be on its loopback.
        let is_right =
            |ip: &IpAddr| is_unicast(*ip) || what == "host nameserver" && ip.is_loopback();
        let ip = ip.filter(is_right);
        families.set(ip.ok_or_else(|| invalid(what, text, "it is an IPv4 or an IPv6 address"))?);
    }
    Ok(families)
}

/// The same, where `none` may stand.
fn mapped(what: &'static str, texts: &[String]) -> Result<Given<Families>, OptionsError> {
    let Some(last) = texts.last() else { return Ok(Given::Default) };
    if last == "none" {
        return Ok(Given::None);
    }
    let named: Vec<_> = texts.iter().filter(|text| *text != "none").cloned().collect();
    families(what, &named).map(Given::These)
}

fn resolvers(texts: &[String]) -> Result<Given<Vec<IpAddr>>, OptionsError> {
    let mut given: Given<Vec<IpAddr>> = Given::Default;
    for text in texts {
        if text == "none" || text.is_empty() {
            given = Given::None;
            continue;
        }
        let ip: IpAddr = text.parse().map_err(|_| {
            invalid("DNS address", text, "it is an IPv4 or an IPv6 address, or none")
        })?;
        match &mut given {
            Given::These(these) => these.push(ip),
            Given::Default | Given::None => given = Given::These(vec![ip]),
        }
    }
    Ok(given)
}

fn domains(texts: &[String]) -> Result<Given<Vec<DomainName>>, OptionsError> {
    let Some(last) = texts.last() else { return Ok(Given::Default) };
    if last == "none" || last.is_empty() {
        return Ok(Given::None);
    }
    let words = texts.iter().flat_map(|text| text.split_whitespace());
    let domains = words.map(|word| domain("search domain", word)).collect::<Result<Vec<_>, _>>()?;
    if domains.len() > DOMAINS_MAX {
        return Err(invalid("search list", last, "it has 32 domains at most"));
    }
    Ok(Given::These(domains))
}

fn domain(what: &'static str, text: &str) -> Result<DomainName, OptionsError> {
    DomainName::parse(text).map_err(|_| invalid(what, text, "it is a domain name like lab.example"))
}

fn mac(text: &str) -> Result<MacAddr, OptionsError> {
    let wrong =
        || invalid("MAC address", text, "it is six bytes of one station, like 02:00:00:00:00:01");
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| (1..=2).contains(&part.len())).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    let mac = MacAddr(bytes);
    let is_right = parts.next().is_none() && !mac.is_multicast() && bytes != [0; 6];
    is_right.then_some(mac).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options, String> {
        let args = line.split_whitespace().map(OsString::from);
        let grammar = Grammar::read(args).map_err(|error| error.to_string())?;
        Options::read(grammar).map_err(|error| error.to_string())
    }

    #[test]
    fn rootlesskits_line_is_understood() {
        let line = "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 \
                    --gateway=10.0.2.2 --dns-forward=10.0.2.3 --ipv4-only --tcp-ports=auto --udp-ports=none 42";
        let options = read(line).unwrap();
        assert_eq!(options.subject, Subject::Pid(42));
        assert_eq!(options.address.v4, Some([10, 0, 2, 100].into()));
        assert_eq!((options.prefix4, options.mtu), (Some(24), 65_520));
        assert_eq!(options.dns_forward.v4, Some([10, 0, 2, 3].into()));
        assert_eq!(options.tcp_ports, Some(Ports::default()));
        assert_eq!((options.udp_ports, options.tcp_ns), (Some(Ports::None), None));
    }

    #[test]
    fn what_is_connected_is_told_by_the_operands() {
        let subject = |line: &str| read(line).map(|options| options.subject);
        let command = |words: &[&str]| Subject::Command(words.iter().map(OsString::from).collect());
        assert_eq!(subject(""), Ok(command(&[])));
        assert_eq!(subject("42"), Ok(Subject::Pid(42)));
        assert_eq!(subject("sh -c x"), Ok(command(&["sh", "-c", "x"])));
        assert_eq!(subject("42 x"), Ok(command(&["42", "x"])));
        assert_eq!(subject("--netns blue"), Ok(Subject::Path("/run/netns/blue".into())));
        assert_eq!(subject("--netns ./blue"), Ok(Subject::Path("./blue".into())));
        assert_eq!(subject("--netns /proc/1/ns/net"), Ok(Subject::Path("/proc/1/ns/net".into())));
    }

    #[test]
    fn of_each_family_the_last_address_counts() {
        let options =
            read("-a 10.0.2.1 -a fd00::1/64 -a 10.0.2.2/25 -g fe80::1 -n 255.255.0.0").unwrap();
        let v6 = "fd00::1".parse().ok();
        assert_eq!(options.address, Families { v4: Some([10, 0, 2, 2].into()), v6 });
        assert_eq!((options.prefix4, options.prefix6), (Some(25), Some(64)));
        assert_eq!(options.gateway, Families { v4: None, v6: "fe80::1".parse().ok() });
    }

    #[test]
    fn none_takes_back_and_is_taken_back() {
        assert_eq!(read("-D none").unwrap().dns, Given::None);
        assert_eq!(
            read("-D none -D 1.1.1.1").unwrap().dns,
            Given::These(vec![[1, 1, 1, 1].into()])
        );
        assert_eq!(read("--map-guest-addr none").unwrap().map_guest_addr, Given::None);
        assert_eq!(read("").unwrap().map_host_loopback, Given::Default);
        assert_eq!(read("-S none").unwrap().search, Given::None);
        assert_eq!(
            read("-m 0").map(|options| (options.mtu, options.is_mtu_told)),
            Ok((1_500, false))
        );
    }

    #[test]
    fn a_user_is_a_name_or_a_number() {
        let run_as = |text: &str| read(&format!("--runas {text}")).unwrap().run_as.unwrap();
        let ids = |user, group| (Uid::from_raw(user), Gid::from_raw(group));
        assert_eq!(run_as("1234"), ids(1234, 1234));
        assert_eq!(run_as("1234:5"), ids(1234, 5));
        assert_eq!(run_as("root"), ids(0, 0));
        assert_eq!(run_as("root:root"), ids(0, 0));
    }

    #[test]
    fn what_is_wrong_is_told_in_one_line() {
        for (line, told) in [
            ("-m 70000", "Invalid MTU: 70000"),
            ("-m abc", "Invalid MTU: abc"),
            ("-a 1.2.3", "Invalid address: 1.2.3"),
            ("-a 127.0.0.1", "Invalid address: 127.0.0.1"),
            ("-a 10.0.2.1/33", "Invalid address: 10.0.2.1/33"),
            ("-n 99", "Invalid netmask: 99"),
            ("-n 255.0.255.0", "Invalid netmask: 255.0.255.0"),
            ("-g 300.1.1.1", "Invalid gateway address: 300.1.1.1"),
            ("-o 1.2.3.4.5", "Invalid outbound address: 1.2.3.4.5"),
            ("-M 01:02", "Invalid MAC address: 01:02"),
            ("--ns-mac-addr 01:00:00:00:00:01", "Invalid MAC address"),
            ("-D bogus", "Invalid DNS address: bogus"),
            ("--dns-forward bogus", "Invalid DNS forwarding address: bogus"),
            ("--map-host-loopback bogus", "Invalid address to remap to host: bogus"),
            ("--map-guest-addr bogus", "Invalid address to remap to guest's: bogus"),
            ("--log-size 3", "Invalid --log-size: 3"),
            ("--runas nobodyxx", "Invalid --runas option: nobodyxx"),
            ("--runas 0:nobodyxx", "Invalid --runas option: 0:nobodyxx"),
            ("-S a..b", "Invalid search domain: a..b"),
            ("-4 -6", "exclude each other"),
            ("--userns /x --netns-only", "exclude each other"),
            ("--netns x 1", "Both --netns and PID or command given"),
            ("--no-dhcp-dns", "--no-dhcp-dns is for passt mode"),
            ("-s /tmp/x", "--socket is for passt mode"),
            ("-t 70000", "Invalid port specifier 70000"),
            ("99999999999", "Invalid PID"),
        ] {
            let error = read(line).map(|_| ()).expect_err(line);
            assert!(error.contains(told), "{line}: {error}");
            assert_eq!(error.lines().count(), 1, "{line}: {error}");
        }
    }
}
