//! `compare`: all contenders in turn, round after round, so that what else the machine does hits them alike.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use usernet_lab::{Lab, Running, skip, wait_until};

use crate::cases::{GROUPS, Group, MTUS, Run};
use crate::collector::{Collector, Findings};
use crate::contender::{Contender, Kind, Role};
use crate::machine::Machine;
use crate::report;
use crate::results::{Participant, Results, SCHEMA};
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
    let effort = args.effort();
    let lab = Lab::new();
    let start = Instant::now();
    let mut groups: Vec<&Group> = GROUPS.iter().collect();
    groups.retain(|group| args.cases.is_empty() || args.cases.contains(&group.name));
    let mut contenders = selected(args);
    contenders.retain(|contender| groups.iter().any(|group| is_for(group, contender)));
    let contenders =
        contenders.into_iter().map(|c| reachable(&lab, c)).collect::<Result<Vec<_>, _>>()?;
    if contenders.is_empty() {
        return Err("no contender is left".into());
    }
    let _servers = servers(&lab)?;
    let mut findings = Findings::default();
    for round in 0..effort.rounds {
        eprintln!("round {} of {}", round + 1, effort.rounds);
        if args.congestion.is_empty() {
            let round = Round { lab: &lab, groups: &groups, round, effort: &effort };
            round.run(&contenders, &mut findings);
        }
        for (at, congestion) in args.congestion.iter().enumerate() {
            let mut contenders = contenders.clone();
            for contender in &mut contenders {
                contender.congestion = Some(congestion.clone());
            }
            let mut groups = groups.clone();
            groups.retain(|group| at == 0 || group.depends_on_congestion());
            let round = Round { lab: &lab, groups: &groups, round, effort: &effort };
            round.run(&contenders, &mut findings);
        }
    }
    let results = Results {
        schema: SCHEMA,
        machine: Machine::of(&lab),
        command_line: std::env::args().collect(),
        rounds: effort.rounds,
        took_seconds: start.elapsed().as_secs(),
        contenders: contenders.iter().map(|c| Participant::of(c, &lab)).collect(),
        findings,
    };
    report::write(&results.sorted(), &args.out)
}

/// Those that take part, in the order of the first round.
fn selected(args: &CompareArgs) -> Vec<Contender> {
    let mut contenders = Contender::installed();
    let limits = contenders.iter().position(|c| c.role() == Role::Limit);
    let more = args.workers.iter().map(|workers| Contender::with_workers(*workers));
    let more = more.chain(args.peers.iter().cloned());
    // Limits last: what is a limit to nobody needs no column in front.
    contenders.splice(limits.unwrap_or(0)..limits.unwrap_or(0), more);
    contenders.retain(|c| args.only.is_empty() || args.only.contains(&c.name));
    contenders
}

/// iperf3 and the helper's server on the host, until they are dropped.
fn servers(lab: &Lab) -> Result<[Running; 2], Box<dyn Error>> {
    let iperf = lab.host().spawn(&["iperf3", "-s"]);
    let v4 = Family::V4.socket(SERVER_PORT);
    let v6 = skip::has_ipv6().then(|| Family::V6.socket(SERVER_PORT));
    let addresses: Vec<&str> = std::iter::once(&v4).chain(&v6).map(String::as_str).collect();
    let server = lab.host().serve(&addresses);
    if !wait_until(Duration::from_secs(5), || lab.host().listens_on(IPERF_PORT)) {
        return Err("iperf3 does not listen".into());
    }
    Ok([iperf, server])
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

/// Contenders that are there for a curve do not run what the curve does not show.
fn is_for(group: &Group, contender: &Contender) -> bool {
    contender.kind.is_in(group.name) && (contender.workers.is_none() || group.depends_on_workers())
}

/// All contenders once.
struct Round<'a> {
    lab: &'a Lab,
    groups: &'a [&'a Group],
    round: u32,
    effort: &'a Effort,
}

impl Round<'_> {
    fn run(&self, contenders: &[Contender], findings: &mut Findings) {
        for mtu in MTUS {
            for contender in self.turns(contenders) {
                self.session(contender, mtu, findings);
            }
        }
        for contender in self.turns(contenders) {
            for group in self.groups {
                // Whoever sets up a veth pair needs neither forwards nor a daemon; the least of translators has none.
                if let Run::Alone(run) = group.run
                    && is_for(group, contender)
                    && !matches!(contender.kind, Kind::Veth | Kind::Bare)
                {
                    eprintln!("  {}: {}", contender.name, group.name);
                    let mut collector = self.collector(contender, group.name, findings);
                    run(self.lab, contender, self.effort, &mut collector);
                }
            }
        }
    }

    /// Everybody is first once: who follows whom does not decide.
    fn turns<'a>(&self, contenders: &'a [Contender]) -> impl Iterator<Item = &'a Contender> {
        let (n, round) = (contenders.len(), self.round as usize);
        (0..n).map(move |turn| &contenders[(turn + round) % n])
    }

    /// All groups that want a session of this contender at this MTU.
    fn session(&self, contender: &Contender, mtu: u16, findings: &mut Findings) {
        let wanted = self.groups.iter().filter_map(|group| match group.run {
            Run::InSession(wants, run) => {
                let is_wanted = is_for(group, contender) && wants(contender, mtu, self.effort);
                is_wanted.then_some((group.name, run))
            }
            Run::Alone(_) => None,
        });
        let wanted: Vec<_> = wanted.collect();
        if wanted.is_empty() {
            return;
        }
        eprintln!("  {} at MTU {mtu}", contender.name);
        let mut session = Session::start(self.lab, contender, mtu);
        for (at, (group, run)) in wanted.into_iter().enumerate() {
            let mut collector = self.collector(contender, group, findings);
            // What one group broke is not the next one's fault.
            if at > 0 && session.as_ref().is_ok_and(|session| !session.answers()) {
                let case = format!("before {group} at MTU {mtu}");
                collector.fail(case, "nothing passed any more, so it was started again");
                drop(session);
                session = Session::start(self.lab, contender, mtu);
            }
            match &session {
                Ok(session) => run(session, self.effort, &mut collector),
                Err(why) => collector.fail(format!("all at MTU {mtu}"), why),
            }
        }
    }

    fn collector<'a>(
        &self,
        contender: &'a Contender,
        group: &'static str,
        findings: &'a mut Findings,
    ) -> Collector<'a> {
        Collector { contender, group, round: self.round, findings }
    }
}
