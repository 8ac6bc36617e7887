//! The list of system calls against the calls of a whole life, and what has to go on in the sandbox.
//!
//! That nothing is missing in the list, all tests here show: their daemons end at a call that is not in it
//! (`--sandbox strict`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use usernet_control::sandbox::calls::{LIST, Process, Use};
use usernet_lab::{
    Backend, Daemon, Lab, Namespace, on_both_backends, skip, wait_until, wan_addresses,
};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Processes by their PID, as `strace` tells them apart.
#[derive(Default)]
struct Trace {
    /// Which process a thread belongs to.
    threads: BTreeMap<String, Process>,
    /// Threads whose filter is in force.
    confined: BTreeSet<String>,
    /// What was called then.
    seen: BTreeSet<(&'static str, String)>,
}

fn name(process: Process) -> &'static str {
    match process {
        Process::Daemon => "daemon",
        Process::Helper => "helper",
        Process::Keeper => "keeper",
    }
}

impl Trace {
    /// Reads what `strace -f -o` has written.
    fn read(&mut self, text: &str) {
        let (mut filters, mut unfinished) = (BTreeMap::<String, u32>::new(), BTreeMap::new());
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(' ') else { continue };
            let (pid, rest) = (pid.to_owned(), rest.trim_start());
            // Signals and ends.
            if rest.starts_with("---") || rest.starts_with("+++") {
                continue;
            }
            let process = *self.threads.entry(pid.clone()).or_insert(Process::Daemon);
            for (word, process) in
                [("\"usernetd-netns\"", Process::Helper), ("\"usernetd-keeper\"", Process::Keeper)]
            {
                if rest.starts_with("prctl(PR_SET_NAME") && rest.contains(word) {
                    self.threads.insert(pid.clone(), process);
                }
            }
            let resumed = rest.strip_prefix("<... ").and_then(|rest| rest.split(' ').next());
            let call = match (resumed, rest.split_once('(')) {
                (Some(call), _) => call,
                (None, Some((call, _))) => call,
                (None, None) => continue,
            };
            if rest.ends_with("<unfinished ...>") {
                unfinished.insert(pid.clone(), rest.to_owned());
            }
            // Each process has two filters, and the daemon's second thread gets those of the first.
            if call == "seccomp" && rest.contains(" = 0") {
                let begun = resumed.and_then(|_| unfinished.get(&pid).cloned());
                let begun = begun.unwrap_or_else(|| rest.to_owned());
                let count = filters.entry(pid.clone()).or_default();
                *count += u32::from(begun.contains("SECCOMP_SET_MODE_FILTER"));
                if *count == 2 {
                    let same = self.threads.iter().filter(|(_, p)| **p == process);
                    self.confined.extend(same.map(|(thread, _)| thread.clone()));
                }
            } else if self.confined.contains(&pid) && resumed.is_none() {
                self.seen.insert((name(process), call.to_owned()));
            }
        }
    }
}

/// Everything that a daemon does in its life. Ends the guest.
fn live(lab: &Lab, mut guest: Namespace, mut daemon: Daemon<'_>) {
    let ask = |method, forwards: &[&str]| {
        let params = serde_json::json!({ "forwards": forwards });
        daemon.ask(method, if forwards.is_empty() { serde_json::json!({}) } else { params })
    };
    ask("forward.add", &["7001:7001", "7002:7002/udp"]);
    let host = lab.host().serve(&["192.0.2.1:7000", "[2001:db8::1]:7000"]);
    let inside = guest.serve(&["127.0.0.1:7001", "0.0.0.0:7002"]);
    for address in wan_addresses() {
        let address = format!("{address}:7000");
        guest.peer(&["get", &address, "3000000"]).ok();
        guest.peer(&["put", &address, "3000000"]).ok();
        guest.peer(&["echo", &address, "1", "1400", "9000"]).ok();
    }
    lab.host().peer(&["get", "127.0.0.1:7001", "100000"]).ok();
    lab.host().peer(&["get", "192.0.2.1:7001", "100000"]);
    lab.host().peer(&["echo", "192.0.2.1:7002", "1"]).ok();
    guest.run(&["ping", "-c", "1", "192.0.2.1"]).ok();
    ask("flows", &[]);
    ask("forward.remove", &["7001:7001"]);
    lab.host().admin(&["sh", "-c", "echo nameserver 192.0.2.9 >/etc/resolv.conf"]);
    let is_followed = || ask("status", &[])["resolvers"][0] == "192.0.2.9:53";
    assert!(wait_until(PATIENCE, is_followed), "resolv.conf is followed");
    drop((host, inside));
    guest.kill();
    assert!(daemon.ends_within(PATIENCE), "it ends with the namespace");
}

#[test]
fn every_system_call_in_the_list_is_made_or_has_its_rare_occasion() {
    const NAME: &str = "every_system_call_in_the_list_is_made_or_has_its_rare_occasion";
    if let Some(reason) = skip::missing(&["strace", "ping"]) {
        return skip::skip(NAME, &reason);
    }
    if !skip::has_io_uring() || !skip::has_ipv6() {
        return skip::skip(NAME, "io_uring or IPv6 is not there, and so not called for");
    }
    let mut trace = Trace::default();
    for backend in [Backend::IoUring, Backend::Epoll] {
        let lab = Lab::new();
        let guest = lab.guest();
        let file = lab.dir().join("run/trace");
        let pid_file = lab.dir().join("run/pid");
        let options = ["--pid-file", &*pid_file.to_string_lossy()];
        let daemon = Daemon::start_traced(&lab, &guest, backend, &options, &file);
        live(&lab, guest, daemon);
        trace.read(&std::fs::read_to_string(&file).expect("strace has written it"));
    }
    let mut unused = Vec::new();
    for entry in LIST {
        for process in [Process::Daemon, Process::Helper, Process::Keeper] {
            let is_seen = trace.seen.contains(&(name(process), entry.name().to_owned()));
            if entry.use_by(process) == Use::Yes && !is_seen {
                unused.push(format!("{} by the {}", entry.name(), name(process)));
            }
        }
    }
    assert!(unused.is_empty(), "never made: {unused:#?}\nmade: {:#?}", trace.seen);
}

on_both_backends! {
    fn resolv_conf_is_followed_through_a_link_into_run(backend) needs [] {
        let lab = Lab::new();
        let guest = lab.guest();
        let host = |script: &str| lab.host().admin(&["sh", "-e", "-c", script]);
        host("mount -t tmpfs tmpfs /run; mkdir /run/resolved; cd /run/resolved
            echo nameserver 192.0.2.2 >stub.conf; ln -sf ../run/resolved/stub.conf /etc/resolv.conf");
        let daemon = Daemon::start(&lab, &guest, backend, &[]);
        let has = |resolver: &str| {
            let status = daemon.ask("status", serde_json::json!({}));
            status["resolvers"][0] == format!("{resolver}:53")
        };
        assert!(has("192.0.2.2"));
        host("cd /run/resolved; echo nameserver 192.0.2.3 >new; mv new stub.conf");
        assert!(wait_until(PATIENCE, || has("192.0.2.3")), "replaced behind the link");
        host("echo nameserver 192.0.2.4 >/etc/new; mv /etc/new /etc/resolv.conf");
        assert!(wait_until(PATIENCE, || has("192.0.2.4")), "the link itself replaced");
        host("mkdir -p /run/manager; echo nameserver 192.0.2.5 >/run/manager/resolv.conf
            ln -sf /run/manager/resolv.conf /etc/resolv.conf");
        assert!(wait_until(PATIENCE, || has("192.0.2.5")), "a link to where nobody has looked yet");
    }
}
