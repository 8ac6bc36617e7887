//! Devices of tunnels: TUNs, beside the TAP, with addresses and routes of their own.
//!
//! They are made, configured and brought up whether or not the TAP is ([`Request::configure`](super::Request)): their
//! addresses are the tunnel's matter, and nobody else in the namespace knows them. A descriptor holds the
//! device, as with the TAP, so that a failure leaves nothing behind.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use nix::errno::Errno;

use super::configure::{IPV6_MTU_MIN, add_address, add_route, is_same_network, set_up};
use super::message::{Failure, Step};
use super::netlink::Rtnetlink;
use super::{Route, tap};
use crate::LinkOffload;

/// More tunnels than anybody has in one namespace.
pub(super) const TUNNELS_MAX: usize = 64;

/// Packets that may wait in the device to be read, as in the kernel's own WireGuard devices.
const QUEUE_PACKETS: u32 = 1000;

/// The most that one UDP datagram, or one train of them, carries over IPv4: 65,535 less the headers.
const TRAIN_BYTES_MAX: u32 = 65_507;

/// What a tunnel adds to each packet: header, counter and tag.
const SEALED_BYTES: u32 = 32;

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelDevice {
    /// Its name.
    pub name: String,
    /// Its MTU, in bytes of IP. Below 1280 there is no IPv6 on it.
    pub mtu: u16,
    /// Its addresses with their prefix lengths. Each brings the route to its network.
    pub addresses: Vec<(IpAddr, u8)>,
    /// What else is routed into it. A default route counts more than others; any other network that is routed elsewhere
    /// already is an error: its packets would not take the tunnel.
    pub routes: Vec<TunnelRoute>,
    /// Use what the kernel takes over of checksums and segmentation.
    pub offload: bool,
}

/// A route into a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelRoute {
    /// The network that it leads to.
    pub to: (IpAddr, u8),
    /// The table of the namespace that it is in; none: the main one.
    pub table: Option<u32>,
}

/// A device that was made. Closing its descriptor removes it.
#[derive(Debug)]
pub struct TunnelLink {
    /// Packets in and out, one per call, without an Ethernet header.
    pub fd: OwnedFd,
    /// Its name.
    pub name: String,
    /// What it was set to.
    pub offload: LinkOffload,
}

/// Makes them: down, unconfigured.
pub(super) fn create(devices: &[TunnelDevice]) -> Result<Vec<TunnelLink>, Failure> {
    let create = |(number, device): (u8, &TunnelDevice)| {
        let TunnelDevice { name, offload: is_offloaded, .. } = device;
        let fd = tap::open_tun()?;
        let flags = libc::IFF_TUN | libc::IFF_TUN_EXCL | libc::IFF_VNET_HDR;
        tap::set_interface(&fd, name, flags).map_err(Failure::of_tunnel(
            Step::MakeTunnel,
            number,
            0,
        ))?;
        // Without offload the guest sends complete packets; what it gets may be super-frames all the same.
        let offload = if *is_offloaded { tap::set_offload(&fd) } else { tap::set_header(&fd) };
        let offload = offload.map_err(Failure::of_tunnel(Step::TunnelOffload, number, 0))?;
        Ok(TunnelLink { fd, name: name.clone(), offload })
    };
    (0..).zip(devices).map(create).collect()
}

/// Gives them addresses and routes, and brings them up.
pub(super) fn configure(
    netlink: &mut Rtnetlink,
    devices: &[TunnelDevice],
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    for (number, device) in (0..).zip(devices) {
        let index = nix::net::if_::if_nametoindex(device.name.as_str())
            .map_err(Failure::of_tunnel(Step::TunnelLink, number, 0))?;
        set_link(netlink, device, index).map_err(Failure::of_tunnel(
            Step::TunnelLink,
            number,
            0,
        ))?;
        let has_ipv6 = set_addresses(netlink, device, (number, index), warnings)?;
        set_routes(netlink, device, (number, index), has_ipv6)?;
    }
    Ok(())
}

/// As the kernel's own WireGuard devices are: no multicast, no address that nobody asked for.
fn set_link(netlink: &mut Rtnetlink, device: &TunnelDevice, index: u32) -> nix::Result<()> {
    let message = |attributes| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.change_mask = LinkFlags::Multicast;
        link.attributes = attributes;
        RouteNetlinkMessage::SetLink(link)
    };
    let mtu = u32::from(device.mtu);
    // A super-frame shall become one train, and not one and a bit.
    let segments = TRAIN_BYTES_MAX / (mtu + SEALED_BYTES);
    let attributes = vec![
        LinkAttribute::Mtu(mtu),
        LinkAttribute::TxQueueLen(QUEUE_PACKETS),
        LinkAttribute::GsoMaxSegs(segments.max(1)),
    ];
    netlink.change(message(attributes), 0)?;
    // No address of its own making, which would look for routers through the tunnel. Refused where there is no IPv6.
    let none = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
    let none = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(none)]);
    let _ = netlink.change(message(vec![none]), 0);
    Ok(())
}

/// Addresses, and `IFF_UP`. Whether IPv6 can be had.
fn set_addresses(
    netlink: &mut Rtnetlink,
    device: &TunnelDevice,
    (number, index): (u8, u32),
    warnings: &mut Vec<String>,
) -> Result<bool, Failure> {
    let TunnelDevice { name, mtu, addresses, .. } = device;
    let mut has_ipv6 = *mtu >= IPV6_MTU_MIN;
    if !has_ipv6 && addresses.iter().any(|(ip, _)| ip.is_ipv6()) {
        warnings.push(format!("no IPv6 on {name}: its MTU of {mtu} is below {IPV6_MTU_MIN}"));
    }
    for (item, &(address, prefix)) in addresses.iter().enumerate() {
        if address.is_ipv6() && !has_ipv6 {
            continue;
        }
        match add_address(netlink, index, address, prefix) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // The first is `disable_ipv6` of the device or of all devices, the others a kernel without IPv6.
            Err(Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) if address.is_ipv6() => {
                has_ipv6 = false;
                warnings.push(format!("no IPv6 on {name}: it is switched off in the namespace"));
            }
            Err(errno) => {
                return Err(Failure::of_tunnel(Step::TunnelAddress, number, item)(errno));
            }
        }
    }
    set_up(netlink, index).map_err(Failure::of_tunnel(Step::TunnelUp, number, 0))?;
    Ok(has_ipv6)
}

/// Adds a route, which counts more than any default route that is there or comes.
fn route_into(
    netlink: &mut Rtnetlink,
    index: u32,
    to: (IpAddr, u8),
    table: Option<u32>,
) -> nix::Result<()> {
    let is_default = to.1 == 0;
    // IPv6 has routes of metric 1024 where IPv4 has none of any, routers' advertisements among them.
    let metric = (is_default && to.0.is_ipv6()).then_some(1);
    let mut add =
        |to, metric| add_route(netlink, index, &Route { to, gateway: None, metric, table }, false);
    match add(to, metric) {
        // What is more specific counts more.
        Err(Errno::EEXIST) if is_default => {
            halves(to.0).into_iter().try_for_each(|to| add(to, None))
        }
        other => other,
    }
}

/// All of a family, in two networks.
fn halves(of: IpAddr) -> [(IpAddr, u8); 2] {
    match of {
        IpAddr::V4(_) => [[0, 0, 0, 0], [128, 0, 0, 0]].map(|half| (half.into(), 1)),
        IpAddr::V6(_) => [0, 0x8000].map(|half| ([half, 0, 0, 0, 0, 0, 0, 0].into(), 1)),
    }
}

fn set_routes(
    netlink: &mut Rtnetlink,
    device: &TunnelDevice,
    (number, index): (u8, u32),
    has_ipv6: bool,
) -> Result<(), Failure> {
    for (item, &TunnelRoute { to, table }) in device.routes.iter().enumerate() {
        let is_own_network = |&(address, prefix): &(IpAddr, u8)| {
            prefix == to.1 && is_same_network(address, to.0, prefix)
        };
        let is_there = table.is_none() && device.addresses.iter().any(is_own_network);
        if is_there || to.0.is_ipv6() && !has_ipv6 {
            continue;
        }
        match route_into(netlink, index, to, table) {
            Ok(()) => {}
            // IPv6 is switched off, and nothing of it leaves by any other way.
            Err(Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::ENODEV)
                if to.0.is_ipv6() => {}
            Err(errno) => return Err(Failure::of_tunnel(Step::TunnelRoute, number, item)(errno)),
        }
    }
    Ok(())
}
