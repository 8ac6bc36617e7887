//! Round trips of one byte.

use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::session::{Family, SERVER_PORT, Session};

pub(crate) fn run(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    let server = Family::V4.socket(SERVER_PORT);
    for protocol in ["tcp", "udp"] {
        let n = effort.round_trips.to_string();
        let upper = protocol.to_uppercase();
        let before = session.cpu();
        let done = session.client().peer(&["ping-pong", protocol, &server, &n]);
        let used = session.cpu() - before;
        let mut numbers = done.out.split_whitespace().map(|n| n.parse::<f64>().ok());
        let (Some(Some(median)), Some(Some(p99))) = (numbers.next(), numbers.next()) else {
            collector.fail(format!("round trip {upper}"), done);
            continue;
        };
        let (median, p99) = (median / 1e3, p99 / 1e3);
        let id = format!("latency.{protocol}.1");
        let metric = Metric::cost(format!("{id}.p50"), format!("round trip {upper}, median"), "µs");
        let sample = collector.add(metric.clone(), median);
        sample.distribution(vec![(50.0, median), (99.0, p99)]);
        collector
            .add(Metric::cost(format!("{id}.p99"), format!("round trip {upper}, 99 %"), "µs"), p99);
        collector.add_cpu(&metric, used, f64::from(effort.round_trips) / 1e3, "s/1000");
    }
}
