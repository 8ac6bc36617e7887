//! Attaching to real namespaces. Needs root, `/dev/net/tun`, `ip`, `nsenter` and `unshare`.
//!
//! Each test body runs in a forked process of its own with a single thread, as the daemon does it: so it can
//! become another user, be killed, and count its descriptors.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use usernet_core::Config;
use usernet_core::rules::Protocol;
use usernet_driver::namespace::{
    AttachError, Attached, Egress, EndReason, Listening, Ports, Request, Target, TunnelDevice,
    TunnelRoute, attach, egress_mtu, take_over,
};

#[path = "namespace/guest.rs"]
mod guest;

use guest::{Guest, Named, ROOT, SOON, USER, eventually, in_own_process, ip, say, spawn};

fn request(target: Target) -> Request {
    let config = Config::example();
    Request {
        target,
        userns: None,
        tap_name: "tap0".to_owned(),
        mtu: 1500,
        guest_mac: config.guest_mac,
        net4: config.net4,
        net6: config.net6,
        further: Vec::new(),
        routes: Vec::new(),
        configure: true,
        loopback_up: false,
        adopt: false,
        offload: true,
        queues: 1,
        txqueuelen: 4000,
        tunnels: Vec::new(),
        confine: || (),
    }
}

fn attach_to(guest: &Guest) -> Attached {
    attach(&request(Target::Pid(guest.pid()))).unwrap()
}

fn error_of(request: &Request) -> AttachError {
    match attach(request) {
        Ok(_) => panic!("this cannot be attached to"),
        Err(error) => error,
    }
}

/// Waits until the end is told. Gives how long it took.
fn wait_for_end(attached: &Attached) -> Duration {
    let start = Instant::now();
    let mut events = [PollFd::new(attached.ended.as_fd(), PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::from(3000u16)).unwrap();
    start.elapsed()
}

fn is_running(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What the guest must look like from inside.
fn assert_configured(guest: &Guest) {
    let devices = guest.run("ip -d address");
    for part in [
        "mtu 1500",
        "52:55:0a:00:02:64",
        "inet 10.0.2.100/24 brd 10.0.2.255",
        "inet6 fd00::64/64",
        "qlen 4000",
        "inet 127.0.0.1/8",
        "inet6 ::1/128",
    ] {
        assert!(devices.contains(part), "{part} is missing: {devices}");
    }
    assert!(!devices.contains("fd00::64/64 scope global tentative"), "{devices}");
    let routes = guest.run("ip route") + &guest.run("ip -6 route");
    assert!(routes.contains("default via 10.0.2.2 dev tap0"), "{routes}");
    assert!(routes.contains("default via fd00::2 dev tap0"), "{routes}");
    // Its own addresses answer, and are usable at once.
    guest.inside(|| {
        for address in ["10.0.2.100:0", "[fd00::64]:0", "127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        }
    });
}

#[test]
fn root_attaches_to_a_pid() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let start = Instant::now();
        let attached = attach_to(&guest);
        say(&format_args!("attach as root: {:?}", start.elapsed()));
        assert_configured(&guest);
        assert_eq!(attached.warnings, Vec::<String>::new());
        assert_eq!(attached.link.offload.vnet_header_bytes, 10);
        assert!(attached.link.offload.checksum && attached.link.offload.tso);
        assert_eq!(attached.ended.reason(), None);
    });
}

#[test]
fn root_attaches_to_a_users_namespace_and_to_a_name() {
    in_own_process(ROOT, || {
        let guest = Guest::of_user();
        let attached = attach(&request(Target::Path(guest.path("ns/net")))).unwrap();
        assert_configured(&guest);
        drop(attached);

        let named = Named::new("named");
        let _attached = attach(&request(Target::Path(named.path()))).unwrap();
        assert!(ip(&format!("-n {} address", named.0)).contains("inet 10.0.2.100/24"));
    });
}

#[test]
fn an_ordinary_user_attaches_to_the_namespace_it_owns() {
    in_own_process(USER, || {
        let guest = Guest::of_caller();
        let start = Instant::now();
        let mut attached = attach_to(&guest);
        say(&format_args!("attach as a user: {:?}", start.elapsed()));
        assert_refused(&mut attached, "127.0.0.1:80");
        assert_refused(&mut attached, "[::1]:80");

        // With the user namespace given, it is the same.
        drop(attached);
        let userns = Some(guest.path("ns/user"));
        attach(&Request { userns, ..request(Target::Pid(guest.pid())) }).unwrap();
    });
    in_own_process(ROOT, || {
        let guest = Guest::of_user();
        let daemon = spawn(USER, || {
            let _attached = attach_to(&guest);
            std::thread::sleep(Duration::from_secs(60));
        });
        eventually("the user's daemon is ready", || guest.run("ip route").contains("default"));
        assert_configured(&guest);
        kill(daemon, Signal::SIGKILL).unwrap();
        waitpid(daemon, None).unwrap();
    });
}

#[test]
fn a_user_inside_of_its_user_namespace_attaches() {
    in_own_process(USER, || {
        let guest = Guest::of_caller();
        let userns = File::open(guest.path("ns/user")).unwrap();
        setns(userns, CloneFlags::CLONE_NEWUSER).unwrap();
        attach_to(&guest);
        let userns = Some(PathBuf::from("/proc/self/ns/user"));
        attach(&Request { userns, ..request(Target::Pid(guest.pid())) }).unwrap();
    });
}

#[test]
fn without_configuration_the_tap_is_down_and_bare() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let bare = Request { configure: false, ..request(Target::Pid(guest.pid())) };
        let _attached = attach(&bare).unwrap();
        let devices = guest.run("ip address");
        assert!(devices.contains("mtu 1500") && devices.contains("52:55:0a:00:02:64"), "{devices}");
        assert!(!devices.contains("inet"), "{devices}");
        assert!(!devices.contains(",UP"), "{devices}");
    });
}

#[test]
fn frames_pass_with_and_without_offload() {
    in_own_process(ROOT, || {
        for offload in [true, false] {
            let guest = Guest::of_root();
            let with = Request { offload, ..request(Target::Pid(guest.pid())) };
            let attached = attach(&with).unwrap();
            let header = usize::from(attached.link.offload.vnet_header_bytes);
            assert_eq!(header, if offload { 10 } else { 0 });
            guest.inside(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"hello", "10.0.2.2:9").unwrap();
            });
            let mut tap = File::from(attached.link.fd);
            let mut frame = [0; 2048];
            let is_arp = |frame: &[u8]| frame[header + 12..header + 14] == [0x08, 0x06];
            while tap.read(&mut frame).unwrap() < header + 14 || !is_arp(&frame) {}
            assert_eq!(frame[header..header + 6], [0xff; 6]);
        }
    });
}

/// A tunnel with an address of either family, and these routes.
fn tunnel(name: &str, network: u8, routes: &[(&str, u8, Option<u32>)]) -> TunnelDevice {
    let route = |&(to, prefix, table): &(&str, u8, Option<u32>)| TunnelRoute {
        to: (to.parse().unwrap(), prefix),
        table,
    };
    TunnelDevice {
        name: name.to_owned(),
        mtu: 1420,
        addresses: vec![
            (Ipv4Addr::new(10, network, 0, 1).into(), 24),
            (format!("fd00:{network}::1").parse().unwrap(), 64),
        ],
        routes: routes.iter().map(route).collect(),
        offload: true,
    }
}

#[test]
fn a_tunnels_device_has_its_addresses_and_routes_and_goes_with_its_descriptor() {
    for user in [ROOT, USER] {
        in_own_process(user, || {
            let guest = if user == ROOT { Guest::of_root() } else { Guest::of_caller() };
            let routes = [
                ("0.0.0.0", 0, None),
                ("10.7.0.0", 24, None),
                ("192.0.2.0", 24, Some(700)),
                ("::", 0, None),
            ];
            let tunnels = vec![tunnel("wg0", 7, &routes), tunnel("wg1", 8, &[])];
            let with = Request { tunnels, ..request(Target::Pid(guest.pid())) };
            let attached = attach(&with).unwrap();
            assert_eq!(attached.warnings, Vec::<String>::new());
            let [wg0, wg1] = &attached.tunnels[..] else { panic!("{:?}", attached.tunnels) };
            assert_eq!([&wg0.name, &wg1.name], ["wg0", "wg1"]);
            assert!(wg0.offload.tso && wg0.offload.vnet_header_bytes == 10);

            // Looking from inside takes root.
            if user == ROOT {
                assert_configured(&guest);
            }
            let devices = guest.run("ip -d address show wg0");
            for part in ["mtu 1420", "tun type tun", "inet 10.7.0.1/24", "inet6 fd00:7::1/64"] {
                assert!(devices.contains(part), "{part} is missing: {devices}");
            }
            assert!(!devices.contains("MULTICAST") && !devices.contains("fe80"), "{devices}");
            assert!(guest.run("ip route get 198.51.100.1").contains("dev wg0"), "the way out");
            assert!(guest.run("ip -6 route get 2001:db8::1").contains("dev wg0"), "the way out");
            assert!(guest.run("ip route get 10.8.0.9").contains("dev wg1"));
            assert!(guest.run("ip route show table 700").contains("192.0.2.0/24 dev wg0"));

            drop(attached);
            eventually("the devices are gone", || !guest.run("ip link").contains("wg"));
        });
    }
}

#[test]
fn what_cannot_be_done_for_a_tunnel_is_named_and_nothing_is_left() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let with = |tunnels| Request { tunnels, ..request(Target::Pid(guest.pid())) };
        let first = attach(&with(vec![tunnel("wg0", 7, &[])])).unwrap();
        let other = Request { tap_name: "tap1".to_owned(), ..with(vec![tunnel("wg0", 8, &[])]) };
        let error = error_of(&other);
        assert!(matches!(&error, AttachError::TunnelExists { name, .. } if name == "wg0"));
        drop(first);

        let elsewhere = [("10.9.0.0", 24, None), ("10.0.2.0", 24, None)];
        let error = error_of(&with(vec![tunnel("wg0", 7, &[]), tunnel("wg1", 8, &elsewhere)]));
        assert!(error.to_string().contains("route 10.0.2.0/24 into wg1"), "{error}");
        let error = error_of(&with(vec![tunnel("w/0", 7, &[])]));
        assert!(matches!(error, AttachError::TapName { .. }), "{error}");
        let many = (0..65).map(|number| tunnel(&format!("wg{number}"), number, &[])).collect();
        assert!(matches!(error_of(&with(many)), AttachError::TooManyTunnels));
        assert_eq!(guest.run("ip -o link").lines().count(), 1, "lo alone");
    });
}

#[test]
fn what_is_no_tap_is_not_taken_over() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(take_over(socket.into()).is_err());
    assert!(take_over(File::open("/dev/null").unwrap().into()).is_err());
}

#[test]
fn a_namespace_without_ipv6_gives_a_warning() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        guest.run("sysctl -w net.ipv6.conf.all.disable_ipv6=1");
        guest.run("sysctl -w net.ipv6.conf.default.disable_ipv6=1");
        let attached = attach_to(&guest);
        let [warning] = &attached.warnings[..] else { panic!("{:?}", attached.warnings) };
        assert!(warning.starts_with("no IPv6 on tap0"), "{warning}");
        assert!(guest.run("ip route").contains("default via 10.0.2.2"));
        drop(attached);

        let guest = Guest::of_root();
        let small = Request { mtu: 1000, ..request(Target::Pid(guest.pid())) };
        assert!(attach(&small).unwrap().warnings[0].contains("1000 is below 1280"));
    });
}

#[test]
fn a_gateway_outside_of_the_network_and_an_old_default_route_are_no_obstacle() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let mut alone = request(Target::Pid(guest.pid()));
        alone.net4.as_mut().unwrap().prefix = 32;
        alone.net6.as_mut().unwrap().prefix = 128;
        let _first = attach(&alone).unwrap();
        assert!(guest.run("ip route").contains("default via 10.0.2.2 dev tap0 onlink"));

        let other = request(Target::Pid(guest.pid()));
        let second = attach(&Request { tap_name: "tap1".to_owned(), ..other }).unwrap();
        assert!(second.warnings.iter().any(|w| w.contains("IPv4 default route already")));
    });
}

#[test]
fn a_second_daemon_is_told_that_the_tap_exists() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let _first = attach_to(&guest);
        let error = error_of(&request(Target::Pid(guest.pid())));
        assert!(matches!(error, AttachError::TapExists { .. }), "{error:?}");
        assert!(error.to_string().ends_with("choose another name"), "{error}");
        assert_configured(&guest);
    });
}

#[test]
fn a_namespace_that_is_gone_is_named() {
    in_own_process(ROOT, || {
        let mut guest = Guest::of_root();
        let (by_pid, by_path) = (Target::Pid(guest.pid()), Target::Path(guest.path("ns/net")));
        guest.kill();
        let expected = format!("the network namespace of PID {} is gone", guest.pid());
        assert_eq!(error_of(&request(by_pid)).to_string(), expected);
        for target in
            [by_path, Target::Path("/run/netns/no-such".into()), Target::Pid(0), Target::Pid(-1)]
        {
            let error = error_of(&request(target));
            assert!(matches!(error, AttachError::NamespaceGone { .. }), "{error:?}");
        }
    });
}

#[test]
fn what_is_no_namespace_is_refused() {
    in_own_process(ROOT, || {
        for path in ["/etc/passwd", "/", "/dev/null", "/proc/self/ns/mnt"] {
            let error = error_of(&request(Target::Path(path.into())));
            assert!(matches!(error, AttachError::NotANamespace { .. }), "{path}: {error:?}");
        }
        let guest = Guest::of_root();
        let userns = Some("/proc/self/ns/net".into());
        let error = error_of(&Request { userns, ..request(Target::Pid(guest.pid())) });
        assert!(matches!(error, AttachError::UserNamespace { .. }), "{error:?}");
        let tap_name = "no/name".to_owned();
        let error = error_of(&Request { tap_name, ..request(Target::Pid(guest.pid())) });
        assert!(matches!(error, AttachError::TapName { .. }), "{error:?}");
    });
}

#[test]
fn an_ordinary_user_may_not_enter_the_namespaces_of_others() {
    in_own_process(ROOT, || {
        let (guest, named) = (Guest::of_root(), Named::new("others"));
        let user = spawn(USER, || {
            for target in [Target::Pid(guest.pid()), Target::Path(named.path())] {
                let error = error_of(&request(target));
                assert!(matches!(error, AttachError::MayNotEnter { .. }), "{error:?}");
                assert!(error.to_string().contains("name that namespace"), "{error}");
            }
        });
        assert_eq!(waitpid(user, None).unwrap(), WaitStatus::Exited(user, 0));
    });
}

#[test]
fn a_half_done_attachment_is_undone() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let mut wrong = request(Target::Pid(guest.pid()));
        wrong.net4.as_mut().unwrap().prefix = 40;
        let error = error_of(&wrong);
        let text = error.to_string();
        assert!(text.contains("give tap0 the address 10.0.2.100/40"), "{text}");
        let devices = guest.run("ip address");
        assert!(!devices.contains("tap0") && !devices.contains("inet"), "{devices}");
        assert!(waitpid(Pid::from_raw(-1), Some(nix::sys::wait::WaitPidFlag::WNOHANG)).is_ok());
    });
}

fn connect(attached: &mut Attached, to: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::from(attached.sockets.connect(to.parse().unwrap())?);
    let mut events = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    poll(&mut events, PollTimeout::from(1000u16)).unwrap();
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

fn assert_refused(attached: &mut Attached, to: &str) {
    let error = connect(attached, to).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ECONNREFUSED as i32), "{to}");
}

#[test]
fn sockets_lead_to_the_guests_loopback() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let mut attached = attach_to(&guest);
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = guest.inside(|| TcpListener::bind(address).unwrap());
            let to = listener.local_addr().unwrap();
            let mut client = connect(&mut attached, &to.to_string()).unwrap();
            let (mut server, from) = listener.accept().unwrap();
            assert!(from.ip().is_loopback());
            client.write_all(b"hello").unwrap();
            let mut heard = [0; 5];
            server.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello");
            // It is nonblocking: nothing is there to be read.
            assert_eq!(client.read(&mut heard).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            drop(listener);
            assert_refused(&mut attached, &to.to_string());
        }
    });
}

#[test]
fn a_thousand_sockets_leave_no_descriptor_behind() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let mut attached = attach_to(&guest);
        let helper_fds = format!("/proc/{}/fd", attached.helper_pid);
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        // An answer says that the helper serves: it has closed the TAP that it handed over.
        assert_refused(&mut attached, "127.0.0.1:80");
        let before = (count("/proc/self/fd"), count(&helper_fds));
        let start = Instant::now();
        // They come sixteen at a time: after a multiple of that as many wait to be used as before.
        let sockets = 16 * 64;
        for _ in 0..sockets {
            let _ = attached.sockets.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, 80)));
        }
        say(&format_args!("a socket takes {:?}", start.elapsed() / sockets));
        assert_eq!(count("/proc/self/fd"), before.0);
        // The helper closes its descriptor of a socket after the answer with it has left.
        eventually("the helper closes them", || count(&helper_fds) <= before.1);
    });
}

#[test]
fn listeners_are_made_in_the_namespace_and_seen_in_its_lists() {
    for (uid, guest) in [(ROOT, Guest::of_root as fn() -> Guest), (USER, Guest::of_caller)] {
        in_own_process(uid, || {
            let guest = guest();
            let Attached { mut listeners, ports, sockets, .. } = attach_to(&guest);
            // A low port, too, which takes a right that the helper has kept.
            for (text, interface) in [("127.0.0.1:80", None), ("[::1]:8080", Some("lo"))] {
                let at: SocketAddr = text.parse().unwrap();
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let listening = Listening { protocol, address: at.ip(), port: at.port() };
                    assert!(!ports.scan().unwrap().contains(&listening));
                    let socket = listeners.open(protocol, at, interface).unwrap();
                    assert!(ports.scan().unwrap().contains(&listening), "{listening:?}");
                    assert!(!Ports::open().scan().unwrap().contains(&listening), "ours has none");
                    let again = listeners.open(protocol, at, interface).unwrap_err();
                    assert_eq!(again.raw_os_error(), Some(Errno::EADDRINUSE as i32));
                    drop(socket);
                    assert!(!ports.scan().unwrap().contains(&listening));
                }
            }
            let nowhere = listeners.open(Protocol::Tcp, "192.0.2.1:80".parse().unwrap(), None);
            let errno = nowhere.unwrap_err().raw_os_error();
            assert_eq!(errno, Some(Errno::EADDRNOTAVAIL as i32));
            // Without the helper there are no more listeners; the lists can still be read.
            drop(sockets);
            let gone = listeners.open(Protocol::Tcp, "127.0.0.1:80".parse().unwrap(), None);
            assert_eq!(gone.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert!(ports.scan().is_ok());
        });
    }
}

#[test]
fn the_helper_lives_on_when_nobody_wants_listeners_any_more() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let Attached { listeners, mut sockets, ended, .. } = attach_to(&guest);
        drop(listeners);
        let connected = sockets.connect("127.0.0.1:80".parse().unwrap());
        assert!(connected.is_ok() || connected.is_err_and(|e| e.raw_os_error().is_some()));
        assert_eq!(ended.reason(), None);
        let listener = guest.inside(|| TcpListener::bind("127.0.0.1:0").unwrap());
        sockets.connect(listener.local_addr().unwrap()).unwrap();
    });
}

#[test]
fn the_end_is_told_within_a_second_of_sigkill() {
    in_own_process(ROOT, || {
        let mut guest = Guest::of_root();
        let attached = attach_to(&guest);
        guest.kill();
        let took = wait_for_end(&attached);
        say(&format_args!("the end was told after {took:?}"));
        assert!(took < SOON);
        assert_eq!(attached.ended.reason(), Some(EndReason::NamespaceGone));
    });
    in_own_process(USER, || {
        let mut guest = Guest::of_caller();
        let attached = attach_to(&guest);
        guest.kill();
        assert!(wait_for_end(&attached) < SOON);
        assert_eq!(attached.ended.reason(), Some(EndReason::NamespaceGone));
    });
}

#[test]
fn the_namespace_lives_as_long_as_any_of_its_processes() {
    in_own_process(USER, || {
        let mut first = Guest::of_caller();
        let attached = attach_to(&first);
        let pid = first.pid().to_string();
        let mut second = Guest::start(Command::new("nsenter").args([
            "-t",
            &pid,
            "-U",
            "--preserve-credentials",
            "-n",
            "sleep",
            "60",
        ]));
        let inode = |guest: &Guest| fs::metadata(guest.path("ns/net")).unwrap().ino();
        assert_eq!(inode(&first), inode(&second));
        first.kill();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(attached.ended.reason(), None);
        second.kill();
        assert!(wait_for_end(&attached) < SOON);
        assert_eq!(attached.ended.reason(), Some(EndReason::NamespaceGone));
    });
}

#[test]
fn two_daemons_in_one_namespace_both_notice_its_end() {
    in_own_process(ROOT, || {
        let mut guest = Guest::of_root();
        let first = attach_to(&guest);
        let other = request(Target::Pid(guest.pid()));
        let second = attach(&Request { tap_name: "tap1".to_owned(), ..other }).unwrap();
        guest.kill();
        assert!(wait_for_end(&first) < SOON);
        assert!(wait_for_end(&second) < SOON);
    });
}

#[test]
fn the_end_of_a_name_is_noticed_and_nothing_pins_the_namespace() {
    in_own_process(ROOT, || {
        // A veth's other end goes when the namespace of this one does: so we see it from outside.
        let (named, witness) = (Named::new("ends"), Named::new("witness"));
        ip(&format!("-n {} link add wit0 type veth peer name wit1 netns {}", witness.0, named.0));
        let has_peer = || ip(&format!("-n {} link", witness.0)).contains("wit0");
        let attached = attach(&request(Target::Path(named.path()))).unwrap();
        // Changes of the mount table that are not ours.
        drop(Named::new("other"));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(attached.ended.reason(), None);

        ip(&format!("netns del {}", named.0));
        assert!(wait_for_end(&attached) < SOON);
        assert_eq!(attached.ended.reason(), Some(EndReason::NamespaceGone));
        assert!(has_peer(), "the TAP keeps the namespace");
        drop(attached);
        eventually("the namespace ends", || !has_peer());
    });
}

#[test]
fn a_name_with_processes_ends_with_the_last_of_them() {
    in_own_process(ROOT, || {
        let named = Named::new("busy");
        let attached = attach(&request(Target::Path(named.path()))).unwrap();
        let path = format!("--net={}", named.path().display());
        let mut guest = Guest::start(Command::new("nsenter").args([&path, "sleep", "60"]));
        ip(&format!("netns del {}", named.0));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(attached.ended.reason(), None);
        guest.kill();
        assert!(wait_for_end(&attached) < SOON);
    });
}

#[test]
fn a_descriptor_is_a_target_too() {
    in_own_process(ROOT, || {
        let mut guest = Guest::of_root();
        let file = File::open(guest.path("ns/net")).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let attached = attach(&request(Target::Path(path))).unwrap();
        assert_configured(&guest);
        guest.kill();
        assert!(wait_for_end(&attached) < SOON);
    });
}

#[test]
fn the_helper_holds_next_to_nothing_and_ignores_the_terminal() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let attached = attach_to(&guest);
        let helper = Pid::from_raw(attached.helper_pid);
        let open = || -> Vec<String> {
            let files = fs::read_dir(format!("/proc/{helper}/fd")).unwrap();
            files
                .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
                .map(|path| path.display().to_string())
                .collect()
        };
        let known = ["/dev/null", "socket:", "anon_inode:[pidfd]", "pidfd:"];
        // The TAP is closed right after it was handed over.
        eventually("the helper holds nothing else", || {
            open().iter().all(|file| known.iter().any(|known| file.starts_with(known)))
        });
        assert_eq!(nix::unistd::getpgid(Some(helper)).unwrap(), helper);
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            kill(helper, signal).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(attached.ended.reason(), None);
        let status = fs::read_to_string(format!("/proc/{helper}/status")).unwrap();
        let (ptrace, bind) = (1_u64 << 19, 1_u64 << 10);
        let kept = format!("CapEff:\t{:016x}", ptrace | bind);
        assert!(status.contains(&kept), "CAP_SYS_PTRACE and CAP_NET_BIND_SERVICE alone: {status}");
    });
}

#[test]
fn a_killed_helper_is_noticed() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let mut attached = attach_to(&guest);
        kill(Pid::from_raw(attached.helper_pid), Signal::SIGKILL).unwrap();
        assert!(wait_for_end(&attached) < SOON);
        assert_eq!(attached.ended.reason(), Some(EndReason::HelperGone));
        assert!(connect(&mut attached, "127.0.0.1:80").is_err());
    });
}

#[test]
fn nothing_is_left_behind() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        for _ in 0..3 {
            let attached = attach_to(&guest);
            let helper = attached.helper_pid;
            drop(attached);
            assert!(!is_running(helper));
            assert!(!guest.run("ip link").contains("tap0"));
        }
        assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), before);
    });
}

#[test]
fn a_killed_daemon_takes_helper_and_device_with_it() {
    in_own_process(ROOT, || {
        let guest = Guest::of_root();
        let user_guest = Guest::of_user();
        for (uid, guest) in [(ROOT, &guest), (USER, &user_guest)] {
            let daemon = spawn(uid, || {
                let _attached = attach_to(guest);
                std::thread::sleep(Duration::from_secs(60));
            });
            eventually("the daemon is ready", || guest.run("ip route").contains("default"));
            let children = format!("/proc/{daemon}/task/{daemon}/children");
            let helper: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
            kill(daemon, Signal::SIGKILL).unwrap();
            waitpid(daemon, None).unwrap();
            eventually("the helper is gone", || !is_running(helper));
            eventually("the device is gone", || !guest.run("ip link").contains("tap0"));
        }
    });
}

#[test]
fn the_way_out_is_found() {
    in_own_process(ROOT, || {
        let egress = Egress::probe();
        say(&format_args!("egress: {egress:?}"));
        assert_eq!(egress.mtu(), egress_mtu());
        assert!((576..=u16::MAX).contains(&egress.mtu()));

        let guest = Guest::of_root();
        assert_eq!(guest.inside(Egress::probe), Egress { mtu4: None, mtu6: None });
        assert_eq!(guest.inside(egress_mtu), 1500);
        let _attached =
            attach(&Request { mtu: 1400, ..request(Target::Pid(guest.pid())) }).unwrap();
        assert_eq!(guest.inside(Egress::probe), Egress { mtu4: Some(1400), mtu6: Some(1400) });
    });
}
