//! The committed reference: `counts.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What cases cost when somebody found that right.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reference {
    /// What the counted program was built by.
    pub(super) built_by: String,
    /// Instructions per unit.
    instructions: BTreeMap<String, f64>,
}

impl Reference {
    pub(super) fn of<'a>(built_by: &str, cases: impl Iterator<Item = (&'a str, f64)>) -> Self {
        let tenths = |n: f64| (n * 10.0).round() / 10.0;
        let instructions = cases.map(|(name, n)| (name.to_owned(), tenths(n))).collect();
        Self { built_by: built_by.to_owned(), instructions }
    }

    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let error = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| error(&e))?;
        serde_json::from_str(&text).map_err(|e| error(&e))
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
    }

    pub(super) fn of_case(&self, name: &str) -> Option<f64> {
        self.instructions.get(name).copied()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.instructions.keys().map(String::as_str)
    }
}
