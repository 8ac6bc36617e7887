//! `usernet`, the control CLI.
//!
//! | module | what it is |
//! |---|---|
//! | `run`, `create`, `exec`, `attach` | namespaces with network, and commands in them |
//! | `inspect` | `ls`, `status`, `flows`, `forward`: by the control sockets |
//! | `doctor` | what is missing on this system |
//! | `manual` | completions and manual pages |
//! | `install` | the programs and all that belongs to them, in a directory |
//! | `instance`, `runtime_dir`, `process` | what runs, written down and recognised |
//! | `child`, `namespaces`, `userns`, `resolver` | making namespaces |
//! | `command` | becoming the user's command |
//! | `launch`, `supervisor`, `network_args` | starting the daemon, standing by the command |
//! | `vnet` | virtual networks |
//! | `error`, `output` | what is told and how |
//!
//! The CLI has one thread, always: it forks. The forked process that answers DNS for a network does not.

mod attach;
mod child;
mod command;
mod create;
mod doctor;
mod error;
mod exec;
mod inspect;
mod install;
mod instance;
mod launch;
mod manual;
mod namespaces;
mod network_args;
mod output;
mod process;
mod resolver;
mod run;
mod runtime_dir;
mod supervisor;
mod userns;
mod vnet;

use std::env;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::program::{self, Program};
use error::{Error, status};

const EXAMPLES: &str = "\
Examples:
  usernet run -- curl https://example.org/
  usernet run --forward 8080:80 -- python3 -m http.server 80
  usernet create web --forward 8080:80
  usernet exec web -- bash
  usernet forward add web 8443:443
  usernet doctor

Exit status: 0; 1 on failure; 2 for a wrong command line; run and exec: that of the command, or
125, 126, 127, 128 + signal as described there.

Environment: USERNET_RUNTIME_DIR names the directory of the instances. Without it that is
/run/usernet for root, $XDG_RUNTIME_DIR/usernet for others, /tmp/usernet-UID where these cannot
be used.";

/// Network for network namespaces, without privileges.
#[derive(Debug, Parser)]
#[command(name = "usernet", version, after_long_help = EXAMPLES, after_help = "More: --help")]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    Run(run::RunArgs),
    Attach(attach::AttachArgs),
    Create(create::CreateArgs),
    Exec(exec::ExecArgs),
    Rm(create::RemoveArgs),
    Ls(inspect::ListArgs),
    Status(inspect::StatusArgs),
    Flows(inspect::FlowsArgs),
    Forward(inspect::ForwardArgs),
    Vnet(vnet::VnetCommand),
    Doctor(doctor::DoctorArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
    Install(install::InstallArgs),
}

/// The whole program. Under the name `usernetd`, or one that `usernetd` may have, it is that.
pub fn main() -> ExitCode {
    let name = env::args_os().next().unwrap_or_default();
    if let Some(program) = Program::of_path(&name) {
        if program == Program::Usernetd {
            // Without it, `ps` shows the name of the file.
            nix::sys::prctl::set_name(c"usernetd").ok();
        }
        return program::main();
    }
    let Cli { command } = Cli::parse();
    let not_started = match command {
        Subcommands::Run(_) | Subcommands::Exec(_) => status::NOT_STARTED,
        Subcommands::Attach(_)
        | Subcommands::Create(_)
        | Subcommands::Rm(_)
        | Subcommands::Ls(_)
        | Subcommands::Status(_)
        | Subcommands::Flows(_)
        | Subcommands::Forward(_)
        | Subcommands::Vnet(_)
        | Subcommands::Doctor(_)
        | Subcommands::Completions(_)
        | Subcommands::Man(_)
        | Subcommands::Install(_) => status::FAILURE,
    };
    dispatch(&command).unwrap_or_else(|error| {
        tell(&error);
        error.exit_code(not_started)
    })
}

fn dispatch(command: &Subcommands) -> Result<ExitCode, Error> {
    match command {
        Subcommands::Run(args) => run::run(args),
        Subcommands::Attach(args) => attach::attach(args),
        Subcommands::Create(args) => create::create(args),
        Subcommands::Exec(args) => exec::exec(args),
        Subcommands::Rm(args) => create::remove(args),
        Subcommands::Ls(args) => inspect::list(args),
        Subcommands::Status(args) => inspect::status(args),
        Subcommands::Flows(args) => inspect::flows(args),
        Subcommands::Forward(args) => inspect::forward(args),
        Subcommands::Vnet(command) => vnet::vnet(command),
        Subcommands::Doctor(args) => doctor::doctor(args),
        Subcommands::Completions(args) => manual::completions(args),
        Subcommands::Man(args) => manual::man(args),
        Subcommands::Install(args) => install::install(args),
    }
}

fn tell(error: &Error) {
    eprintln!("usernet: {error}");
    if let Some(help) = error.help() {
        eprintln!("  help: {help}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{}", command.get_name());
        }
    }
}
