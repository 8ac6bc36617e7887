//! From a [`Plan`] to the running data path, and back.
//!
//! # Theory of operation
//!
//! ```text
//! main thread     plan ─ descriptors ─ files ─ attach ─ forwards ─ keeper ─ Runtime::new ─ sandbox ─ run ········ end
//! further workers                                                                             ├ run ·············
//! control thread                                                                              └ listeners ─ ready ─ serve
//! ```
//!
//! Everything that can fail does so before the caller is told that the network is ready, and whatever was made by
//! then is owned by a value whose `Drop` undoes it: the TAP goes with its descriptor, the control socket and
//! the pid file with their names, listening ports with their sockets. So failing needs no code of its own, and
//! ending is the same as failing late.
//!
//! The namespace is attached to before the first thread is started, because that forks, and so does the keeper, who
//! removes the files from then on. Signals are blocked before that: they wait until the control thread reads them, and
//! nothing ends half way. From the sandbox on no file can be opened ([`crate::sandbox`]).

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::iter;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use usernet_core::config::Limits;
use usernet_core::{Config, Rules, Share};
use usernet_driver::namespace::{self, AttachError, Request, Target};
use usernet_driver::{
    DriverError, Ended, Handle, InstallError, Lend, ListenError, Runtime, Setup, TunnelHandle,
    conclude,
};

use crate::announcement::Readiness;
use crate::api::SocketError;
use crate::api::server::Server;
use crate::attach::{self, GuestSide, LinkSocketError};
use crate::control::{Cause, Control, Ends, Facts};
use crate::forwards::follow::Follower;
use crate::forwards::{Change, Direction, ForwardError, ForwardTable};
use crate::keeper::{Keeper, Kept};
use crate::log_file::LimitedFile;
use crate::logging::Warnings;
use crate::options::Options;
use crate::owned_path::OwnedPath;
use crate::plan::{Link, LogFile, LogFormat, MTU_MAX, Namespace, Plan, Resolvers};
use crate::program::{Program, Setting};
use crate::resolv::{RESOLV_CONF, ResolvConf};
use crate::sandbox::{Entered, SandboxError};
use crate::tunnels::{self, Tunnels};
use crate::{host, inherited, logging, sandbox, wireguard};

/// Packets that may wait in the TAP to be read. The default of 1000 overflows when the guest sends small packets
/// while another process has our core, and 4,096 when 10,000 connections ask at once: what is dropped is asked again after 200 ms, or
/// a second for a SYN.
const TAP_QUEUE_PACKETS: u32 = 16_384;

/// The smallest MTU that is taken over from the host's way out: what IPv6 needs.
const MTU_MIN: u16 = 1_280;

/// Ended as it should.
const EXIT_ENDED: u8 = 0;
/// Could not do it.
const EXIT_FAILED: u8 = 1;

/// Why there is no network. Each prints as one line, cause and remedy.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A descriptor of the command line is not open.
    #[error("{option} {fd}: {source}; the caller has to leave it open")]
    Descriptor {
        /// The option.
        option: &'static str,
        /// The number.
        fd: i32,
        /// The kernel's answer.
        source: Errno,
    },
    /// A file could not be made.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The namespace.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A host name of a tunnel's.
    #[error("{tunnel}: {what}")]
    Endpoint {
        /// The tunnel.
        tunnel: String,
        /// What does not lead anywhere, and why.
        what: String,
    },
    /// A tunnel's port.
    #[error("{tunnel}: {source}")]
    Listen {
        /// The tunnel.
        tunnel: String,
        /// What was attempted, and the kernel's answer.
        source: ListenError,
    },
    /// The forwards.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The link's socket.
    #[error(transparent)]
    Link(#[from] LinkSocketError),
    /// The data path.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The data path does not take the listening sockets.
    #[error("cannot put the forwards in force: {0}")]
    Install(#[from] InstallError),
    /// The caller does not listen to the ready descriptor.
    #[error("cannot tell on --ready-fd that the network is ready: {0}")]
    Ready(io::Error),
    /// A system call without which there is no daemon.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The helper in the namespace was killed.
    #[error("the helper process in the namespace was killed: the network has ended")]
    HelperKilled,
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The control thread panicked.
    #[error("the control thread ended by a mistake of ours; please report it")]
    ControlThread,
}

impl DaemonError {
    /// What the caller may set otherwise.
    fn setting(&self) -> Option<Setting> {
        match self {
            Self::Attach(AttachError::MayNotEnter { .. } | AttachError::UserNamespace { .. }) => {
                Some(Setting::UserNamespace)
            }
            Self::Attach(AttachError::TapExists { .. }) => Some(Setting::DeviceName),
            Self::Attach(
                AttachError::NamespaceGone { .. }
                | AttachError::NotANamespace { .. }
                | AttachError::NoTun { .. }
                | AttachError::TapName { .. }
                | AttachError::TunnelExists { .. }
                | AttachError::TooManyTunnels
                | AttachError::Device { .. }
                | AttachError::Helper { .. }
                | AttachError::HelperKilled { .. },
            )
            | Self::Descriptor { .. }
            | Self::File { .. }
            | Self::Endpoint { .. }
            | Self::Listen { .. }
            | Self::Forward(_)
            | Self::Socket(_)
            | Self::Link(_)
            | Self::Driver(_)
            | Self::Install(_)
            | Self::Ready(_)
            | Self::System { .. }
            | Self::Sandbox(_)
            | Self::HelperKilled
            | Self::ControlThread => None,
        }
    }

    /// What went wrong, in the words of a program's command line.
    fn told_by(&self, program: Program) -> String {
        match self.setting().and_then(|setting| program.option(setting)) {
            Some(option) => format!("{self} ({option})"),
            None => self.to_string(),
        }
    }

    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

/// `usernetd`: reads the command line (without a name in front) and runs until the end.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let started = Instant::now();
    let plan = Options::from_command_line(args).plan();
    end(&plan, run(&plan, started))
}

/// Says how a plan ended, as an exit status and, if it failed, in one line.
pub(crate) fn end(plan: &Plan, ended: Result<Cause, DaemonError>) -> ExitCode {
    match ended {
        Ok(cause) => {
            tracing::info!("ended: {cause:?}");
            ExitCode::from(EXIT_ENDED)
        }
        Err(error) => {
            let told = error.told_by(plan.program);
            match plan.log.format {
                LogFormat::Text => fail(plan.program, told),
                LogFormat::Json => fail_in_json(plan.program, told),
            }
        }
    }
}

/// The failure, on standard error, whatever the log level. Nobody may be listening.
pub(crate) fn fail(program: Program, what: impl Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "{program}: {what}");
    ExitCode::from(EXIT_FAILED)
}

/// The same for those who read the log by machine.
fn fail_in_json(program: Program, what: impl Display) -> ExitCode {
    let line = serde_json::json!({
        "level": "ERROR",
        "fields": { "message": what.to_string() },
        "target": program.name(),
    });
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(EXIT_FAILED)
}

/// Makes the network that the plan describes and runs it until there is a reason to end. `started` is when the
/// program was.
pub(crate) fn run(plan: &Plan, started: Instant) -> Result<Cause, DaemonError> {
    // First of all: see `inherited::take`.
    let ready = claim("--ready-fd", plan.ready_fd)?;
    let exit = claim("--exit-fd", plan.exit_fd)?;
    let device = match plan.link {
        Link::Tap(fd) => claim("the device's descriptor", Some(fd))?,
        Link::Namespace(_) | Link::Socket(_) => None,
    };
    let log_file = plan.log_file.as_ref().map(open_log).transpose()?;
    let told = logging::start(plan.log, log_file);
    let released = plan.lets_go_of_caller.then(open_null).transpose()?;
    let signals = block_signals()?;
    let pcap = plan.pcap.as_deref().map(create_capture).transpose()?;
    // A lower limit is no reason not to start.
    let _ = host::raise_file_limit();
    let server = plan.api.as_ref().map(Server::start).transpose()?;

    let mut config = config(plan)?;
    let guest = match reach(plan, &mut config, device, &signals, exit.as_ref())? {
        Ok(guest) => guest,
        Err(cause) => return Ok(cause),
    };
    let tap = guest.link.fd.as_raw_fd();
    let given = Given { told, signals, exit, server, pcap };
    let Prepared { control, first, setup, tunnels } = prepare(plan, config, guest, given)?;

    plan.run_as.map_or(Ok(()), become_user)?;
    let (runtime, handle) = Runtime::new(setup)?;
    let control = control(handle);
    let announcement = plan.announcement.clone();
    let readiness = Readiness { ready, announcement, tap, released, started };
    let entered = sandbox::enter(plan.sandbox)?;
    serve(entered, (runtime, tunnels), control, first, readiness)
}

/// Makes, or waits for, what carries the guest's frames. The `Cause`: what ended the waiting. `device` is the one
/// that the caller has opened, if it has.
fn reach(
    plan: &Plan,
    config: &mut Config,
    device: Option<OwnedFd>,
    signals: &SignalFd,
    exit: Option<&OwnedFd>,
) -> Result<Result<GuestSide, Cause>, DaemonError> {
    if let Some(device) = device {
        let link = namespace::take_over(device);
        let link = link.map_err(DaemonError::system("use the given descriptor as a TAP"))?;
        return Ok(Ok(GuestSide::of_link(link)));
    }
    match &plan.link {
        Link::Namespace(namespace) => {
            let attached = namespace::attach(&request(plan, namespace, config))?;
            // A TAP that was there has an address of its own, and its guest may wait for us to speak first.
            config.guest_mac = attached.guest_mac;
            Ok(Ok(GuestSide::from(attached)))
        }
        Link::Socket(path) => Ok(attach::wait_for_peer(path, signals, exit)?),
        Link::Tap(_) => unreachable!("its descriptor was claimed"),
    }
}

/// What the caller and the file system gave us.
struct Given {
    told: Warnings,
    signals: SignalFd,
    exit: Option<OwnedFd>,
    server: Option<Server>,
    pcap: Option<File>,
}

/// Everything that is there before the data path is.
struct Prepared<F> {
    /// Makes the control thread's state when there is a data path.
    control: F,
    first: Change,
    setup: Setup,
    tunnels: Vec<tunnels::Thread>,
}

fn prepare(
    plan: &Plan,
    config: Config,
    guest: GuestSide,
    given: Given,
) -> Result<Prepared<impl FnOnce(Handle) -> Control + use<>>, DaemonError> {
    let GuestSide { link, tunnels, sockets, listeners, ports, ended, name, warnings: of_guest } =
        guest;
    let (tunnels, threads) =
        Tunnels::prepare(&plan.tunnels, tunnels, plan.busy_poll, plan.sandbox)?;
    let mut warnings = plan.warnings.clone();
    warnings.extend(of_guest);
    let mut forwards = ForwardTable::new(listeners);
    let first = first_forwards(plan, &mut forwards)?;
    let follower =
        ports.and_then(|ports| Follower::new(plan.automatic.clone(), ports, Instant::now()));
    warnings.extend(first.warnings.iter().cloned());
    let (resolvers, resolv_conf) = resolvers(plan, &mut warnings);
    let Given { told, signals, exit, mut server, pcap } = given;
    let mut tunnel_servers = wireguard::serve(plan.tunnel_api.as_deref(), tunnels.iter())?;
    let servers = server.iter_mut().chain(&mut tunnel_servers).collect();
    let keeper = keep(plan, name, resolv_conf, servers)?;
    warnings.extend(host::shortcomings(plan, &config));
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    // The forwards come with their listeners, as soon as the data path runs.
    let rules = Rules::new(&config, &plan.access, Vec::new(), resolvers.clone());
    let setup = Setup {
        backend: plan.backend,
        busy_poll: plan.busy_poll,
        config: config.clone(),
        rules,
        link,
        lend: Lend::to(plan.link.borrowers()),
        outbound: plan.outbound.clone(),
        namespace: sockets,
        pcap,
        // The control thread watches what ends us, and knows which it was.
        exit_fds: Vec::new(),
    };
    let (netns, tap) = named(&plan.link);
    let facts = Facts {
        netns,
        tap,
        config,
        access: plan.access.clone(),
        warnings: told,
        sandbox: sandbox::Report::default(),
        ready: Instant::now(),
    };
    let data_path = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(DaemonError::system("make an eventfd"))?;
    let namespace = ended.filter(|_| !plan.outlives_namespace);
    let ends = Ends { signals, namespace, exit, data_path: Arc::new(data_path) };
    let control = move |handle| Control {
        handle,
        facts,
        ends,
        forwards,
        follower,
        resolvers,
        tunnels,
        keeper,
        server,
        tunnel_servers,
        is_stop_requested: false,
    };
    Ok(Prepared { control, first, setup, tunnels: threads })
}

/// The forwards of the command line.
fn first_forwards(plan: &Plan, table: &mut ForwardTable) -> Result<Change, ForwardError> {
    let mut wanted = table.with(Direction::Inward, plan.forwards.clone())?;
    wanted.extend(table.with(Direction::Outward, plan.outward.clone())?);
    table.plan(wanted)
}

/// Gives what there is to keep to a keeper; none: there is nothing. The pid file is made here: later there are no files.
fn keep(
    plan: &Plan,
    link: Option<OwnedPath>,
    resolv_conf: Option<ResolvConf>,
    mut servers: Vec<&mut Server>,
) -> Result<Option<Keeper>, DaemonError> {
    let pid_file = plan.pid_file.as_deref().map(write_pid_file).transpose()?;
    let sockets: Vec<_> = servers.iter_mut().filter_map(|server| server.take_name()).collect();
    let files: Vec<_> = pid_file.into_iter().chain(sockets).chain(link).collect();
    if resolv_conf.is_none() && files.is_empty() {
        return Ok(None);
    }
    let (keeper, doorman) = Keeper::start(Kept { resolv_conf, files }, plan.sandbox)
        .map_err(DaemonError::system("fork the process that keeps our files"))?;
    for server in servers {
        server.ask(doorman.clone());
    }
    Ok(Some(keeper))
}

fn write_pid_file(path: &Path) -> Result<OwnedPath, DaemonError> {
    OwnedPath::write(path, &format!("{}\n", std::process::id()))
        .map_err(|source| DaemonError::File { path: path.to_owned(), source })
}

/// Runs the data path on this thread, its further workers, the tunnels and the control thread beside it, until all have
/// ended. None does anything before all are confined.
fn serve(
    entered: Entered,
    (runtime, tunnels): (Runtime, Vec<tunnels::Thread>),
    mut control: Control,
    first: Change,
    readiness: Readiness,
) -> Result<Cause, DaemonError> {
    let data_path = Arc::clone(&control.ends.data_path);
    let for_thread = entered.for_thread();
    let (tell_confined, confined) = mpsc::channel();
    let mut workers = runtime.into_workers().into_iter();
    let worker = workers.next().expect("a runtime has a worker");
    let further = workers
        .map(|worker| {
            Beside::start("worker", move || worker.run(), for_thread, tell_confined.clone())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let handles: Vec<_> = control.tunnels.iter().map(|tunnel| tunnel.handle.clone()).collect();
    let tunnels = tunnels
        .into_iter()
        .map(|tunnel| {
            Beside::start("tunnel", move || tunnel.run(), for_thread, tell_confined.clone())
        })
        .collect::<Result<Vec<_>, _>>()?;
    let threads = further.len() + tunnels.len() + 1;
    let (tell_report, report) = mpsc::sync_channel(1);
    let beside = move || -> Result<Cause, DaemonError> {
        let handle = control.handle.clone();
        // Whatever goes wrong here: a data path without control would run for ever.
        let _stop = StopOnDrop(handle);
        // Whoever does not listen any more has failed, and says why.
        let _ = tell_confined.send(for_thread.give_up());
        let Ok(report) = report.recv() else { return Ok(Cause::DataPath) };
        control.facts.sandbox = report;
        control.start(first)?;
        control.facts.ready = Instant::now();
        readiness.tell(&control)?;
        Ok(control.run())
    };
    let thread = thread::Builder::new().name("control".to_owned()).spawn(beside);
    let thread = thread.map_err(DaemonError::system("start the control thread"))?;
    let closed = all_confined(&confined, threads).and_then(|()| Ok(entered.close()?));
    let ended = match closed {
        Ok(report) => {
            for missing in &report.missing {
                tracing::info!("not confined whole: {missing}");
            }
            let further: Vec<_> = further.into_iter().map(Beside::go).collect();
            let tunnels: Vec<_> = tunnels.into_iter().map(Beside::go).collect();
            let _ = tell_report.send(report);
            let ended = worker.run();
            handles.iter().for_each(TunnelHandle::stop);
            tunnels.into_iter().for_each(join);
            let further = further.into_iter().map(|worker| Ok(worker.join()?.expect(LET_GO)));
            conclude(iter::once(Ok(ended)).chain(further)).map_err(DaemonError::from)
        }
        Err(error) => {
            drop(tell_report);
            Err(error)
        }
    };
    // EAGAIN: it has been told already.
    let _ = data_path.write(1);
    let cause = thread.join().map_err(|_| DaemonError::ControlThread)?;
    match (ended?, cause?) {
        (_, Cause::HelperGone) => Err(DaemonError::HelperKilled),
        (ended, Cause::DataPath) => Ok(cause_of(ended)),
        (_, cause) => Ok(cause),
    }
}

/// Why the data path has ended by itself.
fn cause_of(ended: Ended) -> Cause {
    match ended {
        Ended::NamespaceGone => Cause::NamespaceGone,
        Ended::PeerClosed => Cause::PeerClosed,
        Ended::ExitFd | Ended::Stopped => Cause::DataPath,
    }
}

/// Waits until so many threads have given up what is their own.
fn all_confined(
    confined: &mpsc::Receiver<Result<sandbox::Children, SandboxError>>,
    threads: usize,
) -> Result<(), DaemonError> {
    for _ in 0..threads {
        confined.recv().map_err(|_| DaemonError::ControlThread)??;
    }
    Ok(())
}

/// Waits for a thread's end. A panic goes on.
fn join<R>(thread: JoinHandle<R>) {
    let _: R = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
}

/// Why there is a result.
const LET_GO: &str = "a thread that was let go has run";

/// Something on a thread of its own that waits to be let go.
struct Beside<R> {
    /// Gives none where it was not.
    thread: JoinHandle<Option<R>>,
    go: mpsc::SyncSender<()>,
}

impl<R: Send + 'static> Beside<R> {
    fn start(
        name: &str,
        run: impl FnOnce() -> R + Send + 'static,
        for_thread: sandbox::ForThread,
        tell_confined: mpsc::Sender<Result<sandbox::Children, SandboxError>>,
    ) -> Result<Self, DaemonError> {
        let (go, gone) = mpsc::sync_channel(1);
        let run = move || {
            let _ = tell_confined.send(for_thread.give_up());
            // Nobody lets it go: the daemon has failed, and says why.
            gone.recv().ok().map(|()| run())
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.map_err(DaemonError::system("start a thread"))?;
        Ok(Self { thread, go })
    }

    fn go(self) -> JoinHandle<Option<R>> {
        // It waits for nothing else.
        let _ = self.go.send(());
        self.thread
    }
}

/// Stops the data path when the control thread ends, however.
struct StopOnDrop(Handle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn claim(option: &'static str, fd: Option<i32>) -> Result<Option<OwnedFd>, DaemonError> {
    let take =
        |fd| inherited::take(fd).map_err(|source| DaemonError::Descriptor { option, fd, source });
    fd.map(take).transpose()
}

/// Blocks the signals that end us, in this thread and those it will start, and gives them a descriptor. One
/// that the caller has told us to ignore stays ignored (`nohup`, a shell's background job).
fn block_signals() -> Result<SignalFd, DaemonError> {
    let ending = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    ending.thread_block().map_err(DaemonError::system("block signals"))?;
    SignalFd::with_flags(&ending, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(DaemonError::system("make a signalfd"))
}

/// The guest's traffic is nobody else's business.
fn create_capture(path: &Path) -> Result<File, DaemonError> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.map_err(|source| DaemonError::File { path: path.to_owned(), source })
}

fn open_log(file: &LogFile) -> Result<LimitedFile, DaemonError> {
    LimitedFile::open(&file.path, file.bytes_max)
        .map_err(|source| DaemonError::File { path: file.path.clone(), source })
}

/// Takes the place of what the caller gave us: opened while there are files.
fn open_null() -> Result<OwnedFd, DaemonError> {
    let null = File::options().read(true).write(true).open("/dev/null");
    null.map(OwnedFd::from).map_err(DaemonError::system("open /dev/null"))
}

/// Becomes another user, of one group, for good.
fn become_user((user, group): (Uid, Gid)) -> Result<(), DaemonError> {
    setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user))
        .map_err(DaemonError::system("become the user of --runas, which root can"))
}

/// What the shard is started with.
fn config(plan: &Plan) -> Result<Config, DaemonError> {
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(DaemonError::system("draw random numbers"))?;
    Ok(Config {
        host_mac: plan.host_mac,
        guest_mac: plan.guest_mac,
        mtu: plan.mtu.unwrap_or_else(|| namespace::egress_mtu().clamp(MTU_MIN, MTU_MAX)),
        net4: plan.net4,
        net6: plan.net6,
        further: plan.further.clone(),
        services: plan.services,
        announced: plan.announced.clone(),
        protocols: plan.protocols,
        limits: Limits::default(),
        timeouts: plan.timeouts,
        seed: u64::from_ne_bytes(seed),
        share: Share::WHOLE,
    })
}

fn request(plan: &Plan, namespace: &Namespace, config: &Config) -> Request {
    Request {
        target: namespace.target.clone(),
        userns: namespace.userns.clone(),
        tap_name: namespace.tap_name.clone(),
        mtu: config.mtu,
        guest_mac: plan.guest_mac,
        net4: plan.net4,
        net6: plan.net6,
        further: namespace.further.clone(),
        routes: namespace.routes.clone(),
        configure: namespace.configure,
        loopback_up: namespace.loopback_up,
        adopt: namespace.adopt,
        offload: namespace.offload,
        queues: namespace.workers.owners,
        txqueuelen: TAP_QUEUE_PACKETS,
        tunnels: tunnels::devices(&plan.tunnels, namespace.offload),
        confine: sandbox::of_helper(plan.sandbox),
    }
}

/// The namespace as the command line names it, and the device's name in it. A socket has its path.
fn named(link: &Link) -> (String, String) {
    match link {
        Link::Namespace(Namespace { target, tap_name, .. }) => match target {
            Target::Pid(pid) => (pid.to_string(), tap_name.clone()),
            Target::Path(path) => (path.display().to_string(), tap_name.clone()),
        },
        Link::Tap(fd) => (format!("descriptor {fd}"), "tap".to_owned()),
        Link::Socket(path) => (path.display().to_string(), "socket".to_owned()),
    }
}

fn resolvers(plan: &Plan, warnings: &mut Vec<String>) -> (Vec<SocketAddr>, Option<ResolvConf>) {
    match &plan.resolvers {
        Resolvers::These(these) => (these.clone(), None),
        Resolvers::OfHost => {
            let (file, told) = ResolvConf::open(Path::new(RESOLV_CONF));
            warnings.extend(told);
            if file.resolvers().is_empty()
                && let Some(last) = warnings.last_mut()
                && let Some(option) = plan.program.option(Setting::Resolvers)
            {
                last.push_str(&format!(": give {option}"));
            }
            (file.resolvers().to_vec(), Some(file))
        }
    }
}
