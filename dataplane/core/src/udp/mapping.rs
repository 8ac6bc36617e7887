//! Mappings: a guest's (address, port) and the host socket that stands for it.

use core::hash::{Hash, Hasher};
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use super::{Incoming, seen_by_guest};
use crate::config::Config;
use crate::context::Context;
use crate::counters::Counter;
use crate::datagram::{Undelivered, tell_undelivered};
use crate::flows::{FlowInfo, FlowKind};
use crate::hash::hash_end;
use crate::op::{CloseHow, DatagramKind, HostError, Namespace, Op, SocketId};
use crate::sockets::{Owner, Sockets};
use crate::table::Table;
use crate::time::Instant;
use crate::wheel::Wheel;

/// How long a mapping that got no socket answers with an error before a socket is asked for again.
const FAILED: Duration = Duration::from_secs(1);

/// Ports below are not asked for: an ordinary user may not have them.
const UNPRIVILEGED: u16 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    guest: SocketAddr,
    /// What the guest calls the address that it leads to, if it calls it by another name.
    alias: Option<IpAddr>,
    /// Whether it leads to the host's loopback.
    is_loopback: bool,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_end(self.guest, state);
        state.write_u8(u8::from(self.is_loopback));
        if let Some(alias) = self.alias {
            alias.hash(state);
        }
    }
}

#[derive(Clone, Copy)]
enum State {
    /// Asked for. Datagrams may be sent, nothing has come.
    Opening(SocketId),
    /// With its local address and port.
    Open(SocketId, SocketAddr),
    /// The host has no socket for us; forgotten after [`FAILED`].
    Failed(HostError),
}

impl State {
    fn socket(self) -> Option<SocketId> {
        match self {
            Self::Opening(socket) | Self::Open(socket, _) => Some(socket),
            Self::Failed(_) => None,
        }
    }
}

struct Mapping {
    state: State,
    /// Whether all went to port 53.
    is_dns: bool,
    /// Time of the last datagram, in either direction, or of the failure.
    last_used: Instant,
    /// Where the guest sent to last, translation done.
    last_to: SocketAddr,
    bytes_from_guest: u64,
    bytes_to_guest: u64,
}

/// What is there to send by.
pub(super) enum Opened {
    /// This socket.
    Socket(SocketId),
    /// None, because of this.
    Failed(HostError),
    /// None: a limit is reached.
    TableFull,
}

/// The table of mappings.
pub(super) struct Mappings {
    table: Table<Key, Mapping>,
    /// One timer per mapping, set when the mapping is made; put off, when it fires, to when the mapping is due.
    timers: Wheel,
}

impl Mappings {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            table: Table::new(config.limits.flows, config.seed ^ 0x7564_7000),
            timers: Wheel::new(config.limits.flows),
        }
    }

    /// The socket by which `len` bytes from the guest's end go to what it calls `called`, and is `to`.
    pub(super) fn socket_for(
        &mut self,
        ctx: &mut Context<'_>,
        guest: SocketAddr,
        called: SocketAddr,
        to: SocketAddr,
        len: u32,
    ) -> Opened {
        let alias = (called.ip() != to.ip()).then_some(called.ip());
        let key = Key { guest, alias, is_loopback: to.ip().is_loopback() };
        let Some(at) = self.table.find(&key).or_else(|| self.open(ctx, key, to)) else {
            return Opened::TableFull;
        };
        let Some((_, mapping)) = self.table.get_mut(at) else { return Opened::TableFull };
        let socket = match mapping.state {
            State::Failed(error) => return Opened::Failed(error),
            State::Opening(socket) | State::Open(socket, _) => socket,
        };
        mapping.is_dns &= to.port() == 53;
        mapping.last_used = ctx.now;
        mapping.last_to = to;
        mapping.bytes_from_guest += u64::from(len);
        Opened::Socket(socket)
    }

    /// The guest's end of a mapping, and a peer of it as the guest sees it.
    pub(super) fn ends(
        &self,
        ctx: &Context<'_>,
        at: u32,
        peer: SocketAddr,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let (key, mapping) = self.table.get(at)?;
        Some((key.guest, shown(ctx, key, mapping, peer)?))
    }

    pub(super) fn on_opened(&mut self, at: u32, local: SocketAddr) {
        if let Some((_, mapping)) = self.table.get_mut(at)
            && let State::Opening(socket) = mapping.state
        {
            mapping.state = State::Open(socket, local);
        }
    }

    pub(super) fn on_datagram(&mut self, ctx: &mut Context<'_>, at: u32, datagram: Incoming<'_>) {
        let lease = datagram.lease;
        let Some((key, mapping)) = self.table.get_mut(at) else {
            return ctx.drop_frame(lease, Counter::StaleInputs);
        };
        let guest = key.guest;
        let is_from_loopback = datagram.from.ip().to_canonical().is_loopback();
        let from =
            shown(ctx, key, mapping, datagram.from).filter(|_| is_from_loopback == key.is_loopback);
        let Some(from) = from else { return ctx.drop_frame(lease, Counter::UdpFiltered) };
        mapping.last_used = ctx.now;
        if let Some(len) = datagram.write(ctx, from, guest) {
            mapping.bytes_to_guest += len;
        }
    }

    /// The host has no socket for it, or the socket died. What was sent through it is lost; the guest is told
    /// once now, and for everything it sends until the mapping is forgotten.
    pub(super) fn on_failed(&mut self, ctx: &mut Context<'_>, at: u32, error: HostError) {
        let Some((key, mapping)) = self.table.get_mut(at) else { return };
        let Some(socket) = mapping.state.socket() else { return };
        ctx.count(Counter::UdpOpenFailed);
        close(ctx, socket);
        let error = told(error);
        mapping.state = State::Failed(error);
        mapping.last_used = ctx.now;
        self.timers.set(at, ctx.now + FAILED);
        let from = key.guest;
        let Some(to) = shown(ctx, key, mapping, mapping.last_to) else { return };
        let about = Undelivered { from, to, tos: 0, hop_limit: 1, payload: &[], payload_len: 0 };
        tell_undelivered(ctx, &about, error, None);
    }

    pub(super) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        while let Some(at) = self.timers.pop(ctx.now) {
            let Some((_, mapping)) = self.table.get(at) else { continue };
            let due = mapping.due(ctx.config);
            if due > ctx.now {
                self.timers.set(at, due);
                continue;
            }
            if let Some(socket) = mapping.state.socket() {
                ctx.count(Counter::UdpMappingsIdle);
                close(ctx, socket);
            }
            self.table.remove(at);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    pub(super) fn check(&self, sockets: &Sockets) -> u32 {
        self.table.check();
        let mut owned = 0;
        for (at, _, mapping) in self.table.iter() {
            let Some(socket) = mapping.state.socket() else { continue };
            assert_eq!(sockets.owner(socket), Some(Owner::Udp(at)), "a mapping owns its socket");
            owned += 1;
        }
        assert!(
            self.table.is_empty() || self.timers.next_deadline().is_some(),
            "mappings end some time"
        );
        owned
    }

    pub(super) fn flows(&self, now: Instant) -> impl Iterator<Item = FlowInfo> + '_ {
        self.table.iter().map(move |(_, key, mapping)| FlowInfo {
            kind: FlowKind::Udp,
            state: match mapping.state {
                State::Opening(_) => "OPENING",
                State::Open(..) => "UNCONN",
                State::Failed(_) => "FAILED",
            },
            is_outbound: true,
            guest: key.guest,
            remote: None,
            host: match mapping.state {
                State::Open(_, local) => Some(local),
                State::Opening(_) | State::Failed(_) => None,
            },
            bytes_from_guest: mapping.bytes_from_guest,
            bytes_to_guest: mapping.bytes_to_guest,
            idle: now.since(mapping.last_used),
        })
    }

    fn open(&mut self, ctx: &mut Context<'_>, key: Key, to: SocketAddr) -> Option<u32> {
        if self.table.is_full() {
            return None;
        }
        // The owner's number is known when the entry is made, the socket before.
        let mapping = Mapping {
            state: State::Failed(HostError::NoRoom),
            is_dns: to.port() == 53,
            last_used: ctx.now,
            last_to: to,
            bytes_from_guest: 0,
            bytes_to_guest: 0,
        };
        let at = self.table.insert(key, mapping)?;
        let Some(socket) = ctx.sockets.claim(Owner::Udp(at)) else {
            self.table.remove(at);
            return None;
        };
        let (_, mapping) = self.table.get_mut(at)?;
        mapping.state = State::Opening(socket);
        self.timers.set(at, mapping.due(ctx.config));
        ctx.count(Counter::UdpMappings);
        let kind = if to.is_ipv4() { DatagramKind::Udp4 } else { DatagramKind::Udp6 };
        let port = if key.guest.port() >= UNPRIVILEGED { key.guest.port() } else { 0 };
        let loopback = key.is_loopback;
        ctx.op(Op::Open { socket, kind, port, loopback, on: Namespace::Host });
        Some(at)
    }
}

impl Mapping {
    /// When it ends, if nothing happens until then.
    fn due(&self, config: &Config) -> Instant {
        let idle = match self.state {
            State::Failed(_) => FAILED,
            State::Opening(_) | State::Open(..) if self.is_dns => config.timeouts.dns_idle,
            State::Opening(_) | State::Open(..) => config.timeouts.udp_idle,
        };
        self.last_used + idle
    }
}

/// A peer of a mapping as the guest sees it: by the name that the guest calls it, if it is what the guest spoke to.
fn shown(ctx: &Context<'_>, key: &Key, mapping: &Mapping, peer: SocketAddr) -> Option<SocketAddr> {
    let ip = peer.ip().to_canonical();
    let is_called = ip == mapping.last_to.ip() || ip.is_loopback() && key.is_loopback;
    match key.alias {
        Some(alias) if is_called => Some(SocketAddr::new(alias, peer.port())),
        Some(_) | None => seen_by_guest(ctx, peer, key.guest),
    }
}

fn close(ctx: &mut Context<'_>, socket: SocketId) {
    ctx.sockets.release(socket);
    ctx.op(Op::Close { socket, how: CloseHow::Graceful });
}

/// What the guest hears when the host has no socket: of the host's own reasons it knows nothing.
fn told(error: HostError) -> HostError {
    match error {
        HostError::Prohibited => HostError::Prohibited,
        HostError::NoRoom
        | HostError::Unsupported
        | HostError::Refused
        | HostError::Reset
        | HostError::NetUnreachable
        | HostError::HostUnreachable
        | HostError::TimedOut
        | HostError::TooBig { .. }
        | HostError::TimeExceeded
        | HostError::Icmp { .. }
        | HostError::Other(_) => HostError::NetUnreachable,
    }
}
