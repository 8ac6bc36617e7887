//! Loss, delay, reordering and doubling, on either side of the translation.

use std::time::Duration;

use usernet_lab::{Daemon, Lab, on_both_backends};

/// Per direction: 1 % lost, 1 % overtaking, 0.5 % doubled, 10 ms under way, 100 Mbit/s.
const FAULTS: [&str; 6] =
    ["loss=100", "reorder=100", "duplicate=50", "delay-ms=10", "rate=100000000", "seed=7"];

const LONG: Duration = Duration::from_secs(100);

on_both_backends! {
    fn downloads_survive_a_bad_path_behind_the_host(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &FAULTS);
        let _server = far.serve(&["[::]:7000"]);
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for address in ["198.51.100.2:7000", "[2001:db8:1::2]:7000"] {
            guest.peer_within(LONG, &["get", address, "3000000"]).ok();
            guest.peer_within(LONG, &["put", address, "3000000"]).ok();
        }
    }

    fn downloads_survive_a_bad_path_behind_the_guest(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let inner = lab.router();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _cable = lab.cable(&guest, &inner, &FAULTS);
        guest.sh("echo 1 >/proc/sys/net/ipv4/ip_forward").ok();
        inner.ip("route add default via 198.51.100.1");
        let _server = lab.host().serve(&["0.0.0.0:7000"]);
        inner.peer_within(LONG, &["get", "192.0.2.1:7000", "3000000"]).ok();
        inner.peer_within(LONG, &["put", "192.0.2.1:7000", "3000000"]).ok();
        inner.peer_within(LONG, &["parallel", "192.0.2.1:7000", "20", "100000"]).ok();
    }

    fn many_lossy_connections_all_end(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let inner = lab.router();
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let faults = ["loss=500", "reorder=500", "duplicate=200", "delay-ms=2", "seed=11"];
        let _cable = lab.cable(&guest, &inner, &faults);
        guest.sh("echo 1 >/proc/sys/net/ipv4/ip_forward").ok();
        inner.ip("route add default via 198.51.100.1");
        let _server = lab.host().serve(&["0.0.0.0:7000"]);
        inner.peer_within(LONG, &["parallel", "192.0.2.1:7000", "100", "10000"]).ok();
        let is_empty = usernet_lab::wait_until(LONG, || daemon.flows() == 0);
        assert!(is_empty, "{} flows are left", daemon.flows());
    }
}
