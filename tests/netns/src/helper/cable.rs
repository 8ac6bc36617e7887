//! A cable between two TAPs that loses, delays, reorders and slows frames down: this stands in for netem, which
//! not every kernel has.
//!
//! Runs with the host's capabilities, makes a TAP in each of two network namespaces and copies frames one by one.
//! Each direction has a seeded generator of its own: what becomes of its n-th frame does not depend on the other
//! direction, nor on time, so that a run can be repeated as far as the kernels at both ends repeat theirs.

use std::collections::BinaryHeap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};
use nix::sys::time::TimeSpec;

use super::Outcome;

/// Frames under way in one direction, at most, unless it is said: the line itself and the queue in front of it.
const QUEUE_FRAMES: u64 = 1000;
/// The largest frame: the TAPs have no offload.
const FRAME_BYTES_MAX: usize = 65_536;

/// What is wrong with the cable.
#[derive(Clone, Copy, Debug)]
struct Faults {
    /// Frames lost, in ten thousand.
    loss: u64,
    /// Frames that overtake, in ten thousand: they are not delayed.
    reorder: u64,
    /// Frames delivered twice, in ten thousand.
    duplicate: u64,
    /// Time under way.
    delay: Duration,
    /// Bits per second; 0: no limit.
    rate: u64,
    /// Frames under way in one direction, at most.
    queue: u64,
    /// Of the generators.
    seed: u64,
}

/// `cable PID NAME PID NAME [loss=N] [reorder=N] [duplicate=N] [delay-ms=N] [delay-us=N] [rate=N] [queue=N] [seed=N]`.
pub(super) fn main(args: &[&str]) -> Outcome {
    let [pid_a, name_a, pid_b, name_b, faults @ ..] = args else {
        return Err("PID NAME PID NAME, then what is wrong with the cable".into());
    };
    let faults = parse(faults)?;
    let ends = [tap(pid_a, name_a)?, tap(pid_b, name_b)?];
    println!("ready");
    Cable::new(ends, faults).run()
}

/// `with-tap PID NAME FD -- COMMAND`: becomes a command that has a TAP of another namespace open under this number.
pub(super) fn with_tap(pid: &str, name: &str, fd: &str, command: &[&str]) -> Outcome {
    let device = tap_from_here(pid, name, Offload::None)?;
    // SAFETY: no pointers; what has this number is nobody's in a program that is about to become another one.
    if unsafe { libc::dup2(device.as_raw_fd(), fd.parse()?) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let [program, args @ ..] = command else { return Err("no command".into()) };
    Err(format!("{program}: {}", Command::new(program).args(args).exec()).into())
}

/// `plug PID NAME SOCKET`: a TAP whose frames go by a `SOCK_SEQPACKET` socket, one per message, as User Mode Linux's
/// transport `bess` has it.
pub(super) fn plug(pid: &str, name: &str, path: &str) -> Outcome {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let mut device = tap(pid, name)?;
    println!("ready");
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        let mut ends =
            [device.as_fd(), socket.as_fd()].map(|end| PollFd::new(end, PollFlags::POLLIN));
        poll(&mut ends, PollTimeout::NONE)?;
        let [from_tap, from_socket] = ends.map(|end| end.any().unwrap_or(true));
        if from_tap && let Ok(n) = device.read(&mut frame) {
            send(socket.as_raw_fd(), &frame[..n], MsgFlags::empty())?;
        }
        if from_socket {
            match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty())? {
                0 => return Ok(()),
                // A TAP that is down or full drops it, as a cable would.
                n => drop(device.write(&frame[..n])),
            }
        }
    }
}

fn parse(words: &[&str]) -> Result<Faults, Box<dyn std::error::Error>> {
    let (delay, queue) = (Duration::ZERO, QUEUE_FRAMES);
    let mut faults = Faults { loss: 0, reorder: 0, duplicate: 0, delay, rate: 0, queue, seed: 1 };
    for word in words {
        let (name, value) = word.split_once('=').ok_or("NAME=VALUE")?;
        let value: u64 = value.parse()?;
        match name {
            "loss" => faults.loss = value,
            "reorder" => faults.reorder = value,
            "duplicate" => faults.duplicate = value,
            "delay-ms" => faults.delay = Duration::from_millis(value),
            "delay-us" => faults.delay = Duration::from_micros(value),
            "queue" => faults.queue = value,
            "rate" => faults.rate = value,
            "seed" => faults.seed = value.max(1),
            _ => return Err(format!("no fault is called {name}").into()),
        }
    }
    Ok(faults)
}

/// What the two ends of a TAP leave to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Offload {
    None,
    /// Checksums, and segmentation of TCP over IPv4: a `struct virtio_net_hdr` is in front of each frame.
    Tcp4,
}

/// Makes a TAP in the network namespace of a process, and stays in its own.
pub(super) fn tap_from_here(
    pid: &str,
    name: &str,
    offload: Offload,
) -> Result<File, Box<dyn std::error::Error>> {
    let here = File::open("/proc/self/ns/net")?;
    let device = tap_with(pid, name, offload)?;
    setns(here.as_fd(), CloneFlags::CLONE_NEWNET)?;
    Ok(device)
}

/// Makes a TAP in the network namespace of a process, and stays there.
fn tap(pid: &str, name: &str) -> Result<File, Box<dyn std::error::Error>> {
    tap_with(pid, name, Offload::None)
}

fn tap_with(pid: &str, name: &str, offload: Offload) -> Result<File, Box<dyn std::error::Error>> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    let header = if offload == Offload::Tcp4 { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    if offload == Offload::Tcp4 {
        let flags = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4);
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD as _, flags) };
        if result < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
    }
    Ok(device)
}

/// A frame under way. Ordered by its time of arrival, earliest last, as [`BinaryHeap`] wants it.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    arrives: Instant,
    /// Breaks ties: frames with the same time stay in order.
    number: u64,
    bytes: Vec<u8>,
}

impl Ord for Frame {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.arrives, other.number).cmp(&(self.arrives, self.number))
    }
}

impl PartialOrd for Frame {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// One direction.
struct Direction {
    under_way: BinaryHeap<Frame>,
    /// When the line has sent what was given to it.
    is_free_at: Instant,
    /// State of the generator.
    random: u64,
}

impl Direction {
    /// A number below 10,000 (xorshift64*).
    fn chance(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % 10_000
    }
}

struct Cable {
    ends: [File; 2],
    /// Towards the end of the same index.
    directions: [Direction; 2],
    faults: Faults,
    frames: u64,
    buffer: Vec<u8>,
}

impl Cable {
    fn new(ends: [File; 2], faults: Faults) -> Self {
        let direction = |seed| {
            let (under_way, is_free_at) = (BinaryHeap::new(), Instant::now());
            Direction { under_way, is_free_at, random: seed }
        };
        // Any number but zero; the factor keeps the two far apart.
        let other = faults.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let directions = [direction(faults.seed), direction(other)];
        Self { ends, directions, faults, frames: 0, buffer: vec![0; FRAME_BYTES_MAX] }
    }

    fn run(mut self) -> Outcome {
        loop {
            self.wait()?;
            for from in 0..2 {
                self.take(from);
            }
            for to in 0..2 {
                self.deliver(to);
            }
        }
    }

    fn wait(&self) -> nix::Result<()> {
        let next =
            self.directions.iter().filter_map(|d| d.under_way.peek()).map(|f| f.arrives).min();
        let left = next.map(|at| at.saturating_duration_since(Instant::now()));
        let mut ends = [0, 1].map(|end| PollFd::new(self.ends[end].as_fd(), PollFlags::POLLIN));
        ppoll(&mut ends, left.map(TimeSpec::from_duration), None).map(|_| ())
    }

    /// Takes what the end `from` has sent.
    fn take(&mut self, from: usize) {
        let to = &mut self.directions[1 - from];
        while let Ok(n) = self.ends[from].read(&mut self.buffer) {
            let is_lost = to.chance() < self.faults.loss;
            let overtakes = to.chance() < self.faults.reorder;
            let is_doubled = to.chance() < self.faults.duplicate;
            if is_lost || to.under_way.len() as u64 >= self.faults.queue {
                continue;
            }
            let now = Instant::now();
            let bits = n as u64 * 8 * 1_000_000_000;
            let takes = bits.checked_div(self.faults.rate).map(Duration::from_nanos);
            to.is_free_at = takes.map_or(now, |takes| to.is_free_at.max(now) + takes);
            let arrives = if overtakes { now } else { to.is_free_at + self.faults.delay };
            for _ in 0..=u64::from(is_doubled) {
                self.frames += 1;
                let bytes = self.buffer[..n].to_vec();
                to.under_way.push(Frame { arrives, number: self.frames, bytes });
            }
        }
    }

    fn deliver(&mut self, to: usize) {
        let now = Instant::now();
        let under_way = &mut self.directions[to].under_way;
        while under_way.peek().is_some_and(|frame| frame.arrives <= now) {
            let Some(frame) = under_way.pop() else { return };
            // A TAP that is down or full drops it, as a cable would.
            let _: std::io::Result<usize> = self.ends[to].write(&frame.bytes);
        }
    }
}
