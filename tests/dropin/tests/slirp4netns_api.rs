//! slirp4netns: the API that adds and removes forwards while it runs.

use std::time::Duration;

use usernet_dropin::{Slirp, both_tools};
use usernet_lab::{Lab, Namespace};

/// How long clients may take that are answered at once.
const PATIENCE: Duration = Duration::from_secs(10);

const LIST: &str = r#"{"execute":"list_hostfwd"}"#;

/// Whether a connection comes about.
#[track_caller]
fn connects(from: &Namespace, address: &str) -> bool {
    from.peer(&["connect", address]).ok().starts_with("connected")
}

/// A request to add a forward.
fn add(arguments: &str) -> String {
    format!(r#"{{"execute":"add_hostfwd","arguments":{{{arguments}}}}}"#)
}

fn error(desc: &str) -> String {
    format!(r#"{{"error":{{"desc":"{desc}"}}}}"#)
}

/// A request of so many bytes that lists the forwards.
fn padded(bytes: usize) -> String {
    let start = r#"{"execute":"list_hostfwd","pad":""#;
    format!(r#"{start}{}"}}"#, "a".repeat(bytes - start.len() - 2))
}

both_tools! { "slirp4netns" needs [];
    fn tcp_is_forwarded_until_it_is_removed(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let _server = guest.serve(&["10.0.2.100:80"]);
        let id = slirp.forward(
            r#""proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80"#);
        assert_eq!(id, 1);
        for address in ["127.0.0.1:8080", "192.0.2.1:8080"] {
            lab.host().peer(&["get", address, "3000000"]).ok();
            lab.host().peer(&["put", address, "3000000"]).ok();
        }
        // Who comes from the host's loopback appears as the gateway.
        let seen = lab.host().peer(&["who", "tcp", "127.0.0.1:8080"]).ok();
        assert!(seen.starts_with("10.0.2.2:"), "{seen}");
        let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#;
        assert_eq!(slirp.ask(remove), r#"{"return":{}}"#);
        assert!(!connects(lab.host(), "127.0.0.1:8080"));
        assert_eq!(slirp.ask(remove), error("bad request: remove_hostfwd: bad arguments.id"));
    }

    fn udp_is_forwarded(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let _server = guest.serve(&["0.0.0.0:80"]);
        slirp.forward(r#""proto":"udp","host_addr":"127.0.0.1","host_port":8080,"guest_port":80"#);
        lab.host().peer(&["echo", "127.0.0.1:8080", "1", "1000"]).ok();
    }

    fn the_server_sees_the_clients_own_address(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let far = lab.router();
        let _cable = lab.cable(lab.host(), &far, &[]);
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let _server = guest.serve(&["0.0.0.0:80"]);
        for protocol in ["udp", "tcp"] {
            slirp.forward(&format!(r#""proto":"{protocol}","host_port":8080,"guest_port":80"#));
            let seen = far.peer(&["who", protocol, "198.51.100.1:8080"]).ok();
            assert!(seen.starts_with("198.51.100.2:"), "{protocol}: the server saw {seen}");
        }
    }

    fn a_forward_on_one_address_is_on_no_other(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let _server = guest.serve(&["0.0.0.0:80"]);
        slirp.forward(r#""proto":"tcp","host_addr":"192.0.2.1","host_port":8080,"guest_port":80"#);
        assert!(connects(lab.host(), "192.0.2.1:8080"));
        assert!(!connects(lab.host(), "192.0.2.2:8080"));
        assert!(!connects(lab.host(), "127.0.0.1:8080"));
    }

    fn forwards_are_named_from_1_and_listed_with_defaults(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &["--cidr=10.11.0.0/24"]);
        assert_eq!(slirp.forward(r#""proto":"tcp","host_port":8080,"guest_port":80"#), 1);
        assert_eq!(slirp.forward(r#""proto":"udp","host_addr":"","host_port":8081,"guest_port":81"#), 2);
        let listed = slirp.ask(LIST);
        for part in [r#""id":1"#, r#""id":2"#, r#""proto":"tcp""#, r#""proto":"udp""#, r#""host_addr":"0.0.0.0""#,
            r#""host_port":8080"#, r#""guest_addr":"10.11.0.100""#, r#""guest_port":81"#] {
            assert!(listed.contains(part), "{part}: {listed}");
        }
    }

    fn the_list_is_a_return_as_the_manual_has_it(tool) needs []
    reference_fails("1.2.0 answers without the word return", says r#"{"entries":[]}"#) {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let answer = slirp.ask(LIST);
        assert!(answer == r#"{"return":{"entries":[]}}"#, "{answer}");
    }

    fn what_is_wrong_is_said_and_changes_nothing(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        for (request, desc) in [
            ("garbage", "cannot parse JSON"),
            ("", "cannot parse JSON"),
            (r#"{"execute":"list_hostfwd",}"#, "cannot parse JSON"),
            ("{}", "no execute found"),
            (r#"{"execute":1}"#, "no execute found"),
            (r#"{"execute":"bogus"}"#, "unknown execute"),
            (r#"{"execute":"remove_hostfwd"}"#, "remove_hostfwd: bad arguments.id"),
            (r#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#, "remove_hostfwd: bad arguments.id"),
            (&add(r#""proto":"sctp","host_port":8080,"guest_port":80"#), "add_hostfwd: bad arguments.proto"),
            (&add(r#""proto":"tcp","guest_port":80"#), "add_hostfwd: bad arguments.host_port"),
            (&add(r#""proto":"tcp","host_port":0,"guest_port":80"#), "add_hostfwd: bad arguments.host_port"),
            (&add(r#""proto":"tcp","host_port":"8080","guest_port":80"#), "add_hostfwd: bad arguments.host_port"),
            (&add(r#""proto":"tcp","host_port":8080"#), "add_hostfwd: bad arguments.guest_port"),
            (&add(r#""proto":"tcp","host_addr":"x","host_port":8080,"guest_port":80"#),
                "add_hostfwd: bad arguments.host_addr"),
            (&add(r#""proto":"tcp","host_port":8080,"guest_addr":"x","guest_port":80"#),
                "add_hostfwd: bad arguments.guest_addr"),
        ] {
            assert_eq!(slirp.ask(request), error(&format!("bad request: {desc}")), "{request}");
        }
        assert!(slirp.ask(LIST).contains(r#""entries":[]"#));
    }

    fn arguments_that_are_missing_are_said(tool) needs []
    reference_fails("it dies of a missing proto", says "took it down") {
        let lab = Lab::new();
        let guest = lab.guest();
        let mut slirp = Slirp::start(tool, &lab, &guest, &[]);
        let request = r#"{"execute":"add_hostfwd"}"#;
        let answer = lab.host().peer(&["speak", &slirp.socket, request]).out;
        assert!(slirp.is_running() && !answer.is_empty(), "{request} took it down");
        assert_eq!(answer, error("bad request: add_hostfwd: bad arguments.proto"));
    }

    fn ports_that_do_not_exist_are_refused(tool) needs []
    reference_fails("it forwards some other port", says "99999 was taken") {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        for port in ["99999", "-1", "80.5"] {
            let answer = slirp.ask(&add(&format!(r#""proto":"tcp","host_port":{port},"guest_port":80"#)));
            assert!(!answer.contains("return"), "{port} was taken: {answer}");
            assert_eq!(answer, error("bad request: add_hostfwd: bad arguments.host_port"), "{port}");
        }
    }

    fn a_busy_port_is_refused_and_nothing_changes(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let _other = lab.host().serve(&["127.0.0.1:8080"]);
        let forward = r#""proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_port":80"#;
        let answer = slirp.ask(&add(forward));
        assert!(answer.contains(r#"{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"#), "{answer}");
        assert!(slirp.ask(LIST).contains(r#""entries":[]"#));
        lab.host().peer(&["get", "127.0.0.1:8080", "1000"]).ok();
    }

    fn a_forward_is_removed_and_added_again_under_traffic(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let _server = guest.serve(&["0.0.0.0:80"]);
        let forward = r#""proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_port":80"#;
        for id in 1..=5 {
            assert_eq!(slirp.forward(forward), id);
            let peer = lab.program("usernet-lab");
            let slow = lab.host().spawn(&[&peer, "slow", "127.0.0.1:8080", "100000", "30"]);
            lab.host().peer(&["get", "127.0.0.1:8080", "100000"]).ok();
            let remove = format!(r#"{{"execute":"remove_hostfwd","arguments":{{"id":{id}}}}}"#);
            assert_eq!(slirp.ask(&remove), r#"{"return":{}}"#);
            assert!(!connects(lab.host(), "127.0.0.1:8080"), "{id}");
            drop(slow);
        }
    }

    fn a_request_has_4095_bytes_at_most(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        assert!(slirp.ask(&padded(4095)).contains("entries"));
        assert_eq!(slirp.ask(&padded(4096)), error("bad request: too large message"));
        assert!(slirp.ask(LIST).contains("entries"));
    }

    fn a_request_far_too_long_is_told_so(tool) needs []
    reference_races("it ends its direction, then closes with the rest unread, and the second is an error", says "reset") {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        let answer = lab.host().peer(&["speak", &slirp.socket, &padded(100_000)]);
        assert!(answer.is_ok() && answer.out == error("bad request: too large message"), "{answer}");
    }

    fn a_client_that_keeps_its_direction_open_is_answered(tool) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        assert!(lab.host().peer(&["ask", &slirp.socket, LIST]).ok().contains("entries"));
    }

    fn clients_that_come_at_once_are_answered(tool) needs []
    reference_fails("hardly one of them fits into its queue", says "took too long") {
        let lab = Lab::new();
        let guest = lab.guest();
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        for n in ["1", "8", "60"] {
            let said = lab.host().peer_within(PATIENCE, &["crowd", &slirp.socket, n, LIST]);
            assert_eq!(said.ok(), format!("{n} alike\n"));
        }
    }

    fn a_socket_left_behind_is_replaced(tool) needs [] {
        use std::os::unix::fs::PermissionsExt;
        let lab = Lab::new();
        let guest = lab.guest();
        let path = format!("{}/run/{}.sock", lab.dir().display(), guest.pid());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket in our folder"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("our own file");
        let slirp = Slirp::start(tool, &lab, &guest, &[]);
        assert!(slirp.ask(LIST).contains("entries"));
    }
}
