//! What the guest sends: packets from a few numbers, with headers that are right but for what an input bends on purpose.

use std::net::{IpAddr, SocketAddr};

use arbitrary::Arbitrary;
use usernet_core::config::MacAddr;
use usernet_core::op::{Checksum, Gso, Offload};
use usernet_core::packet::build::IpHeader;
use usernet_core::packet::checksum::Sum;
use usernet_core::packet::protocol;

use crate::host::remote;
use crate::world::World;

/// A frame of the guest.
#[derive(Arbitrary, Debug)]
pub struct GuestFrame {
    /// What it carries.
    pub kind: Transport,
    /// Which host it is for.
    pub to: u8,
    /// Sometimes low enough to end here.
    pub hop_limit: u8,
    /// Traffic class.
    pub tos: u8,
    /// The link vouches for the checksum; else it is complete.
    pub is_vouched: bool,
    /// A segment size, for a super-frame.
    pub segment: Option<u16>,
    /// Flips bits of one byte of the headers.
    pub bend: Option<(u8, u8)>,
}

/// What a [`GuestFrame`] carries.
#[derive(Arbitrary, Debug)]
pub enum Transport {
    /// A TCP segment near to where its flow stands.
    Tcp {
        /// Which of the guest's ports.
        port: u8,
        /// The low bits are the flags of the header.
        flags: u8,
        /// From what we acknowledged.
        seq: i16,
        /// From what we sent.
        ack: i16,
        /// As in the header.
        window: u16,
        /// As many as fit.
        options: Vec<u8>,
        /// Bytes of payload.
        len: u16,
    },
    /// A UDP datagram.
    Udp {
        /// Which of the guest's ports.
        port: u8,
        /// Payload.
        payload: Vec<u8>,
        /// Further bytes of payload.
        len: u16,
    },
    /// An echo request.
    Echo {
        /// The low bits are the identifier.
        id: u8,
        /// Bytes of payload.
        len: u16,
    },
    /// A fragment of a datagram.
    Fragment {
        /// Identification.
        id: u8,
        /// In units of 8 bytes.
        offset: u8,
        /// More follow.
        more: bool,
        /// UDP; else ICMP.
        is_udp: bool,
        /// Bytes of payload.
        len: u16,
    },
    /// Any protocol, any payload.
    Other {
        /// Protocol number.
        protocol: u8,
        /// Payload of IP.
        payload: Vec<u8>,
    },
}

impl GuestFrame {
    /// The frame, as the world stands.
    pub fn bytes(&self, world: &World) -> (Vec<u8>, Offload) {
        let to = remote(self.to);
        let (number, payload) = self.payload(world, to);
        let mut frame = match &self.kind {
            Transport::Fragment { id, offset, more, .. } => {
                fragment(world, to.ip(), number, *id, *offset, *more, &payload)
            }
            Transport::Tcp { .. }
            | Transport::Udp { .. }
            | Transport::Echo { .. }
            | Transport::Other { .. } => {
                packet(world, None, to.ip(), number, self.hop_limit.max(1), self.tos, &payload)
            }
        };
        if let Some((at, bits)) = self.bend
            && let Some(byte) = frame.get_mut(usize::from(at))
        {
            *byte ^= bits;
        }
        (frame, self.offload(number, to.is_ipv4()))
    }

    fn offload(&self, number: u8, is_v4: bool) -> Offload {
        let checksum = if self.is_vouched { Checksum::Valid } else { Checksum::Unchecked };
        let gso = match (self.segment.filter(|size| *size > 0), number) {
            (Some(size), protocol::TCP) if is_v4 => Gso::Tcp4 { size },
            (Some(size), protocol::TCP) => Gso::Tcp6 { size },
            (Some(size), protocol::UDP) => Gso::Udp { size },
            (Some(_) | None, _) => Gso::None,
        };
        Offload { checksum, gso }
    }

    /// Protocol number and payload of IP; the checksum is still to be done.
    fn payload(&self, world: &World, to: SocketAddr) -> (u8, Vec<u8>) {
        let icmp = if to.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        match &self.kind {
            Transport::Tcp { .. } => (protocol::TCP, self.segment(world, to)),
            Transport::Udp { port, payload, len } => {
                let from = 1024 + u16::from(port % 8);
                let mut payload = payload.clone();
                payload.resize(payload.len() + usize::from(len % 9_000), 0x55);
                (protocol::UDP, udp(from, to.port(), &payload))
            }
            Transport::Echo { id, len } => {
                let kind = if to.is_ipv4() { 8 } else { 128 };
                let mut echo = vec![kind, 0, 0, 0, 0, id % 8, 0, 1];
                echo.resize(8 + usize::from(len % 9_000), 0x33);
                (icmp, echo)
            }
            Transport::Fragment { is_udp, offset: 0, len, .. } if *is_udp => {
                (protocol::UDP, udp(1024, to.port(), &vec![0x77; usize::from(len % 3_000)]))
            }
            Transport::Fragment { is_udp, len, .. } => {
                (if *is_udp { protocol::UDP } else { icmp }, vec![8; usize::from(len % 3_000)])
            }
            Transport::Other { protocol, payload } => (*protocol, payload.clone()),
        }
    }

    fn segment(&self, world: &World, to: SocketAddr) -> Vec<u8> {
        let Transport::Tcp { port, flags, seq, ack, window, options, len } = &self.kind else {
            return Vec::new();
        };
        // Some of them are the ends of forwarded connections.
        let from =
            if port & 8 == 0 { 2000 + u16::from(port % 4) } else { 80 + u16::from(port % 4) };
        let guest = SocketAddr::new(guest_address(world, to.ip()), from);
        let position = world.position(guest, to);
        let seq = position.guests.wrapping_add_signed(i32::from(*seq));
        let ack = position.ours.wrapping_add_signed(i32::from(*ack));
        let mut options = options[..options.len().min(40)].to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut segment = Vec::from(from.to_be_bytes());
        segment.extend(to.port().to_be_bytes());
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([((20 + options.len()) as u8 / 4) << 4, *flags]);
        segment.extend(window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(&options);
        segment.resize(segment.len() + usize::from(len % 20_000), 0x11);
        segment
    }
}

/// The guest's address of the family of `to`.
pub fn guest_address(world: &World, to: IpAddr) -> IpAddr {
    let config = world.config();
    match to {
        IpAddr::V4(_) => config.net4.expect("the example has IPv4").guest.into(),
        IpAddr::V6(_) => config.net6.expect("the example has IPv6").guest.into(),
    }
}

/// A UDP datagram without its checksum.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::from(from.to_be_bytes());
    datagram.extend(to.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// A frame of the guest with all checksums done. Without a source it comes from the guest's configured address.
pub fn packet(
    world: &World,
    source: Option<IpAddr>,
    destination: IpAddr,
    number: u8,
    hop_limit: u8,
    tos: u8,
    payload: &[u8],
) -> Vec<u8> {
    let config = world.config();
    let ip = IpHeader {
        source_mac: config.guest_mac,
        destination_mac: if destination.is_multicast() {
            MacAddr([0x33, 0x33, 0, 0, 0, 2])
        } else {
            config.host_mac
        },
        source: source.unwrap_or_else(|| guest_address(world, destination)),
        destination,
        protocol: number,
        tos,
        hop_limit,
    };
    let mut frame = vec![0; ip.bytes()];
    ip.write(&mut frame, payload.len());
    frame.extend_from_slice(payload);
    let at = match number {
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => return frame,
    };
    let segment = &mut frame[ip.bytes()..];
    if segment.len() < at + 2 {
        return frame;
    }
    segment[at..at + 2].fill(0);
    let len = segment.len();
    let start = if number == protocol::ICMP { Sum::default() } else { ip.pseudo_header(len) };
    let sum = start.bytes(segment).checksum();
    segment[at..at + 2].copy_from_slice(&if sum == 0 { u16::MAX } else { sum }.to_be_bytes());
    frame
}

fn fragment(
    world: &World,
    to: IpAddr,
    number: u8,
    id: u8,
    offset: u8,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let units = u16::from(offset) * if offset & 1 == 0 { 1 } else { 61 };
    if to.is_ipv6() {
        let place = (units & 0x1fff) << 3 | u16::from(more);
        let mut body = vec![number, 0];
        body.extend(place.to_be_bytes());
        body.extend([0, 0, 0, id % 8]);
        body.extend(payload);
        return packet(world, None, to, 44, 64, 0, &body);
    }
    let mut frame = packet(world, None, to, number, 64, 0, payload);
    let place = units & 0x1fff | u16::from(more) << 13;
    frame[18..20].copy_from_slice(&[0, id % 8]);
    frame[20..22].copy_from_slice(&place.to_be_bytes());
    frame[24..26].fill(0);
    let sum = Sum::default().bytes(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}
