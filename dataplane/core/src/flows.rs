//! What can be told about a flow while it lives.

use core::net::SocketAddr;
use core::time::Duration;

/// The kinds of flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowKind {
    /// TCP, through the link.
    Tcp,
    /// TCP, joined to the guest's loopback in the kernel.
    Spliced,
    /// A UDP mapping.
    Udp,
    /// A ping mapping.
    Ping,
}

/// A flow as `usernet flows` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Its kind.
    pub kind: FlowKind,
    /// State, in words that `ss` users know: `ESTAB`, `SYN-SENT`, `FIN-WAIT`, `UNCONN`.
    pub state: &'static str,
    /// Whether the guest opened it.
    pub is_outbound: bool,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end as the guest sees it; none: any (endpoint-independent mapping).
    pub remote: Option<SocketAddr>,
    /// The other end as the host sees it, where it differs in kind: the translated address, or a mapping's
    /// local port.
    pub host: Option<SocketAddr>,
    /// Payload bytes from the guest.
    pub bytes_from_guest: u64,
    /// Payload bytes to the guest.
    pub bytes_to_guest: u64,
    /// Time since the last packet.
    pub idle: Duration,
}
