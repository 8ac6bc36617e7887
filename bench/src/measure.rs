//! What is measured, and how.

use std::time::Duration;

use serde::Serialize;

use crate::Effort;
use crate::session::Session;

/// Where the host's servers are.
const HOST: &str = "192.0.2.1";
/// The helper's server: questions and answers.
const SERVER: &str = "192.0.2.1:7000";
/// Bytes that a short connection fetches.
const FETCH_BYTES: &str = "100";

/// A quantity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Metric {
    /// As in the table.
    pub(crate) name: String,
    /// Of its values.
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
}

/// One value.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) contender: String,
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// The way bytes go.
#[derive(Clone, Copy, Debug)]
enum Direction {
    /// From the guest to the host.
    Out,
    /// From the host to the guest.
    In,
}

/// Collects the samples of one session.
pub(crate) struct Collector<'a> {
    pub(crate) contender: &'a str,
    pub(crate) samples: &'a mut Vec<Sample>,
}

impl Collector<'_> {
    fn add(&mut self, name: String, unit: &'static str, more_is_better: bool, value: f64) {
        let metric = Metric { name, unit, more_is_better };
        self.samples.push(Sample { contender: self.contender.to_owned(), metric, value });
    }

    /// A measurement that failed is told and leaves no sample.
    fn keep(&mut self, what: &str, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            eprintln!("{}: {what}: {why}", self.contender);
        }
    }

    /// Bulk TCP, 1 and 4 streams, both ways.
    pub(crate) fn bulk(&mut self, session: &Session<'_>, mtu: u16, effort: &Effort) {
        for direction in [Direction::Out, Direction::In] {
            for streams in [1, 4] {
                let outcome = self.bulk_one(session, mtu, direction, streams, effort.bulk);
                self.keep("bulk", outcome);
            }
        }
    }

    fn bulk_one(
        &mut self,
        session: &Session<'_>,
        mtu: u16,
        direction: Direction,
        streams: u32,
        time: Duration,
    ) -> Result<(), String> {
        let (seconds, parallel) = (time.as_secs().to_string(), streams.to_string());
        let mut run = vec!["iperf3", "-J", "-c", HOST, "-t", &seconds, "-P", &parallel];
        let name = match direction {
            Direction::Out => "out",
            Direction::In => {
                run.push("-R");
                "in"
            }
        };
        let before = session.cpu_seconds();
        let done = session.client().run_within(time + Duration::from_secs(15), &run);
        let used = session.cpu_seconds() - before;
        let report: serde_json::Value =
            serde_json::from_str(&done.out).map_err(|_| done.to_string())?;
        let sum = &report["end"]["sum_received"];
        let rate = sum["bits_per_second"].as_f64().ok_or_else(|| report["error"].to_string())?;
        let bytes = sum["bytes"].as_f64().unwrap_or(0.0);
        let label = format!("TCP {name} ×{streams}, MTU {mtu}");
        if used > 0.0 && bytes > 0.0 && streams == 1 {
            self.add(format!("CPU, {label}"), "s/GB", false, used / (bytes / 1e9));
        }
        self.add(label, "Gbit/s", true, rate / 1e9);
        Ok(())
    }

    /// Round trips of one byte.
    pub(crate) fn latency(&mut self, session: &Session<'_>, effort: &Effort) {
        for protocol in ["tcp", "udp"] {
            let n = effort.round_trips.to_string();
            let done = session.client().peer(&["ping-pong", protocol, SERVER, &n]);
            let mut numbers = done.out.split_whitespace().map(|n| n.parse::<f64>().ok());
            let (Some(Some(median)), Some(Some(p99))) = (numbers.next(), numbers.next()) else {
                self.keep("latency", Err(done.to_string()));
                continue;
            };
            let upper = protocol.to_uppercase();
            self.add(format!("round trip {upper}, median"), "µs", false, median / 1e3);
            self.add(format!("round trip {upper}, 99 %"), "µs", false, p99 / 1e3);
        }
    }

    /// Connect, ask, answer, close: one after the other, and 16 at a time.
    pub(crate) fn connections(&mut self, session: &Session<'_>, effort: &Effort) {
        for clients in ["1", "16"] {
            let seconds = effort.storm.as_secs().to_string();
            let done = session.client().peer(&["storm", SERVER, &seconds, clients, FETCH_BYTES]);
            match done.out.trim().parse() {
                Ok(rate) => self.add(format!("connections ×{clients}"), "1/s", true, rate),
                Err(_) => self.keep("connections", Err(done.to_string())),
            }
        }
    }

    /// Before anything was done with the network.
    pub(crate) fn idle(&mut self, session: &Session<'_>) {
        if session.is_translated() {
            self.add(
                "time to ready".to_owned(),
                "ms",
                false,
                session.ready_after.as_secs_f64() * 1e3,
            );
            self.add("memory, idle".to_owned(), "MiB", false, session.memory_kib() / 1024.0);
        }
    }

    /// After everything was done with it.
    pub(crate) fn after(&mut self, session: &Session<'_>) {
        if session.is_translated() {
            self.add("memory, afterwards".to_owned(), "MiB", false, session.memory_kib() / 1024.0);
        }
    }
}
