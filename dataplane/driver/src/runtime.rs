//! The workers' threads: set-up, the loop around the turns, and what the control side asks for in between.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use usernet_core::op::DatagramKind;
use usernet_core::{Shard, ShardId, Share};

use crate::arena::Arena;
use crate::backend::{Backend, Event, Token};
use crate::caps::Caps;
use crate::capture::Capture;
use crate::engine::{Engine, Parts};
use crate::epoll::Epoll;
use crate::handover::Post;
use crate::mailbox::{Handle, Mailbox, Request};
use crate::setup::{BackendChoice, DriverError, Link, LinkKind, NamespaceSockets, Setup};
use crate::tap::Tap;
use crate::uring::Uring;

/// Unacknowledged bytes in flight to the guest where the kernel cannot peek at an offset: every peek copies them
/// again.
const IN_FLIGHT_WITHOUT_PEEK_OFFSET: u32 = 256 << 10;

/// The same where the link is a socket: a few flows fill what may wait there.
const IN_FLIGHT_THROUGH_SOCKET: u32 = 512 << 10;

/// Why a runtime ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The TAP is gone, and with it the guest's namespace.
    NamespaceGone,
    /// The peer of a [`LinkKind::Packets`] has closed it.
    PeerClosed,
    /// One of the exit descriptors spoke.
    ExitFd,
    /// [`Handle::stop`].
    Stopped,
}

/// All workers of a guest. One per queue of the link.
pub struct Runtime {
    workers: Vec<Worker>,
}

/// A shard with everything it needs to run.
pub struct Worker {
    engine: Driver,
    mailbox: Mailbox,
    /// Watched, and otherwise only kept open.
    _exit_fds: Vec<OwnedFd>,
    /// To end the others by.
    all: Handle,
}

enum Driver {
    Epoll(Box<Engine<Epoll>>),
    Uring(Box<Engine<Uring>>),
}

impl Runtime {
    /// Probes the kernel and sets everything up; nothing is read from the TAP yet.
    pub fn new(setup: Setup) -> Result<(Self, Handle), DriverError> {
        let queues = setup.link.further.len() + 1;
        let homes = u8::try_from(queues).map_err(|_| DriverError::Limits("too many workers"))?;
        let choice = setup.backend;
        if homes > 1 && setup.lend.borrowers > 0 {
            return Err(DriverError::Limits("only one worker lends"));
        }
        let (parts, exit_fds) = parts(setup, homes)?;
        let (mailboxes, handle) = Mailbox::for_workers(parts[0].shard.config())
            .map_err(DriverError::system("cannot make an eventfd"))?;
        let posts: Vec<_> = match parts.len() {
            1 => vec![None],
            _ => Post::among(mailboxes.iter().map(Mailbox::wake)).into_iter().map(Some).collect(),
        };
        // The first one watches, and ends the others.
        let exit_fds = std::iter::once(exit_fds).chain(std::iter::repeat_with(Vec::new));
        let workers = parts
            .into_iter()
            .zip(posts)
            .zip(mailboxes)
            .zip(exit_fds)
            .map(|(((parts, post), mailbox), exit_fds)| {
                let all = handle.clone();
                Worker::new(choice, Parts { post, ..parts }, mailbox, exit_fds, all)
            })
            .collect::<Result<_, _>>()?;
        Ok((Self { workers }, handle))
    }

    /// The workers, each to be run by a thread of its own. When one of them ends, so do the others.
    pub fn into_workers(self) -> Vec<Worker> {
        self.workers
    }

    /// Runs until the end, on the calling thread and one more for each further worker.
    pub fn run(self) -> Result<Ended, DriverError> {
        let mut workers = self.workers.into_iter();
        let first = workers.next().expect("a link has a queue");
        let others: Vec<_> = workers.map(|worker| thread::spawn(move || worker.run())).collect();
        let ended = first.run();
        let others = others.into_iter().map(|thread| thread.join());
        conclude(std::iter::once(Ok(ended)).chain(others))
    }
}

/// Why a runtime ended, from how its workers' threads did: the first failure, or else the first reason. A panic goes on.
pub fn conclude(
    workers: impl IntoIterator<Item = thread::Result<Result<Ended, DriverError>>>,
) -> Result<Ended, DriverError> {
    let mut ended = Ended::Stopped;
    for worker in workers {
        let why = worker.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if ended == Ended::Stopped {
            ended = why;
        }
    }
    Ok(ended)
}

impl Worker {
    fn new(
        choice: BackendChoice,
        mut parts: Parts,
        mailbox: Mailbox,
        exit_fds: Vec<OwnedFd>,
        all: Handle,
    ) -> Result<Self, DriverError> {
        // A ring takes locked memory, and is for reading the link above all.
        let is_borrower = parts.shard.config().share.is_borrower();
        let choice = if is_borrower { BackendChoice::Epoll } else { choice };
        let engine = match ring(choice)? {
            Ok(ring) => {
                parts.caps.io_uring = true;
                let mut engine = Box::new(Engine::new(parts, ring)?);
                watch_others(&mut engine.backend, &mailbox, &exit_fds)?;
                Driver::Uring(engine)
            }
            Err(denied) => {
                parts.caps.io_uring_denied = denied;
                let epoll = Epoll::new();
                let epoll = epoll.map_err(DriverError::system("cannot make an epoll set"))?;
                let mut engine = Box::new(Engine::new(parts, epoll)?);
                watch_others(&mut engine.backend, &mailbox, &exit_fds)?;
                Driver::Epoll(engine)
            }
        };
        Ok(Self { engine, mailbox, _exit_fds: exit_fds, all })
    }

    /// Runs until the end, its own or another worker's, on the calling thread.
    pub fn run(self) -> Result<Ended, DriverError> {
        let _end_all = StopOnDrop(self.all);
        match self.engine {
            Driver::Epoll(engine) => drive(*engine, &self.mailbox),
            Driver::Uring(engine) => drive(*engine, &self.mailbox),
        }
    }
}

/// Ends the other workers when one ends, however: a guest's link has all of its queues or none.
struct StopOnDrop(Handle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A ring, if there shall be one and may; else why not.
fn ring(choice: BackendChoice) -> Result<Result<Uring, String>, DriverError> {
    if choice == BackendChoice::Epoll {
        return Ok(Err(String::new()));
    }
    match Uring::new() {
        Ok(ring) => Ok(Ok(ring)),
        Err((what, error)) => {
            let is_full = error.raw_os_error() == Some(libc::ENOMEM);
            let hint = if is_full { "; RLIMIT_MEMLOCK (ulimit -l) is used up" } else { "" };
            let reason = format!("{what}: {error}{hint}");
            match choice {
                BackendChoice::IoUring => Err(DriverError::IoUring { reason }),
                BackendChoice::Auto | BackendChoice::Epoll => Ok(Err(reason)),
            }
        }
    }
}

/// Everything but the backends and the ways between the shards.
fn parts(setup: Setup, homes: u8) -> Result<(Vec<Parts>, Vec<OwnedFd>), DriverError> {
    let Setup {
        backend: _,
        mut config,
        rules,
        link,
        lend,
        outbound,
        namespace,
        pcap,
        exit_fds,
        busy_poll,
    } = setup;
    let Link { fd, further, kind, offload } = link;
    let shards = homes.saturating_add(lend.borrowers);
    // Who borrows writes where the others do, and reads nothing.
    let lent = (0..lend.borrowers).map(|_| fd.try_clone()).collect::<io::Result<Vec<_>>>();
    let lent = lent.map_err(DriverError::system("cannot duplicate the TAP's descriptor"))?;
    let caps = Caps::probe();
    if !caps.tcp_peek_offset {
        let in_flight = &mut config.limits.in_flight_bytes;
        *in_flight = (*in_flight).min(IN_FLIGHT_WITHOUT_PEEK_OFFSET);
    }
    if kind == LinkKind::Packets {
        let in_flight = &mut config.limits.in_flight_bytes;
        *in_flight = (*in_flight).min(IN_FLIGHT_THROUGH_SOCKET);
    }
    let capture = pcap
        .map(Capture::new)
        .transpose()
        .map_err(DriverError::system("cannot write the capture file"))?;
    let namespace = namespace.map(|sockets| SharedSockets(Arc::new(Mutex::new(sockets))));
    let part = |(own, queue)| {
        let share = Share { own: ShardId(own), shards, homes };
        let config = config.shared_by(share);
        let arena = Arena::new(config.limits.leases)?;
        let tap = Tap::new(queue, (kind, offload), &config, capture.clone())
            .map_err(DriverError::system("cannot make the TAP nonblocking"))?;
        let namespace = namespace.clone().map(|sockets| Box::new(sockets) as _);
        Ok(Parts {
            shard: Shard::new(config, Arc::clone(&rules)),
            arena,
            tap,
            caps: caps.clone(),
            outbound: outbound.clone(),
            namespace,
            busy_poll,
            lend_below: lend.below,
            post: None,
        })
    };
    let queues = std::iter::once(fd).chain(further).chain(lent);
    let parts = (0..shards).zip(queues).map(part).collect::<Result<_, DriverError>>()?;
    Ok((parts, exit_fds))
}

/// The guest's sockets are asked for by one worker at a time.
#[derive(Clone)]
struct SharedSockets(Arc<Mutex<Box<dyn NamespaceSockets>>>);

impl NamespaceSockets for SharedSockets {
    fn connect(&mut self, to: SocketAddr) -> io::Result<OwnedFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).connect(to)
    }

    fn datagrams(&mut self, kind: DatagramKind) -> io::Result<OwnedFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).datagrams(kind)
    }
}

fn watch_others<B: Backend>(
    backend: &mut B,
    mailbox: &Mailbox,
    exit_fds: &[OwnedFd],
) -> Result<(), DriverError> {
    backend
        .watch(mailbox.wake_fd(), Token::Mailbox)
        .map_err(DriverError::system("cannot wait for the control side"))?;
    for fd in exit_fds {
        backend
            .watch(fd.as_fd(), Token::Exit)
            .map_err(DriverError::system("cannot wait for the exit descriptor"))?;
    }
    Ok(())
}

fn drive<B: Backend>(mut engine: Engine<B>, mailbox: &Mailbox) -> Result<Ended, DriverError> {
    engine.backend.start().map_err(DriverError::system("cannot enable the ring"))?;
    let mut others = Vec::new();
    loop {
        if let Some(ended) = engine.turn(&mut others)? {
            return Ok(ended);
        }
        for Event { token, has_ended, .. } in others.drain(..) {
            match token {
                Token::Exit => return Ok(Ended::ExitFd),
                Token::Mailbox => {
                    if has_ended {
                        watch_others(&mut engine.backend, mailbox, &[])?;
                    }
                    if let Some(ended) = answer(&mut engine, mailbox) {
                        return Ok(ended);
                    }
                }
                Token::Tap
                | Token::Room
                | Token::Socket { .. }
                | Token::PairClient { .. }
                | Token::PairServer { .. } => {}
            }
        }
    }
}

/// What the control side has asked for. Who has stopped waiting for an answer gets none.
fn answer<B: Backend>(engine: &mut Engine<B>, mailbox: &Mailbox) -> Option<Ended> {
    mailbox.acknowledge();
    while let Some(request) = mailbox.take() {
        match request {
            Request::Status(reply) => drop(reply.send(engine.status())),
            Request::Flows(reply) => drop(reply.send(engine.flows())),
            Request::Rules(reply) => drop(reply.send(engine.rules())),
            Request::Prepare(listeners, reply) => drop(reply.send(engine.prepare(listeners))),
            Request::Install(rules, reply) => {
                engine.install(rules);
                let _ = reply.send(());
            }
            Request::Serve(reply) => {
                engine.serve_prepared();
                let _ = reply.send(());
            }
            Request::Forget(reply) => {
                engine.forget_prepared();
                let _ = reply.send(());
            }
        }
    }
    mailbox.is_stopping().then_some(Ended::Stopped)
}
