//! TCP, and how a runtime ends.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::guest::{Guest, Options, PATIENCE, Pattern, refusing_port};
use usernet_core::ForwardId;
use usernet_core::rules::{Access, Forward, HostLoopback, Protocol, Rules};
use usernet_driver::{Ended, Install, NewListener};

on_both_backends! {
    bytes_arrive_in_both_directions_at_once,
    bytes_arrive_over_a_link_without_offload,
    a_connection_joins_the_guests_loopback_without_passing_the_link,
    a_connection_that_cannot_join_the_loopback_passes_the_link,
    the_end_of_one_direction_leaves_the_other_open,
    a_refused_port_is_refused_at_once,
    a_slow_reader_holds_the_writer_back,
    a_forwarded_port_reaches_the_guest,
    a_hundred_connections_at_once_are_all_served,
    deleting_the_device_ends_the_runtime,
    an_exit_descriptor_ends_the_runtime,
    stopping_ends_the_runtime,
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn write_pattern(mut stream: impl Write, seed: u64, blocks: usize) -> io::Result<()> {
    let (mut pattern, mut block) = (Pattern(seed), vec![0; 64 << 10]);
    for _ in 0..blocks {
        pattern.fill(&mut block);
        stream.write_all(&block)?;
    }
    Ok(())
}

fn expect_pattern(mut stream: impl Read, seed: u64, blocks: usize) -> io::Result<()> {
    let (mut pattern, mut block, mut got) = (Pattern(seed), vec![0; 64 << 10], vec![0; 64 << 10]);
    for index in 0..blocks {
        pattern.fill(&mut block);
        stream.read_exact(&mut got)?;
        assert!(got == block, "block {index} of stream {seed} differs");
    }
    Ok(())
}

fn exchange(stream: &TcpStream, seed_out: u64, seed_in: u64, blocks: usize) -> io::Result<()> {
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            write_pattern(stream, seed_out, blocks)?;
            stream.shutdown(Shutdown::Write)
        });
        expect_pattern(stream, seed_in, blocks)?;
        let mut rest = Vec::new();
        let mut reader = stream;
        reader.read_to_end(&mut rest)?;
        assert!(rest.is_empty(), "nothing follows");
        writer.join().expect("the writer does not panic")
    })
}

fn bytes_arrive_in_both_directions_at_once(options: &Options) {
    exchange_over_both_families(options, 2000);
}

fn bytes_arrive_over_a_link_without_offload(options: &Options) {
    exchange_over_both_families(&Options { is_offloaded: false, ..options.clone() }, 300);
}

fn exchange_over_both_families(options: &Options, blocks: usize) {
    let guest = Guest::start(options);
    for (gateway, loopback) in guest.gateways() {
        let listener = TcpListener::bind((loopback, 0)).expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let inside = guest.namespace.spawn(move || {
            let stream = connect((gateway, port).into())?;
            exchange(&stream, 1, 2, blocks)
        });
        let (stream, _) = listener.accept().expect("a connection");
        exchange(&stream, 2, 1, blocks).expect("the host's end");
        inside.join().expect("no panic").expect("the guest's end");
    }
}

fn the_end_of_one_direction_leaves_the_other_open(options: &Options) {
    let guest = Guest::start(options);
    let (gateway, loopback) = guest.gateways()[0];
    let listener = TcpListener::bind((loopback, 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let inside = guest.namespace.spawn(move || {
        let mut stream = connect((gateway, port).into())?;
        stream.write_all(b"question")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        io::Result::Ok(answer)
    });
    let (mut stream, _) = listener.accept().expect("a connection");
    let mut question = String::new();
    stream.read_to_string(&mut question).expect("the end");
    thread::sleep(Duration::from_millis(50));
    stream.write_all(b"answer").expect("still open");
    drop(stream);
    assert_eq!(question, "question");
    assert_eq!(inside.join().expect("no panic").expect("an answer"), "answer");
}

fn a_refused_port_is_refused_at_once(options: &Options) {
    let guest = Guest::start(options);
    for (gateway, _) in guest.gateways() {
        let (_nobody, port) = refusing_port();
        let refused = guest.namespace.run(move || TcpStream::connect((gateway, port)));
        assert_eq!(refused.expect_err("closed").kind(), io::ErrorKind::ConnectionRefused);
    }
}

fn a_slow_reader_holds_the_writer_back(options: &Options) {
    const BLOCKS: usize = 500;
    let guest = Guest::start(options);
    let (gateway, loopback) = guest.gateways()[0];
    let listener = TcpListener::bind((loopback, 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let inside = guest.namespace.spawn(move || {
        let stream = connect((gateway, port).into())?;
        write_pattern(&stream, 3, BLOCKS)
    });
    let (stream, _) = listener.accept().expect("a connection");
    thread::sleep(Duration::from_millis(300));
    let status = guest.handle.status().expect("running");
    assert!(!inside.is_finished(), "32 MB do not fit anywhere");
    assert!(status.leases_in_use < status.leases_max);
    expect_pattern(&stream, 3, BLOCKS).expect("all of it");
    inside.join().expect("no panic").expect("all of it");
    drop(stream);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.handle.status().expect("running").leases_in_use, 0);
}

/// Rules with one forward, and its listener.
fn forward(guest: &Guest, guest_port: u16) -> (Install, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let (id, protocol) = (ForwardId(1), Protocol::Tcp);
    let forward = Forward { id, protocol, host_ports: (port, port), guest: None, guest_port };
    let rules = Rules::new(
        &guest.config,
        &Access::new(&guest.config, HostLoopback::None),
        vec![forward],
        vec![],
    );
    let listeners = vec![NewListener { forward: id, protocol, socket: listener.into() }];
    (Install { rules, listeners }, port)
}

/// A server in the guest that exchanges bytes with one client on the host's loopback; where that came from.
fn exchange_through_a_forward(guest: &Guest, bind: &'static str) -> SocketAddr {
    let server = guest.namespace.run(move || TcpListener::bind((bind, 0))).expect("a server");
    let (install, port) = forward(guest, server.local_addr().expect("its address").port());
    guest.handle.install(install).expect("room");
    let inside = thread::spawn(move || {
        let (stream, peer) = server.accept()?;
        exchange(&stream, 5, 6, 500)?;
        io::Result::Ok(peer)
    });
    let stream = connect((Ipv4Addr::LOCALHOST, port).into()).expect("forwarded");
    exchange(&stream, 6, 5, 500).expect("the host's end");
    inside.join().expect("no panic").expect("the guest's end")
}

fn counter(guest: &Guest, name: &str) -> u64 {
    let status = guest.handle.status().expect("running");
    status.counters.iter().find(|(known, _)| *known == name).expect("a counter").1
}

fn a_connection_joins_the_guests_loopback_without_passing_the_link(options: &Options) {
    let guest = Guest::start(&Options { joins_loopback: true, ..options.clone() });
    let peer = exchange_through_a_forward(&guest, "127.0.0.1");
    assert!(peer.ip().is_loopback());
    assert_eq!(counter(&guest, "tcp_spliced"), 1);
    assert!(counter(&guest, "bytes_from_guest") < 100_000, "payload does not pass the link");
    thread::sleep(Duration::from_millis(100));
    let status = guest.handle.status().expect("running");
    assert_eq!((status.spliced_flows, status.leases_in_use), (0, 0));
}

fn a_connection_that_cannot_join_the_loopback_passes_the_link(options: &Options) {
    let guest = Guest::start(&Options { joins_loopback: true, ..options.clone() });
    let peer = exchange_through_a_forward(&guest, "10.0.2.100");
    assert_eq!(peer.ip(), IpAddr::from(guest.config.net4.expect("IPv4").gateway));
}

fn a_forwarded_port_reaches_the_guest(options: &Options) {
    let guest = Guest::start(options);
    let peer = exchange_through_a_forward(&guest, "0.0.0.0");
    assert_eq!(peer.ip(), IpAddr::from(guest.config.net4.expect("IPv4").gateway));
    let port = guest.handle.rules().expect("running").forwards[0].host_ports.0;
    let none = Install {
        rules: Rules::new(
            &guest.config,
            &Access::new(&guest.config, HostLoopback::None),
            vec![],
            vec![],
        ),
        listeners: vec![],
    };
    guest.handle.install(none).expect("less");
    // Programs that other tests start may hold a copy of the listener until they have called exec.
    let is_refused = |_| {
        thread::sleep(Duration::from_millis(10));
        TcpStream::connect(("127.0.0.1", port)).is_err()
    };
    assert!((0..200).any(is_refused), "the forward is gone, and its port closed");
}

fn a_hundred_connections_at_once_are_all_served(options: &Options) {
    let guest = Guest::start(options);
    let (gateway, loopback) = guest.gateways()[0];
    let listener = TcpListener::bind((loopback, 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a connection");
            thread::spawn(move || exchange(&stream, 8, 7, 20).expect("the host's end"));
        }
    });
    let clients = guest.namespace.run(move || {
        let client = move || exchange(&connect((gateway, port).into())?, 7, 8, 20);
        let clients: Vec<_> = (0..100).map(|_| thread::spawn(client)).collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect::<Vec<_>>()
    });
    for client in clients {
        client.expect("the guest's end");
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(guest.handle.status().expect("running").leases_in_use, 0);
}

fn deleting_the_device_ends_the_runtime(options: &Options) {
    let guest = Guest::start(options);
    guest.namespace.command("ip link del tap0");
    assert_eq!(guest.join(), Ended::NamespaceGone);
}

fn an_exit_descriptor_ends_the_runtime(options: &Options) {
    let (read, write) = io::pipe().expect("a pipe");
    let exit_fds = vec![Arc::new(read.into())];
    let guest = Guest::start(&Options { exit_fds, ..options.clone() });
    assert!(guest.handle.status().is_ok());
    drop(write);
    assert_eq!(guest.join(), Ended::ExitFd);
}

fn stopping_ends_the_runtime(options: &Options) {
    let guest = Guest::start(options);
    let handle = guest.handle.clone();
    handle.stop();
    assert_eq!(guest.join(), Ended::Stopped);
    assert!(handle.status().is_err());
    assert!(handle.flows().is_err());
}
