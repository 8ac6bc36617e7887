//! Changing and reading the tunnel of a daemon that runs, by the userspace API socket that wg(8) uses.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use usernet_wireguard::PublicKey;
use usernet_wireguard::uapi::{self, Changes, DevicePeer, PeerChange};
use zeroize::Zeroizing;

use super::network::Member;

/// The daemon answers at once, or something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer: a network has no more members than fit in.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// As much is read at a time.
const CHUNK_BYTES: usize = 64 << 10;

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
        self.change(admission(member))
    }

    /// Cuts a member off.
    pub(super) fn remove(&self, key: &PublicKey) -> io::Result<()> {
        self.change(PeerChange { remove: true, ..PeerChange::new(*key) })
    }

    /// What is known about all peers.
    pub(super) fn peers(&self) -> io::Result<Vec<DevicePeer>> {
        let answer = self.ask(uapi::GET)?;
        Ok(uapi::parse_get_answer(&answer).map_err(io::Error::other)?.peers)
    }

    fn change(&self, peer: PeerChange) -> io::Result<()> {
        let changes = Changes { peers: vec![peer], ..Changes::default() };
        let answer = self.ask(&uapi::format_set(&changes))?;
        uapi::parse_set_answer(&answer).map_err(io::Error::other)
    }

    /// What is answered, which may be secret.
    fn ask(&self, request: &str) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Zeroizing::new(Vec::with_capacity(CHUNK_BYTES));
        let mut chunk = Zeroizing::new([0; CHUNK_BYTES]);
        loop {
            let length = stream.read(chunk.as_mut_slice())?;
            answer.extend_from_slice(&chunk[..length]);
            if let Some(end) = uapi::message_end(&answer) {
                answer.truncate(end);
                return Ok(answer);
            }
            if length == 0 || answer.len() > ANSWER_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// A member may have its own addresses, and nothing else.
fn admission(member: &Member) -> PeerChange {
    let own = member.addresses.iter().map(|&address| (IpNet::from(address), true));
    PeerChange {
        replace_allowed_ips: true,
        allowed_ips: own.collect(),
        ..PeerChange::new(member.public_key)
    }
}

#[cfg(test)]
mod tests {
    use super::super::network::tests::member;
    use super::*;

    #[test]
    fn a_member_becomes_a_peer_with_its_own_addresses() {
        let change = admission(&member("a", "10.0.0.2", 10));
        let changes = Changes { peers: vec![change], ..Changes::default() };
        let expected = format!(
            "set=1\npublic_key={}\nreplace_allowed_ips=true\nallowed_ip=10.0.0.2/32\n\n",
            "0a".repeat(32)
        );
        assert_eq!(*uapi::format_set(&changes), expected);
    }
}
