//! The Internet checksum (RFC 1071): of headers, of pseudo-headers, and of whole payloads where the link has
//! no offload.

use core::net::IpAddr;

/// What is summed at once.
const BLOCK_BYTES: usize = 32;

/// A running one's-complement sum, not folded and not inverted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last byte is padded with zero, so only the last slice may be odd.
    // Inlined: headers have lengths that the compiler knows.
    #[must_use]
    #[inline]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        let sum = if blocks.is_empty() { self } else { self.blocks(blocks) };
        let (words, rest) = rest.as_chunks::<8>();
        let sum = words.iter().fold(sum, |sum, word| sum.add(u64::from_be_bytes(*word)));
        if rest.is_empty() {
            return sum;
        }
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        sum.add(u64::from_be_bytes(word))
    }

    /// Payload. The order of bytes does not matter to a one's-complement sum until its end (RFC 1071, section 2 B), and words of 32 bits
    /// in lanes of 64 cannot run over: the compiler makes vectors of it, four times as fast as carrying.
    #[inline(never)]
    fn blocks(self, blocks: &[[u8; BLOCK_BYTES]]) -> Self {
        let mut lanes = [0_u64; BLOCK_BYTES / 4];
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let sum = lanes.into_iter().fold(Self::default(), Self::add).folded();
        self.add(u64::from(sum.to_be()))
    }

    #[must_use]
    const fn add(self, word: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(word);
        Self(sum + carry as u64)
    }

    /// Adds a 16-bit word.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        self.add(u64::from(word))
    }

    /// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293, section 3.1; RFC 8200, section 8.1).
    /// `len`: bytes of the transport header and payload.
    #[must_use]
    pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Self {
        let sum = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Self::default().bytes(&source.octets()).bytes(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Self::default().bytes(&source.octets()).bytes(&destination.octets())
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                unreachable!("a packet's addresses are of one family")
            }
        };
        sum.bytes(&(len as u32).to_be_bytes()).word(u16::from(protocol))
    }

    /// Folded to 16 bits, not inverted: what a partial checksum field holds.
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum: folded and inverted.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Whether the transport checksum of `segment` (transport header and payload) is right. A UDP datagram over IPv4
/// may go without (RFC 768).
pub fn is_valid(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> bool {
    use super::protocol::{ICMP, UDP};
    if protocol == UDP && source.is_ipv4() && segment.get(6..8) == Some(&[0, 0]) {
        return true;
    }
    let start = if protocol == ICMP {
        Sum::default()
    } else {
        Sum::pseudo_header(source, destination, protocol, segment.len())
    };
    start.bytes(segment).folded() == 0xffff
}

/// A checksum field after a 16-bit word under it has changed (RFC 1624, equation 3).
pub fn moved(checksum: u16, before: u16, after: u16) -> u16 {
    Sum::default().word(!checksum).word(!before).word(after).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    proptest! {
        #[test]
        fn summing_eight_bytes_at_once_equals_summing_words(
            bytes in proptest::collection::vec(any::<u8>(), 0..2_000)
        ) {
            let mut slow: u64 = 0;
            for pair in bytes.chunks(2) {
                let low = pair.get(1).copied().unwrap_or(0);
                slow += u64::from(u16::from_be_bytes([pair[0], low]));
            }
            while slow > 0xffff {
                slow = (slow & 0xffff) + (slow >> 16);
            }
            prop_assert_eq!(Sum::default().bytes(&bytes).folded(), slow as u16);
        }
    }
}
