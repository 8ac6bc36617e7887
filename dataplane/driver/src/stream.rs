//! A TCP socket on the host side.
//!
//! # Reading without consuming
//!
//! The core peeks at an offset and consumes later, when the guest has acknowledged. With `SO_PEEK_OFF` the kernel
//! keeps the place: a peek moves it forward by what it gave, a consuming read moves it back by what it took
//! (socket(7); TCP since Linux 6.9). [`Stream::peek_place`] mirrors the kernel's value, and the option is set only
//! where the core wants another place: in steady flow, never. Older kernels read what is to be skipped into a
//! waste area.
//!
//! Where looking takes too long, the stream is read instead ([`crate::held`]).
//!
//! Consuming is put off to the end of the turn and done once ([`Stream::settle`]); until then the bytes already
//! given up are part of the offset.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use usernet_core::op::{CloseHow, HEADROOM};
use usernet_core::{LeaseId, PeekedThen, Span};

use crate::address::SockAddr;
use crate::arena::{Arena, LARGE_ROOM};
use crate::control::Control;
use crate::held::{Held, Look, READ_MOST};
use crate::pacing::Pacing;
use crate::retry::Patience;
use crate::setup::Outbound;
use crate::sys;

/// Leases filled by one peek.
pub(crate) const PEEK_LEASES_MAX: usize = 8;

/// Spans gathered into one send. A longer run is sent short, which is legal.
pub(crate) const GATHER_MAX: usize = 64;

/// Bytes of the waste area for peeks without `SO_PEEK_OFF`.
const WASTE_BYTES: usize = 64 << 10;

/// Skip vectors of a peek without `SO_PEEK_OFF`: reaches offsets of 4 MiB.
const SKIPS_MAX: usize = 64;

/// A peek that the core has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeekRequest {
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) chunk: u32,
}

impl PeekRequest {
    /// Bytes per lease.
    pub(crate) fn chunk(&self) -> usize {
        (self.chunk as usize).clamp(1, LARGE_ROOM - HEADROOM)
    }

    /// Leases wanted.
    pub(crate) fn leases(&self) -> usize {
        (self.len as usize).div_ceil(self.chunk()).clamp(1, PEEK_LEASES_MAX)
    }
}

/// Whether the connection exists yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// SYN sent.
    Connecting,
    /// Established, or ended in one direction.
    Open,
}

/// What the socket's end must still wait for.
#[derive(Default)]
pub(crate) struct Parked {
    /// A send run that found the socket full. Empty: none.
    pub(crate) run: Vec<Span>,
    /// A shutdown that was asked for behind it.
    pub(crate) shutdown: bool,
    /// When the send is tried again.
    pub(crate) patience: Patience,
}

/// Has `recvmsg` tell how many bytes are in the receive queue (`linux/tcp.h`, Linux 4.18): the kind of its message, too.
pub const TCP_INQ: i32 = 36;

/// Short peeks of a stream that are followed by another one. A connection for one request need not set an option.
const COUNT_AFTER: u8 = 1;

/// Whether the kernel tells a stream's peeks how much is there ([`TCP_INQ`]). Where it does, and the peek took all of it,
/// nobody has to peek once more to be told that there is nothing: a call less per request and answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// It will be asked to, after so many short peeks more.
    After(u8),
    /// It does.
    Told,
    /// It cannot.
    Never,
}

/// See the [module](self).
pub(crate) struct Stream {
    fd: OwnedFd,
    pub(crate) phase: Phase,
    /// What `SO_PEEK_OFF` is in the kernel; none: not set yet, or not to be had.
    peek_place: Option<u32>,
    /// Bytes that the core has given up and the kernel still has.
    to_consume: u32,
    /// How much may be peeked at at once.
    look: Look,
    /// The front of the queue where it was read instead: it is not in the kernel any more.
    held: Option<Box<Held>>,
    /// The peer has ended its stream: what has come is all there will be.
    pub(crate) hung_up: bool,
    /// Whether peeks are told how much is there: asked for once the stream has been emptied a few times.
    count: Count,
    /// The last peek took all there was.
    is_empty: bool,
    /// The core has been told of the end of the stream: it will not peek again.
    pub(crate) end_was_told: bool,
    pacing: Pacing,
    /// A send that waits; allocated when it first happens.
    pub(crate) parked: Option<Box<Parked>>,
}

impl Stream {
    /// Starts to connect.
    pub(crate) fn connect(to: SocketAddr, outbound: &Outbound) -> io::Result<Self> {
        let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let stream = Self::over(sys::socket(family, libc::SOCK_STREAM, 0)?, Phase::Connecting);
        if !to.ip().is_loopback() {
            bind_outbound(stream.fd(), to, outbound, 0)?;
        }
        match sys::connect(stream.fd(), &to.into()) {
            Ok(()) => Ok(Self { phase: Phase::Open, ..stream }),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(stream),
            Err(error) => Err(error),
        }
    }

    /// Looks whether a connect that was not done at once is done by now.
    pub(crate) fn connect_again(&mut self, to: SocketAddr) -> io::Result<()> {
        match sys::connect(self.fd(), &to.into()) {
            Ok(()) => self.phase = Phase::Open,
            Err(error) if error.raw_os_error() == Some(libc::EALREADY) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A socket that connects already.
    pub(crate) fn connecting(fd: OwnedFd) -> Self {
        Self::over(fd, Phase::Connecting)
    }

    /// A connection that exists already.
    pub(crate) fn accepted(fd: OwnedFd) -> Self {
        Self::over(fd, Phase::Open)
    }

    fn over(fd: OwnedFd, phase: Phase) -> Self {
        let stream = Self {
            fd,
            phase,
            peek_place: None,
            to_consume: 0,
            look: Look::default(),
            held: None,
            hung_up: false,
            count: Count::After(COUNT_AFTER),
            is_empty: false,
            end_was_told: false,
            pacing: Pacing::default(),
            parked: None,
        };
        // The guest has cut and delayed its segments already; a keep-alive finds dead peers as the host would;
        // urgent data is plain data. None of these can fail on a TCP socket.
        for (level, name) in [
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::SOL_SOCKET, libc::SO_OOBINLINE),
        ] {
            let _ = sys::set_option(stream.fd(), level, name, 1);
        }
        stream
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The bare socket, for who moves bytes without looking at them.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// What became of the connect. To be asked when the socket has become writable, or has an error.
    pub(crate) fn finish_connect(&mut self, has_error: bool) -> io::Result<()> {
        if has_error {
            sys::take_error(self.fd())?;
        }
        self.phase = Phase::Open;
        Ok(())
    }

    /// Sends the spans in one call. At least one byte, or an error; `WouldBlock` where there is no room.
    pub(crate) fn send(&mut self, arena: &Arena, run: &[Span]) -> io::Result<usize> {
        const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut buffers = [EMPTY; GATHER_MAX];
        let count = run.len().min(GATHER_MAX);
        for (buffer, &span) in buffers.iter_mut().zip(run) {
            *buffer = arena.iovec(span);
        }
        // SAFETY: the spans lie in leases that the core keeps until the send has completed.
        let sent = unsafe { sys::send(self.fd(), &buffers[..count]) }?;
        self.pacing.on_sent(self.fd.as_fd(), sent);
        Ok(sent)
    }

    fn is_reading(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.is_reading())
    }

    /// Where an offset of the core's is in the kernel's queue.
    fn in_kernel(&self, offset: u32) -> u32 {
        offset.saturating_sub(self.held.as_ref().map_or(0, |held| held.len() as u32))
    }

    /// The most bytes that a peek may ask for now.
    pub(crate) fn peek_most(&self) -> u32 {
        if self.is_reading() { READ_MOST } else { self.look.most() }
    }

    /// Whether the time of a peek at this offset is to be taken.
    pub(crate) fn is_timed(&self, offset: u32) -> bool {
        !self.is_reading() && self.look.is_timed(self.in_kernel(offset))
    }

    /// A peek has brought so many bytes, and has taken so long if that was looked at. True: from now on what comes is read.
    pub(crate) fn on_peeked(&mut self, offset: u32, got: usize, took: Option<Duration>) -> bool {
        let offset = self.in_kernel(offset);
        !self.is_reading() && self.look.on_peeked(offset, got as u32, took) && self.hold()
    }

    /// Begins to read, if that can be.
    fn hold(&mut self) -> bool {
        // An error shows again at the next peek.
        if self.settle().is_err() || self.to_consume > 0 {
            return false;
        }
        self.held.get_or_insert_default().read_on();
        self.look = Look::default();
        // Reading moves the kernel's.
        self.peek_place = None;
        true
    }

    /// Fills `leases` behind their headrooms, in order, and gives the number of bytes. `WouldBlock`: nothing there
    /// yet; 0: the end of the stream.
    pub(crate) fn peek(
        &mut self,
        arena: &Arena,
        request: PeekRequest,
        leases: &[LeaseId],
        waste: &mut Waste,
    ) -> io::Result<usize> {
        if self.held.as_ref().is_some_and(|held| held.has(request.offset as usize)) {
            return self.show_held(arena, request, leases);
        }
        self.peek_in_kernel(arena, request, leases, waste)
    }

    /// Whether nothing of it is in memory that is not its own. What was read of it instead goes with it.
    pub(crate) fn is_portable(&mut self) -> bool {
        self.phase == Phase::Open
            && self.parked.as_ref().is_none_or(|parked| parked.run.is_empty() && !parked.shutdown)
            && self.settle().is_ok()
            && self.to_consume == 0
    }

    /// The same out of what was read instead, or is read now.
    fn show_held(
        &mut self,
        arena: &Arena,
        request: PeekRequest,
        leases: &[LeaseId],
    ) -> io::Result<usize> {
        self.is_empty = false;
        if self.is_reading() {
            // What is read begins behind what was given up.
            self.settle()?;
        }
        let Some(held) = &mut self.held else { return Ok(0) };
        let len = (request.len as usize).min(leases.len() * request.chunk());
        let shown = held.show(self.fd.as_fd(), request.offset as usize, len)?;
        for (&lease, part) in leases.iter().zip(shown.chunks(request.chunk())) {
            let span = Span { lease, start: HEADROOM as u32, len: part.len() as u32 };
            // SAFETY: the leases were taken for this peek and are shown to nobody yet.
            unsafe { arena.span(span) }.copy_from_slice(part);
        }
        Ok(shown.len())
    }

    fn peek_in_kernel(
        &mut self,
        arena: &Arena,
        request: PeekRequest,
        leases: &[LeaseId],
        waste: &mut Waste,
    ) -> io::Result<usize> {
        const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut buffers = [EMPTY; SKIPS_MAX + PEEK_LEASES_MAX];
        let place = self.in_kernel(request.offset) + self.to_consume;
        let skips = if waste.is_needed {
            waste.skip(place, &mut buffers)
        } else {
            self.seek(place).map(|()| 0)?
        };
        let mut left = request.len as usize;
        for (&lease, buffer) in leases.iter().zip(&mut buffers[skips..]) {
            let len = left.min(request.chunk());
            left -= len;
            *buffer = arena.iovec(Span { lease, start: HEADROOM as u32, len: len as u32 });
        }
        let buffers = &mut buffers[..skips + leases.len()];
        self.is_empty = false;
        if self.count == Count::Told {
            let mut control = Control::empty();
            // SAFETY: the leases were taken for this peek and are shown to nobody yet.
            let (got, queued) = unsafe { sys::peek_and_count(self.fd(), buffers, &mut control) }?;
            self.peek_place = Some(place + got as u32);
            // A FIN counts as a byte: nobody takes that one.
            self.is_empty = queued == self.peek_place;
            return Ok(got);
        }
        // SAFETY: the leases were taken for this peek and are shown to nobody yet; the waste area is nobody's.
        let got = unsafe { sys::peek(self.fd(), buffers) }?;
        if !waste.is_needed {
            self.peek_place = Some(place + got as u32);
            return Ok(got);
        }
        if got == 0 || got > place as usize {
            return Ok(got.saturating_sub(place as usize));
        }
        // Nothing beyond the place: not yet, or never again? Once the FIN is seen, everything before it is there.
        if !sys::has_peer_shut_down(self.fd())? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // SAFETY: as above.
        let got = unsafe { sys::peek(self.fd(), buffers) }?;
        if got <= place as usize {
            // What was skipped hides an error behind it.
            sys::take_error(self.fd())?;
        }
        Ok(got.saturating_sub(place as usize))
    }

    /// What follows the bytes of a peek that got less than it asked for. That alone does not say that the queue is empty: a
    /// read also stops at urgent data.
    pub(crate) fn after_short_peek(&mut self, waste: &Waste) -> PeekedThen {
        if self.held.is_some() {
            return PeekedThen::Unknown;
        }
        if self.hung_up {
            return if self.is_at_end(waste) { PeekedThen::End } else { PeekedThen::Unknown };
        }
        if self.is_empty {
            return PeekedThen::Empty;
        }
        self.count = match self.count {
            Count::After(0) if !waste.is_needed => {
                match sys::set_option(self.fd(), libc::IPPROTO_TCP, TCP_INQ, 1) {
                    Ok(()) => Count::Told,
                    Err(_) => Count::Never,
                }
            }
            Count::After(times) => Count::After(times.saturating_sub(1)),
            Count::Told => Count::Told,
            Count::Never => Count::Never,
        };
        PeekedThen::Unknown
    }

    /// Whether the stream ends where the last peek ended, as far as that can be said for the price of one call. Known
    /// early, the FIN goes with the last bytes, which spares the guest and us a frame each way.
    fn is_at_end(&mut self, waste: &Waste) -> bool {
        if waste.is_needed {
            return false;
        }
        let mut byte = [0_u8; 1];
        let mut buffer = [libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 }];
        // SAFETY: the buffer is ours. A short peek alone would not do: it also stops at urgent data.
        let got = unsafe { sys::peek(self.fd(), &mut buffer) };
        if matches!(got, Ok(1..)) {
            // The byte has moved the kernel's.
            self.peek_place = None;
        }
        matches!(got, Ok(0))
    }

    /// Moves the kernel's place, where it is another.
    fn seek(&mut self, place: u32) -> io::Result<()> {
        if self.peek_place != Some(place) {
            let value = i32::try_from(place).map_err(|_| io::ErrorKind::InvalidInput)?;
            sys::set_option(self.fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, value)?;
            self.peek_place = Some(place);
        }
        Ok(())
    }

    /// Gives bytes up. True: the stream is now to be settled at the end of the turn.
    pub(crate) fn consume(&mut self, bytes: u32) -> bool {
        let mut bytes = bytes;
        if let Some(held) = &mut self.held {
            bytes -= held.consume(bytes as usize) as u32;
            if held.len() == 0 && !held.is_reading() {
                self.held = None;
            }
        }
        let was_settled = self.to_consume == 0;
        self.to_consume += bytes;
        was_settled && bytes > 0
    }

    /// Lets the kernel drop what was given up.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        while self.to_consume > 0 {
            let taken = match sys::discard(self.fd(), self.to_consume as usize) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            if taken == 0 {
                return Ok(());
            }
            let taken = u32::try_from(taken).unwrap_or(u32::MAX).min(self.to_consume);
            self.to_consume -= taken;
            self.peek_place = self.peek_place.map(|place| place.saturating_sub(taken));
        }
        Ok(())
    }

    /// FIN, behind what was sent.
    pub(crate) fn shutdown(&self) -> io::Result<()> {
        sys::shutdown_write(self.fd())
    }

    /// Prepares the close, which happens when the stream is dropped.
    pub(crate) fn prepare_close(&mut self, how: CloseHow) {
        match how {
            // Bytes that the guest has acknowledged must not turn the close into a reset (RFC 1122, 4.2.2.13).
            CloseHow::Graceful => {
                let _ = self.settle();
            }
            CloseHow::Reset => {
                let _ = sys::reset_on_close(self.fd());
            }
        }
    }
}

/// Binds a socket to where connections to `to` shall leave from.
pub(crate) fn bind_outbound(
    fd: BorrowedFd<'_>,
    to: SocketAddr,
    outbound: &Outbound,
    port: u16,
) -> io::Result<()> {
    if let Some(interface) = outbound.interface(to.is_ipv4()) {
        sys::bind_to_device(fd, interface)?;
    }
    let from: Option<SocketAddr> = match to {
        SocketAddr::V4(_) => outbound.v4.map(|ip| (ip, port).into()),
        SocketAddr::V6(_) => outbound.v6.map(|ip| (ip, port).into()),
    };
    let Some(from) = from else { return Ok(()) };
    // Without this, bind would choose a port before the peer is known, and run out of them at 28,000.
    let _ = sys::set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
    sys::bind(fd, &SockAddr::from(from))
}

/// Where peeks put what they skip, on kernels without `SO_PEEK_OFF` for TCP.
pub(crate) struct Waste {
    pub(crate) is_needed: bool,
    area: Vec<u8>,
}

impl Waste {
    pub(crate) fn new(is_needed: bool) -> Self {
        Self { is_needed, area: if is_needed { vec![0; WASTE_BYTES] } else { Vec::new() } }
    }

    /// Fills the first vectors with the waste area, over and over, up to `place`. Gives how many.
    fn skip(&mut self, place: u32, buffers: &mut [libc::iovec]) -> usize {
        let mut left = place as usize;
        let mut count = 0;
        while left > 0 && count < SKIPS_MAX {
            let len = left.min(WASTE_BYTES);
            buffers[count] = libc::iovec { iov_base: self.area.as_mut_ptr().cast(), iov_len: len };
            left -= len;
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use usernet_lab::skip::skip_this;

    use super::*;
    use crate::held::HELD_FOR;

    /// Why a test of `SO_PEEK_OFF` cannot run.
    const NO_OFFSET: &str = "the kernel has no SO_PEEK_OFF for TCP (Linux 6.9)";

    fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let far = TcpStream::connect(listener.local_addr().expect("its address")).expect("room");
        let (near, _) = listener.accept().expect("a connection");
        (Stream::accepted(near.into()), far)
    }

    /// The bytes of one peek.
    fn peek(
        stream: &mut Stream,
        arena: &mut Arena,
        waste: &mut Waste,
        offset: u32,
        len: u32,
    ) -> io::Result<Vec<u8>> {
        let request = PeekRequest { offset, len, chunk: 1000 };
        let leases: Vec<_> =
            (0..request.leases()).map(|_| arena.take_large().expect("room")).collect();
        let got = stream.peek(arena, request, &leases, waste);
        let mut bytes = Vec::new();
        for lease in leases {
            let len = (*got.as_ref().unwrap_or(&0) - bytes.len()).min(1000);
            // SAFETY: held, and looked at by nobody else.
            bytes.extend_from_slice(&unsafe { arena.show(lease, HEADROOM + len) }[HEADROOM..]);
            arena.release(lease);
        }
        got.map(|_| bytes)
    }

    /// Peeks, consumes, peeks again; then the end of the stream, and an error.
    fn peeks_and_consumes(mut waste: Waste, is_read: bool) {
        let (mut stream, mut far) = pair();
        assert!(!is_read || stream.hold());
        let mut arena = Arena::new(256).expect("memory");
        let sent: Vec<u8> = (0..6000_u32).map(|i| (i % 251) as u8).collect();
        let empty = peek(&mut stream, &mut arena, &mut waste, 0, 100);
        assert_eq!(empty.expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
        far.write_all(&sent).expect("room");
        let mut at = |stream: &mut Stream, offset: u32, len: u32| {
            peek(stream, &mut arena, &mut waste, offset, len)
        };
        assert_eq!(at(&mut stream, 0, 2500).expect("bytes"), sent[..2500]);
        assert_eq!(at(&mut stream, 2500, 2500).expect("bytes"), sent[2500..5000]);
        assert_eq!(stream.consume(1000), !is_read, "what is read needs not be settled");
        assert!(!stream.consume(500), "it is to be settled already");
        assert_eq!(at(&mut stream, 0, 100).expect("bytes"), sent[1500..1600], "as if consumed");
        stream.settle().expect("bytes are there");
        assert_eq!(at(&mut stream, 100, 100).expect("bytes"), sent[1600..1700]);
        assert_eq!(at(&mut stream, 0, 9000).expect("bytes"), sent[1500..]);
        let nothing = at(&mut stream, 4500, 10).expect_err("nothing beyond");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        far.shutdown(Shutdown::Write).expect("open");
        assert_eq!(at(&mut stream, 4500, 10).expect("the end"), b"");
        assert_eq!(at(&mut stream, 4400, 10).expect("bytes"), sent[5900..5910]);
        stream.consume(4500);
        stream.settle().expect("bytes are there");
        assert_eq!(at(&mut stream, 0, 10).expect("the end"), b"");
    }

    #[test]
    fn peeking_at_an_offset_leaves_the_kernel_the_place() {
        if !crate::caps::Caps::probe().tcp_peek_offset {
            return skip_this(NO_OFFSET);
        }
        peeks_and_consumes(Waste::new(false), false);
    }

    #[test]
    fn a_stream_that_is_read_looks_the_same() {
        peeks_and_consumes(Waste::new(false), true);
    }

    #[test]
    fn a_stream_is_read_for_a_while_and_peeked_at_again_without_a_seam() {
        let (mut stream, mut far) = pair();
        let byte = |at: usize| (at % 251) as u8;
        let sender = std::thread::spawn(move || {
            let bytes: Vec<u8> = (0..12 << 20).map(byte).collect();
            far.write_all(&bytes).map(|()| far)
        });
        let mut arena = Arena::new(256).expect("memory");
        let mut waste = Waste::new(!crate::caps::Caps::probe().tcp_peek_offset);
        let lease = arena.take_large().expect("room");
        let (mut consumed, mut in_flight, mut was_read, mut is_over) = (0, 0, 0, false);
        while consumed < 12 << 20 {
            let request = PeekRequest { offset: in_flight as u32, len: 50_000, chunk: 50_000 };
            let got = match stream.peek(&arena, request, &[lease], &mut waste) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                got => got.expect("bytes"),
            };
            // SAFETY: held, and looked at by nobody else.
            let bytes = &unsafe { arena.show(lease, HEADROOM + got) }[HEADROOM..];
            let at = consumed + in_flight;
            assert!(bytes.iter().zip(at..).all(|(&b, at)| b == byte(at)), "behind {at}");
            in_flight += got;
            // Some of it is in the kernel's queue when the reading begins.
            if was_read == 0 && at >= 1 << 20 && in_flight > 1000 {
                assert!(stream.hold());
                // Acknowledged before it was read, and not settled yet.
                stream.consume(1000);
                (consumed, in_flight) = (consumed + 1000, in_flight - 1000);
                // What was peeked at and not given up is read as well, and not shown again.
                was_read = in_flight;
            }
            was_read += if stream.held.is_some() { got } else { 0 };
            is_over |= was_read > 0 && stream.held.is_none();
            if in_flight >= 150_000 || got == 0 {
                let done = if in_flight > 100_000 { in_flight - 20_000 } else { in_flight };
                stream.consume(done as u32);
                stream.settle().expect("bytes are there");
                (consumed, in_flight) = (consumed + done, in_flight - done);
            }
        }
        assert!(was_read >= HELD_FOR && is_over, "{was_read} bytes were read");
        sender.join().expect("no panic").expect("all of it was taken");
    }

    #[test]
    fn urgent_data_before_the_end_loses_no_byte() {
        for is_read in [false, true] {
            let (mut stream, mut far) = pair();
            far.write_all(b"before").expect("room");
            assert_eq!(rustix::net::send(&far, b"!", rustix::net::SendFlags::OOB), Ok(1));
            far.write_all(b"after").expect("room");
            far.shutdown(Shutdown::Write).expect("open");
            stream.hung_up = true;
            assert!(!is_read || stream.hold());
            let (mut all, mut waste) = (0, Waste::new(!crate::caps::Caps::probe().tcp_peek_offset));
            let mut arena = Arena::new(256).expect("memory");
            let mut bytes = Vec::new();
            for _ in 0..10 {
                let part = peek(&mut stream, &mut arena, &mut waste, all, 1000).expect("bytes");
                if part.is_empty() {
                    break;
                }
                all += part.len() as u32;
                bytes.extend(part);
                stream.after_short_peek(&waste);
            }
            assert_eq!(String::from_utf8_lossy(&bytes), "before!after", "read: {is_read}");
        }
    }

    #[test]
    fn peeking_without_an_offset_of_the_kernel_s_skips_by_reading() {
        peeks_and_consumes(Waste::new(true), false);
    }

    #[test]
    fn a_steady_flow_sets_the_place_once() {
        if !crate::caps::Caps::probe().tcp_peek_offset {
            return skip_this(NO_OFFSET);
        }
        let (mut stream, mut far) = pair();
        let mut arena = Arena::new(256).expect("memory");
        let mut waste = Waste::new(false);
        for round in 0..10_u32 {
            far.write_all(&[round as u8; 1000]).expect("room");
            let at = if round == 0 { 0 } else { 1000 };
            let got = peek(&mut stream, &mut arena, &mut waste, at, 1000).expect("bytes");
            assert_eq!(got, [round as u8; 1000]);
            assert_eq!(stream.peek_place, Some(at + 1000));
            let level = libc::SOL_SOCKET;
            let place = sys::option(stream.fd(), level, libc::SO_PEEK_OFF).expect("an option");
            assert_eq!(stream.peek_place, Some(place as u32), "the mirror is right");
            if round > 0 {
                stream.consume(1000);
                stream.settle().expect("bytes are there");
                let place = sys::option(stream.fd(), level, libc::SO_PEEK_OFF).expect("one");
                assert_eq!(stream.peek_place, Some(place as u32), "the mirror is right");
            }
        }
    }

    #[test]
    fn a_reset_behind_what_was_peeked_is_an_error_and_no_end() {
        let without_offset = !crate::caps::Caps::probe().tcp_peek_offset;
        for (is_needed, is_read) in [(true, false), (without_offset, false), (false, true)] {
            let (mut stream, mut far) = pair();
            assert!(!is_read || stream.hold());
            let mut arena = Arena::new(256).expect("memory");
            let mut waste = Waste::new(is_needed);
            far.write_all(b"before").expect("room");
            let got = peek(&mut stream, &mut arena, &mut waste, 0, 100).expect("bytes");
            assert_eq!(got, b"before");
            sys::reset_on_close(far.as_fd()).expect("open");
            drop(far);
            let told = peek(&mut stream, &mut arena, &mut waste, 6, 100).expect_err("reset");
            assert_eq!(told.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    /// One short peek, and what follows its bytes. Bytes sent before are there: the loopback delivers within the call.
    fn after_peek(stream: &mut Stream, offset: u32) -> (usize, PeekedThen) {
        let mut arena = Arena::new(256).expect("memory");
        let mut waste = Waste::new(!crate::caps::Caps::probe().tcp_peek_offset);
        let lease = arena.take_large().expect("room");
        let request = PeekRequest { offset, len: 60_000, chunk: 60_000 };
        let got = stream.peek(&arena, request, &[lease], &mut waste).expect("bytes are there");
        let then = stream.after_short_peek(&waste);
        arena.release(lease);
        (got, then)
    }

    #[test]
    fn a_stream_that_was_emptied_twice_tells_that_it_is_empty() {
        if !crate::caps::Caps::probe().tcp_peek_offset {
            return skip_this(NO_OFFSET);
        }
        let (mut stream, mut far) = pair();
        let mut at = 0;
        for then in [PeekedThen::Unknown, PeekedThen::Unknown, PeekedThen::Empty] {
            far.write_all(b"answer").expect("room");
            assert_eq!(after_peek(&mut stream, at), (6, then));
            at += 6;
        }
        stream.consume(at);
        stream.settle().expect("bytes are there");
        far.write_all(b"more").expect("room");
        assert_eq!(after_peek(&mut stream, 0), (4, PeekedThen::Empty));
        far.write_all(b"last").expect("room");
        drop(far);
        assert_eq!(after_peek(&mut stream, 4), (4, PeekedThen::Unknown), "the end is there, too");
    }

    #[test]
    fn a_peek_that_stops_at_urgent_data_does_not_say_that_nothing_follows() {
        if !crate::caps::Caps::probe().tcp_peek_offset {
            return skip_this(NO_OFFSET);
        }
        let (mut stream, mut far) = pair();
        for at in 0..3 {
            far.write_all(b"a").expect("room");
            after_peek(&mut stream, at);
        }
        far.write_all(b"before").expect("room");
        let urgent = rustix::net::SendFlags::OOB;
        assert_eq!(rustix::net::send(&far, b"!", urgent).expect("room"), 1);
        far.write_all(b"behind").expect("room");
        assert_eq!(after_peek(&mut stream, 3), (6, PeekedThen::Unknown));
        assert_eq!(after_peek(&mut stream, 9), (7, PeekedThen::Empty));
    }

    #[test]
    fn a_close_with_reset_is_a_reset() {
        let (mut stream, mut far) = pair();
        stream.prepare_close(CloseHow::Reset);
        drop(stream);
        let told = far.read(&mut [0; 1]).expect_err("reset");
        assert_eq!(told.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_graceful_close_after_everything_was_consumed_is_none() {
        let (mut stream, mut far) = pair();
        far.write_all(b"acknowledged").expect("room");
        let mut arena = Arena::new(256).expect("memory");
        let mut waste = Waste::new(!crate::caps::Caps::probe().tcp_peek_offset);
        peek(&mut stream, &mut arena, &mut waste, 0, 100).expect("bytes");
        stream.consume(12);
        stream.prepare_close(CloseHow::Graceful);
        drop(stream);
        assert_eq!(far.read(&mut [0; 1]).expect("the end"), 0);
    }
}
