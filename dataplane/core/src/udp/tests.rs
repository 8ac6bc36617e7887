//! What a guest and a host see of UDP, datagram by datagram.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::config::Config;
use crate::counters::Counter;
use crate::op::{
    Checksum, DatagramKind, ForwardId, Gso, HostError, Input, LocalId, Namespace, Offload, Op,
    SocketId,
};
use crate::rules::{Access, HostAddress, HostLoopback, Protocol, Rules};
use crate::testing::{World, at, forward, fragment_frame, udp_frame, udp_segment};

const GUEST: &str = "10.0.2.100:40000";
const REMOTE: &str = "192.0.2.7:5000";
const GUEST6: &str = "[fd00::64]:40000";
const REMOTE6: &str = "[2001:db8::7]:5000";

fn world(loopback: HostLoopback) -> World {
    let config = Config::example();
    let forward = forward(Protocol::Udp, (9000, 9009), 7000);
    let rules = Rules::new(&config, &Access::new(&config, loopback), vec![forward], vec![]);
    World::with(config, rules)
}

/// The guest sends a datagram; the ops it caused.
fn send(world: &mut World, from: &str, to: &str, payload: &[u8]) -> Vec<Op> {
    world.frame(&udp_frame(at(from), at(to), 64, payload), Offload::default())
}

/// The only op: an open.
fn opened(ops: &[Op]) -> (SocketId, DatagramKind, u16, bool) {
    match ops {
        [Op::Open { socket, kind, port, loopback, on: Namespace::Host }] => {
            (*socket, *kind, *port, *loopback)
        }
        _ => panic!("one open, not {ops:?}"),
    }
}

fn sent(world: &mut World) -> (SocketId, SocketAddr, Vec<u8>, u8, u16) {
    match world.sent_to.pop_front() {
        Some((to, bytes, Op::SendTo { socket, hop_limit, segment, .. })) => {
            (socket, to, bytes, hop_limit, segment)
        }
        other => panic!("a datagram was sent, not {other:?}"),
    }
}

#[test]
fn everything_from_one_port_leaves_by_one_socket_and_anybody_may_answer() {
    for (guest, remote, other, kind) in [
        (GUEST, REMOTE, "198.51.100.1:77", DatagramKind::Udp4),
        (GUEST6, REMOTE6, "[2001:db8::99]:77", DatagramKind::Udp6),
    ] {
        let mut world = world(HostLoopback::None);
        let (socket, got, port, loopback) = opened(&send(&mut world, guest, remote, b"one"));
        assert_eq!((got, port, loopback), (kind, 40_000, false));
        assert_eq!(sent(&mut world), (socket, at(remote), b"one".to_vec(), 63, 0));
        assert_eq!(send(&mut world, guest, other, b""), [], "no second socket");
        assert_eq!(sent(&mut world), (socket, at(other), vec![], 63, 0));
        let stranger = SocketAddr::new(at(remote).ip(), 9);
        world.datagram(socket, stranger, b"hello", 0);
        let got = world.next_written().datagram();
        assert_eq!((got.from, got.to, got.hop_limit), (stranger, at(guest), 59));
        assert_eq!(got.payload, b"hello");
    }
}

#[test]
fn a_privileged_port_is_not_asked_for() {
    let mut world = world(HostLoopback::None);
    let (_, _, port, _) = opened(&send(&mut world, "10.0.2.100:123", REMOTE, b"x"));
    assert_eq!(port, 0);
}

#[test]
fn a_mapping_ends_when_it_was_idle_and_not_before() {
    let mut world = world(HostLoopback::None);
    let (socket, ..) = opened(&send(&mut world, GUEST, REMOTE, b"x"));
    assert_eq!(world.pass(Duration::from_secs(119)), []);
    world.datagram(socket, at(REMOTE), b"y", 0);
    assert_eq!(world.pass(Duration::from_secs(119)), []);
    let ended = world.pass(Duration::from_secs(2));
    assert!(matches!(ended[..], [Op::Close { socket: s, .. }] if s == socket));
    assert_eq!(world.shard.next_deadline(), None);
}

#[test]
fn a_mapping_that_only_asked_port_53_ends_soon() {
    let mut world = world(HostLoopback::None);
    send(&mut world, GUEST, "9.9.9.9:53", b"x");
    send(&mut world, "10.0.2.100:40001", "9.9.9.9:53", b"x");
    send(&mut world, "10.0.2.100:40001", REMOTE, b"x");
    assert_eq!(world.pass(Duration::from_secs(11)).len(), 1);
    assert_eq!(world.shard.flows().count(), 1);
}

#[test]
fn the_gateway_leads_to_the_hosts_loopback_where_the_rules_say_so() {
    let mut world = world(HostLoopback::All);
    let (socket, _, _, loopback) = opened(&send(&mut world, GUEST, "10.0.2.2:5353", b"x"));
    assert!(loopback);
    assert_eq!(sent(&mut world), (socket, at("127.0.0.1:5353"), b"x".to_vec(), 64, 0));
    world.datagram(socket, at("127.0.0.1:5353"), b"y", 0);
    assert_eq!(world.next_written().datagram().from, at("10.0.2.2:5353"));
    world.datagram(socket, at(REMOTE), b"from outside", 0);
    assert!(world.written.is_empty());
    assert_eq!(world.shard.counters().value(Counter::UdpFiltered), 1);
}

#[test]
fn loopback_programs_of_the_host_do_not_get_in_by_an_ordinary_mapping() {
    let mut world = world(HostLoopback::All);
    let (socket, ..) = opened(&send(&mut world, GUEST, REMOTE, b"x"));
    world.datagram(socket, at("127.0.0.1:5353"), b"y", 0);
    assert!(world.written.is_empty());
}

#[test]
fn a_ttl_that_ends_here_is_answered_by_the_gateway() {
    let mut world = world(HostLoopback::None);
    let frame = udp_frame(at(GUEST), at("192.0.2.7:33434"), 1, b"probe");
    assert_eq!(world.frame(&frame, Offload::default()), []);
    assert!(world.sent_to.is_empty());
    let error = world.next_written().icmp_error();
    assert_eq!(error, (at("10.0.2.2:1").ip(), (11, 0), (40_000, 33_434)));
    let frame = udp_frame(at(GUEST6), at("[2001:db8::7]:33434"), 1, b"probe");
    world.frame(&frame, Offload::default());
    let error = world.next_written().icmp_error();
    assert_eq!(error, (at("[fd00::2]:1").ip(), (3, 0), (40_000, 33_434)));
}

#[test]
fn errors_of_routers_on_the_way_come_back_under_their_own_address() {
    let mut world = world(HostLoopback::None);
    let (socket, ..) = opened(&send(&mut world, GUEST, "192.0.2.7:33434", b"probe"));
    let router = at("203.0.113.1:0").ip();
    for (error, kind) in [(HostError::TimeExceeded, (11, 0)), (HostError::Refused, (3, 3))] {
        world.input(Input::DatagramError {
            socket,
            to: at("192.0.2.7:33434"),
            error,
            offender: Some(router),
            payload: b"probe",
        });
        assert_eq!(world.next_written().icmp_error(), (router, kind, (40_000, 33_434)));
    }
}

#[test]
fn refused_destinations_are_told_and_multicast_is_not() {
    let mut world = world(HostLoopback::None);
    assert_eq!(send(&mut world, GUEST, "10.0.2.2:9", b"x"), []);
    assert_eq!(world.next_written().icmp_error().1, (3, 3));
    assert_eq!(send(&mut world, GUEST, "10.0.2.77:9", b"x"), []);
    assert_eq!(world.next_written().icmp_error().1, (3, 1));
    assert_eq!(send(&mut world, GUEST, "239.1.1.1:9", b"x"), []);
    let mut broadcast = udp_frame(at(GUEST), at("10.0.2.255:137"), 64, b"x");
    broadcast[..6].fill(0xff);
    assert_eq!(world.frame(&broadcast, Offload::default()), []);
    assert!(world.written.is_empty());
}

#[test]
fn trains_stay_trains_in_both_directions() {
    let mut world = world(HostLoopback::None);
    let offload = Offload { checksum: Checksum::Valid, gso: Gso::Udp { size: 1000 } };
    let frame = udp_frame(at(GUEST), at(REMOTE), 64, &[7; 2500]);
    let (socket, ..) = opened(&world.frame(&frame, offload));
    assert_eq!(sent(&mut world), (socket, at(REMOTE), vec![7; 2500], 63, 1000));
    world.datagram(socket, at(REMOTE), &[8; 5000], 1200);
    let written = world.next_written();
    assert_eq!(written.offload.gso, Gso::Udp { size: 1200 });
    assert_eq!(written.offload.checksum, Checksum::Partial { start: 34, offset: 6 });
    world.datagram(socket, at(REMOTE), &[8; 5000], 0);
    assert_eq!(world.next_written().offload.gso, Gso::Fragment);
}

#[test]
fn the_largest_datagram_goes_out_in_fragments_and_comes_back_whole() {
    for (guest, remote) in [(GUEST, REMOTE), (GUEST6, REMOTE6)] {
        let mut world = world(HostLoopback::None);
        let payload: Vec<u8> = (0..65_507u32).map(|n| n as u8).collect();
        let segment = udp_segment(at(guest), at(remote), &payload);
        let mut ops = vec![];
        for (n, part) in segment.chunks(1440).enumerate() {
            let more = (n + 1) * 1440 < segment.len();
            let frame = fragment_frame(at(guest), at(remote), 9, n * 1440, more, part);
            ops.extend(world.frame(&frame, Offload::default()));
        }
        let (socket, ..) = opened(&ops);
        let (by, to, bytes, ..) = sent(&mut world);
        assert!(bytes == payload, "every byte in its place");
        assert_eq!((by, to), (socket, at(remote)));
        world.datagram(socket, at(remote), &payload, 0);
        assert!(world.next_written().datagram().payload == payload);
        assert_eq!(world.leases_out(), 0);
    }
}

#[test]
fn a_datagram_that_is_too_long_for_the_family_is_counted() {
    let mut world = world(HostLoopback::None);
    let (socket, ..) = opened(&send(&mut world, GUEST, REMOTE, b"x"));
    world.datagram(socket, at(REMOTE), &[0; 65_508], 0);
    assert_eq!(world.shard.counters().value(Counter::UdpTooLong), 1);
}

#[test]
fn a_host_without_the_family_is_net_unreachable_until_it_is_asked_again() {
    let mut world = world(HostLoopback::None);
    let (socket, ..) = opened(&send(&mut world, GUEST6, REMOTE6, b"x"));
    let ops = world.input(Input::Failed { socket, error: HostError::Unsupported });
    assert!(matches!(ops[..], [Op::Close { .. }]));
    assert_eq!(world.next_written().icmp_error().1, (1, 0));
    assert_eq!(send(&mut world, GUEST6, REMOTE6, b"x"), []);
    assert_eq!(world.next_written().icmp_error().1, (1, 0));
    assert_eq!(world.pass(Duration::from_millis(1100)), []);
    opened(&send(&mut world, GUEST6, REMOTE6, b"x"));
}

#[test]
fn a_full_table_is_counted_and_told() {
    let mut config = Config::example();
    config.limits.flows = 1;
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
    let mut world = World::with(config, rules);
    opened(&send(&mut world, GUEST, REMOTE, b"x"));
    assert_eq!(send(&mut world, "10.0.2.100:40001", REMOTE, b"x"), []);
    assert_eq!(world.shard.counters().value(Counter::UdpTableFull), 1);
    world.next_written().icmp_error();
}

#[test]
fn a_client_of_a_forward_keeps_its_address_and_is_answered_by_the_forward() {
    let mut world = world(HostLoopback::None);
    let local = at("0.0.0.0:9002");
    let listener = world.shard.attach_listener(ForwardId(1), Protocol::Udp, local).expect("room");
    for (client, seen) in
        [("203.0.113.5:1234", "203.0.113.5:1234"), ("127.0.0.1:1234", "10.0.2.2:1234")]
    {
        world.datagram(listener, at(client), b"question", 0);
        let got = world.next_written().datagram();
        assert_eq!((got.from, got.to), (at(seen), at("10.0.2.100:7002")));
        assert_eq!(send(&mut world, "10.0.2.100:7002", seen, b"answer"), [], "no mapping");
        let (by, to, bytes, ..) = sent(&mut world);
        assert_eq!((by, to, bytes), (listener, at(client), b"answer".to_vec()));
    }
    opened(&send(&mut world, "10.0.2.100:7002", REMOTE, b"of its own accord"));
    assert_eq!(world.shard.flows().count(), 3);
    let empty = Rules::new(
        &Config::example(),
        &Access::new(&Config::example(), HostLoopback::None),
        vec![],
        vec![],
    );
    world.install(empty);
    assert_eq!(world.shard.flows().count(), 1);
    send(&mut world, "10.0.2.100:7002", "10.0.2.2:1234", b"too late");
    assert_eq!(world.next_written().icmp_error().1, (3, 3));
}

#[test]
fn idle_clients_of_forwards_are_forgotten_and_the_idlest_makes_room() {
    let mut config = Config::example();
    config.limits.flows = 2;
    let rules = world(HostLoopback::None).shard.rules().clone();
    let mut world = World::with(config, rules);
    let local = at("[::]:9000");
    let listener = world.shard.attach_listener(ForwardId(1), Protocol::Udp, local).expect("room");
    for port in 1..=3 {
        world.datagram(listener, SocketAddr::new(at(REMOTE6).ip(), port), b"x", 0);
    }
    let ports: Vec<u16> = world.shard.flows().filter_map(|f| f.host).map(|h| h.port()).collect();
    assert!(!ports.contains(&1) && ports.len() == 2, "{ports:?}");
    assert_eq!(world.shard.counters().value(Counter::UdpPeersEvicted), 1);
    world.pass(Duration::from_secs(121));
    assert_eq!(world.shard.flows().count(), 0);
    assert_eq!(world.shard.next_deadline(), None);
}

#[test]
fn an_answer_comes_from_the_name_by_which_the_guest_called() {
    let config = Config::example();
    let [first, second] = ["169.254.1.3", "169.254.1.4"].map(|ip| ip.parse().expect("an address"));
    let (host, named) = (at("192.0.2.7:0").ip(), at("169.254.1.2:0").ip());
    let access = Access {
        loopback_via: vec![first, second],
        host_via: vec![HostAddress { via: named, address: host }],
        ..Access::new(&config, HostLoopback::All)
    };
    let mut world = World::with(config.clone(), Rules::new(&config, &access, vec![], vec![]));
    for (called, is, by_others) in [
        ("169.254.1.3:5353", "127.0.0.1:5353", None),
        ("169.254.1.4:5353", "127.0.0.1:5353", None),
        ("169.254.1.2:5000", REMOTE, Some("198.51.100.1:77")),
        (REMOTE, REMOTE, Some("198.51.100.1:77")),
    ] {
        let (socket, _, _, loopback) = opened(&send(&mut world, GUEST, called, b"x"));
        assert_eq!(loopback, by_others.is_none());
        assert_eq!(sent(&mut world).1, at(is));
        world.datagram(socket, at(is), b"y", 0);
        assert_eq!(world.next_written().datagram().from, at(called));
        if let Some(other) = by_others {
            world.datagram(socket, at(other), b"z", 0);
            assert_eq!(world.next_written().datagram().from, at(other));
        }
        let error = HostError::Refused;
        let to = at(is);
        world.input(Input::DatagramError { socket, to, error, offender: None, payload: &[] });
        let (from, ..) = world.next_written().icmp_error();
        assert_eq!(from, at(called).ip());
    }
}

/// What the guest sees of a datagram to the forward at 9002: the client's address.
fn shown(world: &mut World, listener: SocketId, client: &str, local: u16) -> SocketAddr {
    world.local = LocalId(local);
    world.datagram(listener, at(client), b"question", 0);
    world.next_written().datagram().from
}

#[test]
fn clients_that_look_the_same_get_ports_of_their_own_and_answers_from_where_they_wrote_to() {
    let mut world = world(HostLoopback::None);
    let local = at("0.0.0.0:9002");
    let listener = world.shard.attach_listener(ForwardId(1), Protocol::Udp, local).expect("room");
    let clients = [
        ("127.0.0.1:1234", 1),
        ("127.0.0.2:1234", 2),
        ("203.0.113.5:1234", 3),
        ("203.0.113.5:1234", 4),
    ];
    let seen = clients.map(|(client, local)| shown(&mut world, listener, client, local));
    assert_eq!((seen[0], seen[2]), (at("10.0.2.2:1234"), at("203.0.113.5:1234")));
    assert!(seen[1].ip() == seen[0].ip() && seen[1] != seen[0]);
    assert!(seen[3].ip() == seen[2].ip() && seen[3] != seen[2]);
    for ((client, local), seen) in clients.into_iter().zip(seen).rev() {
        assert_eq!(shown(&mut world, listener, client, local), seen, "it stays the same");
        let frame = udp_frame(at("10.0.2.100:7002"), seen, 64, b"answer");
        assert_eq!(world.frame(&frame, Offload::default()), []);
        let (to, _, op) = world.sent_to.pop_front().expect("an answer");
        assert_eq!(to, at(client));
        assert!(matches!(op, Op::SendTo { local: from, .. } if from == LocalId(local)), "{op:?}");
    }
    let to = at("127.0.0.2:1234");
    let (error, offender) = (HostError::Refused, None);
    world.input(Input::DatagramError { socket: listener, to, error, offender, payload: &[] });
    let (_, _, ports) = world.next_written().icmp_error();
    assert_eq!(ports, (7002, seen[1].port()), "an error is about the right one");
}

#[test]
fn when_all_ports_that_are_tried_are_taken_the_newest_client_takes_over() {
    let mut world = world(HostLoopback::None);
    let local = at("0.0.0.0:9002");
    let listener = world.shard.attach_listener(ForwardId(1), Protocol::Udp, local).expect("room");
    let clients: Vec<_> = (1..=9).map(|n| alloc::format!("127.0.0.{n}:1234")).collect();
    let seen: Vec<_> =
        clients.iter().map(|client| shown(&mut world, listener, client, 1)).collect();
    assert_eq!(world.shard.counters().value(Counter::UdpPeersReplaced), 1);
    assert_eq!(seen[8], seen[0]);
    let others: alloc::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(others.len(), 8);
}
