//! WireGuard between two namespaces: TCP, datagrams and round trips through a tunnel whose ends are served by the same program.
//!
//! The underlay is alike for all: a veth pair between two namespaces. The others' device is in the same namespace as
//! their socket, as on a machine; that of usernetd is in a guest.

use std::fs;
use std::time::Duration;

use usernet_lab::wireguard::{DEVICE, Implementation, Key, Peer};
use usernet_lab::{Lab, Namespace, Running, skip, wait_until};

use super::iperf::{Direction, Transfer};
use super::{latency, udp};
use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::contender::{Contender, Kind};
use crate::cpu::{Cpu, descendants};
use crate::session::{Family, IPERF_PORT, Joined, SERVER_PORT};

/// Of the tunnel: what is left of 1500 by the longest headers.
const MTU: u16 = 1420;
/// Where both listen.
const LISTEN_PORT: u16 = 51_820;
/// The client's and the server's address in the tunnel.
const INSIDE: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// The same below it: those of [`Lab::join`].
const OUTSIDE: [&str; 2] = ["198.51.100.1", "198.51.100.2"];
/// Where datagrams are counted.
const COUNTER: &str = "10.77.0.2:9000";
/// Of datagrams: packets of 1400 bytes.
const PAYLOAD_BYTES: u32 = 1372;
/// How many datagrams a second every tunnel should carry without loss.
const PACED: u32 = 20_000;
/// How long a program may take until the first packet has passed.
const SET_UP_MAX: Duration = Duration::from_secs(10);
/// What a flood's two ends may take longer than the flood.
const PATIENCE: Duration = Duration::from_secs(20);

/// One end.
enum End {
    /// A device that somebody else's program serves.
    Other(Peer),
    /// `usernetd` between a guest and its underlay. In the order in which they end.
    Own { daemon: Running, guest: Namespace, _underlay: Namespace },
}

impl End {
    /// Where clients and servers run.
    fn inside(&self) -> &Namespace {
        match self {
            Self::Other(peer) => &peer.namespace,
            Self::Own { guest, .. } => guest,
        }
    }

    /// What its program said, in one line.
    fn said(&self) -> String {
        let said = match self {
            Self::Other(peer) => peer.said(),
            Self::Own { daemon, .. } => daemon.out() + &daemon.err(),
        };
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn pid(&self) -> i32 {
        match self {
            Self::Other(peer) => peer.pid(),
            Self::Own { daemon, .. } => daemon.pid(),
        }
    }
}

/// Two namespaces with a tunnel, iperf3 and the helper's server at one end.
struct Tunnel {
    // First, because they run in the ends' namespaces.
    _servers: [Running; 2],
    ends: [End; 2],
}

impl Joined for Tunnel {
    fn client(&self) -> &Namespace {
        self.ends[0].inside()
    }

    fn server(&self) -> &Namespace {
        self.ends[1].inside()
    }

    fn address(&self, family: Family) -> Result<&str, String> {
        match family {
            Family::V4 => Ok(INSIDE[1]),
            Family::V6 => Err("this tunnel has no IPv6".to_owned()),
        }
    }

    fn cpu(&self) -> Cpu {
        let processes = self.ends.iter().flat_map(|end| descendants(end.pid()));
        Cpu::now(&processes.collect::<Vec<_>>())
    }
}

impl Tunnel {
    fn start(lab: &Lab, contender: &Contender) -> Result<Self, String> {
        if let Some(why) = skip::missing(&["wg", "ping"]) {
            return Err(why);
        }
        let keys = [Key::new(lab), Key::new(lab)];
        let ends = match contender.kind {
            Kind::Tunnel(implementation) => others(lab, contender, implementation, &keys),
            Kind::Usernetd(_) => own(lab, contender, &keys),
            Kind::Loopback | Kind::Veth | Kind::Bare | Kind::Slirp4netns | Kind::Pasta => {
                return Err("it makes no tunnels".to_owned());
            }
        }?;
        let inside = ends[1].inside();
        let iperf = inside.spawn(&["iperf3", "-s"]);
        let ping = ["ping", "-c", "1", "-W", "1", INSIDE[1]];
        let is_up = wait_until(SET_UP_MAX, || ends[0].inside().run(&ping).is_ok());
        if !is_up || !wait_until(SET_UP_MAX, || inside.listens_on(IPERF_PORT)) {
            let said = ends.each_ref().map(End::said).join("; ");
            return Err(format!("nothing passes through the tunnel: {said}"));
        }
        let server = inside.serve(&[&format!("{}:{SERVER_PORT}", INSIDE[1])]);
        Ok(Self { _servers: [iperf, server], ends })
    }
}

/// A file of wg(8) for one end.
fn file(at: usize, keys: &[Key; 2], more: &str) -> String {
    let (own, other, far) = (&keys[at].private, &keys[1 - at].public, 1 - at);
    let (inside, outside) = (INSIDE[far], OUTSIDE[far]);
    format!(
        "[Interface]\nPrivateKey = {own}\nListenPort = {LISTEN_PORT}\n{more}\n[Peer]\nPublicKey = {other}\n\
         AllowedIPs = {inside}/32\nEndpoint = {outside}:{LISTEN_PORT}\n"
    )
}

fn others(
    lab: &Lab,
    contender: &Contender,
    implementation: Implementation,
    keys: &[Key; 2],
) -> Result<[End; 2], String> {
    let program = contender.program.as_ref().ok_or("there is no program")?;
    let peers = [0, 1].map(|_| Peer::start_program(lab, implementation, program));
    let [a, b] = &peers;
    lab.join(&a.namespace, &b.namespace, "wire", 0);
    for (at, peer) in peers.iter().enumerate() {
        peer.configure(&file(at, keys, ""), MTU, &[&format!("{}/24", INSIDE[at])], &[]);
    }
    Ok(peers.map(End::Other))
}

fn own(lab: &Lab, contender: &Contender, keys: &[Key; 2]) -> Result<[End; 2], String> {
    let Kind::Usernetd(backend) = contender.kind else { return Err("it is not ours".to_owned()) };
    let program = contender.program.as_ref();
    let program =
        program.map_or_else(|| lab.program("usernetd"), |path| path.to_string_lossy().into_owned());
    let underlays = [lab.router(), lab.router()];
    lab.join(&underlays[0], &underlays[1], "wire", 0);
    let mut at = 0;
    let ends = underlays.map(|underlay| {
        let guest = lab.guest();
        let folder = lab.dir().join(format!("run/end{at}"));
        let path = folder.join(format!("{DEVICE}.conf"));
        let device = format!("Address = {}/24\nMTU = {MTU}", INSIDE[at]);
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&path, file(at, keys, &device)))
            .expect("a file in the lab's folder");
        at += 1;
        let (pid, path) = (guest.pid().to_string(), path.to_string_lossy().into_owned());
        let mut args = vec![&*program, "--backend", backend.name(), "--wireguard", &path];
        args.extend(contender.options.iter().map(String::as_str));
        args.extend(["--netns", &pid]);
        let daemon = underlay.spawn(&args);
        End::Own { daemon, guest, _underlay: underlay }
    });
    Ok(ends)
}

pub(crate) fn run(
    lab: &Lab,
    contender: &Contender,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    let tunnel = match Tunnel::start(lab, contender) {
        Ok(tunnel) => tunnel,
        Err(why) => return collector.fail("tunnel", why),
    };
    for flows in [1, 4] {
        for direction in Direction::BOTH {
            let way = direction.name();
            let label = format!("tunnel, TCP {way} ×{flows}, MTU {MTU}");
            let metric = Metric::rate(format!("tunnel.tcp.{way}.{flows}"), label, "Gbit/s");
            let (family, time) = (Family::V4, effort.bulk);
            let transfer = Transfer { family, direction, flows, time, options: &[] };
            transfer.measure(&tunnel, collector, &[metric]);
        }
    }
    datagrams(lab, &tunnel, effort, collector);
    for protocol in ["tcp", "udp"] {
        let id = format!("tunnel.latency.{protocol}");
        let label = format!("tunnel, round trip {} ×1, 1 B", protocol.to_uppercase());
        latency::measure(&tunnel, effort.load, (protocol, 1, 1), (&id, &label), collector);
    }
}

/// As many as go, and what is lost of fewer.
fn datagrams(lab: &Lab, tunnel: &Tunnel, effort: &Effort, collector: &mut Collector<'_>) {
    let time = effort.load.min(Duration::from_millis(700));
    let before = tunnel.cpu();
    let metric = Metric::rate("tunnel.udp.flood", "tunnel, UDP, packets of 1400 B", "Gbit/s");
    match flood(lab, tunnel, time, None) {
        Ok([sent, received, seconds]) => {
            let bytes = received * f64::from(PAYLOAD_BYTES);
            collector.add_cpu(&metric, tunnel.cpu() - before, bytes / 1e9, "s/GB");
            let sample = collector.add(metric, bytes * 8.0 / seconds / 1e9);
            sample.also("loss %", 100.0 * (1.0 - received / sent));
        }
        Err(why) => collector.fail(metric.label, why),
    }
    let label = format!("tunnel, UDP, loss of {PACED} packets of 1400 B in a second");
    let metric = Metric::cost("tunnel.udp.loss", label, "%");
    match flood(lab, tunnel, time, Some(PACED)) {
        Ok([sent, received, _]) => {
            collector.add(metric, 100.0 * (1.0 - received / sent));
        }
        Err(why) => collector.fail(metric.label, why),
    }
}

/// Datagrams sent and received, and seconds.
fn flood(
    lab: &Lab,
    tunnel: &Tunnel,
    time: Duration,
    rate: Option<u32>,
) -> Result<[f64; 3], String> {
    let helper = lab.program("usernet-lab");
    let (bytes, time) = (PAYLOAD_BYTES.to_string(), time.as_millis().to_string());
    let rate = rate.map(|rate| format!("rate={rate}"));
    let mut flood = vec![&*helper, "flood", "to", COUNTER, &bytes, &time];
    flood.extend(rate.as_deref());
    let count = tunnel.server().spawn(&[&helper, "count", "at", COUNTER]).wait_for("ready");
    let [sent, _] = udp::numbers(&tunnel.client().spawn(&flood).done_within(PATIENCE))?;
    let [received, _, micros] = udp::numbers(&count.done_within(PATIENCE))?;
    if received == 0.0 {
        return Err(format!("nothing of {sent} datagrams was delivered"));
    }
    Ok([sent, received, micros / 1e6])
}
