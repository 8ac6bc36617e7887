//! Measurements: `compare` runs real programs through `usernetd` and its peers, `counts` counts the core's
//! instructions.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench::counts::{self, CountsArgs, ReplayArgs};
use clap::Parser;

mod cases;
mod collector;
mod compare;
mod contender;
mod cpu;
mod load;
mod report;
mod session;

use contender::Contender;

/// Measurements of usernetd and of others.
#[derive(Debug, Parser)]
#[command(name = "bench")]
enum Command {
    /// Measures usernetd (both backends), slirp4netns and pasta in turn, and prints a table.
    ///
    /// All of it happens in namespaces of its own, as an ordinary user. What is not installed is left out.
    #[command(after_help = cases::help())]
    Compare(CompareArgs),
    /// Counts the instructions of the core, and fails if they are more than in the reference.
    ///
    /// Needs valgrind, but no quiet machine. Logs of inputs are replayed; see bench/src/replay.
    Counts(CountsArgs),
    /// Replays one log: what `counts` runs under valgrind.
    #[command(hide = true)]
    Replay(ReplayArgs),
}

#[derive(Debug, clap::Args)]
struct CompareArgs {
    /// One round of short measurements and fewer of them: shows that all works, not how fast
    #[arg(long)]
    quick: bool,
    /// Rounds; the table shows medians over them [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Only these groups of cases
    #[arg(long, value_name = "GROUP", value_delimiter = ',', value_parser = cases::parse_name)]
    cases: Vec<&'static str>,
    /// One more contender: NAME starts with usernetd, slirp4netns or pasta, PATH is the program
    #[arg(long = "peer", value_name = "NAME=PATH", value_parser = Contender::parse)]
    peers: Vec<Contender>,
    /// Folder for results.json and results.md
    #[arg(long, value_name = "DIR", default_value = "bench/out")]
    out: PathBuf,
    /// Only these contenders
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Whether a smoke test is enough: a case that takes long is left out or made short.
    is_quick: bool,
    /// Rounds over all contenders.
    rounds: u32,
    /// Of each bulk transfer.
    bulk: Duration,
    /// Of whatever else runs for a time: round trips, connections.
    load: Duration,
}

impl CompareArgs {
    fn effort(&self) -> Effort {
        let (rounds, bulk, load) = if self.quick { (1, 1, 250) } else { (3, 2, 1_500) };
        Effort {
            is_quick: self.quick,
            rounds: self.rounds.unwrap_or(rounds),
            bulk: Duration::from_secs(bulk),
            load: Duration::from_millis(load),
        }
    }
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Compare(args) => compare::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Counts(args) => counts::run(&args).map_err(Into::into),
        Command::Replay(args) => {
            counts::replay(&args).map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
