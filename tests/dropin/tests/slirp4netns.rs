//! slirp4netns: the network that each option makes, seen from the namespace and from the host.

use std::time::Duration;

use nix::sys::signal::Signal;
use usernet_dropin::machine::resolver;
use usernet_dropin::{Slirp, both_tools};
use usernet_lab::{Lab, Namespace, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// What a client says that tries to connect: `connected`, or the kind of error.
#[track_caller]
fn connect(from: &Namespace, address: &str) -> String {
    let said = from.peer(&["connect", address]).ok();
    said.split_whitespace().next().unwrap_or_default().to_owned()
}

#[track_caller]
fn pings(from: &Namespace, address: &str) {
    from.run(&["ping", "-c1", "-W3", address]).ok();
}

both_tools! { "slirp4netns" needs ["ip", "ping"];
    fn configure_brings_up_lo_and_the_tap_with_address_and_route(tool) needs [] {
        let (lab, tap) = (Lab::new(), "tap0");
        let guest = lab.guest();
        let _slirp = Slirp::start(tool, &lab, &guest, &[]);
        let seen = guest.run(&["ip", "address", "show", tap]).ok();
        for wanted in ["inet 10.0.2.100/24 brd 10.0.2.255 scope global", ",UP", "mtu 1500", "link/ether"] {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        let routes = guest.run(&["ip", "route"]).ok();
        assert!(routes.contains("default via 10.0.2.2 dev tap0"), "{routes}");
        let lo = guest.run(&["ip", "address", "show", "lo"]).ok();
        assert!(lo.contains(",UP") && lo.contains("127.0.0.1/8"), "{lo}");
        pings(&guest, "10.0.2.2");
        pings(&guest, "10.0.2.3");
    }

    fn without_configure_the_tap_is_down_and_bare(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::bare(tool, &lab, &guest, &["--mtu=9000"]);
        assert_eq!(slirp.ready, "1");
        let seen = guest.run(&["ip", "address"]).ok();
        assert!(seen.contains("tap0") && seen.contains("mtu 1500"), "{seen}");
        assert!(!seen.contains(",UP") && !seen.contains("inet"), "{seen}");
        guest.ip("link set tap0 up\naddr add 10.0.2.100/24 dev tap0\nroute add default via 10.0.2.2");
        pings(&guest, "10.0.2.2");
    }

    fn a_tap_that_the_caller_made_is_taken_as_it_is(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        guest.ip("tuntap add tap0 mode tap\nlink set tap0 address 02:00:00:00:00:07 mtu 1400 up\n\
                  addr add 10.0.2.100/24 dev tap0\nroute add default via 10.0.2.2");
        let _server = lab.host().serve(&["192.0.2.1:7000"]);
        let slirp = Slirp::bare(tool, &lab, &guest, &[]);
        let seen = guest.run(&["ip", "link", "show", "tap0"]).ok();
        assert!(seen.contains("mtu 1400") && seen.contains("02:00:00:00:00:07"), "{seen}");
        guest.peer(&["get", "192.0.2.1:7000", "1000000"]).ok();
        slirp.end();
        guest.run(&["ip", "link", "show", "tap0"]).ok();
    }

    fn tcp_udp_and_ping_reach_the_outside(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["192.0.2.1:7000"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &[]);
        guest.peer(&["get", "192.0.2.1:7000", "3000000"]).ok();
        guest.peer(&["put", "192.0.2.1:7000", "3000000"]).ok();
        guest.peer(&["echo", "192.0.2.1:7000", "1", "1400", "1472"]).ok();
        pings(&guest, "192.0.2.1");
        assert_eq!(connect(&guest, "192.0.2.1:7001"), "ConnectionRefused");
    }

    fn cidr_moves_every_address(tool) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        let _server = lab.host().serve(&["127.0.0.1:7000"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &["--cidr=10.11.128.0/17"]);
        let seen = guest.sh("ip address show tap0; ip route").ok();
        for wanted in ["inet 10.11.128.100/17", "default via 10.11.128.2"] {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        pings(&guest, "10.11.128.2");
        assert_eq!(connect(&guest, "10.11.128.2:7000"), "connected");
        assert_eq!(guest.run(&["dig", "+short", "@10.11.128.3", "one.test"]).ok(), "192.0.2.77\n");
    }

    fn an_mtu_of_65520_works(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["192.0.2.1:7000"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &["-m", "65520"]);
        let seen = guest.run(&["ip", "link", "show", "tap0"]).ok();
        assert!(seen.contains("mtu 65520"), "{seen}");
        guest.peer(&["get", "192.0.2.1:7000", "30000000"]).ok();
        guest.peer(&["put", "192.0.2.1:7000", "30000000"]).ok();
        guest.peer(&["echo", "192.0.2.1:7000", "1", "9000"]).ok();
    }

    fn a_small_mtu_works(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["192.0.2.1:7000"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &["--mtu=600"]);
        guest.peer(&["get", "192.0.2.1:7000", "300000"]).ok();
        guest.peer(&["put", "192.0.2.1:7000", "300000"]).ok();
    }

    fn macaddress_is_the_devices(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _slirp = Slirp::start(tool, &lab, &guest, &["--macaddress=0:11:22:33:44:5f"]);
        let seen = guest.run(&["ip", "link", "show", "tap0"]).ok();
        assert!(seen.contains("link/ether 00:11:22:33:44:5f"), "{seen}");
        pings(&guest, "10.0.2.2");
    }

    fn ipv6_is_there_only_if_enabled(tool) needs [] {
        let lab = Lab::new();
        let _server = lab.host().serve(&["[2001:db8::1]:7000", "[::1]:7001"]);
        let without = lab.guest();
        let _first = Slirp::start(tool, &lab, &without, &[]);
        let seen = without.run(&["ip", "-6", "address", "show", "scope", "global"]).ok();
        assert!(!seen.contains("inet6"), "{seen}");
        let guest = lab.guest();
        let _second = Slirp::start(tool, &lab, &guest, &["--enable-ipv6"]);
        let has_address = || {
            let seen = guest.run(&["ip", "-6", "address", "show", "scope", "global"]).ok();
            seen.contains("inet6 fd00:") && !seen.contains("tentative")
        };
        assert!(wait_until(10 * SECOND, has_address), "{}", guest.run(&["ip", "-6", "address"]));
        let routes = guest.run(&["ip", "-6", "route"]).ok();
        assert!(routes.contains("default via"), "{routes}");
        pings(&guest, "fd00::2");
        guest.peer(&["get", "[2001:db8::1]:7000", "1000000"]).ok();
        guest.peer(&["echo", "[2001:db8::1]:7000", "100"]).ok();
        assert_eq!(connect(&guest, "[fd00::2]:7001"), "connected");
    }

    fn the_gateway_is_the_hosts_loopback(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["127.0.0.1:7000"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &[]);
        assert_eq!(connect(&guest, "10.0.2.2:7000"), "connected");
        assert_eq!(connect(&guest, "10.0.2.2:7001"), "ConnectionRefused");
        guest.peer(&["echo", "10.0.2.2:7000", "100"]).ok();
    }

    fn disable_host_loopback_makes_the_gateway_unreachable_but_for_ping(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["127.0.0.1:7000", "192.0.2.1:7001"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &["--disable-host-loopback"]);
        assert_eq!(connect(&guest, "10.0.2.2:7000"), "NetworkUnreachable");
        assert_eq!(connect(&guest, "192.0.2.1:7001"), "connected");
        pings(&guest, "10.0.2.2");
    }

    fn names_are_resolved_by_the_hosts_resolver(tool) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        let _slirp = Slirp::start(tool, &lab, &guest, &["--disable-host-loopback"]);
        for how in ["+notcp", "+tcp"] {
            let found = guest.run(&["dig", "+short", "+tries=2", how, "@10.0.2.3", "one.test"]).ok();
            assert_eq!(found, "192.0.2.77\n", "{how}");
        }
    }

    fn disable_dns_leaves_the_dns_address_silent(tool) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        let _slirp = Slirp::start(tool, &lab, &guest, &["--disable-dns"]);
        let asked = guest.run(&["dig", "+tries=1", "+time=2", "@10.0.2.3", "one.test"]);
        assert!(!asked.is_ok() && asked.out.contains("timed out"), "{asked}");
    }

    fn disable_dns_leaves_connections_to_the_dns_address_waiting(tool) needs ["timeout"]
    reference_fails("only UDP is silent, TCP is told that the network is unreachable", says "NetworkUnreachable") {
        let lab = Lab::new();
        let guest = lab.guest();
        let _slirp = Slirp::start(tool, &lab, &guest, &["--disable-dns"]);
        let peer = lab.program("usernet-lab");
        let waited = guest.run(&["timeout", "2", &peer, "connect", "10.0.2.3:53"]);
        assert_eq!(waited.status.and_then(|status| status.code()), Some(124), "{waited}");
    }

    fn dhcp_leases_from_network_and_15(tool) needs ["busybox"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _slirp = Slirp::bare(tool, &lab, &guest, &["--cidr=10.11.0.0/24"]);
        guest.ip("link set lo up\nlink set tap0 up");
        let script = format!("{}/run/lease", lab.dir().display());
        let write = format!("printf '#!/bin/sh\\necho \"$1 $ip/$mask via $router dns $dns\"\\n' >{script}; chmod 755 {script}");
        guest.sh(&write).ok();
        let leased = guest.run(&["busybox", "udhcpc", "-i", "tap0", "-n", "-q", "-f", "-s", &script]).ok();
        let expected = "bound 10.11.0.15/24 via 10.11.0.2 dns 10.11.0.3";
        assert!(leased.contains(expected), "{leased}");
    }

    fn connections_leave_from_the_outbound_address(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["192.0.2.1:7000", "[2001:db8::1]:7000"]);
        let options = ["-6", "--outbound-addr=192.0.2.5", "--outbound-addr6=2001:db8::5"];
        let _slirp = Slirp::start(tool, &lab, &guest, &options);
        for protocol in ["tcp", "udp"] {
            let seen = guest.peer(&["who", protocol, "192.0.2.1:7000"]).ok();
            assert!(seen.starts_with("192.0.2.5:"), "{protocol}: {seen}");
        }
        let has_address = || guest.run(&["ip", "-6", "route"]).ok().contains("default via");
        assert!(wait_until(10 * SECOND, has_address));
        let seen = || guest.peer(&["who", "tcp", "[2001:db8::1]:7000"]);
        assert!(wait_until(10 * SECOND, || seen().is_ok()), "{}", seen());
        assert!(seen().ok().starts_with("[2001:db8::5]:"));
    }

    fn connections_leave_by_the_outbound_interface(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        let _server = far.serve(&["198.51.100.2:7000"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &["--outbound-addr=cable0"]);
        let seen = guest.peer(&["who", "tcp", "198.51.100.2:7000"]).ok();
        assert!(seen.starts_with("198.51.100.1:"), "{seen}");
        let seen = guest.peer(&["who", "udp", "198.51.100.2:7000"]).ok();
        assert!(seen.starts_with("198.51.100.1:"), "{seen}");
    }

    fn the_ready_descriptor_gets_a_one_when_all_is_there(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        assert_eq!(slirp.ready, "1");
        assert!(slirp.ask(r#"{"execute":"list_hostfwd"}"#).contains("entries"));
    }

    fn it_ends_with_status_0_and_without_a_trace_when_the_exit_descriptor_hangs_up(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let done = slirp.end();
        assert_eq!(done.status.and_then(|status| status.code()), Some(0), "{done}");
        let gone = || !guest.run(&["ip", "link", "show", "tap0"]).is_ok();
        assert!(wait_until(5 * SECOND, gone), "the TAP stays");
    }

    fn a_signal_ends_it_and_is_what_its_parent_sees(tool) needs [] {
        use std::os::unix::process::ExitStatusExt;
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let lab = Lab::new();
            let guest = lab.guest();
            let slirp = Slirp::start(tool, &lab, &guest, &[]);
            slirp.signal(signal);
            let done = slirp.ended();
            assert_eq!(done.status.and_then(|s| s.signal()), Some(signal as i32), "{done}");
        }
    }

    fn namespaces_may_be_given_by_path_and_descriptor(tool) needs [] {
        let lab = Lab::new();
        for by_descriptor in [false, true] {
            let guest = lab.guest();
            let pid = guest.pid();
            let (path, userns) = (format!("/proc/{pid}/ns/net"), format!("--userns-path=/proc/{pid}/ns/user"));
            // The reader of the guest's name is the same program under a descriptor of its own.
            let operand = if by_descriptor { "/proc/self/fd/0" } else { &path };
            let program = tool.path(&lab);
            let script = format!("exec {program} -c -r 5 --netns-type=path {userns} {operand} tap0 5>run/ready <{path}");
            let running = lab.host().spawn(&["sh", "-c", &script]);
            let ready = lab.dir().join("run/ready");
            let is_ready = || std::fs::read_to_string(&ready).is_ok_and(|text| text == "1");
            assert!(wait_until(10 * SECOND, is_ready), "{}{}", running.out(), running.err());
            pings(&guest, "10.0.2.2");
            std::fs::remove_file(&ready).expect("the file is in our folder");
        }
    }

    fn sandbox_and_seccomp_hinder_nothing(tool) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        let _server = lab.host().serve(&["192.0.2.1:7000"]);
        let options = ["--enable-sandbox", "--enable-seccomp", "--disable-host-loopback", "--mtu=65520"];
        let mut slirp = Slirp::start(tool, &lab, &guest, &options);
        guest.peer(&["get", "192.0.2.1:7000", "1000000"]).ok();
        guest.peer(&["echo", "192.0.2.1:7000", "100"]).ok();
        pings(&guest, "192.0.2.1");
        assert_eq!(guest.run(&["dig", "+short", "@10.0.2.3", "one.test"]).ok(), "192.0.2.77\n");
        let _in_guest = guest.serve(&["0.0.0.0:80"]);
        slirp.forward(r#""proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_port":80"#);
        lab.host().peer(&["get", "127.0.0.1:8080", "1000000"]).ok();
        assert!(slirp.is_running());
    }

    fn bess_serves_one_peer_by_a_socket(tool) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        let _server = lab.host().serve(&["192.0.2.1:7000", "127.0.0.1:7001"]);
        let path = format!("{}/run/bess", lab.dir().display());
        let (program, api) = (tool.path(&lab), format!("{}/run/api", lab.dir().display()));
        let mut slirp = lab.host().spawn(&[&program, "--target-type=bess", "--mtu=1400", "-a", &api, &path]);
        let is_there = || std::path::Path::new(&path).exists();
        assert!(wait_until(10 * SECOND, is_there), "{}{}", slirp.out(), slirp.err());
        let (peer, pid) = (lab.program("usernet-lab"), guest.pid().to_string());
        let _plug = lab.host().spawn_admin(&[&peer, "plug", &pid, "vec0", &path]).wait_for("ready");
        guest.ip("link set vec0 mtu 1400 up\naddr add 10.0.2.100/24 dev vec0\nroute add default via 10.0.2.2");
        pings(&guest, "10.0.2.2");
        pings(&guest, "192.0.2.1");
        guest.peer(&["get", "192.0.2.1:7000", "1000000"]).ok();
        guest.peer(&["put", "192.0.2.1:7000", "1000000"]).ok();
        guest.peer(&["echo", "192.0.2.1:7000", "1", "1000"]).ok();
        assert_eq!(connect(&guest, "10.0.2.2:7001"), "connected");
        assert_eq!(guest.run(&["dig", "+short", "@10.0.2.3", "one.test"]).ok(), "192.0.2.77\n");
        let _in_guest = guest.serve(&["0.0.0.0:80"]);
        let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":8080,"guest_port":80}}"#;
        assert_eq!(lab.host().peer(&["speak", &api, add]).ok(), r#"{"return":{"id":1}}"#);
        lab.host().peer(&["get", "127.0.0.1:8080", "100000"]).ok();
        assert!(slirp.is_running());
    }

    fn what_was_set_up_is_printed(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &["--mtu=9000"]);
        let socket = slirp.socket.clone();
        let done = slirp.end();
        for line in ["Starting slirp", "* MTU:             9000", "* Network:         10.0.2.0",
            "* Netmask:         255.255.255.0", "* Gateway:         10.0.2.2", "* DNS:             10.0.2.3",
            "* DHCP begin:      10.0.2.15", "* DHCP end:        10.0.2.30", "* Recommended IP:  10.0.2.100",
            &format!("* API Socket:      {socket}"),
            "WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2 (set --disable-host-loopback to \
             prohibit connecting to 127.0.0.1:*)"] {
            assert!(done.out.lines().any(|said| said == line), "{line}: {done}");
        }
        assert!(done.err.contains("sent tapfd=") && done.err.contains(" for tap0\nreceived tapfd="), "{done}");
    }
}
