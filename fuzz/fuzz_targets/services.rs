//! What answers the guest from within: DHCPv4, DHCPv6, NDP, ARP and DNS. The input is a list of payloads; the headers
//! around them are right.
//!
//! Each payload stands behind one byte that names the service and two with its length. An input that begins with
//! [`SETUP`] says in its second byte how the world is configured.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use usernet_core::op::Offload;
use usernet_core::packet::protocol;
use usernet_fuzz::frames::{packet, udp};
use usernet_fuzz::world::World;

const SETUP: u8 = 0xff;
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x64);

fuzz_target!(|data: &[u8]| {
    let (switches, mut rest) = match data {
        [SETUP, switches, rest @ ..] => (*switches, rest),
        rest => (0, rest),
    };
    let mut world = World::new(switches);
    while let Some((&[service, high, low], after)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (payload, after) = after.split_at(len);
        rest = after;
        serve(&mut world, service, payload);
        world.flush();
    }
});

fn serve(world: &mut World, service: u8, payload: &[u8]) {
    match service % 8 {
        0 => {
            let to = (Ipv4Addr::BROADCAST.into(), 67);
            datagram(world, (Ipv4Addr::UNSPECIFIED.into(), 68), to, payload);
        }
        1 => {
            let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
            datagram(world, (LINK_LOCAL.into(), 546), (to.into(), 547), payload);
        }
        2 => {
            let all_routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).into();
            let source = Some(LINK_LOCAL.into());
            let frame = packet(world, source, all_routers, protocol::ICMPV6, 255, 0, payload);
            world.frame(frame, Offload::default());
        }
        3 => {
            let config = world.config();
            let mut frame = Vec::from([0xff; 6]);
            frame.extend(config.guest_mac.0);
            frame.extend([0x08, 0x06]);
            frame.extend(payload);
            world.frame(frame, Offload::default());
        }
        4 => {
            let net = world.config().net4.expect("the example has IPv4");
            let to = net.dns.expect("the example has DNS").into();
            datagram(world, (net.guest.into(), 4000), (to, 53), payload);
            world.open_all();
        }
        5 => {
            let net = world.config().net6.expect("the example has IPv6");
            let to = net.dns.expect("the example has DNS").into();
            datagram(world, (net.guest.into(), 4000), (to, 53), payload);
            world.open_all();
        }
        6 => world.answer(payload),
        _ => world.wait(Duration::from_millis(u64::from(service) * 40)),
    }
}

fn datagram(world: &mut World, from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) {
    let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
    let payload = &payload[..payload.len().min(65_000)];
    let body = udp(from.port(), to.port(), payload);
    let frame = packet(world, Some(from.ip()), to.ip(), protocol::UDP, 64, 0, &body);
    world.frame(frame, Offload::default());
}
