//! Where and with what was measured.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use usernet_lab::Lab;

/// What decides about throughput besides the programs.
const SYSCTLS: [&str; 6] = [
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_allowed_congestion_control",
    "net/core/wmem_max",
    "net/core/rmem_max",
];

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    /// As the lab's host sees them; what its namespace does not have is the machine's.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Versions of the tools that measure.
    pub(crate) tools: BTreeMap<String, String>,
}

impl Machine {
    pub(crate) fn of(lab: &Lab) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpus = read("/proc/cpuinfo");
        let model =
            cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let memory = read("/proc/meminfo");
        let memory_kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        let sysctl = |name: &&str| {
            let path = format!("/proc/sys/{name}");
            let seen = lab.host().run(&["cat", &path]);
            let value = if seen.is_ok() { seen.out } else { read(&path) };
            let words: Vec<&str> = value.split_whitespace().collect();
            (name.replace('/', "."), words.join(" "))
        };
        let tools = [("iperf3", "--version"), ("wrk", "-v"), ("nginx", "-v")];
        Self {
            processor: model.unwrap_or("unknown processor").to_owned(),
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: memory_kib.unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            sysctls: SYSCTLS.iter().map(sysctl).collect(),
            tools: tools
                .iter()
                .filter_map(|(name, flag)| Some(((*name).to_owned(), version(name, flag)?)))
                .collect(),
        }
    }

    /// In one line.
    pub(crate) fn summary(&self) -> String {
        let congestion = self.sysctls.get("net.ipv4.tcp_congestion_control");
        format!(
            "{} cores, {}, {} MiB, Linux {}, {} by default",
            self.cores,
            self.processor,
            self.memory_mib,
            self.kernel,
            congestion.map_or("unknown congestion control", String::as_str),
        )
    }
}

/// The first line of what a program says about its version, wherever it says it.
pub(crate) fn version(program: &str, flag: &str) -> Option<String> {
    let done = Command::new(program)
        .env("PATH", usernet_lab::lab::search_path())
        .arg(flag)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = [done.stdout, done.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}
