//! Forwards as a person writes them: `[HOST_ADDR[%IFACE]:]HOST_PORT[-END][:[GUEST_ADDR:]GUEST_PORT[-END]][/tcp|/udp]`.
//!
//! IPv6 addresses stand in brackets, the interface within them (`[fe80::1%eth0]:8080:80`). Without a host
//! address the forward listens on all of them, in both families. Without a guest part the guest's ports are
//! the host's. TCP where nothing is said. [`Spec`]'s `Display` is the canonical form, and parses to the same
//! value.
//!
//! The text is cut at its colons outside of brackets; a field with a dot or a bracket is an address, any
//! other a port. An outward forward ([`Spec::outward`]) has the same text with its sides swapped: ports of the
//! guest's namespace, by default on its loopback, and where on the host they lead, by default to the host's loopback.
//! Every [`SpecError`] says which piece is wrong, where it stands and what is expected.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use usernet_core::rules::Protocol;

/// The longest text that is looked at: longer ones cannot be right.
pub const SPEC_BYTES_MAX: usize = 256;

/// The longest interface name (`IFNAMSIZ` without the NUL).
const INTERFACE_BYTES_MAX: usize = 15;

/// A range of ports, both ends included; neither is 0 and the first is not above the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// A range; none if it holds port 0 or ends before it starts.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first { None } else { Some(Self { first, last }) }
    }

    /// The first port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many ports these are, 1 to 65,535.
    pub const fn count(self) -> u16 {
        self.last - self.first + 1
    }

    /// The ports.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

/// Where a forward listens on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress {
    /// The address; unspecified: all of its family.
    pub address: IpAddr,
    /// Only what arrives on this interface (`SO_BINDTODEVICE`).
    pub interface: Option<String>,
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.address.is_ipv6() { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}", self.address)?;
        if let Some(interface) = &self.interface {
            write!(f, "%{interface}")?;
        }
        f.write_str(close)
    }
}

/// A forward: host ports that lead to the guest, or ports of the guest's namespace that lead to the host; then read
/// `host` as the side that listens and `guest` as the one where it leads. See the [module](self) for its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spec {
    /// Where it listens; none: everywhere, both families.
    pub host: Option<HostAddress>,
    /// The host's ports.
    pub host_ports: PortRange,
    /// The guest's address; none: its configured one, in the client's family.
    pub guest: Option<IpAddr>,
    /// The guest's ports, as many as the host's.
    pub guest_ports: PortRange,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}:")?;
        }
        write!(f, "{}:", self.host_ports)?;
        match self.guest {
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            None => {}
        }
        write!(f, "{}/{}", self.guest_ports, protocol_name(self.protocol))
    }
}

impl Serialize for Spec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Either direction's: who takes it for one of them checks.
        Self::outward(&text).map_err(serde::de::Error::custom)
    }
}

/// `tcp` or `udp`.
pub const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// A text that is no forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed forward \"{spec}\": {what}{}", At(self))]
pub struct SpecError {
    /// The whole text, cut to a length that can be shown.
    pub spec: String,
    /// The piece of it that is wrong; empty where something is missing.
    pub piece: String,
    /// Where the piece starts: a byte offset.
    pub offset: usize,
    /// What is wrong with it.
    pub what: SpecFault,
}

/// What is wrong with a [`Spec`]'s text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecFault {
    /// Longer than [`SPEC_BYTES_MAX`].
    #[error("longer than {SPEC_BYTES_MAX} characters")]
    TooLong,
    /// Nothing where a port is needed.
    #[error("a port is missing")]
    PortMissing,
    /// Not a number from 1 to 65535.
    #[error("not a port; ports are 1 to 65535")]
    NotAPort,
    /// A range that ends before it starts.
    #[error("the range ends before it starts")]
    RangeBackwards,
    /// The guest's range and the host's differ in length.
    #[error("the guest's range needs as many ports as the host's")]
    RangeLengths,
    /// Not an address.
    #[error("not an IP address; names are not looked up")]
    NotAnAddress,
    /// An IPv6 address without brackets, or brackets that do not match.
    #[error("an IPv6 address stands in brackets, as in [::1]:8080:80")]
    Brackets,
    /// An IPv6 address was expected in the brackets.
    #[error("only IPv6 addresses stand in brackets")]
    NotIpv6,
    /// Not an interface name.
    #[error("not an interface name; it has 1 to 15 characters without / : % [ ] and spaces")]
    NotAnInterface,
    /// An interface at the address where it leads.
    #[error("the address to which it leads takes no interface")]
    GuestInterface,
    /// An address where nobody can listen.
    #[error("a multicast or broadcast address cannot be listened on")]
    HostNotUnicast,
    /// A guest address to which no frame can be sent.
    #[error("not an address that the guest can have on its link")]
    GuestNotUnicast,
    /// An address of the host to which nobody can connect.
    #[error("not an address that can be connected to")]
    TargetNotUnicast,
    /// Host and guest addresses of different families.
    #[error("the host's and the guest's address must be of one family")]
    Families,
    /// Neither tcp nor udp.
    #[error("the protocol is /tcp or /udp")]
    NotAProtocol,
    /// More fields than there can be.
    #[error(
        "too much; the form is [HOST_ADDR[%IFACE]:]HOST_PORT[-END][:[GUEST_ADDR:]GUEST_PORT[-END]][/tcp|/udp]"
    )]
    TooManyFields,
}

/// Shows where an error is.
struct At<'a>(&'a SpecError);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpecError { piece, offset, .. } = self.0;
        let at = self.0.spec.get(..*offset).map_or(*offset, |before| before.chars().count()) + 1;
        if piece.is_empty() {
            write!(f, " (at character {at})")
        } else {
            write!(f, " (\"{piece}\" at character {at})")
        }
    }
}

/// A piece of the text and where it starts.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    offset: usize,
}

/// What is wrong with which piece; the whole text is added at the end.
type Fault<'a> = (Piece<'a>, SpecFault);

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse(text, Leads::ToGuest).map_err(|fault| error(text, fault))
    }
}

impl Spec {
    /// The same text with its sides swapped: ports of the guest's namespace, and where on the host they lead, which may
    /// be any of its addresses.
    pub fn outward(text: &str) -> Result<Self, SpecError> {
        parse(text, Leads::ToHost).map_err(|fault| error(text, fault))
    }
}

/// Where a forward leads, which decides what addresses may stand there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leads {
    ToGuest,
    ToHost,
}

fn error(text: &str, (piece, what): Fault<'_>) -> SpecError {
    SpecError { spec: shown(text), piece: shown(piece.text), offset: piece.offset, what }
}

/// At most 64 characters, control characters escaped: fit for one line on a terminal.
fn shown(text: &str) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == 64 {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

fn parse(text: &str, leads: Leads) -> Result<Spec, Fault<'_>> {
    let whole = Piece { text, offset: 0 };
    if text.len() > SPEC_BYTES_MAX {
        return Err((whole, SpecFault::TooLong));
    }
    let (addresses, protocol) = whole.split_protocol()?;
    let mut fields = Fields { rest: Some(addresses) };
    let host = fields.address()?;
    let host_ports = fields.ports()?;
    let (guest, guest_ports) = if fields.rest.is_some() {
        let guest = fields.address()?;
        (guest, Some(fields.ports()?))
    } else {
        (None, None)
    };
    if let Some(rest) = fields.rest {
        return Err((rest, SpecFault::TooManyFields));
    }
    let host =
        host.map(|(piece, host)| is_listenable(&host).map(|()| host).map_err(|e| (piece, e)));
    let host = host.transpose()?;
    let guest =
        guest.map(|(piece, to)| target(leads, &to, host.as_ref()).map_err(|fault| (piece, fault)));
    let guest = guest.transpose()?;
    let guest_ports = match guest_ports {
        None => host_ports.1,
        Some((_, range)) if range.count() == host_ports.1.count() => range,
        Some((piece, _)) => return Err((piece, SpecFault::RangeLengths)),
    };
    Ok(Spec { host, host_ports: host_ports.1, guest, guest_ports, protocol })
}

fn is_listenable(host: &HostAddress) -> Result<(), SpecFault> {
    let is_broadcast = host.address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if host.address.is_multicast() || is_broadcast {
        return Err(SpecFault::HostNotUnicast);
    }
    Ok(())
}

fn target(
    leads: Leads,
    to: &HostAddress,
    listen: Option<&HostAddress>,
) -> Result<IpAddr, SpecFault> {
    match leads {
        Leads::ToGuest => guest_address(to, listen),
        Leads::ToHost if to.interface.is_some() => Err(SpecFault::GuestInterface),
        Leads::ToHost => {
            let ip = to.address;
            let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
            match ip.is_multicast() || ip.is_unspecified() || is_broadcast {
                true => Err(SpecFault::TargetNotUnicast),
                false => Ok(ip),
            }
        }
    }
}

fn guest_address(guest: &HostAddress, host: Option<&HostAddress>) -> Result<IpAddr, SpecFault> {
    if guest.interface.is_some() {
        return Err(SpecFault::GuestInterface);
    }
    let ip = guest.address;
    let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() || is_broadcast {
        return Err(SpecFault::GuestNotUnicast);
    }
    if host.is_some_and(|host| host.address.is_ipv4() != ip.is_ipv4()) {
        return Err(SpecFault::Families);
    }
    Ok(ip)
}

/// The fields that are still to be read; none: the last one has been.
struct Fields<'a> {
    rest: Option<Piece<'a>>,
}

impl<'a> Fields<'a> {
    /// The next field if it is an address.
    fn address(&mut self) -> Result<Option<(Piece<'a>, HostAddress)>, Fault<'a>> {
        let Some(rest) = self.rest else { return Ok(None) };
        let (field, after) = rest.split_field()?;
        if !field.text.contains(['.', '[', '%']) {
            return Ok(None);
        }
        let address = field.address()?;
        self.rest = after;
        if after.is_none() {
            let end = Piece { text: "", offset: field.offset + field.text.len() };
            return Err((end, SpecFault::PortMissing));
        }
        Ok(Some((field, address)))
    }

    /// The next field, which must be ports.
    fn ports(&mut self) -> Result<(Piece<'a>, PortRange), Fault<'a>> {
        let Some(rest) = self.rest else {
            return Err((Piece { text: "", offset: 0 }, SpecFault::PortMissing));
        };
        if rest.looks_like_bare_ipv6() {
            return Err((rest, SpecFault::Brackets));
        }
        let (field, after) = rest.split_field()?;
        let range = field.ports()?;
        self.rest = after;
        Ok((field, range))
    }
}

impl<'a> Piece<'a> {
    fn slice(self, from: usize, to: usize) -> Self {
        let text = self.text.get(from..to).unwrap_or_default();
        Self { text, offset: self.offset + from }
    }

    fn split_protocol(self) -> Result<(Self, Protocol), Fault<'a>> {
        let Some(slash) = self.text.find('/') else { return Ok((self, Protocol::Tcp)) };
        let name = self.slice(slash + 1, self.text.len());
        let protocol = match name.text {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err((name, SpecFault::NotAProtocol)),
        };
        Ok((self.slice(0, slash), protocol))
    }

    /// Cuts at the first colon outside of brackets.
    fn split_field(self) -> Result<(Self, Option<Self>), Fault<'a>> {
        let from = if self.text.starts_with('[') {
            self.text.find(']').ok_or((self, SpecFault::Brackets))?
        } else {
            0
        };
        match self.text[from..].find(':').map(|at| from + at) {
            None => Ok((self, None)),
            Some(colon) => {
                let after = self.slice(colon + 1, self.text.len());
                Ok((self.slice(0, colon), Some(after)))
            }
        }
    }

    /// `::1:8080` and the like: would otherwise be called a port that is missing.
    fn looks_like_bare_ipv6(self) -> bool {
        let is_hex_and_colons = |c: char| c.is_ascii_hexdigit() || c == ':';
        self.text.contains("::") && self.text.chars().all(is_hex_and_colons)
            || self.text.parse::<Ipv6Addr>().is_ok()
    }

    /// `ADDR[%IFACE]`, an IPv6 one in brackets.
    fn address(self) -> Result<HostAddress, Fault<'a>> {
        let (inner, is_bracketed) = match self.text.strip_prefix('[') {
            None if self.text.contains(['[', ']']) => return Err((self, SpecFault::Brackets)),
            None => (self, false),
            Some(rest) if rest.ends_with(']') => (self.slice(1, self.text.len() - 1), true),
            Some(_) => return Err((self, SpecFault::Brackets)),
        };
        let (ip, interface) = match inner.text.find('%') {
            None => (inner, None),
            Some(at) => {
                let name = inner.slice(at + 1, inner.text.len());
                (inner.slice(0, at), Some(name.interface()?))
            }
        };
        let fault = if is_bracketed { SpecFault::NotIpv6 } else { SpecFault::NotAnAddress };
        let address = if is_bracketed {
            ip.text.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        } else {
            ip.text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        };
        Ok(HostAddress { address: address.ok_or((ip, fault))?, interface })
    }

    fn interface(self) -> Result<String, Fault<'a>> {
        let is_wrong = |c: char| c.is_whitespace() || c.is_control() || "/:%[]".contains(c);
        let name = self.text;
        let has_length = (1..=INTERFACE_BYTES_MAX).contains(&name.len());
        if !has_length || name.contains(is_wrong) || name == "." || name == ".." {
            return Err((self, SpecFault::NotAnInterface));
        }
        Ok(name.to_owned())
    }

    fn ports(self) -> Result<PortRange, Fault<'a>> {
        let (first, last) = match self.text.find('-') {
            None => (self.port()?, self.port()?),
            Some(dash) => {
                let first = self.slice(0, dash).port()?;
                (first, self.slice(dash + 1, self.text.len()).port()?)
            }
        };
        PortRange::new(first, last).ok_or((self, SpecFault::RangeBackwards))
    }

    fn port(self) -> Result<u16, Fault<'a>> {
        if self.text.is_empty() {
            return Err((self, SpecFault::PortMissing));
        }
        // `u16::from_str` takes a leading plus sign.
        let is_digits = self.text.bytes().all(|b| b.is_ascii_digit());
        let port = self.text.parse().ok().filter(|&port: &u16| is_digits && port != 0);
        port.ok_or((self, SpecFault::NotAPort))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_parses_to_its_canonical_text() {
        for (text, canonical) in [
            ("80", "80:80/tcp"),
            ("8080:80", "8080:80/tcp"),
            ("8080:80/tcp", "8080:80/tcp"),
            ("5353:53/udp", "5353:53/udp"),
            ("8000-8010", "8000-8010:8000-8010/tcp"),
            ("8000-8010:9000-9010/udp", "8000-8010:9000-9010/udp"),
            ("8000-8000:1", "8000:1/tcp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"),
            ("127.0.0.1:8080", "127.0.0.1:8080:8080/tcp"),
            ("0.0.0.0%eth0:8080:80", "0.0.0.0%eth0:8080:80/tcp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
            ("[fe80::1%br-0.7]:8080:80", "[fe80::1%br-0.7]:8080:80/tcp"),
            ("8080:10.0.2.7:80", "8080:10.0.2.7:80/tcp"),
            ("[::]:53:[fd00::64]:53/udp", "[::]:53:[fd00::64]:53/udp"),
        ] {
            let spec: Spec = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(spec.to_string(), canonical);
            assert_eq!(canonical.parse::<Spec>().unwrap(), spec);
        }
    }

    #[test]
    fn an_error_says_what_is_wrong_and_where() {
        use SpecFault::*;
        for (text, piece, offset, what) in [
            ("", "", 0, PortMissing),
            (":80", "", 0, PortMissing),
            ("8080:", "", 5, PortMissing),
            ("8080:80/", "", 8, NotAProtocol),
            ("8080:80/TCP", "TCP", 8, NotAProtocol),
            ("8080:80/tcp/udp", "tcp/udp", 8, NotAProtocol),
            ("http:80", "http", 0, NotAPort),
            ("0", "0", 0, NotAPort),
            ("+80", "+80", 0, NotAPort),
            ("8080:65536", "65536", 5, NotAPort),
            ("8080 :80", "8080 ", 0, NotAPort),
            ("90-80", "90-80", 0, RangeBackwards),
            ("80-", "", 3, PortMissing),
            ("-80", "", 0, PortMissing),
            ("80-85:80", "80", 6, RangeLengths),
            ("80:80-85", "80-85", 3, RangeLengths),
            ("1.2.3:8080:80", "1.2.3", 0, NotAnAddress),
            ("example.com:80:80", "example.com", 0, NotAnAddress),
            ("127.0.0.1", "", 9, PortMissing),
            ("[::1]", "", 5, PortMissing),
            ("[::1]:", "", 6, PortMissing),
            ("::1:8080", "::1:8080", 0, Brackets),
            ("2001:db8::1", "2001:db8::1", 0, Brackets),
            ("[::1:8080:80", "[::1:8080:80", 0, Brackets),
            ("[::1]x:80", "[::1]x", 0, Brackets),
            ("[1.2.3.4]:80", "1.2.3.4", 1, NotIpv6),
            ("[]:80", "", 1, NotIpv6),
            ("1.2.3.4%:80", "", 8, NotAnInterface),
            ("1.2.3.4%0123456789abcdef:80", "0123456789abcdef", 8, NotAnInterface),
            ("%eth0:80", "", 0, NotAnAddress),
            ("80:10.0.2.100%tap0:80", "10.0.2.100%tap0", 3, GuestInterface),
            ("224.0.0.1:80:80", "224.0.0.1", 0, HostNotUnicast),
            ("80:127.0.0.1:80", "127.0.0.1", 3, GuestNotUnicast),
            ("80:[ff02::1]:80", "[ff02::1]", 3, GuestNotUnicast),
            ("0.0.0.0:80:[fd00::64]:80", "[fd00::64]", 11, Families),
            ("80:80:80", "80", 6, TooManyFields),
            ("1.2.3.4:80:1.2.3.4:80:90", "90", 22, TooManyFields),
        ] {
            let error = text.parse::<Spec>().expect_err(text);
            assert_eq!(
                (error.piece.as_str(), error.offset, error.what),
                (piece, offset, what),
                "{text}"
            );
        }
    }

    #[test]
    fn a_message_is_one_line_whatever_the_text() {
        let error = "80\n\u{1b}2J".parse::<Spec>().expect_err("control characters");
        assert_eq!(
            error.to_string(),
            "malformed forward \"80\\n\\u{1b}2J\": not a port; ports are 1 to 65535 \
             (\"80\\n\\u{1b}2J\" at character 1)"
        );
        let long = "8".repeat(10_000_000).parse::<Spec>().expect_err("far too long");
        assert_eq!(long.what, SpecFault::TooLong);
        assert!(long.to_string().len() < 500);
    }

    fn range() -> impl Strategy<Value = (PortRange, PortRange)> {
        (0..100u16, 1..60_000u16, 1..60_000u16).prop_map(|(n, host, guest)| {
            let range = |first| PortRange::new(first, first + n).expect("not 0, no overflow");
            (range(host), range(guest))
        })
    }

    fn host() -> impl Strategy<Value = Option<HostAddress>> {
        let interface = proptest::option::of("[a-z0-9._-]{1,15}");
        proptest::option::of((any::<IpAddr>(), interface).prop_map(|(address, interface)| {
            HostAddress { address, interface: interface.filter(|i| i != "." && i != "..") }
        }))
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_to_the_same(
            host in host(), (host_ports, guest_ports) in range(), guest: Option<IpAddr>, is_udp: bool,
        ) {
            let protocol = if is_udp { Protocol::Udp } else { Protocol::Tcp };
            let spec = Spec { host, host_ports, guest, guest_ports, protocol };
            let parsed = spec.to_string().parse::<Spec>();
            let is_legal = spec.host.as_ref().is_none_or(|h| is_listenable(h).is_ok())
                && spec.guest.is_none_or(|address| {
                    guest_address(&HostAddress { address, interface: None }, spec.host.as_ref()).is_ok()
                });
            prop_assert_eq!(parsed.ok(), is_legal.then_some(spec));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f:.%/\\[\\]tcpud \u{e4}-]{0,40}|.{0,40}") {
            if let Ok(spec) = text.parse::<Spec>() {
                prop_assert_eq!(spec.to_string().parse::<Spec>().ok(), Some(spec));
            }
        }
    }
}
