//! A measured figure: its samples, those of the floor beside it, what is due, and whether it was reached.

use serde::Serialize;
use statistics::{Interval, interval_or_span};

/// One row of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Of the samples.
    pub unit: &'static str,
    /// One per run.
    pub samples: Vec<f64>,
    /// The floor's, one per run, where it was measured.
    pub floor: Vec<f64>,
    /// Those of the peers that were measured in the same run.
    pub peers: Vec<PeerSamples>,
    /// What is due, if anything is.
    pub target: Option<Target>,
    /// The runs lost or damaged something: a server that delivers less is cheaper, so nothing is reached then.
    pub is_flawed: bool,
}

/// What another server made of the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerSamples {
    /// As on the command line.
    pub name: String,
    /// One per run.
    pub samples: Vec<f64>,
    /// It lost or damaged something, or failed: nothing is proved by it, and nothing against it.
    pub is_flawed: bool,
}

/// What a figure has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The median is at most this.
    AtMost(f64),
    /// Run by run it is below the floor.
    BelowFloor,
    /// Run by run it is at most this share of a peer's; without that peer nothing is due.
    AtMostOfPeer {
        /// As on the command line.
        peer: &'static str,
        /// Ours over theirs.
        ratio: f64,
    },
}

/// Whether a figure reached its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Reached.
    Ok,
    /// Not reached.
    Missed,
    /// The runs don't tell: the bound lies within what they say of the ratio. More of them may.
    Undecided,
    /// Nothing was due.
    Informative,
    /// Something was due and could not be measured.
    Unmeasured,
    /// Something was due, and what was measured is no proof of it.
    Flawed,
}

impl Figure {
    /// Without a floor and a target.
    pub fn new(name: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        let (floor, peers) = (Vec::new(), Vec::new());
        Self { name: name.into(), unit, samples, floor, peers, target: None, is_flawed: false }
    }

    /// Beside the floor's samples.
    pub fn beside(mut self, floor: Vec<f64>) -> Self {
        self.floor = floor;
        self
    }

    /// The median over the floor's median.
    pub fn ratio(&self) -> Option<f64> {
        self.ratio_to(&self.floor)
    }

    /// The median over that of other samples.
    pub fn ratio_to(&self, others: &[f64]) -> Option<f64> {
        let theirs = median(others).filter(|theirs| *theirs > 0.0)?;
        median(&self.samples).map(|median| median / theirs)
    }

    /// What the runs say of the ratio to other samples, each beside that of the same run: what a machine does to both of a
    /// run cancels. A run that was cut short has its samples last, and no partner.
    pub fn interval_to(&self, others: &[f64]) -> Option<Interval> {
        let pairs: Vec<(f64, f64)> = others.iter().copied().zip(self.samples.iter().copied()).collect();
        let are_positive = pairs.iter().all(|(theirs, ours)| *theirs > 0.0 && *ours > 0.0);
        interval_or_span(&pairs).filter(|_| are_positive)
    }

    /// The same of what its target compares it with, if it does and there is such a thing.
    pub fn interval(&self) -> Option<Interval> {
        match self.target? {
            Target::AtMost(_) => None,
            Target::BelowFloor => self.interval_to(&self.floor),
            Target::AtMostOfPeer { peer, .. } => self.interval_to(&self.peer(peer)?.samples),
        }
    }

    /// What the peer called `name` made of it, if there is one.
    pub fn peer(&self, name: &str) -> Option<&PeerSamples> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// Whether the target was reached.
    pub fn verdict(&self) -> Verdict {
        let mut is_flawed = self.is_flawed;
        let reached = match self.target {
            None => return Verdict::Informative,
            Some(Target::AtMost(bound)) => match median(&self.samples) {
                Some(median) if median <= bound => Verdict::Ok,
                Some(_) => Verdict::Missed,
                None => Verdict::Unmeasured,
            },
            Some(Target::BelowFloor) => self.judge(1.0),
            Some(Target::AtMostOfPeer { peer, ratio: bound }) => {
                let Some(peer) = self.peer(peer) else { return Verdict::Informative };
                is_flawed |= peer.is_flawed;
                self.judge(bound)
            }
        };
        match reached {
            Verdict::Unmeasured => Verdict::Unmeasured,
            _ if is_flawed => Verdict::Flawed,
            reached => reached,
        }
    }

    fn judge(&self, bound: f64) -> Verdict {
        match self.interval() {
            None => Verdict::Unmeasured,
            Some(found) if found.high <= bound => Verdict::Ok,
            Some(found) if found.low > bound => Verdict::Missed,
            Some(_) => Verdict::Undecided,
        }
    }
}

/// The middle sample, or the mean of the middle two; `None` without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// From the lowest sample to the highest.
pub fn spread(samples: &[f64]) -> f64 {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let high = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if samples.is_empty() { 0.0 } else { high - low }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(figure: &Figure, target: Target) -> Verdict {
        Figure { target: Some(target), ..figure.clone() }.verdict()
    }

    #[test]
    fn the_median_is_in_the_middle_and_the_spread_spans_all() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(spread(&[]), 0.0);
    }

    #[test]
    fn a_figure_without_samples_has_reached_nothing() {
        let figure = Figure::new("x", "us", Vec::new());
        assert_eq!(figure.verdict(), Verdict::Informative);
        assert_eq!(due(&figure, Target::AtMost(1.0)), Verdict::Unmeasured);
    }

    #[test]
    fn a_figure_is_compared_with_its_bound_or_its_floor() {
        let figure = Figure::new("x", "us", vec![1.0, 2.0, 3.0]).beside(vec![1.5, 2.5, 3.5]);
        assert_eq!(due(&figure, Target::AtMost(2.0)), Verdict::Ok);
        assert_eq!(due(&figure, Target::AtMost(1.9)), Verdict::Missed);
        assert_eq!(due(&figure, Target::BelowFloor), Verdict::Ok);
        let flawed = Figure { is_flawed: true, ..figure.clone() };
        assert_eq!(due(&flawed, Target::AtMost(2.0)), Verdict::Flawed);
        assert_eq!(due(&figure.beside(vec![0.5, 1.5, 2.5]), Target::BelowFloor), Verdict::Missed);
    }

    #[test]
    fn runs_that_disagree_about_a_bound_decide_nothing_however_their_median_falls() {
        let target = Target::AtMostOfPeer { peer: "them", ratio: 0.9 };
        let mut figure = Figure::new("x", "us", vec![0.8, 0.8, 1.0]);
        figure.peers = vec![PeerSamples { name: "them".to_owned(), samples: vec![1.0; 3], is_flawed: false }];
        assert_eq!(due(&figure, target), Verdict::Undecided);
        assert!(figure.ratio_to(&[1.0; 3]).unwrap() < 0.9);
        // Fifteen runs of which one is off are told apart from fifteen that scatter about the bound.
        figure.samples = vec![0.8; 15];
        figure.samples[3] = 1.3;
        figure.peers[0].samples = vec![1.0; 15];
        assert_eq!(due(&figure, target), Verdict::Ok);
        figure.samples = (0..15).map(|at| 0.83 + 0.01 * f64::from(at)).collect();
        assert_eq!(due(&figure, target), Verdict::Undecided);
    }

    #[test]
    fn a_share_of_a_peer_is_due_only_beside_that_peer() {
        let target = Target::AtMostOfPeer { peer: "them", ratio: 0.5 };
        let mut figure = Figure::new("x", "us", vec![1.0, 2.0]);
        assert_eq!(due(&figure, target), Verdict::Informative);
        figure.peers =
            vec![PeerSamples { name: "them".to_owned(), samples: vec![2.0, 4.0], is_flawed: false }];
        assert_eq!(due(&figure, target), Verdict::Ok);
        figure.peers[0].samples = vec![1.9, 3.9];
        assert_eq!(due(&figure, target), Verdict::Missed);
        figure.peers[0].is_flawed = true;
        assert_eq!(due(&figure, target), Verdict::Flawed);
        figure.peers[0].samples.clear();
        assert_eq!(due(&figure, target), Verdict::Unmeasured);
    }
}
