//! What the logs of `corecast clients` add up to: who received which event, how often, in which order, how late.
//!
//! Reads lines that anybody may have cut, mixed or written by hand: what can't be read is counted, never guessed.

use std::collections::HashMap;
use std::io::{self, BufRead, Read};

use hdrhistogram::Histogram;

use crate::record::{Delivery, NOTE_MARK, Note};

/// Longest line: an id of that length is no id.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Pairs of event and client that are told apart: 1 GiB of bits.
const PAIRS_MAX: u64 = 8 * 1024 * 1024 * 1024;
/// Events that are told apart; 400 MB of ids.
const EVENTS_MAX: usize = 4_000_000;
/// Clients of a run, as `corecast clients` bounds them.
const CLIENTS_MAX: u32 = 1_000_000;
/// Sources' numbers that are followed for order, over all clients; 80 MB. Beyond it order is not judged, and said so.
const NUMBERS_MAX: usize = 2_000_000;
/// Longest latency that is told apart; one hour.
const LATENCY_MICROS_MAX: u64 = 3_600_000_000;

/// All runs that were read.
#[derive(Default)]
pub struct Ledger {
    pub runs: Vec<Run>,
    events: HashMap<String, u32>,
    sources: HashMap<String, u32>,
    pairs: u64,
}

/// One run of `corecast clients`.
pub struct Run {
    /// The file that it was found in.
    pub log: String,
    /// Its name; `None` where the log's beginning is missing.
    pub name: Option<String>,
    pub clients: u32,
    /// Events that each client was to get, if the run was told.
    pub events_due: Option<u64>,
    pub started_at_ms: f64,
    /// The last moment that the log tells of.
    pub ended_at_ms: f64,
    /// Whether its last line is there.
    pub is_whole: bool,
    /// Deliveries that its last line tells of.
    pub received_told: Option<u64>,
    /// Delivery lines.
    pub deliveries: u64,
    /// First deliveries of an event to a client.
    pub received: u64,
    pub duplicates: u64,
    /// Deliveries with a lower number than one before of the same source.
    pub disordered: u64,
    /// Order is not judged for some.
    pub order_unknown: bool,
    /// Deliveries without id and number: they can't be told apart.
    pub unidentified: u64,
    /// Stamps later than their arrival.
    pub early: u64,
    pub latencies: Histogram<u64>,
    pub latency_max_ms: f64,
    /// Clients that ended otherwise than asked, by how.
    pub lost: HashMap<String, u64>,
    /// Clients whose end is told.
    pub clients_ended: u64,
    /// Lines that are none of ours.
    pub unreadable: u64,
    /// Who got what: for each event a bit per client.
    members: HashMap<u32, Vec<u64>>,
    last_numbers: HashMap<(u32, u32), u64>,
}

/// The logs hold more than can be told apart.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{0} can't be read ({1})")]
    Io(String, io::Error),
    #[error(
        "{0} tells of more than {EVENTS_MAX} events or {PAIRS_MAX} pairs of event and client: report on fewer files at once"
    )]
    TooMany(String),
}

impl Ledger {
    /// Adds the runs that `input` tells of; `log` is its name.
    ///
    /// # Errors
    /// Input that can't be read, and more events and clients than can be told apart.
    pub fn read(&mut self, log: &str, input: &mut impl BufRead) -> Result<(), LedgerError> {
        let mut line = Vec::new();
        let mut current = None;
        while take_line(input, &mut line).map_err(|error| LedgerError::Io(log.to_owned(), error))? {
            let text = std::str::from_utf8(&line).unwrap_or_default();
            if text.starts_with(NOTE_MARK) {
                self.take_note(log, serde_json::from_str(text).ok(), &mut current);
                continue;
            }
            let run = *current.get_or_insert_with(|| {
                self.runs.push(Run::new(log));
                self.runs.len() - 1
            });
            match serde_json::from_str::<Delivery<'_>>(text) {
                Ok(delivery) if delivery.client < CLIENTS_MAX => self.take_delivery(run, &delivery)?,
                _ => self.runs[run].unreadable += 1,
            }
        }
        Ok(())
    }

    fn take_note(&mut self, log: &str, note: Option<Note>, current: &mut Option<usize>) {
        if let Some(Note::Run { run, started_at_ms, clients, events, .. }) = note {
            self.runs.push(Run {
                name: Some(run),
                clients: clients.min(CLIENTS_MAX),
                events_due: events,
                started_at_ms,
                ended_at_ms: started_at_ms,
                ..Run::new(log)
            });
            *current = Some(self.runs.len() - 1);
            return;
        }
        let run = *current.get_or_insert_with(|| {
            self.runs.push(Run::new(log));
            self.runs.len() - 1
        });
        self.runs[run].take_note(note);
    }

    fn take_delivery(&mut self, run: usize, delivery: &Delivery<'_>) -> Result<(), LedgerError> {
        let source = delivery.source.as_deref().unwrap_or_default();
        let key = match (&delivery.event_id, delivery.sequence) {
            (Some(id), _) => Some(format!("i{id}")),
            (None, Some(number)) => Some(format!("n{source}.{number}")),
            (None, None) => None,
        };
        let event = key.map(|key| index_of(&mut self.events, &key));
        // One source too many has no number of its own, and then order is not judged.
        let is_known = self.sources.len() < NUMBERS_MAX || self.sources.contains_key(source);
        let source = is_known.then(|| index_of(&mut self.sources, source));
        let run = &mut self.runs[run];
        self.pairs += run.take_delivery(delivery, event, source);
        if self.pairs > PAIRS_MAX || self.events.len() > EVENTS_MAX {
            return Err(LedgerError::TooMany(run.log.clone()));
        }
        Ok(())
    }
}

impl Run {
    fn new(log: &str) -> Self {
        Self {
            log: log.to_owned(),
            name: None,
            clients: 0,
            events_due: None,
            // What tells of no time comes first, where no measurement begins after it.
            started_at_ms: 0.0,
            ended_at_ms: 0.0,
            is_whole: false,
            received_told: None,
            deliveries: 0,
            received: 0,
            duplicates: 0,
            disordered: 0,
            order_unknown: false,
            unidentified: 0,
            early: 0,
            latencies: Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3)
                .expect("3 digits of an hour are a valid range"),
            latency_max_ms: 0.0,
            lost: HashMap::new(),
            clients_ended: 0,
            unreadable: 0,
            members: HashMap::new(),
            last_numbers: HashMap::new(),
        }
    }

    /// Events that at least one of its clients received.
    pub fn events(&self) -> impl Iterator<Item = u32> + '_ {
        self.members.keys().copied()
    }

    fn take_note(&mut self, note: Option<Note>) {
        match note {
            None | Some(Note::Run { .. }) => self.unreadable += 1,
            Some(Note::Ready { at_ms }) => self.ended_at_ms = self.ended_at_ms.max(at_ms),
            Some(Note::Client { end, .. }) => {
                self.clients_ended += 1;
                if end != "stopped" {
                    *self.lost.entry(end).or_default() += 1;
                }
            }
            Some(Note::End { at_ms, received, .. }) => {
                self.ended_at_ms = self.ended_at_ms.max(at_ms);
                self.is_whole = true;
                self.received_told = Some(received);
            }
        }
    }

    /// Returns how many pairs of event and client this made tellable.
    fn take_delivery(&mut self, delivery: &Delivery<'_>, event: Option<u32>, source: Option<u32>) -> u64 {
        let client = delivery.client;
        self.deliveries += 1;
        if self.started_at_ms == 0.0 {
            self.started_at_ms = delivery.received_at;
        }
        self.ended_at_ms = self.ended_at_ms.max(delivery.received_at);
        // A log without its beginning tells of as many clients as appear in it.
        self.clients = self.clients.max(client + 1);
        let Some(event) = event else {
            self.unidentified += 1;
            self.take_latency(delivery.latency_ms);
            return 0;
        };
        let words = (self.clients as usize).div_ceil(64);
        let row = self.members.entry(event).or_default();
        let grown = words.saturating_sub(row.len());
        row.resize(row.len() + grown, 0);
        let (word, bit) = (client as usize / 64, 1 << (client % 64));
        if row[word] & bit != 0 {
            self.duplicates += 1;
            return 64 * grown as u64;
        }
        row[word] |= bit;
        self.received += 1;
        self.take_latency(delivery.latency_ms);
        if let Some(number) = delivery.sequence {
            self.take_number(number, client, source);
        }
        64 * grown as u64
    }

    fn take_latency(&mut self, latency_ms: Option<f64>) {
        match latency_ms {
            Some(latency) if latency >= 0.0 => {
                self.latencies.saturating_record((latency * 1e3) as u64);
                self.latency_max_ms = self.latency_max_ms.max(latency);
            }
            Some(_) => self.early += 1,
            None => {}
        }
    }

    fn take_number(&mut self, number: u64, client: u32, source: Option<u32>) {
        let Some(source) = source else {
            self.order_unknown = true;
            return;
        };
        if let Some(last) = self.last_numbers.get_mut(&(client, source)) {
            // A publisher that starts again counts from 0 or 1.
            if number > *last || number <= 1 { *last = number } else { self.disordered += 1 }
        } else if self.last_numbers.len() < NUMBERS_MAX {
            self.last_numbers.insert((client, source), number);
        } else {
            self.order_unknown = true;
        }
    }
}

fn index_of(names: &mut HashMap<String, u32>, name: &str) -> u32 {
    if let Some(index) = names.get(name) {
        return *index;
    }
    let index = names.len() as u32;
    names.insert(name.to_owned(), index);
    index
}

/// The next line without its end; one that is too long is shown by its beginning, which no parser takes.
fn take_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let taken = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', line)?;
    if taken as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
    }
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Ok(taken > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = r#"{"line":"run","run":"1-1","started_at_ms":1000.0,"clients":2,"url":"u","preset":null,"room":null,"events":null,"threads":1,"version":"0"}"#;
    const END: &str =
        r#"{"line":"end","run":"1-1","at_ms":2000.0,"received":3,"lost":0,"reason":"a signal"}"#;

    fn delivery(client: u32, id: &str, number: u64) -> String {
        format!(
            r#"{{"client":{client},"event_id":"{id}","sequence":{number},"source":"s","published_at_ms":1,"received_at":1500.5,"latency_ms":2.5}}"#
        )
    }

    fn read(lines: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.read("log", &mut lines.join("\n").as_bytes()).unwrap();
        ledger
    }

    #[test]
    fn each_event_counts_once_per_client() {
        let lines = [RUN, &delivery(0, "a", 1), &delivery(1, "a", 1), &delivery(1, "a", 1), END];
        let run = &read(&lines).runs[0];
        assert_eq!((run.clients, run.deliveries, run.received, run.duplicates), (2, 3, 2, 1));
        assert_eq!((run.events().count(), run.is_whole, run.received_told), (1, true, Some(3)));
        assert_eq!((run.latencies.len(), run.latency_max_ms), (2, 2.5));
    }

    #[test]
    fn a_lower_number_is_disorder_but_not_when_the_publisher_starts_again() {
        let numbers = [1, 2, 4, 3, 5, 1, 2];
        let lines: Vec<String> = numbers
            .iter()
            .enumerate()
            .map(|(index, number)| delivery(0, &index.to_string(), *number))
            .collect();
        let lines: Vec<&str> = [RUN].into_iter().chain(lines.iter().map(String::as_str)).collect();
        assert_eq!(read(&lines).runs[0].disordered, 1);
    }

    #[test]
    fn a_log_that_was_cut_says_so() {
        let last = delivery(1, "a", 1);
        let run = &read(&[RUN, &delivery(0, "a", 1), &last[..40]]).runs[0];
        assert_eq!((run.is_whole, run.unreadable, run.received), (false, 1, 1));
        let headless = &read(&[&delivery(4, "a", 1), END]).runs[0];
        assert_eq!((headless.name.clone(), headless.clients), (None, 5));
    }

    #[test]
    fn two_runs_in_one_file_are_two() {
        let ledger = read(&[RUN, &delivery(0, "a", 1), END, RUN, &delivery(0, "b", 1), END]);
        assert_eq!(ledger.runs.iter().map(|run| run.received).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn events_without_an_id_are_told_apart_by_source_and_number_or_not_at_all() {
        let numbered =
            r#"{"client":0,"event_id":null,"sequence":1,"source":"s","received_at":1.0,"latency_ms":null}"#;
        let other = numbered.replace("\"s\"", "\"t\"");
        let bare = numbered.replace("\"sequence\":1", "\"sequence\":null");
        let run = &read(&[RUN, numbered, numbered, &other, &bare]).runs[0];
        assert_eq!((run.received, run.duplicates, run.unidentified), (2, 1, 1));
    }

    #[test]
    fn lines_that_are_no_log_and_numbers_out_of_range_are_only_counted() {
        let huge = delivery(u32::MAX, "a", 1);
        let long = "x".repeat(LINE_BYTES_MAX as usize + 5);
        let run = &read(&["hello", "", "{}", &huge, &long, r#"{"line":"nonsense"}"#, "[1]"]).runs[0];
        assert_eq!((run.unreadable, run.deliveries, run.clients), (7, 0, 0));
    }
}
