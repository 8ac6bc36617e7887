//! Fixed logs of inputs, replayed through a fresh shard.
//!
//! # Theory of operation
//!
//! A [case](cases) plays the guest and the host against a live shard through a [`Recorder`], which writes down every input.
//! Its answers depend on what the shard asks for, so a case is written as a conversation and not as a list of
//! packets. The [`Log`] that comes out depends on nothing but the code: no clock, no chance (the shard's hashes have the
//! configuration's seed), no file.
//!
//! [`Replay`] feeds the log to another shard, and does nothing else in the part that is measured: no frame is built, no
//! op is looked at, nothing is allocated. Afterwards the ops have to be those of the recording, one by one, so a
//! replay that does nothing, or something else, is no measurement but a panic.

pub mod cases;
mod guest;
mod record;

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use usernet_core::packet::offload;
use usernet_core::{Config, Input, Instant, LeaseId, Offload, Op, Outbox, PeekedThen, Rules};
use usernet_core::{Shard, SocketId};

pub use record::Recorder;

/// Leases from here on are made by `reserve`.
const RESERVED_FROM: u32 = 4_096;
/// The most leases that anybody has at once, of either kind.
const LEASES: u32 = 4_096;

/// What a case is about: a shard before anything happened to it.
#[derive(Clone, Debug)]
struct Start {
    config: Config,
    rules: Arc<Rules>,
}

/// What a driver does.
#[derive(Debug)]
enum What {
    Frame {
        lease: LeaseId,
        bytes: Vec<u8>,
        offload: Offload,
    },
    Peeked {
        socket: SocketId,
        lease: LeaseId,
        bytes: Vec<u8>,
        then: PeekedThen,
    },
    Datagram {
        socket: SocketId,
        lease: LeaseId,
        bytes: Vec<u8>,
        from: SocketAddr,
        segment: u16,
    },
    /// An input without bytes. It is taken out when it is told.
    Told(Input<'static>),
    /// The end of a turn: flush, and when to come back.
    TurnEnds,
    /// A frame is cut for a link without offload.
    Cut {
        bytes: Vec<u8>,
        offload: Offload,
    },
}

#[derive(Debug)]
struct Step {
    now: Instant,
    what: What,
}

/// A conversation that was held once.
#[derive(Debug)]
pub struct Log {
    start: Start,
    /// What has to be there before: connections, mappings.
    setup: Vec<Step>,
    measured: Vec<Step>,
    /// The ops of both parts.
    ops: Vec<Op>,
    /// Frames that cut ones became.
    cut: u64,
    /// How many of what the case counts happen in the measured part.
    pub units: u64,
}

/// Takes ops, and lends one buffer over and over: nothing keeps a reserved one.
#[derive(Debug)]
struct Taker {
    ops: Vec<Op>,
    reserved: u32,
    buffer: Vec<u8>,
    cut: u64,
}

impl Taker {
    fn new(ops: usize) -> Self {
        let buffer = vec![0; usernet_core::op::RESERVE_BYTES_MAX];
        Self { ops: Vec::with_capacity(ops), reserved: 0, buffer, cut: 0 }
    }
}

impl Outbox for Taker {
    fn op(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        let lease = LeaseId(RESERVED_FROM + self.reserved % LEASES);
        self.reserved = self.reserved.wrapping_add(1);
        Some((lease, &mut self.buffer[..size]))
    }
}

impl Start {
    /// The shard, with a listener for every forward on its first port.
    fn shard(&self) -> Shard {
        let mut shard = Shard::new(self.config.clone(), Arc::clone(&self.rules));
        for forward in &self.rules.forwards {
            let local = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), forward.host_ports.0);
            let attached = shard.attach_listener(forward.id, forward.protocol, local);
            attached.expect("there is room for the listeners");
        }
        shard
    }
}

impl Step {
    fn run(&mut self, shard: &mut Shard, out: &mut Taker) {
        let now = self.now;
        match &mut self.what {
            What::Frame { lease, bytes, offload } => {
                let input = Input::Frame { lease: *lease, bytes, offload: *offload };
                shard.handle(now, input, out);
            }
            What::Peeked { socket, lease, bytes, then } => {
                let input = Input::Peeked { socket: *socket, lease: *lease, bytes, then: *then };
                shard.handle(now, input, out);
            }
            What::Datagram { socket, lease, bytes, from, segment } => {
                let input = Input::Datagram {
                    socket: *socket,
                    lease: *lease,
                    bytes,
                    from: *from,
                    local: usernet_core::LocalId::ANY,
                    segment: *segment,
                    hop_limit: 60,
                    tos: 0,
                };
                shard.handle(now, input, out);
            }
            What::Told(input) => shard.handle(now, std::mem::replace(input, Input::Tick), out),
            What::TurnEnds => {
                shard.flush(now, out);
                black_box(shard.next_deadline());
            }
            What::Cut { bytes, offload } => {
                let mtu = shard.config().mtu;
                let cut = &mut out.cut;
                let done = offload::cut(bytes, *offload, mtu, 0, &mut |headers, payload| {
                    black_box((headers, payload));
                    *cut += 1;
                });
                done.expect("the frame is what it says it is");
            }
        }
    }
}

/// The measured part, and nothing else: callgrind collects between entering and leaving this function.
#[inline(never)]
fn measured_part(shard: &mut Shard, steps: &mut [Step], out: &mut Taker) {
    for step in steps {
        step.run(shard, out);
    }
}

/// The name by which [`Replay::run`]'s measured part is found in a profile.
pub const MEASURED_PART: &str = "*measured_part*";

/// A log, and the shard that it is fed to.
pub struct Replay {
    log: Log,
    shard: Box<Shard>,
    out: Taker,
}

impl Replay {
    /// A shard that is where the measured part begins.
    pub fn new(mut log: Log) -> Self {
        let mut shard = Box::new(log.start.shard());
        let mut out = Taker::new(log.ops.len() + 1);
        for step in &mut log.setup {
            step.run(&mut shard, &mut out);
        }
        Self { log, shard, out }
    }

    /// Replays the measured part, once.
    pub fn run(&mut self) {
        measured_part(&mut self.shard, &mut self.log.measured, &mut self.out);
    }

    /// Panics if something else came out than when the log was recorded.
    pub fn check(&self) {
        assert_eq!(self.out.ops.len(), self.log.ops.len(), "as many ops as in the recording");
        for (n, (now, then)) in self.out.ops.iter().zip(&self.log.ops).enumerate() {
            assert_eq!(now, then, "op {n} is that of the recording");
        }
        assert_eq!(self.out.cut, self.log.cut, "as many frames as in the recording");
        self.shard.check();
    }

    /// What was counted.
    pub fn units(&self) -> u64 {
        self.log.units
    }
}
