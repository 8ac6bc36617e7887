//! What the kernel does with a frame that asks for offload on its way to the guest: cuts super-frames, completes checksums,
//! fragments. Written for the simulator alone, so that it does not share the core's mistakes.

use usernet_core::Offload;
use usernet_core::op::{Checksum, Gso};
use usernet_core::packet::checksum::Sum;
use usernet_core::packet::{EtherType, Packet, parse, protocol};

/// The frames that the guest gets. `identification`: of the fragments, if there are any.
pub(crate) fn cut(frame: &[u8], offload: Offload, mtu: u16, identification: u16) -> Vec<Vec<u8>> {
    let Ok(EtherType::Ip(packet)) = parse(frame) else { return vec![frame.to_vec()] };
    let transport = packet.payload_start as usize;
    match offload.gso {
        Gso::None => vec![complete(frame.to_vec(), offload.checksum)],
        Gso::Fragment => {
            fragment(&complete(frame.to_vec(), offload.checksum), &packet, mtu, identification)
        }
        Gso::Tcp4 { size } | Gso::Tcp6 { size } => {
            assert_eq!(packet.protocol, protocol::TCP, "GSO type and protocol agree");
            assert_eq!(packet.source.is_ipv4(), matches!(offload.gso, Gso::Tcp4 { .. }));
            let header = transport + usize::from(frame[transport + 12] >> 4) * 4;
            segments(frame, &packet, header, usize::from(size), offload.checksum)
        }
        Gso::Udp { size } => {
            assert_eq!(packet.protocol, protocol::UDP, "GSO type and protocol agree");
            segments(frame, &packet, transport + 8, usize::from(size), offload.checksum)
        }
    }
}

fn complete(mut frame: Vec<u8>, state: Checksum) -> Vec<u8> {
    if let Checksum::Partial { start, offset } = state {
        let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
        let sum = Sum::default().bytes(&frame[start..]).checksum();
        // A UDP checksum of 0 means none (RFC 768).
        let sum = if sum == 0 { 0xffff } else { sum };
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// Sets the lengths, and the IPv4 header's checksum.
fn set_lengths(frame: &mut [u8], packet: &Packet) {
    let len = frame.len() - 14;
    if packet.source.is_ipv6() {
        frame[18..20].copy_from_slice(&(len as u16 - 40).to_be_bytes());
        return;
    }
    frame[16..18].copy_from_slice(&(len as u16).to_be_bytes());
    frame[24..26].fill(0);
    let header = 14..packet.payload_start as usize;
    let sum = Sum::default().bytes(&frame[header]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn segments(
    frame: &[u8],
    packet: &Packet,
    header: usize,
    size: usize,
    state: Checksum,
) -> Vec<Vec<u8>> {
    assert!(matches!(state, Checksum::Partial { .. }), "GSO wants a partial checksum");
    let transport = packet.payload_start as usize;
    let is_tcp = packet.protocol == protocol::TCP;
    let pieces: Vec<&[u8]> = frame[header..].chunks(size).collect();
    let last = pieces.len().saturating_sub(1);
    let mut frames = Vec::with_capacity(pieces.len());
    for (i, piece) in pieces.into_iter().enumerate() {
        let mut one = frame[..header].to_vec();
        one.extend_from_slice(piece);
        set_lengths(&mut one, packet);
        let len = one.len() - transport;
        let sum =
            Sum::pseudo_header(packet.source, packet.destination, packet.protocol, len).folded();
        if is_tcp {
            let seq = u32::from_be_bytes(one[transport + 4..transport + 8].try_into().expect("4"));
            let seq = seq.wrapping_add((i * size) as u32);
            one[transport + 4..transport + 8].copy_from_slice(&seq.to_be_bytes());
            // FIN and PSH belong to the last, CWR to the first.
            one[transport + 13] &= if i < last { !0x09 } else { 0xff };
            one[transport + 13] &= if i > 0 { !0x80 } else { 0xff };
            one[transport + 16..transport + 18].copy_from_slice(&sum.to_be_bytes());
        } else {
            one[transport + 4..transport + 6].copy_from_slice(&(len as u16).to_be_bytes());
            one[transport + 6..transport + 8].copy_from_slice(&sum.to_be_bytes());
        }
        frames.push(complete(one, state));
    }
    frames
}

fn fragment(frame: &[u8], packet: &Packet, mtu: u16, identification: u16) -> Vec<Vec<u8>> {
    let start = packet.payload_start as usize;
    let is_v4 = packet.source.is_ipv4();
    let extra = if is_v4 { 0 } else { 8 };
    let step = (usize::from(mtu) + 14 - start - extra) / 8 * 8;
    let payload = &frame[start..];
    let mut frames = Vec::new();
    for (i, piece) in payload.chunks(step).enumerate() {
        let offset = i * step;
        let more = offset + piece.len() < payload.len();
        let mut one = frame[..start].to_vec();
        if is_v4 {
            one[18..20].copy_from_slice(&identification.to_be_bytes());
            let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            one[20..22].copy_from_slice(&field.to_be_bytes());
        } else {
            let field = offset as u16 | u16::from(more);
            one.extend_from_slice(&[one[20], 0]);
            one.extend_from_slice(&field.to_be_bytes());
            one.extend_from_slice(&u32::from(identification).to_be_bytes());
            one[20] = 44;
        }
        one.extend_from_slice(piece);
        set_lengths(&mut one, packet);
        frames.push(one);
    }
    frames
}
