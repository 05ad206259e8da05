//! Latencies: a histogram that fits a core's cache while it is filled, and travels between processes as pairs.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// 1 us to 60 s, told apart to 1 %: 2 significant digits are 20 KB of counters, 3 would be 140 KB and not stay in cache.
const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 60_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 2;

/// Counts of latencies.
pub struct Latencies(Histogram<u64>);

/// [`Latencies`] on their way between processes: nanoseconds and how often.
pub type LatencyPairs = Vec<(u64, u64)>;

/// What is printed of [`Latencies`], in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50_us: f64,
    /// 90 of 100 are below.
    pub p90_us: f64,
    /// 99 of 100.
    pub p99_us: f64,
    /// 999 of 1,000.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
    /// How many there were.
    pub count: u64,
}

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS);
        Self(histogram.expect("the bounds are constant and valid"))
    }

    /// Counts one; beyond 60 s it counts as 60 s.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Counts all of another process's.
    pub fn merge(&mut self, pairs: &LatencyPairs) {
        for (ns, count) in pairs {
            self.0.saturating_record_n(*ns, *count);
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// For [`merge`](Self::merge) elsewhere.
    pub fn pairs(&self) -> LatencyPairs {
        self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    /// For people.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1_000.0;
        Percentiles {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max() as f64 / 1_000.0,
            count: self.0.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merged_histograms_equal_one_that_saw_everything(
            all in proptest::collection::vec(0u64..2 * HIGHEST_NS, 1..300),
            parts in 1usize..5,
        ) {
            let mut one = Latencies::new();
            all.iter().for_each(|ns| one.record(*ns));
            let mut merged = Latencies::new();
            for part in all.chunks(all.len().div_ceil(parts)) {
                let mut latencies = Latencies::new();
                part.iter().for_each(|ns| latencies.record(*ns));
                merged.merge(&latencies.pairs());
            }
            prop_assert_eq!(merged.percentiles(), one.percentiles());
        }
    }

    #[test]
    fn percentiles_are_within_one_percent() {
        let mut latencies = Latencies::new();
        (1..=1_000u64).for_each(|ms| latencies.record(ms * 1_000_000));
        let found = latencies.percentiles();
        assert!((found.p50_us - 500_000.0).abs() < 5_000.0, "{found:?}");
        assert!((found.p99_us - 990_000.0).abs() < 9_900.0, "{found:?}");
        assert_eq!(found.count, 1_000);
    }
}
