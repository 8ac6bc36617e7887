//! Payload of the guest that the host has not taken yet: queues of spans, one lease each.
//!
//! A flow has two: what is in order and waits for the host, and what came ahead of a gap and waits for the guest.
//! A lease is in at most one queue, so the links lie in one array indexed by lease: pushing and popping need no
//! memory of their own.

use alloc::vec::Vec;

use super::seq::Seq;
use crate::op::{LeaseId, RESERVE_BYTES_MAX, Span};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    /// Sequence number of the first byte; only looked at in a queue of what came ahead.
    seq: Seq,
    start: u32,
    len: u32,
    next: u32,
}

/// The links of all queues.
pub(crate) struct KeptSpans {
    nodes: Vec<Node>,
    /// Leases in all queues.
    in_use: u32,
    /// Bytes in all queues.
    bytes: u32,
}

/// One flow's queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptQueue {
    head: u32,
    tail: u32,
    pub(crate) bytes: u32,
    pub(crate) leases: u32,
}

impl KeptQueue {
    pub(crate) const EMPTY: Self = Self { head: NONE, tail: NONE, bytes: 0, leases: 0 };
}

impl KeptSpans {
    pub(crate) fn new(leases: u32) -> Self {
        Self { nodes: Vec::with_capacity(leases as usize), in_use: 0, bytes: 0 }
    }

    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    pub(crate) fn push(&mut self, queue: &mut KeptQueue, span: Span) {
        let index = span.lease.0;
        self.set_node(span, Seq(0), NONE);
        if queue.tail == NONE {
            queue.head = index;
        } else {
            self.nodes[queue.tail as usize].next = index;
        }
        queue.tail = index;
        queue.bytes += span.len;
        queue.leases += 1;
        self.bytes += span.len;
        self.in_use += 1;
    }

    /// Makes the last span longer by `len` bytes, which follow it, if its lease has room for them: where they are to be
    /// copied to. `in_use`: spans at the front that somebody reads.
    pub(crate) fn lengthen(
        &mut self,
        queue: &mut KeptQueue,
        in_use: u32,
        len: u32,
    ) -> Option<(LeaseId, u32)> {
        if queue.leases <= in_use {
            return None;
        }
        let node = &mut self.nodes[queue.tail as usize];
        let at = node.start + node.len;
        if at + len > RESERVE_BYTES_MAX as u32 {
            return None;
        }
        node.len += len;
        queue.bytes += len;
        self.bytes += len;
        Some((LeaseId(queue.tail), at))
    }

    /// Puts a span that came ahead of a gap in its place in the order of sequence numbers. Tells which part of it
    /// was new and is kept; if none, the lease stays the caller's.
    pub(crate) fn insert_ahead(
        &mut self,
        queue: &mut KeptQueue,
        mut seq: Seq,
        mut span: Span,
    ) -> Option<(Seq, Seq)> {
        let (mut before, mut after) = (NONE, queue.head);
        // Mostly they come in order, behind one gap.
        if self.nodes.get(queue.tail as usize).is_some_and(|last| !last.seq.is_after(seq)) {
            (before, after) = (queue.tail, NONE);
        }
        while after != NONE && !self.nodes[after as usize].seq.is_after(seq) {
            before = after;
            after = self.nodes[after as usize].next;
        }
        if let Some(node) = self.nodes.get(before as usize) {
            let end = node.seq + node.len;
            let known = if end.is_after(seq) { end.since(seq).min(span.len) } else { 0 };
            (seq, span.start, span.len) = (seq + known, span.start + known, span.len - known);
        }
        if let Some(node) = self.nodes.get(after as usize) {
            span.len = span.len.min(node.seq.since(seq));
        }
        if span.len == 0 {
            return None;
        }
        self.set_node(span, seq, after);
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.next = span.lease.0,
            None => queue.head = span.lease.0,
        }
        if after == NONE {
            queue.tail = span.lease.0;
        }
        queue.bytes += span.len;
        queue.leases += 1;
        self.bytes += span.len;
        self.in_use += 1;
        Some((seq, seq + span.len))
    }

    /// Takes the first span that came ahead, if the gap before it is closed. Its length is 0 if all of it has come
    /// again meanwhile.
    pub(crate) fn pull_ahead(&mut self, queue: &mut KeptQueue, expected: Seq) -> Option<Span> {
        let &Node { seq, start, len, .. } = self.nodes.get(queue.head as usize)?;
        if seq.is_after(expected) {
            return None;
        }
        let known = expected.since(seq).min(len);
        queue.bytes -= len;
        self.bytes -= len;
        let lease = self.pop(queue);
        Some(Span { lease, start: start + known, len: len - known })
    }

    /// The spans of a queue, oldest first.
    pub(crate) fn iter(&self, queue: &KeptQueue) -> impl Iterator<Item = Span> + '_ {
        let mut index = queue.head;
        core::iter::from_fn(move || {
            let node = self.nodes.get(index as usize)?;
            let span = Span { lease: LeaseId(index), start: node.start, len: node.len };
            index = node.next;
            Some(span)
        })
    }

    /// Removes `bytes` from the front; tells the leases that are done.
    pub(crate) fn take(
        &mut self,
        queue: &mut KeptQueue,
        mut bytes: u32,
        mut done: impl FnMut(LeaseId),
    ) {
        assert!(bytes <= queue.bytes, "the driver takes no more than it was given");
        queue.bytes -= bytes;
        self.bytes -= bytes;
        while bytes > 0 {
            let node = &mut self.nodes[queue.head as usize];
            if node.len > bytes {
                node.start += bytes;
                node.len -= bytes;
                return;
            }
            bytes -= node.len;
            done(self.pop(queue));
        }
    }

    /// Empties the queue; tells every lease.
    pub(crate) fn clear(&mut self, queue: &mut KeptQueue, mut done: impl FnMut(LeaseId)) {
        self.bytes -= queue.bytes;
        while queue.head != NONE {
            done(self.pop(queue));
        }
        *queue = KeptQueue::EMPTY;
    }

    fn set_node(&mut self, span: Span, seq: Seq, next: u32) {
        let index = span.lease.0 as usize;
        while self.nodes.len() <= index {
            assert!(self.nodes.len() < self.nodes.capacity(), "a lease is below limits.leases");
            self.nodes.push(Node { seq, start: 0, len: 0, next: NONE });
        }
        self.nodes[index] = Node { seq, start: span.start, len: span.len, next };
    }

    fn pop(&mut self, queue: &mut KeptQueue) -> LeaseId {
        let index = queue.head;
        queue.head = self.nodes[index as usize].next;
        if queue.head == NONE {
            queue.tail = NONE;
        }
        queue.leases -= 1;
        self.in_use -= 1;
        LeaseId(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn what_came_ahead_is_pulled_in_order_and_once() {
        let mut kept = KeptSpans::new(8);
        let mut ahead = KeptQueue::EMPTY;
        let mut insert = |lease, seq, len| {
            let span = Span { lease: LeaseId(lease), start: 0, len };
            kept.insert_ahead(&mut ahead, Seq(seq), span)
        };
        assert_eq!(insert(0, 100, 10), Some((Seq(100), Seq(110))));
        assert_eq!(insert(1, 130, 10), Some((Seq(130), Seq(140))));
        let behind = Some((Seq(110), Seq(125)));
        assert_eq!(insert(2, 105, 20), behind, "the part behind the first");
        assert_eq!(insert(3, 110, 10), None, "nothing new");
        let before = Some((Seq(90), Seq(100)));
        assert_eq!(insert(4, 90, 50), before, "the part before the first");
        assert_eq!(kept.pull_ahead(&mut ahead, Seq(89)), None);
        let mut expected = Seq(95);
        while let Some(span) = kept.pull_ahead(&mut ahead, expected) {
            expected = expected + span.len;
        }
        assert_eq!((expected, ahead.leases, ahead.bytes), (Seq(125), 1, 10));
    }

    #[test]
    fn bytes_leave_in_order_and_leases_when_they_are_done() {
        let mut kept = KeptSpans::new(4);
        let mut queue = KeptQueue::EMPTY;
        for (lease, len) in [(2, 10), (0, 5)] {
            kept.push(&mut queue, Span { lease: LeaseId(lease), start: 100, len });
        }
        let mut done = vec![];
        kept.take(&mut queue, 4, |lease| done.push(lease));
        assert_eq!((done.len(), queue.bytes), (0, 11));
        let first = kept.iter(&queue).next();
        assert_eq!(first, Some(Span { lease: LeaseId(2), start: 104, len: 6 }));
        kept.take(&mut queue, 7, |lease| done.push(lease));
        kept.clear(&mut queue, |lease| done.push(lease));
        assert_eq!(done, [LeaseId(2), LeaseId(0)]);
        assert_eq!(kept.in_use(), 0);
    }
}
