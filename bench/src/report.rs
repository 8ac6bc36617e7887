//! Medians, spreads and ratios.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::cases::GROUPS;
use crate::collector::{Findings, Metric, Sample};
use crate::contender::Contender;

/// What a run found.
pub(crate) struct Report<'a> {
    contenders: &'a [Contender],
    findings: Findings,
    /// In the order of their first sample.
    metrics: Vec<Metric>,
    rounds: u32,
    took: Duration,
}

/// The middle of some values and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Middle {
    median: f64,
    min: f64,
    max: f64,
}

impl Middle {
    fn of(mut values: Vec<f64>) -> Option<Self> {
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
    fn spread_percent(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median * 100.0 }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        contenders: &'a [Contender],
        findings: Findings,
        rounds: u32,
        took: Duration,
    ) -> Self {
        let mut metrics: Vec<Metric> = Vec::new();
        for sample in &findings.samples {
            if !metrics.contains(&sample.metric) {
                metrics.push(sample.metric.clone());
            }
        }
        metrics.sort_by_key(rank);
        Self { contenders, findings, metrics, rounds, took }
    }

    fn middle(&self, contender: &str, metric: &Metric) -> Option<Middle> {
        let is_it = |s: &&Sample| s.contender == contender && s.metric == *metric;
        Middle::of(self.findings.samples.iter().filter(is_it).map(|s| s.value).collect())
    }

    /// The best median of those that usernetd is compared with.
    fn better_peer(&self, metric: &Metric) -> Option<f64> {
        let peers = self.contenders.iter().filter(|c| c.is_peer());
        let medians = peers.filter_map(|c| Some(self.middle(&c.name, metric)?.median));
        if metric.more_is_better { medians.reduce(f64::max) } else { medians.reduce(f64::min) }
    }

    /// How many times better than the better peer: above 1 is better, whatever the metric.
    fn ratio(&self, contender: &str, metric: &Metric) -> Option<f64> {
        let own = self.middle(contender, metric)?.median;
        let peer = self.better_peer(metric)?;
        let ratio = if metric.more_is_better { own / peer } else { peer / own };
        ratio.is_finite().then_some(ratio)
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let mut head = vec!["median ± spread".to_owned(), "unit".to_owned()];
        head.extend(self.contenders.iter().map(|c| c.name.clone()));
        let own: Vec<_> =
            self.contenders.iter().filter(|c| c.name.starts_with("usernetd")).collect();
        head.extend(own.iter().map(|c| format!("{} : better peer", c.name)));
        let mut rows = vec![head];
        for metric in &self.metrics {
            let mut row = vec![metric.label.clone(), metric.unit.clone()];
            for contender in self.contenders {
                row.push(self.middle(&contender.name, metric).map(cell).unwrap_or_default());
            }
            for contender in &own {
                let ratio = self.ratio(&contender.name, metric);
                row.push(ratio.map(|r| format!("{r:.2}×")).unwrap_or_default());
            }
            rows.push(row);
        }
        rows
    }

    /// For a terminal.
    pub(crate) fn table(&self) -> String {
        let rows = self.rows();
        let width =
            |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        let mut text = format!("{}\n\n", self.about());
        for row in &rows {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let padded =
                    if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
                text.push_str(gap);
                text.push_str(&padded);
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    /// For a document.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.about());
        for (number, row) in self.rows().iter().enumerate() {
            writeln!(text, "| {} |", row.join(" | ")).expect("a string takes everything");
            if number == 0 {
                text.push_str("|---|---|");
                text.push_str(&"--:|".repeat(row.len() - 2));
                text.push('\n');
            }
        }
        text
    }

    /// Everything, for programs.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let medians: Vec<_> = self
            .metrics
            .iter()
            .flat_map(|metric| self.contenders.iter().map(move |c| (metric, c)))
            .filter_map(|(metric, c)| {
                let m = self.middle(&c.name, metric)?;
                Some(json!({
                    "metric": metric.id, "unit": metric.unit, "contender": c.name,
                    "median": m.median, "min": m.min, "max": m.max,
                    "ratio_to_better_peer": self.ratio(&c.name, metric),
                }))
            })
            .collect();
        serde_json::to_string_pretty(&json!({
            "about": self.about(), "rounds": self.rounds, "medians": medians,
            "samples": self.findings.samples, "failures": self.findings.failures,
        }))
    }

    fn about(&self) -> String {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease");
        let cpus = read("/proc/cpuinfo");
        let model =
            cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let cores = cpus.lines().filter(|line| line.starts_with("processor")).count();
        format!(
            "{cores} cores, {}, Linux {}, {} in the namespaces, {} rounds in {} s",
            model.unwrap_or("unknown processor"),
            kernel.trim(),
            read("/proc/sys/net/ipv4/tcp_congestion_control").trim(),
            self.rounds,
            self.took.as_secs(),
        )
    }
}

/// Three significant digits are more than the noise deserves.
fn cell(middle: Middle) -> String {
    let digits = match middle.median {
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        _ => 2,
    };
    format!("{:.*} ± {:.0} %", digits, middle.median, middle.spread_percent())
}

/// In the order of the groups, costs of CPU last.
fn rank(metric: &Metric) -> (bool, usize) {
    let group = GROUPS.iter().position(|group| group.name == metric.group);
    (metric.label.starts_with("CPU"), group.unwrap_or(GROUPS.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_of_values_lies_between_two() {
        let middle = Middle::of(vec![4.0, 1.0, 2.0, 3.0]).expect("there are values");
        assert_eq!(middle, Middle { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(middle.spread_percent(), 60.0);
        assert_eq!(Middle::of(Vec::new()), None);
    }

    #[test]
    fn a_ratio_above_one_is_better_whatever_the_metric() {
        let sample = |contender: &str, name: &str, more_is_better, value| Sample {
            contender: contender.to_owned(),
            metric: Metric { more_is_better, ..Metric::rate(name, name, "") },
            round: 0,
            value,
            also: Default::default(),
            distribution: Vec::new(),
        };
        let contenders = ["usernetd=/a", "pasta=/b", "slirp4netns=/c"]
            .map(|text| Contender::parse(text).expect("a contender"));
        let samples = vec![
            sample("usernetd", "speed", true, 8.0),
            sample("pasta", "speed", true, 2.0),
            sample("slirp4netns", "speed", true, 1.0),
            sample("usernetd", "memory", false, 5.0),
            sample("pasta", "memory", false, 20.0),
            sample("slirp4netns", "memory", false, 10.0),
        ];
        let report =
            Report::new(&contenders, Findings { samples, failures: Vec::new() }, 1, Duration::ZERO);
        for metric in &report.metrics {
            let expected = if metric.more_is_better { 4.0 } else { 2.0 };
            assert_eq!(report.ratio("usernetd", metric), Some(expected));
        }
    }
}
