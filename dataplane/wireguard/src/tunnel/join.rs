//! Packets for the guest, opened one behind the other, and joined where they are a run of one flow: the guest's kernel
//! takes a super-frame of 64 KiB for little more than the price of a packet.
//!
//! # Theory of operation
//!
//! The packet opened last lies behind the super-frame under construction. If it goes on where that one ends, its
//! payload moves over its headers, and the super-frame has grown. The rules are those of the kernel's own GRO:
//!
//! - *TCP*: same addresses, ports, acknowledgment, window, flags and options; the next sequence number; nothing but ACK and
//!   PSH set, and a PSH ends the run. *UDP*: same addresses and ports. Either: same TOS, TTL and DF; whole packets
//!   without IP options or extension headers; all of one size, a shorter one ends the run.
//! - Every checksum is verified before a packet becomes part of a super-frame, as the guest's kernel cannot do it any more.
//!   A packet that stays alone goes as it is.
//!
//! What does not fit ends the run if it is of the same flow, so that flows stay in order, and passes it by if it is not.

use usernet_core::op::{Checksum, Gso};
use usernet_core::packet::checksum::Sum;
use usernet_core::packet::{parse_ip, protocol};
use usernet_core::{Offload, TunnelOut};

use super::counters::{Counter, Counters};

/// The largest IP packet.
const PACKET_BYTES_MAX: usize = 65_535;
/// Room for a datagram's payload of any size, tag included.
const ROOM_BYTES: usize = 65_536;
/// The kernel's limit for a train of UDP (`UDP_MAX_SEGMENTS`).
const DATAGRAMS_MAX: usize = 64;
const UDP_BYTES: usize = 8;
const TCP_BYTES_MIN: usize = 20;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;

/// See the module.
pub(super) struct Join {
    bytes: Box<[u8]>,
    /// Bytes of the super-frame. None: there is no run.
    len: usize,
    /// The first packet of the run.
    head: Head,
    /// Packets in the run.
    packets: usize,
    /// Nothing may follow.
    is_closed: bool,
    /// TCP: the last packet had a PSH.
    is_pushed: bool,
}

/// What matters of a packet that may be part of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    is_v4: bool,
    protocol: u8,
    ip_bytes: usize,
    /// All headers.
    bytes: usize,
    payload: usize,
    /// TCP: the sequence number.
    sequence: u32,
    /// TCP: it ends a run.
    is_last: bool,
}

impl Join {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; PACKET_BYTES_MAX + ROOM_BYTES].into_boxed_slice(),
            len: 0,
            head: Head::default(),
            packets: 0,
            is_closed: false,
            is_pushed: false,
        }
    }

    /// Where the next packet is to be opened.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.len..]
    }

    /// A packet of `len` bytes is in the [`room`](Self::room).
    pub(super) fn add(&mut self, len: usize, counters: &mut Counters, out: &mut dyn TunnelOut) {
        let packet = &self.bytes[self.len..self.len + len];
        let Some(head) = Head::of(packet) else {
            if self.len != 0 && is_of_flow(&self.bytes, packet, &self.head) {
                return self.replace(len, None, counters, out);
            }
            counters.count(Counter::PacketsToGuest);
            return out.to_guest(packet, Offload::default());
        };
        if self.len == 0 {
            return self.begin(head, len);
        }
        if !self.continues(&head, len) {
            return self.replace(len, Some(head), counters, out);
        }
        let payload = self.len + head.bytes..self.len + len;
        self.bytes.copy_within(payload, self.len);
        self.len += head.payload;
        self.packets += 1;
        self.is_pushed = head.is_last;
        self.is_closed = head.is_last || head.payload < self.head.payload;
    }

    /// Lets the run go.
    pub(super) fn flush(&mut self, counters: &mut Counters, out: &mut dyn TunnelOut) {
        if self.len == 0 {
            return;
        }
        let len = std::mem::take(&mut self.len);
        counters.count(Counter::PacketsToGuest);
        let offload = match self.packets {
            1 => Offload::default(),
            packets => {
                counters.add(Counter::PacketsJoined, packets as u64);
                self.finish(len)
            }
        };
        out.to_guest(&self.bytes[..len], offload);
    }

    fn begin(&mut self, head: Head, len: usize) {
        self.len = len;
        self.packets = 1;
        (self.is_pushed, self.is_closed) = (head.is_last, head.is_last);
        self.head = head;
    }

    /// Lets the run go, and then the packet in the room, which may begin another one.
    fn replace(
        &mut self,
        len: usize,
        head: Option<Head>,
        counters: &mut Counters,
        out: &mut dyn TunnelOut,
    ) {
        let start = self.len;
        self.flush(counters, out);
        self.bytes.copy_within(start..start + len, 0);
        match head {
            Some(head) => self.begin(head, len),
            None => {
                counters.count(Counter::PacketsToGuest);
                out.to_guest(&self.bytes[..len], Offload::default());
            }
        }
    }

    /// Whether the packet in the room is the next of the run.
    fn continues(&self, next: &Head, len: usize) -> bool {
        let (run, packet) = (&self.bytes[..self.len], &self.bytes[self.len..self.len + len]);
        let head = &self.head;
        let fits = !self.is_closed
            && next.protocol == head.protocol
            && next.is_v4 == head.is_v4
            && next.bytes == head.bytes
            && next.payload != 0
            && next.payload <= head.payload
            && run.len() + next.payload <= PACKET_BYTES_MAX
            && has_same_ends(run, packet, head, head.ip_bytes)
            && has_same_ip(run, packet, head.is_v4);
        let goes_on = fits
            && match head.protocol {
                protocol::TCP => {
                    let passed = run.len() - head.bytes;
                    next.sequence == head.sequence.wrapping_add(passed as u32)
                        && has_same_tcp(run, packet, head)
                }
                _ => self.packets < DATAGRAMS_MAX,
            };
        goes_on
            && next.is_valid(packet)
            && (self.packets > 1 || head.is_valid(run) && has_valid_ip(run, head))
    }

    /// Writes the headers of a super-frame.
    fn finish(&mut self, len: usize) -> Offload {
        let head = &self.head;
        let start = head.ip_bytes;
        let bytes = &mut self.bytes[..len];
        if head.is_v4 {
            bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            bytes[10..12].fill(0);
            let sum = Sum::default().bytes(&bytes[..start]).checksum();
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            bytes[4..6].copy_from_slice(&((len - start) as u16).to_be_bytes());
        }
        let (offset, gso) = match (head.protocol, head.is_v4, head.payload as u16) {
            (protocol::TCP, true, size) => (16, Gso::Tcp4 { size }),
            (protocol::TCP, false, size) => (16, Gso::Tcp6 { size }),
            (_, _, size) => {
                bytes[start + 4..start + 6].copy_from_slice(&((len - start) as u16).to_be_bytes());
                (6, Gso::Udp { size })
            }
        };
        if self.is_pushed {
            bytes[start + 13] |= TCP_PSH;
        }
        let sum = pseudo_header(bytes, head.is_v4, head.protocol).folded();
        let at = start + usize::from(offset);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        Offload { checksum: Checksum::Partial { start: start as u16, offset }, gso }
    }
}

impl Head {
    /// None: it cannot be part of a run.
    fn of(packet: &[u8]) -> Option<Self> {
        let (is_v4, ip_bytes, total, protocol) = match packet.first()? {
            0x45 => {
                let header = packet.first_chunk::<20>()?;
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                (true, 20, if fragment == 0 { total } else { 0 }, header[9])
            }
            first if first >> 4 == 6 => {
                let header = packet.first_chunk::<40>()?;
                let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
                (false, 40, 40 + payload, header[6])
            }
            _ => return None,
        };
        if total != packet.len() {
            return None;
        }
        let head = Self { is_v4, protocol, ip_bytes, ..Self::default() };
        match protocol {
            protocol::TCP => head.tcp(packet),
            protocol::UDP => head.udp(packet),
            _ => None,
        }
    }

    fn tcp(self, packet: &[u8]) -> Option<Self> {
        let tcp = packet.get(self.ip_bytes..)?;
        let header = tcp.first_chunk::<TCP_BYTES_MIN>()?;
        let tcp_bytes = usize::from(header[12] >> 4) * 4;
        let payload = tcp.len().checked_sub(tcp_bytes)?;
        if tcp_bytes < TCP_BYTES_MIN || payload == 0 || header[13] & !TCP_PSH != TCP_ACK {
            return None;
        }
        Some(Self {
            bytes: self.ip_bytes + tcp_bytes,
            payload,
            sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            is_last: header[13] & TCP_PSH != 0,
            ..self
        })
    }

    fn udp(self, packet: &[u8]) -> Option<Self> {
        let udp = packet.get(self.ip_bytes..)?;
        let header = udp.first_chunk::<UDP_BYTES>()?;
        let has_sum = header[6..8] != [0, 0];
        if usize::from(u16::from_be_bytes([header[4], header[5]])) != udp.len() || !has_sum {
            return None;
        }
        let payload = udp.len() - UDP_BYTES;
        (payload != 0).then_some(Self { bytes: self.ip_bytes + UDP_BYTES, payload, ..self })
    }

    /// Whether the transport checksum is right.
    fn is_valid(&self, packet: &[u8]) -> bool {
        let sum = pseudo_header(packet, self.is_v4, self.protocol);
        sum.bytes(&packet[self.ip_bytes..]).folded() == 0xffff
    }
}

/// The sum of the addresses, the protocol, and the length of what is behind the IP header.
fn pseudo_header(packet: &[u8], is_v4: bool, protocol: u8) -> Sum {
    let (addresses, ip_bytes) = if is_v4 { (12..20, 20) } else { (8..40, 40) };
    let len = (packet.len() - ip_bytes) as u32;
    Sum::default().bytes(&packet[addresses]).bytes(&len.to_be_bytes()).word(u16::from(protocol))
}

/// Whether IPv4's header is right. IPv6 has no sum.
fn has_valid_ip(packet: &[u8], head: &Head) -> bool {
    !head.is_v4 || Sum::default().bytes(&packet[..head.ip_bytes]).folded() == 0xffff
}

/// Whether a packet that cannot be part of a run is of the same flow. One that says nothing of ports may be.
fn is_of_flow(run: &[u8], packet: &[u8], head: &Head) -> bool {
    let Ok(parsed) = parse_ip(packet) else { return false };
    parsed.source.is_ipv4() == head.is_v4
        && parsed.protocol == head.protocol
        && (parsed.fragment.is_some()
            || has_same_ends(run, packet, head, parsed.payload_start as usize))
}

/// Whether addresses and ports are the same; the packet's are where its transport header starts.
fn has_same_ends(run: &[u8], packet: &[u8], head: &Head, start: usize) -> bool {
    let addresses = if head.is_v4 { 12..20 } else { 8..40 };
    let ports = &run[head.ip_bytes..head.ip_bytes + 4];
    packet[addresses.clone()] == run[addresses] && packet.get(start..start + 4) == Some(ports)
}

/// TOS, TTL and DF; version, class and label, hop limit.
fn has_same_ip(run: &[u8], packet: &[u8], is_v4: bool) -> bool {
    if is_v4 {
        return run[1] == packet[1] && run[6] == packet[6] && run[8] == packet[8];
    }
    run[..4] == packet[..4] && run[7] == packet[7]
}

/// Acknowledgment, offset, window, urgent pointer and options. The flags are known.
fn has_same_tcp(run: &[u8], packet: &[u8], head: &Head) -> bool {
    let at = head.ip_bytes;
    let same = |from: usize, to: usize| run[at + from..at + to] == packet[at + from..at + to];
    same(8, 13) && same(14, 16) && same(18, head.bytes - at)
}
