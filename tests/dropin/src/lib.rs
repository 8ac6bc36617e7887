//! `usernetd` in the place of `slirp4netns` and `pasta`: what tests of it share.
//!
//! A test states a behaviour once, and [`both_tools!`](crate::both_tools) makes two tests of it: `…::reference` runs
//! the tool as it is installed, `…::ours` runs `usernetd` under the tool's name. So a difference between the two is
//! seen as a difference, and a wrong idea of what the tool does as well. Where the original is known to fall short,
//! the test says so as data (`reference_fails`, or `reference_races` if only at times), and is then a test of that too.
//!
//! Namespaces, programs and traffic are those of [`usernet_lab`].

pub mod containers;
pub mod machine;
pub mod pasta;
pub mod slirp;
pub mod tool;

pub use containers::Containers;
pub use machine::{Machine, System};
pub use slirp::Slirp;
pub use tool::{Kind, Tool};
pub use usernet_lab::{self, trixie};
