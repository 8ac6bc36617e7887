//! The daemon beside its caller: in the background of a shell, or beside the command that it connects.
//!
//! ```text
//! caller ── we ──fork──▶ detached session ──fork──▶ the daemon
//!            ▲                                          │
//!            └── "1": the network is there; end of file: it will not be ┘
//! ```
//!
//! The daemon keeps standard error until the network is there, so that its failure is told where the caller looks. It
//! is in a session of its own, which it does not lead: no terminal reaches it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork, pipe2, setsid};

use crate::daemon;
use crate::plan::Plan;

/// A daemon whose network is there.
#[derive(Debug)]
pub(super) struct Started {
    /// Ends it when it is closed, if that was asked for.
    pub(super) held: Option<OwnedFd>,
}

/// Starts the daemon and waits until its network is there; none: it has failed, and has said why.
///
/// `is_held`: it ends with what is returned.
pub(super) fn start(
    mut plan: Plan,
    started: Instant,
    is_held: bool,
) -> io::Result<Option<Started>> {
    let (ready, tell) = pipe2(OFlag::O_CLOEXEC)?;
    let (stop, held) = match is_held {
        true => pipe2(OFlag::O_CLOEXEC).map(|(stop, held)| (Some(stop), Some(held)))?,
        false => (None, None),
    };
    // SAFETY: this process has one thread, so the child's copy of memory has no lock that somebody else held.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(tell);
            drop(stop);
            // It ends at once, with the daemon on its own.
            waitpid(child, None)?;
            let mut byte = [0];
            let is_there = File::from(ready).read(&mut byte)? == 1;
            Ok(is_there.then_some(Started { held }))
        }
        ForkResult::Child => {
            // Its own copy would keep it from hearing of ours.
            drop((ready, held));
            // Not possible for the leader of a process group, which a fork is not.
            let _ = setsid();
            // SAFETY: as above.
            match unsafe { fork() } {
                Ok(ForkResult::Child) => {}
                Ok(ForkResult::Parent { .. }) | Err(_) => exit(ExitCode::SUCCESS),
            }
            plan.ready_fd = Some(tell.into_raw_fd());
            plan.exit_fd = stop.map(IntoRawFd::into_raw_fd);
            plan.lets_go_of_caller = true;
            let ended = daemon::run(&plan, started);
            exit(daemon::end(&plan, ended))
        }
    }
}

/// Ends this process without what its parent has registered for its own end.
fn exit(code: ExitCode) -> ! {
    let status = i32::from(code != ExitCode::SUCCESS);
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}
