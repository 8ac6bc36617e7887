//! ICMP errors: reading the guest's, and telling the guest ours.
//!
//! # Theory of operation
//!
//! The guest's stack knows a flow by what an error *quotes*: the IP header and the first bytes of the transport
//! header of the packet that failed. [`parse`] reads that from an error that the guest sends; [`tell_guest`] makes
//! such an error, with an IP header rebuilt from what is still known of the packet.
//!
//! What RFC 1122 (3.2.2), RFC 1812 (4.3.2) and RFC 4443 (2.4) forbid is not sent: errors about errors, about
//! multicast and broadcast, about fragments other than the first (callers have none to offer: see
//! [`Quoted::of_packet`]), and more of them than a bucket of tokens allows.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;

use super::build::{HOP_LIMIT, IpHeader};
use super::checksum::Sum;
use super::{ETHERNET_BYTES, Packet, parse_ip, protocol};
use crate::config::{Config, MacAddr};
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{HostError, Offload};
use crate::rules::View;
use crate::time::Instant;

/// Bytes of an ICMP error's own header, in both versions.
const ICMP_BYTES: usize = 8;
/// The largest ICMP error, IP header included (RFC 1812, section 4.3.2.3).
const ERROR4_BYTES_MAX: usize = 576;
/// The largest ICMPv6 error: the minimum MTU (RFC 4443, section 2.4 c).
pub const ERROR6_BYTES_MAX: usize = 1280;
/// Every IPv6 link takes packets of this size; a smaller MTU is not told (RFC 8200, section 5).
const MTU6_MIN: u32 = 1280;

/// An ICMP error from the guest about a packet that we sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestError {
    /// What the error says.
    pub error: HostError,
    /// Protocol of the quoted packet.
    pub protocol: u8,
    /// Source of the quoted packet: the remote end, as the guest sees it. Port 0 where the protocol has none.
    pub from: SocketAddr,
    /// Destination of the quoted packet: the guest's end.
    pub to: SocketAddr,
    /// TCP: sequence number of the quoted segment.
    pub sequence: Option<u32>,
}

/// Reads an ICMP or ICMPv6 error; none if it is not one, or quotes too little. The caller has verified the
/// ICMP checksum.
pub fn parse(packet: &Packet, bytes: &[u8]) -> Option<GuestError> {
    let (header, quote) = bytes.get(packet.payload())?.split_first_chunk::<ICMP_BYTES>()?;
    let &[kind, code, _, _, a, b, c, d] = header;
    let (error, quoted) = match (packet.source, packet.protocol) {
        (IpAddr::V4(_), protocol::ICMP) => {
            (error_of_icmp4(kind, code, u16::from_be_bytes([c, d]))?, quoted4(quote)?)
        }
        (IpAddr::V6(_), protocol::ICMPV6) => {
            (error_of_icmp6(kind, code, u32::from_be_bytes([a, b, c, d]))?, quoted6(quote)?)
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => return None,
    };
    let (ports, _) = quoted.transport.split_first_chunk::<8>()?;
    let &[s0, s1, d0, d1, q0, q1, q2, q3] = ports;
    let has_ports = matches!(quoted.protocol, protocol::TCP | protocol::UDP);
    let port = |bytes| if has_ports { u16::from_be_bytes(bytes) } else { 0 };
    Some(GuestError {
        error,
        protocol: quoted.protocol,
        from: SocketAddr::new(quoted.source, port([s0, s1])),
        to: SocketAddr::new(quoted.destination, port([d0, d1])),
        sequence: (quoted.protocol == protocol::TCP)
            .then_some(u32::from_be_bytes([q0, q1, q2, q3])),
    })
}

/// Types and codes of RFC 792, RFC 1122 (3.2.2.1) and RFC 1812 (5.2.7.1), as Linux maps them to errno.
fn error_of_icmp4(kind: u8, code: u8, mtu: u16) -> Option<HostError> {
    Some(match (kind, code) {
        (3, 0 | 6 | 11) => HostError::NetUnreachable,
        (3, 1 | 7 | 8 | 12) => HostError::HostUnreachable,
        (3, 2 | 3) => HostError::Refused,
        (3, 4) => HostError::TooBig { mtu: u32::from(mtu) },
        (3, 9 | 10 | 13) => HostError::Prohibited,
        (11, 0) => HostError::TimeExceeded,
        (3 | 11 | 12, _) => HostError::Icmp { kind, code },
        (_, _) => return None,
    })
}

/// Types and codes of RFC 4443.
fn error_of_icmp6(kind: u8, code: u8, mtu: u32) -> Option<HostError> {
    Some(match (kind, code) {
        (1, 0) => HostError::NetUnreachable,
        (1, 1 | 5 | 6) => HostError::Prohibited,
        (1, 2 | 3) => HostError::HostUnreachable,
        (1, 4) => HostError::Refused,
        (2, _) => HostError::TooBig { mtu },
        (3, 0) => HostError::TimeExceeded,
        (1 | 3 | 4, _) => HostError::Icmp { kind, code },
        (_, _) => return None,
    })
}

/// What an error quotes; the packet may end early.
struct Quote<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    transport: &'a [u8],
}

fn quoted4(bytes: &[u8]) -> Option<Quote<'_>> {
    let header = etherparse::Ipv4HeaderSlice::from_slice(bytes).ok()?;
    if header.fragments_offset().value() != 0 {
        return None;
    }
    Some(Quote {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.protocol().0,
        transport: bytes.get(header.slice().len()..)?,
    })
}

fn quoted6(bytes: &[u8]) -> Option<Quote<'_>> {
    let header = etherparse::Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let (mut protocol, mut transport) = (header.next_header(), bytes.get(header.slice().len()..)?);
    // What we send has at most a fragment header.
    if protocol == etherparse::IpNumber::IPV6_FRAGMENTATION_HEADER {
        let fragment = etherparse::Ipv6FragmentHeaderSlice::from_slice(transport).ok()?;
        if fragment.fragment_offset().value() != 0 {
            return None;
        }
        (protocol, transport) = (fragment.next_header(), transport.get(fragment.slice().len()..)?);
    }
    Some(Quote {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: protocol.0,
        transport,
    })
}

/// A packet of the guest that an error is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) tos: u8,
    pub(crate) hop_limit: u8,
    /// Transport header and the first bytes of payload, as far as they are known.
    pub(crate) transport: &'a [u8],
    /// Bytes of transport header and payload in the packet.
    pub(crate) transport_len: usize,
}

impl<'a> Quoted<'a> {
    /// A packet that is at hand; none for fragments other than the first.
    pub(crate) fn of_packet(packet: &Packet, bytes: &'a [u8]) -> Option<Self> {
        if packet.fragment.is_some_and(|f| f.offset != 0) {
            return None;
        }
        Some(Self {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            tos: packet.tos,
            hop_limit: packet.hop_limit,
            transport: bytes.get(packet.payload())?,
            transport_len: packet.payload_len(),
        })
    }
}

/// How many errors the guest is told (RFC 1812, section 4.3.2.8; RFC 4443, section 2.4 f): a bucket of tokens.
pub struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Default for Bucket {
    fn default() -> Self {
        Self::new()
    }
}

impl Bucket {
    /// Errors in a row.
    const BURST: u32 = 100;
    /// One more after each of these.
    const INTERVAL: Duration = Duration::from_millis(1);

    /// A full one.
    pub const fn new() -> Self {
        Self { tokens: Self::BURST, filled: Instant::ZERO }
    }

    /// Whether one more may be told.
    pub fn take(&mut self, now: Instant) -> bool {
        let earned = now.since(self.filled).as_nanos() / Self::INTERVAL.as_nanos();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(Self::BURST);
            self.filled = now;
        }
        let has_token = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        has_token
    }
}

/// Tells the guest by ICMP what became of its packet. `offender`: who says so (none: our gateway, or the
/// destination itself where only that can have said it).
pub(crate) fn tell_guest(
    ctx: &mut Context<'_>,
    about: &Quoted<'_>,
    error: HostError,
    offender: Option<IpAddr>,
) {
    if !may_be_told(about) {
        return ctx.count(Counter::ErrorsForbidden);
    }
    let Some(source) = source_of(ctx.config, &ctx.rules.view, about, error, offender) else {
        return ctx.count(Counter::ErrorsForbidden);
    };
    if !ctx.errors.take(ctx.now) {
        return ctx.count(Counter::ErrorsLimited);
    }
    ctx.count(Counter::ErrorsToGuest);
    let mut message = Message::new(about, error, source, usize::from(ctx.config.mtu));
    message.ip.source_mac = ctx.config.host_mac;
    message.ip.destination_mac = ctx.neighbors.mac(about.source);
    ctx.emit(message.ip.bytes() + message.len(), Offload::default(), |frame| {
        message.ip.write(frame, message.len());
        message.write(&mut frame[message.ip.bytes()..]);
    });
}

/// Writes an error about `packet`, that of a link without Ethernet, to `buffer`, as told by `source`: its length. None if
/// there may be no error about such a packet. How many are told is the caller's matter ([`Bucket`]).
pub fn write_ip(
    packet: &[u8],
    error: HostError,
    source: IpAddr,
    buffer: &mut [u8; ERROR6_BYTES_MAX],
) -> Option<usize> {
    let about = parse_ip(packet).ok()?;
    let about = Quoted::of_packet(&about, packet)?;
    if !may_be_told(&about) || source.is_ipv4() != about.source.is_ipv4() {
        return None;
    }
    let message = Message::new(&about, error, source, buffer.len());
    let ip_bytes = message.ip.bytes() - ETHERNET_BYTES;
    let len = ip_bytes + message.len();
    message.ip.write_ip(buffer, message.len());
    message.write(&mut buffer[ip_bytes..len]);
    Some(len)
}

/// The gateway tells the guest that a packet's TTL has run out here: hop 1 of a traceroute.
pub(crate) fn tell_time_exceeded(ctx: &mut Context<'_>, packet: &Packet, bytes: &[u8]) {
    if let Some(about) = Quoted::of_packet(packet, bytes) {
        tell_guest(ctx, &about, HostError::TimeExceeded, None);
    }
}

/// Whether errors about such a packet are allowed at all.
fn may_be_told(about: &Quoted<'_>) -> bool {
    let is_error = match (about.protocol, about.transport.first()) {
        (protocol::ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (protocol::ICMPV6, Some(kind)) => *kind < 128 || *kind == 137,
        (protocol::ICMP | protocol::ICMPV6, None) => true,
        (_, _) => false,
    };
    let is_group = |ip: IpAddr| ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    let is_one = |ip: IpAddr| !is_group(ip) && !ip.is_unspecified() && !ip.is_loopback();
    !is_error
        && is_one(about.source)
        && is_one(about.destination)
        && about.source.is_ipv4() == about.destination.is_ipv4()
}

/// Who tells: an offender that the guest can be shown, the destination if only that can have refused, or our gateway.
fn source_of(
    config: &Config,
    view: &View,
    about: &Quoted<'_>,
    error: HostError,
    offender: Option<IpAddr>,
) -> Option<IpAddr> {
    let gateway = config.gateway_like(about.source);
    let is_presentable = |ip: &IpAddr| {
        ip.is_ipv4() == about.source.is_ipv4()
            && !ip.is_multicast()
            && *ip != about.source
            && *ip != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    let says_destination = error == HostError::Refused;
    offender
        .and_then(|ip| view.as_seen_by_guest(ip))
        .or(says_destination.then_some(about.destination))
        .filter(is_presentable)
        .or(gateway)
}

/// Type, code and the four bytes after the checksum.
type IcmpHeader = (u8, u8, u32);

fn icmp4_of_error(error: HostError) -> IcmpHeader {
    match error {
        HostError::Refused => (3, 3, 0),
        HostError::NetUnreachable => (3, 0, 0),
        HostError::Prohibited => (3, 13, 0),
        HostError::TooBig { mtu } => (3, 4, mtu.min(u32::from(u16::MAX))),
        HostError::TimeExceeded => (11, 0, 0),
        HostError::Icmp { kind: kind @ (3 | 11 | 12), code } => (kind, code, 0),
        HostError::HostUnreachable
        | HostError::Icmp { .. }
        | HostError::Reset
        | HostError::TimedOut
        | HostError::NoRoom
        | HostError::Unsupported
        | HostError::Other(_) => (3, 1, 0),
    }
}

fn icmp6_of_error(error: HostError) -> IcmpHeader {
    match error {
        HostError::Refused => (1, 4, 0),
        HostError::NetUnreachable => (1, 0, 0),
        HostError::Prohibited => (1, 1, 0),
        HostError::TooBig { mtu } => (2, 0, mtu.max(MTU6_MIN)),
        HostError::TimeExceeded => (3, 0, 0),
        HostError::Icmp { kind: kind @ (1 | 3 | 4), code } => (kind, code, 0),
        HostError::HostUnreachable
        | HostError::Icmp { .. }
        | HostError::Reset
        | HostError::TimedOut
        | HostError::NoRoom
        | HostError::Unsupported
        | HostError::Other(_) => (1, 3, 0),
    }
}

/// An error to be written.
struct Message<'a> {
    ip: IpHeader,
    header: IcmpHeader,
    about: &'a Quoted<'a>,
    /// What is quoted behind the IP header.
    transport: &'a [u8],
}

impl<'a> Message<'a> {
    /// `mtu`: the largest that the link takes. The Ethernet addresses are the caller's to set.
    fn new(about: &'a Quoted<'a>, error: HostError, source: IpAddr, mtu: usize) -> Self {
        let is_v4 = about.source.is_ipv4();
        let (size_max, ip_bytes, icmp) = if is_v4 {
            (ERROR4_BYTES_MAX, 20, protocol::ICMP)
        } else {
            (ERROR6_BYTES_MAX, 40, protocol::ICMPV6)
        };
        let room = size_max.min(mtu).saturating_sub(2 * ip_bytes + ICMP_BYTES);
        let ip = IpHeader {
            source_mac: MacAddr::default(),
            destination_mac: MacAddr::default(),
            source,
            destination: about.source,
            protocol: icmp,
            // Internetwork control, as RFC 1812 (4.3.2.5) asks for errors.
            tos: if is_v4 { 0xc0 } else { 0 },
            hop_limit: HOP_LIMIT,
        };
        let header = if is_v4 { icmp4_of_error(error) } else { icmp6_of_error(error) };
        let transport = &about.transport[..about.transport.len().min(room)];
        Self { ip, header, about, transport }
    }

    /// Bytes behind the IP header.
    fn len(&self) -> usize {
        ICMP_BYTES + self.ip.bytes() - ETHERNET_BYTES + self.transport.len()
    }

    /// Header, quoted IP header, quoted transport bytes.
    fn write(&self, message: &mut [u8]) {
        let (kind, code, rest) = self.header;
        message[..4].copy_from_slice(&[kind, code, 0, 0]);
        message[4..8].copy_from_slice(&rest.to_be_bytes());
        let quoted = IpHeader {
            source: self.about.source,
            destination: self.about.destination,
            protocol: self.about.protocol,
            tos: self.about.tos,
            hop_limit: self.about.hop_limit,
            ..self.ip
        };
        let ip_bytes = quoted.bytes() - ETHERNET_BYTES;
        let quoted_len = self.about.transport_len.max(self.transport.len());
        quoted.write_ip(&mut message[ICMP_BYTES..], quoted_len);
        message[ICMP_BYTES + ip_bytes..].copy_from_slice(self.transport);
        let sum = match self.ip.protocol {
            protocol::ICMP => Sum::default(),
            _ => self.ip.pseudo_header(message.len()),
        };
        let sum = sum.bytes(message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{EtherType, parse as parse_frame};
    use crate::testing::World;
    use crate::{Input, op};

    /// A UDP datagram of the guest to an address of its own network, where nobody lives.
    fn unreachable_datagram(source: &str, destination: &str) -> alloc::vec::Vec<u8> {
        let config = Config::example();
        let ip = IpHeader {
            source_mac: config.guest_mac,
            destination_mac: config.host_mac,
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol: crate::packet::protocol::TCP,
            tos: 0,
            hop_limit: 64,
        };
        let mut frame = alloc::vec![0; ip.bytes() + 20];
        ip.write(&mut frame, 20);
        let tcp = &mut frame[ip.bytes()..];
        tcp[0..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        tcp[4..8].copy_from_slice(&7_u32.to_be_bytes());
        tcp[12..14].copy_from_slice(&[0x50, 0x02]);
        frame
    }

    #[test]
    fn an_error_quotes_the_packet_and_can_be_read_back() {
        for (guest, nobody) in [("10.0.2.100", "10.0.2.50"), ("fd00::64", "fd00::50")] {
            let mut world = World::new();
            let offload = Offload { checksum: op::Checksum::Valid, ..Offload::default() };
            assert_eq!(world.frame(&unreachable_datagram(guest, nobody), offload), []);
            let written = world.next_written().bytes;
            let Ok(EtherType::Ip(packet)) = parse_frame(&written) else { panic!("IP") };
            let message = &written[packet.payload()];
            assert!(crate::packet::checksum::is_valid(
                packet.source,
                packet.destination,
                packet.protocol,
                message
            ));
            let error = parse(&packet, &written).expect("an error");
            assert_eq!(error.error, HostError::HostUnreachable);
            assert_eq!(error.from, SocketAddr::new(guest.parse().expect("ip"), 40_000));
            assert_eq!(error.to, SocketAddr::new(nobody.parse().expect("ip"), 80));
            assert_eq!(error.sequence, Some(7));
        }
    }

    #[test]
    fn errors_are_limited_in_number_and_come_again_with_time() {
        let mut world = World::new();
        let frame = unreachable_datagram("10.0.2.100", "10.0.2.50");
        let offload = Offload { checksum: op::Checksum::Valid, ..Offload::default() };
        for _ in 0..150 {
            world.frame(&frame, offload);
        }
        assert_eq!(world.written.len(), Bucket::BURST as usize);
        world.pass(Duration::from_millis(10));
        world.input(Input::Tick);
        world.frame(&frame, offload);
        assert_eq!(world.written.len(), Bucket::BURST as usize + 1);
    }

    #[test]
    fn what_a_router_says_is_passed_on_within_its_family() {
        use HostError::{HostUnreachable, Icmp, Prohibited, Refused, TimeExceeded, TooBig};
        for (error, v4, v6) in [
            (Refused, (3, 3, 0), (1, 4, 0)),
            (Prohibited, (3, 13, 0), (1, 1, 0)),
            (TooBig { mtu: 1400 }, (3, 4, 1400), (2, 0, 1400)),
            (TooBig { mtu: 0 }, (3, 4, 0), (2, 0, 1280)),
            (TimeExceeded, (11, 0, 0), (3, 0, 0)),
            (Icmp { kind: 11, code: 1 }, (11, 1, 0), (1, 3, 0)),
            (Icmp { kind: 4, code: 1 }, (3, 1, 0), (4, 1, 0)),
            (HostError::Other(5), (3, 1, 0), (1, 3, 0)),
        ] {
            assert_eq!(icmp4_of_error(error), v4, "{error:?}");
            assert_eq!(icmp6_of_error(error), v6, "{error:?}");
        }
        assert_eq!(error_of_icmp6(2, 0, 1400), Some(TooBig { mtu: 1400 }));
        assert_eq!(error_of_icmp4(3, 1, 0), Some(HostUnreachable));
        assert_eq!(error_of_icmp4(5, 1, 0), None, "a redirect is no error");
        assert_eq!(error_of_icmp6(128, 0, 0), None);
    }

    fn about<'a>(source: &str, destination: &str, protocol: u8, transport: &'a [u8]) -> Quoted<'a> {
        Quoted {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol,
            tos: 0,
            hop_limit: 1,
            transport,
            transport_len: 8,
        }
    }

    #[test]
    fn errors_about_errors_groups_and_nobody_are_not_told() {
        let (icmp, icmp6, udp) = (protocol::ICMP, protocol::ICMPV6, protocol::UDP);
        assert!(may_be_told(&about("10.0.2.100", "192.0.2.1", icmp, &[8, 0])));
        assert!(may_be_told(&about("10.0.2.100", "192.0.2.1", udp, &[])));
        for forbidden in [
            about("10.0.2.100", "192.0.2.1", icmp, &[3, 0]),
            about("10.0.2.100", "192.0.2.1", icmp, &[]),
            about("10.0.2.100", "239.1.1.1", udp, &[]),
            about("10.0.2.100", "255.255.255.255", udp, &[]),
            about("0.0.0.0", "192.0.2.1", udp, &[]),
            about("fd00::64", "2001:db8::1", icmp6, &[1, 0]),
            about("fd00::64", "ff02::1", udp, &[]),
        ] {
            assert!(!may_be_told(&forbidden), "{forbidden:?}");
        }
    }

    #[test]
    fn the_speaker_is_the_offender_if_the_guest_may_see_it() {
        let config = Config::example();
        let view = View::new(&config, &crate::rules::Access::default());
        let asked = about("10.0.2.100", "192.0.2.1", protocol::UDP, &[]);
        let speaker = |error, offender: Option<&str>| {
            source_of(
                &config,
                &view,
                &asked,
                error,
                offender.map(|ip| ip.parse().expect("an address")),
            )
        };
        let is = |ip: &str| Some(ip.parse::<IpAddr>().expect("an address"));
        assert_eq!(speaker(HostError::TimeExceeded, None), is("10.0.2.2"));
        assert_eq!(speaker(HostError::TimeExceeded, Some("198.51.100.1")), is("198.51.100.1"));
        assert_eq!(speaker(HostError::TimeExceeded, Some("127.0.0.1")), is("10.0.2.2"));
        assert_eq!(speaker(HostError::TimeExceeded, Some("2001:db8::1")), is("10.0.2.2"));
        assert_eq!(speaker(HostError::Refused, None), is("192.0.2.1"));
        assert_eq!(speaker(HostError::Refused, Some("10.0.2.100")), is("10.0.2.2"));
    }
}
