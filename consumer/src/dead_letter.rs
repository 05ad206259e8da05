//! Events that were given up: what is kept of them, and where.
//!
//! [`LogLetters`] writes them to the log, [`FileLetters`] to a file of JSON lines, [`StreamLetters`] to a Redis stream; the
//! last two can be read again and replayed.

mod file;
mod stream;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::event::{Event, EventError};
use crate::options::Home;
use crate::redis::RedisError;

pub use file::{FileLetters, LetterFile, LineMark, NumberedLetter};
pub use stream::{LetterStream, Replayed, StreamLetters, StreamedLetter};

/// Bytes of a reason that are kept.
const REASON_BYTES_MAX: usize = 1024;

/// An event that was given up, and why.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// The event, as it was published.
    pub event: Arc<Event>,
    /// What the last attempt failed with.
    pub reason: String,
    /// Attempts that failed; 0 for an event that no handler had time for.
    pub attempts: u32,
    /// Where the event came from and goes back to.
    pub home: Home,
    /// Who gave it up.
    pub server_id: String,
    /// When.
    pub died_at: SystemTime,
}

/// Where dead letters are kept.
pub trait DeadLetters: Send + Sync {
    /// Keeps `letter`. Called on workers' threads, by several at once.
    ///
    /// # Errors
    /// [`DeadLetterError`]; the consumer then counts it and writes the letter to the log.
    fn keep(&self, letter: &DeadLetter) -> Result<(), DeadLetterError>;
}

impl DeadLetters for Box<dyn DeadLetters> {
    fn keep(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
        (**self).keep(letter)
    }
}

/// Why a dead letter could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The file.
    #[error("dead letters in {path}: {error}; is the directory there, writable, and the disk not full?", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The bound of the place has been reached.
    #[error(
        "{place} holds {held}, which is its bound: replay or remove what is there (`corecast dead-letters`)"
    )]
    Full {
        /// File or stream.
        place: String,
        /// How much, with its unit.
        held: String,
    },
    /// Somebody else replays.
    #[error("another replay has {place}: wait until it has ended")]
    Busy {
        /// The file.
        place: String,
    },
    /// Redis.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// What is kept is no dead letter.
    #[error(
        "found no dead letter, due an object with channel or stream, died_at, reason, attempts and event: {0}"
    )]
    Unreadable(String),
}

/// Keeps dead letters in the log alone, one line each at level error, with the event's text in the field `event`.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogLetters;

impl DeadLetters for LogLetters {
    fn keep(&self, letter: &DeadLetter) -> Result<(), DeadLetterError> {
        letter.log();
        Ok(())
    }
}

/// A letter as it stands in a file, one line of JSON.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    died_at: String,
    /// One of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    server_id: String,
    #[serde(rename = "type", default, skip_deserializing)]
    kind: &'a str,
    attempts: u32,
    reason: String,
    #[serde(borrow)]
    event: &'a RawValue,
}

impl DeadLetter {
    /// How long ago it died; zero where clocks disagree.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.died_at).unwrap_or_default()
    }

    /// The letter as one line of JSON, without its end.
    pub fn to_json(&self) -> String {
        let text = self.event.line();
        let line = Line {
            died_at: self.died_at_text(),
            channel: matches!(self.home, Home::Channel(_)).then(|| self.home.name().to_owned()),
            stream: matches!(self.home, Home::Stream(_)).then(|| self.home.name().to_owned()),
            server_id: self.server_id.clone(),
            kind: self.event.kind(),
            attempts: self.attempts,
            reason: self.reason_cut().to_owned(),
            event: serde_json::from_str(&text).expect("an event is JSON"),
        };
        serde_json::to_string(&line).expect("strings, a number and JSON make JSON")
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// [`DeadLetterError::Unreadable`].
    pub fn from_json(line: &str) -> Result<Self, DeadLetterError> {
        let line: Line<'_> = serde_json::from_str(line).map_err(unreadable)?;
        let died_at = OffsetDateTime::parse(&line.died_at, &Rfc3339).map_err(unreadable)?;
        // RFC 3339 has no years but 0 to 9999; beside the first and the last day of these an offset leads out of them.
        let in_utc = died_at.checked_to_offset(UtcOffset::UTC).filter(|utc| (0..=9999).contains(&utc.year()));
        let out_of_years = || unreadable(format!("died_at is {}, which is no year of UTC", line.died_at));
        Ok(Self {
            event: Arc::new(line.event.get().parse().map_err(|error: EventError| unreadable(error))?),
            reason: line.reason,
            attempts: line.attempts,
            home: match (line.channel, line.stream) {
                (Some(channel), None) => Home::Channel(channel),
                (None, Some(stream)) => Home::Stream(stream),
                _ => return Err(unreadable("one of channel and stream is due")),
            },
            server_id: line.server_id,
            died_at: in_utc.ok_or_else(out_of_years)?.into(),
        })
    }

    fn died_at_text(&self) -> String {
        OffsetDateTime::from(self.died_at).format(&Rfc3339).expect("the years 0 to 9999 have this form")
    }

    fn reason_cut(&self) -> &str {
        &self.reason[..self.reason.floor_char_boundary(REASON_BYTES_MAX)]
    }

    pub(crate) fn log(&self) {
        tracing::error!(
            id = self.event.id(),
            r#type = self.event.kind(),
            attempts = self.attempts,
            reason = self.reason_cut(),
            event_json = self.event.text(),
            "dead letter"
        );
    }
}

fn unreadable(error: impl std::fmt::Display) -> DeadLetterError {
    DeadLetterError::Unreadable(error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pool::tests::event;

    pub(crate) fn letter(number: u32) -> DeadLetter {
        DeadLetter {
            event: Arc::new(event("demo.message", number)),
            reason: format!("attempt failed\nreason {number}"),
            attempts: 3,
            home: Home::Channel("broadcast.events".to_owned()),
            server_id: "server-1".to_owned(),
            died_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_771_754_400_123),
        }
    }

    #[test]
    fn a_letter_is_one_line_and_comes_back_whole() {
        let sent = letter(1);
        let line = sent.to_json();
        assert!(!line.contains('\n') && line.contains("\"died_at\":\"2026-02-22T10:00:00.123Z\""), "{line}");
        assert!(line.contains("\"type\":\"demo.message\""), "{line}");
        let back = DeadLetter::from_json(&line).unwrap();
        assert_eq!((&*back.event, &back.reason, back.attempts), (&*sent.event, &sent.reason, sent.attempts));
        assert_eq!((back.home, back.server_id, back.died_at), (sent.home, sent.server_id, sent.died_at));
    }

    #[test]
    fn a_letter_of_a_stream_goes_back_there() {
        let mut sent = letter(1);
        sent.home = Home::Stream("orders".to_owned());
        let line = sent.to_json();
        assert!(line.contains("\"stream\":\"orders\"") && !line.contains("\"channel\""), "{line}");
        assert_eq!(DeadLetter::from_json(&line).unwrap().home, sent.home);
        let both = line.replace("\"stream\"", "\"channel\":\"c\",\"stream\"");
        assert!(DeadLetter::from_json(&both).is_err());
    }

    #[test]
    fn what_is_no_letter_says_why() {
        for text in ["", "{}", "{\"event\":1}", &letter(1).to_json().replace("550e", "x")] {
            let error = DeadLetter::from_json(text).unwrap_err().to_string();
            assert!(
                error.starts_with("found no dead letter, due an object with channel or stream"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_letter_of_a_day_that_utc_has_no_name_for_is_no_letter_instead_of_a_panic() {
        let line = letter(1).to_json();
        // In UTC it is a day of the year 10000, and one of the year -1.
        for died_at in ["9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59"] {
            let text = line.replace("2026-02-22T10:00:00.123Z", died_at);
            assert!(text.contains(died_at), "{text}");
            let error = DeadLetter::from_json(&text).map(|letter| letter.to_json()).unwrap_err().to_string();
            assert!(error.contains("died_at") && error.contains(died_at), "{error}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut long = letter(1);
        long.reason = "ü".repeat(REASON_BYTES_MAX);
        let back = DeadLetter::from_json(&long.to_json()).unwrap();
        assert_eq!(back.reason, "ü".repeat(REASON_BYTES_MAX / 2));
    }
}
