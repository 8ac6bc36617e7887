//! Other implementations of WireGuard, as the other end of our tunnels.
//!
//! A [`Peer`] is a namespace of its own with its own `/run`, a device `wg0` that one of the programs serves, and `wg` and
//! `ip` to configure it. Its underlay is whatever the test joins it to: [`Lab::join`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab::{Lab, Namespace, search_path};
use crate::process::{Done, Running, wait_until};
use crate::{skip, trixie, tunnel};

/// The device of a peer.
pub const DEVICE: &str = "wg0";
/// How long a program may take to serve its device.
const READY_MAX: Duration = Duration::from_secs(20);

/// Who made the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// wireguard-go of Debian 12: one datagram per system call.
    Go2022,
    /// wireguard-go of Debian 13: trains of datagrams, and super-frames.
    Go2023,
    /// Cloudflare's boringtun-cli.
    Boringtun,
}

impl Implementation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Go2022, Self::Go2023, Self::Boringtun];

    /// In tables and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Go2022 => "wireguard-go",
            Self::Go2023 => "wireguard-go-2023",
            Self::Boringtun => "boringtun-cli",
        }
    }

    /// Where it is, if it is there.
    pub fn program(self) -> Option<PathBuf> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
        let in_path = |name: &str| {
            let folders = search_path();
            folders.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
        };
        match self {
            Self::Go2022 => in_path("wireguard-go"),
            Self::Go2023 => Some(trixie::root()?.join("usr/bin/wireguard-go")),
            Self::Boringtun => Some(tools.join("boringtun-cli"))
                .filter(|path| path.exists())
                .or_else(|| in_path("boringtun-cli")),
        }
        .filter(|path| path.exists())
    }

    /// Why it cannot be a peer here, if so.
    pub fn missing(self) -> Option<String> {
        let how = match self {
            Self::Go2022 => "wireguard-go is not installed",
            Self::Go2023 => "no wireguard-go of Debian 13: see tests/dropin/trixie.sh",
            Self::Boringtun => "no boringtun-cli in target/tools: see ./test",
        };
        let is_there = self.program().is_some();
        skip::missing(&["ip", "wg"]).or_else(|| (!is_there).then(|| how.to_owned()))
    }

    /// Its command line, in the foreground, for a program at this path.
    pub fn command(self, program: &str) -> Vec<&str> {
        match self {
            Self::Go2022 | Self::Go2023 => vec![program, "--foreground", DEVICE],
            // It would become nobody, who does not exist in the namespace.
            Self::Boringtun => vec![program, "--foreground", "--disable-drop-privileges", DEVICE],
        }
    }
}

/// A private key and what belongs to it. Known to everybody who reads this: for tests only.
#[derive(Clone, Debug)]
pub struct Key {
    /// As in a file.
    pub private: String,
    /// As in a file.
    pub public: String,
}

impl Key {
    /// A new one.
    #[track_caller]
    pub fn new(lab: &Lab) -> Self {
        let text =
            lab.host().sh("umask 077; key=$(wg genkey); echo $key; echo $key | wg pubkey").ok();
        let (private, public) = text.trim().split_once('\n').expect("two keys");
        Self { private: private.to_owned(), public: public.to_owned() }
    }
}

/// One end of tunnels, served by somebody else's program. Ends when dropped.
#[derive(Debug)]
pub struct Peer {
    // Before the namespace that it is in.
    program: Running,
    /// Where it runs, and where its device is.
    pub namespace: Namespace,
    /// Whose program it is.
    pub implementation: Implementation,
}

impl Peer {
    /// Starts it in a new namespace. It has no key, no address and no way to anybody yet.
    #[track_caller]
    pub fn start(lab: &Lab, implementation: Implementation) -> Self {
        let from = implementation.program().expect("a test says what it needs");
        Self::start_program(lab, implementation, &from)
    }

    /// The same with a program of your own.
    #[track_caller]
    pub fn start_program(lab: &Lab, implementation: Implementation, from: &Path) -> Self {
        let namespace = lab.guest();
        namespace.admin(&["sh", "-c", &tunnel::make_folder()]);
        let program = copy(lab, implementation, from);
        // wireguard-go takes the socket's folder from its build, boringtun from its source: /var/run both.
        let command = implementation.command(&program);
        let mut running = namespace.spawn(&[&["env", "LOG_LEVEL=error"], &command[..]].concat());
        let socket = format!("{}/{DEVICE}.sock", tunnel::API_FOLDER);
        let is_ready = wait_until(READY_MAX, || {
            namespace.run(&["test", "-S", &socket]).is_ok() || !running.is_running()
        });
        assert!(is_ready && running.is_running(), "{from:?}: {}{}", running.out(), running.err());
        Self { program: running, namespace, implementation }
    }

    /// Runs `wg` on it; it succeeds.
    #[track_caller]
    pub fn wg(&self, args: &[&str]) -> String {
        self.namespace.run(&[&["wg"], args].concat()).ok()
    }

    /// Replaces its configuration by a file of wg(8), and gives its device addresses and routes.
    #[track_caller]
    pub fn configure(&self, file: &str, mtu: u16, addresses: &[&str], routes: &[&str]) {
        let script = format!("wg setconf {DEVICE} /dev/stdin <<'END'\n{file}\nEND");
        self.namespace.sh(&script).ok();
        let mut lines = format!("link set {DEVICE} mtu {mtu} up\n");
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lines += &format!("addr add {address} dev {DEVICE}{nodad}\n");
        }
        for route in routes {
            lines += &format!("route add {route} dev {DEVICE}\n");
        }
        self.namespace.ip(&lines);
    }

    /// A program that it runs in its namespace.
    pub fn run(&self, args: &[&str]) -> Done {
        self.namespace.run(args)
    }

    /// The process that serves its device.
    pub fn pid(&self) -> i32 {
        self.program.pid()
    }

    /// What it said.
    pub fn said(&self) -> String {
        self.program.out() + &self.program.err()
    }
}

/// The program where the ordinary user can execute it.
fn copy(lab: &Lab, implementation: Implementation, from: &Path) -> String {
    let to = lab.dir().join(implementation.name());
    if !to.exists() {
        // By a process of its own, as those of our own programs: a fork in another thread would keep it open.
        let status = std::process::Command::new("install").arg("-m755").args([from, &to]).status();
        assert!(status.is_ok_and(|status| status.success()), "{from:?} cannot be copied");
    }
    to.to_string_lossy().into_owned()
}
