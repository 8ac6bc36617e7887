//! Standing between a terminal and a command.
//!
//! The command stays in the process group of `usernet`, so that job control works as if it had been
//! started directly: the shell puts the group into the foreground, and what is typed (Ctrl-C,
//! Ctrl-\, Ctrl-Z) is sent to all of it by the kernel. Signals that a process sends to `usernet`
//! alone are passed on; the sender's code in `signalfd_siginfo` tells the two apart. When the
//! command stops, so does `usernet`, and the shell sees a stopped job; when it is continued, so is
//! the command.
//!
//! `usernet` is a subreaper (prctl(2)): what the command leaves running becomes its child, and is
//! killed with the end of the command, as in a container. `usernet` being killed takes the command
//! along (`PR_SET_PDEATHSIG`), and the daemon, whose exit descriptor closes.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::{WaitOptions, wait};

use super::error::{Error, signal_status};
use super::launch;
use super::process::{self, Process};

/// What is passed on to the command.
const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// Those of them that end a command that is not running yet.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// How often what the command left running is looked for. Each round kills all children there are;
/// a next one is needed for those that had children of their own.
const KILL_ROUNDS_MAX: u32 = 64;

/// What came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The descriptor can be read, or its other end is closed.
    Readable,
    /// A signal asks to end.
    Signal(i32),
}

/// The signals of this process, read instead of taken.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    /// The mask that this process was started with.
    previous: SigSet,
}

impl Signals {
    /// From now on signals wait to be read. A child that goes on by itself must
    /// [`restore`](Self::restore) them.
    pub(crate) fn take() -> Result<Self, Error> {
        let mut mask: SigSet = FORWARDED.into_iter().collect();
        mask.add(Signal::SIGCHLD);
        mask.thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .and_then(|previous| {
                let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
                Ok(Self { fd, previous })
            })
            .map_err(|errno| Error::system("cannot take signals")(errno.into()))
    }

    /// Puts the mask back to what it was.
    pub(crate) fn restore(&self) {
        // Fails for an invalid argument only.
        self.previous.thread_set_mask().ok();
    }

    /// Waits until `other` can be read; a signal to end comes first if there is one.
    pub(crate) fn wait_readable(&self, other: impl AsFd) -> Result<Event, Error> {
        loop {
            let mut fds = [
                PollFd::new(self.fd.as_fd(), PollFlags::POLLIN),
                PollFd::new(other.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("cannot wait")(errno.into())),
            }
            let [signals, other] = fds.map(|fd| fd.any().unwrap_or(false));
            if signals && let Some(signal) = self.next()?.ending() {
                return Ok(Event::Signal(signal));
            }
            if other {
                return Ok(Event::Readable);
            }
        }
    }

    /// Whether a signal to end has come. All that have come are taken.
    pub(crate) fn take_ending(&self) -> Result<bool, Error> {
        let mut is_ending = false;
        loop {
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => return Ok(is_ending),
                Ok(_) => is_ending |= self.next()?.ending().is_some(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("cannot wait")(errno.into())),
            }
        }
    }

    fn next(&self) -> Result<Received, Error> {
        loop {
            match self.fd.read_signal() {
                Ok(Some(info)) => {
                    let signal = Signal::try_from(info.ssi_signo.cast_signed());
                    let is_from_kernel = info.ssi_code == libc::SI_KERNEL;
                    return Ok(Received { signal: signal.ok(), is_from_kernel });
                }
                Ok(None) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::system("cannot read signals")(errno.into())),
            }
        }
    }
}

impl AsFd for Signals {
    /// Readable when a signal waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A signal that was read.
#[derive(Clone, Copy, Debug)]
struct Received {
    /// Which; none: one that has no name, which was not asked for.
    signal: Option<Signal>,
    /// Sent by the kernel, to the whole foreground group: the command has it too.
    is_from_kernel: bool,
}

impl Received {
    fn ending(self) -> Option<i32> {
        self.signal.filter(|signal| ENDING.contains(signal)).map(|signal| signal as i32)
    }
}

/// A command and its daemon.
#[derive(Debug)]
pub(crate) struct Supervisor {
    signals: Signals,
    command: Pid,
    daemon: Process,
}

impl Supervisor {
    /// Must be called before the command is forked, to become the parent of what it leaves behind.
    pub(crate) fn prepare() -> Result<Signals, Error> {
        prctl::set_child_subreaper(true)
            .map_err(|errno| Error::system("cannot adopt processes")(errno.into()))?;
        Signals::take()
    }

    /// Takes over when both run.
    pub(crate) fn new(signals: Signals, command: Pid, daemon: Process) -> Self {
        Self { signals, command, daemon }
    }

    /// Stays until the command has ended, ends everything that is left, and returns its status as a
    /// shell does.
    pub(crate) fn run(self) -> Result<u8, Error> {
        let status = self.wait_command();
        kill_descendants(self.daemon.pid);
        launch::end_child(self.daemon);
        status
    }

    fn wait_command(&self) -> Result<u8, Error> {
        loop {
            // Reaped first: the command may have ended before the signals were taken.
            if let Some(status) = self.reap() {
                return Ok(status);
            }
            let received = self.signals.next()?;
            if let Some(signal) = received.signal
                && signal != Signal::SIGCHLD
                && !received.is_from_kernel
            {
                kill(self.command, signal).ok();
            }
        }
    }

    /// Takes note of all children that changed; the command's status if it ended.
    fn reap(&self) -> Option<u8> {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            let pid = pid.as_raw_nonzero().get();
            if pid == self.command.as_raw() {
                if status.stopped() {
                    self.stop_with_command();
                } else if let Some(end) = shell_status(status) {
                    return Some(end);
                }
            } else if pid == self.daemon.pid && shell_status(status).is_some() {
                eprintln!("usernet: usernetd ended unexpectedly: the command has no network now");
            }
        }
        None
    }

    /// Stops like the command, and lets it go on when we are continued. `SIGSTOP`, whatever stopped
    /// the command: the terminal's own signal is blocked here and may be pending, and would stop us
    /// a second time. Without a terminal nobody would continue us, so there we go on.
    fn stop_with_command(&self) {
        if File::open("/dev/tty").is_ok() {
            raise(Signal::SIGSTOP).ok();
            kill(self.command, Signal::SIGCONT).ok();
        }
    }
}

/// Stays until a daemon that runs in the foreground has ended; returns its status as a shell does.
pub(crate) fn wait_daemon(signals: &Signals, daemon: Process) -> Result<u8, Error> {
    loop {
        let ended = wait(WaitOptions::NOHANG).ok().flatten();
        if let Some((pid, status)) = ended
            && pid.as_raw_nonzero().get() == daemon.pid
            && let Some(status) = shell_status(status)
        {
            return Ok(status);
        }
        // The daemon has a session of its own: what is typed reaches it by us only.
        if signals.next()?.ending().is_some() {
            daemon.signal(rustix::process::Signal::TERM).map_err(Error::system("usernetd"))?;
        }
    }
}

/// How a shell tells the end of a process; none: it has not ended.
fn shell_status(status: rustix::process::WaitStatus) -> Option<u8> {
    let exited = status.exit_status().map(|code| u8::try_from(code & 0xff).unwrap_or(u8::MAX));
    exited.or_else(|| status.terminating_signal().map(signal_status))
}

/// Kills the children of this process, and what becomes its child by that, except for one.
fn kill_descendants(spared: i32) {
    for _ in 0..KILL_ROUNDS_MAX {
        let mut children = process::children_of(std::process::id().cast_signed());
        children.retain(|&pid| pid != spared);
        if children.is_empty() {
            return;
        }
        for pid in children.into_iter().map(Pid::from_raw) {
            // A set-user-id program cannot be killed by us, nor waited for.
            if kill(pid, Signal::SIGKILL).is_ok() {
                waitpid(pid, None).ok();
            }
        }
    }
}
