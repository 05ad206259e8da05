//! What this crate's readers of text promise of any input: bodies of fuzz targets, called by `fuzz/` only.

use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use crate::client::{Target, host_and_port, percent_encode};
use crate::consume::handlers;
use crate::consume::place::Place;
use crate::dialect::Kind;
use crate::doctor::redis::asked::OutputLimit;
use crate::iso8601;
use crate::marks::Marks;
use crate::record::{Delivery, Event, Received};
use crate::report::ledger::{Ledger, Run};
pub use crate::tune::fuzz::{formula, journal, plan, profile};

/// Logs of `clients`: each line is counted once, however the file is read, and the sums fit each other.
pub fn ledger(input: &[u8]) {
    let read = |buffer_bytes| {
        let mut ledger = Ledger::default();
        let outcome = ledger.read("log", &mut BufReader::with_capacity(buffer_bytes, input));
        assert!(outcome.is_ok(), "an input in memory was not read");
        ledger
    };
    let (whole, pieces) = (read(64 * 1024), read(3));
    assert_eq!(whole.runs.len(), pieces.runs.len(), "another number of runs in pieces");
    for (run, again) in whole.runs.iter().zip(&pieces.runs) {
        let sums = run.received + run.duplicates + run.unidentified;
        assert_eq!(run.deliveries, sums, "a delivery is in none or in two of the sums");
        assert!(run.latencies.len() + run.early <= run.deliveries, "more latencies than deliveries");
        assert!(run.ended_at_ms >= 0.0 && run.latency_max_ms >= 0.0, "a time below zero");
        let counts = |run: &Run| (run.deliveries, run.disordered, run.unreadable, run.clients_ended);
        assert_eq!(counts(run), counts(again), "other counts in pieces");
    }
    assert!(!crate::report::text_of(whole).is_empty(), "a report without a word");
}

/// Payloads and moments: what a delivery is written as is read back, and a moment is shown as it reads.
pub fn marks(input: &[u8]) {
    let marks = Marks::of(input);
    let received =
        Received { client: 7, event: Arc::new(Event::of(input)), at: Duration::from_micros(AT_MICROS) };
    let mut line = String::new();
    received.write(&mut line);
    assert!(line.ends_with('\n') && line.lines().count() == 1, "{line:?} is not one line");
    let read: Delivery<'_> =
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
    assert_eq!((read.client, read.sequence), (7, marks.number), "{line:?}");
    assert_eq!(
        (read.event_id.as_deref(), read.source.as_deref()),
        (marks.id.as_deref(), marks.source.as_deref())
    );
    assert_eq!(read.latency_ms.is_some(), marks.stamp.is_some(), "{line:?}");

    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = Kind::of(text);
    if let Some((moment, digits)) = iso8601::parse(text) {
        assert!(digits <= text.len(), "more digits than there are");
        let moment = Duration::from_micros(moment.as_micros() as u64);
        assert_eq!(iso8601::parse(&iso8601::text(moment)).map(|(again, _)| again), Some(moment), "{text:?}");
    }
}

/// Addresses, handlers and places on the command line: what is read is shown as it reads.
pub fn addresses(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(target) = Target::parse(text) {
        for url in
            [target.subscribe_url(&[("room", text)]), target.socket_url("/x", &[]), target.publish_url(&[])]
        {
            let again = Target::parse(&url).unwrap_or_else(|failure| panic!("{url}: {}", failure.sentence));
            assert_eq!(again.to_string(), target.to_string(), "{url} is at another place");
        }
    }
    if let Some((host, port)) = host_and_port(text, 80) {
        assert!(!host.is_empty(), "no host");
        let shown = Target::new(host.clone(), port).to_string();
        assert_eq!(host_and_port(&shown, 81), Some((host, port)), "{text:?} is shown as {shown:?}");
    }
    assert!(percent_encode(text).is_ascii(), "octets in an address");
    if let Ok(place) = text.parse::<Place>() {
        assert_eq!(place.to_string(), text, "another place");
    }
    match handlers::parse(text) {
        Ok((kind, _)) => assert!(text.starts_with(&format!("{kind}=")), "the type {kind:?}"),
        Err(sentence) => assert!(!sentence.is_empty(), "refused without a word"),
    }
    let _ = OutputLimit::parse(text);
}

/// November 2025.
const AT_MICROS: u64 = 1_763_730_000_000_000;
