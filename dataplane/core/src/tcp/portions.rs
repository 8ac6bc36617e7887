//! What of the kept leases and bytes is each flow's own, and what is for whoever comes first.
//!
//! What a host does not take is kept, and stays kept as long as the host likes. If all of it were for whoever comes first, as
//! many flows whose hosts read nothing any more as it takes to fill it would stop all the others.

use crate::config::Config;

/// What a flow may keep however scarce buffers are, where there are not too many flows: a super-frame, or as much in smaller ones.
pub(super) const OWN_MAX: Portion = Portion { leases: 45, bytes: 64 << 10 };

/// Leases, and payload bytes in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Portion {
    pub(super) leases: u32,
    pub(super) bytes: u32,
}

impl Portion {
    /// What is left of it without another one.
    pub(super) fn without(self, other: Self) -> Self {
        let leases = self.leases.saturating_sub(other.leases);
        Self { leases, bytes: self.bytes.saturating_sub(other.bytes) }
    }

    /// Whether it is all of another one, in leases or in bytes.
    pub(super) fn fills(self, other: Self) -> bool {
        self.leases >= other.leases || self.bytes >= other.bytes
    }
}

/// How the limits are divided among so many flows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portions {
    /// What all flows together may keep.
    pub(super) all: Portion,
    /// What each flow may keep whatever the others do: one of so many parts of half of the limits, and a frame at least. So
    /// hundreds of hosts that take nothing any more leave something to the others.
    pub(super) own: Portion,
    /// What all flows have for their own, together.
    pub(super) owned: Portion,
    mtu: u32,
}

impl Portions {
    /// Of a shard without flows.
    pub(super) fn new(config: &Config) -> Self {
        let limits = &config.limits;
        let all = Portion { leases: limits.leases_kept, bytes: limits.kept_bytes };
        let none = Portion { leases: 0, bytes: 0 };
        let mut portions = Self { all, own: none, owned: none, mtu: config.mtu.into() };
        portions.divide(0);
        portions
    }

    /// There are so many flows now.
    pub(super) fn divide(&mut self, flows: u32) {
        let half = self.half();
        let parts = flows.max(1);
        self.own = Portion {
            leases: (half.leases / parts).clamp(1, OWN_MAX.leases),
            bytes: (half.bytes / parts).min(OWN_MAX.bytes).max(self.mtu),
        };
        self.owned = Portion {
            leases: self.own.leases.saturating_mul(flows).min(half.leases),
            bytes: self.own.bytes.saturating_mul(flows).min(half.bytes),
        };
    }

    /// Half of what all flows together may keep.
    pub(super) fn half(&self) -> Portion {
        Portion { leases: self.all.leases / 2, bytes: self.all.bytes / 2 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_limits_is_the_flows_own_and_each_has_a_frame_at_least() {
        let mut config = Config::example();
        (config.limits.leases_kept, config.limits.kept_bytes) = (5_120, 40 << 20);
        let mut portions = Portions::new(&config);
        for (flows, own, owned) in [
            (1, (45, 64 << 10), (45, 64 << 10)),
            (200, (12, 64 << 10), (2_400, 200 * (64 << 10))),
            (1_000, (2, 20_971), (2_000, 20_971_000)),
            (60_000, (1, u32::from(config.mtu)), (2_560, 20 << 20)),
        ] {
            portions.divide(flows);
            assert_eq!((portions.own.leases, portions.own.bytes), own, "{flows} flows");
            assert_eq!((portions.owned.leases, portions.owned.bytes), owned, "{flows} flows");
        }
    }
}
