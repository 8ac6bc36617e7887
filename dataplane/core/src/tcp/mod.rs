//! TCP: a guest's connection on one side, a host socket on the other, and no second TCP stack.
//!
//! # Theory of operation
//!
//! The guest's kernel and the host's kernel both have a whole TCP. What lies between them needs no congestion control
//! and no buffers of its own; it has to translate *progress*:
//!
//! - **From the guest.** Payload stays in the leased frame it came in ([`kept`]) until the host socket has taken it; small
//!   segments share the frame of the first.
//!   It is acknowledged when it is received, since nothing is lost between here and the socket, and only [floods](flood) of small
//!   segments wait for that; the window's
//!   right edge is what the host has taken plus a constant, so a slow host closes the window and the guest never has to
//!   retransmit for flow control.
//! - **To the guest.** Bytes stay in the host socket's queue until the guest has acknowledged them: they are peeked at,
//!   sent, and consumed when acknowledged. Sending again is peeking again from an older offset.
//! - **Opening and closing.** A SYN is answered when the other side's connection has come about. Each half closes on
//!   its own: the guest's FIN becomes a shutdown once all it sent has been taken; the host's end becomes a FIN behind
//!   its last byte.
//!
//! [`handshake`] opens, [`from_guest`] and [`to_guest`] are the halves, [`ending`] closes, [`timers`], [`patience`] and [`flood`] wait. All
//! that can wait until the end of a turn (acknowledgements, sends, peeks) is done once per flow in [`Tcp::flush`].

mod conn;
mod ending;
mod flood;
mod from_guest;
mod handshake;
mod kept;
mod lent;
mod patience;
mod portions;
mod sack;
mod segment;
mod seq;
mod timers;
mod to_guest;

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hasher as _};
use core::net::SocketAddr;

use crate::config::{Config, ShardId};
use crate::context::Context;
use crate::counters::Counter;
use crate::flows::{FlowInfo, FlowKind};
use crate::hash::{Hasher, hash_end, hasher};
use crate::index::Index;
use crate::op::{Input, LeaseId, Op};
use crate::packet::Packet;
use crate::sockets::{Owner, Sockets};
use crate::time::Instant;
use crate::wheel::Wheel;

use conn::{Conn, FromGuest, State, ToGuest};
use flood::Floods;
use kept::KeptSpans;
use patience::Waiting;
use portions::Portions;
use segment::Segment;

pub use lent::LentFlow;

/// A slot of the table.
enum Slot {
    Used(Conn),
    Free { next: Option<u32> },
}

/// The flows.
pub(crate) struct Tcp {
    slots: Vec<Slot>,
    free: Option<u32>,
    used: u32,
    /// Index by (guest, remote); spliced flows are not in it.
    index: Index,
    hasher: Hasher,
    kept: KeptSpans,
    /// Of what is kept.
    portions: Portions,
    wheel: Wheel,
    /// Flows whose acknowledgement waits for an answer to take it along.
    waiting: Waiting,
    /// Flows that are acknowledged at intervals.
    floods: Floods,
    /// Flows to look at when the turn ends; each at most once.
    dirty: Vec<u32>,
    /// Flows that owe an acknowledgement when it does; each at most once.
    owing: Vec<u32>,
    /// Flows whose handshake is not complete.
    half_open: u32,
    /// Flows that send in bulk to the guest.
    bulk: u32,
    /// The most of them lately, and when it was.
    shares: u32,
    shares_at: Instant,
    /// When the table was last asked, for the flows' idle times.
    now: Instant,
    /// Flows of this shard that are with others, by the guest's view of them.
    lent: BTreeMap<(SocketAddr, SocketAddr), ShardId>,
    /// Flows of others that have ended here.
    ended: Vec<(SocketAddr, SocketAddr)>,
}

/// When acknowledgements go out that may wait a little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acks {
    /// Now: the turn ends.
    Now,
    /// When it does.
    AtTheEnd,
}

impl Tcp {
    pub(crate) fn new(config: &Config) -> Self {
        let flows = config.limits.flows as usize;
        Self {
            slots: Vec::with_capacity(flows),
            free: None,
            used: 0,
            index: Index::new(config.limits.flows),
            hasher: hasher(config.seed),
            kept: KeptSpans::new(config.limits.leases),
            portions: Portions::new(config),
            wheel: Wheel::new(config.limits.flows),
            waiting: Waiting::new(),
            floods: Floods::new(),
            dirty: Vec::with_capacity(flows),
            owing: Vec::with_capacity(flows),
            half_open: 0,
            bulk: 0,
            shares: 0,
            shares_at: Instant::ZERO,
            now: Instant::ZERO,
            lent: BTreeMap::new(),
            ended: Vec::new(),
        }
    }

    /// A segment from the guest: of a flow, opening one, or of nothing we know.
    pub(crate) fn on_guest_segment(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        lease: LeaseId,
        bytes: &mut [u8],
    ) {
        self.now = ctx.now;
        let Some(segment) = Segment::parse(packet, bytes) else {
            return ctx.drop_frame(lease, Counter::DropMalformed);
        };
        if packet.destination.is_multicast() || segment.guest.port() == 0 {
            return ctx.drop_frame(lease, Counter::DropMalformed);
        }
        let found = self.find(segment.guest, segment.remote);
        let found = found.filter(|&flow| !self.makes_way(ctx, flow, &segment));
        let keeps_lease = match found {
            Some(flow) => {
                let is_syn = segment.syn;
                let options =
                    if is_syn { Segment::syn_options(packet, bytes) } else { Default::default() };
                self.on_flow_segment(ctx, flow, &segment, options, lease)
            }
            // A SYN that made its forerunner end, which was lent: the guest repeats it, and it comes to its home.
            None if ctx
                .ownership
                .elsewhere(ctx.ownership.of_connection(segment.guest, segment.remote))
                .is_some() =>
            {
                ctx.count(Counter::StaleInputs);
                false
            }
            None => {
                self.on_unknown_segment(ctx, &segment, Segment::syn_options(packet, bytes));
                false
            }
        };
        if !keeps_lease {
            ctx.op(Op::Release { lease });
        }
    }

    /// Something happened to a flow's socket.
    pub(crate) fn on_input(&mut self, ctx: &mut Context<'_>, flow: u32, input: Input<'_>) {
        self.now = ctx.now;
        match input {
            Input::Connected { .. } => self.on_connected(ctx, flow),
            Input::Spliced { .. } => self.on_spliced(ctx, flow),
            Input::SpliceEnded { to_guest, from_guest, .. } => {
                self.on_splice_ended(ctx, flow, to_guest, from_guest);
            }
            Input::Sent { bytes, .. } => self.on_sent(ctx, flow, bytes),
            Input::Readable { .. } => {
                self.conn_mut(flow).is_readable = true;
                self.mark(flow);
            }
            Input::Peeked { lease, bytes, then, .. } => {
                self.on_peeked(ctx, flow, lease, bytes, then);
            }
            Input::PeekEmpty { .. } => self.on_peek_empty(flow),
            Input::PeekEnd { .. } => self.on_peek_end(flow),
            Input::Failed { error, .. } => self.on_failed(ctx, flow, error),
            Input::Frame { .. }
            | Input::Accepted { .. }
            | Input::Opened { .. }
            | Input::Datagram { .. }
            | Input::DatagramError { .. }
            | Input::HandedOver { .. }
            | Input::ClientHandedOver { .. }
            | Input::Neighbor { .. }
            | Input::Tick => unreachable!("not an input of a TCP socket"),
        }
    }

    /// The end of a turn: each flow that something happened to, once.
    pub(crate) fn flush(&mut self, ctx: &mut Context<'_>, acks: Acks) {
        self.now = ctx.now;
        if acks == Acks::Now {
            self.mark_owing();
        }
        let mut dirty = core::mem::take(&mut self.dirty);
        for flow in dirty.drain(..) {
            let Slot::Used(conn) = &mut self.slots[flow as usize] else { continue };
            // A slot that was freed and used again in this turn is in the list twice.
            if core::mem::take(&mut conn.is_dirty) && self.flush_flow(ctx, flow, acks) {
                self.owe(flow);
            }
        }
        // Flushing marks nothing: the list, with its memory, goes back empty.
        debug_assert!(self.dirty.is_empty(), "flushing a flow does not make it dirty");
        self.dirty = dirty;
        self.forget_waits();
    }

    /// The flow owes an acknowledgement in the end.
    fn owe(&mut self, flow: u32) {
        let Slot::Used(conn) = &mut self.slots[flow as usize] else { return };
        if !core::mem::replace(&mut conn.is_owing, true) {
            self.owing.push(flow);
        }
    }

    /// The end has come.
    fn mark_owing(&mut self) {
        let mut owing = core::mem::take(&mut self.owing);
        for flow in owing.drain(..) {
            if let Slot::Used(conn) = &mut self.slots[flow as usize]
                && core::mem::take(&mut conn.is_owing)
            {
                self.mark(flow);
            }
        }
        self.owing = owing;
    }

    /// Whether the flow owes an acknowledgement now.
    fn flush_flow(&mut self, ctx: &mut Context<'_>, flow: u32, acks: Acks) -> bool {
        match self.conn(flow).state {
            State::Open => {
                self.flush_from_guest(ctx, flow);
                self.flush_to_guest(ctx, flow);
                self.count_bulk(flow);
                let owes = self.flush_ack(ctx, flow, acks);
                self.finish_if_done(ctx, flow);
                owes
            }
            State::TimeWait => self.flush_ack(ctx, flow, acks),
            State::Connecting { .. }
            | State::SynAckSent
            | State::Splicing { .. }
            | State::Spliced
            | State::SynSent => false,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let (wheel, waiting) = (self.wheel.next_deadline(), self.waiting.next_deadline());
        [wheel, waiting, self.floods.next_deadline()].into_iter().flatten().min()
    }

    /// Leases with payload that the host has not taken.
    pub(crate) fn leases_held(&self) -> u32 {
        self.kept.in_use()
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowInfo> + '_ {
        self.conns().map(|(_, conn)| FlowInfo {
            kind: match conn.state {
                State::Spliced | State::Splicing { .. } => FlowKind::Spliced,
                State::Connecting { .. }
                | State::SynAckSent
                | State::SynSent
                | State::Open
                | State::TimeWait => FlowKind::Tcp,
            },
            state: conn.state_name(),
            is_outbound: conn.is_outbound,
            guest: conn.guest,
            remote: Some(conn.remote),
            host: Some(conn.host),
            bytes_from_guest: conn.bytes_from_guest,
            bytes_to_guest: conn.bytes_to_guest,
            idle: self.now.since(conn.last_heard),
        })
    }

    /// Asserts the invariants; the number of sockets owned.
    pub(crate) fn check(&self, sockets: &Sockets) -> u32 {
        let mut owned = 0;
        let mut used = 0;
        let mut leases = 0;
        let mut half_open = 0;
        let mut bulk = 0;
        for (flow, conn) in self.conns() {
            used += 1;
            leases += conn.kept.leases + conn.ahead.leases;
            half_open += u32::from(is_half_open(conn.state));
            bulk += u32::from(conn.is_bulk);
            assert!(!conn.is_bulk || conn.state == State::Open, "who has ended has no share");
            if let Some(socket) = conn.socket {
                owned += 1;
                assert_eq!(sockets.owner(socket), Some(Owner::Tcp(flow)), "a flow owns its socket");
            }
            for queue in [&conn.kept, &conn.ahead] {
                let found: (u32, u32) =
                    self.kept.iter(queue).fold((0, 0), |(n, b), s| (n + 1, b + s.len));
                assert_eq!(found, (queue.leases, queue.bytes), "a queue knows its length");
            }
            assert!(conn.sending_leases <= conn.kept.leases, "what is being sent is kept");
            self.check_sequence(conn);
            match conn.state {
                State::Splicing { .. } | State::Spliced => {}
                State::Connecting { .. }
                | State::SynAckSent
                | State::SynSent
                | State::Open
                | State::TimeWait => {
                    assert_eq!(self.find(conn.guest, conn.remote), Some(flow), "it is found");
                }
            }
        }
        assert_eq!(used, self.used, "used slots are counted");
        assert_eq!(leases, self.kept.in_use(), "every kept lease is in one queue");
        assert_eq!(half_open, self.half_open, "half-open flows are counted");
        assert_eq!(bulk, self.bulk, "flows that send in bulk are counted");
        assert_eq!(self.lent.len(), sockets.reserved() as usize, "what is lent can come back");
        self.waiting.check();
        owned
    }

    fn check_sequence(&self, conn: &Conn) {
        assert!(!conn.next.is_before(conn.unacked), "what is acknowledged was sent");
        assert!(!conn.sent_max.is_before(conn.next), "sent_max is the highest");
        assert!(!conn.expected.is_before(conn.acked), "what we acknowledged was received");
        assert!(!conn.patience.is_waiting() || conn.expected != conn.acked, "something is owed");
        let flood = &conn.flood;
        assert!(flood.window().is_none() || flood.is_listed(), "a flood's interval ends");
        if conn.state == State::Open {
            assert!(!conn.edge.is_before(conn.expected), "nothing beyond the window was taken");
            assert!(conn.to_guest == ToGuest::Done || !conn.unacked.is_before(conn.queue_start));
            assert!(conn.wheel_at.is_some(), "an open flow has a timer");
        }
    }

    /// Finds a flow by the guest's view of it.
    fn find(&self, guest: SocketAddr, remote: SocketAddr) -> Option<u32> {
        let hash = self.hash(guest, remote);
        self.index.find(hash, |flow| {
            let conn = self.conn(flow);
            conn.guest == guest && conn.remote == remote
        })
    }

    fn hash(&self, guest: SocketAddr, remote: SocketAddr) -> u64 {
        let mut state = self.hasher.build_hasher();
        hash_end(guest, &mut state);
        hash_end(remote, &mut state);
        state.finish()
    }

    /// Enters a flow into the index; it is there once.
    fn enter(&mut self, flow: u32) {
        let conn = self.conn(flow);
        let hash = self.hash(conn.guest, conn.remote);
        self.index.insert(hash, flow);
    }

    /// A slot for a flow; none when the table is full.
    fn add(&mut self, mut conn: Conn) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        conn.patience = self.waiting.patience();
        self.half_open += u32::from(is_half_open(conn.state));
        self.used += 1;
        self.portions.divide(self.used);
        if let Some(flow) = self.free {
            let Slot::Free { next } = self.slots[flow as usize] else {
                unreachable!("the free list holds free slots")
            };
            self.free = next;
            self.slots[flow as usize] = Slot::Used(conn);
            return Some(flow);
        }
        self.slots.push(Slot::Used(conn));
        Some(self.slots.len() as u32 - 1)
    }

    /// Forgets a flow. Its socket has been closed and its leases returned.
    fn remove(&mut self, flow: u32) {
        self.unlink(flow);
        let next = self.free.replace(flow);
        self.slots[flow as usize] = Slot::Free { next };
    }

    /// Takes a flow out of the table, for another one.
    fn take(&mut self, flow: u32) -> Conn {
        self.unlink(flow);
        let next = self.free.replace(flow);
        let slot = core::mem::replace(&mut self.slots[flow as usize], Slot::Free { next });
        let Slot::Used(conn) = slot else { unreachable!("a flow is taken once") };
        conn
    }

    /// Nothing but its slot knows it any more.
    fn unlink(&mut self, flow: u32) {
        let (guest, remote) = (self.conn(flow).guest, self.conn(flow).remote);
        let hash = self.hash(guest, remote);
        // It is not in there if it was refused before it was one.
        self.index.remove(hash, flow);
        self.wheel.cancel(flow);
        let Slot::Used(conn) = &self.slots[flow as usize] else {
            unreachable!("a flow is removed once")
        };
        assert!(
            conn.socket.is_none() && conn.kept.leases + conn.ahead.leases == 0,
            "nothing is left behind"
        );
        self.half_open -= u32::from(is_half_open(conn.state));
        self.bulk -= u32::from(conn.is_bulk);
        self.used -= 1;
        self.portions.divide(self.used);
    }

    fn set_state(&mut self, flow: u32, state: State) {
        let before = is_half_open(self.conn(flow).state);
        self.conn_mut(flow).state = state;
        self.half_open += u32::from(is_half_open(state));
        self.half_open -= u32::from(before);
    }

    /// Has the flow looked at when the turn ends.
    fn mark(&mut self, flow: u32) {
        let Slot::Used(conn) = &mut self.slots[flow as usize] else { return };
        if !core::mem::replace(&mut conn.is_dirty, true) {
            self.dirty.push(flow);
        }
    }

    fn conns(&self) -> impl Iterator<Item = (u32, &Conn)> + '_ {
        self.slots.iter().enumerate().filter_map(|(flow, slot)| match slot {
            Slot::Used(conn) => Some((flow as u32, conn)),
            Slot::Free { .. } => None,
        })
    }

    fn conn(&self, flow: u32) -> &Conn {
        match &self.slots[flow as usize] {
            Slot::Used(conn) => conn,
            Slot::Free { .. } => unreachable!("a flow that is named is in use"),
        }
    }

    fn conn_mut(&mut self, flow: u32) -> &mut Conn {
        match &mut self.slots[flow as usize] {
            Slot::Used(conn) => conn,
            Slot::Free { .. } => unreachable!("a flow that is named is in use"),
        }
    }
}

fn is_half_open(state: State) -> bool {
    match state {
        State::Connecting { .. } | State::SynAckSent | State::Splicing { .. } | State::SynSent => {
            true
        }
        State::Spliced | State::Open | State::TimeWait => false,
    }
}

/// Whether the guest may still send on this connection.
fn guest_may_send(conn: &Conn) -> bool {
    conn.state == State::Open && conn.from_guest == FromGuest::Open
}
