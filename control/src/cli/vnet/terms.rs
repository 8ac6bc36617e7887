//! What a member has to know about a network, and the file that says so to WireGuard.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use usernet_wireguard::{PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::keys;
use super::network::{Network, listed};

/// After this many seconds of silence a member speaks, so that whatever translates addresses on the way remembers it,
/// and so that the gateway finds it again when it was away.
const KEEPALIVE_SECONDS: u16 = 25;

/// What is the same for all members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Terms {
    /// The network's name, and the domain of its members' names.
    pub(super) network: String,
    /// Its ranges, each with the gateway's address.
    pub(super) gateways: Vec<IpNet>,
    /// Who the gateway is.
    #[serde(with = "keys::public")]
    pub(super) gateway_key: PublicKey,
    /// Where it is: `HOST:PORT`.
    pub(super) endpoint: String,
    /// Whether it leads out of the network.
    pub(super) internet: bool,
    /// Bytes of IP per packet.
    pub(super) mtu: u16,
}

/// Where a member's packets go by the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Into the network.
    Network,
    /// Anywhere.
    Everything,
}

impl Terms {
    /// Those of a network of this host's.
    pub(super) fn of(network: &Network, endpoint: String) -> Self {
        Self {
            network: network.name.clone(),
            gateways: network.gateways(),
            gateway_key: network.private_key.public(),
            endpoint,
            internet: network.internet,
            mtu: network.mtu,
        }
    }

    /// The member's addresses with the prefix length of the network that they are in.
    pub(super) fn with_prefixes(&self, addresses: &[IpAddr]) -> Vec<IpNet> {
        let prefixed = |&address: &IpAddr| {
            let network = self.gateways.iter().find(|net| net.contains(&address))?;
            IpNet::new(address, network.prefix_len()).ok()
        };
        addresses.iter().filter_map(prefixed).collect()
    }

    /// How far this network wants to reach by itself.
    pub(super) fn reach(&self) -> Reach {
        if self.internet { Reach::Everything } else { Reach::Network }
    }

    /// The file of wg-quick(8) for a member.
    pub(super) fn conf(
        &self,
        private_key: &PrivateKey,
        addresses: &[IpNet],
        reach: Reach,
    ) -> Zeroizing<String> {
        let allowed = match reach {
            Reach::Network => listed(&addresses.iter().map(IpNet::trunc).collect::<Vec<_>>()),
            Reach::Everything => listed(&self.everything()),
        };
        let mut text = Zeroizing::new(String::with_capacity(1_024));
        let written = write!(
            text,
            "# {network}\n[Interface]\nPrivateKey = {private}\nAddress = {addresses}\nDNS = {dns}, {network}\n\
             MTU = {mtu}\n\n[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}\nEndpoint = {endpoint}\n\
             PersistentKeepalive = {KEEPALIVE_SECONDS}\n",
            network = self.network,
            private = *private_key.to_base64(),
            addresses = listed(addresses),
            // One is enough, and resolvers ask three at most (resolv.conf(5)), of all networks.
            dns = self.gateways.first().map(|net| net.addr().to_string()).unwrap_or_default(),
            mtu = self.mtu,
            public = self.gateway_key,
            endpoint = self.endpoint,
        );
        written.expect("writing to a string works");
        text
    }

    /// All addresses of the families that the network has.
    fn everything(&self) -> Vec<IpNet> {
        let all = |net: &IpNet| match net {
            IpNet::V4(_) => IpNet::V4("0.0.0.0/0".parse().expect("a network")),
            IpNet::V6(_) => IpNet::V6("::/0".parse().expect("a network")),
        };
        self.gateways.iter().map(all).collect()
    }
}

/// The file of wg-quick(8) for the gateway. The members are in its own network, so it needs no further routes.
pub(super) fn gateway_conf(network: &Network) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(256 + 128 * network.members.len()));
    let mut put = |line: std::fmt::Arguments<'_>| {
        text.write_fmt(line).expect("writing to a string works");
    };
    put(format_args!(
        "# the gateway of {}\n[Interface]\nPrivateKey = {}\nAddress = {}\nListenPort = {}\nMTU = {}\nTable = off\n",
        network.name,
        *network.private_key.to_base64(),
        listed(&network.gateways()),
        network.listen_port,
        network.mtu,
    ));
    for member in &network.members {
        let allowed =
            listed(&member.addresses.iter().copied().map(IpNet::from).collect::<Vec<_>>());
        put(format_args!(
            "\n# {}\n[Peer]\nPublicKey = {}\nAllowedIPs = {allowed}\n",
            member.name, member.public_key
        ));
        if let Some(endpoint) = member.endpoint {
            put(format_args!("Endpoint = {endpoint}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::network::Member;
    use super::super::network::tests::{member, network};
    use super::*;

    fn terms(internet: bool) -> Terms {
        Terms::of(&Network { internet, ..network() }, "192.0.2.1:51820".into())
    }

    #[test]
    fn a_members_file_is_one_of_wg_quick() {
        let (terms, key) = (terms(false), PrivateKey::from_bytes([9; 32]));
        let addresses = terms.with_prefixes(&["10.0.0.2".parse().unwrap()]);
        let text = terms.conf(&key, &addresses, terms.reach());
        let expected = format!(
            "# my-network\n[Interface]\nPrivateKey = {}\nAddress = 10.0.0.2/24\n\
             DNS = 10.0.0.1, my-network\nMTU = 1420\n\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 10.0.0.0/24\nEndpoint = 192.0.2.1:51820\nPersistentKeepalive = 25\n",
            *key.to_base64(),
            network().private_key.public()
        );
        assert_eq!(*text, expected);
    }

    #[test]
    fn with_internet_everything_goes_to_the_gateway() {
        let terms = terms(true);
        let addresses = terms.with_prefixes(&["10.0.0.2".parse().unwrap()]);
        let text = terms.conf(&PrivateKey::from_bytes([9; 32]), &addresses, terms.reach());
        assert!(text.contains("AllowedIPs = 0.0.0.0/0\n"), "{}", *text);
    }

    #[test]
    fn the_netmask_says_what_is_routed() {
        let addresses = ["10.0.0.2/28".parse().unwrap()];
        let text = terms(false).conf(&PrivateKey::from_bytes([9; 32]), &addresses, Reach::Network);
        assert!(text.contains("Address = 10.0.0.2/28\n"), "{}", *text);
        assert!(text.contains("AllowedIPs = 10.0.0.0/28\n"), "{}", *text);
    }

    #[test]
    fn the_gateway_lets_each_member_have_its_own_addresses_only() {
        let mut network = network();
        let endpoint = Some("192.0.2.7:4000".parse().unwrap());
        network.admit(Member { endpoint, ..member("db", "10.0.0.9", 1) }).unwrap();
        let text = gateway_conf(&network);
        assert!(text.contains("AllowedIPs = 10.0.0.9/32\nEndpoint = 192.0.2.7:4000\n"));
        assert!(text.contains("Address = 10.0.0.1/24\nListenPort = 51820\n"), "{}", *text);
    }
}
