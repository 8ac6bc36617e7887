//! Virtual networks by name: namespaces of one host and of two, devices, names, and what is said when it cannot be.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use usernet_lab::wireguard::{Implementation, Peer};
use usernet_lab::{Done, Lab, Namespace, Running, skip, wait_until};

/// How long what takes a handshake or a new process may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// An ordinary user of `usernet` on a host.
struct User<'a> {
    lab: &'a Lab,
    at: &'a Namespace,
    /// Where its files are.
    dir: PathBuf,
}

impl<'a> User<'a> {
    /// One who has no networks yet.
    fn new(lab: &'a Lab, at: &'a Namespace, name: &str) -> Self {
        let dir = lab.dir().join("run").join(name);
        at.run(&["mkdir", "-m700", &dir.to_string_lossy()]).ok();
        Self { lab, at, dir }
    }

    /// Starts `usernet`; what it is given on standard input is written by the caller.
    fn start(&self, args: &[&str]) -> Running {
        let program = self.lab.program("usernet");
        let mut command = self.at.command("user", &[&[&*program], args].concat());
        command.env("XDG_RUNTIME_DIR", &self.dir).env("HOME", &self.dir);
        command.env_remove("XDG_DATA_HOME").stdin(Stdio::piped());
        Running::start(command, self.lab.dir(), &args.join(" "))
    }

    fn usernet(&self, args: &[&str]) -> Done {
        self.usernet_with(args, "")
    }

    /// The same with this on its standard input.
    fn usernet_with(&self, args: &[&str], input: &str) -> Done {
        let mut running = self.start(args);
        let mut stdin = running.stdin().expect("it is a pipe");
        // One that fails may have ended.
        stdin.write_all(input.as_bytes()).ok();
        drop(stdin);
        running.done_within(PATIENCE)
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        self.usernet(&words(line)).ok()
    }

    /// A command that is expected to fail; what it says.
    #[track_caller]
    fn refused(&self, line: &str) -> String {
        let done = self.usernet(&words(line));
        assert!(!done.is_ok(), "{line} is not refused: {done}");
        done.err
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        let text = self.ok(&format!("{line} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    /// A shell script in a namespace that is in this network.
    fn within(&self, vnet: &str, script: &str) -> Done {
        self.usernet(&["run", "--vnet", vnet, "--", "sh", "-c", script])
    }

    /// A namespace in this network whose server echoes what it is sent, as `name`.
    fn serve(&self, vnet: &str, address: &str) -> Running {
        let lab = self.lab.program("usernet-lab");
        self.start(&["run", "--vnet", vnet, "--", &lab, "serve", address]).wait_for("ready")
    }

    /// A client of such a server.
    fn client(&self, script: &str) -> String {
        script.replace("LAB", &self.lab.program("usernet-lab"))
    }

    /// The process of a network's gateway, who is the parent of the one in its namespace, and its daemon.
    fn gateway(&self, network: &str) -> Option<(Pid, Pid)> {
        let list = self.json("ls");
        let name = format!("vnet-{network}");
        let gateway = list.as_array()?.iter().find(|instance| instance["name"] == *name)?.clone();
        let pid = |field: &str| Some(Pid::from_raw(gateway[field].as_i64()?.try_into().ok()?));
        Some((parent(pid("pid")?)?, pid("daemon_pid")?))
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace().collect()
}

/// What /proc says of a process, behind its name.
fn stat(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
}

/// Whether a process has ended.
fn has_ended(pid: Pid) -> bool {
    stat(pid).is_none_or(|stat| stat.starts_with(['Z', 'X']))
}

fn parent(pid: Pid) -> Option<Pid> {
    stat(pid)?.split(' ').nth(1)?.parse().ok().map(Pid::from_raw)
}

/// Says that a test is skipped, if programs are missing.
fn is_skipped(name: &str, programs: &[&str]) -> bool {
    let reason = skip::missing(programs);
    if let Some(reason) = &reason {
        skip::skip(name, reason);
    }
    reason.is_some()
}

#[test]
fn two_namespaces_of_an_ordinary_user_talk_to_each_other() {
    if is_skipped("two_namespaces_of_an_ordinary_user_talk_to_each_other", &["nc"]) {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    user.ok("vnet create my-network --gateway 10.0.0.1/24");
    let listen = "run --vnet my-network,address=10.0.0.2/24 -- nc -l -p 12345";
    let mut server = user.start(&words(listen));
    let connect = "run --vnet my-network,address=10.0.0.3/24 -- nc 10.0.0.2 12345";
    let mut client = user.start(&words(connect));
    // As long as the server does not listen yet, the client is refused and ends.
    let is_heard = wait_until(PATIENCE, || {
        if !client.is_running() {
            client = user.start(&words(connect));
        }
        client.stdin().map(|mut speak| {
            speak.write_all(b"hello\n").ok();
            wait_until(PATIENCE, || server.out() == "hello\n" || !client.is_running())
        });
        server.out() == "hello\n"
    });
    assert!(is_heard, "{}{}", client.err(), server.err());
    let mut answer = server.stdin().expect("it is a pipe");
    answer.write_all(b"good day\n").unwrap();
    assert!(wait_until(PATIENCE, || client.out() == "good day\n"), "{}", server.err());
}

#[test]
fn members_have_names_and_get_addresses() {
    if is_skipped("members_have_names_and_get_addresses", &["dig", "getent", "ip"]) {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    user.ok("vnet create my-network --gateway 10.0.0.1/24 --ipv6 fd12:3456::/64");
    let _server = user.serve("my-network,address=10.0.0.9/24,name=server", "0.0.0.0:7000");
    let script = "set -e
        ip -o addr show my-network | awk '{print $4}'
        getent ahostsv4 server.my-network | awk '{print $1}' | head -1
        getent ahostsv4 server | awk '{print $1}' | head -1
        getent ahostsv6 gateway | awk '{print $1}' | head -1
        dig +short -x 10.0.0.9
        dig +short AAAA client.my-network
        dig example.org | grep -o 'status: [A-Z]*'
        LAB get 10.0.0.9:7000 1000000
        LAB echo 10.0.0.9:7000 0 1 1392 1400 20000";
    let done = user.within("my-network,name=client", &user.client(script));
    let lines: Vec<String> = done.ok().lines().map(str::to_owned).collect();
    let expected = [
        "10.0.0.2/24",
        "fd12:3456::3/64",
        "10.0.0.9",
        "10.0.0.9",
        "fd12:3456::1",
        "server.my-network.",
        "fd12:3456::3",
        "status: REFUSED",
    ];
    assert_eq!(lines[..expected.len()], expected);
    let left = user.json("vnet show my-network")["members"].clone();
    let left: Vec<_> = left.as_array().unwrap().iter().map(|member| &member["name"]).collect();
    assert_eq!(left, ["server"], "a member whose command has ended is none");
}

#[test]
fn what_cannot_be_is_said() {
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    let missing = user.refused("run --vnet my-network -- true");
    assert!(missing.contains("no virtual network named `my-network`"), "{missing}");
    assert!(missing.contains("usernet vnet create my-network"), "{missing}");
    user.ok("vnet create my-network --gateway 10.0.0.1/24");
    let _server = user.serve("my-network,address=10.0.0.2/24,name=server", "0.0.0.0:7000");
    for (line, told) in [
        ("run --vnet my-netwrok -- true", "there are: my-network"),
        ("run --vnet my-network,address=10.0.0.2/24 -- true", "taken by `server`"),
        ("run --vnet my-network,address=10.0.1.2/24 -- true", "outside of the network"),
        ("run --vnet my-network,address=10.0.0.1/24 -- true", "is the gateway's"),
        ("run --vnet my-network,address=10.0.0.255/24 -- true", "is the network's own"),
        ("run --vnet my-network,name=server -- true", "`server` is taken"),
        ("run --vnet my-network,port=1 -- true", "neither address=ADDRESS nor name=NAME"),
        ("run --vnet my-network --vnet my-network -- true", "given twice"),
        ("vnet create my-network", "exists already"),
        ("vnet create other --gateway 10.9.0.0/24", "as in 10.9.0.1/24"),
        ("vnet rm my-network", "in use by run-"),
        ("vnet peer rm my-network nobody", "there is no member `nobody` (server)"),
        ("vnet join /dev/null", "that is not a token"),
        ("rm vnet-my-network", "usernet vnet stop my-network"),
    ] {
        let said = user.refused(line);
        assert!(said.contains(told), "{line}: {said}");
    }
    let port = user.json("vnet show my-network")["listen_port"].as_u64().unwrap();
    let taken = user.refused(&format!("vnet create other --listen {port}"));
    assert!(taken.contains(&format!("UDP port {port} is in use")), "{taken}");
    assert_eq!(user.json("vnet ls").as_array().map(Vec::len), Some(1), "nothing is half made");
    user.ok("vnet rm --force my-network");
    assert_eq!(user.json("vnet ls").as_array().map(Vec::len), Some(0));
    assert!(user.gateway("my-network").is_none());
}

#[test]
fn a_namespace_in_two_networks_does_not_join_them() {
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    user.ok("vnet create red --gateway 10.0.0.1/24");
    user.ok("vnet create blue --gateway 10.1.0.1/24");
    let _red = user.serve("red,address=10.0.0.2/24,name=server", "0.0.0.0:7000");
    let _blue = user.serve("blue,address=10.1.0.2/24,name=server", "0.0.0.0:7000");
    let lab_program = lab.program("usernet-lab");
    let both = [
        "run",
        "--name",
        "both",
        "--vnet",
        "red,address=10.0.0.3",
        "--vnet",
        "blue,address=10.1.0.3",
        "--",
    ];
    let script = "set -e
        LAB get 10.0.0.2:7000 100000
        LAB get 10.1.0.2:7000 100000
        getent hosts server.red server.blue | awk '{print $1}'
        exec LAB serve 0.0.0.0:7001";
    let script = script.replace("LAB", &lab_program);
    let both = user.start(&[&both[..], &["sh", "-c", &script]].concat()).wait_for("ready");
    assert!(both.out().contains("10.0.0.2\n10.1.0.2\n"), "{}", both.out());
    // Who is in red reaches the member that is in both, and by no route anybody who is in blue only.
    let script = "set -e
        LAB get 10.0.0.3:7001 100000
        for way in 10.0.0.1 10.0.0.3; do
            ip route replace 10.1.0.0/24 via $way
            for to in 10.1.0.1:53 10.1.0.2:7000 10.1.0.3:7001; do
                timeout 2 LAB connect $to | grep connected && exit 9
            done
        done
        true";
    user.within("red", &script.replace("LAB", &lab_program)).ok();
}

#[test]
fn the_network_leads_out_only_if_that_was_asked_for() {
    if is_skipped("the_network_leads_out_only_if_that_was_asked_for", &["ping", "dig", "dnsmasq"]) {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    let _server = lab.host().serve(&["192.0.2.1:7000", "[2001:db8::1]:7000", "127.0.0.1:7002"]);
    let resolver = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--pid-file=",
        "--user=",
        "--log-facility=-",
        "--listen-address=192.0.2.1",
        "--address=/one.test/192.0.2.77",
    ];
    let _resolver = lab.host().spawn_admin(&resolver).wait_for("started");
    user.ok("vnet create inner --gateway 10.0.0.1/24");
    user.ok("vnet create outer --gateway 10.1.0.1/24 --ipv6 fd12::/64 --internet");
    let out = "LAB get 192.0.2.1:7000 1000000 && LAB get [2001:db8::1]:7000 1000000 && LAB echo 192.0.2.1:7000 0 1 1400 20000";
    user.within("outer", &user.client(&format!("{out} && ping -c1 -W5 192.0.2.1"))).ok();
    let names = user.within("outer,name=me", "dig +short one.test; dig +short me.outer");
    assert_eq!(names.ok(), "192.0.2.77\n10.1.0.2\n");
    let closed = "! timeout 2 LAB connect 192.0.2.1:7000 | grep connected && ! timeout 2 LAB connect [2001:db8::1]:7000 | grep connected";
    user.within("inner", &user.client(closed)).ok();
    // The host's own services are not the network's.
    let near = "! timeout 2 LAB connect 10.0.2.2:7002 | grep connected && ! timeout 2 LAB connect 10.1.0.1:7002 | grep connected";
    user.within("outer", &user.client(near)).ok();
}

#[test]
fn members_of_a_gateway_that_was_killed_are_back_when_it_is() {
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    user.ok("vnet create my-network --gateway 10.0.0.1/24");
    let _server = user.serve("my-network,address=10.0.0.2/24,name=server", "0.0.0.0:7000");
    let connects = |what: &str| {
        let script = user.client("LAB get 10.0.0.2:7000 100000");
        assert!(user.within("my-network", &script).is_ok(), "not connected: {what}");
    };
    connects("before");
    let endpoint = || user.json("vnet show my-network")["members"][0]["endpoint"].clone();
    assert!(wait_until(PATIENCE, || endpoint().is_string()));
    // It has to have been written down.
    let record = user.dir.join(".local/share/usernet/vnets/my-network/network.json");
    assert!(wait_until(PATIENCE, || {
        let record: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        record["members"][0]["endpoint"] == endpoint()
    }));

    let (gateway, daemon) = user.gateway("my-network").expect("it runs");
    kill(gateway, Signal::SIGKILL).unwrap();
    assert!(wait_until(PATIENCE, || has_ended(gateway) && has_ended(daemon)));
    assert_eq!(user.json("vnet show my-network")["running"], false);
    user.ok("vnet start my-network");
    connects("after a start");

    let (gateway, daemon) = user.gateway("my-network").expect("it runs");
    kill(gateway, Signal::SIGKILL).unwrap();
    assert!(wait_until(PATIENCE, || has_ended(gateway) && has_ended(daemon)));
    let started = Instant::now();
    connects("after a use, which starts it");

    // The gateway stays who it is, and makes what it lost anew, unless that was right after its start.
    assert!(wait_until(PATIENCE, || started.elapsed() > Duration::from_secs(3)));
    let (gateway, daemon) = user.gateway("my-network").expect("it runs");
    assert!(wait_until(PATIENCE, || user.json("vnet show my-network")["members"][0]["endpoint"]
        .is_string()));
    kill(daemon, Signal::SIGKILL).unwrap();
    assert!(wait_until(PATIENCE, || user
        .gateway("my-network")
        .is_some_and(|(pid, d)| pid == gateway && d != daemon)));
    connects("after its daemon was killed");
    user.ok("vnet stop my-network");
    assert!(has_ended(gateway));
}

#[test]
fn secrets_are_in_files_of_their_owner_only() {
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    user.ok("vnet create my-network --gateway 10.0.0.1/24");
    let _server = user.serve("my-network,name=server", "0.0.0.0:7000");
    let token = user.ok("vnet token my-network --name host-b --endpoint 192.0.2.1");
    let conf = user.ok("vnet peer add my-network --name laptop --endpoint 192.0.2.1");
    let vnets = user.dir.join(".local/share/usernet/vnets");
    let record = fs::read_to_string(vnets.join("my-network/network.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let line = conf.lines().find(|line| line.starts_with("PrivateKey = ")).expect("it has one");
    let secrets = [
        record["private_key"].as_str().unwrap().to_owned(),
        line.trim_start_matches("PrivateKey = ").to_owned(),
        token.trim().to_owned(),
    ];
    let mut files = Vec::new();
    list(&user.dir, &mut files);
    assert!(files.len() > 5, "{files:?}");
    for path in &files {
        let meta = fs::symlink_metadata(path).unwrap();
        let text =
            if meta.is_file() { fs::read_to_string(path).unwrap_or_default() } else { continue };
        let has_secret =
            secrets.iter().any(|secret| text.contains(secret)) || text.contains("PrivateKey");
        let is_record = path.ends_with("my-network/network.json");
        assert!(!has_secret || is_record, "{} has a secret", path.display());
        assert!(!is_record || meta.permissions().mode() & 0o777 == 0o600, "{}", path.display());
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!secrets.iter().any(|secret| line.contains(secret)), "{line}");
    }
}

/// All files below.
fn list(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() { list(&entry.path(), into) } else { into.push(entry.path()) }
    }
}

#[test]
fn a_device_with_a_file_of_wg_quick_is_a_member_until_it_is_removed() {
    let lab = Lab::new();
    let user = User::new(&lab, lab.host(), "a");
    user.ok("vnet create my-network --gateway 10.0.0.1/24");
    let _server = user.serve("my-network,address=10.0.0.2,name=server", "0.0.0.0:7000");
    let conf =
        user.ok("vnet peer add my-network --name laptop --address 10.0.0.50 --endpoint 127.0.0.1");
    let file = user.dir.join("wg0.conf");
    let write = format!("umask 077; cat >{} <<'END'\n{conf}END", file.display());
    user.at.sh(&write).ok();
    // Who has the file needs nothing else: this daemon knows of no network.
    let script = user.client(
        "set -e
        getent hosts server.my-network | awk '{print $1}'
        LAB get 10.0.0.2:7000 1000000
        echo connected
        read line
        timeout 3 LAB get 10.0.0.2:7000 1000 && exit 9
        echo cut off",
    );
    let file = file.to_string_lossy();
    let mut laptop =
        user.start(&["run", "--isolated", "--wireguard", &file, "--", "sh", "-c", &script]);
    assert!(
        wait_until(PATIENCE, || laptop.out() == "10.0.0.2\nconnected\n"),
        "{}{}",
        laptop.out(),
        laptop.err()
    );
    let members = user.json("vnet peer ls my-network");
    assert_eq!(members[0]["name"], "laptop");
    assert!(members[0]["latest_handshake_unix"].is_u64(), "{members}");
    user.ok("vnet peer rm my-network laptop");
    laptop.stdin().expect("it is a pipe").write_all(b"\n").unwrap();
    let done = laptop.done_within(PATIENCE);
    assert!(done.out.ends_with("cut off\n"), "{done}");
    assert_eq!(user.json("vnet peer ls my-network"), serde_json::json!([]));
}

#[test]
fn other_implementations_of_wireguard_are_members_by_the_file_that_is_printed() {
    for implementation in Implementation::ALL {
        if let Some(reason) = implementation.missing() {
            let test = "other_implementations_of_wireguard_are_members_by_the_file_that_is_printed";
            skip::skip(&format!("{test} ({})", implementation.name()), &reason);
            continue;
        }
        let lab = Lab::new();
        let near = lab.router();
        let peer = Peer::start(&lab, implementation);
        lab.join(&near, &peer.namespace, "wire", 0);
        let user = User::new(&lab, &near, "a");
        user.ok("vnet create my-network --gateway 10.0.0.1/24 --listen 51820");
        let _server = user.serve("my-network,address=10.0.0.2,name=server", "0.0.0.0:7000");
        let add = "vnet peer add my-network --name laptop --address 10.0.0.50 --endpoint 198.51.100.1 --qr";
        let printed = user.usernet(&words(add));
        assert!(printed.err.lines().count() > 20 && printed.err.contains('█'), "{printed}");
        // What wg-quick does itself, and `wg setconf` does not know.
        let of_quick =
            |line: &&str| ["Address", "DNS", "MTU"].iter().any(|key| line.starts_with(key));
        let file: Vec<&str> = printed.out.lines().filter(|line| !of_quick(line)).collect();
        assert_eq!(file.len() + 3, printed.out.lines().count(), "{printed}");
        peer.configure(&file.join("\n"), 1420, &["10.0.0.50/24"], &[]);
        let lab_program = lab.program("usernet-lab");
        peer.run(&[&lab_program, "get", "10.0.0.2:7000", "1000000"]).ok();
        let _laptop = peer.namespace.serve(&["10.0.0.50:7000"]);
        let script = user.client("LAB get 10.0.0.50:7000 1000000");
        user.within("my-network", &script).ok();
        user.ok("vnet peer rm my-network laptop");
        let cut = peer.run(&["timeout", "3", &lab_program, "get", "10.0.0.2:7000", "1000"]);
        assert!(!cut.is_ok(), "{}: {cut}", implementation.name());
    }
}

#[test]
fn namespaces_of_two_hosts_are_in_one_network_and_the_wire_shows_wireguard_only() {
    let name = "namespaces_of_two_hosts_are_in_one_network_and_the_wire_shows_wireguard_only";
    if is_skipped(name, &["tcpdump", "ip"]) {
        return;
    }
    let lab = Lab::new();
    let (near, far) = (lab.router(), lab.router());
    lab.join(&near, &far, "wire", 0);
    let (alice, bob) = (User::new(&lab, &near, "a"), User::new(&lab, &far, "b"));
    alice.ok("vnet create my-network --gateway 10.0.0.1/24 --listen 51820");
    let token = alice.ok("vnet token my-network --name host-b --members 2 --endpoint 198.51.100.1");
    let joined = bob.usernet_with(&["vnet", "join"], &token).ok();
    assert!(joined.contains("gateway at 198.51.100.1:51820"), "{joined}");
    assert!(bob.usernet_with(&["vnet", "join"], &token).err.contains("exists already"));

    let capture = lab.dir().join("run/wire.pcap");
    let capture = capture.to_string_lossy();
    let tcpdump =
        far.spawn_admin(&["tcpdump", "-i", "wire1", "-U", "-w", &capture]).wait_for("listening on");
    let _server = alice.serve("my-network,address=10.0.0.20,name=server", "0.0.0.0:7000");
    let script = bob.client("set -e; LAB get 10.0.0.20:7000 3000000; LAB echo 10.0.0.20:7000 0 1 1400 20000; getent hosts server.my-network");
    let seen = bob.within("my-network", &script).ok();
    assert!(seen.contains("10.0.0.20"), "{seen}");
    // The other way round, and beside another member of the same host.
    let _distant = bob.serve("my-network,name=host-b", "0.0.0.0:7000");
    let script = "LAB get 10.0.0.2:7000 1000000";
    alice.within("my-network", &alice.client(script)).ok();
    bob.within("my-network", &bob.client(script)).ok();
    tcpdump.signal(Signal::SIGINT);
    tcpdump.done_within(PATIENCE);

    let bytes = fs::metadata(&*capture).map_or(0, |meta| meta.len());
    assert!(bytes > 5_000_000, "all of it was captured: {bytes}");
    let count = |filter: &str| {
        let packets = far.run(&["tcpdump", "-n", "-r", &capture, filter]).ok();
        packets.lines().count()
    };
    assert!(count("udp port 51820") > 50, "trains of datagrams are one packet here");
    assert_eq!(count("ip and not (udp port 51820 and host 198.51.100.1 and host 198.51.100.2)"), 0);
    assert_eq!(count("net 10.0.0.0/24"), 0);

    let told = bob.refused("run --vnet my-network,name=other -- true");
    assert!(told.contains("the token is for"), "{told}");
    alice.ok("vnet peer rm my-network host-b");
    let cut = "timeout 3 LAB get 10.0.0.20:7000 1000 && exit 9; true";
    let done = bob.within("my-network", &bob.client(cut));
    assert!(done.is_ok(), "{done}");
    assert!(done.err.contains("its gateway does not answer at 198.51.100.1:51820"), "{done}");
    alice.ok("vnet stop my-network");
    let done = bob.within("my-network", "true");
    assert!(done.err.contains("it does not run or UDP does not get there"), "{done}");
}
