//! What does not leave the machine is not paced.
//!
//! A congestion control that paces (bbr) has a timer send what is not due yet: one for each 64 KiB of a fast stream. Where the peer
//! is on the same host there is no path to spare, and the timer is all that the stream waits for: due in 5 to 10 µs, it comes
//! 15 to 25 µs later on a virtual machine, whose clock is the hypervisor's. So a socket that sends much to its own host is given
//! reno, and the guest's routes to us say the same ([`UNPACED`]; decision 14). Sockets to elsewhere keep what the host has chosen.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::sockopt::TcpCongestion;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socket};

use crate::address::{local_address, peer_address};

/// The congestion control that each kernel has, and lets everybody choose.
pub(crate) const UNPACED: &str = "reno";

/// Bytes after which it is looked at: a short connection makes no call more.
const AFTER_BYTES: u32 = 1 << 20;

/// Of a socket that sends; see the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pacing {
    /// Bytes sent, until they are enough.
    sent: u32,
}

impl Pacing {
    /// The socket has taken so many bytes more.
    pub(crate) fn on_sent(&mut self, socket: BorrowedFd<'_>, bytes: usize) {
        if self.sent >= AFTER_BYTES {
            return;
        }
        self.sent = self.sent.saturating_add(bytes as u32);
        if self.sent >= AFTER_BYTES && is_within_host(socket) && is_paced(socket) {
            // EPERM where the administrator has forbidden it: then it goes on as it is.
            let _ = setsockopt(&socket, TcpCongestion, &UNPACED.into());
        }
    }
}

/// Whether a socket's congestion control paces.
pub(crate) fn is_paced(socket: BorrowedFd<'_>) -> bool {
    getsockopt(&socket, TcpCongestion).is_ok_and(|name| paces(name.as_encoded_bytes()))
}

/// Of those in the kernel only bbr does, whatever its version is called.
fn paces(name: &[u8]) -> bool {
    name.starts_with(b"bbr")
}

/// Whether connections of this thread's namespace are paced unless somebody chooses.
pub(crate) fn is_default_here() -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    socket.is_ok_and(|socket| is_paced(socket.as_fd()))
}

fn is_within_host(socket: BorrowedFd<'_>) -> bool {
    let ends = local_address(socket).and_then(|local| Ok((local, peer_address(socket)?)));
    ends.is_ok_and(|(local, peer)| is_same_host(local, peer))
}

/// Whether both ends of a connection are in one namespace. To one of its own addresses it goes from the same one
/// (`ip_route_output_key_hash`, local routes), to its loopback from there.
fn is_same_host(local: SocketAddr, peer: SocketAddr) -> bool {
    let [local, peer]: [IpAddr; 2] = [local, peer].map(|end| end.ip().to_canonical());
    peer == local || peer.is_loopback()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use usernet_lab::skip::skip_this;

    use super::*;

    #[test]
    fn only_a_version_of_bbr_paces() {
        for (name, expected) in
            [("bbr", true), ("bbr3", true), ("cubic", false), ("reno", false), ("dctcp", false)]
        {
            assert_eq!(paces(name.as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn a_peer_is_on_the_host_with_the_same_address_or_on_its_loopback() {
        for (local, peer, expected) in [
            ("192.0.2.1:1", "192.0.2.1:2", true),
            ("192.0.2.1:1", "192.0.2.2:2", false),
            ("127.0.0.1:1", "127.0.0.2:2", true),
            ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.2]:2", true),
            ("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2", false),
            ("[::1]:1", "[::1]:2", true),
            ("[2001:db8::1]:1", "[2001:db8::1]:2", true),
            ("[2001:db8::1]:1", "[2001:db8::2]:2", false),
        ] {
            let [local, peer] = [local, peer].map(|text| text.parse().expect("an address"));
            assert_eq!(is_same_host(local, peer), expected, "{local} {peer}");
        }
    }

    #[test]
    fn a_stream_within_the_host_is_paced_until_it_has_sent_much() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let sender = TcpStream::connect(address).expect("room");
        if setsockopt(&sender, TcpCongestion, &"bbr".into()).is_err() {
            return skip_this("the kernel has no bbr, or not for everybody");
        }
        let mut pacing = Pacing::default();
        pacing.on_sent(sender.as_fd(), AFTER_BYTES as usize - 1);
        assert!(is_paced(sender.as_fd()));
        pacing.on_sent(sender.as_fd(), 1);
        let name = getsockopt(&sender, TcpCongestion).expect("a TCP socket");
        assert_eq!(name, UNPACED);
        // Whose socket it is may choose again.
        setsockopt(&sender, TcpCongestion, &"bbr".into()).expect("as before");
        pacing.on_sent(sender.as_fd(), usize::MAX);
        assert!(is_paced(sender.as_fd()));
    }

    #[test]
    fn what_does_not_pace_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let sender = TcpStream::connect(listener.local_addr().expect("its address")).expect("room");
        if setsockopt(&sender, TcpCongestion, &"cubic".into()).is_err() {
            return skip_this("the kernel has no cubic, or not for everybody");
        }
        Pacing::default().on_sent(sender.as_fd(), AFTER_BYTES as usize);
        assert_eq!(getsockopt(&sender, TcpCongestion).expect("a TCP socket"), "cubic");
    }
}
