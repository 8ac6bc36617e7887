//! Connections by the thousand, in one thread at each end.
//!
//! | command | what it does |
//! |---|---|
//! | `many serve ADDRESS` | sends back what it gets on every connection; says `ready` |
//! | `many hold ADDRESS N` | opens N connections and says `ready` when each has had an answer; then keeps them |
//! | `many busy ADDRESS N BYTES` | the same, and asks for so many bytes again and again on each of them |

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Outcome;

/// Bytes per call.
const CHUNK_BYTES: usize = 64 << 10;
/// Events per call.
const EVENTS: usize = 256;
/// How long the first answer on a connection may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Stands for the listener, beside the numbers of connections.
const LISTENER: u64 = u64::MAX;

pub(super) fn main(args: &[&str]) -> Outcome {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    match args {
        ["serve", address] => serve(address.parse()?),
        ["hold", address, n] => {
            let _streams = hold(address.parse()?, n.parse()?)?;
            loop {
                std::thread::park();
            }
        }
        ["busy", address, n, bytes] => busy(hold(address.parse()?, n.parse()?)?, bytes.parse()?),
        _ => Err("serve|hold|busy ADDRESS".into()),
    }
}

/// What can be read from: numbers of connections, or [`LISTENER`].
struct Waiting {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Waiting {
    fn new() -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); EVENTS] })
    }

    fn add(&self, socket: impl AsFd, number: u64) -> nix::Result<()> {
        self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, number))
    }

    fn wait(&mut self) -> nix::Result<Vec<u64>> {
        let n = self.epoll.wait(&mut self.events, EpollTimeout::NONE)?;
        Ok(self.events[..n].iter().map(EpollEvent::data).collect())
    }
}

fn serve(address: SocketAddr) -> Outcome {
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, 4096)?;
    println!("ready");
    let mut waiting = Waiting::new()?;
    waiting.add(&listener, LISTENER)?;
    let mut streams = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        for number in waiting.wait()? {
            if number == LISTENER {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                waiting.add(&stream, streams.len() as u64)?;
                streams.push(Some(stream));
                continue;
            }
            let Some(slot) = streams.get_mut(number as usize) else { continue };
            let Some(stream) = slot else { continue };
            let n = stream.read(&mut chunk).unwrap_or(0);
            if n == 0 || stream.write_all(&chunk[..n]).is_err() {
                *slot = None;
            }
        }
    }
}

fn hold(address: SocketAddr, n: usize) -> Result<Vec<TcpStream>, Box<dyn std::error::Error>> {
    let open = || -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&[1])?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    };
    let number = |number| move |error| format!("connection {number} of {n}: {error}");
    let streams = (0..n).map(|at| open().map_err(number(at)));
    let streams = streams.collect::<Result<_, _>>()?;
    println!("ready");
    Ok(streams)
}

/// Asks again on each connection as soon as all of the last answer has come.
fn busy(mut streams: Vec<TcpStream>, bytes: usize) -> Outcome {
    let (question, mut chunk) = (vec![7; bytes], vec![0; CHUNK_BYTES]);
    let mut missing = vec![bytes; streams.len()];
    let mut waiting = Waiting::new()?;
    for (number, stream) in streams.iter_mut().enumerate() {
        waiting.add(&*stream, number as u64)?;
        stream.write_all(&question)?;
    }
    loop {
        for number in waiting.wait()? {
            let at = number as usize;
            let n = streams[at].read(&mut chunk)?;
            if n == 0 {
                return Err("the server has ended a connection".into());
            }
            missing[at] = missing[at].checked_sub(n).ok_or("more bytes than were asked for")?;
            if missing[at] == 0 {
                missing[at] = bytes;
                streams[at].write_all(&question)?;
            }
        }
    }
}
