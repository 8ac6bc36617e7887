//! Tunnels between `usernetd` and other implementations of WireGuard.
//!
//! Every test of a tunnel is made for each of them: wireguard-go of Debian 12 and of Debian 13, and boringtun-cli.

use usernet_lab::wireguard::{Implementation, Key, Peer};
use usernet_lab::{Lab, skip};

/// The laboratory: two ends of the same program, without anything of ours.
#[test]
fn each_implementation_talks_to_itself() {
    for implementation in Implementation::ALL {
        let name = implementation.name();
        if let Some(reason) = implementation.missing().or_else(|| skip::missing(&["ping"])) {
            skip::skip(&format!("each_implementation_talks_to_itself ({name})"), &reason);
            continue;
        }
        let lab = Lab::new();
        let (a, b) = (Peer::start(&lab, implementation), Peer::start(&lab, implementation));
        lab.join(&a.namespace, &b.namespace, "wire", 0);
        let keys = [Key::new(&lab), Key::new(&lab)];
        for (at, peer) in [&a, &b].into_iter().enumerate() {
            let (own, other) = (at + 1, 2 - at);
            let file = format!(
                "[Interface]\nPrivateKey = {}\nListenPort = 51820\n\
                 [Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.{other}/32\nEndpoint = 198.51.100.{other}:51820",
                keys[at].private,
                keys[1 - at].public,
            );
            peer.configure(&file, 1420, &[&format!("10.77.0.{own}/24")], &[]);
        }
        a.run(&["ping", "-c", "3", "-i", "0.1", "-W", "5", "10.77.0.2"]).ok();
    }
}
