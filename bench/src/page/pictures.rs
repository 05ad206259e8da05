//! Which charts a run has: each is drawn from what is there, whatever the scenario is called.

use std::collections::BTreeMap;

use charts::{Axis, Drawing, LineChart, Point, Scale, Series, Spread, Unit};

use crate::figure::median;
use crate::page::run::{Figure, Outcome, Percentiles, Run};
use crate::page::side::{Sides, samples, shown, spread};
use crate::page::{bars, recorded, timeline};

/// One of a window's percentiles.
type Percentile = fn(&Percentiles) -> Option<f64>;

/// Of the whole run: what can be compared across scenarios.
pub fn overview(run: &Run, sides: &Sides) -> Vec<Drawing> {
    let all = |is_wanted: fn(&str) -> bool| -> Vec<(&str, &Figure)> {
        let figures = run.outcomes.iter().flat_map(|outcome| {
            let wanted = outcome.figures.iter().filter(move |figure| is_wanted(&figure.name));
            wanted.map(|figure| (outcome.title.as_str(), figure))
        });
        figures.collect()
    };
    let cpu = all(|name| name == "CPU per delivery");
    let memory = all(|name| name.contains("memory per connection"));
    [("CPU per delivery", cpu), ("Memory per connection", memory)]
        .into_iter()
        .flat_map(|(title, groups)| bars::across(title, groups, sides))
        .collect()
}

/// Of one scenario: sweeps as lines, latencies by percentile, what was sampled over time, and everything else as bars.
pub fn of_outcome(outcome: &Outcome, sides: &Sides) -> Vec<Drawing> {
    let mut drawings = Vec::new();
    let mut rest: Vec<&Figure> = Vec::new();
    let mut sweeps: BTreeMap<(String, String), Vec<(f64, &Figure)>> = BTreeMap::new();
    let mut latencies: Vec<&Figure> = Vec::new();
    for figure in &outcome.figures {
        match swept(&figure.name) {
            Some((base, window)) => {
                sweeps.entry((base.to_owned(), figure.unit.clone())).or_default().push((window, figure));
            }
            None if percentile(&figure.name).is_some() => latencies.push(figure),
            None => rest.push(figure),
        }
    }
    for ((base, unit), figures) in sweeps {
        match figures.len() {
            1 => rest.extend(figures.iter().map(|(_, figure)| *figure)),
            _ => drawings.push(sweep(&base, &unit, &figures, sides)),
        }
    }
    if latencies.len() == 1 {
        rest.append(&mut latencies);
    }
    drawings.extend(bars::of_figures(&rest, sides));
    drawings.extend(window_latencies(outcome, sides));
    if !latencies.is_empty() {
        drawings.push(figure_latencies(&latencies, sides));
    }
    drawings.extend(recorded::latencies(&outcome.details, sides));
    drawings.extend(timeline::of_details(&outcome.details));
    drawings
}

/// A sweep's name and place: "CPU per delivery, 64 under way" is at 64.
fn swept(name: &str) -> Option<(&str, f64)> {
    let (base, place) = name.rsplit_once(", ")?;
    place.strip_suffix(" under way")?.parse().ok().map(|window: u64| (base, window as f64))
}

/// "latency p99.9" is "p99.9".
fn percentile(name: &str) -> Option<&str> {
    name.strip_prefix("latency ").filter(|rest| !rest.contains(' '))
}

/// Figures over the number of messages under way, both axes logarithmic.
fn sweep(base: &str, unit: &str, figures: &[(f64, &Figure)], sides: &Sides) -> Drawing {
    let of_side = |side: &str| -> Vec<Point> {
        figures.iter().filter_map(|(window, figure)| point(*window, &samples(figure, side))).collect()
    };
    LineChart {
        title: format!("{base} by messages under way"),
        description:
            "Lines join medians, bands go from the lowest to the highest sample; both axes are logarithmic."
                .to_owned(),
        x: Axis::new("messages under way", Unit::none(), Scale::Log2),
        y: Axis::new(base, Unit::named(unit), Scale::Log10),
        series: series(sides, of_side),
        spread: Spread::Band,
    }
    .draw()
}

/// The median of samples, with their spread; nothing without samples.
pub fn point(x: f64, samples: &[f64]) -> Option<Point> {
    median(samples).map(|y| Point { x, y, spread: spread(samples) })
}

fn series(sides: &Sides, of_side: impl Fn(&str) -> Vec<Point>) -> Vec<Series> {
    let series = sides.iter().map(|side| Series {
        name: shown(side).to_owned(),
        style: sides.style(side),
        points: of_side(side),
    });
    series.filter(|series| !series.points.is_empty()).collect()
}

/// Latencies of all sides, from the figures of a scenario.
fn figure_latencies(figures: &[&Figure], sides: &Sides) -> Drawing {
    let names = figures.iter().filter_map(|figure| percentile(&figure.name)).map(str::to_owned).collect();
    let of_side = |side: &str| -> Vec<Point> {
        let samples = figures.iter().map(|figure| samples(figure, side)).enumerate();
        samples.filter_map(|(place, samples)| point(place as f64, &samples)).collect()
    };
    let unit = figures.first().map_or("us", |figure| &figure.unit);
    latency_chart("Latency by percentile", names, unit, series(sides, of_side))
}

/// A chart of latencies by percentile: a logarithmic axis, because the last thousandth is far from the middle.
pub fn latency_chart(title: &str, names: Vec<String>, unit: &str, series: Vec<Series>) -> Drawing {
    LineChart {
        title: title.to_owned(),
        description: "Lines join medians of all runs, whiskers go from the lowest to the highest; the axis is logarithmic. \
                      Lower is better."
            .to_owned(),
        x: Axis::new("percentile", Unit::none(), Scale::Named(names)),
        y: Axis::new("latency", Unit::named(unit), Scale::Log10),
        series,
        spread: Spread::Whiskers,
    }
    .draw()
}

/// Latencies over the number of messages under way, from the windows: they have no figures.
fn window_latencies(outcome: &Outcome, sides: &Sides) -> Vec<Drawing> {
    let window = |load: &str| load.split_once(" under way")?.0.parse::<u64>().ok();
    let of = |side: &str, value: Percentile| -> Vec<Point> {
        let mut by_window: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for phase in outcome.phases.iter().filter(|phase| phase.side == side) {
            if let (Some(window), Some(value)) = (window(&phase.load), value(&phase.latency)) {
                by_window.entry(window).or_default().push(value);
            }
        }
        by_window.iter().filter_map(|(window, samples)| point(*window as f64, samples)).collect()
    };
    let kinds: [(&str, Percentile); 2] =
        [("p50", |latency| latency.p50_us), ("p99", |latency| latency.p99_us)];
    let charts = kinds.into_iter().filter_map(|(name, value)| {
        let series = series(sides, |side| of(side, value));
        let is_sweep = series.iter().any(|series| series.points.len() > 1);
        is_sweep.then(|| LineChart {
            title: format!("Latency {name} by messages under way"),
            description: "Lines join medians, bands go from the lowest to the highest window; both axes are logarithmic."
                .to_owned(),
            x: Axis::new("messages under way", Unit::none(), Scale::Log2),
            y: Axis::new(&format!("latency {name}"), Unit::named("us"), Scale::Log10),
            series,
            spread: Spread::Band,
        })
    });
    charts.map(|chart| chart.draw()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Outcome {
        serde_json::from_str(text).unwrap()
    }

    fn drawn(text: &str) -> Vec<String> {
        let run: Run = serde_json::from_str(&format!(r#"{{"outcomes": [{text}]}}"#)).unwrap();
        of_outcome(&outcome(text), &Sides::of(&run)).iter().map(Drawing::inline).collect()
    }

    #[test]
    fn a_figure_that_was_measured_at_several_windows_is_a_line_for_each_side() {
        let drawings = drawn(
            r#"{"figures": [
                {"name": "CPU per delivery, 1 under way", "unit": "us", "samples": [2, 3], "floor_samples": [1],
                 "peers": {"uws": {"samples": [4]}}},
                {"name": "CPU per delivery, 8 under way", "unit": "us", "samples": [1, 2], "floor_samples": [1],
                 "peers": {"uws": {"samples": [3]}}}]}"#,
        );
        assert_eq!(drawings.len(), 1);
        let lines = drawings[0].matches("<polyline").count();
        assert_eq!(lines, 3, "ours, the floor's and the peer's: {}", drawings[0]);
        assert!(drawings[0].contains("uws, 8: 3 µs"), "{}", drawings[0]);
    }

    #[test]
    fn latencies_are_one_picture_by_percentile() {
        let drawings = drawn(
            r#"{"figures": [{"name": "latency p50", "unit": "us", "samples": [1]},
                            {"name": "latency p99.9", "unit": "us", "samples": [90]},
                            {"name": "latency max", "unit": "us", "samples": [1000]}]}"#,
        );
        assert_eq!(drawings.len(), 1);
        for name in [">p50<", ">p99.9<", ">max<", "ours, p99.9: 90 µs"] {
            assert!(drawings[0].contains(name), "{name}: {}", drawings[0]);
        }
    }

    #[test]
    fn windows_have_latencies_even_without_figures_of_them() {
        let phase = |window: u32, p50: u32| {
            format!(
                r#"{{"side": "server", "load": "{window} under way for 1 s", "latency": {{"p50_us": {p50}}}}}"#
            )
        };
        let drawings = drawn(&format!(r#"{{"phases": [{}, {}]}}"#, phase(1, 10), phase(8, 20)));
        assert_eq!(drawings.len(), 1, "of p50, and none of p99, which nobody measured");
        assert!(drawings[0].contains("ours, 8: 20 µs"), "{}", drawings[0]);
    }

    #[test]
    fn other_figures_are_bars_by_their_unit_and_those_without_samples_say_so() {
        let drawings = drawn(
            r#"{"figures": [{"name": "a", "unit": "us", "samples": [1]}, {"name": "b", "unit": "B", "samples": [1, 2]},
                            {"name": "c", "unit": "us", "samples": []},
                            {"name": "d, 3 under way", "unit": "x", "samples": [2], "floor_samples": [1]}]}"#,
        );
        assert_eq!(drawings.len(), 3);
        assert!(drawings[0].contains(">a<") && drawings[0].contains("no value"), "{}", drawings[0]);
        assert!(drawings[2].contains("d, 3 under way"), "one window is no line: {}", drawings[2]);
    }

    #[test]
    fn nothing_measured_has_no_pictures() {
        assert!(drawn("{}").is_empty());
    }
}
