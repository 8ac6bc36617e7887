//! Outward forwards: ports in the guest's namespace that lead to the host's loopback, without a frame in between.
//!
//! # Theory of operation
//!
//! A listener of an [`Outward`](crate::rules::Outward) rule is a socket in the guest's namespace. What comes to it has
//! been through the guest's own stack already, so nothing is translated here: bytes go from socket to socket.
//!
//! - **A connection** is joined to one that the driver makes on the host ([`Op::Splice`] with [`Namespace::Host`]); the
//!   payload stays in the kernel. Where the rule names no address, the client's own family is tried first and the other
//!   one after it: `localhost` is both, and a server often listens on one only. If there is no server the
//!   client is reset; its kernel has answered the SYN before we could know.
//! - **A datagram** goes on in the lease that it came in. Each client has a host socket of its own, so that an answer finds
//!   its way back; it ends when it was idle for as long as a UDP mapping would be.
//!
//! Both are in one table, made when the first such rule comes: most guests have none.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::context::Context;
use crate::counters::Counter;
use crate::flows::{FlowInfo, FlowKind};
use crate::op::{
    AcceptedId, CloseHow, DatagramKind, HEADROOM, Input, LeaseId, LocalId, Namespace, Op, Outbox,
    SocketId, Span,
};
use crate::shard::Listener;
use crate::sockets::{Owner, Sockets};
use crate::table::Table;
use crate::time::Instant;
use crate::wheel::Wheel;

/// What DNS servers listen on: its clients are forgotten sooner.
const DNS_PORT: u16 = 53;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    /// A connection, by the order in which they came.
    Connection(u64),
    /// Who speaks to a listening UDP socket.
    Client { listener: SocketId, address: SocketAddr },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The host's server has not answered.
    Connecting {
        /// The guest's client.
        accepted: AcceptedId,
        /// Where else the server may be.
        other: Option<SocketAddr>,
    },
    /// The driver moves the bytes.
    Joined,
    /// UDP: by this listener the answers go back. Its own socket's address once it is known.
    Datagrams { listener: SocketId, local: Option<SocketAddr> },
}

struct Relay {
    socket: SocketId,
    state: State,
    /// The guest's end.
    client: SocketAddr,
    /// What it connected or sent to.
    at: SocketAddr,
    /// The host's end.
    to: SocketAddr,
    last_used: Instant,
    bytes_from_guest: u64,
    bytes_to_guest: u64,
}

/// A datagram, or a train, in its lease.
struct Datagram {
    lease: LeaseId,
    /// Bytes behind the headroom.
    len: u32,
    segment: u16,
    tos: u8,
}

/// The relays. See the [module](self).
pub(crate) struct Outward {
    table: Table<Key, Relay>,
    /// One timer per UDP client, put off when it fires to when the client is due.
    timers: Wheel,
    /// Connections that have come.
    connections: u64,
    /// Relays in [`State::Connecting`].
    connecting: u32,
    /// When the table was last asked, for the flows' idle times.
    now: Instant,
}

impl Outward {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            table: Table::new(config.limits.flows, config.seed ^ 0x6f75_7477),
            timers: Wheel::new(config.limits.flows),
            connections: 0,
            connecting: 0,
            now: Instant::ZERO,
        }
    }

    /// Something came to a listener of ours in the namespace.
    pub(crate) fn on_listener_input(
        &mut self,
        ctx: &mut Context<'_>,
        listener: &Listener,
        input: Input<'_>,
    ) {
        self.now = ctx.now;
        match input {
            Input::Accepted { accepted, peer, local, .. } => {
                self.on_client(ctx, listener, accepted, peer, local);
            }
            Input::Datagram { lease, bytes, from, segment, tos, .. } => {
                let datagram = Datagram::new(lease, bytes, segment, tos);
                self.on_datagram_of_guest(ctx, listener, from, &datagram);
            }
            Input::DatagramError { .. } => ctx.count(Counter::OutwardErrors),
            Input::Frame { .. }
            | Input::Connected { .. }
            | Input::Spliced { .. }
            | Input::SpliceEnded { .. }
            | Input::Sent { .. }
            | Input::Readable { .. }
            | Input::Peeked { .. }
            | Input::PeekEmpty { .. }
            | Input::PeekEnd { .. }
            | Input::Opened { .. }
            | Input::Failed { .. }
            | Input::HandedOver { .. }
            | Input::ClientHandedOver { .. }
            | Input::Neighbor { .. }
            | Input::Tick => unexpected(ctx, &input),
        }
    }

    /// Something happened to a relay's socket on the host.
    pub(crate) fn on_input(&mut self, ctx: &mut Context<'_>, relay: u32, input: Input<'_>) {
        self.now = ctx.now;
        match input {
            Input::Spliced { .. } => self.on_joined(ctx, relay),
            Input::SpliceEnded { .. } => self.on_ended(ctx, relay),
            Input::Failed { .. } => self.on_failed(ctx, relay),
            Input::Opened { local, .. } => self.on_opened(relay, local),
            Input::Datagram { lease, bytes, from, segment, tos, .. } => {
                let datagram = Datagram::new(lease, bytes, segment, tos);
                self.on_answer(ctx, relay, from, &datagram);
            }
            // A closed port, most often. To a client on a socket nobody but its own kernel can say so.
            Input::DatagramError { .. } => ctx.count(Counter::OutwardErrors),
            Input::Frame { .. }
            | Input::Connected { .. }
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

    /// A listener is closed: its UDP clients get no answers any more. Connections go on.
    pub(crate) fn on_listener_gone(
        &mut self,
        sockets: &mut Sockets,
        out: &mut dyn Outbox,
        gone: SocketId,
    ) {
        let mut next = self.table.oldest();
        while let Some(at) = next {
            next = self.table.newer(at);
            let is_lost = self.table.get(at).is_some_and(
                |(_, r)| matches!(r.state, State::Datagrams { listener, .. } if listener == gone),
            );
            if is_lost && let Some((_, relay)) = self.table.remove(at) {
                self.timers.cancel(at);
                sockets.release(relay.socket);
                out.op(Op::Close { socket: relay.socket, how: CloseHow::Graceful });
            }
        }
    }

    pub(crate) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        self.now = ctx.now;
        while let Some(at) = self.timers.pop(ctx.now) {
            let Some((_, relay)) = self.table.get(at) else { continue };
            let due = relay.due(ctx.config);
            if due > ctx.now {
                self.timers.set(at, due);
                continue;
            }
            ctx.count(Counter::OutwardIdle);
            self.close_client(ctx, at);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// Asserts the invariants; the number of sockets owned.
    pub(crate) fn check(&self, sockets: &Sockets) -> u32 {
        self.table.check();
        let mut connecting = 0;
        let mut clients = 0;
        for (at, _, relay) in self.table.iter() {
            let owner = sockets.owner(relay.socket);
            assert_eq!(owner, Some(Owner::Outward(at)), "a relay owns its socket");
            match relay.state {
                State::Connecting { .. } => connecting += 1,
                State::Joined => {}
                State::Datagrams { .. } => clients += 1,
            }
        }
        assert_eq!(connecting, self.connecting, "connecting relays are counted");
        assert!(
            clients == 0 || self.timers.next_deadline().is_some(),
            "clients are forgotten some time"
        );
        self.table.len()
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.table.iter().map(|(_, _, relay)| FlowInfo {
            kind: match relay.state {
                State::Connecting { .. } | State::Joined => FlowKind::Spliced,
                State::Datagrams { .. } => FlowKind::Udp,
            },
            state: match relay.state {
                State::Connecting { .. } => "SYN-SENT",
                State::Joined => "ESTAB",
                State::Datagrams { local: None, .. } => "OPENING",
                State::Datagrams { local: Some(_), .. } => "UNCONN",
            },
            is_outbound: true,
            guest: relay.client,
            remote: Some(relay.at),
            host: Some(relay.to),
            bytes_from_guest: relay.bytes_from_guest,
            bytes_to_guest: relay.bytes_to_guest,
            idle: self.now.since(relay.last_used),
        })
    }
}

/// Connections.
impl Outward {
    fn on_client(
        &mut self,
        ctx: &mut Context<'_>,
        listener: &Listener,
        accepted: AcceptedId,
        client: SocketAddr,
        at: SocketAddr,
    ) {
        let Some((to, other)) = destination(ctx, listener, at) else {
            return ctx.op(Op::Refuse { accepted });
        };
        let relay = (self.connecting < ctx.config.limits.half_open).then(|| {
            self.connections += 1;
            let state = State::Connecting { accepted, other };
            self.add(ctx, Key::Connection(self.connections), state, client, at, to)
        });
        let Some((_, socket)) = relay.flatten() else {
            ctx.count(Counter::OutwardTableFull);
            return ctx.op(Op::Refuse { accepted });
        };
        self.connecting += 1;
        ctx.count(Counter::OutwardConnections);
        ctx.op(Op::Splice { socket, accepted, to, on: Namespace::Host });
    }

    fn on_joined(&mut self, ctx: &mut Context<'_>, at: u32) {
        let Some((_, relay)) = self.table.get_mut(at) else { return };
        relay.state = State::Joined;
        relay.last_used = ctx.now;
        self.connecting -= 1;
    }

    /// The driver has closed both ends: the id ends without a `Close`.
    fn on_ended(&mut self, ctx: &mut Context<'_>, at: u32) {
        let Some((_, relay)) = self.table.remove(at) else { return };
        ctx.sockets.release(relay.socket);
        ctx.count(Counter::OutwardEnded);
    }

    /// There is no server where we have tried, or no UDP socket for a client.
    fn on_failed(&mut self, ctx: &mut Context<'_>, at: u32) {
        let Some((_, relay)) = self.table.get_mut(at) else { return };
        let socket = relay.socket;
        match relay.state {
            State::Connecting { accepted, other: Some(to) } => {
                relay.state = State::Connecting { accepted, other: None };
                relay.to = to;
                ctx.op(Op::Splice { socket, accepted, to, on: Namespace::Host });
            }
            State::Connecting { accepted, other: None } => {
                ctx.count(Counter::OutwardRefused);
                ctx.op(Op::Refuse { accepted });
                self.connecting -= 1;
                self.table.remove(at);
                ctx.sockets.release(socket);
            }
            State::Joined => self.on_ended(ctx, at),
            State::Datagrams { .. } => {
                ctx.count(Counter::OutwardErrors);
                self.close_client(ctx, at);
            }
        }
    }
}

/// Datagrams.
impl Outward {
    fn on_datagram_of_guest(
        &mut self,
        ctx: &mut Context<'_>,
        listener: &Listener,
        client: SocketAddr,
        datagram: &Datagram,
    ) {
        let Some((to, _)) = destination(ctx, listener, listener.local) else {
            return ctx.drop_frame(datagram.lease, Counter::StaleInputs);
        };
        let key = Key::Client { listener: listener.socket, address: client };
        let found = self.table.find(&key).or_else(|| self.open(ctx, listener, key, client, to));
        let Some((_, relay)) = found.and_then(|at| self.table.get_mut(at)) else {
            return ctx.drop_frame(datagram.lease, Counter::OutwardTableFull);
        };
        relay.last_used = ctx.now;
        relay.bytes_from_guest += u64::from(datagram.len);
        datagram.send(ctx, relay.socket, relay.to);
    }

    fn on_opened(&mut self, at: u32, address: SocketAddr) {
        if let Some((_, relay)) = self.table.get_mut(at)
            && let State::Datagrams { local, .. } = &mut relay.state
        {
            *local = Some(address);
        }
    }

    /// Only the server that was asked may answer: the client would see its words as the listener's.
    fn on_answer(&mut self, ctx: &mut Context<'_>, at: u32, from: SocketAddr, datagram: &Datagram) {
        let Some((_, relay)) = self.table.get_mut(at).filter(|(_, relay)| relay.to == from) else {
            return ctx.drop_frame(datagram.lease, Counter::OutwardFiltered);
        };
        let State::Datagrams { listener, .. } = relay.state else {
            return ctx.drop_frame(datagram.lease, Counter::StaleInputs);
        };
        relay.last_used = ctx.now;
        relay.bytes_to_guest += u64::from(datagram.len);
        datagram.send(ctx, listener, relay.client);
    }

    fn open(
        &mut self,
        ctx: &mut Context<'_>,
        listener: &Listener,
        key: Key,
        client: SocketAddr,
        to: SocketAddr,
    ) -> Option<u32> {
        let state = State::Datagrams { listener: listener.socket, local: None };
        let (at, socket) = self.add(ctx, key, state, client, listener.local, to)?;
        let (_, relay) = self.table.get(at)?;
        self.timers.set(at, relay.due(ctx.config));
        ctx.count(Counter::OutwardClients);
        let kind = if to.is_ipv4() { DatagramKind::Udp4 } else { DatagramKind::Udp6 };
        let loopback = to.ip().is_loopback();
        ctx.op(Op::Open { socket, kind, port: 0, loopback, on: Namespace::Host });
        Some(at)
    }

    fn close_client(&mut self, ctx: &mut Context<'_>, at: u32) {
        let Some((_, relay)) = self.table.remove(at) else { return };
        self.timers.cancel(at);
        ctx.sockets.release(relay.socket);
        ctx.op(Op::Close { socket: relay.socket, how: CloseHow::Graceful });
    }

    /// An entry and its socket; none: one of the tables is full.
    fn add(
        &mut self,
        ctx: &mut Context<'_>,
        key: Key,
        state: State,
        client: SocketAddr,
        at: SocketAddr,
        to: SocketAddr,
    ) -> Option<(u32, SocketId)> {
        // The owner's number is known when the entry is made, the socket before.
        let socket = SocketId { index: u32::MAX, generation: 0 };
        let last_used = ctx.now;
        let (bytes_from_guest, bytes_to_guest) = (0, 0);
        let relay =
            Relay { socket, state, client, at, to, last_used, bytes_from_guest, bytes_to_guest };
        let index = self.table.insert(key, relay)?;
        let Some(socket) = ctx.sockets.claim(Owner::Outward(index)) else {
            self.table.remove(index);
            return None;
        };
        let (_, relay) = self.table.get_mut(index)?;
        relay.socket = socket;
        Some((index, socket))
    }
}

impl Relay {
    /// When a client is forgotten, if nothing happens until then.
    fn due(&self, config: &Config) -> Instant {
        let is_dns = self.to.port() == DNS_PORT;
        let idle = if is_dns { config.timeouts.dns_idle } else { config.timeouts.udp_idle };
        self.last_used + idle
    }
}

impl Datagram {
    fn new(lease: LeaseId, bytes: &[u8], segment: u16, tos: u8) -> Self {
        Self { lease, len: bytes.len().saturating_sub(HEADROOM) as u32, segment, tos }
    }

    fn send(&self, ctx: &mut Context<'_>, socket: SocketId, to: SocketAddr) {
        let span = Span { lease: self.lease, start: HEADROOM as u32, len: self.len };
        let (segment, tos) = (self.segment, self.tos);
        ctx.op(Op::SendTo {
            socket,
            to,
            span,
            segment,
            hop_limit: 0,
            tos,
            local: LocalId::ANY,
            more: false,
        });
    }
}

/// Where a listener's clients are led to, and where else if nobody is there; none if the forward is gone.
fn destination(
    ctx: &Context<'_>,
    listener: &Listener,
    at: SocketAddr,
) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let rule = ctx.rules.outward(listener.forward)?;
    let port = rule.host_port_for(at.port())?;
    if let Some(ip) = rule.host {
        return Some((SocketAddr::new(ip, port), None));
    }
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
    Some(if at.ip().to_canonical().is_ipv4() { (v4, Some(v6)) } else { (v6, Some(v4)) })
}

/// An input that such a socket has no use for; it keeps nothing that was lent.
fn unexpected(ctx: &mut Context<'_>, input: &Input<'_>) {
    ctx.count(Counter::StaleInputs);
    if let Input::Peeked { lease, .. }
    | Input::Frame { lease, .. }
    | Input::Datagram { lease, .. } = *input
    {
        ctx.op(Op::Release { lease });
    }
    if let Input::Accepted { accepted, .. } = *input {
        ctx.op(Op::Refuse { accepted });
    }
}

#[cfg(test)]
mod tests;
