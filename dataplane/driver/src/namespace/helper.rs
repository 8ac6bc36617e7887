//! The process that lives in the guest's namespace.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, socket,
};
use nix::unistd::{ForkResult, Pid, fork, getppid, setpgid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::channel::{Channel, MESSAGE_BYTES_MAX, Received};
use super::configure::configure;
use super::message::{ConnectReply, ConnectRequest, Failure, Report, Step};
use super::tap::{self, errno};
use super::target::{Holder, NamespaceId, OpenTarget};
use super::watch::{HELPER_NAME, Life, Watch};
use super::{AttachError, Request};
use crate::Link;

/// What the helper is started with.
struct Helper<'a> {
    request: &'a Request,
    target: OpenTarget,
    /// Requests and replies.
    channel: Channel,
    /// Where the end is told.
    end: OwnedFd,
    /// Whose life ours hangs on.
    daemon: Pid,
}

/// Forks the helper. Gives its PID.
pub(super) fn start(
    request: &Request,
    target: OpenTarget,
    channel: Channel,
    end: OwnedFd,
) -> Result<Pid, AttachError> {
    let helper = Helper { request, target, channel, end, daemon: Pid::this() };
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
        let Self { request, target, channel, end, daemon } = self;
        if isolate(daemon, &target, &channel, &end).is_err() {
            return;
        }
        let (report, ready) = match set_up(request, target, daemon) {
            Ok((link, warnings, watch)) => {
                let offload = link.offload;
                (Report::Ready { offload, warnings }, Some((link, watch)))
            }
            Err(failure) => (Report::Failed(failure), None),
        };
        let tap = ready.as_ref().map(|(link, _)| link.tap.as_fd());
        if channel.send(&report.encode(), tap).is_err() {
            return;
        }
        // Our descriptor of the TAP goes with `link`: the device's life hangs on the daemon's alone.
        if let Some((link, watch)) = ready {
            drop(link);
            serve(&channel, &end, watch);
        }
    }
}

/// Nothing of the daemon's reaches us, and nothing of ours the daemon's terminal or files.
fn isolate(daemon: Pid, target: &OpenTarget, channel: &Channel, end: &OwnedFd) -> nix::Result<()> {
    SigSet::all().thread_block()?;
    die_with(daemon)?;
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    let name = std::ffi::CString::new(HELPER_NAME).map_err(|_| Errno::EINVAL)?;
    prctl::set_name(&name)?;
    // A working directory keeps its file system from being unmounted.
    nix::unistd::chdir("/")?;
    let mut kept = vec![channel.as_fd().as_raw_fd(), end.as_raw_fd(), target.netns.as_raw_fd()];
    kept.extend(target.userns.as_ref().map(AsRawFd::as_raw_fd));
    kept.extend(match &target.holder {
        Holder::Process(process) => Some(process.as_raw_fd()),
        Holder::Name(_) | Holder::Unknown => None,
    });
    close_all_but(kept)
}

/// Ends us with the daemon. Joining a user namespace revokes it (`commit_creds` in kernel/cred.c), so that it has to be
/// said again.
fn die_with(daemon: Pid) -> nix::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // It may have ended before.
    if getppid() == daemon { Ok(()) } else { Err(Errno::ESRCH) }
}

/// Standard input, output and error become `/dev/null`: a pipe of the daemon's ends when the daemon does.
fn close_all_but(mut kept: Vec<RawFd>) -> nix::Result<()> {
    let null =
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(errno)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    drop(null);
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        close_range(first, fd - 1);
        first = fd + 1;
    }
    close_range(first, RawFd::MAX);
    Ok(())
}

/// `close_range(2)`, Linux 5.9; before it the daemon's descriptors stay open here, which does no harm but to tidiness.
fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: closes descriptors that nothing in this process uses: it is a fork that keeps none but those which
        // the caller left out. By number, because not every C library has a function for it.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Enters, makes, configures. What was made vanishes with its descriptor if this fails.
fn set_up(
    request: &Request,
    target: OpenTarget,
    daemon: Pid,
) -> Result<(Link, Vec<String>, Watch), Failure> {
    let namespace = enter(&target)?;
    let link = tap::create(&request.tap_name, request.offload)?;
    let warnings = configure(request)?;
    let watch =
        Watch::new(namespace, target.holder, daemon.as_raw()).map_err(Failure::at(Step::Watch))?;
    drop_privileges(daemon).map_err(Failure::at(Step::Isolate))?;
    Ok((link, warnings, watch))
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
            let refused = Failure { step: Step::EnterNamespace, errno: Errno::EPERM };
            let owner = owner_of(netns).map_err(|_| refused)?;
            setns(owner, CloneFlags::CLONE_NEWUSER).map_err(|_| refused)?;
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

/// Sockets need no right at all; the watch needs to read `/proc/PID/ns` of processes of other users.
fn drop_privileges(daemon: Pid) -> nix::Result<()> {
    prctl::set_no_new_privs()?;
    let kept = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.permitted & CapabilitySet::SYS_PTRACE,
        Err(_) => CapabilitySet::empty(),
    };
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(|error| Errno::from_raw(error.raw_os_error()))?;
    die_with(daemon)
}

/// Answers requests until the daemon or the namespace ends.
fn serve(channel: &Channel, end: &OwnedFd, mut watch: Watch) -> Option<Infallible> {
    loop {
        let (has_request, has_event) = wait(channel, &watch)?;
        if has_event && watch.on_event() == Life::Ended {
            // One byte. If it cannot be sent, the hang-up that follows says enough.
            let _ = send(end.as_raw_fd(), &[1], MsgFlags::MSG_NOSIGNAL);
            return None;
        }
        if has_request {
            answer(channel)?;
        }
    }
}

/// Sleeps until the channel or the watch has something.
fn wait(channel: &Channel, watch: &Watch) -> Option<(bool, bool)> {
    let request = PollFd::new(channel.as_fd(), PollFlags::POLLIN);
    let mut events: Vec<_> = std::iter::once(request)
        .chain(watch.interest().map(|(fd, flags)| PollFd::new(fd, flags)))
        .collect();
    match poll(&mut events, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(_) => return None,
    }
    let spoke = |event: &PollFd<'_>| event.any().unwrap_or(true);
    Some((events.first().is_some_and(spoke), events.get(1).is_some_and(spoke)))
}

/// Answers one request; none: the daemon is gone.
fn answer(channel: &Channel) -> Option<()> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let Ok(Received::Message(length, _)) = channel.receive(&mut buffer) else {
        return None;
    };
    let request = ConnectRequest::decode(buffer.get(..length)?)?;
    let sequence = request.sequence;
    match open_connection(request) {
        Ok(socket) => {
            let reply = ConnectReply { sequence, error: None };
            channel.send(&reply.encode(), Some(socket.as_fd())).ok()
        }
        Err(errno) => {
            let reply = ConnectReply { sequence, error: Some(errno) };
            channel.send(&reply.encode(), None).ok()
        }
    }
}

/// A socket that is connected or connecting.
fn open_connection(request: ConnectRequest) -> nix::Result<OwnedFd> {
    let family = match request.to.is_ipv4() {
        true => AddressFamily::Inet,
        false => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(request.to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(other) => Err(other),
    }
}
