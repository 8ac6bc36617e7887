//! Clients that measure. Each says in one line of JSON what it did:
//!
//! | field | what |
//! |---|---|
//! | `done` | round trips, or connections, that went as they should |
//! | `rate` | the same per second, without those that took longer than there was time |
//! | `errors` | how many did not, by the kind of the error; a conversation goes on after one if it can |
//! | `first_error` | the text of one of them |
//! | `times` | pairs: nanoseconds, and how many of those that are done took that long, give or take 1 % |
//!
//! Sockets and buffers are plain on purpose: what the client costs itself is in every measurement.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketType, connect, socket};
use serde_json::json;

use super::Outcome;
use super::peers::{Checker, any};

/// What takes longer than this has failed: longer than a segment is waited for that was lost twice.
const STALLED: Duration = Duration::from_secs(5);
/// Stack of a client.
const STACK_BYTES: usize = 128 << 10;
/// The largest question of a round trip.
const QUESTION_BYTES_MAX: usize = 16 << 10;

pub(super) fn main(load: &str, args: &[&str]) -> Outcome {
    let milliseconds = |text: &str| text.parse().map(Duration::from_millis);
    match (load, args) {
        ("ping-pong", [protocol, address, flows, bytes, time]) => ping_pong(
            protocol,
            address.parse()?,
            flows.parse()?,
            bytes.parse()?,
            milliseconds(time)?,
        ),
        ("storm", [address, clients, bytes, time, tries_max]) => {
            let time = milliseconds(time)?;
            storm(address.parse()?, clients.parse()?, bytes.parse()?, time, tries_max.parse()?)
        }
        _ => Err("ping-pong PROTOCOL ADDRESS FLOWS BYTES MS, storm ADDRESS CLIENTS BYTES MS TRIES"
            .into()),
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    times: BTreeMap<u64, u64>,
    /// Those that were done in time.
    in_time: u64,
    /// There was nothing left to do before the time was over.
    ran_out: bool,
    errors: BTreeMap<String, u64>,
    first_error: Option<String>,
}

impl Tally {
    /// One is done. The next one can begin now.
    fn done(&mut self, start: Instant, until: Instant) -> Instant {
        let end = Instant::now();
        self.in_time += u64::from(end <= until);
        let nanoseconds = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
        *self.times.entry(rounded(nanoseconds)).or_default() += 1;
        end
    }

    fn failed(&mut self, error: &io::Error) {
        let kind = match error.kind() {
            // A socket's own timeout.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut,
            kind => kind,
        };
        *self.errors.entry(format!("{kind:?}")).or_default() += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    fn add(&mut self, other: Self) {
        self.in_time += other.in_time;
        self.ran_out |= other.ran_out;
        for (time, n) in other.times {
            *self.times.entry(time).or_default() += n;
        }
        for (kind, n) in other.errors {
            *self.errors.entry(kind).or_default() += n;
        }
        self.first_error = self.first_error.take().or(other.first_error);
    }

    fn print(&self, took: Duration, time: Duration) {
        let done: u64 = self.times.values().sum();
        let times: Vec<_> = self.times.iter().collect();
        let seconds = if self.ran_out { took.min(time) } else { time }.as_secs_f64();
        let report = json!({
            "done": done, "rate": self.in_time as f64 / seconds, "times": times,
            "errors": self.errors, "first_error": self.first_error,
        });
        println!("{report}");
    }
}

/// Seven significant bits of it.
fn rounded(n: u64) -> u64 {
    let shift = (u64::BITS - n.leading_zeros()).saturating_sub(7);
    (n >> shift) << shift
}

/// Runs `n` clients at once, who begin their work together and end it when they are told, and prints what came of it.
fn together<C, P, W>(n: usize, time: Duration, prepare: P, work: W) -> Outcome
where
    P: Fn() -> io::Result<C> + Sync,
    W: Fn(C, Instant, &mut Tally) + Sync,
{
    let (is_ready, mut all) = (Barrier::new(n + 1), Tally::default());
    let client = || {
        let mut tally = Tally::default();
        let prepared = prepare();
        is_ready.wait();
        match prepared {
            Ok(client) => work(client, Instant::now() + time, &mut tally),
            Err(error) => tally.failed(&error),
        }
        tally
    };
    let took = thread::scope(|scope| -> Result<Duration, Box<dyn std::error::Error>> {
        let spawn = |_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, client);
        let clients: Vec<_> = (0..n).map(spawn).collect::<io::Result<_>>()?;
        is_ready.wait();
        let start = Instant::now();
        for client in clients {
            all.add(client.join().map_err(|_| "a client panicked")?);
        }
        Ok(start.elapsed())
    })?;
    all.print(took, time);
    Ok(())
}

/// Round trips of `bytes` bytes by some flows for some seconds.
fn ping_pong(
    protocol: &str,
    address: SocketAddr,
    flows: usize,
    bytes: usize,
    time: Duration,
) -> Outcome {
    if !(1..=QUESTION_BYTES_MAX).contains(&bytes) {
        return Err(format!("1 to {QUESTION_BYTES_MAX} bytes").into());
    }
    match protocol {
        "tcp" => together(
            flows,
            time,
            || echoing(address),
            |stream, until, tally| {
                if let Err(error) = tcp_round_trips(&stream, bytes, until, tally) {
                    tally.failed(&error);
                }
            },
        ),
        "udp" => together(
            flows,
            time,
            || connected(address),
            |socket, until, tally| udp_round_trips(&socket, bytes, until, tally),
        ),
        _ => Err("tcp or udp".into()),
    }
}

/// A connection whose other end sends everything back.
fn echoing(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = dial(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(b"ECHO\n")?;
    Ok(stream)
}

fn tcp_round_trips(
    mut stream: &TcpStream,
    bytes: usize,
    until: Instant,
    tally: &mut Tally,
) -> io::Result<()> {
    let (question, mut answer) = (vec![1; bytes], vec![0; bytes]);
    let mut start = Instant::now();
    while start < until {
        stream.write_all(&question)?;
        stream.read_exact(&mut answer)?;
        start = tally.done(start, until);
    }
    Ok(())
}

fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any(address, 0))?;
    socket.connect(address)?;
    // A lost one costs this once, and the next is tried.
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

fn udp_round_trips(socket: &UdpSocket, bytes: usize, until: Instant, tally: &mut Tally) {
    let (mut question, mut answer) = (vec![0_u8; bytes], vec![0; bytes]);
    let mut start = Instant::now();
    while start < until {
        // An answer that comes after its time is not taken for the next one's.
        question[0] = question[0].wrapping_add(1);
        if let Err(error) = udp_round_trip(socket, &question, &mut answer) {
            tally.failed(&error);
            start = Instant::now();
        } else {
            start = tally.done(start, until);
        }
    }
}

fn udp_round_trip(socket: &UdpSocket, question: &[u8], answer: &mut [u8]) -> io::Result<()> {
    socket.send(question)?;
    loop {
        let n = socket.recv(answer)?;
        if answer[..n] == *question {
            return Ok(());
        }
    }
}

/// Connect, ask for some bytes, read them, close: by several clients, until the time is over or, together, they
/// have tried `tries_max` times.
///
/// The server closes first, so that what waits for late segments (TIME_WAIT) is on its side. On the client's side
/// it would use up the ports that the system chooses from, after 28,232 connections in a minute.
fn storm(
    address: SocketAddr,
    clients: usize,
    bytes: u64,
    time: Duration,
    tries_max: u64,
) -> Outcome {
    let tries = AtomicU64::new(0);
    let client = |(), until, tally: &mut Tally| {
        let question = format!("GET {bytes}\n");
        let mut start = Instant::now();
        while start < until {
            if tries.fetch_add(1, Ordering::Relaxed) >= tries_max {
                tally.ran_out = true;
                return;
            }
            if let Err(error) = fetch(address, &question, bytes) {
                tally.failed(&error);
                start = Instant::now();
            } else {
                start = tally.done(start, until);
            }
        }
    };
    together(clients, time, || Ok(()), client)
}

fn fetch(address: SocketAddr, question: &str, bytes: u64) -> io::Result<()> {
    let mut stream = dial(address)?;
    stream.write_all(question.as_bytes())?;
    let mut checker = Checker::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk)? {
            0 => return checker.at_end(bytes),
            n => checker.take(&chunk[..n]),
        }
    }
}

/// A connection on which nothing waits for ever. The standard library's `connect_timeout` takes three more calls.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    for direction in [Timeout::Send, Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, direction, Some(STALLED))?;
    }
    match connect(&socket, &address) {
        // What connect(2) says when the timeout for sending is over.
        Err(Errno::INPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(socket.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_kept_to_one_percent_or_two() {
        for n in [0, 1, 127, 128, 999, 12_345, 1_000_000_007, u64::MAX] {
            let kept = rounded(n);
            assert!(kept <= n && n - kept <= n / 64, "{n} became {kept}");
        }
        assert_eq!(rounded(127), 127);
    }

    #[test]
    fn tallies_are_added() {
        let start = Instant::now();
        let (past, future) = (start, start + Duration::from_secs(60));
        let (mut a, mut b) = (Tally::default(), Tally::default());
        a.done(start, future);
        b.done(start, future);
        b.done(start, past);
        b.failed(&io::ErrorKind::WouldBlock.into());
        a.add(b);
        assert_eq!((a.in_time, a.times.values().sum::<u64>()), (2, 3));
        assert_eq!(a.errors, BTreeMap::from([("TimedOut".to_owned(), 1)]));
        assert!(a.first_error.is_some());
    }
}
