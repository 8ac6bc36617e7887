//! What a guest and the host's resolvers see of DNS.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::config::Config;
use crate::counters::Counter;
use crate::op::{DatagramKind, HostError, Input, Namespace, Offload, Op, SocketId};
use crate::rules::{Access, DnsService, HostLoopback, Rules};
use crate::testing::{World, at, udp_frame};

const GUEST: &str = "10.0.2.100:40000";
const DNS: &str = "10.0.2.3:53";
const FIRST: &str = "192.0.2.53:53";
const SECOND: &str = "[2001:db8::53]:53";

fn rules(resolvers: &[&str]) -> Arc<Rules> {
    let resolvers = resolvers.iter().map(|r| at(r)).collect();
    Rules::new(
        &Config::example(),
        &Access::new(&Config::example(), HostLoopback::None),
        vec![],
        resolvers,
    )
}

fn world(resolvers: &[&str]) -> World {
    World::with(Config::example(), rules(resolvers))
}

fn message(id: u16, flags: u16, name: &[u8]) -> Vec<u8> {
    let mut message = vec![];
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&flags.to_be_bytes());
    message.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    message.push(name.len() as u8);
    message.extend_from_slice(name);
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

const QUERY: u16 = 0x0100;
const ANSWER: u16 = 0x8180;
const SERVFAIL: u16 = 0x8182;

/// The guest asks; the sockets that were opened, with whether they are on the loopback.
fn ask(world: &mut World, query: &[u8]) -> Vec<(SocketId, bool)> {
    let ops = world.frame(&udp_frame(at(GUEST), at(DNS), 64, query), Offload::default());
    opens(&ops)
}

fn opens(ops: &[Op]) -> Vec<(SocketId, bool)> {
    let open = |op: &Op| match *op {
        Op::Open { socket, loopback, port, .. } => {
            assert_eq!(port, 0, "the kernel chooses the port");
            Some((socket, loopback))
        }
        _ => None,
    };
    ops.iter().filter_map(open).collect()
}

fn asked(world: &mut World) -> (SocketAddr, Vec<u8>) {
    let (to, bytes, _) = world.sent_to.pop_front().expect("a resolver is asked");
    (to, bytes)
}

#[test]
fn a_query_goes_unchanged_to_the_first_resolver_and_its_answer_unchanged_back() {
    let mut world = world(&["127.0.0.53:53", FIRST]);
    let query = message(0xbeef, QUERY, b"example");
    let sockets = ask(&mut world, &query);
    assert!(matches!(sockets[..], [(_, true)]), "the stub resolver is on the loopback");
    assert_eq!(asked(&mut world), (at("127.0.0.53:53"), query));
    let mut answer = message(0xbeef, ANSWER, b"example");
    answer.extend_from_slice(&[1; 3000]);
    let ops = world.datagram(sockets[0].0, at("127.0.0.53:53"), &answer, 0);
    assert!(matches!(ops[..], [Op::Close { .. }]));
    let got = world.next_written().datagram();
    assert_eq!((got.from, got.to, got.hop_limit), (at(DNS), at(GUEST), 64));
    assert_eq!(got.payload, answer);
    assert_eq!(world.shard.next_deadline(), None);
}

#[test]
fn a_resolver_of_the_guests_network_is_asked_from_there() {
    let config = Config::example();
    let access = Access::new(&config, HostLoopback::None);
    let access = Access { dns: DnsService::ForwardedInside, ..access };
    // What is on a loopback is on the guest's: nothing is bound to the host's.
    let rules = Rules::new(&config, &access, vec![], vec![at("127.0.0.1:53")]);
    let mut world = World::with(config, rules);
    let query = message(7, QUERY, b"example");
    let ops = world.frame(&udp_frame(at(GUEST), at(DNS), 64, &query), Offload::default());
    let [Op::Open { socket, kind, port: 0, loopback: false, on: Namespace::Guest }] = ops[..]
    else {
        panic!("a socket of the guest's: {ops:?}")
    };
    assert_eq!(kind, DatagramKind::Udp4);
    assert_eq!(asked(&mut world), (at("127.0.0.1:53"), query));
    world.datagram(socket, at("127.0.0.1:53"), &message(7, ANSWER, b"example"), 0);
    assert_eq!(world.next_written().datagram().from, at(DNS));
}

#[test]
fn an_answer_that_comes_twice_at_once_reaches_the_guest_once() {
    let mut world = world(&[FIRST]);
    let socket = ask(&mut world, &message(7, QUERY, b"example"))[0].0;
    let answer = message(7, ANSWER, b"example");
    world.datagram(socket, at(FIRST), &[&answer[..], &answer].concat(), answer.len() as u16);
    assert_eq!(world.next_written().datagram().payload, answer);
    assert!(world.written.is_empty());
}

#[test]
fn a_forged_answer_is_dropped() {
    let mut world = world(&[FIRST]);
    let socket = ask(&mut world, &message(7, QUERY, b"example"))[0].0;
    for (from, answer) in [
        (SECOND, message(7, ANSWER, b"example")),
        (FIRST, message(8, ANSWER, b"example")),
        (FIRST, message(7, ANSWER, b"another")),
        (FIRST, message(7, QUERY, b"example")),
        (FIRST, vec![0, 7, 0x81]),
    ] {
        world.datagram(socket, at(from), &answer, 0);
        assert!(world.written.is_empty());
    }
    assert_eq!(world.shard.counters().value(Counter::DnsUnexpected), 5);
    world.datagram(socket, at(FIRST), &message(7, ANSWER, b"EXAMPLE"), 0);
    world.next_written().datagram();
}

#[test]
fn the_next_resolver_is_asked_when_one_fails_or_is_silent() {
    let query = message(7, QUERY, b"example");
    for trouble in 0..4 {
        let mut world = world(&[FIRST, SECOND]);
        let socket = ask(&mut world, &query)[0].0;
        asked(&mut world);
        let ops = match trouble {
            0 => world.pass(Duration::from_millis(2100)),
            1 => world.datagram(socket, at(FIRST), &message(7, SERVFAIL, b"example"), 0),
            2 => world.input(Input::DatagramError {
                socket,
                to: at(FIRST),
                error: HostError::Refused,
                offender: None,
                payload: &[],
            }),
            _ => world.input(Input::Failed { socket, error: HostError::NoRoom }),
        };
        let second = opens(&ops)[0].0;
        assert_eq!(asked(&mut world), (at(SECOND), query.clone()));
        world.datagram(second, at(SECOND), &message(7, ANSWER, b"example"), 0);
        assert_eq!(world.next_written().datagram().payload, message(7, ANSWER, b"example"));
        // The one that worked is asked first, for a while.
        ask(&mut world, &message(8, QUERY, b"example"));
        assert_eq!(asked(&mut world).0, at(SECOND));
        world.pass(Duration::from_secs(61));
        world.sent_to.clear();
        ask(&mut world, &message(9, QUERY, b"example"));
        assert_eq!(asked(&mut world).0, at(FIRST));
    }
}

#[test]
fn a_late_answer_of_the_first_resolver_still_counts() {
    let mut world = world(&[FIRST, SECOND]);
    let first = ask(&mut world, &message(7, QUERY, b"example"))[0].0;
    world.pass(Duration::from_millis(2100));
    let ops = world.datagram(first, at(FIRST), &message(7, ANSWER, b"example"), 0);
    assert_eq!(ops.len(), 2, "both sockets are closed");
    world.next_written().datagram();
}

#[test]
fn when_all_fail_the_guest_gets_the_failure() {
    let mut world = world(&[FIRST, SECOND]);
    let failure = message(7, SERVFAIL, b"example");
    let socket = ask(&mut world, &message(7, QUERY, b"example"))[0].0;
    let second = opens(&world.datagram(socket, at(FIRST), &failure, 0))[0].0;
    world.datagram(second, at(SECOND), &failure, 0);
    assert_eq!(world.next_written().datagram().payload, failure);
    // The second one is silent: the first one's failure is what there is.
    let socket = ask(&mut world, &message(7, QUERY, b"example"))[0].0;
    world.datagram(socket, at(FIRST), &failure, 0);
    assert!(world.written.is_empty());
    world.pass(Duration::from_millis(2100));
    let got = world.next_written().datagram();
    assert_eq!((got.from, got.payload), (at(DNS), failure));
    assert_eq!(world.shard.next_deadline(), None);
}

#[test]
fn without_a_resolver_the_guest_is_told_at_once() {
    let mut world = world(&[]);
    ask(&mut world, &message(7, QUERY, b"example"));
    let (from, kind, ports) = world.next_written().icmp_error();
    assert_eq!((from, kind, ports), (at("10.0.2.3:53").ip(), (3, 3), (40_000, 53)));
}

#[test]
fn new_resolvers_are_asked_from_the_next_query_on() {
    let mut world = world(&[FIRST]);
    ask(&mut world, &message(7, QUERY, b"example"));
    world.sent_to.clear();
    world.install(rules(&[SECOND]));
    ask(&mut world, &message(8, QUERY, b"example"));
    assert_eq!(asked(&mut world).0, at(SECOND));
}

#[test]
fn a_query_that_the_guest_repeats_is_repeated_to_the_same_resolver() {
    let mut world = world(&[FIRST, SECOND]);
    let query = message(7, QUERY, b"example");
    ask(&mut world, &query);
    assert_eq!(ask(&mut world, &query), [], "no second socket");
    assert_eq!(asked(&mut world).0, at(FIRST));
    assert_eq!(asked(&mut world), (at(FIRST), query));
}

#[test]
fn a_query_larger_than_a_reserved_buffer_is_gathered() {
    let mut world = world(&[FIRST]);
    let mut query = message(7, QUERY, b"example");
    query.resize(4096, 3);
    ask(&mut world, &query);
    assert_eq!(asked(&mut world), (at(FIRST), query.clone()));
    query.push(0);
    assert_eq!(ask(&mut world, &query), []);
    assert_eq!(world.shard.counters().value(Counter::DnsNotForwarded), 1);
}

#[test]
fn queries_that_nobody_answers_end_and_a_full_table_drops_the_oldest() {
    let mut config = Config::example();
    config.limits.dns_queries = 4;
    let mut world = World::with(config, rules(&[FIRST]));
    for id in 0..6 {
        ask(&mut world, &message(id, QUERY, b"example"));
    }
    assert_eq!(world.shard.counters().value(Counter::DnsEvicted), 2);
    world.pass(Duration::from_secs(13));
    assert_eq!(world.shard.counters().value(Counter::DnsUnanswered), 4);
    assert_eq!(world.shard.next_deadline(), None);
}

#[test]
fn without_buffers_a_query_waits_for_its_retry() {
    let mut world = world(&[FIRST]);
    world.limit_reserve(0);
    ask(&mut world, &message(7, QUERY, b"example"));
    assert!(world.sent_to.is_empty());
    assert_eq!(world.shard.counters().value(Counter::DropNoBuffer), 1);
}
