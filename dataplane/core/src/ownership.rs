//! Which shard a flow belongs to, where several share a guest.
//!
//! Every shard computes it from the guest's addresses alone, so there is no directory to ask, to keep or to lock: a TCP
//! flow belongs to a shard by both of its ends, everything of a UDP port or an echo identifier by the guest's end, because
//! its mapping is the same whatever it leads to (RFC 4787, REQ-1). The hash is keyed, so that nobody outside can
//! choose a shard. What that says is a flow's home; where it is lent, its home knows to whom (`tcp/lent.rs`).

use core::hash::BuildHasher;
use core::net::{IpAddr, SocketAddr};

use crate::config::{Config, ShardId, Share};
use crate::hash::{Hasher, hasher};
use crate::op::ForwardId;
use crate::rules::{Protocol, Rules};

/// Sets this hash apart from those of the tables: one that shares bits with the owner would leave buckets empty.
const SALT: u64 = 0x6f77_6e65_7273;

/// Computes the shard of a flow. See the [module](self).
#[derive(Clone, Debug)]
pub struct Ownership {
    own: ShardId,
    shards: u8,
    homes: u8,
    hasher: Hasher,
}

impl Ownership {
    /// As the configuration has it: that of any shard of a guest will do.
    pub fn new(config: &Config) -> Self {
        let share = config.share;
        assert!(share.own.0 < share.shards, "a shard is one of those that there are");
        assert!((1..=share.shards).contains(&share.homes), "flows have a home");
        let Share { own, shards, homes } = share;
        Self { own, shards, homes, hasher: hasher(config.seed ^ SALT) }
    }

    /// The shard for a forward's listener of either direction: a UDP socket is where the mappings of the guest's end are,
    /// others are shared out.
    pub fn of_listener(
        &self,
        config: &Config,
        rules: &Rules,
        forward: ForwardId,
        local: SocketAddr,
    ) -> ShardId {
        if !self.is_shared() {
            return self.own;
        }
        let inward = rules.forward(forward).filter(|forward| forward.protocol == Protocol::Udp);
        let guest = inward.and_then(|forward| {
            let port = forward.guest_port_for(local.port())?;
            let ip = forward.guest.or(config.guest_like(local.ip().to_canonical()))?;
            Some(SocketAddr::new(ip, port))
        });
        self.of_port(guest.unwrap_or(local))
    }

    /// Whether there is any other shard.
    pub(crate) const fn is_shared(&self) -> bool {
        self.shards > 1
    }

    /// Whether there are shards that have what is lent to them, and nothing else.
    pub(crate) const fn lends(&self) -> bool {
        self.shards > self.homes
    }

    /// The others.
    pub(crate) fn others(&self) -> impl Iterator<Item = ShardId> + use<> {
        let own = self.own;
        (0..self.shards).map(ShardId).filter(move |&shard| shard != own)
    }

    /// `shard`, if it is another one.
    pub(crate) fn elsewhere(&self, shard: ShardId) -> Option<ShardId> {
        (shard != self.own).then_some(shard)
    }

    /// Whether a TCP flow is this shard's.
    pub(crate) fn has_connection(&self, guest: SocketAddr, remote: SocketAddr) -> bool {
        !self.is_shared() || self.of_connection(guest, remote) == self.own
    }

    /// The shard of a TCP flow; the remote end as the guest sees it.
    pub(crate) fn of_connection(&self, guest: SocketAddr, remote: SocketAddr) -> ShardId {
        if self.homes == 1 {
            return ShardId::FIRST;
        }
        let ends = (guest.ip(), guest.port(), remote.ip(), remote.port());
        self.scaled(self.hasher.hash_one(ends))
    }

    /// The shard of everything that a UDP port of the guest speaks.
    pub(crate) fn of_port(&self, guest: SocketAddr) -> ShardId {
        if self.homes == 1 {
            return ShardId::FIRST;
        }
        self.scaled(self.hasher.hash_one((guest.ip(), guest.port())))
    }

    /// The shard of an echo identifier of the guest.
    pub(crate) fn of_echo(&self, guest: IpAddr, identifier: u16) -> ShardId {
        self.of_port(SocketAddr::new(guest, identifier))
    }

    fn scaled(&self, hash: u64) -> ShardId {
        ShardId((((hash >> 32) * u64::from(self.homes)) >> 32) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Access, Forward, HostLoopback};
    use alloc::vec;

    fn among(own: u8, shards: u8) -> (Config, Ownership) {
        let mut config = Config::example();
        config.share = Share::among(shards, ShardId(own));
        let ownership = Ownership::new(&config);
        (config, ownership)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn all_shards_agree_and_each_gets_its_part() {
        for shards in [2, 3, 8] {
            let mut counts = [0; 8];
            for port in 1_000..5_000 {
                let (guest, remote) =
                    (SocketAddr::new([10, 0, 2, 100].into(), port), at("192.0.2.1:443"));
                let owners =
                    (0..shards).map(|own| among(own, shards).1.of_connection(guest, remote));
                let owner = among(0, shards).1.of_connection(guest, remote);
                assert!(owners.into_iter().all(|o| o == owner), "{guest}");
                counts[usize::from(owner.0)] += 1;
                let mine =
                    (0..shards).filter(|&own| among(own, shards).1.has_connection(guest, remote));
                assert_eq!(mine.collect::<alloc::vec::Vec<_>>(), [owner.0]);
            }
            let fair = 4_000 / u32::from(shards);
            for &count in &counts[..usize::from(shards)] {
                assert!((fair * 8 / 10..fair * 12 / 10).contains(&count), "{counts:?}");
            }
        }
    }

    #[test]
    fn one_shard_owns_everything() {
        let (_, only) = among(0, 1);
        assert!(!only.is_shared());
        assert_eq!(only.others().count(), 0);
        assert!(only.has_connection(at("10.0.2.100:1"), at("192.0.2.1:2")));
        assert_eq!(only.of_port(at("10.0.2.100:1")), ShardId(0));
    }

    #[test]
    fn a_udp_forward_listens_where_the_guests_answers_go() {
        let (config, ownership) = among(0, 4);
        let forward = |id, protocol| Forward {
            id: ForwardId(id),
            protocol,
            host_ports: (8_000, 8_999),
            guest: None,
            guest_port: 5_000,
        };
        let access = Access::new(&config, HostLoopback::None);
        let forwards = vec![forward(1, Protocol::Udp), forward(2, Protocol::Tcp)];
        let rules = Rules::new(&config, &access, forwards, vec![]);
        let mut tcp = alloc::collections::BTreeSet::new();
        for n in 0..1_000 {
            let local = SocketAddr::new([0, 0, 0, 0].into(), 8_000 + n);
            let guest = SocketAddr::new([10, 0, 2, 100].into(), 5_000 + n);
            let shard = ownership.of_listener(&config, &rules, ForwardId(1), local);
            assert_eq!(shard, ownership.of_port(guest), "{local}");
            tcp.insert(ownership.of_listener(&config, &rules, ForwardId(2), local).0);
        }
        assert_eq!(tcp.len(), 4, "TCP listeners are shared out");
    }
}
