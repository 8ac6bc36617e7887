//! Datagrams on their way out, laid one behind the other so that the kernel sends them with one call (`UDP_SEGMENT`).

use std::net::SocketAddr;

use usernet_core::TunnelOut;

use super::counters::{Counter, Counters};

/// The kernel's limit (`UDP_MAX_SEGMENTS`).
const DATAGRAMS_MAX: usize = 64;
/// The largest payload of UDP over IPv4: 65,535 less 28 bytes of headers.
const WIRE4_BYTES_MAX: usize = 65_507;
/// That over IPv6, where the headers take 20 bytes more of what the kernel allows for a train.
const WIRE6_BYTES_MAX: usize = 65_487;
/// Room for the largest of our own messages behind a full train.
const ROOM_BYTES_MIN: usize = 256;

/// The most bytes of a datagram, or a train, to there.
pub(super) fn wire_bytes_max(to: SocketAddr) -> usize {
    if to.is_ipv4() { WIRE4_BYTES_MAX } else { WIRE6_BYTES_MAX }
}

/// Datagrams of one size for one place; the last one may be shorter.
pub(super) struct Train {
    bytes: Box<[u8]>,
    /// Where it goes; meaningless while it is empty.
    to: SocketAddr,
    /// Bytes of each datagram but the last.
    size: usize,
    len: usize,
    datagrams: usize,
}

impl Train {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; WIRE4_BYTES_MAX + ROOM_BYTES_MIN].into_boxed_slice(),
            to: SocketAddr::from(([0, 0, 0, 0], 0)),
            size: 0,
            len: 0,
            datagrams: 0,
        }
    }

    /// Sends what is there if a datagram of `size` bytes cannot follow it. The datagram may then be written to
    /// [`room`](Self::room).
    pub(super) fn prepare(
        &mut self,
        to: SocketAddr,
        size: usize,
        counters: &mut Counters,
        out: &mut dyn TunnelOut,
    ) {
        let is_short = !self.len.is_multiple_of(self.size.max(1));
        if self.len != 0
            && (to != self.to
                || size > self.size
                || is_short
                || self.datagrams == DATAGRAMS_MAX
                || self.len + size > wire_bytes_max(to))
        {
            self.flush(counters, out);
        }
    }

    /// Behind the train. At least as long as what [`prepare`](Self::prepare) was told, and as our own messages.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.len..]
    }

    /// The datagram that was prepared has been written.
    pub(super) fn extend(&mut self, to: SocketAddr, size: usize) {
        if self.len == 0 {
            (self.to, self.size) = (to, size);
        }
        self.len += size;
        self.datagrams += 1;
    }

    /// Sends what is there.
    pub(super) fn flush(&mut self, counters: &mut Counters, out: &mut dyn TunnelOut) {
        if self.len == 0 {
            return;
        }
        counters.add(Counter::DatagramsToWire, self.datagrams as u64);
        counters.count(Counter::TrainsToWire);
        out.to_wire(self.to, &self.bytes[..self.len], self.size);
        (self.len, self.datagrams) = (0, 0);
    }
}
