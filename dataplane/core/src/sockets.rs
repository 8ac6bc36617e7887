//! The table of host-side sockets: who owns a [`SocketId`], and whether it is still the current one.

use alloc::vec::Vec;

use crate::op::SocketId;

/// Whose a socket is; the index is into that module's own table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A TCP flow.
    Tcp(u32),
    /// A UDP mapping.
    Udp(u32),
    /// A ping mapping.
    Ping(u32),
    /// A forward's listening socket.
    Listener(u32),
    /// The DNS forwarder's.
    Dns(u32),
    /// An outward relay.
    Outward(u32),
}

struct Entry {
    generation: u32,
    owner: Option<Owner>,
    /// Free list.
    next_free: Option<u32>,
}

/// Socket ids with their owners. Grows up to its limit, then says no.
pub(crate) struct Sockets {
    entries: Vec<Entry>,
    free: Option<u32>,
    limit: u32,
    in_use: u32,
    /// Of flows that are lent, and come back.
    reserved: u32,
}

impl Sockets {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            entries: Vec::with_capacity(limit as usize),
            free: None,
            limit,
            in_use: 0,
            reserved: 0,
        }
    }

    /// A fresh id; none when the table is full.
    pub(crate) fn claim(&mut self, owner: Owner) -> Option<SocketId> {
        if self.in_use + self.reserved >= self.limit {
            return None;
        }
        let index = match self.free {
            Some(index) => {
                self.free = self.entries[index as usize].next_free.take();
                index
            }
            None if self.entries.len() < self.limit as usize => {
                self.entries.push(Entry { generation: 0, owner: None, next_free: None });
                self.entries.len() as u32 - 1
            }
            None => return None,
        };
        let entry = &mut self.entries[index as usize];
        entry.owner = Some(owner);
        self.in_use += 1;
        Some(SocketId { index, generation: entry.generation })
    }

    /// Ends an id. The caller emits the `Close`.
    pub(crate) fn release(&mut self, id: SocketId) {
        let entry = &mut self.entries[id.index as usize];
        assert!(
            entry.generation == id.generation && entry.owner.is_some(),
            "a socket is released once, by its owner"
        );
        entry.owner = None;
        entry.generation = entry.generation.wrapping_add(1);
        entry.next_free = self.free.replace(id.index);
        self.in_use -= 1;
    }

    /// Keeps room for one more, or gives that up.
    pub(crate) fn reserve(&mut self, is_kept: bool) {
        if is_kept { self.reserved += 1 } else { self.reserved -= 1 }
    }

    /// How many places are kept.
    pub(crate) fn reserved(&self) -> u32 {
        self.reserved
    }

    /// The owner, unless the id is stale.
    pub(crate) fn owner(&self, id: SocketId) -> Option<Owner> {
        let entry = self.entries.get(id.index as usize)?;
        if entry.generation == id.generation { entry.owner } else { None }
    }

    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_with_another_generation() {
        let mut sockets = Sockets::new(1);
        let first = sockets.claim(Owner::Tcp(7)).expect("room");
        assert_eq!(sockets.claim(Owner::Tcp(8)), None);
        sockets.release(first);
        assert_eq!(sockets.owner(first), None);
        let second = sockets.claim(Owner::Udp(1)).expect("room");
        assert_eq!(first.index, second.index);
        assert_ne!(first, second);
        assert_eq!(sockets.owner(second), Some(Owner::Udp(1)));
        assert_eq!(sockets.in_use(), 1);
    }
}
