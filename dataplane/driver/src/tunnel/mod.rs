//! A tunnel on a thread of its own: a TUN in the guest's namespace on one side, UDP sockets of the host on the other.
//!
//! # Theory of operation
//!
//! ```text
//!   guest's kernel ── TUN ──▶ read ──▶ from_guest ──▶ to_wire ──▶ sendmsg (UDP_SEGMENT) ──▶ host's network
//!                       ◀── writev ◀── to_guest ◀── from_wire ◀── recvmsg (UDP_GRO) ◀──────
//! ```
//!
//! What seals and opens is a [`Tunnel`] of the core's boundary; this is its driver. A turn is: wait, awake for a while
//! where that pays ([`busy`](crate::busy)); read the clock; take what others ask for; then some of what has come from the
//! wire, and some of what the guest sends, each followed by a flush; then what is due. Each side has a limit per turn, so
//! that neither starves the other. There is no wake-up without a reason: no deadline of the tunnel's, no timeout.
//!
//! Every packet costs one system call on each side, and a packet is a super-frame or a train of up to 64 KiB wherever the
//! kernel has one: sealing or opening one takes 50 times as long as the call. So there is no ring here.
//!
//! It shares nothing with the workers, and needs no lock. It ends by its [handle](TunnelHandle), or with its device.

mod counters;
mod device;
mod handle;
mod out;
mod sources;
mod wire;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use usernet_core::Instant;
use usernet_core::tunnel::Tunnel;

pub use handle::TunnelHandle;
pub use wire::{ListenError, Wire};

use crate::busy::BusyPoll;
use crate::engine::clock;
use crate::namespace::TunnelLink;
use crate::setup::DriverError;
use crate::sys;
use crate::tap::is_gone;
use counters::Counter;
use device::{Device, PACKET_BYTES_MAX};
use handle::{Inbox, Request};
use out::Out;
use wire::{Envelope, TRAIN_BYTES_MAX};

/// Packets, or trains, taken from one side before the other has its turn.
const TAKEN_PER_TURN: usize = 64;
/// The same in bytes: four super-frames.
const BYTES_PER_TURN: usize = 256 << 10;

/// What is watched: the sockets by their number, then these.
const GUEST: usize = 2;
const WAKE: usize = 3;
const SOURCES: usize = 4;

/// Why a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelEnded {
    /// [`TunnelHandle::stop`].
    Stopped,
    /// Its device is gone.
    DeviceGone,
}

/// A tunnel with everything it needs to run.
pub struct TunnelWorker<T> {
    tunnel: T,
    out: Out,
    inbox: Inbox<T>,
    poll: Poll,
    events: Events,
    /// Which sources have not said that they are empty since they were last readable.
    is_ready: [bool; SOURCES],
    now: Instant,
    busy: BusyPoll,
    envelope: Envelope,
    packet: Box<[u8]>,
    train: Box<[u8]>,
}

impl<T: Tunnel> TunnelWorker<T> {
    /// Sets everything up; nothing is read yet. `busy_poll` is how long it stays awake for an event that it expects soon.
    ///
    /// # Errors
    ///
    /// A system call without which there is no tunnel.
    pub fn new(
        tunnel: T,
        link: TunnelLink,
        wire: Wire,
        busy_poll: Duration,
    ) -> Result<(Self, TunnelHandle<T>), DriverError> {
        let TunnelLink { fd, name, offload } = link;
        let device = Device::new(fd, offload)
            .map_err(DriverError::system("cannot make a tunnel's device nonblocking"))?;
        let poll = Poll::new().map_err(DriverError::system("cannot make an epoll set"))?;
        let (inbox, handle) =
            Inbox::new().map_err(DriverError::system("cannot make an eventfd"))?;
        let worker = Self {
            tunnel,
            out: Out::new(name, device, wire),
            inbox,
            poll,
            events: Events::with_capacity(SOURCES),
            is_ready: [true; SOURCES],
            now: clock(),
            busy: BusyPoll::new(busy_poll),
            envelope: Envelope::new(),
            packet: vec![0; PACKET_BYTES_MAX].into_boxed_slice(),
            train: vec![0; TRAIN_BYTES_MAX].into_boxed_slice(),
        };
        worker.watch_all().map_err(DriverError::system("cannot watch a tunnel's device"))?;
        Ok((worker, handle))
    }

    fn watch_all(&self) -> io::Result<()> {
        self.watch(self.out.device.fd(), GUEST)?;
        self.watch(self.inbox.wake_fd(), WAKE)?;
        self.watch_wire()
    }

    fn watch_wire(&self) -> io::Result<()> {
        self.out.wire.ends().try_for_each(|(end, fd)| self.watch(fd, end))
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: usize) -> io::Result<()> {
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&fd.as_raw_fd()), Token(source), Interest::READABLE)
    }

    /// Runs until the end, on the calling thread.
    ///
    /// # Errors
    ///
    /// Waiting fails.
    pub fn run(mut self) -> Result<TunnelEnded, DriverError> {
        loop {
            self.wait().map_err(DriverError::system("cannot wait"))?;
            self.now = clock();
            self.out.counters.count(Counter::Turns);
            if std::mem::take(&mut self.is_ready[WAKE]) && self.answer() {
                return Ok(TunnelEnded::Stopped);
            }
            self.take_from_wire();
            if self.take_from_guest() {
                return Ok(TunnelEnded::DeviceGone);
            }
            if self.tunnel.next_deadline().is_some_and(|at| at <= self.now) {
                self.tunnel.tick(self.now, &mut self.out);
                self.tunnel.flush(self.now, &mut self.out);
            }
        }
    }

    /// Waits for events or the next deadline; awake, as long as that pays.
    fn wait(&mut self) -> io::Result<()> {
        if self.is_ready.contains(&true) {
            return self.look(Some(Duration::ZERO)).map(drop);
        }
        let begin = clock();
        let timeout = self.tunnel.next_deadline().map(|at| at.since(begin));
        if let Some(awake) = self.busy.time(timeout) {
            while clock() < begin + awake {
                if self.look(Some(Duration::ZERO))? {
                    self.busy.on_waited(clock().since(begin));
                    self.out.counters.count(Counter::WaitsAwake);
                    return Ok(());
                }
                // Whoever is to answer may be waiting for this core.
                std::thread::yield_now();
            }
            if timeout == Some(awake) {
                self.busy.on_deadline();
                return Ok(());
            }
        }
        self.look(timeout)?;
        self.busy.on_waited(clock().since(begin));
        Ok(())
    }

    /// Takes events: whether there were some.
    fn look(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            result => result?,
        }
        for event in &self.events {
            if let Some(is_ready) = self.is_ready.get_mut(event.token().0) {
                *is_ready = true;
            }
        }
        Ok(!self.events.is_empty())
    }

    /// What others ask for: whether that is to end.
    fn answer(&mut self) -> bool {
        self.inbox.acknowledge();
        while let Some(request) = self.inbox.take() {
            // Who has stopped waiting for an answer gets none.
            match request {
                Request::With(ask) => {
                    ask(&mut self.tunnel, self.now, &mut self.out);
                    self.tunnel.flush(self.now, &mut self.out);
                }
                Request::Counters(reply) => {
                    let _ = reply.send(self.out.counters.iter().collect());
                }
                Request::Port(reply) => {
                    let _ = reply.send(self.out.wire.port());
                }
                Request::Listen(port, reply) => {
                    let _ = reply.send(self.listen(port));
                }
            }
        }
        self.inbox.is_stopping()
    }

    /// Changes the port. The old sockets leave the epoll set as they are closed.
    fn listen(&mut self, port: u16) -> Result<u16, ListenError> {
        if port != 0 && port == self.out.wire.port() {
            return Ok(port);
        }
        let before = std::mem::replace(&mut self.out.wire, Wire::open(port)?);
        if let Err(source) = self.watch_wire() {
            self.out.wire = before;
            return Err(ListenError { port, source });
        }
        self.is_ready = [true; SOURCES];
        Ok(self.out.wire.port())
    }

    /// Some of what the peers have sent.
    fn take_from_wire(&mut self) {
        let mut bytes = 0;
        for _ in 0..TAKEN_PER_TURN {
            let Some(end) = (0..GUEST).find(|&end| self.is_ready[end]) else { break };
            if bytes >= BYTES_PER_TURN {
                break;
            }
            match self.out.wire.receive(end, &mut self.envelope, &mut self.train) {
                Ok(Some(train)) => {
                    self.out.counters.count(Counter::FromWire);
                    bytes += train.bytes;
                    self.out.has_spoken = false;
                    let datagrams = &mut self.train[..train.bytes];
                    let (now, from) = (self.now, train.from);
                    self.tunnel.on_datagrams(now, from, datagrams, train.size, &mut self.out);
                    if self.out.has_spoken
                        && let Some(ours) = train.local
                    {
                        self.out.sources.learn(from, ours);
                    }
                }
                Ok(None) => self.out.counters.count(Counter::WireErrors),
                Err(error) if sys::would_block(&error) => self.is_ready[end] = false,
                // What an ICMP message said of something that was sent. It is said once.
                Err(_) => self.out.counters.count(Counter::WireErrors),
            }
        }
        if bytes > 0 {
            self.busy.on_moved(bytes);
            self.tunnel.flush(self.now, &mut self.out);
        }
    }

    /// Some of what the guest sends: whether there will be no more.
    fn take_from_guest(&mut self) -> bool {
        let mut bytes = 0;
        for _ in 0..TAKEN_PER_TURN {
            if !self.is_ready[GUEST] || bytes >= BYTES_PER_TURN {
                break;
            }
            match self.out.device.read(&mut self.packet) {
                Ok(Some((packet, offload))) => {
                    self.out.counters.count(Counter::FromGuest);
                    bytes += packet.len();
                    self.tunnel.on_packet(self.now, packet, offload, &mut self.out);
                }
                Ok(None) => self.out.counters.count(Counter::BadVnetHeaders),
                Err(error) if sys::would_block(&error) => self.is_ready[GUEST] = false,
                Err(error) if is_gone(&error) => return true,
                Err(_) => self.is_ready[GUEST] = false,
            }
        }
        if bytes > 0 {
            self.busy.on_moved(bytes);
            self.tunnel.flush(self.now, &mut self.out);
        }
        false
    }
}
