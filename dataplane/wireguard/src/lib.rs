//! WireGuard: what a tunnel is told ([`Config`], its keys), and the tunnel itself.
#![forbid(unsafe_code)]

pub mod config;
pub mod key;

pub use config::{Config, Endpoint, Interface, Peer, Table};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
