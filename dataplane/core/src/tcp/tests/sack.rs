//! Selective acknowledgements, as the guest sees and sends them.

use super::*;

const SACK_PERMITTED: [u8; 4] = [1, 1, 4, 2];

/// A connection whose SYN offered selective acknowledgement, and the options that it was answered with.
fn offered(does_offer: bool) -> (Flow, Vec<u8>) {
    offered_in(World::new(), does_offer)
}

fn offered_in(mut world: World, does_offer: bool) -> (Flow, Vec<u8>) {
    let mut options = SYN_OPTIONS.to_vec();
    if does_offer {
        options.extend(SACK_PERMITTED);
    }
    let ops = send(&mut world, &segment(1000, 0, SYN).options(&options));
    let [Op::Connect { socket, .. }] = ops[..] else { panic!("a connect: {ops:?}") };
    world.input(Input::Connected { socket });
    let answer = got(&mut world);
    send(&mut world, &segment(1001, answer.seq + 1, ACK));
    let flow = Flow { world, socket, guest: 1001, host: answer.seq + 1 };
    (flow, answer.options)
}

fn ahead(flow: &mut Flow, at: u32, len: usize) -> Got {
    let sent = segment(flow.guest + at, flow.host, ACK).with(&vec![7; len]);
    send(&mut flow.world, &sent);
    flow.got()
}

/// The blocks of a frame, from the first byte that is missing.
fn blocks(flow: &Flow, got: &Got) -> Vec<(u32, u32)> {
    let Some((head, values)) = got.options.split_first_chunk::<4>() else { return vec![] };
    assert_eq!(*head, [1, 1, 5, 2 + values.len() as u8]);
    let number = |bytes: &[u8]| {
        let bytes = bytes.try_into().expect("four bytes");
        u32::from_be_bytes(bytes).wrapping_sub(flow.guest)
    };
    values.chunks_exact(8).map(|value| (number(&value[..4]), number(&value[4..]))).collect()
}

#[test]
fn it_is_offered_back_to_who_offers_it_and_to_nobody_else() {
    for (does_offer, expected) in [(true, 12), (false, 8)] {
        let (mut flow, options) = offered(does_offer);
        assert_eq!(options.len(), expected);
        assert_eq!(options.ends_with(&SACK_PERMITTED), does_offer);
        let got = ahead(&mut flow, 100, 50);
        assert_eq!(blocks(&flow, &got).len(), usize::from(does_offer));
    }
}

#[test]
fn a_guest_that_is_connected_to_is_offered_it() {
    let config = Config::example();
    let forward = forward(Protocol::Tcp, (8080, 8080), 80);
    let access = Access::new(&config, HostLoopback::None);
    let mut world =
        World::with(config.clone(), Rules::new(&config, &access, vec![forward], vec![]));
    let local = at("198.51.100.1:8080");
    let listener = world.shard.attach_listener(ForwardId(1), Protocol::Tcp, local).expect("room");
    let (accepted, peer) = (crate::op::AcceptedId(1), at("192.0.2.9:5000"));
    world.input(Input::Accepted { listener, accepted, peer, local });
    let syn = got(&mut world);
    assert!(syn.flags == SYN && syn.options.ends_with(&SACK_PERMITTED));
}

#[test]
fn what_came_ahead_of_gaps_is_told_the_newest_first_until_the_gaps_are_closed() {
    let (mut flow, _) = offered(true);
    for (at, expected) in [
        (1_000, vec![(1_000, 1_100)]),
        (3_000, vec![(3_000, 3_100), (1_000, 1_100)]),
        (1_100, vec![(1_000, 1_200), (3_000, 3_100)]),
        (5_000, vec![(5_000, 5_100), (1_000, 1_200), (3_000, 3_100)]),
    ] {
        let got = ahead(&mut flow, at, 100);
        assert_eq!(got.ack, flow.guest);
        assert_eq!(blocks(&flow, &got), expected);
    }
    // The first gap closes: what lies behind it is acknowledged, the rest still told.
    let start = flow.guest;
    flow.send(ACK, &[7; 1_000]);
    let got = flow.got();
    assert_eq!(got.ack, start + 1_200);
    flow.guest = start;
    assert_eq!(blocks(&flow, &got), [(5_000, 5_100), (3_000, 3_100)]);
    flow.guest = start + 1_200;
    flow.send(ACK, &[7; 3_800]);
    let got = flow.got();
    assert_eq!((got.ack, got.options.len()), (start + 5_100, 0));
}

#[test]
fn what_is_not_kept_is_not_told() {
    let mut config = Config::example();
    config.limits.leases_kept = 0;
    let access = Access::new(&config, HostLoopback::None);
    let rules = Rules::new(&config, &access, vec![], vec![]);
    let (mut flow, _) = offered_in(World::with(config, rules), true);
    let got = ahead(&mut flow, 100, 50);
    assert_eq!((got.ack, got.options.len()), (flow.guest, 0));
}
