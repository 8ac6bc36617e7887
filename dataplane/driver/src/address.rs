//! Socket addresses as the kernel writes them.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A `sockaddr` of either family and its length.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SockAddr {
    storage: libc::sockaddr_in6,
    len: libc::socklen_t,
}

/// Room for any address that our sockets give.
pub(crate) const SOCKADDR_BYTES: libc::socklen_t =
    mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t;

const _: () = assert!(
    mem::size_of::<libc::sockaddr_in>() <= mem::size_of::<libc::sockaddr_in6>()
        && mem::align_of::<libc::sockaddr_in>() <= mem::align_of::<libc::sockaddr_in6>(),
    "an IPv4 address fits the room of an IPv6 address"
);

impl SockAddr {
    /// Room for the kernel to write to.
    pub(crate) const fn empty() -> Self {
        let storage = libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        };
        Self { storage, len: SOCKADDR_BYTES }
    }

    /// For `msg_name` and its kin.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        (&raw mut self.storage).cast()
    }

    /// For `bind` and `connect`.
    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    /// For calls that write the length, too.
    pub(crate) fn len_mut(&mut self) -> &mut libc::socklen_t {
        &mut self.len
    }

    pub(crate) fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// What is in it; none if it is of another family. IPv4 in IPv6 (dual-stack listeners) is told as IPv4.
    pub(crate) fn get(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.sin6_family) {
            libc::AF_INET => {
                // SAFETY: room and alignment suffice (asserted above); any bytes are a valid `sockaddr_in`.
                let v4 = unsafe { *self.as_ptr().cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                let v6 = &self.storage;
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                if let Some(v4) = ip.to_ipv4_mapped() {
                    return Some(SocketAddrV4::new(v4, port).into());
                }
                Some(SocketAddrV6::new(ip, port, 0, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for SockAddr {
    fn from(address: SocketAddr) -> Self {
        let mut out = Self::empty();
        match address {
            SocketAddr::V4(v4) => {
                let bytes = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: room and alignment suffice (asserted above).
                unsafe { out.as_mut_ptr().cast::<libc::sockaddr_in>().write(bytes) };
                out.len = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                out.storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                out.storage.sin6_port = v6.port().to_be();
                out.storage.sin6_addr.s6_addr = v6.ip().octets();
                out.storage.sin6_scope_id = v6.scope_id();
            }
        }
        out
    }
}

/// The local address of a socket.
pub(crate) fn local_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    address_by(libc::getsockname, fd)
}

/// The address that a socket is connected to.
pub(crate) fn peer_address(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    address_by(libc::getpeername, fd)
}

type AddressCall =
    unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address_by(call: AddressCall, fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut address = SockAddr::empty();
    let (pointer, len) = (address.as_mut_ptr(), &raw mut address.len);
    // SAFETY: both point into `address`, which has room for `len` bytes.
    let done = unsafe { call(fd.as_raw_fd(), pointer, len) };
    crate::sys::check(done)?;
    address.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443", "0.0.0.0:0", "[::]:0"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(SockAddr::from(address).get(), Some(address));
        }
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:80".parse().expect("an address");
        assert_eq!(SockAddr::from(mapped).get(), Some("192.0.2.1:80".parse().expect("one")));
        assert_eq!(SockAddr::empty().get(), None);
    }
}
