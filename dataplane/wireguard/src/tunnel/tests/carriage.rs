//! What goes in comes out.

use super::*;

#[test]
fn packets_wait_for_the_handshake_and_then_go_both_ways() {
    for is_v4 in [true, false] {
        let mut net = Net::pair();
        let packets: Vec<_> = (0..10).map(|n| udp(0, 1, is_v4, &bytes(n * 100))).collect();
        for packet in &packets {
            net.send(0, packet.clone(), Offload::default());
        }
        assert_eq!(net.ends[0].out.wire.len(), 1, "one initiation");
        net.deliver();
        let got: Vec<_> = net.guest(1).into_iter().map(|(packet, _)| packet).collect();
        assert_eq!(got, packets);
        let answer = udp(1, 0, is_v4, b"answer");
        net.send(1, answer.clone(), Offload::default());
        net.deliver();
        assert_eq!(net.guest(0), [(answer, Offload::default())]);
        assert_eq!(net.count(0, Counter::Handshakes), 1);
        assert_eq!(net.count(1, Counter::Handshakes), 1);
        assert!(
            net.ends[0].tunnel.device(net.now, Duration::from_secs(100)).peers[0]
                .last_handshake
                .is_some_and(|at| at == Duration::from_secs(100))
        );
    }
}

#[test]
fn a_super_frame_of_tcp_crosses_as_trains_and_arrives_as_one() {
    for is_v4 in [true, false] {
        for (len, size) in [(60_000, 1_348), (2_696, 1_348), (1_349, 1_348), (64_000, 8_900)] {
            let mut net = Net::talking();
            let (packet, offload) = tcp(0, 1, is_v4, &bytes(len), size);
            net.send(0, packet.clone(), offload);
            let trains = net.ends[0].out.wire.len();
            assert!(trains <= 2, "{trains} trains");
            net.deliver();
            let got = net.guest(1);
            assert_eq!(got, [(packet, offload)], "{len} by {size}");
        }
    }
}

#[test]
fn a_train_of_udp_crosses_and_arrives_as_one() {
    for is_v4 in [true, false] {
        let mut net = Net::talking();
        let (packet, offload) = udp_train(0, 1, is_v4, &bytes(40_000), 1_200);
        net.send(0, packet.clone(), offload);
        assert_eq!(net.ends[0].out.wire.len(), 1, "one train");
        net.deliver();
        assert_eq!(net.guest(1), [(packet, offload)]);
    }
}

#[test]
fn a_segment_with_a_wrong_checksum_is_not_joined() {
    let mut net = Net::talking();
    let mut segments = Vec::new();
    let (mut packet, offload) = tcp(0, 1, true, &bytes(4_000), 1_000);
    offload::cut_in_place(&mut packet, offload, &mut |segment| segments.push(segment.to_vec()))
        .unwrap();
    segments[2][700] ^= 1;
    for mut segment in segments.clone() {
        let End { tunnel, out, .. } = &mut net.ends[0];
        tunnel.on_packet(net.now, &mut segment, Offload::default(), out);
    }
    net.send(0, udp(0, 1, true, b"beside"), Offload::default());
    net.deliver();
    let got = net.guest(1);
    assert!(got.iter().any(|(packet, _)| *packet == segments[2]), "it goes as it is");
    let joined: Vec<_> = got.iter().filter(|(_, offload)| offload.gso != Gso::None).collect();
    assert_eq!(joined.len(), 1);
    assert_eq!(joined[0].0.len(), 52 + 2_000);
}

#[test]
fn flows_that_alternate_stay_in_order() {
    let mut net = Net::talking();
    let mut sent = Vec::new();
    for n in 0..30_u8 {
        let mut packet = udp(0, 1, true, &[n; 50]);
        // Other ports every other time, of the same sum.
        if n % 2 == 0 {
            packet[20..24].copy_from_slice(&[0x1b, 0x5c, 0x1f, 0x3c]);
        }
        sent.push(packet.clone());
        let End { tunnel, out, .. } = &mut net.ends[0];
        tunnel.on_packet(net.now, &mut packet, Offload::default(), out);
    }
    net.send(0, udp(0, 1, true, b"end"), Offload::default());
    net.deliver();
    let mut got = Vec::new();
    for (mut packet, offload) in net.guest(1) {
        offload::cut_in_place(&mut packet, offload, &mut |packet| got.push(packet.to_vec()))
            .unwrap();
    }
    for port in [packet_port(&sent[0]), packet_port(&sent[1])] {
        let of = |packets: &[Vec<u8>]| -> Vec<u8> {
            packets
                .iter()
                .filter(|p| packet_port(p) == port && p.len() == 78)
                .map(|p| p[28])
                .collect()
        };
        assert_eq!(of(&got), of(&sent));
    }
}

fn packet_port(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[20], packet[21]])
}

#[test]
fn packets_of_every_length_cross() {
    let mut net = Net::talking();
    for len in 0..=1_420_usize - 28 {
        for is_v4 in [true, false] {
            let packet = udp(0, 1, is_v4, &bytes(len.min(1_372)));
            net.send(0, packet.clone(), Offload::default());
            net.deliver();
            assert_eq!(net.guest(1), [(packet, Offload::default())], "{len}");
        }
    }
}

#[test]
fn the_largest_packets_cross_if_they_fit_into_a_datagram() {
    let mut net = Net::talking();
    let fits = udp(0, 1, true, &bytes(65_507 - 32 - 28));
    net.send(0, fits.clone(), Offload::default());
    net.deliver();
    assert_eq!(net.guest(1), [(fits, Offload::default())]);
    net.send(0, udp(0, 1, true, &bytes(65_507 - 32 - 27)), Offload::default());
    net.deliver();
    assert_eq!(net.guest(1), []);
    assert_eq!(net.count(0, Counter::DropTooLarge), 1);
}

#[test]
fn where_nobody_is_responsible_or_known_to_be_the_guest_is_told() {
    for is_v4 in [true, false] {
        let mut net = Net::new(2, |_, config| config.peers[0].endpoint = None);
        for (to, counter) in [(9, Counter::DropNoPeer), (1, Counter::DropNoEndpoint)] {
            net.send(0, udp(0, to, is_v4, b"anybody?"), Offload::default());
            assert_eq!(net.count(0, counter), 1);
            let told = net.guest(0);
            let parsed = parse_ip(&told[0].0).unwrap();
            assert_eq!((parsed.source, parsed.destination), (inner(to, is_v4), inner(0, is_v4)));
            let message = &told[0].0[parsed.payload()];
            let (kind, code) = if is_v4 { (3, 1) } else { (1, 3) };
            assert_eq!(
                (parsed.protocol == protocol::ICMP, message[0], message[1]),
                (is_v4, kind, code)
            );
            assert!(checksum::is_valid(
                parsed.source,
                parsed.destination,
                parsed.protocol,
                message
            ));
        }
        assert!(net.ends[0].out.wire.is_empty());
    }
}

#[test]
fn a_peer_is_where_it_spoke_last() {
    let mut net = Net::talking();
    let moved = SocketAddr::from(([198, 51, 100, 7], 4_000));
    net.ends[0].address = moved;
    net.send(0, udp(0, 1, true, b"from elsewhere"), Offload::default());
    net.deliver();
    assert_eq!(net.count(1, Counter::Roamed), 1);
    net.guest(1);
    net.send(1, udp(1, 0, true, b"there?"), Offload::default());
    net.deliver();
    assert_eq!(net.guest(0).len(), 1, "the answer goes where it came from");
    assert_eq!(net.ends[1].tunnel.device(net.now, Duration::ZERO).peers[0].endpoint, Some(moved));
}

#[test]
fn a_preshared_key_has_to_be_the_same_on_both_ends() {
    let key = |byte| Some(PresharedKey::from_bytes([byte; 32]));
    for (ours, theirs, is_carried) in [(5, 5, true), (5, 6, false)] {
        let mut net = Net::new(2, |number, config| {
            config.peers[0].preshared_key = key(if number == 0 { ours } else { theirs });
        });
        net.send(0, udp(0, 1, true, b"psst"), Offload::default());
        net.deliver();
        assert_eq!(net.guest(1).len(), usize::from(is_carried));
        assert_eq!(net.count(0, Counter::DropForged), u64::from(!is_carried));
    }
}

#[test]
fn changes_are_done_as_they_are_asked_for() {
    let mut net = Net::new(3, |_, _| {});
    let device = |net: &Net| net.ends[0].tunnel.device(net.now, Duration::ZERO);
    let (first, second) = (net.ends[1].key, net.ends[2].key);
    let everything = "0.0.0.0/0".parse().unwrap();
    let change = PeerChange {
        allowed_ips: vec![(inner(1, true).into(), true), (everything, true)],
        persistent_keepalive: Some(Some(Duration::from_secs(25))),
        ..PeerChange::new(second)
    };
    net.ends[0].tunnel.apply(&Changes { peers: vec![change], ..Changes::default() });
    let peers = device(&net).peers;
    assert_eq!(peers[0].allowed_ips, [inner(1, false).into()], "it lost one to the other");
    assert_eq!(peers[1].persistent_keepalive, Some(Duration::from_secs(25)));
    assert_eq!(net.ends[0].tunnel.next_deadline(), Some(Instant::ZERO), "a keepalive is due");

    let remove = PeerChange { remove: true, ..PeerChange::new(second) };
    let unknown = PeerChange { update_only: true, ..PeerChange::new(private(9).public()) };
    let own = PeerChange::new(net.ends[0].key);
    let peers = vec![remove, unknown, own];
    net.ends[0].tunnel.apply(&Changes { peers, ..Changes::default() });
    assert_eq!(device(&net).peers.iter().map(|p| p.public_key).collect::<Vec<_>>(), [first]);
    net.send(0, udp(0, 2, true, b"gone"), Offload::default());
    assert_eq!(net.count(0, Counter::DropNoPeer), 1);

    net.ends[0].tunnel.apply(&Changes { replace_peers: true, ..Changes::default() });
    assert!(device(&net).peers.is_empty());
}

#[test]
fn with_another_private_key_it_is_somebody_else_and_with_none_nobody() {
    let mut net = Net::talking();
    let set = |net: &mut Net, key| {
        let changes = Changes { private_key: Some(key), ..Changes::default() };
        net.ends[0].tunnel.apply(&changes);
    };
    set(&mut net, Some(private(7)));
    net.send(0, udp(0, 1, true, b"who is that?"), Offload::default());
    net.deliver();
    assert_eq!(net.count(1, Counter::DropUnknownPeer), 1);
    set(&mut net, None);
    net.send(0, udp(0, 1, true, b"nobody"), Offload::default());
    assert_eq!(net.count(0, Counter::DropNoEndpoint), 1);
    assert!(net.ends[0].out.wire.is_empty());
    set(&mut net, Some(private(0)));
    net.guest(1);
    net.send(0, udp(0, 1, true, b"me again"), Offload::default());
    net.deliver();
    assert_eq!(net.guest(1).len(), 1);
}

#[test]
fn nothing_is_due_before_anything_happened() {
    let mut net = Net::pair();
    assert_eq!(net.ends[0].tunnel.next_deadline(), None);
    net.tick();
    assert!(net.ends[0].out.wire.is_empty());
}
