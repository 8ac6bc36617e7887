//! UDP with real sockets at both ends.

use std::time::Duration;

use usernet_lab::{
    Daemon, Done, Lab, Running, on_both_backends, serial, wait_until, wan_addresses,
};

/// A paced flood is received, all but what a busy machine may lose.
#[track_caller]
fn is_counted(count: Running, flood: Running) {
    let number = |done: Done| -> u64 {
        let out = done.ok();
        let line = out.lines().last().unwrap_or_default();
        line.split(' ').next().and_then(|n| n.parse().ok()).expect("a number comes first")
    };
    let sent = number(flood.done_within(Duration::from_secs(20)));
    let received = number(count.done_within(Duration::from_secs(20)));
    assert!(sent > 1000 && received <= sent && received > sent * 9 / 10, "{received} of {sent}");
}

on_both_backends! {
    fn datagrams_of_every_size_come_back(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = lab.host().serve(&["[::]:7000"]);
        for host in wan_addresses() {
            let address = format!("{host}:7000");
            // 1473 and 1453 do not fit into one packet; 65,507 is all that IPv4 can carry.
            let sizes = ["0", "1", "512", "1400", "1452", "1453", "1473", "9000", "40000", "65507"];
            guest.peer(&[&["echo", &*address][..], &sizes].concat()).ok();
        }
    }

    fn datagrams_of_every_size_pass_a_link_with_a_large_mtu(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--mtu", "65520"]);
        let _server = lab.host().serve(&["[::]:7000"]);
        for host in wan_addresses() {
            guest.peer(&["echo", &format!("{host}:7000"), "0", "1", "9000", "65000", "65507"]).ok();
        }
    }

    fn two_peers_see_the_same_port_and_it_is_the_guests(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _servers = lab.host().serve(&["192.0.2.2:7000", "192.0.2.3:7000"]);
        let seen = guest.peer(&["who", "udp", "4321", "192.0.2.2:7000", "192.0.2.3:7000"]).ok();
        let ports: Vec<_> = seen.lines().map(|line| line.rsplit(':').next().unwrap()).collect();
        assert_eq!(ports, ["4321", "4321"], "{seen}");
    }

    fn a_port_that_is_taken_is_replaced_by_another(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _servers = lab.host().serve(&["192.0.2.2:7000", "0.0.0.0:4321"]);
        let seen = guest.peer(&["who", "udp", "4321", "192.0.2.2:7000"]).ok();
        let port = seen.trim().rsplit(':').next().unwrap().to_owned();
        assert_ne!(port, "4321");
    }

    fn a_closed_port_is_told_as_connection_refused(backend) needs ["python3"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for (family, host) in [("AF_INET", "192.0.2.1"), ("AF_INET6", "2001:db8::1")] {
            let script = format!(
                "import socket\n\
                 s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
                 s.settimeout(3)\n\
                 s.connect(('{host}', 9))\n\
                 s.send(b'x')\n\
                 try:\n    s.recv(1)\n\
                 except OSError as e:\n    print(type(e).__name__)"
            );
            assert_eq!(guest.run(&["python3", "-c", &script]).ok(), "ConnectionRefusedError\n");
        }
    }

    fn a_forward_answers_from_the_address_that_was_written_to(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let forwards = ["--forward", "8080:80/udp", "--forward", "192.0.2.7:8081:80/udp"];
        let _daemon = Daemon::start(&lab, &guest, backend, &forwards);
        let _server = guest.serve(&["[::]:80"]);
        let mut addresses = vec!["192.0.2.1", "192.0.2.5", "127.0.0.1", "127.0.0.9"];
        if usernet_lab::skip::has_ipv6() {
            addresses.extend(["[2001:db8::1]", "[2001:db8::5]", "[::1]"]);
        }
        // A client takes an answer from nobody but whom it asked.
        for address in addresses {
            lab.host().peer(&["who", "udp", &format!("{address}:8080")]).ok();
        }
        lab.host().peer(&["who", "udp", "192.0.2.7:8081"]).ok();
        let both = lab.host().peer(&["who", "udp", "4321", "192.0.2.1:8080", "192.0.2.5:8080"]).ok();
        let seen: Vec<_> = both.lines().collect();
        assert!(seen.len() == 2 && seen[0] != seen[1], "one client, two addresses: {both}");
    }

    fn clients_with_one_port_on_two_loopback_addresses_are_told_apart(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--forward", "8080:80/udp"]);
        let _server = guest.serve(&["0.0.0.0:80"]);
        let args = ["together", "4321", "127.0.0.1:8080", "127.0.0.1", "127.0.0.2", "127.0.0.3"];
        let seen = lab.host().peer(&args).ok();
        let seen: Vec<_> = seen.lines().collect();
        assert_eq!(seen[0], "10.0.2.2:4321");
        assert_eq!(seen[..3], seen[3..], "each stays who it is");
        assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2], "{seen:?}");
    }

    fn floods_arrive_whole_both_ways_and_most_of_them_in_trains(backend) needs [] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &["--forward", "9100:9100/udp"]);
        let helper = lab.program("usernet-lab");
        let (wan, forward) = ("192.0.2.1:9000", "192.0.2.1:9100");
        // Ten datagrams at a time: that they follow each other closely is all that a train needs.
        let flood = ["1200", "300", "rate=10000"];
        let start = |namespace: &usernet_lab::Namespace, args: &[&str]| {
            namespace.spawn(&[&[&*helper], args].concat())
        };
        let there = start(lab.host(), &["count", "at", wan]).wait_for("ready");
        let out = start(&guest, &[&["flood", "to", wan][..], &flood].concat());
        is_counted(there, out);
        let there = start(lab.host(), &[&["flood", "back", wan][..], &flood].concat());
        let back = there.wait_for("ready");
        is_counted(start(&guest, &["count", "from", wan]), back);
        let here = start(&guest, &["count", "at", "0.0.0.0:9100"]).wait_for("ready");
        let inward = start(lab.host(), &[&["flood", "to", forward][..], &flood].concat());
        is_counted(here, inward);
        assert!(daemon.counter("driver_trains_joined") > 100);
        assert_eq!(daemon.counter("driver_trains_cut"), 0);
    }

    fn datagrams_that_the_path_has_to_fragment_are_joined_no_more(backend) needs ["ip"] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        lab.host().ip("link set cable0 mtu 1300");
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let helper = lab.program("usernet-lab");
        let there = far.spawn(&[&helper, "count", "at", "198.51.100.2:9000"]).wait_for("ready");
        let flood = ["flood", "to", "198.51.100.2:9000", "1400", "300", "rate=10000"];
        is_counted(there, guest.spawn(&[&[&*helper], &flood[..]].concat()));
        assert_eq!(daemon.counter("driver_trains_cut"), 1, "once is enough to know");
    }

    fn iperf3_udp_runs_both_ways(backend) needs ["iperf3"] {
        let _turn = serial();
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let _server = lab.host().spawn(&["iperf3", "-s"]);
        assert!(wait_until(Duration::from_secs(10), || lab.host().listens_on(5201)));
        for direction in [&[][..], &["-R"]] {
            let options = ["iperf3", "-J", "-u", "-b", "100M", "-l", "1400", "-t", "2", "-c", "192.0.2.1"];
            let report = guest.run(&[&options, direction].concat()).ok();
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            let sum = &report["end"]["sum"];
            let lost = sum["lost_percent"].as_f64().unwrap();
            let packets = sum["packets"].as_f64().unwrap();
            assert!(packets > 10_000.0 && lost < 2.0, "{direction:?}: {packets} packets, {lost} % lost");
        }
    }
}
