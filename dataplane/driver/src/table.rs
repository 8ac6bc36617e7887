//! The driver's side of [`SocketId`]: which kernel object is behind it, and whether it is still the same one.

use usernet_core::SocketId;

use crate::backend::Token;
use crate::datagram::Datagrams;
use crate::listen::Listener;
use crate::splice::Pair;
use crate::stream::Stream;

/// What a [`SocketId`] stands for.
pub(crate) enum Socket {
    /// A TCP socket of a flow.
    Stream(Stream),
    /// A UDP or ping socket.
    Datagrams(Datagrams),
    /// A listening TCP socket.
    Listener(Listener),
    /// Two TCP sockets joined.
    Pair(Box<Pair>),
}

#[derive(Default)]
struct Slot {
    generation: u32,
    socket: Option<Socket>,
}

/// All of them, by index. Grows to the largest index that was ever in use.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    in_use: usize,
}

impl Table {
    /// Puts a socket under an id. What was there before must have been taken.
    pub(crate) fn insert(&mut self, id: SocketId, socket: Socket) {
        let index = id.index as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Slot::default);
        }
        let slot = &mut self.slots[index];
        assert!(slot.socket.is_none(), "the core closes a socket before it uses its index again");
        *slot = Slot { generation: id.generation, socket: Some(socket) };
        self.in_use += 1;
    }

    /// The socket, unless the id is stale.
    pub(crate) fn get(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.socket.as_mut() } else { None }
    }

    /// The stream, unless the id is stale or something else.
    pub(crate) fn stream(&mut self, id: SocketId) -> Option<&mut Stream> {
        match self.get(id)? {
            Socket::Stream(stream) => Some(stream),
            Socket::Datagrams(_) | Socket::Listener(_) | Socket::Pair(_) => None,
        }
    }

    /// The datagram socket, unless the id is stale or something else.
    pub(crate) fn datagrams(&mut self, id: SocketId) -> Option<&mut Datagrams> {
        match self.get(id)? {
            Socket::Datagrams(datagrams) => Some(datagrams),
            Socket::Stream(_) | Socket::Listener(_) | Socket::Pair(_) => None,
        }
    }

    /// Takes a socket out.
    pub(crate) fn take(&mut self, id: SocketId) -> Option<Socket> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let socket = slot.socket.take()?;
        self.in_use -= 1;
        Some(socket)
    }

    /// The full id behind a token; none if that socket is gone.
    pub(crate) fn resolve(&self, index: u32, generation: u32) -> Option<SocketId> {
        let slot = self.slots.get(index as usize)?;
        let is_current = slot.socket.is_some() && Token::is_generation(generation, slot.generation);
        is_current.then_some(SocketId { index, generation: slot.generation })
    }

    /// The tokens under which they are watched.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> + '_ {
        (0..).zip(&self.slots).flat_map(|(index, slot)| {
            let id = SocketId { index, generation: slot.generation };
            let tokens = match &slot.socket {
                None => [None, None],
                Some(Socket::Pair(_)) => {
                    let (client, server) = Token::pair(id);
                    [Some(client), Some(server)]
                }
                Some(Socket::Stream(_) | Socket::Datagrams(_) | Socket::Listener(_)) => {
                    [Some(Token::socket(id)), None]
                }
            };
            tokens.into_iter().flatten()
        })
    }

    /// How many there are.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use
    }
}
