//! What a tunnel costs beside its cryptography: super-frames of 64 KiB sealed, and opened and joined again, against the cipher
//! alone over the same bytes.

use std::net::SocketAddr;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use usernet_core::op::{Checksum, Gso, Offload};
use usernet_core::packet::build::IpHeader;
use usernet_core::{Instant, Tunnel as _, TunnelOut};
use usernet_wireguard::{PrivateKey, Tunnel, conf};

/// Payload of a segment where the tunnel's MTU is 1420.
const SEGMENT: u16 = 1_368;
/// Segments of a super-frame: what fits into one train.
const SEGMENTS: usize = 45;
const HEADERS: usize = 52;

/// Keeps what goes out.
#[derive(Default)]
struct Kept {
    trains: Vec<(Vec<u8>, usize)>,
    is_kept: bool,
    to_guest: usize,
}

impl TunnelOut for Kept {
    fn to_wire(&mut self, _to: SocketAddr, train: &[u8], size: usize) {
        if self.is_kept {
            self.trains.push((train.to_vec(), size));
        }
    }

    fn to_guest(&mut self, packet: &[u8], _offload: Offload) {
        self.to_guest += packet.len();
    }
}

fn end(ours: u8, theirs: u8) -> Tunnel {
    let key = |byte| PrivateKey::from_bytes([byte; 32]);
    let text = format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = 192.0.2.1:1\n\
         AllowedIPs = 0.0.0.0/0\n",
        *key(ours).to_base64(),
        key(theirs).public(),
    );
    Tunnel::new(&conf::parse("bench", &text).expect("it is a file").config, 1)
}

fn super_frame() -> (Vec<u8>, Offload) {
    let ip = IpHeader {
        source_mac: Default::default(),
        destination_mac: Default::default(),
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol: 6,
        tos: 0,
        hop_limit: 64,
    };
    let mut packet = vec![7; HEADERS + SEGMENTS * usize::from(SEGMENT)];
    let len = packet.len() - 20;
    ip.write_ip(&mut packet, len);
    packet[32..36].copy_from_slice(&[8 << 4, 0x10, 1, 0]);
    packet[36..38].copy_from_slice(&ip.pseudo_header(len).folded().to_be_bytes());
    let checksum = Checksum::Partial { start: 20, offset: 16 };
    (packet, Offload { checksum, gso: Gso::Tcp4 { size: SEGMENT } })
}

/// A pair with a session.
fn pair() -> [Tunnel; 2] {
    let mut ends = [end(1, 2), end(2, 1)];
    let (mut packet, offload) = super_frame();
    let mut out = Kept { is_kept: true, ..Kept::default() };
    ends[0].on_packet(Instant::ZERO, &mut packet, offload, &mut out);
    for turn in 1..6 {
        for (mut train, size) in std::mem::take(&mut out.trains) {
            let from = SocketAddr::from(([192, 0, 2, 1], 1));
            ends[turn % 2].on_datagrams(Instant::ZERO, from, &mut train, size, &mut out);
        }
    }
    ends[1].flush(Instant::ZERO, &mut out);
    assert_eq!(out.to_guest, packet.len(), "what waited for the session has come");
    ends
}

fn tunnel(c: &mut Criterion) {
    let mut group = c.benchmark_group("tunnel");
    group.throughput(Throughput::Bytes((SEGMENTS * usize::from(SEGMENT)) as u64));
    let [mut sealing, mut opening] = pair();
    let (frame, offload) = super_frame();
    let mut packet = frame.clone();
    let mut out = Kept::default();
    group.bench_function("seal a super-frame", |b| {
        b.iter(|| {
            packet[..HEADERS].copy_from_slice(&frame[..HEADERS]);
            sealing.on_packet(Instant::ZERO, &mut packet, offload, &mut out);
            sealing.flush(Instant::ZERO, &mut out);
        });
    });
    let mut bytes = vec![0; SEGMENTS * (usize::from(SEGMENT) + HEADERS + 32)];
    out.is_kept = true;
    group.bench_function("seal and open a super-frame", |b| {
        b.iter(|| {
            packet[..HEADERS].copy_from_slice(&frame[..HEADERS]);
            sealing.on_packet(Instant::ZERO, &mut packet, offload, &mut out);
            sealing.flush(Instant::ZERO, &mut out);
            let from = SocketAddr::from(([192, 0, 2, 1], 1));
            for (train, size) in out.trains.drain(..) {
                bytes[..train.len()].copy_from_slice(&train);
                let train = &mut bytes[..train.len()];
                opening.on_datagrams(Instant::ZERO, from, train, size, &mut Kept::default());
            }
            opening.flush(Instant::ZERO, &mut Kept::default());
        });
    });
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[3; 32]).expect("32 bytes"));
    group.bench_function("the cipher alone, one way", |b| {
        b.iter(|| {
            for segment in bytes.chunks_mut(usize::from(SEGMENT) + HEADERS + 32) {
                let nonce = Nonce::assume_unique_for_key([0; 12]);
                let len = segment.len() - 32;
                let _tag = key
                    .seal_in_place_separate_tag(nonce, Aad::empty(), &mut segment[..len])
                    .expect("it can be sealed");
            }
        });
    });
    group.finish();
}

criterion_group!(benches, tunnel);
criterion_main!(benches);
