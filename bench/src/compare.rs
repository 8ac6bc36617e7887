//! `compare`: all contenders in turn, round after round, so that what else the machine does hits them alike.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use usernet_lab::{Lab, skip, wait_until};

use crate::cases::{GROUPS, Group, MTUS, Run};
use crate::collector::{Collector, Findings};
use crate::contender::Contender;
use crate::report::Report;
use crate::session::{Family, IPERF_PORT, SERVER_PORT, Session};
use crate::{CompareArgs, Effort};

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
    raise_files();
    let mut contenders: Vec<Contender> = Contender::installed();
    contenders.extend(args.peers.iter().cloned());
    contenders.retain(|c| args.only.is_empty() || args.only.contains(&c.name));
    let effort = args.effort();
    let lab = Lab::new();
    let start = Instant::now();
    let contenders =
        contenders.into_iter().map(|c| reachable(&lab, c)).collect::<Result<Vec<_>, _>>()?;
    let _iperf = lab.host().spawn(&["iperf3", "-s"]);
    let addresses: Vec<String> =
        [Family::V4, Family::V6].iter().map(|family| family.socket(SERVER_PORT)).collect();
    let served = if skip::has_ipv6() { &addresses[..] } else { &addresses[..1] };
    let _server = lab.host().serve(&served.iter().map(String::as_str).collect::<Vec<_>>());
    if !wait_until(Duration::from_secs(5), || lab.host().listens_on(IPERF_PORT)) {
        return Err("iperf3 does not listen".into());
    }
    let mut groups: Vec<&Group> = GROUPS.iter().collect();
    groups.retain(|group| args.cases.is_empty() || args.cases.contains(&group.name));
    let mut findings = Findings::default();
    for round in 0..effort.rounds {
        eprintln!("round {} of {}", round + 1, effort.rounds);
        Round { lab: &lab, contenders: &contenders, groups: &groups, round, effort: &effort }
            .run(&mut findings);
    }
    let report = Report::new(&contenders, findings, effort.rounds, start.elapsed());
    print!("{}", report.table());
    fs::create_dir_all(&args.out)?;
    fs::write(args.out.join("results.json"), report.json()?)?;
    fs::write(args.out.join("results.md"), report.markdown())?;
    eprintln!("written to {}", args.out.display());
    Ok(())
}

/// Everybody may open as many files as the system allows: 10,000 connections are more than the usual 1,024.
fn raise_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).expect("a soft limit may be as high as the hard one");
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

/// All contenders once.
struct Round<'a> {
    lab: &'a Lab,
    contenders: &'a [Contender],
    groups: &'a [&'a Group],
    round: u32,
    effort: &'a Effort,
}

impl Round<'_> {
    fn run(&self, findings: &mut Findings) {
        for mtu in MTUS {
            for contender in self.turns() {
                self.session(contender, mtu, findings);
            }
        }
        for contender in self.turns() {
            for group in self.groups {
                if let Run::Alone(run) = group.run {
                    eprintln!("  {}: {}", contender.name, group.name);
                    let mut collector = self.collector(contender, group.name, findings);
                    run(self.lab, contender, self.effort, &mut collector);
                }
            }
        }
    }

    /// Everybody is first once: who follows whom does not decide.
    fn turns(&self) -> impl Iterator<Item = &Contender> {
        let n = self.contenders.len();
        (0..n).map(move |turn| &self.contenders[(turn + self.round as usize) % n])
    }

    /// All groups that want a session of this contender at this MTU.
    fn session(&self, contender: &Contender, mtu: u16, findings: &mut Findings) {
        let wanted = self.groups.iter().filter_map(|group| match group.run {
            Run::InSession(wants, run) => {
                wants(contender, mtu, self.effort).then_some((group.name, run))
            }
            Run::Alone(_) => None,
        });
        let wanted: Vec<_> = wanted.collect();
        if wanted.is_empty() {
            return;
        }
        eprintln!("  {} at MTU {mtu}", contender.name);
        match Session::start(self.lab, contender, mtu) {
            Ok(session) => {
                for (group, run) in wanted {
                    let mut collector = self.collector(contender, group, findings);
                    run(&session, self.effort, &mut collector);
                }
            }
            Err(why) => {
                for (group, _) in wanted {
                    let mut collector = self.collector(contender, group, findings);
                    collector.fail(format!("all at MTU {mtu}"), &why);
                }
            }
        }
    }

    fn collector<'a>(
        &self,
        contender: &'a Contender,
        group: &'static str,
        findings: &'a mut Findings,
    ) -> Collector<'a> {
        Collector { contender: &contender.name, group, round: self.round, findings }
    }
}
