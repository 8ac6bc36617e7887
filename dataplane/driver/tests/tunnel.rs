//! A tunnel's thread between a device and the wire. The tunnel here seals nothing: what it is given it passes on, so that
//! all that is tested is the driver's. The device is a socket that keeps the bounds of packets, as a TUN does.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use usernet_core::tunnel::{Tunnel, TunnelOut};
use usernet_core::{Instant, Offload};
use usernet_driver::namespace::TunnelLink;
use usernet_driver::{DriverError, LinkOffload, TunnelEnded, TunnelHandle, TunnelWorker, Wire};

/// Long enough on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// Passes everything on.
#[derive(Default)]
struct Open {
    /// Who gets what the guest sends.
    peer: Option<SocketAddr>,
    /// Bytes of a datagram.
    size: usize,
    /// How often the deadline came.
    ticks: u32,
    deadline: Option<Instant>,
    /// Senders, and how many datagrams came with one call.
    trains: Vec<(SocketAddr, usize)>,
}

impl Tunnel for Open {
    fn on_packet(&mut self, _: Instant, packet: &mut [u8], _: Offload, out: &mut dyn TunnelOut) {
        if let Some(peer) = self.peer {
            out.to_wire(peer, packet, self.size);
        }
    }

    fn on_datagrams(
        &mut self,
        _: Instant,
        from: SocketAddr,
        train: &mut [u8],
        size: usize,
        out: &mut dyn TunnelOut,
    ) {
        self.trains.push((from, train.len().div_ceil(size.max(1))));
        for datagram in train.chunks(size) {
            out.to_guest(datagram, Offload::default());
        }
    }

    fn tick(&mut self, now: Instant, _: &mut dyn TunnelOut) {
        assert!(self.deadline.take().is_some_and(|deadline| deadline <= now), "not before");
        self.ticks += 1;
    }

    fn flush(&mut self, _: Instant, _: &mut dyn TunnelOut) {}

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

struct Lab {
    guest: OwnedFd,
    handle: TunnelHandle<Open>,
    thread: JoinHandle<Result<TunnelEnded, DriverError>>,
}

impl Lab {
    fn new(tunnel: Open) -> Self {
        let pair =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (guest, device) = pair.unwrap();
        setsockopt(&guest, sockopt::ReceiveTimeout, &TimeVal::new(5, 0)).unwrap();
        let link =
            TunnelLink { fd: device, name: "wg0".to_owned(), offload: LinkOffload::default() };
        let wire = Wire::open(0).unwrap();
        let (worker, handle) =
            TunnelWorker::new(tunnel, link, wire, Duration::from_micros(50)).unwrap();
        Self { guest, handle, thread: thread::spawn(move || worker.run()) }
    }

    fn send(&self, packet: &[u8]) {
        send(self.guest.as_raw_fd(), packet, MsgFlags::empty()).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let count = recv(self.guest.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        buffer.truncate(count);
        buffer
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.handle.counters().unwrap();
        counters.iter().find(|(known, _)| *known == name).expect("there is such a counter").1
    }

    fn stop(self) {
        self.handle.stop();
        assert_eq!(self.thread.join().unwrap().unwrap(), TunnelEnded::Stopped);
        assert!(self.handle.port().is_err(), "nobody is there to answer");
    }
}

/// A socket of a peer's. None: there is no such family here.
fn peer(ip: IpAddr) -> Option<UdpSocket> {
    match UdpSocket::bind((ip, 0)) {
        Ok(socket) => {
            socket.set_read_timeout(Some(SOON)).unwrap();
            Some(socket)
        }
        Err(error) => {
            assert!(ip.is_ipv6() && error.kind() == ErrorKind::AddrNotAvailable, "{error}");
            None
        }
    }
}

fn loopback(port: u16, ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, port)
}

const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[test]
fn packets_go_to_the_peer_and_datagrams_to_the_guest() {
    for ip in LOOPBACKS {
        let Some(peer) = peer(ip) else { continue };
        let to = peer.local_addr().unwrap();
        let lab = Lab::new(Open { peer: Some(to), size: 2000, ..Open::default() });
        for bytes in [1, 100, 1999, 2000] {
            lab.send(&vec![7; bytes]);
            let mut buffer = [0; 4096];
            let (count, from) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!((count, from), (bytes, loopback(lab.handle.port().unwrap(), ip)));
            peer.send_to(&buffer[..count], from).unwrap();
            assert_eq!(lab.receive(), vec![7; bytes]);
        }
        assert_eq!((lab.counter("from_guest"), lab.counter("to_guest")), (4, 4));
        lab.stop();
    }
}

#[test]
fn a_super_frame_goes_with_one_call_and_a_train_comes_with_one() {
    let peer = peer(LOOPBACKS[0]).unwrap();
    let lab = Lab::new(Open { peer: peer.local_addr().ok(), size: 1000, ..Open::default() });
    let other = Lab::new(Open::default());
    // More than one call takes: 65 datagrams of which a call takes 64, and the last one short.
    let packet: Vec<u8> = (0..64_500u32).map(|at| at as u8).collect();
    lab.send(&packet);
    let mut got = Vec::new();
    while got.len() < packet.len() {
        let mut buffer = [0; 4096];
        let (count, _) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(count, if got.len() < 64_000 { 1000 } else { 500 });
        got.extend_from_slice(&buffer[..count]);
    }
    assert!(got == packet, "all of it in order");
    assert_eq!((lab.counter("to_wire"), lab.counter("trains_cut")), (2, 0));

    // Between two of ours the kernel leaves a train whole.
    let to = loopback(other.handle.port().unwrap(), LOOPBACKS[0]);
    lab.handle.with(move |tunnel, _, _| tunnel.peer = Some(to)).unwrap();
    lab.send(&packet[..30_000]);
    for piece in packet[..30_000].chunks(1000) {
        assert!(other.receive() == piece);
    }
    let trains = other.handle.with(|tunnel, _, _| tunnel.trains.clone()).unwrap();
    let from = loopback(lab.handle.port().unwrap(), LOOPBACKS[0]);
    assert_eq!(trains, [(from, 30)]);
    assert_eq!(other.counter("from_wire"), 1);
    lab.stop();
    other.stop();
}

#[test]
fn datagrams_larger_than_the_mtu_go_in_fragments_and_nothing_is_lost() {
    let peer = peer(LOOPBACKS[0]).unwrap();
    let lab = Lab::new(Open { peer: peer.local_addr().ok(), size: 65_507, ..Open::default() });
    for bytes in [65_507, 65_500, 60_000] {
        lab.send(&vec![3; bytes]);
        let mut buffer = vec![0; 65_536];
        assert_eq!(peer.recv(&mut buffer).unwrap(), bytes);
    }
    lab.stop();
}

#[test]
fn what_cannot_be_sent_is_counted() {
    let broadcast = SocketAddr::from(([255, 255, 255, 255], 9));
    let lab = Lab::new(Open { peer: Some(broadcast), size: 2000, ..Open::default() });
    lab.send(b"nobody may send this");
    lab.send(b"nor this");
    let peer = peer(LOOPBACKS[0]).unwrap();
    let to = peer.local_addr().ok();
    // A request is answered between two turns: what was sent before may be read after it.
    while lab.counter("from_guest") < 2 {
        thread::yield_now();
    }
    assert_eq!(lab.counter("wire_refused"), 2);
    lab.handle.with(move |tunnel, _, _| tunnel.peer = to).unwrap();
    lab.send(b"this");
    let mut buffer = [0; 100];
    assert_eq!(peer.recv(&mut buffer).unwrap(), 4);
    lab.stop();
}

#[test]
fn the_port_can_be_changed_while_it_runs() {
    let peer = peer(LOOPBACKS[0]).unwrap();
    let lab = Lab::new(Open { peer: peer.local_addr().ok(), size: 2000, ..Open::default() });
    let before = lab.handle.port().unwrap();
    let taken = peer.local_addr().unwrap().port();
    let error = lab.handle.listen(taken).unwrap().unwrap_err();
    assert_eq!(error.source.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    assert_eq!(lab.handle.port(), Ok(before), "nothing has changed");

    let after = lab.handle.listen(0).unwrap().unwrap();
    assert_ne!(after, before);
    assert_eq!(lab.handle.port(), Ok(after));
    UdpSocket::bind((LOOPBACKS[0], before)).expect("the old port is free again");
    peer.send_to(b"hello", loopback(after, LOOPBACKS[0])).unwrap();
    assert_eq!(lab.receive(), b"hello");
    lab.send(b"and back");
    let mut buffer = [0; 100];
    let (count, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..count], from.port()), (&b"and back"[..], after));
    lab.stop();
}

#[test]
fn a_deadline_is_kept_and_at_rest_there_is_no_turn() {
    let lab = Lab::new(Open::default());
    let within = Duration::from_millis(30);
    lab.handle.with(move |tunnel, now, _| tunnel.deadline = Some(now + within)).unwrap();
    let start = std::time::Instant::now();
    while lab.handle.with(|tunnel, _, _| tunnel.ticks).unwrap() == 0 {
        assert!(start.elapsed() < SOON, "the deadline was forgotten");
        thread::park_timeout(Duration::from_millis(5));
    }
    assert!(start.elapsed() >= within - Duration::from_millis(1));
    let turns = lab.counter("turns");
    thread::park_timeout(Duration::from_millis(200));
    // The question wakes it once.
    assert_eq!(lab.counter("turns"), turns + 1);
    lab.stop();
}

#[test]
fn a_peer_is_answered_from_the_address_that_it_spoke_to() {
    let second = IpAddr::from([127, 0, 0, 2]);
    let peer = peer(LOOPBACKS[0]).unwrap();
    let lab = Lab::new(Open { peer: peer.local_addr().ok(), size: 2000, ..Open::default() });
    let port = lab.handle.port().unwrap();
    peer.send_to(b"hello", loopback(port, second)).unwrap();
    assert_eq!(lab.receive(), b"hello");
    lab.send(b"answer");
    let mut buffer = [0; 100];
    let (_, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(from, loopback(port, second));
    lab.stop();
}
