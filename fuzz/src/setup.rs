//! What the personalities configure, as switches that an input throws.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use usernet_core::config::{Announced, Config, DomainName};
use usernet_core::rules::{
    Access, Closed, DnsService, HostAddress, HostLoopback, LoopbackClients, OwnNetwork,
};

/// Hosts that frames can name (see [`remote`](crate::host::remote)) and that here mean something.
const FAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 77));

/// Changes the example's configuration; each of the low seven bits is a switch. None is the example itself.
pub(crate) fn apply(switches: u8, config: &mut Config) -> Access {
    let is_on = |n: u8| switches >> n & 1 == 1;
    let guest = config.guest_like(NEAR).expect("the example has IPv4");
    let mut access = Access::new(config, HostLoopback::All);
    if is_on(0) {
        access.own_network = OwnNetwork::Reached;
        config.services.answers_for_all = true;
    }
    if is_on(1) {
        access.loopback_via.insert(0, OTHER);
        access.host_via.push(HostAddress { via: NEAR, address: guest });
        access.resolvers_via.extend([FAR4, FAR6]);
    }
    if is_on(2) {
        access.closed = Closed::NetUnreachable;
        access.host_loopback = HostLoopback::Ports(vec![(53, 80)]);
        access.loopback_clients = LoopbackClients::Link;
    }
    if is_on(3) {
        access.dns = DnsService::Dropped;
    }
    if is_on(4) {
        announce(config);
    }
    if is_on(5) {
        config.announced.pool4 = Some((Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 17)));
        config.net4.as_mut().expect("the example has IPv4").prefix = 32;
        config.net6.as_mut().expect("the example has IPv6").is_default_route = false;
    }
    if is_on(6) {
        config.further = vec![NEAR];
        config.net6.as_mut().expect("the example has IPv6").gateway =
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        access.loopback_clients = LoopbackClients::GuestAddress;
    }
    access
}

/// More than any message has room for.
fn announce(config: &mut Config) {
    let name = |text: &str| DomainName::parse(text).expect("a name");
    config.announced = Announced {
        dns: (0..40).flat_map(|_| [FAR4, FAR6]).collect(),
        search: (0..40).map(|n| name(&format!("department-{n}.example"))).collect(),
        host_name: Some(name(&["a"; 120].join("."))),
        fqdn: Some(name(&["b"; 126].join("."))),
        mtu: false,
        pool4: None,
    };
}
