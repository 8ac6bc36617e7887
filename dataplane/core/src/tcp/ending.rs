//! Closing: by both halves, by a reset from either side, or because nobody answers any more.

use super::Tcp;
use super::conn::{FromGuest, State, Timer, ToGuest};
use super::from_guest::end_of;
use super::handshake::emit;
use super::segment::{ACK, Header, RST, Segment};
use super::seq::Seq;
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{CloseHow, Op};

impl Tcp {
    /// Closes the socket of a flow whose halves are both done.
    pub(super) fn finish_if_done(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn(flow);
        if conn.from_guest != FromGuest::Done || conn.to_guest != ToGuest::Done {
            return;
        }
        if !conn.lingers {
            return self.close(ctx, flow, CloseHow::Graceful);
        }
        let linger = ctx.now + ctx.config.timeouts.tcp_time_wait;
        self.end_socket(ctx, flow, CloseHow::Graceful);
        ctx.count(Counter::TcpClosed);
        // The guest may not have got our last acknowledgement: its FIN may come again.
        self.set_state(flow, State::TimeWait);
        self.set_timer(flow, Timer::Linger, linger);
    }

    /// A late segment of a flow that has ended.
    pub(super) fn on_lingering_segment(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
    ) {
        if segment.rst {
            return self.close(ctx, flow, CloseHow::Graceful);
        }
        if segment.len() > 0 {
            self.acknowledge_now(flow);
        }
    }

    /// The host's peer has reset the connection.
    pub(super) fn on_host_reset(&mut self, ctx: &mut Context<'_>, flow: u32) {
        // The driver has given the leases of an outstanding send back.
        self.conn_mut(flow).sending_leases = 0;
        self.send_reset(ctx, flow);
        self.close(ctx, flow, CloseHow::Reset);
    }

    /// Ends a flow at once: socket, leases, slot.
    pub(super) fn close(&mut self, ctx: &mut Context<'_>, flow: u32, how: CloseHow) {
        if self.conn(flow).state != State::TimeWait {
            ctx.count(Counter::TcpClosed);
        }
        self.end_socket(ctx, flow, how);
        self.note_end(ctx.ownership, flow);
        self.remove(flow);
    }

    /// Closes the host socket. Leases of an outstanding send go back with it, the others by us.
    fn end_socket(&mut self, ctx: &mut Context<'_>, flow: u32, how: CloseHow) {
        let Self { slots, kept, .. } = self;
        let super::Slot::Used(conn) = &mut slots[flow as usize] else { return };
        let Some(socket) = conn.socket.take() else { return };
        let mut in_send = core::mem::take(&mut conn.sending_leases);
        kept.clear(&mut conn.kept, |lease| {
            if in_send > 0 {
                in_send -= 1;
            } else {
                ctx.out.op(Op::Release { lease });
            }
        });
        kept.clear(&mut conn.ahead, |lease| ctx.out.op(Op::Release { lease }));
        ctx.sockets.release(socket);
        ctx.op(Op::Close { socket, how });
    }

    /// RST to the guest, with the sequence number that it expects (RFC 5961, section 3).
    pub(super) fn send_reset(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn(flow);
        let is_refusal = matches!(conn.state, State::Connecting { .. });
        let is_unanswered = conn.state == State::SynSent;
        let (seq, flags) = match (is_refusal, is_unanswered) {
            (true, _) => (Seq(0), RST | ACK),
            (_, true) => (conn.sent_max, RST),
            (false, false) => (conn.sent_max, RST | ACK),
        };
        let header = conn.header(ctx.config, seq, flags, 0);
        let mss = conn.mss;
        ctx.count(Counter::TcpResetsToGuest);
        emit(ctx, header, mss);
    }

    /// RST for a segment that belongs to nothing (RFC 9293, section 3.10.7.1).
    pub(super) fn reset_unknown(&mut self, ctx: &mut Context<'_>, segment: &Segment) {
        if segment.rst {
            return;
        }
        if !segment.syn {
            ctx.count(Counter::TcpNoFlow);
        }
        let (seq, ack, flags) = match segment.ack {
            Some(ack) => (ack, Seq(0), RST),
            None => (Seq(0), end_of(segment), RST | ACK),
        };
        let header = Header {
            sacks: super::sack::Sacks::default(),
            host_mac: ctx.config.host_mac,
            guest_mac: segment.guest_mac,
            guest: segment.guest,
            remote: segment.remote,
            seq,
            ack,
            flags,
            window: 0,
            syn_options: None,
        };
        ctx.count(Counter::TcpResetsToGuest);
        emit(ctx, header, u16::MAX);
    }
}
