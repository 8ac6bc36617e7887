//! A tunnel between `usernetd`, on the lab's host, and another implementation in a namespace beside it.
//!
//! ```text
//!   guest ── wg0 (usernetd) ── host, wire0 ═══ wire1, peer's namespace ── wg0 (the peer's)
//! ```
//!
//! Of everything that there is two of, the first is ours.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::daemon::{Backend, Daemon};
use crate::lab::{Lab, Namespace};
use crate::process::wait_until;
use crate::skip;
use crate::wireguard::{DEVICE, Implementation, Key, Peer};

/// IPv4 addresses in the tunnel.
pub const INSIDE4: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// IPv6 addresses in the tunnel.
pub const INSIDE6: [&str; 2] = ["fd77::1", "fd77::2"];
/// IPv4 addresses below it: those of [`Lab::join`].
pub const OUTSIDE4: [&str; 2] = ["198.51.100.1", "198.51.100.2"];
/// IPv6 addresses below it.
pub const OUTSIDE6: [&str; 2] = ["2001:db8:1::1", "2001:db8:1::2"];
/// Where both listen.
pub const LISTEN_PORT: u16 = 51_820;
/// What is left of 1500 by the longest headers.
pub const USUAL_MTU: u16 = 1420;
/// The lab's own folder for control sockets, where `wg` looks for them.
pub const API_FOLDER: &str = "/run/wireguard";
/// How long the first packet may take. An end whose packets do not arrive begins anew after 15 s and a little
/// (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT), and wireguard-go 2022 sends nothing before that when the address has gone that
/// it had sent from.
const SET_UP_MAX: Duration = Duration::from_secs(60);

/// What both ends are told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the tunnel.
    pub mtu: u16,
    /// Of what is below it.
    pub wire_mtu: u16,
    /// Whether the ends speak IPv6 with each other.
    pub is_wire_ipv6: bool,
    /// Which end knows where the other one is.
    pub knows: [bool; 2],
    /// Seconds; none: silent.
    pub keepalive: [Option<u16>; 2],
    /// Which end has a preshared key.
    pub has_preshared_key: [bool; 2],
    /// Whether `usernetd` serves [`API_FOLDER`].
    pub has_api: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mtu: USUAL_MTU,
            wire_mtu: 1500,
            is_wire_ipv6: false,
            knows: [true; 2],
            keepalive: [None; 2],
            has_preshared_key: [false; 2],
            has_api: false,
        }
    }
}

/// A tunnel whose ends are served. In the order in which they end.
#[derive(Debug)]
pub struct Tunnel<'a> {
    /// Our end.
    pub daemon: Daemon<'a>,
    /// Where our device is.
    pub guest: Namespace,
    /// The other end.
    pub peer: Peer,
    /// Of both ends.
    pub keys: [Key; 2],
    /// For those that have it.
    pub preshared_key: String,
}

impl<'a> Tunnel<'a> {
    /// Starts both ends.
    #[track_caller]
    pub fn start(lab: &'a Lab, implementation: Implementation, settings: &Settings) -> Self {
        let (guest, peer) = (lab.guest(), Peer::start(lab, implementation));
        lab.join(lab.host(), &peer.namespace, "wire", 0);
        for (end, namespace) in [lab.host(), &peer.namespace].into_iter().enumerate() {
            namespace.ip(&format!("link set wire{end} mtu {}", settings.wire_mtu));
        }
        let keys = [Key::new(lab), Key::new(lab)];
        let preshared_key = lab.host().run(&["wg", "genpsk"]).ok().trim().to_owned();
        let files = [0, 1].map(|end| file(end, settings, &keys, &preshared_key));
        let [inside, inside_peer] = [0, 1].map(addresses);
        let device = format!("Address = {}\nMTU = {}\n", inside.join(", "), settings.mtu);
        let path = write_file(lab, "own", &files[0].replacen("[Peer]", &(device + "[Peer]"), 1));
        let mut options = vec!["--wireguard", &path];
        if settings.has_api {
            lab.host().admin(&["sh", "-c", &make_folder()]);
            options.extend(["--wireguard-api", API_FOLDER]);
        }
        let daemon = Daemon::start(lab, &guest, Backend::Epoll, &options);
        let inside_peer: Vec<_> = inside_peer.iter().map(String::as_str).collect();
        peer.configure(&files[1], settings.mtu, &inside_peer, &[]);
        Self { daemon, guest, peer, keys, preshared_key }
    }

    /// The same, until packets pass.
    #[track_caller]
    pub fn start_up(lab: &'a Lab, implementation: Implementation, settings: &Settings) -> Self {
        let tunnel = Self::start(lab, implementation, settings);
        let (from, to) = match settings.knows[0] {
            true => (&tunnel.guest, INSIDE4[1]),
            false => (&tunnel.peer.namespace, INSIDE4[0]),
        };
        assert!(answers_soon(from, to), "{}\n{}", tunnel.daemon.said(), tunnel.peer.said());
        tunnel
    }

    /// What `wg show` of the peer's device says of us: a word of [wg(8)](https://man7.org/linux/man-pages/man8/wg.8.html)
    /// such as `endpoints`.
    #[track_caller]
    pub fn seen_by_peer(&self, what: &str) -> Vec<String> {
        let text = self.peer.wg(&["show", DEVICE, what]);
        text.split_whitespace().skip(1).map(str::to_owned).collect()
    }

    /// When the peer made its last handshake with us, in seconds since 1970, give or take one; none: never, or just now.
    #[track_caller]
    pub fn handshake_of_peer(&self) -> Option<u64> {
        let words = self.seen_by_peer("latest-handshakes");
        let seconds: u64 = words.first()?.parse().expect("a number");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs();
        (seconds != 0).then_some(match self.peer.implementation {
            Implementation::Go2022 | Implementation::Go2023 => seconds,
            // It answers with an age (0.7.1).
            Implementation::Boringtun => now - seconds,
        })
    }
}

/// The addresses of an end in the tunnel, with their networks.
fn addresses(end: usize) -> Vec<String> {
    let v6 = skip::has_ipv6().then(|| format!("{}/64", INSIDE6[end]));
    std::iter::once(format!("{}/24", INSIDE4[end])).chain(v6).collect()
}

/// A file of wg(8) for one end.
fn file(end: usize, settings: &Settings, keys: &[Key; 2], preshared_key: &str) -> String {
    let far = 1 - end;
    let mut text = format!(
        "[Interface]\nPrivateKey = {}\nListenPort = {LISTEN_PORT}\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}/32, {}/128\n",
        keys[end].private, keys[far].public, INSIDE4[far], INSIDE6[far],
    );
    let mut add = |line: String| writeln!(text, "{line}").expect("a string takes everything");
    match (settings.knows[end], settings.is_wire_ipv6) {
        (false, _) => {}
        (true, false) => add(format!("Endpoint = {}:{LISTEN_PORT}", OUTSIDE4[far])),
        (true, true) => add(format!("Endpoint = [{}]:{LISTEN_PORT}", OUTSIDE6[far])),
    }
    if let Some(seconds) = settings.keepalive[end] {
        add(format!("PersistentKeepalive = {seconds}"));
    }
    if settings.has_preshared_key[end] {
        add(format!("PresharedKey = {preshared_key}"));
    }
    text
}

/// Writes a file of wg-quick(8) for a device [`DEVICE`] into a folder of this name; its path.
#[track_caller]
pub fn write_file(lab: &Lab, folder: &str, text: &str) -> String {
    let folder = format!("{}/run/{folder}", lab.dir().display());
    let path = format!("{folder}/{DEVICE}.conf");
    // By the user, who has to read it.
    let script = format!("umask 077; mkdir -p {folder} && cat >{path} <<'END'\n{text}\nEND");
    lab.host().sh(&script).ok();
    path
}

/// A script that gives a namespace an empty [`API_FOLDER`].
pub(crate) fn make_folder() -> String {
    format!("mount -t tmpfs tmpfs /run && mkdir {API_FOLDER}")
}

/// Whether an address answers one ping within a second.
pub fn answers(from: &Namespace, to: &str) -> bool {
    from.run(&["ping", "-n", "-c", "1", "-W", "1", to]).is_ok()
}

/// Whether an address answers as soon as there are keys.
pub fn answers_soon(from: &Namespace, to: &str) -> bool {
    wait_until(SET_UP_MAX, || answers(from, to))
}
