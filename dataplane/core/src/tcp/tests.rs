//! What a guest and a host see of TCP, frame by frame.

mod amid_frames;
mod flood;
mod lent;
mod patience;
mod sack;
mod stuck;

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use super::segment::{ACK, ECE, FIN, PSH, RST, SYN};
use crate::config::Config;
use crate::counters::Counter;
use crate::op::{
    Checksum, CloseHow, ForwardId, Gso, HostError, Input, Namespace, Offload, Op, PeekedThen,
    SocketId,
};
use crate::packet::build::IpHeader;
use crate::packet::protocol;
use crate::rules::{Access, DnsService, HostLoopback, Protocol, Rules};
use crate::testing::{World, forward};

const GUEST: &str = "10.0.2.100:40000";
const REMOTE: &str = "192.0.2.7:80";
const VALID: Offload = Offload { checksum: Checksum::Valid, gso: Gso::None };

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A segment as the guest would send it.
#[derive(Clone)]
struct Sent {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

fn segment(seq: u32, ack: u32, flags: u8) -> Sent {
    Sent { seq, ack, flags, window: 0xffff, options: vec![], payload: vec![] }
}

impl Sent {
    fn with(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    fn window(mut self, window: u16) -> Self {
        self.window = window;
        self
    }

    fn frame(&self, guest: SocketAddr, remote: SocketAddr) -> Vec<u8> {
        let config = Config::example();
        let mut tcp = vec![0; 20];
        tcp[0..2].copy_from_slice(&guest.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&remote.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = ((20 + self.options.len()) as u8 / 4) << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        tcp.extend_from_slice(&self.options);
        tcp.extend_from_slice(&self.payload);
        let ip = IpHeader {
            source_mac: config.guest_mac,
            destination_mac: config.host_mac,
            source: guest.ip(),
            destination: remote.ip(),
            protocol: protocol::TCP,
            tos: 0,
            hop_limit: 64,
        };
        let mut frame = vec![0; ip.bytes()];
        ip.write(&mut frame, tcp.len());
        frame.extend_from_slice(&tcp);
        frame
    }
}

/// What the guest reads from a frame of ours.
#[derive(Debug)]
struct Got {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
    gso: Gso,
}

/// A world with one connection between `GUEST` and `REMOTE`.
struct Flow {
    world: World,
    socket: SocketId,
    /// The guest's next sequence number, and ours.
    guest: u32,
    host: u32,
}

fn got(world: &mut World) -> Got {
    let written = world.next_written();
    let sliced = etherparse::SlicedPacket::from_ethernet(&written.bytes).expect("a sound frame");
    let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("a TCP segment: {sliced:?}")
    };
    Got {
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        flags: tcp.header_slice()[13],
        window: tcp.window_size(),
        options: tcp.options().to_vec(),
        payload: tcp.payload().to_vec(),
        gso: written.offload.gso,
    }
}

fn send(world: &mut World, sent: &Sent) -> Vec<Op> {
    let frame = sent.frame(at(GUEST), at(REMOTE));
    let mut ops = world.frame(&frame, VALID);
    ops.extend(world.flush());
    ops.retain(|op| !matches!(op, Op::TellNeighbor { .. }));
    ops
}

/// Maximum segment size 1460 and window scale 7.
const SYN_OPTIONS: [u8; 8] = [2, 4, 5, 180, 1, 3, 3, 7];

fn connect(world: &mut World) -> SocketId {
    let ops = send(world, &segment(1000, 0, SYN).options(&SYN_OPTIONS));
    let [Op::Connect { socket, to, on: Namespace::Host }] = ops[..] else {
        panic!("a connect: {ops:?}")
    };
    assert_eq!(to, at(REMOTE));
    assert!(world.written.is_empty(), "no answer before the host has answered");
    socket
}

fn established() -> Flow {
    established_in(World::new())
}

fn established_in(mut world: World) -> Flow {
    let socket = connect(&mut world);
    assert_eq!(world.input(Input::Connected { socket }), []);
    let answer = got(&mut world);
    assert_eq!((answer.flags, answer.ack), (SYN | ACK, 1001));
    let ops = send(&mut world, &segment(1001, answer.seq + 1, ACK));
    assert_eq!(ops, []);
    Flow { world, socket, guest: 1001, host: answer.seq + 1 }
}

impl Flow {
    fn send(&mut self, flags: u8, payload: &[u8]) -> Vec<Op> {
        let sent = segment(self.guest, self.host, flags).with(payload);
        self.guest += payload.len() as u32 + u32::from(flags & FIN != 0);
        send(&mut self.world, &sent)
    }

    fn got(&mut self) -> Got {
        let got = got(&mut self.world);
        let len = got.payload.len() as u32 + u32::from(got.flags & FIN != 0);
        self.host = self.host.max(got.seq + len);
        got
    }

    fn sent(&mut self, bytes: u32) -> Vec<Op> {
        let mut ops = self.world.input(Input::Sent { socket: self.socket, bytes });
        ops.extend(self.world.flush());
        ops
    }

    fn readable(&mut self) -> Vec<Op> {
        let mut ops = self.world.input(Input::Readable { socket: self.socket });
        ops.extend(self.world.flush());
        ops
    }

    fn peeked(&mut self, payload: &[u8]) -> Vec<Op> {
        self.peeked_then(payload, PeekedThen::Unknown)
    }

    fn peeked_then(&mut self, payload: &[u8], then: PeekedThen) -> Vec<Op> {
        let mut ops = self.world.peeked(self.socket, payload, then);
        ops.extend(self.world.flush());
        ops
    }
}

#[test]
fn a_refused_connect_resets_the_guest() {
    let mut world = World::new();
    let socket = connect(&mut world);
    let ops = world.input(Input::Failed { socket, error: HostError::Refused });
    assert_eq!(ops, [Op::Close { socket, how: CloseHow::Graceful }]);
    let reset = got(&mut world);
    assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, 0, 1001));
    assert_eq!(world.shard.flows().count(), 0);
}

#[test]
fn a_connect_that_times_out_stays_a_black_hole() {
    let mut world = World::new();
    let socket = connect(&mut world);
    world.input(Input::Failed { socket, error: HostError::TimedOut });
    assert!(world.written.is_empty());
    assert_eq!(world.shard.flows().count(), 0);
}

#[test]
fn payload_is_acknowledged_when_received_and_released_when_taken() {
    let mut flow = established();
    let ops = flow.send(ACK | PSH, b"hello, host");
    let [Op::Send { span, more: false, .. }] = ops[..] else { panic!("a send: {ops:?}") };
    assert_eq!(flow.world.bytes(span), b"hello, host");
    assert_eq!(flow.got().ack, flow.guest);
    let ops = flow.sent(5);
    let [Op::Send { span, .. }] = ops[..] else { panic!("the rest: {ops:?}") };
    assert_eq!(flow.world.bytes(span), b", host");
    assert_eq!(flow.sent(6), []);
    assert_eq!(flow.world.leases_out(), 0);
}

#[test]
fn segments_of_one_turn_make_one_send_and_one_acknowledgement() {
    let mut flow = established();
    for part in [b"one", b"two"] {
        let sent = segment(flow.guest, flow.host, ACK).with(part);
        flow.guest += 3;
        assert_eq!(flow.world.frame(&sent.frame(at(GUEST), at(REMOTE)), VALID), []);
    }
    let ops = flow.world.flush();
    let [Op::Send { span, more: false, .. }] = ops[..] else { panic!("one send: {ops:?}") };
    assert_eq!(flow.world.bytes(span), b"onetwo", "small ones share a lease");
    assert_eq!(flow.got().ack, flow.guest);
    assert!(flow.world.written.is_empty());
}

#[test]
fn small_segments_share_leases_however_long_the_host_is_slow() {
    let mut flow = established();
    let bytes: Vec<u8> = (0..20_000u32).map(|n| n as u8).collect();
    // The first send is not taken: what it reads stays as it is.
    for part in bytes.chunks(50) {
        flow.send(ACK, part);
    }
    assert!(flow.world.leases_out() < 15, "{} leases", flow.world.leases_out());
    let mut got = vec![];
    let mut ops = flow.sent(50);
    got.extend_from_slice(&bytes[..50]);
    while !ops.is_empty() {
        let mut taken = 0;
        for op in &ops {
            let Op::Send { span, .. } = *op else { panic!("a send: {op:?}") };
            got.extend_from_slice(flow.world.bytes(span));
            taken += span.len;
        }
        ops = flow.sent(taken);
    }
    assert_eq!(got, bytes);
    assert_eq!(
        (flow.world.leases_out(), flow.world.shard.counters().value(Counter::TcpKeptTooMuch)),
        (0, 0)
    );
}

#[test]
fn segments_too_large_to_share_a_lease_keep_their_own() {
    let mut flow = established();
    for part in [[1; 1100], [2; 1100]] {
        let sent = segment(flow.guest, flow.host, ACK).with(&part);
        flow.guest += 1100;
        assert_eq!(flow.world.frame(&sent.frame(at(GUEST), at(REMOTE)), VALID), []);
    }
    let ops = flow.world.flush();
    assert!(matches!(ops[..], [Op::Send { more: true, .. }, Op::Send { more: false, .. }]));
}

#[test]
fn urgent_data_is_data() {
    const URG: u8 = 0x20;
    let mut flow = established();
    let ops = flow.send(ACK | URG, b"now!");
    let [Op::Send { span, .. }] = ops[..] else { panic!("a send: {ops:?}") };
    assert_eq!(flow.world.bytes(span), b"now!");
    assert_eq!(flow.got().ack, flow.guest);
}

#[test]
fn a_congestion_mark_is_echoed_until_the_guest_has_reacted() {
    const CWR: u8 = 0x80;
    let mut world = World::new();
    let ops = send(&mut world, &segment(1000, 0, SYN | ECE | CWR).options(&SYN_OPTIONS));
    let [Op::Connect { socket, .. }] = ops[..] else { panic!("a connect: {ops:?}") };
    world.input(Input::Connected { socket });
    let answer = got(&mut world);
    assert_eq!(answer.flags, SYN | ACK | ECE, "ECN is agreed on");
    send(&mut world, &segment(1001, answer.seq + 1, ACK));
    let mut flow = Flow { world, socket, guest: 1001, host: answer.seq + 1 };

    let mut marked = segment(flow.guest, flow.host, ACK).with(b"a").frame(at(GUEST), at(REMOTE));
    marked[15] |= 3;
    flow.guest += 1;
    flow.world.frame(&marked, VALID);
    flow.world.flush();
    assert_eq!(flow.got().flags, ACK | ECE);
    flow.send(ACK, b"b");
    assert_eq!(flow.got().flags, ACK | ECE, "until it is heard");
    flow.send(ACK | CWR, b"c");
    assert_eq!(flow.got().flags, ACK);
}

#[test]
fn a_gap_is_answered_with_where_we_are() {
    let mut flow = established();
    let ahead = segment(flow.guest + 100, flow.host, ACK).with(b"later");
    assert_eq!(send(&mut flow.world, &ahead), []);
    assert_eq!(flow.got().ack, flow.guest);
    assert_eq!(flow.world.shard.counters().value(Counter::TcpOutOfOrder), 1);
}

#[test]
fn what_came_ahead_of_a_gap_follows_when_the_gap_is_closed() {
    let mut flow = established();
    let ahead = segment(flow.guest + 5, flow.host, ACK).with(b" world");
    send(&mut flow.world, &ahead);
    let before = flow.got();
    let ops = flow.send(ACK, b"hello");
    let [Op::Send { more: true, .. }, Op::Send { span, .. }] = ops[..] else { panic!("{ops:?}") };
    assert_eq!(flow.world.bytes(span), b" world");
    let after = flow.got();
    assert_eq!(after.ack, before.ack + 11);
}

#[test]
fn what_overlaps_is_taken_once() {
    let mut flow = established();
    flow.send(ACK, b"abcdef");
    let again = segment(flow.guest - 3, flow.host, ACK).with(b"defghi");
    flow.guest += 3;
    send(&mut flow.world, &again);
    let ops = flow.sent(6);
    let [Op::Send { span, .. }] = ops[..] else { panic!("the fresh part: {ops:?}") };
    assert_eq!(flow.world.bytes(span), b"ghi");
}

#[test]
fn a_slow_host_closes_the_window_and_the_edge_never_moves_left() {
    let mut flow = established();
    let mut edge = 0;
    for _ in 0..100 {
        flow.send(ACK, &[7; 60_000]);
        let ack = flow.got();
        let now = ack.ack.wrapping_add(u32::from(ack.window) << 7);
        assert!(now >= edge, "the edge went from {edge} to {now}");
        edge = now;
        if ack.ack != flow.guest {
            break;
        }
    }
    assert!(edge < flow.guest, "the window closed before all of it was taken");
    let held = flow.world.shard.leases_held();
    assert!(held < 40, "{held} buffers kept for one flow");
}

#[test]
fn bytes_of_the_host_are_peeked_sent_and_consumed_when_acknowledged() {
    let mut flow = established();
    let ops = flow.readable();
    let [Op::Peek { offset: 0, len, chunk, .. }] = ops[..] else { panic!("a peek: {ops:?}") };
    assert!(chunk % 1460 == 0 && len >= chunk);
    let next = flow.peeked(&[9; 3000]);
    assert!(matches!(next[..], [Op::Peek { offset: 3000, .. }]));
    let frame = flow.got();
    assert_eq!((frame.payload.len(), frame.gso), (3000, Gso::Tcp4 { size: 1460 }));
    flow.world.input(Input::PeekEmpty { socket: flow.socket });
    let ops = flow.send(ACK, b"");
    assert_eq!(ops, [Op::Consume { socket: flow.socket, bytes: 3000 }]);
}

/// How many bytes a flow gets in flight before a peek is not asked for any more, with nothing acknowledged.
fn filled(world: &mut World, port: u16) -> (u32, Sent) {
    let guest = SocketAddr::new(at(GUEST).ip(), port);
    let frame = |sent: &Sent| sent.frame(guest, at(REMOTE));
    // Window scale 14: the guest's window bounds nothing.
    let syn = segment(1000, 0, SYN).options(&[2, 4, 5, 180, 1, 3, 3, 14]);
    let mut ops = world.frame(&frame(&syn), VALID);
    ops.extend(world.flush());
    let [Op::Connect { socket, .. }] = ops[..] else { panic!("a connect: {ops:?}") };
    world.input(Input::Connected { socket });
    let first = got(world).seq + 1;
    world.frame(&frame(&segment(1001, first, ACK)), VALID);
    world.flush();
    let mut ops = world.input(Input::Readable { socket });
    ops.extend(world.flush());
    let mut bytes = 0;
    while let [Op::Peek { offset, len, chunk, .. }] = ops[..] {
        assert_eq!(offset, bytes);
        let part = len.min(chunk);
        ops = world.peeked(socket, &vec![7; part as usize], PeekedThen::Unknown);
        ops.extend(world.flush());
        bytes += part;
        got(world);
    }
    assert_eq!(ops, [], "at its limit a flow waits");
    (bytes, segment(1001, first + bytes, ACK))
}

#[test]
fn flows_that_send_in_bulk_share_what_may_be_in_flight() {
    let limit = Config::example().limits.in_flight_bytes;
    let mut world = World::new();
    let fills: Vec<_> = (1..=20).map(|port| (port, filled(&mut world, port))).collect();
    let near = |bytes: u32, share: u32| bytes <= share && share - bytes < 2 * 1460;
    for &(port, (bytes, _)) in &fills {
        // This one does not count itself until it has something in flight, which is before it reaches its share.
        let share = match u32::from(port) {
            ..=2 => limit,
            n @ ..=8 => limit / n,
            9..=16 => limit / 8,
            n => 2 * limit / n,
        };
        assert!(near(bytes, share), "flow {port} has {bytes} of {share}");
    }
    // They acknowledge all and have nothing more: the next one is alone, and known to be so after a while.
    let rest = |world: &mut World, port: u16, ack: &Sent| {
        let guest = SocketAddr::new(at(GUEST).ip(), port);
        world.frame(&ack.frame(guest, at(REMOTE)), VALID);
        for op in world.flush() {
            if let Op::Peek { socket, .. } = op {
                world.input(Input::PeekEmpty { socket });
            }
        }
        world.flush();
    };
    for (port, (_, ack)) in &fills {
        rest(&mut world, *port, ack);
    }
    let (bytes, ack) = filled(&mut world, 98);
    assert!(near(bytes, 2 * limit / 20), "the others may go on at once: {bytes} of {limit}");
    rest(&mut world, 98, &ack);
    world.pass(Duration::from_millis(100));
    let (bytes, _) = filled(&mut world, 99);
    assert!(near(bytes, limit), "alone it has {bytes} of {limit}");
}

#[test]
fn who_lingers_has_no_share_of_what_may_be_in_flight() {
    let mut flow = established();
    flow.readable();
    flow.peeked_then(&[1; 40_000], PeekedThen::End);
    assert!(flow.got().flags & FIN != 0, "all of it");
    let ops = flow.world.pass(Duration::from_millis(600));
    assert!(matches!(ops[..], [Op::Peek { offset: 0, .. }]), "it is sent again: {ops:?}");
    // All of it had come, and that before the bytes to repeat have.
    let ops = flow.send(ACK | FIN, b"");
    assert!(ops.contains(&Op::Close { socket: flow.socket, how: CloseHow::Graceful }), "{ops:?}");
    flow.world.shard.check();
}

#[test]
fn three_duplicate_acknowledgements_send_again_what_was_lost() {
    let mut flow = established();
    flow.readable();
    flow.peeked(&[1; 5000]);
    flow.world.input(Input::PeekEmpty { socket: flow.socket });
    flow.world.flush();
    let lost = flow.host;
    flow.got();
    flow.host = lost;
    assert_eq!(flow.send(ACK, b""), []);
    assert_eq!(flow.send(ACK, b""), []);
    let ops = flow.send(ACK, b"");
    assert!(matches!(ops[..], [Op::Peek { offset: 0, .. }]), "{ops:?}");
    flow.peeked(&[1; 5000]);
    assert_eq!(flow.got().seq, lost);
}

#[test]
fn what_is_never_acknowledged_is_sent_again_and_given_up_in_the_end() {
    let mut flow = established();
    flow.readable();
    flow.peeked(&[1; 100]);
    flow.world.input(Input::PeekEmpty { socket: flow.socket });
    flow.world.flush();
    let first = flow.got();
    let ops = flow.world.pass(Duration::from_millis(600));
    assert!(matches!(ops[..], [Op::Peek { offset: 0, .. }]), "{ops:?}");
    flow.peeked(&[1; 100]);
    assert_eq!(flow.got().seq, first.seq);
    flow.world.input(Input::PeekEmpty { socket: flow.socket });
    flow.world.flush();
    for _ in 0..1000 {
        let ops = flow.world.pass(Duration::from_secs(10));
        flow.world.written.clear();
        if ops.iter().any(|op| matches!(op, Op::Peek { .. })) {
            flow.peeked(&[1; 100]);
            flow.world.input(Input::PeekEmpty { socket: flow.socket });
            flow.world.flush();
        }
    }
    assert_eq!(flow.world.shard.counters().value(Counter::TcpGuestTimedOut), 1);
    assert_eq!(flow.world.shard.flows().count(), 0);
}

#[test]
fn a_closed_window_is_probed_until_it_opens() {
    let mut flow = established();
    let closed = segment(flow.guest, flow.host, ACK).window(0);
    send(&mut flow.world, &closed);
    assert_eq!(flow.readable(), []);
    flow.world.pass(Duration::from_secs(1));
    let probe = flow.got();
    assert_eq!((probe.seq, probe.payload.len()), (flow.host - 1, 0));
    let ops = flow.send(ACK, b"");
    assert!(matches!(ops[..], [Op::Peek { .. }]), "{ops:?}");
}

#[test]
fn each_half_closes_on_its_own() {
    let mut flow = established();
    let ops = flow.send(ACK | FIN, b"last words");
    assert!(matches!(ops[..], [Op::Send { .. }]));
    assert_eq!(flow.got().ack, flow.guest);
    assert_eq!(flow.sent(10), [Op::Shutdown { socket: flow.socket }]);
    flow.readable();
    flow.peeked(b"and mine");
    assert_eq!(flow.got().payload, b"and mine");
    flow.world.input(Input::PeekEnd { socket: flow.socket });
    flow.world.flush();
    assert_eq!(flow.got().flags, FIN | ACK);
    let ops = flow.send(ACK, b"");
    let consume = Op::Consume { socket: flow.socket, bytes: 8 };
    let close = Op::Close { socket: flow.socket, how: CloseHow::Graceful };
    assert_eq!(ops, [consume, close]);
    assert_eq!(flow.world.shard.flows().count(), 0, "our FIN was acknowledged: nothing lingers");
}

#[test]
fn the_last_bytes_take_the_fin_with_them_and_so_does_their_repetition() {
    let mut flow = established();
    flow.readable();
    flow.peeked_then(b"all of it", PeekedThen::End);
    let sent = flow.got();
    assert_eq!((sent.flags, sent.payload.as_slice()), (FIN | PSH | ACK, b"all of it".as_slice()));
    let ops = flow.world.pass(Duration::from_millis(600));
    assert!(matches!(ops[..], [Op::Peek { offset: 0, len: 9, .. }]), "{ops:?}");
    flow.peeked(b"all of it");
    let again = flow.got();
    assert_eq!((again.seq, again.flags, again.payload), (sent.seq, sent.flags, sent.payload));
    let ops = flow.send(ACK, b"");
    assert_eq!(ops, [Op::Consume { socket: flow.socket, bytes: 9 }], "the FIN is no byte");
}

#[test]
fn a_fin_that_the_window_has_no_room_for_follows_later() {
    let mut flow = established();
    let window = segment(flow.guest, flow.host, ACK).window(1);
    send(&mut flow.world, &window);
    let ops = flow.readable();
    assert!(matches!(ops[..], [Op::Peek { len: 128, .. }]), "the window's scale is 7: {ops:?}");
    flow.peeked_then(&[7; 128], PeekedThen::End);
    assert_eq!(flow.got().flags, PSH | ACK);
    flow.send(ACK, b"");
    assert_eq!(flow.got().flags, FIN | ACK);
}

#[test]
fn a_flow_that_the_host_ends_first_lingers_for_the_guests_last_fin() {
    let mut flow = established();
    flow.readable();
    flow.world.input(Input::PeekEnd { socket: flow.socket });
    flow.world.flush();
    assert_eq!(flow.got().flags, FIN | ACK);
    flow.send(ACK, b"");
    let ops = flow.send(ACK | FIN, b"");
    assert!(ops.contains(&Op::Close { socket: flow.socket, how: CloseHow::Graceful }), "{ops:?}");
    assert_eq!(flow.got().ack, flow.guest);
    // Its FIN again: our acknowledgement was lost.
    let again = segment(flow.guest - 1, flow.host, ACK | FIN);
    send(&mut flow.world, &again);
    assert_eq!(flow.got().ack, flow.guest);
    flow.world.pass(Duration::from_secs(3));
    assert_eq!(flow.world.shard.flows().count(), 0);
}

#[test]
fn a_reset_of_the_guest_resets_the_host_and_only_at_the_right_place() {
    let mut flow = established();
    let beside = segment(flow.guest + 10, flow.host, RST);
    assert_eq!(send(&mut flow.world, &beside), []);
    assert_eq!(flow.got().ack, flow.guest, "a challenge");
    let ops = flow.send(RST, b"");
    assert_eq!(ops, [Op::Close { socket: flow.socket, how: CloseHow::Reset }]);
    assert_eq!(flow.world.shard.flows().count(), 0);
}

#[test]
fn a_reset_behind_both_ends_does_not_lose_what_the_guest_had_sent() {
    let mut flow = established();
    flow.readable();
    flow.world.input(Input::PeekEnd { socket: flow.socket });
    flow.world.flush();
    assert_eq!(flow.got().flags, FIN | ACK);
    flow.send(ACK | FIN, b"last words");
    flow.got();
    let reset = segment(flow.guest, flow.host, RST | ACK);
    assert_eq!(send(&mut flow.world, &reset), [], "the host has not taken the last words yet");
    let shutdown = Op::Shutdown { socket: flow.socket };
    let close = Op::Close { socket: flow.socket, how: CloseHow::Graceful };
    assert_eq!(flow.sent(10), [shutdown, close]);
}

#[test]
fn keep_alives_that_are_answered_keep_a_flow_alive() {
    let mut config = Config::example();
    config.timeouts.tcp_idle = Duration::from_secs(60);
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
    let mut flow = established_in(World::with(config, rules));
    for _ in 0..20 {
        flow.world.pass(Duration::from_secs(75));
        while !flow.world.written.is_empty() {
            flow.got();
        }
        flow.send(ACK, b"");
    }
    assert_eq!(flow.world.shard.flows().count(), 1, "the guest has answered each time");
}

#[test]
fn a_reset_of_the_host_reaches_the_guest_with_the_right_sequence() {
    let mut flow = established();
    let socket = flow.socket;
    flow.world.input(Input::Failed { socket, error: HostError::Reset });
    let reset = flow.got();
    assert_eq!((reset.seq, reset.flags), (flow.host, RST | ACK));
}

#[test]
fn a_segment_of_nothing_is_reset() {
    let mut world = World::new();
    send(&mut world, &segment(5, 77, ACK));
    let reset = got(&mut world);
    assert_eq!((reset.seq, reset.flags), (77, RST));
    assert_eq!(send(&mut world, &segment(5, 77, RST)), []);
    assert!(world.written.is_empty(), "a reset is never answered");
}

#[test]
fn the_next_resolver_is_tried_when_one_refuses() {
    let config = Config::example();
    let resolvers = vec![at("192.0.2.1:53"), at("[2001:db8::2]:53")];
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], resolvers);
    let mut world = World::with(config, rules);
    let frame = segment(1, 0, SYN).frame(at(GUEST), at("10.0.2.3:53"));
    let ops = world.frame(&frame, VALID);
    let [Op::Connect { socket, to, on: Namespace::Host }] = ops[..] else {
        panic!("a connect: {ops:?}")
    };
    assert_eq!(to, at("192.0.2.1:53"));
    let ops = world.input(Input::Failed { socket, error: HostError::Refused });
    assert_eq!(ops, [Op::Connect { socket, to: at("[2001:db8::2]:53"), on: Namespace::Host }]);
}

#[test]
fn resolvers_of_the_guests_network_are_connected_to_from_there() {
    let config = Config::example();
    let resolvers = vec![at("10.64.0.1:53"), at("10.64.0.2:53")];
    let access = Access::new(&config, HostLoopback::None);
    let access = Access { dns: DnsService::ForwardedInside, ..access };
    let rules = Rules::new(&config, &access, vec![], resolvers);
    let mut world = World::with(config, rules);
    let ops = world.frame(&segment(1, 0, SYN).frame(at(GUEST), at("10.0.2.3:53")), VALID);
    let [Op::Connect { socket, to, on: Namespace::Guest }] = ops[..] else {
        panic!("a connect: {ops:?}")
    };
    assert_eq!(to, at("10.64.0.1:53"));
    let ops = world.input(Input::Failed { socket, error: HostError::Refused });
    assert_eq!(ops, [Op::Connect { socket, to: at("10.64.0.2:53"), on: Namespace::Guest }]);
}

fn world_with_forward() -> (World, SocketId) {
    let config = Config::example();
    let forward = forward(Protocol::Tcp, (8080, 8081), 80);
    let rules =
        Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![forward], vec![]);
    let mut world = World::with(config, rules);
    let local = at("0.0.0.0:8081");
    let listener = world.shard.attach_listener(ForwardId(1), Protocol::Tcp, local).expect("room");
    (world, listener)
}

#[test]
fn a_client_keeps_its_address_through_a_forward() {
    let (mut world, listener) = world_with_forward();
    let ops = world.accepted(listener, at("198.51.100.9:5555"), at("192.0.2.2:8081"));
    let [Op::Adopt { .. }] = ops[..] else { panic!("an adopt: {ops:?}") };
    let written = world.written.front().expect("a SYN").bytes.clone();
    let sliced = etherparse::SlicedPacket::from_ethernet(&written).expect("sound");
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("IPv4") };
    assert_eq!(ip.header().source_addr().octets(), [198, 51, 100, 9]);
}

/// A client of a forward to whom the guest has answered: what its SYN-ACK led to.
fn answered_client() -> (Flow, Vec<Op>) {
    let (mut world, listener) = world_with_forward();
    let ops = world.accepted(listener, at("198.51.100.9:5555"), at("192.0.2.2:8081"));
    let [Op::Adopt { socket, .. }] = ops[..] else { panic!("an adopt: {ops:?}") };
    let syn = got(&mut world);
    assert_eq!(syn.flags, SYN);
    let host = syn.seq + 1;
    let answer = segment(9000, host, SYN | ACK).options(&SYN_OPTIONS);
    let (guest, client) = (at("10.0.2.100:81"), at("198.51.100.9:5555"));
    let mut ops = world.frame(&answer.frame(guest, client), VALID);
    ops.extend(world.flush());
    (Flow { world, socket, guest: 9001, host }, ops)
}

#[test]
fn the_words_of_a_client_end_its_handshake() {
    let (mut flow, ops) = answered_client();
    assert!(matches!(ops[..], [Op::Peek { offset: 0, .. }]), "{ops:?}");
    assert!(flow.world.written.is_empty(), "an acknowledgement goes with what the peek brings");
    flow.peeked_then(b"question", PeekedThen::Empty);
    let question = flow.got();
    assert_eq!((question.ack, question.flags), (9001, ACK | PSH));
    assert_eq!(question.payload, b"question");
    assert!(flow.world.written.is_empty());
    flow.world.shard.check();
}

#[test]
fn a_client_that_says_nothing_is_connected_all_the_same() {
    let (mut flow, _) = answered_client();
    flow.world.input(Input::PeekEmpty { socket: flow.socket });
    flow.world.flush();
    let end = flow.got();
    assert_eq!((end.ack, end.flags, end.payload.len()), (9001, ACK, 0));
}

#[test]
fn a_loopback_client_is_spliced_or_appears_as_the_gateway() {
    let (mut world, listener) = world_with_forward();
    let ops = world.accepted(listener, at("127.0.0.1:5555"), at("127.0.0.1:8081"));
    let [Op::Splice { socket, to, .. }] = ops[..] else { panic!("a splice: {ops:?}") };
    assert_eq!(to, at("127.0.0.1:81"));
    let ops = world.input(Input::Failed { socket, error: HostError::Refused });
    assert!(matches!(ops[..], [Op::Adopt { .. }]), "{ops:?}");
    let frame = world.next_written().bytes;
    let sliced = etherparse::SlicedPacket::from_ethernet(&frame).expect("sound");
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("IPv4") };
    assert_eq!(ip.header().source_addr().octets(), [10, 0, 2, 2]);
    // Nobody answers the SYN: the client is reset in the end.
    world.written.clear();
    let ops = world.pass(Duration::from_secs(70));
    assert_eq!(ops, [Op::Close { socket, how: CloseHow::Reset }]);
}

#[test]
fn a_full_half_open_table_is_silent_and_counted() {
    let mut config = Config::example();
    config.limits.half_open = 1;
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
    let mut world = World::with(config, rules);
    connect(&mut world);
    let other = segment(1, 0, SYN).frame(at("10.0.2.100:40001"), at(REMOTE));
    assert_eq!(world.frame(&other, VALID), []);
    assert!(world.written.is_empty());
    assert_eq!(world.shard.counters().value(Counter::TcpTableFull), 1);
}
