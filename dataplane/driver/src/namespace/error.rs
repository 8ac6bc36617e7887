//! Why a namespace could not be attached to: what was attempted, on what, why, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use super::message::{Failure, Step};
use super::{Request, Target};

/// Why [`attach`](super::attach) failed. Each prints as one line. What the caller can do about it is said without the
/// names of options: several command lines end here.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The process or the file does not exist (any more).
    #[error("the network namespace {target} is gone")]
    NamespaceGone {
        /// The namespace.
        target: Target,
    },
    /// The file is something else.
    #[error("{path} is not a network namespace: give a PID, /proc/PID/ns/net or /run/netns/NAME", path = .path.display())]
    NotANamespace {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refuses us.
    #[error(
        "may not enter the network namespace {target}: {source}; it belongs to another user's namespace: \
         run as that user, or name that namespace"
    )]
    MayNotEnter {
        /// The namespace.
        target: Target,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What was named as the user namespace leads nowhere.
    #[error("cannot join the user namespace {path}: {source}; name one as /proc/PID/ns/user", path = .path.display())]
    UserNamespace {
        /// What was given.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no way to make a TAP here.
    #[error("/dev/net/tun: {source}; {}", tun_advice(.source))]
    NoTun {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A device of that name is there.
    #[error(
        "{name} exists already in the network namespace {target} (another usernetd?): choose another name"
    )]
    TapExists {
        /// The device.
        name: String,
        /// The namespace.
        target: Target,
    },
    /// The name cannot be a device's.
    #[error(
        "{name:?} cannot be the name of a network device: 1 to 15 bytes, no '/', ':', '%' or spaces"
    )]
    TapName {
        /// The name.
        name: String,
    },
    /// A step of making or configuring the device failed.
    #[error("cannot {what} in the network namespace {target}: {source}")]
    Device {
        /// What was attempted, on what.
        what: String,
        /// The namespace.
        target: Target,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The helper process could not be had.
    #[error("cannot {what}: {source}")]
    Helper {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The helper ended before its work was done.
    #[error("the helper process in the network namespace {target} was killed before it was ready")]
    HelperKilled {
        /// The namespace.
        target: Target,
    },
}

impl AttachError {
    /// For `map_err`.
    pub(super) fn helper(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Helper { what, source }
    }

    /// What the helper said, in the words of the request.
    pub(super) fn from_failure(failure: Failure, request: &Request) -> Self {
        let Failure { step, errno } = failure;
        let target = request.target.clone();
        let name = &request.tap_name;
        let source = io::Error::from(errno);
        let what = match (step, errno) {
            (Step::EnterNamespace, Errno::EPERM | Errno::EACCES) => {
                return Self::MayNotEnter { target, source };
            }
            (Step::EnterNamespace, Errno::ENOENT | Errno::ESRCH) => {
                return Self::NamespaceGone { target };
            }
            (Step::JoinUserns, _) => {
                let path = request.userns.clone().unwrap_or_default();
                return Self::UserNamespace { path, source };
            }
            // ENOTTY: something else has the name, such as a file that a sandbox has put over it.
            (Step::OpenTun, _) | (Step::CreateTap, Errno::ENOTTY) => return Self::NoTun { source },
            (Step::CreateTap, Errno::EBUSY) => {
                return Self::TapExists { name: name.clone(), target };
            }
            (Step::Isolate, _) => {
                return Self::Helper { what: "set up the helper process", source };
            }
            (Step::EnterNamespace, _) => "enter".to_owned(),
            (Step::CreateTap, _) => format!("make the TAP {name}"),
            (Step::SetOffload, _) => format!("set the offload of {name}"),
            (Step::FindTap, _) => format!("find {name}"),
            (Step::SetLink, _) => {
                format!("set the MTU {} and the Ethernet address of {name}", request.mtu)
            }
            (Step::LoopbackUp, _) => "bring up lo".to_owned(),
            (Step::TapUp, _) => format!("bring up {name}"),
            (Step::Address4, _) => match request.net4 {
                Some(net) => format!("give {name} the address {}/{}", net.guest, net.prefix),
                None => format!("give {name} an IPv4 address"),
            },
            (Step::Address6, _) => match request.net6 {
                Some(net) => format!("give {name} the address {}/{}", net.guest, net.prefix),
                None => format!("give {name} an IPv6 address"),
            },
            (Step::Route4, _) => match request.net4 {
                Some(net) => format!("set the default route by {} on {name}", net.gateway),
                None => format!("set the IPv4 default route on {name}"),
            },
            (Step::Route6, _) => match request.net6 {
                Some(net) => format!("set the default route by {} on {name}", net.gateway),
                None => format!("set the IPv6 default route on {name}"),
            },
            (Step::Watch, _) => "watch for the end".to_owned(),
        };
        Self::Device { what, target, source }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "of PID {pid}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What mends a `/dev/net/tun` that cannot be opened.
fn tun_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "the kernel module `tun` is not loaded: modprobe tun; in a container: --device /dev/net/tun"
        }
        Some(libc::EACCES) => "its mode should be 0666: chmod 666 /dev/net/tun",
        Some(libc::EPERM) => "the container does not allow it: --device /dev/net/tun",
        Some(_) | None => "it should be the character device 10:200 with mode 0666",
    }
}
