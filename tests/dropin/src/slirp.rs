//! slirp4netns as a caller starts it: with a descriptor that says when it is ready, and one that ends it.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use usernet_lab::process::pass;
use usernet_lab::{Done, Lab, Namespace, Running, wait_until};

use crate::tool::Tool;

/// The number under which it finds the descriptor that it reports to.
const READY_FD: i32 = 30;
/// How long it may take to be ready.
const PATIENCE_MS: u16 = 20_000;

/// One that is ready.
#[derive(Debug)]
pub struct Slirp<'a> {
    running: Running,
    /// Where it runs.
    host: &'a Namespace,
    /// Its end of standard input, which is its exit descriptor.
    exit: Option<ChildStdin>,
    /// All that came on the ready descriptor.
    pub ready: String,
    /// Path of its API socket, if it was started with one.
    pub socket: String,
}

impl<'a> Slirp<'a> {
    /// Starts it for `guest` with `-c`, an API socket and further options, and waits until it is ready.
    #[track_caller]
    pub fn start(tool: Tool, lab: &'a Lab, guest: &Namespace, options: &[&str]) -> Self {
        let socket = socket(lab, guest);
        let pid = guest.pid().to_string();
        let mut line = vec!["-c", "-a", &socket];
        line.extend(options);
        line.extend([&*pid, "tap0"]);
        Self::line(tool, lab, guest, &line).unwrap_or_else(|done| panic!("{tool} {line:?} {done}"))
    }

    /// The same without `-c`.
    #[track_caller]
    pub fn bare(tool: Tool, lab: &'a Lab, guest: &Namespace, options: &[&str]) -> Self {
        let pid = guest.pid().to_string();
        let line = [options, &[&*pid, "tap0"]].concat();
        Self::line(tool, lab, guest, &line).unwrap_or_else(|done| panic!("{tool} {line:?} {done}"))
    }

    /// Starts it with this line, which may come to nothing.
    pub fn line(tool: Tool, lab: &'a Lab, guest: &Namespace, line: &[&str]) -> Result<Self, Done> {
        let (program, fd) = (tool.path(lab), READY_FD.to_string());
        let args = [&[&*program, "-r", &fd, "-e", "0"], line].concat();
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut command = lab.host().command("user", &args);
        command.stdin(Stdio::piped());
        pass(&mut command, &writer, READY_FD);
        let mut running = Running::start(command, lab.dir(), &args.join(" "));
        drop(writer);
        let exit = running.stdin();
        let mut wait = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        poll(&mut wait, PollTimeout::from(PATIENCE_MS)).expect("waiting works");
        let is_ready = wait[0].revents().is_some_and(|r| r.contains(PollFlags::POLLIN));
        if !is_ready {
            return Err(running.done_within(Duration::from_secs(1)));
        }
        let mut ready = String::new();
        reader.read_to_string(&mut ready).expect("the descriptor is closed after it has spoken");
        Ok(Self { running, host: lab.host(), exit, ready, socket: socket(lab, guest) })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// What it said on standard output and error until now.
    pub fn said(&self) -> String {
        self.running.out() + &self.running.err()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.running.is_running()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// The other end of its exit descriptor.
    pub fn exit(&mut self) -> &mut ChildStdin {
        self.exit.as_mut().expect("it is closed by what ends it only")
    }

    /// Closes the other end of its exit descriptor, and waits for its end.
    pub fn end(mut self) -> Done {
        self.exit = None;
        self.running.done_within(Duration::from_secs(10))
    }

    /// Waits for its end.
    pub fn ended(self) -> Done {
        self.running.done_within(Duration::from_secs(10))
    }

    /// Waits until it has ended, for at most ten seconds; whether it has.
    pub fn ends(&mut self) -> bool {
        wait_until(Duration::from_secs(10), || !self.running.is_running())
    }

    /// What the API answers.
    #[track_caller]
    pub fn ask(&self, request: &str) -> String {
        self.host.peer(&["speak", &self.socket, request]).ok()
    }

    /// Adds a forward by the API; its name.
    #[track_caller]
    pub fn forward(&self, arguments: &str) -> u32 {
        let answer =
            self.ask(&format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#));
        let id =
            answer.strip_prefix(r#"{"return":{"id":"#).and_then(|rest| rest.strip_suffix("}}"));
        id.and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id: {answer}"))
    }
}

fn socket(lab: &Lab, guest: &Namespace) -> String {
    format!("{}/run/{}.sock", lab.dir().display(), guest.pid())
}
