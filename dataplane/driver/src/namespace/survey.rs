//! What the host's network looks like: interfaces, addresses and routes, for a guest that is to look like the host.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use nix::errno::Errno;

use super::netlink::Rtnetlink;

/// The network of the namespace that we are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The interfaces, in the kernel's order.
    pub interfaces: Vec<Interface>,
    /// Unicast routes of the main table, in the kernel's order.
    pub routes: Vec<HostRoute>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub is_up: bool,
    /// Whether it is a loopback.
    pub is_loopback: bool,
    /// Its addresses with their prefix lengths, in the kernel's order.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// A route of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// The interface that it leaves by.
    pub interface: u32,
    /// Where it leads, and how.
    pub route: Route,
}

/// A route over one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network that it leads to.
    pub to: (IpAddr, u8),
    /// The router; none: on the link.
    pub gateway: Option<IpAddr>,
    /// Its metric.
    pub metric: Option<u32>,
    /// The table that it is in; none: the main one.
    pub table: Option<u32>,
}

impl Route {
    /// Whether it leads everywhere.
    pub fn is_default(&self) -> bool {
        self.to.1 == 0
    }
}

impl Survey {
    /// Asks the kernel. Costs three rtnetlink dumps.
    pub fn take() -> std::io::Result<Self> {
        let mut netlink = Rtnetlink::open()?;
        let mut survey = Self::default();
        let link = RouteNetlinkMessage::GetLink(LinkMessage::default());
        netlink.dump(link, |message| survey.on_link(&message))?;
        let address = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        netlink.dump(address, |message| survey.on_address(&message))?;
        let route = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        match netlink.dump(route, |message| survey.on_route(message)) {
            // A kernel without one of the families.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Ok(survey),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The interface of that name.
    pub fn named(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    fn on_link(&mut self, message: &RouteNetlinkMessage) {
        let RouteNetlinkMessage::NewLink(link) = message else { return };
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        self.interfaces.push(Interface {
            index: link.header.index,
            name: name.unwrap_or_default(),
            is_up: link.header.flags.contains(LinkFlags::Up),
            is_loopback: link.header.flags.contains(LinkFlags::Loopback),
            addresses: Vec::new(),
        });
    }

    fn on_address(&mut self, message: &RouteNetlinkMessage) {
        let RouteNetlinkMessage::NewAddress(address) = message else { return };
        let index = address.header.index;
        let local = address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        // Of an IPv6 address the kernel says the local one only where it has a peer.
        let only = address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let interface = self.interfaces.iter_mut().find(|interface| interface.index == index);
        if let (Some(interface), Some(ip)) = (interface, local.or(only)) {
            interface.addresses.push((ip, address.header.prefix_len));
        }
    }

    fn on_route(&mut self, message: RouteNetlinkMessage) {
        let RouteNetlinkMessage::NewRoute(route) = message else { return };
        self.routes.extend(read_route(&route));
    }
}

/// A unicast route of the main table. Of several next hops the first of those that weigh most.
fn read_route(message: &RouteMessage) -> Option<HostRoute> {
    let header = &message.header;
    let is_wanted = header.table == RouteHeader::RT_TABLE_MAIN && header.kind == RouteType::Unicast;
    let any = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    if !is_wanted {
        return None;
    }
    let (mut interface, mut gateway, mut to, mut metric) = (None, None, any, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Priority(priority) => metric = Some(*priority),
            RouteAttribute::MultiPath(hops) => {
                let most = hops.iter().map(|hop| hop.hops).max();
                let hop = hops.iter().find(|hop| Some(hop.hops) == most)?;
                interface = Some(hop.interface_index);
                gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => ip(address),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let to = (to, header.destination_prefix_length);
    Some(HostRoute { interface: interface?, route: Route { to, gateway, metric, table: None } })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_with_its_address() {
        let survey = Survey::take().expect("an rtnetlink socket");
        let lo = survey.named("lo").expect("every namespace has one");
        assert!(lo.is_loopback);
        assert!(!lo.is_up || lo.addresses.contains(&([127, 0, 0, 1].into(), 8)), "{lo:?}");
    }

    #[test]
    fn of_several_next_hops_the_first_of_the_heaviest_is_taken() {
        use netlink_packet_route::route::RouteNextHop;
        let hop = |weight, interface, last| {
            let mut hop = RouteNextHop::default();
            hop.hops = weight;
            hop.interface_index = interface;
            let gateway = IpAddr::from([192, 0, 2, last]);
            hop.attributes = vec![RouteAttribute::Gateway(gateway.into())];
            hop
        };
        let mut message = RouteMessage::default();
        message.header.address_family = netlink_packet_route::AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.attributes =
            vec![RouteAttribute::MultiPath(vec![hop(0, 2, 1), hop(9, 3, 2), hop(9, 4, 3)])];
        let read = read_route(&message).expect("a route");
        assert_eq!((read.interface, read.route.gateway), (3, Some([192, 0, 2, 2].into())));
        assert!(read.route.is_default());
        message.header.table = RouteHeader::RT_TABLE_MAIN + 1;
        assert_eq!(read_route(&message), None);
    }
}
