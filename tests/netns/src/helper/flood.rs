//! Floods of datagrams, and who counts them.
//!
//! | command | what it does | what it prints |
//! |---|---|---|
//! | `flood to ADDRESS BYTES MS [OPTION]…` | sends from a new port | `SENT MICROSECONDS` |
//! | `flood back ADDRESS BYTES MS [OPTION]…` | waits for a datagram at ADDRESS and sends to whom it came from | the same, after `ready` |
//! | `count at ADDRESS` | counts what comes to ADDRESS | `RECEIVED LATE MICROSECONDS`, after `ready` |
//! | `count from ADDRESS` | asks a `flood back` for its flood and counts it | the same |
//!
//! `rate=N` paces the flood: datagrams per second, in bursts of a millisecond. `train=N` sends N datagrams per call as
//! one (`UDP_SEGMENT`), as QUIC servers do, and `gro` takes them so (`UDP_GRO`). Every datagram begins with its
//! number, so none is counted twice; *late* ones came behind a later one. The time is that between the first and the
//! last one.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, UdpGroSegment};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg,
    sendmmsg, setsockopt,
};

use super::Outcome;

/// Messages per call.
const BATCH: usize = 32;
/// Bytes of a message: a train of datagrams, or the largest one.
const MESSAGE_BYTES: usize = 65_536;
/// Bytes of a datagram's number.
const NUMBER_BYTES: usize = 8;
/// In place of a number: this was all.
const END: u64 = u64::MAX;
/// How often, and how far apart, the end is told: the queues on the way may be full.
const ENDS: u32 = 6;
const BETWEEN_ENDS: Duration = Duration::from_millis(10);
/// How long the first datagram may take, and every further one.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(700);
/// Bursts of a paced flood.
const BURST: Duration = Duration::from_millis(1);
/// Receive buffer asked for; the kernel clamps it.
const BUFFER_BYTES: usize = 4 << 20;

/// What is sent.
struct Flood {
    bytes: usize,
    time: Duration,
    /// Datagrams per second; none: as many as go.
    rate: Option<u64>,
    /// Datagrams per message.
    train: usize,
}

pub(super) fn flood(args: &[&str]) -> Outcome {
    let [how, address, bytes, time, options @ ..] = args else {
        return Err("to|back ADDRESS BYTES MS".into());
    };
    let address: SocketAddr = address.parse()?;
    let time = Duration::from_millis(time.parse()?);
    let mut flood = Flood { bytes: bytes.parse()?, time, rate: None, train: 1 };
    for option in options {
        match option.split_once('=') {
            Some(("rate", rate)) => flood.rate = Some(rate.parse()?),
            Some(("train", train)) => flood.train = train.parse()?,
            _ => return Err(format!("no option is called {option}").into()),
        }
    }
    let is_possible = flood.bytes >= NUMBER_BYTES && flood.bytes * flood.train <= MESSAGE_BYTES;
    if !is_possible {
        return Err(
            "a datagram has room for its number, and a train for all of its datagrams".into()
        );
    }
    let socket = match *how {
        "to" => UdpSocket::bind(super::peers::any(address, 0))?,
        "back" => UdpSocket::bind(address)?,
        _ => return Err("to or back?".into()),
    };
    if *how == "to" {
        socket.connect(address)?;
    } else {
        println!("ready");
        socket.set_read_timeout(Some(PATIENCE))?;
        let (_, from) = socket.recv_from(&mut [0; NUMBER_BYTES])?;
        socket.connect(from)?;
    }
    flood.run(&socket)
}

impl Flood {
    fn run(&self, socket: &UdpSocket) -> Outcome {
        let mut messages = vec![vec![0; self.bytes * self.train]; BATCH];
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < self.time {
            let due = match self.rate {
                None => u64::MAX,
                Some(rate) => (start.elapsed().as_micros() as u64 * rate) / 1_000_000,
            };
            if sent >= due {
                thread::sleep(BURST);
                continue;
            }
            let count = ((due - sent).div_ceil(self.train as u64)).min(BATCH as u64) as usize;
            sent += self.send(socket, &mut messages[..count], sent)?;
        }
        let took = start.elapsed();
        for _ in 0..ENDS {
            thread::sleep(BETWEEN_ENDS);
            // Who counts may be gone already.
            if socket.send(&END.to_le_bytes()).is_err() {
                break;
            }
        }
        println!("{sent} {}", took.as_micros());
        Ok(())
    }

    /// One call. What the socket has no room for is not sent, and has no number.
    fn send(
        &self,
        socket: &UdpSocket,
        messages: &mut [Vec<u8>],
        mut number: u64,
    ) -> Result<u64, Box<dyn std::error::Error>> {
        for datagram in messages.iter_mut().flat_map(|message| message.chunks_mut(self.bytes)) {
            datagram[..NUMBER_BYTES].copy_from_slice(&number.to_le_bytes());
            number += 1;
        }
        let slices: Vec<_> = messages.iter().map(|message| [IoSlice::new(message)]).collect();
        let segment = self.bytes as u16;
        let train = [ControlMessage::UdpGsoSegments(&segment)];
        let control = if self.train > 1 { &train[..] } else { &[] };
        let control_room = (self.train > 1).then(|| nix::cmsg_space!(u16));
        let mut headers =
            MultiHeaders::<SockaddrStorage>::preallocate(messages.len(), control_room);
        let addresses = vec![None; messages.len()];
        let flags = MsgFlags::empty();
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices, addresses, control, flags) {
            Ok(sent) => Ok((sent.count() * self.train) as u64),
            // Of a datagram before, and told once.
            Err(Errno::ECONNREFUSED | Errno::EAGAIN | Errno::ENOBUFS) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

pub(super) fn count(args: &[&str]) -> Outcome {
    let [how, address, options @ ..] = args else { return Err("at|from ADDRESS [gro]".into()) };
    let address: SocketAddr = address.parse()?;
    let socket = match *how {
        "at" => UdpSocket::bind(address)?,
        "from" => UdpSocket::bind(super::peers::any(address, 0))?,
        _ => return Err("at or from?".into()),
    };
    setsockopt(&socket, RcvBuf, &BUFFER_BYTES)?;
    if *options == ["gro"] {
        setsockopt(&socket, UdpGroSegment, &true)?;
    }
    if *how == "at" {
        println!("ready");
    } else {
        socket.send_to(b"go", address)?;
    }
    let counted = Counted::new(&socket)?;
    println!("{} {} {}", counted.received, counted.late, counted.took.as_micros());
    Ok(())
}

/// What came.
#[derive(Default)]
struct Counted {
    /// One bit per number.
    seen: Vec<u64>,
    received: u64,
    late: u64,
    /// One more than the highest number.
    next: u64,
    took: Duration,
}

impl Counted {
    /// Counts until the end is told, or nothing comes any more.
    fn new(socket: &UdpSocket) -> Result<Self, Box<dyn std::error::Error>> {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffers = vec![vec![0; MESSAGE_BYTES]; BATCH];
        let mut headers =
            MultiHeaders::<SockaddrStorage>::preallocate(BATCH, Some(nix::cmsg_space!(i32)));
        let mut counted = Self::default();
        let mut start = None;
        loop {
            let mut slices: Vec<_> = buffers.iter_mut().map(|b| [IoSliceMut::new(b)]).collect();
            let flags = MsgFlags::MSG_WAITFORONE;
            let got = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None);
            let messages: Vec<_> = match got {
                Ok(messages) => messages.map(|m| (m.bytes, segment(&m))).collect(),
                Err(Errno::EAGAIN) => return Ok(counted),
                Err(Errno::ECONNREFUSED | Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            if start.is_none() {
                socket.set_read_timeout(Some(SILENCE))?;
            }
            for (buffer, (bytes, segment)) in buffers.iter().zip(messages) {
                for datagram in buffer[..bytes].chunks(segment.unwrap_or(MESSAGE_BYTES)) {
                    if counted.take(datagram)? {
                        return Ok(counted);
                    }
                }
            }
            counted.took = now - *start.get_or_insert(now);
        }
    }

    /// One datagram. Whether it was the end.
    fn take(&mut self, datagram: &[u8]) -> std::io::Result<bool> {
        let number = datagram.first_chunk().ok_or(ErrorKind::InvalidData)?;
        let number = u64::from_le_bytes(*number);
        if number == END {
            return Ok(true);
        }
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1024, 0);
        }
        if self.seen[word] & bit == 0 {
            self.seen[word] |= bit;
            self.received += 1;
            self.late += u64::from(number < self.next);
        }
        self.next = self.next.max(number + 1);
        Ok(false)
    }
}

/// The size of a train's datagrams.
fn segment(message: &nix::sys::socket::RecvMsg<'_, '_, SockaddrStorage>) -> Option<usize> {
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(segment) => usize::try_from(segment).ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_datagrams_count_once_and_late_ones_are_known() {
        let mut counted = Counted::default();
        for number in [0, 1, 5, 3, 3, 5, 70_000, 4] {
            assert!(!counted.take(&u64::to_le_bytes(number)).expect("long enough"));
        }
        assert_eq!((counted.received, counted.late), (6, 2));
        assert!(counted.take(&END.to_le_bytes()).expect("long enough"));
        assert!(counted.take(b"short").is_err());
    }

    #[test]
    fn a_flood_over_loopback_arrives_in_trains_and_in_single_datagrams() {
        for (train, options) in [(1, vec!["gro"]), (20, vec!["gro"]), (20, vec![])] {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let address = socket.local_addr().expect("an address");
            setsockopt(&socket, RcvBuf, &BUFFER_BYTES).expect("an option");
            if !options.is_empty() {
                setsockopt(&socket, UdpGroSegment, &true).expect("an option");
            }
            let counter = thread::spawn(move || Counted::new(&socket).expect("counted").received);
            let rate = Some(20_000);
            let flood = Flood { bytes: 1200, time: Duration::from_millis(100), rate, train };
            let from = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            from.connect(address).expect("an address");
            flood.run(&from).expect("it is sent");
            let received = counter.join().expect("it ends");
            assert!(received > 1000, "trains of {train} {options:?}: {received}");
        }
    }
}
