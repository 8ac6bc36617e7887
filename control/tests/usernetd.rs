//! The real `usernetd` on fresh namespaces, as root and as an ordinary user: how it starts, refuses, is
//! controlled and ends. What goes through the link is tested in `tests/netns`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;
use usernet_control::api::{Client, ClientError, ErrorCode};
use usernet_control::spec::Spec;
use usernet_control_tests::{Account, eventually, free_port, is_alive, status, stderr, usernetd};

/// A process that is killed and reaped at the end of the test.
struct Killed(Child);

impl Killed {
    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A network namespace, of a user namespace of its own where the user is an ordinary one.
struct Guest<'a> {
    account: &'a Account,
    process: Killed,
}

impl<'a> Guest<'a> {
    fn new(account: &'a Account) -> Self {
        let mut unshare = account.program("unshare");
        if !account.uid.is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--net", "sh", "-c", "echo; exec cat"]);
        let mut child = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "\n", "the namespace is there");
        Self { account, process: Killed(child) }
    }

    fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// A program in it.
    fn program(&self, program: &str) -> Command {
        let mut nsenter = self.account.program("nsenter");
        nsenter.args(["--target", &self.pid().to_string(), "--net"]);
        if !self.account.uid.is_root() {
            nsenter.args(["--user", "--preserve-credentials"]);
        }
        nsenter.arg(program);
        nsenter
    }

    fn devices(&self) -> String {
        let output = self.program("ip").args(["-o", "link"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// A server on a port of the guest that says a word to each client.
    fn server(&self, port: u16, word: &str) -> Killed {
        let listen = format!("TCP-LISTEN:{port},fork,reuseaddr");
        let mut socat = self.program("socat");
        let child = socat.args([listen, format!("SYSTEM:echo {word}")]).spawn().unwrap();
        let child = Killed(child);
        eventually("the server listens", || {
            let output = self.program("ss").args(["-Hltn"]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains(&format!(":{port} "))
        });
        child
    }

    /// `usernetd` on it.
    fn usernetd(&self, line: &str) -> Command {
        let mut command = self.account.program(usernetd());
        command.args(["--netns", &self.pid().to_string()]);
        command.args(line.split_ascii_whitespace());
        command
    }

    fn start(&self, line: &str) -> Daemon {
        let socket = self.account.home.join("s");
        let mut command = self.usernetd(line);
        command.arg("--api-socket").arg(&socket);
        Daemon::start(command, socket)
    }
}

/// A `usernetd` that is ready.
struct Daemon {
    process: Killed,
    socket: PathBuf,
    /// The line that it printed.
    line: String,
}

impl Daemon {
    fn start(mut command: Command, socket: PathBuf) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            panic!("{command:?}: {}", stderr(&child.wait_with_output().unwrap()));
        }
        Self { process: Killed(child), socket, line }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket).unwrap()
    }

    /// Its exit status, within a second or so.
    fn ended(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait().unwrap() {
                return status.code().expect("not killed");
            }
            assert!(start.elapsed() < Duration::from_secs(3), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn specs(text: &str) -> Vec<Spec> {
    text.split_ascii_whitespace().map(|s| s.parse().unwrap()).collect()
}

/// What a server behind a port of this host says.
fn word_from(port: u16) -> String {
    let mut word = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.read_to_string(&mut word).unwrap();
    word.trim().to_owned()
}

/// Runs it to its end: it has to fail with this status, one line, and these words in it.
#[track_caller]
fn assert_refused(command: &mut Command, expected: i32, words: &[&str]) -> Output {
    let output = command.output().unwrap();
    let told = stderr(&output);
    assert_eq!(status(&output), expected, "{command:?}: {told}");
    for word in words {
        assert!(told.contains(word), "{command:?}: {word:?} in {told:?}");
    }
    if expected == 1 {
        let line = told.lines().last().unwrap_or_default();
        assert!(line.starts_with("usernetd: "), "{told}");
        assert!(output.stdout.is_empty(), "nothing was set up");
    }
    output
}

#[test]
fn it_sets_the_namespace_up_and_says_so_in_one_line() {
    for account in Account::each() {
        let guest = Guest::new(&account);
        let port = free_port();
        let daemon = guest.start(&format!("--forward {port}:80 --mtu 1400 --cidr 10.7.0.0/16"));
        for part in [
            "tap0 in ",
            "10.7.0.100/16 via 10.7.0.2",
            "fd00::64/64 via fd00::2",
            "dns 10.7.0.3 fd00::3",
            "mtu 1400",
            &format!("forwards {port}:80/tcp"),
            "ready in ",
        ] {
            assert!(daemon.line.contains(part), "{part}: {}", daemon.line);
        }
        let addresses = guest.program("ip").args(["-o", "addr"]).output().unwrap();
        let addresses = String::from_utf8(addresses.stdout).unwrap();
        assert!(addresses.contains("10.7.0.100/16") && addresses.contains("fd00::64/64"));
        let _server = guest.server(80, "hello");
        assert_eq!(word_from(port), "hello");
        let status = daemon.client().status().unwrap();
        assert_eq!(status.netns, guest.pid().to_string());
        assert_eq!((status.mtu, status.forwards), (1400, 1));
        assert_eq!(status.ipv4.unwrap().gateway.to_string(), "10.7.0.2");
    }
}

#[test]
fn it_is_also_given_a_path_and_writes_its_files() {
    for account in Account::each() {
        let guest = Guest::new(&account);
        let home = account.home.display();
        let script = format!(
            "exec \"$0\" --netns /proc/{}/ns/net --pid-file {home}/pid --pcap {home}/pcap \
             --api-socket {home}/s --ready-fd 5 --log-format json 5>{home}/ready",
            guest.pid()
        );
        let mut command = account.program("sh");
        command.args(["-c", &script]).arg(usernetd());
        let mut daemon = Daemon::start(command, account.home.join("s"));
        let line: Value = serde_json::from_str(&daemon.line).unwrap();
        assert_eq!(line["tap"], "tap0");
        let file = |name: &str| account.home.join(name);
        assert_eq!(fs::read_to_string(file("ready")).unwrap(), "1");
        let pid = fs::read_to_string(file("pid")).unwrap();
        assert_eq!(pid.trim(), daemon.process.pid().to_string());
        let mode = fs::metadata(file("s")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        daemon.process.signal(Signal::SIGTERM);
        assert_eq!(daemon.ended(), 0);
        assert!(!file("pid").exists() && !file("s").exists());
        assert!(fs::metadata(file("pcap")).unwrap().len() >= 24, "a pcap header at least");
    }
}

#[test]
fn every_way_of_ending_it_leaves_nothing_behind() {
    for account in Account::each() {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let guest = Guest::new(&account);
            let mut daemon = guest.start("");
            assert!(guest.devices().contains("tap0"));
            daemon.process.signal(signal);
            assert_eq!(daemon.ended(), 0, "{signal}");
            assert!(!daemon.socket.exists());
            eventually("the device is gone", || !guest.devices().contains("tap0"));
        }

        let guest = Guest::new(&account);
        let mut daemon = guest.start("");
        daemon.client().stop().unwrap();
        assert_eq!(daemon.ended(), 0, "asked to stop");
        eventually("the device is gone", || !guest.devices().contains("tap0"));

        let socket = account.home.join("s");
        let mut command = guest.usernetd("--exit-fd 0");
        command.arg("--api-socket").arg(&socket).stdin(Stdio::piped());
        let mut daemon = Daemon::start(command, socket);
        assert!(daemon.client().status().is_ok());
        drop(daemon.process.0.stdin.take());
        assert_eq!(daemon.ended(), 0, "the exit descriptor");
        assert!(!daemon.socket.exists());
    }
}

#[test]
fn it_ends_with_the_namespace() {
    for account in Account::each() {
        let guest = Guest::new(&account);
        let mut daemon = guest.start("");
        guest.process.signal(Signal::SIGKILL);
        drop(guest);
        assert_eq!(daemon.ended(), 0);
        assert!(!daemon.socket.exists());
    }
}

#[test]
fn it_fails_when_its_helper_in_the_namespace_is_killed() {
    for account in Account::each() {
        let guest = Guest::new(&account);
        let mut daemon = guest.start("");
        let pid = daemon.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let is_helper = |child: &&str| {
            let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap();
            name.trim() == "usernetd-netns"
        };
        let helper = children.split_whitespace().find(is_helper).expect("it has a helper");
        let helper = helper.parse().unwrap();
        kill(Pid::from_raw(helper), Signal::SIGKILL).unwrap();
        assert_eq!(daemon.ended(), 1);
        eventually("the device is gone", || !guest.devices().contains("tap0"));
    }
}

#[test]
fn wrong_usage_is_told_before_anything_is_touched() {
    let account = Account::own();
    let guest = Guest::new(&account);
    for (line, words) in [
        ("--bogus", &["--bogus"][..]),
        ("--forward 80:", &["malformed forward \"80:\"", "a port is missing", "character 4"]),
        ("--forward 80:80:80", &["too much"]),
        ("--cidr 10.0.2.9/24", &["the network is 10.0.2.0/24"]),
        ("--workers 17", &["1 to 16"]),
    ] {
        assert_refused(&mut guest.usernetd(line), 2, words);
    }
    assert_refused(&mut account.program(usernetd()), 2, &["--netns"]);
    assert!(!guest.devices().contains("tap0"));
}

#[test]
fn a_busy_port_is_named_with_its_holder_and_the_namespace_is_left_as_it_was() {
    for account in Account::each() {
        let guest = Guest::new(&account);
        let port = free_port();
        let taken = TcpListener::bind(("0.0.0.0", port)).unwrap();
        let busy = format!("port {port}/tcp is in use");
        let output = assert_refused(&mut guest.usernetd(&format!("-f {port}:80")), 1, &[&busy]);
        if account.uid == geteuid() {
            let holder = format!("(pid {})", std::process::id());
            assert!(stderr(&output).contains(&holder), "{}", stderr(&output));
        }
        eventually("the device is gone", || !guest.devices().contains("tap0"));
        drop(taken);
        let _daemon = guest.start(&format!("-f {port}:80"));
    }
}

/// `usernetd LINE` on a fresh namespace, in user and mount namespaces of its own in which `before` was run first.
fn usernetd_after(account: &Account, before: &str, line: &str) -> Command {
    let netns = account.home.join("netns");
    fs::write(&netns, "").unwrap();
    chown(&netns, Some(account.uid.as_raw()), None).unwrap();
    let netns = netns.display();
    let script =
        format!("{before} && unshare --net={netns} true && exec \"$0\" --netns {netns} {line}");
    let mut command = account.program("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(usernetd());
    command
}

#[test]
fn a_port_for_root_only_is_told_with_the_sysctl() {
    let account = Account::ordinary();
    // A host of our own: in a fresh network namespace ports below 1024 are root's, whatever they are here. Root
    // there is not who runs the daemon, because that is in a user namespace below it.
    let daemon = usernetd_after(&account, "true", "-f 79:79");
    let mut command = account.program("unshare");
    command.args(["--user", "--map-root-user", "--net"]);
    command.arg(daemon.get_program()).args(daemon.get_args());
    let words =
        ["port 79/tcp is reserved for root", "sysctl -w net.ipv4.ip_unprivileged_port_start=79"];
    assert_refused(&mut command, 1, &words);
}

#[test]
fn without_a_tun_device_it_says_what_mends_it() {
    for account in Account::each() {
        let script = "mount --bind /dev/null /dev/net/tun && exec \"$0\" --netns $$";
        let mut command = account.program("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--net", "sh", "-c", script]);
        assert_refused(command.arg(usernetd()), 1, &["/dev/net/tun"]);
    }
}

#[test]
fn a_namespace_that_is_gone_or_none_or_somebody_elses_is_told() {
    let account = Account::ordinary();
    let refused = |netns: &str, words: &[&str]| {
        assert_refused(account.program(usernetd()).args(["--netns", netns]), 1, words);
    };
    refused("2147483647", &["the network namespace of PID 2147483647 is gone"]);
    refused("/proc/2147483647/ns/net", &["is gone"]);
    refused("/etc/passwd", &["/etc/passwd is not a network namespace"]);
    refused("1", &["may not enter the network namespace of PID 1", "(--userns)"]);
}

#[test]
fn two_daemons_on_one_tap_are_one_too_many() {
    for account in Account::each() {
        // Of a device with several queues a single one cannot be had (`EINVAL`), which is told as if it were in use (`EBUSY`).
        let other = Guest::new(&account);
        let several = other.start("--workers 2");
        assert_refused(&mut other.usernetd(""), 1, &["tap0 exists already", "--tap-name"]);
        drop((several, other));
        let guest = Guest::new(&account);
        let daemon = guest.start("");
        assert_refused(&mut guest.usernetd(""), 1, &["tap0 exists already", "--tap-name"]);
        assert!(daemon.client().status().is_ok());
        assert!(guest.devices().contains("tap0"));
        // Each command line gets its own words.
        let mut other = account.program(usernetd());
        other.args(["slirp4netns", &guest.pid().to_string(), "tap0"]);
        let output = other.output().unwrap();
        let told = stderr(&output);
        let line = told.lines().last().unwrap_or_default();
        assert!(line.starts_with("slirp4netns: tap0 exists already"), "{told}");
        assert!(line.ends_with("(TAPNAME)") && status(&output) == 1, "{told}");
        let mut same_socket = guest.usernetd("--tap-name tap1");
        same_socket.arg("--api-socket").arg(&daemon.socket);
        assert_refused(&mut same_socket, 1, &["another usernetd is using "]);
        assert!(daemon.client().status().is_ok());
    }
}

/// Lets a program have no io_uring, as the seccomp profiles of container runtimes do.
fn deny_io_uring(command: &mut Command) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let rules = [nix::libc::SYS_io_uring_setup].map(|call| (call, Vec::new()));
    let denied = SeccompAction::Errno(nix::libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules.into(), SeccompAction::Allow, denied, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    let apply =
        move || seccompiler::apply_filter(&filter).map_err(|_| std::io::Error::last_os_error());
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(apply) };
}

#[test]
fn without_io_uring_it_falls_back_unless_that_was_asked_for() {
    for account in Account::each() {
        let guest = Guest::new(&account);
        let mut command = guest.usernetd("--backend io-uring");
        deny_io_uring(&mut command);
        assert_refused(&mut command, 1, &["io_uring cannot be used"]);
        eventually("the device is gone", || !guest.devices().contains("tap0"));

        let socket = account.home.join("s");
        let mut command = guest.usernetd("");
        command.arg("--api-socket").arg(&socket);
        deny_io_uring(&mut command);
        let daemon = Daemon::start(command, socket);
        let status = daemon.client().status().unwrap();
        assert_eq!(status.backend, "epoll");
        assert!(status.io_uring_denied.starts_with("io_uring_setup: "), "{status:?}");
    }
}

/// A user's rings share the locked memory of that user; root's are not counted.
#[test]
fn a_ring_beyond_the_locked_memory_of_a_user_is_told_as_that() {
    use nix::sys::resource::{Resource, setrlimit};
    let account = Account::ordinary();
    let guest = Guest::new(&account);
    let limited = |options: &str, bytes: u64| {
        let mut command = guest.usernetd(options);
        let limit = move || setrlimit(Resource::RLIMIT_MEMLOCK, bytes, bytes).map_err(Into::into);
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(limit) };
        command
    };
    let reason = "RLIMIT_MEMLOCK (ulimit -l) is used up";
    assert_refused(&mut limited("--backend io-uring", 4_096), 1, &[reason]);
    eventually("the device is gone", || !guest.devices().contains("tap0"));
    let status = |bytes| {
        let socket = account.home.join(format!("s{bytes}"));
        let mut command = limited("", bytes);
        command.arg("--api-socket").arg(&socket);
        let status = Daemon::start(command, socket).client().status().unwrap();
        eventually("the device is gone", || !guest.devices().contains("tap0"));
        status
    };
    let denied = status(4_096);
    assert_eq!(denied.backend, "epoll");
    assert!(denied.io_uring_denied.ends_with(reason), "{denied:?}");
    // What a kernel lets everybody have; the other tests here have rings of the same user.
    let enough = status(8 << 20);
    assert_eq!((&*enough.backend, &*enough.io_uring_denied), ("io-uring", ""));
}

/// Its tables are reserved for 65,536 flows, of which a guest at rest has none: what they need is there when it is used.
/// One worker: each has tables of its own, and a stack.
#[test]
fn at_rest_it_has_touched_none_of_its_tables() {
    let account = Account::ordinary();
    let guest = Guest::new(&account);
    let socket = account.home.join("s");
    let mut command = guest.usernetd("--workers 1");
    command.arg("--api-socket").arg(&socket);
    let daemon = Daemon::start(command, socket);
    daemon.client().status().expect("it runs");
    let smaps = format!("/proc/{}/smaps_rollup", daemon.process.pid());
    let smaps = fs::read_to_string(smaps).unwrap();
    let anonymous = smaps.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    let kib: u32 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    // Relocations, heap and stacks are 700 to 800.
    assert!(kib < 1_100, "{kib} KiB of anonymous memory");
}

#[test]
fn forwards_change_while_it_runs_all_or_nothing() {
    for account in Account::each() {
        for backend in ["io-uring", "epoll"] {
            let guest = Guest::new(&account);
            let (port, other) = (free_port(), free_port());
            let daemon = guest.start(&format!("--backend {backend} -f {port}:80"));
            let _servers = (guest.server(80, "first"), guest.server(81, "second"));
            let mut client = daemon.client();
            assert_eq!(word_from(port), "first");

            // The port stays open while it passes to another forward.
            let set = client.forward_set(specs(&format!("{port}:81 {other}:80"))).unwrap();
            assert_eq!(set.forwards.len(), 2);
            assert_eq!((word_from(port), word_from(other)), ("second".into(), "first".into()));

            let taken = TcpListener::bind("0.0.0.0:0").unwrap();
            let busy = taken.local_addr().unwrap().port();
            let fresh = free_port();
            let error = client.forward_add(specs(&format!("{fresh}:80 {busy}:80"))).unwrap_err();
            assert!(matches!(error, ClientError::Refused(e) if e.code == ErrorCode::PortInUse));
            assert!(TcpStream::connect(("127.0.0.1", fresh)).is_err(), "none of them");
            assert_eq!(client.forwards().unwrap(), set);

            let error = client.forward_remove(specs("1:1")).unwrap_err();
            assert!(matches!(error, ClientError::Refused(e) if e.code == ErrorCode::NotFound));
            let left = client.forward_remove(specs(&format!("{other}:80"))).unwrap();
            assert_eq!(left.forwards[..], set.forwards[..1]);
            eventually("the port is closed", || TcpStream::connect(("127.0.0.1", other)).is_err());
            assert_eq!(word_from(port), "second");
        }
    }
}

/// Sends bytes, ends the direction, reads the answers.
fn raw(socket: &Path, bytes: &[u8]) -> Vec<Value> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let lines = BufReader::new(stream).lines().map(|line| line.unwrap());
    lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
}

#[test]
fn requests_that_are_none_do_not_hurt_it() {
    let account = Account::ordinary();
    let guest = Guest::new(&account);
    let daemon = guest.start("");
    for (bytes, code) in [
        (&b"{\"version\":1,\"id\":1,\"met"[..], "incomplete"),
        (&vec![b'['; 10 << 20][..], "too_large"),
        (b"nonsense\n", "invalid_json"),
        (b"{\"version\":9,\"method\":\"status\"}\n", "unsupported_version"),
        (b"{\"version\":1,\"method\":\"fly\"}\n", "unknown_method"),
        (
            b"{\"version\":1,\"method\":\"forward.add\",\"params\":{\"forwards\":[\"x\"]}}\n",
            "invalid_params",
        ),
    ] {
        let answers = raw(&daemon.socket, bytes);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0]["error"]["code"], code);
    }
    let idle: Vec<_> = (0..100).map(|_| UnixStream::connect(&daemon.socket)).collect();
    drop(idle);
    eventually("it answers again", || {
        Client::connect(&daemon.socket).and_then(|mut c| c.status()).is_ok()
    });
    assert!(is_alive(daemon.process.pid()));
}

/// The status as the user of the account is told it.
fn status_as(account: &Account, socket: &Path) -> Value {
    let mut socat = account.program("socat");
    socat.args(["-t", "5", "-"]).arg(format!("UNIX-CONNECT:{}", socket.display()));
    let mut child = socat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let request = b"{\"version\":1,\"method\":\"status\"}\n";
    child.stdin.take().unwrap().write_all(request).unwrap();
    let answer = child.wait_with_output().unwrap().stdout;
    let mut answer: Value = serde_json::from_slice(&answer).unwrap();
    assert!(answer["error"].is_null(), "{answer}");
    answer["result"].take()
}

#[test]
fn a_change_of_resolv_conf_is_followed() {
    for account in Account::each() {
        let (file, socket) = (account.home.join("resolv.conf"), account.home.join("s"));
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let replace = format!("mount --bind {} /etc/resolv.conf", file.display());
        let line = format!("--api-socket {}", socket.display());
        let daemon = Daemon::start(usernetd_after(&account, &replace, &line), socket);
        // Root of this test is nobody in the daemon's user namespace.
        let resolvers = || status_as(&account, &daemon.socket)["resolvers"].take();
        assert_eq!(resolvers(), serde_json::json!(["192.0.2.1:53"]));
        fs::write(&file, "nameserver 192.0.2.2\nnameserver 192.0.2.3\n").unwrap();
        let expected = serde_json::json!(["192.0.2.2:53", "192.0.2.3:53"]);
        eventually("the new resolvers are in force", || resolvers() == expected);
    }
}

#[test]
fn what_goes_wrong_later_is_in_the_status_too() {
    for account in Account::each() {
        // An /etc of our own, so that the file can go.
        let (etc, socket) = (account.home.join("etc"), account.home.join("s"));
        fs::create_dir(&etc).unwrap();
        fs::write(etc.join("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        let replace = format!("mount --bind {} /etc", etc.display());
        let line = format!("--api-socket {} --log-level error", socket.display());
        let daemon = Daemon::start(usernetd_after(&account, &replace, &line), socket);
        let count = || {
            let status = status_as(&account, &daemon.socket);
            let lines = status["warnings"].as_array().unwrap().clone();
            let is_it = |line: &&Value| {
                line.as_str().unwrap().starts_with("cannot read /etc/resolv.conf any more")
            };
            lines.iter().filter(is_it).count()
        };
        assert_eq!(count(), 0);
        fs::remove_file(etc.join("resolv.conf")).unwrap();
        eventually("the warning is there", || count() == 1);
    }
}

#[test]
fn without_resolvers_it_comes_up_and_names_the_option_that_mends_it() {
    let account = Account::ordinary();
    let (etc, socket) = (account.home.join("etc"), account.home.join("s"));
    fs::create_dir(&etc).unwrap();
    let replace = format!("mount --bind {} /etc", etc.display());
    let line = format!("--api-socket {}", socket.display());
    let daemon = Daemon::start(usernetd_after(&account, &replace, &line), socket);
    let status = status_as(&account, &daemon.socket);
    let told = status["warnings"].to_string();
    assert!(told.contains("cannot read /etc/resolv.conf"), "{told}");
    assert!(told.contains("the guest's DNS is not answered: give --dns\""), "{told}");
}
