//! How the caller is told that the network is ready.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::control::{self, Control, Facts};
use crate::daemon::DaemonError;
use crate::forwards::Direction;
use crate::plan::{Announcement, LogFormat};

/// Everything that is told at that moment.
pub(crate) struct Readiness {
    /// The caller's descriptor.
    pub(crate) ready: Option<OwnedFd>,
    /// What standard output gets.
    pub(crate) announcement: Announcement,
    /// The TAP's descriptor.
    pub(crate) tap: RawFd,
    /// What standard input, output and error become.
    pub(crate) released: Option<OwnedFd>,
    /// When the program was started.
    pub(crate) started: Instant,
}

impl Readiness {
    /// Tells the caller and prints the one line.
    pub(crate) fn tell(self, control: &Control) -> Result<(), DaemonError> {
        let took = control.facts.ready.duration_since(self.started);
        let line = match self.announcement {
            Announcement::Nothing => None,
            Announcement::Summary(format) => Some(summary(control, format, took)),
            Announcement::TapAnd(text) => {
                let (fd, tap) = (self.tap, &control.facts.tap);
                let lines = format!("sent tapfd={fd} for {tap}\nreceived tapfd={fd}\n");
                let _ = io::stderr().write_all(lines.as_bytes());
                Some(text)
            }
        };
        // Before the caller is told: it may wait for the end of what we say.
        if let Some(null) = &self.released {
            let released = dup2_stdin(null).and_then(|()| dup2_stdout(null));
            let released = released.and_then(|()| dup2_stderr(null));
            released.map_err(DaemonError::system("let go of standard output"))?;
        }
        if let Some(ready) = self.ready {
            File::from(ready).write_all(b"1").map_err(DaemonError::Ready)?;
        }
        if let Some(line) = line {
            // Standard output may be closed: the network is there all the same.
            let mut out = io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
        Ok(())
    }
}

/// The one line that says what was set up.
fn summary(control: &Control, format: LogFormat, took: Duration) -> String {
    let Facts { netns, tap, config, .. } = &control.facts;
    let networks = [control::network4(config), control::network6(config)];
    let networks: Vec<_> = networks.into_iter().flatten().collect();
    let specs = |direction: Direction| -> Vec<String> {
        let entries = control.forwards.entries().iter();
        entries.filter(|e| e.direction == direction).map(|e| e.spec.to_string()).collect()
    };
    let (forwards, outward) = (specs(Direction::Inward), specs(Direction::Outward));
    let backend = control.handle.status().map_or("ended", |s| control::backend_name(s.backend));
    let ready_ms = took.as_secs_f64() * 1e3;
    match format {
        LogFormat::Json => serde_json::json!({
            "tap": tap, "netns": netns, "networks": networks, "mtu": config.mtu,
            "forwards": forwards, "outward": outward, "backend": backend, "ready_ms": ready_ms,
        })
        .to_string(),
        LogFormat::Text => {
            let addresses =
                networks.iter().map(|n| format!("{}/{} via {}", n.guest, n.prefix, n.gateway));
            let dns = networks.iter().filter_map(|n| n.dns).map(|dns| dns.to_string());
            let mut forwards =
                if forwards.is_empty() { "none".to_owned() } else { forwards.join(" ") };
            if !outward.is_empty() {
                forwards = format!("{forwards}, outward {}", outward.join(" "));
            }
            format!(
                "usernetd: {tap} in {netns}: {}, dns {}, mtu {}, forwards {forwards}, {backend}, \
                 ready in {ready_ms:.1} ms",
                addresses.collect::<Vec<_>>().join(", "),
                dns.collect::<Vec<_>>().join(" "),
                config.mtu,
            )
        }
    }
}
