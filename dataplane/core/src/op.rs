//! The boundary between the core and whatever drives it: [`Input`]s go in, [`Op`]s come out.
//!
//! # Rules of the boundary
//!
//! - **Completion based.** [`Op::Connect`], [`Op::Splice`], [`Op::Send`] and [`Op::Peek`] complete exactly
//!   once, in any order among sockets. All others are fire and forget; what goes wrong with them is
//!   counted by the driver or told as [`Input::DatagramError`] / [`Input::Failed`].
//! - **One outstanding.** The core has at most one `Send` run and one `Peek` outstanding per socket.
//! - **Nothing would block.** A `Send` that finds the socket full waits in the driver until at least one
//!   byte is taken; the core never sees `EAGAIN`.
//! - **Edge triggered.** After an [`Input::Connected`], an [`Op::Adopt`], an [`Input::PeekEmpty`] or a
//!   [`PeekedThen::Empty`], an [`Input::Readable`] follows as soon as there is something to peek at, the end of the stream included. A spurious
//!   `Readable` is harmless.
//! - **Stale is silent.** [`Op::Close`] ends a [`SocketId`]: nothing is told for it any more, whatever
//!   was outstanding, and leases of an outstanding `Send` run return to the driver by themselves.
//!   The index of the id is used again with another generation.
//! - **Order.** Ops of one socket take effect in the order in which they were given.
//!
//! # Leases
//!
//! A lease is a buffer of the driver. [`Input::Frame`], [`Input::Peeked`] and [`Input::Datagram`] hand one
//! over to the core, [`Outbox::reserve`] too. Each lease is given back exactly once, by
//! [`Op::WriteFrame`], [`Op::SendTo`], [`Op::HandOver`] or [`Op::Release`]. An [`Op::Send`] only borrows: the core
//! releases the lease when [`Input::Sent`] has covered it.

use core::net::{IpAddr, SocketAddr};

use crate::config::{MacAddr, ShardId};

/// Bytes free in front of the payload in [`Input::Peeked`] and [`Input::Datagram`]: room for Ethernet, IPv6
/// and the longest TCP header (14 + 40 + 60), rounded up.
pub const HEADROOM: usize = 128;

/// The largest frame, super-frames included: Ethernet header and 65,535 bytes of IP.
pub const FRAME_BYTES_MAX: usize = 14 + 65_535;

/// The most bytes that [`Outbox::reserve`] is asked for.
pub const RESERVE_BYTES_MAX: usize = 2_048;

/// A buffer of the driver, handed to the core until it is given back. Small and dense: `0..leases_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u32);

/// One of the host's own addresses, as the driver names it: where a datagram was sent to, and so what an answer to
/// it leaves from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LocalId(pub u16);

impl LocalId {
    /// The one that the socket is bound to, or that the system chooses.
    pub const ANY: Self = Self(0);
}

/// A range of bytes in a leased buffer. `start` counts from the first byte of the slice in which the core
/// was shown the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The buffer.
    pub lease: LeaseId,
    /// Offset of the first byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

/// A host-side socket, named by the core. Index into a table, and the generation of that entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId {
    /// Dense: `0..limits.sockets`.
    pub index: u32,
    /// Counts the uses of this index.
    pub generation: u32,
}

/// A connection that a listener took, named by the driver until the core adopts or refuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcceptedId(pub u32);

/// A forward in the [`Rules`](crate::Rules), named by the control side; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardId(pub u32);

/// Who vouches for a frame's transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nobody has looked at it: the core verifies it (frames from the guest), or there is nothing to do
    /// (frames to the guest: the checksum is complete).
    #[default]
    Unchecked,
    /// The link says it is right.
    Valid,
    /// Only the pseudo-header sum is in place (`VIRTIO_NET_HDR_F_NEEDS_CSUM`). Frames to the guest: whoever
    /// is last before the guest either says so in the virtio-net header or completes the sum.
    Partial {
        /// Where summing starts, from the first byte of the frame.
        start: u16,
        /// Where the sum goes, from `start`.
        offset: u16,
    },
}

/// How a super-frame is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// One frame, not larger than the MTU.
    #[default]
    None,
    /// TCP over IPv4, segments of `size` payload bytes (`VIRTIO_NET_HDR_GSO_TCPV4`).
    Tcp4 {
        /// Payload bytes per segment.
        size: u16,
    },
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    Tcp6 {
        /// Payload bytes per segment.
        size: u16,
    },
    /// UDP over either, datagrams of `size` payload bytes (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp {
        /// Payload bytes per datagram.
        size: u16,
    },
    /// Larger than the MTU and one datagram: whoever writes it cuts it into IP fragments. Only to the guest.
    Fragment,
}

/// What a virtio-net header says of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// How the frame is cut.
    pub gso: Gso,
}

/// How a socket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseHow {
    /// `close(2)`: what was sent is delivered, then FIN.
    Graceful,
    /// RST to the host's peer (`SO_LINGER` 0).
    Reset,
}

/// In whose network namespace a socket of ours is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// The guest's: its routes say how the peer is reached.
    Guest,
    /// The host's.
    #[default]
    Host,
}

/// The kinds of datagram socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DatagramKind {
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
    /// ICMP echo over a ping socket.
    Ping4,
    /// ICMPv6 echo over a ping socket.
    Ping6,
}

/// What the core asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a frame to the guest. The lease returns to the driver.
    WriteFrame {
        /// The frame, Ethernet header first.
        span: Span,
        /// Checksum and segmentation still to be done.
        offload: Offload,
    },
    /// Gives a lease back.
    Release {
        /// The lease.
        lease: LeaseId,
    },
    /// Copies bytes to where another lease's end. Both leases stay the core's.
    Append {
        /// The bytes.
        span: Span,
        /// The lease that takes them.
        to: LeaseId,
        /// Where in it. With the bytes it ends within [`RESERVE_BYTES_MAX`], which every lease has.
        at: u32,
    },
    /// Opens a TCP socket and connects it: [`Input::Connected`] or [`Input::Failed`]. After a failure the
    /// same id may be connected again, to another address.
    Connect {
        /// The id the socket shall have.
        socket: SocketId,
        /// The peer, translation done.
        to: SocketAddr,
        /// From where.
        on: Namespace,
    },
    /// Takes an accepted connection under a socket id. It is writable and may be readable.
    Adopt {
        /// The id the socket shall have.
        socket: SocketId,
        /// The connection.
        accepted: AcceptedId,
    },
    /// Closes an accepted connection with RST.
    Refuse {
        /// The connection.
        accepted: AcceptedId,
    },
    /// Joins an accepted connection to a server on a loopback, inside the kernel:
    /// [`Input::Spliced`] when the server has answered, then [`Input::SpliceEnded`]. [`Input::Failed`] when it could not
    /// be reached: the accepted connection is still there, to be spliced elsewhere, adopted or refused.
    Splice {
        /// The id the pair shall have.
        socket: SocketId,
        /// The connection.
        accepted: AcceptedId,
        /// The server's address and port.
        to: SocketAddr,
        /// In which namespace.
        on: Namespace,
    },
    /// Sends bytes. Ops with `more` set and the one that follows them are one gather write, which completes
    /// once: [`Input::Sent`] with the number of bytes taken (at least 1), or [`Input::Failed`].
    Send {
        /// The socket.
        socket: SocketId,
        /// The bytes; the lease stays the core's.
        span: Span,
        /// The next op continues this write.
        more: bool,
    },
    /// Reads from the socket's queue without consuming: one or more [`Input::Peeked`], the last with another
    /// `then` than [`PeekedThen::More`]; or [`Input::PeekEmpty`], [`Input::PeekEnd`], [`Input::Failed`].
    Peek {
        /// The socket.
        socket: SocketId,
        /// Bytes to skip: counted from the oldest byte that was not consumed.
        offset: u32,
        /// The most bytes wanted.
        len: u32,
        /// The most bytes per lease. Every lease but the last is filled to it.
        chunk: u32,
    },
    /// Removes bytes from the front of the socket's queue.
    Consume {
        /// The socket.
        socket: SocketId,
        /// How many; they have been peeked.
        bytes: u32,
    },
    /// Ends the sending direction (FIN).
    Shutdown {
        /// The socket.
        socket: SocketId,
    },
    /// Ends the socket, or a forward's listener.
    Close {
        /// The socket.
        socket: SocketId,
        /// With FIN or with RST.
        how: CloseHow,
    },
    /// Opens an unconnected datagram socket. [`Input::Opened`] or [`Input::Failed`]; until then `SendTo` may be
    /// given already.
    Open {
        /// The id the socket shall have.
        socket: SocketId,
        /// Family and protocol.
        kind: DatagramKind,
        /// The local port (ping: identifier) to have if it is free; any other one otherwise. Never below 1024.
        port: u16,
        /// Bind to the host's loopback: the peer is a service there.
        loopback: bool,
        /// Where. In the guest's namespace it has any port and no loopback.
        on: Namespace,
    },
    /// Sends a datagram. Ops with `more` set and the one that follows them are one gather write. The leases
    /// return to the driver. Ping sockets: the span starts at the ICMP header.
    SendTo {
        /// The socket.
        socket: SocketId,
        /// The peer.
        to: SocketAddr,
        /// The bytes.
        span: Span,
        /// Not 0: the span is a train of datagrams of this size (`UDP_SEGMENT`).
        segment: u16,
        /// TTL or hop limit. 0: the system's default.
        hop_limit: u8,
        /// Traffic class, ECN bits included.
        tos: u8,
        /// What it leaves from.
        local: LocalId,
        /// The next op continues this datagram.
        more: bool,
    },
    /// Gives a frame of the guest to the shard that it belongs to, as [`Input::HandedOver`]. Ops with `more` set and the
    /// one that follows them are one frame. The leases return to the driver. May be lost, as a frame may.
    HandOver {
        /// The shard.
        to: ShardId,
        /// The frame, or a part of it.
        span: Span,
        /// What is known of it.
        offload: Offload,
        /// The next op continues this frame.
        more: bool,
    },
    /// Gives an accepted connection to the shard that it belongs to, as [`Input::ClientHandedOver`]. If that has no room it
    /// is closed with RST.
    HandOverClient {
        /// The shard.
        to: ShardId,
        /// The connection.
        accepted: AcceptedId,
        /// The forward that it came by.
        forward: ForwardId,
    },
    /// Tells another shard which station has an address, as [`Input::Neighbor`]. May be lost.
    TellNeighbor {
        /// The shard.
        to: ShardId,
        /// The address.
        ip: IpAddr,
        /// The station.
        mac: MacAddr,
    },
}

/// What went wrong outside, as far as the guest can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostError {
    /// `ECONNREFUSED`; ICMP port unreachable.
    Refused,
    /// `ECONNRESET`, `EPIPE`.
    Reset,
    /// `ENETUNREACH`.
    NetUnreachable,
    /// `EHOSTUNREACH`.
    HostUnreachable,
    /// `ETIMEDOUT`.
    TimedOut,
    /// `EACCES`, `EPERM`: forbidden by the host's firewall or policy.
    Prohibited,
    /// `EMSGSIZE`: larger than the path's MTU (0 where unknown).
    TooBig {
        /// Next-hop MTU.
        mtu: u32,
    },
    /// The TTL ran out on the way, at this hop.
    TimeExceeded,
    /// An ICMP error that has no other name here.
    Icmp {
        /// ICMP or ICMPv6 type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// No descriptor, no memory, no free port: the host has no room.
    NoRoom,
    /// The kernel has no such socket for us (ping sockets without `ping_group_range`, no IPv6).
    Unsupported,
    /// Any other errno.
    Other(i32),
}

/// What follows the bytes of an [`Input::Peeked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeekedThen {
    /// Further `Peeked` of the same op.
    More,
    /// Not known: the next `Peek` says it.
    Unknown,
    /// Nothing for now, as after [`Input::PeekEmpty`]: an [`Input::Readable`] will come.
    Empty,
    /// The end of the stream: nothing will ever come behind these bytes.
    End,
}

/// What the core is told.
#[derive(Debug)]
pub enum Input<'a> {
    /// A frame from the guest. The lease is the core's.
    Frame {
        /// The buffer.
        lease: LeaseId,
        /// The frame, Ethernet header first; it starts at offset 0 of the lease's spans.
        bytes: &'a mut [u8],
        /// What the link says of it.
        offload: Offload,
    },
    /// A `Connect` succeeded.
    Connected {
        /// The socket.
        socket: SocketId,
    },
    /// A `Splice` reached its server.
    Spliced {
        /// The pair.
        socket: SocketId,
    },
    /// A spliced pair ended; the driver has closed both.
    SpliceEnded {
        /// The pair.
        socket: SocketId,
        /// Payload bytes to the guest's server.
        to_guest: u64,
        /// Payload bytes from it.
        from_guest: u64,
    },
    /// A forward's listener took a connection.
    Accepted {
        /// Its name until it is adopted, spliced or refused.
        accepted: AcceptedId,
        /// The listener.
        listener: SocketId,
        /// The client.
        peer: SocketAddr,
        /// The address it connected to.
        local: SocketAddr,
    },
    /// A `Send` run completed.
    Sent {
        /// The socket.
        socket: SocketId,
        /// Bytes taken, counted from the front of the run.
        bytes: u32,
    },
    /// There is something to peek at.
    Readable {
        /// The socket.
        socket: SocketId,
    },
    /// Bytes of a `Peek`.
    Peeked {
        /// The socket.
        socket: SocketId,
        /// The buffer, now the core's.
        lease: LeaseId,
        /// [`HEADROOM`] free bytes, then the payload.
        bytes: &'a mut [u8],
        /// What follows them.
        then: PeekedThen,
    },
    /// A `Peek` found nothing yet.
    PeekEmpty {
        /// The socket.
        socket: SocketId,
    },
    /// A `Peek` found the end of the stream at its offset.
    PeekEnd {
        /// The socket.
        socket: SocketId,
    },
    /// An `Open` succeeded.
    Opened {
        /// The socket.
        socket: SocketId,
        /// Local address and port (ping: identifier).
        local: SocketAddr,
    },
    /// A datagram, or a train of equal ones.
    Datagram {
        /// The socket: an open one, or a forward's.
        socket: SocketId,
        /// The buffer, now the core's.
        lease: LeaseId,
        /// [`HEADROOM`] free bytes, then the payload. Ping sockets: the ICMP message.
        bytes: &'a mut [u8],
        /// The sender.
        from: SocketAddr,
        /// What it was sent to, where the socket is bound to no address.
        local: LocalId,
        /// Not 0: datagrams of this size follow each other, the last may be shorter (`UDP_GRO`).
        segment: u16,
        /// TTL or hop limit on arrival.
        hop_limit: u8,
        /// Traffic class, ECN bits included.
        tos: u8,
    },
    /// A datagram that was sent could not be delivered (`IP_RECVERR`, or the send call itself).
    DatagramError {
        /// The socket.
        socket: SocketId,
        /// Where the datagram was to go.
        to: SocketAddr,
        /// The reason.
        error: HostError,
        /// Who says so: a router, the peer, or none (the local host).
        offender: Option<IpAddr>,
        /// The first bytes of the datagram's payload (ping: of the ICMP message), as far as they are known.
        payload: &'a [u8],
    },
    /// The socket is dead: a `Connect`, `Splice` or `Open` that did not come about, or the host's peer reset
    /// a connection. Leases of an outstanding `Send` are the core's again.
    Failed {
        /// The socket.
        socket: SocketId,
        /// The reason.
        error: HostError,
    },
    /// A frame that came to another shard and belongs to this one. The lease is the core's.
    HandedOver {
        /// The buffer.
        lease: LeaseId,
        /// The frame, as in [`Input::Frame`].
        bytes: &'a mut [u8],
        /// What is known of it.
        offload: Offload,
    },
    /// A client of a forward whose listener is another shard's.
    ClientHandedOver {
        /// Its name until it is adopted, spliced or refused.
        accepted: AcceptedId,
        /// The forward.
        forward: ForwardId,
        /// The client.
        peer: SocketAddr,
        /// The address it connected to.
        local: SocketAddr,
    },
    /// Another shard has heard which station has an address.
    Neighbor {
        /// The address.
        ip: IpAddr,
        /// The station.
        mac: MacAddr,
    },
    /// A deadline has come, or time has passed.
    Tick,
}

/// Where the core puts what it wants done.
pub trait Outbox {
    /// Adds an op.
    fn op(&mut self, op: Op);

    /// Reserves a buffer for a frame that the core starts, at most [`RESERVE_BYTES_MAX`] bytes. The slice is
    /// `size` bytes long, starts at offset 0 of the lease's spans, and holds anything.
    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])>;
}

const _: () = assert!(size_of::<Op>() <= 64, "an op fits a cache line");
