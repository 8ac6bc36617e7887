//! Datagrams from the wire: what they are for, and whether they are to be believed.

use std::net::{IpAddr, SocketAddr};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Packet, Tunn, TunnResult};
use tracing::{info, warn};
use usernet_core::{Instant, TunnelOut};

use super::counters::Counter;
use super::gate::Refusal;
use super::train::wire_bytes_max;
use super::{DATA, PeerId, SAID_EVERY, Tunnel};

/// Numbers of packets from here on are refused (`REJECT_AFTER_MESSAGES`): boringtun's window would run over.
const NUMBER_MAX: u64 = u64::MAX - (1 << 13) - 1;

/// What an authentic datagram tells beside what is in it.
struct Heard {
    id: PeerId,
    from: SocketAddr,
    bytes: usize,
    is_data: bool,
}

impl Tunnel {
    pub(super) fn on_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut dyn TunnelOut,
    ) {
        self.counters.count(Counter::DatagramsFromWire);
        if datagram.len() > wire_bytes_max(SocketAddr::from(([0; 4], 0))) {
            return self.counters.count(Counter::DropNotWireguard);
        }
        match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::PacketData(data)) => {
                self.on_data(now, from, data.receiver_idx, datagram, out);
            }
            Ok(Packet::HandshakeInit(_)) => self.on_initiation(now, from, datagram, out),
            Ok(Packet::HandshakeResponse(response)) => {
                self.on_response(now, from, response.receiver_idx, datagram, out);
            }
            Ok(Packet::PacketCookieReply(cookie)) => {
                self.on_cookie(now, cookie.receiver_idx, datagram, out);
            }
            Err(_) => self.counters.count(Counter::DropNotWireguard),
        }
    }

    /// Whose session has this index, if somebody's.
    fn peer_of_index(&self, index: u32) -> Option<PeerId> {
        let slot = index >> 8;
        self.peers.get(slot as usize)?.as_ref().map(|_| PeerId(slot))
    }

    fn on_data(
        &mut self,
        now: Instant,
        from: SocketAddr,
        index: u32,
        datagram: &[u8],
        out: &mut dyn TunnelOut,
    ) {
        let Some(id) = self.peer_of_index(index) else {
            return self.counters.count(Counter::DropUnknownSession);
        };
        if number_of(datagram) >= NUMBER_MAX {
            return self.counters.count(Counter::DropExhausted);
        }
        self.poll_if_stale(id, now, out);
        let Self { peers, join, .. } = self;
        let peer = peers[id.0 as usize].as_mut().expect("it was there");
        let opened = match peer.tunn.decapsulate(None, datagram, join.room()) {
            TunnResult::WriteToTunnelV4(packet, source) => Some((packet.len(), IpAddr::V4(source))),
            TunnResult::WriteToTunnelV6(packet, source) => Some((packet.len(), IpAddr::V6(source))),
            TunnResult::Done | TunnResult::WriteToNetwork(_) => None,
            // Opened, but not an IP packet.
            TunnResult::Err(WireGuardError::InvalidPacket) => {
                self.counters.count(Counter::DropPeerMalformed);
                None
            }
            TunnResult::Err(error) => return self.counters.count(data_error(&error)),
        };
        let is_confirmed = peer.unconfirmed == Some(index);
        let heard = Heard { id, from, bytes: datagram.len(), is_data: opened.is_some() };
        self.on_heard(now, &heard);
        if is_confirmed {
            self.on_session(id, now, out);
        }
        if let Some((len, source)) = opened {
            if self.routes.peer_of(source) != Some(id) {
                self.counters.count(Counter::DropSpoofed);
            } else {
                self.join.add(len, &mut self.counters, out);
            }
        }
        self.arm(id);
    }

    /// A peer has spoken with keys that only it has: it is where this came from.
    fn on_heard(&mut self, now: Instant, heard: &Heard) {
        let peer = self.peer_mut(heard.id);
        peer.rx_bytes += heard.bytes as u64;
        peer.timing.on_heard(now, heard.is_data);
        if peer.endpoint != Some(heard.from) {
            let before = peer.endpoint.replace(heard.from);
            if before.is_some() {
                self.counters.count(Counter::Roamed);
            }
        }
    }

    /// A handshake is complete: both have used its keys.
    fn on_session(&mut self, id: PeerId, now: Instant, out: &mut dyn TunnelOut) {
        self.counters.count(Counter::Handshakes);
        let peer = self.peer_mut(id);
        if peer.handshake.is_none() {
            info!(peer = %peer.key, "a session with peer {}", peer.key);
        }
        peer.handshake = Some(now);
        peer.unconfirmed = None;
        peer.has_session = true;
        peer.said = None;
        peer.timing.on_session(now);
        self.send_queued(id, now, out);
    }

    /// Sends what has waited for a session.
    fn send_queued(&mut self, id: PeerId, now: Instant, out: &mut dyn TunnelOut) {
        let Self { peers, scratch, counters, .. } = self;
        let peer = peers[id.0 as usize].as_mut().expect("ids are of peers");
        let Some(endpoint) = peer.endpoint else { return };
        (peer.queued_packets, peer.queued_bytes) = (0, 0);
        while let TunnResult::WriteToNetwork(message @ [DATA, ..]) =
            peer.tunn.decapsulate(None, &[], scratch)
        {
            counters.count(Counter::DatagramsToWire);
            counters.count(Counter::TrainsToWire);
            peer.on_sent(now, message.len());
            out.to_wire(endpoint, message, message.len());
        }
    }

    fn on_initiation(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut dyn TunnelOut,
    ) {
        if self.private_key.is_none() {
            return self.counters.count(Counter::DropOtherKey);
        }
        let key = match self.gate.admit(now, from.ip(), datagram, &mut self.scratch) {
            Ok(key) => key,
            Err(refusal) => return self.refuse(now, from, refusal, out),
        };
        let Some(&id) = self.by_key.get(&key) else {
            self.counters.count(Counter::DropUnknownPeer);
            if self.may_say(now) {
                warn!(%from, "{from} asks for a handshake with key {key}, which no peer has");
            }
            return;
        };
        self.poll_if_stale(id, now, out);
        let (peer, scratch) = self.peer_and_scratch(id);
        match peer.tunn.decapsulate(None, datagram, scratch) {
            TunnResult::WriteToNetwork(response) => {
                let len = response.len();
                peer.unconfirmed = Some(word_at(response, 4));
                peer.rx_bytes += datagram.len() as u64;
                self.note_message(id, now, self.scratch[0], len);
                self.send_to(from, len, out);
            }
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => self.on_stale(now, from, id),
            TunnResult::Err(_) => self.counters.count(Counter::DropForged),
            _ => self.counters.count(Counter::DropHandshake),
        }
        self.arm(id);
    }

    fn refuse(
        &mut self,
        now: Instant,
        from: SocketAddr,
        refusal: Refusal,
        out: &mut dyn TunnelOut,
    ) {
        match refusal {
            Refusal::Cookie(len) => {
                self.counters.count(Counter::Cookies);
                self.send_to(from, len, out);
            }
            Refusal::Drop(counter) => {
                self.counters.count(counter);
                if counter == Counter::DropOtherKey && self.may_say(now) {
                    warn!(
                        %from,
                        "{from} asks for a handshake with another key than ours: does it have the right one?"
                    );
                }
            }
        }
    }

    /// Sends what lies in the scratch buffer.
    fn send_to(&mut self, to: SocketAddr, len: usize, out: &mut dyn TunnelOut) {
        self.counters.count(Counter::DatagramsToWire);
        self.counters.count(Counter::TrainsToWire);
        out.to_wire(to, &self.scratch[..len], len);
    }

    fn on_stale(&mut self, now: Instant, from: SocketAddr, id: PeerId) {
        self.counters.count(Counter::DropStaleHandshake);
        let peer = self.peer_mut(id);
        if may_say(&mut peer.said, now) {
            warn!(
                peer = %peer.key, %from,
                "a handshake of peer {} from {from} is older than one before: it was sent again by somebody, or the \
                 peer's clock went back", peer.key
            );
        }
    }

    fn on_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        index: u32,
        datagram: &[u8],
        out: &mut dyn TunnelOut,
    ) {
        let Some(id) = self.peer_of_index(index) else {
            return self.counters.count(Counter::DropHandshake);
        };
        if let Err(refusal) = self.gate.admit_response(now, from.ip(), datagram, &mut self.scratch)
        {
            return self.refuse(now, from, refusal, out);
        }
        self.poll_if_stale(id, now, out);
        let (peer, scratch) = self.peer_and_scratch(id);
        match peer.tunn.decapsulate(None, datagram, scratch) {
            TunnResult::WriteToNetwork(keepalive) => {
                let len = keepalive.len();
                let heard = Heard { id, from, bytes: datagram.len(), is_data: false };
                self.on_heard(now, &heard);
                self.send_message(id, now, len, out);
                self.on_session(id, now, out);
            }
            TunnResult::Err(WireGuardError::InvalidAeadTag) => {
                if may_say(&mut peer.said, now) {
                    warn!(
                        peer = %peer.key, %from,
                        "the answer of peer {} from {from} cannot be opened: is the preshared key the same on both \
                         ends?", peer.key
                    );
                }
                self.counters.count(Counter::DropForged);
            }
            _ => self.counters.count(Counter::DropHandshake),
        }
        self.arm(id);
    }

    fn on_cookie(&mut self, now: Instant, index: u32, datagram: &[u8], out: &mut dyn TunnelOut) {
        let Some(id) = self.peer_of_index(index) else {
            return self.counters.count(Counter::DropHandshake);
        };
        self.poll_if_stale(id, now, out);
        let (peer, scratch) = self.peer_and_scratch(id);
        if let TunnResult::Err(_) = peer.tunn.decapsulate(None, datagram, scratch) {
            self.counters.count(Counter::DropHandshake);
        }
    }

    /// Whether there is room in the log for something that a stranger causes.
    fn may_say(&mut self, now: Instant) -> bool {
        may_say(&mut self.said, now)
    }
}

fn may_say(said: &mut Option<Instant>, now: Instant) -> bool {
    if said.is_some_and(|at| now.since(at) < SAID_EVERY) {
        return false;
    }
    *said = Some(now);
    true
}

/// Why a packet of data goes no further.
fn data_error(error: &WireGuardError) -> Counter {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => Counter::DropReplayed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => {
            Counter::DropUnknownSession
        }
        _ => Counter::DropForged,
    }
}

/// The number of a packet of data.
fn number_of(datagram: &[u8]) -> u64 {
    u64::from_le_bytes(datagram[8..16].try_into().expect("data has 32 bytes at least"))
}

fn word_at(message: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(message[at..at + 4].try_into().expect("within the message"))
}
