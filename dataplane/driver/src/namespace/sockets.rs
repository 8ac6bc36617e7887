//! The daemon's side of the helper.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use usernet_core::op::DatagramKind;
use usernet_core::rules::Protocol;

use super::channel::{Channel, MESSAGE_BYTES_MAX, Received};
use super::message::{Report, SocketReply, SocketRequest, Wanted};
use super::ports::{LISTS, Ports};
use crate::{NamespaceSockets, sys};

/// The helper answers within 50 µs; after this it is given up, because a shard waits meanwhile.
const REPLY_TIMEOUT_S: libc::time_t = 1;

/// Asks for sockets, and waits for them.
#[derive(Debug)]
struct Questions {
    channel: Channel,
    /// Of the last request.
    sequence: u32,
}

impl Questions {
    /// Never an empty list.
    fn ask(&mut self, wanted: Wanted) -> io::Result<Vec<OwnedFd>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = SocketRequest { sequence: self.sequence, wanted };
        self.channel.send(&request.encode(), None)?;
        loop {
            let mut buffer = [0; MESSAGE_BYTES_MAX];
            let (length, sockets) = match self.channel.receive(&mut buffer)? {
                Received::Message(length, sockets) => (length, sockets),
                Received::HungUp => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            match buffer.get(..length).and_then(SocketReply::decode) {
                Some(reply) if reply.sequence != self.sequence => {}
                Some(SocketReply { error: Some(errno), .. }) => return Err(errno.into()),
                Some(SocketReply { error: None, .. }) if sockets.is_empty() => {
                    return Err(io::Error::other("no descriptors left"));
                }
                Some(SocketReply { error: None, .. }) => return Ok(sockets),
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    fn limit_waiting(&self) -> io::Result<()> {
        let timeout = TimeVal::new(REPLY_TIMEOUT_S, 0);
        Ok(setsockopt(&self.channel.as_fd(), ReceiveTimeout, &timeout)?)
    }
}

/// A running helper. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct HelperSockets {
    questions: Questions,
    /// Sockets that nobody has used yet, by [`Self::spare`]: a question costs two switches between processes, in which
    /// the data path waits.
    spares: [Vec<OwnedFd>; 4],
    /// The process. It is our child and nobody else waits for it, so that the PID stays its own.
    pid: Pid,
    /// To signal it by.
    process: Option<OwnedFd>,
}

impl HelperSockets {
    /// Takes charge of a helper that was just forked.
    pub(super) fn new(channel: Channel, pid: Pid) -> Self {
        let process = rustix::process::Pid::from_raw(pid.as_raw())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let questions = Questions { channel, sequence: 0 };
        Self { questions, spares: [const { Vec::new() }; 4], pid, process }
    }

    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Waits for its first message; none: it was killed.
    pub(super) fn report(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        Ok(match self.questions.channel.receive(&mut buffer)? {
            Received::Message(length, mut tap) => {
                buffer.get(..length).and_then(Report::decode).map(|report| (report, tap.pop()))
            }
            Received::HungUp => None,
        })
    }

    /// What follows the report: a device, or a queue of it, and its offload. None: the helper was killed, or we have no
    /// descriptors left.
    pub(super) fn descriptor(&self) -> io::Result<Option<([u8; 4], OwnedFd)>> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        Ok(match self.questions.channel.receive(&mut buffer)? {
            Received::Message(4, mut fd) => buffer.first_chunk().copied().zip(fd.pop()),
            Received::Message(..) | Received::HungUp => None,
        })
    }

    /// A socket of that protocol, and of the family of `to`.
    fn spare(&mut self, protocol: Protocol, to: SocketAddr) -> io::Result<OwnedFd> {
        let of_protocol = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 2,
        };
        let spares = &mut self.spares[of_protocol + usize::from(to.is_ipv6())];
        if spares.is_empty() {
            *spares = self.questions.ask(Wanted::ToConnect { protocol, to })?;
        }
        Ok(spares.pop().expect("no answer is empty"))
    }

    /// From here on it is asked by a thread that has other things to do.
    pub(super) fn limit_waiting(&self) -> io::Result<()> {
        self.questions.limit_waiting()
    }
}

impl NamespaceSockets for HelperSockets {
    fn connect(&mut self, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.spare(Protocol::Tcp, to)?;
        // In the namespace that the socket was made in, whoever calls.
        match sys::connect(socket.as_fd(), &to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            Ok(()) | Err(_) => Ok(socket),
        }
    }

    fn datagrams(&mut self, kind: DatagramKind) -> io::Result<OwnedFd> {
        let somebody: IpAddr = match kind {
            DatagramKind::Udp4 => Ipv4Addr::UNSPECIFIED.into(),
            DatagramKind::Udp6 => Ipv6Addr::UNSPECIFIED.into(),
            DatagramKind::Ping4 | DatagramKind::Ping6 => {
                return Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
            }
        };
        self.spare(Protocol::Udp, SocketAddr::new(somebody, 0))
    }
}

/// Makes listening sockets in the guest's namespace, for outward forwards. Has a channel of its own, so that the control
/// thread and the data path do not wait for each other.
#[derive(Debug)]
pub struct NamespaceListeners(Questions);

impl NamespaceListeners {
    /// Takes over the channel, with the lists of sockets that the helper has put in it. To be called after the helper's
    /// report.
    pub(super) fn new(channel: Channel) -> io::Result<(Self, Ports)> {
        let questions = Questions { channel, sequence: 0 };
        questions.limit_waiting()?;
        let mut lists = [const { None }; LISTS.len()];
        for list in &mut lists {
            let mut buffer = [0; MESSAGE_BYTES_MAX];
            if let Received::Message(_, mut descriptor) = questions.channel.receive(&mut buffer)? {
                *list = descriptor.pop();
            }
        }
        Ok((Self(questions), Ports::from_lists(lists)))
    }

    /// A TCP socket that listens, or a bound UDP socket, on an address of one family and, where it is given, one
    /// interface of the namespace: non-blocking, closed on exec. Errors are those of the calls in the namespace;
    /// `TimedOut`-like ones (`WouldBlock`) and `BrokenPipe` say that the helper does not answer.
    pub fn open(
        &mut self,
        protocol: Protocol,
        at: SocketAddr,
        interface: Option<&str>,
    ) -> io::Result<OwnedFd> {
        let interface = interface.map(str::to_owned);
        let mut sockets = self.0.ask(Wanted::Listening { protocol, at, interface })?;
        Ok(sockets.pop().expect("no answer is empty"))
    }
}

impl Drop for HelperSockets {
    fn drop(&mut self) {
        // It ends when its end of the channel hangs up. A daemon that may still send signals spares it a way in which it
        // could linger.
        let channel = self.questions.channel.as_fd().as_raw_fd();
        let _ = nix::sys::socket::shutdown(channel, nix::sys::socket::Shutdown::Both);
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        let _ = waitpid(self.pid, None);
    }
}
