//! Opening: the guest's SYN becomes a connect, a host client's connection becomes a SYN.

use core::net::SocketAddr;
use core::time::Duration;

use super::conn::{Conn, Ends, OUR_WINDOW_SCALE, State, Timer, our_mss};
use super::segment::{ACK, ECE, SYN, Segment, SynOptions};
use super::seq::Seq;
use super::{Tcp, is_half_open};
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{AcceptedId, CloseHow, ForwardId, HostError, Input, Namespace, Offload, Op};
use crate::packet::error::{GuestError, Quoted, tell_guest};
use crate::packet::protocol::TCP;
use crate::rules::{LoopbackClients, Target, loopback_like, port_shown};
use crate::shard::Listener;
use crate::sockets::Owner;

/// First retransmission of our SYN or SYN-ACK.
const SYN_TIMEOUT: Duration = Duration::from_secs(1);
/// The window in a SYN is never scaled.
const SYN_WINDOW: u32 = 65_535;
/// Ports tried for a host client whose own port is taken in the guest's view.
const PORTS_TRIED: u16 = 64;

impl Tcp {
    /// A segment that belongs to no flow.
    pub(super) fn on_unknown_segment(
        &mut self,
        ctx: &mut Context<'_>,
        segment: &Segment,
        options: SynOptions,
    ) {
        if segment.rst {
            return;
        }
        if !segment.syn || segment.ack.is_some() || segment.fin {
            return self.reset_unknown(ctx, segment);
        }
        let (host, resolver) = match ctx.rules.target(segment.remote) {
            Target::Address(host) => (host, None),
            Target::Resolver => match ctx.rules.resolvers.first() {
                Some(&resolver) => (resolver, Some(0)),
                None => return self.reset_unknown(ctx, segment),
            },
            Target::Refuse => return self.reset_unknown(ctx, segment),
            Target::Unreachable => {
                return tell_about_syn(ctx, segment, HostError::HostUnreachable);
            }
            Target::NetUnreachable => {
                return tell_about_syn(ctx, segment, HostError::NetUnreachable);
            }
            Target::Drop => return ctx.count(Counter::DropByRule),
        };
        self.open_for_guest(ctx, segment, options, host, resolver);
    }

    fn open_for_guest(
        &mut self,
        ctx: &mut Context<'_>,
        segment: &Segment,
        options: SynOptions,
        host: SocketAddr,
        resolver: Option<u32>,
    ) {
        // A full table is silent, as a full accept queue is: the guest tries again.
        if self.half_open >= ctx.config.limits.half_open {
            return ctx.count(Counter::TcpTableFull);
        }
        let ends = Ends {
            guest: segment.guest,
            remote: segment.remote,
            host,
            guest_mac: segment.guest_mac,
        };
        let isn = self.initial_sequence(ctx, segment.guest, segment.remote);
        let conn = Conn::new(ctx.now, ends, State::Connecting { resolver }, isn);
        let Some(flow) = self.add(conn) else { return ctx.count(Counter::TcpTableFull) };
        let Some(socket) = ctx.sockets.claim(Owner::Tcp(flow)) else {
            self.remove(flow);
            return ctx.count(Counter::TcpTableFull);
        };
        let conn = self.conn_mut(flow);
        conn.socket = Some(socket);
        conn.is_ecn = segment.ece && segment.cwr;
        learn_syn(conn, ctx, segment, options);
        self.enter(flow);
        ctx.count(Counter::TcpOpenedByGuest);
        let on = resolver.map_or(Namespace::Host, |_| ctx.rules.resolvers_on);
        ctx.op(Op::Connect { socket, to: host, on });
    }

    /// The host's connect has answered: now the guest's handshake goes on.
    pub(super) fn on_connected(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let State::Connecting { .. } = self.conn(flow).state else {
            unreachable!("only a connecting flow has a connect outstanding")
        };
        self.set_state(flow, State::SynAckSent);
        self.send_syn(ctx, flow);
    }

    /// Sends, or sends again, our SYN or SYN-ACK.
    pub(super) fn send_syn(&mut self, ctx: &mut Context<'_>, flow: u32) {
        let conn = self.conn_mut(flow);
        let is_answer = conn.state == State::SynAckSent;
        let window = conn.advertise_syn(is_answer);
        let ecn = if is_answer && conn.is_ecn { ECE } else { 0 };
        let flags = SYN | if is_answer { ACK | ecn } else { 0 };
        let mut header = conn.header(ctx.config, conn.unacked, flags, window);
        header.syn_options = Some(SynOptions {
            mss: Some(our_mss(ctx.config, conn.guest)),
            window_scale: conn.our_scale,
            has_sack: conn.has_sack,
        });
        conn.next = conn.unacked + 1;
        conn.sent_max = conn.next;
        let timeout = SYN_TIMEOUT * (1 << conn.timeouts.min(6));
        let mss = conn.mss;
        self.set_timer(flow, Timer::Retransmit, ctx.now + timeout);
        emit(ctx, header, mss);
    }

    /// A host client has come in through a forward: its flow is ours, or another shard's.
    pub(crate) fn on_client(
        &mut self,
        ctx: &mut Context<'_>,
        forward: ForwardId,
        accepted: AcceptedId,
        peer: SocketAddr,
        local: SocketAddr,
    ) {
        let Some((guest, seen)) = ends_for_client(ctx, forward, peer, local) else {
            return ctx.op(Op::Refuse { accepted });
        };
        if let Some(to) = ctx.ownership.elsewhere(ctx.ownership.of_connection(guest, seen)) {
            ctx.count(Counter::ClientsHandedOver);
            return ctx.op(Op::HandOverClient { to, accepted, forward });
        }
        let Some(remote) = self.free_remote(ctx, guest, seen) else {
            return ctx.op(Op::Refuse { accepted });
        };
        if self.half_open >= ctx.config.limits.half_open {
            ctx.count(Counter::TcpTableFull);
            return ctx.op(Op::Refuse { accepted });
        }
        let isn = self.initial_sequence(ctx, guest, remote);
        let guest_mac = ctx.neighbors.mac(guest.ip());
        let ends = Ends { guest, remote, host: peer, guest_mac };
        let conn = Conn::new(ctx.now, ends, State::Splicing { accepted }, isn);
        let Some(flow) = self.add(conn) else {
            ctx.count(Counter::TcpTableFull);
            return ctx.op(Op::Refuse { accepted });
        };
        let Some(socket) = ctx.sockets.claim(Owner::Tcp(flow)) else {
            self.remove(flow);
            ctx.count(Counter::TcpTableFull);
            return ctx.op(Op::Refuse { accepted });
        };
        self.conn_mut(flow).socket = Some(socket);
        ctx.count(Counter::TcpOpenedByHost);
        match splice_to(ctx, peer, guest) {
            Some(to) => ctx.op(Op::Splice { socket, accepted, to, on: Namespace::Guest }),
            None => self.adopt(ctx, flow, accepted),
        }
    }

    /// How a client appears to the guest: with its own port, or another one if somebody looks like it. Always as an end of
    /// a flow of ours, so that the guest's answers are ours, too.
    fn free_remote(
        &self,
        ctx: &Context<'_>,
        guest: SocketAddr,
        seen: SocketAddr,
    ) -> Option<SocketAddr> {
        (0..PORTS_TRIED)
            .map(|n| SocketAddr::new(seen.ip(), port_shown(seen.port(), n)))
            .filter(|&remote| ctx.ownership.has_connection(guest, remote))
            .find(|&remote| {
                self.find(guest, remote).is_none() && !self.lent.contains_key(&(guest, remote))
            })
    }

    /// Takes a client's connection through the link: SYN to the guest.
    fn adopt(&mut self, ctx: &mut Context<'_>, flow: u32, accepted: AcceptedId) {
        let conn = self.conn_mut(flow);
        let socket = conn.socket.expect("an inbound flow has its socket from the start");
        conn.our_scale = Some(OUR_WINDOW_SCALE);
        conn.has_sack = true;
        // Most clients speak first, and have by the time that the guest has answered: its handshake ends with their words.
        conn.is_readable = true;
        let (guest, remote) = (conn.guest, conn.remote);
        if self.find(guest, remote).is_some() {
            // Somebody took the tuple while the splice was tried: the client tries again.
            ctx.op(Op::Refuse { accepted });
            self.conn_mut(flow).socket = None;
            ctx.sockets.release(socket);
            return self.remove(flow);
        }
        ctx.op(Op::Adopt { socket, accepted });
        self.set_state(flow, State::SynSent);
        self.enter(flow);
        self.send_syn(ctx, flow);
    }

    pub(super) fn on_spliced(&mut self, ctx: &mut Context<'_>, flow: u32) {
        ctx.count(Counter::TcpSpliced);
        self.set_state(flow, State::Spliced);
    }

    pub(super) fn on_splice_ended(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        to_guest: u64,
        from_guest: u64,
    ) {
        let conn = self.conn_mut(flow);
        conn.bytes_to_guest = to_guest;
        conn.bytes_from_guest = from_guest;
        let socket = conn.socket.take().expect("a spliced flow has its socket");
        // The driver has closed both ends: the id ends without a Close.
        ctx.sockets.release(socket);
        ctx.count(Counter::TcpClosed);
        self.remove(flow);
    }

    /// The server could not be reached on the guest's loopback: it may listen on the link.
    pub(super) fn on_splice_failed(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        accepted: AcceptedId,
    ) {
        self.adopt(ctx, flow, accepted);
    }

    /// A segment of a flow whose handshake is not complete. Whether the lease was kept.
    pub(super) fn on_handshake_segment(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
        options: SynOptions,
    ) -> Handshake {
        if segment.rst {
            self.on_handshake_reset(ctx, flow, segment);
            return Handshake::Waiting;
        }
        let conn = self.conn(flow);
        match conn.state {
            State::Connecting { .. } => Handshake::Waiting,
            State::SynAckSent if segment.syn => {
                self.send_syn(ctx, flow);
                Handshake::Waiting
            }
            State::SynAckSent => self.on_syn_ack_answered(ctx, flow, segment),
            State::SynSent => {
                self.on_guest_answer(ctx, flow, segment, options);
                Handshake::Waiting
            }
            State::Splicing { .. } | State::Spliced | State::Open | State::TimeWait => {
                unreachable!("such a flow is not in a handshake on the link")
            }
        }
    }

    fn on_syn_ack_answered(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
    ) -> Handshake {
        let conn = self.conn_mut(flow);
        let Some(ack) = segment.ack else { return Handshake::Waiting };
        if ack != conn.unacked + 1 {
            ctx.count(Counter::TcpUnacceptable);
            self.reset_unknown(ctx, segment);
            return Handshake::Waiting;
        }
        self.establish(ctx, flow, segment);
        Handshake::Established
    }

    /// The guest answers our SYN.
    fn on_guest_answer(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
        options: SynOptions,
    ) {
        let conn = self.conn_mut(flow);
        if segment.ack.is_some_and(|ack| ack != conn.unacked + 1) {
            // An older connection of the same ends: it is reset, our SYN goes again (RFC 9293, 3.10.7.3).
            ctx.count(Counter::TcpUnacceptable);
            return self.reset_unknown(ctx, segment);
        }
        if !segment.syn || segment.ack.is_none() {
            return ctx.count(Counter::TcpUnacceptable);
        }
        learn_syn(conn, ctx, segment, options);
        self.establish(ctx, flow, segment);
        let conn = self.conn_mut(flow);
        // The window in a SYN is not scaled.
        conn.guest_edge = conn.unacked + u32::from(segment.window);
        conn.ack_now = true;
        self.mark(flow);
    }

    fn establish(&mut self, ctx: &mut Context<'_>, flow: u32, segment: &Segment) {
        self.set_state(flow, State::Open);
        let conn = self.conn_mut(flow);
        conn.unacked = conn.next;
        conn.timeouts = 0;
        conn.window_seq = segment.seq;
        conn.window_ack = conn.unacked;
        conn.guest_edge = conn.unacked + (u32::from(segment.window) << conn.guest_scale);
        conn.last_heard = ctx.now;
        let idle = ctx.now + ctx.config.timeouts.tcp_idle;
        self.set_timer(flow, Timer::Idle, idle);
        self.mark(flow);
    }

    fn on_handshake_reset(&mut self, ctx: &mut Context<'_>, flow: u32, segment: &Segment) {
        let conn = self.conn(flow);
        let is_ours = match conn.state {
            State::Connecting { .. } | State::SynAckSent => segment.seq == conn.expected,
            State::SynSent => segment.ack == Some(conn.unacked + 1),
            State::Splicing { .. } | State::Spliced | State::Open | State::TimeWait => false,
        };
        if !is_ours {
            return ctx.count(Counter::TcpUnacceptable);
        }
        ctx.count(Counter::TcpResetsFromGuest);
        self.close(ctx, flow, CloseHow::Reset);
    }

    /// A connect, splice or open flow's socket failed.
    pub(super) fn on_failed(&mut self, ctx: &mut Context<'_>, flow: u32, error: HostError) {
        match self.conn(flow).state {
            State::Connecting { resolver } => self.on_connect_failed(ctx, flow, resolver, error),
            State::Splicing { accepted } => self.on_splice_failed(ctx, flow, accepted),
            State::SynAckSent | State::SynSent | State::Spliced | State::Open => {
                self.on_host_reset(ctx, flow);
            }
            State::TimeWait => unreachable!("a lingering flow has no socket"),
        }
    }

    fn on_connect_failed(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        resolver: Option<u32>,
        error: HostError,
    ) {
        // The DNS address: the next resolver may answer.
        if let Some(next) = resolver.map(|n| n + 1)
            && let Some(&to) = ctx.rules.resolvers.get(next as usize)
        {
            self.set_state(flow, State::Connecting { resolver: Some(next) });
            let conn = self.conn_mut(flow);
            conn.host = to;
            let socket = conn.socket.expect("a connecting flow has its socket");
            return ctx.op(Op::Connect { socket, to, on: ctx.rules.resolvers_on });
        }
        ctx.count(Counter::TcpConnectFailed);
        match error {
            // As on the host: a black hole stays one. The guest's own timeout is as long as the host's.
            HostError::TimedOut => {}
            HostError::NetUnreachable
            | HostError::HostUnreachable
            | HostError::Prohibited
            | HostError::Unsupported
            | HostError::TooBig { .. }
            | HostError::TimeExceeded
            | HostError::Icmp { .. } => self.tell_about_connect(ctx, flow, error),
            HostError::Refused | HostError::Reset | HostError::NoRoom | HostError::Other(_) => {
                self.send_reset(ctx, flow);
            }
        }
        self.close(ctx, flow, CloseHow::Graceful);
    }

    fn tell_about_connect(&mut self, ctx: &mut Context<'_>, flow: u32, error: HostError) {
        let conn = self.conn(flow);
        let error = if error == HostError::Unsupported { HostError::NetUnreachable } else { error };
        quote_syn(ctx, conn.guest, conn.remote, conn.expected - 1, error);
    }

    /// An ICMP error of the guest about a segment that we sent (RFC 5927: its sequence number must be in flight).
    pub(crate) fn on_guest_error(&mut self, ctx: &mut Context<'_>, error: &GuestError) {
        let Some(flow) = self.find(error.to, error.from) else { return };
        let conn = self.conn_mut(flow);
        let Some(seq) = error.sequence.map(Seq) else { return };
        if seq.is_before(conn.unacked) || !seq.is_before(conn.sent_max) {
            return ctx.count(Counter::TcpUnacceptable);
        }
        match error.error {
            HostError::TooBig { mtu } => {
                let headers = if conn.guest.is_ipv4() { 40 } else { 60 };
                let mss = u16::try_from(mtu).unwrap_or(u16::MAX).saturating_sub(headers);
                conn.choose_mss(ctx.config, Some(conn.mss.min(mss)));
                self.rewind(ctx, flow);
            }
            HostError::Refused
            | HostError::NetUnreachable
            | HostError::HostUnreachable
            | HostError::Prohibited
                if conn.state == State::SynSent =>
            {
                self.close(ctx, flow, CloseHow::Reset);
            }
            HostError::Refused
            | HostError::NetUnreachable
            | HostError::HostUnreachable
            | HostError::Prohibited
            | HostError::Reset
            | HostError::TimedOut
            | HostError::TimeExceeded
            | HostError::Icmp { .. }
            | HostError::NoRoom
            | HostError::Unsupported
            | HostError::Other(_) => {}
        }
    }

    /// Something came to a forward's listening socket.
    pub(crate) fn on_listener_input(
        &mut self,
        ctx: &mut Context<'_>,
        listener: &Listener,
        input: Input<'_>,
    ) {
        if let Input::Accepted { accepted, peer, local, .. } = input {
            self.on_client(ctx, listener.forward, accepted, peer, local);
        }
    }

    /// Whether a lingering flow gives way to a new SYN of the same ends (RFC 6191: a higher sequence number).
    pub(super) fn makes_way(
        &mut self,
        ctx: &mut Context<'_>,
        flow: u32,
        segment: &Segment,
    ) -> bool {
        let conn = self.conn(flow);
        let is_new = segment.syn && segment.ack.is_none() && !segment.rst;
        if conn.state == State::TimeWait && is_new && segment.seq.is_after(conn.expected) {
            self.close(ctx, flow, CloseHow::Graceful);
            return true;
        }
        false
    }

    /// RFC 6528: a clock, and a keyed hash of the ends.
    fn initial_sequence(&self, ctx: &Context<'_>, guest: SocketAddr, remote: SocketAddr) -> Seq {
        let clock = (ctx.now.as_nanos() / 4_000) as u32;
        Seq(clock.wrapping_add((self.hash(guest, remote) >> 16) as u32))
    }
}

/// The guest's end and the client's, as the guest would see them if nobody else looked like the client.
fn ends_for_client(
    ctx: &Context<'_>,
    forward: ForwardId,
    peer: SocketAddr,
    local: SocketAddr,
) -> Option<(SocketAddr, SocketAddr)> {
    let forward = ctx.rules.forward(forward)?;
    let port = forward.guest_port_for(local.port())?;
    let is_v4 = peer.ip().to_canonical().is_ipv4();
    let first = ctx.config.guest_like(peer.ip().to_canonical());
    let guest = SocketAddr::new(forward.guest.or(first)?, port);
    // A guest address of the other family: the client can only appear as the host itself.
    let shown = if guest.is_ipv4() == is_v4 { peer.ip() } else { loopback_like(guest.ip()) };
    let seen = ctx.rules.view.as_seen_by_guest(shown)?;
    Some((guest, SocketAddr::new(seen, peer.port())))
}

/// What became of a segment in a handshake.
pub(super) enum Handshake {
    /// Nothing more to do with it.
    Waiting,
    /// It completed the handshake and may carry more.
    Established,
}

impl Conn {
    /// The window of a SYN. Ours to the guest is not answered yet, so there is no edge to keep.
    fn advertise_syn(&mut self, is_answer: bool) -> u16 {
        if is_answer {
            self.edge = self.expected + SYN_WINDOW;
            self.acked = self.expected;
        }
        SYN_WINDOW as u16
    }
}

/// Takes over what the guest's SYN says.
fn learn_syn(conn: &mut Conn, ctx: &Context<'_>, segment: &Segment, options: SynOptions) {
    conn.expected = segment.seq + 1;
    conn.acked = conn.expected;
    conn.edge = conn.expected + SYN_WINDOW;
    conn.guest_mac = segment.guest_mac;
    conn.guest_scale = options.window_scale.unwrap_or(0);
    conn.our_scale = options.window_scale.map(|_| OUR_WINDOW_SCALE);
    conn.has_sack = options.has_sack;
    conn.choose_mss(ctx.config, options.mss);
    debug_assert!(is_half_open(conn.state), "a SYN is learnt during the handshake");
}

/// Writes a segment without payload.
pub(super) fn emit(ctx: &mut Context<'_>, header: super::segment::Header, mss: u16) {
    let size = header.bytes();
    let mut offload = Offload::default();
    let Some((lease, bytes)) = ctx.out.reserve(size) else {
        return ctx.count(Counter::DropNoBuffer);
    };
    offload.clone_from(&header.write(bytes, 0, mss));
    ctx.write_frame(crate::op::Span { lease, start: 0, len: size as u32 }, offload);
}

fn tell_about_syn(ctx: &mut Context<'_>, segment: &Segment, error: HostError) {
    quote_syn(ctx, segment.guest, segment.remote, segment.seq, error);
}

/// Tells the guest by ICMP what became of its SYN.
fn quote_syn(
    ctx: &mut Context<'_>,
    guest: SocketAddr,
    remote: SocketAddr,
    seq: Seq,
    error: HostError,
) {
    let mut transport = [0; super::segment::TCP_BYTES];
    transport[0..2].copy_from_slice(&guest.port().to_be_bytes());
    transport[2..4].copy_from_slice(&remote.port().to_be_bytes());
    transport[4..8].copy_from_slice(&seq.0.to_be_bytes());
    transport[12..14].copy_from_slice(&[0x50, SYN]);
    let quoted = Quoted {
        source: guest.ip(),
        destination: remote.ip(),
        protocol: TCP,
        tos: 0,
        hop_limit: crate::packet::build::HOP_LIMIT,
        transport: &transport,
        transport_len: transport.len(),
    };
    tell_guest(ctx, &quoted, error, None);
}

/// Where in the guest a client is joined with socket to socket; none: it comes by the link.
fn splice_to(ctx: &Context<'_>, peer: SocketAddr, guest: SocketAddr) -> Option<SocketAddr> {
    let view = &ctx.rules.view;
    if !peer.ip().to_canonical().is_loopback() || !view.is_guests(guest.ip()) {
        return None;
    }
    match view.loopback_clients {
        LoopbackClients::GuestLoopback => {
            Some(SocketAddr::new(loopback_like(guest.ip()), guest.port()))
        }
        LoopbackClients::GuestAddress => Some(guest),
        LoopbackClients::Link => None,
    }
}
