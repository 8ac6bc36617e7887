//! `usernetd` in the place of slirp4netns: its command line, its API, its messages.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::daemon;
use crate::program::Program;

/// The whole program. `args` has no name in front.
pub fn main(args: Vec<OsString>) -> ExitCode {
    drop(args);
    daemon::fail(Program::Slirp4netns, "not built in yet: use usernetd --netns")
}
