//! Which ports programs listen on: the kernel's own lists, opened once and read again.
//!
//! `/proc/thread-self/net/{tcp,tcp6,udp,udp6}` show the network namespace of the thread that opened them, whoever reads
//! them, and reading needs no right but the descriptor. So the helper opens them in the guest's namespace and hands
//! them over, and they can be read long after nothing can be opened any more.
//!
//! A list of TCP sockets has those that listen first (`tcp_seq_start` in net/ipv4/tcp_ipv4.c): it is read no further
//! than to the first other one, however many connections there are. Against `inet_diag` (which filters in the kernel)
//! that costs the same, and it needs no kernel module that may not be there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use usernet_core::rules::Protocol;

/// A TCP socket that listens (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";
/// A UDP socket that is bound and not connected: anybody may send to it.
const UNCONNECTED: &str = "07";

/// The kernel gives a page of whole lines per call.
const READ_BYTES: usize = 16 << 10;

/// A list is read no further than this: a namespace with more sockets is not followed whole.
const LIST_BYTES_MAX: u64 = 8 << 20;

/// A port that a program listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listening {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where; unspecified: on all addresses of the family (for `::` mostly of both).
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// The lists, in their order here; each is there if the kernel has the family.
pub(super) const LISTS: [(&str, Protocol); 4] = [
    ("tcp", Protocol::Tcp),
    ("tcp6", Protocol::Tcp),
    ("udp", Protocol::Udp),
    ("udp6", Protocol::Udp),
];

/// The lists of one network namespace.
#[derive(Debug)]
pub struct Ports {
    lists: Vec<(Protocol, File)>,
}

impl Ports {
    /// Those of the calling thread's own namespace.
    pub fn open() -> Self {
        Self::from_lists(open_lists())
    }

    /// From the descriptors of [`LISTS`].
    pub(super) fn from_lists(lists: [Option<OwnedFd>; LISTS.len()]) -> Self {
        let named = LISTS.iter().zip(lists);
        let lists = named.filter_map(|(&(_, protocol), list)| Some((protocol, list?.into())));
        Self { lists: lists.collect() }
    }

    /// The descriptors, for who sets a filter of system calls or hands them on.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.lists.iter().map(|(_, list)| list.as_fd())
    }

    /// What is listened on right now. Costs a system call per 27 sockets, and as many more for UDP sockets that only
    /// send.
    pub fn scan(&self) -> io::Result<BTreeSet<Listening>> {
        let mut found = BTreeSet::new();
        for (protocol, list) in &self.lists {
            scan_list(list, *protocol, &mut found)?;
        }
        Ok(found)
    }
}

/// The lists of the calling thread's namespace.
pub(super) fn open_lists() -> [Option<OwnedFd>; LISTS.len()] {
    LISTS.map(|(name, _)| {
        File::open(format!("/proc/thread-self/net/{name}")).ok().map(OwnedFd::from)
    })
}

fn scan_list(list: &File, protocol: Protocol, found: &mut BTreeSet<Listening>) -> io::Result<()> {
    let mut chunk = [0; READ_BYTES];
    let mut rest = Vec::new();
    let mut offset = 0;
    let mut is_header = true;
    while offset < LIST_BYTES_MAX {
        let count = match list.read_at(&mut chunk, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        if count == 0 {
            break;
        }
        offset += count as u64;
        rest.extend_from_slice(chunk.get(..count).unwrap_or(&[]));
        let Some(end) = rest.iter().rposition(|&byte| byte == b'\n') else { continue };
        for line in String::from_utf8_lossy(&rest[..end]).lines() {
            if std::mem::take(&mut is_header) {
                continue;
            }
            match (protocol, parse(line)) {
                (Protocol::Tcp, Some((address, port, LISTEN)))
                | (Protocol::Udp, Some((address, port, UNCONNECTED))) => {
                    found.insert(Listening { protocol, address, port });
                }
                (Protocol::Tcp, Some(_)) => return Ok(()),
                (Protocol::Udp, Some(_)) | (_, None) => {}
            }
        }
        rest.drain(..=end);
    }
    Ok(())
}

/// Local address, port and state of a line: `sl local_address rem_address st …`.
fn parse(line: &str) -> Option<(IpAddr, u16, &str)> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut octets = [0; 16];
            for (index, place) in octets.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(address.get(index * 8..index * 8 + 8)?)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?, state))
}

/// Four octets of an address: the kernel prints them as a number of its own byte order.
fn word(hex: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

    fn is_listed(ports: &Ports, protocol: Protocol, at: SocketAddr) -> bool {
        let listening = Listening { protocol, address: at.ip(), port: at.port() };
        ports.scan().expect("the lists can be read").contains(&listening)
    }

    #[test]
    fn listeners_come_and_go_in_lists_that_were_opened_before() {
        let ports = Ports::open();
        for ip in ["127.0.0.1", "::1", "0.0.0.0", "::"] {
            let ip: IpAddr = ip.parse().expect("an address");
            let tcp = TcpListener::bind((ip, 0)).expect("a port");
            let udp = UdpSocket::bind((ip, 0)).expect("a port");
            let at = [(Protocol::Tcp, tcp.local_addr()), (Protocol::Udp, udp.local_addr())];
            let at = at.map(|(protocol, at)| (protocol, at.expect("its address")));
            for (protocol, at) in at {
                assert!(is_listed(&ports, protocol, at), "{at}");
            }
            drop((tcp, udp));
            for (protocol, at) in at {
                assert!(!is_listed(&ports, protocol, at), "{at} is closed");
            }
        }
    }

    #[test]
    fn connections_are_not_listening() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("its address");
        let client = TcpStream::connect(to).expect("room");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        udp.connect(to).expect("an address");
        let ports = Ports::open();
        assert!(is_listed(&ports, Protocol::Tcp, to));
        for (protocol, at) in
            [(Protocol::Tcp, client.local_addr()), (Protocol::Udp, udp.local_addr())]
        {
            assert!(!is_listed(&ports, protocol, at.expect("its address")));
        }
    }

    #[test]
    fn more_listeners_than_one_read_gives_are_all_found() {
        let listeners: Vec<_> =
            (0..300).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports = Ports::open().scan().expect("the lists can be read");
        for listener in &listeners {
            let port = listener.local_addr().expect("its address").port();
            assert!(ports.iter().any(|p| p.port == port && p.protocol == Protocol::Tcp));
        }
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000";
        let v4 = (Ipv4Addr::LOCALHOST.into(), 8080, "0A");
        if cfg!(target_endian = "little") {
            assert_eq!(parse(line), Some(v4));
        }
        for line in ["", "x", "0: 0100007F 0 0A", "0: 01:1F90 0 0A", "0: 0100007G:1F90 0 0A"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
