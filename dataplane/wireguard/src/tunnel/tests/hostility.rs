//! What somebody does to us.

use super::*;

#[test]
fn a_peer_may_not_send_what_is_anothers() {
    let mut net = Net::new(3, |_, _| {});
    for (from, counter) in [(1, 0), (2, 1), (9, 2)] {
        net.send(1, udp(from, 0, true, b"trust me"), Offload::default());
        net.deliver();
        assert_eq!(net.guest(0).len(), usize::from(from == 1));
        assert_eq!(net.count(0, Counter::DropSpoofed), counter);
    }
}

#[test]
fn a_datagram_is_taken_once() {
    let mut net = Net::talking();
    net.send(0, udp(0, 1, true, b"once"), Offload::default());
    let (_, train, size) = net.ends[0].out.wire.remove(0);
    let from = net.ends[0].address;
    for _ in 0..3 {
        net.receive(1, from, train.clone(), size);
    }
    assert_eq!(net.guest(1).len(), 1);
    assert_eq!(net.count(1, Counter::DropReplayed), 2);
}

#[test]
fn what_is_forged_is_dropped_and_moves_nobody() {
    let mut net = Net::talking();
    net.send(0, udp(0, 1, true, b"true"), Offload::default());
    let (_, train, size) = net.ends[0].out.wire.remove(0);
    let elsewhere = SocketAddr::from(([203, 0, 113, 66], 666));
    for at in 16..train.len() {
        let mut forged = train.clone();
        forged[at] ^= 1;
        net.receive(1, elsewhere, forged, size);
    }
    assert_eq!(net.count(1, Counter::DropForged), train.len() as u64 - 16);
    assert_eq!(net.count(1, Counter::Roamed), 0);
    assert_eq!(net.guest(1), []);
    net.receive(1, net.ends[0].address, train, size);
    assert_eq!(net.guest(1).len(), 1);
}

#[test]
fn numbers_at_their_end_are_refused() {
    let mut net = Net::talking();
    net.send(0, udp(0, 1, true, b"last"), Offload::default());
    let (_, train, size) = net.ends[0].out.wire.remove(0);
    for number in [u64::MAX, u64::MAX - 1, u64::MAX - (1 << 13) - 1] {
        let mut datagram = train.clone();
        datagram[8..16].copy_from_slice(&number.to_le_bytes());
        net.receive(1, net.ends[0].address, datagram, size);
    }
    assert_eq!(net.count(1, Counter::DropExhausted), 3);
}

#[test]
fn strangers_get_no_answer() {
    let mut net = Net::new(3, |number, config| {
        if number == 0 {
            config.peers.retain(|peer| peer.public_key != private(2).public());
        }
    });
    net.send(2, udp(2, 0, true, b"let me in"), Offload::default());
    net.deliver();
    assert_eq!(net.count(0, Counter::DropUnknownPeer), 1);
    assert_eq!(net.count(0, Counter::DatagramsToWire), 0);
}

#[test]
fn a_handshake_for_another_key_gets_no_answer() {
    let mut net = Net::new(2, |number, config| {
        if number == 1 {
            config.peers[0].public_key = private(5).public();
        }
    });
    net.send(1, udp(1, 0, true, b"wrong number"), Offload::default());
    net.deliver();
    assert_eq!(net.count(0, Counter::DropOtherKey), 1);
    assert_eq!(net.count(0, Counter::DatagramsToWire), 0);
}

#[test]
fn an_old_handshake_is_refused_and_moves_nobody() {
    let mut net = Net::pair();
    net.send(0, udp(0, 1, true, b"hello"), Offload::default());
    let initiation = net.ends[0].out.wire[0].clone();
    net.deliver();
    let elsewhere = SocketAddr::from(([203, 0, 113, 66], 666));
    net.receive(1, elsewhere, initiation.1, initiation.2);
    assert_eq!(net.count(1, Counter::DropStaleHandshake), 1);
    assert_eq!(net.count(1, Counter::Roamed), 0);
    assert!(net.ends[1].out.wire.is_empty());
}

#[test]
fn a_replayed_handshake_after_a_restart_moves_nobody() {
    let mut net = Net::pair();
    net.send(0, udp(0, 1, true, b"hello"), Offload::default());
    let initiation = net.ends[0].out.wire[0].clone();
    net.deliver();
    // The other end starts again and has forgotten what it has seen.
    net.ends[1].tunnel = Tunnel::new(&config(1, [peer(0)]), 1);
    let elsewhere = SocketAddr::from(([203, 0, 113, 66], 666));
    net.receive(1, elsewhere, initiation.1, initiation.2);
    assert_eq!(net.count(1, Counter::Handshakes), 0);
    let endpoint = net.ends[1].tunnel.device(net.now, Duration::ZERO).peers[0].endpoint;
    assert_eq!(endpoint, Some(address(0)));
}

#[test]
fn what_waits_for_a_handshake_is_bounded() {
    let mut net = Net::pair();
    for _ in 0..1_000 {
        net.send(0, udp(0, 1, true, &bytes(100)), Offload::default());
    }
    let large = Net::pair();
    assert_eq!(net.count(0, Counter::DropNoSession), 1_000 - 64);
    net.deliver();
    let got: usize = net.guest(1).len();
    assert!((1..=64).contains(&got));
    let mut net = large;
    for _ in 0..10 {
        net.send(0, udp(0, 1, true, &bytes(60_000)), Offload::default());
    }
    assert_eq!(net.count(0, Counter::DropNoSession), 8, "128 KiB");
}

#[test]
fn a_flood_of_handshakes_has_to_show_cookies_and_keeps_its_share() {
    let mut net = Net::pair();
    net.send(0, udp(0, 1, true, b"hello"), Offload::default());
    let (_, initiation, size) = net.ends[0].out.wire.remove(0);
    for n in 0..5_000_u32 {
        let from = SocketAddr::from((n.to_be_bytes(), 1_000));
        net.receive(1, from, initiation.clone(), size);
    }
    let [cookies, stale, ignored] =
        [Counter::Cookies, Counter::DropStaleHandshake, Counter::DropUnderLoad]
            .map(|counter| net.count(1, counter));
    assert_eq!(cookies, 2_000, "no more in a second");
    assert_eq!(1 + stale + cookies + ignored, 5_000);
    // The library's seconds are those of the machine, which may be busy.
    assert!((99..2_000).contains(&stale), "{stale} were looked at");
}

#[test]
fn whatever_comes_from_the_wire_is_dropped_and_counted() {
    let mut net = Net::talking();
    let from = net.ends[0].address;
    for kind in 0..8_u8 {
        for len in (0..300).chain([1_500, 65_535]) {
            let mut datagram = vec![0xa5; len];
            if let Some(start) = datagram.first_chunk_mut::<4>() {
                *start = [kind, 0, 0, 0];
            }
            let size = datagram.len();
            net.receive(1, from, datagram, size);
        }
    }
    net.receive(1, from, Vec::new(), 0);
    net.receive(1, from, vec![4; 100], 0);
    assert_eq!(net.guest(1), []);
    assert!(net.ends[1].out.wire.is_empty());
}

#[test]
fn whatever_the_guest_sends_is_dropped_or_carried() {
    let mut net = Net::talking();
    let gso = |size| [Gso::Tcp4 { size }, Gso::Tcp6 { size }, Gso::Udp { size }, Gso::Fragment];
    for len in [0, 1, 19, 20, 21, 39, 40, 48, 60, 100, 1_500] {
        for first in [0x00, 0x40, 0x45, 0x4f, 0x60, 0xff] {
            for gso in gso(0).into_iter().chain(gso(1)).chain(gso(1_400)).chain([Gso::None]) {
                let mut packet = vec![first; len];
                if let Some(destination) = packet.get_mut(16..20) {
                    destination.copy_from_slice(&[10, 0, 0, 1]);
                }
                let checksum = Checksum::Partial { start: 20, offset: 16 };
                net.send(0, packet, Offload { checksum, gso });
                net.deliver();
            }
        }
    }
    assert!(net.count(0, Counter::DropGuestMalformed) > 0);
}

#[test]
fn a_removed_peer_is_cut_off() {
    let mut net = Net::talking();
    let (first, second) = (net.ends[0].key, net.ends[1].key);
    let remove = |key| Changes {
        peers: vec![PeerChange { remove: true, ..PeerChange::new(key) }],
        ..Changes::default()
    };
    net.ends[1].tunnel.apply(&remove(first));
    net.send(0, udp(0, 1, true, b"still in?"), Offload::default());
    net.deliver();
    assert_eq!(net.guest(1), []);
    assert_eq!(net.count(1, Counter::DropUnknownSession), 1);
    net.ends[0].tunnel.apply(&remove(second));
    net.send(0, udp(0, 1, true, b"nor out"), Offload::default());
    assert_eq!(net.count(0, Counter::DropNoPeer), 1);
}
