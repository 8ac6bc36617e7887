//! A contender at work: a guest with network, and what the contender costs the machine.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use usernet_lab::{Lab, Namespace, Running};

use crate::contender::{Contender, Kind};

/// How long a contender may take to set up the network.
const SET_UP_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const POLL: Duration = Duration::from_micros(200);
/// Clock ticks per second in /proc/PID/stat: `USER_HZ`, the same on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// One guest with one contender. Ended when dropped.
pub(crate) struct Session<'a> {
    lab: &'a Lab,
    /// None: the client is on the host.
    guest: Option<Namespace>,
    program: Option<Running>,
    /// From the start of the program to a default route in the guest.
    pub(crate) ready_after: Duration,
}

impl<'a> Session<'a> {
    /// Starts the contender for a new guest and waits until the guest has a default route.
    pub(crate) fn start(lab: &'a Lab, contender: &Contender, mtu: u16) -> Result<Self, String> {
        if contender.kind == Kind::Loopback {
            return Ok(Self { lab, guest: None, program: None, ready_after: Duration::ZERO });
        }
        let guest = lab.guest();
        let args = arguments(lab, contender, &guest, mtu);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let entered = entering(lab);
        let start = Instant::now();
        let mut program = lab.host().spawn(&args);
        while !has_default_route(&guest) {
            if start.elapsed() > SET_UP_MAX || !program.is_running() {
                let done = program.done_within(Duration::ZERO);
                return Err(format!("{} did not set up the network: {done}", contender.name));
            }
            thread::sleep(POLL);
        }
        let ready_after = start.elapsed().saturating_sub(entered);
        Ok(Self { lab, guest: Some(guest), program: Some(program), ready_after })
    }

    /// Whether there is a contender at all.
    pub(crate) fn is_translated(&self) -> bool {
        self.guest.is_some()
    }

    /// Where the clients run.
    pub(crate) fn client(&self) -> &Namespace {
        self.guest.as_ref().unwrap_or(self.lab.host())
    }

    /// Proportional share of memory of the contender and all it started, in KiB.
    pub(crate) fn memory_kib(&self) -> f64 {
        self.processes().iter().map(|pid| memory_kib(*pid)).sum()
    }

    /// CPU time that the contender and all it started have used, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.processes().iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    fn processes(&self) -> Vec<i32> {
        self.program.as_ref().map(|program| descendants(program.pid())).unwrap_or_default()
    }
}

/// What the helper needs to enter the host: it is part of every start, and none of the contender's business. The
/// quickest of a few, so that no contender gains by it.
fn entering(lab: &Lab) -> Duration {
    let enter = || {
        let start = Instant::now();
        // Whether it succeeds shows in the start that follows.
        let _: std::io::Result<_> = lab.host().command("user", &["true"]).status();
        start.elapsed()
    };
    (0..5).map(|_| enter()).min().unwrap_or_default()
}

fn arguments(lab: &Lab, contender: &Contender, guest: &Namespace, mtu: u16) -> Vec<String> {
    let own = |name: &str| match &contender.program {
        Some(path) => path.to_string_lossy().into_owned(),
        None => lab.program(name),
    };
    let (pid, mtu) = (guest.pid().to_string(), mtu.to_string());
    let (program, options): (String, Vec<&str>) = match contender.kind {
        Kind::Loopback => (own("true"), Vec::new()),
        Kind::Usernetd(backend) => {
            let options = vec!["--mtu", &mtu, "--backend", backend.name(), "--netns", &pid];
            (own("usernetd"), options)
        }
        Kind::Slirp4netns => {
            let options =
                vec!["--configure", "--mtu", &mtu, "--disable-host-loopback", &pid, "tap0"];
            (own("slirp4netns"), options)
        }
        Kind::Pasta => {
            // Addresses as the others have them: with the host's own it could not reach the host.
            let options = vec![
                "--foreground",
                "--config-net",
                "--ipv4-only",
                "--interface",
                "wan0",
                "--address",
                "10.0.2.100",
                "--netmask",
                "24",
                "--gateway",
                "10.0.2.2",
                "--ns-ifname",
                "tap0",
                "--mtu",
                &mtu,
                &pid,
            ];
            (own("pasta"), options)
        }
    };
    std::iter::once(program).chain(options.into_iter().map(str::to_owned)).collect()
}

/// Whether /proc/PID/net/route has an entry with destination 0 and the flag `RTF_GATEWAY`.
fn has_default_route(guest: &Namespace) -> bool {
    let table = fs::read_to_string(format!("/proc/{}/net/route", guest.pid())).unwrap_or_default();
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some("00000000") && fields.next() != Some("00000000")
    })
}

/// A process and all that descend from it.
fn descendants(root: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat_field(pid, 1)? as i32)))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

/// A number of /proc/PID/stat, counted from the state, which is field 3 of proc(5).
fn stat_field(pid: i32, index: usize) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(") ")?.1;
    after_name.split_whitespace().nth(index)?.parse().ok()
}

fn cpu_seconds(pid: i32) -> f64 {
    let ticks = |index| stat_field(pid, index).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// `Pss`, or `VmRSS` where the former may not be read.
fn memory_kib(pid: i32) -> f64 {
    let field = |file: &str, name: &str| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    field("smaps_rollup", "Pss:").or_else(|| field("status", "VmRSS:")).unwrap_or(0.0)
}
