//! Counting is repeatable, and a case that costs more is noticed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bench::counts::count;
use usernet_lab::skip::{has_program, skip};

const BENCH: &str = env!("CARGO_BIN_EXE_bench");
const CASE: &str = "ping of a host";

fn has_valgrind(test: &str) -> bool {
    let has = has_program("valgrind");
    if !has {
        skip(test, "valgrind is not installed");
    }
    has
}

#[test]
fn a_case_costs_the_same_every_time() {
    if !has_valgrind("a_case_costs_the_same_every_time") {
        return;
    }
    let instructions = || {
        let counts = count(Path::new(BENCH), CASE, false).expect("it can be counted");
        assert_eq!(counts.units, 512);
        counts.instructions
    };
    assert_eq!(instructions(), instructions());
}

/// Counts [`CASE`] against a reference of so many instructions, made by the build that is tested, or by another one.
fn counts_against(name: &str, instructions: f64, is_same_build: bool) -> Output {
    let path = reference(name);
    let bench = |args: &[&str]| {
        let mut command = Command::new(BENCH);
        command.arg("counts").args(args).arg("--reference").arg(&path);
        command.output().expect("bench runs")
    };
    let built_by = if is_same_build { env!("BUILT_BY") } else { "another compiler" };
    let text = serde_json::json!({ "built_by": built_by, "instructions": { CASE: instructions } });
    std::fs::write(&path, text.to_string()).expect("a file can be written");
    let output = bench(&["--case", CASE]);
    std::fs::remove_file(&path).expect("it is there");
    output
}

fn reference(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("usernet-{name}-{}.json", std::process::id()))
}

#[test]
fn a_case_that_costs_more_than_the_reference_fails() {
    if !has_valgrind("a_case_that_costs_more_than_the_reference_fails") {
        return;
    }
    let more = counts_against("more", 10.0, true);
    let said = String::from_utf8_lossy(&more.stdout);
    assert!(!more.status.success() && said.contains("**more**"), "{said}");
    assert!(said.contains("counts --accept"), "it says what to do: {said}");
    let less = counts_against("less", 1e6, true);
    let said = String::from_utf8_lossy(&less.stdout);
    assert!(less.status.success() && said.contains("less: accept it"), "{said}");
}

#[test]
fn counts_of_another_build_are_shown_and_not_judged() {
    if !has_valgrind("counts_of_another_build_are_shown_and_not_judged") {
        return;
    }
    let other = counts_against("other", 10.0, false);
    let said = String::from_utf8_lossy(&other.stdout);
    assert!(other.status.success() && said.contains("**more**"), "{said}");
    assert!(said.contains("another compiler") && said.contains("not judged"), "{said}");
}
