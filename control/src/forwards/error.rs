//! Why a set of forwards is not in force.

use nix::errno::Errno;
use usernet_core::rules::Protocol;

use super::{FORWARDS_MAX, LISTENERS_MAX};
use crate::spec::{Spec, protocol_name};

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
        /// ` by NAME (pid N)`, ` in the namespace`, or nothing where that cannot be read.
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
    /// The address is not there.
    #[error("cannot listen on {at}: {source}; it takes an address of {place}")]
    AddressNotHere {
        /// Where.
        at: String,
        /// This host, or the namespace.
        place: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// There is no IPv6.
    #[error("cannot listen on {at}: {place} has no IPv6")]
    NoIpv6 {
        /// Where.
        at: String,
        /// This host, or the namespace.
        place: &'static str,
    },
    /// The link is no namespace's, and nobody can listen behind it.
    #[error("cannot listen on {at}: the guest is no network namespace")]
    NoNamespace {
        /// Where.
        at: String,
    },
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
    /// A forward that nobody asked for by name cannot be removed by name.
    #[error("{0} follows a program that listens, and goes when that does")]
    Automatic(Box<Spec>),
    /// The forward is not there.
    #[error("there is no forward {0}")]
    NotFound(Box<Spec>),
    /// More forwards or ports than there may be.
    #[error(
        "too many forwards: at most {FORWARDS_MAX}, and {LISTENERS_MAX} listening sockets (one per port and family)"
    )]
    TooMany,
}
