//! Running the real `usernet` as root and as an ordinary user, with a place of its own for each
//! test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, geteuid};
use serde_json::Value;

/// The first of the ordinary users; they need no entry in /etc/passwd.
const USER_FIRST: u32 = 470_000;

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ports that the kernel gives to nobody who does not ask for them (`ip_local_port_range`).
const PORTS_FIRST: u16 = 20_000;
const PORTS: u16 = 12_000;

static PORT_COUNT: AtomicU16 = AtomicU16::new(0);

static SCRATCH_COUNT: AtomicU32 = AtomicU32::new(0);

/// A port that is free in both families and for both protocols, and no other test of this process has got: one that the
/// kernel chooses could be somebody else's as soon as it is closed.
pub fn free_port() -> u16 {
    let first = (std::process::id() % u32::from(PORTS)) as u16;
    for _ in 0..PORTS {
        let number = PORT_COUNT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let port = PORTS_FIRST + (first + number) % PORTS;
        if TcpListener::bind(("::", port)).is_ok() && UdpSocket::bind(("::", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// A user with a home and instances of its own.
#[derive(Debug)]
pub struct Account {
    /// Its id.
    pub uid: Uid,
    /// A directory that is its own.
    pub home: PathBuf,
}

impl Account {
    /// Root, where the tests run as root; else the user that runs them.
    pub fn own() -> Self {
        Self::new(geteuid())
    }

    /// An ordinary user.
    pub fn ordinary() -> Self {
        if !geteuid().is_root() {
            return Self::own();
        }
        let writable = fs::metadata("/dev/net/tun").map(|meta| meta.permissions().mode() & 0o6);
        assert_eq!(writable.ok(), Some(6), "the tests need: chmod 0666 /dev/net/tun");
        Self::new(Uid::from_raw(USER_FIRST + std::process::id() % 100_000))
    }

    /// Both.
    pub fn each() -> [Self; 2] {
        [Self::own(), Self::ordinary()]
    }

    fn new(uid: Uid) -> Self {
        let number = SCRATCH_COUNT.fetch_add(1, Ordering::Relaxed);
        let home = PathBuf::from(format!("/tmp/usernet-t{}-{number}", std::process::id()));
        fs::remove_dir_all(&home).ok();
        fs::create_dir(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        chown(&home, Some(uid.as_raw()), Some(uid.as_raw())).unwrap();
        Self { uid, home }
    }

    /// Where its instances lie.
    pub fn runtime_dir(&self) -> PathBuf {
        self.home.join("usernet")
    }

    /// Any program, as this user.
    pub fn program(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.home).env("HOME", &self.home);
        command.env("XDG_RUNTIME_DIR", &self.home).env_remove("USERNET_RUNTIME_DIR");
        if self.uid.is_root() {
            command.env("USERNET_RUNTIME_DIR", self.runtime_dir());
        } else if self.uid != geteuid() {
            command.uid(self.uid.as_raw()).gid(self.uid.as_raw());
        }
        command.stdin(Stdio::null());
        command
    }

    /// `usernet` with these arguments, split at blanks.
    pub fn usernet(&self, line: &str) -> Command {
        let mut command = self.program(usernet());
        command.args(line.split_ascii_whitespace());
        command
    }

    /// `usernet run LINE -- sh -c SCRIPT`.
    pub fn run_script(&self, line: &str, script: &str) -> Command {
        let mut command = self.usernet("run");
        command.args(line.split_ascii_whitespace()).args(["--", "sh", "-c", script]);
        command
    }

    /// What `usernet LINE --json` prints.
    pub fn json(&self, line: &str) -> Value {
        let output = self.usernet(line).arg("--json").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{line}: {output:?}"))
    }

    /// The entry of `usernet ls`; there must be one.
    pub fn only_instance(&self) -> Value {
        let list = self.json("ls");
        assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
        list[0].clone()
    }

    /// Nothing is left in the runtime directory.
    #[track_caller]
    pub fn assert_no_instances(&self) {
        let left: Vec<_> = fs::read_dir(self.runtime_dir())
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != ".lock")
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // What a failed test left is ended.
        if self.runtime_dir().exists() {
            let list = self.usernet("ls --json").output().map(|output| output.stdout);
            let list: Value = serde_json::from_slice(&list.unwrap_or_default()).unwrap_or_default();
            let names = list.as_array().into_iter().flatten().filter_map(|i| i["name"].as_str());
            for name in names {
                self.usernet("rm -f").arg(name).output().ok();
            }
        }
        fs::remove_dir_all(&self.home).ok();
    }
}

/// `usernet`, at a place where every user can execute it.
pub fn usernet() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| copied("usernet"))
}

/// `usernetd`, at such a place.
pub fn usernetd() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| copied("usernetd"))
}

/// Cargo puts the programs of a package above its tests.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps").join(name)
}

fn copied(name: &str) -> PathBuf {
    let dir = PathBuf::from(format!("/tmp/{name}-test-bin-{}", geteuid()));
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let (fresh, copy) = (dir.join(std::process::id().to_string()), dir.join(name));
    // By a process of its own: a child that another test starts meanwhile would hold our descriptor for writing,
    // and the program could not be executed as long as it does.
    let status = Command::new("install").arg("-m755").arg(built(name)).arg(&fresh).status();
    assert!(status.is_ok_and(|status| status.success()), "{name} cannot be copied");
    // Another test may be executing the old one: it is replaced, not overwritten.
    fs::rename(&fresh, &copy).unwrap();
    copy
}

/// The exit status, as a shell tells it.
#[track_caller]
pub fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

/// Standard output as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until it is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process runs; one that waits to be reaped does not.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A program that runs, ended and reaped with this.
#[derive(Debug)]
pub struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The first line on its standard error, if that is a pipe.
    pub fn error_line(&mut self) -> String {
        let mut line = String::new();
        let error = self.child.stderr.take().unwrap();
        BufReader::new(error).read_line(&mut line).unwrap();
        line
    }

    /// Writes to its standard input, if that is a pipe.
    pub fn write(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Its id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
