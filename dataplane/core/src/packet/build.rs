//! Writes headers in front of payload that lies in a leased buffer, or into a frame of our own.

use core::net::{IpAddr, SocketAddr};

use super::ETHERNET_BYTES;
use super::checksum::Sum;
use super::protocol::UDP;
use crate::config::MacAddr;
use crate::op::{Checksum, Gso, Offload};

/// What an IP packet of ours says, its payload aside.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader {
    /// Our Ethernet address.
    pub source_mac: MacAddr,
    /// The guest's.
    pub destination_mac: MacAddr,
    /// Sender.
    pub source: IpAddr,
    /// Destination, of the same family.
    pub destination: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Traffic class, ECN bits included.
    pub tos: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
}

/// TTL of packets that have no other.
pub const HOP_LIMIT: u8 = 64;

/// Bytes of Ethernet and IP header in front of the transport header.
pub const fn ip_headers_bytes(is_v4: bool) -> usize {
    ETHERNET_BYTES + if is_v4 { 20 } else { 40 }
}

impl IpHeader {
    /// Bytes of Ethernet and IP header.
    pub const fn bytes(&self) -> usize {
        ip_headers_bytes(self.source.is_ipv4())
    }

    /// Writes the Ethernet and IP headers to the start of `frame`; `payload_len` bytes of IP payload follow
    /// them. A super-frame's length is that of the whole.
    pub fn write(&self, frame: &mut [u8], payload_len: usize) {
        frame[0..6].copy_from_slice(&self.destination_mac.0);
        frame[6..12].copy_from_slice(&self.source_mac.0);
        let kind = if self.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        frame[12..14].copy_from_slice(&kind);
        self.write_ip(&mut frame[ETHERNET_BYTES..], payload_len);
    }

    /// Writes the IP header alone to the start of `ip`.
    pub fn write_ip(&self, ip: &mut [u8], payload_len: usize) {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                // DF and identification 0, as RFC 6864 has it for atomic datagrams. The link clears DF when
                // it fragments.
                let total = (20 + payload_len) as u16;
                ip[0..2].copy_from_slice(&[0x45, self.tos]);
                ip[2..4].copy_from_slice(&total.to_be_bytes());
                ip[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
                ip[8..12].copy_from_slice(&[self.hop_limit, self.protocol, 0, 0]);
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                let sum = Sum::default().bytes(&ip[..20]).checksum();
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ip[0..4].copy_from_slice(&[0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                ip[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
                ip[6..8].copy_from_slice(&[self.protocol, self.hop_limit]);
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&destination.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                unreachable!("a packet's addresses are of one family")
            }
        }
    }

    /// The pseudo-header sum for `len` bytes of transport header and payload.
    pub fn pseudo_header(&self, len: usize) -> Sum {
        Sum::pseudo_header(self.source, self.destination, self.protocol, len)
    }
}

/// Bytes of a UDP header.
pub const UDP_BYTES: usize = 8;

/// Writes Ethernet, IP and UDP headers in front of a payload of `payload_len` bytes: they end where `frame` has
/// `ip.bytes() + UDP_BYTES` bytes. The checksum is partial. `segment` as in
/// [`Input::Datagram`](crate::Input::Datagram); a single datagram larger than `mtu` is marked for
/// fragmentation. `ip.protocol` is not looked at.
pub fn udp(
    frame: &mut [u8],
    ip: IpHeader,
    from: u16,
    to: u16,
    payload_len: usize,
    segment: u16,
    mtu: u16,
) -> Offload {
    let ip = IpHeader { protocol: UDP, ..ip };
    let len = UDP_BYTES + payload_len;
    ip.write(frame, len);
    let start = ip.bytes();
    let sum = ip.pseudo_header(len).folded();
    let header = &mut frame[start..start + UDP_BYTES];
    header[0..2].copy_from_slice(&from.to_be_bytes());
    header[2..4].copy_from_slice(&to.to_be_bytes());
    header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    header[6..8].copy_from_slice(&sum.to_be_bytes());
    let gso = if segment != 0 && payload_len > usize::from(segment) {
        Gso::Udp { size: segment }
    } else if start - ETHERNET_BYTES + len > usize::from(mtu) {
        Gso::Fragment
    } else {
        Gso::None
    };
    Offload { checksum: Checksum::Partial { start: start as u16, offset: 6 }, gso }
}

/// The two ends of a flow, with their families checked once.
pub fn same_family(a: SocketAddr, b: SocketAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}
