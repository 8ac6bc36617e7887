//! The tables of `docs/compat`: what is said of every option of a tool that we stand in for, and by which test it holds.

use std::path::Path;

/// A table, read.
pub(crate) struct CompatTable(String);

/// A row of it.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    /// The option without its hyphens.
    pub(crate) option: &'a str,
    state: &'a str,
}

impl Row<'_> {
    /// Whether the option is refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.state == "refused"
    }
}

/// A file of the repository.
fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

impl CompatTable {
    /// From a file of the repository.
    pub(crate) fn read(path: &str) -> Self {
        Self(file(path))
    }

    /// The rows that are about an option. Each says one of three things, and names a test.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.0.lines().filter(|line| line.starts_with("| `--")).map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [option, state, _, tests] = cells[..] else { panic!("four cells: {line}") };
            let states = ["supported", "accepted without effect", "refused"];
            assert!(states.contains(&state), "{line}");
            assert!(quoted(tests).any(|name| name.contains("::")), "no test: {line}");
            Row { option: option.trim_matches('`').trim_start_matches('-'), state }
        })
    }

    /// The options of the table.
    pub(crate) fn options(&self) -> Vec<&str> {
        self.rows().map(|row| row.option).collect()
    }

    /// The options of a command line that are the original's too: ours have a heading of their own.
    pub(crate) fn declared_by(command: &clap::Command) -> Vec<&str> {
        let theirs = command.get_arguments().filter(|arg| arg.get_help_heading().is_none());
        theirs.filter_map(|arg| arg.get_long()).collect()
    }

    /// The tests that the document names, at least so many, are there: functions with this argument.
    pub(crate) fn check_tests(&self, at_least: usize, argument: &str) {
        let names: Vec<_> = quoted(&self.0).filter_map(|name| name.split_once("::")).collect();
        assert!(names.len() > at_least, "names are read as they are written");
        for (of, test) in names.into_iter().filter(|(of, _)| *of != "file") {
            let source = file(&format!("tests/dropin/tests/{of}.rs"));
            assert!(source.contains(&format!("    fn {test}({argument})")), "{of}::{test}");
        }
    }
}
