//! Fragments in any order: the exact bytes come out, or nothing.

use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use crate::config::Config;
use crate::counters::Counter;
use crate::op::Offload;
use crate::rules::{Access, HostLoopback, Rules};
use crate::testing::{World, at, fragment_frame, udp_segment};

const GUEST: &str = "10.0.2.100:40000";
const REMOTE: &str = "192.0.2.7:5000";

fn fragment(world: &mut World, id: u16, offset: usize, more: bool, payload: &[u8]) {
    let frame = fragment_frame(at(GUEST), at(REMOTE), id, offset, more, payload);
    world.frame(&frame, Offload::default());
}

fn segment(len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
    udp_segment(at(GUEST), at(REMOTE), &payload)
}

fn count(world: &World, counter: Counter) -> u64 {
    world.shard.counters().value(counter)
}

#[test]
fn a_datagram_with_a_wrong_checksum_is_dropped_when_it_is_whole() {
    let mut world = World::new();
    let mut whole = segment(100);
    whole[50] ^= 1;
    fragment(&mut world, 1, 64, false, &whole[64..]);
    fragment(&mut world, 1, 0, true, &whole[..64]);
    assert_eq!(count(&world, Counter::DropChecksum), 1);
    assert!(world.sent_to.is_empty());
    assert_eq!(world.leases_out(), 0);
}

#[test]
fn an_overlap_condemns_the_datagram_and_what_comes_of_it_later() {
    let mut world = World::new();
    let whole = segment(192);
    fragment(&mut world, 1, 0, true, &whole[..64]);
    fragment(&mut world, 1, 56, true, &whole[56..128]);
    assert_eq!(world.leases_out(), 0);
    fragment(&mut world, 1, 0, true, &whole[..64]);
    fragment(&mut world, 1, 64, false, &whole[64..]);
    assert!(world.sent_to.is_empty());
    assert_eq!(count(&world, Counter::ReassemblyOverlaps), 1);
    assert_eq!(count(&world, Counter::ReassemblyLate), 2);
}

#[test]
fn what_is_not_whole_in_time_is_dropped_and_the_guest_told() {
    let mut world = World::new();
    fragment(&mut world, 1, 0, true, &segment(100)[..64]);
    world.pass(Duration::from_secs(14));
    assert_eq!(world.leases_out(), 1);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leases_out(), 0);
    assert_eq!(count(&world, Counter::ReassemblyTimeouts), 1);
    assert_eq!(world.next_written().icmp_error().1, (11, 1));
    assert_eq!(world.shard.next_deadline(), None);
}

#[test]
fn the_oldest_makes_room_when_a_limit_is_reached() {
    let mut config = Config::example();
    config.limits.reassemblies = 4;
    config.limits.reassembly_leases = 6;
    let rules = Rules::new(&config, &Access::new(&config, HostLoopback::None), vec![], vec![]);
    let mut world = World::with(config, rules);
    for id in 0..20 {
        fragment(&mut world, id, 8, true, &[1; 8]);
        fragment(&mut world, id, 24, true, &[1; 8]);
        assert!(world.leases_out() <= 6);
    }
    assert!(count(&world, Counter::ReassemblyEvicted) >= 16);
    let whole = segment(16);
    fragment(&mut world, 99, 0, true, &whole[..16]);
    fragment(&mut world, 99, 16, false, &whole[16..]);
    assert_eq!(world.sent_to.len(), 1, "a flood of fragments does not keep a whole one out");
}

#[test]
fn impossible_fragments_are_malformed() {
    let mut world = World::new();
    fragment(&mut world, 1, 0, true, &[1; 9]);
    fragment(&mut world, 1, 8, false, &[]);
    fragment(&mut world, 1, 65_528, false, &[1; 100]);
    assert_eq!(count(&world, Counter::DropMalformed), 3);
    assert_eq!(world.leases_out(), 0);
}

#[test]
fn an_empty_datagram_in_fragments_is_sent_empty() {
    let mut world = World::new();
    let mut whole = udp_segment(at(GUEST), at(REMOTE), b"");
    // No checksum, and bytes behind the datagram's end.
    whole[6..8].fill(0);
    fragment(&mut world, 1, 8, false, &[0; 4]);
    fragment(&mut world, 1, 0, true, &whole);
    let (_, bytes, _) = world.sent_to.pop_front().expect("a datagram");
    assert!(bytes.is_empty());
}

proptest! {
    #[test]
    fn any_order_with_duplicates_gives_the_exact_bytes(
        // In pieces of 8 bytes: still below the limit of leases.
        len in 0usize..1000,
        cuts in proptest::collection::vec(1usize..20, 1..12),
        order in any::<u64>(),
        repeats in 0usize..6,
    ) {
        let whole = segment(len);
        let mut parts = vec![];
        let mut start = 0;
        for cut in cuts.iter().cycle() {
            let end = (start + cut * 8).min(whole.len());
            parts.push((start, end));
            start = end;
            if start == whole.len() {
                break;
            }
        }
        prop_assume!(parts.len() > 1);
        let mut random = order | 1;
        let mut next = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        for n in (1..parts.len()).rev() {
            parts.swap(n, next(n + 1));
        }
        // Duplicates before the last one completes it.
        for _ in 0..repeats {
            let from = next(parts.len() - 1);
            let to = from + 1 + next(parts.len() - 1 - from);
            let part = parts[from];
            parts.insert(to, part);
        }
        let mut world = World::new();
        for (start, end) in parts {
            fragment(&mut world, 5, start, end < whole.len(), &whole[start..end]);
        }
        prop_assert_eq!(world.sent_to.len(), 1);
        let (_, bytes, _) = world.sent_to.pop_front().expect("one");
        prop_assert_eq!(&bytes[..], &whole[8..]);
        prop_assert_eq!(world.leases_out(), 0);
    }

    #[test]
    fn whatever_fragments_come_the_exact_bytes_go_or_nothing(
        parts in proptest::collection::vec((0usize..12, 1usize..8, any::<bool>()), 1..40),
    ) {
        let whole = segment(88);
        let mut world = World::new();
        for (start, len, more) in parts {
            let start = start * 8;
            let end = (start + len * 8).min(whole.len());
            if start < end {
                fragment(&mut world, 5, start, more && end < whole.len(), &whole[start..end]);
            }
        }
        for (_, bytes, _) in world.sent_to.drain(..) {
            prop_assert_eq!(&bytes[..], &whole[8..]);
        }
        world.pass(Duration::from_secs(200));
        prop_assert_eq!(world.leases_out(), 0);
    }
}
