//! Who was measured: our server, the floor, and other servers, in one order and with one look on the whole page.

use charts::Style;

use crate::page::run::{Figure, Run, finite};

/// Everybody who was measured in a run.
#[derive(Debug, Default)]
pub struct Sides {
    /// In the order in which they are shown.
    names: Vec<String>,
}

/// As raw results call our server.
pub const OURS: &str = "server";
/// As raw results call the plain loop.
pub const FLOOR: &str = "floor";

impl Sides {
    /// Ours first, then the floor, then the peers in the order of the command line, then who else has figures.
    pub fn of(run: &Run) -> Self {
        let mut sides = Self { names: vec![OURS.to_owned(), FLOOR.to_owned()] };
        let told = run.peers.iter().filter_map(|peer| peer.get("name")?.as_str());
        let phases = run.outcomes.iter().flat_map(|outcome| &outcome.phases).map(|phase| phase.side.as_str());
        let figures = run.table.iter().chain(run.outcomes.iter().flat_map(|outcome| &outcome.figures));
        let measured = figures.flat_map(|figure| figure.peers.keys()).map(String::as_str);
        for name in told.chain(phases).chain(measured) {
            if !name.is_empty() && !sides.names.iter().any(|known| known == name) {
                sides.names.push(name.to_owned());
            }
        }
        sides
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// How a side looks.
    pub fn style(&self, side: &str) -> Style {
        Style(self.names.iter().position(|name| name == side).unwrap_or(self.names.len()))
    }
}

/// What people call a side.
pub fn shown(side: &str) -> &str {
    if side == OURS { "ours" } else { side }
}

/// A side's samples of a figure.
pub fn samples(figure: &Figure, side: &str) -> Vec<f64> {
    match side {
        OURS => finite(&figure.samples),
        FLOOR => finite(&figure.floor_samples),
        peer => figure.peers.get(peer).map(|peer| finite(&peer.samples)).unwrap_or_default(),
    }
}

/// From the lowest sample to the highest; one sample spreads over nothing.
pub fn spread(samples: &[f64]) -> Option<(f64, f64)> {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let high = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (samples.len() > 1).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_keep_their_order_and_their_look() {
        let run = r#"{"peers": [{"name": "z"}, {"name": "a"}],
                      "outcomes": [{"phases": [{"side": "server"}, {"side": "late"}, {"side": "a"}]}]}"#;
        let sides = Sides::of(&serde_json::from_str(run).unwrap());
        assert_eq!(sides.iter().collect::<Vec<_>>(), ["server", "floor", "z", "a", "late"]);
        assert_eq!((sides.style(OURS), sides.style("a")), (Style(0), Style(3)));
    }

    #[test]
    fn one_sample_has_no_spread() {
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[1.0]), None);
        assert_eq!(spread(&[2.0, 1.0, 3.0]), Some((1.0, 3.0)));
    }
}
