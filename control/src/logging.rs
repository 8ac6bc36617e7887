//! What is told on standard error. The packet path tells nothing; it counts.

use std::io::IsTerminal;

use crate::plan::{Log, LogFormat};

/// Sends log lines to standard error from here on.
pub(crate) fn start(log: Log) {
    let lines = tracing_subscriber::fmt()
        .with_max_level(log.level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second start in one process (tests) leaves the first one in charge.
    let _ = match log.format {
        LogFormat::Text => lines.with_target(false).without_time().compact().try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}
