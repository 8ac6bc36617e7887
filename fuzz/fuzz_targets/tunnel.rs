//! Three ends of a tunnel with a session, without, and in between: a host that keeps, repeats, changes and invents datagrams,
//! peers that send each other's packets, and a guest that sends anything.

#![no_main]

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use usernet_core::op::{Checksum, Gso, Offload};
use usernet_core::{Instant, Tunnel as _, TunnelOut};
use usernet_wireguard::uapi::{Changes, PeerChange};
use usernet_wireguard::{PresharedKey, PrivateKey, PublicKey, Tunnel, conf};

/// The most events of one input: more find nothing more, and cost time.
const EVENTS_MAX: usize = 60;
/// Trains that the host keeps.
const KEPT_MAX: usize = 32;
const ENDS: u8 = 3;

#[derive(Arbitrary, Debug)]
enum Event {
    /// Any packet of a guest's.
    Guest {
        end: u8,
        bytes: Vec<u8>,
        partial: Option<(u16, u16)>,
        gso: (u8, u16),
    },
    /// A packet whose header is right, from whom and to whom it likes.
    Packet {
        end: u8,
        from: u8,
        to: u8,
        protocol: u8,
        segments: u8,
        payload: Vec<u8>,
    },
    /// One that was sent is delivered, kept or not, changed or not.
    Deliver {
        which: u8,
        to: u8,
        is_kept: bool,
        change: Option<(u16, u8)>,
        from: Option<u8>,
    },
    /// Everything under way is delivered.
    DeliverAll,
    /// A datagram that nobody sent.
    Invent {
        to: u8,
        from: u8,
        kind: u8,
        index: u8,
        bytes: Vec<u8>,
        size: u16,
    },
    Wait {
        seconds: u8,
    },
    Change {
        end: u8,
        peer: u8,
        what: u8,
    },
}

#[derive(Default)]
struct Wire(Vec<(SocketAddr, SocketAddr, Vec<u8>, usize)>, Option<SocketAddr>);

impl TunnelOut for Wire {
    fn to_wire(&mut self, to: SocketAddr, train: &[u8], size: usize) {
        assert!(size > 0 && size <= train.len() && train.len() <= 65_507, "a train");
        assert!(train.len().div_ceil(size) <= 64, "no more than the kernel takes");
        if self.0.len() < KEPT_MAX {
            let from = self.1.expect("an end is sending");
            self.0.push((from, to, train.to_vec(), size));
        }
    }

    fn to_guest(&mut self, packet: &[u8], offload: Offload) {
        assert!(!packet.is_empty() && packet.len() <= 65_535, "an IP packet");
        if offload.gso == Gso::None {
            return;
        }
        let mut packet = packet.to_vec();
        let mut pieces = 0;
        usernet_core::packet::offload::cut_in_place(&mut packet, offload, &mut |_| pieces += 1)
            .expect("a super-frame for the guest can be cut");
        assert!(pieces > 1, "a super-frame has parts");
    }
}

fn private(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number % ENDS + 1; 32])
}

/// A key costs more than most of what is done with it here.
fn public(number: u8) -> PublicKey {
    static KEYS: LazyLock<[PublicKey; ENDS as usize]> =
        LazyLock::new(|| [0, 1, 2].map(|number| private(number).public()));
    KEYS[usize::from(number % ENDS)]
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number % ENDS + 1], 51_820))
}

fn end(number: u8) -> Tunnel {
    let mut text = format!("[Interface]\nPrivateKey = {}\n", *private(number).to_base64());
    for other in (0..ENDS).filter(|other| *other != number) {
        text += &format!(
            "[Peer]\nPublicKey = {}\nEndpoint = {}\nAllowedIPs = 10.0.0.{other}/32, fd00::{other}/128\n",
            public(other),
            address(other),
        );
    }
    Tunnel::new(&conf::parse("fuzz", &text).expect("it is a file").config, u64::from(number))
}

struct World {
    ends: Vec<Tunnel>,
    wire: Wire,
    now: Instant,
}

impl World {
    fn with(&mut self, end: u8, act: impl FnOnce(&mut Tunnel, Instant, &mut Wire)) {
        let end = end % ENDS;
        self.wire.1 = Some(address(end));
        let tunnel = &mut self.ends[usize::from(end)];
        act(tunnel, self.now, &mut self.wire);
        tunnel.flush(self.now, &mut self.wire);
    }

    fn deliver(&mut self, to: SocketAddr, from: SocketAddr, mut train: Vec<u8>, size: usize) {
        if let Some(end) = (0..ENDS).find(|end| address(*end) == to) {
            self.with(end, |tunnel, now, wire| {
                tunnel.on_datagrams(now, from, &mut train, size, wire);
            });
        }
    }

    fn deliver_all(&mut self) {
        for _ in 0..4 {
            for (from, to, train, size) in std::mem::take(&mut self.wire.0) {
                self.deliver(to, from, train, size);
            }
        }
    }

    fn wait(&mut self, seconds: u8) {
        self.now = self.now + Duration::from_secs(u64::from(seconds));
        for end in 0..ENDS {
            self.with(end, |tunnel, now, wire| {
                tunnel.tick(now, wire);
                assert!(tunnel.next_deadline().is_none_or(|at| at > now), "it goes back to sleep");
            });
        }
    }
}

fn gso((kind, size): (u8, u16)) -> Gso {
    match kind % 5 {
        0 => Gso::None,
        1 => Gso::Tcp4 { size },
        2 => Gso::Tcp6 { size },
        3 => Gso::Udp { size },
        _ => Gso::Fragment,
    }
}

fn packet(from: u8, to: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet =
        vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    packet.extend_from_slice(payload);
    let len = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&len);
    packet
}

fn run(world: &mut World, event: Event) {
    match event {
        Event::Guest { end, mut bytes, partial, gso: kind } => {
            let checksum = match partial {
                Some((start, offset)) => Checksum::Partial { start, offset },
                None => Checksum::Unchecked,
            };
            let offload = Offload { checksum, gso: gso(kind) };
            world.with(end, |tunnel, now, wire| tunnel.on_packet(now, &mut bytes, offload, wire));
        }
        Event::Packet { end, from, to, protocol, segments, payload } => {
            let protocol = [6, 17, 1, protocol][usize::from(protocol) % 4];
            let checksum =
                Checksum::Partial { start: 20, offset: if protocol == 6 { 16 } else { 6 } };
            for _ in 0..=segments % 8 {
                let mut packet = packet(from % 4, to % 4, protocol, &payload);
                let offload = Offload { checksum, gso: Gso::None };
                world.with(end, |tunnel, now, wire| {
                    tunnel.on_packet(now, &mut packet, offload, wire)
                });
            }
        }
        Event::Deliver { which, to, is_kept, change, from } => {
            let Some(index) = usize::from(which).checked_rem(world.wire.0.len()) else { return };
            let (sender, _, mut train, size) = match is_kept {
                true => world.wire.0[index].clone(),
                false => world.wire.0.remove(index),
            };
            if let Some((at, bits)) = change {
                let at = usize::from(at) % train.len();
                train[at] ^= bits;
            }
            world.deliver(address(to), from.map_or(sender, address), train, size);
        }
        Event::DeliverAll => world.deliver_all(),
        Event::Invent { to, from, kind, index, bytes, size } => {
            let mut train = vec![kind % 5, 0, 0, 0, index, 0, 0, 0];
            train.extend(bytes);
            world.deliver(address(to), address(from), train, usize::from(size));
        }
        Event::Wait { seconds } => world.wait(seconds),
        Event::Change { end, peer, what } => change(world, end, peer, what),
    }
}

fn change(world: &mut World, end: u8, peer: u8, what: u8) {
    let mut change = PeerChange::new(public(peer));
    let mut changes = Changes::default();
    match what % 6 {
        0 => change.remove = true,
        1 => change.preshared_key = Some(Some(PresharedKey::from_bytes([what; 32]))),
        2 => change.allowed_ips = vec![("10.0.0.0/24".parse().expect("a network"), what > 100)],
        3 => change.persistent_keepalive = Some(Some(Duration::from_secs(u64::from(what)))),
        4 => change.endpoint = Some(address(what)),
        _ => changes.private_key = Some((what > 100).then(|| private(what))),
    }
    changes.peers.push(change);
    world.with(end, |tunnel, _, _| tunnel.apply(&changes));
}

fuzz_target!(|events: (bool, Vec<Event>)| {
    let (has_sessions, events) = events;
    let now = Instant::from_nanos(1_000_000_000);
    let mut world = World { ends: (0..ENDS).map(end).collect(), wire: Wire::default(), now };
    if has_sessions {
        let mut packet = packet(0, 1, 17, b"to begin");
        world.with(0, |tunnel, now, wire| {
            tunnel.on_packet(now, &mut packet, Offload::default(), wire);
        });
        world.deliver_all();
    }
    for event in events.into_iter().take(EVENTS_MAX) {
        run(&mut world, event);
    }
});
