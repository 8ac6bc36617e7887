//! New user, network and mount namespaces, made by a process for itself.
//!
//! Somebody without `CAP_SYS_ADMIN` first makes a user namespace: there the process has all
//! capabilities over what it makes next. Its own user and group are mapped, to root by default, and
//! that needs no help: the kernel allows a process to map itself, once it has given up `setgroups`
//! (user_namespaces(7)). With `--subids` the setuid helpers newuidmap and newgidmap map the ranges
//! of /etc/subuid and /etc/subgid in addition; they must be called from outside of the new
//! namespace, so the parent does it.
//!
//! The mount namespace is a slave of the host's: what is mounted on the host later appears inside,
//! and nothing goes the other way.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Pid, Uid, User, getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::child::{Line, Order, Report};
use super::resolver;
use super::userns::{self, Sysctls};

/// Who the command is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// No user namespace: the caller has the privileges that it takes.
    Host,
    /// A user namespace in which the caller is root, and nobody else exists.
    Root,
    /// A user namespace in which the caller keeps its ids, and nobody else exists.
    Own,
    /// A user namespace in which the caller is root, and its subordinate ids are 1 and up.
    SubIds,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The user namespace.
    pub(crate) identity: Identity,
    /// The file that becomes /etc/resolv.conf.
    pub(crate) resolv_conf: PathBuf,
}

/// What was attempted when it went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// `unshare(2)` with a user namespace.
    User,
    /// Writing the id maps.
    Map,
    /// `unshare(2)` of the network and mount namespaces.
    Unshare,
    /// Mounts.
    Mount,
    /// The file /etc/resolv.conf.
    Resolver,
    /// Making a TAP.
    Device,
    /// Making a network namespace forward, with a DNS of its own.
    Router,
    /// Speaking with the parent.
    Line,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepFailed {
    /// Which.
    pub(crate) step: Step,
    /// The error number; 0: none, the detail says it all.
    pub(crate) errno: i32,
    /// More about it; may be empty.
    pub(crate) detail: String,
}

impl StepFailed {
    /// For `map_err`.
    pub(crate) fn at(step: Step) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { step, errno: error.raw_os_error().unwrap_or(0), detail: String::new() }
    }

    /// The command that mends it, where there is one.
    pub(crate) fn help(&self) -> Option<String> {
        self.denial().map(userns::Denial::remedy)
    }

    /// Why user namespaces are denied, if it is that.
    pub(crate) fn denial(&self) -> Option<userns::Denial> {
        let errno = Errno::from_raw(self.errno);
        let is_relevant = match self.step {
            Step::User | Step::Map => true,
            // AppArmor lets the user namespace be made, and denies what follows.
            Step::Unshare | Step::Mount => matches!(errno, Errno::EPERM | Errno::EACCES),
            Step::Resolver | Step::Device | Step::Router | Step::Line => false,
        };
        is_relevant.then(|| userns::denial(&Sysctls::system(), errno)).flatten()
    }
}

impl fmt::Display for StepFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.step {
            Step::User => "cannot make a user namespace",
            Step::Map => "cannot map user ids into the new user namespace",
            Step::Unshare => "cannot make network and mount namespaces",
            Step::Mount => "cannot mount in the new mount namespace",
            Step::Resolver => "cannot put a resolv.conf into the new mount namespace",
            Step::Device => "cannot make a TAP device",
            Step::Router => "cannot make the new network namespace a router with DNS",
            Step::Line => "the process in the new namespaces does not answer",
        })?;
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        match self.denial() {
            Some(denial) => write!(f, "\n  cause: {denial}"),
            None => Ok(()),
        }
    }
}

/// Whether namespaces can be made without a user namespace: `CAP_SYS_ADMIN`, bit 21 of
/// capabilities(7).
pub(crate) fn is_privileged() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits & (1 << 21) != 0)
}

/// Moves this process into new namespaces.
pub(crate) fn enter(plan: &Plan, line: &Line) -> Result<(), StepFailed> {
    let (user, group) = (geteuid(), getegid());
    if plan.identity != Identity::Host {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| StepFailed::at(Step::User)(e.into()))?;
        map_ids(plan.identity, user, group, line)?;
    }
    isolate()?;
    resolver::install(&plan.resolv_conf, Path::new("/etc"))
        .map_err(StepFailed::at(Step::Resolver))?;
    open_network_to_all();
    Ok(())
}

/// Moves this process into a user namespace in which it is root, and the other two in it.
pub(crate) fn isolate_network(user: Uid, group: Gid) -> Result<(), StepFailed> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| StepFailed::at(Step::User)(e.into()))?;
    map_self(0, user, 0, group).map_err(StepFailed::at(Step::Map))?;
    isolate()
}

fn isolate() -> Result<(), StepFailed> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|e| StepFailed::at(Step::Unshare)(e.into()))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(|e| StepFailed::at(Step::Mount)(e.into()))
}

fn map_ids(identity: Identity, user: Uid, group: Gid, line: &Line) -> Result<(), StepFailed> {
    let written = match identity {
        Identity::Host => Ok(()),
        Identity::Root => map_self(0, user, 0, group),
        Identity::Own => map_self(user.as_raw(), user, group.as_raw(), group),
        Identity::SubIds => return map_by_parent(line),
    };
    written.map_err(StepFailed::at(Step::Map))
}

fn map_self(inner_user: u32, user: Uid, inner_group: u32, group: Gid) -> io::Result<()> {
    fs::write("/proc/self/uid_map", format!("{inner_user} {user} 1\n"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{inner_group} {group} 1\n"))
}

fn map_by_parent(line: &Line) -> Result<(), StepFailed> {
    line.send(&Report::Unshared).map_err(StepFailed::at(Step::Line))?;
    match line.receive::<Order>().map_err(StepFailed::at(Step::Line))? {
        Some(Order::Mapped) => Ok(()),
        Some(Order::Go) | None => {
            Err(StepFailed { step: Step::Line, errno: 0, detail: "no id maps came".into() })
        }
    }
}

/// Low ports and ping for everybody inside: the namespace is the user's own, and with `--map-user`
/// the command has no capabilities. What cannot be set is left as it is; root inside needs neither.
fn open_network_to_all() {
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").ok();
    if let Some((first, last)) = mapped_groups() {
        fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{first} {last}")).ok();
    }
}

/// The lowest and the highest group that exists in this user namespace. The kernel takes a range
/// only if both of its ends are mapped, and no more than 2^31 - 1.
fn mapped_groups() -> Option<(u32, u32)> {
    let map = fs::read_to_string("/proc/self/gid_map").ok()?;
    let ranges = map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.nth(1)?.parse().ok()?;
        Some((first, first.saturating_add(count.checked_sub(1)?).min(i32::MAX as u32)))
    });
    ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

/// A range of subordinate ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubIdRange {
    /// The first id on the host.
    pub(crate) first: u32,
    /// How many.
    pub(crate) count: u32,
}

/// The first range of this user in /etc/subuid or /etc/subgid, whose lines are
/// `NAME|UID:FIRST:COUNT`.
pub(crate) fn subid_range(table: &str, user: Uid, name: Option<&str>) -> Option<SubIdRange> {
    table.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let is_ours = Some(owner) == name || owner.parse() == Ok(user.as_raw());
        let first = fields.next()?.parse().ok()?;
        let count = fields.next()?.parse().ok()?;
        (is_ours && count > 0).then_some(SubIdRange { first, count })
    })
}

/// Maps the caller to root and its subordinate ids to 1 and up, for a child that is in its new user
/// namespace.
pub(crate) fn map_subids(child: Pid) -> Result<(), StepFailed> {
    let (user, group) = (geteuid(), getegid());
    map_range("newuidmap", "/etc/subuid", child, user.as_raw(), user)?;
    map_range("newgidmap", "/etc/subgid", child, group.as_raw(), user)
}

fn map_range(helper: &str, table: &str, child: Pid, own: u32, user: Uid) -> Result<(), StepFailed> {
    let failed = |errno, detail: String| StepFailed { step: Step::Map, errno, detail };
    let name = User::from_uid(user).ok().flatten().map(|user| user.name);
    let range = fs::read_to_string(table)
        .ok()
        .and_then(|text| subid_range(&text, user, name.as_deref()))
        .ok_or_else(|| failed(0, format!("{table} has no range for uid {user}")))?;
    let SubIdRange { first, count } = range;
    let numbers = [0, own, 1, 1, first, count].map(|number| number.to_string());
    let output =
        Command::new(helper).arg(child.to_string()).args(numbers).output().map_err(|error| {
            failed(error.raw_os_error().unwrap_or(0), format!("{helper} cannot be executed"))
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(0, String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_user_is_found_by_name_or_by_number() {
        let table =
            "ann:100000:65536\n# comment\nbad:x:y\n1001:200000:1000\nbob:300000:0\nbob:400000:5\n";
        let find = |uid, name| subid_range(table, Uid::from_raw(uid), name);
        assert_eq!(find(1000, Some("ann")), Some(SubIdRange { first: 100_000, count: 65_536 }));
        assert_eq!(find(1001, None), Some(SubIdRange { first: 200_000, count: 1_000 }));
        assert_eq!(find(1002, Some("bob")), Some(SubIdRange { first: 400_000, count: 5 }));
        assert_eq!(find(1003, Some("eve")), None);
    }
}
