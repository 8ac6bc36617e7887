//! The control socket: JSON requests over a unix stream socket, one per line, one line of answer each.
//!
//! ```text
//! → {"version":1,"id":7,"method":"forward.add","params":{"forwards":["8080:80/tcp"]}}
//! ← {"version":1,"id":7,"result":{"forwards":[{"id":3,"spec":"8080:80/tcp","listening":["0.0.0.0:8080","[::]:8080"]}]}}
//! ← {"version":1,"id":7,"error":{"code":"port_in_use","message":"port 8080/tcp is in use by nginx (pid 812)"}}
//! ```
//!
//! [`message`] has the shapes, [`Client`] asks, the server (part of the daemon's control thread) answers. The server
//! can speak another protocol on its socket: see `protocol`.
//! `docs/control-api.md` describes the same for other languages.

mod client;
mod lines;
pub mod message;
pub(crate) mod protocol;
pub(crate) mod server;
pub(crate) mod socket;

pub use client::{Client, ClientError};
pub use message::{
    ApiError, Call, ErrorCode, FlowEntry, FlowParams, Flows, Forwarded, Forwards, Network,
    Response, Status, TunnelPeer, TunnelStatus, Usage,
};
pub use socket::SocketError;

/// The version of the protocol. A daemon answers requests of its own version only.
pub const VERSION: u32 = 1;

/// The longest request, in bytes, newline included.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The longest answer that a [`Client`] reads.
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;
