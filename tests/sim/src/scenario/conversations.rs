//! The TCP conversations of a scenario.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use usernet_core::HostError;

use super::*;
use crate::conversation::{Answer, Manners};

pub(super) fn draw(
    choices: &mut Choices,
    scenario: Scenario,
    config: &Config,
    access: &Access,
) -> Vec<Plan> {
    let count = match scenario {
        Scenario::ShortOut | Scenario::ShortIn => choices.between(5, 40),
        Scenario::Udp
        | Scenario::Fragments
        | Scenario::Ping
        | Scenario::Dhcp
        | Scenario::Dns
        | Scenario::UdpForward => 0,
        Scenario::NoServer | Scenario::Reset => choices.between(1, 8),
        Scenario::BulkUp
        | Scenario::BulkDown
        | Scenario::BulkBoth
        | Scenario::Echo
        | Scenario::HalfClose
        | Scenario::SimultaneousClose
        | Scenario::SlowReader
        | Scenario::ZeroWindow
        | Scenario::Idle
        | Scenario::Mixed => choices.between(1, 4),
        Scenario::SmallWrites => choices.between(1, 2),
    };
    (0..count as u16).map(|i| plan(choices, scenario, config, access, i)).collect()
}

fn plan(
    choices: &mut Choices,
    scenario: Scenario,
    config: &Config,
    access: &Access,
    i: u16,
) -> Plan {
    let scenario = match scenario {
        Scenario::Mixed => choices.pick(&[
            Scenario::BulkUp,
            Scenario::BulkDown,
            Scenario::Echo,
            Scenario::ShortIn,
            Scenario::Reset,
            Scenario::SlowReader,
        ]),
        other => other,
    };
    let is_outbound = match scenario {
        Scenario::ShortOut => true,
        Scenario::ShortIn => false,
        _ => choices.chance(600),
    };
    let is_v4 = config.net6.is_none() || choices.chance(500);
    let (guest, remote, peer) = addresses(choices, (config, access), is_outbound, is_v4, i);
    let manners =
        Manners { writes: 0, pieces: None, pace: Pace::Eager, finish: Finish::WhenWritten };
    let mut plan = Plan {
        is_outbound,
        start: choices.duration(Duration::from_millis(200)),
        guest,
        remote,
        peer,
        answer: Answer::Accept(choices.duration(Duration::from_millis(30))),
        guest_manners: manners,
        remote_manners: manners,
        is_echo: false,
        guest_buffer: choices.pick(&[1 << 10, 16 << 10, 64 << 10, 256 << 10]),
        host_buffer: choices.pick(&[1 << 10, 16 << 10, 64 << 10, 256 << 10]),
    };
    fill(choices, scenario, &mut plan);
    plan
}

/// Guest's end, remote end as the guest sees it, and as the host sees it.
fn addresses(
    choices: &mut Choices,
    (config, access): (&Config, &Access),
    is_outbound: bool,
    is_v4: bool,
    i: u16,
) -> (SocketAddr, SocketAddr, SocketAddr) {
    let far: IpAddr = if is_v4 {
        Ipv4Addr::new(198, 51, 100, (i % 250) as u8 + 1).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, i + 1).into()
    };
    let guest = config.guest_like(far).expect("a family that is configured");
    let others = config.further.iter().copied().filter(|ip| is_outbound && ip.is_ipv4() == is_v4);
    let guest = choices.pick(&std::iter::once(guest).chain(others).collect::<Vec<_>>());
    let access::Place { host, called } = access::place(choices, access, far);
    let seen = View::new(config, access).as_seen_by_guest(host);
    let seen = if is_outbound { called } else { seen.expect("a family that is configured") };
    let (guest_port, port) =
        if is_outbound { (40_000 + i, 2_000 + i) } else { (FORWARDED + i, 50_000 + i) };
    (SocketAddr::new(guest, guest_port), SocketAddr::new(seen, port), SocketAddr::new(host, port))
}

fn bulk(choices: &mut Choices) -> u64 {
    choices.pick(&[20_000, 100_000, 400_000]) + choices.below(50_000)
}

fn short(choices: &mut Choices) -> u64 {
    choices.pick(&[0, 1, 100, 1_460, 10_000])
}

fn slow(choices: &mut Choices) -> Pace {
    Pace::Slow {
        bytes: choices.between(200, 8_000) as u32,
        every: Duration::from_millis(choices.between(1, 2_000)),
    }
}

fn fill(choices: &mut Choices, scenario: Scenario, plan: &mut Plan) {
    let (guest, remote) = (&mut plan.guest_manners, &mut plan.remote_manners);
    match scenario {
        Scenario::BulkUp => guest.writes = bulk(choices),
        Scenario::BulkDown => remote.writes = bulk(choices),
        Scenario::SmallWrites => {
            guest.writes = bulk(choices) / 2;
            let every = Duration::from_micros(choices.pick(&[1, 2, 4, 50]));
            guest.pieces = Some((choices.pick(&[40, 100, 300]), every));
            plan.guest_buffer = choices.pick(&[64 << 10, 256 << 10]);
            plan.host_buffer = choices.pick(&[16 << 10, 256 << 10]);
        }
        Scenario::BulkBoth => (guest.writes, remote.writes) = (bulk(choices), bulk(choices)),
        Scenario::Echo => {
            guest.writes = bulk(choices) / 2;
            remote.writes = guest.writes;
            plan.is_echo = true;
        }
        Scenario::ShortOut | Scenario::ShortIn => {
            (guest.writes, remote.writes) = (short(choices), short(choices));
            choose_finish(choices, plan);
        }
        Scenario::HalfClose => {
            (guest.writes, remote.writes) = (short(choices), bulk(choices) / 4);
            if choices.chance(500) {
                std::mem::swap(&mut guest.writes, &mut remote.writes);
            }
            choose_finish(choices, plan);
        }
        Scenario::SimultaneousClose => {
            plan.start = Duration::ZERO;
            let bytes = short(choices);
            (guest.writes, remote.writes) = (bytes, bytes);
        }
        Scenario::SlowReader => {
            (guest.writes, remote.writes) = (bulk(choices) / 8, bulk(choices) / 8);
            (guest.pace, remote.pace) = (slow(choices), slow(choices));
        }
        Scenario::ZeroWindow => {
            (guest.writes, remote.writes) = (bulk(choices), bulk(choices));
            guest.pace = Pace::StopAfter(choices.below(50_000));
            if choices.chance(500) {
                remote.pace = Pace::StopAfter(choices.below(50_000));
            }
        }
        Scenario::NoServer => no_server(choices, plan),
        Scenario::Reset => {
            (guest.writes, remote.writes) = (bulk(choices) / 4, bulk(choices) / 4);
            let at = choices.below(guest.writes + remote.writes);
            let finish = Finish::ResetAt(at);
            if choices.chance(500) { guest.finish = finish } else { remote.finish = finish }
        }
        Scenario::Idle => {
            (guest.writes, remote.writes) = (short(choices), 4_000);
            plan.is_echo = false;
            plan.host_buffer = 1 << 10;
            guest.pace =
                Pace::Slow { bytes: 1_000, every: Duration::from_secs(choices.between(30, 200)) };
            plan.guest_buffer = 1 << 10;
        }
        Scenario::Udp
        | Scenario::Fragments
        | Scenario::Ping
        | Scenario::Dhcp
        | Scenario::Dns
        | Scenario::UdpForward
        | Scenario::Mixed => unreachable!("no conversation of its own"),
    }
}

fn no_server(choices: &mut Choices, plan: &mut Plan) {
    plan.guest_manners.writes = short(choices);
    let (at_most, error) = choices.pick(&[
        (50, HostError::Refused),
        (50, HostError::Refused),
        (1_000, HostError::NetUnreachable),
        (3_000, HostError::HostUnreachable),
        (50, HostError::Prohibited),
        (50, HostError::NoRoom),
        (130_000, HostError::TimedOut),
    ]);
    plan.answer = Answer::Fail(Duration::from_millis(choices.below(at_most + 1)), error);
}

/// Not both wait for the other.
fn choose_finish(choices: &mut Choices, plan: &mut Plan) {
    let (guest, remote) = choices.pick(&[
        (Finish::WhenWritten, Finish::WhenWritten),
        (Finish::AfterEnd, Finish::WhenWritten),
        (Finish::WhenWritten, Finish::AfterEnd),
    ]);
    (plan.guest_manners.finish, plan.remote_manners.finish) = (guest, remote);
}
