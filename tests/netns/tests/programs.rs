//! What people do: git, and the two programs as the manual shows them.

use std::time::Duration;

use usernet_lab::{Daemon, Lab, on_both_backends, wait_until};

const LONG: Duration = Duration::from_secs(30);

on_both_backends! {
    fn git_clones_over_http(backend) needs ["git", "python3"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let make = "git init -q src && cd src && head -c 3000000 /dev/urandom >file && git add file && \
            git -c user.name=a -c user.email=a@test commit -q -m one && cd .. && \
            git clone -q --bare src repo.git && cd repo.git && git update-server-info";
        lab.host().sh(make).ok();
        let serve = ["python3", "-u", "-m", "http.server", "--bind", "::", "8000"];
        let _server = lab.host().spawn(&serve).wait_for("Serving");
        guest.run(&["git", "clone", "-q", "http://192.0.2.1:8000/repo.git", "copy"]).ok();
        lab.host().sh("cmp src/file copy/file").ok();
    }

    fn usernet_runs_a_web_server_and_its_forwards_change(backend) needs ["curl", "python3"] {
        let lab = Lab::new();
        std::fs::write(lab.dir().join("page.html"), "hello").unwrap();
        let usernet = lab.program("usernet");
        let run = [
            &*usernet, "run", "--name", "web", "--forward", "8080:80", "--backend", backend.name(), "--",
            "python3", "-u", "-m", "http.server", "80",
        ];
        let running = lab.host().spawn(&run).wait_for("Serving");
        let fetch = |url: &str| lab.host().run(&["curl", "-sS", "-m", "5", url]).out;
        assert_eq!(fetch("http://127.0.0.1:8080/page.html"), "hello");
        lab.host().run(&[&usernet, "forward", "add", "web", "8081:80"]).ok();
        assert_eq!(fetch("http://192.0.2.1:8081/page.html"), "hello");
        let status = lab.host().run(&[&usernet, "status", "web", "--json"]).ok();
        assert!(status.contains(backend.name()), "{status}");
        assert!(lab.host().run(&[&usernet, "forward", "ls", "web"]).ok().contains("8081"));
        lab.host().run(&[&usernet, "forward", "rm", "web", "8080:80"]).ok();
        assert!(!lab.host().listens_on(8080));
        running.signal(nix::sys::signal::Signal::SIGTERM);
        running.done_within(LONG);
        assert!(wait_until(LONG, || !lab.host().listens_on(8081)));
    }

    fn usernet_returns_the_commands_status(backend) needs ["curl"] {
        let lab = Lab::new();
        let usernet = lab.program("usernet");
        let run = |command: &[&str]| {
            let start = [&*usernet, "run", "--backend", backend.name(), "--"];
            lab.host().run(&[&start, command].concat()).status.and_then(|status| status.code())
        };
        assert_eq!(run(&["sh", "-c", "exit 42"]), Some(42));
        assert_eq!(run(&["/no/such/program"]), Some(127));
        // curl: connection refused.
        assert_eq!(run(&["curl", "-sS", "http://192.0.2.1:9/"]), Some(7));
    }
}
