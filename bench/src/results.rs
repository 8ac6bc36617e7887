//! What a run found, as it stands in results.json, and what follows from it: medians, spreads and ratios.

use serde::{Deserialize, Serialize};
use usernet_lab::Lab;

use crate::cases::GROUPS;
use crate::collector::{Failure, Findings, Metric, Sample};
use crate::contender::{Contender, Role};
use crate::machine::Machine;

/// Changes whenever a program that reads results.json would misunderstand it.
pub(crate) const SCHEMA: u32 = 1;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) schema: u32,
    pub(crate) machine: Machine,
    pub(crate) command_line: Vec<String>,
    pub(crate) rounds: u32,
    pub(crate) took_seconds: u64,
    pub(crate) contenders: Vec<Participant>,
    #[serde(flatten)]
    pub(crate) findings: Findings,
}

/// A contender, for readers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Participant {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) version: Option<String>,
    pub(crate) options: Vec<String>,
    pub(crate) workers: Option<u32>,
}

impl Participant {
    pub(crate) fn of(contender: &Contender, lab: &Lab) -> Self {
        Self {
            name: contender.name.clone(),
            role: contender.role(),
            version: contender.version(lab),
            options: contender.options.clone(),
            workers: contender.workers,
        }
    }
}

/// The middle of some values and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Middle {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Middle {
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[half]
        } else {
            (values[half - 1] + values[half]) / 2.0
        };
        Some(Self { median, min, max })
    }

    /// Half of the distance between the extremes, in percent of the median.
    pub(crate) fn spread_percent(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median * 100.0 }
    }
}

impl Metric {
    /// Whether it is what another metric cost.
    pub(crate) fn is_cpu(&self) -> bool {
        self.id.split('.').any(|part| part == "cpu" || part == "cpu-machine")
    }
}

impl Results {
    /// By group, and in it what was measured before what it cost.
    pub(crate) fn sorted(mut self) -> Self {
        let group = |metric: &Metric| GROUPS.iter().position(|group| group.name == metric.group);
        let rank = |metric: &Metric| (group(metric).unwrap_or(GROUPS.len()), metric.is_cpu());
        self.findings.metrics.sort_by_key(rank);
        self
    }

    /// The samples of a contender.
    pub(crate) fn samples<'a>(
        &'a self,
        contender: &'a str,
        metric: &'a Metric,
    ) -> impl Iterator<Item = &'a Sample> {
        let is_it = move |s: &&Sample| s.contender == contender && s.metric == metric.id;
        self.findings.samples.iter().filter(is_it)
    }

    pub(crate) fn middle(&self, contender: &str, metric: &Metric) -> Option<Middle> {
        Middle::of(self.samples(contender, metric).map(|s| s.value).collect())
    }

    /// The median of something else that was seen with it.
    pub(crate) fn also(&self, contender: &str, metric: &Metric, name: &str) -> Option<f64> {
        let values = self.samples(contender, metric).filter_map(|s| s.also.get(name).copied());
        Middle::of(values.collect()).map(|middle| middle.median)
    }

    pub(crate) fn with_role(&self, role: Role) -> impl Iterator<Item = &Participant> {
        self.contenders.iter().filter(move |c| c.role == role)
    }

    /// The best median of those that usernetd is compared with.
    fn better_peer(&self, metric: &Metric) -> Option<f64> {
        let peers = self.with_role(Role::Peer);
        let medians = peers.filter_map(|c| Some(self.middle(&c.name, metric)?.median));
        if metric.more_is_better { medians.reduce(f64::max) } else { medians.reduce(f64::min) }
    }

    /// How many times better than the better peer: above 1 is better, whatever the metric.
    pub(crate) fn ratio(&self, contender: &str, metric: &Metric) -> Option<f64> {
        better_by(self.middle(contender, metric)?.median, self.better_peer(metric)?, metric)
    }

    /// How much of what a limit reaches, in percent: 100 is as good, whatever the metric.
    pub(crate) fn percent_of(&self, limit: &str, contender: &str, metric: &Metric) -> Option<f64> {
        let limit = self.middle(limit, metric)?.median;
        let own = self.middle(contender, metric)?.median;
        better_by(own, limit, metric).map(|ratio| ratio * 100.0)
    }

    /// Failures, each with the number of rounds in which it happened.
    pub(crate) fn failures(&self) -> Vec<(&Failure, usize)> {
        let mut folded: Vec<(&Failure, usize)> = Vec::new();
        for failure in &self.findings.failures {
            let is_same = |(f, _): &&mut (&Failure, usize)| {
                f.contender == failure.contender && f.case == failure.case
            };
            match folded.iter_mut().find(is_same) {
                Some((_, times)) => *times += 1,
                None => folded.push((failure, 1)),
            }
        }
        folded
    }

    /// In one line.
    pub(crate) fn about(&self) -> String {
        let (rounds, seconds) = (self.rounds, self.took_seconds);
        format!("{}; rounds: {rounds}, took {seconds} s", self.machine.summary())
    }
}

fn better_by(own: f64, other: f64, metric: &Metric) -> Option<f64> {
    let ratio = if metric.more_is_better { own / other } else { other / own };
    ratio.is_finite().then_some(ratio)
}

/// Three significant digits are more than the noise deserves.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 || v == 0.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// usernetd, both peers and a limit; a rate, a cost with a distribution, and a failure.
    pub(crate) fn example() -> Results {
        let rate = Metric {
            group: "stream".into(),
            ..Metric::rate("stream.out.1.1500.v4", "speed", "Gbit/s")
        };
        let cost = Metric { group: "latency".into(), ..Metric::cost("latency.p50", "wait", "µs") };
        let sample = |contender: &str, metric: &Metric, round, value| Sample {
            contender: contender.to_owned(),
            metric: metric.id.clone(),
            round,
            value,
            also: BTreeMap::from([("fairness".to_owned(), 0.5)]),
            distribution: if metric.more_is_better {
                vec![]
            } else {
                vec![(50.0, value), (99.0, value * 3.0)]
            },
        };
        let mut samples = Vec::new();
        for (contender, speed, wait) in [
            ("usernetd", 8.0, 5.0),
            ("pasta", 2.0, 20.0),
            ("slirp4netns", 1.0, 10.0),
            ("veth", 16.0, 4.0),
        ] {
            for round in 0..3 {
                let noise = f64::from(round) - 1.0;
                samples.push(sample(contender, &rate, round, speed + noise / 2.0));
                samples.push(sample(contender, &cost, round, wait + noise));
            }
        }
        let failure = |round| Failure {
            contender: "pasta".into(),
            group: "stream".into(),
            case: "speed, <IPv6>".into(),
            round,
            why: "no route & no hope".into(),
        };
        let participant = |name: &str, role| Participant {
            name: name.to_owned(),
            role,
            version: Some(format!("{name} 1.0")),
            options: Vec::new(),
            workers: None,
        };
        Results {
            schema: SCHEMA,
            machine: Machine { processor: "P".into(), cores: 2, ..Machine::default() },
            command_line: vec!["bench".into(), "compare".into()],
            rounds: 3,
            took_seconds: 9,
            contenders: vec![
                participant("usernetd", Role::Own),
                participant("slirp4netns", Role::Peer),
                participant("pasta", Role::Peer),
                participant("veth", Role::Limit),
            ],
            findings: Findings {
                metrics: vec![rate, cost],
                samples,
                failures: vec![failure(0), failure(1)],
            },
        }
    }

    #[test]
    fn the_middle_of_an_even_number_of_values_lies_between_two() {
        let middle = Middle::of(vec![4.0, 1.0, 2.0, 3.0]).expect("there are values");
        assert_eq!(middle, Middle { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(middle.spread_percent(), 60.0);
        assert_eq!(Middle::of(Vec::new()), None);
    }

    #[test]
    fn a_ratio_above_one_is_better_whatever_the_metric() {
        let results = example();
        let [rate, cost] = &results.findings.metrics[..] else { panic!("two metrics") };
        assert_eq!(results.ratio("usernetd", rate), Some(4.0));
        assert_eq!(results.ratio("usernetd", cost), Some(2.0));
        assert_eq!(results.percent_of("veth", "usernetd", rate), Some(50.0));
        assert_eq!(results.percent_of("veth", "usernetd", cost), Some(80.0));
        assert_eq!(results.percent_of("loopback", "usernetd", rate), None);
        assert_eq!(results.also("usernetd", rate, "fairness"), Some(0.5));
    }

    #[test]
    fn a_file_of_results_is_read_as_it_was_written() {
        let results = example();
        let text = serde_json::to_string(&results).expect("it can be written");
        assert_eq!(serde_json::from_str::<Results>(&text).expect("it can be read"), results);
    }

    #[test]
    fn groups_stay_together_and_costs_come_after_what_they_were_paid_for() {
        let mut results = example();
        let rate = results.findings.metrics[0].clone();
        results.findings.metrics.insert(0, Metric { id: format!("{}.cpu", rate.id), ..rate });
        let ids: Vec<_> = results.sorted().findings.metrics.into_iter().map(|m| m.id).collect();
        assert_eq!(ids, ["latency.p50", "stream.out.1.1500.v4", "stream.out.1.1500.v4.cpu"]);
    }

    #[test]
    fn a_failure_in_every_round_is_told_once() {
        let results = example();
        let failures = results.failures();
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].1, 2);
    }
}
