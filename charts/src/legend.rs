//! Which look belongs to which series.

use crate::drawing::{LINE, MARGIN, TEXT, WIDTH};
use crate::palette::Style;
use crate::svg::{Anchor, Svg};
use crate::text::{cut, width};

const SAMPLE: f64 = 26.0;
const GAP: f64 = 6.0;
const APART: f64 = 16.0;

/// Writes names with samples of their look below `y`, in as many rows as it takes, and returns where they end.
pub(crate) fn legend<'a>(
    svg: &mut Svg,
    entries: impl Iterator<Item = (&'a str, Style)>,
    has_lines: bool,
    mut y: f64,
) -> f64 {
    let mut x = MARGIN;
    y += LINE;
    for (name, style) in entries {
        let sample = if has_lines { SAMPLE } else { 12.0 };
        let name = cut(name, TEXT, WIDTH - 2.0 * MARGIN - sample - GAP);
        let entry = sample + GAP + width(&name, TEXT);
        if x > MARGIN && x + entry > WIDTH - MARGIN {
            (x, y) = (MARGIN, y + LINE);
        }
        let middle = y - 8.0;
        if has_lines {
            svg.line(&style.stroke(), (x, middle), (x + SAMPLE, middle));
        }
        style.marker(svg, (x + sample / 2.0, middle), 4.0);
        svg.text("label", (x + sample + GAP, y - 4.0), Anchor::Start, &name);
        x += entry + APART;
    }
    y
}
