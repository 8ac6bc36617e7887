//! Ports of the host that lead to the guest, and the guest's way to the host's loopback.

use serde_json::json;
use usernet_lab::{Daemon, Lab, Namespace, on_both_backends};

/// Whether a connection comes about.
fn connects(from: &Namespace, address: &str) -> bool {
    from.peer(&["connect", address]).ok().starts_with("connected")
}

on_both_backends! {
    fn the_guest_sees_the_clients_address(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        let forwards = ["--forward", "8080:80", "--forward", "8080:80/udp"];
        let _daemon = Daemon::start(&lab, &guest, backend, &forwards);
        let _server = guest.serve(&["[::]:80"]);
        for (address, client) in [("198.51.100.1:8080", "198.51.100.2"), ("[2001:db8:1::1]:8080", "2001:db8:1::2")] {
            for protocol in ["tcp", "udp"] {
                let seen = far.peer(&["who", protocol, address]).ok();
                assert!(seen.contains(client), "{protocol} {address}: {seen}");
            }
        }
    }

    fn a_loopback_client_is_joined_to_a_server_on_the_guests_loopback(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &["--forward", "8080:80"]);
        let _server = guest.serve(&["127.0.0.1:80", "[::1]:80"]);
        for host in ["127.0.0.1:8080", "[::1]:8080"] {
            lab.host().peer(&["get", host, "10000000"]).ok();
            lab.host().peer(&["put", host, "10000000"]).ok();
        }
        assert_eq!(daemon.counter("tcp_spliced"), 4);
    }

    fn each_of_many_short_connections_is_joined(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &["--forward", "8080:80"]);
        let _server = guest.serve(&["127.0.0.1:80", "[::1]:80"]);
        for host in ["127.0.0.1:8080", "[::1]:8080"] {
            let tally = lab.host().peer(&["storm", host, "4", "100", "30000", "200"]).ok();
            let tally: serde_json::Value = serde_json::from_str(&tally).expect("JSON");
            assert_eq!((&tally["done"], &tally["errors"]), (&json!(200), &json!({})), "{host}");
        }
        assert_eq!(daemon.counter("tcp_spliced"), 400);
    }

    fn a_loopback_client_appears_as_the_gateway_where_the_server_is_not_on_loopback(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let forwards = ["--forward", "8080:80", "--forward", "8080:80/udp"];
        let _daemon = Daemon::start(&lab, &guest, backend, &forwards);
        let _server = guest.serve(&["10.0.2.100:80", "[fd00::64]:80"]);
        for (address, client) in [("127.0.0.1:8080", "10.0.2.2:"), ("[::1]:8080", "[fd00::2]:")] {
            for protocol in ["tcp", "udp"] {
                let seen = lab.host().peer(&["who", protocol, address]).ok();
                assert!(seen.starts_with(client), "{protocol} {address}: {seen}");
            }
            lab.host().peer(&["get", address, "1000000"]).ok();
        }
    }

    fn a_range_leads_port_by_port_to_the_guest(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--forward", "192.0.2.1:8000-8003:9000-9003"]);
        let _server = guest.serve(&["0.0.0.0:9000", "0.0.0.0:9003"]);
        assert!(connects(lab.host(), "192.0.2.1:8000"));
        assert!(connects(lab.host(), "192.0.2.1:8003"));
        assert!(!connects(lab.host(), "192.0.2.1:8004"));
        assert!(!connects(lab.host(), "192.0.2.2:8000"), "it listens on one address only");
    }

    fn forwards_come_and_go_while_it_runs(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = guest.serve(&["[::]:80"]);
        assert!(!connects(lab.host(), "192.0.2.1:8080"));
        daemon.ask("forward.add", json!({ "forwards": ["8080:80", "8081:80/tcp"] }));
        for address in ["192.0.2.1:8080", "192.0.2.1:8081", "[2001:db8::1]:8080", "127.0.0.1:8081"] {
            lab.host().peer(&["get", address, "100000"]).ok();
        }
        daemon.ask("forward.remove", json!({ "forwards": ["8080:80"] }));
        assert!(!connects(lab.host(), "192.0.2.1:8080"));
        assert!(connects(lab.host(), "192.0.2.1:8081"));
        daemon.ask("forward.set", json!({ "forwards": ["8082:80"] }));
        assert!(!connects(lab.host(), "192.0.2.1:8081"));
        assert!(connects(lab.host(), "192.0.2.1:8082"));
    }

    fn a_set_of_forwards_is_taken_whole_or_not_at_all(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _busy = lab.host().serve(&["0.0.0.0:8081"]);
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let answer = daemon.answer("forward.add", json!({ "forwards": ["8080:80", "8081:80"] }));
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("8081"), "{answer}");
        assert!(!lab.host().listens_on(8080), "the first of the two was taken back");
        assert_eq!(daemon.ask("forward.list", json!({}))["forwards"], json!([]));
    }

    fn the_hosts_loopback_is_closed_unless_it_is_opened(backend) needs [] {
        let lab = Lab::new();
        let _server = lab.host().serve(&["127.0.0.1:7000", "127.0.0.1:7001", "[::1]:7000"]);
        for (option, first, second) in [("none", false, false), ("all", true, true), ("7000", true, false)] {
            let guest = lab.guest();
            let daemon = Daemon::start(&lab, &guest, backend, &["--host-loopback", option]);
            assert_eq!(connects(&guest, "10.0.2.2:7000"), first, "{option}");
            assert_eq!(connects(&guest, "10.0.2.2:7001"), second, "{option}");
            assert_eq!(connects(&guest, "[fd00::2]:7000"), first, "{option}");
            if first {
                guest.peer(&["echo", "10.0.2.2:7000", "100"]).ok();
            }
            drop(daemon);
        }
    }
}
