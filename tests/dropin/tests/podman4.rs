//! Rootless Podman 4 over `slirp4netns`, as Debian 12 has it.

use std::time::Duration;

use usernet_dropin::containers::IMAGE;
use usernet_dropin::machine::resolver;
use usernet_dropin::{Containers, System, both_tools};
use usernet_lab::wait_until;

const SECOND: Duration = Duration::from_secs(1);

/// As `--network` wants it.
fn network(options: &str) -> String {
    format!("--network=slirp4netns:{options}")
}

both_tools! { "slirp4netns" needs ["podman", "crun", "newuidmap", "busybox", "ip"];
    fn a_container_has_the_default_network(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let seen = machine.once(&["--network=slirp4netns"], "ip address; ip route; cat /etc/resolv.conf");
        let wanted = ["inet 10.0.2.100/24", "mtu 65520", "default via 10.0.2.2", "nameserver 10.0.2.3"];
        for wanted in wanted {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        machine.remove_all();
    }

    fn a_container_reaches_the_world(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let _server = machine.host().serve(&["192.0.2.1:7000"]);
        machine.serve("client", &["--network=slirp4netns", "--cap-add=net_raw"], &["127.0.0.1:1"]);
        machine.peer("client", &["get", "192.0.2.1:7000", "1000000"]).ok();
        machine.peer("client", &["put", "192.0.2.1:7000", "1000000"]).ok();
        machine.peer("client", &["echo", "192.0.2.1:7000", "1", "1400", "8000"]).ok();
        machine.sh("client", "ping -c1 -W2 192.0.2.1").ok();
        machine.remove_all();
    }

    fn names_are_resolved_by_the_hosts_resolver(tool) needs ["dnsmasq"] {
        let machine = Containers::new(System::Installed, tool);
        let _resolver = resolver(machine.lab(), "one.test", "192.0.2.77");
        let found = machine.once(&["--network=slirp4netns"], "nslookup -type=a one.test");
        assert!(found.contains("192.0.2.77"), "{found}");
        machine.remove_all();
    }

    fn the_options_of_the_network_are_obeyed(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let options = network("cidr=10.11.0.0/24,mtu=1400,enable_ipv6=false");
        let seen = machine.once(&[&options], "ip address; ip route; cat /etc/resolv.conf");
        let wanted = ["inet 10.11.0.100/24", "mtu 1400", "default via 10.11.0.2", "nameserver 10.11.0.3"];
        for wanted in wanted {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        assert!(!seen.contains("inet6 fd00"), "{seen}");
        machine.remove_all();
    }

    fn ipv6_is_there_where_it_is_asked_for(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let _server = machine.host().serve(&["[2001:db8::1]:7000"]);
        machine.serve("client", &[&network("enable_ipv6=true")], &["127.0.0.1:1"]);
        // The address comes from a router's advertisement, and is checked for duplicates.
        let has_address = || machine.sh("client", "ip -6 address | grep fd00 | grep -v tentative").is_ok();
        assert!(wait_until(10 * SECOND, has_address), "{}", machine.sh("client", "ip -6 address"));
        machine.peer("client", &["get", "[2001:db8::1]:7000", "1000000"]).ok();
        machine.peer("client", &["echo", "[2001:db8::1]:7000", "100"]).ok();
        machine.remove_all();
    }

    fn the_hosts_loopback_is_reached_only_if_allowed(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let _server = machine.host().serve(&["127.0.0.1:7000"]);
        for (options, is_allowed) in [("allow_host_loopback=true", true), ("allow_host_loopback=false", false)] {
            machine.serve("client", &[&network(options)], &["127.0.0.1:1"]);
            let said = machine.peer("client", &["connect", "10.0.2.2:7000"]).ok();
            assert_eq!(said.starts_with("connected"), is_allowed, "{options}: {said}");
            machine.remove_all();
        }
    }

    fn outbound_connections_come_from_the_address_that_is_asked_for(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let _server = machine.host().serve(&["192.0.2.1:7000"]);
        machine.serve("client", &[&network("outbound_addr=192.0.2.5")], &["127.0.0.1:1"]);
        for protocol in ["tcp", "udp"] {
            let seen = machine.peer("client", &["who", protocol, "192.0.2.1:7000"]).ok();
            assert!(seen.starts_with("192.0.2.5:"), "{protocol}: {seen}");
        }
        machine.remove_all();
    }

    fn published_ports_are_reached_from_the_host(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let ports = ["-p=8080:80", "-p=8080:80/udp", "-p=192.0.2.2:8090-8092:90-92"];
        for handler in ["port_handler=slirp4netns", "port_handler=rootlesskit"] {
            let network = network(handler);
            let options = [&[&*network], &ports[..]].concat();
            machine.serve("server", &options, &["0.0.0.0:80", "0.0.0.0:90", "0.0.0.0:92"]);
            for address in ["127.0.0.1:8080", "192.0.2.1:8080", "192.0.2.2:8090", "192.0.2.2:8092"] {
                machine.host().peer(&["get", address, "300000"]).ok();
                machine.host().peer(&["put", address, "300000"]).ok();
            }
            machine.host().peer(&["echo", "192.0.2.1:8080", "1", "1000"]).ok();
            machine.remove_all();
            assert!(!machine.host().listens_on(8080), "{handler}");
        }
    }

    fn a_published_udp_port_answers_clients_on_loopback(tool) needs []
    reference_fails("the host's loopback is closed to the answer too", says "there and back") {
        let machine = Containers::new(System::Installed, tool);
        let options = [&*network("port_handler=slirp4netns"), "-p=8080:80/udp"];
        machine.serve("server", &options, &["0.0.0.0:80"]);
        machine.host().peer(&["echo", "127.0.0.1:8080", "1", "1000"]).ok();
    }

    fn a_server_sees_the_address_of_its_client(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let far = machine.lab().router();
        let _cable = machine.lab().cable(machine.host(), &far, &[]);
        let options = [&*network("port_handler=slirp4netns"), "-p=8080:80", "-p=8080:80/udp"];
        machine.serve("server", &options, &["0.0.0.0:80"]);
        for protocol in ["tcp", "udp"] {
            let seen = far.peer(&["who", protocol, "198.51.100.1:8080"]).ok();
            assert!(seen.starts_with("198.51.100.2:"), "{protocol}: {seen}");
        }
    }

    fn no_socket_is_left_behind(tool) needs []
    reference_fails("it never unlinks its socket", says "left behind") {
        let machine = Containers::new(System::Installed, tool);
        machine.serve("server", &[&network("port_handler=slirp4netns"), "-p=8080:80"], &["0.0.0.0:80"]);
        machine.remove_all();
        let sockets = machine.sockets();
        assert!(sockets.is_empty(), "left behind: {sockets}");
    }

    fn two_containers_publish_at_once(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        let network = network("port_handler=slirp4netns");
        let start = |name: &str, port: &str| {
            machine.spawn(&[
                "podman", "run", "-d", "--name", name, &network, "-p", port, IMAGE, "/usernet-lab", "serve",
                "0.0.0.0:80",
            ])
        };
        let starting = [start("one", "8081:80"), start("two", "8082:80")];
        for running in starting {
            running.done_within(30 * SECOND).ok();
        }
        for (name, port) in [("one", "8081"), ("two", "8082")] {
            machine.wait_for_ready(name);
            machine.host().peer(&["get", &format!("127.0.0.1:{port}"), "300000"]).ok();
        }
        machine.remove_all();
    }

    fn a_container_restarts_with_its_port(tool) needs [] {
        let machine = Containers::new(System::Installed, tool);
        for handler in ["port_handler=slirp4netns", "port_handler=rootlesskit"] {
            machine.serve("server", &[&network(handler), "-p=8080:80"], &["0.0.0.0:80"]);
            for _ in 0..3 {
                machine.host().peer(&["get", "127.0.0.1:8080", "300000"]).ok();
                machine.podman(&["restart", "--time=0", "server"]).ok();
                let is_back = || machine.host().peer(&["get", "127.0.0.1:8080", "1000"]).is_ok();
                assert!(wait_until(10 * SECOND, is_back), "{handler}: {}", machine.podman(&["ps", "-a"]));
            }
            machine.remove_all();
        }
    }

    fn a_port_that_is_taken_is_named_and_nothing_is_left(tool) needs []
    reference_fails("it knows no reason", says "slirp_add_hostfwd failed") {
        let machine = Containers::new(System::Installed, tool);
        let _busy = machine.host().serve(&["0.0.0.0:8080"]);
        let network = network("port_handler=slirp4netns");
        let done = machine.podman(&["run", "-d", &network, "-p", "8080:80", IMAGE, "sleep", "100"]);
        assert!(!done.is_ok(), "{done}");
        assert!(done.err.contains("8080"), "{done}");
        machine.remove_all();
    }
}
