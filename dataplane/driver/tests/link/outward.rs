//! Ports in the namespace that lead to the host's loopback.

use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::thread;

use crate::guest::{Guest, Options, PATIENCE, becomes, counter, refusing_port};
use usernet_core::rules::{Outward, Protocol};
use usernet_core::{FlowKind, ForwardId};
use usernet_driver::{Install, NewListener};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

on_both_backends! {
    both_directions_of_a_connection_end_each_for_itself,
    a_thread_that_joins_fast_streams_lets_others_go_on,
    a_server_of_the_other_family_is_found,
    a_port_without_a_server_resets_the_client,
    datagrams_find_their_way_there_and_back,
    a_port_that_leads_nowhere_any_more_is_closed,
}

/// A listener in the namespace, and the rules with it that lead to `host_port`.
fn install(guest: &Guest, protocol: Protocol, ip: IpAddr, host_port: u16) -> SocketAddr {
    let (socket, at) = guest.namespace.run(move || match protocol {
        Protocol::Tcp => {
            let socket = TcpListener::bind((ip, 0)).expect("a port");
            let at = socket.local_addr();
            (socket.into(), at)
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind((ip, 0)).expect("a port");
            let at = socket.local_addr();
            (socket.into(), at)
        }
    });
    let at = at.expect("its address");
    let (id, ports) = (ForwardId(9), (at.port(), at.port()));
    let outward = Outward { id, protocol, ports, host: None, host_port };
    let rules = guest.handle.rules().expect("running").with_outward(vec![outward]);
    let listeners = vec![NewListener { forward: id, protocol, socket }];
    guest.handle.install(Install { rules, listeners }).expect("room");
    at
}

fn connect(guest: &Guest, to: SocketAddr) -> TcpStream {
    let stream = guest.namespace.run(move || TcpStream::connect_timeout(&to, PATIENCE));
    let stream = stream.expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

fn eventually(what: &str, is_so: impl FnMut() -> bool) {
    assert!(becomes(is_so), "{what}");
}

fn both_directions_of_a_connection_end_each_for_itself(options: &Options) {
    let guest = Guest::start(options);
    for ip in [V4, V6] {
        let server = TcpListener::bind((ip, 0)).expect("a server");
        let at = install(&guest, Protocol::Tcp, ip, server.local_addr().expect("bound").port());
        let mut client = connect(&guest, at);
        let (mut served, peer) = server.accept().expect("the client");
        assert_eq!(peer.ip(), ip);
        eventually("the flow is listed", || {
            let flows = guest.handle.flows().expect("running");
            flows.iter().any(|f| f.kind == FlowKind::Spliced && f.state == "ESTAB" && f.is_outbound)
        });
        client.write_all(b"question").expect("open");
        client.shutdown(Shutdown::Write).expect("open");
        let mut question = String::new();
        served.read_to_string(&mut question).expect("the end");
        assert_eq!(question, "question");
        served.write_all(&vec![7; 5 << 20]).expect("still open");
        drop(served);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("the end");
        assert!(answer.len() == 5 << 20 && answer.iter().all(|&byte| byte == 7));
        eventually("nothing is left", || guest.handle.flows().expect("running").is_empty());
    }
    assert_eq!((counter(&guest, "outward_connections"), counter(&guest, "outward_ended")), (2, 2));
}

fn a_thread_that_joins_fast_streams_lets_others_go_on(options: &Options) {
    let guest = Guest::start(options);
    let server = TcpListener::bind((V4, 0)).expect("a server");
    let at = install(&guest, Protocol::Tcp, V4, server.local_addr().expect("bound").port());
    let mut client = connect(&guest, at);
    let (mut served, _) = server.accept().expect("the client");
    let is_courteous = thread::scope(|scope| {
        scope.spawn(|| io::copy(&mut served, &mut io::sink()));
        // As fast as it goes, until the runtime ends.
        scope.spawn(|| while client.write_all(&[7; 128 << 10]).is_ok() {});
        let is_courteous = becomes(|| counter(&guest, "driver_courtesies") > 0);
        guest.handle.stop();
        is_courteous
    });
    assert!(is_courteous);
}

fn a_server_of_the_other_family_is_found(options: &Options) {
    let guest = Guest::start(options);
    for (client, server) in [(V6, V4), (V4, V6)] {
        let server = TcpListener::bind((server, 0)).expect("a server");
        let at = install(&guest, Protocol::Tcp, client, server.local_addr().expect("bound").port());
        let mut client = connect(&guest, at);
        let (mut served, _) = server.accept().expect("the client");
        served.write_all(b"here").expect("open");
        let mut heard = [0; 4];
        client.read_exact(&mut heard).expect("four bytes");
        assert_eq!(&heard, b"here");
    }
}

fn a_port_without_a_server_resets_the_client(options: &Options) {
    let guest = Guest::start(options);
    let (_nobody, port) = refusing_port();
    let at = install(&guest, Protocol::Tcp, V4, port);
    // The reset may come before the client has looked at its connection.
    let told = guest.namespace.run(move || {
        let mut client = TcpStream::connect_timeout(&at, PATIENCE)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.read(&mut [0; 1])
    });
    let told = told.expect_err("a reset");
    assert_eq!(told.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(counter(&guest, "outward_refused"), 1);
    assert_eq!(guest.handle.status().expect("running").sockets_in_use, 1, "the listener");
}

fn datagrams_find_their_way_there_and_back(options: &Options) {
    let guest = Guest::start(options);
    for ip in [V4, V6] {
        let server = UdpSocket::bind((ip, 0)).expect("a server");
        server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let at = install(&guest, Protocol::Udp, ip, server.local_addr().expect("bound").port());
        let clients = guest.namespace.run(move || {
            [(); 2].map(|()| {
                let client = UdpSocket::bind((ip, 0)).expect("a port");
                client.connect(at).expect("an address");
                client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                client
            })
        });
        let mut buffer = vec![0; 65_536];
        let sizes = [0, 1, 1400, if ip == V4 { 65_507 } else { 65_000 }];
        for (client, size) in clients.iter().flat_map(|c| sizes.map(|size| (c, size))) {
            client.send(&vec![3; size]).expect("room");
            let (len, peer) = server.recv_from(&mut buffer).expect("the question");
            assert_eq!((len, peer.ip()), (size, ip));
            server.send_to(&buffer[..len], peer).expect("room");
            let got = client.recv(&mut buffer).expect("the answer");
            assert!(got == size && buffer[..got].iter().all(|&byte| byte == 3));
        }
        let flows = guest.handle.flows().expect("running");
        assert_eq!(flows.iter().filter(|f| f.remote == Some(at)).count(), 2, "one per client");
    }
    assert_eq!(counter(&guest, "outward_clients"), 4);
    assert_eq!(guest.handle.status().expect("running").leases_in_use, 0);
}

fn a_port_that_leads_nowhere_any_more_is_closed(options: &Options) {
    let guest = Guest::start(options);
    let server = TcpListener::bind((V4, 0)).expect("a server");
    let at = install(&guest, Protocol::Tcp, V4, server.local_addr().expect("bound").port());
    let mut client = connect(&guest, at);
    let (mut served, _) = server.accept().expect("the client");
    let rules = guest.handle.rules().expect("running").with_outward(vec![]);
    guest.handle.install(Install { rules, listeners: vec![] }).expect("less");
    // Programs that other tests start may hold a copy of the listener until they have called exec.
    eventually("the port is closed", || {
        guest.namespace.run(move || TcpStream::connect(at)).is_err()
    });
    served.write_all(b"on").expect("the connection goes on");
    let mut heard = [0; 2];
    client.read_exact(&mut heard).expect("two bytes");
    assert_eq!(&heard, b"on");
}
