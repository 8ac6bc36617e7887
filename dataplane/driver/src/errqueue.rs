//! The error queue of datagram sockets (`IP_RECVERR`, ip(7)): who says that what could not be delivered, and why.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use usernet_core::HostError;

use crate::address::{SOCKADDR_BYTES, SockAddr};
use crate::control::{self, Control};
use crate::errno;
use crate::sys;

/// Bytes of the original datagram that are kept: what an ICMP error to the guest quotes at most (RFC 1812, 4.3.2.3).
const PAYLOAD_BYTES_MAX: usize = 548;

/// `struct sock_extended_err`, as bytes: errno (4), origin, type, code, pad (1 each), info (4), data (4). The
/// offender's address follows.
const EXTENDED_BYTES: usize = 16;

/// `SO_EE_ORIGIN_LOCAL`: the send call itself has said so already, except for the MTU.
const ORIGIN_LOCAL: u8 = 1;
/// `SO_EE_ORIGIN_ICMP`.
const ORIGIN_ICMP: u8 = 2;
/// `SO_EE_ORIGIN_ICMP6`.
const ORIGIN_ICMP6: u8 = 3;

/// An entry of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where the datagram was to go.
    pub(crate) to: SocketAddr,
    /// Why it did not arrive.
    pub(crate) error: HostError,
    /// Who says so; none: this host.
    pub(crate) offender: Option<IpAddr>,
    /// This host said so when it was sent.
    pub(crate) is_local: bool,
    /// Bytes of [`ErrorQueue::payload`].
    payload_bytes: usize,
}

/// What reading the queue needs, kept from call to call.
pub(crate) struct ErrorQueue {
    payload: [u8; PAYLOAD_BYTES_MAX],
    name: SockAddr,
    control: Control,
}

impl ErrorQueue {
    pub(crate) fn new() -> Self {
        Self { payload: [0; PAYLOAD_BYTES_MAX], name: SockAddr::empty(), control: Control::empty() }
    }

    /// Takes entries until one of interest is found; none: the queue is empty.
    pub(crate) fn next(&mut self, socket: BorrowedFd<'_>) -> Option<Entry> {
        loop {
            match self.read(socket) {
                Ok((payload_bytes, control_bytes)) => {
                    if let Some(entry) = self.parse(payload_bytes, control_bytes) {
                        return Some(entry);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// The first bytes of the datagram that the last entry is about.
    pub(crate) fn payload(&self, entry: &Entry) -> &[u8] {
        &self.payload[..entry.payload_bytes]
    }

    fn read(&mut self, socket: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
        let mut buffer =
            libc::iovec { iov_base: self.payload.as_mut_ptr().cast(), iov_len: self.payload.len() };
        // SAFETY: all-zero is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &mut buffer;
        message.msg_iovlen = 1;
        message.msg_name = self.name.as_mut_ptr().cast();
        message.msg_namelen = SOCKADDR_BYTES;
        message.msg_control = self.control.as_mut_ptr().cast();
        message.msg_controllen = control::CONTROL_BYTES as _;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: everything that the header points to is ours and as long as it says.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, flags) };
        let got = sys::check_bytes(got)?;
        Ok((got.min(PAYLOAD_BYTES_MAX), message.msg_controllen as usize))
    }

    fn parse(&self, payload_bytes: usize, control_bytes: usize) -> Option<Entry> {
        let to = self.name.get()?;
        self.control.entries(control_bytes).find_map(|(level, kind, data)| {
            let is_error = matches!(
                (level, kind),
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
            );
            if !is_error {
                return None;
            }
            let (extended, offender) = data.split_first_chunk::<EXTENDED_BYTES>()?;
            let [e0, e1, e2, e3, origin, kind, code, _, i0, i1, i2, i3, ..] = *extended;
            let info = u32::from_ne_bytes([i0, i1, i2, i3]);
            let errno = i32::from_ne_bytes([e0, e1, e2, e3]);
            let error = match origin {
                ORIGIN_LOCAL if errno == libc::EMSGSIZE => HostError::TooBig { mtu: info },
                ORIGIN_LOCAL => errno::host_error(&io::Error::from_raw_os_error(errno)),
                ORIGIN_ICMP => errno::icmp4_error(kind, code, info),
                ORIGIN_ICMP6 => errno::icmp6_error(kind, code, info),
                _ => return None,
            };
            let is_local = origin == ORIGIN_LOCAL;
            let offender = if is_local { None } else { offender_address(offender) };
            Some(Entry { to, error, offender, is_local, payload_bytes })
        })
    }
}

/// The address behind the extended error (`SO_EE_OFFENDER`): a `sockaddr` of either family.
fn offender_address(bytes: &[u8]) -> Option<IpAddr> {
    let family = bytes.first_chunk::<2>().map(|f| i32::from(u16::from_ne_bytes(*f)))?;
    match family {
        libc::AF_INET => bytes.get(4..8)?.first_chunk::<4>().map(|ip| IpAddr::from(*ip)),
        libc::AF_INET6 => {
            bytes.get(8..24)?.first_chunk::<16>().map(|ip| IpAddr::from(*ip).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use usernet_core::op::DatagramKind;

    use super::*;
    use crate::arena::Arena;
    use crate::datagram::{Datagrams, Leave, SendBatch};
    use crate::setup::Outbound;
    use usernet_core::Span;

    /// Sends `payload` to a port where nobody is, and waits for the answer.
    fn refused(kind: DatagramKind, loopback: &str, payload: &[u8]) -> (Entry, Vec<u8>) {
        let nobody = UdpSocket::bind((loopback, 0)).expect("a port");
        let to = nobody.local_addr().expect("its address");
        drop(nobody);
        let outbound = Outbound::default();
        let (socket, _) = Datagrams::open(kind, 0, true, &outbound).expect("a socket");
        let mut arena = Arena::new(256).expect("memory");
        let lease = arena.take_large().expect("room");
        // SAFETY: just taken.
        unsafe { arena.show(lease, payload.len()) }.copy_from_slice(payload);
        let mut batch = SendBatch::new(1, 1);
        let leave = Leave { to, from: None, segment: 0, hop_limit: 9, tos: 0 };
        let span = Span { lease, start: 0, len: payload.len() as u32 };
        batch.push(&arena, leave, std::iter::once(span));
        // SAFETY: the lease is held.
        assert_eq!(unsafe { batch.send(socket.fd(), 0) }.ok(), Some(1));
        let mut queue = ErrorQueue::new();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(entry) = queue.next(socket.fd()) {
                assert_eq!(entry.to, to);
                assert_eq!(queue.next(socket.fd().as_fd()), None, "one datagram, one error");
                return (entry, queue.payload(&entry).to_vec());
            }
        }
        panic!("no answer from {loopback}");
    }

    #[test]
    fn a_closed_port_is_told_with_who_said_so_and_what_was_sent() {
        for (kind, loopback) in [(DatagramKind::Udp4, "127.0.0.1"), (DatagramKind::Udp6, "::1")] {
            let (entry, payload) = refused(kind, loopback, b"is anybody there?");
            assert_eq!(entry.error, HostError::Refused);
            assert_eq!(entry.offender, loopback.parse().ok());
            assert!(!entry.is_local);
            assert_eq!(payload, b"is anybody there?");
        }
    }

    #[test]
    fn a_long_datagram_is_quoted_by_its_first_bytes() {
        let (_, payload) = refused(DatagramKind::Udp4, "127.0.0.1", &[7; 9000]);
        assert!(!payload.is_empty() && payload.len() <= PAYLOAD_BYTES_MAX);
        assert!(payload.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn addresses_behind_the_error_are_of_either_family() {
        let mut v4 = [0; 16];
        v4[0..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        v4[4..8].copy_from_slice(&[192, 0, 2, 1]);
        assert_eq!(offender_address(&v4), "192.0.2.1".parse().ok());
        assert_eq!(offender_address(&v4[..7]), None);
        assert_eq!(offender_address(&[]), None);
        assert_eq!(offender_address(&[0; 28]), None);
    }
}
