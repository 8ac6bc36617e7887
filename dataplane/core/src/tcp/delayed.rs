//! Acknowledgements that may wait for something to go with.
//!
//! A small request is mostly answered at once, and the answer acknowledges it: a frame of its own would be read by the
//! guest's kernel for nothing. So a single small segment may stay unacknowledged for [`DELAY`] (RFC 1122, section
//! 4.2.3.2, which allows half a second). A second segment, a full one, a FIN, a gap or a mark of congestion is
//! acknowledged at the end of its turn, so that neither the guest's congestion window nor its loss recovery ever waits.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::conn::{Conn, State, ToGuest};
use super::{Slot, Tcp};
use crate::context::Context;
use crate::time::Instant;

/// How long. A guest that holds its next small write back until then (RFC 896) waits for no longer than this, and the
/// kernel's own receivers take 40 ms.
const DELAY: Duration = Duration::from_micros(500);

/// Of the window, what must be left for the guest not to need an acknowledgement.
const WINDOW_LEFT_MIN: u32 = 16 << 10;

/// Flows that owe an acknowledgement, in the order in which they are due. Each is in here once at most, and may have
/// paid meanwhile.
pub(super) struct DelayedAcks {
    queue: VecDeque<(Instant, u32)>,
}

impl DelayedAcks {
    pub(super) fn new(flows: u32) -> Self {
        Self { queue: VecDeque::with_capacity(flows as usize) }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.front().map(|&(due, _)| due)
    }
}

impl Conn {
    /// Whether the acknowledgement that is owed may wait.
    pub(super) fn may_acknowledge_later(&self) -> bool {
        let owed = self.expected.since(self.acked);
        let left =
            if self.edge.is_after(self.expected) { self.edge.since(self.expected) } else { 0 };
        self.state == State::Open
            && !self.ack_now
            && !self.echo_congestion
            && self.to_guest == ToGuest::Open
            && self.frames_owed == 1
            && (1..u32::from(self.mss)).contains(&owed)
            && self.ahead.leases == 0
            && left >= WINDOW_LEFT_MIN
    }
}

impl Tcp {
    /// The flow's acknowledgement waits.
    pub(super) fn acknowledge_later(&mut self, ctx: &Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        if !core::mem::replace(&mut conn.is_ack_delayed, true) {
            self.delayed_acks.queue.push_back((ctx.now + DELAY, flow));
        }
    }

    /// Those that have waited long enough are acknowledged at the end of this turn.
    pub(super) fn on_delayed_acks(&mut self, now: Instant) {
        while let Some(&(due, flow)) = self.delayed_acks.queue.front()
            && due <= now
        {
            self.delayed_acks.queue.pop_front();
            if self.owes_delayed_ack(flow) {
                self.acknowledge_now(flow);
            }
            self.forget_delayed_ack(flow);
        }
    }

    /// Forgets the first ones that have gone with something else, so that nobody is woken for them.
    pub(super) fn drop_paid_acks(&mut self) {
        while let Some(&(_, flow)) = self.delayed_acks.queue.front()
            && !self.owes_delayed_ack(flow)
        {
            self.delayed_acks.queue.pop_front();
            self.forget_delayed_ack(flow);
        }
    }

    /// A slot that was freed and used again meanwhile owes what its new flow owes, or nothing.
    fn owes_delayed_ack(&self, flow: u32) -> bool {
        match &self.slots[flow as usize] {
            Slot::Used(conn) => conn.is_ack_delayed && conn.acked != conn.expected,
            Slot::Free { .. } => false,
        }
    }

    fn forget_delayed_ack(&mut self, flow: u32) {
        if let Slot::Used(conn) = &mut self.slots[flow as usize] {
            conn.is_ack_delayed = false;
        }
    }
}
