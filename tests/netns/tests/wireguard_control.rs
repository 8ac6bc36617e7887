//! Tunnels as users have them: `wg` at their userspace sockets, a way out that lets nothing leave beside it, and names.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use usernet_lab::wireguard::Key;
use usernet_lab::{Daemon, Lab, Namespace, Running, on_both_backends, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// Writes a file that only its owner reads, and gives its path.
fn file(lab: &Lab, folder: &str, text: &str) -> String {
    let folder = lab.dir().join("run").join(folder);
    let path = folder.join("wg0.conf").to_string_lossy().into_owned();
    let script =
        format!("umask 077; mkdir -p {}; cat > {path} <<'END'\n{text}\nEND", folder.display());
    lab.host().sh(&script).ok();
    path
}

/// The far end of a tunnel on port 51822 of the host, with one peer, and the networks that it may have.
fn far_end(lab: &Lab, key: &Key, peer: &Key, allowed: &str) -> String {
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.2/24, fd77::2/64\nListenPort = 51822\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {allowed}\n",
        key.private, peer.public
    );
    file(lab, "far", &text)
}

/// The userspace socket of the one tunnel there, where `wg` looks for it.
const SOCKET: &str = "/run/wireguard/wg0.sock";

/// A place for userspace sockets in the host's mount namespace.
fn make_run(lab: &Lab) {
    lab.host().admin(&["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/run"]);
}

#[track_caller]
fn wg(lab: &Lab, args: &[&str]) -> String {
    lab.host().run(&[&["wg"], args].concat()).ok()
}

/// What a request is answered with.
fn raw(lab: &Lab, request: &str) -> String {
    lab.host().sh(&format!("printf '{request}' | socat -t5 - UNIX:{SOCKET}")).ok()
}

on_both_backends! {
    fn wg_reads_and_changes_a_running_tunnel(backend) needs ["ip", "wg", "ping", "socat"] {
        let lab = Lab::new();
        make_run(&lab);
        let (here, there) = (lab.guest(), lab.guest());
        let [near, far, other] = [(); 3].map(|()| Key::new(&lab));
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.1/24\nListenPort = 51821\n",
            near.private
        );
        let near_file = file(&lab, "near", &text);
        let options = ["--wireguard", &near_file, "--wireguard-api", "/run/wireguard"];
        let _first = Daemon::start(&lab, &here, backend, &options);
        let far_file = far_end(&lab, &far, &near, "10.77.0.1/32");
        let _second = Daemon::start(&lab, &there, backend, &["--wireguard", &far_file]);
        assert_eq!(lab.host().run(&["stat", "-c", "%a", SOCKET]).ok(), "600\n");
        assert_eq!(wg(&lab, &["show", "interfaces"]), "wg0\n");
        assert_eq!(wg(&lab, &["show", "wg0", "public-key"]), format!("{}\n", near.public));

        let ping = || here.run(&["ping", "-q", "-c", "1", "-W", "5", "10.77.0.2"]);
        assert!(!ping().is_ok(), "nobody is there yet");
        let set = ["set", "wg0", "peer", &far.public, "endpoint", "192.0.2.1:51822"];
        wg(&lab, &[&set[..], &["allowed-ips", "10.77.0.2/32,10.78.0.0/16"]].concat());
        ping().ok();
        let shown = wg(&lab, &["show", "wg0", "dump"]);
        let peer: Vec<&str> = shown.lines().nth(1).expect("a peer").split('\t').collect();
        assert_eq!(peer[0], far.public);
        assert_eq!((peer[2], peer[3]), ("192.0.2.1:51822", "10.77.0.2/32,10.78.0.0/16"));
        let numbers = [4, 5, 6].map(|at| peer[at].parse::<u64>().expect("a number"));
        assert!(numbers.iter().all(|n| *n > 0), "handshake, rx and tx: {shown}");

        // AllowedIPs that another peer gets, and gives back.
        wg(&lab, &["set", "wg0", "peer", &other.public, "allowed-ips", "10.77.0.2/32"]);
        assert!(!ping().is_ok(), "it is somebody else's");
        wg(&lab, &["set", "wg0", "peer", &other.public, "remove"]);
        wg(&lab, &["set", "wg0", "peer", &far.public, "allowed-ips", "10.77.0.2/32"]);
        ping().ok();

        // A port that is taken is refused, and nothing is changed; another one is had.
        let refused = lab.host().run(&["wg", "set", "wg0", "listen-port", "51822"]);
        assert!(!refused.is_ok() && refused.to_string().contains("in use"), "{refused}");
        assert_eq!(wg(&lab, &["show", "wg0", "listen-port"]), "51821\n");
        wg(&lab, &["set", "wg0", "listen-port", "51899"]);
        assert_eq!(wg(&lab, &["show", "wg0", "listen-port"]), "51899\n");
        ping().ok();

        // Files of wg(8): what it shows can be synchronised with itself, and set.
        let saved = wg(&lab, &["showconf", "wg0"]);
        for command in ["syncconf", "setconf"] {
            let script = format!("wg {command} wg0 /dev/stdin <<'END'\n{saved}\nEND");
            lab.host().sh(&script).ok();
            assert_eq!(wg(&lab, &["showconf", "wg0"]), saved, "{command}");
            ping().ok();
        }
    }
}

on_both_backends! {
    fn a_userspace_socket_answers_whatever_comes(backend) needs ["wg", "socat"] {
        let lab = Lab::new();
        make_run(&lab);
        let guest = lab.guest();
        let key = Key::new(&lab);
        let text = format!("[Interface]\nPrivateKey = {}\n", key.private);
        let path = file(&lab, "near", &text);
        let options = ["--wireguard", &path, "--wireguard-api", "/run/wireguard"];
        let mut daemon = Daemon::start(&lab, &guest, backend, &options);
        // Somebody who says nothing, and somebody in the middle of a request, keep nobody waiting.
        let silent = lab.host().spawn(&["socat", "-u", &format!("UNIX:{SOCKET}"), "-"]);
        let half = format!("(printf 'set=1\\n'; sleep 60) | socat - UNIX:{SOCKET}");
        let slow = lab.host().spawn(&["sh", "-c", &half]);
        for (request, answer) in [
            ("\\n", "errno=-22\n\n"),
            ("get=2\\n\\n", "errno=-22\n\n"),
            ("set=1\\nlisten_port=x\\n\\n", "errno=-22\n\n"),
            ("set=1\\npublic_key=00\\n\\n", "errno=-22\n\n"),
            ("set=1\\nnonsense\\n\\n", "errno=-22\n\n"),
            ("set=1\\n\\n", "errno=0\n\n"),
            ("set=1\\n\\nset=1\\nlisten_port=\\n\\n", "errno=0\n\nerrno=-22\n\n"),
            ("get=1\\n", "errno=-22\n\n"),
            ("", ""),
        ] {
            assert_eq!(raw(&lab, request), answer, "{request}");
        }
        assert!(raw(&lab, "get=1\\n\\n").ends_with("errno=0\n\n"));
        assert_eq!(wg(&lab, &["show", "wg0", "peers"]), "");
        drop((silent, slow));
        daemon.close_exit_fd();
        assert!(daemon.ends_within(20 * SECOND));
        let is_gone = wait_until(20 * SECOND, || !lab.host().run(&["test", "-e", SOCKET]).is_ok());
        assert!(is_gone, "the socket goes with the daemon");
    }
}

/// Everything that the host's network gets to see but the tunnel's own datagrams to `192.0.2.9:51820`.
struct Leaks {
    capture: Running,
    file: String,
}

impl Leaks {
    fn watch(lab: &Lab) -> Self {
        let file = lab.dir().join("run/leaks").to_string_lossy().into_owned();
        // The tunnel's own datagrams, what the host says about them, and what kernels say to their neighbours: groups of IPv6
        // are told behind a hop-by-hop header (0), which `icmp6` does not look behind.
        let filter = "not (udp and dst host 192.0.2.9 and dst port 51820) \
                      and not (icmp[icmptype] == icmp-unreach and src host 192.0.2.9) \
                      and not arp and not icmp6 and not (ip6[6] == 0 and dst host ff02::16)";
        let script = format!("exec tcpdump -lnni any -w {file} --immediate-mode '{filter}'");
        let capture = lab.host().spawn_admin(&["sh", "-c", &script]).wait_for("listening on");
        Self { capture, file }
    }

    fn shown(self, lab: &Lab) -> String {
        self.capture.signal(nix::sys::signal::Signal::SIGINT);
        self.capture.done_within(20 * SECOND);
        lab.host().admin(&["tcpdump", "-nnr", &self.file])
    }
}

/// Tries to reach the world by all that it knows.
fn try_everything(guest: &Namespace) {
    for address in ["198.51.100.9:80", "[2001:db8:1::9]:80", "192.0.2.1:80", "[2001:db8::1]:80"] {
        let tried = guest.run(&["timeout", "1", "nc", "-z", "-w1", address_of(address), "80"]);
        assert!(!tried.is_ok(), "{address}: {tried}");
    }
    for server in ["@10.0.2.3", "@fd00::3", "@192.0.2.1", "@9.9.9.9", "@2001:db8::1"] {
        for how in ["+notcp", "+tcp"] {
            guest.run(&["dig", "+tries=1", "+time=1", how, server, "leak.test"]);
        }
    }
    guest.run(&["dig", "+tries=1", "+time=1", "leak.test"]);
    for address in ["198.51.100.9", "192.0.2.1", "2001:db8::1"] {
        assert!(!guest.run(&["ping", "-c", "1", "-W", "1", address]).is_ok(), "{address}");
    }
}

fn address_of(text: &str) -> &str {
    text.rsplit_once(':').map_or(text, |(ip, _)| ip).trim_matches(['[', ']'])
}

/// A guest's end that sends all of IPv4 to nobody.
fn dead_way_out(lab: &Lab) -> String {
    let [own, far] = [(); 2].map(|()| Key::new(lab));
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.1/24, fd77::1/64\nDNS = 10.77.0.2\n\
         [Peer]\nPublicKey = {}\nEndpoint = 192.0.2.9:51820\nAllowedIPs = 0.0.0.0/0\n",
        own.private, far.public
    );
    file(lab, "near", &text)
}

on_both_backends! {
    fn a_way_out_that_is_down_lets_nothing_leave(backend) needs ["ip", "wg", "ping", "dig", "nc", "tcpdump"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let path = dead_way_out(&lab);
        let daemon = Daemon::start(&lab, &guest, backend, &["--wireguard", &path]);
        assert_eq!(daemon.ask("status", json!({}))["resolvers"], json!(["10.77.0.2:53"]));
        let leaks = Leaks::watch(&lab);
        try_everything(&guest);
        // Nor when the guest's root has its own ideas of routes, and takes the tunnel down.
        guest.ip("link set wg0 down\nroute replace default via 10.0.2.2\n");
        guest.admin(&["ip", "-6", "route", "replace", "default", "via", "fd00::2"]);
        try_everything(&guest);
        let shown = leaks.shown(&lab);
        assert_eq!(shown, "", "leaked");
    }

    fn networks_beside_a_tunnel_are_reached_and_no_others(backend) needs ["ip", "wg"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let path = dead_way_out(&lab);
        let split = ["--wireguard", &path, "--wireguard-split", "192.0.2.1,2001:db8::1"];
        let _daemon = Daemon::start(&lab, &guest, backend, &split);
        let _server = lab.host().serve(&["[::]:7000"]);
        for address in ["192.0.2.1:7000", "[2001:db8::1]:7000"] {
            guest.peer(&["get", address, "1000"]).ok();
        }
        assert!(!guest.peer(&["get", "192.0.2.2:7000", "1000"]).is_ok());
        assert!(!guest.peer(&["get", "[2001:db8::2]:7000", "1000"]).is_ok());
    }

    fn an_isolated_guest_reaches_nothing_and_is_reached_by_forwards(backend) needs ["ip"] {
        let lab = Lab::new();
        let guest = lab.guest();
        let _daemon = Daemon::start(&lab, &guest, backend, &["--isolated", "--forward", "7001"]);
        let _servers = (lab.host().serve(&["[::]:7000"]), guest.serve(&["[::]:7001"]));
        for address in ["192.0.2.1:7000", "[2001:db8::1]:7000", "10.0.2.2:7000"] {
            assert!(!guest.peer(&["get", address, "1000"]).is_ok(), "{address}");
        }
        lab.host().peer(&["get", "192.0.2.1:7001", "1000"]).ok();
    }
}

fn dns_of(status: &Value) -> &Value {
    &status["tunnels"][0]["dns"]
}

on_both_backends! {
    fn names_are_resolved_at_the_other_end_of_a_tunnel(backend) needs ["ip", "wg", "dig", "dnsmasq"] {
        let lab = Lab::new();
        let (here, there) = (lab.guest(), lab.guest());
        let [near, far] = [(); 2].map(|()| Key::new(&lab));
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.1/24, fd77::1/64\nDNS = 10.77.0.2, corp.test\n\
             [Peer]\nPublicKey = {}\nEndpoint = 192.0.2.1:51822\nAllowedIPs = 0.0.0.0/0, ::/0\n",
            near.private, far.public
        );
        let near_file = file(&lab, "near", &text);
        let far_file = far_end(&lab, &far, &near, "10.77.0.1/32, fd77::1/128");
        let daemon = Daemon::start(&lab, &here, backend, &["--wireguard", &near_file]);
        let _far = Daemon::start(&lab, &there, backend, &["--wireguard", &far_file]);
        assert_eq!(dns_of(&daemon.ask("status", json!({}))), &json!(["10.77.0.2"]));
        let resolver = there.spawn_admin(&[
            "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            "--bind-interfaces", "--pid-file=", "--log-facility=-",
            "--listen-address=10.77.0.2", "--address=/one.corp.test/10.9.9.9",
        ]);
        let _resolver = resolver.wait_for("started");
        // By its own address, and by those that containers are told: the query is asked on the guest's side.
        for server in ["@10.77.0.2", "@10.0.2.3", "@fd00::3"] {
            for how in ["+notcp", "+tcp"] {
                let found = here.run(&["dig", "+short", how, server, "one.corp.test"]).ok();
                assert_eq!(found, "10.9.9.9\n", "{server} {how}");
            }
        }
        // The same by `usernet run`, whose namespace has a resolv.conf of its own.
        drop(daemon);
        let usernet = lab.program("usernet");
        let script = "cat /etc/resolv.conf; dig +short +search one";
        let run = lab.host().run(&["sh", "-c", &format!(
            "HOME={dir} XDG_RUNTIME_DIR={dir} {usernet} run --wireguard {near_file} -- sh -c '{script}'",
            dir = lab.dir().join("run").display(),
        )]).ok();
        assert!(run.contains("nameserver 10.77.0.2\nsearch corp.test\n"), "{run}");
        assert!(run.ends_with("10.9.9.9\n"), "{run}");
        assert!(!run.contains("10.0.2.3"), "{run}");
        fs::remove_file(near_file).expect("it was read");
    }
}
