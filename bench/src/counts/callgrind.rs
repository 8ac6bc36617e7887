//! Runs one case under callgrind, and reads what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::replay::MEASURED_PART;

/// Has the C library choose among its variants of `memcpy` and the like as on a processor without extensions, under the
/// names that different versions of it have for them. What it does not know it ignores.
const PLAIN_PROCESSOR: &str = "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-AVX512F,-AVX512VL,-ERMS,-FSRM,\
                               -AVX_Fast_Unaligned_Load,-Fast_Unaligned_Copy";

/// What a replay came to.
#[derive(Debug)]
pub struct Counts {
    /// Of the measured part.
    pub instructions: u64,
    /// Of what the case counts.
    pub units: u64,
    /// Where the instructions were spent, if that was asked for.
    pub profile: Option<String>,
}

/// Counts the instructions of a case, replayed by `program`.
pub fn count(program: &Path, case: &str, is_profiled: bool) -> Result<Counts, String> {
    let out = if is_profiled { profile_path(case) } else { PathBuf::from("/dev/null") };
    let replayed = output(
        Command::new("valgrind")
            .args(["--tool=callgrind", "--collect-atstart=no"])
            .arg(format!("--toggle-collect={MEASURED_PART}"))
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(program)
            .args(["replay", case])
            .env("GLIBC_TUNABLES", PLAIN_PROCESSOR),
    )?;
    let units = String::from_utf8_lossy(&replayed.stdout).trim().parse();
    let units = units.map_err(|_| "it does not say what it replayed".to_owned())?;
    let instructions = collected(&String::from_utf8_lossy(&replayed.stderr))?;
    let profile = is_profiled.then(|| annotated(&out)).transpose()?;
    Ok(Counts { instructions, units, profile })
}

fn profile_path(case: &str) -> PathBuf {
    let name: String = case.chars().filter(char::is_ascii_alphanumeric).collect();
    std::env::temp_dir().join(format!("usernet-counts-{}-{name}", std::process::id()))
}

/// What a program says; an error with its last words, if it fails.
fn output(command: &mut Command) -> Result<Output, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// The number in callgrind's line `==PID== Collected : 123456`.
fn collected(said: &str) -> Result<u64, String> {
    let number = |line: &str| line.split_once("Collected : ")?.1.trim().parse().ok();
    match said.lines().find_map(number) {
        Some(0) => Err("the measured part was not found: is the program stripped?".to_owned()),
        Some(instructions) => Ok(instructions),
        None => Err(format!("callgrind does not say what it has collected:\n{said}")),
    }
}

/// Functions by the instructions in themselves.
fn annotated(out: &Path) -> Result<String, String> {
    let annotated = output(Command::new("callgrind_annotate").arg("--auto=no").arg(out));
    std::fs::remove_file(out).map_err(|e| format!("{}: {e}", out.display()))?;
    Ok(String::from_utf8_lossy(&annotated?.stdout).into_owned())
}
