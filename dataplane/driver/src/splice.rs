//! Loopback to loopback: two TCP sockets joined inside the kernel by `splice(2)`.
//!
//! # Theory of operation
//!
//! Each direction has a pipe; bytes move socket → pipe → socket and never come to user space. What is ready is
//! remembered (events are edge triggered) and forgotten when the kernel says `EAGAIN`. A pipe has few slots,
//! and small segments fill a slot each, so `EAGAIN` from the source means "empty" only when the pipe is empty,
//! too; otherwise the pipe may be full, and the source is tried again after the pipe has drained.
//!
//! The end of one direction is passed on as FIN once its pipe has drained; the other goes on. An error on either
//! side resets both.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use usernet_core::AcceptedId;
use usernet_core::op::Namespace;

use crate::pacing::Pacing;
use crate::sys;

/// Bytes moved per direction and turn.
const TURN_BYTES: u64 = 1 << 20;

/// Bytes asked for by one call: more than a pipe has room for.
const SPLICE_BYTES: usize = 1 << 20;

/// Drained pipes that are kept for the next connection.
const PIPES_KEPT: usize = 32;

/// Bytes of a pipe whose direction carries bulk: with the 64 KiB that every pipe has, throughput is a tenth less.
const LARGE_BYTES: usize = 256 << 10;

/// Pipes that are large at once. A user's pipes share 64 MiB (`/proc/sys/fs/pipe-user-pages-soft`), and whose share is used
/// up gets pipes of two pages: this is an eighth.
const LARGE_MAX: usize = 32;

/// A nonblocking pipe.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    is_large: bool,
}

/// Pipes for reuse: making one costs more than moving a small request through it.
#[derive(Default)]
pub(crate) struct Pipes {
    kept: Vec<Pipe>,
    /// How many there are that are large, in use and kept.
    large: usize,
}

impl Pipes {
    /// One for each direction.
    pub(crate) fn take_two(&mut self) -> io::Result<[Pipe; 2]> {
        Ok([self.take()?, self.take()?])
    }

    fn take(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.kept.pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        Ok(Pipe { read, write, is_large: false })
    }

    fn give_back(&mut self, direction: Direction) {
        if direction.buffered == 0 && self.kept.len() < PIPES_KEPT {
            self.kept.push(direction.pipe);
        } else if direction.pipe.is_large {
            self.large -= 1;
        }
    }

    /// Gives a pipe more room, where there may be one more of those.
    fn enlarge(&mut self, pipe: &mut Pipe) {
        if pipe.is_large || self.large == LARGE_MAX {
            return;
        }
        // EPERM: the user's pipes have used up their share. It goes on as it is.
        pipe.is_large = rustix::pipe::fcntl_setpipe_size(&pipe.write, LARGE_BYTES).is_ok();
        self.large += usize::from(pipe.is_large);
    }
}

/// One direction of a pair.
struct Direction {
    pipe: Pipe,
    /// Bytes in the pipe.
    buffered: usize,
    /// The source has not said that it is empty.
    source_is_ready: bool,
    /// The sink has not said that it is full.
    sink_is_ready: bool,
    /// The source has ended.
    has_ended: bool,
    /// The sink has been told.
    is_shut: bool,
    /// Bytes that reached the sink.
    bytes: u64,
    /// A turn was not enough.
    is_bulk: bool,
    /// Of the sink.
    pacing: Pacing,
}

impl Direction {
    fn new(pipe: Pipe) -> Self {
        Self {
            pipe,
            buffered: 0,
            source_is_ready: true,
            sink_is_ready: true,
            has_ended: false,
            is_shut: false,
            bytes: 0,
            is_bulk: false,
            pacing: Pacing::default(),
        }
    }

    /// Moves what can be moved, up to [`TURN_BYTES`]. True: there may be more at once.
    fn pump(&mut self, source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> io::Result<bool> {
        let stop_at = self.bytes + TURN_BYTES;
        while self.fill(source)? | self.drain(sink)? {
            if self.bytes >= stop_at {
                self.is_bulk = true;
                return Ok(true);
            }
        }
        if self.has_ended && self.buffered == 0 && !self.is_shut {
            sys::shutdown_write(sink)?;
            self.is_shut = true;
        }
        Ok(false)
    }

    /// Source to pipe. True: something moved.
    fn fill(&mut self, source: BorrowedFd<'_>) -> io::Result<bool> {
        if !self.source_is_ready || self.has_ended {
            return Ok(false);
        }
        match move_bytes(source, self.pipe.write.as_fd()) {
            Ok(0) => {
                self.has_ended = true;
                Ok(false)
            }
            Ok(bytes) => {
                self.buffered += bytes;
                Ok(true)
            }
            Err(error) if sys::would_block(&error) => {
                self.source_is_ready = self.buffered > 0;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Pipe to sink. True: something moved.
    fn drain(&mut self, sink: BorrowedFd<'_>) -> io::Result<bool> {
        if !self.sink_is_ready || self.buffered == 0 {
            return Ok(false);
        }
        match move_bytes(self.pipe.read.as_fd(), sink) {
            Ok(bytes) => {
                self.buffered -= bytes;
                self.bytes += bytes as u64;
                self.pacing.on_sent(sink, bytes);
                Ok(bytes > 0)
            }
            Err(error) if sys::would_block(&error) => {
                self.sink_is_ready = false;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

fn move_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(splice(from, None, to, None, SPLICE_BYTES, flags)?)
}

/// Which socket of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Who connected to a listener of ours.
    Client,
    /// The server on a loopback, in the other namespace.
    Server,
}

/// What [`Pair::pump`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// Until the next event.
    Waiting,
    /// There may be more at once.
    More,
    /// Both directions have ended.
    Ended,
}

/// Both sockets, once the server has answered.
pub(crate) struct Joined {
    client: OwnedFd,
    to_server: Direction,
    to_client: Direction,
}

/// A pair, or what is to become one.
pub(crate) struct Pair {
    server: OwnedFd,
    /// In whose namespace the server is.
    on: Namespace,
    /// The client, until the server has answered: it still can be adopted instead.
    pub(crate) accepted: AcceptedId,
    /// None: connecting.
    pub(crate) joined: Option<Joined>,
}

impl Pair {
    /// A server that may not have answered yet.
    pub(crate) fn connecting(server: OwnedFd, on: Namespace, accepted: AcceptedId) -> Self {
        Self { server, on, accepted, joined: None }
    }

    pub(crate) fn server_fd(&self) -> BorrowedFd<'_> {
        self.server.as_fd()
    }

    pub(crate) fn client_fd(&self) -> Option<BorrowedFd<'_>> {
        self.joined.as_ref().map(|joined| joined.client.as_fd())
    }

    /// The server has answered: the client joins it.
    pub(crate) fn join(&mut self, client: OwnedFd, pipes: [Pipe; 2]) {
        for socket in [client.as_fd(), self.server.as_fd()] {
            let _ = sys::set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        }
        let [to_server, to_client] = pipes.map(Direction::new);
        self.joined = Some(Joined { client, to_server, to_client });
    }

    /// Notes what has become ready.
    pub(crate) fn on_ready(&mut self, side: Side, read: bool, write: bool) {
        let Some(joined) = &mut self.joined else { return };
        let (source, sink) = match side {
            Side::Client => (&mut joined.to_server, &mut joined.to_client),
            Side::Server => (&mut joined.to_client, &mut joined.to_server),
        };
        source.source_is_ready |= read;
        sink.sink_is_ready |= write;
    }

    /// The error that a side has kept.
    pub(crate) fn take_error(&self, side: Side) -> io::Result<()> {
        match (side, self.client_fd()) {
            (Side::Client, Some(client)) => sys::take_error(client),
            (Side::Client, None) => Ok(()),
            (Side::Server, _) => sys::take_error(self.server_fd()),
        }
    }

    /// Moves what can be moved, both ways.
    pub(crate) fn pump(&mut self) -> io::Result<Pumped> {
        let server = self.server.as_fd();
        let Some(Joined { client, to_server, to_client }) = &mut self.joined else {
            return Ok(Pumped::Waiting);
        };
        let has_more =
            to_server.pump(client.as_fd(), server)? | to_client.pump(server, client.as_fd())?;
        if to_server.is_shut && to_client.is_shut {
            Ok(Pumped::Ended)
        } else if has_more {
            Ok(Pumped::More)
        } else {
            Ok(Pumped::Waiting)
        }
    }

    /// Gives the directions that carry bulk more room.
    pub(crate) fn widen(&mut self, pipes: &mut Pipes) {
        let Some(joined) = &mut self.joined else { return };
        for direction in [&mut joined.to_server, &mut joined.to_client] {
            if direction.is_bulk {
                pipes.enlarge(&mut direction.pipe);
            }
        }
    }

    /// Bytes that have passed, both ways together.
    pub(crate) fn moved(&self) -> u64 {
        let (to_guest, from_guest) = self.bytes();
        to_guest + from_guest
    }

    /// Bytes to the guest and from it.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let Some(joined) = &self.joined else { return (0, 0) };
        let (to_server, to_client) = (joined.to_server.bytes, joined.to_client.bytes);
        match self.on {
            Namespace::Guest => (to_server, to_client),
            Namespace::Host => (to_client, to_server),
        }
    }

    /// Both peers get RST when the pair is dropped.
    pub(crate) fn reset(&self) {
        for socket in [Some(self.server_fd()), self.client_fd()].into_iter().flatten() {
            let _ = sys::reset_on_close(socket);
        }
    }

    /// The end: sockets are closed, drained pipes kept.
    pub(crate) fn close(self, pipes: &mut Pipes) {
        if let Some(joined) = self.joined {
            pipes.give_back(joined.to_server);
            pipes.give_back(joined.to_client);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::thread;

    use super::*;

    /// A pair with the far ends of both its sockets: client, server.
    fn pair() -> (Pair, Pipes, TcpStream, TcpStream) {
        let (client, far_client) = connection();
        let (server, far_server) = connection();
        let mut pipes = Pipes::default();
        let mut pair = Pair::connecting(server.into(), Namespace::Guest, AcceptedId(0));
        pair.join(client.into(), pipes.take_two().expect("pipes"));
        (pair, pipes, far_client, far_server)
    }

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let far = TcpStream::connect(listener.local_addr().expect("its address")).expect("room");
        let (near, _) = listener.accept().expect("a connection");
        near.set_nonblocking(true).expect("nonblocking");
        (near, far)
    }

    /// Pumps as the engine does, with everything reported ready, until `until`.
    fn pump_until(pair: &mut Pair, until: impl Fn(&Pair, Pumped) -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while std::time::Instant::now() < deadline {
            for side in [Side::Client, Side::Server] {
                pair.on_ready(side, true, true);
            }
            let pumped = pair.pump().expect("no error");
            if until(pair, pumped) {
                return;
            }
            if pumped == Pumped::Waiting {
                thread::sleep(std::time::Duration::from_micros(100));
            }
        }
        panic!("the pair did not get there in time");
    }

    #[test]
    fn the_end_of_one_direction_is_passed_on_and_the_other_goes_on() {
        let (mut pair, mut pipes, mut client, mut server) = pair();
        client.write_all(b"question").expect("room");
        client.shutdown(Shutdown::Write).expect("open");
        pump_until(&mut pair, |pair, _| {
            pair.joined.as_ref().is_some_and(|joined| joined.to_server.is_shut)
        });
        let mut question = Vec::new();
        server.read_to_end(&mut question).expect("the end");
        assert_eq!(question, b"question");
        server.write_all(b"answer").expect("room");
        drop(server);
        pump_until(&mut pair, |_, pumped| pumped == Pumped::Ended);
        assert_eq!(pair.bytes(), (8, 6));
        pair.close(&mut pipes);
        assert_eq!(pipes.kept.len(), 2, "drained pipes are kept");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("the end");
        assert_eq!(answer, b"answer");
    }

    #[test]
    fn a_direction_that_carries_bulk_gets_a_larger_pipe() {
        let (mut pair, mut pipes, client, mut server) = pair();
        pair.widen(&mut pipes);
        assert_eq!(pipes.large, 0, "nothing was moved yet");
        pair.joined.as_mut().expect("joined").to_client.is_bulk = true;
        pair.widen(&mut pipes);
        pair.widen(&mut pipes);
        let joined = pair.joined.as_ref().expect("joined");
        let bytes = rustix::pipe::fcntl_getpipe_size(&joined.to_client.pipe.read).expect("a pipe");
        assert_eq!((bytes, pipes.large), (LARGE_BYTES, 1));
        assert!(!joined.to_server.pipe.is_large);
        // Bytes left in the pipe: it is not kept, and another one may be large in its place.
        server.write_all(b"late").expect("room");
        pump_until(&mut pair, |pair, _| pair.bytes().1 == 4);
        pair.joined.as_mut().expect("joined").to_client.buffered = 1;
        pair.close(&mut pipes);
        assert_eq!((pipes.kept.len(), pipes.large), (1, 0));
        drop(client);
    }

    #[test]
    fn only_so_many_pipes_are_large() {
        let mut pipes = Pipes { large: LARGE_MAX, ..Pipes::default() };
        let mut pipe = pipes.take().expect("a pipe");
        pipes.enlarge(&mut pipe);
        assert!(!pipe.is_large);
    }

    #[test]
    fn a_reset_is_an_error_and_resets_the_other_side() {
        let (mut pair, mut pipes, mut client, server) = pair();
        sys::reset_on_close(server.as_fd()).expect("open");
        drop(server);
        let error = (0..1000)
            .find_map(|_| {
                thread::sleep(std::time::Duration::from_millis(1));
                pair.on_ready(Side::Server, true, true);
                pair.take_error(Side::Server).and_then(|()| pair.pump()).err()
            })
            .expect("the reset arrives");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        pair.reset();
        pair.close(&mut pipes);
        let told = client.read(&mut [0; 1]).expect_err("reset");
        assert_eq!(told.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_hundred_megabytes_arrive_in_order_while_the_reader_dawdles() {
        const BYTES: usize = 100 << 20;
        let (mut pair, mut pipes, mut client, mut server) = pair();
        let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
        let expected = block.clone();
        let writer = thread::spawn(move || {
            for _ in 0..BYTES / block.len() {
                client.write_all(&block).expect("open");
            }
            client
        });
        let reader = thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            for round in 0..BYTES / expected.len() {
                if round % 16 == 0 {
                    thread::sleep(std::time::Duration::from_millis(5));
                }
                server.read_exact(&mut got).expect("bytes");
                assert!(got == expected, "bytes differ in block {round}");
            }
            server
        });
        pump_until(&mut pair, |pair, _| pair.bytes().0 == BYTES as u64);
        drop((writer.join().expect("writer"), reader.join().expect("reader")));
        pump_until(&mut pair, |_, pumped| pumped == Pumped::Ended);
        pair.close(&mut pipes);
    }
}
