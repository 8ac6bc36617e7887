//! Runs the core's ops. What completes at once is told at once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use usernet_core::op::{CloseHow, HEADROOM, Namespace};
use usernet_core::{
    AcceptedId, HostError, Input, LeaseId, Offload, Op, PeekedThen, SocketId, Span,
};

use crate::backend::{Backend, Token};
use crate::counters::Counter;
use crate::datagram::{Datagrams, Joined, Leave, TRAIN_MAX};
use crate::engine::{Engine, clock};
use crate::errno::host_error;
use crate::locals::Locals;
use crate::setup::NamespaceSockets;
use crate::splice::Pair;
use crate::stream::{PEEK_LEASES_MAX, Parked, PeekRequest, Phase, Stream};
use crate::sys;
use crate::table::Socket;

/// Bytes of a datagram that an error about it quotes.
const QUOTE_BYTES: usize = 548;

/// A message of the batch being sent, and the ops it was made of.
#[derive(Clone, Copy)]
pub(crate) struct Outgoing {
    leave: Leave,
    /// First op.
    first: usize,
    /// Number of ops, one span each.
    ops: usize,
    /// A part of the only op's span; none: all of it.
    part: Option<Span>,
}

impl<B: Backend> Engine<B> {
    /// Runs everything that is in the queue, and what comes of it.
    pub(crate) fn run_ops(&mut self) {
        loop {
            while !self.queue.ops.is_empty() {
                let mut ops = std::mem::take(&mut self.running);
                std::mem::swap(&mut ops, &mut self.queue.ops);
                let mut rest = ops.as_slice();
                while !rest.is_empty() {
                    if matches!(rest[0], Op::Peek { .. }) {
                        self.run_what_came();
                    }
                    let done = self.run_first(rest);
                    rest = &rest[done..];
                }
                ops.clear();
                self.running = ops;
            }
            if self.peeks_waiting.is_empty() || !self.queue.arena.has_large() {
                return;
            }
            let mut waiting = std::mem::take(&mut self.peeks_waiting);
            for (socket, request) in waiting.drain(..) {
                self.peek(socket, request);
            }
            if self.peeks_waiting.is_empty() {
                // The list goes back with its memory.
                self.peeks_waiting = waiting;
            }
            if self.queue.ops.is_empty() {
                return;
            }
        }
    }

    /// Runs what the ops before have brought. So what one flow's peek read goes to the guest before the next flow's is read,
    /// while it is in the cache, and its leases are there again.
    fn run_what_came(&mut self) {
        while !self.queue.ops.is_empty() {
            let mut ops = std::mem::take(&mut self.running_between);
            std::mem::swap(&mut ops, &mut self.queue.ops);
            let mut rest = ops.as_slice();
            while !rest.is_empty() {
                let done = self.run_first(rest);
                rest = &rest[done..];
            }
            ops.clear();
            self.running_between = ops;
        }
    }

    /// Runs the first op, and those that belong to it: how many they were.
    fn run_first(&mut self, ops: &[Op]) -> usize {
        match ops[0] {
            Op::WriteFrame { span, offload } => self.write_frame(span, offload),
            Op::Release { lease } => self.queue.arena.release(lease),
            Op::Append { span, to, at } => self.append(span, to, at),
            Op::Connect { socket, to, on } => self.connect(socket, to, on),
            Op::Adopt { socket, accepted } => self.adopt(socket, accepted),
            Op::Refuse { accepted } => self.refuse(accepted),
            Op::Splice { socket, accepted, to, on } => self.splice(socket, accepted, to, on),
            Op::Send { socket, .. } => return self.send(socket, ops),
            Op::Peek { socket, offset, len, chunk } => {
                self.peek(socket, PeekRequest { offset, len, chunk });
            }
            Op::Consume { socket, bytes } => self.consume(socket, bytes),
            Op::Shutdown { socket } => self.shutdown(socket),
            Op::Close { socket, how } => self.close(socket, how),
            Op::Open { socket, kind, port, loopback, on: Namespace::Host } => {
                let made = Datagrams::open(kind, port, loopback, &self.outbound);
                self.open(socket, made);
            }
            Op::Open { socket, kind, on: Namespace::Guest, .. } => {
                let made = inside(&mut self.namespace, |namespace| namespace.datagrams(kind));
                self.open(socket, made.and_then(Datagrams::inside));
            }
            Op::SendTo { socket, .. } => return self.send_to(socket, ops),
            Op::HandOver { .. } => return self.hand_over(ops),
            Op::HandOverClient { to, accepted, forward } => {
                self.hand_over_client(to, accepted, forward);
            }
            Op::TellNeighbor { to, ip, mac } => self.tell_neighbor(to, ip, mac),
        }
        1
    }

    fn write_frame(&mut self, span: Span, offload: Offload) {
        // SAFETY: the core has handed the lease over with the op.
        let frame = unsafe { self.queue.arena.span(span) };
        if self.tap.capture(frame, offload).is_err() {
            self.count(Counter::CaptureErrors);
        }
        if self.tap.write(&self.queue.arena, span, offload).is_err() {
            self.count(Counter::TapWriteErrors);
        }
        self.queue.arena.release(span.lease);
    }

    fn append(&mut self, span: Span, to: LeaseId, at: u32) {
        let target = Span { lease: to, start: at, len: span.len };
        // SAFETY: both leases are the core's, they are not the same, and no outstanding call reads or writes these bytes.
        let (from, to) = unsafe { (self.queue.arena.span(span), self.queue.arena.span(target)) };
        to.copy_from_slice(from);
    }

    fn connect(&mut self, socket: SocketId, to: SocketAddr, on: Namespace) {
        let connecting = match on {
            Namespace::Host => self.connect_from_host(to),
            Namespace::Guest => inside(&mut self.namespace, |namespace| namespace.connect(to))
                .map(Stream::connecting),
        };
        let made = connecting.and_then(|stream| {
            self.backend.watch(stream.fd(), Token::socket(socket))?;
            Ok(stream)
        });
        match made {
            Ok(stream) => {
                let phase = stream.phase;
                self.table.insert(socket, Socket::Stream(stream));
                if phase == Phase::Open {
                    self.tell(Input::Connected { socket });
                }
            }
            Err(error) => self.tell(Input::Failed { socket, error: host_error(&error) }),
        }
    }

    fn connect_from_host(&mut self, to: SocketAddr) -> io::Result<Stream> {
        let mut stream = Stream::connect(to, &self.outbound)?;
        if stream.phase == Phase::Connecting && self.promptness.asks() {
            stream.connect_again(to)?;
            self.promptness.on_answer(stream.phase == Phase::Open);
        }
        Ok(stream)
    }

    fn adopt(&mut self, socket: SocketId, accepted: AcceptedId) {
        let Some(client) = self.accepted.take(accepted) else {
            return self.count(Counter::StaleOps);
        };
        let stream = Stream::accepted(client.socket);
        match self.backend.watch(stream.fd(), Token::socket(socket)) {
            Ok(()) => self.table.insert(socket, Socket::Stream(stream)),
            Err(error) => self.tell(Input::Failed { socket, error: host_error(&error) }),
        }
    }

    fn refuse(&mut self, accepted: AcceptedId) {
        match self.accepted.take(accepted) {
            Some(client) => client.refuse(),
            None => self.count(Counter::StaleOps),
        }
    }

    fn splice(&mut self, socket: SocketId, accepted: AcceptedId, to: SocketAddr, on: Namespace) {
        let connected = match on {
            Namespace::Guest => inside(&mut self.namespace, |namespace| namespace.connect(to)),
            Namespace::Host => Stream::connect(to, &self.outbound).map(Stream::into_fd),
        };
        let made = connected.and_then(|server| {
            let pair = Pair::connecting(server, on, accepted);
            self.backend.watch(pair.server_fd(), Token::pair(socket).1)?;
            Ok(pair)
        });
        match made {
            Ok(pair) => self.table.insert(socket, Socket::Pair(Box::new(pair))),
            Err(error) => self.tell(Input::Failed { socket, error: host_error(&error) }),
        }
    }

    /// The ops of one gather write: how many they are.
    fn send(&mut self, socket: SocketId, ops: &[Op]) -> usize {
        self.run.clear();
        for op in ops {
            let Op::Send { socket: same, span, more } = *op else { break };
            if same != socket {
                break;
            }
            self.run.push(span);
            if !more {
                break;
            }
        }
        let count = self.run.len();
        let Some(stream) = self.table.stream(socket) else {
            // It failed, and the core knows, so the leases are its own; or the core has closed it.
            if self.queue.is_closing(socket) {
                self.queue.release_run(&self.run);
            }
            self.count(Counter::StaleOps);
            return count;
        };
        match stream.send(&self.queue.arena, &self.run) {
            Ok(bytes) => self.on_sent(socket, bytes),
            Err(error) if sys::would_block(&error) => {
                let parked: &mut Parked = stream.parked.get_or_insert_default();
                assert!(parked.run.is_empty(), "one send is outstanding per socket");
                parked.run.extend_from_slice(&self.run);
                self.count(Counter::SendsParked);
                self.retry_later(socket);
            }
            Err(error) => self.on_send_failed(socket, &error),
        }
        count
    }

    /// The run in `self.run` could not be sent. Its leases are the core's again, if it still knows the socket.
    fn on_send_failed(&mut self, socket: SocketId, error: &io::Error) {
        if self.queue.is_closing(socket) {
            self.queue.release_run(&self.run);
        }
        self.fail(socket, error);
    }

    /// The run in `self.run` has been sent, or a part of it.
    fn on_sent(&mut self, socket: SocketId, bytes: usize) {
        if self.queue.is_closing(socket) {
            return self.queue.release_run(&self.run);
        }
        self.tell(Input::Sent { socket, bytes: bytes as u32 });
    }

    /// The socket may have room again: what waits is sent. Gives the number of bytes.
    pub(crate) fn send_parked(&mut self, socket: SocketId) -> usize {
        let Some(stream) = self.table.stream(socket) else { return 0 };
        let Some(parked) = &mut stream.parked else { return 0 };
        if parked.run.is_empty() {
            return 0;
        }
        self.run.clear();
        self.run.append(&mut parked.run);
        match stream.send(&self.queue.arena, &self.run) {
            Ok(bytes) => {
                self.on_sent(socket, bytes);
                self.shutdown_parked(socket);
                bytes
            }
            Err(error) if sys::would_block(&error) => {
                if let Some(parked) = &mut stream.parked {
                    parked.run.append(&mut self.run);
                }
                0
            }
            Err(error) => {
                self.on_send_failed(socket, &error);
                0
            }
        }
    }

    pub(crate) fn peek(&mut self, socket: SocketId, request: PeekRequest) {
        let Some(stream) = self.table.stream(socket) else { return };
        let request = PeekRequest { len: request.len.min(stream.peek_most()), ..request };
        let mut leases = [LeaseId(0); PEEK_LEASES_MAX];
        let count = request.leases().min(self.queue.arena.large_free());
        if count == 0 {
            self.count(Counter::PeeksParked);
            return self.peeks_waiting.push((socket, request));
        }
        for lease in &mut leases[..count] {
            *lease = self.queue.arena.take_large().expect("as many as there are");
        }
        let leases = &leases[..count];
        let begin = stream.is_timed(request.offset).then(clock);
        let result = stream.peek(&self.queue.arena, request, leases, &mut self.waste);
        let took = begin.map(|begin| clock().since(begin));
        let got = *result.as_ref().unwrap_or(&0);
        if stream.on_peeked(request.offset, got, took) {
            self.counters.count(Counter::StreamsHeld);
        }
        self.busy.on_moved(got);
        let used = got.div_ceil(request.chunk()).min(count);
        for &lease in leases[used..].iter().rev() {
            self.queue.arena.release(lease);
        }
        match result {
            Ok(0) if request.len > 0 => {
                stream.end_was_told = true;
                self.tell(Input::PeekEnd { socket });
            }
            Ok(0) => self.tell(Input::PeekEmpty { socket }),
            Ok(_) => {
                let is_short = got < (request.len as usize).min(count * request.chunk());
                let then = match is_short {
                    true => stream.after_short_peek(&self.waste),
                    false => PeekedThen::Unknown,
                };
                stream.end_was_told |= then == PeekedThen::End;
                self.on_peeked(socket, request, &leases[..used], got, then);
            }
            Err(error) if sys::would_block(&error) => self.tell(Input::PeekEmpty { socket }),
            Err(error) => self.fail(socket, &error),
        }
    }

    fn on_peeked(
        &mut self,
        socket: SocketId,
        request: PeekRequest,
        leases: &[LeaseId],
        got: usize,
        last: PeekedThen,
    ) {
        let mut left = got;
        for &lease in leases {
            let len = left.min(request.chunk());
            left -= len;
            // SAFETY: filled for this peek, and handed to the core now.
            let bytes = unsafe { self.queue.arena.show(lease, HEADROOM + len) };
            let then = if left > 0 { PeekedThen::More } else { last };
            self.tell(Input::Peeked { socket, lease, bytes, then });
        }
    }

    fn consume(&mut self, socket: SocketId, bytes: u32) {
        let Some(stream) = self.table.stream(socket) else { return self.count(Counter::StaleOps) };
        if stream.consume(bytes) {
            self.unsettled.push(socket);
        }
    }

    fn shutdown(&mut self, socket: SocketId) {
        let Some(stream) = self.table.stream(socket) else { return self.count(Counter::StaleOps) };
        match &mut stream.parked {
            Some(parked) if !parked.run.is_empty() => parked.shutdown = true,
            // ENOTCONN: the peer has reset it; the next op, or event, says so.
            _ => drop(stream.shutdown()),
        }
    }

    fn shutdown_parked(&mut self, socket: SocketId) {
        if let Some(stream) = self.table.stream(socket)
            && let Some(parked) = &mut stream.parked
            && std::mem::take(&mut parked.shutdown)
        {
            let _ = stream.shutdown();
        }
    }

    fn close(&mut self, socket: SocketId, how: CloseHow) {
        self.queue.forget_closing(socket);
        match self.table.take(socket) {
            None => {}
            Some(Socket::Stream(mut stream)) => {
                if let Some(parked) = stream.parked.take() {
                    self.queue.release_run(&parked.run);
                }
                stream.prepare_close(how);
                self.backend.forget(stream.fd(), Token::socket(socket));
            }
            Some(Socket::Datagrams(datagrams)) if datagrams.is_shared => {
                self.backend.forget_shared(datagrams.fd(), Token::socket(socket));
            }
            Some(Socket::Datagrams(datagrams)) => {
                self.backend.forget(datagrams.fd(), Token::socket(socket));
            }
            Some(Socket::Listener(listener)) => {
                self.backend.forget_shared(listener.fd(), Token::socket(socket));
            }
            Some(Socket::Pair(pair)) => {
                if how == CloseHow::Reset {
                    pair.reset();
                }
                self.close_pair(socket, *pair);
            }
        }
    }

    /// Closes both halves of a pair. A client that never joined it is closed, too.
    pub(crate) fn close_pair(&mut self, socket: SocketId, pair: Pair) {
        let (client, server) = Token::pair(socket);
        self.backend.forget(pair.server_fd(), server);
        match pair.client_fd() {
            Some(fd) => self.backend.forget(fd, client),
            None => drop(self.accepted.take(pair.accepted)),
        }
        pair.close(&mut self.pipes);
    }

    fn open(&mut self, socket: SocketId, made: io::Result<(Datagrams, SocketAddr)>) {
        let made = made.and_then(|(datagrams, local)| {
            self.backend.watch(datagrams.fd(), Token::socket(socket))?;
            Ok((datagrams, local))
        });
        match made {
            Ok((datagrams, local)) => {
                self.table.insert(socket, Socket::Datagrams(datagrams));
                self.tell(Input::Opened { socket, local });
            }
            Err(error) => self.tell(Input::Failed { socket, error: host_error(&error) }),
        }
    }

    /// The connection is dead. The core is told, unless it has closed it already.
    pub(crate) fn fail(&mut self, socket: SocketId, error: &io::Error) {
        let Some(Socket::Stream(mut stream)) = self.table.take(socket) else { return };
        self.backend.forget(stream.fd(), Token::socket(socket));
        if !self.queue.is_closing(socket) {
            return self.tell(Input::Failed { socket, error: host_error(error) });
        }
        if let Some(parked) = stream.parked.take() {
            self.queue.release_run(&parked.run);
        }
    }
}

/// A socket of the guest's namespace, where there is somebody who makes them.
fn inside(
    sockets: &mut Option<Box<dyn NamespaceSockets>>,
    make: impl FnOnce(&mut dyn NamespaceSockets) -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    match sockets {
        Some(sockets) => make(sockets.as_mut()),
        None => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
}

/// Datagrams.
impl<B: Backend> Engine<B> {
    /// Sends the datagrams at the front of `ops` that go through one socket: how many ops they were.
    fn send_to(&mut self, socket: SocketId, ops: &[Op]) -> usize {
        self.send_batch.clear();
        self.outgoing.clear();
        let joined_max = self.table.datagrams(socket).map_or(0, |datagrams| datagrams.joined_max);
        let mut last: Option<Joined> = None;
        let mut taken = 0;
        while let Some((leave, count)) = datagram(&self.locals, &ops[taken..], socket) {
            let single = if count == 1 { span_of(&ops[taken]) } else { None };
            if !self.join_last(&mut last, leave, single) {
                if !self.put_together(leave, ops, taken, count) {
                    break;
                }
                last = single.and_then(|span| Joined::starting(leave, span.len, joined_max));
            }
            taken += count;
        }
        if taken == 0 {
            // More pieces than a message may have.
            taken = datagram(&self.locals, ops, socket).map_or(1, |(_, count)| count);
            self.count(Counter::DatagramsDropped);
        }
        self.send_batched(socket, ops);
        for op in &ops[..taken] {
            if let Op::SendTo { span, .. } = op {
                self.queue.arena.release(span.lease);
            }
        }
        taken
    }

    /// Adds a single datagram to the message before it, if the two can be one train. False: it is a message of its own.
    fn join_last(&mut self, last: &mut Option<Joined>, leave: Leave, single: Option<Span>) -> bool {
        let (Some(joined), Some(span)) = (last, single) else { return false };
        let Some(outgoing) = self.outgoing.last_mut() else { return false };
        if !self.send_batch.has_room_behind() || !joined.takes(leave, span.len) {
            return false;
        }
        if outgoing.ops == 1 {
            self.counters.count(Counter::TrainsJoined);
        }
        outgoing.leave.segment = joined.segment();
        outgoing.ops += 1;
        self.send_batch.extend(&self.queue.arena, joined.segment(), span);
        true
    }

    /// Adds one datagram, or the trains that a long train is made of. False: no room.
    fn put_together(&mut self, leave: Leave, ops: &[Op], first: usize, count: usize) -> bool {
        let spans = || ops[first..first + count].iter().filter_map(span_of);
        let train_bytes = usize::from(leave.segment) * TRAIN_MAX;
        let only = spans()
            .next()
            .filter(|span| count == 1 && leave.segment != 0 && span.len as usize > train_bytes);
        let Some(whole) = only else {
            if !self.send_batch.has_room(1, count) {
                return false;
            }
            let bytes: usize = spans().map(|span| span.len as usize).sum();
            let is_train = bytes > usize::from(leave.segment);
            let leave = Leave { segment: if is_train { leave.segment } else { 0 }, ..leave };
            self.send_batch.push(&self.queue.arena, leave, spans());
            self.outgoing.push(Outgoing { leave, first, ops: count, part: None });
            return true;
        };
        let trains = (whole.len as usize).div_ceil(train_bytes);
        if !self.send_batch.has_room(trains, trains) {
            return false;
        }
        let mut done = 0;
        while done < whole.len {
            let len = (whole.len - done).min(train_bytes as u32);
            let part = Span { start: whole.start + done, len, ..whole };
            self.send_batch.push(&self.queue.arena, leave, std::iter::once(part));
            self.outgoing.push(Outgoing { leave, first, ops: 1, part: Some(part) });
            done += len;
        }
        true
    }

    fn send_batched(&mut self, socket: SocketId, ops: &[Op]) {
        let mut next = 0;
        let mut has_retried = false;
        while next < self.send_batch.len() {
            let Some(datagrams) = self.table.datagrams(socket) else {
                return self.count(Counter::StaleOps);
            };
            // SAFETY: the leases of the ops are given back only after this.
            let result = unsafe { self.send_batch.send(datagrams.fd(), next) };
            let error = match result {
                Ok(sent) => {
                    next += sent.max(1);
                    has_retried = false;
                    continue;
                }
                Err(error) => error,
            };
            let outgoing = self.outgoing[next];
            // With IP_RECVERR a call may fail with an earlier datagram's error, once.
            let is_uncut = outgoing.leave.segment != 0 && is_about_size(&error);
            if !has_retried && !sys::would_block(&error) && !is_uncut {
                has_retried = true;
                continue;
            }
            if is_uncut && outgoing.ops > 1 {
                datagrams.joined_max = outgoing.leave.segment - 1;
            }
            self.on_unsent(socket, ops, outgoing, &error);
            next += 1;
            has_retried = false;
        }
    }

    /// One message was not sent.
    fn on_unsent(&mut self, socket: SocketId, ops: &[Op], outgoing: Outgoing, error: &io::Error) {
        let Outgoing { leave, first, ops: count, part } = outgoing;
        if sys::would_block(error) || error.raw_os_error() == Some(libc::ENOBUFS) {
            return (0..count).for_each(|_| self.count(Counter::DatagramsDropped));
        }
        if leave.segment != 0 {
            // The path's MTU is smaller than the guest's, or the device cannot.
            self.count(Counter::TrainsCut);
            for op in &ops[first..first + count] {
                let Some(span) = part.or_else(|| span_of(op)) else { continue };
                self.send_one_by_one(socket, leave, span);
            }
            return;
        }
        let Some(span) = part.or_else(|| span_of(&ops[first])) else { return };
        self.tell_unsent(socket, leave.to, span, error);
    }

    /// Cuts a train here.
    fn send_one_by_one(&mut self, socket: SocketId, leave: Leave, train: Span) {
        let mut done = 0;
        while done < train.len {
            let len = (train.len - done).min(u32::from(leave.segment));
            let span = Span { start: train.start + done, len, ..train };
            done += len;
            let Some(datagrams) = self.table.datagrams(socket) else { return };
            self.single.clear();
            let single = Leave { segment: 0, ..leave };
            self.single.push(&self.queue.arena, single, std::iter::once(span));
            // SAFETY: the lease of the train is given back only after this.
            match unsafe { self.single.send(datagrams.fd(), 0) } {
                Ok(_) => {}
                Err(error) if sys::would_block(&error) => self.count(Counter::DatagramsDropped),
                Err(error) => return self.tell_unsent(socket, leave.to, span, &error),
            }
        }
    }

    fn tell_unsent(&mut self, socket: SocketId, to: SocketAddr, span: Span, error: &io::Error) {
        let mut error = host_error(error);
        if let HostError::TooBig { mtu } = &mut error {
            *mtu = self.local_mtu(socket);
        }
        let quote = Span { len: span.len.min(QUOTE_BYTES as u32), ..span };
        // SAFETY: the lease is held until the op is done; the core only reads.
        let payload: &[u8] = unsafe { self.queue.arena.span(quote) };
        self.tell(Input::DatagramError { socket, to, error, offender: None, payload });
    }

    /// The MTU that the failed send left in the error queue; other entries are told on the way.
    fn local_mtu(&mut self, socket: SocketId) -> u32 {
        loop {
            let Some(datagrams) = self.table.datagrams(socket) else { return 0 };
            let Some(entry) = self.error_queue.next(datagrams.fd()) else { return 0 };
            match entry.error {
                HostError::TooBig { mtu } if entry.is_local => return mtu,
                _ => self.tell_entry(socket, entry),
            }
        }
    }
}

/// The datagram at the front of `ops`, if it goes through `socket`: how it leaves, and how many ops it is made of.
fn datagram(locals: &Locals, ops: &[Op], socket: SocketId) -> Option<(Leave, usize)> {
    let mut leave = None;
    let mut count = 0;
    for op in ops {
        let Op::SendTo { socket: same, to, segment, hop_limit, tos, local, more, .. } = *op else {
            break;
        };
        if same != socket {
            break;
        }
        let from = locals.address(local);
        leave = Some(Leave { to, from, segment, hop_limit, tos });
        count += 1;
        if !more {
            break;
        }
    }
    leave.map(|leave| (leave, count))
}

/// Whether an error says that a train cannot be cut: its datagrams are too large for the path, or nobody on it sums
/// them up (`udp_send_skb`).
fn is_about_size(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO))
}

fn span_of(op: &Op) -> Option<Span> {
    if let Op::SendTo { span, .. } = *op { Some(span) } else { None }
}
