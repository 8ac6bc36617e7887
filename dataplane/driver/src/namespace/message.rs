//! What daemon and helper say to each other, as bytes. Both are the same program: there is no version in it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use usernet_core::rules::Protocol;

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
    /// `TUNSETIFF` of a tunnel's device.
    MakeTunnel,
    /// Its offload.
    TunnelOffload,
    /// Its MTU and queue length.
    TunnelLink,
    /// One of its addresses.
    TunnelAddress,
    /// Bringing it up.
    TunnelUp,
    /// One of its routes.
    TunnelRoute,
    /// Finding what keeps the namespace alive.
    Watch,
}

impl Step {
    const ALL: [Self; 21] = [
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
        Self::MakeTunnel,
        Self::TunnelOffload,
        Self::TunnelLink,
        Self::TunnelAddress,
        Self::TunnelUp,
        Self::TunnelRoute,
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
    /// Of a tunnel's step: on what of it.
    pub(super) place: Place,
}

/// Which tunnel of the request, and which of its addresses or routes; zeros where the step is about something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The tunnel.
    pub(super) tunnel: u8,
    /// Its address or route.
    pub(super) item: u16,
}

impl Failure {
    /// For `map_err`.
    pub(super) fn at(step: Step) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { step, errno, place: Place::default() }
    }

    /// The same for a step of a tunnel's.
    pub(super) fn of_tunnel(step: Step, tunnel: u8, item: usize) -> impl FnOnce(Errno) -> Self {
        let place = Place { tunnel, item: u16::try_from(item).unwrap_or(u16::MAX) };
        move |errno| Self { step, errno, place }
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
                let mut bytes = vec![Self::READY];
                bytes.extend(encode_offload(*offload));
                bytes.extend(warnings.join("\n").bytes().take(MESSAGE_BYTES_MAX - bytes.len()));
                bytes
            }
            Self::Failed(failure) => {
                let [a, b, c, d] = (failure.errno as i32).to_le_bytes();
                let Place { tunnel, item } = failure.place;
                let [item_0, item_1] = item.to_le_bytes();
                vec![Self::FAILED, failure.step as u8, a, b, c, d, tunnel, item_0, item_1]
            }
        }
    }

    /// From bytes; none: they are not a report.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [Self::READY, a, b, c, d, warnings @ ..] => {
                let offload = decode_offload([*a, *b, *c, *d]);
                let warnings = String::from_utf8_lossy(warnings);
                Some(Self::Ready {
                    offload,
                    warnings: warnings.lines().map(str::to_owned).collect(),
                })
            }
            [Self::FAILED, step, a, b, c, d, tunnel, item_0, item_1] => {
                let step = Step::ALL.into_iter().find(|known| *known as u8 == *step)?;
                let errno = Errno::from_raw(i32::from_le_bytes([*a, *b, *c, *d]));
                let place = Place { tunnel: *tunnel, item: u16::from_le_bytes([*item_0, *item_1]) };
                Some(Self::Failed(Failure { step, errno, place }))
            }
            [..] => None,
        }
    }
}

/// A device's offload as bytes.
pub(super) fn encode_offload(offload: LinkOffload) -> [u8; 4] {
    let LinkOffload { vnet_header_bytes, checksum, tso, uso } = offload;
    [vnet_header_bytes, checksum.into(), tso.into(), uso.into()]
}

/// From bytes.
pub(super) fn decode_offload([vnet_header_bytes, checksum, tso, uso]: [u8; 4]) -> LinkOffload {
    LinkOffload { vnet_header_bytes, checksum: checksum == 1, tso: tso == 1, uso: uso == 1 }
}

/// Asks for a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketRequest {
    /// Tells answers apart: one may come after we gave up waiting for it.
    pub(super) sequence: u32,
    /// Which socket.
    pub(super) wanted: Wanted,
}

/// What kind of socket, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Some new sockets that can be connected to this address, or send there.
    ToConnect {
        /// Of which protocol.
        protocol: Protocol,
        /// Where to.
        to: SocketAddr,
    },
    /// A TCP socket that listens, or a bound UDP socket.
    Listening {
        /// Which of them.
        protocol: Protocol,
        /// Where.
        at: SocketAddr,
        /// Only what arrives on this interface.
        interface: Option<String>,
    },
}

impl SocketRequest {
    const TO_CONNECT_TCP: u8 = 1;
    const LISTENING_TCP: u8 = 2;
    const LISTENING_UDP: u8 = 3;
    const TO_CONNECT_UDP: u8 = 4;

    /// As bytes: sequence, kind, port, address (IPv4 mapped into IPv6), name of the interface. A scope is not
    /// carried: loopback has none, and elsewhere it is the interface's.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, at, interface) = match &self.wanted {
            Wanted::ToConnect { protocol: Protocol::Tcp, to } => (Self::TO_CONNECT_TCP, to, None),
            Wanted::ToConnect { protocol: Protocol::Udp, to } => (Self::TO_CONNECT_UDP, to, None),
            Wanted::Listening { protocol: Protocol::Tcp, at, interface } => {
                (Self::LISTENING_TCP, at, interface.as_deref())
            }
            Wanted::Listening { protocol: Protocol::Udp, at, interface } => {
                (Self::LISTENING_UDP, at, interface.as_deref())
            }
        };
        let address = match at.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut bytes = self.sequence.to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(at.port().to_le_bytes());
        bytes.extend(address.octets());
        bytes.extend(interface.unwrap_or_default().bytes());
        bytes
    }

    /// From bytes; none: they are not a request.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (sequence, rest) = bytes.split_first_chunk::<4>()?;
        let ([kind], rest) = rest.split_first_chunk::<1>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let (address, interface) = rest.split_first_chunk::<16>()?;
        let address = Ipv6Addr::from(*address).to_canonical();
        let at = SocketAddr::new(address, u16::from_le_bytes(*port));
        let interface = std::str::from_utf8(interface).ok()?;
        let interface = (!interface.is_empty()).then(|| interface.to_owned());
        let wanted = match (*kind, interface) {
            (Self::TO_CONNECT_TCP, None) => Wanted::ToConnect { protocol: Protocol::Tcp, to: at },
            (Self::TO_CONNECT_UDP, None) => Wanted::ToConnect { protocol: Protocol::Udp, to: at },
            (Self::LISTENING_TCP, interface) => {
                Wanted::Listening { protocol: Protocol::Tcp, at, interface }
            }
            (Self::LISTENING_UDP, interface) => {
                Wanted::Listening { protocol: Protocol::Udp, at, interface }
            }
            _ => return None,
        };
        Some(Self { sequence: u32::from_le_bytes(*sequence), wanted })
    }
}

/// Answers one; what was asked for comes with it unless there is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketReply {
    /// Of the request.
    pub(super) sequence: u32,
    /// Why there is no socket.
    pub(super) error: Option<Errno>,
}

impl SocketReply {
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
        let place = Place { tunnel: 3, item: 700 };
        for step in Step::ALL {
            let failed = Report::Failed(Failure { step, errno: Errno::EBUSY, place });
            assert_eq!(Report::decode(&failed.encode()), Some(failed));
        }
        assert_eq!(Report::decode(&[]), None);
        assert_eq!(Report::decode(&[Report::FAILED, 200, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn every_request_and_reply_comes_back_as_it_was() {
        for at in ["127.0.0.1:80", "[::1]:8080", "[fd00::64]:1"].map(|at| at.parse().unwrap()) {
            let listening = |protocol, interface: Option<&str>| Wanted::Listening {
                protocol,
                at,
                interface: interface.map(str::to_owned),
            };
            for wanted in [
                Wanted::ToConnect { protocol: Protocol::Tcp, to: at },
                Wanted::ToConnect { protocol: Protocol::Udp, to: at },
                listening(Protocol::Tcp, None),
                listening(Protocol::Udp, Some("lo")),
            ] {
                let request = SocketRequest { sequence: 7, wanted };
                assert_eq!(SocketRequest::decode(&request.encode()), Some(request));
            }
        }
        for error in [None, Some(Errno::ECONNREFUSED)] {
            let reply = SocketReply { sequence: u32::MAX, error };
            assert_eq!(SocketReply::decode(&reply.encode()), Some(reply));
        }
        assert_eq!(SocketRequest::decode(&[0; 22]), None);
        assert_eq!(SocketRequest::decode(&[0; 23]), None, "no kind 0");
        assert_eq!(SocketReply::decode(&[0; 9]), None);
    }
}
