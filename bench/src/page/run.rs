//! What a run left on disk, read leniently: a field that is not there was not measured, and one that is new is left alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

/// One file of raw results.
#[derive(Debug, Deserialize)]
pub struct Run {
    /// Where it was read.
    #[serde(skip)]
    pub path: PathBuf,
    /// When it ended.
    #[serde(default)]
    pub utc: String,
    /// Program and arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Somebody ended it early.
    #[serde(default)]
    pub interrupted: bool,
    /// As the kernel describes it.
    #[serde(default)]
    pub machine: Map<String, Value>,
    /// Of programs, and the commit.
    #[serde(default)]
    pub versions: Map<String, Value>,
    /// Of the run.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// Other servers, as they were set up, in the order of the command line.
    #[serde(default)]
    pub peers: Vec<Map<String, Value>>,
    /// The promised figures, where the run was to judge some.
    #[serde(default)]
    pub table: Vec<Figure>,
    /// Scenarios that came to nothing, and why.
    #[serde(default)]
    pub failures: Vec<String>,
    /// The scenarios. The one field that makes a file raw results.
    pub outcomes: Vec<Outcome>,
}

/// A measured figure of all sides.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Of the samples.
    pub unit: String,
    /// Ours, one per run; `null` where one was no number.
    pub samples: Vec<Option<f64>>,
    /// The floor's.
    pub floor_samples: Vec<Option<f64>>,
    /// Those of other servers, by name.
    pub peers: BTreeMap<String, PeerFigure>,
    /// What was due.
    pub target: Value,
    /// What became of it.
    pub verdict: String,
}

/// What another server made of a figure.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct PeerFigure {
    /// One per run.
    pub samples: Vec<Option<f64>>,
    /// It lost or damaged something.
    pub is_flawed: bool,
}

/// One scenario.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// Its name and parameters, for people.
    pub title: String,
    /// As run.
    pub parameters: Value,
    /// Command of our server.
    pub server: String,
    /// What came of it.
    pub figures: Vec<Figure>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// What was lost or damaged.
    pub flaws: Vec<String>,
    /// Other servers, by name.
    pub peers: BTreeMap<String, PeerOutcome>,
    /// Every measured window.
    pub phases: Vec<Phase>,
    /// What has no place in a window.
    pub details: Vec<Value>,
}

/// What became of another server in a scenario.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PeerOutcome {
    /// As it was started.
    pub command: String,
    /// It failed, and was measured no further.
    pub is_out: bool,
    /// What it lost or damaged.
    pub flaws: Vec<String>,
}

/// One measured window of one side.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Phase {
    /// `server`, `floor`, or a peer's name.
    pub side: String,
    /// In words.
    pub load: String,
    /// What left.
    pub sent: Sent,
    /// Copies owed.
    pub expected: u64,
    /// Of those, copies that did not arrive.
    pub missing: u64,
    /// What arrived.
    pub counts: Counts,
    /// In microseconds.
    pub latency: Percentiles,
    /// CPU.
    pub used: Used,
    /// In microseconds.
    pub cpu_us_per_delivery: Option<f64>,
    /// Over the window.
    pub deliveries_per_second: Option<f64>,
    /// Of the server, at the end.
    pub memory: Memory,
    /// Why the figures may not mean what they seem to.
    pub doubts: Vec<String>,
}

/// What left.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sent {
    /// How many.
    pub messages: u64,
    /// The worst delay after the intended time.
    pub late_max_us: Option<f64>,
    /// A closed loop that waited for a message forever.
    pub stuck: bool,
}

/// What arrived.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Copies.
    pub delivered: u64,
    /// Copies that were skipped.
    pub gaps: u64,
    /// Copies that came twice.
    pub duplicates: u64,
    /// Copies that came too late.
    pub out_of_order: u64,
    /// Copies of another room.
    pub wrong_room: u64,
    /// What was no copy at all.
    pub unreadable: u64,
    /// How connections ended, and how many.
    pub closes: BTreeMap<String, u64>,
}

/// Of latencies, in microseconds.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Percentiles {
    /// Half of them are at most this.
    pub p50_us: Option<f64>,
    /// 9 of 10.
    pub p90_us: Option<f64>,
    /// 99 of 100.
    pub p99_us: Option<f64>,
    /// 999 of 1,000.
    pub p999_us: Option<f64>,
    /// The longest.
    pub max_us: Option<f64>,
}

/// What a window took.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Used {
    /// Its length.
    pub seconds: Option<f64>,
    /// User and system.
    pub server_cpu_seconds: Option<f64>,
    /// Share of user time in it.
    pub server_user_share: Option<f64>,
    /// On the server's cores.
    pub server_cores_softirq_seconds: Option<f64>,
    /// Taken by the host.
    pub server_cores_steal_seconds: Option<f64>,
    /// Share of the window that each process of the generator computed.
    pub generator_busy: BTreeMap<String, Option<f64>>,
    /// Share of the window that the generator's cores were not idle.
    pub generator_cores_busy: Option<f64>,
}

/// Of the server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// `RssAnon` and `RssShmem`.
    pub anonymous_bytes: Option<f64>,
    /// `VmRSS`.
    pub resident_bytes: Option<f64>,
    /// TCP buffers of the whole machine.
    pub tcp_pages: Option<f64>,
    /// The kernel's own objects, of the whole machine.
    pub slab_bytes: Option<f64>,
}

/// Why a file is no run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It can't be read.
    #[error("{path}: {error}", path = path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is something else.
    #[error(
        "{path}: {error}; the raw results of a run were due, a JSON object with \"outcomes\" as corecast-bench writes it \
         to --out",
        path = path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// What was found, and where.
        error: serde_json::Error,
    },
}

impl Run {
    /// Reads a file of raw results.
    ///
    /// # Errors
    /// A file that can't be read, is no JSON, or has no `outcomes`; known fields of another type.
    pub fn read(path: &Path) -> Result<Self, RunError> {
        let bytes = fs::read(path).map_err(|error| RunError::Unreadable { path: path.to_owned(), error })?;
        let mut run: Self = serde_json::from_slice(&bytes)
            .map_err(|error| RunError::Foreign { path: path.to_owned(), error })?;
        path.clone_into(&mut run.path);
        Ok(run)
    }

    /// What was measured: the command's first argument, or the file's name.
    pub fn name(&self) -> String {
        let stem = self.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        // NAME-TIME.json, as the report names it.
        stem.rsplit_once('-').map_or(stem.clone(), |(name, _)| name.to_owned())
    }
}

/// Those samples that are numbers.
pub fn finite(samples: &[Option<f64>]) -> Vec<f64> {
    samples.iter().flatten().copied().filter(|sample| sample.is_finite()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Run, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn what_is_not_there_was_not_measured_and_what_is_new_is_left_alone() {
        let run =
            parse(r#"{"outcomes": [{"title": "t", "phases": [{"side": "server"}], "new": 1}], "newer": {}}"#);
        let run = run.unwrap();
        assert_eq!(run.outcomes[0].phases[0].side, "server");
        assert_eq!(run.outcomes[0].phases[0].latency.p50_us, None);
        assert!(run.table.is_empty() && run.machine.is_empty());
    }

    #[test]
    fn samples_that_are_no_numbers_are_told_from_numbers() {
        let run = parse(r#"{"outcomes": [], "table": [{"name": "n", "samples": [1, null, 2.5]}]}"#).unwrap();
        assert_eq!(finite(&run.table[0].samples), [1.0, 2.5]);
    }

    #[test]
    fn other_files_are_refused_with_what_is_wrong_and_where() {
        for (text, wrong) in [
            ("{}", "missing field `outcomes`"),
            ("[1", "line 1"),
            ("", "EOF"),
            (r#"{"outcomes": [{"title": 7}]}"#, "invalid type: integer `7`, expected a string at line 1"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn a_run_is_called_what_its_file_is_called() {
        let named = |path: &str| Run { path: path.into(), ..parse(r#"{"outcomes": []}"#).unwrap() }.name();
        assert_eq!(named("a/preset-cost-092601.json"), "preset-cost");
        assert_eq!(named("a/results.json"), "results");
    }
}
