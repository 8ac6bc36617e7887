//! `usernet create` and `usernet rm`: namespaces that stay until they are removed.
//!
//! An ordinary user cannot bind-mount a namespace's file where others of his processes would find
//! it, so a small process stays in the namespaces and does nothing: the keeper. It also holds the
//! pipe that keeps the daemon going. When the keeper ends, for whatever reason, the daemon ends,
//! and the namespaces with the last process in them.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{Signal as Sig, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, pause, setsid};
use rustix::process::Signal;
use serde_json::json;

use super::child::{self, Line, Order, Report};
use super::error::{Error, status};
use super::instance::{Claim, Instance, Kind, Registry, State};
use super::launch::{self, Launch};
use super::namespaces::{self, Plan, Step, StepFailed};
use super::network_args::NetworkArgs;
use super::output::Output;
use super::process::{self, Process};
use super::run::{IdentityArgs, await_ready, fill_resolv_conf, plan, userns_of};
use super::supervisor::Signals;
use super::vnet::{Memberships, VnetArgs};

/// How long a daemon may take to end by itself once its namespace is given up.
const DAEMON_GRACE: Duration = Duration::from_secs(3);

/// How long a command may take to end when it is asked to.
const COMMAND_GRACE: Duration = Duration::from_secs(5);

/// Makes namespaces with network that stay until they are removed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = CREATE_EXAMPLES)]
pub(crate) struct CreateArgs {
    /// Name of the instance
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    vnets: VnetArgs,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    output: Output,
}

const CREATE_EXAMPLES: &str = "\
Examples:
  usernet create web --forward 8080:80
  usernet exec web -- python3 -m http.server 80
  usernet rm -f web

Exit status: 0; 1 if it could not be made; 2 for a wrong command line.";

/// Removes instances.
#[derive(Debug, clap::Args)]
#[command(after_long_help = REMOVE_EXAMPLES)]
pub(crate) struct RemoveArgs {
    /// Names of the instances
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// End the processes that run in them
    #[arg(long, short)]
    force: bool,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  usernet rm web
  usernet rm -f web db

Exit status: 0; 1 if one could not be removed; 2 for a wrong command line.";

/// `usernet create`.
pub(crate) fn create(args: &CreateArgs) -> Result<ExitCode, Error> {
    let claim = Registry::open()?.claim(&args.name)?;
    let signals = Signals::take()?;
    let plan = plan(&claim, args.identity)?;
    let (exit_reader, exit) = launch::pipe()?;
    let (pid, line) = child::spawn(|line| keep(&plan, &line, &exit, &signals))
        .map_err(Error::system("cannot fork"))?;
    // The keeper alone holds it now: its end is the daemon's.
    drop(exit);
    match start(args, &claim, &signals, pid, &line, exit_reader) {
        Ok(daemon) => {
            claim.keep();
            args.output.print(
                || json!({ "name": args.name, "pid": pid.as_raw(), "daemon_pid": daemon.pid }),
                || args.name.clone(),
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            kill(pid, Sig::SIGKILL).ok();
            waitpid(pid, None).ok();
            Err(error)
        }
    }
}

fn start(
    args: &CreateArgs,
    claim: &Claim,
    signals: &Signals,
    keeper: Pid,
    line: &Line,
    exit: OwnedFd,
) -> Result<Process, Error> {
    await_ready(signals, line, keeper)?;
    let netns = format!("/proc/{keeper}/ns/net");
    let member = Process::of(keeper.as_raw()).map_err(Error::system("the keeper is gone"))?;
    let memberships = Memberships::join(&args.vnets, claim, member)?;
    let daemon = Launch {
        claim,
        netns: netns.clone().into(),
        userns: userns_of(args.identity.identity(), keeper),
        network: args.network.args(),
        further: &memberships.args(args.network.args()),
        exit: Some(exit),
        is_log_shown: false,
    }
    .start(signals)?;
    memberships.await_gateways(claim);
    fill_resolv_conf(claim)?;
    let state = State::new(Kind::Created, member, daemon, netns);
    claim.publish(&State { member: Some(member), ..state })?;
    line.send(&Order::Go).map_err(Error::system("the keeper does not answer"))?;
    Ok(daemon)
}

/// The keeper's life.
fn keep(plan: &Plan, line: &Line, exit: &OwnedFd, signals: &Signals) -> i32 {
    if let Err(failed) = settle(plan, line) {
        line.send(&Report::Failed(failed)).ok();
        return status::FAILURE.into();
    }
    // End of file: the parent gave up.
    if line.receive::<Order>().ok().flatten() != Some(Order::Go) {
        return status::FAILURE.into();
    }
    close_all_but(exit);
    signals.restore();
    loop {
        pause();
    }
}

fn settle(plan: &Plan, line: &Line) -> Result<(), StepFailed> {
    let failed = |errno: nix::errno::Errno| StepFailed::at(Step::Line)(errno.into());
    setsid().map_err(failed)?;
    prctl::set_name(c"usernet-keeper").map_err(failed)?;
    namespaces::enter(plan, line)?;
    chdir("/").map_err(failed)?;
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(StepFailed::at(Step::Line))?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).map_err(failed)?;
    dup2_stderr(&null).map_err(failed)?;
    line.send(&Report::Ready).map_err(StepFailed::at(Step::Line))
}

/// Closes what the caller had open: somebody may wait for the end of a pipe of his.
fn close_all_but(kept: &OwnedFd) {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|&fd| fd > 2 && fd != kept.as_raw_fd()) {
        nix::unistd::close(fd).ok();
    }
}

/// `usernet rm`.
pub(crate) fn remove(args: &RemoveArgs) -> Result<ExitCode, Error> {
    let registry = Registry::open()?;
    for name in &args.names {
        remove_one(&registry.find(Some(name))?, args.force)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn remove_one(instance: &Instance, is_forced: bool) -> Result<(), Error> {
    let failed = || Error::system(format!("cannot end `{}`", instance.name));
    let State { kind, owner, member, daemon, .. } = instance.state;
    match kind {
        Kind::Run => {
            let users = member.into_iter().map(|member| member.pid).collect();
            check_unused(instance, users, is_forced)?;
            end_command(owner, member).map_err(failed())?;
        }
        Kind::Created => {
            let users = users_of(owner, daemon);
            check_unused(instance, users.clone(), is_forced)?;
            for pid in users {
                kill(Pid::from_raw(pid), Sig::SIGKILL).ok();
            }
            owner.end(COMMAND_GRACE).map_err(failed())?;
        }
        Kind::Vnet => {
            let network = instance.name.trim_start_matches("vnet-");
            return Err(Error::Usage(format!(
                "`{}` is the gateway of a virtual network: usernet vnet stop {network}, or usernet vnet rm {network}",
                instance.name
            )));
        }
        Kind::Attached => daemon.signal(Signal::TERM).map_err(failed())?,
    }
    if !daemon.wait_end(DAEMON_GRACE).map_err(failed())? {
        daemon.end(Duration::ZERO).map_err(failed())?;
    }
    instance.remove_files()
}

/// Who uses the namespace of a keeper, besides the daemon.
fn users_of(keeper: Process, daemon: Process) -> Vec<i32> {
    let mut users = process::sharing_network_with(keeper.pid);
    let helpers = process::children_of(daemon.pid);
    users.retain(|pid| *pid != daemon.pid && !helpers.contains(pid));
    users
}

fn check_unused(instance: &Instance, users: Vec<i32>, is_forced: bool) -> Result<(), Error> {
    if is_forced || users.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> =
        users.iter().take(5).map(|&pid| format!("{} ({pid})", process::name_of(pid))).collect();
    let more = users.len().saturating_sub(shown.len());
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Error::InUse { name: instance.name.clone(), users: shown.join(", ") + &rest })
}

/// Ends the command; `usernet run` ends everything else.
fn end_command(owner: Process, member: Option<Process>) -> std::io::Result<()> {
    if let Some(command) = member {
        command.end(COMMAND_GRACE)?;
    }
    if owner.wait_end(COMMAND_GRACE)? { Ok(()) } else { owner.end(Duration::ZERO) }
}
