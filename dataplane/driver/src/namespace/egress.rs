//! What the host's own way out looks like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Rtnetlink;

/// Where the MTU is unknown: Ethernet's.
const MTU_DEFAULT: u16 = 1500;

/// Addresses that any way out leads to: the root name server A. Nothing is sent there.
const PROBE4: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
const PROBE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);

/// The host's way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The MTU of the device that IPv4 leaves by, in bytes of IP; none: there is no route.
    pub mtu4: Option<u16>,
    /// The same for IPv6.
    pub mtu6: Option<u16>,
}

impl Egress {
    /// Asks the kernel for the routes to two public addresses; policy routing is honoured. Costs four
    /// rtnetlink questions (0.1 ms).
    pub fn probe() -> Self {
        let Ok(mut netlink) = Rtnetlink::open() else {
            return Self { mtu4: None, mtu6: None };
        };
        Self {
            mtu4: mtu_towards(&mut netlink, PROBE4.into()),
            mtu6: mtu_towards(&mut netlink, PROBE6.into()),
        }
    }

    /// The MTU for a guest: the smaller one of the ways out there are; 1500 where there is none.
    pub fn mtu(self) -> u16 {
        self.mtu4.into_iter().chain(self.mtu6).min().unwrap_or(MTU_DEFAULT)
    }
}

/// The MTU of the host's egress device; 1500 where unknown.
pub fn egress_mtu() -> u16 {
    Egress::probe().mtu()
}

/// The MTU of the device that the route to `address` leaves by; none: there is no route.
fn mtu_towards(netlink: &mut Rtnetlink, address: IpAddr) -> Option<u16> {
    let mut question = RouteMessage::default();
    question.header = RouteHeader {
        address_family: match address {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        },
        ..RouteHeader::default()
    };
    question.attributes = vec![RouteAttribute::Destination(RouteAddress::from(address))];
    let route = match netlink.ask(RouteNetlinkMessage::GetRoute(question), 0).ok()?? {
        RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Unicast => route,
        _ => return None,
    };
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })?;
    let link = netlink.link(device).ok()?;
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })?;
    // A device may take more than IP can say (65536 on loopback).
    Some(u16::try_from(mtu).unwrap_or(u16::MAX))
}
