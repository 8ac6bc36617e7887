//! The command lines of slirp4netns and pasta, port specifications and all.
//!
//! The input is text, one argument per line. What is wrong is told in one line.

#![no_main]

use std::ffi::OsString;

use libfuzzer_sys::fuzz_target;
use usernet_control::{pasta, slirp4netns};

/// Arguments of one command line.
const ARGUMENTS_MAX: usize = 64;

fuzz_target!(|text: &str| {
    let arguments: Vec<OsString> = text.lines().take(ARGUMENTS_MAX).map(OsString::from).collect();
    for outcome in [slirp4netns::check(arguments.clone()), pasta::check(arguments)] {
        if let Err(told) = outcome {
            assert!(!told.trim().is_empty(), "an error says something");
            assert!(!told.trim_end().contains('\n'), "a message is one line: {told:?}");
        }
    }
});
