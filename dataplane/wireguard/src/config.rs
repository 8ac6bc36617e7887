//! What a tunnel is told: the meaning of a file of wg-quick(8).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// A tunnel: our end of it, and its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our end.
    pub interface: Interface,
    /// The other ends, in the file's order.
    pub peers: Vec<Peer>,
}

/// `[Interface]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Who we are.
    pub private_key: PrivateKey,
    /// The addresses of the device, with their prefix lengths. The prefixes are routed by it.
    pub addresses: Vec<IpNet>,
    /// Who resolves names while the tunnel is up.
    pub dns: Vec<IpAddr>,
    /// Where names without a dot are looked for.
    pub search: Vec<String>,
    /// Bytes of IP; none: 1420, what is left of 1500 by the longest headers.
    pub mtu: Option<u16>,
    /// The UDP port; none: the kernel chooses.
    pub listen_port: Option<u16>,
    /// Where the routes of the peers' `AllowedIPs` go.
    pub table: Table,
}

/// `Table`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// The main table; a default route becomes the way out of the namespace.
    #[default]
    Auto,
    /// No routes.
    Off,
    /// This table of the namespace.
    Number(u32),
}

/// `[Peer]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who they are.
    pub public_key: PublicKey,
    /// A further secret, against those who break the others one day.
    pub preshared_key: Option<PresharedKey>,
    /// Where they are; none: wherever they call from.
    pub endpoint: Option<Endpoint>,
    /// Whose packets they may send, and get.
    pub allowed_ips: Vec<IpNet>,
    /// How long it may be silent, for the sake of address translation on the way.
    pub persistent_keepalive: Option<Duration>,
}

/// `Endpoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// A host name and a port: to be resolved when the tunnel is made.
    Name(String, u16),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}
