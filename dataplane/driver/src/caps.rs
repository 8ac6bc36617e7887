//! What this kernel and this process can do: probed once at the start, then trusted.

use std::os::fd::AsFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::sys;

/// The answers. Every field is public so that the control side can show them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// `SO_PEEK_OFF` works on TCP (IPv4: Linux 6.9), over every family there is.
    pub tcp_peek_offset: bool,
    /// `UDP_GRO` (Linux 5.0).
    pub udp_gro: bool,
    /// `UDP_SEGMENT` (Linux 4.18).
    pub udp_segment: bool,
    /// ICMP echo sockets (`net.ipv4.ping_group_range`).
    pub ping4: bool,
    /// ICMPv6 echo sockets.
    pub ping6: bool,
    /// IPv6 sockets at all.
    pub ipv6: bool,
    /// The ring is in use.
    pub io_uring: bool,
    /// Why the ring is not in use; empty if it is, or was not asked for.
    pub io_uring_denied: String,
    /// `RLIMIT_NOFILE` after it was raised.
    pub descriptors_max: u64,
}

impl Caps {
    /// Asks the kernel. The limit of descriptors is raised as far as it goes.
    pub(crate) fn probe() -> Self {
        let ipv6 = has_socket(libc::AF_INET6, libc::SOCK_STREAM, 0);
        Self {
            tcp_peek_offset: has_option(
                (libc::AF_INET, libc::SOCK_STREAM),
                (libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0),
            ) && (!ipv6
                || has_option(
                    (libc::AF_INET6, libc::SOCK_STREAM),
                    (libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0),
                )),
            udp_gro: has_option(
                (libc::AF_INET, libc::SOCK_DGRAM),
                (libc::SOL_UDP, libc::UDP_GRO, 1),
            ),
            udp_segment: has_option(
                (libc::AF_INET, libc::SOCK_DGRAM),
                (libc::SOL_UDP, libc::UDP_SEGMENT, 0),
            ),
            ping4: has_socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
            ping6: has_socket(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
            ipv6,
            io_uring: false,
            io_uring_denied: String::new(),
            descriptors_max: raise_descriptors(),
        }
    }
}

fn has_socket(family: i32, kind: i32, protocol: i32) -> bool {
    sys::socket(family, kind, protocol).is_ok()
}

fn has_option((family, kind): (i32, i32), (level, name, value): (i32, i32, i32)) -> bool {
    sys::socket(family, kind, 0)
        .and_then(|socket| sys::set_option(socket.as_fd(), level, name, value))
        .is_ok()
}

/// Raises the soft limit of descriptors to the hard one: a flow needs one each, a spliced pair six.
fn raise_descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}
