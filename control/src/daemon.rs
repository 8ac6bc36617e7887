//! `usernetd`: from the command line to the running data path, and back.
//!
//! # Theory of operation
//!
//! ```text
//! main thread     options ─ descriptors ─ files ─ attach ─ forwards ─ Runtime::new ─ run ············ end
//! control thread                                                          └ listeners ─ pid file ─ ready ─ serve
//! ```
//!
//! Everything that can fail does so before the caller is told that the network is ready, and whatever was made by
//! then is owned by a value whose `Drop` undoes it: the TAP goes with its descriptor, the control socket and
//! the pid file with their names, listening ports with their sockets. So failing needs no code of its own, and
//! ending is the same as failing late.
//!
//! The namespace is attached to before the first thread is started, because that forks. Signals are blocked
//! before that: they wait until the control thread reads them, and nothing ends half way.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use usernet_core::config::{Limits, Services, Timeouts};
use usernet_core::{Config, Rules};
use usernet_driver::namespace::{self, AttachError, Attached, Request, Target};
use usernet_driver::{
    BackendChoice, DriverError, Ended, Handle, InstallError, Outbound, Runtime, Setup,
};

use crate::api::SocketError;
use crate::api::server::Server;
use crate::api::socket::ApiSocket;
use crate::control::{self, Cause, Control, Ends, Facts};
use crate::forwards::{Change, ForwardError, ForwardTable};
use crate::networks::stable_mac;
use crate::options::{
    BackendOption, LogFormat, MTU_MAX, NetnsOption, Options, OutboundOption, Workers,
};
use crate::owned_path::OwnedPath;
use crate::resolv::{RESOLV_CONF, ResolvConf};
use crate::{host, inherited, logging};

/// Packets that may wait in the TAP to be read. The default of 1000 overflows when the guest sends small packets
/// while another process has our core.
const TAP_QUEUE_PACKETS: u32 = 4_096;

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
    /// The forwards.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
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
    /// The control thread panicked.
    #[error("the control thread ended by a mistake of ours; please report it")]
    ControlThread,
}

impl DaemonError {
    fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

/// The whole program: reads the command line and runs until the end.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let options = Options::from_command_line();
    match run(&options, started) {
        Ok(cause) => {
            tracing::info!("ended: {cause:?}");
            ExitCode::from(EXIT_ENDED)
        }
        Err(error) => {
            tell_failure(&error, options.log_format);
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// The failure, on standard error, whatever the log level. Nobody may be listening.
fn tell_failure(error: &DaemonError, format: LogFormat) {
    let line = match format {
        LogFormat::Text => format!("usernetd: {error}"),
        LogFormat::Json => serde_json::json!({
            "level": "ERROR",
            "fields": { "message": error.to_string() },
            "target": "usernetd",
        })
        .to_string(),
    };
    let _ = writeln!(io::stderr(), "{line}");
}

fn run(options: &Options, started: Instant) -> Result<Cause, DaemonError> {
    // First of all: see `inherited::take`.
    let ready = claim("--ready-fd", options.ready_fd)?;
    let exit = claim("--exit-fd", options.exit_fd)?;
    logging::start(options.log_level, options.log_format);
    let signals = block_signals()?;
    let pcap = options.pcap.as_deref().map(create_capture).transpose()?;
    // A lower limit is no reason not to start.
    let _ = host::raise_file_limit();
    let socket = options.api_socket.as_deref().map(ApiSocket::bind).transpose()?;

    let config = config(options)?;
    let attached = namespace::attach(&request(options, &config))?;
    let Prepared { control, first, setup } =
        prepare(options, config, attached, Given { signals, exit, socket, pcap })?;

    let (runtime, handle) = Runtime::new(setup)?;
    let control = control(handle);
    let announcement = Announcement {
        ready,
        pid_file: options.pid_file.clone(),
        format: options.log_format,
        started,
    };
    serve(runtime, control, first, announcement)
}

/// What the caller and the file system gave us.
struct Given {
    signals: SignalFd,
    exit: Option<OwnedFd>,
    socket: Option<ApiSocket>,
    pcap: Option<File>,
}

/// Everything that is there before the data path is.
struct Prepared<F> {
    /// Makes the control thread's state when there is a data path.
    control: F,
    first: Change,
    setup: Setup,
}

fn prepare(
    options: &Options,
    config: Config,
    attached: Attached,
    given: Given,
) -> Result<Prepared<impl FnOnce(Handle) -> Control + use<>>, DaemonError> {
    let Attached { link, sockets, ended, warnings, .. } = attached;
    let mut warnings = warnings;
    let forwards = ForwardTable::default();
    let first = forwards.plan(forwards.with(options.forwards.clone())?)?;
    warnings.extend(first.warnings.iter().cloned());
    let (resolvers, resolv_conf) = resolvers(options, &mut warnings);
    warnings.extend(host::shortcomings(&config));
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let loopback = options.host_loopback.clone();
    // The forwards come with their listeners, as soon as the data path runs.
    let rules = Rules::new(&config, &loopback, Vec::new(), resolvers.clone());
    let setup = Setup {
        backend: match options.backend {
            BackendOption::Auto => BackendChoice::Auto,
            BackendOption::IoUring => BackendChoice::IoUring,
            BackendOption::Epoll => BackendChoice::Epoll,
        },
        config: config.clone(),
        rules,
        link,
        outbound: outbound(&options.outbound),
        namespace: Some(sockets),
        pcap: given.pcap,
        // The control thread watches what ends us, and knows which it was.
        exit_fds: Vec::new(),
    };
    let facts = Facts {
        netns: options.netns.to_string(),
        tap: options.tap_name.clone(),
        config,
        host_loopback: loopback,
        warnings,
        ready: Instant::now(),
    };
    let data_path = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(DaemonError::system("make an eventfd"))?;
    let Given { signals, exit, socket, .. } = given;
    let ends = Ends { signals, namespace: ended, exit, data_path: Arc::new(data_path) };
    let control = move |handle| Control {
        handle,
        facts,
        ends,
        forwards,
        resolvers,
        resolv_conf,
        server: socket.map(Server::new),
        is_stop_requested: false,
    };
    Ok(Prepared { control, first, setup })
}

/// Runs the data path on this thread and the control thread beside it, until both have ended.
fn serve(
    runtime: Runtime,
    mut control: Control,
    first: Change,
    announcement: Announcement,
) -> Result<Cause, DaemonError> {
    let data_path = Arc::clone(&control.ends.data_path);
    let beside = move || -> Result<Cause, DaemonError> {
        let handle = control.handle.clone();
        // Whatever goes wrong here: a data path without control would run for ever.
        let _stop = StopOnDrop(handle);
        control.start(first)?;
        control.facts.ready = Instant::now();
        let pid_file = announcement.make(&control)?;
        let cause = control.run();
        drop(pid_file);
        Ok(cause)
    };
    let thread = thread::Builder::new().name("control".to_owned()).spawn(beside);
    let thread = thread.map_err(DaemonError::system("start the control thread"))?;
    let ended = runtime.run();
    // EAGAIN: it has been told already.
    let _ = data_path.write(1);
    let cause = thread.join().map_err(|_| DaemonError::ControlThread)?;
    match (ended?, cause?) {
        (_, Cause::HelperGone) => Err(DaemonError::HelperKilled),
        (Ended::NamespaceGone, Cause::DataPath) => Ok(Cause::NamespaceGone),
        (Ended::NamespaceGone | Ended::ExitFd | Ended::Stopped, cause) => Ok(cause),
    }
}

/// Stops the data path when the control thread ends, however.
struct StopOnDrop(Handle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// How the caller is told that the network is ready.
struct Announcement {
    ready: Option<OwnedFd>,
    pid_file: Option<PathBuf>,
    format: LogFormat,
    started: Instant,
}

impl Announcement {
    /// Writes the pid file, tells the caller and prints the one line.
    fn make(self, control: &Control) -> Result<Option<OwnedPath>, DaemonError> {
        let content = format!("{}\n", std::process::id());
        let write = |path: &PathBuf| {
            OwnedPath::write(path, &content)
                .map_err(|source| DaemonError::File { path: path.clone(), source })
        };
        let pid_file = self.pid_file.as_ref().map(write).transpose()?;
        let took = control.facts.ready.duration_since(self.started);
        let line = summary(control, self.format, took);
        if let Some(ready) = self.ready {
            File::from(ready).write_all(b"1").map_err(DaemonError::Ready)?;
        }
        // Standard output may be closed: the network is there all the same.
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        Ok(pid_file)
    }
}

/// The one line that says what was set up.
fn summary(control: &Control, format: LogFormat, took: Duration) -> String {
    let Facts { netns, tap, config, .. } = &control.facts;
    let networks = [control::network4(config), control::network6(config)];
    let networks: Vec<_> = networks.into_iter().flatten().collect();
    let forwards: Vec<_> = control.forwards.entries().iter().map(|e| e.spec.to_string()).collect();
    let backend = control.handle.status().map_or("ended", |s| control::backend_name(s.backend));
    let ready_ms = took.as_secs_f64() * 1e3;
    match format {
        LogFormat::Json => serde_json::json!({
            "tap": tap, "netns": netns, "networks": networks, "mtu": config.mtu,
            "forwards": forwards, "backend": backend, "ready_ms": ready_ms,
        })
        .to_string(),
        LogFormat::Text => {
            let addresses =
                networks.iter().map(|n| format!("{}/{} via {}", n.guest, n.prefix, n.gateway));
            let dns = networks.iter().filter_map(|n| n.dns).map(|dns| dns.to_string());
            let forwards = if forwards.is_empty() { "none".to_owned() } else { forwards.join(" ") };
            format!(
                "usernetd: {tap} in {netns}: {}, dns {}, mtu {}, forwards {forwards}, {backend}, \
                 ready in {ready_ms:.1} ms",
                addresses.collect::<Vec<_>>().join(", "),
                dns.collect::<Vec<_>>().join(" "),
                config.mtu,
            )
        }
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

fn config(options: &Options) -> Result<Config, DaemonError> {
    let net4 = options.cidr.unwrap_or_default().net();
    let net6 = (!options.no_ipv6).then(|| options.cidr6.unwrap_or_default().net());
    let mtu = options.mtu.unwrap_or_else(|| namespace::egress_mtu().clamp(MTU_MIN, MTU_MAX));
    // One shard whichever it is; see `Workers`.
    let (Workers::Auto | Workers::One) = options.workers;
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(DaemonError::system("draw random numbers"))?;
    Ok(Config {
        host_mac: stable_mac(net4.gateway),
        guest_mac: options.mac.unwrap_or(stable_mac(net4.guest)),
        mtu,
        net4: Some(net4),
        net6,
        services: Services {
            dhcp4: true,
            dhcp6: net6.is_some(),
            router_advertisements: net6.is_some(),
        },
        limits: Limits::default(),
        timeouts: Timeouts {
            udp_idle: options.udp_idle,
            dns_idle: options.dns_idle,
            ..Timeouts::default()
        },
        seed: u64::from_ne_bytes(seed),
    })
}

fn request(options: &Options, config: &Config) -> Request {
    Request {
        target: match &options.netns {
            NetnsOption::Pid(pid) => Target::Pid(*pid),
            NetnsOption::Path(path) => Target::Path(path.clone()),
        },
        userns: options.userns.clone(),
        tap_name: options.tap_name.clone(),
        mtu: config.mtu,
        guest_mac: config.guest_mac,
        net4: config.net4,
        net6: config.net6,
        configure: !options.no_configure,
        offload: !options.no_offload,
        txqueuelen: TAP_QUEUE_PACKETS,
    }
}

fn resolvers(
    options: &Options,
    warnings: &mut Vec<String>,
) -> (Vec<std::net::SocketAddr>, Option<ResolvConf>) {
    if !options.dns.is_empty() {
        return (options.dns.clone(), None);
    }
    let (file, told) = ResolvConf::open(Path::new(RESOLV_CONF));
    warnings.extend(told);
    (file.resolvers().to_vec(), Some(file))
}

fn outbound(options: &[OutboundOption]) -> Outbound {
    let mut outbound = Outbound::default();
    for option in options {
        match option {
            OutboundOption::V4(ip) => outbound.v4 = Some(*ip),
            OutboundOption::V6(ip) => outbound.v6 = Some(*ip),
            OutboundOption::Interface(name) => outbound.interface = Some(name.clone()),
        }
    }
    outbound
}
