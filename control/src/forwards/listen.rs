//! Opening one listening socket, on the host or in the namespace.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use nix::errno::Errno;
use usernet_driver::namespace::{self, NamespaceListeners};

use super::{Direction, ForwardError, ListenAt, holder};

/// Opens a socket that listens there: non-blocking, closed on exec, one family only.
pub(super) fn open(
    at: &ListenAt,
    namespace: Option<&mut NamespaceListeners>,
) -> Result<OwnedFd, ForwardError> {
    let interface = at.interface.as_deref();
    match (at.direction, namespace) {
        (Direction::Inward, _) => namespace::listen::open(at.protocol, at.address, interface)
            .map_err(|errno| explain(at, errno)),
        (Direction::Outward, None) => Err(ForwardError::NoNamespace { at: at.to_string() }),
        (Direction::Outward, Some(namespace)) => namespace
            .open(at.protocol, at.address, interface)
            .map_err(|error| explain_in_namespace(at, &error)),
    }
}

/// Of the namespace we know what its helper was told, and cannot look further.
fn explain_in_namespace(at: &ListenAt, error: &io::Error) -> ForwardError {
    // The helper is gone, or does not answer.
    let errno = error.raw_os_error().map_or(Errno::EPIPE, Errno::from_raw);
    match errno {
        Errno::EADDRINUSE => {
            let holder = " in the namespace".to_owned();
            ForwardError::PortInUse { port: at.address.port(), protocol: at.protocol, holder }
        }
        // Without IPv6 there is no `::1`.
        Errno::EADDRNOTAVAIL if at.address.ip() == std::net::Ipv6Addr::LOCALHOST => no_ipv6(at),
        Errno::EACCES | Errno::EPIPE => ForwardError::Listen { at: at.to_string(), source: errno },
        other => explain(at, other),
    }
}

fn no_ipv6(at: &ListenAt) -> ForwardError {
    ForwardError::NoIpv6 { at: at.to_string(), place: at.direction.place() }
}

fn explain(at: &ListenAt, errno: Errno) -> ForwardError {
    let (port, protocol) = (at.address.port(), at.protocol);
    let first = unprivileged_port_start();
    match errno {
        Errno::EADDRINUSE => {
            let holder = holder::of(port, protocol).map(|h| format!(" by {h}"));
            ForwardError::PortInUse { port, protocol, holder: holder.unwrap_or_default() }
        }
        Errno::EACCES if port < first => ForwardError::Privileged { port, protocol, first },
        Errno::EADDRNOTAVAIL => ForwardError::AddressNotHere {
            at: at.to_string(),
            place: at.direction.place(),
            source: errno,
        },
        Errno::ENODEV => ForwardError::NoInterface(at.interface.clone().unwrap_or_default()),
        Errno::EAFNOSUPPORT if at.address.is_ipv6() => no_ipv6(at),
        Errno::EMFILE | Errno::ENFILE => ForwardError::TooManyFiles { at: at.to_string() },
        _ => ForwardError::Listen { at: at.to_string(), source: errno },
    }
}

/// The first port that needs no privilege (`ip(7)`, `ip_unprivileged_port_start`), as it was when this was asked first:
/// the answer is for a message, and later there are no files.
pub(super) fn unprivileged_port_start() -> u16 {
    static FIRST: OnceLock<u16> = OnceLock::new();
    *FIRST.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use usernet_core::rules::Protocol;

    #[test]
    fn a_refused_low_port_names_the_sysctl_and_the_command() {
        let address = "0.0.0.0:80".parse().unwrap();
        let (direction, protocol) = (Direction::Inward, Protocol::Tcp);
        let at = ListenAt { direction, protocol, address, interface: None };
        if unprivileged_port_start() <= 80 {
            return;
        }
        let told = explain(&at, Errno::EACCES).to_string();
        assert!(told.contains("sysctl -w net.ipv4.ip_unprivileged_port_start=80"), "{told}");
        assert!(told.starts_with("port 80/tcp is reserved for root"));
    }
}
