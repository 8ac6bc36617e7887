//! `usernet run`: a command in new namespaces, with network.
//!
//! ```text
//! usernet ──fork──▶ child: new namespaces, resolv.conf ─── waits ───────────▶ becomes the command
//!    └────spawn──▶ usernetd for the child's namespace ── ready ──┘
//! ```
//!
//! The parent then supervises both ([`Supervisor`]) and leaves with the command's exit status.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, getpid, getppid};

use super::child::{self, Line, Order, Report};
use super::command::{self, not_executed};
use super::error::{Error, status};
use super::instance::{Claim, Kind, Registry, State};
use super::launch::{self, Launch};
use super::namespaces::{self, Identity, Plan, Step, StepFailed};
use super::network_args::NetworkArgs;
use super::process::Process;
use super::resolver;
use super::supervisor::{Event, Signals, Supervisor};
use super::vnet::{Memberships, VnetArgs};
use crate::api::Client;

/// Runs a command in new namespaces with network.
///
/// The command is root inside, unless it keeps its user id, and has the privileges of the calling
/// user outside. When it ends, everything that it started ends.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// Name of the instance [default: run-PID]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    #[command(flatten)]
    pub(crate) vnets: VnetArgs,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  usernet run -- curl https://example.org/
  usernet run --forward 8080:80 -- python3 -m http.server 80
  usernet run --host-loopback 5432 -- psql -h 10.0.2.2
  usernet run --map-user -- bash
  usernet run --vnet my-network,name=server -- nc -l -p 12345

Exit status:
  that of the command; 128 + n if signal n ended it; 127 if it was not found, 126 if it
  cannot be executed; 125 if usernet failed before it was started; 2 for a wrong command line.";

/// Who one is inside.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct IdentityArgs {
    /// Keep the own user and group id inside instead of being root
    #[arg(long, conflicts_with = "subids")]
    map_user: bool,
    /// Map the ranges of /etc/subuid and /etc/subgid too, by newuidmap and newgidmap
    #[arg(long)]
    subids: bool,
}

impl IdentityArgs {
    pub(crate) fn identity(self) -> Identity {
        if namespaces::is_privileged() {
            Identity::Host
        } else if self.map_user {
            Identity::Own
        } else if self.subids {
            Identity::SubIds
        } else {
            Identity::Root
        }
    }
}

/// Does it.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Error> {
    let registry = Registry::open()?;
    let name = args.name.clone().unwrap_or_else(|| format!("run-{}", getpid()));
    let claim = registry.claim(&name)?;
    let signals = Supervisor::prepare()?;
    let plan = plan(&claim, args.identity)?;
    let parent = getpid();
    let (pid, line) = child::spawn(|line| become_command(args, &plan, &line, parent, &signals))
        .map_err(Error::system("cannot fork"))?;
    match start(args, &claim, &signals, pid, &line) {
        Ok((daemon, exit)) => {
            let status = Supervisor::new(signals, pid, daemon).run()?;
            drop(exit);
            Ok(ExitCode::from(status))
        }
        Err(error) => {
            kill(pid, Signal::SIGKILL).ok();
            waitpid(pid, None).ok();
            Err(error)
        }
    }
}

/// What the child shall make; the resolv.conf it is to see is there, and is filled when the daemon
/// has said what belongs into it.
pub(crate) fn plan(claim: &Claim, identity: IdentityArgs) -> Result<Plan, Error> {
    let resolv_conf = claim.write("resolv.conf", "")?;
    Ok(Plan { identity: identity.identity(), resolv_conf })
}

/// Everything around the command; it runs when this returns.
fn start(
    args: &RunArgs,
    claim: &Claim,
    signals: &Signals,
    child: Pid,
    line: &Line,
) -> Result<(Process, std::os::fd::OwnedFd), Error> {
    await_ready(signals, line, child)?;
    let (exit_reader, exit) = launch::pipe()?;
    let owner = Process::current().map_err(Error::system("cannot read /proc"))?;
    let memberships = Memberships::join(&args.vnets, claim, owner)?;
    let daemon = Launch {
        claim,
        netns: format!("/proc/{child}/ns/net").into(),
        userns: userns_of(args.identity.identity(), child),
        network: args.network.args(),
        further: &memberships.args(args.network.args()),
        exit: Some(exit_reader),
        is_log_shown: args.network.has_log_options(),
    }
    .start(signals)?;
    memberships.await_gateways(claim);
    match finish(args, claim, child, line, daemon) {
        Ok(()) => Ok((daemon, exit)),
        Err(error) => {
            launch::end_child(daemon);
            Err(error)
        }
    }
}

fn finish(
    args: &RunArgs,
    claim: &Claim,
    child: Pid,
    line: &Line,
    daemon: Process,
) -> Result<(), Error> {
    fill_resolv_conf(claim)?;
    claim.publish(&state(args, child, daemon)?)?;
    line.send(&Order::Go).map_err(lost())?;
    await_command(args, line)
}

/// The user namespace for the daemon to enter.
pub(crate) fn userns_of(identity: Identity, child: Pid) -> Option<OsString> {
    match identity {
        Identity::Host => None,
        Identity::Root | Identity::Own | Identity::SubIds => {
            Some(format!("/proc/{child}/ns/user").into())
        }
    }
}

fn state(args: &RunArgs, child: Pid, daemon: Process) -> Result<State, Error> {
    let gone = || Error::system("cannot read /proc");
    let owner = Process::current().map_err(gone())?;
    let netns = format!("/proc/{child}/ns/net");
    Ok(State {
        member: Some(Process::of(child.as_raw()).map_err(gone())?),
        command: args.command.iter().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        ..State::new(Kind::Run, owner, daemon, netns)
    })
}

/// Waits until the child is in its namespaces.
pub(crate) fn await_ready(signals: &Signals, line: &Line, child: Pid) -> Result<(), Error> {
    loop {
        if let Event::Signal(signal) = signals.wait_readable(line)? {
            return Err(Error::Interrupted(signal));
        }
        match line.receive::<Report>().map_err(lost())? {
            Some(Report::Ready) => return Ok(()),
            Some(Report::Unshared) => {
                namespaces::map_subids(child).map_err(Error::Namespace)?;
                line.send(&Order::Mapped).map_err(lost())?;
            }
            Some(Report::Failed(failed)) => return Err(Error::Namespace(failed)),
            Some(Report::NotExecuted(_)) | None => {
                let detail = "it ended".to_owned();
                return Err(Error::Namespace(StepFailed { step: Step::Line, errno: 0, detail }));
            }
        }
    }
}

/// Asks the daemon where it answers DNS, and writes the file that is bound over /etc/resolv.conf.
pub(crate) fn fill_resolv_conf(claim: &Claim) -> Result<(), Error> {
    let status = Client::connect(claim.api_socket())
        .and_then(|mut client| client.status())
        .map_err(|error| Error::Api { name: claim.name.clone(), message: error.to_string() })?;
    let host = resolver::host_text();
    let of_tunnels = || status.tunnels.iter().flat_map(|tunnel| tunnel.dns.iter().copied());
    let text = if of_tunnels().next().is_some() {
        let search = status.tunnels.iter().flat_map(|tunnel| tunnel.search.clone());
        resolver::text_of_tunnels(&host, of_tunnels(), &search.collect::<Vec<_>>())
    } else {
        let networks = [status.ipv4, status.ipv6];
        resolver::text(&host, networks.into_iter().flatten().filter_map(|network| network.dns))
    };
    claim.write("resolv.conf", &text).map(drop)
}

/// Waits until the child has become the command: its end of the line closes by that. A signal that
/// comes meanwhile is passed on by the supervisor.
fn await_command(args: &RunArgs, line: &Line) -> Result<(), Error> {
    match line.receive::<Report>().map_err(lost())? {
        None => Ok(()),
        Some(Report::NotExecuted(errno)) => Err(not_executed(&args.command, errno)),
        Some(Report::Failed(failed)) => Err(Error::Namespace(failed)),
        Some(Report::Unshared | Report::Ready) => Ok(()),
    }
}

fn lost() -> impl FnOnce(io::Error) -> Error {
    |error| Error::Namespace(StepFailed::at(Step::Line)(error))
}

/// The child's part. Returns only if it fails.
fn become_command(args: &RunArgs, plan: &Plan, line: &Line, parent: Pid, signals: &Signals) -> i32 {
    match prepare(plan, line, parent) {
        Ok(true) => {}
        // The parent gave up, and told why.
        Ok(false) => return status::NOT_STARTED.into(),
        Err(failed) => {
            line.send(&Report::Failed(failed)).ok();
            return status::NOT_STARTED.into();
        }
    }
    signals.restore();
    let errno = command::become_it(&args.command, |_| {});
    line.send(&Report::NotExecuted(errno)).ok();
    status::NOT_STARTED.into()
}

/// Enters the namespaces and waits for the word.
fn prepare(plan: &Plan, line: &Line, parent: Pid) -> Result<bool, StepFailed> {
    die_with(parent)?;
    namespaces::enter(plan, line)?;
    // The kernel forgets it when credentials change.
    die_with(parent)?;
    line.send(&Report::Ready).map_err(StepFailed::at(Step::Line))?;
    let order = line.receive::<Order>().map_err(StepFailed::at(Step::Line))?;
    Ok(order == Some(Order::Go))
}

fn die_with(parent: Pid) -> Result<(), StepFailed> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| StepFailed::at(Step::Line)(e.into()))?;
    if getppid() == parent {
        return Ok(());
    }
    Err(StepFailed { step: Step::Line, errno: 0, detail: "the parent has ended".into() })
}
