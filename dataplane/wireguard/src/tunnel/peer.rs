//! A peer: its keys and sessions, where it is, and what is due when.
//!
//! # Theory of operation
//!
//! boringtun's [`Tunn`] has the protocol's timers, but no way to ask when the next one is due: it wants to be polled. At rest
//! a poll is a wake-up for nothing, so [`Timing`] keeps the same times and says when to poll:
//!
//! - an initiation is repeated after 5 seconds and given up after 90,
//! - data that nobody answers for 15 seconds asks for a new handshake,
//! - data that we had no answer to for 10 seconds gets an empty packet, so that the peer knows of us,
//! - a persistent keepalive is due when no packet went either way for as long as was asked (boringtun has one too, but
//!   sends it although data flows),
//! - keys are forgotten 180 seconds after their handshake, and what could become keys after 540.
//!
//! New keys after 120 seconds need no timer: they are made when there is traffic, and traffic polls ([`Timing::is_stale`]).
//! boringtun's notion of the present is the time of the last poll, which is why one comes before whatever looks at
//! the clock. There is one time when it may not be polled ([`Timing::is_misled`]): it counts the 15 seconds from when
//! the peer was heard, not from what it has not answered, so that any packet after a pause would cost a handshake.

use std::net::SocketAddr;
use std::time::Duration;

use boringtun::noise::Tunn;
use ipnet::IpNet;
use usernet_core::Instant;

use crate::key::{PresharedKey, PublicKey};

/// How old the last poll may be while there is traffic. Ages are told no better than this.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// An initiation without an answer is repeated (`REKEY_TIMEOUT`).
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// More of it, so that two peers who start at once do not stay in step.
const RETRY_JITTER_MS: u64 = 333;
/// Data without an answer wants new keys (`KEEPALIVE_TIMEOUT` + `REKEY_TIMEOUT`).
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Data is answered, if only by an empty packet (`KEEPALIVE_TIMEOUT`).
const OWED_WITHIN: Duration = Duration::from_secs(10);
/// Keys are renewed (`REKEY_AFTER_TIME`).
const RENEWED_AFTER: Duration = Duration::from_secs(120);
/// Keys end (`REJECT_AFTER_TIME`), and one second.
const KEYS_END_AFTER: Duration = Duration::from_secs(181);
/// All that is left of the handshake ends (three times that), and one second.
const FORGET_AFTER: Duration = Duration::from_secs(541);

/// Packets that wait for a handshake.
const QUEUED_PACKETS_MAX: usize = 64;
/// Bytes of them.
const QUEUED_BYTES_MAX: usize = 128 * 1024;

/// The other end of some sessions.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    /// Peers are shown in the order in which they came.
    pub(super) order: u64,
    pub(super) tunn: Tunn,
    pub(super) preshared: Option<PresharedKey>,
    /// Where it was last.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) allowed: Vec<IpNet>,
    /// Zero: none.
    pub(super) keepalive: Duration,
    /// Bytes of datagrams.
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    /// The last handshake.
    pub(super) handshake: Option<Instant>,
    /// Our index of a session that the peer asked for and has not used yet.
    pub(super) unconfirmed: Option<u32>,
    /// The last packet found a session to go out by.
    pub(super) has_session: bool,
    /// What boringtun keeps until there is one.
    pub(super) queued_packets: usize,
    pub(super) queued_bytes: usize,
    pub(super) timing: Timing,
    /// When something about its handshakes was last said.
    pub(super) said: Option<Instant>,
}

impl Peer {
    pub(super) fn new(key: PublicKey, order: u64, tunn: Tunn) -> Self {
        Self {
            key,
            order,
            tunn,
            preshared: None,
            endpoint: None,
            allowed: Vec::new(),
            keepalive: Duration::ZERO,
            rx_bytes: 0,
            tx_bytes: 0,
            handshake: None,
            unconfirmed: None,
            has_session: false,
            queued_packets: 0,
            queued_bytes: 0,
            timing: Timing::default(),
            said: None,
        }
    }

    /// Starts from nothing with other keys. How many packets had waited for a session.
    pub(super) fn restart(&mut self, tunn: Tunn) -> usize {
        self.tunn = tunn;
        self.unconfirmed = None;
        self.has_session = false;
        self.timing = Timing::default();
        self.queued_bytes = 0;
        std::mem::take(&mut self.queued_packets)
    }

    /// Zero: none, or nowhere to send it.
    pub(super) fn keepalive(&self) -> Duration {
        if self.endpoint.is_some() { self.keepalive } else { Duration::ZERO }
    }

    /// boringtun has put a packet aside.
    pub(super) fn on_queued(&mut self, bytes: usize) {
        self.has_session = false;
        self.queued_packets += 1;
        self.queued_bytes += bytes;
    }

    /// A packet of data went out.
    pub(super) fn on_sent(&mut self, now: Instant, bytes: usize) {
        self.has_session = true;
        self.tx_bytes += bytes as u64;
        self.timing.on_sent(now, true);
    }

    /// Whether a packet may wait for a session.
    pub(super) fn may_queue(&self, bytes: usize) -> bool {
        self.queued_packets < QUEUED_PACKETS_MAX && self.queued_bytes + bytes <= QUEUED_BYTES_MAX
    }

    /// When to poll. None: nothing is under way.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timing.deadline(self.keepalive())
    }
}

/// What happened when, as far as something follows from it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    /// The last poll.
    polled: Option<Instant>,
    /// The first data since the peer was heard.
    unanswered: Option<Instant>,
    /// The first data from the peer since we sent anything.
    owed: Option<Instant>,
    /// When the initiation under way is to be repeated.
    pub(super) retry: Option<Instant>,
    /// The first initiation of this attempt.
    pub(super) attempt: Option<Instant>,
    /// That this attempt takes long has been said.
    pub(super) is_told: bool,
    /// The last packet from the peer.
    heard: Option<Instant>,
    /// The last packet either way.
    traversed: Option<Instant>,
    /// When keys, or what is left of a handshake, are to be forgotten.
    forget: Option<Instant>,
    /// The last session's age counts from here.
    session: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// An initiation, even if one is under way.
    Retry,
    /// An initiation, if none is under way.
    Handshake,
    /// An empty packet.
    Keepalive,
}

impl Timing {
    /// Whether boringtun has to be told the time before it does anything.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.polled.is_none_or(|polled| now.since(polled) >= POLL_INTERVAL) && !self.is_misled(now)
    }

    /// Whether boringtun would ask for new keys although an answer may still come. It never is for longer than 15 seconds, and
    /// not while a handshake is under way or due.
    pub(super) fn is_misled(&self, now: Instant) -> bool {
        let is_within = |since: Option<Instant>, limit| since.is_some_and(|t| now < t + limit);
        self.attempt.is_none()
            && is_within(self.unanswered, ANSWER_WITHIN)
            && !is_within(self.heard, ANSWER_WITHIN - Duration::from_secs(1))
            && is_within(self.session, RENEWED_AFTER)
    }

    pub(super) fn on_polled(&mut self, now: Instant) {
        self.polled = Some(now);
        if self.forget.is_some_and(|at| at <= now) {
            let last = self.session.map(|session| session + FORGET_AFTER);
            self.forget = last.filter(|last| *last > now);
        }
    }

    pub(super) fn on_sent(&mut self, now: Instant, is_data: bool) {
        self.traversed = Some(now);
        self.owed = None;
        if is_data {
            self.unanswered.get_or_insert(now);
        }
    }

    pub(super) fn on_heard(&mut self, now: Instant, is_data: bool) {
        (self.traversed, self.heard) = (Some(now), Some(now));
        self.unanswered = None;
        if is_data {
            self.owed.get_or_insert(now);
        }
    }

    /// `chance`: any number.
    pub(super) fn on_initiation(&mut self, now: Instant, chance: u64) {
        self.traversed = Some(now);
        self.attempt.get_or_insert(now);
        self.retry = Some(now + RETRY_AFTER + Duration::from_millis(chance % RETRY_JITTER_MS));
    }

    pub(super) fn on_session(&mut self, now: Instant) {
        (self.retry, self.attempt, self.is_told) = (None, None, false);
        self.session = Some(now);
        self.forget = Some(now + KEYS_END_AFTER);
    }

    /// The handshake was given up.
    pub(super) fn on_given_up(&mut self) {
        (self.retry, self.attempt, self.is_told) = (None, None, false);
        (self.unanswered, self.owed) = (None, None);
    }

    /// One thing that is due, which is then not due any more.
    pub(super) fn take_due(&mut self, now: Instant, keepalive: Duration) -> Option<Due> {
        let is_over = |since: Option<Instant>, limit| since.is_some_and(|t| t + limit <= now);
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            return Some(Due::Retry);
        }
        if is_over(self.unanswered, ANSWER_WITHIN) {
            self.unanswered = None;
            return Some(Due::Handshake);
        }
        if is_over(self.owed, OWED_WITHIN) {
            self.owed = None;
            return Some(Due::Keepalive);
        }
        if !keepalive.is_zero() && self.traversed.is_none_or(|t| t + keepalive <= now) {
            self.traversed = Some(now);
            return Some(Due::Keepalive);
        }
        None
    }

    fn deadline(&self, keepalive: Duration) -> Option<Instant> {
        let keepalive = (!keepalive.is_zero())
            .then(|| self.traversed.map_or(Instant::ZERO, |traversed| traversed + keepalive));
        let all = [
            self.retry,
            self.unanswered.map(|since| since + ANSWER_WITHIN),
            self.owed.map(|since| since + OWED_WITHIN),
            self.forget,
            keepalive,
        ];
        all.into_iter().flatten().min()
    }
}
