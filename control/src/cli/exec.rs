//! `usernet exec`: a command in the namespaces of an instance.
//!
//! Joining namespaces changes the calling process only, and no process-id namespace is involved, so
//! `usernet` joins and becomes the command: terminal, signals and exit status are the command's
//! own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;

use nix::sched::{CloneFlags, setns};

use super::command::{self, not_executed};
use super::error::Error;
use super::instance::Registry;
use super::process::Process;

/// Runs a command in the namespaces of an instance.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ExecArgs {
    /// The instance
    #[arg(value_name = "NAME")]
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  usernet exec web -- ip address
  usernet exec web -- bash

Exit status:
  that of the command; 127 if it was not found, 126 if it cannot be executed; 125 if usernet
  failed before it was started; 2 for a wrong command line.";

/// Does it; returns only if it fails.
pub(crate) fn exec(args: &ExecArgs) -> Result<ExitCode, Error> {
    let instance = Registry::open()?.find(Some(&args.name))?;
    let Some(member) = instance.state.member else {
        return Err(Error::Usage(format!(
            "`{}` is attached to a namespace of somebody else: enter it with nsenter",
            args.name
        )));
    };
    let cwd = env::current_dir().ok();
    join(member)?;
    // Joining a mount namespace moves the process to its root.
    let is_there = cwd.is_some_and(|cwd| env::set_current_dir(cwd).is_ok());
    let errno = command::become_it(&args.command, |command| {
        if !is_there {
            command.env("PWD", "/");
        }
    });
    Err(not_executed(&args.command, errno))
}

/// Joins the network and mount namespaces of a process, and its user namespace if that is another
/// than ours.
fn join(member: Process) -> Result<(), Error> {
    let failed = || Error::system(format!("cannot join the namespaces of process {}", member.pid));
    let pidfd = member.open().map_err(failed())?;
    let pidfd = pidfd.ok_or_else(|| failed()(nix::errno::Errno::ESRCH.into()))?;
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let theirs = fs::read_link(format!("/proc/{}/ns/user", member.pid)).map_err(failed())?;
    if fs::read_link("/proc/self/ns/user").map_err(failed())? != theirs {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    setns(&pidfd, flags).map_err(|errno| failed()(errno.into()))
}
