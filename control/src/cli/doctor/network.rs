//! What the host's network offers: ping sockets, low ports, resolvers, routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{getegid, geteuid};

use super::super::resolver;
use super::super::userns::Sysctls;
use super::{Check, Verdict};

/// Makes a ping socket.
pub(super) fn ping(sysctls: &Sysctls) -> Check {
    const NAME: &str = "ping sockets";
    let made = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::Icmp),
    );
    let range = sysctls.text("net.ipv4.ping_group_range").unwrap_or_default();
    match made {
        Ok(_) => Check::ok(NAME, "one was made"),
        Err(errno) => Check::bad(
            NAME,
            Verdict::Degraded,
            format!(
                "{}; net.ipv4.ping_group_range is {}, our group {}",
                io::Error::from(errno),
                range.split_whitespace().collect::<Vec<_>>().join(" "),
                getegid()
            ),
            "ping from a namespace reaches the gateway only",
            "sudo sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"",
        ),
    }
}

/// Which ports an ordinary user can forward.
pub(super) fn low_ports(sysctls: &Sysctls) -> Check {
    const NAME: &str = "low ports";
    let start = sysctls.number("net.ipv4.ip_unprivileged_port_start").unwrap_or(1024);
    if geteuid().is_root() || start <= 80 {
        return Check::ok(
            NAME,
            format!("ports from {} can be forwarded", if start > 80 { 1 } else { start.max(1) }),
        );
    }
    Check::bad(
        NAME,
        Verdict::Degraded,
        format!("net.ipv4.ip_unprivileged_port_start is {start}"),
        &format!("host ports below {start} cannot be forwarded (inside, all ports can be used)"),
        "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80",
    )
}

/// Whom DNS is asked.
pub(super) fn resolvers() -> Check {
    const NAME: &str = "resolv.conf";
    let servers = resolver::servers(&resolver::host_text());
    if servers.is_empty() {
        return Check::bad(
            NAME,
            Verdict::Degraded,
            "/etc/resolv.conf cannot be read or has no nameserver",
            "names are not resolved in a namespace, unless --dns is given",
            "echo 'nameserver 9.9.9.9' | sudo tee /etc/resolv.conf",
        );
    }
    let servers: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    Check::ok(NAME, format!("asks {}", servers.join(", ")))
}

/// Whether the host itself has a way out over IPv4.
pub(super) fn ipv4_route() -> Check {
    // TEST-NET-1 (RFC 5737): nobody is there, the default route leads there.
    route("IPv4 route", Ipv4Addr::new(192, 0, 2, 1).into(), "-4")
}

/// The same over IPv6.
pub(super) fn ipv6_route() -> Check {
    // The documentation prefix (RFC 3849).
    route("IPv6 route", Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), "-6")
}

/// Asks the kernel for a route: connecting a datagram socket does, and sends nothing.
fn route(name: &'static str, remote: IpAddr, family: &str) -> Check {
    let any: IpAddr = match remote {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((remote, 9))?;
        socket.local_addr()
    });
    match from {
        Ok(from) => Check::ok(name, format!("leaves from {}", from.ip())),
        Err(error) => Check::bad(
            name,
            Verdict::Degraded,
            error.to_string(),
            "a namespace reaches this host only, in this family",
            format!("see what there is: ip {family} route; ip {family} address"),
        ),
    }
}
