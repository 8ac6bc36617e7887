//! Control: everything of `usernetd` and `usernet` that is not the data path.
//!
//! | module | what it is |
//! |---|---|
//! | [`daemon`] | `usernetd`: from the command line to the running data path, and back |
//! | [`cli`] | `usernet`, the control CLI |
//! | [`options`] | the command line of `usernetd` |
//! | [`networks`] | the guest's networks and addresses |
//! | [`spec`] | forwards as text |
//! | [`forwards`] | the forwards in force |
//! | [`api`] | the control socket: shapes and client |

pub mod api;
pub mod cli;
pub mod daemon;
pub mod forwards;
pub mod networks;
pub mod options;
pub mod spec;

mod control;
mod host;
mod inherited;
mod logging;
mod owned_path;
mod resolv;
