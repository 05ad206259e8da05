//! What Redis says against last values, for the log: each kind once, until none has come for a while.
//!
//! Redis would say it thousands of times a second, and may refuse some keys and take others between them.

use std::mem::Discriminant;
use std::time::{Duration, Instant};

use crate::redis::SessionError;

/// Faults of the present spell.
#[derive(Default)]
pub(super) struct LastValueFaults {
    /// A few: commands times kinds of errors.
    said: Vec<(&'static str, Discriminant<SessionError>)>,
    last_at: Option<Instant>,
}

impl LastValueFaults {
    /// Takes the outcome of `command` on `key`, and writes a line where it is news.
    pub(super) fn note(
        &mut self,
        command: &'static str,
        key: &str,
        error: Option<&SessionError>,
        now: Instant,
    ) {
        if !self.is_news(command, error, now) {
            return;
        }
        match error {
            Some(reason) => {
                tracing::warn!(key, %reason, "a last value could not be kept or read; newcomers wait for the next event");
            }
            None => tracing::info!("redis keeps last values again"),
        }
    }

    fn is_news(&mut self, command: &'static str, error: Option<&SessionError>, now: Instant) -> bool {
        let Some(error) = error else {
            let is_over =
                self.last_at.is_some_and(|last_at| now.saturating_duration_since(last_at) >= OVER_AFTER);
            if is_over {
                *self = Self::default();
            }
            return is_over;
        };
        self.last_at = Some(now);
        let fault = (command, std::mem::discriminant(error));
        let is_new = !self.said.contains(&fault);
        if is_new {
            self.said.push(fault);
        }
        is_new
    }
}

/// A spell is over at the first success after this long without a fault.
const OVER_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_refused_among_others_that_are_not_are_one_spell() {
        let error = |text: &str| SessionError::Rejected { what: "SET".to_owned(), text: text.to_owned() };
        let not_now = SessionError::NotNow("LOADING".to_owned());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut faults = LastValueFaults::default();
        assert!(!faults.is_news("SET", None, at(0)), "it has always been well");
        assert!(faults.is_news("SET", Some(&error("OOM")), at(1)));
        for second in 1..30 {
            assert!(!faults.is_news("SET", None, at(second)));
            assert!(!faults.is_news("SET", Some(&error("OOM of another key")), at(second)));
        }
        assert!(faults.is_news("GET", Some(&error("WRONGTYPE")), at(30)), "another command");
        assert!(faults.is_news("SET", Some(&not_now), at(30)), "another kind");
        assert!(!faults.is_news("GET", None, at(39)));
        assert!(faults.is_news("GET", None, at(40)), "it is over");
        assert!(!faults.is_news("GET", None, at(41)));
        assert!(faults.is_news("SET", Some(&error("OOM")), at(42)), "and begins again");
    }
}
