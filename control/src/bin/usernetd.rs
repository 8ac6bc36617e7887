//! `usernetd`: see [`usernet_control::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    usernet_control::program::main()
}
