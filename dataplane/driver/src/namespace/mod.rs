//! The guest's network namespace: entering it, giving it a TAP, making sockets in it, noticing its end.
//!
//! # Theory of operation
//!
//! `setns` into a user namespace works only with a single thread, and would take the daemon's own
//! capabilities away (as root: the right to bind port 80 on the host). So nothing of this happens in the
//! daemon: [`attach`] forks a *helper* that joins the namespaces and stays in them. The helper holds no
//! descriptor of the daemon but its ends of three socket pairs:
//!
//! - the *channel*, by which it hands over the TAP once, and afterwards a connected socket per request of the data
//!   path; a second one like it serves the control thread, with the kernel's lists of listening sockets ([`Ports`])
//!   once and a listening socket per request, so that neither waits for what the other asks;
//! - the *end*, on which it says that the guest's namespace has ended, and whose hang-up says that the
//!   helper itself has ended.
//!
//! It ends with the daemon: its end of the channel hangs up, and `PR_SET_PDEATHSIG` takes it even where a
//! third process has inherited the other end. It is in a process group of its own with all signals
//! blocked, so that Ctrl-C in a terminal reaches the daemon alone, which ends in order.
//!
//! ```text
//!   daemon ──fork──▶ helper: userns (if need be) ─▶ netns ─▶ TAP ─▶ address, route
//!      ▲                 │
//!      ├── TAP, sockets ─┤  channel (SOCK_SEQPACKET, SCM_RIGHTS)
//!      ├─ lists, sockets ┤  the control thread's
//!      └── the end ──────┘  end (SOCK_STREAM)
//! ```
//!
//! ## Where the TAP is made, and what that means for the end
//!
//! A TAP can only be made in the namespace in which `/dev/net/tun` was opened, and the open file holds a
//! reference to that namespace (`tun_chr_open` takes it with the file's socket). Made in the target, our
//! own descriptor thus keeps the target from ending; made elsewhere and moved, it does not: when the target
//! ends, the kernel removes the device and reading the descriptor fails with `EBADFD`.
//!
//! We make it in the target. Measured on Linux 6.18 with `CONFIG_HZ=250`: making it takes 0.2 ms;
//! moving it takes 17 to 45 ms, all of it spent in `rcu_barrier` below `__dev_change_net_namespace`, which no
//! caller can shorten. A container's start would wait for it. The price is that the kernel
//! does not tell us the end; the module `watch` says how the helper finds it out.
//!

mod channel;
mod configure;
mod egress;
mod error;
mod helper;
pub mod listen;
mod message;
mod netlink;
mod ports;
mod sockets;
mod survey;
mod tap;
mod target;
mod tunnels;
mod watch;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use usernet_core::config::{MacAddr, Net4, Net6};

pub use egress::{Egress, egress_mtu};
pub use error::AttachError;
pub use ports::{Listening, Ports};
pub use sockets::NamespaceListeners;
pub use survey::{HostRoute, Interface, Route, Survey};
pub use tap::take_over;
pub use tunnels::{TunnelDevice, TunnelLink, TunnelRoute};

use channel::Channel;
use helper::Channels;
use message::{Report, decode_offload};
use sockets::HelperSockets;
use target::OpenTarget;
use tunnels::TUNNELS_MAX;

use crate::{Link, LinkKind, NamespaceSockets};

/// Which network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// That of a process.
    Pid(i32),
    /// That of a file: `/proc/PID/ns/net`, `/run/netns/NAME`, `/proc/self/fd/N`.
    Path(PathBuf),
}

/// What to attach to, and what to make there.
#[derive(Clone, Debug)]
pub struct Request {
    /// The guest's network namespace.
    pub target: Target,
    /// The user namespace to join before; none: the one that owns the network namespace, and only if it may
    /// not be entered from here.
    pub userns: Option<PathBuf>,
    /// The name of the TAP in the namespace.
    pub tap_name: String,
    /// Its MTU, in bytes of IP.
    pub mtu: u16,
    /// Its Ethernet address.
    pub guest_mac: MacAddr,
    /// Its IPv4 address and default route.
    pub net4: Option<Net4>,
    /// Its IPv6 address and default route.
    pub net6: Option<Net6>,
    /// Further addresses of it, with their prefix lengths.
    pub further: Vec<(IpAddr, u8)>,
    /// Routes over it, beside the default ones. One that cannot be had is told and left out.
    pub routes: Vec<Route>,
    /// Bring `lo` and the TAP up and set addresses and routes. Without: the TAP is made, down, with MTU and
    /// Ethernet address only.
    pub configure: bool,
    /// Bring `lo` up even without `configure`.
    pub loopback_up: bool,
    /// Take a TAP of that name that is there already and that nobody uses, as others have set it up: without
    /// `configure`, MTU and Ethernet address stay as they are, those of a new one too.
    pub adopt: bool,
    /// Queues of it, at least one: each is for a worker.
    pub queues: u8,
    /// Use what the kernel takes over of checksums and segmentation.
    pub offload: bool,
    /// The length of the TAP's transmit queue, in packets: what the guest sends waits there to be read.
    pub txqueuelen: u32,
    /// Further devices, each for a tunnel. They are set up whole, whatever [`configure`](Self::configure) says.
    pub tunnels: Vec<TunnelDevice>,
    /// What the helper does last before it serves, to give up what it does not need.
    pub confine: fn(),
}

/// A namespace with our TAP in it.
pub struct Attached {
    /// The TAP. Closing it removes the device.
    pub link: Link,
    /// The tunnels' devices, in the order of the request.
    pub tunnels: Vec<TunnelLink>,
    /// Its Ethernet address: with [`adopt`](Request::adopt) not the one that was asked for.
    pub guest_mac: MacAddr,
    /// Makes sockets in the namespace; dropping it ends the helper.
    pub sockets: Box<dyn NamespaceSockets>,
    /// Makes listening sockets in the namespace.
    pub listeners: NamespaceListeners,
    /// What programs listen on in the namespace.
    pub ports: Ports,
    /// Tells when and why it is over.
    pub ended: NamespaceEnd,
    /// The helper's process.
    pub helper_pid: i32,
    /// What could not be done and does not prevent the rest, one line each.
    pub warnings: Vec<String>,
}

/// Becomes readable when the namespace has ended, or the helper.
#[derive(Debug)]
pub struct NamespaceEnd(OwnedFd);

/// Why there is nothing left to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// No process and no name holds the namespace any more.
    NamespaceGone,
    /// The helper was killed, or its `NamespaceSockets` dropped.
    HelperGone,
}

impl NamespaceEnd {
    /// Why it is over; none while it is not.
    pub fn reason(&self) -> Option<EndReason> {
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match nix::sys::socket::recv(self.0.as_raw_fd(), &mut byte, flags) {
            Ok(0) => Some(EndReason::HelperGone),
            Ok(_) => Some(EndReason::NamespaceGone),
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Err(_) => Some(EndReason::HelperGone),
        }
    }
}

impl AsFd for NamespaceEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes the TAP in the target and configures it. Call this before the first thread is started: it forks. All that
/// was done is undone if it fails.
pub fn attach(request: &Request) -> Result<Attached, AttachError> {
    let tunnels = request.tunnels.iter().map(|tunnel| &tunnel.name);
    for name in std::iter::once(&request.tap_name).chain(tunnels) {
        if !tap::is_device_name(name) {
            return Err(AttachError::TapName { name: name.clone() });
        }
    }
    if request.tunnels.len() > TUNNELS_MAX {
        return Err(AttachError::TooManyTunnels);
    }
    let target = OpenTarget::open(request)?;
    let pair = || Channel::pair().map_err(AttachError::helper("make a socket pair"));
    let (data_path, helper_data_path) = pair()?;
    let (control, helper_control) = pair()?;
    let channels = Channels { data_path: helper_data_path, control: helper_control };
    let (end, helper_end) =
        UnixStream::pair().map_err(AttachError::helper("make a socket pair"))?;
    let pid = helper::start(request, target, channels, OwnedFd::from(helper_end))?;
    // From here on, leaving early drops `sockets`, which ends the helper; the TAP then has no descriptor left.
    let sockets = HelperSockets::new(data_path, pid);
    let report = sockets.report().map_err(AttachError::helper("hear from the helper process"))?;
    match report {
        Some((Report::Ready { offload, warnings }, Some(tap))) => {
            let further = further_queues(&sockets, request.queues)?;
            let tunnels = tunnels_made(&sockets, request)?;
            sockets.limit_waiting().map_err(AttachError::helper("set a socket's timeout"))?;
            let (listeners, ports) = NamespaceListeners::new(control)
                .map_err(AttachError::helper("hear from the helper process"))?;
            let guest_mac = tap::ethernet_address(&tap)
                .map_err(AttachError::helper("ask for the TAP's address"))?;
            Ok(Attached {
                tunnels,
                guest_mac,
                listeners,
                ports,
                link: Link { fd: tap, further, kind: LinkKind::Tap, offload },
                helper_pid: sockets.pid(),
                sockets: Box::new(sockets),
                ended: NamespaceEnd(OwnedFd::from(end)),
                warnings,
            })
        }
        Some((Report::Failed(failure), _)) => Err(AttachError::from_failure(failure, request)),
        // A report without its TAP is one that found no free descriptor here.
        Some((Report::Ready { .. }, None)) => {
            Err(AttachError::helper("take over the TAP")(Errno::EMFILE.into()))
        }
        None => Err(AttachError::HelperKilled { target: request.target.clone() }),
    }
}

/// The descriptors that follow the report.
fn further_queues(sockets: &HelperSockets, queues: u8) -> Result<Vec<OwnedFd>, AttachError> {
    let queue = |_| sockets.descriptor()?.map(|(_, queue)| queue).ok_or(Errno::EMFILE.into());
    let queues = (1..queues).map(queue).collect::<std::io::Result<_>>();
    queues.map_err(AttachError::helper("take over the TAP's queues"))
}

/// The descriptors that follow the queues.
fn tunnels_made(
    sockets: &HelperSockets,
    request: &Request,
) -> Result<Vec<TunnelLink>, AttachError> {
    let link = |device: &TunnelDevice| {
        let (offload, fd) = sockets.descriptor()?.ok_or(Errno::EMFILE)?;
        Ok(TunnelLink { fd, name: device.name.clone(), offload: decode_offload(offload) })
    };
    let links = request.tunnels.iter().map(link).collect::<std::io::Result<_>>();
    links.map_err(AttachError::helper("take over the tunnels' devices"))
}
