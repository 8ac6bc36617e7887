//! Hosts that do not take what the guest sends.

use super::*;

#[test]
fn hosts_that_take_nothing_any_more_leave_the_others_a_lease() {
    let mut config = Config::example();
    config.limits.leases_kept = 20;
    let access = Access::new(&config, HostLoopback::None);
    let rules = Rules::new(&config, &access, vec![], vec![]);
    let mut world = World::with(config, rules);
    let mut open = |port| {
        let guest = SocketAddr::new(at(GUEST).ip(), port);
        let syn = segment(1000, 0, SYN).options(&SYN_OPTIONS).frame(guest, at(REMOTE));
        let ops = world.frame(&syn, VALID);
        let Some(&Op::Connect { socket, .. }) = ops.last() else { panic!("a connect: {ops:?}") };
        world.input(Input::Connected { socket });
        let host = got(&mut world).seq + 1;
        world.frame(&segment(1001, host, ACK).frame(guest, at(REMOTE)), VALID);
        (guest, socket, host)
    };
    let flows: Vec<_> = (0..9).map(|n| open(40_000 + n)).collect();
    let (last, slow) = flows.split_last().expect("nine");
    let mut send = |(guest, _, host): (SocketAddr, SocketId, u32), seq| {
        let frame = segment(seq, host, ACK).with(&[7; 1_400]).frame(guest, at(REMOTE));
        let mut ops = world.frame(&frame, VALID);
        ops.extend(world.flush());
        ops
    };
    for flow in slow {
        for n in 0..10 {
            send(*flow, 1001 + n * 1_400);
        }
    }
    let ops = send(*last, 1001);
    let socket = last.1;
    assert!(matches!(ops[..], [Op::Send { socket: to, .. }] if to == socket), "{ops:?}");
    let held = world.shard.leases_held();
    assert!(held > 10, "{held} leases: the others have more than one each");
    world.input(Input::Sent { socket, bytes: 1_400 });
    assert_eq!(world.shard.leases_held(), held - 1);
}
