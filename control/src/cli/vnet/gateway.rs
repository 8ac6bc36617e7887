//! A network's gateway: a process of the host that runs a `usernetd` for a namespace of its own.
//!
//! ```text
//! usernet vnet start ──┬── usernet-vnet-ns  in the namespace: holds it, answers DNS there
//!   (listens, writes   └── usernetd         the tunnel that every member is a peer of; NAT with --internet
//!    down, lets in)
//! ```
//!
//! The namespace forwards: what one member sends to another comes out of the tunnel, is routed by the kernel, and goes
//! back into it. So members need to know the gateway only, two networks have nothing in common, and what a member may
//! send as is WireGuard's to check (`AllowedIPs`).
//!
//! Everything that matters is written down ([`super::store`]), so a gateway may be killed at any time: its namespace and
//! its daemon end with it, and the next one has the same port and keys. If one of the other two is killed, the gateway
//! begins anew by executing itself.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, geteuid, getpid, getppid, setsid};

use super::dns::Sockets;
use super::link::LinkNetworks;
use super::network::Network;
use super::protocol::{self, Request, Response};
use super::service::{NamesFile, Service, forget_ended};
use super::store::{Place, Store};
use super::terms::gateway_conf;
use super::wire::Wire;
use crate::cli::child::{self, Line, Order, Report};
use crate::cli::error::{Error, status};
use crate::cli::instance::{Claim, Kind, Registry, State};
use crate::cli::launch::{self, Launch, own_executable};
use crate::cli::namespaces::{self, Identity, Plan, Step, StepFailed};
use crate::cli::process::Process;
use crate::cli::run::{await_ready, userns_of};
use crate::cli::runtime_dir;
use crate::cli::supervisor::Signals;
use crate::sandbox;

/// A gateway that lasted no longer does not begin anew: whatever killed its processes will do so again.
const LASTED_MIN: Duration = Duration::from_secs(2);

/// How long one may take to be ready: as long as a daemon may.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// How often a gateway looks where its members are.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(5);

/// How long a gateway may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How long what is left of one that was killed may take to end, and how often it is looked.
const END_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The instance that a network's gateway is.
pub(super) fn instance_of(network: &str) -> String {
    format!("vnet-{network}")
}

/// Where a network's gateway listens.
pub(super) fn socket_of(network: &str) -> Result<PathBuf, Error> {
    Ok(runtime_dir::open()?.join(instance_of(network)).join("gateway.sock"))
}

/// Asks the gateway of a network; none: it does not run.
pub(super) fn ask(network: &str, request: &Request) -> Result<Option<Response>, Error> {
    let failed = || Error::system(format!("the gateway of `{network}` does not answer"));
    match protocol::ask(&socket_of(network)?, request) {
        Ok(Response::Refused(reason)) => Err(Error::Vnet { network: network.to_owned(), reason }),
        Ok(response) => Ok(Some(response)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(failed()(error)),
        },
    }
}

/// Whether a network's gateway runs.
pub(super) fn is_running(network: &str) -> bool {
    socket_of(network).is_ok_and(|socket| UnixStream::connect(socket).is_ok())
}

/// Starts the gateway of a network in the background, if it does not run; returns when it does.
pub(super) fn start(place: &Place, network: &str) -> Result<(), Error> {
    let _alone = place.lock()?;
    if is_running(network) {
        return Ok(());
    }
    let log = fs::File::create(place.log());
    let log = log.map_err(Error::system(format!("cannot write {}", place.log().display())))?;
    let mut command = Command::new(own_executable());
    command.arg0("usernet").args(["vnet", "start", "--foreground", network]);
    command.current_dir("/").stdin(Stdio::null()).stderr(log);
    let ready = launch::spawn_apart(command).map_err(Error::system("cannot start the gateway"))?;
    if await_line(&ready)? {
        return Ok(());
    }
    let told = launch::log_tail(&place.log());
    let ours = format!("usernet: network `{network}`: ");
    let told = told.strip_prefix(&ours).or(told.strip_prefix("usernet: ")).unwrap_or(&told);
    let reason = told.to_owned();
    Err(Error::Vnet { network: network.to_owned(), reason })
}

/// Whether a line comes; not: the other end is closed without, or it takes too long.
fn await_line(ready: &OwnedFd) -> Result<bool, Error> {
    let timeout = PollTimeout::try_from(READY_PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).map_err(|errno| Error::system("cannot wait")(errno.into()))?;
    let is_readable = fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
    Ok(is_readable && nix::unistd::read(ready, &mut [0]).is_ok_and(|count| count > 0))
}

/// Ends the gateway of a network; returns when it has ended. Whether it ran.
pub(super) fn stop(network: &str) -> Result<bool, Error> {
    let name = instance_of(network);
    let Some(instance) = Registry::open()?.list()?.into_iter().find(|i| i.name == name) else {
        return Ok(false);
    };
    let failed = || Error::system(format!("cannot end the gateway of `{network}`"));
    let owner = instance.state.owner;
    owner.end(STOP_PATIENCE).map_err(failed())?;
    // One that had to be killed did not wait for it.
    instance.state.daemon.wait_end(STOP_PATIENCE).map_err(failed())?;
    instance.remove_files()?;
    Ok(true)
}

/// The gateway itself: runs until it is told to end.
pub(super) fn run(store: &Store, name: &str) -> Result<ExitCode, Error> {
    let started = Instant::now();
    store.own(name)?;
    let claim = claim(name, started)?;
    let signals = Signals::take()?;
    match Gateway::start(store, name, &claim, &signals)?.serve(&signals)? {
        End::Asked => Ok(ExitCode::SUCCESS),
        End::Lost(_) if started.elapsed() >= LASTED_MIN => {
            drop(claim);
            signals.restore();
            let Err(error) = begin_anew(name);
            Err(error)
        }
        End::Lost(what) => Err(Error::Vnet { network: name.to_owned(), reason: what.to_owned() }),
    }
}

/// The gateway's instance. What another one left that was killed is there until the last of its processes has ended.
fn claim(network: &str, started: Instant) -> Result<Claim, Error> {
    loop {
        match Registry::open()?.claim(&instance_of(network)) {
            Err(Error::NameTaken(_)) if is_running(network) || started.elapsed() > END_PATIENCE => {
                let reason = "its gateway runs already".to_owned();
                return Err(Error::Vnet { network: network.to_owned(), reason });
            }
            Err(Error::NameTaken(_)) => thread::sleep(LOOK_EVERY),
            claimed => return claimed,
        }
    }
}

/// Executes this program again: whoever knows this process goes on knowing it.
fn begin_anew(network: &str) -> Result<Infallible, Error> {
    eprintln!("usernet: the gateway of `{network}` lost a process, and begins anew");
    let mut command = Command::new(own_executable());
    command.arg0("usernet").args(["vnet", "start", "--foreground", network]);
    Err(Error::system("cannot begin anew")(command.exec()))
}

/// Why a gateway ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By request or signal.
    Asked,
    /// A process without which there is no gateway has ended.
    Lost(&'static str),
}

/// A gateway that runs.
struct Gateway {
    service: Service,
    listener: UnixListener,
    holder: Pid,
    daemon: Process,
    /// The daemon ends when this is closed.
    _exit: OwnedFd,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        kill(self.holder, Signal::SIGKILL).ok();
        waitpid(self.holder, None).ok();
        launch::end_child(self.daemon);
    }
}

/// The process in the namespace, ended with this.
struct Holder(Pid);

impl Drop for Holder {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGKILL).ok();
        waitpid(self.0, None).ok();
    }
}

impl Gateway {
    fn start(store: &Store, name: &str, claim: &Claim, signals: &Signals) -> Result<Self, Error> {
        let identity = if namespaces::is_privileged() { Identity::Host } else { Identity::Root };
        let plan = Plan { identity, resolv_conf: claim.write("resolv.conf", "")? };
        let names = claim.path("names.json");
        let parent = getpid();
        // Before the key is read: it is a copy of this process that answers what comes from the network.
        let (pid, line) = child::spawn(|line| hold(&plan, &line, parent, &names))
            .map_err(Error::system("cannot fork"))?;
        let holder = Holder(pid);
        await_ready(signals, &line, pid)?;

        let mut network = store.own(name)?;
        forget_ended(&mut network);
        store.place(name).save_network(&network)?;
        let link = LinkNetworks::beside(&network.gateways())?;
        let names = NamesFile { path: names, upstream: network.internet.then(|| link.dns()) };
        names.write(&network)?;
        let (exit_reader, exit) = launch::pipe()?;
        let daemon = launch_daemon(claim, signals, &network, link, (pid, identity), exit_reader)?;
        let listener = listen(claim)?;
        publish(claim, pid, daemon)?;
        line.send(&Order::Go).map_err(Error::system("the namespace's process is gone"))?;
        announce(&network).map_err(Error::system("nobody waits for the gateway any more"))?;
        let wire = Wire::new(&claim.path(""), name);
        let service = Service::new(network, store.place(name), wire, names);
        let holder = std::mem::ManuallyDrop::new(holder).0;
        Ok(Self { service, listener, holder, daemon, _exit: exit })
    }

    /// Until there is a reason to end.
    fn serve(mut self, signals: &Signals) -> Result<End, Error> {
        let mut looked = Instant::now();
        loop {
            let has_client = self.wait(signals)?;
            if looked.elapsed() >= ENDPOINTS_EVERY {
                looked = Instant::now();
                self.service.remember_endpoints();
            }
            if signals.take_ending()? {
                return Ok(End::Asked);
            }
            if let Some(lost) = self.lost() {
                return Ok(End::Lost(lost));
            }
            self.service.on_ended();
            if has_client && self.on_client() {
                return Ok(End::Asked);
            }
        }
    }

    /// Waits until something has happened; whether somebody wants to speak with us.
    fn wait(&self, signals: &Signals) -> Result<bool, Error> {
        let owners = self.service.owners().iter().map(|watched| watched.pidfd.as_fd());
        let ours = [self.listener.as_fd(), signals.as_fd()];
        let mut fds: Vec<PollFd<'_>> =
            ours.into_iter().chain(owners).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(ENDPOINTS_EVERY).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
            Err(errno) => Err(Error::system("cannot wait")(errno.into())),
        }
    }

    /// What has ended that should not have.
    fn lost(&self) -> Option<&'static str> {
        let holder = Process::of(self.holder.as_raw()).is_ok_and(Process::is_alive);
        if !holder {
            Some("the process in its namespace ended")
        } else if !self.daemon.is_alive() {
            Some("its usernetd ended")
        } else {
            None
        }
    }

    /// Answers one client; whether we are to end.
    fn on_client(&mut self) -> bool {
        let Ok((mut stream, _)) = self.listener.accept() else { return false };
        let is_ours = getsockopt(&stream, sockopt::PeerCredentials)
            .is_ok_and(|peer| peer.uid() == geteuid().as_raw());
        if !is_ours || protocol::prepare(&stream).is_err() {
            return false;
        }
        // Somebody who only looks whether we are there says nothing.
        let Ok(request) = protocol::receive::<Request>(&stream) else { return false };
        let response = self.service.on_request(request);
        let is_end = response.is_none();
        protocol::send(&mut stream, &response.unwrap_or(Response::Done)).ok();
        is_end
    }
}

fn launch_daemon(
    claim: &Claim,
    signals: &Signals,
    network: &Network,
    link: LinkNetworks,
    (holder, identity): (Pid, Identity),
    exit: OwnedFd,
) -> Result<Process, Error> {
    let conf =
        Secret::write(claim.path(&format!("{}.conf", network.name)), &gateway_conf(network))?;
    let mut further: Vec<OsString> = ["--wireguard", "--wireguard-api"].map(OsString::from).into();
    further.insert(1, conf.0.clone().into());
    further.push(claim.path("").into());
    further.extend(link.args());
    // What is too long for the tunnel is not to come that far: the link's end of the namespace would have to refuse it.
    further.push(format!("--mtu={}", network.mtu).into());
    if !network.internet {
        further.push("--isolated".into());
    }
    Launch {
        claim,
        netns: format!("/proc/{holder}/ns/net").into(),
        userns: userns_of(identity, holder),
        network: &[],
        further: &further,
        exit: Some(exit),
        is_log_shown: true,
    }
    .start(signals)
}

/// A file with a key, removed with this: whoever needed it has read it by then.
pub(super) struct Secret(pub(super) PathBuf);

impl Secret {
    pub(super) fn write(path: PathBuf, text: &str) -> Result<Self, Error> {
        super::store::replace(&path, text.as_bytes())
            .map_err(Error::system(format!("cannot write {}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

fn listen(claim: &Claim) -> Result<UnixListener, Error> {
    let path = claim.path("gateway.sock");
    let listener = UnixListener::bind(&path);
    listener.map_err(Error::system(format!("cannot listen on {}", path.display())))
}

fn publish(claim: &Claim, holder: Pid, daemon: Process) -> Result<(), Error> {
    let gone = || Error::system("cannot read /proc");
    let owner = Process::current().map_err(gone())?;
    let member = Process::of(holder.as_raw()).map_err(gone())?;
    let state = State::new(Kind::Vnet, owner, daemon, format!("/proc/{holder}/ns/net"));
    claim.publish(&State { member: Some(member), ..state })
}

/// The line that whoever started us waits for, or has given up to wait for. Nobody reads what comes after it.
fn announce(network: &Network) -> io::Result<()> {
    let gateways = super::network::listed(&network.gateways());
    let mut out = io::stdout().lock();
    let line = format!("{}: gateway {gateways}, UDP port {}\n", network.name, network.listen_port);
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(error),
        // Whoever starts it by hand may have closed it.
        Ok(()) | Err(_) => {}
    }
    if let Ok(null) = fs::OpenOptions::new().write(true).open("/dev/null") {
        nix::unistd::dup2_stdout(&null).ok();
    }
    Ok(())
}

/// The life of the process in the namespace.
fn hold(plan: &Plan, line: &Line, parent: Pid, names: &Path) -> i32 {
    let sockets = match settle(plan, line, parent) {
        Ok(sockets) => sockets,
        Err(failed) => {
            line.send(&Report::Failed(failed)).ok();
            return status::FAILURE.into();
        }
    };
    // End of file: the gateway gave up.
    if line.receive::<Order>().ok().flatten() != Some(Order::Go) {
        return status::FAILURE.into();
    }
    let dir = names.parent().unwrap_or(Path::new("/"));
    sandbox::confine_names(dir.to_owned());
    sockets.serve(names.to_owned())
}

fn settle(plan: &Plan, line: &Line, parent: Pid) -> Result<Sockets, StepFailed> {
    let failed = |errno: Errno| StepFailed::at(Step::Line)(errno.into());
    setsid().map_err(failed)?;
    prctl::set_name(c"usernet-vnet-ns").map_err(failed)?;
    namespaces::enter(plan, line)?;
    // The kernel forgets it when credentials change, so it is asked for afterwards.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed)?;
    if getppid() != parent {
        return Err(failed(Errno::ESRCH));
    }
    become_router().map_err(StepFailed::at(Step::Router))?;
    let sockets = Sockets::open().map_err(StepFailed::at(Step::Router))?;
    line.send(&Report::Ready).map_err(StepFailed::at(Step::Line))?;
    Ok(sockets)
}

/// Packets of one member for another are passed on; nobody is told of a shorter way, because there is none.
fn become_router() -> io::Result<()> {
    let v4 = Path::new("/proc/sys/net/ipv4");
    for device in ["all", "default"] {
        fs::write(v4.join("conf").join(device).join("send_redirects"), "0")?;
    }
    // Who may send as whom the tunnel says. Some distributions have the stricter rule for all.
    fs::write(v4.join("conf/default/rp_filter"), "2")?;
    fs::write(v4.join("ip_forward"), "1")?;
    match fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
