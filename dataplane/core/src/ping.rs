//! Echo to the host side through ping sockets.
//!
//! # Theory of operation
//!
//! An unprivileged process may send echo requests through a *ping socket* (`SOCK_DGRAM` with `IPPROTO_ICMP`, Linux 3.0,
//! for the groups of `net.ipv4.ping_group_range`). The kernel puts the socket's identifier into the request and computes its
//! checksum; it gives back the replies that carry the identifier. So a mapping is: guest's address and identifier ↔
//! one socket, whatever the destination (RFC 5508, section 3.1). The socket asks for the guest's identifier and has
//! another one where that is taken.
//!
//! - *Out*: the ICMP message is sent as it lies in the guest's frame, with the TTL that is left: routers on the way
//!   see what they would see without us.
//! - *In*: the reply gets the guest's identifier, the checksum moves by the difference, and headers go in front. An
//!   ICMPv6 checksum covers an address of the host that we do not know; it is left to whoever writes the frame.
//! - *Errors* quote the request; `traceroute -I` lives on them.
//! - *Idle* mappings end after [`Timeouts::ping_idle`](crate::config::Timeouts). When the table is full, the one that was idle
//!   longest goes, unless it was used in the last second.
//! - Where the kernel has no such socket for us, the guest is told that echo is prohibited, and it is tried again
//!   after a while.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::config::Config;
use crate::context::Context;
use crate::counters::Counter;
use crate::flows::{FlowInfo, FlowKind};
use crate::op::{
    Checksum, CloseHow, DatagramKind, Gso, HEADROOM, HostError, Input, LeaseId, LocalId, Namespace,
    Offload, Op, SocketId, Span,
};
use crate::packet::build::{HOP_LIMIT, IpHeader};
use crate::packet::checksum::moved;
use crate::packet::error::{Quoted, tell_guest};
use crate::packet::{ETHERNET_BYTES, Packet, protocol};
use crate::reassembly::Reassembled;
use crate::rules::Target;
use crate::sockets::{Owner, Sockets};
use crate::time::Instant;
use crate::wheel::Wheel;

/// Bytes of an echo message's header.
const ECHO_BYTES: usize = 8;
/// Bytes of a request that an error quotes at most.
const QUOTE_BYTES_MAX: usize = 548;
/// How long no socket is asked for after the kernel said that there are none for us.
const UNSUPPORTED_PAUSE: Duration = Duration::from_secs(30);
/// The same after any other failure.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// A mapping that was used this recently does not make room for another one.
const BUSY: Duration = Duration::from_secs(1);

/// A guest's identifier and its socket.
struct Mapping {
    /// The guest's address.
    guest: IpAddr,
    /// The guest's identifier.
    identifier: u16,
    socket: SocketId,
    /// The host's address and identifier, once the socket is open.
    local: Option<SocketAddr>,
    /// Where the last request went, as the guest sees it.
    last_to: IpAddr,
    /// The last request's sequence number.
    last_sequence: u16,
    last_used: Instant,
    bytes_from_guest: u64,
    bytes_to_guest: u64,
}

/// An echo request of the guest, in one frame or put together from several.
struct Request<'a> {
    about: Quoted<'a>,
    /// The message; one lease each.
    spans: &'a [Span],
}

/// Mappings from the guest's (address, identifier) to a ping socket.
pub(crate) struct Ping {
    /// Few enough to be searched; never more than `limit`.
    mappings: Vec<Option<Mapping>>,
    limit: usize,
    /// One per mapping: looks whether it is idle.
    timers: Wheel,
    idle: Duration,
    /// Until when no socket is asked for: IPv4, IPv6.
    pauses: [Instant; 2],
    /// Mappings in the table.
    live: u32,
    /// The time of the last input, for ages.
    now: Instant,
}

impl Ping {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            mappings: Vec::with_capacity(config.limits.pings as usize),
            limit: config.limits.pings as usize,
            timers: Wheel::new(config.limits.pings),
            idle: config.timeouts.ping_idle,
            pauses: [Instant::ZERO; 2],
            live: 0,
            now: Instant::ZERO,
        }
    }

    /// An echo request in one frame.
    pub(crate) fn on_guest_echo(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        lease: LeaseId,
        bytes: &mut [u8],
    ) {
        let Some(about) = Quoted::of_packet(packet, bytes) else {
            return ctx.drop_frame(lease, Counter::DropMalformed);
        };
        let span = Span { lease, start: packet.payload_start, len: packet.payload_len() as u32 };
        self.on_request(ctx, &Request { about, spans: &[span] });
    }

    /// An ICMP message from several fragments: echo requests only.
    pub(crate) fn on_reassembled(&mut self, ctx: &mut Context<'_>, whole: &Reassembled<'_>) {
        let request_type = match (whole.packet.source, whole.protocol) {
            (IpAddr::V4(_), protocol::ICMP) => 8,
            (IpAddr::V6(_), protocol::ICMPV6) => 128,
            (IpAddr::V4(_) | IpAddr::V6(_), _) => {
                return whole.discard(ctx, Counter::DropProtocol);
            }
        };
        if whole.head.first_chunk::<ECHO_BYTES>().is_none_or(|h| h[0] != request_type || h[1] != 0)
        {
            return whole.discard(ctx, Counter::DropProtocol);
        }
        let about = Quoted {
            source: whole.packet.source,
            destination: whole.packet.destination,
            protocol: whole.protocol,
            tos: whole.packet.tos,
            hop_limit: whole.packet.hop_limit,
            transport: whole.head,
            transport_len: whole.len as usize,
        };
        self.on_request(ctx, &Request { about, spans: whole.spans });
    }

    fn on_request(&mut self, ctx: &mut Context<'_>, request: &Request<'_>) {
        self.now = ctx.now;
        let about = &request.about;
        let to = match ctx.rules.target(SocketAddr::new(about.destination, 0)) {
            Target::Address(to) if to.is_ipv4() == about.source.is_ipv4() => to,
            Target::Unreachable => {
                tell_guest(ctx, about, HostError::HostUnreachable, None);
                return discard(ctx, request, Counter::DropByRule);
            }
            Target::NetUnreachable => {
                tell_guest(ctx, about, HostError::NetUnreachable, None);
                return discard(ctx, request, Counter::DropByRule);
            }
            Target::Refuse | Target::Resolver => {
                tell_guest(ctx, about, HostError::Prohibited, None);
                return discard(ctx, request, Counter::DropByRule);
            }
            Target::Address(_) | Target::Drop => {
                return discard(ctx, request, Counter::DropByRule);
            }
        };
        let (Some(&[_, _, _, _, i0, i1, s0, s1]), false) =
            (about.transport.first_chunk::<ECHO_BYTES>(), about.source.is_unspecified())
        else {
            return discard(ctx, request, Counter::DropMalformed);
        };
        if self.pauses[family(about.source)] > ctx.now {
            tell_guest(ctx, about, HostError::Prohibited, None);
            return discard(ctx, request, Counter::PingUnavailable);
        }
        let identifier = u16::from_be_bytes([i0, i1]);
        let found = self.find(about.source, identifier);
        let Some(index) = found.or_else(|| self.open(ctx, about, identifier)) else {
            return discard(ctx, request, Counter::PingTableFull);
        };
        let mapping = self.mapping_mut(index);
        mapping.last_used = ctx.now;
        mapping.last_to = about.destination;
        mapping.last_sequence = u16::from_be_bytes([s0, s1]);
        mapping.bytes_from_guest += about.transport_len as u64;
        plan_send(ctx, mapping.socket, to, request);
    }

    fn find(&self, guest: IpAddr, identifier: u16) -> Option<u32> {
        let is_it = |m: &Mapping| m.guest == guest && m.identifier == identifier;
        let index = self.mappings.iter().position(|m| m.as_ref().is_some_and(is_it))?;
        Some(index as u32)
    }

    fn open(&mut self, ctx: &mut Context<'_>, about: &Quoted<'_>, identifier: u16) -> Option<u32> {
        let index = self.free_index(ctx)?;
        let socket = ctx.sockets.claim(Owner::Ping(index))?;
        self.mappings[index as usize] = Some(Mapping {
            guest: about.source,
            identifier,
            socket,
            local: None,
            last_to: about.destination,
            last_sequence: 0,
            last_used: ctx.now,
            bytes_from_guest: 0,
            bytes_to_guest: 0,
        });
        self.live += 1;
        self.timers.set(index, ctx.now + self.idle);
        let kind = if about.source.is_ipv4() { DatagramKind::Ping4 } else { DatagramKind::Ping6 };
        ctx.op(Op::Open { socket, kind, port: identifier, loopback: false, on: Namespace::Host });
        ctx.count(Counter::PingOpened);
        Some(index)
    }

    /// An empty place in the table; a full one gives that of the mapping which was idle longest.
    fn free_index(&mut self, ctx: &mut Context<'_>) -> Option<u32> {
        if let Some(index) = self.mappings.iter().position(Option::is_none) {
            return Some(index as u32);
        }
        if self.mappings.len() < self.limit {
            self.mappings.push(None);
            return Some(self.mappings.len() as u32 - 1);
        }
        let used = |(index, m): (usize, &Option<Mapping>)| Some((m.as_ref()?.last_used, index));
        let (last_used, index) = self.mappings.iter().enumerate().filter_map(used).min()?;
        if ctx.now.since(last_used) < BUSY {
            return None;
        }
        self.close(ctx, index as u32);
        Some(index as u32)
    }

    fn close(&mut self, ctx: &mut Context<'_>, index: u32) {
        let Some(mapping) = self.mappings[index as usize].take() else { return };
        self.live -= 1;
        self.timers.cancel(index);
        ctx.sockets.release(mapping.socket);
        ctx.op(Op::Close { socket: mapping.socket, how: CloseHow::Graceful });
        ctx.count(Counter::PingClosed);
    }

    fn mapping_mut(&mut self, index: u32) -> &mut Mapping {
        self.mappings[index as usize].as_mut().expect("a socket's owner is in the table")
    }

    /// Something came to a mapping's socket.
    pub(crate) fn on_input(&mut self, ctx: &mut Context<'_>, mapping: u32, input: Input<'_>) {
        self.now = ctx.now;
        match input {
            Input::Opened { local, .. } => self.mapping_mut(mapping).local = Some(local),
            Input::Datagram { lease, bytes, from, hop_limit, tos, .. } => {
                let reply = Reply { lease, from: from.ip(), hop_limit, tos };
                self.on_reply(ctx, mapping, &reply, bytes);
            }
            Input::DatagramError { to, error, offender, payload, .. } => {
                self.on_error(ctx, mapping, to.ip(), error, offender, payload);
            }
            Input::Failed { error, .. } => self.on_failed(ctx, mapping, error),
            Input::Frame { .. }
            | Input::Connected { .. }
            | Input::Accepted { .. }
            | Input::Spliced { .. }
            | Input::SpliceEnded { .. }
            | Input::Sent { .. }
            | Input::Readable { .. }
            | Input::Peeked { .. }
            | Input::PeekEmpty { .. }
            | Input::PeekEnd { .. }
            | Input::HandedOver { .. }
            | Input::ClientHandedOver { .. }
            | Input::Neighbor { .. }
            | Input::Tick => unreachable!("not an input of a ping socket"),
        }
    }

    fn on_reply(&mut self, ctx: &mut Context<'_>, mapping: u32, reply: &Reply, bytes: &mut [u8]) {
        let mapping = self.mapping_mut(mapping);
        let guest = mapping.guest;
        let source = ctx
            .rules
            .view
            .as_seen_by_guest(reply.from)
            .filter(|source| source.is_ipv4() == guest.is_ipv4());
        let (Some(source), true) = (source, is_reply(guest, bytes)) else {
            return ctx.drop_frame(reply.lease, Counter::PingUnexpected);
        };
        mapping.last_used = ctx.now;
        mapping.bytes_to_guest += (bytes.len() - HEADROOM) as u64;
        let ip = IpHeader {
            source_mac: ctx.config.host_mac,
            destination_mac: ctx.neighbors.mac(guest),
            source,
            destination: guest,
            protocol: if guest.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 },
            tos: reply.tos,
            // One hop more, as behind any router; 0 is "not known".
            hop_limit: if reply.hop_limit == 0 {
                HOP_LIMIT
            } else {
                reply.hop_limit.saturating_sub(1).max(1)
            },
        };
        let (start, offload) = address_reply(&ip, mapping.identifier, ctx.config.mtu, bytes);
        let len = (bytes.len() - start) as u32;
        ctx.write_frame(Span { lease: reply.lease, start: start as u32, len }, offload);
    }

    /// Tells the guest what became of a request. `payload`: its first bytes, with the socket's identifier.
    fn on_error(
        &mut self,
        ctx: &mut Context<'_>,
        mapping: u32,
        to: IpAddr,
        error: HostError,
        offender: Option<IpAddr>,
        payload: &[u8],
    ) {
        let mapping = self.mapping_mut(mapping);
        let is_v4 = mapping.guest.is_ipv4();
        let to = ctx
            .rules
            .view
            .as_seen_by_guest(to)
            .filter(|to| to.is_ipv4() == is_v4)
            .unwrap_or(mapping.last_to);
        let mut quote = [0; QUOTE_BYTES_MAX];
        let known = payload.len().min(QUOTE_BYTES_MAX);
        let len = if known >= ECHO_BYTES {
            quote[..known].copy_from_slice(&payload[..known]);
            known
        } else {
            quote[..ECHO_BYTES].copy_from_slice(&mapping.last_request());
            ECHO_BYTES
        };
        restore_identifier(&mut quote[..len], mapping.identifier);
        let about = Quoted {
            source: mapping.guest,
            destination: to,
            protocol: if is_v4 { protocol::ICMP } else { protocol::ICMPV6 },
            tos: 0,
            hop_limit: 1,
            transport: &quote[..len],
            transport_len: payload.len().max(len),
        };
        tell_guest(ctx, &about, error, offender);
    }

    /// The kernel has no socket for a mapping.
    fn on_failed(&mut self, ctx: &mut Context<'_>, index: u32, error: HostError) {
        ctx.count(Counter::PingUnavailable);
        let mapping = self.mapping_mut(index);
        let (guest, to) = (mapping.guest, mapping.last_to);
        let pause = if error == HostError::Unsupported { UNSUPPORTED_PAUSE } else { FAILED_PAUSE };
        self.pauses[family(guest)] = ctx.now + pause;
        self.on_error(ctx, index, to, HostError::Prohibited, None, &[]);
        self.close(ctx, index);
    }

    pub(crate) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        self.now = ctx.now;
        while let Some(index) = self.timers.pop(ctx.now) {
            let end = self.mapping_mut(index).last_used + self.idle;
            if end > ctx.now {
                self.timers.set(index, end);
            } else {
                self.close(ctx, index);
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// Asserts the invariants; the number of sockets owned.
    pub(crate) fn check(&self, sockets: &Sockets) -> u32 {
        assert!(self.mappings.len() <= self.limit, "the table keeps its limit");
        let mut live = 0;
        for (index, mapping) in self.mappings.iter().enumerate() {
            let Some(mapping) = mapping else { continue };
            live += 1;
            let owner = Some(Owner::Ping(index as u32));
            assert_eq!(sockets.owner(mapping.socket), owner, "a mapping owns its socket");
            let found = self.find(mapping.guest, mapping.identifier);
            assert_eq!(found, Some(index as u32), "one mapping per address and identifier");
        }
        assert_eq!(live, self.live, "mappings are counted");
        live
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.mappings.iter().flatten().map(|m| FlowInfo {
            kind: FlowKind::Ping,
            state: "UNCONN",
            is_outbound: true,
            guest: SocketAddr::new(m.guest, m.identifier),
            remote: None,
            host: m.local,
            bytes_from_guest: m.bytes_from_guest,
            bytes_to_guest: m.bytes_to_guest,
            idle: self.now.since(m.last_used),
        })
    }
}

impl Mapping {
    /// The header of the last request, as far as it is known.
    fn last_request(&self) -> [u8; ECHO_BYTES] {
        let kind = if self.guest.is_ipv4() { 8 } else { 128 };
        let (i, s) = (self.identifier.to_be_bytes(), self.last_sequence.to_be_bytes());
        [kind, 0, 0, 0, i[0], i[1], s[0], s[1]]
    }
}

/// What a ping socket received, its bytes aside.
struct Reply {
    lease: LeaseId,
    from: IpAddr,
    hop_limit: u8,
    tos: u8,
}

/// Place of a family in [`Ping::pauses`].
const fn family(ip: IpAddr) -> usize {
    ip.is_ipv6() as usize
}

fn discard(ctx: &mut Context<'_>, request: &Request<'_>, why: Counter) {
    ctx.count(why);
    for span in request.spans {
        ctx.op(Op::Release { lease: span.lease });
    }
}

fn plan_send(ctx: &mut Context<'_>, socket: SocketId, to: SocketAddr, request: &Request<'_>) {
    let last = request.spans.len() - 1;
    for (index, &span) in request.spans.iter().enumerate() {
        ctx.op(Op::SendTo {
            socket,
            to,
            span,
            segment: 0,
            // A packet whose hop limit ends here does not come this far.
            hop_limit: request.about.hop_limit.saturating_sub(1),
            tos: request.about.tos,
            local: LocalId::ANY,
            more: index != last,
        });
    }
}

/// Whether a datagram (behind its headroom) is an echo reply that fits into a packet.
fn is_reply(guest: IpAddr, bytes: &[u8]) -> bool {
    let (kind, len_max) = match guest {
        IpAddr::V4(_) => (0, 65_535 - 20),
        IpAddr::V6(_) => (129, 65_535 - 40),
    };
    bytes.get(HEADROOM..).is_some_and(|message| {
        (ECHO_BYTES..=len_max).contains(&message.len()) && message[0] == kind
    })
}

/// Puts the guest's identifier and our headers to a reply; where the frame starts, and what is left to be done.
fn address_reply(ip: &IpHeader, identifier: u16, mtu: u16, bytes: &mut [u8]) -> (usize, Offload) {
    let message = &mut bytes[HEADROOM..];
    let len = message.len();
    restore_identifier(message, identifier);
    let checksum = if ip.source.is_ipv4() {
        Checksum::Unchecked
    } else {
        message[2..4].copy_from_slice(&ip.pseudo_header(len).folded().to_be_bytes());
        Checksum::Partial { start: ip.bytes() as u16, offset: 2 }
    };
    let start = HEADROOM - ip.bytes();
    ip.write(&mut bytes[start..], len);
    let is_whole = ip.bytes() - ETHERNET_BYTES + len <= usize::from(mtu);
    (start, Offload { checksum, gso: if is_whole { Gso::None } else { Gso::Fragment } })
}

/// Changes the identifier of an echo message, and its checksum by as much. `message` holds its header.
fn restore_identifier(message: &mut [u8], identifier: u16) {
    let sum = u16::from_be_bytes([message[2], message[3]]);
    let before = u16::from_be_bytes([message[4], message[5]]);
    let sum = moved(sum, before, identifier);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::{Sum, is_valid};
    use crate::packet::{EtherType, parse};
    use crate::rules::{Access, Rules};
    use crate::testing::World;
    use alloc::vec;
    use alloc::vec::Vec;

    /// An echo request of the guest, identifier 7 and sequence 9.
    fn request(to: &str, hop_limit: u8, identifier: u16) -> Vec<u8> {
        let config = Config::example();
        let destination: IpAddr = to.parse().expect("an address");
        let (source, protocol, kind) = match destination {
            IpAddr::V4(_) => (config.net4.expect("IPv4").guest.into(), protocol::ICMP, 8),
            IpAddr::V6(_) => (config.net6.expect("IPv6").guest.into(), protocol::ICMPV6, 128),
        };
        let ip = IpHeader {
            source_mac: config.guest_mac,
            destination_mac: config.host_mac,
            source,
            destination,
            protocol,
            tos: 0,
            hop_limit,
        };
        let message = message(kind, identifier, &ip);
        let mut frame = vec![0; ip.bytes()];
        ip.write(&mut frame, message.len());
        frame.extend_from_slice(&message);
        frame
    }

    fn message(kind: u8, identifier: u16, ip: &IpHeader) -> Vec<u8> {
        let i = identifier.to_be_bytes();
        let mut message = vec![kind, 0, 0, 0, i[0], i[1], 0, 9, b'd', b'a', b't', b'a', b'!'];
        let sum = match ip.protocol {
            protocol::ICMP => Sum::default(),
            _ => ip.pseudo_header(message.len()),
        };
        let sum = sum.bytes(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    fn opened(ops: &[Op]) -> (SocketId, DatagramKind, u16) {
        match *ops {
            [Op::Open { socket, kind, port, .. }] => (socket, kind, port),
            _ => panic!("one open: {ops:?}"),
        }
    }

    fn reply_of(bytes: &[u8]) -> (Packet, Vec<u8>) {
        let Ok(EtherType::Ip(packet)) = parse(bytes) else { panic!("an IP packet") };
        let message = bytes[packet.payload()].to_vec();
        (packet, message)
    }

    #[test]
    fn a_reply_comes_back_with_the_guests_identifier_and_one_hop_less() {
        for (to, local) in [("192.0.2.1", "0.0.0.0:5000"), ("2001:db8::1", "[::]:5000")] {
            let mut world = World::new();
            let ops = world.frame(&request(to, 64, 7), Offload::default());
            let (socket, _, port) = opened(&ops);
            assert_eq!(port, 7);
            let (sent_to, bytes, op) = world.sent_to.pop_front().expect("a request");
            assert_eq!(sent_to, SocketAddr::new(to.parse().expect("ip"), 0));
            assert!(matches!(op, Op::SendTo { hop_limit: 63, segment: 0, .. }));
            let local = local.parse().expect("an address");
            world.input(Input::Opened { socket, local });
            // The kernel has put another identifier in, and made the checksum for its own addresses.
            let is_v4 = sent_to.is_ipv4();
            let mut reply = bytes;
            reply[0] = if is_v4 { 0 } else { 129 };
            reply[4..6].copy_from_slice(&5000_u16.to_be_bytes());
            reply[2..4].fill(0);
            let sum = Sum::default().bytes(&reply).checksum();
            reply[2..4].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(world.datagram(socket, sent_to, &reply, 0), []);
            let mut written = world.next_written();
            crate::packet::offload::complete_checksum(&mut written.bytes, &written.offload);
            let (packet, message) = reply_of(&written.bytes);
            assert!(is_valid(packet.source, packet.destination, packet.protocol, &message));
            assert_eq!((packet.source, packet.hop_limit), (sent_to.ip(), 59));
            assert_eq!(message[4..], [0, 7, 0, 9, b'd', b'a', b't', b'a', b'!']);
        }
    }

    #[test]
    fn the_gateway_is_the_first_hop_and_the_offender_the_next() {
        for (to, router, time_exceeded) in
            [("192.0.2.1", "198.51.100.1", 11), ("2001:db8::1", "2001:db8:1::1", 3)]
        {
            let mut world = World::new();
            assert_eq!(world.frame(&request(to, 1, 7), Offload::default()), []);
            let (packet, message) = reply_of(&world.next_written().bytes);
            assert!(world.shard.rules().view.is_own(packet.source));
            assert_eq!(message[0], time_exceeded);

            let ops = world.frame(&request(to, 2, 7), Offload::default());
            let (socket, ..) = opened(&ops);
            let (sent_to, mut payload, _) = world.sent_to.pop_front().expect("a request");
            payload[4..6].copy_from_slice(&5000_u16.to_be_bytes());
            world.input(Input::DatagramError {
                socket,
                to: sent_to,
                error: HostError::TimeExceeded,
                offender: Some(router.parse().expect("ip")),
                payload: &payload,
            });
            let (packet, message) = reply_of(&world.next_written().bytes);
            assert_eq!(packet.source, router.parse::<IpAddr>().expect("ip"));
            assert!(is_valid(packet.source, packet.destination, packet.protocol, &message));
            assert_eq!(message[0], time_exceeded);
            let quoted = if sent_to.is_ipv4() { &message[8 + 20..] } else { &message[8 + 40..] };
            assert_eq!(quoted[4..8], [0, 7, 0, 9], "the guest's identifier and sequence");
        }
    }

    #[test]
    fn a_kernel_without_ping_sockets_is_told_and_asked_again_later() {
        let mut world = World::new();
        let ops = world.frame(&request("192.0.2.1", 64, 7), Offload::default());
        let (socket, ..) = opened(&ops);
        world.input(Input::Failed { socket, error: HostError::Unsupported });
        let (_, message) = reply_of(&world.next_written().bytes);
        assert_eq!(message[..2], [3, 13]);
        assert_eq!(message[8 + 20 + 4..], [0, 7, 0, 9]);
        assert_eq!(world.frame(&request("192.0.2.1", 64, 8), Offload::default()), []);
        assert_eq!(world.shard.counters().value(Counter::PingUnavailable), 2);
        world.pass(UNSUPPORTED_PAUSE);
        opened(&world.frame(&request("192.0.2.1", 64, 8), Offload::default()));
    }

    #[test]
    fn an_idle_mapping_ends_and_a_used_one_stays() {
        let mut world = World::new();
        let (socket, ..) = opened(&world.frame(&request("192.0.2.1", 64, 7), Offload::default()));
        world.pass(Duration::from_secs(40));
        assert_eq!(world.frame(&request("192.0.2.2", 64, 7), Offload::default()), []);
        assert_eq!(world.pass(Duration::from_secs(40)), []);
        assert_eq!(world.shard.flows().count(), 1);
        let closed = world.pass(Duration::from_secs(21));
        assert_eq!(closed, [Op::Close { socket, how: CloseHow::Graceful }]);
    }

    #[test]
    fn a_full_table_gives_the_idlest_place_away_but_no_busy_one() {
        let mut config = Config::example();
        config.limits.pings = 2;
        let rules = Rules::new(
            &config,
            &Access::new(&config, crate::rules::HostLoopback::None),
            vec![],
            vec![],
        );
        let mut world = World::with(config, rules);
        for identifier in [1, 2] {
            opened(&world.frame(&request("192.0.2.1", 64, identifier), Offload::default()));
        }
        assert_eq!(world.frame(&request("192.0.2.1", 64, 3), Offload::default()), []);
        assert_eq!(world.shard.counters().value(Counter::PingTableFull), 1);
        world.pass(BUSY);
        let ops = world.frame(&request("192.0.2.1", 64, 3), Offload::default());
        assert!(matches!(ops[..], [Op::Close { .. }, Op::Open { port: 3, .. }]), "{ops:?}");
    }

    #[test]
    fn a_reply_larger_than_the_mtu_is_to_be_fragmented() {
        let mut world = World::new();
        let (socket, ..) = opened(&world.frame(&request("192.0.2.1", 64, 7), Offload::default()));
        let mut reply = vec![0; 65_515];
        let sum = Sum::default().bytes(&reply).checksum();
        reply[2..4].copy_from_slice(&sum.to_be_bytes());
        world.datagram(socket, "192.0.2.1:0".parse().expect("an address"), &reply, 0);
        let written = world.next_written();
        assert_eq!(written.offload.gso, Gso::Fragment);
        let (packet, message) = reply_of(&written.bytes);
        assert!(is_valid(packet.source, packet.destination, packet.protocol, &message));
        // Anything else than a reply, or larger than a packet, is dropped.
        for bad in [vec![8; 20], vec![0; 65_516], vec![0; 7]] {
            world.datagram(socket, "192.0.2.1:0".parse().expect("an address"), &bad, 0);
        }
        assert_eq!(world.shard.counters().value(Counter::PingUnexpected), 3);
    }
}
