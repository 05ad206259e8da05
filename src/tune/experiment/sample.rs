//! One sample: a run of `corecast-bench` in an arm's set-up, and what it found.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde_json::Value;

use super::arm::{Arm, SetKnob};
use super::enclosure;
use super::plan::{Plan, Side};

/// A sample that was taken.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// From 0 in the order in which they were taken, the discarded ones included.
    pub position: usize,
    /// Whose.
    pub side: Side,
    /// From 0; `None` for a discarded one.
    pub pair: Option<usize>,
    /// The plan's figure: the median of its windows, of which there is one.
    pub value: f64,
    /// In which unit.
    pub unit: String,
    /// What was lost or damaged, and why the figure may not mean what it seems to, by the word of `corecast-bench`.
    pub doubts: Vec<String>,
    /// How long the whole run took.
    pub seconds: f64,
    /// What was set for it, and what the kernel made of that.
    pub knobs: Vec<SetKnob>,
    /// What was run.
    pub command: Vec<String>,
    /// The whole report of `corecast-bench`.
    pub report: Value,
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Somebody wants to end.
    #[error("interrupted")]
    Interrupted,
    /// The generator is not there or may not be run.
    #[error("can't run {}: {error}", .program.display())]
    Start {
        /// Which file.
        program: PathBuf,
        /// The kernel's word.
        error: io::Error,
    },
    /// It did not end.
    #[error("corecast-bench did not end within {} s and was killed", .0.as_secs())]
    TooLong(Duration),
    /// It wrote no report.
    #[error("corecast-bench ended with {status} and wrote no report; its last words:\n{output}")]
    NoReport {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// The report is none.
    #[error("the report of corecast-bench can't be read: {0}")]
    Unreadable(String),
    /// Another scenario has the figure, or none.
    #[error("the scenario has no figure {metric:?}; it has {}", .known.join(", "))]
    NoFigure {
        /// Asked for.
        metric: String,
        /// The report's figures.
        known: Vec<String>,
    },
    /// Nothing was measured, or nothing whose ratio means something.
    #[error("the figure {metric:?} is {found}, due a number above 0")]
    NoValue {
        /// Asked for.
        metric: String,
        /// As the report has it.
        found: String,
    },
    /// The machine could not be set up for its arm, or not be put back.
    #[error("{0}")]
    Setup(String),
    /// Files of the sample.
    #[error("can't {0}: {1}")]
    File(&'static str, io::Error),
}

/// The programs of a sample.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `corecast-bench`.
    pub bench: PathBuf,
    /// `corecast`: this program.
    pub server: PathBuf,
}

/// What the generator makes a server's command of; `{corecast}` would be the file beside the generator.
const SERVER: &str = "serve --listen {listen} --ports-file {ports_file} --shards {shards} --cores {cores} \
                      --redis {redis} --echo-route --config {config}";
/// Variables that corecast reads beside its own: whatever the caller's shell holds must not differ from what the file says.
const FOREIGN_VARIABLES: [&str; 8] =
    ["ADDR", "PORT", "REDIS_URL", "REDIS_ADDR", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "SERVER_ID"];
/// Reports have some 10 KB.
const REPORT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What is shown of a generator that failed.
const OUTPUT_SHOWN_BYTES: usize = 2_000;
/// Beyond its windows: connecting tens of thousands, settling memory.
const OVERHEAD_MAX: Duration = Duration::from_secs(600);
/// Windows of one scenario, with room: `saturate` has eleven, each measured once.
const WINDOWS_MAX: u32 = 64;
/// The generator ends its children and its scratch folder when it is asked to end; then it is killed.
const GRACE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// The command line of a sample of `arm` whose report goes to `out`.
pub fn command_line(plan: &Plan, arm: &Arm, programs: &Programs, out: &Path) -> Vec<String> {
    let mut server = format!("{} {SERVER}", programs.server.display());
    for flag in &arm.server {
        server.push(' ');
        server.push_str(flag);
    }
    let mut line = vec![programs.bench.display().to_string()];
    line.extend(plan.scenario.iter().cloned());
    line.extend(["--server".to_owned(), server]);
    if let Some(cores) = &arm.cores {
        line.extend(["--server-cores".to_owned(), cores.clone()]);
    }
    let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
    let own = [
        ("--duration", milliseconds(plan.duration)),
        ("--warm-up", milliseconds(plan.warm_up)),
        ("--runs", "1".to_owned()),
        ("--out", out.display().to_string()),
    ];
    line.extend(own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    line.push("--no-floor".to_owned());
    line
}

/// What a run that has ended left: its report, and how long it took.
pub struct Ran {
    pub command: Vec<String>,
    pub report: Value,
    pub seconds: f64,
}

/// Runs a sample to its end in the namespace of the calling thread, unless `stop` becomes true. `folder` is for its files.
///
/// # Errors
/// [`SampleError`]; no process of the sample is left.
pub fn run(
    plan: &Plan,
    arm: &Arm,
    programs: &Programs,
    folder: &Path,
    stop: &AtomicBool,
) -> Result<Ran, SampleError> {
    let out = folder.join("report");
    let output = folder.join("output");
    fs::create_dir_all(&out).map_err(|error| SampleError::File("make the folder of a sample", error))?;
    let line = command_line(plan, arm, programs, &out);
    let mut command = Command::new(&programs.bench);
    let log = File::create(&output).map_err(|error| SampleError::File("write the log of a sample", error))?;
    let log_too = log.try_clone().map_err(|error| SampleError::File("write the log of a sample", error))?;
    command.args(&line[1..]).stdin(Stdio::null()).stdout(log).stderr(log_too);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CORECAST_") || FOREIGN_VARIABLES.contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
    command.envs(arm.environment.iter().map(|(name, value)| (name, value)));
    enclosure::bind(&mut command);
    let began = Instant::now();
    let child =
        command.spawn().map_err(|error| SampleError::Start { program: programs.bench.clone(), error })?;
    let limit = OVERHEAD_MAX + WINDOWS_MAX * (plan.duration + plan.warm_up);
    let status = Running(child).wait(limit, stop)?;
    let report = read_report(&out, || SampleError::NoReport { status, output: tail(&output) })?;
    Ok(Ran { command: line, report, seconds: began.elapsed().as_secs_f64() })
}

/// A generator that doesn't outlive this, with all that it has started.
struct Running(Child);

impl Running {
    fn wait(mut self, limit: Duration, stop: &AtomicBool) -> Result<ExitStatus, SampleError> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.look()? {
                // The same Ctrl-C may have reached it by another way, and what it measured is cut short.
                return if stop.load(Ordering::Relaxed) { Err(SampleError::Interrupted) } else { Ok(status) };
            }
            if stop.load(Ordering::Relaxed) {
                self.end()?;
                return Err(SampleError::Interrupted);
            }
            if began.elapsed() > limit {
                self.end()?;
                return Err(SampleError::TooLong(limit));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self) -> Result<Option<ExitStatus>, SampleError> {
        self.0.try_wait().map_err(|error| SampleError::File("wait for corecast-bench", error))
    }

    /// Asks it to end, so that it clears up; it is killed if it doesn't.
    fn end(&mut self) -> Result<(), SampleError> {
        self.signal(Signal::TERM);
        let began = Instant::now();
        while began.elapsed() < GRACE && self.look()?.is_none() {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        let group = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        // It fails for a group that has ended.
        let _ended = group.map(|group| kill_process_group(group, signal));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            self.signal(Signal::KILL);
            // A kill can't be refused, so this returns; without it the child would stay as a zombie.
            let _status = self.0.wait();
        }
    }
}

/// The one report in `folder`.
fn read_report(folder: &Path, none: impl FnOnce() -> SampleError) -> Result<Value, SampleError> {
    let entries = fs::read_dir(folder).map_err(|error| SampleError::File("look for the report", error))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let Some(path) = paths.find(|path| path.extension().is_some_and(|extension| extension == "json")) else {
        return Err(none());
    };
    let unreadable = |error: &dyn std::fmt::Display| SampleError::Unreadable(error.to_string());
    let mut text = String::new();
    let file = File::open(&path).map_err(|error| unreadable(&error))?;
    file.take(REPORT_BYTES_MAX).read_to_string(&mut text).map_err(|error| unreadable(&error))?;
    serde_json::from_str(&text).map_err(|error| unreadable(&error))
}

fn tail(path: &Path) -> String {
    let output = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&output[output.len().saturating_sub(OUTPUT_SHOWN_BYTES)..]).trim_end().to_owned()
}

/// Value and unit of the figure `metric` in a report of `corecast-bench`.
///
/// # Errors
/// [`SampleError::NoFigure`], [`SampleError::NoValue`].
pub fn figure(report: &Value, metric: &str) -> Result<(f64, String), SampleError> {
    let figures = || {
        let outcomes = report["outcomes"].as_array().into_iter().flatten();
        outcomes.flat_map(|outcome| outcome["figures"].as_array().into_iter().flatten())
    };
    let Some(figure) = figures().find(|figure| figure["name"] == metric) else {
        let known =
            figures().filter_map(|figure| figure["name"].as_str()).map(|name| format!("{name:?}")).collect();
        return Err(SampleError::NoFigure { metric: metric.to_owned(), known });
    };
    let median = &figure["median"];
    match median.as_f64().filter(|value| value.is_finite() && *value > 0.0) {
        Some(value) => Ok((value, figure["unit"].as_str().unwrap_or_default().to_owned())),
        None => Err(SampleError::NoValue { metric: metric.to_owned(), found: median.to_string() }),
    }
}

/// Why a report's figures may not mean what they seem to: flaws of its outcomes, doubts of its windows, failures, and that
/// it was cut short. Each once.
pub fn doubts(report: &Value) -> Vec<String> {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let texts = |value: &Value| -> Vec<String> {
        items(value)
            .iter()
            .map(|text| text.as_str().map_or_else(|| text.to_string(), str::to_owned))
            .collect()
    };
    let mut doubts = texts(&report["failures"]);
    for outcome in items(&report["outcomes"]) {
        doubts.extend(texts(&outcome["flaws"]));
        for phase in items(&outcome["phases"]).iter().filter(|phase| phase["side"] != "floor") {
            doubts.extend(texts(&phase["doubts"]));
        }
    }
    if report["interrupted"] == true {
        doubts.push("it was interrupted".to_owned());
    }
    let mut told = Vec::new();
    doubts.retain(|doubt| {
        !told.contains(doubt) && {
            told.push(doubt.clone());
            true
        }
    });
    doubts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        json!({"interrupted": false, "outcomes": [
            {"figures": [{"name": "CPU per delivery", "unit": "us", "median": 2.5}, {"name": "latency p99", "median": null}],
             "flaws": [], "phases": [{"side": "server", "doubts": []}]}]})
    }

    #[test]
    fn a_figure_is_found_by_its_name() {
        assert_eq!(figure(&report(), "CPU per delivery").expect("it is there"), (2.5, "us".to_owned()));
        let error = figure(&report(), "CPU").expect_err("there is none").to_string();
        assert_eq!(error, "the scenario has no figure \"CPU\"; it has \"CPU per delivery\", \"latency p99\"");
        let error = figure(&report(), "latency p99").expect_err("it has no value").to_string();
        assert_eq!(error, "the figure \"latency p99\" is null, due a number above 0");
        assert!(figure(&json!([]), "x").is_err() && figure(&json!({"outcomes": [1]}), "x").is_err());
    }

    #[test]
    fn everything_that_speaks_against_a_report_is_found_once() {
        assert_eq!(doubts(&report()), Vec::<String>::new());
        let mut bad = report();
        bad["interrupted"] = json!(true);
        bad["failures"] = json!(["no server"]);
        bad["outcomes"][0]["flaws"] = json!(["lost", "lost"]);
        bad["outcomes"][0]["phases"] = json!([{"side": "server", "doubts": ["the generator was the limit"]}, {"side": "floor", "doubts": ["x"]}]);
        let due = ["no server", "lost", "the generator was the limit", "it was interrupted"];
        assert_eq!(doubts(&bad), due);
    }
}
