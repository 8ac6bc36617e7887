//! What a contender costs when nothing happens.

use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::session::Session;

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
