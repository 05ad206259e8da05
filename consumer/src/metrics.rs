//! What a consumer counts, and how it is exposed to Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Names of unknown types that are kept; those after them are counted under the empty name.
pub const UNKNOWN_TYPES_MAX: usize = 64;

/// The counters of one moment, all read at once: `accepted` is the sum of `processed`, `dead`, `released`, `queued`,
/// `waiting` and `running`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Events taken into the queue.
    pub accepted: u64,
    /// Events that their handler took.
    pub processed: u64,
    /// Events refused because the queue was full, or because the consumer was ending.
    pub dropped: u64,
    /// Failed attempts that are tried again.
    pub retried: u64,
    /// Failed attempts, panics and time-outs included.
    pub failures: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Events given up.
    pub dead: u64,
    /// Dead letters that could not be kept where they should be, and are in the log instead.
    pub dead_unkept: u64,
    /// Entries of a stream that were taken and not handled before the end: they are pending there.
    pub released: u64,
    /// Entries of a stream that had been delivered before.
    pub redelivered: u64,
    /// Entries that had been deleted or trimmed from their stream before they were handled.
    pub missing: u64,
    /// Messages that are no events.
    pub invalid: u64,
    /// Events of types without a handler, by type; at most [`UNKNOWN_TYPES_MAX`] names and the empty one.
    pub unknown: BTreeMap<String, u64>,
    /// Events in the queue now.
    pub queued: u64,
    /// Events that wait for their next attempt now.
    pub waiting: u64,
    /// Events in the hands of workers now.
    pub running: u64,
}

impl Metrics {
    /// Events of types without a handler.
    pub fn unknown_total(&self) -> u64 {
        self.unknown.values().sum()
    }

    /// Counts an event of a type without a handler; returns whether its name is new and was kept.
    pub(crate) fn note_unknown(&mut self, kind: &str) -> bool {
        if let Some(count) = self.unknown.get_mut(kind) {
            *count += 1;
            return false;
        }
        // The empty name is no type's: an event's type is never empty.
        let is_kept = self.unknown.keys().filter(|name| !name.is_empty()).count() < UNKNOWN_TYPES_MAX;
        let name = if is_kept { kind } else { "" };
        *self.unknown.entry(name.to_owned()).or_default() += 1;
        is_kept
    }

    /// The counters in Prometheus' text format, each family with HELP and TYPE.
    pub fn exposition(&self) -> String {
        let mut page = String::new();
        for (name, kind, help, value) in self.families() {
            head(&mut page, name, kind, help);
            line(&mut page, format_args!("{name} {value}"));
        }
        let name = "corecast_consume_unknown_total";
        head(
            &mut page,
            name,
            "counter",
            "Events of types without a handler, by type; types beyond the first 64 under the empty name.",
        );
        if self.unknown.is_empty() {
            line(&mut page, format_args!("{name}{{type=\"\"}} 0"));
        }
        for (kind, count) in &self.unknown {
            line(&mut page, format_args!("{name}{{type=\"{}\"}} {count}", escaped(kind)));
        }
        page
    }

    fn families(&self) -> [(&'static str, &'static str, &'static str, u64); 15] {
        [
            ("corecast_consume_accepted_total", "counter", "Events taken into the queue.", self.accepted),
            (
                "corecast_consume_processed_total",
                "counter",
                "Events that their handler took.",
                self.processed,
            ),
            (
                "corecast_consume_dropped_total",
                "counter",
                "Events refused because the queue was full or the consumer was ending.",
                self.dropped,
            ),
            (
                "corecast_consume_retried_total",
                "counter",
                "Failed attempts that are tried again.",
                self.retried,
            ),
            ("corecast_consume_failures_total", "counter", "Failed attempts.", self.failures),
            ("corecast_consume_panics_total", "counter", "Handlers that panicked.", self.panics),
            ("corecast_consume_dead_total", "counter", "Events given up.", self.dead),
            (
                "corecast_consume_dead_unkept_total",
                "counter",
                "Dead letters that are only in the log, because their place could not take them.",
                self.dead_unkept,
            ),
            (
                "corecast_consume_released_total",
                "counter",
                "Entries of a stream that were taken and not handled before the end; they are pending there.",
                self.released,
            ),
            (
                "corecast_consume_redelivered_total",
                "counter",
                "Entries of a stream that had been delivered before.",
                self.redelivered,
            ),
            (
                "corecast_consume_missing_total",
                "counter",
                "Entries that had been deleted or trimmed from their stream before they were handled.",
                self.missing,
            ),
            ("corecast_consume_invalid_total", "counter", "Messages that are no events.", self.invalid),
            ("corecast_consume_queued", "gauge", "Events in the queue.", self.queued),
            ("corecast_consume_waiting", "gauge", "Events that wait for their next attempt.", self.waiting),
            ("corecast_consume_running", "gauge", "Events in the hands of workers.", self.running),
        ]
    }
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    line(page, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(page, "{text}").expect("a String takes everything");
}

/// A label's value: Prometheus' text format escapes these three.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_unknown_types_are_bounded_and_none_goes_uncounted() {
        let mut metrics = Metrics::default();
        for number in 0..UNKNOWN_TYPES_MAX + 10 {
            assert_eq!(metrics.note_unknown(&format!("type-{number}")), number < UNKNOWN_TYPES_MAX);
        }
        assert!(!metrics.note_unknown("type-0"));
        assert_eq!(metrics.unknown.len(), UNKNOWN_TYPES_MAX + 1);
        assert_eq!((metrics.unknown["type-0"], metrics.unknown[""]), (2, 10));
        assert_eq!(metrics.unknown_total(), UNKNOWN_TYPES_MAX as u64 + 11);
    }

    #[test]
    fn every_family_has_help_and_type_and_labels_are_escaped() {
        let mut metrics = Metrics { processed: 7, ..Metrics::default() };
        metrics.note_unknown("a\"b\\c");
        let page = metrics.exposition();
        assert!(page.contains("\ncorecast_consume_processed_total 7\n"), "{page}");
        assert!(page.contains("corecast_consume_unknown_total{type=\"a\\\"b\\\\c\"} 1\n"), "{page}");
        let count = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!((count("# HELP "), count("# TYPE "), count("corecast_")), (16, 16, 16));
    }
}
