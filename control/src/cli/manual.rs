//! `usernet completions` and `usernet man`: made from the definitions of the command lines.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::error::Error;
use super::output::write_line;
use crate::options;

/// Prints the completions for a shell.
#[derive(Debug, clap::Args)]
#[command(after_long_help = COMPLETION_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
    /// Which of the two programs
    #[arg(long, value_name = "PROGRAM", default_value = "usernet")]
    program: Program,
}

const COMPLETION_EXAMPLES: &str = "\
Examples:
  usernet completions bash > ~/.local/share/bash-completion/completions/usernet
  usernet completions zsh > ~/.zfunc/_usernet
  usernet completions fish --program usernetd > ~/.config/fish/completions/usernetd.fish";

/// The programs that have a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Program {
    /// The control CLI.
    Usernet,
    /// The daemon.
    Usernetd,
}

impl Program {
    fn command(self) -> Command {
        match self {
            Self::Usernet => Cli::command(),
            Self::Usernetd => options::command(),
        }
    }
}

/// Prints the manual page, or writes all pages.
#[derive(Debug, clap::Args)]
#[command(after_long_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// Write the pages of usernet, its commands and usernetd into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const MAN_EXAMPLES: &str = "\
Examples:
  usernet man | man -l -
  usernet man --dir ~/.local/share/man/man1";

/// `usernet completions`.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Error> {
    let mut command = args.program.command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    write_line(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}

/// `usernet man`.
pub(crate) fn man(args: &ManArgs) -> Result<ExitCode, Error> {
    match &args.dir {
        None => {
            let page = render(Cli::command()).map_err(Error::system("cannot render the page"))?;
            write_line(&String::from_utf8_lossy(&page));
        }
        Some(dir) => write_pages(dir).map_err(Error::system(format!("{}", dir.display())))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

fn write_pages(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for program in [Program::Usernet, Program::Usernetd] {
        clap_mangen::generate_to(program.command(), dir)?;
    }
    Ok(())
}
