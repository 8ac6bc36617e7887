//! The buffers of the driver: who has which, and what is in them.
//!
//! A lease is out from the input or the `reserve` that hands it to the core until the one op that gives it back. Giving
//! back what is not out, and pointing beyond a buffer's end, are errors of the core.

use usernet_core::op::{LeaseId, Op, Outbox, RESERVE_BYTES_MAX, Span};

/// The driver's buffers, and the ops that were not looked at yet.
pub struct Ledger {
    /// By lease: what is in the buffer, while the core has it.
    out: Vec<Option<Vec<u8>>>,
    free: Vec<LeaseId>,
    /// Ops in the order in which the core gave them.
    pub ops: Vec<Op>,
    /// `reserve` finds nothing while this is set.
    pub is_short: bool,
}

impl Ledger {
    /// All buffers are with the driver.
    pub fn new(leases: u32) -> Self {
        Self {
            out: (0..leases).map(|_| None).collect(),
            free: (0..leases).rev().map(LeaseId).collect(),
            ops: Vec::new(),
            is_short: false,
        }
    }

    /// A buffer for an input; none when the core has them all.
    pub fn claim(&mut self) -> Option<LeaseId> {
        self.free.pop()
    }

    /// The core has had a look at the buffer: what it holds now.
    pub fn put(&mut self, lease: LeaseId, bytes: Vec<u8>) {
        let before = self.out[lease.0 as usize].replace(bytes);
        assert!(before.is_none(), "{lease:?} was handed out twice");
    }

    /// A claimed buffer that was not needed.
    pub fn unclaim(&mut self, lease: LeaseId) {
        self.free.push(lease);
    }

    /// The core gives a buffer back.
    pub fn give_back(&mut self, lease: LeaseId) -> Vec<u8> {
        let bytes = self.out.get_mut(lease.0 as usize).and_then(Option::take);
        let bytes = bytes.unwrap_or_else(|| panic!("{lease:?} is given back and was not out"));
        self.free.push(lease);
        bytes
    }

    /// The bytes that a span names.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let buffer = self.out.get(span.lease.0 as usize).and_then(Option::as_ref);
        let buffer = buffer.unwrap_or_else(|| panic!("{span:?} is of a buffer that is not out"));
        let end = u64::from(span.start) + u64::from(span.len);
        let range = usize::try_from(end).ok().map(|end| span.start as usize..end);
        range
            .and_then(|range| buffer.get(range))
            .unwrap_or_else(|| panic!("{span:?} leaves a buffer of {} bytes", buffer.len()))
    }

    /// Copies the bytes of one buffer behind what another holds.
    pub fn append(&mut self, span: Span, to: LeaseId, at: u32) {
        assert_ne!(span.lease, to, "copied to another buffer");
        let bytes = self.bytes(span).to_vec();
        let (start, end) = (at as usize, at as usize + bytes.len());
        assert!(end <= RESERVE_BYTES_MAX, "any buffer has room for it");
        let buffer = self.out.get_mut(to.0 as usize).and_then(Option::as_mut);
        let buffer = buffer.unwrap_or_else(|| panic!("{to:?} is not out"));
        if buffer.len() < end {
            buffer.resize(end, 0xa5);
        }
        buffer[start..end].copy_from_slice(&bytes);
    }

    /// How many buffers the core has.
    pub fn out(&self) -> u32 {
        (self.out.len() - self.free.len()) as u32
    }
}

impl Outbox for Ledger {
    fn op(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        assert!(size <= RESERVE_BYTES_MAX, "reserve is for small frames, not {size} bytes");
        if self.is_short {
            return None;
        }
        let lease = self.free.pop()?;
        let buffer = &mut self.out[lease.0 as usize];
        assert!(buffer.is_none(), "{lease:?} is free and out");
        Some((lease, buffer.insert(vec![0xa5; size])))
    }
}
