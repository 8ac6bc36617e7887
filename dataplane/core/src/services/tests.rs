//! The link's services as a guest sees them, read with parsers that are not ours.

mod announced;

use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress,
    Icmpv6Packet, Icmpv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscRepr,
    NdiscRouterFlags,
};

use crate::config::{Config, MacAddr};
use crate::counters::Counter;
use crate::op::{Gso, Offload};
use crate::packet::build::{self, IpHeader};
use crate::packet::checksum::{Sum, is_valid};
use crate::packet::{EtherType, Packet, parse, protocol};
use crate::rules::{Access, HostLoopback, Rules};
use crate::testing::World;

const GUEST4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
}

fn header(source: IpAddr, destination: IpAddr, protocol: u8, hop_limit: u8) -> IpHeader {
    let config = Config::example();
    let destination_mac = match destination {
        IpAddr::V6(ip) if ip.is_multicast() => {
            let o = ip.octets();
            MacAddr([0x33, 0x33, o[12], o[13], o[14], o[15]])
        }
        IpAddr::V4(Ipv4Addr::BROADCAST) => MacAddr::BROADCAST,
        IpAddr::V4(_) | IpAddr::V6(_) => config.host_mac,
    };
    let source_mac = config.guest_mac;
    IpHeader { source_mac, destination_mac, source, destination, protocol, tos: 0, hop_limit }
}

fn udp(source: IpAddr, destination: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let ip = header(source, destination, protocol::UDP, 64);
    let mut frame = vec![0; ip.bytes() + 8];
    let partial = build::udp(&mut frame, ip, ports.0, ports.1, payload.len(), 0, 1500);
    assert_eq!(partial.gso, Gso::None);
    frame.extend_from_slice(payload);
    crate::packet::offload::complete_checksum(&mut frame, &partial);
    frame
}

/// The packet that the guest got, its checksum verified, and its IP payload.
fn received(world: &mut World) -> (Packet, Vec<u8>) {
    let frame = world.next_written();
    assert_eq!(frame.offload, Offload::default());
    let Ok(EtherType::Ip(packet)) = parse(&frame.bytes) else { panic!("an IP packet") };
    let payload = frame.bytes[packet.payload()].to_vec();
    if packet.fragment.is_none() {
        assert!(is_valid(packet.source, packet.destination, packet.protocol, &payload));
    }
    (packet, payload)
}

fn counted(world: &World, counter: Counter) -> u64 {
    world.shard.counters().value(counter)
}

mod arp {
    use super::*;

    fn frame(operation: ArpOperation, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mac = EthernetAddress(Config::example().guest_mac.0);
        let mut frame = vec![0xff; 14 + 28];
        frame[6..12].copy_from_slice(&mac.0);
        frame[12..14].copy_from_slice(&[8, 6]);
        let request = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: mac,
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        request.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
        frame
    }

    #[test]
    fn our_addresses_are_answered_for_and_nobody_elses() {
        let mut world = World::new();
        for sender in [GUEST4, Ipv4Addr::UNSPECIFIED] {
            for ours in [GATEWAY4, DNS4] {
                world.frame(&frame(ArpOperation::Request, sender, ours), Offload::default());
                let bytes = world.next_written().bytes;
                let reply = ArpPacket::new_checked(&bytes[14..]).expect("ARP");
                let config = Config::example();
                assert_eq!(
                    ArpRepr::parse(&reply),
                    Ok(ArpRepr::EthernetIpv4 {
                        operation: ArpOperation::Reply,
                        source_hardware_addr: EthernetAddress(config.host_mac.0),
                        source_protocol_addr: ours,
                        target_hardware_addr: EthernetAddress(config.guest_mac.0),
                        target_protocol_addr: sender,
                    })
                );
                assert_eq!(bytes[..6], config.guest_mac.0);
            }
        }
        for (operation, sender, target) in [
            (ArpOperation::Request, GUEST4, Ipv4Addr::new(10, 0, 2, 9)),
            (ArpOperation::Request, GUEST4, GUEST4),
            (ArpOperation::Request, Ipv4Addr::UNSPECIFIED, GUEST4),
            (ArpOperation::Reply, GUEST4, GATEWAY4),
        ] {
            world.frame(&frame(operation, sender, target), Offload::default());
        }
        assert!(world.written.is_empty());
        assert_eq!(counted(&world, Counter::ResolutionHeard), 4);
        // Somebody who claims our address is not believed.
        world.frame(&frame(ArpOperation::Reply, GATEWAY4, GUEST4), Offload::default());
        assert_eq!(counted(&world, Counter::DropSource), 1);
    }

    #[test]
    fn on_the_hosts_network_everybody_but_the_guest_is_answered_for() {
        let mut config = Config::example();
        config.services.answers_for_all = true;
        let further = Ipv4Addr::new(10, 0, 2, 101);
        config.further = vec![further.into()];
        let access = Access::new(&config, HostLoopback::None);
        let rules = Rules::new(&config, &access, vec![], vec![]);
        let mut world = World::with(config, rules);
        let other = Ipv4Addr::new(10, 0, 2, 9);
        world.frame(&frame(ArpOperation::Request, GUEST4, other), Offload::default());
        let bytes = world.next_written().bytes;
        assert_eq!(bytes[28..32], other.octets());
        assert_eq!(bytes[22..28], Config::example().host_mac.0);
        for (sender, target) in
            [(further, GUEST4), (GUEST4, further), (other, other), (Ipv4Addr::UNSPECIFIED, other)]
        {
            world.frame(&frame(ArpOperation::Request, sender, target), Offload::default());
            assert!(world.written.is_empty(), "{sender} asked for {target}");
        }
    }
}

mod ndp {
    use super::*;

    fn frame(source: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, message: NdiscRepr<'_>) -> Vec<u8> {
        let ip = header(source.into(), to.into(), protocol::ICMPV6, hop_limit);
        let message = Icmpv6Repr::Ndisc(message);
        let mut frame = vec![0; ip.bytes() + message.buffer_len()];
        ip.write(&mut frame, message.buffer_len());
        let mut icmp = Icmpv6Packet::new_unchecked(&mut frame[ip.bytes()..]);
        message.emit(&source, &to, &mut icmp, &ChecksumCapabilities::default());
        frame
    }

    fn solicitation(target_addr: Ipv6Addr) -> NdiscRepr<'static> {
        NdiscRepr::NeighborSolicit { target_addr, lladdr: None }
    }

    #[test]
    fn our_addresses_are_answered_for_and_a_probe_for_others_is_not() {
        let link_local = Config::example().host_mac.link_local();
        for ours in [v6(2), v6(3), link_local] {
            for source in [v6(0x64), Ipv6Addr::UNSPECIFIED] {
                let mut world = World::new();
                let asked = frame(source, ours, 255, solicitation(ours));
                world.frame(&asked, Offload::default());
                let (packet, message) = received(&mut world);
                let icmp = Icmpv6Packet::new_checked(&message[..]).expect("ICMPv6");
                let Ok(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) =
                    NdiscRepr::parse(&icmp)
                else {
                    panic!("an advertisement")
                };
                assert_eq!((target_addr, packet.source), (ours, ours.into()));
                assert_eq!(packet.hop_limit, 255);
                assert!(flags.contains(NdiscNeighborFlags::ROUTER));
                let is_probe = source.is_unspecified();
                assert_eq!(flags.contains(NdiscNeighborFlags::SOLICITED), !is_probe);
                let to = if is_probe { "ff02::1".parse().expect("ip") } else { source };
                assert_eq!(packet.destination, IpAddr::V6(to));
                let mac = lladdr.map(|mac| mac.as_bytes().to_vec());
                assert_eq!(mac, Some(Config::example().host_mac.0.to_vec()));
            }
        }
        let mut world = World::new();
        for (source, hop_limit, target) in [
            (Ipv6Addr::UNSPECIFIED, 255, v6(0x64)),
            (v6(0x64), 255, v6(0x65)),
            (v6(0x64), 254, v6(2)),
        ] {
            world.frame(&frame(source, v6(2), hop_limit, solicitation(target)), Offload::default());
        }
        assert!(world.written.is_empty());
        assert_eq!(counted(&world, Counter::DropMalformed), 1);
    }

    #[test]
    fn a_router_is_advertised_with_all_that_slaac_needs() {
        let all_routers = "ff02::2".parse().expect("an address");
        for source in [Config::example().guest_mac.link_local(), Ipv6Addr::UNSPECIFIED] {
            let mut world = World::new();
            let asked = NdiscRepr::RouterSolicit { lladdr: None };
            world.frame(&frame(source, all_routers, 255, asked), Offload::default());
            let (packet, message) = received(&mut world);
            assert_eq!(packet.source, IpAddr::V6(Config::example().host_mac.link_local()));
            let to = if source.is_unspecified() { "ff02::1".parse().expect("ip") } else { source };
            assert_eq!((packet.destination, packet.hop_limit), (IpAddr::V6(to), 255));
            let icmp = Icmpv6Packet::new_checked(&message[..]).expect("ICMPv6");
            let Ok(NdiscRepr::RouterAdvert { flags, router_lifetime, mtu, prefix_info, .. }) =
                NdiscRepr::parse(&icmp)
            else {
                panic!("an advertisement")
            };
            assert!(flags.contains(NdiscRouterFlags::MANAGED));
            assert!(router_lifetime.secs() >= 9_000);
            assert_eq!(mtu, Some(1500));
            let prefix = prefix_info.expect("a prefix");
            assert_eq!((prefix.prefix, prefix.prefix_len), (v6(0), 64));
            assert!(prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF));
            let rdnss = &message[message.len() - 24..];
            assert_eq!(rdnss[..2], [25, 3]);
            assert_eq!(rdnss[8..], v6(3).octets());
        }
    }

    #[test]
    fn a_router_that_was_asked_for_advertises_itself_from_then_on() {
        let mut world = World::new();
        assert_eq!(world.shard.next_deadline(), None);
        let all_routers = "ff02::2".parse().expect("an address");
        let asked = NdiscRepr::RouterSolicit { lladdr: None };
        world.frame(&frame(v6(0x64), all_routers, 255, asked), Offload::default());
        received(&mut world);
        world.pass(core::time::Duration::from_secs(3_601));
        assert_eq!(world.written.len(), 2);
        let (packet, message) = received(&mut world);
        assert_eq!(packet.destination, "ff02::1".parse::<IpAddr>().expect("an address"));
        assert_eq!(message[0], 134);
    }

    #[test]
    fn a_prefix_that_is_not_64_bits_long_is_not_for_slaac() {
        let mut config = Config::example();
        config.net6.as_mut().expect("IPv6").prefix = 80;
        let rules = alloc::sync::Arc::default();
        let mut world = World::with(config, rules);
        let all_routers = "ff02::2".parse().expect("an address");
        let asked = NdiscRepr::RouterSolicit { lladdr: None };
        world.frame(&frame(v6(0x64), all_routers, 255, asked), Offload::default());
        let (_, message) = received(&mut world);
        let icmp = Icmpv6Packet::new_checked(&message[..]).expect("ICMPv6");
        let Ok(NdiscRepr::RouterAdvert { prefix_info: Some(prefix), .. }) = NdiscRepr::parse(&icmp)
        else {
            panic!("an advertisement with a prefix")
        };
        assert!(!prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF));
    }

    #[test]
    fn on_the_hosts_network_everybody_but_the_guest_is_answered_for() {
        let mut config = Config::example();
        config.services.answers_for_all = true;
        let access = Access::new(&config, HostLoopback::None);
        let rules = Rules::new(&config, &access, vec![], vec![]);
        let mut world = World::with(config, rules);
        world.frame(&frame(v6(0x64), v6(9), 255, solicitation(v6(9))), Offload::default());
        let (packet, _) = received(&mut world);
        assert_eq!(packet.source, IpAddr::V6(v6(9)));
        for (source, target) in [(v6(0x65), v6(0x64)), (Ipv6Addr::UNSPECIFIED, v6(9))] {
            world.frame(&frame(source, target, 255, solicitation(target)), Offload::default());
            assert!(world.written.is_empty(), "{source} asked for {target}");
        }
    }

    #[test]
    fn discovery_that_is_switched_off_is_silent() {
        let mut config = Config::example();
        config.services.ndp = false;
        let access = Access::new(&config, HostLoopback::None);
        let rules = Rules::new(&config, &access, vec![], vec![]);
        let mut world = World::with(config, rules);
        let all_routers = "ff02::2".parse().expect("an address");
        let asked = NdiscRepr::RouterSolicit { lladdr: None };
        world.frame(&frame(v6(0x64), all_routers, 255, asked), Offload::default());
        world.frame(&frame(v6(0x64), v6(2), 255, solicitation(v6(2))), Offload::default());
        assert!(world.written.is_empty());
        assert_eq!(counted(&world, Counter::ResolutionHeard), 2);
    }
}

mod echo {
    use super::*;

    fn message(kind: u8, len: usize, ip: &IpHeader) -> Vec<u8> {
        let mut message = vec![0x5a; 8 + len];
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        let sum = match ip.protocol {
            protocol::ICMP => Sum::default(),
            _ => ip.pseudo_header(message.len()),
        };
        let sum = sum.bytes(&message).checksum();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    #[test]
    fn our_addresses_answer_and_padding_is_cut_off() {
        let link_local = Config::example().host_mac.link_local().into();
        for ours in [GATEWAY4.into(), DNS4.into(), v6(2).into(), v6(3).into(), link_local] {
            let (guest, icmp, request, reply) = match ours {
                IpAddr::V4(_) => (GUEST4.into(), protocol::ICMP, 8, 0),
                IpAddr::V6(_) => (v6(0x64).into(), protocol::ICMPV6, 128, 129),
            };
            let mut world = World::new();
            let ip = header(guest, ours, icmp, 1);
            let asked = message(request, 5, &ip);
            let mut frame = vec![0; ip.bytes()];
            ip.write(&mut frame, asked.len());
            frame.extend_from_slice(&asked);
            frame.extend_from_slice(&[0; 9]);
            world.frame(&frame, Offload::default());
            let (packet, answer) = received(&mut world);
            assert_eq!((packet.source, packet.destination), (ours, guest));
            assert_eq!((packet.hop_limit, answer[0]), (64, reply));
            assert_eq!(answer[4..], asked[4..]);
            assert_eq!(packet.destination_mac, Config::example().guest_mac);
        }
    }

    #[test]
    fn fragments_go_back_one_by_one_and_make_a_valid_reply() {
        for is_v4 in [true, false] {
            let (guest, ours, icmp, request): (IpAddr, IpAddr, u8, u8) = if is_v4 {
                (GUEST4.into(), GATEWAY4.into(), protocol::ICMP, 8)
            } else {
                (v6(0x64).into(), v6(2).into(), protocol::ICMPV6, 128)
            };
            let ip = header(guest, ours, icmp, 64);
            let asked = message(request, 4_001, &ip);
            let mut frame = vec![0; ip.bytes()];
            ip.write(&mut frame, asked.len());
            frame.extend_from_slice(&asked);
            let mut world = World::new();
            let offload = Offload { gso: Gso::Fragment, ..Offload::default() };
            crate::packet::offload::cut(&frame, offload, 1500, 77, &mut |headers, payload| {
                world.frame(&[headers, payload].concat(), Offload::default());
            })
            .expect("a sound frame");
            let mut whole = vec![];
            while !world.written.is_empty() {
                let (packet, payload) = received(&mut world);
                assert_eq!((packet.source, packet.destination), (ours, guest));
                let fragment = packet.fragment.expect("a fragment");
                assert_eq!((fragment.identification, fragment.offset as usize), (77, whole.len()));
                whole.extend_from_slice(&payload);
            }
            assert!(is_valid(ours, guest, icmp, &whole));
            assert_eq!(whole[4..], asked[4..]);
        }
    }
}

mod dhcp4 {
    use super::*;

    fn ask(world: &mut World, request: &DhcpRepr<'_>, to: Ipv4Addr) {
        let mut message = vec![0; request.buffer_len()];
        request.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).expect("a request");
        let source = request.client_ip;
        world.frame(&udp(source.into(), to.into(), (68, 67), &message), Offload::default());
    }

    fn request(message_type: DhcpMessageType) -> DhcpRepr<'static> {
        DhcpRepr {
            message_type,
            transaction_id: 0x1234_5678,
            secs: 3,
            client_hardware_address: EthernetAddress(Config::example().guest_mac.0),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: Some(EthernetAddress(Config::example().guest_mac.0)),
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    /// The answer: packet, kind, address given; all options checked.
    fn answer(world: &mut World) -> (Packet, DhcpMessageType, Ipv4Addr) {
        let (packet, datagram) = received(world);
        assert_eq!(packet.source, IpAddr::V4(GATEWAY4));
        assert_eq!(datagram[..4], [0, 67, 0, 68]);
        let message = DhcpPacket::new_checked(&datagram[8..]).expect("DHCP");
        let reply = DhcpRepr::parse(&message).expect("a reply");
        assert_eq!(reply.transaction_id, 0x1234_5678);
        assert_eq!(reply.server_identifier, Some(GATEWAY4));
        let mac = Some(EthernetAddress(Config::example().guest_mac.0));
        assert_eq!(reply.client_identifier, mac);
        if reply.message_type != DhcpMessageType::Nak {
            assert_eq!(reply.router, Some(GATEWAY4));
            assert_eq!(reply.subnet_mask, Some(Ipv4Addr::new(255, 255, 255, 0)));
            assert_eq!(reply.dns_servers.as_deref(), Some(&[DNS4][..]));
            let mtu = message.options().find(|o| o.kind == 26).expect("an MTU");
            assert_eq!(mtu.data, 1500_u16.to_be_bytes());
            let has_lease = reply.lease_duration.is_some();
            assert_eq!(has_lease, !reply.your_ip.is_unspecified());
        }
        (packet, reply.message_type, reply.your_ip)
    }

    #[test]
    fn a_client_gets_the_configured_address() {
        let mut world = World::new();
        ask(&mut world, &request(DhcpMessageType::Discover), Ipv4Addr::BROADCAST);
        let (packet, kind, address) = answer(&mut world);
        assert_eq!((kind, address), (DhcpMessageType::Offer, GUEST4));
        assert_eq!(packet.destination, IpAddr::V4(GUEST4));
        let selecting = DhcpRepr {
            requested_ip: Some(GUEST4),
            server_identifier: Some(GATEWAY4),
            broadcast: true,
            ..request(DhcpMessageType::Request)
        };
        ask(&mut world, &selecting, Ipv4Addr::BROADCAST);
        let (packet, kind, address) = answer(&mut world);
        assert_eq!((kind, address), (DhcpMessageType::Ack, GUEST4));
        assert_eq!(packet.destination, IpAddr::V4(Ipv4Addr::BROADCAST));
        assert_eq!(packet.destination_mac, MacAddr::BROADCAST);
        let renewing = DhcpRepr { client_ip: GUEST4, ..request(DhcpMessageType::Request) };
        ask(&mut world, &renewing, GATEWAY4);
        let (packet, kind, address) = answer(&mut world);
        assert_eq!((kind, address), (DhcpMessageType::Ack, GUEST4));
        assert_eq!(packet.destination, IpAddr::V4(GUEST4));
        let informing = DhcpRepr { client_ip: GUEST4, ..request(DhcpMessageType::Inform) };
        ask(&mut world, &informing, Ipv4Addr::BROADCAST);
        let (_, kind, address) = answer(&mut world);
        assert_eq!((kind, address), (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED));
        assert_eq!(counted(&world, Counter::DhcpAnswered), 4);
    }

    #[test]
    fn a_wrong_address_is_refused_at_once_and_other_servers_clients_are_left_alone() {
        let mut world = World::new();
        let wrong = Some(Ipv4Addr::new(192, 168, 1, 5));
        let rebooting = DhcpRepr { requested_ip: wrong, ..request(DhcpMessageType::Request) };
        ask(&mut world, &rebooting, Ipv4Addr::BROADCAST);
        let (packet, kind, _) = answer(&mut world);
        assert_eq!(kind, DhcpMessageType::Nak);
        assert_eq!(packet.destination, IpAddr::V4(Ipv4Addr::BROADCAST));
        let elsewhere = DhcpRepr {
            requested_ip: Some(GUEST4),
            server_identifier: wrong,
            ..request(DhcpMessageType::Request)
        };
        ask(&mut world, &elsewhere, Ipv4Addr::BROADCAST);
        ask(&mut world, &request(DhcpMessageType::Release), Ipv4Addr::BROADCAST);
        assert_eq!(counted(&world, Counter::DhcpIgnored), 2);
        ask(&mut world, &request(DhcpMessageType::Decline), Ipv4Addr::BROADCAST);
        assert_eq!(counted(&world, Counter::DhcpDeclined), 1);
        assert!(world.written.is_empty());
    }

    #[test]
    fn a_long_client_identifier_comes_back_whole() {
        let mut message = vec![0; 240];
        message[..4].copy_from_slice(&[1, 1, 6, 0]);
        message[28..34].copy_from_slice(&Config::example().guest_mac.0);
        message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        message.extend_from_slice(&[53, 1, 1, 61, 255]);
        message.extend_from_slice(&[7; 255]);
        message.push(255);
        let mut world = World::new();
        let source = Ipv4Addr::UNSPECIFIED.into();
        let frame = udp(source, Ipv4Addr::BROADCAST.into(), (68, 67), &message);
        world.frame(&frame, Offload::default());
        let (_, datagram) = received(&mut world);
        let reply = DhcpPacket::new_checked(&datagram[8..]).expect("DHCP");
        let identifier = reply.options().find(|o| o.kind == 61).expect("an identifier");
        assert_eq!(identifier.data, [7; 255]);
    }
}

mod dhcp6 {
    use super::*;

    const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    const CLIENT_ID: [u8; 8] = [0, 1, 0, 4, 0, 3, 0, 9];

    fn option(code: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = code.to_be_bytes().to_vec();
        bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn server_id() -> Vec<u8> {
        let mut id = vec![0, 2, 0, 10, 0, 3, 0, 1];
        id.extend_from_slice(&Config::example().host_mac.0);
        id
    }

    fn association(id: u8, addresses: &[Ipv6Addr]) -> Vec<u8> {
        let mut data = vec![0, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0];
        for address in addresses {
            let mut value = address.octets().to_vec();
            value.extend_from_slice(&[0; 8]);
            data.extend_from_slice(&option(5, &value));
        }
        option(3, &data)
    }

    fn ask(kind: u8, options: &[&[u8]]) -> (World, Option<Vec<u8>>) {
        let mut world = World::new();
        let mut message = vec![kind, 1, 2, 3];
        message.extend_from_slice(&options.concat());
        let source = Config::example().guest_mac.link_local();
        let frame = udp(source.into(), SERVERS.into(), (546, 547), &message);
        world.frame(&frame, Offload::default());
        if world.written.is_empty() {
            return (world, None);
        }
        let (packet, datagram) = received(&mut world);
        assert_eq!(packet.destination, IpAddr::V6(source));
        assert_eq!(packet.source, IpAddr::V6(Config::example().host_mac.link_local()));
        assert_eq!(datagram[..4], [2, 35, 2, 34]);
        let reply = datagram[8..].to_vec();
        assert_eq!(reply[1..4], [1, 2, 3]);
        assert!(contains(&reply, &server_id()));
        (world, Some(reply))
    }

    fn contains(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    fn address_option(address: Ipv6Addr, preferred: u32, valid: u32) -> Vec<u8> {
        let mut value = address.octets().to_vec();
        value.extend_from_slice(&preferred.to_be_bytes());
        value.extend_from_slice(&valid.to_be_bytes());
        option(5, &value)
    }

    #[test]
    fn a_client_gets_the_configured_address_in_four_messages_or_two() {
        let client = option(1, &CLIENT_ID);
        let given = address_option(v6(0x64), 86_400, 172_800);
        let dns = option(23, &v6(3).octets());
        for (kind, extra, expected) in [
            (1, vec![], 2),
            (1, option(14, &[]), 7),
            (3, server_id(), 7),
            (5, server_id(), 7),
            (6, vec![], 7),
        ] {
            let (world, reply) = ask(kind, &[&client, &extra, &association(1, &[v6(0x64)])]);
            let reply = reply.expect("an answer");
            assert_eq!(reply[0], expected, "to message {kind}");
            for part in [&client, &given, &dns] {
                assert!(contains(&reply, part), "to message {kind}");
            }
            assert_eq!(contains(&reply, &option(14, &[])), kind == 1 && expected == 7);
            assert_eq!(counted(&world, Counter::DhcpAnswered), 1);
        }
    }

    #[test]
    fn other_addresses_are_taken_away_and_further_associations_get_none() {
        let client = option(1, &CLIENT_ID);
        let old = v6(0x99);
        let associations = [association(1, &[old]), association(2, &[])].concat();
        let (_, reply) = ask(5, &[&client, &server_id(), &associations]);
        let reply = reply.expect("an answer");
        assert!(contains(&reply, &address_option(old, 0, 0)));
        assert!(contains(&reply, &option(13, &[0, 2])), "no address for the second");
    }

    #[test]
    fn confirm_release_decline_and_information_are_answered() {
        let client = option(1, &CLIENT_ID);
        let (_, reply) = ask(4, &[&client, &association(1, &[v6(0x64)])]);
        assert!(contains(&reply.expect("an answer"), &option(13, &[0, 0])));
        let elsewhere = "2001:db8::1".parse().expect("an address");
        let (_, reply) = ask(4, &[&client, &association(1, &[elsewhere])]);
        assert!(contains(&reply.expect("an answer"), &option(13, &[0, 4])));
        assert_eq!(ask(4, &[&client, &association(1, &[])]).1, None);
        for kind in [8, 9] {
            let (world, reply) = ask(kind, &[&client, &server_id()]);
            assert!(contains(&reply.expect("an answer"), &option(13, &[0, 0])));
            assert_eq!(counted(&world, Counter::DhcpDeclined), u64::from(kind == 9));
        }
        let (_, reply) = ask(11, &[]);
        assert!(contains(&reply.expect("an answer"), &option(23, &v6(3).octets())));
    }

    #[test]
    fn what_is_not_for_us_or_breaks_the_rules_is_ignored() {
        let client = option(1, &CLIENT_ID);
        let other = option(2, &[0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
        let long = option(1, &[1; 131]);
        let cases: [(u8, &[&[u8]]); 8] = [
            (1, &[]),
            (1, &[&client, &server_id()]),
            (3, &[&client]),
            (3, &[&client, &other]),
            (11, &[&association(1, &[])]),
            (1, &[&long]),
            (12, &[&client]),
            (7, &[&client, &server_id()]),
        ];
        for (kind, options) in cases {
            let (world, reply) = ask(kind, options);
            assert_eq!(reply, None, "message {kind}");
            assert_eq!(counted(&world, Counter::DhcpIgnored), 1);
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_service_panic_or_lose_a_lease(
        payload in proptest::collection::vec(any::<u8>(), 0..400),
        kind in 0usize..6,
    ) {
        let mut world = World::new();
        let guest6 = Config::example().guest_mac.link_local().into();
        let frame = match kind {
            0 => udp(GUEST4.into(), Ipv4Addr::BROADCAST.into(), (68, 67), &payload),
            1 => {
                let mut message = vec![0; 240];
                message[..4].copy_from_slice(&[1, 1, 6, 0]);
                message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
                message.extend_from_slice(&[53, 1, 3]);
                message.extend_from_slice(&payload);
                udp(GUEST4.into(), Ipv4Addr::BROADCAST.into(), (68, 67), &message)
            }
            2 => {
                let to: Ipv6Addr = "ff02::1:2".parse().expect("ip");
                udp(guest6, to.into(), (546, 547), &[&[1, 1, 1, 1, 0, 1, 0, 1, 9], &payload[..]].concat())
            }
            3 => {
                let mut frame = vec![0xff; 12];
                frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4]);
                frame.extend_from_slice(&payload);
                frame
            }
            _ => {
                let (source, to, icmp, kinds): (IpAddr, IpAddr, u8, &[u8]) = if kind == 4 {
                    (guest6, v6(2).into(), protocol::ICMPV6, &[1, 2, 3, 128, 133, 134, 135, 136, 137])
                } else {
                    (GUEST4.into(), GATEWAY4.into(), protocol::ICMP, &[0, 3, 8, 11, 12])
                };
                let ip = header(source, to, icmp, 255);
                let mut frame = vec![0; ip.bytes()];
                ip.write(&mut frame, payload.len());
                frame.extend_from_slice(&payload);
                if let Some(first) = payload.first() {
                    frame[ip.bytes()] = kinds[usize::from(*first) % kinds.len()];
                }
                frame
            }
        };
        let checksum = crate::op::Checksum::Valid;
        world.frame(&frame, Offload { checksum, ..Offload::default() });
    }
}
