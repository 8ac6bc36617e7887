//! What a gateway does when it is asked, and when a member ends: the network, the tunnel and the names change together.
//!
//! The order is such that a crash in between does no harm: a new member is written down before it is let in, and cut
//! off before it is forgotten. A gateway that starts makes its tunnel from what is written down.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::names::Names;
use super::network::{Member, Network, Origin};
use super::protocol::{Candidate, Request, Response, Seen};
use super::store::{Place, replace};
use super::terms::Terms;
use super::wire::Wire;
use crate::cli::error::Error;
use crate::cli::process::Process;

/// A network that is being served.
#[derive(Debug)]
pub(super) struct Service {
    network: Network,
    place: Place,
    wire: Wire,
    names: NamesFile,
    /// Those whose end is a member's.
    owners: Vec<Watched>,
}

/// Where the process in the namespace looks names up.
#[derive(Debug)]
pub(super) struct NamesFile {
    /// The file.
    pub(super) path: PathBuf,
    /// Who knows other names.
    pub(super) upstream: Option<SocketAddr>,
}

impl NamesFile {
    pub(super) fn write(&self, network: &Network) -> Result<(), Error> {
        let text = serde_json::to_vec(&Names::of(network, self.upstream));
        let written = text.map_err(io::Error::from).and_then(|text| replace(&self.path, &text));
        written.map_err(Error::system(format!("cannot write {}", self.path.display())))
    }
}

/// A process, and what becomes readable when it ends.
#[derive(Debug)]
pub(super) struct Watched {
    /// The process.
    pub(super) process: Process,
    /// Its pidfd.
    pub(super) pidfd: OwnedFd,
}

impl Watched {
    fn new(process: Process) -> Option<Self> {
        let pidfd = process.open().ok().flatten()?;
        Some(Self { process, pidfd })
    }
}

/// Forgets the members whose processes have ended: for a gateway that starts.
pub(super) fn forget_ended(network: &mut Network) {
    network.members.retain(|member| match member.origin {
        Origin::Namespace { owner, .. } => owner.is_alive(),
        Origin::Peer | Origin::Token { .. } => true,
    });
}

impl Service {
    pub(super) fn new(network: Network, place: Place, wire: Wire, names: NamesFile) -> Self {
        let owners = network.members.iter().filter_map(|member| match member.origin {
            Origin::Namespace { owner, .. } => Watched::new(owner),
            Origin::Peer | Origin::Token { .. } => None,
        });
        let owners = owners.collect();
        Self { network, place, wire, names, owners }
    }

    /// Those whose end is a member's.
    pub(super) fn owners(&self) -> &[Watched] {
        &self.owners
    }

    /// Does what is asked; none: it is to end.
    pub(super) fn on_request(&mut self, request: Request) -> Option<Response> {
        let done = match request {
            Request::Stop => return None,
            Request::Show => self.show(),
            Request::Admit(candidates) => self.admit(candidates),
            Request::Remove(name) => self.remove_named(&name),
        };
        Some(done.unwrap_or_else(|error| Response::Refused(error.to_string())))
    }

    /// The members of processes that have ended leave.
    pub(super) fn on_ended(&mut self) {
        self.owners.retain(|watched| watched.process.is_alive());
        let has_ended = |member: &Member| match member.origin {
            Origin::Namespace { owner, .. } => !owner.is_alive(),
            Origin::Peer | Origin::Token { .. } => false,
        };
        if let Err(error) = self.remove(has_ended) {
            eprintln!("usernet: {error}");
        }
    }

    /// Writes down where the members are, if that has changed. Without, a gateway that was killed would have to wait
    /// until they call.
    pub(super) fn remember_endpoints(&mut self) {
        let Ok(peers) = self.wire.peers() else { return };
        let mut has_changed = false;
        for member in &mut self.network.members {
            let peer = peers.iter().find(|peer| peer.public_key == member.public_key);
            let endpoint = peer.and_then(|peer| peer.endpoint);
            if endpoint.is_some() && endpoint != member.endpoint {
                member.endpoint = endpoint;
                has_changed = true;
            }
        }
        if has_changed && let Err(error) = self.place.save_network(&self.network) {
            eprintln!("usernet: {error}");
        }
    }

    fn show(&self) -> Result<Response, Error> {
        let peers = self.wire.peers().map_err(Error::system("the gateway's usernetd"))?;
        let seen = |member: &Member| {
            let live = peers.iter().find(|live| live.public_key == member.public_key);
            Seen {
                member: member.clone(),
                endpoint: live.and_then(|live| live.endpoint),
                handshake_unix: live.and_then(|live| live.last_handshake).map(|at| at.as_secs()),
                from_member: live.map_or(0, |live| live.rx_bytes),
                to_member: live.map_or(0, |live| live.tx_bytes),
            }
        };
        Ok(Response::Members(self.network.members.iter().map(seen).collect()))
    }

    fn admit(&mut self, candidates: Vec<Candidate>) -> Result<Response, Error> {
        // The end of a process and the next one's wish for its address may come in one turn.
        self.on_ended();
        let mut changed = self.network.clone();
        let mut members = Vec::new();
        for candidate in candidates {
            let member = member_of(&changed, candidate)?;
            changed.admit(member.clone()).map_err(refused)?;
            members.push(member);
        }
        self.place.save_network(&changed)?;
        let before = std::mem::replace(&mut self.network, changed);
        if let Err(error) = self.let_in(&members) {
            self.network = before;
            self.place.save_network(&self.network)?;
            for member in &members {
                self.wire.remove(&member.public_key).ok();
            }
            return Err(error);
        }
        let endpoint = format!("127.0.0.1:{}", self.network.listen_port);
        Ok(Response::Admitted { terms: Terms::of(&self.network, endpoint), members })
    }

    fn let_in(&mut self, members: &[Member]) -> Result<(), Error> {
        for member in members {
            if let Origin::Namespace { owner, .. } = member.origin {
                let watched = Watched::new(owner);
                self.owners.push(watched.ok_or_else(|| {
                    Error::system(format!("process {}", owner.pid))(io::Error::other("has ended"))
                })?);
            }
            self.wire.add(member).map_err(Error::system("the gateway's usernetd"))?;
        }
        self.names.write(&self.network)
    }

    fn remove_named(&mut self, name: &str) -> Result<Response, Error> {
        let Some(member) = self.network.member(name) else {
            let names: Vec<_> = self.network.members.iter().map(|m| m.name.as_str()).collect();
            let known = if names.is_empty() { "it has no member".into() } else { names.join(", ") };
            return Err(refused_with(format!("there is no member `{name}` ({known})")));
        };
        if let Origin::Namespace { instance, .. } = &member.origin {
            return Err(refused_with(format!(
                "`{name}` is the namespace `{instance}`, a member as long as it runs: usernet rm {instance}"
            )));
        }
        let key = member.public_key;
        self.remove(|member| member.public_key == key)?;
        Ok(Response::Done)
    }

    fn remove(&mut self, is_to_go: impl Fn(&Member) -> bool) -> Result<(), Error> {
        let (gone, stay): (Vec<_>, Vec<_>) =
            self.network.members.drain(..).partition(|member| is_to_go(member));
        self.network.members = stay;
        if gone.is_empty() {
            return Ok(());
        }
        let cut = gone.iter().map(|member| self.wire.remove(&member.public_key));
        let cut = cut.fold(Ok(()), Result::and).map_err(Error::system("the gateway's usernetd"));
        self.place.save_network(&self.network)?;
        self.names.write(&self.network)?;
        cut
    }
}

fn member_of(network: &Network, candidate: Candidate) -> Result<Member, Error> {
    let addresses = network.allocate(&candidate.addresses).map_err(refused)?;
    let name = match candidate.any_name {
        true => network.free_name(&candidate.name),
        false => candidate.name,
    };
    Ok(Member {
        name,
        addresses,
        public_key: candidate.public_key,
        origin: candidate.origin,
        since_unix: now_unix(),
        endpoint: None,
    })
}

fn refused(reason: super::network::Refused) -> Error {
    refused_with(reason.to_string())
}

fn refused_with(reason: String) -> Error {
    Error::Refused(reason)
}

/// Seconds since 1970.
pub(super) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
