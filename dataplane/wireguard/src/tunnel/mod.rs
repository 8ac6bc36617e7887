//! A tunnel: WireGuard between the guest's device and its peers, on boringtun's [`Tunn`].
//!
//! # Theory of operation
//!
//! What the guest sends is cut to packets within its own buffer, and each packet is sealed straight into the [`Train`] that
//! its peer is sent: a super-frame of 64 KiB becomes one or two calls of the driver's. What a peer sends is opened straight
//! behind what came before it, in the [`Join`], and reaches the guest as a super-frame where it is a run of one flow.
//! Both are let go at the end of a turn at the latest.
//!
//! boringtun does the cryptography, the handshakes, the replay window and the times. This module has what it leaves to
//! its users, one file each:
//!
//! - [`routes`]: `AllowedIPs`, both ways. What a peer may not send is dropped after it has been opened.
//! - [`gate`]: which handshakes are worth their price.
//! - [`peer`]: what is due when, so that nothing is woken up for nothing.
//! - [`inbound`]: what a datagram is for, and who is where. A peer is where its last authentic packet came from, and
//!   an initiation is none before the session that it made has been used: it might be an old one, sent again.
//! - [`apply`]: changes while it runs.
//!
//! Packets wait for a handshake in boringtun's queue, as many as a [`Peer`] may have there. Nothing else allocates after
//! a peer has been made.

mod apply;
mod counters;
mod gate;
mod inbound;
mod join;
mod peer;
mod routes;
mod time;
mod train;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use usernet_core::op::HostError;
use usernet_core::packet::error::{self, Bucket, ERROR6_BYTES_MAX};
use usernet_core::packet::offload::cut_in_place;
use usernet_core::{Instant, Offload, TunnelOut};

pub use counters::{Counter, Counters};

use crate::config::Config;
use crate::key::{PrivateKey, PublicKey};
use crate::uapi::Changes;
use gate::Gate;
use join::Join;
use peer::Peer;
use routes::Routes;
use train::{Train, wire_bytes_max};

/// The kinds of messages (their first byte).
const INITIATION: u8 = 1;
const DATA: u8 = 4;
/// What a packet of data has more than what is in it.
const DATA_OVERHEAD_BYTES: usize = 32;
/// The largest IP packet, sealed.
const SCRATCH_BYTES: usize = 65_535 + DATA_OVERHEAD_BYTES;
/// Something that others cause is said this often at most.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// A peer's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PeerId(u32);

/// One end of a tunnel, and its peers.
pub struct Tunnel {
    /// None: nobody yet. Nothing is sent, and handshakes are ignored.
    private_key: Option<PrivateKey>,
    gate: Gate,
    /// By [`PeerId`], which is also the upper 24 bits of the indices of a peer's sessions. None: free.
    peers: Vec<Option<Peer>>,
    by_key: HashMap<PublicKey, PeerId>,
    /// So far.
    peers_made: u64,
    routes: Routes,
    /// To the wire.
    train: Train,
    /// To the guest.
    join: Join,
    /// For messages without data.
    scratch: Box<[u8]>,
    counters: Counters,
    /// The earliest of the peers', or earlier.
    deadline: Option<Instant>,
    /// How many errors the guest is told.
    errors: Bucket,
    /// The state of [`chance`](Self::chance).
    random: u64,
    /// When something about strangers was last said.
    said: Option<Instant>,
}

impl Tunnel {
    /// A tunnel as configured. Peers whose endpoint is a name have none: the caller resolves it and [applies] the change.
    /// `seed` is a good random number.
    ///
    /// [applies]: Self::apply
    pub fn new(config: &Config, seed: u64) -> Self {
        let mut tunnel = Self {
            private_key: None,
            gate: Gate::new(secret(None), seed),
            peers: Vec::new(),
            by_key: HashMap::new(),
            peers_made: 0,
            routes: Routes::new(),
            train: Train::new(),
            join: Join::new(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            counters: Counters::default(),
            deadline: None,
            errors: Bucket::new(),
            random: seed | 1,
            said: None,
        };
        tunnel.apply(&Changes::from(config));
        tunnel
    }

    /// What has been counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn peer(&self, id: PeerId) -> &Peer {
        self.peers[id.0 as usize].as_ref().expect("ids are of peers")
    }

    fn peer_mut(&mut self, id: PeerId) -> &mut Peer {
        self.peers[id.0 as usize].as_mut().expect("ids are of peers")
    }

    /// For what writes a message.
    fn peer_and_scratch(&mut self, id: PeerId) -> (&mut Peer, &mut [u8]) {
        let peer = self.peers[id.0 as usize].as_mut().expect("ids are of peers");
        (peer, &mut self.scratch)
    }

    /// A number that peers who start at once do not share (xorshift).
    fn chance(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Seals what is in `packet` and lays it into the train, or has it wait for a handshake.
    fn seal(
        &mut self,
        now: Instant,
        (id, endpoint): (PeerId, SocketAddr),
        packet: &mut [u8],
        offload: Offload,
        out: &mut dyn TunnelOut,
    ) {
        let Self { peers, train, counters, scratch, .. } = self;
        let peer = peers[id.0 as usize].as_mut().expect("ids are of peers");
        let mut initiation = None;
        let cut = cut_in_place(packet, offload, &mut |packet| {
            let size = packet.len() + DATA_OVERHEAD_BYTES;
            if size > wire_bytes_max(endpoint) {
                return counters.count(Counter::DropTooLarge);
            }
            if !peer.has_session && !peer.may_queue(packet.len()) {
                return counters.count(Counter::DropNoSession);
            }
            train.prepare(endpoint, size, counters, out);
            match peer.tunn.encapsulate(packet, train.room()) {
                TunnResult::WriteToNetwork([DATA, ..]) => {
                    train.extend(endpoint, size);
                    peer.on_sent(now, size);
                }
                TunnResult::WriteToNetwork(message) => {
                    scratch[..message.len()].copy_from_slice(message);
                    initiation = Some(message.len());
                    peer.on_queued(packet.len());
                }
                _ => peer.on_queued(packet.len()),
            }
        });
        if cut.is_err() {
            self.counters.count(Counter::DropGuestMalformed);
        }
        if let Some(len) = initiation {
            self.send_message(id, now, len, out);
        }
        self.arm(id);
    }

    /// Tells the guest that nobody can be reached there, as the kernel's WireGuard does. The error comes from the
    /// destination: it is routed into the tunnel, so the guest takes errors from there whatever it filters, which it would not from
    /// an address of its own.
    fn tell_unreachable(&mut self, now: Instant, packet: &[u8], out: &mut dyn TunnelOut) {
        let Some(destination) = Tunn::dst_address(packet) else { return };
        if !self.errors.take(now) {
            return;
        }
        let mut buffer = [0; ERROR6_BYTES_MAX];
        let error = HostError::HostUnreachable;
        if let Some(len) = error::write_ip(packet, error, destination, &mut buffer) {
            self.counters.count(Counter::ErrorsToGuest);
            out.to_guest(&buffer[..len], Offload::default());
        }
    }
}

impl usernet_core::Tunnel for Tunnel {
    fn on_packet(
        &mut self,
        now: Instant,
        packet: &mut [u8],
        offload: Offload,
        out: &mut dyn TunnelOut,
    ) {
        self.counters.count(Counter::PacketsFromGuest);
        let Some(destination) = Tunn::dst_address(packet) else {
            return self.counters.count(Counter::DropGuestMalformed);
        };
        let Some(id) = self.routes.peer_of(destination) else {
            self.counters.count(Counter::DropNoPeer);
            return self.tell_unreachable(now, packet, out);
        };
        self.poll_if_stale(id, now, out);
        match self.peer(id).endpoint.filter(|_| self.private_key.is_some()) {
            Some(endpoint) => self.seal(now, (id, endpoint), packet, offload, out),
            None => {
                self.counters.count(Counter::DropNoEndpoint);
                self.tell_unreachable(now, packet, out);
            }
        }
    }

    fn on_datagrams(
        &mut self,
        now: Instant,
        from: SocketAddr,
        train: &mut [u8],
        size: usize,
        out: &mut dyn TunnelOut,
    ) {
        for datagram in train.chunks(size.max(1)) {
            self.on_datagram(now, from, datagram, out);
        }
    }

    fn tick(&mut self, now: Instant, out: &mut dyn TunnelOut) {
        self.on_tick(now, out);
    }

    fn flush(&mut self, _now: Instant, out: &mut dyn TunnelOut) {
        self.train.flush(&mut self.counters, out);
        self.join.flush(&mut self.counters, out);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// A key as boringtun has it. Nobody's is one that everybody knows: nothing is done with it.
fn secret(key: Option<&PrivateKey>) -> x25519::StaticSecret {
    x25519::StaticSecret::from(key.map_or([0; 32], |key| *key.as_bytes()))
}
