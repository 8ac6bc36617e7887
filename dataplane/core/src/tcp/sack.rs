//! Selective acknowledgement (RFC 2018): what one end has received ahead of a gap, as the other end is told it.
//!
//! Three or four blocks fit into a header, so an end tells those that changed last: the block that the newest segment
//! belongs to comes first, and each is told again until three others have come (section 4). What was told is kept: we
//! never drop a byte that came ahead of a gap (section 8 would allow it), but for the end of the connection.

use super::seq::Seq;

/// Blocks in a header that has no other options: 2 bytes, 8 per block, and 2 for alignment, of 40.
pub(crate) const BLOCKS_MAX: usize = 4;

/// The option's number and length (RFC 2018, section 2): may be sent in a SYN, and says that we understand the other.
pub(crate) const PERMITTED: [u8; 2] = [4, 2];
/// The number of the option that has the blocks.
const BLOCKS: u8 = 5;

/// Ranges of sequence numbers, each from its first byte to behind its last; the newest first. They do not touch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sacks {
    blocks: [(Seq, Seq); BLOCKS_MAX],
    len: u8,
}

impl Sacks {
    /// The blocks, the newest first.
    pub(crate) fn blocks(&self) -> &[(Seq, Seq)] {
        &self.blocks[..usize::from(self.len)]
    }

    /// Another range has come: alone, or as a part of blocks that are known.
    pub(crate) fn add(&mut self, start: Seq, end: Seq) {
        let (mut first, mut last) = (start, end);
        let mut others = Self::default();
        for &(from, to) in self.blocks() {
            if to.is_before(start) || from.is_after(end) {
                others.push((from, to));
            } else {
                first = if from.is_before(first) { from } else { first };
                last = last.latest(to);
            }
        }
        *self = Self::default();
        self.push((first, last));
        for &block in others.blocks() {
            self.push(block);
        }
    }

    /// Everything before `expected` is acknowledged by itself now.
    pub(crate) fn forget_before(&mut self, expected: Seq) {
        let all = *self;
        *self = Self::default();
        for &(from, to) in all.blocks() {
            if to.is_after(expected) {
                self.push((from.latest(expected), to));
            }
        }
    }

    /// Bytes that the option takes in a header, with the two no-operations before it.
    pub(crate) fn option_bytes(&self) -> usize {
        if self.len == 0 { 0 } else { 4 + 8 * usize::from(self.len) }
    }

    /// Writes the option to as many bytes.
    pub(crate) fn write(&self, option: &mut [u8]) {
        if self.len == 0 {
            return;
        }
        let (head, values) = option.split_at_mut(4);
        head.copy_from_slice(&[1, 1, BLOCKS, 2 + 8 * self.len]);
        for (value, (from, to)) in values.chunks_exact_mut(8).zip(self.blocks()) {
            value[..4].copy_from_slice(&from.0.to_be_bytes());
            value[4..].copy_from_slice(&to.0.to_be_bytes());
        }
    }

    /// At the end of the list; not if that is full.
    fn push(&mut self, block: (Seq, Seq)) {
        if let Some(slot) = self.blocks.get_mut(usize::from(self.len)) {
            *slot = block;
            self.len += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn told(sacks: &Sacks) -> Vec<(u32, u32)> {
        sacks.blocks().iter().map(|(from, to)| (from.0, to.0)).collect()
    }

    fn with(ranges: &[(u32, u32)]) -> Sacks {
        let mut sacks = Sacks::default();
        for &(from, to) in ranges {
            sacks.add(Seq(from), Seq(to));
        }
        sacks
    }

    #[test]
    fn the_newest_block_comes_first_and_the_oldest_is_forgotten() {
        let mut sacks = with(&[(10, 20), (30, 40), (50, 60)]);
        assert_eq!(told(&sacks), [(50, 60), (30, 40), (10, 20)]);
        sacks.add(Seq(20), Seq(25));
        assert_eq!(told(&sacks), [(10, 25), (50, 60), (30, 40)]);
        sacks.add(Seq(70), Seq(80));
        sacks.add(Seq(90), Seq(99));
        assert_eq!(told(&sacks), [(90, 99), (70, 80), (10, 25), (50, 60)]);
    }

    #[test]
    fn blocks_that_touch_or_overlap_become_one_over_the_wrap_too() {
        assert_eq!(told(&with(&[(10, 20), (30, 40), (20, 30)])), [(10, 40)]);
        assert_eq!(told(&with(&[(10, 20), (15, 18)])), [(10, 20)]);
        assert_eq!(told(&with(&[(10, 20), (30, 40), (5, 50)])), [(5, 50)]);
        let wrapped = with(&[(u32::MAX - 9, u32::MAX), (u32::MAX, 5)]);
        assert_eq!(told(&wrapped), [(u32::MAX - 9, 5)]);
    }

    #[test]
    fn what_is_acknowledged_is_not_told() {
        let mut sacks = with(&[(10, 20), (30, 40), (50, 60)]);
        sacks.forget_before(Seq(35));
        assert_eq!(told(&sacks), [(50, 60), (35, 40)]);
        sacks.forget_before(Seq(60));
        assert_eq!((told(&sacks), sacks.option_bytes()), (vec![], 0));
    }

    #[test]
    fn the_option_is_written_as_rfc_2018_has_it() {
        let sacks = with(&[(0x0102_0304, 0x0102_0404)]);
        let mut option = vec![0; sacks.option_bytes()];
        sacks.write(&mut option);
        assert_eq!(option, [1, 1, 5, 10, 1, 2, 3, 4, 1, 2, 4, 4]);
        assert!(with(&[(1, 2), (3, 4), (5, 6), (7, 8)]).option_bytes() <= 40);
    }
}
