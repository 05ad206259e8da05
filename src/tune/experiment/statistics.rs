//! What pairs of samples say about the ratio of two arms: an estimate and an interval that hold for any distribution.
//!
//! Of each pair only ln(b/a) counts, so that what a machine does to both samples of a pair cancels, and a ratio and its
//! inverse lie equally far from "the same". Under the hypothesis that arms differ by one factor these logarithms are
//! symmetric about its logarithm: in ABBA order half of the pairs begin with either arm, which turns a drift into a
//! symmetric error. That symmetry is all that Wilcoxon's signed-rank statistic needs.

/// Estimate and interval of the ratio b/a.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Hodges and Lehmann's: the median of the means of all pairs of logarithms.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Probability with which such an interval holds the true ratio: the least one above [`CONFIDENCE`] that so few pairs
    /// can have.
    pub confidence: f64,
}

/// What is asked of an interval.
pub const CONFIDENCE: f64 = 0.95;
/// With fewer no interval has [`CONFIDENCE`]: the widest one misses with 2 x 0.5^n, 6.3 % for five pairs.
pub const PAIRS_MIN: usize = 6;
/// 20,100 means of two; a sample takes seconds, so these take an hour.
pub const PAIRS_MAX: usize = 200;

/// The interval of the ratio b/a from pairs (a, b), all positive; `None` outside of [`PAIRS_MIN`] to [`PAIRS_MAX`] pairs.
///
/// Source: Hodges and Lehmann, "Estimates of location based on rank tests" (1963); Hollander and Wolfe, "Nonparametric
/// Statistical Methods", section 3.3 (Tukey's interval from Walsh averages).
pub fn interval(pairs: &[(f64, f64)]) -> Option<Interval> {
    if !(PAIRS_MIN..=PAIRS_MAX).contains(&pairs.len()) {
        return None;
    }
    let logs: Vec<f64> = pairs.iter().map(|(a, b)| (b / a).ln()).collect();
    let means = walsh_averages(&logs);
    let (outside, confidence) = critical_rank_sum(logs.len())?;
    Some(Interval {
        estimate: middle(&means).exp(),
        low: means[outside].exp(),
        high: means[means.len() - 1 - outside].exp(),
        confidence,
    })
}

/// The mean of every two of `values`, each with itself included, in order.
fn walsh_averages(values: &[f64]) -> Vec<f64> {
    let mut means: Vec<f64> = values
        .iter()
        .enumerate()
        .flat_map(|(index, one)| values[index..].iter().map(move |other| f64::midpoint(*one, *other)))
        .collect();
    means.sort_by(f64::total_cmp);
    means
}

/// The largest rank sum that is at most so rare on either side as [`CONFIDENCE`] allows, and the confidence that it gives.
///
/// So many of the smallest and of the largest means stay outside of the interval: with 10 pairs 8, as in printed tables.
fn critical_rank_sum(pairs: usize) -> Option<(usize, f64)> {
    let tail_max = (1.0 - CONFIDENCE) / 2.0;
    let tails = rank_sum_chances(pairs).into_iter().scan(0.0, |tail, chance| {
        *tail += chance;
        Some(*tail)
    });
    let rare = tails.enumerate().take_while(|(_, tail)| *tail <= tail_max);
    rare.last().map(|(rank_sum, tail)| (rank_sum, 1.0 - 2.0 * tail))
}

/// The distribution of Wilcoxon's statistic: the sum of the ranks 1 to `pairs` of which each is taken by a fair coin.
fn rank_sum_chances(pairs: usize) -> Vec<f64> {
    let mut chances = vec![0.0; pairs * (pairs + 1) / 2 + 1];
    chances[0] = 1.0;
    let mut reached = 0;
    for rank in 1..=pairs {
        for sum in (0..=reached).rev() {
            let half = chances[sum] / 2.0;
            chances[sum] = half;
            chances[sum + rank] += half;
        }
        reached += rank;
    }
    chances
}

/// The median of values in order.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::super::plan::Better;
    use super::super::verdict::Verdict;
    use super::*;

    /// SplitMix64 (Steele, Lea and Flood, 2014): a test's own numbers, the same for the same seed.
    struct Random(u64);

    impl Random {
        /// From 0 to 1, without both.
        fn unit(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * self.unit().ln()).sqrt() * (2.0 * PI * self.unit()).cos()
        }

        /// Tails that have no variance: once in a while a sample is off by factors.
        fn cauchy(&mut self) -> f64 {
            (PI * (self.unit() - 0.5)).tan()
        }

        /// What a machine does: mostly a little, and one sample in ten takes half as long again.
        fn machine(&mut self) -> f64 {
            0.01 * self.normal() + if self.unit() < 0.1 { 0.4 } else { 0.0 }
        }
    }

    type Noise = fn(&mut Random) -> f64;

    const NOISES: [(&str, Noise); 4] = [
        ("uniform", |random| 0.02 * random.unit()),
        ("normal", |random| 0.02 * random.normal()),
        ("cauchy", |random| 0.01 * random.cauchy()),
        ("machine", Random::machine),
    ];
    const ROUNDS: usize = 2_000;

    /// `pairs` pairs in ABBA order, b being `ratio` times a; each sample has noise, and the machine drifts by `drift` (as a
    /// logarithm) from one sample to the next.
    fn measured(random: &mut Random, noise: Noise, pairs: usize, ratio: f64, drift: f64) -> Vec<(f64, f64)> {
        let mut sample =
            |position: usize, level: f64| level * (noise(random) + drift * position as f64).exp();
        (0..pairs)
            .map(|pair| match pair % 2 {
                0 => {
                    let a = sample(2 * pair, 3.0);
                    (a, sample(2 * pair + 1, 3.0 * ratio))
                }
                _ => {
                    let b = sample(2 * pair, 3.0 * ratio);
                    (sample(2 * pair + 1, 3.0), b)
                }
            })
            .collect()
    }

    /// How many of [`ROUNDS`] intervals hold `ratio`.
    fn held(seed: u64, noise: Noise, pairs: usize, ratio: f64, drift: f64) -> usize {
        let mut random = Random(seed);
        (0..ROUNDS)
            .filter(|_| {
                let interval =
                    interval(&measured(&mut random, noise, pairs, ratio, drift)).expect("enough pairs");
                interval.low <= ratio && ratio <= interval.high
            })
            .count()
    }

    /// 95 % of the rounds less four standard deviations of such a count: one failure in 30,000 that is none.
    fn held_min() -> usize {
        let rounds = ROUNDS as f64;
        (rounds * CONFIDENCE - 4.0 * (rounds * CONFIDENCE * (1.0 - CONFIDENCE)).sqrt()) as usize
    }

    #[test]
    fn the_true_ratio_is_in_nineteen_of_twenty_intervals_whatever_the_noise() {
        for (seed, (name, noise)) in (1..).zip(NOISES) {
            for pairs in [PAIRS_MIN, 10, 25] {
                for ratio in [1.0, 0.9, 1.3] {
                    let held = held(seed, noise, pairs, ratio, 0.0);
                    assert!(
                        held >= held_min(),
                        "{name}, seed {seed}: {held} of {ROUNDS}, {pairs} pairs, {ratio}"
                    );
                }
            }
        }
    }

    /// An arm that waits for something is noisier than the other; the logarithms stay symmetric about their ratio as long as
    /// each arm's noise is about its own middle.
    #[test]
    fn arms_may_have_noise_of_different_widths() {
        for (seed, pairs) in (61..).zip([PAIRS_MIN, 10, 25]) {
            let mut random = Random(seed);
            let held = (0..ROUNDS)
                .filter(|_| {
                    let sample =
                        |random: &mut Random, width: f64, level: f64| level * (width * random.normal()).exp();
                    let pairs: Vec<(f64, f64)> = (0..pairs)
                        .map(|_| (sample(&mut random, 0.005, 3.0), sample(&mut random, 0.08, 3.9)))
                        .collect();
                    let interval = interval(&pairs).expect("enough pairs");
                    interval.low <= 1.3 && 1.3 <= interval.high
                })
                .count();
            assert!(held >= held_min(), "seed {seed}: {held} of {ROUNDS}, {pairs} pairs");
        }
    }

    #[test]
    fn a_drifting_machine_is_not_taken_for_a_difference() {
        for (seed, (name, noise)) in (11..).zip(NOISES) {
            // 1 % from sample to sample, as from a machine that is getting warm: e^0.4 over 20 pairs.
            let held = held(seed, noise, 20, 1.0, 0.01);
            assert!(held >= held_min(), "{name}, seed {seed}: {held} of {ROUNDS}");
        }
    }

    #[test]
    fn equal_arms_are_told_apart_in_one_experiment_of_twenty_at_most() {
        for (seed, (name, noise)) in (41..).zip(NOISES) {
            let mut random = Random(seed);
            let told_apart = (0..ROUNDS)
                .filter(|_| {
                    let interval =
                        interval(&measured(&mut random, noise, 12, 1.0, 0.001)).expect("enough pairs");
                    let verdict = Verdict::of(&interval, 12, Better::Lower, 0.02);
                    matches!(verdict, Verdict::Better { .. } | Verdict::Worse { .. })
                })
                .count();
            assert!(told_apart <= ROUNDS - held_min(), "{name}, seed {seed}: {told_apart} of {ROUNDS}");
        }
    }

    #[test]
    fn an_interval_is_no_wider_than_it_must_be() {
        // With 20 pairs the interval of a normal mean is 2.09 x 1.41 x 2 % / 4.47 to either side: 1.3 %.
        let mut random = Random(21);
        let mut widths: Vec<f64> = (0..ROUNDS)
            .map(|_| interval(&measured(&mut random, NOISES[1].1, 20, 1.0, 0.0)).expect("enough pairs"))
            .map(|interval| (interval.high / interval.low).ln() / 2.0)
            .collect();
        widths.sort_by(f64::total_cmp);
        assert!((0.012..0.015).contains(&middle(&widths)), "{}", middle(&widths));
    }

    #[test]
    fn the_critical_rank_sums_are_those_of_the_printed_tables() {
        // Wilcoxon's table, two-sided 5 %: pairs and the largest sum that is rare enough.
        for (pairs, due) in [(6, 0), (7, 2), (8, 3), (9, 5), (10, 8), (15, 25), (20, 52), (25, 89)] {
            let (rank_sum, confidence) = critical_rank_sum(pairs).expect("enough pairs");
            assert_eq!(rank_sum, due, "{pairs} pairs");
            assert!((CONFIDENCE..1.0).contains(&confidence), "{pairs} pairs: {confidence}");
        }
        assert_eq!(critical_rank_sum(PAIRS_MIN - 1), None);
    }

    #[test]
    fn arms_that_are_always_equal_have_an_interval_of_no_width() {
        let found = interval(&[(2.0, 2.0); PAIRS_MIN]).expect("enough pairs");
        assert_eq!((found.estimate, found.low, found.high), (1.0, 1.0, 1.0));
    }

    #[test]
    fn exchanging_the_arms_turns_the_interval_round() {
        let mut random = Random(31);
        for pairs in [PAIRS_MIN, 11, PAIRS_MAX] {
            let there = measured(&mut random, NOISES[1].1, pairs, 1.1, 0.0);
            let back: Vec<_> = there.iter().map(|(a, b)| (*b, *a)).collect();
            let (there, back) = (interval(&there).expect("enough"), interval(&back).expect("enough"));
            for (one, other) in
                [(there.estimate, back.estimate), (there.low, back.high), (there.high, back.low)]
            {
                assert!((one * other - 1.0).abs() < 1e-12, "{there:?} {back:?}");
            }
        }
    }

    #[test]
    fn too_few_pairs_and_too_many_have_no_interval() {
        assert_eq!(interval(&[(1.0, 1.0); PAIRS_MIN - 1]), None);
        assert_eq!(interval(&vec![(1.0, 1.0); PAIRS_MAX + 1]), None);
    }
}
