//! Why a namespace could not be attached to: what was attempted, on what, why, and what to do about it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use nix::errno::Errno;

use super::message::{Failure, Place, Step};
use super::tunnels::{TUNNELS_MAX, TunnelDevice};
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
    /// The same of a tunnel's device.
    #[error(
        "{name} exists already in the network namespace {target}: give the tunnel another name, or remove the device"
    )]
    TunnelExists {
        /// The device.
        name: String,
        /// The namespace.
        target: Target,
    },
    /// More tunnels than a namespace gets.
    #[error("too many tunnels: at most {TUNNELS_MAX} in a namespace")]
    TooManyTunnels,
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
        let Failure { step, errno, place } = failure;
        let target = request.target.clone();
        let source = io::Error::from(errno);
        match (step, errno) {
            (Step::EnterNamespace, Errno::EPERM | Errno::EACCES) => {
                Self::MayNotEnter { target, source }
            }
            (Step::EnterNamespace, Errno::ENOENT | Errno::ESRCH) => Self::NamespaceGone { target },
            (Step::JoinUserns, _) => {
                let path = request.userns.clone().unwrap_or_default();
                Self::UserNamespace { path, source }
            }
            // ENOTTY: something else has the name, such as a file that a sandbox has put over it.
            (Step::OpenTun, _) | (Step::CreateTap | Step::MakeTunnel, Errno::ENOTTY) => {
                Self::NoTun { source }
            }
            // `EINVAL`: one of that name is there, and of another kind: with other queues, or a TUN (`tun_set_iff`).
            (Step::CreateTap, Errno::EBUSY | Errno::EINVAL) => {
                Self::TapExists { name: request.tap_name.clone(), target }
            }
            (Step::MakeTunnel, Errno::EBUSY) => {
                Self::TunnelExists { name: tunnel_name(place, request).to_owned(), target }
            }
            (Step::Isolate, _) => Self::Helper { what: "set up the helper process", source },
            (_, _) => Self::Device { what: attempted(step, place, request), target, source },
        }
    }
}

/// What was attempted, on what.
fn attempted(step: Step, place: Place, request: &Request) -> String {
    let name = &request.tap_name;
    let tunnel = tunnel_name(place, request);
    let given = |net: Option<String>, family| match net {
        Some(net) => format!("give {name} the address {net}"),
        None => format!("give {name} an {family} address"),
    };
    let routed = |gateway: Option<IpAddr>, family| match gateway {
        Some(gateway) => format!("set the default route by {gateway} on {name}"),
        None => format!("set the {family} default route on {name}"),
    };
    let item = usize::from(place.item);
    let network = |(address, prefix): (IpAddr, u8)| format!("{address}/{prefix}");
    match step {
        Step::Isolate => "set up the helper process".to_owned(),
        Step::JoinUserns => "join the user namespace".to_owned(),
        Step::EnterNamespace => "enter".to_owned(),
        Step::OpenTun => "open /dev/net/tun".to_owned(),
        Step::CreateTap => format!("make the TAP {name}"),
        Step::SetOffload => format!("set the offload of {name}"),
        Step::FindTap => format!("find {name}"),
        Step::SetLink => format!("set the MTU {} and the Ethernet address of {name}", request.mtu),
        Step::LoopbackUp => "bring up lo".to_owned(),
        Step::TapUp => format!("bring up {name}"),
        Step::Address4 => given(request.net4.map(|n| network((n.guest.into(), n.prefix))), "IPv4"),
        Step::Address6 => given(request.net6.map(|n| network((n.guest.into(), n.prefix))), "IPv6"),
        Step::Route4 => routed(request.net4.map(|net| net.gateway.into()), "IPv4"),
        Step::Route6 => routed(request.net6.map(|net| net.gateway.into()), "IPv6"),
        Step::MakeTunnel => format!("make the device {tunnel}"),
        Step::TunnelOffload => format!("set the offload of {tunnel}"),
        Step::TunnelLink => format!("set the MTU of {tunnel}"),
        Step::TunnelAddress => {
            let address = device(place, request).and_then(|device| device.addresses.get(item));
            format!("give {tunnel} the address {}", address.copied().map_or(String::new(), network))
        }
        Step::TunnelUp => format!("bring up {tunnel}"),
        Step::TunnelRoute => {
            let route = device(place, request).and_then(|device| device.routes.get(item));
            let to = route.map_or(String::new(), |route| network(route.to));
            format!("route {to} into {tunnel}")
        }
        Step::Watch => "watch for the end".to_owned(),
    }
}

fn device(place: Place, request: &Request) -> Option<&TunnelDevice> {
    request.tunnels.get(usize::from(place.tunnel))
}

fn tunnel_name(place: Place, request: &Request) -> &str {
    device(place, request).map_or("the tunnel", |device| &device.name)
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
