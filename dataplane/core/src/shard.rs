//! One worker's share of the guest's flows: takes inputs, composes the protocol modules, hands out ops.

use alloc::sync::Arc;
use core::net::{IpAddr, SocketAddr};

use crate::config::{Config, ShardId};
use crate::context::Context;
use crate::counters::{Counter, Counters};
use crate::dns::Dns;
use crate::flows::FlowInfo;
use crate::neighbors::Neighbors;
use crate::op::{
    Checksum, CloseHow, ForwardId, Gso, Input, LeaseId, Offload, Op, Outbox, SocketId, Span,
};
use crate::outward::Outward;
use crate::ownership::Ownership;
use crate::packet::error::Bucket;
use crate::packet::{self, EtherType, Packet, checksum, protocol};
use crate::ping::Ping;
use crate::reassembly::Reassembly;
use crate::rules::{Protocol, Rules};
use crate::services;
use crate::sockets::{Owner, Sockets};
use crate::tcp::{Acks, LentFlow, Tcp};
use crate::time::Instant;
use crate::udp::{GuestDatagram, Udp};

mod handover;

/// Why a shard wants to be called back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A TCP timer.
    Tcp,
    /// A UDP mapping's idle time.
    Udp,
    /// A ping mapping's idle time.
    Ping,
    /// A datagram's fragments.
    Reassembly,
    /// A resolver that does not answer.
    Dns,
    /// A router advertisement that is due.
    Router,
    /// An outward client's idle time.
    Outward,
}

/// No room for another listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// A listening socket that the driver has opened for a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) socket: SocketId,
    pub(crate) forward: ForwardId,
    pub(crate) protocol: Protocol,
    pub(crate) local: SocketAddr,
}

/// The engine. See the [crate documentation](crate) for how it is driven.
pub struct Shard {
    config: Config,
    rules: Arc<Rules>,
    ownership: Ownership,
    counters: Counters,
    sockets: Sockets,
    neighbors: Neighbors,
    errors: Bucket,
    listeners: alloc::vec::Vec<Option<Listener>>,
    tcp: Tcp,
    udp: Udp,
    ping: Ping,
    reassembly: Reassembly,
    dns: Dns,
    /// Made when the first rule needs it.
    outward: Option<Outward>,
    advertiser: services::ndp::Advertiser,
    leases: services::dhcp4::Leases,
}

/// Splits the shard into the context and one of its modules.
macro_rules! context {
    ($shard:ident, $now:expr, $out:expr) => {
        Context {
            now: $now,
            config: &$shard.config,
            rules: &$shard.rules,
            ownership: &$shard.ownership,
            counters: &mut $shard.counters,
            sockets: &mut $shard.sockets,
            neighbors: &mut $shard.neighbors,
            errors: &mut $shard.errors,
            out: $out,
        }
    };
}

impl Shard {
    /// A shard with empty tables. All memory that it will ever need is set aside here.
    pub fn new(config: Config, rules: Arc<Rules>) -> Self {
        Self {
            sockets: Sockets::new(config.limits.sockets),
            neighbors: Neighbors::new(config.guest_mac),
            errors: Bucket::new(),
            listeners: alloc::vec::Vec::new(),
            tcp: Tcp::new(&config),
            udp: Udp::new(&config),
            ping: Ping::new(&config),
            reassembly: Reassembly::new(&config),
            dns: Dns::new(&config),
            outward: outward_for(&rules, &config),
            advertiser: services::ndp::Advertiser::default(),
            leases: services::dhcp4::Leases::new(&config),
            counters: Counters::default(),
            ownership: Ownership::new(&config),
            rules,
            config,
        }
    }

    /// Takes one input. The ops it causes go to `out`; what can wait for the end of the turn waits for
    /// [`Shard::flush`].
    pub fn handle(&mut self, now: Instant, input: Input<'_>, out: &mut dyn Outbox) {
        match input {
            Input::Frame { lease, bytes, offload } => {
                self.on_frame(now, lease, bytes, offload, out);
            }
            Input::Tick => self.on_tick(now, out),
            Input::HandedOver { lease, bytes, offload } => {
                self.on_handed_over(now, lease, bytes, offload, out);
            }
            Input::ClientHandedOver { accepted, forward, peer, local } => {
                let mut ctx = context!(self, now, out);
                self.tcp.on_client(&mut ctx, forward, accepted, peer, local);
            }
            // Told by a shard that has learnt it, who tells all others, too.
            Input::Neighbor { ip, mac } => drop(self.neighbors.learn(ip, mac)),
            Input::Connected { socket }
            | Input::Spliced { socket }
            | Input::SpliceEnded { socket, .. }
            | Input::Sent { socket, .. }
            | Input::Readable { socket }
            | Input::Peeked { socket, .. }
            | Input::PeekEmpty { socket }
            | Input::PeekEnd { socket }
            | Input::Opened { socket, .. }
            | Input::Datagram { socket, .. }
            | Input::DatagramError { socket, .. }
            | Input::Failed { socket, .. }
            | Input::Accepted { listener: socket, .. } => {
                self.on_socket(now, socket, input, out);
            }
        }
    }

    /// The end of a turn: what was put together over its inputs goes out.
    pub fn flush(&mut self, now: Instant, out: &mut dyn Outbox) {
        let mut ctx = context!(self, now, out);
        self.tcp.flush(&mut ctx, Acks::Now);
    }

    /// The same in the midst of a turn, with more of the guest's frames at hand: acknowledgements that may wait for what
    /// those bring do so, until the turn's end. It has to follow soon.
    pub fn flush_amid_frames(&mut self, now: Instant, out: &mut dyn Outbox) {
        let mut ctx = context!(self, now, out);
        self.tcp.flush(&mut ctx, Acks::AtTheEnd);
    }

    /// How many flows send in bulk to the guest.
    pub fn bulk(&self) -> usize {
        self.tcp.bulk()
    }

    /// Sockets of the flows that send in bulk to the guest, or did a moment ago, and could be lent now. Looks at every flow.
    pub fn in_bulk(&self, now: Instant) -> impl Iterator<Item = SocketId> + '_ {
        self.tcp.in_bulk(now)
    }

    /// Sockets of the flows that are quiet, and could go to their home now. Looks at every flow.
    pub fn quiet(&self, now: Instant) -> impl Iterator<Item = SocketId> + '_ {
        self.tcp.quiet(now)
    }

    /// How many of this shard's flows are lent.
    pub fn lent(&self) -> usize {
        self.tcp.lent()
    }

    /// Takes a flow out for another shard, to which it goes with its socket; none: it stays. Between two turns: no op that
    /// names the socket may be outstanding.
    pub fn lend(&mut self, socket: SocketId, to: ShardId) -> Option<LentFlow> {
        self.tcp.lend((&self.ownership, &mut self.sockets), socket, to)
    }

    /// Takes a flow in that another shard has lent or gives back: what its socket is called here. All ops have been run before.
    pub fn take_in(&mut self, now: Instant, flow: LentFlow) -> SocketId {
        self.tcp.take_in(now, &mut self.sockets, flow)
    }

    /// A flow of another shard's that has ended here, by its ends, to be told to its home.
    pub fn ended(&mut self) -> Option<(SocketAddr, SocketAddr)> {
        self.tcp.ended()
    }

    /// A flow that was lent has ended.
    pub fn forget_lent(&mut self, guest: SocketAddr, remote: SocketAddr) {
        self.tcp.forget_lent(&mut self.sockets, guest, remote);
    }

    /// When to call with [`Input::Tick`] at the latest, and for whom.
    pub fn next_deadline(&self) -> Option<(Instant, Why)> {
        [
            (self.tcp.next_deadline(), Why::Tcp),
            (self.udp.next_deadline(&self.config), Why::Udp),
            (self.ping.next_deadline(), Why::Ping),
            (self.reassembly.next_deadline(&self.config), Why::Reassembly),
            (self.dns.next_deadline(), Why::Dns),
            (self.advertiser.next_deadline(), Why::Router),
            (self.outward.as_ref().and_then(Outward::next_deadline), Why::Outward),
        ]
        .into_iter()
        .filter_map(|(at, why)| Some((at?, why)))
        .min_by_key(|&(at, _)| at)
    }

    /// Asserts every invariant. Slow: for the simulator and debug builds.
    pub fn check(&self) {
        let listeners = self.listeners.iter().flatten().count() as u32;
        let owned = listeners
            + self.tcp.check(&self.sockets)
            + self.udp.check(&self.sockets)
            + self.ping.check(&self.sockets)
            + self.dns.check(&self.sockets)
            + self.outward.as_ref().map_or(0, |outward| outward.check(&self.sockets));
        assert_eq!(owned, self.sockets.in_use(), "every socket has one owner that knows it");
        self.reassembly.check();
    }

    /// Leases that the core holds right now, by module: the simulator's ledger balances against it.
    pub fn leases_held(&self) -> u32 {
        self.tcp.leases_held() + self.reassembly.leases_held()
    }

    /// Installs a new snapshot of the rules. Listeners of forwards that are gone are closed; flows that exist
    /// go on.
    pub fn install(&mut self, rules: Arc<Rules>, out: &mut dyn Outbox) {
        self.rules = rules;
        if self.outward.is_none() {
            self.outward = outward_for(&self.rules, &self.config);
        }
        for entry in &mut self.listeners {
            let Some(listener) = *entry else { continue };
            if !self.rules.has(listener.forward) {
                *entry = None;
                self.udp.on_listener_gone(listener.socket);
                if let Some(outward) = &mut self.outward {
                    outward.on_listener_gone(&mut self.sockets, out, listener.socket);
                }
                self.sockets.release(listener.socket);
                out.op(Op::Close { socket: listener.socket, how: CloseHow::Graceful });
            }
        }
    }

    /// Names a listening socket that the driver has opened for a forward: a TCP listener whose connections
    /// will be told as [`Input::Accepted`], or a bound UDP socket. `local` has the actual port.
    pub fn attach_listener(
        &mut self,
        forward: ForwardId,
        protocol: Protocol,
        local: SocketAddr,
    ) -> Result<SocketId, TableFull> {
        let free = self.listeners.iter().position(Option::is_none);
        let index = free.unwrap_or(self.listeners.len());
        let socket = self.sockets.claim(Owner::Listener(index as u32)).ok_or(TableFull)?;
        let listener = Some(Listener { socket, forward, protocol, local });
        match free {
            Some(index) => self.listeners[index] = listener,
            None => self.listeners.push(listener),
        }
        Ok(socket)
    }

    /// The rules in force.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// What the shard was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Counters, one per outcome.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The flows, in no order.
    pub fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        let outward = self.outward.iter().flat_map(Outward::flows);
        self.tcp.flows().chain(self.udp.flows()).chain(self.ping.flows()).chain(outward)
    }

    fn on_tick(&mut self, now: Instant, out: &mut dyn Outbox) {
        let mut ctx = context!(self, now, out);
        self.tcp.on_tick(&mut ctx);
        self.udp.on_tick(&mut ctx);
        self.ping.on_tick(&mut ctx);
        self.reassembly.on_tick(&mut ctx);
        self.dns.on_tick(&mut ctx);
        if let Some(outward) = &mut self.outward {
            outward.on_tick(&mut ctx);
        }
        self.advertiser.on_tick(&mut ctx);
    }

    fn on_socket(
        &mut self,
        now: Instant,
        socket: SocketId,
        input: Input<'_>,
        out: &mut dyn Outbox,
    ) {
        let Some(owner) = self.sockets.owner(socket) else {
            return self.on_stale(now, input, out);
        };
        let mut ctx = context!(self, now, out);
        match owner {
            Owner::Tcp(flow) => self.tcp.on_input(&mut ctx, flow, input),
            Owner::Udp(mapping) => self.udp.on_input(&mut ctx, mapping, input),
            Owner::Ping(mapping) => self.ping.on_input(&mut ctx, mapping, input),
            Owner::Dns(upstream) => self.dns.on_input(&mut ctx, upstream, input),
            Owner::Outward(relay) => match &mut self.outward {
                Some(outward) => outward.on_input(&mut ctx, relay, input),
                None => unreachable!("a relay is in its table"),
            },
            Owner::Listener(index) => {
                let Some(listener) = self.listeners[index as usize] else { return };
                if let Some(outward) = &mut self.outward
                    && ctx.rules.outward(listener.forward).is_some()
                {
                    return outward.on_listener_input(&mut ctx, &listener, input);
                }
                match listener.protocol {
                    Protocol::Tcp => self.tcp.on_listener_input(&mut ctx, &listener, input),
                    Protocol::Udp => self.udp.on_listener_input(&mut ctx, &listener, input),
                }
            }
        }
    }

    /// An input for a socket that has ended: its lease goes back, nothing else.
    fn on_stale(&mut self, now: Instant, input: Input<'_>, out: &mut dyn Outbox) {
        let mut ctx = context!(self, now, out);
        ctx.count(Counter::StaleInputs);
        match input {
            Input::Peeked { lease, .. } | Input::Datagram { lease, .. } => {
                ctx.op(Op::Release { lease });
            }
            Input::Accepted { accepted, .. } => ctx.op(Op::Refuse { accepted }),
            Input::Frame { .. }
            | Input::Connected { .. }
            | Input::Spliced { .. }
            | Input::SpliceEnded { .. }
            | Input::Sent { .. }
            | Input::Readable { .. }
            | Input::PeekEmpty { .. }
            | Input::PeekEnd { .. }
            | Input::Opened { .. }
            | Input::DatagramError { .. }
            | Input::Failed { .. }
            | Input::HandedOver { .. }
            | Input::ClientHandedOver { .. }
            | Input::Neighbor { .. }
            | Input::Tick => {}
        }
    }

    fn on_frame(
        &mut self,
        now: Instant,
        lease: LeaseId,
        bytes: &mut [u8],
        offload: Offload,
        out: &mut dyn Outbox,
    ) {
        let mut ctx = context!(self, now, out);
        ctx.count(Counter::FramesFromGuest);
        ctx.counters.add(Counter::BytesFromGuest, bytes.len() as u64);
        match packet::parse(bytes) {
            Err(packet::Malformed) => ctx.drop_frame(lease, Counter::DropMalformed),
            Ok(EtherType::Other) => ctx.drop_frame(lease, Counter::DropProtocol),
            Ok(EtherType::Arp { .. }) => services::arp::on_frame(&mut ctx, lease, bytes),
            Ok(EtherType::Ip(packet)) => {
                if let Err(why) = is_acceptable(&ctx, &packet, bytes, offload) {
                    return ctx.drop_frame(lease, why);
                }
                if ctx.ownership.is_shared()
                    && let Some(to) = handover::other_owner(&ctx, &self.tcp, &packet, bytes)
                {
                    return handover::hand_over(&mut ctx, to, lease, bytes.len(), offload);
                }
                self.on_packet(now, &packet, lease, bytes, offload, out);
            }
        }
    }

    /// A frame that another shard has looked at and found to be ours.
    fn on_handed_over(
        &mut self,
        now: Instant,
        lease: LeaseId,
        bytes: &mut [u8],
        offload: Offload,
        out: &mut dyn Outbox,
    ) {
        let mut ctx = context!(self, now, out);
        match packet::parse(bytes) {
            Ok(EtherType::Ip(packet)) => match is_acceptable(&ctx, &packet, bytes, offload) {
                Ok(()) => {
                    // What was lent may be back, or have ended meanwhile.
                    if ctx.ownership.lends()
                        && let Some(to) = handover::other_owner(&ctx, &self.tcp, &packet, bytes)
                    {
                        return handover::hand_over(&mut ctx, to, lease, bytes.len(), offload);
                    }
                    self.on_packet(now, &packet, lease, bytes, offload, out);
                }
                Err(why) => ctx.drop_frame(lease, why),
            },
            Ok(EtherType::Arp { .. } | EtherType::Other) | Err(packet::Malformed) => {
                ctx.drop_frame(lease, Counter::DropMalformed);
            }
        }
    }

    fn on_packet(
        &mut self,
        now: Instant,
        packet: &Packet,
        lease: LeaseId,
        bytes: &mut [u8],
        offload: Offload,
        out: &mut dyn Outbox,
    ) {
        let mut ctx = context!(self, now, out);
        ctx.learn(packet.source, packet.source_mac);
        if packet.hop_limit <= 1
            && !packet.destination.is_multicast()
            && !ctx.rules.view.is_own(packet.destination)
        {
            packet::error::tell_time_exceeded(&mut ctx, packet, bytes);
            return ctx.drop_frame(lease, Counter::DropHopLimit);
        }
        if packet.fragment.is_some() {
            if !is_translated(&ctx, packet) {
                return ctx.drop_frame(lease, Counter::DropProtocolOff);
            }
            if ctx.rules.view.is_own(packet.destination)
                && matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6)
            {
                return services::echo::on_fragment(&mut ctx, packet, lease, bytes);
            }
            let Some(whole) = self.reassembly.on_fragment(&mut ctx, packet, lease, bytes) else {
                return;
            };
            if let Some(to) = handover::other_owner_of_whole(&self.ownership, &whole) {
                return handover::hand_over_whole(&mut ctx, to, &whole);
            }
            return match whole.protocol {
                protocol::UDP => self.udp.on_reassembled(&mut ctx, &whole),
                protocol::ICMP | protocol::ICMPV6 => self.ping.on_reassembled(&mut ctx, &whole),
                _ => whole.discard(&mut ctx, Counter::DropProtocol),
            };
        }
        match packet.protocol {
            protocol::TCP if !ctx.config.protocols.tcp => {
                ctx.drop_frame(lease, Counter::DropProtocolOff);
            }
            protocol::TCP => self.tcp.on_guest_segment(&mut ctx, packet, lease, bytes),
            protocol::UDP => {
                let services = (&mut self.dns, &mut self.leases);
                on_udp(&mut self.udp, services, &mut ctx, packet, lease, bytes, offload)
            }
            protocol::ICMP if packet.source.is_ipv4() => {
                on_icmp(&mut self.tcp, &mut self.ping, &mut ctx, packet, lease, bytes);
            }
            protocol::ICMPV6 if packet.source.is_ipv6() => {
                if services::ndp::is_ndp(packet, bytes) {
                    if !ctx.config.services.ndp {
                        return ctx.drop_frame(lease, Counter::ResolutionHeard);
                    }
                    return services::ndp::on_message(
                        &mut self.advertiser,
                        &mut ctx,
                        packet,
                        lease,
                        bytes,
                    );
                }
                on_icmp(&mut self.tcp, &mut self.ping, &mut ctx, packet, lease, bytes);
            }
            _ => ctx.drop_frame(lease, Counter::DropProtocol),
        }
    }
}

/// The tables for outward forwards, if there are any.
fn outward_for(rules: &Rules, config: &Config) -> Option<Outward> {
    (!rules.outward.is_empty()).then(|| Outward::new(config))
}

/// What no packet may be, whatever its protocol.
fn is_acceptable(
    ctx: &Context<'_>,
    packet: &Packet,
    bytes: &[u8],
    offload: Offload,
) -> Result<(), Counter> {
    if packet.destination_mac != ctx.config.host_mac && !packet.destination_mac.is_multicast() {
        return Err(Counter::DropNotForUs);
    }
    let is_configured = match packet.source {
        IpAddr::V4(_) => ctx.config.net4.is_some(),
        IpAddr::V6(_) => ctx.config.net6.is_some(),
    };
    if !is_configured {
        return Err(Counter::DropFamily);
    }
    let source = packet.source;
    if source.is_multicast()
        || source.is_loopback()
        || source == IpAddr::V4(core::net::Ipv4Addr::BROADCAST)
        || ctx.rules.view.is_taken(source)
        || packet.source_mac.is_multicast()
    {
        return Err(Counter::DropSource);
    }
    // RFC 1122, section 3.2.1.2. It protects what no other sum covers: the addresses of ICMP, fragment offsets.
    if offload.checksum == Checksum::Unchecked && !packet::has_valid_header(packet, bytes) {
        return Err(Counter::DropChecksum);
    }
    let is_to_verify = offload.checksum == Checksum::Unchecked
        && packet.fragment.is_none()
        && matches!(
            packet.protocol,
            protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6
        );
    if is_to_verify {
        let segment = &bytes[packet.payload()];
        if !checksum::is_valid(source, packet.destination, packet.protocol, segment) {
            return Err(Counter::DropChecksum);
        }
    }
    Ok(())
}

/// Whether the protocol of a fragment is switched on.
fn is_translated(ctx: &Context<'_>, packet: &Packet) -> bool {
    let protocols = &ctx.config.protocols;
    match packet.protocol {
        protocol::UDP => protocols.udp,
        protocol::ICMP | protocol::ICMPV6 => protocols.icmp,
        _ => true,
    }
}

/// A whole UDP datagram, or a train: for one of our services, or for the host.
fn on_udp(
    udp: &mut Udp,
    (dns, leases): (&mut Dns, &mut services::dhcp4::Leases),
    ctx: &mut Context<'_>,
    packet: &Packet,
    lease: LeaseId,
    bytes: &mut [u8],
    offload: Offload,
) {
    let Some(header) = etherparse::UdpHeader::from_slice(&bytes[packet.payload()]).ok() else {
        return ctx.drop_frame(lease, Counter::DropMalformed);
    };
    let (header, _) = header;
    let len = usize::from(header.length);
    // A train's length field covers the whole train; a jumbo length of 0 is not for us (RFC 2675).
    if len < 8 || len > packet.payload_len() {
        return ctx.drop_frame(lease, Counter::DropMalformed);
    }
    let start = packet.payload_start + 8;
    let datagram = GuestDatagram {
        packet,
        from: packet.from(header.source_port),
        to: packet.to(header.destination_port),
        payload: Span { lease, start, len: len as u32 - 8 },
        segment: match offload.gso {
            Gso::Udp { size } => size,
            Gso::None | Gso::Fragment | Gso::Tcp4 { .. } | Gso::Tcp6 { .. } => 0,
        },
    };
    let payload = &bytes[start as usize..start as usize + len - 8];
    if services::dhcp4::is_request(ctx.config, datagram.to) {
        return services::dhcp4::on_request(leases, ctx, &datagram, payload);
    }
    if services::dhcp6::is_request(ctx.config, datagram.to) {
        return services::dhcp6::on_request(ctx, &datagram, payload);
    }
    if !ctx.config.protocols.udp {
        return ctx.drop_frame(lease, Counter::DropProtocolOff);
    }
    match ctx.rules.target(datagram.to) {
        crate::rules::Target::Resolver => dns.on_query(ctx, &datagram, payload),
        target => udp.on_guest_datagram(ctx, &datagram, target, payload),
    }
}

/// ICMP of either version, neighbour discovery aside: echo to us, echo to the host side, or an error about something
/// that we sent.
fn on_icmp(
    tcp: &mut Tcp,
    ping: &mut Ping,
    ctx: &mut Context<'_>,
    packet: &Packet,
    lease: LeaseId,
    bytes: &mut [u8],
) {
    match services::echo::classify(packet, bytes) {
        services::echo::Icmp::EchoRequest if !ctx.config.protocols.icmp => {
            ctx.drop_frame(lease, Counter::DropProtocolOff);
        }
        services::echo::Icmp::EchoRequest if ctx.rules.view.is_own(packet.destination) => {
            services::echo::on_request(ctx, packet, lease, bytes);
        }
        services::echo::Icmp::EchoRequest => ping.on_guest_echo(ctx, packet, lease, bytes),
        services::echo::Icmp::Error => {
            ctx.count(Counter::ErrorsFromGuest);
            if let Some(error) = packet::error::parse(packet, bytes)
                && error.protocol == protocol::TCP
            {
                tcp.on_guest_error(ctx, &error);
            }
            ctx.op(Op::Release { lease });
        }
        services::echo::Icmp::Other => ctx.drop_frame(lease, Counter::DropProtocol),
    }
}

#[cfg(test)]
mod tests;
