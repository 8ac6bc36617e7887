//! `usernet`: see [`usernet_control::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    usernet_control::cli::main()
}
