//! Frames that wait for room in a link that is a socket.
//!
//! A TAP drops what its queue has no room for, as a network card does. A socket says `EAGAIN` long before that many bytes are
//! in it, and what is dropped there costs the guest a retransmission. So frames wait here until the peer has read on. They
//! are copied: this is no path for speed, and a copy holds no lease. Buffers are kept for the next time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use crate::sys;

/// Frames that wait at most: 3 MB of full ones.
const FRAMES_MAX: usize = 2_048;

/// Buffers kept for reuse.
const SPARE_MAX: usize = 256;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Backlog {
    frames: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Backlog {
    /// Sends a frame that lies in two parts as one message, or keeps it until there is room. `ENOBUFS`: too many wait
    /// already.
    pub(crate) fn send(&mut self, to: BorrowedFd<'_>, parts: [&[u8]; 2]) -> io::Result<()> {
        if !self.frames.is_empty() {
            return self.keep(parts);
        }
        match send(to, parts) {
            Err(error) if sys::would_block(&error) => self.keep(parts),
            sent => sent,
        }
    }

    /// Sends what waits, as far as there is room. An error is about the frame in front, which is gone.
    pub(crate) fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(frame) = self.frames.front() {
            match send(to, [frame, &[]]) {
                Err(error) if sys::would_block(&error) => return Ok(()),
                sent => {
                    self.forget_first();
                    sent?;
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, parts: [&[u8]; 2]) -> io::Result<()> {
        if self.frames.len() >= FRAMES_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
        }
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        self.frames.push_back(frame);
        Ok(())
    }

    fn forget_first(&mut self) {
        if let Some(frame) = self.frames.pop_front()
            && self.spare.len() < SPARE_MAX
        {
            self.spare.push(frame);
        }
    }
}

fn send(to: BorrowedFd<'_>, parts: [&[u8]; 2]) -> io::Result<()> {
    let buffers = parts
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    // SAFETY: the parts are borrowed for the call, which only reads them.
    unsafe { sys::send(to, &buffers) }.map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn frames_wait_for_room_in_order_and_only_so_many() {
        let (ours, peer) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket pair");
        let mut backlog = Backlog::default();
        let mut sent = 0_u32;
        let refused = loop {
            let number = sent.to_le_bytes();
            match backlog.send(ours.as_fd(), [&number, &[7; 1000]]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.raw_os_error(), Some(libc::ENOBUFS));
        assert_eq!(backlog.frames.len(), FRAMES_MAX);
        let mut got = 0_u32;
        let mut buffer = [0; 2000];
        loop {
            match rustix::io::read(&peer, &mut buffer) {
                Ok(len) => {
                    assert_eq!((len, &buffer[..4]), (1004, &got.to_le_bytes()[..]));
                    got += 1;
                }
                Err(_) if backlog.frames.is_empty() => break,
                Err(_) => backlog.drain(ours.as_fd()).expect("the peer lives"),
            }
        }
        assert_eq!(got, sent);
        drop(peer);
        assert!(backlog.send(ours.as_fd(), [&[0; 60], &[]]).is_err(), "nobody reads any more");
    }
}
