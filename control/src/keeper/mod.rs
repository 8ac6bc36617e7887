//! The keeper: the process that stays among the files when the daemon has given them up.
//!
//! # Theory of operation
//!
//! After its set-up the daemon sees no file any more ([`crate::sandbox`]). Three things are left to do that need files,
//! or the user namespace that the daemon was started in:
//!
//! - `/etc/resolv.conf` is followed wherever it leads. The keeper reads it and tells the daemon addresses.
//! - The control socket and the pid file are removed at the end. The keeper does it, after a `SIGKILL` of the daemon too.
//! - It is told who is connected to the control socket. In a user namespace of its own the daemon is shown the overflow user
//!   for everybody but itself; the keeper is not.
//!
//! ```text
//!   daemon ──fork──▶ keeper: own process group, nothing of the daemon's open but two socket pairs
//!      │◀── news ─────┤  resolvers, warnings; its hang-up is the end
//!      ├── question ─▶│  a connection (SCM_RIGHTS): may it ask?
//!      │◀── answer ───┤
//! ```
//!
//! The daemon cannot name a file to it: a daemon in a stranger's hands gets no file out of its keeper. The keeper itself may
//! read in the directories where resolv.conf can be and remove in those where its files are, and no more (Landlock, a
//! list of system calls).

mod process;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, setsockopt, shutdown, socketpair,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

pub(crate) use process::is_trusted;

use crate::owned_path::OwnedPath;
use crate::resolv::ResolvConf;
use crate::sandbox::Policy;

/// The longest message.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The keeper answers within 100 µs; after this it is not asked any more.
const ANSWER_TIMEOUT_S: libc::time_t = 1;

/// What is given into its charge.
pub(crate) struct Kept {
    /// The file with the host's resolvers; none: it does not count.
    pub(crate) resolv_conf: Option<ResolvConf>,
    /// What goes with the daemon.
    pub(crate) files: Vec<OwnedPath>,
}

/// What it has to tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum News {
    /// The host's resolvers are these now.
    Resolvers(Vec<SocketAddr>),
    /// Something for the log.
    Warning(String),
    /// It was killed; there will be no more.
    Gone,
}

/// A running keeper. Dropping it ends it, after it has removed its files.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// None: it was killed.
    news: Option<OwnedFd>,
    /// Our child, for which nobody else waits.
    pid: Pid,
}

/// Asks the keeper who is connected. Clones ask by the same line, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Doorman {
    /// None: it did not answer.
    questions: Arc<Mutex<Option<OwnedFd>>>,
}

impl Keeper {
    /// Forks it. To be called before the first thread is started.
    pub(crate) fn start(kept: Kept, policy: Policy) -> io::Result<(Self, Doorman)> {
        let pair =
            || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (news, its_news) = pair()?;
        let (questions, its_questions) = pair()?;
        setsockopt(&questions, ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_S, 0))?;
        // SAFETY: this process has one thread, so that the child may do what it likes. It never returns from here.
        match unsafe { fork() }? {
            ForkResult::Child => process::live(kept, its_news, its_questions, policy),
            ForkResult::Parent { child } => {
                kept.files.into_iter().for_each(OwnedPath::leave);
                let doorman = Doorman { questions: Arc::new(Mutex::new(Some(questions))) };
                Ok((Self { news: Some(news), pid: child }, doorman))
            }
        }
    }

    /// Becomes readable when there is news.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.news.as_ref().map(AsFd::as_fd)
    }

    /// What is new; none: nothing.
    pub(crate) fn news(&mut self) -> Option<News> {
        let news = self.news.as_ref()?;
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        match recv(news.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Ok(0) | Err(_) => {
                self.news = None;
                Some(News::Gone)
            }
            Ok(count) => serde_json::from_slice(buffer.get(..count)?).ok(),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(news) = &self.news {
            let _ = shutdown(news.as_raw_fd(), Shutdown::Both);
        }
        let _ = waitpid(self.pid, None);
    }
}

impl Doorman {
    /// Whether the peer is root or the user whose daemon this is. Without an answer it is not.
    pub(crate) fn is_trusted(&mut self, stream: &UnixStream) -> bool {
        let mut line = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = line.as_ref().map(|questions| ask(questions, stream));
        match answer {
            Some(Ok(is_trusted)) => is_trusted,
            // An answer that comes later must not be taken for that to another question.
            Some(Err(_)) | None => {
                *line = None;
                false
            }
        }
    }
}

fn ask(questions: &OwnedFd, stream: &UnixStream) -> nix::Result<bool> {
    process::send_with(questions, &[process::WHO], Some(stream.as_fd()))?;
    let mut answer = [0];
    match recv(questions.as_raw_fd(), &mut answer, MsgFlags::empty())? {
        0 => Err(Errno::EPIPE),
        _ => Ok(answer == [process::TRUSTED]),
    }
}
