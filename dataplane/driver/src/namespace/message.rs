//! What daemon and helper say to each other, as bytes. Both are the same program: there is no version in it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;

use super::channel::MESSAGE_BYTES_MAX;
use crate::LinkOffload;

/// A step of the helper's work, for the error that says where it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    /// Its own set-up: signals, descriptors.
    Isolate,
    /// Joining the user namespace.
    JoinUserns,
    /// Joining the network namespace.
    EnterNamespace,
    /// Opening `/dev/net/tun`.
    OpenTun,
    /// `TUNSETIFF`.
    CreateTap,
    /// `TUNSETVNETHDRSZ`, `TUNSETOFFLOAD`.
    SetOffload,
    /// Opening the rtnetlink socket, looking up the device.
    FindTap,
    /// MTU, Ethernet address, queue length.
    SetLink,
    /// `lo` up.
    LoopbackUp,
    /// The TAP up.
    TapUp,
    /// The IPv4 address.
    Address4,
    /// The IPv4 default route.
    Route4,
    /// The IPv6 address.
    Address6,
    /// The IPv6 default route.
    Route6,
    /// Finding what keeps the namespace alive.
    Watch,
}

impl Step {
    const ALL: [Self; 15] = [
        Self::Isolate,
        Self::JoinUserns,
        Self::EnterNamespace,
        Self::OpenTun,
        Self::CreateTap,
        Self::SetOffload,
        Self::FindTap,
        Self::SetLink,
        Self::LoopbackUp,
        Self::TapUp,
        Self::Address4,
        Self::Route4,
        Self::Address6,
        Self::Route6,
        Self::Watch,
    ];
}

/// A step and the kernel's answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Where.
    pub(super) step: Step,
    /// Why.
    pub(super) errno: Errno,
}

impl Failure {
    /// For `map_err`.
    pub(super) fn at(step: Step) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { step, errno }
    }
}

/// The helper's first message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// All is set up. The TAP comes with it.
    Ready {
        /// What the TAP was set to.
        offload: LinkOffload,
        /// What could not be done.
        warnings: Vec<String>,
    },
    /// Nothing is set up.
    Failed(Failure),
}

impl Report {
    const READY: u8 = 1;
    const FAILED: u8 = 2;

    /// As bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready { offload, warnings } => {
                let flags = [offload.checksum, offload.tso, offload.uso].map(u8::from);
                let mut bytes = vec![Self::READY, offload.vnet_header_bytes];
                bytes.extend(flags);
                bytes.extend(warnings.join("\n").bytes().take(MESSAGE_BYTES_MAX - bytes.len()));
                bytes
            }
            Self::Failed(failure) => {
                let [a, b, c, d] = (failure.errno as i32).to_le_bytes();
                vec![Self::FAILED, failure.step as u8, a, b, c, d]
            }
        }
    }

    /// From bytes; none: they are not a report.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [Self::READY, vnet_header_bytes, checksum, tso, uso, warnings @ ..] => {
                let offload = LinkOffload {
                    vnet_header_bytes: *vnet_header_bytes,
                    checksum: *checksum == 1,
                    tso: *tso == 1,
                    uso: *uso == 1,
                };
                let warnings = String::from_utf8_lossy(warnings);
                Some(Self::Ready {
                    offload,
                    warnings: warnings.lines().map(str::to_owned).collect(),
                })
            }
            [Self::FAILED, step, a, b, c, d] => {
                let step = Step::ALL.into_iter().find(|known| *known as u8 == *step)?;
                let errno = Errno::from_raw(i32::from_le_bytes([*a, *b, *c, *d]));
                Some(Self::Failed(Failure { step, errno }))
            }
            [..] => None,
        }
    }
}

/// Asks for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectRequest {
    /// Tells answers apart: one may come after we gave up waiting for it.
    pub(super) sequence: u32,
    /// Where it shall lead.
    pub(super) to: SocketAddr,
}

impl ConnectRequest {
    const BYTES: usize = 4 + 2 + 16;

    /// As bytes: sequence, port, address (IPv4 mapped into IPv6). A scope is not carried: loopback has none.
    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let address = match self.to.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        bytes[..4].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.to.port().to_le_bytes());
        bytes[6..].copy_from_slice(&address.octets());
        bytes
    }

    /// From bytes; none: they are not a request.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (sequence, rest) = bytes.split_first_chunk::<4>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let address = Ipv6Addr::from(<[u8; 16]>::try_from(rest).ok()?);
        let to = SocketAddr::new(address.to_canonical(), u16::from_le_bytes(*port));
        Some(Self { sequence: u32::from_le_bytes(*sequence), to })
    }
}

/// Answers one; the socket comes with it unless there is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectReply {
    /// Of the request.
    pub(super) sequence: u32,
    /// Why there is no socket.
    pub(super) error: Option<Errno>,
}

impl ConnectReply {
    /// As bytes.
    pub(super) fn encode(self) -> [u8; 8] {
        let [a, b, c, d] = self.sequence.to_le_bytes();
        let [e, f, g, h] = self.error.map_or(0, |errno| errno as i32).to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// From bytes; none: they are not a reply.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h] = <[u8; 8]>::try_from(bytes).ok()?;
        let errno = i32::from_le_bytes([e, f, g, h]);
        Some(Self {
            sequence: u32::from_le_bytes([a, b, c, d]),
            error: (errno != 0).then(|| Errno::from_raw(errno)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_report_comes_back_as_it_was() {
        let offload = LinkOffload { vnet_header_bytes: 10, checksum: true, tso: true, uso: false };
        let warnings = vec!["no IPv6".to_owned(), "a default route is there".to_owned()];
        let ready = Report::Ready { offload, warnings };
        assert_eq!(Report::decode(&ready.encode()), Some(ready));
        let quiet = Report::Ready { offload, warnings: Vec::new() };
        assert_eq!(Report::decode(&quiet.encode()), Some(quiet));
        for step in Step::ALL {
            let failed = Report::Failed(Failure { step, errno: Errno::EBUSY });
            assert_eq!(Report::decode(&failed.encode()), Some(failed));
        }
        assert_eq!(Report::decode(&[]), None);
        assert_eq!(Report::decode(&[Report::FAILED, 200, 0, 0, 0, 0]), None);
    }

    #[test]
    fn every_request_and_reply_comes_back_as_it_was() {
        for to in ["127.0.0.1:80", "[::1]:8080", "[fd00::64]:1"] {
            let request = ConnectRequest { sequence: 7, to: to.parse().unwrap() };
            assert_eq!(ConnectRequest::decode(&request.encode()), Some(request));
        }
        for error in [None, Some(Errno::ECONNREFUSED)] {
            let reply = ConnectReply { sequence: u32::MAX, error };
            assert_eq!(ConnectReply::decode(&reply.encode()), Some(reply));
        }
        assert_eq!(ConnectRequest::decode(&[0; 21]), None);
        assert_eq!(ConnectReply::decode(&[0; 9]), None);
    }
}
