//! WireGuard: what a tunnel is told ([`Config`], its keys, files and requests), and the tunnel itself.
#![forbid(unsafe_code)]

pub mod conf;
pub mod config;
pub mod key;
pub mod tunnel;
pub mod uapi;

pub use config::{Config, Endpoint, Interface, Peer, Table};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use tunnel::Tunnel;
