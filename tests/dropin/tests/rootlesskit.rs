//! RootlessKit, which Docker and Kubernetes are rootless by: version 1 of Debian 12 and version 2 of Debian 13.

use std::time::Duration;

use nix::sys::signal::Signal;
use usernet_dropin::{Machine, System, Tool, both_tools};
use usernet_lab::{Running, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// A machine on which RootlessKit finds the tool under test.
fn machine(system: System, tool: Tool) -> Machine {
    Machine::new(system, |lab| tool.folder(lab))
}

/// The command line of RootlessKit with these options.
fn line<'a>(tool: Tool, options: &[&'a str]) -> Vec<&'a str> {
    let net = if tool.name == "pasta" { "--net=pasta" } else { "--net=slirp4netns" };
    [&["rootlesskit", net, "--copy-up=/etc"], options].concat()
}

/// Runs a script in RootlessKit's namespaces; its output.
#[track_caller]
fn once(machine: &Machine, tool: Tool, options: &[&str], script: &str) -> String {
    let program = ["sh", "-c", script];
    machine.run(&[&*line(tool, options), &program].concat()).ok()
}

/// Starts a server in RootlessKit's namespaces.
#[track_caller]
fn serve(machine: &Machine, tool: Tool, options: &[&str], addresses: &[&str]) -> Running {
    let lab = machine.lab().program("usernet-lab");
    let server = [&[&*lab, "serve"], addresses].concat();
    machine.spawn(&[&*line(tool, options), &server].concat()).wait_for("ready")
}

/// Ends RootlessKit as a service manager does.
#[track_caller]
fn stop(running: Running) {
    running.signal(Signal::SIGTERM);
    let done = running.done_within(20 * SECOND);
    assert!(done.status.is_some(), "it does not end: {done}");
}

/// What a script in the namespaces prints about the network, with the default options.
fn shows_the_network(system: System, tool: Tool) {
    let machine = machine(system, tool);
    let script = "ip address show tap0; ip route; cat /etc/resolv.conf";
    let seen = once(&machine, tool, &[], script);
    for wanted in ["inet 10.0.2.100/24", "mtu 65520", "default via 10.0.2.2", "nameserver 10.0.2.3"]
    {
        assert!(seen.contains(wanted), "{wanted}: {seen}");
    }
    machine.must_be_clean();
    let seen = once(
        &machine,
        tool,
        &["--cidr=10.11.0.0/24", "--mtu=1400", "--ifname=net7"],
        "ip address; ip route",
    );
    for wanted in ["net7", "inet 10.11.0.100/24", "mtu 1400", "default via 10.11.0.2"] {
        assert!(seen.contains(wanted), "{wanted}: {seen}");
    }
    machine.must_be_clean();
}

/// Traffic to the outside, and the host's loopback as the options say.
fn reaches_the_world(system: System, tool: Tool) {
    let machine = machine(system, tool);
    let _server = machine.host().serve(&["192.0.2.1:7000", "127.0.0.1:7001"]);
    let lab = machine.lab().program("usernet-lab");
    let script = format!(
        "set -e; {lab} get 192.0.2.1:7000 1000000; {lab} put 192.0.2.1:7000 1000000; \
         {lab} echo 192.0.2.1:7000 1 1400 8000; ping -c1 -W2 192.0.2.1 >&2; {lab} connect 10.0.2.2:7001"
    );
    let said = once(&machine, tool, &[], &script);
    assert_eq!(said, "connected\n");
    let said =
        once(&machine, tool, &["--disable-host-loopback"], &format!("{lab} connect 10.0.2.2:7001"));
    assert!(!said.starts_with("connected"), "{said}");
    machine.must_be_clean();
}

/// Ports that are published by this port driver.
fn publishes(system: System, tool: Tool, driver: &str) {
    let machine = machine(system, tool);
    let driver = format!("--port-driver={driver}");
    let options = [
        &*driver,
        "-p=127.0.0.1:8080:80/tcp",
        "-p=192.0.2.1:8081:81/tcp",
        "-p=192.0.2.1:8082:82/udp",
    ];
    let running = serve(&machine, tool, &options, &["0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:82"]);
    for address in ["127.0.0.1:8080", "192.0.2.1:8081"] {
        machine.host().peer(&["get", address, "300000"]).ok();
        machine.host().peer(&["put", address, "300000"]).ok();
    }
    machine.host().peer(&["echo", "192.0.2.1:8082", "1", "1000"]).ok();
    stop(running);
    machine.must_be_clean();
    assert!(!machine.host().listens_on(8080));
}

mod version_1 {
    use super::*;

    both_tools! { "slirp4netns" needs ["rootlesskit", "newuidmap", "ip", "ping"];
        fn the_namespace_has_the_network_that_is_asked_for(tool) needs [] {
            shows_the_network(System::Installed, tool);
        }

        fn programs_reach_the_world(tool) needs [] {
            reaches_the_world(System::Installed, tool);
        }

        fn programs_reach_the_world_from_the_sandbox(tool) needs [] {
            let machine = machine(System::Installed, tool);
            let _server = machine.host().serve(&["192.0.2.1:7000"]);
            let lab = machine.lab().program("usernet-lab");
            let options = ["--slirp4netns-sandbox=true", "--slirp4netns-seccomp=true"];
            once(&machine, tool, &options, &format!("{lab} get 192.0.2.1:7000 1000000"));
            machine.must_be_clean();
        }

        fn ipv6_reaches_the_world(tool) needs [] {
            let machine = machine(System::Installed, tool);
            let _server = machine.host().serve(&["[2001:db8::1]:7000"]);
            let lab = machine.lab().program("usernet-lab");
            // The address comes from a router's advertisement.
            let script = format!(
                "for i in $(seq 100); do ip -6 address show tap0 | grep fd00 | grep -v tentative && break; sleep 0.1; done; \
                 {lab} get [2001:db8::1]:7000 1000000"
            );
            once(&machine, tool, &["--ipv6"], &script);
            machine.must_be_clean();
        }

        fn ports_are_published_by_the_tool(tool) needs [] {
            publishes(System::Installed, tool, "slirp4netns");
        }

        fn ports_are_published_by_rootlesskit(tool) needs [] {
            publishes(System::Installed, tool, "builtin");
        }
    }
}

mod version_2 {
    use super::*;

    both_tools! { "slirp4netns" needs ["debian 13", "newuidmap", "ip"];
        fn the_namespace_has_the_network_that_is_asked_for(tool) needs [] {
            shows_the_network(System::Debian13, tool);
        }

        fn programs_reach_the_world(tool) needs [] {
            reaches_the_world(System::Debian13, tool);
        }

        fn ports_are_published_by_the_tool(tool) needs [] {
            publishes(System::Debian13, tool, "slirp4netns");
        }
    }
}

mod version_2_with_pasta {
    use super::*;

    both_tools! { "pasta" needs ["debian 13", "newuidmap", "ip"];
        fn the_namespace_has_the_network_that_is_asked_for(tool) needs [] {
            shows_the_network(System::Debian13, tool);
        }

        fn programs_reach_the_world(tool) needs [] {
            reaches_the_world(System::Debian13, tool);
        }

        fn ports_follow_the_programs_that_listen(tool) needs [] {
            let machine = machine(System::Debian13, tool);
            let running = serve(&machine, tool, &["--port-driver=implicit"], &["0.0.0.0:8080"]);
            for address in ["127.0.0.1:8080", "192.0.2.1:8080"] {
                let answers = || machine.host().peer(&["get", address, "300000"]).is_ok();
                assert!(wait_until(10 * SECOND, answers), "{address}: {}", running.err());
            }
            machine.host().peer(&["echo", "127.0.0.1:8080", "1", "1000"]).ok();
            stop(running);
            machine.must_be_clean();
        }
    }
}
