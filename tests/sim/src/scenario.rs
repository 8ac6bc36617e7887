//! What is simulated: kinds of traffic, each with its parameters drawn at random.

mod access;
mod conversations;
mod missions;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use usernet_core::config::{Config, Limits};
use usernet_core::rules::{Access, Forward, HostLoopback, Protocol, Rules, View};
use usernet_core::{ForwardId, Instant};

use crate::choice::Choices;
use crate::conversation::{Conversation, Finish, Pace, Plan};
use crate::env::{Env, Event, HostFaults, Queue};
use crate::fleet::Fleet;
use crate::guest::{Guest, Mission};
use crate::host::Host;
use crate::host::datagram::{Client, Datagrams, Port, Resolver};
use crate::ledger::Ledger;
use crate::link::{Faults, Line};
use crate::mail::Mail;
use crate::watch::Watch;
use crate::world::World;

macro_rules! scenarios {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// The kinds of traffic.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Scenario { $($(#[doc = $doc])+ $variant,)+ }

        impl Scenario {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Its name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

scenarios! {
    /// Much from the guest.
    BulkUp = "bulk-up",
    /// Much to the guest.
    BulkDown = "bulk-down",
    /// Much both ways.
    BulkBoth = "bulk-both",
    /// The remote end sends back what it gets.
    Echo = "echo",
    /// Many short connections of the guest.
    ShortOut = "short-out",
    /// Many short connections to the guest.
    ShortIn = "short-in",
    /// One end finishes long before the other.
    HalfClose = "half-close",
    /// Both ends finish at once.
    SimultaneousClose = "simultaneous-close",
    /// Ends that read slowly.
    SlowReader = "slow-reader",
    /// Ends that stop reading.
    ZeroWindow = "zero-window",
    /// Servers that refuse, are unreachable, or silent.
    NoServer = "no-server",
    /// Ends that reset.
    Reset = "reset",
    /// Long pauses.
    Idle = "idle",
    /// Datagrams of all sizes.
    Udp = "udp",
    /// Datagrams of the largest sizes, in fragments.
    Fragments = "fragments",
    /// Echo requests to us and to the host side.
    Ping = "ping",
    /// A guest that asks for its address first.
    Dhcp = "dhcp",
    /// Questions to resolvers, of which some fail.
    Dns = "dns",
    /// Datagrams to a server in the guest.
    UdpForward = "udp-forward",
    /// Something of everything.
    Mixed = "mixed",
    /// Floods of small segments from the guest.
    SmallWrites = "small-writes",
}

impl Scenario {
    /// The scenario of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.name() == name)
    }
}

/// How bad the world is.
#[derive(Clone, Copy, Debug)]
struct Weather {
    from_guest: Faults,
    to_guest: Faults,
    host: HostFaults,
    /// Leases are few.
    is_short_of_leases: bool,
}

impl Weather {
    fn draw(choices: &mut Choices) -> Self {
        let is_fair = choices.chance(350);
        let mut line = || {
            let delay = Duration::from_micros(choices.pick(&[1, 20, 300, 5_000]));
            if is_fair {
                return Faults { delay, jitter: delay / 4, ..Faults::default() };
            }
            Faults {
                loss: choices.pick(&[0, 0, 5, 30, 100]),
                duplicate: choices.pick(&[0, 0, 10, 100]),
                reorder: choices.pick(&[0, 0, 10, 200]),
                corrupt: choices.pick(&[0, 0, 5, 30]),
                delay,
                jitter: choices.pick(&[Duration::ZERO, delay, delay * 4]),
            }
        };
        let (from_guest, to_guest) = (line(), line());
        let host = HostFaults {
            latency: Duration::from_micros(choices.pick(&[1, 50, 1_000, 20_000])),
            short: choices.pick(&[0, 100, 500]),
            spurious: choices.pick(&[0, 50, 300]),
            open_fails: if is_fair { 0 } else { choices.pick(&[0, 0, 300]) },
            datagram_errors: if is_fair { 0 } else { choices.pick(&[0, 0, 200]) },
            splice_fails: choices.pick(&[0, 500, 1000]),
            starve: if is_fair { 0 } else { choices.pick(&[0, 0, 50]) },
        };
        let is_short_of_leases = !is_fair && choices.chance(250);
        Self { from_guest, to_guest, host, is_short_of_leases }
    }

    fn is_perfect(&self) -> bool {
        self.from_guest.is_perfect()
            && self.to_guest.is_perfect()
            && self.host.open_fails == 0
            && self.host.datagram_errors == 0
            && self.host.starve == 0
            && !self.is_short_of_leases
    }
}

/// First port of forwards, on both sides.
const FORWARDED: u16 = 8000;

/// What DHCP leases in some runs, as slirp4netns does.
const POOL4: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 30));

/// Lays out a run.
pub fn build(scenario: Scenario, mut choices: Choices, is_traced: bool) -> World {
    let weather = Weather::draw(&mut choices);
    let mut config = draw_config(&mut choices, &weather);
    let access = access::draw(&mut choices, &mut config);
    if scenario == Scenario::Dhcp && choices.chance(500) {
        config.announced.pool4 = Some(POOL4);
    }
    let plans = conversations::draw(&mut choices, scenario, &config, &access);
    let letters = missions::draw(&mut choices, scenario, &config, &access, &weather);
    let conversations: Vec<_> =
        plans.into_iter().enumerate().map(|(i, plan)| Conversation::new(i, plan)).collect();
    let bound = bound(&conversations, &weather);
    // Another draw would make another run of every seed.
    let shards = 1 + (config.seed % 3) as u8;
    // Each shard's part is what a single one would have: a few leases are few enough.
    config.limits.leases *= u32::from(shards);
    config.limits.leases_kept *= u32::from(shards);
    // Half of those that are several lend flows to each other.
    let homes = if (config.seed / 3).is_multiple_of(2) { shards } else { 1 };
    let rules = rules(&config, &access, &letters.datagrams);
    let mut fleet = Fleet::new(shards, homes, &config, &rules);
    let has_duplicates = weather.from_guest.duplicate > 0 || weather.to_guest.duplicate > 0;
    let mail = Mail::new(has_duplicates);
    let mut env = Env {
        now: Instant::ZERO,
        queue: Queue::default(),
        choices,
        ledger: Ledger::new(config.limits.leases),
        conversations,
        mail,
        config,
        faults: weather.host,
        is_lossy: !weather.is_perfect(),
        is_closing: false,
        is_traced,
    };
    let mut datagrams = letters.datagrams;
    let udp = open_udp_forwards(&mut env, &mut fleet, &mut datagrams);
    let mut host = Host::new(&env, datagrams);
    for (socket, port) in udp {
        host.listen(socket, Some(port));
    }
    let listeners = open_tcp_forwards(&mut env, &mut fleet, &mut host);
    let has_offload = env.choices.chance(500);
    let guest = Guest::new(&env, has_offload, letters.missions);
    World {
        watch: Watch::new(&env.config),
        fleet,
        guest,
        host,
        from_guest: Line::new(weather.from_guest),
        to_guest: Line::new(weather.to_guest),
        listeners,
        backlog: VecDeque::new(),
        ops: Vec::new(),
        letters: VecDeque::new(),
        last_letter: Instant::ZERO,
        lent: 0,
        queue: 0,
        gathered: Vec::new(),
        inputs: 0,
        unshown: 0,
        check_every: 16,
        is_perfect: weather.is_perfect(),
        bound,
        env,
    }
}

fn draw_config(choices: &mut Choices, weather: &Weather) -> Config {
    let mut config = Config::example();
    config.seed = choices.below(u64::MAX);
    config.mtu = choices.pick(&[576, 1280, 1500, 1500, 9000, 65_520]);
    if config.mtu < 1280 {
        // RFC 8200, section 5: no IPv6 on such a link.
        config.net6 = None;
    }
    let leases = if weather.is_short_of_leases { choices.between(24, 64) as u32 } else { 512 };
    config.limits = Limits {
        flows: 256,
        sockets: 1024,
        half_open: 128,
        leases,
        leases_kept: leases * 5 / 8,
        reassembly_leases: if weather.is_short_of_leases { leases / 4 } else { 160 },
        window_bytes: choices.pick(&[16 << 10, 64 << 10, 1 << 20, 2 << 20]),
        in_flight_bytes: choices.pick(&[16 << 10, 64 << 10, 2 << 20]),
        ..Limits::default()
    };
    config.timeouts.tcp_idle = choices.pick(&[Duration::from_secs(60), config.timeouts.tcp_idle]);
    config
}

/// The time in which clean conversations must be over.
fn bound(conversations: &[Conversation], weather: &Weather) -> Duration {
    let is_eager = |c: &Conversation| {
        let plan: &Plan = &c.plan;
        [plan.guest_manners, plan.remote_manners].iter().all(|m| m.pace == Pace::Eager)
    };
    if weather.is_perfect() && conversations.iter().all(is_eager) {
        Duration::from_secs(600)
    } else {
        Duration::from_secs(3 * 3600)
    }
}

fn rules(config: &Config, access: &Access, datagrams: &Datagrams) -> std::sync::Arc<Rules> {
    let forward = |id, protocol| Forward {
        id: ForwardId(id),
        protocol,
        host_ports: (FORWARDED, FORWARDED + 999),
        guest: None,
        guest_port: FORWARDED,
    };
    let forwards = vec![forward(1, Protocol::Tcp), forward(2, Protocol::Udp)];
    let mut resolvers: Vec<_> = datagrams.resolvers.keys().copied().collect();
    resolvers.sort();
    Rules::new(config, access, forwards, resolvers)
}

fn open_tcp_forwards(
    env: &mut Env,
    fleet: &mut Fleet,
    host: &mut Host,
) -> Vec<(usize, usernet_core::SocketId)> {
    let mut listeners = Vec::new();
    for i in 0..env.conversations.len() {
        let plan = &env.conversations[i].plan;
        if plan.is_outbound {
            continue;
        }
        let local = crate::world::local_for(plan.peer, plan.guest.port());
        let socket = fleet.attach_listener(ForwardId(1), Protocol::Tcp, local);
        host.listen(socket, None);
        listeners.push((i, socket));
        env.queue.push(Instant::ZERO + plan.start, Event::Arrive(i));
    }
    listeners
}

fn open_udp_forwards(
    env: &mut Env,
    fleet: &mut Fleet,
    datagrams: &mut Datagrams,
) -> Vec<(usernet_core::SocketId, Port)> {
    let mut ports = Vec::new();
    for (i, client) in datagrams.clients.iter_mut().enumerate() {
        let local = crate::world::local_for(client.address, FORWARDED);
        let socket = fleet.attach_listener(ForwardId(2), Protocol::Udp, local);
        client.listener = socket;
        ports.push((socket, Port::listener(socket, local)));
        env.queue.push(Instant::ZERO + Duration::from_millis(500), Event::ClientDatagram(i));
    }
    ports
}
