//! What is replayed, by name. Each case holds a conversation, and makes sure that what it is about took place.

mod datagrams;
mod drops;
mod scale;
mod tcp;

use super::Log;

/// A conversation.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name: direction as the guest sees it.
    pub name: &'static str,
    /// What is counted, in the singular.
    pub unit: &'static str,
    /// Holds it.
    pub record: fn() -> Log,
}

const fn case(name: &'static str, unit: &'static str, record: fn() -> Log) -> Case {
    Case { name, unit, record }
}

/// All of them.
pub const ALL: &[Case] = &[
    case("tcp out, super-frames", "frame", tcp::out_super_frames),
    case("tcp out, MTU frames", "frame", tcp::out_frames),
    case("tcp out, MTU frames, IPv6", "frame", tcp::out_frames_v6),
    case("tcp out, checksum verified", "frame", tcp::out_frames_verified),
    case("tcp in, super-frames", "frame", tcp::in_super_frames),
    case("tcp in, MTU frames", "frame", tcp::in_frames),
    case("tcp request and response", "exchange", tcp::requests),
    case("tcp connection out", "connection", tcp::connections_out),
    case("tcp connection in", "connection", tcp::connections_in),
    case("tcp connection in, spliced", "connection", tcp::connections_spliced),
    case("super-frame cut for the MTU", "frame made", tcp::cut),
    case("udp out", "datagram", datagrams::udp_out),
    case("udp out, trains of 40", "train", datagrams::udp_out_trains),
    case("udp in", "datagram", datagrams::udp_in),
    case("udp in, trains of 40", "train", datagrams::udp_in_trains),
    case("udp mapping", "mapping", datagrams::udp_mappings),
    case("udp request through a forward", "exchange", datagrams::udp_forward),
    case("dns query and answer", "exchange", datagrams::dns),
    case("ping of a host", "exchange", datagrams::ping),
    case("ping of the gateway", "exchange", datagrams::ping_gateway),
    case("drop: malformed", "frame", drops::malformed),
    case("drop: wrong checksum", "frame", drops::wrong_checksum),
    case("drop: multicast", "frame", drops::multicast),
    case("drop: segment of no flow", "frame", drops::no_flow),
    case("tcp out, 1,000 flows in turn", "frame", scale::out_of_1_000_flows),
    case("tcp out, 10,000 flows in turn", "frame", scale::out_of_10_000_flows),
    case("tcp in, 10,000 flows in turn", "frame", scale::in_of_10_000_flows),
    case("udp out, 10,000 mappings in turn", "datagram", scale::udp_out_of_10_000_mappings),
    case("a millisecond, 10,000 idle flows", "tick", scale::ticks_with_10_000_flows),
    case("tcp connection in, 1,000 forwards", "connection", scale::connections_of_1_000_forwards),
    case("udp request, 1,000 forwards", "exchange", scale::udp_of_1_000_forwards),
    case("udp out past 1,000 open ports", "datagram", scale::udp_past_1_000_ports),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Replay;

    #[test]
    fn a_replay_does_what_was_recorded() {
        for case in ALL {
            let mut replay = Replay::new((case.record)());
            replay.run();
            replay.check();
        }
    }

    #[test]
    #[should_panic(expected = "as many ops as in the recording")]
    fn a_replay_that_does_nothing_is_noticed() {
        Replay::new((ALL[0].record)()).check();
    }
}
