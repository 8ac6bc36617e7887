//! The host's resolvers: `/etc/resolv.conf`, read at the start and again whenever it changes.
//!
//! # Theory of operation
//!
//! The file is replaced by some programs (a new file is moved over it), rewritten by others, and often a
//! symbolic link to where systemd-resolved or NetworkManager keep theirs. So every directory that a link of
//! the chain stands in is watched for the link's name, and the file itself for what is written to it from
//! elsewhere (a container's `/etc/resolv.conf` is a bind mount of a file in another directory). Whatever happens,
//! the file is read again once it was quiet for [`QUIET`], and the watches are made anew.
//!
//! A file that cannot be read at the start means no resolvers; one that cannot be read later leaves those in
//! force that were there: it is being replaced by something slower than we are.
//!
//! The file is opened at the start by the daemon and followed by its keeper ([`crate::keeper`]), which alone can
//! open files then.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use resolv_conf::ScopedIp;
use rustix::net::netdevice::name_to_index;

/// Where the system keeps it.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How long the file must not have changed before it is read: programs truncate it, then write.
const QUIET: Duration = Duration::from_millis(20);

/// Resolvers that count, as in the C library (`MAXNS`).
const RESOLVERS_MAX: usize = 3;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most symbolic links that are followed.
const LINKS_MAX: usize = 16;

/// The file and those that lead to it.
pub(crate) struct ResolvConf {
    path: PathBuf,
    /// None: changes are not followed.
    inotify: Option<Inotify>,
    /// Directories, with the name in them that counts; and the file, without a name.
    watches: Vec<(WatchDescriptor, Option<OsString>)>,
    /// What the file said last.
    resolvers: Vec<SocketAddr>,
    /// When the file is to be read again.
    due: Option<Instant>,
    /// To ask for the numbers of interfaces by; none: those with names are unknown.
    interfaces: Option<OwnedFd>,
}

impl ResolvConf {
    /// Reads the file and watches it. Tells what does not work out; last of all, why there are no resolvers.
    pub(crate) fn open(path: &Path) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(errno) = inotify {
            warnings.push(format!(
                "changes of {} are not followed: inotify: {errno}; raise fs.inotify.max_user_instances",
                path.display()
            ));
        }
        let mut this = Self {
            path: path.to_owned(),
            inotify: inotify.ok(),
            watches: Vec::new(),
            resolvers: Vec::new(),
            due: None,
            interfaces: interfaces().ok(),
        };
        // Watched first: what changes while it is read is seen afterwards.
        this.watch();
        match this.read() {
            Ok(resolvers) => {
                if resolvers.is_empty() {
                    let path = path.display();
                    warnings
                        .push(format!("no resolvers in {path}: the guest's DNS is not answered"));
                }
                this.resolvers = resolvers;
            }
            Err(error) => warnings.push(format!(
                "cannot read {}: {error}; the guest's DNS is not answered",
                path.display()
            )),
        }
        (this, warnings)
    }

    /// What the file said last.
    pub(crate) fn resolvers(&self) -> &[SocketAddr] {
        &self.resolvers
    }

    /// The directories that lead to the file.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        chain(&self.path).into_iter().filter_map(|at| Some(at.parent()?.to_owned())).collect()
    }

    /// All descriptors that it takes to follow the file.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fd().into_iter().chain(self.interfaces.as_ref().map(AsFd::as_fd))
    }

    /// What becomes readable when the file may have changed.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd())
    }

    /// When [`ResolvConf::reload`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Something may have happened to the file.
    pub(crate) fn on_readable(&mut self, now: Instant) {
        let Some(inotify) = &self.inotify else { return };
        let events = match inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => Vec::new(),
        };
        let concerns_us = |event: &nix::sys::inotify::InotifyEvent| {
            let is_lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            let is_ours = |(wd, name): &(WatchDescriptor, Option<OsString>)| {
                *wd == event.wd && (name.is_none() || *name == event.name)
            };
            // What comes late for a watch that was removed is IN_IGNORED.
            is_lost || self.watches.iter().any(is_ours)
        };
        if events.iter().any(concerns_us) {
            self.due = Some(now + QUIET);
        }
    }

    /// Reads the file again. Some: the resolvers are others now. The error is a sentence for people.
    pub(crate) fn reload(&mut self) -> Result<Option<&[SocketAddr]>, String> {
        self.due = None;
        self.watch();
        match self.read() {
            Ok(resolvers) if resolvers != self.resolvers => {
                self.resolvers = resolvers;
                Ok(Some(&self.resolvers))
            }
            Ok(_) => Ok(None),
            Err(error) => Err(format!(
                "cannot read {} any more: {error}; its last resolvers are kept",
                self.path.display()
            )),
        }
    }

    /// The resolvers that the file names, in its order. Lines that are none of ours are passed over.
    fn read(&self) -> io::Result<Vec<SocketAddr>> {
        let mut text = Vec::new();
        fs::File::open(&self.path)?.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        Ok(parse(&text, self.interfaces.as_ref()))
    }

    /// Watches the chain of links as it is now.
    fn watch(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        for (watch, _) in self.watches.drain(..) {
            // EINVAL: the kernel has removed it, with what it watched.
            let _ = inotify.rm_watch(watch);
        }
        let in_directory = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB;
        let to_file = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        for at in chain(&self.path) {
            let (Some(directory), Some(name)) = (at.parent(), at.file_name()) else { return };
            // Two links in one directory share a watch: the kernel answers with the same descriptor.
            if let Ok(watch) = inotify.add_watch(directory, in_directory) {
                self.watches.push((watch, Some(name.to_owned())));
            }
        }
        if let Ok(watch) = inotify.add_watch(&self.path, to_file) {
            self.watches.push((watch, None));
        }
    }
}

/// The file, what it leads to if it is a symbolic link, and so on.
fn chain(path: &Path) -> Vec<PathBuf> {
    let mut links = vec![path.to_owned()];
    while let Some(at) = links.last()
        && let (Ok(target), Some(directory)) = (fs::read_link(at), at.parent())
        && links.len() < LINKS_MAX
    {
        links.push(directory.join(target));
    }
    links
}

/// Any socket answers for all interfaces of its network namespace.
fn interfaces() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

fn parse(text: &[u8], interfaces: Option<&OwnedFd>) -> Vec<SocketAddr> {
    let (config, _) = resolv_conf::Config::parse_with_errors(text);
    let address = |nameserver| address(nameserver, interfaces);
    config.nameservers.iter().map(address).take(RESOLVERS_MAX).collect()
}

fn address(nameserver: &ScopedIp, interfaces: Option<&OwnedFd>) -> SocketAddr {
    match nameserver {
        ScopedIp::V4(ip) => (*ip, 53).into(),
        ScopedIp::V6(ip, None) => (*ip, 53).into(),
        ScopedIp::V6(ip, Some(scope)) => {
            let named = || name_to_index(interfaces?, scope).ok();
            let index = scope.parse().ok().or_else(named);
            SocketAddrV6::new(*ip, 53, 0, index.unwrap_or(0)).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::unix::fs::symlink;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("usernet-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Waits for an event, then does as the control thread does.
    fn next_change(file: &mut ResolvConf) -> Option<Vec<SocketAddr>> {
        let mut fds = [PollFd::new(file.fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(5_000u16)).unwrap();
        file.on_readable(Instant::now());
        file.deadline()?;
        file.reload().ok().flatten().map(<[_]>::to_vec)
    }

    fn at(text: &str) -> Vec<SocketAddr> {
        text.split_whitespace().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn the_first_three_nameservers_count_and_nonsense_does_not() {
        let text =
            b"# c\nsearch example.com\nnameserver 127.0.0.53\nnameserver x\noptions edns0 \xff\n\
            nameserver fd00::1\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n";
        assert_eq!(parse(text, None), at("127.0.0.53:53 [fd00::1]:53 9.9.9.9:53"));
        assert!(parse(b"", None).is_empty());
    }

    #[test]
    fn a_scoped_resolver_keeps_its_interface() {
        let lo = nix::net::if_::if_nametoindex("lo").unwrap();
        let expected = SocketAddrV6::new("fe80::1".parse().unwrap(), 53, 0, lo);
        let interfaces = interfaces().unwrap();
        assert_eq!(parse(b"nameserver fe80::1%lo\n", Some(&interfaces)), [expected.into()]);
    }

    #[test]
    fn every_way_of_changing_the_file_is_followed() {
        let directory = Directory::new("resolv");
        let (path, real) = (directory.0.join("resolv.conf"), directory.0.join("real"));
        fs::write(&real, "nameserver 192.0.2.1\n").unwrap();
        symlink("real", &path).unwrap();
        let (mut file, warnings) = ResolvConf::open(&path);
        assert_eq!((file.resolvers(), warnings.len()), (&at("192.0.2.1:53")[..], 0));

        fs::write(&real, "nameserver 192.0.2.2\n").unwrap();
        assert_eq!(next_change(&mut file), Some(at("192.0.2.2:53")), "rewritten in place");

        fs::write(directory.0.join("new"), "nameserver 192.0.2.3\n").unwrap();
        fs::rename(directory.0.join("new"), &real).unwrap();
        assert_eq!(next_change(&mut file), Some(at("192.0.2.3:53")), "moved over");

        fs::write(directory.0.join("other"), "nameserver 192.0.2.4\n").unwrap();
        symlink("other", directory.0.join("link")).unwrap();
        fs::rename(directory.0.join("link"), &path).unwrap();
        assert_eq!(next_change(&mut file), Some(at("192.0.2.4:53")), "the link leads elsewhere");

        fs::remove_file(&path).unwrap();
        assert_eq!(next_change(&mut file), None, "gone: the last ones are kept");
        fs::write(&path, "nameserver 192.0.2.5\n").unwrap();
        assert_eq!(next_change(&mut file), Some(at("192.0.2.5:53")), "back again");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_warning() {
        let (file, warnings) = ResolvConf::open(Path::new("/nonexistent/resolv.conf"));
        assert!(file.resolvers().is_empty());
        assert!(warnings[0].starts_with("cannot read /nonexistent/resolv.conf"), "{warnings:?}");
    }
}
