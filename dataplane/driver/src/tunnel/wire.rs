//! The wire's end of a tunnel: a UDP socket per family, both on the same port, and trains in and out.
//!
//! A train is one call in either direction: `UDP_GRO` hands over what came together, `UDP_SEGMENT` lets the kernel cut
//! what goes together. As the kernel's own WireGuard does, datagrams are never sent with the don't-fragment bit, and a
//! peer is answered from the address that it spoke to.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::address::{self, SOCKADDR_BYTES, SockAddr};
use crate::control::{self, CONTROL_BYTES, Control};
use crate::sys;

/// Buffers asked for, each way: some trains of every flow of a guest. The kernel clamps them to its `rmem_max` and
/// `wmem_max`.
const BUFFER_BYTES: i32 = 4 << 20;

/// The largest train: a datagram's length field has 16 bits.
pub(super) const TRAIN_BYTES_MAX: usize = 65_535;

/// What one call sends at most: what fits a datagram over IPv4, which a train has to.
const SENT_BYTES_MAX: usize = 65_507;

/// Datagrams of a train that is sent (`UDP_MAX_SEGMENTS` before Linux 6.9).
const SENT_DATAGRAMS_MAX: usize = 64;

/// Ports tried where any will do: one that is free for IPv4 may be taken for IPv6.
const PORTS_TRIED: usize = 8;

/// Why nobody is heard.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on UDP port {port}: {source}{}", hint(.source))]
pub struct ListenError {
    /// The port; 0: any.
    pub port: u16,
    /// The kernel's answer.
    pub source: io::Error,
}

/// What mends it.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "; choose another port, or stop what has it",
        Some(libc::EACCES | libc::EPERM) => {
            "; ports below 1024 (net.ipv4.ip_unprivileged_port_start) need a privilege"
        }
        Some(_) | None => "",
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Wire {
    /// IPv4, IPv6. The kernel may have one of them only.
    ends: [Option<OwnedFd>; 2],
    port: u16,
}

/// What came, with one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Train {
    pub(super) from: SocketAddr,
    /// Which of our addresses it was sent to.
    pub(super) local: Option<IpAddr>,
    /// Bytes of all its datagrams.
    pub(super) bytes: usize,
    /// Bytes of each but the last one.
    pub(super) size: usize,
}

/// What a call needs beside the payload.
pub(super) struct Envelope {
    name: SockAddr,
    control: Control,
}

impl Envelope {
    pub(super) const fn new() -> Self {
        Self { name: SockAddr::empty(), control: Control::empty() }
    }
}

impl Wire {
    /// Opens the sockets on this port; 0: on one that the kernel chooses.
    ///
    /// # Errors
    ///
    /// The port is taken, or not ours to have.
    pub fn open(port: u16) -> Result<Self, ListenError> {
        let open = || {
            let v4 = has_family(Self::bind(Ipv4Addr::UNSPECIFIED.into(), port))?;
            let chosen = match &v4 {
                Some(socket) => address::local_address(socket.as_fd())?.port(),
                None => port,
            };
            let v6 = has_family(Self::bind(Ipv6Addr::UNSPECIFIED.into(), chosen))?;
            let Some(either) = v4.as_ref().or(v6.as_ref()) else {
                return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
            };
            let port = address::local_address(either.as_fd())?.port();
            Ok(Self { ends: [v4, v6], port })
        };
        let tries = if port == 0 { PORTS_TRIED } else { 1 };
        let mut result = open();
        for _ in 1..tries {
            if result.is_ok() {
                break;
            }
            result = open();
        }
        result.map_err(|source| ListenError { port, source })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The sockets that there are: 0 is IPv4, 1 is IPv6.
    pub(super) fn ends(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let fds = self.ends.iter().enumerate();
        fds.filter_map(|(at, end)| end.as_ref().map(|end| (at, end.as_fd())))
    }

    fn bind(ip: IpAddr, port: u16) -> io::Result<OwnedFd> {
        let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = sys::socket(family, libc::SOCK_DGRAM, 0)?;
        let fd = socket.as_fd();
        let of_family: &[_] = match ip {
            IpAddr::V4(_) => &[
                (libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
                (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            ],
            IpAddr::V6(_) => {
                sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
                &[
                    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
                    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
                ]
            }
        };
        let of_both = [
            (libc::SOL_UDP, libc::UDP_GRO, 1),
            (libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER_BYTES),
            (libc::SOL_SOCKET, libc::SO_SNDBUF, BUFFER_BYTES),
        ];
        for &(level, name, value) in of_family.iter().chain(&of_both) {
            // What a kernel does not have is done without.
            let _ = sys::set_option(fd, level, name, value);
        }
        sys::bind(fd, &SocketAddr::new(ip, port).into())?;
        Ok(socket)
    }

    /// Receives what came together on one of the [`ends`](Self::ends).
    pub(super) fn receive(
        &self,
        end: usize,
        envelope: &mut Envelope,
        buffer: &mut [u8],
    ) -> io::Result<Option<Train>> {
        let Some(socket) = self.ends.get(end).and_then(Option::as_ref) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all-zero is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = envelope.name.as_mut_ptr().cast();
        message.msg_namelen = SOCKADDR_BYTES;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = envelope.control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES as _;
        // SAFETY: everything that the header points to is ours and as long as it says.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        let bytes = sys::check_bytes(got)?;
        let Some(from) = envelope.name.get() else { return Ok(None) };
        let mut train = Train { from, local: None, bytes, size: bytes };
        for (level, kind, data) in envelope.control.entries(message.msg_controllen as usize) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) | (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    train.local = control::destination(data);
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = control::int(data).and_then(|size| usize::try_from(size).ok());
                    train.size = size.filter(|size| (1..bytes).contains(size)).unwrap_or(bytes);
                }
                _ => {}
            }
        }
        Ok(Some(train))
    }

    /// Sends datagrams of `size` bytes, the last one perhaps shorter, with one call. There are no more of them than
    /// [`pieces`] gives.
    pub(super) fn send(
        &self,
        envelope: &mut Envelope,
        (to, from): (SocketAddr, Option<IpAddr>),
        train: &[u8],
        size: usize,
    ) -> io::Result<()> {
        let Some(socket) = &self.ends[usize::from(to.is_ipv6())] else {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        };
        let Envelope { name, control } = envelope;
        *name = to.into();
        control.clear();
        if let Some(from) = from {
            control.push_source(from);
        }
        if train.len() > size {
            let size = u16::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        let mut part =
            libc::iovec { iov_base: train.as_ptr().cast_mut().cast(), iov_len: train.len() };
        // SAFETY: all-zero is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = name.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if control.used() > 0 {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = control.used() as _;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: everything that the header points to is ours and as long as it says; sendmsg writes to none of it.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
        sys::check_bytes(sent).map(drop)
    }

    /// Waits for room to send to this address: whether there is some.
    pub(super) fn wait_for_room(&self, to: SocketAddr, timeout_ms: i32) -> bool {
        let Some(socket) = &self.ends[usize::from(to.is_ipv6())] else { return false };
        let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one entry, as said.
        unsafe { libc::poll(&mut entry, 1, timeout_ms) > 0 }
    }
}

/// What of a train goes with one call each.
pub(super) fn pieces(train: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    let datagrams = (SENT_BYTES_MAX / size.max(1)).clamp(1, SENT_DATAGRAMS_MAX);
    train.chunks(datagrams * size.max(1))
}

/// None: the kernel has no such family.
fn has_family(opened: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match opened {
        Ok(socket) => Ok(Some(socket)),
        // ipv6.disable=1 and net.ipv6.conf.all.disable_ipv6=1.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
