//! A command in a namespace of its own, connected: `pasta [OPTION]... [COMMAND [ARG]...]`.
//!
//! ```text
//! we ──fork──▶ holder: new user, network, mount, IPC, UTS and PID namespaces
//!  │              └──fork──▶ the first process of the PID namespace: /proc, waits, becomes the command
//!  └── the daemon, for the holder's network namespace ([`background`])
//! ```
//!
//! The holder is the command's parent, because a process that makes a PID namespace does not enter it itself; it passes
//! on how the command ended. When the command ends, the kernel ends what it has left running. The daemon ends
//! with the namespace, and when we do.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    ForkResult, Pid, execvp, fork, getegid, geteuid, gethostname, pipe2, sethostname,
};
use usernet_driver::namespace::Target;

use super::background;
use super::options::{Options, OptionsError};
use super::plan::{self as planning, Planned};

/// The shell where the environment names none.
const SHELL: &str = "/bin/sh";

/// What becomes of signals that a terminal sends to all of us: they are for the command.
const FOR_COMMAND: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];

/// Why there is no command.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// A system call.
    #[error("cannot {what}: {source}{help}")]
    System { what: String, source: io::Error, help: &'static str },
    /// What the command line asks for.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The network; the daemon has said why.
    #[error("the command was not started, because there is no network")]
    NoNetwork,
}

impl CommandError {
    fn system<E: Into<io::Error>>(what: &str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what: what.to_owned(), source: source.into(), help: "" }
    }
}

/// The pipes between us and the holder.
struct Pipes {
    /// Says that the namespaces are made, or what went wrong.
    made: (OwnedFd, OwnedFd),
    /// Says that the network is there.
    go: (OwnedFd, OwnedFd),
}

/// Runs it and gives its exit status. `tell` is shown what was planned.
pub(super) fn run(
    options: Options,
    words: &[OsString],
    started: Instant,
    tell: impl FnOnce(&[String]),
) -> Result<ExitCode, CommandError> {
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(CommandError::system("make a pipe"));
    let Pipes { made, go } = Pipes { made: pipe()?, go: pipe()? };
    let has_userns = !options.line.netns_only;
    let us = Pid::this();
    // SAFETY: this process has one thread, so the child's copy of memory has no lock that somebody else held.
    let holder = match unsafe { fork() }.map_err(CommandError::system("fork"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop((made.0, go.1));
            let status = hold(words, has_userns, us, made.1, go.0);
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) }
        }
    };
    drop((made.1, go.0));
    hear(made.0)?;
    let Planned { plan, told } = planning::plan(options, Target::Pid(holder.as_raw()))?;
    // Ends with us, whatever ends us.
    let daemon = background::start(plan, started, true)
        .map_err(CommandError::system("start the daemon"))?
        .ok_or(CommandError::NoNetwork)?;
    tell(&told);
    for ignored in FOR_COMMAND {
        // SAFETY: no handler is installed.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    File::from(go.1).write_all(b"1").map_err(CommandError::system("start the command"))?;
    let status = status_of(holder);
    drop(daemon.held);
    Ok(ExitCode::from(status))
}

/// Waits until the holder has its namespaces.
fn hear(made: OwnedFd) -> Result<(), CommandError> {
    let mut told = String::new();
    File::from(made)
        .read_to_string(&mut told)
        .map_err(CommandError::system("hear from the process in the namespace"))?;
    let mut fields = told.splitn(2, ' ');
    let errno = fields.next().and_then(|errno| errno.parse::<i32>().ok());
    match (errno, fields.next()) {
        (Some(0), _) => Ok(()),
        (Some(errno), Some(what)) => Err(CommandError::System {
            what: what.to_owned(),
            source: io::Error::from_raw_os_error(errno),
            help: help(what),
        }),
        (None, _) | (_, None) => Err(CommandError::system(MAKE)(io::Error::other("it was killed"))),
    }
}

/// What mends it.
fn help(what: &str) -> &'static str {
    match what {
        MAKE => {
            "; `usernet doctor` says which switch of this host denies user namespaces, and how to change it"
        }
        _ => "",
    }
}

/// What may be denied.
const MAKE: &str = "make user and network namespaces";

/// The holder's part. Gives its exit status.
fn hold(words: &[OsString], has_userns: bool, parent: Pid, made: OwnedFd, go: OwnedFd) -> i32 {
    let done = prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| ("end with our parent", errno))
        .and_then(|()| isolate(has_userns));
    // The kernel forgets it when credentials change.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let told = match done {
        Ok(()) => "0 ".to_owned(),
        Err((what, errno)) => format!("{} {what}", errno as i32),
    };
    let mut pipe = File::from(made);
    if pipe.write_all(told.as_bytes()).is_err() || done.is_err() || nix::unistd::getppid() != parent
    {
        return 1;
    }
    drop(pipe);
    for ignored in FOR_COMMAND {
        // SAFETY: no handler is installed.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    // SAFETY: this process has one thread.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => {
            drop(go);
            status_of(child).into()
        }
        Ok(ForkResult::Child) => become_command(words, go),
        Err(_) => 1,
    }
}

/// Makes the namespaces and what belongs to them.
fn isolate(has_userns: bool) -> Result<(), (&'static str, Errno)> {
    let (user, group) = (geteuid(), getegid());
    if has_userns {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| (MAKE, errno))?;
        let map = |file, text: String| {
            fs::write(file, text)
                .map_err(|error| (MAKE, Errno::from_raw(error.raw_os_error().unwrap_or(0))))
        };
        map("/proc/self/uid_map", format!("0 {user} 1\n"))?;
        map("/proc/self/setgroups", "deny".to_owned())?;
        map("/proc/self/gid_map", format!("0 {group} 1\n"))?;
    }
    let all = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID;
    unshare(all).map_err(|errno| (MAKE, errno))?;
    // What follows is for comfort: without it there is a network all the same.
    if let Ok(name) = gethostname() {
        let mut ours = OsString::from("pasta-");
        ours.push(name);
        let _ = sethostname(ours);
    }
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
    Ok(())
}

/// The first process of the PID namespace: waits for the network and becomes the command.
fn become_command(words: &[OsString], go: OwnedFd) -> ! {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    let _ = mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
        .and_then(|()| mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>));
    let mut byte = [0];
    let status = match File::from(go).read(&mut byte) {
        Ok(1) => {
            for ignored in FOR_COMMAND {
                // SAFETY: no handler is installed.
                let _ = unsafe { signal(ignored, SigHandler::SigDfl) };
            }
            let errno = execute(words);
            let what = words.first().map_or(SHELL.into(), |word| word.to_string_lossy());
            let _ = writeln!(
                io::stderr(),
                "pasta: Failed to start command or shell: {what}: {}",
                errno.desc()
            );
            1
        }
        // There is no network, and somebody else has said why.
        Ok(_) | Err(_) => 1,
    };
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Becomes the command, or a shell.
fn execute(words: &[OsString]) -> Errno {
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| SHELL.into());
    let words = if words.is_empty() { std::slice::from_ref(&shell) } else { words };
    let words: Vec<_> =
        words.iter().filter_map(|word| CString::new(word.as_bytes()).ok()).collect();
    match words.first().map(|program| execvp(program, &words)) {
        Some(Err(errno)) => errno,
        Some(Ok(never)) => match never {},
        None => Errno::EINVAL,
    }
}

/// How a process ended, as a shell says it.
fn status_of(process: Pid) -> u8 {
    loop {
        match waitpid(process, None) {
            Ok(WaitStatus::Exited(_, status)) => return u8::try_from(status & 0xff).unwrap_or(1),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return u8::try_from(128 + signal as i32).unwrap_or(1);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 1,
        }
    }
}
