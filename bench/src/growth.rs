//! Whether memory grew over a long run, told from samples that also move up and down. Pure.

use serde::Serialize;

use crate::figure::median;

/// Samples that are taken together at either end: their median forgets one that fell into a burst.
const TOGETHER: usize = 3;
/// Two samples in a row that differ by less than this share: memory has settled, and buffers have reached their size.
const SETTLED_SHARE: f64 = 0.02;

/// What became of memory between the first settled samples and the last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Growth {
    /// Index of the first settled sample.
    pub settled_at: usize,
    /// Median of the first settled samples.
    pub settled_bytes: f64,
    /// Median of the last samples.
    pub last_bytes: f64,
    /// The difference; negative where memory was given back.
    pub grown_bytes: f64,
}

impl Growth {
    /// Of samples in the order of time; `None` below two.
    ///
    /// Where nothing settles (each sample differs from the one before by more than 2 %), all from the second on count: that
    /// is growth too.
    pub fn of(samples: &[u64]) -> Option<Self> {
        if samples.len() < 2 {
            return None;
        }
        let is_like = |pair: &[u64]| pair[1].abs_diff(pair[0]) as f64 <= SETTLED_SHARE * pair[0] as f64;
        // What begins in the second half has no time left to show growth: then the beginning is compared.
        let settled_at = samples.windows(2).take(samples.len() / 2).position(is_like).map_or(1, |at| at + 1);
        let values: Vec<f64> = samples.iter().map(|bytes| *bytes as f64).collect();
        let settled = &values[settled_at..];
        // Both ends are of different samples as long as there are two.
        let together = TOGETHER.min(settled.len().div_ceil(2));
        let settled_bytes = median(&settled[..together])?;
        let last_bytes = median(&settled[settled.len() - together..])?;
        Some(Self { settled_at, settled_bytes, last_bytes, grown_bytes: last_bytes - settled_bytes })
    }

    /// Whether it grew by more than `bytes_max`.
    pub fn is_beyond(&self, bytes_max: u64) -> bool {
        self.grown_bytes > bytes_max as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_takes_while_it_warms_up_is_no_growth() {
        let samples = [10_000, 15_000, 20_000, 20_100, 20_050, 20_100, 20_100];
        let growth = Growth::of(&samples).unwrap();
        assert_eq!(growth.settled_at, 3);
        assert!(growth.grown_bytes.abs() <= 50.0, "{growth:?}");
        assert!(!growth.is_beyond(50));
    }

    #[test]
    fn a_leak_is_growth_whether_it_is_slow_or_fast() {
        let slow: Vec<u64> = (0..60).map(|at| 100_000 + 100 * at).collect();
        assert!(Growth::of(&slow).unwrap().is_beyond(5_000), "{:?}", Growth::of(&slow));
        let fast: Vec<u64> = (0..20).map(|at| 1_000 << at).collect();
        assert!(Growth::of(&fast).unwrap().is_beyond(1_000_000));
    }

    #[test]
    fn one_sample_in_a_burst_is_no_growth_wherever_it_falls() {
        for at in 2..10 {
            let mut samples = vec![50_000u64; 10];
            samples[at] = 90_000;
            assert!(!Growth::of(&samples).unwrap().is_beyond(1_000), "{at}");
        }
    }

    #[test]
    fn memory_that_is_given_back_is_negative_growth_and_one_sample_is_none() {
        let growth = Growth::of(&[9, 9, 9, 9, 5, 5, 5, 5]).unwrap();
        assert!(growth.grown_bytes < 0.0 && !growth.is_beyond(0));
        assert_eq!(Growth::of(&[1]), None);
        assert!(Growth::of(&[1_000, 5_000]).is_some());
    }
}
