//! The lines of a measurement's log: one JSON object each, written by `corecast clients` and read by `corecast report`.
//!
//! A log begins with a [`Note::Run`], has a line per delivery, a [`Note::Client`] at each client's end and a [`Note::End`]
//! as its last line. Whatever lacks its ending was cut off.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::marks::Marks;

/// What begins every line that is a [`Note`], and no line of a delivery.
pub const NOTE_MARK: &str = "{\"line\":";

/// A line about the run or a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Note {
    /// First of a run.
    Run {
        run: String,
        started_at_ms: f64,
        clients: u32,
        url: String,
        preset: Option<String>,
        room: Option<String>,
        /// Per client, if the run was told to end there.
        events: Option<u64>,
        threads: usize,
        version: String,
    },
    /// Every client is connected.
    Ready { at_ms: f64 },
    /// A client has ended.
    Client { client: u32, received: u64, end: String },
    /// Last of a run.
    End { run: String, at_ms: f64, received: u64, lost: u64, reason: String },
}

/// A line about a delivery, as it is read.
#[derive(Debug, PartialEq, Deserialize)]
pub struct Delivery<'a> {
    pub client: u32,
    #[serde(borrow)]
    pub event_id: Option<Cow<'a, str>>,
    pub sequence: Option<u64>,
    #[serde(borrow)]
    pub source: Option<Cow<'a, str>>,
    pub latency_ms: Option<f64>,
    /// Since 1970.
    pub received_at: f64,
}

/// What all deliveries of one event have in common, ready to be written.
#[derive(Debug)]
pub struct Event {
    /// The middle of the line, from `"event_id"` to `"published_at_ms"`.
    json: String,
    published_at: Option<Duration>,
}

/// A delivery before it is written.
#[derive(Debug, Clone)]
pub struct Received {
    /// From 0.
    pub client: u32,
    pub event: Arc<Event>,
    /// Since 1970.
    pub at: Duration,
}

impl Event {
    /// What `payload` says about itself.
    pub fn of(payload: &[u8]) -> Self {
        let marks = Marks::of(payload);
        let published_at = marks.stamp.map(|(stamp, _)| stamp);
        let json = format!(
            "\"event_id\":{},\"sequence\":{},\"source\":{},\"published_at_ms\":{}",
            json(&marks.id),
            json(&marks.number),
            json(&marks.source),
            published_at.map_or_else(|| "null".to_owned(), |at| millis(at).to_string()),
        );
        Self { json, published_at }
    }
}

impl Received {
    /// From publication to arrival in milliseconds; below zero where the publisher's clock is ahead.
    pub fn latency_ms(&self) -> Option<f64> {
        let published_at = self.event.published_at?;
        Some(match self.at.checked_sub(published_at) {
            Some(latency) => millis(latency),
            None => -millis(published_at - self.at),
        })
    }

    /// Appends the line, with its end.
    pub fn write(&self, line: &mut String) {
        let (client, json, at) = (self.client, &self.event.json, millis(self.at));
        let latency = self.latency_ms();
        // Writing to a String can't fail.
        let _ = match latency {
            Some(latency) => {
                writeln!(
                    line,
                    "{{\"client\":{client},{json},\"received_at\":{at:.3},\"latency_ms\":{latency:.3}}}"
                )
            }
            None => {
                writeln!(line, "{{\"client\":{client},{json},\"received_at\":{at:.3},\"latency_ms\":null}}")
            }
        };
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("text, a number or nothing is JSON")
}

/// Milliseconds with their fraction; exact to the microsecond until the year 2255.
pub fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(payload: &str) -> Received {
        Received {
            client: 7,
            event: Arc::new(Event::of(payload.as_bytes())),
            at: Duration::from_micros(1_768_068_834_228_139),
        }
    }

    #[test]
    fn a_delivery_is_written_with_its_latency_and_read_back() {
        let event = r#"{"event_id":"a\"b","event_type":"T","source":"s","sequence":3,"published_at_ms":1768068834227}"#;
        let mut line = String::new();
        received(event).write(&mut line);
        assert_eq!(
            line,
            "{\"client\":7,\"event_id\":\"a\\\"b\",\"sequence\":3,\"source\":\"s\",\"published_at_ms\":1768068834227,\
             \"received_at\":1768068834228.139,\"latency_ms\":1.139}\n"
        );
        let read: Delivery<'_> = serde_json::from_str(&line).unwrap();
        assert_eq!((read.client, read.event_id.as_deref()), (7, Some("a\"b")));
        assert_eq!((read.sequence, read.latency_ms), (Some(3), Some(1.139)));
    }

    #[test]
    fn a_payload_that_says_nothing_is_a_delivery_without_marks() {
        let mut line = String::new();
        received("hello").write(&mut line);
        let read: Delivery<'_> = serde_json::from_str(&line).unwrap();
        assert_eq!((read.event_id, read.sequence, read.latency_ms), (None, None, None));
    }

    #[test]
    fn a_clock_that_is_ahead_makes_a_latency_below_zero() {
        assert_eq!(received(r#"{"ts":1768068834229}"#).latency_ms(), Some(-0.861));
    }

    #[test]
    fn notes_are_told_from_deliveries_by_how_they_begin() {
        let note = Note::Client { client: 1, received: 2, end: "stopped".to_owned() };
        let text = serde_json::to_string(&note).unwrap();
        assert!(text.starts_with(NOTE_MARK), "{text}");
        assert_eq!(serde_json::from_str::<Note>(&text).unwrap(), note);
    }
}
