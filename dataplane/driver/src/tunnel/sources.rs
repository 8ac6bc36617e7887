//! From which of the host's addresses each peer is answered: that which it spoke to. A host with several would answer from
//! the one that its routes prefer, which a peer behind address translation would not get.

use std::net::{IpAddr, SocketAddr};

/// Peers that are remembered. One of a further peer takes a place of another one's, which is then answered from the
/// address that the kernel chooses.
const PLACES: usize = 64;

/// See the [module](self).
pub(super) struct Sources([Option<(SocketAddr, IpAddr)>; PLACES]);

impl Sources {
    pub(super) const fn new() -> Self {
        Self([None; PLACES])
    }

    /// This peer has spoken to this address of ours.
    pub(super) fn learn(&mut self, peer: SocketAddr, ours: IpAddr) {
        self.0[place(peer)] = Some((peer, ours));
    }

    /// What to answer it from; none: from whatever the kernel chooses.
    pub(super) fn of(&self, peer: SocketAddr) -> Option<IpAddr> {
        self.0[place(peer)].filter(|(known, _)| *known == peer).map(|(_, ours)| ours)
    }

    pub(super) fn forget(&mut self, peer: SocketAddr) {
        self.0[place(peer)] = None;
    }
}

/// By what differs among peers: the ends of their addresses, and their ports.
fn place(peer: SocketAddr) -> usize {
    let last = match peer.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    (usize::from(last) ^ usize::from(peer.port())) % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_answered_from_where_it_spoke_to_until_that_is_forgotten() {
        let mut sources = Sources::new();
        let (peer, other) = ("192.0.2.9:51820", "192.0.2.9:51884");
        let [peer, other]: [SocketAddr; 2] = [peer, other].map(|text| text.parse().unwrap());
        let ours: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        assert_eq!(sources.of(peer), None);
        sources.learn(peer, ours[0]);
        assert_eq!(sources.of(peer), Some(ours[0]));
        assert_eq!(place(peer), place(other), "these two share a place");
        assert_eq!(sources.of(other), None);
        sources.learn(other, ours[1]);
        assert_eq!((sources.of(peer), sources.of(other)), (None, Some(ours[1])));
        sources.forget(other);
        assert_eq!(sources.of(other), None);
    }
}
