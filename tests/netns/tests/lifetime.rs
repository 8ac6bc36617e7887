//! How it starts, what ends it, and that nothing is left.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use usernet_lab::{Daemon, Lab, on_both_backends, wait_until};

const SECOND: Duration = Duration::from_secs(1);

on_both_backends! {
    fn it_ends_with_the_namespace(backend) needs [] {
        let lab = Lab::new();
        let mut guest = lab.guest();
        let mut daemon = Daemon::start(&lab, &guest, backend, &[]);
        let socket = daemon.socket.clone();
        guest.kill();
        assert!(daemon.ends_within(SECOND), "it still runs: {}", daemon.said());
        let done = daemon.done_within(SECOND);
        assert!(done.is_ok(), "{done}");
        assert!(!Path::new(&socket).exists());
    }

    fn it_ends_with_the_exit_descriptor(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let mut daemon = Daemon::start(&lab, &guest, backend, &["--forward", "8080:80"]);
        let socket = daemon.socket.clone();
        daemon.close_exit_fd();
        assert!(daemon.ends_within(SECOND), "it still runs: {}", daemon.said());
        let done = daemon.done_within(SECOND);
        assert!(done.is_ok(), "{done}");
        assert!(!Path::new(&socket).exists());
        assert!(!lab.host().listens_on(8080));
        assert!(!guest.sh("ip link show tap0").is_ok(), "the device is gone");
    }

    fn it_ends_on_sigterm_and_on_request(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        for how in ["SIGTERM", "SIGINT", "stop"] {
            let pid_file = lab.dir().join("run/pid");
            let path = pid_file.to_string_lossy().into_owned();
            let mut daemon = Daemon::start(&lab, &guest, backend, &["--pid-file", &path]);
            let pid = std::fs::read_to_string(&pid_file).expect("it is written before readiness");
            assert_eq!(pid.trim(), daemon.pid().to_string());
            match how {
                "SIGTERM" => daemon.signal(Signal::SIGTERM),
                "SIGINT" => daemon.signal(Signal::SIGINT),
                _ => drop(daemon.answer("stop", serde_json::json!({}))),
            }
            assert!(daemon.ends_within(SECOND), "{how}: it still runs: {}", daemon.said());
            let done = daemon.done_within(SECOND);
            assert!(done.is_ok(), "{how}: {done}");
            assert!(!pid_file.exists(), "{how}");
            assert!(!guest.sh("ip link show tap0").is_ok(), "{how}: the device is gone");
        }
    }

    fn it_is_ready_soon_and_says_so_in_one_line(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        eprintln!("{backend}: ready {:?} after the fork, {} KiB resident", daemon.ready_after, daemon.rss_kib());
        assert!(daemon.ready_after < SECOND, "{:?}", daemon.ready_after);
        assert!(wait_until(SECOND, || daemon.said().ends_with('\n')));
        let said = daemon.said();
        assert!(said.lines().count() == 1 && said.contains("10.0.2.100"), "{said}");
    }

    fn a_busy_port_is_named_and_leaves_nothing(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _busy = lab.host().serve(&["0.0.0.0:8080"]);
        let refused = Daemon::try_start(&lab, &guest, backend, &["--forward", "8080:80"]);
        let done = refused.expect_err("the port is taken");
        assert_eq!(done.status.and_then(|s| s.code()), Some(1), "{done}");
        assert!(done.err.contains("8080"), "{done}");
        assert!(!guest.sh("ip link show tap0").is_ok(), "the device is gone");
    }

    fn two_daemons_do_not_share_a_device(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let first = Daemon::start(&lab, &guest, backend, &[]);
        let options = ["--api-socket", &*format!("{}/run/second.sock", lab.dir().display())];
        drop(first.answer("status", serde_json::json!({})));
        let program = lab.program("usernetd");
        let pid = guest.pid().to_string();
        let args = [&[&*program, "--netns", &pid, "--backend", backend.name()][..], &options].concat();
        let done = lab.host().run_within(5 * SECOND, &args);
        assert_eq!(done.status.and_then(|s| s.code()), Some(1), "{done}");
        assert!(done.err.contains("tap0"), "{done}");
    }

    fn a_namespace_that_is_not_there_or_not_ours_is_refused(backend) needs [] {
        let lab = Lab::new();
        let program = lab.program("usernetd");
        for (netns, code) in [("/no/such/file", 1), ("999999999", 1), ("/proc/1/ns/net", 1), ("", 2)] {
            let done = lab.host().run(&[&program, "--netns", netns, "--backend", backend.name()]);
            assert_eq!(done.status.and_then(|s| s.code()), Some(code), "{netns:?} {done}");
            assert!(!done.err.is_empty(), "{netns:?}");
        }
    }

    fn it_works_from_inside_the_user_namespace(backend) needs [] {
        let lab = Lab::new();
        let inner = lab.router();
        let _server = lab.host().serve(&["192.0.2.1:7000"]);
        // The host's administrator, over a namespace of the same user namespace.
        let pid = inner.pid().to_string();
        let program = lab.program("usernetd");
        let args = [&*program, "--netns", &pid, "--backend", backend.name()];
        let _daemon = lab.host().spawn_admin(&args).wait_for("10.0.2.100");
        inner.peer(&["get", "192.0.2.1:7000", "1000000"]).ok();
    }
}
