//! What a daemon is to do: the one configuration that every command line becomes.
//!
//! `usernetd`, `slirp4netns` and `pasta` have a grammar each, with its own defaults, checks and messages. Each grammar
//! ends in a [`Plan`], and [`daemon::run`](crate::daemon) does what it says without knowing who asked. So a plan has
//! no defaults of its own: what an option that was not given means is for its grammar to say.
//!
//! A plan is data. Descriptors are the numbers that the caller gave; they are claimed first of all when the
//! plan is run, so nothing that a grammar opens while it makes one may still be open then.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Gid, Uid};
use usernet_core::config::{Announced, MacAddr, Net4, Net6, Protocols, Services, Timeouts};
use usernet_core::rules::Access;
use usernet_driver::namespace::{Route, Target};
use usernet_driver::{BackendChoice, Outbound, Threads};

use crate::forwards::Automatic;
use crate::program::Program;
use crate::sandbox::Policy;
use crate::slirp4netns::api::Guest;
use crate::spec::Spec;
use crate::wireguard::Tunnel;

/// The largest MTU: 65,535 bytes with their Ethernet header, as for other TAP users.
pub const MTU_MAX: u16 = 65_521;

/// What a daemon is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who speaks: its name stands in front of what is told.
    pub program: Program,
    /// What carries the guest's frames.
    pub link: Link,
    /// The link's MTU; none: that of this host's way out.
    pub mtu: Option<u16>,
    /// Our own Ethernet address on the link.
    pub host_mac: MacAddr,
    /// The guest's.
    pub guest_mac: MacAddr,
    /// IPv4 on the link; none: no IPv4.
    pub net4: Option<Net4>,
    /// IPv6 on the link; none: no IPv6.
    pub net6: Option<Net6>,
    /// Further addresses of the guest, beside those of its networks.
    pub further: Vec<IpAddr>,
    /// Which configuration protocols are answered.
    pub services: Services,
    /// What they tell the guest, beside its addresses.
    pub announced: Announced,
    /// What is translated.
    pub protocols: Protocols,
    /// What of the host the guest reaches, and by which addresses.
    pub access: Access,
    /// Who resolves the guest's names.
    pub resolvers: Resolvers,
    /// Host ports that lead to the guest.
    pub forwards: Vec<Spec>,
    /// Ports of the guest's namespace that lead to the host.
    pub outward: Vec<Spec>,
    /// Forwards of either direction that follow the programs that listen.
    pub automatic: Vec<Automatic>,
    /// Where host-side sockets leave from.
    pub outbound: Outbound,
    /// When silence ends a flow.
    pub timeouts: Timeouts,
    /// How the kernel is asked.
    pub backend: BackendChoice,
    /// How long the data path stays awake for an event that it expects soon.
    pub busy_poll: Duration,
    /// Where control requests are listened for; none: nowhere.
    pub api: Option<Api>,
    /// Gets a "1" and is closed as soon as the network is there.
    pub ready_fd: Option<RawFd>,
    /// Ends the daemon when it becomes readable or hangs up.
    pub exit_fd: Option<RawFd>,
    /// Holds the process id while the daemon runs.
    pub pid_file: Option<PathBuf>,
    /// Gets every frame of both directions.
    pub pcap: Option<PathBuf>,
    /// How far the daemon confines itself.
    pub sandbox: Policy,
    /// What is told while it runs.
    pub log: Log,
    /// Where it is told instead of on standard error.
    pub log_file: Option<LogFile>,
    /// What is told once, when the network is there.
    pub announcement: Announcement,
    /// Whether standard input, output and error are let go when the network is there.
    pub lets_go_of_caller: bool,
    /// User and group to become when all that needs privileges is done; none: who we are.
    pub run_as: Option<(Uid, Gid)>,
    /// Whether the daemon goes on when the namespace has no name any more.
    pub outlives_namespace: bool,
    /// Tunnels of the guest's namespace.
    pub tunnels: Vec<Tunnel>,
    /// The directory of the tunnels' userspace API sockets; none: there are none.
    pub tunnel_api: Option<PathBuf>,
    /// What was noticed while the plan was made.
    pub warnings: Vec<String>,
}

/// What carries the guest's frames.
#[derive(Clone, Debug)]
pub enum Link {
    /// A TAP in a network namespace.
    Namespace(Namespace),
    /// A TAP that the caller has opened: its descriptor.
    Tap(RawFd),
    /// A unix socket of type `SOCK_SEQPACKET` at this path, which one peer connects to and sends a frame per message
    /// by: User Mode Linux's `bess` transport. The daemon waits for the peer and ends with it.
    Socket(PathBuf),
}

impl Link {
    /// How many workers are lent flows.
    pub fn borrowers(&self) -> u8 {
        match self {
            Self::Namespace(namespace) => namespace.workers.borrowers,
            Self::Tap(_) | Self::Socket(_) => 0,
        }
    }
}

/// A network namespace, and what is made in it.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Which one.
    pub target: Target,
    /// The user namespace to enter first; none: the one that owns the network namespace, where that is needed.
    pub userns: Option<PathBuf>,
    /// The TAP's name there.
    pub tap_name: String,
    /// Further addresses of it with their prefix lengths, beside those of the plan's networks.
    pub further: Vec<(IpAddr, u8)>,
    /// Routes over it, beside the default ones.
    pub routes: Vec<Route>,
    /// Whether the devices are brought up, with addresses and routes.
    pub configure: bool,
    /// Whether `lo` is brought up even if the rest is not.
    pub loopback_up: bool,
    /// Whether a TAP of that name that is there already, and not in use, is taken. Without `configure` nothing is
    /// set then, of a new one neither.
    pub adopt: bool,
    /// Whether the TAP takes over checksums and segmentation.
    pub offload: bool,
    /// Threads that translate. Each that owns flows has a queue of the TAP, which is why no other link has several.
    pub workers: Threads,
}

/// Who resolves the guest's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolvers {
    /// Those in the host's resolv.conf, whenever it changes.
    OfHost,
    /// These.
    These(Vec<SocketAddr>),
}

/// A control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Its name.
    pub path: PathBuf,
    /// What is spoken there.
    pub protocol: ApiProtocol,
}

/// What is spoken on a control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiProtocol {
    /// That of `usernet`: see `docs/control-api.md`.
    Native,
    /// That of slirp4netns, for this guest.
    Slirp4netns(Guest),
}

/// What is told while a daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How much.
    pub level: tracing::Level,
    /// How.
    pub format: LogFormat,
}

/// A file for log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Its name.
    pub path: PathBuf,
    /// Its size, in bytes: the oldest lines go when it is reached.
    pub bytes_max: u64,
}

/// How a line is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What standard output gets when the network is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// Nothing.
    Nothing,
    /// One line that says what was set up.
    Summary(LogFormat),
    /// These lines; and standard error the TAP's descriptor and name.
    TapAnd(String),
}
