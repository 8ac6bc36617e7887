//! What a reviewer should not have to look for: the sources of the workspace, and rules over them.
//!
//! The rules are the tests of this crate (`tests/tidy.rs`). Each one goes over [`sources`] and collects
//! complaints that begin with `FILE:LINE`, so that an editor can jump there.

use std::fs;
use std::path::{Path, PathBuf};

pub mod functions;
pub mod modules;

/// Folders that hold no sources of ours.
const SKIPPED: [&str; 7] =
    [".git", "target", "corpus", "artifacts", "coverage", "out", "node_modules"];

/// A text file of the repository.
#[derive(Debug)]
pub struct Source {
    /// Relative to the root of the repository, with `/` between its parts.
    pub path: String,
    /// All of it.
    pub text: String,
}

impl Source {
    /// The lines in front of `mod tests { … }`, which is last in its file by convention.
    pub fn lines_without_tests(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests = lines.iter().position(|line| line.starts_with("mod tests {"));
        tests.unwrap_or(lines.len())
    }

    /// Numbered lines, from 1, without line comments.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = (1..).zip(self.text.lines());
        numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Whether it is a test of its whole: an integration test, a module file of unit tests, a fuzz target.
    pub fn is_test(&self) -> bool {
        self.path.split('/').any(|part| matches!(part, "tests.rs" | "fuzz_targets"))
            || self.path.contains("/tests/")
            || self.path.starts_with("tests/")
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tests/tidy is two folders deep").to_owned()
}

/// All files whose names end with `ending`, sorted.
pub fn sources(ending: &str) -> Vec<Source> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).expect("a folder of the repository can be read");
        for entry in entries.map(|e| e.expect("an entry of a folder")) {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                let relative = path.strip_prefix(&root).expect("it is below the root");
                let path = relative.to_string_lossy().into_owned();
                let text = fs::read_to_string(root.join(&path)).expect("a source is UTF-8");
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Fails with all complaints at once.
pub fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
