//! The control socket's place in the file system: nobody else's, and gone at the end.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};

use crate::owned_path::OwnedPath;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// How long a name may be in use still.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon listens there.
    #[error("another usernetd is using {}: choose another path, or stop it", .0.display())]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{} exists and is not a socket: choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The name does not fit into a socket address.
    #[error("{} is too long for a socket: at most 107 bytes", .0.display())]
    TooLong(PathBuf),
    /// Any other refusal.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// A listening control socket. Dropping it removes its name.
#[derive(Debug)]
pub(crate) struct ApiSocket {
    pub(super) listener: UnixListener,
    /// None: another process removes it.
    name: Option<OwnedPath>,
}

impl ApiSocket {
    /// Listens at `path`, mode 0600. A socket that a daemon left behind without listening is replaced. One that is
    /// in use may be that of a daemon that is about to end: who restarts a container does not wait for it.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let address = UnixAddr::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
        let until = Instant::now() + PATIENCE;
        loop {
            let refused = match Self::bind_now(path, &address) {
                Err(refused @ SocketError::InUse(_)) => refused,
                done => return done,
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(refused);
            }
            wait_for_end(path, left);
        }
    }

    fn bind_now(path: &Path, address: &UnixAddr) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Listen { path: path.to_owned(), source };
        // Two daemons that find the same stale socket would each remove the other's. The lock is on the
        // directory, so that no lock file stays.
        let _lock = lock_directory(path);
        remove_stale(path)?;
        listen_at(address).and_then(|listener| Ok((listener, OwnedPath::of(path)?))).map_or_else(
            |source| Err(failed(source)),
            |(listener, name)| Ok(Self { listener, name: Some(name) }),
        )
    }
}

impl ApiSocket {
    /// Its name, for who removes it in our place.
    pub(crate) fn take_name(&mut self) -> Option<OwnedPath> {
        self.name.take()
    }
}

/// Waits until the daemon that listens there has ended, or the time is over.
fn wait_for_end(path: &Path, at_most: Duration) {
    let Ok(stream) = UnixStream::connect(path) else { return };
    let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::ZERO);
    // Its end closes the connection. A daemon that has enough of a silent client does too, so not too often.
    let _ = poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], timeout);
    std::thread::sleep(Duration::from_millis(5));
}

fn listen_at(address: &UnixAddr) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // `bind` gives the name the mode of the socket's inode, less the umask (`unix_bind_bsd`): it is never
    // there with another one.
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), address)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Listen { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)
        }
        // EACCES: somebody else's; EAGAIN: one that is so busy that it lives.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(failed(error)),
        Ok(_) | Err(_) => Err(SocketError::InUse(path.to_owned())),
    }
}

/// Best effort: in a directory in which others write, anybody can hold the lock.
fn lock_directory(path: &Path) -> Option<Flock<std::fs::File>> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut directory = std::fs::File::open(parent.unwrap_or(Path::new("."))).ok()?;
    for _ in 0..50 {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((back, Errno::EAGAIN | Errno::EINTR)) => directory = back,
            Err(_) => return None,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let directory = std::env::temp_dir().join(format!("usernet-socket-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s");
        let first = ApiSocket::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = ApiSocket::bind(&path).expect_err("somebody listens").to_string();
        assert!(error.starts_with("another usernetd is using "), "{error}");
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(first);
        });
        drop(ApiSocket::bind(&path).expect("whoever listens is about to end"));
        ending.join().unwrap();
        assert!(!path.exists());

        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left behind");
        drop(ApiSocket::bind(&path).expect("nobody listens"));

        std::fs::write(&path, "").unwrap();
        assert!(matches!(ApiSocket::bind(&path), Err(SocketError::NotASocket(_))));
        let long = directory.join("x".repeat(120));
        assert!(matches!(ApiSocket::bind(&long), Err(SocketError::TooLong(_))));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
