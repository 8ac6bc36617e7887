//! What a client in the guest's namespace and a server on the host's loopback see of each other.

use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::config::Config;
use crate::counters::Counter;
use crate::flows::FlowKind;
use crate::op::{
    AcceptedId, CloseHow, DatagramKind, ForwardId, HostError, Input, Namespace, Op, SocketId,
};
use crate::rules::{Outward, Protocol};
use crate::testing::{World, at};

const CLIENT: &str = "127.0.0.1:40000";
const ACCEPTED: AcceptedId = AcceptedId(1);

fn world(protocol: Protocol, host: Option<IpAddr>, limit: u32) -> World {
    let rule = Outward { id: ForwardId(7), protocol, ports: (8000, 8009), host, host_port: 5000 };
    let rules = World::new().shard.rules().clone().with_outward(vec![rule]);
    let mut config = Config::example();
    config.limits.flows = limit;
    config.limits.half_open = limit;
    World::with(config, rules)
}

fn listener(world: &mut World, protocol: Protocol, local: &str) -> SocketId {
    world.shard.attach_listener(ForwardId(7), protocol, at(local)).expect("room")
}

/// A connection to port 8001 of the namespace's loopback: the first ops of it.
fn connect(world: &mut World) -> (SocketId, SocketAddr) {
    let listener = listener(world, Protocol::Tcp, "127.0.0.1:8001");
    let ops = world.accepted(listener, at(CLIENT), at("127.0.0.1:8001"));
    let [Op::Splice { socket, accepted: ACCEPTED, to, on: Namespace::Host }] = ops[..] else {
        panic!("a splice on the host: {ops:?}")
    };
    (socket, to)
}

fn count(world: &World, counter: Counter) -> u64 {
    world.shard.counters().value(counter)
}

/// The next datagram that was sent: by which socket, where to, what.
fn sent(world: &mut World) -> (SocketId, SocketAddr, Vec<u8>) {
    match world.sent_to.pop_front() {
        Some((to, bytes, Op::SendTo { socket, .. })) => (socket, to, bytes),
        other => panic!("a datagram was sent, not {other:?}"),
    }
}

/// The client speaks for the first time: its host socket.
fn speak(world: &mut World, listener: SocketId, client: &str) -> SocketId {
    let ops = world.datagram(listener, at(client), b"question", 0);
    let [Op::Open { socket, kind: DatagramKind::Udp4, loopback: true, .. }] = ops[..] else {
        panic!("a socket on the host's loopback: {ops:?}")
    };
    socket
}

#[test]
fn a_connection_is_joined_to_the_hosts_loopback_and_listed_until_it_ends() {
    let mut world = world(Protocol::Tcp, None, 8);
    let (socket, to) = connect(&mut world);
    assert_eq!(to, at("127.0.0.1:5001"));
    assert_eq!(world.input(Input::Spliced { socket }), []);
    let flow = world.shard.flows().next().expect("it is listed");
    assert_eq!((flow.kind, flow.state, flow.is_outbound), (FlowKind::Spliced, "ESTAB", true));
    assert_eq!((flow.guest, flow.host), (at(CLIENT), Some(to)));
    world.input(Input::SpliceEnded { socket, to_guest: 1, from_guest: 2 });
    assert_eq!(world.shard.flows().count(), 0);
    assert_eq!(count(&world, Counter::OutwardConnections), 1);
    assert_eq!(count(&world, Counter::OutwardEnded), 1);
}

#[test]
fn the_other_family_is_tried_before_the_client_is_reset() {
    let mut world = world(Protocol::Tcp, None, 8);
    let (socket, _) = connect(&mut world);
    let refused = || Input::Failed { socket, error: HostError::Refused };
    let again =
        Op::Splice { socket, accepted: ACCEPTED, to: at("[::1]:5001"), on: Namespace::Host };
    assert_eq!(world.input(refused()), [again]);
    assert_eq!(world.input(refused()), [Op::Refuse { accepted: ACCEPTED }]);
    assert_eq!(world.shard.flows().count(), 0);
    assert_eq!(count(&world, Counter::OutwardRefused), 1);
}

#[test]
fn an_address_of_the_rule_is_the_only_one_that_is_tried() {
    let host = "192.0.2.9".parse().ok();
    let mut world = world(Protocol::Tcp, host, 8);
    let (socket, to) = connect(&mut world);
    assert_eq!(to, at("192.0.2.9:5001"));
    let ops = world.input(Input::Failed { socket, error: HostError::TimedOut });
    assert_eq!(ops, [Op::Refuse { accepted: ACCEPTED }]);
}

#[test]
fn a_full_table_refuses_and_counts() {
    let mut world = world(Protocol::Tcp, None, 1);
    connect(&mut world);
    let other = listener(&mut world, Protocol::Tcp, "127.0.0.1:8002");
    let ops = world.accepted(other, at(CLIENT), at("127.0.0.1:8002"));
    assert_eq!(ops, [Op::Refuse { accepted: ACCEPTED }]);
    assert_eq!(count(&world, Counter::OutwardTableFull), 1);
}

#[test]
fn a_connection_outlives_its_forward_and_new_ones_are_refused() {
    let mut world = world(Protocol::Tcp, None, 8);
    let (socket, _) = connect(&mut world);
    world.input(Input::Spliced { socket });
    let rules = world.shard.rules().clone().with_outward(vec![]);
    assert!(matches!(world.install(rules)[..], [Op::Close { .. }]), "the listener is closed");
    assert_eq!(world.shard.flows().count(), 1);
    world.input(Input::SpliceEnded { socket, to_guest: 0, from_guest: 0 });
    assert_eq!(world.shard.flows().count(), 0);
}

#[test]
fn each_client_has_a_socket_by_which_only_its_server_answers() {
    let mut world = world(Protocol::Udp, None, 8);
    let listener = listener(&mut world, Protocol::Udp, "127.0.0.1:8003");
    let server = at("127.0.0.1:5003");
    let first = speak(&mut world, listener, CLIENT);
    assert_eq!(sent(&mut world), (first, server, b"question".to_vec()));
    let second = speak(&mut world, listener, "127.0.0.1:40001");
    assert_eq!(sent(&mut world), (second, server, b"question".to_vec()));
    world.datagram(first, server, b"answer", 0);
    assert_eq!(sent(&mut world), (listener, at(CLIENT), b"answer".to_vec()));
    world.datagram(first, at("127.0.0.1:9"), b"not asked", 0);
    assert!(world.sent_to.is_empty());
    assert_eq!(count(&world, Counter::OutwardFiltered), 1);
    assert_eq!(world.datagram(listener, at(CLIENT), b"", 0), [], "no second socket");
    assert_eq!(sent(&mut world), (first, server, vec![]));
}

#[test]
fn a_train_stays_one() {
    let mut world = world(Protocol::Udp, None, 8);
    let listener = listener(&mut world, Protocol::Udp, "127.0.0.1:8003");
    world.datagram(listener, at(CLIENT), &[7; 3000], 1200);
    let (_, bytes, op) = world.sent_to.pop_front().expect("a train");
    assert_eq!(bytes.len(), 3000);
    assert!(matches!(op, Op::SendTo { segment: 1200, .. }), "{op:?}");
}

#[test]
fn idle_clients_are_forgotten_and_traffic_either_way_keeps_them() {
    let mut world = world(Protocol::Udp, None, 8);
    let listener = listener(&mut world, Protocol::Udp, "127.0.0.1:8000");
    let socket = speak(&mut world, listener, CLIENT);
    world.pass(Duration::from_secs(100));
    world.datagram(socket, at("127.0.0.1:5000"), b"still here", 0);
    world.pass(Duration::from_secs(100));
    assert_eq!(world.shard.flows().count(), 1);
    let ops = world.pass(Duration::from_secs(30));
    assert_eq!(ops, [Op::Close { socket, how: CloseHow::Graceful }]);
    assert_eq!(count(&world, Counter::OutwardIdle), 1);
    assert_eq!(world.shard.next_deadline(), None);
}

#[test]
fn clients_go_with_their_listener_and_with_their_socket() {
    let mut world = world(Protocol::Udp, None, 8);
    let listener = listener(&mut world, Protocol::Udp, "127.0.0.1:8000");
    let lost = speak(&mut world, listener, CLIENT);
    let ops = world.input(Input::Failed { socket: lost, error: HostError::NoRoom });
    assert_eq!(ops, [Op::Close { socket: lost, how: CloseHow::Graceful }]);
    let socket = speak(&mut world, listener, CLIENT);
    let rules = world.shard.rules().clone().with_outward(vec![]);
    let ops = world.install(rules);
    assert_eq!(ops.len(), 2, "{ops:?}");
    assert!(ops.contains(&Op::Close { socket, how: CloseHow::Graceful }));
    assert_eq!(world.shard.flows().count(), 0);
}
