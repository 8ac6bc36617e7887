//! What is told on standard error. The packet path tells nothing; it counts.
//!
//! What did not work out is kept too, whatever the log level, for those who ask for the status later: see
//! [`Warnings`]. What is worth knowing there and too little for a warning on standard error is told at a lower level,
//! with [`FOR_STATUS`] as its target.

use std::fmt::{Debug, Write};
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::log_file::LimitedFile;
use crate::plan::{Log, LogFormat};

/// The most warnings that are kept.
const WARNINGS_MAX: usize = 64;

/// As many of them are the first ones: what is wrong from the start stays to be seen.
const WARNINGS_FIRST: usize = WARNINGS_MAX / 2;

/// The target of what is kept though it is no warning.
pub(crate) const FOR_STATUS: &str = "usernetd::status";

/// Sends log lines to standard error, or to the file, from here on, and keeps the warnings among them.
pub(crate) fn start(log: Log, file: Option<LimitedFile>) -> Warnings {
    let is_terminal = file.is_none() && std::io::stderr().is_terminal();
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Mutex::new(file)),
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let lines = tracing_subscriber::fmt::layer().with_ansi(is_terminal).with_writer(writer);
    let lines = match log.format {
        LogFormat::Text => lines.with_target(false).without_time().compact().boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let warnings = Warnings::default();
    let told = lines.with_filter(LevelFilter::from_level(log.level));
    // A second start in one process (tests) leaves the first one in charge.
    let _ = tracing_subscriber::registry().with(told).with(warnings.layer()).try_init();
    warnings
}

/// What did not work out, oldest first. Clones are one list; it has a limit, and each line stands in it once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// What hears them. Filtered, so that nobody makes a line that nobody wants.
    fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let is_kept = |event: &Metadata<'_>| {
            *event.level() <= LevelFilter::WARN || event.target() == FOR_STATUS
        };
        self.clone().with_filter(filter_fn(is_kept))
    }

    /// What there is by now.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.locked().clone()
    }

    fn keep(&self, line: String) {
        let mut lines = self.locked();
        if lines.contains(&line) {
            return;
        }
        if lines.len() == WARNINGS_MAX {
            lines.remove(WARNINGS_FIRST);
        }
        lines.push(line);
    }

    /// Nothing that is done while it is locked can panic half way.
    fn locked(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        self.keep(message.0);
    }
}

/// The text of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of what is told.
    fn kept(tell: impl FnOnce()) -> Vec<String> {
        let warnings = Warnings::default();
        let subscriber = tracing_subscriber::registry().with(warnings.layer());
        tracing::subscriber::with_default(subscriber, tell);
        warnings.lines()
    }

    #[test]
    fn warnings_errors_and_what_is_for_the_status_are_kept_once_and_nothing_else() {
        let lines = kept(|| {
            for port in [80, 81, 80] {
                tracing::warn!("port {port} is in use");
            }
            tracing::info!("all is well");
            tracing::debug!(target: FOR_STATUS, "port 82 is not followed");
            tracing::error!("\"quoted\"");
        });
        let expected =
            ["port 80 is in use", "port 81 is in use", "port 82 is not followed", "\"quoted\""];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_first_ones_and_the_latest_are_kept() {
        let lines = kept(|| (0..1_000).for_each(|n| tracing::warn!("{n}")));
        assert_eq!(lines.len(), WARNINGS_MAX);
        assert_eq!(lines[WARNINGS_FIRST - 1], (WARNINGS_FIRST - 1).to_string());
        assert_eq!(lines[WARNINGS_FIRST], (1_000 - WARNINGS_FIRST).to_string());
        assert_eq!(lines[WARNINGS_MAX - 1], "999");
    }
}
