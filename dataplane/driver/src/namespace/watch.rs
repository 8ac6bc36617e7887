//! How the end of a namespace is noticed while our own TAP keeps it from ending.
//!
//! # Theory of operation
//!
//! What is alive in a namespace is what somebody else holds: its processes, and the names it is mounted on. The
//! helper waits for one of them and, when that one is gone, looks for the next. So it sleeps until something
//! happens, whatever the number of processes.
//!
//! - A *process* is waited for by its pidfd. When it has ended, `/proc` is searched for another one with the same
//!   `/proc/PID/ns/net`. The search begins at the lowest PID, which is most often the oldest process.
//! - A *name* (`/run/netns/x`) is looked at after each change of the mount table: `/proc/self/mountinfo` polls
//!   as `POLLPRI` then. `ip netns del` unmounts it. When it is gone, what counts is processes.
//! - Of a bare *descriptor* (`/proc/self/fd/N`) nobody tells who holds it. Processes are waited for if there are any.
//!   If there are none yet, the end is not noticed, and the exit descriptor has to say it.
//!
//! Not seen are processes that we may not trace: as an ordinary user, those that made themselves undumpable outside
//! of our user namespace.
//! Nor does a descriptor or a mount elsewhere count that outlives the last process.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::target::{Holder, NamespaceId, has_ended, open_process};

/// The helper's name in `ps`. Helpers of other daemons in the same namespace do not count as its life: two of them
/// would wait for each other forever.
pub(super) const HELPER_NAME: &str = "usernetd-netns";

/// Searches come no faster: a namespace full of short-lived processes shall not keep us busy.
const SEARCH_INTERVAL: Duration = Duration::from_millis(20);

/// A search that finds nothing is made again: a process may have forked behind the search's back.
const SEARCHES: u32 = 2;

/// Waits for the end of one namespace.
pub(super) struct Watch {
    /// Which.
    namespace: NamespaceId,
    /// What is being waited for.
    waiting: Waiting,
    /// When `/proc` was searched last.
    searched: Option<Instant>,
    /// The daemon, which may live in the namespace that it serves.
    daemon_pid: i32,
}

/// What is being waited for.
enum Waiting {
    /// A process's end.
    Process(OwnedFd),
    /// A change of the mount table.
    Name {
        /// The file that the namespace is mounted on.
        path: PathBuf,
        /// `/proc/self/mountinfo`.
        mounts: File,
    },
    /// Nothing.
    Nothing,
}

/// What became of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Somebody holds it.
    Alive,
    /// Nobody does.
    Ended,
}

impl Watch {
    /// Begins with what the target's name said.
    pub(super) fn new(
        namespace: NamespaceId,
        holder: Holder,
        daemon_pid: i32,
    ) -> nix::Result<Self> {
        let mut watch = Self { namespace, waiting: Waiting::Nothing, searched: None, daemon_pid };
        watch.waiting = match holder {
            Holder::Process(process) => Waiting::Process(process),
            Holder::Name(path) => {
                let mounts = File::open("/proc/self/mountinfo").map_err(super::tap::errno)?;
                Waiting::Name { path, mounts }
            }
            Holder::Unknown => match watch.search() {
                Some(process) => Waiting::Process(process),
                None => Waiting::Nothing,
            },
        };
        Ok(watch)
    }

    /// What to poll for.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.waiting {
            Waiting::Process(process) => Some((process.as_fd(), PollFlags::POLLIN)),
            Waiting::Name { mounts, .. } => Some((mounts.as_fd(), PollFlags::POLLPRI)),
            Waiting::Nothing => None,
        }
    }

    /// To be called when [`interest`](Self::interest) has spoken.
    pub(super) fn on_event(&mut self) -> Life {
        let is_held = match &self.waiting {
            Waiting::Process(process) => !has_ended(process),
            Waiting::Name { path, .. } => {
                NamespaceId::of_path(path).is_ok_and(|id| id == self.namespace)
            }
            Waiting::Nothing => true,
        };
        if is_held {
            return Life::Alive;
        }
        match (0..SEARCHES).find_map(|_| self.search()) {
            Some(process) => {
                self.waiting = Waiting::Process(process);
                Life::Alive
            }
            None => Life::Ended,
        }
    }

    /// Looks for a process in the namespace.
    fn search(&mut self) -> Option<OwnedFd> {
        if let Some(since) = self.searched.map(|at| at.elapsed()) {
            std::thread::sleep(SEARCH_INTERVAL.saturating_sub(since));
        }
        let found = std::fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find_map(|pid| self.member(pid));
        self.searched = Some(Instant::now());
        found
    }

    /// The pidfd of a process if it lives in the namespace.
    fn member(&self, pid: i32) -> Option<OwnedFd> {
        let is_inside = || {
            let path = format!("/proc/{pid}/ns/net");
            NamespaceId::of_path(Path::new(&path)).is_ok_and(|id| id == self.namespace)
        };
        if !is_inside() || pid == self.daemon_pid {
            return None;
        }
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        if name.trim_end() == HELPER_NAME {
            return None;
        }
        // Asked again: the PID may have passed to another process before the pidfd was there.
        open_process(pid).filter(|process| is_inside() && !has_ended(process))
    }
}
