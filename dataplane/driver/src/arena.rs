//! Packet memory: every buffer that a [`LeaseId`] can name.
//!
//! # Theory of operation
//!
//! One anonymous mapping, cut into two classes of slots. *Large* slots of 68 KiB hold super-frames, peeked bytes and
//! trains of datagrams; *small* ones hold what the core builds itself ([`Outbox::reserve`]). A slot begins
//! with [`FRONT_BYTES`] that only the driver sees: the virtio-net header lies at their end, directly in front of
//! the bytes that the core is shown, so that a frame is read and written by one call without a copy.
//!
//! Free slots are a stack: the one given back last is taken first, so the hot set is as small as the traffic
//! needs and stays in the cache. Pages are touched on demand; [`Arena::trim`] gives those back that a whole
//! period has not needed.
//!
//! [`Outbox::reserve`]: usernet_core::Outbox::reserve

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use usernet_core::op::{FRAME_BYTES_MAX, HEADROOM, RESERVE_BYTES_MAX};
use usernet_core::{LeaseId, Span};

use crate::setup::DriverError;

/// Bytes of a slot in front of what the core is shown. A multiple of the cache line, so that payload behind
/// [`HEADROOM`] is aligned to it.
pub(crate) const FRONT_BYTES: usize = 64;

/// A large slot: 17 pages.
const LARGE_BYTES: usize = 68 << 10;

/// A small slot.
const SMALL_BYTES: usize = FRONT_BYTES + RESERVE_BYTES_MAX;

/// Bytes of a large slot that the core can be shown.
pub(crate) const LARGE_ROOM: usize = LARGE_BYTES - FRONT_BYTES;

const _: () = assert!(LARGE_ROOM >= FRAME_BYTES_MAX, "any super-frame fits a large slot");
const _: () = assert!(LARGE_ROOM - HEADROOM >= 65_535, "any datagram fits behind the headroom");
const _: () = assert!(LARGE_BYTES.is_multiple_of(4096), "pages of a large slot are its own");

/// Small slots at most: a turn's worth of frames that the core builds itself.
const SMALL_MAX: u32 = 512;

/// The fewest leases with which traffic can flow well: the ring holds 64 of them.
const LEASES_MIN: u32 = 256;

/// The most: a lease is the 16-bit id of a buffer in the ring.
const LEASES_MAX: u32 = 32_768;

/// Slots of one size.
struct Class {
    /// The id of the first slot.
    first: u32,
    /// How many slots there are.
    count: u32,
    /// Offset of the first slot in the mapping.
    offset: usize,
    /// Bytes per slot.
    stride: usize,
    /// Indices of the free slots; the last one is taken next.
    free: Vec<u32>,
    /// Slots whose pages may be resident.
    touched: Vec<bool>,
    /// The least number of free slots since the last trim: those below were not needed.
    low_water: usize,
}

impl Class {
    fn new(first: u32, count: u32, offset: usize, stride: usize) -> Self {
        Self {
            first,
            count,
            offset,
            stride,
            free: (0..count).rev().collect(),
            touched: vec![false; count as usize],
            low_water: count as usize,
        }
    }

    fn take(&mut self) -> Option<LeaseId> {
        let index = self.free.pop()?;
        self.low_water = self.low_water.min(self.free.len());
        self.touched[index as usize] = true;
        Some(LeaseId(self.first + index))
    }
}

/// The mapping and its free slots.
pub(crate) struct Arena {
    base: NonNull<u8>,
    /// Bytes mapped.
    bytes: usize,
    large: Class,
    small: Class,
    /// Which leases are out: each is given back once.
    is_out: Vec<bool>,
}

// SAFETY: the mapping belongs to the arena alone, and what is in it is plain bytes.
unsafe impl Send for Arena {}

impl Arena {
    /// Sets aside `leases` slots, a quarter of them small, but no more than are ever in use at once.
    pub(crate) fn new(leases: u32) -> Result<Self, DriverError> {
        if !(LEASES_MIN..=LEASES_MAX).contains(&leases) {
            return Err(DriverError::Limits("leases must be between 256 and 32,768"));
        }
        let small = (leases / 4).min(SMALL_MAX);
        let large = leases - small;
        let large_bytes = large as usize * LARGE_BYTES;
        let bytes = (large_bytes + small as usize * SMALL_BYTES).next_multiple_of(4096);
        let base = map(bytes).map_err(|source| DriverError::Memory { bytes, source })?;
        Ok(Self {
            base,
            bytes,
            large: Class::new(0, large, 0, LARGE_BYTES),
            small: Class::new(large, small, large_bytes, SMALL_BYTES),
            is_out: vec![false; leases as usize],
        })
    }

    /// A buffer of [`LARGE_ROOM`] bytes.
    pub(crate) fn take_large(&mut self) -> Option<LeaseId> {
        let lease = self.large.take()?;
        self.is_out[lease.0 as usize] = true;
        Some(lease)
    }

    /// A buffer of [`RESERVE_BYTES_MAX`] bytes, or a larger one.
    pub(crate) fn take_small(&mut self) -> Option<LeaseId> {
        let Some(lease) = self.small.take() else { return self.take_large() };
        self.is_out[lease.0 as usize] = true;
        Some(lease)
    }

    /// Takes a buffer back.
    pub(crate) fn release(&mut self, lease: LeaseId) {
        let is_out = &mut self.is_out[lease.0 as usize];
        assert!(*is_out, "a lease is given back once");
        *is_out = false;
        let class = if lease.0 < self.large.count { &mut self.large } else { &mut self.small };
        class.free.push(lease.0 - class.first);
    }

    /// Whether [`Arena::take_large`] would succeed.
    pub(crate) fn has_large(&self) -> bool {
        !self.large.free.is_empty()
    }

    /// How many more large buffers there are.
    pub(crate) fn large_free(&self) -> usize {
        self.large.free.len()
    }

    /// Buffers that are out.
    pub(crate) fn in_use(&self) -> u32 {
        let free = self.large.free.len() + self.small.free.len();
        self.is_out.len() as u32 - free as u32
    }

    /// Buffers there are.
    pub(crate) fn capacity(&self) -> u32 {
        self.is_out.len() as u32
    }

    /// Bytes of `lease` that the core can be shown.
    pub(crate) fn room(&self, lease: LeaseId) -> usize {
        if lease.0 < self.large.count { LARGE_ROOM } else { RESERVE_BYTES_MAX }
    }

    /// Where the bytes shown to the core begin; [`FRONT_BYTES`] in front of it are the driver's.
    pub(crate) fn start(&self, lease: LeaseId) -> *mut u8 {
        let class = if lease.0 < self.large.count { &self.large } else { &self.small };
        let index = (lease.0 - class.first) as usize;
        assert!(index < class.count as usize, "the core names leases that exist");
        // SAFETY: `index` is below the number of slots, so the sum lies in the mapping.
        unsafe { self.base.as_ptr().add(class.offset + index * class.stride + FRONT_BYTES) }
    }

    /// Where a span begins. The span lies in its lease.
    pub(crate) fn span_start(&self, span: Span) -> *mut u8 {
        let end = span.start as usize + span.len as usize;
        assert!(end <= self.room(span.lease), "a span lies in its lease");
        // SAFETY: the offset is within the slot.
        unsafe { self.start(span.lease).add(span.start as usize) }
    }

    /// A span as a gather element.
    pub(crate) fn iovec(&self, span: Span) -> libc::iovec {
        libc::iovec { iov_base: self.span_start(span).cast(), iov_len: span.len as usize }
    }

    /// The first `len` bytes of a lease, as the core is shown them.
    ///
    /// # Safety
    ///
    /// The caller holds the lease, nothing else looks at its bytes for `'a`, and no system call writes to them.
    pub(crate) unsafe fn show<'a>(&self, lease: LeaseId, len: usize) -> &'a mut [u8] {
        assert!(len <= self.room(lease), "what is shown lies in the lease");
        // SAFETY: in the mapping, which is initialised by the kernel; exclusive by the caller's promise. Leases
        // do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.start(lease), len) }
    }

    /// The bytes of a span.
    ///
    /// # Safety
    ///
    /// As [`Arena::show`].
    pub(crate) unsafe fn span<'a>(&self, span: Span) -> &'a mut [u8] {
        // SAFETY: `span_start` has checked the range; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.span_start(span), span.len as usize) }
    }

    /// Gives pages back to the system: those of slots that were free since the last call. False: all of them were.
    pub(crate) fn trim(&mut self) -> bool {
        let was_used = self.is_untidy();
        let idle = self.large.low_water;
        for position in 0..idle {
            let index = self.large.free[position];
            if std::mem::take(&mut self.large.touched[index as usize]) {
                self.discard(LeaseId(index));
            }
        }
        self.large.low_water = self.large.free.len();
        was_used
    }

    /// Whether slots were taken since the last trim that are free now: a further trim will find them.
    pub(crate) fn is_untidy(&self) -> bool {
        self.large.low_water < self.large.free.len()
    }

    /// Gives the pages of one large slot back; its bytes are zero afterwards.
    pub(crate) fn discard(&self, lease: LeaseId) {
        debug_assert!(lease.0 < self.large.count, "only large slots have pages of their own");
        // SAFETY: the slot's pages lie in the mapping.
        let slot = unsafe { self.base.add(lease.0 as usize * LARGE_BYTES) };
        // SAFETY: private anonymous memory reads as zero afterwards, and nobody holds references into it. Failure
        // costs memory only.
        let _ = unsafe { madvise(slot.cast::<c_void>(), LARGE_BYTES, MmapAdvise::MADV_DONTNEED) };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing refers to it any more.
        let _ = unsafe { munmap(self.base.cast::<c_void>(), self.bytes) };
    }
}

/// Address space without memory behind it. Huge pages are refused: one small frame would make 2 MiB resident.
fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { mmap_anonymous(None, length, protection, flags) }?;
    // SAFETY: the mapping just made. Kernels without huge pages say EINVAL, which is as good.
    let _ = unsafe { madvise(base, bytes, MmapAdvise::MADV_NOHUGEPAGE) };
    Ok(base.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_last_is_taken_first() {
        let mut arena = Arena::new(256).expect("memory");
        let first = arena.take_large().expect("room");
        let second = arena.take_large().expect("room");
        arena.release(first);
        assert_eq!(arena.take_large(), Some(first));
        arena.release(second);
        arena.release(first);
        assert_eq!(arena.in_use(), 0);
    }

    #[test]
    fn slots_do_not_overlap_and_ids_stay_below_the_limit() {
        let mut arena = Arena::new(256).expect("memory");
        let mut leases = Vec::new();
        while let Some(lease) = arena.take_small() {
            assert!(lease.0 < 256);
            leases.push(lease);
        }
        assert_eq!(leases.len(), 256);
        for (mark, &lease) in leases.iter().enumerate() {
            // SAFETY: held, and looked at by nobody else.
            unsafe { arena.show(lease, arena.room(lease)) }.fill(mark as u8);
        }
        for (mark, &lease) in leases.iter().enumerate() {
            // SAFETY: as above.
            let bytes = unsafe { arena.show(lease, arena.room(lease)) };
            assert!(bytes.iter().all(|&b| b == mark as u8));
        }
    }

    #[test]
    #[should_panic(expected = "given back once")]
    fn giving_a_lease_back_twice_is_our_own_mistake() {
        let mut arena = Arena::new(256).expect("memory");
        let lease = arena.take_large().expect("room");
        arena.release(lease);
        arena.release(lease);
    }

    #[test]
    fn only_what_a_whole_period_did_not_need_is_trimmed() {
        let mut arena = Arena::new(256).expect("memory");
        let (a, b) = (arena.take_large().expect("room"), arena.take_large().expect("room"));
        for lease in [a, b] {
            // SAFETY: held, and looked at by nobody else.
            unsafe { arena.show(lease, 8) }.fill(7);
        }
        arena.release(b);
        arena.trim();
        // SAFETY: nobody else looks at it. `b` was out within the period: its pages are still there.
        assert_eq!(unsafe { arena.show(b, 8) }, [7; 8]);
        arena.trim();
        // SAFETY: as above.
        assert_eq!(unsafe { arena.show(b, 8) }, [0; 8]);
        // SAFETY: held.
        assert_eq!(unsafe { arena.show(a, 8) }, [7; 8]);
        arena.release(a);
        assert!(arena.trim());
        assert!(!arena.trim());
        assert!(!arena.is_untidy());
    }
}
