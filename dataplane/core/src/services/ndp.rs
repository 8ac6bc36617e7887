//! Neighbour discovery (RFC 4861): our addresses are answered for, and the router advertises itself.
//!
//! - *Neighbour solicitations* for our addresses, and for everybody's but the guest's if so configured, get an
//!   advertisement. One from the unspecified address is a probe
//!   for a duplicate (RFC 4862, section 5.4): it is answered to all nodes if the address is ours, and otherwise left
//!   alone, or the guest could not take any address.
//! - *Router solicitations* get an advertisement at once: the prefix (with the autonomous flag where SLAAC is possible),
//!   the MTU, our Ethernet address, DNS servers and search domains (RFC 8106). From then on it is repeated to all nodes, long
//!   before it is forgotten: a host does not ask again when a router's lifetime ends.
//! - What comes with a hop limit below 255 has passed a router and is dropped (RFC 4861, section 6.1).

use core::net::{IpAddr, Ipv6Addr};

use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, NdiscNeighborFlags, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags, RawHardwareAddress,
};

use super::{DNS_SERVERS_MAX, answers_for};
use crate::config::{Announced, MacAddr, Net6};
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{LeaseId, Offload, Op};
use crate::packet::build::{HOP_LIMIT, IpHeader};
use crate::packet::{Packet, protocol};
use crate::time::Instant;

/// The hop limit that shows that a message was sent on this link.
const HOP_LIMIT_ON_LINK: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
/// How long a guest takes us for a router without hearing of us (RFC 4861, section 6.2.1: at most 9,000 s).
const ROUTER_LIFETIME: Duration = Duration::from_secs(9_000);
/// How often it hears of us (RFC 4861, section 6.2.1: at most 1,800 s).
const ADVERTISEMENT_INTERVAL: core::time::Duration = core::time::Duration::from_secs(1_800);
/// Prefix and DNS lifetimes: infinite, there is nothing to renumber to.
const INFINITE: u32 = u32::MAX;
/// Option types (RFC 8106, sections 5.1 and 5.2).
const RDNSS: u8 = 25;
const DNSSL: u8 = 31;
/// Type, length in units of 8 bytes, reserved, lifetime.
const OPTION_HEADER_BYTES: usize = 8;
/// Bytes of both: an advertisement fits into the least MTU of IPv6.
const DNS_OPTIONS_BYTES_MAX: usize = 1_024;

/// Router and neighbour messages, and multicast listener reports, which nobody here needs.
pub(crate) fn is_ndp(packet: &Packet, bytes: &[u8]) -> bool {
    matches!(bytes.get(packet.payload_start as usize), Some(130..=137 | 143))
}

/// When the router advertises itself unasked.
#[derive(Default)]
pub(crate) struct Advertiser {
    /// None: nobody has asked yet.
    next: Option<Instant>,
}

impl Advertiser {
    /// Advertises the router if it is time to.
    pub(crate) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        let (Some(net), Some(next)) = (ctx.config.net6, self.next) else { return };
        if next <= ctx.now {
            self.next = Some(ctx.now + ADVERTISEMENT_INTERVAL);
            ctx.count(Counter::RouterAdvertisements);
            advertise_router(ctx, &net, ALL_NODES, ALL_NODES_MAC);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next
    }
}

pub(crate) fn on_message(
    advertiser: &mut Advertiser,
    ctx: &mut Context<'_>,
    packet: &Packet,
    lease: LeaseId,
    bytes: &mut [u8],
) {
    let is_listener_report = matches!(bytes[packet.payload_start as usize], 130..=132 | 143);
    if is_listener_report {
        return ctx.drop_frame(lease, Counter::ResolutionHeard);
    }
    let Some(net) = ctx.config.net6 else {
        return ctx.drop_frame(lease, Counter::DropFamily);
    };
    let outcome = on_discovery(advertiser, ctx, &net, packet, &bytes[packet.payload()]);
    ctx.count(outcome);
    ctx.op(Op::Release { lease });
}

/// Acts on a message; what came of it.
fn on_discovery(
    advertiser: &mut Advertiser,
    ctx: &mut Context<'_>,
    net: &Net6,
    packet: &Packet,
    message: &[u8],
) -> Counter {
    let (IpAddr::V6(from), true) = (packet.source, packet.hop_limit == HOP_LIMIT_ON_LINK) else {
        return Counter::DropMalformed;
    };
    let Ok(icmp) = Icmpv6Packet::new_checked(message) else { return Counter::DropMalformed };
    let Ok(ndisc) = NdiscRepr::parse(&icmp) else { return Counter::DropMalformed };
    if icmp.msg_code() != 0 {
        return Counter::DropMalformed;
    }
    match ndisc {
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            if target_addr.is_multicast() {
                return Counter::DropMalformed;
            }
            learn(ctx, from, lladdr);
            if !answers_for(ctx, from.into(), target_addr.into()) {
                return Counter::ResolutionHeard;
            }
            advertise_neighbor(ctx, packet, from, target_addr);
            Counter::NdpAnswered
        }
        NdiscRepr::NeighborAdvert { target_addr, lladdr, .. } => {
            if !ctx.rules.view.is_taken(IpAddr::V6(target_addr)) {
                learn(ctx, target_addr, lladdr);
            }
            Counter::ResolutionHeard
        }
        NdiscRepr::RouterSolicit { lladdr } => {
            learn(ctx, from, lladdr);
            if !ctx.config.services.router_advertisements {
                return Counter::ResolutionHeard;
            }
            advertiser.next = Some(ctx.now + ADVERTISEMENT_INTERVAL);
            // RFC 4861, section 6.2.6: to the one who asked, or to all where that has no address yet.
            if from.is_unspecified() {
                advertise_router(ctx, net, ALL_NODES, ALL_NODES_MAC);
            } else {
                advertise_router(ctx, net, from, packet.source_mac);
            }
            Counter::RouterAdvertisements
        }
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => Counter::ResolutionHeard,
    }
}

fn learn(ctx: &mut Context<'_>, ip: Ipv6Addr, mac: Option<RawHardwareAddress>) {
    if let Some(mac) = mac.and_then(|mac| mac.as_bytes().first_chunk::<6>().copied()) {
        ctx.learn(IpAddr::V6(ip), MacAddr(mac));
    }
}

fn advertise_neighbor(ctx: &mut Context<'_>, packet: &Packet, from: Ipv6Addr, target: Ipv6Addr) {
    let router = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    let advert = |flags| NdiscRepr::NeighborAdvert {
        flags,
        target_addr: target,
        lladdr: Some(EthernetAddress(ctx.config.host_mac.0).into()),
    };
    if from.is_unspecified() {
        // RFC 4861, section 7.2.4: to all nodes, and not solicited.
        let advert = advert(router);
        send(ctx, target, ALL_NODES, ALL_NODES_MAC, &advert, &[]);
    } else {
        let advert = advert(router | NdiscNeighborFlags::SOLICITED);
        send(ctx, target, from, packet.source_mac, &advert, &[]);
    }
}

fn advertise_router(ctx: &mut Context<'_>, net: &Net6, to: Ipv6Addr, mac: MacAddr) {
    let mut flags = NdiscPrefixInfoFlags::ON_LINK;
    // RFC 4862, section 5.5.3 d: prefix and interface identifier make 128 bits.
    if net.prefix == 64 {
        flags |= NdiscPrefixInfoFlags::ADDRCONF;
    }
    let mask = u128::MAX.checked_shl(128 - u32::from(net.prefix.min(128))).unwrap_or(0);
    let advert = NdiscRepr::RouterAdvert {
        hop_limit: HOP_LIMIT,
        // M and O: DHCPv6 has the address, and DNS (RFC 4861, section 4.2).
        flags: if ctx.config.services.dhcp6 {
            NdiscRouterFlags::MANAGED | NdiscRouterFlags::OTHER
        } else {
            NdiscRouterFlags::empty()
        },
        // RFC 4861, section 4.2: 0 is no default router.
        router_lifetime: if net.is_default_route { ROUTER_LIFETIME } else { Duration::ZERO },
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(ctx.config.host_mac.0).into()),
        mtu: ctx.config.announced.mtu.then_some(u32::from(ctx.config.mtu)),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: net.prefix,
            flags,
            valid_lifetime: Duration::from_secs(u64::from(INFINITE)),
            preferred_lifetime: Duration::from_secs(u64::from(INFINITE)),
            prefix: Ipv6Addr::from_bits(net.guest.to_bits() & mask),
        }),
    };
    // A router advertises from a link-local address (RFC 4861, section 4.2).
    let source = Some(net.gateway).filter(Ipv6Addr::is_unicast_link_local);
    let source = source.unwrap_or(ctx.config.host_mac.link_local());
    let mut options = [0; DNS_OPTIONS_BYTES_MAX];
    let len = write_dns_options(&mut options, &ctx.config.announced);
    send(ctx, source, to, mac, &advert, &options[..len]);
}

/// Writes DNS servers and search domains into zeroed bytes, as far as there is room; the bytes written.
fn write_dns_options(bytes: &mut [u8; DNS_OPTIONS_BYTES_MAX], announced: &Announced) -> usize {
    let servers = announced.dns.iter().filter_map(|dns| match dns {
        IpAddr::V6(ip) => Some(ip.octets()),
        IpAddr::V4(_) => None,
    });
    let mut values = 0;
    for server in servers.take(DNS_SERVERS_MAX) {
        let start = OPTION_HEADER_BYTES + values;
        bytes[start..start + server.len()].copy_from_slice(&server);
        values += server.len();
    }
    let servers_end = write_option_header(bytes, 0, RDNSS, values);
    let mut values = 0;
    for domain in &announced.search {
        let start = servers_end + OPTION_HEADER_BYTES + values;
        // One after the other; padding with zeros is allowed for.
        if let Some(room) =
            bytes[..DNS_OPTIONS_BYTES_MAX - 7].get_mut(start..start + domain.wire().len())
        {
            room.copy_from_slice(domain.wire());
            values += room.len();
        }
    }
    write_option_header(bytes, servers_end, DNSSL, values)
}

/// Completes an option whose values are written; none: there is no option. Where it ends.
fn write_option_header(bytes: &mut [u8], start: usize, kind: u8, values: usize) -> usize {
    if values == 0 {
        return start;
    }
    let len = (OPTION_HEADER_BYTES + values).next_multiple_of(8);
    bytes[start] = kind;
    bytes[start + 1] = (len / 8) as u8;
    bytes[start + 4..start + 8].copy_from_slice(&INFINITE.to_be_bytes());
    start + len
}

/// Sends a message, with further options behind it.
fn send(
    ctx: &mut Context<'_>,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    destination_mac: MacAddr,
    message: &NdiscRepr<'_>,
    options: &[u8],
) {
    let ip = IpHeader {
        source_mac: ctx.config.host_mac,
        destination_mac,
        source: source.into(),
        destination: destination.into(),
        protocol: protocol::ICMPV6,
        tos: 0,
        hop_limit: HOP_LIMIT_ON_LINK,
    };
    let option_at = message.buffer_len();
    let len = option_at + options.len();
    ctx.emit(ip.bytes() + len, Offload::default(), |frame| {
        ip.write(frame, len);
        let payload = &mut frame[ip.bytes()..];
        payload.fill(0);
        let mut icmp = Icmpv6Packet::new_unchecked(&mut payload[..option_at]);
        message.emit(&mut icmp);
        payload[option_at..].copy_from_slice(options);
        payload[2..4].fill(0);
        let sum = ip.pseudo_header(len).bytes(payload).checksum();
        payload[2..4].copy_from_slice(&sum.to_be_bytes());
    });
}
