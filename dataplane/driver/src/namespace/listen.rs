//! Opening a socket to listen on, in the namespace that the caller is in.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{BindToDevice, Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
};
use rustix::net::netdevice::name_to_index;
use usernet_core::rules::Protocol;

/// A TCP socket that listens, or a bound UDP socket, on an address of one family and, where it is given, one interface:
/// non-blocking, closed on exec.
pub fn open(protocol: Protocol, at: SocketAddr, interface: Option<&str>) -> Result<OwnedFd, Errno> {
    let family = match at {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    if at.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    if protocol == Protocol::Tcp {
        // Past connections in TIME-WAIT do not hold the port. For UDP the option would let two programs have
        // one port.
        setsockopt(&socket, ReuseAddr, &true)?;
    }
    if let Some(interface) = interface {
        setsockopt(&socket, BindToDevice, &interface.into())?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(scoped(at, interface, &socket)))?;
    if protocol == Protocol::Tcp {
        // The kernel cuts it to net.core.somaxconn, 4096 by default.
        listen(&socket, Backlog::MAXCONN)?;
    }
    Ok(socket)
}

/// A link-local address means nothing without its interface.
fn scoped(mut at: SocketAddr, interface: Option<&str>, socket: &OwnedFd) -> SocketAddr {
    if let SocketAddr::V6(v6) = &mut at
        && v6.ip().is_unicast_link_local()
        && let Some(interface) = interface
        && let Ok(index) = name_to_index(socket, interface)
    {
        v6.set_scope_id(index);
    }
    at
}
