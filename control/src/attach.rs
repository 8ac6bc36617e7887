//! What carries the guest's frames, made from the plan: a TAP in a namespace, or a socket that one peer connects to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use usernet_driver::namespace::{Attached, NamespaceEnd, NamespaceListeners, Ports, TunnelLink};
use usernet_driver::{Link, NamespaceSockets};

use crate::control::{self, Cause};
use crate::owned_path::OwnedPath;

/// The guest's side, as far as we have it. Where there is no namespace there is nothing in it.
pub(crate) struct GuestSide {
    /// Carries the frames.
    pub(crate) link: Link,
    /// Carry the packets of tunnels.
    pub(crate) tunnels: Vec<TunnelLink>,
    /// Makes sockets in the namespace.
    pub(crate) sockets: Option<Box<dyn NamespaceSockets>>,
    /// Makes listeners there.
    pub(crate) listeners: Option<NamespaceListeners>,
    /// What programs listen on there.
    pub(crate) ports: Option<Ports>,
    /// Tells when it has ended.
    pub(crate) ended: Option<NamespaceEnd>,
    /// The name of the link's socket, removed when this is dropped.
    pub(crate) name: Option<OwnedPath>,
    /// What could not be done and does not prevent the rest.
    pub(crate) warnings: Vec<String>,
}

impl From<Attached> for GuestSide {
    fn from(attached: Attached) -> Self {
        Self {
            link: attached.link,
            tunnels: attached.tunnels,
            sockets: Some(attached.sockets),
            listeners: Some(attached.listeners),
            ports: Some(attached.ports),
            ended: Some(attached.ended),
            name: None,
            warnings: attached.warnings,
        }
    }
}

impl GuestSide {
    /// There is a link and nothing else.
    pub(crate) fn of_link(link: Link) -> Self {
        Self {
            link,
            tunnels: Vec::new(),
            sockets: None,
            listeners: None,
            ports: None,
            ended: None,
            name: None,
            warnings: Vec::new(),
        }
    }
}

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum LinkSocketError {
    /// Another daemon listens there.
    #[error("{} is in use: another daemon waits for a connection there", .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{} exists and is not a socket: give another path, or remove it", .0.display())]
    NotASocket(PathBuf),
    /// Any other refusal.
    #[error("cannot wait for a connection to {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
}

/// Listens at `path` for the one peer that the link is for, and waits for it. The `Cause`: what came first.
pub(crate) fn wait_for_peer(
    path: &Path,
    signals: &SignalFd,
    exit: Option<&OwnedFd>,
) -> Result<Result<GuestSide, Cause>, LinkSocketError> {
    let failed = |source| LinkSocketError::Listen { path: path.to_owned(), source };
    remove_stale(path)?;
    let listener = listen_at(path).map_err(failed)?;
    let name = OwnedPath::of(path).map_err(|error| failed(errno(&error)))?;
    tracing::info!("waiting for a connection to {}", path.display());
    if let Some(cause) = wait(&listener, signals, exit).map_err(failed)? {
        return Ok(Err(cause));
    }
    let peer = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map_err(failed)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let peer = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(peer) };
    // A second one is refused from here on: nobody listens any more.
    Ok(Ok(GuestSide { name: Some(name), ..GuestSide::of_link(Link::packets(peer)) }))
}

fn packet_socket() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

fn listen_at(path: &Path) -> Result<OwnedFd, Errno> {
    let listener = packet_socket()?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::new(1)?)?;
    Ok(listener)
}

/// A name that a daemon left behind is free.
fn remove_stale(path: &Path) -> Result<(), LinkSocketError> {
    let failed = |source| LinkSocketError::Listen { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(errno(&error))),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(LinkSocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let probe = packet_socket().map_err(failed)?;
    let address = UnixAddr::new(path).map_err(failed)?;
    match connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => {
            std::fs::remove_file(path).map_err(|error| failed(errno(&error)))
        }
        // EPROTOTYPE: a socket of another kind, which somebody has open.
        Ok(()) | Err(Errno::EPROTOTYPE | Errno::EAGAIN) => {
            Err(LinkSocketError::InUse(path.to_owned()))
        }
        Err(other) => Err(failed(other)),
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Waits for the peer; some: for what came before it.
fn wait(
    listener: &OwnedFd,
    signals: &SignalFd,
    exit: Option<&OwnedFd>,
) -> Result<Option<Cause>, Errno> {
    loop {
        // A descriptor that is not there is replaced by one that is watched anyway.
        let third = exit.map_or(signals.as_fd(), AsFd::as_fd);
        let mut events =
            [listener.as_fd(), signals.as_fd(), third].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut events, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(other) => return Err(other),
        }
        let [peer, signal, ended] = events.map(|event| event.any().unwrap_or(true));
        if signal && let Some(cause) = control::signal(signals) {
            return Ok(Some(cause));
        }
        if ended && exit.is_some() {
            return Ok(Some(Cause::ExitFd));
        }
        if peer {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::SigSet;

    fn signals() -> SignalFd {
        SignalFd::new(&SigSet::empty()).expect("a signalfd")
    }

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("usernet-link-{name}-{}", std::process::id()))
    }

    fn dial(path: &Path) -> Result<OwnedFd, Errno> {
        let socket = packet_socket()?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?).map(|()| socket)
    }

    #[test]
    fn one_peer_is_served_and_the_name_goes_at_the_end() {
        let path = path("one");
        // What a killed daemon leaves behind.
        drop(listen_at(&path).expect("a socket"));
        let there = path.clone();
        let peer = std::thread::spawn(move || {
            (0..2000).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                dial(&there).ok()
            })
        });
        let side = wait_for_peer(&path, &signals(), None).expect("a name").expect("a peer");
        assert!(peer.join().expect("no panic").is_some());
        assert_eq!(dial(&path).err(), Some(Errno::ECONNREFUSED), "the second one");
        drop(side);
        assert!(!path.exists());
    }

    #[test]
    fn a_name_in_use_and_one_that_is_no_socket_are_told() {
        let path = path("used");
        let listener = listen_at(&path).expect("a socket");
        let error = |path: &Path| {
            wait_for_peer(path, &signals(), None).map(drop).expect_err("refused").to_string()
        };
        assert!(error(&path).contains("is in use"), "{}", error(&path));
        drop(listener);
        std::fs::remove_file(&path).expect("it is there");
        std::fs::write(&path, "x").expect("room");
        assert!(error(&path).contains("is not a socket"));
        assert_eq!(std::fs::read(&path).expect("untouched"), b"x");
        std::fs::remove_file(&path).expect("it is there");
        assert!(error(Path::new("/nonexistent/socket")).contains("No such file"));
    }

    #[test]
    fn the_exit_descriptor_ends_the_waiting() {
        let (read, write) = std::io::pipe().expect("a pipe");
        drop(write);
        let path = path("exit");
        let ended = wait_for_peer(&path, &signals(), Some(&read.into())).expect("a name");
        assert_eq!(ended.err(), Some(Cause::ExitFd));
        assert!(!path.exists());
    }
}
