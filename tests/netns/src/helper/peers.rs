//! Servers and clients that say what they saw.
//!
//! The server speaks a protocol of one line per connection:
//!
//! | the client sends | the server answers |
//! |---|---|
//! | `GET n` | `n` bytes of the pattern, then the end of the stream |
//! | `PUT` and bytes of the pattern, then the end of the stream | `n ok` or `n wrong`, then the end |
//! | `WHO` | the client's address as the server sees it |
//! | `HOLD` | nothing; it does not read either |
//! | `ECHO` and any bytes | the same bytes, as they come |
//!
//! Over UDP it sends every datagram back, except that `WHO` is answered with the sender's address.
//! The pattern has no period that a lost or doubled packet could hide in.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Outcome;

/// Stack of a thread that serves one connection.
const STACK_BYTES: usize = 128 << 10;
/// Bytes per call.
const CHUNK_BYTES: usize = 64 << 10;
/// How long a client waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn main(peer: &str, args: &[&str]) -> Outcome {
    match (peer, args) {
        ("serve", addresses) => serve(addresses),
        ("get", [address, bytes]) => get(address.parse()?, bytes.parse()?),
        ("put", [address, bytes]) => put(address.parse()?, bytes.parse()?),
        ("who", ["tcp", address]) => who_tcp(address.parse()?),
        ("who", ["udp", address]) => who_udp(address.parse()?, 0),
        ("who", ["udp", port, addresses @ ..]) => same_port(port.parse()?, addresses),
        ("together", [port, address, locals @ ..]) => {
            together(port.parse()?, address.parse()?, locals)
        }
        ("hold", [address, seconds]) => hold(address.parse()?, seconds.parse()?),
        ("slow", [address, rate, seconds]) => {
            slow(address.parse()?, rate.parse()?, seconds.parse()?)
        }
        ("parallel", [address, n, bytes]) => parallel(address.parse()?, n.parse()?, bytes.parse()?),
        ("sequence", [address, n, bytes]) => sequence(address.parse()?, n.parse()?, bytes.parse()?),
        ("echo", [address, sizes @ ..]) => echo(address.parse()?, sizes, 0),
        // Over what may lose one, and another one.
        ("echo-most", [address, sizes @ ..]) => echo(address.parse()?, sizes, 2),
        ("ask", [socket, request]) => ask(socket, request),
        ("speak", [socket, request]) => speak(socket, request),
        ("crowd", [socket, n, request]) => crowd(socket, n.parse()?, request),
        ("connect", [address]) => connect(address.parse()?),
        _ => Err("no such command".into()),
    }
}

/// Byte `at` of the pattern.
fn pattern(at: u64) -> u8 {
    let mixed = (at >> 3).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed.rotate_left(29) >> ((at & 7) * 8)) as u8
}

fn fill(bytes: &mut [u8], at: u64) {
    for (byte, at) in bytes.iter_mut().zip(at..) {
        *byte = pattern(at);
    }
}

/// Counts bytes and knows whether they were right.
pub(super) struct Checker {
    bytes: u64,
    is_right: bool,
}

impl Checker {
    pub(super) const fn new() -> Self {
        Self { bytes: 0, is_right: true }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.is_right &= bytes.iter().zip(self.bytes..).all(|(byte, at)| *byte == pattern(at));
        self.bytes += bytes.len() as u64;
    }

    fn take_all(&mut self, from: &mut impl Read) -> std::io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match from.read(&mut chunk)? {
                0 => return Ok(()),
                n => self.take(&chunk[..n]),
            }
        }
    }

    /// Whether it was all that was wanted, at the end of the stream.
    pub(super) fn at_end(&self, wanted: u64) -> std::io::Result<()> {
        let kind = match self.is_right {
            true if self.bytes == wanted => return Ok(()),
            true if self.bytes < wanted => std::io::ErrorKind::UnexpectedEof,
            _ => std::io::ErrorKind::InvalidData,
        };
        let what = format!("{} of {wanted} bytes, {}", self.bytes, self.verdict());
        Err(std::io::Error::new(kind, what))
    }

    fn verdict(&self) -> &'static str {
        if self.is_right { "ok" } else { "wrong" }
    }
}

fn send_pattern(to: &mut impl Write, bytes: u64) -> std::io::Result<()> {
    let mut chunk = vec![0; bytes.min(CHUNK_BYTES as u64) as usize];
    let mut at = 0;
    while at < bytes {
        let n = (bytes - at).min(CHUNK_BYTES as u64) as usize;
        fill(&mut chunk[..n], at);
        to.write_all(&chunk[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Serves TCP and UDP on each address until it is killed. Says `ready` when all are bound.
fn serve(addresses: &[&str]) -> Outcome {
    for address in addresses {
        let address: SocketAddr = address.parse()?;
        let (tcp, udp) = (listener(address)?, UdpSocket::bind(address)?);
        let acceptor = Acceptor { listener: tcp, idle: AtomicUsize::new(1) };
        thread::spawn(move || Arc::new(acceptor).work());
        thread::spawn(move || reflect(&udp));
    }
    println!("ready");
    loop {
        thread::park();
    }
}

/// The standard library's listener with a backlog for a thousand clients at once.
fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // listen(2) again changes the backlog.
    rustix::net::listen(&listener, 4096)?;
    Ok(listener)
}

/// Threads that wait for connections and serve one each. A new one is made only when nobody waits any more: making
/// a thread costs more than a short connection, and its cost would be in every measurement of those.
struct Acceptor {
    listener: TcpListener,
    /// Threads that wait, or are about to.
    idle: AtomicUsize,
}

impl Acceptor {
    fn work(self: Arc<Self>) {
        loop {
            let accepted = self.listener.accept();
            if self.idle.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.add_thread();
            }
            if let Err(error) = accepted.and_then(|(stream, _)| answer(&stream)) {
                eprintln!("connection: {error}");
            }
            self.idle.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn add_thread(self: &Arc<Self>) {
        self.idle.fetch_add(1, Ordering::AcqRel);
        let other = Arc::clone(self);
        let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn(|| other.work());
        if let Err(error) = spawned {
            self.idle.fetch_sub(1, Ordering::AcqRel);
            eprintln!("no thread: {error}");
        }
    }
}

fn answer(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
        ("GET", bytes) => send_pattern(&mut stream, bytes.parse().unwrap_or(0))?,
        ("PUT", _) => {
            let mut checker = Checker::new();
            checker.take_all(&mut reader)?;
            writeln!(stream, "{} {}", checker.bytes, checker.verdict())?;
        }
        ("WHO", _) => writeln!(stream, "{}", stream.peer_addr()?)?,
        ("HOLD", _) => thread::sleep(Duration::from_secs(3600)),
        ("ECHO", _) => loop {
            let n = reader.fill_buf()?.len();
            if n == 0 {
                break;
            }
            stream.write_all(&reader.buffer()[..n])?;
            reader.consume(n);
        },
        _ => writeln!(stream, "what?")?,
    }
    stream.shutdown(Shutdown::Write)
}

fn reflect(socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
        let answer = from.to_string();
        let is_question = &buffer[..n] == b"WHO";
        let bytes = if is_question { answer.as_bytes() } else { &buffer[..n] };
        if let Err(error) = socket.send_to(bytes, from) {
            eprintln!("to {from}: {error}");
        }
    }
}

fn dial(address: SocketAddr, question: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(question.as_bytes())?;
    Ok(stream)
}

fn fetch(address: SocketAddr, bytes: u64) -> std::io::Result<()> {
    let mut stream = dial(address, &format!("GET {bytes}\n"))?;
    let mut checker = Checker::new();
    checker.take_all(&mut stream)?;
    checker.at_end(bytes)
}

fn get(address: SocketAddr, bytes: u64) -> Outcome {
    Ok(fetch(address, bytes)?)
}

fn put(address: SocketAddr, bytes: u64) -> Outcome {
    let mut stream = dial(address, "PUT\n")?;
    send_pattern(&mut stream, bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.trim() != format!("{bytes} ok") {
        return Err(format!("the server says {answer:?}").into());
    }
    Ok(())
}

fn who_tcp(address: SocketAddr) -> Outcome {
    let mut stream = dial(address, "WHO\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    Ok(())
}

pub(super) fn any(like: SocketAddr, port: u16) -> SocketAddr {
    let text = if like.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let mut any: SocketAddr = text.parse().expect("an address");
    any.set_port(port);
    any
}

fn question(socket: &UdpSocket, address: SocketAddr) -> std::io::Result<String> {
    let mut buffer = [0; 200];
    for _ in 0..5 {
        socket.send_to(b"WHO", address)?;
        match socket.recv_from(&mut buffer) {
            Ok((n, from)) if from.port() == address.port() && from.ip() == address.ip() => {
                return Ok(String::from_utf8_lossy(&buffer[..n]).into_owned());
            }
            // Somebody else's answer is none.
            Ok((_, from)) => return Err(std::io::Error::other(format!("{from} has answered"))),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

fn who_udp(address: SocketAddr, port: u16) -> Outcome {
    let socket = UdpSocket::bind(any(address, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    println!("{}", question(&socket, address)?);
    Ok(())
}

/// Asks several servers from one socket: prints how each of them sees it.
fn same_port(port: u16, addresses: &[&str]) -> Outcome {
    let first: SocketAddr = addresses.first().ok_or("no address")?.parse()?;
    let socket = UdpSocket::bind(any(first, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    for address in addresses {
        println!("{}", question(&socket, address.parse()?)?);
    }
    Ok(())
}

/// Asks one server from several addresses with one port, twice: prints how it sees each of them.
fn together(port: u16, address: SocketAddr, locals: &[&str]) -> Outcome {
    let mut sockets = Vec::new();
    for local in locals {
        let socket = UdpSocket::bind((local.parse::<std::net::IpAddr>()?, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        sockets.push(socket);
    }
    for socket in sockets.iter().chain(&sockets) {
        println!("{}", question(socket, address)?);
    }
    Ok(())
}

/// Sends as much as is taken to a server that does not read, until the time is over.
fn hold(address: SocketAddr, seconds: u64) -> Outcome {
    let mut stream = dial(address, "HOLD\n")?;
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut sent = 0;
    while Instant::now() < until {
        sent += stream.write(&[7; 16_384]).unwrap_or(0);
    }
    println!("{sent}");
    Ok(())
}

/// Reads a long download at `rate` bytes per second.
fn slow(address: SocketAddr, rate: usize, seconds: u64) -> Outcome {
    let mut stream = dial(address, "GET 1000000000\n")?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut checker = Checker::new();
    let mut chunk = vec![0; rate.div_ceil(10)];
    while Instant::now() < until {
        let n = stream.read(&mut chunk)?;
        checker.take(&chunk[..n]);
        thread::sleep(Duration::from_millis(100));
    }
    if checker.is_right { Ok(()) } else { Err("wrong bytes".into()) }
}

fn parallel(address: SocketAddr, n: usize, bytes: u64) -> Outcome {
    let spawn = |_| {
        let download = move || fetch(address, bytes);
        thread::Builder::new().stack_size(STACK_BYTES).spawn(download)
    };
    let threads: Vec<_> = (0..n).map(spawn).collect::<Result<_, _>>()?;
    let mut errors = Vec::new();
    for thread in threads {
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => errors.push(error.to_string()),
            Err(_) => errors.push("panic".to_owned()),
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(format!("{} of {n} failed, first: {}", errors.len(), errors[0]).into())
}

/// Connect, ask, answer, close, `n` times. Prints microseconds for all of it.
fn sequence(address: SocketAddr, n: u64, bytes: u64) -> Outcome {
    let start = Instant::now();
    for i in 0..n {
        fetch(address, bytes).map_err(|e| format!("connection {i}: {e}"))?;
    }
    println!("{}", start.elapsed().as_micros());
    Ok(())
}

/// Sends datagrams of the given sizes and wants each of them back. As many as may be lost in all are sent again.
fn echo(address: SocketAddr, sizes: &[&str], mut may_be_lost: u32) -> Outcome {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any(address, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    };
    let mut socket = open()?;
    let mut buffer = vec![0; 65_536];
    for size in sizes {
        let mut datagram = vec![0; size.parse()?];
        fill(&mut datagram, 0);
        let (n, from) = loop {
            socket.send_to(&datagram, address).map_err(|e| format!("sending {size} bytes: {e}"))?;
            match socket.recv_from(&mut buffer) {
                Ok(answer) => break answer,
                Err(e) if e.kind() == ErrorKind::WouldBlock && may_be_lost > 0 => {
                    may_be_lost -= 1;
                    // Another one, so that a late answer is not taken for the next one's.
                    socket = open()?;
                }
                Err(e) => return Err(format!("{size} bytes there and back: {e}").into()),
            }
        };
        if buffer[..n] != datagram || from != address {
            return Err(format!("{n} bytes from {from} for {size} to {address}").into());
        }
    }
    Ok(())
}

/// Connects and prints `connected`, or the name of the error and how long it took, in milliseconds.
fn connect(address: SocketAddr) -> Outcome {
    let start = Instant::now();
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => println!("connected"),
        Err(error) => println!("{:?} {}", error.kind(), start.elapsed().as_millis()),
    }
    Ok(())
}

/// One line to a unix socket, one line of answer.
fn ask(socket: &str, request: &str) -> Outcome {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // In one write: slirp4netns answers and closes as soon as the object is whole, and a second write finds it gone.
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}

/// A request to a unix socket, ended by the end of our direction, and all that is answered.
fn speak(socket: &str, request: &str) -> Outcome {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    Ok(())
}

/// The same from `n` clients who all come before the first one speaks. Says how many got the first one's answer.
fn crowd(socket: &str, n: usize, request: &str) -> Outcome {
    let clients = (0..n).map(|_| UnixStream::connect(socket));
    let mut clients = clients.collect::<Result<Vec<_>, _>>()?;
    for client in &mut clients {
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(request.as_bytes())?;
        client.shutdown(Shutdown::Write)?;
    }
    let mut answers = Vec::with_capacity(n);
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        answers.push(answer);
    }
    let same = answers.iter().filter(|answer| !answer.is_empty() && **answer == answers[0]);
    println!("{} alike", same.count());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checker_notices_one_wrong_byte() {
        let mut bytes = vec![0; 1000];
        fill(&mut bytes, 0);
        let mut checker = Checker::new();
        checker.take(&bytes[..333]);
        checker.take(&bytes[333..]);
        assert_eq!((checker.bytes, checker.is_right), (1000, true));
        checker.take(&[!pattern(1000)]);
        assert!(!checker.is_right);
    }
}
