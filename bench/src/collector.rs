//! What was measured: samples, and failures where there is none.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::cpu::Cpu;

/// A quantity. Two samples are of the same one if their ids are equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metric {
    /// For programs, the same in every release: `stream.out.1.1500.v4`.
    pub(crate) id: String,
    /// For people.
    pub(crate) label: String,
    /// Of its values.
    pub(crate) unit: String,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    /// The group of cases that it belongs to; set by the [`Collector`].
    pub(crate) group: String,
}

impl Metric {
    /// More of it is better: a rate.
    pub(crate) fn rate(id: impl Into<String>, label: impl Into<String>, unit: &str) -> Self {
        let (id, label, unit) = (id.into(), label.into(), unit.to_owned());
        Self { id, label, unit, more_is_better: true, group: String::new() }
    }

    /// Less of it is better: a cost.
    pub(crate) fn cost(id: impl Into<String>, label: impl Into<String>, unit: &str) -> Self {
        Self { more_is_better: false, ..Self::rate(id, label, unit) }
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) contender: String,
    /// The metric's id.
    pub(crate) metric: String,
    pub(crate) round: u32,
    pub(crate) value: f64,
    /// What else was seen in the same run: loss, resets, fairness.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) also: BTreeMap<String, f64>,
    /// How single values are distributed: (percentile, value), in the metric's unit and in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) distribution: Vec<(f64, f64)>,
}

impl Sample {
    /// Notes something else that was seen.
    pub(crate) fn also(&mut self, name: &str, value: f64) -> &mut Self {
        self.also.insert(name.to_owned(), value);
        self
    }

    /// Notes how single values are distributed.
    pub(crate) fn distribution(&mut self, percentiles: Vec<(f64, f64)>) -> &mut Self {
        self.distribution = percentiles;
        self
    }
}

/// A case without a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) contender: String,
    pub(crate) group: String,
    pub(crate) case: String,
    pub(crate) round: u32,
    pub(crate) why: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// In the order of their first sample.
    pub(crate) metrics: Vec<Metric>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: Vec<Failure>,
}

/// Takes what one group of cases finds out about one contender.
pub(crate) struct Collector<'a> {
    pub(crate) contender: &'a Contender,
    pub(crate) group: &'static str,
    pub(crate) round: u32,
    pub(crate) findings: &'a mut Findings,
}

impl Collector<'_> {
    /// Keeps a value; more can be noted on the sample that is returned.
    pub(crate) fn add(&mut self, metric: Metric, value: f64) -> &mut Sample {
        let mut metric = Metric { group: self.group.to_owned(), ..metric };
        if let Some(congestion) = &self.contender.congestion {
            metric.id = format!("{}.{congestion}", metric.id);
            metric.label = format!("{}, {congestion}", metric.label);
        }
        eprintln!("    {}: {value:.2} {}", metric.label, metric.unit);
        let sample = Sample {
            contender: self.contender.name.clone(),
            metric: metric.id.clone(),
            round: self.round,
            value,
            also: BTreeMap::new(),
            distribution: Vec::new(),
        };
        if self.findings.metrics.iter().all(|known| known.id != metric.id) {
            self.findings.metrics.push(metric);
        }
        self.findings.samples.push(sample);
        self.findings.samples.last_mut().expect("one was just pushed")
    }

    /// Keeps what a case of `metric` cost: `amount` is what was done, in units of `unit`, e.g. gigabytes and `s/GB`.
    /// Becomes two metrics: the contender's own CPU time and that of the whole machine.
    pub(crate) fn add_cpu(&mut self, metric: &Metric, used: Cpu, amount: f64, unit: &str) {
        let of = |what: &str, whose: &str| {
            let id = format!("{}.{what}", metric.id);
            Metric::cost(id, format!("{whose}, {}", metric.label), unit)
        };
        if amount > 0.0 && used.tool > 0.0 {
            self.add(of("cpu", "CPU"), used.tool / amount);
        }
        if amount > 0.0 && used.machine > 0.0 {
            self.add(of("cpu-machine", "CPU of the machine"), used.machine / amount);
        }
    }

    /// A case failed, or is left out: the report says so.
    pub(crate) fn fail(&mut self, case: impl Display, why: impl Display) {
        let case = match &self.contender.congestion {
            Some(congestion) => format!("{case}, {congestion}"),
            None => case.to_string(),
        };
        eprintln!("    {case}: {why}");
        self.findings.failures.push(Failure {
            contender: self.contender.name.clone(),
            group: self.group.to_owned(),
            case,
            round: self.round,
            why: why.to_string(),
        });
    }
}
