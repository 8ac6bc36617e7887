//! Two tunnels, three tunnels, and what a wire and a guest can do to them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use usernet_core::op::{Checksum, Gso};
use usernet_core::packet::build::{self, IpHeader};
use usernet_core::packet::{ETHERNET_BYTES, checksum, offload, parse_ip, protocol};
use usernet_core::{Instant, Offload, Tunnel as _, TunnelOut};

use super::{Counter, Tunnel};
use crate::config::{Config, Endpoint, Interface, Peer, Table};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::uapi::{Changes, PeerChange};

mod carriage;
mod hostility;
#[cfg(feature = "simulated-clock")]
mod simulation;

/// What came out of a tunnel.
#[derive(Default)]
struct Out {
    /// Trains: where to, the bytes, the size of each datagram.
    wire: Vec<(SocketAddr, Vec<u8>, usize)>,
    guest: Vec<(Vec<u8>, Offload)>,
}

impl TunnelOut for Out {
    fn to_wire(&mut self, to: SocketAddr, train: &[u8], size: usize) {
        assert!(size > 0 && train.len() <= 65_507 && train.len().div_ceil(size) <= 64, "a train");
        self.wire.push((to, train.to_vec(), size));
    }

    fn to_guest(&mut self, packet: &[u8], offload: Offload) {
        assert!(packet.len() <= 65_535, "an IP packet");
        self.guest.push((packet.to_vec(), offload));
    }
}

/// One end.
struct End {
    tunnel: Tunnel,
    address: SocketAddr,
    key: PublicKey,
    out: Out,
}

/// Ends on one wire.
struct Net {
    ends: Vec<End>,
    now: Instant,
}

fn private(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number + 1; 32])
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number + 1], 51_820))
}

/// 10.0.0.N and fd00::N.
fn inner(number: u8, is_v4: bool) -> IpAddr {
    if is_v4 {
        IpAddr::from([10, 0, 0, number])
    } else {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)])
    }
}

/// A peer that may use its own inner addresses.
fn peer(number: u8) -> Peer {
    Peer {
        public_key: private(number).public(),
        preshared_key: None,
        endpoint: Some(Endpoint::Address(address(number))),
        allowed_ips: [true, false].map(|is_v4| inner(number, is_v4).into()).to_vec(),
        persistent_keepalive: None,
    }
}

fn config(number: u8, peers: impl IntoIterator<Item = Peer>) -> Config {
    let interface = Interface {
        private_key: private(number),
        addresses: Vec::new(),
        dns: Vec::new(),
        search: Vec::new(),
        mtu: None,
        listen_port: None,
        table: Table::Auto,
    };
    Config { interface, peers: peers.into_iter().collect() }
}

impl Net {
    /// Ends that all know each other, changed by `change`.
    fn new(ends: u8, change: impl Fn(u8, &mut Config)) -> Self {
        let end = |number: u8| {
            let mut config = config(number, (0..ends).filter(|&n| n != number).map(peer));
            change(number, &mut config);
            let tunnel = Tunnel::new(&config, 7 + u64::from(number));
            let key = private(number).public();
            End { tunnel, address: address(number), key, out: Out::default() }
        };
        Self { ends: (0..ends).map(end).collect(), now: Instant::from_nanos(1_000_000_000) }
    }

    fn pair() -> Self {
        Self::new(2, |_, _| {})
    }

    /// The guest of an end sends.
    fn send(&mut self, end: usize, mut packet: Vec<u8>, offload: Offload) {
        let End { tunnel, out, .. } = &mut self.ends[end];
        tunnel.on_packet(self.now, &mut packet, offload, out);
        tunnel.flush(self.now, out);
    }

    /// Datagrams reach an end.
    fn receive(&mut self, end: usize, from: SocketAddr, mut train: Vec<u8>, size: usize) {
        let End { tunnel, out, .. } = &mut self.ends[end];
        tunnel.on_datagrams(self.now, from, &mut train, size, out);
        tunnel.flush(self.now, out);
    }

    /// Delivers what is on the wire, until nothing is. What goes elsewhere is lost.
    fn deliver(&mut self) {
        for _ in 0..100 {
            let mut is_quiet = true;
            for end in 0..self.ends.len() {
                let from = self.ends[end].address;
                for (to, train, size) in std::mem::take(&mut self.ends[end].out.wire) {
                    is_quiet = false;
                    if let Some(to) = self.ends.iter().position(|end| end.address == to) {
                        self.receive(to, from, train, size);
                    }
                }
            }
            if is_quiet {
                return;
            }
        }
        panic!("they talk without end");
    }

    fn tick(&mut self) {
        for end in &mut self.ends {
            end.tunnel.tick(self.now, &mut end.out);
            end.tunnel.flush(self.now, &mut end.out);
        }
    }

    /// What a guest got.
    fn guest(&mut self, end: usize) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut self.ends[end].out.guest)
    }

    fn count(&self, end: usize, counter: Counter) -> u64 {
        self.ends[end].tunnel.counters().get(counter)
    }

    /// A pair with a session.
    fn talking() -> Self {
        let mut net = Self::pair();
        net.send(0, udp(0, 1, true, b"hello"), Offload::default());
        net.deliver();
        assert_eq!(net.guest(1).len(), 1, "the session carries");
        net
    }
}

fn header(from: u8, to: u8, is_v4: bool, protocol: u8) -> IpHeader {
    IpHeader {
        source_mac: Default::default(),
        destination_mac: Default::default(),
        source: inner(from, is_v4),
        destination: inner(to, is_v4),
        protocol,
        tos: 0,
        hop_limit: 64,
    }
}

/// A datagram with a complete checksum.
fn udp(from: u8, to: u8, is_v4: bool, payload: &[u8]) -> Vec<u8> {
    let (mut packet, offload) = udp_train(from, to, is_v4, payload, 0);
    offload::complete_checksum(&mut packet, &offload);
    packet
}

/// Datagrams as the guest's kernel gives them.
fn udp_train(from: u8, to: u8, is_v4: bool, payload: &[u8], size: u16) -> (Vec<u8>, Offload) {
    let ip = header(from, to, is_v4, protocol::UDP);
    let mut frame = vec![0; ip.bytes() + build::UDP_BYTES];
    let mut offload = build::udp(&mut frame, ip, 7_000, 8_000, payload.len(), size, u16::MAX);
    if let Checksum::Partial { start, .. } = &mut offload.checksum {
        *start -= ETHERNET_BYTES as u16;
    }
    let mut packet = frame.split_off(ETHERNET_BYTES);
    packet.extend_from_slice(payload);
    (packet, offload)
}

/// A super-frame of TCP as the guest's kernel gives it.
fn tcp(from: u8, to: u8, is_v4: bool, payload: &[u8], size: u16) -> (Vec<u8>, Offload) {
    let ip = header(from, to, is_v4, protocol::TCP);
    let ip_bytes = ip.bytes() - ETHERNET_BYTES;
    let mut packet = vec![0; ip_bytes + 32];
    let len = 32 + payload.len();
    ip.write_ip(&mut packet, len);
    let tcp = &mut packet[ip_bytes..];
    tcp[..4].copy_from_slice(&[0x1b, 0x58, 0x1f, 0x40]);
    tcp[4..8].copy_from_slice(&0xffff_ff00_u32.to_be_bytes());
    tcp[12..16].copy_from_slice(&[8 << 4, 0x18, 1, 0]);
    tcp[16..18].copy_from_slice(&ip.pseudo_header(len).folded().to_be_bytes());
    tcp[20..].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.extend_from_slice(payload);
    let checksum = Checksum::Partial { start: ip_bytes as u16, offset: 16 };
    let gso = match (size, is_v4) {
        (0, _) => Gso::None,
        (size, true) => Gso::Tcp4 { size },
        (size, false) => Gso::Tcp6 { size },
    };
    (packet, Offload { checksum, gso })
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}
