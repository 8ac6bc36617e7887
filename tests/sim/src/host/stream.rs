//! A connected socket of the host: its two queues are counters, since the bytes follow from their positions.

use usernet_core::op::{CloseHow, HEADROOM};
use usernet_core::{HostError, PeekedThen, SocketId, Span};

use super::{Told, remote};
use crate::env::{Env, Event};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    Failed,
}

#[derive(Default)]
struct Run {
    spans: Vec<Span>,
    /// The last op had `more` unset: it is under way.
    is_complete: bool,
}

struct Peek {
    /// Position in the stream.
    at: u64,
    len: u32,
    chunk: u32,
}

/// A stream socket.
pub struct Stream {
    socket: SocketId,
    pub(super) conversation: usize,
    state: State,
    run: Run,
    peek: Option<Peek>,
    /// First position that was never peeked at.
    peeked: u64,
    /// The core was told that there is nothing: it is owed a `Readable`.
    is_armed: bool,
}

impl Stream {
    pub(super) fn connecting(socket: SocketId, conversation: usize) -> Self {
        Self {
            socket,
            conversation,
            state: State::Connecting,
            run: Run::default(),
            peek: None,
            peeked: 0,
            is_armed: false,
        }
    }

    /// From now on there is an edge to be told.
    pub(super) fn connected(&mut self, env: &mut Env) {
        self.state = State::Open;
        self.is_armed = true;
        env.soon(Event::Readable(self.socket));
    }

    /// It is called so from now on, and there is an edge to be told.
    pub(super) fn is_now(&mut self, socket: SocketId) {
        assert!(self.peek.is_none() && self.run.spans.is_empty(), "nothing of it is outstanding");
        self.socket = socket;
        self.is_armed = true;
    }

    pub(super) fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    fn assert_open(&self, why: &str) {
        assert_eq!(self.state, State::Open, "{why} on {:?}", self.socket);
    }

    pub(super) fn send(&mut self, env: &mut Env, span: Span, more: bool) {
        self.assert_open("Send");
        assert!(!self.run.is_complete, "a second Send on {:?}", self.socket);
        assert!(!env.conversations[self.conversation].host.saw_end, "Send after Shutdown");
        assert!(span.len > 0, "a Send of nothing never completes");
        let _ = env.ledger.bytes(span, "Send");
        env.ledger.borrow(span.lease, true);
        self.run.spans.push(span);
        if more {
            return;
        }
        self.run.is_complete = true;
        env.soon(Event::Send(self.socket));
    }

    pub(super) fn peek(&mut self, env: &mut Env, offset: u32, len: u32, chunk: u32) {
        self.assert_open("Peek");
        assert!(self.peek.is_none(), "a second Peek on {:?}", self.socket);
        assert!(len > 0 && chunk > 0, "a Peek of nothing");
        assert!(chunk as usize <= 65_535, "a Peek's chunk fits a buffer");
        let host = &env.conversations[self.conversation].host;
        let at = host.consumed + u64::from(offset);
        assert!(at <= host.written, "a Peek beyond what was there");
        self.peek = Some(Peek { at, len, chunk });
        env.soon(Event::Peek(self.socket));
    }

    pub(super) fn consume(&mut self, env: &mut Env, bytes: u32) {
        self.assert_open("Consume");
        let host = &mut env.conversations[self.conversation].host;
        host.consumed += u64::from(bytes);
        assert!(host.consumed <= self.peeked, "Consume of what was never peeked at");
        remote::wake(env, self.conversation);
    }

    pub(super) fn shutdown(&mut self, env: &mut Env) {
        self.assert_open("Shutdown");
        assert!(self.run.spans.is_empty(), "Shutdown during a Send");
        let conversation = &mut env.conversations[self.conversation];
        assert!(!conversation.host.saw_end, "a second Shutdown");
        assert!(conversation.guest.has_closed, "Shutdown, but the guest has not finished");
        assert_eq!(
            conversation.host.taken, conversation.guest.written,
            "Shutdown before the guest's last byte was sent"
        );
        conversation.host.saw_end = true;
        remote::wake(env, self.conversation);
    }

    pub(super) fn close(mut self, env: &mut Env, how: CloseHow) {
        for span in std::mem::take(&mut self.run.spans) {
            env.ledger.return_from_send(span.lease);
        }
        let conversation = &mut env.conversations[self.conversation];
        let host = &mut conversation.host;
        host.socket = None;
        if self.state != State::Open {
            return;
        }
        host.closed = Some(how);
        match how {
            CloseHow::Graceful => {
                assert_eq!(
                    host.consumed, host.written,
                    "a graceful Close with unread bytes is a reset (RFC 1122, 4.2.2.13)"
                );
                if !host.saw_end {
                    assert!(conversation.guest.has_closed, "FIN, but the guest has not finished");
                    assert_eq!(host.taken, conversation.guest.written, "FIN before the last byte");
                }
                host.saw_end = true;
            }
            CloseHow::Reset => {
                let is_excused = conversation.guest.has_aborted
                    || conversation.guest.is_done
                    || !conversation.plan.is_clean();
                // Where a fuzzer loses all frames for long enough, or chance all of a handshake's, the core gives up.
                let is_never_met = !conversation.guest.was_connected;
                let is_cut_off = env.is_lossy && (env.choices.is_fuzzer() || is_never_met);
                conversation.guest.is_stuck |= !is_excused && is_cut_off;
                assert!(
                    is_excused || is_cut_off,
                    "the core reset a connection that nobody wanted reset"
                );
            }
        }
        // What the host's kernel has taken, it delivers.
        remote::wake(env, self.conversation);
    }

    pub(super) fn fail(&mut self, env: &mut Env, error: HostError) -> Option<Told> {
        if self.state == State::Failed {
            return None;
        }
        self.state = State::Failed;
        self.peek = None;
        self.drop_run(env);
        Some(Told::Failed(self.socket, error))
    }

    fn drop_run(&mut self, env: &mut Env) {
        for span in std::mem::take(&mut self.run).spans {
            env.ledger.borrow(span.lease, false);
        }
    }

    /// The host's socket takes what it has room for. When it has none, the remote application's next read
    /// tries again.
    pub(super) fn on_send(&mut self, env: &mut Env) -> Option<Told> {
        if !self.run.is_complete || self.state != State::Open {
            return None;
        }
        let conversation = &mut env.conversations[self.conversation];
        let host = &mut conversation.host;
        let room = conversation.plan.host_buffer.saturating_sub(host.taken - host.read);
        if room == 0 {
            return None;
        }
        let total: u64 = self.run.spans.iter().map(|s| u64::from(s.len)).sum();
        let mut take = total.min(room);
        if env.choices.chance(env.faults.short) {
            take = env.choices.between(1, take);
        }
        let pattern = conversation.from_guest();
        let conversation = &mut env.conversations[self.conversation];
        let mut left = take;
        for span in &self.run.spans {
            let part = left.min(u64::from(span.len));
            let bytes = env.ledger.bytes(Span { len: part as u32, ..*span }, "Send");
            if let Some(at) = pattern.mismatch(conversation.host.taken, bytes) {
                panic!(
                    "the byte at {at} from the guest is wrong (conversation {})",
                    self.conversation
                );
            }
            conversation.host.taken += part;
            left -= part;
        }
        assert!(
            conversation.host.taken <= conversation.guest.written,
            "the host's socket got bytes that the guest never wrote"
        );
        self.drop_run(env);
        remote::wake(env, self.conversation);
        Some(Told::Sent(self.socket, take as u32))
    }

    /// The peek finds what has come meanwhile.
    pub(super) fn on_peek(&mut self, env: &mut Env) -> Option<Told> {
        let peek = self.peek.take()?;
        let conversation = &env.conversations[self.conversation];
        let (written, has_closed) = (conversation.host.written, conversation.host.has_closed);
        let pattern = conversation.to_guest();
        if written == peek.at {
            if has_closed {
                return Some(Told::PeekEnd(self.socket));
            }
            self.is_armed = true;
            if env.choices.chance(env.faults.spurious) {
                env.soon(Event::Readable(self.socket));
            }
            return Some(Told::PeekEmpty(self.socket));
        }
        let mut found = (written - peek.at).min(u64::from(peek.len));
        if env.choices.chance(env.faults.short) {
            found = env.choices.between(1, found);
        }
        let mut leases = Vec::new();
        let mut at = peek.at;
        while at < peek.at + found {
            let part = (peek.at + found - at).min(u64::from(peek.chunk));
            let Some(lease) = env.ledger.lend(HEADROOM + part as usize) else { break };
            pattern.fill(at, &mut env.ledger.shown(lease)[HEADROOM..]);
            leases.push(lease);
            at += part;
        }
        if leases.is_empty() {
            // Buffers will come back.
            self.peek = Some(peek);
            env.after(std::time::Duration::from_millis(1), Event::Peek(self.socket));
            return None;
        }
        self.peeked = self.peeked.max(at);
        // The driver does not always know the end as soon as it is there.
        let is_end = has_closed && at == written && env.choices.chance(env.faults.spurious);
        let is_empty = !has_closed && at == written && env.choices.chance(env.faults.spurious);
        self.is_armed |= is_empty;
        let then = match (is_end, is_empty) {
            (true, _) => PeekedThen::End,
            (false, true) => PeekedThen::Empty,
            (false, false) => PeekedThen::Unknown,
        };
        Some(Told::Peeked(self.socket, leases, then))
    }

    /// Only what is owed, and now and then what is not.
    pub(super) fn on_readable(&mut self, env: &mut Env) -> Option<Told> {
        if self.state != State::Open || !(self.is_armed || env.choices.chance(env.faults.spurious))
        {
            return None;
        }
        let host = &env.conversations[self.conversation].host;
        if host.written == self.peeked
            && !host.has_closed
            && !env.choices.chance(env.faults.spurious)
        {
            return None;
        }
        self.is_armed = false;
        Some(Told::Readable(self.socket))
    }
}
