//! What an interval means: better, worse, no difference, or that nobody can tell yet.

use std::fmt;

use serde::Serialize;

use super::plan::Better;
use super::statistics::{Interval, PAIRS_MAX};

/// What an experiment found about arm B beside arm A.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is on the good side of "the same".
    Better {
        /// Against the margin.
        size: Size,
    },
    /// The whole interval is on the bad side.
    Worse {
        /// Against the margin.
        size: Size,
    },
    /// The whole interval is within the margin.
    NoDifference,
    /// The interval holds "the same" and reaches beyond the margin.
    Undecided {
        /// About so many pairs would decide it, if they scatter as these do; `None` above [`PAIRS_MAX`].
        pairs_needed: Option<usize>,
    },
    /// Too many samples were flawed or doubtful for any of it.
    Void {
        /// Of them.
        doubtful: usize,
        /// Of all.
        samples: usize,
    },
}

/// How an effect that is certain compares with the margin, the smallest one that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// The whole interval lies beyond the margin.
    Beyond,
    /// Whether it matters is open.
    Across,
    /// The whole interval lies within the margin: it is there, and it doesn't matter.
    Below,
}

impl Verdict {
    /// Of `interval`, which came of `pairs` pairs, with `margin` as a share (0.02 for 2 %).
    ///
    /// The margin is a factor: a ratio is within 2 % from 1/1.02 to 1.02, so that exchanging the arms changes nothing.
    pub fn of(interval: &Interval, pairs: usize, better: Better, margin: f64) -> Self {
        let (low, high, margin) = (interval.low.ln(), interval.high.ln(), margin.ln_1p());
        if low <= 0.0 && high >= 0.0 {
            return match -margin <= low && high <= margin {
                true => Self::NoDifference,
                false => {
                    let half_width = (high - low) / 2.0;
                    Self::Undecided {
                        pairs_needed: pairs_needed(interval.estimate.ln(), half_width, margin, pairs),
                    }
                }
            };
        }
        let (nearest, farthest) = if low > 0.0 { (low, high) } else { (-high, -low) };
        let size = match () {
            () if nearest >= margin => Size::Beyond,
            () if farthest <= margin => Size::Below,
            () => Size::Across,
        };
        match (low > 0.0) == (better == Better::Higher) {
            true => Self::Better { size },
            false => Self::Worse { size },
        }
    }

    /// Whether the experiment has answered its question.
    pub fn is_reached(&self) -> bool {
        !matches!(self, Self::Undecided { .. } | Self::Void { .. })
    }
}

/// An interval gets narrower by the square root of its pairs. Of the two ways to an answer the nearer one counts: narrow
/// enough to leave out "the same", or to fit into the margin.
fn pairs_needed(estimate: f64, half_width: f64, margin: f64, pairs: usize) -> Option<usize> {
    let due = estimate.abs().max(margin - estimate.abs());
    let needed = (pairs as f64 * (half_width / due).powi(2)).ceil().max(pairs as f64 + 1.0);
    (needed <= PAIRS_MAX as f64).then_some(needed as usize)
}

/// A verdict in words, with the margin that it was judged by.
pub struct Words<'a> {
    pub verdict: &'a Verdict,
    pub interval: Option<&'a Interval>,
    pub margin: f64,
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let margin = percent(self.margin);
        let size = |size: Size| match size {
            Size::Beyond => format!("by more than the margin of {margin}"),
            Size::Across => format!("but perhaps by less than the margin of {margin}"),
            Size::Below => format!("but below the margin of {margin}"),
        };
        match *self.verdict {
            Verdict::Better { size: found } => write!(f, "better, {}", size(found)),
            Verdict::Worse { size: found } => write!(f, "worse, {}", size(found)),
            Verdict::NoDifference => write!(f, "no difference (within {margin})"),
            Verdict::Undecided { pairs_needed } => {
                let spans = self.interval.map_or_else(
                    || "there are too few pairs".to_owned(),
                    |interval| format!("the interval spans {}", Change::between(interval.low, interval.high)),
                );
                let pairs = pairs_needed.map_or_else(
                    || format!("longer samples or a wider margin: {PAIRS_MAX} pairs would not do"),
                    |pairs| format!("about {pairs} pairs"),
                );
                write!(f, "undecided: {spans}; it needs {pairs}")
            }
            Verdict::Void { doubtful, samples } => {
                write!(
                    f,
                    "void: {doubtful} of {samples} samples are flawed or doubtful; find out why and run it again"
                )
            }
        }
    }
}

/// A ratio as people read it: `-12.3 %`.
pub struct Change(f64);

impl Change {
    /// Of b against a.
    pub fn of(ratio: f64) -> Self {
        Self((ratio - 1.0) * 100.0)
    }

    /// Of an interval's ends.
    pub fn between(low: f64, high: f64) -> String {
        format!("{} to {}", Self::of(low), Self::of(high))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = if self.0.abs() < 1.0 { 2 } else { 1 };
        write!(f, "{:+.digits$} %", self.0)
    }
}

/// A share as people write it: `2 %`, `0.5 %`.
pub fn percent(share: f64) -> String {
    // What was written as "0.3%" is 0.003, and times 100 no longer 0.3.
    format!("{} %", (share * 1e8).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(low: f64, high: f64, margin: f64) -> Verdict {
        let interval = Interval { estimate: (low * high).sqrt(), low, high, confidence: 0.95 };
        Verdict::of(&interval, 10, Better::Lower, margin)
    }

    fn words(low: f64, high: f64, margin: f64) -> String {
        let interval = Interval { estimate: (low * high).sqrt(), low, high, confidence: 0.95 };
        let verdict = Verdict::of(&interval, 10, Better::Lower, margin);
        Words { verdict: &verdict, interval: Some(&interval), margin }.to_string()
    }

    #[test]
    fn an_interval_beside_the_same_is_better_or_worse_and_says_whether_it_matters() {
        assert_eq!(words(0.90, 0.95, 0.02), "better, by more than the margin of 2 %");
        assert_eq!(words(0.90, 0.99, 0.02), "better, but perhaps by less than the margin of 2 %");
        assert_eq!(words(0.990, 0.995, 0.02), "better, but below the margin of 2 %");
        assert_eq!(words(1.05, 1.10, 0.02), "worse, by more than the margin of 2 %");
        assert_eq!(words(1.001, 1.003, 0.005), "worse, but below the margin of 0.5 %");
    }

    #[test]
    fn what_is_better_depends_on_the_figure() {
        let interval = Interval { estimate: 1.2, low: 1.1, high: 1.3, confidence: 0.95 };
        let size = Size::Beyond;
        assert_eq!(Verdict::of(&interval, 10, Better::Higher, 0.02), Verdict::Better { size });
        assert_eq!(Verdict::of(&interval, 10, Better::Lower, 0.02), Verdict::Worse { size });
    }

    #[test]
    fn an_interval_within_the_margin_is_no_difference_and_a_wider_one_undecided() {
        assert_eq!(words(0.99, 1.01, 0.02), "no difference (within 2 %)");
        // Half as wide would fit: four times the pairs.
        assert_eq!(
            words(1.0 / 1.04, 1.04, 0.02),
            "undecided: the interval spans -3.8 % to +4.0 %; it needs about 40 pairs"
        );
        assert_eq!(
            words(0.5, 2.0, 0.01),
            "undecided: the interval spans -50.0 % to +100.0 %; it needs longer samples or a wider margin: 200 pairs would \
             not do"
        );
    }

    #[test]
    fn no_more_pairs_are_asked_for_than_an_experiment_may_have() {
        // Of 10 pairs: the width shrinks with the root of their number, to a fifth or less with 200 or more.
        for (half, due) in [(0.079_f64, Some(157)), (0.09, None)] {
            let interval = Interval { estimate: 1.0, low: (-half).exp(), high: half.exp(), confidence: 0.95 };
            let verdict = Verdict::of(&interval, 10, Better::Lower, 0.02_f64.exp() - 1.0);
            assert_eq!(verdict, Verdict::Undecided { pairs_needed: due }, "{half}");
        }
    }

    #[test]
    fn an_effect_that_is_nearly_certain_needs_few_more_pairs() {
        assert_eq!(judged(0.88, 1.001, 0.02), Verdict::Undecided { pairs_needed: Some(11) });
    }

    #[test]
    fn the_margin_is_the_same_factor_both_ways() {
        assert_eq!(judged(1.0 / 1.0199, 1.0199, 0.02), Verdict::NoDifference);
        assert!(!judged(1.0 / 1.0201, 1.0, 0.02).is_reached());
        assert!(!judged(1.0, 1.0201, 0.02).is_reached());
    }

    #[test]
    fn shares_are_told_as_they_were_written() {
        assert_eq!([0.003, 0.02, 0.125].map(percent), ["0.3 %", "2 %", "12.5 %"]);
    }
}
