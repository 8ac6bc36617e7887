//! What the driver of a tunnel counts, beside the tunnel's own counters.

use crate::counters::counters;

counters! {
    /// Turns of the loop.
    Turns = "turns",
    /// Waits that ended without going to sleep.
    WaitsAwake = "waits_awake",
    /// Packets, or super-frames, that the guest sent.
    FromGuest = "from_guest",
    /// Packets, or super-frames, that the guest got.
    ToGuest = "to_guest",
    /// Trains that came, of one datagram or more.
    FromWire = "from_wire",
    /// Trains that went, of one datagram or more.
    ToWire = "to_wire",
    /// Trains that the kernel would not cut, and that were sent one by one.
    TrainsCut = "trains_cut",
    /// Times that a socket was full and was waited for.
    WireWaits = "wire_waits",
    /// Trains that were lost because a socket stayed full.
    WireFull = "wire_full",
    /// Datagrams that the kernel refused to send: no route, no permission, no such address.
    WireRefused = "wire_refused",
    /// Reads of a socket that failed for another reason than that it is empty.
    WireErrors = "wire_errors",
    /// Times that a peer was no longer answered from the address that it had spoken to: it is not ours any more.
    SourcesLost = "sources_lost",
    /// Packets with an impossible virtio-net header.
    BadVnetHeaders = "bad_vnet_headers",
    /// Packets that the device did not take: it is down, or the kernel had no memory.
    DeviceRefused = "device_refused",
}
