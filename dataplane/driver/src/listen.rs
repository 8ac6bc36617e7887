//! Listening sockets of forwards, and the connections they took until the core says what becomes of them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use usernet_core::AcceptedId;

use crate::address;
use crate::sys;

/// Connections taken from one listener per turn: others want their turn, too.
pub(crate) const ACCEPTS_PER_TURN: usize = 64;

/// A listening TCP socket.
pub(crate) struct Listener {
    fd: OwnedFd,
    /// Where it listens.
    local: SocketAddr,
}

/// What [`Listener::accept`] gave: a client.
pub(crate) struct Taken {
    pub(crate) socket: OwnedFd,
    pub(crate) peer: SocketAddr,
    /// What it connected to.
    pub(crate) local: SocketAddr,
}

impl Taken {
    /// Closes it with RST.
    pub(crate) fn refuse(self) {
        let _ = sys::reset_on_close(self.socket.as_fd());
    }
}

impl Listener {
    /// Takes over a listening socket. Connections inherit what is set on it.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let local = address::local_address(fd.as_fd())?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { fd, local })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next connection. `WouldBlock`: none; `EMFILE` and its kin: no room for it, it stays where it is.
    pub(crate) fn accept(&self) -> io::Result<Taken> {
        let (socket, peer) = sys::accept(self.fd())?;
        let peer = peer.get().ok_or(io::ErrorKind::ConnectionAborted)?;
        // A wildcard says nothing about where the client went.
        let local = if self.local.ip().is_unspecified() {
            address::local_address(socket.as_fd())?
        } else {
            self.local
        };
        Ok(Taken { socket, peer, local })
    }
}

/// Whether an accept failed for want of descriptors or memory: to be tried again later, not at once.
pub(crate) fn is_out_of_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Connections that the core has not adopted or refused yet.
#[derive(Default)]
pub(crate) struct Accepted {
    clients: Vec<Option<Taken>>,
    free: Vec<u32>,
}

impl Accepted {
    /// Names a connection.
    pub(crate) fn insert(&mut self, client: Taken) -> AcceptedId {
        if let Some(index) = self.free.pop() {
            self.clients[index as usize] = Some(client);
            return AcceptedId(index);
        }
        self.clients.push(Some(client));
        AcceptedId(self.clients.len() as u32 - 1)
    }

    /// Takes a connection out.
    pub(crate) fn take(&mut self, id: AcceptedId) -> Option<Taken> {
        let client = self.clients.get_mut(id.0 as usize)?.take()?;
        self.free.push(id.0);
        Some(client)
    }

    /// The connection, if it is still there.
    pub(crate) fn get(&self, id: AcceptedId) -> Option<BorrowedFd<'_>> {
        self.clients.get(id.0 as usize)?.as_ref().map(|client| client.socket.as_fd())
    }
}
