//! Ancillary data of messages (cmsg(3)): written and read as bytes, in the kernel's layout.

use std::mem::size_of;
use std::net::IpAddr;

/// Room for what a message of ours carries, either way.
pub(crate) const CONTROL_BYTES: usize = 256;

/// Bytes of `struct in_pktinfo` and `struct in6_pktinfo` (ip(7), ipv6(7)).
const PKTINFO4_BYTES: usize = 12;
const PKTINFO6_BYTES: usize = 20;

/// Length, level and type: a `size_t` and two `int`s.
const HEADER_BYTES: usize = size_of::<usize>() + 2 * size_of::<i32>();

/// Ancillary data, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control {
    bytes: [u8; CONTROL_BYTES],
    used: usize,
}

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

impl Control {
    pub(crate) const fn empty() -> Self {
        Self { bytes: [0; CONTROL_BYTES], used: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }

    /// Adds an entry. All that is ever sent fits.
    pub(crate) fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let entry = &mut self.bytes[self.used..];
        let len = HEADER_BYTES + data.len();
        entry[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        entry[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
        entry[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        entry[HEADER_BYTES..len].copy_from_slice(data);
        self.used += aligned(len);
    }

    /// Adds the address that the message shall leave from.
    pub(crate) fn push_source(&mut self, from: IpAddr) {
        match from {
            IpAddr::V4(ip) => {
                // `struct in_pktinfo`: interface (any), source, and a destination that is ignored.
                let mut info = [0; PKTINFO4_BYTES];
                info[4..8].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(ip) => {
                // `struct in6_pktinfo`: source, and interface (any).
                let mut info = [0; PKTINFO6_BYTES];
                info[..16].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// What was pushed.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// The entries of the first `len` bytes: level, type, data.
    pub(crate) fn entries(&self, len: usize) -> Entries<'_> {
        Entries { rest: &self.bytes[..len.min(CONTROL_BYTES)] }
    }
}

/// See [`Control::entries`].
pub(crate) struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.rest.split_first_chunk::<{ size_of::<usize>() }>()?;
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let len = usize::from_ne_bytes(*len);
        let data = rest.get(..len.checked_sub(HEADER_BYTES)?)?;
        self.rest = self.rest.get(aligned(len)..).unwrap_or(&[]);
        Some((i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind), data))
    }
}

/// An `int` at the start of an entry's data. `IP_TOS` comes as one byte.
pub(crate) fn int(data: &[u8]) -> Option<i32> {
    match data {
        [byte] => Some(i32::from(*byte)),
        _ => data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)),
    }
}

/// The address of ours that a message was sent to, of an `in_pktinfo` or `in6_pktinfo`; none: to a group, which
/// nothing can be sent from. IPv4 in IPv6 is told as IPv4.
pub(crate) fn destination(data: &[u8]) -> Option<IpAddr> {
    let ip = if data.len() == PKTINFO4_BYTES {
        IpAddr::from(<[u8; 4]>::try_from(&data[4..8]).ok()?)
    } else {
        IpAddr::from(*data.first_chunk::<16>()?).to_canonical()
    };
    (!ip.is_multicast() && !ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_pushed() {
        let mut control = Control::empty();
        control.push(libc::IPPROTO_IP, libc::IP_TTL, &7_i32.to_ne_bytes());
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[3]);
        let mut entries = control.entries(control.used());
        let (level, kind, data) = entries.next().expect("the first");
        assert_eq!((level, kind, int(data)), (libc::IPPROTO_IP, libc::IP_TTL, Some(7)));
        let (_, kind, data) = entries.next().expect("the second");
        assert_eq!((kind, int(data)), (libc::IP_TOS, Some(3)));
        assert!(entries.next().is_none());
    }

    #[test]
    fn a_length_that_lies_ends_the_list() {
        let mut control = Control::empty();
        control.push(0, 0, &[1, 2, 3, 4]);
        for lie in [0_usize, 3, 15, 1000, usize::MAX] {
            control.bytes[..size_of::<usize>()].copy_from_slice(&lie.to_ne_bytes());
            assert_eq!(control.entries(24).count(), 0);
        }
    }
}
