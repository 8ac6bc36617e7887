//! `usernet attach`: network for a namespace that somebody else made.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::error::Error;
use super::instance::{Kind, Registry, State};
use super::launch::{self, Launch};
use super::network_args::NetworkArgs;
use super::output::Output;
use super::supervisor::{self, Signals};
use crate::options::NetnsOption;

/// Gives network to a namespace that exists already.
///
/// The daemon goes on in the background until the namespace ends or the instance is removed.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct AttachArgs {
    /// The network namespace: the id of a process in it, or its path
    #[arg(value_name = "PID|PATH")]
    netns: NetnsOption,
    /// Name of the instance [default: pid-PID, or the last part of the path]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The user namespace that owns it, entered first; found by itself where it can be
    #[arg(long, value_name = "PATH")]
    userns: Option<std::path::PathBuf>,
    /// Stay in the foreground and end with this process
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  usernet attach 4242 --forward 8080:80
  usernet attach /run/user/1000/netns/build --name build
  usernet attach 4242 --foreground --log-level info

Exit status: 0; 1 if the network could not be set up; 2 for a wrong command line.";

/// Does it.
pub(crate) fn attach(args: &AttachArgs) -> Result<ExitCode, Error> {
    let claim =
        Registry::open()?.claim(&args.name.clone().unwrap_or_else(|| name_for(&args.netns)))?;
    let signals = Signals::take()?;
    // In the foreground the daemon ends with us, even if we are killed: then the writing end
    // closes.
    let (exit, _held) = if args.foreground {
        let (reader, writer) = launch::pipe()?;
        (Some(reader), Some(writer))
    } else {
        (None, None)
    };
    let daemon = Launch {
        claim: &claim,
        netns: args.netns.to_string().into(),
        userns: args.userns.clone().map(Into::into),
        network: args.network.args(),
        further: &[],
        exit,
        is_log_shown: args.foreground || args.network.has_log_options(),
    }
    .start(&signals)?;
    claim.publish(&State::new(Kind::Attached, daemon, daemon, args.netns.to_string()))?;
    let name = claim.name.clone();
    args.output.print(|| json!({ "name": name, "daemon_pid": daemon.pid }), || name.clone());
    if args.foreground {
        return supervisor::wait_daemon(&signals, daemon).map(ExitCode::from);
    }
    claim.keep();
    Ok(ExitCode::SUCCESS)
}

fn name_for(netns: &NetnsOption) -> String {
    match netns {
        NetnsOption::Pid(pid) => format!("pid-{pid}"),
        NetnsOption::Path(path) => name_for_path(path),
    }
}

/// `/run/netns/build` is `build`; `/proc/4242/ns/net` is `pid-4242`.
fn name_for_path(path: &Path) -> String {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        ["/", "proc", pid, "ns", "net"] => format!("pid-{pid}"),
        [.., last] => (*last).to_owned(),
        [] => "attached".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_named_after_its_namespace() {
        for (netns, name) in [
            ("4242", "pid-4242"),
            ("/proc/4242/ns/net", "pid-4242"),
            ("/run/netns/build", "build"),
            ("./here", "here"),
        ] {
            assert_eq!(name_for(&netns.parse().unwrap()), name);
        }
    }
}
