//! What the namespace gets to look like: the host's own addresses and routes, or what the command line says instead.
//!
//! For each family a *template* is chosen, an interface of the host: the one that is named, else that of the default
//! route, else one with any route. The namespace gets its addresses, its routes and its name. A family without a template
//! is left out; if there is none at all, the namespace gets link-local addresses (local mode), so that it comes up
//! on a host without any network, and reaches the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use usernet_core::config::{MacAddr, Net4, Net6};
use usernet_driver::namespace::{Interface, Route, Survey};

use super::options::{Options, OptionsError};

/// The interface's name where there is no template.
const IFNAME: &str = "tap0";

/// Local mode.
const LOCAL_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
const LOCAL_GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);
const LOCAL_PREFIX4: u8 = 16;
const LOCAL_GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const PREFIX6: u8 = 64;

/// What a namespace looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    /// The interface's name.
    pub(super) ifname: String,
    pub(super) net4: Option<Net4>,
    pub(super) net6: Option<Net6>,
    /// Addresses beside those.
    pub(super) further: Vec<(IpAddr, u8)>,
    /// Routes beside the default ones.
    pub(super) routes: Vec<Route>,
    /// Whether IPv4 has a router that can be told by DHCP.
    pub(super) has_router4: bool,
    /// Whether IPv6 has an address that can be told.
    pub(super) has_global6: bool,
    /// What was chosen, for who wants to know.
    pub(super) told: Vec<String>,
}

/// What one family gets.
struct Family {
    addresses: Vec<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
    routes: Vec<Route>,
}

/// Decides. `guest_mac` is the interface's Ethernet address.
pub(super) fn guest(
    options: &Options,
    survey: &Survey,
    guest_mac: MacAddr,
) -> Result<Guest, OptionsError> {
    let line = &options.line;
    let named = |own: &Option<String>| line.interface.clone().or_else(|| own.clone());
    let (if4, if6) = (named(&line.outbound_if4), named(&line.outbound_if6));
    let mut told = Vec::new();
    let template4 = template(survey, true, if4.as_deref(), options.has_v4(), &mut told)?;
    let template6 = template(survey, false, if6.as_deref(), options.has_v6(), &mut told)?;
    let is_local = template4.is_none() && template6.is_none();
    if is_local {
        told.push("No external interface as template, switch to local mode".to_owned());
    }
    let wants4 = is_local || template4.is_some() || options.address.v4.is_some();
    let wants6 = is_local || template6.is_some() || options.address.v6.is_some();
    let family4 = (options.has_v4() && wants4).then(|| family4(options, survey, template4));
    let family6 =
        (options.has_v6() && wants6).then(|| family6(options, survey, template6, guest_mac));
    let name = |template: Option<&Interface>| template.map(|interface| interface.name.clone());
    let ifname = line.ns_ifname.clone().or(name(template4)).or(name(template6));
    let mut guest = Guest {
        ifname: ifname.unwrap_or_else(|| IFNAME.to_owned()),
        net4: family4.as_ref().and_then(net4),
        net6: family6.as_ref().and_then(net6),
        further: Vec::new(),
        routes: Vec::new(),
        has_router4: family4.as_ref().is_some_and(|family| family.gateway.is_some()),
        has_global6: family6
            .as_ref()
            .is_some_and(|family| family.addresses.iter().any(|(ip, _)| !is_link_local(*ip))),
        told,
    };
    for family in family4.into_iter().chain(family6) {
        guest.further.extend(family.addresses.into_iter().skip(1));
        guest.routes.extend(family.routes);
    }
    Ok(guest)
}

/// The interface whose addresses and routes a family gets; none: there is none, or the family is not wanted.
fn template<'a>(
    survey: &'a Survey,
    is_v4: bool,
    name: Option<&str>,
    is_wanted: bool,
    told: &mut Vec<String>,
) -> Result<Option<&'a Interface>, OptionsError> {
    if !is_wanted {
        return Ok(None);
    }
    let has_address = |interface: &&Interface| addresses(interface, is_v4).next().is_some();
    let family = if is_v4 { "IPv4" } else { "IPv6" };
    if let Some(name) = name {
        let Some(interface) = survey.named(name) else {
            return Err(OptionsError::Conflict(format!(
                "Invalid interface name {name}: No such device; `ip link` lists those of this host"
            )));
        };
        return Ok(Some(interface).filter(has_address));
    }
    let of_family =
        |route: &&usernet_driver::namespace::HostRoute| route.route.to.0.is_ipv4() == is_v4;
    let routes: Vec<_> = survey.routes.iter().filter(of_family).collect();
    let interface = |index: u32| {
        let mut interfaces = survey.interfaces.iter();
        interfaces.find(|i| i.index == index && i.is_up && !i.is_loopback).filter(has_address)
    };
    let mut defaults: Vec<_> = routes.iter().filter(|route| route.route.is_default()).collect();
    defaults.sort_by_key(|route| route.route.metric.unwrap_or(0));
    let mut candidates = defaults.into_iter().chain(&routes);
    let found = candidates.find_map(|route| interface(route.interface));
    if found.is_none() {
        told.push(format!("No interfaces with usable {family} routes"));
    }
    Ok(found)
}

/// The addresses of an interface that others can reach it by.
fn addresses(interface: &Interface, is_v4: bool) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
    let of_family = move |(ip, _): &&(IpAddr, u8)| ip.is_ipv4() == is_v4;
    let is_told = |(ip, _): &&(IpAddr, u8)| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    interface.addresses.iter().filter(of_family).filter(is_told).copied()
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn family4(options: &Options, survey: &Survey, template: Option<&Interface>) -> Family {
    let given = options.address.v4.map(|ip| {
        let prefix = options.prefix4.or_else(|| prefix_on_host(survey, ip.into()));
        (IpAddr::V4(ip), prefix.unwrap_or_else(|| classful(ip)))
    });
    let own = |template: &Interface| {
        let mut own: Vec<_> = addresses(template, true).collect();
        if let (Some(first), Some(prefix)) = (own.first_mut(), options.prefix4) {
            first.1 = prefix;
        }
        own
    };
    let local = (LOCAL_ADDRESS.into(), options.prefix4.unwrap_or(LOCAL_PREFIX4));
    let addresses = match (given, template) {
        (Some(given), _) => vec![given],
        (None, Some(template)) => own(template),
        (None, None) => vec![local],
    };
    let local_gateway = template.is_none().then_some(LOCAL_GATEWAY4.into());
    let gateway = options.gateway.v4.map(IpAddr::V4);
    family(
        options,
        survey,
        template,
        Family { addresses, gateway, routes: Vec::new() },
        local_gateway,
    )
}

fn family6(
    options: &Options,
    survey: &Survey,
    template: Option<&Interface>,
    guest_mac: MacAddr,
) -> Family {
    let prefix = |ip: Ipv6Addr| {
        let prefix = options.prefix6.or_else(|| prefix_on_host(survey, ip.into()));
        prefix.unwrap_or(PREFIX6)
    };
    let addresses = match (options.address.v6, template) {
        (Some(given), _) => vec![(IpAddr::V6(given), prefix(given))],
        (None, Some(template)) => addresses(template, false).collect(),
        (None, None) => vec![(guest_mac.link_local().into(), PREFIX6)],
    };
    let local_gateway = template.is_none().then_some(LOCAL_GATEWAY6.into());
    let gateway = options.gateway.v6.map(IpAddr::V6);
    family(
        options,
        survey,
        template,
        Family { addresses, gateway, routes: Vec::new() },
        local_gateway,
    )
}

/// Adds what the template's routes say.
fn family(
    options: &Options,
    survey: &Survey,
    template: Option<&Interface>,
    mut family: Family,
    local_gateway: Option<IpAddr>,
) -> Family {
    let is_v4 = family.addresses.first().is_some_and(|(ip, _)| ip.is_ipv4());
    let is_router_given = family.gateway.is_some();
    let own: Vec<Route> = survey
        .routes
        .iter()
        .filter(|route| template.is_some_and(|template| template.index == route.interface))
        .map(|route| route.route)
        .filter(|route| route.to.0.is_ipv4() == is_v4 && !is_link_local(route.to.0))
        .collect();
    let mut defaults: Vec<&Route> = own.iter().filter(|route| route.is_default()).collect();
    defaults.sort_by_key(|route| route.metric.unwrap_or(0));
    let of_template = defaults.iter().find_map(|route| route.gateway);
    family.gateway = family.gateway.or(of_template).or(local_gateway);
    if options.line.no_copy_addrs {
        family.addresses.truncate(1);
    }
    if is_router_given || options.line.no_copy_routes {
        return family;
    }
    let is_of_address = |route: &Route| {
        route.gateway.is_none()
            && family.addresses.iter().any(|&(ip, prefix)| network(ip, prefix) == route.to)
    };
    // A default route without a router is one over the link.
    let is_kept = |route: &Route| !route.is_default() || of_template.is_none();
    family.routes = own.iter().filter(|r| is_kept(r) && !is_of_address(r)).copied().collect();
    if of_template.is_none() && family.routes.iter().any(Route::is_default) {
        family.gateway = None;
    }
    family
}

/// The network that an address is in.
fn network(ip: IpAddr, prefix: u8) -> (IpAddr, u8) {
    let network = match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            IpAddr::from((ip.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            IpAddr::from((ip.to_bits() & mask).to_be_bytes())
        }
    };
    (network, prefix)
}

/// The prefix length that the host has this address with.
fn prefix_on_host(survey: &Survey, ip: IpAddr) -> Option<u8> {
    let mut all = survey.interfaces.iter().flat_map(|interface| &interface.addresses);
    all.find(|(own, _)| *own == ip).map(|(_, prefix)| *prefix)
}

/// The class of an address (RFC 4632 has buried it): what is left where nothing else is known.
fn classful(ip: Ipv4Addr) -> u8 {
    match ip.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        192..=255 => 24,
    }
}

fn net4(family: &Family) -> Option<Net4> {
    let &(IpAddr::V4(guest), prefix) = family.addresses.first()? else { return None };
    let gateway = match family.gateway {
        Some(IpAddr::V4(gateway)) => Some(gateway),
        Some(IpAddr::V6(_)) | None => None,
    };
    let is_default_route = gateway.is_some();
    Some(Net4 {
        guest,
        prefix,
        gateway: gateway.unwrap_or(LOCAL_GATEWAY4),
        is_default_route,
        dns: None,
    })
}

fn net6(family: &Family) -> Option<Net6> {
    let &(IpAddr::V6(guest), prefix) = family.addresses.first()? else { return None };
    let gateway = match family.gateway {
        Some(IpAddr::V6(gateway)) => Some(gateway),
        Some(IpAddr::V4(_)) | None => None,
    };
    let is_default_route = gateway.is_some();
    Some(Net6 {
        guest,
        prefix,
        gateway: gateway.unwrap_or(LOCAL_GATEWAY6),
        is_default_route,
        dns: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::grammar::Grammar;
    use super::*;
    use std::ffi::OsString;
    use usernet_driver::namespace::HostRoute;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn to(text: &str) -> (IpAddr, u8) {
        let (ip, prefix) = text.split_once('/').unwrap();
        (ip.parse().unwrap(), prefix.parse().unwrap())
    }

    fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|text| to(text)).collect();
        Interface { index, name: name.into(), is_up: true, is_loopback: index == 1, addresses }
    }

    fn route(interface: u32, network: &str, gateway: Option<&str>) -> HostRoute {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        HostRoute {
            interface,
            route: Route { to: to(network), gateway, metric: None, table: None },
        }
    }

    /// A host with two interfaces, the second of which leads out.
    fn host() -> Survey {
        Survey {
            interfaces: vec![
                interface(1, "lo", &["127.0.0.1/8", "::1/128"]),
                interface(2, "br0", &["10.1.0.1/16"]),
                interface(
                    3,
                    "eth0",
                    &["192.0.2.10/24", "198.51.100.7/28", "2001:db8::10/64", "fe80::3/64"],
                ),
            ],
            routes: vec![
                route(2, "10.1.0.0/16", None),
                route(3, "0.0.0.0/0", Some("192.0.2.1")),
                route(3, "192.0.2.0/24", None),
                route(3, "198.51.100.0/28", None),
                route(3, "10.9.0.0/16", None),
                route(3, "203.0.113.0/24", Some("192.0.2.3")),
                route(3, "::/0", Some("fe80::1")),
                route(3, "2001:db8::/64", None),
                route(3, "fe80::/64", None),
            ],
        }
    }

    fn guest_of(line: &str, survey: &Survey) -> Result<Guest, String> {
        let args = line.split_whitespace().map(OsString::from);
        let options = Options::read(Grammar::read(args).unwrap()).map_err(|e| e.to_string())?;
        guest(&options, survey, MAC).map_err(|error| error.to_string())
    }

    fn shown(guest: &Guest) -> String {
        let net4 =
            guest.net4.map(|n| (n.guest.into(), n.prefix, n.gateway.into(), n.is_default_route));
        let net6 =
            guest.net6.map(|n| (n.guest.into(), n.prefix, n.gateway.into(), n.is_default_route));
        let nets = [net4, net6].into_iter().flatten().map(
            |(ip, prefix, gateway, is_default): (IpAddr, _, IpAddr, _)| {
                format!(
                    "{ip}/{prefix} via {}",
                    if is_default { gateway.to_string() } else { "none".into() }
                )
            },
        );
        let further = guest.further.iter().map(|(ip, prefix)| format!("{ip}/{prefix}"));
        let routes = guest.routes.iter().map(|r| {
            let via = r.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            format!("to {}/{}{via}", r.to.0, r.to.1)
        });
        let all: Vec<_> = nets.chain(further).chain(routes).collect();
        format!("{}: {}", guest.ifname, all.join(", "))
    }

    #[test]
    fn the_namespace_looks_like_the_host() {
        assert_eq!(
            shown(&guest_of("", &host()).unwrap()),
            "eth0: 192.0.2.10/24 via 192.0.2.1, 2001:db8::10/64 via fe80::1, 198.51.100.7/28, to 10.9.0.0/16, \
             to 203.0.113.0/24 via 192.0.2.3"
        );
    }

    #[test]
    fn what_is_given_takes_the_place_of_what_is_copied() {
        for (line, looks) in [
            ("-4 --no-copy-routes --no-copy-addrs", "eth0: 192.0.2.10/24 via 192.0.2.1"),
            (
                "-4 -I tap7 -a 172.16.5.5",
                "tap7: 172.16.5.5/16 via 192.0.2.1, to 192.0.2.0/24, to 198.51.100.0/28, to 10.9.0.0/16, \
                 to 203.0.113.0/24 via 192.0.2.3",
            ),
            ("-4 -a 198.51.100.7 -g 198.51.100.1", "eth0: 198.51.100.7/28 via 198.51.100.1"),
            ("-4 -a 10.0.2.100 -n 24 -g 10.0.2.2", "eth0: 10.0.2.100/24 via 10.0.2.2"),
            ("-6 -a fd00::64 -g fd00::2", "eth0: fd00::64/64 via fd00::2"),
            ("-4 -g 192.0.2.9", "eth0: 192.0.2.10/24 via 192.0.2.9, 198.51.100.7/28"),
            ("-i br0", "br0: 10.1.0.1/16 via none"),
            ("-4 --outbound-if4 br0", "br0: 10.1.0.1/16 via none"),
            ("-6", "eth0: 2001:db8::10/64 via fe80::1"),
        ] {
            assert_eq!(shown(&guest_of(line, &host()).unwrap()), looks, "{line}");
        }
        assert!(guest_of("-i nope", &host()).unwrap_err().contains("No such device"));
    }

    #[test]
    fn a_host_without_any_route_gets_link_local_addresses() {
        let survey =
            Survey { interfaces: vec![interface(1, "lo", &["127.0.0.1/8"])], routes: vec![] };
        let guest = guest_of("", &survey).unwrap();
        assert_eq!(
            shown(&guest),
            "tap0: 169.254.2.1/16 via 169.254.2.2, fe80::ff:fe00:1/64 via fe80::1"
        );
        assert!(!guest.has_global6 && guest.has_router4);
        assert_eq!(
            shown(&guest_of("-4 -a 10.0.2.100 -n 24 -g 10.0.2.2 -I tap0", &survey).unwrap()),
            "tap0: 10.0.2.100/24 via 10.0.2.2"
        );
    }

    #[test]
    fn a_family_without_an_interface_is_left_out() {
        let mut survey = host();
        survey.routes.retain(|route| route.route.to.0.is_ipv4());
        let guest = guest_of("", &survey).unwrap();
        assert_eq!(guest.net6, None);
        assert_eq!(guest.told, ["No interfaces with usable IPv6 routes"]);
    }

    #[test]
    fn a_default_route_over_the_link_stays_one() {
        let survey = Survey {
            interfaces: vec![interface(5, "wg0", &["10.8.0.2/32"])],
            routes: vec![route(5, "0.0.0.0/0", None)],
        };
        let guest = guest_of("-4", &survey).unwrap();
        assert_eq!(shown(&guest), "wg0: 10.8.0.2/32 via none, to 0.0.0.0/0");
        assert!(!guest.has_router4);
    }
}
