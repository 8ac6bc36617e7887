//! CPU time: of processes with all their threads, and of the whole machine.

use std::fs;
use std::ops::Sub;

/// Clock ticks per second in /proc: `USER_HZ`, the same on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds, up to a moment or between two of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// Of the contender and all that it started.
    pub(crate) tool: f64,
    /// Of everything, interrupts and the clients included.
    pub(crate) machine: f64,
}

impl Cpu {
    /// What was used until now.
    pub(crate) fn now(processes: &[i32]) -> Self {
        let tool = processes.iter().map(|pid| process_ticks(*pid)).sum::<f64>() / TICKS_PER_SECOND;
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { tool, machine: machine_ticks(&stat) / TICKS_PER_SECOND }
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { tool: self.tool - before.tool, machine: self.machine - before.machine }
    }
}

/// Of the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. Idle time and what other
/// machines on the same hardware took are nobody's.
fn machine_ticks(stat: &str) -> f64 {
    let mut fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.by_ref().take(7).filter_map(|field| field.parse().ok()).collect();
    ticks.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum()
}

fn process_ticks(pid: i32) -> f64 {
    let ticks = |index| stat_field(pid, index).unwrap_or(0.0);
    ticks(11) + ticks(12)
}

/// A number of /proc/PID/stat, counted from the state, which is field 3 of proc(5).
fn stat_field(pid: i32, index: usize) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(") ")?.1;
    after_name.split_whitespace().nth(index)?.parse().ok()
}

/// How often the threads of a process have gone to sleep by themselves, and so woken up.
pub(crate) fn switches(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| -> Option<u64> {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line?.trim().parse().ok()
    };
    tasks.filter_map(of_task).sum()
}

/// A process and all that descend from it.
pub(crate) fn descendants(root: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat_field(pid, 1)? as i32)))
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_is_seen_to_wake_up() {
        let before = switches(std::process::id() as i32);
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(switches(std::process::id() as i32) > before);
    }

    #[test]
    fn time_in_which_nothing_ran_is_not_used() {
        assert_eq!(machine_ticks("cpu  1 2 4 1000 1000 8 16 1000 0 0\ncpu0 1"), 31.0);
    }
}
