//! After start and warm-up, traffic flows through a shard, and through a tunnel, without a single allocation.
//!
//! The allocator of this test counts; the test drives a `Shard` by hand with a fixed set of buffers, since the simulator
//! around it allocates freely. Each thread counts its own: the one that waits for the test may allocate meanwhile.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use usernet_core::op::{Checksum, Gso, HEADROOM};
use usernet_core::packet::build::{self, IpHeader};
use usernet_core::rules::{Access, HostLoopback};
use usernet_core::{
    Config, Counter, Input, Instant, LeaseId, Offload, Op, Outbox, PeekedThen, Rules, Shard,
    SocketId, Span, Tunnel as _, TunnelOut,
};
use usernet_wireguard::PrivateKey;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BUFFER_BYTES: usize = 4_096;
const PAYLOAD: usize = 1_000;

/// Buffers and ops, all set aside beforehand.
struct Desk {
    buffers: Vec<[u8; BUFFER_BYTES]>,
    free: Vec<LeaseId>,
    ops: Vec<Op>,
}

impl Outbox for Desk {
    fn op(&mut self, op: Op) {
        assert!(self.ops.len() < self.ops.capacity(), "the test has room for the ops of a turn");
        self.ops.push(op);
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        let lease = self.free.pop()?;
        Some((lease, &mut self.buffers[lease.0 as usize][..size]))
    }
}

/// A connection as the guest and the host's peer see it.
struct Connection {
    guest_port: u16,
    socket: Option<SocketId>,
    /// Next sequence number of the guest's, next expected one.
    next: u32,
    expected: u32,
}

struct Bench {
    shard: Shard,
    desk: Desk,
    now: Instant,
    server: SocketAddr,
    connections: Vec<Connection>,
    /// The TCP socket that was connected last.
    connected: Option<SocketId>,
    udp_socket: Option<SocketId>,
    frames: u64,
}

const SYN: u8 = 2;
const FIN: u8 = 1;
const ACK: u8 = 16;

impl Bench {
    fn new() -> Self {
        let mut config = Config::example();
        config.limits.flows = 64;
        config.limits.sockets = 256;
        config.limits.leases = 128;
        config.limits.leases_kept = 64;
        config.timeouts.tcp_time_wait = Duration::from_millis(1);
        let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
        let desk = Desk {
            buffers: vec![[0; BUFFER_BYTES]; 128],
            free: (0..128).map(LeaseId).collect(),
            ops: Vec::with_capacity(1_024),
        };
        let connection =
            |i: u16| Connection { guest_port: 40_000 + i, socket: None, next: 0, expected: 0 };
        Self {
            shard: Shard::new(config, rules),
            desk,
            now: Instant::ZERO,
            server: SocketAddr::new(Ipv4Addr::new(198, 51, 100, 1).into(), 80),
            connections: (0..8).map(connection).collect(),
            connected: None,
            udp_socket: None,
            frames: 0,
        }
    }

    fn header(&self, protocol: u8) -> IpHeader {
        let config = self.shard.config();
        IpHeader {
            source_mac: config.guest_mac,
            destination_mac: config.host_mac,
            source: config.net4.expect("the example has IPv4").guest.into(),
            destination: self.server.ip(),
            protocol,
            tos: 0,
            hop_limit: 64,
        }
    }

    /// A frame from the guest whose checksum somebody vouches for.
    fn frame(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        let lease = self.desk.free.pop().expect("a lease is free");
        let mut buffer = self.desk.buffers[lease.0 as usize];
        let len = write(&mut buffer);
        let offload = Offload { checksum: Checksum::Valid, ..Offload::default() };
        let bytes = &mut buffer[..len];
        self.shard.handle(self.now, Input::Frame { lease, bytes, offload }, &mut self.desk);
        self.desk.buffers[lease.0 as usize] = buffer;
        self.frames += 1;
        self.turn();
    }

    fn segment(&mut self, connection: usize, flags: u8, payload: usize) {
        let ip = self.header(6);
        let Connection { guest_port, next, expected, .. } = self.connections[connection];
        let port = self.server.port();
        self.frame(|bytes| {
            ip.write(bytes, 20 + payload);
            let tcp = &mut bytes[34..];
            tcp[0..2].copy_from_slice(&guest_port.to_be_bytes());
            tcp[2..4].copy_from_slice(&port.to_be_bytes());
            tcp[4..8].copy_from_slice(&next.to_be_bytes());
            tcp[8..12].copy_from_slice(&expected.to_be_bytes());
            tcp[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
            tcp[16..20].fill(0);
            54 + payload
        });
        let numbers = payload as u32 + u32::from(flags & (SYN | FIN) != 0);
        let connection = &mut self.connections[connection];
        connection.next = connection.next.wrapping_add(numbers);
    }

    fn input(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.desk);
        self.turn();
    }

    /// Runs the ops as a driver with unlimited sockets would, until none are left.
    fn turn(&mut self) {
        self.shard.flush(self.now, &mut self.desk);
        let mut run = 0;
        while let Some(op) = (!self.desk.ops.is_empty()).then(|| self.desk.ops.remove(0)) {
            match op {
                Op::WriteFrame { span, .. } => self.on_frame_to_guest(span),
                Op::Release { lease } => self.desk.free.push(lease),
                Op::Append { .. } => {}
                Op::Connect { socket, .. } => {
                    self.connected = Some(socket);
                    self.shard.handle(self.now, Input::Connected { socket }, &mut self.desk);
                }
                Op::Send { socket, span, more } => {
                    run += span.len;
                    if !more {
                        let sent = Input::Sent { socket, bytes: std::mem::take(&mut run) };
                        self.shard.handle(self.now, sent, &mut self.desk);
                    }
                }
                Op::Peek { socket, len, .. } => self.on_peek(socket, len as usize),
                Op::Open { socket, port, .. } => {
                    self.udp_socket = Some(socket);
                    let local = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
                    self.shard.handle(self.now, Input::Opened { socket, local }, &mut self.desk);
                }
                Op::SendTo { span, .. } => self.desk.free.push(span.lease),
                Op::Consume { .. } | Op::Shutdown { .. } | Op::Close { .. } => {}
                Op::Adopt { .. } | Op::Refuse { .. } | Op::Splice { .. } => {
                    unreachable!("nobody connects to the guest")
                }
                Op::HandOver { .. } | Op::HandOverClient { .. } | Op::TellNeighbor { .. } => {
                    unreachable!("there is no other shard")
                }
            }
            self.shard.flush(self.now, &mut self.desk);
        }
    }

    fn on_frame_to_guest(&mut self, span: Span) {
        let start = span.start as usize;
        let frame = &self.desk.buffers[span.lease.0 as usize][start..start + span.len as usize];
        if frame[23] == 6 {
            let port = u16::from_be_bytes([frame[36], frame[37]]);
            let seq = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
            let header = usize::from(frame[46] >> 4) * 4;
            let numbers =
                (frame.len() - 34 - header) as u32 + u32::from(frame[47] & (SYN | FIN) != 0);
            let found = self.connections.iter_mut().find(|c| c.guest_port == port);
            found.expect("it is one of ours").expected = seq.wrapping_add(numbers);
        }
        self.frames += 1;
        self.desk.free.push(span.lease);
    }

    /// The remote end has one more piece each time it is asked after a `Readable`.
    fn on_peek(&mut self, socket: SocketId, len: usize) {
        let known = self.connections.iter_mut().find(|c| c.socket == Some(socket));
        if known.is_none() {
            return self.shard.handle(self.now, Input::PeekEmpty { socket }, &mut self.desk);
        }
        known.expect("it is one of ours").socket = None;
        let lease = self.desk.free.pop().expect("a lease is free");
        let mut buffer = self.desk.buffers[lease.0 as usize];
        let bytes = &mut buffer[..HEADROOM + PAYLOAD.min(len)];
        let peeked = Input::Peeked { socket, lease, bytes, then: PeekedThen::Unknown };
        self.shard.handle(self.now, peeked, &mut self.desk);
        self.desk.buffers[lease.0 as usize] = buffer;
    }

    fn datagram(&mut self) {
        let ip = self.header(17);
        let server = self.server;
        self.frame(|bytes| {
            build::udp(bytes, ip, 30_000, server.port(), PAYLOAD, 0, 1500);
            42 + PAYLOAD
        });
        let Some(socket) = self.udp_socket else { return };
        let lease = self.desk.free.pop().expect("a lease is free");
        let mut buffer = self.desk.buffers[lease.0 as usize];
        let bytes = &mut buffer[..HEADROOM + PAYLOAD];
        let input = Input::Datagram {
            socket,
            lease,
            bytes,
            from: server,
            local: usernet_core::LocalId::ANY,
            segment: 0,
            hop_limit: 60,
            tos: 0,
        };
        self.shard.handle(self.now, input, &mut self.desk);
        self.desk.buffers[lease.0 as usize] = buffer;
        self.turn();
    }

    /// Opens, moves data both ways, closes.
    fn life(&mut self, i: usize, rounds: usize) {
        self.connections[i].next = self.connections[i].next.wrapping_add(1 << 20);
        self.segment(i, SYN, 0);
        self.segment(i, ACK, 0);
        let socket = self.connected;
        for _ in 0..rounds {
            self.segment(i, ACK, PAYLOAD);
            self.datagram();
            if let Some(socket) = socket {
                self.connections[i].socket = Some(socket);
                self.input(Input::Readable { socket });
            }
            self.segment(i, ACK, 0);
            self.now = self.now + Duration::from_micros(100);
        }
        self.segment(i, FIN | ACK, 0);
        if let Some(socket) = socket {
            self.input(Input::Failed { socket, error: usernet_core::HostError::Reset });
        }
        self.now = self.now + Duration::from_secs(1);
        self.input(Input::Tick);
    }
}

#[test]
fn frames_flow_without_an_allocation() {
    let mut bench = Bench::new();
    for life in 0..64 {
        bench.life(life % 8, 4);
    }
    let (frames, before) = (bench.frames, ALLOCATIONS.get());
    for life in 0..256 {
        bench.life(life % 8, 40);
    }
    let allocations = ALLOCATIONS.get() - before;
    let counters = bench.shard.counters();
    assert_eq!(allocations, 0, "in {} frames", bench.frames - frames);
    assert!(bench.frames - frames > 50_000, "{} frames", bench.frames - frames);
    assert!(counters.value(Counter::TcpOpenedByGuest) >= 320, "connections were opened");
    assert!(counters.value(Counter::TcpClosed) >= 320, "and closed");
    assert!(counters.value(Counter::BytesToGuest) > 20_000_000, "data went to the guest");
    assert_eq!(bench.shard.leases_held(), 0);
    assert_eq!(bench.desk.free.len(), 128, "every lease came back");
}

/// Two ends of a tunnel and what goes between them, in room set aside beforehand.
struct Ends {
    ends: [usernet_wireguard::Tunnel; 2],
    out: Sent,
    packet: Vec<u8>,
}

/// The trains that one end has sent, and how much its guest got.
struct Sent {
    bytes: Vec<u8>,
    trains: Vec<(usize, usize)>,
    to_guest: usize,
}

impl TunnelOut for Sent {
    fn to_wire(&mut self, _to: SocketAddr, train: &[u8], size: usize) {
        assert!(self.bytes.len() + train.len() <= self.bytes.capacity(), "the test has room");
        assert!(self.trains.len() < self.trains.capacity(), "the test has room");
        self.bytes.extend_from_slice(train);
        self.trains.push((train.len(), size));
    }

    fn to_guest(&mut self, packet: &[u8], _offload: Offload) {
        self.to_guest += packet.len();
    }
}

impl Ends {
    fn new() -> Self {
        let keys = [PrivateKey::from_bytes([1; 32]), PrivateKey::from_bytes([2; 32])];
        let end = |ours: &PrivateKey, theirs: &PrivateKey| {
            let text = format!(
                "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = 192.0.2.1:1\n\
                 AllowedIPs = 0.0.0.0/0\n",
                *ours.to_base64(),
                theirs.public(),
            );
            let parsed = usernet_wireguard::conf::parse("test", &text).expect("it is a file");
            usernet_wireguard::Tunnel::new(&parsed.config, 1)
        };
        let out = Sent {
            bytes: Vec::with_capacity(1 << 18),
            trains: Vec::with_capacity(64),
            to_guest: 0,
        };
        let ends = [end(&keys[0], &keys[1]), end(&keys[1], &keys[0])];
        Self { ends, out, packet: vec![0; 65_535] }
    }

    /// A guest sends `len` bytes of UDP, cut into datagrams of `size`, and everything that follows is delivered.
    fn send(&mut self, from: usize, len: usize, size: u16) {
        let ip = IpHeader {
            source_mac: Default::default(),
            destination_mac: Default::default(),
            source: Ipv4Addr::new(10, 0, 0, 1).into(),
            destination: Ipv4Addr::new(10, 0, 0, 2).into(),
            protocol: 17,
            tos: 0,
            hop_limit: 64,
        };
        let packet = &mut self.packet[..28 + len];
        ip.write_ip(packet, 8 + len);
        packet[20..24].copy_from_slice(&[1, 1, 2, 2]);
        packet[24..26].copy_from_slice(&(8 + len as u16).to_be_bytes());
        packet[26..28].copy_from_slice(&ip.pseudo_header(8 + len).folded().to_be_bytes());
        let gso = if len > usize::from(size) { Gso::Udp { size } } else { Gso::None };
        let offload = Offload { checksum: Checksum::Partial { start: 20, offset: 6 }, gso };
        self.ends[from].on_packet(Instant::ZERO, packet, offload, &mut self.out);
        self.ends[from].flush(Instant::ZERO, &mut self.out);
        let mut to = 1 - from;
        while !self.out.trains.is_empty() {
            let mut arrived = [(0, 0); 64];
            let count = self.out.trains.len();
            arrived[..count].copy_from_slice(&self.out.trains);
            let mut bytes = [0; 140_000];
            bytes[..self.out.bytes.len()].copy_from_slice(&self.out.bytes);
            self.out.trains.clear();
            self.out.bytes.clear();
            let mut at = 0;
            let source = SocketAddr::from(([192, 0, 2, 1], 1));
            for &(len, size) in &arrived[..count] {
                let train = &mut bytes[at..at + len];
                self.ends[to].on_datagrams(Instant::ZERO, source, train, size, &mut self.out);
                at += len;
            }
            self.ends[to].flush(Instant::ZERO, &mut self.out);
            to = 1 - to;
        }
    }
}

#[test]
fn packets_cross_a_tunnel_without_an_allocation() {
    let mut ends = Ends::new();
    ends.send(0, 100, 1_000);
    assert_eq!(ends.out.to_guest, 128, "there is a session");
    let before = ALLOCATIONS.get();
    for round in 0..200 {
        ends.send(round % 2, 60_000, 1_372);
        ends.send(round % 2, 100, 1_372);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(ends.out.to_guest, 128 + 200 * (60_028 + 128));
}
