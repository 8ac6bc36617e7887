//! Bytes that know their place: the contents of every stream follow from its key and the position, so a byte
//! that is lost, repeated or moved shows at once, and nothing has to be stored.

use crate::choice::mix;

/// A stream's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern(pub u64);

impl Pattern {
    fn word(self, index: u64) -> [u8; 8] {
        mix(self.0.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ index).to_le_bytes()
    }

    /// Writes the bytes from `position` on.
    pub fn fill(self, position: u64, bytes: &mut [u8]) {
        self.each(position, bytes.len(), |at, part| {
            bytes[at..at + part.len()].copy_from_slice(part)
        });
    }

    /// The first position at which `bytes`, which start at `position`, are wrong.
    pub fn mismatch(self, position: u64, bytes: &[u8]) -> Option<u64> {
        let mut wrong = None;
        self.each(position, bytes.len(), |at, part| {
            if wrong.is_none() && bytes[at..at + part.len()] != *part {
                let differs = |i: &usize| bytes[at + i] != part[*i];
                wrong = (0..part.len()).find(differs).map(|i| position + (at + i) as u64);
            }
        });
        wrong
    }

    fn each(self, position: u64, len: usize, mut visit: impl FnMut(usize, &[u8])) {
        let mut done = 0;
        while done < len {
            let at = position + done as u64;
            let skip = (at % 8) as usize;
            let take = (8 - skip).min(len - done);
            visit(done, &self.word(at / 8)[skip..skip + take]);
            done += take;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_the_same_in_any_pieces_and_a_wrong_byte_is_found() {
        let pattern = Pattern(7);
        let mut whole = [0; 100];
        pattern.fill(0, &mut whole);
        let mut piece = [0; 31];
        pattern.fill(13, &mut piece);
        assert_eq!(whole[13..44], piece);
        assert_eq!(pattern.mismatch(13, &piece), None);
        piece[5] ^= 1;
        assert_eq!(pattern.mismatch(13, &piece), Some(18));
    }
}
