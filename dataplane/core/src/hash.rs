//! The hash of the tables: keyed by the configured seed, so that runs repeat and a stranger cannot aim at a bucket.

use core::hash;
use core::net::SocketAddr;

/// Builds hashers for [`Index`](crate::index::Index).
pub(crate) type Hasher = foldhash::quality::FixedState;

/// A hasher for one table; `seed` is [`Config::seed`](crate::Config).
pub(crate) fn hasher(seed: u64) -> Hasher {
    Hasher::with_seed(seed)
}

/// Hashes one end of a flow in one piece. What is derived takes family, length, address and port, and of IPv6 what ends of
/// flows do not have, one by one.
#[inline]
pub(crate) fn hash_end(end: SocketAddr, state: &mut impl hash::Hasher) {
    match end {
        SocketAddr::V4(v4) => {
            state.write_u64(u64::from(v4.ip().to_bits()) << 16 | u64::from(v4.port()));
        }
        SocketAddr::V6(v6) => {
            state.write_u128(v6.ip().to_bits());
            state.write_u16(v6.port());
        }
    }
}
