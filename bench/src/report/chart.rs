//! Bars, distributions and curves.

use std::collections::BTreeMap;

use super::svg::{Anchor, Svg};
use crate::collector::Metric;
use crate::contender::Role;
use crate::results::{Middle, Participant, Results, number};

const OWN_COLORS: [&str; 6] = ["#2f7de1", "#7fb2f0", "#12a594", "#6fcfc2", "#5b5bd6", "#a3a3f0"];
const PEER_COLORS: [&str; 6] = ["#e5702a", "#b65fcf", "#c9a227", "#d6506f", "#8d6e57", "#7a9a3a"];
/// Of limits, axes and whiskers.
pub(crate) const GREY: &str = "#8a8f98";
/// How lines of limits are drawn, in their order.
const DASHES: [&str; 3] = ["", "5 3", "2 3"];

/// A contender's colour in all plots.
pub(crate) fn color(results: &Results, name: &str) -> &'static str {
    let at = |role| results.with_role(role).position(|c| c.name == name);
    match (at(Role::Own), at(Role::Peer)) {
        (Some(at), _) => OWN_COLORS[at % OWN_COLORS.len()],
        (None, Some(at)) => PEER_COLORS[at % PEER_COLORS.len()],
        (None, None) => GREY,
    }
}

fn limits(results: &Results) -> impl Iterator<Item = (&Participant, &'static str)> {
    results.with_role(Role::Limit).zip(DASHES.into_iter().cycle())
}

/// A bar for each contender, a line for each limit.
pub(crate) fn bars(results: &Results, metric: &Metric) -> String {
    const ROW: f64 = 22.0;
    const LEFT: f64 = 118.0;
    const WIDTH: f64 = 290.0;
    let bars: Vec<(&Participant, Option<Middle>)> = results
        .contenders
        .iter()
        .filter(|c| c.role != Role::Limit)
        .map(|c| (c, results.middle(&c.name, metric)))
        // A contender that is there for a curve has no value in most cases, and did not fail either.
        .filter(|(c, middle)| middle.is_some() || c.workers.is_none())
        .collect();
    let limits: Vec<(&Participant, &str, f64)> = limits(results)
        .filter_map(|(c, dash)| Some((c, dash, results.middle(&c.name, metric)?.median)))
        .collect();
    let values = bars.iter().filter_map(|(_, m)| m.map(|m| m.max));
    let max = values.chain(limits.iter().map(|l| l.2)).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / max * WIDTH;
    let bottom = ROW * bars.len() as f64;
    let mut svg = Svg::new(520.0, bottom + 26.0, &metric.label);
    for (_, dash, value) in &limits {
        svg.line(&[(x(*value), 0.0), (x(*value), bottom)], GREY, 1.5, dash);
    }
    for (row, (contender, middle)) in bars.iter().enumerate() {
        let y = ROW * row as f64;
        svg.text((LEFT - 6.0, y + 15.0), Anchor::End, "", &contender.name);
        let Some(m) = middle else {
            svg.text((LEFT + 4.0, y + 15.0), Anchor::Start, "faint", "not measured");
            continue;
        };
        svg.bar((LEFT, y + 3.0), (x(m.median) - LEFT, ROW - 6.0), color(results, &contender.name));
        let middle_y = y + ROW / 2.0;
        svg.line(&[(x(m.min), middle_y), (x(m.max), middle_y)], "currentColor", 1.0, "");
        let text = format!("{} ± {:.0} %", number(m.median), m.spread_percent());
        svg.text((x(m.max) + 6.0, y + 15.0), Anchor::Start, "value", &text);
    }
    let mut at = LEFT;
    for (contender, dash, value) in &limits {
        svg.line(&[(at, bottom + 14.0), (at + 22.0, bottom + 14.0)], GREY, 1.5, dash);
        let text = format!("{} {}", contender.name, number(*value));
        svg.text((at + 28.0, bottom + 18.0), Anchor::Start, "faint", &text);
        at += 130.0;
    }
    svg.finish()
}

/// One line of a plot; both coordinates between 0 and 1.
struct Series<'a> {
    name: String,
    color: &'a str,
    dash: &'a str,
    points: Vec<(f64, f64)>,
}

/// Marks of an axis: where, and what they say.
type Marks = Vec<(f64, String)>;

fn plot(
    title: &str,
    x_name: &str,
    y_name: &str,
    x: &Marks,
    y: &Marks,
    all: &[Series<'_>],
) -> String {
    let (left, top, width, height) = (52.0, 24.0, 320.0, 190.0);
    let mut svg = Svg::new(520.0, 262.0, title);
    let place = |(x, y): (f64, f64)| (left + x * width, top + (1.0 - y) * height);
    svg.text((4.0, 13.0), Anchor::Start, "faint", y_name);
    svg.text(place((0.5, -0.22)), Anchor::Middle, "faint", x_name);
    for (at, mark) in y {
        let (x, y) = place((0.0, *at));
        svg.line(&[(x, y), place((1.0, *at))], "#8a8f9855", 1.0, "");
        svg.text((x - 5.0, y + 4.0), Anchor::End, "faint", mark);
    }
    for (at, mark) in x {
        let (x, y) = place((*at, 0.0));
        svg.line(&[(x, y), place((*at, 1.0))], "#8a8f9855", 1.0, "");
        svg.text((x, y + 16.0), Anchor::Middle, "faint", mark);
    }
    for (row, series) in all.iter().enumerate() {
        let points: Vec<_> = series.points.iter().map(|point| place(*point)).collect();
        svg.line(&points, series.color, 2.0, series.dash);
        for point in points.iter().filter(|_| points.len() < 8) {
            svg.dot(*point, series.color);
        }
        let y = top + 8.0 + 18.0 * row as f64;
        svg.line(&[(386.0, y), (404.0, y)], series.color, 3.0, series.dash);
        svg.text((410.0, y + 4.0), Anchor::Start, "", &series.name);
    }
    svg.finish()
}

/// Every contender with values of this metric: its name, colour and dash.
fn looks(results: &Results) -> Vec<(&str, &'static str, &'static str)> {
    let taking_part = results.contenders.iter().filter(|c| c.role != Role::Limit);
    let taking_part = taking_part.map(|c| (c.name.as_str(), color(results, &c.name), ""));
    taking_part.chain(limits(results).map(|(c, dash)| (c.name.as_str(), GREY, dash))).collect()
}

/// How single values are distributed: the share of them that is below, over the value. None without any.
pub(crate) fn distribution(results: &Results, metric: &Metric) -> Option<String> {
    let of: Vec<_> = looks(results)
        .into_iter()
        .map(|look| (look, percentiles(results, look.0, metric)))
        .filter(|(_, points)| points.len() > 1)
        .collect();
    let values = || of.iter().flat_map(|(_, points)| points.iter().map(|point| point.1));
    let min = values().reduce(f64::min)?.max(1e-3);
    let max = values().reduce(f64::max)?.max(min * 1.01);
    let x = |value: f64| (value.max(min) / min).ln() / (max / min).ln();
    let series: Vec<Series<'_>> = of
        .iter()
        .map(|((name, color, dash), points)| Series {
            name: (*name).to_owned(),
            color,
            dash,
            points: points.iter().map(|(p, value)| (x(*value), nines(*p))).collect(),
        })
        .collect();
    let x_marks = steps(min, max).into_iter().map(|v| (x(v), number(v))).collect();
    let y_marks =
        [0.0, 50.0, 90.0, 99.0, 99.9, 99.99].map(|p| (nines(p), format!("{p} %"))).to_vec();
    Some(plot(&metric.label, &metric.unit, "share below", &x_marks, &y_marks, &series))
}

/// Of all rounds: the median at each percentile.
fn percentiles(results: &Results, contender: &str, metric: &Metric) -> Vec<(f64, f64)> {
    let mut at: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (percentile, value) in results.samples(contender, metric).flat_map(|s| &s.distribution) {
        at.entry((percentile * 1e6) as u64).or_default().push(*value);
    }
    let points = at.into_iter();
    points.filter_map(|(p, values)| Some((p as f64 / 1e6, Middle::of(values)?.median))).collect()
}

/// Place of a percentile on an axis where each further nine takes as much room.
fn nines(percentile: f64) -> f64 {
    let missing = (1.0 - percentile / 100.0).max(1e-4);
    -missing.log10() / 4.0
}

/// 1, 2 and 5 of each power of ten in a range; fewer where it spans many.
fn steps(min: f64, max: f64) -> Vec<f64> {
    let decades = (min.log10().floor() as i32)..=(max.log10().ceil() as i32);
    let parts: &[f64] = if max / min > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = decades.flat_map(|decade| parts.iter().map(move |part| part * 10f64.powi(decade)));
    all.filter(|value| (min * 0.99..=max * 1.01).contains(value)).collect()
}

/// Marks from zero to a round number that is not below `max`.
fn linear(max: f64) -> (f64, Marks) {
    let raw = (max / 4.0).max(1e-9);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|part| part * power);
    let step = step.into_iter().find(|step| *step >= raw * 0.999).unwrap_or(raw);
    let n = (max / step).ceil().max(1.0);
    let top = n * step;
    let mark = |at: u32| (f64::from(at) * step / top, number(f64::from(at) * step));
    (top, (0..=n as u32).map(mark).collect())
}

/// Metrics that differ in one number of their id: (number, metric), in order.
struct Family<'a> {
    title: String,
    members: Vec<(u32, &'a Metric)>,
}

/// Which number of an id is one to draw curves over, for each group that has one.
const SCALED_BY: [(&str, usize, &str); 3] =
    [("stream", 2, "flows"), ("connections", 2, "at a time"), ("latency", 2, "at a time")];

fn families<'a>(results: &'a Results, group: &str) -> (Vec<Family<'a>>, &'static str) {
    let Some((_, at, axis)) = SCALED_BY.into_iter().find(|(name, ..)| *name == group) else {
        return (Vec::new(), "");
    };
    let mut keys: Vec<(String, Family<'a>)> = Vec::new();
    for metric in results.findings.metrics.iter().filter(|m| m.group == group && !m.is_cpu()) {
        let mut parts: Vec<&str> = metric.id.split('.').collect();
        let Some(Ok(n)) = parts.get(at).map(|part| part.parse::<u32>()) else { continue };
        parts[at] = "*";
        let key = parts.join(".");
        match keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, family)) => family.members.push((n, metric)),
            None => {
                let title = metric.label.replacen(&format!(" ×{n}"), "", 1);
                keys.push((key, Family { title, members: vec![(n, metric)] }));
            }
        }
    }
    let mut families: Vec<_> = keys.into_iter().map(|(_, family)| family).collect();
    for family in &mut families {
        family.members.sort_by_key(|(n, _)| *n);
    }
    (families, axis)
}

/// Curves over the number of flows or clients, with titles.
pub(crate) fn scaling(results: &Results, group: &str) -> Vec<(String, String)> {
    let (families, axis) = families(results, group);
    let drawn = families.into_iter().filter(|family| family.members.len() > 1).map(|family| {
        let of = |name: &str, color, dash| Line {
            name: name.to_owned(),
            color,
            dash,
            values: family
                .members
                .iter()
                .filter_map(|(n, metric)| Some((*n, results.middle(name, metric)?.median)))
                .collect(),
        };
        let lines = looks(results).into_iter().map(|(name, color, dash)| of(name, color, dash));
        let unit = &family.members[0].1.unit;
        let svg = curves(&family.title, axis, unit, lines.collect());
        (family.title.clone(), svg)
    });
    drawn.collect()
}

/// Curves over the number of workers, with titles. None without such contenders.
pub(crate) fn workers(results: &Results, group: &str) -> Vec<(String, String)> {
    let (families, _) = families(results, group);
    let drawn = families.into_iter().filter_map(|family| {
        let lines = family.members.iter().zip(OWN_COLORS.into_iter().cycle());
        let lines = lines.map(|((n, metric), color)| Line {
            name: format!("×{n}"),
            color,
            dash: "",
            values: results
                .contenders
                .iter()
                .filter_map(|c| Some((c.workers?, results.middle(&c.name, metric)?.median)))
                .collect(),
        });
        let lines: Vec<Line<'_>> = lines.filter(|line| !line.values.is_empty()).collect();
        let unit = &family.members[0].1.unit;
        let has_any = !lines.is_empty();
        has_any.then(|| (family.title.clone(), curves(&family.title, "workers", unit, lines)))
    });
    drawn.collect()
}

/// A curve before it is scaled.
struct Line<'a> {
    name: String,
    color: &'a str,
    dash: &'a str,
    values: Vec<(u32, f64)>,
}

fn curves(title: &str, axis: &str, unit: &str, lines: Vec<Line<'_>>) -> String {
    let all = || lines.iter().flat_map(|line| &line.values);
    let mut xs: Vec<u32> = all().map(|(n, _)| *n).collect();
    xs.sort_unstable();
    xs.dedup();
    let (top, y_marks) = linear(all().map(|(_, value)| *value).fold(0.0, f64::max));
    // Evenly, though the numbers grow by factors.
    let last = (xs.len().max(2) - 1) as f64;
    let x = |n: u32| xs.iter().position(|x| *x == n).unwrap_or(0) as f64 / last;
    let x_marks = xs.iter().map(|n| (x(*n), n.to_string())).collect();
    let series = lines.iter().filter(|line| !line.values.is_empty()).map(|line| {
        let points = line.values.iter().map(|(n, value)| (x(*n), value / top)).collect();
        Series { name: line.name.clone(), color: line.color, dash: line.dash, points }
    });
    plot(title, axis, unit, &x_marks, &y_marks, &series.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;

    #[test]
    fn the_longest_bar_fills_the_room_and_a_limit_is_a_line() {
        let results = example();
        let svg = bars(&results, &results.findings.metrics[0]);
        // veth, at 16.0, is the longest: 118 + 290.
        assert!(svg.contains("points=\"408.0,0.0 408.0,66.0\""), "{svg}");
        // usernetd, at 8.0, is half of it.
        assert!(svg.contains("width=\"145.0\""), "{svg}");
    }

    #[test]
    fn a_distribution_has_a_line_for_everybody_who_has_one() {
        let results = example();
        let [rate, cost] = &results.findings.metrics[..] else { panic!("two metrics") };
        assert_eq!(distribution(&results, rate), None);
        let svg = distribution(&results, cost).expect("there are percentiles");
        for contender in &results.contenders {
            assert!(svg.contains(&format!(">{}</text>", contender.name)), "{svg}");
        }
    }

    #[test]
    fn marks_are_round_and_reach_the_top() {
        assert_eq!(linear(37.0).0, 40.0);
        assert_eq!(linear(0.93).0, 1.0);
        let marks: Vec<String> = linear(37.0).1.into_iter().map(|(_, mark)| mark).collect();
        assert_eq!(marks, ["0.00", "10.0", "20.0", "30.0", "40.0"]);
        assert_eq!(steps(30.0, 600.0), [50.0, 100.0, 200.0, 500.0]);
    }

    #[test]
    fn flows_make_a_curve() {
        let mut results = example();
        let one = results.findings.metrics[0].clone();
        let four = Metric { id: "stream.out.4.1500.v4".into(), ..one };
        let samples = results.findings.samples.clone();
        let more = samples.into_iter().filter(|s| s.metric == "stream.out.1.1500.v4");
        results.findings.samples.extend(more.map(|mut sample| {
            sample.metric.clone_from(&four.id);
            sample
        }));
        results.findings.metrics.push(four);
        assert_eq!(scaling(&results, "stream").len(), 1);
        assert!(scaling(&results, "udp").is_empty());
        assert!(workers(&results, "stream").is_empty());
        results.contenders[0].workers = Some(2);
        assert_eq!(workers(&results, "stream").len(), 1);
    }
}
