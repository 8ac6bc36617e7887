//! Connect, ask, answer, close: one after the other, and 16 at a time; and 100,000 of them, of which none may fail.
//!
//! The server closes first, for all contenders alike: what lingers in TIME_WAIT is on its side, takes no port of
//! those that a client or a translator chooses from, and lets a new connection of the same ends pass.

use std::time::Duration;

use usernet_lab::{Lab, Namespace};

use super::forward::{self, SERVED_PORT};
use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::contender::Contender;
use crate::load::Tally;
use crate::session::{Family, Joined, SERVER_PORT, Session};

/// Bytes that a connection fetches.
const FETCH_BYTES: &str = "100";
/// Of the run that counts what fails.
const MANY: u64 = 100_000;
/// How long that may take: a peer that is slow gets as far as it gets.
const MANY_TIME_MAX: Duration = Duration::from_secs(12);
/// For the helper's last connection, and for what is left of a machine that is busy.
const GRACE: Duration = Duration::from_secs(20);

/// From the guest.
pub(crate) fn outbound(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    let server = Family::V4.socket(SERVER_PORT);
    Storms { session, effort, clients: session.client(), server, way: ("out", "out") }
        .run(collector);
}

/// To the guest, from a host's address that is not loopback: through the link.
pub(crate) fn inbound(
    lab: &Lab,
    contender: &Contender,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    let session = match forward::start(lab, contender, super::USUAL_MTU) {
        Ok(session) => session,
        Err(why) => return collector.fail("connections in", why),
    };
    let _served = session.client().serve(&[&format!("0.0.0.0:{SERVED_PORT}")]);
    let server = Family::V4.socket(SERVED_PORT);
    let clients = lab.host();
    Storms { session: &session, effort, clients, server, way: ("in", "in") }.run(collector);
}

/// Several storms of one way.
pub(super) struct Storms<'a> {
    pub(super) session: &'a Session<'a>,
    pub(super) effort: &'a Effort,
    /// Where the clients are.
    pub(super) clients: &'a Namespace,
    pub(super) server: String,
    /// The clients' way to it: in ids, and in labels.
    pub(super) way: (&'a str, &'a str),
}

impl Storms<'_> {
    fn run(&self, collector: &mut Collector<'_>) {
        for clients in [1, 16] {
            self.rate(clients, collector);
        }
        if !self.effort.is_quick && collector.round == 0 {
            self.many(16, collector);
        }
    }

    /// How many in a second.
    pub(super) fn rate(&self, clients: u32, collector: &mut Collector<'_>) {
        let (id, way) = self.way;
        let id = format!("connections.{id}.{clients}");
        let metric = Metric::rate(id.clone(), format!("connections {way} ×{clients}"), "1/s");
        let before = self.session.cpu();
        let tally = match self.storm(clients, self.effort.load, u64::MAX) {
            Ok(tally) => tally,
            Err(why) => return collector.fail(metric.label, why),
        };
        let used = self.session.cpu() - before;
        collector.add_cpu(&metric, used, tally.done as f64 / 1e3, "s/1000");
        tally.note_errors(collector.add(metric, tally.rate));
        if let Some(p99) = tally.percentile(99.0) {
            let label = format!("connection {way} ×{clients}, 99 %");
            tally.note(collector.add(Metric::cost(format!("{id}.p99"), label, "µs"), p99));
        }
    }

    /// How many of very many fail.
    fn many(&self, clients: u32, collector: &mut Collector<'_>) {
        let (id, way) = self.way;
        let metric = Metric::cost(
            format!("connections.{id}.{clients}.failed"),
            format!("failed of {MANY} connections {way} ×{clients}"),
            "1",
        );
        match self.storm(clients, MANY_TIME_MAX, MANY) {
            Ok(tally) => {
                let tried = tally.done + tally.failed();
                let sample = collector.add(metric, tally.failed() as f64);
                sample.also("tried", tried as f64);
                tally.note_errors(sample);
            }
            Err(why) => collector.fail(metric.label, why),
        }
    }

    fn storm(&self, clients: u32, time: Duration, tries_max: u64) -> Result<Tally, String> {
        let (clients, tries_max) = (clients.to_string(), tries_max.to_string());
        let milliseconds = time.as_millis().to_string();
        let storm = ["storm", &self.server, &clients, FETCH_BYTES, &milliseconds, &tries_max];
        Tally::of(&self.clients.peer_within(time + GRACE, &storm))
    }
}
