//! `usernetd` in the place of pasta: its command line, its way into the background, its messages.

pub mod grammar;
mod ports;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::daemon;
use crate::program::Program;
use grammar::{Grammar, GrammarError};
use ports::Ports;

/// The whole program. `args` has no name in front.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let grammar = match Grammar::read(args) {
        Ok(grammar) => grammar,
        Err(GrammarError::Option(error)) => {
            let _ = writeln!(io::stderr(), "pasta: {error}\n{}", Grammar::usage());
            return ExitCode::FAILURE;
        }
        Err(GrammarError::Value(told)) => return daemon::fail(Program::Pasta, told),
    };
    if grammar.help || grammar.version {
        let text = match grammar.help {
            true => Grammar::help_text(),
            false => format!("pasta (usernetd) {}\n", env!("CARGO_PKG_VERSION")),
        };
        let _ = io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    let specs = [&grammar.tcp_ports, &grammar.udp_ports, &grammar.tcp_ns, &grammar.udp_ns];
    for specs in specs {
        if let Err(error) = Ports::read(specs.iter().map(String::as_str)) {
            return daemon::fail(Program::Pasta, error);
        }
    }
    daemon::fail(Program::Pasta, "not built in yet: use usernetd --netns")
}
