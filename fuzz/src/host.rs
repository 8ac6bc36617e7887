//! The host's sockets as the driver sees them: what is outstanding, what lies in their queues.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use usernet_core::op::{DatagramKind, Op, SocketId, Span};

/// The part of a `Peek` that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub struct Peek {
    /// Bytes to skip.
    pub offset: u32,
    /// The most bytes wanted.
    pub len: u32,
    /// The most bytes per buffer.
    pub chunk: u32,
}

/// A TCP connection.
#[derive(Debug, Default)]
pub struct Stream {
    /// A `Connect` is outstanding.
    pub is_connecting: bool,
    /// A `Connect` succeeded, or an accepted connection was adopted.
    pub is_connected: bool,
    /// The `Send` run that is outstanding or still being given.
    pub sending: Vec<Span>,
    /// The run is complete.
    pub is_run_whole: bool,
    /// The outstanding `Peek`.
    pub peek: Option<Peek>,
    /// Bytes that came from the host's peer and were not consumed.
    pub queued: u32,
    /// The peer has sent FIN behind them.
    pub has_ended: bool,
    /// `Shutdown` was given.
    pub is_shut: bool,
}

/// A socket that the core has opened.
#[derive(Debug)]
pub enum Kind {
    /// TCP.
    Stream(Stream),
    /// A spliced pair, or one that is about to be.
    Splice {
        /// The server has answered.
        is_running: bool,
    },
    /// UDP or ping.
    Datagram {
        /// Which.
        kind: DatagramKind,
        /// `Opened` was told.
        is_open: bool,
        /// Where the last datagram went.
        last_to: Option<SocketAddr>,
        /// A `SendTo` with `more` was given: where the datagram goes.
        gathering: Option<SocketAddr>,
    },
    /// A listener of a forward.
    Listener {
        /// TCP.
        is_tcp: bool,
    },
}

/// A socket and its name.
#[derive(Debug)]
pub struct Socket {
    /// Its name.
    pub id: SocketId,
    /// What it is.
    pub kind: Kind,
}

impl Stream {
    /// Bytes of the outstanding run.
    pub fn sending_bytes(&self) -> u32 {
        self.sending.iter().map(|span| span.len).sum()
    }

    /// The core asks for something; what breaks the rules of the boundary panics.
    pub fn on_op(&mut self, op: Op) {
        match op {
            Op::Connect { .. } => {
                assert!(!self.is_connecting && !self.is_connected, "connected twice");
                self.is_connecting = true;
            }
            Op::Send { span, more, .. } => {
                assert!(self.is_connected, "sent before it was connected");
                assert!(!self.is_run_whole, "two runs outstanding");
                assert!(!self.is_shut, "sent after the end");
                assert!(span.len > 0, "an empty send");
                self.sending.push(span);
                self.is_run_whole = !more;
            }
            Op::Peek { offset, len, chunk, .. } => {
                assert!(self.is_connected, "peeked before it was connected");
                assert!(self.peek.is_none(), "two peeks outstanding");
                assert!(offset <= self.queued, "peeked behind what was seen");
                assert!(len > 0 && chunk > 0, "an empty peek");
                self.peek = Some(Peek { offset, len, chunk });
            }
            Op::Consume { bytes, .. } => {
                let left = self.queued.checked_sub(bytes);
                self.queued = left.expect("more is consumed than was peeked");
                // A peek of what was acknowledged meanwhile: the core takes its answer for void.
                if let Some(peek) = &mut self.peek {
                    peek.offset = peek.offset.saturating_sub(bytes);
                }
            }
            Op::Shutdown { .. } => {
                assert!(self.is_connected && !self.is_shut, "shut down once");
                self.is_shut = true;
            }
            Op::WriteFrame { .. }
            | Op::Release { .. }
            | Op::Append { .. }
            | Op::Adopt { .. }
            | Op::Refuse { .. }
            | Op::Splice { .. }
            | Op::Close { .. }
            | Op::Open { .. }
            | Op::SendTo { .. }
            | Op::HandOver { .. }
            | Op::HandOverClient { .. }
            | Op::TellNeighbor { .. } => panic!("{op:?} is none of a stream's"),
        }
    }
}

/// Hosts that an input can name.
pub fn remote(choice: u8) -> SocketAddr {
    let port = [80, 53, 443, 0, 67, 7, 5353, 65_535][usize::from(choice >> 5)];
    let v6 = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    let ip: IpAddr = match choice % 16 {
        0 | 1 => Ipv4Addr::new(192, 0, 2, 1).into(),
        2 | 3 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        4 => Ipv4Addr::new(198, 51, 100, 7).into(),
        5 => Ipv4Addr::new(10, 0, 2, 2).into(),
        6 => v6(2),
        7 => Ipv4Addr::new(10, 0, 2, 3).into(),
        8 => v6(3),
        9 => Ipv4Addr::new(10, 0, 2, 77).into(),
        10 => Ipv4Addr::LOCALHOST.into(),
        11 => Ipv4Addr::BROADCAST.into(),
        12 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).into(),
        13 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5055, 0x0aff, 0xfe00, 0x0202).into(),
        14 => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, port)
}

/// A host's address that a datagram of this kind can come from.
pub fn peer(kind: DatagramKind, choice: u8) -> SocketAddr {
    let is_v4 = matches!(kind, DatagramKind::Udp4 | DatagramKind::Ping4);
    let candidates = [choice, 0, 2].map(remote);
    let found = candidates.into_iter().find(|to| to.is_ipv4() == is_v4);
    found.unwrap_or(candidates[0])
}
