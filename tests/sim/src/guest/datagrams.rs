//! The guest's applications that speak in datagrams: UDP, ping, DNS, DHCP, and a UDP server behind forwards.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::{dhcpv4, icmp, udp};
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr, IpEndpoint,
};
use usernet_core::Instant;

use crate::env::Env;
use crate::mail;

/// What an application is to do.
#[derive(Clone, Debug)]
pub enum Mission {
    /// Ask DHCP for an address; start of everything else in IPv4.
    Dhcp,
    /// Send letters to an echo server.
    Letters {
        /// Its number as a correspondent.
        writer: u32,
        /// Its own port.
        port: u16,
        /// The server, as the guest sees it.
        to: SocketAddr,
        /// How many.
        letters: u32,
        /// Shortest and longest.
        sizes: (usize, usize),
    },
    /// Ping.
    Ping {
        /// Whom.
        to: IpAddr,
        /// Identifier.
        identifier: u16,
        /// How often.
        times: u16,
    },
    /// Ask the resolver until it answers.
    Lookup {
        /// The resolver, as the guest sees it.
        to: SocketAddr,
        /// Its own port.
        port: u16,
        /// Questions.
        questions: u16,
    },
    /// Send back what comes.
    Server {
        /// Where it listens.
        port: u16,
        /// The correspondents that may write, by address as the guest sees it. Their ports are up to the core, but
        /// they are different ones.
        clients: Vec<(IpAddr, u32)>,
    },
}

struct App {
    mission: Mission,
    handle: SocketHandle,
    /// Sent (letters, pings), answered (questions).
    done: u32,
    /// Replies to pings.
    replies: u32,
    next_at: Instant,
    /// Who has written to a server from where.
    correspondents: BTreeMap<SocketAddr, u32>,
}

/// All of them.
pub struct GuestApps {
    apps: Vec<App>,
    /// DHCP has given an address.
    pub is_configured: bool,
}

/// smoltcp fragments one datagram at a time and forgets it for the next one: there has to be time to resolve an
/// address first.
const BETWEEN: Duration = Duration::from_millis(30);
const QUERY_BYTES: usize = 29;

impl GuestApps {
    pub(super) fn new(missions: Vec<Mission>, sockets: &mut SocketSet<'static>) -> Self {
        let is_configured = !missions.iter().any(|m| matches!(m, Mission::Dhcp));
        let apps = missions.into_iter().map(|m| App::new(m, sockets)).collect();
        Self { apps, is_configured }
    }

    /// Everyone has a turn; when the next one is due.
    pub(super) fn step(
        &mut self,
        env: &mut Env,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
    ) -> Option<Instant> {
        if env.is_closing {
            // A DHCP client renews its lease for ever.
            for app in self.apps.drain(..) {
                sockets.remove(app.handle);
            }
        }
        let mut wake = None;
        for app in &mut self.apps {
            if matches!(app.mission, Mission::Dhcp) {
                self.is_configured |= app.configure(env, interface, sockets);
            } else if self.is_configured {
                wake = super::earliest(wake, app.step(env, sockets));
            }
        }
        wake
    }

    /// Whether everything was sent and answered that has to be.
    pub fn verdict(&self, is_perfect: bool) -> Result<(), String> {
        if !self.is_configured {
            return Err("DHCP gave no address".to_owned());
        }
        for app in &self.apps {
            let (due, name) = match &app.mission {
                Mission::Dhcp | Mission::Server { .. } => continue,
                Mission::Letters { letters, .. } => (*letters, "letters sent"),
                Mission::Ping { times, .. } => (u32::from(*times), "pings sent"),
                Mission::Lookup { questions, .. } => (u32::from(*questions), "questions answered"),
            };
            if app.done != due {
                return Err(format!("{:?}: {} of {due} {name}", app.mission, app.done));
            }
            if is_perfect && matches!(app.mission, Mission::Ping { .. }) && app.replies != due {
                return Err(format!("{:?}: {} of {due} replies", app.mission, app.replies));
            }
        }
        Ok(())
    }
}

fn udp_socket(port: u16) -> udp::Socket<'static> {
    let buffer =
        || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 128], vec![0; 512 << 10]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).expect("a port that is not 0");
    socket
}

impl App {
    fn new(mission: Mission, sockets: &mut SocketSet<'static>) -> Self {
        let handle = match &mission {
            Mission::Dhcp => sockets.add(dhcpv4::Socket::new()),
            Mission::Letters { port, .. }
            | Mission::Lookup { port, .. }
            | Mission::Server { port, .. } => sockets.add(udp_socket(*port)),
            Mission::Ping { identifier, .. } => {
                let buffer = || {
                    icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 32], vec![0; 1 << 16])
                };
                let mut socket = icmp::Socket::new(buffer(), buffer());
                socket.bind(icmp::Endpoint::Ident(*identifier)).expect("a fresh socket");
                sockets.add(socket)
            }
        };
        let (next_at, correspondents) = (Instant::ZERO, BTreeMap::new());
        Self { mission, handle, done: 0, replies: 0, next_at, correspondents }
    }

    fn configure(
        &mut self,
        env: &Env,
        interface: &mut Interface,
        sockets: &mut SocketSet<'static>,
    ) -> bool {
        let socket = sockets.get_mut::<dhcpv4::Socket<'_>>(self.handle);
        let Some(dhcpv4::Event::Configured(lease)) = socket.poll() else { return false };
        let net = env.config.net4.expect("DHCP answers only where there is IPv4");
        let address = lease.address.address();
        match env.config.announced.pool4 {
            Some((first, last)) => assert!(first <= address && address <= last, "{address} leased"),
            None => assert_eq!(address, net.guest, "DHCP gives the guest its own address"),
        }
        assert_eq!(lease.address.prefix_len(), net.prefix);
        assert_eq!(lease.router, Some(net.gateway));
        interface.update_ip_addrs(|a| a.push(IpCidr::Ipv4(lease.address)).expect("room"));
        interface.routes_mut().add_default_ipv4_route(net.gateway).expect("room");
        true
    }

    fn step(&mut self, env: &mut Env, sockets: &mut SocketSet<'static>) -> Option<Instant> {
        let mission = self.mission.clone();
        match mission {
            Mission::Dhcp => None,
            Mission::Letters { writer, to, letters, sizes, .. } => {
                let socket = sockets.get_mut::<udp::Socket<'_>>(self.handle);
                while let Ok((bytes, meta)) = socket.recv() {
                    assert_eq!(SocketAddr::from(meta.endpoint), to, "an answer's sender");
                    env.mail.on_returned(writer, bytes);
                }
                self.when_due(env, letters, |index, env| {
                    let size = env.choices.between(sizes.0 as u64, sizes.1 as u64) as usize;
                    let bytes = mail::letter(writer, index, size);
                    let is_sent = socket.send_slice(&bytes, IpEndpoint::from(to)).is_ok();
                    if is_sent {
                        env.mail.on_sent(writer, &bytes);
                    }
                    is_sent
                })
            }
            Mission::Ping { to, identifier, times } => {
                let socket = sockets.get_mut::<icmp::Socket<'_>>(self.handle);
                self.replies += ping_replies(socket, to, identifier);
                self.when_due(env, u32::from(times), |index, env| {
                    send_ping(env, socket, to, identifier, index as u16)
                })
            }
            Mission::Lookup { to, questions, .. } => {
                let socket = sockets.get_mut::<udp::Socket<'_>>(self.handle);
                self.lookup(env, socket, to, u32::from(questions))
            }
            Mission::Server { clients, .. } => {
                let socket = sockets.get_mut::<udp::Socket<'_>>(self.handle);
                serve(env, socket, &clients, &mut self.correspondents);
                None
            }
        }
    }

    fn when_due(
        &mut self,
        env: &mut Env,
        total: u32,
        act: impl FnOnce(u32, &mut Env) -> bool,
    ) -> Option<Instant> {
        if self.done == total || env.is_closing {
            return None;
        }
        if env.now >= self.next_at {
            self.done += u32::from(act(self.done, env));
            self.next_at = env.now + BETWEEN + env.choices.duration(BETWEEN);
        }
        Some(self.next_at)
    }

    /// One question at a time, repeated until it is answered.
    fn lookup(
        &mut self,
        env: &mut Env,
        socket: &mut udp::Socket<'_>,
        to: SocketAddr,
        questions: u32,
    ) -> Option<Instant> {
        while let Ok((bytes, meta)) = socket.recv() {
            assert_eq!(SocketAddr::from(meta.endpoint), to, "an answer comes from the resolver");
            let query = query(self.done);
            if bytes.len() == QUERY_BYTES && bytes[0..2] == query[0..2] {
                assert_eq!(bytes[12..], query[12..], "an answer to another question");
                self.done += 1;
                self.next_at = env.now;
            }
        }
        if self.done == questions || env.is_closing {
            return None;
        }
        if env.now >= self.next_at {
            let _ = socket.send_slice(&query(self.done), IpEndpoint::from(to));
            self.next_at = env.now + Duration::from_secs(5);
        }
        Some(self.next_at)
    }
}

/// A question for `example.org` of type A, told from others by its identifier.
fn query(number: u32) -> [u8; QUERY_BYTES] {
    let mut bytes = *b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
    bytes[0..2].copy_from_slice(&(0x4000 + number as u16).to_be_bytes());
    bytes
}

fn serve(
    env: &mut Env,
    socket: &mut udp::Socket<'_>,
    clients: &[(IpAddr, u32)],
    correspondents: &mut BTreeMap<SocketAddr, u32>,
) {
    let mut replies = Vec::new();
    while let Ok((bytes, meta)) = socket.recv() {
        let from = SocketAddr::from(meta.endpoint);
        let writer = mail::writer(bytes).expect("clients write long letters");
        assert!(clients.contains(&(from.ip(), writer)), "{from} is no address of {writer}");
        let known = *correspondents.entry(from).or_insert(writer);
        assert_eq!(known, writer, "two clients look the same to the guest, {from}");
        env.mail.on_arrived(writer, bytes);
        replies.push((writer, bytes.to_vec(), meta));
    }
    for (writer, bytes, meta) in replies {
        if socket.send_slice(&bytes, meta).is_ok() {
            env.mail.on_answered(writer, &bytes, 1);
        }
    }
}

const PING_BYTES: usize = 56;

fn ping_data(sequence: u16) -> [u8; PING_BYTES] {
    [sequence as u8; PING_BYTES]
}

fn send_ping(
    env: &mut Env,
    socket: &mut icmp::Socket<'_>,
    to: IpAddr,
    ident: u16,
    seq_no: u16,
) -> bool {
    let data = ping_data(seq_no);
    let checksum = smoltcp::phy::ChecksumCapabilities::default();
    match (to, env.config.net6) {
        (IpAddr::V4(_), _) => {
            let ping = Icmpv4Repr::EchoRequest { ident, seq_no, data: &data };
            let Ok(bytes) = socket.send(ping.buffer_len(), IpAddress::from(to)) else {
                return false;
            };
            ping.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksum);
        }
        (IpAddr::V6(to6), Some(net)) => {
            let ping = Icmpv6Repr::EchoRequest { ident, seq_no, data: &data };
            let Ok(bytes) = socket.send(ping.buffer_len(), IpAddress::from(to)) else {
                return false;
            };
            let packet = &mut Icmpv6Packet::new_unchecked(bytes);
            ping.emit(&net.guest, &to6, packet, &checksum);
        }
        (IpAddr::V6(_), None) => {}
    }
    true
}

fn ping_replies(socket: &mut icmp::Socket<'_>, to: IpAddr, identifier: u16) -> u32 {
    let mut replies = 0;
    while let Ok((bytes, from)) = socket.recv() {
        assert_eq!(IpAddr::from(from), to, "a reply's sender");
        let reply = match to {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) => 129,
        };
        if bytes[0] != reply {
            continue;
        }
        assert_eq!(u16::from_be_bytes([bytes[4], bytes[5]]), identifier, "a reply's identifier");
        let data = ping_data(u16::from_be_bytes([bytes[6], bytes[7]]));
        assert_eq!(bytes[8..], data, "a reply's data");
        replies += 1;
    }
    replies
}
