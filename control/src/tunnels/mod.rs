//! The tunnels of a running daemon.
//!
//! # Theory of operation
//!
//! ```text
//!   plan ── devices (made by the helper) ─┐
//!       └── sockets on the host ──────────┴─▶ TunnelWorker ─▶ a thread each, confined as all others
//!                                                  ▲
//!   control thread: status, userspace API ─────────┤ TunnelHandle
//!                   peers that do not answer ──────┘◀── usernetd-names: asks for their host names again
//! ```
//!
//! A peer may be given by a host name. It was asked for at the start; who is not reached there for long may have moved, so the
//! name is asked for again, by a process that still sees the files that say how ([`names`]). Only peers that are
//! written to and do not answer are looked for: at rest nothing happens.

mod names;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use usernet_driver::namespace::{TunnelDevice, TunnelLink, TunnelRoute, egress_mtu};
use usernet_driver::{Gone, TunnelEnded, TunnelHandle, TunnelWorker, Wire};
use usernet_wireguard::uapi::{Changes, Device, DevicePeer, PeerChange};
use usernet_wireguard::{Config, Endpoint, Interface, PublicKey, Table, Tunnel};

use crate::api::message::{TunnelPeer, TunnelStatus};
use crate::daemon::DaemonError;
use crate::sandbox::Policy;
use crate::wireguard::{self, resolve_endpoints};

use names::Names;

/// What WireGuard takes of a packet of the largest headers: IPv6, UDP, its own header and tag.
const HEADERS_BYTES: u16 = 80;
/// The MTU where nothing speaks against it: 1500 less the headers.
const MTU: u16 = 1500 - HEADERS_BYTES;
/// The smallest MTU that is taken over from the host: what IPv6 needs.
const MTU_MIN: u16 = 1280;
/// The main routing table (`RT_TABLE_MAIN`), and what also means it.
const MAIN_TABLES: [u32; 2] = [254, 0];

/// How often peers of host names are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// A peer that talks has made a new handshake by then: keys are renewed after 120 seconds, and tried for 15 more.
const SILENCE_MAX: Duration = Duration::from_secs(135);

/// A tunnel's thread, before it is one.
pub(crate) struct Thread {
    name: String,
    worker: TunnelWorker<Tunnel>,
}

impl Thread {
    /// Runs the tunnel until its end.
    pub(crate) fn run(self) {
        match self.worker.run() {
            Ok(TunnelEnded::Stopped | TunnelEnded::DeviceGone) => {}
            Err(error) => tracing::error!("{}: the tunnel has ended: {error}", self.name),
        }
    }
}

/// A tunnel that runs.
#[derive(Clone)]
pub(crate) struct Running {
    /// The device's name.
    pub(crate) name: String,
    /// What it was told of the guest's side.
    interface: Interface,
    /// Reaches it.
    pub(crate) handle: TunnelHandle<Tunnel>,
}

/// A peer that was given by a host name.
struct Named {
    /// Which of the tunnels.
    tunnel: usize,
    peer: PublicKey,
    host: String,
    port: u16,
    /// What had been sent to it when it was last looked at.
    tx_bytes: u64,
}

/// See the [module](self).
pub(crate) struct Tunnels {
    running: Vec<Running>,
    named: Vec<Named>,
    /// Who asks for host names; none: there are none, or it was killed.
    names: Option<Names>,
    look: Instant,
}

/// The devices to be made.
pub(crate) fn devices(tunnels: &[wireguard::Tunnel], offload: bool) -> Vec<TunnelDevice> {
    let device = |wireguard::Tunnel { name, config }: &wireguard::Tunnel| TunnelDevice {
        name: name.clone(),
        mtu: config.interface.mtu.unwrap_or_else(mtu),
        addresses: config
            .interface
            .addresses
            .iter()
            .map(|net| (net.addr(), net.prefix_len()))
            .collect(),
        routes: routes(config),
        offload,
    };
    tunnels.iter().map(device).collect()
}

fn mtu() -> u16 {
    MTU.min(egress_mtu().saturating_sub(HEADERS_BYTES)).max(MTU_MIN)
}

/// Whatever a peer may be sent.
fn routes(config: &Config) -> Vec<TunnelRoute> {
    let table = match config.interface.table {
        Table::Off => return Vec::new(),
        Table::Auto => None,
        Table::Number(number) => Some(number).filter(|number| !MAIN_TABLES.contains(number)),
    };
    let mut networks: Vec<IpNet> =
        config.peers.iter().flat_map(|peer| &peer.allowed_ips).map(IpNet::trunc).collect();
    networks.sort_unstable();
    networks.dedup();
    let route = |net: IpNet| TunnelRoute { to: (net.addr(), net.prefix_len()), table };
    networks.into_iter().map(route).collect()
}

impl Tunnels {
    /// Finds the peers, gets everything ready, and forks who asks for names if there are any.
    pub(crate) fn prepare(
        tunnels: &[wireguard::Tunnel],
        links: Vec<TunnelLink>,
        busy_poll: Duration,
        policy: Policy,
    ) -> Result<(Self, Vec<Thread>), DaemonError> {
        let (mut running, mut threads) = (Vec::new(), Vec::new());
        for (wireguard::Tunnel { name, config }, link) in tunnels.iter().zip(links) {
            let mut config = config.clone();
            resolve_endpoints(&mut config)
                .map_err(|what| DaemonError::Endpoint { tunnel: name.clone(), what })?;
            let port = config.interface.listen_port.unwrap_or(0);
            let wire = Wire::open(port)
                .map_err(|source| DaemonError::Listen { tunnel: name.clone(), source })?;
            let tunnel = Tunnel::new(&config, random()?);
            let (worker, handle) = TunnelWorker::new(tunnel, link, wire, busy_poll)?;
            let (name, interface) = (name.clone(), config.interface);
            threads.push(Thread { name: name.clone(), worker });
            running.push(Running { name, interface, handle });
        }
        let named = named(tunnels);
        let questions = named.iter().map(|named| (named.host.clone(), named.port)).collect();
        let names = (!named.is_empty())
            .then(|| Names::start(questions, policy))
            .transpose()
            .map_err(DaemonError::system("fork the process that asks for host names"))?;
        Ok((Self { running, named, names, look: Instant::now() + LOOK_INTERVAL }, threads))
    }

    /// Them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Running> {
        self.running.iter()
    }

    /// What becomes readable when there is news of names.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.names.as_ref().map(Names::fd)
    }

    /// When to take a turn at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.names.as_ref().map(|_| self.look)
    }

    /// Takes answers, and asks.
    pub(crate) fn turn(&mut self, now: Instant) {
        while let Some((number, addresses)) = self.names.as_mut().and_then(Names::answer) {
            self.on_answer(number, &addresses);
        }
        if self.names.as_ref().is_some_and(Names::is_gone) {
            self.names = None;
            tracing::warn!(
                "the process that asks for host names was killed: they are not asked for again"
            );
        }
        if self.names.is_some() && self.look <= now {
            self.look = now + LOOK_INTERVAL;
            self.look_for_peers();
        }
    }

    /// Asks for the names of those who are written to and do not answer.
    fn look_for_peers(&mut self) {
        let Self { running, named, names: Some(names), .. } = self else { return };
        for (number, named) in named.iter_mut().enumerate() {
            let Ok(device) = running[named.tunnel].device() else { continue };
            let Some(peer) = device.peers.iter().find(|peer| peer.public_key == named.peer) else {
                continue;
            };
            let is_written_to =
                peer.tx_bytes != std::mem::replace(&mut named.tx_bytes, peer.tx_bytes);
            if is_written_to && is_silent(peer) {
                names.ask(number);
            }
        }
    }

    fn on_answer(&self, number: usize, addresses: &[SocketAddr]) {
        let Some(Named { tunnel, peer, host, port, .. }) = self.named.get(number) else { return };
        let Running { name, handle, .. } = &self.running[*tunnel];
        let (key, addresses) = (*peer, addresses.to_vec());
        let moved = handle.with(move |tunnel, now, _| {
            let device = tunnel.device(now, Duration::ZERO);
            let peer = device.peers.iter().find(|peer| peer.public_key == key)?;
            let next = next_address(peer.endpoint, &addresses)?;
            let change =
                PeerChange { update_only: true, endpoint: Some(next), ..PeerChange::new(key) };
            tunnel.apply(&Changes { peers: vec![change], ..Changes::default() });
            Some(next)
        });
        if let Ok(Some(next)) = moved {
            tracing::info!("{name}: {host}:{port} does not answer; it is looked for at {next} now");
        }
    }

    /// What they are, for `status`.
    pub(crate) fn statuses(&self) -> Vec<TunnelStatus> {
        self.running.iter().map(Running::status).collect()
    }
}

impl Running {
    /// What it looks like to the userspace API.
    pub(crate) fn device(&self) -> Result<Device, Gone> {
        let wall_clock =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut device = self.handle.with(move |tunnel, now, _| tunnel.device(now, wall_clock))?;
        device.listen_port = self.handle.port()?;
        Ok(device)
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>, Gone> {
        let of_driver = self.handle.counters()?;
        let of_tunnel =
            self.handle.with(|tunnel, _, _| tunnel.counters().iter().collect::<Vec<_>>())?;
        let all = of_tunnel.into_iter().chain(of_driver);
        Ok(all.map(|(name, count)| (name.to_owned(), count)).collect())
    }

    fn status(&self) -> TunnelStatus {
        let Interface { addresses, dns, search, .. } = &self.interface;
        let device = self.device();
        TunnelStatus {
            name: self.name.clone(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            dns: dns.clone(),
            search: search.clone(),
            running: device.is_ok(),
            public_key: device
                .as_ref()
                .ok()
                .and_then(|device| Some(device.private_key.as_ref()?.public().to_string())),
            listen_port: device.as_ref().map_or(0, |device| device.listen_port),
            peers: device.iter().flat_map(|device| &device.peers).map(peer_status).collect(),
            counters: self.counters().unwrap_or_default(),
        }
    }
}

fn peer_status(peer: &DevicePeer) -> TunnelPeer {
    TunnelPeer {
        public_key: peer.public_key.to_string(),
        endpoint: peer.endpoint,
        handshake_age_ms: age(peer).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        bytes_from_peer: peer.rx_bytes,
        bytes_to_peer: peer.tx_bytes,
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
    }
}

/// Time since the last handshake; none: there was none.
fn age(peer: &DevicePeer) -> Option<Duration> {
    let at = SystemTime::UNIX_EPOCH + peer.last_handshake?;
    Some(SystemTime::now().duration_since(at).unwrap_or_default())
}

fn is_silent(peer: &DevicePeer) -> bool {
    age(peer).is_none_or(|age| age > SILENCE_MAX)
}

/// Where to look for somebody who does not answer at `current`: at the next of his addresses, which may be of the other family.
/// None: there is no other one.
fn next_address(current: Option<SocketAddr>, addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let known = addresses.iter().position(|address| Some(*address) == current);
    let next = known.map_or(0, |at| (at + 1) % addresses.len());
    addresses.get(next).copied().filter(|next| Some(*next) != current)
}

/// The peers that were given by host names.
fn named(tunnels: &[wireguard::Tunnel]) -> Vec<Named> {
    let peers = tunnels.iter().enumerate();
    let peers = peers.flat_map(|(tunnel, t)| t.config.peers.iter().map(move |peer| (tunnel, peer)));
    let named = peers.filter_map(|(tunnel, peer)| match peer.endpoint.as_ref()? {
        Endpoint::Address(_) => None,
        Endpoint::Name(host, port) => Some(Named {
            tunnel,
            peer: peer.public_key,
            host: host.clone(),
            port: *port,
            tx_bytes: 0,
        }),
    });
    named.collect()
}

fn random() -> Result<u64, DaemonError> {
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(DaemonError::system("draw random numbers"))?;
    Ok(u64::from_ne_bytes(seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use usernet_wireguard::conf;

    fn config(text: &str) -> Config {
        let interface = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n";
        conf::parse("wg0.conf", &format!("{interface}{text}")).unwrap().config
    }

    const PEER: &str = "[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n";

    #[test]
    fn what_peers_may_be_sent_is_routed_once_and_into_the_table_that_was_asked_for() {
        let peer = format!("{PEER}AllowedIPs = 0.0.0.0/0, 10.1.0.9/24, 10.1.0.0/24, ::/0\n");
        let of = |table: &str| {
            let routes = routes(&config(&format!("{table}\n{peer}")));
            routes.iter().map(|r| (format!("{}/{}", r.to.0, r.to.1), r.table)).collect::<Vec<_>>()
        };
        let networks = ["0.0.0.0/0", "10.1.0.0/24", "::/0"].map(str::to_owned);
        assert_eq!(of(""), networks.clone().map(|n| (n, None)));
        assert_eq!(of("Table = 254"), networks.clone().map(|n| (n, None)));
        assert_eq!(of("Table = 700"), networks.map(|n| (n, Some(700))));
        assert_eq!(of("Table = off"), []);
    }

    #[test]
    fn who_does_not_answer_is_looked_for_at_the_next_address() {
        let [a, b, c]: [SocketAddr; 3] =
            ["192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.3:1"].map(|text| text.parse().unwrap());
        assert_eq!(next_address(None, &[a, b]), Some(a));
        assert_eq!(next_address(Some(a), &[a, b]), Some(b));
        assert_eq!(next_address(Some(b), &[a, b]), Some(a));
        assert_eq!(next_address(Some(c), &[a, b]), Some(a), "it has moved");
        assert_eq!(next_address(Some(a), &[a]), None);
        assert_eq!(next_address(Some(a), &[]), None);
    }

    #[test]
    fn only_host_names_are_asked_for() {
        let at = |endpoint: &str| wireguard::Tunnel {
            name: "wg0".to_owned(),
            config: config(&format!("{PEER}Endpoint = {endpoint}\n")),
        };
        let found = named(&[at("192.0.2.1:51820"), at("vpn.example:4500")]);
        let found: Vec<_> = found.iter().map(|n| (n.tunnel, n.host.as_str(), n.port)).collect();
        assert_eq!(found, [(1, "vpn.example", 4500)]);
    }
}
