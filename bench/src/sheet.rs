//! The samples that a scenario gathers, by figure and side, until they become figures. Pure.

use crate::figure::{Figure, PeerSamples};
use crate::peer::{FLOOR, OURS};

/// Samples of several figures. Figures keep the order in which they were first noted.
#[derive(Debug, Default)]
pub struct Sheet {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    samples: Vec<(String, f64)>,
}

impl Sheet {
    /// Makes room for a figure, so that it is shown even without samples.
    pub fn declare(&mut self, name: impl Into<String>, unit: &'static str) {
        self.row(name.into(), unit);
    }

    /// Takes one sample of `side`.
    pub fn note(&mut self, name: impl Into<String>, unit: &'static str, side: &str, sample: f64) {
        self.row(name.into(), unit).samples.push((side.to_owned(), sample));
    }

    fn row(&mut self, name: String, unit: &'static str) -> &mut Row {
        let at = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => at,
            None => {
                self.rows.push(Row { name, unit, samples: Vec::new() });
                self.rows.len() - 1
            }
        };
        &mut self.rows[at]
    }

    /// The figures: ours, beside the floor's and the `peers`' (name, and whether what it did is no proof of anything).
    pub fn figures(&self, peers: &[(String, bool)]) -> Vec<Figure> {
        let figure = |row: &Row| {
            let of = |side: &str| -> Vec<f64> {
                row.samples.iter().filter(|(name, _)| name == side).map(|(_, sample)| *sample).collect()
            };
            let mut figure = Figure::new(row.name.clone(), row.unit, of(OURS)).beside(of(FLOOR));
            figure.peers = peers
                .iter()
                .map(|(name, is_flawed)| PeerSamples {
                    name: name.clone(),
                    samples: of(name),
                    is_flawed: *is_flawed,
                })
                .collect();
            figure
        };
        self.rows.iter().map(figure).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_end_beside_each_other_by_side() {
        let mut sheet = Sheet::default();
        sheet.declare("late", "ms");
        for (side, sample) in [(FLOOR, 4.0), (OURS, 1.0), ("b", 3.0), (OURS, 2.0)] {
            sheet.note("cost", "us", side, sample);
        }
        let figures = sheet.figures(&[("a".to_owned(), true), ("b".to_owned(), false)]);
        assert_eq!(figures.iter().map(|figure| figure.name.as_str()).collect::<Vec<_>>(), ["late", "cost"]);
        assert!(figures[0].samples.is_empty());
        assert_eq!((&figures[1].samples, &figures[1].floor), (&vec![1.0, 2.0], &vec![4.0]));
        let peers: Vec<_> = figures[1].peers.iter().map(|peer| (&peer.name[..], &peer.samples[..])).collect();
        assert_eq!(peers, [("a", &[][..]), ("b", &[3.0][..])]);
        assert!(figures[1].peers[0].is_flawed);
    }
}
