//! bbr paces what goes out into the world, and nothing that stays on the machine.

use std::time::Duration;

use usernet_lab::{Daemon, GUEST4, Lab, Namespace, on_both_backends, skip, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// A reader that takes its time: its connection is still there when it is looked at.
const READER: [&str; 2] = ["10000000", "30"];

/// The namespace's own default from now on; none: it cannot have it.
fn choose(namespace: &Namespace, congestion: &str) -> Option<()> {
    let set = format!("net.ipv4.tcp_congestion_control={congestion}");
    namespace.spawn_admin(&["sysctl", "-qw", &set]).done_within(PATIENCE).is_ok().then_some(())
}

/// The congestion control of the connections that `ss` finds, once it is `expected`.
fn becomes(namespace: &Namespace, filter: &str, expected: &str) {
    let mut seen = String::new();
    let is_so = wait_until(PATIENCE, || {
        seen = namespace.sh(&format!("ss -tinH state established '{filter}'")).ok();
        let mut found = seen.split_whitespace().filter(|word| ["bbr", "reno"].contains(word));
        found.next() == Some(expected) && found.all(|word| word == expected)
    });
    assert!(is_so, "{filter}: not {expected}: {seen}");
}

/// Waits until a socket of these has sent more than what makes it be looked at.
fn has_sent_much(namespace: &Namespace, filter: &str) {
    let is_so = wait_until(PATIENCE, || {
        let seen = namespace.sh(&format!("ss -tinH state established '{filter}'")).ok();
        let sent = seen.split_whitespace().filter_map(|word| word.strip_prefix("bytes_sent:"));
        sent.filter_map(|bytes| bytes.parse().ok()).max() > Some(2_u64 << 20)
    });
    assert!(is_so, "{filter}: too little was sent");
}

on_both_backends! {
    fn what_leaves_the_machine_is_paced_and_nothing_else(backend) needs ["ss", "sysctl"] {
        let lab = Lab::new();
        let (guest, far) = (lab.guest(), lab.router());
        lab.join(lab.host(), &far, "way", 0);
        if choose(lab.host(), "bbr").and_then(|()| choose(&guest, "bbr")).is_none() {
            return skip::skip_this("the kernel has no bbr, or not for everybody");
        }
        let _daemon = Daemon::start(&lab, &guest, backend, &["--forward", "8080:80"]);
        let _server = guest.serve(&["0.0.0.0:80"]);
        let peer = lab.program("usernet-lab");
        let slow = |from: &Namespace, to: &str| from.spawn(&[&[&*peer, "slow", to], &READER[..]].concat());

        // Joined with the guest's loopback, and through the link, within the host.
        for address in ["127.0.0.1", "192.0.2.1"] {
            let _reader = slow(lab.host(), &format!("{address}:8080"));
            becomes(lab.host(), &format!("src {address} and sport = :8080"), "reno");
        }
        // To elsewhere: as the host has chosen. The guest's own socket ends at us.
        let _reader = slow(&far, "198.51.100.1:8080");
        let ours = "dst 198.51.100.2 and sport = :8080";
        has_sent_much(lab.host(), ours);
        becomes(lab.host(), ours, "bbr");
        becomes(&guest, &format!("src {GUEST4} and sport = :80"), "reno");
    }

    fn routes_over_the_link_say_so_where_the_guest_would_pace(backend) needs ["ip", "sysctl"] {
        let lab = Lab::new();
        for (default, is_said) in [("bbr", true), ("cubic", false), ("reno", false)] {
            let guest = lab.guest();
            if choose(&guest, default).is_none() {
                skip::skip_this(&format!("the kernel has no {default}, or not for everybody"));
                continue;
            }
            let _daemon = Daemon::start(&lab, &guest, backend, &[]);
            let families: &[&str] = if skip::has_ipv6() { &["-4", "-6"] } else { &["-4"] };
            for family in families {
                let routes = guest.run(&["ip", family, "route", "show", "dev", "tap0"]).ok();
                assert!(routes.lines().count() >= 2 && routes.contains("default via"), "{routes}");
                for route in routes.lines() {
                    assert_eq!(route.contains("congctl reno"), is_said, "{default}: {routes}");
                }
            }
        }
    }
}
