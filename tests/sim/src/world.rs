//! Puts shards, guest and host together and lets time pass.

use std::net::SocketAddr;
use std::time::Duration;

use usernet_core::op::Outbox;
use usernet_core::{
    Counter, Input, Instant, LeaseId, Offload, Op, PeekedThen, Shard, ShardId, SocketId, Span,
};

use crate::conversation::Conversation;
use crate::env::{Env, Event};
use crate::fleet::{Fleet, Letter, Luggage, input_inside, op_outside, outside};
use crate::guest::Guest;
use crate::host::{Host, Told};
use crate::link::{Frame, Line};
use crate::watch::Watch;

/// Conversations that end without both ends' consent get this long to do so.
const PATIENCE: Duration = Duration::from_secs(240);
/// More inputs than any scenario needs: something turns in a circle.
const INPUTS_MAX: u64 = 3_000_000;

/// What a run was like.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Inputs given to the core.
    pub inputs: u64,
    /// Simulated time.
    pub lasted: Duration,
    /// Conversations.
    pub conversations: usize,
    /// Of these, excused because the guest's own stack had forgotten to retransmit.
    pub stuck: usize,
    /// Payload bytes moved by TCP, both ways.
    pub bytes: u64,
    /// Frames to the guest and from it.
    pub frames: u64,
    /// Floods of small segments.
    pub floods: u64,
    /// Frames and clients that came to another shard than their own.
    pub handed_over: u64,
    /// Flows that went to another shard, or came back.
    pub lent: u64,
}

/// Everything.
pub struct World {
    pub(crate) env: Env,
    pub(crate) fleet: Fleet,
    pub(crate) guest: Guest,
    pub(crate) host: Host,
    pub(crate) watch: Watch,
    pub(crate) from_guest: Line,
    pub(crate) to_guest: Line,
    /// Listening sockets of conversations that come in.
    pub(crate) listeners: Vec<(usize, SocketId)>,
    /// Frames for which no lease was free.
    pub(crate) backlog: std::collections::VecDeque<Frame>,
    pub(crate) ops: Vec<Op>,
    /// What shards have for each other, on its way.
    pub(crate) letters: std::collections::VecDeque<(usize, Letter)>,
    /// When the last of those that take their time arrives.
    pub(crate) last_letter: Instant,
    /// Flows that went to another shard, or came back.
    pub(crate) lent: u64,
    /// The shard that frames go to at the moment.
    pub(crate) queue: usize,
    /// Parts of a frame that is being handed over.
    pub(crate) gathered: Vec<u8>,
    pub(crate) inputs: u64,
    /// Leases of a `Peek` that are filled, but not yet handed over.
    pub(crate) unshown: u32,
    /// `Shard::check` after so many inputs.
    pub(crate) check_every: u64,
    /// Nothing is lost on the link, and nothing runs out.
    pub(crate) is_perfect: bool,
    /// Clean conversations are through by then.
    pub(crate) bound: Duration,
}

struct Desk<'a> {
    /// Whose.
    shard: usize,
    ops: &'a mut Vec<Op>,
    env: &'a mut Env,
}

impl Outbox for Desk<'_> {
    fn op(&mut self, op: Op) {
        self.ops.push(op_outside(self.shard, op));
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        assert!(size <= usernet_core::op::RESERVE_BYTES_MAX, "reserve({size})");
        if self.env.choices.chance(self.env.faults.starve) && !self.env.is_closing {
            return None;
        }
        let lease = self.env.ledger.lend(size)?;
        let bytes = self.env.ledger.shown(lease);
        bytes.fill(0xa5);
        Some((lease, bytes))
    }
}

impl World {
    /// Runs to the end. Panics where something is wrong.
    pub fn run(mut self) -> Summary {
        self.play();
        self.judge();
        self.close_down();
        let conversations = &self.env.conversations;
        Summary {
            inputs: self.inputs,
            lasted: self.env.now.since(Instant::ZERO),
            conversations: conversations.len(),
            stuck: conversations.iter().filter(|c| c.guest.is_stuck).count(),
            bytes: conversations.iter().map(|c| c.host.taken + c.guest.read).sum(),
            frames: self.fleet.counted(Counter::FramesFromGuest)
                + self.fleet.counted(Counter::FramesToGuest),
            floods: self.fleet.counted(Counter::TcpFloods),
            handed_over: self.fleet.counted(Counter::HandedOver)
                + self.fleet.counted(Counter::ClientsHandedOver),
            lent: self.lent,
        }
    }

    /// Until every conversation is over, or as over as it will get.
    fn play(&mut self) {
        let bound = Instant::ZERO + self.bound;
        let mut patience = None;
        while self.env.now < bound {
            let conversations = &self.env.conversations;
            let is_clean_left = conversations.iter().any(|c| c.plan.is_clean() && !c.is_over());
            let is_rough_left = conversations.iter().any(|c| !c.is_over());
            let is_app_left = self.guest.apps.verdict(false).is_err();
            if !is_clean_left && !is_app_left {
                let until = *patience.get_or_insert(self.env.now + PATIENCE);
                // What is still under way without a conversation (answers, letters) gets some time: smoltcp asks
                // for one address per second.
                let grace = self.env.now + Duration::from_secs(10);
                let until = if is_rough_left { until } else { until.min(grace) };
                self.advance_to(until, is_rough_left);
                if !is_rough_left || self.env.now >= until {
                    return;
                }
                continue;
            }
            if !self.step() {
                return;
            }
        }
    }

    /// Lets time pass to `until`, or to the end of the last conversation.
    fn advance_to(&mut self, until: Instant, stops_when_over: bool) {
        while self.next_at().is_some_and(|at| at <= until) {
            self.step();
            if stops_when_over && self.env.conversations.iter().all(|c| c.is_over()) {
                return;
            }
        }
        self.env.now = self.env.now.max(until);
    }

    fn judge(&self) {
        for (i, conversation) in self.env.conversations.iter().enumerate() {
            if let Err(why) = conversation.verdict(self.is_perfect) {
                panic!("conversation {i}: {why}\n{conversation:#?}");
            }
        }
        if let Err(why) = self.guest.apps.verdict(self.is_perfect) {
            panic!("{why}");
        }
        if self.is_perfect {
            if let Err(why) = self.env.mail.complete_verdict() {
                panic!("{why}");
            }
            // smoltcp's probes of a closed window advertise a window that it does not take what comes by: of a segment
            // that fills it, it drops the end. Those bytes have to be sent again, and are no more than its buffer.
            let resent = self.watch.resent;
            assert!(resent <= 10_000, "{resent} bytes sent again on a perfect link");
        }
    }

    /// Applications stop, faults too; then all tables run empty.
    fn close_down(&mut self) {
        self.env.is_closing = true;
        self.env.trace(|| "closing down".to_owned());
        self.from_guest.faults = Default::default();
        self.to_guest.faults = Default::default();
        self.host.close_down(&mut self.env);
        self.guest.next_at = Some(self.env.now);
        let end = self.env.now + Duration::from_secs(4 * 3600);
        while let Some(at) = self.next_at() {
            assert!(at < end, "the core does not come to rest: {:?}", self.fleet.next_deadline());
            self.step();
        }
        self.fleet.check();
        let flows = self.fleet.flows();
        assert!(flows.is_empty(), "flows are left: {flows:#?}");
        let open = self.host.open_sockets();
        assert!(open.is_empty(), "sockets are left: {open:?}");
        assert_eq!(self.host.accepted_waiting(), 0, "accepted connections are left");
        assert_eq!(self.env.ledger.held(), 0, "leases are left");
        assert_eq!(self.fleet.next_deadline(), None, "a deadline without a flow");
    }

    fn next_at(&self) -> Option<Instant> {
        let deadline = self.fleet.next_deadline().map(|(at, _)| at);
        [self.env.queue.next_at(), self.guest.next_at, deadline].into_iter().flatten().min()
    }

    /// One event; false when nothing is left to happen.
    fn step(&mut self) -> bool {
        let Some(at) = self.next_at() else { return false };
        assert!(self.inputs < INPUTS_MAX, "too many inputs: a circle");
        self.env.now = self.env.now.max(at);
        if self.guest.next_at.is_some_and(|due| due <= self.env.now) {
            self.poll_guest();
        } else if self.env.queue.next_at().is_some_and(|due| due <= self.env.now) {
            let event = self.env.queue.pop().expect("it is due");
            self.on_event(event);
        } else {
            self.tick();
        }
        self.serve_letters();
        self.serve_backlog();
        let is_turn_over = self.env.queue.next_at().is_none_or(|due| due > self.env.now);
        if is_turn_over || self.env.choices.chance(300) {
            self.flush();
        }
        true
    }

    fn tick(&mut self) {
        let before = self.fleet.next_deadline();
        // What one shard's tick sends to another may be due there at once.
        for _ in 0..=self.fleet.len() {
            for shard in self.fleet.due(self.env.now) {
                self.handle(shard, |shard, now, desk| shard.handle(now, Input::Tick, desk));
            }
            self.flush();
        }
        let after = self.fleet.next_deadline();
        let now = self.env.now;
        assert!(
            after.is_none_or(|(at, _)| at > now),
            "a tick at {now:?} leaves a deadline that has passed: {before:?}, {after:?}"
        );
    }

    fn poll_guest(&mut self) {
        for frame in self.guest.poll(&mut self.env) {
            self.env.trace(|| format!("guest -> {}", crate::trace::frame(&frame.bytes)));
            let arrivals = self.from_guest.carry(self.env.now, &mut self.env.choices, frame);
            for (at, frame) in arrivals {
                self.env.queue.push(at, Event::ToCore(frame));
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::ToCore(frame) => self.backlog.push_back(frame),
            Event::ToGuest(frame) => self.guest.on_frame(&self.env, frame.bytes),
            Event::Letter(to, letter) => self.letters.push_back((to, *letter)),
            Event::Nothing => {}
            Event::Connected(_)
            | Event::Failed(..)
            | Event::Send(_)
            | Event::Peek(_)
            | Event::Readable(_)
            | Event::Remote(_)
            | Event::Arrive(_)
            | Event::SpliceEnded(_)
            | Event::Spliced(..)
            | Event::Opened(_)
            | Event::Datagram(_)
            | Event::ClientDatagram(_) => {
                if let Some(told) = self.host.on_event(&mut self.env, event) {
                    self.env.trace(|| format!("host -> {told:?}"));
                    self.tell(told);
                }
            }
        }
    }

    /// Frames go in as buffers come free: back-pressure, as a TAP's queue has it.
    fn serve_backlog(&mut self) {
        while !self.backlog.is_empty() && self.env.ledger.has_free() {
            let Some(frame) = self.backlog.pop_front() else { return };
            let lease = self.env.ledger.lend(frame.bytes.len()).expect("one is free");
            self.env.ledger.shown(lease).copy_from_slice(&frame.bytes);
            self.watch.on_from_guest(&frame.bytes, frame.is_damaged);
            // The kernel steers by what it has learnt; chance is a harder test. Every change reorders a flow's frames.
            let shards = self.fleet.len() as u64;
            if shards > 1 && self.env.choices.chance(150) {
                self.queue = self.env.choices.below(shards) as usize;
            }
            let (shard, offload) = (self.queue, frame.offload);
            self.show(lease, |bytes| (shard, Input::Frame { lease, bytes, offload }));
        }
    }

    /// Letters arrive: at once where nothing goes wrong, and in the order in which they were sent.
    fn serve_letters(&mut self) {
        while self.env.ledger.has_free()
            && let Some((to, letter)) = self.letters.pop_front()
        {
            match letter {
                Letter::Frame { bytes: frame, offload } => {
                    let lease = self.env.ledger.lend(frame.len()).expect("one is free");
                    self.env.ledger.shown(lease).copy_from_slice(&frame);
                    self.show(lease, |bytes| (to, Input::HandedOver { lease, bytes, offload }));
                }
                Letter::Client { accepted, forward, peer, local } => {
                    let input = Input::ClientHandedOver { accepted, forward, peer, local };
                    self.handle(to, |shard, now, desk| shard.handle(now, input, desk));
                }
                Letter::Flow(luggage) => {
                    // Its id may be one whose `Close` is among these.
                    self.run_ops();
                    let (flow, stream) = luggage.open();
                    let now = self.env.now;
                    let socket = self.fleet.shard(to).take_in(now, flow);
                    self.host.take_in(&mut self.env, stream, outside(to, socket));
                    self.after_input();
                }
                Letter::Ended { guest, remote } => {
                    self.fleet.shard(to).forget_lent(guest, remote);
                }
                Letter::Neighbor { ip, mac } => {
                    let input = Input::Neighbor { ip, mac };
                    self.handle(to, |shard, now, desk| shard.handle(now, input, desk));
                }
            }
        }
    }

    /// A shard has something for another one. In a bad world it takes its time, and a frame may find the inbox full.
    fn post(&mut self, to: ShardId, letter: Letter) {
        let to = usize::from(to.0);
        if self.is_perfect || self.env.is_closing {
            if self.last_letter <= self.env.now {
                return self.letters.push_back((to, letter));
            }
            return self.env.queue.push(self.last_letter, Event::Letter(to, Box::new(letter)));
        }
        if matches!(letter, Letter::Frame { .. }) && self.env.choices.chance(5) {
            return;
        }
        let late = self.env.now + self.env.choices.duration(Duration::from_micros(300));
        self.last_letter = self.last_letter.max(late);
        self.env.queue.push(self.last_letter, Event::Letter(to, Box::new(letter)));
    }

    /// Gives a shard an input that shows a lease.
    fn show(&mut self, lease: LeaseId, input: impl FnOnce(&mut [u8]) -> (usize, Input<'_>)) {
        let (mut bytes, shown) = self.env.ledger.take(lease);
        // The buffer is not in the ledger meanwhile: nothing looks at it before the ops are run.
        let (shard, input) = input(&mut bytes[..shown]);
        let mut desk = Desk { shard, ops: &mut self.ops, env: &mut self.env };
        let now = desk.env.now;
        self.fleet.shard(shard).handle(now, input, &mut desk);
        self.env.ledger.put(lease, bytes);
        self.after_input();
    }

    fn handle(&mut self, shard: usize, give: impl FnOnce(&mut Shard, Instant, &mut Desk<'_>)) {
        let mut desk = Desk { shard, ops: &mut self.ops, env: &mut self.env };
        let now = desk.env.now;
        give(self.fleet.shard(shard), now, &mut desk);
        self.after_input();
    }

    fn flush(&mut self) {
        for shard in 0..self.fleet.len() {
            let mut desk = Desk { shard, ops: &mut self.ops, env: &mut self.env };
            let now = desk.env.now;
            if desk.env.choices.chance(20) {
                self.fleet.shard(shard).flush_amid_frames(now, &mut desk);
                self.run_ops();
            }
            let mut desk = Desk { shard, ops: &mut self.ops, env: &mut self.env };
            self.fleet.shard(shard).flush(now, &mut desk);
            self.run_ops();
            self.lend_by_chance(shard);
        }
    }

    /// Flows go to other shards and come back at any time that they can.
    fn lend_by_chance(&mut self, from: usize) {
        let (homes, shards) = (self.fleet.homes(), self.fleet.len());
        if homes == shards {
            return;
        }
        while let Some((guest, remote)) = self.fleet.shard(from).ended() {
            self.post(ShardId::FIRST, Letter::Ended { guest, remote });
        }
        if !self.env.choices.chance(100) {
            return;
        }
        let now = self.env.now;
        let shard = self.fleet.shard(from);
        let portable: Vec<_> = shard.in_bulk(now).chain(shard.quiet(now)).collect();
        if portable.is_empty() {
            return;
        }
        let socket = portable[self.env.choices.below(portable.len() as u64) as usize];
        let to = match from < homes {
            true => homes + self.env.choices.below((shards - homes) as u64) as usize,
            false => 0,
        };
        let to = ShardId(to as u8);
        let Some(flow) = self.fleet.shard(from).lend(socket, to) else { return };
        self.env.trace(|| format!("{flow:?} goes from {from} to {to:?}"));
        let stream = self.host.lend(outside(from, socket));
        self.lent += 1;
        self.post(to, Letter::Flow(Luggage::new(flow, stream)));
    }

    fn tell(&mut self, told: Told) {
        match told {
            Told::Connected(socket) => self.give(Input::Connected { socket }),
            Told::Failed(socket, error) => self.give(Input::Failed { socket, error }),
            Told::Sent(socket, bytes) => self.give(Input::Sent { socket, bytes }),
            Told::PeekEmpty(socket) => self.give(Input::PeekEmpty { socket }),
            Told::PeekEnd(socket) => self.give(Input::PeekEnd { socket }),
            Told::Readable(socket) => self.give(Input::Readable { socket }),
            Told::Spliced(socket) => self.give(Input::Spliced { socket }),
            Told::SpliceEnded(socket) => {
                // Both descriptors are closed before it is told: from then on the id may be another's.
                self.host.forget(&mut self.env, socket);
                self.give(Input::SpliceEnded { socket, to_guest: 0, from_guest: 0 });
            }
            Told::Opened(socket, local) => self.give(Input::Opened { socket, local }),
            Told::Peeked(socket, leases, last_then) => {
                let last = leases.len() - 1;
                self.unshown = leases.len() as u32;
                for (i, lease) in leases.into_iter().enumerate() {
                    self.unshown -= 1;
                    // A Close between them silences the rest.
                    if self.host.is_open(socket) {
                        let then = if i < last { PeekedThen::More } else { last_then };
                        self.show(lease, |bytes| {
                            input_inside(Input::Peeked { socket, lease, bytes, then })
                        });
                    } else {
                        self.env.ledger.give_back(lease, "the driver");
                    }
                }
            }
            Told::Accepted { accepted, conversation } => {
                let listener = self.listeners.iter().find(|(c, _)| *c == conversation);
                let listener = listener.expect("it has a listener").1;
                let plan = &self.env.conversations[conversation].plan;
                let (peer, local) = (plan.peer, local_for(plan.peer, plan.guest.port()));
                self.give(Input::Accepted { accepted, listener, peer, local });
            }
            Told::Datagram { socket, lease, from, local, segment } => {
                self.show(lease, |bytes| {
                    input_inside(Input::Datagram {
                        socket,
                        lease,
                        bytes,
                        from,
                        local,
                        segment,
                        hop_limit: 60,
                        tos: 0,
                    })
                });
            }
            Told::DatagramError { socket, to, error, offender, payload } => {
                let payload = payload.as_slice();
                self.give(Input::DatagramError { socket, to, error, offender, payload });
            }
        }
    }

    fn give(&mut self, input: Input<'_>) {
        let (shard, input) = input_inside(input);
        self.handle(shard, |shard, now, desk| shard.handle(now, input, desk));
    }

    fn after_input(&mut self) {
        self.run_ops();
        self.inputs += 1;
        let held = self.fleet.leases_held();
        let lent = self.env.ledger.held() - self.unshown;
        assert_eq!(held, lent, "leases the core says it holds, and those it has");
        if self.inputs.is_multiple_of(self.check_every) {
            self.fleet.check();
        }
        self.serve_letters();
    }

    fn run_ops(&mut self) {
        let mut ops = std::mem::take(&mut self.ops);
        for op in ops.drain(..) {
            match op {
                Op::WriteFrame { span, offload } => self.write_frame(span, offload),
                Op::HandOver { to, span, offload, more } => {
                    let bytes = self.env.ledger.bytes(span, "HandOver");
                    self.gathered.extend_from_slice(bytes);
                    self.env.ledger.give_back(span.lease, "HandOver");
                    if !more {
                        let bytes = std::mem::take(&mut self.gathered);
                        self.post(to, Letter::Frame { bytes, offload });
                    }
                }
                Op::HandOverClient { to, accepted, forward } => {
                    let conversation = self.host.conversation_of(accepted);
                    let plan = &self.env.conversations[conversation].plan;
                    let (peer, local) = (plan.peer, local_for(plan.peer, plan.guest.port()));
                    self.post(to, Letter::Client { accepted, forward, peer, local });
                }
                Op::TellNeighbor { to, ip, mac } => self.post(to, Letter::Neighbor { ip, mac }),
                Op::Consume { socket, .. } => {
                    self.host.on_op(&mut self.env, op);
                    self.check_consumed(socket);
                }
                Op::Append { span, to, at } => self.env.ledger.append(span, to, at),
                Op::Release { .. }
                | Op::Connect { .. }
                | Op::Adopt { .. }
                | Op::Refuse { .. }
                | Op::Splice { .. }
                | Op::Send { .. }
                | Op::Peek { .. }
                | Op::Shutdown { .. }
                | Op::Close { .. }
                | Op::Open { .. }
                | Op::SendTo { .. } => {
                    if !matches!(op, Op::Release { .. }) {
                        self.env.trace(|| format!("core -> {op:?}"));
                    }
                    self.host.on_op(&mut self.env, op);
                }
            }
        }
        self.ops = ops;
    }

    /// Nothing leaves the host's queue that the guest has not acknowledged.
    fn check_consumed(&self, socket: SocketId) {
        let owner = self.env.conversations.iter().find(|c| c.host.socket == Some(socket));
        let Some(conversation) = owner else { return };
        let acknowledged =
            self.watch.acknowledged(conversation.plan.guest, conversation.plan.remote);
        let consumed = conversation.host.consumed;
        assert!(consumed <= acknowledged, "{consumed} consumed, {acknowledged} acknowledged");
    }

    /// The guest hears of a connection once there is one.
    fn check_answer(&self, guest: SocketAddr, remote: SocketAddr) {
        let is_it = |c: &&Conversation| c.plan.guest == guest && c.plan.remote == remote;
        let conversation = self.env.conversations.iter().find(is_it);
        let conversation =
            conversation.unwrap_or_else(|| panic!("SYN for no conversation: {guest}"));
        assert!(conversation.host.was_connected, "SYN before the host's side is connected");
    }

    fn write_frame(&mut self, span: Span, offload: Offload) {
        let bytes = self.env.ledger.bytes(span, "WriteFrame").to_vec();
        self.env.ledger.give_back(span.lease, "WriteFrame");
        self.env.trace(|| format!("core -> {} {:?}", crate::trace::frame(&bytes), offload.gso));
        if let Some((guest, remote)) = self.watch.on_to_guest(&bytes, offload) {
            self.check_answer(guest, remote);
        }
        // Datagrams on the link at one time differ in it.
        let identification = self.inputs as u16;
        for bytes in crate::cut::cut(&bytes, offload, self.env.config.mtu, identification) {
            self.watch.on_cut(&bytes);
            let frame = Frame { bytes, offload: Offload::default(), is_damaged: false };
            let arrivals = self.to_guest.carry(self.env.now, &mut self.env.choices, frame);
            for (at, frame) in arrivals {
                self.env.queue.push(at, Event::ToGuest(frame));
            }
        }
    }
}

/// The host's address that a client connected to.
pub(crate) fn local_for(peer: SocketAddr, port: u16) -> SocketAddr {
    let ip: std::net::IpAddr = match (peer.ip().is_loopback(), peer.is_ipv4()) {
        (true, true) => std::net::Ipv4Addr::LOCALHOST.into(),
        (true, false) => std::net::Ipv6Addr::LOCALHOST.into(),
        (false, true) => std::net::Ipv4Addr::new(192, 0, 2, 9).into(),
        (false, false) => std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into(),
    };
    SocketAddr::new(ip, port)
}
