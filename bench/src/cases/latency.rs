//! Round trips: a question, its answer, the next question, by one flow and by several at once.

use std::time::Duration;

use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::contender::Kind;
use crate::load::Tally;
use crate::session::{Family, Joined, SERVER_PORT, Session};

/// Protocol, flows, bytes each way.
const CASES: [(&str, u32, u32); 6] = [
    ("tcp", 1, 1),
    ("tcp", 1, 1024),
    ("tcp", 16, 1),
    ("tcp", 16, 1024),
    ("udp", 1, 1),
    ("udp", 1, 1024),
];

pub(crate) fn run(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    for (protocol, flows, bytes) in CASES {
        if protocol == "udp" && session.contender.kind == Kind::Bare {
            continue;
        }
        let id = format!("latency.{protocol}.{flows}.{bytes}");
        let label = format!("round trip {} ×{flows}, {bytes} B", protocol.to_uppercase());
        measure(session, effort.load, (protocol, flows, bytes), (&id, &label), collector);
    }
}

/// One of them, under this id and label.
pub(super) fn measure(
    session: &impl Joined,
    time: Duration,
    case: (&str, u32, u32),
    (id, label): (&str, &str),
    collector: &mut Collector<'_>,
) {
    if let Err(why) = one(session, time, case, (id, label), collector) {
        collector.fail(label, why);
    }
}

fn one(
    session: &impl Joined,
    time: Duration,
    (protocol, flows, bytes): (&str, u32, u32),
    (id, label): (&str, &str),
    collector: &mut Collector<'_>,
) -> Result<(), String> {
    let server = format!("{}:{SERVER_PORT}", session.address(Family::V4)?);
    let (flows, bytes) = (flows.to_string(), bytes.to_string());
    let milliseconds = time.as_millis().to_string();
    let before = session.cpu();
    let ping_pong = ["ping-pong", protocol, &server, &flows, &bytes, &milliseconds];
    let done = session.client().peer(&ping_pong);
    let used = session.cpu() - before;
    let tally = Tally::of(&done)?;
    let (Some(median), Some(p99)) = (tally.percentile(50.0), tally.percentile(99.0)) else {
        return Err(format!("no answer: {}", tally.first_error.unwrap_or_default()));
    };
    let metric = Metric::cost(format!("{id}.p50"), format!("{label}, median"), "µs");
    tally.note(collector.add(metric, median));
    collector.add(Metric::cost(format!("{id}.p99"), format!("{label}, 99 %"), "µs"), p99);
    let metric = Metric::rate(format!("{id}.rate"), format!("{label}, per second"), "1/s");
    collector.add_cpu(&metric, used, tally.done as f64 / 1e3, "s/1000");
    collector.add(metric, tally.rate);
    Ok(())
}
