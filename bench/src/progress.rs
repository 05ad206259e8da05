//! What a person sees while a scenario runs: a line on standard error, once a second at most.
//!
//! Plain lines, on a terminal and in a file alike.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const BETWEEN: Duration = Duration::from_secs(1);

/// Says which window of a scenario begins, unless the last line of this kind is younger than a second.
pub fn window(title: &str, run: usize, runs: usize) {
    static TICKER: Mutex<Option<Ticker>> = Mutex::new(None);
    let mut ticker = TICKER.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    if ticker.get_or_insert(Ticker { due: now }).is_due(now) {
        eprintln!("{title}: run {run} of {runs}");
    }
}

/// Says something now and then.
#[derive(Debug)]
pub struct Ticker {
    due: Instant,
}

impl Ticker {
    /// The first line comes after a second: what is quicker needs none.
    pub fn new() -> Self {
        Self { due: Instant::now() + BETWEEN }
    }

    /// Prints `line` if the last one was a second ago.
    pub fn tick(&mut self, line: impl FnOnce() -> String) {
        let now = Instant::now();
        if self.is_due(now) {
            eprintln!("{}", line());
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.due;
        if is_due {
            self.due = now + BETWEEN;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lies_between_two_lines() {
        let mut ticker = Ticker::new();
        let start = Instant::now();
        let lines = (0..100).filter(|tenth| ticker.is_due(start + Duration::from_millis(100 * tenth)));
        assert!((8..=10).contains(&lines.count()));
    }
}
