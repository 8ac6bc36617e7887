//! The control thread: everything that happens beside the data path while it runs.
//!
//! It waits for signals, the exit descriptor, the namespace's end, changes of `/etc/resolv.conf` and requests on
//! the control socket, and reaches the data path through its [`Handle`]. It never waits for a client; the data
//! path never waits for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use serde_json::Value;
use usernet_core::rules::{Access, HostLoopback};
use usernet_core::{Config, Counter, Rules};
use usernet_driver::namespace::{EndReason, NamespaceEnd};
use usernet_driver::{Gone, Handle, Install, InstallError};

use crate::api::message::{
    ApiError, Call, ErrorCode, FlowEntry, FlowParams, Flows, Forwarded, Forwards, Network, Status,
    Usage, Worker,
};
use crate::api::protocol::Outcome;
use crate::api::server::Server;
use crate::forwards::follow::Follower;
use crate::forwards::{Change, Direction, Entry, ForwardError, ForwardTable, Leads, Wanted};
use crate::keeper::{Keeper, News};
use crate::logging::Warnings;
use crate::sandbox::Report;
use crate::spec::Spec;
use crate::tunnels::Tunnels;

/// Why the daemon is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The namespace has ended.
    NamespaceGone,
    /// The peer has closed the link's socket.
    PeerClosed,
    /// Our helper in the namespace was killed.
    HelperGone,
    /// Something happened on the exit descriptor.
    ExitFd,
    /// A signal.
    Signal(Signal),
    /// A request on the control socket.
    Requested,
    /// The data path has ended by itself.
    DataPath,
}

/// What a daemon was started with, as far as `status` tells it.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The namespace as the command line names it.
    pub(crate) netns: String,
    /// The TAP's name.
    pub(crate) tap: String,
    /// What the shard was started with.
    pub(crate) config: Config,
    /// What of the host the guest reaches.
    pub(crate) access: Access,
    /// What did not work out, until now.
    pub(crate) warnings: Warnings,
    /// What was given up after the set-up.
    pub(crate) sandbox: Report,
    /// When the network was there.
    pub(crate) ready: Instant,
}

/// What ends a daemon from outside.
pub(crate) struct Ends {
    /// SIGTERM, SIGINT, SIGHUP; blocked everywhere else.
    pub(crate) signals: SignalFd,
    /// The namespace, or the helper in it; none: there is none, or its end is none of ours.
    pub(crate) namespace: Option<NamespaceEnd>,
    /// What the caller gave us.
    pub(crate) exit: Option<OwnedFd>,
    /// Written by the main thread when the data path has ended.
    pub(crate) data_path: Arc<EventFd>,
}

/// The state of the control thread.
pub(crate) struct Control {
    pub(crate) handle: Handle,
    pub(crate) facts: Facts,
    pub(crate) ends: Ends,
    pub(crate) forwards: ForwardTable,
    /// None: no forward follows a program.
    pub(crate) follower: Option<Follower>,
    /// The resolvers in force.
    pub(crate) resolvers: Vec<std::net::SocketAddr>,
    /// The guest's tunnels.
    pub(crate) tunnels: Tunnels,
    /// None: there is nothing to keep.
    pub(crate) keeper: Option<Keeper>,
    /// None: nobody asked for one.
    pub(crate) server: Option<Server>,
    /// For each tunnel, if somebody asked for them.
    pub(crate) tunnel_servers: Vec<Server>,
    /// `stop` was asked for.
    pub(crate) is_stop_requested: bool,
}

impl Control {
    /// Hands the data path its first listeners.
    pub(crate) fn start(&mut self, first: Change) -> Result<(), InstallError> {
        self.put_in_force(first)?;
        // What listens by now is forwarded when the caller hears that the network is there.
        self.follow_programs(Instant::now());
        Ok(())
    }

    fn put_in_force(&mut self, mut change: Change) -> Result<(), InstallError> {
        let listeners = change.take_listeners();
        let rules = self.rules(change.leads(), &self.resolvers);
        self.handle.install(Install { rules, listeners })?;
        self.forwards.commit(change);
        Ok(())
    }

    /// Serves until there is a reason to end, and stops the data path.
    pub(crate) fn run(mut self) -> Cause {
        let cause = loop {
            let ready = self.wait();
            if let Some(cause) = self.cause(ready) {
                break cause;
            }
            self.turn();
        };
        self.handle.stop();
        cause
    }

    /// Waits until there is something to do. The answer says which of the ends has spoken.
    fn wait(&self) -> [bool; 4] {
        let timeout = self.timeout();
        let exit = self.ends.exit.as_ref().map(OwnedFd::as_fd);
        let data_path: BorrowedFd<'_> = self.ends.data_path.as_fd();
        let signals = self.ends.signals.as_fd();
        // A descriptor that is not there is replaced by one that is watched anyway.
        let namespace = self.ends.namespace.as_ref().map(NamespaceEnd::as_fd);
        let ends = [data_path, namespace.unwrap_or(signals), signals, exit.unwrap_or(signals)];
        let keeper = self.keeper.as_ref().and_then(Keeper::fd);
        let others = keeper.into_iter().chain(self.tunnels.fd()).map(|fd| (fd, PollFlags::POLLIN));
        let others = others.chain(self.servers().flat_map(Server::interests));
        let mut fds: Vec<PollFd<'_>> = ends
            .into_iter()
            .map(|fd| (fd, PollFlags::POLLIN))
            .chain(others)
            .map(|(fd, flags)| PollFd::new(fd, flags))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => tracing::error!("poll: {errno}"),
        }
        let speaks = |at: usize| fds[at].any().unwrap_or(true);
        [speaks(0), namespace.is_some() && speaks(1), speaks(2), exit.is_some() && speaks(3)]
    }

    fn timeout(&self) -> PollTimeout {
        let server = self.servers().filter_map(Server::deadline).min();
        if self.is_stop_requested || self.servers().any(Server::has_more) {
            return PollTimeout::ZERO;
        }
        let follower = self.follower.as_ref().map(Follower::deadline);
        let next = [server, follower, self.tunnels.deadline()].into_iter().flatten().min();
        let Some(at) = next else { return PollTimeout::NONE };
        // Rounded up: a deadline is not waited for in a loop of its last fraction of a millisecond.
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    /// Why to end, if one of the ends says so. The data path's own end comes first: it has its own reason.
    fn cause(&self, [data_path, namespace, signals, exit]: [bool; 4]) -> Option<Cause> {
        if data_path {
            return Some(Cause::DataPath);
        }
        if namespace && let Some(reason) = self.ends.namespace.as_ref().and_then(|n| n.reason()) {
            return Some(match reason {
                EndReason::NamespaceGone => Cause::NamespaceGone,
                EndReason::HelperGone => Cause::HelperGone,
            });
        }
        if signals && let Some(cause) = signal(&self.ends.signals) {
            return Some(cause);
        }
        if exit {
            return Some(Cause::ExitFd);
        }
        self.is_stop_requested.then_some(Cause::Requested)
    }

    fn turn(&mut self) {
        let now = Instant::now();
        while let Some(news) = self.keeper.as_mut().and_then(Keeper::news) {
            self.on_news(news);
        }
        self.follow_programs(now);
        self.tunnels.turn(now);
        // Out of its place for the turn: answering takes the rest of us.
        if let Some(mut server) = self.server.take() {
            server.turn(now, &mut |call| self.answer(call));
            self.server = Some(server);
        }
        for server in &mut self.tunnel_servers {
            server
                .turn(now, &mut |_| Err(ApiError::new(ErrorCode::UnknownMethod, "not asked here")));
        }
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        self.server.iter().chain(&self.tunnel_servers)
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Resolvers(resolvers) => self.take_over(resolvers),
            News::Warning(warning) => tracing::warn!("{warning}"),
            News::Gone => tracing::warn!(
                "the process that keeps our files was killed: resolv.conf is not followed any more, \
                 and the control socket answers nobody"
            ),
        }
    }

    fn take_over(&mut self, resolvers: Vec<std::net::SocketAddr>) {
        let shared = self.rules(self.forwards.leads(), &resolvers);
        match self.handle.install(Install { rules: shared, listeners: Vec::new() }) {
            Ok(()) => {
                tracing::info!("the host's resolvers are now {resolvers:?}");
                self.resolvers = resolvers;
            }
            Err(error) => tracing::warn!("cannot take over the host's new resolvers: {error}"),
        }
    }

    /// Makes the automatic forwards what they should be.
    fn follow_programs(&mut self, now: Instant) {
        let Some(mut follower) = self.follower.take() else { return };
        let used_ports = || {
            let flows = self.handle.flows().unwrap_or_default();
            flows.iter().filter_map(|flow| flow.host).map(|host| host.port()).collect()
        };
        if let Some(wanted) = follower.turn(now, &self.forwards, used_ports) {
            match self.forwards.plan(wanted) {
                Ok(change) => {
                    follower.leave_out(&change.left_out);
                    if let Err(error) = self.put_in_force(change) {
                        tracing::warn!("cannot follow the programs that listen: {error}");
                    }
                }
                Err(error) => tracing::warn!("cannot follow the programs that listen: {error}"),
            }
        }
        self.follower = Some(follower);
    }

    fn rules(&self, leads: Leads, resolvers: &[std::net::SocketAddr]) -> Arc<Rules> {
        let Facts { config, access, .. } = &self.facts;
        Rules::new(config, access, leads.forwards, resolvers.to_vec()).with_outward(leads.outward)
    }

    fn answer(&mut self, call: Call) -> Outcome {
        tracing::debug!("control request: {}", call.method());
        match call {
            Call::Status => to_value(self.status()?),
            Call::Flows(params) => to_value(self.flows(params)?),
            Call::ForwardList => to_value(listed(self.forwards.entries())),
            Call::ForwardAdd(specs) => self.add(Direction::Inward, specs),
            Call::ForwardRemove(specs) => self.remove(Direction::Inward, &specs),
            Call::ForwardSet(specs) => self.replace(Direction::Inward, specs),
            Call::OutwardAdd(specs) => self.add(Direction::Outward, specs),
            Call::OutwardRemove(specs) => self.remove(Direction::Outward, &specs),
            Call::OutwardSet(specs) => self.replace(Direction::Outward, specs),
            Call::Stop => {
                self.is_stop_requested = true;
                Ok(Value::Object(serde_json::Map::new()))
            }
        }
    }

    fn add(&mut self, direction: Direction, specs: Vec<Spec>) -> Outcome {
        let wanted = self.forwards.with(direction, specs.clone())?;
        self.change_forwards(wanted)?;
        let is_new = |entry: &&Entry| {
            entry.direction == direction && !entry.is_automatic && specs.contains(&entry.spec)
        };
        to_value(listed(self.forwards.entries().iter().filter(is_new)))
    }

    fn remove(&mut self, direction: Direction, specs: &[Spec]) -> Outcome {
        self.change_forwards(self.forwards.without(direction, specs)?)?;
        to_value(listed(self.forwards.entries()))
    }

    fn replace(&mut self, direction: Direction, specs: Vec<Spec>) -> Outcome {
        self.change_forwards(self.forwards.replaced(direction, specs))?;
        to_value(listed(self.forwards.entries()))
    }

    /// Puts a set of forwards in force, all of it or nothing.
    fn change_forwards(&mut self, wanted: Vec<Wanted>) -> Result<(), ApiError> {
        let change = self.forwards.plan(wanted)?;
        for warning in &change.warnings {
            tracing::warn!("{warning}");
        }
        self.put_in_force(change)?;
        Ok(())
    }

    fn status(&self) -> Result<Status, ApiError> {
        let workers = self.handle.workers()?;
        let now = usernet_driver::Status::sum(&workers).ok_or(Gone)?;
        let Facts { netns, tap, config, access, warnings, sandbox, ready } = &self.facts;
        Ok(Status {
            usernetd: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(ready.elapsed().as_millis()).unwrap_or(u64::MAX),
            netns: netns.clone(),
            tap: tap.clone(),
            backend: backend_name(now.backend).to_owned(),
            io_uring_denied: now.caps.io_uring_denied.clone(),
            mtu: config.mtu,
            ipv4: network4(config),
            ipv6: network6(config),
            resolvers: self.resolvers.clone(),
            host_loopback: loopback_name(&access.host_loopback),
            forwards: u32::try_from(self.forwards.entries().len()).unwrap_or(u32::MAX),
            usage: usage(&now),
            workers: workers.iter().map(worker).collect(),
            warnings: warnings.lines(),
            sandbox: sandbox.clone(),
            tunnels: self.tunnels.statuses(),
            counters: now.counters.iter().map(|&(name, n)| (name.to_owned(), n)).collect(),
        })
    }

    fn flows(&self, params: FlowParams) -> Result<Flows, ApiError> {
        let flows = self.handle.flows()?;
        let limit = params.limit.map_or(usize::MAX, |limit| limit as usize);
        Ok(Flows {
            total: u32::try_from(flows.len()).unwrap_or(u32::MAX),
            flows: flows.iter().take(limit).map(FlowEntry::from).collect(),
        })
    }
}

fn usage(now: &usernet_driver::Status) -> Usage {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    Usage {
        tcp_flows: count(now.tcp_flows),
        spliced_flows: count(now.spliced_flows),
        udp_flows: count(now.udp_flows),
        ping_flows: count(now.ping_flows),
        sockets: count(now.sockets_in_use),
        leases: now.leases_in_use.into(),
        leases_max: now.leases_max.into(),
    }
}

fn worker(now: &usernet_driver::Status) -> Worker {
    let counted = |counter: Counter| {
        let found = now.counters.iter().find(|(name, _)| *name == counter.name());
        found.map_or(0, |&(_, count)| count)
    };
    Worker {
        usage: usage(now),
        frames_from_guest: counted(Counter::FramesFromGuest),
        frames_to_guest: counted(Counter::FramesToGuest),
        handed_over: counted(Counter::HandedOver),
    }
}

/// The signal that has come, if one has.
pub(crate) fn signal(signals: &SignalFd) -> Option<Cause> {
    let info = signals.read_signal().ok()??;
    let signal = i32::try_from(info.ssi_signo).ok();
    let signal = signal.and_then(|number| Signal::try_from(number).ok());
    Some(Cause::Signal(signal.unwrap_or(Signal::SIGTERM)))
}

/// The name of a backend as the command line has it.
pub(crate) fn backend_name(driver: &str) -> &str {
    if driver == "io_uring" { "io-uring" } else { driver }
}

/// IPv4 on the link.
pub(crate) fn network4(config: &Config) -> Option<Network> {
    config.net4.map(|n| Network {
        guest: n.guest.into(),
        prefix: n.prefix,
        gateway: n.gateway.into(),
        dns: n.dns.map(Into::into),
    })
}

/// IPv6 on the link.
pub(crate) fn network6(config: &Config) -> Option<Network> {
    config.net6.map(|n| Network {
        guest: n.guest.into(),
        prefix: n.prefix,
        gateway: n.gateway.into(),
        dns: n.dns.map(Into::into),
    })
}

fn loopback_name(host_loopback: &HostLoopback) -> String {
    match host_loopback {
        HostLoopback::None => "none".to_owned(),
        HostLoopback::All => "all".to_owned(),
        HostLoopback::Ports(ports) => {
            let range = |&(first, last): &(u16, u16)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            };
            ports.iter().map(range).collect::<Vec<_>>().join(",")
        }
    }
}

fn listed<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Forwards {
    let forwarded = |entry: &Entry| Forwarded {
        id: entry.id.0,
        direction: entry.direction,
        automatic: entry.is_automatic,
        spec: entry.spec.clone(),
        listening: {
            let first = entry.spec.host_ports.first();
            entry.at.iter().map(|at| at.address).filter(|at| at.port() == first).collect()
        },
    };
    Forwards { forwards: entries.into_iter().map(forwarded).collect() }
}

fn to_value(result: impl serde::Serialize) -> Outcome {
    serde_json::to_value(result).map_err(|e| ApiError::new(ErrorCode::Internal, e))
}

impl From<Gone> for ApiError {
    fn from(gone: Gone) -> Self {
        Self::new(ErrorCode::Stopping, gone)
    }
}

impl From<InstallError> for ApiError {
    fn from(error: InstallError) -> Self {
        let code = match &error {
            InstallError::Gone => ErrorCode::Stopping,
            InstallError::TableFull => ErrorCode::Limit,
            InstallError::Socket(_) => ErrorCode::Internal,
        };
        Self::new(code, error)
    }
}

impl From<ForwardError> for ApiError {
    fn from(error: ForwardError) -> Self {
        let code = match &error {
            ForwardError::PortInUse { .. } => ErrorCode::PortInUse,
            ForwardError::Privileged { .. } => ErrorCode::NotPermitted,
            ForwardError::AddressNotHere { .. }
            | ForwardError::NoInterface(_)
            | ForwardError::NoIpv6 { .. }
            | ForwardError::NoNamespace { .. } => ErrorCode::NotAvailable,
            ForwardError::TooManyFiles { .. } | ForwardError::TooMany => ErrorCode::Limit,
            ForwardError::Listen { source: Errno::EACCES | Errno::EPERM, .. } => {
                ErrorCode::NotPermitted
            }
            ForwardError::Listen { .. } => ErrorCode::Internal,
            ForwardError::Overlap { .. } | ForwardError::Exists(_) | ForwardError::Automatic(_) => {
                ErrorCode::Exists
            }
            ForwardError::NotFound(_) => ErrorCode::NotFound,
        };
        Self::new(code, error)
    }
}
