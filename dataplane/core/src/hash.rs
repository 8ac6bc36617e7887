//! The hash of the tables: keyed by the configured seed, so that runs repeat and a stranger cannot aim at a bucket.

/// Builds hashers for [`hashbrown`] tables.
pub(crate) type Hasher = foldhash::quality::FixedState;

/// A hasher for one table; `seed` is [`Config::seed`](crate::Config).
pub(crate) fn hasher(seed: u64) -> Hasher {
    Hasher::with_seed(seed)
}
