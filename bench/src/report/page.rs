//! report.html: everything in one file that needs nothing else.

use super::svg::escape;
use super::{chart, table};
use crate::cases::GROUPS;
use crate::collector::Metric;
use crate::results::{Results, number};

const STYLE: &str = include_str!("page.css");

const HOW_TO_READ: &str = "<p>A <b>bar</b> is the median over all rounds, the thin line on it reaches from the \
    smallest to the largest value, and ± is half of that distance. Each plot has a scale of its own that begins at zero. \
    <b>out</b> is from the guest to the host, <b>in</b> the other way; ×4 means four at a time. A grey <b>line is a \
    limit</b>: <i>veth</i> is a pair of virtual devices between the same two namespaces, which only root can have on a real \
    machine; <i>loopback</i> is client and server on the host, without any link. A <b>ratio</b> compares with the better of \
    the peers in the same run: above 1 is better, for costs too. A percentage compares with a limit in the same way: \
    100&nbsp;% is as good. <b>CPU</b> is the time of the contender with all its processes; CPU of the machine is that of \
    everything that ran: contender, kernel, client and server. Contenders take turns in every round, so what else \
    the machine does hits them alike; still, differences below the spread mean nothing.</p>";

/// The page.
pub(crate) fn html(results: &Results) -> String {
    let mut groups: Vec<&str> = Vec::new();
    for metric in &results.findings.metrics {
        if !groups.contains(&metric.group.as_str()) {
            groups.push(&metric.group);
        }
    }
    let links = groups.iter().map(|group| format!("<a href=\"#{group}\">{group}</a>"));
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>usernetd measured</title>\n\
         <style>\n{STYLE}</style>\n<h1>usernetd measured</h1>\n<p class=\"about\">{}</p>\n<nav>{}{}</nav>\n\
         <h2>How to read this</h2>\n{HOW_TO_READ}\n",
        escape(&results.about()),
        links.collect::<String>(),
        "<a href=\"#failures\">not measured</a><a href=\"#conditions\">conditions</a>",
    );
    for group in groups {
        text += &section(results, group);
    }
    text += &failures(results);
    text += &conditions(results);
    text
}

fn section(results: &Results, group: &str) -> String {
    let about = GROUPS.iter().find(|known| known.name == group).map_or("", |known| known.about);
    let of_group = |cpu: bool| -> Vec<&Metric> {
        let metrics = results.findings.metrics.iter();
        metrics.filter(|m| m.group == group && m.is_cpu() == cpu).collect()
    };
    let (measured, costs) = (of_group(false), of_group(true));
    let mut text =
        format!("<h2 id=\"{group}\">{group}</h2>\n<p class=\"about\">{}</p>\n", escape(about));
    text += &cards(measured.iter().map(|m| (caption(m), chart::bars(results, m))));
    let drawn = measured.iter().filter_map(|m| {
        let name = m.label.trim_end_matches(", median");
        Some((format!("{}: distribution", escape(name)), chart::distribution(results, m)?))
    });
    text += &titled("Distributions", drawn.collect());
    let escaped = |plots: Vec<(String, String)>| -> Vec<_> {
        plots.into_iter().map(|(title, svg)| (escape(&title), svg)).collect()
    };
    text += &titled("Scaling", escaped(chart::scaling(results, group)));
    text += &titled("Scaling with workers", escaped(chart::workers(results, group)));
    text += "<h3>Table</h3>\n";
    text += &grid(&table::rows(results, &measured));
    text += &also(results, &measured);
    if !costs.is_empty() {
        text += "<details><summary>CPU time: plots and table</summary>\n";
        text += &cards(costs.iter().map(|m| (caption(m), chart::bars(results, m))));
        text += &grid(&table::rows(results, &costs));
        text += "</details>\n";
    }
    text
}

fn caption(metric: &Metric) -> String {
    let better = if metric.more_is_better { "more is better" } else { "less is better" };
    format!("{} <span>{}, {better}</span>", escape(&metric.label), escape(&metric.unit))
}

fn cards(plots: impl Iterator<Item = (String, String)>) -> String {
    let figure = |(caption, svg): (String, String)| {
        format!("<figure><figcaption>{caption}</figcaption>\n{svg}</figure>\n")
    };
    format!("<div class=\"cards\">\n{}</div>\n", plots.map(figure).collect::<String>())
}

fn titled(title: &str, plots: Vec<(String, String)>) -> String {
    if plots.is_empty() {
        return String::new();
    }
    format!("<h3>{title}</h3>\n{}", cards(plots.into_iter()))
}

fn grid(rows: &[Vec<String>]) -> String {
    let mut text = String::from("<div class=\"wide\"><table>\n");
    for (number, row) in rows.iter().enumerate() {
        let tag = if number == 0 { "th" } else { "td" };
        let cells = row.iter().map(|cell| {
            let class = match cell.strip_suffix('×').and_then(|ratio| ratio.parse::<f64>().ok()) {
                Some(ratio) if ratio >= 1.0 => " class=\"good\"",
                Some(_) => " class=\"bad\"",
                None => "",
            };
            format!("<{tag}{class}>{}</{tag}>", escape(cell))
        });
        text += &format!("<tr>{}</tr>\n", cells.collect::<String>());
    }
    text + "</table></div>\n"
}

/// What was seen besides, e.g. fairness and loss: medians.
fn also(results: &Results, metrics: &[&Metric]) -> String {
    let mut rows = vec![vec!["median".to_owned(), "of".to_owned()]];
    rows[0].extend(results.contenders.iter().map(|c| c.name.clone()));
    for metric in metrics {
        let mut names: Vec<&str> = Vec::new();
        for contender in &results.contenders {
            for sample in results.samples(&contender.name, metric) {
                names.extend(sample.also.keys().map(String::as_str));
            }
        }
        names.sort_unstable();
        names.dedup();
        for name in names {
            let mut row = vec![metric.label.clone(), name.to_owned()];
            row.extend(
                results
                    .contenders
                    .iter()
                    .map(|c| results.also(&c.name, metric, name).map(number).unwrap_or_default()),
            );
            rows.push(row);
        }
    }
    if rows.len() == 1 {
        return String::new();
    }
    format!("<details><summary>What else was seen</summary>\n{}</details>\n", grid(&rows))
}

fn failures(results: &Results) -> String {
    let mut text = String::from("<h2 id=\"failures\">Not measured</h2>\n");
    if results.findings.failures.is_empty() {
        return text + "<p>Every case of every contender has a value.</p>\n";
    }
    text += "<p class=\"about\">A case that failed, or that this contender cannot do, in how many rounds, and why.</p>\n\
             <div class=\"wide\"><table class=\"failures\">\n\
             <tr><th>contender</th><th>case</th><th>rounds</th><th>why</th></tr>\n";
    for (failure, times) in results.failures() {
        text += &format!(
            "<tr><td>{}</td><td>{}</td><td>{times}</td><td>{}</td></tr>\n",
            escape(&failure.contender),
            escape(&failure.case),
            escape(failure.why.trim()),
        );
    }
    text + "</table></div>\n"
}

fn conditions(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = String::from("<h2 id=\"conditions\">Conditions</h2>\n<dl>\n");
    let mut line = |name: &str, value: &str| {
        text += &format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value));
    };
    line("machine", &machine.summary());
    for contender in &results.contenders {
        let version = contender.version.as_deref().unwrap_or("-");
        line(&contender.name, format!("{version} {}", contender.options.join(" ")).trim());
    }
    for (name, version) in &machine.tools {
        line(name, version);
    }
    for (name, value) in &machine.sysctls {
        line(name, value);
    }
    line("command", &results.command_line.join(" "));
    line("rounds", &results.rounds.to_string());
    text + "</dl>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    #[test]
    fn the_page_shows_every_metric_every_failure_and_the_conditions() {
        let results = example();
        let page = html(&results);
        for metric in &results.findings.metrics {
            assert!(page.contains(&format!("<figcaption>{} <span>", metric.label)), "{page}");
        }
        for contender in &results.contenders {
            assert!(page.contains(&format!("<dd>{} 1.0</dd>", contender.name)), "{page}");
        }
        assert!(
            page.contains("<td>speed, &lt;IPv6&gt;</td><td>2</td><td>no route &amp; no hope</td>")
        );
        assert!(page.contains("<td class=\"good\">4.00×</td>"));
        assert!(page.contains("wait: distribution"));
        assert!(page.contains("<td>fairness</td><td>0.50</td>"));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = html(&example());
        let without_namespaces = page.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "<script", "<link", "@import", "url("] {
            assert!(!without_namespaces.contains(outside), "{outside}");
        }
    }
}
