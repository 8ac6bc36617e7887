//! UDP and ping sockets: opened unconnected, read and written in batches.
//!
//! A train of datagrams is one message both ways: `UDP_GRO` joins what arrives, `UDP_SEGMENT` cuts what is sent. TTL
//! and traffic class ride on each message as ancillary data.
//!
//! Datagrams that came one by one and follow each other on the same way are joined into trains here, too: what costs is
//! the way through a kernel, not the bytes. To the guest they are copied behind each other
//! ([`ReceiveBatch::join`]), to the host gathered in place ([`Joined`]). Nothing waits for a train: only what came in one
//! batch is joined.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use usernet_core::op::{DatagramKind, HEADROOM};
use usernet_core::{LeaseId, Span};

use crate::address::{self, SOCKADDR_BYTES, SockAddr};
use crate::arena::{Arena, LARGE_ROOM};
use crate::control::{self, Control};
use crate::setup::Outbound;
use crate::sys;

/// Messages received by the first call of a turn, and by the further ones: most sockets have but one.
pub(crate) const RECEIVE_FIRST: usize = 8;
pub(crate) const RECEIVE_BATCH: usize = 64;

/// Messages sent by one call.
pub(crate) const SEND_BATCH: usize = 32;

/// Gather elements of one call's messages together.
pub(crate) const SEND_BUFFERS: usize = 256;

/// Datagrams in one train: what every kernel with `UDP_SEGMENT` takes (`UDP_MAX_SEGMENTS`).
pub(crate) const TRAIN_MAX: usize = 64;

/// Bytes of a train: what an IPv4 packet holds.
const TRAIN_BYTES_MAX: usize = 65_507;

/// The largest datagrams that are joined on their way to the host: those that an ordinary path takes whole. A kernel
/// does not cut into larger ones than the path's MTU has room for.
const JOINED_BYTES_MAX: u16 = 1452;

/// Receive buffer asked for; the kernel clamps it to `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: i32 = 1 << 20;

/// An unconnected datagram socket.
pub(crate) struct Datagrams {
    fd: OwnedFd,
    /// Errors of ping sockets quote the ICMP message.
    pub(crate) is_ping: bool,
    /// The largest datagrams to join on their way out; less, where the kernel has refused to cut a train.
    pub(crate) joined_max: u16,
    /// It is a forward's: whoever gave it to us has a duplicate.
    pub(crate) is_shared: bool,
}

impl Datagrams {
    /// Opens and binds a socket: to `port` where it is free, else to any.
    pub(crate) fn open(
        kind: DatagramKind,
        port: u16,
        is_loopback: bool,
        outbound: &Outbound,
    ) -> io::Result<(Self, SocketAddr)> {
        let (family, protocol, is_ping) = match kind {
            DatagramKind::Udp4 => (libc::AF_INET, libc::IPPROTO_UDP, false),
            DatagramKind::Udp6 => (libc::AF_INET6, libc::IPPROTO_UDP, false),
            DatagramKind::Ping4 => (libc::AF_INET, libc::IPPROTO_ICMP, true),
            DatagramKind::Ping6 => (libc::AF_INET6, libc::IPPROTO_ICMPV6, true),
        };
        let fd = sys::socket(family, libc::SOCK_DGRAM, protocol).map_err(|error| {
            // Ping sockets are forbidden by a range of groups: no matter of the destination.
            let is_denied = is_ping && error.raw_os_error() == Some(libc::EACCES);
            if is_denied { io::Error::from_raw_os_error(libc::EPROTONOSUPPORT) } else { error }
        })?;
        let joined_max = if is_ping { 0 } else { JOINED_BYTES_MAX };
        let socket = Self { fd, is_ping, joined_max, is_shared: false };
        if family == libc::AF_INET6 {
            sys::set_option(socket.fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        socket.prepare(family == libc::AF_INET);
        socket.bind(family, port, is_loopback, outbound)?;
        let local = address::local_address(socket.fd())?;
        Ok((socket, local))
    }

    /// Takes over a new UDP socket of the guest's namespace.
    pub(crate) fn inside(fd: OwnedFd) -> io::Result<(Self, SocketAddr)> {
        let is_v4 = address::local_address(fd.as_fd())?.is_ipv4();
        let socket = Self { fd, is_ping: false, joined_max: JOINED_BYTES_MAX, is_shared: false };
        socket.prepare(is_v4);
        let family = if is_v4 { libc::AF_INET } else { libc::AF_INET6 };
        socket.bind(family, 0, false, &Outbound::default())?;
        let local = address::local_address(socket.fd())?;
        Ok((socket, local))
    }

    /// Takes over a bound UDP socket.
    pub(crate) fn bound(fd: OwnedFd) -> io::Result<Self> {
        let local = address::local_address(fd.as_fd())?;
        let socket = Self { fd, is_ping: false, joined_max: JOINED_BYTES_MAX, is_shared: true };
        let flags = rustix::fs::fcntl_getfl(&socket.fd)?;
        rustix::fs::fcntl_setfl(&socket.fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        socket.prepare(local.is_ipv4());
        if local.is_ipv6() {
            // A dual-stack socket hands over IPv4 datagrams, too.
            socket.prepare(true);
        }
        if local.ip().is_unspecified() {
            socket.ask_for_destination(local.is_ipv4());
        }
        Ok(socket)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Asks for TTL, traffic class, errors and trains. What a kernel does not have is done without.
    fn prepare(&self, is_v4: bool) {
        let options: &[_] = if is_v4 {
            &[
                (libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
                (libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
                (libc::IPPROTO_IP, libc::IP_RECVERR, 1),
            ]
        } else {
            &[
                (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
                (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
                (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
            ]
        };
        for &(level, name, value) in options {
            let _ = sys::set_option(self.fd(), level, name, value);
        }
        if !self.is_ping {
            let _ = sys::set_option(self.fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
        }
        let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVBUF);
        let _ = sys::set_option(self.fd(), level, name, RECEIVE_BUFFER_BYTES);
    }

    /// Asks for the address that each datagram was sent to: a socket bound to no address has to answer from it.
    fn ask_for_destination(&self, is_v4: bool) {
        let v4 = (libc::IPPROTO_IP, libc::IP_PKTINFO);
        let v6 = (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO);
        // A dual-stack socket hands over IPv4 datagrams, too.
        let options = if is_v4 { &[v4][..] } else { &[v6, v4] };
        for &(level, name) in options {
            let _ = sys::set_option(self.fd(), level, name, 1);
        }
    }

    fn bind(
        &self,
        family: i32,
        port: u16,
        is_loopback: bool,
        outbound: &Outbound,
    ) -> io::Result<()> {
        if !is_loopback && let Some(interface) = outbound.interface(family == libc::AF_INET) {
            sys::bind_to_device(self.fd(), interface)?;
        }
        let ip = match (family == libc::AF_INET, is_loopback) {
            (true, true) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            (true, false) => IpAddr::V4(outbound.v4.unwrap_or(Ipv4Addr::UNSPECIFIED)),
            (false, true) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            (false, false) => IpAddr::V6(outbound.v6.unwrap_or(Ipv6Addr::UNSPECIFIED)),
        };
        let bind = |port| sys::bind(self.fd(), &SocketAddr::new(ip, port).into());
        let wanted = if port < 1024 && !self.is_ping { 0 } else { port };
        match bind(wanted) {
            Err(error) if wanted != 0 && error.kind() == io::ErrorKind::AddrInUse => bind(0),
            result => result,
        }
    }
}

/// One message as it arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) lease: LeaseId,
    /// Bytes of payload, behind the headroom.
    pub(crate) bytes: usize,
    /// None: of a family that nobody sent to.
    pub(crate) from: Option<SocketAddr>,
    /// What it was sent to, where that was asked for.
    pub(crate) local: Option<IpAddr>,
    /// Not 0: a train of datagrams of this size.
    pub(crate) segment: u16,
    pub(crate) hop_limit: u8,
    pub(crate) tos: u8,
    /// There was more than fitted.
    pub(crate) is_truncated: bool,
}

impl Received {
    /// The size of its datagrams.
    fn size(&self) -> usize {
        if self.segment == 0 { self.bytes } else { usize::from(self.segment) }
    }

    /// Whether `next` can follow as more of the same train: from and to the same ends, in datagrams of the same size,
    /// of which the last may be shorter.
    fn takes(&self, next: &Self, size_max: usize) -> bool {
        let size = self.size();
        let goes_on = next.size() == size || (next.bytes < size && next.bytes > 0);
        (1..=size_max).contains(&size)
            && goes_on
            && self.bytes.is_multiple_of(size)
            && self.bytes + next.bytes <= TRAIN_BYTES_MAX.min(size * TRAIN_MAX)
            && (self.from, self.local) == (next.from, next.local)
            && (self.hop_limit, self.tos) == (next.hop_limit, next.tos)
            && !next.is_truncated
    }
}

/// What one receiving call needs, kept from call to call.
pub(crate) struct ReceiveBatch {
    headers: Vec<libc::mmsghdr>,
    buffers: Vec<libc::iovec>,
    names: Vec<SockAddr>,
    controls: Vec<Control>,
    leases: Vec<LeaseId>,
}

// SAFETY: the pointers in it point into itself or the arena, and are written anew for each call.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    pub(crate) fn new() -> Self {
        // SAFETY: all-zero is a valid `mmsghdr`.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        let buffer = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        Self {
            headers: vec![header; RECEIVE_BATCH],
            buffers: vec![buffer; RECEIVE_BATCH],
            names: vec![SockAddr::empty(); RECEIVE_BATCH],
            controls: vec![Control::empty(); RECEIVE_BATCH],
            leases: Vec::with_capacity(RECEIVE_BATCH),
        }
    }

    /// Receives what is there, up to `messages_max` messages, which is at most [`RECEIVE_BATCH`]. The leases of those are
    /// the caller's; see [`ReceiveBatch::message`]. None: no lease was free.
    pub(crate) fn receive(
        &mut self,
        socket: &Datagrams,
        arena: &mut Arena,
        messages_max: usize,
    ) -> io::Result<Option<usize>> {
        self.leases.clear();
        while self.leases.len() < messages_max
            && let Some(lease) = arena.take_large()
        {
            self.point(self.leases.len(), arena.start(lease));
            self.leases.push(lease);
        }
        if self.leases.is_empty() {
            return Ok(None);
        }
        let count = self.leases.len();
        let pointer = self.headers.as_mut_ptr();
        let flags = libc::MSG_DONTWAIT as _;
        let fd = socket.fd.as_raw_fd();
        // SAFETY: `count` headers are valid, and point to buffers that were taken for this call.
        let got = unsafe { libc::recvmmsg(fd, pointer, count as _, flags, ptr::null_mut()) };
        let got = sys::check(got).map(|got| got as usize);
        // The unused ones go back so that the next call takes the same.
        for &lease in self.leases[*got.as_ref().unwrap_or(&0)..].iter().rev() {
            arena.release(lease);
        }
        got.map(Some)
    }

    /// Makes header `index` receive behind the headroom of the lease that starts at `start`.
    fn point(&mut self, index: usize, start: *mut u8) {
        self.buffers[index] = libc::iovec {
            iov_base: start.wrapping_add(HEADROOM).cast(),
            iov_len: LARGE_ROOM - HEADROOM,
        };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = self.names[index].as_mut_ptr().cast();
        header.msg_namelen = SOCKADDR_BYTES;
        header.msg_iov = &raw mut self.buffers[index];
        header.msg_iovlen = 1;
        header.msg_control = self.controls[index].as_mut_ptr().cast();
        header.msg_controllen = control::CONTROL_BYTES as _;
        header.msg_flags = 0;
    }

    /// Message `index` of the last call.
    pub(crate) fn message(&self, index: usize) -> Received {
        let header = &self.headers[index];
        let mut received = Received {
            lease: self.leases[index],
            bytes: header.msg_len as usize,
            from: self.names[index].get(),
            local: None,
            segment: 0,
            hop_limit: 0,
            tos: 0,
            is_truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        let len = header.msg_hdr.msg_controllen;
        for (level, kind, data) in self.controls[index].entries(len) {
            let value = control::int(data).unwrap_or(0);
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) | (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    received.local = control::destination(data).or(received.local);
                }
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    received.hop_limit = value as u8;
                }
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    received.tos = value as u8;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let is_train = received.bytes > value as usize;
                    received.segment = if is_train { value as u16 } else { 0 };
                }
                _ => {}
            }
        }
        received
    }
}

impl ReceiveBatch {
    /// Puts the messages from `next` on behind `train`, as far as they are of the same train and their datagrams have
    /// at most `size_max` bytes; their leases are given back. How many they were.
    pub(crate) fn join(
        &self,
        arena: &mut Arena,
        train: &mut Received,
        rest: Range<usize>,
        size_max: usize,
    ) -> usize {
        let mut joined = 0;
        for index in rest {
            let message = self.message(index);
            if !train.takes(&message, size_max) {
                break;
            }
            train.segment = train.size() as u16;
            let span = |lease, skip, len: usize| {
                let start = (HEADROOM + skip) as u32;
                Span { lease, start, len: len as u32 }
            };
            let from = span(message.lease, 0, message.bytes);
            let to = span(train.lease, train.bytes, message.bytes);
            // SAFETY: two leases, both received into and held.
            let (from, to) = unsafe { (arena.span(from), arena.span(to)) };
            to.copy_from_slice(from);
            train.bytes += message.bytes;
            arena.release(message.lease);
            joined += 1;
        }
        joined
    }
}

/// How a datagram shall leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leave {
    pub(crate) to: SocketAddr,
    /// None: from the socket's address, or the one that the system chooses.
    pub(crate) from: Option<IpAddr>,
    pub(crate) segment: u16,
    pub(crate) hop_limit: u8,
    pub(crate) tos: u8,
}

/// The last message of a [`SendBatch`], if it is made of single datagrams and more of them may follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joined {
    leave: Leave,
    /// Bytes of the first datagram, and so of all but the last.
    size: u32,
    /// Bytes of all.
    bytes: u32,
}

impl Joined {
    /// A message that is one datagram of `len` bytes; none if nothing can follow it.
    pub(crate) fn starting(leave: Leave, len: u32, size_max: u16) -> Option<Self> {
        let is_single = leave.segment == 0 && len > 0 && len <= u32::from(size_max);
        is_single.then_some(Self { leave, size: len, bytes: len })
    }

    /// Bytes of each datagram, for the kernel to cut at.
    pub(crate) fn segment(&self) -> u16 {
        self.size as u16
    }

    /// Adds a datagram of `len` bytes that leaves like this. False: it does not belong to these.
    pub(crate) fn takes(&mut self, leave: Leave, len: u32) -> bool {
        let bytes_max = (TRAIN_BYTES_MAX as u32).min(self.size * TRAIN_MAX as u32);
        let takes = leave == self.leave
            && (1..=self.size).contains(&len)
            && self.bytes.is_multiple_of(self.size)
            && self.bytes + len <= bytes_max;
        self.bytes += if takes { len } else { 0 };
        takes
    }
}

/// What one sending call needs, kept from call to call.
pub(crate) struct SendBatch {
    headers: Vec<libc::mmsghdr>,
    buffers: Vec<libc::iovec>,
    names: Vec<SockAddr>,
    controls: Vec<Control>,
    /// Messages put together.
    count: usize,
    /// Gather elements that there is room for.
    buffers_max: usize,
}

// SAFETY: the pointers in it point into itself or the arena, and are written anew for each call.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Room for `messages`, made of `buffers_max` pieces together.
    pub(crate) fn new(messages: usize, buffers_max: usize) -> Self {
        // SAFETY: all-zero is a valid `mmsghdr`.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        Self {
            headers: vec![header; messages],
            buffers: Vec::with_capacity(buffers_max),
            names: vec![SockAddr::empty(); messages],
            controls: vec![Control::empty(); messages],
            count: 0,
            buffers_max,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.count = 0;
        self.buffers.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Whether `messages` more, of `pieces` pieces together, fit.
    pub(crate) fn has_room(&self, messages: usize, pieces: usize) -> bool {
        self.count + messages <= self.headers.len()
            && self.buffers.len() + pieces <= self.buffers_max
    }

    /// Whether the last message can grow by a piece.
    pub(crate) fn has_room_behind(&self) -> bool {
        self.count > 0 && self.buffers.len() < self.buffers_max
    }

    /// Makes the last message a train of datagrams of `segment` bytes, with one more behind. There is room for it.
    pub(crate) fn extend(&mut self, arena: &Arena, segment: u16, span: Span) {
        let index = self.count - 1;
        let header = &mut self.headers[index].msg_hdr;
        if header.msg_iovlen == 1 {
            let control = &mut self.controls[index];
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
            header.msg_controllen = control.used() as _;
            header.msg_control = control.as_mut_ptr().cast();
        }
        header.msg_iovlen += 1;
        assert!(self.buffers.len() < self.buffers_max, "the caller has asked for room");
        self.buffers.push(arena.iovec(span));
    }

    /// Adds a datagram. There is room for it.
    pub(crate) fn push(&mut self, arena: &Arena, leave: Leave, spans: impl Iterator<Item = Span>) {
        let index = self.count;
        let first = self.buffers.len();
        self.buffers.extend(spans.map(|span| arena.iovec(span)));
        assert!(self.buffers.len() <= self.buffers_max, "the caller has asked for room");
        self.names[index] = leave.to.into();
        let control = &mut self.controls[index];
        control.clear();
        let (level, hop_limit, tos) = if leave.to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, libc::IPV6_TCLASS)
        };
        if leave.hop_limit != 0 {
            control.push(level, hop_limit, &i32::from(leave.hop_limit).to_ne_bytes());
        }
        if leave.tos != 0 {
            control.push(level, tos, &i32::from(leave.tos).to_ne_bytes());
        }
        if let Some(from) = leave.from {
            control.push_source(from);
        }
        if leave.segment != 0 {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &leave.segment.to_ne_bytes());
        }
        let header = &mut self.headers[index].msg_hdr;
        // The list never grows beyond its first allocation, so the pointers stay good until it is cleared.
        header.msg_iov = self.buffers[first..].as_mut_ptr();
        header.msg_iovlen = (self.buffers.len() - first) as _;
        header.msg_name = self.names[index].as_mut_ptr().cast();
        header.msg_namelen = self.names[index].len();
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.used() as _;
        self.count += 1;
    }

    /// Sends from message `first` on: how many went. An error is about message `first`.
    ///
    /// # Safety
    ///
    /// The leases of the spans pushed since [`SendBatch::clear`] are held, and nobody writes to them.
    pub(crate) unsafe fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        first: usize,
    ) -> io::Result<usize> {
        let headers = &mut self.headers[first..self.count];
        let (pointer, count) = (headers.as_mut_ptr(), headers.len());
        let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _;
        // SAFETY: the headers point into this batch and, by the caller's promise, to spans that stay.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), pointer, count as _, flags) };
        sys::check(sent).map(|sent| sent as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn open(kind: DatagramKind) -> (Datagrams, SocketAddr) {
        Datagrams::open(kind, 0, true, &Outbound::default()).expect("a socket on loopback")
    }

    fn lease_with(arena: &mut Arena, bytes: &[u8]) -> Span {
        let lease = arena.take_large().expect("room");
        // SAFETY: just taken.
        unsafe { arena.show(lease, bytes.len()) }.copy_from_slice(bytes);
        Span { lease, start: 0, len: bytes.len() as u32 }
    }

    /// What one call receives, with payloads.
    fn receive(socket: &Datagrams, arena: &mut Arena) -> Vec<(Received, Vec<u8>)> {
        std::thread::sleep(Duration::from_millis(20));
        let mut batch = ReceiveBatch::new();
        let count =
            batch.receive(socket, arena, RECEIVE_BATCH).expect("datagrams").expect("leases");
        let message = |index| {
            let received = batch.message(index);
            // SAFETY: received into, and held.
            let bytes = unsafe { arena.show(received.lease, HEADROOM + received.bytes) };
            (received, bytes[HEADROOM..].to_vec())
        };
        (0..count).map(message).collect()
    }

    #[test]
    fn hop_limit_and_traffic_class_arrive_as_they_were_sent() {
        for kind in [DatagramKind::Udp4, DatagramKind::Udp6] {
            let mut arena = Arena::new(256).expect("memory");
            let ((from, from_address), (to_socket, to)) = (open(kind), open(kind));
            let mut batch = SendBatch::new(2, 4);
            let halves = [lease_with(&mut arena, b"two "), lease_with(&mut arena, b"parts")];
            let leave = Leave { to, from: None, segment: 0, hop_limit: 33, tos: 0x2a };
            batch.push(&arena, leave, halves.into_iter());
            let empty = Leave { hop_limit: 0, tos: 0, ..leave };
            batch.push(&arena, empty, std::iter::empty());
            // SAFETY: the leases are held.
            assert_eq!(unsafe { batch.send(from.fd(), 0) }.expect("room"), 2);
            let got = receive(&to_socket, &mut arena);
            assert_eq!(got.len(), 2);
            let (first, payload) = &got[0];
            assert_eq!(payload, b"two parts");
            assert_eq!((first.hop_limit, first.tos, first.segment), (33, 0x2a, 0));
            assert_eq!(first.from, Some(from_address));
            let (second, payload) = &got[1];
            assert!(payload.is_empty());
            assert_eq!((second.hop_limit, second.tos), (64, 0));
            for (received, _) in got {
                arena.release(received.lease);
            }
            assert_eq!(arena.in_use(), 2, "unused leases went back");
        }
    }

    #[test]
    fn a_train_is_cut_on_the_way_out_and_joined_on_the_way_in() {
        let mut arena = Arena::new(256).expect("memory");
        let ((from, _), (to_socket, to)) = (open(DatagramKind::Udp4), open(DatagramKind::Udp4));
        let train: Vec<u8> = (0..3500_u32).map(|i| (i / 1000) as u8).collect();
        let span = lease_with(&mut arena, &train);
        let mut batch = SendBatch::new(1, 1);
        let leave = Leave { to, from: None, segment: 1000, hop_limit: 0, tos: 0 };
        batch.push(&arena, leave, std::iter::once(span));
        // SAFETY: the lease is held.
        assert_eq!(unsafe { batch.send(from.fd(), 0) }.expect("room"), 1);
        let got = receive(&to_socket, &mut arena);
        let bytes: Vec<u8> = got.iter().flat_map(|(_, payload)| payload.clone()).collect();
        assert_eq!(bytes, train);
        let (first, payload) = &got[0];
        assert!(got.len() == 4 || (first.segment == 1000 && payload.len() > 1000));
    }

    /// Sends datagrams of these sizes, receives them in one call and joins what can be: bytes and segments.
    fn join(sizes: &[usize], size_max: usize) -> Vec<(Vec<u8>, u16)> {
        let mut arena = Arena::new(256).expect("memory");
        let ((from, _), (to_socket, to)) = (open(DatagramKind::Udp4), open(DatagramKind::Udp4));
        let sender = std::net::UdpSocket::from(from.fd);
        for (mark, &size) in sizes.iter().enumerate() {
            sender.send_to(&vec![mark as u8; size], to).expect("room");
        }
        let mut batch = ReceiveBatch::new();
        let count = batch.receive(&to_socket, &mut arena, RECEIVE_BATCH).expect("they are there");
        let (count, mut next, mut trains) = (count.expect("leases"), 0, Vec::new());
        assert_eq!(count, sizes.len());
        while next < count {
            let mut train = batch.message(next);
            next += 1;
            next += batch.join(&mut arena, &mut train, next..count, size_max);
            // SAFETY: received into, and held.
            let bytes = unsafe { arena.show(train.lease, HEADROOM + train.bytes) };
            trains.push((bytes[HEADROOM..].to_vec(), train.segment));
            arena.release(train.lease);
        }
        assert_eq!(arena.in_use(), 0, "the leases of what was joined went back");
        trains
    }

    #[test]
    fn datagrams_that_came_one_by_one_are_joined_as_far_as_they_are_alike() {
        let shapes = |sizes: &[usize], size_max| -> Vec<_> {
            let trains = join(sizes, size_max);
            let marks = sizes.iter().enumerate().flat_map(|(mark, &n)| vec![mark as u8; n]);
            assert!(trains.iter().flat_map(|(bytes, _)| bytes).copied().eq(marks), "in order");
            trains.iter().map(|(bytes, segment)| (bytes.len(), *segment)).collect()
        };
        assert_eq!(shapes(&[1000; 5], 1452), [(5000, 1000)]);
        assert_eq!(shapes(&[1000; 5], 999), [(1000, 0); 5], "too large for the link");
        assert_eq!(shapes(&[10, 10, 4, 10], 1452), [(24, 10), (10, 0)], "a short one is the last");
        assert_eq!(shapes(&[10, 11, 11], 1452), [(10, 0), (22, 11)], "a longer one is the first");
        assert_eq!(shapes(&[0, 0, 8, 0], 1452), [(0, 0), (0, 0), (8, 0), (0, 0)]);
        assert_eq!(shapes(&[1; 64], 1452), [(64, 1)]);
        assert_eq!(shapes(&[1400; 50], 1452), [(64_400, 1400), (5600, 1400)]);
    }

    #[test]
    fn datagrams_of_two_senders_are_not_joined() {
        let mut arena = Arena::new(256).expect("memory");
        let (to_socket, to) = open(DatagramKind::Udp4);
        for _ in 0..2 {
            let (from, _) = open(DatagramKind::Udp4);
            std::net::UdpSocket::from(from.fd).send_to(b"alike", to).expect("room");
        }
        let mut batch = ReceiveBatch::new();
        assert_eq!(batch.receive(&to_socket, &mut arena, 8).expect("they are there"), Some(2));
        let mut first = batch.message(0);
        assert_eq!(batch.join(&mut arena, &mut first, 1..2, 1452), 0);
    }

    #[test]
    fn single_datagrams_leave_as_one_train_and_arrive_as_they_were() {
        let mut arena = Arena::new(256).expect("memory");
        let (from, _) = open(DatagramKind::Udp4);
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let to = receiver.local_addr().expect("its address");
        let leave = Leave { to, from: None, segment: 0, hop_limit: 9, tos: 0 };
        let mut batch = SendBatch::new(1, 8);
        let spans = [[1_u8; 700], [2; 700], [3; 700]].map(|bytes| lease_with(&mut arena, &bytes));
        batch.push(&arena, leave, std::iter::once(spans[0]));
        let mut joined = Joined::starting(leave, 700, JOINED_BYTES_MAX).expect("small enough");
        for span in &spans[1..] {
            assert!(batch.has_room_behind() && joined.takes(leave, span.len));
            batch.extend(&arena, joined.segment(), *span);
        }
        assert!(!joined.takes(Leave { hop_limit: 8, ..leave }, 700), "another way");
        assert!(!joined.takes(leave, 701), "longer than the first");
        assert!(joined.takes(leave, 1) && !joined.takes(leave, 700), "a short one is the last");
        // SAFETY: the leases are held.
        assert_eq!(unsafe { batch.send(from.fd(), 0) }.expect("room"), 1);
        for mark in 1..=3 {
            let mut bytes = [0; 1000];
            assert_eq!(receiver.recv(&mut bytes).expect("a datagram"), 700);
            assert_eq!(bytes[..700], [mark; 700]);
        }
    }

    #[test]
    fn what_cannot_be_in_a_train_starts_none() {
        let to = "127.0.0.1:9".parse().expect("an address");
        let leave = Leave { to, from: None, segment: 0, hop_limit: 0, tos: 0 };
        assert!(Joined::starting(leave, 0, 1452).is_none());
        assert!(Joined::starting(leave, 1453, 1452).is_none());
        assert!(Joined::starting(leave, 1, 0).is_none(), "a ping socket");
        assert!(Joined::starting(Leave { segment: 10, ..leave }, 100, 1452).is_none());
    }

    #[test]
    fn a_socket_of_no_address_is_told_what_was_written_to_and_answers_from_it() {
        for (bound_to, written_to) in [
            ("0.0.0.0:0", "127.0.0.2"),
            ("[::]:0", "127.0.0.3"),
            ("[::]:0", "::1"),
            ("127.0.0.4:0", "127.0.0.4"),
        ] {
            let mut arena = Arena::new(256).expect("memory");
            let bound = std::net::UdpSocket::bind(bound_to).expect("a socket");
            let port = bound.local_addr().expect("an address").port();
            let socket = Datagrams::bound(bound.into()).expect("a socket");
            let ip: IpAddr = written_to.parse().expect("an address");
            let any = if ip.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let client = std::net::UdpSocket::bind(any).expect("a socket");
            client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            client.send_to(b"question", (ip, port)).expect("room");
            let (received, _) = receive(&socket, &mut arena)[0];
            let is_told = !bound_to.starts_with("127");
            assert_eq!(received.local, is_told.then_some(ip), "{bound_to}");
            let to = received.from.expect("a sender");
            let leave = Leave { to, from: received.local, segment: 0, hop_limit: 0, tos: 0 };
            let mut batch = SendBatch::new(1, 1);
            batch.push(&arena, leave, std::iter::empty());
            // SAFETY: there are no spans.
            assert_eq!(unsafe { batch.send(socket.fd(), 0) }.expect("room"), 1);
            let (_, from) = client.recv_from(&mut [0; 8]).expect("an answer");
            assert_eq!(from, SocketAddr::new(ip, port), "{bound_to}");
            arena.release(received.lease);
        }
    }

    #[test]
    fn a_taken_port_is_replaced_by_another_one() {
        let outbound = Outbound::default();
        let (_first, address) = open(DatagramKind::Udp4);
        let again = Datagrams::open(DatagramKind::Udp4, address.port(), true, &outbound);
        let (_second, other) = again.expect("another port");
        assert_ne!(other.port(), address.port());
        let low = Datagrams::open(DatagramKind::Udp4, 53, true, &outbound);
        let (_third, low) = low.expect("another port");
        assert!(low.port() >= 1024);
    }
}
