//! A forked process lets go of the process that it was forked from.

use std::fs::OpenOptions;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, setpgid};

/// Leaves the caller's signals, process group, working directory and descriptors, but for those `kept`, and takes a
/// name for `ps`. Standard input, output and error become `/dev/null`: a pipe of the caller's ends when the caller
/// does.
///
/// # Errors
///
/// A call failed that does not fail.
pub fn from_caller(name: &str, kept: Vec<RawFd>) -> nix::Result<()> {
    SigSet::all().thread_block()?;
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EINVAL)?;
    prctl::set_name(&name)?;
    // A working directory keeps its file system from being unmounted.
    nix::unistd::chdir("/")?;
    close_all_but(kept)
}

fn close_all_but(mut kept: Vec<RawFd>) -> nix::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    drop(null);
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        close_range(first, fd - 1);
        first = fd + 1;
    }
    close_range(first, RawFd::MAX);
    Ok(())
}

/// `close_range(2)`, Linux 5.9; before it the caller's descriptors stay open here, which does no harm but to tidiness.
fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: closes descriptors that nothing in this process uses: it is a fork that keeps none but those which
        // the caller left out. By number, because not every C library has a function for it.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}
