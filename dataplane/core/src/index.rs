//! An index from hashes to the numbers of what a bounded table holds.
//!
//! Open addressing with linear probing over a power of two of cells, at most half of them taken; what leaves is closed up
//! behind, so that no marks of it are left and nothing is ever hashed again (Knuth, *The Art of Computer Programming*,
//! volume 3, section 6.4, algorithm R). A cell without an entry is zero: all cells are reserved at the start, and the pages of
//! those that were never used are never touched.

use alloc::vec;
use alloc::vec::Vec;

/// A cell: 32 bits of the hash, and the number plus one below them.
type Cell = u64;

/// See the [module](self).
pub(crate) struct Index {
    cells: Vec<Cell>,
    len: u32,
}

impl Index {
    /// Room for `limit` entries, whose numbers are below [`u32::MAX`].
    pub(crate) fn new(limit: u32) -> Self {
        let cells = (2 * limit as usize).next_power_of_two().max(2);
        Self { cells: vec![0; cells], len: 0 }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The number with this hash for which `is_it`.
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.cell(hash, is_it).map(|at| number(self.cells[at]))
    }

    /// Enters a number, which must not be there yet.
    ///
    /// # Panics
    ///
    /// When there is no room for it.
    pub(crate) fn insert(&mut self, hash: u64, number: u32) {
        assert!(
            2 * (self.len as usize) < self.cells.len(),
            "the index has room for all of the table"
        );
        let cell = Cell::from(hash as u32) << 32 | Cell::from(number + 1);
        let mut at = self.home(cell);
        while self.cells[at] != 0 {
            at = self.next(at);
        }
        self.cells[at] = cell;
        self.len += 1;
    }

    /// Takes a number out; false when it is not there.
    pub(crate) fn remove(&mut self, hash: u64, number: u32) -> bool {
        let Some(mut gap) = self.cell(hash, |other| other == number) else { return false };
        let mut at = self.next(gap);
        while self.cells[at] != 0 {
            // Whoever would be looked for from the gap or before it belongs there.
            let home = self.home(self.cells[at]);
            if self.distance(home, at) >= self.distance(gap, at) {
                self.cells[gap] = self.cells[at];
                gap = at;
            }
            at = self.next(at);
        }
        self.cells[gap] = 0;
        self.len -= 1;
        true
    }

    fn cell(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        let mut at = self.home(Cell::from(hash as u32) << 32);
        loop {
            let cell = self.cells[at];
            if cell == 0 {
                return None;
            }
            if (cell >> 32) as u32 == hash as u32 && is_it(number(cell)) {
                return Some(at);
            }
            at = self.next(at);
        }
    }

    /// Where an entry is looked for first.
    fn home(&self, cell: Cell) -> usize {
        (cell >> 32) as usize & (self.cells.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    /// How many steps of [`Self::next`] there are between two cells.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.cells.len() - 1)
    }
}

/// Of a cell that is taken.
fn number(cell: Cell) -> u32 {
    cell as u32 - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// With few hashes, so that most entries are not at home, and runs go around the end.
        #[test]
        fn an_index_behaves_like_a_list_of_pairs(
            steps in proptest::collection::vec((any::<bool>(), 0u32..16, 0u64..6), 0..200),
        ) {
            let mut index = Index::new(8);
            let mut model: Vec<(u32, u64)> = Vec::new();
            for (is_insert, number, hash) in steps {
                let hash = hash.wrapping_mul(0x1_0000_0003).wrapping_sub(3);
                let place = model.iter().position(|&entry| entry == (number, hash));
                if is_insert && place.is_none() && model.len() < 8 {
                    index.insert(hash, number);
                    model.push((number, hash));
                } else if !is_insert {
                    prop_assert_eq!(index.remove(hash, number), place.is_some());
                    place.map(|at| model.swap_remove(at));
                }
                prop_assert_eq!(index.len() as usize, model.len());
                for &(number, hash) in &model {
                    prop_assert_eq!(index.find(hash, |other| other == number), Some(number));
                }
                let others = (0..16).filter(|other| model.iter().all(|(number, _)| number != other));
                for other in others {
                    let found = (0..6u64).any(|hash| {
                        let hash = hash.wrapping_mul(0x1_0000_0003).wrapping_sub(3);
                        index.find(hash, |number| number == other).is_some()
                    });
                    prop_assert!(!found, "{other} is not in");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "room")]
    fn a_full_index_takes_nothing() {
        let mut index = Index::new(2);
        (0..3).for_each(|number| index.insert(7, number));
    }
}
