//! The keeper's own process.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, send, sendmsg,
    sockopt::PeerCredentials,
};
use usernet_driver::detach;

use super::{Kept, News};
use crate::owned_path::OwnedPath;
use crate::resolv::ResolvConf;
use crate::sandbox::{self, FileRights, Policy, READABLE};

/// Its name in `ps`.
const NAME: &str = "usernetd-keeper";

/// The only question.
pub(super) const WHO: u8 = b'?';
/// The answer: root, or our own user.
pub(super) const TRUSTED: u8 = b'+';
/// Somebody else.
const STRANGER: u8 = b'-';

/// Keeps until the daemon has ended.
pub(super) fn live(kept: Kept, news: OwnedFd, questions: OwnedFd, policy: Policy) -> ! {
    // A panic shall not unwind into the daemon's frames.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let Kept { resolv_conf, files } = kept;
        let mut keeper = Process { resolv_conf, news, questions: Some(questions) };
        if keeper.isolate(&files, policy).is_ok() {
            keeper.serve();
        }
        drop(files);
    }));
    // SAFETY: ends this process without running the daemon's exit handlers.
    unsafe { libc::_exit(0) }
}

struct Process {
    resolv_conf: Option<ResolvConf>,
    news: OwnedFd,
    /// None: nobody will ask any more.
    questions: Option<OwnedFd>,
}

impl Process {
    /// Lets go of the daemon's descriptors and of the rights that it takes no part in.
    fn isolate(&self, files: &[OwnedPath], policy: Policy) -> nix::Result<()> {
        let of_file = self.resolv_conf.iter().flat_map(ResolvConf::fds);
        let own = [self.news.as_fd()].into_iter().chain(self.questions.as_ref().map(AsFd::as_fd));
        let kept = own.chain(of_file).map(|fd| fd.as_raw_fd()).collect();
        detach::from_caller(NAME, kept)?;
        sandbox::confine_keeper(&self.rights(files), policy);
        Ok(())
    }

    /// Where it may read, and where it may remove.
    fn rights(&self, files: &[OwnedPath]) -> Vec<(PathBuf, FileRights)> {
        let known = READABLE.iter().map(PathBuf::from);
        let on_the_way = self.resolv_conf.iter().flat_map(ResolvConf::directories);
        let readable = known.chain(on_the_way).map(|path| (path, FileRights::Read));
        let parents = files.iter().filter_map(|file| file.path().parent());
        let removable = parents.map(|path: &Path| (path.to_owned(), FileRights::Remove));
        match self.resolv_conf {
            Some(_) => readable.chain(removable).collect(),
            None => removable.collect(),
        }
    }

    /// Returns when the daemon has ended.
    fn serve(&mut self) {
        while let Some(spoke) = self.wait() {
            if spoke.question {
                self.answer();
            }
            if self.follow(spoke.file).is_none() {
                return;
            }
        }
    }

    /// Waits for something to do; none: the daemon has hung up.
    fn wait(&self) -> Option<Spoke> {
        let questions = self.questions.as_ref().map(AsFd::as_fd);
        let file = self.resolv_conf.as_ref().and_then(ResolvConf::fd);
        let mut fds: Vec<_> = [Some(self.news.as_fd()), questions, file]
            .into_iter()
            .flatten()
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
        let mut spoke = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let has_ended = spoke.next().unwrap_or(true);
        let question = questions.is_some() && spoke.next().unwrap_or(false);
        (!has_ended).then(|| Spoke { question, file: spoke.next().unwrap_or(false) })
    }

    fn timeout(&self) -> PollTimeout {
        let due = self.resolv_conf.as_ref().and_then(ResolvConf::deadline);
        let Some(due) = due else { return PollTimeout::NONE };
        let left = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    /// Reads resolv.conf again if it has changed. None: there is nobody to tell.
    fn follow(&mut self, has_events: bool) -> Option<()> {
        let Some(file) = &mut self.resolv_conf else { return Some(()) };
        let now = Instant::now();
        if has_events {
            file.on_readable(now);
        }
        if file.deadline().is_none_or(|due| now < due) {
            return Some(());
        }
        let news = match file.reload() {
            Ok(None) => return Some(()),
            Ok(Some(resolvers)) => News::Resolvers(resolvers.to_vec()),
            Err(warning) => News::Warning(warning),
        };
        let bytes = serde_json::to_vec(&news).ok()?;
        send(self.news.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).ok().map(drop)
    }

    /// Answers one question.
    fn answer(&mut self) {
        let Some(questions) = &self.questions else { return };
        let answered = match receive(questions) {
            Ok(Some(connection)) => {
                let answer = if is_trusted(&connection) { TRUSTED } else { STRANGER };
                send_with(questions, &[answer], None)
            }
            Ok(None) => send_with(questions, &[STRANGER], None),
            Err(errno) => Err(errno),
        };
        if answered.is_err() {
            self.questions = None;
        }
    }
}

/// Who has something for the keeper.
struct Spoke {
    question: bool,
    file: bool,
}

/// Whether the peer of a connection is root or the user whose daemon this is. The mode of the socket says the same, but
/// a descriptor can be handed on.
pub(crate) fn is_trusted(connection: &impl AsFd) -> bool {
    let own = nix::unistd::geteuid();
    getsockopt(&connection.as_fd(), PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own.as_raw())
}

/// The descriptor of a question; an error: nobody asks any more.
fn receive(questions: &OwnedFd) -> nix::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut data = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(questions.as_raw_fd(), &mut data, Some(&mut control), flags)?;
    let mut descriptor = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it. At most one fits in
            // the control buffer.
            descriptor = raw.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    if message.bytes == 0 { Err(Errno::EPIPE) } else { Ok(descriptor) }
}

/// Sends bytes, and a duplicate of a descriptor with them.
pub(super) fn send_with(
    to: &OwnedFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> nix::Result<()> {
    let raw = descriptor.map(|fd| [fd.as_raw_fd()]);
    let rights = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    let data = [IoSlice::new(bytes)];
    sendmsg::<()>(to.as_raw_fd(), &data, rights.as_slice(), MsgFlags::MSG_NOSIGNAL, None).map(drop)
}
