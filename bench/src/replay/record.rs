//! Plays a guest and a host against a live shard, and writes down what they do.

use std::sync::Arc;
use std::time::Duration;

use std::net::SocketAddr;
use usernet_core::op::HEADROOM;
use usernet_core::rules::{Access, HostLoopback};
use usernet_core::{
    Config, Counter, Input, Instant, LeaseId, Offload, Op, PeekedThen, Rules, Shard, SocketId,
};

use super::{LEASES, Log, RESERVED_FROM, Start, Step, Taker, What};

/// Between two turns.
const TURN: Duration = Duration::from_micros(10);

/// A live shard, and the log so far.
pub struct Recorder {
    start: Start,
    shard: Shard,
    out: Taker,
    now: Instant,
    /// Leases that neither the core nor an op of it has.
    free: Vec<LeaseId>,
    setup: Vec<Step>,
    measured: Vec<Step>,
    /// Where the ops of the measured part begin; none: not there yet.
    measured_from: Option<usize>,
    /// Ops that the case has looked at.
    seen: usize,
}

impl Recorder {
    /// A guest with the example configuration and one resolver; nothing of the host's loopback, no forwards.
    pub(super) fn new() -> Self {
        let config = Config::example();
        let resolvers = vec!["192.0.2.53:53".parse().expect("an address")];
        let access = Access::new(&config, HostLoopback::None);
        let rules = Rules::new(&config, &access, vec![], resolvers);
        Self::with(config, rules)
    }

    pub(super) fn with(mut config: Config, rules: Arc<Rules>) -> Self {
        config.limits.leases = RESERVED_FROM + LEASES;
        let start = Start { config, rules };
        Self {
            shard: start.shard(),
            start,
            out: Taker::new(0),
            now: Instant::from_nanos(1_000_000_000),
            free: (0..RESERVED_FROM).rev().map(LeaseId).collect(),
            setup: Vec::new(),
            measured: Vec::new(),
            measured_from: None,
            seen: 0,
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.start.config
    }

    /// The guest sends a frame.
    pub(super) fn frame(&mut self, bytes: Vec<u8>, offload: Offload) {
        let lease = self.lease();
        let frame = |bytes| What::Frame { lease, bytes, offload };
        self.step(frame(bytes.clone()), frame(bytes));
    }

    /// A peek brings `len` bytes.
    pub(super) fn peeked(&mut self, socket: SocketId, len: usize, then: PeekedThen) {
        let lease = self.lease();
        let peeked = || What::Peeked { socket, lease, bytes: vec![0; HEADROOM + len], then };
        self.step(peeked(), peeked());
    }

    /// A datagram comes from the host side.
    pub(super) fn datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        payload: &[u8],
        segment: u16,
    ) {
        let lease = self.lease();
        let datagram = || {
            let mut bytes = vec![0; HEADROOM];
            bytes.extend_from_slice(payload);
            What::Datagram { socket, lease, bytes, from, segment }
        };
        self.step(datagram(), datagram());
    }

    /// An input without bytes.
    pub(super) fn tell(&mut self, input: impl Fn() -> Input<'static>) {
        self.step(What::Told(input()), What::Told(input()));
    }

    /// A frame to the guest is cut for a link without offload.
    pub(super) fn cut(&mut self, bytes: Vec<u8>, offload: Offload) {
        let cut = |bytes| What::Cut { bytes, offload };
        self.step(cut(bytes.clone()), cut(bytes));
    }

    /// The end of a turn.
    pub(super) fn turn(&mut self) {
        self.step(What::TurnEnds, What::TurnEnds);
        self.now = self.now + TURN;
    }

    /// Time passes, with a tick at its end.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.tell(|| Input::Tick);
        self.turn();
    }

    /// Ops that were not looked at yet.
    pub(super) fn ops(&mut self) -> Vec<Op> {
        let new = self.out.ops[self.seen..].to_vec();
        self.seen = self.out.ops.len();
        new
    }

    /// The frame that the core has made last.
    pub(super) fn last_frame(&self) -> &[u8] {
        &self.out.buffer
    }

    /// What a counter has come to.
    pub(super) fn counted(&self, counter: Counter) -> u64 {
        self.shard.counters().value(counter)
    }

    /// Flows that there are.
    pub(super) fn flows(&self) -> usize {
        self.shard.flows().count()
    }

    /// What comes now is measured.
    pub(super) fn measure(&mut self) {
        assert!(self.measured_from.is_none(), "one part is measured");
        self.seen = self.out.ops.len();
        self.measured_from = Some(self.out.ops.len());
    }

    /// The ops of the measured part.
    pub(super) fn measured_ops(&self) -> &[Op] {
        &self.out.ops[self.measured_from.expect("a part is measured")..]
    }

    /// Frames that cut ones became.
    pub(super) fn frames_cut(&self) -> u64 {
        self.out.cut
    }

    /// The log. `units`: of what the case counts.
    pub(super) fn finish(self, units: usize) -> Log {
        self.shard.check();
        let idle = LEASES as usize - self.shard.leases_held() as usize;
        assert_eq!(self.free.len(), idle, "every lease came back");
        let Self { start, setup, measured, out: Taker { ops, cut, .. }, .. } = self;
        assert!(!measured.is_empty(), "a part is measured");
        Log { start, setup, measured, ops, cut, units: units as u64 }
    }

    fn lease(&mut self) -> LeaseId {
        self.free.pop().expect("the recorder has enough leases")
    }

    /// Runs one of two equal steps, and writes the other one down: the core writes into frames.
    fn step(&mut self, run: What, record: What) {
        let now = self.now;
        let before = self.out.ops.len();
        Step { now, what: run }.run(&mut self.shard, &mut self.out);
        let step = Step { now, what: record };
        match self.measured_from {
            None => self.setup.push(step),
            Some(_) => self.measured.push(step),
        }
        for op in &self.out.ops[before..] {
            let (Op::WriteFrame { span: usernet_core::Span { lease, .. }, .. }
            | Op::SendTo { span: usernet_core::Span { lease, .. }, .. }
            | Op::Release { lease }) = *op
            else {
                continue;
            };
            if lease.0 < RESERVED_FROM {
                self.free.push(lease);
            }
        }
    }
}
