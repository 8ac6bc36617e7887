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
    let Asked { plan, warnings } = asked;
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
    /// A file of the repository.
    fn file(path: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// What stands in backquotes.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }

    #[test]
    fn the_table_of_options_is_that_of_the_command_line() {
        let document = file(TABLE);
        let rows: Vec<Vec<&str>> = document
            .lines()
            .filter(|line| line.starts_with("| `--"))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let options = rows.iter().map(|row| row[0].trim_matches('`').trim_start_matches('-'));
        let command = grammar::command();
        let declared: Vec<_> = command.get_arguments().filter_map(|a| a.get_long()).collect();
        assert_eq!(options.collect::<Vec<_>>(), declared, "in the same order");
        for row in &rows {
            let states = ["supported", "accepted without effect", "refused"];
            assert!(row.len() == 4 && states.contains(&row[1]), "{row:?}");
            assert!(quoted(row[3]).any(|name| name.contains("::")), "no test: {row:?}");
        }
    }

    #[test]
    fn the_tests_that_the_table_names_exist() {
        let document = file(TABLE);
        let names: Vec<_> = quoted(&document).filter_map(|name| name.split_once("::")).collect();
        assert!(names.len() > 30, "names are read as they are written");
        for (of, test) in names.into_iter().filter(|(of, _)| *of != "file") {
            let source = file(&format!("tests/dropin/tests/{of}.rs"));
            assert!(source.contains(&format!("    fn {test}(tool)")), "{of}::{test}");
        }
    }
}
