//! What of the host the guest of a scenario reaches, by which addresses: as natively, and as the personalities have it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use usernet_core::rules::{HostAddress, LoopbackClients, OwnNetwork};

use super::*;

/// A further address of the guest, per family.
const FURTHER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 2, 101)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x65)),
];
/// Somebody else in the guest's network, where it is the host's.
const NEIGHBOURS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 2, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xc8)),
];

/// An address of ours outside of the guest's networks.
fn outside(n: u8, is_v4: bool) -> IpAddr {
    if is_v4 {
        Ipv4Addr::new(169, 254, 1, n).into()
    } else {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, n.into()).into()
    }
}

/// Chooses, and has the configuration go with it.
pub(super) fn draw(choices: &mut Choices, config: &mut Config) -> Access {
    let mut access = Access::new(config, HostLoopback::All);
    access.loopback_clients = choices.pick(&[
        LoopbackClients::GuestLoopback,
        LoopbackClients::GuestAddress,
        LoopbackClients::Link,
    ]);
    let families = [config.net4.map(|_| true), config.net6.map(|_| false)];
    if choices.chance(300) {
        config.further = FURTHER.to_vec();
        config.further.retain(|ip| config.net6.is_some() || ip.is_ipv4());
    }
    if choices.chance(400) {
        access.own_network = OwnNetwork::Reached;
        config.services.answers_for_all = true;
    }
    for is_v4 in families.into_iter().flatten() {
        let guest = config.guest_like(outside(0, is_v4)).expect("the family is configured");
        if choices.chance(300) {
            access.resolvers_via.push(outside(1, is_v4));
        }
        if choices.chance(300) {
            access.host_via.push(HostAddress { via: outside(2, is_v4), address: guest });
        }
        if choices.chance(300) {
            access.loopback_via.insert(0, outside(3, is_v4));
        }
    }
    access
}

/// A host-side place: its address there, and what the guest calls it.
pub(super) struct Place {
    pub(super) host: IpAddr,
    pub(super) called: IpAddr,
}

/// A place near or `far`.
pub(super) fn place(choices: &mut Choices, access: &Access, far: IpAddr) -> Place {
    let same = |ip: &IpAddr| ip.is_ipv4() == far.is_ipv4();
    let by_name = access.host_via.iter().find(|host| same(&host.via)).copied();
    match (choices.below(8), by_name, access.own_network) {
        (0 | 1, _, _) => {
            let names: Vec<_> = access.loopback_via.iter().copied().filter(same).collect();
            let host =
                if far.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            Place { host, called: choices.pick(&names) }
        }
        (2, Some(named), _) => Place { host: named.address, called: named.via },
        (3, _, OwnNetwork::Reached) => {
            let host = NEIGHBOURS[usize::from(far.is_ipv6())];
            Place { host, called: host }
        }
        (_, _, OwnNetwork::Reached | OwnNetwork::Unreachable) => Place { host: far, called: far },
    }
}
