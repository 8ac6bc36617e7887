//! From the kernel's errors to what the guest can be told.

use std::io;

use usernet_core::HostError;

/// An errno as the core knows it.
pub(crate) fn host_error(error: &io::Error) -> HostError {
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::ECONNREFUSED => HostError::Refused,
        libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN | libc::ECONNABORTED => HostError::Reset,
        libc::ENETUNREACH | libc::ENETDOWN => HostError::NetUnreachable,
        libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENODEV => HostError::HostUnreachable,
        libc::ETIMEDOUT => HostError::TimedOut,
        libc::EACCES | libc::EPERM => HostError::Prohibited,
        libc::EMSGSIZE => HostError::TooBig { mtu: 0 },
        libc::EMFILE
        | libc::ENFILE
        | libc::ENOMEM
        | libc::ENOBUFS
        | libc::EAGAIN
        | libc::EADDRINUSE
        | libc::EADDRNOTAVAIL => HostError::NoRoom,
        libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT | libc::EPFNOSUPPORT => {
            HostError::Unsupported
        }
        other => HostError::Other(other),
    }
}

/// ICMP destination unreachable (RFC 792, RFC 1812).
const UNREACHABLE4: u8 = 3;
/// ICMP time exceeded.
const TIME_EXCEEDED4: u8 = 11;
/// ICMPv6 destination unreachable (RFC 4443).
const UNREACHABLE6: u8 = 1;
/// ICMPv6 packet too big.
const TOO_BIG6: u8 = 2;
/// ICMPv6 time exceeded.
const TIME_EXCEEDED6: u8 = 3;

/// An ICMP error; `info` is the MTU where one belongs to it.
pub(crate) fn icmp4_error(kind: u8, code: u8, info: u32) -> HostError {
    match (kind, code) {
        (UNREACHABLE4, 0) => HostError::NetUnreachable,
        (UNREACHABLE4, 1) => HostError::HostUnreachable,
        (UNREACHABLE4, 3) => HostError::Refused,
        (UNREACHABLE4, 4) => HostError::TooBig { mtu: info },
        (UNREACHABLE4, 9 | 10 | 13) => HostError::Prohibited,
        (TIME_EXCEEDED4, 0) => HostError::TimeExceeded,
        _ => HostError::Icmp { kind, code },
    }
}

/// An ICMPv6 error; `info` is the MTU where one belongs to it.
pub(crate) fn icmp6_error(kind: u8, code: u8, info: u32) -> HostError {
    match (kind, code) {
        (UNREACHABLE6, 0) => HostError::NetUnreachable,
        (UNREACHABLE6, 1) => HostError::Prohibited,
        (UNREACHABLE6, 3) => HostError::HostUnreachable,
        (UNREACHABLE6, 4) => HostError::Refused,
        (TOO_BIG6, _) => HostError::TooBig { mtu: info },
        (TIME_EXCEEDED6, 0) => HostError::TimeExceeded,
        _ => HostError::Icmp { kind, code },
    }
}
