//! What the fuzz targets share: a world around one shard, driven by an input's bytes.
//!
//! [`world`] is the driver: it keeps every rule of the boundary (`usernet_core::op`), so that whatever goes wrong is
//! the core's fault. [`frames`] is the guest: packets whose headers are mostly sane. Nothing else
//! is random, so an input is a run.

#![forbid(unsafe_code)]

pub mod frames;
pub mod host;
pub mod ledger;
mod setup;
pub mod world;
