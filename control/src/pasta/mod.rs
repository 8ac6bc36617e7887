//! `usernetd` in the place of pasta.
//!
//! ```text
//! words ─ getopt ─ grammar ─ options ┐
//!                  host's survey ─ guest ┴─ plan ─ daemon: in the foreground, or
//!                                                  background: we leave when the network is there, or
//!                                                  command: beside it
//! ```
//!
//! `docs/compat/pasta.md` has the options one by one, and where ours differs.
//!
//! | file | what it is |
//! |---|---|
//! | [`grammar`] | the options |
//! | `options` | what their values mean |
//! | `ports`, `forwarding` | port specifications, and the forwards that they become |
//! | `guest` | addresses, routes and name that the namespace gets |
//! | `plan` | all of it together |
//! | `background`, `command` | who waits for whom |

pub mod grammar;

mod background;
mod command;
mod forwarding;
mod guest;
mod options;
mod plan;
mod ports;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use usernet_driver::namespace::Target;

use crate::daemon;
use crate::program::Program;
use grammar::{Grammar, GrammarError};
use options::{Options, Subject, Verbosity};
use plan::Planned;

/// The whole program. `args` has no name in front.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let started = Instant::now();
    let line = match Grammar::read(args) {
        Ok(line) => line,
        Err(GrammarError::Option(error)) => {
            let _ = writeln!(io::stderr(), "pasta: {error}\n{}", Grammar::usage());
            return ExitCode::FAILURE;
        }
        Err(GrammarError::Value(told)) => return fail(told),
    };
    if line.help || line.version {
        let text = match line.help {
            true => Grammar::help_text(),
            false => format!("pasta (usernetd) {}\n", env!("CARGO_PKG_VERSION")),
        };
        let _ = io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    match Options::read(line) {
        Ok(options) => start(options, started),
        Err(error) => fail(error),
    }
}

/// Reads a command line and does nothing; else, what is wrong with it. `args` has no name in front.
pub fn check(args: impl IntoIterator<Item = OsString>) -> Result<(), String> {
    let line = Grammar::read(args).map_err(|error| match error {
        GrammarError::Option(error) => error.to_string(),
        GrammarError::Value(told) => told.to_string(),
    })?;
    Options::read(line).map(drop).map_err(|error| error.to_string())
}

fn fail(what: impl Display) -> ExitCode {
    daemon::fail(Program::Pasta, what)
}

/// Connects what is to be connected.
fn start(options: Options, started: Instant) -> ExitCode {
    let is_quiet = options.verbosity == Verbosity::Quiet;
    // When it has come about: of a failure only the cause is told.
    let tell = |told: &[String]| {
        let text: String = told.iter().map(|line| format!("{line}\n")).collect();
        if !is_quiet {
            let _ = io::stderr().write_all(text.as_bytes());
        }
    };
    let target = match &options.subject {
        Subject::Pid(pid) => Target::Pid(*pid),
        Subject::Path(path) => Target::Path(path.clone()),
        Subject::Command(words) => {
            let words = words.clone();
            return command::run(options, &words, started, tell).unwrap_or_else(fail);
        }
    };
    let is_foreground = options.line.foreground;
    let planned = match plan::plan(options, target) {
        Ok(planned) => planned,
        Err(error) => return fail(error),
    };
    let Planned { plan, told } = planned;
    if is_foreground {
        tell(&told);
        let ended = daemon::run(&plan, started);
        return daemon::end(&plan, ended);
    }
    match background::start(plan, started, false) {
        Ok(Some(_)) => {
            tell(&told);
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::FAILURE,
        Err(error) => fail(format!("cannot go to the background: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::compat_table::CompatTable;

    /// What is said of every option.
    const TABLE: &str = "docs/compat/pasta.md";

    #[test]
    fn the_table_of_options_is_that_of_the_command_line() {
        let table = CompatTable::read(TABLE);
        let command = Grammar::command();
        assert_eq!(table.options(), CompatTable::declared_by(&command), "in the same order");
        for row in table.rows() {
            let is_hidden =
                |arg: &clap::Arg| arg.get_long() == Some(row.option) && arg.is_hide_set();
            let is_refused = command.get_arguments().any(is_hidden);
            assert_eq!(row.is_refused(), is_refused, "help shows what is not refused: {row:?}");
        }
    }

    #[test]
    fn the_tests_that_the_table_names_exist() {
        CompatTable::read(TABLE).check_tests(60, "pasta");
    }
}
