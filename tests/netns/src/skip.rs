//! What a machine may truly lack, and how a test says so.
//!
//! A skipped test is visible: it writes `SKIP name: reason` to standard error and to the file that `USERNET_SKIPS`
//! names, which the test command shows and counts.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Says that the test of this name is skipped.
pub fn skip(name: &str, reason: &str) {
    let line = format!("SKIP {name}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("USERNET_SKIPS")
        && let Ok(mut file) = OpenOptions::new().append(true).open(path)
    {
        file.write_all(line.as_bytes()).expect("the list of skipped tests can be written");
    }
}

/// The same for the test that runs on this thread.
pub fn skip_this(reason: &str) {
    skip(std::thread::current().name().unwrap_or("a test"), reason);
}

/// Why nothing here can run on this machine, if so.
pub fn no_namespaces() -> Option<&'static str> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if tun.is_err() {
        return Some("/dev/net/tun cannot be opened");
    }
    let made = Command::new("unshare").args(["--user", "--net", "true"]).output();
    let is_allowed = made.is_ok_and(|output| output.status.success());
    (!is_allowed).then_some("user namespaces are forbidden")
}

/// Whether the kernel lets us use io_uring. Blocked by seccomp: `EPERM` or `ENOSYS`; switched off: `EPERM`.
pub fn has_io_uring() -> bool {
    // SAFETY: with no entries and no parameters io_uring_setup(2) can only fail.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<libc::c_void>()) };
    let error = std::io::Error::last_os_error().raw_os_error();
    result >= 0 || matches!(error, Some(libc::EINVAL | libc::EFAULT))
}

/// Whether the kernel has Landlock (Linux 5.13), and it is switched on.
pub fn has_landlock() -> bool {
    let version = 1_u32;
    // SAFETY: with no attributes, landlock_create_ruleset(2) only tells its version.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null_mut::<libc::c_void>(),
            0_usize,
            version,
        )
    };
    result > 0
}

/// Whether IPv6 is there.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether a program is installed.
pub fn has_program(name: &str) -> bool {
    let path = crate::lab::search_path();
    path.split(':').any(|folder| Path::new(folder).join(name).exists())
}

/// The reason why a test that needs these programs cannot run. `newuidmap` stands for containers as a whole.
pub fn missing(programs: &[&str]) -> Option<String> {
    if let Some(reason) = no_namespaces() {
        return Some(reason.to_owned());
    }
    if let Some(missing) = programs.iter().find(|program| !has_program(program)) {
        return Some(format!("{missing} is not installed"));
    }
    programs.contains(&"newuidmap").then(no_containers)?.map(str::to_owned)
}

/// Why [`Lab::machine`](crate::Lab::machine) cannot be made here, or no container run in it, if so.
pub fn no_containers() -> Option<&'static str> {
    static REASON: OnceLock<Option<&'static str>> = OnceLock::new();
    *REASON.get_or_init(|| {
        let uid = nix::unistd::geteuid();
        let lacks_ids = |file| crate::helper::machine::first_sub_id(file, uid.as_raw()).is_none();
        if !uid.is_root() && ["/etc/subuid", "/etc/subgid"].into_iter().any(lacks_ids) {
            return Some("the user has no 65536 subordinate ids in /etc/subuid and /etc/subgid");
        }
        // A container engine around us may have hidden parts of these; then they cannot be mounted anew.
        let script = "mount -t proc proc /proc && mount -t sysfs sysfs /sys";
        let unshare = ["--user", "--map-root-user", "--net", "--pid", "--mount", "--fork"];
        let made = Command::new("unshare").args(unshare).args(["sh", "-c", script]).output();
        let is_allowed = made.is_ok_and(|output| output.status.success());
        (!is_allowed).then_some("/proc and /sys cannot be mounted in a user namespace")
    })
}

/// Makes of each function two tests, one per backend:
///
/// ```text
/// on_both_backends! {
///     fn a_page_is_fetched(backend) needs ["curl"] { … }
/// }
/// ```
#[macro_export]
macro_rules! on_both_backends {
    ($($(#[$attribute:meta])* fn $name:ident($backend:ident) needs [$($program:literal),*] $body:block)+) => {$(
        $(#[$attribute])*
        fn $name($backend: $crate::Backend) $body

        mod $name {
            fn run(backend: $crate::Backend) {
                let name = format!("{} ({})", stringify!($name), backend);
                if let Some(reason) = $crate::skip::missing(&[$($program),*]) {
                    return $crate::skip::skip(&name, &reason);
                }
                if backend == $crate::Backend::IoUring && !$crate::skip::has_io_uring() {
                    return $crate::skip::skip(&name, "io_uring is forbidden");
                }
                super::$name(backend);
            }

            #[test]
            fn io_uring() {
                run($crate::Backend::IoUring);
            }

            #[test]
            fn epoll() {
                run($crate::Backend::Epoll);
            }
        }
    )+};
}
