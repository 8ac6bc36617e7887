//! The process in the gateway's namespace: it holds the namespace, and answers DNS there.
//!
//! It reads who is in the network from a file that the gateway replaces ([`Names`]). What it does not know it asks the
//! DNS address of the gateway's own `usernetd`, which forwards to the host's resolvers; so it needs no way out of the
//! namespace. Every forwarded query and every connection has a thread while it lasts, and there is a limit of them.
//!
//! It begins with a word to every member. The tunnel calls those whose places it knows, and so the members of a gateway
//! that was away are back at once; they would notice late that they speak to nobody.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::names::{Names, Verdict, Zone};

/// The port of DNS.
const PORT: u16 = 53;

/// The port that throws away what it gets.
const DISCARD: u16 = 9;

/// Queries and connections that are under way at a time.
const UNDER_WAY_MAX: u32 = 128;

/// How long somebody else is waited for. A resolver asks again after 5 s (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);

/// A thread needs no more than this for what it does.
const STACK_BYTES: usize = 128 << 10;

/// Where names are asked for.
#[derive(Debug)]
pub(super) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// In the network namespace of the calling process. The tunnel need not be there yet.
    pub(super) fn open() -> io::Result<Self> {
        let at = |wildcard: &str| -> io::Result<Self> {
            let udp = UdpSocket::bind((wildcard, PORT))?;
            Ok(Self { udp, tcp: TcpListener::bind((wildcard, PORT))? })
        };
        // One socket for both families, where there are both.
        at("::").or_else(|_| at("0.0.0.0"))
    }

    /// Answers until the process ends.
    pub(super) fn serve(self, names: PathBuf) -> ! {
        let dns =
            Arc::new(Dns { names: Mutex::new(Source::new(names)), under_way: AtomicU32::new(0) });
        dns.greet();
        let for_streams = Arc::clone(&dns);
        let tcp = self.tcp;
        spawn(move || for_streams.serve_streams(&tcp));
        dns.serve_datagrams(&Arc::new(self.udp))
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> bool {
    thread::Builder::new().stack_size(STACK_BYTES).spawn(body).is_ok()
}

struct Dns {
    names: Mutex<Source>,
    under_way: AtomicU32,
}

impl Dns {
    /// Sends every member a datagram with nothing in it, to the port that throws it away (RFC 863).
    fn greet(&self) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.refresh();
        for any in ["0.0.0.0", "::"] {
            let Ok(socket) = UdpSocket::bind((any, 0)) else { continue };
            for address in names.zone.addresses() {
                // Of the other family: refused here.
                socket.send_to(&[], (address, DISCARD)).ok();
            }
        }
    }

    fn serve_datagrams(self: Arc<Self>, socket: &Arc<UdpSocket>) -> ! {
        let mut bytes = [0; 4_096];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
            let query = &bytes[..length];
            match self.verdict(query) {
                (Verdict::Answer(answer), _) => drop(socket.send_to(&answer, from)),
                (Verdict::Forward, Some(upstream)) => {
                    let (query, socket) = (query.to_vec(), Arc::clone(socket));
                    self.beside(move || {
                        if let Ok(answer) = ask_by_datagram(upstream, &query) {
                            drop(socket.send_to(&answer, from));
                        }
                    });
                }
                (Verdict::Forward | Verdict::Ignore, _) => {}
            }
        }
    }

    fn serve_streams(self: Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            let dns = Arc::clone(&self);
            self.beside(move || drop(dns.serve_stream(stream)));
        }
    }

    /// One query after another, as long as they come.
    fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        loop {
            let query = read_message(&mut stream)?;
            let answer = match self.verdict(&query) {
                (Verdict::Answer(answer), _) => answer,
                (Verdict::Forward, Some(upstream)) => ask_by_stream(upstream, &query)?,
                (Verdict::Forward | Verdict::Ignore, _) => return Ok(()),
            };
            write_message(&mut stream, &answer)?;
        }
    }

    fn verdict(&self, query: &[u8]) -> (Verdict, Option<SocketAddr>) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.refresh();
        (names.zone.on_query(query), names.upstream)
    }

    /// On a thread of its own; too many: not at all, and the client asks again.
    fn beside(self: &Arc<Self>, body: impl FnOnce() + Send + 'static) {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= UNDER_WAY_MAX {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let dns = Arc::clone(self);
        let is_started = spawn(move || {
            body();
            dns.under_way.fetch_sub(1, Ordering::Relaxed);
        });
        if !is_started {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The file, and what was in it when it was read.
struct Source {
    path: PathBuf,
    /// Which file it was: it is replaced, never changed.
    seen: Option<(u64, i64, i64)>,
    zone: Zone,
    upstream: Option<SocketAddr>,
}

impl Source {
    fn new(path: PathBuf) -> Self {
        let nothing = Names {
            network: String::new(),
            ranges: Vec::new(),
            members: Vec::new(),
            upstream: None,
        };
        Self { path, seen: None, zone: Zone::new(&nothing), upstream: None }
    }

    fn refresh(&mut self) {
        let Ok(meta) = fs::metadata(&self.path) else { return };
        let found = Some((meta.ino(), meta.mtime(), meta.mtime_nsec()));
        if self.seen == found {
            return;
        }
        let names = File::open(&self.path).ok().and_then(|file| serde_json::from_reader(file).ok());
        if let Some(names) = names {
            self.zone = Zone::new(&names);
            self.upstream = names.upstream;
            self.seen = found;
        }
    }
}

fn ask_by_datagram(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = if upstream.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((any, 0))?;
    // From nobody else: the port is ours alone, and so is this query.
    socket.connect(upstream)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(query)?;
    let mut answer = vec![0; 4_096];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn ask_by_stream(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&upstream, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write_message(&mut stream, query)?;
    read_message(&mut stream)
}

/// Two bytes of length, and the message (RFC 1035, section 4.2.2).
fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}
