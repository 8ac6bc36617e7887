//! Configuring the namespace: the TAP's MTU and Ethernet address, `lo`, addresses, routes.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::message::{Failure, Step};
use super::netlink::Rtnetlink;
use super::{Request, Route, tunnels};
use crate::pacing;

/// `lo` is the first device of every namespace (`loopback_net_init` in drivers/net/loopback.c asserts it).
const LOOPBACK_INDEX: u32 = 1;

/// The least MTU of IPv6 (RFC 8200, section 5). Below it the kernel takes IPv6 off the device.
pub(super) const IPV6_MTU_MIN: u16 = 1280;

/// Does what `request` says, to the devices that were made. Gives what could not be done and does no harm.
pub(super) fn configure(request: &Request) -> Result<Vec<String>, Failure> {
    let find = Failure::at(Step::FindTap);
    let index = nix::net::if_::if_nametoindex(request.tap_name.as_str()).map_err(find)?;
    let mut netlink = Rtnetlink::open().map_err(Failure::at(Step::FindTap))?;
    set_link(&mut netlink, request, index).map_err(Failure::at(Step::SetLink))?;
    let mut warnings = Vec::new();
    if request.configure {
        warnings = set_addresses(&mut netlink, request, index)?;
        set_further(&mut netlink, request, index, &mut warnings);
        if pacing::is_default_here() {
            // It costs throughput only.
            let _ = unpace(&mut netlink, index);
        }
    }
    tunnels::configure(&mut netlink, &request.tunnels, &mut warnings)?;
    // Last, because it is all that would stay behind if another step failed: the devices vanish with their descriptors,
    // but the kernel leaves 127.0.0.1 on a `lo` that is taken down again.
    if request.configure || request.loopback_up {
        set_up(&mut netlink, LOOPBACK_INDEX).map_err(Failure::at(Step::LoopbackUp))?;
    }
    Ok(warnings)
}

/// Before the device is up: an Ethernet address and a queue's length do not change under traffic.
fn set_link(netlink: &mut Rtnetlink, request: &Request, index: u32) -> nix::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::TxQueueLen(request.txqueuelen)];
    if request.configure || !request.adopt {
        link.attributes.push(LinkAttribute::Address(request.guest_mac.0.to_vec()));
        link.attributes.push(LinkAttribute::Mtu(u32::from(request.mtu)));
    }
    netlink.change(RouteNetlinkMessage::SetLink(link), 0)
}

/// Sets `IFF_UP`.
pub(super) fn set_up(netlink: &mut Rtnetlink, index: u32) -> nix::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(link), 0)
}

/// Addresses before `IFF_UP`, so that nothing leaves without one; routes after it, because a route over a device
/// that is down is refused (`ENETDOWN`).
fn set_addresses(
    netlink: &mut Rtnetlink,
    request: &Request,
    index: u32,
) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    if let Some(net4) = request.net4 {
        add_address(netlink, index, net4.guest.into(), net4.prefix)
            .map_err(Failure::at(Step::Address4))?;
    }
    set_up(netlink, index).map_err(Failure::at(Step::TapUp))?;
    if let Some(net4) = request.net4.filter(|net4| net4.is_default_route) {
        let gateway = net4.gateway.into();
        let is_on_link = is_same_network(net4.guest.into(), gateway, net4.prefix);
        let added = add_default_route(netlink, index, gateway, is_on_link);
        settle_route(added, "IPv4", Step::Route4, &mut warnings)?;
    }
    let Some(net6) = request.net6 else {
        return Ok(warnings);
    };
    if request.mtu < IPV6_MTU_MIN {
        warnings.push(format!(
            "no IPv6 on {}: its MTU of {} is below {IPV6_MTU_MIN}",
            request.tap_name, request.mtu
        ));
        return Ok(warnings);
    }
    // The kernel prefers what came last: from the last to the first, so that the guest answers from its first one.
    for &(address, prefix) in request.further.iter().rev().filter(|(ip, _)| ip.is_ipv6()) {
        // What keeps these from being there is told for the first one.
        let _ = add_address(netlink, index, address, prefix);
    }
    match add_address(netlink, index, net6.guest.into(), net6.prefix) {
        Ok(()) | Err(Errno::EEXIST) if !net6.is_default_route => {}
        // A link-local address is there as soon as the device is up.
        Ok(()) | Err(Errno::EEXIST) => {
            let gateway = net6.gateway.into();
            let is_on_link = net6.gateway.is_unicast_link_local()
                || is_same_network(net6.guest.into(), gateway, net6.prefix);
            let added = add_default_route(netlink, index, gateway, is_on_link);
            settle_route(added, "IPv6", Step::Route6, &mut warnings)?;
        }
        // The first is `disable_ipv6` of the device or of all devices, the others a kernel without IPv6.
        Err(Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => warnings.push(format!(
            "no IPv6 on {}: it is switched off in the namespace (sysctl net.ipv6.conf.all.disable_ipv6)",
            request.tap_name
        )),
        Err(errno) => return Err(Failure::at(Step::Address6)(errno)),
    }
    Ok(warnings)
}

/// Further IPv4 addresses, and then further routes: what is on the link first, because routers are reached by it.
fn set_further(netlink: &mut Rtnetlink, request: &Request, index: u32, warnings: &mut Vec<String>) {
    let has_ipv6 = request.mtu >= IPV6_MTU_MIN;
    for &(address, prefix) in request.further.iter().filter(|(ip, _)| ip.is_ipv4()) {
        match add_address(netlink, index, address, prefix) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => {
                warnings.push(format!("the namespace goes without {address}/{prefix}: {errno}"))
            }
        }
    }
    let (routed, on_link): (Vec<&Route>, Vec<&Route>) =
        request.routes.iter().partition(|route| route.gateway.is_some());
    for route in on_link.into_iter().chain(routed) {
        if route.to.0.is_ipv6() && !has_ipv6 {
            continue;
        }
        let added = match add_route(netlink, index, route, false) {
            // The router is in no network of the device: it is on the link all the same.
            Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL) => {
                add_route(netlink, index, route, true)
            }
            added => added,
        };
        let (to, len) = route.to;
        match added {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => warnings
                .push(format!("the namespace goes without the route to {to}/{len}: {errno}")),
        }
    }
}

/// Has TCP over the device go without pacing ([`pacing`]), as `ip route change … congctl reno` does it: such connections end at
/// us, and the path behind us is the matter of the host's sockets.
fn unpace(netlink: &mut Rtnetlink, index: u32) -> nix::Result<()> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        netlink.dump(RouteNetlinkMessage::GetRoute(all), |route| {
            if let RouteNetlinkMessage::NewRoute(route) = route
                && route.header.kind == RouteType::Unicast
                && route.attributes.contains(&RouteAttribute::Oif(index))
            {
                routes.push(route);
            }
        })?;
    }
    for mut route in routes {
        // What the kernel knows of its use, and says in dumps only.
        route.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
        let congestion = RouteMetric::CcAlgo(pacing::UNPACED.to_owned());
        match route.attributes.iter_mut().find_map(metrics) {
            Some(metrics) => metrics.push(congestion),
            None => route.attributes.push(RouteAttribute::Metrics(vec![congestion])),
        }
        netlink.change(RouteNetlinkMessage::NewRoute(route), NLM_F_REPLACE)?;
    }
    Ok(())
}

fn metrics(attribute: &mut RouteAttribute) -> Option<&mut Vec<RouteMetric>> {
    match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    }
}

/// A default route that is there is somebody's choice: it stays.
fn settle_route(
    added: nix::Result<()>,
    family: &str,
    step: Step,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    match added {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => {
            warnings.push(format!(
                "the namespace has an {family} default route already: left as it is"
            ));
            Ok(())
        }
        Err(errno) => Err(Failure::at(step)(errno)),
    }
}

/// Adds an address. For IPv6 without duplicate address detection (RFC 4862, section 5.4), which would keep the
/// address tentative for a second; there is nobody else on the link but us.
pub(super) fn add_address(
    netlink: &mut Rtnetlink,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> nix::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    match address {
        IpAddr::V4(v4) => {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            if host_bits > 1 {
                let broadcast = (u32::from(v4) | host_bits).into();
                message.attributes.push(AddressAttribute::Broadcast(broadcast));
            }
        }
        IpAddr::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    netlink.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Adds the default route. A gateway outside of the device's network is taken to be on the link all the same.
fn add_default_route(
    netlink: &mut Rtnetlink,
    index: u32,
    gateway: IpAddr,
    is_on_link: bool,
) -> nix::Result<()> {
    let any = match gateway {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let route = Route { to: (any, 0), gateway: Some(gateway), metric: None, table: None };
    add_route(netlink, index, &route, !is_on_link)
}

/// Adds a route. `as_on_link`: the router answers on the link, whatever its address.
pub(super) fn add_route(
    netlink: &mut Rtnetlink,
    index: u32,
    route: &Route,
    as_on_link: bool,
) -> nix::Result<()> {
    let (to, prefix) = route.to;
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(to),
        destination_prefix_length: prefix,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: match (route.gateway, to) {
            (None, IpAddr::V4(_)) => RouteScope::Link,
            (Some(_), _) | (None, IpAddr::V6(_)) => RouteScope::Universe,
        },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Oif(index)];
    if prefix > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
    }
    if let Some(metric) = route.metric {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    if let Some(table) = route.table {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
    if as_on_link {
        message.header.flags |= RouteFlags::Onlink;
    }
    netlink.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Whether the first `prefix` bits agree.
pub(super) fn is_same_network(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    let differing = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    differing >= u32::from(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_compared_by_their_prefix() {
        let same = |a: &str, b: &str, prefix| {
            is_same_network(a.parse().unwrap(), b.parse().unwrap(), prefix)
        };
        assert!(same("10.0.2.100", "10.0.2.2", 24));
        assert!(!same("10.0.2.100", "10.0.3.2", 24));
        assert!(!same("10.0.2.100", "10.0.2.2", 32));
        assert!(same("1.2.3.4", "200.0.0.1", 0));
        assert!(same("fd00::64", "fd00::2", 64));
        assert!(!same("fd00::64", "fd00:0:0:1::2", 64));
        assert!(!same("fd00::64", "10.0.2.2", 0));
    }
}
