//! Streams that are read, because to look at them takes too long.
//!
//! A peek walks the socket's queue from its head, anew for each buffer of the kernel that it takes bytes from
//! (`tcp_recvmsg_locked`, net/ipv4/tcp.c): its cost grows with the square of their number. Few are there as long as the kernel
//! joins what comes, which it does not do with segments that their sender still has, on the same host, because they are
//! not acknowledged yet. Then a queue that has grown once stays long: 160 KB in segments of 64 bytes took 140 ms, and a flood of
//! them went on at 8 Mbit/s with a whole core where it otherwise has 350.
//!
//! So the first peeks of a stream are short, and where they take too long for what they bring, that ends the peeking: the
//! stream is read into a buffer of its own, and the core's peeks are answered from there. That is another copy. When enough has passed, what comes is peeked at again.
//!
//! A buffer holds no more than what the core has peeked at and has not consumed, which its limits bound.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use bytes::{Buf, BytesMut};

use crate::sys;

/// Bytes that are read before the stream is peeked at again. Whoever was only interrupted in a peek loses the copying of them.
pub(crate) const HELD_FOR: usize = 8 << 20;

/// Free room that a buffer may keep while nothing is in it.
const ROOM_KEPT: usize = 128 << 10;

/// How much is read for one peek: so that a buffer needs not be much larger than what is in it.
pub(crate) const READ_MOST: u32 = 64 << 10;

/// How much the first peek may ask for: at 64 bytes to a buffer of the kernel's, 131,000 steps, or 3 ms (measured).
const FIRST: u32 = 32 << 10;

/// No peek asks for more than this: 34 million steps, half a second or more, the one time that a stream with large buffers
/// suddenly has small ones. A quarter of it costs bulk streams a tenth of their throughput.
const MOST: u32 = 512 << 10;

/// What a peek is expected to take at most, whatever it brings, and for each byte. Copying takes a twentieth to a quarter of
/// that.
const EXPECTED: Duration = Duration::from_micros(10);
const EXPECTED_NANOS_PER_BYTE: u64 = 4;

/// How far peeks may be behind what is expected of them. Some are interrupted, and those after them make up for it.
const PATIENCE: Duration = Duration::from_millis(4);

/// How much a stream's peeks may ask for: twice as much after each one that got all that it might and was quick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    bytes: u32,
    /// Where the last peek ended.
    end: u32,
    /// How far peeks are behind.
    behind: Duration,
}

impl Default for Look {
    fn default() -> Self {
        Self { bytes: FIRST, end: 0, behind: Duration::ZERO }
    }
}

impl Look {
    /// The most bytes that the next peek may ask for.
    pub(crate) fn most(&self) -> u32 {
        self.bytes
    }

    /// Whether the time of a peek at this offset is to be taken: not where little is looked at.
    pub(crate) fn is_timed(&self, offset: u32) -> bool {
        offset.max(self.end) >= FIRST / 4
    }

    /// A peek has brought so many bytes, and has taken so long if that was looked at. Whether it is enough.
    pub(crate) fn on_peeked(&mut self, offset: u32, got: u32, took: Option<Duration>) -> bool {
        self.end = offset.saturating_add(got);
        let Some(took) = took else { return false };
        let expected = EXPECTED + Duration::from_nanos(EXPECTED_NANOS_PER_BYTE * u64::from(got));
        if took <= expected && got >= self.bytes && self.bytes < MOST {
            self.bytes *= 2;
        }
        self.behind = (self.behind + took).saturating_sub(expected);
        self.behind > PATIENCE
    }
}

/// What was read and not consumed: the front of the queue. See the [module](self).
#[derive(Default)]
pub(crate) struct Held {
    bytes: BytesMut,
    /// Bytes read since it began.
    read: usize,
}

impl Held {
    /// How many bytes are held: the kernel's queue begins behind them.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether what comes is read. Otherwise the kernel keeps it, and this here is used up.
    pub(crate) fn is_reading(&self) -> bool {
        self.read < HELD_FOR
    }

    /// Whether what lies at this offset is here, or shall be.
    pub(crate) fn has(&self, offset: usize) -> bool {
        self.is_reading() || offset < self.len()
    }

    /// What comes is read again.
    pub(crate) fn read_on(&mut self) {
        self.read = 0;
    }

    /// What lies behind an offset, `len` bytes at most. Empty: the end of the stream. `WouldBlock`: nothing there yet.
    pub(crate) fn show(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: usize,
        len: usize,
    ) -> io::Result<&[u8]> {
        let wanted = offset + len;
        while self.bytes.len() < wanted && (self.is_reading() || self.bytes.len() <= offset) {
            match self.read(fd, wanted - self.bytes.len()) {
                Ok(0) => break,
                // A read also stops at urgent data.
                Ok(_) if self.bytes.len() <= offset => {}
                Ok(_) => break,
                Err(error) if sys::would_block(&error) && self.bytes.len() > offset => break,
                // It is told but once, and everything that came before it has been shown.
                Err(error) => return Err(error),
            }
        }
        let end = wanted.min(self.bytes.len());
        Ok(&self.bytes[offset.min(end)..end])
    }

    fn read(&mut self, fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        self.bytes.reserve(len);
        let got = sys::receive(fd, &mut self.bytes.spare_capacity_mut()[..len])?;
        // SAFETY: the kernel has written so many bytes behind those that were there.
        unsafe { self.bytes.set_len(self.bytes.len() + got) };
        self.read += got;
        Ok(got)
    }

    /// Gives bytes up: how many of them were here.
    pub(crate) fn consume(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(self.bytes.len());
        self.bytes.advance(bytes);
        if self.bytes.is_empty() && self.bytes.capacity() > ROOM_KEPT {
            self.bytes = BytesMut::new();
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Option<Duration> = Some(Duration::from_micros(5));

    #[test]
    fn quick_peeks_may_soon_ask_for_much() {
        let mut look = Look::default();
        let mut offset = 0;
        for _ in 0..6 {
            let most = look.most();
            assert!(!look.on_peeked(offset, most, QUICK));
            offset += most;
        }
        assert_eq!(look.most(), MOST);
    }

    #[test]
    fn what_brings_little_may_not_ask_for_more() {
        let mut look = Look::default();
        for _ in 0..100 {
            assert!(!look.on_peeked(0, FIRST - 1, QUICK));
        }
        assert_eq!(look.most(), FIRST);
    }

    #[test]
    fn little_is_not_timed_and_a_queue_that_was_looked_into_far_is() {
        let mut look = Look::default();
        assert!(!look.is_timed(0));
        assert!(look.is_timed(FIRST));
        look.on_peeked(0, FIRST, None);
        assert!(look.is_timed(0));
        look.on_peeked(0, 100, None);
        assert!(!look.is_timed(0));
    }

    #[test]
    fn what_is_too_long_depends_on_what_it_brings() {
        let took = Some(Duration::from_micros(60));
        let mut look = Look::default();
        assert!((0..1000).all(|_| !look.on_peeked(0, FIRST, took)));
        assert!((0..100).any(|_| look.on_peeked(0, 64, took)));
    }

    #[test]
    fn who_was_interrupted_makes_up_for_it() {
        let mut look = Look::default();
        for _ in 0..100 {
            assert!(!look.on_peeked(0, 64, Some(PATIENCE)));
            for _ in 0..100 {
                assert!(!look.on_peeked(0, FIRST, QUICK));
            }
        }
        assert!(look.on_peeked(0, 64, Some(2 * PATIENCE)));
    }
}
