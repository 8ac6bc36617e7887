//! The socket pair between the daemon and its helper: whole messages, each with a few descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

/// No message is longer: one that is would be cut by the reader's buffer.
pub(super) const MESSAGE_BYTES_MAX: usize = 4096;
/// No message carries more: what the reader's buffer has no room for is closed.
pub(super) const DESCRIPTORS_MAX: usize = 16;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

/// What came out of it.
pub(super) enum Received {
    /// A message of so many bytes.
    Message(usize, Vec<OwnedFd>),
    /// The other end is closed.
    HungUp,
}

impl Channel {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(a), Self(b)))
    }

    /// Sends `bytes`, and duplicates of `descriptors` with them.
    pub(super) fn send<'a>(
        &self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.into_iter().map(|fd| fd.as_raw_fd()).collect();
        debug_assert!(bytes.len() <= MESSAGE_BYTES_MAX, "the reader's buffer is no larger");
        debug_assert!(raw.len() <= DESCRIPTORS_MAX, "the reader has no room for more");
        let rights = (!raw.is_empty()).then_some(ControlMessage::ScmRights(&raw));
        let control = rights.as_slice();
        let data = [IoSlice::new(bytes)];
        retry(|| sendmsg::<()>(self.0.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None))?;
        Ok(())
    }

    /// Waits for a message.
    pub(super) fn receive(&self, buffer: &mut [u8; MESSAGE_BYTES_MAX]) -> io::Result<Received> {
        let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        retry(|| {
            let mut data = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(self.0.as_raw_fd(), &mut data, Some(&mut control), flags)?;
            let mut descriptors = Vec::new();
            for message in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                    descriptors.extend(raw.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
                }
            }
            // No message of ours is empty: a length of zero is the end (recv(2)).
            Ok(match received.bytes {
                0 => Received::HungUp,
                length => Received::Message(length, descriptors),
            })
        })
        .map_err(io::Error::from)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_message_carries_descriptors_that_work() {
        let (here, there) = Channel::pair().unwrap();
        let (mut ours, passed) = UnixStream::pair().unwrap();

        here.send(b"take it", [passed.as_fd(); DESCRIPTORS_MAX]).unwrap();
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let Received::Message(7, mut fds) = there.receive(&mut buffer).unwrap() else {
            panic!("seven bytes were sent");
        };

        assert_eq!(&buffer[..7], b"take it");
        assert_eq!(fds.len(), DESCRIPTORS_MAX);
        drop(passed);
        let last = fds.pop().unwrap();
        drop(fds);
        UnixStream::from(last).write_all(b"x").unwrap();
        let mut read = String::new();
        ours.read_to_string(&mut read).unwrap();
        assert_eq!(read, "x");
    }

    #[test]
    fn a_closed_end_is_told_from_a_message() {
        let (here, there) = Channel::pair().unwrap();
        drop(here);
        assert!(matches!(there.receive(&mut [0; MESSAGE_BYTES_MAX]).unwrap(), Received::HungUp));
        assert!(there.send(b"x", None).is_err());
    }
}
