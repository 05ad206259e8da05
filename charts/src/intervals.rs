//! Intervals: what is known of an effect, beside the line that means none.

use crate::axis::{Axis, Span};
use crate::drawing::{Drawing, LINE, MARGIN, TEXT, WIDTH, heading, remark};
use crate::palette::Style;
use crate::svg::{Anchor, Svg};
use crate::text::{width, wrap};

/// Estimates with their confidence intervals, a row each.
#[derive(Debug, Clone)]
pub struct IntervalChart {
    /// Its name.
    pub title: String,
    /// What it shows, for those who can't see it; the values are added.
    pub description: String,
    /// Of the estimates: linear for differences, logarithmic for ratios.
    pub axis: Axis,
    /// Where there is no effect: 0 for differences, 1 for ratios.
    pub reference: f64,
    /// What lies left of the reference means, for example "better".
    pub left_means: String,
    /// What lies right of it means.
    pub right_means: String,
    /// From the top.
    pub rows: Vec<Interval>,
}

/// One estimate.
#[derive(Debug, Clone)]
pub struct Interval {
    /// What it is of.
    pub label: String,
    /// In the middle, somewhere.
    pub estimate: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
    /// Behind the numbers: how many samples, or a doubt.
    pub note: String,
}

/// On which side of the reference an interval lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaning {
    /// All of it is less.
    Below,
    /// All of it is more.
    Above,
    /// It contains the reference, or is no interval.
    Undecided,
}

impl Interval {
    /// On which side of `reference` it lies.
    pub fn leaning(&self, reference: f64) -> Leaning {
        match () {
            () if self.high < reference && self.low <= self.high => Leaning::Below,
            () if self.low > reference && self.low <= self.high => Leaning::Above,
            () => Leaning::Undecided,
        }
    }
}

impl Leaning {
    // Filled where it is decided, hollow where it is not: that is seen without colour too.
    fn style(self) -> Style {
        match self {
            Self::Below => Style(0),
            Self::Above => Style(2),
            Self::Undecided => Style(1),
        }
    }
}

const ROW: f64 = 22.0;
const TICKS_MAX: usize = 5;

impl IntervalChart {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let mut svg = Svg::default();
        let mut y = heading(&mut svg, &self.title);
        let ends = self.rows.iter().flat_map(|row| [row.estimate, row.low, row.high]);
        let span = self.axis.span(ends.chain([self.reference]), TICKS_MAX);
        let (left, right) = (MARGIN + 10.0, WIDTH - MARGIN - 10.0);
        let at = |share: f64| left + share * (right - left);
        let reference = at(span.share_within(self.reference));
        y = self.meanings(&mut svg, reference, y);
        let top = y;
        let mut rows = Svg::default();
        for row in &self.rows {
            y = self.draw_row(&mut rows, row, &span, &at, y);
        }
        for tick in &span.ticks {
            svg.line("grid", (at(tick.share), top), (at(tick.share), y));
        }
        svg.line("reference", (reference, top), (reference, y));
        svg.append(rows);
        svg.line("axis", (left, y), (right, y));
        let mut free_from = f64::NEG_INFINITY;
        for tick in &span.ticks {
            let half = width(&tick.label, TEXT) / 2.0;
            let x = at(tick.share).clamp(MARGIN + half, WIDTH - MARGIN - half);
            if x - half >= free_from {
                svg.text("quiet", (x, y + LINE), Anchor::Middle, &tick.label);
                free_from = x + half + 6.0;
            }
        }
        y += LINE;
        svg.text("quiet", (WIDTH / 2.0, y + LINE), Anchor::Middle, &self.axis.label);
        y += LINE;
        if self.rows.is_empty() {
            y = remark(&mut svg, "Nothing was measured.", y);
        }
        Drawing::new(&self.title, self.told(), y + MARGIN, svg)
    }

    /// Writes what either side of the reference means.
    fn meanings(&self, svg: &mut Svg, reference: f64, y: f64) -> f64 {
        if self.left_means.is_empty() && self.right_means.is_empty() {
            return y + 8.0;
        }
        let (left, right) = (format!("← {}", self.left_means), format!("{} →", self.right_means));
        // Each stands at the reference, but never beyond the rim.
        let left_end = (reference - 8.0).max(MARGIN + width(&left, TEXT));
        let right_start = (reference + 8.0).min(WIDTH - MARGIN - width(&right, TEXT)).max(left_end + 12.0);
        if !self.left_means.is_empty() {
            svg.text("quiet", (left_end, y + LINE), Anchor::End, &left);
        }
        if !self.right_means.is_empty() {
            svg.text("quiet", (right_start, y + LINE), Anchor::Start, &right);
        }
        y + LINE + 8.0
    }

    fn draw_row(&self, svg: &mut Svg, row: &Interval, span: &Span, at: &impl Fn(f64) -> f64, y: f64) -> f64 {
        let mut y = y;
        let numbers = self.numbers(row);
        let lines = wrap(&row.label, TEXT, WIDTH - 2.0 * MARGIN);
        for line in &lines {
            y += LINE;
            svg.text("label", (MARGIN, y - 2.0), Anchor::Start, line);
        }
        let last = lines.last().map_or(0.0, |line| width(line, TEXT));
        // The numbers stand behind the label where there is room, and below it where there is none.
        if lines.is_empty() || MARGIN + last + 16.0 + width(&numbers, TEXT) > WIDTH - MARGIN {
            for line in wrap(&numbers, TEXT, WIDTH - 2.0 * MARGIN) {
                y += LINE;
                svg.text("quiet", (WIDTH - MARGIN, y - 2.0), Anchor::End, &line);
            }
        } else {
            svg.text("quiet", (WIDTH - MARGIN, y - 2.0), Anchor::End, &numbers);
        }
        let middle = y + 8.0;
        let leaning = row.leaning(self.reference);
        if let Some(estimate) = span.share(row.estimate) {
            svg.with_tip(&format!("{}: {numbers}", row.label), |svg| {
                if row.low.is_finite() && row.high.is_finite() {
                    let (low, high) = (at(span.share_within(row.low)), at(span.share_within(row.high)));
                    svg.line(&leaning.style().solid(), (low, middle), (high, middle));
                    for x in [low, high] {
                        svg.line(&leaning.style().whisker(), (x, middle - 5.0), (x, middle + 5.0));
                    }
                }
                match leaning {
                    Leaning::Undecided => {
                        let class = format!("hollow {}", leaning.style().whisker());
                        svg.circle(&class, (at(estimate), middle), 4.0);
                    }
                    _ => leaning.style().marker(svg, (at(estimate), middle), 5.0),
                }
            });
        }
        y + ROW
    }

    fn numbers(&self, row: &Interval) -> String {
        let text = |value: f64| self.axis.unit.text(value);
        let interval = match row.low.is_finite() && row.high.is_finite() {
            true => format!("[{}, {}]", text(row.low), text(row.high)),
            false => "no interval".to_owned(),
        };
        format!("{} {interval} {}", text(row.estimate), row.note).trim().to_owned()
    }

    fn told(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let meaning = match row.leaning(self.reference) {
                Leaning::Below => &self.left_means,
                Leaning::Above => &self.right_means,
                Leaning::Undecided => "undecided",
            };
            format!("{}: {} {meaning}.", row.label, self.numbers(row))
        });
        format!("{} {}", self.description, rows.collect::<Vec<_>>().join(" ")).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axis::Scale;
    use crate::unit::Unit;

    fn row(label: &str, low: f64, estimate: f64, high: f64) -> Interval {
        Interval { label: label.to_owned(), estimate, low, high, note: String::new() }
    }

    fn chart(rows: Vec<Interval>) -> IntervalChart {
        IntervalChart {
            title: "gro off over on".to_owned(),
            description: "Ratios of CPU per delivery.".to_owned(),
            axis: Axis::new("ratio", Unit::none(), Scale::Linear),
            reference: 1.0,
            left_means: "cheaper".to_owned(),
            right_means: "dearer".to_owned(),
            rows,
        }
    }

    #[test]
    fn an_interval_that_contains_the_reference_decides_nothing() {
        assert_eq!(row("a", 0.8, 0.9, 0.99).leaning(1.0), Leaning::Below);
        assert_eq!(row("a", 1.01, 1.1, 1.2).leaning(1.0), Leaning::Above);
        assert_eq!(row("a", 0.9, 1.1, 1.2).leaning(1.0), Leaning::Undecided);
        assert_eq!(row("a", 0.9, 0.95, 1.0).leaning(1.0), Leaning::Undecided, "its end belongs to it");
        assert_eq!(row("a", f64::NAN, 0.9, f64::NAN).leaning(1.0), Leaning::Undecided);
    }

    #[test]
    fn decided_rows_are_filled_and_undecided_ones_hollow() {
        let rows =
            vec![row("fan-out", 0.8, 0.9, 0.95), row("burst", 0.9, 1.05, 1.2), row("idle", 1.1, 1.2, 1.3)];
        let svg = chart(rows).draw().inline();
        assert_eq!(svg.matches("hollow").count(), 1, "{svg}");
        assert_eq!(svg.matches("marker fill0").count() + svg.matches("marker fill2").count(), 2, "{svg}");
        assert!(svg.contains("0.9 [0.8, 0.95] cheaper."), "{svg}");
        assert!(svg.contains("1.05 [0.9, 1.2] undecided."), "{svg}");
        assert_eq!(svg.matches(r#"class="reference""#).count(), 1, "{svg}");
    }

    #[test]
    fn the_reference_is_in_sight_even_if_all_rows_lie_on_one_side() {
        let svg = chart(vec![row("a", 3.0, 3.5, 4.0)]).draw().inline();
        assert!(svg.contains(">1<") && svg.contains(">4<"), "{svg}");
    }

    #[test]
    fn no_rows_and_no_intervals_are_still_a_chart() {
        for rows in [
            vec![],
            vec![row("a", f64::NAN, 1.0, f64::NAN)],
            vec![row("b", f64::NAN, f64::NAN, f64::INFINITY)],
        ] {
            let svg = chart(rows.clone()).draw().inline();
            assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
            assert_eq!(svg.contains("Nothing was measured."), rows.is_empty(), "{svg}");
            assert_eq!(svg.contains("no interval"), !rows.is_empty(), "{svg}");
        }
    }
}
