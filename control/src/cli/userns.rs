//! Why user namespaces are denied, and what mends it.
//!
//! The kernel says little: EPERM, ENOSPC or EUSERS. The reason stands in the switches: the limit of
//! the kernel itself (`user.max_user_namespaces`, namespaces(7)), Debian's
//! `kernel.unprivileged_userns_clone`, Ubuntu's AppArmor restriction (23.10 and later: the
//! namespace is made, and then every capability in it is denied), or a seccomp filter of the
//! container that we are in.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use nix::errno::Errno;

/// A reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// `user.max_user_namespaces` is 0, here or in an ancestor of this user namespace.
    NoneAllowed,
    /// The limit is not 0, but reached; or namespaces are nested too deep.
    Limit,
    /// `kernel.unprivileged_userns_clone` is 0.
    CloneSwitch,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1.
    AppArmor,
    /// A seccomp filter is in force, and nothing else explains it.
    Seccomp,
    /// The kernel has no user namespaces.
    NotBuilt,
}

impl Denial {
    /// The command that mends it.
    pub(crate) fn remedy(self) -> String {
        match self {
            Self::NoneAllowed | Self::Limit => "sudo sysctl -w user.max_user_namespaces=65536",
            Self::CloneSwitch => "sudo sysctl -w kernel.unprivileged_userns_clone=1",
            Self::AppArmor => "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            Self::Seccomp => "start the container with --security-opt seccomp=unconfined",
            Self::NotBuilt => "boot a kernel with CONFIG_USER_NS=y, or run usernet as root",
        }
        .to_owned()
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneAllowed => "the limit user.max_user_namespaces is 0",
            Self::Limit => "the limit user.max_user_namespaces is reached",
            Self::CloneSwitch => {
                "ordinary users may not make any (kernel.unprivileged_userns_clone is 0)"
            }
            Self::AppArmor => {
                "AppArmor denies capabilities in user namespaces \
                 (kernel.apparmor_restrict_unprivileged_userns is 1)"
            }
            Self::Seccomp => "a seccomp filter denies it (container runtimes have one by default)",
            Self::NotBuilt => "the kernel has no user namespaces",
        })
    }
}

/// The switches under /proc.
#[derive(Clone, Debug)]
pub(crate) struct Sysctls {
    /// `/proc`, or a stand-in for it.
    proc: PathBuf,
}

impl Sysctls {
    /// Those of this system.
    pub(crate) fn system() -> Self {
        Self { proc: "/proc".into() }
    }

    /// The value of a switch, named as sysctl(8) does; none if there is no such switch.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let path = self.proc.join("sys").join(name.replace('.', "/"));
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    }

    /// The same, for a switch that is a number.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// Whether a seccomp filter is in force for this process.
    pub(crate) fn is_filtered(&self) -> bool {
        fs::read_to_string(self.proc.join("self/status"))
            .is_ok_and(|status| status.lines().any(|line| line == "Seccomp:\t2"))
    }
}

/// The likely reason for this answer to an attempt to make or use a user namespace; none: it is
/// something else.
pub(crate) fn denial(sysctls: &Sysctls, errno: Errno) -> Option<Denial> {
    match errno {
        Errno::EINVAL | Errno::ENOSYS => Some(Denial::NotBuilt),
        Errno::ENOSPC | Errno::EUSERS => Some(limit(sysctls)),
        Errno::EPERM | Errno::EACCES => permission(sysctls),
        _ => None,
    }
}

fn limit(sysctls: &Sysctls) -> Denial {
    match sysctls.number("user.max_user_namespaces") {
        Some(0) => Denial::NoneAllowed,
        Some(_) | None => Denial::Limit,
    }
}

fn permission(sysctls: &Sysctls) -> Option<Denial> {
    if sysctls.number("kernel.unprivileged_userns_clone") == Some(0) {
        Some(Denial::CloneSwitch)
    } else if sysctls.number("kernel.apparmor_restrict_unprivileged_userns") == Some(1) {
        Some(Denial::AppArmor)
    } else if sysctls.number("user.max_user_namespaces") == Some(0) {
        Some(Denial::NoneAllowed)
    } else if sysctls.is_filtered() {
        Some(Denial::Seccomp)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for /proc with these switches.
    fn sysctls(name: &str, switches: &[(&str, &str)]) -> Sysctls {
        let proc =
            std::env::temp_dir().join(format!("usernet-sysctl-{}-{name}", std::process::id()));
        fs::remove_dir_all(&proc).ok();
        for (switch, value) in switches {
            let path = proc.join("sys").join(switch.replace('.', "/"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        Sysctls { proc }
    }

    #[test]
    fn each_switch_is_named_when_it_is_the_cause() {
        let clone = sysctls("clone", &[("kernel.unprivileged_userns_clone", "0")]);
        assert_eq!(denial(&clone, Errno::EPERM), Some(Denial::CloneSwitch));
        let apparmor = sysctls("aa", &[("kernel.apparmor_restrict_unprivileged_userns", "1")]);
        assert_eq!(denial(&apparmor, Errno::EPERM), Some(Denial::AppArmor));
        let none = sysctls("none", &[("user.max_user_namespaces", "0")]);
        assert_eq!(denial(&none, Errno::ENOSPC), Some(Denial::NoneAllowed));
        let some = sysctls("some", &[("user.max_user_namespaces", "7")]);
        assert_eq!(denial(&some, Errno::ENOSPC), Some(Denial::Limit));
        assert_eq!(denial(&some, Errno::EINVAL), Some(Denial::NotBuilt));
        assert_eq!(denial(&some, Errno::EPERM), None);
        assert_eq!(denial(&some, Errno::EIO), None);
        for stand_in in [clone, apparmor, none, some] {
            fs::remove_dir_all(stand_in.proc).unwrap();
        }
    }
}
