//! What a virtual network is: its addresses, its gateway's key, and who is in it.
//!
//! All of it is a value; [`super::store`] writes it down and [`super::service`] changes it.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use usernet_wireguard::{PrivateKey, PublicKey};

use super::keys;
use crate::cli::process::Process;

/// The version of [`Network`]'s form.
pub(super) const NETWORK_VERSION: u32 = 1;

/// The longest name: it is a device's too (`IFNAMSIZ`, less its zero).
const NETWORK_NAME_BYTES_MAX: usize = 15;

/// The longest name of a member: a label of DNS (RFC 1035, section 2.3.4).
const MEMBER_NAME_BYTES_MAX: usize = 63;

/// The most members of a network. Each is a peer that the gateway's daemon looks after.
pub(super) const MEMBERS_MAX: usize = 1_024;

/// What the gateway is called by the members.
pub(super) const GATEWAY_NAME: &str = "gateway";

/// What is left of 1500 bytes by the longest headers of a tunnel.
pub(super) const MTU_DEFAULT: u16 = 1_420;

/// A virtual network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Network {
    /// The form of this record.
    pub(super) version: u32,
    /// Its name: that of the devices, and the domain of its members' names.
    pub(super) name: String,
    /// The gateway's address, with the network's prefix length.
    pub(super) gateway4: Ipv4Net,
    /// The same in IPv6, if it has that.
    pub(super) gateway6: Option<Ipv6Net>,
    /// The gateway's UDP port on this host.
    pub(super) listen_port: u16,
    /// Whether members get out of the network by the gateway.
    pub(super) internet: bool,
    /// Bytes of IP per packet.
    pub(super) mtu: u16,
    /// Who the gateway is.
    #[serde(with = "keys::private")]
    pub(super) private_key: PrivateKey,
    /// Who else is in it.
    pub(super) members: Vec<Member>,
}

/// A member of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    /// Its name in the network.
    pub(super) name: String,
    /// One of each family that the network has.
    pub(super) addresses: Vec<IpAddr>,
    /// Who it is.
    #[serde(with = "keys::public")]
    pub(super) public_key: PublicKey,
    /// How it came to be one, which says when it ends to be.
    pub(super) origin: Origin,
    /// Since when, in seconds since 1970.
    pub(super) since_unix: u64,
    /// Where it was heard from last: a gateway that starts calls it there.
    pub(super) endpoint: Option<SocketAddr>,
}

/// How a member came to be one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub(super) enum Origin {
    /// A namespace of this host: a member as long as the process runs.
    Namespace {
        /// Whose end is the namespace's.
        owner: Process,
        /// The instance it belongs to.
        instance: String,
    },
    /// `usernet vnet peer add`: until it is removed.
    Peer,
    /// One of a token for another host: until it is removed.
    Token {
        /// The token's name.
        token: String,
    },
}

impl Origin {
    /// The word for it.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Namespace { .. } => "namespace",
            Self::Peer => "peer",
            Self::Token { .. } => "token",
        }
    }
}

impl Member {
    /// The instance that it is, if it is a namespace of this host.
    pub(super) fn instance(&self) -> Option<String> {
        match &self.origin {
            Origin::Namespace { instance, .. } => Some(instance.clone()),
            Origin::Peer | Origin::Token { .. } => None,
        }
    }

    /// Whether it is one of this token.
    pub(super) fn is_of_token(&self, name: &str) -> bool {
        matches!(&self.origin, Origin::Token { token } if token == name)
    }
}

/// Why a member cannot be let in as it wants to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the address {address} is outside of the network, which is {networks}")]
    Outside { address: IpAddr, networks: String },
    #[error("the address {address} is the network's own, not a member's: take one of {network}")]
    Reserved { address: IpAddr, network: IpNet },
    #[error("the address {0} is the gateway's")]
    Gateway(IpAddr),
    #[error("the address {address} is taken by `{by}`")]
    AddressTaken { address: IpAddr, by: String },
    #[error("two addresses of one family were asked for: {0} and {1}")]
    TwoOfAFamily(IpAddr, IpAddr),
    #[error("the name `{name}` is taken by the member with {address}")]
    NameTaken { name: String, address: IpAddr },
    #[error("{0}")]
    Name(String),
    #[error("the key {key} is that of `{by}`: every member needs a key of its own")]
    KeyTaken { key: PublicKey, by: String },
    #[error("no address of {0} is free")]
    NoneFree(IpNet),
    #[error("the network has {MEMBERS_MAX} members, which is the most there can be")]
    Full,
}

impl Network {
    /// All of its address ranges, each with the gateway's address.
    pub(super) fn gateways(&self) -> Vec<IpNet> {
        let v6 = self.gateway6.map(IpNet::V6);
        std::iter::once(IpNet::V4(self.gateway4)).chain(v6).collect()
    }

    /// The gateway's addresses.
    pub(super) fn gateway_addresses(&self) -> Vec<IpAddr> {
        self.gateways().iter().map(IpNet::addr).collect()
    }

    /// A member, by its name.
    pub(super) fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name.eq_ignore_ascii_case(name))
    }

    /// Who has an address.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Member> {
        self.members.iter().find(|member| member.addresses.contains(&address))
    }

    /// An address of each family: the wanted ones, and the lowest free one of a family for which none is wanted.
    pub(super) fn allocate(&self, wanted: &[IpAddr]) -> Result<Vec<IpAddr>, Refused> {
        if let [first, second, ..] = wanted
            && (wanted.len() > 2 || first.is_ipv4() == second.is_ipv4())
        {
            return Err(Refused::TwoOfAFamily(*first, *second));
        }
        wanted.iter().try_for_each(|&address| self.check(address))?;
        let of = |network: IpNet| {
            let is_v4 = network.addr().is_ipv4();
            let own = wanted.iter().copied().find(|address| address.is_ipv4() == is_v4);
            own.map_or_else(|| self.lowest_free(network), Ok)
        };
        self.gateways().into_iter().map(of).collect()
    }

    /// Whether a member may have this address.
    fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let gateways = self.gateways();
        let Some(network) = gateways.iter().find(|network| network.contains(&address)) else {
            let networks = gateways.iter().map(|net| net.trunc().to_string());
            let networks = networks.collect::<Vec<_>>().join(" and ");
            return Err(Refused::Outside { address, networks });
        };
        if address == network.addr() {
            return Err(Refused::Gateway(address));
        }
        if address == network.network() || (address.is_ipv4() && address == network.broadcast()) {
            return Err(Refused::Reserved { address, network: network.trunc() });
        }
        match self.holder(address) {
            Some(member) => Err(Refused::AddressTaken { address, by: member.name.clone() }),
            None => Ok(()),
        }
    }

    fn lowest_free(&self, network: IpNet) -> Result<IpAddr, Refused> {
        let taken: HashSet<IpAddr> =
            self.members.iter().flat_map(|m| m.addresses.clone()).collect();
        let is_free = |address: &IpAddr| *address != network.addr() && !taken.contains(address);
        // Among one more than there are members, the gateway and the two ends, one is free.
        let mut candidates = hosts(network).take(taken.len() + 4);
        candidates.find(is_free).ok_or(Refused::NoneFree(network.trunc()))
    }

    /// Lets somebody in.
    pub(super) fn admit(&mut self, member: Member) -> Result<(), Refused> {
        check_member_name(&member.name).map_err(Refused::Name)?;
        if self.members.len() >= MEMBERS_MAX {
            return Err(Refused::Full);
        }
        let gateway = self.gateway4.addr().into();
        let holder = self.member(&member.name).map(|other| other.addresses[0]);
        let is_gateways = member.name.eq_ignore_ascii_case(GATEWAY_NAME).then_some(gateway);
        if let Some(address) = holder.or(is_gateways) {
            return Err(Refused::NameTaken { name: member.name, address });
        }
        let same_key = self.members.iter().find(|other| other.public_key == member.public_key);
        if let Some(by) = same_key {
            return Err(Refused::KeyTaken { key: member.public_key, by: by.name.clone() });
        }
        member.addresses.iter().try_for_each(|&address| self.check(address))?;
        self.members.push(member);
        Ok(())
    }

    /// A name that nobody has: this one, or with a number behind it.
    pub(super) fn free_name(&self, base: &str) -> String {
        let is_free = |name: &String| self.member(name).is_none() && name != GATEWAY_NAME;
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let mut names = std::iter::once(base.to_owned()).chain(numbered);
        names.find(is_free).expect("there are more numbers than members")
    }
}

/// The addresses of a network that can be somebody's, lowest first.
fn hosts(network: IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match network {
        IpNet::V4(net) => Box::new(net.hosts().map(IpAddr::V4)),
        // The first one is the subnet-router anycast address (RFC 4291, section 2.6.1).
        IpNet::V6(net) => Box::new(net.hosts().skip(1).map(IpAddr::V6)),
    }
}

/// Whether a network can have this name.
pub(super) fn check_network_name(name: &str) -> Result<(), String> {
    if is_label(name, NETWORK_NAME_BYTES_MAX) && name != "localhost" {
        return Ok(());
    }
    Err(format!(
        "`{name}` cannot be the name of a network: it is a device's and a domain's too, so take lowercase \
         letters, digits and `-`, a letter first, {NETWORK_NAME_BYTES_MAX} at most"
    ))
}

/// Whether a member can have this name.
pub(super) fn check_member_name(name: &str) -> Result<(), String> {
    if is_label(&name.to_ascii_lowercase(), MEMBER_NAME_BYTES_MAX) {
        return Ok(());
    }
    Err(format!(
        "`{name}` cannot be the name of a member: take letters, digits and `-`, a letter first, \
         {MEMBER_NAME_BYTES_MAX} at most"
    ))
}

fn is_label(name: &str, bytes_max: usize) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.len() <= bytes_max
        && name.bytes().all(is_plain)
        && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
        && !name.ends_with('-')
}

/// The nearest name that a member can have.
pub(super) fn member_name_like(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mut name: String = text.chars().map(plain).collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.insert_str(0, "m-");
    }
    name.truncate(MEMBER_NAME_BYTES_MAX);
    name.trim_end_matches('-').to_owned()
}

/// `--gateway`: an address with the network's prefix length.
pub(super) fn parse_gateway4(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net =
        text.parse().map_err(|_| "not ADDRESS/PREFIX, as in 10.0.0.1/24".to_owned())?;
    if net.prefix_len() > 30 {
        return Err("there is no room for members: the prefix length is 30 at most".to_owned());
    }
    if net.prefix_len() < 8 {
        return Err("the prefix length is 8 at least".to_owned());
    }
    let address = net.addr();
    if address == net.network() {
        return Err(format!(
            "{address} is the network itself: give the gateway's address, as in {}/{}",
            Ipv4Addr::from(u32::from(address) + 1),
            net.prefix_len()
        ));
    }
    if address == net.broadcast() || !is_unicast(address.into()) {
        return Err(format!("{address} cannot be somebody's address"));
    }
    Ok(net)
}

/// `--ipv6`: a network, whose first address is the gateway's, or the gateway's address in it.
pub(super) fn parse_gateway6(text: &str) -> Result<Ipv6Net, String> {
    let net: Ipv6Net =
        text.parse().map_err(|_| "not an IPv6 network, as fd12:3456:789a::/64".to_owned())?;
    if !(16..=112).contains(&net.prefix_len()) {
        return Err("the prefix length is 16 to 112".to_owned());
    }
    let address = if net.addr() == net.network() {
        Ipv6Addr::from(u128::from(net.addr()) + 1)
    } else {
        net.addr()
    };
    if !is_unicast(address.into()) || address.is_unicast_link_local() {
        return Err(format!("{address} cannot be somebody's address"));
    }
    Ok(Ipv6Net::new(address, net.prefix_len()).expect("the prefix length was one"))
}

fn is_unicast(address: IpAddr) -> bool {
    !address.is_multicast() && !address.is_loopback() && !address.is_unspecified()
}

/// Whether two networks have addresses in common.
pub(super) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// A list of networks, as people read it.
pub(super) fn listed<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn network() -> Network {
        Network {
            version: NETWORK_VERSION,
            name: "my-network".into(),
            gateway4: "10.0.0.1/24".parse().unwrap(),
            gateway6: None,
            listen_port: 51_820,
            internet: false,
            mtu: MTU_DEFAULT,
            private_key: PrivateKey::from_bytes([7; 32]),
            members: Vec::new(),
        }
    }

    pub(crate) fn member(name: &str, address: &str, key: u8) -> Member {
        Member {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            public_key: PublicKey([key; 32]),
            origin: Origin::Peer,
            since_unix: 0,
            endpoint: None,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_address_is_given() {
        let mut network = network();
        assert_eq!(network.allocate(&[]), Ok(vec![ip("10.0.0.2")]));
        network.admit(member("a", "10.0.0.2", 1)).unwrap();
        network.admit(member("c", "10.0.0.4", 2)).unwrap();
        assert_eq!(network.allocate(&[]), Ok(vec![ip("10.0.0.3")]));
        network.members.retain(|member| member.name != "a");
        assert_eq!(network.allocate(&[]), Ok(vec![ip("10.0.0.2")]));
    }

    #[test]
    fn a_gateway_in_the_middle_and_the_second_family_are_seen() {
        let mut network = network();
        network.gateway4 = "10.0.0.2/24".parse().unwrap();
        network.gateway6 = Some(parse_gateway6("fd00:1::/64").unwrap());
        assert_eq!(network.allocate(&[]), Ok(vec![ip("10.0.0.1"), ip("fd00:1::2")]));
        let wanted = network.allocate(&[ip("fd00:1::9")]);
        assert_eq!(wanted, Ok(vec![ip("10.0.0.1"), ip("fd00:1::9")]));
    }

    #[test]
    fn a_network_is_full_when_no_address_is_left() {
        let mut network = network();
        network.gateway4 = "10.0.0.1/30".parse().unwrap();
        network.admit(member("a", "10.0.0.2", 1)).unwrap();
        let full = network.allocate(&[]);
        assert_eq!(full, Err(Refused::NoneFree("10.0.0.0/30".parse().unwrap())));
    }

    #[test]
    fn what_an_address_is_refused_for_is_said() {
        let mut network = network();
        network.admit(member("db", "10.0.0.9", 1)).unwrap();
        let told = |address| network.allocate(&[ip(address)]).unwrap_err().to_string();
        assert!(told("10.0.1.2").contains("outside of the network, which is 10.0.0.0/24"));
        assert!(told("10.0.0.1").contains("is the gateway's"));
        assert!(told("10.0.0.0").contains("not a member's"));
        assert!(told("10.0.0.255").contains("not a member's"));
        assert!(told("10.0.0.9").contains("taken by `db`"));
        assert!(told("fd00::1").contains("outside"));
        let two = network.allocate(&[ip("10.0.0.2"), ip("10.0.0.3")]);
        assert!(matches!(two, Err(Refused::TwoOfAFamily(..))));
    }

    #[test]
    fn names_and_keys_are_of_one_member_only() {
        let mut network = network();
        network.admit(member("db", "10.0.0.9", 1)).unwrap();
        let name = network.admit(member("DB", "10.0.0.10", 2));
        assert!(matches!(name, Err(Refused::NameTaken { .. })), "{name:?}");
        let gateway = network.admit(member("gateway", "10.0.0.10", 2));
        assert!(matches!(gateway, Err(Refused::NameTaken { .. })), "{gateway:?}");
        let key = network.admit(member("web", "10.0.0.10", 1));
        assert!(matches!(key, Err(Refused::KeyTaken { .. })), "{key:?}");
        assert!(matches!(network.admit(member("a.b", "10.0.0.10", 2)), Err(Refused::Name(_))));
        assert_eq!(network.free_name("db"), "db-2");
        assert_eq!(network.free_name("web"), "web");
    }

    #[test]
    fn names_are_labels() {
        for name in ["a", "my-network", "net7"] {
            check_network_name(name).unwrap();
            check_member_name(name).unwrap();
        }
        for name in ["", "-a", "a-", "A", "a_b", "a.b", "7a", "ä", "localhost", "a-name-too-long-"]
        {
            assert!(check_network_name(name).is_err(), "{name}");
        }
        assert_eq!(member_name_like("run-12"), "run-12");
        assert_eq!(member_name_like("Web_1.x"), "web-1-x");
        assert_eq!(member_name_like("7a."), "m-7a");
    }

    #[test]
    fn gateways_are_read() {
        assert_eq!(parse_gateway4("10.1.2.3/16").unwrap().to_string(), "10.1.2.3/16");
        for text in ["10.0.0.1", "10.0.0.0/24", "10.0.0.255/24", "10.0.0.1/31", "127.0.0.1/24", "x"]
        {
            assert!(parse_gateway4(text).is_err(), "{text}");
        }
        assert_eq!(parse_gateway6("fd00:1::/64").unwrap().to_string(), "fd00:1::1/64");
        assert_eq!(parse_gateway6("fd00:1::5/64").unwrap().to_string(), "fd00:1::5/64");
        for text in ["fe80::/64", "ff02::/64", "fd00::/127", "::/0"] {
            assert!(parse_gateway6(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_overlap_if_one_has_the_others_first_address() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(overlap(net("10.0.0.0/8"), net("10.0.2.0/24")));
        assert!(overlap(net("10.0.2.0/24"), net("10.0.0.0/8")));
        assert!(!overlap(net("10.0.0.0/24"), net("10.0.1.0/24")));
    }
}
