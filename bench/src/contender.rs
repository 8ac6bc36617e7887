//! Who takes part.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use usernet_lab::wireguard::Implementation;
use usernet_lab::{Backend, Lab, lab};

use crate::cases::TUNNEL;
use crate::machine;

/// A program with its options.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// In tables.
    pub(crate) name: String,
    /// How it is started.
    pub(crate) kind: Kind,
    /// The program; none: the one that this workspace builds, or nothing at all.
    pub(crate) program: Option<PathBuf>,
    /// More options, in its own words.
    pub(crate) options: Vec<String>,
    /// Threads that it is told to translate with: for a scaling curve.
    pub(crate) workers: Option<u32>,
    /// Congestion control of the host's and the guest's namespace; none: what the kernel gives them.
    pub(crate) congestion: Option<String>,
}

/// What a contender is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// What is developed here.
    Own,
    /// What it is compared with.
    Peer,
    /// What the machine can do.
    Limit,
}

/// How a contender is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody: client and server on the host itself. The limit of the machine.
    Loopback,
    /// Nobody: a veth pair between the guest and the host. The limit of the kernel for two namespaces.
    Veth,
    /// The least that a translator does: the limit of what reads a TAP and writes to sockets. TCP over IPv4 from the guest.
    Bare,
    /// `usernetd`.
    Usernetd(Backend),
    /// `slirp4netns`.
    Slirp4netns,
    /// `pasta`.
    Pasta,
    /// A WireGuard that joins two namespaces.
    Tunnel(Implementation),
}

impl Kind {
    /// Whether it is somebody who takes part in this group of cases.
    pub(crate) fn is_in(self, group: &str) -> bool {
        match self {
            // Both backends leave tunnels to the same thread.
            Self::Usernetd(backend) => group != TUNNEL || backend == Backend::IoUring,
            Self::Tunnel(_) => group == TUNNEL,
            Self::Bare => {
                ["latency", "connections", "http", "stream", "small-writes"].contains(&group)
            }
            Self::Loopback | Self::Veth | Self::Slirp4netns | Self::Pasta => group != TUNNEL,
        }
    }
}

/// How names of contenders begin, which says how they are started.
const NAMES: &str = "usernetd, slirp4netns, pasta, wireguard-go and boringtun-cli";

impl Contender {
    fn new(name: &str, kind: Kind) -> Self {
        let (program, options, workers, congestion) = (None, Vec::new(), None, None);
        Self { name: name.to_owned(), kind, program, options, workers, congestion }
    }

    /// What is built here and what is installed.
    pub(crate) fn installed() -> Vec<Self> {
        let mut all = vec![
            Self::new("usernetd", Kind::Usernetd(Backend::IoUring)),
            Self::new("usernetd-epoll", Kind::Usernetd(Backend::Epoll)),
        ];
        for (name, kind) in [("slirp4netns", Kind::Slirp4netns), ("pasta", Kind::Pasta)] {
            let program = find(name);
            if program.is_none() {
                eprintln!("{name} is not installed: left out");
            }
            all.extend(program.map(|path| Self { program: Some(path), ..Self::new(name, kind) }));
        }
        for implementation in Implementation::ALL {
            let (name, program) = (implementation.name(), implementation.program());
            if program.is_none() {
                eprintln!("{name} is not installed: left out");
            }
            let kind = Kind::Tunnel(implementation);
            all.extend(program.map(|path| Self { program: Some(path), ..Self::new(name, kind) }));
        }
        all.push(Self::new("bare", Kind::Bare));
        all.push(Self::new("veth", Kind::Veth));
        all.push(Self::new("loopback", Kind::Loopback));
        all
    }

    /// `NAME=PATH [OPTION]...`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("write NAME=PATH")?;
        let mut words = command.split_whitespace();
        let path = words.next().ok_or("the path is missing")?;
        let kind = if name.starts_with("usernetd-epoll") {
            Kind::Usernetd(Backend::Epoll)
        } else if name.starts_with("usernetd") {
            Kind::Usernetd(Backend::IoUring)
        } else if name.starts_with("slirp4netns") {
            Kind::Slirp4netns
        } else if name.starts_with("pasta") {
            Kind::Pasta
        } else if name.starts_with("wireguard-go") {
            Kind::Tunnel(Implementation::Go2023)
        } else if name.starts_with("boringtun-cli") {
            Kind::Tunnel(Implementation::Boringtun)
        } else {
            return Err(format!("a name starts with one of {NAMES}"));
        };
        let options = words.map(str::to_owned).collect();
        Ok(Self { program: Some(path.into()), options, ..Self::new(name, kind) })
    }

    /// `usernetd` with this many threads that translate.
    pub(crate) fn with_workers(workers: u32) -> Self {
        let options = vec!["--workers".to_owned(), workers.to_string()];
        let name = format!("usernetd-w{workers}");
        let kind = Kind::Usernetd(Backend::IoUring);
        Self { options, workers: Some(workers), ..Self::new(&name, kind) }
    }

    /// What it says about its version.
    pub(crate) fn version(&self, lab: &Lab) -> Option<String> {
        let own = || lab.program("usernetd");
        match self.role() {
            Role::Limit => None,
            Role::Own | Role::Peer => {
                let program = self.program.as_ref();
                let program = program.map_or_else(own, |path| path.to_string_lossy().into_owned());
                machine::version(&program, "--version")
            }
        }
    }

    pub(crate) fn role(&self) -> Role {
        match self.kind {
            Kind::Loopback | Kind::Veth | Kind::Bare => Role::Limit,
            Kind::Usernetd(_) => Role::Own,
            Kind::Slirp4netns | Kind::Pasta | Kind::Tunnel(_) => Role::Peer,
        }
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = lab::search_path();
    path.split(':').map(|folder| PathBuf::from(folder).join(name)).find(|path| path.exists())
}
