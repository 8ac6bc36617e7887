//! A contender at work: a guest with network, and what the contender costs the machine.

use std::cell::OnceCell;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use usernet_lab::{GUEST4, GUEST6, Lab, Namespace, Running, WAN4, WAN6, skip, wait_until};

use crate::contender::{Contender, Kind};
use crate::cpu::{Cpu, descendants};

/// Where iperf3 listens on the host, at both addresses.
pub(crate) const IPERF_PORT: u16 = 5201;
/// Where the helper's server is on the host, at both addresses.
pub(crate) const SERVER_PORT: u16 = 7000;

/// How long a contender may take to set up the network.
const SET_UP_MAX: Duration = Duration::from_secs(10);
/// How long IPv6 may take: router advertisements and the search for duplicates need seconds.
const V6_MAX: Duration = Duration::from_secs(6);
/// How long one question over IPv6 may take.
const V6_TRY_MAX: Duration = Duration::from_secs(2);
/// How long one question may take that is asked between two groups of cases: a crowd of connections may still be closing.
const ANSWER_MAX: Duration = Duration::from_secs(10);
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

/// Two namespaces that a contender joins.
pub(crate) trait Joined {
    /// Where the clients run.
    fn client(&self) -> &Namespace;
    /// Where the servers run.
    fn server(&self) -> &Namespace;
    /// The servers' address; if they cannot be reached with this version of IP, why.
    fn address(&self, family: Family) -> Result<&str, String>;
    /// CPU time used until now. A measurement is the difference of two.
    fn cpu(&self) -> Cpu;
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
    /// Whether the host can be reached over IPv6, once that was tried.
    v6: OnceCell<Result<(), String>>,
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
        let mut session = Self {
            lab,
            contender,
            mtu,
            guest: None,
            program: None,
            v6: OnceCell::new(),
            ready_after: Duration::ZERO,
        };
        set_congestion(lab.host(), contender)?;
        if contender.kind == Kind::Loopback {
            return Ok(session);
        }
        let guest = session.guest.insert(lab.guest());
        set_congestion(guest, contender)?;
        match contender.kind {
            Kind::Veth => {
                pair(lab.host(), guest, mtu);
                return Ok(session);
            }
            Kind::Bare => {
                session.program = Some(lab.bare(guest, mtu));
                return Ok(session);
            }
            Kind::Loopback
            | Kind::Usernetd(_)
            | Kind::Slirp4netns
            | Kind::Pasta
            | Kind::Tunnel(_) => {}
        }
        let args = command_line(lab, contender, guest, mtu, options);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let entered = entering(lab);
        let start = Instant::now();
        let mut program = lab.host().spawn(&args);
        while !has_default_route(guest) {
            if start.elapsed() > SET_UP_MAX || !program.is_running() {
                let done = program.done_within(Duration::ZERO);
                return Err(format!("{} did not set up the network: {done}", contender.name));
            }
            thread::sleep(POLL);
        }
        session.ready_after = start.elapsed().saturating_sub(entered);
        session.program = Some(program);
        Ok(session)
    }

    /// Whether there is a contender at all.
    pub(crate) fn is_translated(&self) -> bool {
        self.program.is_some()
    }

    /// Proportional share of memory of the contender and all it started, in KiB.
    pub(crate) fn memory_kib(&self) -> f64 {
        self.processes().iter().map(|pid| memory_kib(*pid)).sum()
    }

    /// Whether the host can be reached with this version of IP; if not, why. That of IPv6 is tried, with the server at
    /// [`SERVER_PORT`].
    pub(crate) fn has(&self, family: Family) -> Result<(), String> {
        match family {
            Family::V4 => Ok(()),
            Family::V6 => self.v6.get_or_init(|| self.try_v6()).clone(),
        }
    }

    /// Whether the host can be reached at all.
    pub(crate) fn answers(&self) -> bool {
        let server = Family::V4.socket(SERVER_PORT);
        self.client().peer_within(ANSWER_MAX, &["who", "tcp", &server]).is_ok()
    }

    fn try_v6(&self) -> Result<(), String> {
        if self.contender.kind == Kind::Bare {
            return Err("it has none".to_owned());
        }
        if !skip::has_ipv6() {
            return Err("the machine has no IPv6".to_owned());
        }
        let mut why = String::new();
        let is_there = wait_until(V6_MAX, || {
            let server = Family::V6.socket(SERVER_PORT);
            let done = self.client().peer_within(V6_TRY_MAX, &["who", "tcp", &server]);
            why = done.to_string();
            done.is_ok()
        });
        if is_there { Ok(()) } else { Err(format!("the host's IPv6 address: {why}")) }
    }

    /// The contender and all it started.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.program.as_ref().map(|program| descendants(program.pid())).unwrap_or_default()
    }
}

impl Joined for Session<'_> {
    fn client(&self) -> &Namespace {
        self.guest.as_ref().unwrap_or(self.lab.host())
    }

    fn server(&self) -> &Namespace {
        self.lab.host()
    }

    fn address(&self, family: Family) -> Result<&str, String> {
        self.has(family).map(|()| family.host())
    }

    fn cpu(&self) -> Cpu {
        Cpu::now(&self.processes())
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

/// The kernel lets a namespace choose among what its administrator allows.
fn set_congestion(namespace: &Namespace, contender: &Contender) -> Result<(), String> {
    let Some(congestion) = &contender.congestion else { return Ok(()) };
    let script = format!("echo {congestion} >/proc/sys/net/ipv4/tcp_congestion_control");
    let done = namespace.spawn_admin(&["sh", "-c", &script]).done_within(SET_UP_MAX);
    let allowed = "the kernel allows a namespace those of net.ipv4.tcp_allowed_congestion_control";
    if done.is_ok() { Ok(()) } else { Err(format!("{congestion}: {allowed}: {done}")) }
}

/// A veth pair with the addresses that the contenders use. It goes when the guest does.
fn pair(host: &Namespace, guest: &Namespace, mtu: u16) {
    let pid = guest.pid();
    let (mut host_lines, mut guest_lines) = (
        format!("link add pair0 mtu {mtu} type veth peer name tap0 mtu {mtu} netns {pid}\n"),
        String::from("link set lo up\n"),
    );
    host_lines += "addr add 10.0.2.2/24 dev pair0\n";
    guest_lines += &format!("addr add {GUEST4}/24 dev tap0\n");
    if skip::has_ipv6() {
        host_lines += "addr add fd00::2/64 dev pair0 nodad\n";
        guest_lines += &format!("addr add {GUEST6}/64 dev tap0 nodad\n");
    }
    host.ip(&format!("{host_lines}link set pair0 up"));
    guest_lines += "link set tap0 up\nroute add default via 10.0.2.2\n";
    if skip::has_ipv6() {
        guest_lines += "route add default via fd00::2\n";
    }
    guest.ip(&guest_lines);
}

fn command_line(
    lab: &Lab,
    contender: &Contender,
    guest: &Namespace,
    mtu: u16,
    more: &[&str],
) -> Vec<String> {
    let own = |name: &str| match &contender.program {
        Some(path) => path.to_string_lossy().into_owned(),
        None => lab.program(name),
    };
    let (pid, mtu) = (guest.pid().to_string(), mtu.to_string());
    let (program, options, last): (String, Vec<&str>, Vec<&str>) = match contender.kind {
        Kind::Loopback | Kind::Veth | Kind::Bare | Kind::Tunnel(_) => {
            (own("true"), Vec::new(), Vec::new())
        }
        Kind::Usernetd(backend) => (
            own("usernetd"),
            vec!["--mtu", &mtu, "--backend", backend.name()],
            vec!["--netns", &pid],
        ),
        Kind::Slirp4netns => {
            let mut options = vec!["--configure", "--mtu", &mtu, "--disable-host-loopback"];
            options.extend(skip::has_ipv6().then_some("--enable-ipv6"));
            (own("slirp4netns"), options, vec![&pid, "tap0"])
        }
        Kind::Pasta => {
            // Addresses as the others have them: with the host's own it could not reach the host.
            let mut options = vec!["--foreground", "--config-net", "--interface", "wan0"];
            options.extend(["--address", GUEST4, "--netmask", "24", "--gateway", "10.0.2.2"]);
            if skip::has_ipv6() {
                options.extend(["--address", GUEST6, "--gateway", "fe80::2"]);
            } else {
                options.push("--ipv4-only");
            }
            options.extend(["--ns-ifname", "tap0", "--mtu", &mtu]);
            (own("pasta"), options, vec![&pid])
        }
    };
    let configured = contender.options.iter().map(String::as_str);
    let options = options.into_iter().chain(configured).chain(more.iter().copied()).chain(last);
    std::iter::once(program).chain(options.map(str::to_owned)).collect()
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
