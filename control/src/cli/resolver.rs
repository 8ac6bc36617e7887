//! The resolv.conf of a namespace.
//!
//! Inside, DNS is asked at the addresses that the daemon answers on; what the host's file says
//! about how names are completed (`search`, `domain`, `options`, `sortlist`) is kept. The file lies
//! in the directory of its instance and is bound over /etc/resolv.conf in the new mount namespace,
//! so nothing on the host changes.
//!
//! On many hosts /etc/resolv.conf is a symlink into /run, at times a dangling one. `move_mount(2)`
//! does not follow it (mount(2) does): the mount lies on the link itself, and it does not matter
//! where that leads. Where the new mount calls are not to be had, the target is covered instead.
//! Where the file is absent there is nothing to cover: then /etc is replaced by a tmpfs of symlinks
//! into the old /etc, with a resolv.conf beside them.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// More than this is not read of the host's file.
const HOST_FILE_BYTES_MAX: u64 = 64 << 10;

/// `MAXNS` of the C libraries.
const SERVERS_MAX: usize = 3;

/// Where the old /etc lies when it had to be replaced.
const OLD_ETC: &str = ".usernet-host-etc";

/// The host's file; empty if there is none.
pub(crate) fn host_text() -> String {
    let mut text = String::new();
    if let Ok(file) = fs::File::open("/etc/resolv.conf") {
        file.take(HOST_FILE_BYTES_MAX).read_to_string(&mut text).ok();
    }
    text
}

/// The resolvers in a file. The interface of a link-local one (`fe80::1%eth0`) is left out.
pub(crate) fn servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        let address = words.next().filter(|_| is_server)?;
        address.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

/// The file for inside.
pub(crate) fn text(host: &str, servers: impl IntoIterator<Item = IpAddr>) -> String {
    let mut text = String::from("# Made by usernet: DNS goes through usernetd.\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for line in host.lines().map(str::trim) {
        let keyword = line.split_ascii_whitespace().next().unwrap_or_default();
        if matches!(keyword, "search" | "domain" | "options" | "sortlist") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The file for inside where tunnels have resolvers: nobody else's, and where names without a dot are looked for neither.
pub(crate) fn text_of_tunnels(
    host: &str,
    servers: impl IntoIterator<Item = IpAddr>,
    search: &[String],
) -> String {
    let mut text = String::from("# Made by usernet: DNS goes through tunnels.\n");
    // More are not read (resolv.conf(5)).
    for server in servers.into_iter().take(SERVERS_MAX) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    for line in host.lines().map(str::trim).filter(|line| line.starts_with("options")) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Puts `source` in the place of `etc/resolv.conf`, in this mount namespace.
pub(crate) fn install(source: &Path, etc: &Path) -> io::Result<()> {
    let target = etc.join("resolv.conf");
    if fs::symlink_metadata(&target).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        replace_etc(source, etc)?;
    }
    cover(source, &target)
}

fn cover(source: &Path, target: &Path) -> io::Result<()> {
    match cover_unfollowed(source, target) {
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            bind(source, target, MsFlags::MS_BIND)
        }
        other => Ok(other?),
    }
}

fn cover_unfollowed(source: &Path, target: &Path) -> rustix::io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags)?;
    move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Covers /etc with a tmpfs that shows the same and has a resolv.conf.
fn replace_etc(source: &Path, etc: &Path) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let old = open_tree(CWD, etc, flags)?;
    mount(Some("usernet-etc"), etc, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=1m"))?;
    let inner = etc.join(OLD_ETC);
    fs::create_dir(&inner)?;
    move_mount(&old, "", CWD, &inner, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    for entry in fs::read_dir(&inner)? {
        let name = entry?.file_name();
        symlink(Path::new(OLD_ETC).join(&name), etc.join(&name))?;
    }
    fs::copy(source, etc.join("resolv.conf")).map(drop)
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> io::Result<()> {
    Ok(mount(Some(source), target, None::<&str>, flags, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found() {
        let text =
            "#nameserver 1.1.1.1\nnameserver 9.9.9.9\n nameserver fe80::1%eth0 \nnameserver x\n";
        assert_eq!(servers(text), ["9.9.9.9", "fe80::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn with_a_tunnel_only_the_hosts_options_are_kept() {
        let host = "nameserver 127.0.0.53\nsearch corp.example\noptions edns0\n";
        let servers = ["10.64.0.1", "fd00:64::1", "10.64.0.2", "10.64.0.3"];
        let servers = servers.map(|ip| ip.parse().unwrap());
        assert_eq!(
            text_of_tunnels(host, servers, &["a.example".to_owned(), "b.example".to_owned()]),
            "# Made by usernet: DNS goes through tunnels.\nnameserver 10.64.0.1\n\
             nameserver fd00:64::1\nnameserver 10.64.0.2\nsearch a.example b.example\noptions edns0\n"
        );
    }

    #[test]
    fn servers_are_replaced_and_the_rest_is_kept() {
        let host = "# comment\nnameserver 127.0.0.53\n  search corp.example lab.example\n\
                    options edns0 trust-ad\ndomain x\nnonsense\n";
        let servers = ["10.0.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        assert_eq!(
            text(host, servers),
            "# Made by usernet: DNS goes through usernetd.\nnameserver 10.0.2.3\n\
             nameserver fd00::3\nsearch corp.example lab.example\noptions edns0 trust-ad\ndomain x\n"
        );
    }
}
