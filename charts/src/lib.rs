//! Charts of measurements as SVG: [`LineChart`], [`BarChart`] and [`IntervalChart`], from plain data to text.
//!
//! Pure: no file, no clock, no script, no font but the reader's own. A chart is drawn as a [`Drawing`], which goes into a
//! page ([`Drawing::inline`], beside [`STYLE`] once) or into a file of its own ([`Drawing::file`]). Every chart has a name and a
//! description for those who can't see it, says what it leaves out, and never relies on colour alone: markers, dashes and
//! names differ too. Start at the chart that you need; [`Unit`] knows how numbers are shown, [`Axis`] where they stand.

mod axis;
mod bars;
mod drawing;
mod intervals;
mod legend;
mod lines;
mod number;
mod palette;
mod svg;
mod text;
mod unit;

pub use axis::{Axis, Scale};
pub use bars::{Bar, BarChart, BarGroup, BarScale};
pub use drawing::Drawing;
pub use intervals::{Interval, IntervalChart, Leaning};
pub use lines::{LineChart, Point, Series, Spread};
pub use number::number;
pub use palette::{STYLE, STYLES, Style};
pub use text::escape;
pub use unit::Unit;
