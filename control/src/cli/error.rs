//! What can go wrong, as the user is told it, and with which exit status.
//!
//! Three statuses are the shell's (126, 127, 128 + signal); 125 says that `usernet run` or `exec`
//! itself failed before the command was started, as with podman and `env`; 1 is every other
//! failure, 2 a command line that is wrong.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use super::namespaces::StepFailed;

/// The exit statuses that are ours and not the command's.
pub(crate) mod status {
    /// The command line is wrong.
    pub(crate) const USAGE: u8 = 2;
    /// Something failed.
    pub(crate) const FAILURE: u8 = 1;
    /// `run` and `exec`: something failed before the command was started.
    pub(crate) const NOT_STARTED: u8 = 125;
    /// `run` and `exec`: the command cannot be executed.
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    /// `run` and `exec`: the command was not found.
    pub(crate) const NOT_FOUND: u8 = 127;
    /// Added to the number of the signal that ended the command.
    pub(crate) const SIGNAL_BASE: u8 = 128;
}

/// A failure of `usernet`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line parses, but asks for something that does not exist or does not fit.
    #[error("{0}")]
    Usage(String),
    /// No directory for the instances.
    #[error("the runtime directory {} cannot be used: {source}", path.display())]
    RuntimeDir {
        /// The last place that was tried.
        path: PathBuf,
        /// Why it was refused.
        source: io::Error,
    },
    /// A file or a system call of our own.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The answer.
        source: io::Error,
    },
    /// The namespaces could not be made.
    #[error("{0}")]
    Namespace(StepFailed),
    /// The daemon did not become ready; what it wrote is the text.
    #[error("the network could not be set up: {0}")]
    Daemon(String),
    /// The control socket of an instance did not answer as it should.
    #[error("instance `{name}`: {message}")]
    Api {
        /// The instance.
        name: String,
        /// What the client or the daemon said.
        message: String,
    },
    /// There is such an instance already.
    #[error("an instance named `{0}` exists already")]
    NameTaken(String),
    /// There is none of that name.
    #[error("no instance named `{0}`")]
    NoInstance(String),
    /// There is such a virtual network already.
    #[error("a virtual network named `{0}` exists already")]
    VnetExists(String),
    /// There is no virtual network of that name.
    #[error("no virtual network named `{name}`")]
    NoVnet {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A virtual network does not do what it is asked for.
    #[error("network `{network}`: {reason}")]
    Vnet {
        /// The network.
        network: String,
        /// Why not.
        reason: String,
    },
    /// A gateway does not do what it is asked for; it tells whoever asked, who knows which network it is.
    #[error("{0}")]
    Refused(String),
    /// Namespaces are members of the network that is to be removed.
    #[error("network `{network}` is in use by {users}")]
    VnetInUse {
        /// The network.
        network: String,
        /// The instances.
        users: String,
    },
    /// The name was left out, and that does not say which one.
    #[error("{0}")]
    WhichInstance(String),
    /// Processes run in the namespaces that are to be removed.
    #[error("`{name}` is in use by {users}")]
    InUse {
        /// The instance.
        name: String,
        /// Its processes, as text.
        users: String,
    },
    /// The command could not be executed.
    #[error("{command}: {source}")]
    Exec {
        /// The command, as given.
        command: String,
        /// Why not.
        source: io::Error,
    },
    /// Something that is not ours is where a file of ours would go.
    #[error("{} is there already, and not by usernet install: nothing was changed", .0.display())]
    Foreign(PathBuf),
    /// Nothing of ours is known of there.
    #[error("nothing was installed in {} by usernet install", .0.display())]
    NotInstalled(PathBuf),
    /// A signal came before the command was started.
    #[error("ended by signal {0}")]
    Interrupted(i32),
}

impl Error {
    /// A failed system call or file, and what it was for.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// What the user can do about it.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Namespace(failed) => failed.help(),
            Self::NameTaken(name) => {
                Some(format!("take another name, or remove it: usernet rm -f {name}"))
            }
            Self::NoInstance(_) => Some("list them: usernet ls".into()),
            Self::InUse { name, .. } => {
                Some(format!("end them and remove it: usernet rm -f {name}"))
            }
            Self::Daemon(_) => Some("see what is missing: usernet doctor".into()),
            Self::RuntimeDir { .. } => {
                Some("name another one: USERNET_RUNTIME_DIR=/some/directory".into())
            }
            Self::Foreign(_) => Some("move it away, or give another --dir".into()),
            Self::VnetExists(name) => Some(format!(
                "take another name, or look at it: usernet vnet show {name}; remove it: usernet vnet rm {name}"
            )),
            Self::NoVnet { name, known } if known.is_empty() => {
                Some(format!("make it: usernet vnet create {name}"))
            }
            Self::NoVnet { known, .. } => Some(format!("there are: {}", known.join(", "))),
            Self::VnetInUse { network, .. } => {
                Some(format!("end them, or cut them off: usernet vnet rm --force {network}"))
            }
            Self::Usage(_)
            | Self::Vnet { .. }
            | Self::Refused(_)
            | Self::NotInstalled(_)
            | Self::System { .. }
            | Self::Api { .. }
            | Self::WhichInstance(_)
            | Self::Exec { .. }
            | Self::Interrupted(_) => None,
        }
    }

    /// The exit status; `not_started` is what a plain failure means for the subcommand.
    pub(crate) fn exit_code(&self, not_started: u8) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => status::USAGE,
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                status::NOT_FOUND
            }
            Self::Exec { .. } => status::NOT_EXECUTABLE,
            Self::Interrupted(signal) => signal_status(*signal),
            Self::RuntimeDir { .. }
            | Self::System { .. }
            | Self::Namespace(_)
            | Self::Daemon(_)
            | Self::Api { .. }
            | Self::NameTaken(_)
            | Self::NoInstance(_)
            | Self::WhichInstance(_)
            | Self::Foreign(_)
            | Self::NotInstalled(_)
            | Self::VnetExists(_)
            | Self::NoVnet { .. }
            | Self::Vnet { .. }
            | Self::Refused(_)
            | Self::VnetInUse { .. }
            | Self::InUse { .. } => not_started,
        })
    }
}

/// The exit status for an end by a signal, as shells give it.
pub(crate) fn signal_status(signal: i32) -> u8 {
    u8::try_from(signal).map_or(u8::MAX, |signal| status::SIGNAL_BASE.saturating_add(signal))
}
