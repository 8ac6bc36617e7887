//! The boundary between a tunnel and whatever drives it: packets of the guest's on one side, datagrams on the other.
//!
//! A tunnel is a device of the guest's with addresses and routes of its own, beside the link: what the guest's kernel
//! routes into it is sealed and sent to a peer, what a peer sends is opened and given to the guest's kernel. Nothing of
//! it is translated, so it shares nothing with a [`Shard`](crate::Shard). Like that one it has no clock, no socket
//! and no device: the driver brings them, the simulator brings its own.

use core::net::SocketAddr;

use crate::op::Offload;
use crate::time::Instant;

/// What seals and opens. All packets are IP, without an Ethernet header; offsets in an [`Offload`] count from their
/// first byte.
pub trait Tunnel {
    /// The guest sends a packet, or a super-frame of TCP or UDP as `offload` says. It may be overwritten.
    fn on_packet(
        &mut self,
        now: Instant,
        packet: &mut [u8],
        offload: Offload,
        out: &mut dyn TunnelOut,
    );

    /// Datagrams have come from the wire: `size` bytes each, the last one may be shorter. They may be overwritten.
    fn on_datagrams(
        &mut self,
        now: Instant,
        from: SocketAddr,
        train: &mut [u8],
        size: usize,
        out: &mut dyn TunnelOut,
    );

    /// What is due by time: keys to renew, silence to break.
    fn tick(&mut self, now: Instant, out: &mut dyn TunnelOut);

    /// The end of a turn: what waits for more of its kind goes out.
    fn flush(&mut self, now: Instant, out: &mut dyn TunnelOut);

    /// When to come back with [`tick`](Self::tick); none: nothing is under way.
    fn next_deadline(&self) -> Option<Instant>;
}

/// Where a tunnel puts what comes out. What is given is gone when the call returns: sent, or lost and counted.
pub trait TunnelOut {
    /// Datagrams for a peer: `size` bytes each, the last one may be shorter.
    fn to_wire(&mut self, to: SocketAddr, train: &[u8], size: usize);

    /// A packet, or a super-frame, for the guest.
    fn to_guest(&mut self, packet: &[u8], offload: Offload);
}
