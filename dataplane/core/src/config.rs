//! What a shard is told at its start.

use core::net::{Ipv4Addr, Ipv6Addr};
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
    /// The gateway: our own address on the link.
    pub gateway: Ipv4Addr,
    /// Where the guest reaches DNS; none: no DNS service.
    pub dns: Option<Ipv4Addr>,
}

/// The guest's IPv6 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net6 {
    /// The address that the guest is given.
    pub guest: Ipv6Addr,
    /// Prefix length, in bits. SLAAC works with 64 only.
    pub prefix: u8,
    /// The gateway: our own address on the link, beside the link-local one.
    pub gateway: Ipv6Addr,
    /// Where the guest reaches DNS; none: no DNS service.
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
    /// Unacknowledged bytes in flight to the guest, per flow.
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
    /// Configuration protocols.
    pub services: Services,
    /// Table sizes.
    pub limits: Limits,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Seed of everything that has to be hard to guess: sequence numbers, hashes, identifiers.
    pub seed: u64,
}

impl Config {
    /// The defaults that users know from slirp4netns: 10.0.2.0/24 with the guest at .100, the gateway at .2
    /// and DNS at .3; the same in a ULA prefix.
    pub fn example() -> Self {
        let v6 = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
        Self {
            host_mac: MacAddr([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]),
            guest_mac: MacAddr([0x52, 0x55, 0x0a, 0x00, 0x02, 0x64]),
            mtu: 1500,
            net4: Some(Net4 {
                guest: Ipv4Addr::new(10, 0, 2, 100),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 0, 2, 2),
                dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
            }),
            net6: Some(Net6 { guest: v6(0x64), prefix: 64, gateway: v6(2), dns: Some(v6(3)) }),
            services: Services { dhcp4: true, dhcp6: true, router_advertisements: true },
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            seed: 0,
        }
    }
}
