//! The guest's networks: what `--cidr` and `--cidr6` say, and the addresses that follow from it.
//!
//! Of a network the gateway is host 2, DNS is host 3 and the guest host 100 (hexadecimal 64 in IPv6, so that
//! `fd00::64` reads like `10.0.2.100`'s last byte does in hexadecimal): what users know from slirp4netns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use usernet_core::config::{MacAddr, Net4, Net6};
use usernet_core::rules::Prefix;

/// Host part of the gateway.
const GATEWAY_HOST: u8 = 2;
/// Host part of the DNS address.
const DNS_HOST: u8 = 3;
/// Host part of the guest.
const GUEST_HOST: u8 = 100;

/// The longest IPv4 prefix: host 100 fits into 7 bits.
const PREFIX4_MAX: u8 = 25;
/// The longest IPv6 prefix: a byte for hosts.
const PREFIX6_MAX: u8 = 120;

/// IPv4 networks that no guest network may touch.
const RESERVED4: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// IPv6 networks that no guest network may touch: unspecified, loopback and mapped addresses, link-local
/// ones, multicast.
const RESERVED6: [(Ipv6Addr, u8); 3] = [
    (Ipv6Addr::UNSPECIFIED, 8),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// A text that is no network for a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `ADDRESS/LENGTH`.
    #[error("write ADDRESS/LENGTH, as in {0}")]
    Form(&'static str),
    /// A length outside of the range.
    #[error("the prefix length must be 1 to {max}: the guest, the gateway and DNS need room")]
    Length {
        /// The largest one.
        max: u8,
    },
    /// Bits behind the prefix are set.
    #[error("that is an address in a network; the network is {0}")]
    HostBits(String),
    /// Touches addresses that mean something else.
    #[error("overlaps {0}, whose addresses are special")]
    Reserved(String),
}

/// The guest's IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr4 {
    network: Ipv4Addr,
    prefix: u8,
}

impl Default for Cidr4 {
    fn default() -> Self {
        Self { network: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 }
    }
}

impl FromStr for Cidr4 {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (network, prefix): (Ipv4Addr, u8) =
            split(text).ok_or(CidrError::Form("10.0.2.0/24"))?;
        if !(1..=PREFIX4_MAX).contains(&prefix) {
            return Err(CidrError::Length { max: PREFIX4_MAX });
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        let masked = Ipv4Addr::from_bits(network.to_bits() & mask);
        if masked != network {
            return Err(CidrError::HostBits(format!("{masked}/{prefix}")));
        }
        let this = Prefix { address: network.into(), len: prefix };
        for (reserved, len) in RESERVED4 {
            if overlap(this, Prefix { address: reserved.into(), len }) {
                return Err(CidrError::Reserved(format!("{reserved}/{len}")));
            }
        }
        Ok(Self { network, prefix })
    }
}

impl Cidr4 {
    /// The addresses in it.
    pub fn net(self) -> Net4 {
        let host = |n: u8| Ipv4Addr::from_bits(self.network.to_bits() | u32::from(n));
        Net4 {
            guest: host(GUEST_HOST),
            prefix: self.prefix,
            gateway: host(GATEWAY_HOST),
            is_default_route: true,
            dns: Some(host(DNS_HOST)),
        }
    }
}

/// The guest's IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr6 {
    network: Ipv6Addr,
    prefix: u8,
}

impl Default for Cidr6 {
    fn default() -> Self {
        Self { network: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), prefix: 64 }
    }
}

impl FromStr for Cidr6 {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (network, prefix): (Ipv6Addr, u8) = split(text).ok_or(CidrError::Form("fd00::/64"))?;
        if !(1..=PREFIX6_MAX).contains(&prefix) {
            return Err(CidrError::Length { max: PREFIX6_MAX });
        }
        let mask = u128::MAX << (128 - u32::from(prefix));
        let masked = Ipv6Addr::from_bits(network.to_bits() & mask);
        if masked != network {
            return Err(CidrError::HostBits(format!("{masked}/{prefix}")));
        }
        let this = Prefix { address: network.into(), len: prefix };
        for (reserved, len) in RESERVED6 {
            if overlap(this, Prefix { address: reserved.into(), len }) {
                return Err(CidrError::Reserved(format!("{reserved}/{len}")));
            }
        }
        Ok(Self { network, prefix })
    }
}

impl Cidr6 {
    /// The addresses in it.
    pub fn net(self) -> Net6 {
        let host = |n: u8| Ipv6Addr::from_bits(self.network.to_bits() | u128::from(n));
        Net6 {
            guest: host(GUEST_HOST),
            prefix: self.prefix,
            gateway: host(GATEWAY_HOST),
            is_default_route: true,
            dns: Some(host(DNS_HOST)),
        }
    }
}

/// A locally administered Ethernet address made from an IPv4 address: the same one after every start, so that
/// a guest that outlives its daemon keeps its neighbour entries.
pub fn stable_mac(address: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = address.octets();
    MacAddr([0x52, 0x55, a, b, c, d])
}

/// The host's addresses, with their networks, that lie in the guest's: the guest will not reach them.
pub fn shadowed<'a>(guest: Prefix, host: impl IntoIterator<Item = &'a Prefix>) -> Vec<Prefix> {
    host.into_iter().copied().filter(|&own| overlap(guest, own)).collect()
}

/// The networks of this host's interfaces, loopback aside.
pub fn host_networks() -> Vec<Prefix> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut networks = Vec::new();
    for interface in interfaces {
        let (Some(address), Some(mask)) = (interface.address, interface.netmask) else { continue };
        let v4 = |a: nix::sys::socket::SockaddrStorage| a.as_sockaddr_in().map(|a| a.ip());
        let v6 = |a: nix::sys::socket::SockaddrStorage| a.as_sockaddr_in6().map(|a| a.ip());
        let found = if let (Some(ip), Some(mask)) = (v4(address), v4(mask)) {
            Prefix { address: ip.into(), len: mask.to_bits().count_ones() as u8 }
        } else if let (Some(ip), Some(mask)) = (v6(address), v6(mask)) {
            Prefix { address: ip.into(), len: mask.to_bits().count_ones() as u8 }
        } else {
            continue;
        };
        let is_link_local = match found.address {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if !found.address.is_loopback() && !is_link_local {
            networks.push(found);
        }
    }
    networks
}

/// Whether two networks have an address in common: then one of them is in the other.
fn overlap(a: Prefix, b: Prefix) -> bool {
    a.contains(b.address) && a.len <= b.len || b.contains(a.address) && b.len <= a.len
}

fn split<A: FromStr>(text: &str) -> Option<(A, u8)> {
    let (address, prefix) = text.split_once('/')?;
    // `u8::from_str` takes a leading plus sign.
    let is_number = prefix.bytes().all(|b| b.is_ascii_digit());
    Some((address.parse().ok()?, prefix.parse().ok().filter(|_| is_number)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_addresses_are_those_of_slirp4netns() {
        let net = Cidr4::default().net();
        assert_eq!(
            (net.guest, net.gateway),
            ("10.0.2.100".parse().unwrap(), "10.0.2.2".parse().unwrap())
        );
        assert_eq!(net.dns, Some(Ipv4Addr::new(10, 0, 2, 3)));
        let net = Cidr6::default().net();
        assert_eq!(
            (net.guest, net.gateway),
            ("fd00::64".parse().unwrap(), "fd00::2".parse().unwrap())
        );
        assert_eq!(stable_mac(Ipv4Addr::new(10, 0, 2, 2)), MacAddr([0x52, 0x55, 10, 0, 2, 2]));
    }

    #[test]
    fn a_network_is_checked() {
        use CidrError::*;
        let reserved = |text: &str| Reserved(text.to_owned());
        for (text, error) in [
            ("10.0.2.0", Form("10.0.2.0/24")),
            ("10.0.2/24", Form("10.0.2.0/24")),
            ("fd00::/64", Form("10.0.2.0/24")),
            ("10.0.2.0/+24", Form("10.0.2.0/24")),
            ("10.0.2.0/0", Length { max: 25 }),
            ("10.0.2.0/26", Length { max: 25 }),
            ("10.0.2.7/24", HostBits("10.0.2.0/24".to_owned())),
            ("127.0.0.0/16", reserved("127.0.0.0/8")),
            ("64.0.0.0/2", reserved("127.0.0.0/8")),
            ("128.0.0.0/1", reserved("224.0.0.0/3")),
        ] {
            assert_eq!(text.parse::<Cidr4>(), Err(error), "{text}");
        }
        for (text, error) in [
            ("fd00::1/64", HostBits("fd00::/64".to_owned())),
            ("fd00::/121", Length { max: 120 }),
            ("fe80::/64", reserved("fe80::/10")),
            ("::/64", reserved("::/8")),
        ] {
            assert_eq!(text.parse::<Cidr6>(), Err(error), "{text}");
        }
        assert_eq!(
            "192.168.7.128/25".parse::<Cidr4>().unwrap().net().guest,
            Ipv4Addr::new(192, 168, 7, 228)
        );
        assert!("fd00:1::/120".parse::<Cidr6>().is_ok());
    }

    #[test]
    fn networks_of_the_host_inside_of_the_guests_are_found() {
        let net = |text: &str, len| Prefix { address: text.parse().unwrap(), len };
        let host =
            [net("10.0.2.15", 24), net("10.0.0.1", 8), net("10.0.3.1", 24), net("fd00::1", 64)];
        assert_eq!(shadowed(net("10.0.2.0", 24), &host), host[..2]);
    }
}
