//! Drives the engine of `usernetd` on Linux.
//!
//! A [`Runtime`] is one or more workers, a thread and a [`usernet_core::Shard`] each. A worker owns a queue of the TAP, its
//! shard's host-side sockets and packet memory and the clock, feeds the shard its inputs and runs the ops that come out.
//! Two backends do the waiting and the batches, and pass the same tests:
//!
//! - **epoll**, on `mio`: edge triggered, one system call per frame and per socket operation;
//! - **io_uring**: the TAP is read by one multishot request into buffers that the kernel picks from a ring,
//!   readiness comes from multishot polls, and what goes out goes out in batches.
//!
//! A tunnel has a thread of its own ([`tunnel`]).
//!
//! A [`Handle`] reaches into a running [`Runtime`] from another thread: status, flows, new rules, the end.

mod address;
mod arena;
mod backend;
mod backlog;
mod bufring;
mod busy;
pub mod caps;
mod capture;
mod connect;
mod control;
mod counters;
mod courtesy;
mod datagram;
pub mod detach;
mod engine;
mod epoll;
mod errno;
mod errqueue;
mod events;
mod exec;
mod handover;
mod held;
mod lending;
mod listen;
mod locals;
pub mod mailbox;
pub mod namespace;
mod pacing;
pub mod retry;
mod runtime;
pub mod setup;
mod splice;
mod stream;
mod sys;
mod table;
mod tap;
pub mod tunnel;
mod uring;
mod vnet;

pub use caps::Caps;
pub use mailbox::{Gone, Handle, Install, InstallError, NewListener, Status};
pub use runtime::{Ended, Runtime, Worker, conclude};
pub use setup::{
    BUSY_POLL, BackendChoice, DriverError, Lend, Link, LinkKind, LinkOffload, NamespaceSockets,
    Outbound, Setup, Threads,
};
pub use stream::TCP_INQ;
pub use tunnel::{ListenError, TunnelEnded, TunnelHandle, TunnelWorker, Wire};
