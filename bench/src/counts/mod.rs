//! `bench counts`: instructions of each [case](crate::replay::cases), counted by callgrind, against a committed reference.
//!
//! A count needs no quiet machine, and is the same every time: each case is replayed by a process of its own, and only
//! its measured part counts. So a change of some percent is a change of the code; what is slower for another reason
//! (cache misses, system calls) is not seen here, but by `bench compare`.
//!
//! Counts depend on the compiler. If the reference was made by another one, or with other settings, they are shown
//! and nothing fails. They could depend on the processor, by the variants that the C library has of `memcpy`: it is
//! told to use the plain ones, and the core itself has one variant of everything.

mod callgrind;
mod reference;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use usernet_lab::skip::{has_program, skip};

use crate::replay::Replay;
use crate::replay::cases::{self, Case};

pub use callgrind::count;
use reference::Reference;

/// By how much a case may cost more than its reference, in percent. A change elsewhere in the crate, which moves the
/// compiler's choices of what to inline, was seen to do 3.3.
const TOLERANCE_PERCENT: f64 = 5.0;

/// What this program was built by.
const BUILT_BY: &str = env!("BUILT_BY");

/// Options of `bench counts`.
#[derive(Debug, clap::Args)]
pub struct CountsArgs {
    /// Takes what is counted now as the reference
    #[arg(long)]
    accept: bool,
    /// Only cases whose name has this text in it
    #[arg(long, value_name = "TEXT", conflicts_with = "accept")]
    case: Option<String>,
    /// Shows which functions the instructions of the cases are spent in
    #[arg(long)]
    profile: bool,
    /// The reference
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/counts.json"))]
    reference: PathBuf,
}

/// Options of `bench replay`, which is what callgrind looks at.
#[derive(Debug, clap::Args)]
pub struct ReplayArgs {
    /// Name of the case
    case: String,
}

/// What a case costs.
struct Counted {
    case: &'static Case,
    /// Instructions per unit.
    now: f64,
}

/// Counts, and compares. Failure: a case costs too much, or cannot be counted.
pub fn run(args: &CountsArgs) -> Result<ExitCode, String> {
    if !has_program("valgrind") {
        if args.accept {
            return Err("without valgrind nothing can be counted".to_owned());
        }
        skip("counts", "valgrind is not installed");
        return Ok(ExitCode::SUCCESS);
    }
    let wanted: Vec<&'static Case> = cases::ALL
        .iter()
        .filter(|c| args.case.as_ref().is_none_or(|t| c.name.contains(t)))
        .collect();
    if wanted.is_empty() {
        return Err("no case has such a name".to_owned());
    }
    let counted = count_all(&wanted, args.profile)?;
    if args.accept {
        Reference::of(BUILT_BY, counted.iter().map(|c| (c.case.name, c.now)))
            .write(&args.reference)?;
        println!("{} cases are the reference now: {}", counted.len(), args.reference.display());
        return Ok(ExitCode::SUCCESS);
    }
    let reference = Reference::read(&args.reference)?;
    let complaints = compare(&counted, &reference, args.case.is_none());
    Ok(conclude(&complaints, &reference))
}

/// Replays a case under the eyes of whoever has started this process; prints what it consists of.
pub fn replay(args: &ReplayArgs) -> Result<(), String> {
    let case = cases::ALL.iter().find(|case| case.name == args.case).ok_or("no such case")?;
    let mut replay = Replay::new((case.record)());
    replay.run();
    replay.check();
    println!("{}", replay.units());
    Ok(())
}

/// Instructions per unit of all these, in their order. As many at once as there are processors.
fn count_all(wanted: &[&'static Case], is_profiled: bool) -> Result<Vec<Counted>, String> {
    let program = std::env::current_exe().map_err(|e| format!("who am I: {e}"))?;
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        while let Some((at, case)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, *wanted.get(at)?)))
        {
            let counted = callgrind::count(&program, case.name, is_profiled);
            results.lock().expect("no other thread has panicked").push((at, case, counted));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut results = results.into_inner().expect("no thread has panicked");
    results.sort_by_key(|(at, ..)| *at);
    let counted =
        |(_, case, counted): (usize, &'static Case, Result<callgrind::Counts, String>)| {
            let counts = counted.map_err(|e| format!("{}: {e}", case.name))?;
            if let Some(profile) = counts.profile {
                println!("## {}\n\n{profile}", case.name);
            }
            Ok(Counted { case, now: counts.instructions as f64 / counts.units as f64 })
        };
    results.into_iter().map(counted).collect()
}

/// Prints the table; what is wrong with it. `is_all`: all cases were counted.
fn compare(counted: &[Counted], reference: &Reference, is_all: bool) -> Vec<String> {
    let mut complaints = Vec::new();
    println!("| instructions per | | reference | now | change |");
    println!("|---|---|---:|---:|---:|");
    for Counted { case, now } in counted {
        let (before, change, verdict) = match reference.of_case(case.name) {
            None => {
                complaints.push(format!("{}: not in the reference", case.name));
                ("".to_owned(), "new".to_owned(), "")
            }
            Some(before) => {
                // Adding zero: no change is not shown as -0.0.
                let percent = ((now / before - 1.0) * 1000.0).round() / 10.0 + 0.0;
                let verdict = if percent > TOLERANCE_PERCENT {
                    complaints.push(format!("{}: {percent:+.1} %", case.name));
                    " **more**"
                } else if percent < -TOLERANCE_PERCENT {
                    " less: accept it, or it may come back unseen"
                } else {
                    ""
                };
                (format!("{before:.1}"), format!("{percent:+.1} %"), verdict)
            }
        };
        println!("| {} | {} | {before} | {now:.1} | {change}{verdict} |", case.unit, case.name);
    }
    let is_gone = |name: &&str| is_all && counted.iter().all(|c| c.case.name != *name);
    complaints.extend(
        reference.names().filter(is_gone).map(|name| format!("{name}: no such case any more")),
    );
    complaints
}

fn conclude(complaints: &[String], reference: &Reference) -> ExitCode {
    let is_comparable = reference.built_by == BUILT_BY;
    if !is_comparable {
        println!("NOTE: built by   {BUILT_BY}");
        println!("      reference: {}", reference.built_by);
        println!("      Counts of different builds are not comparable: shown, not judged.");
    }
    if complaints.is_empty() {
        println!("nothing costs more than {TOLERANCE_PERCENT} % more than the reference");
        return ExitCode::SUCCESS;
    }
    for complaint in complaints {
        println!("{complaint}");
    }
    println!("if that is meant: cargo run --release -p bench -- counts --accept");
    if is_comparable { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
