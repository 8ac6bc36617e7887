//! The rules. Each test is one; it lists everything that breaks it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use usernet_tidy::{Source, assert_none, functions, modules, root, sources};

/// Lines of a file, its unit tests aside.
const FILE_LINES_MAX: usize = 800;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// What each crate may depend on among our own; tests and benches may use more.
const OWN_CRATES: [(&str, &[&str]); 5] = [
    ("dataplane/core", &[]),
    ("dataplane/driver", &["usernet-core"]),
    ("dataplane/wireguard", &["usernet-core"]),
    ("control", &["usernet-core", "usernet-driver", "usernet-wireguard"]),
    ("tests/sim", &["usernet-core"]),
];

/// What core may depend on: parsers and hashes that need neither a clock nor a system.
const CORE_DEPENDENCIES: [&str; 3] = ["etherparse", "foldhash", "smoltcp"];

/// The protocol modules of core; only the shard composes them.
const PROTOCOLS: [&str; 7] = ["tcp", "udp", "ping", "dns", "outward", "reassembly", "services"];

/// Types that cross from one protocol module to others, because the shard carries them.
const CARRIED: [(&str, &str); 2] = [("udp", "GuestDatagram"), ("reassembly", "Reassembled")];

/// Where `unsafe` may stand: one system call deep. Elsewhere the compiler, or this test, forbids it.
/// The simulator's allocator counts, and passes on.
const UNSAFE_ALLOWED: [&str; 5] =
    ["dataplane/driver/", "control/", "tests/netns/", "tests/sim/tests/no_alloc.rs", "bench/"];

/// What must not be left behind. In pieces, so that this file does not complain about itself.
const LEFTOVERS: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("db", "g!("),
    "To be written",
];

#[test]
fn no_file_is_longer_than_a_head_can_hold() {
    let too_long = |source: &Source| {
        let lines = source.lines_without_tests();
        (lines > FILE_LINES_MAX)
            .then(|| format!("{}:1: {lines} lines, {FILE_LINES_MAX} at most", source.path))
    };
    assert_none(&sources(".rs").iter().filter_map(too_long).collect::<Vec<_>>());
}

#[test]
fn no_function_is_longer_than_a_screen() {
    let mut complaints = Vec::new();
    for source in sources(".rs") {
        let functions = functions::functions(&source.text).expect("a source of ours parses");
        for f in functions.iter().filter(|f| f.lines > FUNCTION_LINES_MAX) {
            complaints
                .push(format!("{}:{}: {} has {} lines", source.path, f.line, f.name, f.lines));
        }
    }
    assert_none(&complaints);
}

#[test]
fn imports_go_one_way() {
    let mut complaints = Vec::new();
    for (folder, allowed) in OWN_CRATES {
        for dependency in dependencies(folder) {
            if dependency.starts_with("usernet-") && !allowed.contains(&dependency.as_str()) {
                complaints.push(format!("{folder}/Cargo.toml:1: depends on {dependency}"));
            }
        }
    }
    for dependency in dependencies("dataplane/core") {
        if !CORE_DEPENDENCIES.contains(&dependency.as_str()) {
            complaints.push(format!("dataplane/core/Cargo.toml:1: depends on {dependency}"));
        }
    }
    assert_none(&complaints);
}

#[test]
fn protocol_modules_do_not_know_each_other() {
    let mut complaints = Vec::new();
    for source in sources(".rs") {
        let Some(inner) = source.path.strip_prefix("dataplane/core/src/") else { continue };
        let module = inner.split(['/', '.']).next().unwrap_or_default();
        if !PROTOCOLS.contains(&module) {
            continue;
        }
        for (number, line) in source.code().take_while(|(n, _)| *n <= source.lines_without_tests())
        {
            for other in PROTOCOLS.iter().filter(|other| **other != module) {
                let Some(at) = line.find(&format!("crate::{other}::")) else { continue };
                let rest = &line[at..];
                let is_carried = CARRIED
                    .iter()
                    .any(|(owner, name)| owner == other && rest.contains(&format!("::{name}")));
                if !is_carried {
                    complaints.push(format!("{}:{number}: {module} imports {other}", source.path));
                }
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn core_is_pure() {
    let lib = source("dataplane/core/src/lib.rs");
    assert!(lib.text.contains("#![no_std]"), "a clock or a system call must not compile");
    assert!(lib.text.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn unsafe_stands_where_system_calls_are() {
    let mut complaints = Vec::new();
    for source in sources(".rs") {
        if UNSAFE_ALLOWED.iter().any(|folder| source.path.starts_with(folder)) {
            continue;
        }
        for (number, line) in source.code() {
            if line.contains(concat!("unsafe", " {")) || line.contains(concat!("unsafe", " fn")) {
                complaints.push(format!("{}:{number}: unsafe", source.path));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn nothing_is_left_behind() {
    let mut complaints = Vec::new();
    for source in sources(".rs").iter().chain(&sources(".md")).chain(&sources(".toml")) {
        for (number, line) in (1..).zip(source.text.lines()) {
            for leftover in LEFTOVERS.iter().filter(|word| line.contains(*word)) {
                if !source.path.starts_with("tests/tidy/") {
                    complaints.push(format!("{}:{number}: {leftover}", source.path));
                }
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn every_source_file_is_compiled() {
    let files: Vec<(PathBuf, String)> =
        sources(".rs").into_iter().map(|s| (PathBuf::from(s.path), s.text)).collect();
    let reachable = modules::reachable(&files);
    let dead = files.iter().map(|(path, _)| path).filter(|path| !reachable.contains(*path));
    assert_none(
        &dead.map(|p| format!("{}:1: nobody declares it", p.display())).collect::<Vec<_>>(),
    );
}

#[test]
fn every_source_file_says_what_it_is() {
    let silent = |source: &&Source| {
        let first = source.text.lines().find(|line| !line.trim().is_empty());
        !first.is_some_and(|line| line.starts_with("//!") || line.starts_with("#!"))
    };
    let complaints: Vec<_> = sources(".rs")
        .iter()
        .filter(|source| !source.path.ends_with("tests.rs"))
        .filter(silent)
        .map(|source| format!("{}:1: no module documentation", source.path))
        .collect();
    assert_none(&complaints);
}

#[test]
fn every_counter_has_one_name_one_line_and_a_use() {
    let core = sources(".rs");
    let declared = counters(&source("dataplane/core/src/counters.rs").text);
    assert!(declared.len() > 10, "the macro is read as it is written");
    let mut complaints = Vec::new();
    let mut names = BTreeMap::new();
    for (variant, name) in &declared {
        if let Some(other) = names.insert(name, variant) {
            complaints.push(format!("counters.rs: {variant} and {other} are both \"{name}\""));
        }
        let is_used = core
            .iter()
            .filter(|s| s.path.starts_with("dataplane/") && !s.path.ends_with("/counters.rs"))
            .any(|s| s.text.contains(&format!("Counter::{variant}")));
        if !is_used {
            complaints.push(format!("counters.rs: nothing counts {variant}"));
        }
    }
    assert_none(&complaints);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut complaints = Vec::new();
    for source in sources(".md") {
        let folder = root().join(&source.path).parent().expect("a file has a folder").to_owned();
        for (number, line) in (1..).zip(source.text.lines()) {
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let target = link.split('#').next().unwrap_or_default();
                let is_elsewhere = target.contains("://") || target.is_empty();
                if !is_elsewhere && !folder.join(target).exists() {
                    complaints.push(format!("{}:{number}: no {target}", source.path));
                }
            }
        }
    }
    assert_none(&complaints);
}

/// One file of the repository.
fn source(path: &str) -> Source {
    let text = std::fs::read_to_string(root().join(path));
    Source { path: path.to_owned(), text: text.unwrap_or_else(|e| panic!("{path}: {e}")) }
}

/// Names in the `[dependencies]` table of a crate.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = source(&format!("{folder}/Cargo.toml")).text;
    let table = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let entries = table.take_while(|line| !line.starts_with('['));
    let name = |line: &str| line.split([' ', '.', '=']).next().unwrap_or_default().to_owned();
    entries.filter(|line| !line.is_empty() && !line.starts_with('#')).map(name).collect()
}

/// Variants and names in the declaration of the counters: `Variant = "name",`.
fn counters(text: &str) -> Vec<(String, String)> {
    let entries = text.lines().filter_map(|line| line.trim().split_once(" = \""));
    entries
        .filter(|(variant, _)| variant.chars().all(|c| c.is_ascii_alphanumeric()))
        .filter_map(|(variant, rest)| {
            Some((variant.to_owned(), rest.strip_suffix("\",")?.to_owned()))
        })
        .collect()
}
