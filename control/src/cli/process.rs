//! Processes, told apart from later ones that were given the same number.
//!
//! A process id in a file says nothing by itself: the number may belong to somebody else by now.
//! Together with the start time that the kernel keeps for the process (proc(5), `/proc/PID/stat`,
//! field 22, in clock ticks since boot) it names one process. Signals go through a pidfd that is
//! opened first and compared afterwards, so that they cannot reach a successor.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// One process, past or present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// The process id, as this process sees it.
    pub(crate) pid: i32,
    /// When it was started, in clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl Process {
    /// The process that has this id now.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start_ticks: stat.start_ticks })
    }

    /// The calling process.
    pub(crate) fn current() -> io::Result<Self> {
        Self::of(nix::unistd::getpid().as_raw())
    }

    /// Whether it still runs. One that has ended and waits to be reaped does not.
    pub(crate) fn is_alive(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| {
            stat.start_ticks == self.start_ticks && !matches!(stat.state, b'Z' | b'X')
        })
    }

    /// A pidfd for it; `None`: it has ended.
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // The pidfd is opened first: what it refers to can no longer change under the comparison.
        Ok(self.is_alive().then_some(pidfd))
    }

    /// Sends a signal; one that has ended is left alone.
    pub(crate) fn signal(self, signal: Signal) -> io::Result<()> {
        match self.open()? {
            None => Ok(()),
            Some(pidfd) => match pidfd_send_signal(&pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
        }
    }

    /// Waits for its end, no longer than `limit`. Says whether it has ended.
    pub(crate) fn wait_end(self, limit: Duration) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else { return Ok(true) };
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout)?;
        Ok(!self.is_alive())
    }

    /// Asks it to end, and ends it when it has not done so after `grace`.
    pub(crate) fn end(self, grace: Duration) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        if !self.wait_end(grace)? {
            self.signal(Signal::KILL)?;
            self.wait_end(Duration::from_secs(2))?;
        }
        Ok(())
    }
}

/// The fields of `/proc/PID/stat` that are used here.
struct Stat {
    /// One letter: running, sleeping, zombie, ...
    state: u8,
    /// The parent's id.
    parent: i32,
    /// Start time in clock ticks since boot.
    start_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The name (field 2) is in parentheses and may hold anything, parentheses too: what follows
    /// the last one counts.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { state, parent, start_ticks })
    }
}

/// All processes that can be seen.
pub(crate) fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The children of a process, those included that have ended and are not reaped.
pub(crate) fn children_of(parent: i32) -> Vec<i32> {
    all().filter(|&pid| Stat::read(pid).is_ok_and(|stat| stat.parent == parent)).collect()
}

/// The processes whose network namespace is the one of `member`.
pub(crate) fn sharing_network_with(member: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let Some(wanted) = namespace(member) else { return Vec::new() };
    all().filter(|&pid| pid != member && namespace(pid).as_ref() == Some(&wanted)).collect()
}

/// The name of a process, as `ps` prints it; empty when it is gone.
pub(crate) fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let fields = (4..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("7 (a) b) ( c) S {fields} 4711 23")).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start_ticks), (b'S', 4, 4711));
    }

    #[test]
    fn the_calling_process_is_alive_and_its_predecessor_is_not() {
        let current = Process::current().unwrap();
        assert!(current.is_alive());
        let predecessor = Process { start_ticks: current.start_ticks.wrapping_sub(1), ..current };
        assert!(!predecessor.is_alive());
        assert!(predecessor.open().unwrap().is_none());
    }

    #[test]
    fn a_child_that_ended_is_not_alive_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        assert!(children_of(Process::current().unwrap().pid).contains(&process.pid));
        process.end(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
