//! A deterministic simulation of a whole system around one `usernet_core::Shard`, or up to three that share the guest.
//!
//! ```text
//! smoltcp, applications ── link that loses, repeats, reorders, delays, damages ── Shard ── host side with faults ── remote applications
//!        guest                                    link                        under test       host
//! ```
//!
//! Time is simulated and chance is seeded: a seed is a run, and a failing one is repeated by
//! `cargo run -p usernet-sim -- --scenario NAME --seed N --trace`. The fuzzer drives the same code with its bytes in the
//! place of the seed.
//!
//! # What is checked
//!
//! - Streams and datagrams hold bytes that follow from their position, so every byte is checked at both ends
//!   ([`pattern`], [`mail`]).
//! - Leases are counted where they are handed over ([`ledger`]); ops are checked against the rules of the boundary
//!   ([`host`]).
//! - A witness on the link checks sequence numbers, windows, lengths and checksums of everything that the core
//!   says ([`watch`]).
//! - FIN and RST reach the other end, and only if somebody sent them ([`conversation`]).
//! - At the end every table is empty and no deadline is left ([`world`]).

pub mod choice;
pub mod conversation;
pub mod env;
pub mod fleet;
pub mod guest;
pub mod host;
pub mod ledger;
pub mod link;
pub mod mail;
pub mod pattern;
pub mod scenario;
pub mod watch;
pub mod world;

mod cut;
mod trace;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use choice::Choices;
pub use scenario::Scenario;
pub use world::Summary;

/// Runs one simulation. Panics where the core does wrong.
pub fn run(scenario: Scenario, choices: Choices, is_traced: bool) -> Summary {
    scenario::build(scenario, choices, is_traced).run()
}

/// Runs what a fuzzer's bytes say: the first chooses the scenario, the others everything else. Panics where the core
/// does wrong.
pub fn run_bytes(bytes: &[u8], is_traced: bool) -> Option<Summary> {
    let (&first, rest) = bytes.split_first()?;
    let scenario = Scenario::ALL[usize::from(first) % Scenario::ALL.len()];
    let mut world = scenario::build(scenario, Choices::from_bytes(rest), is_traced);
    // Built for a fuzzer, smoltcp takes every checksum for right: what is damaged would reach the guest's
    // applications. The core does no such thing.
    world.to_guest.faults.corrupt = 0;
    Some(world.run())
}

/// Runs the simulation of a seed; what went wrong, with the command that repeats it.
pub fn run_seed(scenario: Scenario, seed: u64) -> Result<Summary, String> {
    let simulate = || run(scenario, Choices::from_seed(seed), false);
    catch_unwind(AssertUnwindSafe(simulate)).map_err(|panic| {
        let why = panic.downcast_ref::<String>().cloned();
        let why = why.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        format!(
            "{}\nrepeat: cargo run -p usernet-sim -- --scenario {} --seed {seed} --trace",
            why.unwrap_or_default(),
            scenario.name()
        )
    })
}
