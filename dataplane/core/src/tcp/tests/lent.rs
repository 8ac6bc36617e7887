//! Flows that are lent to another shard, and come back.

use super::*;
use crate::config::{ShardId, Share};

/// The one that has the flows, or the one that is lent some.
fn one_of_two(own: u8, flows: u32) -> World {
    let mut config = Config::example();
    config.limits.flows = flows;
    let config = config.shared_by(Share { own: ShardId(own), shards: 2, homes: 1 });
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
    World::with(config, rules)
}

/// 20,000 bytes are on their way to the guest, and there are no more.
fn downloading(flows: u32) -> Flow {
    let mut flow = established_in(one_of_two(0, flows));
    flow.readable();
    flow.peeked(&[7; 20_000]);
    let ops = flow.world.input(Input::PeekEmpty { socket: flow.socket });
    assert_eq!(ops, []);
    assert_eq!(flow.world.flush(), []);
    while !flow.world.written.is_empty() {
        flow.got();
    }
    flow
}

fn lend(from: &mut World, socket: SocketId, to: &mut World, shard: u8) -> SocketId {
    let lent = from.shard.lend(socket, ShardId(shard)).expect("it can go");
    from.shard.check();
    assert!(from.shard.lend(socket, ShardId(shard)).is_none(), "it is gone");
    let now = to.now;
    let socket = to.shard.take_in(now, lent);
    to.shard.check();
    socket
}

/// A segment of the guest's that comes to one shard, and what becomes of it when it was handed on.
fn by_way_of(first: &mut World, then: &mut World, sent: &Sent) -> Vec<Op> {
    let ops = send(first, sent);
    assert_eq!(ops, []);
    let (_, bytes, offload) = first.handed_over.pop_front().expect("it is handed on");
    let mut ops = then.handed(&bytes, offload);
    ops.extend(then.flush());
    ops.retain(|op| !matches!(op, Op::TellNeighbor { .. }));
    ops
}

#[test]
fn a_flow_in_bulk_goes_to_another_shard_and_comes_back_when_it_is_quiet() {
    let mut flow = downloading(100);
    let mut other = one_of_two(1, 100);
    let now = flow.world.now;
    assert_eq!(flow.world.shard.in_bulk(now).collect::<Vec<_>>(), [flow.socket]);
    assert_eq!(flow.world.shard.quiet(now).count(), 0);
    let socket = lend(&mut flow.world, flow.socket, &mut other, 1);
    assert_eq!(flow.world.shard.lent(), 1);
    assert_eq!((flow.world.shard.flows().count(), other.shard.flows().count()), (0, 1));
    // What came meanwhile is looked for behind what is on its way.
    let ops = other.flush();
    assert!(matches!(ops[..], [Op::Peek { offset: 20_000, .. }]), "{ops:?}");
    other.input(Input::PeekEmpty { socket });
    assert_eq!(other.flush(), []);
    // The guest's words come to either.
    let half = segment(flow.guest, flow.host - 10_000, ACK);
    assert_eq!(by_way_of(&mut flow.world, &mut other, &half), []);
    let all = segment(flow.guest, flow.host, ACK);
    let ops = send(&mut other, &all);
    assert_eq!(ops, [Op::Consume { socket, bytes: 20_000 }]);
    // Nothing is on its way any more.
    other.pass(Duration::from_millis(150));
    let now = other.now;
    assert_eq!(other.shard.quiet(now).collect::<Vec<_>>(), [socket]);
    flow.world.now = now;
    flow.socket = lend(&mut other, socket, &mut flow.world, 0);
    assert_eq!((flow.world.shard.lent(), other.shard.lent()), (0, 0));
    assert_eq!((flow.world.shard.flows().count(), other.shard.flows().count()), (1, 0));
    let word = segment(flow.guest, flow.host, ACK | PSH).with(b"hello");
    let ops = by_way_of(&mut other, &mut flow.world, &word);
    assert!(
        ops.iter().any(|op| matches!(op, Op::Send { socket, .. } if *socket == flow.socket)),
        "{ops:?}"
    );
}

#[test]
fn a_flow_that_has_something_here_stays() {
    let mut flow = downloading(100);
    flow.readable();
    assert!(flow.world.shard.lend(flow.socket, ShardId(1)).is_none(), "a peek is outstanding");
    flow.world.input(Input::PeekEmpty { socket: flow.socket });
    flow.world.flush();
    flow.send(ACK | PSH, b"words");
    assert!(flow.world.shard.lend(flow.socket, ShardId(1)).is_none(), "a send is outstanding");
    flow.sent(5);
    assert!(flow.world.shard.lend(flow.socket, ShardId(1)).is_some());
    flow.world.shard.check();
}

#[test]
fn a_flow_that_has_ended_elsewhere_is_told_to_its_home() {
    let mut flow = downloading(100);
    let mut other = one_of_two(1, 100);
    let socket = lend(&mut flow.world, flow.socket, &mut other, 1);
    other.flush();
    other.input(Input::PeekEmpty { socket });
    let ops = send(&mut other, &segment(flow.guest, flow.host, RST));
    assert_eq!(ops, [Op::Close { socket, how: CloseHow::Reset }]);
    let syn = segment(9_000, 0, SYN).options(&SYN_OPTIONS);
    // Nobody bounces it to and fro: its home hears of the end first.
    assert_eq!(by_way_of(&mut flow.world, &mut other, &syn), []);
    assert!(other.handed_over.is_empty());
    let (guest, remote) = other.shard.ended().expect("it has ended");
    assert_eq!((guest, remote), (at(GUEST), at(REMOTE)));
    assert_eq!(other.shard.ended(), None, "once");
    flow.world.shard.forget_lent(guest, remote);
    assert_eq!(flow.world.shard.lent(), 0);
    let ops = by_way_of(&mut other, &mut flow.world, &syn);
    assert!(matches!(ops[..], [Op::Connect { .. }]), "{ops:?}");
}

#[test]
fn its_place_is_kept_at_home() {
    let mut flow = downloading(1);
    let mut other = one_of_two(1, 1);
    let socket = lend(&mut flow.world, flow.socket, &mut other, 1);
    let syn = segment(1, 0, SYN).options(&SYN_OPTIONS);
    let frame = syn.frame(at("10.0.2.100:40001"), at(REMOTE));
    assert_eq!(flow.world.frame(&frame, VALID), []);
    assert_eq!(flow.world.shard.counters().value(Counter::TcpTableFull), 1);
    other.flush();
    other.input(Input::PeekEmpty { socket });
    lend(&mut other, socket, &mut flow.world, 0);
    assert_eq!(flow.world.shard.flows().count(), 1);
}
