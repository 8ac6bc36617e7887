//! A host, its guests and its routers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::unistd::geteuid;

use crate::helper::TEST_USER;
use crate::helper::bare::GATEWAY_MAC;
use crate::process::{Done, Running, command};

/// The host's IPv4 address. 192.0.2.2 to 192.0.2.9 are its own too.
pub const WAN4: &str = "192.0.2.1";
/// The host's IPv6 address. 2001:db8::2 to 2001:db8::9 are its own too.
pub const WAN6: &str = "2001:db8::1";
/// The guest's IPv4 address by default.
pub const GUEST4: &str = "10.0.2.100";
/// The guest's IPv6 address by default.
pub const GUEST6: &str = "fd00::64";

/// The host's addresses that a guest can reach, as they stand in front of `:PORT`; IPv6 where there is any.
pub fn wan_addresses() -> Vec<String> {
    let v6 = crate::skip::has_ipv6().then(|| format!("[{WAN6}]"));
    std::iter::once(WAN4.to_owned()).chain(v6).collect()
}

/// One test at a time, over all processes: for those that use the machine whole.
pub fn serial() -> nix::fcntl::Flock<fs::File> {
    let path = std::env::temp_dir().join(format!("usernet-lab-serial-{}", geteuid()));
    let file = fs::File::create(path).expect("a file in the folder for temporary files");
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .expect("waiting for the lock works")
}

/// How long a program may take that is not expected to take long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Our own programs.
const PROGRAMS: [&str; 3] = ["usernetd", "usernet", "usernet-lab"];

/// The folder with our own programs, beside the running test or benchmark. They are built the first time.
fn build() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().expect("a program has a path");
        let folder = own.parent().expect("a program is in a folder");
        let is_test = folder.file_name().is_some_and(|name| name == "deps");
        let folder = if is_test { folder.parent().expect("deps is in a folder") } else { folder };
        let is_release = folder.file_name().is_some_and(|name| name == "release");
        let profile = match (is_release, is_test) {
            (true, _) => "release",
            (false, true) => "test",
            (false, false) => "dev",
        };
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        // What cargo tells a test of its own package: a build script that asks for it (ring's) would be run again, by each
        // test program, and all that depends on it compiled again.
        let is_of_package = |name: &str| {
            ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|start| name.starts_with(start))
        };
        let environment =
            std::env::vars_os().filter(|(name, _)| !name.to_str().is_some_and(is_of_package));
        let status = Command::new(cargo)
            .env_clear()
            .envs(environment)
            .args(["build", "--quiet", "--profile", profile, "--bins"])
            .args(["-p", "usernet-control", "-p", "usernet-netns-tests"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo starts");
        assert!(status.success(), "our own programs do not compile");
        folder.to_owned()
    })
}

/// Where programs are looked for: tools of the administrator included, for ordinary users too.
pub fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// A machine of its own: a host namespace and a folder. Gone when dropped.
#[derive(Debug)]
pub struct Lab {
    host: Namespace,
    folder: Folder,
}

/// The folder of a lab, removed when dropped: after the namespaces that are in it.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _: std::io::Result<()> = fs::remove_dir_all(&self.0);
    }
}

impl Lab {
    /// A host with `lo` and `wan0`.
    #[allow(clippy::new_without_default, reason = "it makes namespaces: not a value")]
    pub fn new() -> Self {
        Self::hold("host", None)
    }

    /// The same, with all that its user needs to run containers: see [`crate::helper::machine`]. `root` is a folder
    /// with another distribution, if its programs are to be used.
    pub fn machine(root: Option<&Path>) -> Self {
        Self::hold("machine", root)
    }

    fn hold(kind: &str, root: Option<&Path>) -> Self {
        let folder = Folder(make_folder());
        let dir = folder.0.clone();
        let mut hold = command(&dir.join("usernet-lab"));
        hold.arg(kind).arg(&dir).args(root);
        let host = Namespace::hold(hold, &dir);
        let lab = Self { host, folder };
        lab.configure_host();
        lab
    }

    fn configure_host(&self) {
        let mut lines = String::from("link set lo up\nlink add wan0 type veth peer name far0\n");
        for host in 1..10 {
            lines.push_str(&format!("addr add 192.0.2.{host}/24 dev wan0\n"));
            if crate::skip::has_ipv6() {
                lines.push_str(&format!("addr add 2001:db8::{host}/64 dev wan0 nodad\n"));
            }
        }
        lines
            .push_str("link set far0 up\nlink set wan0 up\nroute add unreachable 203.0.113.0/24\n");
        self.host.ip(&lines);
    }

    /// The host.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// The lab's folder: the ordinary user's own.
    pub fn dir(&self) -> &Path {
        &self.folder.0
    }

    /// A new guest: nothing in it but `lo`, which is down. Its resolv.conf names the DNS addresses of `usernetd`.
    pub fn guest(&self) -> Namespace {
        let resolv_conf = self.dir().join("guest-resolv.conf");
        if !resolv_conf.exists() {
            fs::write(&resolv_conf, "nameserver 10.0.2.3\nnameserver fd00::3\n")
                .expect("a file in the lab's folder");
        }
        let program = self.program("usernet-lab");
        let path = resolv_conf.to_string_lossy();
        let hold = self.host.command("user", &[&program, "guest", &path]);
        Namespace::hold(hold, self.dir())
    }

    /// A new network namespace beside the host, for what is farther away. It forwards.
    pub fn router(&self) -> Namespace {
        let hold = self.host.command("admin", &[&self.program("usernet-lab"), "router"]);
        Namespace::hold(hold, self.dir())
    }

    /// Lays a cable ([`crate::helper::cable`]) between two namespaces in the host's user namespace. One end is
    /// `cable0` with 198.51.100.1 and 2001:db8:1::1, the other `cable1` with .2 and ::2. Pulled when dropped.
    pub fn cable(&self, a: &Namespace, b: &Namespace, faults: &[&str]) -> Running {
        let program = self.program("usernet-lab");
        let (pid_a, pid_b) = (a.pid().to_string(), b.pid().to_string());
        let args = [&*program, "cable", &pid_a, "cable0", &pid_b, "cable1"];
        let cable = self.host.spawn_admin(&[&args, faults].concat()).wait_for("ready");
        for (end, namespace) in [a, b].into_iter().enumerate() {
            let host = end + 1;
            let mut lines = format!("addr add 198.51.100.{host}/24 dev cable{end}\n");
            if crate::skip::has_ipv6() {
                lines += &format!("addr add 2001:db8:1::{host}/64 dev cable{end} nodad\n");
            }
            // What is lost shall be lost by the cable, whenever the machine lets it run.
            let up = format!("link set cable{end} txqueuelen 10000 up");
            namespace.ip(&format!("{lines}{up}\nlink set lo up"));
        }
        cable
    }

    /// Gives a guest the least of translators ([`crate::helper::bare`]), with the addresses that others have.
    pub fn bare(&self, guest: &Namespace, mtu: u16) -> Running {
        let (program, pid) = (self.program("usernet-lab"), guest.pid().to_string());
        let args = [&*program, "bare", &pid, "tap0"];
        let bare = self.host.spawn_admin(&args).wait_for("ready");
        guest.ip(&format!(
            "link set lo up\n\
             addr add {GUEST4}/24 dev tap0\n\
             link set tap0 mtu {mtu} txqueuelen 16384 up\n\
             neigh add 10.0.2.2 lladdr {GATEWAY_MAC} dev tap0\n\
             route add default via 10.0.2.2"
        ));
        bare
    }

    /// Joins two namespaces by a veth pair, which goes when one of them does: `NAME0` with 198.51.100.(16n+1)/28 and
    /// 2001:db8:1:n::1/64 in the first, `NAME1` with the next addresses in the second.
    pub fn join(&self, a: &Namespace, b: &Namespace, name: &str, n: u8) {
        let (pid_a, pid_b) = (a.pid(), b.pid());
        self.host.ip(&format!(
            "link add {name}0 netns {pid_a} type veth peer name {name}1 netns {pid_b}"
        ));
        for (end, namespace) in [a, b].into_iter().enumerate() {
            let host = end + 1;
            let mut lines =
                format!("addr add 198.51.100.{}/28 dev {name}{end}\n", 16 * usize::from(n) + host);
            if crate::skip::has_ipv6() {
                lines += &format!("addr add 2001:db8:1:{n}::{host}/64 dev {name}{end} nodad\n");
            }
            namespace.ip(&format!("{lines}link set {name}{end} up\nlink set lo up"));
        }
    }

    /// Path of one of our own programs, where the ordinary user can execute it.
    pub fn program(&self, name: &str) -> String {
        self.dir().join(name).to_string_lossy().into_owned()
    }
}

/// A folder for a lab: our own programs are copied to it, because the ordinary user may not be able to reach them
/// where they were built.
fn make_folder() -> PathBuf {
    let dir = new_folder();
    let is_root = geteuid().is_root();
    for program in PROGRAMS {
        // By a process of its own: another test's fork would inherit our descriptor for writing, and the
        // program could not be executed as long as that is open (ETXTBSY).
        let (from, to) = (build().join(program), dir.join(program));
        let status = Command::new("install").arg("-m755").args([&from, &to]).status();
        assert!(status.is_ok_and(|status| status.success()), "{program} cannot be copied");
    }
    let run = dir.join("run");
    fs::create_dir(&run).expect("a folder for the test");
    for (path, mode) in [(&dir, 0o755), (&run, 0o700)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own folder");
        if is_root {
            chown(path, Some(TEST_USER), Some(TEST_USER)).expect("root may give folders away");
        }
    }
    dir
}

/// An empty folder. A process of the same number may have been killed and left the names that come first.
fn new_folder() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("usernet-lab-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        match fs::create_dir(&dir) {
            Ok(()) => return dir,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{}: {error}", dir.display()),
        }
    }
}

/// A namespace, or several of different kinds, held by a process. Gone when dropped.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    /// The lab's folder.
    dir: PathBuf,
}

impl Namespace {
    fn hold(mut command: Command, dir: &Path) -> Self {
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper program starts");
        let mut line = String::new();
        let out = holder.stdout.take().expect("its output is a pipe");
        BufReader::new(out).read_line(&mut line).expect("the helper's output can be read");
        assert_eq!(line, "ready\n", "the helper made its namespaces");
        Self { holder, dir: dir.to_owned() }
    }

    /// The process that holds it.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command in it. `rights`: `admin` or `user`, as the helper's `enter` says.
    pub fn command(&self, rights: &str, args: &[&str]) -> Command {
        let mut enter = command(&self.dir.join("usernet-lab"));
        enter.args(["enter", &self.pid().to_string(), rights, "--"]).args(args);
        enter.current_dir(&self.dir);
        enter.env("PATH", search_path()).env("HOME", &self.dir).env("LC_ALL", "C");
        enter.env("XDG_RUNTIME_DIR", self.dir.join("run"));
        enter.env_remove("USERNET_RUNTIME_DIR");
        enter
    }

    /// Starts a program as the user.
    pub fn spawn(&self, args: &[&str]) -> Running {
        Running::start(self.command("user", args), &self.dir, &args.join(" "))
    }

    /// Starts a program with all capabilities over this namespace.
    pub fn spawn_admin(&self, args: &[&str]) -> Running {
        Running::start(self.command("admin", args), &self.dir, &args.join(" "))
    }

    /// Runs a program as the user.
    pub fn run(&self, args: &[&str]) -> Done {
        self.run_within(PATIENCE, args)
    }

    /// Runs a program as the user, which is killed if it takes longer.
    pub fn run_within(&self, within: Duration, args: &[&str]) -> Done {
        self.spawn(args).done_within(within)
    }

    /// Runs a shell script as the user.
    pub fn sh(&self, script: &str) -> Done {
        self.run(&["sh", "-c", script])
    }

    /// Runs a program with all capabilities over this namespace; it succeeds.
    #[track_caller]
    pub fn admin(&self, args: &[&str]) -> String {
        self.spawn_admin(args).done_within(PATIENCE).ok()
    }

    /// Gives lines to `ip -batch`.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        let script = format!("ip -batch - <<'END'\n{lines}\nEND");
        self.admin(&["sh", "-c", &script]);
    }

    /// Runs a command of the helper: see [`crate::helper::peers`].
    pub fn peer(&self, args: &[&str]) -> Done {
        self.peer_within(PATIENCE, args)
    }

    /// The same with another limit.
    pub fn peer_within(&self, within: Duration, args: &[&str]) -> Done {
        let program = self.dir.join("usernet-lab");
        let program = program.to_string_lossy();
        self.run_within(within, &[&[&*program], args].concat())
    }

    /// Starts the helper's server on these addresses; ready when this returns.
    #[track_caller]
    pub fn serve(&self, addresses: &[&str]) -> Running {
        let program = self.dir.join("usernet-lab");
        let program = program.to_string_lossy();
        self.spawn_admin(&[&[&*program, "serve"], addresses].concat()).wait_for("ready")
    }

    /// Sockets that exist in it, those included that no descriptor refers to any more but something in the kernel does.
    pub fn sockets(&self) -> u64 {
        let path = format!("/proc/{}/net/sockstat", self.pid());
        let text = fs::read_to_string(path).unwrap_or_default();
        let used = text.lines().find_map(|line| line.strip_prefix("sockets: used "));
        used.and_then(|used| used.trim().parse().ok()).expect("the kernel counts them")
    }

    /// Whether anything listens on this TCP port.
    pub fn listens_on(&self, port: u16) -> bool {
        let wanted = format!(":{port:04X}");
        ["tcp", "tcp6"].iter().any(|table| {
            let path = format!("/proc/{}/net/{table}", self.pid());
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().skip(1).any(|line| {
                let mut fields = line.split_whitespace();
                let local = fields.nth(1).unwrap_or_default();
                let state = fields.nth(1).unwrap_or_default();
                local.ends_with(&wanted) && state == "0A"
            })
        })
    }

    /// Kills the holder at once, as a crash of the namespace's processes does.
    pub fn kill(&mut self) {
        self.holder.kill().expect("the holder still runs");
        self.holder.wait().expect("our own child");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The end of its input ends it; so does this test's end, however it comes.
        drop(self.holder.stdin.take());
        let _: std::io::Result<std::process::ExitStatus> = self.holder.wait();
    }
}
