//! Who takes part.

use std::path::PathBuf;

use usernet_lab::{Backend, lab};

/// A program with its options.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    /// In tables.
    pub(crate) name: String,
    /// How it is started.
    pub(crate) kind: Kind,
    /// The program; none: the one that this workspace builds, or nothing at all.
    pub(crate) program: Option<PathBuf>,
}

/// How a contender is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody: client and server on the host itself. The limit of the machine.
    Loopback,
    /// `usernetd`.
    Usernetd(Backend),
    /// `slirp4netns`.
    Slirp4netns,
    /// `pasta`.
    Pasta,
}

impl Contender {
    /// What is built here and what is installed.
    pub(crate) fn installed() -> Vec<Self> {
        let own = |name: &str, kind| Self { name: name.to_owned(), kind, program: None };
        let mut all = vec![
            own("loopback", Kind::Loopback),
            own("usernetd", Kind::Usernetd(Backend::IoUring)),
            own("usernetd-epoll", Kind::Usernetd(Backend::Epoll)),
        ];
        for (name, kind) in [("slirp4netns", Kind::Slirp4netns), ("pasta", Kind::Pasta)] {
            let program = find(name);
            if program.is_none() {
                eprintln!("{name} is not installed: left out");
            }
            all.extend(program.map(|path| Self {
                name: name.to_owned(),
                kind,
                program: Some(path),
            }));
        }
        all
    }

    /// `NAME=PATH`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, path) = text.split_once('=').ok_or("write NAME=PATH")?;
        let kind = if name.starts_with("usernetd-epoll") {
            Kind::Usernetd(Backend::Epoll)
        } else if name.starts_with("usernetd") {
            Kind::Usernetd(Backend::IoUring)
        } else if name.starts_with("slirp4netns") {
            Kind::Slirp4netns
        } else if name.starts_with("pasta") {
            Kind::Pasta
        } else {
            return Err("a name starts with usernetd, slirp4netns or pasta".to_owned());
        };
        Ok(Self { name: name.to_owned(), kind, program: Some(path.into()) })
    }

    /// Whether it is something that usernetd is compared with.
    pub(crate) fn is_peer(&self) -> bool {
        match self.kind {
            Kind::Slirp4netns | Kind::Pasta => true,
            Kind::Loopback | Kind::Usernetd(_) => false,
        }
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let path = lab::search_path();
    path.split(':').map(|folder| PathBuf::from(folder).join(name)).find(|path| path.exists())
}
