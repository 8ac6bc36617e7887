//! UDP, DNS and ping.

use std::net::SocketAddr;

use usernet_core::op::{Checksum, Gso};
use usernet_core::rules::Protocol;
use usernet_core::{Counter, Input, Offload, Op, SocketId};

use super::tcp::{listener, with_forwards};
use crate::replay::guest::{VALID, at, echo, guest_port, server, udp};
use crate::replay::{Log, Recorder};

const PAYLOAD: usize = 1_400;
const PER_TURN: usize = 32;
const TURNS: usize = 32;
/// Datagrams in a train.
const TRAIN: usize = 40;
const TRAIN_OFFLOAD: Offload =
    Offload { checksum: Checksum::Valid, gso: Gso::Udp { size: PAYLOAD as u16 } };

/// The guest sends a datagram from this port.
pub(super) fn send(rec: &mut Recorder, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let frame = udp(rec.config(), from, to, payload);
    rec.frame(frame, VALID);
}

/// Datagrams, or trains, that left: every one of them as one op.
pub(super) fn sent(rec: &Recorder) -> usize {
    let whole = |op: &&Op| matches!(op, Op::SendTo { more: false, .. });
    rec.measured_ops().iter().filter(whole).count()
}

fn written(rec: &Recorder) -> usize {
    rec.measured_ops().iter().filter(|op| matches!(op, Op::WriteFrame { .. })).count()
}

/// The socket that was asked for, now open.
pub(super) fn opened(rec: &mut Recorder, local: &str) -> SocketId {
    let open = |op: &Op| if let Op::Open { socket, .. } = *op { Some(socket) } else { None };
    let socket = rec.ops().iter().find_map(open).expect("a socket is asked for");
    let local = at(local);
    rec.tell(|| Input::Opened { socket, local });
    socket
}

/// A guest with one mapping.
fn with_mapping() -> (Recorder, SocketId) {
    let mut rec = Recorder::new();
    send(&mut rec, guest_port(0), server(), &[0; PAYLOAD]);
    let socket = opened(&mut rec, "0.0.0.0:1024");
    rec.turn();
    (rec, socket)
}

pub(super) fn udp_out() -> Log {
    let (mut rec, _) = with_mapping();
    rec.measure();
    for _ in 0..TURNS {
        for _ in 0..PER_TURN {
            send(&mut rec, guest_port(0), server(), &[0; PAYLOAD]);
        }
        rec.turn();
    }
    assert_eq!(sent(&rec), TURNS * PER_TURN);
    rec.finish(TURNS * PER_TURN)
}

pub(super) fn udp_out_trains() -> Log {
    let (mut rec, _) = with_mapping();
    rec.measure();
    for _ in 0..TURNS {
        for _ in 0..4 {
            let frame = udp(rec.config(), guest_port(0), server(), &[0; TRAIN * PAYLOAD]);
            rec.frame(frame, TRAIN_OFFLOAD);
        }
        rec.turn();
    }
    let train = |op: &&Op| matches!(op, Op::SendTo { segment, .. } if *segment == PAYLOAD as u16);
    assert_eq!(rec.measured_ops().iter().filter(train).count(), 4 * TURNS);
    rec.finish(4 * TURNS)
}

pub(super) fn udp_in() -> Log {
    let (mut rec, socket) = with_mapping();
    rec.measure();
    for _ in 0..TURNS {
        for _ in 0..PER_TURN {
            rec.datagram(socket, server(), &[0; PAYLOAD], 0);
        }
        rec.turn();
    }
    assert_eq!(written(&rec), TURNS * PER_TURN);
    rec.finish(TURNS * PER_TURN)
}

pub(super) fn udp_in_trains() -> Log {
    let (mut rec, socket) = with_mapping();
    rec.measure();
    for _ in 0..TURNS {
        for _ in 0..4 {
            rec.datagram(socket, server(), &[0; TRAIN * PAYLOAD], PAYLOAD as u16);
        }
        rec.turn();
    }
    assert_eq!(written(&rec), 4 * TURNS);
    rec.finish(4 * TURNS)
}

/// The first datagram of a port, and the end of its mapping.
pub(super) fn udp_mappings() -> Log {
    const MAPPINGS: usize = 256;
    let mut rec = Recorder::new();
    rec.measure();
    for n in 0..MAPPINGS {
        send(&mut rec, guest_port(n), server(), &[0; 100]);
        opened(&mut rec, "0.0.0.0:1024");
        rec.turn();
    }
    rec.pass(rec.config().timeouts.udp_idle * 2);
    assert_eq!(rec.counted(Counter::UdpMappingsIdle), MAPPINGS as u64);
    assert_eq!(sent(&rec), MAPPINGS);
    rec.finish(MAPPINGS)
}

/// A client of the last of so many forwards asks, the guest answers.
pub(super) fn udp_by(forwards: u16) -> Log {
    const EXCHANGES: usize = 256;
    let mut rec = with_forwards(Protocol::Udp, forwards);
    let client = at("192.0.2.9:5000");
    rec.measure();
    for _ in 0..EXCHANGES {
        rec.datagram(listener(forwards - 1), client, &[0; 100], 0);
        send(&mut rec, at("10.0.2.100:80"), client, &[0; 200]);
        rec.turn();
    }
    assert_eq!((written(&rec), sent(&rec)), (EXCHANGES, EXCHANGES));
    assert_eq!(rec.counted(Counter::UdpMappings), 0, "answers go by the forward");
    rec.finish(EXCHANGES)
}

pub(super) fn udp_forward() -> Log {
    udp_by(1)
}

/// One question, with the identifier and the flags of a query or an answer.
fn message(id: u16, flags: [u8; 2]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&flags);
    message.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(b"\x03www\x07example\x03org\0\0\x01\0\x01");
    message
}

pub(super) fn dns() -> Log {
    const EXCHANGES: usize = 256;
    let mut rec = Recorder::new();
    rec.measure();
    for n in 0..EXCHANGES as u16 {
        send(&mut rec, guest_port(0), at("10.0.2.3:53"), &message(n, [1, 0]));
        let socket = opened(&mut rec, "0.0.0.0:1024");
        rec.turn();
        rec.datagram(socket, at("192.0.2.53:53"), &message(n, [0x81, 0x80]), 0);
        rec.turn();
    }
    assert_eq!(rec.counted(Counter::DnsAnswers), EXCHANGES as u64);
    assert_eq!((written(&rec), sent(&rec)), (EXCHANGES, EXCHANGES));
    rec.finish(EXCHANGES)
}

pub(super) fn ping() -> Log {
    const EXCHANGES: usize = 512;
    let mut rec = Recorder::new();
    let host = at("192.0.2.7:0");
    let request = echo(rec.config(), host, 8, 7);
    rec.frame(request.clone(), VALID);
    let socket = opened(&mut rec, "0.0.0.0:7");
    let reply = echo(rec.config(), host, 0, 7)[14 + 20..].to_vec();
    rec.measure();
    for _ in 0..EXCHANGES {
        rec.frame(request.clone(), VALID);
        rec.turn();
        rec.datagram(socket, host, &reply, 0);
        rec.turn();
    }
    assert_eq!((written(&rec), sent(&rec)), (EXCHANGES, EXCHANGES));
    rec.finish(EXCHANGES)
}

pub(super) fn ping_gateway() -> Log {
    const EXCHANGES: usize = 512;
    let mut rec = Recorder::new();
    let request = echo(rec.config(), at("10.0.2.2:0"), 8, 7);
    rec.measure();
    for _ in 0..EXCHANGES {
        rec.frame(request.clone(), VALID);
        rec.turn();
    }
    assert_eq!(rec.counted(Counter::EchoAnswered), EXCHANGES as u64);
    assert_eq!(written(&rec), EXCHANGES);
    rec.finish(EXCHANGES)
}
