//! The tools under test, and the tests that are made for each of them.

use std::any::Any;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use usernet_lab::{Lab, skip};

use crate::trixie;

/// Whose program answers to the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The original, as the distribution installs it.
    Reference,
    /// `usernetd`.
    Ours,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Ours => "ours",
        })
    }
}

/// A tool: a name, and who answers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// `slirp4netns` or `pasta`.
    pub name: &'static str,
    /// Whose it is.
    pub kind: Kind,
}

impl std::fmt::Display for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.kind)
    }
}

impl Tool {
    /// A program to call in this lab. Its file has the tool's name, and is in a folder of its own, [`Tool::folder`].
    pub fn path(self, lab: &Lab) -> String {
        let path = self.folder(lab).join(self.name);
        path.to_string_lossy().into_owned()
    }

    /// A folder with nothing in it but this tool. It is made the first time.
    pub fn folder(self, lab: &Lab) -> PathBuf {
        let folder = lab.dir().join(format!("{}-{}", self.name, self.kind));
        if !folder.exists() {
            fs::create_dir(&folder).expect("a folder in the lab's");
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))
                .expect("our own folder");
            let target = match self.kind {
                // Another distribution's, in the same place, if the lab's host has that.
                Kind::Reference => {
                    installed(self.name).unwrap_or_else(|| Path::new("/usr/bin").join(self.name))
                }
                Kind::Ours => PathBuf::from(lab.program("usernetd")),
            };
            symlink(target, folder.join(self.name)).expect("a symlink in our own folder");
        }
        folder
    }

    /// Why this tool cannot be tested here, if so.
    pub fn missing(self) -> Option<String> {
        let is_there = self.kind == Kind::Ours || installed(self.name).is_some();
        (!is_there).then(|| format!("{} is not installed", self.name))
    }
}

/// Where the distribution has put a program.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    let path = usernet_lab::lab::search_path();
    let candidates = path.split(':').map(|folder| Path::new(folder).join(name));
    candidates.into_iter().find(|path| path.exists())
}

/// What is known about the original in one test.
#[derive(Clone, Copy, Debug)]
pub enum Known {
    /// It does the same.
    Same,
    /// It fails, and how: the failure's message has this text in it.
    Fails {
        /// Why it fails.
        why: &'static str,
        /// In the message of the panic.
        says: &'static str,
    },
    /// It does the same or fails so, by who is quicker on the day.
    Races {
        /// Why it fails at times.
        why: &'static str,
        /// In the message of the panic.
        says: &'static str,
    },
}

/// Runs one test for one tool. What it needs are programs, or `debian 13`. [`both_tools!`](crate::both_tools) calls it.
pub fn run(name: &str, tool: Tool, needs: &[&str], known: Known, body: fn(Tool)) {
    let name = format!("{name} ({tool})");
    let (debian13, programs): (Vec<_>, Vec<_>) =
        needs.iter().partition(|need| **need == "debian 13");
    let reason =
        if debian13.is_empty() { tool.missing() } else { trixie::missing().map(str::to_owned) };
    if let Some(reason) = skip::missing(&programs).or(reason) {
        return skip::skip(&name, &reason);
    }
    match (tool.kind, known) {
        (Kind::Ours, _) => body(tool),
        (Kind::Reference, known) => reference(&tool.to_string(), known, || body(tool)),
    }
}

/// How often an original is tried until it does what is known of it. Its races are its own and not what a test is
/// about; ours is tried once.
const REFERENCE_TRIES: u32 = 3;

/// Runs a test for an original, which passes or fails as is known of it.
pub(crate) fn reference(who: &str, known: Known, body: impl Fn()) {
    for tried in 1..=REFERENCE_TRIES {
        let outcome = catch_unwind(AssertUnwindSafe(&body));
        let message = outcome.as_ref().err().map(|panic| said(&**panic));
        let surprise = match (message, known) {
            (None, Known::Same | Known::Races { .. }) => return,
            (Some(message), Known::Fails { says, .. } | Known::Races { says, .. })
                if message.contains(says) =>
            {
                return;
            }
            (Some(message), Known::Same) => format!("{who} fails: {message}"),
            (None, Known::Fails { why, .. }) => {
                format!("{who} passes, though it is known to fail: {why}")
            }
            (Some(message), Known::Fails { why, .. } | Known::Races { why, .. }) => {
                format!("{who} fails, but not because {why}: {message}")
            }
        };
        assert!(tried < REFERENCE_TRIES, "{surprise}");
    }
}

/// The message of a panic.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// Makes of each function two tests, one per [`Kind`]:
///
/// ```text
/// both_tools! { "slirp4netns";
///     fn a_page_is_fetched(tool) needs ["curl"] { … }
///     fn ipv6_ports_are_published(tool) needs [] reference_fails("host_addr is IPv4 only", says "bad host_addr") { … }
/// }
/// ```
///
/// `"slirp4netns" needs [ … ];` in front names what all of them need. With `reference_fails` the test for the original asserts that the body fails, by a panic that says this; with `reference_races` that it does so or passes.
#[macro_export]
macro_rules! both_tools {
    ($tool:literal; $($functions:tt)+) => { $crate::both_tools! { $tool needs []; $($functions)+ } };
    ($tool:literal needs $common:tt; $(
        $(#[$attribute:meta])*
        fn $name:ident($argument:ident) needs $needs:tt
        $(reference_fails($why:literal, says $says:literal))?
        $(reference_races($race:literal, says $told:literal))? $body:block
    )+) => {$(
        $(#[$attribute])*
        fn $name($argument: $crate::Tool) $body

        mod $name {
            fn run(kind: $crate::Kind) {
                let fails = None::<$crate::tool::Known>
                    $(.or(Some($crate::tool::Known::Fails { why: $why, says: $says })))?
                    $(.or(Some($crate::tool::Known::Races { why: $race, says: $told })))?;
                let known = fails.unwrap_or($crate::tool::Known::Same);
                let tool = $crate::Tool { name: $tool, kind };
                let needs: [&[&str]; 2] = [&$common, &$needs];
                $crate::tool::run(stringify!($name), tool, &needs.concat(), known, super::$name);
            }

            #[test]
            fn reference() {
                run($crate::Kind::Reference);
            }

            #[test]
            fn ours() {
                run($crate::Kind::Ours);
            }
        }
    )+};
}
