//! Changes of a tunnel while it runs, and what it looks like.

use std::time::Duration;

use boringtun::noise::Tunn;
use boringtun::x25519;
use ipnet::IpNet;
use usernet_core::Instant;

use super::counters::Counter;
use super::gate::Gate;
use super::peer::Peer;
use super::{PeerId, Tunnel, secret};
use crate::config::{self, Config, Endpoint};
use crate::key::{PrivateKey, PublicKey};
use crate::uapi::{Changes, Device, DevicePeer, PeerChange};

/// A peer's number takes 24 bits.
const PEERS_MAX: usize = 1 << 24;

impl Tunnel {
    /// Makes it so. What follows from it (a handshake, say) is due at [`next_deadline`], which may be earlier than before.
    /// The port is the caller's matter.
    ///
    /// [`next_deadline`]: usernet_core::Tunnel::next_deadline
    pub fn apply(&mut self, changes: &Changes) {
        if let Some(key) = &changes.private_key
            && *key != self.private_key
        {
            self.set_private_key(key.clone());
        }
        if changes.replace_peers {
            for slot in 0..self.peers.len() {
                self.remove(PeerId(slot as u32));
            }
        }
        for change in &changes.peers {
            self.apply_to_peer(change);
        }
    }

    /// What it looks like at `now`, which is `wall_clock` since 1970. The port is the caller's to know.
    pub fn device(&self, now: Instant, wall_clock: Duration) -> Device {
        let last_handshake = |peer: &Peer| {
            peer.handshake.map(|handshake| wall_clock.saturating_sub(now.since(handshake)))
        };
        let mut peers: Vec<_> = self.peers.iter().flatten().collect();
        peers.sort_by_key(|peer| peer.order);
        let peers = peers.into_iter().map(|peer| DevicePeer {
            public_key: peer.key,
            preshared_key: peer.preshared.clone(),
            endpoint: peer.endpoint,
            last_handshake: last_handshake(peer),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
            persistent_keepalive: (!peer.keepalive.is_zero()).then_some(peer.keepalive),
            allowed_ips: peer.allowed.clone(),
        });
        Device { private_key: self.private_key.clone(), listen_port: 0, peers: peers.collect() }
    }

    fn set_private_key(&mut self, key: Option<PrivateKey>) {
        let seed = self.chance();
        self.gate = Gate::new(secret(key.as_ref()), seed);
        self.private_key = key;
        if let Some(&id) = self.by_key.get(&self.gate.public())
            && self.private_key.is_some()
        {
            self.remove(id);
        }
        for slot in 0..self.peers.len() {
            if self.peers[slot].is_some() {
                self.restart(PeerId(slot as u32));
            }
        }
    }

    fn remove(&mut self, id: PeerId) {
        let Some(peer) = self.peers[id.0 as usize].take() else { return };
        self.by_key.remove(&peer.key);
        for prefix in peer.allowed {
            self.routes.remove(prefix);
        }
        self.counters.add(Counter::DropNoSession, peer.queued_packets as u64);
    }

    /// New keys: sessions end.
    fn restart(&mut self, id: PeerId) {
        let peer = self.peer(id);
        let tunn = self.tunn(id, peer.key, peer.preshared.as_ref().map(|key| *key.as_bytes()));
        let lost = self.peer_mut(id).restart(tunn);
        self.counters.add(Counter::DropNoSession, lost as u64);
        self.arm(id);
    }

    fn tunn(&self, id: PeerId, key: PublicKey, preshared: Option<[u8; 32]>) -> Tunn {
        let key = x25519::PublicKey::from(*key.as_bytes());
        Tunn::new(self.gate.private(), key, preshared, None, id.0, Some(self.gate.unlimited()))
    }

    fn add(&mut self, key: PublicKey) -> Option<PeerId> {
        let is_full = self.by_key.len() == self.peers.len();
        let free = (!is_full).then(|| self.peers.iter().position(Option::is_none)).flatten();
        let slot = free.unwrap_or(self.peers.len());
        if slot == PEERS_MAX {
            return None;
        }
        let id = PeerId(slot as u32);
        self.peers_made += 1;
        let peer = Peer::new(key, self.peers_made, self.tunn(id, key, None));
        if slot == self.peers.len() {
            self.peers.push(None);
        }
        self.peers[slot] = Some(peer);
        self.by_key.insert(key, id);
        Some(id)
    }

    fn apply_to_peer(&mut self, change: &PeerChange) {
        let known = self.by_key.get(&change.public_key).copied();
        if change.remove {
            return known.into_iter().for_each(|id| self.remove(id));
        }
        let is_own = self.private_key.as_ref().is_some_and(|key| key.public() == change.public_key);
        let id = match known {
            Some(id) => id,
            // Nobody is a peer of itself.
            None if change.update_only || is_own => return,
            None => match self.add(change.public_key) {
                Some(id) => id,
                None => return,
            },
        };
        if let Some(preshared) = &change.preshared_key
            && *preshared != self.peer(id).preshared
        {
            self.peer_mut(id).preshared = preshared.clone();
            self.restart(id);
        }
        let peer = self.peer_mut(id);
        peer.endpoint = change.endpoint.or(peer.endpoint);
        if let Some(keepalive) = change.persistent_keepalive {
            peer.keepalive = keepalive.unwrap_or_default();
        }
        self.allow(id, change);
        self.arm(id);
    }

    fn allow(&mut self, id: PeerId, change: &PeerChange) {
        if change.replace_allowed_ips {
            for prefix in std::mem::take(&mut self.peer_mut(id).allowed) {
                self.routes.remove(prefix);
            }
        }
        for &(prefix, is_added) in &change.allowed_ips {
            let prefix = prefix.trunc();
            match is_added {
                true => self.give(id, prefix),
                false => self.take(id, prefix),
            }
        }
    }

    /// A prefix becomes this peer's, whosever it was.
    fn give(&mut self, id: PeerId, prefix: IpNet) {
        match self.routes.insert(prefix, id) {
            Some(before) if before == id => return,
            Some(before) => self.peer_mut(before).allowed.retain(|&other| other != prefix),
            None => {}
        }
        self.peer_mut(id).allowed.push(prefix);
    }

    fn take(&mut self, id: PeerId, prefix: IpNet) {
        let allowed = &mut self.peer_mut(id).allowed;
        let before = allowed.len();
        allowed.retain(|&other| other != prefix);
        if allowed.len() != before {
            self.routes.remove(prefix);
        }
    }
}

impl From<&Config> for Changes {
    fn from(config: &Config) -> Self {
        Self {
            private_key: Some(Some(config.interface.private_key.clone())),
            listen_port: config.interface.listen_port,
            replace_peers: true,
            peers: config.peers.iter().map(PeerChange::from).collect(),
        }
    }
}

impl From<&config::Peer> for PeerChange {
    /// An endpoint that is a name is none: it is to be resolved first.
    fn from(peer: &config::Peer) -> Self {
        Self {
            preshared_key: Some(peer.preshared_key.clone()),
            endpoint: match &peer.endpoint {
                Some(Endpoint::Address(address)) => Some(*address),
                Some(Endpoint::Name(..)) | None => None,
            },
            persistent_keepalive: Some(peer.persistent_keepalive),
            replace_allowed_ips: true,
            allowed_ips: peer.allowed_ips.iter().map(|&prefix| (prefix, true)).collect(),
            ..Self::new(peer.public_key)
        }
    }
}
