//! From a command line and the host's network to the plan that the daemon runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use usernet_core::config::{Announced, DomainName, MacAddr, Protocols, Services, Timeouts};
use usernet_core::rules::{Access, HostAddress, HostLoopback, LoopbackClients, OwnNetwork};
use usernet_driver::namespace::{Survey, Target};
use usernet_driver::{BUSY_POLL, BackendChoice, Outbound, Threads};

use super::forwarding::Forwarding;
use super::guest::{self, Guest};
use super::options::{Families, Given, Options, OptionsError, Verbosity};
use crate::plan::{Announcement, Link, Log, LogFile, LogFormat, Namespace, Plan, Resolvers};
use crate::program::Program;
use crate::resolv::RESOLV_CONF;
use crate::sandbox::Policy;
use crate::wireguard;

const DNS_PORT: u16 = 53;

/// A plan, and what is to be told about it.
pub(super) struct Planned {
    pub(super) plan: Plan,
    /// What was chosen, for who wants to know.
    pub(super) told: Vec<String>,
}

/// What a command line means on this host. `target` is the namespace.
pub(super) fn plan(options: Options, target: Target) -> Result<Planned, OptionsError> {
    let survey = Survey::take().unwrap_or_default();
    let guest_mac = options.ns_mac.unwrap_or_else(random_mac);
    let guest = guest::guest(&options, &survey, guest_mac)?;
    let forwarding = Forwarding::read(&options)?;
    let access = access(&options, &guest, &survey);
    let mut told = told(&options, &guest, &access);
    told.extend(forwarding.told);
    let line = &options.line;
    let further = guest.further.iter().map(|(ip, _)| *ip).collect();
    let mut wanted = wireguard::settings(Program::Pasta).map_err(OptionsError::Conflict)?;
    wanted.files.extend(line.wireguard.iter().cloned());
    wanted.split.extend(&line.wireguard_split);
    wanted.is_isolated |= line.isolated;
    let mut plan = Plan {
        program: Program::Pasta,
        sandbox: Policy::Auto,
        link: Link::Namespace(namespace(&options, &guest, target)),
        mtu: Some(options.mtu),
        host_mac: options.mac,
        guest_mac,
        net4: guest.net4,
        net6: guest.net6,
        further,
        services: services(&options, &guest),
        announced: announced(&options),
        protocols: Protocols { tcp: !line.no_tcp, udp: !line.no_udp, icmp: !line.no_icmp },
        access,
        resolvers: resolvers(&options),
        forwards: forwarding.forwards,
        outward: forwarding.outward,
        automatic: forwarding.automatic,
        outbound: outbound(&options),
        timeouts: Timeouts::default(),
        backend: BackendChoice::Auto,
        busy_poll: BUSY_POLL,
        api: None,
        ready_fd: None,
        exit_fd: None,
        pid_file: line.pid_file.clone(),
        pcap: line.pcap.clone(),
        log: log(&options),
        log_file: line.log_file.clone().map(|path| LogFile { path, bytes_max: options.log_bytes }),
        announcement: Announcement::Nothing,
        lets_go_of_caller: false,
        run_as: options.run_as,
        outlives_namespace: line.no_netns_quit,
        tunnels: Vec::new(),
        tunnel_api: None,
        warnings: Vec::new(),
    };
    wanted.apply(&mut plan).map_err(OptionsError::Conflict)?;
    Ok(Planned { plan, told })
}

fn namespace(options: &Options, guest: &Guest, target: Target) -> Namespace {
    Namespace {
        target,
        userns: options.userns.clone(),
        tap_name: guest.ifname.clone(),
        further: guest.further.clone(),
        routes: guest.routes.clone(),
        configure: options.line.config_net,
        loopback_up: true,
        offload: true,
        workers: Threads::ONE,
        // RootlessKit makes the device and gives it its address itself.
        adopt: options.ns_mac.is_none(),
    }
}

fn services(options: &Options, guest: &Guest) -> Services {
    let line = &options.line;
    Services {
        dhcp4: !line.no_dhcp && guest.has_router4,
        dhcp6: !line.no_dhcpv6 && guest.has_global6,
        router_advertisements: !line.no_ra && !line.no_ndp && guest.has_global6,
        ndp: !line.no_ndp,
        answers_for_all: true,
    }
}

/// What DHCP and router advertisements tell.
fn announced(options: &Options) -> Announced {
    let line = &options.line;
    let host = match line.dhcp_dns || line.dhcp_search {
        true => of_host(),
        false => (Vec::new(), Vec::new()),
    };
    let dns = match (&options.dns, line.dhcp_dns) {
        (_, false) | (Given::None, true) => Vec::new(),
        (Given::These(these), true) => these.clone(),
        (Given::Default, true) => match options.dns_forward {
            Families { v4: None, v6: None } => host.0,
            ours => ours.iter().collect(),
        },
    };
    let search = match (&options.search, line.dhcp_search) {
        (_, false) | (Given::None, true) => Vec::new(),
        (Given::These(these), true) => these.clone(),
        (Given::Default, true) => host.1,
    };
    Announced {
        dns,
        search,
        host_name: options.hostname.clone(),
        fqdn: options.fqdn.clone(),
        mtu: options.is_mtu_told,
        ..Announced::default()
    }
}

/// The host's resolvers that others reach too, and its search domains.
fn of_host() -> (Vec<IpAddr>, Vec<DomainName>) {
    let text = std::fs::read(Path::new(RESOLV_CONF)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut resolvers = Vec::new();
    let mut domains = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let ip = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                resolvers.extend(ip.filter(|ip| !ip.is_loopback()));
            }
            Some("search" | "domain") => {
                domains = words.filter_map(|word| DomainName::parse(word).ok()).collect();
            }
            Some(_) | None => {}
        }
    }
    (resolvers, domains)
}

/// What of the host the namespace reaches.
fn access(options: &Options, guest: &Guest, survey: &Survey) -> Access {
    let line = &options.line;
    let gateway4 = guest.net4.filter(|n| n.is_default_route).map(|n| n.gateway);
    let gateway6 = guest.net6.filter(|n| n.is_default_route).map(|n| n.gateway);
    let gateways = Families { v4: gateway4, v6: gateway6 };
    let via = match (options.map_host_loopback.clone(), line.no_map_gw) {
        // Of a family that is not named the gateway stays what it is.
        (Given::These(these), no_map_gw) => Families {
            v4: these.v4.or(gateways.v4.filter(|_| !no_map_gw)),
            v6: these.v6.or(gateways.v6.filter(|_| !no_map_gw)),
        },
        (Given::Default, false) => gateways,
        (Given::Default, true) | (Given::None, _) => Families::default(),
    };
    let host_via = match options.map_guest_addr.clone() {
        Given::These(these) => these
            .iter()
            .filter_map(|via| Some(HostAddress { via, address: own_address(via, guest, survey)? }))
            .collect(),
        Given::Default | Given::None => Vec::new(),
    };
    Access {
        host_loopback: HostLoopback::All,
        loopback_via: via.iter().collect(),
        host_via,
        resolvers_via: options.dns_forward.iter().collect(),
        own_network: OwnNetwork::Reached,
        loopback_clients: match (line.no_splice, line.host_lo_to_ns_lo) {
            (true, _) => LoopbackClients::Link,
            (false, true) => LoopbackClients::GuestLoopback,
            (false, false) => LoopbackClients::GuestAddress,
        },
        ..Access::default()
    }
}

/// The host's own address of the family of `like`: the one that the namespace has too, else any that others reach.
fn own_address(like: IpAddr, guest: &Guest, survey: &Survey) -> Option<IpAddr> {
    let shared = match like {
        IpAddr::V4(_) => guest.net4.map(|n| n.guest.into()),
        IpAddr::V6(_) => guest.net6.map(|n| n.guest.into()),
    };
    let on_host = || {
        let interfaces = survey.interfaces.iter().filter(|i| i.is_up && !i.is_loopback);
        interfaces.flat_map(|interface| &interface.addresses).map(|(ip, _)| *ip)
    };
    let is_global = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local(),
    };
    let same_family = |ip: &IpAddr| ip.is_ipv4() == like.is_ipv4();
    let shared = shared.filter(|shared: &IpAddr| on_host().any(|ip| ip == *shared));
    shared.or_else(|| on_host().filter(same_family).find(is_global))
}

fn resolvers(options: &Options) -> Resolvers {
    let these: Vec<_> = options.dns_host.iter().map(|ip| SocketAddr::new(ip, DNS_PORT)).collect();
    if these.is_empty() { Resolvers::OfHost } else { Resolvers::These(these) }
}

fn outbound(options: &Options) -> Outbound {
    Outbound {
        v4: options.outbound.v4,
        v6: options.outbound.v6,
        interface4: options.line.outbound_if4.clone(),
        interface6: options.line.outbound_if6.clone(),
    }
}

fn log(options: &Options) -> Log {
    let level = match options.verbosity {
        Verbosity::Quiet | Verbosity::Usual => tracing::Level::WARN,
        Verbosity::Debug => tracing::Level::DEBUG,
        Verbosity::Trace => tracing::Level::TRACE,
    };
    Log { level, format: LogFormat::Text }
}

/// A locally administered Ethernet address, as the kernel would have made one.
fn random_mac() -> MacAddr {
    let mut bytes = [0; 6];
    // Without chance it is the same one every time: on a link of two that is no harm.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes[0] = bytes[0] & 0xfc | 0x02;
    MacAddr(bytes)
}

/// What is told about a plan, in the original's form.
fn told(options: &Options, guest: &Guest, access: &Access) -> Vec<String> {
    let mut told = guest.told.clone();
    let via = |is_v4| access.loopback_via.iter().find(move |ip| ip.is_ipv4() == is_v4);
    told.push(format!("Namespace interface: {}", guest.ifname));
    told.push(format!("MAC:\n    host: {}", mac_text(options.mac)));
    if let Some(gateway) = via(true) {
        told.push(format!("    NAT to host 127.0.0.1: {gateway}"));
    }
    if let Some(net4) = guest.net4 {
        let mask = u32::MAX.checked_shl(32 - u32::from(net4.prefix)).unwrap_or(0);
        told.push(format!("DHCP:\n    assign: {}\n    mask: {}", net4.guest, Ipv4Addr::from(mask)));
        if net4.is_default_route {
            told.push(format!("    router: {}", net4.gateway));
        }
    }
    if let Some(gateway) = via(false) {
        told.push(format!("    NAT to host ::1: {gateway}"));
    }
    if let Some(net6) = guest.net6 {
        told.push(format!("NDP/DHCPv6:\n    assign: {}", net6.guest));
        if net6.is_default_route {
            told.push(format!("    router: {}", net6.gateway));
        }
    }
    told
}

fn mac_text(mac: MacAddr) -> String {
    mac.0.map(|byte| format!("{byte:02x}")).join(":")
}
