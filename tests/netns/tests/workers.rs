//! Several workers share a guest: whatever they do, it looks like one. `USERNET_WORKERS=N` runs all other tests so, too.

use std::time::Duration;

use serde_json::{Value, json};
use usernet_lab::{Daemon, Lab, on_both_backends, serial, wait_until, wan_addresses};

const LONG: Duration = Duration::from_secs(100);

/// Three: a number that no power of two hides, and a mapping's owner is more often another worker than its frames'.
const WORKERS: [&str; 2] = ["--workers", "3"];

/// A member of each worker's part of the status.
fn each(daemon: &Daemon<'_>, member: &str) -> Vec<u64> {
    let status = daemon.ask("status", json!({}));
    let workers = status["workers"].as_array().expect("a list");
    workers.iter().map(|worker| worker[member].as_u64().expect("a number")).collect()
}

/// Names of the daemon's threads.
fn threads(daemon: &Daemon<'_>) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    let mut names: Vec<_> = tasks.filter_map(name).map(|n| n.trim().to_owned()).collect();
    names.sort();
    names
}

on_both_backends! {
    fn a_thousand_downloads_are_shared_out_and_leave_nothing(backend) needs [] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &WORKERS);
        assert_eq!(threads(&daemon), ["control", "usernetd", "worker", "worker"]);
        let _server = lab.host().serve(&["[::]:7000"]);
        let before = daemon.descriptors();
        for host in wan_addresses() {
            guest.peer_within(LONG, &["parallel", &format!("{host}:7000"), "1000", "100000"]).ok();
        }
        assert!(wait_until(LONG, || daemon.flows() == 0), "flows are left: {}", daemon.flows());
        assert_eq!(daemon.descriptors(), before);
        let written = each(&daemon, "frames_to_guest");
        let fair = written.iter().sum::<u64>() / 3;
        assert!(written.iter().all(|&n| n > fair / 2), "everybody has done a part: {written:?}");
        assert_eq!(daemon.counter("driver_hand_overs_lost"), 0);
        // Only first frames come to the wrong worker: the answers teach the kernel.
        let (handed, taken) = (daemon.counter("handed_over"), daemon.counter("frames_from_guest"));
        assert!(handed > 100 && handed < taken / 2, "{handed} of {taken} frames handed over");
        let leases: Vec<_> = daemon.ask("status", json!({}))["workers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|worker| worker["usage"]["leases"].clone())
            .collect();
        assert_eq!(leases, [json!(0), json!(0), json!(0)], "every worker has its buffers back");
    }

    fn uploads_are_complete(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &WORKERS);
        let _server = lab.host().serve(&["[::]:7000"]);
        for host in wan_addresses() {
            for _ in 0..10 {
                guest.peer(&["put", &format!("{host}:7000"), "3000000"]).ok();
            }
        }
    }

    fn a_udp_port_is_the_same_to_everybody_and_fragments_come_back_whole(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &WORKERS);
        let addresses: Vec<String> = (2..=9).map(|n| format!("192.0.2.{n}:7000")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let _servers = lab.host().serve(&[&addresses[..], &["[2001:db8::1]:7000"]].concat());
        for port in ["4321", "4322", "4323", "4324"] {
            let seen = guest.peer(&[&["who", "udp", port][..], &addresses].concat()).ok();
            assert_eq!(seen.lines().count(), addresses.len());
            assert!(seen.lines().all(|line| line.ends_with(&format!(":{port}"))), "{seen}");
        }
        // A new port each time, so that every worker is the owner of some.
        for _ in 0..10 {
            for host in wan_addresses() {
                let at = format!("{host}:7000");
                let at = at.replace("192.0.2.1:", "192.0.2.2:");
                guest.peer(&["echo", &at, "0", "1", "1472", "1473", "9000", "65507"]).ok();
            }
        }
        assert!(daemon.counter("reassembly_whole") >= 40);
        assert!(daemon.counter("handed_over") > 40);
    }

    fn forwards_keep_the_clients_address_and_port_and_change_in_all_workers_at_once(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        let daemon = Daemon::start(&lab, &guest, backend, &WORKERS);
        let _server = guest.serve(&["[::]:80"]);
        let forwards = |first: u16| -> Value {
            let specs = ["tcp", "udp"].into_iter().flat_map(|protocol| {
                (first..first + 4).map(move |port| format!("{port}:80/{protocol}"))
            });
            json!({ "forwards": specs.collect::<Vec<_>>() })
        };
        daemon.ask("forward.add", forwards(8080));
        for port in 8080..8084 {
            for (host, client) in [("198.51.100.1", "198.51.100.2"), ("[2001:db8:1::1]", "2001:db8:1::2")] {
                for protocol in ["tcp", "udp"] {
                    let seen = far.peer(&["who", protocol, &format!("{host}:{port}")]).ok();
                    assert!(seen.contains(client), "{protocol} {host}:{port}: {seen}");
                }
            }
            far.peer(&["get", &format!("198.51.100.1:{port}"), "1000000"]).ok();
            far.peer(&["put", &format!("198.51.100.1:{port}"), "1000000"]).ok();
        }
        far.peer_within(LONG, &["sequence", "198.51.100.1:8080", "200", "100"]).ok();
        far.peer(&["echo", "198.51.100.1:8081", "0", "1400", "9000", "65507"]).ok();
        assert!(daemon.counter("clients_handed_over") > 50);
        assert_eq!(daemon.counter("driver_hand_overs_lost"), 0);
        // One of them is in use, so none of them comes, and the others stay.
        let _taken = lab.host().serve(&["0.0.0.0:9003"]);
        let refused = daemon.answer("forward.add", forwards(9000));
        assert_eq!(refused["error"]["code"], "port_in_use", "{refused}");
        assert!(!lab.host().listens_on(9000));
        // A port passes to another forward, and perhaps to another worker, back and forth.
        let _other = guest.serve(&["[::]:81"]);
        for guest_port in [81, 80, 81, 80] {
            let specs: Vec<String> = ["tcp", "udp"]
                .into_iter()
                .flat_map(|p| (8080..8084).map(move |port| format!("{port}:{guest_port}/{p}")))
                .collect();
            daemon.ask("forward.set", json!({ "forwards": specs }));
            for port in 8080..8084 {
                for protocol in ["tcp", "udp"] {
                    far.peer(&["who", protocol, &format!("198.51.100.1:{port}")]).ok();
                }
            }
        }
        daemon.ask("forward.set", json!({ "forwards": [] }));
        assert!(wait_until(LONG, || !lab.host().listens_on(8080)));
    }

    fn loopback_clients_are_joined_by_all_workers(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &[&WORKERS[..], &["--forward", "8080:80"]].concat());
        let _server = guest.serve(&["127.0.0.1:80", "[::1]:80"]);
        for host in ["127.0.0.1:8080", "[::1]:8080"] {
            lab.host().peer_within(LONG, &["sequence", host, "100", "1000"]).ok();
            lab.host().peer(&["put", host, "10000000"]).ok();
        }
        assert_eq!(daemon.counter("tcp_spliced"), 202);
        assert!(wait_until(LONG, || daemon.flows() == 0), "flows are left: {}", daemon.flows());
    }

    fn ping_and_the_neighbours_are_answered(backend) needs ["ping"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &WORKERS);
        for to in ["10.0.2.2", "192.0.2.1", "fd00::2", "2001:db8::1"] {
            for size in ["56", "4000"] {
                for _ in 0..4 {
                    guest.run(&["ping", "-c", "2", "-i", "0.1", "-s", size, "-W", "2", to]).ok();
                }
            }
        }
    }

    fn a_capture_of_several_workers_is_one_file_that_can_be_read(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let path = lab.dir().join("run/all.pcap");
        let name = path.to_string_lossy().into_owned();
        let mut daemon = Daemon::start(&lab, &guest, backend, &[&WORKERS[..], &["--pcap", &name]].concat());
        let _server = lab.host().serve(&["[::]:7000"]);
        guest.peer_within(LONG, &["parallel", "192.0.2.1:7000", "50", "100000"]).ok();
        let counted = daemon.counter("frames_from_guest") + daemon.counter("frames_to_guest");
        daemon.close_exit_fd();
        assert!(daemon.ends_within(LONG));
        let file = std::fs::read(&path).expect("it is there");
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().expect("four bytes"));
        let (mut at, mut records, mut last) = (24, 0, (0, 0));
        while at < file.len() {
            let (time, kept, whole) = ((word(at), word(at + 4)), word(at + 8), word(at + 12));
            assert!(time >= last && kept == whole && (14..=65_549).contains(&kept), "record {records}");
            (at, records, last) = (at + 16 + kept as usize, records + 1, time);
        }
        assert_eq!(at, file.len(), "the last record is whole");
        // Each frame once; what the end of the guest's connections brought after the count may be more.
        assert!(records >= counted && records < counted + 100, "{records} of {counted}");
    }

    fn all_workers_end_together_and_nothing_is_left(backend) needs ["ip"] {
        let lab = Lab::new();
        for how in ["exit", "namespace", "stop"] {
            let mut guest = lab.guest();
            let mut daemon = Daemon::start(&lab, &guest, backend, &[&WORKERS[..], &["--forward", "8080:80"]].concat());
            let _server = lab.host().serve(&["192.0.2.1:7000"]);
            guest.peer(&["get", "192.0.2.1:7000", "100000"]).ok();
            match how {
                "exit" => daemon.close_exit_fd(),
                "namespace" => guest.kill(),
                _ => drop(daemon.answer("stop", json!({}))),
            }
            assert!(daemon.ends_within(Duration::from_secs(2)), "{how}: {}", daemon.said());
            let done = daemon.done_within(Duration::from_secs(1));
            assert!(done.is_ok(), "{how}: {done}");
            assert!(!lab.host().listens_on(8080), "{how}");
            if how != "namespace" {
                assert!(!guest.sh("ip link show tap0").is_ok(), "{how}: the device is gone");
            }
        }
    }
}
