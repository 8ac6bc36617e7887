//! Forwards: clients of the host side that speak to the guest through a forward's socket.
//!
//! A client keeps its address and port on the way to the guest; one on the host's loopback appears as the gateway. The
//! pair of the guest's end and the client's, as the guest sees it, is remembered: what the guest sends along
//! it goes back through the forward's socket and from the address that the client wrote to, so that the client knows
//! it. Where two clients would look the same to the guest (the same port of two loopback addresses, or one client that
//! writes to two addresses of ours), the second appears with another port. A client that is idle is forgotten, and
//! the one idle for longest when a flood of new ones needs its place.

use core::hash::{Hash, Hasher};
use core::net::SocketAddr;

use super::{Incoming, Outgoing, Way, hop_limit_towards, seen_by_guest};
use crate::config::Config;
use crate::context::Context;
use crate::counters::Counter;
use crate::flows::{FlowInfo, FlowKind};
use crate::hash::hash_end;
use crate::op::{HostError, LocalId, SocketId};
use crate::packet::build::same_family;
use crate::rules::port_shown;
use crate::shard::Listener;
use crate::table::Table;
use crate::time::Instant;

/// Ports tried for a client that another one looks like.
const PORTS_TRIED: u16 = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    guest: SocketAddr,
    /// The client, as the guest sees it.
    seen: SocketAddr,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_end(self.guest, state);
        hash_end(self.seen, state);
    }
}

/// Who a client really is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    /// The forward's socket.
    listener: SocketId,
    /// The client's own address.
    real: SocketAddr,
    /// What it wrote to.
    local: LocalId,
}

struct Peer {
    who: Identity,
    last_used: Instant,
    bytes_from_guest: u64,
    bytes_to_guest: u64,
}

/// Clients, the one idle for longest first.
pub(super) struct Peers {
    table: Table<Key, Peer>,
}

impl Peers {
    pub(super) fn new(config: &Config) -> Self {
        Self { table: Table::new(config.limits.flows, config.seed ^ 0x7065_6572) }
    }

    /// The client that the guest answers.
    pub(super) fn find(&self, guest: SocketAddr, seen: SocketAddr) -> Option<u32> {
        if self.table.is_empty() { None } else { self.table.find(&Key { guest, seen }) }
    }

    /// A client speaks to the guest.
    pub(super) fn on_datagram(
        &mut self,
        ctx: &mut Context<'_>,
        listener: &Listener,
        datagram: Incoming<'_>,
    ) {
        let lease = datagram.lease;
        let ends = guest_end(ctx, listener, datagram.from)
            .and_then(|guest| Some((guest, seen_by_guest(ctx, datagram.from, guest)?)));
        let Some((guest, seen)) = ends else {
            return ctx.drop_frame(lease, Counter::UdpForwardUnusable);
        };
        let (real, local) = (datagram.from, datagram.local);
        let who = Identity { listener: listener.socket, real, local };
        let (key, known) = self.place(Key { guest, seen }, |peer| peer.who == who);
        let Some(at) = self.peer_for(ctx, key, known, who) else {
            return ctx.drop_frame(lease, Counter::UdpPeersEvicted);
        };
        let seen = key.seen;
        let len = datagram.write(ctx, seen, guest);
        if let (Some(len), Some((_, peer))) = (len, self.table.get_mut(at)) {
            peer.bytes_to_guest += len;
        }
    }

    /// The guest answers a client.
    pub(super) fn on_outgoing(&mut self, ctx: &mut Context<'_>, at: u32, out: &Outgoing<'_>) {
        let Some((_, peer)) = self.table.get_mut(at) else {
            return out.discard(ctx, Counter::StaleInputs);
        };
        let Some(hop_limit) = hop_limit_towards(peer.who.real.ip().to_canonical(), out.packet)
        else {
            return out.refuse(ctx, HostError::TimeExceeded, Counter::DropTimeExceeded);
        };
        peer.last_used = ctx.now;
        peer.bytes_from_guest += u64::from(out.payload.len);
        let Identity { listener: socket, real: to, local } = peer.who;
        out.send(ctx, &Way { socket, to, local, hop_limit });
        self.table.touch(at);
    }

    pub(super) fn on_listener_gone(&mut self, socket: SocketId) {
        let mut at = self.table.oldest();
        while let Some(index) = at {
            at = self.table.newer(index);
            if self.table.get(index).is_some_and(|(_, peer)| peer.who.listener == socket) {
                self.table.remove(index);
            }
        }
    }

    pub(super) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        while let Some(at) = self.table.oldest() {
            if self.due(ctx.config, at).is_none_or(|due| due > ctx.now) {
                break;
            }
            self.table.remove(at);
        }
    }

    pub(super) fn next_deadline(&self, config: &Config) -> Option<Instant> {
        self.due(config, self.table.oldest()?)
    }

    pub(super) fn check(&self) {
        self.table.check();
        for (_, key, _) in self.table.iter() {
            assert!(same_family(key.guest, key.seen), "the guest sees its own family");
        }
    }

    pub(super) fn flows(&self, now: Instant) -> impl Iterator<Item = FlowInfo> + '_ {
        self.table.iter().map(move |(_, key, peer)| FlowInfo {
            kind: FlowKind::Udp,
            state: "UNCONN",
            is_outbound: false,
            guest: key.guest,
            remote: Some(key.seen),
            host: Some(peer.who.real),
            bytes_from_guest: peer.bytes_from_guest,
            bytes_to_guest: peer.bytes_to_guest,
            idle: now.since(peer.last_used),
        })
    }

    fn due(&self, config: &Config, at: u32) -> Option<Instant> {
        self.table.get(at).map(|(_, peer)| peer.last_used + config.timeouts.udp_idle)
    }

    /// What the guest and a client that wrote to this forward call each other.
    pub(super) fn ends(
        &self,
        ctx: &Context<'_>,
        listener: &Listener,
        client: SocketAddr,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let guest = guest_end(ctx, listener, client)?;
        let seen = seen_by_guest(ctx, client, guest)?;
        let is_it = |peer: &Peer| peer.who.listener == listener.socket && peer.who.real == client;
        let (key, _) = self.place(Key { guest, seen }, is_it);
        Some((key.guest, key.seen))
    }

    /// Where a client is in the table, or is to be: its own port if it has that to itself, else the first other one.
    fn place(&self, own: Key, is_it: impl Fn(&Peer) -> bool) -> (Key, Option<u32>) {
        let mut free = None;
        for n in 0..PORTS_TRIED {
            let port = port_shown(own.seen.port(), n);
            let key = Key { seen: SocketAddr::new(own.seen.ip(), port), ..own };
            match self.table.find(&key) {
                Some(at) if self.table.get(at).is_some_and(|(_, peer)| is_it(peer)) => {
                    return (key, Some(at));
                }
                Some(_) => {}
                None => free = free.or(Some(key)),
            }
        }
        (free.unwrap_or(own), None)
    }

    /// The client's entry, made or brought up to date. None: the table has no places at all.
    fn peer_for(
        &mut self,
        ctx: &mut Context<'_>,
        key: Key,
        known: Option<u32>,
        who: Identity,
    ) -> Option<u32> {
        if let Some(at) = known.or_else(|| self.table.find(&key)) {
            self.table.touch(at);
            let (_, peer) = self.table.get_mut(at)?;
            if peer.who != who {
                // All ports that were tried are others'.
                ctx.count(Counter::UdpPeersReplaced);
                peer.who = who;
            }
            peer.last_used = ctx.now;
            return Some(at);
        }
        if self.table.is_full() {
            ctx.count(Counter::UdpPeersEvicted);
            self.table.remove(self.table.oldest()?);
        }
        let last_used = ctx.now;
        let peer = Peer { who, last_used, bytes_from_guest: 0, bytes_to_guest: 0 };
        self.table.insert(key, peer)
    }
}

/// The guest's end for what a client sends to a forward's socket; none if the forward is gone or has no
/// guest address in the family in which the guest sees the client.
pub(super) fn guest_end(
    ctx: &Context<'_>,
    listener: &Listener,
    client: SocketAddr,
) -> Option<SocketAddr> {
    let forward = ctx.rules.forward(listener.forward)?;
    let port = forward.guest_port_for(listener.local.port())?;
    let first = ctx.config.guest_like(client.ip().to_canonical());
    Some(SocketAddr::new(forward.guest.or(first)?, port))
}
