//! The elements of SVG that charts are made of, written so that every tag is closed and every text escaped.

use std::fmt::Write;

use crate::text::escape;

/// Where a text's point lies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// Elements in the order of drawing. Coordinates are kept to a tenth: a quarter of a pixel on a dense screen.
#[derive(Debug, Default)]
pub(crate) struct Svg {
    body: String,
}

impl Svg {
    pub fn into_text(self) -> String {
        self.body
    }

    /// What `other` has, on top of this.
    pub fn append(&mut self, other: Self) {
        self.body.push_str(&other.body);
    }

    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (place(from), place(to));
        self.push(&format!(r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#));
    }

    pub fn rect(&mut self, class: &str, corner: (f64, f64), size: (f64, f64)) {
        let ((x, y), (width, height)) = (place(corner), place((size.0.max(0.0), size.1.max(0.0))));
        self.push(&format!(r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"/>"#));
    }

    /// Through `points`, not closed.
    pub fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        self.push(&format!(r#"<polyline class="{class}" points="{}"/>"#, joined(points)));
    }

    /// Around `points`, filled.
    pub fn polygon(&mut self, class: &str, points: &[(f64, f64)]) {
        self.push(&format!(r#"<polygon class="{class}" points="{}"/>"#, joined(points)));
    }

    pub fn circle(&mut self, class: &str, centre: (f64, f64), radius: f64) {
        let (x, y) = place(centre);
        self.push(&format!(r#"<circle class="{class}" cx="{x}" cy="{y}" r="{radius:.1}"/>"#));
    }

    pub fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let (x, y) = place(at);
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        self.push(&format!(r#"<text class="{class}" x="{x}" y="{y}"{anchor}>{}</text>"#, escape(text)));
    }

    /// What `draw` draws, with `tip` to be read where the pointer rests on it.
    pub fn with_tip(&mut self, tip: &str, draw: impl FnOnce(&mut Self)) {
        self.push(&format!("<g><title>{}</title>", escape(tip)));
        draw(self);
        self.push("</g>");
    }

    fn push(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }
}

/// A point that a browser can place: what is no number would make it drop the element, so it goes to the corner, and debug
/// builds find who asked for it.
fn place((x, y): (f64, f64)) -> (String, String) {
    debug_assert!(x.is_finite() && y.is_finite(), "a chart draws only what has a place, not ({x}, {y})");
    (coordinate(x), coordinate(y))
}

fn coordinate(value: f64) -> String {
    let value = if value.is_finite() { value } else { 0.0 };
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

fn joined(points: &[(f64, f64)]) -> String {
    let mut text = String::new();
    for point in points {
        let (x, y) = place(*point);
        let blank = if text.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{blank}{x},{y}");
    }
    text
}
