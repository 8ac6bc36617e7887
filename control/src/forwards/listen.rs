//! Opening one listening socket.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{BindToDevice, Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
};
use usernet_core::rules::Protocol;

use super::{ForwardError, ListenAt, holder};

/// Opens a socket that listens there: non-blocking, closed on exec, one family only.
pub(super) fn open(at: &ListenAt) -> Result<OwnedFd, ForwardError> {
    try_open(at).map_err(|errno| explain(at, errno))
}

fn try_open(at: &ListenAt) -> Result<OwnedFd, Errno> {
    let family = match at.address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = match at.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    if at.address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    if at.protocol == Protocol::Tcp {
        // Past connections in TIME-WAIT do not hold the port. For UDP the option would let two programs have
        // one port.
        setsockopt(&socket, ReuseAddr, &true)?;
    }
    if let Some(interface) = &at.interface {
        setsockopt(&socket, BindToDevice, &interface.into())?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(scoped(at)))?;
    if at.protocol == Protocol::Tcp {
        // The kernel cuts it to net.core.somaxconn, 4096 by default.
        listen(&socket, Backlog::MAXCONN)?;
    }
    Ok(socket)
}

/// A link-local address means nothing without its interface.
fn scoped(at: &ListenAt) -> SocketAddr {
    let mut address = at.address;
    if let SocketAddr::V6(v6) = &mut address
        && v6.ip().is_unicast_link_local()
        && let Some(interface) = &at.interface
        && let Ok(index) = nix::net::if_::if_nametoindex(interface.as_str())
    {
        v6.set_scope_id(index);
    }
    address
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
        Errno::EADDRNOTAVAIL => ForwardError::AddressNotHere { at: at.to_string(), source: errno },
        Errno::ENODEV => ForwardError::NoInterface(at.interface.clone().unwrap_or_default()),
        Errno::EAFNOSUPPORT if at.address.is_ipv6() => ForwardError::NoIpv6(at.to_string()),
        Errno::EMFILE | Errno::ENFILE => ForwardError::TooManyFiles { at: at.to_string() },
        _ => ForwardError::Listen { at: at.to_string(), source: errno },
    }
}

/// The first port that needs no privilege (`ip(7)`, `ip_unprivileged_port_start`).
fn unprivileged_port_start() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_low_port_names_the_sysctl_and_the_command() {
        let address = "0.0.0.0:80".parse().unwrap();
        let at = ListenAt { protocol: Protocol::Tcp, address, interface: None };
        if unprivileged_port_start() <= 80 {
            return;
        }
        let told = explain(&at, Errno::EACCES).to_string();
        assert!(told.contains("sysctl -w net.ipv4.ip_unprivileged_port_start=80"), "{told}");
        assert!(told.starts_with("port 80/tcp is reserved for root"));
    }
}
