//! Segments: the guest's, read once; ours, written in front of payload or into a frame of our own.

use core::net::SocketAddr;

use etherparse::{TcpOptionElement, TcpSlice};

use super::sack::{self, Sacks};
use super::seq::Seq;
use crate::config::MacAddr;
use crate::op::{Checksum, Gso, Offload};
use crate::packet::Packet;
use crate::packet::build::{HOP_LIMIT, IpHeader};
use crate::packet::protocol::TCP;

/// Bytes of a TCP header without options.
pub(crate) const TCP_BYTES: usize = 20;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const ECE: u8 = 0x40;

/// A segment from the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) guest_mac: MacAddr,
    pub(crate) seq: Seq,
    pub(crate) ack: Option<Seq>,
    /// As on the wire, not scaled.
    pub(crate) window: u16,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) ece: bool,
    pub(crate) cwr: bool,
    /// The IP header carries "congestion experienced".
    pub(crate) is_marked: bool,
    /// Offset of the payload in the frame.
    pub(crate) payload_start: u32,
    pub(crate) payload_len: u32,
}

/// What the options of a SYN say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SynOptions {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    /// Selective acknowledgements are understood.
    pub(crate) has_sack: bool,
}

impl SynOptions {
    /// Maximum segment size, window scale with a pad, and whether we understand selective acknowledgements.
    fn bytes(&self) -> usize {
        if self.has_sack { 12 } else { 8 }
    }

    fn write(&self, options: &mut [u8]) {
        options[..2].copy_from_slice(&[2, 4]);
        options[2..4].copy_from_slice(&self.mss.unwrap_or_default().to_be_bytes());
        // Without a window scale: four no-operations.
        let scale = self.window_scale.map_or([1, 1, 1, 1], |shift| [1, 3, 3, shift]);
        options[4..8].copy_from_slice(&scale);
        if self.has_sack {
            options[8..10].copy_from_slice(&[1, 1]);
            options[10..12].copy_from_slice(&sack::PERMITTED);
        }
    }
}

impl Segment {
    /// Reads the segment in `packet`; none if it is cut short.
    pub(crate) fn parse(packet: &Packet, bytes: &[u8]) -> Option<Self> {
        let tcp = TcpSlice::from_slice(&bytes[packet.payload()]).ok()?;
        Some(Self {
            guest: packet.from(tcp.source_port()),
            remote: packet.to(tcp.destination_port()),
            guest_mac: packet.source_mac,
            seq: Seq(tcp.sequence_number()),
            ack: tcp.ack().then(|| Seq(tcp.acknowledgment_number())),
            window: tcp.window_size(),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            ece: tcp.ece(),
            cwr: tcp.cwr(),
            is_marked: packet.tos & 3 == 3,
            payload_start: packet.payload_start + tcp.header_len() as u32,
            payload_len: tcp.payload().len() as u32,
        })
    }

    /// The options of a SYN.
    pub(crate) fn syn_options(packet: &Packet, bytes: &[u8]) -> SynOptions {
        let mut found = SynOptions::default();
        let Ok(tcp) = TcpSlice::from_slice(&bytes[packet.payload()]) else { return found };
        // Stops at the first option that contradicts itself (RFC 9293, MUST-7: the rest still counts).
        for option in tcp.options_iterator().map_while(Result::ok) {
            match option {
                TcpOptionElement::MaximumSegmentSize(mss) => found.mss = Some(mss),
                // RFC 7323, section 2.3: more than 14 counts as 14.
                TcpOptionElement::WindowScale(shift) => found.window_scale = Some(shift.min(14)),
                TcpOptionElement::SelectiveAcknowledgementPermitted => found.has_sack = true,
                TcpOptionElement::Noop
                | TcpOptionElement::SelectiveAcknowledgement(..)
                | TcpOptionElement::Timestamp(..) => {}
            }
        }
        found
    }

    /// Sequence space that the segment takes.
    pub(crate) fn len(&self) -> u32 {
        self.payload_len + u32::from(self.syn) + u32::from(self.fin)
    }
}

/// A segment of ours, its payload aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) host_mac: MacAddr,
    pub(crate) guest_mac: MacAddr,
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// SYNs: what we offer.
    pub(crate) syn_options: Option<SynOptions>,
    /// What came ahead of a gap; in acknowledgements without payload only.
    pub(crate) sacks: Sacks,
}

impl Header {
    /// Bytes of all headers.
    pub(crate) fn bytes(&self) -> usize {
        let syn_options = self.syn_options.as_ref().map_or(0, SynOptions::bytes);
        let options = syn_options + self.sacks.option_bytes();
        crate::packet::build::ip_headers_bytes(self.guest.is_ipv4()) + TCP_BYTES + options
    }

    /// Writes all headers to `frame`; `payload_len` bytes of payload follow, to be cut into segments of `mss`.
    pub(crate) fn write(&self, frame: &mut [u8], payload_len: usize, mss: u16) -> Offload {
        let ip = IpHeader {
            source_mac: self.host_mac,
            destination_mac: self.guest_mac,
            source: self.remote.ip(),
            destination: self.guest.ip(),
            protocol: TCP,
            tos: 0,
            hop_limit: HOP_LIMIT,
        };
        let start = ip.bytes();
        let header_len = self.bytes() - start;
        ip.write(frame, header_len + payload_len);
        let sum = ip.pseudo_header(header_len + payload_len).folded();
        let tcp = &mut frame[start..start + header_len];
        tcp[0..2].copy_from_slice(&self.remote.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.guest.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        tcp[12..14].copy_from_slice(&[(header_len as u8 / 4) << 4, self.flags]);
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp[18..20].copy_from_slice(&[0, 0]);
        match &self.syn_options {
            Some(options) => options.write(&mut tcp[TCP_BYTES..]),
            None => self.sacks.write(&mut tcp[TCP_BYTES..]),
        }
        let gso = match self.guest {
            _ if payload_len <= usize::from(mss) => Gso::None,
            SocketAddr::V4(_) => Gso::Tcp4 { size: mss },
            SocketAddr::V6(_) => Gso::Tcp6 { size: mss },
        };
        Offload { checksum: Checksum::Partial { start: start as u16, offset: 16 }, gso }
    }
}
