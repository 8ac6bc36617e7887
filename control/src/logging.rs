//! What is told on standard error. The packet path tells nothing; it counts.

use std::io::IsTerminal;

use tracing::Level;

use crate::options::{LogFormat, LogLevel};

/// Sends log lines to standard error from here on.
pub(crate) fn start(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let lines = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second start in one process (tests) leaves the first one in charge.
    let _ = match format {
        LogFormat::Text => lines.with_target(false).without_time().compact().try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}
