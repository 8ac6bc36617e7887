//! What the helper's clients say that measure: `usernet-lab ping-pong` and `storm`.

use std::collections::BTreeMap;

use serde::Deserialize;
use usernet_lab::Done;

use crate::collector::Sample;

/// Percentiles that make a curve, most of them where it bends.
const CURVE: [f64; 25] = [
    0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0,
    92.0, 94.0, 96.0, 98.0, 99.0, 99.5, 99.9, 99.99, 100.0,
];

/// What came of a load.
#[derive(Debug, Deserialize)]
pub(crate) struct Tally {
    /// What went as it should.
    pub(crate) done: u64,
    /// The same per second, in the time there was.
    pub(crate) rate: f64,
    /// Nanoseconds, and how many took that long. In order.
    times: Vec<(u64, u64)>,
    /// How many failed, by kind.
    errors: BTreeMap<String, u64>,
    /// One of them.
    pub(crate) first_error: Option<String>,
}

impl Tally {
    /// What the helper printed.
    pub(crate) fn of(done: &Done) -> Result<Self, String> {
        serde_json::from_str(&done.out).map_err(|_| done.to_string())
    }

    /// How many failed.
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// How long so many percent of them took at most, in microseconds.
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        let wanted = (self.done as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut sum = 0;
        let time = self.times.iter().find(|(_, n)| {
            sum += n;
            sum >= wanted
        });
        time.map(|(nanoseconds, _)| *nanoseconds as f64 / 1e3)
    }

    /// Notes how the times are distributed, and what went wrong.
    pub(crate) fn note(&self, sample: &mut Sample) {
        let curve = CURVE.iter().filter_map(|percent| Some((*percent, self.percentile(*percent)?)));
        sample.distribution(curve.collect());
        self.note_errors(sample);
    }

    /// Notes what went wrong.
    pub(crate) fn note_errors(&self, sample: &mut Sample) {
        for (kind, n) in &self.errors {
            sample.also(kind, *n as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_time_that_so_many_do_not_exceed() {
        let times = vec![(1_000, 50), (2_000, 49), (9_000, 1)];
        let tally =
            Tally { done: 100, rate: 1.0, times, errors: BTreeMap::new(), first_error: None };
        let at = [0.0, 50.0, 50.5, 99.0, 99.5, 100.0].map(|percent| tally.percentile(percent));
        assert_eq!(at, [1.0, 1.0, 2.0, 2.0, 9.0, 9.0].map(Some));
        let empty = Tally { done: 0, times: Vec::new(), ..tally };
        assert_eq!(empty.percentile(50.0), None);
    }
}
