//! What a subscriber learns from payloads: rate, latency out of their time stamps, gaps out of their sequence numbers.
//!
//! Owns no clock: the time of arrival is an argument. Payloads that carry neither stamp nor number only count.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

use crate::marks::{Marks, Unit};

/// Sources whose numbers are followed, per run of the command. Over it further sources are not followed and the summary says so.
const SOURCES_MAX: usize = 10_000;
/// Longest latency that is told apart; longer ones count as this. One hour, 3 digits: 270 KiB per histogram.
const LATENCY_NANOS_MAX: u64 = 3_600_000_000_000;

/// Everything that was seen, and the part since the last line.
pub struct Tally {
    all: Span,
    recent: Span,
    /// Last number of each (room, source).
    numbers: HashMap<(usize, String), u64>,
    sources_untold: bool,
    stamp_unit: Option<Unit>,
}

/// Counts over one stretch of time.
struct Span {
    messages: u64,
    bytes: u64,
    latency: Histogram<u64>,
    /// Stamps later than their arrival: the two clocks differ.
    early: u64,
    numbered: u64,
    missing: u64,
    repeated: u64,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            all: Span::new(),
            recent: Span::new(),
            numbers: HashMap::new(),
            sources_untold: false,
            stamp_unit: None,
        }
    }

    /// Counts `payload`, which came through connection `room_index` at `received_at`.
    pub fn note(&mut self, room_index: usize, payload: &[u8], received_at: SystemTime) {
        let marks = Marks::of(payload);
        self.count(|span| {
            span.messages += 1;
            span.bytes += payload.len() as u64;
        });
        if let Some((stamp, unit)) = marks.stamp {
            self.stamp_unit = self.stamp_unit.max(Some(unit));
            self.note_stamp(stamp, received_at.duration_since(UNIX_EPOCH).unwrap_or_default());
        }
        if let Some(number) = marks.number {
            self.note_number((room_index, marks.source.unwrap_or_default()), number);
        }
    }

    fn note_stamp(&mut self, stamp: Duration, received_at: Duration) {
        match received_at.checked_sub(stamp) {
            Some(latency) => {
                let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
                self.count(|span| span.latency.saturating_record(nanos));
            }
            None => self.count(|span| span.early += 1),
        }
    }

    fn note_number(&mut self, source: (usize, String), number: u64) {
        if self.numbers.len() >= SOURCES_MAX && !self.numbers.contains_key(&source) {
            self.sources_untold = true;
            return;
        }
        let last = self.numbers.insert(source.clone(), number);
        self.count(|span| span.numbered += 1);
        match last {
            // A publisher that starts again counts from 0 or 1.
            None => {}
            Some(last) if number <= 1 && last > 1 => {}
            Some(last) if number > last => self.count(|span| span.missing += number - last - 1),
            Some(last) => {
                // The highest number stays the mark: what a late one skipped was counted when it was skipped.
                self.numbers.insert(source, last);
                self.count(|span| span.repeated += 1);
            }
        }
    }

    fn count(&mut self, mut note: impl FnMut(&mut Span)) {
        note(&mut self.all);
        note(&mut self.recent);
    }

    /// Messages so far.
    pub fn messages(&self) -> u64 {
        self.all.messages
    }

    /// One line about what came since the last call, `since_start` into the run; begins the next stretch.
    pub fn take_line(&mut self, since_start: Duration, stretch: Duration) -> String {
        let recent = std::mem::replace(&mut self.recent, Span::new());
        let mut line = format!("{:>6.0} s  {}", since_start.as_secs_f64(), recent.rate(stretch));
        if !recent.latency.is_empty() {
            let _ = write!(line, "  {}", recent.percentiles(&[50.0, 99.0]));
        }
        if recent.missing + recent.repeated > 0 {
            let _ = write!(line, "  missing {}, repeated {}", recent.missing, recent.repeated);
        }
        line
    }

    /// The lines that end a run of `elapsed`.
    pub fn summary(&self, elapsed: Duration) -> String {
        let all = &self.all;
        let mut text = format!(
            "received {} message{} ({}) in {:.1} s: {}",
            all.messages,
            if all.messages == 1 { "" } else { "s" },
            bytes_text(all.bytes as f64),
            elapsed.as_secs_f64(),
            all.rate(elapsed)
        );
        if let Some(unit) = self.stamp_unit {
            let _ = write!(
                text,
                "\nlatency of {}: {} (stamps in {})",
                all.latency.len(),
                all.percentiles(&[50.0, 90.0, 99.0, 99.9]),
                unit.name()
            );
        }
        if all.early > 0 {
            let _ = write!(
                text,
                "\n{} stamps lie after their arrival: the publisher's clock is ahead, the latencies above are too low",
                all.early
            );
        }
        if all.numbered > 0 {
            let _ = write!(
                text,
                "\nnumbers on {}: {} missing, {} repeated or late",
                all.numbered, all.missing, all.repeated
            );
        }
        if self.sources_untold {
            let _ = write!(text, "\nnumbers of sources beyond the first {SOURCES_MAX} were not followed");
        }
        text
    }
}

impl Span {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_NANOS_MAX, 3)
            .expect("3 digits of an hour are a valid range");
        Self { messages: 0, bytes: 0, latency, early: 0, numbered: 0, missing: 0, repeated: 0 }
    }

    fn rate(&self, stretch: Duration) -> String {
        let seconds = stretch.as_secs_f64().max(0.001);
        let messages = self.messages as f64 / seconds;
        format!("{messages:.1}/s, {}/s", bytes_text(self.bytes as f64 / seconds))
    }

    fn percentiles(&self, of: &[f64]) -> String {
        let mut text = String::new();
        for percentile in of {
            let value = millis_text(self.latency.value_at_quantile(percentile / 100.0));
            let _ = write!(text, "p{percentile} {value}, ");
        }
        text + &format!("max {}", millis_text(self.latency.max()))
    }
}

fn millis_text(nanos: u64) -> String {
    let millis = nanos as f64 / 1e6;
    match millis {
        ..10.0 => format!("{millis:.3} ms"),
        10.0..1000.0 => format!("{millis:.1} ms"),
        _ => format!("{:.2} s", millis / 1e3),
    }
}

fn bytes_text(bytes: f64) -> String {
    match bytes {
        ..1024.0 => format!("{bytes:.0} B"),
        1024.0..1_048_576.0 => format!("{:.1} KiB", bytes / 1024.0),
        _ => format!("{:.1} MiB", bytes / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_millis(1_700_000_000_250);

    fn tally_of(payloads: &[&str]) -> Tally {
        let mut tally = Tally::new();
        payloads.iter().for_each(|payload| tally.note(0, payload.as_bytes(), UNIX_EPOCH + NOW));
        tally
    }

    fn latency_millis(payload: &str) -> Option<u64> {
        let tally = tally_of(&[payload]);
        (!tally.all.latency.is_empty()).then(|| (tally.all.latency.max() + 500_000) / 1_000_000)
    }

    #[test]
    fn the_unit_of_a_stamp_is_told_by_its_magnitude() {
        for payload in [
            r#"{"ts":1700000000}"#,
            r#"{"ts":1700000000.0}"#,
            r#"{"published_at_ms":1700000000000,"sequence":1}"#,
            r#"{"timestamp":1700000000000000}"#,
            r#"{"timestamp":"2023-11-14T22:13:20Z"}"#,
            r#"{"timestamp":"2023-11-15T00:13:20.000+02:00"}"#,
            r#"{"ts":1700000000000000000}"#,
            "1700000000000 hello",
            "1700000000000000000",
            r#"{"type":"message","room":"a","data":{"ts":1700000000000}}"#,
        ] {
            assert_eq!(latency_millis(payload), Some(250), "{payload}");
        }
    }

    #[test]
    fn what_is_no_time_is_not_taken_for_one() {
        for payload in
            ["42", "hello", r#"{"ts":"yesterday"}"#, r#"{"ts":17}"#, "{broken", "", "99999999999999999999999"]
        {
            assert_eq!(latency_millis(payload), None, "{payload}");
        }
    }

    #[test]
    fn a_stamp_from_the_future_is_counted_apart() {
        let tally = tally_of(&[r#"{"ts":1700000001000}"#]);
        assert_eq!((tally.all.early, tally.all.latency.len()), (1, 0));
    }

    #[test]
    fn missing_numbers_are_counted_per_room_and_source() {
        let tally = tally_of(&[
            r#"{"sequence":1,"source":"a"}"#,
            r#"{"sequence":1,"source":"b"}"#,
            r#"{"sequence":5,"source":"a"}"#,
            r#"{"sequence":2,"source":"b"}"#,
        ]);
        assert_eq!((tally.all.missing, tally.all.repeated), (3, 0));
    }

    #[test]
    fn a_late_number_is_repeated_once_and_opens_no_second_gap() {
        let tally = tally_of(&[r#"{"seq":1}"#, r#"{"seq":3}"#, r#"{"seq":2}"#, r#"{"seq":4}"#]);
        assert_eq!((tally.all.missing, tally.all.repeated), (1, 1));
    }

    #[test]
    fn a_publisher_that_starts_again_is_no_gap() {
        let tally = tally_of(&[r#"{"seq":8}"#, r#"{"seq":9}"#, r#"{"seq":1}"#, r#"{"seq":2}"#]);
        assert_eq!((tally.all.missing, tally.all.repeated), (0, 0));
    }

    #[test]
    fn a_line_tells_only_what_came_since_the_last() {
        let mut tally = tally_of(&["a", "b"]);
        let second = Duration::from_secs(1);
        assert!(tally.take_line(second, second).contains("2.0/s"));
        assert!(tally.take_line(2 * second, second).contains("0.0/s"));
        assert_eq!(tally.messages(), 2);
    }
}
