//! `AllowedIPs`: which peer gets a packet, and may have sent one.

use std::net::IpAddr;

use ip_network::IpNetwork;
use ip_network_table::IpNetworkTable;
use ipnet::IpNet;

use super::PeerId;

/// Prefixes, and whose they are. A lookup allocates nothing.
pub(super) struct Routes {
    table: IpNetworkTable<PeerId>,
    /// The address asked for last, and the answer: packets come in runs.
    last: Option<(IpAddr, Option<PeerId>)>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self { table: IpNetworkTable::new(), last: None }
    }

    /// Who had it before.
    pub(super) fn insert(&mut self, prefix: IpNet, peer: PeerId) -> Option<PeerId> {
        self.last = None;
        self.table.insert(network(prefix), peer)
    }

    pub(super) fn remove(&mut self, prefix: IpNet) {
        self.last = None;
        self.table.remove(network(prefix));
    }

    /// Whose longest prefix covers `address`.
    pub(super) fn peer_of(&mut self, address: IpAddr) -> Option<PeerId> {
        if let Some((last, peer)) = self.last
            && last == address
        {
            return peer;
        }
        let peer = self.table.longest_match(address).map(|(_, &peer)| peer);
        self.last = Some((address, peer));
        peer
    }
}

/// The same prefix in the table's own words.
fn network(prefix: IpNet) -> IpNetwork {
    IpNetwork::new(prefix.network(), prefix.prefix_len()).expect("host bits are zero")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides_and_a_removed_one_does_not() {
        let mut routes = Routes::new();
        let ids = [PeerId(0), PeerId(1), PeerId(2)];
        for (prefix, id) in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32"].into_iter().zip(ids) {
            assert_eq!(routes.insert(prefix.parse().unwrap(), id), None);
        }
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(routes.peer_of(ip("192.0.2.1")), Some(ids[0]));
        assert_eq!(routes.peer_of(ip("10.1.2.4")), Some(ids[1]));
        assert_eq!(routes.peer_of(ip("10.1.2.3")), Some(ids[2]));
        assert_eq!(routes.peer_of(ip("fd00::1")), None);
        routes.remove("10.1.2.3/32".parse().unwrap());
        assert_eq!(routes.peer_of(ip("10.1.2.3")), Some(ids[1]));
        assert_eq!(routes.insert("10.9.9.9/8".parse().unwrap(), ids[2]), Some(ids[1]));
    }
}
