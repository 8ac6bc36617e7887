//! Where the tests run: processes of their own, guests, named namespaces.

use std::fs::{self, File};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setgroups, setresgid, setresuid};
use usernet_lab::skip::skip_this;

pub(crate) const ROOT: u32 = 0;
/// `nobody`, who is an ordinary user to the kernel.
pub(crate) const USER: u32 = 65534;

/// What "at once" means on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// Runs `body` as `uid` in a process of its own, and fails if it panics. Says so where it cannot run.
pub(crate) fn in_own_process(uid: u32, body: impl FnOnce()) {
    if let Some(missing) = missing() {
        return skip_this(missing);
    }
    let child = spawn(uid, body);
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0), "see the output above");
}

/// Writes a line past the capture of the test harness, which a forked process cannot use.
pub(crate) fn say(line: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn missing() -> Option<&'static str> {
    if !Uid::effective().is_root() {
        return Some("the namespace tests need root");
    }
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    tun.err().map(|_| "the namespace tests need /dev/net/tun")
}

pub(crate) fn spawn(uid: u32, body: impl FnOnce()) -> Pid {
    // SAFETY: glibc makes its allocator usable after a fork of a process with several threads.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            std::panic::set_hook(Box::new(|info| say(info)));
            let result = catch_unwind(AssertUnwindSafe(|| {
                become_user(uid);
                body();
            }));
            // SAFETY: ends the process without running the harness's exit handlers.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
    }
}

fn become_user(uid: u32) {
    if uid == ROOT {
        return;
    }
    setgroups(&[]).unwrap();
    let (gid, uid) = (Gid::from_raw(uid), Uid::from_raw(uid));
    setresgid(gid, gid, gid).unwrap();
    setresuid(uid, uid, uid).unwrap();
    nix::sys::prctl::set_dumpable(true).unwrap();
}

/// A process in namespaces of its own; killed when dropped.
pub(crate) struct Guest(Child);

impl Guest {
    /// Root's: a network namespace only.
    pub(crate) fn of_root() -> Self {
        Self::start(Command::new("unshare").args(["-n", "sleep", "60"]))
    }

    /// An ordinary user's: a user namespace and a network namespace that it owns.
    pub(crate) fn of_user() -> Self {
        let uid = USER.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        Self::start(command.args(["unshare", "-Urn", "sleep", "60"]))
    }

    /// As the calling user, who need not be root.
    pub(crate) fn of_caller() -> Self {
        Self::start(Command::new("unshare").args(["-Urn", "sleep", "60"]))
    }

    pub(crate) fn start(command: &mut Command) -> Self {
        let guest = Self(command.stdin(Stdio::null()).spawn().unwrap());
        // `unshare` has become `sleep`: its namespaces are there.
        eventually("the guest starts", || {
            fs::read_to_string(guest.path("comm")).is_ok_and(|name| name == "sleep\n")
        });
        guest
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid()))
    }

    /// Runs a command in the network namespace and gives its output.
    pub(crate) fn run(&self, command: &str) -> String {
        let pid = self.pid().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &pid, "-n"]);
        if !Uid::effective().is_root() {
            nsenter.args(["-U", "--preserve-credentials"]);
        }
        nsenter.arg("--").args(command.split(' '));
        let output = nsenter.output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    /// Runs `body` with a thread in the network namespace. Sockets stay there.
    pub(crate) fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(self.path("ns/net")).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                body()
            });
            thread.join().unwrap()
        })
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A named network namespace; removed when dropped.
pub(crate) struct Named(pub(crate) String);

impl Named {
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("usernet-{name}-{}", std::process::id());
        ip(&format!("netns add {name}"));
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.0))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.path().exists() {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
}

pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < 3 * SOON, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
