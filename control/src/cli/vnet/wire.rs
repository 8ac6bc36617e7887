//! Changing and reading the tunnel of a daemon that runs, by the userspace API socket that wg(8) uses.
//!
//! Requests and answers are lines of `key=value`, ended by an empty one; keys are hexadecimal
//! (<https://www.wireguard.com/xplatform/>).

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use usernet_wireguard::PublicKey;

use super::network::Member;

/// The daemon answers at once, or something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer: a network has no more members than fit in.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// What is known about a peer of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Live {
    /// Who.
    pub(super) key: PublicKey,
    /// Where it was heard from, or is expected.
    pub(super) endpoint: Option<SocketAddr>,
    /// When its keys were agreed on, in seconds since 1970; none: never.
    pub(super) handshake_unix: Option<u64>,
    /// Bytes received from it.
    pub(super) rx_bytes: u64,
    /// Bytes sent to it.
    pub(super) tx_bytes: u64,
}

/// A tunnel of a daemon that runs.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    socket: PathBuf,
}

impl Wire {
    /// The tunnel `name` of the daemon whose sockets are in `dir`.
    pub(super) fn new(dir: &Path, name: &str) -> Self {
        Self { socket: dir.join(format!("{name}.sock")) }
    }

    /// Lets a member in.
    pub(super) fn add(&self, member: &Member) -> io::Result<()> {
        self.ask(&add_request(member)).map(drop)
    }

    /// Cuts a member off.
    pub(super) fn remove(&self, key: &PublicKey) -> io::Result<()> {
        self.ask(&format!("set=1\npublic_key={}\nremove=true\n\n", hex(key))).map(drop)
    }

    /// What is known about all peers.
    pub(super) fn peers(&self) -> io::Result<Vec<Live>> {
        Ok(parse_peers(&self.ask("get=1\n\n")?))
    }

    fn ask(&self, request: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        let mut lines = BufReader::new(stream.take(ANSWER_BYTES_MAX));
        while lines.read_line(&mut answer)? > 1 {}
        let errno = answer.lines().find_map(|line| line.strip_prefix("errno="));
        match errno.map(str::parse::<i32>) {
            Some(Ok(0)) => Ok(answer),
            Some(Ok(errno)) => Err(io::Error::from_raw_os_error(errno.abs())),
            Some(Err(_)) | None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn add_request(member: &Member) -> String {
    let mut request =
        format!("set=1\npublic_key={}\nreplace_allowed_ips=true\n", hex(&member.public_key));
    for address in &member.addresses {
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        writeln!(request, "allowed_ip={address}/{bits}").expect("writing to a string works");
    }
    request.push('\n');
    request
}

fn hex(key: &PublicKey) -> String {
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<PublicKey> {
    let digits = text.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(PublicKey(bytes))
}

fn parse_peers(answer: &str) -> Vec<Live> {
    let mut peers: Vec<Live> = Vec::new();
    for (key, value) in answer.lines().filter_map(|line| line.split_once('=')) {
        if key == "public_key" {
            peers.extend(from_hex(value).map(|key| Live {
                key,
                endpoint: None,
                handshake_unix: None,
                rx_bytes: 0,
                tx_bytes: 0,
            }));
            continue;
        }
        let Some(peer) = peers.last_mut() else { continue };
        match key {
            "endpoint" => peer.endpoint = value.parse().ok(),
            "last_handshake_time_sec" => {
                peer.handshake_unix = value.parse().ok().filter(|&seconds| seconds > 0);
            }
            "rx_bytes" => peer.rx_bytes = value.parse().unwrap_or(0),
            "tx_bytes" => peer.tx_bytes = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    peers
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::member;
    use super::*;

    #[test]
    fn a_member_becomes_a_peer_with_its_own_addresses() {
        let expected = format!(
            "set=1\npublic_key={}\nreplace_allowed_ips=true\nallowed_ip=10.0.0.2/32\n\n",
            "0a".repeat(32)
        );
        assert_eq!(add_request(&member("a", "10.0.0.2", 10)), expected);
    }

    #[test]
    fn what_is_known_about_peers_is_read() {
        let answer = format!(
            "private_key={0}\nlisten_port=51820\npublic_key={1}\nendpoint=192.0.2.7:4000\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\nrx_bytes=10\n\
             tx_bytes=20\nallowed_ip=10.0.0.2/32\npublic_key={2}\nlast_handshake_time_sec=0\n\
             errno=0\n\n",
            "01".repeat(32),
            "0a".repeat(32),
            "0b".repeat(32)
        );
        let peers = parse_peers(&answer);
        let expected = Live {
            key: PublicKey([10; 32]),
            endpoint: Some("192.0.2.7:4000".parse().unwrap()),
            handshake_unix: Some(1_700_000_000),
            rx_bytes: 10,
            tx_bytes: 20,
        };
        assert_eq!(peers[0], expected);
        assert_eq!((peers.len(), peers[1].handshake_unix, peers[1].endpoint), (2, None, None));
    }
}
