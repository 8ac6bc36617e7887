//! The runtime against real kernels on both sides: a TAP in a fresh namespace, sockets on the host's loopback. Every
//! test runs over both backends. Needs root.

#[macro_use]
mod guest;

mod datagrams;
mod lending;
mod outward;
mod packets;
mod streams;
