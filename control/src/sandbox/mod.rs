//! What the daemon gives up when everything is set up, so that whoever finds a mistake in it finds nothing else.
//!
//! # Theory of operation
//!
//! ```text
//!                             one thread only             each thread           all threads at once
//!   files, sockets, helper ──▶ namespaces ─ empty root ──▶ capabilities ──────▶ seccomp ──▶ the guest's frames
//!                              no_new_privs ─ Landlock     pid namespace
//! ```
//!
//! Each part holds where another one is missing or has a hole. After all of them the process has the descriptors that
//! it has, makes internet sockets, and can do nothing else:
//!
//! - [`namespaces`]: a mount namespace with an empty root, and IPC, UTS and PID namespaces; an ordinary user makes a
//!   user namespace for it.
//! - [`capabilities`]: none but `CAP_NET_BIND_SERVICE`, if it was there.
//! - [`landlock`]: no file, and no signal to any other process.
//! - [`seccomp`]: only the system calls of [`calls::LIST`].
//!
//! Two more processes belong to a daemon and stay outside because of what they do there: the helper in the guest's namespace
//! (`usernet_driver::namespace`) and the keeper of its files ([`crate::keeper`]). Each has a list of its own among the calls.
//! The process that holds a virtual network's namespace and answers DNS there gives up capabilities and files.
//!
//! The order is forced: a user namespace can be made by a process with one thread only; Landlock takes `mount` away; a
//! thread cannot be started in another PID namespace; and seccomp takes away what all the others need.

use std::io;
use std::path::PathBuf;

pub mod calls;
mod capabilities;
mod landlock;
mod namespaces;
pub mod seccomp;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

pub(crate) use self::landlock::FileRights;

/// Whether, and how strictly, the daemon confines itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// As far as this machine lets us; what is missing is told
    #[default]
    Auto,
    /// All of it or no start; a system call that is not in the list ends the daemon
    Strict,
    /// Not at all, for debugging
    None,
}

/// What the daemon has given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What was asked for.
    pub policy: Policy,
    /// The namespaces of its own: `user`, `mnt`, `ipc`, `uts`, `pid`.
    pub namespaces: Vec<String>,
    /// Nothing is in its root directory.
    pub empty_root: bool,
    /// The capabilities that are left, as `net_bind_service`.
    pub capabilities: Vec<String>,
    /// No program that it starts could gain rights.
    pub no_new_privs: bool,
    /// It can open no file and signal no other process, by Landlock.
    pub landlock: bool,
    /// It makes no system call but those in its list.
    pub seccomp: bool,
    /// What could not be had and why, one line each.
    pub missing: Vec<String>,
}

/// Why there is no sandbox, though it had to be.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// `strict`, and a part is missing.
    #[error(
        "cannot confine usernetd as --sandbox strict demands: {0}; --sandbox auto does without"
    )]
    Missing(String),
    /// Capabilities could not be given up.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(io::Error),
    /// A part that was there failed half way.
    #[error("cannot confine usernetd: {0}; --sandbox none does not try")]
    Failed(String),
}

/// A process that has entered its sandbox and not closed the door yet.
#[derive(Debug)]
pub struct Entered {
    report: Report,
}

/// What each further thread has to do for itself.
#[derive(Clone, Copy, Debug)]
pub struct ForThread {
    is_asked: bool,
    has_namespaces: bool,
    kept: CapabilitySet,
}

/// Enters the sandbox: from here on there are no files. To be called by a process with a single thread, which then
/// starts its threads, each of which does [`ForThread::give_up`], and [closes the door](Entered::close).
///
/// # Errors
///
/// [`SandboxError::Missing`] under [`Policy::Strict`] only.
pub fn enter(policy: Policy) -> Result<Entered, SandboxError> {
    let mut report = Report { policy, ..Report::default() };
    if policy == Policy::None {
        return Ok(Entered { report });
    }
    match namespaces::enter() {
        Ok(made) => report.namespaces = made.into_iter().map(str::to_owned).collect(),
        Err(why) => report.missing.push(why),
    }
    if !report.namespaces.is_empty() {
        match namespaces::empty_root() {
            Ok(()) => report.empty_root = true,
            Err(errno) => report.missing.push(format!("no empty root directory: {errno}")),
        }
    }
    report.no_new_privs = nix::sys::prctl::set_no_new_privs().is_ok();
    match landlock::give_up_files(&[]) {
        Ok(()) => report.landlock = true,
        Err(why) => report.missing.push(why),
    }
    let entered = Entered { report };
    entered.demand()?;
    Ok(entered)
}

impl Entered {
    /// What each thread that is started from here on has to do.
    pub fn for_thread(&self) -> ForThread {
        let has = |kind: &str| self.report.namespaces.iter().any(|made| made == kind);
        ForThread {
            is_asked: self.report.policy != Policy::None,
            has_namespaces: has("mnt"),
            kept: match has("user") {
                // What it had there came with the user namespace, and counts only in it.
                true => CapabilitySet::empty(),
                false => capabilities::OF_DAEMON,
            },
        }
    }

    /// Gives up what is this thread's own, and closes the door for all: no system calls from here on but those in the
    /// list. To be called when the other threads have given up theirs.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Missing`] under [`Policy::Strict`] only; [`SandboxError::Capabilities`].
    pub fn close(mut self) -> Result<Report, SandboxError> {
        if self.report.policy == Policy::None {
            return Ok(self.report);
        }
        if self.for_thread().give_up()? == Children::InNamespace {
            self.report.namespaces.push("pid".to_owned());
        }
        self.report.capabilities = capabilities::left();
        let filters = seccomp::Filters::compile(calls::Process::Daemon, self.report.policy)
            .map_err(SandboxError::Failed)?;
        match filters.apply_to_all_threads() {
            Ok(()) => self.report.seccomp = true,
            Err(why) => self.report.missing.push(format!("no system call filter: {why}")),
        }
        self.demand()?;
        Ok(self.report)
    }

    fn demand(&self) -> Result<(), SandboxError> {
        match self.report.missing.first() {
            Some(why) if self.report.policy == Policy::Strict => {
                Err(SandboxError::Missing(why.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Where the processes would be that a thread starts, if it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    /// In a PID namespace of their own.
    InNamespace,
    /// Among all others.
    Outside,
}

impl ForThread {
    /// Gives up what belongs to a thread and not to the process: capabilities, and the PID namespace for children, which
    /// counts where the kernel has no seccomp: with it there are none.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Capabilities`].
    pub fn give_up(self) -> Result<Children, SandboxError> {
        if !self.is_asked {
            return Ok(Children::Outside);
        }
        let children = match self.has_namespaces && namespaces::leave_pid_namespace().is_ok() {
            true => Children::InNamespace,
            false => Children::Outside,
        };
        capabilities::give_up(self.kept).map_err(SandboxError::Capabilities)?;
        Ok(children)
    }
}

/// How the helper in the guest's namespace gives up what it does not need. It has given its capabilities up before. What
/// the kernel lacks, the daemon finds out and tells.
pub(crate) fn of_helper(policy: Policy) -> fn() {
    match policy {
        Policy::Auto => || drop(confine(calls::Process::Helper, Policy::Auto)),
        Policy::Strict => || drop(confine(calls::Process::Helper, Policy::Strict)),
        Policy::None => || (),
    }
}

/// Where what the host knows of names is on the systems that we know, or where it leads when it is replaced.
pub(crate) const READABLE: [&str; 5] = ["/etc", "/run", "/usr/lib", "/usr/share", "/var"];

/// Confines who asks for host names, which has one thread. Which calls that takes is the C library's and its modules'
/// business, so there is no list of them.
pub(crate) fn confine_asker(policy: Policy) {
    if policy == Policy::None {
        return;
    }
    // A multiarch library directory may be `/lib` itself.
    let readable = READABLE.iter().chain(&["/lib", "/lib64", "/usr/lib64", "/proc"]);
    let rights: Vec<_> = readable.map(|path| (PathBuf::from(path), FileRights::Read)).collect();
    let _ = nix::sys::prctl::set_no_new_privs();
    let _ = capabilities::give_up(CapabilitySet::empty());
    let _ = landlock::give_up_files(&rights);
}

/// Confines the keeper, which has one thread: it keeps files where it has `rights`. What the kernel lacks, the daemon finds
/// out and tells.
pub(crate) fn confine_keeper(rights: &[(PathBuf, FileRights)], policy: Policy) {
    if policy == Policy::None {
        return;
    }
    let _ = nix::sys::prctl::set_no_new_privs();
    let _ = capabilities::give_up(capabilities::OF_KEEPER);
    let _ = landlock::give_up_files(rights);
    let _ = confine(calls::Process::Keeper, policy);
}

/// Confines the process that answers DNS in a virtual network, before it has threads: it reads files below `dir`.
pub(crate) fn confine_names(dir: PathBuf) {
    let _ = nix::sys::prctl::set_no_new_privs();
    let _ = capabilities::give_up(CapabilitySet::empty());
    let _ = landlock::give_up_files(&[(dir, FileRights::Read)]);
}

fn confine(process: calls::Process, policy: Policy) -> Result<(), String> {
    seccomp::Filters::compile(process, policy)?.apply_to_all_threads()
}
