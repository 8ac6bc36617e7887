//! A timing wheel: one timer per table index, set, moved and cancelled in constant time, without allocation.
//!
//! Four levels of 64 slots; a slot of the lowest level is 2^[`TICK_SHIFT`] ns wide. A timer that lies far ahead starts in a
//! coarse slot and is moved down when its slot comes up. Timers fire up to one tick late, never early.

use alloc::vec;
use alloc::vec::Vec;

use crate::time::Instant;

/// Width of the finest slot: 2^22 ns, about 4.2 ms.
const TICK_SHIFT: u32 = 22;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 4;
/// No timer, no neighbour.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Timer {
    /// Tick at which it fires.
    due: u64,
    /// Slot (`level * SLOTS + slot`) it is linked into, or `NONE`.
    slot: u32,
    next: u32,
    previous: u32,
}

const UNSET: Timer = Timer { due: 0, slot: NONE, next: NONE, previous: NONE };

/// Timers `0..capacity`.
pub(crate) struct Wheel {
    timers: Vec<Timer>,
    /// First timer of each slot.
    heads: Vec<u32>,
    /// One bit per slot that has timers, per level.
    occupied: [u64; LEVELS],
    /// Everything before this tick has fired.
    now: u64,
}

impl Wheel {
    pub(crate) fn new(capacity: u32) -> Self {
        Self {
            timers: Vec::with_capacity(capacity as usize),
            heads: vec![NONE; SLOTS * LEVELS],
            occupied: [0; LEVELS],
            now: 0,
        }
    }

    /// Sets or moves timer `index`.
    pub(crate) fn set(&mut self, index: u32, at: Instant) {
        while self.timers.len() <= index as usize {
            assert!(self.timers.len() < self.timers.capacity(), "a timer index is within capacity");
            self.timers.push(UNSET);
        }
        let due = (at.as_nanos() >> TICK_SHIFT) + 1;
        let timer = &self.timers[index as usize];
        if timer.slot != NONE && timer.due == due {
            return;
        }
        self.cancel(index);
        self.timers[index as usize].due = due;
        self.link(index);
    }

    /// Cancels timer `index` if it is set.
    pub(crate) fn cancel(&mut self, index: u32) {
        let Some(&Timer { slot, next, previous, .. }) = self.timers.get(index as usize) else {
            return;
        };
        if slot == NONE {
            return;
        }
        if next != NONE {
            self.timers[next as usize].previous = previous;
        }
        if previous != NONE {
            self.timers[previous as usize].next = next;
        } else {
            self.heads[slot as usize] = next;
            if next == NONE {
                self.occupied[slot as usize / SLOTS] &= !(1 << (slot as usize % SLOTS));
            }
        }
        self.timers[index as usize] = UNSET;
    }

    /// The next timer that is due, now unset. Call until none is left.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        let target = now.as_nanos() >> TICK_SHIFT;
        loop {
            let slot = (self.now % SLOTS as u64) as usize;
            let head = self.heads[slot];
            if head != NONE && self.timers[head as usize].due <= target {
                self.cancel(head);
                return Some(head);
            }
            if self.now >= target {
                return None;
            }
            self.advance(target);
        }
    }

    /// When to call [`Wheel::pop`] next: not later than the first timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let mut best: Option<u64> = None;
        for level in 0..LEVELS {
            let shift = SLOT_BITS * level as u32;
            let position = self.now >> shift;
            let bits = self.occupied[level].rotate_right((position % SLOTS as u64) as u32);
            if bits == 0 {
                continue;
            }
            let ahead = u64::from(bits.trailing_zeros());
            // A coarse slot that we stand in holds timers one whole turn ahead.
            let ahead = if level > 0 && ahead == 0 {
                let rest = bits & !1;
                if rest == 0 { SLOTS as u64 } else { u64::from(rest.trailing_zeros()) }
            } else {
                ahead
            };
            let at = (position + ahead) << shift;
            best = Some(best.map_or(at, |b| b.min(at)));
        }
        best.map(|tick| Instant::from_nanos(tick.max(self.now) << TICK_SHIFT))
    }

    /// Moves on to the next tick that matters, at most to `target`, and brings coarse timers down.
    fn advance(&mut self, target: u64) {
        let next = self
            .next_deadline()
            .map_or(target, |at| (at.as_nanos() >> TICK_SHIFT).clamp(self.now + 1, target));
        let before = self.now;
        self.now = next;
        for level in 1..LEVELS {
            let shift = SLOT_BITS * level as u32;
            if before >> shift == next >> shift {
                break;
            }
            let slot = level * SLOTS + ((next >> shift) % SLOTS as u64) as usize;
            let mut index = core::mem::replace(&mut self.heads[slot], NONE);
            self.occupied[level] &= !(1 << (slot % SLOTS));
            while index != NONE {
                let following = self.timers[index as usize].next;
                self.link(index);
                index = following;
            }
        }
    }

    fn link(&mut self, index: u32) {
        let due = self.timers[index as usize].due.max(self.now);
        let slot = self.slot_for(due);
        let head = self.heads[slot];
        let timer = &mut self.timers[index as usize];
        timer.slot = slot as u32;
        timer.previous = NONE;
        timer.next = head;
        if head != NONE {
            self.timers[head as usize].previous = index;
        }
        self.heads[slot] = index;
        self.occupied[slot / SLOTS] |= 1 << (slot % SLOTS);
    }

    fn slot_for(&self, due: u64) -> usize {
        for level in 0..LEVELS {
            let shift = SLOT_BITS * level as u32;
            // Within one turn of this level, counted in whole slots.
            if (due >> shift) - (self.now >> shift) < SLOTS as u64 {
                return level * SLOTS + ((due >> shift) % SLOTS as u64) as usize;
            }
        }
        // Beyond the horizon (18 hours): the farthest slot; it is linked anew when that comes up.
        let shift = SLOT_BITS * (LEVELS as u32 - 1);
        (LEVELS - 1) * SLOTS + (((self.now >> shift) + SLOTS as u64 - 1) % SLOTS as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;

    fn ms(n: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(n)
    }

    #[test]
    fn a_cancelled_timer_does_not_fire() {
        let mut wheel = Wheel::new(4);
        wheel.set(1, ms(10));
        wheel.set(2, ms(10));
        wheel.cancel(1);
        assert_eq!(wheel.pop(ms(9)), None);
        assert_eq!(wheel.pop(ms(20)), Some(2));
        assert_eq!(wheel.pop(ms(1_000_000)), None);
        assert_eq!(wheel.next_deadline(), None);
    }

    proptest! {
        #[test]
        fn timers_fire_once_in_time_and_never_early(
            dues in proptest::collection::vec(0u64..200_000_000, 1..64),
            start in 0u64..1 << 40,
        ) {
            let start = Instant::from_nanos(start);
            let mut wheel = Wheel::new(64);
            let _ = wheel.pop(start);
            let due: Vec<Instant> =
                dues.iter().map(|&ms| start + Duration::from_millis(ms)).collect();
            for (index, &at) in due.iter().enumerate() {
                wheel.set(index as u32, at);
            }
            let mut fired = vec![false; due.len()];
            while let Some(now) = wheel.next_deadline() {
                while let Some(index) = wheel.pop(now) {
                    let at = due[index as usize];
                    prop_assert!(!fired[index as usize], "twice");
                    prop_assert!(now >= at, "early");
                    prop_assert!(now.since(at) < Duration::from_millis(9), "late");
                    fired[index as usize] = true;
                }
                let again = wheel.next_deadline();
                prop_assert!(again.is_none_or(|next| next > now), "deadlines move on");
            }
            prop_assert!(fired.iter().all(|&f| f), "all of them");
        }
    }
}
