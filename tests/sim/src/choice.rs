//! Where a run's choices come from: a seed, or the bytes of a fuzzer.
//!
//! Everything random in the simulator asks here, in an order that depends on nothing else, so that a seed (or
//! an input of the fuzzer) is a run.

use std::time::Duration;

/// A source of choices.
pub struct Choices {
    source: Source,
}

enum Source {
    /// SplitMix64.
    Seed(u64),
    /// Two bytes per choice. Behind the end nothing goes wrong any more.
    Bytes { bytes: Vec<u8>, next: usize },
}

impl Choices {
    /// All choices follow from `seed`.
    pub fn from_seed(seed: u64) -> Self {
        Self { source: Source::Seed(seed ^ 0x9e37_79b9_7f4a_7c15) }
    }

    /// Choices are read from `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self { source: Source::Bytes { bytes: bytes.to_vec(), next: 0 } }
    }

    /// Whether a fuzzer chooses: it can lose every frame for minutes.
    pub fn is_fuzzer(&self) -> bool {
        matches!(self.source, Source::Bytes { .. })
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "there is something to choose from");
        match &mut self.source {
            Source::Seed(state) => split_mix(state) % n,
            Source::Bytes { bytes, next } => {
                let byte = |i: usize| bytes.get(i).copied().map_or(0, u64::from);
                let value = byte(*next) << 8 | byte(*next + 1);
                *next = (*next + 2).min(bytes.len());
                if n <= 0x1_0000 { value % n } else { value * (n >> 16) % n }
            }
        }
    }

    /// A number from `low` to `high`, both included; `high` when the fuzzer's bytes are used up.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        high - self.below(high - low + 1)
    }

    /// Whether something happens that happens `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u16) -> bool {
        per_mille > 0 && self.below(1000) >= 1000 - u64::from(per_mille.min(1000))
    }

    /// One of `items`.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A time up to `max`.
    pub fn duration(&mut self, max: Duration) -> Duration {
        Duration::from_nanos(self.below(max.as_nanos() as u64 + 1))
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*state)
}

/// The finalizer of SplitMix64.
pub(crate) fn mix(state: u64) -> u64 {
    let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
