//! TCP with real programs: every byte arrives, every end is seen, nothing stays behind.

use std::sync::OnceLock;
use std::time::Duration;

use usernet_lab::{Daemon, Lab, Namespace, on_both_backends, serial, wait_until, wan_addresses};

/// A gigabyte that compresses badly and is the same each time.
const GIGABYTE: &str = "openssl enc -aes-128-ctr -K 00112233445566778899aabbccddeeff \
    -iv 00000000000000000000000000000000 -in /dev/zero 2>/dev/null | head -c 1000000000";

/// Its hash.
fn gigabyte_hash(on: &Namespace) -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| on.sh(&format!("{GIGABYTE} | sha256sum")).ok())
}

/// How long the heavy ones may take.
const LONG: Duration = Duration::from_secs(120);

on_both_backends! {
    fn a_page_is_fetched_from_a_web_server_on_the_host(backend) needs ["curl", "python3"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        std::fs::write(lab.dir().join("page.html"), "hello guest").unwrap();
        let serve = ["python3", "-u", "-m", "http.server", "--bind", "::", "8000"];
        let _server = lab.host().spawn(&serve).wait_for("Serving");
        for host in wan_addresses() {
            let url = format!("http://{host}:8000/page.html");
            assert_eq!(guest.run(&["curl", "-sS", "-g", &url]).ok(), "hello guest");
        }
    }

    fn a_page_is_fetched_from_a_web_server_in_the_guest(backend) needs ["curl", "python3"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--forward", "8080:80"]);
        std::fs::write(lab.dir().join("page.html"), "hello host").unwrap();
        let serve = ["python3", "-u", "-m", "http.server", "--bind", "::", "80"];
        let _server = guest.spawn(&serve).wait_for("Serving");
        let others = ["127.0.0.1".to_owned(), "[::1]".to_owned()];
        for host in wan_addresses().iter().chain(&others) {
            let url = format!("http://{host}:8080/page.html");
            assert_eq!(lab.host().run(&["curl", "-sS", "-g", &url]).ok(), "hello host", "{host}");
        }
    }

    fn a_gigabyte_to_the_host_arrives_unchanged(backend) needs ["socat", "openssl"] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let receive = "socat -u TCP-LISTEN:7001,reuseaddr - | sha256sum";
        let receiver = lab.host().spawn(&["sh", "-c", receive]);
        assert!(wait_until(LONG, || lab.host().listens_on(7001)));
        let send = format!("{GIGABYTE} | socat -u - TCP:192.0.2.1:7001");
        guest.run_within(LONG, &["sh", "-c", &send]).ok();
        assert_eq!(receiver.done_within(LONG).ok(), gigabyte_hash(lab.host()));
    }

    fn a_gigabyte_from_the_host_arrives_unchanged(backend) needs ["socat", "openssl"] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let send = format!("{GIGABYTE} | socat -u - TCP-LISTEN:7001,reuseaddr");
        let _sender = lab.host().spawn(&["sh", "-c", &send]);
        assert!(wait_until(LONG, || lab.host().listens_on(7001)));
        let receive = "socat -u TCP:192.0.2.1:7001 - | sha256sum";
        let received = guest.run_within(LONG, &["sh", "-c", receive]).ok();
        assert_eq!(received, gigabyte_hash(lab.host()));
    }

    fn iperf3_runs_both_ways_with_four_streams(backend) needs ["iperf3"] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = lab.host().spawn(&["iperf3", "-s"]);
        assert!(wait_until(LONG, || lab.host().listens_on(5201)));
        for host in ["192.0.2.1", "2001:db8::1"] {
            for direction in [&["-t", "2"][..], &["-t", "2", "-R"]] {
                let run = [&["iperf3", "-J", "-P", "4", "-c", host][..], direction].concat();
                let report = guest.run(&run).ok();
                let report: serde_json::Value = serde_json::from_str(&report).unwrap();
                let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
                assert!(rate > 100e6, "{rate} bit/s: {run:?}");
            }
        }
    }

    fn a_refused_port_is_told_at_once(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for host in wan_addresses() {
            let told = guest.peer(&["connect", &format!("{host}:9")]).ok();
            let (error, ms) = told.trim().split_once(' ').unwrap();
            assert_eq!(error, "ConnectionRefused", "{host}");
            assert!(ms.parse::<u32>().unwrap() < 500, "{host}: {told}");
        }
    }

    fn what_the_host_cannot_reach_is_told_as_the_host_would_be(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for (address, error) in [
            ("198.18.0.1:80", "NetworkUnreachable"),
            ("203.0.113.1:80", "HostUnreachable"),
            ("[2001:db9::1]:80", "NetworkUnreachable"),
            ("10.0.2.77:80", "HostUnreachable"),
        ] {
            let told = guest.peer(&["connect", address]).ok();
            assert!(told.starts_with(error), "{address}: {told}");
        }
    }

    fn half_a_connection_stays_open_in_either_direction(backend) needs ["nc.openbsd", "socat"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--forward", "7101:7100"]);
        // Answers only when it has seen the end of what it was sent, and takes its time.
        let count = ["socat", "-t", "10", "TCP-LISTEN:7100,fork,reuseaddr", "SYSTEM:sleep 0.3; wc -c"];
        let _servers = [lab.host().spawn(&count), guest.spawn(&count)];
        for (namespace, server, port) in [(&guest, lab.host(), "7100"), (lab.host(), &guest, "7101")] {
            assert!(wait_until(LONG, || server.listens_on(7100)));
            let script = format!("head -c 100000 /dev/zero | nc.openbsd -N 192.0.2.1 {port}");
            assert_eq!(namespace.sh(&script).ok().trim(), "100000", "port {port}");
        }
    }

    fn every_byte_is_right_over_both_families_and_all_sizes(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--forward", "7001:7000"]);
        let _server = lab.host().serve(&["[::]:7000"]);
        let _inner = guest.serve(&["[::]:7000"]);
        for host in wan_addresses() {
            for size in ["0", "1", "1460", "65535", "1000003", "20000000"] {
                for (namespace, port) in [(&guest, 7000), (lab.host(), 7001)] {
                    let address = format!("{host}:{port}");
                    namespace.peer(&["get", &address, size]).ok();
                    namespace.peer(&["put", &address, size]).ok();
                }
            }
        }
    }

    fn a_slow_reader_costs_no_memory(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = lab.host().serve(&["[::]:7000"]);
        guest.peer(&["get", "192.0.2.1:7000", "50000000"]).ok();
        let before = daemon.rss_kib();
        guest.peer(&["slow", "192.0.2.1:7000", "1024", "4"]).ok();
        let after = daemon.rss_kib();
        assert!(after < before + 8192, "{before} KiB before, {after} KiB after");
    }

    fn a_server_that_does_not_read_costs_little_memory(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = lab.host().serve(&["[::]:7000"]);
        guest.peer(&["put", "192.0.2.1:7000", "50000000"]).ok();
        let before = daemon.rss_kib();
        guest.peer(&["hold", "192.0.2.1:7000", "3"]).ok();
        let after = daemon.rss_kib();
        assert!(after < before + 16_384, "{before} KiB before, {after} KiB after");
    }

    fn a_thousand_downloads_at_once(backend) needs [] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = lab.host().serve(&["[::]:7000"]);
        guest.peer_within(LONG, &["parallel", "192.0.2.1:7000", "1000", "100000"]).ok();
        assert!(wait_until(LONG, || daemon.flows() == 0), "flows are left: {}", daemon.flows());
    }

    fn ten_thousand_short_connections_leave_nothing_behind(backend) needs [] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = lab.host().serve(&["[::]:7000"]);
        guest.peer(&["get", "192.0.2.1:7000", "100"]).ok();
        assert!(wait_until(LONG, || daemon.flows() == 0));
        let before = daemon.descriptors();
        let sockets = lab.host().sockets();
        guest.peer_within(LONG, &["sequence", "192.0.2.1:7000", "10000", "100"]).ok();
        assert!(wait_until(LONG, || daemon.flows() == 0), "flows are left: {}", daemon.flows());
        assert_eq!(daemon.descriptors(), before);
        let is_as_before = || lab.host().sockets() <= sockets + 10;
        assert!(wait_until(LONG, is_as_before), "{sockets}, now {}", lab.host().sockets());
    }
}
