//! An independent witness on the link: reads every frame both ways where it meets the core, and checks what RFC 9293 and the
//! MTU allow the core to say.
//!
//! Numbers from the guest count when the core has received them, undamaged; numbers from the core when it emits them.

use std::collections::HashMap;
use std::net::SocketAddr;

use etherparse::{SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};
use usernet_core::op::{Checksum, FRAME_BYTES_MAX, Gso};
use usernet_core::packet::{EtherType, checksum, parse, protocol};
use usernet_core::{Config, Offload};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    remote: SocketAddr,
}

/// A point in sequence space; comparisons wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seq(u32);

impl Seq {
    fn is_after(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }

    fn plus(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    fn raise(this: &mut Option<Self>, to: Self) {
        if this.is_none_or(|old| to.is_after(old)) {
            *this = Some(to);
        }
    }
}

/// What one end has said.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    isn: Option<Seq>,
    /// Behind the last byte sent, FIN included.
    sent: Option<Seq>,
    fin: Option<Seq>,
    acked: Option<Seq>,
    /// Right edge of the window that it advertised.
    edge: Option<Seq>,
    /// None: it did not offer scaling.
    scale: Option<u8>,
    mss: Option<u16>,
    has_sack: bool,
    has_reset: bool,
}

#[derive(Clone, Debug, Default)]
struct Flow {
    guest: End,
    core: End,
    /// What the core has received of the guest's data: distances from its SYN, first and behind the last. In order;
    /// they do not touch.
    received: Vec<(u32, u32)>,
}

/// The witness.
pub struct Watch {
    flows: HashMap<Key, Flow>,
    mtu: usize,
    /// TCP payload bytes that the core has sent more than once.
    pub resent: u64,
}

struct Segment {
    seq: Seq,
    ack: Option<Seq>,
    len: u32,
    is_syn: bool,
    is_fin: bool,
    is_rst: bool,
    window: u16,
    scale: Option<u8>,
    mss: Option<u16>,
    has_sack: bool,
    sacks: Vec<(Seq, Seq)>,
}

impl Segment {
    fn end(&self) -> Seq {
        self.seq.plus(self.len + u32::from(self.is_syn) + u32::from(self.is_fin))
    }

    fn of(tcp: &TcpSlice<'_>) -> Self {
        let (mut scale, mut mss, mut has_sack) = (None, None, false);
        let mut sacks = Vec::new();
        for option in tcp.options_iterator() {
            match option.expect("TCP options are well formed") {
                TcpOptionElement::WindowScale(shift) => scale = Some(shift),
                TcpOptionElement::MaximumSegmentSize(bytes) => mss = Some(bytes),
                TcpOptionElement::SelectiveAcknowledgementPermitted => has_sack = true,
                TcpOptionElement::SelectiveAcknowledgement(first, others) => {
                    let blocks = std::iter::once(Some(first)).chain(others).flatten();
                    sacks.extend(blocks.map(|(from, to)| (Seq(from), Seq(to))));
                }
                TcpOptionElement::Noop | TcpOptionElement::Timestamp(..) => {}
            }
        }
        Self {
            seq: Seq(tcp.sequence_number()),
            ack: tcp.ack().then(|| Seq(tcp.acknowledgment_number())),
            len: tcp.payload().len() as u32,
            is_syn: tcp.syn(),
            is_fin: tcp.fin(),
            is_rst: tcp.rst(),
            window: tcp.window_size(),
            scale,
            mss,
            has_sack,
            sacks,
        }
    }
}

fn read(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, Segment)> {
    let Ok(EtherType::Ip(packet)) = parse(frame) else { return None };
    if packet.protocol != protocol::TCP || packet.fragment.is_some() {
        return None;
    }
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let from = packet.from(tcp.source_port());
    let to = packet.to(tcp.destination_port());
    Some((from, to, Segment::of(&tcp)))
}

fn is_whole(frame: &[u8]) -> bool {
    let Ok(EtherType::Ip(packet)) = parse(frame) else { return false };
    let segment = &frame[packet.payload()];
    packet.fragment.is_none()
        && checksum::is_valid(packet.source, packet.destination, packet.protocol, segment)
}

impl Watch {
    /// A witness on a link of that MTU.
    pub fn new(config: &Config) -> Self {
        Self { flows: HashMap::new(), mtu: usize::from(config.mtu), resent: 0 }
    }

    /// A frame has come to the core. A damaged one counts if its damage is where no checksum looks.
    pub fn on_from_guest(&mut self, frame: &[u8], is_damaged: bool) {
        if is_damaged && !is_whole(frame) {
            return;
        }
        let Some((guest, remote, segment)) = read(frame) else { return };
        let flow = self.flows.entry(Key { guest, remote }).or_default();
        let end = &mut flow.guest;
        if segment.is_syn && end.isn != Some(segment.seq) {
            // A new incarnation of the pair of addresses.
            let was_opened_by_core = segment.ack.is_some();
            *end = End { isn: Some(segment.seq), ..End::default() };
            (end.scale, end.mss, end.has_sack) = (segment.scale, segment.mss, segment.has_sack);
            flow.received.clear();
            if !was_opened_by_core {
                flow.core = End::default();
            }
        }
        let end = &mut flow.guest;
        end.has_reset |= segment.is_rst;
        Seq::raise(&mut end.sent, segment.end());
        if let Some(isn) = end.isn.filter(|_| segment.len > 0) {
            let start = segment.seq.0.wrapping_sub(isn.0);
            receive(&mut flow.received, start, start.wrapping_add(segment.len));
        }
        let end = &mut flow.guest;
        if segment.is_fin {
            end.fin = Some(segment.end());
        }
        let scales = end.scale.is_some() && flow.core.scale.is_some() && !segment.is_syn;
        let shift = if scales { end.scale.unwrap_or(0) } else { 0 };
        if let Some(ack) = segment.ack.filter(|_| !segment.is_rst) {
            Seq::raise(&mut end.acked, ack);
            Seq::raise(&mut end.edge, ack.plus(u32::from(segment.window) << shift));
        }
    }

    /// The core emits a frame. Panics if it may not. A SYN's guest and remote end.
    pub fn on_to_guest(
        &mut self,
        frame: &[u8],
        offload: Offload,
    ) -> Option<(SocketAddr, SocketAddr)> {
        self.check_size(frame, offload);
        let (remote, guest, segment) = read(frame)?;
        let answered = segment.is_syn.then_some((guest, remote));
        let Some(flow) = self.flows.get_mut(&Key { guest, remote }) else {
            if segment.is_rst {
                // Its SYN may have found no buffer.
                return None;
            }
            let key = Key { guest, remote };
            assert!(segment.is_syn && segment.ack.is_none(), "a segment for no flow, {key:?}");
            let mut flow = Flow::default();
            flow.check(&segment, offload, self.mtu, remote.is_ipv4());
            self.flows.insert(key, flow);
            return answered;
        };
        let sent = flow.core.sent;
        flow.check(&segment, offload, self.mtu, remote.is_ipv4());
        if let Some(sent) = sent
            && segment.len > 1
            && sent.is_after(segment.seq)
        {
            self.resent += u64::from(sent.0.wrapping_sub(segment.seq.0).min(segment.len));
        }
        answered
    }

    fn check_size(&self, frame: &[u8], offload: Offload) {
        assert!(frame.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", frame.len());
        let parsed = parse(frame);
        assert!(
            matches!(parsed, Ok(EtherType::Ip(_) | EtherType::Arp { .. })),
            "the core's frames are IP or ARP: {parsed:?}"
        );
        if let Ok(EtherType::Ip(packet)) = parsed {
            assert_eq!(packet.payload_end as usize, frame.len(), "the frame ends with its packet");
        }
        if let Checksum::Partial { start, offset } = offload.checksum {
            let at = usize::from(start) + usize::from(offset);
            assert!(at + 2 <= frame.len(), "the checksum lies in the frame");
        }
        match offload.gso {
            Gso::None => assert!(frame.len() <= self.mtu + 14, "{} bytes, not cut", frame.len()),
            Gso::Tcp4 { size } | Gso::Tcp6 { size } | Gso::Udp { size } => {
                assert!(size > 0 && usize::from(size) + 28 <= self.mtu, "GSO size {size}");
            }
            Gso::Fragment => assert!(frame.len() > self.mtu + 14, "nothing to fragment"),
        }
    }

    /// A frame as the guest's card gets it: complete, and not larger than the MTU.
    pub fn on_cut(&self, frame: &[u8]) {
        assert!(frame.len() <= self.mtu + 14, "a frame of {} bytes on the link", frame.len());
        let Ok(EtherType::Ip(packet)) = parse(frame) else { return };
        if packet.fragment.is_none() {
            let segment = &frame[packet.payload()];
            assert!(
                checksum::is_valid(packet.source, packet.destination, packet.protocol, segment),
                "a wrong checksum to the guest, protocol {}",
                packet.protocol
            );
        }
    }

    /// Payload bytes of the current incarnation that the guest has acknowledged.
    pub fn acknowledged(&self, guest: SocketAddr, remote: SocketAddr) -> u64 {
        let Some(flow) = self.flows.get(&Key { guest, remote }) else { return 0 };
        match (flow.core.isn, flow.guest.acked) {
            (Some(isn), Some(acked)) => u64::from(acked.0.wrapping_sub(isn.0.wrapping_add(1))),
            _ => 0,
        }
    }
}

/// Adds a range to those that were received.
fn receive(received: &mut Vec<(u32, u32)>, mut start: u32, mut end: u32) {
    received.retain(|&(from, to)| {
        let is_apart = to < start || from > end;
        if !is_apart {
            (start, end) = (start.min(from), end.max(to));
        }
        is_apart
    });
    let at = received.partition_point(|&(from, _)| from < start);
    received.insert(at, (start, end));
}

impl Flow {
    fn check(&mut self, segment: &Segment, offload: Offload, mtu: usize, is_v4: bool) {
        let core = &mut self.core;
        if segment.is_rst {
            core.has_reset = true;
            return;
        }
        assert!(!core.has_reset || segment.is_syn, "a segment behind an RST");
        if segment.is_syn && core.isn != Some(segment.seq) {
            *core = End { isn: Some(segment.seq), ..End::default() };
            (core.scale, core.mss, core.has_sack) = (segment.scale, segment.mss, segment.has_sack);
            // RFC 2018, section 2: in an answer only to who offers it.
            assert!(!segment.has_sack || segment.ack.is_none() || self.guest.has_sack);
            assert!(segment.scale.is_none_or(|s| s <= 14), "RFC 7323, 2.3: a shift of 14 at most");
            let mss = segment.mss.expect("a SYN says its MSS");
            let headers = if is_v4 { 40 } else { 60 };
            assert!(usize::from(mss) + headers <= mtu, "an MSS of {mss} at MTU {mtu}");
        }
        assert!(core.isn.is_some(), "a segment before the SYN");
        self.check_data(segment, offload, mtu, is_v4);
        self.check_window(segment);
        self.check_sacks(segment);
    }

    /// RFC 2018, section 4: blocks of what was received, behind what is acknowledged, and none twice.
    fn check_sacks(&self, segment: &Segment) {
        let (Some(isn), Some(ack)) = (self.guest.isn, segment.ack) else { return };
        let may_sack = self.guest.has_sack && self.core.has_sack;
        assert!(may_sack || segment.sacks.is_empty(), "blocks that nobody asked for");
        for (n, &(from, to)) in segment.sacks.iter().enumerate() {
            assert!(from.is_after(ack) && to.is_after(from), "a block behind the acknowledgement");
            let (start, end) = (from.0.wrapping_sub(isn.0), to.0.wrapping_sub(isn.0));
            let was_received = self.received.iter().any(|&(s, e)| s <= start && end <= e);
            assert!(was_received, "block {start}..{end} of what came, {:?}", self.received);
            let is_apart = |&(f, t): &(Seq, Seq)| f.is_after(to) || from.is_after(t);
            assert!(segment.sacks[..n].iter().all(is_apart), "blocks that touch are one");
        }
    }

    /// Not beyond the guest's window, but for a probe of one byte; no segment larger than it wants.
    fn check_data(&mut self, segment: &Segment, offload: Offload, mtu: usize, is_v4: bool) {
        let (guest, core) = (&self.guest, &mut self.core);
        let end = segment.end();
        if segment.len > 0 || segment.is_fin {
            let edge = guest.edge.expect("data before the guest has a window");
            // FIN takes a number, but no room.
            let last = segment.seq.plus(segment.len);
            assert!(
                !last.is_after(edge.plus(u32::from(segment.len == 1))),
                "data up to {} beyond the window's edge {}",
                last.0.wrapping_sub(core.isn.map_or(0, |s| s.0)),
                edge.0.wrapping_sub(core.isn.map_or(0, |s| s.0))
            );
        }
        let one = match offload.gso {
            Gso::Tcp4 { size } | Gso::Tcp6 { size } => u32::from(size),
            Gso::None | Gso::Udp { .. } | Gso::Fragment => segment.len,
        };
        // RFC 9293, 3.7.1: 536 (IPv4) and 1220 (IPv6) where the guest said nothing.
        let mss = guest.mss.map_or(if is_v4 { 536 } else { 1220 }, u32::from);
        assert!(one <= mss.max(1), "segments of {one} bytes, the guest takes {mss}");
        assert!(one as usize + if is_v4 { 40 } else { 60 } <= mtu, "segments of {one}, MTU {mtu}");
        if let Some(fin) = core.fin {
            assert!(!end.is_after(fin), "data behind the FIN");
        }
        if segment.is_fin {
            core.fin = Some(end);
        }
        Seq::raise(&mut core.sent, end);
    }

    /// Acknowledges what was sent, goes forward only, takes no window back.
    fn check_window(&mut self, segment: &Segment) {
        let (guest, core) = (&self.guest, &mut self.core);
        let Some(ack) = segment.ack else {
            assert!(segment.is_syn, "only a first SYN acknowledges nothing");
            return;
        };
        let sent = guest.sent.expect("an acknowledgement of nothing");
        assert!(!ack.is_after(sent), "acknowledges what the guest has not sent");
        if let Some(acked) = core.acked {
            assert!(!acked.is_after(ack), "an acknowledgement goes back");
        }
        core.acked = Some(ack);
        let scales = guest.scale.is_some() && core.scale.is_some() && !segment.is_syn;
        let shift = if scales { core.scale.unwrap_or(0) } else { 0 };
        let edge = ack.plus(u32::from(segment.window) << shift);
        // RFC 7323, 2.4: rounding to the scale's unit alone may seem to shrink the window. Behind the guest's
        // FIN nothing follows that needs one.
        let slack = (1 << shift) - 1;
        if let Some(old) = core.edge.filter(|_| guest.fin != Some(ack)) {
            assert!(!old.is_after(edge.plus(slack)), "the window's edge moves left");
        }
        Seq::raise(&mut core.edge, edge);
    }
}
