//! The forwards in force: their listening sockets, their names, and how one set follows another.
//!
//! # Theory of operation
//!
//! A [`ForwardTable`] is changed in two steps. [`ForwardTable::plan`] takes the whole set that is wanted, opens
//! what is missing and touches nothing that exists; if it fails, the sockets it opened are closed again and
//! all is as before. The caller hands the [`Change`] to the data path, which takes it whole or not at all, and
//! then calls [`ForwardTable::commit`], or drops the change.
//!
//! A forward that is in both sets keeps its name and its sockets. One that is new gets a name that was never
//! used (the core knows listeners by it) and needs sockets of its own; but its port may be open already, for
//! a forward that is leaving: 8080:80 becoming 8080:81. Two listeners cannot be bound to one port, so the table
//! keeps a duplicate of every socket's descriptor and hands out another one: the port is never closed in
//! between, and no client is refused.
//!
//! Forwards lead in two directions, and both are one set: inward ones listen on the host, outward ones in the guest's
//! namespace, where the helper opens their sockets. Those that [`follow`] programs which listen stand behind those that
//! were asked for, and give way to them.

mod error;
pub(crate) mod follow;
mod holder;
mod listen;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use usernet_core::ForwardId;
use usernet_core::rules::{Forward, Outward, Protocol};
use usernet_driver::NewListener;
use usernet_driver::namespace::NamespaceListeners;

use crate::spec::{HostAddress, Spec, protocol_name};

pub use error::ForwardError;
pub use follow::Automatic;

/// The most forwards at once.
pub const FORWARDS_MAX: usize = 4_096;

/// The most listening sockets at once: one per port and family. Each costs two descriptors.
pub const LISTENERS_MAX: usize = 16_384;

/// Which way a forward leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the host to the guest.
    Inward,
    /// From the guest's namespace to the host.
    Outward,
}

impl Direction {
    /// Where its sockets listen.
    const fn place(self) -> &'static str {
        match self {
            Self::Inward => "this host",
            Self::Outward => "the namespace",
        }
    }
}

/// A forward that is to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Which way it leads.
    pub(crate) direction: Direction,
    /// The forward.
    pub(crate) spec: Spec,
    /// Nobody asked for it by name: it follows a program, and is left out where it cannot be.
    pub(crate) is_automatic: bool,
}

/// Where one socket listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ListenAt {
    /// On the host, or in the namespace.
    pub(crate) direction: Direction,
    /// TCP or UDP.
    pub(crate) protocol: Protocol,
    /// Address and port.
    pub(crate) address: SocketAddr,
    /// Only what arrives on this interface.
    pub(crate) interface: Option<String>,
}

impl std::fmt::Display for ListenAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, protocol_name(self.protocol))?;
        if let Some(interface) = &self.interface {
            write!(f, " on {interface}")?;
        }
        match self.direction {
            Direction::Inward => Ok(()),
            Direction::Outward => f.write_str(" in the namespace"),
        }
    }
}

/// A forward in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name, never used twice.
    pub(crate) id: ForwardId,
    /// Which way it leads.
    pub(crate) direction: Direction,
    /// What was asked for.
    pub(crate) spec: Spec,
    /// See [`Wanted::is_automatic`].
    pub(crate) is_automatic: bool,
    /// Where it listens: for each family its ports in order.
    pub(crate) at: Vec<ListenAt>,
}

impl Entry {
    fn wanted(&self) -> Wanted {
        let Self { direction, ref spec, is_automatic, .. } = *self;
        Wanted { direction, spec: spec.clone(), is_automatic }
    }

    fn is(&self, direction: Direction, spec: &Spec) -> bool {
        self.direction == direction && self.spec == *spec
    }
}

/// The forwards as the core knows them.
#[derive(Debug, Default)]
pub(crate) struct Leads {
    /// Host ports that lead to the guest.
    pub(crate) forwards: Vec<Forward>,
    /// Ports of the namespace that lead to the host.
    pub(crate) outward: Vec<Outward>,
}

impl Leads {
    fn of(entries: &[Entry]) -> Self {
        let mut leads = Self::default();
        for Entry { id, direction, spec, .. } in entries {
            let (id, protocol) = (*id, spec.protocol);
            let ports = (spec.host_ports.first(), spec.host_ports.last());
            let (to, first) = (spec.guest, spec.guest_ports.first());
            match direction {
                Direction::Inward => leads.forwards.push(Forward {
                    id,
                    protocol,
                    host_ports: ports,
                    guest: to,
                    guest_port: first,
                }),
                Direction::Outward => {
                    leads.outward.push(Outward { id, protocol, ports, host: to, host_port: first });
                }
            }
        }
        leads
    }
}

/// The forwards in force. See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct ForwardTable {
    /// In the order in which they were added.
    entries: Vec<Entry>,
    /// A duplicate of every socket that the data path has.
    sockets: BTreeMap<ListenAt, OwnedFd>,
    /// The name that the next forward gets, less one.
    last_id: u32,
    /// Opens sockets in the namespace; none: there is no namespace.
    namespace: Option<NamespaceListeners>,
}

/// A set of forwards that could take the place of the one in force.
#[derive(Debug)]
pub(crate) struct Change {
    entries: Vec<Entry>,
    /// Sockets that were not open before.
    opened: BTreeMap<ListenAt, OwnedFd>,
    last_id: u32,
    /// For the data path.
    listeners: Vec<NewListener>,
    /// What is missing and does not prevent the rest.
    pub(crate) warnings: Vec<String>,
    /// Automatic forwards that cannot be.
    pub(crate) left_out: Vec<(Wanted, ForwardError)>,
}

impl Change {
    /// The forwards as the core knows them.
    pub(crate) fn leads(&self) -> Leads {
        Leads::of(&self.entries)
    }

    /// The sockets that the data path does not have yet.
    pub(crate) fn take_listeners(&mut self) -> Vec<NewListener> {
        std::mem::take(&mut self.listeners)
    }
}

impl ForwardTable {
    /// An empty one. Outward forwards listen where `namespace` opens sockets. What has to be known of this machine to
    /// explain failures is read now: later there may be no files.
    pub(crate) fn new(namespace: Option<NamespaceListeners>) -> Self {
        listen::unprivileged_port_start();
        Self { namespace, ..Self::default() }
    }

    /// The forwards in force.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The forwards as the core knows them.
    pub(crate) fn leads(&self) -> Leads {
        Leads::of(&self.entries)
    }

    /// The set with these added.
    pub(crate) fn with(
        &self,
        direction: Direction,
        specs: Vec<Spec>,
    ) -> Result<Vec<Wanted>, ForwardError> {
        let mut wanted: Vec<Wanted> = self.entries.iter().map(Entry::wanted).collect();
        for spec in specs {
            let is_there =
                |w: &Wanted| w.direction == direction && w.spec == spec && !w.is_automatic;
            if wanted.iter().any(is_there) {
                return Err(ForwardError::Exists(spec.into()));
            }
            wanted.push(Wanted { direction, spec, is_automatic: false });
            if wanted.len() > FORWARDS_MAX {
                return Err(ForwardError::TooMany);
            }
        }
        Ok(wanted)
    }

    /// The set without these.
    pub(crate) fn without(
        &self,
        direction: Direction,
        specs: &[Spec],
    ) -> Result<Vec<Wanted>, ForwardError> {
        for spec in specs {
            match self.entries.iter().find(|e| e.is(direction, spec)) {
                None => return Err(ForwardError::NotFound(spec.clone().into())),
                Some(entry) if entry.is_automatic => {
                    return Err(ForwardError::Automatic(spec.clone().into()));
                }
                Some(_) => {}
            }
        }
        let left = self.entries.iter().filter(|e| !specs.iter().any(|s| e.is(direction, s)));
        Ok(left.map(Entry::wanted).collect())
    }

    /// The set in which these have taken the place of all that were asked for in that direction.
    pub(crate) fn replaced(&self, direction: Direction, specs: Vec<Spec>) -> Vec<Wanted> {
        let others = self.entries.iter().filter(|e| e.direction != direction || e.is_automatic);
        let mut wanted: Vec<Wanted> = others.map(Entry::wanted).collect();
        wanted.extend(specs.into_iter().map(|spec| Wanted {
            direction,
            spec,
            is_automatic: false,
        }));
        wanted
    }

    /// The set in which these are the automatic ones.
    pub(crate) fn following(&self, automatic: impl IntoIterator<Item = Wanted>) -> Vec<Wanted> {
        let asked_for = self.entries.iter().filter(|e| !e.is_automatic);
        asked_for.map(Entry::wanted).chain(automatic).collect()
    }

    /// Opens what is missing for `wanted` to be in force.
    pub(crate) fn plan(&mut self, mut wanted: Vec<Wanted>) -> Result<Change, ForwardError> {
        if wanted.len() > FORWARDS_MAX {
            return Err(ForwardError::TooMany);
        }
        // The automatic ones give way to the others.
        wanted.sort_by_key(|wanted| wanted.is_automatic);
        let mut change = Change {
            entries: Vec::with_capacity(wanted.len()),
            opened: BTreeMap::new(),
            last_id: self.last_id,
            listeners: Vec::new(),
            warnings: Vec::new(),
            left_out: Vec::new(),
        };
        let mut claimed: BTreeMap<ListenAt, Spec> = BTreeMap::new();
        for wanted in wanted {
            match self.add(&wanted, &mut claimed, &mut change) {
                Ok(()) => {}
                Err(error) if wanted.is_automatic => change.left_out.push((wanted, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(change)
    }

    fn add(
        &mut self,
        wanted: &Wanted,
        claimed: &mut BTreeMap<ListenAt, Spec>,
        change: &mut Change,
    ) -> Result<(), ForwardError> {
        for at in listening(wanted.direction, &wanted.spec) {
            if let Some(other) = claimed.get(&at) {
                let spec = wanted.spec.clone().into();
                return Err(ForwardError::Overlap { spec, other: other.clone().into() });
            }
            if claimed.len() >= LISTENERS_MAX {
                return Err(ForwardError::TooMany);
            }
            claimed.insert(at, wanted.spec.clone());
        }
        match self.entries.iter().find(|e| e.wanted() == *wanted) {
            Some(entry) => change.entries.push(entry.clone()),
            None => self.open(wanted, change)?,
        }
        Ok(())
    }

    /// What was planned is now in force.
    pub(crate) fn commit(&mut self, mut change: Change) {
        self.sockets.append(&mut change.opened);
        self.entries = change.entries;
        self.last_id = change.last_id;
        let kept: BTreeSet<&ListenAt> = self.entries.iter().flat_map(|e| &e.at).collect();
        self.sockets.retain(|at, _| kept.contains(at));
    }

    /// Opens the sockets of one new forward.
    fn open(&mut self, wanted: &Wanted, change: &mut Change) -> Result<(), ForwardError> {
        let Wanted { direction, ref spec, is_automatic } = *wanted;
        let id = ForwardId(change.last_id + 1);
        let mut entry = Entry { id, direction, spec: spec.clone(), is_automatic, at: Vec::new() };
        let mut listeners = Vec::new();
        for at in listening(direction, spec) {
            let socket = match self.socket(&at, spec, change) {
                Ok(socket) => socket,
                // Nobody asked for IPv6 by name.
                Err(ForwardError::NoIpv6 { place, .. }) if spec.host.is_none() => {
                    let told = format!("{spec}: IPv4 only, {place} has no IPv6");
                    if !is_automatic && change.warnings.last() != Some(&told) {
                        change.warnings.push(told);
                    }
                    continue;
                }
                Err(error) => {
                    // What this one has opened is closed again, if it alone is left out.
                    change.opened.retain(|opened, _| !entry.at.contains(opened));
                    return Err(error);
                }
            };
            listeners.push(NewListener { forward: id, protocol: at.protocol, socket });
            entry.at.push(at);
        }
        change.last_id = id.0;
        change.listeners.append(&mut listeners);
        change.entries.push(entry);
        Ok(())
    }

    /// A descriptor for the data path of the socket that listens there.
    fn socket(
        &mut self,
        at: &ListenAt,
        spec: &Spec,
        change: &mut Change,
    ) -> Result<OwnedFd, ForwardError> {
        if let Some(open) = self.sockets.get(at) {
            return duplicate(open, at);
        }
        let socket = match listen::open(at, self.namespace.as_mut()) {
            Err(ForwardError::PortInUse { port, protocol, holder }) => {
                let other = self.listener_on(at).or_else(|| listener_on(&change.entries, at));
                return Err(match other {
                    Some(other) => {
                        ForwardError::Overlap { spec: spec.clone().into(), other: other.into() }
                    }
                    None => ForwardError::PortInUse { port, protocol, holder },
                });
            }
            opened => opened?,
        };
        let handed = duplicate(&socket, at)?;
        change.opened.insert(at.clone(), socket);
        Ok(handed)
    }

    fn listener_on(&self, at: &ListenAt) -> Option<Spec> {
        listener_on(&self.entries, at)
    }
}

/// The forward of ours that has the port: on all addresses where `at` is on one, or the other way round.
fn listener_on(entries: &[Entry], at: &ListenAt) -> Option<Spec> {
    let has_port = |other: &ListenAt| {
        other.direction == at.direction
            && other.protocol == at.protocol
            && other.address.port() == at.address.port()
            && other.address.is_ipv4() == at.address.is_ipv4()
    };
    entries.iter().find(|e| e.at.iter().any(has_port)).map(|e| e.spec.clone())
}

fn duplicate(socket: &OwnedFd, at: &ListenAt) -> Result<OwnedFd, ForwardError> {
    socket.try_clone().map_err(|_| ForwardError::TooManyFiles { at: at.to_string() })
}

/// Where a forward listens: its ports, in every family that it is for. Where no address is given that is
/// everywhere on the host, and in the namespace its loopback: what is led out of it is for its own programs.
fn listening(direction: Direction, spec: &Spec) -> impl Iterator<Item = ListenAt> + '_ {
    let on = |v4: Ipv4Addr, v6: Ipv6Addr| {
        let all = |address| HostAddress { address, interface: None };
        match spec.guest {
            Some(IpAddr::V4(_)) => vec![all(v4.into())],
            Some(IpAddr::V6(_)) => vec![all(v6.into())],
            None => vec![all(v4.into()), all(v6.into())],
        }
    };
    let addresses = match (&spec.host, direction) {
        (Some(host), _) => vec![host.clone()],
        (None, Direction::Inward) => on(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        (None, Direction::Outward) => on(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
    };
    addresses.into_iter().flat_map(move |host| {
        spec.host_ports.iter().map(move |port| ListenAt {
            direction,
            protocol: spec.protocol,
            address: SocketAddr::new(host.address, port),
            interface: host.interface.clone(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use usernet_control_tests::free_port;

    fn spec(text: &str) -> Spec {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    /// The table with these forwards in force, and what the data path was handed for them.
    fn table(specs: &[String]) -> (ForwardTable, Vec<NewListener>) {
        let mut table = ForwardTable::default();
        let listeners = set(&mut table, specs).unwrap();
        (table, listeners)
    }

    fn set(table: &mut ForwardTable, specs: &[String]) -> Result<Vec<NewListener>, ForwardError> {
        let specs = specs.iter().map(|s| spec(s)).collect();
        let mut change = table.plan(table.replaced(Direction::Inward, specs))?;
        let listeners = change.take_listeners();
        table.commit(change);
        Ok(listeners)
    }

    #[test]
    fn a_forward_without_an_address_listens_in_both_families() {
        let port = free_port();
        let (_table, listeners) = table(&[format!("{port}:80")]);
        assert_eq!(listeners.len(), 2);
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        TcpStream::connect(("::1", port)).unwrap();
    }

    #[test]
    fn a_busy_port_is_told_with_its_holder_and_nothing_stays_open() {
        let taken = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let free = free_port();
        let wanted = vec![spec(&format!("{free}:80")), spec(&format!("{port}:80"))];
        let mut table = ForwardTable::default();
        let wanted = table.replaced(Direction::Inward, wanted);
        let error = table.plan(wanted).expect_err("the port is busy").to_string();
        let start = format!("port {port}/tcp is in use by ");
        let end = format!("(pid {})", std::process::id());
        assert!(error.starts_with(&start) && error.ends_with(&end), "{error}");
        assert!(TcpStream::connect(("127.0.0.1", free)).is_err(), "rolled back");
    }

    #[test]
    fn a_port_passes_from_one_forward_to_the_next_without_being_closed() {
        let port = free_port();
        let (mut table, old) = table(&[format!("127.0.0.1:{port}:80")]);
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let new = set(&mut table, &[format!("127.0.0.1:{port}:81")]).unwrap();
        assert_ne!(old[0].forward, new[0].forward);
        drop(old);
        let listener = TcpListener::from(new.into_iter().next().unwrap().socket);
        let (_, peer) = listener.accept().expect("the client that waited");
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[test]
    fn a_forward_in_both_sets_is_not_touched() {
        let (a, b) = (free_port(), free_port());
        let (mut table, _old) = table(&[format!("127.0.0.1:{a}:80")]);
        let id = table.entries()[0].id;
        let fd = table.sockets.values().next().unwrap().as_raw_fd();
        let new =
            set(&mut table, &[format!("127.0.0.1:{b}:80"), format!("127.0.0.1:{a}:80")]).unwrap();
        assert_eq!(new.len(), 1);
        assert_eq!(table.entries()[1].id, id);
        assert!(table.sockets.values().any(|s| s.as_raw_fd() == fd));
    }

    #[test]
    fn a_forward_that_leaves_frees_its_port() {
        let port = free_port();
        let (mut table, listeners) = table(&[format!("127.0.0.1:{port}:80/udp")]);
        assert!(UdpSocket::bind(("127.0.0.1", port)).is_err());
        let gone = [spec(&format!("127.0.0.1:{port}:80/udp"))];
        let left = table.without(Direction::Inward, &gone).unwrap();
        let change = table.plan(left).unwrap();
        table.commit(change);
        drop(listeners);
        UdpSocket::bind(("127.0.0.1", port)).expect("free again");
    }

    #[test]
    fn forwards_that_collide_are_told_by_name() {
        let port = free_port();
        let one = format!("127.0.0.1:{port}:80/tcp");
        let all = format!("0.0.0.0:{port}:80/tcp");
        let (mut table, _listeners) = table(std::slice::from_ref(&one));
        let mut error = |specs| {
            let wanted = table.replaced(Direction::Inward, specs);
            table.plan(wanted).expect_err("a collision").to_string()
        };
        assert_eq!(error(vec![spec(&one), spec(&all)]), format!("{all} listens where {one} does"));
        let twice = spec(&format!("127.0.0.1:{port}:81"));
        assert_eq!(
            error(vec![spec(&one), twice.clone()]),
            format!("{twice} listens where {one} does")
        );
        let exists = table.with(Direction::Inward, vec![spec(&one)]);
        let exists = exists.expect_err("there already").to_string();
        assert_eq!(exists, format!("{one} is forwarded already"));
        assert!(matches!(
            table.without(Direction::Inward, &[twice]),
            Err(ForwardError::NotFound(_))
        ));
    }

    #[test]
    fn limits_and_refusals_have_messages() {
        let mut table = ForwardTable::default();
        let mut error = |text: &str| {
            let wanted = table.replaced(Direction::Inward, vec![spec(text)]);
            table.plan(wanted).expect_err(text).to_string()
        };
        assert!(error("1-65535").starts_with("too many forwards"));
        assert!(error("192.0.2.1:8080:80").contains("it takes an address of this host"));
        assert_eq!(error("0.0.0.0%nosuch0:8080:80"), "there is no interface nosuch0");
    }
}
