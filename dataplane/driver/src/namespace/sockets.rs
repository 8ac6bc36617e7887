//! The daemon's side of the helper.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel::{Channel, MESSAGE_BYTES_MAX, Received};
use super::message::{ConnectReply, ConnectRequest, Report};
use crate::NamespaceSockets;

/// The helper answers within 50 µs; after this it is given up, because a shard waits meanwhile.
const REPLY_TIMEOUT_S: libc::time_t = 1;

/// A running helper. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct HelperSockets {
    /// Requests and replies.
    channel: Channel,
    /// The process. It is our child and nobody else waits for it, so that the PID stays its own.
    pid: Pid,
    /// To signal it by.
    process: Option<OwnedFd>,
    /// Of the last request.
    sequence: u32,
}

impl HelperSockets {
    /// Takes charge of a helper that was just forked.
    pub(super) fn new(channel: Channel, pid: Pid) -> Self {
        let process = rustix::process::Pid::from_raw(pid.as_raw())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { channel, pid, process, sequence: 0 }
    }

    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits for its first message; none: it was killed.
    pub(super) fn report(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        Ok(match self.channel.receive(&mut buffer)? {
            Received::Message(length, tap) => {
                buffer.get(..length).and_then(Report::decode).map(|report| (report, tap))
            }
            Received::HungUp => None,
        })
    }

    /// From here on it is asked by a thread that has other things to do.
    pub(super) fn limit_waiting(&self) -> io::Result<()> {
        let timeout = TimeVal::new(REPLY_TIMEOUT_S, 0);
        Ok(setsockopt(&self.channel.as_fd(), ReceiveTimeout, &timeout)?)
    }
}

impl NamespaceSockets for HelperSockets {
    fn connect(&mut self, to: SocketAddr) -> io::Result<OwnedFd> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = ConnectRequest { sequence: self.sequence, to };
        self.channel.send(&request.encode(), None)?;
        loop {
            let mut buffer = [0; MESSAGE_BYTES_MAX];
            let (length, socket) = match self.channel.receive(&mut buffer)? {
                Received::Message(length, socket) => (length, socket),
                Received::HungUp => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            match buffer.get(..length).and_then(ConnectReply::decode) {
                Some(reply) if reply.sequence != self.sequence => {}
                Some(ConnectReply { error: Some(errno), .. }) => return Err(errno.into()),
                Some(ConnectReply { error: None, .. }) => {
                    return socket.ok_or_else(|| io::Error::other("no descriptors left"));
                }
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

impl Drop for HelperSockets {
    fn drop(&mut self) {
        // Its end of the channel hangs up and ends it, too; this spares it a way in which it could linger.
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(process, Signal::KILL);
        } else {
            let _ = nix::sys::socket::shutdown(
                self.channel.as_fd().as_raw_fd(),
                nix::sys::socket::Shutdown::Both,
            );
        }
        let _ = waitpid(self.pid, None);
    }
}
