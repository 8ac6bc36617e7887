//! Datagram sockets of the host, and who answers behind them: echo servers, resolvers, ping, clients of forwards.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use usernet_core::op::{DatagramKind, HEADROOM};
use usernet_core::packet::checksum::Sum;
use usernet_core::{HostError, LocalId, SocketId, Span};

use super::Told;
use crate::env::{Env, Event};
use crate::mail;

/// How a resolver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolver {
    /// It answers.
    Works,
    /// It says nothing.
    Silent,
    /// Nobody listens there.
    Refuses,
}

/// A client of a UDP forward.
#[derive(Clone, Debug)]
pub struct Client {
    /// The forward's socket.
    pub listener: SocketId,
    /// Its own address.
    pub address: SocketAddr,
    /// What it writes to.
    pub local: LocalId,
    /// Its number as a correspondent.
    pub writer: u32,
    /// Letters still to be sent.
    pub letters: u32,
    /// Their shortest and longest length.
    pub sizes: (usize, usize),
}

/// Remote applications.
#[derive(Default)]
pub struct Datagrams {
    /// Echo servers: address, and number of the correspondent that writes to it.
    pub servers: HashMap<SocketAddr, u32>,
    /// The host's resolvers.
    pub resolvers: HashMap<SocketAddr, Resolver>,
    /// Clients of forwards.
    pub clients: Vec<Client>,
}

/// A datagram socket.
pub struct Port {
    socket: SocketId,
    kind: DatagramKind,
    local: SocketAddr,
    /// `Opened` or `Failed` is told.
    is_settled: bool,
    has_failed: bool,
    /// A forward's.
    pub(super) is_listener: bool,
    gathered: Vec<u8>,
}

/// One `SendTo`.
pub(super) struct SendTo {
    pub(super) to: SocketAddr,
    pub(super) local: LocalId,
    pub(super) span: Span,
    pub(super) segment: u16,
    pub(super) hop_limit: u8,
    pub(super) more: bool,
}

/// What is on its way to a socket.
#[derive(Debug)]
pub struct Delivery {
    pub(super) socket: SocketId,
    from: SocketAddr,
    payload: Vec<u8>,
    segment: u16,
    /// Not a datagram but an error about one that was sent to `from`.
    error: Option<HostError>,
}

impl Delivery {
    /// Puts it into a lease; comes again later if there is none.
    pub(super) fn tell(self: Box<Self>, env: &mut Env) -> Option<Told> {
        let Self { socket, from, .. } = *self;
        if let Some(error) = self.error {
            let payload = self.payload[..self.payload.len().min(64)].to_vec();
            let offender = (error != HostError::Prohibited).then_some(from.ip());
            return Some(Told::DatagramError { socket, to: from, error, offender, payload });
        }
        let Some(lease) = env.ledger.lend(HEADROOM + self.payload.len()) else {
            env.after(Duration::from_millis(1), Event::Datagram(self));
            return None;
        };
        env.ledger.shown(lease)[HEADROOM..].copy_from_slice(&self.payload);
        let local = LocalId::ANY;
        Some(Told::Datagram { socket, lease, from, local, segment: self.segment })
    }
}

impl Port {
    pub(super) fn open(
        env: &mut Env,
        socket: SocketId,
        kind: DatagramKind,
        port: u16,
        loopback: bool,
    ) -> Self {
        assert!(
            port == 0 || port >= 1024 || matches!(kind, DatagramKind::Ping4 | DatagramKind::Ping6)
        );
        let ip = match (kind, loopback) {
            (DatagramKind::Udp4 | DatagramKind::Ping4, false) => Ipv4Addr::UNSPECIFIED.into(),
            (DatagramKind::Udp4 | DatagramKind::Ping4, true) => Ipv4Addr::LOCALHOST.into(),
            (DatagramKind::Udp6 | DatagramKind::Ping6, false) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            (DatagramKind::Udp6 | DatagramKind::Ping6, true) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let port = if env.choices.chance(500) { port } else { 30_000 + socket.index as u16 };
        env.soon(Event::Opened(socket));
        Self {
            socket,
            kind,
            local: SocketAddr::new(ip, port),
            is_settled: false,
            has_failed: false,
            is_listener: false,
            gathered: Vec::new(),
        }
    }

    /// A forward's socket.
    pub fn listener(socket: SocketId, local: SocketAddr) -> Self {
        let kind = if local.is_ipv4() { DatagramKind::Udp4 } else { DatagramKind::Udp6 };
        Self {
            socket,
            kind,
            local,
            is_settled: true,
            has_failed: false,
            is_listener: true,
            gathered: Vec::new(),
        }
    }

    pub(super) fn can_receive(&self) -> bool {
        self.is_settled && !self.has_failed
    }

    pub(super) fn on_opened(&mut self, env: &mut Env) -> Told {
        self.is_settled = true;
        self.has_failed = env.choices.chance(env.faults.open_fails);
        if self.has_failed {
            return Told::Failed(self.socket, HostError::NoRoom);
        }
        Told::Opened(self.socket, self.local)
    }

    pub(super) fn send_to(&mut self, env: &mut Env, remotes: &mut Datagrams, part: SendTo) {
        assert!(!self.has_failed, "SendTo on {:?}, which has failed", self.socket);
        let is_v4 = matches!(self.kind, DatagramKind::Udp4 | DatagramKind::Ping4);
        assert_eq!(part.to.is_ipv4(), is_v4, "a datagram goes out by a socket of its family");
        let bytes = env.ledger.bytes(part.span, "SendTo");
        self.gathered.extend_from_slice(bytes);
        env.ledger.give_back(part.span.lease, "SendTo");
        if part.more {
            return;
        }
        let whole = std::mem::take(&mut self.gathered);
        assert!(whole.len() <= 65_535, "a datagram fits IP");
        if part.segment == 0 {
            return self.deliver(env, remotes, &part, &whole);
        }
        for piece in whole.chunks(usize::from(part.segment)) {
            self.deliver(env, remotes, &part, piece);
        }
    }

    fn deliver(&mut self, env: &mut Env, remotes: &mut Datagrams, part: &SendTo, payload: &[u8]) {
        let &SendTo { to, local, hop_limit, .. } = part;
        env.trace(|| format!("host: {} bytes to {to} on {:?}", payload.len(), self.socket));
        if env.choices.chance(env.faults.datagram_errors) && !self.is_listener {
            let error = env.choices.pick(&[
                HostError::Refused,
                HostError::HostUnreachable,
                HostError::TimeExceeded,
                HostError::Prohibited,
                HostError::TooBig { mtu: 1300 },
            ]);
            return self.answer(env, to, payload.to_vec(), 0, Some(error));
        }
        match self.kind {
            DatagramKind::Ping4 | DatagramKind::Ping6 => self.on_ping(env, to, payload, hop_limit),
            DatagramKind::Udp4 | DatagramKind::Udp6 if self.is_listener => {
                let is_it = |c: &&Client| c.address == to && c.local == local;
                let client = remotes.clients.iter().find(is_it);
                let client = client.unwrap_or_else(|| panic!("{to} never wrote to {local:?}"));
                env.mail.on_returned(client.writer, payload);
            }
            DatagramKind::Udp4 | DatagramKind::Udp6 => {
                assert_eq!(local, LocalId::ANY, "a socket with an address of its own");
                self.on_udp(env, remotes, to, payload);
            }
        }
    }

    fn answer(
        &self,
        env: &mut Env,
        from: SocketAddr,
        payload: Vec<u8>,
        segment: u16,
        error: Option<HostError>,
    ) {
        let delivery = Delivery { socket: self.socket, from, payload, segment, error };
        // Not before the socket is open.
        let after = env.faults.latency + Duration::from_nanos(1);
        let late = env.choices.duration(env.faults.latency);
        env.after(after + late, Event::Datagram(Box::new(delivery)));
    }

    fn on_ping(&self, env: &mut Env, to: SocketAddr, request: &[u8], _hop_limit: u8) {
        let (request_type, reply_type) =
            if self.kind == DatagramKind::Ping4 { (8, 0) } else { (128, 129) };
        assert!(request.len() >= 8, "a ping socket takes whole ICMP headers");
        assert_eq!(request[0], request_type, "a ping socket takes echo requests only");
        let mut reply = request.to_vec();
        reply[0] = reply_type;
        reply[2..4].fill(0);
        reply[4..6].copy_from_slice(&self.local.port().to_be_bytes());
        let sum = Sum::default().bytes(&reply).checksum();
        reply[2..4].copy_from_slice(&sum.to_be_bytes());
        self.answer(env, to, reply, 0, None);
    }

    fn on_udp(&self, env: &mut Env, remotes: &Datagrams, to: SocketAddr, payload: &[u8]) {
        match remotes.resolvers.get(&to) {
            Some(Resolver::Works) => {
                assert!(payload.len() >= 12, "a query has a header");
                let mut reply = payload.to_vec();
                reply[2] |= 0x80;
                return self.answer(env, to, reply, 0, None);
            }
            Some(Resolver::Silent) => return,
            Some(Resolver::Refuses) => {
                return self.answer(env, to, payload.to_vec(), 0, Some(HostError::Refused));
            }
            None => {}
        }
        let writer = remotes.servers.get(&to).copied();
        let writer = writer.unwrap_or_else(|| panic!("nobody asked for a datagram to {to}"));
        env.mail.on_arrived(writer, payload);
        let fits = payload.len() + 48 <= usize::from(env.config.mtu);
        let may_train = !payload.is_empty() && fits && env.choices.chance(300);
        let copies = if may_train { env.choices.between(2, 8) as usize } else { 1 };
        let copies = copies.min(60_000 / payload.len().max(1)).max(1);
        env.mail.on_answered(writer, payload, copies as u32);
        let segment = if copies > 1 { payload.len() as u16 } else { 0 };
        self.answer(env, to, payload.repeat(copies), segment, None);
    }
}

impl Datagrams {
    /// A client of a forward sends its next letter.
    pub(super) fn on_client(&mut self, env: &mut Env, index: usize) -> Option<Told> {
        let client = &mut self.clients[index];
        if client.letters == 0 || env.is_closing {
            return None;
        }
        env.after(Duration::from_millis(20), Event::ClientDatagram(index));
        let size = env.choices.between(client.sizes.0 as u64, client.sizes.1 as u64) as usize;
        let payload = mail::letter(client.writer, client.letters, size);
        let lease = env.ledger.lend(HEADROOM + size)?;
        client.letters -= 1;
        env.ledger.shown(lease)[HEADROOM..].copy_from_slice(&payload);
        env.mail.on_sent(client.writer, &payload);
        Some(Told::Datagram {
            socket: client.listener,
            lease,
            from: client.address,
            local: client.local,
            segment: 0,
        })
    }
}
