//! Flows in bulk that go to a thread with nothing else to do, as long as there are several and this one is busy.
//!
//! One thread serves small messages best: who has answered the client's question is awake for the server's answer. Several
//! downloads at a time keep it busy all the time, though, while other cores are not, and what a flow's thread copies stays in
//! its core's cache. So one shard owns all flows and reads the link, and *lends* half of those in bulk to a second one
//! ([`Shard::lend`]), with their sockets, until they are quiet (decision 16). The second one writes its frames to the link
//! itself; what the guest says, which is acknowledgements, is handed over.
//!
//! [`Shard::lend`]: usernet_core::Shard::lend

use std::collections::VecDeque;
use std::time::Duration;

use usernet_core::{Input, Instant, LentFlow, ShardId, SocketId};

use crate::backend::{Backend, Token};
use crate::counters::Counter;
use crate::engine::Engine;
use crate::errno::host_error;
use crate::handover::Letter;
use crate::stream::Stream;
use crate::table::Socket;

/// How often it is asked whether there is too much to do.
const WINDOW: Duration = Duration::from_millis(4);

/// How often those that were lent are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// After so long without bulk they are looked at so rarely.
const RARELY: Duration = Duration::from_secs(1);

/// When a letter that found an inbox full is tried again.
const UNSENT: Duration = Duration::from_millis(1);

/// See the [module](self).
pub(crate) struct Lending {
    /// Who waits less than this in a window is busy.
    below: Duration,
    /// Begin of the window, and how long had been waited by then.
    since: Instant,
    idle: Duration,
    /// When those that were lent are looked at next.
    pub(crate) look_at: Option<Instant>,
    /// When one of them was last in bulk.
    bulk_at: Instant,
    /// Letters that found the inbox full: before anything else goes there, they do.
    unsent: VecDeque<(ShardId, Letter)>,
    /// When that is tried again.
    pub(crate) retry_at: Option<Instant>,
}

impl Lending {
    pub(crate) fn new(below: Duration) -> Self {
        Self {
            below,
            since: Instant::ZERO,
            idle: Duration::ZERO,
            look_at: None,
            bulk_at: Instant::ZERO,
            unsent: VecDeque::new(),
            retry_at: None,
        }
    }

    /// Whether something waits for room in an inbox.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }
}

impl<B: Backend> Engine<B> {
    /// The turn ends: flows are lent, or given back.
    pub(crate) fn balance(&mut self) {
        let share = self.shard.config().share;
        if share.shards == share.homes {
            return;
        }
        while let Some((guest, remote)) = self.shard.ended() {
            self.send_surely(ShardId::FIRST, Letter::Ended { guest, remote });
        }
        self.send_unsent();
        if share.is_borrower() {
            self.give_back();
        } else {
            self.lend_some();
        }
    }

    fn lend_some(&mut self) {
        let wall = self.now.since(self.lending.since);
        if wall < WINDOW {
            return;
        }
        let waited = self.idle - self.lending.idle;
        (self.lending.since, self.lending.idle) = (self.now, self.idle);
        // A window that lasted long was slept through.
        if waited >= self.lending.below {
            return;
        }
        // Flows are only looked at where some will go.
        let half = self.shard.bulk().saturating_sub(self.shard.lent()) / 2;
        if half == 0 {
            return;
        }
        let in_bulk: Vec<SocketId> = self.shard.in_bulk(self.now).take(half).collect();
        let to = ShardId(self.shard.config().share.homes);
        for socket in in_bulk {
            self.lend(socket, to);
        }
    }

    fn give_back(&mut self) {
        if self.lending.look_at.is_none_or(|at| at > self.now) {
            return;
        }
        let quiet: Vec<SocketId> = self.shard.quiet(self.now).collect();
        for socket in quiet {
            self.lend(socket, ShardId::FIRST);
        }
        if self.shard.in_bulk(self.now).next().is_some() {
            self.lending.bulk_at = self.now;
        }
        // What has not been in bulk for so long and is here still has something that keeps it from going home.
        let often = self.now.since(self.lending.bulk_at) < RARELY;
        let next = self.now + if often { LOOK } else { RARELY };
        self.lending.look_at = (self.table.in_use() > 0).then_some(next);
    }

    fn lend(&mut self, socket: SocketId, to: ShardId) {
        if !self.table.stream(socket).is_some_and(Stream::is_portable) {
            return;
        }
        let Some(flow) = self.shard.lend(socket, to) else { return };
        let Some(Socket::Stream(stream)) = self.table.take(socket) else {
            unreachable!("it has just been looked at")
        };
        self.backend.forget_shared(stream.fd(), Token::socket(socket));
        self.count(Counter::FlowsLent);
        self.send_surely(to, Letter::Flow(Box::new((flow, stream))));
    }

    /// A flow that another shard has lent, or given back.
    pub(crate) fn take_in(&mut self, flow: LentFlow, stream: Stream) {
        // Its id may be one whose `Close` waits to be run.
        self.run_ops();
        if self.shard.config().share.is_borrower() {
            self.lending.bulk_at = self.now;
            self.lending.look_at.get_or_insert(self.now + LOOK);
        }
        let socket = self.shard.take_in(self.now, flow);
        match self.backend.watch(stream.fd(), Token::socket(socket)) {
            Ok(()) => self.table.insert(socket, Socket::Stream(stream)),
            Err(error) => self.tell(Input::Failed { socket, error: host_error(&error) }),
        }
    }

    /// A letter that must not get lost.
    fn send_surely(&mut self, to: ShardId, letter: Letter) {
        self.lending.unsent.push_back((to, letter));
        self.send_unsent();
    }

    fn send_unsent(&mut self) {
        self.lending.retry_at = None;
        let Some(post) = &self.post else { return };
        while let Some((to, letter)) = self.lending.unsent.pop_front() {
            if let Err(letter) = post.put(to, letter) {
                self.lending.retry_at = Some(self.now + UNSENT);
                return self.lending.unsent.push_front((to, letter));
            }
        }
    }
}
