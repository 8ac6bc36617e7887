//! The translation table: where a guest's packet really goes, and which host ports lead to the guest.
//!
//! A [`Rules`] value is an immutable snapshot. The control side makes a new one and the driver installs it whole
//! ([`Shard::install`](crate::Shard::install)); flows that exist keep the translation they were made with.
//!
//! # Precedence
//!
//! The first [`Translation`] that matches decides. [`Rules::new`] lays them out in this order:
//!
//! 1. the DNS addresses: port 53 goes to the host's resolvers, port 853 to the first of them;
//! 2. the addresses that mean the host's loopback, as far as [`HostLoopback`] says;
//! 3. the addresses that mean one of the host's own;
//! 4. those of 2, other ports: closed, as [`Closed`] says;
//! 5. if the guest's network is its own ([`OwnNetwork::Unreachable`]): the DNS addresses, other ports: refused;
//!    and the rest of it: unreachable, nobody else lives there;
//! 6. loopback, unspecified, multicast, broadcast and link-local destinations: dropped;
//! 7. unless everything is reached ([`PlainPath`]): the networks that are, themselves; all others, unreachable;
//! 8. anything else: itself.
//!
//! [`Access`] has what is to be decided of this; its default is a guest in a network of its own.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Config, Net4, Net6};
use crate::op::{ForwardId, Namespace};

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

/// What happens at an address of the host's loopback on ports that are not open to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Closed {
    /// As at a port where nobody listens.
    #[default]
    Refused,
    /// The network is unreachable.
    NetUnreachable,
}

/// What becomes of DNS queries to the DNS addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsService {
    /// The host's resolvers are asked.
    #[default]
    Forwarded,
    /// The resolvers are asked from the guest's namespace: its routes say how they are reached, and no query leaves
    /// where the guest itself could not send one.
    ForwardedInside,
    /// They, and everything else to these addresses, are dropped.
    Dropped,
}

/// What the rest of the guest's own network is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnNetwork {
    /// Between the guest and us: nobody else is there.
    #[default]
    Unreachable,
    /// The host's own, which the guest is on too: its addresses are reached like any other.
    Reached,
}

/// What the guest reaches by the link beside our own services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlainPath {
    /// Whatever the host reaches.
    #[default]
    Everything,
    /// Nothing but these networks: all else is for the guest's tunnels, and unreachable when they are down.
    Only(Vec<Prefix>),
}

/// Where a client on the host's loopback that comes by a TCP forward gets to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoopbackClients {
    /// The guest's loopback, socket to socket; by the link if nobody listens there.
    #[default]
    GuestLoopback,
    /// The guest's own address, socket to socket; by the link if nobody listens there.
    GuestAddress,
    /// The guest's own address, by the link.
    Link,
}

/// An address on the guest's side that means one of the host's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// What the guest says.
    pub via: IpAddr,
    /// What it means; of the same family.
    pub address: IpAddr,
}

/// What of the host the guest reaches, and by which addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Which of the host's loopback services.
    pub host_loopback: HostLoopback,
    /// By which addresses. The first of a family is also what loopback peers appear as.
    pub loopback_via: Vec<IpAddr>,
    /// What the ports of these addresses say that are not open.
    pub closed: Closed,
    /// Addresses that mean one of the host's own, and what peers from these appear as.
    pub host_via: Vec<HostAddress>,
    /// Addresses that are resolvers.
    pub resolvers_via: Vec<IpAddr>,
    /// What becomes of queries to them.
    pub dns: DnsService,
    /// What the rest of the guest's network is.
    pub own_network: OwnNetwork,
    /// Where loopback clients of forwards get to.
    pub loopback_clients: LoopbackClients,
    /// What of the world the guest reaches.
    pub plain_path: PlainPath,
}

impl Access {
    /// That of a guest in a network of its own: the host's loopback by the gateways, resolvers by the DNS addresses.
    pub fn new(config: &Config, host_loopback: HostLoopback) -> Self {
        Self::of_networks(config.net4, config.net6, host_loopback)
    }

    /// The same, where there is no configuration yet.
    pub fn of_networks(
        net4: Option<Net4>,
        net6: Option<Net6>,
        host_loopback: HostLoopback,
    ) -> Self {
        let gateways = [net4.map(|n| n.gateway.into()), net6.map(|n| n.gateway.into())];
        let dns4 = net4.and_then(|n| n.dns).map(IpAddr::V4);
        let dns6 = net6.and_then(|n| n.dns).map(IpAddr::V6);
        Self {
            host_loopback,
            loopback_via: gateways.into_iter().flatten().collect(),
            resolvers_via: dns4.into_iter().chain(dns6).collect(),
            ..Self::default()
        }
    }
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
    /// Nowhere, and the guest is told so: network unreachable.
    NetUnreachable,
    /// Nowhere, silently.
    Drop,
}

/// What a [`Translation`] does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets it go where it goes.
    Pass,
    /// Replaces the address, keeps the port.
    Map(IpAddr),
    /// See [`Target::Resolver`].
    Resolver,
    /// See [`Target::Refuse`].
    Refuse,
    /// See [`Target::Unreachable`].
    Unreachable,
    /// See [`Target::NetUnreachable`].
    NetUnreachable,
    /// See [`Target::Drop`].
    Drop,
}

/// Rules for what the guest sends to one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Destination network.
    pub to: Prefix,
    /// Destination ports, first and last, and what happens. Precedence is position; where none of them matches, the next
    /// translation decides. Thousands of ports of one address cost those nothing that speak to another.
    pub ports: Vec<((u16, u16), Action)>,
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
    /// The guest's address; none: its first one of the client's family.
    pub guest: Option<IpAddr>,
    /// The guest's port for the first host port.
    pub guest_port: u16,
}

/// A range of ports in the guest's namespace that lead to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outward {
    /// Its name; never used twice, by a [`Forward`] neither.
    pub id: ForwardId,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// First and last port that is listened on in the namespace.
    pub ports: (u16, u16),
    /// Where they lead; none: to the host's loopback, in the client's family first.
    pub host: Option<IpAddr>,
    /// The host's port for the first port.
    pub host_port: u16,
}

/// A snapshot of everything that may change while the shard runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Precedence is position.
    pub translations: Vec<Translation>,
    /// Host ports that lead to the guest, by name.
    pub forwards: Vec<Forward>,
    /// Ports in the guest's namespace that lead to the host, by name.
    pub outward: Vec<Outward>,
    /// The resolvers, best first.
    pub resolvers: Vec<SocketAddr>,
    /// From where they are asked.
    pub resolvers_on: Namespace,
    /// What the guest sees of the host's side.
    pub view: View,
}

const ANY_PORT: (u16, u16) = (0, u16::MAX);
const DNS_PORT: u16 = 53;
/// DNS over TLS and over QUIC (RFC 7858, RFC 9250).
const DNS_TLS_PORT: u16 = 853;

impl Rules {
    /// The snapshot for a guest network, with the precedence of the [module](self).
    pub fn new(
        config: &Config,
        access: &Access,
        mut forwards: Vec<Forward>,
        resolvers: Vec<SocketAddr>,
    ) -> Arc<Self> {
        forwards.sort_by_key(|f| f.id);
        let mut translations = Vec::new();
        add_services(&mut translations, access, &resolvers);
        if access.own_network == OwnNetwork::Unreachable {
            let to = |address, len| Prefix { address, len };
            let nets = [
                config.net4.map(|n| to(n.guest.into(), n.prefix)),
                config.net6.map(|n| to(n.guest.into(), n.prefix)),
            ];
            let dns = access.resolvers_via.iter().map(|&via| (Prefix::host(via), Action::Refuse));
            let own = nets.into_iter().flatten().map(|net| (net, Action::Unreachable));
            for (to, action) in dns.chain(own) {
                add(&mut translations, to, ANY_PORT, action);
            }
        }
        for to in never_reached() {
            add(&mut translations, to, ANY_PORT, Action::Drop);
        }
        if let PlainPath::Only(networks) = &access.plain_path {
            let reached = networks.iter().map(|&to| (to, Action::Pass));
            let others = everywhere().map(|to| (to, Action::NetUnreachable));
            for (to, action) in reached.chain(others) {
                add(&mut translations, to, ANY_PORT, action);
            }
        }
        let view = View::new(config, access);
        let resolvers_on = match access.dns {
            DnsService::ForwardedInside => Namespace::Guest,
            DnsService::Forwarded | DnsService::Dropped => Namespace::Host,
        };
        let outward = Vec::new();
        Arc::new(Self { translations, forwards, outward, resolvers, resolvers_on, view })
    }

    /// The same snapshot with these ports of the guest's namespace leading out.
    pub fn with_outward(mut self: Arc<Self>, mut outward: Vec<Outward>) -> Arc<Self> {
        outward.sort_by_key(|o| o.id);
        Arc::make_mut(&mut self).outward = outward;
        self
    }

    /// Where a packet to `to` really goes.
    pub fn target(&self, to: SocketAddr) -> Target {
        let (ip, port) = (to.ip(), to.port());
        let networks = self.translations.iter().filter(|t| t.to.contains(ip));
        let mut rules = networks.flat_map(|t| &t.ports);
        let found = rules.find(|((first, last), _)| (*first..=*last).contains(&port));
        match found.map(|&(_, action)| action) {
            None | Some(Action::Pass) => Target::Address(to),
            Some(Action::Map(ip)) => Target::Address(SocketAddr::new(ip, port)),
            Some(Action::Resolver) => Target::Resolver,
            Some(Action::Refuse) => Target::Refuse,
            Some(Action::Unreachable) => Target::Unreachable,
            Some(Action::NetUnreachable) => Target::NetUnreachable,
            Some(Action::Drop) => Target::Drop,
        }
    }

    /// The forward of that name.
    pub fn forward(&self, id: ForwardId) -> Option<&Forward> {
        let at = self.forwards.binary_search_by_key(&id, |f| f.id).ok()?;
        self.forwards.get(at)
    }

    /// The outward forward of that name.
    pub fn outward(&self, id: ForwardId) -> Option<&Outward> {
        let at = self.outward.binary_search_by_key(&id, |o| o.id).ok()?;
        self.outward.get(at)
    }

    /// Whether a listener of that name has a forward of either direction.
    pub fn has(&self, id: ForwardId) -> bool {
        self.forward(id).is_some() || self.outward(id).is_some()
    }
}

impl Outward {
    /// The host's port for a port of this forward.
    pub fn host_port_for(&self, port: u16) -> Option<u16> {
        mapped(self.ports, self.host_port, port)
    }
}

/// The counterpart of `port` in the range that starts at `first`.
fn mapped(ports: (u16, u16), first: u16, port: u16) -> Option<u16> {
    if port < ports.0 || port > ports.1 {
        return None;
    }
    first.checked_add(port - ports.0)
}

impl Forward {
    /// The guest's port for a host port of this forward.
    pub fn guest_port_for(&self, host_port: u16) -> Option<u16> {
        mapped(self.host_ports, self.guest_port, host_port)
    }
}

/// Adds the rule that comes next.
fn add(translations: &mut Vec<Translation>, to: Prefix, ports: (u16, u16), action: Action) {
    match translations.last_mut() {
        Some(last) if last.to == to => last.ports.push((ports, action)),
        Some(_) | None => translations.push(Translation { to, ports: vec![(ports, action)] }),
    }
}

/// 1 to 4 of the [module](self)'s list.
fn add_services(to_rules: &mut Vec<Translation>, access: &Access, resolvers: &[SocketAddr]) {
    let mut add = |via, ports, action| add(to_rules, Prefix::host(via), ports, action);
    for &via in &access.resolvers_via {
        match access.dns {
            DnsService::Dropped => add(via, ANY_PORT, Action::Drop),
            DnsService::ForwardedInside => add(via, (DNS_PORT, DNS_PORT), Action::Resolver),
            DnsService::Forwarded => {
                add(via, (DNS_PORT, DNS_PORT), Action::Resolver);
                let same = resolvers.iter().find(|r| r.is_ipv4() == via.is_ipv4());
                if let Some(resolver) = same {
                    add(via, (DNS_TLS_PORT, DNS_TLS_PORT), Action::Map(resolver.ip()));
                }
            }
        }
    }
    for &via in &access.loopback_via {
        match &access.host_loopback {
            HostLoopback::None => {}
            HostLoopback::All => add(via, ANY_PORT, Action::Map(loopback_like(via))),
            HostLoopback::Ports(ports) => {
                for &range in ports {
                    add(via, range, Action::Map(loopback_like(via)));
                }
            }
        }
    }
    for host in &access.host_via {
        add(host.via, ANY_PORT, Action::Map(host.address));
    }
    let closed = match access.closed {
        Closed::Refused => Action::Refuse,
        Closed::NetUnreachable => Action::NetUnreachable,
    };
    for &via in &access.loopback_via {
        add(via, ANY_PORT, closed);
    }
}

/// Destinations that no guest reaches by their own name.
fn never_reached() -> [Prefix; 9] {
    let v4 = |a, b, c, d, len| Prefix { address: Ipv4Addr::new(a, b, c, d).into(), len };
    let v6 = |first, last, len| Prefix {
        address: Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last).into(),
        len,
    };
    [
        v4(0, 0, 0, 0, 8),
        v4(127, 0, 0, 0, 8),
        v4(224, 0, 0, 0, 4),
        v4(255, 255, 255, 255, 32),
        v6(0, 0, 128),
        v6(0, 1, 128),
        v6(0xff00, 0, 8),
        v6(0xfe80, 0, 10),
        Prefix { address: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), len: 96 },
    ]
}

/// All addresses there are.
fn everywhere() -> [Prefix; 2] {
    [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
        .map(|address| Prefix { address, len: 0 })
}

/// The loopback address of the same family.
pub(crate) fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The ports that a client is shown with, in turn, if others look like it: its own first, then some of the dynamic
/// range (RFC 6335).
pub(crate) fn port_shown(own: u16, attempt: u16) -> u16 {
    if attempt == 0 { own } else { 49_152 + own.wrapping_mul(31).wrapping_add(attempt) % 16_384 }
}

/// What the guest sees of the host's side: which addresses are ours, and how peers are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What loopback peers appear as: IPv4, IPv6.
    loopback: [Option<IpAddr>; 2],
    /// The guest's own addresses.
    guest: Vec<IpAddr>,
    host_via: Vec<HostAddress>,
    /// Addresses at which we answer ourselves.
    own: Vec<IpAddr>,
    /// Those, and others that nobody else on the link may have.
    taken: Vec<IpAddr>,
    /// What the guest's routes lead to by the link.
    plain_path: PlainPath,
    /// Where loopback clients of forwards get to.
    pub(crate) loopback_clients: LoopbackClients,
}

impl View {
    /// The view of a guest with this access.
    pub fn new(config: &Config, access: &Access) -> Self {
        let (net4, net6) = (config.net4, config.net6);
        let gateways = [net4.map(|n| n.gateway.into()), net6.map(|n| n.gateway.into())];
        let guests = [net4.map(|n| n.guest.into()), net6.map(|n| n.guest.into())];
        let first = |is_v4| access.loopback_via.iter().copied().find(|ip| ip.is_ipv4() == is_v4);
        let mut own = access.loopback_via.clone();
        own.extend(access.host_via.iter().map(|host| host.via));
        own.extend(net6.map(|_| IpAddr::V6(config.host_mac.link_local())));
        if access.own_network == OwnNetwork::Unreachable {
            own.extend(gateways.into_iter().flatten());
            own.extend(&access.resolvers_via);
        }
        let mut taken = own.clone();
        taken.extend(gateways.into_iter().flatten());
        taken.extend(&access.resolvers_via);
        for addresses in [&mut own, &mut taken] {
            addresses.sort();
            addresses.dedup();
        }
        Self {
            loopback: [first(true).or(gateways[0]), first(false).or(gateways[1])],
            guest: guests.into_iter().flatten().chain(config.further.iter().copied()).collect(),
            host_via: access.host_via.clone(),
            own,
            taken,
            plain_path: access.plain_path.clone(),
            loopback_clients: access.loopback_clients,
        }
    }

    /// How a host-side peer is shown to the guest. Loopback clients and services appear as the address by which
    /// the guest reaches the host's loopback, or as the gateway, and so do those whom the guest does not reach by the
    /// link: it could not answer. Those from an address that the guest has too appear as what the guest calls that
    /// address; all others as themselves. None: there is nothing of that family.
    pub fn as_seen_by_guest(&self, peer: IpAddr) -> Option<IpAddr> {
        let peer = peer.to_canonical();
        let is_near = match peer {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local(),
        };
        let loopback = self.loopback[usize::from(peer.is_ipv6())];
        let is_reached = match &self.plain_path {
            PlainPath::Everything => true,
            PlainPath::Only(networks) => networks.iter().any(|network| network.contains(peer)),
        };
        if is_near || !is_reached {
            return loopback;
        }
        if self.guest.contains(&peer) {
            let via = self.host_via.iter().find(|host| host.address == peer).map(|host| host.via);
            return via.or(loopback);
        }
        Some(peer)
    }

    /// Whether we answer at `ip` ourselves.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        self.own.contains(&ip)
    }

    /// Whether nobody but us may have `ip` on the link.
    pub(crate) fn is_taken(&self, ip: IpAddr) -> bool {
        self.taken.contains(&ip)
    }

    /// Whether `ip` is one of the addresses that the guest is configured with.
    pub(crate) fn is_guests(&self, ip: IpAddr) -> bool {
        self.guest.contains(&ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Asserts where packets go.
    fn assert_targets(rules: &Rules, cases: &[(&str, Target)]) {
        for &(to, target) in cases {
            assert_eq!(rules.target(at(to)), target, "{to}");
        }
    }

    /// The guest has the host's own address, as under pasta.
    fn on_the_hosts_network() -> (Config, Access) {
        let mut config = Config::example();
        config.net4 = Some(crate::config::Net4 {
            guest: [192, 168, 1, 5].into(),
            prefix: 24,
            gateway: [192, 168, 1, 1].into(),
            is_default_route: true,
            dns: Some([169, 254, 1, 1].into()),
        });
        let access = Access {
            host_loopback: HostLoopback::All,
            host_via: vec![HostAddress { via: ip("169.254.1.2"), address: ip("192.168.1.5") }],
            resolvers_via: vec![ip("169.254.1.1"), ip("9.9.9.9"), ip("fd00::3")],
            own_network: OwnNetwork::Reached,
            ..Access::default()
        };
        (config, access)
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let config = Config::example();
        let access = Access::new(&config, HostLoopback::Ports(vec![(8000, 8001)]));
        let rules = Rules::new(&config, &access, vec![], vec![at("9.9.9.9:53")]);
        assert_targets(
            &rules,
            &[
                ("10.0.2.3:53", Target::Resolver),
                ("10.0.2.3:54", Target::Refuse),
                ("10.0.2.3:853", Target::Address(at("9.9.9.9:853"))),
                ("10.0.2.2:8000", Target::Address(at("127.0.0.1:8000"))),
                ("10.0.2.2:8002", Target::Refuse),
                ("10.0.2.77:80", Target::Unreachable),
                ("127.0.0.1:80", Target::Drop),
                ("239.1.1.1:80", Target::Drop),
                ("192.0.2.1:80", Target::Address(at("192.0.2.1:80"))),
                ("[fd00::3]:53", Target::Resolver),
                ("[fd00::3]:853", Target::Refuse),
                ("[fd00::2]:8001", Target::Address(at("[::1]:8001"))),
                ("[fd00::77]:80", Target::Unreachable),
                ("[ff02::1]:80", Target::Drop),
                ("[::ffff:127.0.0.1]:80", Target::Drop),
                ("[2001:db8::1]:80", Target::Address(at("[2001:db8::1]:80"))),
            ],
        );
    }

    #[test]
    fn of_a_guest_whose_way_out_is_a_tunnel_only_named_networks_are_reached_by_the_link() {
        let config = Config::example();
        let split = Prefix { address: ip("192.0.2.0"), len: 28 };
        let access = Access {
            plain_path: PlainPath::Only(vec![split]),
            ..Access::new(&config, HostLoopback::Ports(vec![(80, 80)]))
        };
        let rules = Rules::new(&config, &access, vec![], vec![]);
        assert_targets(
            &rules,
            &[
                ("192.0.2.1:443", Target::Address(at("192.0.2.1:443"))),
                ("192.0.2.16:443", Target::NetUnreachable),
                ("9.9.9.9:53", Target::NetUnreachable),
                ("[2001:db8::1]:443", Target::NetUnreachable),
                ("[fe80::1]:80", Target::Drop),
                ("10.0.2.2:80", Target::Address(at("127.0.0.1:80"))),
                ("10.0.2.3:853", Target::Refuse),
                ("10.0.2.77:80", Target::Unreachable),
            ],
        );
        let seen = |peer| rules.view.as_seen_by_guest(ip(peer));
        assert_eq!(seen("192.0.2.1"), Some(ip("192.0.2.1")));
        assert_eq!(seen("192.0.2.16"), Some(ip("10.0.2.2")), "the guest has no way back to it");
        let (config, access) = on_the_hosts_network();
        let access = Access { plain_path: PlainPath::Only(Vec::new()), ..access };
        let rules = Rules::new(&config, &access, vec![], vec![]);
        assert_eq!(rules.target(at("192.168.1.1:80")), Target::NetUnreachable, "a neighbour");
    }

    #[test]
    fn a_guest_on_the_hosts_network_reaches_its_neighbours_and_other_ports_of_resolvers() {
        let (config, access) = on_the_hosts_network();
        let rules = Rules::new(&config, &access, vec![], vec![at("[2001:db8::53]:53")]);
        assert_targets(
            &rules,
            &[
                ("169.254.1.1:53", Target::Resolver),
                ("9.9.9.9:53", Target::Resolver),
                ("9.9.9.9:443", Target::Address(at("9.9.9.9:443"))),
                ("[fd00::3]:853", Target::Address(at("[2001:db8::53]:853"))),
                ("169.254.1.2:80", Target::Address(at("192.168.1.5:80"))),
                ("192.168.1.1:80", Target::Address(at("192.168.1.1:80"))),
                ("192.168.1.77:80", Target::Address(at("192.168.1.77:80"))),
                ("127.0.0.1:80", Target::Drop),
            ],
        );
        // The gateway is a real router; of ours is only what stands for the host.
        assert!(!rules.view.is_own(ip("192.168.1.1")) && rules.view.is_taken(ip("192.168.1.1")));
        assert!(!rules.view.is_own(ip("9.9.9.9")) && rules.view.is_own(ip("169.254.1.2")));
    }

    #[test]
    fn several_addresses_mean_the_hosts_loopback_and_the_first_is_what_it_appears_as() {
        let (config, mut access) = on_the_hosts_network();
        access.loopback_via = vec![ip("169.254.1.3"), ip("192.168.1.1"), ip("fd00::7")];
        let rules = Rules::new(&config, &access, vec![], vec![]);
        assert_targets(
            &rules,
            &[
                ("169.254.1.3:80", Target::Address(at("127.0.0.1:80"))),
                ("192.168.1.1:80", Target::Address(at("127.0.0.1:80"))),
                ("[fd00::7]:80", Target::Address(at("[::1]:80"))),
            ],
        );
        for (peer, seen) in [
            ("127.0.0.9", "169.254.1.3"),
            ("::ffff:127.0.0.1", "169.254.1.3"),
            ("::1", "fd00::7"),
            ("fe80::9", "fd00::7"),
            ("192.168.1.5", "169.254.1.2"),
            ("192.168.1.77", "192.168.1.77"),
        ] {
            assert_eq!(rules.view.as_seen_by_guest(ip(peer)), Some(ip(seen)), "{peer}");
        }
    }

    #[test]
    fn a_peer_with_the_guests_own_address_is_never_shown_with_it() {
        let (mut config, mut access) = on_the_hosts_network();
        config.further = vec![ip("192.168.1.6")];
        access.host_via.clear();
        let view = View::new(&config, &access);
        for own in ["192.168.1.5", "192.168.1.6"] {
            assert_eq!(view.as_seen_by_guest(ip(own)), Some(ip("192.168.1.1")));
        }
        assert_eq!(view.as_seen_by_guest(ip("fd00::64")), Some(ip("fd00::2")));
        config.net6 = None;
        assert_eq!(View::new(&config, &access).as_seen_by_guest(ip("::1")), None);
    }

    #[test]
    fn a_closed_gateway_and_dns_that_is_off_say_what_they_are_told_to() {
        let config = Config::example();
        let access = Access {
            closed: Closed::NetUnreachable,
            dns: DnsService::Dropped,
            ..Access::new(&config, HostLoopback::None)
        };
        let rules = Rules::new(&config, &access, vec![], vec![at("9.9.9.9:53")]);
        assert_targets(
            &rules,
            &[
                ("10.0.2.2:80", Target::NetUnreachable),
                ("[fd00::2]:80", Target::NetUnreachable),
                ("10.0.2.3:53", Target::Drop),
                ("10.0.2.3:54", Target::Drop),
                ("10.0.2.77:80", Target::Unreachable),
            ],
        );
    }

    #[test]
    fn a_forward_is_found_by_its_name_whatever_the_order() {
        let forward = |id, port| Forward {
            id: ForwardId(id),
            protocol: Protocol::Tcp,
            host_ports: (port, port),
            guest: None,
            guest_port: 80,
        };
        let outward = |id, port| Outward {
            id: ForwardId(id),
            protocol: Protocol::Tcp,
            ports: (port, port),
            host: None,
            host_port: port,
        };
        let config = Config::example();
        let rules = Rules::new(
            &config,
            &Access::default(),
            vec![forward(7, 2007), forward(3, 2003), forward(9, 2009)],
            vec![],
        )
        .with_outward(vec![outward(8, 3008), outward(4, 3004)]);
        for (id, port) in [(3, 2003), (7, 2007), (9, 2009)] {
            assert_eq!(rules.forward(ForwardId(id)).map(|f| f.host_ports.0), Some(port));
        }
        assert_eq!(rules.outward(ForwardId(4)).map(|o| o.host_port), Some(3004));
        assert!(rules.has(ForwardId(8)) && !rules.has(ForwardId(5)));
    }

    #[test]
    fn a_prefix_of_length_zero_contains_everything_of_its_family() {
        let all = Prefix { address: Ipv4Addr::UNSPECIFIED.into(), len: 0 };
        assert!(all.contains(IpAddr::V4(Ipv4Addr::BROADCAST)));
        assert!(!all.contains(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }
}
