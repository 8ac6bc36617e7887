//! One shard's thread: set-up, the loop around the turns, and what the control side asks for in between.

use std::os::fd::{AsFd, OwnedFd};

use usernet_core::Shard;

use crate::arena::Arena;
use crate::backend::{Backend, Event, Token};
use crate::caps::Caps;
use crate::capture::Capture;
use crate::engine::{Engine, Parts};
use crate::epoll::Epoll;
use crate::mailbox::{Handle, Mailbox, Request};
use crate::setup::{BackendChoice, DriverError, LinkKind, Setup};
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

/// A shard with everything it needs to run.
pub struct Runtime {
    engine: Driver,
    mailbox: Mailbox,
    /// Watched, and otherwise only kept open.
    _exit_fds: Vec<OwnedFd>,
}

enum Driver {
    Epoll(Box<Engine<Epoll>>),
    Uring(Box<Engine<Uring>>),
}

impl Runtime {
    /// Probes the kernel and sets everything up; nothing is read from the TAP yet.
    pub fn new(setup: Setup) -> Result<(Self, Handle), DriverError> {
        let (mailbox, handle) =
            Mailbox::new().map_err(DriverError::system("cannot make an eventfd"))?;
        let ring = ring(setup.backend)?;
        let (mut parts, exit_fds) = parts(setup)?;
        let engine = match ring {
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
        Ok((Self { engine, mailbox, _exit_fds: exit_fds }, handle))
    }

    /// Runs until the end, on the calling thread.
    pub fn run(self) -> Result<Ended, DriverError> {
        match self.engine {
            Driver::Epoll(engine) => drive(*engine, &self.mailbox),
            Driver::Uring(engine) => drive(*engine, &self.mailbox),
        }
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
            let reason = format!("{what}: {error}");
            match choice {
                BackendChoice::IoUring => Err(DriverError::IoUring { reason }),
                BackendChoice::Auto | BackendChoice::Epoll => Ok(Err(reason)),
            }
        }
    }
}

/// Everything but the backend.
fn parts(setup: Setup) -> Result<(Parts, Vec<OwnedFd>), DriverError> {
    let Setup {
        backend: _,
        mut config,
        rules,
        link,
        outbound,
        namespace,
        pcap,
        exit_fds,
        busy_poll,
    } = setup;
    let caps = Caps::probe();
    if !caps.tcp_peek_offset {
        let in_flight = &mut config.limits.in_flight_bytes;
        *in_flight = (*in_flight).min(IN_FLIGHT_WITHOUT_PEEK_OFFSET);
    }
    if link.kind == LinkKind::Packets {
        let in_flight = &mut config.limits.in_flight_bytes;
        *in_flight = (*in_flight).min(IN_FLIGHT_THROUGH_SOCKET);
    }
    let arena = Arena::new(config.limits.leases)?;
    let capture = pcap
        .map(Capture::new)
        .transpose()
        .map_err(DriverError::system("cannot write the capture file"))?;
    let tap = Tap::new(link, &config, capture)
        .map_err(DriverError::system("cannot make the TAP nonblocking"))?;
    let shard = Shard::new(config, rules);
    Ok((Parts { shard, arena, tap, caps, outbound, namespace, busy_poll }, exit_fds))
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
            Request::Install(install, reply) => drop(reply.send(engine.install(install))),
            Request::Stop => return Some(Ended::Stopped),
        }
    }
    None
}
