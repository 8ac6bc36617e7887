//! A world for unit tests: a shard, the buffers that it leases, and a record of what it wanted done.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::config::{Config, ShardId};
use crate::op::{
    AcceptedId, ForwardId, HEADROOM, Input, LeaseId, LocalId, Offload, Op, Outbox, PeekedThen,
    RESERVE_BYTES_MAX, SocketId, Span,
};
use crate::packet::build::IpHeader;
use crate::packet::checksum::Sum;
use crate::packet::{EtherType, parse, protocol};
use crate::rules::{Access, Forward, HostLoopback, Protocol, Rules};
use crate::shard::Shard;
use crate::time::Instant;

/// Leases from here on are made by `reserve`.
const RESERVED_FROM: u32 = 512;

/// A frame that the shard wrote to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    pub(crate) offload: Offload,
}

/// What the outbox records; `WriteFrame` and `Release` are taken out and balanced against the leases.
#[derive(Default)]
struct Recorder {
    ops: Vec<Op>,
    reserved: BTreeMap<LeaseId, Vec<u8>>,
    next: u32,
    /// Buffers that `reserve` may still hand out.
    reserve_left: Option<usize>,
}

impl Outbox for Recorder {
    fn op(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        assert!(size <= RESERVE_BYTES_MAX, "reserve is for small frames, not {size} bytes");
        match &mut self.reserve_left {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        let lease = LeaseId(RESERVED_FROM + self.next % RESERVED_FROM);
        self.next += 1;
        let clash = self.reserved.insert(lease, vec![0xa5; size]);
        assert!(clash.is_none(), "{lease:?} was not given back");
        self.reserved.get_mut(&lease).map(|bytes| (lease, &mut bytes[..]))
    }
}

/// A shard under test. Every method ends with all leases accounted for.
pub(crate) struct World {
    pub(crate) shard: Shard,
    pub(crate) now: Instant,
    recorder: Recorder,
    leased: BTreeMap<LeaseId, Vec<u8>>,
    free: VecDeque<LeaseId>,
    /// Frames to the guest, not looked at yet.
    pub(crate) written: VecDeque<Written>,
    /// Payloads of `SendTo`, gathered: destination, bytes, the last op.
    pub(crate) sent_to: VecDeque<(SocketAddr, Vec<u8>, Op)>,
    gathered: Vec<u8>,
    /// Frames for other shards.
    pub(crate) handed_over: VecDeque<(ShardId, Vec<u8>, Offload)>,
    /// What datagrams from the host side are sent to.
    pub(crate) local: LocalId,
}

impl World {
    /// The example configuration, nothing of the host's loopback, no forwards, one resolver at 192.0.2.53.
    pub(crate) fn new() -> Self {
        let config = Config::example();
        let resolvers = vec!["192.0.2.53:53".parse().expect("an address")];
        let rules =
            Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], resolvers);
        Self::with(config, rules)
    }

    pub(crate) fn with(mut config: Config, rules: Arc<Rules>) -> Self {
        config.limits.leases = 2 * RESERVED_FROM;
        Self {
            shard: Shard::new(config, rules),
            now: Instant::from_nanos(1_000_000_000),
            recorder: Recorder::default(),
            leased: BTreeMap::new(),
            free: (0..RESERVED_FROM).map(LeaseId).collect(),
            written: VecDeque::new(),
            sent_to: VecDeque::new(),
            gathered: Vec::new(),
            handed_over: VecDeque::new(),
            local: LocalId::ANY,
        }
    }

    /// From now on, `reserve` works `times` times more.
    pub(crate) fn limit_reserve(&mut self, times: usize) {
        self.recorder.reserve_left = Some(times);
    }

    /// A frame from the guest. The ops it caused, writes and releases aside.
    pub(crate) fn frame(&mut self, frame: &[u8], offload: Offload) -> Vec<Op> {
        let (lease, mut bytes) = self.lease(frame, 0);
        let input = Input::Frame { lease, bytes: &mut bytes, offload };
        self.shard.handle(self.now, input, &mut self.recorder);
        self.leased.insert(lease, bytes);
        self.settle()
    }

    /// A frame that another shard has handed over.
    pub(crate) fn handed(&mut self, frame: &[u8], offload: Offload) -> Vec<Op> {
        let (lease, mut bytes) = self.lease(frame, 0);
        let input = Input::HandedOver { lease, bytes: &mut bytes, offload };
        self.shard.handle(self.now, input, &mut self.recorder);
        self.leased.insert(lease, bytes);
        self.settle()
    }

    /// Payload that was peeked at.
    pub(crate) fn peeked(&mut self, socket: SocketId, payload: &[u8], then: PeekedThen) -> Vec<Op> {
        let (lease, mut bytes) = self.lease(payload, HEADROOM);
        let input = Input::Peeked { socket, lease, bytes: &mut bytes, then };
        self.shard.handle(self.now, input, &mut self.recorder);
        self.leased.insert(lease, bytes);
        self.settle()
    }

    /// A datagram from the host side.
    pub(crate) fn datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        payload: &[u8],
        segment: u16,
    ) -> Vec<Op> {
        let (lease, mut bytes) = self.lease(payload, HEADROOM);
        let bytes_in = &mut bytes;
        let input = Input::Datagram {
            socket,
            lease,
            bytes: bytes_in,
            from,
            local: self.local,
            segment,
            hop_limit: 60,
            tos: 0,
        };
        self.shard.handle(self.now, input, &mut self.recorder);
        self.leased.insert(lease, bytes);
        self.settle()
    }

    /// Any input that carries no lease.
    pub(crate) fn input(&mut self, input: Input<'_>) -> Vec<Op> {
        self.shard.handle(self.now, input, &mut self.recorder);
        self.settle()
    }

    /// A client of a forward.
    pub(crate) fn accepted(
        &mut self,
        listener: SocketId,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Vec<Op> {
        self.input(Input::Accepted { accepted: AcceptedId(1), listener, peer, local })
    }

    /// New rules.
    pub(crate) fn install(&mut self, rules: Arc<Rules>) -> Vec<Op> {
        self.shard.install(rules, &mut self.recorder);
        self.settle()
    }

    /// The end of a turn.
    pub(crate) fn flush(&mut self) -> Vec<Op> {
        self.shard.flush(self.now, &mut self.recorder);
        self.settle()
    }

    /// In the midst of it, with more of the guest's frames at hand.
    pub(crate) fn flush_amid_frames(&mut self) -> Vec<Op> {
        self.shard.flush_amid_frames(self.now, &mut self.recorder);
        self.settle()
    }

    /// Time passes, with a tick at every deadline in between.
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<Op> {
        let end = self.now + time;
        let mut ops = vec![];
        while let Some((at, _)) = self.shard.next_deadline().filter(|&(at, _)| at <= end) {
            self.now = self.now.max(at);
            ops.extend(self.input(Input::Tick));
            ops.extend(self.flush());
        }
        self.now = end;
        ops.extend(self.input(Input::Tick));
        ops.extend(self.flush());
        ops
    }

    /// The next frame to the guest.
    pub(crate) fn next_written(&mut self) -> Written {
        self.written.pop_front().expect("a frame was written to the guest")
    }

    /// Leases that are neither free nor held by the core: none, ever.
    pub(crate) fn leases_out(&self) -> usize {
        self.leased.len() + self.recorder.reserved.len()
    }

    fn lease(&mut self, payload: &[u8], headroom: usize) -> (LeaseId, Vec<u8>) {
        let lease = self.free.pop_front().expect("the world has enough leases");
        let mut bytes = vec![0; headroom];
        bytes.extend_from_slice(payload);
        (lease, bytes)
    }

    fn take(&mut self, lease: LeaseId) -> Vec<u8> {
        if lease.0 >= RESERVED_FROM {
            return self.recorder.reserved.remove(&lease).expect("a reserved lease is given once");
        }
        self.free.push_back(lease);
        self.leased.remove(&lease).expect("a lease is given back once")
    }

    /// Bytes of a span that stays leased.
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        let bytes = &self.leased[&span.lease];
        &bytes[span.start as usize..(span.start + span.len) as usize]
    }

    /// Carries out what needs no host: writes, releases, datagrams. Checks all invariants.
    fn settle(&mut self) -> Vec<Op> {
        let mut rest = vec![];
        for op in core::mem::take(&mut self.recorder.ops) {
            match op {
                Op::WriteFrame { span, offload } => {
                    let bytes = self.take(span.lease);
                    let range = span.start as usize..(span.start + span.len) as usize;
                    self.written.push_back(Written { bytes: bytes[range].to_vec(), offload });
                }
                Op::Release { lease } => drop(self.take(lease)),
                Op::Append { span, to, at } => {
                    let bytes = self.bytes(span).to_vec();
                    let target = self.leased.get_mut(&to).expect("it is leased");
                    assert!(at as usize + bytes.len() <= RESERVE_BYTES_MAX, "there is room");
                    target.truncate(at as usize);
                    target.extend_from_slice(&bytes);
                }
                Op::SendTo { span, to, more, .. } => {
                    let bytes = self.take(span.lease);
                    let range = span.start as usize..(span.start + span.len) as usize;
                    self.gathered.extend_from_slice(&bytes[range]);
                    if !more {
                        let bytes = core::mem::take(&mut self.gathered);
                        self.sent_to.push_back((to, bytes, op));
                    }
                }
                Op::HandOver { to, span, offload, more } => {
                    let bytes = self.take(span.lease);
                    let range = span.start as usize..(span.start + span.len) as usize;
                    self.gathered.extend_from_slice(&bytes[range]);
                    if !more {
                        let bytes = core::mem::take(&mut self.gathered);
                        self.handed_over.push_back((to, bytes, offload));
                    }
                }
                Op::HandOverClient { .. }
                | Op::TellNeighbor { .. }
                | Op::Connect { .. }
                | Op::Adopt { .. }
                | Op::Refuse { .. }
                | Op::Splice { .. }
                | Op::Send { .. }
                | Op::Peek { .. }
                | Op::Consume { .. }
                | Op::Shutdown { .. }
                | Op::Close { .. }
                | Op::Open { .. } => rest.push(op),
            }
        }
        self.shard.check();
        assert_eq!(
            self.leases_out() as u32,
            self.shard.leases_held(),
            "the core holds exactly the leases it says"
        );
        rest
    }
}

/// A forward to the guest with the id 1.
pub(crate) fn forward(protocol: Protocol, host_ports: (u16, u16), guest_port: u16) -> Forward {
    Forward { id: ForwardId(1), protocol, host_ports, guest: None, guest_port }
}

/// An address and port.
pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// What the guest sends: a UDP header with a right checksum, and the payload.
pub(crate) fn udp_segment(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len();
    let mut segment = vec![0; 8];
    segment[0..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    segment.extend_from_slice(payload);
    let sum = Sum::pseudo_header(from.ip(), to.ip(), protocol::UDP, len).bytes(&segment);
    segment[6..8].copy_from_slice(&sum.checksum().to_be_bytes());
    segment
}

/// A frame from the guest with `payload` behind its IP header.
pub(crate) fn ip_frame(
    from: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let config = Config::example();
    let ip = IpHeader {
        source_mac: config.guest_mac,
        destination_mac: config.host_mac,
        source: from.ip(),
        destination: to.ip(),
        protocol,
        tos: 0,
        hop_limit,
    };
    let mut frame = vec![0; ip.bytes()];
    ip.write(&mut frame, payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// A UDP datagram from the guest.
pub(crate) fn udp_frame(
    from: SocketAddr,
    to: SocketAddr,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    ip_frame(from, to, protocol::UDP, hop_limit, &udp_segment(from, to, payload))
}

/// A fragment from the guest: `payload` lies at `offset` in the datagram.
pub(crate) fn fragment_frame(
    from: SocketAddr,
    to: SocketAddr,
    id: u16,
    offset: usize,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let flags = (offset as u16 / 8) | if more && from.is_ipv4() { 0x2000 } else { 0 };
    if from.is_ipv4() {
        let mut frame = ip_frame(from, to, protocol::UDP, 64, payload);
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        frame[20..22].copy_from_slice(&flags.to_be_bytes());
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = Sum::default().bytes(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        return frame;
    }
    let mut body = vec![protocol::UDP, 0, 0, 0, 0, 0, 0, 0];
    body[2..4].copy_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
    body[6..8].copy_from_slice(&id.to_be_bytes());
    body.extend_from_slice(payload);
    ip_frame(from, to, 44, 64, &body)
}

/// A UDP datagram as the guest receives it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
}

impl Written {
    /// Reads a UDP datagram.
    pub(crate) fn datagram(&self) -> Received {
        let Ok(EtherType::Ip(ip)) = parse(&self.bytes) else { panic!("an IP packet: {self:?}") };
        assert_eq!(ip.protocol, protocol::UDP);
        let udp = &self.bytes[ip.payload()];
        assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
        Received {
            from: ip.from(u16::from_be_bytes([udp[0], udp[1]])),
            to: ip.to(u16::from_be_bytes([udp[2], udp[3]])),
            hop_limit: ip.hop_limit,
            payload: udp[8..].to_vec(),
        }
    }

    /// Reads an ICMP or ICMPv6 error: sender, type and code, and the quoted ports.
    pub(crate) fn icmp_error(&self) -> (IpAddr, (u8, u8), (u16, u16)) {
        let Ok(EtherType::Ip(ip)) = parse(&self.bytes) else { panic!("an IP packet: {self:?}") };
        assert!(matches!(ip.protocol, protocol::ICMP | protocol::ICMPV6));
        let icmp = &self.bytes[ip.payload()];
        let ports = &icmp[8 + if ip.source.is_ipv4() { 20 } else { 40 }..];
        let port = |n: usize| u16::from_be_bytes([ports[n], ports[n + 1]]);
        (ip.source, (icmp[0], icmp[1]), (port(0), port(2)))
    }
}
