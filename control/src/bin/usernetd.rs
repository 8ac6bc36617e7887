//! `usernetd`: see [`usernet_control::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    usernet_control::daemon::main()
}
