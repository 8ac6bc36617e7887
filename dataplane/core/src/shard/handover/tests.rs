//! Three shards share a guest: wherever something comes, its owner deals with it, and nobody else.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::config::{Config, MacAddr, ShardId, Share};
use crate::counters::Counter;
use crate::op::{AcceptedId, Checksum, ForwardId, Gso, Input, Offload, Op};
use crate::ownership::Ownership;
use crate::packet::build::{HOP_LIMIT, IpHeader};
use crate::packet::checksum::Sum;
use crate::packet::protocol;
use crate::rules::{Access, HostLoopback, Protocol, Rules};
use crate::testing::{World, at, forward, fragment_frame, ip_frame, udp_frame, udp_segment};

const SHARDS: u8 = 3;
const REMOTE: &str = "192.0.2.7:80";
const GUEST_END: &str = "10.0.2.100:80";

/// Three shards of one guest, with a TCP forward of port 8080.
fn fleet() -> Vec<World> {
    let whole = Config::example();
    (0..SHARDS)
        .map(|own| {
            let config = whole.shared_by(Share::among(SHARDS, ShardId(own)));
            let access = Access::new(&config, HostLoopback::None);
            let forward = forward(Protocol::Tcp, (8080, 8080), 80);
            let resolvers = vec![at("192.0.2.53:53")];
            let rules = Rules::new(&config, &access, vec![forward], resolvers);
            World::with(config, rules)
        })
        .collect()
}

fn guest(port: u16) -> SocketAddr {
    SocketAddr::new(at("10.0.2.100:0").ip(), port)
}

fn ownership(fleet: &[World]) -> Ownership {
    Ownership::new(fleet[0].shard.config())
}

/// Ops that are no news about the neighbour.
fn without_news(ops: Vec<Op>) -> Vec<Op> {
    ops.into_iter().filter(|op| !matches!(op, Op::TellNeighbor { .. })).collect()
}

/// Shows a frame to one shard, and what that hands over to the owner: who it was in the end, and its ops.
fn deliver(fleet: &mut [World], first: u8, frame: &[u8]) -> (u8, Vec<Op>) {
    let world = &mut fleet[usize::from(first)];
    let ops = without_news(world.frame(frame, Offload::default()));
    let Some((to, bytes, offload)) = world.handed_over.pop_front() else { return (first, ops) };
    assert_eq!(ops, [], "what is handed over has no other effect");
    assert_eq!(offload.checksum, Checksum::Valid, "it is summed up once");
    let owner = &mut fleet[usize::from(to.0)];
    let ops = without_news(owner.handed(&bytes, offload));
    assert!(owner.handed_over.is_empty(), "the owner keeps it");
    (to.0, ops)
}

fn tcp_frame(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[12..14].copy_from_slice(&[0x50, flags]);
    let sum = Sum::pseudo_header(from.ip(), to.ip(), protocol::TCP, tcp.len()).bytes(&tcp);
    tcp[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
    ip_frame(from, to, protocol::TCP, 64, &tcp)
}

#[test]
fn a_connection_is_opened_by_its_owner_wherever_the_syn_comes() {
    let mut owners = [0; SHARDS as usize];
    for port in 40_000..40_060 {
        for first in 0..SHARDS {
            let mut fleet = fleet();
            let frame = tcp_frame(guest(port), at(REMOTE), 2);
            let (owner, ops) = deliver(&mut fleet, first, &frame);
            assert!(matches!(ops[..], [Op::Connect { to, .. }] if to == at(REMOTE)), "{ops:?}");
            assert_eq!(ShardId(owner), ownership(&fleet).of_connection(guest(port), at(REMOTE)));
            let handed = fleet[usize::from(first)].shard.counters().value(Counter::HandedOver);
            assert_eq!(handed, u64::from(owner != first), "hand-overs are counted");
            let taken: u64 = fleet
                .iter()
                .map(|world| world.shard.counters().value(Counter::FramesFromGuest))
                .sum();
            assert_eq!(taken, 1, "a frame is counted once");
            owners[usize::from(owner)] += 1;
        }
    }
    assert!(owners.iter().all(|&n| n > 20), "every shard has its part: {owners:?}");
}

#[test]
fn a_udp_port_has_one_mapping_wherever_it_sends() {
    let mut fleet = fleet();
    let mut opened = 0;
    for first in 0..SHARDS {
        for remote in ["192.0.2.1:9", "192.0.2.2:9", "198.51.100.3:7", "10.0.2.3:53"] {
            let frame = udp_frame(guest(40_000), at(remote), 64, b"to anybody");
            let (owner, ops) = deliver(&mut fleet, first, &frame);
            assert_eq!(ShardId(owner), ownership(&fleet).of_port(guest(40_000)));
            if remote != "10.0.2.3:53" {
                opened += ops.iter().filter(|op| matches!(op, Op::Open { .. })).count();
            }
        }
    }
    assert_eq!(opened, 1, "endpoint-independent mapping");
    assert_eq!(fleet.iter().map(|world| world.shard.flows().count()).sum::<usize>(), 1);
}

#[test]
fn fragments_meet_at_the_first_shard_and_go_on_as_one_datagram() {
    for (from, to) in
        [("10.0.2.100:40000", "192.0.2.7:5000"), ("[fd00::64]:40000", "[2001:db8::7]:5000")]
    {
        for (port, len) in [(40_000, 3_000), (40_001, 65_507), (40_002, 9), (40_003, 40_000)] {
            let (mut fleet, mut from) = (fleet(), at(from));
            from.set_port(port);
            let owner = ownership(&fleet).of_port(from);
            let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let segment = udp_segment(from, at(to), &payload);
            let step = 8 * 170;
            for (n, offset) in (0..segment.len()).step_by(step).enumerate() {
                let end = segment.len().min(offset + step);
                let more = end < segment.len();
                let part = &segment[offset..end];
                let frame = fragment_frame(from, at(to), 7, offset, more, part);
                let first = n % usize::from(SHARDS);
                fleet[first].frame(&frame, Offload::default());
                if first != 0
                    && let Some((to, bytes, offload)) = fleet[first].handed_over.pop_front()
                {
                    assert_eq!(to, ShardId::FIRST);
                    fleet[0].handed(&bytes, offload);
                }
            }
            if let Some((to, bytes, offload)) = fleet[0].handed_over.pop_front() {
                assert_eq!(to, owner);
                fleet[usize::from(to.0)].handed(&bytes, offload);
            }
            let sent = fleet[usize::from(owner.0)].sent_to.pop_front().expect("it was sent on");
            assert_eq!((sent.0, sent.1), (at(to), payload), "{len} bytes from {from}");
        }
    }
}

#[test]
fn a_reassembled_datagram_without_a_buffer_for_its_headers_is_dropped_and_given_back() {
    let mut fleet = fleet();
    let port = (40_000..).find(|&p| ownership(&fleet).of_port(guest(p)) != ShardId::FIRST);
    let from = guest(port.expect("others own something"));
    let segment = udp_segment(from, at(REMOTE), &[7; 100]);
    fleet[0].limit_reserve(0);
    for (offset, more) in [(0, true), (64, false)] {
        let end = if more { 64 } else { segment.len() };
        let frame = fragment_frame(from, at(REMOTE), 1, offset, more, &segment[offset..end]);
        fleet[0].frame(&frame, Offload::default());
    }
    assert!(fleet[0].handed_over.is_empty());
    assert_eq!(fleet[0].shard.counters().value(Counter::DropNoBuffer), 1);
    assert_eq!(fleet[0].leases_out(), 0);
}

fn echo(to: &str, identifier: u16) -> Vec<u8> {
    let [a, b] = identifier.to_be_bytes();
    let mut message = [8, 0, 0, 0, a, b, 0, 9];
    let sum = Sum::default().bytes(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip_frame(guest(0), SocketAddr::new(to.parse().expect("ip"), 0), protocol::ICMP, 64, &message)
}

#[test]
fn echo_goes_by_its_identifier_and_the_gateways_is_answered_where_it_comes() {
    for identifier in 0..30 {
        for first in 0..SHARDS {
            let mut fleet = fleet();
            let (owner, ops) = deliver(&mut fleet, first, &echo("192.0.2.1", identifier));
            assert!(matches!(ops[..], [Op::Open { .. }]), "{ops:?}");
            let by_hash = ownership(&fleet).of_echo(guest(0).ip(), identifier);
            assert_eq!(ShardId(owner), by_hash);
            let (answered_by, _) = deliver(&mut fleet, first, &echo("10.0.2.2", identifier));
            assert_eq!(answered_by, first);
            assert_eq!(fleet[usize::from(first)].written.len(), 1);
        }
    }
}

#[test]
fn dhcp_and_neighbour_discovery_are_the_first_shards() {
    let mut fleet = fleet();
    for from in ["0.0.0.0:68", "10.0.2.100:68"] {
        let frame = udp_frame(at(from), at("255.255.255.255:67"), 64, &[0; 240]);
        assert_eq!(deliver(&mut fleet, 2, &frame).0, 0, "{from}");
    }
    let config = Config::example();
    let ip = IpHeader {
        source_mac: config.guest_mac,
        destination_mac: config.host_mac,
        source: "fe80::1".parse().expect("ip"),
        destination: "ff02::2".parse().expect("ip"),
        protocol: protocol::ICMPV6,
        tos: 0,
        hop_limit: 255,
    };
    let mut message = [133, 0, 0, 0, 0, 0, 0, 0];
    let sum = ip.pseudo_header(message.len()).bytes(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0; ip.bytes()];
    ip.write(&mut frame, message.len());
    frame.extend_from_slice(&message);
    assert_eq!(deliver(&mut fleet, 1, &frame).0, 0, "a router solicitation");
    let value = |n: usize| fleet[n].shard.counters().value(Counter::RouterAdvertisements);
    assert_eq!([value(0), value(1), value(2)], [1, 0, 0]);
}

#[test]
fn an_error_about_a_segment_goes_to_its_flow_and_others_are_counted_where_they_come() {
    for port in 50_000..50_010 {
        let fleet = &mut fleet();
        let owner = ownership(fleet).of_connection(guest(80), at(&format_end(port)));
        let mut quoted = vec![0; 8];
        quoted[0..2].copy_from_slice(&port.to_be_bytes());
        quoted[2..4].copy_from_slice(&80_u16.to_be_bytes());
        let mut message = vec![3, 3, 0, 0, 0, 0, 0, 0];
        message
            .extend(&ip_frame(at(&format_end(port)), guest(80), protocol::TCP, 64, &quoted)[14..]);
        let sum = Sum::default().bytes(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let frame = ip_frame(guest(0), at(&format_end(port)), protocol::ICMP, HOP_LIMIT, &message);
        for first in 0..SHARDS {
            assert_eq!(deliver(fleet, first, &frame).0, owner.0);
        }
        let heard = fleet[usize::from(owner.0)].shard.counters().value(Counter::ErrorsFromGuest);
        assert_eq!(heard, u64::from(SHARDS));
    }
}

fn format_end(port: u16) -> alloc::string::String {
    alloc::format!("192.0.2.7:{port}")
}

#[test]
fn a_client_of_a_forward_is_its_owners_and_keeps_its_address_and_port() {
    for port in 50_000..50_030 {
        let mut fleet = fleet();
        let peer = SocketAddr::new([192, 0, 2, 9].into(), port);
        let local = at("192.0.2.1:8080");
        let listener =
            fleet[1].shard.attach_listener(ForwardId(1), Protocol::Tcp, local).expect("room");
        let ops = fleet[1].accepted(listener, peer, local);
        let owner = ownership(&fleet).of_connection(at(GUEST_END), peer);
        let ops = match ops[..] {
            [Op::HandOverClient { to, accepted, forward }] => {
                assert_eq!((to, accepted), (owner, AcceptedId(1)));
                assert_ne!(to, ShardId(1));
                let input = Input::ClientHandedOver { accepted, forward, peer, local };
                fleet[usize::from(to.0)].input(input)
            }
            _ => ops,
        };
        assert!(matches!(ops[..], [Op::Adopt { .. }]), "{ops:?}");
        let owner = &mut fleet[usize::from(owner.0)];
        assert_eq!(owner.shard.flows().next().and_then(|flow| flow.remote), Some(peer));
        assert_eq!(owner.written.len(), 1, "the SYN");
    }
}

#[test]
fn a_client_that_looks_like_another_one_gets_a_port_of_the_same_shard() {
    let mut fleet = fleet();
    let ownership = ownership(&fleet);
    let peer = at("192.0.2.9:50000");
    let owner = ownership.of_connection(at(GUEST_END), peer);
    let world = &mut fleet[usize::from(owner.0)];
    for n in 0..5 {
        let (accepted, local) = (AcceptedId(n), at("192.0.2.1:8080"));
        world.input(Input::ClientHandedOver { accepted, forward: ForwardId(1), peer, local });
    }
    let shown: Vec<SocketAddr> = world.shard.flows().filter_map(|flow| flow.remote).collect();
    assert_eq!(shown.len(), 5);
    for (n, &remote) in shown.iter().enumerate() {
        assert_eq!(ownership.of_connection(at(GUEST_END), remote), owner);
        assert!(!shown[..n].contains(&remote), "no two look alike");
    }
}

#[test]
fn what_one_shard_learns_of_the_neighbours_all_know() {
    let mut fleet = fleet();
    let mac = MacAddr([2, 0, 0, 0, 0, 9]);
    let port = (40_000..).find(|&port| ownership(&fleet).of_port(guest(port)) == ShardId(0));
    let from = guest(port.expect("it owns something"));
    let mut frame = udp_frame(from, at("192.0.2.1:9"), 64, b"x");
    frame[6..12].copy_from_slice(&mac.0);
    let ops = fleet[0].frame(&frame, Offload { checksum: Checksum::Unchecked, gso: Gso::None });
    let told = |ops: &[Op]| -> Vec<ShardId> {
        ops.iter()
            .filter_map(|op| match *op {
                Op::TellNeighbor { to, ip, mac: told } => {
                    assert_eq!((ip, told), (guest(0).ip(), mac));
                    Some(to)
                }
                _ => None,
            })
            .collect()
    };
    assert_eq!(told(&ops), [ShardId(1), ShardId(2)]);
    let news = Input::Neighbor { ip: guest(0).ip(), mac };
    assert_eq!(fleet[1].input(news), [], "what was told is not told on");
    // The frame that opens a client's connection goes to that station.
    let (peer, local) = (at("192.0.2.9:50000"), at("192.0.2.1:8080"));
    let owner = ownership(&fleet).of_connection(at(GUEST_END), peer);
    let world = &mut fleet[usize::from(owner.0)];
    world.input(Input::Neighbor { ip: guest(0).ip(), mac });
    let (accepted, forward) = (AcceptedId(1), ForwardId(1));
    world.input(Input::ClientHandedOver { accepted, forward, peer, local });
    assert_eq!(world.next_written().bytes[..6], mac.0);
}
