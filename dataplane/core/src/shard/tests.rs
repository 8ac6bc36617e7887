//! What no single protocol module answers for: frames of every wrong length, and full tables.

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

use crate::config::Config;
use crate::counters::Counter;
use crate::op::{Checksum, Gso, Input, LeaseId, Offload, Op, Outbox, RESERVE_BYTES_MAX};
use crate::packet::protocol;
use crate::rules::{HostLoopback, Rules};
use crate::shard::Shard;
use crate::testing::{World, at, ip_frame, udp_frame};
use crate::time::Instant;

const VALID: Offload = Offload { checksum: Checksum::Valid, gso: Gso::None };

fn syn(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[12..14].copy_from_slice(&[0x50, 0x02]);
    ip_frame(from, to, protocol::TCP, 64, &tcp)
}

#[test]
fn frames_of_every_length_are_counted_and_given_back() {
    let dns = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
    for (guest, remote, resolver) in [
        ("10.0.2.100:40000", "192.0.2.7:80", "10.0.2.3:53"),
        ("[fd00::64]:40000", "[2001:db8::7]:80", "[fd00::3]:53"),
    ] {
        let frames = [
            syn(at(guest), at(remote)),
            udp_frame(at(guest), at(remote), 64, b"payload"),
            udp_frame(at(guest), at(resolver), 64, &dns),
        ];
        for frame in frames {
            let mut world = World::new();
            for len in 0..frame.len() {
                world.frame(&frame[..len], VALID);
                assert!(world.written.is_empty(), "{len} bytes are no frame to answer");
            }
            let dropped = world.shard.counters().value(Counter::DropMalformed)
                + world.shard.counters().value(Counter::DropProtocol);
            assert_eq!(dropped, frame.len() as u64, "each of them is counted");
            // Padding behind the packet is legal.
            let padded = [frame.as_slice(), &[0; 30]].concat();
            assert_eq!(world.frame(&padded, VALID).len(), 1, "and a padded one is taken");
        }
    }
}

/// Ops are counted, not kept; one buffer serves for all frames.
#[derive(Default)]
struct Sink {
    connects: u32,
    buffer: Vec<u8>,
}

impl Outbox for Sink {
    fn op(&mut self, op: Op) {
        self.connects += u32::from(matches!(op, Op::Connect { .. }));
    }

    fn reserve(&mut self, size: usize) -> Option<(LeaseId, &mut [u8])> {
        self.buffer.resize(RESERVE_BYTES_MAX, 0);
        Some((LeaseId(1), &mut self.buffer[..size]))
    }
}

#[test]
fn sixty_five_thousand_flows_fit_and_the_next_one_is_counted() {
    let mut config = Config::example();
    config.limits.half_open = u32::MAX;
    let flows = config.limits.flows;
    let rules = Rules::new(&config, &HostLoopback::None, vec![], vec![]);
    let mut shard = Shard::new(config, rules);
    let mut sink = Sink::default();
    let now = Instant::from_nanos(1);
    for n in 0..=flows {
        let guest = SocketAddr::new(at("10.0.2.100:0").ip(), 1024 + (n % 60_000) as u16);
        let remote = SocketAddr::new(at("192.0.2.7:0").ip(), 80 + (n / 60_000) as u16);
        let mut frame = syn(guest, remote);
        let input = Input::Frame { lease: LeaseId(0), bytes: &mut frame, offload: VALID };
        shard.handle(now, input, &mut sink);
    }
    shard.check();
    assert_eq!((sink.connects, shard.flows().count() as u32), (flows, flows));
    assert_eq!(shard.counters().value(Counter::TcpTableFull), 1);
}
