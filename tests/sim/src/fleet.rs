//! The shards under test: one, or several that share the guest.
//!
//! The rest of the simulator sees one core. A socket is known to it by an id that also says whose it is; frames go to
//! any shard by chance, as a kernel that has learnt nothing would have it, and what a shard hands over is a [`Letter`].

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use usernet_core::config::MacAddr;
use usernet_core::rules::{Protocol, Rules};
use usernet_core::{
    AcceptedId, Config, Counter, FlowInfo, ForwardId, Input, Instant, LentFlow, Offload, Op,
    Ownership, Shard, ShardId, Share, SocketId, Why,
};

use crate::host::Stream;

/// Indices of the sockets of one shard, as the simulator has them, lie between multiples of this.
const SOCKETS: u32 = 1 << 16;

/// What one shard has for another.
#[derive(Clone, Debug)]
pub enum Letter {
    /// `Op::HandOver`.
    Frame {
        /// All of its parts.
        bytes: Vec<u8>,
        /// What is known of it.
        offload: Offload,
    },
    /// `Op::HandOverClient`.
    Client {
        /// The connection.
        accepted: AcceptedId,
        /// The forward.
        forward: ForwardId,
        /// The client.
        peer: SocketAddr,
        /// What it connected to.
        local: SocketAddr,
    },
    /// `Op::TellNeighbor`.
    Neighbor {
        /// The address.
        ip: IpAddr,
        /// The station.
        mac: MacAddr,
    },
    /// A flow that is lent, or given back.
    Flow(Luggage),
    /// A flow that was lent has ended.
    Ended {
        /// Its end in the guest.
        guest: SocketAddr,
        /// The other one, as the guest sees it.
        remote: SocketAddr,
    },
}

/// A flow with its socket.
#[derive(Clone)]
pub struct Luggage(Rc<RefCell<Option<(LentFlow, Stream)>>>);

impl Luggage {
    /// Packs it.
    pub fn new(flow: LentFlow, stream: Stream) -> Self {
        Self(Rc::new(RefCell::new(Some((flow, stream)))))
    }

    /// Unpacks it, once.
    pub fn open(&self) -> (LentFlow, Stream) {
        self.0.borrow_mut().take().expect("a letter arrives once")
    }
}

impl std::fmt::Debug for Luggage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.0.borrow() {
            Some((flow, _)) => flow.fmt(f),
            None => f.write_str("nothing any more"),
        }
    }
}

/// See the [module](self).
pub struct Fleet {
    shards: Vec<Shard>,
    ownership: Ownership,
}

impl Fleet {
    /// So many shards of one guest, of which so many own flows.
    pub fn new(shards: u8, homes: u8, config: &Config, rules: &Arc<Rules>) -> Self {
        let configs = (0..shards).map(|own| {
            let mut part = config.shared_by(Share { own: ShardId(own), shards, homes });
            // They have one ledger.
            part.limits.leases = config.limits.leases;
            part
        });
        let shards: Vec<_> = configs.map(|part| Shard::new(part, Arc::clone(rules))).collect();
        let ownership = Ownership::new(shards[0].config());
        Self { shards, ownership }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// How many of them own flows.
    pub fn homes(&self) -> usize {
        usize::from(self.shards[0].config().share.homes)
    }

    /// Whether there is none; there always is.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// One of them.
    pub fn shard(&mut self, at: usize) -> &mut Shard {
        &mut self.shards[at]
    }

    /// A listener, with the shard that it belongs to.
    pub fn attach_listener(
        &mut self,
        forward: ForwardId,
        protocol: Protocol,
        local: SocketAddr,
    ) -> SocketId {
        let shard = &self.shards[0];
        let owner = self.ownership.of_listener(shard.config(), shard.rules(), forward, local);
        let at = usize::from(owner.0);
        let socket = self.shards[at].attach_listener(forward, protocol, local).expect("room");
        outside(at, socket)
    }

    /// The first deadline of all.
    pub fn next_deadline(&self) -> Option<(Instant, Why)> {
        self.shards.iter().filter_map(Shard::next_deadline).min_by_key(|&(at, _)| at)
    }

    /// Those whose deadline has come.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = usize> + use<> {
        let is_due = |shard: &Shard| shard.next_deadline().is_some_and(|(at, _)| at <= now);
        let due: Vec<_> = (0..self.len()).filter(|&at| is_due(&self.shards[at])).collect();
        due.into_iter()
    }

    /// All invariants of all.
    pub fn check(&self) {
        for shard in &self.shards {
            shard.check();
            let (held, limits) = (shard.leases_held(), &shard.config().limits);
            assert!(held <= limits.leases_kept + limits.reassembly_leases, "{held} leases kept");
        }
    }

    /// The flows of all.
    pub fn flows(&self) -> Vec<FlowInfo> {
        self.shards.iter().flat_map(Shard::flows).collect()
    }

    /// Leases that they hold.
    pub fn leases_held(&self) -> u32 {
        self.shards.iter().map(Shard::leases_held).sum()
    }

    /// A counter of all.
    pub fn counted(&self, counter: Counter) -> u64 {
        self.shards.iter().map(|shard| shard.counters().value(counter)).sum()
    }
}

/// A shard's socket as the simulator knows it.
pub fn outside(shard: usize, socket: SocketId) -> SocketId {
    assert!(socket.index < SOCKETS, "indices are dense");
    SocketId { index: socket.index + shard as u32 * SOCKETS, ..socket }
}

/// Whose a socket is, and what that calls it.
pub fn inside(socket: SocketId) -> (usize, SocketId) {
    let shard = (socket.index / SOCKETS) as usize;
    (shard, SocketId { index: socket.index % SOCKETS, ..socket })
}

/// An op as the simulator is to see it.
pub fn op_outside(shard: usize, mut op: Op) -> Op {
    match &mut op {
        Op::WriteFrame { .. }
        | Op::Release { .. }
        | Op::Append { .. }
        | Op::Refuse { .. }
        | Op::HandOver { .. }
        | Op::HandOverClient { .. }
        | Op::TellNeighbor { .. } => {}
        Op::Connect { socket, .. }
        | Op::Adopt { socket, .. }
        | Op::Splice { socket, .. }
        | Op::Send { socket, .. }
        | Op::Peek { socket, .. }
        | Op::Consume { socket, .. }
        | Op::Shutdown { socket }
        | Op::Close { socket, .. }
        | Op::Open { socket, .. }
        | Op::SendTo { socket, .. } => *socket = outside(shard, *socket),
    }
    op
}

/// The shard that an input about a socket is for, and the input as that is told it.
pub fn input_inside(mut input: Input<'_>) -> (usize, Input<'_>) {
    let id = match &mut input {
        Input::Frame { .. }
        | Input::HandedOver { .. }
        | Input::ClientHandedOver { .. }
        | Input::Neighbor { .. }
        | Input::Tick => unreachable!("{input:?} is about no socket"),
        Input::Connected { socket }
        | Input::Spliced { socket }
        | Input::SpliceEnded { socket, .. }
        | Input::Sent { socket, .. }
        | Input::Readable { socket }
        | Input::Peeked { socket, .. }
        | Input::PeekEmpty { socket }
        | Input::PeekEnd { socket }
        | Input::Opened { socket, .. }
        | Input::Datagram { socket, .. }
        | Input::DatagramError { socket, .. }
        | Input::Failed { socket, .. }
        | Input::Accepted { listener: socket, .. } => socket,
    };
    let (shard, own) = inside(*id);
    *id = own;
    (shard, input)
}
