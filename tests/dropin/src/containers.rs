//! Rootless containers on a machine of a test's own.
//!
//! Engine, runtime and storage are the distribution's; what a user would have in `~/.config/containers` selects the
//! tool under test. The one image has BusyBox in it, and every container gets the lab's own traffic program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use usernet_lab::lab::search_path;
use usernet_lab::{Done, Lab, Namespace, Running, wait_until};

use crate::tool::installed;
use crate::{Tool, trixie};

/// How long an engine may take for what it is asked. One that hangs is ended and its output shown.
const PATIENCE: Duration = Duration::from_secs(60);

/// The image.
pub const IMAGE: &str = "localhost/busybox";

/// Where engines look for their helpers, in all distributions.
const HELPER_FOLDERS: [&str; 6] = [
    "/usr/local/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/libexec/podman",
    "/usr/lib/podman",
    "/usr/local/bin",
    "/usr/bin",
];

/// A machine whose user runs containers with the tool under test.
#[derive(Debug)]
pub struct Containers {
    lab: Lab,
    home: PathBuf,
    runtime_dir: PathBuf,
}

impl Containers {
    /// A new machine with what is installed here, the image, and nothing else.
    pub fn new(tool: Tool) -> Self {
        Self::on(Lab::machine(None), tool)
    }

    /// The same with Debian 13, [`crate::trixie`].
    pub fn trixie(tool: Tool) -> Self {
        let root = trixie::root().expect("a test says its needs");
        Self::on(Lab::machine(Some(&root)), tool)
    }

    fn on(lab: Lab, tool: Tool) -> Self {
        // Nobody answers there; but a machine has routes, and some tools look for them.
        lab.host().ip("route add default via 192.0.2.254\nroute add default via 2001:db8::fe");
        let uid = lab.host().run(&["id", "-u"]).ok().trim().parse().expect("a number");
        let home = usernet_lab::helper::machine::home(lab.dir());
        let runtime_dir = usernet_lab::helper::machine::runtime_dir(uid);
        let machine = Self { lab, home, runtime_dir };
        machine.make_session();
        machine.configure(tool);
        machine.import();
        machine
    }

    /// A program that runs another one with the environment that the user has after login.
    fn make_session(&self) {
        let (home, runtime_dir) = (self.home.display(), self.runtime_dir.display());
        let script = format!(
            "#!/bin/sh\ncd {home}\nexport HOME={home} TMPDIR={home} XDG_RUNTIME_DIR={runtime_dir}\n\
             PATH={home}/bin:{}\nexec \"$@\"\n",
            search_path()
        );
        let path = self.lab.program("session");
        self.host()
            .run(&["sh", "-c", "printf %s \"$2\" >$1; chmod 755 $1", "sh", &path, &script])
            .ok();
    }

    /// `~/.config/containers`. cgroups are not this project's matter, and a machine that is made for tests seldom
    /// has any that an ordinary user may use.
    fn configure(&self, tool: Tool) {
        let folder = tool.folder(&self.lab).to_string_lossy().into_owned();
        let folders = std::iter::once(&*folder).chain(HELPER_FOLDERS);
        let folders: Vec<String> = folders.map(|folder| format!("{folder:?}")).collect();
        let mut engine = format!("helper_binaries_dir = [{}]\n", folders.join(", "));
        if tool.name == "slirp4netns" {
            engine += &format!("network_cmd_path = {:?}\n", tool.path(&self.lab));
        }
        let dir = self.lab.dir().display();
        let containers = format!(
            "[containers]\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n\
             volumes = [\"{dir}/usernet-lab:/usernet-lab:ro\", \"/lib:/lib:ro\", \"/lib64:/lib64:ro\"]\n\
             [network]\ndefault_rootless_network_cmd = \"{}\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n{engine}",
            tool.name
        );
        self.write(".config/containers/containers.conf", &containers);
        // Overlays want more of a machine, vfs copies a few megabytes.
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}/storage\"\nrunroot = \"{}/containers\"\n",
            self.home.display(),
            self.runtime_dir.display()
        );
        self.write(".config/containers/storage.conf", &storage);
    }

    /// Makes a file in the user's home.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.home.join(path).to_string_lossy().into_owned();
        let script = "mkdir -p \"$(dirname \"$1\")\" && printf %s \"$2\" >\"$1\"";
        self.lab.host().run(&["sh", "-c", script, "sh", &path, text]).ok();
    }

    fn import(&self) {
        let busybox = installed("busybox").expect("a test says its needs");
        let copy = self.lab.dir().join("busybox");
        let status = Command::new("install").arg("-m755").arg(busybox).arg(&copy).status();
        assert!(status.is_ok_and(|status| status.success()), "busybox cannot be copied");
        let script = format!(
            "mkdir -p image/bin image/etc image/tmp image/www/cgi-bin && cp {} image/bin && \
             for name in $(image/bin/busybox --list); do ln -s busybox image/bin/$name; done 2>/dev/null; \
             echo 'root:x:0:0::/:/bin/sh' >image/etc/passwd && echo 'root:x:0:' >image/etc/group && \
             tar -c -C image . | podman import --quiet - {IMAGE} && rm -r image",
            copy.display()
        );
        self.run(&["sh", "-c", &script]).ok();
    }

    /// The machine.
    pub fn host(&self) -> &Namespace {
        self.lab.host()
    }

    /// Its lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The user's home.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Runs a program in the user's session.
    pub fn run(&self, args: &[&str]) -> Done {
        self.spawn(args).done_within(PATIENCE)
    }

    /// Starts a program in the user's session.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let session = self.lab.program("session");
        self.host().spawn(&[&[&*session], args].concat())
    }

    /// Runs `podman`.
    pub fn podman(&self, args: &[&str]) -> Done {
        self.run(&[&["podman"], args].concat())
    }

    /// A container that runs a script and is gone afterwards; the script's output.
    #[track_caller]
    pub fn once(&self, options: &[&str], script: &str) -> String {
        let image = [IMAGE, "sh", "-c", script];
        self.podman(&[&["run", "--rm"], options, &image].concat()).ok()
    }

    /// Starts a container with this name, and waits until its program says `ready`.
    #[track_caller]
    pub fn start(&self, name: &str, options: &[&str], command: &[&str]) {
        let start = ["run", "--detach", "--name", name];
        self.podman(&[&start, options, &[IMAGE], command].concat()).ok();
        self.wait_for_ready(name);
    }

    /// Waits until a container's program says `ready`.
    #[track_caller]
    pub fn wait_for_ready(&self, name: &str) {
        let mut logs = String::new();
        let is_ready = wait_until(PATIENCE, || {
            let done = self.podman(&["logs", name]);
            logs = done.to_string();
            done.out.ends_with("ready\n")
        });
        assert!(is_ready, "{name} is not ready: {logs}");
    }

    /// Starts a container whose traffic program serves on these addresses.
    #[track_caller]
    pub fn serve(&self, name: &str, options: &[&str], addresses: &[&str]) {
        self.start(name, options, &[&["/usernet-lab", "serve"], addresses].concat());
    }

    /// Runs a shell script in a container.
    pub fn sh(&self, name: &str, script: &str) -> Done {
        self.podman(&["exec", name, "sh", "-c", script])
    }

    /// Runs the traffic program in a container.
    pub fn peer(&self, name: &str, args: &[&str]) -> Done {
        self.podman(&[&["exec", name, "/usernet-lab"], args].concat())
    }

    /// Serves `www` of the user's home over HTTP, at `ADDRESS:PORT` in a namespace.
    #[track_caller]
    pub fn web_server(&self, namespace: &Namespace, address: &str) -> Running {
        let folder = self.home.join("www").to_string_lossy().into_owned();
        let busybox = self.lab.program("busybox");
        let server =
            namespace.spawn_admin(&[&busybox, "httpd", "-f", "-p", address, "-h", &folder]);
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.expect("an address ends with a port");
        assert!(wait_until(PATIENCE, || namespace.listens_on(port)), "{}", server.err());
        server
    }

    /// Removes all containers and pods; then nothing may be left of their networks.
    #[track_caller]
    pub fn remove_all(&self) {
        self.podman(&["pod", "rm", "--all", "--force", "--time=0"]).ok();
        self.podman(&["rm", "--all", "--force", "--time=0"]).ok();
        let mut left = String::new();
        let is_clean = wait_until(Duration::from_secs(10), || {
            left = self.remains();
            left.is_empty()
        });
        assert!(is_clean, "left behind:\n{left}");
    }

    /// Processes and network namespaces of containers that there are now. The engine itself keeps one process, which
    /// holds its user namespace.
    fn remains(&self) -> String {
        let lab = self.lab.program("usernet-lab");
        let processes = self.host().admin(&[&lab, "processes"]);
        let known = [&*lab, &*self.lab.program("busybox"), " dnsmasq ", "catatonit -P"];
        let left = processes.lines().filter(|line| !known.iter().any(|name| line.contains(name)));
        let namespaces = self.find("netns", "f");
        left.map(str::to_owned).chain(namespaces).collect::<Vec<_>>().join("\n")
    }

    /// Sockets of containers that there are now.
    pub fn sockets(&self) -> String {
        self.find("libpod/tmp", "s").collect::<Vec<_>>().join("\n")
    }

    /// Files of a type below a part of the runtime folder, which need not be there.
    fn find(&self, part: &str, kind: &str) -> impl Iterator<Item = String> + use<> {
        let folder = self.runtime_dir.join(part);
        let found = self.host().run(&["find", &folder.to_string_lossy(), "-type", kind]).out;
        found.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
    }
}

/// A resolver at the address that the host's resolv.conf names. It knows one name.
pub fn resolver(lab: &Lab, name: &str, answer: &str) -> Running {
    let known = format!("--address=/{name}/{answer}");
    let options = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
    let more = ["--bind-interfaces", "--pid-file=", "--user=", "--log-facility=-"];
    let which = ["--listen-address=192.0.2.1", &*known];
    lab.host()
        .spawn_admin(&[&["dnsmasq"][..], &options, &more, &which].concat())
        .wait_for("started")
}
