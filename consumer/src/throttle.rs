//! What is said of things that happen for each message: how many since the last word, and one of them. Time is an argument.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a thing that happens for each message is said.
const SAID_EVERY: Duration = Duration::from_secs(1);

/// Says a thing at most once per [`SAID_EVERY`], and every time it happened in one of its words.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    said_at: Option<Instant>,
    unsaid: Option<Word>,
}

/// What is to be said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// How many it speaks of.
    pub events: u64,
    /// The error of the first of them.
    pub error: String,
}

impl Throttle {
    /// Notes one. What is to be said now, if anything is.
    pub(crate) fn note(&mut self, error: &dyn Display, now: Instant) -> Option<Word> {
        match &mut self.unsaid {
            Some(unsaid) => unsaid.events += 1,
            None => self.unsaid = Some(Word { events: 1, error: error.to_string() }),
        }
        self.due(now)
    }

    /// When [`due`](Self::due) has something to say.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        self.unsaid.as_ref().map(|_| self.said_at.map_or(now, |said_at| said_at + SAID_EVERY))
    }

    /// What happened since the last word, once that is old enough.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Word> {
        if self.next_due(now)? > now {
            return None;
        }
        self.said_at = Some(now);
        self.rest()
    }

    /// The same however old the last word is, because nothing may follow.
    pub(crate) fn rest(&mut self) -> Option<Word> {
        self.unsaid.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(events: u64, error: &str) -> Option<Word> {
        Some(Word { events, error: error.to_owned() })
    }

    #[test]
    fn what_happens_for_each_message_is_said_once_a_second_with_its_count() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        assert_eq!(throttle.note(&"a", start), word(1, "a"));
        assert_eq!(throttle.note(&"b", start), None);
        assert_eq!(throttle.note(&"c", start + SAID_EVERY / 2), None);
        assert_eq!(throttle.note(&"d", start + SAID_EVERY), word(3, "b"));
    }

    #[test]
    fn what_nothing_follows_is_said_all_the_same() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        assert_eq!((throttle.next_due(start), throttle.due(start)), (None, None));
        for _ in 0..3 {
            throttle.note(&"a", start);
        }
        assert_eq!(throttle.next_due(start), Some(start + SAID_EVERY));
        assert_eq!(throttle.due(start + SAID_EVERY / 2), None);
        assert_eq!(throttle.due(start + SAID_EVERY), word(2, "a"));
        assert_eq!(throttle.next_due(start + SAID_EVERY), None);
        throttle.note(&"a", start + SAID_EVERY);
        assert_eq!((throttle.rest(), throttle.rest()), (word(1, "a"), None));
    }
}
