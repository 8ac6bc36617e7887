//! One connection: its two ends, its two halves, and the decisions that need nothing else.

use core::net::SocketAddr;
use core::time::Duration;

use super::flood::Flood;
use super::kept::KeptQueue;
use super::patience::Patience;
use super::sack::Sacks;
use super::segment::{ACK, Header};
use super::seq::Seq;
use crate::config::{Config, MacAddr};
use crate::op::{AcceptedId, SocketId};
use crate::time::Instant;

/// Our window scale: 2 MiB in units of 128 bytes, with room to spare.
pub(crate) const OUR_WINDOW_SCALE: u8 = 7;
/// Maximum segment size of a guest that does not name one (RFC 9293, MUST-15).
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;
/// Below this a maximum segment size costs more in headers than it carries; Linux has the same floor.
const MSS_MIN: u16 = 88;
/// Retransmission timeouts (RFC 6298; a link of ours is never slower than a second to begin with).
const RTO_FIRST: Duration = Duration::from_millis(500);
const RTO_MIN: Duration = Duration::from_millis(200);
const RTO_MAX: Duration = Duration::from_secs(60);

/// Where a connection stands as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// The guest's SYN is here, the host's connect has not answered. Allowed: SYN again, RST.
    Connecting {
        /// Which of the host's resolvers is being tried, where the guest asked for the DNS address.
        resolver: Option<u32>,
    },
    /// SYN-ACK sent, the guest's ACK is awaited.
    SynAckSent,
    /// A host client is to be joined to the guest's loopback; not in the table of tuples yet.
    Splicing {
        /// The connection.
        accepted: AcceptedId,
    },
    /// Joined: the driver moves the bytes.
    Spliced,
    /// A host client waits; SYN sent to the guest.
    SynSent,
    /// Established: the halves say the rest.
    Open,
    /// Both halves are done and the socket is gone; lingers for late segments.
    TimeWait,
}

/// The half that carries the guest's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FromGuest {
    /// More may come.
    Open,
    /// FIN is here; what is kept must still reach the host.
    Finishing,
    /// The host socket's sending direction is shut.
    Done,
}

/// The half that carries the host's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToGuest {
    /// More may come.
    Open,
    /// The host is at its end: our FIN has this sequence number.
    Ending(Seq),
    /// The guest has acknowledged our FIN.
    Done,
}

/// What the timer of a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Nothing is waited for but the idle time.
    Idle,
    /// Something that we sent is not acknowledged.
    Retransmit,
    /// The guest's window is too small to go on.
    Probe,
    /// End of [`State::TimeWait`].
    Linger,
}

/// A connection.
pub(crate) struct Conn {
    /// Host socket; none once it is closed.
    pub(crate) socket: Option<SocketId>,
    pub(crate) guest: SocketAddr,
    /// The other end, as the guest sees it.
    pub(crate) remote: SocketAddr,
    /// The other end, as the host sees it.
    pub(crate) host: SocketAddr,
    pub(crate) guest_mac: MacAddr,
    pub(crate) state: State,
    pub(crate) is_outbound: bool,

    /// Half from the guest.
    pub(crate) from_guest: FromGuest,
    /// Next byte expected from the guest.
    pub(crate) expected: Seq,
    /// What we last acknowledged.
    pub(crate) acked: Seq,
    /// Right edge of the window that we last advertised; never moves left.
    pub(crate) edge: Seq,
    /// Our window scale; none if the guest has no window scaling.
    pub(crate) our_scale: Option<u8>,
    /// Received, not taken by the host yet.
    pub(crate) kept: KeptQueue,
    /// Received ahead of a gap.
    pub(crate) ahead: KeptQueue,
    /// What of that the guest is told, if it understands.
    pub(crate) sacks: Sacks,
    /// Both ends have said in their SYNs that they understand selective acknowledgements.
    pub(crate) has_sack: bool,
    /// Payload bytes that a lease of this flow holds, smoothed.
    pub(crate) frame_bytes: u32,
    /// Leases, from the front of `kept`, that an outstanding `Send` names. 0: none is outstanding.
    pub(crate) sending_leases: u32,
    /// An acknowledgement is owed at the end of the turn, whatever else.
    pub(crate) ack_now: bool,
    /// Whether acknowledgements wait for an answer.
    pub(crate) patience: Patience,
    /// Whether it floods us with small segments.
    pub(crate) flood: Flood,
    /// ECN (RFC 3168): congestion was seen and is echoed until the guest says CWR.
    pub(crate) echo_congestion: bool,
    /// ECN was negotiated.
    pub(crate) is_ecn: bool,

    /// Half to the guest.
    pub(crate) to_guest: ToGuest,
    /// Our last acknowledgement may get lost unnoticed: the guest's FIN may come again after the end. Not so where
    /// our FIN, which acknowledges the guest's, has been acknowledged itself.
    pub(crate) lingers: bool,
    /// Oldest byte that the guest has not acknowledged.
    pub(crate) unacked: Seq,
    /// Next byte to send; goes back to `unacked` when something was lost.
    pub(crate) next: Seq,
    /// Highest `next` ever.
    pub(crate) sent_max: Seq,
    /// Sequence number of the oldest byte in the host socket's queue. Between it and `unacked` lies what is to be
    /// consumed.
    pub(crate) queue_start: Seq,
    /// Right edge of the guest's window.
    pub(crate) guest_edge: Seq,
    /// Segment that last moved the guest's window (RFC 9293: SND.WL1, SND.WL2).
    pub(crate) window_seq: Seq,
    pub(crate) window_ack: Seq,
    pub(crate) guest_scale: u8,
    /// Payload bytes per segment to the guest.
    pub(crate) mss: u16,
    /// There may be something to peek at.
    pub(crate) is_readable: bool,
    /// A `Peek` is outstanding: what it brings next has this sequence number. If that is not `next` any more, the
    /// position was given up and the bytes are dropped.
    pub(crate) peeking: Option<Seq>,
    /// When the peek was asked for.
    pub(crate) peeking_since: Instant,
    /// It sends in bulk: counted among those that share what may be in flight.
    pub(crate) is_bulk: bool,
    /// When it last did.
    pub(crate) bulk_at: Instant,
    /// When the guest last sent something.
    pub(crate) words_at: Instant,
    pub(crate) duplicate_acks: u8,
    /// While set, and until it is acknowledged, we send again what may be lost: in small steps.
    pub(crate) recover_until: Option<Seq>,

    /// A byte whose acknowledgement is timed, and since when.
    pub(crate) timed: Option<(Seq, Instant)>,
    /// Smoothed round-trip time and its variation, in ns (RFC 6298).
    srtt_ns: u64,
    rttvar_ns: u64,
    /// Timeouts in a row.
    pub(crate) timeouts: u8,
    pub(crate) timer: Timer,
    pub(crate) deadline: Instant,
    /// When the wheel will tell: never later than `deadline`.
    pub(crate) wheel_at: Option<Instant>,

    pub(crate) last_heard: Instant,
    pub(crate) bytes_from_guest: u64,
    pub(crate) bytes_to_guest: u64,
    /// In the list of flows to look at when the turn ends.
    pub(crate) is_dirty: bool,
    /// It is in the list of those that owe an acknowledgement in the end.
    pub(crate) is_owing: bool,
}

/// The ends of a connection that is being made.
pub(crate) struct Ends {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) host: SocketAddr,
    pub(crate) guest_mac: MacAddr,
}

impl Conn {
    pub(crate) fn new(now: Instant, ends: Ends, state: State, isn: Seq) -> Self {
        Self {
            socket: None,
            guest: ends.guest,
            remote: ends.remote,
            host: ends.host,
            guest_mac: ends.guest_mac,
            state,
            is_outbound: matches!(state, State::Connecting { .. }),
            from_guest: FromGuest::Open,
            expected: Seq(0),
            acked: Seq(0),
            edge: Seq(0),
            our_scale: None,
            kept: KeptQueue::EMPTY,
            ahead: KeptQueue::EMPTY,
            sacks: Sacks::default(),
            has_sack: false,
            frame_bytes: u32::from(MSS_MIN),
            sending_leases: 0,
            ack_now: false,
            patience: Patience::default(),
            flood: Flood::default(),
            echo_congestion: false,
            is_ecn: false,
            to_guest: ToGuest::Open,
            unacked: isn,
            next: isn,
            sent_max: isn,
            queue_start: isn + 1,
            guest_edge: isn,
            window_seq: Seq(0),
            window_ack: Seq(0),
            guest_scale: 0,
            mss: MSS_MIN,
            is_readable: false,
            peeking: None,
            peeking_since: Instant::ZERO,
            lingers: true,
            is_bulk: false,
            bulk_at: Instant::ZERO,
            words_at: Instant::ZERO,
            duplicate_acks: 0,
            recover_until: None,
            timed: None,
            srtt_ns: 0,
            rttvar_ns: 0,
            timeouts: 0,
            timer: Timer::Idle,
            deadline: Instant::ZERO,
            wheel_at: None,
            last_heard: now,
            bytes_from_guest: 0,
            bytes_to_guest: 0,
            is_dirty: false,
            is_owing: false,
        }
    }

    /// Settles the segment size: what the guest offers, as far as the link carries it.
    pub(crate) fn choose_mss(&mut self, config: &Config, offered: Option<u16>) {
        let default = if self.guest.is_ipv4() { MSS_DEFAULT_V4 } else { MSS_DEFAULT_V6 };
        let link = our_mss(config, self.guest);
        self.mss = offered.unwrap_or(default).min(link).max(MSS_MIN.min(link));
    }

    /// Payload bytes per super-frame: whole segments, as many as an IP packet holds.
    pub(crate) fn chunk(&self) -> u32 {
        let headers = if self.guest.is_ipv4() { 20 + 20 } else { 20 };
        let room = 65_535 - headers;
        let mss = u32::from(self.mss);
        (room / mss).max(1) * mss
    }

    /// Bytes in flight to the guest.
    pub(crate) fn in_flight(&self) -> u32 {
        self.next.since(self.unacked)
    }

    /// Our FIN goes out. The side that ends last need not linger.
    pub(crate) fn on_fin_sent(&mut self) {
        if self.from_guest != FromGuest::Open {
            self.lingers = false;
        }
    }

    /// Bytes that the guest's window still has room for.
    pub(crate) fn room(&self) -> u32 {
        if self.guest_edge.is_after(self.next) { self.guest_edge.since(self.next) } else { 0 }
    }

    /// Bytes acknowledged by the guest that the host socket still holds.
    pub(crate) fn to_consume(&self) -> u32 {
        let acked = match self.to_guest {
            ToGuest::Open => self.unacked,
            // The FIN takes a sequence number, but no byte of the socket.
            ToGuest::Ending(fin) => {
                if self.unacked.is_after(fin) {
                    fin
                } else {
                    self.unacked
                }
            }
            ToGuest::Done => return 0,
        };
        // During the handshake our SYN is not acknowledged yet.
        if acked.is_before(self.queue_start) { 0 } else { acked.since(self.queue_start) }
    }

    /// Moves the advertised edge to `window` bytes beyond what the host has taken, and tells the field to send.
    pub(crate) fn advertise(&mut self, window: u32) -> u16 {
        let scale = self.our_scale.unwrap_or(0);
        let taken = self.expected - self.kept.bytes;
        let edge = (taken + window).latest(self.edge);
        let unit = 1u32 << scale;
        let wanted = if edge.is_after(self.expected) { edge.since(self.expected) } else { 0 };
        // Rounded up, so that the edge never moves left by rounding.
        let field = wanted.div_ceil(unit).min(u32::from(u16::MAX)) as u16;
        self.edge = (self.expected + u32::from(field) * unit).latest(self.edge);
        self.acked = self.expected;
        self.patience.owed = None;
        field
    }

    /// A header of ours from here, without options.
    pub(crate) fn header(&self, config: &Config, seq: Seq, flags: u8, window: u16) -> Header {
        Header {
            host_mac: config.host_mac,
            guest_mac: self.guest_mac,
            guest: self.guest,
            remote: self.remote,
            seq,
            ack: if flags & ACK == 0 { Seq(0) } else { self.expected },
            flags,
            window,
            syn_options: None,
            sacks: Sacks::default(),
        }
    }

    /// A header for an acknowledgement that carries nothing else.
    pub(crate) fn ack_header(&self, config: &Config, flags: u8, window: u16) -> Header {
        let sacks = if self.has_sack { self.sacks } else { Sacks::default() };
        Header { sacks, ..self.header(config, self.next, ACK | flags, window) }
    }

    /// The retransmission timeout, backed off.
    pub(crate) fn rto(&self) -> Duration {
        let base = if self.srtt_ns == 0 {
            RTO_FIRST
        } else {
            Duration::from_nanos(self.srtt_ns + 4 * self.rttvar_ns).max(RTO_MIN)
        };
        (base * (1 << self.timeouts.min(10))).min(RTO_MAX)
    }

    /// A round trip was timed (RFC 6298, section 2).
    pub(crate) fn on_round_trip(&mut self, time: Duration) {
        let rtt = time.as_nanos() as u64;
        if self.srtt_ns == 0 {
            self.srtt_ns = rtt.max(1);
            self.rttvar_ns = rtt / 2;
        } else {
            self.rttvar_ns = (3 * self.rttvar_ns + self.srtt_ns.abs_diff(rtt)) / 4;
            self.srtt_ns = ((7 * self.srtt_ns + rtt) / 8).max(1);
        }
    }

    /// Whether the guest has all data and was sent the FIN.
    pub(crate) fn is_all_but_fin_acked(&self) -> bool {
        match self.to_guest {
            ToGuest::Open => false,
            ToGuest::Ending(fin) => self.unacked == fin && self.sent_max.is_after(fin),
            ToGuest::Done => true,
        }
    }

    /// Whether anything of ours waits for an acknowledgement.
    pub(crate) fn is_unacked(&self) -> bool {
        self.sent_max.is_after(self.unacked)
    }

    /// The state in the words of `ss`.
    pub(crate) fn state_name(&self) -> &'static str {
        match (self.state, self.from_guest, self.to_guest) {
            (State::Connecting { .. }, ..) => "SYN-SENT",
            (State::SynAckSent | State::SynSent | State::Splicing { .. }, ..) => "SYN-RECV",
            (State::Spliced, ..) => "ESTAB",
            (State::TimeWait, ..) => "TIME-WAIT",
            (State::Open, FromGuest::Open, ToGuest::Open) => "ESTAB",
            (State::Open, FromGuest::Open, ToGuest::Ending(_) | ToGuest::Done) => "CLOSE-WAIT",
            (State::Open, FromGuest::Finishing | FromGuest::Done, ToGuest::Open) => "FIN-WAIT",
            (
                State::Open,
                FromGuest::Finishing | FromGuest::Done,
                ToGuest::Ending(_) | ToGuest::Done,
            ) => "CLOSING",
        }
    }
}

/// The maximum segment size that the link has for a guest of this family.
pub(crate) fn our_mss(config: &Config, guest: SocketAddr) -> u16 {
    config.mtu - if guest.is_ipv4() { 40 } else { 60 }
}
