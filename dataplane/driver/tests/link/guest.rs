//! A guest for tests: a fresh network namespace with a TAP, held by one thread, and a runtime that drives it.
//!
//! Needs root. Addresses are those of [`Config::example`]; neighbours are entered by hand, so that a test of the
//! driver does not depend on ARP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{AddressFamily, SendFlags, SocketType, send};
use usernet_core::Config;
use usernet_core::op::DatagramKind;
use usernet_core::rules::{Access, HostLoopback, Rules};
use usernet_driver::namespace::take_over;
use usernet_driver::{
    BUSY_POLL, BackendChoice, DriverError, Ended, Handle, Lend, Link, NamespaceSockets, Outbound,
    Runtime, Setup,
};

/// Every test runs once per backend.
macro_rules! on_both_backends {
    ($($name:ident,)+) => {
        mod epoll { $(
            #[test]
            fn $name() {
                let backend = usernet_driver::BackendChoice::Epoll;
                super::$name(&crate::guest::Options::new(backend));
            }
        )+ }
        mod io_uring { $(
            #[test]
            fn $name() {
                let backend = usernet_driver::BackendChoice::IoUring;
                super::$name(&crate::guest::Options::new(backend));
            }
        )+ }
    };
}

/// Bytes that differ at every place where a mistake could be made.
pub(crate) struct Pattern(pub(crate) u64);

impl Pattern {
    pub(crate) fn fill(&mut self, block: &mut [u8]) {
        for word in block.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the runtime has counted by now.
pub(crate) fn counter(guest: &Guest, name: &str) -> u64 {
    let status = guest.handle.status().expect("running");
    status.counters.iter().find(|(known, _)| *known == name).expect("a counter").1
}

/// Whether it is so in time.
pub(crate) fn becomes(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() >= PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A port of the host's, of both families, that refuses as long as the socket lives. One that was given back could be
/// another test's listener a moment later.
pub(crate) fn refusing_port() -> (OwnedFd, u16) {
    let socket = rustix::net::socket(AddressFamily::INET6, SocketType::STREAM, None);
    let socket = socket.expect("a socket");
    rustix::net::bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)).expect("a port");
    let address = rustix::net::getsockname(&socket).expect("its address");
    (socket, SocketAddrV6::try_from(address).expect("of IPv6").port())
}

/// Something to do in the namespace.
type Job = Box<dyn FnOnce() + Send>;

/// A namespace, and the thread that lives in it.
pub(crate) struct Namespace {
    jobs: mpsc::Sender<Job>,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run this as root");
            while let Ok(job) = inbox.recv() {
                job();
            }
        });
        Self { jobs }
    }

    /// Starts `job` on a thread of its own in the namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (sender, thread) = mpsc::channel();
        // A thread inherits the namespace of the one that starts it.
        let start = move || drop(sender.send(thread::spawn(job)));
        self.jobs.send(Box::new(start)).expect("the namespace's thread lives");
        thread.recv().expect("a thread")
    }

    /// Runs `job` in the namespace.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(job).join().expect("the job does not panic")
    }

    /// Runs a command line in the namespace, and expects it to succeed.
    pub(crate) fn command(&self, line: &str) {
        let words: Vec<String> = line.split_whitespace().map(String::from).collect();
        let status = self.run(move || Command::new(&words[0]).args(&words[1..]).status());
        assert!(status.is_ok_and(|status| status.success()), "{line}");
    }
}

/// Connects from inside the namespace.
struct Inside(mpsc::Sender<Job>);

impl NamespaceSockets for Inside {
    fn connect(&mut self, to: SocketAddr) -> io::Result<OwnedFd> {
        let (sender, socket) = mpsc::channel();
        let job = move || drop(sender.send(std::net::TcpStream::connect(to)));
        self.0.send(Box::new(job)).map_err(|_| io::ErrorKind::NotConnected)?;
        let socket = socket.recv().map_err(|_| io::ErrorKind::NotConnected)??;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    fn datagrams(&mut self, _kind: DatagramKind) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A namespace whose network is a running [`Runtime`].
pub(crate) struct Guest {
    pub(crate) namespace: Namespace,
    pub(crate) handle: Handle,
    pub(crate) config: Config,
    runtime: Option<JoinHandle<Result<Ended, DriverError>>>,
}

/// What may differ from guest to guest.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) backend: BackendChoice,
    pub(crate) is_offloaded: bool,
    pub(crate) mtu: u16,
    pub(crate) exit_fds: Vec<Arc<OwnedFd>>,
    pub(crate) joins_loopback: bool,
    /// The runtime's link is a socket; what comes through it is carried to the TAP.
    pub(crate) is_socket: bool,
    /// Workers that are lent flows.
    pub(crate) borrowers: u8,
}

impl Options {
    pub(crate) fn new(backend: BackendChoice) -> Self {
        Self {
            backend,
            is_offloaded: true,
            mtu: 1500,
            exit_fds: Vec::new(),
            joins_loopback: false,
            is_socket: false,
            borrowers: 0,
        }
    }
}

impl Guest {
    /// A guest that reaches the host's loopback through its gateway.
    pub(crate) fn start(options: &Options) -> Self {
        let namespace = Namespace::new();
        let is_offloaded = options.is_offloaded;
        let link = namespace.run(move || tap("tap0", is_offloaded)).expect("a TAP");
        let link = if options.is_socket { through_socket(link) } else { link };
        let config = Config { mtu: options.mtu, seed: 1, ..Config::example() };
        let (net4, net6) = (config.net4.expect("IPv4"), config.net6.expect("IPv6"));
        for line in [
            "ip link set lo up".to_owned(),
            format!("ip link set tap0 address 52:55:0a:00:02:64 mtu {} up", config.mtu),
            format!("ip addr add {}/24 dev tap0", net4.guest),
            format!("ip addr add {}/64 dev tap0 nodad", net6.guest),
            format!("ip neigh add {} lladdr 52:55:0a:00:02:02 dev tap0", net4.gateway),
            format!("ip neigh add {} lladdr 52:55:0a:00:02:02 dev tap0", net6.gateway),
            format!("ip route add default via {}", net4.gateway),
            format!("ip -6 route add default via {}", net6.gateway),
        ] {
            namespace.command(&line);
        }
        namespace.run(move || wait_for_address(net6.guest));
        let rules = Rules::new(&config, &Access::new(&config, HostLoopback::All), vec![], vec![]);
        let duplicate = |fd: &Arc<OwnedFd>| fd.try_clone().expect("a descriptor");
        let setup = Setup {
            backend: options.backend,
            config: config.clone(),
            rules,
            link,
            outbound: Outbound::default(),
            namespace: options
                .joins_loopback
                .then(|| Box::new(Inside(namespace.jobs.clone())) as Box<dyn NamespaceSockets>),
            pcap: None,
            exit_fds: options.exit_fds.iter().map(duplicate).collect(),
            busy_poll: BUSY_POLL,
            // As if it were always busy: whether it is depends on the machine.
            lend: Lend { borrowers: options.borrowers, below: Duration::MAX },
        };
        let (runtime, handle) = Runtime::new(setup).expect("a runtime");
        let runtime = Some(thread::spawn(move || runtime.run()));
        Self { namespace, handle, config, runtime }
    }

    /// The host's loopback as the guest addresses it and as it is, v4 and v6.
    pub(crate) fn gateways(&self) -> [(IpAddr, IpAddr); 2] {
        let (net4, net6) = (self.config.net4.expect("IPv4"), self.config.net6.expect("IPv6"));
        [
            (net4.gateway.into(), Ipv4Addr::LOCALHOST.into()),
            (net6.gateway.into(), Ipv6Addr::LOCALHOST.into()),
        ]
    }

    /// Waits for the end.
    pub(crate) fn join(mut self) -> Ended {
        let runtime = self.runtime.take().expect("joined once");
        runtime.join().expect("the runtime does not panic").expect("no error")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            self.handle.stop();
            let ended = runtime.join();
            if !thread::panicking() {
                ended.expect("the runtime does not panic").expect("no error");
            }
        }
    }
}

/// A link that is a socket, and a thread that carries frames between it and a TAP until it is closed.
fn through_socket(tap: Link) -> Link {
    let (ours, peer) = crate::packets::pair();
    thread::spawn(move || {
        let mut frame = vec![0; 65_536];
        loop {
            let mut events = [PollFd::new(tap.fd.as_fd(), PollFlags::POLLIN)].to_vec();
            events.push(PollFd::new(peer.as_fd(), PollFlags::POLLIN));
            poll(&mut events, PollTimeout::NONE).expect("it can be waited for");
            if events[0].any().unwrap_or(true) {
                let len = rustix::io::read(&tap.fd, &mut frame).expect("a frame");
                // The runtime may have ended.
                let _ = send(&peer, &frame[..len], SendFlags::NOSIGNAL);
            }
            if events[1].any().unwrap_or(true) {
                match rustix::io::read(&peer, &mut frame) {
                    Ok(0) | Err(_) => return,
                    Ok(len) => drop(rustix::io::write(&tap.fd, &frame[..len])),
                }
            }
        }
    });
    Link::packets(ours)
}

/// Waits until the kernel delivers to an IPv6 address, which it does a moment after the address was added: the route
/// comes with a work item of its own (`addrconf_dad_work`).
fn wait_for_address(address: Ipv6Addr) {
    let line = format!("local {address} ");
    for _ in 0..500 {
        let routes = Command::new("ip").args(["-6", "route", "show", "table", "local"]).output();
        if routes.is_ok_and(|routes| String::from_utf8_lossy(&routes.stdout).contains(&line)) {
            return;
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("{address} does not come up");
}

/// A TAP in the namespace of the calling thread.
fn tap(name: &str, is_offloaded: bool) -> io::Result<Link> {
    // SAFETY: a constant path.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    check(fd)?;
    // SAFETY: just opened.
    let tap = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
    let vnet = if is_offloaded { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | vnet) as _;
    // SAFETY: the request is as the ioctl wants it.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    let link = take_over(tap)?;
    assert_eq!(link.offload.tso, is_offloaded, "what it was opened for");
    Ok(link)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
