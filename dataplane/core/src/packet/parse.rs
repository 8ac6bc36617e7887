//! Reads a frame's Ethernet and IP headers, once, into a type that cannot be wrong.

use core::net::{IpAddr, SocketAddr};
use core::ops::Range;

use etherparse::{Ethernet2Slice, IpSlice, Ipv6FragmentHeaderSlice};

use super::checksum::Sum;
use crate::config::MacAddr;

/// Bytes of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;

/// A frame that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What the Ethernet header says that follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtherType {
    /// Address resolution for IPv4.
    Arp {
        /// Sender's Ethernet address.
        source_mac: MacAddr,
        /// Destination Ethernet address.
        destination_mac: MacAddr,
    },
    /// An IP packet of either version, with sound lengths.
    Ip(Packet),
    /// Anything else.
    Other,
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub identification: u32,
    /// Offset of its first byte in the whole payload.
    pub offset: u32,
    /// More fragments follow.
    pub more: bool,
}

/// An IP packet in a frame: what was in its headers, and where its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Sender's Ethernet address.
    pub source_mac: MacAddr,
    /// Destination Ethernet address.
    pub destination_mac: MacAddr,
    /// Sender.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// Protocol of the payload, extension headers done.
    pub protocol: u8,
    /// Traffic class, ECN bits included.
    pub tos: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Set if the packet is a fragment.
    pub fragment: Option<Fragment>,
    /// IPv4: the don't-fragment bit. IPv6: always.
    pub dont_fragment: bool,
    /// Offset of the payload (the transport header) in the frame.
    pub payload_start: u32,
    /// End of the payload: the frame may be longer (padding).
    pub payload_end: u32,
}

impl Packet {
    /// The payload's place in the frame.
    pub fn payload(&self) -> Range<usize> {
        self.payload_start as usize..self.payload_end as usize
    }

    /// Bytes of payload.
    pub fn payload_len(&self) -> usize {
        (self.payload_end - self.payload_start) as usize
    }

    /// The source with a port.
    pub fn from(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.source, port)
    }

    /// The destination with a port.
    pub fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.destination, port)
    }
}

/// Parses a frame as far as the IP payload.
pub fn parse(frame: &[u8]) -> Result<EtherType, Malformed> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(frame).map_err(|_| Malformed)?;
    let source_mac = MacAddr(ethernet.source());
    let destination_mac = MacAddr(ethernet.destination());
    match ethernet.ether_type() {
        etherparse::EtherType::ARP => Ok(EtherType::Arp { source_mac, destination_mac }),
        etherparse::EtherType::IPV4 | etherparse::EtherType::IPV6 => {
            let ip = IpSlice::from_slice(&frame[ETHERNET_BYTES..]).map_err(|_| Malformed)?;
            let is_v4 = ethernet.ether_type() == etherparse::EtherType::IPV4;
            if is_v4 != ip.source_addr().is_ipv4() {
                return Err(Malformed);
            }
            packet(frame, ETHERNET_BYTES, &ip)
                .map(|packet| EtherType::Ip(Packet { source_mac, destination_mac, ..packet }))
        }
        _ => Ok(EtherType::Other),
    }
}

/// Parses a packet of a link without Ethernet as far as the IP payload. Its Ethernet addresses are zero.
pub fn parse_ip(bytes: &[u8]) -> Result<Packet, Malformed> {
    let ip = IpSlice::from_slice(bytes).map_err(|_| Malformed)?;
    packet(bytes, 0, &ip)
}

/// Whether the IPv4 header's checksum is right; IPv6 has none.
pub fn has_valid_header(packet: &Packet, frame: &[u8]) -> bool {
    if packet.source.is_ipv6() {
        return true;
    }
    let Some(&first) = frame.get(ETHERNET_BYTES) else { return false };
    let end = ETHERNET_BYTES + usize::from(first & 0x0f) * 4;
    frame
        .get(ETHERNET_BYTES..end)
        .is_some_and(|header| Sum::default().bytes(header).folded() == 0xffff)
}

/// What is in an IP packet whose header starts at `ip_start` of the frame.
fn packet(frame: &[u8], ip_start: usize, ip: &IpSlice<'_>) -> Result<Packet, Malformed> {
    let payload = ip.payload();
    // The payload is a part of the frame: its distance from the start follows from the lengths.
    let payload_start = match ip {
        IpSlice::Ipv4(v4) => {
            let extensions = v4.extensions().auth.as_ref().map_or(0, |a| a.slice().len());
            ip_start + v4.header().slice().len() + extensions
        }
        IpSlice::Ipv6(v6) => ip_start + v6.header().slice().len() + v6.extensions().slice().len(),
    };
    let payload_end = payload_start + payload.payload.len();
    if payload_end > frame.len() {
        return Err(Malformed);
    }
    let (tos, hop_limit, dont_fragment) = match ip {
        IpSlice::Ipv4(v4) => {
            let header = v4.header();
            (header.slice()[1], header.ttl(), header.dont_fragment())
        }
        IpSlice::Ipv6(v6) => (v6.header().traffic_class(), v6.header().hop_limit(), true),
    };
    Ok(Packet {
        source_mac: MacAddr::default(),
        destination_mac: MacAddr::default(),
        source: ip.source_addr(),
        destination: ip.destination_addr(),
        protocol: payload.ip_number.0,
        tos,
        hop_limit,
        fragment: fragment(ip)?,
        dont_fragment,
        payload_start: payload_start as u32,
        payload_end: payload_end as u32,
    })
}

fn fragment(ip: &IpSlice<'_>) -> Result<Option<Fragment>, Malformed> {
    if !ip.is_fragmenting_payload() {
        return Ok(None);
    }
    match ip {
        IpSlice::Ipv4(v4) => {
            let header = v4.header();
            Ok(Some(Fragment {
                identification: u32::from(header.identification()),
                offset: u32::from(header.fragments_offset().byte_offset()),
                more: header.more_fragments(),
            }))
        }
        IpSlice::Ipv6(v6) => {
            // The fragment header is the last that the sender lays before the fragmented part.
            let mut found = None;
            let extensions = v6.extensions().clone();
            for extension in extensions {
                if let etherparse::Ipv6ExtensionSlice::Fragment(header) = extension {
                    found = Some(fragment_of(&header));
                }
            }
            found.map(Some).ok_or(Malformed)
        }
    }
}

fn fragment_of(header: &Ipv6FragmentHeaderSlice<'_>) -> Fragment {
    Fragment {
        identification: header.identification(),
        offset: u32::from(header.fragment_offset().byte_offset()),
        more: header.more_fragments(),
    }
}
