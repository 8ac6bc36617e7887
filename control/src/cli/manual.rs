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
    program: Documented,
}

const COMPLETION_EXAMPLES: &str = "\
Examples:
  usernet completions bash > ~/.local/share/bash-completion/completions/usernet
  usernet completions zsh > ~/.zfunc/_usernet
  usernet completions fish --program usernetd > ~/.config/fish/completions/usernetd.fish";

/// The programs that have a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Documented {
    /// The control CLI.
    Usernet,
    /// The daemon.
    Usernetd,
}

impl Documented {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Usernet => "usernet",
            Self::Usernetd => "usernetd",
        }
    }

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
    let script = completion(args.program, args.shell);
    write_line(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}

/// The completions of a program for a shell.
pub(super) fn completion(program: Documented, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program.command(), program.name(), &mut script);
    script
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

/// A manual page.
pub(super) struct Page {
    /// As in `usernet-run.1`.
    pub(super) file_name: String,
    /// What `man` reads.
    pub(super) text: Vec<u8>,
}

/// The pages of both programs and of all commands.
pub(super) fn pages() -> io::Result<Vec<Page>> {
    let mut pages = Vec::new();
    for program in [Documented::Usernet, Documented::Usernetd] {
        let mut command = program.command().disable_help_subcommand(true);
        // Gives the commands their full names.
        command.build();
        render_all(&command, &mut pages)?;
    }
    Ok(pages)
}

fn render_all(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        render_all(subcommand, pages)?;
    }
    let file_name = clap_mangen::Man::new(command.clone()).get_filename();
    pages.push(Page { file_name, text: render(command.clone())? });
    Ok(())
}

fn render(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

fn write_pages(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for page in pages()? {
        fs::write(dir.join(page.file_name), page.text)?;
    }
    Ok(())
}
