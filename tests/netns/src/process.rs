//! Programs that run, and what they left.

use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Polls until `condition` holds; whether it did in time.
pub fn wait_until(within: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + within;
    while !condition() {
        if Instant::now() >= until {
            return condition();
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A program in a process group of its own. Dropping it kills the group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// What was asked for, for messages.
    name: String,
    /// Files that take its standard output and error.
    out: PathBuf,
    err: PathBuf,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Done {
    /// Its command line.
    pub name: String,
    /// None: it took too long and was killed.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Done {
    /// Standard output of a program that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.is_ok(), "{} {self}", self.name);
        self.out
    }

    /// Whether it exited with 0.
    pub fn is_ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            Some(status) => write!(f, "ended with {status}")?,
            None => f.write_str("took too long")?,
        }
        write!(f, "\n--- output\n{}\n--- error\n{}", tail(&self.out), tail(&self.err))
    }
}

/// The last 3,000 bytes or so.
fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(3000);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[start..].trim_end()
}

impl Running {
    /// Starts it; its output goes to files in `dir`.
    pub fn start(mut command: Command, dir: &std::path::Path, name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| dir.join(format!("{number}.{kind}"));
        let (out, err) = (file("out"), file("err"));
        let create = |path| fs::File::create(path).expect("a file in the test's folder");
        let child = command
            .stdout(create(&out))
            .stderr(create(&err))
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        Self { child, name: name.to_owned(), out, err }
    }

    /// Its process id, of the program itself once it has entered its namespaces.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it wrote until now.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// What it complained about until now.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has written a line with this text.
    #[track_caller]
    pub fn wait_for(mut self, text: &str) -> Self {
        let is_there = wait_until(Duration::from_secs(20), || {
            self.out().contains(text) || self.err().contains(text) || !self.is_running()
        });
        let is_there = is_there && (self.out().contains(text) || self.err().contains(text));
        assert!(is_there, "{} never said {text:?}:\n{}\n{}", self.name, self.out(), self.err());
        self
    }

    /// Sends a signal to it, not to its group.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it still runs");
    }

    /// Waits for its end.
    pub fn done_within(mut self, within: Duration) -> Done {
        wait_until(within, || !self.is_running());
        let status = self.child.try_wait().ok().flatten();
        Done { name: self.name.clone(), status, out: self.out(), err: self.err() }
    }

    /// The write end of its standard input, if that is a pipe.
    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group outlives its leader when that has left children behind. Its number is not given to anybody
        // else before the leader is waited for, and not while a member lives.
        let _: nix::Result<()> = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let _: std::io::Result<ExitStatus> = self.child.wait();
        for file in [&self.out, &self.err] {
            let _: std::io::Result<()> = fs::remove_file(file);
        }
    }
}

/// Gives the program this descriptor under the number `to`. It must stay open until the program has been started.
pub fn pass(command: &mut Command, from: &impl AsRawFd, to: RawFd) {
    let from = from.as_raw_fd();
    // SAFETY: both calls are async-signal-safe, and the descriptor is open in the child too.
    unsafe {
        command.pre_exec(move || {
            // One that has the number by chance stays as it is by dup2(2), closed at the start of the program included.
            let done =
                if from == to { libc::fcntl(to, libc::F_SETFD, 0) } else { libc::dup2(from, to) };
            if done == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}

/// A command whose standard input is empty.
pub(crate) fn command(program: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}
