//! Connect, ask, answer, close: one after the other, and 16 at a time.

use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::session::{Family, SERVER_PORT, Session};

/// Bytes that a connection fetches.
const FETCH_BYTES: &str = "100";

pub(crate) fn run(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    let server = Family::V4.socket(SERVER_PORT);
    let seconds = effort.storm.as_secs().to_string();
    for clients in ["1", "16"] {
        let metric = Metric::rate(
            format!("connections.out.{clients}"),
            format!("connections ×{clients}"),
            "1/s",
        );
        let before = session.cpu();
        let done = session.client().peer(&["storm", &server, &seconds, clients, FETCH_BYTES]);
        let used = session.cpu() - before;
        match done.out.trim().parse::<f64>() {
            Ok(rate) => {
                let count = rate * effort.storm.as_secs_f64();
                collector.add_cpu(&metric, used, count / 1e3, "s/1000");
                collector.add(metric, rate);
            }
            Err(_) => collector.fail(metric.label, done),
        }
    }
}
