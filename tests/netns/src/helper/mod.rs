//! The helper program: holds namespaces, enters them, and plays simple servers and clients.
//!
//! | command | what it does |
//! |---|---|
//! | `host DIR`, `guest RESOLV_CONF`, `router` | makes namespaces, says `ready`, holds them until its input ends |
//! | `enter PID admin\|user -- COMMAND` | becomes a command in the namespaces of a process |
//! | `cable …` | a cable between two TAPs that loses, delays and reorders: [`cable`] |
//! | `serve`, `get`, … | traffic: [`peers`] |
//!
//! It has one thread while it deals with namespaces.

pub mod cable;
mod namespaces;
pub use namespaces::TEST_USER;
pub mod peers;

use std::error::Error;
use std::process::ExitCode;

/// What a command ends with.
pub type Outcome = Result<(), Box<dyn Error>>;

/// The whole program.
pub fn main(args: Vec<String>) -> ExitCode {
    let parts: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match parts.as_slice() {
        ["host", dir] => namespaces::hold_host(dir.as_ref()),
        ["guest", resolv_conf] => namespaces::hold_guest(resolv_conf.as_ref()),
        ["router"] => namespaces::hold_router(),
        ["enter", pid, rights, "--", command @ ..] => namespaces::enter(pid, rights, command),
        ["cable", rest @ ..] => cable::main(rest),
        [peer, rest @ ..] => peers::main(peer, rest),
        [] => Err("which command?".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("usernet-lab {}: {error}", parts.join(" "));
            ExitCode::FAILURE
        }
    }
}
