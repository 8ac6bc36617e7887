//! The table, for a terminal and for documents.

use std::fmt::Write;

use crate::collector::Metric;
use crate::contender::Role;
use crate::results::{Middle, Results, number};

/// Head and rows. The first two columns are text.
pub(crate) fn rows(results: &Results, metrics: &[&Metric]) -> Vec<Vec<String>> {
    let own: Vec<&str> = results.with_role(Role::Own).map(|c| c.name.as_str()).collect();
    let limits: Vec<&str> = results.with_role(Role::Limit).map(|c| c.name.as_str()).collect();
    let has_peers = results.with_role(Role::Peer).next().is_some();
    let mut head = vec!["median ± spread".to_owned(), "unit".to_owned()];
    head.extend(results.contenders.iter().map(|c| c.name.clone()));
    if has_peers {
        head.extend(own.iter().map(|name| format!("{name} : better peer")));
    }
    for limit in &limits {
        head.extend(own.first().map(|name| format!("{name} of {limit}")));
    }
    let mut rows = vec![head];
    for metric in metrics {
        let mut row = vec![metric.label.clone(), metric.unit.clone()];
        for contender in &results.contenders {
            row.push(results.middle(&contender.name, metric).map(cell).unwrap_or_default());
        }
        if has_peers {
            for name in &own {
                let ratio = results.ratio(name, metric);
                row.push(ratio.map(|r| format!("{r:.2}×")).unwrap_or_default());
            }
        }
        for limit in &limits {
            let percent = own.first().map(|name| results.percent_of(limit, name, metric));
            row.extend(percent.map(|p| p.map(|p| format!("{p:.0} %")).unwrap_or_default()));
        }
        rows.push(row);
    }
    rows
}

fn cell(middle: Middle) -> String {
    format!("{} ± {:.0} %", number(middle.median), middle.spread_percent())
}

/// What has no value, line by line.
fn failures(results: &Results, bullet: &str) -> String {
    let mut text = String::new();
    for (failure, times) in results.failures() {
        let why = failure.why.split_whitespace().collect::<Vec<_>>().join(" ");
        let (who, what) = (&failure.contender, &failure.case);
        writeln!(text, "{bullet}{who}: {what}: {why} ({times}×)")
            .expect("a string takes everything");
    }
    text
}

fn all(results: &Results) -> Vec<Vec<String>> {
    rows(results, &results.findings.metrics.iter().collect::<Vec<_>>())
}

/// For a terminal.
pub(crate) fn terminal(results: &Results) -> String {
    let rows = all(results);
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = format!("{}\n\n", results.about());
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            let padded =
                if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(gap);
            text.push_str(&padded);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    if !results.findings.failures.is_empty() {
        text += "\nnot measured:\n";
        text += &failures(results, "  ");
    }
    text
}

/// For a document.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = format!("{}\n\n", results.about());
    for (number, row) in all(results).iter().enumerate() {
        writeln!(text, "| {} |", row.join(" | ")).expect("a string takes everything");
        if number == 0 {
            text.push_str("|---|---|");
            text.push_str(&"--:|".repeat(row.len() - 2));
            text.push('\n');
        }
    }
    if !results.findings.failures.is_empty() {
        text += "\nNot measured:\n\n";
        text += &failures(results, "- ");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    #[test]
    fn the_table_has_medians_ratios_limits_and_failures() {
        let text = markdown(&example());
        let row = text.lines().find(|line| line.starts_with("| speed")).expect("a row");
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(
            cells,
            [
                "speed",
                "Gbit/s",
                "8.00 ± 6 %",
                "1.00 ± 50 %",
                "2.00 ± 25 %",
                "16.0 ± 3 %",
                "4.00×",
                "50 %",
            ]
        );
        assert!(text.contains("- pasta: speed, <IPv6>: no route & no hope (2×)"), "{text}");
        assert!(terminal(&example()).contains("usernetd of veth"));
    }
}
