//! TCP streams of small writes, each sent at once (`TCP_NODELAY`).

use crate::Effort;
use crate::cases::iperf::{Direction, Transfer};
use crate::collector::{Collector, Metric};
use crate::session::{Family, Session};

pub(crate) fn run(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    let sizes: &[&str] = if effort.is_quick { &["1024"] } else { &["64", "1024"] };
    for direction in Direction::BOTH {
        for bytes in sizes {
            let way = direction.name();
            let metric = Metric::rate(
                format!("small-writes.{way}.{bytes}"),
                format!("writes of {bytes} B {way}"),
                "Gbit/s",
            );
            let (family, time) = (Family::V4, effort.bulk);
            let options = ["-N", "-l", bytes];
            let transfer = Transfer { family, direction, flows: 1, time, options: &options };
            transfer.measure(session, collector, &[metric]);
        }
    }
}
