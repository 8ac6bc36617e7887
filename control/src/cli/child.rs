//! A forked child, and the line to it.
//!
//! Namespaces are entered by a process for itself, so `usernet` forks before it makes any. Parent
//! and child speak in single packets of JSON over a socket pair. The socket is closed on exec: end
//! of file tells the parent that the command is running, or that the child is gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::exit;

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType};
use nix::unistd::{ForkResult, Pid, fork};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::namespaces::StepFailed;

/// The longest message, in bytes. A path in an error is the longest part.
const MESSAGE_BYTES_MAX: usize = 8 << 10;

/// What the child tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It is in its user namespace and waits for the id maps.
    Unshared,
    /// It is where it should be and waits for the word to go on.
    Ready,
    /// It gave up.
    Failed(StepFailed),
    /// It could not become the command: the error number.
    NotExecuted(i32),
}

/// What the parent tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The id maps are written.
    Mapped,
    /// Everything around it stands.
    Go,
}

/// One end of the line.
#[derive(Debug)]
pub(crate) struct Line(OwnedFd);

impl Line {
    /// Both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (parent, child) = socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(parent), Self(child)))
    }

    /// Sends a message. A peer that is gone is an error, never a signal.
    pub(crate) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        socket::send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Waits for a message; none: the other end is closed.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let length = loop {
            match socket::recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(length) => break length,
                Err(nix::errno::Errno::EINTR) => {}
                // A peer that died with messages unread.
                Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        let received = bytes.get(..length).unwrap_or_default();
        if received.is_empty() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(received)?))
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Forks; the child runs `body` with its end of the line, and ends with the status that it returns.
pub(crate) fn spawn(body: impl FnOnce(Line) -> i32) -> io::Result<(Pid, Line)> {
    let (ours, theirs) = Line::pair()?;
    // SAFETY: this process has one thread (nothing under `cli` starts another before it forks), so
    // the child's copy of memory has no lock that somebody else held, and it may go on like any
    // program.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok((child, ours)),
        ForkResult::Child => {
            drop(ours);
            exit(body(theirs))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_one_by_one_and_the_end_is_told() {
        let (parent, child) = Line::pair().unwrap();
        child.send(&Report::Unshared).unwrap();
        child.send(&Report::NotExecuted(2)).unwrap();
        assert_eq!(parent.receive().unwrap(), Some(Report::Unshared));
        assert_eq!(parent.receive().unwrap(), Some(Report::NotExecuted(2)));
        drop(child);
        assert_eq!(parent.receive::<Report>().unwrap(), None);
        assert!(parent.send(&Order::Go).is_err());
    }
}
