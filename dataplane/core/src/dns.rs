//! The DNS address: forwards the guest's queries to the host's resolvers, or to those of the guest's tunnels, and their answers
//! back. It tries the next resolver on failure, splits nothing and invents nothing.
//!
//! # Theory of operation
//!
//! A query is copied (a lease kept for seconds would be one that the guest takes from itself) and asked of one
//! resolver after the other, each *attempt* through a socket of its own with a port of the kernel's choice: next to
//! the identifier, which stays the guest's, the port is what a forger has to guess (RFC 5452, section 9.2). The next
//! resolver is asked when the one before answers SERVFAIL or REFUSED, cannot be reached, or is silent for
//! `timeouts.dns_retry`; the earlier ones may still answer. An answer counts if it comes from the resolver asked, has
//! the query's identifier and repeats its question; it goes to the guest as it is, EDNS and truncation included.
//! If all resolvers fail, the guest gets the failure that came last; if none says anything, neither do we, unless
//! they are known to be out of reach: then the guest hears that its port 53 is.
//!
//! The resolver that worked last is asked first for a while, so that a dead one costs its timeout once and not with
//! every query; then the host's order holds again, because the first may know names that the others do not.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::config::Config;
use crate::context::Context;
use crate::counters::Counter;
use crate::datagram::{GuestDatagram, ToGuest, Undelivered, tell_undelivered, write};
use crate::op::{
    Checksum, CloseHow, DatagramKind, Gso, HEADROOM, HostError, Input, LeaseId, LocalId, Namespace,
    Offload, Op, RESERVE_BYTES_MAX, SocketId, Span,
};
use crate::packet::build::{self, HOP_LIMIT, IpHeader, UDP_BYTES, ip_headers_bytes};
use crate::packet::protocol;
use crate::sockets::{Owner, Sockets};
use crate::table::Table;
use crate::time::Instant;
use crate::wheel::Wheel;

/// Longer queries are not forwarded; what EDNS advertises in practice is no larger.
const QUERY_BYTES_MAX: usize = 4096;

/// A failing answer that is longer is not kept; they are a header and a question.
const FAILURE_BYTES_MAX: usize = 512;

/// Resolvers that are asked for one query, at most; `resolv.conf` has three.
const ATTEMPTS: usize = 4;

/// How long the resolver that worked last goes before the others.
const PREFERENCE: Duration = Duration::from_secs(60);

/// Bytes of a DNS header (RFC 1035, section 4.1.1).
const HEADER_BYTES: usize = 12;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    id: u16,
}

/// A resolver that was asked.
#[derive(Clone, Copy)]
struct Attempt {
    resolver: SocketAddr,
    /// None: it failed.
    socket: Option<SocketId>,
}

struct Query {
    /// The DNS address that the guest asked.
    to: SocketAddr,
    /// Bytes of the query, at the front of its part of the pool.
    len: usize,
    /// Bytes of the failing answer kept behind it; 0: none.
    failure_len: usize,
    /// In the order in which they were asked.
    attempts: [Option<Attempt>; ATTEMPTS],
    /// All resolvers were asked and had their time: only a late answer is waited for.
    is_late: bool,
}

impl Query {
    fn is_waiting(&self) -> bool {
        self.attempts.iter().flatten().any(|a| a.socket.is_some())
    }

    /// The attempt made last.
    fn newest(&self) -> Option<(usize, Attempt)> {
        self.attempts.iter().copied().enumerate().rev().find_map(|(n, a)| Some((n, a?)))
    }
}

/// Forwards queries to the host's resolvers.
pub(crate) struct Dns {
    queries: Table<Key, Query>,
    /// One timer per query: when to ask the next resolver, or to give up.
    timers: Wheel,
    /// [`QUERY_BYTES_MAX`] bytes per query; grows with the queries that there were at once.
    pool: Vec<u8>,
    /// The resolver that worked last, and how long that counts.
    preferred: Option<(SocketAddr, Instant)>,
}

impl Dns {
    pub(crate) fn new(config: &Config) -> Self {
        let limit = config.limits.dns_queries;
        Self {
            queries: Table::new(limit, config.seed ^ 0x0064_6e73),
            timers: Wheel::new(limit),
            pool: Vec::with_capacity(limit as usize * QUERY_BYTES_MAX),
            preferred: None,
        }
    }

    pub(crate) fn on_query(
        &mut self,
        ctx: &mut Context<'_>,
        query: &GuestDatagram<'_>,
        payload: &[u8],
    ) {
        match usize::from(query.segment) {
            0 => self.on_one(ctx, query, payload),
            size => payload.chunks(size).for_each(|one| self.on_one(ctx, query, one)),
        }
        ctx.op(Op::Release { lease: query.payload.lease });
    }

    pub(crate) fn on_input(&mut self, ctx: &mut Context<'_>, upstream: u32, input: Input<'_>) {
        let (at, n) = (upstream / ATTEMPTS as u32, upstream as usize % ATTEMPTS);
        match input {
            Input::Datagram { lease, bytes, from, segment, .. } => {
                // An answer that was sent twice may come as a train.
                let len = match segment {
                    0 => bytes.len(),
                    segment => bytes.len().min(HEADROOM + usize::from(segment)),
                };
                self.on_datagram(ctx, at, n, lease, &mut bytes[..len], from);
            }
            Input::DatagramError { error, .. } | Input::Failed { error, .. } => {
                self.on_failed(ctx, at, n, Some(error));
            }
            Input::Peeked { lease, .. } | Input::Frame { lease, .. } => {
                ctx.drop_frame(lease, Counter::StaleInputs);
            }
            Input::Accepted { accepted, .. } => ctx.op(Op::Refuse { accepted }),
            Input::Opened { .. }
            | Input::Connected { .. }
            | Input::Spliced { .. }
            | Input::SpliceEnded { .. }
            | Input::Sent { .. }
            | Input::Readable { .. }
            | Input::PeekEmpty { .. }
            | Input::PeekEnd { .. }
            | Input::HandedOver { .. }
            | Input::ClientHandedOver { .. }
            | Input::Neighbor { .. }
            | Input::Tick => {}
        }
    }

    pub(crate) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        while let Some(at) = self.timers.pop(ctx.now) {
            self.on_silence(ctx, at);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    pub(crate) fn check(&self, sockets: &Sockets) -> u32 {
        self.queries.check();
        let mut owned = 0;
        for (at, _, query) in self.queries.iter() {
            assert!(query.is_waiting(), "a query waits for somebody");
            assert!(query.len + query.failure_len <= QUERY_BYTES_MAX, "a query keeps to its part");
            for (n, attempt) in query.attempts.iter().enumerate() {
                let Some(socket) = attempt.and_then(|a| a.socket) else { continue };
                let owner = Owner::Dns(at * ATTEMPTS as u32 + n as u32);
                assert_eq!(sockets.owner(socket), Some(owner), "an attempt owns its socket");
                owned += 1;
            }
        }
        assert!(
            self.queries.is_empty() || self.timers.next_deadline().is_some(),
            "queries end some time"
        );
        owned
    }

    fn on_one(&mut self, ctx: &mut Context<'_>, datagram: &GuestDatagram<'_>, payload: &[u8]) {
        ctx.count(Counter::DnsQueries);
        let Some(key) = key(datagram.from, payload) else {
            return ctx.count(Counter::DnsNotForwarded);
        };
        if ctx.rules.resolvers.is_empty() {
            ctx.count(Counter::DnsNoResolver);
            let about = Undelivered::from_guest(datagram, payload);
            return tell_undelivered(ctx, &about, HostError::Refused, None);
        }
        if let Some(at) = self.queries.find(&key) {
            if self.repeat(ctx, at, payload) {
                return;
            }
            self.end(ctx, at);
        }
        if self.queries.is_full()
            && let Some(oldest) = self.queries.oldest()
        {
            ctx.count(Counter::DnsEvicted);
            self.end(ctx, oldest);
        }
        let query = Query {
            to: datagram.to,
            len: payload.len(),
            failure_len: 0,
            attempts: [None; ATTEMPTS],
            is_late: false,
        };
        let Some(at) = self.queries.insert(key, query) else {
            return ctx.count(Counter::DnsNotForwarded);
        };
        self.keep(at, 0, payload);
        if !self.ask_next(ctx, at) {
            ctx.count(Counter::DnsNotForwarded);
            self.end(ctx, at);
        }
    }

    /// The guest asks again: so do we, at the resolver that it is up to. False: it is another question, or every
    /// resolver had its time; to be asked afresh.
    fn repeat(&mut self, ctx: &mut Context<'_>, at: u32, payload: &[u8]) -> bool {
        let Some((_, query)) = self.queries.get(at) else { return false };
        if query.is_late || self.kept(at, 0, query.len) != payload {
            return false;
        }
        if let Some((_, Attempt { resolver, socket: Some(socket) })) = query.newest() {
            send(ctx, socket, resolver, payload);
        }
        true
    }

    /// Asks the next resolver. False: there is none, or no socket for it.
    fn ask_next(&mut self, ctx: &mut Context<'_>, at: u32) -> bool {
        let Some(resolver) = self.next_resolver(ctx, at) else { return false };
        let Some((_, query)) = self.queries.get_mut(at) else { return false };
        let Some(n) = query.attempts.iter().position(Option::is_none) else { return false };
        let owner = Owner::Dns(at * ATTEMPTS as u32 + n as u32);
        let Some(socket) = ctx.sockets.claim(owner) else { return false };
        if n > 0 {
            ctx.count(Counter::DnsRetries);
        }
        query.attempts[n] = Some(Attempt { resolver, socket: Some(socket) });
        let len = query.len;
        let kind = if resolver.is_ipv4() { DatagramKind::Udp4 } else { DatagramKind::Udp6 };
        let on = ctx.rules.resolvers_on;
        let loopback = on == Namespace::Host && resolver.ip().is_loopback();
        ctx.op(Op::Open { socket, kind, port: 0, loopback, on });
        send(ctx, socket, resolver, self.kept(at, 0, len));
        self.timers.set(at, ctx.now + ctx.config.timeouts.dns_retry);
        true
    }

    /// The best resolver that was not asked yet.
    fn next_resolver(&self, ctx: &Context<'_>, at: u32) -> Option<SocketAddr> {
        let (_, query) = self.queries.get(at)?;
        if query.attempts.iter().all(Option::is_some) {
            return None;
        }
        let resolvers = &ctx.rules.resolvers;
        let preferred = self
            .preferred
            .filter(|&(resolver, until)| ctx.now < until && resolvers.contains(&resolver))
            .map(|(resolver, _)| resolver);
        let was_asked = |r: &SocketAddr| query.attempts.iter().flatten().any(|a| a.resolver == *r);
        preferred.iter().chain(resolvers).copied().find(|r| !was_asked(r))
    }

    fn on_datagram(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        n: usize,
        lease: LeaseId,
        bytes: &mut [u8],
        from: SocketAddr,
    ) {
        let answer = bytes.get(HEADROOM..).unwrap_or_default();
        let asked = self.queries.get(at).and_then(|(key, q)| Some((*key, q, q.attempts[n]?)));
        let Some((key, query, attempt)) = asked.filter(|(key, query, attempt)| {
            is_same(attempt.resolver, from)
                && is_answer(self.kept(at, 0, query.len), answer, key.id)
        }) else {
            return ctx.drop_frame(lease, Counter::DnsUnexpected);
        };
        let to = query.to;
        if is_failure(answer) {
            let others = query.attempts.iter().enumerate();
            let has_others =
                others.flat_map(|(m, a)| (m != n).then_some((*a)?.socket?)).count() > 0;
            if has_others || self.next_resolver(ctx, at).is_some() {
                self.keep_failure(at, answer);
                ctx.op(Op::Release { lease });
                return self.on_failed(ctx, at, n, None);
            }
        } else {
            self.preferred = Some((attempt.resolver, ctx.now + PREFERENCE));
        }
        self.end(ctx, at);
        let to_guest =
            ToGuest { from: to, to: key.guest, segment: 0, hop_limit: HOP_LIMIT, tos: 0 };
        if write(ctx, lease, bytes, &to_guest) {
            ctx.count(Counter::DnsAnswers);
        }
    }

    /// An attempt came to nothing; `error`: its resolver cannot be reached.
    fn on_failed(&mut self, ctx: &mut Context<'_>, at: u32, n: usize, error: Option<HostError>) {
        let Some((_, query)) = self.queries.get_mut(at) else { return };
        let Some(attempt) = &mut query.attempts[n] else { return };
        let resolver = attempt.resolver;
        let Some(socket) = attempt.socket.take() else { return };
        close(ctx, socket);
        if self.preferred.is_some_and(|(preferred, _)| preferred == resolver) {
            self.preferred = None;
        }
        let is_newest = query.newest().is_some_and(|(newest, _)| newest == n);
        let is_waiting = query.is_waiting();
        if (is_newest && self.ask_next(ctx, at)) || is_waiting {
            return;
        }
        if !self.tell_failure(ctx, at) && error.is_some() {
            self.tell_unreachable(ctx, at);
        }
        self.end(ctx, at);
    }

    /// Nobody has answered in time.
    fn on_silence(&mut self, ctx: &mut Context<'_>, at: u32) {
        if self.ask_next(ctx, at) {
            return;
        }
        let Some((_, query)) = self.queries.get_mut(at) else { return };
        if !core::mem::replace(&mut query.is_late, true) && query.failure_len == 0 {
            return self.timers.set(at, ctx.now + ctx.config.timeouts.dns_idle);
        }
        if !self.tell_failure(ctx, at) {
            ctx.count(Counter::DnsUnanswered);
        }
        self.end(ctx, at);
    }

    /// Ends a query and the sockets of its attempts.
    fn end(&mut self, ctx: &mut Context<'_>, at: u32) {
        let Some((_, query)) = self.queries.remove(at) else { return };
        self.timers.cancel(at);
        for attempt in query.attempts.into_iter().flatten() {
            if let Some(socket) = attempt.socket {
                close(ctx, socket);
            }
        }
    }

    /// Hands the failing answer that was kept to the guest. False: there is none.
    fn tell_failure(&mut self, ctx: &mut Context<'_>, at: u32) -> bool {
        let Some((key, query)) = self.queries.get(at) else { return false };
        if query.failure_len == 0 {
            return false;
        }
        let answer = self.kept(at, query.len, query.failure_len);
        let (from, to, mtu) = (query.to, key.guest, ctx.config.mtu);
        let ip = IpHeader {
            source_mac: ctx.config.host_mac,
            destination_mac: ctx.neighbors.mac(to.ip()),
            source: from.ip(),
            destination: to.ip(),
            protocol: protocol::UDP,
            tos: 0,
            hop_limit: HOP_LIMIT,
        };
        let start = ip_headers_bytes(to.is_ipv4());
        let headers = start + UDP_BYTES;
        let checksum = Checksum::Partial { start: start as u16, offset: 6 };
        ctx.emit(headers + answer.len(), Offload { checksum, gso: Gso::None }, |frame| {
            build::udp(frame, ip, from.port(), to.port(), answer.len(), 0, mtu);
            frame[headers..].copy_from_slice(answer);
        });
        ctx.count(Counter::DnsAnswers);
        true
    }

    /// No resolver can be reached: the guest is told that its query was not.
    fn tell_unreachable(&mut self, ctx: &mut Context<'_>, at: u32) {
        let Some((key, query)) = self.queries.get(at) else { return };
        ctx.count(Counter::DnsUnanswered);
        let about = Undelivered {
            from: key.guest,
            to: query.to,
            tos: 0,
            hop_limit: HOP_LIMIT,
            payload: self.kept(at, 0, query.len),
            payload_len: query.len,
        };
        tell_undelivered(ctx, &about, HostError::Refused, None);
    }

    /// Keeps a failing answer behind its query, for want of a better one.
    fn keep_failure(&mut self, at: u32, answer: &[u8]) {
        let Some((_, query)) = self.queries.get_mut(at) else { return };
        let offset = query.len;
        if answer.len() <= FAILURE_BYTES_MAX.min(QUERY_BYTES_MAX - offset) {
            query.failure_len = answer.len();
            self.keep(at, offset, answer);
        }
    }

    fn keep(&mut self, at: u32, offset: usize, bytes: &[u8]) {
        let start = at as usize * QUERY_BYTES_MAX + offset;
        if self.pool.len() < start + bytes.len() {
            self.pool.resize((at as usize + 1) * QUERY_BYTES_MAX, 0);
        }
        self.pool[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn kept(&self, at: u32, offset: usize, len: usize) -> &[u8] {
        let start = at as usize * QUERY_BYTES_MAX + offset;
        &self.pool[start..start + len]
    }
}

/// Who asks what by this; none if it is no query that can be forwarded.
fn key(guest: SocketAddr, query: &[u8]) -> Option<Key> {
    let is_forwardable = (HEADER_BYTES..=QUERY_BYTES_MAX).contains(&query.len())
        && !guest.ip().is_unspecified()
        && query[2] & 0x80 == 0;
    let (id, _) = query.split_first_chunk::<2>()?;
    is_forwardable.then(|| Key { guest, id: u16::from_be_bytes(*id) })
}

fn close(ctx: &mut Context<'_>, socket: SocketId) {
    ctx.sockets.release(socket);
    ctx.op(Op::Close { socket, how: CloseHow::Graceful });
}

/// Sends a copy of a query, in as many buffers as it takes. Without buffers it is as if it was lost on the way.
fn send(ctx: &mut Context<'_>, socket: SocketId, to: SocketAddr, query: &[u8]) {
    const PIECES: usize = QUERY_BYTES_MAX / RESERVE_BYTES_MAX;
    let mut spans = [None; PIECES];
    let chunks = query.chunks(RESERVE_BYTES_MAX);
    let pieces = chunks.len();
    for (slot, chunk) in spans.iter_mut().zip(chunks) {
        let Some((lease, bytes)) = ctx.out.reserve(chunk.len()) else { break };
        bytes.copy_from_slice(chunk);
        *slot = Some(Span { lease, start: 0, len: chunk.len() as u32 });
    }
    if spans.iter().flatten().count() < pieces {
        ctx.count(Counter::DropNoBuffer);
        for span in spans.into_iter().flatten() {
            ctx.op(Op::Release { lease: span.lease });
        }
        return;
    }
    for (n, span) in spans.into_iter().flatten().enumerate() {
        let more = n + 1 < pieces;
        ctx.op(Op::SendTo {
            socket,
            to,
            span,
            segment: 0,
            hop_limit: 0,
            tos: 0,
            local: LocalId::ANY,
            more,
        });
    }
}

/// The same address and port, whatever else is in them (scope, flow label).
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

/// Whether `answer` answers `query`: its identifier, the response bit, and the question, if it repeats one. A failure
/// may leave it out.
fn is_answer(query: &[u8], answer: &[u8], id: u16) -> bool {
    let Some((header, _)) = answer.split_first_chunk::<HEADER_BYTES>() else { return false };
    if header[..2] != id.to_be_bytes() || header[2] & 0x80 == 0 {
        return false;
    }
    match (question(query), question(answer)) {
        (Some((asked, kind)), Some((repeated, same_kind))) => {
            // Names do not mind their case, though resolvers are expected to keep it.
            asked.eq_ignore_ascii_case(repeated) && kind == same_kind
        }
        (Some(_), None) => header[4..6] == [0, 0] && header[3] & 0xf != 0,
        // Something that is no question; the resolver knows what it answers.
        (None, _) => true,
    }
}

/// Name, and type with class, of a message's only question.
fn question(message: &[u8]) -> Option<(&[u8], &[u8])> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let body = message.get(HEADER_BYTES..)?;
    let mut end = 0;
    loop {
        let len = usize::from(*body.get(end)?);
        end += 1;
        if len == 0 {
            break;
        }
        if len > 63 {
            return None;
        }
        end += len;
    }
    Some((body.get(..end)?, body.get(end..end + 4)?))
}

/// SERVFAIL or REFUSED: another resolver may know better.
fn is_failure(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| matches!(flags & 0xf, 2 | 5))
}

#[cfg(test)]
mod tests;
