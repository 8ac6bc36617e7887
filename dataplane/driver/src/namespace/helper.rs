//! The process that lives in the guest's namespace.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket};
use nix::unistd::{ForkResult, Pid, fork, getppid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use usernet_core::rules::Protocol;

use super::channel::{Channel, DESCRIPTORS_MAX, MESSAGE_BYTES_MAX, Received};
use super::configure::configure;
use super::listen;
use super::message::{Failure, Report, SocketReply, SocketRequest, Step, Wanted, encode_offload};
use super::ports::open_lists;
use super::tap;
use super::target::{Holder, NamespaceId, OpenTarget};
use super::watch::{HELPER_NAME, Life, Watch};
use super::{AttachError, Request, TunnelLink, tunnels};
use crate::{Link, detach};

/// Where requests come from, and replies go.
pub(super) struct Channels {
    /// The data path, which waits for its answers. Ours and the daemon's life hang on it.
    pub(super) data_path: Channel,
    /// The control thread.
    pub(super) control: Channel,
}

/// What the helper is started with.
struct Helper<'a> {
    request: &'a Request,
    target: OpenTarget,
    /// Requests and replies.
    channels: Channels,
    /// Where the end is told.
    end: OwnedFd,
    /// Whose life ours hangs on.
    daemon: Pid,
}

/// Forks the helper. Gives its PID.
pub(super) fn start(
    request: &Request,
    target: OpenTarget,
    channels: Channels,
    end: OwnedFd,
) -> Result<Pid, AttachError> {
    let helper = Helper { request, target, channels, end, daemon: Pid::this() };
    // SAFETY: the child allocates, which is sound after a fork of a process with a single thread, as `attach`
    // demands; glibc makes it so with several threads, too. It never returns from here.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Ok(child),
        Ok(ForkResult::Child) => {
            // A panic shall not unwind into the daemon's frames.
            let _ = catch_unwind(AssertUnwindSafe(|| helper.live()));
            // SAFETY: ends this process without running the daemon's exit handlers.
            unsafe { libc::_exit(1) }
        }
        Err(errno) => {
            Err(AttachError::Helper { what: "fork the helper process", source: errno.into() })
        }
    }
}

impl Helper<'_> {
    /// Returns when nothing is left to do.
    fn live(self) {
        let Self { request, target, channels, end, daemon } = self;
        if isolate(daemon, &target, &channels, &end).is_err() {
            return;
        }
        let (report, ready) = match set_up(request, target, daemon) {
            Ok((made, warnings, watch)) => {
                let offload = made.link.offload;
                (Report::Ready { offload, warnings }, Some((made, watch)))
            }
            Err(failure) => (Report::Failed(failure), None),
        };
        let made = ready.as_ref().map(|(made, _)| made);
        let tap = made.map(|made| made.link.fd.as_fd());
        let told = hand_over_lists(&channels.control)
            .and_then(|()| channels.data_path.send(&report.encode(), tap))
            .and_then(|()| made.map_or(Ok(()), |made| made.hand_over_rest(&channels.data_path)));
        if told.is_err() {
            return;
        }
        // Our descriptors of the devices go with `made`: their life hangs on the daemon's alone.
        if let Some((made, watch)) = ready {
            drop(made);
            serve(&channels, &end, watch);
        }
    }
}

/// The kernel's lists of sockets in the namespace, one message each; without a descriptor where there is none.
fn hand_over_lists(control: &Channel) -> std::io::Result<()> {
    for list in open_lists() {
        control.send(&[u8::from(list.is_some())], list.as_ref().map(OwnedFd::as_fd))?;
    }
    Ok(())
}

/// The devices.
struct Made {
    link: Link,
    tunnels: Vec<TunnelLink>,
}

impl Made {
    /// The further queues of the TAP and then the tunnels, one message each, with the device's offload.
    fn hand_over_rest(&self, data_path: &Channel) -> std::io::Result<()> {
        let queues = self.link.further.iter().map(|queue| (queue, self.link.offload));
        let tunnels = self.tunnels.iter().map(|tunnel| (&tunnel.fd, tunnel.offload));
        queues.chain(tunnels).try_for_each(|(fd, offload)| {
            data_path.send(&encode_offload(offload), Some(fd.as_fd()))
        })
    }
}

/// Nothing of the daemon's reaches us, and nothing of ours the daemon's terminal or files.
fn isolate(
    daemon: Pid,
    target: &OpenTarget,
    channels: &Channels,
    end: &OwnedFd,
) -> nix::Result<()> {
    die_with(daemon)?;
    let mut kept = vec![end.as_raw_fd(), target.netns.as_raw_fd()];
    kept.extend([&channels.data_path, &channels.control].map(|c| c.as_fd().as_raw_fd()));
    kept.extend(target.userns.as_ref().map(AsRawFd::as_raw_fd));
    kept.extend(match &target.holder {
        Holder::Process(process) => Some(process.as_raw_fd()),
        Holder::Name(_) | Holder::Unknown => None,
    });
    detach::from_caller(HELPER_NAME, kept)
}

/// Ends us with the daemon. Joining a user namespace revokes it (`commit_creds` in kernel/cred.c), so that it has to be
/// said again.
fn die_with(daemon: Pid) -> nix::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before.
    if getppid() == daemon { Ok(()) } else { Err(Errno::ESRCH) }
}

/// Enters, makes, configures. What was made vanishes with its descriptor if this fails.
fn set_up(
    request: &Request,
    target: OpenTarget,
    daemon: Pid,
) -> Result<(Made, Vec<String>, Watch), Failure> {
    let namespace = enter(&target)?;
    let link = tap::create(&request.tap_name, request.queues, request.offload, request.adopt)?;
    let tunnels = tunnels::create(&request.tunnels)?;
    let warnings = configure(request)?;
    let watch =
        Watch::new(namespace, target.holder, daemon.as_raw()).map_err(Failure::at(Step::Watch))?;
    drop_privileges(daemon).map_err(Failure::at(Step::Isolate))?;
    (request.confine)();
    Ok((Made { link, tunnels }, warnings, watch))
}

/// Joins the network namespace. An ordinary user has to be in the user namespace that owns it first; root need not,
/// and whoever is in it already must not (`EINVAL`, setns(2)). So that is tried only when we are refused.
fn enter(target: &OpenTarget) -> Result<NamespaceId, Failure> {
    if let Some(userns) = &target.userns {
        join_userns(userns)?;
    }
    let netns = &target.netns;
    let entered = match setns(netns, CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) if target.userns.is_none() => {
            let refused = |_| Failure::at(Step::EnterNamespace)(Errno::EPERM);
            let owner = owner_of(netns).map_err(refused)?;
            setns(owner, CloneFlags::CLONE_NEWUSER).map_err(refused)?;
            setns(netns, CloneFlags::CLONE_NEWNET)
        }
        other => other,
    };
    entered.and_then(|()| NamespaceId::of(netns)).map_err(Failure::at(Step::EnterNamespace))
}

/// Joins a user namespace, unless we are in it.
fn join_userns(userns: &OwnedFd) -> Result<(), Failure> {
    let current = NamespaceId::of_path(std::path::Path::new("/proc/self/ns/user")).ok();
    if NamespaceId::of(userns).ok() == current {
        return Ok(());
    }
    setns(userns, CloneFlags::CLONE_NEWUSER).map_err(Failure::at(Step::JoinUserns))
}

/// The user namespace that owns a network namespace.
fn owner_of(netns: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: NS_GET_USERNS (ioctl_ns(2)) has no argument.
    let fd = unsafe { libc::ioctl(netns.as_raw_fd(), libc::NS_GET_USERNS as _) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The watch needs to read `/proc/PID/ns` of processes of other users; a listener may be asked for on a low port.
/// Nothing else needs a right.
fn drop_privileges(daemon: Pid) -> nix::Result<()> {
    prctl::set_no_new_privs()?;
    let kept = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.permitted & (CapabilitySet::SYS_PTRACE | CapabilitySet::NET_BIND_SERVICE),
        Err(_) => CapabilitySet::empty(),
    };
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|error| Errno::from_raw(error.raw_os_error()))?;
    die_with(daemon)
}

/// Answers requests until the daemon or the namespace ends.
fn serve(channels: &Channels, end: &OwnedFd, mut watch: Watch) -> Option<Infallible> {
    let mut has_control = true;
    loop {
        let spoke = wait(channels, has_control, &watch)?;
        if spoke.watch && watch.on_event() == Life::Ended {
            // One byte. If it cannot be sent, the hang-up that follows says enough.
            let _ = send(end.as_raw_fd(), &[1], MsgFlags::MSG_NOSIGNAL);
            return None;
        }
        if spoke.data_path {
            answer(&channels.data_path)?;
        }
        if spoke.control {
            // Nobody wants listeners any more: no reason to end.
            has_control = answer(&channels.control).is_some();
        }
    }
}

/// Who has something for the helper.
struct Spoke {
    data_path: bool,
    control: bool,
    watch: bool,
}

/// Sleeps until a channel or the watch has something.
fn wait(channels: &Channels, has_control: bool, watch: &Watch) -> Option<Spoke> {
    let control = has_control.then(|| channels.control.as_fd());
    let requests = std::iter::once(channels.data_path.as_fd()).chain(control);
    let mut events: Vec<_> = requests
        .map(|channel| PollFd::new(channel, PollFlags::POLLIN))
        .chain(watch.interest().map(|(fd, flags)| PollFd::new(fd, flags)))
        .collect();
    match poll(&mut events, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(_) => return None,
    }
    let mut spoke = events.iter().map(|event| event.any().unwrap_or(true));
    Some(Spoke {
        data_path: spoke.next().unwrap_or(false),
        control: has_control && spoke.next().unwrap_or(false),
        watch: spoke.next().unwrap_or(false),
    })
}

/// Answers one request; none: nobody asks any more.
fn answer(channel: &Channel) -> Option<()> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let Ok(Received::Message(length, _)) = channel.receive(&mut buffer) else {
        return None;
    };
    let SocketRequest { sequence, wanted } = SocketRequest::decode(buffer.get(..length)?)?;
    let opened = match wanted {
        Wanted::ToConnect { protocol, to } => open_several(protocol, to),
        Wanted::Listening { protocol, at, interface } => {
            listen::open(protocol, at, interface.as_deref()).map(|socket| vec![socket])
        }
    };
    let reply = SocketReply { sequence, error: opened.as_ref().err().copied() };
    channel.send(&reply.encode(), opened.iter().flatten().map(OwnedFd::as_fd)).ok()
}

/// Sockets that are not connected yet, as many as a message carries: the daemon uses them, one after the other.
fn open_several(protocol: Protocol, to: SocketAddr) -> nix::Result<Vec<OwnedFd>> {
    let family = match to.is_ipv4() {
        true => AddressFamily::Inet,
        false => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let open = || socket(family, kind, flags, None);
    let mut sockets = vec![open()?];
    // One is enough to go on with.
    sockets.extend((1..DESCRIPTORS_MAX).map_while(|_| open().ok()));
    Ok(sockets)
}
