//! What is printed: tables for people, JSON for programs, from the same data.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

/// How to print.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Prints the one form or the other.
    pub(crate) fn print(self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        let text = if self.json {
            serde_json::to_string_pretty(&json()).expect("keys are text")
        } else {
            text()
        };
        write_line(&text);
    }
}

/// Writes to standard output. A reader that has gone away (`| head`) is no error of ours.
pub(crate) fn write_line(text: &str) {
    let mut out = io::stdout().lock();
    let is_written = out.write_all(text.as_bytes()).and_then(|()| {
        if text.is_empty() || text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") }
    });
    is_written.and_then(|()| out.flush()).ok();
}

/// Whether a person looks at standard output.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns that are as wide as what stands in them.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A time span as `ss` and `podman ps` write it: `850ms`, `42s`, `3min`, `5h`, `2d`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms}ms"),
        1..120 => format!("{seconds}s"),
        120..7_200 => format!("{}min", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes with a unit: `999B`, `1.5K`, `20M`.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for larger in ["K", "M", "G", "T", "P"] {
        if value < 1_000.0 {
            break;
        }
        value /= 1_024.0;
        unit = larger;
    }
    if unit == "B" || value >= 10.0 {
        format!("{value:.0}{unit}")
    } else {
        format!("{value:.1}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "PID"]);
        table.row(["a-long-name".to_owned(), "1".to_owned()]);
        assert_eq!(table.to_string(), "NAME         PID\na-long-name  1\n");
    }

    #[test]
    fn spans_and_sizes_are_short() {
        let spans = [0, 999, 1_000, 119_999, 120_000, 7_200_000, 172_800_000].map(span);
        assert_eq!(spans, ["0ms", "999ms", "1s", "119s", "2min", "2h", "2d"]);
        assert_eq!([0, 999, 1_536, 20 << 20].map(bytes), ["0B", "999B", "1.5K", "20M"]);
    }
}
