//! What a guest says: frames, and connections with their sequence numbers.

use std::net::SocketAddr;

use usernet_core::op::{Checksum, Gso};
use usernet_core::packet::build::{self, IpHeader};
use usernet_core::packet::offload::complete_checksum;
use usernet_core::packet::protocol;
use usernet_core::{Config, Input, Offload, Op, SocketId};

use super::Recorder;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;
/// Payload of a segment at MTU 1500, with the timestamps that a Linux guest leaves room for.
pub(super) const SEGMENT: usize = 1448;
/// The link vouches for the checksum.
pub(super) const VALID: Offload = Offload { checksum: Checksum::Valid, gso: Gso::None };
/// Maximum segment size 1460, window scale 7.
const SYN_OPTIONS: [u8; 8] = [2, 4, 5, 180, 1, 3, 3, 7];

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// One of the guest's own ports.
pub(super) fn guest_port(n: usize) -> SocketAddr {
    SocketAddr::new(at("10.0.2.100:0").ip(), 1024 + n as u16)
}

/// The server that it speaks to.
pub(super) fn server() -> SocketAddr {
    at("192.0.2.7:80")
}

fn header(config: &Config, from: SocketAddr, to: SocketAddr, protocol: u8) -> IpHeader {
    IpHeader {
        source_mac: config.guest_mac,
        destination_mac: config.host_mac,
        source: from.ip(),
        destination: to.ip(),
        protocol,
        tos: 0,
        hop_limit: 64,
    }
}

/// Headers in front of a transport header and payload whose checksum, at `offset`, is made right.
fn frame(ip: IpHeader, transport: &[u8], offset: u16) -> Vec<u8> {
    let mut frame = vec![0; ip.bytes()];
    let start = frame.len();
    ip.write(&mut frame, transport.len());
    frame.extend_from_slice(transport);
    let sum =
        if ip.protocol == protocol::ICMP { 0 } else { ip.pseudo_header(transport.len()).folded() };
    let at = start + usize::from(offset);
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let checksum = Checksum::Partial { start: start as u16, offset };
    complete_checksum(&mut frame, &Offload { checksum, gso: Gso::None });
    frame
}

/// A datagram, or a train of them.
pub(super) fn udp(config: &Config, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let ip = header(config, from, to, protocol::UDP);
    let mut transport = vec![0; build::UDP_BYTES];
    transport[0..2].copy_from_slice(&from.port().to_be_bytes());
    transport[2..4].copy_from_slice(&to.port().to_be_bytes());
    transport[4..6].copy_from_slice(&((build::UDP_BYTES + payload.len()) as u16).to_be_bytes());
    transport.extend_from_slice(payload);
    frame(ip, &transport, 6)
}

/// An ICMP message (echo), checksum included: as it is in a frame, and by itself.
pub(super) fn echo(config: &Config, to: SocketAddr, kind: u8, identifier: u16) -> Vec<u8> {
    let ip = header(config, guest_port(0), to, protocol::ICMP);
    let [high, low] = identifier.to_be_bytes();
    let mut message = vec![kind, 0, 0, 0, high, low, 0, 1];
    message.resize(64, 0x5a);
    frame(ip, &message, 2)
}

/// A connection, as the guest sees it.
pub(super) struct Connection {
    guest: SocketAddr,
    remote: SocketAddr,
    pub(super) socket: SocketId,
    /// Next byte that the guest sends.
    pub(super) seq: u32,
    /// Next byte that it expects.
    pub(super) expected: u32,
}

impl Connection {
    /// Two ends that have said nothing yet.
    pub(super) fn unconnected(guest: SocketAddr, remote: SocketAddr) -> Self {
        let socket = SocketId { index: 0, generation: 0 };
        Self { guest, remote, socket, seq: 0, expected: 0 }
    }

    /// The guest connects, and the host's server answers.
    pub(super) fn open(rec: &mut Recorder, guest: SocketAddr, remote: SocketAddr) -> Self {
        let mut conn = Self::unconnected(guest, remote);
        conn.send(rec, SYN, 0);
        rec.turn();
        let connect = |op: &Op| match *op {
            Op::Connect { socket, .. } => Some(socket),
            _ => None,
        };
        let socket = rec.ops().iter().find_map(connect).expect("a SYN asks for a connect");
        conn.socket = socket;
        rec.tell(|| Input::Connected { socket });
        rec.turn();
        conn.expected = sequence(rec, guest).wrapping_add(1);
        conn.send(rec, ACK, 0);
        rec.turn();
        conn
    }

    /// A client of the host side was accepted as this socket: the guest has a SYN, and answers it.
    pub(super) fn answer(
        rec: &mut Recorder,
        guest: SocketAddr,
        remote: SocketAddr,
        socket: SocketId,
    ) -> Self {
        let expected = sequence(rec, guest).wrapping_add(1);
        let mut conn = Self { guest, remote, socket, seq: 0, expected };
        conn.send(rec, SYN | ACK, 0);
        rec.turn();
        conn
    }

    /// The guest sends a segment, or a super-frame.
    pub(super) fn send(&mut self, rec: &mut Recorder, flags: u8, payload: usize) {
        self.send_as(rec, flags, payload, VALID);
    }

    pub(super) fn send_as(
        &mut self,
        rec: &mut Recorder,
        flags: u8,
        payload: usize,
        offload: Offload,
    ) {
        let frame = self.frame(rec.config(), flags, payload);
        rec.frame(frame, offload);
    }

    /// The next segment, with its checksum.
    pub(super) fn frame(&mut self, config: &Config, flags: u8, payload: usize) -> Vec<u8> {
        let options: &[u8] = if flags & SYN == 0 { &[] } else { &SYN_OPTIONS };
        let header_len = 20 + options.len();
        let mut transport = vec![0; header_len + payload];
        transport[0..2].copy_from_slice(&self.guest.port().to_be_bytes());
        transport[2..4].copy_from_slice(&self.remote.port().to_be_bytes());
        transport[4..8].copy_from_slice(&self.seq.to_be_bytes());
        let ack = if flags & ACK == 0 { 0 } else { self.expected };
        transport[8..12].copy_from_slice(&ack.to_be_bytes());
        transport[12..16].copy_from_slice(&[(header_len as u8 / 4) << 4, flags, 0xff, 0xff]);
        transport[20..header_len].copy_from_slice(options);
        let ip = header(config, self.guest, self.remote, protocol::TCP);
        let numbers = payload as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.seq = self.seq.wrapping_add(numbers);
        frame(ip, &transport, 16)
    }
}

/// The sequence number in the frame that the core has made last.
fn sequence(rec: &Recorder, guest: SocketAddr) -> u32 {
    let at = build::ip_headers_bytes(guest.is_ipv4()) + 4;
    let bytes = rec.last_frame()[at..at + 4].try_into().expect("four bytes");
    u32::from_be_bytes(bytes)
}
