//! The driver's memory: who holds which lease, and that each comes back exactly once.

use usernet_core::op::{FRAME_BYTES_MAX, HEADROOM, RESERVE_BYTES_MAX};
use usernet_core::{LeaseId, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Driver,
    Core,
}

struct Buffer {
    bytes: Vec<u8>,
    holder: Holder,
    /// Bytes that the core was shown.
    shown: usize,
    /// An outstanding `Send` reads from it.
    is_borrowed: bool,
}

/// All leases.
pub struct Ledger {
    buffers: Vec<Buffer>,
    free: Vec<LeaseId>,
    held: u32,
}

impl Ledger {
    /// `leases` buffers, all the driver's.
    pub fn new(leases: u32) -> Self {
        let buffer =
            || Buffer { bytes: Vec::new(), holder: Holder::Driver, shown: 0, is_borrowed: false };
        Self {
            buffers: (0..leases).map(|_| buffer()).collect(),
            free: (0..leases).rev().map(LeaseId).collect(),
            held: 0,
        }
    }

    /// Hands a buffer with `len` bytes to the core; none when it has them all.
    pub fn lend(&mut self, len: usize) -> Option<LeaseId> {
        assert!(len <= FRAME_BYTES_MAX + HEADROOM, "a buffer holds a frame and its headroom");
        let lease = self.free.pop()?;
        let buffer = &mut self.buffers[lease.0 as usize];
        if buffer.bytes.len() < len {
            buffer.bytes.resize(len, 0xa5);
        }
        buffer.holder = Holder::Core;
        buffer.shown = len;
        self.held += 1;
        Some(lease)
    }

    /// The bytes that the core is shown.
    pub fn shown(&mut self, lease: LeaseId) -> &mut [u8] {
        let buffer = &mut self.buffers[lease.0 as usize];
        &mut buffer.bytes[..buffer.shown]
    }

    /// Takes the bytes out while an input shows them to the core.
    pub fn take(&mut self, lease: LeaseId) -> (Vec<u8>, usize) {
        let buffer = &mut self.buffers[lease.0 as usize];
        (std::mem::take(&mut buffer.bytes), buffer.shown)
    }

    /// Puts them back.
    pub fn put(&mut self, lease: LeaseId, bytes: Vec<u8>) {
        self.buffers[lease.0 as usize].bytes = bytes;
    }

    /// What a span of the core's points at.
    pub fn bytes(&self, span: Span, why: &str) -> &[u8] {
        let buffer = self.buffers.get(span.lease.0 as usize);
        let buffer = buffer.unwrap_or_else(|| panic!("{why} names {:?}, out of range", span.lease));
        assert_eq!(buffer.holder, Holder::Core, "{why} names {:?}, not the core's", span.lease);
        let (start, end) = (span.start as usize, span.start as usize + span.len as usize);
        assert!(end <= buffer.shown, "{why} points past the end of its buffer: {span:?}");
        &buffer.bytes[start..end]
    }

    /// Copies the bytes of one buffer to another, which is shown with them from now on.
    pub fn append(&mut self, span: Span, to: LeaseId, at: u32) {
        assert_ne!(span.lease, to, "Append copies to another lease");
        let bytes = self.bytes(span, "Append").to_vec();
        let (start, end) = (at as usize, at as usize + bytes.len());
        assert!(end <= RESERVE_BYTES_MAX, "Append fits any buffer");
        let buffer = &mut self.buffers[to.0 as usize];
        assert_eq!(buffer.holder, Holder::Core, "Append to {to:?}, not the core's");
        assert!(!buffer.is_borrowed, "Append to {to:?} during a Send");
        if buffer.bytes.len() < end {
            buffer.bytes.resize(end, 0xa5);
        }
        buffer.bytes[start..end].copy_from_slice(&bytes);
        buffer.shown = buffer.shown.max(end);
    }

    /// An outstanding `Send` borrows the lease, or does so no longer.
    pub fn borrow(&mut self, lease: LeaseId, is_borrowed: bool) {
        self.buffers[lease.0 as usize].is_borrowed = is_borrowed;
    }

    /// The core gives a lease back.
    pub fn give_back(&mut self, lease: LeaseId, why: &str) {
        let buffer = self.buffers.get_mut(lease.0 as usize);
        let buffer = buffer.unwrap_or_else(|| panic!("{why} names {lease:?}, out of range"));
        assert_eq!(buffer.holder, Holder::Core, "{why} gives {lease:?} back twice");
        assert!(!buffer.is_borrowed, "{why} gives {lease:?} back during a Send");
        self.retire(lease);
    }

    /// A `Send` was outstanding when its socket was closed: the lease returns by itself.
    pub fn return_from_send(&mut self, lease: LeaseId) {
        let buffer = &mut self.buffers[lease.0 as usize];
        assert_eq!(buffer.holder, Holder::Core, "the lease of a Send is the core's");
        buffer.is_borrowed = false;
        self.retire(lease);
    }

    fn retire(&mut self, lease: LeaseId) {
        self.buffers[lease.0 as usize].holder = Holder::Driver;
        self.free.push(lease);
        self.held -= 1;
    }

    /// Leases that the core has.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Whether the driver has a buffer.
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }
}
