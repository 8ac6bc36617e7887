//! Debian 13 in a folder: its Podman 5 is the first that uses `pasta` by default, and its wireguard-go the first that
//! cuts and joins datagrams in the kernel.
//!
//! `tests/dropin/trixie.sh` makes the folder, from Debian's mirrors; the test command calls it. `USERNET_TRIXIE` names
//! another folder than `target/trixie`.

use std::path::{Path, PathBuf};

/// The folder, if it was made to its end.
pub fn root() -> Option<PathBuf> {
    let folder = std::env::var_os("USERNET_TRIXIE").map_or_else(default_folder, PathBuf::from);
    folder.join("etc/usernet-packages").exists().then_some(folder)
}

/// Why tests cannot use it, if so.
pub fn missing() -> Option<&'static str> {
    root().is_none().then_some("no Debian 13 in target/trixie: see tests/dropin/trixie.sh")
}

fn default_folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    workspace.expect("tests/netns is two folders deep").join("target/trixie")
}
