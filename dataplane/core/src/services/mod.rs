//! What we answer ourselves on the link: address resolution, router advertisements, DHCP, echo.

pub(crate) mod arp;
pub(crate) mod dhcp4;
pub(crate) mod dhcp6;
pub(crate) mod echo;
pub(crate) mod ndp;

use core::net::{IpAddr, SocketAddr};

use crate::config::MacAddr;
use crate::context::Context;
use crate::op::Offload;
use crate::packet::build::{self, HOP_LIMIT, IpHeader, UDP_BYTES};
use crate::packet::offload::complete_checksum;
use crate::packet::protocol;

/// DNS servers that the guest is told of, per family and message; resolvers look at three.
const DNS_SERVERS_MAX: usize = 8;

/// Whether we are who has `ip` on the link, to `asker` (unspecified: one who probes whether it can take `ip`).
fn answers_for(ctx: &Context<'_>, asker: IpAddr, ip: IpAddr) -> bool {
    if ctx.rules.view.is_taken(ip) {
        return true;
    }
    // The guest may take any address that is not ours.
    let is_somebodys = asker != ip && !asker.is_unspecified() && !ip.is_unspecified();
    ctx.config.services.answers_for_all && is_somebodys && !ctx.config.is_guests(ip)
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
