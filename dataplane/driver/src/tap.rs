//! The link: frames in and out, one per call; a TAP, with or without a virtio-net header, or a socket of packets.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use usernet_core::op::{Checksum, Gso};
use usernet_core::packet::offload::{complete_checksum, cut};
use usernet_core::{Config, LeaseId, Offload, Span};

use crate::arena::{Arena, FRONT_BYTES, LARGE_ROOM};
use crate::backend::{FromTap, RawFrame};
use crate::backlog::Backlog;
use crate::capture::Capture;
use crate::runtime::Ended;
use crate::setup::{LinkKind, LinkOffload};
use crate::sys;
use crate::vnet::{self, HEADER_BYTES_MAX, Malformed};

/// More identifications than the pieces of one frame need.
const FRAGMENTED_PER_FRAME: u32 = 1 << 12;

/// Send buffer asked for where the link is a socket.
const SEND_BUFFER_BYTES: i32 = 4 << 20;

const _: () = assert!(HEADER_BYTES_MAX <= FRONT_BYTES, "the header fits in front of the frame");

/// See the [module](self).
pub(crate) struct Tap {
    fd: OwnedFd,
    kind: LinkKind,
    /// Of a link that is a socket: frames that wait for room.
    backlog: Backlog,
    offload: LinkOffload,
    /// Bytes of virtio-net header.
    header_bytes: usize,
    capture: Option<Capture>,
    /// Bytes of IP that a frame may have when it is cut here.
    mtu: u16,
    /// Of the last frame that was fragmented here. Only the guest sees it, and the guest alone is hurt by guessing it.
    identification: u32,
}

impl Tap {
    /// Takes a queue of the device, or the socket, over and makes it nonblocking.
    pub(crate) fn new(
        fd: OwnedFd,
        (kind, offload): (LinkKind, LinkOffload),
        config: &Config,
        capture: Option<Capture>,
    ) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        if kind == LinkKind::Packets {
            // The kernel clamps it to net.core.wmem_max.
            let (level, name) = (libc::SOL_SOCKET, libc::SO_SNDBUF);
            let _ = sys::set_option(fd.as_fd(), level, name, SEND_BUFFER_BYTES);
        }
        let header_bytes = usize::from(offload.vnet_header_bytes);
        // The guest tells fragments of several workers apart, as long as no frame makes more pieces than this.
        let apart = FRAGMENTED_PER_FRAME / u32::from(config.share.shards);
        Ok(Self {
            fd,
            kind,
            backlog: Backlog::default(),
            offload,
            header_bytes,
            capture,
            mtu: config.mtu,
            identification: (config.seed as u32)
                .wrapping_add(apart * u32::from(config.share.own.0)),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where a read into `lease` has to put the virtio-net header, and how much may come.
    pub(crate) fn read_target(&self, arena: &Arena, lease: LeaseId) -> (*mut u8, usize) {
        let pointer = arena.start(lease).wrapping_sub(self.header_bytes);
        (pointer, LARGE_ROOM + self.header_bytes)
    }

    /// Reads a frame into a large lease.
    pub(crate) fn read_frame(&self, arena: &mut Arena) -> io::Result<FromTap> {
        let Some(lease) = arena.take_large() else { return Ok(FromTap::Starved) };
        let (pointer, len) = self.read_target(arena, lease);
        // SAFETY: the lease was taken for this read; the range is the slot's, from inside its front on.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), pointer.cast(), len) };
        match sys::check_bytes(read) {
            // A TAP never says so; a socket at its end, or when it got a message without bytes.
            Ok(0) => {
                arena.release(lease);
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(bytes) => Ok(FromTap::Frame(RawFrame { lease, bytes })),
            Err(error) => {
                arena.release(lease);
                if sys::would_block(&error) { Ok(FromTap::Empty) } else { Err(error) }
            }
        }
    }

    /// What was read: bytes of the frame proper, and what the link says of it.
    pub(crate) fn decode(
        &mut self,
        arena: &Arena,
        raw: RawFrame,
    ) -> Result<(usize, Offload), Malformed> {
        let bytes = raw.bytes.checked_sub(self.header_bytes).ok_or(Malformed)?;
        let offload = if self.header_bytes == 0 {
            Offload::default()
        } else {
            let (pointer, _) = self.read_target(arena, raw.lease);
            // SAFETY: just read, that many bytes; the lease is held and nobody else looks at it.
            let header = unsafe { std::slice::from_raw_parts(pointer, self.header_bytes) };
            vnet::decode(header, bytes)?
        };
        Ok((bytes, offload))
    }

    /// Writes a frame. The lease stays the caller's.
    pub(crate) fn write(&mut self, arena: &Arena, span: Span, offload: Offload) -> io::Result<()> {
        // SAFETY: the core has handed the lease over with the op; nobody else looks at it.
        let frame = unsafe { arena.span(span) };
        if !self.can_cut(offload.gso) {
            return self.write_cut(frame, offload);
        }
        let offload = self.without_checksum(frame, offload);
        if self.kind == LinkKind::Packets {
            return self.backlog.send(self.fd.as_fd(), [frame, &[]]);
        }
        let pointer = arena.span_start(span).wrapping_sub(self.header_bytes);
        if self.header_bytes > 0 {
            let header = vnet::encode(offload, frame);
            // SAFETY: `header_bytes` are at most `FRONT_BYTES`, which every slot has in front of its spans.
            let place = unsafe { std::slice::from_raw_parts_mut(pointer, self.header_bytes) };
            place.copy_from_slice(&header[..self.header_bytes]);
        }
        let len = self.header_bytes + span.len as usize;
        // SAFETY: header and frame lie one behind the other in the slot.
        let written = unsafe { libc::write(self.fd.as_raw_fd(), pointer.cast(), len) };
        sys::check_bytes(written).map(drop)
    }

    /// Writes a frame to the capture file, if there is one.
    pub(crate) fn capture(&self, frame: &[u8], offload: Offload) -> io::Result<()> {
        match &self.capture {
            Some(capture) => capture.write(frame, offload),
            None => Ok(()),
        }
    }

    /// Writes a frame in pieces that the link can carry: by the first error of any of them.
    fn write_cut(&mut self, frame: &[u8], offload: Offload) -> io::Result<()> {
        // Each piece is complete: an empty virtio-net header says so.
        let vnet = [0_u8; HEADER_BYTES_MAX];
        let (fd, vnet) = (self.fd.as_fd(), &vnet[..self.header_bytes]);
        let (kind, backlog) = (self.kind, &mut self.backlog);
        // Train after train counts on from its own identification; a train has fewer pieces than this.
        self.identification = self.identification.wrapping_add(FRAGMENTED_PER_FRAME);
        let mut result = Ok(());
        let emit = &mut |headers: &[u8], payload: &[u8]| {
            let parts = [IoSlice::new(vnet), IoSlice::new(headers), IoSlice::new(payload)];
            let written = match kind {
                LinkKind::Tap => rustix::io::writev(fd, &parts).map(drop).map_err(io::Error::from),
                LinkKind::Packets => backlog.send(fd, [headers, payload]),
            };
            if result.is_ok() {
                result = written;
            }
        };
        cut(frame, offload, self.mtu, self.identification, emit)
            .map_err(|usernet_core::packet::Malformed| io::ErrorKind::InvalidData)?;
        result
    }

    /// The largest datagrams that are worth joining into trains for the guest: those that need not be fragmented, and
    /// none if the trains would be cut here again.
    pub(crate) fn joined_max(&self) -> usize {
        const HEADERS: usize = 40 + 8;
        if self.offload.uso { usize::from(self.mtu).saturating_sub(HEADERS) } else { 0 }
    }

    /// Which it is.
    pub(crate) fn kind(&self) -> LinkKind {
        self.kind
    }

    /// The socket has room again: what waits is sent.
    pub(crate) fn on_room(&mut self) -> io::Result<()> {
        self.backlog.drain(self.fd.as_fd())
    }

    /// Why there will be no more frames, if an error of reading says so.
    pub(crate) fn end(&self, error: &io::Error) -> Option<Ended> {
        match self.kind {
            LinkKind::Tap => is_gone(error).then_some(Ended::NamespaceGone),
            LinkKind::Packets => self.has_peer_closed(error).then_some(Ended::PeerClosed),
        }
    }

    fn has_peer_closed(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(errno) => matches!(errno, libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN),
            // A message without bytes reads like the end.
            None => sys::has_peer_shut_down(self.fd()).unwrap_or(true),
        }
    }

    /// Whether the link cuts such a frame itself.
    fn can_cut(&self, gso: Gso) -> bool {
        match gso {
            Gso::None => true,
            Gso::Tcp4 { .. } | Gso::Tcp6 { .. } => self.offload.tso,
            Gso::Udp { .. } => self.offload.uso,
            Gso::Fragment => false,
        }
    }

    /// Completes the checksum where the link does not.
    fn without_checksum(&self, frame: &mut [u8], offload: Offload) -> Offload {
        if self.offload.checksum {
            return offload;
        }
        complete_checksum(frame, &offload);
        Offload { checksum: Checksum::Unchecked, gso: offload.gso }
    }
}

/// Whether an error says that the device is gone for good: its namespace, or it itself, was deleted
/// (`tun_chr_read_iter`: `EBADFD`).
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::ENXIO | libc::EFAULT))
}
