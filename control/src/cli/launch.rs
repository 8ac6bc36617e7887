//! Starting the daemon for a namespace.
//!
//! The daemon is this executable again, called `usernetd`: one binary is enough. It gets a session
//! of its own, so that what is typed at the terminal does not reach it, and three descriptors: the
//! writing end of a pipe that tells that it is ready, the reading end of one that tells it when to
//! end, and a place for its log. Nothing else that is open here is open there.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2, setsid};

use super::error::Error;
use super::instance::Claim;
use super::process::Process;
use super::supervisor::{Event, Signals};
use crate::program::Program;

/// As much of the daemon's log is shown when it fails, in bytes.
const LOG_TAIL_BYTES: usize = 4 << 10;

/// What the daemon is started for.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// Its place.
    pub(crate) claim: &'a Claim,
    /// The network namespace, for `--netns`.
    pub(crate) netns: OsString,
    /// The user namespace to enter, for `--userns`, where one was made.
    pub(crate) userns: Option<OsString>,
    /// What the user asked for.
    pub(crate) network: &'a [OsString],
    /// What the command adds to that.
    pub(crate) further: &'a [OsString],
    /// The daemon ends when the other end of this pipe is closed.
    pub(crate) exit: Option<OwnedFd>,
    /// Whether its log goes to our standard error instead of a file.
    pub(crate) is_log_shown: bool,
}

/// A pipe, closed on exec: the reading end, the writing end.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::system("cannot make a pipe")(errno.into()))
}

impl Launch<'_> {
    /// Starts the daemon and waits until the network is there. When that fails, or a signal comes
    /// first, nothing of it is left.
    pub(crate) fn start(self, signals: &Signals) -> Result<Process, Error> {
        let log_path = self.claim.path("daemon.log");
        let (ready, ready_writer) = pipe()?;
        let pid = self.spawn(&log_path, ready_writer)?;
        match signals.wait_readable(&ready) {
            Ok(Event::Readable) if has_byte(ready) => {
                Process::of(pid.as_raw()).map_err(Error::system("the daemon is gone"))
            }
            Ok(Event::Readable) => {
                waitpid(pid, None).ok();
                Err(Error::Daemon(log_tail(&log_path)))
            }
            Ok(Event::Signal(signal)) => {
                abandon(pid);
                Err(Error::Interrupted(signal))
            }
            Err(error) => {
                abandon(pid);
                Err(error)
            }
        }
    }

    fn spawn(self, log_path: &Path, ready: OwnedFd) -> Result<Pid, Error> {
        let mut command = self.command(&ready);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if self.is_log_shown {
            command.stderr(Stdio::inherit());
        } else {
            let log = File::create(log_path);
            command.stderr(log.map_err(Error::system(format!("{}", log_path.display())))?);
        }
        let kept: Vec<RawFd> = [Some(&ready), self.exit.as_ref()]
            .into_iter()
            .flatten()
            .map(AsRawFd::as_raw_fd)
            .collect();
        // SAFETY: the closure runs between fork and exec and makes system calls only; it does not
        // allocate.
        unsafe { command.pre_exec(move || leave_terminal_and_keep(&kept)) };
        let child = command.spawn().map_err(Error::system("cannot start the daemon"))?;
        // The standard library's handle does not kill nor reap when it is dropped; from here on the
        // id is enough.
        Ok(Pid::from_raw(child.id().cast_signed()))
    }

    fn command(&self, ready: &OwnedFd) -> Command {
        let mut command = Command::new(own_executable());
        command.arg0(Program::Usernetd.name()).arg("--netns").arg(&self.netns);
        if let Some(userns) = &self.userns {
            command.arg("--userns").arg(userns);
        }
        command.arg("--api-socket").arg(self.claim.api_socket());
        command.arg("--ready-fd").arg(ready.as_raw_fd().to_string());
        if let Some(exit) = &self.exit {
            command.arg("--exit-fd").arg(exit.as_raw_fd().to_string());
        }
        command.args(self.network).args(self.further);
        command
    }
}

/// The path of this executable. After an upgrade the file may be gone; the link still works.
pub(crate) fn own_executable() -> PathBuf {
    let link = PathBuf::from("/proc/self/exe");
    env::current_exe().ok().filter(|path| path.exists()).unwrap_or(link)
}

/// Between fork and exec: a session of its own, and none of our descriptors but these and the standard ones.
pub(super) fn leave_terminal_and_keep(kept: &[RawFd]) -> io::Result<()> {
    setsid()?;
    SigSet::empty().thread_set_mask()?;
    // SAFETY: no memory is passed; descriptors are only marked.
    unsafe {
        // What the caller had open is none of the daemon's business. Kernels before 5.11 cannot
        // mark them: there the daemon inherits what the caller did not mark itself.
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    for &fd in kept {
        // SAFETY: no memory is passed; the descriptor is only unmarked, and stays open until exec.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Starts a program that is not our child, and whose standard output the caller gets: `usernet run` ends
/// whatever descends from it.
pub(super) fn spawn_apart(mut command: Command) -> io::Result<OwnedFd> {
    // SAFETY: the closure runs between fork and exec and makes system calls only; it does not allocate.
    unsafe {
        command.pre_exec(|| {
            leave_terminal_and_keep(&[])?;
            // SAFETY: the process has one thread, and goes on to exec or ends at once.
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(()),
                // SAFETY: it only ends the process.
                _ => libc::_exit(0),
            }
        });
    }
    let adopts = prctl::get_child_subreaper()?;
    prctl::set_child_subreaper(false)?;
    let started = command.stdout(Stdio::piped()).spawn().and_then(|mut between| {
        between.wait()?;
        Ok(between.stdout.take().map(OwnedFd::from).expect("it is a pipe"))
    });
    prctl::set_child_subreaper(adopts)?;
    started
}

fn has_byte(ready: OwnedFd) -> bool {
    File::from(ready).read(&mut [0]).is_ok_and(|count| count == 1)
}

fn abandon(pid: Pid) {
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    waitpid(pid, None).ok();
}

/// What the daemon said before it gave up.
pub(super) fn log_tail(path: &Path) -> String {
    let log = fs::read(path).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
    let text = String::from_utf8_lossy(tail).trim().to_owned();
    if text.is_empty() {
        "usernetd ended at once and said nothing more here".to_owned()
    } else {
        text
    }
}

/// Ends a daemon that is our child, gently at first, and reaps it.
pub(crate) fn end_child(daemon: Process) {
    daemon.end(std::time::Duration::from_secs(3)).ok();
    // An error here says that it was reaped already.
    waitpid(Pid::from_raw(daemon.pid), None).ok();
}
