//! What a person writes: forwards, and the whole command line of the daemon.
//!
//! The input is text, one argument per line. Whatever parses has a canonical form that means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use usernet_control::options::Options;
use usernet_control::spec::Spec;

/// Arguments of one command line.
const ARGUMENTS_MAX: usize = 64;

fuzz_target!(|text: &str| {
    for line in text.lines().take(ARGUMENTS_MAX) {
        match line.parse::<Spec>() {
            Ok(spec) => {
                let shown = spec.to_string();
                assert_eq!(
                    shown.parse::<Spec>().as_ref(),
                    Ok(&spec),
                    "{line:?} shown as {shown:?}"
                );
            }
            Err(error) => {
                let message = error.to_string();
                assert!(!message.contains('\n'), "a message is one line: {message:?}");
            }
        }
    }
    let arguments = std::iter::once("usernetd").chain(text.lines()).take(ARGUMENTS_MAX);
    if let Err(error) = Options::checked(arguments) {
        assert!(!error.render().to_string().is_empty(), "an error says something");
    }
});
