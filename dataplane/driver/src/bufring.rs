//! A ring of provided buffers (io_uring_register_buf_ring(3)): we put buffers in at the tail, the kernel takes them from
//! the head.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// See the [module](self).
pub(crate) struct BufferRing {
    base: NonNull<BufRingEntry>,
    /// A power of two.
    entries: u16,
    /// Where the next buffer goes; counts on without end.
    tail: u16,
    /// Ids of the buffers in the ring, in the order in which the kernel takes them.
    ids: VecDeque<u16>,
}

// SAFETY: the mapping belongs to the ring alone.
unsafe impl Send for BufferRing {}

impl BufferRing {
    /// An empty ring. `entries` is a power of two.
    pub(crate) fn new(entries: u16) -> io::Result<Self> {
        assert!(entries.is_power_of_two(), "the kernel masks the tail");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = bytes(entries);
        // SAFETY: a new mapping at an address of the kernel's choice: page aligned, as it must be, and zero.
        let base = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }?;
        let ids = VecDeque::with_capacity(usize::from(entries));
        Ok(Self { base: base.cast(), entries, tail: 0, ids })
    }

    /// For the registration.
    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    pub(crate) fn has_room(&self) -> bool {
        self.ids.len() < usize::from(self.entries)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The buffers in the ring.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u16> + '_ {
        self.ids.iter().copied()
    }

    /// Adds a buffer. There is room. The kernel sees it after [`BufferRing::publish`].
    pub(crate) fn add(&mut self, pointer: *mut u8, len: u32, id: u16) {
        assert!(self.has_room(), "the caller has asked for room");
        let index = usize::from(self.tail & (self.entries - 1));
        // SAFETY: `index` is below `entries`, and the kernel does not read beyond the tail it was shown.
        let entry = unsafe { &mut *self.base.as_ptr().add(index) };
        entry.set_addr(pointer as u64);
        entry.set_len(len);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.ids.push_back(id);
    }

    /// Shows the kernel what was added.
    pub(crate) fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, which is mapped, aligned, and written by us alone.
        let tail =
            unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.base.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// The kernel has taken the buffer `id`. It takes them in order, save that a read that fails puts one back.
    pub(crate) fn on_taken(&mut self, id: u16) {
        if self.ids.front() == Some(&id) {
            self.ids.pop_front();
        } else {
            self.ids.retain(|&other| other != id);
        }
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length. The kernel has pinned the pages for as long as it needs them.
        let _ = unsafe { munmap(self.base.cast(), bytes(self.entries).get()) };
    }
}

fn bytes(entries: u16) -> NonZeroUsize {
    NonZeroUsize::new(usize::from(entries) * size_of::<BufRingEntry>()).expect("not empty")
}
