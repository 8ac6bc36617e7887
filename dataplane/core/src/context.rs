//! What every protocol module works with, lent to it by the shard for one input.

use core::net::IpAddr;

use crate::config::{Config, MacAddr};
use crate::counters::{Counter, Counters};
use crate::neighbors::Neighbors;
use crate::op::{LeaseId, Offload, Op, Outbox, Span};
use crate::ownership::Ownership;
use crate::packet::error::Bucket;
use crate::rules::Rules;
use crate::sockets::Sockets;
use crate::time::Instant;

/// Borrowed parts of the shard. Modules keep their own tables; this is what they share.
pub(crate) struct Context<'a> {
    /// The time of this input.
    pub(crate) now: Instant,
    pub(crate) config: &'a Config,
    pub(crate) rules: &'a Rules,
    pub(crate) ownership: &'a Ownership,
    pub(crate) counters: &'a mut Counters,
    pub(crate) sockets: &'a mut Sockets,
    pub(crate) neighbors: &'a mut Neighbors,
    /// How many ICMP errors the guest may still be told.
    pub(crate) errors: &'a mut Bucket,
    pub(crate) out: &'a mut dyn Outbox,
}

impl Context<'_> {
    pub(crate) fn op(&mut self, op: Op) {
        self.out.op(op);
    }

    pub(crate) fn count(&mut self, counter: Counter) {
        self.counters.count(counter);
    }

    /// `mac` has shown itself as `ip`: what is news, the other shards are told. They may write to it, too.
    pub(crate) fn learn(&mut self, ip: IpAddr, mac: MacAddr) {
        if self.neighbors.learn(ip, mac) {
            for to in self.ownership.others() {
                self.out.op(Op::TellNeighbor { to, ip, mac });
            }
        }
    }

    /// Gives `lease` back, and counts why.
    pub(crate) fn drop_frame(&mut self, lease: LeaseId, why: Counter) {
        self.counters.count(why);
        self.out.op(Op::Release { lease });
    }

    /// Hands a frame to the link.
    pub(crate) fn write_frame(&mut self, span: Span, offload: Offload) {
        self.counters.count(Counter::FramesToGuest);
        self.counters.add(Counter::BytesToGuest, u64::from(span.len));
        self.out.op(Op::WriteFrame { span, offload });
    }

    /// Builds a frame of our own of `size` bytes; counted and forgotten when no buffer is free.
    pub(crate) fn emit(&mut self, size: usize, offload: Offload, build: impl FnOnce(&mut [u8])) {
        let Some((lease, bytes)) = self.out.reserve(size) else {
            self.counters.count(Counter::DropNoBuffer);
            return;
        };
        build(bytes);
        self.write_frame(Span { lease, start: 0, len: size as u32 }, offload);
    }
}
