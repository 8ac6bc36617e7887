//! Making, holding and entering namespaces.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
};

use super::{Outcome, remains};

/// Who the tests are when they are started as root: nobody's uid, in no file of the system.
pub const TEST_USER: u32 = 61_234;

/// Makes and holds a host: user, mount and network namespace. `/etc` becomes an overlay, so that `resolv.conf`
/// can be changed in every way an editor does it.
pub(super) fn hold_host(dir: &Path) -> Outcome {
    become_ordinary()?;
    let (uid, gid) = (geteuid(), getegid());
    let new = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(new)?;
    map_ids(uid, uid, gid, gid)?;
    private_mounts()?;
    overlay_etc(dir)?;
    allow_ping(gid)?;
    hold()?;
    remains::end_all()
}

/// Makes and holds a guest in the host's user namespace: root there, and nobody outside.
pub(super) fn hold_guest(resolv_conf: &Path) -> Outcome {
    let (uid, gid) = (geteuid(), getegid());
    let new = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    unshare(new)?;
    map_ids(Uid::from_raw(0), uid, Gid::from_raw(0), gid)?;
    private_mounts()?;
    mount(Some(resolv_conf), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    hold()
}

/// Makes and holds a network namespace in the host's user namespace.
pub(super) fn hold_router() -> Outcome {
    unshare(CloneFlags::CLONE_NEWNET)?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    // Routers resolve neighbours from their link-local addresses, and those are good for nothing while the kernel
    // looks for duplicates: what is sent in the first seconds would be lost.
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
    hold()
}

/// Becomes `command` in the namespaces of process `pid`: with all capabilities over them (`admin`), or with those
/// that the user has who owns them (`user`): none in a host, root's in a guest.
pub(super) fn enter(pid: &str, rights: &str, command: &[&str]) -> Outcome {
    become_ordinary()?;
    let open = |name: &str| fs::File::open(format!("/proc/{pid}/ns/{name}"));
    let (user, net, mnt, cgroup) = (open("user")?, open("net")?, open("mnt")?, open("cgroup")?);
    let cwd = std::env::current_dir()?;
    let own = fs::metadata("/proc/self/ns/user")?;
    let theirs = user.metadata()?;
    if (own.dev(), own.ino()) != (theirs.dev(), theirs.ino()) {
        setns(user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
    }
    setns(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
    // Only a machine has its own; elsewhere it is the system's, which we may not enter and are in already.
    let _: nix::Result<()> = setns(cgroup.as_fd(), CloneFlags::CLONE_NEWCGROUP);
    setns(mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
    std::env::set_current_dir(cwd)?;
    if rights == "admin" {
        keep_capabilities()?;
    }
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    heed_signals()?;
    let [program, args @ ..] = command else { return Err("no command".into()) };
    Err(format!("{program}: {}", Command::new(program).args(args).exec()).into())
}

/// Under nohup(1), or in the background of a script, some are ignored, and so they would be by every program that a test starts.
fn heed_signals() -> nix::Result<()> {
    for heeded in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: it installs no handler.
        unsafe { signal(heeded, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Root becomes [`TEST_USER`]. Others stay who they are.
pub(super) fn become_ordinary() -> Outcome {
    if !geteuid().is_root() || !is_initial_user_namespace()? {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(TEST_USER), Gid::from_raw(TEST_USER));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // A change of uid makes the files in /proc/self root's.
    prctl::set_dumpable(true)?;
    Ok(())
}

pub(super) fn is_initial_user_namespace() -> std::io::Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    Ok(map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// The user's own programs may ping.
pub(super) fn allow_ping(gid: Gid) -> std::io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{gid} {gid}"))
}

fn map_ids(uid: Uid, parent_uid: Uid, gid: Gid, parent_gid: Gid) -> Outcome {
    prctl::set_dumpable(true)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {parent_uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {parent_gid} 1"))?;
    Ok(())
}

pub(super) fn private_mounts() -> nix::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

pub(super) fn overlay_etc(dir: &Path) -> Outcome {
    let layers = dir.join("etc");
    fs::create_dir_all(&layers)?;
    mount(Some("tmpfs"), &layers, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    let options =
        format!("lowerdir=/etc,upperdir={},workdir={},userxattr", upper.display(), work.display());
    mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    fs::write("/etc/resolv.conf.new", "nameserver 192.0.2.1\n")?;
    fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf")?;
    Ok(())
}

/// Lets the capabilities of this user namespace survive `execve` though we are not its root.
fn keep_capabilities() -> Outcome {
    let now = capabilities(None)?;
    let all = now.permitted;
    set_capabilities(None, CapabilitySets { inheritable: all, ..now })?;
    for capability in all.iter() {
        // Not every bit is known to every kernel.
        let _: Result<(), _> = configure_capability_in_ambient_set(capability, true);
    }
    Ok(())
}

/// Says that the namespaces are there, and keeps them until standard input ends.
pub(super) fn hold() -> Outcome {
    prctl::set_dumpable(true)?;
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
