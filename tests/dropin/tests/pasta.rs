//! `pasta`: how it is called, how it ends, and what the namespace looks like then.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use usernet_dropin::pasta::Pasta;
use usernet_dropin::pastas;
use usernet_lab::{Done, Lab, Namespace, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// What Podman 5.4 gives where nothing is published.
const PODMAN: [&str; 12] = [
    "--config-net",
    "--dns-forward",
    "169.254.1.1",
    "-t",
    "none",
    "-u",
    "none",
    "-T",
    "none",
    "-U",
    "none",
    "--quiet",
];

/// Nothing is forwarded.
const NO_PORTS: [&str; 8] = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"];

/// A host with a way out to copy.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.host().ip("route add default via 192.0.2.254\nroute add default via 2001:db8::fe\n\
         route add 198.18.0.0/15 via 192.0.2.253");
    lab
}

/// Connects a guest by its process id.
fn connect(pasta: Pasta, lab: &Lab, guest: &Namespace, options: &[&str]) -> Done {
    call(pasta, lab, &[options, &[&*guest.pid().to_string()]].concat())
}

/// Connects a guest, which must succeed.
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

/// Runs it with these words.
fn call(pasta: Pasta, lab: &Lab, words: &[&str]) -> Done {
    // In a group of its own: what is in the background must not end with this call.
    let program = pasta.program(lab);
    lab.host().run(&[&["setsid", "--wait", &*program], words].concat())
}

fn status(done: &Done) -> Option<i32> {
    done.status.and_then(|status| status.code())
}

/// Addresses and routes, one per line.
fn network(guest: &Namespace) -> String {
    guest.sh("ip -o address; ip route; ip -6 route; ip -o link").ok()
}

/// What a DHCP client in the namespace is told, one `name=value` per line; it tries twice.
fn lease(lab: &Lab, guest: &Namespace) -> String {
    let script = lab.dir().join("lease").display().to_string();
    let write = "printf '#!/bin/sh\\n[ \"$1\" = bound ] && set\\nexit 0\\n' >$1 && chmod 755 $1";
    lab.host().run(&["sh", "-c", write, "sh", &script]).ok();
    guest.admin(&["ip", "link", "set", "wan0", "up"]);
    let asked = [
        "busybox", "udhcpc", "-i", "wan0", "-n", "-q", "-t2", "-T1", "-O", "search", "-s", &script,
    ];
    let said = guest.spawn_admin(&asked).done_within(20 * SECOND);
    said.out.replace('\'', "")
}

#[track_caller]
fn must_have(network: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(network.contains(wanted), "no {wanted}:\n{network}");
    }
}

pastas! {
    fn the_namespace_gets_the_hosts_addresses_routes_and_interface_name(pasta) needs ["ip"] lacks [
        Of2023: "it copies one address of each family, and the default route", says "no inet 192.0.2.9/24"
    ] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--config-net"]);
        must_have(&network(&guest), &[
            "wan0", "inet 192.0.2.1/24", "inet 192.0.2.9/24", "inet6 2001:db8::1/64", "inet6 2001:db8::9/64",
            "default via 192.0.2.254 dev wan0", "default via 2001:db8::fe dev wan0", "mtu 65520",
            "198.18.0.0/15 via 192.0.2.253",
        ]);
    }

    fn podmans_line_connects_by_path(pasta) needs ["ip"] lacks [
        Of2023: "it has no --map-guest-addr", says "unrecognized option '--map-guest-addr'"
    ] {
        let lab = lab();
        let guest = lab.guest();
        let path = format!("/proc/{}/ns/net", guest.pid());
        let userns = format!("/proc/{}/ns/user", guest.pid());
        let ours = ["--netns", &*path, "--userns", &*userns, "--no-map-gw", "--map-guest-addr", "169.254.1.2"];
        let done = call(pasta, &lab, &[&PODMAN[..], &ours].concat());
        assert!(done.is_ok(), "{}", told(&done));
        must_have(&network(&guest), &["wan0", "inet 192.0.2.1/24", "default via 192.0.2.254 dev wan0"]);
    }

    fn rootlesskits_line_gives_the_network_that_it_names(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        let options = [
            "--stderr", "--ns-ifname=tap0", "--mtu=65520", "--config-net", "--address=10.0.2.100",
            "--netmask=24", "--gateway=10.0.2.2", "--dns-forward=10.0.2.3", "--no-map-gw", "--ipv4-only",
            "--tcp-ports=none", "--udp-ports=none",
        ];
        connected(pasta, &lab, &guest, &options);
        let seen = network(&guest);
        must_have(&seen, &["tap0", "inet 10.0.2.100/24", "default via 10.0.2.2 dev tap0", "mtu 65520"]);
        assert!(!seen.contains("192.0.2.1") && !seen.contains("2001:db8"), "{seen}");
    }

    fn what_the_options_say_takes_the_place_of_the_hosts(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        let options = [
            "--config-net", "-I", "net7", "-m", "1400", "-a", "10.9.0.5", "-n", "255.255.255.0", "-g", "10.9.0.1",
            "-a", "fd09::5", "-g", "fd09::1", "--ns-mac-addr", "02:00:00:00:00:07", "-M", "02:00:00:00:00:08",
        ];
        connected(pasta, &lab, &guest, &[&NO_PORTS[..], &options].concat());
        must_have(&network(&guest), &[
            "net7", "mtu 1400", "inet 10.9.0.5/24", "default via 10.9.0.1", "inet6 fd09::5/64",
            "default via fd09::1", "02:00:00:00:00:07",
        ]);
        guest.sh("ping -c1 -W1 10.9.0.1 >&2; ip neigh show 10.9.0.1 | grep -i 02:00:00:00:00:08").ok();
    }

    fn of_an_interface_that_is_named_the_addresses_are_taken(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        lab.host().ip("link add other0 type veth peer name other1\naddr add 198.51.100.7/25 dev other0\n\
                       link set other1 up\nlink set other0 up\nroute add default via 198.51.100.1 metric 500");
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &[&NO_PORTS[..], &["--config-net", "-4", "-i", "other0"]].concat());
        must_have(&network(&guest), &["inet 198.51.100.7/25", "default via 198.51.100.1 dev other0"]);
    }

    fn without_config_net_nothing_is_configured_but_the_loopback(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &NO_PORTS);
        let seen = network(&guest);
        must_have(&seen, &["wan0", "127.0.0.1/8"]);
        assert!(!seen.contains("192.0.2.1"), "{seen}");
    }

    fn a_command_runs_in_namespaces_of_its_own_and_its_status_is_ours(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let script = "ip -o address show wan0; readlink /proc/self/ns/net; exit 7";
        let done = call(pasta, &lab, &["--config-net", "--", "sh", "-c", script]);
        assert_eq!(status(&done), Some(7), "{done}");
        must_have(&done.out, &["inet 192.0.2.1/24", "net:["]);
        let outside = lab.host().run(&["readlink", "/proc/self/ns/net"]).ok();
        assert!(!done.out.contains(outside.trim()), "{done}");
    }

    fn a_command_is_root_and_the_first_process_of_its_namespace(pasta) needs [] lacks [] {
        let lab = lab();
        let done = call(pasta, &lab, &["--", "sh", "-c", "echo $(id -u) $$"]);
        assert_eq!(done.out.trim(), "0 1", "{done}");
    }

    fn a_commands_options_are_its_own(pasta) needs [] lacks [
        Of2023: "it takes options behind the command for its own", says "invalid option"
    ] {
        let done = call(pasta, &lab(), &["sh", "-c", "exit 3"]);
        assert_eq!(status(&done), Some(3), "{}", told(&done));
    }

    fn a_daemon_beside_a_command_ends_with_it(pasta) needs [] lacks [] {
        let lab = lab();
        let pid_file = lab.dir().join("pid").display().to_string();
        assert_eq!(status(&call(pasta, &lab, &["--no-netns-quit", "-P", &pid_file, "--", "true"])), Some(0));
        let pid = std::fs::read_to_string(&pid_file).unwrap_or_default();
        // Ours takes its pid file with it.
        let pid = pid.trim().parse().map(Pid::from_raw).ok();
        let has_ended = wait_until(5 * SECOND, || pid.is_none_or(|pid| kill(pid, None).is_err()));
        let _ = pid.map(|pid| kill(pid, Signal::SIGKILL));
        assert!(has_ended, "left behind");
    }

    fn a_command_that_is_not_there_is_told(pasta) needs [] lacks [] {
        let done = call(pasta, &lab(), &["--", "/nonexistent/command"]);
        assert_eq!(status(&done), Some(1), "{done}");
        assert!(done.err.contains("No such file or directory"), "{done}");
    }

    fn the_parent_leaves_when_the_network_is_there_and_the_rest_with_the_namespace(pasta) needs [] lacks [
        Of2023: "it watches names in the file system only, and a process is none", says "it ends with the namespace"
    ] {
        let lab = lab();
        let mut guest = lab.guest();
        let pid_file = lab.dir().join("pid").display().to_string();
        connected(pasta, &lab, &guest, &["--config-net", "-P", &pid_file]);
        let pid: i32 = std::fs::read_to_string(&pid_file).expect("its pid file").trim().parse().expect("a number");
        let is_alive = || kill(Pid::from_raw(pid), None).is_ok();
        assert!(is_alive(), "it is in the background");
        guest.kill();
        let has_ended = wait_until(5 * SECOND, || !is_alive());
        // Nothing that a test has started outlives it.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        assert!(has_ended, "it ends with the namespace");
    }

    fn in_the_foreground_it_stays_until_it_is_told_to_go(pasta) needs [] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        let (program, pid) = (pasta.program(&lab), guest.pid().to_string());
        let mut running = lab.host().spawn(&[&program, "-f", "--config-net", &pid]);
        let is_there = || guest.sh("ip -o address show wan0").out.contains("inet 192.0.2.1/24");
        assert!(wait_until(10 * SECOND, is_there), "{}", running.err());
        assert!(running.is_running());
        running.signal(Signal::SIGTERM);
        assert!(running.done_within(5 * SECOND).status.is_some(), "SIGTERM ends it");
    }

    fn an_unknown_option_is_named_as_podman_looks_for_it(pasta) needs [] lacks [] {
        let done = call(pasta, &lab(), &["--config-net", "--map-nothing", "1.2.3.4", "--quiet"]);
        assert_eq!(status(&done), Some(1), "{done}");
        assert!(done.err.contains("pasta: unrecognized option '--map-nothing'"), "{done}");
        let done = call(pasta, &lab(), &["--mtu"]);
        assert!(done.err.contains("pasta: option '--mtu' requires an argument"), "{done}");
    }

    fn options_may_be_abbreviated(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--config", "--ipv4", "--tcp-p", "none", "-unone", "--ns-if=net3"]);
        must_have(&network(&guest), &["net3", "inet 192.0.2.1/24"]);
    }

    fn help_names_what_callers_look_for(pasta) needs [] lacks [
        Of2023: "it writes its help to standard error, line by line", says "--config-net";
        Of2025: "its help is cut short where it is no terminal", says "--config-net"
    ] {
        let done = call(pasta, &lab(), &["--help"]);
        for option in ["--config-net", "--tcp-ports", "--dns-forward", "--map-guest-addr", "--host-lo-to-ns-lo"] {
            assert!(done.out.contains(option), "{option}: {done}");
        }
        assert!(call(pasta, &lab(), &["--version"]).out.starts_with("pasta "));
    }

    fn bad_values_are_refused_in_words_that_name_them(pasta) needs [] lacks [] {
        let lab = lab();
        for words in [
            ["-m", "70000"], ["-a", "1.2.3"], ["-a", "127.0.0.1"], ["-n", "99"], ["-g", "300.1.1.1"], ["-t", "70000"],
            ["-t", "80-70"], ["-t", "80:90:100"], ["-t", "80-82:90-95"], ["-t", "foo/80"], ["-o", "1.2.3.4.5"],
            ["--dns-forward", "bogus"], ["--log-size", "3"], ["--runas", "nobodyxx"],
        ] {
            let done = call(pasta, &lab, &[words[0], words[1], "true"]);
            assert_eq!(status(&done), Some(1), "{words:?}: {done}");
            assert!(done.err.contains(words[1]), "{words:?}: {done}");
        }
        for words in [
            &["-t", "none", "-t", "80", "true"][..], &["-t", "auto", "-t", "8080", "true"],
            &["--netns", "/proc/self/ns/net", "1"], &["--netns", "/nonexistent"], &["99999999"],
        ] {
            let done = call(pasta, &lab, words);
            assert_eq!(status(&done), Some(1), "{words:?}: {done}");
        }
    }

    fn frames_and_messages_go_to_files(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        let (pcap, log) = (lab.dir().join("pcap"), lab.dir().join("log"));
        let files = ["-p", pcap.to_str().expect("a name"), "-l", log.to_str().expect("a name")];
        connected(pasta, &lab, &guest, &[&["--config-net", "-4"], &NO_PORTS[..], &files].concat());
        guest.sh("ping -c1 -W1 192.0.2.254");
        let is_written = || std::fs::metadata(&pcap).is_ok_and(|file| file.len() > 24);
        assert!(wait_until(5 * SECOND, is_written), "frames are in the file");
        assert!(log.exists());
    }

    fn a_host_without_any_route_gets_a_link_local_network(pasta) needs ["ip"] lacks [
        Of2023: "it gives up", says "External interface not usable"
    ] {
        let lab = Lab::new();
        lab.host().ip("link set wan0 down");
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--config-net"]);
        must_have(&network(&guest), &["tap0", "inet 169.254.2.1/16", "default via 169.254.2.2", "default via fe80::1"]);
    }

    fn a_host_without_ipv6_has_an_ipv4_network(pasta) needs ["ip"] lacks [] {
        let lab = Lab::new();
        lab.host().ip("route add default via 192.0.2.254");
        lab.host().admin(&["ip", "-6", "address", "flush", "dev", "wan0"]);
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--config-net", "-t", "none", "-u", "none"]);
        must_have(&network(&guest), &["inet 192.0.2.1/24", "default via 192.0.2.254"]);
    }

    fn a_gateway_outside_of_the_network_is_on_the_link_all_the_same(pasta) needs ["ip"] lacks [
        Of2025: "the kernel refuses the route", says "Couldn't set IPv4 route(s) in guest"
    ] {
        let lab = lab();
        let guest = lab.guest();
        let options = ["--config-net", "-4", "-a", "10.9.0.5", "-n", "24", "-g", "10.8.0.1"];
        connected(pasta, &lab, &guest, &options);
        must_have(&network(&guest), &["default via 10.8.0.1"]);
    }

    fn of_addresses_and_routes_only_the_first_are_taken_where_that_is_said(pasta) needs ["ip"] lacks [
        Of2023: "it has no such options, because it does nothing else", says "unrecognized option '--no-copy-routes'"
    ] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--config-net", "--no-copy-routes", "--no-copy-addrs"]);
        let seen = network(&guest);
        must_have(&seen, &["inet 192.0.2.1/24", "default via 192.0.2.254"]);
        assert!(!seen.contains("192.0.2.9/24") && !seen.contains("198.18.0.0/15"), "{seen}");
    }

    fn ipv6_alone_is_enough(pasta) needs ["ip"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        connected(pasta, &lab, &guest, &["--config-net", "-6", "-t", "none", "-u", "none"]);
        let seen = network(&guest);
        must_have(&seen, &["inet6 2001:db8::", "default via 2001:db8::fe"]);
        assert!(!seen.contains("inet 192.0.2"), "{seen}");
    }

    fn what_is_for_virtual_machines_is_refused(pasta) needs [] lacks [
        Of2023: "it takes them and goes on", says "--socket";
        Of2025: "it answers what it can do for them", says "--print-capabilities"
    ] {
        let lab = lab();
        for words in [
            &["--socket", "/nonexistent/socket"][..], &["--one-off"], &["--no-dhcp-dns"], &["--no-dhcp-search"],
            &["--vhost-user"], &["--print-capabilities"], &["--repair-path", "none"], &["--fd", "0"],
        ] {
            let done = call(pasta, &lab, &[words, &["true"]].concat());
            assert_eq!(status(&done), Some(1), "{words:?}: {}", told(&done));
        }
    }

    fn what_dhcp_tells_can_be_said(pasta) needs ["ip", "busybox"] lacks [
        Of2023: "it has no names to give", says "invalid option -- 'H'"
    ] {
        let lab = lab();
        let guest = lab.guest();
        let options = [
            "-4", "-D", "192.0.2.77", "--dhcp-dns", "-S", "lab.example", "--dhcp-search", "-H", "box", "--fqdn",
            "box.lab.example",
        ];
        connected(pasta, &lab, &guest, &[&options[..], &NO_PORTS].concat());
        let said = lease(&lab, &guest);
        must_have(&said, &["ip=192.0.2.", "router=192.0.2.254", "dns=192.0.2.77", "search=lab.example", "hostname=box"]);
    }

    fn debug_tells_more_and_trace_not_less(pasta) needs [] lacks [
        Of2023: "it tells the system log, if there is one", says "nothing more is told"
    ] {
        let lab = lab();
        let lines = |option: &[&str]| {
            let guest = lab.guest();
            let pid = guest.pid().to_string();
            let program = pasta.program(&lab);
            let words = [&[&*program, "-f", "--config-net"], &NO_PORTS[..], option, &[&*pid]].concat();
            let running = lab.host().spawn(&words);
            let is_there = || guest.sh("ip -o address show wan0").out.contains("inet 192.0.2.1/24");
            assert!(wait_until(10 * SECOND, is_there), "{}", running.err());
            running.signal(Signal::SIGTERM);
            running.done_within(5 * SECOND).err.lines().count()
        };
        let [plain, debug, trace] = [&[][..], &["--debug"], &["--trace"]].map(lines);
        assert!(plain < debug && debug <= trace, "nothing more is told: {plain} lines, {debug}, {trace}");
    }

    fn a_commands_user_namespace_stays_with_netns_only(pasta) needs [] lacks [] {
        let lab = lab();
        let program = pasta.program(&lab);
        let of = |words: &[&str]| {
            let done = lab.host().admin(words);
            let found = done.lines().find(|line| line.starts_with("user:")).map(str::to_owned);
            found.unwrap_or_else(|| panic!("a namespace: {done}"))
        };
        let link = ["readlink", "/proc/self/ns/user"];
        let of_host = of(&link);
        let call = |option: &[&str]| of(&[&[&*program], option, &["--config-net"], &NO_PORTS, &["--"], &link].concat());
        assert_eq!(call(&["--netns-only"]), of_host);
        assert_ne!(call(&[]), of_host);
    }

    fn freebind_is_taken(pasta) needs ["ip"] lacks [
        Of2023: "it came later", says "unrecognized option '--freebind'"
    ] {
        let lab = lab();
        connected(pasta, &lab, &lab.guest(), &[&["--config-net", "--freebind"], &NO_PORTS[..]].concat());
    }

    fn services_can_be_switched_off(pasta) needs ["ip", "busybox"] lacks [] {
        let lab = lab();
        let guest = lab.guest();
        let options = ["--no-dhcp", "--no-ndp", "--no-dhcpv6", "--no-ra"];
        connected(pasta, &lab, &guest, &[&options[..], &NO_PORTS].concat());
        let said = lease(&lab, &guest);
        assert!(!said.contains("ip="), "{said}");
        guest.admin(&["ip", "address", "add", "2001:db8::77/64", "dev", "wan0", "nodad"]);
        assert!(!guest.run(&["ping", "-6", "-c1", "-W1", "2001:db8::fe"]).is_ok(), "no neighbour answers");
    }
}
