//! The engine of `usernetd`: a network namespace's frames on one side, host sockets on the other.
//!
//! This crate is *sans-IO*. It has no clock, no random numbers and no system calls: a driver feeds a
//! [`Shard`] one [`Input`] at a time and runs the [`Op`]s that come out of it. Four things drive the
//! same code: the io_uring driver, the epoll driver, the simulator and the fuzzer.
//!
//! ```text
//! shard.handle(now, input, &mut outbox);   // one input; the ops it causes go to the outbox
//! shard.flush(now, &mut outbox);           // end of turn: coalesced ACKs, merged sends
//! shard.flush_amid_frames(now, &mut outbox); // before that, any number of times: sends alone
//! shard.next_deadline();                   // when to come back with Input::Tick
//! shard.check();                           // all invariants; simulator and debug builds
//! ```
//!
//! Payload is never copied nor summed here: the core points at it by [`Span`]s of leased buffers.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod config;
pub mod counters;
pub mod flows;
pub mod op;
pub mod packet;
pub mod rules;
pub mod time;
pub mod tunnel;

mod context;
mod datagram;
mod dns;
mod hash;
mod index;
mod neighbors;
mod outward;
mod ownership;
mod ping;
mod reassembly;
mod services;
mod shard;
mod sockets;
mod table;
mod tcp;
#[cfg(test)]
mod testing;
mod udp;
mod wheel;

pub use config::{Config, ShardId, Share};
pub use counters::{Counter, Counters};
pub use flows::{FlowInfo, FlowKind};
pub use op::{
    AcceptedId, ForwardId, HostError, Input, LeaseId, LocalId, Offload, Op, Outbox, PeekedThen,
    SocketId, Span,
};
pub use ownership::Ownership;
pub use rules::Rules;
pub use shard::{Shard, TableFull, Why};
pub use tcp::LentFlow;
pub use time::Instant;
pub use tunnel::{Tunnel, TunnelOut};
