//! Tunnels between namespaces of ours: a `usernetd` at each end.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use usernet_lab::wireguard::Key;
use usernet_lab::{Backend, Daemon, Lab, Namespace, on_both_backends, serial, skip, wait_until};

const SECOND: Duration = Duration::from_secs(1);
/// What of 1500 bytes a tunnel leaves to its packets.
const MTU: usize = 1420;

/// A tunnel's end.
#[derive(Clone)]
struct End {
    key: Key,
    /// Addresses on the wire, without a port.
    at: &'static str,
    port: u16,
    /// Its number in the tunnel's networks.
    host: u8,
}

impl End {
    fn two(lab: &Lab, at: [&'static str; 2]) -> [Self; 2] {
        [1, 2].map(|host| Self {
            key: Key::new(lab),
            at: at[usize::from(host) - 1],
            port: 51_820 + u16::from(host),
            host,
        })
    }

    fn endpoint(&self) -> String {
        format!("Endpoint = {}:{}\n", self.at, self.port)
    }

    /// Its file, named after the tunnel's device. `more` is said of the other end.
    fn file(&self, lab: &Lab, other: &Self, more: &str) -> String {
        let (own, far) = (self.host, other.host);
        let text = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.{own}/24, fd77::{own}/64\nListenPort = {}\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = 10.77.0.{far}/32, fd77::{far}/128\n{more}",
            self.key.private, self.port, other.key.public,
        );
        let folder = lab.dir().join(format!("run/{own}"));
        let path = folder.join("wg0.conf").to_string_lossy().into_owned();
        let script =
            format!("umask 077; mkdir -p {}; cat > {path} <<'END'\n{text}\nEND", folder.display());
        lab.host().sh(&script).ok();
        path
    }

    /// Starts the daemon at this end. `more` is said of the other end.
    fn start<'a>(&self, lab: &'a Lab, guest: &Namespace, other: &Self, more: &str) -> Daemon<'a> {
        self.start_on(Backend::Epoll, lab, guest, other, more)
    }

    fn start_on<'a>(
        &self,
        backend: Backend,
        lab: &'a Lab,
        guest: &Namespace,
        other: &Self,
        more: &str,
    ) -> Daemon<'a> {
        Daemon::start(lab, guest, backend, &["--wireguard", &self.file(lab, other, more)])
    }

    /// Waits until the other end answers to pings.
    #[track_caller]
    fn is_reached_from(&self, guest: &Namespace) {
        let address = format!("10.77.0.{}", self.host);
        guest.run(&["ping", "-q", "-c", "1", "-W", "10", &address]).ok();
    }
}

const V4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const V6: [&str; 2] = ["[2001:db8::1]", "[2001:db8::2]"];

/// The tunnel in a daemon's status.
fn tunnel(daemon: &Daemon<'_>) -> Value {
    daemon.ask("status", json!({}))["tunnels"][0].clone()
}

fn counter(daemon: &Daemon<'_>, name: &str) -> u64 {
    let tunnel = tunnel(daemon);
    tunnel["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {tunnel}"))
}

fn endpoint(daemon: &Daemon<'_>) -> String {
    tunnel(daemon)["peers"][0]["endpoint"].as_str().unwrap_or_default().to_owned()
}

/// Whether the test of this name can run here.
fn can_run(name: &str, programs: &[&str]) -> bool {
    let missing = skip::missing(&[&["ip", "wg", "ping"], programs].concat());
    missing.iter().for_each(|reason| skip::skip(name, reason));
    missing.is_none()
}

/// TCP both ways with all of it compared, and UDP: through and beyond the MTU.
fn everything_passes(from: &Namespace, to: &Namespace, host: u8) {
    let addresses = [format!("10.77.0.{host}:7000"), format!("[fd77::{host}]:7000")];
    let _server = to.serve(&["[::]:7000"]);
    for address in &addresses {
        from.peer(&["get", address, "50000000"]).ok();
        from.peer(&["put", address, "50000000"]).ok();
        from.peer(&["echo", address, "0", "1", "1392", "1393", "9000", "60000"]).ok();
    }
}

on_both_backends! {
    fn two_namespaces_talk_by_a_tunnel(backend) needs ["ip", "wg", "ping"] {
        let lab = Lab::new();
        let (here, there) = (lab.guest(), lab.guest());
        let [a, b] = End::two(&lab, V4);
        let first = a.start_on(backend, &lab, &here, &b, &b.endpoint());
        let second = b.start_on(backend, &lab, &there, &a, &a.endpoint());
        for address in ["10.77.0.2", "fd77::2"] {
            here.run(&["ping", "-q", "-c", "3", "-i", "0.1", "-W", "10", address]).ok();
        }
        everything_passes(&here, &there, 2);
        everything_passes(&there, &here, 1);
        for daemon in [&first, &second] {
            let tunnel = tunnel(daemon);
            assert_eq!(tunnel["running"], json!(true), "{tunnel}");
            assert!(tunnel["peers"][0]["handshake_age_ms"].is_u64(), "{tunnel}");
            // Every packet of 100 MB had its own datagram, and not its own call.
            let of = |name: &str| tunnel["counters"][name].as_u64().unwrap();
            assert!(of("to_wire") * 4 < of("tunnel_datagrams_to_wire"), "{tunnel}");
            assert_eq!(of("wire_refused"), 0, "{tunnel}");
            assert_eq!(of("tunnel_drop_forged") + of("tunnel_drop_replayed"), 0, "{tunnel}");
        }
    }
}

#[test]
fn datagrams_of_every_length_pass() {
    if !can_run("datagrams_of_every_length_pass", &[]) {
        return;
    }
    let lab = Lab::new();
    let (here, there) = (lab.guest(), lab.guest());
    let [a, b] = End::two(&lab, V4);
    let _first = a.start(&lab, &here, &b, &b.endpoint());
    let _second = b.start(&lab, &there, &a, &a.endpoint());
    let _server = there.serve(&["[::]:7000"]);
    let sizes: Vec<String> = (0..MTU + 100).map(|size| size.to_string()).collect();
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    for address in ["10.77.0.2:7000", "[fd77::2]:7000"] {
        here.peer(&[&["echo", address][..], &sizes].concat()).ok();
    }
}

#[test]
fn endpoints_may_be_of_ipv6() {
    if !can_run("endpoints_may_be_of_ipv6", &[]) {
        return;
    }
    if !skip::has_ipv6() {
        return skip::skip("endpoints_may_be_of_ipv6", "there is no IPv6");
    }
    let lab = Lab::new();
    let (here, there) = (lab.guest(), lab.guest());
    let [a, b] = End::two(&lab, V6);
    let first = a.start(&lab, &here, &b, &b.endpoint());
    let _second = b.start(&lab, &there, &a, "");
    b.is_reached_from(&here);
    everything_passes(&here, &there, 2);
    assert_eq!(endpoint(&first), "[2001:db8::2]:51822");
}

#[test]
fn a_host_without_ipv6_has_tunnels_too() {
    if !can_run("a_host_without_ipv6_has_tunnels_too", &[]) {
        return;
    }
    let lab = Lab::new();
    lab.host().admin(&["sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1"]);
    let (here, there) = (lab.guest(), lab.guest());
    let [a, b] = End::two(&lab, V4);
    let _first = a.start(&lab, &here, &b, &b.endpoint());
    let _second = b.start(&lab, &there, &a, "");
    b.is_reached_from(&here);
}

#[test]
fn a_peer_that_comes_back_elsewhere_is_followed() {
    if !can_run("a_peer_that_comes_back_elsewhere_is_followed", &[]) {
        return;
    }
    let lab = Lab::new();
    let (here, there) = (lab.guest(), lab.guest());
    let [a, mut b] = End::two(&lab, V4);
    let first = a.start(&lab, &here, &b, &b.endpoint());
    let second = b.start(&lab, &there, &a, &a.endpoint());
    a.is_reached_from(&there);
    // By which of the host's addresses it left is the kernel's choice.
    assert!(endpoint(&first).ends_with(":51822"), "{}", endpoint(&first));
    // The same key at another port, with nothing known of sessions.
    drop(second);
    b.port = 51_900;
    let _second = b.start(&lab, &there, &a, &a.endpoint());
    a.is_reached_from(&there);
    assert!(endpoint(&first).ends_with(":51900"), "{}", endpoint(&first));
    everything_passes(&here, &there, 2);
    assert!(counter(&first, "tunnel_roamed") >= 1);
}

#[test]
fn without_the_same_preshared_key_nothing_passes() {
    if !can_run("without_the_same_preshared_key_nothing_passes", &[]) {
        return;
    }
    let lab = Lab::new();
    let (here, there) = (lab.guest(), lab.guest());
    let [a, b] = End::two(&lab, V4);
    // Any 32 bytes are a preshared key.
    let secret = |key: &Key| format!("PresharedKey = {}\n", key.public);
    let first = a.start(&lab, &here, &b, &(b.endpoint() + &secret(&a.key)));
    let second = b.start(&lab, &there, &a, &secret(&b.key));
    let done = here.run(&["ping", "-q", "-c", "2", "-W", "1", "10.77.0.2"]);
    assert!(!done.is_ok(), "{done}");
    assert_eq!(counter(&second, "to_guest"), 0);
    assert!(tunnel(&first)["peers"][0]["handshake_age_ms"].is_null());
    drop(second);
    let _second = b.start(&lab, &there, &a, &(a.endpoint() + &secret(&a.key)));
    a.is_reached_from(&there);
}

#[test]
fn nothing_is_left_behind() {
    if !can_run("nothing_is_left_behind", &[]) {
        return;
    }
    let lab = Lab::new();
    let (here, there) = (lab.guest(), lab.guest());
    let [a, b] = End::two(&lab, V4);
    let _second = b.start(&lab, &there, &a, "");
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // With a host name, for which there is a process more.
        let more = format!("Endpoint = localhost:{}\n", b.port);
        let mut first = a.start(&lab, &here, &b, &more);
        b.is_reached_from(&here);
        let names = || processes_called("usernetd-names", lab.host());
        assert_eq!(names(), 1);
        first.signal(signal);
        assert!(first.ends_within(10 * SECOND), "{signal}: {}", first.said());
        drop(first);
        assert!(
            wait_until(10 * SECOND, || !here.sh("ip link show wg0").is_ok()),
            "{signal}: the device"
        );
        assert!(wait_until(10 * SECOND, || names() == 0), "{signal}: the process");
        let ports = lab.host().sh(&format!("ss -Hlun sport = {}", a.port)).ok();
        assert_eq!(ports, "", "{signal}: the port");
    }
}

/// How many processes of this name are in this user namespace or below.
fn processes_called(name: &str, host: &Namespace) -> usize {
    let dir = format!("/proc/{}/ns/net", host.pid());
    let own = fs::read_link(dir).unwrap();
    let of_host = |pid: &Path| fs::read_link(pid.join("ns/net")).is_ok_and(|net| net == own);
    let is_called =
        |pid: &Path| fs::read_to_string(pid.join("comm")).is_ok_and(|n| n.trim() == name);
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    all.filter(|pid| is_called(pid) && of_host(pid)).count()
}

#[test]
fn a_port_that_is_taken_is_named() {
    if !can_run("a_port_that_is_taken_is_named", &[]) {
        return;
    }
    let lab = Lab::new();
    let (here, there) = (lab.guest(), lab.guest());
    let [a, b] = End::two(&lab, V4);
    let _first = a.start(&lab, &here, &b, "");
    let file = a.file(&lab, &b, "");
    let refused = Daemon::try_start(&lab, &there, Backend::Epoll, &["--wireguard", &file]);
    let done = refused.expect_err("the port is taken");
    assert!(done.err.contains("wg0: cannot listen on UDP port 51821"), "{done}");
    assert!(!there.sh("ip link show wg0").is_ok(), "the device is gone");
}

/// How often the tunnel's thread of a daemon has gone to sleep.
fn sleeps(daemon: &Daemon<'_>) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    let is_tunnel = |path: &Path| fs::read_to_string(path.join("comm")).unwrap() == "tunnel\n";
    let thread = threads.map(|entry| entry.path()).find(|path| is_tunnel(path)).expect("a thread");
    let status = fs::read_to_string(thread.join("status")).unwrap();
    let field = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    field.and_then(|count| count.trim().parse().ok()).expect("the kernel counts them")
}

/// Measures, so alone.
#[test]
fn at_rest_nobody_is_woken_but_by_keepalives() {
    if !can_run("at_rest_nobody_is_woken_but_by_keepalives", &[]) {
        return;
    }
    let _alone = serial();
    let lab = Lab::new();
    let (here, there) = (lab.guest(), lab.guest());
    let [a, b] = End::two(&lab, V4);
    let first = a.start(&lab, &here, &b, &(b.endpoint() + "PersistentKeepalive = 1\n"));
    let second = b.start(&lab, &there, &a, &a.endpoint());
    b.is_reached_from(&here);
    // What follows from the ping is over when the one who answered it has kept silent for ten seconds.
    let answered = || counter(&second, "tunnel_keepalives") + counter(&second, "tunnel_handshakes");
    assert!(wait_until(15 * SECOND, || answered() > 0));
    let (sent, before) = (counter(&first, "tunnel_keepalives"), [sleeps(&first), sleeps(&second)]);
    let start = Instant::now();
    while start.elapsed() < 5 * SECOND {
        std::thread::park_timeout(5 * SECOND - start.elapsed().min(5 * SECOND));
    }
    let after = [sleeps(&first), sleeps(&second)];
    let sent = counter(&first, "tunnel_keepalives") - sent;
    let slept = [after[0] - before[0], after[1] - before[1]];
    // One per second and end; the question before may have come between, and the machine may be slow.
    assert!((4..=7).contains(&sent), "{sent} keepalives");
    assert!(slept.iter().all(|count| *count <= sent + 3), "{slept:?} for {sent} keepalives");
}
