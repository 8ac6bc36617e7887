//! The way into a running tunnel from other threads: closures that its thread runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use usernet_core::Instant;
use usernet_core::tunnel::{Tunnel, TunnelOut};

use super::wire::ListenError;
use crate::mailbox::Gone;

/// Requests that may wait at once; further ones block their senders.
const REQUESTS_MAX: usize = 16;

/// What the thread is asked to do.
pub(super) enum Request<T> {
    With(With<T>),
    Counters(Sender<Vec<(&'static str, u64)>>),
    Port(Sender<u16>),
    Listen(u16, Sender<Result<u16, ListenError>>),
}

/// Something to be done with the tunnel.
pub(super) type With<T> = Box<dyn FnOnce(&mut T, Instant, &mut dyn TunnelOut) + Send>;

/// Reaches into a running tunnel. Every call but [`stop`](Self::stop) waits for the answer.
#[derive(Debug)]
pub struct TunnelHandle<T> {
    requests: Sender<Request<T>>,
    wake: Arc<EventFd>,
    is_stopping: Arc<AtomicBool>,
}

impl<T> Clone for TunnelHandle<T> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            wake: Arc::clone(&self.wake),
            is_stopping: Arc::clone(&self.is_stopping),
        }
    }
}

impl<T: Tunnel> TunnelHandle<T> {
    /// Does something with the tunnel, on its thread and between two of its turns. What it gives to the [`TunnelOut`] is
    /// sent.
    ///
    /// # Errors
    ///
    /// The tunnel has ended.
    pub fn with<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut T, Instant, &mut dyn TunnelOut) -> R + Send + 'static,
    ) -> Result<R, Gone> {
        self.ask(|reply| {
            Request::With(Box::new(move |tunnel, now, out| {
                // Who has stopped waiting for the answer gets none.
                let _ = reply.send(ask(tunnel, now, out));
            }))
        })
    }

    /// What the driver has counted.
    ///
    /// # Errors
    ///
    /// The tunnel has ended.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, Gone> {
        self.ask(Request::Counters)
    }

    /// The UDP port that it listens on.
    ///
    /// # Errors
    ///
    /// The tunnel has ended.
    pub fn port(&self) -> Result<u16, Gone> {
        self.ask(Request::Port)
    }

    /// Listens on another UDP port from now on; 0: on one that the kernel chooses. Gives the port. If it cannot be had,
    /// nothing has changed.
    ///
    /// # Errors
    ///
    /// The tunnel has ended; within: the port cannot be had.
    pub fn listen(&self, port: u16) -> Result<Result<u16, ListenError>, Gone> {
        self.ask(|reply| Request::Listen(port, reply))
    }

    /// Ends it. Does not wait.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        // EAGAIN: it has been woken more often than it can count.
        let _ = self.wake.write(1);
    }

    fn ask<R>(&self, request: impl FnOnce(Sender<R>) -> Request<T>) -> Result<R, Gone> {
        let (reply, answer) = bounded(1);
        self.requests.send(request(reply)).map_err(|_| Gone)?;
        self.wake.write(1).map_err(|_| Gone)?;
        answer.recv().map_err(|_| Gone)
    }
}

/// The thread's end.
pub(super) struct Inbox<T> {
    requests: Receiver<Request<T>>,
    wake: Arc<EventFd>,
    is_stopping: Arc<AtomicBool>,
}

impl<T> Inbox<T> {
    /// Both ends.
    pub(super) fn new() -> io::Result<(Self, TunnelHandle<T>)> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (wake, is_stopping) = (Arc::new(wake), Arc::new(AtomicBool::new(false)));
        let (sender, requests) = bounded(REQUESTS_MAX);
        let handle = TunnelHandle {
            requests: sender,
            wake: Arc::clone(&wake),
            is_stopping: Arc::clone(&is_stopping),
        };
        Ok((Self { requests, wake, is_stopping }, handle))
    }

    /// What becomes readable when there is a request.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Resets the eventfd; to be called before the requests are taken.
    pub(super) fn acknowledge(&self) {
        // EAGAIN: somebody else's wake-up was already seen.
        let _ = self.wake.read();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    pub(super) fn take(&self) -> Option<Request<T>> {
        self.requests.try_recv().ok()
    }
}
