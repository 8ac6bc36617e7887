//! The way into a running [`Runtime`](crate::Runtime) from other threads: requests through a bounded channel, an
//! eventfd that wakes the loop, an answer for each.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use usernet_core::rules::Protocol;
use usernet_core::{FlowInfo, ForwardId, Rules};

use crate::caps::Caps;

/// Requests that may wait at once; further ones block their senders.
const REQUESTS_MAX: usize = 64;

/// The runtime has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the dataplane has ended")]
pub struct Gone;

/// Why an [`Install`] did not happen. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The runtime has ended.
    #[error("the dataplane has ended")]
    Gone,
    /// No room for that many listeners.
    #[error("the table of sockets is full")]
    TableFull,
    /// A listener could not be prepared.
    #[error("cannot prepare a listening socket: {0}")]
    Socket(#[from] io::Error),
}

/// A socket for a forward of the new rules: a listening TCP socket, or a bound UDP socket.
#[derive(Debug)]
pub struct NewListener {
    /// The forward that it serves.
    pub forward: ForwardId,
    /// Its kind.
    pub protocol: Protocol,
    /// The socket.
    pub socket: OwnedFd,
}

/// New rules and the listeners that they need in addition. Listeners of forwards that are gone are closed.
#[derive(Debug)]
pub struct Install {
    /// The whole snapshot.
    pub rules: Arc<Rules>,
    /// Listeners of forwards that were not there before.
    pub listeners: Vec<NewListener>,
}

/// The runtime at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// `io_uring` or `epoll`.
    pub backend: &'static str,
    /// What was probed.
    pub caps: Caps,
    /// The core's counters, then the driver's.
    pub counters: Vec<(&'static str, u64)>,
    /// TCP flows through the link.
    pub tcp_flows: usize,
    /// TCP connections joined in the kernel.
    pub spliced_flows: usize,
    /// UDP mappings.
    pub udp_flows: usize,
    /// Ping mappings.
    pub ping_flows: usize,
    /// Buffers that are not free.
    pub leases_in_use: u32,
    /// Buffers there may be.
    pub leases_max: u32,
    /// Host-side sockets.
    pub sockets_in_use: usize,
}

/// What travels through the channel.
pub(crate) enum Request {
    Status(Sender<Status>),
    Flows(Sender<Vec<FlowInfo>>),
    Rules(Sender<Arc<Rules>>),
    Install(Install, Sender<Result<(), InstallError>>),
    Stop,
}

/// Reaches into a running runtime. Every call but [`Handle::stop`] waits for the answer.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: Sender<Request>,
    wake: Arc<EventFd>,
}

impl Handle {
    /// Counters and gauges.
    pub fn status(&self) -> Result<Status, Gone> {
        self.ask(Request::Status)
    }

    /// The flows, in no order.
    pub fn flows(&self) -> Result<Vec<FlowInfo>, Gone> {
        self.ask(Request::Flows)
    }

    /// The rules in force.
    pub fn rules(&self) -> Result<Arc<Rules>, Gone> {
        self.ask(Request::Rules)
    }

    /// Replaces the rules, all or nothing.
    pub fn install(&self, install: Install) -> Result<(), InstallError> {
        self.ask(|reply| Request::Install(install, reply)).unwrap_or(Err(InstallError::Gone))
    }

    /// Ends the runtime with [`Ended::Stopped`](crate::Ended::Stopped). Does not wait.
    pub fn stop(&self) {
        // A runtime that is gone has stopped.
        let _ = self.post(Request::Stop);
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Result<T, Gone> {
        let (reply, answer) = bounded(1);
        self.post(request(reply))?;
        answer.recv().map_err(|_| Gone)
    }

    fn post(&self, request: Request) -> Result<(), Gone> {
        self.requests.send(request).map_err(|_| Gone)?;
        self.wake.write(1).map_err(|_| Gone)?;
        Ok(())
    }
}

/// The runtime's end of the channel.
pub(crate) struct Mailbox {
    requests: Receiver<Request>,
    wake: Arc<EventFd>,
}

impl Mailbox {
    /// Both ends.
    pub(crate) fn new() -> io::Result<(Self, Handle)> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let wake = Arc::new(wake);
        let (sender, requests) = bounded(REQUESTS_MAX);
        let handle = Handle { requests: sender, wake: Arc::clone(&wake) };
        Ok((Self { requests, wake }, handle))
    }

    /// What becomes readable when there is a request.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Resets the eventfd; to be called before the requests are taken.
    pub(crate) fn acknowledge(&self) {
        // EAGAIN: somebody else's wake-up was already seen.
        let _ = self.wake.read();
    }

    /// The next request, if there is one.
    pub(crate) fn take(&self) -> Option<Request> {
        self.requests.try_recv().ok()
    }
}
