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

mod holder;
mod listen;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use usernet_core::ForwardId;
use usernet_core::rules::{Forward, Protocol};
use usernet_driver::NewListener;

use crate::spec::{HostAddress, Spec, protocol_name};

/// The most forwards at once.
pub const FORWARDS_MAX: usize = 4_096;

/// The most listening sockets at once: one per port and family. Each costs two descriptors.
pub const LISTENERS_MAX: usize = 16_384;

/// Where one socket listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ListenAt {
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
        match &self.interface {
            Some(interface) => write!(f, " on {interface}"),
            None => Ok(()),
        }
    }
}

/// Why a set of forwards is not in force. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Somebody listens there.
    #[error("port {port}/{protocol} is in use{holder}", protocol = protocol_name(*.protocol))]
    PortInUse {
        /// The port.
        port: u16,
        /// TCP or UDP.
        protocol: Protocol,
        /// ` by NAME (pid N)`, or nothing where that cannot be read.
        holder: String,
    },
    /// A port below `ip_unprivileged_port_start`.
    #[error(
        "port {port}/{protocol} is reserved for root: use a port from {first} on, or as root: \
         sysctl -w net.ipv4.ip_unprivileged_port_start={port}", protocol = protocol_name(*.protocol)
    )]
    Privileged {
        /// The port.
        port: u16,
        /// TCP or UDP.
        protocol: Protocol,
        /// The first port that anybody may use.
        first: u16,
    },
    /// The address is not this host's.
    #[error("cannot listen on {at}: {source}; it takes an address of this host")]
    AddressNotHere {
        /// Where.
        at: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The host has no IPv6.
    #[error("cannot listen on {0}: this host has no IPv6")]
    NoIpv6(String),
    /// No descriptors left.
    #[error(
        "cannot listen on {at}: too many open files; raise the limit (ulimit -n) or forward fewer ports"
    )]
    TooManyFiles {
        /// Where.
        at: String,
    },
    /// Any other refusal.
    #[error("cannot listen on {at}: {source}")]
    Listen {
        /// Where.
        at: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// Two forwards listen on one port.
    #[error("{spec} listens where {other} does")]
    Overlap {
        /// The later one.
        spec: Box<Spec>,
        /// The one that is there.
        other: Box<Spec>,
    },
    /// The forward is there already.
    #[error("{0} is forwarded already")]
    Exists(Box<Spec>),
    /// The forward is not there.
    #[error("there is no forward {0}")]
    NotFound(Box<Spec>),
    /// More forwards or ports than there may be.
    #[error(
        "too many forwards: at most {FORWARDS_MAX}, and {LISTENERS_MAX} listening sockets (one per port and family)"
    )]
    TooMany,
}

/// A forward in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name, never used twice.
    pub(crate) id: ForwardId,
    /// What was asked for.
    pub(crate) spec: Spec,
    /// Where it listens: for each family its ports in order.
    pub(crate) at: Vec<ListenAt>,
}

impl Entry {
    /// The forward as the core knows it.
    fn rule(&self) -> Forward {
        Forward {
            id: self.id,
            protocol: self.spec.protocol,
            host_ports: (self.spec.host_ports.first(), self.spec.host_ports.last()),
            guest: self.spec.guest,
            guest_port: self.spec.guest_ports.first(),
        }
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
}

impl Change {
    /// The forwards as the core knows them.
    pub(crate) fn rules(&self) -> Vec<Forward> {
        self.entries.iter().map(Entry::rule).collect()
    }

    /// The sockets that the data path does not have yet.
    pub(crate) fn take_listeners(&mut self) -> Vec<NewListener> {
        std::mem::take(&mut self.listeners)
    }
}

impl ForwardTable {
    /// The forwards in force.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The forwards as the core knows them.
    pub(crate) fn rules(&self) -> Vec<Forward> {
        self.entries.iter().map(Entry::rule).collect()
    }

    /// The set with these added.
    pub(crate) fn with(&self, specs: Vec<Spec>) -> Result<Vec<Spec>, ForwardError> {
        let mut wanted: Vec<Spec> = self.entries.iter().map(|e| e.spec.clone()).collect();
        for spec in specs {
            if wanted.contains(&spec) {
                return Err(ForwardError::Exists(spec.into()));
            }
            wanted.push(spec);
            if wanted.len() > FORWARDS_MAX {
                return Err(ForwardError::TooMany);
            }
        }
        Ok(wanted)
    }

    /// The set without these.
    pub(crate) fn without(&self, specs: &[Spec]) -> Result<Vec<Spec>, ForwardError> {
        for spec in specs {
            if !self.entries.iter().any(|e| e.spec == *spec) {
                return Err(ForwardError::NotFound(spec.clone().into()));
            }
        }
        let left = self.entries.iter().filter(|e| !specs.contains(&e.spec));
        Ok(left.map(|e| e.spec.clone()).collect())
    }

    /// Opens what is missing for `wanted` to be in force.
    pub(crate) fn plan(&self, wanted: Vec<Spec>) -> Result<Change, ForwardError> {
        if wanted.len() > FORWARDS_MAX {
            return Err(ForwardError::TooMany);
        }
        let mut change = Change {
            entries: Vec::with_capacity(wanted.len()),
            opened: BTreeMap::new(),
            last_id: self.last_id,
            listeners: Vec::new(),
            warnings: Vec::new(),
        };
        let mut claimed: BTreeMap<ListenAt, Spec> = BTreeMap::new();
        for spec in wanted {
            for at in listening(&spec) {
                if let Some(other) = claimed.insert(at, spec.clone()) {
                    let spec = spec.clone().into();
                    return Err(ForwardError::Overlap { spec, other: other.into() });
                }
                if claimed.len() > LISTENERS_MAX {
                    return Err(ForwardError::TooMany);
                }
            }
            match self.entries.iter().find(|e| e.spec == spec) {
                Some(entry) => change.entries.push(entry.clone()),
                None => self.open(spec, &mut change)?,
            }
        }
        Ok(change)
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
    fn open(&self, spec: Spec, change: &mut Change) -> Result<(), ForwardError> {
        change.last_id += 1;
        let id = ForwardId(change.last_id);
        let mut entry = Entry { id, at: Vec::new(), spec };
        for at in listening(&entry.spec) {
            let socket = match self.socket(&at, &entry.spec, change) {
                Ok(socket) => socket,
                // Nobody asked for IPv6 by name.
                Err(ForwardError::NoIpv6(_)) if entry.spec.host.is_none() => {
                    let told = format!("{}: IPv4 only, this host has no IPv6", entry.spec);
                    if change.warnings.last() != Some(&told) {
                        change.warnings.push(told);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            change.listeners.push(NewListener { forward: id, protocol: at.protocol, socket });
            entry.at.push(at);
        }
        change.entries.push(entry);
        Ok(())
    }

    /// A descriptor for the data path of the socket that listens there.
    fn socket(
        &self,
        at: &ListenAt,
        spec: &Spec,
        change: &mut Change,
    ) -> Result<OwnedFd, ForwardError> {
        if let Some(open) = self.sockets.get(at) {
            return duplicate(open, at);
        }
        let socket = match listen::open(at) {
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
        other.protocol == at.protocol
            && other.address.port() == at.address.port()
            && other.address.is_ipv4() == at.address.is_ipv4()
    };
    entries.iter().find(|e| e.at.iter().any(has_port)).map(|e| e.spec.clone())
}

fn duplicate(socket: &OwnedFd, at: &ListenAt) -> Result<OwnedFd, ForwardError> {
    socket.try_clone().map_err(|_| ForwardError::TooManyFiles { at: at.to_string() })
}

/// Where a forward listens: its ports, in every family that it is for.
fn listening(spec: &Spec) -> impl Iterator<Item = ListenAt> + '_ {
    let all = |address: IpAddr| HostAddress { address, interface: None };
    let v4 = || all(Ipv4Addr::UNSPECIFIED.into());
    let v6 = || all(Ipv6Addr::UNSPECIFIED.into());
    let addresses = match (&spec.host, spec.guest) {
        (Some(host), _) => vec![host.clone()],
        (None, Some(IpAddr::V4(_))) => vec![v4()],
        (None, Some(IpAddr::V6(_))) => vec![v6()],
        (None, None) => vec![v4(), v6()],
    };
    addresses.into_iter().flat_map(move |host| {
        spec.host_ports.iter().map(move |port| ListenAt {
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

    /// A port that is free in both families, as far as one can know.
    fn free_port() -> u16 {
        TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
    }

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
        let mut change = table.plan(specs.iter().map(|s| spec(s)).collect())?;
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
        let error = ForwardTable::default().plan(wanted).expect_err("the port is busy").to_string();
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
        let left = table.without(&[spec(&format!("127.0.0.1:{port}:80/udp"))]).unwrap();
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
        let (table, _listeners) = table(std::slice::from_ref(&one));
        let error = |wanted| table.plan(wanted).expect_err("a collision").to_string();
        assert_eq!(error(vec![spec(&one), spec(&all)]), format!("{all} listens where {one} does"));
        let twice = spec(&format!("127.0.0.1:{port}:81"));
        assert_eq!(
            error(vec![spec(&one), twice.clone()]),
            format!("{twice} listens where {one} does")
        );
        let exists = table.with(vec![spec(&one)]).expect_err("there already").to_string();
        assert_eq!(exists, format!("{one} is forwarded already"));
        assert!(matches!(table.without(&[twice]), Err(ForwardError::NotFound(_))));
    }

    #[test]
    fn limits_and_refusals_have_messages() {
        let table = ForwardTable::default();
        let error = |text: &str| table.plan(vec![spec(text)]).expect_err(text).to_string();
        assert!(error("1-65535").starts_with("too many forwards"));
        assert!(error("192.0.2.1:8080:80").contains("it takes an address of this host"));
        assert_eq!(error("0.0.0.0%nosuch0:8080:80"), "there is no interface nosuch0");
    }
}
