//! Tunnels on a command line, and what they mean for the rest of a guest's network.
//!
//! | file | what it is |
//! |---|---|
//! | [`file`](self::file) | a tunnel's file, read and named; the addresses behind host names |
//! | `userspace` | the sockets by which `wg` reads and changes them |
//! | `way_out` | what is still reached beside the tunnels, and who resolves names |

pub mod file;
mod userspace;
mod way_out;

use std::path::PathBuf;

use usernet_core::rules::Prefix;
use usernet_wireguard::Config;

pub use file::TunnelFile;
pub(crate) use file::resolve_endpoints;
pub(crate) use userspace::serve;

/// A tunnel of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device's name in the namespace.
    pub name: String,
    /// Both ends of it.
    pub config: Config,
}

/// What a command line or a configuration file says of tunnels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// In the order given.
    pub(crate) files: Vec<TunnelFile>,
    /// What stays outside of them.
    pub(crate) split: Vec<Prefix>,
    /// Where their userspace API sockets are; none: nowhere.
    pub(crate) api: Option<PathBuf>,
    /// Nothing is reached but by tunnels.
    pub(crate) is_isolated: bool,
}
