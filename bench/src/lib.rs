//! What the core costs, without a machine around it: logs of inputs that are replayed through a shard.
//!
//! [`counts`] counts their instructions, `benches/core.rs` takes their time.

pub mod counts;
pub mod replay;
