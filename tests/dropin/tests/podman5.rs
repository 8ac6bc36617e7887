//! Rootless Podman 5 over `pasta`, as Debian 13 has it.

use std::time::Duration;

use usernet_dropin::containers::IMAGE;
use usernet_dropin::machine::resolver;
use usernet_dropin::{Containers, System, both_tools};
use usernet_lab::{Namespace, Running, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// A machine, what is farther away (198.51.100.2, 2001:db8:1::2), and the cable to it. Containers have the machine's
/// own addresses, so these are no way to it.
fn with_far(machine: &Containers) -> (Namespace, Running) {
    let far = machine.lab().router();
    let cable = machine.lab().cable(machine.host(), &far, &[]);
    (far, cable)
}

both_tools! { "pasta" needs ["debian 13", "newuidmap", "busybox", "ip"];
    fn a_container_has_the_hosts_addresses_and_routes(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let seen = machine.once(&[], "ip address; ip route; ip -6 route; cat /etc/resolv.conf /etc/hosts");
        let wanted = [
            "wan0", "inet 192.0.2.1/24", "inet6 2001:db8::1/64", "mtu 65520",
            "default via 192.0.2.254", "default via 2001:db8::fe", "nameserver 169.254.1.1", "169.254.1.2",
        ];
        for wanted in wanted {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        machine.remove_all();
    }

    fn a_container_reaches_the_world(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let (far, _cable) = with_far(&machine);
        let _server = far.serve(&["198.51.100.2:7000", "[2001:db8:1::2]:7000"]);
        machine.serve("client", &["--cap-add=net_raw"], &["127.0.0.1:1"]);
        for address in ["198.51.100.2:7000", "[2001:db8:1::2]:7000"] {
            machine.peer("client", &["get", address, "1000000"]).ok();
            machine.peer("client", &["put", address, "1000000"]).ok();
            machine.peer("client", &["echo", address, "1", "1400", "8000"]).ok();
        }
        machine.sh("client", "ping -c1 -W2 198.51.100.2").ok();
        machine.sh("client", "ping -6 -c1 -W2 2001:db8:1::2").ok();
        machine.remove_all();
    }

    fn names_are_resolved_by_the_hosts_resolver(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let _resolver = resolver(machine.lab(), "one.test", "192.0.2.77");
        let found = machine.once(&[], "nslookup -type=a one.test");
        assert!(found.contains("192.0.2.77"), "{found}");
        machine.remove_all();
    }

    fn the_host_has_a_name_in_containers(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        machine.write("www/page", "hello from the host");
        let _server = machine.web_server(machine.host(), "192.0.2.1:8000");
        let page = machine.once(&[], "wget -qO- http://host.containers.internal:8000/page");
        assert_eq!(page, "hello from the host");
        machine.remove_all();
    }

    fn published_ports_are_reached_from_the_host_and_from_elsewhere(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let (far, _cable) = with_far(&machine);
        let ports = [
            "-p=8080:80", "-p=8080:80/udp", "-p=[::1]:8081:80", "-p=127.0.0.1:8082:80",
            "-p=192.0.2.2:8090-8092:90-92", "-p=8090-8092:90-92/udp", "-p=8083:83/udp",
        ];
        // A server on all addresses may answer from another one than it was asked at, which is not what is tested here.
        machine.serve("server", &ports, &["[::]:80", "[::]:90", "[::]:92", "[2001:db8::1]:83", "[2001:db8::9]:83"]);
        let tcp = [
            "127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8080", "[::1]:8081",
            "127.0.0.1:8082", "192.0.2.2:8090", "192.0.2.2:8092",
        ];
        for address in tcp {
            machine.host().peer(&["get", address, "300000"]).ok();
            machine.host().peer(&["put", address, "300000"]).ok();
        }
        for address in ["127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8090", "127.0.0.1:8092"] {
            machine.host().peer(&["echo", address, "1", "1000"]).ok();
        }
        let far_clients = [
            ("tcp", "198.51.100.1:8080", "198.51.100.2"),
            ("tcp", "[2001:db8:1::1]:8080", "2001:db8:1::2"),
            ("udp", "198.51.100.1:8080", "198.51.100.2"),
            ("udp", "[2001:db8:1::1]:8083", "2001:db8:1::2"),
        ];
        for (protocol, address, client) in far_clients {
            let seen = far.peer(&["who", protocol, address]).ok();
            assert!(seen.contains(client), "{protocol} {address}: {seen}");
        }
        machine.remove_all();
        assert!(!machine.host().listens_on(8080));
    }

    fn a_client_on_the_hosts_own_ipv6_address_is_served(tool) needs []
    reference_fails("only in IPv4 does an address stand for the host", says "Connection reset") {
        let machine = Containers::new(System::Debian13, tool);
        machine.serve("server", &["-p=8080:80"], &["[::]:80"]);
        machine.host().peer(&["get", "[2001:db8::1]:8080", "300000"]).ok();
        machine.remove_all();
    }

    fn the_users_options_reach_the_tool(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let options = "--network=pasta:-a,10.9.0.5,-n,24,-g,10.9.0.1,-I,eth7,-m,1400,-4";
        let seen = machine.once(&[options], "ip address; ip route; ip -6 address show eth7 scope global");
        for wanted in ["eth7", "inet 10.9.0.5/24", "mtu 1400", "default via 10.9.0.1"] {
            assert!(seen.contains(wanted), "{wanted}: {seen}");
        }
        assert!(!seen.contains("2001:db8"), "{seen}");
        machine.remove_all();
    }

    fn loopback_is_reached_by_the_ways_that_are_asked_for(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let _server = machine.host().serve(&["127.0.0.1:7000"]);
        let ways = [
            ("--network=pasta", "169.254.1.2:7000", false),
            ("--network=pasta:-T,7000", "127.0.0.1:7000", true),
            ("--network=pasta:--map-gw", "192.0.2.254:7000", true),
            ("--network=pasta:--map-host-loopback,10.0.3.3", "10.0.3.3:7000", true),
        ];
        for (network, address, is_open) in ways {
            machine.serve("client", &[network], &["127.0.0.1:1"]);
            let said = machine.peer("client", &["connect", address]).ok();
            assert_eq!(said.starts_with("connected"), is_open, "{network}: {said}");
            machine.remove_all();
        }
    }

    fn a_pods_containers_share_the_network(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        machine.podman(&["pod", "create", "--name=pod", "-p=8080:80"]).ok();
        machine.serve("one", &["--pod=pod"], &["0.0.0.0:80", "127.0.0.1:81"]);
        machine.serve("two", &["--pod=pod"], &["127.0.0.1:82"]);
        machine.peer("two", &["get", "127.0.0.1:81", "100000"]).ok();
        machine.host().peer(&["get", "127.0.0.1:8080", "100000"]).ok();
        machine.remove_all();
    }

    fn a_build_fetches_over_http(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let (far, _cable) = with_far(&machine);
        machine.write("www/page", "hello from afar");
        let _server = machine.web_server(&far, "198.51.100.2:8000");
        let file = format!("FROM {IMAGE}\nRUN wget -O /page http://198.51.100.2:8000/page\n");
        machine.write("build/Containerfile", &file);
        machine.podman(&["build", "--network=pasta", "-t", "built", "build"]).ok();
        let page = machine.podman(&["run", "--rm", "--network=none", "built", "cat", "/page"]).ok();
        assert_eq!(page, "hello from afar");
    }

    fn a_pod_of_kubernetes_is_played(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: server\n    \
             image: {IMAGE}\n    command: [/usernet-lab, serve, '0.0.0.0:80']\n    ports:\n    \
             - containerPort: 80\n      hostPort: 8080\n"
        );
        machine.write("pod.yaml", &pod);
        machine.podman(&["kube", "play", "pod.yaml"]).ok();
        machine.wait_for_ready("web-server");
        machine.host().peer(&["get", "127.0.0.1:8080", "300000"]).ok();
        machine.podman(&["kube", "down", "pod.yaml"]).ok();
        machine.remove_all();
    }

    fn a_custom_network_has_names_ports_and_a_way_out(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let (far, _cable) = with_far(&machine);
        let _server = far.serve(&["198.51.100.2:7000"]);
        machine.podman(&["network", "create", "net1"]).ok();
        machine.serve("one", &["--network=net1", "-p=8080:80"], &["0.0.0.0:80"]);
        machine.serve("two", &["--network=net1"], &["0.0.0.0:80"]);
        let found = machine.sh("two", "nslookup -type=a one").ok();
        assert!(found.contains("10.89.0."), "{found}");
        let address = found.rsplit("Address:").next().map(str::trim).unwrap_or_default();
        machine.peer("two", &["get", &format!("{address}:80"), "300000"]).ok();
        machine.peer("two", &["get", "198.51.100.2:7000", "300000"]).ok();
        machine.host().peer(&["get", "127.0.0.1:8080", "300000"]).ok();
        machine.remove_all();
        machine.podman(&["network", "rm", "net1"]).ok();
    }

    fn a_container_restarts_with_its_port(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        machine.serve("server", &["-p=8080:80"], &["0.0.0.0:80"]);
        for _ in 0..3 {
            machine.host().peer(&["get", "127.0.0.1:8080", "300000"]).ok();
            // The old network ends with its namespace, and nobody waits for that: it may hold the port for a moment.
            let restarts = || machine.podman(&["restart", "--time=0", "server"]).is_ok();
            assert!(wait_until(10 * SECOND, restarts), "{}", machine.podman(&["ps", "-a"]));
            let is_back = || machine.host().peer(&["get", "127.0.0.1:8080", "1000"]).is_ok();
            assert!(wait_until(10 * SECOND, is_back), "{}", machine.podman(&["ps", "-a"]));
        }
        machine.remove_all();
    }

    fn a_port_that_is_taken_is_named_and_nothing_is_left(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let _busy = machine.host().serve(&["[::]:8080"]);
        let done = machine.podman(&["run", "-d", "-p", "8080:80", IMAGE, "sleep", "100"]);
        assert!(!done.is_ok(), "{done}");
        assert!(done.err.contains("8080"), "{done}");
        machine.remove_all();
    }

    fn an_option_that_nobody_knows_is_named(tool) needs [] {
        let machine = Containers::new(System::Debian13, tool);
        let done = machine.podman(&["run", "--rm", "--network=pasta:--no-such-option", IMAGE, "true"]);
        assert!(!done.is_ok(), "{done}");
        assert!(done.err.contains("unrecognized option '--no-such-option'"), "{done}");
        machine.remove_all();
    }
}

/// The network that was the default before, and that Podman 5 still knows.
mod over_slirp4netns {
    use super::*;

    both_tools! { "slirp4netns" needs ["debian 13", "newuidmap", "busybox", "ip"];
        fn a_container_fetches_and_publishes(tool) needs [] {
            let machine = Containers::new(System::Debian13, tool);
            let _server = machine.host().serve(&["192.0.2.1:7000"]);
            for handler in ["rootlesskit", "slirp4netns"] {
                let network = format!("--network=slirp4netns:port_handler={handler}");
                machine.serve("server", &[&network, "-p=8080:80"], &["0.0.0.0:80"]);
                machine.peer("server", &["get", "192.0.2.1:7000", "300000"]).ok();
                machine.host().peer(&["get", "127.0.0.1:8080", "300000"]).ok();
                machine.remove_all();
            }
        }
    }
}
