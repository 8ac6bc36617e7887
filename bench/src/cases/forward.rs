//! Ports of the host that lead to the guest: from the host's loopback, which can be joined in the kernel without any
//! frame, and from another address, through the link.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use usernet_lab::{Lab, wait_until};

use super::connections::Storms;
use super::{MTUS, USUAL_MTU};
use crate::Effort;
use crate::collector::{Collector, Metric};
use crate::contender::{Contender, Kind};
use crate::session::{Family, Joined, Session};

/// Forwarded to the same port of the guest: for the helper's server.
pub(super) const SERVED_PORT: u16 = 7001;
/// The same for iperf3.
const IPERF_PORT: u16 = 5202;
/// How long a server or a listener may take to be there.
const SET_UP_MAX: Duration = Duration::from_secs(5);
/// For iperf3's own conversation before and after.
const GRACE: Duration = Duration::from_secs(15);

/// Where the client on the host connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// 127.0.0.1.
    Loopback,
    /// Another of the host's addresses.
    Elsewhere,
}

impl From {
    fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Elsewhere => "elsewhere",
        }
    }

    fn host(self) -> &'static str {
        match self {
            Self::Loopback => "127.0.0.1",
            Self::Elsewhere => Family::V4.host(),
        }
    }
}

pub(crate) fn run(
    lab: &Lab,
    contender: &Contender,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    let [usual, _, largest] = MTUS;
    for mtu in [usual, largest] {
        let ways: &[From] = match (contender.kind, effort.is_quick, mtu == USUAL_MTU) {
            // The limit: there is no link.
            (Kind::Loopback, _, true) => &[From::Loopback],
            (Kind::Loopback, _, false) => &[],
            (_, true, true) => &[From::Elsewhere],
            (_, true, false) => &[From::Loopback],
            (_, false, _) => &[From::Loopback, From::Elsewhere],
        };
        if !ways.is_empty()
            && let Err(why) = at(lab, contender, mtu, ways, effort, collector)
        {
            collector.fail(format!("forwards at MTU {mtu}"), why);
        }
    }
}

fn at(
    lab: &Lab,
    contender: &Contender,
    mtu: u16,
    ways: &[From],
    effort: &Effort,
    collector: &mut Collector<'_>,
) -> Result<(), String> {
    let session = start(lab, contender, mtu)?;
    let guest = session.client();
    let _served = guest.serve(&[&format!("0.0.0.0:{SERVED_PORT}")]);
    let _iperf = guest.spawn(&["iperf3", "-s", "-p", &IPERF_PORT.to_string()]);
    if !wait_until(SET_UP_MAX, || guest.listens_on(IPERF_PORT)) {
        return Err("iperf3 does not listen in the guest".to_owned());
    }
    for from in ways {
        for direction in ["in", "out"] {
            bulk(&session, *from, direction, effort, collector);
        }
    }
    if ways.contains(&From::Loopback) && (effort.is_quick || mtu == USUAL_MTU) {
        let server = format!("{}:{SERVED_PORT}", From::Loopback.host());
        let way = ("loopback", "in by loopback");
        let storms = Storms { session: &session, effort, clients: lab.host(), server, way };
        for clients in [1, 16] {
            storms.rate(clients, collector);
        }
    }
    Ok(())
}

/// A session with both ports forwarded. Nothing listens in the guest yet.
pub(super) fn start<'a>(
    lab: &'a Lab,
    contender: &'a Contender,
    mtu: u16,
) -> Result<Session<'a>, String> {
    let ports = [SERVED_PORT, IPERF_PORT];
    let equal = ports.map(|port| format!("{port}:{port}"));
    let list = ports.map(|port| port.to_string()).join(",");
    let api = lab.dir().join("run/slirp4netns.api").to_string_lossy().into_owned();
    // What the last one left.
    let _: std::io::Result<()> = fs::remove_file(&api);
    let options: &[&str] = match contender.kind {
        Kind::Loopback | Kind::Veth | Kind::Bare | Kind::Tunnel(_) => &[],
        Kind::Usernetd(_) => &["--forward", &equal[0], "--forward", &equal[1]],
        Kind::Slirp4netns => &["--api-socket", &api],
        Kind::Pasta => &["-t", &list, "-u", "none", "-T", "none", "-U", "none"],
    };
    let session = Session::start_with(lab, contender, mtu, options)?;
    match contender.kind {
        Kind::Loopback | Kind::Veth | Kind::Bare => return Ok(session),
        Kind::Slirp4netns => {
            wait_until(SET_UP_MAX, || Path::new(&api).exists());
            for port in ports {
                add_hostfwd(lab, &api, port)?;
            }
        }
        Kind::Usernetd(_) | Kind::Pasta | Kind::Tunnel(_) => {}
    }
    match ports.iter().find(|port| !wait_until(SET_UP_MAX, || lab.host().listens_on(**port))) {
        None => Ok(session),
        Some(port) => Err(format!("{} does not listen on port {port}", contender.name)),
    }
}

/// slirp4netns has no option for a forward.
fn add_hostfwd(lab: &Lab, api: &str, port: u16) -> Result<(), String> {
    let request = json!({ "execute": "add_hostfwd", "arguments": {
        "proto": "tcp", "host_addr": "0.0.0.0", "host_port": port, "guest_port": port,
    } });
    let done = lab.host().peer(&["speak", api, &request.to_string()]);
    let answer: Value = serde_json::from_str(&done.out).map_err(|_| done.to_string())?;
    if answer["return"].is_null() { Err(answer.to_string()) } else { Ok(()) }
}

/// `in`: to the guest, where the server is; `out`: from it.
fn bulk(
    session: &Session<'_>,
    from: From,
    direction: &str,
    effort: &Effort,
    collector: &mut Collector<'_>,
) {
    let (name, mtu) = (from.name(), session.mtu);
    let metric = Metric::rate(
        format!("forward.{name}.{direction}.{mtu}"),
        format!("forward {direction}, client on {name}, MTU {mtu}"),
        "Gbit/s",
    );
    let (port, seconds) = (IPERF_PORT.to_string(), effort.bulk.as_secs().to_string());
    let mut run = vec!["iperf3", "-J", "-c", from.host(), "-p", &port, "-t", &seconds];
    run.extend((direction == "out").then_some("-R"));
    let before = session.cpu();
    let done = session.lab.host().run_within(effort.bulk + GRACE, &run);
    let used = session.cpu() - before;
    let report: Value = serde_json::from_str(&done.out).unwrap_or_default();
    let sum = &report["end"]["sum_received"];
    let (Some(rate), Some(bytes)) = (sum["bits_per_second"].as_f64(), sum["bytes"].as_f64()) else {
        return collector.fail(
            metric.label,
            report["error"].as_str().map_or_else(|| done.to_string(), str::to_owned),
        );
    };
    collector.add_cpu(&metric, used, bytes / 1e9, "s/GB");
    collector.add(metric, rate / 1e9);
}
