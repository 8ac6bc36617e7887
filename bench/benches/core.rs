//! What the core costs per frame: parsing alone, and frames through a shard whose ops go nowhere.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use usernet_core::op::{Checksum, Gso};
use usernet_core::packet::build::IpHeader;
use usernet_core::packet::{self, protocol};
use usernet_core::rules::{Access, HostLoopback};
use usernet_core::{Config, Input, Instant, LeaseId, Offload, Op, Outbox, Rules, Shard, SocketId};

const GUEST: &str = "10.0.2.100:40000";
const REMOTE: &str = "192.0.2.7:80";
/// Where TCP starts in the frames here.
const TCP_START: usize = 14 + 20;
const VALID: Offload = Offload { checksum: Checksum::Valid, gso: Gso::None };
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Takes ops, keeps what a benchmark has to answer, and lends one buffer.
struct Null {
    buffer: Vec<u8>,
    socket: Option<SocketId>,
    /// Bytes that the core wants sent.
    sending: u32,
}

impl Outbox for Null {
    fn op(&mut self, op: Op) {
        if let Op::Connect { socket, .. } = op {
            self.socket = Some(socket);
        }
        if let Op::Send { span, .. } = black_box(op) {
            self.sending += span.len;
        }
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        Some((LeaseId(0), &mut self.buffer[..size]))
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A frame of the guest around a transport header and payload.
fn frame(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let config = Config::example();
    let ip = IpHeader {
        source_mac: config.guest_mac,
        destination_mac: config.host_mac,
        source: at(GUEST).ip(),
        destination: at(REMOTE).ip(),
        protocol,
        tos: 0,
        hop_limit: 64,
    };
    let mut frame = vec![0; ip.bytes()];
    ip.write(&mut frame, transport.len());
    frame.extend_from_slice(transport);
    frame
}

fn ports() -> [u8; 4] {
    let ([a, b], [c, d]) = (at(GUEST).port().to_be_bytes(), at(REMOTE).port().to_be_bytes());
    [a, b, c, d]
}

fn tcp(flags: u8, payload: usize) -> Vec<u8> {
    let mut transport = vec![0; 20 + payload];
    transport[..4].copy_from_slice(&ports());
    transport[12] = 5 << 4;
    transport[13] = flags;
    transport[14..16].copy_from_slice(&[0xff; 2]);
    frame(protocol::TCP, &transport)
}

fn udp(payload: usize) -> Vec<u8> {
    let mut transport = vec![0; 8 + payload];
    transport[..4].copy_from_slice(&ports());
    transport[4..6].copy_from_slice(&(8 + payload as u16).to_be_bytes());
    frame(protocol::UDP, &transport)
}

fn number(frame: &[u8], offset: usize) -> u32 {
    let bytes = frame[TCP_START + offset..][..4].try_into().expect("four bytes");
    u32::from_be_bytes(bytes)
}

fn set_number(frame: &mut [u8], offset: usize, value: u32) {
    frame[TCP_START + offset..][..4].copy_from_slice(&value.to_be_bytes());
}

/// A shard, and the time.
struct Bench {
    shard: Shard,
    out: Null,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let config = Config::example();
        let rules: Arc<Rules> =
            Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
        let out = Null { buffer: vec![0; 4096], socket: None, sending: 0 };
        Self { shard: Shard::new(config, rules), out, now: Instant::ZERO }
    }

    fn handle(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.out);
    }

    fn frame(&mut self, bytes: &mut [u8]) {
        self.handle(Input::Frame { lease: LeaseId(1), bytes, offload: VALID });
    }

    /// The end of a turn, and a microsecond until the next.
    fn flush(&mut self) {
        self.shard.flush(self.now, &mut self.out);
        self.now = self.now + Duration::from_micros(1);
    }

    /// A connection of the guest; the sequence number that it expects next.
    fn connect(&mut self) -> u32 {
        let mut syn = tcp(SYN, 0);
        self.frame(&mut syn);
        self.flush();
        let socket = self.out.socket.expect("a SYN asks for a connect");
        self.handle(Input::Connected { socket });
        self.flush();
        let next = number(&self.out.buffer, 4).wrapping_add(1);
        let mut ack = tcp(ACK, 0);
        set_number(&mut ack, 4, 1);
        set_number(&mut ack, 8, next);
        self.frame(&mut ack);
        self.flush();
        next
    }
}

fn parsing(c: &mut Criterion) {
    let frame = tcp(ACK, 1448);
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(1));
    group.bench_function("tcp", |b| b.iter(|| packet::parse(black_box(&frame))));
    group.finish();
}

fn tcp_from_guest(c: &mut Criterion) {
    let mut group = c.benchmark_group("tcp from the guest");
    group.throughput(Throughput::Elements(1));
    for (name, payload) in [("1448 bytes", 1448), ("64 KB", 65_000)] {
        group.bench_function(name, |b| {
            let mut bench = Bench::new();
            let next = bench.connect();
            let socket = bench.out.socket.expect("it is connected");
            let mut segment = tcp(ACK, payload);
            set_number(&mut segment, 8, next);
            let mut seq = 1_u32;
            b.iter(|| {
                set_number(&mut segment, 4, seq);
                seq = seq.wrapping_add(payload as u32);
                bench.frame(&mut segment);
                bench.flush();
                let bytes = std::mem::take(&mut bench.out.sending);
                bench.handle(Input::Sent { socket, bytes });
            });
            assert!(bench.shard.flows().count() == 1, "the flow lives");
        });
    }
    group.finish();
}

fn udp_from_guest(c: &mut Criterion) {
    let mut group = c.benchmark_group("udp from the guest");
    group.throughput(Throughput::Elements(1));
    group.bench_function("1400 bytes", |b| {
        let mut bench = Bench::new();
        let mut datagram = udp(1400);
        b.iter(|| {
            bench.frame(&mut datagram);
            bench.flush();
        });
    });
    group.finish();
}

criterion_group!(benches, parsing, tcp_from_guest, udp_from_guest);
criterion_main!(benches);
