//! One shard, its driver, and the host behind it. The bytes of the input decide what happens; the rules of the boundary
//! hold whatever they are.
//!
//! After every input the ops are carried out on the model of the host, each frame to the guest is read as the guest
//! would, the leases are balanced, and the shard checks itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use usernet_core::config::Config;
use usernet_core::op::{
    AcceptedId, Checksum, DatagramKind, FRAME_BYTES_MAX, ForwardId, Gso, HEADROOM, HostError,
    Input, LocalId, Offload, Op, PeekedThen, SocketId, Span,
};
use usernet_core::packet::{EtherType, Packet, checksum, parse, protocol};
use usernet_core::rules::{Forward, Outward, Protocol, Rules};
use usernet_core::{Instant, Shard};

use crate::host::{Kind, Socket, Stream, peer};
use crate::ledger::Ledger;

/// Buffers of the driver: few, so that the core's limits are met.
const LEASES: u32 = 64;

/// The newest position of a TCP flow, as its frames to the guest tell it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Position {
    /// Behind the last byte of the last frame to the guest.
    pub ours: u32,
    /// What was last acknowledged to the guest.
    pub guests: u32,
}

/// See the [module](self).
pub struct World {
    shard: Shard,
    now: Instant,
    ledger: Ledger,
    sockets: BTreeMap<u32, Socket>,
    /// Connections that were accepted and neither adopted, refused nor spliced.
    accepted: Vec<AcceptedId>,
    accepted_next: u32,
    /// By guest's and remote's end.
    positions: BTreeMap<(SocketAddr, SocketAddr), Position>,
}

/// The example network, with all tables small.
fn config() -> Config {
    let mut config = Config::example();
    let limits = &mut config.limits;
    limits.flows = 16;
    limits.sockets = 32;
    limits.half_open = 6;
    limits.leases = LEASES;
    limits.leases_kept = 24;
    limits.window_bytes = 1 << 16;
    limits.in_flight_bytes = 1 << 16;
    limits.reassemblies = 4;
    limits.reassembly_leases = 8;
    limits.pings = 4;
    limits.dns_queries = 4;
    config
}

impl Default for World {
    fn default() -> Self {
        Self::new(0)
    }
}

impl World {
    /// A world with these [switches](crate::setup) thrown.
    pub fn new(switches: u8) -> Self {
        let mut config = config();
        let access = crate::setup::apply(switches, &mut config);
        let forward = |id, protocol| Forward {
            id: ForwardId(id),
            protocol,
            host_ports: (8080, 8089),
            guest: None,
            guest_port: 80,
        };
        let forwards = vec![forward(0, Protocol::Tcp), forward(1, Protocol::Udp)];
        let resolvers = ["192.0.2.53:53", "[2001:db8::53]:53"].map(|r| r.parse().expect("address"));
        let rules = Rules::new(&config, &access, forwards, resolvers.to_vec());
        let outward = |id, protocol| Outward {
            id: ForwardId(id),
            protocol,
            ports: (8080, 8089),
            host: None,
            host_port: 9080,
        };
        let rules = rules.with_outward(vec![outward(2, Protocol::Tcp), outward(3, Protocol::Udp)]);
        let mut world = Self {
            shard: Shard::new(config, rules),
            now: Instant::from_nanos(1_000_000_000),
            ledger: Ledger::new(LEASES),
            sockets: BTreeMap::new(),
            accepted: Vec::new(),
            accepted_next: 0,
            positions: BTreeMap::new(),
        };
        world.listen(0, Protocol::Tcp);
        world.listen(1, Protocol::Udp);
        world.listen(2, Protocol::Tcp);
        world.listen(3, Protocol::Udp);
        world
    }

    fn listen(&mut self, forward: u32, protocol: Protocol) {
        let local = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 8080);
        let id = self.shard.attach_listener(ForwardId(forward), protocol, local);
        let id = id.expect("the first sockets find room");
        let kind = Kind::Listener { is_tcp: protocol == Protocol::Tcp };
        self.sockets.insert(id.index, Socket { id, kind });
    }

    /// The configuration of the shard.
    pub fn config(&self) -> &Config {
        self.shard.config()
    }

    /// The newest position of a TCP flow.
    pub fn position(&self, guest: SocketAddr, remote: SocketAddr) -> Position {
        self.positions.get(&(guest, remote)).copied().unwrap_or_default()
    }

    /// From now on `reserve` finds nothing, or something again.
    pub fn set_short(&mut self, is_short: bool) {
        self.ledger.is_short = is_short;
    }

    /// A frame from the guest.
    pub fn frame(&mut self, mut bytes: Vec<u8>, offload: Offload) {
        bytes.truncate(FRAME_BYTES_MAX);
        let Some(lease) = self.ledger.claim() else { return };
        let input = Input::Frame { lease, bytes: &mut bytes, offload };
        self.shard.handle(self.now, input, &mut self.ledger);
        self.ledger.put(lease, bytes);
        self.settle();
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        self.input(Input::Tick);
    }

    /// Time passes until the shard wants to be called.
    pub fn wait_for_deadline(&mut self) {
        let Some((at, _)) = self.shard.next_deadline() else { return };
        self.now = self.now.max(at);
        self.input(Input::Tick);
    }

    /// The end of a turn.
    pub fn flush(&mut self) {
        self.shard.flush(self.now, &mut self.ledger);
        self.settle();
    }

    /// Something happens to one of the sockets: what can happen to it, as the numbers choose.
    pub fn host(&mut self, socket: u8, choice: u8, amount: u16) {
        let Some(index) = self.sockets.keys().nth(usize::from(socket) % self.sockets.len().max(1))
        else {
            return;
        };
        let index = *index;
        let Socket { id, kind } = &self.sockets[&index];
        let id = *id;
        match kind {
            Kind::Stream(_) => self.on_stream(id, choice, amount),
            Kind::Splice { is_running } => self.on_splice(id, *is_running, choice, amount),
            Kind::Datagram { kind, is_open, last_to, .. } => {
                self.on_datagram_socket(id, *kind, *is_open, *last_to, choice, amount);
            }
            Kind::Listener { is_tcp: true } => self.accept(id, choice, amount),
            Kind::Listener { is_tcp: false } => {
                let from = peer(DatagramKind::Udp4, choice);
                self.datagram(id, from, &[choice; 32][..usize::from(amount % 32)], 0);
            }
        }
    }

    /// A datagram with this payload on each open socket that has sent one, from where it went.
    pub fn answer(&mut self, payload: &[u8]) {
        let sockets = self.sockets.values().filter_map(|socket| match &socket.kind {
            Kind::Datagram { is_open: true, last_to: Some(to), .. } => Some((socket.id, *to)),
            Kind::Datagram { .. }
            | Kind::Stream(_)
            | Kind::Splice { .. }
            | Kind::Listener { .. } => None,
        });
        for (id, from) in sockets.collect::<Vec<_>>() {
            self.datagram(id, from, payload, 0);
        }
    }

    /// Every `Open` that is outstanding succeeds.
    pub fn open_all(&mut self) {
        let waiting = self.sockets.values().filter_map(|socket| match socket.kind {
            Kind::Datagram { kind, is_open: false, .. } => Some((socket.id, kind)),
            Kind::Datagram { .. }
            | Kind::Stream(_)
            | Kind::Splice { .. }
            | Kind::Listener { .. } => None,
        });
        for (id, kind) in waiting.collect::<Vec<_>>() {
            self.opened(id, kind, 40_000);
        }
    }

    /// An input without a buffer.
    fn input(&mut self, input: Input<'_>) {
        self.shard.handle(self.now, input, &mut self.ledger);
        self.settle();
    }

    /// Whether the socket is still the one of that name.
    fn is_alive(&self, id: SocketId) -> bool {
        self.sockets.get(&id.index).is_some_and(|socket| socket.id == id)
    }

    fn stream(&mut self, id: SocketId) -> Option<&mut Stream> {
        match self.sockets.get_mut(&id.index) {
            Some(Socket { id: found, kind: Kind::Stream(stream) }) if *found == id => Some(stream),
            Some(_) | None => None,
        }
    }

    fn on_stream(&mut self, socket: SocketId, choice: u8, amount: u16) {
        let Some(stream) = self.stream(socket) else { return };
        if stream.is_connecting {
            stream.is_connecting = false;
            stream.is_connected = choice % 8 != 0;
            if stream.is_connected {
                return self.input(Input::Connected { socket });
            }
            return self.input(Input::Failed { socket, error: host_error(choice >> 3, amount) });
        }
        if !stream.is_connected {
            return;
        }
        match choice % 8 {
            0 => {
                stream.sending.clear();
                stream.is_run_whole = false;
                stream.peek = None;
                self.input(Input::Failed { socket, error: HostError::Reset });
            }
            1 | 2 if stream.is_run_whole => {
                let all = stream.sending_bytes();
                let bytes = if choice & 8 == 0 { all } else { u32::from(amount) % all + 1 };
                stream.sending.clear();
                stream.is_run_whole = false;
                self.input(Input::Sent { socket, bytes });
            }
            3 | 4 if stream.peek.is_some() => self.answer_peek(socket, choice, amount),
            5 if !stream.has_ended => {
                stream.has_ended = true;
                self.input(Input::Readable { socket });
            }
            6 => self.input(Input::Readable { socket }),
            _ if !stream.has_ended => {
                stream.queued = stream.queued.saturating_add(u32::from(amount)).min(1 << 17);
                self.input(Input::Readable { socket });
            }
            _ => {}
        }
    }

    fn answer_peek(&mut self, socket: SocketId, choice: u8, amount: u16) {
        let Some(stream) = self.stream(socket) else { return };
        let Some(peek) = stream.peek.take() else { return };
        let there = stream.queued.saturating_sub(peek.offset).min(peek.len);
        if there == 0 && stream.has_ended {
            return self.input(Input::PeekEnd { socket });
        }
        if there == 0 {
            return self.input(Input::PeekEmpty { socket });
        }
        let mut left = if choice & 8 == 0 { there } else { u32::from(amount) % there + 1 };
        // Whether the host's side knows that the stream ends behind what it gives.
        let ends = stream.has_ended && peek.offset + left == stream.queued && choice & 16 == 0;
        let is_all = !stream.has_ended && peek.offset + left == stream.queued;
        while left > 0 && self.is_alive(socket) {
            // The last buffer ends the answer: the driver has no other.
            let Some(lease) = self.ledger.claim() else { return self.peek_nothing(socket) };
            let len = left.min(peek.chunk);
            left -= len;
            let is_whole = left == 0;
            let more = !is_whole && self.ledger.out() < LEASES;
            left = if more { left } else { 0 };
            let mut bytes = vec![choice; HEADROOM + len as usize];
            let then = match more {
                true => PeekedThen::More,
                false if ends && is_whole => PeekedThen::End,
                // Whatever comes behind it is told.
                false if is_whole && is_all && choice & 32 == 0 => PeekedThen::Empty,
                false => PeekedThen::Unknown,
            };
            let input = Input::Peeked { socket, lease, bytes: &mut bytes, then };
            self.shard.handle(self.now, input, &mut self.ledger);
            self.ledger.put(lease, bytes);
            self.settle();
        }
    }

    /// No buffer for a `Peek`: nothing yet, and it can be tried again.
    fn peek_nothing(&mut self, socket: SocketId) {
        self.input(Input::PeekEmpty { socket });
        self.input(Input::Readable { socket });
    }

    fn on_splice(&mut self, socket: SocketId, was_running: bool, choice: u8, amount: u16) {
        if was_running {
            self.sockets.remove(&socket.index);
            let (to_guest, from_guest) = (u64::from(amount), u64::from(choice));
            return self.input(Input::SpliceEnded { socket, to_guest, from_guest });
        }
        if choice % 2 == 0 {
            // A pair that did not come about is no more: its id may come back by `Adopt`, or never.
            self.sockets.remove(&socket.index);
            return self.input(Input::Failed { socket, error: host_error(choice, amount) });
        }
        if let Some(Socket { kind: Kind::Splice { is_running }, .. }) =
            self.sockets.get_mut(&socket.index)
        {
            *is_running = true;
        }
        self.input(Input::Spliced { socket });
    }

    fn accept(&mut self, listener: SocketId, choice: u8, amount: u16) {
        if self.accepted.len() > 8 {
            return;
        }
        let accepted = AcceptedId(self.accepted_next);
        self.accepted_next += 1;
        self.accepted.push(accepted);
        let peer = SocketAddr::new(crate::host::remote(choice).ip(), amount.max(1));
        let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 8080 + u16::from(choice >> 4));
        self.input(Input::Accepted { accepted, listener, peer, local });
    }

    fn on_datagram_socket(
        &mut self,
        socket: SocketId,
        kind: DatagramKind,
        is_open: bool,
        last_to: Option<SocketAddr>,
        choice: u8,
        amount: u16,
    ) {
        if !is_open {
            return match choice % 8 {
                0 => self.input(Input::Failed { socket, error: host_error(choice >> 3, amount) }),
                _ => self.opened(socket, kind, amount),
            };
        }
        let from = last_to.filter(|_| choice & 8 == 0).unwrap_or_else(|| peer(kind, choice));
        let payload = vec![choice; usize::from(amount % 9_000)];
        match choice % 8 {
            0 | 1 => {
                let offender = (choice & 16 == 0).then(|| peer(kind, choice >> 4).ip());
                let payload = &payload[..payload.len().min(64)];
                let error = host_error(choice >> 3, amount);
                self.input(Input::DatagramError { socket, to: from, error, offender, payload });
            }
            2 => self.datagram(socket, from, &payload, amount % 1_400 + 1),
            3 | 4 => {
                let echo = [if from.is_ipv4() { 0 } else { 129 }, 0, 0, 0, 0, 7, 0, choice];
                self.datagram(socket, from, &echo, 0);
            }
            _ => self.datagram(socket, from, &payload, 0),
        }
    }

    fn opened(&mut self, socket: SocketId, kind: DatagramKind, port: u16) {
        if let Some(Socket { kind: Kind::Datagram { is_open, .. }, .. }) =
            self.sockets.get_mut(&socket.index)
        {
            *is_open = true;
        }
        let local = SocketAddr::new(unspecified(kind), port.max(1024));
        self.input(Input::Opened { socket, local });
    }

    fn datagram(&mut self, socket: SocketId, from: SocketAddr, payload: &[u8], segment: u16) {
        let Some(lease) = self.ledger.claim() else { return };
        let mut bytes = vec![0; HEADROOM];
        bytes.extend_from_slice(payload);
        let segment = if usize::from(segment) < payload.len() { segment } else { 0 };
        let (hop_limit, tos) = (61, 2);
        let bytes_mut = &mut bytes;
        let local = LocalId(u16::from(payload.first().is_some_and(|byte| byte & 32 != 0)));
        let input = Input::Datagram {
            socket,
            lease,
            bytes: bytes_mut,
            from,
            local,
            segment,
            hop_limit,
            tos,
        };
        self.shard.handle(self.now, input, &mut self.ledger);
        self.ledger.put(lease, bytes);
        self.settle();
    }

    /// Carries out what the core wants, and checks everything.
    fn settle(&mut self) {
        for op in std::mem::take(&mut self.ledger.ops) {
            self.on_op(op);
        }
        assert_eq!(self.ledger.out(), self.shard.leases_held(), "leases out and leases held");
        self.shard.check();
    }

    fn on_op(&mut self, op: Op) {
        match op {
            Op::WriteFrame { span, offload } => self.on_frame_to_guest(span, offload),
            Op::Release { lease } => drop(self.ledger.give_back(lease)),
            Op::Append { span, to, at } => self.ledger.append(span, to, at),
            Op::Connect { socket, .. } => {
                if !self.is_alive(socket) {
                    self.add(socket, Kind::Stream(Stream::default()));
                }
                self.on_stream_op(socket, op);
            }
            Op::Adopt { socket, accepted } => {
                self.take_accepted(accepted);
                let stream = Stream { is_connected: true, ..Stream::default() };
                self.add(socket, Kind::Stream(stream));
            }
            Op::Refuse { accepted } => self.take_accepted(accepted),
            Op::Splice { socket, accepted, .. } => {
                assert!(self.accepted.contains(&accepted), "{accepted:?} is not there to splice");
                self.add(socket, Kind::Splice { is_running: false });
            }
            Op::Send { socket, span, .. } => {
                self.ledger.bytes(span);
                self.on_stream_op(socket, op);
            }
            Op::Peek { socket, .. } | Op::Consume { socket, .. } | Op::Shutdown { socket } => {
                self.on_stream_op(socket, op);
            }
            Op::Close { socket, .. } => {
                assert!(self.is_alive(socket), "{socket:?} is closed and not open");
                self.sockets.remove(&socket.index);
            }
            Op::Open { socket, kind, .. } => {
                let kind = Kind::Datagram { kind, is_open: false, last_to: None, gathering: None };
                self.add(socket, kind);
            }
            Op::SendTo { socket, to, span, more, .. } => self.on_send_to(socket, to, span, more),
            Op::HandOver { .. } | Op::HandOverClient { .. } | Op::TellNeighbor { .. } => {
                panic!("{op:?}: there is no other shard")
            }
        }
    }

    fn add(&mut self, id: SocketId, kind: Kind) {
        assert!(id.index < self.config().limits.sockets, "{id:?} is beyond the limit");
        let before = self.sockets.insert(id.index, Socket { id, kind });
        assert!(before.is_none(), "{id:?} takes the place of {before:?}");
    }

    fn take_accepted(&mut self, accepted: AcceptedId) {
        let at = self.accepted.iter().position(|a| *a == accepted);
        self.accepted.swap_remove(at.unwrap_or_else(|| panic!("{accepted:?} is not there")));
    }

    fn on_stream_op(&mut self, socket: SocketId, op: Op) {
        let stream = self.stream(socket);
        stream.unwrap_or_else(|| panic!("{op:?} for a socket that is no stream")).on_op(op);
    }

    fn on_send_to(&mut self, socket: SocketId, to: SocketAddr, span: Span, more: bool) {
        self.ledger.bytes(span);
        self.ledger.give_back(span.lease);
        let found = self.sockets.get_mut(&socket.index).filter(|found| found.id == socket);
        match found.map(|found| &mut found.kind) {
            Some(Kind::Datagram { last_to, gathering, .. }) => {
                assert!(gathering.is_none_or(|before| before == to), "parts go to one place");
                *gathering = more.then_some(to);
                *last_to = Some(to);
            }
            Some(Kind::Listener { is_tcp: false }) => {}
            Some(Kind::Stream(_) | Kind::Splice { .. } | Kind::Listener { .. }) | None => {
                panic!("{socket:?} sends datagrams and is not open for them")
            }
        }
    }

    /// Reads a frame as the guest would.
    fn on_frame_to_guest(&mut self, span: Span, offload: Offload) {
        let bytes = self.ledger.bytes(span);
        match parse(bytes).unwrap_or_else(|_| panic!("malformed frame to the guest: {bytes:02x?}"))
        {
            EtherType::Arp { .. } => {}
            EtherType::Other => panic!("neither IP nor ARP to the guest: {bytes:02x?}"),
            EtherType::Ip(packet) => {
                check_len(&packet, bytes, offload.gso, self.config().mtu);
                check_sum(&packet, bytes, offload.checksum);
                if let Some((ends, position)) = position(&packet, bytes) {
                    self.positions.insert(ends, position);
                }
            }
        }
        self.ledger.give_back(span.lease);
    }
}

/// An answer to an echo. It is what the guest sent, turned around: as long, fragment by fragment, even if the guest
/// raised its MTU, and with a sum as wrong as one for which the link vouched.
fn is_echo(packet: &Packet, bytes: &[u8]) -> bool {
    matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6)
        && (packet.fragment.is_some()
            || matches!(bytes.get(packet.payload_start as usize), Some(0 | 129)))
}

fn check_len(packet: &Packet, bytes: &[u8], gso: Gso, mtu: u16) {
    let is_whole = gso == Gso::None && !is_echo(packet, bytes);
    let len_max = if is_whole { 14 + usize::from(mtu) } else { FRAME_BYTES_MAX };
    let len = bytes.len();
    assert!(len <= len_max, "a frame of {len} bytes, {gso:?}: {packet:?}");
}

fn check_sum(packet: &Packet, bytes: &[u8], checksum: Checksum) {
    let segment = &bytes[packet.payload()];
    match checksum {
        Checksum::Unchecked if packet.fragment.is_none() => assert!(
            is_echo(packet, bytes)
                || checksum::is_valid(packet.source, packet.destination, packet.protocol, segment),
            "wrong checksum to the guest: {bytes:02x?}"
        ),
        Checksum::Unchecked | Checksum::Valid => {}
        Checksum::Partial { start, offset } => {
            assert_eq!(u32::from(start), packet.payload_start, "the sum starts at the segment");
            assert!(usize::from(offset) + 2 <= segment.len(), "the sum is in the segment");
        }
    }
}

/// The flow and its position, of a TCP frame to the guest.
fn position(packet: &Packet, bytes: &[u8]) -> Option<((SocketAddr, SocketAddr), Position)> {
    if packet.protocol != protocol::TCP {
        return None;
    }
    let segment = &bytes[packet.payload()];
    let (header, rest) = segment.split_first_chunk::<20>().expect("a TCP header");
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
    let options = (usize::from(header[12] >> 4) * 4).checked_sub(20).expect("a data offset");
    let payload = rest.len().checked_sub(options).expect("options within the segment") as u32;
    let syn_and_fin = u32::from(header[13] & 1) + u32::from(header[13] >> 1 & 1);
    let ours = long(4).wrapping_add(payload).wrapping_add(syn_and_fin);
    let ends = (packet.to(word(2)), packet.from(word(0)));
    Some((ends, Position { ours, guests: long(8) }))
}

fn unspecified(kind: DatagramKind) -> IpAddr {
    match kind {
        DatagramKind::Udp4 | DatagramKind::Ping4 => Ipv4Addr::UNSPECIFIED.into(),
        DatagramKind::Udp6 | DatagramKind::Ping6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn host_error(choice: u8, amount: u16) -> HostError {
    match choice % 12 {
        0 => HostError::Refused,
        1 => HostError::Reset,
        2 => HostError::NetUnreachable,
        3 => HostError::HostUnreachable,
        4 => HostError::TimedOut,
        5 => HostError::Prohibited,
        6 => HostError::TooBig { mtu: u32::from(amount) },
        7 => HostError::TimeExceeded,
        8 => HostError::Icmp { kind: choice, code: amount as u8 },
        9 => HostError::NoRoom,
        10 => HostError::Unsupported,
        _ => HostError::Other(i32::from(amount)),
    }
}
