//! Making the TAP, in the namespace that the calling process is in.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use usernet_core::config::MacAddr;

use super::message::{Failure, Step};
use crate::{Link, LinkKind, LinkOffload};

/// Bytes of virtio-net header in front of each frame: `struct virtio_net_hdr` without `num_buffers`, which
/// is for rings only.
const VNET_HEADER_BYTES: u8 = 10;

/// `TUN_F_USO4 | TUN_F_USO6` (Linux 6.2).
const USO: libc::c_uint = 0x20 | 0x40;

/// The longest name of a device: `IFNAMSIZ` with its terminating zero.
const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// What the kernel's `dev_valid_name` accepts, less `%`, which makes a name a pattern.
pub(super) fn is_device_name(name: &str) -> bool {
    let is_allowed = |c: u8| c.is_ascii_graphic() && !matches!(c, b'/' | b':' | b'%');
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(is_allowed)
}

/// Makes it: attached to the descriptor, down, unconfigured. With `may_exist`, one that is there will do. Each queue has a
/// descriptor of its own.
pub(super) fn create(
    name: &str,
    queues: u8,
    is_offloaded: bool,
    may_exist: bool,
) -> Result<Link, Failure> {
    let vnet = if is_offloaded { libc::IFF_VNET_HDR } else { 0 };
    let multi_queue = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | vnet | multi_queue;
    // `IFF_TUN_EXCL` makes it fail with `EBUSY` whatever device of that name exists, rather than take over a persistent
    // TAP that somebody set up for something else.
    let open = |flags| {
        let tap = open_tun()?;
        set_interface(&tap, name, flags).map_err(Failure::at(Step::CreateTap))?;
        Ok(tap)
    };
    let tap = open(flags | if may_exist { 0 } else { libc::IFF_TUN_EXCL })?;
    let further = (1..queues).map(|_| open(flags)).collect::<Result<_, _>>()?;
    let offload = match is_offloaded {
        true => set_offload(&tap).map_err(Failure::at(Step::SetOffload))?,
        false => LinkOffload::default(),
    };
    Ok(Link { fd: tap, further, kind: LinkKind::Tap, offload })
}

/// What devices are made by.
pub(super) fn open_tun() -> Result<OwnedFd, Failure> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.map(OwnedFd::from).map_err(errno).map_err(Failure::at(Step::OpenTun))
}

/// Takes over a TAP that somebody else has opened and attached, with what offload it can have.
pub fn take_over(tap: OwnedFd) -> io::Result<Link> {
    // SAFETY: `ifreq` is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) };
    Errno::result(result)?;
    // SAFETY: TUNGETIFF has written the flags.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
        return Err(io::Error::other("it is no TAP with IFF_NO_PI"));
    }
    let offload = match flags & libc::IFF_VNET_HDR {
        0 => LinkOffload::default(),
        _ => set_offload(&tap)?,
    };
    Ok(Link { fd: tap, further: Vec::new(), kind: LinkKind::Tap, offload })
}

/// The kernel's answer that an [`io::Error`] stands for.
pub(super) fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// `TUNSETIFF`: makes the device, or adds a queue to it. `flags` say of which kind.
pub(super) fn set_interface(tun: &OwnedFd, name: &str, flags: libc::c_int) -> nix::Result<()> {
    let flags = libc::IFF_NO_PI | flags;
    // SAFETY: `ifreq` is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    debug_assert!(is_device_name(name), "names are checked before the helper is started");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(NAME_BYTES_MAX)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    Errno::result(result).map(drop)
}

/// The Ethernet address of the device behind the descriptor, whoever has set it.
pub(super) fn ethernet_address(tap: &OwnedFd) -> io::Result<MacAddr> {
    // SAFETY: `ifreq` is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: SIOCGIFHWADDR on a TAP reads nothing of the `ifreq` and writes its address.
    let result =
        unsafe { libc::ioctl(tap.as_raw_fd(), libc::SIOCGIFHWADDR as _, &raw mut request) };
    Errno::result(result)?;
    // SAFETY: the kernel has just written this member of the union.
    let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(MacAddr(std::array::from_fn(|at| bytes[at] as u8)))
}

/// Sets the length of the virtio-net header.
pub(super) fn set_header(tap: &OwnedFd) -> nix::Result<LinkOffload> {
    let header_bytes = libc::c_int::from(VNET_HEADER_BYTES);
    // SAFETY: TUNSETVNETHDRSZ reads one `int`.
    let result = unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const header_bytes)
    };
    Errno::result(result)?;
    Ok(LinkOffload { vnet_header_bytes: VNET_HEADER_BYTES, ..LinkOffload::default() })
}

/// Asks for everything, and for less where the kernel does not know it.
pub(super) fn set_offload(tap: &OwnedFd) -> nix::Result<LinkOffload> {
    let header = set_header(tap)?;
    let tso = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    for (flags, has_tso, has_uso) in [
        (libc::TUN_F_CSUM | tso | USO, true, true),
        (libc::TUN_F_CSUM | tso, true, false),
        (libc::TUN_F_CSUM, false, false),
    ] {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe {
            libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags))
        };
        match Errno::result(result) {
            Ok(_) => {
                return Ok(LinkOffload { checksum: true, tso: has_tso, uso: has_uso, ..header });
            }
            // A flag that this kernel does not know (`set_offload` in drivers/net/tun.c).
            Err(Errno::EINVAL) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_refuses_or_expands_are_refused() {
        for name in ["tap0", "a", "fifteen-bytes-x", "t.1"] {
            assert!(is_device_name(name), "{name}");
        }
        for name in ["", "sixteen-bytes-xx", ".", "..", "a/b", "a:b", "tap%d", "a b", "ü"] {
            assert!(!is_device_name(name), "{name}");
        }
    }
}
