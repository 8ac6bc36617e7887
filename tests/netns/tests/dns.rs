//! The DNS address forwards to the host's resolvers, as they are at the moment.

use std::time::Duration;

use usernet_lab::{Daemon, Lab, Running, on_both_backends, wait_until};

/// A resolver on one of the host's addresses that knows `one.test` as `answer`, and a text of 3,000 bytes.
fn resolver(lab: &Lab, address: &str, answer: &str) -> Running {
    let listen = format!("--listen-address={address}");
    let one = format!("--address=/one.test/{answer}");
    let part = "x".repeat(200);
    let text = format!("--txt-record=big.test{}", format!(",{part}").repeat(15));
    let here = lab.host().spawn_admin(&[
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--pid-file=",
        "--user=",
        "--log-facility=-",
        "--edns-packet-max=4096",
        &listen,
        &one,
        &text,
    ]);
    here.wait_for("started")
}

/// Makes this the host's resolv.conf, as an editor does: a new file takes the old one's name.
fn set_resolv_conf(lab: &Lab, text: &str) {
    let script = format!(
        "printf '{text}' >/etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf"
    );
    lab.host().admin(&["sh", "-c", &script]);
}

on_both_backends! {
    fn dig_gets_answers_over_udp_and_tcp(backend) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "192.0.2.1", "192.0.2.77");
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for server in ["@10.0.2.3", "@fd00::3"] {
            for how in ["+notcp", "+tcp", "+noedns", "+bufsize=4096"] {
                let found = guest.run(&["dig", "+short", "+tries=1", how, server, "one.test"]).ok();
                assert_eq!(found, "192.0.2.77\n", "{server} {how}");
            }
        }
        // By resolv.conf, as programs do.
        assert_eq!(guest.run(&["dig", "+short", "one.test"]).ok(), "192.0.2.77\n");
    }

    fn an_answer_that_does_not_fit_comes_whole_over_tcp_or_edns(backend) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "192.0.2.1", "192.0.2.77");
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for how in ["+tcp", "+bufsize=4096", "+bufsize=512"] {
            let found = guest.run(&["dig", "+short", "+tries=1", how, "@10.0.2.3", "big.test", "TXT"]).ok();
            assert!(found.len() > 3000, "{how}: {} bytes", found.len());
        }
        let cut = guest.run(&["dig", "+ignore", "+bufsize=512", "@10.0.2.3", "big.test", "TXT"]).ok();
        assert!(cut.contains("flags: qr") && cut.contains(" tc"), "{cut}");
    }

    fn the_next_resolver_is_asked_when_the_first_does_not_answer(backend) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "192.0.2.1", "192.0.2.77");
        // Nobody listens on .8 (refused); nobody is .200 (silence).
        set_resolv_conf(&lab, "nameserver 192.0.2.8\\nnameserver 192.0.2.200\\nnameserver 192.0.2.1\\n");
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        for how in ["+notcp", "+tcp"] {
            let found = guest.run(&["dig", "+short", "+tries=1", "+time=10", how, "@10.0.2.3", "one.test"]);
            assert_eq!(found.ok(), "192.0.2.77\n", "{how}");
        }
    }

    fn a_change_of_resolv_conf_is_followed(backend) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolvers = [resolver(&lab, "192.0.2.1", "192.0.2.77"), resolver(&lab, "192.0.2.4", "192.0.2.88")];
        let _daemon = Daemon::start(&lab, &guest, backend, &[]);
        let ask = || guest.run(&["dig", "+short", "+tries=1", "@10.0.2.3", "one.test"]).out;
        assert_eq!(ask(), "192.0.2.77\n");
        set_resolv_conf(&lab, "nameserver 192.0.2.4\\n");
        assert!(wait_until(Duration::from_secs(5), || ask() == "192.0.2.88\n"), "renamed: {}", ask());
        lab.host().admin(&["sh", "-c", "echo nameserver 192.0.2.1 >/etc/resolv.conf"]);
        assert!(wait_until(Duration::from_secs(5), || ask() == "192.0.2.77\n"), "written: {}", ask());
    }

    fn the_option_dns_names_resolvers_with_ports(backend) needs ["dig", "dnsmasq"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _resolver = resolver(&lab, "192.0.2.4", "192.0.2.88");
        let _daemon = Daemon::start(&lab, &guest, backend, &["--dns", "192.0.2.4:53"]);
        assert_eq!(guest.run(&["dig", "+short", "@10.0.2.3", "one.test"]).ok(), "192.0.2.88\n");
    }
}
