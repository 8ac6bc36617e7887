//! Who we are: one binary is `usernetd`, `slirp4netns` and `pasta`, by the name it was called by.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use crate::{daemon, pasta, slirp4netns};

/// A program that ends in a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The native one.
    Usernetd,
    /// In the place of slirp4netns.
    Slirp4netns,
    /// In the place of pasta.
    Pasta,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Usernetd, Self::Slirp4netns, Self::Pasta];

    /// The name of its file, and of its messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usernetd => "usernetd",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        }
    }

    /// The one that a path names by its last part.
    pub fn of_path(path: &OsStr) -> Option<Self> {
        let name = Path::new(path).file_name()?;
        Self::ALL.into_iter().find(|program| name == program.name())
    }

    /// The one that a command line asks for, and its arguments, without a name in front: the file's name
    /// decides; else, as in `usernetd pasta …`, a first argument that is the name of a tool we stand in for.
    fn of_line(mut args: impl Iterator<Item = OsString>) -> (Self, Vec<OsString>) {
        let called = args.next().and_then(|path| Self::of_path(&path)).unwrap_or(Self::Usernetd);
        let mut args: Vec<OsString> = args.collect();
        let asked = Self::ALL.into_iter().find(|program| {
            args.first().is_some_and(|first| first == program.name())
                && *program != Self::Usernetd
                && called == Self::Usernetd
        });
        if asked.is_some() {
            args.remove(0);
        }
        (asked.unwrap_or(called), args)
    }
}

/// Something that messages advise to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// The user namespace to join.
    UserNamespace,
    /// The name of the device in the namespace.
    DeviceName,
    /// The guest's IPv4 network.
    Network4,
    /// The guest's IPv6 network.
    Network6,
    /// Who resolves names, in the place of the host's resolvers.
    Resolvers,
}

impl Program {
    /// How a setting is called on this program's command line; none: it cannot be set there.
    pub(crate) const fn option(self, setting: Setting) -> Option<&'static str> {
        match (self, setting) {
            (Self::Usernetd | Self::Pasta, Setting::UserNamespace) => Some("--userns"),
            (Self::Slirp4netns, Setting::UserNamespace) => Some("--userns-path"),
            (Self::Usernetd, Setting::DeviceName) => Some("--tap-name"),
            (Self::Slirp4netns, Setting::DeviceName) => Some("TAPNAME"),
            (Self::Pasta, Setting::DeviceName) => Some("--ns-ifname"),
            (Self::Usernetd | Self::Slirp4netns, Setting::Network4) => Some("--cidr"),
            (Self::Usernetd, Setting::Network6) => Some("--cidr6"),
            (Self::Pasta, Setting::Network4 | Setting::Network6) => Some("--address"),
            (Self::Usernetd, Setting::Resolvers) => Some("--dns"),
            (Self::Pasta, Setting::Resolvers) => Some("--dns-host"),
            (Self::Slirp4netns, Setting::Network6 | Setting::Resolvers) => None,
        }
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let (program, args) = Program::of_line(env::args_os());
    match program {
        Program::Usernetd => daemon::main(args),
        Program::Slirp4netns => slirp4netns::main(args),
        Program::Pasta => pasta::main(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_line(line: &str) -> (Program, Vec<String>) {
        let (program, args) = Program::of_line(line.split(' ').map(OsString::from));
        (program, args.into_iter().map(|arg| arg.into_string().unwrap()).collect())
    }

    #[test]
    fn the_name_of_the_file_or_else_the_first_argument_decides() {
        for (line, program, rest) in [
            ("/usr/bin/usernetd --netns 1", Program::Usernetd, "--netns 1"),
            ("/opt/whatever --netns 1", Program::Usernetd, "--netns 1"),
            ("pasta --config-net 1", Program::Pasta, "--config-net 1"),
            ("/usr/libexec/slirp4netns -c 1 tap0", Program::Slirp4netns, "-c 1 tap0"),
            ("usernetd pasta -f 1", Program::Pasta, "-f 1"),
            ("usernetd slirp4netns 1", Program::Slirp4netns, "1"),
            // A command to run, or an operand: not ours to judge.
            ("pasta slirp4netns 1", Program::Pasta, "slirp4netns 1"),
            ("pasta pasta 1", Program::Pasta, "pasta 1"),
            ("usernetd usernetd", Program::Usernetd, "usernetd"),
        ] {
            assert_eq!(of_line(line).0, program, "{line}");
            assert_eq!(of_line(line).1.join(" "), rest, "{line}");
        }
        assert_eq!(Program::of_line(std::iter::empty()), (Program::Usernetd, Vec::new()));
    }
}
