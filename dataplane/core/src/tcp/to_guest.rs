//! The half to the guest: bytes are peeked at, sent within the guest's window, consumed when acknowledged.

use core::time::Duration;

use super::Tcp;
use super::conn::{State, Timer, ToGuest};
use super::handshake::emit;
use super::segment::{ACK, ECE, FIN, PSH, Segment, TCP_BYTES};
use super::seq::Seq;
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{HEADROOM, LeaseId, Op, PeekedThen, Span};
use crate::packet::build::ip_headers_bytes;

/// Super-frames asked for by one `Peek`.
const CHUNKS_PER_PEEK: u32 = 4;
/// Duplicate acknowledgements that mean a loss (RFC 5681).
const DUPLICATE_ACKS: u8 = 3;
/// Bytes acknowledged that are left in the host socket for a while: consuming costs a call, and what is acknowledged
/// next goes with it.
const CONSUME_LAZILY: u32 = 128 << 10;
/// Bytes in flight from which on a flow counts as one that sends in bulk.
const BULK: u32 = 16 << 10;
/// Flows that may each have all of `in_flight_bytes`, if they send in bulk.
const FULL_SHARES: u32 = 2;
/// More share what one of them had; more than these have as much each as these, until it is twice as much all together.
const EVEN_SHARES: u32 = 8;
/// How long a share is kept for a flow that has nothing in flight: a host's program that writes to several sockets in turn
/// leaves each of them without anything for a moment, and what the others took meanwhile would stay ahead of it.
const SHARES_LAST: Duration = Duration::from_millis(100);

impl Tcp {
    /// The acknowledgement and window of a segment. Whether the segment is acceptable.
    pub(super) fn on_acknowledgement(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
    ) -> bool {
        let Some(ack) = segment.ack else { return false };
        let conn = self.conn_mut(flow);
        if ack.is_after(conn.sent_max) {
            // Acknowledges what was never sent (RFC 9293, 3.10.7.4).
            ctx.count(Counter::TcpUnacceptable);
            self.acknowledge_now(flow);
            return false;
        }
        if ack.is_after(conn.unacked) {
            self.on_progress(ctx, flow, ack);
        } else if ack == conn.unacked {
            self.on_no_progress(ctx, flow, segment);
        }
        self.on_window(ctx, flow, segment, ack);
        true
    }

    /// The guest has got more of what we sent.
    pub(super) fn on_progress(&mut self, ctx: &mut Context<'_>, flow: u32, ack: Seq) {
        let now = ctx.now;
        let conn = self.conn_mut(flow);
        let acked = ack.since(conn.unacked);
        conn.unacked = ack;
        conn.next = conn.next.latest(ack);
        conn.duplicate_acks = 0;
        conn.timeouts = 0;
        conn.bytes_to_guest += u64::from(acked);
        conn.last_heard = now;
        if let Some((seq, since)) = conn.timed
            && !ack.is_before(seq)
        {
            conn.timed = None;
            conn.on_round_trip(now.since(since));
        }
        if conn.recover_until.is_some_and(|until| !ack.is_before(until)) {
            conn.recover_until = None;
        }
        if let ToGuest::Ending(fin) = conn.to_guest
            && ack.is_after(fin)
        {
            let consume = conn.to_consume();
            conn.to_guest = ToGuest::Done;
            conn.bytes_to_guest -= 1;
            self.consume(ctx, flow, consume);
        }
        let conn = self.conn(flow);
        if conn.is_unacked() {
            let rto = conn.rto();
            self.set_timer(flow, Timer::Retransmit, now + rto);
        } else {
            self.set_idle(ctx, flow);
        }
        self.mark(flow);
    }

    /// The same acknowledgement again: three of them mean that something was lost (RFC 5681, section 2).
    fn on_no_progress(&mut self, ctx: &mut Context<'_>, flow: u32, segment: &Segment) {
        let conn = self.conn_mut(flow);
        let edge = segment_edge(conn.guest_scale, segment);
        let is_duplicate = segment.len() == 0
            && conn.is_unacked()
            && edge == Some(conn.guest_edge)
            && conn.recover_until.is_none();
        if !is_duplicate {
            return;
        }
        conn.duplicate_acks = conn.duplicate_acks.saturating_add(1);
        if conn.duplicate_acks == DUPLICATE_ACKS {
            self.rewind(ctx, flow);
        }
    }

    /// The guest's window, if the segment is newer than the last that told it.
    fn on_window(&mut self, ctx: &mut Context<'_>, flow: u32, segment: &Segment, ack: Seq) {
        let conn = self.conn_mut(flow);
        if ack.is_before(conn.unacked) {
            return;
        }
        let is_newer = segment.seq.is_after(conn.window_seq)
            || (segment.seq == conn.window_seq && !ack.is_before(conn.window_ack))
            // A probe's answer comes with an old sequence number but the newest window.
            || ack.is_after(conn.window_ack);
        if !is_newer {
            return;
        }
        conn.window_seq = segment.seq;
        conn.window_ack = ack;
        let edge = ack + (u32::from(segment.window) << conn.guest_scale);
        if edge == conn.guest_edge {
            return;
        }
        conn.guest_edge = edge;
        if conn.timer == Timer::Probe {
            conn.timeouts = 0;
            self.set_idle(ctx, flow);
        }
        self.mark(flow);
    }

    /// Something that was sent is lost: goes back to the oldest byte that is not acknowledged.
    pub(super) fn rewind(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        if conn.state != State::Open || !conn.is_unacked() {
            return;
        }
        conn.next = conn.unacked;
        conn.recover_until = Some(conn.sent_max);
        // Karn: what is sent twice is not timed.
        conn.timed = None;
        conn.is_readable = true;
        ctx.count(Counter::TcpRetransmits);
        self.mark(flow);
    }

    /// End of turn: consumes what was acknowledged, peeks at more, sends the FIN when it is its turn.
    pub(super) fn flush_to_guest(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn(flow);
        if conn.peeking.is_some() {
            // Its offset counts from what is not consumed yet.
            return;
        }
        let consume = conn.to_consume();
        if consume >= CONSUME_LAZILY || (consume > 0 && !conn.is_unacked()) {
            self.consume(ctx, flow, consume);
        }
        let conn = self.conn(flow);
        match conn.to_guest {
            ToGuest::Done => {}
            ToGuest::Ending(fin) if conn.next == fin => self.send_fin(ctx, flow),
            ToGuest::Ending(fin) => {
                let left = if fin.is_after(conn.next) { fin.since(conn.next) } else { 0 };
                if left > 0 {
                    self.peek(ctx, flow, left);
                }
            }
            ToGuest::Open if conn.is_readable => self.peek(ctx, flow, u32::MAX),
            ToGuest::Open => {}
        }
    }

    fn consume(&mut self, ctx: &mut Context<'_>, flow: u32, bytes: u32) {
        let conn = self.conn_mut(flow);
        let Some(socket) = conn.socket else { return };
        if bytes > 0 {
            conn.queue_start = conn.queue_start + bytes;
            ctx.op(Op::Consume { socket, bytes });
        }
    }

    /// Counts a flow among those that send in bulk from when it has much in flight until nothing of it is, and nothing is
    /// being looked for: an end of its own data, or a closed window. Who lingers looks for nothing, whatever is still on its way.
    pub(super) fn count_bulk(&mut self, flow: u32) {
        let now = self.now;
        let conn = self.conn_mut(flow);
        let is_bulk = match conn.in_flight() {
            0 => conn.is_bulk && conn.peeking.is_some() && conn.to_guest != ToGuest::Done,
            bytes => conn.is_bulk || bytes >= BULK,
        };
        if is_bulk {
            conn.bulk_at = now;
        }
        let was_bulk = core::mem::replace(&mut conn.is_bulk, is_bulk);
        self.bulk = self.bulk + u32::from(is_bulk) - u32::from(was_bulk);
    }

    /// Bytes that a flow may have in flight. What is in flight waits in the guest's queues, and who has most there gets
    /// most: with a share each, they come out even. Larger ones leave four flows of bbr at 0.63 to 0.95 (Jain) in most runs,
    /// smaller ones cost sixteen a tenth of their throughput (`bench/RESULTS.md`).
    fn in_flight_max(&mut self, ctx: &Context<'_>) -> u32 {
        let limit = ctx.config.limits.in_flight_bytes;
        if self.bulk >= self.shares || ctx.now.since(self.shares_at) >= SHARES_LAST {
            (self.shares, self.shares_at) = (self.bulk, ctx.now);
        }
        if self.shares <= FULL_SHARES {
            return limit;
        }
        let all_together = (2 * u64::from(limit) / u64::from(self.shares)) as u32;
        all_together.min(limit / self.shares.min(EVEN_SHARES))
    }

    /// Peeks at what the window has room for, at most `limit` bytes; waits with a timer where it has none.
    fn peek(&mut self, ctx: &mut Context<'_>, flow: u32, limit: u32) {
        let share = self.in_flight_max(ctx);
        let conn = self.conn_mut(flow);
        let Some(socket) = conn.socket else { return };
        let mss = u32::from(conn.mss);
        let chunk = conn.chunk();
        let in_flight_max = match conn.recover_until {
            // What was lost goes first, by itself.
            Some(_) => chunk,
            None => share.max(chunk),
        };
        let room = conn.room().min(in_flight_max.saturating_sub(conn.in_flight())).min(limit);
        // Silly windows (RFC 9293, section 3.8.6.2.1): a full segment, or nothing is in flight.
        if room == 0 || (room < mss && room < limit && conn.in_flight() > 0) {
            return self.wait_for_window(ctx, flow);
        }
        let len = if room > mss { room - room % mss } else { room };
        let len = len.min(CHUNKS_PER_PEEK * chunk);
        let offset = conn.next.since(conn.queue_start);
        conn.peeking = Some(conn.next);
        conn.peeking_since = ctx.now;
        ctx.op(Op::Peek { socket, offset, len, chunk });
    }

    /// The guest's window is closed: where nothing is in flight whose acknowledgement could open it, it is probed.
    fn wait_for_window(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn(flow);
        if !conn.is_unacked() && conn.timer != Timer::Probe {
            let rto = conn.rto();
            self.set_timer(flow, Timer::Probe, ctx.now + rto);
        }
    }

    /// Bytes of the host, behind their headroom: a frame.
    pub(super) fn on_peeked(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        lease: LeaseId,
        bytes: &mut [u8],
        then: PeekedThen,
    ) {
        let conn = self.conn_mut(flow);
        let len = (bytes.len() - HEADROOM) as u32;
        let at = conn.peeking.expect("bytes come when they were asked for");
        conn.peeking = (then == PeekedThen::More).then_some(at + len);
        let is_void = at != conn.next || conn.state != State::Open;
        if then == PeekedThen::End && !is_void && conn.to_guest == ToGuest::Open {
            conn.to_guest = ToGuest::Ending(at + len);
        }
        if then == PeekedThen::Empty && !is_void {
            conn.is_readable = false;
        }
        if then != PeekedThen::More {
            self.mark(flow);
        }
        if is_void || len == 0 {
            return ctx.op(Op::Release { lease });
        }
        self.send_payload(ctx, flow, lease, bytes, then);
    }

    fn send_payload(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        lease: LeaseId,
        bytes: &mut [u8],
        then: PeekedThen,
    ) {
        self.on_answer(ctx, flow);
        let window = self.advertised(ctx, flow);
        let conn = self.conn_mut(flow);
        let len = (bytes.len() - HEADROOM) as u32;
        let push = if then == PeekedThen::More { 0 } else { PSH };
        let echo = if conn.echo_congestion { ECE } else { 0 };
        // The stream's last byte takes the FIN with it, where the window has room for both.
        let has_fin = conn.to_guest == ToGuest::Ending(conn.next + len) && conn.room() > len;
        let fin = if has_fin { FIN } else { 0 };
        let header = conn.header(ctx.config, conn.next, ACK | push | echo | fin, window);
        let headers = ip_headers_bytes(conn.guest.is_ipv4()) + TCP_BYTES;
        let start = HEADROOM - headers;
        let offload = header.write(&mut bytes[start..], len as usize, conn.mss);
        let is_first = !conn.is_unacked();
        conn.next = conn.next + len + u32::from(has_fin);
        if conn.next.is_after(conn.sent_max) {
            conn.sent_max = conn.next;
            if conn.timed.is_none() {
                conn.timed = Some((conn.next, ctx.now));
            }
        }
        if has_fin {
            conn.on_fin_sent();
        }
        if is_first || conn.timer != Timer::Retransmit {
            let rto = conn.rto();
            self.set_timer(flow, Timer::Retransmit, ctx.now + rto);
        }
        let span = Span { lease, start: start as u32, len: headers as u32 + len };
        ctx.write_frame(span, offload);
    }

    /// Nothing more for now; a `Readable` will come.
    pub(super) fn on_peek_empty(&mut self, flow: u32) {
        let conn = self.conn_mut(flow);
        let is_void = conn.peeking.take() != Some(conn.next);
        // A void peek was at another position: what lies at the new one is still to be asked for.
        conn.is_readable = is_void;
        self.mark(flow);
    }

    /// The host's stream ends where we are: the FIN goes behind the last byte.
    pub(super) fn on_peek_end(&mut self, flow: u32) {
        let conn = self.conn_mut(flow);
        let is_void = conn.peeking.take() != Some(conn.next);
        if !is_void && conn.to_guest == ToGuest::Open {
            conn.to_guest = ToGuest::Ending(conn.next);
        }
        self.mark(flow);
    }

    fn send_fin(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        if conn.room() == 0 {
            return self.wait_for_window(ctx, flow);
        }
        conn.on_fin_sent();
        self.on_answer(ctx, flow);
        let window = self.advertised(ctx, flow);
        let conn = self.conn_mut(flow);
        let header = conn.header(ctx.config, conn.next, FIN | ACK, window);
        let mss = conn.mss;
        conn.next = conn.next + 1;
        conn.sent_max = conn.sent_max.latest(conn.next);
        let rto = conn.rto();
        self.set_timer(flow, Timer::Retransmit, ctx.now + rto);
        emit(ctx, header, mss);
    }
}

/// The right edge of the window that a segment tells.
fn segment_edge(scale: u8, segment: &Segment) -> Option<Seq> {
    segment.ack.map(|ack| ack + (u32::from(segment.window) << scale))
}
