//! What is flushed before the turn ends.

use super::*;

/// A segment that is sent on before the turn ends: what the shard does then.
fn amid_frames(flow: &mut Flow, flags: u8, part: &[u8]) -> Vec<Op> {
    let sent = segment(flow.guest, flow.host, flags).with(part);
    flow.guest += part.len() as u32 + u32::from(flags & FIN != 0);
    let mut ops = flow.world.frame(&sent.frame(at(GUEST), at(REMOTE)), VALID);
    ops.extend(flow.world.flush_amid_frames());
    ops
}

#[test]
fn amid_frames_segments_are_sent_on_at_once_and_acknowledged_in_the_end() {
    let mut flow = established();
    for part in [b"one", b"two"] {
        let ops = amid_frames(&mut flow, ACK, part);
        let [Op::Send { span, more: false, .. }] = ops[..] else { panic!("a send: {ops:?}") };
        assert_eq!(flow.world.bytes(span), part);
        let mut ops = flow.world.input(Input::Sent { socket: flow.socket, bytes: 3 });
        ops.extend(flow.world.flush_amid_frames());
        assert_eq!(ops, []);
        assert!(flow.world.written.is_empty(), "nothing for the guest yet");
    }
    assert_eq!(flow.world.flush(), []);
    assert_eq!(flow.got().ack, flow.guest);
    assert_eq!(flow.world.flush(), []);
    assert!(flow.world.written.is_empty(), "once");
    assert_eq!(flow.world.leases_out(), 0);
}

#[test]
fn amid_frames_what_must_be_acknowledged_at_once_is() {
    let mut flow = established();
    let probe = segment(flow.guest - 1, flow.host, ACK);
    assert_eq!(flow.world.frame(&probe.frame(at(GUEST), at(REMOTE)), VALID), []);
    assert_eq!(flow.world.flush_amid_frames(), []);
    assert_eq!(flow.got().ack, flow.guest, "a keep-alive");
}

#[test]
fn a_flow_that_ends_amid_frames_owes_nothing() {
    let mut flow = established();
    amid_frames(&mut flow, ACK, b"one");
    flow.world.input(Input::Sent { socket: flow.socket, bytes: 3 });
    let ops = amid_frames(&mut flow, RST, b"");
    assert!(matches!(ops[..], [Op::Close { .. }]), "{ops:?}");
    assert_eq!(flow.world.flush(), []);
    assert!(flow.world.written.is_empty(), "nobody is there to be told");
}
