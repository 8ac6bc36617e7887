//! Waiting: retransmission, window probes, keep-alive, lingering. One timer per flow.

use super::Tcp;
use super::conn::{State, Timer};
use super::handshake::emit;
use super::segment::ACK;
use crate::context::Context;
use crate::counters::Counter;
use crate::op::CloseHow;
use crate::time::Instant;

/// Timeouts in a row after which the guest is given up: with the backoff, some ten minutes (RFC 9293, 3.8.3: R2 of at
/// least 100 s).
const TIMEOUTS_MAX: u8 = 14;
/// SYN-ACKs that a guest is sent.
const SYN_ACKS_MAX: u8 = 6;
/// Keep-alive probes that may stay without an answer (RFC 1122, section 4.2.3.6).
const PROBES_MAX: u8 = 9;
/// Time between them.
const PROBE_INTERVAL: core::time::Duration = core::time::Duration::from_secs(75);

impl Tcp {
    /// Fires what is due.
    pub(crate) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        self.now = ctx.now;
        self.end_waits(ctx);
        self.end_intervals(ctx);
        while let Some(flow) = self.wheel.pop(ctx.now) {
            let conn = self.conn_mut(flow);
            conn.wheel_at = None;
            // Deadlines move away without touching the wheel; it is set again when it comes early.
            if conn.deadline > ctx.now {
                let (timer, deadline) = (conn.timer, conn.deadline);
                self.set_timer(flow, timer, deadline);
                continue;
            }
            self.on_timer(ctx, flow);
        }
    }

    /// Sets what the flow waits for next. The wheel is only touched for an earlier time.
    pub(super) fn set_timer(&mut self, flow: u32, timer: Timer, deadline: Instant) {
        let conn = self.conn_mut(flow);
        conn.timer = timer;
        conn.deadline = deadline;
        if conn.wheel_at.is_none_or(|at| deadline < at) {
            conn.wheel_at = Some(deadline);
            self.wheel.set(flow, deadline);
        }
    }

    /// Nothing is outstanding: only the idle time counts.
    pub(super) fn set_idle(&mut self, ctx: &Context<'_>, flow: u32) {
        self.set_timer(flow, Timer::Idle, ctx.now + ctx.config.timeouts.tcp_idle);
    }

    fn on_timer(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn(flow);
        match (conn.timer, conn.state) {
            (Timer::Linger, _) | (_, State::TimeWait) => self.close(ctx, flow, CloseHow::Graceful),
            (Timer::Retransmit, State::SynAckSent) => self.on_syn_ack_timeout(ctx, flow),
            (Timer::Retransmit, State::SynSent) => self.on_syn_timeout(ctx, flow),
            (Timer::Retransmit, _) => self.on_retransmit_timeout(ctx, flow),
            (Timer::Probe, _) => self.on_probe_timeout(ctx, flow),
            (Timer::Idle, _) => self.on_idle(ctx, flow),
        }
    }

    fn on_syn_ack_timeout(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        conn.timeouts += 1;
        if conn.timeouts >= SYN_ACKS_MAX {
            ctx.count(Counter::TcpGuestTimedOut);
            return self.close(ctx, flow, CloseHow::Reset);
        }
        self.send_syn(ctx, flow);
    }

    fn on_syn_timeout(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        conn.timeouts += 1;
        let waited = ctx.now.since(conn.last_heard);
        if waited >= ctx.config.timeouts.tcp_inbound_connect {
            ctx.count(Counter::TcpGuestTimedOut);
            return self.close(ctx, flow, CloseHow::Reset);
        }
        self.send_syn(ctx, flow);
    }

    fn on_retransmit_timeout(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        conn.timeouts += 1;
        conn.duplicate_acks = 0;
        if conn.timeouts > TIMEOUTS_MAX {
            return self.give_up(ctx, flow);
        }
        let deadline = ctx.now + conn.rto();
        self.rewind(ctx, flow);
        // The window may have closed meanwhile: a probe finds out what the guest has.
        if self.conn(flow).room() == 0 {
            self.send_probe(ctx, flow);
        }
        self.set_timer(flow, Timer::Retransmit, deadline);
    }

    fn on_probe_timeout(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        // Probes are answered: as long as they are, the guest may keep its window closed.
        let is_answered = ctx.now.since(conn.last_heard) < conn.rto() * 2;
        conn.timeouts = if is_answered { conn.timeouts.min(7) } else { conn.timeouts } + 1;
        if conn.timeouts > TIMEOUTS_MAX {
            return self.give_up(ctx, flow);
        }
        let deadline = ctx.now + conn.rto();
        self.send_probe(ctx, flow);
        self.set_timer(flow, Timer::Probe, deadline);
    }

    /// Nothing was heard for hours: a sign of life is asked for.
    fn on_idle(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let idle = ctx.config.timeouts.tcp_idle;
        let conn = self.conn_mut(flow);
        if conn.state != State::Open {
            return;
        }
        let quiet = ctx.now.since(conn.last_heard);
        if quiet < idle {
            conn.timeouts = 0;
            let deadline = conn.last_heard + idle;
            return self.set_timer(flow, Timer::Idle, deadline);
        }
        // Probes are further apart than short idle times: an answer to the last one starts the count again.
        let is_answered = quiet < PROBE_INTERVAL + ctx.now.since(conn.deadline);
        conn.timeouts = if is_answered { 1 } else { conn.timeouts + 1 };
        if conn.timeouts > PROBES_MAX {
            return self.give_up(ctx, flow);
        }
        self.send_probe(ctx, flow);
        self.set_timer(flow, Timer::Idle, ctx.now + PROBE_INTERVAL);
    }

    /// A segment just left of the guest's window: it answers with what it has (RFC 9293, section 3.8.6.1).
    fn send_probe(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let window = self.advertised(ctx, flow);
        let conn = self.conn(flow);
        let header = conn.header(ctx.config, conn.unacked - 1, ACK, window);
        let mss = conn.mss;
        emit(ctx, header, mss);
    }

    fn give_up(&mut self, ctx: &mut Context<'_>, flow: u32) {
        ctx.count(Counter::TcpGuestTimedOut);
        self.send_reset(ctx, flow);
        self.close(ctx, flow, CloseHow::Reset);
    }
}
