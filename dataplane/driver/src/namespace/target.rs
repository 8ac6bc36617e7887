//! Opening what a [`Target`] names, in the daemon, before the helper is forked: paths below `/proc/self` mean the
//! daemon's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{AttachError, Request, Target};

/// The namespace as it was found.
#[derive(Debug)]
pub(super) struct OpenTarget {
    /// The namespace.
    pub(super) netns: OwnedFd,
    /// What `--userns` named.
    pub(super) userns: Option<OwnedFd>,
    /// What keeps the namespace alive, as far as its name tells.
    pub(super) holder: Holder,
}

/// What keeps a namespace alive.
#[derive(Debug)]
pub(super) enum Holder {
    /// A process, by its pidfd.
    Process(OwnedFd),
    /// A file that the namespace is mounted on.
    Name(PathBuf),
    /// A descriptor somewhere.
    Unknown,
}

/// Which namespace it is: nsfs gives every one an inode of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// Of a file of `/proc/PID/ns`, or one that a namespace is mounted on.
    pub(super) fn of_path(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Of an open one.
    pub(super) fn of(namespace: &OwnedFd) -> nix::Result<Self> {
        let stat = nix::sys::stat::fstat(namespace)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

impl OpenTarget {
    /// Opens all that `request` names.
    pub(super) fn open(request: &Request) -> Result<Self, AttachError> {
        let gone = || AttachError::NamespaceGone { target: request.target.clone() };
        let userns = match &request.userns {
            Some(path) => Some(open_userns(path)?),
            None => None,
        };
        let (path, pid) = match &request.target {
            Target::Pid(pid) => (PathBuf::from(format!("/proc/{pid}/ns/net")), Some(*pid)),
            Target::Path(path) => (path.clone(), pid_in(path)),
        };
        // The pidfd first: if it still lives after the path was opened, the path was that process's.
        let process = match pid {
            Some(pid) => Some(open_process(pid).ok_or_else(gone)?),
            None => None,
        };
        let netns = open_netns(&path, request)?;
        let holder = match process {
            Some(process) if has_ended(&process) => return Err(gone()),
            Some(process) => Holder::Process(process),
            None => holder_of(&path),
        };
        Ok(Self { netns, userns, holder })
    }
}

/// Whether a pidfd's process is no more.
pub(super) fn has_ended(process: &OwnedFd) -> bool {
    let mut events = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// A process's pidfd; none: it is gone.
pub(super) fn open_process(pid: i32) -> Option<OwnedFd> {
    // `Pid::from_raw` asserts that it is not given a process group.
    let pid = (pid > 0).then(|| Pid::from_raw(pid))??;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether this file is a namespace of the given kind.
fn is_namespace(file: &OwnedFd, kind: libc::c_int) -> bool {
    // On anything but nsfs this number may mean something else.
    let is_nsfs = nix::sys::statfs::fstatfs(file)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::FsType(libc::NSFS_MAGIC as _));
    // SAFETY: NS_GET_NSTYPE (ioctl_ns(2)) has no argument.
    is_nsfs && unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE as _) } == kind
}

/// Opens a path for reading without waiting for anything behind it, as a FIFO's writer.
fn open_quickly(path: &Path) -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok(OwnedFd::from(file))
}

fn open_userns(path: &Path) -> Result<OwnedFd, AttachError> {
    let failed = |source| AttachError::UserNamespace { path: path.to_owned(), source };
    let file = open_quickly(path).map_err(failed)?;
    match is_namespace(&file, libc::CLONE_NEWUSER) {
        true => Ok(file),
        false => Err(failed(io::Error::other("it is no user namespace"))),
    }
}

fn open_netns(path: &Path, request: &Request) -> Result<OwnedFd, AttachError> {
    let target = || request.target.clone();
    match open_quickly(path) {
        Ok(file) if is_namespace(&file, libc::CLONE_NEWNET) => Ok(file),
        Ok(_) => Err(AttachError::NotANamespace { path: path.to_owned() }),
        Err(source) => match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => {
                Err(AttachError::NamespaceGone { target: target() })
            }
            Some(libc::EACCES | libc::EPERM) => {
                Err(AttachError::MayNotEnter { target: target(), source })
            }
            Some(_) | None => Err(AttachError::NotANamespace { path: path.to_owned() }),
        },
    }
}

/// The process that a path like `/proc/PID/ns/net` names.
fn pid_in(path: &Path) -> Option<i32> {
    let mut parts = path.strip_prefix("/proc").ok()?.iter();
    let pid = parts.next()?.to_str()?.parse().ok()?;
    (parts.next()? == "ns").then_some(pid)
}

/// What a path that names no process says.
fn holder_of(path: &Path) -> Holder {
    match std::fs::canonicalize(path) {
        Ok(name) if !name.starts_with("/proc") => Holder::Name(name),
        Ok(_) | Err(_) => Holder::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_read_from_paths_of_proc_only() {
        assert_eq!(pid_in(Path::new("/proc/123/ns/net")), Some(123));
        assert_eq!(pid_in(Path::new("/proc/self/fd/7")), None);
        assert_eq!(pid_in(Path::new("/proc/123/fd/7")), None);
        assert_eq!(pid_in(Path::new("/run/netns/123")), None);
    }

    #[test]
    fn a_regular_file_is_no_namespace() {
        let ours = open_quickly(Path::new("/proc/self/ns/net")).unwrap();
        assert!(is_namespace(&ours, libc::CLONE_NEWNET));
        assert!(!is_namespace(&ours, libc::CLONE_NEWUSER));
        let other = open_quickly(Path::new("/proc/self/status")).unwrap();
        assert!(!is_namespace(&other, libc::CLONE_NEWNET));
    }
}
