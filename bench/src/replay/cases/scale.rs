//! What must not depend on how much there is of everything else: each of these has a counterpart with one flow, one
//! forward, no open port.

use std::time::Duration;

use usernet_core::rules::{Access, HostLoopback};
use usernet_core::{Config, Input, Op, PeekedThen, Rules};

use super::datagrams::{opened, send, sent, udp_by};
use super::tcp::{asked, connections_in_by, host_takes};
use crate::replay::guest::{ACK, Connection, SEGMENT, guest_port, server};
use crate::replay::{Log, Recorder};

const PER_TURN: usize = 32;
const TURNS: usize = 32;
/// Not a divisor of the numbers of flows: the ones that are spoken to lie far apart.
const STRIDE: usize = 313;

fn connections(rec: &mut Recorder, flows: usize) -> Vec<Connection> {
    (0..flows).map(|n| Connection::open(rec, guest_port(n), server())).collect()
}

/// Turns in which each frame is of another flow.
fn out_of(flows: usize) -> Log {
    let mut rec = Recorder::new();
    let mut all = connections(&mut rec, flows);
    let mut which = (0..).map(|n| n * STRIDE % flows);
    rec.measure();
    for _ in 0..TURNS {
        for flow in which.by_ref().take(PER_TURN) {
            all[flow].send(&mut rec, ACK, SEGMENT);
        }
        rec.turn();
        assert_eq!(host_takes(&mut rec), PER_TURN * SEGMENT, "all of it reaches the host");
    }
    rec.finish(TURNS * PER_TURN)
}

pub(super) fn out_of_1_000_flows() -> Log {
    out_of(1_000)
}

pub(super) fn out_of_10_000_flows() -> Log {
    out_of(10_000)
}

/// As `tcp in, MTU frames`, but each pair is of another flow.
pub(super) fn in_of_10_000_flows() -> Log {
    const PAIRS: usize = 256;
    let mut rec = Recorder::new();
    let mut all = connections(&mut rec, 10_000);
    rec.measure();
    for n in 0..PAIRS {
        let conn = &mut all[n * STRIDE % 10_000];
        let socket = conn.socket;
        for _ in 0..2 {
            rec.tell(|| Input::Readable { socket });
            rec.turn();
            asked(&mut rec);
            rec.peeked(socket, SEGMENT, PeekedThen::Empty);
            rec.turn();
        }
        conn.expected = conn.expected.wrapping_add(2 * SEGMENT as u32);
        conn.send(&mut rec, ACK, 0);
        rec.turn();
    }
    let consumed = |op: &&Op| matches!(op, Op::Consume { .. });
    assert_eq!(rec.measured_ops().iter().filter(consumed).count(), PAIRS);
    rec.finish(2 * PAIRS)
}

pub(super) fn udp_out_of_10_000_mappings() -> Log {
    let mut rec = Recorder::new();
    for n in 0..10_000 {
        send(&mut rec, guest_port(n), server(), &[0; 100]);
        opened(&mut rec, "0.0.0.0:1024");
        rec.turn();
    }
    let mut which = (0..).map(|n| n * STRIDE % 10_000);
    rec.measure();
    for _ in 0..TURNS {
        for mapping in which.by_ref().take(PER_TURN) {
            send(&mut rec, guest_port(mapping), server(), &[0; 1_400]);
        }
        rec.turn();
    }
    assert_eq!(sent(&rec), TURNS * PER_TURN);
    rec.finish(TURNS * PER_TURN)
}

/// Nothing happens, for a second; every flow has its timer.
pub(super) fn ticks_with_10_000_flows() -> Log {
    const TICKS: usize = 1_000;
    let mut rec = Recorder::new();
    connections(&mut rec, 10_000);
    rec.measure();
    for _ in 0..TICKS {
        rec.pass(Duration::from_millis(1));
    }
    assert_eq!((rec.flows(), rec.measured_ops().len()), (10_000, 0), "they are idle");
    rec.finish(TICKS)
}

pub(super) fn connections_of_1_000_forwards() -> Log {
    connections_in_by(1_000)
}

pub(super) fn udp_of_1_000_forwards() -> Log {
    udp_by(1_000)
}

/// A thousand single ports of the host's loopback are open to the guest, which speaks to somebody else.
pub(super) fn udp_past_1_000_ports() -> Log {
    let config = Config::example();
    let ports = HostLoopback::Ports((0..1_000).map(|n| (3_000 + 2 * n, 3_000 + 2 * n)).collect());
    let rules = Rules::new(&config, &Access::new(&config, ports), vec![], vec![]);
    let mut rec = Recorder::with(config, rules);
    rec.measure();
    for _ in 0..TURNS {
        for _ in 0..PER_TURN {
            send(&mut rec, guest_port(0), server(), &[0; 1_400]);
        }
        rec.turn();
    }
    assert_eq!(sent(&rec), TURNS * PER_TURN);
    rec.finish(TURNS * PER_TURN)
}
