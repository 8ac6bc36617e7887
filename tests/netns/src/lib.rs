//! Namespaces for tests and measurements with real programs.
//!
//! # Theory of operation
//!
//! No packet leaves the machine, and none needs a privilege: the *host* of a test is a network namespace of its own,
//! in a user namespace of an ordinary user. `usernetd` runs in it without any capability, as on a machine; the guest is
//! a namespace below it, in a user namespace of the same user.
//!
//! ```text
//! the machine
//! └─ host: user, mount and network namespace             ← programs of the host side, usernetd
//!    │  lo, wan0 (192.0.2.1, 2001:db8::1), /etc over an overlay
//!    ├─ router: network namespace, as many as wanted      ← what is farther away
//!    └─ guest: user, mount and network namespace           ← programs of the guest, tap0
//! ```
//!
//! Each namespace is held by a process of the helper program (`usernet-lab`, module [`helper`]), which ends when
//! its standard input does; so nothing is left behind even when a test is killed. Programs enter a namespace through
//! the same helper, run in a process group of their own and are killed when their [`Running`] is dropped.
//!
//! Run as root, the helper first becomes an ordinary user that owns nothing else.

pub mod daemon;
pub mod helper;
pub mod lab;
pub mod process;
pub mod skip;
pub mod trixie;
pub mod tunnel;
pub mod wireguard;

pub use daemon::{Backend, Daemon};
pub use lab::{GUEST4, GUEST6, Lab, Namespace, WAN4, WAN6, serial, wan_addresses};
pub use process::{Done, Running, pass, wait_until};
