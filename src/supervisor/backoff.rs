//! How long a dead process stays dead: at once the first time, then twice as long each time it does not last.

use std::time::Duration;

/// The first wait of a row of deaths that follow each other; doubled by each.
const WAIT_MIN: Duration = Duration::from_millis(200);
/// The longest. A process that can't start costs an attempt each 10 s, and is back that soon when it can.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Who has served for so long has lasted: his end begins a new row.
const LASTING: Duration = Duration::from_secs(10);

/// The deaths of one process that follow each other.
#[derive(Debug, Default)]
pub struct Backoff {
    row: u32,
}

impl Backoff {
    /// After a death: how long to wait before the next start. `served` is how long the dead one was ready, `jitter` from 0 up
    /// to 1: processes that die together don't come back together.
    pub fn wait(&mut self, served: Duration, jitter: f64) -> Duration {
        if served >= LASTING {
            self.row = 0;
        }
        let doubled = 2u32.saturating_pow(self.row.saturating_sub(1));
        let wait = if self.row == 0 { Duration::ZERO } else { (WAIT_MIN * doubled).min(WAIT_MAX) };
        self.row = self.row.saturating_add(1).min(ROW_MAX);
        // Down to half of it.
        wait.mul_f64(1.0 - jitter / 2.0)
    }

    /// Whether the process dies as fast as it is started.
    pub fn is_crash_loop(&self) -> bool {
        self.row >= CRASH_LOOP
    }
}

/// So many deaths in a row are no accident.
const CRASH_LOOP: u32 = 3;
/// 200 ms x 2^15 is far beyond [`WAIT_MAX`].
const ROW_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_death_costs_no_wait_and_a_row_of_them_ever_longer_ones() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.wait(Duration::ZERO, 0.0).as_millis()).collect();
        assert_eq!(waits, [0, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert!((0..100).all(|_| backoff.wait(Duration::ZERO, 0.0) == WAIT_MAX));
    }

    #[test]
    fn who_has_served_for_a_while_begins_a_new_row() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.wait(Duration::ZERO, 0.0);
        }
        assert!(backoff.is_crash_loop());
        assert_eq!(backoff.wait(LASTING, 0.0), Duration::ZERO);
        assert!(!backoff.is_crash_loop());
    }

    #[test]
    fn jitter_takes_off_up_to_half() {
        let mut backoff = Backoff { row: 2 };
        assert_eq!(backoff.wait(Duration::ZERO, 0.5), Duration::from_millis(300));
    }
}
