//! `corecast report`: the table of a measurement, out of the logs of `corecast clients`.

pub mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::exit::{self, Failure};
use ledger::{Ledger, LedgerError, Run};

/// Counts deliveries and latencies in the logs of `corecast clients`.
#[derive(Debug, Args)]
#[command(
    after_help = "Runs that overlap in time are one measurement: their clients are added, and an event that any of them received was
due to all. Of a folder only the last measurement is reported.

Events are those that at least one client received, or as many as --events says here or said to `corecast clients`: what
nobody received can't be known from the logs alone, and then isn't among the dropped ones.

Exit codes: 0 reported, 1 with --strict when anything is amiss, 2 usage, 69 no logs there."
)]
pub struct ReportArgs {
    /// Log files, or folders of them
    #[arg(value_name = "DIR|FILE", default_value = "logs")]
    paths: Vec<PathBuf>,
    /// Events that were published while the clients were connected
    #[arg(long, value_name = "N")]
    events: Option<u64>,
    /// Add up all measurements of a folder
    #[arg(long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Exit with 1 if a delivery was dropped, doubled or out of order, or a log is incomplete
    #[arg(long)]
    strict: bool,
}

/// Reads the logs and prints the table.
///
/// # Errors
/// Logs that aren't there or can't be read.
pub fn run(args: ReportArgs) -> anyhow::Result<ExitCode> {
    let mut ledger = Ledger::default();
    for path in files(&args.paths)? {
        let name = path.display().to_string();
        let file = File::open(&path).with_context(|| format!("the log {name} can't be opened"))?;
        ledger.read(&name, &mut BufReader::with_capacity(256 * 1024, file)).map_err(failure)?;
    }
    if let Some(run) = ledger.runs.iter().find(|run| run.name.is_none() && run.deliveries == 0) {
        let sentence = format!(
            "{} is no log of `corecast clients`: none of its {} lines tells of a run or a delivery",
            run.log, run.unreadable
        );
        return Err(Failure::new(exit::UNAVAILABLE, sentence).into());
    }
    if ledger.runs.is_empty() {
        return Err(no_logs("no lines", &args.paths).into());
    }
    let measurements = measurements(ledger.runs);
    let is_folder = args.paths.iter().any(|path| path.is_dir());
    let skipped = if is_folder && !args.all { measurements.len().saturating_sub(1) } else { 0 };
    let report = Report::of(&measurements[skipped..], args.events, skipped);
    let text = if args.json {
        format!("{}\n", serde_json::to_string(&report).context("the report can't be written as JSON")?)
    } else {
        report.text()
    };
    // That nobody reads on is no fault.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::from(if args.strict && !report.is_clean() { exit::FAILED } else { 0 }))
}

/// The table of all measurements in `ledger`.
#[cfg(feature = "fuzz")]
pub fn text_of(ledger: Ledger) -> String {
    Report::of(&measurements(ledger.runs), None, 0).text()
}

fn failure(error: LedgerError) -> Failure {
    Failure::new(exit::FAILED, error.to_string())
}

/// The logs among `paths`, those of folders by their names' order, which is that of time.
fn files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut found = logs_in(path)?;
            found.sort();
            files.append(&mut found);
        } else {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        return Err(no_logs("no logs (*.jsonl)", paths).into());
    }
    Ok(files)
}

fn no_logs(found: &str, paths: &[PathBuf]) -> Failure {
    let places: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let sentence = format!("{found} in {}: measure with `corecast clients N` first", places.join(", "));
    Failure::new(exit::UNAVAILABLE, sentence)
}

fn logs_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("the folder {} can't be read", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Runs that overlap in time are one measurement; in order of time.
fn measurements(mut runs: Vec<Run>) -> Vec<Vec<Run>> {
    runs.sort_by(|one, other| one.started_at_ms.total_cmp(&other.started_at_ms));
    let mut measurements: Vec<Vec<Run>> = Vec::new();
    let mut ended_at_ms = f64::NEG_INFINITY;
    for run in runs {
        let run_ended_at_ms = run.ended_at_ms;
        match measurements.last_mut() {
            Some(last) if run.started_at_ms <= ended_at_ms => last.push(run),
            _ => {
                measurements.push(vec![run]);
                ended_at_ms = f64::NEG_INFINITY;
            }
        }
        ended_at_ms = ended_at_ms.max(run_ended_at_ms);
    }
    measurements
}

/// What is printed.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct Report {
    clients: u64,
    events: u64,
    expected: u64,
    received: u64,
    dropped: u64,
    duplicates: u64,
    disordered: u64,
    /// Without id and number.
    unidentified: u64,
    lost_clients: u64,
    /// `None` where no event carried a stamp.
    latency_ms: Option<Latency>,
    /// Of the same folder; not reported.
    earlier_measurements: usize,
    /// What a reader must know before believing the numbers.
    notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Latency {
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Report {
    fn of(measurements: &[Vec<Run>], events_due: Option<u64>, skipped: usize) -> Self {
        let mut report = Self::default();
        let runs = || measurements.iter().flatten();
        for runs in measurements {
            let clients: u64 = runs.iter().map(|run| u64::from(run.clients)).sum();
            let seen = runs.iter().flat_map(Run::events).collect::<BTreeSet<_>>().len() as u64;
            let told = runs.iter().filter_map(|run| run.events_due).max();
            let events = seen.max(events_due.or(told).unwrap_or(0));
            report.clients += clients;
            report.events += events;
            report.expected += clients * events;
        }
        report.received = runs().map(|run| run.received).sum();
        report.dropped = report.expected - report.received;
        report.duplicates = runs().map(|run| run.duplicates).sum();
        report.disordered = runs().map(|run| run.disordered).sum();
        report.unidentified = runs().map(|run| run.unidentified).sum();
        report.lost_clients = runs().flat_map(|run| run.lost.values()).sum();
        report.latency_ms = Latency::of(runs());
        report.earlier_measurements = skipped;
        report.notes = notes(measurements);
        report
    }

    fn is_clean(&self) -> bool {
        let amiss = self.dropped + self.duplicates + self.disordered + self.unidentified + self.lost_clients;
        amiss == 0 && self.notes.is_empty()
    }

    fn text(&self) -> String {
        let mut lines = vec![
            format!("Clients: {}", self.clients),
            format!("Events: {}", self.events),
            format!("Expected deliveries: {}", self.expected),
            format!("Received deliveries: {}", self.received),
            format!("Dropped deliveries: {}", self.dropped),
        ];
        for (name, count) in [
            ("Duplicate deliveries", self.duplicates),
            ("Disordered deliveries", self.disordered),
            ("Deliveries without id and number", self.unidentified),
            ("Lost clients", self.lost_clients),
        ] {
            if count > 0 {
                lines.push(format!("{name}: {count}"));
            }
        }
        lines.push(String::new());
        lines.push("Latency (ms):".to_owned());
        match &self.latency_ms {
            Some(latency) => {
                let Latency { p50, p95, p99, max } = latency;
                for (name, value) in [("p50", p50), ("p95", p95), ("p99", p99), ("max", max)] {
                    lines.push(format!("{name}: {}", millis_text(*value)));
                }
            }
            None => lines.push("unknown: no event carried a stamp".to_owned()),
        }
        let earlier = (self.earlier_measurements > 0).then(|| {
            let count = self.earlier_measurements;
            format!("Earlier measurements left out: {count} (--all adds them, a file's name picks one)")
        });
        let notes: Vec<_> = self.notes.iter().map(|note| format!("Note: {note}")).chain(earlier).collect();
        if !notes.is_empty() {
            lines.push(String::new());
        }
        lines.extend(notes);
        lines.join("\n") + "\n"
    }
}

impl Latency {
    fn of<'a>(runs: impl Iterator<Item = &'a Run>) -> Option<Self> {
        let mut all: Option<Histogram<u64>> = None;
        let mut max: f64 = 0.0;
        for run in runs.filter(|run| !run.latencies.is_empty()) {
            max = max.max(run.latency_max_ms);
            match &mut all {
                Some(all) => all.add(&run.latencies).expect("histograms of equal bounds add up"),
                None => all = Some(run.latencies.clone()),
            }
        }
        let all = all?;
        // A bucket's upper edge may lie above the largest value in it.
        let at = |quantile: f64| (all.value_at_quantile(quantile) as f64 / 1e3).min(max);
        Some(Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), max })
    }
}

fn notes(measurements: &[Vec<Run>]) -> Vec<String> {
    let mut notes = Vec::new();
    if measurements.len() > 1 {
        let names: Vec<_> = measurements.iter().flatten().map(name).collect();
        notes.push(format!(
            "the logs are of {} measurements at different times (runs {}): counts are sums, latencies are mixed",
            measurements.len(),
            names.join(", ")
        ));
    }
    for run in measurements.iter().flatten() {
        notes_of(run, &mut notes);
    }
    notes
}

fn notes_of(run: &Run, notes: &mut Vec<String>) {
    let name = name(run);
    if run.name.is_none() {
        notes.push(format!("{name} has no beginning: its clients are those that received something"));
    }
    if !run.is_whole {
        let open = u64::from(run.clients).saturating_sub(run.clients_ended);
        notes.push(format!(
            "run {name} has no last line (the process was killed, or still runs): the end of {open} of its {} clients is \
             not told, and last deliveries may be missing",
            run.clients
        ));
    }
    if let Some(told) = run.received_told.filter(|told| *told != run.deliveries) {
        notes.push(format!(
            "run {name} tells of {told} deliveries and its log holds {}: lines are missing",
            run.deliveries
        ));
    }
    if run.unreadable > 0 {
        notes.push(format!(
            "{} lines of {} can't be read (cut off, or of something else)",
            run.unreadable, run.log
        ));
    }
    if run.early > 0 {
        notes.push(format!(
            "{} stamps of run {name} lie after their arrival: the publisher's clock is ahead, and latencies are too low",
            run.early
        ));
    }
    if run.order_unknown {
        notes.push(format!("run {name} has too many sources to judge the order of all"));
    }
    let lost: BTreeMap<_, _> = run.lost.iter().collect();
    for (how, count) in lost {
        notes.push(format!("{count} clients of run {name} were lost: {how}"));
    }
}

fn name(run: &Run) -> String {
    run.name.clone().unwrap_or_else(|| run.log.clone())
}

/// Three digits that mean something.
fn millis_text(millis: f64) -> String {
    match millis {
        ..1.0 => format!("{millis:.3}"),
        1.0..10.0 => format!("{millis:.2}"),
        10.0..100.0 => format!("{millis:.1}"),
        _ => format!("{millis:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of `clients` whose first `gets` received each of `events` once.
    fn log(run: &str, started_at_ms: u64, clients: u32, gets: u32, events: &[&str]) -> String {
        let mut lines = format!(
            r#"{{"line":"run","run":"{run}","started_at_ms":{started_at_ms}.0,"clients":{clients},"url":"u","preset":null,"room":null,"events":null,"threads":1,"version":"0"}}"#
        );
        for (number, event) in events.iter().enumerate() {
            for client in 0..gets {
                let at = started_at_ms + 10;
                lines += &format!(
                    "\n{{\"client\":{client},\"event_id\":\"{event}\",\"sequence\":{number},\"source\":\"s\",\"published_at_ms\":1,\
                     \"received_at\":{at}.5,\"latency_ms\":{}.25}}",
                    client + 1
                );
            }
        }
        let received = gets as usize * events.len();
        let at = started_at_ms + 100;
        lines
            + &format!(
                "\n{{\"line\":\"end\",\"run\":\"{run}\",\"at_ms\":{at}.0,\"received\":{received},\"lost\":0,\"reason\":\"a signal\"}}\n"
            )
    }

    fn report(logs: &[String], events: Option<u64>) -> Report {
        let mut ledger = Ledger::default();
        for (index, log) in logs.iter().enumerate() {
            ledger.read(&format!("log{index}"), &mut log.as_bytes()).unwrap();
        }
        Report::of(&measurements(ledger.runs), events, 0)
    }

    #[test]
    fn a_clean_run_is_the_table_and_nothing_else() {
        let report = report(&[log("1", 1000, 4, 4, &["a", "b"])], None);
        assert!(report.is_clean());
        let of_folder = Report { earlier_measurements: 2, ..report.clone() };
        assert!(of_folder.is_clean() && of_folder.text().contains("\n\nEarlier measurements left out: 2 "));
        assert_eq!(
            report.text(),
            "Clients: 4\nEvents: 2\nExpected deliveries: 8\nReceived deliveries: 8\nDropped deliveries: 0\n\n\
             Latency (ms):\np50: 2.25\np95: 4.25\np99: 4.25\nmax: 4.25\n"
        );
    }

    #[test]
    fn what_some_did_not_receive_is_dropped_and_what_nobody_did_only_if_it_is_told() {
        let logs = [log("1", 1000, 4, 3, &["a", "b"])];
        assert_eq!(report(&logs, None).dropped, 2);
        assert_eq!(report(&logs, Some(5)).dropped, 20 - 6);
        assert_eq!(report(&logs, Some(1)).expected, 8, "more was received than told");
    }

    #[test]
    fn runs_at_the_same_time_are_one_measurement() {
        let logs = [log("1", 1000, 2, 2, &["a", "b"]), log("2", 1050, 3, 3, &["b"])];
        let report = report(&logs, None);
        assert_eq!((report.clients, report.events, report.expected, report.dropped), (5, 2, 10, 3));
        assert_eq!(report.notes, Vec::<String>::new());
    }

    #[test]
    fn runs_at_different_times_are_added_with_a_note() {
        let logs = [log("1", 1000, 2, 2, &["a"]), log("2", 9000, 3, 3, &["b"])];
        let report = report(&logs, None);
        assert_eq!((report.clients, report.events, report.expected, report.dropped), (5, 2, 5, 0));
        assert!(
            report.notes[0].contains("2 measurements at different times (runs 1, 2)"),
            "{:?}",
            report.notes
        );
    }

    #[test]
    fn a_log_without_its_last_line_or_some_others_says_so() {
        let whole = log("1", 1000, 2, 2, &["a"]);
        let lines: Vec<&str> = whole.lines().collect();
        let cut = report(&[lines[..lines.len() - 1].join("\n")], None);
        assert!(cut.notes[0].contains("has no last line"), "{:?}", cut.notes);
        let holed = report(&[[lines[0], lines[1], lines[lines.len() - 1]].join("\n")], None);
        assert!(holed.notes[0].contains("tells of 2 deliveries and its log holds 1"), "{:?}", holed.notes);
        assert!(!cut.is_clean() && !holed.is_clean());
    }
}
