//! The guest's applications over TCP, one per conversation.

use std::collections::BTreeMap;
use std::time::Duration;

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::wire::IpEndpoint;
use usernet_core::Instant;

use super::Handle;
use crate::conversation::{Answer, Conversation, Finish, Pace};
use crate::env::Env;

/// One application.
pub(super) struct Stream {
    conversation: usize,
    handle: Handle,
    /// A slow reader reads again then.
    next_read: Instant,
    /// One that writes in pieces writes again then.
    next_write: Instant,
    /// Something of its own waits for an acknowledgement since then, or was sent again then.
    waits_since: Option<Instant>,
}

/// smoltcp may forget to send again what was lost: its fast retransmission stops the timer, and what follows does not always
/// start it. When it has been silent for this long, it has.
const PATIENCE: Duration = Duration::from_secs(1_000);

impl Stream {
    pub(super) fn new(conversation: usize) -> Self {
        Self {
            conversation,
            handle: None,
            next_read: Instant::ZERO,
            next_write: Instant::ZERO,
            waits_since: None,
        }
    }

    /// The application's turn; when it wants the next one.
    pub(super) fn step(
        &mut self,
        env: &mut Env,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
        spoke: &BTreeMap<u16, Instant>,
    ) -> Option<Instant> {
        let conversation = &env.conversations[self.conversation];
        let spoke = spoke.get(&conversation.plan.guest.port()).copied();
        if conversation.guest.is_done {
            if let Some(handle) = self.handle.take() {
                sockets.remove(handle);
            }
            return None;
        }
        let Some(handle) = self.handle else { return self.start(env, interface, sockets) };
        let socket = sockets.get_mut::<Socket<'_>>(handle);
        let wake = if env.is_closing {
            abort(env, self.conversation, socket);
            None
        } else {
            self.run(env, socket)
        };
        let has_news = self.observe(env, socket);
        let patience = self.watch_silence(env, socket, spoke);
        let wake = super::earliest(wake, patience);
        if has_news { Some(env.now) } else { wake }
    }

    /// Connects, or listens.
    fn start(
        &mut self,
        env: &mut Env,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
    ) -> Option<Instant> {
        let ack_delay = env.choices.pick(&[0, 10, 40]);
        let conversation = &mut env.conversations[self.conversation];
        let plan = &conversation.plan;
        if env.is_closing || (!plan.is_outbound && matches!(plan.answer, Answer::Fail(..))) {
            conversation.guest.is_done = true;
            return None;
        }
        let start = Instant::ZERO + plan.start;
        if plan.is_outbound && start > env.now {
            return Some(start);
        }
        let buffer = || SocketBuffer::new(vec![0; plan.guest_buffer]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(
            (ack_delay > 0).then(|| smoltcp::time::Duration::from_millis(ack_delay)),
        );
        socket.set_nagle_enabled(plan.guest_manners.pieces.is_none());
        let local = IpEndpoint::from(plan.guest);
        if plan.is_outbound {
            let remote = IpEndpoint::from(plan.remote);
            socket.connect(interface.context(), remote, local).expect("a fresh socket connects");
        } else {
            socket.listen(local).expect("a fresh socket listens");
        }
        self.handle = Some(sockets.add(socket));
        env.trace(|| format!("guest: conversation {} starts", self.conversation));
        Some(env.now)
    }

    fn run(&mut self, env: &mut Env, socket: &mut Socket<'_>) -> Option<Instant> {
        let now = env.now;
        let conversation = &mut env.conversations[self.conversation];
        let write = self.write(now, conversation, socket);
        let wake = super::earliest(write, self.read(now, conversation, socket));
        let (guest, manners) = (&mut conversation.guest, &conversation.plan.guest_manners);
        if !guest.was_connected {
            return wake;
        }
        let has_written = guest.written == manners.writes;
        let closes = match manners.finish {
            Finish::WhenWritten => has_written,
            Finish::AfterEnd => has_written && guest.saw_end,
            Finish::ResetAt(at) => {
                if guest.read + guest.written >= at {
                    abort(env, self.conversation, socket);
                }
                return wake;
            }
        };
        if closes && !guest.has_closed {
            guest.has_closed = true;
            socket.close();
            env.trace(|| format!("guest: closes conversation {}", self.conversation));
        }
        wake
    }

    /// Writes what there is room for, or a piece; when it goes on.
    fn write(
        &mut self,
        now: Instant,
        conversation: &mut Conversation,
        socket: &mut Socket<'_>,
    ) -> Option<Instant> {
        let pattern = conversation.from_guest();
        let manners = conversation.plan.guest_manners;
        let guest = &mut conversation.guest;
        let mut left = manners.writes - guest.written;
        if let Some((piece, _)) = manners.pieces {
            if now < self.next_write {
                return Some(self.next_write);
            }
            left = left.min(piece.into());
        }
        let before = guest.written;
        while left > 0 && !guest.has_closed && socket.can_send() {
            let position = guest.written;
            let wrote = socket.send(|bytes| {
                let len = bytes.len().min(left as usize);
                pattern.fill(position, &mut bytes[..len]);
                (len, len)
            });
            let Ok(wrote) = wrote else { break };
            guest.written += wrote as u64;
            left -= wrote as u64;
        }
        let (_, every) = manners.pieces.filter(|_| guest.written > before)?;
        self.next_write = now + every;
        Some(self.next_write)
    }

    /// Reads at the application's pace; when it goes on.
    fn read(
        &mut self,
        now: Instant,
        conversation: &mut Conversation,
        socket: &mut Socket<'_>,
    ) -> Option<Instant> {
        // smoltcp forgets what was not read when the connection is over.
        let is_ending = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        let mut budget = match conversation.plan.guest_manners.pace {
            Pace::Eager => u64::MAX,
            Pace::Slow { .. } if is_ending => u64::MAX,
            Pace::Slow { .. } if now < self.next_read => return Some(self.next_read),
            Pace::Slow { bytes, .. } => u64::from(bytes),
            Pace::StopAfter(limit) => limit.saturating_sub(conversation.guest.read),
        };
        let pattern = conversation.to_guest();
        let mut has_read = false;
        while budget > 0 && socket.can_recv() {
            let position = conversation.guest.read;
            let read = socket.recv(|bytes| {
                let take = bytes.len().min(budget as usize);
                (take, (take, pattern.mismatch(position, &bytes[..take])))
            });
            let Ok((take, mismatch)) = read else { break };
            if let Some(at) = mismatch {
                panic!(
                    "the byte at {at} to the guest is wrong (conversation {})",
                    self.conversation
                );
            }
            conversation.guest.read += take as u64;
            budget -= take as u64;
            has_read |= take > 0;
        }
        assert!(
            conversation.guest.read <= conversation.host.written,
            "the guest got bytes that nobody wrote (conversation {})",
            self.conversation
        );
        match conversation.plan.guest_manners.pace {
            Pace::Slow { every, .. } if has_read => {
                self.next_read = now + every;
                Some(self.next_read)
            }
            Pace::Slow { .. } | Pace::Eager | Pace::StopAfter(_) => None,
        }
    }

    /// Gives up on a stack that has forgotten its retransmission; when to look again.
    fn watch_silence(
        &mut self,
        env: &mut Env,
        socket: &mut Socket<'_>,
        spoke: Option<Instant>,
    ) -> Option<Instant> {
        let has_fin = matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
        if !env.is_lossy || !(has_fin || socket.send_queue() > 0) {
            self.waits_since = None;
            return None;
        }
        let since = self.waits_since.get_or_insert(env.now);
        *since = (*since).max(spoke.unwrap_or(*since));
        let until = *since + PATIENCE;
        if env.now >= until {
            env.conversations[self.conversation].guest.is_stuck = true;
            abort(env, self.conversation, socket);
            return None;
        }
        Some(until)
    }

    /// Sees what has become of the connection. Whether it has just come about, or the other end finished: the application has
    /// another turn then, and there may be nothing else that wakes it.
    fn observe(&mut self, env: &mut Env, socket: &mut Socket<'_>) -> bool {
        let conversation = &mut env.conversations[self.conversation];
        let guest = &mut conversation.guest;
        let state = socket.state();
        let is_synchronized =
            !matches!(state, State::Closed | State::Listen | State::SynSent | State::SynReceived);
        let is_new = is_synchronized && !guest.was_connected;
        guest.was_connected |= is_synchronized;
        let sees_end = !guest.saw_end && socket.recv(|_| (0, ())) == Err(RecvError::Finished);
        if sees_end {
            guest.saw_end = true;
            assert!(conversation.host.has_closed, "the guest saw an end that nobody sent");
            assert_eq!(guest.read, conversation.host.written, "the end came too early");
        }
        if state != State::Closed {
            return is_new || sees_end;
        }
        let is_regular = guest.saw_end && guest.has_closed || guest.has_aborted;
        if !is_regular && !guest.saw_reset {
            guest.saw_reset = true;
            env.trace(|| format!("guest: conversation {} was reset", self.conversation));
        }
        // An abort's RST leaves with the poll that follows this step.
        env.conversations[self.conversation].guest.is_done = true;
        sees_end
    }
}

fn abort(env: &mut Env, index: usize, socket: &mut Socket<'_>) {
    if socket.state() != State::Closed {
        socket.abort();
        env.conversations[index].guest.has_aborted = true;
        env.trace(|| format!("guest: aborts conversation {index}"));
    }
}
