//! Sends that found their socket full are tried again before the kernel says that there is room.
//!
//! The kernel tells a writer of room once a third of the buffer is free (`sk_stream_is_writeable`). On a long path it is the
//! buffer that bounds what is in flight, 4 MiB by default: whoever waits to be told has a third of it idle, and sends in
//! bursts that a round trip later free the next third just as late. Measured at 100 ms: 204 Mbit/s, and 88 % of what the
//! host's own programs had, who wait in the same way but happened to be in step; tried every few milliseconds it is more than
//! theirs. On a short path the kernel's word comes first, and none of this happens.

use std::time::Duration;

use usernet_core::{Instant, SocketId};

use crate::backend::Backend;
use crate::counters::Counter;
use crate::engine::Engine;

/// When a send that waits is tried for the first time: a twentieth of the round trips for which it matters.
const FIRST: Duration = Duration::from_millis(4);

/// A peer that takes nothing for so long does not read: the kernel will tell.
const LAST: Duration = Duration::from_millis(64);

/// Less than this was not worth the call.
const WORTH_BYTES: usize = 16 << 10;

/// How long a send has waited, and how long it shall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Since when it waits.
    since: Instant,
    /// After what time it is tried. None: the kernel tells.
    after: Option<Duration>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { since: Instant::ZERO, after: None }
    }
}

impl Patience {
    /// It begins to wait. Whether it is to be put on the list, because it is not there yet.
    fn begin(&mut self, now: Instant) -> bool {
        self.since = now;
        let is_new = self.after.is_none();
        self.after.get_or_insert(FIRST);
        is_new
    }

    /// When to try. None: not at all.
    fn at(&self) -> Option<Instant> {
        self.after.map(|after| self.since + after)
    }

    /// It was tried, and that much was sent.
    fn on_tried(&mut self, now: Instant, bytes: usize) {
        self.since = now;
        self.after = match self.after {
            Some(_) if bytes >= WORTH_BYTES => Some(FIRST),
            Some(after) if after < LAST => Some(after * 2),
            Some(_) | None => None,
        };
    }
}

/// Who is to be tried again.
#[derive(Default)]
pub(crate) struct Retries {
    sockets: Vec<SocketId>,
    /// When the first of them is.
    at: Option<Instant>,
}

impl Retries {
    pub(crate) fn at(&self) -> Option<Instant> {
        self.at
    }

    fn push(&mut self, socket: SocketId, at: Instant) {
        self.sockets.push(socket);
        self.at = Some(self.at.map_or(at, |first| first.min(at)));
    }
}

impl<B: Backend> Engine<B> {
    /// A send of the socket has begun to wait.
    pub(crate) fn retry_later(&mut self, socket: SocketId) {
        let Some(parked) = self.table.stream(socket).and_then(|stream| stream.parked.as_mut())
        else {
            return;
        };
        if parked.patience.begin(self.now) {
            self.retries.push(socket, self.now + FIRST);
        }
    }

    /// Tries those whose time has come.
    pub(crate) fn retry(&mut self) {
        if self.retries.at.is_none_or(|at| at > self.now) {
            return;
        }
        let Retries { sockets, .. } = std::mem::take(&mut self.retries);
        for socket in sockets {
            if let Some(at) = self.retry_one(socket) {
                self.retries.push(socket, at);
            }
        }
        self.run_ops();
    }

    /// When to look at the socket again. None: it waits no more, or in vain.
    fn retry_one(&mut self, socket: SocketId) -> Option<Instant> {
        let parked = self.table.stream(socket)?.parked.as_mut()?;
        if parked.run.is_empty() {
            parked.patience = Patience::default();
            return None;
        }
        let at = parked.patience.at()?;
        if at > self.now {
            return Some(at);
        }
        let bytes = self.send_parked(socket);
        if bytes > 0 {
            self.count(Counter::SendsRetried);
        }
        let now = self.now;
        let parked = self.table.stream(socket)?.parked.as_mut()?;
        parked.patience.on_tried(now, bytes);
        parked.patience.at()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_send_that_waits_is_listed_once_and_tried_while_that_pays() {
        let mut patience = Patience::default();
        assert_eq!(patience.at(), None);
        assert!(patience.begin(after(10)));
        assert_eq!(patience.at(), Some(after(14)));
        assert!(!patience.begin(after(12)), "it is listed, and the time runs from here");
        assert_eq!(patience.at(), Some(after(16)));
        patience.on_tried(after(16), WORTH_BYTES);
        assert_eq!(patience.at(), Some(after(20)));
        patience.on_tried(after(20), 100);
        assert_eq!(patience.at(), Some(after(28)));
    }

    #[test]
    fn a_peer_that_does_not_read_is_tried_a_few_times() {
        let mut patience = Patience::default();
        patience.begin(after(0));
        let mut tries = 0;
        while let Some(at) = patience.at() {
            patience.on_tried(at, 0);
            tries += 1;
        }
        assert_eq!(tries, 5);
        assert!(patience.begin(after(500)), "until it waits anew");
    }
}
