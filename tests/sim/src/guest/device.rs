//! The guest's network card.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;

/// Frames that the card keeps before the stack has to wait.
const QUEUE: usize = 64;

/// A frame as the stack leaves it.
pub(super) struct Sent {
    pub(super) bytes: Vec<u8>,
    /// Not 0: a TCP super-frame, to be cut to this size.
    pub(super) segment: u16,
}

/// Two queues.
pub(super) struct Card {
    pub(super) to_guest: VecDeque<Vec<u8>>,
    pub(super) from_guest: VecDeque<Sent>,
    pub(super) mtu: usize,
    /// Super-frames and partial checksums, as a TAP with offload has.
    pub(super) has_offload: bool,
}

impl phy::Device for Card {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        if self.has_offload {
            capabilities.checksum.tcp = Checksum::Rx;
            // smoltcp drops IPv6 super-frames: it takes them for packets to be fragmented.
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(60_000);
        }
        capabilities
    }

    fn receive(&mut self, _now: Instant) -> Option<(RxToken, TxToken<'_>)> {
        let bytes = self.to_guest.pop_front()?;
        Some((RxToken(bytes), TxToken { queue: &mut self.from_guest, meta: PacketMeta::default() }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        let has_room = self.from_guest.len() < QUEUE;
        has_room.then(|| TxToken { queue: &mut self.from_guest, meta: PacketMeta::default() })
    }
}

/// A frame for the stack.
pub(super) struct RxToken(Vec<u8>);

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for one of its own.
pub(super) struct TxToken<'a> {
    queue: &'a mut VecDeque<Sent>,
    meta: PacketMeta,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        let segment = self.meta.segmentation_offload_size.map_or(0, |size| size.get());
        self.queue.push_back(Sent { bytes, segment });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}
