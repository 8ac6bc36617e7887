//! Forwards that follow programs: what listens on one side is forwarded from the other.
//!
//! # Theory of operation
//!
//! Once a second the kernel's lists of listening ports are read on both sides ([`Ports`]), and the automatic forwards made
//! what they should be. Three things must not be followed, and are not:
//!
//! - *our own listeners*, or two automatic rules would forward to each other for ever. They are known by address and port,
//!   so that a program of the same port on another address is still seen;
//! - *sockets of clients*: a UDP socket that listens and one that waits for an answer look the same. Those on ports
//!   that the kernel hands out by itself are passed over, and those that the data path uses for the guest's own
//!   datagrams;
//! - on the host, servers that the loopback does not reach.
//!
//! A port that cannot be had on the other side (it is in use there, or reserved for root) is told once, at debug level
//! and in the status, and tried again when its program has gone and come again. A list is not read in one moment, so
//! a forward goes only when its program was missing twice.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use usernet_core::rules::Protocol;
use usernet_driver::namespace::{Listening, Ports};

use super::{Direction, Entry, ForwardTable, Wanted};
use crate::logging::FOR_STATUS;
use crate::spec::{HostAddress, PortRange, Spec, protocol_name};

/// How often the lists are read.
const PERIOD: Duration = Duration::from_secs(1);

/// Ports that the kernel hands out by itself where nothing says otherwise (`ip(7)`, `ip_local_port_range`).
const EPHEMERAL_DEFAULT: (u16, u16) = (32_768, 60_999);

/// One automatic rule: whatever listens on the side to which `direction` leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Automatic {
    /// [`Direction::Inward`]: programs in the namespace get ports of the host. [`Direction::Outward`]: programs on the
    /// host get ports in the namespace.
    pub direction: Direction,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where to listen for them; none: as for a forward without an address.
    pub listen: Option<HostAddress>,
    /// Ports that are followed; empty: all.
    pub only: Vec<PortRange>,
    /// Ports that are not.
    pub excluded: Vec<PortRange>,
}

impl Automatic {
    fn has(&self, port: u16) -> bool {
        let is_in = |ranges: &[PortRange]| {
            ranges.iter().any(|range| (range.first()..=range.last()).contains(&port))
        };
        (self.only.is_empty() || is_in(&self.only)) && !is_in(&self.excluded)
    }

    fn wanted(&self, port: u16) -> Option<Wanted> {
        let ports = PortRange::new(port, port)?;
        let spec = Spec {
            host: self.listen.clone(),
            host_ports: ports,
            guest: None,
            guest_ports: ports,
            protocol: self.protocol,
        };
        Some(Wanted { direction: self.direction, spec, is_automatic: true })
    }
}

/// Which forward of which rule, for remembering.
type Key = (Direction, Protocol, u16);

/// Follows. See the [module](self).
#[derive(Debug)]
pub(crate) struct Follower {
    rules: Vec<Automatic>,
    /// What listens in the namespace.
    guest: Ports,
    /// What listens on the host.
    host: Ports,
    /// Where clients' ports are.
    ephemeral: (u16, u16),
    /// When the lists are read next.
    due: Instant,
    /// Forwarded, and not listened on when the lists were last read.
    missing: BTreeSet<Key>,
    /// Could not be had.
    left_out: BTreeSet<Key>,
}

/// What listens on each side, less ourselves.
struct Seen {
    guest: BTreeSet<Listening>,
    host: BTreeSet<Listening>,
}

impl Follower {
    /// Opens the host's lists; the namespace's come from its helper. None: there is nothing to follow.
    pub(crate) fn new(rules: Vec<Automatic>, guest: Ports, now: Instant) -> Option<Self> {
        (!rules.is_empty()).then(|| Self {
            rules,
            guest,
            host: Ports::open(),
            ephemeral: ephemeral_ports(),
            due: now,
            missing: BTreeSet::new(),
            left_out: BTreeSet::new(),
        })
    }

    /// When to call [`Follower::turn`] next.
    pub(crate) fn deadline(&self) -> Instant {
        self.due
    }

    /// If it is time: the set of forwards that should be in force; none if it is. `used_ports` are the host ports of the
    /// data path's own UDP sockets; it is asked only when there is a new port to think about.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        table: &ForwardTable,
        used_ports: impl FnOnce() -> BTreeSet<u16>,
    ) -> Option<Vec<Wanted>> {
        if now < self.due {
            return None;
        }
        self.due = now + PERIOD;
        match self.scan() {
            Ok(seen) => self.decide(seen, table, used_ports),
            Err(error) => {
                tracing::debug!("cannot read which ports are listened on: {error}");
                None
            }
        }
    }

    /// These could not be had.
    pub(crate) fn leave_out<'a>(
        &mut self,
        left_out: impl IntoIterator<Item = &'a (Wanted, super::ForwardError)>,
    ) {
        for (wanted, error) in left_out {
            let key = key(wanted);
            if self.left_out.insert(key) {
                let (_, protocol, port) = key;
                let protocol = protocol_name(protocol);
                tracing::debug!(target: FOR_STATUS, "port {port}/{protocol} is not followed: {error}");
            }
        }
    }

    fn scan(&self) -> io::Result<Seen> {
        Ok(Seen { guest: self.guest.scan()?, host: self.host.scan()? })
    }

    fn decide(
        &mut self,
        mut seen: Seen,
        table: &ForwardTable,
        used_ports: impl FnOnce() -> BTreeSet<u16>,
    ) -> Option<Vec<Wanted>> {
        without_ours(&mut seen, table.entries());
        let in_force: BTreeSet<Key> =
            table.entries().iter().filter(|e| e.is_automatic).map(entry_key).collect();
        let asked_for: BTreeSet<Key> = table
            .entries()
            .iter()
            .filter(|e| !e.is_automatic)
            .flat_map(|e| e.spec.host_ports.iter().map(|p| (e.direction, e.spec.protocol, p)))
            .collect();
        let mut found: BTreeSet<Key> = BTreeSet::new();
        for rule in &self.rules {
            found.extend(self.candidates(rule, &seen).filter(|key| !asked_for.contains(key)));
        }
        self.left_out.retain(|key| found.contains(key));
        found.retain(|key| !self.left_out.contains(key));
        let is_new_udp = |key: &&Key| {
            matches!(key, (Direction::Outward, Protocol::Udp, _)) && !in_force.contains(key)
        };
        if found.iter().any(|key| is_new_udp(&key)) {
            let used = used_ports();
            found.retain(|key| !is_new_udp(&key) || !used.contains(&key.2));
        }
        let gone: BTreeSet<Key> = in_force.difference(&found).copied().collect();
        let stay: Vec<Key> = gone.difference(&self.missing).copied().collect();
        found.extend(stay.iter().filter(|key| !asked_for.contains(key)));
        self.missing = stay.into_iter().collect();
        if found == in_force {
            return None;
        }
        let automatic = found.iter().filter_map(|&(direction, protocol, port)| {
            let rule = self.rules.iter().find(|rule| {
                rule.direction == direction && rule.protocol == protocol && rule.has(port)
            });
            rule?.wanted(port)
        });
        Some(table.following(automatic))
    }

    /// What a rule follows.
    fn candidates<'a>(
        &'a self,
        rule: &'a Automatic,
        seen: &'a Seen,
    ) -> impl Iterator<Item = Key> + 'a {
        let (first, last) = self.ephemeral;
        let listening = match rule.direction {
            Direction::Inward => &seen.guest,
            Direction::Outward => &seen.host,
        };
        let is_client =
            move |l: &Listening| l.protocol == Protocol::Udp && (first..=last).contains(&l.port);
        let is_reached = move |ip: IpAddr| {
            rule.direction == Direction::Inward || ip.is_unspecified() || ip.is_loopback()
        };
        listening
            .iter()
            .filter(move |l| l.protocol == rule.protocol && rule.has(l.port))
            .filter(move |l| !is_client(l) && is_reached(l.address))
            .map(move |l| (rule.direction, rule.protocol, l.port))
    }
}

/// Takes our own listeners out.
fn without_ours(seen: &mut Seen, entries: &[Entry]) {
    for at in entries.iter().flat_map(|entry| &entry.at) {
        let (protocol, address, port) = (at.protocol, at.address.ip(), at.address.port());
        let place = match at.direction {
            Direction::Inward => &mut seen.host,
            Direction::Outward => &mut seen.guest,
        };
        place.remove(&Listening { protocol, address, port });
    }
}

fn key(wanted: &Wanted) -> Key {
    (wanted.direction, wanted.spec.protocol, wanted.spec.host_ports.first())
}

fn entry_key(entry: &Entry) -> Key {
    (entry.direction, entry.spec.protocol, entry.spec.host_ports.first())
}

fn ephemeral_ports() -> (u16, u16) {
    let parse = |text: &str| {
        let mut numbers = text.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| parse(&text))
        .unwrap_or(EPHEMERAL_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use usernet_control_tests::free_port;

    fn follower(rules: Vec<Automatic>) -> Follower {
        let now = Instant::now();
        let follower = Follower::new(rules, Ports::open(), now).expect("there are rules");
        Follower { ephemeral: (0, 0), ..follower }
    }

    fn rule(direction: Direction, protocol: Protocol) -> Automatic {
        Automatic { direction, protocol, listen: None, only: vec![], excluded: vec![] }
    }

    fn seen(guest: &[(Protocol, &str)], host: &[(Protocol, &str)]) -> Seen {
        let set = |list: &[(Protocol, &str)]| {
            let listening = |&(protocol, at): &(Protocol, &str)| {
                let at: std::net::SocketAddr = at.parse().expect("an address");
                Listening { protocol, address: at.ip(), port: at.port() }
            };
            list.iter().map(listening).collect()
        };
        Seen { guest: set(guest), host: set(host) }
    }

    /// The automatic forwards that the follower wants; none: what there is.
    fn ports(
        follower: &mut Follower,
        table: &ForwardTable,
        seen: Seen,
    ) -> Option<Vec<(Direction, u16)>> {
        let wanted = follower.decide(seen, table, BTreeSet::new)?;
        let automatic = wanted.iter().filter(|w| w.is_automatic);
        Some(automatic.map(|w| (w.direction, w.spec.host_ports.first())).collect())
    }

    /// Opens what is wanted, in a table of the host only.
    fn put_in_force(table: &mut ForwardTable, wanted: Vec<Wanted>) -> Vec<u16> {
        let change = table.plan(wanted).expect("automatic forwards do not fail");
        let left_out = change.left_out.iter().map(|(w, _)| w.spec.host_ports.first()).collect();
        table.commit(change);
        left_out
    }

    #[test]
    fn programs_are_followed_in_both_directions_within_the_ranges() {
        let range = |first, last| PortRange::new(first, last).expect("a range");
        let inward = Automatic {
            only: vec![range(80, 99)],
            excluded: vec![range(90, 90)],
            ..rule(Direction::Inward, Protocol::Tcp)
        };
        let outward = rule(Direction::Outward, Protocol::Udp);
        let mut follower = follower(vec![inward, outward]);
        let tcp = Protocol::Tcp;
        let seen = seen(
            &[(tcp, "0.0.0.0:80"), (tcp, "[::]:80"), (tcp, "127.0.0.1:90"), (tcp, "[::1]:8080")],
            &[(Protocol::Udp, "127.0.0.1:53"), (Protocol::Udp, "192.0.2.1:54"), (tcp, "[::]:22")],
        );
        let wanted = ports(&mut follower, &ForwardTable::default(), seen);
        assert_eq!(wanted, Some(vec![(Direction::Inward, 80), (Direction::Outward, 53)]));
    }

    #[test]
    fn what_we_listen_on_ourselves_leads_to_no_loop() {
        let both = [Direction::Inward, Direction::Outward].map(|d| rule(d, Protocol::Tcp));
        let mut follower = follower(both.to_vec());
        let mut table = ForwardTable::default();
        let port = free_port();
        let guest = format!("127.0.0.1:{port}");
        let program = [(Protocol::Tcp, guest.as_str())];
        let wanted = follower.decide(seen(&program, &[]), &table, BTreeSet::new);
        assert_eq!(put_in_force(&mut table, wanted.expect("one")), [0_u16; 0]);
        let (ours4, ours6) = (format!("0.0.0.0:{port}"), format!("[::]:{port}"));
        let ours = [(Protocol::Tcp, ours4.as_str()), (Protocol::Tcp, ours6.as_str())];
        assert_eq!(ports(&mut follower, &table, seen(&program, &ours)), None, "as it should be");
    }

    #[test]
    fn a_forward_goes_when_its_program_was_missing_twice() {
        let mut follower = follower(vec![rule(Direction::Inward, Protocol::Tcp)]);
        let mut table = ForwardTable::default();
        let at = format!("0.0.0.0:{}", free_port());
        let program = [(Protocol::Tcp, at.as_str())];
        let wanted = follower.decide(seen(&program, &[]), &table, BTreeSet::new).expect("one");
        put_in_force(&mut table, wanted);
        assert_eq!(ports(&mut follower, &table, seen(&[], &[])), None, "once");
        assert_eq!(ports(&mut follower, &table, seen(&program, &[])), None, "there again");
        assert_eq!(ports(&mut follower, &table, seen(&[], &[])), None, "once");
        assert_eq!(ports(&mut follower, &table, seen(&[], &[])), Some(vec![]), "twice");
    }

    #[test]
    fn a_port_that_cannot_be_had_is_left_out_until_its_program_comes_again() {
        let mut follower = follower(vec![rule(Direction::Inward, Protocol::Tcp)]);
        let mut table = ForwardTable::default();
        let busy = TcpListener::bind("0.0.0.0:0").expect("a port");
        let port = busy.local_addr().expect("its address").port();
        let at = format!("127.0.0.1:{port}");
        let program = [(Protocol::Tcp, at.as_str())];
        let wanted = follower.decide(seen(&program, &[]), &table, BTreeSet::new).expect("one");
        let change = table.plan(wanted).expect("automatic forwards do not fail");
        assert_eq!(change.left_out.len(), 1);
        follower.leave_out(&change.left_out);
        table.commit(change);
        assert_eq!(ports(&mut follower, &table, seen(&program, &[])), None);
        assert_eq!(ports(&mut follower, &table, seen(&[], &[])), None);
        drop(busy);
        let again = ports(&mut follower, &table, seen(&program, &[]));
        assert_eq!(again, Some(vec![(Direction::Inward, port)]));
    }

    #[test]
    fn clients_of_udp_are_not_followed() {
        let rules = [Direction::Inward, Direction::Outward].map(|d| rule(d, Protocol::Udp));
        let mut follower = Follower { ephemeral: (40_000, 50_000), ..follower(rules.to_vec()) };
        let udp = Protocol::Udp;
        let sockets = [(udp, "0.0.0.0:40000"), (udp, "0.0.0.0:123"), (udp, "0.0.0.0:5353")];
        let table = ForwardTable::default();
        let used = || BTreeSet::from([5353]);
        let wanted = follower.decide(seen(&[], &sockets), &table, used).expect("one");
        let ports: Vec<u16> = wanted.iter().map(|w| w.spec.host_ports.first()).collect();
        assert_eq!(ports, [123]);
    }

    #[test]
    fn a_forward_that_was_asked_for_takes_the_place_of_an_automatic_one() {
        let mut follower = follower(vec![rule(Direction::Inward, Protocol::Udp)]);
        let mut table = ForwardTable::default();
        let port = free_port();
        let at = format!("0.0.0.0:{port}");
        let program = [(Protocol::Udp, at.as_str())];
        let wanted = follower.decide(seen(&program, &[]), &table, BTreeSet::new).expect("one");
        put_in_force(&mut table, wanted);
        let spec: Spec = format!("{port}:53/udp").parse().expect("a forward");
        let wanted = table.with(Direction::Inward, vec![spec]).expect("it is new");
        assert_eq!(put_in_force(&mut table, wanted), [port], "the automatic one");
        assert!(UdpSocket::bind(("127.0.0.1", port)).is_err(), "the port was kept");
        assert_eq!(ports(&mut follower, &table, seen(&program, &[])), None);
        assert!(!table.entries()[0].is_automatic);
    }

    #[test]
    fn the_lists_are_read_once_a_second() {
        let mut follower = follower(vec![rule(Direction::Inward, Protocol::Tcp)]);
        let table = ForwardTable::default();
        let start = follower.deadline();
        follower.turn(start, &table, BTreeSet::new);
        assert_eq!(follower.deadline(), start + PERIOD);
        assert_eq!(follower.turn(start, &table, BTreeSet::new), None);
    }
}
