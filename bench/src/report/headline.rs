//! One plot of the most important cases, for the first page of the project.

use super::chart::{GREY, color};
use super::svg::{Anchor, Svg};
use crate::collector::Metric;
use crate::contender::Role;
use crate::results::{Participant, Results, number};

/// Ids of the cases, and what a reader who knows nothing calls them. What was not measured is left out.
const CASES: [(&str, &str); 6] = [
    ("stream.out.1.1500.v4", "TCP to the host, MTU 1500"),
    ("stream.in.1.1500.v4", "TCP to the guest, MTU 1500"),
    ("stream.out.1.65520.v4", "TCP to the host, MTU 65520"),
    ("stream.in.1.65520.v4", "TCP to the guest, MTU 65520"),
    ("connections.out.16", "connections, 16 at a time"),
    ("latency.tcp.1.1.p50", "TCP round trip, median"),
];
/// Text and lines on light and on dark ground.
const STYLE: &str = "svg{color:#24292f}.value{font-weight:600}.faint{opacity:.7}\
                     @media(prefers-color-scheme:dark){svg{color:#e6edf3}}";
const WIDTH: f64 = 760.0;
const LEFT: f64 = 300.0;
const BARS: f64 = 330.0;
const ROW: f64 = 18.0;
const GAP: f64 = 14.0;
const TOP: f64 = 34.0;

/// The picture.
pub(crate) fn svg(results: &Results) -> Result<String, String> {
    let all = &results.findings.metrics;
    let cases: Vec<(&Metric, &str)> = CASES
        .iter()
        .filter_map(|(id, title)| Some((all.iter().find(|metric| metric.id == *id)?, *title)))
        .collect();
    if cases.is_empty() {
        return Err("none of the headline's cases was measured".to_owned());
    }
    // Peers of tunnels alone are not in any of them.
    let is_in = |peer: &&Participant| {
        cases.iter().any(|(metric, _)| results.middle(&peer.name, metric).is_some())
    };
    let peers = results.with_role(Role::Peer).filter(is_in);
    let contenders: Vec<&Participant> = results.with_role(Role::Own).take(1).chain(peers).collect();
    let block = contenders.len() as f64 * ROW + GAP;
    let height = TOP + block * cases.len() as f64 + 22.0;
    let mut svg = Svg::new(WIDTH, height, "usernetd and its peers");
    svg.style(STYLE);
    legend(&mut svg, results, &contenders);
    for (at, (metric, title)) in cases.iter().enumerate() {
        case(&mut svg, results, &contenders, metric, title, TOP + block * at as f64);
    }
    let machine = &results.machine;
    let about = format!(
        "medians of {} rounds; {} cores, {}, Linux {}",
        results.rounds, machine.cores, machine.processor, machine.kernel
    );
    svg.text((12.0, height - 8.0), Anchor::Start, "faint", &about);
    Ok(svg.finish())
}

fn legend(svg: &mut Svg, results: &Results, contenders: &[&Participant]) {
    let mut at = 12.0;
    for contender in contenders {
        svg.bar((at, 8.0), (12.0, 12.0), color(results, &contender.name));
        svg.text((at + 18.0, 18.0), Anchor::Start, "", &contender.name);
        at += 34.0 + 7.5 * contender.name.len() as f64;
    }
    if results.with_role(Role::Limit).any(|c| c.name == "veth") {
        svg.line(&[(at, 14.0), (at + 18.0, 14.0)], GREY, 2.0, "4 3");
        svg.text((at + 24.0, 18.0), Anchor::Start, "", "veth: the kernel alone, as root");
    }
}

/// Each case has a scale of its own.
fn case(
    svg: &mut Svg,
    results: &Results,
    contenders: &[&Participant],
    metric: &Metric,
    title: &str,
    top: f64,
) {
    let median = |name: &str| results.middle(name, metric).map(|middle| middle.median);
    let limit = median("veth");
    let values = contenders.iter().filter_map(|c| median(&c.name)).chain(limit);
    let max = values.fold(f64::MIN_POSITIVE, f64::max);
    let bottom = top + ROW * contenders.len() as f64;
    let middle = (top + bottom) / 2.0;
    svg.text((LEFT - 12.0, middle), Anchor::End, "value", title);
    let better = if metric.more_is_better { "more is better" } else { "less is better" };
    let unit = format!("{}, {better}", metric.unit);
    svg.text((LEFT - 12.0, middle + 15.0), Anchor::End, "faint", &unit);
    for (row, contender) in contenders.iter().enumerate() {
        let y = top + ROW * row as f64;
        let Some(value) = median(&contender.name) else {
            svg.text((LEFT + 4.0, y + 13.0), Anchor::Start, "faint", "not measured");
            continue;
        };
        let width = value / max * BARS;
        svg.bar((LEFT, y + 2.0), (width, ROW - 4.0), color(results, &contender.name));
        svg.text((LEFT + width + 6.0, y + 13.0), Anchor::Start, "", &number(value));
    }
    if let Some(limit) = limit {
        let x = LEFT + limit / max * BARS;
        svg.line(&[(x, top), (x, bottom)], GREY, 2.0, "4 3");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    #[test]
    fn it_shows_what_was_measured_and_nothing_else() {
        let svg = svg(&example()).expect("one case was measured");
        assert!(svg.contains("TCP to the host, MTU 1500") && svg.contains(">8.00</text>"), "{svg}");
        assert!(!svg.contains("MTU 65520"), "{svg}");
    }

    #[test]
    fn a_peer_of_none_of_its_cases_is_left_out() {
        let mut results = example();
        results.findings.samples.retain(|sample| sample.contender != "pasta");
        let svg = svg(&results).expect("one case was measured");
        assert!(!svg.contains("pasta") && svg.contains("slirp4netns"), "{svg}");
    }

    #[test]
    fn without_any_of_its_cases_there_is_no_picture() {
        let mut results = example();
        results.findings.metrics.remove(0);
        assert!(super::svg(&results).is_err());
    }
}
