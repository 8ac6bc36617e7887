//! The network options of `run`, `create` and `attach`: those of `usernetd`, from its own
//! definition.
//!
//! Everything that `usernetd` understands is taken, except what the two arrange between themselves
//! (the namespace, the control socket, the descriptors). The values are checked by usernetd's own
//! parser before anything is made, and handed on as they were written.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};

use crate::options::Options;

/// What the CLI decides itself, by field name.
const ARRANGED: [&str; 6] = ["netns", "userns", "api_socket", "ready_fd", "exit_fd", "pid_file"];

/// Options for the daemon, as its command line wants them.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetworkArgs {
    args: Vec<OsString>,
    has_log_options: bool,
}

impl NetworkArgs {
    /// The arguments.
    pub(crate) fn args(&self) -> &[OsString] {
        &self.args
    }

    /// Whether the user asked for the daemon's log in some way: then it is shown.
    pub(crate) fn has_log_options(&self) -> bool {
        self.has_log_options
    }

    fn push(&mut self, arg: &clap::Arg, matches: &ArgMatches) {
        let id = arg.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            return;
        }
        self.has_log_options |= id.starts_with("log_");
        let flag = format!("--{}", arg.get_long().unwrap_or(id));
        if !arg.get_action().takes_values() {
            self.args.push(flag.into());
            return;
        }
        for value in matches.get_raw(id).into_iter().flatten() {
            let mut arg = OsString::from(format!("{flag}="));
            arg.push(value);
            self.args.push(arg);
        }
    }
}

/// The options of the daemon that are ours too.
fn shared() -> impl Iterator<Item = clap::Arg> {
    let command = Options::command();
    let args: Vec<clap::Arg> = command.get_arguments().cloned().collect();
    args.into_iter().filter(|arg| !ARRANGED.contains(&arg.get_id().as_str()))
}

impl Args for NetworkArgs {
    fn augment_args(command: Command) -> Command {
        command.args(shared().map(|arg| arg.help_heading("Network options")))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for NetworkArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for arg in shared() {
            self.push(&arg, matches);
        }
        // What cannot be right together is told now, not by a daemon that does not start. Any
        // namespace will do for the check.
        let line = ["usernetd", "--netns=1"].map(OsString::from);
        Options::checked(line.into_iter().chain(self.args.iter().cloned()))
            .map(drop)
            .map_err(|error| clap::Error::raw(error.kind(), first_line(&error)))
    }
}

/// What is wrong, without the usage of the other program.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        network: NetworkArgs,
    }

    #[test]
    fn options_are_handed_on_as_written() {
        let line = Line::try_parse_from(
            "x --forward 8080:80 -f [::1]:53:53/udp --no-ipv6 --mtu=9000".split(' '),
        )
        .unwrap();
        let args: Vec<_> = line.network.args().iter().map(|arg| arg.to_str().unwrap()).collect();
        assert!(!line.network.has_log_options());
        assert_eq!(args.len(), 4);
        for arg in ["--forward=8080:80", "--forward=[::1]:53:53/udp", "--no-ipv6", "--mtu=9000"] {
            assert!(args.contains(&arg), "{arg} in {args:?}");
        }
    }

    #[test]
    fn what_the_daemon_would_refuse_is_refused_here() {
        for line in ["x --forward 80:", "x --mtu 1000", "x --netns 1", "x --exit-fd 3"] {
            let error = Line::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
