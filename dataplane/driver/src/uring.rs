//! The io_uring backend.
//!
//! # Theory of operation
//!
//! One multishot read takes the guest's frames from the TAP into large leases that lie ready in a ring of provided
//! buffers; the buffer's id *is* the lease. A burst of a hundred small frames costs one system call, where epoll needs a
//! hundred. Readiness of everything else comes from multishot polls, which are edge triggered; starting and ending
//! a watch rides on the next wait and costs no call of its own. Socket operations are direct calls.
//!
//! The ring is made disabled, restricted to the opcodes in use ([`restrictions`]), and enabled by the thread that runs
//! the shard, which alone may submit to it (`IORING_SETUP_SINGLE_ISSUER`). Work is deferred to the wait
//! (`IORING_SETUP_DEFER_TASKRUN`): completions appear only there, so that nothing changes within a turn.
//!
//! A request holds a reference to its file. A watched descriptor that is closed is really closed when the end of its poll
//! has been submitted, at the end of the turn. It is ended by `IORING_OP_ASYNC_CANCEL`: `IORING_OP_POLL_REMOVE` fails
//! with `EALREADY` while an event of the poll waits to be told, which for a socket that its peer has just closed is
//! always so, and the poll and the socket would stay for ever (`io_poll_remove`, io_uring/poll.c).
//!
//! What ends a watch completes once: the poll with `ECANCELED`, or the cancellation if there was no poll any more. It
//! does so at the next wait, and says nothing; so that wait asks for as many completions more.
//!
//! For the same reason the ring ends all of its requests before it goes ([`Uring::end_requests`]). The kernel would do
//! it some milliseconds after the process has ended (`io_ring_exit_work`, io_uring/io_uring.c): until then the ports of
//! forwards would be taken and the TAP there. Watches are ended one by one before that: a request that ends all others finds
//! each of them by going through all that it has ended before (`io_poll_cancel`, io_uring/poll.c; a daemon with 18,000 flows
//! took six seconds to end), and one that names its watch looks through a 64th of them.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, register, squeue};
use usernet_core::LeaseId;

use crate::arena::Arena;
use crate::backend::{Backend, Event, FromTap, RawFrame, Ready, Token, may_have_more};
use crate::bufring::BufferRing;
use crate::tap::Tap;

/// Entries of the submission queue. When it is full it is submitted.
const SUBMISSIONS: u32 = 256;

/// Entries of the completion queue: a poll that finds it full has to be started again, which with 10,000 busy flows makes no
/// difference. The queues count as locked memory of the user's, for all processes together (`RLIMIT_MEMLOCK`: 8 MiB,
/// and 64 KiB before Linux 5.16), unless there is `CAP_IPC_LOCK`: these are 56 KiB, so 146 daemons have a ring.
const COMPLETIONS: u32 = 2_048;

/// Leases that lie ready for frames, at most: enough for a burst of small ones.
const BUFFERS: u16 = 64;

/// The fewest.
const BUFFERS_MIN: usize = 8;

/// Bytes of frames that lie ready. They are used in turn, and what does not stay in the cache until its turn comes again
/// is copied twice through the memory: super-frames in 64 buffers cost a quarter of the throughput.
const READY_BYTES: usize = 512 << 10;

/// The only group of provided buffers.
const GROUP: u16 = 0;

/// `user_data` of requests whose completion says nothing.
const IGNORED: u64 = u64::MAX;

/// `user_data` of the request that ends all others.
const END_ALL: u64 = u64::MAX - 1;

/// How long each completion of a request that was ended may take: it is due at once.
const END_PATIENCE: Duration = Duration::from_millis(100);

/// See the [module](self).
pub(crate) struct Uring {
    ring: IoUring,
    buffers: BufferRing,
    /// Whether the kernel has multishot reads (Linux 6.7). Without them the TAP is polled, and read by direct calls.
    reads_on_ring: bool,
    /// The request on the TAP is alive.
    tap_is_armed: bool,
    /// Without multishot reads: the TAP has not said that it is empty.
    tap_is_ready: bool,
    /// The TAP's descriptor, for starting its request again.
    tap: RawFd,
    /// Frames that have come and were not asked for yet.
    frames: VecDeque<RawFrame>,
    /// Their size, smoothed.
    frame_bytes: usize,
    /// Buffers that a failed read has taken.
    unused: Vec<LeaseId>,
    /// What the read of the TAP ended with.
    tap_error: Option<io::Error>,
    /// Whether a request can be silent when it succeeds (Linux 5.17).
    has_silent_requests: bool,
    /// Completions to come that say nothing.
    ending: usize,
}

impl Uring {
    /// Makes the ring, disabled. The error says what was tried.
    pub(crate) fn new() -> Result<Self, (&'static str, io::Error)> {
        let ring = setup().map_err(|error| ("io_uring_setup", error))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(("the kernel's io_uring is too old", io::ErrorKind::Unsupported.into()));
        }
        let has_silent_requests = ring.params().is_feature_skip_cqe_on_success();
        let mut probe = Probe::new();
        let submitter = ring.submitter();
        submitter
            .register_probe(&mut probe)
            .map_err(|error| ("probing io_uring's operations", error))?;
        let reads_on_ring = probe.is_supported(opcode::ReadMulti::CODE);
        let buffers = BufferRing::new(BUFFERS).map_err(|error| ("buffers for io_uring", error))?;
        // SAFETY: `buffers` is stored beside the ring and dropped after it.
        unsafe { submitter.register_buf_ring_with_flags(buffers.address(), BUFFERS, GROUP, 0) }
            .map_err(|error| ("registering buffers with io_uring", error))?;
        submitter
            .register_restrictions(&mut restrictions())
            .map_err(|error| ("restricting io_uring", error))?;
        Ok(Self {
            ring,
            buffers,
            reads_on_ring,
            tap_is_armed: false,
            tap_is_ready: true,
            tap: -1,
            frames: VecDeque::with_capacity(usize::from(BUFFERS)),
            frame_bytes: 0,
            unused: Vec::new(),
            tap_error: None,
            has_silent_requests,
            ending: 0,
        })
    }

    /// Queues a request; a full queue is submitted first.
    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: requests point to nothing but provided buffers, which the arena outlives the ring with.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    /// Puts free leases in the ring of buffers, as many as the guest's frames ask for.
    fn fill_buffers(&mut self, tap: &Tap, arena: &mut Arena) {
        while self.buffers.len() < ready_buffers(self.frame_bytes)
            && let Some(lease) = arena.take_large()
        {
            let (pointer, len) = tap.read_target(arena, lease);
            // Ids of leases are dense and below the limit, which `Runtime::new` keeps below 65,536.
            self.buffers.add(pointer, len as u32, lease.0 as u16);
        }
        self.buffers.publish();
    }

    /// Starts the request on the TAP, if it is not alive.
    fn arm_tap(&mut self) -> io::Result<()> {
        if self.tap_is_armed || self.tap < 0 || (self.reads_on_ring && self.buffers.is_empty()) {
            return Ok(());
        }
        let entry = if self.reads_on_ring {
            // Length 0: that of the buffer.
            opcode::ReadMulti::new(Fd(self.tap), 0, GROUP).build()
        } else {
            poll(self.tap, Token::Tap)
        };
        self.push(&entry.user_data(Token::Tap.pack()))?;
        self.tap_is_armed = true;
        Ok(())
    }

    /// Ends the watch of a token. Where it fails the ring is broken, and the next wait says so.
    fn cancel(&mut self, token: Token) {
        let mut cancel = opcode::AsyncCancel::new(token.pack()).build().user_data(IGNORED);
        if self.has_silent_requests {
            cancel = cancel.flags(Flags::SKIP_SUCCESS);
            self.ending += 1;
        }
        let _ = self.push(&cancel);
    }

    /// Lets watches that are ended go, and forgets what has completed. Where it fails, what comes next does, too.
    fn reap(&mut self) {
        let patience = Timespec::from(END_PATIENCE);
        let args = SubmitArgs::new().timespec(&patience);
        let _ = self.ring.submitter().submit_with_args(mem::take(&mut self.ending), &args);
        self.ring.completion().for_each(drop);
    }

    /// Ends all requests, so that the files they refer to are free when their descriptors are closed: how many there were.
    /// Where it fails, as before Linux 5.19 and for a ring that was never enabled, the kernel does it in its own time.
    fn end_requests(&mut self) -> usize {
        let patience = Timespec::from(END_PATIENCE);
        let args = SubmitArgs::new().timespec(&patience);
        let mut all = 0;
        loop {
            let end_all =
                opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(END_ALL);
            if self.push(&end_all).is_err() {
                return all;
            }
            // Its own completion first; it says how many are to come.
            let (mut ended, mut to_come) = (0, None);
            while to_come.is_none_or(|to_come| ended < to_come) {
                if self.ring.submitter().submit_with_args(1, &args).is_err() {
                    return all;
                }
                for entry in self.ring.completion() {
                    match entry.user_data() {
                        END_ALL => to_come = Some(entry.result()),
                        _ if entry.result() == -libc::ECANCELED => ended += 1,
                        _ => {}
                    }
                }
            }
            all += ended as usize;
            // Something that had ended before may have been counted. If so, this finds the rest.
            if to_come.is_none_or(|ended| ended <= 0) {
                return all;
            }
        }
    }

    /// Submits what is queued, and waits for a completion.
    fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let time;
        let mut args = SubmitArgs::new();
        let want = match timeout {
            Some(Duration::ZERO) => 0,
            None => 1 + self.ending,
            Some(timeout) => {
                time = Timespec::from(timeout);
                args = args.timespec(&time);
                1 + self.ending
            }
        };
        if want > 0 {
            // They are there when this returns; one that were not would be waited for but once.
            self.ending = 0;
        }
        match self.ring.submitter().submit_with_args(want, &args) {
            Ok(_) => Ok(()),
            // The timeout; a signal; completions that wait to be taken before more can be submitted.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn on_completion(&mut self, entry: &cqueue::Entry, events: &mut Vec<Event>) {
        let Some(token) = Token::unpack(entry.user_data()) else {
            self.ending = self.ending.saturating_sub(1);
            return;
        };
        let has_ended = !cqueue::more(entry.flags());
        if token == Token::Tap {
            return self.on_tap(entry, has_ended);
        }
        let Ok(mask) = u32::try_from(entry.result()) else {
            // ECANCELED, mostly: the watch was ended. What else a poll may fail with, a direct call will find.
            if entry.result() == -libc::ECANCELED {
                self.ending = self.ending.saturating_sub(1);
            } else {
                let ready = Ready { read: true, write: true, error: true, hung_up: false };
                events.push(Event { token, ready, has_ended });
            }
            return;
        };
        let has = |bits: i16| mask & bits as u32 != 0;
        let ready = Ready {
            read: has(libc::POLLIN | libc::POLLRDHUP | libc::POLLHUP),
            write: has(libc::POLLOUT),
            error: has(libc::POLLERR),
            hung_up: has(libc::POLLRDHUP),
        };
        events.push(Event { token, ready, has_ended });
    }

    fn on_tap(&mut self, entry: &cqueue::Entry, has_ended: bool) {
        self.tap_is_armed &= !has_ended;
        if !self.reads_on_ring {
            self.tap_is_ready = true;
            return;
        }
        let lease = cqueue::buffer_select(entry.flags()).map(|id| LeaseId(u32::from(id)));
        if let Some(lease) = lease {
            self.buffers.on_taken(lease.0 as u16);
        }
        match (usize::try_from(entry.result()), lease) {
            // A socket at its end, or a message without bytes. A TAP never says so.
            (Ok(0), lease) => {
                self.unused.extend(lease);
                self.tap_error = Some(io::ErrorKind::UnexpectedEof.into());
            }
            (Ok(bytes), Some(lease)) => {
                self.frame_bytes = (self.frame_bytes * 7 + bytes) / 8;
                self.frames.push_back(RawFrame { lease, bytes });
            }
            // Out of buffers: it starts again when there are some.
            (Err(_), _) if entry.result() == -libc::ENOBUFS => {}
            (Err(_), lease) => {
                self.unused.extend(lease);
                self.tap_error = Some(io::Error::from_raw_os_error(-entry.result()));
            }
            (Ok(_), None) => {}
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.end_requests();
    }
}

impl Backend for Uring {
    const NAME: &'static str = "io_uring";

    fn start(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()
    }

    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        if token == Token::Tap {
            self.tap = fd.as_raw_fd();
            return Ok(());
        }
        self.push(&poll(fd.as_raw_fd(), token).user_data(token.pack()))
    }

    fn forget(&mut self, _fd: BorrowedFd<'_>, token: Token) {
        self.cancel(token);
    }

    fn forget_shared(&mut self, fd: BorrowedFd<'_>, token: Token) {
        self.forget(fd, token);
    }

    fn end(&mut self, tokens: impl Iterator<Item = Token>) {
        for (n, token) in (1..).zip(tokens) {
            self.cancel(token);
            // What is ended stays in the way of what is not, until it is let go.
            if n % SUBMISSIONS == 0 {
                self.reap();
            }
        }
        self.reap();
        self.end_requests();
    }

    fn wait(
        &mut self,
        tap: &Tap,
        arena: &mut Arena,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        for lease in self.unused.drain(..) {
            arena.release(lease);
        }
        if self.reads_on_ring {
            self.fill_buffers(tap, arena);
        }
        self.arm_tap()?;
        self.enter(timeout)?;
        while let Some(entry) = { self.ring.completion().next() } {
            self.on_completion(&entry, events);
        }
        Ok(())
    }

    fn may_have_events(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    fn next_frame(&mut self, tap: &Tap, arena: &mut Arena) -> io::Result<FromTap> {
        if let Some(frame) = self.frames.pop_front() {
            return Ok(FromTap::Frame(frame));
        }
        if let Some(error) = self.tap_error.take() {
            return Err(error);
        }
        if self.reads_on_ring || !self.tap_is_ready {
            return Ok(FromTap::Empty);
        }
        let result = tap.read_frame(arena);
        self.tap_is_ready = may_have_more(&result);
        result
    }

    fn reads_ahead(&self) -> bool {
        self.reads_on_ring
    }

    fn has_frames(&self) -> bool {
        !self.frames.is_empty()
            || self.tap_error.is_some()
            || (!self.reads_on_ring && self.tap_is_ready)
    }

    fn on_idle(&mut self, arena: &Arena) {
        // The kernel writes to these only within our own waits.
        for lease in self.buffers.ids() {
            arena.discard(LeaseId(u32::from(lease)));
        }
    }

    fn leases_held(&self) -> u32 {
        (self.buffers.len() + self.unused.len()) as u32
    }
}

/// How many buffers lie ready for frames of this size.
fn ready_buffers(frame_bytes: usize) -> usize {
    (READY_BYTES / frame_bytes.max(1)).clamp(BUFFERS_MIN, usize::from(BUFFERS))
}

/// A ring for one thread, disabled. Kernels before 6.1 cannot defer work to the wait.
fn setup() -> io::Result<IoUring> {
    let mut deferred = IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun().setup_taskrun_flag();
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for mut builder in [deferred, cooperative] {
        builder.setup_r_disabled().setup_clamp().setup_cqsize(COMPLETIONS);
        result = builder.build(SUBMISSIONS);
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Ok(_) | Err(_) => break,
        }
    }
    result
}

/// What may be submitted, and nothing else: no opens, no connects, no sends. After this, nothing can be registered
/// any more.
fn restrictions() -> [register::Restriction; 4] {
    [
        register::Restriction::sqe_op(opcode::ReadMulti::CODE),
        register::Restriction::sqe_op(opcode::PollAdd::CODE),
        register::Restriction::sqe_op(opcode::AsyncCancel::CODE),
        register::Restriction::sqe_flags_allowed(
            (Flags::BUFFER_SELECT | Flags::SKIP_SUCCESS).bits(),
        ),
    ]
}

/// A multishot poll, edge triggered as all of them are.
fn poll(fd: RawFd, token: Token) -> squeue::Entry {
    let bits = match token {
        Token::Tap | Token::Mailbox | Token::Exit => libc::POLLIN,
        Token::Room => libc::POLLOUT,
        Token::Socket { .. } | Token::PairClient { .. } | Token::PairServer { .. } => {
            libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP
        }
    };
    opcode::PollAdd::new(Fd(fd), bits as u32).multi(true).build()
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn tokens() -> impl Iterator<Item = Token> {
        (0..).map(|index| Token::Socket { index, generation: 0 })
    }

    /// A ring that watches so many pipes.
    fn watching(pipes: usize) -> (Uring, Vec<PipeReader>, Vec<PipeWriter>) {
        let pipes = (0..pipes).map(|_| io::pipe().expect("a pipe"));
        let (readers, writers): (Vec<_>, Vec<_>) = pipes.unzip();
        let mut ring = Uring::new().expect("a ring");
        ring.start().expect("it can be enabled");
        for (token, reader) in tokens().zip(&readers) {
            ring.watch(reader.as_fd(), token).expect("room");
        }
        (ring, readers, writers)
    }

    #[test]
    fn a_ring_that_is_gone_keeps_no_file_open() {
        let (mut ring, readers, mut writers) = watching(300);
        for (token, reader) in tokens().zip(&readers) {
            // Some watches end before the ring does, and some have something to tell.
            match token {
                Token::Socket { index, .. } if index % 3 == 0 => ring.forget(reader.as_fd(), token),
                Token::Socket { index, .. } if index % 3 == 1 => {
                    writers[index as usize].write_all(b"?").expect("room");
                }
                _ => {}
            }
        }
        ring.ring.submit().expect("they are valid");
        drop(ring);
        drop(readers);
        for (index, mut writer) in writers.into_iter().enumerate() {
            let written = writer.write(b"!").map_err(|error| error.kind());
            assert_eq!(written, Err(io::ErrorKind::BrokenPipe), "pipe {index} has a reader");
        }
    }

    #[test]
    fn watches_are_ended_by_name() {
        let (mut ring, _readers, mut writers) = watching(100);
        ring.ring.submit().expect("they are valid");
        writers.iter_mut().step_by(3).for_each(|writer| writer.write_all(b"?").expect("room"));
        for token in tokens().take(80) {
            ring.cancel(token);
        }
        ring.reap();
        // More would be found by looking through all that were ended before, each time.
        assert_eq!(ring.end_requests(), 20);
    }

    #[test]
    fn the_queues_fit_the_locked_memory_of_a_user() {
        let ring = setup().expect("a ring");
        let entries = ring.params().sq_entries();
        // io_uring_setup(2): the entries to submit in one mapping, and in another one their order, what has been completed, and
        // where each queue begins and ends, which is less than a page.
        let submissions = entries as usize * size_of::<squeue::Entry>();
        let order = entries as usize * size_of::<u32>();
        let completions = ring.params().cq_entries() as usize * size_of::<cqueue::Entry>();
        let provided = usize::from(BUFFERS) * 16;
        let mappings = [submissions, order + completions + 320, provided];
        let locked: usize = mappings.iter().map(|bytes| bytes.next_multiple_of(4_096)).sum();
        assert!(locked <= 64 << 10, "{locked} bytes of locked memory");
    }

    #[test]
    fn few_buffers_for_super_frames_and_all_of_them_for_small_ones() {
        assert_eq!(ready_buffers(65_550), BUFFERS_MIN);
        assert_eq!(ready_buffers(30_000), 17);
        assert_eq!(ready_buffers(1_514), usize::from(BUFFERS));
        assert_eq!(ready_buffers(0), usize::from(BUFFERS));
    }
}
