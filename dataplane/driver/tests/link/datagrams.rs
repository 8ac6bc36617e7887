//! UDP and ping.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::guest::{Guest, Options, Pattern};
use usernet_core::ForwardId;
use usernet_core::rules::{Access, Forward, HostLoopback, Protocol, Rules};
use usernet_driver::{Install, NewListener};

const PATIENCE: Duration = Duration::from_secs(5);

/// The largest payload of a datagram over IPv4.
const SIZE_MAX: usize = 65_507;

on_both_backends! {
    datagrams_of_every_size_come_back,
    datagrams_of_every_size_come_back_without_offload,
    trains_of_datagrams_arrive_whole,
    a_closed_port_is_refused,
    a_forwarded_port_reaches_the_guest,
    a_ping_comes_back,
}

/// A socket of the family of `to`, connected to it.
fn socket_to(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    Ok(socket)
}

/// Echoes datagrams until it has heard nothing for a while.
fn echo(socket: UdpSocket) {
    thread::spawn(move || {
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        let mut bytes = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            socket.send_to(&bytes[..len], from).expect("room");
        }
    });
}

fn expect_echoes(to: SocketAddr) -> io::Result<()> {
    let socket = socket_to(to)?;
    let mut got = vec![0; 65_536];
    for size in [1, 0, 8, 1000, 1452, 1472, 1473, 3000, 9001, 40_000, SIZE_MAX] {
        let mut sent = vec![0; size];
        Pattern(size as u64).fill(&mut sent);
        socket.send(&sent)?;
        let len = socket
            .recv(&mut got)
            .map_err(|error| io::Error::new(error.kind(), format!("{size} bytes: {error}")))?;
        assert!(got[..len] == sent, "{len} bytes came back of {size} to {to}");
    }
    Ok(())
}

fn datagrams_of_every_size_come_back(options: &Options) {
    let guest = Guest::start(options);
    for (gateway, loopback) in guest.gateways() {
        let socket = UdpSocket::bind((loopback, 0)).expect("a socket");
        let port = socket.local_addr().expect("its address").port();
        echo(socket);
        guest.namespace.run(move || expect_echoes((gateway, port).into())).expect("echoes");
    }
    thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.handle.status().expect("running").leases_in_use, 0);
}

fn datagrams_of_every_size_come_back_without_offload(options: &Options) {
    datagrams_of_every_size_come_back(&Options { is_offloaded: false, ..options.clone() });
}

/// Sends 50 datagrams of 1,000 bytes as one train.
fn send_train(socket: &UdpSocket, seed: u64) -> io::Result<()> {
    let segment = nix::sys::socket::sockopt::UdpGsoSegment;
    nix::sys::socket::setsockopt(socket, segment, &1000)?;
    let mut train = vec![0; 50_000];
    Pattern(seed).fill(&mut train);
    socket.send(&train)?;
    Ok(())
}

/// Receives them one by one; where they came from.
fn expect_train(socket: &UdpSocket, seed: u64) -> io::Result<SocketAddr> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut train, mut got, mut from) = (vec![0; 50_000], vec![0; 65_536], None);
    Pattern(seed).fill(&mut train);
    for (index, expected) in train.chunks(1000).enumerate() {
        let (len, sender) = socket.recv_from(&mut got)?;
        assert!(got[..len] == *expected, "datagram {index} differs, {len} bytes");
        from = Some(sender);
    }
    Ok(from.expect("a sender"))
}

fn trains_of_datagrams_arrive_whole(options: &Options) {
    let guest = Guest::start(options);
    for (gateway, loopback) in guest.gateways() {
        let socket = UdpSocket::bind((loopback, 0)).expect("a socket");
        let port = socket.local_addr().expect("its address").port();
        let inside = guest.namespace.spawn(move || {
            let socket = socket_to((gateway, port).into())?;
            send_train(&socket, 11)?;
            expect_train(&socket, 12)
        });
        let from = expect_train(&socket, 11).expect("from the guest");
        socket.connect(from).expect("an address");
        send_train(&socket, 12).expect("room");
        inside.join().expect("no panic").expect("to the guest");
    }
}

fn a_closed_port_is_refused(options: &Options) {
    let guest = Guest::start(options);
    for (gateway, loopback) in guest.gateways() {
        let nobody = UdpSocket::bind((loopback, 0)).expect("a socket");
        let port = nobody.local_addr().expect("its address").port();
        drop(nobody);
        let told = guest.namespace.run(move || {
            let socket = socket_to((gateway, port).into())?;
            socket.send(b"anybody?")?;
            socket.recv(&mut [0; 10])
        });
        assert_eq!(told.expect_err("nobody").kind(), io::ErrorKind::ConnectionRefused);
    }
}

fn a_forwarded_port_reaches_the_guest(options: &Options) {
    let guest = Guest::start(options);
    let server = guest.namespace.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a server");
    let guest_port = server.local_addr().expect("its address").port();
    echo(server);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = socket.local_addr().expect("its address").port();
    let (id, protocol) = (ForwardId(1), Protocol::Udp);
    let forward = Forward { id, protocol, host_ports: (port, port), guest: None, guest_port };
    let rules = Rules::new(
        &guest.config,
        &Access::new(&guest.config, HostLoopback::None),
        vec![forward],
        vec![],
    );
    let listeners = vec![NewListener { forward: id, protocol, socket: socket.into() }];
    guest.handle.install(Install { rules, listeners }).expect("room");
    expect_echoes((Ipv4Addr::LOCALHOST, port).into()).expect("echoes");
}

/// `ping` to the gateway, which answers itself, from a namespace that has no other way out.
fn a_ping_comes_back(options: &Options) {
    let guest = Guest::start(options);
    for (gateway, _) in guest.gateways() {
        guest.namespace.command(&format!("ping -c 1 -W 5 {gateway}"));
    }
}
