//! Acknowledgements that wait for an answer.

use core::time::Duration;

use super::*;

/// A request of the guest's and the host's answer. Whether the request was acknowledged before it was answered.
fn exchange(flow: &mut Flow) -> bool {
    flow.send(ACK | PSH, b"question");
    flow.sent(8);
    let is_early = !flow.world.written.is_empty();
    if is_early {
        assert_eq!(flow.got().ack, flow.guest);
    }
    flow.readable();
    flow.peeked_then(b"answer", PeekedThen::Empty);
    let answer = flow.got();
    assert_eq!((answer.ack, &answer.payload[..]), (flow.guest, &b"answer"[..]));
    let all = segment(flow.guest, flow.host, ACK);
    send(&mut flow.world, &all);
    assert!(flow.world.written.is_empty(), "nothing more is owed");
    is_early
}

#[test]
fn where_answers_are_quick_they_acknowledge_the_request() {
    let mut flow = established();
    assert!(exchange(&mut flow), "nothing is known of the flow");
    assert!(exchange(&mut flow));
    for _ in 0..5 {
        assert!(!exchange(&mut flow), "the answer takes it along");
    }
    flow.world.shard.check();
}

#[test]
fn a_second_segment_is_acknowledged_at_once() {
    let mut flow = established();
    for _ in 0..3 {
        exchange(&mut flow);
    }
    flow.send(ACK, b"first");
    assert!(flow.world.written.is_empty());
    flow.send(ACK, b"second");
    assert_eq!(flow.got().ack, flow.guest);
}

#[test]
fn a_guest_that_waits_for_its_acknowledgement_is_kept_waiting_once() {
    let mut flow = established();
    for _ in 0..5 {
        exchange(&mut flow);
    }
    flow.send(ACK | PSH, b"half a question");
    assert!(flow.world.written.is_empty());
    flow.world.pass(Duration::from_millis(19));
    assert!(flow.world.written.is_empty());
    flow.world.pass(Duration::from_millis(1));
    assert_eq!(flow.got().ack, flow.guest, "no answer came");
    flow.sent(15);
    for _ in 0..16 {
        assert!(exchange(&mut flow), "not again for a while");
    }
}

#[test]
fn who_was_answered_has_no_deadline_any_more() {
    let mut flow = established();
    for _ in 0..5 {
        exchange(&mut flow);
    }
    let (at, _) = flow.world.shard.next_deadline().expect("a flow has a timer");
    assert!(at.since(flow.world.now) > Duration::from_millis(20), "nothing is owed to anybody");
    flow.send(ACK | PSH, b"question");
    let (at, _) = flow.world.shard.next_deadline().expect("the acknowledgement that waits");
    assert_eq!(at.since(flow.world.now), Duration::from_millis(20));
}

/// A guest that ends its half of a new connection.
fn ended_by_guest(world: World) -> Flow {
    let mut flow = established_in(world);
    flow.send(ACK | PSH | FIN, b"answer");
    flow.sent(6);
    flow
}

/// The host ends its half at once. How many frames the guest had got until then.
fn ended_by_host(mut flow: Flow) -> (World, usize) {
    let early = flow.world.written.len();
    flow.world.written.clear();
    flow.readable();
    flow.world.input(Input::PeekEnd { socket: flow.socket });
    flow.world.flush();
    let fin = flow.got();
    assert_eq!((fin.flags, fin.ack), (FIN | ACK, flow.guest));
    flow.send(ACK, b"");
    assert_eq!(flow.world.shard.flows().count(), 0);
    flow.world.shard.check();
    (flow.world, early)
}

#[test]
fn where_hosts_end_as_soon_as_guests_their_end_takes_the_acknowledgement_along() {
    let mut world = World::new();
    for n in 0..5 {
        let (same, early) = ended_by_host(ended_by_guest(world));
        assert_eq!(early, usize::from(n < 2), "it has to be earned");
        world = same;
    }
    let mut flow = established_in(world);
    exchange(&mut flow);
    flow.send(ACK | PSH, b"answer");
    flow.sent(6);
    flow.send(ACK | FIN, b"");
    let (_, early) = ended_by_host(flow);
    assert_eq!(early, 0, "the end of what waits with its acknowledgement already");
}

#[test]
fn a_host_that_does_not_end_keeps_a_guest_waiting_once() {
    let mut world = World::new();
    for _ in 0..3 {
        world = ended_by_host(ended_by_guest(world)).0;
    }
    let mut flow = ended_by_guest(world);
    flow.world.pass(Duration::from_millis(19));
    assert!(flow.world.written.is_empty());
    flow.world.pass(Duration::from_millis(1));
    assert_eq!(flow.got().ack, flow.guest);
    world = ended_by_host(flow).0;
    for _ in 0..16 {
        let (same, early) = ended_by_host(ended_by_guest(world));
        assert_eq!(early, 1, "not again for a while");
        world = same;
    }
}

#[test]
fn a_peek_that_waits_for_a_lease_keeps_no_acknowledgement_back() {
    let mut flow = established();
    exchange(&mut flow);
    flow.readable();
    flow.send(ACK | PSH, b"one");
    assert!(flow.world.written.is_empty(), "the peek may bring an answer");
    flow.world.pass(Duration::from_micros(10));
    flow.send(ACK | PSH, b"two");
    assert_eq!(flow.got().ack, flow.guest);
}
