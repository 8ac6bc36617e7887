//! What is measured: groups of cases, each in a file of its own.
//!
//! A group's entry point is called once per round, contender and MTU of the link ([`Run::InSession`]), with a guest
//! whose network is ready; or once per round and contender ([`Run::Alone`]), when it wants other sessions
//! than that. It gives what it finds to the [`Collector`]; what fails, it tells there too.

use usernet_lab::Lab;

use crate::Effort;
use crate::collector::Collector;
use crate::contender::Contender;
use crate::session::Session;

mod connections;
mod forward;
mod http;
mod iperf;
mod latency;
mod paths;
mod rest;
mod small_writes;
mod stream;
mod tunnel;
mod udp;

/// Sizes of the link: what the Internet has, jumbo frames, and the largest that the peers allow.
pub(crate) const MTUS: [u16; 3] = [1500, 9000, 65_520];
/// The one for everything that does not depend on it.
pub(crate) const USUAL_MTU: u16 = MTUS[0];

/// The group of cases that has contenders of its own.
pub(crate) const TUNNEL: &str = "tunnel";

/// The group of cases that takes minutes.
pub(crate) const PATHS: &str = "paths";

/// Cases that are selected together.
pub(crate) struct Group {
    /// For `--cases`, and in the report.
    pub(crate) name: &'static str,
    /// For `--help`.
    pub(crate) about: &'static str,
    pub(crate) run: Run,
}

/// When a group's cases run.
pub(crate) enum Run {
    /// In a session of these contenders at these MTUs.
    InSession(fn(&Contender, u16, &Effort) -> bool, fn(&Session<'_>, &Effort, &mut Collector<'_>)),
    /// In sessions of its own.
    Alone(fn(&Lab, &Contender, &Effort, &mut Collector<'_>)),
}

const CONNECTIONS: &str =
    "connect, ask, answer, close: 1 and 16 at a time, from the guest and to it";

/// In the order in which they run.
pub(crate) const GROUPS: [Group; 13] = [
    Group {
        name: "rest",
        about: "time to ready, wake-ups, memory idle, with many flows, and of many instances",
        run: Run::InSession(usual, rest::idle),
    },
    Group {
        name: "latency",
        about: "round trips of 1 B and 1 KB, TCP and UDP",
        run: Run::InSession(usual, latency::run),
    },
    Group {
        name: "connections",
        about: CONNECTIONS,
        run: Run::InSession(usual, connections::outbound),
    },
    Group {
        name: "http",
        about: "HTTP requests over connections that stay",
        run: Run::InSession(usual, http::run),
    },
    Group {
        name: "stream",
        about: "TCP both ways: 1, 4 and 16 flows at MTU 1500 and 65520, 1 and 16 at 9000; IPv6: 1 flow",
        run: Run::InSession(stream::wants, stream::run),
    },
    Group {
        name: "small-writes",
        about: "TCP both ways in writes of 64 and 1024 bytes",
        run: Run::InSession(usual, small_writes::run),
    },
    Group {
        name: "rest",
        about: "time to ready, wake-ups, memory idle, with many flows, and of many instances",
        run: Run::InSession(usual, rest::afterwards),
    },
    Group { name: "connections", about: CONNECTIONS, run: Run::Alone(connections::inbound) },
    Group { name: "forward", about: "forwarded ports", run: Run::Alone(forward::run) },
    Group {
        name: "udp",
        about: "floods of datagrams and trains, both ways and through a forwarded port",
        run: Run::Alone(udp::run),
    },
    Group {
        name: "rest",
        about: "time to ready, wake-ups, memory idle, with many flows, and of many instances",
        run: Run::Alone(rest::many),
    },
    Group {
        name: TUNNEL,
        about: "WireGuard between two namespaces, both ends alike: TCP, datagrams, round trips",
        run: Run::Alone(tunnel::run),
    },
    Group {
        name: PATHS,
        about: "paths with delay and loss; in the first round only, unless they are all there is",
        run: Run::Alone(paths::run),
    },
];

/// Once, at the usual MTU.
fn usual(_: &Contender, mtu: u16, _: &Effort) -> bool {
    mtu == USUAL_MTU
}

impl Group {
    /// Whether it is run again for another congestion control.
    pub(crate) fn depends_on_congestion(&self) -> bool {
        ["stream", "small-writes", "forward", "paths"].contains(&self.name)
    }

    /// Whether it is part of the curve over the number of workers.
    pub(crate) fn depends_on_workers(&self) -> bool {
        ["stream", "connections", "http"].contains(&self.name)
    }
}

/// A group's name, from the command line.
pub(crate) fn parse_name(text: &str) -> Result<&'static str, String> {
    let known = GROUPS.iter().map(|group| group.name).find(|name| *name == text);
    known.ok_or_else(|| "there is no such group; see --help".to_owned())
}

/// The groups, for `--help`.
pub(crate) fn help() -> String {
    let mut text = String::from("Groups of cases:\n");
    for (at, group) in GROUPS.iter().enumerate() {
        if GROUPS[..at].iter().all(|other| other.name != group.name) {
            text += &format!("  {:<14}{}\n", group.name, group.about);
        }
    }
    text
}
