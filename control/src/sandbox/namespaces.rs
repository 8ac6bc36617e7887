//! Namespaces of our own, and an empty root directory in ours.
//!
//! Whoever has `CAP_SYS_ADMIN` here (root; "root" in a container engine's user namespace) needs no user namespace. An
//! ordinary user makes one. It would take `CAP_NET_BIND_SERVICE` over the host's network away: who has that without being
//! root gets none.
//!
//! The user is itself in the new user namespace and nobody else is there. So credentials that the kernel tells us
//! (`SO_PEERCRED`) are those of the overflow user for everybody else, root included.

use std::fs;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};
use rustix::thread::CapabilitySet;

use super::capabilities;

/// A directory that is there wherever we run, to put the new root on for a moment.
const PLACE: &str = "/proc";

/// Leaves for namespaces of our own. The error says why not.
pub(super) fn enter() -> Result<Vec<&'static str>, String> {
    let others = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if capabilities::has(CapabilitySet::SYS_ADMIN) {
        unshare(others).map_err(|errno| format!("no namespaces: {errno}"))?;
        return Ok(vec!["mnt", "ipc", "uts"]);
    }
    if capabilities::has(CapabilitySet::NET_BIND_SERVICE) {
        return Err("no namespaces: a user namespace would take CAP_NET_BIND_SERVICE away".into());
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(others | CloneFlags::CLONE_NEWUSER).map_err(why_no_user_namespace)?;
    // Without a map we are the overflow user, which changes nothing for what is left to do.
    let _ = fs::write("/proc/self/setgroups", "deny");
    let _ = fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"));
    let _ = fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"));
    Ok(vec!["user", "mnt", "ipc", "uts"])
}

fn why_no_user_namespace(errno: Errno) -> String {
    match errno {
        Errno::ENOSPC => "no namespaces: the limit is reached (sysctl user.max_user_namespaces)".into(),
        Errno::EPERM | Errno::EACCES => {
            "no namespaces: this system forbids user namespaces (sysctl kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns, or a container's seccomp profile)"
                .into()
        }
        other => format!("no namespaces: {other}"),
    }
}

/// Makes an empty directory our root, and lets go of the file systems that were there. Nothing of it reaches the mount
/// namespace that we come from: propagation is ended first. `EINVAL`: our root is no mount (a chroot), where propagation
/// could not be ended, or the kernel's initial one.
pub(super) fn empty_root() -> nix::Result<()> {
    const NOTHING: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NOTHING, "/", NOTHING, private, NOTHING)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let limits = Some("mode=0555,size=4k,nr_inodes=1");
    mount(Some("usernetd"), PLACE, Some("tmpfs"), flags, limits)?;
    chdir(PLACE)?;
    pivot_root(".", ".")?;
    // The old root now lies on top of the new one, at the same place.
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Puts the children of this thread into a PID namespace. It cannot start a thread any more (`EINVAL`, clone(2)).
pub(super) fn leave_pid_namespace() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)
}
