//! `compare`: all contenders in turn, round after round, so that what else the machine does hits them alike.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use usernet_lab::{Lab, skip, wait_until};

use crate::contender::{Contender, Kind};
use crate::measure::{Collector, Sample};
use crate::report::Report;
use crate::session::Session;
use crate::{CompareArgs, Effort};

/// The link's sizes: what the Internet has, and the largest that the peers allow.
const MTUS: [u16; 2] = [1500, 65_520];
/// Where iperf3 listens.
const IPERF_PORT: u16 = 5201;

/// Runs it, prints the table, writes the files.
pub(crate) fn run(args: &CompareArgs) -> Result<(), Box<dyn Error>> {
    if let Some(reason) = skip::missing(&["ip", "iperf3"]) {
        return Err(reason.into());
    }
    if cfg!(debug_assertions) {
        eprintln!(
            "note: this is a debug build; `cargo run --release -p bench` measures what users get"
        );
    }
    let mut contenders: Vec<Contender> = Contender::installed();
    contenders.extend(args.peers.iter().cloned());
    contenders.retain(|c| args.only.is_empty() || args.only.contains(&c.name));
    let effort = args.effort();
    let lab = Lab::new();
    let start = Instant::now();
    let contenders =
        contenders.into_iter().map(|c| reachable(&lab, c)).collect::<Result<Vec<_>, _>>()?;
    let _iperf = lab.host().spawn(&["iperf3", "-s"]);
    let _server = lab.host().serve(&["192.0.2.1:7000"]);
    if !wait_until(Duration::from_secs(5), || lab.host().listens_on(IPERF_PORT)) {
        return Err("iperf3 does not listen".into());
    }
    let mut samples = Vec::new();
    for round in 0..effort.rounds {
        eprintln!("round {} of {}", round + 1, effort.rounds);
        one_round(&lab, &contenders, round as usize, &effort, &mut samples);
    }
    let report = Report::new(&contenders, samples, effort.rounds, start.elapsed());
    print!("{}", report.table());
    fs::create_dir_all(&args.out)?;
    fs::write(args.out.join("results.json"), report.json()?)?;
    fs::write(args.out.join("results.md"), report.markdown())?;
    eprintln!("written to {}", args.out.display());
    Ok(())
}

/// The program where the ordinary user can execute it: another one's home may be closed.
fn reachable(lab: &Lab, mut contender: Contender) -> std::io::Result<Contender> {
    if let Some(program) = &contender.program
        && !program.starts_with("/usr")
    {
        let copy = lab.dir().join(format!("contender-{}", contender.name));
        fs::copy(program, &copy)?;
        contender.program = Some(copy);
    }
    Ok(contender)
}

fn one_round(
    lab: &Lab,
    contenders: &[Contender],
    round: usize,
    effort: &Effort,
    samples: &mut Vec<Sample>,
) {
    for mtu in MTUS {
        for turn in 0..contenders.len() {
            // Everybody is first once: who follows whom does not decide.
            let contender = &contenders[(turn + round) % contenders.len()];
            if contender.kind == Kind::Loopback && mtu != MTUS[0] {
                continue;
            }
            eprintln!("  {} at MTU {mtu}", contender.name);
            let session = match Session::start(lab, contender, mtu) {
                Ok(session) => session,
                Err(why) => {
                    eprintln!("{why}");
                    continue;
                }
            };
            let mut collector = Collector { contender: &contender.name, samples };
            let is_first = mtu == MTUS[0];
            if is_first {
                collector.idle(&session);
                collector.latency(&session, effort);
                collector.connections(&session, effort);
            }
            collector.bulk(&session, mtu, effort);
            if is_first {
                collector.after(&session);
            }
        }
    }
}
