//! The instances of a user: what runs, where its files are, and who removes them.
//!
//! An instance is a directory in the runtime directory, named as the instance is:
//!
//! | file | what |
//! |---|---|
//! | `lock` | locked by whoever makes or runs the instance |
//! | `state.json` | [`State`]; written whole, by rename |
//! | `api.sock` | the daemon's control socket |
//! | `resolv.conf` | bound over /etc/resolv.conf inside |
//! | `daemon.log` | what the daemon wrote to its standard error |
//!
//! The directory is made under the lock of the whole registry, and the instance's own lock is taken
//! before the registry's is given back. So a directory whose lock is free and that has no state, or
//! whose state names processes that have ended, is stale: somebody was killed. Whoever reads the
//! registry clears those away, under its lock.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::process::Process;
use super::runtime_dir;
use crate::spec::Spec;

/// The version of [`State`]'s form.
const STATE_VERSION: u32 = 1;

/// The longest name. The path of the control socket has room for 107 bytes (unix(7)).
const NAME_BYTES_MAX: usize = 48;

/// The longest path of a socket.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How an instance came to be, which says who ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// `usernet run`: ends with its command.
    Run,
    /// `usernet create`: ends when it is removed.
    Created,
    /// `usernet attach`: ends with the namespace, which is somebody else's.
    Attached,
    /// The gateway of a virtual network: ends when that is stopped or removed.
    Vnet,
}

impl Kind {
    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Created => "created",
            Self::Attached => "attached",
            Self::Vnet => "vnet",
        }
    }
}

/// What is written down about an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The form of this record.
    pub(crate) version: u32,
    /// How it came to be.
    pub(crate) kind: Kind,
    /// The process-id namespace in which the process ids below have their meaning.
    pub(crate) pid_namespace: PathBuf,
    /// The process without which there is no instance: `usernet run` itself, the keeper of a
    /// created one, the daemon of an attached one.
    pub(crate) owner: Process,
    /// A process in the namespaces: the command or the keeper; none for an attached one.
    pub(crate) member: Option<Process>,
    /// The daemon.
    pub(crate) daemon: Process,
    /// The network namespace: a path, or a process id.
    pub(crate) netns: String,
    /// What was asked to run in it; empty if nothing.
    pub(crate) command: Vec<String>,
    /// When it was made, in seconds since 1970.
    pub(crate) created_unix: u64,
}

impl State {
    /// A record of now.
    pub(crate) fn new(kind: Kind, owner: Process, daemon: Process, netns: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: STATE_VERSION,
            kind,
            pid_namespace: pid_namespace(),
            owner,
            member: None,
            daemon,
            netns,
            command: Vec::new(),
            created_unix: now.as_secs(),
        }
    }
}

/// An instance that exists.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// Its name.
    pub(crate) name: String,
    /// What is known about it.
    pub(crate) state: State,
    dir: PathBuf,
}

impl Instance {
    /// Whether its processes can be seen from here. A container may share the runtime directory.
    fn is_near(&self) -> bool {
        self.state.pid_namespace == pid_namespace()
    }

    /// The daemon's control socket.
    pub(crate) fn api_socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// Removes its files; its processes have ended.
    pub(crate) fn remove_files(&self) -> Result<(), Error> {
        remove_dir(&self.dir)
    }
}

/// The instances of a user.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The calling user's.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self { dir: runtime_dir::open()? })
    }

    /// Makes a directory for a new instance.
    pub(crate) fn claim(&self, name: &str) -> Result<Claim, Error> {
        check_name(name)?;
        let dir = self.dir.join(name);
        check_socket_path(&dir.join("api.sock"))?;
        let _guard = self.lock()?;
        self.clear_stale()?;
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::NameTaken(name.to_owned()));
            }
            Err(error) => {
                return Err(Error::system(format!("cannot make {}", dir.display()))(error));
            }
        }
        let lock = lock_file(&dir.join("lock"), FlockArg::LockExclusiveNonblock)?;
        Ok(Claim { name: name.to_owned(), dir, is_kept: false, _lock: lock })
    }

    /// All instances, by name.
    pub(crate) fn list(&self) -> Result<Vec<Instance>, Error> {
        let _guard = self.lock()?;
        self.clear_stale()?;
        let instances = self.dirs().filter_map(|dir| load(&dir));
        let mut instances: Vec<Instance> = instances.filter(Instance::is_near).collect();
        instances.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(instances)
    }

    /// The one of this name; without a name the only one there is.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<Instance, Error> {
        let instances = self.list()?;
        let Some(name) = name else { return only(instances) };
        instances
            .into_iter()
            .find(|instance| instance.name == name)
            .ok_or_else(|| Error::NoInstance(name.to_owned()))
    }

    fn lock(&self) -> Result<Flock<File>, Error> {
        lock_file(&self.dir.join(".lock"), FlockArg::LockExclusive)
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path())
    }

    fn clear_stale(&self) -> Result<(), Error> {
        self.dirs().filter(|dir| is_stale(dir)).try_for_each(|dir| remove_dir(&dir))
    }
}

/// A directory that is being made into an instance. Dropped, it is removed, unless it is kept.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The instance's name.
    pub(crate) name: String,
    dir: PathBuf,
    is_kept: bool,
    /// Held as long as the claim.
    _lock: Flock<File>,
}

impl Claim {
    /// A file of the instance.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The daemon's control socket.
    pub(crate) fn api_socket(&self) -> PathBuf {
        self.path("api.sock")
    }

    /// Writes a file in place: what is bound to it elsewhere shows the new text.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.path(file);
        fs::write(&path, text)
            .map_err(Error::system(format!("cannot write {}", path.display())))?;
        Ok(path)
    }

    /// Writes down what the instance is: from now on others see it.
    pub(crate) fn publish(&self, state: &State) -> Result<(), Error> {
        let (fresh, path) = (self.path("state.json.new"), self.path("state.json"));
        let text = serde_json::to_string_pretty(state).expect("the state has only plain fields");
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(Error::system(format!("cannot write {}", path.display())))
    }

    /// Leaves the instance to itself.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed now is cleared away by the next reader.
            remove_dir(&self.dir).ok();
        }
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let starts_well = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    // `forward add` tells an instance from a forward by this.
    let is_forward = name.parse::<Spec>().is_ok();
    if starts_well && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_plain) && !is_forward {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "`{name}` cannot be the name of an instance: take letters, digits, `-`, `_` and `.`, \
         a letter or digit first, {NAME_BYTES_MAX} at most, and not a number alone"
    )))
}

fn check_socket_path(path: &Path) -> Result<(), Error> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    Err(Error::Usage(format!("{} is too long for the path of a socket", path.display())))
}

fn only(mut instances: Vec<Instance>) -> Result<Instance, Error> {
    let count = instances.len();
    match instances.pop() {
        None => Err(Error::WhichInstance("there is no instance".into())),
        Some(instance) if count == 1 => Ok(instance),
        Some(_) => Err(Error::WhichInstance(format!(
            "there are {count} instances: say which one (usernet ls names them)"
        ))),
    }
}

fn lock_file(path: &Path, how: FlockArg) -> Result<Flock<File>, Error> {
    let failed = || Error::system(format!("cannot lock {}", path.display()));
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed())?;
    Flock::lock(file, how).map_err(|(_, errno)| failed()(errno.into()))
}

fn load(dir: &Path) -> Option<Instance> {
    let text = fs::read_to_string(dir.join("state.json")).ok()?;
    let state: State = serde_json::from_str(&text).ok()?;
    Some(Instance { name: dir.file_name()?.to_str()?.to_owned(), state, dir: dir.to_owned() })
}

/// Whether nobody stands behind a directory any more. The registry is locked by the caller.
fn is_stale(dir: &Path) -> bool {
    match load(dir) {
        Some(instance) => instance.is_near() && !instance.state.owner.is_alive(),
        // Written by another version: not ours to judge.
        None if dir.join("state.json").exists() => false,
        None => lock_file(&dir.join("lock"), FlockArg::LockExclusiveNonblock).is_ok(),
    }
}

/// The process-id namespace of this process, as a name.
pub(crate) fn pid_namespace() -> PathBuf {
    fs::read_link("/proc/self/ns/pid").unwrap_or_default()
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system(format!("cannot remove {}", dir.display()))(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(name: &str) -> Registry {
        let dir = std::env::temp_dir().join(format!("usernet-reg-{}-{name}", std::process::id()));
        fs::remove_dir_all(&dir).ok();
        fs::create_dir(&dir).unwrap();
        Registry { dir }
    }

    fn state(owner: Process) -> State {
        State::new(Kind::Created, owner, owner, "1".into())
    }

    #[test]
    fn a_name_is_given_once() {
        let registry = registry("once");
        let claim = registry.claim("web").unwrap();
        assert!(matches!(registry.claim("web"), Err(Error::NameTaken(_))));
        drop(claim);
        registry.claim("web").unwrap();
        fs::remove_dir_all(registry.dir).unwrap();
    }

    #[test]
    fn an_instance_is_seen_from_the_moment_it_is_published() {
        let registry = registry("seen");
        let claim = registry.claim("web").unwrap();
        assert!(registry.list().unwrap().is_empty());
        claim.publish(&state(Process::current().unwrap())).unwrap();
        assert_eq!(registry.find(None).unwrap().name, "web");
        assert!(matches!(registry.find(Some("db")), Err(Error::NoInstance(_))));
        fs::remove_dir_all(registry.dir).unwrap();
    }

    #[test]
    fn what_a_dead_owner_left_is_cleared_away() {
        let registry = registry("stale");
        let current = Process::current().unwrap();
        let dead = Process { start_ticks: current.start_ticks.wrapping_sub(1), ..current };
        let claim = registry.claim("web").unwrap();
        claim.publish(&state(dead)).unwrap();
        claim.keep();
        registry.claim("half").unwrap().keep();
        assert!(registry.list().unwrap().is_empty());
        assert_eq!(registry.dirs().count(), 0);
        fs::remove_dir_all(registry.dir).unwrap();
    }

    #[test]
    fn what_cannot_be_judged_from_here_is_left_alone() {
        let registry = registry("far");
        let current = Process::current().unwrap();
        let dead = Process { start_ticks: current.start_ticks.wrapping_sub(1), ..current };
        let far = State { pid_namespace: "pid:[1]".into(), ..state(dead) };
        let claim = registry.claim("container").unwrap();
        claim.publish(&far).unwrap();
        claim.keep();
        let claim = registry.claim("future").unwrap();
        claim.write("state.json", "{\"version\": 99}").unwrap();
        claim.keep();
        assert!(registry.list().unwrap().is_empty());
        assert_eq!(registry.dirs().count(), 2);
        assert!(matches!(registry.claim("container"), Err(Error::NameTaken(_))));
        fs::remove_dir_all(registry.dir).unwrap();
    }

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "-x", ".lock", "ä", "8080", "80-90", &"n".repeat(49)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["a", "web-1", "A.b_c", "7a"] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn with_several_instances_the_name_is_needed() {
        let registry = registry("several");
        let _claims = ["a", "b"].map(|name| {
            let claim = registry.claim(name).unwrap();
            claim.publish(&state(Process::current().unwrap())).unwrap();
            claim
        });
        assert!(registry.find(None).unwrap_err().to_string().contains("2 instances"));
        fs::remove_dir_all(registry.dir).unwrap();
    }
}
