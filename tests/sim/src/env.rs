//! What guest, host and world share: the clock, the queue of events, chance, memory, the conversations, the trace.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use usernet_core::{AcceptedId, Config, HostError, Instant, SocketId};

use crate::choice::Choices;
use crate::conversation::Conversation;
use crate::fleet::Letter;
use crate::host::datagram::Delivery;
use crate::ledger::Ledger;
use crate::link::Frame;
use crate::mail::Mail;

/// What happens at a time.
#[derive(Debug)]
pub enum Event {
    /// A frame reaches the core.
    ToCore(Frame),
    /// A frame reaches the guest.
    ToGuest(Frame),
    /// A connect succeeds.
    Connected(SocketId),
    /// A connect fails, or a connection is reset.
    Failed(SocketId, HostError),
    /// A `Send` run may complete.
    Send(SocketId),
    /// A `Peek` may complete.
    Peek(SocketId),
    /// Something came, or the driver thinks so.
    Readable(SocketId),
    /// A remote application has a turn.
    Remote(usize),
    /// A client connects to a forward.
    Arrive(usize),
    /// The core has not looked at an accepted connection for too long, or the client is gone.
    SpliceEnded(SocketId),
    /// A splice was tried.
    Spliced(SocketId, AcceptedId),
    /// A datagram socket is open.
    Opened(SocketId),
    /// A datagram, or an error about one, arrives.
    Datagram(Box<Delivery>),
    /// A client sends a datagram to a forward.
    ClientDatagram(usize),
    /// What a shard has for another one arrives.
    Letter(usize, Box<Letter>),
    /// Nothing, but the world looks around.
    Nothing,
}

struct Entry {
    at: Instant,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Events in order of time; those of one instant in the order in which they were made.
#[derive(Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<Entry>>,
    made: u64,
}

impl Queue {
    /// Adds an event.
    pub fn push(&mut self, at: Instant, event: Event) {
        self.made += 1;
        self.heap.push(Reverse(Entry { at, order: self.made, event }));
    }

    /// When the next one is due.
    pub fn next_at(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.0.at)
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<Event> {
        self.heap.pop().map(|entry| entry.0.event)
    }
}

/// How the host's side misbehaves.
#[derive(Clone, Copy, Debug)]
pub struct HostFaults {
    /// Completions take up to this long.
    pub latency: Duration,
    /// Sends and peeks that stop short, in parts per thousand.
    pub short: u16,
    /// Spurious `Readable`, in parts per thousand completions.
    pub spurious: u16,
    /// Opens of datagram sockets that fail, in parts per thousand.
    pub open_fails: u16,
    /// Datagrams that are answered with an error, in parts per thousand.
    pub datagram_errors: u16,
    /// Splices that fail, in parts per thousand.
    pub splice_fails: u16,
    /// `Outbox::reserve` says no, in parts per thousand.
    pub starve: u16,
}

/// See the [module](self).
pub struct Env {
    /// The clock.
    pub now: Instant,
    /// What is to happen.
    pub queue: Queue,
    /// Chance.
    pub choices: Choices,
    /// Memory.
    pub ledger: Ledger,
    /// TCP conversations.
    pub conversations: Vec<Conversation>,
    /// Letters.
    pub mail: Mail,
    /// What the shards share.
    pub config: Config,
    /// The host's faults.
    pub faults: HostFaults,
    /// Frames may be lost.
    pub is_lossy: bool,
    /// Applications stop; nothing goes wrong on purpose any more.
    pub is_closing: bool,
    /// Print what happens.
    pub is_traced: bool,
}

impl Env {
    /// Lets `event` happen after `delay`.
    pub fn after(&mut self, delay: Duration, event: Event) {
        self.queue.push(self.now + delay, event);
    }

    /// Lets `event` happen when the host's side gets to it.
    pub fn soon(&mut self, event: Event) {
        let delay = self.choices.duration(self.faults.latency);
        self.after(delay, event);
    }

    /// Prints a line of the trace.
    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>14.6} {}", self.now.as_nanos() as f64 / 1e9, what());
        }
    }
}
