//! Ports of the namespace that lead to the host's loopback.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use usernet_lab::{Daemon, Lab, Namespace, on_both_backends, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// Whether a connection comes about.
fn connects(from: &Namespace, address: &str) -> bool {
    from.peer(&["connect", address]).ok().starts_with("connected")
}

on_both_backends! {
    fn the_hosts_services_answer_on_the_namespaces_loopback(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["127.0.0.1:80", "[::1]:80"]);
        let options = ["--outward", "8080:80", "--outward", "8080:80/udp"];
        let daemon = Daemon::start(&lab, &guest, backend, &options);
        for (address, client) in [("127.0.0.1:8080", "127.0.0.1:"), ("[::1]:8080", "[::1]:")] {
            guest.peer(&["get", address, "10000000"]).ok();
            guest.peer(&["put", address, "10000000"]).ok();
            guest.peer(&["echo", address, "0", "1", "1400", "60000"]).ok();
            let seen = guest.peer(&["who", "tcp", address]).ok();
            assert!(seen.starts_with(client), "{address}: {seen}");
        }
        assert!(!connects(&guest, "10.0.2.100:8080"), "on its loopback only");
        assert_eq!(daemon.counter("outward_connections"), 6);
        assert_eq!(daemon.counter("bytes_from_guest") / 1_000_000, 0, "nothing passed the link");
        let listed = &daemon.ask("forward.list", json!({}))["forwards"];
        let directions: Vec<_> = listed.as_array().unwrap().iter().map(|f| &f["direction"]).collect();
        assert_eq!(directions, ["outward", "outward"]);
    }

    fn a_server_that_knows_one_family_is_reached_by_both(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["127.0.0.1:80"]);
        let _daemon = Daemon::start(&lab, &guest, backend, &["--outward", "8080:80"]);
        guest.peer(&["get", "[::1]:8080", "100000"]).ok();
    }

    fn short_connections_in_a_row_leave_nothing_behind(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["127.0.0.1:80"]);
        let daemon = Daemon::start(&lab, &guest, backend, &["--outward", "127.0.0.1:8080:80"]);
        let before = daemon.descriptors();
        guest.peer(&["sequence", "127.0.0.1:8080", "2000", "1000"]).ok();
        assert!(wait_until(SECOND, || daemon.flows() == 0));
        // Drained pipes are kept for the next connections: four descriptors each at most.
        let after = daemon.descriptors();
        assert!(before.zip(after).is_none_or(|(b, a)| a <= b + 64), "{before:?}, {after:?}");
        assert_eq!(daemon.counter("outward_ended"), 2000);
    }

    fn ports_come_and_go_while_it_runs(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["127.0.0.1:80", "192.0.2.1:81"]);
        let daemon = Daemon::start(&lab, &guest, backend, &["--forward", "9000:80"]);
        daemon.ask("outward.add", json!({ "forwards": ["8080:80", "8081:192.0.2.1:81"] }));
        guest.peer(&["get", "127.0.0.1:8080", "1000"]).ok();
        guest.peer(&["get", "127.0.0.1:8081", "1000"]).ok();
        daemon.ask("outward.remove", json!({ "forwards": ["8080:80"] }));
        assert!(!connects(&guest, "127.0.0.1:8080"));
        let left = daemon.ask("outward.set", json!({ "forwards": ["8082:80"] }));
        assert_eq!(left["forwards"].as_array().map(Vec::len), Some(2), "{left}");
        assert!(!connects(&guest, "127.0.0.1:8081"));
        guest.peer(&["get", "127.0.0.1:8082", "1000"]).ok();
        let busy = daemon.answer("outward.add", json!({ "forwards": ["8083:80", "8082:81"] }));
        assert_eq!(busy["error"]["code"], "exists", "{busy}");
        assert!(!connects(&guest, "127.0.0.1:8083"), "all or nothing");
        let taken = guest.serve(&["127.0.0.1:8084"]);
        let busy = daemon.answer("outward.add", json!({ "forwards": ["8084:80"] }));
        assert_eq!(busy["error"]["message"], "port 8084/tcp is in use in the namespace");
        drop(taken);
    }

    fn a_killed_daemon_leaves_no_listener_in_the_namespace(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["127.0.0.1:80"]);
        let mut daemon = Daemon::start(&lab, &guest, backend, &["--outward", "8080:80"]);
        assert!(connects(&guest, "127.0.0.1:8080"));
        daemon.signal(Signal::SIGKILL);
        assert!(daemon.ends_within(SECOND));
        assert!(wait_until(SECOND, || !guest.listens_on(8080)), "its port is closed");
        // Nor a helper: a second daemon finds the namespace as it was.
        let _second = Daemon::start(&lab, &guest, backend, &["--outward", "8080:80"]);
        guest.peer(&["get", "127.0.0.1:8080", "1000"]).ok();
    }
}
