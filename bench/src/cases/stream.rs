//! Bulk TCP, both ways.

use crate::Effort;
use crate::cases::iperf::{Direction, Transfer};
use crate::cases::{MTUS, USUAL_MTU};
use crate::collector::{Collector, Metric};
use crate::contender::{Contender, Kind};
use crate::session::{Family, Session};

/// The link's largest size.
const LARGEST_MTU: u16 = MTUS[2];

pub(crate) fn wants(contender: &Contender, mtu: u16, effort: &Effort) -> bool {
    match contender.kind {
        // It has no link: once for all sizes, with the last of them.
        Kind::Loopback => mtu == LARGEST_MTU,
        Kind::Veth
        | Kind::Bare
        | Kind::Usernetd(_)
        | Kind::Slirp4netns
        | Kind::Pasta
        | Kind::Tunnel(_) => !flows(mtu, Family::V4, effort).is_empty(),
    }
}

/// How many flows at a time are measured.
fn flows(mtu: u16, family: Family, effort: &Effort) -> &'static [u32] {
    match (effort.is_quick, family) {
        (true, Family::V4) if mtu == USUAL_MTU => &[1, 4],
        (true, Family::V4) if mtu == LARGEST_MTU => &[1],
        (true, Family::V6) if mtu == USUAL_MTU => &[1],
        (true, Family::V4 | Family::V6) => &[],
        (false, Family::V4 | Family::V6) => &[1, 4, 16],
    }
}

pub(crate) fn run(session: &Session<'_>, effort: &Effort, collector: &mut Collector<'_>) {
    let families: &[Family] = match session.contender.kind {
        Kind::Bare => &[Family::V4],
        _ => &[Family::V4, Family::V6],
    };
    for &family in families {
        for direction in Direction::BOTH {
            if session.contender.kind == Kind::Loopback {
                for n in [1, 4, 16] {
                    let is_in = |mtu: &u16| flows(*mtu, family, effort).contains(&n);
                    let mtus: Vec<u16> = MTUS.into_iter().filter(is_in).collect();
                    one(session, effort, collector, (family, direction, n), &mtus);
                }
            } else {
                for n in flows(session.mtu, family, effort) {
                    one(session, effort, collector, (family, direction, *n), &[session.mtu]);
                }
            }
        }
    }
}

/// One transfer. It stands for all these sizes of the link.
fn one(
    session: &Session<'_>,
    effort: &Effort,
    collector: &mut Collector<'_>,
    (family, direction, flows): (Family, Direction, u32),
    mtus: &[u16],
) {
    let way = direction.name();
    let version = match family {
        Family::V4 => "",
        Family::V6 => ", IPv6",
    };
    let metrics = mtus.iter().map(|mtu| {
        let id = format!("stream.{way}.{flows}.{mtu}.{}", family.name());
        Metric::rate(id, format!("TCP {way} ×{flows}, MTU {mtu}{version}"), "Gbit/s")
    });
    let metrics: Vec<Metric> = metrics.collect();
    if !metrics.is_empty() {
        let time = effort.bulk;
        let transfer = Transfer { family, direction, flows, time, options: &[] };
        transfer.measure(session, collector, &metrics);
    }
}
