//! What `usernet` and a gateway say to each other: a line of JSON, and a line of JSON back, over a unix socket in the
//! runtime directory that the same user alone can reach. Each connection carries one request.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use usernet_wireguard::PublicKey;

use super::keys;
use super::network::{Member, Origin};
use super::terms::Terms;

/// Whoever does not speak for so long is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest line. What is known about all members fits in.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// What a gateway is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// What is known about the members.
    Show,
    /// Let these in: all of them or none.
    Admit(Vec<Candidate>),
    /// Cut this member off, whatever it is.
    Remove(String),
    /// End.
    Stop,
}

/// Somebody who wants to be a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Candidate {
    /// Its name.
    pub(super) name: String,
    /// Whether another name will do if that one is taken.
    pub(super) any_name: bool,
    /// The addresses it wants; those it says nothing about are chosen.
    pub(super) addresses: Vec<IpAddr>,
    /// Who it is.
    #[serde(with = "keys::public")]
    pub(super) public_key: PublicKey,
    /// How it comes to be a member.
    pub(super) origin: Origin,
}

/// What a gateway answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Response {
    /// Done, and that is all.
    Done,
    /// They are members now, with these names and addresses.
    Admitted {
        /// About the network; the endpoint is that for this host.
        terms: Terms,
        /// In the order in which they were asked for.
        members: Vec<Member>,
    },
    /// What is known about the members.
    Members(Vec<Seen>),
    /// It cannot be done.
    Refused(String),
}

/// What is known about a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Who.
    pub(super) member: Member,
    /// Where it was heard from.
    pub(super) endpoint: Option<SocketAddr>,
    /// When its keys were agreed on, in seconds since 1970; none: never since the gateway was started.
    pub(super) handshake_unix: Option<u64>,
    /// Bytes that came from it.
    pub(super) from_member: u64,
    /// Bytes that went to it.
    pub(super) to_member: u64,
}

/// Asks a gateway.
pub(super) fn ask(socket: &Path, request: &Request) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    prepare(&stream)?;
    send(&mut stream, request)?;
    receive(&stream)
}

/// Neither end waits for the other for ever.
pub(super) fn prepare(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

pub(super) fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

pub(super) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<T> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}
