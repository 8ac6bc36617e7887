//! The datagrams of a scenario.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use usernet_core::{LocalId, SocketId};

use super::*;

/// Applications in the guest, and their counterparts.
#[derive(Default)]
pub(super) struct Letters {
    pub(super) missions: Vec<Mission>,
    pub(super) datagrams: Datagrams,
}

const REMOTE4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
const REMOTE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7));

pub(super) fn draw(
    choices: &mut Choices,
    scenario: Scenario,
    config: &Config,
    access: &Access,
    weather: &Weather,
) -> Letters {
    let mut all = Letters::default();
    match scenario {
        Scenario::Udp => correspond(choices, (config, access), &mut all, 4, false),
        Scenario::Fragments if weather.is_short_of_leases => {
            correspond(choices, (config, access), &mut all, 1, false);
        }
        // smoltcp fragments one datagram at a time; another one would take its place.
        Scenario::Fragments => correspond(choices, (config, access), &mut all, 1, true),
        Scenario::Ping => ping(choices, config, &mut all),
        Scenario::Dhcp => {
            all.missions.push(Mission::Dhcp);
            ping(choices, config, &mut all);
        }
        Scenario::Dns => dns(choices, access, &mut all),
        Scenario::UdpForward => forward(choices, config, access, &mut all),
        Scenario::Mixed => {
            correspond(choices, (config, access), &mut all, 2, false);
            ping(choices, config, &mut all);
            dns(choices, access, &mut all);
        }
        Scenario::BulkUp
        | Scenario::BulkDown
        | Scenario::BulkBoth
        | Scenario::Echo
        | Scenario::ShortOut
        | Scenario::ShortIn
        | Scenario::HalfClose
        | Scenario::SimultaneousClose
        | Scenario::SlowReader
        | Scenario::ZeroWindow
        | Scenario::NoServer
        | Scenario::Reset
        | Scenario::Idle
        | Scenario::SmallWrites => {}
    }
    all
}

/// Echo servers. smoltcp fragments IPv4 only.
fn correspond(
    choices: &mut Choices,
    (config, access): (&Config, &Access),
    all: &mut Letters,
    count: u16,
    is_large: bool,
) {
    for i in 0..count {
        let is_v4 = is_large || config.net6.is_none() || choices.chance(500);
        let headers = if is_v4 { 28 } else { 48 };
        let fits = usize::from(config.mtu) - headers;
        let sizes = if is_large { (fits.min(60_000), 65_507) } else { (0, fits.min(65_507)) };
        let far = if is_v4 { REMOTE4 } else { REMOTE6 };
        let access::Place { host, called } = access::place(choices, access, far);
        let (port, writer) = (7_000 + i, u32::from(i) + 1);
        all.datagrams.servers.insert(SocketAddr::new(host, port), writer);
        all.missions.push(Mission::Letters {
            writer,
            port: 30_000 + i,
            to: SocketAddr::new(called, port),
            letters: choices.between(1, if is_large { 6 } else { 30 }) as u32,
            sizes,
        });
    }
}

fn ping(choices: &mut Choices, config: &Config, all: &mut Letters) {
    let (net4, net6) = (config.net4, config.net6);
    let to = [
        net4.map(|n| n.gateway.into()),
        net4.and_then(|n| n.dns).map(IpAddr::V4),
        Some(REMOTE4),
        net6.map(|n| n.gateway.into()),
        net6.map(|_| REMOTE6),
    ];
    for (i, to) in to.into_iter().flatten().enumerate() {
        all.missions.push(Mission::Ping {
            to,
            identifier: 100 + i as u16,
            times: choices.between(1, 8) as u16,
        });
    }
}

/// Up to three resolvers, one of which works.
fn dns(choices: &mut Choices, access: &Access, all: &mut Letters) {
    let count = choices.between(1, 3) as u8;
    let works = choices.below(u64::from(count)) as u8;
    for i in 0..count {
        let address = SocketAddr::new(Ipv4Addr::new(9, 9, 9, i + 1).into(), 53);
        let resolver = if i == works {
            Resolver::Works
        } else {
            choices.pick(&[Resolver::Works, Resolver::Silent, Resolver::Refuses])
        };
        all.datagrams.resolvers.insert(address, resolver);
    }
    let to = SocketAddr::new(choices.pick(&access.resolvers_via), 53);
    all.missions.push(Mission::Lookup {
        to,
        port: 31_000,
        questions: choices.between(1, 6) as u16,
    });
}

/// Clients near and far that write to a server in the guest. Some look the same to it: two loopback addresses with one
/// port, and one client that writes to two addresses of the host.
fn forward(choices: &mut Choices, config: &Config, access: &Access, all: &mut Letters) {
    let view = View::new(config, access);
    let mut seen = Vec::new();
    let own = config.net4.map(|n| n.guest.into());
    let near = |n| IpAddr::V4(Ipv4Addr::new(127, 0, 0, n));
    let hosts = [
        (Some(REMOTE4), 0, 1),
        (Some(REMOTE4), 0, 2),
        (Some(near(1)), 1, 1),
        (Some(near(2)), 1, 1),
        (Some(REMOTE6), 2, 1),
        (own, 3, 1),
    ];
    for (i, (host, port, local)) in hosts.into_iter().enumerate() {
        let Some(host) = host else { continue };
        let Some(ip) = view.as_seen_by_guest(host) else { continue };
        if ip.is_ipv6() && config.net6.is_none() {
            continue;
        }
        let writer = 100 + i as u32;
        seen.push((ip, writer));
        let headers = if ip.is_ipv4() { 28 } else { 48 };
        all.datagrams.clients.push(Client {
            listener: SocketId { index: 0, generation: 0 },
            address: SocketAddr::new(host, 60_000 + port),
            local: LocalId(local),
            writer,
            letters: choices.between(1, 20) as u32,
            sizes: (crate::mail::NAME_BYTES, usize::from(config.mtu) - headers),
        });
    }
    all.missions.push(Mission::Server { port: FORWARDED, clients: seen });
}
