//! The way into a running [`Runtime`](crate::Runtime) from other threads: requests through a bounded channel per worker, an
//! eventfd that wakes its loop, an answer for each.
//!
//! New rules come into force in all workers or in none. First each gets its listeners ready, which may fail; then all get the
//! rules; then the listeners are served, so that no client meets a worker that does not know its forward yet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use usernet_core::rules::Protocol;
use usernet_core::{Config, FlowInfo, ForwardId, Ownership, Rules};

use crate::address;
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

impl Status {
    /// Adds what another worker has.
    fn add(&mut self, other: &Self) {
        for (sum, more) in self.counters.iter_mut().zip(&other.counters) {
            debug_assert_eq!(sum.0, more.0, "all workers count the same");
            sum.1 += more.1;
        }
        self.tcp_flows += other.tcp_flows;
        self.spliced_flows += other.spliced_flows;
        self.udp_flows += other.udp_flows;
        self.ping_flows += other.ping_flows;
        self.leases_in_use += other.leases_in_use;
        self.leases_max += other.leases_max;
        self.sockets_in_use += other.sockets_in_use;
    }

    /// What all workers together have; none: there are none.
    pub fn sum(workers: &[Self]) -> Option<Self> {
        let (first, others) = workers.split_first()?;
        let mut sum = first.clone();
        others.iter().for_each(|other| sum.add(other));
        Some(sum)
    }
}

/// What travels through the channel.
pub(crate) enum Request {
    Status(Sender<Status>),
    Flows(Sender<Vec<FlowInfo>>),
    Rules(Sender<Arc<Rules>>),
    /// Gets listeners ready.
    Prepare(Vec<NewListener>, Sender<Result<(), InstallError>>),
    /// New rules.
    Install(Arc<Rules>, Sender<()>),
    /// Serves the listeners that are ready.
    Serve(Sender<()>),
    /// Closes them.
    Forget(Sender<()>),
}

/// The way to one worker.
#[derive(Clone, Debug)]
struct Line {
    requests: Sender<Request>,
    wake: Arc<EventFd>,
}

impl Line {
    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Result<T, Gone> {
        self.post(request)?.recv().map_err(|_| Gone)
    }

    /// Asks, and does not wait for the answer.
    fn post<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Result<Receiver<T>, Gone> {
        let (reply, answer) = bounded(1);
        self.send(request(reply))?;
        Ok(answer)
    }

    fn send(&self, request: Request) -> Result<(), Gone> {
        self.requests.send(request).map_err(|_| Gone)?;
        self.wake.write(1).map_err(|_| Gone)?;
        Ok(())
    }
}

/// Reaches into a running runtime, whatever number of workers it has. Every call but [`Handle::stop`] waits for the answer.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Lines>);

#[derive(Debug)]
struct Lines {
    workers: Vec<Line>,
    /// Which listener is whose.
    ownership: Ownership,
    config: Config,
    /// Held while rules are replaced: one set at a time.
    installing: Mutex<()>,
    /// No request, so that it never waits for room.
    is_stopping: Arc<AtomicBool>,
}

impl Handle {
    /// Counters and gauges, of all workers together.
    pub fn status(&self) -> Result<Status, Gone> {
        Status::sum(&self.workers()?).ok_or(Gone)
    }

    /// Counters and gauges of each worker.
    pub fn workers(&self) -> Result<Vec<Status>, Gone> {
        self.ask_all(Request::Status)
    }

    /// The flows, in no order.
    pub fn flows(&self) -> Result<Vec<FlowInfo>, Gone> {
        Ok(self.ask_all(Request::Flows)?.into_iter().flatten().collect())
    }

    /// The rules in force.
    pub fn rules(&self) -> Result<Arc<Rules>, Gone> {
        self.0.workers.first().ok_or(Gone)?.ask(Request::Rules)
    }

    /// Replaces the rules, all or nothing.
    pub fn install(&self, install: Install) -> Result<(), InstallError> {
        let Install { rules, listeners } = install;
        let _one_at_a_time = self.0.installing.lock().unwrap_or_else(PoisonError::into_inner);
        let shares = self.shared_out(&rules, listeners)?;
        let workers = &self.0.workers;
        let prepared = workers.iter().zip(shares).try_for_each(|(worker, share)| {
            worker.ask(|reply| Request::Prepare(share, reply)).unwrap_or(Err(InstallError::Gone))
        });
        if let Err(error) = prepared {
            // A worker that is gone has nothing to forget.
            let _ = self.ask_all(Request::Forget);
            return Err(error);
        }
        let told = self.ask_all(|reply| Request::Install(Arc::clone(&rules), reply));
        told.and_then(|_| self.ask_all(Request::Serve)).map_err(|Gone| InstallError::Gone)?;
        Ok(())
    }

    /// Ends the runtime with [`Ended::Stopped`](crate::Ended::Stopped). Does not wait.
    pub fn stop(&self) {
        self.0.is_stopping.store(true, Ordering::Release);
        for worker in &self.0.workers {
            // EAGAIN: it has been woken more often than it can count.
            let _ = worker.wake.write(1);
        }
    }

    /// The listeners of each worker.
    fn shared_out(
        &self,
        rules: &Rules,
        listeners: Vec<NewListener>,
    ) -> Result<Vec<Vec<NewListener>>, InstallError> {
        let Lines { workers, ownership, config, .. } = &*self.0;
        let mut shares: Vec<Vec<NewListener>> = workers.iter().map(|_| Vec::new()).collect();
        for listener in listeners {
            let local = address::local_address(listener.socket.as_fd())?;
            let owner = ownership.of_listener(config, rules, listener.forward, local);
            shares[usize::from(owner.0)].push(listener);
        }
        Ok(shares)
    }

    /// Asks all, and waits until all have answered.
    fn ask_all<T>(&self, request: impl Fn(Sender<T>) -> Request) -> Result<Vec<T>, Gone> {
        let asked: Result<Vec<_>, Gone> =
            self.0.workers.iter().map(|worker| worker.post(&request)).collect();
        asked?.into_iter().map(|answer| answer.recv().map_err(|_| Gone)).collect()
    }
}

/// A worker's end of its channel.
pub(crate) struct Mailbox {
    requests: Receiver<Request>,
    wake: Arc<EventFd>,
    is_stopping: Arc<AtomicBool>,
}

impl Mailbox {
    /// Both ends, for each worker.
    pub(crate) fn for_workers(config: &Config) -> io::Result<(Vec<Self>, Handle)> {
        let shards = config.share.shards;
        let is_stopping = Arc::new(AtomicBool::new(false));
        let both = || {
            let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            let wake = Arc::new(wake);
            let (requests, mailbox) = bounded(REQUESTS_MAX);
            let line = Line { requests, wake: Arc::clone(&wake) };
            Ok((Self { requests: mailbox, wake, is_stopping: Arc::clone(&is_stopping) }, line))
        };
        let (mailboxes, workers) =
            (0..shards).map(|_| both()).collect::<io::Result<(Vec<Self>, Vec<Line>)>>()?;
        let lines = Lines {
            workers,
            ownership: Ownership::new(config),
            config: config.clone(),
            installing: Mutex::new(()),
            is_stopping,
        };
        Ok((mailboxes, Handle(Arc::new(lines))))
    }

    /// What wakes the worker.
    pub(crate) fn wake(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
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

    /// [`Handle::stop`] was called.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// The next request, if there is one.
    pub(crate) fn take(&self) -> Option<Request> {
        self.requests.try_recv().ok()
    }
}
