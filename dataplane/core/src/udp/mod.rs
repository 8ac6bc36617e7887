//! UDP: endpoint-independent mappings and forwards.
//!
//! # Theory of operation
//!
//! A *mapping* is one of the guest's (address, port) pairs and a host socket of its own, through which everything from
//! that port leaves wherever it goes, and anybody may answer: endpoint-independent mapping and filtering (RFC 4787,
//! REQ-1 and REQ-8), with the port preserved where it is free. What goes to the host's loopback has a mapping of
//! its own, because its socket is bound there: only the loopback gets in by it, and never by any other. So does what
//! goes to an address that the guest calls by another name ([`Access`](crate::rules::Access)), so that the answer
//! comes from that name.
//! A mapping ends when it was idle for [`Timeouts::udp_idle`](crate::config::Timeouts) (REQ-5); one that spoke to
//! port 53 alone after `dns_idle`. Traffic in either direction keeps it (REQ-6).
//!
//! A *peer* is a client of a [`forward`]: what the guest sends back to it leaves by the forward's socket.
//! Peers go before the rules and the mappings.
//!
//! We are a router hop: the TTL goes down by one in both directions, and where it ends the guest is told, so that
//! `traceroute` shows the gateway and what lies behind it. The host's loopback is not behind us but here.

mod forward;
mod mapping;

use core::net::{IpAddr, SocketAddr};

use crate::config::Config;
use crate::context::Context;
use crate::counters::Counter;
use crate::datagram::{self, Payload, Undelivered};
use crate::flows::FlowInfo;
use crate::op::{HostError, Input, LocalId, Op, SocketId};
use crate::packet::Packet;
use crate::packet::build::{HOP_LIMIT, UDP_BYTES, same_family};
use crate::reassembly::Reassembled;
use crate::rules::Target;
use crate::shard::Listener;
use crate::sockets::Sockets;
use crate::time::Instant;

use forward::Peers;
use mapping::{Mappings, Opened};

pub(crate) use crate::datagram::GuestDatagram;

/// What leaves: a datagram, a train, or a datagram put together from fragments.
struct Outgoing<'a> {
    packet: &'a Packet,
    from: SocketAddr,
    to: SocketAddr,
    payload: Payload<'a>,
    /// Not 0: datagrams of this size follow each other.
    segment: u16,
    /// First bytes of the payload.
    prefix: &'a [u8],
}

/// How something leaves.
struct Way {
    socket: SocketId,
    to: SocketAddr,
    local: LocalId,
    hop_limit: u8,
}

/// A datagram from the host side, in its lease.
struct Incoming<'a> {
    lease: crate::op::LeaseId,
    bytes: &'a mut [u8],
    from: SocketAddr,
    local: LocalId,
    segment: u16,
    hop_limit: u8,
    tos: u8,
}

/// Mappings and peers.
pub(crate) struct Udp {
    mappings: Mappings,
    peers: Peers,
    /// When the tables were last asked, for the flows' idle times.
    now: Instant,
}

impl Udp {
    pub(crate) fn new(config: &Config) -> Self {
        Self { mappings: Mappings::new(config), peers: Peers::new(config), now: Instant::ZERO }
    }

    pub(crate) fn on_guest_datagram(
        &mut self,
        ctx: &mut Context<'_>,
        datagram: &GuestDatagram<'_>,
        target: Target,
        payload: &[u8],
    ) {
        let spans = core::slice::from_ref(&datagram.payload);
        let len = datagram.payload.len;
        let is_train = datagram.segment != 0 && len > u32::from(datagram.segment);
        let out = Outgoing {
            packet: datagram.packet,
            from: datagram.from,
            to: datagram.to,
            payload: Payload { spans, skip: 0, len },
            segment: if is_train { datagram.segment } else { 0 },
            prefix: payload,
        };
        self.on_outgoing(ctx, &out, target);
    }

    pub(crate) fn on_reassembled(&mut self, ctx: &mut Context<'_>, whole: &Reassembled<'_>) {
        let Ok((header, prefix)) = etherparse::UdpHeader::from_slice(whole.head) else {
            return whole.discard(ctx, Counter::DropMalformed);
        };
        let len = u32::from(header.length);
        if len < UDP_BYTES as u32 || len > whole.len {
            return whole.discard(ctx, Counter::DropMalformed);
        }
        let len = len - UDP_BYTES as u32;
        let out = Outgoing {
            packet: &whole.packet,
            from: whole.packet.from(header.source_port),
            to: whole.packet.to(header.destination_port),
            payload: Payload { spans: whole.spans, skip: UDP_BYTES as u32, len },
            segment: 0,
            prefix: &prefix[..prefix.len().min(len as usize)],
        };
        let target = ctx.rules.target(out.to);
        self.on_outgoing(ctx, &out, target);
    }

    pub(crate) fn on_input(&mut self, ctx: &mut Context<'_>, mapping: u32, input: Input<'_>) {
        self.now = ctx.now;
        match input {
            Input::Opened { local, .. } => self.mappings.on_opened(mapping, local),
            Input::Datagram { lease, bytes, from, local, segment, hop_limit, tos, .. } => {
                let datagram = Incoming { lease, bytes, from, local, segment, hop_limit, tos };
                self.mappings.on_datagram(ctx, mapping, datagram);
            }
            Input::DatagramError { to, error, offender, payload, .. } => {
                let ends = self.mappings.ends(ctx, mapping, to);
                on_error(ctx, ends, error, offender, payload);
            }
            Input::Failed { error, .. } => self.mappings.on_failed(ctx, mapping, error),
            Input::Frame { .. }
            | Input::Connected { .. }
            | Input::Spliced { .. }
            | Input::SpliceEnded { .. }
            | Input::Accepted { .. }
            | Input::Sent { .. }
            | Input::Readable { .. }
            | Input::Peeked { .. }
            | Input::PeekEmpty { .. }
            | Input::PeekEnd { .. }
            | Input::HandedOver { .. }
            | Input::ClientHandedOver { .. }
            | Input::Neighbor { .. }
            | Input::Tick => unexpected(ctx, &input),
        }
    }

    /// Something came to a forward's socket.
    pub(crate) fn on_listener_input(
        &mut self,
        ctx: &mut Context<'_>,
        listener: &Listener,
        input: Input<'_>,
    ) {
        self.now = ctx.now;
        match input {
            Input::Datagram { lease, bytes, from, local, segment, hop_limit, tos, .. } => {
                let datagram = Incoming { lease, bytes, from, local, segment, hop_limit, tos };
                self.peers.on_datagram(ctx, listener, datagram);
            }
            Input::DatagramError { to, error, offender, payload, .. } => {
                let ends = self.peers.ends(ctx, listener, to);
                on_error(ctx, ends, error, offender, payload);
            }
            Input::Opened { .. }
            | Input::Failed { .. }
            | Input::Frame { .. }
            | Input::Connected { .. }
            | Input::Spliced { .. }
            | Input::SpliceEnded { .. }
            | Input::Accepted { .. }
            | Input::Sent { .. }
            | Input::Readable { .. }
            | Input::Peeked { .. }
            | Input::PeekEmpty { .. }
            | Input::PeekEnd { .. }
            | Input::HandedOver { .. }
            | Input::ClientHandedOver { .. }
            | Input::Neighbor { .. }
            | Input::Tick => unexpected(ctx, &input),
        }
    }

    /// A forward's socket is closed: what depended on it is forgotten.
    pub(crate) fn on_listener_gone(&mut self, socket: SocketId) {
        self.peers.on_listener_gone(socket);
    }

    pub(crate) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        self.now = ctx.now;
        self.mappings.on_tick(ctx);
        self.peers.on_tick(ctx);
    }

    pub(crate) fn next_deadline(&self, config: &Config) -> Option<Instant> {
        let peers = self.peers.next_deadline(config);
        [self.mappings.next_deadline(), peers].into_iter().flatten().min()
    }

    /// Asserts the invariants; the number of sockets owned.
    pub(crate) fn check(&self, sockets: &Sockets) -> u32 {
        self.peers.check();
        self.mappings.check(sockets)
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.mappings.flows(self.now).chain(self.peers.flows(self.now))
    }

    fn on_outgoing(&mut self, ctx: &mut Context<'_>, out: &Outgoing<'_>, target: Target) {
        self.now = ctx.now;
        if out.from.ip().is_unspecified() {
            return out.discard(ctx, Counter::DropSource);
        }
        if out.to.port() == 0 {
            return out.discard(ctx, Counter::DropMalformed);
        }
        if let Some(peer) = self.peers.find(out.from, out.to) {
            return self.peers.on_outgoing(ctx, peer, out);
        }
        match target {
            Target::Address(to) => self.on_translated(ctx, out, to),
            Target::Refuse => out.refuse(ctx, HostError::Refused, Counter::DropUnreachable),
            Target::Unreachable => {
                out.refuse(ctx, HostError::HostUnreachable, Counter::DropUnreachable);
            }
            Target::NetUnreachable => {
                out.refuse(ctx, HostError::NetUnreachable, Counter::DropUnreachable);
            }
            Target::Drop => out.discard(ctx, Counter::DropByRule),
            // Whole ones have gone to the DNS forwarder; this one came in fragments.
            Target::Resolver => out.discard(ctx, Counter::DnsNotForwarded),
        }
    }

    fn on_translated(&mut self, ctx: &mut Context<'_>, out: &Outgoing<'_>, to: SocketAddr) {
        if !same_family(out.from, to) {
            return out.discard(ctx, Counter::DropFamily);
        }
        let Some(hop_limit) = hop_limit_towards(to.ip(), out.packet) else {
            return out.refuse(ctx, HostError::TimeExceeded, Counter::DropTimeExceeded);
        };
        match self.mappings.socket_for(ctx, out.from, out.to, to, out.payload.len) {
            Opened::Socket(socket) => {
                out.send(ctx, &Way { socket, to, local: LocalId::ANY, hop_limit })
            }
            Opened::Failed(error) => out.refuse(ctx, error, Counter::UdpNoSocket),
            Opened::TableFull => {
                out.refuse(ctx, HostError::NetUnreachable, Counter::UdpTableFull);
            }
        }
    }
}

impl Outgoing<'_> {
    fn send(&self, ctx: &mut Context<'_>, way: &Way) {
        let &Way { socket, to, local, hop_limit } = way;
        let (segment, tos) = (self.segment, self.packet.tos);
        self.payload.send(ctx, |span, more| Op::SendTo {
            socket,
            to,
            span,
            segment,
            hop_limit,
            tos,
            local,
            more,
        });
    }

    fn discard(&self, ctx: &mut Context<'_>, why: Counter) {
        ctx.count(why);
        self.payload.release(ctx);
    }

    /// Discards, and tells the guest why; not if it was sent to all stations (RFC 1122, section 3.2.2).
    fn refuse(&self, ctx: &mut Context<'_>, error: HostError, why: Counter) {
        self.discard(ctx, why);
        if self.packet.destination_mac.is_multicast() {
            return;
        }
        let about = Undelivered {
            from: self.from,
            to: self.to,
            tos: self.packet.tos,
            hop_limit: self.packet.hop_limit,
            payload: self.prefix,
            payload_len: self.payload.len as usize,
        };
        datagram::tell_undelivered(ctx, &about, error, None);
    }
}

impl Incoming<'_> {
    /// The TTL that the guest sees: we are a hop, but nothing that has come this far ends here.
    fn hop_limit_to_guest(&self) -> u8 {
        match self.hop_limit {
            0 => HOP_LIMIT,
            hops => datagram::passed_on(hops).unwrap_or(1),
        }
    }

    /// Writes it to the guest. The payload's length, if it went.
    fn write(self, ctx: &mut Context<'_>, from: SocketAddr, to: SocketAddr) -> Option<u64> {
        let hop_limit = self.hop_limit_to_guest();
        let to_guest =
            datagram::ToGuest { from, to, segment: self.segment, hop_limit, tos: self.tos };
        let len = self.bytes.len().saturating_sub(crate::op::HEADROOM) as u64;
        datagram::write(ctx, self.lease, self.bytes, &to_guest).then_some(len)
    }
}

/// A host-side address as the guest sees it; none if the guest cannot see it.
fn seen_by_guest(ctx: &Context<'_>, peer: SocketAddr, guest: SocketAddr) -> Option<SocketAddr> {
    let ip = ctx.rules.view.as_seen_by_guest(peer.ip())?;
    (ip.is_ipv4() == guest.is_ipv4()).then(|| SocketAddr::new(ip, peer.port()))
}

/// The TTL with which a packet leaves; none: it ends here.
fn hop_limit_towards(to: IpAddr, packet: &Packet) -> Option<u8> {
    if to.is_loopback() {
        Some(packet.hop_limit.max(1))
    } else {
        datagram::passed_on(packet.hop_limit)
    }
}

/// A datagram of the guest's did not arrive. `ends`: the guest's, and the other as the guest sees it.
fn on_error(
    ctx: &mut Context<'_>,
    ends: Option<(SocketAddr, SocketAddr)>,
    error: HostError,
    offender: Option<IpAddr>,
    payload: &[u8],
) {
    ctx.count(Counter::UdpErrors);
    match error {
        // The host's own trouble, over in a moment: to the guest it is a lost datagram.
        HostError::NoRoom | HostError::Other(_) => return,
        HostError::Refused
        | HostError::Reset
        | HostError::NetUnreachable
        | HostError::HostUnreachable
        | HostError::TimedOut
        | HostError::Prohibited
        | HostError::TooBig { .. }
        | HostError::TimeExceeded
        | HostError::Icmp { .. }
        | HostError::Unsupported => {}
    }
    let Some((guest, to)) = ends else { return };
    let offender = offender
        .and_then(|ip| ctx.rules.view.as_seen_by_guest(ip))
        .filter(|ip| ip.is_ipv4() == guest.is_ipv4());
    let about =
        Undelivered { from: guest, to, tos: 0, hop_limit: 1, payload, payload_len: payload.len() };
    datagram::tell_undelivered(ctx, &about, error, offender);
}

/// An input that a datagram socket has no use for; it keeps nothing that was lent.
fn unexpected(ctx: &mut Context<'_>, input: &Input<'_>) {
    ctx.count(Counter::StaleInputs);
    if let Input::Peeked { lease, .. } | Input::Frame { lease, .. } = *input {
        ctx.op(Op::Release { lease });
    }
    if let Input::Accepted { accepted, .. } = *input {
        ctx.op(Op::Refuse { accepted });
    }
}

#[cfg(test)]
mod tests;
