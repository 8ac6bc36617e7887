//! A shard with everything around it: what runs in a [`Runtime`](crate::Runtime)'s thread.
//!
//! # A turn
//!
//! 1. Wait, awake for a while where that pays ([`busy`](crate::busy)). One clock reading follows, and holds for the whole turn.
//! 2. Take the frames that are there, up to [`FRAMES_PER_TURN`]: the TAP's queue is where a guest's packets get lost, so
//!    it comes before anything else; the bound is for the sockets' sake. What [other shards](crate::handover) have handed
//!    over comes next.
//! 3. Handle the sockets' events, and what an earlier turn had to leave.
//! 4. Tick, if a deadline has come.
//! 5. Settle what was consumed.
//!
//! After each step the ops that came of it are run ([`exec`](crate::exec)), what they complete with goes straight
//! back into the shard, and the shard is flushed, until nothing is left to do.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use usernet_core::op::RESERVE_BYTES_MAX;
use usernet_core::{
    FlowInfo, FlowKind, Input, Instant, LeaseId, Op, Outbox, Rules, Shard, SocketId, Span,
};

use crate::arena::Arena;
use crate::backend::{Backend, Event, FromTap, Token};
use crate::busy::BusyPoll;
use crate::caps::Caps;
use crate::connect::Promptness;
use crate::counters::{Counter, Counters};
use crate::courtesy::Courtesy;
use crate::datagram::{Datagrams, ReceiveBatch, SEND_BATCH, SEND_BUFFERS, SendBatch};
use crate::errqueue::ErrorQueue;
use crate::exec::Outgoing;
use crate::handover::Post;
use crate::lending::Lending;
use crate::listen::{Accepted, Listener};
use crate::locals::Locals;
use crate::mailbox::{InstallError, NewListener, Status};
use crate::retry::Retries;
use crate::runtime::Ended;
use crate::setup::{DriverError, LinkKind, NamespaceSockets, Outbound};
use crate::splice::Pipes;
use crate::stream::{PeekRequest, Waste};
use crate::sys;
use crate::table::{Socket, Table};
use crate::tap::Tap;
use usernet_core::rules::Protocol;

/// Frames taken per turn.
const FRAMES_PER_TURN: usize = 256;

/// Frames taken before the ops they caused are run, and their bytes: few enough that the payload is still in the
/// cache, and enough that small datagrams make a train.
const FRAMES_PER_STEP: usize = 64;
const BYTES_PER_STEP: usize = 1 << 20;

/// From so many bytes on a frame is sent on before the next one is read: so it is copied out of the cache that it has just
/// been copied into (decision 15).
const SUPER_FRAME_BYTES: usize = 32 << 10;

/// Bytes taken so before the guest hears of it, where more are there.
const BYTES_PER_ACK: usize = 1 << 20;

/// How often pages that nobody needs are given back.
const TRIM_PERIOD: Duration = Duration::from_secs(1);

/// How long a listener waits after the process ran out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What was taken before the ops it caused are run.
#[derive(Clone, Copy, Debug)]
struct Step {
    frames: usize,
    /// Bytes of them, virtio-net headers included.
    bytes: usize,
    end: StepEnd,
}

/// Why no more was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StepEnd {
    /// There was no more.
    Empty,
    /// It was enough.
    Full,
    /// What came last is to be sent on before it leaves the cache.
    SuperFrame,
}

/// Where the core puts its ops, and where it gets buffers for frames of its own.
pub(crate) struct Queue {
    pub(crate) ops: Vec<Op>,
    /// Sockets whose `Close` is in `ops`: the core hears nothing of them any more.
    closing: Vec<SocketId>,
    pub(crate) arena: Arena,
}

impl Queue {
    pub(crate) fn new(arena: Arena) -> Self {
        Self { ops: Vec::with_capacity(1024), closing: Vec::with_capacity(64), arena }
    }

    /// Whether the core has given up on the socket already.
    pub(crate) fn is_closing(&self, socket: SocketId) -> bool {
        !self.closing.is_empty() && self.closing.contains(&socket)
    }

    /// The `Close` has been run.
    pub(crate) fn forget_closing(&mut self, socket: SocketId) {
        self.closing.retain(|&closing| closing != socket);
    }

    /// Gives back the leases of a send run whose socket the core has closed. A lease that follows itself is one.
    pub(crate) fn release_run(&mut self, run: &[Span]) {
        let mut last = None;
        for span in run {
            if last != Some(span.lease) {
                self.arena.release(span.lease);
            }
            last = Some(span.lease);
        }
    }
}

impl Outbox for Queue {
    fn op(&mut self, op: Op) {
        if let Op::Close { socket, .. } = op {
            self.closing.push(socket);
        }
        self.ops.push(op);
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        assert!(size <= RESERVE_BYTES_MAX, "the core reserves small frames only");
        let lease = self.arena.take_small()?;
        // SAFETY: just taken; the core is the only one to look at it until it gives it back.
        Some((lease, unsafe { self.arena.show(lease, size) }))
    }
}

/// What an engine is made of, beside its backend.
pub(crate) struct Parts {
    pub(crate) shard: Shard,
    pub(crate) arena: Arena,
    pub(crate) tap: Tap,
    pub(crate) caps: Caps,
    pub(crate) outbound: Outbound,
    pub(crate) namespace: Option<Box<dyn NamespaceSockets>>,
    pub(crate) busy_poll: Duration,
    pub(crate) lend_below: Duration,
    pub(crate) post: Option<Post>,
}

/// See the [module](self).
pub(crate) struct Engine<B: Backend> {
    /// Dropped first: it may refer to buffers of the arena.
    pub(crate) backend: B,
    pub(crate) shard: Shard,
    pub(crate) queue: Queue,
    /// Ops being run, swapped with the queue's.
    pub(crate) running: Vec<Op>,
    /// The same for what runs between them.
    pub(crate) running_between: Vec<Op>,
    pub(crate) tap: Tap,
    pub(crate) table: Table,
    pub(crate) accepted: Accepted,
    pub(crate) namespace: Option<Box<dyn NamespaceSockets>>,
    pub(crate) outbound: Outbound,
    pub(crate) caps: Caps,
    pub(crate) counters: Counters,
    /// The time of this turn.
    pub(crate) now: Instant,
    pub(crate) busy: BusyPoll,
    pub(crate) promptness: Promptness,
    pub(crate) courtesy: Courtesy,
    events: Vec<Event>,
    /// How long it has been waited in all.
    pub(crate) idle: Duration,
    pub(crate) lending: Lending,
    /// Sockets that were left with something to read, to be taken up in the next turn.
    pub(crate) again: Vec<Token>,
    /// Those of this turn.
    again_now: Vec<Token>,
    /// Streams with bytes that the core has given up and the kernel still has.
    pub(crate) unsettled: Vec<SocketId>,
    /// Peeks that wait for a lease, oldest first.
    pub(crate) peeks_waiting: Vec<(SocketId, PeekRequest)>,
    /// Sends that wait for room.
    pub(crate) retries: Retries,
    /// Listeners that wait for a descriptor.
    pub(crate) listeners_waiting: Vec<SocketId>,
    /// When those are tried again.
    pub(crate) accept_again_at: Option<Instant>,
    /// When pages are given back.
    trim_at: Option<Instant>,
    pub(crate) waste: Waste,
    pub(crate) receive_batch: ReceiveBatch,
    pub(crate) send_batch: SendBatch,
    /// For datagrams that go one by one.
    pub(crate) single: SendBatch,
    pub(crate) outgoing: Vec<Outgoing>,
    pub(crate) error_queue: ErrorQueue,
    /// Names of the host's addresses.
    pub(crate) locals: Locals,
    pub(crate) pipes: Pipes,
    /// The spans of the run being sent.
    pub(crate) run: Vec<Span>,
    /// The way to the other shards; none: there are none.
    pub(crate) post: Option<Post>,
    /// Listeners of forwards that are not in force yet.
    prepared: Vec<(SocketId, Socket)>,
}

impl<B: Backend> Drop for Engine<B> {
    fn drop(&mut self) {
        self.backend.end(self.table.tokens());
    }
}

impl<B: Backend> Engine<B> {
    pub(crate) fn new(parts: Parts, mut backend: B) -> Result<Self, DriverError> {
        let Parts { shard, arena, tap, caps, outbound, namespace, busy_poll, lend_below, post } =
            parts;
        if !shard.config().share.is_borrower() {
            backend
                .watch(tap.fd(), Token::Tap)
                .map_err(DriverError::system("cannot wait for the link"))?;
        }
        if tap.kind() == LinkKind::Packets {
            backend
                .watch(tap.fd(), Token::Room)
                .map_err(DriverError::system("cannot wait for room in the link"))?;
        }
        Ok(Self {
            shard,
            queue: Queue::new(arena),
            running: Vec::with_capacity(1024),
            running_between: Vec::with_capacity(64),
            backend,
            tap,
            table: Table::default(),
            accepted: Accepted::default(),
            namespace,
            outbound,
            waste: Waste::new(!caps.tcp_peek_offset),
            caps,
            counters: Counters::default(),
            now: clock(),
            busy: BusyPoll::new(busy_poll),
            promptness: Promptness::default(),
            courtesy: Courtesy::new(sys::is_scheduled_as_usual()),
            events: Vec::with_capacity(256),
            idle: Duration::ZERO,
            lending: Lending::new(lend_below),
            again: Vec::new(),
            again_now: Vec::new(),
            unsettled: Vec::new(),
            peeks_waiting: Vec::new(),
            retries: Retries::default(),
            listeners_waiting: Vec::new(),
            accept_again_at: None,
            trim_at: None,
            receive_batch: ReceiveBatch::new(),
            send_batch: SendBatch::new(SEND_BATCH, SEND_BUFFERS),
            single: SendBatch::new(1, 1),
            outgoing: Vec::new(),
            error_queue: ErrorQueue::new(),
            locals: Locals::default(),
            pipes: Pipes::default(),
            run: Vec::with_capacity(64),
            post,
            prepared: Vec::new(),
        })
    }

    /// One turn. What the caller itself has to look at, mailbox and exit descriptors, is appended to `others`.
    pub(crate) fn turn(&mut self, others: &mut Vec<Event>) -> Result<Option<Ended>, DriverError> {
        let mut events = std::mem::take(&mut self.events);
        let timeout = self.timeout();
        self.wait(timeout, &mut events).map_err(DriverError::system("cannot wait"))?;
        self.now = clock();
        self.counters.count(Counter::Turns);
        if let Some(ended) = self.take_frames() {
            return Ok(Some(ended));
        }
        if let Some(post) = &self.post {
            post.is_awake();
            self.take_letters();
        }
        for event in events.drain(..) {
            self.on_event(event, others);
        }
        self.events = events;
        self.run_ops();
        self.take_up_again();
        self.on_time();
        self.flush();
        self.settle();
        self.be_courteous();
        self.balance();
        Ok(None)
    }

    /// Waits for events or the end of `timeout`; awake, as long as that pays.
    fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let begin = clock();
        if let Some(awake) = self.busy.time(timeout) {
            if self.look(begin + awake, events)? {
                let waited = clock().since(begin);
                self.idle += waited;
                self.busy.on_waited(waited);
                self.count(Counter::WaitsAwake);
                return Ok(());
            }
            if timeout == Some(awake) {
                self.busy.on_deadline();
                return Ok(());
            }
        }
        self.backend.wait(&self.tap, &mut self.queue.arena, timeout, events)?;
        if timeout != Some(Duration::ZERO) {
            let waited = clock().since(begin);
            self.idle += waited;
            self.busy.on_waited(waited);
        }
        Ok(())
    }

    /// Looks for events until there are some, or the time has come: whether there are.
    fn look(&mut self, until: Instant, events: &mut Vec<Event>) -> io::Result<bool> {
        // What is queued for the kernel goes to it first.
        loop {
            self.backend.wait(&self.tap, &mut self.queue.arena, Some(Duration::ZERO), events)?;
            if !events.is_empty() || self.backend.has_frames() {
                return Ok(true);
            }
            while !self.backend.may_have_events() {
                if clock() >= until {
                    return Ok(false);
                }
                std::hint::spin_loop();
            }
            if clock() >= until {
                return Ok(false);
            }
        }
    }

    /// Tells the core.
    pub(crate) fn tell(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.queue);
    }

    pub(crate) fn count(&mut self, counter: Counter) {
        self.counters.count(counter);
    }

    /// How long there is nothing to do without an event. None: for ever.
    fn timeout(&self) -> Option<Duration> {
        // What waits for a lease waits for one to be given back, which an event or a deadline brings about.
        let has_work = self.backend.has_frames() || !self.again.is_empty();
        if has_work && self.queue.arena.has_large() {
            return Some(Duration::ZERO);
        }
        if let Some(post) = &self.post
            && !post.goes_to_sleep()
            && self.queue.arena.has_large()
        {
            return Some(Duration::ZERO);
        }
        let deadline = self.shard.next_deadline().map(|(at, _)| at);
        let lending = [self.lending.look_at, self.lending.retry_at];
        let own = [self.trim_at, self.accept_again_at, self.retries.at()];
        let own = own.into_iter().chain(lending);
        let next = own.chain([deadline]).flatten().min()?;
        Some(next.since(clock()))
    }

    /// The guest's frames. Some: there will be no more.
    fn take_frames(&mut self) -> Option<Ended> {
        let (mut frames, mut bytes) = (0, 0);
        while frames < FRAMES_PER_TURN {
            let step = match self.take_step() {
                Ok(step) => step,
                Err(error) => match self.tap.end(&error) {
                    Some(ended) => return Some(ended),
                    None => {
                        self.count(Counter::TapReadErrors);
                        Step { frames: 0, bytes: 0, end: StepEnd::Empty }
                    }
                },
            };
            frames += step.frames;
            bytes += step.bytes;
            if step.end == StepEnd::SuperFrame && bytes < BYTES_PER_ACK {
                self.flush_by(Shard::flush_amid_frames);
                continue;
            }
            self.flush();
            if step.end == StepEnd::Empty {
                break;
            }
            bytes = 0;
        }
        None
    }

    /// Some of the frames that are there.
    fn take_step(&mut self) -> io::Result<Step> {
        let mut step = Step { frames: 0, bytes: 0, end: StepEnd::Full };
        while step.frames < FRAMES_PER_STEP && step.bytes < BYTES_PER_STEP {
            let raw = match self.backend.next_frame(&self.tap, &mut self.queue.arena)? {
                FromTap::Frame(raw) => raw,
                FromTap::Empty => {
                    step.end = StepEnd::Empty;
                    break;
                }
                FromTap::Starved => {
                    self.count(Counter::TapStarved);
                    // What was taken may give buffers back.
                    if step.frames == 0 {
                        step.end = StepEnd::Empty;
                    }
                    break;
                }
            };
            step.frames += 1;
            step.bytes += raw.bytes;
            let Ok((len, offload)) = self.tap.decode(&self.queue.arena, raw) else {
                self.count(Counter::BadVnetHeaders);
                self.queue.arena.release(raw.lease);
                continue;
            };
            self.busy.on_moved(len);
            // SAFETY: the lease was filled for us and goes to the core; nobody else looks at it.
            let bytes = unsafe { self.queue.arena.show(raw.lease, len) };
            if self.tap.capture(bytes, offload).is_err() {
                self.count(Counter::CaptureErrors);
            }
            self.tell(Input::Frame { lease: raw.lease, bytes, offload });
            if raw.bytes >= SUPER_FRAME_BYTES && !self.backend.reads_ahead() {
                step.end = StepEnd::SuperFrame;
                break;
            }
        }
        Ok(step)
    }

    /// Runs what there is to run, lets the shard add what it has put together, and so on until it has nothing more.
    pub(crate) fn flush(&mut self) {
        self.flush_by(Shard::flush);
    }

    fn flush_by(&mut self, flush: fn(&mut Shard, Instant, &mut dyn Outbox)) {
        self.run_ops();
        loop {
            flush(&mut self.shard, self.now, &mut self.queue);
            if self.queue.ops.is_empty() {
                return;
            }
            self.run_ops();
        }
    }

    /// What the last turn has left.
    fn take_up_again(&mut self) {
        if self.again.is_empty() {
            return;
        }
        std::mem::swap(&mut self.again, &mut self.again_now);
        let mut tokens = std::mem::take(&mut self.again_now);
        for token in tokens.drain(..) {
            self.on_again(token);
        }
        self.again_now = tokens;
        self.run_ops();
    }

    /// Deadlines: the core's, and our own.
    fn on_time(&mut self) {
        if self.shard.next_deadline().is_some_and(|(at, _)| at <= self.now) {
            self.tell(Input::Tick);
            self.run_ops();
        }
        self.retry();
        if self.accept_again_at.is_some_and(|at| at <= self.now) {
            self.accept_again_at = None;
            for listener in std::mem::take(&mut self.listeners_waiting) {
                self.accept(listener);
            }
            self.run_ops();
        }
        if self.trim_at.is_some_and(|at| at <= self.now) {
            self.trim_at = None;
            if self.queue.arena.trim() {
                // What was in use in this period may be idle in the next.
                self.trim_at = Some(self.now + TRIM_PERIOD);
            } else {
                self.backend.on_idle(&self.queue.arena);
            }
        }
        if self.trim_at.is_none() && self.queue.arena.is_untidy() {
            self.trim_at = Some(self.now + TRIM_PERIOD);
        }
    }

    /// The kernel drops what the core has given up.
    fn settle(&mut self) {
        while let Some(socket) = self.unsettled.pop() {
            let Some(stream) = self.table.stream(socket) else { continue };
            // An error shows again at the next peek or send.
            let _ = stream.settle();
        }
    }

    /// Tries a listener that ran out of descriptors again, later.
    pub(crate) fn accept_later(&mut self, listener: SocketId) {
        self.count(Counter::AcceptsStarved);
        if !self.listeners_waiting.contains(&listener) {
            self.listeners_waiting.push(listener);
        }
        self.accept_again_at.get_or_insert(self.now + ACCEPT_RETRY);
    }
}

/// What the control side asks for.
impl<B: Backend> Engine<B> {
    /// Everything that can be told in numbers.
    pub(crate) fn status(&self) -> Status {
        let mut flows = [0; 4];
        for flow in self.shard.flows() {
            let index = match flow.kind {
                FlowKind::Tcp => 0,
                FlowKind::Spliced => 1,
                FlowKind::Udp => 2,
                FlowKind::Ping => 3,
            };
            flows[index] += 1;
        }
        let [tcp_flows, spliced_flows, udp_flows, ping_flows] = flows;
        Status {
            backend: B::NAME,
            caps: self.caps.clone(),
            counters: self.shard.counters().iter().chain(self.counters.iter()).collect(),
            tcp_flows,
            spliced_flows,
            udp_flows,
            ping_flows,
            leases_in_use: self.queue.arena.in_use() - self.backend.leases_held(),
            leases_max: self.queue.arena.capacity(),
            sockets_in_use: self.table.in_use(),
        }
    }

    pub(crate) fn flows(&self) -> Vec<FlowInfo> {
        self.shard.flows().collect()
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(self.shard.rules())
    }

    /// Gets listeners ready that new rules need. What fails leaves some of them: [`Engine::forget_prepared`].
    pub(crate) fn prepare(&mut self, listeners: Vec<NewListener>) -> Result<(), InstallError> {
        self.now = clock();
        listeners.into_iter().try_for_each(|listener| self.prepare_listener(listener))
    }

    /// New rules. Listeners of forwards that are not in them are closed.
    pub(crate) fn install(&mut self, rules: Arc<Rules>) {
        self.now = clock();
        self.shard.install(rules, &mut self.queue);
        self.flush();
    }

    /// All shards have the rules: from here on clients are served.
    pub(crate) fn serve_prepared(&mut self) {
        for (id, socket) in self.prepared.drain(..) {
            self.table.insert(id, socket);
            // What was told meanwhile was told to nobody.
            self.again.push(Token::socket(id));
        }
    }

    /// The rules stay as they are.
    pub(crate) fn forget_prepared(&mut self) {
        for (id, socket) in self.prepared.drain(..) {
            self.backend.forget_shared(fd(&socket), Token::socket(id));
        }
        let rules = self.rules();
        // Closes listeners of forwards that are not in the rules.
        self.install(rules);
    }

    fn prepare_listener(&mut self, listener: NewListener) -> Result<(), InstallError> {
        let NewListener { forward, protocol, socket } = listener;
        let local = crate::address::local_address(std::os::fd::AsFd::as_fd(&socket))?;
        let socket = match protocol {
            Protocol::Tcp => Socket::Listener(Listener::new(socket)?),
            Protocol::Udp => Socket::Datagrams(Datagrams::bound(socket)?),
        };
        let id = self.attach(forward, protocol, local)?;
        let watched = self.backend.watch(fd(&socket), Token::socket(id));
        self.prepared.push((id, socket));
        Ok(watched?)
    }

    fn attach(
        &mut self,
        forward: usernet_core::ForwardId,
        protocol: Protocol,
        local: SocketAddr,
    ) -> Result<SocketId, InstallError> {
        self.shard
            .attach_listener(forward, protocol, local)
            .map_err(|usernet_core::TableFull| InstallError::TableFull)
    }
}

/// What a listener is watched by.
fn fd(socket: &Socket) -> BorrowedFd<'_> {
    match socket {
        Socket::Listener(listener) => listener.fd(),
        Socket::Datagrams(datagrams) => datagrams.fd(),
        Socket::Stream(_) | Socket::Pair(_) => unreachable!("a listener is neither"),
    }
}

/// `CLOCK_MONOTONIC`.
pub(crate) fn clock() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Instant::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}
