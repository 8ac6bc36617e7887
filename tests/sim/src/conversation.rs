//! One TCP conversation: what both ends mean to do, what they saw, and whether that is right.

use std::net::SocketAddr;
use std::time::Duration;

use usernet_core::op::CloseHow;
use usernet_core::{HostError, Instant, SocketId};

use crate::pattern::Pattern;

/// How fast an end reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// All at once.
    Eager,
    /// Some bytes, every so often.
    Slow {
        /// At most so many.
        bytes: u32,
        /// Then it waits.
        every: Duration,
    },
    /// Nothing after so many bytes.
    StopAfter(u64),
}

/// How an end finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// FIN behind the last byte written.
    WhenWritten,
    /// FIN after the other end's.
    AfterEnd,
    /// RST when it has read and written so many bytes.
    ResetAt(u64),
}

/// What a connect meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A server, after a while.
    Accept(Duration),
    /// An error, after a while.
    Fail(Duration, HostError),
}

/// What one end does.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Bytes that it writes.
    pub writes: u64,
    /// How much it writes at a time, and how long it waits then; none: as much as there is room for. The guest's end only.
    pub pieces: Option<(u32, Duration)>,
    /// How it reads.
    pub pace: Pace,
    /// How it ends.
    pub finish: Finish,
}

/// What shall happen.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guest connects; else it is connected to.
    pub is_outbound: bool,
    /// When it starts.
    pub start: Duration,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end, as the guest sees it.
    pub remote: SocketAddr,
    /// The other end, as the host sees it.
    pub peer: SocketAddr,
    /// Outbound: what the connect meets. Inbound: `Fail` if the guest does not listen.
    pub answer: Answer,
    /// What the guest's application does.
    pub guest_manners: Manners,
    /// What the remote application does.
    pub remote_manners: Manners,
    /// The remote application sends back what it reads; `writes` of both ends are equal.
    pub is_echo: bool,
    /// The guest's socket buffer.
    pub guest_buffer: usize,
    /// Send and receive buffer of the host's socket.
    pub host_buffer: u64,
}

impl Plan {
    /// Both ends mean to hear each other out.
    pub fn is_clean(&self) -> bool {
        let is_fair = |m: &Manners, other: &Manners| {
            !matches!(m.finish, Finish::ResetAt(_))
                && !matches!(m.pace, Pace::StopAfter(n) if n < other.writes)
        };
        matches!(self.answer, Answer::Accept(_))
            && is_fair(&self.guest_manners, &self.remote_manners)
            && is_fair(&self.remote_manners, &self.guest_manners)
    }
}

/// What the guest's application has seen and done.
#[derive(Clone, Debug, Default)]
pub struct GuestEnd {
    /// Its socket was connected.
    pub was_connected: bool,
    /// Bytes written.
    pub written: u64,
    /// Bytes read, all of them right.
    pub read: u64,
    /// It wrote FIN.
    pub has_closed: bool,
    /// It reset the connection.
    pub has_aborted: bool,
    /// It read the end of the stream.
    pub saw_end: bool,
    /// The connection ended before it should have.
    pub saw_reset: bool,
    /// Its stack does not send again what was lost (see `guest::stream`), or a fuzzer has cut it off: nobody's
    /// fault but theirs.
    pub is_stuck: bool,
    /// It is done with its socket.
    pub is_done: bool,
}

/// What the host's side of the conversation has seen and done.
#[derive(Clone, Debug, Default)]
pub struct HostEnd {
    /// The socket, while there is one.
    pub socket: Option<SocketId>,
    /// Connects.
    pub attempts: u32,
    /// A connect succeeded, or the connection was accepted.
    pub was_connected: bool,
    /// Bytes that the host's socket took.
    pub taken: u64,
    /// Of these, read by the remote application.
    pub read: u64,
    /// Bytes that the remote application wrote, and have arrived.
    pub written: u64,
    /// Of these, consumed.
    pub consumed: u64,
    /// The remote application has finished, and that has arrived.
    pub has_closed: bool,
    /// The remote application has reset the connection.
    pub has_reset: bool,
    /// FIN from the core.
    pub saw_end: bool,
    /// How the core closed the socket.
    pub closed: Option<CloseHow>,
    /// The core refused the connection.
    pub was_refused: bool,
    /// It was spliced.
    pub was_spliced: bool,
}

/// A conversation.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// What shall happen.
    pub plan: Plan,
    /// The guest's side.
    pub guest: GuestEnd,
    /// The host's side.
    pub host: HostEnd,
    /// When both ends were done.
    pub finished: Option<Instant>,
    /// A wakeup of the remote application is under way.
    pub is_remote_scheduled: bool,
    number: u64,
}

impl Conversation {
    /// Number `number`, about to start.
    pub fn new(number: usize, plan: Plan) -> Self {
        Self {
            plan,
            guest: GuestEnd::default(),
            host: HostEnd::default(),
            finished: None,
            is_remote_scheduled: false,
            number: number as u64,
        }
    }

    /// What the guest writes.
    pub fn from_guest(&self) -> Pattern {
        Pattern(2 * self.number)
    }

    /// What the remote end writes.
    pub fn to_guest(&self) -> Pattern {
        if self.plan.is_echo { self.from_guest() } else { Pattern(2 * self.number + 1) }
    }

    /// Both ends are done, as far as they can know.
    pub fn is_over(&self) -> bool {
        let is_read = self.host.read == self.host.taken
            || self.host.closed == Some(CloseHow::Reset)
            || self.host.has_reset
            || !self.plan.is_clean();
        let host_over = self.host.socket.is_none()
            && is_read
            && (self.plan.is_outbound || self.host.was_connected || self.host.was_refused);
        self.guest.is_done && host_over
    }

    /// What is wrong with how it went, once it is over or time is up. On a perfect link what one end does
    /// reaches the other.
    pub fn verdict(&self, is_perfect: bool) -> Result<(), String> {
        if self.plan.is_clean() && !self.host.was_spliced && !self.guest.is_stuck {
            return self.clean_verdict();
        }
        self.rough_verdict()?;
        if is_perfect { self.rough_perfect_verdict() } else { Ok(()) }
    }

    fn clean_verdict(&self) -> Result<(), String> {
        let (guest, host, plan) = (&self.guest, &self.host, &self.plan);
        let up = plan.guest_manners.writes;
        let down = plan.remote_manners.writes;
        for (holds, what) in [
            (guest.was_connected, "the guest was never connected"),
            (guest.written == up, "the guest could not write everything"),
            (host.taken == up, "bytes from the guest are missing"),
            (host.read == up, "the remote end has not read everything"),
            (host.written == down, "the remote end could not write everything"),
            (guest.read == down, "bytes to the guest are missing"),
            (guest.saw_end, "the guest did not see the end"),
            (host.saw_end, "the remote end did not see the end"),
            (!guest.saw_reset, "the guest saw a reset that nobody sent"),
            (
                host.closed == Some(CloseHow::Graceful),
                "the host's socket was not closed gracefully",
            ),
            (guest.is_done, "the guest's socket is not closed"),
        ] {
            if !holds {
                return Err(what.to_owned());
            }
        }
        Ok(())
    }

    fn rough_verdict(&self) -> Result<(), String> {
        let (guest, host) = (&self.guest, &self.host);
        let is_failed = matches!(self.plan.answer, Answer::Fail(..));
        for (holds, what) in [
            (!is_failed || !guest.was_connected || host.was_spliced, "connected to nobody"),
            (!is_failed || !self.plan.is_outbound || host.attempts > 0, "no connect was tried"),
            (!guest.saw_end || host.has_closed, "the guest saw an end that nobody sent"),
            (!host.saw_end || guest.has_closed, "the host saw an end that nobody sent"),
        ] {
            if !holds {
                return Err(what.to_owned());
            }
        }
        Ok(())
    }

    fn rough_perfect_verdict(&self) -> Result<(), String> {
        let (guest, host) = (&self.guest, &self.host);
        let is_refused = matches!(self.plan.answer, Answer::Fail(_, HostError::Refused));
        let knows = guest.saw_reset || guest.has_aborted || guest.saw_end;
        let is_gone = host.socket.is_none();
        for (holds, what) in [
            (!is_refused || !self.plan.is_outbound || guest.saw_reset, "the guest was not refused"),
            (!guest.has_aborted || is_gone, "the guest's reset did not reach the host"),
            (!host.has_reset || !guest.was_connected || knows, "a reset did not reach the guest"),
            (!host.has_reset || is_gone, "a socket that was reset is still open"),
        ] {
            if !holds {
                return Err(what.to_owned());
            }
        }
        Ok(())
    }
}
