//! What a tunnel does because time passes: handshakes, their repetition, keepalives, and keys that end.

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;
use tracing::{debug, warn};
use usernet_core::{Instant, TunnelOut};

use super::counters::Counter;
use super::peer::Due;
use super::{DATA, INITIATION, PeerId, Tunnel};

/// Without an answer for as long as this, somebody should know.
const TOLD_AFTER_SECONDS: u64 = 5;
/// When boringtun gives an attempt up (`REKEY_ATTEMPT_TIME`).
const GIVEN_UP_AFTER_SECONDS: u64 = 90;

impl Tunnel {
    pub(super) fn on_tick(&mut self, now: Instant, out: &mut dyn TunnelOut) {
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        self.deadline = None;
        for slot in 0..self.peers.len() {
            let id = PeerId(slot as u32);
            let Some(peer) = &self.peers[slot] else { continue };
            if peer.deadline().is_some_and(|deadline| deadline <= now) {
                if !peer.timing.is_misled(now) {
                    self.poll(id, now, out);
                }
                self.run_due(id, now, out);
            }
            self.arm(id);
        }
    }

    /// Makes sure that we wake up in time for a peer.
    pub(super) fn arm(&mut self, id: PeerId) {
        let deadline = self.peer(id).deadline();
        self.deadline = match (self.deadline, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Tells boringtun the time, if it does not know it well enough.
    pub(super) fn poll_if_stale(&mut self, id: PeerId, now: Instant, out: &mut dyn TunnelOut) {
        if self.peer(id).timing.is_stale(now) {
            self.poll(id, now, out);
        }
    }

    fn poll(&mut self, id: PeerId, now: Instant, out: &mut dyn TunnelOut) {
        let (peer, scratch) = self.peer_and_scratch(id);
        peer.timing.on_polled(now);
        match peer.tunn.update_timers(scratch) {
            TunnResult::WriteToNetwork(message) => {
                let len = message.len();
                self.send_message(id, now, len, out);
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => self.on_expired(id, now, out),
            _ => {}
        }
    }

    /// What boringtun's timers did not see, because they tell ages no better than polls come.
    fn run_due(&mut self, id: PeerId, now: Instant, out: &mut dyn TunnelOut) {
        loop {
            let peer = self.peer_mut(id);
            let keepalive = peer.keepalive();
            match peer.timing.take_due(now, keepalive) {
                Some(Due::Retry) => self.initiate(id, now, true, out),
                Some(Due::Handshake) => self.initiate(id, now, false, out),
                Some(Due::Keepalive) => self.keep_alive(id, now, out),
                None => return,
            }
        }
    }

    /// boringtun gave up: nobody answered, or there was no handshake for so long that it starts from nothing.
    fn on_expired(&mut self, id: PeerId, now: Instant, out: &mut dyn TunnelOut) {
        let peer = self.peer_mut(id);
        let lost = std::mem::take(&mut peer.queued_packets);
        peer.queued_bytes = 0;
        peer.has_session = false;
        let attempt = peer.timing.attempt;
        peer.timing.on_given_up();
        self.counters.add(Counter::DropNoSession, lost as u64);
        let Some(attempt) = attempt else { return };
        if now.since(attempt).as_secs() < GIVEN_UP_AFTER_SECONDS {
            // The end of the keys before fell into the attempt.
            return self.initiate(id, now, true, out);
        }
        self.counters.count(Counter::Unanswered);
        self.say_no_answer(id, GIVEN_UP_AFTER_SECONDS);
    }

    fn say_no_answer(&mut self, id: PeerId, seconds: u64) {
        let peer = self.peer(id);
        if let Some(endpoint) = peer.endpoint {
            warn!(
                peer = %peer.key, %endpoint,
                "no answer from {endpoint} of peer {} for {seconds} seconds: is the endpoint right, its key ours, \
                 and UDP let through?", peer.key
            );
        }
    }

    /// Asks for a handshake; `again`: even if one is under way.
    pub(super) fn initiate(
        &mut self,
        id: PeerId,
        now: Instant,
        again: bool,
        out: &mut dyn TunnelOut,
    ) {
        let (peer, scratch) = self.peer_and_scratch(id);
        if peer.endpoint.is_none() {
            return;
        }
        if let TunnResult::WriteToNetwork(message) =
            peer.tunn.format_handshake_initiation(scratch, again)
        {
            let len = message.len();
            self.send_message(id, now, len, out);
        }
    }

    /// Lets a peer know of us, by a handshake if need be.
    fn keep_alive(&mut self, id: PeerId, now: Instant, out: &mut dyn TunnelOut) {
        let (peer, scratch) = self.peer_and_scratch(id);
        if !peer.has_session {
            return self.initiate(id, now, false, out);
        }
        if let TunnResult::WriteToNetwork(message) = peer.tunn.encapsulate(&[], scratch) {
            let len = message.len();
            self.send_message(id, now, len, out);
        }
    }

    /// Sends a message without data that boringtun wrote to the scratch buffer.
    pub(super) fn send_message(
        &mut self,
        id: PeerId,
        now: Instant,
        len: usize,
        out: &mut dyn TunnelOut,
    ) {
        let kind = self.scratch[0];
        let is_first = self.note_message(id, now, kind, len);
        let peer = self.peer_mut(id);
        if let Some(endpoint) = peer.endpoint {
            self.counters.count(Counter::DatagramsToWire);
            self.counters.count(Counter::TrainsToWire);
            out.to_wire(endpoint, &self.scratch[..len], len);
        }
        if is_first {
            debug!(peer = %self.peer(id).key, "asking for a handshake");
        }
    }

    /// Notes that such a message goes out. Whether it begins an attempt.
    pub(super) fn note_message(&mut self, id: PeerId, now: Instant, kind: u8, len: usize) -> bool {
        let chance = self.chance();
        let peer = self.peer_mut(id);
        peer.tx_bytes += len as u64;
        match kind {
            INITIATION => {
                let is_first = peer.timing.attempt.is_none();
                peer.timing.on_initiation(now, chance);
                let waits = peer.timing.attempt.map_or(0, |since| now.since(since).as_secs());
                let is_news = waits >= TOLD_AFTER_SECONDS && !peer.timing.is_told;
                peer.timing.is_told |= is_news;
                self.counters.count(Counter::Initiations);
                if is_news {
                    self.say_no_answer(id, waits);
                }
                is_first
            }
            DATA => {
                peer.timing.on_sent(now, false);
                self.counters.count(Counter::Keepalives);
                false
            }
            _ => {
                peer.timing.on_sent(now, false);
                false
            }
        }
    }
}
