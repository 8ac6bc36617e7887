//! The answering side of the control socket.
//!
//! # Theory of operation
//!
//! What the bytes mean is the [`Protocol`]'s business. All connections are served by one thread, which never waits for one of them: every socket is non-blocking, and
//! [`Server::turn`] does what can be done now. A connection reads until it has a whole request, answers it, and
//! reads on when the answer is written. So a client that does not read stops only itself, and one that sends
//! without end fills at most [`Protocol::request_bytes_max`].
//!
//! Everything has a deadline: a request that was begun, an answer that is not read, a connection that says
//! nothing. A connection that ends with an error is closed in two steps: the answer is written and our
//! direction shut down; what the client still sends is thrown away until it has seen the end. Closing with unread
//! bytes would take the answer away from it (`ECONNRESET`).

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::lines::Lines;
use super::protocol::{Answer, End, Framing, Protocol, Refusal};
use super::socket::{ApiSocket, SocketError};
use crate::keeper::{self, Doorman};
use crate::owned_path::OwnedPath;
use crate::plan::{Api, ApiProtocol};
use crate::slirp4netns::api::HostForwards;

/// Connections at once. Further ones are told so and closed.
pub(crate) const CONNECTIONS_MAX: usize = 16;

/// Requests that one connection has answered in one turn; then it is the others' turn.
const REQUESTS_PER_TURN: usize = 16;

/// How long a request may take to arrive, from its first byte.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read any part of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may say nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection that is being closed may go on sending.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long nothing is accepted after that has failed.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The listening socket and its connections.
pub(crate) struct Server {
    socket: ApiSocket,
    /// Who tells us whom to answer; none: we see it ourselves.
    doorman: Option<Doorman>,
    protocol: Box<dyn Protocol>,
    connections: Vec<Connection>,
    /// No descriptors: not before this.
    accept_after: Option<Instant>,
    /// A connection has more requests than fit into one turn.
    has_more: bool,
}

impl Server {
    /// Listens. Nothing is answered before the first turn.
    pub(crate) fn start(api: &Api) -> Result<Self, SocketError> {
        let protocol: Box<dyn Protocol> = match api.protocol {
            ApiProtocol::Native => Box::new(Lines),
            ApiProtocol::Slirp4netns(guest) => Box::new(HostForwards(guest)),
        };
        Self::speaking(protocol, &api.path)
    }

    /// The same, for whatever is spoken there.
    pub(crate) fn speaking(protocol: Box<dyn Protocol>, path: &Path) -> Result<Self, SocketError> {
        Ok(Self::new(ApiSocket::bind(path)?, protocol))
    }

    fn new(socket: ApiSocket, protocol: Box<dyn Protocol>) -> Self {
        let connections = Vec::new();
        Self { socket, doorman: None, protocol, connections, accept_after: None, has_more: false }
    }

    /// The socket's name, for who removes it in our place.
    pub(crate) fn take_name(&mut self) -> Option<OwnedPath> {
        self.socket.take_name()
    }

    /// From here on somebody else is asked who is connected.
    pub(crate) fn ask(&mut self, doorman: Doorman) {
        self.doorman = Some(doorman);
    }

    /// What to wait for, and on which descriptors.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = (self.socket.listener.as_fd(), PollFlags::POLLIN);
        let accepting = (self.accept_after.is_none() && self.has_room()).then_some(listener);
        accepting.into_iter().chain(self.connections.iter().map(Connection::interest))
    }

    /// When to take a turn at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let connections = self.connections.iter().map(|c| c.deadline);
        connections.chain(self.accept_after).min()
    }

    /// Whether the next turn has something to do already.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Does what can be done now. `answer` carries out what the requests call for.
    pub(crate) fn turn(&mut self, now: Instant, answer: &mut Answer<'_>) {
        if self.accept_after.is_some_and(|at| at <= now) {
            self.accept_after = None;
        }
        if self.accept_after.is_none() {
            self.accept(now);
        }
        self.has_more = false;
        let mut speech = Speech { protocol: &mut *self.protocol, answer };
        self.connections.retain_mut(|connection| match connection.turn(now, &mut speech) {
            Ok(Progress::Waits) => true,
            Ok(Progress::HasMore) => {
                self.has_more = true;
                true
            }
            Ok(Progress::Ended) | Err(_) => false,
        });
    }

    fn accept(&mut self, now: Instant) {
        // Bounded: a flood of connections does not keep us from serving those that are there.
        for _ in 0..CONNECTIONS_MAX {
            if !self.has_room() {
                return;
            }
            match self.socket.listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!("cannot accept a control connection: {error}");
                    self.accept_after = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Whether a client may come in, if only to be told that there are too many.
    fn has_room(&self) -> bool {
        self.protocol.framing() == Framing::Lines || self.connections.len() < CONNECTIONS_MAX
    }

    fn admit(&mut self, stream: UnixStream, now: Instant) {
        let is_trusted = match &mut self.doorman {
            Some(doorman) => doorman.is_trusted(&stream),
            None => keeper::is_trusted(&stream),
        };
        let refusal = if !is_trusted {
            Some(Refusal::Forbidden)
        } else if self.connections.len() >= CONNECTIONS_MAX {
            Some(Refusal::Busy)
        } else {
            None
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut connection = Connection::new(stream, now);
        match refusal {
            None => self.connections.push(connection),
            Some(refusal) => {
                // One try and no lingering: there is no room to keep it.
                connection.respond(now, &self.protocol.refuse(refusal));
                let _ = connection.write(now);
            }
        }
    }
}

/// What it takes to answer.
struct Speech<'a, 'b> {
    protocol: &'a mut dyn Protocol,
    answer: &'a mut Answer<'b>,
}

/// What a turn came to.
enum Progress {
    /// Nothing to do before the socket is ready.
    Waits,
    /// There is more to do at once.
    HasMore,
    /// Over.
    Ended,
}

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Requests are read.
    Open,
    /// The client has ended its direction, or need not: what is left is a request, or its beginning.
    Ended,
    /// The last answer is being written.
    Closing,
    /// Our direction is shut down; what comes is thrown away.
    Lingering,
}

struct Connection {
    stream: UnixStream,
    phase: Phase,
    /// Bytes that are not answered yet.
    input: Vec<u8>,
    /// How many of them are known to hold no newline.
    scanned: usize,
    /// Answers that are not written yet.
    output: Vec<u8>,
    /// How much of them is.
    written: usize,
    /// When it is over, unless something happens.
    deadline: Instant,
}

impl Connection {
    fn new(stream: UnixStream, now: Instant) -> Self {
        Self {
            stream,
            phase: Phase::Open,
            input: Vec::new(),
            scanned: 0,
            output: Vec::new(),
            written: 0,
            deadline: now + IDLE_TIMEOUT,
        }
    }

    fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if self.output.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        (self.stream.as_fd(), flags)
    }

    fn turn(&mut self, now: Instant, speech: &mut Speech<'_, '_>) -> io::Result<Progress> {
        for _ in 0..REQUESTS_PER_TURN {
            if !self.write(now)? {
                return Ok(self.unless_late(now, speech));
            }
            match self.phase {
                Phase::Open => {
                    if !self.on_open(now, speech)? {
                        return Ok(self.unless_late(now, speech));
                    }
                }
                Phase::Ended => {
                    let rest = std::mem::take(&mut self.input);
                    self.answer(&rest, End::OfStream, now, speech);
                    self.phase = Phase::Closing;
                }
                Phase::Closing => {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.phase = Phase::Lingering;
                    self.deadline = now + LINGER_TIMEOUT;
                }
                Phase::Lingering => return self.throw_away(now, speech),
            }
        }
        Ok(Progress::HasMore)
    }

    /// What a deadline means that has passed.
    fn unless_late(&mut self, now: Instant, speech: &mut Speech<'_, '_>) -> Progress {
        if now < self.deadline {
            return Progress::Waits;
        }
        let is_request_late = self.output.is_empty() && !self.input.is_empty();
        if is_request_late && self.phase == Phase::Open {
            self.refuse(now, Refusal::Late, speech);
            return Progress::HasMore;
        }
        Progress::Ended
    }

    /// Reads, and answers one request. False: the socket has to be waited for.
    fn on_open(&mut self, now: Instant, speech: &mut Speech<'_, '_>) -> io::Result<bool> {
        let framing = speech.protocol.framing();
        if framing == Framing::Lines
            && let Some(end) = self.next_line()
        {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            self.scanned = 0;
            self.answer(&line, End::OfLine, now, speech);
            return Ok(true);
        }
        let bytes_max = speech.protocol.request_bytes_max();
        if self.input.len() >= bytes_max {
            self.refuse(now, Refusal::TooLarge, speech);
            return Ok(true);
        }
        let is_first = self.input.is_empty();
        match self.read(bytes_max) {
            Ok(0) => {
                self.phase = Phase::Ended;
                Ok(true)
            }
            Ok(_) => {
                if is_first {
                    self.deadline = now + REQUEST_TIMEOUT;
                }
                let is_short = self.input.len() < bytes_max;
                if framing == Framing::Whole && is_short && speech.protocol.is_whole(&self.input) {
                    self.phase = Phase::Ended;
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Throws away what a client still sends.
    fn throw_away(&mut self, now: Instant, speech: &mut Speech<'_, '_>) -> io::Result<Progress> {
        let mut chunk = [0; 16_384];
        for _ in 0..REQUESTS_PER_TURN {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Progress::Ended),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(self.unless_late(now, speech));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(if now < self.deadline { Progress::HasMore } else { Progress::Ended })
    }

    /// Where the first line ends.
    fn next_line(&mut self) -> Option<usize> {
        let found = self.input[self.scanned..].iter().position(|&b| b == b'\n');
        let end = found.map(|at| self.scanned + at);
        self.scanned = self.input.len();
        end
    }

    fn read(&mut self, bytes_max: usize) -> io::Result<usize> {
        let mut chunk = [0; 16_384];
        let room = chunk.len().min(bytes_max - self.input.len());
        let count = self.stream.read(&mut chunk[..room])?;
        self.input.extend_from_slice(&chunk[..count]);
        Ok(count)
    }

    /// Writes what is there. False: the socket has to be waited for.
    fn write(&mut self, now: Instant) -> io::Result<bool> {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(count) => {
                    self.written += count;
                    self.deadline = now + WRITE_TIMEOUT;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if !self.output.is_empty() {
            // The memory of a large answer is not kept.
            self.output = Vec::new();
            self.written = 0;
            let patience = if self.input.is_empty() { IDLE_TIMEOUT } else { REQUEST_TIMEOUT };
            self.deadline = now + patience;
        }
        Ok(true)
    }

    /// Answers one request, if it is one that gets an answer.
    fn answer(&mut self, request: &[u8], end: End, now: Instant, speech: &mut Speech<'_, '_>) {
        let answer = speech.protocol.answer(request, end, speech.answer);
        if !answer.is_empty() {
            self.respond(now, &answer);
        }
    }

    fn refuse(&mut self, now: Instant, refusal: Refusal, speech: &mut Speech<'_, '_>) {
        self.input = Vec::new();
        self.scanned = 0;
        self.respond(now, &speech.protocol.refuse(refusal));
        self.phase = Phase::Closing;
    }

    fn respond(&mut self, now: Instant, answer: &[u8]) {
        self.deadline = now + WRITE_TIMEOUT;
        self.output.extend_from_slice(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::io::{BufRead, BufReader};
    use std::path::PathBuf;

    /// A server and its directory; time is what the test says.
    struct Fixture {
        server: Server,
        path: PathBuf,
        now: Instant,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            Self::speaking(name, Box::new(Lines))
        }

        fn speaking(name: &str, protocol: Box<dyn Protocol>) -> Self {
            let path = std::env::temp_dir().join(format!("usernet-{name}-{}", std::process::id()));
            let server = Server::new(ApiSocket::bind(&path).unwrap(), protocol);
            Self { server, path, now: Instant::now() }
        }

        fn connect(&mut self) -> UnixStream {
            let client = UnixStream::connect(&self.path).unwrap();
            client.set_nonblocking(true).unwrap();
            self.turn();
            client
        }

        fn turn(&mut self) {
            loop {
                self.server.turn(self.now, &mut |call| Ok(Value::from(call.method())));
                if !self.server.has_more() {
                    return;
                }
            }
        }

        /// Sends all of it, the server taking turns whenever the socket is full.
        fn send(&mut self, client: &mut UnixStream, mut bytes: &[u8]) {
            while !bytes.is_empty() {
                match client.write(bytes) {
                    Ok(count) => bytes = &bytes[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.turn(),
                    Err(error) => panic!("{error}"),
                }
            }
            self.turn();
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.turn();
        }
    }

    fn answers(client: &UnixStream) -> Vec<Value> {
        let lines = BufReader::new(client).lines();
        lines.map_while(Result::ok).map(|l| serde_json::from_str(&l).unwrap()).collect()
    }

    fn code(client: &UnixStream) -> String {
        let answers = answers(client);
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(answers[0]["version"], 1);
        answers[0]["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// A read finds the end of the stream.
    fn is_closed(client: &mut UnixStream) -> bool {
        client.read(&mut [0; 1]).is_ok_and(|count| count == 0)
    }

    const STATUS: &[u8] = b"{\"version\":1,\"id\":7,\"method\":\"status\"}\n";

    #[test]
    fn requests_are_answered_in_order_with_their_ids() {
        let mut fixture = Fixture::new("order");
        let mut client = fixture.connect();
        let second =
            b"\n{\"version\":1,\"id\":\"b\",\"method\":\"flows\",\"params\":{\"limit\":1}}\n";
        fixture.send(&mut client, &[STATUS, second].concat());
        let answers = answers(&client);
        assert_eq!(answers[0], serde_json::json!({"version": 1, "id": 7, "result": "status"}));
        assert_eq!(answers[1], serde_json::json!({"version": 1, "id": "b", "result": "flows"}));
        assert!(!is_closed(&mut client));
    }

    #[test]
    fn two_hundred_requests_at_once_are_all_answered() {
        let mut fixture = Fixture::new("pipeline");
        let mut client = fixture.connect();
        fixture.send(&mut client, &STATUS.repeat(200));
        assert_eq!(answers(&client).len(), 200);
    }

    #[test]
    fn what_is_no_request_is_told_and_the_next_one_answered() {
        let mut fixture = Fixture::new("invalid");
        for (line, expected) in [
            (&b"hello\n"[..], "invalid_json"),
            (b"\xff\xfe\n", "invalid_json"),
            (b"{\"version\":1\n", "invalid_json"),
            (b"[1]\n", "invalid_request"),
            (b"{}\n", "invalid_request"),
            (b"{\"version\":1,\"id\":{},\"method\":\"status\"}\n", "invalid_request"),
            (b"{\"version\":\"1\",\"method\":\"status\"}\n", "invalid_request"),
            (b"{\"version\":2,\"method\":\"status\"}\n", "unsupported_version"),
            (b"{\"version\":1,\"method\":\"reboot\"}\n", "unknown_method"),
            (b"{\"version\":1,\"method\":\"flows\",\"params\":7}\n", "invalid_params"),
        ] {
            let mut client = fixture.connect();
            fixture.send(&mut client, line);
            assert_eq!(code(&client), expected, "{}", String::from_utf8_lossy(line));
            fixture.send(&mut client, STATUS);
            assert_eq!(answers(&client)[0]["result"], "status");
        }
    }

    #[test]
    fn nesting_without_end_is_not_json() {
        let mut fixture = Fixture::new("nested");
        let mut client = fixture.connect();
        fixture.send(&mut client, &[&b"[".repeat(500_000)[..], b"\n"].concat());
        assert_eq!(code(&client), "invalid_json");
    }

    #[test]
    fn a_request_cut_short_is_told() {
        let mut fixture = Fixture::new("cut");
        let mut client = fixture.connect();
        fixture.send(&mut client, b"{\"version\":1,\"id\":7,\"meth");
        client.shutdown(Shutdown::Write).unwrap();
        fixture.turn();
        assert_eq!(code(&client), "incomplete");
        assert!(is_closed(&mut client));
    }

    #[test]
    fn the_last_request_needs_no_newline() {
        let mut fixture = Fixture::new("last");
        let mut client = fixture.connect();
        fixture.send(&mut client, STATUS.trim_ascii());
        client.shutdown(Shutdown::Write).unwrap();
        fixture.turn();
        assert_eq!(answers(&client)[0]["result"], "status");
        assert!(is_closed(&mut client));
    }

    #[test]
    fn ten_megabytes_are_refused_and_the_refusal_can_be_read() {
        let mut fixture = Fixture::new("large");
        let mut client = fixture.connect();
        fixture.send(&mut client, &vec![b'x'; 10 << 20]);
        assert_eq!(code(&client), "too_large");
        client.shutdown(Shutdown::Write).unwrap();
        fixture.turn();
        assert!(is_closed(&mut client) && fixture.server.connections.is_empty());
    }

    #[test]
    fn a_request_that_is_not_finished_in_time_is_told() {
        let mut fixture = Fixture::new("slow");
        let mut client = fixture.connect();
        fixture.send(&mut client, b"{");
        fixture.pass(REQUEST_TIMEOUT - Duration::from_secs(1));
        fixture.send(&mut client, b"\"version\"");
        assert!(answers(&client).is_empty());
        fixture.pass(Duration::from_secs(1));
        assert_eq!(code(&client), "timeout");
        assert!(is_closed(&mut client));
        fixture.pass(LINGER_TIMEOUT);
        assert!(fixture.server.connections.is_empty());
    }

    #[test]
    fn a_client_that_does_not_read_stops_only_itself() {
        let mut fixture = Fixture::new("unread");
        let mut slow = fixture.connect();
        let mut other = fixture.connect();
        while slow.write(STATUS).is_ok() {
            fixture.turn();
        }
        fixture.send(&mut other, STATUS);
        assert_eq!(answers(&other).len(), 1);
        fixture.pass(WRITE_TIMEOUT);
        assert_eq!(fixture.server.connections.len(), 1);
    }

    #[test]
    fn connections_are_limited_and_idle_ones_end() {
        let mut fixture = Fixture::new("many");
        let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| fixture.connect()).collect();
        let one_too_many = fixture.connect();
        assert_eq!(code(&one_too_many), "busy");
        fixture.send(&mut clients[0], STATUS);
        assert_eq!(answers(&clients[0]).len(), 1);
        fixture.pass(IDLE_TIMEOUT);
        assert!(fixture.server.connections.len() <= 1);
        assert!(is_closed(&mut clients[1]));
        fixture.connect();
        assert!(!fixture.server.connections.is_empty());
    }

    /// Says how long a request was, and how it came to its end.
    struct Lengths;

    impl Protocol for Lengths {
        fn framing(&self) -> Framing {
            Framing::Whole
        }

        fn request_bytes_max(&self) -> usize {
            4_096
        }

        fn is_whole(&self, request: &[u8]) -> bool {
            request.ends_with(b".")
        }

        fn answer(&mut self, request: &[u8], end: End, _: &mut Answer<'_>) -> Vec<u8> {
            format!("{} {end:?}", request.len()).into_bytes()
        }

        fn refuse(&mut self, refusal: Refusal) -> Vec<u8> {
            format!("{refusal:?}").into_bytes()
        }
    }

    #[test]
    fn a_protocol_may_have_one_request_per_connection_ended_by_its_client() {
        let mut fixture = Fixture::speaking("whole", Box::new(Lengths));
        for (length, told) in [(0, "0 OfStream"), (4_095, "4095 OfStream"), (4_096, "TooLarge")] {
            let mut client = fixture.connect();
            fixture.send(&mut client, &b"{\n".repeat(length)[..length]);
            client.shutdown(Shutdown::Write).unwrap();
            fixture.turn();
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("answered and closed");
            assert_eq!(answer, told);
        }
        assert!(fixture.server.connections.is_empty());
    }

    #[test]
    fn such_a_request_may_be_whole_before_its_client_ends_and_clients_wait_for_room() {
        let mut fixture = Fixture::speaking("wait", Box::new(Lengths));
        let mut clients: Vec<_> = (0..3 * CONNECTIONS_MAX).map(|_| fixture.connect()).collect();
        assert_eq!(fixture.server.connections.len(), CONNECTIONS_MAX);
        for client in &mut clients {
            fixture.send(client, b"12.");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("answered, and our direction ended");
            assert_eq!(answer, "3 OfStream");
            client.shutdown(Shutdown::Both).unwrap();
            fixture.turn();
        }
        assert!(fixture.server.connections.is_empty());
    }
}
