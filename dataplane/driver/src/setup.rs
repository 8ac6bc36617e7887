//! What a runtime is given at its start, and why it may not come about.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use usernet_core::op::DatagramKind;
use usernet_core::{Config, Rules};

/// Two wake-ups across cores: an answer that takes longer is not worth staying awake for. Twice as long gained nothing.
pub const BUSY_POLL: Duration = Duration::from_micros(50);

/// Who is lent flows, and when (decision 16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lend {
    /// So many workers beside that of the link's only queue, which owns all flows.
    pub borrowers: u8,
    /// When that one has waited less than this in 4 ms.
    pub below: Duration,
}

impl Lend {
    /// To so many, while the one that owns the flows is busy all the time.
    pub const fn to(borrowers: u8) -> Self {
        Self { borrowers, below: Duration::from_micros(500) }
    }
}

/// Which backend shall drive the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// io_uring where it works, else epoll; [`Caps`](crate::Caps) says why.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// epoll.
    Epoll,
}

/// Everything that a runtime needs. Descriptors become its own.
pub struct Setup {
    /// The backend.
    pub backend: BackendChoice,
    /// The shard's configuration.
    pub config: Config,
    /// The rules in force at the start. Listeners come by [`Handle::install`](crate::Handle::install).
    pub rules: Arc<Rules>,
    /// The guest's side.
    pub link: Link,
    /// Which workers own no flows and are lent some.
    pub lend: Lend,
    /// Where host-side sockets leave from.
    pub outbound: Outbound,
    /// Sockets in the guest's namespace; none: loopback-to-loopback connections pass the link.
    pub namespace: Option<Box<dyn NamespaceSockets>>,
    /// Every frame of both directions is written here (pcap, nanoseconds).
    pub pcap: Option<File>,
    /// The runtime ends when one of these becomes readable or hangs up: a pipe's end, a pidfd.
    pub exit_fds: Vec<OwnedFd>,
    /// How long a thread that expects an event soon stays awake for it; zero: never. [`BUSY_POLL`] is what
    /// measures well.
    pub busy_poll: Duration,
}

/// The port that carries the guest's frames.
pub struct Link {
    /// The device or socket.
    pub fd: OwnedFd,
    /// Further queues of the device (`IFF_MULTI_QUEUE`): each has a worker of its own.
    pub further: Vec<OwnedFd>,
    /// Device or socket.
    pub kind: LinkKind,
    /// What it was set to.
    pub offload: LinkOffload,
}

/// Threads that translate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Those that own flows, each with a queue of the link.
    pub owners: u8,
    /// Those that are lent some. Only one owner lends.
    pub borrowers: u8,
}

impl Threads {
    /// One that does everything.
    pub const ONE: Self = Self { owners: 1, borrowers: 0 };
}

/// What a [`Link`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A TAP device, attached (`TUNSETIFF` with `IFF_TAP | IFF_NO_PI`), with the offload set that [`Link::offload`]
    /// says. It ends with its namespace.
    Tap,
    /// A connected unix socket of type `SOCK_SEQPACKET`: one Ethernet frame per message, nothing in front of it. It
    /// ends when the peer closes it.
    Packets,
}

impl Link {
    /// A connected `SOCK_SEQPACKET` socket.
    pub fn packets(fd: OwnedFd) -> Self {
        let offload = LinkOffload::default();
        Self { fd, further: Vec::new(), kind: LinkKind::Packets, offload }
    }
}

/// What the link takes over from its two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkOffload {
    /// Bytes of virtio-net header in front of each frame (`TUNSETVNETHDRSZ`): 0 (no `IFF_VNET_HDR`), 10 or 12.
    pub vnet_header_bytes: u8,
    /// Partial checksums both ways (`TUN_F_CSUM`).
    pub checksum: bool,
    /// TCP super-frames both ways, v4 and v6 (`TUN_F_TSO4 | TUN_F_TSO6`, ECN included).
    pub tso: bool,
    /// UDP trains both ways, v4 and v6 (`TUN_F_USO4 | TUN_F_USO6`, Linux 6.2).
    pub uso: bool,
}

/// Where host-side sockets leave from, those to loopback excepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// Local IPv4 address; none: the kernel chooses.
    pub v4: Option<Ipv4Addr>,
    /// Local IPv6 address; none: the kernel chooses.
    pub v6: Option<Ipv6Addr>,
    /// Interface of IPv4 (`SO_BINDTODEVICE`).
    pub interface4: Option<String>,
    /// Interface of IPv6.
    pub interface6: Option<String>,
}

impl Outbound {
    /// The interface of a family.
    pub(crate) fn interface(&self, is_ipv4: bool) -> Option<&str> {
        if is_ipv4 { self.interface4.as_deref() } else { self.interface6.as_deref() }
    }
}

/// Makes sockets inside the guest's namespace, for what need not pass the link.
pub trait NamespaceSockets: Send {
    /// A nonblocking TCP socket, connected or connecting to an address that the guest reaches, its loopback included.
    fn connect(&mut self, to: SocketAddr) -> io::Result<OwnedFd>;

    /// A nonblocking UDP socket of this family, not bound.
    fn datagrams(&mut self, kind: DatagramKind) -> io::Result<OwnedFd>;
}

/// Why a runtime did not come about, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ring was asked for by name and is not to be had.
    #[error("io_uring cannot be used: {reason}")]
    IoUring {
        /// What was tried, and the kernel's answer.
        reason: String,
    },
    /// Packet memory could not be set aside.
    #[error("cannot set aside {bytes} bytes of packet memory: {source}")]
    Memory {
        /// How much was wanted.
        bytes: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call without which there is no runtime.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Limits that contradict each other.
    #[error("limits: {0}")]
    Limits(&'static str),
}

impl DriverError {
    /// For `map_err`.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
