//! A contender at work: a guest with network, and what the contender costs the machine.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use usernet_lab::{Lab, Namespace, Running, WAN4, WAN6, skip};

use crate::contender::{Contender, Kind};
use crate::cpu::{Cpu, descendants};

/// Where iperf3 listens on the host, at both addresses.
pub(crate) const IPERF_PORT: u16 = 5201;
/// Where the helper's server is on the host, at both addresses.
pub(crate) const SERVER_PORT: u16 = 7000;

/// How long a contender may take to set up the network.
const SET_UP_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const POLL: Duration = Duration::from_micros(200);

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// In ids.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// The host's address.
    pub(crate) fn host(self) -> &'static str {
        match self {
            Self::V4 => WAN4,
            Self::V6 => WAN6,
        }
    }

    /// The host's address with a port.
    pub(crate) fn socket(self, port: u16) -> String {
        match self {
            Self::V4 => format!("{WAN4}:{port}"),
            Self::V6 => format!("[{WAN6}]:{port}"),
        }
    }
}

/// One guest with one contender. Ended when dropped.
pub(crate) struct Session<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) contender: &'a Contender,
    /// Of the link.
    pub(crate) mtu: u16,
    /// None: the client is on the host.
    guest: Option<Namespace>,
    program: Option<Running>,
    /// From the start of the program to a default route in the guest.
    pub(crate) ready_after: Duration,
}

impl<'a> Session<'a> {
    /// Starts the contender for a new guest and waits until the guest has a default route.
    pub(crate) fn start(lab: &'a Lab, contender: &'a Contender, mtu: u16) -> Result<Self, String> {
        Self::start_with(lab, contender, mtu, &[])
    }

    /// The same with more options for the contender, in its own words.
    pub(crate) fn start_with(
        lab: &'a Lab,
        contender: &'a Contender,
        mtu: u16,
        options: &[&str],
    ) -> Result<Self, String> {
        let ready_after = Duration::ZERO;
        if contender.kind == Kind::Loopback {
            return Ok(Self { lab, contender, mtu, guest: None, program: None, ready_after });
        }
        let guest = lab.guest();
        let args = arguments(lab, contender, &guest, mtu);
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.splice(1..1, options.iter().copied());
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
        let (guest, program) = (Some(guest), Some(program));
        Ok(Self { lab, contender, mtu, guest, program, ready_after })
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

    /// CPU time used until now. A measurement is the difference of two.
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu::now(&self.processes())
    }

    /// Whether the case can be measured with this version of IP; if not, why.
    pub(crate) fn has(&self, family: Family) -> Result<(), String> {
        match (family, self.contender.kind) {
            (Family::V6, _) if !skip::has_ipv6() => Err("the machine has no IPv6".to_owned()),
            (Family::V6, Kind::Pasta) => Err("pasta is started with --ipv4-only".to_owned()),
            (Family::V6, Kind::Slirp4netns) => {
                Err("slirp4netns is started without --enable-ipv6".to_owned())
            }
            (Family::V4 | Family::V6, _) => Ok(()),
        }
    }

    /// The contender and all it started.
    pub(crate) fn processes(&self) -> Vec<i32> {
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

/// `Pss`, or `VmRSS` where the former may not be read.
fn memory_kib(pid: i32) -> f64 {
    let field = |file: &str, name: &str| -> Option<f64> {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    field("smaps_rollup", "Pss:").or_else(|| field("status", "VmRSS:")).unwrap_or(0.0)
}
