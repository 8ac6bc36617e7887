//! Where `usernetd` does better than slirp4netns; each test says as data how the original falls short.

use std::time::Duration;

use nix::sys::signal::Signal;
use usernet_dropin::machine::resolver;
use usernet_dropin::{Slirp, both_tools};
use usernet_lab::{Lab, Running, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// A resolver on another of the host's addresses than that of [`resolver`].
fn second_resolver(lab: &Lab, answer: &str) -> Running {
    let known = format!("--address=/one.test/{answer}");
    let options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
    let more = ["--bind-interfaces", "--pid-file=", "--user=", "--log-facility=-"];
    let line = [&["dnsmasq"][..], &options, &more, &["--listen-address=192.0.2.3", &known]];
    lab.host().spawn_admin(&line.concat()).wait_for("started")
}

/// Makes `/etc/resolv.conf` of the host another file, as an editor does, or a link.
#[track_caller]
fn set_resolv_conf(lab: &Lab, make: &str) {
    let script = format!("{make} /etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf");
    lab.host().admin(&["sh", "-c", &script]);
}

both_tools! { "slirp4netns" needs ["ip", "ping"];
    fn it_starts_without_any_route_and_without_ipv6_on_the_host(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        lab.host().admin(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link del wan0"]);
        let _server = lab.host().serve(&["127.0.0.1:7000"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &["--enable-ipv6", "--enable-sandbox", "--enable-seccomp"]);
        guest.run(&["ping", "-c1", "-W3", "10.0.2.2"]).ok();
        guest.peer(&["get", "10.0.2.2:7000", "100000"]).ok();
    }

    fn it_starts_without_ipv6_in_the_namespace(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        guest.admin(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; \
                      echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"]);
        let _slirp = Slirp::start(tool, &lab, &guest, &["--enable-ipv6"]);
        guest.run(&["ping", "-c1", "-W3", "10.0.2.2"]).ok();
    }

    fn resolv_conf_may_be_a_link_to_anywhere_under_the_sandbox(tool) needs ["dig", "dnsmasq"]
    reference_fails("the file is outside of the /etc and /run that it keeps", says "names are not resolved") {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "one.test", "192.0.2.77");
        let elsewhere = format!("{}/elsewhere.conf", lab.dir().display());
        std::fs::write(&elsewhere, "nameserver 192.0.2.1\n").expect("a file in our folder");
        set_resolv_conf(&lab, &format!("ln -s {elsewhere}"));
        let options = ["--enable-sandbox", "--disable-host-loopback"];
        let slirp = Slirp::line(tool, &lab, &guest,
            &[&["-c"][..], &options, &[&guest.pid().to_string(), "tap0"]].concat());
        let found = guest.run(&["dig", "+short", "+tries=1", "+time=2", "@10.0.2.3", "one.test"]);
        assert!(slirp.is_ok() && found.out == "192.0.2.77\n", "names are not resolved: {found}");
    }

    fn resolv_conf_may_change(tool) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let (_first, _second) = (resolver(&lab, "one.test", "192.0.2.77"), second_resolver(&lab, "192.0.2.88"));
        let _slirp = Slirp::start(tool, &lab, &guest, &["--enable-sandbox", "--enable-seccomp"]);
        let ask = || guest.run(&["dig", "+short", "+tries=1", "+time=2", "@10.0.2.3", "one.test"]).out;
        assert_eq!(ask(), "192.0.2.77\n");
        set_resolv_conf(&lab, "echo nameserver 192.0.2.3 >");
        assert!(wait_until(10 * SECOND, || ask() == "192.0.2.88\n"), "{}", ask());
    }

    fn a_second_resolver_is_asked_where_the_first_one_is_silent(tool) needs ["dig", "dnsmasq"]
    reference_fails("it knows one resolver", says "the second resolver is not asked") {
        let lab = Lab::new();
        let guest = lab.guest();
        let _second = second_resolver(&lab, "192.0.2.88");
        set_resolv_conf(&lab, "printf 'nameserver 192.0.2.4\\nnameserver 192.0.2.3\\n' >");
        let _slirp = Slirp::start(tool, &lab, &guest, &[]);
        let found = guest.run(&["dig", "+short", "+tries=2", "+time=3", "@10.0.2.3", "one.test"]);
        assert!(found.out == "192.0.2.88\n", "the second resolver is not asked: {found}");
    }

    fn ipv6_ports_are_forwarded_by_the_api(tool) needs []
    reference_fails("host_addr is IPv4 only", says "bad arguments.host_addr") {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &["--enable-ipv6"]);
        let _server = guest.serve(&["[::]:80"]);
        // As Podman has it, which names the IPv4 address of the container whatever the port's is.
        for (host, at) in [("::1", "[::1]:8080"), ("2001:db8::1", "[2001:db8::1]:8080")] {
            slirp.forward(&format!(
                r#""proto":"tcp","host_addr":"{host}","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80"#));
            lab.host().peer(&["get", at, "1000000"]).ok();
        }
        slirp.forward(r#""proto":"udp","host_addr":"::1","host_port":8081,"guest_addr":"fd00::64","guest_port":80"#);
        lab.host().peer(&["echo", "[::1]:8081", "100"]).ok();
    }

    fn a_busy_port_is_told_with_its_holder(tool) needs []
    reference_fails("it says that it failed", says "no reason") {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let _other = lab.host().serve(&["127.0.0.1:8080"]);
        let answer = slirp.ask(
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_port":80}}"#);
        assert!(answer.contains("port 8080/tcp is in use"), "no reason: {answer}");
    }

    fn a_privileged_port_is_told_with_the_remedy(tool) needs []
    reference_fails("it says that it failed", says "no reason") {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let answer = slirp.ask(
            r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":80,"guest_port":80}}"#);
        assert!(answer.contains("net.ipv4.ip_unprivileged_port_start"), "no reason: {answer}");
    }

    fn a_namespace_that_may_not_be_entered_is_told_with_the_remedy(tool) needs []
    reference_fails("it gives the name of a system call", says "no remedy") {
        let lab = Lab::new();
        let program = tool.path(&lab);
        // The host's own namespace belongs to a user namespace in which its user has no rights.
        let done = lab.host().sh(&format!("{program} -c $$ tap0"));
        assert!(done.err.contains("may not enter the network namespace"), "no remedy: {done}");
    }

    fn a_missing_tun_device_is_told_with_the_remedy(tool) needs []
    reference_fails("it gives the name of a system call", says "no remedy") {
        let lab = Lab::new();
        let guest = lab.guest();
        let program = tool.path(&lab);
        lab.host().admin(&["sh", "-c", "mount -t tmpfs none /dev/net"]);
        let done = lab.host().sh(&format!("{program} -c {} tap0", guest.pid()));
        assert!(!done.is_ok() && done.err.contains("modprobe tun"), "no remedy: {done}");
    }

    fn a_missing_operand_is_named(tool) needs []
    reference_fails("it prints its help and no reason", says "no reason") {
        let lab = Lab::new();
        let program = tool.path(&lab);
        let done = lab.host().run(&[&program, "-c", "1"]);
        assert!(done.err.contains("write slirp4netns 1 tap0"), "no reason: {done}");
    }

    fn it_ends_with_the_namespace(tool) needs []
    reference_fails("its TAP keeps the namespace", says "it goes on") {
        let lab = Lab::new();
        let mut guest = lab.guest();
        let mut slirp = Slirp::start(tool, &lab, &guest, &[]);
        guest.kill();
        assert!(slirp.ends(), "it goes on");
    }

    fn its_api_socket_goes_with_it_whatever_ends_it(tool) needs []
    reference_fails("a signal kills it before it can", says "left behind") {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let socket = slirp.socket.clone();
        slirp.signal(Signal::SIGTERM);
        slirp.ended();
        assert!(!std::path::Path::new(&socket).exists(), "{socket} is left behind");
    }

    fn a_file_in_the_place_of_the_api_socket_is_kept(tool) needs []
    reference_fails("it removes whatever has the name", says "the file is gone") {
        let lab = Lab::new();
        let guest = lab.guest();
        let path = format!("{}/run/precious", lab.dir().display());
        lab.host().sh(&format!("echo precious >{path}")).ok();
        let started = Slirp::line(tool, &lab, &guest, &["-c", "-a", &path, &guest.pid().to_string(), "tap0"]);
        assert!(lab.host().run(&["cat", &path]).out == "precious\n", "the file is gone");
        assert!(started.is_err(), "it says so");
    }

    fn the_exit_descriptor_may_speak_too(tool) needs []
    reference_fails("it waits for a hang-up alone", says "it goes on") {
        use std::io::Write;
        let lab = Lab::new();
        let guest = lab.guest();
        let mut slirp = Slirp::start(tool, &lab, &guest, &[]);
        slirp.exit().write_all(b"x").expect("it holds the other end");
        assert!(slirp.ends(), "it goes on");
    }

    fn a_tap_may_be_given_by_its_descriptor(tool) needs []
    reference_fails("it is from before 1.3", says "it does not know") {
        let lab = Lab::new();
        let guest = lab.guest();
        let _server = lab.host().serve(&["192.0.2.1:7000"]);
        let (program, peer, pid) = (tool.path(&lab), lab.program("usernet-lab"), guest.pid().to_string());
        let opened = [&*peer, "with-tap", &pid, "tap0", "7", "--", &program, "--netns-type=tapfd", "7"];
        let running = lab.host().spawn_admin(&opened);
        assert!(wait_until(10 * SECOND, || !running.out().is_empty()), "{}", running.err());
        assert!(running.out().contains("Starting slirp"), "it does not know tapfd: {}", running.out());
        guest.ip("link set tap0 up\naddr add 10.0.2.100/24 dev tap0\nroute add default via 10.0.2.2");
        guest.peer(&["get", "192.0.2.1:7000", "1000000"]).ok();
        guest.run(&["ping", "-c1", "-W3", "10.0.2.2"]).ok();
    }

    fn bess_ends_with_its_peer(tool) needs []
    reference_fails("it serves nobody for ever", says "it goes on") {
        let lab = Lab::new();
        let guest = lab.guest();
        let path = format!("{}/run/bess", lab.dir().display());
        let mut slirp = lab.host().spawn(&[&tool.path(&lab), "--target-type=bess", &path]);
        let is_there = || std::path::Path::new(&path).exists();
        assert!(wait_until(10 * SECOND, is_there), "{}{}", slirp.out(), slirp.err());
        let plug = lab.program("usernet-lab");
        let plug = lab.host().spawn_admin(&[&plug, "plug", &guest.pid().to_string(), "vec0", &path]);
        drop(plug.wait_for("ready"));
        assert!(wait_until(5 * SECOND, || !slirp.is_running()), "it goes on");
        assert!(!std::path::Path::new(&path).exists(), "the socket stays");
    }

    fn a_descriptor_that_is_not_open_is_told(tool) needs []
    reference_fails("it ends as if all was well, or goes on without", says "not told") {
        let lab = Lab::new();
        let guest = lab.guest();
        let program = tool.path(&lab);
        let done = lab.host().run(&[&program, "-c", "-e", "77", &guest.pid().to_string(), "tap0"]);
        assert!(!done.is_ok() && done.err.contains("--exit-fd 77"), "not told: {done}");
    }
}
