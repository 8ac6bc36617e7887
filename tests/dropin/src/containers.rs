//! Rootless containers on a machine of a test's own.
//!
//! Engine, runtime and storage are the distribution's; what a user would have in `~/.config/containers` selects the
//! tool under test. The one image has BusyBox in it, and every container gets the lab's own traffic program.

use std::ops::Deref;
use std::process::Command;

use usernet_lab::{Done, wait_until};

use crate::machine::{Machine, PATIENCE, System};
use crate::tool::{Tool, installed};

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
    machine: Machine,
}

impl Deref for Containers {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Containers {
    /// A new machine with the image and nothing else.
    pub fn new(system: System, tool: Tool) -> Self {
        let machine = Machine::new(system, |lab| tool.folder(lab));
        let new = Self { machine };
        new.configure(tool);
        new.import();
        new
    }

    /// `~/.config/containers`. cgroups are not this project's matter, and a machine that is made for tests seldom
    /// has any that an ordinary user may use.
    fn configure(&self, tool: Tool) {
        let folder = tool.folder(self.lab()).to_string_lossy().into_owned();
        let folders = std::iter::once(&*folder).chain(HELPER_FOLDERS);
        let folders: Vec<String> = folders.map(|folder| format!("{folder:?}")).collect();
        let mut engine = format!("helper_binaries_dir = [{}]\n", folders.join(", "));
        if tool.name == "slirp4netns" {
            engine += &format!("network_cmd_path = {:?}\n", tool.path(self.lab()));
        }
        let dir = self.lab().dir().display();
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
            self.home().display(),
            self.runtime_dir().display()
        );
        self.write(".config/containers/storage.conf", &storage);
    }

    fn import(&self) {
        let busybox = installed("busybox").expect("a test says its needs");
        let copy = self.lab().dir().join("busybox");
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

    /// Removes all containers and pods; then nothing may be left of their networks.
    #[track_caller]
    pub fn remove_all(&self) {
        self.podman(&["pod", "rm", "--all", "--force", "--time=0"]).ok();
        self.podman(&["rm", "--all", "--force", "--time=0"]).ok();
        self.must_be_clean();
    }
}
