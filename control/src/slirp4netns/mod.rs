//! `usernetd` in the place of slirp4netns: its command line, its API, its messages.
//!
//! The personality is thin. The [`grammar`] turns the command line into the [`Plan`](crate::plan::Plan) that every
//! other command line becomes, and the daemon runs it without knowing; [`api`] is what is spoken on the control
//! socket. What is left is here: what is printed, and how the program ends.
//!
//! `docs/compat/slirp4netns.md` has the options one by one, and where ours differs.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};

use crate::control::Cause;
use crate::daemon;
use crate::program::Program;
use crate::wireguard;

pub(crate) mod api;
pub(crate) mod grammar;

use grammar::{Asked, Stop};

/// The version whose behaviour is ours.
const VERSION: &str = "1.2.0";
/// The version of `SlirpConfig` that the library beneath slirp4netns would know. Scripts want 3 for
/// `--disable-dns` and 4 for the limits of DHCP.
const SLIRP_CONFIG_VERSION_MAX: u32 = 4;

/// The whole program. `args` has no name in front.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let started = Instant::now();
    let asked = match grammar::read(args) {
        Ok(asked) => asked,
        Err(stop) => return say(&stop),
    };
    let Asked { mut plan, warnings } = asked;
    let tunnels = wireguard::settings(Program::Slirp4netns);
    if let Err(what) = tunnels.and_then(|wanted| wanted.apply(&mut plan)) {
        return daemon::fail(Program::Slirp4netns, what);
    }
    for warning in warnings {
        let _ = writeln!(io::stderr(), "{}: WARNING: {warning}", Program::Slirp4netns);
    }
    match daemon::run(&plan, started) {
        Ok(Cause::Signal(signal)) => die_by(signal),
        ended => daemon::end(&plan, ended),
    }
}

/// Reads a command line and does nothing; else, what is wrong with it. `args` has no name in front.
pub fn check(args: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    match grammar::read(args) {
        Ok(_) | Err(Stop::Help(_) | Stop::Version) => Ok(()),
        Err(Stop::Usage(what) | Stop::Value(what)) => Err(what),
    }
}

/// Help and version go to standard output; what is wrong to standard error, and help beside it, as ever.
fn say(stop: &Stop) -> ExitCode {
    // Nobody may be listening.
    let tell = |text: &str| drop(io::stdout().write_all(text.as_bytes()));
    match stop {
        Stop::Help(help) => tell(help),
        Stop::Version => tell(&version()),
        Stop::Usage(what) => {
            let status = daemon::fail(Program::Slirp4netns, what);
            tell(&grammar::help());
            return status;
        }
        Stop::Value(what) => return daemon::fail(Program::Slirp4netns, what),
    }
    ExitCode::SUCCESS
}

/// The lines of `--version`, which scripts read by what stands in front of the colon.
fn version() -> String {
    let ours = env!("CARGO_PKG_VERSION");
    format!(
        "slirp4netns version {VERSION}\n\
         commit: usernetd-{ours}\n\
         libslirp: usernetd-{ours}\n\
         SLIRP_CONFIG_VERSION_MAX: {SLIRP_CONFIG_VERSION_MAX}\n\
         libseccomp: usernetd-{ours}\n"
    )
}

/// Ends by the signal that asked for it, as a program does that knows no signals: callers read the wait status. By
/// now everything is cleaned up.
fn die_by(signal: Signal) -> ExitCode {
    let only = SigSet::from_iter([signal]);
    let _ = raise(signal).and_then(|()| sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&only), None));
    // The signal was ignored, or is blocked still.
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat_table::CompatTable;

    /// What is said of every option.
    const TABLE: &str = "docs/compat/slirp4netns.md";

    #[test]
    fn scripts_find_the_versions() {
        let text = version();
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} is missing")).trim().to_owned()
        };
        assert_eq!(of("slirp4netns version"), VERSION);
        assert!(of("SLIRP_CONFIG_VERSION_MAX:").parse::<u32>().unwrap() >= 3);
        assert!(!of("commit:").is_empty() && !of("libslirp:").is_empty());
        assert!(!of("libseccomp:").is_empty());
    }

    #[test]
    fn the_table_of_options_is_that_of_the_command_line() {
        let table = CompatTable::read(TABLE);
        let command = grammar::command();
        assert_eq!(table.options(), CompatTable::declared_by(&command), "in the same order");
    }

    #[test]
    fn the_tests_that_the_table_names_exist() {
        CompatTable::read(TABLE).check_tests(30, "tool");
    }
}
