//! From readiness to inputs.

use std::io;

use usernet_core::{Input, LocalId, SocketId};

use crate::address::peer_address;
use crate::backend::{Backend, Event, Ready, Token};
use crate::counters::Counter;
use crate::datagram::{RECEIVE_BATCH, RECEIVE_FIRST};
use crate::engine::Engine;
use crate::errno::host_error;
use crate::errqueue;
use crate::listen::{ACCEPTS_PER_TURN, is_out_of_room};
use crate::splice::{Pumped, Side};
use crate::stream::Phase;
use crate::sys;
use crate::table::Socket;

/// Batches received from one socket per turn.
const BATCHES_PER_TURN: usize = 4;

/// Entries of one socket's error queue told per event; the rest at the next.
const ERRORS_PER_EVENT: usize = 32;

impl<B: Backend> Engine<B> {
    /// One event. Mailbox and exit descriptors are the caller's.
    pub(crate) fn on_event(&mut self, event: Event, others: &mut Vec<Event>) {
        let Event { token, ready, has_ended } = event;
        if has_ended {
            self.watch_again(token);
        }
        match token {
            Token::Tap => {}
            Token::Room => {
                if self.tap.on_room().is_err() {
                    self.count(Counter::TapWriteErrors);
                }
            }
            Token::Mailbox | Token::Exit => others.push(event),
            Token::Socket { index, generation } => match self.table.resolve(index, generation) {
                Some(socket) => self.on_socket(socket, ready),
                None => self.count(Counter::StaleEvents),
            },
            Token::PairClient { index, generation } => {
                self.on_half(index, generation, Side::Client, ready);
            }
            Token::PairServer { index, generation } => {
                self.on_half(index, generation, Side::Server, ready);
            }
        }
    }

    /// A watch that ended by itself is started again.
    fn watch_again(&mut self, token: Token) {
        let (index, generation) = match token {
            // The first starts by itself, the others are the caller's.
            Token::Tap | Token::Mailbox | Token::Exit => return,
            Token::Room => return drop(self.backend.watch(self.tap.fd(), token)),
            Token::Socket { index, generation }
            | Token::PairClient { index, generation }
            | Token::PairServer { index, generation } => (index, generation),
        };
        let Some(socket) = self.table.resolve(index, generation) else { return };
        let fd = match (self.table.get(socket), token) {
            (Some(Socket::Stream(stream)), _) => Some(stream.fd()),
            (Some(Socket::Datagrams(datagrams)), _) => Some(datagrams.fd()),
            (Some(Socket::Listener(listener)), _) => Some(listener.fd()),
            (Some(Socket::Pair(pair)), Token::PairClient { .. }) => pair.client_fd(),
            (Some(Socket::Pair(pair)), _) => Some(pair.server_fd()),
            (None, _) => None,
        };
        self.counters.count(Counter::WatchesRestarted);
        // A watch costs a slot in a queue that is emptied when it is full: what fails here fails again at the wait.
        if let Some(fd) = fd {
            let _ = self.backend.watch(fd, token);
        }
    }

    /// Something was left in an earlier turn.
    pub(crate) fn on_again(&mut self, token: Token) {
        let ready = Ready { read: true, ..Ready::default() };
        match token {
            Token::Tap | Token::Room | Token::Mailbox | Token::Exit => {}
            Token::Socket { index, generation } => {
                if let Some(socket) = self.table.resolve(index, generation) {
                    self.on_socket(socket, ready);
                }
            }
            Token::PairClient { index, generation } | Token::PairServer { index, generation } => {
                if let Some(socket) = self.table.resolve(index, generation) {
                    self.pump(socket);
                }
            }
        }
    }

    fn on_socket(&mut self, socket: SocketId, ready: Ready) {
        match self.table.get(socket) {
            Some(Socket::Stream(stream)) => match stream.phase {
                Phase::Connecting => self.on_connecting(socket, ready),
                Phase::Open => self.on_stream(socket, ready),
            },
            Some(Socket::Datagrams(_)) => self.on_datagrams(socket, ready),
            Some(Socket::Listener(_)) => self.accept(socket),
            Some(Socket::Pair(_)) | None => {}
        }
    }

    fn on_connecting(&mut self, socket: SocketId, ready: Ready) {
        if !ready.write && !ready.error {
            return;
        }
        let Some(stream) = self.table.stream(socket) else { return };
        stream.hung_up |= ready.hung_up;
        match stream.finish_connect(ready.error) {
            Ok(()) => {
                self.tell(Input::Connected { socket });
                if ready.read {
                    self.tell(Input::Readable { socket });
                }
            }
            Err(error) => self.fail(socket, &error),
        }
    }

    fn on_stream(&mut self, socket: SocketId, ready: Ready) {
        if ready.write || ready.error {
            self.send_parked(socket);
        }
        let Some(stream) = self.table.stream(socket) else { return };
        stream.hung_up |= ready.hung_up;
        if ready.error && stream.end_was_told {
            // The core peeks no more, so nothing else would find the error.
            if let Err(error) = sys::take_error(stream.fd()) {
                return self.fail(socket, &error);
            }
        }
        // An error comes after what was received before it: the core peeks its way to it.
        if (ready.read || ready.error) && !stream.end_was_told {
            self.tell(Input::Readable { socket });
        }
    }

    fn on_datagrams(&mut self, socket: SocketId, ready: Ready) {
        if ready.error {
            self.tell_errors(socket);
        }
        if !ready.read {
            return;
        }
        let further = std::iter::repeat_n(RECEIVE_BATCH, BATCHES_PER_TURN - 1);
        for count_max in std::iter::once(RECEIVE_FIRST).chain(further) {
            let Some(datagrams) = self.table.datagrams(socket) else { return };
            let joined_max = if datagrams.is_ping { 0 } else { self.tap.joined_max() };
            match self.receive_batch.receive(datagrams, &mut self.queue.arena, count_max) {
                Ok(Some(count)) => {
                    self.on_received(socket, count, joined_max);
                    if count < count_max {
                        return;
                    }
                    // What the core sends on gives its leases back.
                    self.run_ops();
                }
                Ok(None) => break,
                Err(error) if sys::would_block(&error) => return,
                // An error that belongs to the error queue; the next call reads on.
                Err(_) => self.tell_errors(socket),
            }
        }
        self.again.push(Token::socket(socket));
    }

    /// The messages of a batch; datagrams of up to `joined_max` bytes that follow each other become trains.
    fn on_received(&mut self, socket: SocketId, count: usize, joined_max: usize) {
        let mut next = 0;
        while next < count {
            let mut received = self.receive_batch.message(next);
            let lease = received.lease;
            next += 1;
            if !received.is_truncated {
                let (batch, arena) = (&self.receive_batch, &mut self.queue.arena);
                let joined = batch.join(arena, &mut received, next..count, joined_max);
                next += joined;
                if joined > 0 {
                    self.count(Counter::TrainsJoined);
                }
            }
            self.busy.on_moved(received.bytes);
            let (Some(from), false) = (received.from, received.is_truncated) else {
                self.count(Counter::DatagramsTruncated);
                self.queue.arena.release(lease);
                continue;
            };
            let local = received.local.map(|address| self.locals.id(address));
            if local == Some(None) {
                self.count(Counter::LocalsFull);
            }
            let len = usernet_core::op::HEADROOM + received.bytes;
            // SAFETY: filled by the receiving call, and handed to the core now.
            let bytes = unsafe { self.queue.arena.show(lease, len) };
            self.tell(Input::Datagram {
                socket,
                lease,
                bytes,
                from,
                local: local.flatten().unwrap_or(LocalId::ANY),
                segment: received.segment,
                hop_limit: received.hop_limit,
                tos: received.tos,
            });
        }
    }

    /// What the error queue of a datagram socket has.
    fn tell_errors(&mut self, socket: SocketId) {
        for _ in 0..ERRORS_PER_EVENT {
            let Some(datagrams) = self.table.datagrams(socket) else { return };
            let Some(entry) = self.error_queue.next(datagrams.fd()) else { return };
            // Our own host's objections were told when the send failed.
            if !entry.is_local {
                self.tell_entry(socket, entry);
            }
        }
    }

    pub(crate) fn tell_entry(&mut self, socket: SocketId, entry: errqueue::Entry) {
        let errqueue::Entry { to, error, offender, .. } = entry;
        let payload = self.error_queue.payload(&entry);
        let input = Input::DatagramError { socket, to, error, offender, payload };
        self.shard.handle(self.now, input, &mut self.queue);
    }

    pub(crate) fn accept(&mut self, socket: SocketId) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(Socket::Listener(listener)) = self.table.get(socket) else { return };
            match listener.accept() {
                Ok(taken) => {
                    let (peer, local) = (taken.peer, taken.local);
                    let accepted = self.accepted.insert(taken);
                    self.tell(Input::Accepted { accepted, listener: socket, peer, local });
                }
                Err(error) if sys::would_block(&error) => return,
                Err(error) if is_out_of_room(&error) => return self.accept_later(socket),
                // The client has gone again (accept(2): treat network errors like EAGAIN, and go on).
                Err(_) => {}
            }
        }
        self.again.push(Token::socket(socket));
    }

    /// One half of a spliced pair.
    fn on_half(&mut self, index: u32, generation: u32, side: Side, ready: Ready) {
        let Some(socket) = self.table.resolve(index, generation) else {
            return self.count(Counter::StaleEvents);
        };
        let Some(Socket::Pair(pair)) = self.table.get(socket) else { return };
        if pair.joined.is_none() {
            return self.on_splice_connecting(socket, ready);
        }
        pair.on_ready(side, ready.read, ready.write);
        if ready.error && pair.take_error(side).is_err() {
            return self.end_splice(socket, true);
        }
        self.pump(socket);
    }

    fn on_splice_connecting(&mut self, socket: SocketId, ready: Ready) {
        if !ready.write && !ready.error {
            return;
        }
        let Some(Socket::Pair(pair)) = self.table.get(socket) else { return };
        let connected = pair.take_error(Side::Server);
        // A late event of a server that was tried before under the same id says nothing about this one.
        if connected.is_ok() && peer_address(pair.server_fd()).is_err() {
            return;
        }
        let accepted = pair.accepted;
        let ready = connected.and_then(|()| {
            let pipes = self.pipes.take_two()?;
            let client = self.accepted.get(accepted).ok_or(io::ErrorKind::NotConnected)?;
            self.backend.watch(client, Token::pair(socket).0)?;
            Ok(pipes)
        });
        match ready.map(|pipes| (pipes, self.accepted.take(accepted))) {
            Ok((pipes, Some(client))) => {
                pair.join(client.socket, pipes);
                self.tell(Input::Spliced { socket });
                self.pump(socket);
            }
            Ok((_, None)) => {}
            Err(error) => {
                let Some(Socket::Pair(pair)) = self.table.take(socket) else { return };
                self.backend.forget(pair.server_fd(), Token::pair(socket).1);
                self.tell(Input::Failed { socket, error: host_error(&error) });
            }
        }
    }

    fn pump(&mut self, socket: SocketId) {
        let Some(Socket::Pair(pair)) = self.table.get(socket) else { return };
        let before = pair.moved();
        let pumped = pair.pump();
        let moved = pair.moved() - before;
        self.busy.on_moved(moved as usize);
        self.courtesy.on_moved(moved);
        match pumped {
            Ok(Pumped::Waiting) => {}
            Ok(Pumped::More) => {
                pair.widen(&mut self.pipes);
                self.again.push(Token::pair(socket).0);
            }
            Ok(Pumped::Ended) => self.end_splice(socket, false),
            Err(_) => self.end_splice(socket, true),
        }
    }

    fn end_splice(&mut self, socket: SocketId, is_reset: bool) {
        let Some(Socket::Pair(pair)) = self.table.take(socket) else { return };
        if is_reset {
            pair.reset();
        }
        let (to_guest, from_guest) = pair.bytes();
        self.close_pair(socket, *pair);
        self.tell(Input::SpliceEnded { socket, to_guest, from_guest });
    }
}
