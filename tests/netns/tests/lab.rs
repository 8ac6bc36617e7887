//! The laboratory itself: what the other tests rely on.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use usernet_lab::{Lab, WAN4, WAN6, pass, skip, wait_until};

#[test]
fn a_host_is_an_ordinary_user_with_a_network_of_its_own() {
    if let Some(reason) = skip::missing(&["ip", "ping"]) {
        return skip::skip("a_host_is_an_ordinary_user_with_a_network_of_its_own", &reason);
    }
    let lab = Lab::new();
    let caps = lab.host().sh("grep CapEff /proc/self/status; id -u").ok();
    assert!(caps.contains("0000000000000000"), "{caps}");
    assert!(!caps.ends_with("\n0\n"), "{caps}");
    lab.host().run(&["ping", "-c1", "-W1", WAN4]).ok();
    lab.host().run(&["ping", "-c1", "-W1", WAN6]).ok();
    assert_eq!(lab.host().sh("cat /etc/resolv.conf").ok(), "nameserver 192.0.2.1\n");
}

/// Tests run side by side: any number may be the one that a descriptor has here already.
#[test]
fn a_descriptor_is_passed_under_the_number_that_it_has_too() {
    let file = File::open("/dev/null").unwrap();
    let own = file.as_raw_fd();
    for number in [own, 200] {
        let mut command = Command::new("readlink");
        command.arg(format!("/proc/self/fd/{number}"));
        pass(&mut command, &file, number);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/dev/null\n", "{own} as {number}");
    }
}

#[test]
fn a_guest_has_nothing_but_its_own_loopback() {
    if let Some(reason) = skip::missing(&["ip"]) {
        return skip::skip("a_guest_has_nothing_but_its_own_loopback", &reason);
    }
    let lab = Lab::new();
    let guest = lab.guest();
    assert_eq!(guest.sh("ip -o link | wc -l; id -u").ok(), "1\n0\n");
    assert!(guest.sh("cat /etc/resolv.conf").ok().contains("10.0.2.3"));
}

/// What others are measured by carries every byte, too, and lets connections go.
#[test]
fn the_least_of_translators_carries_streams_both_ways() {
    if let Some(reason) = skip::missing(&["ip"]) {
        return skip::skip("the_least_of_translators_carries_streams_both_ways", &reason);
    }
    let lab = Lab::new();
    let _server = lab.host().serve(&["192.0.2.1:7000"]);
    for mtu in [1500, 65520] {
        let guest = lab.guest();
        let mut bare = lab.bare(&guest, mtu);
        guest.peer(&["get", "192.0.2.1:7000", "20000000"]).ok();
        guest.peer(&["put", "192.0.2.1:7000", "20000000"]).ok();
        guest.peer(&["parallel", "192.0.2.1:7000", "100", "10000"]).ok();
        guest.peer(&["sequence", "192.0.2.1:7000", "100", "100"]).ok();
        assert!(bare.is_running(), "{}", bare.err());
        let sockets = format!("ls -l /proc/{}/fd | grep -c socket: || true", bare.pid());
        let sockets = || lab.host().admin(&["sh", "-c", &sockets]).trim().to_owned();
        assert!(wait_until(Duration::from_secs(5), || sockets() == "0"), "{} are left", sockets());
    }
}

#[test]
fn peers_see_every_byte_and_each_other() {
    if let Some(reason) = skip::missing(&["ip"]) {
        return skip::skip("peers_see_every_byte_and_each_other", &reason);
    }
    let lab = Lab::new();
    let _server = lab.host().serve(&["192.0.2.1:7000", "[2001:db8::1]:7000"]);
    for address in ["192.0.2.1:7000", "[2001:db8::1]:7000"] {
        lab.host().peer(&["get", address, "5000000"]).ok();
        lab.host().peer(&["put", address, "5000000"]).ok();
        lab.host().peer(&["parallel", address, "100", "10000"]).ok();
        lab.host().peer(&["sequence", address, "100", "100"]).ok();
        lab.host().peer(&["echo", address, "0", "1", "1400", "65507"]).ok();
        for load in [
            ["ping-pong", "tcp", address, "4", "1000", "50"],
            ["ping-pong", "udp", address, "1", "1", "50"],
            ["storm", address, "4", "100", "10000", "200"],
        ] {
            let tally = lab.host().peer(&load).ok();
            let tally: serde_json::Value = serde_json::from_str(&tally).expect("JSON");
            let times = tally["times"].as_array().expect("pairs").iter();
            let sum: u64 = times.map(|pair| pair[1].as_u64().expect("a number")).sum();
            assert_eq!(tally["errors"], serde_json::json!({}), "{load:?}: {tally}");
            assert!(sum > 0 && tally["done"] == sum, "{load:?}: {tally}");
            assert!(load[0] != "storm" || sum == 200, "{tally}");
        }
    }
    assert!(lab.host().peer(&["who", "udp", "192.0.2.1:7000"]).ok().starts_with("192.0.2.1:"));
}

#[test]
fn the_cable_does_to_frames_what_it_is_told() {
    if let Some(reason) = skip::missing(&["ip", "ping"]) {
        return skip::skip("the_cable_does_to_frames_what_it_is_told", &reason);
    }
    let lab = Lab::new();
    let far = lab.router();
    let _cable = lab.cable(lab.host(), &far, &["delay-ms=20", "loss=1000", "reorder=500"]);
    let out = lab.host().run_within(
        Duration::from_secs(30),
        &["ping", "-q", "-c", "100", "-i", "0.02", "-W", "1", "198.51.100.2"],
    );
    let received: u32 = out
        .out
        .split(" received")
        .next()
        .and_then(|text| text.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{out}"));
    assert!((60..95).contains(&received), "a fifth of the round trips is lost: {out}");
    let rtt = out.out.split("mdev = ").nth(1).and_then(|t| t.split('/').nth(1)?.parse().ok());
    // Twice the delay, less what overtakes; a busy machine may add to it.
    assert!(rtt.is_some_and(|ms: f64| ms > 35.0), "{out}");
}
