//! What tunnels change in a plan.
//!
//! # The way out
//!
//! A tunnel with a peer whose `AllowedIPs` cover all of IPv4 or all of IPv6, and whose routes go into the main table, is
//! the way out. Then the link is not: it has no default route, and the engine refuses whatever it is not told to let
//! pass, whoever in the guest sets routes. That holds for both families if the tunnel covers only one: who hides
//! behind a tunnel does not expect to be seen beside it. A tunnel that is down, or whose peers are changed while it
//! runs, changes nothing of this. What has been asked for by name stays: split networks, the host's loopback
//! by the gateway, and forwards.
//!
//! # Names
//!
//! The `DNS` of the tunnels are the guest's resolvers, in the order of the files, and the host's are not. Who asks the DNS
//! address instead, as containers do, is answered by them too: we ask from within the namespace, so a query takes the way
//! that it would take if the guest had sent it. A guest with a way out and without any has none: its queries would leave where
//! it must not.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use usernet_core::rules::{DnsService, PlainPath, Prefix};
use usernet_driver::namespace::Route;
use usernet_wireguard::{Config, Table};

use super::{Tunnel, Wanted};
use crate::plan::{Link, Plan, Resolvers};

/// Where resolvers listen.
const DNS_PORT: u16 = 53;

/// The number of the main routing table (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;

const NO_DNS: &str = "no tunnel has DNS: names are not resolved, because the host's resolvers are not asked beside a \
    tunnel; write DNS = ADDRESS into its [Interface]";

impl Wanted {
    /// Puts it into a plan that has everything else. The error: what cannot be.
    pub(crate) fn apply(self, plan: &mut Plan) -> Result<(), String> {
        if self == Self::default() {
            return Ok(());
        }
        let Self { files, split, api, is_isolated } = self;
        let Link::Namespace(namespace) = &mut plan.link else {
            return Err("tunnels need a network namespace to be in".to_owned());
        };
        for file in files {
            let name = &file.tunnel.name;
            if *name == namespace.tap_name || plan.tunnels.iter().any(|other| other.name == *name) {
                return Err(format!(
                    "two devices would be called {name}: rename the tunnel's file"
                ));
            }
            plan.warnings.extend(file.warnings);
            plan.tunnels.push(file.tunnel);
        }
        plan.tunnel_api = api;
        let is_only_way = is_isolated || plan.tunnels.iter().any(Tunnel::is_way_out);
        if is_only_way {
            plan.net4.iter_mut().for_each(|net| net.is_default_route = false);
            plan.net6.iter_mut().for_each(|net| net.is_default_route = false);
            namespace.routes.retain(|route| route.to.1 != 0);
            plan.access.plain_path = PlainPath::Only(split.clone());
        }
        let gateway = |is_ipv4| match is_ipv4 {
            true => plan.net4.map(|net| net.gateway.into()),
            false => plan.net6.map(|net| net.gateway.into()),
        };
        for to in split {
            match gateway(to.address.is_ipv4()) {
                Some(gateway) => namespace.routes.push(route(to, gateway)),
                None => plan.warnings.push(format!(
                    "{}/{} is not reached: the link has no addresses of its family",
                    to.address, to.len
                )),
            }
        }
        plan.take_names(is_only_way);
        if plan.tunnels.iter().any(Tunnel::is_way_out) && plan.tunnel_dns().next().is_none() {
            plan.warnings.push(NO_DNS.to_owned());
        }
        Ok(())
    }
}

fn route(to: Prefix, gateway: IpAddr) -> Route {
    Route { to: (to.address, to.len), gateway: Some(gateway), metric: None, table: None }
}

impl Tunnel {
    /// Whether it is the way out of the namespace.
    pub(crate) fn is_way_out(&self) -> bool {
        let Config { interface, peers } = &self.config;
        let is_routed = match interface.table {
            Table::Auto => true,
            Table::Off => false,
            Table::Number(table) => table == MAIN_TABLE,
        };
        let networks = || peers.iter().flat_map(|peer| &peer.allowed_ips);
        is_routed && [true, false].into_iter().any(|is_ipv4| covers_all(networks(), is_ipv4))
    }
}

/// Whether these are all of a family: by one network, or by two halves, as some write it.
fn covers_all<'a>(networks: impl Iterator<Item = &'a IpNet>, is_ipv4: bool) -> bool {
    let of_family = networks.filter(|network| network.addr().is_ipv4() == is_ipv4);
    let mut halves = [false; 2];
    for network in of_family.filter(|network| network.prefix_len() <= 1) {
        let is_upper = match network.addr() {
            IpAddr::V4(ip) => ip.octets()[0] >= 0x80,
            IpAddr::V6(ip) => ip.octets()[0] >= 0x80,
        };
        halves[usize::from(is_upper)] = true;
        if network.prefix_len() == 0 {
            return true;
        }
    }
    halves == [true; 2]
}

impl Plan {
    /// The resolvers are those of the tunnels, and are asked in the namespace; without, and with no other way out, none.
    fn take_names(&mut self, is_only_way: bool) {
        let servers: Vec<IpAddr> = self.tunnel_dns().collect();
        if servers.is_empty() && !is_only_way {
            return;
        }
        // One that leads back to the DNS address would ask itself for ever.
        let (back, asked): (Vec<_>, Vec<_>) =
            servers.iter().partition(|server| self.access.resolvers_via.contains(server));
        let told = back
            .iter()
            .map(|server: &IpAddr| format!("DNS = {server} of a tunnel is ours: it is not asked"));
        self.warnings.extend(told);
        let asked = asked.into_iter().map(|server| SocketAddr::new(server, DNS_PORT)).collect();
        self.resolvers = Resolvers::These(asked);
        if self.access.dns == DnsService::Forwarded {
            self.access.dns = DnsService::ForwardedInside;
        }
        self.announced.dns = servers;
    }

    /// The resolvers that the tunnels name, in order.
    pub(crate) fn tunnel_dns(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.tunnels.iter().flat_map(|tunnel| tunnel.config.interface.dns.iter().copied())
    }
}

#[cfg(test)]
mod tests;
