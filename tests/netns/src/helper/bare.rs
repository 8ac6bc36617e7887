//! The least that a translator does: the measure for what a better one could gain.
//!
//! TCP over IPv4, from a guest that speaks first, on a link that loses nothing. It has no rules, no checks, no timers and no
//! memory of what it sent; it waits for the host's sockets with everybody else's frames in its queue. What is left is what
//! no translator of frames goes without: a read of the TAP and a write to a socket for what the guest sends, a read of a socket and
//! a write to the TAP for what it is sent, an acknowledgement now and then, and a look for events.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

use super::{Outcome, cable};

/// `struct virtio_net_hdr`, Ethernet, IPv4 and TCP without options.
const HEADER_BYTES: usize = ETHERNET + 14 + 20 + 20;
const ETHERNET: usize = 10;
const IP: usize = ETHERNET + 14;
const TCP: usize = IP + 20;
const FRAME_BYTES_MAX: usize = ETHERNET + 14 + 65_535;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// Ours, which the guest is told: it need not ask.
pub const GATEWAY_MAC: &str = "02:00:00:00:00:01";
const GATEWAY_MAC_BYTES: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The guest's window, in bytes; a multiple of 256.
const WINDOW_BYTES: u32 = 4 << 20;
const WINDOW_SCALE: u8 = 8;
/// Bytes under way to the guest, per flow: as many as stay in the cache.
const IN_FLIGHT_BYTES: u32 = 2 << 20;
/// Frames that are read before the host's sockets have their turn.
const FRAMES_PER_TURN: usize = 32;
const EVENTS_PER_TURN: usize = 256;
/// How long it stays awake after a turn that moved little.
const BUSY_POLL: Duration = Duration::from_micros(50);
/// What is little.
const BULK_BYTES: usize = 16 << 10;

/// Names the TAP among the events.
const DEVICE: u64 = u64::MAX;

/// `bare PID NAME`: makes a TAP in the network namespace of a process, and connects from here for its guest.
pub(super) fn main(args: &[&str]) -> Outcome {
    let [pid, name] = args else { return Err("PID NAME".into()) };
    let device = cable::tap_from_here(pid, name, cable::Offload::Tcp4)?;
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&events, &device, epoll::EventData::new_u64(DEVICE), epoll::EventFlags::IN)?;
    println!("ready");
    let flows = Flows::default();
    let buffer = vec![0; FRAME_BYTES_MAX];
    Translator { device, events, flows, guest_mac: [0; 6], buffer, moved: 0 }.run()
}

/// The guest's port, and whom it calls.
type Key = (u16, SocketAddrV4);

struct Flow {
    key: Key,
    guest: Ipv4Addr,
    socket: TcpStream,
    /// The next byte from the guest.
    expected: u32,
    /// What we send next, what of it is acknowledged, and how far the guest takes it.
    next: u32,
    acked: u32,
    edge: u32,
    window_scale: u8,
    /// Bytes of a segment.
    mss: u16,
    /// Something of the guest's is not acknowledged yet.
    owes: bool,
    /// The socket may have more to read.
    is_readable: bool,
    /// Who has ended.
    guest_ended: bool,
    host_ended: bool,
}

#[derive(Default)]
struct Flows {
    slots: Vec<Option<Flow>>,
    free: Vec<usize>,
    by_key: HashMap<Key, usize>,
}

impl Flows {
    fn insert(&mut self, flow: Flow) -> usize {
        let at = self.free.pop().unwrap_or(self.slots.len());
        if at == self.slots.len() {
            self.slots.push(None);
        }
        self.by_key.insert(flow.key, at);
        self.slots[at] = Some(flow);
        at
    }

    fn remove(&mut self, at: usize) {
        if let Some(flow) = self.slots[at].take() {
            self.by_key.remove(&flow.key);
            self.free.push(at);
        }
    }
}

struct Translator {
    device: File,
    events: OwnedFd,
    flows: Flows,
    guest_mac: [u8; 6],
    buffer: Vec<u8>,
    /// Bytes of payload in this turn.
    moved: usize,
}

impl Translator {
    fn run(mut self) -> Outcome {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN);
        let (mut readable, mut owing) = (Vec::new(), Vec::new());
        let mut awake_until = Instant::now();
        loop {
            let is_awake = !readable.is_empty() || Instant::now() < awake_until;
            let timeout = is_awake.then_some(Timespec { tv_sec: 0, tv_nsec: 0 });
            events.clear();
            epoll::wait(&self.events, spare_capacity(&mut events), timeout.as_ref())?;
            self.moved = 0;
            let mut has_frames = false;
            for event in &events {
                match event.data.u64() {
                    DEVICE => has_frames = true,
                    at => readable.push(at as usize),
                }
            }
            if has_frames {
                self.frames(&mut readable, &mut owing)?;
            }
            // One frame each, in turn.
            for at in std::mem::take(&mut readable) {
                if self.receive(at)? {
                    readable.push(at);
                }
            }
            readable.sort_unstable();
            readable.dedup();
            for at in owing.drain(..) {
                if self.flows.slots[at].as_ref().is_some_and(|flow| flow.owes) {
                    self.send(at, ACK, 0)?;
                }
            }
            if !events.is_empty() && self.moved < BULK_BYTES {
                awake_until = Instant::now() + BUSY_POLL;
            }
        }
    }

    /// What the guest sent.
    fn frames(&mut self, readable: &mut Vec<usize>, owing: &mut Vec<usize>) -> Outcome {
        for _ in 0..FRAMES_PER_TURN {
            let bytes = match self.device.read(&mut self.buffer) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let ethernet_type = [self.buffer[ETHERNET + 12], self.buffer[ETHERNET + 13]];
            if bytes < HEADER_BYTES || ethernet_type != [8, 0] || self.buffer[IP + 9] != 6 {
                continue;
            }
            if let Some(at) = self.segment(bytes)? {
                owing.push(at);
                // An acknowledgement makes room for more.
                if self.flows.slots[at].as_ref().is_some_and(|flow| flow.is_readable) {
                    readable.push(at);
                }
            }
        }
        Ok(())
    }

    /// One segment, in the buffer; the flow that it is of.
    fn segment(&mut self, bytes: usize) -> Result<Option<usize>, Box<dyn std::error::Error>> {
        let frame = &self.buffer[..bytes];
        let half = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let word = |at: usize| u32::from(half(at)) << 16 | u32::from(half(at + 2));
        let address = |at: usize| Ipv4Addr::from_bits(word(at));
        let key = (half(TCP), SocketAddrV4::new(address(IP + 16), half(TCP + 2)));
        let (sequence, acknowledged) = (word(TCP + 4), word(TCP + 8));
        let start = TCP + usize::from(frame[TCP + 12] >> 4) * 4;
        let end = (IP + usize::from(half(IP + 2))).min(bytes);
        let (flags, window) = (frame[TCP + 13], u32::from(half(TCP + 14)));
        if flags & SYN != 0 {
            let (mss, window_scale) = syn_options(frame.get(TCP + 20..start).unwrap_or_default());
            let guest = address(IP + 12);
            self.guest_mac.copy_from_slice(&frame[ETHERNET + 6..ETHERNET + 12]);
            return self.open(key, guest, sequence, (mss, window_scale)).map(|()| None);
        }
        let Some(&at) = self.flows.by_key.get(&key) else { return Ok(None) };
        let Some(flow) = &mut self.flows.slots[at] else { return Ok(None) };
        if flags & RST != 0 {
            self.flows.remove(at);
            return Ok(None);
        }
        flow.acked = acknowledged;
        flow.edge = acknowledged.wrapping_add(window << flow.window_scale);
        let payload = frame.get(start..end).unwrap_or_default();
        if sequence != flow.expected {
            // A probe, or a retransmission, that wants an answer.
            flow.owes |= !payload.is_empty();
            return Ok(Some(at));
        }
        if !payload.is_empty() {
            send_all(&flow.socket, payload)?;
            self.moved += payload.len();
            flow.expected = flow.expected.wrapping_add(payload.len() as u32);
            flow.owes = true;
        }
        if flags & FIN != 0 {
            // It may have ended itself.
            let _ = flow.socket.shutdown(Shutdown::Write);
            flow.expected = flow.expected.wrapping_add(1);
            (flow.owes, flow.guest_ended) = (true, true);
            if flow.host_ended {
                self.send(at, ACK, 0)?;
                self.flows.remove(at);
                return Ok(None);
            }
        } else if flow.guest_ended && flow.host_ended && flow.acked == flow.next {
            self.flows.remove(at);
            return Ok(None);
        }
        Ok(Some(at))
    }

    /// Connects, which on the host itself takes no time, and answers.
    fn open(&mut self, key: Key, guest: Ipv4Addr, sequence: u32, options: (u16, u8)) -> Outcome {
        if self.flows.by_key.contains_key(&key) {
            return Ok(());
        }
        let (mss, window_scale) = options;
        let socket = TcpStream::connect(key.1)?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let (expected, next) = (sequence.wrapping_add(1), 1);
        let (owes, is_readable, guest_ended, host_ended) = (false, false, false, false);
        let flow = Flow {
            key,
            guest,
            socket,
            expected,
            next,
            acked: next,
            edge: next,
            window_scale,
            mss,
            owes,
            is_readable,
            guest_ended,
            host_ended,
        };
        let at = self.flows.insert(flow);
        let socket = &self.flows.slots[at].as_ref().expect("it was inserted").socket;
        let data = epoll::EventData::new_u64(at as u64);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.events, socket, data, flags)?;
        self.send(at, SYN | ACK, 0)
    }

    /// One frame of what the host sent; whether there may be more at once.
    fn receive(&mut self, at: usize) -> Result<bool, Box<dyn std::error::Error>> {
        let Some(Some(flow)) = self.flows.slots.get_mut(at) else { return Ok(false) };
        flow.is_readable = true;
        if flow.host_ended {
            return Ok(false);
        }
        let in_flight = flow.next.wrapping_sub(flow.acked);
        let room = flow.edge.wrapping_sub(flow.next) as i32;
        let room = room.min(IN_FLIGHT_BYTES.saturating_sub(in_flight) as i32).max(0) as usize;
        let end = (HEADER_BYTES + room).min(FRAME_BYTES_MAX);
        if room == 0 {
            return Ok(false);
        }
        match (&flow.socket).read(&mut self.buffer[HEADER_BYTES..end]) {
            Ok(0) => {
                flow.host_ended = true;
                self.send(at, FIN | ACK, 0)?;
                Ok(false)
            }
            Ok(bytes) => {
                self.moved += bytes;
                self.send(at, PSH | ACK, bytes)?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                flow.is_readable = false;
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                self.send(at, RST | ACK, 0)?;
                self.flows.remove(at);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A segment with this payload, which is in the buffer behind the headers.
    fn send(&mut self, at: usize, flags: u8, payload: usize) -> Outcome {
        let Some(flow) = &mut self.flows.slots[at] else { return Ok(()) };
        let (key, is_syn) = (flow.key, flags & SYN != 0);
        let options: &[u8] = match is_syn {
            // MSS; nothing; window scale (RFC 9293, section 3.2; RFC 7323, section 2.2).
            true => &[2, 4, 0xff, 0xd7, 1, 3, 3, WINDOW_SCALE],
            false => &[],
        };
        let tcp_bytes = 20 + options.len() + payload;
        let frame = &mut self.buffer[..TCP + tcp_bytes];
        let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
        // The receiver's kernel takes the checksum for given (VIRTIO_NET_HDR_F_NEEDS_CSUM), and segments for it.
        let mss = flow.mss.to_ne_bytes();
        let (segments, size) = if payload > flow.mss.into() { (1, mss) } else { (0, [0; 2]) };
        put(0, &[1, segments]);
        put(2, &((HEADER_BYTES - ETHERNET) as u16).to_ne_bytes());
        put(4, &size);
        put(6, &((TCP - ETHERNET) as u16).to_ne_bytes());
        put(8, &16u16.to_ne_bytes());
        put(ETHERNET, &self.guest_mac);
        put(ETHERNET + 6, &GATEWAY_MAC_BYTES);
        put(ETHERNET + 12, &[8, 0]);
        put(IP, &[0x45, 0]);
        put(IP + 2, &((20 + tcp_bytes) as u16).to_be_bytes());
        put(IP + 4, &[0, 0, 0x40, 0, 64, 6, 0, 0]);
        put(IP + 12, &key.1.ip().octets());
        put(IP + 16, &flow.guest.octets());
        put(TCP, &key.1.port().to_be_bytes());
        put(TCP + 2, &key.0.to_be_bytes());
        put(TCP + 4, &flow.next.to_be_bytes());
        put(TCP + 8, &flow.expected.to_be_bytes());
        let window = if is_syn { 0xffff } else { (WINDOW_BYTES >> WINDOW_SCALE) as u16 };
        put(TCP + 12, &[((20 + options.len()) / 4) as u8 * 16, flags]);
        put(TCP + 14, &window.to_be_bytes());
        put(TCP + 20, options);
        let pseudo = [6, tcp_bytes as u16].into_iter();
        let partial = sum(&frame[IP + 12..IP + 20], pseudo);
        frame[TCP + 16..TCP + 18].copy_from_slice(&partial.to_be_bytes());
        frame[TCP + 18..TCP + 20].fill(0);
        let header = !sum(&frame[IP..IP + 20], std::iter::empty());
        frame[IP + 10..IP + 12].copy_from_slice(&header.to_be_bytes());
        let sequence = payload as u32 + u32::from(flags & (SYN | FIN) != 0);
        flow.next = flow.next.wrapping_add(sequence);
        flow.owes = false;
        self.device.write_all(&self.buffer[..TCP + tcp_bytes])?;
        Ok(())
    }
}

/// The ones' complement sum of whole words and what is added to it (RFC 1071).
fn sum(bytes: &[u8], more: impl Iterator<Item = u16>) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let mut sum: u32 = words.chain(more).map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// MSS and window scale of a SYN (RFC 9293, section 3.2).
fn syn_options(mut options: &[u8]) -> (u16, u8) {
    let (mut mss, mut window_scale) = (536, 0);
    loop {
        options = match options {
            [0, ..] => return (mss, window_scale),
            [1, rest @ ..] => rest,
            [2, 4, high, low, rest @ ..] => {
                mss = u16::from_be_bytes([*high, *low]);
                rest
            }
            [3, 3, scale, rest @ ..] => {
                window_scale = *scale;
                rest
            }
            [_, length, ..] if options.len() >= (*length).max(2).into() => {
                &options[(*length).max(2).into()..]
            }
            _ => return (mss, window_scale),
        };
    }
}

/// Writes all of it, and waits where that takes a while.
fn send_all(mut socket: &TcpStream, mut payload: &[u8]) -> Outcome {
    while !payload.is_empty() {
        match socket.write(payload) {
            Ok(bytes) => payload = &payload[bytes..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&socket, PollFlags::OUT)], None)?;
            }
            // Nobody reads it any more, which reading will tell.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
