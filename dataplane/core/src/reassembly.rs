//! Puts fragmented datagrams from the guest together, within strict limits; never forwards a half.
//!
//! # Theory of operation
//!
//! Fragments stay in the buffers they came in: a datagram under reassembly is a list of leases in the order of their
//! offsets, and the whole one is handed on as that list. Nothing is copied but the first [`HEAD_BYTES`], and
//! the transport checksum is summed up fragment by fragment, so that a whole datagram is verified when its last
//! fragment comes.
//!
//! A datagram is known by source, destination, identification and protocol (RFC 791, section 3.2; RFC 8200, section 4.5
//! leaves the protocol out, which makes no difference for honest senders). Two fragments that overlap condemn the
//! datagram, in both versions (RFC 5722, section 4): it stays in the table without buffers, so that fragments yet to
//! come are dropped, too. An exact duplicate is no overlap (RFC 8200, section 4.5). What is not whole
//! in time is dropped, and the guest is told if its first fragment was there.
//!
//! Both limits, of datagrams and of leases, are kept by dropping the oldest datagram; a flood of fragments can
//! therefore hurt fragmented traffic and nothing else.

use alloc::vec::Vec;
use core::net::IpAddr;

use crate::config::Config;
use crate::context::Context;
use crate::counters::Counter;
use crate::op::{HostError, LeaseId, Op, Span};
use crate::packet::checksum::Sum;
use crate::packet::error::{Quoted, tell_guest};
use crate::packet::{Fragment, Packet, protocol};
use crate::table::Table;
use crate::time::Instant;

/// Bytes of the payload's start that are kept: the transport header and what an ICMP error quotes.
pub(crate) const HEAD_BYTES: usize = 64;

/// No fragment.
const NONE: u32 = u32::MAX;

/// A whole datagram: its payload lies in several leases, which are the caller's now.
pub(crate) struct Reassembled<'a> {
    /// The packet whose fragment came first in order; `payload_*` are of that fragment.
    pub(crate) packet: Packet,
    pub(crate) protocol: u8,
    /// The first bytes of the IP payload.
    pub(crate) head: &'a [u8],
    /// The IP payload in order, the transport header included. One lease each.
    pub(crate) spans: &'a [Span],
    /// Bytes of IP payload.
    pub(crate) len: u32,
}

impl Reassembled<'_> {
    /// Gives all leases back.
    pub(crate) fn discard(&self, ctx: &mut Context<'_>, why: Counter) {
        ctx.count(why);
        for span in self.spans {
            ctx.op(Op::Release { lease: span.lease });
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    identification: u32,
    protocol: u8,
}

/// A datagram of which parts have come.
struct Partial {
    /// When the first part came.
    since: Instant,
    /// The packet with offset 0, if it has come.
    first: Option<Packet>,
    /// First bytes of the payload, as far as they have come.
    head: [u8; HEAD_BYTES],
    /// Fragments in the order of their offsets; `NONE` if there are none.
    list: u32,
    /// Bytes that have come.
    bytes: u32,
    /// Bytes in all, once the last fragment has told.
    total: Option<u32>,
    /// Sum of what has come, without pseudo-header. Offsets are even, so the order does not matter.
    sum: Sum,
    /// Whether any fragment was marked "congestion experienced" (RFC 3168, section 5.3).
    is_congested: bool,
    /// Its fragments contradict each other: it holds nothing, and takes nothing any more.
    is_condemned: bool,
}

/// A fragment that waits for the others.
#[derive(Clone, Copy)]
struct Piece {
    span: Span,
    /// Offset in the datagram.
    offset: u32,
    /// The following fragment, or the next free piece.
    next: u32,
}

impl Piece {
    fn end(&self) -> u32 {
        self.offset + self.span.len
    }
}

/// Where a new fragment goes.
enum Place {
    /// Behind this piece (`NONE`: to the front).
    After(u32),
    Duplicate,
    Overlap,
}

/// Datagrams of which parts have come.
pub(crate) struct Reassembly {
    partials: Table<Key, Partial>,
    /// Pool of all partials' fragments.
    pieces: Vec<Piece>,
    free: u32,
    held: u32,
    limit: u32,
    /// The datagram that was completed last.
    whole: Vec<Span>,
    head: [u8; HEAD_BYTES],
}

impl Reassembly {
    pub(crate) fn new(config: &Config) -> Self {
        let limit = config.limits.reassembly_leases;
        Self {
            partials: Table::new(config.limits.reassemblies, config.seed),
            pieces: Vec::with_capacity(limit as usize),
            free: NONE,
            held: 0,
            limit,
            whole: Vec::with_capacity(limit as usize),
            head: [0; HEAD_BYTES],
        }
    }

    /// Takes a fragment's lease. Verifies the transport checksum of a datagram it completes.
    pub(crate) fn on_fragment(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        lease: LeaseId,
        bytes: &[u8],
    ) -> Option<Reassembled<'_>> {
        let payload = &bytes[packet.payload()];
        let fragment = match acceptable(packet, payload.len()) {
            Ok(fragment) => fragment,
            Err(why) => {
                ctx.drop_frame(lease, why);
                return None;
            }
        };
        let span = Span { lease, start: packet.payload_start, len: payload.len() as u32 };
        let Some(at) = self.partial_for(ctx, packet, fragment) else {
            ctx.drop_frame(lease, Counter::ReassemblyEvicted);
            return None;
        };
        if !self.take(ctx, at, packet, fragment, span, payload) {
            return None;
        }
        self.complete(ctx, at)
    }

    pub(crate) fn on_tick(&mut self, ctx: &mut Context<'_>) {
        while let Some(at) = self.partials.oldest() {
            if self.due(ctx.config, at).is_none_or(|due| due > ctx.now) {
                break;
            }
            let Some((key, partial)) = self.drop_partial(ctx, at) else { break };
            if partial.is_condemned {
                continue;
            }
            ctx.count(Counter::ReassemblyTimeouts);
            tell_timeout(ctx, &key, &partial);
        }
    }

    pub(crate) fn next_deadline(&self, config: &Config) -> Option<Instant> {
        self.due(config, self.partials.oldest()?)
    }

    /// Asserts the invariants.
    pub(crate) fn check(&self) {
        self.partials.check();
        let mut held = 0;
        for (_, _, partial) in self.partials.iter() {
            let mut at = partial.list;
            let (mut end, mut bytes) = (0, 0);
            while at != NONE {
                let piece = &self.pieces[at as usize];
                assert!(piece.offset >= end, "fragments are in order and do not overlap");
                assert!(
                    partial.total.is_none_or(|t| piece.end() <= t),
                    "none ends beyond the last"
                );
                (end, bytes, held) = (piece.end(), bytes + piece.span.len, held + 1);
                at = piece.next;
            }
            assert_eq!(bytes, partial.bytes, "a datagram's bytes are those of its fragments");
            assert!(partial.total != Some(bytes), "a whole datagram does not wait");
            assert!(!partial.is_condemned || bytes == 0, "a condemned datagram holds nothing");
        }
        assert_eq!(held, self.held, "every piece belongs to a datagram");
        assert!(held <= self.limit, "the limit of leases is kept");
    }

    pub(crate) fn leases_held(&self) -> u32 {
        self.held
    }

    fn due(&self, config: &Config, at: u32) -> Option<Instant> {
        self.partials.get(at).map(|(_, partial)| partial.since + config.timeouts.reassembly)
    }

    /// The datagram that a fragment belongs to, with a piece to be had. None: the limits leave no room.
    fn partial_for(
        &mut self,
        ctx: &mut Context<'_>,
        packet: &Packet,
        fragment: Fragment,
    ) -> Option<u32> {
        let key = Key {
            source: packet.source,
            destination: packet.destination,
            identification: fragment.identification,
            protocol: packet.protocol,
        };
        while self.held >= self.limit {
            self.evict(ctx)?;
        }
        // Looked up after the eviction, which may have hit this very datagram.
        if let Some(at) = self.partials.find(&key) {
            return Some(at);
        }
        if self.partials.is_full() {
            self.evict(ctx)?;
        }
        let partial = Partial {
            since: ctx.now,
            first: None,
            head: [0; HEAD_BYTES],
            list: NONE,
            bytes: 0,
            total: None,
            sum: Sum::default(),
            is_congested: false,
            is_condemned: false,
        };
        self.partials.insert(key, partial)
    }

    fn evict(&mut self, ctx: &mut Context<'_>) -> Option<()> {
        let oldest = self.partials.oldest()?;
        self.drop_partial(ctx, oldest)?;
        ctx.count(Counter::ReassemblyEvicted);
        Some(())
    }

    /// Puts a fragment in its place. False: it was not taken, its lease is back.
    fn take(
        &mut self,
        ctx: &mut Context<'_>,
        at: u32,
        packet: &Packet,
        fragment: Fragment,
        span: Span,
        payload: &[u8],
    ) -> bool {
        let Some((_, partial)) = self.partials.get_mut(at) else { return false };
        if partial.is_condemned {
            ctx.drop_frame(span.lease, Counter::ReassemblyLate);
            return false;
        }
        let mut piece = Piece { span, offset: fragment.offset, next: NONE };
        let place = match place(&self.pieces, partial, &piece, fragment.more) {
            Place::After(place) => place,
            Place::Duplicate => {
                ctx.drop_frame(span.lease, Counter::ReassemblyDuplicates);
                return false;
            }
            Place::Overlap => {
                ctx.drop_frame(span.lease, Counter::ReassemblyOverlaps);
                self.condemn(ctx, at);
                return false;
            }
        };
        partial.note(packet, fragment, payload);
        let slot = if self.free == NONE { self.pieces.len() as u32 } else { self.free };
        let link = match place {
            NONE => &mut partial.list,
            before => &mut self.pieces[before as usize].next,
        };
        piece.next = core::mem::replace(link, slot);
        self.store(piece);
        true
    }

    fn store(&mut self, piece: Piece) {
        self.held += 1;
        match self.pieces.get_mut(self.free as usize) {
            Some(slot) => {
                self.free = slot.next;
                *slot = piece;
            }
            None => self.pieces.push(piece),
        }
    }

    /// Hands the datagram on if it is whole and its checksum right.
    fn complete(&mut self, ctx: &mut Context<'_>, at: u32) -> Option<Reassembled<'_>> {
        let (_, partial) = self.partials.get(at)?;
        if partial.total != Some(partial.bytes) {
            return None;
        }
        let (key, partial) = self.partials.remove(at)?;
        self.whole.clear();
        self.unlist(partial.list);
        self.head = partial.head;
        let head = &self.head[..HEAD_BYTES.min(partial.bytes as usize)];
        let mut packet = partial.first?;
        if partial.is_congested {
            packet.tos |= 0b11;
        }
        let protocol = key.protocol;
        let whole = Reassembled { packet, protocol, head, spans: &self.whole, len: partial.bytes };
        if !has_valid_checksum(&key, &partial, head) {
            whole.discard(ctx, Counter::DropChecksum);
            return None;
        }
        ctx.count(Counter::ReassemblyWhole);
        Some(whole)
    }

    /// Gives back what a datagram holds, and lets it take nothing any more.
    fn condemn(&mut self, ctx: &mut Context<'_>, at: u32) {
        let Some((_, partial)) = self.partials.get_mut(at) else { return };
        partial.is_condemned = true;
        partial.bytes = 0;
        partial.total = None;
        let list = core::mem::replace(&mut partial.list, NONE);
        self.release(ctx, list);
    }

    fn drop_partial(&mut self, ctx: &mut Context<'_>, at: u32) -> Option<(Key, Partial)> {
        let (key, partial) = self.partials.remove(at)?;
        self.release(ctx, partial.list);
        Some((key, partial))
    }

    fn release(&mut self, ctx: &mut Context<'_>, list: u32) {
        self.whole.clear();
        self.unlist(list);
        for span in &self.whole {
            ctx.op(Op::Release { lease: span.lease });
        }
        self.whole.clear();
    }

    /// Moves a list of pieces to `whole`, and its slots to the free list.
    fn unlist(&mut self, list: u32) {
        let mut at = list;
        while at != NONE {
            let piece = &mut self.pieces[at as usize];
            self.whole.push(piece.span);
            let next = core::mem::replace(&mut piece.next, self.free);
            self.free = at;
            self.held -= 1;
            at = next;
        }
    }
}

impl Partial {
    /// Notes what an accepted fragment tells.
    fn note(&mut self, packet: &Packet, fragment: Fragment, payload: &[u8]) {
        self.bytes += payload.len() as u32;
        if !fragment.more {
            self.total = Some(fragment.offset + payload.len() as u32);
        }
        self.sum = self.sum.bytes(payload);
        self.is_congested |= packet.tos & 0b11 == 0b11;
        if fragment.offset == 0 {
            self.first = Some(*packet);
        }
        if let Some(room) = self.head.get_mut(fragment.offset as usize..) {
            let len = room.len().min(payload.len());
            room[..len].copy_from_slice(&payload[..len]);
        }
    }
}

/// What no fragment may be, whatever came before it.
fn acceptable(packet: &Packet, len: usize) -> Result<Fragment, Counter> {
    let fragment = packet.fragment.ok_or(Counter::DropMalformed)?;
    if !matches!(packet.protocol, protocol::UDP | protocol::ICMP | protocol::ICMPV6) {
        return Err(Counter::DropProtocol);
    }
    // RFC 8200, section 4.5: multiples of 8 but for the last; a datagram that would be longer than a length field
    // can say is the "ping of death".
    let bytes_max = if packet.source.is_ipv4() { 65_535 - 20 } else { 65_535 };
    let is_sound = len > 0
        && (!fragment.more || len.is_multiple_of(8))
        && fragment.offset as usize + len <= bytes_max;
    if is_sound { Ok(fragment) } else { Err(Counter::DropMalformed) }
}

/// Where in a datagram's list a new piece goes.
fn place(pieces: &[Piece], partial: &Partial, new: &Piece, more: bool) -> Place {
    let mut before = NONE;
    let mut at = partial.list;
    while at != NONE {
        let piece = &pieces[at as usize];
        if piece.offset == new.offset && piece.span.len == new.span.len {
            let was_last = partial.total == Some(piece.end());
            return if was_last != more { Place::Duplicate } else { Place::Overlap };
        }
        if piece.offset >= new.end() {
            break;
        }
        if piece.end() > new.offset {
            return Place::Overlap;
        }
        before = at;
        at = piece.next;
    }
    // A second end, an end before what has come, or something beyond the end.
    let contradicts_end = match partial.total {
        Some(total) => !more || new.end() > total,
        None => !more && at != NONE,
    };
    if contradicts_end { Place::Overlap } else { Place::After(before) }
}

fn has_valid_checksum(key: &Key, partial: &Partial, head: &[u8]) -> bool {
    let is_v4 = key.source.is_ipv4();
    if key.protocol == protocol::UDP && is_v4 && head.get(6..8) == Some(&[0, 0]) {
        return true;
    }
    let sum = if key.protocol == protocol::ICMP {
        partial.sum
    } else {
        let len = partial.bytes as usize;
        Sum::pseudo_header(key.source, key.destination, key.protocol, len)
            .word(partial.sum.folded())
    };
    sum.folded() == 0xffff
}

/// Tells the guest that fragments are missing (RFC 792; RFC 4443, section 3.3), if the first one was there.
fn tell_timeout(ctx: &mut Context<'_>, key: &Key, partial: &Partial) {
    let Some(packet) = partial.first else { return };
    let (kind, code) = if key.source.is_ipv4() { (11, 1) } else { (3, 1) };
    let transport = &partial.head[..HEAD_BYTES.min(packet.payload_len())];
    let about = Quoted {
        source: key.source,
        destination: key.destination,
        protocol: key.protocol,
        tos: packet.tos,
        hop_limit: packet.hop_limit,
        transport,
        transport_len: packet.payload_len(),
    };
    tell_guest(ctx, &about, HostError::Icmp { kind, code }, None);
}

#[cfg(test)]
mod tests;
