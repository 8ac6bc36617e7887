//! A host on which an ordinary user can run containers.
//!
//! What rootless container engines want from a machine, all of it in namespaces of the test's own:
//!
//! - **ids** of its own for the user: `/etc/subuid`, and `newuidmap` with the right to map them. The host's user
//!   namespace has these ids, as the *user's own* subordinate ids outside (or some that nobody has, if root started
//!   the test), and a root that is one of them. `newuidmap` and `newgidmap` are copies that belong to this root;
//! - **cgroup2** alone on `/sys/fs/cgroup`: engines refuse a mixed one;
//! - **shared mounts**: an engine's networks are mounts that its containers must see;
//! - **a runtime folder** with a short name: paths of sockets have at most 107 bytes;
//! - **a home**, in memory, so that files of other ids vanish with the namespace.
//!
//! Given a folder with another distribution, that becomes the root of the host.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, pivot_root};

use super::{Outcome, namespaces as basic, remains};

/// The user's first subordinate id inside the host.
const FIRST_SUB_ID: u32 = 100_000;
/// How many of them there are. The first that the user has outside is root inside.
const SUB_IDS: u32 = 65_535;
/// Where they come from if root started the test: nobody has these.
const FREE_IDS: u32 = 2_000_000_000;

/// The user's home in a lab's folder.
pub fn home(dir: &Path) -> PathBuf {
    dir.join("home")
}

/// The user's runtime folder.
pub fn runtime_dir(uid: u32) -> PathBuf {
    PathBuf::from(format!("/run/user/{uid}"))
}

/// Makes and holds it; `root`: a folder with another distribution.
pub(super) fn hold_machine(dir: &Path, root: Option<&Path>) -> Outcome {
    let mut mapper = start_mapper()?;
    if let Some(root) = root {
        // As whoever we are now: the user may not be able to reach it.
        std::env::set_current_dir(root)?;
    }
    basic::become_ordinary()?;
    let (uid, gid) = (geteuid(), getegid());
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces)?;
    prctl::set_dumpable(true)?;
    drop(mapper.stdin.take());
    if !mapper.wait()?.success() {
        return Err("the user has no subordinate ids: see subuid(5)".into());
    }
    basic::private_mounts()?;
    if root.is_some() {
        change_root(dir)?;
    }
    tmpfs(Path::new("/run"), None)?;
    tmpfs(&home(dir), Some((uid, gid)))?;
    own_folder(&runtime_dir(uid.as_raw()), uid, gid)?;
    copy_mappers(&home(dir).join("bin"))?;
    basic::overlay_etc(dir)?;
    enter_user(&home(dir), uid, gid)?;
    let none = None::<&str>;
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
    basic::allow_ping(gid)?;
    basic::hold()?;
    remains::end_all()
}

/// Starts [`map`] as whoever we are, outside of what we are about to enter. It waits for the end of its input.
fn start_mapper() -> std::io::Result<Child> {
    Command::new("/proc/self/exe")
        .args(["map", &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .spawn()
}

/// Maps the ids of a process that is in a user namespace of its own when our input ends.
pub(super) fn map(pid: &str) -> Outcome {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    if geteuid().is_root() && basic::is_initial_user_namespace()? {
        let user = super::TEST_USER;
        let lines = id_map(user, FREE_IDS);
        fs::write(format!("/proc/{pid}/uid_map"), lines.join("\n"))?;
        fs::write(format!("/proc/{pid}/gid_map"), lines.join("\n"))?;
        return Ok(());
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    for (program, file, own) in
        [("newuidmap", "/etc/subuid", uid), ("newgidmap", "/etc/subgid", gid)]
    {
        let first = first_sub_id(file, uid).ok_or_else(|| format!("no {file} for {uid}"))?;
        let lines = id_map(own, first).join(" ");
        let status = Command::new(program).arg(pid).args(lines.split(' ')).status()?;
        if !status.success() {
            return Err(format!("{program} {pid} {lines}: {status}").into());
        }
    }
    Ok(())
}

/// Inside, outside, count.
fn id_map(user: u32, first: u32) -> [String; 3] {
    [
        format!("0 {first} 1"),
        format!("{user} {user} 1"),
        format!("{FIRST_SUB_ID} {} {SUB_IDS}", first + 1),
    ]
}

/// The first of enough subordinate ids of a user, which the file names by number or by name.
pub fn first_sub_id(file: &str, uid: u32) -> Option<u32> {
    let name = nix::unistd::User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let first = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        let is_ours = owner == uid.to_string() || Some(owner) == name.as_deref();
        (is_ours && count > SUB_IDS).then_some(first)
    })
}

fn tmpfs(at: &Path, owner: Option<(Uid, Gid)>) -> Outcome {
    if !at.exists() {
        fs::create_dir(at)?;
    }
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    if let Some((uid, gid)) = owner {
        chown(at, Some(uid.as_raw()), Some(gid.as_raw()))?;
    }
    Ok(())
}

fn own_folder(path: &Path, uid: Uid, gid: Gid) -> Outcome {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    Ok(())
}

/// Makes the current folder the root; the kernel's file systems, the devices and the lab's folder stay where they are.
fn change_root(dir: &Path) -> Outcome {
    let new = dir.join("root");
    fs::create_dir_all(&new)?;
    let none = None::<&str>;
    mount(Some("."), &new, none, MsFlags::MS_BIND, none)?;
    for name in ["proc", "sys", "dev"] {
        let from = Path::new("/").join(name);
        mount(Some(&from), &new.join(name), none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    }
    for name in ["tmp", "var/tmp"] {
        let at = new.join(name);
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))?;
    }
    let inside = new.join(dir.strip_prefix("/")?);
    fs::create_dir_all(&inside)?;
    mount(Some(dir), &inside, none, MsFlags::MS_BIND, none)?;
    std::env::set_current_dir(&new)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Copies of the programs that map ids, which belong to the root of this namespace: those that are installed belong
/// to a root that is nobody here.
fn copy_mappers(to: &Path) -> Outcome {
    fs::create_dir_all(to)?;
    for name in ["newuidmap", "newgidmap"] {
        let copy = to.join(name);
        fs::copy(Path::new("/usr/bin").join(name), &copy).map_err(|e| format!("{name}: {e}"))?;
        chown(&copy, Some(0), Some(0))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755))?;
    }
    Ok(())
}

/// Enters the user into the files of `/etc`.
fn enter_user(home: &Path, uid: Uid, gid: Gid) -> Outcome {
    let line = format!("tester:x:{uid}:{gid}::{}:/bin/sh\n", home.display());
    replace("/etc/passwd", &format!(":x:{uid}:"), &line)?;
    replace("/etc/group", &format!(":x:{gid}:"), &format!("tester:x:{gid}:\n"))?;
    for file in ["/etc/subuid", "/etc/subgid"] {
        // By name: RootlessKit 1 finds a number twice.
        put(file, &format!("tester:{FIRST_SUB_ID}:{SUB_IDS}\n"))?;
    }
    Ok(())
}

/// Replaces the line of a file that has this text, by one in front of all others.
fn replace(path: &str, text: &str, line: &str) -> Outcome {
    let old = fs::read_to_string(path)?;
    let others = old.lines().filter(|line| !line.contains(text) && !line.starts_with("tester:"));
    let new = others.fold(line.to_owned(), |new, line| new + line + "\n");
    put(path, &new)
}

/// Puts a new file in the place of one of the layer below, which has an owner that is nobody here.
fn put(path: &str, text: &str) -> Outcome {
    let new = format!("{path}.new");
    fs::write(&new, text)?;
    fs::rename(&new, path)?;
    Ok(())
}
