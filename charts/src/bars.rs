//! Bars: one figure of several sides beside each other, with the way from the lowest sample to the highest.

use crate::axis::{Axis, Scale, Span};
use crate::drawing::{Drawing, LINE, MARGIN, STRONG, TEXT, WIDTH, heading, remark};
use crate::palette::Style;
use crate::svg::{Anchor, Svg};
use crate::text::{cut, width, wrap};
use crate::unit::Unit;

/// One figure of several sides, in groups.
#[derive(Debug, Clone)]
pub struct BarChart {
    /// Its name.
    pub title: String,
    /// What it shows, for those who can't see it; the values of small charts are added.
    pub description: String,
    /// Of all values.
    pub unit: Unit,
    /// Which bars can be compared by their length.
    pub scale: BarScale,
    /// From the top.
    pub groups: Vec<BarGroup>,
}

/// Which bars can be compared by their length. All begin at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarScale {
    /// All of a chart.
    Shared,
    /// Those of a group: where groups differ by orders of magnitude, and only sides are compared.
    PerGroup,
}

/// Bars under one heading.
#[derive(Debug, Clone)]
pub struct BarGroup {
    /// Its heading.
    pub label: String,
    /// From the top.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Beside it.
    pub name: String,
    /// Its look.
    pub style: Style,
    /// Its length; what is no number leaves it out and says so.
    pub value: f64,
    /// The lowest and the highest sample.
    pub spread: Option<(f64, f64)>,
    /// Behind the value: a ratio, or why it is no proof.
    pub note: String,
}

const BAR: f64 = 13.0;
const ROW: f64 = 20.0;
/// Of the room beside the names, what the longest bar and its whisker leave to the value behind it.
const NAMES_MAX: f64 = 120.0;
const TOLD_MAX: usize = 24;

impl BarChart {
    /// Draws it.
    pub fn draw(&self) -> Drawing {
        let mut svg = Svg::default();
        let mut y = heading(&mut svg, &self.title);
        if self.scale == BarScale::PerGroup && self.groups.len() > 1 {
            y = remark(&mut svg, "Each group has a scale of its own.", y);
        }
        let bars = || self.groups.iter().flat_map(|group| &group.bars);
        let shared = self.span(bars());
        let names = bars().map(|bar| width(&bar.name, TEXT)).fold(0.0, f64::max).min(NAMES_MAX);
        let behind = bars().map(|bar| width(&self.behind(bar), TEXT)).fold(0.0, f64::max).min(170.0);
        let columns = Columns { names, left: MARGIN + names + 8.0, right: WIDTH - MARGIN - behind - 8.0 };
        for group in &self.groups {
            // A chart of one group may be called what the group is called: once is enough.
            let label = if group.label == self.title { "" } else { &group.label };
            for line in wrap(label, STRONG, WIDTH - 2.0 * MARGIN) {
                y += LINE;
                svg.text("strong", (MARGIN, y), Anchor::Start, &line);
            }
            y += 6.0;
            let own = self.span(group.bars.iter());
            let span = if self.scale == BarScale::Shared { &shared } else { &own };
            let top = y;
            for bar in &group.bars {
                self.draw_bar(&mut svg, &columns, span, bar, y);
                y += ROW;
            }
            svg.line("axis", (columns.left, top), (columns.left, y - (ROW - BAR)));
            y += 4.0;
        }
        if bars().next().is_none() {
            y = remark(&mut svg, "Nothing was measured.", y);
        }
        Drawing::new(&self.title, self.told(), y + MARGIN, svg)
    }

    fn span<'a>(&self, bars: impl Iterator<Item = &'a Bar>) -> Span {
        let ends = |bar: &Bar| [Some(bar.value), bar.spread.map(|s| s.0), bar.spread.map(|s| s.1)];
        let axis = Axis::new("", self.unit.clone(), Scale::FromZero);
        axis.exact_span(bars.flat_map(ends).flatten())
    }

    fn draw_bar(&self, svg: &mut Svg, columns: &Columns, span: &Span, bar: &Bar, y: f64) {
        let name = cut(&bar.name, TEXT, columns.names);
        let middle = y + BAR / 2.0;
        svg.text("label", (columns.left - 8.0, middle + 4.0), Anchor::End, &name);
        let mut end = columns.left;
        if let Some(share) = span.share(bar.value) {
            let (zero, value) = (columns.at(span.share_within(0.0)), columns.at(share));
            let spread = bar.spread.filter(|(low, high)| low.is_finite() && high.is_finite());
            svg.with_tip(&self.tip(bar), |svg| {
                svg.rect(&bar.style.fill(), (zero.min(value), y), ((value - zero).abs().max(1.0), BAR));
                if let Some((low, high)) = spread {
                    let (low, high) =
                        (columns.at(span.share_within(low)), columns.at(span.share_within(high)));
                    svg.line("on-bar", (low, middle), (high, middle));
                    for x in [low, high] {
                        svg.line("on-bar", (x, y + 3.0), (x, y + BAR - 3.0));
                    }
                    end = end.max(high);
                }
            });
            end = end.max(value);
        }
        svg.text("label", (end + 6.0, middle + 4.0), Anchor::Start, &self.behind(bar));
    }

    /// What stands behind a bar.
    fn behind(&self, bar: &Bar) -> String {
        format!("{} {}", self.unit.text(bar.value), bar.note).trim().to_owned()
    }

    fn tip(&self, bar: &Bar) -> String {
        let spread = bar.spread.map_or(String::new(), |(low, high)| {
            format!(" ({} to {})", self.unit.text(low), self.unit.text(high))
        });
        format!("{}: {}{spread}", bar.name, self.behind(bar))
    }

    fn told(&self) -> String {
        let count: usize = self.groups.iter().map(|group| group.bars.len()).sum();
        if count > TOLD_MAX {
            return self.description.clone();
        }
        let groups = self.groups.iter().map(|group| {
            let bars: Vec<_> = group.bars.iter().map(|bar| self.tip(bar)).collect();
            format!("{}: {}.", group.label, bars.join("; "))
        });
        format!("{} {}", self.description, groups.collect::<Vec<_>>().join(" ")).trim().to_owned()
    }
}

/// Where names end, and from where to where bars go.
struct Columns {
    names: f64,
    left: f64,
    right: f64,
}

impl Columns {
    fn at(&self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, style: usize, value: f64) -> Bar {
        let spread = Some((value * 0.5, value * 1.5));
        Bar { name: name.to_owned(), style: Style(style), value, spread, note: String::new() }
    }

    fn chart(groups: Vec<Vec<Bar>>, scale: BarScale) -> BarChart {
        let group = |(place, bars): (usize, Vec<Bar>)| BarGroup { label: format!("scenario {place}"), bars };
        BarChart {
            title: "CPU per delivery".to_owned(),
            description: "Shorter is better.".to_owned(),
            unit: Unit::named("us"),
            scale,
            groups: groups.into_iter().enumerate().map(group).collect(),
        }
    }

    fn widths(svg: &str) -> Vec<f64> {
        let bars = svg.lines().filter(|line| line.starts_with("<rect class=\"fill"));
        bars.map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn lengths_are_values_from_zero_on() {
        let svg =
            chart(vec![vec![bar("ours", 0, 1.0), bar("floor", 1, 2.0)]], BarScale::Shared).draw().inline();
        let widths = widths(&svg);
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
        assert!(svg.contains(">1 µs<") && svg.contains(">2 µs<"), "{svg}");
        assert!(svg.contains("ours: 1 µs (500 ns to 1.5 µs)"), "{svg}");
    }

    #[test]
    fn groups_share_a_scale_or_have_their_own() {
        let groups = || vec![vec![bar("ours", 0, 1.0)], vec![bar("ours", 0, 100.0)]];
        let shared = widths(&chart(groups(), BarScale::Shared).draw().inline());
        assert!((shared[1] / shared[0] - 100.0).abs() < 5.0, "{shared:?}");
        let svg = chart(groups(), BarScale::PerGroup).draw().inline();
        let own = widths(&svg);
        assert!((own[1] / own[0] - 1.0).abs() < 0.01, "{own:?}");
        assert!(svg.contains("a scale of its own"), "{svg}");
    }

    #[test]
    fn what_was_not_measured_has_its_row_and_no_bar() {
        let mut unmeasured = bar("peer", 2, f64::NAN);
        unmeasured.note = "FLAWED".to_owned();
        let svg = chart(vec![vec![bar("ours", 0, 0.0), unmeasured]], BarScale::Shared).draw().inline();
        assert!(svg.contains("no value FLAWED") && svg.contains(">0 µs<"), "{svg}");
        assert_eq!(widths(&svg).len(), 1, "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn no_groups_are_said_to_be_none() {
        assert!(chart(vec![], BarScale::Shared).draw().inline().contains("Nothing was measured."));
    }
}
