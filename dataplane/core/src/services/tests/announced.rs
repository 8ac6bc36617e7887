//! What DHCP and router advertisements tell beside the guest's own address, and who is leased which.

use super::*;
use crate::config::{Announced, DomainName};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn name(text: &str) -> DomainName {
    DomainName::parse(text).expect("a name")
}

fn world(change: impl FnOnce(&mut Config)) -> World {
    let mut config = Config::example();
    change(&mut config);
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
    World::with(config, rules)
}

/// An answer's type, address and options; those of one kind put together (RFC 3396).
struct Answer {
    kind: u8,
    address: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
    len: usize,
}

impl Answer {
    fn option(&self, kind: u8) -> Option<&[u8]> {
        self.options.iter().find(|(k, _)| *k == kind).map(|(_, data)| &data[..])
    }
}

/// Asks by DHCPv4 and reads the answer, if there is one.
fn ask4(world: &mut World, mac: [u8; 6], kind: u8, options: &[u8]) -> Option<Answer> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&mac);
    message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend_from_slice(&[53, 1, kind]);
    message.extend_from_slice(options);
    message.push(255);
    let (from, to) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
    world.frame(&udp(from, to, (68, 67), &message), Offload::default());
    if world.written.is_empty() {
        return None;
    }
    let (_, datagram) = received(world);
    let reply = &datagram[8..];
    let mut options: Vec<(u8, Vec<u8>)> = vec![];
    for option in DhcpPacket::new_checked(reply).expect("DHCP").options() {
        match options.iter_mut().find(|(kind, _)| *kind == option.kind) {
            Some((_, data)) => data.extend_from_slice(option.data),
            None => options.push((option.kind, option.data.to_vec())),
        }
    }
    let kind = options.iter().find(|(kind, _)| *kind == 53).expect("a type").1[0];
    let [.., a, b, c, d] = reply[..20] else { panic!("a header") };
    Some(Answer { kind, address: [a, b, c, d].into(), options, len: reply.len() })
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;

fn wanted(address: Ipv4Addr) -> Vec<u8> {
    [&[50, 4][..], &address.octets()].concat()
}

#[test]
fn names_servers_and_search_domains_are_told_by_dhcp() {
    let mut world = world(|config| {
        config.announced = Announced {
            dns: vec![[9, 9, 9, 9].into(), v6(7).into(), [1, 1, 1, 1].into()],
            search: vec![name("lab.example"), name("example")],
            host_name: Some(name("box.lab")),
            fqdn: Some(name("box.lab.example")),
            ..Announced::default()
        };
    });
    let answer = ask4(&mut world, MAC, DISCOVER, &[81, 3, 1, 0, 0]).expect("an offer");
    assert_eq!((answer.kind, answer.address), (OFFER, GUEST4));
    assert_eq!(answer.option(6), Some(&[9, 9, 9, 9, 1, 1, 1, 1][..]));
    assert_eq!(answer.option(12), Some(&b"box.lab"[..]));
    assert_eq!(answer.option(81), Some(&b"\x0e\xff\xff\x03box\x03lab\x07example\0"[..]));
    assert_eq!(answer.option(119), Some(&b"\x03lab\x07example\0\x07example\0"[..]));
    assert_eq!(answer.option(26), None, "no MTU unless it is announced");
    let answer = ask4(&mut world, MAC, DISCOVER, &[]).expect("an offer");
    assert_eq!(answer.option(81).expect("a name")[0], 0x0c, "nobody asked for an update");
}

#[test]
fn a_gateway_outside_of_the_network_comes_with_a_route_to_it() {
    for (prefix, gateway) in [(24, [192, 0, 2, 1]), (32, [10, 0, 2, 2])] {
        let mut world = world(|config| {
            let net = config.net4.as_mut().expect("IPv4");
            (net.prefix, net.gateway) = (prefix, gateway.into());
        });
        let answer = ask4(&mut world, MAC, DISCOVER, &[]).expect("an offer");
        let [a, b, c, d] = gateway;
        let routes = [32, a, b, c, d, 0, 0, 0, 0, 0, a, b, c, d];
        assert_eq!(answer.option(121), Some(&routes[..]));
        assert_eq!(answer.option(3), Some(&gateway[..]));
        assert_eq!(answer.option(28).is_some(), prefix == 24);
    }
}

#[test]
fn no_default_route_is_no_router() {
    let mut world = world(|config| {
        config.net4.as_mut().expect("IPv4").is_default_route = false;
        config.net6.as_mut().expect("IPv6").is_default_route = false;
    });
    let answer = ask4(&mut world, MAC, DISCOVER, &[]).expect("an offer");
    assert_eq!((answer.option(3), answer.option(121)), (None, None));
    let message = advertisement(&mut world);
    assert_eq!(message[6..8], [0, 0], "the router's lifetime");
}

#[test]
fn what_a_client_has_no_room_for_is_left_out() {
    let domains = (0..40).map(|n| name(&alloc::format!("department-{n}.example")));
    let search: Vec<_> = domains.collect();
    let mut world = world(|config| config.announced.search = search.clone());
    let answer = ask4(&mut world, MAC, DISCOVER, &[]).expect("an offer");
    assert!(answer.len <= 548 && answer.option(119).is_none());
    assert_eq!(answer.option(26), Some(&[5, 220][..]), "the MTU is of more use");
    let answer = ask4(&mut world, MAC, DISCOVER, &[57, 2, 5, 220]).expect("an offer");
    let list = answer.option(119).expect("a search list, in more than one option");
    assert!(list.len() > 255 && answer.len > 548);
    let all: Vec<u8> = search.iter().flat_map(|name| name.wire().to_vec()).collect();
    assert_eq!(list[..], all[..list.len()], "whole names, in order");
    assert_eq!(list.last(), Some(&0));
}

#[test]
fn each_client_of_a_pool_has_an_address_of_its_own_and_keeps_it() {
    let at = |n| Ipv4Addr::new(10, 0, 2, n);
    let mut world = world(|config| config.announced.pool4 = Some((at(15), at(17))));
    let mac = |n| [2, 0, 0, 0, 0, n];
    for (n, address) in [(1, 15), (2, 16), (1, 15), (2, 16)] {
        let answer = ask4(&mut world, mac(n), DISCOVER, &[]).expect("an offer");
        assert_eq!((answer.kind, answer.address), (OFFER, at(address)), "client {n}");
        let answer = ask4(&mut world, mac(n), REQUEST, &wanted(at(address))).expect("an answer");
        assert_eq!((answer.kind, answer.address), (ACK, at(address)));
    }
    // Somebody else's, the configured one, one outside of the pool.
    for address in [at(15), GUEST4, at(18), at(14)] {
        let answer = ask4(&mut world, mac(2), REQUEST, &wanted(address)).expect("an answer");
        assert_eq!(answer.kind, NAK, "{address}");
    }
    // One that comes back with an address from another life gets it while it is free.
    let answer = ask4(&mut world, mac(3), REQUEST, &wanted(at(17))).expect("an answer");
    assert_eq!((answer.kind, answer.address), (ACK, at(17)));
}

#[test]
fn a_full_pool_gives_the_place_of_the_client_heard_longest_ago() {
    let at = |n| Ipv4Addr::new(10, 0, 2, n);
    let mut world = world(|config| config.announced.pool4 = Some((at(15), at(16))));
    let mac = |n| [2, 0, 0, 0, 0, n];
    for (n, address) in [(1, 15), (2, 16), (1, 15), (3, 16), (2, 15)] {
        let answer = ask4(&mut world, mac(n), DISCOVER, &[]).expect("an offer");
        assert_eq!(answer.address, at(address), "client {n}");
        world.pass(core::time::Duration::from_secs(1));
    }
}

#[test]
fn an_address_that_a_client_declines_is_not_offered_to_it_again() {
    let at = |n| Ipv4Addr::new(10, 0, 2, n);
    let mut world = world(|config| config.announced.pool4 = Some((at(15), at(30))));
    assert_eq!(ask4(&mut world, MAC, DISCOVER, &[]).expect("an offer").address, at(15));
    assert!(ask4(&mut world, MAC, DECLINE, &wanted(at(15))).is_none());
    assert_eq!(ask4(&mut world, MAC, DISCOVER, &[]).expect("an offer").address, at(16));
}

/// The router's advertisement, asked for.
fn advertisement(world: &mut World) -> Vec<u8> {
    let source = Config::example().guest_mac.link_local();
    let to = "ff02::2".parse().expect("an address");
    let ip = header(IpAddr::V6(source), IpAddr::V6(to), protocol::ICMPV6, 255);
    let mut message = [133, 0, 0, 0, 0, 0, 0, 0];
    let sum = ip.pseudo_header(message.len()).bytes(&message).checksum();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0; ip.bytes()];
    ip.write(&mut frame, message.len());
    frame.extend_from_slice(&message);
    world.frame(&frame, Offload::default());
    received(world).1
}

/// Type and value of each option of an advertisement, behind its 16 bytes.
fn nd_options(message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &message[16..];
    let mut options = vec![];
    while let Some((&[kind, len], _)) = rest.split_first_chunk::<2>() {
        let (option, behind) = rest.split_at(usize::from(len) * 8);
        options.push((kind, option[2..].to_vec()));
        rest = behind;
    }
    options
}

#[test]
fn an_advertisement_has_all_servers_and_search_domains() {
    let mut world = world(|config| {
        config.announced = Announced {
            dns: vec![v6(7).into(), [9, 9, 9, 9].into(), v6(8).into()],
            search: vec![name("lab.example"), name("example")],
            ..Announced::default()
        };
    });
    let options = nd_options(&advertisement(&mut world));
    let find = |kind| options.iter().find(|(k, _)| *k == kind).map(|(_, value)| value.clone());
    let servers = [&[0, 0, 255, 255, 255, 255][..], &v6(7).octets(), &v6(8).octets()].concat();
    assert_eq!(find(25), Some(servers));
    let domains = b"\0\0\xff\xff\xff\xff\x03lab\x07example\0\x07example\0\0\0".to_vec();
    assert_eq!(find(31), Some(domains));
    assert_eq!(find(5), None, "no MTU unless it is announced");
}

#[test]
fn an_advertisement_of_many_names_fits_into_the_least_mtu() {
    let long = alloc::format!("{}.example", "a".repeat(60));
    let mut world = world(|config| {
        config.announced.dns = (0..60).map(|n| v6(n).into()).collect();
        config.announced.search = vec![name(&long); 60];
    });
    let message = advertisement(&mut world);
    assert!(message.len() + 40 <= 1_280);
    assert!(nd_options(&message).iter().any(|(kind, _)| *kind == 31));
}

#[test]
fn a_link_local_gateway_is_who_advertises() {
    let router: Ipv6Addr = "fe80::1".parse().expect("an address");
    let mut world = world(|config| {
        let net = config.net6.as_mut().expect("IPv6");
        (net.guest, net.gateway) = ("2001:db8::5".parse().expect("an address"), router);
    });
    let source = Config::example().guest_mac.link_local();
    let message = advertisement(&mut world);
    let options = nd_options(&message);
    let (_, prefix) = options.iter().find(|(kind, _)| *kind == 3).expect("a prefix");
    let expected: Ipv6Addr = "2001:db8::".parse().expect("an address");
    assert_eq!(prefix[14..30], expected.octets());
    let sum = Sum::pseudo_header(router.into(), source.into(), protocol::ICMPV6, message.len());
    assert_eq!(sum.bytes(&message).checksum(), 0, "sent from the gateway");
}

/// Asks by DHCPv6 for information; the answer's options.
fn ask6(world: &mut World, options: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let message = [&[11, 1, 2, 3][..], options].concat();
    let source = Config::example().guest_mac.link_local();
    let to: Ipv6Addr = "ff02::1:2".parse().expect("an address");
    world.frame(&udp(source.into(), to.into(), (546, 547), &message), Offload::default());
    let (_, datagram) = received(world);
    let mut rest = &datagram[12..];
    let mut options = vec![];
    while let Some((&[c0, c1, l0, l1], behind)) = rest.split_first_chunk::<4>() {
        let (value, behind) = behind.split_at(usize::from(u16::from_be_bytes([l0, l1])));
        options.push((u16::from_be_bytes([c0, c1]), value.to_vec()));
        rest = behind;
    }
    options
}

#[test]
fn dhcpv6_tells_servers_search_domains_and_the_name_if_asked_for() {
    let mut world = world(|config| {
        config.announced = Announced {
            dns: vec![v6(7).into(), [9, 9, 9, 9].into(), v6(8).into()],
            search: vec![name("lab.example"), name("example")],
            fqdn: Some(name("box.example")),
            ..Announced::default()
        };
    });
    let options = ask6(&mut world, &[]);
    let find = |options: &[(u16, Vec<u8>)], code| {
        options.iter().find(|(c, _)| *c == code).map(|(_, value)| value.clone())
    };
    assert_eq!(find(&options, 23), Some([v6(7).octets(), v6(8).octets()].concat()));
    assert_eq!(find(&options, 24), Some(b"\x03lab\x07example\0\x07example\0".to_vec()));
    assert_eq!(find(&options, 39), None, "nobody asked");
    let full = |flags| [&[flags][..], b"\x03box\x07example\0"].concat();
    let options = ask6(&mut world, &[0, 6, 0, 2, 0, 39]);
    assert_eq!(find(&options, 39), Some(full(4)));
    let options = ask6(&mut world, &[0, 39, 0, 2, 1, 0]);
    assert_eq!(find(&options, 39), Some(full(6)), "it is not as the client wished");
}
