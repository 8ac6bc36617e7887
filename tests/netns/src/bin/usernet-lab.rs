//! The helper of the namespace tests: see [`usernet_lab::helper`].

use std::process::ExitCode;

fn main() -> ExitCode {
    usernet_lab::helper::main(std::env::args().skip(1).collect())
}
