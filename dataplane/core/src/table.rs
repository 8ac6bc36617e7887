//! A bounded table with a key, a number and an age for each entry.
//!
//! Entries lie in a slab and keep their number (index) while they live; a hash index finds them by key; a list through
//! the slab has them in the order of their last [`Table::touch`]. So whatever has one timeout needs no timer per entry:
//! the oldest entry is the next that is due, and the one to go when the table is full.
//!
//! All memory is reserved at the start and none of it is touched before it is used.

use alloc::vec::Vec;
use core::hash::{BuildHasher, Hash};

use crate::hash::{Hasher, hasher};
use crate::index::Index;

/// No entry.
const NONE: u32 = u32::MAX;

struct Slot<K, V> {
    /// Empty while the slot is on the free list.
    entry: Option<(K, V)>,
    /// Towards the oldest; free list: unused.
    older: u32,
    /// Towards the newest; free list: the next free slot.
    newer: u32,
}

/// See the [module](self).
pub(crate) struct Table<K, V> {
    slots: Vec<Slot<K, V>>,
    index: Index,
    hasher: Hasher,
    limit: u32,
    free: u32,
    oldest: u32,
    newest: u32,
}

impl<K: Copy + Eq + Hash, V> Table<K, V> {
    pub(crate) fn new(limit: u32, seed: u64) -> Self {
        Self {
            slots: Vec::with_capacity(limit as usize),
            index: Index::new(limit),
            hasher: hasher(seed),
            limit,
            free: NONE,
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.index.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    pub(crate) fn find(&self, key: &K) -> Option<u32> {
        let slots = &self.slots;
        self.index.find(self.hasher.hash_one(key), |at| {
            slots[at as usize].entry.as_ref().is_some_and(|(k, _)| k == key)
        })
    }

    /// Adds an entry as the newest; none when the table is full. The key must not be there yet.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<u32> {
        debug_assert!(self.find(&key).is_none(), "a key is in a table once");
        if self.is_full() {
            return None;
        }
        let slot = Slot { entry: Some((key, value)), older: NONE, newer: NONE };
        let at = if self.free == NONE {
            self.slots.push(slot);
            self.slots.len() as u32 - 1
        } else {
            let at = self.free;
            self.free = self.slots[at as usize].newer;
            self.slots[at as usize] = slot;
            at
        };
        self.index.insert(self.hasher.hash_one(key), at);
        self.link_newest(at);
        Some(at)
    }

    /// Takes an entry out; none if there is no such entry.
    pub(crate) fn remove(&mut self, at: u32) -> Option<(K, V)> {
        let (key, value) = self.slots.get_mut(at as usize)?.entry.take()?;
        let was_in = self.index.remove(self.hasher.hash_one(key), at);
        assert!(was_in, "an entry is in the index");
        self.unlink(at);
        self.slots[at as usize].newer = self.free;
        self.free = at;
        Some((key, value))
    }

    pub(crate) fn get(&self, at: u32) -> Option<(&K, &V)> {
        self.slots.get(at as usize)?.entry.as_ref().map(|(k, v)| (k, v))
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> Option<(&K, &mut V)> {
        self.slots.get_mut(at as usize)?.entry.as_mut().map(|(k, v)| (&*k, v))
    }

    /// Makes an entry the newest.
    pub(crate) fn touch(&mut self, at: u32) {
        if self.newest != at && self.get(at).is_some() {
            self.unlink(at);
            self.link_newest(at);
        }
    }

    /// The entry that was touched least recently.
    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The entry that follows `at` in the order of their touches.
    pub(crate) fn newer(&self, at: u32) -> Option<u32> {
        self.slots.get(at as usize).map(|slot| slot.newer).filter(|&newer| newer != NONE)
    }

    /// All entries, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &K, &V)> + '_ {
        self.slots.iter().enumerate().filter_map(|(at, slot)| {
            let (key, value) = slot.entry.as_ref()?;
            Some((at as u32, key, value))
        })
    }

    /// Asserts that slab, index and list agree.
    pub(crate) fn check(&self) {
        let mut at = self.oldest;
        let mut older = NONE;
        let mut len = 0;
        while at != NONE {
            let slot = &self.slots[at as usize];
            assert_eq!(slot.older, older, "the list's links agree");
            let (key, _) = slot.entry.as_ref().expect("only entries are on the list");
            assert_eq!(self.find(key), Some(at), "an entry is found by its key");
            (older, at, len) = (at, slot.newer, len + 1);
        }
        assert_eq!(self.newest, older, "the list ends with the newest entry");
        assert_eq!(self.len(), len, "the list has all entries");
        assert!(len <= self.limit, "the table keeps its limit");
        assert_eq!(self.iter().count() as u32, len, "the slab has no other entries");
    }

    fn link_newest(&mut self, at: u32) {
        let older = core::mem::replace(&mut self.newest, at);
        self.slots[at as usize].older = older;
        self.slots[at as usize].newer = NONE;
        if older == NONE {
            self.oldest = at;
        } else {
            self.slots[older as usize].newer = at;
        }
    }

    fn unlink(&mut self, at: u32) {
        let Slot { older, newer, .. } = self.slots[at as usize];
        if older == NONE {
            self.oldest = newer;
        } else {
            self.slots[older as usize].newer = newer;
        }
        if newer == NONE {
            self.newest = older;
        } else {
            self.slots[newer as usize].older = older;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_table_takes_nothing_until_something_leaves() {
        let mut table = Table::new(2, 7);
        let first = table.insert('a', 1).expect("room");
        let second = table.insert('b', 2).expect("room");
        assert_eq!(table.insert('c', 3), None);
        table.touch(first);
        assert_eq!(table.oldest(), Some(second));
        assert_eq!(table.remove(second), Some(('b', 2)));
        assert_eq!(table.remove(second), None);
        assert_eq!(table.insert('c', 3), Some(second));
        table.check();
    }

    proptest! {
        #[test]
        fn a_table_behaves_like_a_list_of_pairs(
            steps in proptest::collection::vec((0u8..4, 0u8..24), 0..200),
        ) {
            let mut table = Table::new(8, 1);
            let mut model: Vec<u8> = Vec::new();
            for (step, key) in steps {
                let at = table.find(&key);
                prop_assert_eq!(at.is_some(), model.contains(&key));
                match (step, at) {
                    (0 | 1, None) => {
                        let is_in = table.insert(key, ()).is_some();
                        prop_assert_eq!(is_in, model.len() < 8);
                        if is_in {
                            model.push(key);
                        }
                    }
                    (2, Some(at)) => {
                        table.touch(at);
                        model.retain(|&k| k != key);
                        model.push(key);
                    }
                    (3, Some(at)) => {
                        table.remove(at);
                        model.retain(|&k| k != key);
                    }
                    _ => {}
                }
                let oldest = table.oldest().and_then(|at| table.get(at)).map(|(k, ())| *k);
                prop_assert_eq!(oldest, model.first().copied());
                table.check();
            }
        }
    }
}
