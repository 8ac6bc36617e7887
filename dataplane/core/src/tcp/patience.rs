//! Acknowledgements that wait a little: an answer of the host's takes them along.
//!
//! A request that fits one segment is mostly answered at once, and the answer's frame acknowledges it. An acknowledgement of
//! its own before that costs a write to the link and the guest a packet: one of five system calls of an exchange. So a
//! single small segment waits (RFC 1122, section 4.2.3.2; a second one ends the waiting), but only where the flow's answers
//! have been quick: a guest that sends its next segment only when the last one is acknowledged (Nagle) is held up once and
//! then not for many exchanges. New flows are trusted as the flows before them have earned it.
//!
//! The end of the guest's half is such a request, too, and the end of the host's half its answer: a client that
//! closes when its server has is as quick. That happens once in a flow, so all of a shard's flows earn it together.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::Tcp;
use super::conn::{Conn, FromGuest, ToGuest};
use super::seq::Seq;
use crate::context::Context;
use crate::time::Instant;

/// How long: half of what Linux waits at least (`TCP_DELACK_MIN`).
const WAIT: Duration = Duration::from_millis(20);

/// Waits that are listed at once; beyond it nobody waits.
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
}

impl Patience {
    pub(super) fn is_waiting(&self) -> bool {
        self.owed.is_some()
    }

    fn waits_until(&self, at: Instant) -> bool {
        self.owed.is_some_and(|owed| owed.until == at)
    }

    /// Something new came from the guest.
    pub(super) fn on_asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Something goes to the guest. Whether it is a quick answer.
    fn on_answer(&mut self, now: Instant) -> bool {
        self.asked.take().is_some_and(|asked| now.since(asked) < WAIT)
    }
}

/// Who waits, in the order in which it ends: that in which it has begun. Who has been answered stays in the list until
/// it is at the front.
pub(super) struct Waiting {
    flows: VecDeque<(Instant, u32)>,
    /// What new flows begin with.
    trust: Trust,
    /// What the ends of all flows have earned.
    at_end: Trust,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            flows: VecDeque::with_capacity(WAITING_MAX),
            trust: Trust::default(),
            at_end: Trust::default(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.flows.front().map(|&(at, _)| at)
    }

    pub(super) fn check(&self) {
        assert!(self.flows.iter().is_sorted_by_key(|&(at, _)| at), "the first is the next");
    }

    /// What a new flow has.
    pub(super) fn patience(&self) -> Patience {
        Patience { trust: self.trust, ..Patience::default() }
    }
}

impl Tcp {
    /// Payload or a FIN goes to the guest, and may be an answer.
    pub(super) fn on_answer(&mut self, ctx: &Context<'_>, flow: u32) {
        let Self { slots, waiting, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return };
        if !conn.patience.on_answer(ctx.now) {
            return;
        }
        conn.patience.trust.on_quick_answer();
        waiting.trust.on_quick_answer();
        if conn.from_guest != FromGuest::Open {
            waiting.at_end.on_quick_answer();
        }
    }

    /// Whether the acknowledgement that the flow owes may wait, and does.
    pub(super) fn waits_with_ack(&mut self, ctx: &Context<'_>, flow: u32) -> bool {
        let Self { slots, waiting, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return false };
        let (trust, fin) = match conn.from_guest {
            FromGuest::Open => (conn.patience.trust, 0),
            FromGuest::Finishing | FromGuest::Done => (waiting.at_end, 1),
        };
        let may_wait = trust.earned() && is_small_request(conn);
        if let Some(owed) = &mut conn.patience.owed {
            if may_wait && owed.expected + fin == conn.expected {
                // The end of what is waited with already.
                owed.expected = conn.expected;
            }
            return owed.expected == conn.expected && owed.until > ctx.now;
        }
        if waiting.flows.len() == WAITING_MAX || !may_wait {
            return false;
        }
        let until = ctx.now + WAIT;
        conn.patience.owed = Some(Owed { until, expected: conn.expected });
        waiting.flows.push_back((until, flow));
        true
    }

    /// Strikes off the list who waits no more, up to the first that does: nobody else is to have a deadline.
    pub(super) fn forget_waits(&mut self) {
        let Self { slots, waiting, .. } = self;
        while let Some(&(at, flow)) = waiting.flows.front() {
            // A slot may be another's by now.
            if let super::Slot::Used(conn) = &slots[flow as usize]
                && conn.patience.waits_until(at)
            {
                return;
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
            if !conn.patience.waits_until(at) {
                continue;
            }
            if conn.from_guest == FromGuest::Open {
                conn.patience.trust.on_no_answer();
                self.waiting.trust.on_no_answer();
            } else {
                self.waiting.at_end.on_no_answer();
            }
            self.acknowledge_now(flow);
        }
    }
}

/// Less than a segment, and the half to the guest is open.
fn is_small_request(conn: &Conn) -> bool {
    conn.expected.since(conn.acked) < u32::from(conn.mss)
        && conn.to_guest == ToGuest::Open
        && !conn.echo_congestion
}
