//! Bulk TCP, both ways.

use std::time::Duration;

use crate::Effort;
use crate::cases::{MTUS, USUAL_MTU};
use crate::collector::{Collector, Metric};
use crate::contender::{Contender, Kind};
use crate::session::{Family, Session};

/// The way bytes go.
#[derive(Clone, Copy, Debug)]
enum Direction {
    /// From the guest to the host.
    Out,
    /// From the host to the guest.
    In,
}

pub(crate) fn wants(contender: &Contender, mtu: u16, _: &Effort) -> bool {
    match contender.kind {
        Kind::Loopback => mtu == USUAL_MTU,
        Kind::Usernetd(_) | Kind::Slirp4netns | Kind::Pasta => mtu != MTUS[1],
    }
}

pub(crate) fn run(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    for direction in [Direction::Out, Direction::In] {
        for flows in [1, 4] {
            one(session, direction, flows, Family::V4, effort.bulk, collector);
        }
        if !effort.is_quick {
            one(session, direction, 1, Family::V6, effort.bulk, collector);
        }
    }
}

fn one(
    session: &Session<'_>,
    direction: Direction,
    flows: u32,
    family: Family,
    time: Duration,
    collector: &mut Collector<'_>,
) {
    let (seconds, parallel) = (time.as_secs().to_string(), flows.to_string());
    let mut run = vec!["iperf3", "-J", "-c", family.host(), "-t", &seconds, "-P", &parallel];
    let name = match direction {
        Direction::Out => "out",
        Direction::In => {
            run.push("-R");
            "in"
        }
    };
    let mtu = session.mtu;
    let suffix = match family {
        Family::V4 => "",
        Family::V6 => ", IPv6",
    };
    let metric = Metric::rate(
        format!("stream.{name}.{flows}.{mtu}.{}", family.name()),
        format!("TCP {name} ×{flows}, MTU {mtu}{suffix}"),
        "Gbit/s",
    );
    if let Err(why) = session.has(family) {
        return collector.fail(metric.label, why);
    }
    let before = session.cpu();
    let done = session.client().run_within(time + Duration::from_secs(15), &run);
    let used = session.cpu() - before;
    let Ok(report) = serde_json::from_str::<serde_json::Value>(&done.out) else {
        return collector.fail(metric.label, done);
    };
    let sum = &report["end"]["sum_received"];
    let Some(rate) = sum["bits_per_second"].as_f64() else {
        return collector.fail(metric.label, &report["error"]);
    };
    collector.add_cpu(&metric, used, sum["bytes"].as_f64().unwrap_or(0.0) / 1e9, "s/GB");
    let sample = collector.add(metric, rate / 1e9);
    sample.also("retransmits", report["end"]["sum_sent"]["retransmits"].as_f64().unwrap_or(0.0));
}
