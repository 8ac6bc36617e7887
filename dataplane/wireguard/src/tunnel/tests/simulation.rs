//! Tunnels on a clock of our own: hours in a second, on a wire that loses, repeats and reorders.
//!
//! boringtun reads the clock itself, so it is built to read this thread's (`--features simulated-clock`). A failure of the
//! random runs prints its seed; `SEED=N` runs that one, `SEEDS=N` that many.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use mock_instant::MockClock;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

impl Net {
    /// Lets time pass without looking.
    fn pass(&mut self, time: Duration) {
        MockClock::advance(time);
        self.now = self.now + time;
    }

    /// The next deadline of any end.
    fn deadline(&self) -> Option<Instant> {
        self.ends.iter().filter_map(|end| end.tunnel.next_deadline()).min()
    }

    /// Lets time pass on a good wire, with what is due in between. How often somebody woke up.
    fn run(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        let mut wake_ups = 0;
        self.deliver();
        while let Some(deadline) = self.deadline().filter(|deadline| *deadline <= end) {
            self.pass(deadline.since(self.now));
            self.tick();
            self.deliver();
            wake_ups += 1;
            assert!(wake_ups < 10_000, "it goes back to sleep");
        }
        self.pass(end.since(self.now));
        wake_ups
    }

    /// As [`run`](Self::run), on a wire that loses all. What was sent, by whom and when.
    fn run_deaf(&mut self, time: Duration) -> Vec<(usize, Instant, u8)> {
        let end = self.now + time;
        let mut sent = Vec::new();
        loop {
            for (number, end) in self.ends.iter_mut().enumerate() {
                let wire = std::mem::take(&mut end.out.wire);
                sent.extend(wire.iter().map(|(_, train, _)| (number, self.now, train[0])));
            }
            let Some(deadline) = self.deadline().filter(|deadline| *deadline <= end) else { break };
            self.pass(deadline.since(self.now));
            self.tick();
        }
        self.pass(end.since(self.now));
        sent
    }

    fn send_small(&mut self, from: usize, to: usize, text: &[u8]) {
        self.send(from, udp(from as u8, to as u8, true, text), Offload::default());
    }

    /// What a tunnel says of its first peer's last handshake.
    fn handshake_age(&self, end: usize) -> Option<Duration> {
        let wall = Duration::from_secs(1 << 30);
        let peers = self.ends[end].tunnel.device(self.now, wall).peers;
        peers[0].last_handshake.map(|at| wall - at)
    }
}

#[test]
fn keys_are_renewed_after_two_minutes_while_packets_flow_and_none_is_lost() {
    let mut net = Net::talking();
    for n in 0..3_600_u32 {
        net.send_small(0, 1, &n.to_be_bytes());
        net.deliver();
        let got = net.guest(1);
        assert_eq!(got.len(), 1, "second {n}");
        assert_eq!(got[0].0[28..], n.to_be_bytes());
        let age = net.handshake_age(1).expect("a session");
        assert!(age <= Duration::from_secs(121), "{age:?}");
        net.run(SECOND);
    }
    let handshakes = net.count(0, Counter::Handshakes);
    assert!((29..=32).contains(&handshakes), "{handshakes} in an hour");
    assert_eq!(net.count(1, Counter::DropUnknownSession), 0);
}

#[test]
fn who_only_receives_renews_its_keys_before_they_end() {
    let mut net = Net::talking();
    for n in 0..600_u32 {
        net.send_small(1, 0, &n.to_be_bytes());
        net.deliver();
        assert_eq!(net.guest(0).len(), 1, "second {n}");
        net.run(SECOND);
    }
    assert!(net.count(0, Counter::Handshakes) >= 3);
}

#[test]
fn keys_are_not_used_for_longer_than_three_minutes() {
    let mut net = Net::talking();
    net.run(Duration::from_secs(170));
    // Nothing of the renewal comes through.
    for _ in 0..11 {
        net.send_small(0, 1, b"renew!");
        net.run_deaf(SECOND);
    }
    net.send_small(0, 1, b"late");
    let kinds: Vec<_> = net.ends[0].out.wire.iter().map(|(_, train, _)| train[0]).collect();
    assert!(!kinds.contains(&4), "no data leaves under the old keys: {kinds:?}");
    net.run_deaf(SECOND);
    // It is told apart from what comes later.
    net.send_small(1, 0, b"neither from the other end");
    assert!(net.ends[1].out.wire.iter().all(|(_, train, _)| train[0] != 4));
}

#[test]
fn keys_that_have_ended_open_nothing() {
    let mut net = Net::talking();
    net.send_small(0, 1, b"on its way for long");
    let (_, train, size) = net.ends[0].out.wire.remove(0);
    net.run(Duration::from_secs(185));
    let from = net.ends[0].address;
    net.receive(1, from, train, size);
    assert_eq!(net.guest(1), []);
    assert_eq!(net.count(1, Counter::DropUnknownSession), 1);
}

#[test]
fn nobody_there_is_asked_every_five_seconds_for_ninety_and_then_no_more() {
    let mut net = Net::pair();
    net.send_small(0, 1, b"anybody?");
    let sent = net.run_deaf(Duration::from_secs(600));
    assert!(sent.iter().all(|(end, _, kind)| (*end, *kind) == (0, 1)));
    assert!((16..=19).contains(&sent.len()), "{} initiations", sent.len());
    for pair in sent.windows(2) {
        let gap = pair[1].1.since(pair[0].1);
        assert!((5 * SECOND..6 * SECOND).contains(&gap), "{gap:?}");
    }
    assert_eq!(net.count(0, Counter::Unanswered), 1);
    assert_eq!(net.count(0, Counter::DropNoSession), 1, "what waited is lost, and counted");
    assert_eq!(net.ends[0].tunnel.next_deadline(), None, "it has given up");
    net.guest(1);
    net.send_small(0, 1, b"and now?");
    net.deliver();
    assert_eq!(net.guest(1).len(), 1, "a packet starts it again");
}

#[test]
fn what_waited_goes_out_when_the_peer_comes_back() {
    let mut net = Net::pair();
    net.send_small(0, 1, b"patience");
    net.run_deaf(Duration::from_secs(60));
    net.run(Duration::from_secs(6));
    assert_eq!(net.guest(1).len(), 1);
}

#[test]
fn a_silent_tunnel_sleeps() {
    let mut net = Net::talking();
    let wake_ups = net.run(Duration::from_secs(3_600));
    assert!(wake_ups <= 12, "{wake_ups} wake-ups in an hour");
    assert_eq!(net.deadline(), None);
    let before = net.count(0, Counter::Initiations);
    net.send_small(1, 0, b"good morning");
    net.deliver();
    assert_eq!(net.guest(0).len(), 1, "one handshake later it carries again");
    assert_eq!(net.count(0, Counter::Initiations), before);
}

#[test]
fn data_is_answered_within_ten_seconds_if_only_by_an_empty_packet() {
    let mut net = Net::talking();
    net.run(Duration::from_secs(30));
    let before = net.count(1, Counter::Keepalives);
    net.send_small(0, 1, b"one way");
    net.deliver();
    net.run(Duration::from_secs(9));
    assert_eq!(net.count(1, Counter::Keepalives), before);
    net.run(Duration::from_secs(2));
    assert_eq!(net.count(1, Counter::Keepalives), before + 1);
    let handshakes = net.count(0, Counter::Initiations);
    net.run(Duration::from_secs(60));
    assert_eq!(net.count(0, Counter::Initiations), handshakes, "the answer was heard");
}

#[test]
fn who_hears_nothing_for_fifteen_seconds_asks_for_new_keys() {
    let mut net = Net::talking();
    net.run(Duration::from_secs(30));
    net.send_small(0, 1, b"hello?");
    let sent = net.run_deaf(Duration::from_secs(17));
    let asked = sent.iter().find(|(end, _, kind)| (*end, *kind) == (0, 1)).expect("it asks");
    let after = asked.1.since(sent[0].1);
    assert!((15 * SECOND..16 * SECOND).contains(&after), "{after:?}");
}

#[test]
fn a_packet_after_a_pause_costs_no_handshake() {
    let mut net = Net::talking();
    for _ in 0..5 {
        net.run(Duration::from_secs(20));
        for _ in 0..4 {
            net.send_small(0, 1, b"still there?");
            net.run(SECOND / 2);
        }
    }
    assert_eq!(net.count(0, Counter::Initiations), 1);
}

#[test]
fn a_persistent_keepalive_comes_in_silence_only() {
    let interval = Some(Duration::from_secs(25));
    let mut net = Net::new(2, |number, config| {
        config.peers[0].persistent_keepalive = interval.filter(|_| number == 0);
    });
    net.tick();
    net.deliver();
    assert_eq!(net.count(1, Counter::Handshakes), 1, "it calls by itself");
    let before = net.count(0, Counter::Keepalives);
    net.run(Duration::from_secs(1_000));
    let silent = net.count(0, Counter::Keepalives) - before;
    assert!((35..=42).contains(&silent), "{silent} in 1000 s");
    for _ in 0..50 {
        net.send_small(0, 1, b"busy");
        net.run(Duration::from_secs(20));
    }
    let busy = net.count(0, Counter::Keepalives) - before - silent;
    assert!(busy <= 10, "{busy} although packets went");
}

#[test]
fn both_may_begin_at_once() {
    let mut net = Net::pair();
    net.send_small(0, 1, b"me first");
    net.send_small(1, 0, b"no, me");
    net.deliver();
    assert_eq!((net.guest(0).len(), net.guest(1).len()), (1, 1));
    for n in 0..200_u32 {
        net.send_small(n as usize % 2, 1 - n as usize % 2, &n.to_be_bytes());
        net.deliver();
        net.run(SECOND);
    }
    assert_eq!((net.guest(0).len(), net.guest(1).len()), (100, 100));
}

#[test]
fn under_load_a_peer_gets_in_by_its_cookie() {
    let mut net = Net::pair();
    net.send_small(0, 1, b"hello");
    let noise = net.ends[0].out.wire[0].1.clone();
    let mut is_in = false;
    for attempt in 0..5 {
        // Strangers come first, whenever the peer calls.
        for n in 0..400_u32 {
            let from = SocketAddr::from(((n + 1).to_be_bytes(), 1_000));
            net.receive(1, from, noise.clone(), noise.len());
        }
        net.ends[1].out.wire.clear();
        net.deliver();
        is_in = net.guest(1).len() == 1;
        if is_in {
            assert_eq!(attempt, 1, "a cookie, and then the session");
            break;
        }
        let retry = net.deadline().expect("it tries again");
        net.pass(retry.since(net.now));
        net.tick();
    }
    assert!(is_in, "{:?}", net.ends[1].tunnel.counters());
    assert!(net.count(1, Counter::Cookies) >= 600);
}

#[test]
fn a_key_changed_while_packets_flow_costs_a_handshake() {
    let mut net = Net::talking();
    for n in 0..100_u32 {
        if n == 50 {
            let key = PresharedKey::from_bytes([9; 32]);
            for end in 0..2 {
                let other = net.ends[1 - end].key;
                let change =
                    PeerChange { preshared_key: Some(Some(key.clone())), ..PeerChange::new(other) };
                net.ends[end].tunnel.apply(&Changes { peers: vec![change], ..Changes::default() });
            }
        }
        net.send_small(0, 1, &n.to_be_bytes());
        net.deliver();
        assert_eq!(net.guest(1).len(), 1, "packet {n}");
        net.run(SECOND / 10);
    }
    assert_eq!(net.count(1, Counter::Handshakes), 2);
}

/// A wire that does what wires do, and guests who remember.
struct World {
    net: Net,
    random: u64,
    /// By arrival and order: where to, from, the datagram.
    flight: BinaryHeap<Reverse<(Instant, u64, usize, SocketAddr, Vec<u8>)>>,
    launched: u64,
    /// Of a hundred.
    loss: u64,
    /// What was sent: from, to. Taken out when it arrives.
    sent: HashMap<Vec<u8>, (usize, usize)>,
    packets: u64,
    arrived: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let ends = 2 + (seed % 2) as u8;
        let net = Net::new(ends, |number, config| {
            for peer in &mut config.peers {
                let is_called = (seed >> 3).wrapping_add(u64::from(number)).is_multiple_of(3);
                peer.persistent_keepalive = is_called.then_some(Duration::from_secs(25));
                if seed.is_multiple_of(5) {
                    peer.preshared_key = Some(PresharedKey::from_bytes([4; 32]));
                }
            }
        });
        Self {
            net,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            flight: BinaryHeap::new(),
            launched: 0,
            loss: [0, 1, 10, 40][(seed / 2 % 4) as usize],
            sent: HashMap::new(),
            packets: 0,
            arrived: 0,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }

    /// Puts what the ends have sent on the wire.
    fn launch(&mut self) {
        for end in 0..self.net.ends.len() {
            let from = self.net.ends[end].address;
            for (to, train, size) in std::mem::take(&mut self.net.ends[end].out.wire) {
                let to = self.net.ends.iter().position(|end| end.address == to).expect("an end");
                for datagram in train.chunks(size) {
                    let copies = 1 + u64::from(self.loss > 0 && self.below(50) == 0);
                    for _ in 0..copies {
                        if self.below(100) < self.loss {
                            continue;
                        }
                        let delay = if self.loss == 0 { 10 } else { 5 + self.below(40) };
                        let at = self.net.now + Duration::from_millis(delay);
                        self.launched += 1;
                        let flight = (at, self.launched, to, from, datagram.to_vec());
                        self.flight.push(Reverse(flight));
                    }
                }
            }
        }
    }

    /// Checks what guests got against what was sent.
    fn look(&mut self) {
        for end in 0..self.net.ends.len() {
            for (mut packet, offload) in self.net.guest(end) {
                let mut pieces = Vec::new();
                offload::cut_in_place(&mut packet, offload, &mut |p| pieces.push(p.to_vec()))
                    .expect("what the guest gets can be cut");
                for piece in pieces {
                    let parsed = parse_ip(&piece).expect("an IP packet");
                    let transport = &piece[parsed.payload()];
                    let (source, destination) = (parsed.source, parsed.destination);
                    assert!(checksum::is_valid(source, destination, parsed.protocol, transport));
                    let (from, to) =
                        self.sent.remove(&piece).expect("it was sent, and came once only");
                    assert_eq!((to, inner(from as u8, source.is_ipv4())), (end, source));
                    self.arrived += 1;
                }
            }
            for peer in self.net.ends[end].tunnel.device(self.net.now, Duration::ZERO).peers {
                assert!(peer.endpoint.is_some());
            }
        }
    }

    /// A guest sends one packet, or a super-frame.
    fn talk(&mut self) {
        let ends = self.net.ends.len() as u64;
        let from = self.below(ends) as usize;
        let to = (from + 1 + self.below(ends - 1) as usize) % ends as usize;
        let is_v4 = self.below(2) == 0;
        self.packets += 1;
        let mut payload = bytes(8 + self.below(1_340) as usize);
        let (packet, offload) = if self.below(4) == 0 {
            payload = bytes(8 + self.below(30_000) as usize);
            payload[..8].copy_from_slice(&self.packets.to_be_bytes());
            // Every segment is told from every other packet's.
            for piece in payload.chunks_mut(1_300).filter(|piece| piece.len() >= 8) {
                piece[..8].copy_from_slice(&self.packets.to_be_bytes());
            }
            let size = if payload.len() > 1_300 { 1_300 } else { 0 };
            udp_train(from as u8, to as u8, is_v4, &payload, size)
        } else {
            payload[..8].copy_from_slice(&self.packets.to_be_bytes());
            let packet = udp(from as u8, to as u8, is_v4, &payload);
            (packet, Offload::default())
        };
        let mut copy = packet.clone();
        let sent = &mut self.sent;
        offload::cut_in_place(&mut copy, offload, &mut |piece| {
            sent.insert(piece.to_vec(), (from, to));
        })
        .expect("it can be cut");
        self.net.send(from, packet, offload);
        self.launch();
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.net.now + time;
        loop {
            let arrival = self.flight.peek().map(|Reverse((at, ..))| *at);
            let next = [arrival, self.net.deadline()].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.net.pass(next.since(self.net.now));
            if arrival.is_some_and(|at| at <= self.net.now) {
                let Reverse((_, _, to, from, datagram)) = self.flight.pop().expect("one came");
                let size = datagram.len();
                self.net.receive(to, from, datagram, size);
            } else {
                self.net.tick();
            }
            self.launch();
            self.look();
        }
        self.net.pass(end.since(self.net.now));
    }
}

/// How long a guest waits before it speaks: mostly not, sometimes for long.
fn pause(world: &mut World) -> Duration {
    match world.below(100) {
        0 => Duration::from_secs(world.below(1_200)),
        1..=5 => Duration::from_secs(world.below(30)),
        _ => Duration::from_millis(world.below(300)),
    }
}

fn live(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..400 {
        world.talk();
        let pause = pause(&mut world);
        world.run(pause);
    }
    // The wire becomes a good one, and everything works again.
    world.loss = 0;
    world.run(Duration::from_secs(1_200));
    let ends = world.net.ends.len();
    world.sent.clear();
    for from in 0..ends {
        for to in (0..ends).filter(|to| *to != from) {
            let packet = udp(from as u8, to as u8, true, b"at last");
            world.sent.insert(packet.clone(), (from, to));
            world.net.send(from, packet, Offload::default());
            world.launch();
        }
    }
    world.run(Duration::from_secs(12));
    assert!(world.sent.is_empty(), "{} packets are missing", world.sent.len());
    assert!(world.arrived > 100, "{} arrived", world.arrived);
    for end in 0..ends {
        assert_eq!(world.net.count(end, Counter::DropSpoofed), 0);
        assert_eq!(world.net.count(end, Counter::DropForged), 0);
    }
}

#[test]
fn on_any_wire_what_arrives_was_sent_and_came_once() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(60),
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| live(seed));
        if let Err(panic) = result {
            eprintln!(
                "to repeat: SEED={seed} cargo test -p usernet-wireguard --features simulated-clock any_wire"
            );
            std::panic::resume_unwind(panic);
        }
    }
}
