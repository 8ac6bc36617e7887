//! A transfer with iperf3, from the client to the server or back.

use std::time::Duration;

use serde_json::Value;
use usernet_lab::wait_until;

use crate::collector::{Collector, Metric};
use crate::session::{Family, IPERF_PORT, Joined};

/// How long connecting and reporting may take beside the transfer itself.
const PATIENCE: Duration = Duration::from_secs(12);

/// The way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the guest to the host.
    Out,
    /// From the host to the guest.
    In,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Out, Self::In];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// What to transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer<'a> {
    pub(crate) family: Family,
    pub(crate) direction: Direction,
    pub(crate) flows: u32,
    pub(crate) time: Duration,
    /// In iperf3's own words.
    pub(crate) options: &'a [&'a str],
}

impl Transfer<'_> {
    /// Runs it and keeps what came of it as a sample of each of the metrics, with what it cost.
    pub(crate) fn measure(
        &self,
        session: &impl Joined,
        collector: &mut Collector<'_>,
        metrics: &[Metric],
    ) {
        let before = session.cpu();
        let outcome = self.run(session);
        let used = session.cpu() - before;
        for metric in metrics {
            match &outcome {
                Ok(seen) => {
                    let sample = collector.add(metric.clone(), seen.bits_per_second / 1e9);
                    if let Some(fairness) = fairness(&seen.flows) {
                        sample.also("fairness", fairness);
                    }
                    sample.also("retransmits", seen.retransmits);
                    collector.add_cpu(metric, used, seen.bytes / 1e9, "s/GB");
                }
                Err(why) => collector.fail(&metric.label, why),
            }
        }
    }

    fn run(&self, session: &impl Joined) -> Result<Seen, String> {
        let host = session.address(self.family)?;
        // After each transfer the server closes its socket and opens it again.
        if !wait_until(PATIENCE, || session.server().listens_on(IPERF_PORT)) {
            return Err("iperf3 does not listen any more".to_owned());
        }
        let (seconds, flows) = (self.time.as_secs().to_string(), self.flows.to_string());
        let mut run = vec!["iperf3", "-J", "-c", host, "-t", &seconds, "-P", &flows];
        run.extend((self.direction == Direction::In).then_some("-R"));
        run.extend(self.options);
        let done = session.client().run_within(self.time + PATIENCE, &run);
        let report: Value = serde_json::from_str(&done.out).map_err(|_| done.to_string())?;
        Seen::of(&report).ok_or_else(|| report["error"].to_string())
    }
}

/// What iperf3 reports.
#[derive(Debug, PartialEq)]
struct Seen {
    bits_per_second: f64,
    bytes: f64,
    retransmits: f64,
    /// Bytes of each flow.
    flows: Vec<f64>,
}

impl Seen {
    fn of(report: &Value) -> Option<Self> {
        let end = &report["end"];
        let received = &end["sum_received"];
        let flows = end["streams"].as_array()?;
        Some(Self {
            bits_per_second: received["bits_per_second"].as_f64()?,
            bytes: received["bytes"].as_f64()?,
            retransmits: end["sum_sent"]["retransmits"].as_f64().unwrap_or(0.0),
            flows: flows.iter().filter_map(|flow| flow["receiver"]["bytes"].as_f64()).collect(),
        })
    }
}

/// Jain's index: 1 if all flows got the same, 1/n if one got everything. None where there is but one.
fn fairness(flows: &[f64]) -> Option<f64> {
    let (sum, squares) = flows.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    (flows.len() > 1 && squares > 0.0).then(|| sum * sum / (flows.len() as f64 * squares))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fairness_is_one_when_equal_and_one_nth_when_one_flow_has_everything() {
        assert_eq!(fairness(&[2.0, 2.0, 2.0, 2.0]), Some(1.0));
        assert_eq!(fairness(&[8.0, 0.0, 0.0, 0.0]), Some(0.25));
        assert_eq!(fairness(&[3.0]), None);
        assert_eq!(fairness(&[0.0, 0.0]), None);
    }

    #[test]
    fn a_report_of_iperf3_is_understood_and_one_with_an_error_is_none() {
        let flow = |bytes: u32| json!({"receiver": {"bytes": bytes}});
        let report = json!({"end": {
            "streams": [flow(100), flow(300)],
            "sum_received": {"bits_per_second": 3200.0, "bytes": 400},
            "sum_sent": {"retransmits": 7},
        }});
        let seen = Seen::of(&report).expect("it is complete");
        assert_eq!(seen.bits_per_second, 3200.0);
        assert_eq!((seen.bytes, seen.retransmits), (400.0, 7.0));
        assert_eq!(seen.flows, [100.0, 300.0]);
        assert_eq!(Seen::of(&json!({"end": {}, "error": "refused"})), None);
    }
}
