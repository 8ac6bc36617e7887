//! The host's side: sockets as a driver keeps them, with remote applications behind them.
//!
//! Every op is checked against the rules of the boundary (`usernet_core::op`) as it comes. What completes, completes
//! by an event, after a while that chance decides; the event becomes a [`Told`].

pub mod datagram;
mod remote;
mod stream;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use usernet_core::op::{CloseHow, Namespace};
use usernet_core::{AcceptedId, HostError, LeaseId, LocalId, Op, PeekedThen, SocketId};

use crate::conversation::Answer;
use crate::env::{Env, Event};
use datagram::{Datagrams, Port};
pub use stream::Stream;

/// What the core is to be told: an input whose bytes lie in a lease.
#[derive(Debug)]
pub enum Told {
    /// `Input::Connected`.
    Connected(SocketId),
    /// `Input::Failed`.
    Failed(SocketId, HostError),
    /// `Input::Sent`.
    Sent(SocketId, u32),
    /// `Input::Peeked`, one per lease, and what follows the last.
    Peeked(SocketId, Vec<LeaseId>, PeekedThen),
    /// `Input::PeekEmpty`.
    PeekEmpty(SocketId),
    /// `Input::PeekEnd`.
    PeekEnd(SocketId),
    /// `Input::Readable`.
    Readable(SocketId),
    /// `Input::Accepted`.
    Accepted {
        /// The connection.
        accepted: AcceptedId,
        /// Its conversation.
        conversation: usize,
    },
    /// `Input::Spliced`.
    Spliced(SocketId),
    /// `Input::SpliceEnded`.
    SpliceEnded(SocketId),
    /// `Input::Opened`.
    Opened(SocketId, SocketAddr),
    /// `Input::Datagram`.
    Datagram {
        /// The socket.
        socket: SocketId,
        /// Headroom and payload.
        lease: LeaseId,
        /// The sender.
        from: SocketAddr,
        /// What it wrote to.
        local: LocalId,
        /// `UDP_GRO`.
        segment: u16,
    },
    /// `Input::DatagramError`.
    DatagramError {
        /// The socket.
        socket: SocketId,
        /// Where it was to go.
        to: SocketAddr,
        /// Why it did not.
        error: HostError,
        /// Who says so.
        offender: Option<IpAddr>,
        /// The datagram's start.
        payload: Vec<u8>,
    },
}

enum Socket {
    Stream(Stream),
    Port(Port),
    Pair(usize),
    Listener,
}

/// The host.
pub struct Host {
    sockets: BTreeMap<u32, (SocketId, Socket)>,
    /// Connections that wait for `Adopt`, `Splice` or `Refuse`.
    accepted: HashMap<u32, usize>,
    accepts: u32,
    by_peer: HashMap<SocketAddr, usize>,
    /// Remote applications that speak in datagrams.
    pub datagrams: Datagrams,
    run: Option<SocketId>,
}

impl Host {
    /// A host without sockets; it knows where the conversations' servers are.
    pub fn new(env: &Env, datagrams: Datagrams) -> Self {
        let outbound = |(i, c): (usize, &crate::conversation::Conversation)| {
            c.plan.is_outbound.then_some((c.plan.peer, i))
        };
        let by_peer = env.conversations.iter().enumerate().filter_map(outbound).collect();
        Self {
            sockets: BTreeMap::new(),
            accepted: HashMap::new(),
            accepts: 0,
            by_peer,
            datagrams,
            run: None,
        }
    }

    /// A forward's listener or UDP socket, opened before the run.
    pub fn listen(&mut self, socket: SocketId, port: Option<Port>) {
        let kind = port.map_or(Socket::Listener, Socket::Port);
        self.sockets.insert(socket.index, (socket, kind));
    }

    /// Sockets other than listeners.
    pub fn open_sockets(&self) -> Vec<SocketId> {
        let is_open = |s: &Socket| match s {
            Socket::Stream(_) | Socket::Pair(_) => true,
            Socket::Port(port) => !port.is_listener,
            Socket::Listener => false,
        };
        self.sockets.values().filter(|(_, s)| is_open(s)).map(|(id, _)| *id).collect()
    }

    /// Connections that the core has neither adopted nor refused.
    pub fn accepted_waiting(&self) -> usize {
        self.accepted.len()
    }

    /// Whose client an accepted connection is.
    pub fn conversation_of(&self, accepted: AcceptedId) -> usize {
        let conversation = self.accepted.get(&accepted.0).copied();
        conversation.unwrap_or_else(|| panic!("{accepted:?} is not waiting"))
    }

    /// Runs an op.
    pub fn on_op(&mut self, env: &mut Env, op: Op) {
        if let Some(socket) = self.run {
            let goes_on = matches!(op, Op::Send { socket: s, .. } | Op::SendTo { socket: s, .. } if s == socket);
            assert!(
                goes_on,
                "an op with `more` set is followed by its continuation, not by {op:?}"
            );
        }
        self.run = None;
        match op {
            Op::WriteFrame { .. }
            | Op::Append { .. }
            | Op::HandOver { .. }
            | Op::HandOverClient { .. }
            | Op::TellNeighbor { .. } => unreachable!("{op:?} is the world's"),
            Op::Connect { on: Namespace::Guest, .. } | Op::Open { on: Namespace::Guest, .. } => {
                unreachable!("{op:?}: resolvers are the host's here")
            }
            Op::Release { lease } => env.ledger.give_back(lease, "Release"),
            Op::Connect { socket, to, on: Namespace::Host } => self.on_connect(env, socket, to),
            Op::Adopt { socket, accepted } => self.on_adopt(env, socket, accepted),
            Op::Refuse { accepted } => {
                let conversation = self.take_accepted(accepted);
                env.conversations[conversation].host.was_refused = true;
            }
            Op::Splice { socket, accepted, .. } => {
                self.claim(socket, "Splice");
                let conversation = self.accepted.get(&accepted.0).copied();
                let conversation = conversation.expect("Splice names an accepted connection");
                self.sockets.insert(socket.index, (socket, Socket::Pair(conversation)));
                env.soon(Event::Spliced(socket, accepted));
            }
            Op::Send { socket, span, more } => {
                self.run = more.then_some(socket);
                self.stream(socket, "Send").send(env, span, more);
            }
            Op::Peek { socket, offset, len, chunk } => {
                self.stream(socket, "Peek").peek(env, offset, len, chunk);
            }
            Op::Consume { socket, bytes } => self.stream(socket, "Consume").consume(env, bytes),
            Op::Shutdown { socket } => self.stream(socket, "Shutdown").shutdown(env),
            Op::Close { socket, how } => self.on_close(env, socket, how),
            Op::Open { socket, kind, port, loopback, on: Namespace::Host } => {
                self.claim(socket, "Open");
                let port = Port::open(env, socket, kind, port, loopback);
                self.sockets.insert(socket.index, (socket, Socket::Port(port)));
            }
            Op::SendTo { socket, to, span, segment, hop_limit, tos: _, local, more } => {
                self.run = more.then_some(socket);
                let entry = self.sockets.get_mut(&socket.index);
                let Some((_, Socket::Port(port))) = entry.filter(|(id, _)| *id == socket) else {
                    panic!("SendTo names {socket:?}, which is no datagram socket");
                };
                let letter = datagram::SendTo { to, local, span, segment, hop_limit, more };
                port.send_to(env, &mut self.datagrams, letter);
            }
        }
    }

    fn claim(&self, socket: SocketId, why: &str) {
        let limit = "an index is used again after its Close only";
        assert!(!self.sockets.contains_key(&socket.index), "{why} {socket:?}: {limit}");
    }

    fn stream(&mut self, socket: SocketId, why: &str) -> &mut Stream {
        match self.sockets.get_mut(&socket.index) {
            Some((id, Socket::Stream(stream))) if *id == socket => stream,
            _ => panic!("{why} names {socket:?}, which is no open stream socket"),
        }
    }

    fn on_connect(&mut self, env: &mut Env, socket: SocketId, to: SocketAddr) {
        let conversation = self.by_peer.get(&to).copied();
        let conversation = conversation.unwrap_or_else(|| panic!("nobody asked for {to}"));
        match self.sockets.get(&socket.index) {
            Some((id, Socket::Stream(stream))) if *id == socket => {
                assert!(stream.has_failed(), "Connect on {socket:?}, which has not failed");
            }
            Some(_) => panic!("Connect {socket:?}: an index is used again after its Close only"),
            None => {}
        }
        let end = &mut env.conversations[conversation].host;
        assert!(
            end.socket.is_none() || end.socket == Some(socket),
            "two sockets for one conversation: {:?} and {socket:?}",
            end.socket
        );
        end.socket = Some(socket);
        end.attempts += 1;
        let stream = Stream::connecting(socket, conversation);
        self.sockets.insert(socket.index, (socket, Socket::Stream(stream)));
        match env.conversations[conversation].plan.answer {
            Answer::Accept(delay) => env.after(delay, Event::Connected(socket)),
            Answer::Fail(delay, error) => env.after(delay, Event::Failed(socket, error)),
        }
    }

    fn take_accepted(&mut self, accepted: AcceptedId) -> usize {
        let conversation = self.accepted.remove(&accepted.0);
        conversation.unwrap_or_else(|| panic!("{accepted:?} is not waiting"))
    }

    fn on_adopt(&mut self, env: &mut Env, socket: SocketId, accepted: AcceptedId) {
        self.claim(socket, "Adopt");
        let conversation = self.take_accepted(accepted);
        let mut stream = Stream::connecting(socket, conversation);
        stream.connected(env);
        env.conversations[conversation].host.socket = Some(socket);
        self.sockets.insert(socket.index, (socket, Socket::Stream(stream)));
        if env.conversations[conversation].host.has_reset {
            env.soon(Event::Failed(socket, HostError::Reset));
        }
    }

    fn on_close(&mut self, env: &mut Env, socket: SocketId, how: CloseHow) {
        let entry = self.sockets.remove(&socket.index);
        match entry.filter(|(id, _)| *id == socket) {
            Some((_, Socket::Stream(stream))) => stream.close(env, how),
            Some((_, Socket::Pair(conversation))) => {
                env.conversations[conversation].host.socket = None;
            }
            Some((_, Socket::Port(_) | Socket::Listener)) => {}
            None => panic!("Close names {socket:?}, which is not open"),
        }
    }

    /// Lets an event of the host's side happen.
    pub fn on_event(&mut self, env: &mut Env, event: Event) -> Option<Told> {
        match event {
            Event::Connected(id) => {
                let stream = self.live_stream(id)?;
                stream.connected(env);
                let conversation = stream.conversation;
                env.conversations[conversation].host.was_connected = true;
                remote::wake(env, conversation);
                Some(Told::Connected(id))
            }
            Event::Failed(id, error) => self.live_stream(id)?.fail(env, error),
            Event::Send(id) => self.live_stream(id)?.on_send(env),
            Event::Peek(id) => self.live_stream(id)?.on_peek(env),
            Event::Readable(id) => self.live_stream(id)?.on_readable(env),
            Event::Remote(conversation) => {
                remote::step(env, conversation);
                None
            }
            Event::Arrive(conversation) => Some(self.on_arrive(env, conversation)),
            Event::Spliced(id, accepted) => self.on_spliced(env, id, accepted),
            Event::SpliceEnded(id) => self.on_splice_ended(env, id),
            Event::Opened(id) => match self.sockets.get_mut(&id.index) {
                Some((live, Socket::Port(port))) if *live == id => Some(port.on_opened(env)),
                _ => None,
            },
            Event::Datagram(delivery) => {
                let is_live = |(live, s): &(SocketId, Socket)| {
                    *live == delivery.socket && matches!(s, Socket::Port(p) if p.can_receive())
                };
                self.sockets.get(&delivery.socket.index).filter(|s| is_live(s))?;
                delivery.tell(env)
            }
            Event::ClientDatagram(client) => self.datagrams.on_client(env, client),
            Event::ToCore(_) | Event::ToGuest(_) | Event::Letter(..) | Event::Nothing => {
                unreachable!("an event of the world's")
            }
        }
    }

    fn live_stream(&mut self, id: SocketId) -> Option<&mut Stream> {
        match self.sockets.get_mut(&id.index) {
            Some((live, Socket::Stream(stream))) if *live == id => Some(stream),
            _ => None,
        }
    }

    fn on_arrive(&mut self, env: &mut Env, conversation: usize) -> Told {
        let accepted = AcceptedId(self.accepts);
        self.accepts += 1;
        self.accepted.insert(accepted.0, conversation);
        env.conversations[conversation].host.was_connected = true;
        remote::wake(env, conversation);
        Told::Accepted { accepted, conversation }
    }

    fn on_spliced(&mut self, env: &mut Env, id: SocketId, accepted: AcceptedId) -> Option<Told> {
        let (live, Socket::Pair(conversation)) = self.sockets.get(&id.index)? else { return None };
        if *live != id {
            return None;
        }
        let conversation = *conversation;
        if env.choices.chance(env.faults.splice_fails) {
            // The pair is no more: its id may come back by `Adopt`, or never.
            self.sockets.remove(&id.index);
            return Some(Told::Failed(id, HostError::Refused));
        }
        self.take_accepted(accepted);
        env.conversations[conversation].host.was_spliced = true;
        env.conversations[conversation].host.socket = Some(id);
        env.soon(Event::SpliceEnded(id));
        Some(Told::Spliced(id))
    }

    fn on_splice_ended(&mut self, env: &mut Env, id: SocketId) -> Option<Told> {
        let (live, Socket::Pair(conversation)) = self.sockets.get(&id.index)? else { return None };
        if *live != id {
            return None;
        }
        env.conversations[*conversation].guest.is_done = true;
        Some(Told::SpliceEnded(id))
    }

    /// A flow leaves its shard: nobody is told of its socket until it has arrived.
    pub fn lend(&mut self, socket: SocketId) -> Stream {
        match self.sockets.remove(&socket.index) {
            Some((id, Socket::Stream(stream))) if id == socket => stream,
            _ => panic!("{socket:?} is lent, and is no open stream socket"),
        }
    }

    /// It has arrived, and is called so there. What happened meanwhile is told.
    pub fn take_in(&mut self, env: &mut Env, mut stream: Stream, socket: SocketId) {
        self.claim(socket, "a flow that is lent");
        stream.is_now(socket);
        let conversation = stream.conversation;
        self.sockets.insert(socket.index, (socket, Socket::Stream(stream)));
        env.conversations[conversation].host.socket = Some(socket);
        env.soon(Event::Readable(socket));
        if env.conversations[conversation].host.has_reset {
            env.soon(Event::Failed(socket, HostError::Reset));
        }
    }

    /// Whether the core may still be told of the socket.
    pub fn is_open(&self, socket: SocketId) -> bool {
        self.sockets.get(&socket.index).is_some_and(|(id, _)| *id == socket)
    }

    /// A spliced pair has ended, both descriptors are closed.
    pub fn forget(&mut self, env: &mut Env, socket: SocketId) {
        if self.is_open(socket)
            && let Some((_, Socket::Pair(conversation))) = self.sockets.remove(&socket.index)
        {
            env.conversations[conversation].host.socket = None;
        }
    }

    /// The applications stop: what is still connected is reset.
    pub fn close_down(&mut self, env: &mut Env) {
        for conversation in 0..env.conversations.len() {
            remote::wake(env, conversation);
        }
    }
}
