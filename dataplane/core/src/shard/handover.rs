//! What came to another shard than its own: found out, and handed over.
//!
//! The kernel gives a frame to the queue that last wrote one of the same flow, and an unknown flow to any. So the first
//! frames of a flow may come anywhere; its owner's answer teaches the kernel. Some things have no flow to learn by
//! and belong to the [first](ShardId::FIRST) shard: fragments, because no other place sees all of them; DHCPv4, which
//! leases addresses; neighbour discovery, which advertises the router. What needs no memory (ARP, echo to us) is
//! answered where it comes.

use crate::config::ShardId;
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{Checksum, LeaseId, Offload, Op, Span};
use crate::ownership::Ownership;
use crate::packet::build::IpHeader;
use crate::packet::{self, Packet, protocol};
use crate::reassembly::Reassembled;
use crate::services;
use crate::tcp::Tcp;

/// The other shard that a packet belongs to; none: it stays here. What is no good is dropped where it comes.
pub(super) fn other_owner(
    ctx: &Context<'_>,
    tcp: &Tcp,
    packet: &Packet,
    bytes: &[u8],
) -> Option<ShardId> {
    let ownership = ctx.ownership;
    if packet.fragment.is_some() {
        return ownership.elsewhere(ShardId::FIRST);
    }
    let payload = bytes.get(packet.payload())?;
    let &[a, b, c, d, e, f, ..] = payload.first_chunk::<8>()?;
    let (first, second) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let owner = match packet.protocol {
        protocol::TCP => return tcp.elsewhere(ownership, packet.from(first), packet.to(second)),
        protocol::UDP if services::dhcp4::is_request(ctx.config, packet.to(second)) => {
            ShardId::FIRST
        }
        protocol::UDP => ownership.of_port(packet.from(first)),
        protocol::ICMPV6 if services::ndp::is_ndp(packet, bytes) => ShardId::FIRST,
        protocol::ICMP | protocol::ICMPV6 => match services::echo::classify(packet, bytes) {
            services::echo::Icmp::EchoRequest if ctx.rules.view.is_own(packet.destination) => {
                return None;
            }
            services::echo::Icmp::EchoRequest => {
                ownership.of_echo(packet.source, u16::from_be_bytes([e, f]))
            }
            services::echo::Icmp::Error => {
                let error = packet::error::parse(packet, bytes)?;
                if error.protocol != protocol::TCP {
                    return None;
                }
                return tcp.elsewhere(ownership, error.to, error.from);
            }
            services::echo::Icmp::Other => return None,
        },
        _ => return None,
    };
    ownership.elsewhere(owner)
}

/// The other shard that a datagram put together from fragments belongs to.
pub(super) fn other_owner_of_whole(
    ownership: &Ownership,
    whole: &Reassembled<'_>,
) -> Option<ShardId> {
    if !ownership.is_shared() {
        return None;
    }
    let &[a, b, _, _, e, f, ..] = whole.head.first_chunk::<8>()?;
    let owner = match whole.protocol {
        protocol::UDP => ownership.of_port(whole.packet.from(u16::from_be_bytes([a, b]))),
        protocol::ICMP | protocol::ICMPV6 => {
            ownership.of_echo(whole.packet.source, u16::from_be_bytes([e, f]))
        }
        _ => return None,
    };
    ownership.elsewhere(owner)
}

/// Hands a frame over. What the checksum says has been verified here.
pub(super) fn hand_over(
    ctx: &mut Context<'_>,
    to: ShardId,
    lease: LeaseId,
    len: usize,
    offload: Offload,
) {
    let checksum = match offload.checksum {
        Checksum::Unchecked | Checksum::Valid => Checksum::Valid,
        Checksum::Partial { start, offset } => Checksum::Partial { start, offset },
    };
    let offload = Offload { checksum, ..offload };
    ctx.count(Counter::HandedOver);
    let span = Span { lease, start: 0, len: len as u32 };
    ctx.op(Op::HandOver { to, span, offload, more: false });
}

/// Hands a datagram put together from fragments over: its spans behind the headers of a packet that is none.
pub(super) fn hand_over_whole(ctx: &mut Context<'_>, to: ShardId, whole: &Reassembled<'_>) {
    let packet = &whole.packet;
    let header = IpHeader {
        source_mac: packet.source_mac,
        destination_mac: packet.destination_mac,
        source: packet.source,
        destination: packet.destination,
        protocol: whole.protocol,
        tos: packet.tos,
        hop_limit: packet.hop_limit,
    };
    let Some((lease, bytes)) = ctx.out.reserve(header.bytes()) else {
        return whole.discard(ctx, Counter::DropNoBuffer);
    };
    header.write(bytes, whole.len as usize);
    let offload = Offload { checksum: Checksum::Valid, ..Offload::default() };
    ctx.count(Counter::HandedOver);
    let span = Span { lease, start: 0, len: header.bytes() as u32 };
    ctx.op(Op::HandOver { to, span, offload, more: true });
    for (n, &span) in whole.spans.iter().enumerate() {
        ctx.op(Op::HandOver { to, span, offload, more: n + 1 < whole.spans.len() });
    }
}

#[cfg(test)]
mod tests;
