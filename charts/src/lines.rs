//! Lines: how one figure changes with another, for several series.

use crate::axis::{Axis, Scale, Span};
use crate::drawing::{Drawing, LINE, MARGIN, TEXT, WIDTH, heading, left_out, remark};
use crate::legend::legend;
use crate::palette::Style;
use crate::svg::{Anchor, Svg};
use crate::text::{cut, width};

/// One figure over another, a line for each series.
#[derive(Debug, Clone)]
pub struct LineChart {
    /// Its name.
    pub title: String,
    /// What it shows, for those who can't see it; the values of small charts are added.
    pub description: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// The lines.
    pub series: Vec<Series>,
    /// How the spread of points is drawn.
    pub spread: Spread,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Its look.
    pub style: Style,
    /// In the order in which they are joined. A point without a place on the axes interrupts the line.
    pub points: Vec<Point>,
}

/// A value and, where it was measured several times, from where to where it went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// To the right.
    pub x: f64,
    /// Upwards.
    pub y: f64,
    /// The lowest and the highest.
    pub spread: Option<(f64, f64)>,
}

/// How the spread of points is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// A band along the line.
    Band,
    /// A whisker at each point.
    Whiskers,
}

/// Height of the part between the axes.
const PLOT: f64 = 220.0;
const TICKS_UP: usize = 6;
/// From one whisker to that of the next series: eight of them stay nearer to their name than to the next.
const ASIDE: f64 = 5.0;
/// More points than these stand so close that markers would hide the line.
const MARKERS_MAX: usize = 40;
/// Values that a description can hold before nobody listens.
const TOLD_MAX: usize = 24;

/// The rectangle between the axes.
struct Plot<'a> {
    x: &'a Span,
    y: &'a Span,
    left: f64,
    top: f64,
}

impl LineChart {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let mut svg = Svg::default();
        let points = || self.series.iter().flat_map(|series| &series.points);
        let bounds = points().flat_map(|point| [point.spread.map(|s| s.0), point.spread.map(|s| s.1)]);
        let heights = points().map(|point| point.y).chain(bounds.flatten());
        let y = self.y.span(heights, TICKS_UP);
        let x = self.x.span(points().map(|point| point.x), 6);

        let mut top = heading(&mut svg, &self.title);
        if self.series.len() > 1 {
            let entries = self.series.iter().map(|series| (series.name.as_str(), series.style));
            top = legend(&mut svg, entries, true, top);
        }
        if !self.y.label.is_empty() {
            top += LINE;
            svg.text("quiet", (MARGIN, top), Anchor::Start, &self.y.label);
        }
        let widest = y.ticks.iter().map(|tick| width(&tick.label, TEXT)).fold(0.0, f64::max);
        let plot = Plot { x: &x, y: &y, left: MARGIN + widest.min(WIDTH / 3.0) + 8.0, top: top + 14.0 };
        plot.grid(&mut svg);
        let missing = self.draw_series(&mut svg, &plot);
        let mut bottom = plot.bottom() + LINE;
        plot.names_of_x(&mut svg, bottom);
        bottom += LINE;
        svg.text("quiet", ((plot.left + plot.right()) / 2.0, bottom), Anchor::Middle, &self.x.label);
        bottom += 4.0;
        let missing = left_out(missing, why_left_out(&self.x, &self.y));
        bottom = remark(&mut svg, &missing, bottom);
        if points().next().is_none() {
            let middle = ((plot.left + plot.right()) / 2.0, plot.top + PLOT / 2.0);
            svg.text("quiet", middle, Anchor::Middle, "nothing was measured");
        }
        Drawing::new(&self.title, self.told(&missing), bottom + MARGIN, svg)
    }

    /// Returns how many points have no place.
    fn draw_series(&self, svg: &mut Svg, plot: &Plot) -> usize {
        let mut missing = 0;
        // The first series is what the chart is about: it lies on top.
        for (place, series) in self.series.iter().enumerate().rev() {
            let runs = plot.runs(&series.points, self.aside(place));
            missing += series.points.len() - runs.iter().map(Vec::len).sum::<usize>();
            for run in &runs {
                self.draw_run(svg, plot, series, run);
            }
        }
        missing
    }

    /// How far a series is moved to the right: whiskers of one name would lie on each other, and a name has no exact place.
    fn aside(&self, place: usize) -> f64 {
        match (&self.x.scale, self.spread) {
            (Scale::Named(_), Spread::Whiskers) => {
                (place as f64 - (self.series.len() as f64 - 1.0) / 2.0) * ASIDE
            }
            _ => 0.0,
        }
    }

    fn draw_run(&self, svg: &mut Svg, plot: &Plot, series: &Series, run: &[(&Point, (f64, f64))]) {
        let style = series.style;
        let spread = |(point, (x, _)): &(&Point, (f64, f64))| {
            let (low, high) = point.spread?;
            Some(((*x, plot.y_within(low)), (*x, plot.y_within(high))))
        };
        let ends: Vec<_> = run.iter().filter_map(spread).collect();
        match self.spread {
            Spread::Band if ends.len() > 1 => {
                let back = ends.iter().rev().map(|(_, high)| *high);
                let around: Vec<_> = ends.iter().map(|(low, _)| *low).chain(back).collect();
                svg.polygon(&style.band(), &around);
            }
            _ => ends.iter().for_each(|(low, high)| {
                svg.line(&style.whisker(), *low, *high);
                for (x, y) in [*low, *high] {
                    svg.line(&style.whisker(), (x - 3.0, y), (x + 3.0, y));
                }
            }),
        }
        if run.len() > 1 {
            svg.polyline(&style.stroke(), &run.iter().map(|(_, place)| *place).collect::<Vec<_>>());
        }
        if run.len() == 1 || series.points.len() <= MARKERS_MAX {
            for (point, place) in run {
                svg.with_tip(&self.tip(series, point), |svg| style.marker(svg, *place, 4.0));
            }
        }
    }

    fn tip(&self, series: &Series, point: &Point) -> String {
        let at = match &self.x.scale {
            Scale::Named(names) => names.get(point.x as usize).cloned().unwrap_or_default(),
            _ => self.x.unit.text(point.x),
        };
        let value = self.y.unit.text(point.y);
        let spread = point.spread.map_or(String::new(), |(low, high)| {
            format!(" ({} to {})", self.y.unit.text(low), self.y.unit.text(high))
        });
        format!("{}, {at}: {value}{spread}", series.name)
    }

    fn told(&self, missing: &str) -> String {
        let mut told = self.description.clone();
        let count: usize = self.series.iter().map(|series| series.points.len()).sum();
        if count <= TOLD_MAX {
            let values = self.series.iter().flat_map(|s| s.points.iter().map(|point| self.tip(s, point)));
            told = format!("{told} {}.", values.collect::<Vec<_>>().join("; "));
        }
        format!("{told} {missing}").trim().to_owned()
    }
}

fn why_left_out(x: &Axis, y: &Axis) -> &'static str {
    let is_log = |axis: &Axis| matches!(axis.scale, Scale::Log10 | Scale::Log2);
    match is_log(x) || is_log(y) {
        true => "a logarithmic axis has no place for zero, and none for what is no number",
        false => "they are no numbers",
    }
}

impl Plot<'_> {
    fn right(&self) -> f64 {
        WIDTH - MARGIN - 10.0
    }

    fn bottom(&self) -> f64 {
        self.top + PLOT
    }

    fn x_at(&self, share: f64) -> f64 {
        self.left + share * (self.right() - self.left)
    }

    fn y_at(&self, share: f64) -> f64 {
        self.bottom() - share * PLOT
    }

    fn y_within(&self, value: f64) -> f64 {
        self.y_at(self.y.share_within(value))
    }

    /// Points that have a place, in runs without one that has none, moved `aside` to the right.
    fn runs<'p>(&self, points: &'p [Point], aside: f64) -> Vec<Vec<(&'p Point, (f64, f64))>> {
        let placed = |point: &Point| {
            let (x, y) = (self.x.share(point.x)?, self.y.share(point.y)?);
            Some((self.x_at(x) + aside, self.y_at(y)))
        };
        let mut runs = vec![Vec::new()];
        for point in points {
            match (placed(point), runs.last_mut()) {
                (Some(place), Some(run)) => run.push((point, place)),
                _ => runs.push(Vec::new()),
            }
        }
        runs.retain(|run| !run.is_empty());
        runs
    }

    fn grid(&self, svg: &mut Svg) {
        for tick in &self.y.ticks {
            let y = self.y_at(tick.share);
            svg.line("grid", (self.left, y), (self.right(), y));
            let label = cut(&tick.label, TEXT, self.left - MARGIN);
            svg.text("quiet", (self.left - 6.0, y + 4.0), Anchor::End, &label);
        }
        for tick in &self.x.ticks {
            let x = self.x_at(tick.share);
            svg.line("grid", (x, self.top), (x, self.bottom()));
        }
        svg.line("axis", (self.left, self.bottom()), (self.right(), self.bottom()));
    }

    /// Labels of the ticks to the right, without those that would run into their neighbour.
    fn names_of_x(&self, svg: &mut Svg, y: f64) {
        let mut free_from = f64::NEG_INFINITY;
        for tick in &self.x.ticks {
            let (x, half) = (self.x_at(tick.share), width(&tick.label, TEXT) / 2.0);
            if x - half >= free_from {
                svg.text("quiet", (x, y), Anchor::Middle, &tick.label);
                free_from = x + half + 6.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::Unit;

    fn point(x: f64, y: f64) -> Point {
        Point { x, y, spread: Some((y * 0.9, y * 1.1)) }
    }

    fn chart(points: Vec<Point>) -> LineChart {
        LineChart {
            title: "CPU by window".to_owned(),
            description: "Less is better.".to_owned(),
            x: Axis::new("messages under way", Unit::none(), Scale::Log2),
            y: Axis::new("CPU per delivery", Unit::named("us"), Scale::Log10),
            series: vec![
                Series { name: "ours".to_owned(), style: Style(0), points },
                Series {
                    name: "<floor>".to_owned(),
                    style: Style(1),
                    points: vec![point(1.0, 0.2), point(8.0, 0.2)],
                },
            ],
            spread: Spread::Band,
        }
    }

    #[test]
    fn every_series_has_a_line_a_spread_markers_and_a_place_in_the_legend() {
        let svg = chart(vec![point(1.0, 2.0), point(8.0, 0.3)]).draw().inline();
        for class in ["line stroke0 dash0", "line stroke1 dash1", "band fill0", "band fill1"] {
            assert!(svg.contains(class), "{class}: {svg}");
        }
        assert!(svg.contains("&lt;floor&gt;") && !svg.contains("<floor>"), "{svg}");
        assert!(svg.contains("ours, 8: 300 ns (270 ns to 330 ns)"), "{svg}");
    }

    #[test]
    fn a_zero_on_a_logarithmic_axis_interrupts_the_line_and_is_told() {
        let points =
            vec![point(1.0, 2.0), point(2.0, 1.0), point(4.0, 0.0), point(8.0, 0.5), point(16.0, 0.25)];
        let svg = chart(points).draw().inline();
        assert_eq!(svg.matches(r#"<polyline class="line stroke0"#).count(), 2, "{svg}");
        assert_eq!(svg.matches("1 value is not shown").count(), 2, "seen and told: {svg}");
    }

    #[test]
    fn a_spread_that_reaches_zero_ends_at_the_rim_of_a_logarithmic_axis() {
        let svg =
            chart(vec![Point { x: 1.0, y: 1.0, spread: Some((0.0, 2.0)) }, point(2.0, 1.0)]).draw().inline();
        assert!(svg.contains("band fill0") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn no_points_one_point_and_no_numbers_are_still_a_chart() {
        for points in
            [vec![], vec![point(1.0, 1.0)], vec![point(f64::NAN, f64::INFINITY)], vec![point(0.0, 0.0); 3]]
        {
            for scale in [Scale::Linear, Scale::FromZero, Scale::Log10] {
                let mut chart = chart(points.clone());
                chart.series.truncate(1);
                chart.y.scale = scale;
                let svg = chart.draw().inline();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert_eq!(svg.contains("nothing was measured"), points.is_empty(), "{svg}");
            }
        }
    }

    #[test]
    fn a_long_series_has_a_line_and_no_markers() {
        let svg = chart((1..=500).map(|x| point(f64::from(x), 1.0)).collect()).draw().inline();
        assert_eq!(svg.matches("marker fill0").count(), 1, "that of the legend: {}", svg.len());
    }
}
