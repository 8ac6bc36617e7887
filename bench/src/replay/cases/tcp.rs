//! TCP: bulk in both directions, small exchanges, whole connections.

use std::time::Duration;

use usernet_core::op::{Checksum, CloseHow, Gso};
use usernet_core::rules::{Access, Forward, HostLoopback, Protocol};
use usernet_core::{
    AcceptedId, Config, Counter, ForwardId, Input, Offload, Op, PeekedThen, Rules, SocketId,
};

use crate::replay::guest::{ACK, Connection, FIN, SEGMENT, VALID, at, guest_port, server};
use crate::replay::{Log, Recorder};

/// Payload of a super-frame: whole segments.
const SUPER: usize = 45 * SEGMENT;
const FRAMES_PER_TURN: usize = 32;
const CONNECTIONS: usize = 128;

/// The host's sockets take all that they are to send. How many bytes that was.
pub(super) fn host_takes(rec: &mut Recorder) -> usize {
    let mut run = 0;
    let mut taken = 0;
    for op in rec.ops() {
        let Op::Send { socket, span, more } = op else { continue };
        run += span.len;
        if !more {
            let bytes = std::mem::take(&mut run);
            rec.tell(|| Input::Sent { socket, bytes });
            taken += bytes as usize;
        }
    }
    taken
}

/// The `Peek` that the core asks for now: most bytes, and most per lease.
pub(super) fn asked(rec: &mut Recorder) -> (usize, usize) {
    let peek = |op: &Op| match *op {
        Op::Peek { len, chunk, .. } => Some((len as usize, chunk as usize)),
        _ => None,
    };
    rec.ops().iter().find_map(peek).expect("it peeks")
}

/// Turns with so many frames each.
fn out(mut rec: Recorder, conn: &mut Connection, turns: usize, size: (usize, usize)) -> Log {
    let (frames, payload) = size;
    out_as(&mut rec, conn, turns, frames, payload, VALID);
    rec.finish(turns * frames)
}

fn out_as(
    rec: &mut Recorder,
    conn: &mut Connection,
    turns: usize,
    frames: usize,
    payload: usize,
    offload: Offload,
) {
    rec.measure();
    for _ in 0..turns {
        for _ in 0..frames {
            conn.send_as(rec, ACK, payload, offload);
        }
        rec.turn();
        assert_eq!(host_takes(rec), frames * payload, "all of it reaches the host");
    }
    let is_ack = |op: &&Op| matches!(op, Op::WriteFrame { .. });
    assert!(rec.measured_ops().iter().filter(is_ack).count() >= turns, "it is acknowledged");
}

pub(super) fn out_super_frames() -> Log {
    let mut rec = Recorder::new();
    let mut conn = Connection::open(&mut rec, guest_port(0), server());
    out(rec, &mut conn, 128, (1, SUPER))
}

pub(super) fn out_frames() -> Log {
    let mut rec = Recorder::new();
    let mut conn = Connection::open(&mut rec, guest_port(0), server());
    out(rec, &mut conn, 32, (FRAMES_PER_TURN, SEGMENT))
}

pub(super) fn out_frames_v6() -> Log {
    let mut rec = Recorder::new();
    let mut conn = Connection::open(&mut rec, at("[fd00::64]:40000"), at("[2001:db8::7]:80"));
    out(rec, &mut conn, 32, (FRAMES_PER_TURN, SEGMENT))
}

pub(super) fn out_frames_verified() -> Log {
    let mut rec = Recorder::new();
    let mut conn = Connection::open(&mut rec, guest_port(0), server());
    let unchecked = Offload { checksum: Checksum::Unchecked, gso: Gso::None };
    out_as(&mut rec, &mut conn, 32, FRAMES_PER_TURN, SEGMENT, unchecked);
    rec.finish(32 * FRAMES_PER_TURN)
}

/// The guest acknowledges so many more bytes.
fn acknowledge(rec: &mut Recorder, conn: &mut Connection, bytes: usize) {
    conn.expected = conn.expected.wrapping_add(bytes as u32);
    conn.send(rec, ACK, 0);
}

fn frames_to_guest(rec: &Recorder) -> usize {
    let with_payload = |op: &&Op| matches!(op, Op::WriteFrame { span, .. } if span.len > 100);
    rec.measured_ops().iter().filter(with_payload).count()
}

fn consumed(rec: &Recorder) -> usize {
    let bytes = |op: &Op| if let Op::Consume { bytes, .. } = *op { bytes as usize } else { 0 };
    rec.measured_ops().iter().map(bytes).sum()
}

/// The host has more than the guest's window takes: four super-frames per peek, acknowledged in pairs.
pub(super) fn in_super_frames() -> Log {
    const TURNS: usize = 32;
    let mut rec = Recorder::new();
    let mut conn = Connection::open(&mut rec, guest_port(0), server());
    let socket = conn.socket;
    rec.measure();
    rec.tell(|| Input::Readable { socket });
    rec.turn();
    for _ in 0..TURNS {
        let (len, chunk) = asked(&mut rec);
        assert_eq!(len, 4 * chunk, "it asks for four");
        for n in 1..=4 {
            let then = if n == 4 { PeekedThen::Unknown } else { PeekedThen::More };
            rec.peeked(socket, chunk, then);
        }
        for _ in 0..2 {
            acknowledge(&mut rec, &mut conn, 2 * chunk);
        }
        rec.turn();
    }
    assert_eq!(frames_to_guest(&rec), 4 * TURNS, "all of it reaches the guest");
    assert!(consumed(&rec) > 3 * TURNS * SUPER, "and leaves the host's socket");
    rec.finish(4 * TURNS)
}

/// The host's bytes come in single segments, acknowledged in pairs.
pub(super) fn in_frames() -> Log {
    const PAIRS: usize = 256;
    let mut rec = Recorder::new();
    let mut conn = Connection::open(&mut rec, guest_port(0), server());
    let socket = conn.socket;
    rec.measure();
    for _ in 0..PAIRS {
        for _ in 0..2 {
            rec.tell(|| Input::Readable { socket });
            rec.turn();
            asked(&mut rec);
            rec.peeked(socket, SEGMENT, PeekedThen::Empty);
            rec.turn();
        }
        acknowledge(&mut rec, &mut conn, 2 * SEGMENT);
        rec.turn();
    }
    assert_eq!(frames_to_guest(&rec), 2 * PAIRS, "all of it reaches the guest");
    assert_eq!(consumed(&rec), 2 * PAIRS * SEGMENT, "and leaves the host's socket");
    rec.finish(2 * PAIRS)
}

/// 100 bytes to the host, 200 back.
pub(super) fn requests() -> Log {
    const EXCHANGES: usize = 256;
    let mut rec = Recorder::new();
    let mut conn = Connection::open(&mut rec, guest_port(0), server());
    let socket = conn.socket;
    rec.measure();
    for _ in 0..EXCHANGES {
        conn.send(&mut rec, ACK, 100);
        rec.turn();
        assert_eq!(host_takes(&mut rec), 100);
        rec.tell(|| Input::Readable { socket });
        rec.turn();
        asked(&mut rec);
        rec.peeked(socket, 200, PeekedThen::Empty);
        rec.turn();
        acknowledge(&mut rec, &mut conn, 200);
        rec.turn();
    }
    assert_eq!(consumed(&rec), 200 * EXCHANGES);
    rec.finish(EXCHANGES)
}

/// The guest's request, an answer, and the end of both halves: the host's first.
fn converse(rec: &mut Recorder, conn: &mut Connection) {
    let socket = conn.socket;
    conn.send(rec, ACK, 100);
    rec.turn();
    assert_eq!(host_takes(rec), 100);
    rec.tell(|| Input::Readable { socket });
    rec.turn();
    asked(rec);
    rec.peeked(socket, 200, PeekedThen::End);
    rec.turn();
    conn.expected = conn.expected.wrapping_add(201);
    conn.send(rec, ACK | FIN, 0);
    rec.turn();
    rec.turn();
}

/// The same the other way: the client's request ends the handshake, and the guest closes first.
fn converse_in(rec: &mut Recorder, conn: &mut Connection) {
    let socket = conn.socket;
    asked(rec);
    rec.peeked(socket, 100, PeekedThen::Empty);
    rec.turn();
    conn.expected = conn.expected.wrapping_add(100);
    conn.send(rec, ACK | FIN, 200);
    rec.turn();
    assert_eq!(host_takes(rec), 200);
    rec.tell(|| Input::Readable { socket });
    rec.turn();
    asked(rec);
    rec.tell(|| Input::PeekEnd { socket });
    rec.turn();
    conn.expected = conn.expected.wrapping_add(1);
    conn.send(rec, ACK, 0);
    rec.turn();
}

/// So many connections were closed, by both ends, and nothing of them is left.
fn finish_connections(mut rec: Recorder, connections: usize) -> Log {
    rec.pass(Duration::from_secs(10));
    let graceful = |op: &&Op| matches!(op, Op::Close { how: CloseHow::Graceful, .. });
    assert_eq!(rec.measured_ops().iter().filter(graceful).count(), connections);
    assert_eq!(rec.counted(Counter::TcpClosed), connections as u64);
    assert_eq!(rec.counted(Counter::TcpResetsToGuest), 0);
    assert_eq!(rec.flows(), 0, "they have ended");
    rec.finish(connections)
}

pub(super) fn connections_out() -> Log {
    let mut rec = Recorder::new();
    rec.measure();
    for n in 0..CONNECTIONS {
        let mut conn = Connection::open(&mut rec, guest_port(n), server());
        converse(&mut rec, &mut conn);
    }
    finish_connections(rec, CONNECTIONS)
}

/// A guest with so many forwards, from port 2000 on.
pub(super) fn with_forwards(protocol: Protocol, forwards: u16) -> Recorder {
    let config = Config::example();
    let forward = |n| Forward {
        id: ForwardId(u32::from(n)),
        protocol,
        host_ports: (2_000 + n, 2_000 + n),
        guest: None,
        guest_port: 80,
    };
    let access = Access::new(&config, HostLoopback::None);
    let rules = Rules::new(&config, &access, (0..forwards).map(forward).collect(), vec![]);
    Recorder::with(config, rules)
}

/// The listener of a forward: they are attached first, in order.
pub(super) fn listener(n: u16) -> SocketId {
    SocketId { index: u32::from(n), generation: 0 }
}

/// A client connects to a forward.
fn accepted(rec: &mut Recorder, forward: u16, client: &str, n: usize) {
    let mut peer = at(client);
    peer.set_port(20_000 + n as u16);
    let mut local = at("192.0.2.1:0");
    local.set_port(2_000 + forward);
    let accepted = AcceptedId(n as u32);
    rec.tell(|| Input::Accepted { accepted, listener: listener(forward), peer, local });
}

pub(super) fn connections_in_by(forwards: u16) -> Log {
    let mut rec = with_forwards(Protocol::Tcp, forwards);
    rec.measure();
    for n in 0..CONNECTIONS {
        accepted(&mut rec, forwards - 1, "192.0.2.9:0", n);
        rec.turn();
        let adopt = |op: &Op| if let Op::Adopt { socket, .. } = *op { Some(socket) } else { None };
        let socket = rec.ops().iter().find_map(adopt).expect("it is adopted");
        let remote = at(&format!("192.0.2.9:{}", 20_000 + n));
        let mut conn = Connection::answer(&mut rec, at("10.0.2.100:80"), remote, socket);
        converse_in(&mut rec, &mut conn);
    }
    finish_connections(rec, CONNECTIONS)
}

pub(super) fn connections_in() -> Log {
    connections_in_by(1)
}

pub(super) fn connections_spliced() -> Log {
    let mut rec = with_forwards(Protocol::Tcp, 1);
    rec.measure();
    for n in 0..CONNECTIONS {
        accepted(&mut rec, 0, "127.0.0.1:0", n);
        rec.turn();
        let splice =
            |op: &Op| if let Op::Splice { socket, .. } = *op { Some(socket) } else { None };
        let socket = rec.ops().iter().find_map(splice).expect("it is spliced");
        rec.tell(|| Input::Spliced { socket });
        rec.turn();
        rec.tell(|| Input::SpliceEnded { socket, to_guest: 100, from_guest: 200 });
        rec.turn();
    }
    assert_eq!(rec.counted(Counter::TcpSpliced), CONNECTIONS as u64);
    assert_eq!(rec.flows(), 0, "they have ended");
    rec.finish(CONNECTIONS)
}

/// What a super-frame to the guest costs on a link without offload.
pub(super) fn cut() -> Log {
    const SUPER_FRAMES: usize = 8;
    let mut rec = Recorder::new();
    rec.measure();
    let offload = Offload {
        checksum: Checksum::Partial { start: 34, offset: 16 },
        gso: Gso::Tcp4 { size: SEGMENT as u16 },
    };
    for _ in 0..SUPER_FRAMES {
        let mut conn = Connection::unconnected(guest_port(0), server());
        let bytes = conn.frame(rec.config(), ACK, SUPER);
        rec.cut(bytes, offload);
    }
    assert_eq!(rec.frames_cut(), (SUPER_FRAMES * 45) as u64);
    rec.finish(SUPER_FRAMES * 45)
}
