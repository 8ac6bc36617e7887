//! `usernet doctor`: what is missing on this system, what that costs, and the command that mends
//! it.
//!
//! Where it can, a check does the thing instead of reading about it: it makes a namespace, a TAP, a
//! ring, a ping socket. The switches are read only to tell the cause. What is made is made in a
//! child that ends at once, so nothing stays behind.

mod network;
mod podman;
mod privilege;

use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use super::error::{Error, status};
use super::output::{self, Output};
use super::userns::Sysctls;

/// Checks what usernet needs from this system.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  usernet doctor
  usernet doctor --json | jq -r '.checks[] | select(.status != \"ok\").remedy'

Exit status: 0 if a command in a namespace gets network, though something else may be missing;
1 if it does not; 2 for a wrong command line.";

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Something does not work, or not as well.
    Degraded,
    /// The main job does not work.
    Missing,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was looked at.
    name: &'static str,
    /// How it is.
    status: Verdict,
    /// How that is known.
    finding: String,
    /// What does not work because of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<String>,
    /// The command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, status: Verdict::Ok, finding: finding.into(), cost: None, remedy: None }
    }

    fn bad(
        name: &'static str,
        status: Verdict,
        finding: impl Into<String>,
        cost: &str,
        remedy: impl Into<String>,
    ) -> Self {
        let (cost, remedy) = (Some(cost.to_owned()), Some(remedy.into()));
        Self { name, status, finding: finding.into(), cost, remedy }
    }
}

/// Does it.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<ExitCode, Error> {
    let sysctls = Sysctls::system();
    let checks = [
        privilege::user_namespaces(),
        privilege::tun_device(),
        privilege::tap_in_namespace(),
        privilege::io_uring(&sysctls),
        privilege::subordinate_ids(),
        network::ping(&sysctls),
        network::low_ports(&sysctls),
        network::resolvers(),
        network::ipv4_route(),
        network::ipv6_route(),
    ];
    let checks: Vec<Check> = checks.into_iter().chain(podman::tools()).collect();
    let is_fit = checks.iter().all(|check| check.status != Verdict::Missing);
    args.output.print(|| json!({ "ok": is_fit, "checks": checks }), || text(&checks, is_fit));
    Ok(if is_fit { ExitCode::SUCCESS } else { ExitCode::from(status::FAILURE) })
}

fn text(checks: &[Check], is_fit: bool) -> String {
    let is_colored = output::is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut text = String::new();
    for check in checks {
        let (word, color) = match check.status {
            Verdict::Ok => ("ok", 32),
            Verdict::Degraded => ("degraded", 33),
            Verdict::Missing => ("missing", 31),
        };
        let word = format!("{word:<8}");
        let word = if is_colored { format!("\x1b[{color}m{word}\x1b[0m") } else { word };
        text.push_str(&format!("{word}  {:<24} {}\n", check.name, check.finding));
        for (label, line) in [("cost", &check.cost), ("mend", &check.remedy)] {
            if let Some(line) = line {
                text.push_str(&format!("{:10}{label}: {line}\n", ""));
            }
        }
    }
    text.push_str(if is_fit {
        "\nA command in a namespace gets network here.\n"
    } else {
        "\nA command in a namespace does not get network here: mend what is missing.\n"
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_its_cost_and_remedy() {
        let bad = Check::bad("ping", Verdict::Degraded, "range is 1 0", "no ping", "sysctl x");
        let text = text(&[Check::ok("tun", "there"), bad], true);
        assert!(text.contains("ok        tun"));
        assert!(text.contains("cost: no ping\n          mend: sysctl x"), "{text}");
        assert!(text.ends_with("gets network here.\n"));
    }
}
