//! What comes out of a tunnel goes to the kernel at once: there is nothing to keep, and what cannot be sent is lost, as on
//! any wire.

use std::io;
use std::net::{IpAddr, SocketAddr};

use usernet_core::Offload;
use usernet_core::tunnel::TunnelOut;

use super::counters::{Counter, Counters};
use super::device::Device;
use super::sources::Sources;
use super::wire::{Envelope, Wire, pieces};

/// How long a full socket is waited for. A guest's packets wait in the device meanwhile, which holds its flows back; what
/// comes from the wire waits in the socket.
const ROOM_WAIT_MS: i32 = 20;

/// Both ends of a tunnel, and what is counted there.
pub(super) struct Out {
    pub(super) device: Device,
    pub(super) wire: Wire,
    pub(super) counters: Counters,
    /// From which address each peer is answered.
    pub(super) sources: Sources,
    /// Something was sent or given to the guest since this was last set to false: so it was a peer who spoke.
    pub(super) has_spoken: bool,
    /// The tunnel's name, for the log.
    name: String,
    envelope: Envelope,
    /// Which refusals have been told.
    told: Vec<i32>,
}

impl Out {
    pub(super) fn new(name: String, device: Device, wire: Wire) -> Self {
        Self {
            device,
            wire,
            counters: Counters::default(),
            sources: Sources::new(),
            has_spoken: false,
            name,
            envelope: Envelope::new(),
            told: Vec::new(),
        }
    }

    /// Sends one call's worth of datagrams.
    fn send(&mut self, to: SocketAddr, piece: &[u8], size: usize) -> io::Result<()> {
        let mut from = self.sources.of(to);
        let mut has_waited = false;
        loop {
            let sent = self.wire.send(&mut self.envelope, (to, from), piece, size);
            let Err(error) = sent else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::EAGAIN) if !has_waited => {
                    has_waited = true;
                    self.counters.count(Counter::WireWaits);
                    self.wire.wait_for_room(to, ROOM_WAIT_MS);
                }
                // What an ICMP message said of an earlier datagram. This one has not been tried.
                Some(libc::ECONNREFUSED) if !has_waited => has_waited = true,
                // The address that the peer spoke to is not ours any more (EINVAL, EADDRNOTAVAIL), or leads nowhere now.
                Some(
                    libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH,
                ) if from.is_some() && piece.len() <= size => self.lose(to, &mut from),
                _ => return Err(error),
            }
        }
    }

    fn lose(&mut self, to: SocketAddr, from: &mut Option<IpAddr>) {
        self.counters.count(Counter::SourcesLost);
        self.sources.forget(to);
        *from = None;
    }

    /// Sends datagrams that the kernel would not cut: they are larger than the way's MTU and have to be fragmented, or the
    /// interface cannot do it.
    fn send_one_by_one(&mut self, to: SocketAddr, piece: &[u8], size: usize) {
        self.counters.count(Counter::TrainsCut);
        for datagram in piece.chunks(size) {
            if let Err(error) = self.send(to, datagram, size) {
                self.on_refused(to, &error);
            }
        }
    }

    fn on_refused(&mut self, to: SocketAddr, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        if errno == libc::EAGAIN || errno == libc::ENOBUFS {
            return self.counters.count(Counter::WireFull);
        }
        self.counters.count(Counter::WireRefused);
        // Each reason once: a peer that cannot be reached is tried again and again.
        if !self.told.contains(&errno) {
            self.told.push(errno);
            tracing::warn!("{}: cannot send to {to}: {error}", self.name);
        }
    }
}

impl TunnelOut for Out {
    fn to_wire(&mut self, to: SocketAddr, train: &[u8], size: usize) {
        self.has_spoken = true;
        for piece in pieces(train, size) {
            self.counters.count(Counter::ToWire);
            match self.send(to, piece, size) {
                Ok(()) => {}
                Err(error) if piece.len() > size && is_about_cutting(&error) => {
                    self.send_one_by_one(to, piece, size);
                }
                Err(error) => self.on_refused(to, &error),
            }
        }
    }

    fn to_guest(&mut self, packet: &[u8], offload: Offload) {
        self.has_spoken = true;
        self.counters.count(Counter::ToGuest);
        if self.device.write(packet, offload).is_err() {
            self.counters.count(Counter::DeviceRefused);
        }
    }
}

/// Whether datagrams may go one by one that could not go together: no `UDP_SEGMENT` in this kernel, an interface without
/// checksums (`EIO`), datagrams larger than the MTU (`udp_send_skb` in net/ipv4/udp.c).
fn is_about_cutting(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::ENOPROTOOPT | libc::EOPNOTSUPP)
    )
}
