//! Who asks for host names: a process that stays among the files when the daemon has given them up.
//!
//! How a name is found is the host's matter (`/etc/nsswitch.conf`, `/etc/hosts`, its resolvers), and the C library's. So it
//! takes files and sockets of any kind, which the daemon has not. The process knows the names from the start, and is asked by
//! number: a daemon in a stranger's hands can ask for nothing else. It may read where the files can be, and write nowhere
//! (Landlock); it has no capabilities. It sleeps until it is asked, and dies with the daemon, even in the middle of a question,
//! which may take the resolver's whole patience.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use usernet_driver::detach;

use crate::sandbox::{self, Policy};

/// Its name in `ps`.
const NAME: &str = "usernetd-names";
/// The longest answer.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Addresses of one name that are told.
const ADDRESSES_MAX: usize = 16;

/// A running process. Dropping it ends it.
pub(super) struct Names {
    line: OwnedFd,
    is_gone: bool,
}

impl Names {
    /// Forks it. To be called before the first thread is started.
    pub(super) fn start(names: Vec<(String, u16)>, policy: Policy) -> io::Result<Self> {
        let (line, its_line) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let daemon = getpid();
        // SAFETY: this process has one thread, so that the child may do what it likes. It never returns from here.
        match unsafe { fork() }? {
            ForkResult::Child => live(&names, &its_line, (daemon, policy)),
            ForkResult::Parent { .. } => Ok(Self { line, is_gone: false }),
        }
    }

    /// Becomes readable when there is an answer.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }

    /// Whether it was killed.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Asks for a name by its number. Who is busy with many questions gets no more.
    pub(super) fn ask(&self, number: usize) {
        let bytes = (number as u64).to_ne_bytes();
        let _ =
            send(self.line.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }

    /// A name's number and its addresses, best first, of which there may be none; none: nothing is new.
    pub(super) fn answer(&mut self) -> Option<(usize, Vec<SocketAddr>)> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        match recv(self.line.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Ok(0) | Err(_) => {
                self.is_gone = true;
                None
            }
            Ok(count) => serde_json::from_slice(buffer.get(..count)?).ok(),
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = shutdown(self.line.as_raw_fd(), Shutdown::Both);
    }
}

/// Answers until the daemon has ended.
fn live(names: &[(String, u16)], line: &OwnedFd, (daemon, policy): (Pid, Policy)) -> ! {
    // A panic shall not unwind into the daemon's frames.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if isolate(line, daemon, policy).is_ok() {
            while let Some(number) = question(line) {
                let _ = answer(line, number, names);
            }
        }
    }));
    // SAFETY: ends this process without running the daemon's exit handlers.
    unsafe { libc::_exit(0) }
}

fn isolate(line: &OwnedFd, daemon: Pid, policy: Policy) -> nix::Result<()> {
    detach::from_caller(NAME, vec![line.as_raw_fd()])?;
    sandbox::confine_asker(policy);
    // The kernel forgets it when rights change, so it is asked for afterwards.
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == daemon { Ok(()) } else { Err(Errno::ESRCH) }
}

/// The next question; none: the daemon has hung up.
fn question(line: &OwnedFd) -> Option<usize> {
    let mut bytes = [0; 8];
    loop {
        return match recv(line.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            Ok(8) => usize::try_from(u64::from_ne_bytes(bytes)).ok(),
            Ok(_) | Err(_) => None,
        };
    }
}

fn answer(line: &OwnedFd, number: usize, names: &[(String, u16)]) -> nix::Result<()> {
    let Some((host, port)) = names.get(number) else { return Ok(()) };
    let found = (host.as_str(), *port).to_socket_addrs();
    let addresses: Vec<SocketAddr> = found.into_iter().flatten().take(ADDRESSES_MAX).collect();
    let bytes = serde_json::to_vec(&(number, addresses)).map_err(|_| Errno::EINVAL)?;
    send(line.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).map(drop)
}
