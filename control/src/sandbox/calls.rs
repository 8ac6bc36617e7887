//! The system calls that each process of a daemon makes after its set-up: one list, from which the filters are compiled
//! and against which the tests hold what the processes really do.
//!
//! A call that is missing here is one that a feature will fail with. So the tests with real programs run under
//! [`Policy::Strict`](super::Policy::Strict), where a missing call ends the daemon; and a test traces the calls of a whole
//! life of a daemon and complains about a [`Use::Yes`] that it did not see. What comes too rarely for that is
//! [`Use::Rare`], with its occasion.
//!
//! Not here, and so denied: opening files (but for reading, in the two processes that stay outside), starting programs,
//! processes and threads, namespaces, mounts, tracing, signals by number, memory that can be executed, sockets that are not
//! TCP, UDP or ping sockets, new rings. What a ring may be asked for, the ring itself restricts
//! (`usernet_driver`, `uring.rs`): a filter does not see it.

use libc::c_long;

/// A process of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// The data path and the control thread.
    Daemon,
    /// In the guest's namespace.
    Helper,
    /// Keeps the daemon's files.
    Keeper,
}

/// Whether a process makes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Never.
    No,
    /// In every life.
    Yes,
    /// When this happens.
    Rare(&'static str),
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its number.
    pub number: c_long,
    /// The name of the number.
    symbol: &'static str,
    daemon: Use,
    helper: Use,
    keeper: Use,
    /// With which arguments: any of these, each of them whole. None: with any.
    pub only: Alternatives,
}

/// What arguments may be. Empty: anything.
pub type Alternatives = &'static [&'static [Condition]];

/// What an argument has to be: `argument & mask == value`, its lower 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// The bits that count.
    pub mask: u32,
    /// What they are.
    pub value: u32,
}

impl Entry {
    /// The call's name.
    pub fn name(&self) -> &'static str {
        self.symbol.trim_start_matches("SYS_")
    }

    /// Whether this process makes it.
    pub const fn use_by(&self, process: Process) -> Use {
        match process {
            Process::Daemon => self.daemon,
            Process::Helper => self.helper,
            Process::Keeper => self.keeper,
        }
    }

    const fn only(mut self, alternatives: Alternatives) -> Self {
        self.only = alternatives;
        self
    }
}

const fn bits(argument: u8, mask: u32, value: u32) -> Condition {
    Condition { argument, mask, value }
}

const fn is(argument: u8, value: i32) -> Condition {
    bits(argument, u32::MAX, value as u32)
}

/// The kind of a socket without its flags (`SOCK_TYPE_MASK` of the kernel).
const fn kind(value: i32) -> Condition {
    bits(1, 0xf, value as u32)
}

/// Memory of any kind but executable.
const NOT_EXECUTABLE: Alternatives = &[&[bits(2, libc::PROT_EXEC as u32, 0)]];

/// For reading: nothing is made, nothing cut.
const READING: Alternatives = &[&[bits(
    2,
    (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY) as u32,
    libc::O_RDONLY as u32,
)]];

/// TCP, UDP, ping.
const INTERNET_SOCKETS: Alternatives = &[
    &[is(0, libc::AF_INET), kind(libc::SOCK_STREAM), is(2, 0)],
    &[is(0, libc::AF_INET), kind(libc::SOCK_DGRAM), is(2, 0)],
    &[is(0, libc::AF_INET), kind(libc::SOCK_DGRAM), is(2, libc::IPPROTO_UDP)],
    &[is(0, libc::AF_INET), kind(libc::SOCK_DGRAM), is(2, libc::IPPROTO_ICMP)],
    &[is(0, libc::AF_INET6), kind(libc::SOCK_STREAM), is(2, 0)],
    &[is(0, libc::AF_INET6), kind(libc::SOCK_DGRAM), is(2, 0)],
    &[is(0, libc::AF_INET6), kind(libc::SOCK_DGRAM), is(2, libc::IPPROTO_UDP)],
    &[is(0, libc::AF_INET6), kind(libc::SOCK_DGRAM), is(2, libc::IPPROTO_ICMPV6)],
];

/// The options that are set, and none of those that load a protocol or a program into the kernel.
const OPTIONS: Alternatives = &[
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_REUSEADDR)],
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_KEEPALIVE)],
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_LINGER)],
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_OOBINLINE)],
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_RCVBUF)],
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_SNDBUF)],
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_PEEK_OFF)],
    &[is(1, libc::SOL_SOCKET), is(2, libc::SO_BINDTODEVICE)],
    &[is(1, libc::IPPROTO_TCP), is(2, libc::TCP_NODELAY)],
    &[is(1, libc::IPPROTO_TCP), is(2, usernet_driver::TCP_INQ)],
    &[is(1, libc::IPPROTO_TCP), is(2, libc::TCP_CONGESTION)],
    &[is(1, libc::SOL_UDP), is(2, libc::UDP_GRO)],
    &[is(1, libc::IPPROTO_IP), is(2, libc::IP_RECVTTL)],
    &[is(1, libc::IPPROTO_IP), is(2, libc::IP_RECVTOS)],
    &[is(1, libc::IPPROTO_IP), is(2, libc::IP_RECVERR)],
    &[is(1, libc::IPPROTO_IP), is(2, libc::IP_PKTINFO)],
    &[is(1, libc::IPPROTO_IP), is(2, libc::IP_MTU_DISCOVER)],
    &[is(1, libc::IPPROTO_IP), is(2, libc::IP_BIND_ADDRESS_NO_PORT)],
    &[is(1, libc::IPPROTO_IPV6), is(2, libc::IPV6_V6ONLY)],
    &[is(1, libc::IPPROTO_IPV6), is(2, libc::IPV6_RECVHOPLIMIT)],
    &[is(1, libc::IPPROTO_IPV6), is(2, libc::IPV6_RECVTCLASS)],
    &[is(1, libc::IPPROTO_IPV6), is(2, libc::IPV6_RECVERR)],
    &[is(1, libc::IPPROTO_IPV6), is(2, libc::IPV6_RECVPKTINFO)],
    &[is(1, libc::IPPROTO_IPV6), is(2, libc::IPV6_MTU_DISCOVER)],
];

/// The thread itself, interrupting others or not.
const CLASSES: Alternatives =
    &[&[is(0, 0), is(1, libc::SCHED_OTHER)], &[is(0, 0), is(1, libc::SCHED_BATCH)]];

/// What is asked of descriptors: not to block, how much is queued, the number of an interface.
const REQUESTS: Alternatives = &[
    &[is(1, libc::FIONBIO as i32)],
    &[is(1, libc::TIOCOUTQ as i32)],
    &[is(1, libc::FIONREAD as i32)],
    &[is(1, SIOCGIFINDEX)],
];

/// `linux/sockios.h`: the number of an interface.
const SIOCGIFINDEX: i32 = 0x8933;

/// `linux/io_uring.h`: the last thing that is done to a ring before it runs.
const ENABLE_RINGS: Alternatives = &[&[is(1, 12)]];

const fn rare(occasion: &'static str) -> Use {
    Use::Rare(occasion)
}

const NO: Use = Use::No;
const YES: Use = Use::Yes;

macro_rules! entry {
    ($symbol:ident, $daemon:expr, $helper:expr, $keeper:expr) => {
        Entry {
            number: libc::$symbol,
            symbol: stringify!($symbol),
            daemon: $daemon,
            helper: $helper,
            keeper: $keeper,
            only: &[],
        }
    };
}

/// All of them.
#[rustfmt::skip]
pub const LIST: &[Entry] = &[
    //                      the daemon  the helper  the keeper
    // Waiting.
    entry!(SYS_io_uring_enter, YES, NO, NO),
    entry!(SYS_io_uring_register, YES, NO, NO).only(ENABLE_RINGS),
    entry!(SYS_epoll_ctl, YES, NO, NO),
    #[cfg(target_arch = "x86_64")]
    entry!(SYS_epoll_wait, YES, NO, NO),
    entry!(SYS_epoll_pwait, rare("the C library of aarch64"), NO, NO),
    #[cfg(target_arch = "x86_64")]
    entry!(SYS_poll, YES, YES, YES),
    entry!(SYS_ppoll, rare("the C library of aarch64"), rare("the same"), rare("the same")),
    entry!(SYS_futex, rare("two threads meet"), NO, NO),
    entry!(SYS_sched_yield, rare("an event is looked for, or a lock is held"), NO, NO),
    entry!(SYS_sched_setscheduler, rare("joined streams are fast"), NO, NO).only(CLASSES),
    entry!(SYS_clock_nanosleep, NO, rare("processes of the guest end in quick succession"), NO),
    entry!(SYS_restart_syscall, rare("stopped and continued"), rare("the same"), rare("the same")),
    entry!(SYS_clock_gettime, rare("a clock that the vDSO cannot read"), rare("the same"), rare("the same")),

    // Descriptors.
    entry!(SYS_read, YES, rare("reading /proc/PID/comm"), YES),
    entry!(SYS_write, YES, NO, NO),
    entry!(SYS_writev, YES, NO, NO),
    entry!(SYS_pread64, rare("scanning for listening ports, a log file is full"), NO, NO),
    entry!(SYS_pwrite64, rare("a log file of limited size"), NO, NO),
    entry!(SYS_ftruncate, rare("a log file of limited size is full"), NO, NO),
    entry!(SYS_close, YES, YES, YES),
    #[cfg(target_arch = "x86_64")]
    entry!(SYS_dup2, rare("pasta goes to the background"), NO, NO),
    entry!(SYS_dup3, rare("the same on aarch64"), NO, NO),
    entry!(SYS_fcntl, YES, YES, YES),
    entry!(SYS_ioctl, YES, rare("a listener on a link-local address"), rare("a resolver with an interface")).only(REQUESTS),
    entry!(SYS_pipe2, YES, NO, NO),
    entry!(SYS_splice, YES, NO, NO),

    // Sockets.
    entry!(SYS_socket, YES, YES, NO).only(INTERNET_SOCKETS),
    entry!(SYS_bind, YES, rare("a listener in the namespace"), NO),
    entry!(SYS_connect, YES, NO, NO),
    entry!(SYS_listen, YES, rare("a listener in the namespace"), NO),
    entry!(SYS_accept4, YES, NO, NO),
    entry!(SYS_shutdown, YES, NO, NO),
    entry!(SYS_getsockname, YES, NO, NO),
    entry!(SYS_getpeername, YES, NO, NO),
    entry!(SYS_getsockopt, YES, NO, YES),
    entry!(SYS_setsockopt, YES, rare("a listener in the namespace"), NO).only(OPTIONS),
    entry!(SYS_sendto, YES, YES, YES),
    entry!(SYS_recvfrom, YES, NO, NO),
    entry!(SYS_sendmsg, YES, YES, YES),
    entry!(SYS_recvmsg, YES, YES, YES),
    entry!(SYS_sendmmsg, YES, NO, NO),
    entry!(SYS_recvmmsg, YES, NO, NO),

    // Memory.
    entry!(SYS_brk, rare("the heap grows"), rare("the same"), rare("the same")),
    entry!(SYS_mmap, rare("the heap grows"), rare("the same"), rare("the same")).only(NOT_EXECUTABLE),
    entry!(SYS_mprotect, rare("the second thread's heap grows"), NO, NO).only(NOT_EXECUTABLE),
    entry!(SYS_mremap, rare("a large table grows"), NO, NO),
    entry!(SYS_munmap, YES, rare("the heap shrinks"), rare("the heap shrinks")),
    entry!(SYS_madvise, YES, NO, NO),
    entry!(SYS_getrandom, rare("a table is hashed"), rare("the same"), rare("the same")),

    // Files: by name only outside.
    entry!(SYS_openat, NO, YES, YES).only(READING),
    entry!(SYS_inotify_add_watch, NO, NO, YES),
    entry!(SYS_inotify_rm_watch, NO, NO, YES),
    #[cfg(target_arch = "x86_64")]
    entry!(SYS_readlink, NO, NO, YES),
    entry!(SYS_readlinkat, NO, NO, rare("the C library of aarch64")),
    entry!(SYS_statx, NO, YES, YES),
    entry!(SYS_fstat, NO, rare("a directory is opened, in some C libraries"), NO),
    entry!(SYS_newfstatat, NO, YES, NO),
    entry!(SYS_getdents64, NO, YES, NO),
    #[cfg(target_arch = "x86_64")]
    entry!(SYS_unlink, NO, NO, YES),
    entry!(SYS_unlinkat, NO, NO, rare("the C library of aarch64")),

    // Processes: the other two end with the daemon.
    entry!(SYS_pidfd_open, NO, rare("the last process that was known has ended"), NO),
    entry!(SYS_pidfd_send_signal, YES, NO, NO),
    entry!(SYS_wait4, YES, NO, NO),
    entry!(SYS_getpid, YES, rare("a mistake of ours"), rare("a mistake of ours")),
    entry!(SYS_geteuid, NO, NO, YES),

    // The end, and mistakes of ours.
    entry!(SYS_exit, YES, NO, NO),
    entry!(SYS_exit_group, YES, YES, YES),
    entry!(SYS_sigaltstack, YES, NO, NO),
    entry!(SYS_rt_sigprocmask, YES, rare("a mistake of ours"), rare("a mistake of ours")),
    entry!(SYS_rt_sigaction, rare("a mistake of ours"), rare("the same"), rare("the same")),
    entry!(SYS_rt_sigreturn, rare("a mistake of ours"), rare("the same"), rare("the same")),
    entry!(SYS_gettid, rare("a mistake of ours"), rare("the same"), rare("the same")),
    entry!(SYS_tgkill, rare("a mistake of ours"), rare("the same"), rare("the same")),
];

/// What the C library tries and does well without. An error is no sign of anything, even under
/// [`Policy::Strict`](super::Policy::Strict).
pub const REFUSED: &[c_long] = &[
    // How many processors there are, when a second thread's heap is made; a panic's backtrace.
    libc::SYS_openat,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcwd,
];

/// What nobody calls but an intruder: ends the process at once, whatever the policy.
pub const FORBIDDEN: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_clone,
    libc::SYS_clone3,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_open_by_handle_at,
    libc::SYS_memfd_create,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_setgid,
    libc::SYS_setresgid,
    libc::SYS_capset,
];
