//! `usernetd`, the program under test.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::lab::{Lab, Namespace};
use crate::process::{Done, Running, pass, wait_until};

/// The number under which the daemon finds the descriptor that it reports to.
const READY_FD: i32 = 30;

/// How the daemon asks the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring.
    IoUring,
    /// epoll.
    Epoll,
}

impl Backend {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io-uring",
            Self::Epoll => "epoll",
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A `usernetd` that is ready.
#[derive(Debug)]
pub struct Daemon<'a> {
    running: Running,
    /// Where it runs; its control socket answers its own user only.
    host: &'a Namespace,
    /// Its end of standard input, which is its exit descriptor.
    exit: Option<std::process::ChildStdin>,
    /// Path of the control socket.
    pub socket: String,
    /// From before the fork to its report, the helper that enters the host included.
    pub ready_after: Duration,
}

impl<'a> Daemon<'a> {
    /// Starts it on the host for `guest`, with further options, and waits until it is ready.
    #[track_caller]
    pub fn start(lab: &'a Lab, guest: &Namespace, backend: Backend, options: &[&str]) -> Self {
        Self::try_start(lab, guest, backend, options)
            .unwrap_or_else(|done| panic!("usernetd {options:?} {done}"))
    }

    /// The same under `strace`, which writes the system calls of all its processes to a file. Signals go to `strace`.
    #[track_caller]
    pub fn start_traced(
        lab: &'a Lab,
        guest: &Namespace,
        backend: Backend,
        options: &[&str],
        file: &Path,
    ) -> Self {
        let file = file.to_string_lossy();
        let tracer = ["strace", "-f", "-qq", "-o", &*file];
        Self::try_start_by(&tracer, lab, guest, backend, options)
            .unwrap_or_else(|done| panic!("{tracer:?} usernetd {options:?} {done}"))
    }

    /// The same, for a daemon that may refuse.
    pub fn try_start(
        lab: &'a Lab,
        guest: &Namespace,
        backend: Backend,
        options: &[&str],
    ) -> Result<Self, Done> {
        Self::try_start_by(&[], lab, guest, backend, options)
    }

    /// The same with another program in front.
    fn try_start_by(
        before: &[&str],
        lab: &'a Lab,
        guest: &Namespace,
        backend: Backend,
        options: &[&str],
    ) -> Result<Self, Done> {
        let program = lab.program("usernetd");
        let socket = format!("{}/run/{}.sock", lab.dir().display(), guest.pid());
        let (netns, fd) = (guest.pid().to_string(), READY_FD.to_string());
        let mut args = before.to_vec();
        args.extend([program.as_str(), "--netns", &netns, "--backend", backend.name()]);
        args.extend(["--api-socket", &socket, "--ready-fd", &fd, "--exit-fd", "0"]);
        // A system call that is missing in the sandbox's list ends the daemon, and the test fails.
        if crate::skip::has_landlock() {
            args.extend(["--sandbox", "strict"]);
        }
        // All of these tests hold for any number.
        let workers = std::env::var("USERNET_WORKERS").unwrap_or_default();
        if !workers.is_empty() && !options.contains(&"--workers") {
            args.extend(["--workers", &workers]);
        }
        args.extend(options);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = lab.host().command("user", &args);
        command.stdin(Stdio::piped());
        pass(&mut command, &writer, READY_FD);
        let start = Instant::now();
        let mut running = Running::start(command, lab.dir(), &args[1..].join(" "));
        drop(writer);
        let exit = running.stdin();
        let mut wait = [PollFd::new(std::os::fd::AsFd::as_fd(&reader), PollFlags::POLLIN)];
        poll(&mut wait, PollTimeout::from(20_000u16)).expect("waiting works");
        let is_ready = wait[0].revents().is_some_and(|r| r.contains(PollFlags::POLLIN));
        if !is_ready {
            return Err(running.done_within(Duration::from_secs(1)));
        }
        Ok(Self { running, host: lab.host(), exit, socket, ready_after: start.elapsed() })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// What it said on standard output and error.
    pub fn said(&self) -> String {
        self.running.out() + &self.running.err()
    }

    /// Resident memory of its process, in KiB.
    pub fn rss_kib(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most resident memory it ever had, in KiB.
    pub fn rss_kib_max(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// How many descriptors it has open; none where that may not be seen.
    pub fn descriptors(&self) -> Option<usize> {
        Some(fs::read_dir(format!("/proc/{}/fd", self.pid())).ok()?.count())
    }

    /// Asks the control socket, by `usernet`'s protocol, and returns the result.
    #[track_caller]
    pub fn ask(&self, method: &str, params: serde_json::Value) -> serde_json::Value {
        let answer = self.answer(method, params);
        answer.get("result").cloned().unwrap_or_else(|| panic!("{method}: {answer}"))
    }

    /// The whole answer, an error perhaps.
    pub fn answer(&self, method: &str, params: serde_json::Value) -> serde_json::Value {
        let request = serde_json::json!(
            { "version": 1, "id": 1, "method": method, "params": params });
        let answer = self.host.peer(&["ask", &self.socket, &request.to_string()]).ok();
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{method}: {e}: {answer:?}"))
    }

    /// The value of a counter.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let status = self.ask("status", serde_json::json!({}));
        status["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {status}"))
    }

    /// How many flows there are of all kinds.
    pub fn flows(&self) -> u64 {
        self.ask("flows", serde_json::json!({ "limit": 0 }))["total"].as_u64().unwrap_or(u64::MAX)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Closes its exit descriptor.
    pub fn close_exit_fd(&mut self) {
        self.exit = None;
    }

    /// Waits for its end.
    pub fn ends_within(&mut self, within: Duration) -> bool {
        wait_until(within, || !self.running.is_running())
    }

    /// Waits for its end, and what it left.
    pub fn done_within(self, within: Duration) -> Done {
        self.running.done_within(within)
    }
}
