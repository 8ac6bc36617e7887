//! Echo to our own addresses, turned around in place.
//!
//! The frame that asks becomes the frame that answers: addresses are swapped, the type is changed, and the
//! checksums follow. The ICMP checksum is moved by the difference of the type (RFC 1624): swapped addresses do not
//! change ICMPv6's pseudo-header, and the payload is not looked at. So a fragment goes back as soon as it comes,
//! without its siblings; only the first one holds a type to change.

use core::net::IpAddr;

use crate::context::Context;
use crate::counters::Counter;
use crate::op::{LeaseId, Offload, Span};
use crate::packet::build::HOP_LIMIT;
use crate::packet::checksum::{Sum, moved};
use crate::packet::{ETHERNET_BYTES, Packet};

/// Echo request and reply, ICMP (RFC 792).
const REQUEST4: u8 = 8;
const REPLY4: u8 = 0;
/// Echo request and reply, ICMPv6 (RFC 4443).
const REQUEST6: u8 = 128;
const REPLY6: u8 = 129;

/// What an ICMP message is for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    EchoRequest,
    Error,
    Other,
}

/// Tells echo requests and errors from the rest.
pub(crate) fn classify(packet: &Packet, bytes: &[u8]) -> Icmp {
    let Some((&[kind, code, ..], _)) =
        bytes.get(packet.payload()).and_then(|message| message.split_first_chunk::<8>())
    else {
        return Icmp::Other;
    };
    match (packet.source, kind, code) {
        (IpAddr::V4(_), REQUEST4, 0) | (IpAddr::V6(_), REQUEST6, 0) => Icmp::EchoRequest,
        (IpAddr::V4(_), 3 | 11 | 12, _) | (IpAddr::V6(_), 1..=127, _) => Icmp::Error,
        (IpAddr::V4(_) | IpAddr::V6(_), _, _) => Icmp::Other,
    }
}

/// A whole echo request to one of our addresses.
pub(crate) fn on_request(ctx: &mut Context<'_>, packet: &Packet, lease: LeaseId, bytes: &mut [u8]) {
    if packet.source.is_unspecified() {
        return ctx.drop_frame(lease, Counter::DropSource);
    }
    turn_message(packet, bytes);
    send_back(ctx, packet, lease, bytes);
}

/// A fragment of an echo request to us: goes back as a fragment of the reply. Only the first holds the ICMP header.
pub(crate) fn on_fragment(
    ctx: &mut Context<'_>,
    packet: &Packet,
    lease: LeaseId,
    bytes: &mut [u8],
) {
    if packet.source.is_unspecified() {
        return ctx.drop_frame(lease, Counter::DropSource);
    }
    if packet.fragment.is_some_and(|f| f.offset == 0) {
        if classify(packet, bytes) != Icmp::EchoRequest {
            return ctx.drop_frame(lease, Counter::DropProtocol);
        }
        turn_message(packet, bytes);
    }
    send_back(ctx, packet, lease, bytes);
}

/// Request to reply.
fn turn_message(packet: &Packet, bytes: &mut [u8]) {
    let (request, reply) = match packet.source {
        IpAddr::V4(_) => (REQUEST4, REPLY4),
        IpAddr::V6(_) => (REQUEST6, REPLY6),
    };
    let start = packet.payload_start as usize;
    let sum = u16::from_be_bytes([bytes[start + 2], bytes[start + 3]]);
    let word = |kind| u16::from_be_bytes([kind, 0]);
    let sum = moved(sum, word(request), word(reply));
    bytes[start] = reply;
    bytes[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Swaps the addresses, sets a fresh TTL, and writes the frame; padding behind the packet is cut off.
fn send_back(ctx: &mut Context<'_>, packet: &Packet, lease: LeaseId, bytes: &mut [u8]) {
    bytes[0..6].copy_from_slice(&packet.source_mac.0);
    bytes[6..12].copy_from_slice(&ctx.config.host_mac.0);
    let ip = &mut bytes[ETHERNET_BYTES..];
    match (packet.source, packet.destination) {
        (IpAddr::V4(guest), IpAddr::V4(own)) => {
            let header_bytes = usize::from(ip[0] & 0xf) * 4;
            ip[8] = HOP_LIMIT;
            ip[10..12].fill(0);
            ip[12..16].copy_from_slice(&own.octets());
            ip[16..20].copy_from_slice(&guest.octets());
            let sum = Sum::default().bytes(&ip[..header_bytes]).checksum();
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(guest), IpAddr::V6(own)) => {
            ip[7] = HOP_LIMIT;
            ip[8..24].copy_from_slice(&own.octets());
            ip[24..40].copy_from_slice(&guest.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            unreachable!("a packet's addresses are of one family")
        }
    }
    ctx.count(Counter::EchoAnswered);
    ctx.write_frame(Span { lease, start: 0, len: packet.payload_end }, Offload::default());
}
