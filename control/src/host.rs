//! What this host lacks, found out at the start: each costs the guest something and ends nothing.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use usernet_core::Config;
use usernet_core::rules::{OwnNetwork, PlainPath, Prefix};

use crate::networks;
use crate::plan::Plan;
use crate::program::Setting;

/// One line for each thing that is missing: what, what it costs, what mends it.
pub(crate) fn shortcomings(plan: &Plan, config: &Config) -> Vec<String> {
    let mut told = Vec::new();
    let needs_route = plan.access.plain_path == PlainPath::Everything;
    if needs_route && config.net4.is_some() && !has_route("192.0.2.1:9") {
        told.push(
            "this host has no IPv4 route to the internet: the guest has none either".to_owned(),
        );
    }
    if needs_route && config.net6.is_some() && !has_route("[2001:db8::1]:9") {
        told.push(
            "this host has no IPv6 route to the internet: the guest has none either".to_owned(),
        );
    }
    if !may_ping() {
        told.push(
            "ping sockets are not permitted: ping from the guest will not be answered; as root: \
             sysctl -w net.ipv4.ping_group_range=\"0 2147483647\""
                .to_owned(),
        );
    }
    told.extend(hidden(plan));
    told
}

/// Networks of this host that the guest cannot reach because they are its own.
fn hidden(plan: &Plan) -> Vec<String> {
    match plan.access.own_network {
        OwnNetwork::Unreachable => {}
        OwnNetwork::Reached => return Vec::new(),
    }
    let own = networks::host_networks();
    let net4 = plan.net4.map(|n| Prefix { address: n.gateway.into(), len: n.prefix });
    let net6 = plan.net6.map(|n| Prefix { address: n.gateway.into(), len: n.prefix });
    let mut told = Vec::new();
    for (guest, setting) in [(net4, Setting::Network4), (net6, Setting::Network6)] {
        let Some(guest) = guest else { continue };
        let option = plan.program.option(setting);
        let remedy = option.map(|option| format!(": choose another with {option}"));
        for shadowed in networks::shadowed(guest, &own) {
            told.push(format!(
                "the guest's network hides {}/{} of this host from the guest{}",
                shadowed.address,
                shadowed.len,
                remedy.as_deref().unwrap_or_default()
            ));
        }
    }
    told
}

/// Whether there is a way to the address. Connecting a UDP socket looks the route up and sends nothing; the
/// addresses are for documentation (RFC 5737, RFC 3849), so that only a default route leads there.
fn has_route(to: &str) -> bool {
    let Ok(to) = to.parse::<SocketAddr>() else { return false };
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    UdpSocket::bind(any).and_then(|socket| socket.connect(to)).is_ok()
}

/// Whether we get ping sockets: `net.ipv4.ping_group_range` (`icmp(7)`) counts for IPv6 too.
fn may_ping() -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let kind = SockType::Datagram;
    socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).is_ok()
}

/// Raises the limit of open files as far as it goes without privileges: every flow needs one. The higher limit is
/// for this process, which does not use `select`.
pub(crate) fn raise_file_limit() -> io::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}
