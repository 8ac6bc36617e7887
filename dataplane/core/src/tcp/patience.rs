//! Acknowledgements that wait a little: an answer of the host's takes them along.
//!
//! A request that fits one segment is mostly answered at once, and the answer's frame acknowledges it. An acknowledgement of
//! its own before that costs a write to the link and the guest a packet: one of five system calls of an exchange. So a
//! single small segment waits (RFC 1122, section 4.2.3.2; a second one ends the waiting), but only where the flow's answers
//! have been quick: a guest that sends its next segment only when the last one is acknowledged (Nagle) is held up once and
//! then not for many exchanges. New flows are trusted as the flows before them have earned it.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::Tcp;
use super::conn::{Conn, FromGuest, ToGuest};
use super::seq::Seq;
use crate::context::Context;
use crate::time::Instant;

/// How long: half of what Linux waits at least (`TCP_DELACK_MIN`).
const WAIT: Duration = Duration::from_millis(20);

/// Flows that wait at once; beyond it nobody waits.
const WAITING_MAX: usize = 4_096;

/// What flows have to earn, by quick answers, before their acknowledgements wait, and what they can.
const TRUST: (i8, i8) = (2, 4);

/// What is left of it when no answer came.
const DISTRUST: i8 = -16;

/// Whether acknowledgements are worth waiting with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust(i8);

impl Trust {
    fn earned(self) -> bool {
        self.0 >= TRUST.0
    }

    fn on_quick_answer(&mut self) {
        self.0 = (self.0 + 1).min(TRUST.1);
    }

    fn on_no_answer(&mut self) {
        self.0 = DISTRUST;
    }
}

/// An acknowledgement that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    /// How long.
    until: Instant,
    /// What was received then: more of it ends the waiting.
    expected: Seq,
}

/// What a connection has for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    trust: Trust,
    /// The guest has sent something that was not answered yet, and when.
    asked: Option<Instant>,
    pub(super) owed: Option<Owed>,
    /// Its place in the shard's list.
    listed: Option<Instant>,
}

impl Patience {
    pub(super) fn is_waiting(&self) -> bool {
        self.owed.is_some()
    }

    /// Something came from the guest.
    pub(super) fn on_payload(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Something goes to the guest. Whether it is a quick answer.
    fn on_answer(&mut self, now: Instant) -> bool {
        let is_quick = self.asked.take().is_some_and(|asked| now.since(asked) < WAIT);
        if is_quick {
            self.trust.on_quick_answer();
        }
        is_quick
    }
}

/// Who waits, in the order in which it ends.
pub(super) struct Waiting {
    flows: VecDeque<(Instant, u32)>,
    /// What new flows begin with.
    trust: Trust,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self { flows: VecDeque::with_capacity(WAITING_MAX), trust: Trust::default() }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.flows.front().map(|&(at, _)| at)
    }

    /// What a new flow has.
    pub(super) fn patience(&self) -> Patience {
        Patience { trust: self.trust, ..Patience::default() }
    }
}

impl Tcp {
    /// Payload goes to the guest, and may be an answer.
    pub(super) fn on_answer(&mut self, ctx: &Context<'_>, flow: u32) {
        if self.conn_mut(flow).patience.on_answer(ctx.now) {
            self.waiting.trust.on_quick_answer();
        }
    }

    /// Whether the acknowledgement that the flow owes may wait, and does.
    pub(super) fn waits_with_ack(&mut self, ctx: &Context<'_>, flow: u32) -> bool {
        let Self { slots, waiting, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return false };
        if let Some(owed) = conn.patience.owed {
            return owed.expected == conn.expected && owed.until > ctx.now;
        }
        let is_full = waiting.flows.len() == WAITING_MAX && conn.patience.listed.is_none();
        if is_full || !conn.patience.trust.earned() || !is_small_request(conn) {
            return false;
        }
        let until = ctx.now + WAIT;
        conn.patience.owed = Some(Owed { until, expected: conn.expected });
        if conn.patience.listed.is_none() {
            conn.patience.listed = Some(until);
            waiting.flows.push_back((until, flow));
        }
        true
    }

    /// Strikes off the list who waits no more, up to the first that does: nobody else is to have a deadline.
    pub(super) fn forget_waits(&mut self) {
        let Self { slots, waiting, .. } = self;
        while let Some(&(at, flow)) = waiting.flows.front() {
            // A slot may be another's by now.
            if let super::Slot::Used(conn) = &mut slots[flow as usize]
                && conn.patience.listed == Some(at)
            {
                if conn.patience.is_waiting() {
                    return;
                }
                conn.patience.listed = None;
            }
            waiting.flows.pop_front();
        }
    }

    /// Those that have waited long enough.
    pub(super) fn end_waits(&mut self, ctx: &Context<'_>) {
        while let Some(&(at, flow)) = self.waiting.flows.front()
            && at <= ctx.now
        {
            self.waiting.flows.pop_front();
            let super::Slot::Used(conn) = &mut self.slots[flow as usize] else { continue };
            if conn.patience.listed != Some(at) {
                // The slot is another's by now.
                continue;
            }
            conn.patience.listed = None;
            let Some(owed) = conn.patience.owed else { continue };
            if owed.until > ctx.now {
                // That of another exchange.
                conn.patience.listed = Some(owed.until);
                self.waiting.flows.push_back((owed.until, flow));
                continue;
            }
            conn.patience.trust.on_no_answer();
            self.waiting.trust.on_no_answer();
            self.acknowledge_now(flow);
        }
    }
}

/// Less than a segment, and both halves are open.
fn is_small_request(conn: &Conn) -> bool {
    conn.expected.since(conn.acked) < u32::from(conn.mss)
        && conn.from_guest == FromGuest::Open
        && conn.to_guest == ToGuest::Open
        && !conn.echo_congestion
}
