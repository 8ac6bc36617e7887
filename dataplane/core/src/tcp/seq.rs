//! Sequence numbers: 32 bits that wrap, compared by their distance (RFC 9293, section 3.4).

use core::ops::{Add, Sub};

/// A sequence number. Not `Ord`: the order is only defined for numbers less than 2 GiB apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seq(pub(crate) u32);

impl Seq {
    /// Whether this number comes before `other`.
    pub(crate) const fn is_before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether this number comes after `other`.
    pub(crate) const fn is_after(self, other: Self) -> bool {
        other.is_before(self)
    }

    /// Bytes from `earlier` up to this number.
    pub(crate) const fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The later of two.
    pub(crate) const fn latest(self, other: Self) -> Self {
        if self.is_before(other) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;

    fn sub(self, bytes: u32) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let before = Seq(u32::MAX - 1);
        let after = before + 5;
        assert!(before.is_before(after) && after.is_after(before));
        assert_eq!(after.since(before), 5);
        assert_eq!(after.latest(before), after);
        assert_eq!(after - 5, before);
    }
}
