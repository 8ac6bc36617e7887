//! What the two backends have in common: they wait for readiness and move frames.
//!
//! Sockets are operated by direct calls in both (measured: the copy costs, not the call); the backends
//! differ in how they learn that a call is worth making, and in how frames pass the TAP.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use usernet_core::{LeaseId, SocketId};

use crate::arena::Arena;
use crate::tap::Tap;

/// Which descriptor an event is about. Packed into the 64 bits that a kernel queue carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The link.
    Tap,
    /// The mailbox's eventfd.
    Mailbox,
    /// An exit descriptor.
    Exit,
    /// Room in a link that is a socket.
    Room,
    /// A socket of the core. Only the low bits of the generation: enough to tell a late event from a fresh one.
    Socket { index: u32, generation: u32 },
    /// The client's half of a spliced pair.
    PairClient { index: u32, generation: u32 },
    /// The half of a spliced pair in the guest's namespace.
    PairServer { index: u32, generation: u32 },
}

/// Bits of the generation that a token carries.
const GENERATION_BITS: u32 = 24;
const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

impl Token {
    /// The token of a core's socket.
    pub(crate) const fn socket(id: SocketId) -> Self {
        Self::Socket { index: id.index, generation: id.generation & GENERATION_MASK }
    }

    /// The tokens of a spliced pair: client, server.
    pub(crate) const fn pair(id: SocketId) -> (Self, Self) {
        let (index, generation) = (id.index, id.generation & GENERATION_MASK);
        (Self::PairClient { index, generation }, Self::PairServer { index, generation })
    }

    /// Whether `generation` is the one that the token was made with, as far as it can be told.
    pub(crate) const fn is_generation(token: u32, generation: u32) -> bool {
        token == generation & GENERATION_MASK
    }

    /// Eight bits of kind, the generation, the index.
    pub(crate) const fn pack(self) -> u64 {
        let (kind, generation, index) = match self {
            Self::Tap => (0, 0, 0),
            Self::Mailbox => (1, 0, 0),
            Self::Exit => (2, 0, 0),
            Self::Room => (6, 0, 0),
            Self::Socket { index, generation } => (3, generation, index),
            Self::PairClient { index, generation } => (4, generation, index),
            Self::PairServer { index, generation } => (5, generation, index),
        };
        kind << 56 | (generation as u64) << 32 | index as u64
    }

    /// The way back; none for what [`Token::pack`] does not give.
    pub(crate) const fn unpack(bits: u64) -> Option<Self> {
        let index = bits as u32;
        let generation = (bits >> 32) as u32 & GENERATION_MASK;
        match bits >> 56 {
            0 => Some(Self::Tap),
            1 => Some(Self::Mailbox),
            2 => Some(Self::Exit),
            3 => Some(Self::Socket { index, generation }),
            4 => Some(Self::PairClient { index, generation }),
            5 => Some(Self::PairServer { index, generation }),
            6 => Some(Self::Room),
            _ => None,
        }
    }
}

/// What may be tried without blocking. Edge triggered: told once per change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// There may be bytes, or the end of the stream.
    pub(crate) read: bool,
    /// There may be room.
    pub(crate) write: bool,
    /// The socket has an error pending (`EPOLLERR`): reset, refused, or an entry in the error queue.
    pub(crate) error: bool,
    /// The peer has ended its stream (`EPOLLRDHUP`): what can be read now is all there will be.
    pub(crate) hung_up: bool,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) token: Token,
    pub(crate) ready: Ready,
    /// The watch is over and has to be started again: the ring had no room for its events.
    pub(crate) has_ended: bool,
}

/// A frame that the TAP gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawFrame {
    /// Where it is: the virtio-net header ends where the bytes shown to the core begin.
    pub(crate) lease: LeaseId,
    /// Bytes read, virtio-net header included.
    pub(crate) bytes: usize,
}

/// What [`Backend::next_frame`] found.
#[derive(Debug)]
pub(crate) enum FromTap {
    /// A frame.
    Frame(RawFrame),
    /// None right now; an event will tell.
    Empty,
    /// There may be frames, but no free buffer.
    Starved,
}

/// Whether a direct read of the link is to be followed by another. A message without bytes is an error of its own.
pub(crate) fn may_have_more(result: &io::Result<FromTap>) -> bool {
    match result {
        Ok(FromTap::Frame(_) | FromTap::Starved) => true,
        Ok(FromTap::Empty) => false,
        Err(error) => error.kind() == io::ErrorKind::UnexpectedEof,
    }
}

/// Waits, and moves frames. Static dispatch: one engine per backend.
pub(crate) trait Backend {
    /// For people.
    const NAME: &'static str;

    /// Called once, on the thread that runs the shard, before the first [`Backend::wait`].
    fn start(&mut self) -> io::Result<()>;

    /// Starts the watch over a descriptor, edge triggered, both directions. What is ready already is told, too.
    /// [`Token::Room`] adds the other direction to the link's, which is watched already.
    fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()>;

    /// Ends a watch, before the descriptor is closed.
    fn forget(&mut self, fd: BorrowedFd<'_>, token: Token);

    /// The same for a descriptor that somebody else has a duplicate of: closing ours ends nothing.
    fn forget_shared(&mut self, fd: BorrowedFd<'_>, token: Token);

    /// Ends these watches and all else, before the descriptors are closed: for a backend that is not used any more.
    fn end(&mut self, tokens: impl Iterator<Item = Token>);

    /// Waits for events, at most `timeout` (none: for ever), and appends them.
    fn wait(
        &mut self,
        tap: &Tap,
        arena: &mut Arena,
        timeout: Option<Duration>,
        events: &mut Vec<Event>,
    ) -> io::Result<()>;

    /// Whether a [`Backend::wait`] without time may find something. Costs less than that.
    fn may_have_events(&mut self) -> bool;

    /// The next frame of the guest. Errors are those of `read(2)` on the TAP.
    fn next_frame(&mut self, tap: &Tap, arena: &mut Arena) -> io::Result<FromTap>;

    /// Whether frames are read before they are asked for.
    fn reads_ahead(&self) -> bool;

    /// Whether [`Backend::next_frame`] may have something without an event before it.
    fn has_frames(&self) -> bool;

    /// Nothing has happened for a while: buffers that lie ready may be given back to the system.
    fn on_idle(&mut self, arena: &Arena);

    /// Leases that the backend itself holds.
    fn leases_held(&self) -> u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_being_packed() {
        let id = SocketId { index: u32::MAX, generation: 0xabcd_ef01 };
        let (client, server) = Token::pair(id);
        let single = [Token::Tap, Token::Mailbox, Token::Exit, Token::Room];
        for token in single.into_iter().chain([Token::socket(id), client, server]) {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
        assert!(Token::is_generation(0xcd_ef01, 0xabcd_ef01));
        assert!(!Token::is_generation(0xcd_ef02, 0xabcd_ef01));
    }
}
