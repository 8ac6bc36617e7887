//! Tunnels on a command line, and what they mean for the rest of a guest's network.
//!
//! | file | what it is |
//! |---|---|
//! | `file` | a tunnel's file, read and named; the addresses behind host names |
//! | `settings` | the configuration file of the tools that we stand in for |
//! | `userspace` | the sockets by which `wg` reads and changes them |
//! | `way_out` | what is still reached beside the tunnels, and who resolves names |

pub mod file;
mod settings;
mod userspace;
mod way_out;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use usernet_core::rules::Prefix;
use usernet_wireguard::Config;

pub use file::TunnelFile;
pub(crate) use file::resolve_endpoints;
pub(crate) use settings::settings;
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

/// A network; without a length an address.
pub(crate) fn network(text: &str) -> Result<Prefix, String> {
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let net = net.ok_or("write ADDRESS/LENGTH, as in 192.0.2.0/24 or 2001:db8::/32")?.trunc();
    Ok(Prefix { address: net.addr(), len: net.prefix_len() })
}
