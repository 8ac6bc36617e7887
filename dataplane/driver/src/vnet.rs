//! The virtio-net header (virtio 1.2, section 5.1.6) in front of every frame on a TAP with `IFF_VNET_HDR`.
//!
//! Fields are in the host's byte order: the kernel's default for TAPs (`TUNSETVNETLE` not set).

use usernet_core::Offload;
use usernet_core::op::{Checksum, Gso};

/// The longest header: 12 bytes, with the number of merged buffers that a TAP leaves zero.
pub(crate) const HEADER_BYTES_MAX: usize = 12;

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A header that no TAP of ours should give: unknown segmentation, or offsets beyond the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads the header of a frame of `frame_bytes` bytes. `header` has at least 10 bytes.
pub(crate) fn decode(header: &[u8], frame_bytes: usize) -> Result<Offload, Malformed> {
    let Some(header) = header.first_chunk::<10>() else { return Err(Malformed) };
    let [flags, gso, _, _, size_0, size_1, start_0, start_1, offset_0, offset_1] = *header;
    let size = u16::from_ne_bytes([size_0, size_1]);
    let checksum = if flags & FLAG_NEEDS_CSUM != 0 {
        let start = u16::from_ne_bytes([start_0, start_1]);
        let offset = u16::from_ne_bytes([offset_0, offset_1]);
        if usize::from(start) + usize::from(offset) + 2 > frame_bytes {
            return Err(Malformed);
        }
        Checksum::Partial { start, offset }
    } else if flags & FLAG_DATA_VALID != 0 {
        Checksum::Valid
    } else {
        Checksum::Unchecked
    };
    let gso = match gso & !GSO_ECN {
        GSO_NONE => Gso::None,
        GSO_TCPV4 => Gso::Tcp4 { size },
        GSO_TCPV6 => Gso::Tcp6 { size },
        GSO_UDP_L4 => Gso::Udp { size },
        _ => return Err(Malformed),
    };
    let is_empty_gso = size == 0 && gso != Gso::None;
    if is_empty_gso { Err(Malformed) } else { Ok(Offload { checksum, gso }) }
}

/// Writes the header for `frame`. [`Gso::Fragment`] is cut before; it is no matter of this header.
pub(crate) fn encode(offload: Offload, frame: &[u8]) -> [u8; HEADER_BYTES_MAX] {
    let mut header = [0; HEADER_BYTES_MAX];
    if let Checksum::Partial { start, offset } = offload.checksum {
        header[0] = FLAG_NEEDS_CSUM;
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
    }
    let (kind, size) = match offload.gso {
        Gso::None | Gso::Fragment => return header,
        Gso::Tcp4 { size } => (GSO_TCPV4, size),
        Gso::Tcp6 { size } => (GSO_TCPV6, size),
        Gso::Udp { size } => (GSO_UDP_L4, size),
    };
    header[1] = kind;
    header[2..4].copy_from_slice(&headers_bytes(offload, frame).to_ne_bytes());
    header[4..6].copy_from_slice(&size.to_ne_bytes());
    header
}

/// Bytes of all headers of a super-frame. The kernel makes that much of the packet linear and puts the rest
/// in pages; with 0 it would look for 64 KiB in one piece.
fn headers_bytes(offload: Offload, frame: &[u8]) -> u16 {
    let Checksum::Partial { start, .. } = offload.checksum else { return 0 };
    let transport = match offload.gso {
        Gso::Udp { .. } => 8,
        Gso::Tcp4 { .. } | Gso::Tcp6 { .. } => {
            let offset = frame.get(usize::from(start) + 12).copied().unwrap_or(0x50);
            u16::from(offset >> 4) * 4
        }
        Gso::None | Gso::Fragment => 0,
    };
    start + transport
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut frame = [0; 2000];
        frame[34 + 12] = 0x80;
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        for offload in [
            Offload::default(),
            Offload { checksum, gso: Gso::None },
            Offload { checksum, gso: Gso::Tcp4 { size: 1448 } },
            Offload { checksum, gso: Gso::Tcp6 { size: 1428 } },
            Offload { checksum, gso: Gso::Udp { size: 1200 } },
        ] {
            let header = encode(offload, &frame);
            assert_eq!(decode(&header, frame.len()), Ok(offload));
        }
    }

    #[test]
    fn the_header_length_covers_tcp_options() {
        let mut frame = [0; 100];
        frame[34 + 12] = 0x80;
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        let header = encode(Offload { checksum, gso: Gso::Tcp4 { size: 10 } }, &frame);
        assert_eq!(u16::from_ne_bytes([header[2], header[3]]), 34 + 32);
    }

    #[test]
    fn impossible_headers_are_refused() {
        let needs_csum = |start: u16, offset: u16| {
            let mut header = [0; 12];
            header[0] = FLAG_NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
            header
        };
        assert_eq!(decode(&needs_csum(34, 16), 51), Err(Malformed));
        assert!(decode(&needs_csum(34, 16), 52).is_ok());
        assert_eq!(decode(&needs_csum(u16::MAX, u16::MAX), 60_000), Err(Malformed));
        assert_eq!(decode(&[0, 3, 0, 0, 9, 9, 0, 0, 0, 0], 1000), Err(Malformed));
        assert_eq!(decode(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0], 1000), Err(Malformed));
        assert_eq!(decode(&[0; 9], 1000), Err(Malformed));
    }

    #[test]
    fn the_ecn_flag_is_no_kind_of_its_own() {
        let header = [0, 0x81, 0, 0, 0xa8, 0x05, 0, 0, 0, 0];
        assert_eq!(
            decode(&header, 3000).map(|o| o.gso),
            Ok(Gso::Tcp4 { size: u16::from_ne_bytes([0xa8, 0x05]) })
        );
    }
}
