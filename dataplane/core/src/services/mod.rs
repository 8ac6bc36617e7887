//! What we answer ourselves on the link: address resolution, router advertisements, DHCP, echo.

pub(crate) mod arp;
pub(crate) mod dhcp4;
pub(crate) mod dhcp6;
pub(crate) mod echo;
pub(crate) mod ndp;

use core::net::{IpAddr, SocketAddr};

use crate::config::{Config, MacAddr};
use crate::context::Context;
use crate::op::Offload;
use crate::packet::build::{self, HOP_LIMIT, IpHeader, UDP_BYTES};
use crate::packet::offload::complete_checksum;
use crate::packet::protocol;

/// Whether `ip` is one of ours on the link: gateway, DNS, link-local.
pub(crate) fn is_own_address(config: &Config, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => config.net4.is_some_and(|n| ip == n.gateway || Some(ip) == n.dns),
        IpAddr::V6(ip) => config.net6.is_some_and(|n| {
            ip == n.gateway || Some(ip) == n.dns || ip == config.host_mac.link_local()
        }),
    }
}

/// Where a UDP datagram of one of our services goes.
struct Reply {
    to_mac: MacAddr,
    from: SocketAddr,
    to: SocketAddr,
}

impl Reply {
    /// Sends a small datagram. Its checksum is complete: DHCP clients read it from packet sockets, and some of them
    /// verify it without asking whether it is partial.
    fn send(&self, ctx: &mut Context<'_>, payload: &[u8]) {
        let ip = IpHeader {
            source_mac: ctx.config.host_mac,
            destination_mac: self.to_mac,
            source: self.from.ip(),
            destination: self.to.ip(),
            protocol: protocol::UDP,
            tos: 0,
            hop_limit: HOP_LIMIT,
        };
        let headers = ip.bytes() + UDP_BYTES;
        let (from, to) = (self.from.port(), self.to.port());
        ctx.emit(headers + payload.len(), Offload::default(), |frame| {
            let partial = build::udp(frame, ip, from, to, payload.len(), 0, u16::MAX);
            frame[headers..].copy_from_slice(payload);
            complete_checksum(frame, &partial);
        });
    }
}

#[cfg(test)]
mod tests;
