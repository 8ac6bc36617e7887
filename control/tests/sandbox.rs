//! What is left to the daemon after its set-up: as the kernel shows it from outside, as a process finds it that has
//! confined itself by the same functions, and where this machine does not give a part of it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, fork, geteuid, setgroups, setresgid, setresuid};
use usernet_control::api::{Client, ClientError, ErrorCode};
use usernet_control::sandbox::{self, Policy, Report};
use usernet_control_tests::{Account, eventually, free_port, is_alive, status, stderr, usernetd};

/// A `usernetd` that is ready, on a namespace of its own.
struct Daemon {
    child: Child,
    guest: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(account: &Account, line: &str, prepare: impl FnOnce(&mut Command)) -> Self {
        Self::try_start(account, line, prepare).unwrap_or_else(|told| panic!("{told}"))
    }

    /// The error is what it said, and its exit status.
    fn try_start(
        account: &Account,
        line: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self, String> {
        let mut guest = Self::guest(account);
        let socket = account.home.join("s");
        let mut command = account.program(usernetd());
        command.args(["--netns", &guest.id().to_string()]).arg("--api-socket").arg(&socket);
        command.args(line.split_ascii_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if said.is_empty() {
            let output = child.wait_with_output().unwrap();
            guest.kill().unwrap();
            guest.wait().unwrap();
            return Err(format!("{} {}", status(&output), stderr(&output)));
        }
        Ok(Self { child, guest, socket })
    }

    /// A process in a network namespace of its own.
    fn guest(account: &Account) -> Child {
        let mut unshare = account.program("unshare");
        if !account.uid.is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--net", "sh", "-c", "echo; exec cat"]);
        let mut guest = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(guest.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        guest
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    fn report(&self) -> Report {
        self.client().status().unwrap().sandbox
    }

    /// A process of its own, by its name. It gives itself that, perhaps after the daemon is ready.
    fn process(&self, name: &str) -> i32 {
        let mut found = None;
        eventually(name, || {
            found = self.child_named(name);
            found.is_some()
        });
        found.unwrap()
    }

    fn child_named(&self, name: &str) -> Option<i32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let is_it = |child: &&str| {
            fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default().trim() == name
        };
        children.split_whitespace().find(is_it)?.parse().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for child in [&mut self.child, &mut self.guest] {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// The fields of `/proc/PID/task/TID/status` of all threads.
fn threads(pid: i32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    tasks.map(status).collect()
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// A capability as a mask in `/proc/PID/status`.
fn mask(capabilities: &[u32]) -> String {
    format!("{:016x}", capabilities.iter().fold(0_u64, |mask, bit| mask | 1 << bit))
}

const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_SYS_PTRACE: u32 = 19;
const CAP_DAC_OVERRIDE: u32 = 1;

#[test]
fn after_set_up_the_kernel_shows_every_thread_confined() {
    for account in Account::each() {
        for backend in ["io-uring", "epoll"] {
            let line = format!("--backend {backend} --workers 3");
            let daemon = Daemon::start(&account, &line, |_| ());
            let pid = daemon.pid();
            let is_root = account.uid.is_root();
            let left = if is_root { mask(&[CAP_NET_BIND_SERVICE]) } else { mask(&[]) };
            let threads = threads(pid);
            assert_eq!(threads.len(), 4, "three workers and the control thread");
            for thread in &threads {
                assert_eq!(thread["NoNewPrivs"], "1");
                assert_eq!(thread["Seccomp"], "2");
                for set in ["CapEff", "CapPrm"] {
                    assert_eq!(thread[set], left, "{set}");
                }
                assert_eq!((&*thread["CapInh"], &*thread["CapAmb"]), (&*mask(&[]), &*mask(&[])));
            }
            let (own, pid) = ("self", &pid.to_string());
            for kind in ["mnt", "ipc", "uts"] {
                assert_ne!(namespace(pid, kind), namespace(own, kind), "{kind}");
            }
            assert_eq!(namespace(pid, "user") == namespace(own, "user"), is_root);
            assert_eq!(namespace(pid, "net"), namespace(own, "net"), "its sockets are the host's");
            let children = fs::read_link(format!("/proc/{pid}/ns/pid_for_children"));
            assert!(children.is_err(), "a PID namespace without a first process: {children:?}");
            let root = fs::read_dir(format!("/proc/{pid}/root")).unwrap().count();
            assert_eq!(root, 0, "its root directory is empty");
            let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
            assert_eq!(mounts.lines().count(), 1, "{mounts}");
            assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
            let report = daemon.report();
            assert_eq!(report.missing, Vec::<String>::new());
            assert!(report.seccomp && report.landlock && report.empty_root && report.no_new_privs);
            let kinds = ["user", "mnt", "ipc", "uts", "pid"];
            assert_eq!(report.namespaces, kinds[usize::from(is_root)..]);
            assert_eq!(report.capabilities.len(), usize::from(is_root));
        }
    }
}

#[test]
fn every_personality_ends_in_the_same_sandbox() {
    for account in Account::each() {
        for words in [
            &["slirp4netns", "--configure", "PID", "tap0"][..],
            &["slirp4netns", "--configure", "--enable-sandbox", "--enable-seccomp", "PID", "tap0"],
            &["pasta", "--foreground", "--config-net", "PID"],
        ] {
            let mut guest = Daemon::guest(&account);
            let pid = guest.id().to_string();
            let words: Vec<_> = words.iter().map(|w| if *w == "PID" { &pid } else { *w }).collect();
            let mut command = account.program(usernetd());
            command.args(&words).stdout(Stdio::null()).stderr(Stdio::null());
            let mut daemon = command.spawn().unwrap();
            let is_confined = || {
                let threads = threads(daemon.id() as i32);
                threads.len() == 2 && threads.iter().all(|thread| thread["Seccomp"] == "2")
            };
            eventually("it is confined", is_confined);
            let pid = daemon.id();
            assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0, "{words:?}");
            assert_eq!(threads(pid as i32)[0]["NoNewPrivs"], "1", "{words:?}");
            for child in [&mut daemon, &mut guest] {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
}

#[test]
fn its_two_helpers_have_what_they_need_and_no_more() {
    for account in Account::each() {
        let daemon = Daemon::start(&account, "", |_| ());
        let is_root = account.uid.is_root();
        // In the guest's user namespace an ordinary user has all capabilities, too.
        let helper = mask(&[CAP_SYS_PTRACE, CAP_NET_BIND_SERVICE]);
        let keeper = if is_root { mask(&[CAP_DAC_OVERRIDE]) } else { mask(&[]) };
        for (name, left) in [("usernetd-netns", helper), ("usernetd-keeper", keeper)] {
            let pid = daemon.process(name);
            // It begins with this, while the daemon goes on.
            eventually("it is confined", || threads(pid)[0]["Seccomp"] == "2");
            let threads = threads(pid);
            assert_eq!(threads.len(), 1, "{name}");
            assert_eq!(threads[0]["NoNewPrivs"], "1", "{name}");
            assert_eq!(threads[0]["Seccomp"], "2", "{name}");
            assert_eq!(threads[0]["CapEff"], left, "{name}");
            let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let targets = descriptors.map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
            let strange = |target: &PathBuf| {
                let known =
                    ["/dev/null", "socket:", "anon_inode:inotify", "anon_inode:[pidfd]", "pidfd:"];
                !known.iter().any(|known| target.to_string_lossy().starts_with(known))
            };
            let strange: Vec<_> = targets.filter(strange).collect();
            assert!(strange.is_empty(), "{name}: {strange:?}");
        }
    }
}

/// How an attempt ended: an error, or the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Succeeded,
    Failed(Errno),
    Killed(Signal),
}

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was given up.
    Before,
    /// Namespaces, Landlock.
    Entered,
    /// Everything.
    Closed,
}

/// What `attempt` comes to in a process of this user that has given up what the stage says.
fn attempted(account: &Account, policy: Policy, stage: Stage, attempt: fn() -> i64) -> Outcome {
    const BROKEN: i32 = 255;
    // SAFETY: glibc makes the heap usable in a forked child; the child makes system calls and exits.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, BROKEN) => panic!("the sandbox itself failed"),
            WaitStatus::Exited(_, 0) => Outcome::Succeeded,
            WaitStatus::Exited(_, errno) => Outcome::Failed(Errno::from_raw(errno)),
            WaitStatus::Signaled(_, signal, _) => Outcome::Killed(signal),
            other => panic!("{other:?}"),
        },
        ForkResult::Child => {
            let status = match prepared(account, policy, stage) {
                Some(()) if attempt() >= 0 => 0,
                Some(()) => Errno::last_raw(),
                None => BROKEN,
            };
            // SAFETY: ends the child without the test's exit handlers.
            unsafe { libc::_exit(status) }
        }
    }
}

fn prepared(account: &Account, policy: Policy, stage: Stage) -> Option<()> {
    if account.uid != geteuid() {
        let (uid, gid) = (account.uid, Gid::from_raw(account.uid.as_raw()));
        setgroups(&[]).ok()?;
        setresgid(gid, gid, gid).ok()?;
        setresuid(uid, uid, uid).ok()?;
        nix::sys::prctl::set_dumpable(true).ok()?;
    }
    if stage == Stage::Before {
        return Some(());
    }
    let entered = sandbox::enter(policy).ok()?;
    if stage == Stage::Closed {
        let report = entered.close().ok()?;
        return report.missing.is_empty().then_some(());
    }
    // The rest is given up with the process.
    Some(())
}

macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments point to nothing, or to what outlives the call.
        unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

fn open_file() -> i64 {
    call!(SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), libc::O_RDONLY)
}

fn open_root() -> i64 {
    call!(SYS_openat, libc::AT_FDCWD, c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY)
}

fn see_file() -> i64 {
    call!(SYS_faccessat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), libc::F_OK)
}

fn signal_parent() -> i64 {
    call!(SYS_kill, Pid::parent().as_raw(), 0)
}

fn mount_something() -> i64 {
    let (none, tmpfs) = (std::ptr::null::<libc::c_char>(), c"tmpfs".as_ptr());
    call!(SYS_mount, tmpfs, c"/".as_ptr(), tmpfs, 0, none)
}

#[test]
fn each_layer_holds_without_those_above_it() {
    for account in Account::each() {
        let at = |stage, attempt| attempted(&account, Policy::Auto, stage, attempt);
        for attempt in [open_file, open_root, see_file] {
            assert_eq!(
                at(Stage::Before, attempt),
                Outcome::Succeeded,
                "there is something to lose"
            );
        }
        assert_eq!(at(Stage::Entered, see_file), Outcome::Failed(Errno::ENOENT), "an empty root");
        assert_eq!(at(Stage::Entered, open_root), Outcome::Failed(Errno::EACCES), "Landlock");
        assert_eq!(at(Stage::Entered, signal_parent), Outcome::Failed(Errno::EPERM), "its scope");
        assert_eq!(at(Stage::Entered, mount_something), Outcome::Failed(Errno::EPERM), "Landlock");
        assert_eq!(at(Stage::Closed, open_root), Outcome::Failed(Errno::EPERM), "no such call");
    }
}

/// A system call.
type Attempt = fn() -> i64;

/// What an intruder might try, and whether the trial ends it.
const ATTEMPTS: &[(&str, bool, Attempt)] = &[
    ("open a file", false, open_file),
    ("open the root directory", false, open_root),
    ("look for a file", false, see_file),
    ("signal another process", false, signal_parent),
    ("make a file", false, || {
        call!(SYS_openat, libc::AT_FDCWD, c"/x".as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600)
    }),
    ("start a program", true, || {
        let path = CString::new("/bin/true").unwrap();
        let args = [path.as_ptr(), std::ptr::null()];
        call!(SYS_execve, path.as_ptr(), args.as_ptr(), std::ptr::null::<libc::c_void>())
    }),
    ("start a process", true, || call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)),
    ("make a user namespace", true, || call!(SYS_unshare, libc::CLONE_NEWUSER)),
    ("make a network namespace", true, || call!(SYS_unshare, libc::CLONE_NEWNET)),
    ("enter a namespace", true, || call!(SYS_setns, 0, 0)),
    ("mount something", true, mount_something),
    ("change the root directory", true, || call!(SYS_chroot, c"/".as_ptr())),
    ("trace its parent", true, || {
        call!(SYS_ptrace, libc::PTRACE_SEIZE, Pid::parent().as_raw(), 0, 0)
    }),
    ("read another process's memory", true, || {
        call!(SYS_process_vm_readv, Pid::parent().as_raw(), 0, 0, 0, 0, 0)
    }),
    ("load a program into the kernel", true, || call!(SYS_bpf, 0, 0, 0)),
    ("make a ring", true, || call!(SYS_io_uring_setup, 1, 0)),
    ("use the keyring", true, || call!(SYS_keyctl, 0, 0, 0, 0, 0)),
    ("become another user", true, || call!(SYS_setuid, 0)),
    ("open a netlink socket", false, || {
        call!(SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
    }),
    ("open a unix socket", false, || call!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("open a packet socket", false, || call!(SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("open a raw socket", false, || {
        call!(SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("open a socket of a rare protocol", false, || {
        call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)
    }),
    ("load a protocol by an option", false, || {
        let socket = call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0);
        call!(SYS_setsockopt, socket, libc::SOL_TCP, libc::TCP_ULP, c"tls".as_ptr(), 4)
    }),
    ("get executable memory", false, || {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        call!(SYS_mmap, 0, 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }),
    ("be scheduled in another class", false, || {
        call!(SYS_sched_setscheduler, 0, libc::SCHED_IDLE, &raw const PRIORITY)
    }),
    ("schedule a process by its number", false, || {
        let number = Pid::this().as_raw();
        call!(SYS_sched_setscheduler, number, libc::SCHED_BATCH, &raw const PRIORITY)
    }),
    ("look for processes", false, || call!(SYS_pidfd_open, Pid::parent().as_raw(), 0)),
];

/// That of classes without priorities.
static PRIORITY: libc::sched_param = libc::sched_param { sched_priority: 0 };

#[test]
fn a_confined_process_can_do_nothing_of_what_an_intruder_tries() {
    for account in Account::each() {
        for (what, is_fatal, attempt) in ATTEMPTS {
            let outcome = attempted(&account, Policy::Auto, Stage::Closed, *attempt);
            let expected = match is_fatal {
                true => Outcome::Killed(Signal::SIGSYS),
                false => Outcome::Failed(Errno::EPERM),
            };
            assert_eq!(outcome, expected, "{what}");
        }
        // What it is there for goes on.
        let socket = || call!(SYS_socket, libc::AF_INET6, libc::SOCK_DGRAM, 0);
        let outcome = attempted(&account, Policy::Auto, Stage::Closed, socket);
        assert_eq!(outcome, Outcome::Succeeded);
    }
}

#[test]
fn under_strict_whatever_is_not_in_the_list_ends_the_process() {
    let account = Account::ordinary();
    let strict = |attempt| attempted(&account, Policy::Strict, Stage::Closed, attempt);
    assert_eq!(strict(|| call!(SYS_sync)), Outcome::Killed(Signal::SIGSYS));
    assert_eq!(strict(see_file), Outcome::Killed(Signal::SIGSYS));
    assert_eq!(strict(open_file), Outcome::Failed(Errno::EPERM), "the C library tries it");
    assert_eq!(strict(|| call!(SYS_getpid)), Outcome::Succeeded);
    let let_others_go_on =
        || call!(SYS_sched_setscheduler, 0, libc::SCHED_BATCH, &raw const PRIORITY);
    assert_eq!(strict(let_others_go_on), Outcome::Succeeded);
}

/// Lets a program find a system call refused with this error.
fn deny(command: &mut Command, call: libc::c_long, errno: Errno) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let denied = SeccompAction::Errno(errno as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let rules = [(call, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    let apply =
        move || seccompiler::apply_filter(&filter).map_err(|_| std::io::Error::last_os_error());
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(apply) };
}

#[test]
fn what_this_machine_does_not_give_is_told_and_the_rest_is_taken() {
    for account in Account::each() {
        for (call, errno, words) in [
            (libc::SYS_unshare, Errno::EPERM, "no namespaces: "),
            (libc::SYS_unshare, Errno::ENOSPC, "no namespaces: "),
            (libc::SYS_pivot_root, Errno::EPERM, "no empty root directory: EPERM"),
            (libc::SYS_landlock_create_ruleset, Errno::ENOSYS, "no Landlock: this kernel"),
            (
                libc::SYS_landlock_create_ruleset,
                Errno::EOPNOTSUPP,
                "no Landlock: it is switched off",
            ),
            (libc::SYS_seccomp, Errno::EINVAL, "no system call filter: "),
        ] {
            let daemon = Daemon::start(&account, "", |command| deny(command, call, errno));
            let report = daemon.report();
            assert_eq!(report.missing.len(), 1, "{report:?}");
            assert!(report.missing[0].starts_with(words), "{report:?}");
            assert_eq!(report.seccomp, call != libc::SYS_seccomp);
            assert_eq!(report.landlock, call != libc::SYS_landlock_create_ruleset);
            assert_eq!(report.namespaces.is_empty(), call == libc::SYS_unshare);
            assert_eq!(threads(daemon.pid())[0]["NoNewPrivs"], "1");
            drop(daemon);

            let strict = "--sandbox strict";
            let refused = Daemon::try_start(&account, strict, |command| deny(command, call, errno));
            let told = refused.err().expect("strict means all of it");
            let expected =
                format!("1 usernetd: cannot confine usernetd as --sandbox strict demands: {words}");
            let last = told.lines().last().unwrap_or_default();
            assert!(told.starts_with("1 ") && last.contains(&expected[2..]), "{told}");
            assert!(!account.home.join("s").exists(), "nothing is left behind");
        }
    }
}

#[test]
fn what_is_missing_is_said_once_when_it_is_asked_for() {
    let account = Account::ordinary();
    for (level, count) in [("warn", 0), ("info", 1)] {
        let line = format!("--log-level {level}");
        let mut daemon = Daemon::start(&account, &line, |command| {
            deny(command, libc::SYS_unshare, Errno::EPERM);
        });
        daemon.client().stop().unwrap();
        daemon.child.wait().unwrap();
        let mut told = String::new();
        daemon.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(told.matches("not confined whole: no namespaces").count(), count, "{told}");
    }
}

#[test]
fn the_sandbox_can_be_left_out() {
    for account in Account::each() {
        let daemon = Daemon::start(&account, "--sandbox none", |_| ());
        for pid in
            [daemon.pid(), daemon.process("usernetd-keeper"), daemon.process("usernetd-netns")]
        {
            assert_eq!(threads(pid)[0]["Seccomp"], "0");
        }
        assert_eq!(namespace(&daemon.pid().to_string(), "mnt"), namespace("self", "mnt"));
        assert_eq!(daemon.report(), Report { policy: Policy::None, ..Report::default() });
    }
}

#[test]
fn the_callers_mounts_stay_as_they_are() {
    for account in Account::each() {
        // "root" of a user namespace with mounts that are shared, as in a container engine.
        let script = "\
            unshare --net sh -c 'echo; exec sleep 1000' >ready & pid=$!\n\
            until [ -s ready ]; do sleep 0.01; done\n\
            mount -t tmpfs tmpfs inner && mount --make-shared inner && mkdir inner/below\n\
            mount -t tmpfs tmpfs inner/below\n\
            cp /proc/self/mountinfo before\n\
            \"$0\" --netns $pid --pid-file pid --api-socket api --ready-fd 5 5>up &\n\
            until [ -s up ]; do sleep 0.01; done\n\
            cp /proc/self/mountinfo after; grep -c . /proc/$(cat pid)/mountinfo >its\n\
            readlink /proc/self/ns/user /proc/$(cat pid)/ns/user >users\n\
            umount inner/below && rmdir inner/below && echo freed >freed\n\
            kill $(cat pid); wait %2; ls api pid 2>/dev/null >left; kill $pid; wait\n";
        fs::create_dir(account.home.join("inner")).unwrap();
        chown(account.home.join("inner"), Some(account.uid.as_raw()), None).unwrap();
        let mut command = account.program("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--propagation", "shared"]);
        let output = command.args(["sh", "-c", script]).arg(usernetd()).output().unwrap();
        let file = |name: &str| {
            fs::read_to_string(account.home.join(name))
                .unwrap_or_else(|e| panic!("{name}: {e}: {output:?}"))
        };
        assert_eq!(file("before"), file("after"));
        assert_eq!(file("its"), "1\n", "it is in a mount namespace of its own");
        let users = file("users");
        let (caller, daemon) = users.trim().split_once('\n').unwrap();
        assert_eq!(caller, daemon, "who may do it needs no user namespace");
        assert_eq!(file("freed"), "freed\n", "no mount is held by the daemon");
        assert_eq!(file("left"), "", "its files go with it");
    }
}

#[test]
fn in_a_chroot_it_says_that_the_root_is_not_empty_and_opens_nothing_there() {
    let account = Account::own();
    if !account.uid.is_root() {
        return usernet_lab::skip::skip_this("only root can change its root directory");
    }
    let place = account.home.join("place");
    fs::create_dir_all(place.join("proc")).unwrap();
    fs::write(place.join("secret"), "").unwrap();
    // SAFETY: as in `attempted`.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
        ForkResult::Child => {
            let look = || {
                nix::unistd::chroot(&place).ok()?;
                nix::unistd::chdir("/").ok()?;
                fs::File::open("/secret").ok()?;
                let entered = sandbox::enter(Policy::Auto).ok()?;
                let is_open = Path::new("/secret").exists() && fs::File::open("/secret").is_ok();
                let missing = entered.close().ok()?.missing;
                let is_told = missing.len() == 1 && missing[0].starts_with("no empty root");
                (is_told && !is_open).then_some(())
            };
            // SAFETY: ends the child without the test's exit handlers.
            unsafe { libc::_exit(i32::from(look().is_none())) }
        }
    }
}

#[test]
fn forwards_are_added_in_the_sandbox_and_refused_with_their_reason() {
    for account in Account::each() {
        let daemon = Daemon::start(&account, "--sandbox strict", |_| ());
        let mut client = daemon.client();
        let mut add = |text: &str| client.forward_add(vec![text.parse().unwrap()]);
        let low = add("127.0.0.77:81:80");
        let start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
        if account.uid.is_root() || start.trim().parse::<u16>().unwrap() <= 81 {
            assert_eq!(low.unwrap().forwards.len(), 1, "CAP_NET_BIND_SERVICE was kept");
        } else {
            let Err(ClientError::Refused(error)) = low else { panic!("{low:?}") };
            assert_eq!(error.code, ErrorCode::NotPermitted);
            assert!(error.message.contains("sysctl -w net.ipv4.ip_unprivileged_port_start=81"));
        }
        let port = free_port();
        let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let Err(ClientError::Refused(error)) = add(&format!("127.0.0.1:{port}:80")) else {
            panic!()
        };
        assert_eq!(error.code, ErrorCode::PortInUse);
        assert_eq!(error.message.lines().count(), 1);
        drop(taken);
        assert_eq!(add(&format!("127.0.0.1%lo:{port}:80")).unwrap().forwards.len(), 1);
        let refused = add("127.0.0.1%nowhere0:82:80");
        assert!(matches!(refused, Err(ClientError::Refused(_))));
        assert!(is_alive(daemon.pid()));
    }
}

#[test]
fn a_daemon_that_is_killed_leaves_no_files() {
    for account in Account::each() {
        let pid_file = account.home.join("pid");
        let line = format!("--pid-file {}", pid_file.display());
        let mut daemon = Daemon::start(&account, &line, |_| ());
        let others = ["usernetd-keeper", "usernetd-netns"].map(|name| daemon.process(name));
        assert!(pid_file.exists() && daemon.socket.exists());
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        eventually("its files are gone", || !pid_file.exists() && !daemon.socket.exists());
        eventually("its processes are gone", || !others.iter().any(|&pid| is_alive(pid)));
    }
}

#[test]
fn a_keeper_that_is_killed_takes_nothing_with_it_but_what_it_did() {
    let account = Account::ordinary();
    let daemon = Daemon::start(&account, "", |_| ());
    let mut client = daemon.client();
    client.status().unwrap();
    let keeper = daemon.process("usernetd-keeper");
    kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
    eventually("it is gone", || !is_alive(keeper));
    client.status().expect("who was let in stays");
    let refused = Client::connect(&daemon.socket).and_then(|mut client| client.status());
    assert!(matches!(refused, Err(ClientError::Refused(e)) if e.code == ErrorCode::Forbidden));
    assert!(is_alive(daemon.pid()));
}

#[test]
fn strangers_are_not_answered_even_if_the_socket_lets_them_connect() {
    if !geteuid().is_root() {
        return usernet_lab::skip::skip_this("only root can be somebody else");
    }
    for account in Account::each() {
        let daemon = Daemon::start(&account, "", |_| ());
        fs::set_permissions(&account.home, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&daemon.socket, fs::Permissions::from_mode(0o666)).unwrap();
        for (uid, is_answered) in [(0, true), (account.uid.as_raw(), true), (469_999, false)] {
            let mut socat = Command::new("socat");
            // A stranger is cut off before it could ask.
            let direction = if is_answered { "-t5" } else { "-u" };
            let socket = format!("UNIX-CONNECT:{}", daemon.socket.display());
            socat.args([direction, &socket, "-"]).uid(uid).gid(uid);
            let mut socat = socat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut input = socat.stdin.take().unwrap();
            if is_answered {
                input.write_all(b"{\"version\":1,\"method\":\"forward.list\"}\n").unwrap();
            }
            drop(input);
            let said = socat.wait_with_output().unwrap().stdout;
            let said = String::from_utf8(said).unwrap();
            assert_eq!(said.contains("result"), is_answered, "{uid}: {said}");
            assert_eq!(said.contains("forbidden"), !is_answered, "{uid}: {said}");
        }
    }
}
