//! The protocol of userspace implementations (wireguard.com/xplatform), by which `wg` reads and changes a tunnel: both
//! directions of it, as text. Sockets are somebody else's.
//!
//! # Theory of operation
//!
//! A request is lines of `key=value` up to an empty one; the first is `get=1` or `set=1`. A *set* goes from top to
//! bottom: the device's keys, then a `public_key` and what is said of that peer, then the next. It is read whole before
//! anything of it is done, so a request with a mistake changes nothing; `wg` expects no more than an `errno`. An answer
//! has the same form and ends with `errno=N` and an empty line.
//!
//! Keys are hexadecimal. A private or preshared key of zeros means none; a keepalive of 0 is none, too.
//! `fwmark` is taken and forgotten: see [`conf`](crate::conf).

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::key::{KEY_BYTES, PresharedKey, PrivateKey, PublicKey};

/// The longest request: many thousand peers.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// What is there.
    Get,
    /// Make it so.
    Set(Changes),
}

/// What a request changes. What is none stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Who we are; `Some(None)`: nobody, the tunnel is still.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port; 0: the kernel chooses.
    pub listen_port: Option<u16>,
    /// All peers that are there go first.
    pub replace_peers: bool,
    /// In the order in which they are done; a peer may come more than once.
    pub peers: Vec<PeerChange>,
}

/// What a request changes of a peer, which is made if it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerChange {
    /// Whom.
    pub public_key: PublicKey,
    /// It goes.
    pub remove: bool,
    /// It is not made.
    pub update_only: bool,
    /// The secret of the two; `Some(None)`: none any more.
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// How long it may be silent; `Some(None)`: as long as it likes.
    pub persistent_keepalive: Option<Option<Duration>>,
    /// The networks that it has go first.
    pub replace_allowed_ips: bool,
    /// Networks that it gets, from another peer if need be, and (false) loses, in order.
    pub allowed_ips: Vec<(IpNet, bool)>,
}

impl PeerChange {
    /// Nothing.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// A tunnel as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Who we are; none: nobody yet.
    pub private_key: Option<PrivateKey>,
    /// The UDP port.
    pub listen_port: u16,
    /// The other ends.
    pub peers: Vec<DevicePeer>,
}

/// A peer as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePeer {
    /// Who.
    pub public_key: PublicKey,
    /// The secret of the two.
    pub preshared_key: Option<PresharedKey>,
    /// Where it was last.
    pub endpoint: Option<SocketAddr>,
    /// Wall clock of the last handshake, since 1970; none: there was none.
    pub last_handshake: Option<Duration>,
    /// Bytes that it sent, as datagrams.
    pub rx_bytes: u64,
    /// Bytes that it was sent.
    pub tx_bytes: u64,
    /// How long it may be silent.
    pub persistent_keepalive: Option<Duration>,
    /// Its networks.
    pub allowed_ips: Vec<IpNet>,
}

/// What an `errno=` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Done.
    pub const OK: Self = Self(0);
    /// The tunnel has ended.
    pub const EIO: Self = Self(5);
    /// A request that is none.
    pub const EINVAL: Self = Self(22);
    /// A language that is not spoken.
    pub const EPROTO: Self = Self(71);
    /// The port is another one's.
    pub const EADDRINUSE: Self = Self(98);
}

/// What is wrong with a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UapiError {
    /// Not of this form.
    #[error("not a message of WireGuard's userspace protocol")]
    Malformed,
    /// `protocol_version` is not 1.
    #[error("another version of WireGuard's userspace protocol")]
    Version,
    /// The other end's answer.
    #[error("the tunnel refuses: {}", std::io::Error::from_raw_os_error(.0.0))]
    Refused(Errno),
}

impl UapiError {
    /// What a client is told.
    pub fn errno(self) -> Errno {
        match self {
            Self::Malformed => Errno::EINVAL,
            Self::Version => Errno::EPROTO,
            Self::Refused(errno) => errno,
        }
    }
}

/// The bytes of the first message, its empty line included; none: there is more to come.
pub fn message_end(bytes: &[u8]) -> Option<usize> {
    if bytes.first() == Some(&b'\n') {
        return Some(1);
    }
    bytes.windows(2).position(|two| two == b"\n\n").map(|at| at + 2)
}

/// Reads a request, with or without its empty line.
pub fn parse_request(bytes: &[u8]) -> Result<Request, UapiError> {
    let mut lines = pairs(bytes)?;
    match lines.next().ok_or(UapiError::Malformed)?? {
        ("get", "1") if lines.next().is_none() => Ok(Request::Get),
        ("set", "1") => parse_set(lines).map(Request::Set),
        _ => Err(UapiError::Malformed),
    }
}

type Pair<'a> = Result<(&'a str, &'a str), UapiError>;

fn pairs(bytes: &[u8]) -> Result<impl Iterator<Item = Pair<'_>>, UapiError> {
    let text = std::str::from_utf8(bytes).map_err(|_| UapiError::Malformed)?;
    let text = text.strip_suffix("\n\n").or_else(|| text.strip_suffix('\n')).unwrap_or(text);
    Ok(text.split('\n').map(|line| line.split_once('=').ok_or(UapiError::Malformed)))
}

fn parse_set<'a>(lines: impl Iterator<Item = Pair<'a>>) -> Result<Changes, UapiError> {
    let mut changes = Changes::default();
    for line in lines {
        let (key, value) = line?;
        if key == "public_key" {
            changes.peers.push(PeerChange::new(PublicKey(*bytes_of(value)?)));
            continue;
        }
        match changes.peers.last_mut() {
            None => set_device(&mut changes, key, value)?,
            Some(peer) => set_peer(peer, key, value)?,
        }
    }
    Ok(changes)
}

fn set_device(changes: &mut Changes, key: &str, value: &str) -> Result<(), UapiError> {
    match key {
        "private_key" => {
            let key = PrivateKey::from_bytes(*bytes_of(value)?);
            changes.private_key = Some(Some(key).filter(|key| !is_zero(key.as_bytes())));
        }
        "listen_port" => changes.listen_port = Some(number(value)?),
        "fwmark" => drop(number::<u32>(value)?),
        "replace_peers" => changes.replace_peers = yes(value)?,
        _ => return Err(UapiError::Malformed),
    }
    Ok(())
}

fn set_peer(peer: &mut PeerChange, key: &str, value: &str) -> Result<(), UapiError> {
    match key {
        "remove" => peer.remove = yes(value)?,
        "update_only" => peer.update_only = yes(value)?,
        "preshared_key" => {
            let key = PresharedKey::from_bytes(*bytes_of(value)?);
            peer.preshared_key = Some(Some(key).filter(|key| !is_zero(key.as_bytes())));
        }
        "endpoint" => {
            peer.endpoint = Some(value.parse().map_err(|_| UapiError::Malformed)?);
        }
        "persistent_keepalive_interval" => {
            let seconds: u16 = number(value)?;
            let interval = Duration::from_secs(seconds.into());
            peer.persistent_keepalive = Some(Some(interval).filter(|i| !i.is_zero()));
        }
        "replace_allowed_ips" => peer.replace_allowed_ips = yes(value)?,
        "allowed_ip" => {
            let (value, is_added) = match value.strip_prefix('-') {
                Some(value) => (value, false),
                None => (value, true),
            };
            let network: IpNet = value.parse().map_err(|_| UapiError::Malformed)?;
            peer.allowed_ips.push((network.trunc(), is_added));
        }
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(UapiError::Version),
        _ => return Err(UapiError::Malformed),
    }
    Ok(())
}

fn yes(value: &str) -> Result<bool, UapiError> {
    if value == "true" { Ok(true) } else { Err(UapiError::Malformed) }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, UapiError> {
    let has_digits = value.bytes().all(|b| b.is_ascii_digit());
    value.parse().ok().filter(|_| has_digits).ok_or(UapiError::Malformed)
}

/// 32 bytes as 64 hexadecimal digits.
fn bytes_of(value: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, UapiError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    if value.len() != 2 * KEY_BYTES || !value.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(UapiError::Malformed);
    }
    for (byte, digits) in bytes.iter_mut().zip(value.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| UapiError::Malformed)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| UapiError::Malformed)?;
    }
    Ok(bytes)
}

fn is_zero(key: &[u8; KEY_BYTES]) -> bool {
    key.iter().fold(0, |any, byte| any | byte) == 0
}

/// As in this protocol.
struct Hex<'a>(&'a [u8; KEY_BYTES]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A string that is not moved while it is written to, which would leave a copy of its secrets behind.
fn text_for(peers: usize, networks: usize) -> Zeroizing<String> {
    Zeroizing::new(String::with_capacity(1_024 + 640 * peers + 64 * networks))
}

const WRITTEN: &str = "a string takes what is written to it";

/// The answer to a *set*, or to a request that failed.
pub fn answer_errno(errno: Errno) -> String {
    format!("errno={}\n\n", -errno.0)
}

/// The answer to a *get*. It holds the secrets: the protocol is for those who may read them.
pub fn answer_get(device: &Device) -> Zeroizing<String> {
    let networks = device.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let mut text = text_for(device.peers.len(), networks);
    write_device(&mut text, device).expect(WRITTEN);
    text.push_str(&answer_errno(Errno::OK));
    text
}

fn write_device(out: &mut String, device: &Device) -> fmt::Result {
    if let Some(key) = &device.private_key {
        writeln!(out, "private_key={}", Hex(key.as_bytes()))?;
    }
    writeln!(out, "listen_port={}", device.listen_port)?;
    for peer in &device.peers {
        writeln!(out, "public_key={}", Hex(peer.public_key.as_bytes()))?;
        let none = [0; KEY_BYTES];
        let preshared = peer.preshared_key.as_ref().map_or(&none, PresharedKey::as_bytes);
        writeln!(out, "preshared_key={}\nprotocol_version=1", Hex(preshared))?;
        if let Some(endpoint) = peer.endpoint {
            writeln!(out, "endpoint={endpoint}")?;
        }
        let at = peer.last_handshake.unwrap_or_default();
        writeln!(out, "last_handshake_time_sec={}", at.as_secs())?;
        writeln!(out, "last_handshake_time_nsec={}", at.subsec_nanos())?;
        writeln!(out, "tx_bytes={}\nrx_bytes={}", peer.tx_bytes, peer.rx_bytes)?;
        let keepalive = peer.persistent_keepalive.unwrap_or_default().as_secs();
        writeln!(out, "persistent_keepalive_interval={keepalive}")?;
        peer.allowed_ips.iter().try_for_each(|net| writeln!(out, "allowed_ip={net}"))?;
    }
    Ok(())
}

/// The text of a *get*.
pub const GET: &str = "get=1\n\n";

/// The text of a *set*. It holds the secrets.
pub fn format_set(changes: &Changes) -> Zeroizing<String> {
    let networks = changes.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let mut text = text_for(changes.peers.len(), networks);
    write_set(&mut text, changes).expect(WRITTEN);
    text
}

fn write_set(out: &mut String, changes: &Changes) -> fmt::Result {
    let none = [0; KEY_BYTES];
    out.write_str("set=1\n")?;
    if let Some(key) = &changes.private_key {
        let key = key.as_ref().map_or(&none, PrivateKey::as_bytes);
        writeln!(out, "private_key={}", Hex(key))?;
    }
    if let Some(port) = changes.listen_port {
        writeln!(out, "listen_port={port}")?;
    }
    if changes.replace_peers {
        writeln!(out, "replace_peers=true")?;
    }
    for peer in &changes.peers {
        writeln!(out, "public_key={}", Hex(peer.public_key.as_bytes()))?;
        write_peer_change(out, peer)?;
    }
    out.write_str("\n")
}

fn write_peer_change(out: &mut String, peer: &PeerChange) -> fmt::Result {
    let said = [
        (peer.remove, "remove"),
        (peer.update_only, "update_only"),
        (peer.replace_allowed_ips, "replace_allowed_ips"),
    ];
    for (_, key) in said.iter().filter(|(is_said, _)| *is_said) {
        writeln!(out, "{key}=true")?;
    }
    if let Some(key) = &peer.preshared_key {
        let none = [0; KEY_BYTES];
        let key = key.as_ref().map_or(&none, PresharedKey::as_bytes);
        writeln!(out, "preshared_key={}", Hex(key))?;
    }
    if let Some(endpoint) = peer.endpoint {
        writeln!(out, "endpoint={endpoint}")?;
    }
    if let Some(interval) = peer.persistent_keepalive {
        let seconds = interval.unwrap_or_default().as_secs();
        writeln!(out, "persistent_keepalive_interval={seconds}")?;
    }
    for (network, is_added) in &peer.allowed_ips {
        let sign = if *is_added { "" } else { "-" };
        writeln!(out, "allowed_ip={sign}{network}")?;
    }
    Ok(())
}

/// Reads the answer to a *set*.
pub fn parse_set_answer(bytes: &[u8]) -> Result<(), UapiError> {
    let last = pairs(bytes)?.last().ok_or(UapiError::Malformed)??;
    match last {
        ("errno", "0") => Ok(()),
        ("errno", errno) => Err(UapiError::Refused(Errno(signed(errno)?))),
        _ => Err(UapiError::Malformed),
    }
}

/// The number of an error; some implementations have it negative.
fn signed(errno: &str) -> Result<i32, UapiError> {
    errno.parse::<i32>().map(i32::saturating_abs).map_err(|_| UapiError::Malformed)
}

/// Reads the answer to a *get*.
pub fn parse_get_answer(bytes: &[u8]) -> Result<Device, UapiError> {
    parse_set_answer(bytes)?;
    let mut device = Device::default();
    for line in pairs(bytes)? {
        let (key, value) = line?;
        if key == "public_key" {
            device.peers.push(DevicePeer::new(PublicKey(*bytes_of(value)?)));
            continue;
        }
        match device.peers.last_mut() {
            None => read_device(&mut device, key, value)?,
            Some(peer) => read_peer(peer, key, value)?,
        }
    }
    Ok(device)
}

/// What other implementations say beside is passed over.
fn read_device(device: &mut Device, key: &str, value: &str) -> Result<(), UapiError> {
    match key {
        "private_key" => device.private_key = Some(PrivateKey::from_bytes(*bytes_of(value)?)),
        "listen_port" => device.listen_port = number(value)?,
        _ => {}
    }
    Ok(())
}

fn read_peer(peer: &mut DevicePeer, key: &str, value: &str) -> Result<(), UapiError> {
    let at = peer.last_handshake.unwrap_or_default();
    match key {
        "preshared_key" => {
            let key = PresharedKey::from_bytes(*bytes_of(value)?);
            peer.preshared_key = Some(key).filter(|key| !is_zero(key.as_bytes()));
        }
        "endpoint" => peer.endpoint = Some(value.parse().map_err(|_| UapiError::Malformed)?),
        "last_handshake_time_sec" => {
            let at = Duration::new(number(value)?, at.subsec_nanos());
            peer.last_handshake = Some(at).filter(|at| !at.is_zero());
        }
        "last_handshake_time_nsec" => {
            let nanos = number::<u32>(value)?.min(999_999_999);
            let at = Duration::new(at.as_secs(), nanos);
            peer.last_handshake = Some(at).filter(|at| !at.is_zero());
        }
        "tx_bytes" => peer.tx_bytes = number(value)?,
        "rx_bytes" => peer.rx_bytes = number(value)?,
        "persistent_keepalive_interval" => {
            let interval = Duration::from_secs(number::<u16>(value)?.into());
            peer.persistent_keepalive = Some(interval).filter(|i| !i.is_zero());
        }
        "allowed_ip" => {
            peer.allowed_ips.push(value.parse().map_err(|_| UapiError::Malformed)?);
        }
        _ => {}
    }
    Ok(())
}

impl DevicePeer {
    /// One of whom nothing is known.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: None,
            allowed_ips: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
