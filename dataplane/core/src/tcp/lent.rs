//! Flows that are lent: who has much to do gives some to a shard that has not, and gets them back when they are quiet.
//!
//! A flow that sends in bulk to the guest keeps nothing here: what it sends waits in the host's socket, and what the guest
//! says are acknowledgements. So all of it is its [`Conn`], which can go to another shard between two turns, with its
//! socket. Its home remembers where it is: what comes there of it is handed on, and its place in the tables is kept.

use core::net::SocketAddr;
use core::time::Duration;

use alloc::boxed::Box;

use super::Tcp;
use super::conn::{Conn, FromGuest, State, ToGuest};
use crate::config::{LENT_MAX, ShardId};
use crate::op::SocketId;
use crate::ownership::Ownership;
use crate::sockets::{Owner, Sockets};
use crate::time::Instant;

/// A flow that was not in bulk for so long is quiet, and so is one whose guest has sent something since.
const QUIET: Duration = Duration::from_millis(100);

/// A flow on its way from one shard to another.
pub struct LentFlow(Box<Conn>);

impl core::fmt::Debug for LentFlow {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} to {}", self.0.guest, self.0.remote)
    }
}

impl Tcp {
    /// The shard that a segment is for, if that is another one.
    pub(crate) fn elsewhere(
        &self,
        ownership: &Ownership,
        guest: SocketAddr,
        remote: SocketAddr,
    ) -> Option<ShardId> {
        match ownership.elsewhere(ownership.of_connection(guest, remote)) {
            None => self.lent.get(&(guest, remote)).copied(),
            // Its home still sends here what comes of a flow that has just ended.
            Some(_)
                if ownership.lends()
                    && (self.find(guest, remote).is_some()
                        || self.ended.contains(&(guest, remote))) =>
            {
                None
            }
            home => home,
        }
    }

    /// Flows that have been sending in bulk to the guest a moment ago, while that sent nothing, and could go elsewhere now.
    pub(crate) fn in_bulk(&self, now: Instant) -> impl Iterator<Item = SocketId> + '_ {
        self.portable().filter(move |conn| !is_quiet(conn, now)).filter_map(|conn| conn.socket)
    }

    /// Those that have not, and could go home.
    pub(crate) fn quiet(&self, now: Instant) -> impl Iterator<Item = SocketId> + '_ {
        self.portable().filter(move |conn| is_quiet(conn, now)).filter_map(|conn| conn.socket)
    }

    fn portable(&self) -> impl Iterator<Item = &Conn> + '_ {
        self.conns().map(|(_, conn)| conn).filter(|conn| is_portable(conn))
    }

    /// How many flows send in bulk to the guest.
    pub(crate) fn bulk(&self) -> usize {
        self.bulk as usize
    }

    /// How many flows of this shard are elsewhere.
    pub(crate) fn lent(&self) -> usize {
        self.lent.len()
    }

    /// Takes a flow out, for another shard. None: it stays.
    pub(crate) fn lend(
        &mut self,
        (ownership, sockets): (&Ownership, &mut Sockets),
        socket: SocketId,
        to: ShardId,
    ) -> Option<LentFlow> {
        let Some(Owner::Tcp(flow)) = sockets.owner(socket) else { return None };
        let conn = self.conn(flow);
        let (guest, remote) = (conn.guest, conn.remote);
        let is_home = ownership.elsewhere(ownership.of_connection(guest, remote)).is_none();
        if !is_portable(conn) || (is_home && self.lent.len() >= LENT_MAX as usize) {
            return None;
        }
        sockets.release(socket);
        self.conn_mut(flow).socket = None;
        let mut conn = self.take(flow);
        conn.wheel_at = None;
        (conn.is_dirty, conn.is_owing, conn.is_bulk) = (false, false, false);
        if is_home {
            self.lent.insert((guest, remote), to);
            sockets.reserve(true);
        }
        Some(LentFlow(Box::new(conn)))
    }

    /// Takes a flow of another shard's in, or one of its own back. What it has in its socket is looked at when the turn ends.
    pub(crate) fn take_in(
        &mut self,
        now: Instant,
        sockets: &mut Sockets,
        flow: LentFlow,
    ) -> SocketId {
        self.now = now;
        let conn = *flow.0;
        self.forget_lent(sockets, conn.guest, conn.remote);
        // What came due on the way is due now.
        let (timer, deadline) = (conn.timer, conn.deadline.max(now));
        // There is room: a home keeps it, and nobody is lent more than he has.
        let flow = self.add(conn).expect("room for a flow");
        let socket = sockets.claim(Owner::Tcp(flow)).expect("room for its socket");
        let conn = self.conn_mut(flow);
        conn.socket = Some(socket);
        conn.is_readable = true;
        self.enter(flow);
        self.set_timer(flow, timer, deadline);
        self.mark(flow);
        socket
    }

    /// A flow that was lent has ended, or is back.
    pub(crate) fn forget_lent(
        &mut self,
        sockets: &mut Sockets,
        guest: SocketAddr,
        remote: SocketAddr,
    ) {
        if self.lent.remove(&(guest, remote)).is_some() {
            sockets.reserve(false);
        }
    }

    /// A flow of another shard's that has ended here since this was last asked.
    pub(crate) fn ended(&mut self) -> Option<(SocketAddr, SocketAddr)> {
        self.ended.pop()
    }

    /// A flow has ended: its home, if that is elsewhere, is to be told.
    pub(super) fn note_end(&mut self, ownership: &Ownership, flow: u32) {
        let (guest, remote) = (self.conn(flow).guest, self.conn(flow).remote);
        if ownership.lends()
            && ownership.elsewhere(ownership.of_connection(guest, remote)).is_some()
        {
            self.ended.push((guest, remote));
        }
    }

    /// Places of the table that are kept for flows elsewhere.
    pub(super) fn is_full(&self) -> bool {
        self.used as usize + self.lent.len() >= self.slots.capacity()
    }
}

/// Whether a flow is nothing but its [`Conn`] and its socket.
fn is_portable(conn: &Conn) -> bool {
    conn.state == State::Open
        && conn.from_guest == FromGuest::Open
        && conn.to_guest == ToGuest::Open
        && conn.kept.leases + conn.ahead.leases + conn.sending_leases == 0
        && conn.peeking.is_none()
        && conn.expected == conn.acked
        && !conn.ack_now
        && !conn.patience.is_waiting()
        && !conn.flood.is_listed()
}

/// Whether it is not worth lending: what the guest sends would be copied to where it is lent.
fn is_quiet(conn: &Conn, now: Instant) -> bool {
    now.since(conn.bulk_at) >= QUIET || now.since(conn.words_at) < QUIET
}
