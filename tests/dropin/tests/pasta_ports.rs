//! `pasta`: ports of both directions, and what of the host the namespace reaches.

use std::time::Duration;

use usernet_dropin::machine::resolver;
use usernet_dropin::pasta::Pasta;
use usernet_dropin::pastas;
use usernet_lab::{Done, Lab, Namespace, Running, wait_until};

/// How long a forward may take to follow a program: a second, on a machine with other things to do.
const FOLLOWED: Duration = Duration::from_secs(10);

/// A host with a way out to copy.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.host().ip("route add default via 192.0.2.254\nroute add default via 2001:db8::fe");
    lab
}

/// Connects a guest: configured, and nothing forwarded but what the options say.
fn connect(pasta: Pasta, lab: &Lab, guest: &Namespace, options: &[&str]) -> Done {
    let (program, pid) = (pasta.program(lab), guest.pid().to_string());
    let mut line = vec!["setsid", "--wait", &*program, "--config-net", "--quiet"];
    for direction in ["-t", "-u", "-T", "-U"] {
        if !options.contains(&direction) {
            line.extend([direction, "none"]);
        }
    }
    line.extend(options);
    line.push(&pid);
    lab.host().run(&line)
}

/// The same, which must succeed.
#[track_caller]
fn connected(pasta: Pasta, lab: &Lab, guest: &Namespace, options: &[&str]) {
    let done = connect(pasta, lab, guest, options);
    assert!(done.is_ok(), "{}", told(&done));
}

/// What it complained about, without what the original says about a host without a system log.
fn told(done: &Done) -> String {
    let lines = done.err.lines().filter(|line| !line.contains("to syslog"));
    lines.take(40).collect::<Vec<_>>().join("\n")
}

/// Whether a connection comes about, and something answers.
fn answers(from: &Namespace, address: &str) -> bool {
    from.peer(&["get", address, "1000"]).is_ok()
}

#[track_caller]
fn fetches(from: &Namespace, address: &str) {
    let done = from.peer(&["get", address, "100000"]);
    assert!(done.is_ok(), "{address}: {done}");
}

/// Where the world's server is.
const WORLD: [&str; 2] = ["198.51.100.2:7000", "[2001:db8:1::2]:7000"];

/// The world, a cable away from the host: its server, the cable, and its namespace, which end in this order.
fn world(lab: &Lab) -> (Running, Running, Namespace) {
    let far = lab.router();
    let cable = lab.cable(lab.host(), &far, &[]);
    (far.serve(&WORLD), cable, far)
}

pastas! {
    fn published_ports_lead_to_the_namespace(pasta) needs [] lacks [
        Of2023: "a single datagram of a loopback client gets no answer", says "there and back"
    ] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-t", "8080:80", "-t", "127.0.0.1/8081:81", "-u", "8082:82"]);
        let _server = guest.serve(&["[::]:80", "0.0.0.0:81", "[::]:82"]);
        for address in ["127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8080", "127.0.0.1:8081"] {
            fetches(lab.host(), address);
            lab.host().peer(&["put", address, "100000"]).ok();
        }
        assert!(!answers(lab.host(), "192.0.2.1:8081"), "it listens on one address only");
        lab.host().peer(&["echo", "127.0.0.1:8082", "1", "1000"]).ok();
        lab.host().peer(&["echo", "192.0.2.1:8082", "1", "1000"]).ok();
        lab.host().peer(&["echo", "[::1]:8082", "1", "1000"]).ok();
    }

    fn a_client_from_elsewhere_keeps_its_address(pasta) needs [] lacks [
        Of2023: "over IPv6 it resets clients from elsewhere", says "Connection reset by peer";
        Of2025: "an answer from another address of the namespace does not reach the client", says "who udp"
    ] {
        let lab = lab();
        let guest = lab.guest();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        connected(pasta, &lab, &guest, &["-t", "8080:80", "-u", "8080:80"]);
        let _server = guest.serve(&["[::]:80"]);
        for protocol in ["tcp", "udp"] {
            let seen = far.peer(&["who", protocol, "198.51.100.1:8080"]).ok();
            assert!(seen.contains("198.51.100.2"), "{protocol}: {seen}");
            let seen = far.peer(&["who", protocol, "[2001:db8:1::1]:8080"]).ok();
            assert!(seen.contains("2001:db8:1::2"), "{protocol}: {seen}");
        }
    }

    fn ranges_and_lists_lead_port_by_port_and_leave_out_what_is_excluded(pasta) needs [] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-t", "192.0.2.1/8000-8003:9000-9003,~8002", "-t", "192.0.2.2/8010,8012"]);
        let _server = guest.serve(&["0.0.0.0:9000", "0.0.0.0:9002", "0.0.0.0:9003", "0.0.0.0:8012"]);
        for address in ["192.0.2.1:8000", "192.0.2.1:8003", "192.0.2.2:8012"] {
            fetches(lab.host(), address);
        }
        for address in ["192.0.2.1:8002", "192.0.2.1:8004", "192.0.2.2:8011"] {
            assert!(!answers(lab.host(), address), "{address}");
        }
    }

    fn without_a_word_ports_follow_the_programs_that_listen(pasta) needs [] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-t", "auto", "-T", "auto"]);
        assert!(!answers(lab.host(), "127.0.0.1:7080"));
        let server = guest.serve(&["0.0.0.0:7080"]);
        assert!(wait_until(FOLLOWED, || answers(lab.host(), "127.0.0.1:7080")), "it is forwarded");
        drop(server);
        let is_gone = || !lab.host().peer(&["connect", "127.0.0.1:7080"]).out.starts_with("connected");
        assert!(wait_until(FOLLOWED, is_gone), "it is not any more");
        let _server = lab.host().serve(&["127.0.0.1:7090"]);
        assert!(wait_until(FOLLOWED, || answers(&guest, "127.0.0.1:7090")), "the other way round too");
    }

    fn excluded_ports_alone_mean_all_others_that_are_listened_on(pasta) needs [] lacks [
        Of2023: "it takes more sockets than it may have", says "Can't open enough sockets";
        Of2025: "it takes more sockets than it may have", says "Can't open enough sockets"
    ] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-t", "~7081"]);
        let _server = guest.serve(&["0.0.0.0:7080", "0.0.0.0:7081"]);
        assert!(wait_until(FOLLOWED, || answers(lab.host(), "127.0.0.1:7080")), "it is forwarded");
        assert!(!answers(lab.host(), "127.0.0.1:7081"));
    }

    fn ports_of_the_namespace_lead_to_the_hosts_loopback(pasta) needs [] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-T", "7000,7001:7002", "-U", "7003"]);
        let _server = lab.host().serve(&["127.0.0.1:7000", "127.0.0.1:7002", "127.0.0.1:7003"]);
        for address in ["127.0.0.1:7000", "127.0.0.1:7001"] {
            fetches(&guest, address);
            guest.peer(&["put", address, "100000"]).ok();
        }
        guest.peer(&["echo", "127.0.0.1:7003", "1", "1000"]).ok();
    }

    fn a_busy_port_is_named_and_nothing_comes_up(pasta) needs [] lacks [
        Of2023: "it takes the port in IPv6 instead, and says nothing", says "it must not succeed";
        Of2025: "it takes the port in IPv6 instead, and says nothing", says "it must not succeed"
    ] {
        let lab = lab();
        let guest = lab.guest();
        let _server = lab.host().serve(&["0.0.0.0:8080", "[::]:8083"]);
        let done = connect(pasta, &lab, &guest, &["-t", "8080:80"]);
        assert!(!done.is_ok(), "it must not succeed");
        assert!(done.err.contains("8080") && done.err.to_lowercase().contains("in use"), "{}", told(&done));
    }

    fn a_busy_port_of_a_range_does_not_keep_the_others_from_being_published(pasta) needs [] lacks [
        Of2025: "one port that is taken ends it", says "Failed to bind port 8002"
    ] {
        let lab = lab();
        let guest = lab.guest();
        let _taken = lab.host().serve(&["192.0.2.1:8002"]);
        connected(pasta, &lab, &guest, &["-t", "192.0.2.1/8000-8003:9000-9003"]);
        let _server = guest.serve(&["0.0.0.0:9000", "0.0.0.0:9003"]);
        fetches(lab.host(), "192.0.2.1:8000");
        fetches(lab.host(), "192.0.2.1:8003");
    }

    fn the_world_is_reached_over_tcp_udp_and_ping(pasta) needs ["ping"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        let _world = world(&lab);
        connected(pasta, &lab, &guest, &[]);
        for address in WORLD {
            fetches(&guest, address);
            guest.peer(&["echo", address, "1", "1400", "8000"]).ok();
        }
        guest.run(&["ping", "-c1", "-W2", "198.51.100.2"]).ok();
    }

    fn an_upload_that_ends_with_half_of_the_connection_arrives_whole_and_is_answered(pasta) needs [] lacks [
        Of2023: "it gets no answer", says "put 198.51.100.2"
    ] races [
        Of2025: "its end overtakes what the host's socket had no room for", says "the server says"
    ] {
        let lab = lab();
        let guest = lab.guest();
        let _world = world(&lab);
        connected(pasta, &lab, &guest, &[]);
        for address in WORLD {
            guest.peer(&["put", address, "100000"]).ok();
        }
    }

    fn the_gateway_means_the_hosts_loopback_unless_that_is_not_wanted(pasta) needs [] lacks [] {
        let lab = lab();
        let _server = lab.host().serve(&["127.0.0.1:7001", "[::1]:7001"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &[]);
        fetches(&guest, "192.0.2.254:7001");
        fetches(&guest, "[2001:db8::fe]:7001");
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--no-map-gw"]);
        assert!(!answers(&guest, "192.0.2.254:7001"));
    }

    fn other_addresses_mean_the_host_where_that_is_said(pasta) needs [] lacks [
        Of2023: "it has no such options", says "unrecognized option '--map-host-loopback'"
    ] {
        let lab = lab();
        let _server = lab.host().serve(&["127.0.0.1:7001", "192.0.2.1:7002"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--map-host-loopback", "169.254.7.1", "--map-guest-addr", "169.254.7.2"]);
        fetches(&guest, "169.254.7.1:7001");
        fetches(&guest, "169.254.7.2:7002");
        assert!(!answers(&guest, "169.254.7.2:7001"), "the host's own address is not its loopback");
    }

    fn the_guests_address_means_the_host_though_the_guest_has_another(pasta) needs [] lacks [
        Of2023: "it has no such option", says "unrecognized option '--map-guest-addr'";
        Of2025: "it takes the address of the guest for one of the host", says "169.254.7.2:7002"
    ] {
        let lab = lab();
        let _server = lab.host().serve(&["192.0.2.1:7002"]);
        let guest = lab.guest();
        let own = ["-4", "-a", "10.9.0.5", "-n", "24", "-g", "10.9.0.1"];
        connected(pasta, &lab, &guest, &[&own[..], &["--map-guest-addr", "169.254.7.2"]].concat());
        fetches(&guest, "169.254.7.2:7002");
    }

    fn a_server_on_the_namespaces_loopback_is_reached_where_that_is_said(pasta) needs [] lacks [
        Of2023: "it has no such option", says "unrecognized option '--host-lo-to-ns-lo'"
    ] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-t", "8080:80", "--host-lo-to-ns-lo"]);
        let _server = guest.serve(&["127.0.0.1:80"]);
        fetches(lab.host(), "127.0.0.1:8080");
    }

    fn names_are_resolved_by_the_address_that_is_named(pasta) needs ["dig", "dnsmasq"] lacks [
        Of2023: "it forwards queries over UDP only", says "+tcp"
    ] {
        let lab = lab();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--dns-forward", "169.254.1.1"]);
        for how in ["+notcp", "+tcp"] {
            let done = guest.run(&["dig", "+short", "+tries=1", "+time=3", how, "@169.254.1.1", "one.test"]);
            assert_eq!(done.out, "192.0.2.77\n", "{how}: {done}");
        }
    }

    fn protocols_that_are_off_are_dropped(pasta) needs ["ping"] lacks [] {
        let lab = lab();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        let _server = far.serve(&["198.51.100.2:7000"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--no-udp", "--no-icmp"]);
        fetches(&guest, "198.51.100.2:7000");
        assert!(!guest.run(&["ping", "-c1", "-W1", "198.51.100.2"]).is_ok());
    }

    fn sockets_leave_from_the_address_that_is_named(pasta) needs [] lacks [] {
        let lab = lab();
        let _server = lab.host().serve(&["192.0.2.9:7000"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-o", "192.0.2.5", "-a", "10.9.0.5", "-n", "24", "-g", "10.9.0.1"]);
        let seen = guest.peer(&["who", "tcp", "192.0.2.9:7000"]).ok();
        assert!(seen.contains("192.0.2.5"), "{seen}");
    }

    fn sockets_leave_by_the_interface_that_is_named(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        let _server = far.serve(&["198.51.100.2:7000", "[2001:db8:1::2]:7000"]);
        let own = ["-i", "wan0"];
        for (option, interface, is_reached) in [
            ("--outbound-if4", "cable0", [true, true]),
            ("--outbound-if4", "wan0", [false, true]),
            ("--outbound-if6", "wan0", [true, false]),
        ] {
            let guest = lab.guest();
            connected(pasta, &lab, &guest, &[&own[..], &[option, interface]].concat());
            let seen = ["198.51.100.2:7000", "[2001:db8:1::2]:7000"].map(|address| {
                guest.peer_within(Duration::from_secs(4), &["connect", address]).out.starts_with("connected")
            });
            assert_eq!(seen, is_reached, "{option} {interface}");
        }
    }

    fn the_resolver_that_is_asked_can_be_said(pasta) needs ["dig", "dnsmasq"] lacks [
        Of2023: "it has no such option", says "unrecognized option '--dns-host'"
    ] {
        let lab = lab();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        lab.host().admin(&["sh", "-c", "echo nameserver 192.0.2.66 >/etc/resolv.conf"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--dns-forward", "169.254.1.1", "--dns-host", "192.0.2.1"]);
        let done = guest.run(&["dig", "+short", "+tries=1", "+time=3", "@169.254.1.1", "one.test"]);
        assert_eq!(done.out, "192.0.2.77\n", "{done}");
    }

    fn tcp_that_is_off_is_dropped(pasta) needs [] lacks [] {
        let lab = lab();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        let _server = far.serve(&["198.51.100.2:7000"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--no-tcp"]);
        let done = guest.peer_within(Duration::from_secs(2), &["connect", "198.51.100.2:7000"]);
        assert!(!done.out.starts_with("connected"), "{done}");
        guest.peer(&["echo", "198.51.100.2:7000", "1", "1400"]).ok();
    }

    fn no_map_gw_is_taken_back_by_map_gw(pasta) needs [] lacks [
        Of2023: "it has no such option", says "unrecognized option '--map-gw'";
        Of2025: "it has no such option", says "unrecognized option '--map-gw'"
    ] {
        let lab = lab();
        let _server = lab.host().serve(&["127.0.0.1:7001"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--no-map-gw", "--map-gw"]);
        fetches(&guest, "192.0.2.254:7001");
    }

    fn without_splicing_loopback_clients_come_by_the_interface(pasta) needs [] lacks [
        Of2023: "it has no such option", says "unrecognized option '--no-splice'"
    ] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["-t", "8080:80", "--no-splice"]);
        let _server = guest.serve(&["0.0.0.0:80"]);
        let seen = lab.host().peer(&["who", "tcp", "127.0.0.1:8080"]).ok();
        assert!(seen.starts_with("192.0.2.254:"), "{seen}");
    }
}
