//! What no single protocol module answers for: frames of every wrong length, and full tables.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::config::{Config, Protocols};
use crate::counters::Counter;
use crate::op::{
    AcceptedId, Checksum, ForwardId, Gso, Input, LeaseId, Offload, Op, Outbox, RESERVE_BYTES_MAX,
};
use crate::packet::checksum::Sum;
use crate::packet::protocol;
use crate::rules::{Access, Closed, DnsService, HostLoopback, LoopbackClients, Protocol, Rules};
use crate::shard::Shard;
use crate::testing::{World, at, forward, fragment_frame, ip_frame, udp_frame};
use crate::time::Instant;

const VALID: Offload = Offload { checksum: Checksum::Valid, gso: Gso::None };

fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[12..14].copy_from_slice(&[0x50, 0x02]);
    ip_frame(from, to, protocol::TCP, 64, &tcp)
}

#[test]
fn frames_of_every_length_are_counted_and_given_back() {
    let dns = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
    for (guest, remote, resolver) in [
        ("10.0.2.100:40000", "192.0.2.7:80", "10.0.2.3:53"),
        ("[fd00::64]:40000", "[2001:db8::7]:80", "[fd00::3]:53"),
    ] {
        let frames = [
            syn(at(guest), at(remote)),
            udp_frame(at(guest), at(remote), 64, b"payload"),
            udp_frame(at(guest), at(resolver), 64, &dns),
        ];
        for frame in frames {
            let mut world = World::new();
            for len in 0..frame.len() {
                world.frame(&frame[..len], VALID);
                assert!(world.written.is_empty(), "{len} bytes are no frame to answer");
            }
            let dropped = world.shard.counters().value(Counter::DropMalformed)
                + world.shard.counters().value(Counter::DropProtocol);
            assert_eq!(dropped, frame.len() as u64, "each of them is counted");
            // Padding behind the packet is legal.
            let padded = [frame.as_slice(), &[0; 30]].concat();
            assert_eq!(world.frame(&padded, VALID).len(), 1, "and a padded one is taken");
        }
    }
}

/// Ops are counted, not kept; one buffer serves for all frames.
#[derive(Default)]
struct Sink {
    connects: u32,
    buffer: Vec<u8>,
}

impl Outbox for Sink {
    fn op(&mut self, op: Op) {
        self.connects += u32::from(matches!(op, Op::Connect { .. }));
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        self.buffer.resize(RESERVE_BYTES_MAX, 0);
        Some((LeaseId(1), &mut self.buffer[..size]))
    }
}

#[test]
fn sixty_five_thousand_flows_fit_and_the_next_one_is_counted() {
    let mut config = Config::example();
    config.limits.half_open = u32::MAX;
    let flows = config.limits.flows;
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
    let mut shard = Shard::new(config, rules);
    let mut sink = Sink::default();
    let now = Instant::from_nanos(1);
    for n in 0..=flows {
        let guest = SocketAddr::new(at("10.0.2.100:0").ip(), 1024 + (n % 60_000) as u16);
        let remote = SocketAddr::new(at("192.0.2.7:0").ip(), 80 + (n / 60_000) as u16);
        let mut frame = syn(guest, remote);
        let input = Input::Frame { lease: LeaseId(0), bytes: &mut frame, offload: VALID };
        shard.handle(now, input, &mut sink);
    }
    shard.check();
    assert_eq!((sink.connects, shard.flows().count() as u32), (flows, flows));
    assert_eq!(shard.counters().value(Counter::TcpTableFull), 1);
}

const GUEST: &str = "10.0.2.100:40000";
const REMOTE: &str = "192.0.2.7:80";

/// A world whose configuration and access were changed.
fn world(change: impl FnOnce(&mut Config, &mut Access)) -> World {
    let mut config = Config::example();
    let mut access = Access::new(&config, HostLoopback::None);
    change(&mut config, &mut access);
    let resolvers = vec![at("192.0.2.53:53")];
    let forward = forward(Protocol::Tcp, (8080, 8080), 80);
    let rules = Rules::new(&config, &access, vec![forward], resolvers);
    World::with(config, rules)
}

fn echo(from: &str, to: &str) -> Vec<u8> {
    let mut message = [8, 0, 0, 0, 0, 7, 0, 9];
    let sum = Sum::default().bytes(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip_frame(at(from), at(to), protocol::ICMP, 64, &message)
}

#[test]
fn a_protocol_that_is_switched_off_is_dropped_and_the_others_are_not() {
    let frames = [
        syn(at(GUEST), at(REMOTE)),
        udp_frame(at(GUEST), at(REMOTE), 64, b"payload"),
        udp_frame(at(GUEST), at("10.0.2.3:53"), 64, b"a query of enough bytes"),
        echo(GUEST, REMOTE),
        echo(GUEST, "10.0.2.2:0"),
        fragment_frame(at(GUEST), at(REMOTE), 7, 0, true, &[0; 16]),
    ];
    let all = Protocols::all();
    for (protocols, dropped) in [
        (all, 0),
        (Protocols { tcp: false, ..all }, 1),
        (Protocols { udp: false, ..all }, 3),
        (Protocols { icmp: false, ..all }, 2),
    ] {
        let mut world = world(|config, _| config.protocols = protocols);
        for frame in &frames {
            world.frame(frame, VALID);
        }
        let counted = |counter| world.shard.counters().value(counter);
        assert_eq!(counted(Counter::DropProtocolOff), dropped, "{protocols:?}");
        assert_eq!(counted(Counter::TcpOpenedByGuest), protocols.tcp.into());
        assert_eq!(counted(Counter::UdpMappings), protocols.udp.into());
        assert_eq!(counted(Counter::DnsQueries), protocols.udp.into());
        assert_eq!(counted(Counter::EchoAnswered), protocols.icmp.into());
        assert_eq!(counted(Counter::PingOpened), protocols.icmp.into());
    }
}

#[test]
fn a_closed_gateway_is_an_unreachable_network_to_tcp_and_udp_and_still_answers_echo() {
    for (guest, gateway, error) in
        [(GUEST, "10.0.2.2:80", (3, 0)), ("[fd00::64]:40000", "[fd00::2]:80", (1, 0))]
    {
        let mut world = world(|_, access| access.closed = Closed::NetUnreachable);
        world.frame(&syn(at(guest), at(gateway)), VALID);
        world.frame(&udp_frame(at(guest), at(gateway), 64, b"payload"), VALID);
        for _ in 0..2 {
            let (from, told, ports) = world.next_written().icmp_error();
            assert_eq!((from, told), (at(gateway).ip(), error));
            assert_eq!(ports, (40_000, 80));
        }
    }
    let mut world = world(|_, access| access.closed = Closed::NetUnreachable);
    world.frame(&echo(GUEST, "10.0.2.2:0"), VALID);
    assert_eq!(world.shard.counters().value(Counter::EchoAnswered), 1);
}

#[test]
fn dns_that_is_off_says_nothing() {
    let mut world = world(|_, access| access.dns = DnsService::Dropped);
    let query = udp_frame(at(GUEST), at("10.0.2.3:53"), 64, b"a query of enough bytes");
    assert!(world.frame(&query, VALID).is_empty());
    assert!(world.frame(&syn(at(GUEST), at("10.0.2.3:53")), VALID).is_empty());
    assert!(world.written.is_empty());
    assert_eq!(world.shard.counters().value(Counter::DropByRule), 2);
}

#[test]
fn dns_is_reached_outside_of_the_guests_network_too() {
    let mut world = world(|_, access| {
        access.resolvers_via = vec![at("169.254.1.1:0").ip(), at("169.254.1.9:0").ip()];
    });
    for resolver in ["169.254.1.1:53", "169.254.1.9:53"] {
        let query = udp_frame(at(GUEST), at(resolver), 64, b"a query of enough bytes");
        world.frame(&query, VALID);
        let (to, ..) = world.sent_to.pop_front().expect("a query");
        assert_eq!(to, at("192.0.2.53:53"));
    }
    let ops = world.frame(&syn(at(GUEST), at("169.254.1.1:853")), VALID);
    assert!(matches!(ops[..], [Op::Connect { to, .. }] if to == at("192.0.2.53:853")), "{ops:?}");
}

#[test]
fn a_loopback_client_gets_to_where_it_is_configured_to() {
    for (clients, place) in [
        (LoopbackClients::GuestLoopback, Some("127.0.0.1:80")),
        (LoopbackClients::GuestAddress, Some("10.0.2.100:80")),
        (LoopbackClients::Link, None),
    ] {
        let mut world = world(|_, access| access.loopback_clients = clients);
        let local = at("127.0.0.1:8080");
        let listener = world.shard.attach_listener(ForwardId(1), Protocol::Tcp, local);
        let listener = listener.expect("room");
        let accepted = AcceptedId(3);
        let peer = at("127.0.0.1:50000");
        let ops = world.input(Input::Accepted { listener, accepted, peer, local });
        match place {
            Some(place) => {
                let is_there = matches!(ops[..], [Op::Splice { to, .. }] if to == at(place));
                assert!(is_there, "{ops:?}");
            }
            None => assert!(matches!(ops[..], [Op::Adopt { .. }]), "{ops:?}"),
        }
    }
}
