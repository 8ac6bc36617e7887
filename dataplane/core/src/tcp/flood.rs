//! Floods of small segments: acknowledged at intervals, and for the time being with a small window.
//!
//! A guest that writes a few bytes at a time, without Nagle, sends each write as a segment of its own as long as it may send,
//! and each costs the guest, the link and us a microsecond or more. While it may not send, its kernel joins what is
//! written. So a flow that floods us is acknowledged at intervals only, and its window is what it may send in
//! one: smaller as long as segments are small, larger when they have become large. It settles where the guest has always a little
//! more to send than it may; where the host's program is slower than that, its own window takes over, and the flood is over.
//!
//! A flow that sends less pays nothing: it has to bring 200,000 segments a second, with which we are busy for a
//! quarter of the time. Nothing is held back but acknowledgements, and those for half a millisecond.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::conn::{Conn, FromGuest, State};
use super::{Slot, Tcp};
use crate::context::Context;
use crate::counters::Counter;
use crate::time::Instant;

/// Between two acknowledgements: the guest's kernel joins what is written meanwhile.
const INTERVAL: Duration = Duration::from_micros(500);

/// After so many segments it is looked at whether they are a flood.
const SEGMENTS: u32 = 256;

/// They are, if they came in less than this each.
const TIME_EACH: Duration = Duration::from_micros(5);

/// Their mean size below which they are small, and from which on they are large.
const SMALL: u32 = 512;
const LARGE: u32 = 1024;

/// Segments of an interval that say something about the guest.
const SEGMENTS_MIN: u32 = 4;

/// The window that a flood begins with, and the smallest: 8 MB/s.
const WINDOW_FIRST: u32 = 8 << 10;
const WINDOW_MIN: u32 = 4 << 10;

/// Floods at once; beyond it they are let through.
const FLOODS_MAX: usize = 256;

/// What a connection has for it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flood {
    /// Segments with payload, and their bytes, since then.
    segments: u32,
    bytes: u32,
    since: Option<Instant>,
    /// The window, while there is a flood.
    window: Option<u32>,
    /// The interval has ended: the acknowledgement may go.
    is_due: bool,
    /// Its place in the shard's list.
    listed: Option<Instant>,
}

impl Flood {
    /// A segment in order.
    pub(super) fn on_payload(&mut self, len: u32) {
        self.segments += 1;
        self.bytes = self.bytes.saturating_add(len);
    }

    /// The window of a flood.
    pub(super) fn window(&self) -> Option<u32> {
        self.window
    }

    /// Whether somebody will look at it again.
    pub(super) fn is_listed(&self) -> bool {
        self.listed.is_some()
    }

    fn begin_interval(&mut self, now: Instant) {
        (self.segments, self.bytes, self.since) = (0, 0, Some(now));
    }

    /// Whether the last segments were a flood; none if there were too few to say.
    fn is_flood(&self, now: Instant) -> Option<bool> {
        let took = now.since(self.since.unwrap_or(Instant::ZERO));
        let is_quick = took < TIME_EACH * self.segments;
        (self.segments >= SEGMENTS).then_some(is_quick && self.mean() < SMALL)
    }

    fn mean(&self) -> u32 {
        self.bytes / self.segments.max(1)
    }

    /// The window of the next interval. `promised`: what the guest may send anyhow.
    fn adapt(&self, window: u32, promised: u32) -> u32 {
        if self.segments < SEGMENTS_MIN {
            // Done, or its next segment is larger than the window, which would wait for a probe.
            window * 2
        } else if self.mean() >= LARGE {
            window + window / 4
        } else if self.mean() < SMALL && promised <= window {
            (window - window / 4).max(WINDOW_MIN)
        } else {
            window
        }
    }
}

/// Who floods, in the order in which the intervals end.
pub(super) struct Floods {
    flows: VecDeque<(Instant, u32)>,
}

impl Floods {
    pub(super) fn new() -> Self {
        Self { flows: VecDeque::with_capacity(FLOODS_MAX) }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.flows.front().map(|&(at, _)| at)
    }

    fn list(&mut self, conn: &mut Conn, flow: u32, now: Instant) {
        let at = now + INTERVAL;
        conn.flood.listed = Some(at);
        self.flows.push_back((at, flow));
    }
}

impl Tcp {
    /// Whether the acknowledgement that the flow owes waits for the end of an interval.
    pub(super) fn waits_in_flood(&mut self, ctx: &mut Context<'_>, flow: u32) -> bool {
        let Self { slots, floods, .. } = self;
        let Slot::Used(conn) = &mut slots[flow as usize] else { return false };
        if conn.flood.window.is_some() {
            return !core::mem::take(&mut conn.flood.is_due);
        }
        let Some(is_flood) = conn.flood.is_flood(ctx.now) else { return false };
        conn.flood.begin_interval(ctx.now);
        let has_room = conn.flood.is_listed() || floods.flows.len() < FLOODS_MAX;
        if is_flood && has_room && is_open(conn) {
            ctx.count(Counter::TcpFloods);
            conn.flood.window = Some(WINDOW_FIRST);
            if !conn.flood.is_listed() {
                floods.list(conn, flow, ctx.now);
            }
        }
        false
    }

    /// Intervals that have ended.
    pub(super) fn end_intervals(&mut self, ctx: &Context<'_>) {
        while let Some(&(at, flow)) = self.floods.flows.front()
            && at <= ctx.now
        {
            self.floods.flows.pop_front();
            match &self.slots[flow as usize] {
                Slot::Used(conn) if conn.flood.listed == Some(at) => {}
                // The slot is another's by now, or nobody's.
                Slot::Used(_) | Slot::Free { .. } => continue,
            }
            let share = self.share(ctx, flow);
            let Self { slots, floods, .. } = self;
            let Slot::Used(conn) = &mut slots[flow as usize] else { continue };
            conn.flood.listed = None;
            let Some(window) = conn.flood.window else { continue };
            let promised = conn.edge.since(conn.expected);
            let window = conn.flood.adapt(window, promised);
            conn.flood.begin_interval(ctx.now);
            conn.flood.window = (is_open(conn) && window < share).then_some(window);
            conn.flood.is_due = conn.flood.window.is_some();
            if conn.flood.is_due {
                floods.list(conn, flow, ctx.now);
            }
            self.mark(flow);
        }
    }
}

/// Whether more can come.
fn is_open(conn: &Conn) -> bool {
    conn.state == State::Open && conn.from_guest == FromGuest::Open
}
