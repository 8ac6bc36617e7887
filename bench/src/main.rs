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
mod machine;
mod report;
mod results;
mod session;

use contender::Contender;

/// Measurements of usernetd and of others.
#[derive(Debug, Parser)]
#[command(name = "bench")]
enum Command {
    /// Measures usernetd and those that it can be compared with in turn, and prints a table.
    ///
    /// All of it happens in namespaces of its own, as an ordinary user. What is not installed is left out.
    #[command(after_help = cases::help())]
    Compare(CompareArgs),
    /// Writes tables and plots again from a results.json, without measuring.
    Report(ReportArgs),
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
    /// Seconds of each TCP transfer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only these groups of cases
    #[arg(long, value_name = "GROUP", value_delimiter = ',', value_parser = cases::parse_name)]
    cases: Vec<&'static str>,
    /// One more contender: NAME starts with that of one of the others, PATH is the program
    #[arg(long = "peer", value_name = "NAME=PATH [OPTION]...", value_parser = Contender::parse)]
    peers: Vec<Contender>,
    /// Only these contenders
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Also usernetd with so many worker threads, as usernetd-wN; a plot shows how it scales
    #[arg(long, value_name = "N", value_delimiter = ',')]
    workers: Vec<u32>,
    /// Congestion control of the host's and the guest's namespace, each in turn [default: the kernel's]
    ///
    /// A kernel lets a namespace use what net.ipv4.tcp_allowed_congestion_control names.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    congestion: Vec<String>,
    /// Folder for results.json, results.md and report.html
    #[arg(long, value_name = "DIR", default_value = "bench/out")]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
struct ReportArgs {
    /// A results.json
    results: PathBuf,
    /// Folder for results.md and report.html [default: that of RESULTS]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also one plot (SVG) of the most important cases
    #[arg(long, value_name = "PATH")]
    headline: Option<PathBuf>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Whether a smoke test is enough: a case that takes long is left out or made short.
    is_quick: bool,
    /// Rounds over all contenders.
    rounds: u32,
    /// Whether cases that take minutes run in every round, and not only in the first one: they are all that was asked for.
    repeats_long: bool,
    /// Of each bulk transfer.
    bulk: Duration,
    /// Of whatever else runs for a time: round trips, connections.
    load: Duration,
}

impl CompareArgs {
    fn effort(&self) -> Effort {
        let (rounds, load) = if self.quick { (1, 250) } else { (3, 1_500) };
        Effort {
            is_quick: self.quick,
            rounds: self.rounds.unwrap_or(rounds),
            repeats_long: self.cases == [cases::PATHS],
            bulk: Duration::from_secs(self.seconds),
            load: Duration::from_millis(load),
        }
    }
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Compare(args) => compare::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Report(args) => report::again(&args).map(|()| ExitCode::SUCCESS),
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
