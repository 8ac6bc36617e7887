//! What the kernel lets us make: namespaces, devices, rings, id maps.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{User, getegid, geteuid};

use super::super::child::{self, Report};
use super::super::namespaces::{self, Step, StepFailed};
use super::super::userns::Sysctls;
use super::{Check, Verdict};

const TUN_PATH: &str = "/dev/net/tun";

/// Room for `struct io_uring_params`, as of Linux 5.1 and unchanged since.
const RING_PARAMS_BYTES: usize = 120;

nix::ioctl_write_ptr_bad!(
    /// Makes the device of a descriptor of /dev/net/tun.
    tun_set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes a user namespace, with all that `usernet run` does in it.
pub(super) fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    match in_child(|| namespaces::isolate_network(geteuid(), getegid())) {
        Ok(()) => Check::ok(NAME, "one was made, with network and mount namespaces in it"),
        Err(failed) => {
            let remedy = failed.help().unwrap_or_else(|| "run usernet as root".to_owned());
            let (status, cost) = if namespaces::is_privileged() {
                (Verdict::Degraded, "none for root")
            } else {
                (Verdict::Missing, "only root can run and create namespaces")
            };
            Check::bad(NAME, status, failed.to_string().replace("\n ", ";"), cost, remedy)
        }
    }
}

/// Opens the TUN device here, where the user's permissions count.
pub(super) fn tun_device() -> Check {
    const NAME: &str = "/dev/net/tun";
    const COST: &str = "no device can be made in a namespace: nothing works";
    let missing =
        |finding: String, remedy: &str| Check::bad(NAME, Verdict::Missing, finding, COST, remedy);
    match fs::metadata(TUN_PATH) {
        Err(error) => return missing(error.to_string(), "sudo modprobe tun"),
        Ok(meta) if !meta.file_type().is_char_device() => {
            return missing("is not a device".to_owned(), "sudo modprobe tun");
        }
        Ok(_) => {}
    }
    match open_tun() {
        Ok(_) => Check::ok(NAME, "can be opened"),
        Err(error) => {
            let remedy = match error.raw_os_error() {
                Some(libc::EACCES) => "sudo chmod 0666 /dev/net/tun",
                // The device controller of the control group, in a container.
                Some(libc::EPERM) => "start the container with --device /dev/net/tun",
                Some(_) | None => "sudo modprobe tun",
            };
            missing(error.to_string(), remedy)
        }
    }
}

/// Makes a TAP in a new namespace.
pub(super) fn tap_in_namespace() -> Check {
    const NAME: &str = "TAP in a namespace";
    let made = in_child(|| {
        if namespaces::is_privileged() {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| StepFailed::at(Step::Unshare)(e.into()))?;
        } else {
            namespaces::isolate_network(geteuid(), getegid())?;
        }
        make_tap().map_err(StepFailed::at(Step::Device))
    });
    match made {
        Ok(()) => Check::ok(NAME, "one was made"),
        Err(failed) => Check::bad(
            NAME,
            Verdict::Missing,
            failed.to_string().replace("\n ", ";"),
            "nothing works",
            failed.help().unwrap_or_else(|| "mend /dev/net/tun and user namespaces first".into()),
        ),
    }
}

/// Makes a ring.
pub(super) fn io_uring(sysctls: &Sysctls) -> Check {
    const NAME: &str = "io_uring";
    let error = match make_ring() {
        Ok(_) => return Check::ok(NAME, "a ring was made"),
        Err(error) => error,
    };
    let (cause, remedy) = match sysctls.number("kernel.io_uring_disabled") {
        Some(2) => {
            ("kernel.io_uring_disabled is 2", "sudo sysctl -w kernel.io_uring_disabled=0".into())
        }
        Some(1) => {
            ("kernel.io_uring_disabled is 1 and we are not in its group", ring_group(sysctls))
        }
        _ if sysctls.is_filtered() => (
            "a seccomp filter denies it (a container runtime's default profile does)",
            "start the container with --security-opt seccomp=unconfined".to_owned(),
        ),
        _ => ("the kernel has none", "boot a kernel with CONFIG_IO_URING=y".to_owned()),
    };
    let cost = "epoll is used instead: more system calls when there are many small packets";
    Check::bad(NAME, Verdict::Degraded, format!("{error}; {cause}"), cost, remedy)
}

fn ring_group(sysctls: &Sysctls) -> String {
    match sysctls.number("kernel.io_uring_group") {
        Some(group) if group >= 0 => {
            format!("sudo usermod -aG \"$(getent group {group} | cut -d: -f1)\" \"$USER\"")
        }
        Some(_) | None => format!("sudo sysctl -w kernel.io_uring_group={}", getegid()),
    }
}

/// The ranges that `--subids` maps, and the programs that map them.
pub(super) fn subordinate_ids() -> Check {
    const NAME: &str = "subordinate ids";
    const COST: &str = "--subids does not work: inside, only root's own id exists";
    let degraded = |finding: String, remedy: String| {
        Check::bad(NAME, Verdict::Degraded, finding, COST, remedy)
    };
    for helper in ["newuidmap", "newgidmap"] {
        if !is_in_path(helper) {
            return degraded(
                format!("{helper} is not installed"),
                "sudo apt install uidmap".into(),
            );
        }
    }
    let user = geteuid();
    let name = User::from_uid(user).ok().flatten().map(|user| user.name);
    for table in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        if namespaces::subid_range(&text, user, name.as_deref()).is_none() {
            let who = name.clone().unwrap_or_else(|| user.to_string());
            let remedy = format!(
                "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who}"
            );
            return degraded(format!("{table} has no range for {who}"), remedy);
        }
    }
    Check::ok(NAME, "there are ranges in /etc/subuid and /etc/subgid")
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Does something to a process that is gone afterwards.
fn in_child(attempt: impl FnOnce() -> Result<(), StepFailed>) -> Result<(), StepFailed> {
    let outcome = child::spawn(|line| {
        let report = attempt().map_or_else(Report::Failed, |()| Report::Ready);
        line.send(&report).map_or(1, |()| 0)
    });
    let (pid, line) = outcome.map_err(StepFailed::at(Step::Line))?;
    let report = line.receive::<Report>().map_err(StepFailed::at(Step::Line));
    waitpid(pid, None).ok();
    match report? {
        Some(Report::Ready) => Ok(()),
        Some(Report::Failed(failed)) => Err(failed),
        Some(Report::Unshared | Report::NotExecuted(_)) | None => {
            Err(StepFailed { step: Step::Line, errno: 0, detail: "it ended".into() })
        }
    }
}

fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(Path::new(TUN_PATH))
}

fn make_tap() -> io::Result<()> {
    let tun = open_tun()?;
    // SAFETY: all zeroes is a valid ifreq: a name without characters and a union of plain numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: the request lives until the call returns, and the kernel reads and writes one ifreq.
    unsafe { tun_set_interface(tun.as_raw_fd(), &request) }?;
    Ok(())
}

fn make_ring() -> io::Result<OwnedFd> {
    let mut params = [0u64; RING_PARAMS_BYTES / 8];
    // SAFETY: the parameters live until the call returns, and have the size that the kernel reads
    // and writes.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(is_in_path("sh"));
        assert!(!is_in_path("no-such-program-anywhere"));
    }
}
