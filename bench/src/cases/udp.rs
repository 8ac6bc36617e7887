//! Datagrams: floods, and trains as QUIC servers send them.
//!
//! A flood is sent as fast as its sender can, so most of it is lost where it meets something slower: what counts is what
//! is delivered. A paced one should be delivered whole, and shows what that costs.

use std::time::Duration;

use usernet_lab::{Done, Lab, Running};

use crate::Effort;
use crate::cases::USUAL_MTU;
use crate::collector::{Collector, Metric};
use crate::contender::{Contender, Kind};
use crate::session::{Joined, Session};

/// The host's side of what the guest sends, and of what it asks for.
const HOST: &str = "192.0.2.1:9000";
/// The port that leads to the guest, on the host and in the guest.
const FORWARD: &str = "192.0.2.1:9100";
const FORWARDED: &str = "0.0.0.0:9100";
/// What a flood's two ends may take longer than the flood.
const PATIENCE: Duration = Duration::from_secs(20);

/// The way datagrams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the guest to the host.
    Out,
    /// From the host to the guest, through the mapping that the guest has made by asking for it.
    In,
    /// From the host to the guest, through a forwarded port.
    Forward,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// In ids and labels.
    name: &'static str,
    bytes: u32,
    /// Options of the flood.
    options: &'static [&'static str],
    /// Whether its rate is told in bits, or in datagrams.
    is_in_bits: bool,
    /// Not in a smoke test.
    is_thorough: bool,
}

const LOADS: [Load; 5] = [
    Load { name: "flood", bytes: 1400, options: &[], is_in_bits: true, is_thorough: false },
    Load { name: "flood", bytes: 64, options: &[], is_in_bits: false, is_thorough: false },
    Load {
        name: "trains of 20",
        bytes: 1400,
        options: &["train=20"],
        is_in_bits: true,
        is_thorough: false,
    },
    Load {
        name: "trains of 46",
        bytes: 1400,
        options: &["train=46"],
        is_in_bits: true,
        is_thorough: true,
    },
    Load {
        name: "50,000/s",
        bytes: 1400,
        options: &["rate=50000"],
        is_in_bits: true,
        is_thorough: true,
    },
];

pub(crate) fn run(
    lab: &Lab,
    contender: &Contender,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    let session = match start(lab, contender) {
        Ok(session) => session,
        Err(why) => return collector.fail("UDP", why),
    };
    let ways: &[Way] = match contender.kind {
        // One way is like another.
        Kind::Loopback | Kind::Veth | Kind::Bare | Kind::Tunnel(_) => &[Way::Out],
        Kind::Usernetd(_) | Kind::Slirp4netns | Kind::Pasta => &[Way::Out, Way::In, Way::Forward],
    };
    for load in LOADS.iter().filter(|load| !(effort.is_quick && load.is_thorough)) {
        // How a forward differs shows with one load.
        let is_enough = |way: &&Way| !effort.is_quick || **way != Way::Forward || load.bytes != 64;
        for &way in ways.iter().filter(is_enough) {
            one(&session, way, load, effort, collector);
        }
    }
}

/// A session with a forwarded port.
fn start<'a>(lab: &'a Lab, contender: &'a Contender) -> Result<Session<'a>, String> {
    let socket = format!("{}/run/udp.sock", lab.dir().display());
    let options: &[&str] = match contender.kind {
        Kind::Loopback | Kind::Veth | Kind::Bare | Kind::Tunnel(_) => &[],
        Kind::Usernetd(_) => &["--forward", "9100:9100/udp"],
        Kind::Slirp4netns => &["--api-socket", &socket],
        Kind::Pasta => &["--udp-ports", "9100"],
    };
    let session = Session::start_with(lab, contender, USUAL_MTU, options)?;
    if contender.kind == Kind::Slirp4netns {
        let request = r#"{"execute":"add_hostfwd","arguments":{"proto":"udp","host_addr":"0.0.0.0","host_port":9100,"guest_port":9100}}"#;
        let done = lab.host().peer(&["ask", &socket, request]);
        if !done.is_ok() || done.out.contains("error") {
            return Err(done.to_string());
        }
    }
    Ok(session)
}

fn one(
    session: &Session<'_>,
    way: Way,
    load: &Load,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    let direction = match way {
        Way::Out => "out",
        Way::In => "in",
        Way::Forward => "forwarded",
    };
    let Load { name, bytes, .. } = load;
    let id: String = name.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let unit = if load.is_in_bits { "Gbit/s" } else { "1000/s" };
    let label = format!("UDP {direction}, {bytes} B, {name}");
    let metric = Metric::rate(format!("udp.{direction}.{bytes}.{id}"), label, unit);
    let time = if effort.is_quick { 300 } else { 700 };
    let before = session.cpu();
    let outcome = flood(session, way, load, time);
    let used = session.cpu() - before;
    match outcome {
        Ok(Flood { sent, received, late, seconds }) => {
            let rate = received / seconds;
            let rate =
                if load.is_in_bits { rate * f64::from(*bytes) * 8.0 / 1e9 } else { rate / 1e3 };
            collector.add_cpu(&metric, used, received / 1e6, "s/million");
            let sample = collector.add(metric, rate);
            sample.also("loss %", 100.0 * (1.0 - received / sent));
            sample.also("sent 1000/s", sent / seconds / 1e3).also("late", late);
        }
        Err(why) => collector.fail(metric.label, why),
    }
}

/// What became of a flood.
struct Flood {
    sent: f64,
    received: f64,
    late: f64,
    seconds: f64,
}

fn flood(session: &Session<'_>, way: Way, load: &Load, time_ms: u32) -> Result<Flood, String> {
    let helper = session.lab.program("usernet-lab");
    let (bytes, time) = (load.bytes.to_string(), time_ms.to_string());
    let (host, guest) = (session.lab.host(), session.client());
    let is_train = load.options.iter().any(|option| option.starts_with("train"));
    let how = if is_train { &["gro"][..] } else { &[] };
    let flood =
        |how, address| [&[&*helper, "flood", how, address, &bytes, &time], load.options].concat();
    let count = |at, address| [&[&*helper, "count", at, address], how].concat();
    let (flood, count): (Running, Running) = match way {
        Way::Out => {
            let count = host.spawn(&count("at", HOST)).wait_for("ready");
            (guest.spawn(&flood("to", HOST)), count)
        }
        Way::In => {
            let flood = host.spawn(&flood("back", HOST)).wait_for("ready");
            (flood, guest.spawn(&count("from", HOST)))
        }
        Way::Forward => {
            let count = guest.spawn(&count("at", FORWARDED)).wait_for("ready");
            (host.spawn(&flood("to", FORWARD)), count)
        }
    };
    let [sent, micros] = numbers(&flood.done_within(PATIENCE))?;
    let [received, late, _] = numbers(&count.done_within(PATIENCE))?;
    if received == 0.0 {
        return Err(format!("nothing of {sent} datagrams was delivered"));
    }
    Ok(Flood { sent, received, late, seconds: micros / 1e6 })
}

/// The numbers of the last line.
pub(super) fn numbers<const N: usize>(done: &Done) -> Result<[f64; N], String> {
    let line = done.out.lines().last().unwrap_or_default();
    let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().map_err(|_| format!("{}: {done}", done.name))
}
