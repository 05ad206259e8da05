//! A chart that has been drawn: its size, its name, and its elements.

use crate::palette::STYLE;
use crate::svg::{Anchor, Svg};
use crate::text::{escape, wrap};

/// Width of every chart in its own units: what a phone shows at about nine tenths, so that 12 stays readable.
pub(crate) const WIDTH: f64 = 440.0;
/// Between the rim and what is drawn.
pub(crate) const MARGIN: f64 = 12.0;
/// Of texts, as the style sheet has it.
pub(crate) const TEXT: f64 = 12.0;
/// What bold text of that size measures like.
pub(crate) const STRONG: f64 = 13.2;
/// From one line of text to the next.
pub(crate) const LINE: f64 = 16.0;
/// Of the heading, as the style sheet has it. Its letters are bold, which is wider.
const HEADING: f64 = 15.0;
const HEADING_LINE: f64 = 19.0;

/// A chart, ready for a page or a file. It has the width of what it stands in.
#[derive(Debug)]
pub struct Drawing {
    height: f64,
    title: String,
    description: String,
    body: String,
}

impl Drawing {
    pub(crate) fn new(title: &str, description: String, height: f64, svg: Svg) -> Self {
        Self { height, title: title.to_owned(), description, body: svg.into_text() }
    }

    /// One `<svg>` element, for a page that has [`STYLE`] in its head.
    pub fn inline(&self) -> String {
        self.element("")
    }

    /// An SVG document with its style inside.
    pub fn file(&self) -> String {
        // The style sheet has no character that XML would take for markup, which a test holds it to.
        let style = format!("<style>\n{STYLE}</style>\n");
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", self.element(&style))
    }

    fn element(&self, style: &str) -> String {
        let Self { height, title, description, body } = self;
        let (title, description) = (escape(title), escape(description));
        // role="img" makes a reader say the title and the description instead of a hundred numbers.
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {height:.0}">
<title>{title}</title>
<desc>{description}</desc>
{style}<rect width="100%" height="100%" fill="var(--chart-background)"/>
{body}</svg>"#
        )
    }
}

/// Writes the heading at the top and returns where it ends.
pub(crate) fn heading(svg: &mut Svg, title: &str) -> f64 {
    let mut y = MARGIN;
    for line in wrap(title, HEADING, WIDTH - 2.0 * MARGIN) {
        y += HEADING_LINE;
        svg.text("heading", (MARGIN, y - 5.0), Anchor::Start, &line);
    }
    y
}

/// Writes quiet lines below `y` and returns where they end.
pub(crate) fn remark(svg: &mut Svg, text: &str, mut y: f64) -> f64 {
    for line in wrap(text, TEXT, WIDTH - 2.0 * MARGIN) {
        y += LINE;
        svg.text("quiet", (MARGIN, y - 4.0), Anchor::Start, &line);
    }
    y
}

/// Says how many values have no place in the chart; nothing where all have one.
pub(crate) fn left_out(count: usize, why: &str) -> String {
    match count {
        0 => String::new(),
        1 => format!("1 value is not shown: {why}."),
        _ => format!("{count} values are not shown: {why}."),
    }
}
