//! A machine of a test's own whose ordinary user is logged in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use usernet_lab::helper::machine::{home, runtime_dir};
use usernet_lab::lab::search_path;
use usernet_lab::{Done, Lab, Namespace, Running, wait_until};

use crate::trixie;

/// How long a program may take for what it is asked. One that hangs is ended and its output shown.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Which distribution the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// The one the tests run on.
    Installed,
    /// Debian 13: [`crate::trixie`].
    Debian13,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    lab: Lab,
    home: PathBuf,
    runtime_dir: PathBuf,
}

impl Machine {
    /// A new one, with a default route. `folder`, in the lab's, comes first where programs are looked for.
    pub fn new(system: System, first: impl FnOnce(&Lab) -> PathBuf) -> Self {
        let lab = match system {
            System::Installed => Lab::machine(None),
            System::Debian13 => {
                Lab::machine(Some(&trixie::root().expect("a test says what it needs")))
            }
        };
        // Nobody answers there; but a machine has routes, and some tools look for them.
        lab.host().ip("route add default via 192.0.2.254\nroute add default via 2001:db8::fe");
        let uid = lab.host().run(&["id", "-u"]).ok().trim().parse().expect("a number");
        let (home, runtime_dir) = (home(lab.dir()), runtime_dir(uid));
        let first = first(&lab);
        let machine = Self { lab, home, runtime_dir };
        machine.make_session(&first);
        machine
    }

    /// A program that runs another one with the environment that the user has after login.
    fn make_session(&self, first: &Path) {
        let (home, runtime_dir) = (self.home.display(), self.runtime_dir.display());
        let script = format!(
            "#!/bin/sh\ncd {home}\nexport HOME={home} TMPDIR={home} XDG_RUNTIME_DIR={runtime_dir}\n\
             PATH={}:{home}/bin:{}\nexec \"$@\"\n",
            first.display(),
            search_path()
        );
        let path = self.lab.program("session");
        let write = "printf %s \"$2\" >$1; chmod 755 $1";
        self.host().run(&["sh", "-c", write, "sh", &path, &script]).ok();
    }

    /// The machine's own namespaces.
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

    /// The user's runtime folder.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// Makes a file in the user's home.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.home.join(path).to_string_lossy().into_owned();
        let script = "mkdir -p \"$(dirname \"$1\")\" && printf %s \"$2\" >\"$1\"";
        self.host().run(&["sh", "-c", script, "sh", &path, text]).ok();
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

    /// Waits until nothing [remains](Self::remains).
    #[track_caller]
    pub fn must_be_clean(&self) {
        let mut left = String::new();
        let is_clean = wait_until(Duration::from_secs(10), || {
            left = self.remains();
            left.is_empty()
        });
        assert!(is_clean, "left behind:\n{left}");
    }

    /// What there is now of containers and networks: processes and network namespaces. An engine keeps one process,
    /// which holds its user namespace.
    pub fn remains(&self) -> String {
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
