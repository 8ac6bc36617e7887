//! The table, for a terminal and for documents.

use std::fmt::Write;

use crate::cases::TUNNEL;
use crate::collector::Metric;
use crate::contender::Role;
use crate::results::{Middle, Results, number};

/// Head and rows. The first two columns are text.
pub(crate) fn rows(results: &Results, metrics: &[&Metric]) -> Vec<Vec<String>> {
    let with_role = |role| -> Vec<&str> {
        let of_role = results.with_role(role).map(|c| c.name.as_str());
        of_role.filter(|name| takes_part(results, name, metrics)).collect()
    };
    let (own, limits) = (with_role(Role::Own), with_role(Role::Limit));
    let has_peers = !with_role(Role::Peer).is_empty();
    let contenders: Vec<&str> = results.contenders.iter().map(|c| c.name.as_str()).collect();
    let contenders = contenders.into_iter().filter(|name| takes_part(results, name, metrics));
    let contenders: Vec<&str> = contenders.collect();
    let mut head = vec!["median ± spread".to_owned(), "unit".to_owned()];
    head.extend(contenders.iter().map(|name| (*name).to_owned()));
    if has_peers {
        head.extend(own.iter().map(|name| format!("{name} : better peer")));
    }
    for limit in &limits {
        head.extend(own.first().map(|name| format!("{name} of {limit}")));
    }
    let mut rows = vec![head];
    for metric in metrics {
        let mut row = vec![metric.label.clone(), metric.unit.clone()];
        for name in &contenders {
            row.push(results.middle(name, metric).map(cell).unwrap_or_default());
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

/// Whether a contender has any of these values.
fn takes_part(results: &Results, name: &str, metrics: &[&Metric]) -> bool {
    metrics.iter().any(|metric| results.middle(name, metric).is_some())
}

/// One table, and another one for tunnels: they have contenders of their own.
fn all(results: &Results) -> impl Iterator<Item = Vec<Vec<String>>> {
    let metrics = results.findings.metrics.iter();
    let (tunnels, others): (Vec<&Metric>, Vec<&Metric>) = metrics.partition(|m| m.group == TUNNEL);
    let tables = [others, tunnels].into_iter().filter(|metrics| !metrics.is_empty());
    tables.map(move |metrics| rows(results, &metrics))
}

/// For a terminal.
pub(crate) fn terminal(results: &Results) -> String {
    let mut text = format!("{}\n", results.about());
    for rows in all(results) {
        text.push('\n');
        text += &aligned(&rows);
    }
    if !results.findings.failures.is_empty() {
        text += "\nnot measured:\n";
        text += &failures(results, "  ");
    }
    text
}

/// Rows in columns.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
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
    text
}

/// For a document.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = format!("{}\n", results.about());
    for rows in all(results) {
        text.push('\n');
        for (number, row) in rows.iter().enumerate() {
            writeln!(text, "| {} |", row.join(" | ")).expect("a string takes everything");
            if number == 0 {
                text.push_str("|---|---|");
                text.push_str(&"--:|".repeat(row.len() - 2));
                text.push('\n');
            }
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
