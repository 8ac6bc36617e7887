//! Paths with delay and loss behind the host: how much of what the host's own sockets reach there remains for a guest.
//!
//! The loopback contender is the host itself. A path is a cable of our own (`usernet_lab::helper::cable`) with a queue
//! of once its bandwidth-delay product. Losses come from a seed, for all contenders the same one.

use std::time::Duration;

use usernet_lab::{Backend, Lab, Namespace, wait_until};

use crate::Effort;
use crate::cases::USUAL_MTU;
use crate::collector::{Collector, Metric};
use crate::contender::{Contender, Kind};
use crate::session::{Joined, Session};

/// Bits per second: what a cable in user space carries beside everything else on a small machine.
const RATE: u64 = 500_000_000;
/// Bytes of a frame, for the length of the queue.
const FRAME_BYTES: u64 = 1514;
/// The far end.
const FAR: &str = "198.51.100.2";
const PORT: u16 = 5202;
/// Round trips in milliseconds, and losses in ten thousand.
const DELAYS_MS: [u64; 3] = [1, 20, 100];
const LOSSES: [u64; 3] = [0, 10, 100];
/// The path of a smoke test.
const QUICK: (u64, u64) = (20, 10);

pub(crate) fn run(
    lab: &Lab,
    contender: &Contender,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    // They take long, and both backends leave it to the same sockets.
    let is_over = collector.round > 0 && !effort.repeats_long;
    if is_over || contender.kind == Kind::Usernetd(Backend::Epoll) {
        return;
    }
    let session = match Session::start(lab, contender, USUAL_MTU) {
        Ok(session) => session,
        Err(why) => return collector.fail("paths", why),
    };
    if effort.is_quick {
        return path(&session, QUICK.0, QUICK.1, 1, collector);
    }
    for delay_ms in DELAYS_MS {
        for loss in LOSSES {
            path(&session, delay_ms, loss, if delay_ms == 100 { 6 } else { 4 }, collector);
        }
    }
}

/// Both directions of one path.
fn path(
    session: &Session<'_>,
    delay_ms: u64,
    loss: u64,
    seconds: u64,
    collector: &mut Collector<'_>,
) {
    let far = session.lab.router();
    let in_flight = RATE / 8 * delay_ms / 1000 / FRAME_BYTES;
    let faults = [
        format!("delay-us={}", delay_ms * 1000 / 2),
        format!("rate={RATE}"),
        format!("queue={}", in_flight * 3 / 2 + 100),
        format!("loss={loss}"),
        "seed=7".to_owned(),
    ];
    let faults: Vec<&str> = faults.iter().map(String::as_str).collect();
    let _cable = session.lab.cable(session.lab.host(), &far, &faults);
    let _server = far.spawn(&["iperf3", "-s", "-p", &PORT.to_string()]);
    let percent = loss as f64 / 100.0;
    let place = format!("{delay_ms} ms, {percent} % loss");
    if !wait_until(Duration::from_secs(5), || far.listens_on(PORT)) {
        return collector.fail(place, "iperf3 does not listen");
    }
    for (direction, option) in [("out", None), ("in", Some("-R"))] {
        let label = format!("path {direction}, {place}");
        let metric =
            Metric::rate(format!("paths.{direction}.{delay_ms}ms.{loss}"), label, "Mbit/s");
        match transfer(session.client(), option, seconds) {
            Ok((rate, retransmits)) => {
                collector.add(metric, rate / 1e6).also("retransmits", retransmits);
            }
            Err(why) => collector.fail(metric.label, why),
        }
    }
}

/// Bits per second, and segments sent again by the sender.
fn transfer(client: &Namespace, option: Option<&str>, seconds: u64) -> Result<(f64, f64), String> {
    let (port, time) = (PORT.to_string(), seconds.to_string());
    let mut run = vec!["iperf3", "-J", "-c", FAR, "-p", &port, "-t", &time];
    run.extend(option);
    let done = client.run_within(Duration::from_secs(seconds + 15), &run);
    let report: serde_json::Value =
        serde_json::from_str(&done.out).map_err(|_| done.to_string())?;
    let end = &report["end"];
    let rate = end["sum_received"]["bits_per_second"].as_f64();
    let again = end["sum_sent"]["retransmits"].as_f64().unwrap_or(0.0);
    rate.map(|rate| (rate, again)).ok_or_else(|| report["error"].to_string())
}
