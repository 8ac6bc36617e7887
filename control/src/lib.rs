//! Control: everything of `usernetd` and `usernet` that is not the data path.
//!
//! | module | what it is |
//! |---|---|
//! | [`daemon`] | from a plan to the running data path, and back |
//! | [`cli`] | `usernet`, the control CLI |
//! | [`program`] | which program we are, by the name we are called by |
//! | [`options`] | the command line of `usernetd` |
//! | [`slirp4netns`], [`pasta`] | the command lines of the tools we stand in for |
//! | [`plan`] | what each of these command lines becomes |
//! | [`sandbox`] | what the daemon gives up when it is set up |
//! | [`networks`] | the guest's networks and addresses |
//! | [`spec`] | forwards as text |
//! | [`wireguard`] | tunnels: their files, and what they mean for the rest |
//! | [`forwards`] | the forwards in force |
//! | [`api`] | the control socket: shapes and client |

pub mod api;
mod attach;
pub mod cli;
pub mod daemon;
pub mod forwards;
pub mod networks;
pub mod options;
pub mod pasta;
pub mod plan;
pub mod program;
pub mod sandbox;
pub mod slirp4netns;
pub mod spec;
pub mod wireguard;

mod announcement;
#[cfg(test)]
mod compat_table;
mod control;
mod getopt;
mod host;
mod inherited;
mod keeper;
mod log_file;
mod logging;
mod owned_path;
mod resolv;
mod tunnels;
