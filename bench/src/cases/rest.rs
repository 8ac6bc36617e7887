//! What a contender costs when nothing happens, and with many flows.

use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use usernet_lab::{Lab, Running, wait_until};

use crate::Effort;
use crate::cases::USUAL_MTU;
use crate::collector::{Collector, Metric};
use crate::contender::Contender;
use crate::cpu;
use crate::session::{Joined, Session};

/// The first port of the server for many connections. Each session has its own: a host has 28,000 ports for one server, and
/// those of the connections of whoever had a turn before are not free again within a minute (`TIME_WAIT`).
const PORT_FIRST: u16 = 7100;
static SESSIONS: AtomicU16 = AtomicU16::new(0);
/// How long connections may take until all of them are there, and in a smoke test.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_QUICK: Duration = Duration::from_secs(8);
/// Instances of a contender at once.
const INSTANCES: usize = 100;

/// Before anything was done with the network.
pub(crate) fn idle(session: &Session<'_>, _: &Effort, collector: &mut Collector<'_>) {
    if session.is_translated() {
        let ready = Metric::cost("rest.ready", "time to ready", "ms");
        collector.add(ready, session.ready_after.as_secs_f64() * 1e3);
        let memory = Metric::cost("rest.memory.idle", "memory, idle", "MiB");
        collector.add(memory, session.memory_kib() / 1024.0);
    }
}

/// After everything was done with it.
pub(crate) fn afterwards(session: &Session<'_>, _: &Effort, collector: &mut Collector<'_>) {
    if session.is_translated() {
        let memory = Metric::cost("rest.memory.afterwards", "memory, afterwards", "MiB");
        collector.add(memory, session.memory_kib() / 1024.0);
    }
}

/// At rest, and with many flows.
pub(crate) fn many(
    lab: &Lab,
    contender: &Contender,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    let session = match Session::start(lab, contender, USUAL_MTU) {
        Ok(session) => session,
        Err(why) => return collector.fail("many flows", why),
    };
    if !session.is_translated() {
        return;
    }
    wake_ups(&session, effort, collector);
    let helper = lab.program("usernet-lab");
    let port = PORT_FIRST + SESSIONS.fetch_add(1, Ordering::Relaxed) % 1_000;
    let address = format!("{}:{port}", usernet_lab::WAN4);
    let _server = lab.host().spawn(&[&helper, "many", "serve", &address]).wait_for("ready");
    let guest = session.client();
    let memory = |collector: &mut Collector<'_>, id, label: &str, client: Running| {
        let metric = Metric::cost(id, label, "MiB");
        let patience = if effort.is_quick { PATIENCE_QUICK } else { PATIENCE };
        match ready(client, patience) {
            Ok(client) => {
                // Pages that opening needed, and holding does not, go back within a second or two.
                let settle = if effort.is_quick { 500 } else { 2500 };
                thread::sleep(Duration::from_millis(settle));
                collector.add(metric, session.memory_kib() / 1024.0);
                drop(client);
            }
            Err(why) => collector.fail(label, why),
        }
    };
    let idle = guest.spawn(&[&helper, "many", "hold", &address, "10000"]);
    memory(collector, "rest.memory.10000", "memory, 10,000 idle flows", idle);
    let busy = guest.spawn(&[&helper, "many", "busy", &address, "1000", "16384"]);
    memory(collector, "rest.memory.1000-busy", "memory, 1,000 busy flows", busy);
    drop(session);
    if !effort.is_quick && collector.round == 0 {
        instances(lab, contender, collector);
    }
}

/// Waits until all connections are there.
fn ready(mut client: Running, patience: Duration) -> Result<Running, String> {
    let is_over = wait_until(patience, || client.out().contains("ready") || !client.is_running());
    if client.out().contains("ready") && client.is_running() {
        return Ok(client);
    }
    let why = if is_over { "" } else { "not all of them in time: " };
    Err(format!("{why}{}", client.done_within(Duration::ZERO)))
}

/// How often its threads woke up while nothing happened.
fn wake_ups(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    // The guest's kernel introduces itself in its first seconds.
    thread::sleep(Duration::from_millis(if effort.is_quick { 500 } else { 4000 }));
    let time = Duration::from_secs(if effort.is_quick { 1 } else { 4 });
    let switches = || session.processes().iter().map(|pid| cpu::switches(*pid)).sum::<u64>();
    let before = switches();
    thread::sleep(time);
    let woke = switches().saturating_sub(before);
    let metric = Metric::cost("rest.wake-ups", "wake-ups, idle", "1/s");
    collector.add(metric, woke as f64 / time.as_secs_f64());
}

/// Many at once, each with a guest of its own.
fn instances(lab: &Lab, contender: &Contender, collector: &mut Collector<'_>) {
    let sessions = (0..INSTANCES).map(|_| Session::start(lab, contender, USUAL_MTU));
    let label = "memory of 100 instances";
    match sessions.collect::<Result<Vec<_>, _>>() {
        Ok(sessions) => {
            let kib: f64 = sessions.iter().map(Session::memory_kib).sum();
            collector.add(Metric::cost("rest.memory.instances", label, "MiB"), kib / 1024.0);
        }
        Err(why) => collector.fail(label, why),
    }
}
