//! An experiment as one picture: every pair of samples, and below it the ratio with its interval beside the margin.

use std::fmt::Write;

use super::plan::Side;
use super::report::Report;
use super::verdict::Change;

/// The picture, as SVG that needs nothing else.
pub fn svg(report: &Report<'_>) -> String {
    let mut drawing = Drawing::default();
    drawing.text(LEFT, 28.0, "title", &report.plan.title);
    drawing.text(LEFT, 50.0, "verdict", &report.sentence());
    let change = report.change().map(|change| format!("B against A: {change}"));
    let ended =
        report.early_end().map(|end| format!("ended early: {}", end.lines().next().unwrap_or_default()));
    let lines: Vec<String> = change.into_iter().chain(ended).collect();
    drawing.text(LEFT, 70.0, "note", &lines.join("; "));
    samples(&mut drawing, report);
    ratios(&mut drawing, report);
    let described = format!("{}; {}", report.sentence(), lines.join("; "));
    drawing.finish(&report.plan.title, &described)
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 20.0;
const SAMPLES_TOP: f64 = 110.0;
const SAMPLES_BOTTOM: f64 = 350.0;
const RATIOS_TOP: f64 = 400.0;
const RATIOS_BOTTOM: f64 = 490.0;

/// Both samples of each pair, joined by a line; doubtful ones are hollow.
fn samples(drawing: &mut Drawing, report: &Report<'_>) {
    let values: Vec<f64> = report.pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
    let Some(axis) = Axis::new(&values, SAMPLES_BOTTOM, SAMPLES_TOP) else { return };
    for tick in axis.ticks() {
        let y = axis.at(tick);
        drawing.line("grid", (LEFT, y), (RIGHT, y));
        drawing.text(LEFT - 8.0, y + 4.0, "tick end", &number(tick));
    }
    let unit = if report.unit().is_empty() { String::new() } else { format!(", {}", report.unit()) };
    drawing.text(LEFT, SAMPLES_TOP - 14.0, "note", &format!("{}{unit}", report.plan.metric));
    let step = (RIGHT - LEFT) / report.pairs.len() as f64;
    for (pair, (a, b)) in report.pairs.iter().enumerate() {
        let x = LEFT + step * (pair as f64 + 0.5);
        drawing.line("pair", (x, axis.at(*a)), (x, axis.at(*b)));
        for (side, value) in [(Side::A, *a), (Side::B, *b)] {
            drawing.dot(class(report, pair, side), x, axis.at(value));
        }
    }
    for (side, x) in [(Side::A, RIGHT - 360.0), (Side::B, RIGHT - 180.0)] {
        drawing.dot(if side == Side::A { "a" } else { "b" }, x, SAMPLES_TOP - 18.0);
        let label = report.label(side);
        let shown =
            if label.chars().count() > 22 { label.chars().take(21).chain(['…']).collect() } else { label };
        drawing.text(x + 10.0, SAMPLES_TOP - 14.0, "note", &format!("{side}: {shown}"));
    }
    drawing.text(
        (LEFT + RIGHT) / 2.0,
        SAMPLES_BOTTOM + 22.0,
        "tick middle",
        "pairs, in the order in which they were measured; hollow: flawed or doubtful",
    );
}

fn class(report: &Report<'_>, pair: usize, side: Side) -> &'static str {
    let is_it = |sample: &&super::sample::Sample| sample.pair == Some(pair) && sample.side == side;
    let is_doubtful = report.run.samples.iter().find(is_it).is_some_and(|sample| !sample.doubts.is_empty());
    match (side, is_doubtful) {
        (Side::A, false) => "a",
        (Side::A, true) => "a doubtful",
        (Side::B, false) => "b",
        (Side::B, true) => "b doubtful",
    }
}

/// The ratio of each pair, and the interval over the band of the margin.
fn ratios(drawing: &mut Drawing, report: &Report<'_>) {
    let factor = 1.0 + report.plan.margin;
    let mut values: Vec<f64> = report.pairs.iter().map(|(a, b)| b / a).collect();
    values.extend([1.0 / factor, factor]);
    values.extend(report.interval.iter().flat_map(|interval| [interval.low, interval.high]));
    let Some(axis) = Axis::new(&values, LEFT, RIGHT) else { return };
    let (from, to) = (axis.at(1.0 / factor), axis.at(factor));
    drawing.rectangle("margin", (from, RATIOS_TOP), (to, RATIOS_BOTTOM));
    drawing.line("same", (axis.at(1.0), RATIOS_TOP), (axis.at(1.0), RATIOS_BOTTOM));
    for tick in axis.ticks() {
        drawing.line("grid", (axis.at(tick), RATIOS_BOTTOM), (axis.at(tick), RATIOS_BOTTOM + 5.0));
        drawing.text(axis.at(tick), RATIOS_BOTTOM + 20.0, "tick middle", &Change::of(tick).to_string());
    }
    for (a, b) in &report.pairs {
        drawing.line("ratio", (axis.at(b / a), RATIOS_TOP + 55.0), (axis.at(b / a), RATIOS_TOP + 75.0));
    }
    if let Some(interval) = &report.interval {
        let y = RATIOS_TOP + 28.0;
        drawing.line("interval", (axis.at(interval.low), y), (axis.at(interval.high), y));
        drawing.dot("estimate", axis.at(interval.estimate), y);
    }
    let told = "B against A: the interval, each pair, and (grey) the margin";
    drawing.text((LEFT + RIGHT) / 2.0, RATIOS_BOTTOM + 44.0, "tick middle", told);
}

/// A linear scale that holds some values, and some room.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// From `from` to `to` on the paper. `None` without values.
    fn new(values: &[f64], from: f64, to: f64) -> Option<Self> {
        let low = values.iter().copied().reduce(f64::min)?;
        let high = values.iter().copied().reduce(f64::max)?;
        // All the same: a twentieth to either side.
        let room = if high > low { (high - low) * 0.08 } else { high.abs() * 0.05 + f64::MIN_POSITIVE };
        Some(Self { low: low - room, high: high + room, from, to })
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Four to ten round numbers.
    fn ticks(&self) -> Vec<f64> {
        let raw = (self.high - self.low) / 5.0;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= raw);
        let step = step.unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as i64;
        (first..first + 12).map(|index| index as f64 * step).take_while(|tick| *tick <= self.high).collect()
    }
}

/// Four digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        large if large >= 100.0 => format!("{value:.1}"),
        large if large >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[derive(Default)]
struct Drawing(String);

impl Drawing {
    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a String can't fail.
        let _infallible = writeln!(self.0, "{element}");
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.add(format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(text)));
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    fn rectangle(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let (width, height) = (to.0 - from.0, to.1 - from.1);
        self.add(format_args!(
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>",
            from.0, from.1
        ));
    }

    fn dot(&mut self, class: &str, x: f64, y: f64) {
        self.add(format_args!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"));
    }

    /// With `title` and `description` for those who hear it.
    fn finish(self, title: &str, description: &str) -> String {
        let (title, description) = (escaped(title), escaped(description));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-labelledby=\"title description\">\n<title id=\"title\">{title}</title>\n\
             <desc id=\"description\">{description}</desc>\n<style>{STYLE}</style>\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n{}</svg>\n",
            self.0
        )
    }
}

/// Blue and orange are told apart by people who see colours otherwise, too.
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:18px;font-weight:600}.verdict{font-size:15px}\
.note{fill:#444}.tick{font-size:12px;fill:#555}.end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#ddd}\
.pair{stroke:#bbb}.a{fill:#0072b2;stroke:#0072b2}.b{fill:#d55e00;stroke:#d55e00}.doubtful{fill:#fff;stroke-width:1.5}\
.margin{fill:#eee}.same{stroke:#888;stroke-dasharray:4 3}.ratio{stroke:#888}.interval{stroke:#222;stroke-width:3}.estimate{fill:#222}";

fn escaped(text: &str) -> String {
    let visible = text.chars().filter(|c| !c.is_control());
    visible.fold(String::with_capacity(text.len()), |mut escaped, c| {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            _ => escaped.push(c),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_holds_its_values_and_has_a_few_round_ticks() {
        for values in
            [vec![2.0, 2.5], vec![0.999, 1.0, 1.002], vec![12_000.0, 95_000.0], vec![3.0], vec![0.0]]
        {
            let axis = Axis::new(&values, 0.0, 100.0).expect("there are values");
            assert!(values.iter().all(|value| (0.0..=100.0).contains(&axis.at(*value))), "{values:?}");
            let ticks = axis.ticks();
            assert!((2..=10).contains(&ticks.len()), "{values:?}: {ticks:?}");
        }
        assert!(Axis::new(&[], 0.0, 1.0).is_none());
    }

    #[test]
    fn text_of_a_file_stays_text() {
        assert_eq!(escaped("a < b & c\n\u{0}>"), "a &lt; b &amp; c&gt;");
    }
}
