//! The helper program: holds namespaces, enters them, and plays simple servers and clients.
//!
//! | command | what it does |
//! |---|---|
//! | `host DIR`, `guest RESOLV_CONF`, `router` | makes namespaces, says `ready`, holds them until its input ends |
//! | `machine DIR [ROOT]` | a host with all that an ordinary user needs who runs containers: [`machine`] |
//! | `enter PID admin\|user -- COMMAND` | becomes a command in the namespaces of a process |
//! | `processes` | lists what runs in its user namespace and below |
//! | `cable …` | a cable between two TAPs that loses, delays and reorders: [`cable`] |
//! | `plug PID NAME SOCKET` | a TAP whose frames go by a `SOCK_SEQPACKET` socket |
//! | `bare PID NAME` | the least that a translator does: [`bare`] |
//! | `with-tap PID NAME FD -- COMMAND` | becomes a command that has a TAP of another namespace open |
//! | `flood …`, `count …` | datagrams by the hundred thousand: [`flood`] |
//! | `many …` | connections by the thousand: [`many`] |
//! | `serve`, `get`, … | traffic: [`peers`] |
//! | `ping-pong`, `storm` | traffic that is measured: [`load`] |
//!
//! It has one thread while it deals with namespaces.

pub mod bare;
pub mod cable;
pub mod flood;
mod load;
pub mod machine;
pub mod many;
mod namespaces;
pub use namespaces::TEST_USER;
pub mod peers;
mod remains;

use std::error::Error;
use std::process::ExitCode;

/// What a command ends with.
pub type Outcome = Result<(), Box<dyn Error>>;

/// The whole program.
pub fn main(args: Vec<String>) -> ExitCode {
    let parts: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match parts.as_slice() {
        ["host", dir] => namespaces::hold_host(dir.as_ref()),
        ["machine", dir] => machine::hold_machine(dir.as_ref(), None),
        ["machine", dir, root] => machine::hold_machine(dir.as_ref(), Some(root.as_ref())),
        ["processes"] => remains::list(),
        ["map", pid] => machine::map(pid),
        ["guest", resolv_conf] => namespaces::hold_guest(resolv_conf.as_ref()),
        ["router"] => namespaces::hold_router(),
        ["enter", pid, rights, "--", command @ ..] => namespaces::enter(pid, rights, command),
        ["cable", rest @ ..] => cable::main(rest),
        ["bare", rest @ ..] => bare::main(rest),
        ["plug", pid, name, socket] => cable::plug(pid, name, socket),
        ["with-tap", pid, name, fd, "--", command @ ..] => cable::with_tap(pid, name, fd, command),
        [load @ ("ping-pong" | "storm"), rest @ ..] => load::main(load, rest),
        ["flood", rest @ ..] => flood::flood(rest),
        ["many", rest @ ..] => many::main(rest),
        ["count", rest @ ..] => flood::count(rest),
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
