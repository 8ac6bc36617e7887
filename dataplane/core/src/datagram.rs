//! UDP datagrams on the link, for every module that speaks UDP: what the guest sends, gathered payload, writing one to
//! the guest, and telling the guest that one of its own did not arrive.

use core::net::{IpAddr, SocketAddr};

use crate::context::Context;
use crate::counters::Counter;
use crate::op::{HEADROOM, HostError, LeaseId, Op, Span};
use crate::packet::build::{self, IpHeader, UDP_BYTES, ip_headers_bytes};
use crate::packet::error::{Quoted, tell_guest};
use crate::packet::{Packet, protocol};

/// A datagram from the guest, or a train of equal ones.
pub(crate) struct GuestDatagram<'a> {
    pub(crate) packet: &'a Packet,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    /// UDP payload; its lease is the callee's.
    pub(crate) payload: Span,
    /// Not 0: datagrams of this size follow each other.
    pub(crate) segment: u16,
}

/// A payload that lies in one or more leases.
#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    /// The leases in order, at least one.
    pub(crate) spans: &'a [Span],
    /// Bytes at the front that are not payload: the UDP header, where it lies in the spans.
    pub(crate) skip: u32,
    /// Bytes of payload.
    pub(crate) len: u32,
}

impl Payload<'_> {
    /// Gives all leases back.
    pub(crate) fn release(&self, ctx: &mut Context<'_>) {
        for span in self.spans {
            ctx.op(Op::Release { lease: span.lease });
        }
    }

    /// Emits the op that `send` makes for each span that has payload, with whether more follow, and releases the
    /// others. An empty datagram is sent, too.
    pub(crate) fn send(&self, ctx: &mut Context<'_>, send: impl Fn(Span, bool) -> Op) {
        let (mut skip, mut left) = (self.skip, self.len);
        let mut is_done = false;
        for span in self.spans {
            let front = skip.min(span.len);
            skip -= front;
            let len = (span.len - front).min(left);
            if is_done || (len == 0 && self.len > 0) {
                // Only at the ends, so that it does not come between the ops of one datagram.
                ctx.op(Op::Release { lease: span.lease });
                continue;
            }
            left -= len;
            is_done = left == 0;
            let part = Span { lease: span.lease, start: span.start + front, len };
            ctx.op(send(part, !is_done));
        }
    }
}

/// How a datagram, or a train, is written to the guest.
pub(crate) struct ToGuest {
    /// The sender, as the guest sees it.
    pub(crate) from: SocketAddr,
    /// The guest's end, of the same family.
    pub(crate) to: SocketAddr,
    /// Not 0: datagrams of this size follow each other.
    pub(crate) segment: u16,
    pub(crate) hop_limit: u8,
    pub(crate) tos: u8,
}

/// Writes a datagram to the guest: `bytes` is a lease with [`HEADROOM`] bytes in front of the payload.
/// True: it went.
pub(crate) fn write(
    ctx: &mut Context<'_>,
    lease: LeaseId,
    bytes: &mut [u8],
    datagram: &ToGuest,
) -> bool {
    let is_v4 = datagram.to.is_ipv4();
    let headers = ip_headers_bytes(is_v4) + UDP_BYTES;
    let start = HEADROOM - headers;
    let payload_max = 65_535 - UDP_BYTES - if is_v4 { 20 } else { 0 };
    let Some(payload_len) = bytes.len().checked_sub(HEADROOM).filter(|&len| len <= payload_max)
    else {
        ctx.drop_frame(lease, Counter::UdpTooLong);
        return false;
    };
    let ip = IpHeader {
        source_mac: ctx.config.host_mac,
        destination_mac: ctx.neighbors.mac(datagram.to.ip()),
        source: datagram.from.ip(),
        destination: datagram.to.ip(),
        protocol: protocol::UDP,
        tos: datagram.tos,
        hop_limit: datagram.hop_limit,
    };
    let (from, to) = (datagram.from.port(), datagram.to.port());
    let frame = &mut bytes[start..];
    let offload = build::udp(frame, ip, from, to, payload_len, datagram.segment, ctx.config.mtu);
    let len = (headers + payload_len) as u32;
    ctx.write_frame(Span { lease, start: start as u32, len }, offload);
    true
}

/// The TTL of a packet that we pass on as a router; none if it ends here (RFC 1812, section 5.3.1).
pub(crate) fn passed_on(hop_limit: u8) -> Option<u8> {
    (hop_limit > 1).then(|| hop_limit - 1)
}

/// Payload bytes of an undelivered datagram that are quoted to the guest.
pub(crate) const QUOTE_BYTES: usize = 64;

/// A datagram of the guest that did not arrive.
pub(crate) struct Undelivered<'a> {
    pub(crate) from: SocketAddr,
    /// Where the guest sent it to.
    pub(crate) to: SocketAddr,
    pub(crate) tos: u8,
    pub(crate) hop_limit: u8,
    /// Its first bytes, as far as they are known.
    pub(crate) payload: &'a [u8],
    /// Bytes of payload.
    pub(crate) payload_len: usize,
}

impl<'a> Undelivered<'a> {
    /// Of a datagram that has just come; `payload` is its own.
    pub(crate) fn from_guest(datagram: &GuestDatagram<'_>, payload: &'a [u8]) -> Self {
        Self {
            from: datagram.from,
            to: datagram.to,
            tos: datagram.packet.tos,
            hop_limit: datagram.packet.hop_limit,
            payload,
            payload_len: payload.len(),
        }
    }
}

/// Tells the guest by ICMP. `offender`: who says so; none: our gateway. The UDP header is built anew from the
/// ends, which is what a host looks at to find the socket; its checksum is left out.
pub(crate) fn tell_undelivered(
    ctx: &mut Context<'_>,
    about: &Undelivered<'_>,
    error: HostError,
    offender: Option<IpAddr>,
) {
    let mut transport = [0; UDP_BYTES + QUOTE_BYTES];
    let quoted = about.payload.len().min(QUOTE_BYTES);
    let transport_len = UDP_BYTES + about.payload_len;
    transport[0..2].copy_from_slice(&about.from.port().to_be_bytes());
    transport[2..4].copy_from_slice(&about.to.port().to_be_bytes());
    transport[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
    transport[UDP_BYTES..UDP_BYTES + quoted].copy_from_slice(&about.payload[..quoted]);
    let quoted = Quoted {
        source: about.from.ip(),
        destination: about.to.ip(),
        protocol: protocol::UDP,
        tos: about.tos,
        hop_limit: about.hop_limit,
        transport: &transport[..UDP_BYTES + quoted],
        transport_len,
    };
    tell_guest(ctx, &quoted, error, offender);
}
