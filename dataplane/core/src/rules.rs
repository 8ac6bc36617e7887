//! The translation table: where a guest's packet really goes, and which host ports lead to the guest.
//!
//! A [`Rules`] value is an immutable snapshot. The control side makes a new one and the driver installs it whole
//! ([`Shard::install`](crate::Shard::install)); flows that exist keep the translation they were made with.
//!
//! # Precedence
//!
//! The first [`Translation`] that matches decides. [`Rules::new`] lays them out in this order:
//!
//! 1. the DNS addresses, port 53: the host's resolvers; any other port: refused;
//! 2. the gateway addresses: the host's loopback, as far as [`HostLoopback`] says; else refused;
//! 3. the rest of the guest's own network: unreachable, nobody else lives there;
//! 4. loopback, unspecified, multicast, broadcast and link-local destinations: dropped;
//! 5. anything else: itself.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::op::ForwardId;

/// The transport protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Which of the host's loopback services the gateway address reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostLoopback {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// These ports (first, last), TCP and UDP.
    Ports(Vec<(u16, u16)>),
}

/// A network: address and prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Any address in it.
    pub address: IpAddr,
    /// Length in bits, at most 32 or 128.
    pub len: u8,
}

impl Prefix {
    /// A single address.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, len: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether `address` is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len.min(32))).unwrap_or(0);
                (net.to_bits() ^ ip.to_bits()) & mask == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len.min(128))).unwrap_or(0);
                (net.to_bits() ^ ip.to_bits()) & mask == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Where a packet of the guest really goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this address.
    Address(SocketAddr),
    /// To one of the host's resolvers.
    Resolver,
    /// Nowhere, and the guest is told so: port unreachable, or RST.
    Refuse,
    /// Nowhere, and the guest is told so: host unreachable.
    Unreachable,
    /// Nowhere, silently.
    Drop,
}

/// What a [`Translation`] does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Replaces the address, keeps the port.
    Map(IpAddr),
    /// See [`Target::Resolver`].
    Resolver,
    /// See [`Target::Refuse`].
    Refuse,
    /// See [`Target::Unreachable`].
    Unreachable,
    /// See [`Target::Drop`].
    Drop,
}

/// One rule for what comes from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Destination network.
    pub to: Prefix,
    /// Destination ports, first and last.
    pub ports: (u16, u16),
    /// What happens.
    pub action: Action,
}

/// A range of host ports that lead to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name; never used twice.
    pub id: ForwardId,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// First and last host port.
    pub host_ports: (u16, u16),
    /// The guest's address; none: its configured one, in the client's family.
    pub guest: Option<IpAddr>,
    /// The guest's port for the first host port.
    pub guest_port: u16,
}

/// A snapshot of everything that may change while the shard runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Precedence is position.
    pub translations: Vec<Translation>,
    /// Host ports that lead to the guest.
    pub forwards: Vec<Forward>,
    /// The host's resolvers, best first.
    pub resolvers: Vec<SocketAddr>,
}

const ANY_PORT: (u16, u16) = (0, u16::MAX);

impl Rules {
    /// The snapshot for a guest network, with the precedence of the [module](self).
    pub fn new(
        config: &Config,
        host_loopback: &HostLoopback,
        forwards: Vec<Forward>,
        resolvers: Vec<SocketAddr>,
    ) -> Arc<Self> {
        let mut translations = Vec::new();
        let mut add = |to, ports, action| translations.push(Translation { to, ports, action });
        let nets = [
            config.net4.map(|n| {
                let own = Prefix { address: n.gateway.into(), len: n.prefix };
                let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
                (n.dns.map(IpAddr::V4), IpAddr::V4(n.gateway), own, loopback)
            }),
            config.net6.map(|n| {
                let own = Prefix { address: n.gateway.into(), len: n.prefix };
                let loopback = IpAddr::V6(Ipv6Addr::LOCALHOST);
                (n.dns.map(IpAddr::V6), IpAddr::V6(n.gateway), own, loopback)
            }),
        ];
        for (dns, gateway, own, loopback) in nets.into_iter().flatten() {
            if let Some(dns) = dns {
                add(Prefix::host(dns), (53, 53), Action::Resolver);
                add(Prefix::host(dns), ANY_PORT, Action::Refuse);
            }
            match host_loopback {
                HostLoopback::None => {}
                HostLoopback::All => add(Prefix::host(gateway), ANY_PORT, Action::Map(loopback)),
                HostLoopback::Ports(ports) => {
                    for &range in ports {
                        add(Prefix::host(gateway), range, Action::Map(loopback));
                    }
                }
            }
            add(Prefix::host(gateway), ANY_PORT, Action::Refuse);
            add(own, ANY_PORT, Action::Unreachable);
        }
        let v4 = |a, b, c, d, len| Prefix { address: Ipv4Addr::new(a, b, c, d).into(), len };
        let v6 = |first, last, len| Prefix {
            address: Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last).into(),
            len,
        };
        for never in [
            v4(0, 0, 0, 0, 8),
            v4(127, 0, 0, 0, 8),
            v4(224, 0, 0, 0, 4),
            v4(255, 255, 255, 255, 32),
            v6(0, 0, 128),
            v6(0, 1, 128),
            v6(0xff00, 0, 8),
            v6(0xfe80, 0, 10),
            Prefix { address: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), len: 96 },
        ] {
            add(never, ANY_PORT, Action::Drop);
        }
        Arc::new(Self { translations, forwards, resolvers })
    }

    /// Where a packet to `to` really goes.
    pub fn target(&self, to: SocketAddr) -> Target {
        let port = to.port();
        let matches =
            |t: &&Translation| t.ports.0 <= port && port <= t.ports.1 && t.to.contains(to.ip());
        match self.translations.iter().find(matches).map(|t| t.action) {
            None => Target::Address(to),
            Some(Action::Map(ip)) => Target::Address(SocketAddr::new(ip, port)),
            Some(Action::Resolver) => Target::Resolver,
            Some(Action::Refuse) => Target::Refuse,
            Some(Action::Unreachable) => Target::Unreachable,
            Some(Action::Drop) => Target::Drop,
        }
    }

    /// The forward of that name.
    pub fn forward(&self, id: ForwardId) -> Option<&Forward> {
        self.forwards.iter().find(|f| f.id == id)
    }
}

impl Forward {
    /// The guest's port for a host port of this forward.
    pub fn guest_port_for(&self, host_port: u16) -> Option<u16> {
        if host_port < self.host_ports.0 || host_port > self.host_ports.1 {
            return None;
        }
        self.guest_port.checked_add(host_port - self.host_ports.0)
    }
}

/// How a host-side peer is shown to the guest: loopback clients and services appear as the gateway, all
/// others as themselves. None: no gateway of that family.
pub fn as_seen_by_guest(config: &Config, peer: IpAddr) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    match peer {
        IpAddr::V4(ip) if ip.is_loopback() || ip.is_unspecified() => {
            config.net4.map(|n| n.gateway.into())
        }
        IpAddr::V6(ip) if ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local() => {
            config.net6.map(|n| n.gateway.into())
        }
        IpAddr::V4(_) | IpAddr::V6(_) => Some(peer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let ports = HostLoopback::Ports(vec![(8000, 8001)]);
        let rules = Rules::new(&Config::example(), &ports, vec![], vec![at("9.9.9.9:53")]);
        for (to, target) in [
            ("10.0.2.3:53", Target::Resolver),
            ("10.0.2.3:54", Target::Refuse),
            ("10.0.2.2:8000", Target::Address(at("127.0.0.1:8000"))),
            ("10.0.2.2:8002", Target::Refuse),
            ("10.0.2.77:80", Target::Unreachable),
            ("127.0.0.1:80", Target::Drop),
            ("239.1.1.1:80", Target::Drop),
            ("192.0.2.1:80", Target::Address(at("192.0.2.1:80"))),
            ("[fd00::3]:53", Target::Resolver),
            ("[fd00::2]:8001", Target::Address(at("[::1]:8001"))),
            ("[fd00::77]:80", Target::Unreachable),
            ("[ff02::1]:80", Target::Drop),
            ("[::ffff:127.0.0.1]:80", Target::Drop),
            ("[2001:db8::1]:80", Target::Address(at("[2001:db8::1]:80"))),
        ] {
            assert_eq!(rules.target(at(to)), target, "{to}");
        }
    }

    #[test]
    fn a_prefix_of_length_zero_contains_everything_of_its_family() {
        let all = Prefix { address: Ipv4Addr::UNSPECIFIED.into(), len: 0 };
        assert!(all.contains(IpAddr::V4(Ipv4Addr::BROADCAST)));
        assert!(!all.contains(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }
}
