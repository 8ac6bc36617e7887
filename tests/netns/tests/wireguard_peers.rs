//! Tunnels between `usernetd` and other implementations of WireGuard.
//!
//! Every test of a tunnel is made for each of them: wireguard-go of Debian 12 and of Debian 13, and boringtun-cli.

use std::thread;
use std::time::{Duration, Instant};

use usernet_lab::tunnel::{
    INSIDE4, INSIDE6, LISTEN_PORT, OUTSIDE4, Settings, Tunnel, USUAL_MTU, answers, answers_soon,
    write_file,
};
use usernet_lab::wireguard::{DEVICE, Implementation, Key, Peer};
use usernet_lab::{Lab, Namespace, skip, wait_until};

/// How long something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a stream: some hundred super-frames.
const STREAM_BYTES: &str = "20000000";
/// Headers of a datagram in a packet: IPv4, IPv6.
const UDP4_BYTES: u16 = 28;
const UDP6_BYTES: u16 = 48;
/// The keys of a session are for so long (REKEY_AFTER_TIME of the protocol).
const KEYS_SECONDS: u64 = 120;

/// Makes of each function three tests, one per implementation.
macro_rules! with_each_peer {
    ($($(#[$attribute:meta])* fn $name:ident($peer:ident) $body:block)+) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            fn run($peer: Implementation) {
                if is_skipped(stringify!($name), $peer) {
                    return;
                }
                $body
            }

            #[test]
            fn wireguard_go_2022() {
                run(Implementation::Go2022);
            }

            #[test]
            fn wireguard_go_2023() {
                run(Implementation::Go2023);
            }

            #[test]
            fn boringtun_cli() {
                run(Implementation::Boringtun);
            }
        }
    )+};
}

fn is_skipped(test: &str, peer: Implementation) -> bool {
    let reason = peer.missing().or_else(|| skip::missing(&["ping"]));
    if let Some(reason) = &reason {
        skip::skip(&format!("{test} ({})", peer.name()), reason);
    }
    reason.is_some()
}

/// A socket's address as it is written.
fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// The far end's addresses in the tunnel.
fn inside(end: usize) -> Vec<&'static str> {
    let v6 = skip::has_ipv6().then_some(INSIDE6[end]);
    std::iter::once(INSIDE4[end]).chain(v6).collect()
}

/// Streams of the pattern through a tunnel that is up, asked for from both ends and sent by both.
#[track_caller]
fn streams_pass(tunnel: &Tunnel<'_>) {
    let ends = [&tunnel.guest, &tunnel.peer.namespace];
    for far in [1, 0] {
        let addresses: Vec<_> = inside(far).iter().map(|ip| at(ip, 7000)).collect();
        let listen: Vec<_> = addresses.iter().map(String::as_str).collect();
        let _server = ends[far].serve(&listen);
        for address in &listen {
            ends[1 - far].peer(&["get", address, STREAM_BYTES]).ok();
            ends[1 - far].peer(&["put", address, STREAM_BYTES]).ok();
        }
    }
}

/// Datagrams of all these sizes are echoed, asked for from both ends. A program that has no time for a while may lose one or two.
#[track_caller]
fn datagrams_come_back(tunnel: &Tunnel<'_>, sizes_of: impl Fn(&str) -> Vec<u16>) {
    let ends = [&tunnel.guest, &tunnel.peer.namespace];
    for far in [1, 0] {
        for ip in inside(far) {
            let address = at(ip, 7000);
            let sizes: Vec<_> = sizes_of(ip).iter().map(u16::to_string).collect();
            let sizes: Vec<_> = sizes.iter().map(String::as_str).collect();
            let _server = ends[far].serve(&[&address]);
            ends[1 - far].peer(&[&["echo-most", &*address], &sizes[..]].concat()).ok();
        }
    }
}

/// The longest datagram in one packet to there.
fn payload_max(ip: &str, mtu: u16) -> u16 {
    mtu - if ip.contains(':') { UDP6_BYTES } else { UDP4_BYTES }
}

/// The laboratory: two ends of the same program, without anything of ours.
#[test]
fn each_implementation_talks_to_itself() {
    for implementation in Implementation::ALL {
        if is_skipped("each_implementation_talks_to_itself", implementation) {
            continue;
        }
        let lab = Lab::new();
        let (a, b) = (Peer::start(&lab, implementation), Peer::start(&lab, implementation));
        lab.join(&a.namespace, &b.namespace, "wire", 0);
        let keys = [Key::new(&lab), Key::new(&lab)];
        for (own, peer) in [&a, &b].into_iter().enumerate() {
            let far = 1 - own;
            let file = format!(
                "[Interface]\nPrivateKey = {}\nListenPort = {LISTEN_PORT}\n\
                 [Peer]\nPublicKey = {}\nAllowedIPs = {}/32\nEndpoint = {}:{LISTEN_PORT}",
                keys[own].private, keys[far].public, INSIDE4[far], OUTSIDE4[far],
            );
            peer.configure(&file, USUAL_MTU, &[&format!("{}/24", INSIDE4[own])], &[]);
        }
        assert!(answers_soon(&a.namespace, INSIDE4[1]), "{}{}", a.said(), b.said());
    }
}

with_each_peer! {
    /// The other end does not even know where we are.
    fn our_guest_speaks_first_with_a_preshared_key(peer) {
        let lab = Lab::new();
        let settings = Settings {
            knows: [true, false],
            has_preshared_key: [true; 2],
            ..Settings::default()
        };
        let tunnel = Tunnel::start_up(&lab, peer, &settings);
        for ip in inside(1) {
            assert!(answers_soon(&tunnel.guest, ip), "{ip}");
        }
        assert_eq!(tunnel.seen_by_peer("endpoints"), [at(OUTSIDE4[0], LISTEN_PORT)]);
    }

    /// And we do not know where it is.
    fn the_peer_speaks_first_with_a_preshared_key(peer) {
        let lab = Lab::new();
        let settings = Settings {
            knows: [false, true],
            has_preshared_key: [true; 2],
            ..Settings::default()
        };
        let tunnel = Tunnel::start_up(&lab, peer, &settings);
        for ip in inside(0) {
            assert!(answers_soon(&tunnel.peer.namespace, ip), "{ip}");
        }
        assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "we have learned where it is");
    }

    /// Only one end has the preshared key.
    fn nobody_is_heard_without_the_preshared_key(peer) {
        let lab = Lab::new();
        let settings = Settings { has_preshared_key: [false, true], ..Settings::default() };
        let tunnel = Tunnel::start(&lab, peer, &settings);
        assert!(!answers(&tunnel.guest, INSIDE4[1]));
        assert!(!answers(&tunnel.peer.namespace, INSIDE4[0]));
        // boringtun does not take a key away (0.7.1).
        let own = tunnel.keys[0].public.as_str();
        tunnel.peer.wg(&["set", DEVICE, "peer", own, "remove"]);
        tunnel.peer.wg(&["set", DEVICE, "peer", own, "allowed-ips", &format!("{}/32", INSIDE4[0])]);
        assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "the key is what was missing");
    }

    /// Of TCP, by IPv4 and IPv6. Ours are super-frames; boringtun and the older wireguard-go take packets one by one.
    fn streams_arrive_as_they_were_sent(peer) {
        let lab = Lab::new();
        let tunnel = Tunnel::start_up(&lab, peer, &Settings::default());
        streams_pass(&tunnel);
    }

    /// Each way, one by one.
    fn packets_of_every_length_pass(peer) {
        let lab = Lab::new();
        let tunnel = Tunnel::start_up(&lab, peer, &Settings::default());
        datagrams_come_back(&tunnel, |ip| (0..=payload_max(ip, USUAL_MTU)).collect());
    }

    /// As the kernel takes them from those who send many at once: a super-frame, cut by us.
    fn trains_of_datagrams_are_cut_for_the_peer(peer) {
        let lab = Lab::new();
        let tunnel = Tunnel::start_up(&lab, peer, &Settings::default());
        let helper = lab.program("usernet-lab");
        for bytes in ["64", "700", "1371", "1372"] {
            let address = at(INSIDE4[1], 9000);
            let count = tunnel.peer.namespace.spawn(&[&helper, "count", "at", &address]);
            let count = count.wait_for("ready");
            let flood = ["flood", "to", &*address, bytes, "400", "train=20", "rate=1000"];
            let sent = numbers(&tunnel.guest.peer(&flood).ok())[0];
            let received = numbers(&count.done_within(PATIENCE).ok())[0];
            // A peer that has no time for a while loses some; a train that is cut wrongly is lost whole.
            assert!(received > sent / 2, "{received} of {sent} datagrams of {bytes} bytes");
        }
    }

    /// Datagrams that are several packets, in a tunnel of the smallest MTU with IPv6.
    fn a_small_tunnel_carries_fragments(peer) {
        let lab = Lab::new();
        let settings = Settings { mtu: 1280, ..Settings::default() };
        let tunnel = Tunnel::start_up(&lab, peer, &settings);
        datagrams_come_back(&tunnel, |ip| {
            let full = payload_max(ip, 1280);
            vec![full - 1, full, full + 1, 2 * full, 3000, 9000, 60_000]
        });
        streams_pass(&tunnel);
    }

    /// On a wire of 9100, and on one of 1500 where each datagram goes in pieces.
    fn a_large_tunnel_passes_wires_of_any_size(peer) {
        // boringtun takes no more from its device than what its MTU was at the start, 1500 (0.7.1).
        let mtu = if peer == Implementation::Boringtun { 1500 } else { 9000 };
        for wire_mtu in [9100, 1500] {
            let lab = Lab::new();
            let settings = Settings { mtu, wire_mtu, ..Settings::default() };
            let tunnel = Tunnel::start_up(&lab, peer, &settings);
            datagrams_come_back(&tunnel, |ip| {
                let full = payload_max(ip, mtu);
                vec![0, 1393, 1473, full - 1, full, full + 1, 60_000]
            });
            // The newer wireguard-go hands trains to the kernel whose datagrams are larger than the wire's MTU, which the
            // kernel refuses, and drops them. Ours send them one by one then.
            if wire_mtu == 9100 || peer != Implementation::Go2023 {
                streams_pass(&tunnel);
            }
        }
    }

    /// Below the tunnel is IPv6, by either end's choice.
    fn an_endpoint_may_be_of_ipv6(peer) {
        if !skip::has_ipv6() {
            return skip::skip("an_endpoint_may_be_of_ipv6", "there is no IPv6");
        }
        for knows in [[true, false], [false, true]] {
            let lab = Lab::new();
            let settings = Settings { is_wire_ipv6: true, knows, ..Settings::default() };
            let tunnel = Tunnel::start_up(&lab, peer, &settings);
            streams_pass(&tunnel);
        }
    }

    /// The peer's address on the wire changes, then its port, and what it sends comes from there.
    fn we_follow_a_peer_that_moves(peer) {
        let lab = Lab::new();
        let tunnel = Tunnel::start_up(&lab, peer, &Settings::default());
        // boringtun's sockets are connected, from the address that it had first (0.7.1).
        if peer != Implementation::Boringtun {
            moves(&tunnel.peer.namespace, "wire1", OUTSIDE4[1], "198.51.100.5");
            assert!(answers_soon(&tunnel.peer.namespace, INSIDE4[0]), "from its new address");
            assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "to its new address");
        }
        tunnel.peer.wg(&["set", DEVICE, "listen-port", "51999"]);
        assert!(answers_soon(&tunnel.peer.namespace, INSIDE4[0]), "from its new port");
        assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "to its new port");
    }

    /// Our host's address changes: the socket has none of its own.
    fn the_peer_follows_us_when_the_host_moves(peer) {
        let lab = Lab::new();
        let tunnel = Tunnel::start_up(&lab, peer, &Settings::default());
        moves(lab.host(), "wire0", OUTSIDE4[0], "198.51.100.6");
        assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "from our new address");
        assert_eq!(tunnel.seen_by_peer("endpoints"), [at("198.51.100.6", LISTEN_PORT)]);
        assert!(answers_soon(&tunnel.peer.namespace, INSIDE4[0]), "to our new address");
    }

    /// Nobody in the guest has sent anything: the peer knows of us all the same, and goes on to.
    fn our_keepalives_come_without_traffic(peer) {
        let lab = Lab::new();
        let settings = Settings {
            knows: [true, false],
            keepalive: [Some(1), None],
            ..Settings::default()
        };
        let tunnel = Tunnel::start(&lab, peer, &settings);
        assert!(wait_until(PATIENCE, || tunnel.handshake_of_peer().is_some()), "a handshake");
        // Bytes received and sent.
        let received = || tunnel.seen_by_peer("transfer")[0].parse::<u64>().expect("a number");
        // boringtun does not count what is empty (0.7.1).
        let seen = if peer == Implementation::Boringtun { 0 } else { 3 };
        for _ in 0..seen {
            let before = received();
            assert!(wait_until(PATIENCE, || received() > before), "a keepalive");
        }
        assert!(answers_soon(&tunnel.peer.namespace, INSIDE4[0]));
    }

    /// Nobody but the peer's program has sent anything: we know where it is.
    fn the_peers_keepalives_tell_us_where_it_is(peer) {
        let lab = Lab::new();
        let settings = Settings {
            knows: [false, true],
            keepalive: [None, Some(1)],
            ..Settings::default()
        };
        let tunnel = Tunnel::start(&lab, peer, &settings);
        assert!(answers_soon(&tunnel.guest, INSIDE4[1]));
    }
}

/// Takes an address from a device and gives it another one, as when a machine changes its network.
fn moves(namespace: &Namespace, device: &str, from: &str, to: &str) {
    namespace.ip(&format!("addr del {from}/28 dev {device}\naddr add {to}/28 dev {device}"));
}

/// The numbers of the last line.
fn numbers(out: &str) -> Vec<u64> {
    let line = out.lines().last().unwrap_or_default();
    line.split(' ').filter_map(|word| word.parse().ok()).collect()
}

/// In real time, and all at once: whoever has made the first keys makes the next ones, and no packet is lost by it.
#[test]
fn keys_are_renewed_while_packets_flow() {
    let test = "keys_are_renewed_while_packets_flow";
    let peers = Implementation::ALL.into_iter().filter(|peer| !is_skipped(test, *peer));
    let cases = peers.flat_map(|peer| [[true, false], [false, true]].map(|knows| (peer, knows)));
    let renewals = cases.map(|(peer, knows)| thread::spawn(move || is_renewed(peer, knows)));
    for renewal in renewals.collect::<Vec<_>>() {
        renewal.join().expect("keys are renewed");
    }
}

fn is_renewed(peer: Implementation, knows: [bool; 2]) {
    let lab = Lab::new();
    let tunnel = Tunnel::start_up(&lab, peer, &Settings { knows, ..Settings::default() });
    assert!(wait_until(PATIENCE, || tunnel.handshake_of_peer().is_some()), "packets have passed");
    let first = tunnel.handshake_of_peer().expect("there was one");
    let (from, to) = match knows[0] {
        true => (&tunnel.guest, INSIDE4[1]),
        false => (&tunnel.peer.namespace, INSIDE4[0]),
    };
    let start = Instant::now();
    let mut lost = String::new();
    let mut has_new_keys = false;
    // A little longer than the keys are for, by pings that take two seconds.
    while start.elapsed() < Duration::from_secs(KEYS_SECONDS + 6) && !has_new_keys {
        let done = from.run(&["ping", "-n", "-q", "-c", "10", "-i", "0.2", "-W", "5", to]);
        if !done.is_ok() || !done.out.contains(" 0% packet loss") {
            lost += &done.out;
        }
        let handshake = tunnel.handshake_of_peer();
        has_new_keys = handshake.is_some_and(|at| at >= first + KEYS_SECONDS - 2);
    }
    let name = peer.name();
    assert!(has_new_keys, "{name} {knows:?}: {first}, then {:?}", tunnel.handshake_of_peer());
    assert_eq!(lost, "", "{name} {knows:?}");
    assert!(answers(from, to), "{name} {knows:?}: by the new keys");
}

/// What a user changes by `wg` while it runs, as the other end has it. `wireguard_control.rs` has our side of it.
#[test]
fn a_peer_sees_what_wg_changes_of_our_tunnel() {
    let peer = Implementation::Go2022;
    if is_skipped("a_peer_sees_what_wg_changes_of_our_tunnel", peer) {
        return;
    }
    let lab = Lab::new();
    let settings = Settings { has_api: true, has_preshared_key: [true; 2], ..Settings::default() };
    let tunnel = Tunnel::start_up(&lab, peer, &settings);
    let wg = |args: &[&str]| lab.host().run(&[&["wg"], args].concat()).ok();
    let [own, far] = tunnel.keys.each_ref().map(|key| key.public.as_str());
    let shown = wg(&["show", DEVICE, "latest-handshakes"]);
    let handshake = numbers(&shown.replace('\t', " "))[0];
    let seen = tunnel.handshake_of_peer().expect("packets have passed");
    assert!(handshake.abs_diff(seen) <= 5, "{handshake} {seen}");
    let file = write_file(&lab, "shown", &wg(&["showconf", DEVICE]));

    wg(&["set", DEVICE, "peer", far, "remove"]);
    assert!(!answers(&tunnel.guest, INSIDE4[1]), "at once");
    assert!(!answers(&tunnel.peer.namespace, INSIDE4[0]), "both ways");
    wg(&["setconf", DEVICE, &file]);
    assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "all of it is back");

    let handshake = tunnel.handshake_of_peer();
    let networks = format!("{}/128", INSIDE6[1]);
    wg(&["set", DEVICE, "peer", far, "allowed-ips", &networks]);
    assert!(!answers(&tunnel.peer.namespace, INSIDE4[0]), "IPv4 is not allowed any more");
    assert!(!skip::has_ipv6() || answers(&tunnel.peer.namespace, INSIDE6[0]));
    wg(&["syncconf", DEVICE, &file]);
    assert!(answers(&tunnel.peer.namespace, INSIDE4[0]));
    assert_eq!(tunnel.handshake_of_peer(), handshake, "all of it by the same keys");

    wg(&["set", DEVICE, "listen-port", "51999"]);
    assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "by another port");
    assert_eq!(tunnel.seen_by_peer("endpoints"), [at(OUTSIDE4[0], 51_999)]);

    let key = Key::new(&lab);
    wg(&["set", DEVICE, "private-key", &write_file(&lab, "key", &key.private)]);
    assert!(!answers(&tunnel.guest, INSIDE4[1]), "as somebody whom the peer does not know");
    tunnel.peer.wg(&["set", DEVICE, "peer", own, "remove"]);
    let preshared_key = write_file(&lab, "preshared", &tunnel.preshared_key);
    let network = format!("{}/32", INSIDE4[0]);
    let secret = ["preshared-key", &preshared_key, "allowed-ips", &network];
    tunnel.peer.wg(&[&["set", DEVICE, "peer", &key.public], &secret[..]].concat());
    assert!(answers_soon(&tunnel.guest, INSIDE4[1]), "as somebody whom it knows");
}
