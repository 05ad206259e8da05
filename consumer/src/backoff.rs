//! How long a failed event waits for its next attempt. Pure: the random number is an argument.

use std::time::Duration;

/// Exponential backoff with full jitter: the wait before retry n is anything up to `first` x 2^(n-1), at most `max`.
///
/// Full jitter spreads the retries of a burst that failed together over the whole wait, instead of letting it come back
/// as a burst.
///
/// Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait before the first retry.
    pub first: Duration,
    /// Longest wait before any retry.
    pub max: Duration,
}

impl Default for Backoff {
    /// Up to 100 ms, doubling to 10 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// The wait after `attempts` failed attempts (1 or more); `random` is uniform over all of u64.
    pub fn wait(&self, attempts: u32, random: u64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let bound = self.first.saturating_mul(1 << doublings).min(self.max);
        bound.mul_f64(random as f64 / u64::MAX as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_its_maximum_and_jitter_takes_all_of_it() {
        let backoff = Backoff::default();
        let longest: Vec<u128> =
            [1, 2, 3, 8, 9, u32::MAX].map(|attempts| backoff.wait(attempts, u64::MAX).as_millis()).into();
        assert_eq!(longest, [100, 200, 400, 10_000, 10_000, 10_000]);
        assert_eq!(backoff.wait(3, 0), Duration::ZERO);
        assert_eq!(backoff.wait(2, u64::MAX / 2).as_millis(), 100);
    }
}
