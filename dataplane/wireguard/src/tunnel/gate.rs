//! Who may cost us a handshake. Answering one takes four multiplications on a curve, some 200 µs: a stranger must not be able
//! to make us do that for a flood of datagrams.
//!
//! First comes the MAC over our public key, which costs a hash: strangers who do not even know the key end here. Under load
//! the sender has to show a cookie that we sent to its address (as the protocol has it), and one address gets no more
//! than its share.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::handshake::{HalfHandshake, parse_handshake_anon};
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519;
use usernet_core::Instant;

use super::counters::Counter;
use crate::key::PublicKey;

/// Handshake messages in a second beyond which we are under load.
const HANDSHAKES_PER_SECOND: u32 = 100;
/// Handshakes in a second that one address gets under load. Many peers may be behind one.
const PER_ADDRESS: u8 = 20;
/// Cookies that we send in a second: each costs about as much as it spares.
const COOKIES_PER_SECOND: u32 = 2_000;
/// Addresses told apart; more share.
const ADDRESSES: usize = 1_024;
const SECOND: Duration = Duration::from_secs(1);

/// Why a handshake goes no further.
pub(super) enum Refusal {
    /// This many bytes of a cookie are to be sent back.
    Cookie(usize),
    /// Nothing is sent.
    Drop(Counter),
}

/// The guard of an interface's handshakes.
pub(super) struct Gate {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Verifies MACs and makes cookies.
    limiter: RateLimiter,
    /// What the sessions verify with: whoever came that far has been counted.
    unlimited: Arc<RateLimiter>,
    seed: u64,
    /// The second that is counted.
    second: Instant,
    handshakes: u32,
    cookies: u32,
    addresses: Box<[u8; ADDRESSES]>,
}

impl Gate {
    pub(super) fn new(private: x25519::StaticSecret, seed: u64) -> Self {
        let public = x25519::PublicKey::from(&private);
        Self {
            limiter: RateLimiter::new(&public, u64::from(HANDSHAKES_PER_SECOND)),
            unlimited: Arc::new(RateLimiter::new(&public, u64::MAX)),
            private,
            public,
            seed,
            second: Instant::ZERO,
            handshakes: 0,
            cookies: 0,
            addresses: Box::new([0; ADDRESSES]),
        }
    }

    pub(super) fn private(&self) -> x25519::StaticSecret {
        self.private.clone()
    }

    /// Who we are.
    pub(super) fn public(&self) -> PublicKey {
        PublicKey(self.public.to_bytes())
    }

    /// For the sessions of peers.
    pub(super) fn unlimited(&self) -> Arc<RateLimiter> {
        self.unlimited.clone()
    }

    /// Whose handshake this is. `reply` takes a cookie.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        from: IpAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<PublicKey, Refusal> {
        let Packet::HandshakeInit(initiation) = self.verify(now, from, datagram, reply)? else {
            return Err(Refusal::Drop(Counter::DropNotWireguard));
        };
        match parse_handshake_anon(&self.private, &self.public, &initiation) {
            Ok(HalfHandshake { peer_static_public, .. }) => Ok(PublicKey(peer_static_public)),
            Err(_) => Err(Refusal::Drop(Counter::DropForged)),
        }
    }

    /// Whether this answer to a handshake of ours may be looked at.
    pub(super) fn admit_response(
        &mut self,
        now: Instant,
        from: IpAddr,
        datagram: &[u8],
        reply: &mut [u8],
    ) -> Result<(), Refusal> {
        self.verify(now, from, datagram, reply).map(|_| ())
    }

    fn verify<'a>(
        &mut self,
        now: Instant,
        from: IpAddr,
        datagram: &'a [u8],
        reply: &mut [u8],
    ) -> Result<Packet<'a>, Refusal> {
        self.begin_second(now);
        let packet = match self.limiter.verify_packet(Some(from), datagram, reply) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                let len = cookie.len();
                return Err(self.cookie(len));
            }
            Err(_) => return Err(Refusal::Drop(Counter::DropOtherKey)),
        };
        self.handshakes += 1;
        if self.handshakes > HANDSHAKES_PER_SECOND && !self.has_share(from) {
            return Err(Refusal::Drop(Counter::DropUnderLoad));
        }
        Ok(packet)
    }

    fn begin_second(&mut self, now: Instant) {
        if now.since(self.second) >= SECOND {
            (self.second, self.handshakes, self.cookies) = (now, 0, 0);
            self.addresses.fill(0);
        }
        self.limiter.reset_count();
    }

    fn cookie(&mut self, len: usize) -> Refusal {
        self.cookies += 1;
        if self.cookies > COOKIES_PER_SECOND {
            return Refusal::Drop(Counter::DropUnderLoad);
        }
        Refusal::Cookie(len)
    }

    /// An IPv6 host has a whole /64 to send from.
    fn has_share(&mut self, from: IpAddr) -> bool {
        let from = match from {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)),
        };
        let mut hasher = DefaultHasher::new();
        (self.seed, from).hash(&mut hasher);
        let spent = &mut self.addresses[(hasher.finish() % ADDRESSES as u64) as usize];
        *spent = spent.saturating_add(1);
        *spent <= PER_ADDRESS
    }
}
