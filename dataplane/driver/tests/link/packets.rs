//! The link as a socket that carries one frame per message, as User Mode Linux has it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use usernet_core::Config;
use usernet_core::rules::{Access, HostLoopback, Rules};
use usernet_driver::{BUSY_POLL, Ended, Handle, Lend, Link, Outbound, Runtime, Setup};

use crate::guest::{Guest, Options, PATIENCE, Pattern};

const PEER_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

on_both_backends! {
    a_kernel_behind_the_socket_reaches_the_hosts_services,
    a_peer_is_answered_arp_and_dhcp_frame_by_frame,
    messages_that_are_no_frames_do_no_harm,
    a_peer_that_closes_ends_the_runtime,
    a_peer_that_does_not_read_loses_nothing_it_can_keep,
}

/// A socket pair: the runtime's end, the peer's.
pub(crate) fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair")
}

/// A runtime whose peer is the test.
struct Peer {
    socket: OwnedFd,
    handle: Handle,
    runtime: thread::JoinHandle<Ended>,
}

impl Peer {
    fn start(options: &Options) -> Self {
        let (ours, socket) = pair();
        let timeout = Some(PATIENCE);
        let kind = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&socket, kind, timeout).expect("a timeout");
        let config = Config { seed: 1, ..Config::example() };
        let setup = Setup {
            backend: options.backend,
            rules: Rules::new(&config, &Access::new(&config, HostLoopback::All), vec![], vec![]),
            config,
            link: Link::packets(ours),
            outbound: Outbound::default(),
            namespace: None,
            pcap: None,
            exit_fds: vec![],
            busy_poll: BUSY_POLL,
            lend: Lend::to(0),
        };
        let (runtime, handle) = Runtime::new(setup).expect("a runtime");
        let runtime = thread::spawn(move || runtime.run().expect("no error"));
        Self { socket, handle, runtime }
    }

    fn send(&self, frame: &[u8]) {
        send(&self.socket, frame, SendFlags::NOSIGNAL).expect("room");
    }

    /// The next frame for which `is_wanted`.
    fn receive(&self, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        loop {
            let len = rustix::io::read(&self.socket, &mut buffer).expect("a frame in time");
            if is_wanted(&buffer[..len]) {
                return buffer[..len].to_vec();
            }
        }
    }

    fn counter(&self, name: &str) -> u64 {
        let status = self.handle.status().expect("running");
        status.counters.iter().find(|(known, _)| *known == name).expect("a counter").1
    }
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &PEER_MAC, &kind.to_be_bytes(), payload].concat()
}

fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let sender = [10, 0, 2, 100];
    ethernet(0x0806, &[&fixed[..], &PEER_MAC, &sender, &[0; 6], &target.octets()].concat())
}

fn is_arp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 6])
}

/// A DHCPDISCOVER in UDP without checksum, in IPv4 with one.
fn dhcp_discover() -> Vec<u8> {
    let mut bootp = vec![0; 236];
    bootp[..4].copy_from_slice(&[1, 1, 6, 0]);
    bootp[4..8].copy_from_slice(b"xid!");
    bootp[28..34].copy_from_slice(&PEER_MAC);
    bootp.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    let udp_len = (bootp.len() + 8) as u16;
    let udp = [&[0, 68, 0, 67][..], &udp_len.to_be_bytes(), &[0, 0], &bootp].concat();
    let mut ip = vec![0x45, 0];
    ip.extend((udp_len + 20).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(0x0800, &[ip, udp].concat())
}

fn is_dhcp_answer(frame: &[u8]) -> bool {
    frame.len() > 300 && frame[23] == 17 && frame[34..38] == [0, 67, 0, 68]
}

fn a_kernel_behind_the_socket_reaches_the_hosts_services(options: &Options) {
    const BLOCKS: usize = 200;
    let options = Options { is_offloaded: false, is_socket: true, ..options.clone() };
    let guest = Guest::start(&options);
    for (gateway, loopback) in guest.gateways() {
        guest.namespace.command(&format!("ping -c 1 -W 5 {gateway}"));
        let listener = TcpListener::bind((loopback, 0)).expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let inside = guest.namespace.spawn(move || {
            let mut stream = TcpStream::connect_timeout(&(gateway, port).into(), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            exchange(&mut stream, BLOCKS)
        });
        let (mut stream, _) = listener.accept().expect("a connection");
        exchange(&mut stream, BLOCKS).expect("the host's end");
        inside.join().expect("no panic").expect("the guest's end");
    }
}

/// The same bytes both ways, one direction after the other.
fn exchange(stream: &mut TcpStream, blocks: usize) -> io::Result<()> {
    thread::scope(|scope| {
        let mut out = stream.try_clone()?;
        let writer = scope.spawn(move || {
            let (mut pattern, mut block) = (Pattern(9), vec![0; 64 << 10]);
            (0..blocks).try_for_each(|_| {
                pattern.fill(&mut block);
                out.write_all(&block)
            })
        });
        let (mut pattern, mut block, mut got) = (Pattern(9), vec![0; 64 << 10], vec![0; 64 << 10]);
        for index in 0..blocks {
            pattern.fill(&mut block);
            stream.read_exact(&mut got)?;
            assert!(got == block, "block {index} differs");
        }
        writer.join().expect("the writer does not panic")
    })
}

fn a_peer_is_answered_arp_and_dhcp_frame_by_frame(options: &Options) {
    let peer = Peer::start(options);
    peer.send(&arp_request(Ipv4Addr::new(10, 0, 2, 2)));
    let answer = peer.receive(is_arp);
    assert_eq!(answer[..6], PEER_MAC);
    assert_eq!(answer[20..22], [0, 2], "a reply");
    peer.send(&dhcp_discover());
    let offer = peer.receive(is_dhcp_answer);
    assert_eq!(offer[58..62], [10, 0, 2, 100], "its address");
}

fn messages_that_are_no_frames_do_no_harm(options: &Options) {
    let peer = Peer::start(options);
    for len in [0, 1, 13, 0, 14, 60] {
        peer.send(&vec![0x45; len]);
    }
    peer.send(&arp_request(Ipv4Addr::new(10, 0, 2, 3)));
    peer.receive(is_arp);
    assert_eq!(peer.counter("driver_tap_read_errors"), 2, "the empty ones");
    assert_eq!(peer.handle.status().expect("running").leases_in_use, 0);
}

fn a_peer_that_closes_ends_the_runtime(options: &Options) {
    let Peer { socket, runtime, handle } = Peer::start(options);
    assert!(handle.status().is_ok());
    drop(socket);
    assert_eq!(runtime.join().expect("no panic"), Ended::PeerClosed);
    // With answers of ours that it never read, the end is a reset.
    let peer = Peer::start(options);
    peer.send(&arp_request(Ipv4Addr::new(10, 0, 2, 2)));
    while peer.counter("frames_to_guest") == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let Peer { socket, runtime, .. } = peer;
    drop(socket);
    assert_eq!(runtime.join().expect("no panic"), Ended::PeerClosed);
}

fn a_peer_that_does_not_read_loses_nothing_it_can_keep(options: &Options) {
    const FRAMES: u64 = 1_500;
    let peer = Peer::start(options);
    for _ in 0..FRAMES {
        peer.send(&arp_request(Ipv4Addr::new(10, 0, 2, 2)));
    }
    while peer.counter("frames_to_guest") < FRAMES {
        thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..FRAMES {
        peer.receive(is_arp);
    }
    assert_eq!(peer.counter("driver_tap_write_errors"), 0);
}
