//! What a shard is told at its start.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Group addresses, broadcast included.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The IPv6 link-local address made from this address (RFC 4291, appendix A).
    pub const fn link_local(self) -> Ipv6Addr {
        let m = self.0;
        Ipv6Addr::from_octets([
            0xfe,
            0x80,
            0,
            0,
            0,
            0,
            0,
            0,
            m[0] ^ 2,
            m[1],
            m[2],
            0xff,
            0xfe,
            m[3],
            m[4],
            m[5],
        ])
    }
}

/// The guest's IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net4 {
    /// The address that the guest is given.
    pub guest: Ipv4Addr,
    /// Prefix length, in bits.
    pub prefix: u8,
    /// The gateway: our own address on the link. It may lie outside of the guest's network.
    pub gateway: Ipv4Addr,
    /// Whether the guest is to reach everything else by the gateway. Without, it is told of no router.
    pub is_default_route: bool,
    /// Where the guest reaches DNS, in its network or not; none: no DNS service of ours.
    pub dns: Option<Ipv4Addr>,
}

/// The guest's IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net6 {
    /// The address that the guest is given.
    pub guest: Ipv6Addr,
    /// Prefix length, in bits. SLAAC works with 64 only.
    pub prefix: u8,
    /// The gateway: our own address on the link, beside the link-local one made from our Ethernet address. It
    /// may lie outside of the guest's network. If it is link-local itself, the router advertises from it.
    pub gateway: Ipv6Addr,
    /// Whether the guest is to reach everything else by the gateway. Without, the router advertises no lifetime.
    pub is_default_route: bool,
    /// Where the guest reaches DNS, in its network or not; none: no DNS service of ours.
    pub dns: Option<Ipv6Addr>,
}

/// Which of the guest's configuration protocols are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// DHCPv4.
    pub dhcp4: bool,
    /// DHCPv6.
    pub dhcp6: bool,
    /// Router advertisements.
    pub router_advertisements: bool,
    /// Neighbour discovery altogether, router advertisements included.
    pub ndp: bool,
    /// Whether ARP requests and neighbour solicitations are answered for every address but the guest's, as if the
    /// guest was on the host's own network. Without, for our own addresses only.
    pub answers_for_all: bool,
}

impl Services {
    /// All of them, for our own addresses.
    pub const fn all() -> Self {
        Self {
            dhcp4: true,
            dhcp6: true,
            router_advertisements: true,
            ndp: true,
            answers_for_all: false,
        }
    }
}

/// The protocols that are translated. Packets of the others are dropped, and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// TCP.
    pub tcp: bool,
    /// UDP, DNS included. DHCP is a [service](Services).
    pub udp: bool,
    /// Echo, whoever is asked. Errors are always passed on.
    pub icmp: bool,
}

impl Protocols {
    /// All of them.
    pub const fn all() -> Self {
        Self { tcp: true, udp: true, icmp: true }
    }
}

/// A text that is no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotADomainName;

/// A domain name, as it goes over the wire: labels, each behind its length, and an empty one at the end (RFC 1035,
/// section 3.1).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DomainName(Box<[u8]>);

impl DomainName {
    /// Reads `example.com` or `example.com.`; a single label is a name, the root is not.
    pub fn parse(text: &str) -> Result<Self, NotADomainName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.') {
            let len = u8::try_from(label.len()).map_err(|_| NotADomainName)?;
            let is_printable = label.bytes().all(|b| b.is_ascii_graphic());
            if !(1..=63).contains(&len) || !is_printable {
                return Err(NotADomainName);
            }
            wire.push(len);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        if wire.len() > 255 { Err(NotADomainName) } else { Ok(Self(wire.into())) }
    }

    /// The labels with their lengths, the empty one included.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        let mut is_first = true;
        while let Some((&len @ 1.., behind)) = rest.split_first() {
            let (label, behind) = behind.split_at(usize::from(len).min(behind.len()));
            if !core::mem::take(&mut is_first) {
                f.write_str(".")?;
            }
            f.write_str(core::str::from_utf8(label).unwrap_or_default())?;
            rest = behind;
        }
        Ok(())
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainName({self})")
    }
}

/// What DHCP and router advertisements tell the guest, beside its address and the router's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// DNS servers of both families, the first to be asked first: our own service, or others.
    pub dns: Vec<IpAddr>,
    /// Domains to search for short names, in order.
    pub search: Vec<DomainName>,
    /// The guest's name, by DHCPv4.
    pub host_name: Option<DomainName>,
    /// The guest's full name, by DHCPv4 and DHCPv6.
    pub fqdn: Option<DomainName>,
    /// Whether the link's MTU is told.
    pub mtu: bool,
    /// First and last address that DHCPv4 leases, each to a client's Ethernet address of its own. None: the
    /// guest's configured address, to whoever asks.
    pub pool4: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Announced {
    /// Our own DNS service and the MTU.
    pub fn of_networks(net4: Option<Net4>, net6: Option<Net6>) -> Self {
        let dns4 = net4.and_then(|n| n.dns).map(IpAddr::V4);
        let dns6 = net6.and_then(|n| n.dns).map(IpAddr::V6);
        Self { dns: dns4.into_iter().chain(dns6).collect(), mtu: true, ..Self::default() }
    }
}

/// Limits: every table is this large and no larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP flows, and separately UDP mappings.
    pub flows: u32,
    /// Host-side sockets of all kinds; listeners included.
    pub sockets: u32,
    /// TCP flows whose handshake is not complete, in each direction.
    pub half_open: u32,
    /// Leases that the driver has, all told. `LeaseId`s are below it.
    pub leases: u32,
    /// Leases that TCP flows together may keep while the host is slow: one per frame, however small.
    pub leases_kept: u32,
    /// Payload bytes in them.
    pub kept_bytes: u32,
    /// The TCP window towards the guest, in bytes.
    pub window_bytes: u32,
    /// Unacknowledged bytes in flight to the guest, per flow. Three to eight that send in bulk share as many, more than sixteen
    /// twice as many.
    pub in_flight_bytes: u32,
    /// Datagrams under reassembly.
    pub reassemblies: u32,
    /// Leases held by datagrams under reassembly.
    pub reassembly_leases: u32,
    /// Ping mappings.
    pub pings: u32,
    /// DNS queries in flight.
    pub dns_queries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 65_536,
            sockets: 3 * 65_536,
            half_open: 4_096,
            // A window of small frames takes a lease per kilobyte. Only what is touched of a lease is memory.
            leases: 8_192,
            leases_kept: 5_120,
            kept_bytes: 40 << 20,
            window_bytes: 2 << 20,
            in_flight_bytes: 2 << 20,
            reassemblies: 64,
            reassembly_leases: 128,
            pings: 256,
            dns_queries: 256,
        }
    }
}

impl Limits {
    /// The part of one among `shards`. What is one flow's stays whole; so do fragments, which all come to one shard.
    pub fn shared_by(self, shards: u8) -> Self {
        let part = |limit: u32| limit.div_ceil(u32::from(shards));
        Self {
            flows: part(self.flows),
            sockets: part(self.sockets),
            half_open: part(self.half_open),
            leases: part(self.leases),
            leases_kept: part(self.leases_kept),
            kept_bytes: part(self.kept_bytes),
            pings: part(self.pings),
            dns_queries: part(self.dns_queries),
            ..self
        }
    }
}

/// A shard, named by its place among those that share a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u8);

impl ShardId {
    /// The one that has what cannot be shared out.
    pub const FIRST: Self = Self(0);
}

/// Which shard of how many this is. All of a guest's have the same seed, rules and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// This shard.
    pub own: ShardId,
    /// How many there are.
    pub shards: u8,
    /// How many of them, from the first one on, own flows. The others have those that are lent to them.
    pub homes: u8,
}

impl Share {
    /// A shard that has the guest to itself.
    pub const WHOLE: Self = Self { own: ShardId::FIRST, shards: 1, homes: 1 };

    /// Whether this one owns no flows, and has what is lent to it.
    pub const fn is_borrower(&self) -> bool {
        self.own.0 >= self.homes
    }

    /// So many that all own flows; this is one of them.
    pub const fn among(shards: u8, own: ShardId) -> Self {
        Self { own, shards, homes: shards }
    }
}

/// Flows that may be lent to one shard at a time.
pub const LENT_MAX: u32 = 256;

/// Timeouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP mappings without traffic (RFC 4787, REQ-5: not less than 2 minutes).
    pub udp_idle: Duration,
    /// UDP mappings that only spoke to port 53.
    pub dns_idle: Duration,
    /// Ping mappings (RFC 5508, REQ-2: not less than 60 s).
    pub ping_idle: Duration,
    /// How long the fragments of a datagram are waited for (RFC 791: 15 s to 2 min; RFC 8200: 60 s).
    pub reassembly: Duration,
    /// A resolver that does not answer is given up for the next one after this.
    pub dns_retry: Duration,
    /// An idle TCP flow's guest is asked for a sign of life after this (RFC 5382, REQ-5: 2 h 4 min).
    pub tcp_idle: Duration,
    /// How long a guest may take to answer a connection from the host.
    pub tcp_inbound_connect: Duration,
    /// How long a closed flow lingers for late segments.
    pub tcp_time_wait: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            udp_idle: Duration::from_secs(120),
            dns_idle: Duration::from_secs(10),
            ping_idle: Duration::from_secs(60),
            reassembly: Duration::from_secs(15),
            dns_retry: Duration::from_secs(2),
            tcp_idle: Duration::from_secs(2 * 3600 + 240),
            tcp_inbound_connect: Duration::from_secs(30),
            tcp_time_wait: Duration::from_secs(2),
        }
    }
}

/// All of it. Does not change while the shard lives; what may change is in [`Rules`](crate::Rules).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our own Ethernet address on the link.
    pub host_mac: MacAddr,
    /// The guest's, until it shows another one.
    pub guest_mac: MacAddr,
    /// The link's MTU: bytes of IP per frame.
    pub mtu: u16,
    /// IPv4 on the link; none: no IPv4.
    pub net4: Option<Net4>,
    /// IPv6 on the link; none: no IPv6.
    pub net6: Option<Net6>,
    /// Further addresses of the guest, beside those of its networks.
    pub further: Vec<IpAddr>,
    /// Configuration protocols.
    pub services: Services,
    /// What they tell the guest.
    pub announced: Announced,
    /// What is translated.
    pub protocols: Protocols,
    /// Table sizes.
    pub limits: Limits,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Seed of everything that has to be hard to guess: sequence numbers, hashes, identifiers.
    pub seed: u64,
    /// Which of the guest's flows are ours.
    pub share: Share,
}

impl Config {
    /// The defaults that users know from slirp4netns: 10.0.2.0/24 with the guest at .100, the gateway at .2
    /// and DNS at .3; the same in a ULA prefix.
    pub fn example() -> Self {
        let v6 = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
        let net4 = Some(Net4 {
            guest: Ipv4Addr::new(10, 0, 2, 100),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            is_default_route: true,
            dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
        });
        let net6 = Some(Net6 {
            guest: v6(0x64),
            prefix: 64,
            gateway: v6(2),
            is_default_route: true,
            dns: Some(v6(3)),
        });
        Self {
            host_mac: MacAddr([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]),
            guest_mac: MacAddr([0x52, 0x55, 0x0a, 0x00, 0x02, 0x64]),
            mtu: 1500,
            net4,
            net6,
            further: Vec::new(),
            services: Services::all(),
            announced: Announced::of_networks(net4, net6),
            protocols: Protocols::all(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            seed: 0,
            share: Share::WHOLE,
        }
    }

    /// The configuration of one among `shards`, of what is the whole guest's.
    pub fn shared_by(&self, share: Share) -> Self {
        let mut limits = self.limits.shared_by(share.homes);
        if share.is_borrower() {
            limits.flows = limits.flows.min(LENT_MAX);
            limits.sockets = limits.sockets.min(LENT_MAX);
        }
        Self { limits, share, ..self.clone() }
    }

    /// Whether `ip` is one of the addresses that the guest is configured with.
    pub fn is_guests(&self, ip: IpAddr) -> bool {
        self.guest_like(ip) == Some(ip) || self.further.contains(&ip)
    }

    /// The guest's first address of the family of `ip`.
    pub fn guest_like(&self, ip: IpAddr) -> Option<IpAddr> {
        let first = match ip {
            IpAddr::V4(_) => self.net4.map(|n| n.guest.into()),
            IpAddr::V6(_) => self.net6.map(|n| n.guest.into()),
        };
        first.or_else(|| self.further.iter().copied().find(|own| own.is_ipv4() == ip.is_ipv4()))
    }

    /// Our own address on the link, of the family of `ip`.
    pub fn gateway_like(&self, ip: IpAddr) -> Option<IpAddr> {
        match ip {
            IpAddr::V4(_) => self.net4.map(|n| n.gateway.into()),
            IpAddr::V6(_) => self.net6.map(|n| n.gateway.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_domain_name_is_read_and_written() {
        let name = DomainName::parse("lab.example.").expect("a name");
        assert_eq!(name.wire(), b"\x03lab\x07example\0");
        assert_eq!(name.to_string(), "lab.example");
        assert_eq!(DomainName::parse("box").expect("a name").wire(), b"\x03box\0");
        let long = "a".repeat(64);
        let longest = "a.".repeat(127);
        assert!(DomainName::parse(&longest).is_ok());
        for text in ["", ".", "a..b", "a b", &long, &["b.", &longest].concat()] {
            assert_eq!(DomainName::parse(text), Err(NotADomainName), "{text}");
        }
    }

    #[test]
    fn the_guest_has_all_addresses_that_it_is_configured_with() {
        let mut config = Config::example();
        let further =
            [IpAddr::from([192, 0, 2, 9]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9])];
        config.further = further.to_vec();
        assert!(further.iter().all(|&ip| config.is_guests(ip)));
        assert!(config.is_guests([10, 0, 2, 100].into()));
        assert!(!config.is_guests([10, 0, 2, 2].into()));
        assert_eq!(config.guest_like(further[0]), Some([10, 0, 2, 100].into()));
        config.net4 = None;
        assert_eq!(config.guest_like(further[0]), Some(further[0]));
    }
}
