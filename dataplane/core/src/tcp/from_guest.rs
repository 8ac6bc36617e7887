//! The half from the guest: segments are put in order, kept, sent to the host socket, acknowledged.

use super::conn::{FromGuest, State};
use super::handshake::{Handshake, emit};
use super::portions::{OWN_MAX, Portion};
use super::segment::{ECE, Segment, SynOptions};
use super::seq::Seq;
use super::{Acks, Tcp, guest_may_send};
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{LeaseId, Op, RESERVE_BYTES_MAX, Span};

/// Spans in one gather write (`UIO_MAXIOV` is 1,024; more than this brings nothing).
const SPANS_PER_SEND: usize = 64;
/// Into how many shares the free leases are divided: as many as there are flows, within these bounds. Most flows are idle
/// most of the time.
const SHARES: (u32, u32) = (4, 64);
/// What a lease is worth at least: smaller segments share one.
const LEASE_BYTES_MIN: u32 = RESERVE_BYTES_MAX as u32 / 2;
/// Frames kept ahead of a gap, per flow: many, because what is dropped behind a gap has to be sent again, and, from a
/// guest without SACK, waits for a time-out of its own.
const LEASES_AHEAD_MAX: u32 = 256;

/// What is left of a segment's payload after everything outside of the window has been cut off.
struct Accepted {
    span: Span,
    fin: bool,
}

impl Tcp {
    /// A segment of a flow. Whether its lease was kept.
    pub(super) fn on_flow_segment(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
        options: SynOptions,
        lease: LeaseId,
    ) -> bool {
        match self.conn(flow).state {
            State::Open => {}
            State::TimeWait => {
                self.on_lingering_segment(ctx, flow, segment);
                return false;
            }
            State::Connecting { .. }
            | State::SynAckSent
            | State::Splicing { .. }
            | State::Spliced
            | State::SynSent => match self.on_handshake_segment(ctx, flow, segment, options) {
                Handshake::Waiting => return false,
                Handshake::Established => {}
            },
        }
        self.on_open_segment(ctx, flow, segment, lease)
    }

    /// RFC 9293, section 3.10.7.4, in its order.
    fn on_open_segment(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
        lease: LeaseId,
    ) -> bool {
        if !self.is_in_window(flow, segment) {
            // An old or impossible segment: the guest is told where we are.
            if !segment.rst {
                ctx.count(Counter::TcpUnacceptable);
                self.acknowledge_now(flow);
            }
            // A keep-alive or window probe carries a valid acknowledgement all the same.
            if segment.payload_len <= 1 && !segment.syn && !segment.rst {
                self.conn_mut(flow).last_heard = ctx.now;
                self.on_acknowledgement(ctx, flow, segment);
            }
            return false;
        }
        if segment.rst {
            self.on_guest_reset(ctx, flow, segment);
            return false;
        }
        if segment.syn {
            // RFC 5961, section 4: a SYN in the window gets a challenge.
            ctx.count(Counter::TcpUnacceptable);
            self.acknowledge_now(flow);
            return false;
        }
        if !self.on_acknowledgement(ctx, flow, segment) {
            return false;
        }
        self.conn_mut(flow).last_heard = ctx.now;
        self.note_congestion(flow, segment);
        segment.len() > 0 && self.on_payload(ctx, flow, segment, lease)
    }

    /// The window test of RFC 9293, section 3.4. Segments that reach over the left edge are in it.
    fn is_in_window(&self, flow: u32, segment: &Segment) -> bool {
        let conn = self.conn(flow);
        let end = segment.seq + segment.len();
        if segment.len() == 0 {
            let is_at_edge = segment.seq == conn.expected;
            return is_at_edge
                || (!segment.seq.is_before(conn.expected) && segment.seq.is_before(conn.edge));
        }
        let begins_before_edge = segment.seq.is_before(conn.edge) || segment.seq == conn.expected;
        begins_before_edge && end.is_after(conn.expected)
    }

    /// RFC 3168: marks are echoed until the guest has reacted.
    fn note_congestion(&mut self, flow: u32, segment: &Segment) {
        let conn = self.conn_mut(flow);
        if !conn.is_ecn {
            return;
        }
        if segment.cwr {
            conn.echo_congestion = false;
        }
        if segment.is_marked {
            conn.echo_congestion = true;
        }
    }

    /// Payload or FIN, or both. Whether the lease was kept.
    fn on_payload(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
        lease: LeaseId,
    ) -> bool {
        if !guest_may_send(self.conn(flow)) {
            // Beyond its own FIN.
            ctx.count(Counter::TcpUnacceptable);
            self.acknowledge_now(flow);
            return false;
        }
        if segment.seq.is_after(self.conn(flow).expected) {
            return self.on_ahead(ctx, flow, segment, lease);
        }
        let Some(accepted) = self.cut_to_window(flow, segment, lease) else {
            self.acknowledge_now(flow);
            return false;
        };
        let len = accepted.span.len;
        let mut keeps_lease = len > 0;
        if keeps_lease && self.joins_last(ctx, flow, accepted.span) {
            keeps_lease = false;
        } else if keeps_lease {
            if self.keeps_too_much(flow) {
                ctx.count(Counter::TcpKeptTooMuch);
                self.acknowledge_now(flow);
                return false;
            }
            let Self { slots, kept, .. } = &mut *self;
            let super::Slot::Used(conn) = &mut slots[flow as usize] else {
                unreachable!("the flow is in use")
            };
            kept.push(&mut conn.kept, accepted.span);
        }
        if len > 0 {
            let conn = self.conn_mut(flow);
            conn.expected = conn.expected + len;
            conn.bytes_from_guest += u64::from(len);
            conn.words_at = ctx.now;
            conn.flood.on_payload(len);
            conn.frame_bytes = smoothed(conn.frame_bytes, len.max(LEASE_BYTES_MIN));
            self.pull_ahead(ctx, flow);
        }
        let conn = self.conn_mut(flow);
        conn.patience.on_asked(ctx.now);
        conn.sacks.forget_before(conn.expected);
        if accepted.fin {
            conn.expected = conn.expected + 1;
            conn.edge = conn.edge.latest(conn.expected);
            conn.from_guest = FromGuest::Finishing;
            conn.ack_now |= conn.flood.window().is_some();
        }
        self.mark(flow);
        keeps_lease
    }

    /// Copies a small segment behind the one before it, if that is still kept and nobody reads it: so small segments take
    /// a lease for many of them and not one each, however long the host is slow.
    fn joins_last(&mut self, ctx: &mut Context<'_>, flow: u32, span: Span) -> bool {
        let Self { slots, kept, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return false };
        let room = kept.lengthen(&mut conn.kept, conn.sending_leases, span.len);
        if let Some((to, at)) = room {
            ctx.op(Op::Append { span, to, at });
        }
        room.is_some()
    }

    /// A segment behind a gap: kept for later if there is room. The guest is told at once, by each such segment, where
    /// we are and what came ahead: three of these make it send what is missing (RFC 5681, section 3.2; RFC 6675). Its
    /// FIN will come again.
    fn on_ahead(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
        lease: LeaseId,
    ) -> bool {
        ctx.count(Counter::TcpOutOfOrder);
        // Half of the buffers stay with segments in order, or the flows' gaps would keep each other open.
        let (kept, ahead) = (self.conn(flow).kept, self.conn(flow).ahead);
        let keeps = Portion { leases: kept.leases + ahead.leases, bytes: kept.bytes + ahead.bytes };
        let keeps_too_much = keeps.fills(self.portions.half().without(self.in_use()));
        let Self { slots, kept, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return false };
        let room = conn.edge.since(segment.seq);
        let len = segment.payload_len.min(room);
        let span = Span { lease, start: segment.payload_start, len };
        let may_keep = len > 0 && conn.ahead.leases < LEASES_AHEAD_MAX && !keeps_too_much;
        let inserted =
            if may_keep { kept.insert_ahead(&mut conn.ahead, segment.seq, span) } else { None };
        if let Some((start, end)) = inserted {
            conn.sacks.add(start, end);
        }
        // The same edge again: a change of the window would not count as a duplicate.
        let field = conn.advertise(0);
        let header = conn.ack_header(ctx.config, 0, field);
        let mss = conn.mss;
        emit(ctx, header, mss);
        inserted.is_some()
    }

    /// The gap before what came ahead may be closed now.
    fn pull_ahead(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let Self { slots, kept, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return };
        while let Some(span) = kept.pull_ahead(&mut conn.ahead, conn.expected) {
            if span.len == 0 {
                ctx.op(Op::Release { lease: span.lease });
                continue;
            }
            kept.push(&mut conn.kept, span);
            conn.expected = conn.expected + span.len;
            conn.bytes_from_guest += u64::from(span.len);
            // RFC 5681: closing a gap is acknowledged at once.
            conn.ack_now = true;
        }
    }

    /// Cuts off what was received before and what is beyond the window; none if that leaves nothing.
    fn cut_to_window(&self, flow: u32, segment: &Segment, lease: LeaseId) -> Option<Accepted> {
        let conn = self.conn(flow);
        let known = conn.expected.since(segment.seq).min(segment.payload_len);
        let window = conn.edge.since(conn.expected);
        let fresh = segment.payload_len - known;
        let len = fresh.min(window);
        let start = segment.payload_start + known;
        let fin = segment.fin && len == fresh;
        (len > 0 || fin).then_some(Accepted { span: Span { lease, start, len }, fin })
    }

    /// What flows keep together, in order and ahead of gaps.
    fn in_use(&self) -> Portion {
        Portion { leases: self.kept.in_use(), bytes: self.kept.bytes() }
    }

    /// What is free and nobody's own.
    fn shared(&self) -> Portion {
        self.portions.all.without(self.in_use()).without(self.portions.owned)
    }

    /// Whether a flow may keep no more in order: what lies ahead of a gap does not count, as nothing but such a segment can
    /// close the gap. Of what is shared it may have as much as is still free, so that one slow host cannot take all of it.
    fn keeps_too_much(&self, flow: u32) -> bool {
        let conn = self.conn(flow);
        let keeps = Portion { leases: conn.kept.leases, bytes: conn.kept.bytes };
        // A host that has taken all so far will take this, too.
        let own = if conn.sending_leases > 0 { self.portions.own } else { OWN_MAX };
        self.in_use().fills(self.portions.all) || keeps.fills(own) && keeps.fills(self.shared())
    }

    /// The window that a flow is given now.
    fn window(&self, ctx: &Context<'_>, flow: u32) -> u32 {
        let share = self.share(ctx, flow);
        self.conn(flow).flood.window().map_or(share, |window| window.min(share))
    }

    /// The window that a flow may have now, and no more than its field can say. Leases are few, so the share of those that
    /// are free counts with what one of this guest's holds: what is promised beyond that would have to be dropped while the
    /// host is slow, at the window's end, where only a time-out finds a loss.
    pub(super) fn share(&self, ctx: &Context<'_>, flow: u32) -> u32 {
        let (own, shared) = (self.portions.own, self.shared());
        let frame_bytes = self.conn(flow).frame_bytes;
        let shares = self.used.clamp(SHARES.0, SHARES.1);
        let share = (shared.leases / shares).saturating_mul(frame_bytes).min(shared.bytes / shares);
        let own = own.bytes.min(own.leases.saturating_mul(frame_bytes)).max(ctx.config.mtu.into());
        let field_max = u32::from(u16::MAX) << self.conn(flow).our_scale.unwrap_or(0);
        share.clamp(own, ctx.config.limits.window_bytes.max(own)).min(field_max)
    }

    /// End of turn: what is kept goes to the host socket; behind the last byte, the FIN.
    pub(super) fn flush_from_guest(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let Self { slots, kept, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return };
        let Some(socket) = conn.socket else { return };
        if conn.sending_leases > 0 {
            return;
        }
        if conn.kept.bytes > 0 {
            let run = conn.kept.leases.min(SPANS_PER_SEND as u32);
            for (n, span) in kept.iter(&conn.kept).take(run as usize).enumerate() {
                ctx.op(Op::Send { socket, span, more: n as u32 + 1 < run });
            }
            conn.sending_leases = run;
        } else if conn.from_guest == FromGuest::Finishing {
            conn.from_guest = FromGuest::Done;
            ctx.op(Op::Shutdown { socket });
        }
    }

    /// The host socket has taken bytes.
    pub(super) fn on_sent(&mut self, ctx: &mut Context<'_>, flow: u32, bytes: u32) {
        let Self { slots, kept, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return };
        conn.sending_leases = 0;
        kept.take(&mut conn.kept, bytes, |lease| ctx.op(Op::Release { lease }));
        self.mark(flow);
    }

    /// Acknowledges what came in, or opens the window again. Whether that is still owed.
    pub(super) fn flush_ack(&mut self, ctx: &mut Context<'_>, flow: u32, acks: Acks) -> bool {
        let window = self.window(ctx, flow);
        let conn = self.conn_mut(flow);
        let taken = conn.expected - conn.kept.bytes;
        let edge = taken + window;
        // RFC 9293, section 3.8.6.2.2: the window opens in large steps, or out of nothing.
        let opened = if edge.is_after(conn.edge) { edge.since(conn.edge) } else { 0 };
        let left = conn.edge.since(conn.expected);
        let mss = u32::from(conn.mss);
        // The small window of our SYN grows with the first acknowledgement; that needs no frame of its own.
        let opens = guest_may_send(conn)
            && conn.bytes_from_guest > 0
            && (opened >= window / 2 || (opened >= mss && left < 2 * mss));
        if !conn.ack_now && conn.acked == conn.expected && !opens {
            return false;
        }
        if conn.peeking.is_some() && conn.peeking_since == ctx.now && !opens {
            // What the peek brings takes it along; if it brings nothing, its end comes here again. One that has been
            // under way for longer waits for a lease, perhaps in vain.
            return false;
        }
        let may_wait = !conn.ack_now;
        if may_wait && acks == Acks::AtTheEnd {
            return true;
        }
        if may_wait && (self.waits_in_flood(ctx, flow) || !opens && self.waits_with_ack(ctx, flow))
        {
            return false;
        }
        let conn = self.conn_mut(flow);
        conn.ack_now = false;
        let echo = if conn.echo_congestion { ECE } else { 0 };
        let field = conn.advertise(window);
        let header = conn.ack_header(ctx.config, echo, field);
        let mss = conn.mss;
        emit(ctx, header, mss);
        false
    }

    /// The window field of a segment that carries something else.
    pub(super) fn advertised(&mut self, ctx: &Context<'_>, flow: u32) -> u16 {
        let window = self.window(ctx, flow);
        let conn = self.conn_mut(flow);
        conn.ack_now = false;
        conn.advertise(window)
    }

    /// Owes the guest an acknowledgement, once, at the end of the turn.
    pub(super) fn acknowledge_now(&mut self, flow: u32) {
        self.conn_mut(flow).ack_now = true;
        self.mark(flow);
    }

    /// RFC 5961, section 3: a reset counts if it is exactly where we are; in the window it is challenged.
    ///
    /// Once both FINs are sent and all data is acknowledged, a guest may have forgotten the connection (its TIME-WAIT is
    /// over, our FIN's acknowledgement was lost) and answers any late segment with a reset. What it sent before
    /// may still be on its way to the host, and goes there.
    fn on_guest_reset(&mut self, ctx: &mut Context<'_>, flow: u32, segment: &Segment) {
        let conn = self.conn(flow);
        if conn.from_guest != FromGuest::Open && conn.is_all_but_fin_acked() {
            let everything = conn.sent_max;
            ctx.count(Counter::TcpResetsFromGuest);
            return self.on_progress(ctx, flow, everything);
        }
        if segment.seq == self.conn(flow).expected {
            ctx.count(Counter::TcpResetsFromGuest);
            return self.close(ctx, flow, crate::op::CloseHow::Reset);
        }
        ctx.count(Counter::TcpUnacceptable);
        self.acknowledge_now(flow);
    }
}

/// A moving average that follows small frames at once and large ones slowly: where both come, the small ones take the
/// leases.
fn smoothed(average: u32, newest: u32) -> u32 {
    if newest < average {
        average - (average - newest) / 4
    } else {
        average + (newest - average) / 32
    }
}

/// The first sequence number that was not received, for an answer to a segment that belongs to nothing.
pub(super) fn end_of(segment: &Segment) -> Seq {
    segment.seq + segment.len()
}
