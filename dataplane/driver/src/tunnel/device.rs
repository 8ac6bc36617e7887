//! The guest's end of a tunnel: packets in and out of a TUN, one per call, each behind a virtio-net header.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use usernet_core::Offload;

use crate::LinkOffload;
use crate::vnet::{self, HEADER_BYTES_MAX, Malformed};

/// A packet has at most 65,535 bytes, a super-frame of TCP too.
pub(super) const PACKET_BYTES_MAX: usize = HEADER_BYTES_MAX + 65_535;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
    /// Bytes of virtio-net header.
    header_bytes: usize,
}

impl Device {
    /// Takes the device over and makes it nonblocking.
    pub(super) fn new(fd: OwnedFd, offload: LinkOffload) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self { fd, header_bytes: usize::from(offload.vnet_header_bytes) })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads a packet; none: it is malformed. `buffer` has room for [`PACKET_BYTES_MAX`].
    pub(super) fn read<'a>(
        &self,
        buffer: &'a mut [u8],
    ) -> io::Result<Option<(&'a mut [u8], Offload)>> {
        let bytes = rustix::io::read(&self.fd, &mut *buffer)?;
        let Some((header, packet)) =
            buffer.get_mut(..bytes).and_then(|read| read.split_at_mut_checked(self.header_bytes))
        else {
            return Ok(None);
        };
        if self.header_bytes == 0 {
            return Ok(Some((packet, Offload::default())));
        }
        match vnet::decode(header, packet.len()) {
            Ok(offload) => Ok(Some((packet, offload))),
            Err(Malformed) => Ok(None),
        }
    }

    /// Writes a packet, or a super-frame.
    pub(super) fn write(&self, packet: &[u8], offload: Offload) -> io::Result<()> {
        let header = vnet::encode(offload, packet);
        let parts = [IoSlice::new(&header[..self.header_bytes]), IoSlice::new(packet)];
        Ok(rustix::io::writev(&self.fd, &parts).map(drop)?)
    }
}
