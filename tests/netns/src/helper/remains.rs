//! What is left of a host when its test is over.
//!
//! Container engines and networks put processes in the background, out of reach of whoever started them. A host's
//! holder outlives them all and ends what still runs in its user namespace or below: it may signal any of them,
//! whatever ids they have, and it does so too when the test was killed.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Outcome;

/// No chain of user namespaces is longer: user_namespaces(7).
const NESTING_MAX: usize = 32;

/// How long that may take. What sleeps in the kernel cannot be killed, and must not keep the test from its end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills all processes in our user namespace and below it, until there is none but this one.
pub(super) fn end_all() -> Outcome {
    let own = identity(&fs::File::open("/proc/self/ns/user")?.into())?;
    let until = Instant::now() + PATIENCE;
    loop {
        let all: Vec<Pid> = others()?.filter(|pid| is_below(*pid, own).unwrap_or(false)).collect();
        if all.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("these do not end: {all:?}").into());
        }
        for pid in all {
            // It may have ended by itself.
            let _: nix::Result<()> = kill(pid, Signal::SIGKILL);
        }
        std::thread::yield_now();
    }
}

/// Prints what runs in our user namespace and below it, except this process and the holder.
pub(super) fn list() -> Outcome {
    let own = identity(&fs::File::open("/proc/self/ns/user")?.into())?;
    for pid in others()?.filter(|pid| is_below(*pid, own).unwrap_or(false)) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let is_holder = line.contains("usernet-lab machine ") || line.contains("usernet-lab host ");
        if !is_holder {
            println!("{pid} {line}");
        }
    }
    Ok(())
}

/// All processes that run, except this one.
fn others() -> std::io::Result<impl Iterator<Item = Pid>> {
    let own = Pid::this();
    let entries = fs::read_dir("/proc")?.flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.map(Pid::from_raw).filter(move |pid| *pid != own))
}

/// Whether a process is in this user namespace or in a descendant. A zombie is in none.
fn is_below(pid: Pid, ancestor: (u64, u64)) -> std::io::Result<bool> {
    let mut namespace = OwnedFd::from(fs::File::open(format!("/proc/{pid}/ns/user"))?);
    for _ in 0..NESTING_MAX {
        if identity(&namespace)? == ancestor {
            return Ok(true);
        }
        namespace = parent(&namespace)?;
    }
    Ok(false)
}

fn identity(namespace: &OwnedFd) -> std::io::Result<(u64, u64)> {
    let metadata = fs::File::from(namespace.try_clone()?).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The parent of a user namespace; an error above our own.
fn parent(namespace: &OwnedFd) -> std::io::Result<OwnedFd> {
    // NS_GET_PARENT of ioctl_ns(2): _IO(0xb7, 0x2).
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    // SAFETY: the request takes no argument; what it returns is an error or a descriptor that is ours.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_PARENT) } {
        -1 => Err(std::io::Error::last_os_error()),
        // SAFETY: as above.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}
