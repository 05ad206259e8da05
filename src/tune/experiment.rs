//! `corecast tune experiment FILE`: two arms, measured in turn until there is a verdict.
//!
//! Read in this order: [`plan`] (what a file says), [`runner`] (samples in ABBA order, each in its [`enclosure`] and with its
//! [`host_knobs`]), [`sample`] (one run of `corecast-bench`), [`statistics`] and [`verdict`] (what the pairs mean, pure),
//! [`report`] and [`chart`] (what is left of it).

mod arm;
mod chart;
mod enclosure;
mod host_knobs;
mod plan;
mod reader;
mod report;
mod runner;
mod sample;
mod statistics;
mod verdict;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use host::Root;

use self::host_knobs::{HostKnobs, Outstanding};
use self::plan::{FILE_BYTES_MAX, Plan, Side};
use self::report::{Circumstances, Report};
use self::runner::{End, Folder, Run, Runner, time_text};
use self::sample::{Programs, command_line};
use self::statistics::{PAIRS_MAX, PAIRS_MIN};
use self::verdict::{Verdict, percent};
use crate::exit::{FAILED, Failure, UNAVAILABLE};
use crate::output::{complain, print};
use crate::signals;
use crate::tune::args::JournalFile;
use crate::tune::journal_path;
use crate::tune::place::Place;

pub const EXAMPLES: &str = "\
The file says what is compared: docs/EXPERIMENTS.md. Samples are runs of corecast-bench, each with its server and its Redis in
a network namespace of its own (as root), in the order A B B A A B B A. Whatever ends the experiment, the machine is as it was.

Examples:
  corecast tune experiment tuning/experiments/epoll-driver.toml --dry-run
  corecast tune experiment tuning/experiments/epoll-driver.toml --pairs 40

Exit codes: 0 better, worse or no difference; 3 undecided; 4 void, because too many samples were flawed or doubtful; 130
interrupted; else as corecast --help says.";

/// Flags of the command.
#[derive(Debug, Args)]
pub struct ExperimentArgs {
    /// The experiment, as those in tuning/experiments/
    #[arg(id = "experiment", value_name = "FILE")]
    pub file: PathBuf,
    /// Pairs of samples, instead of the file's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(PAIRS_MIN as u64..=PAIRS_MAX as u64))]
    pub pairs: Option<u64>,
    /// Folder for NAME-DATE.json and NAME-DATE.svg [default: runs, beside the file]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The load generator [default: corecast-bench beside this program]
    #[arg(long, value_name = "PATH")]
    pub bench: Option<PathBuf>,
    /// Allow arms to set what the whole host has once; journalled, and reverted after each sample
    #[arg(long)]
    pub host: bool,
    /// Print what would be done
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub journal: JournalFile,
}

/// The interval holds "the same" and reaches beyond the margin.
const UNDECIDED: u8 = 3;
/// Too many samples were flawed or doubtful.
const VOID: u8 = 4;
/// As a shell tells of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// The command.
///
/// # Errors
/// A [`Failure`] before the first sample. Once there are samples, they are written down whatever happens.
pub fn run(args: &ExperimentArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let plan = read_plan(args)?;
    let programs = programs(args)?;
    if args.dry_run {
        print(&outline(&plan, &programs))?;
        return Ok(ExitCode::SUCCESS);
    }
    check_host_wide(&plan, args.host)?;
    let place = Place::open(root.clone(), None)?;
    if plan.arms.iter().any(|arm| arm.host) {
        place.require_host()?;
    }
    let (journal, identity) = (journal_path(&place, &args.journal), place.identity()?);
    let outstanding = Outstanding::read(&journal, &identity.boot_id)
        .map_err(|error| Failure::new(FAILED, error.to_string()))?;
    check_outstanding(&outstanding, &place, &journal)?;
    let out = out_folder(args);
    fs::create_dir_all(&out)
        .map_err(|error| Failure::file(format!("can't make {}", out.display()), &error))?;
    // Before anything is started or set.
    let stop = signals::patient_stop_flag()?;
    let folder = Folder::create().context("can't make a folder for the samples")?;
    let (enclosure, setups) = runner::prepare(&plan, root, folder.path())?;
    let reach = runner::reach(outstanding.of_others, enclosure, root, folder.path());
    let (applied, applied_outside) = reach.map_err(|error| Failure::new(FAILED, error.to_string()))?;
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let run = {
        let host_knobs = &HostKnobs::new(root.clone(), &journal, identity, &plan.name);
        let folder = folder.path();
        Runner { plan: &plan, programs: &programs, enclosure, root, setups, host_knobs, folder, stop: &stop }
            .run()
    };
    let circumstances = Circumstances { began, enclosure, root: root.clone(), applied, applied_outside };
    finish(&Report::new(&plan, &run, &circumstances), &out)
}

/// Writes and prints what there is, and says with which code the command ends.
fn finish(report: &Report<'_>, out: &Path) -> anyhow::Result<ExitCode> {
    let Run { samples, end } = report.run;
    if !samples.is_empty() {
        let write = |ending: &str, text: &[u8]| {
            let path = out.join(format!("{}.{ending}", report.file_stem()));
            fs::write(&path, text).with_context(|| format!("can't write {}", path.display())).map(|()| path)
        };
        let json = write("json", &serde_json::to_vec_pretty(&report.json())?)?;
        let svg = write("svg", chart::svg(report).as_bytes())?;
        print(&format!(
            "{}  report       {}\n  chart        {}\n",
            report.text(),
            json.display(),
            svg.display()
        ))?;
    }
    Ok(ExitCode::from(match (end, &report.verdict) {
        (End::Failed(sentence), _) => return Err(Failure::new(FAILED, sentence.clone()).into()),
        (End::Interrupted, _) => {
            complain!("corecast: interrupted; everything is as it was");
            INTERRUPTED
        }
        (End::Complete, Some(Verdict::Void { .. })) => VOID,
        (End::Complete, Some(verdict)) if verdict.is_reached() => 0,
        (End::Complete, _) => UNDECIDED,
    }))
}

fn read_plan(args: &ExperimentArgs) -> Result<Plan, Failure> {
    let file = &args.file;
    let fault = |error| Failure::file(format!("can't read {}", file.display()), &error);
    let mut text = String::new();
    File::open(file).map_err(fault)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(fault)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let sentence =
            format!("{} has more than {FILE_BYTES_MAX} bytes: that is no experiment", file.display());
        return Err(Failure::config(sentence));
    }
    let mut plan = Plan::parse(file, &text).map_err(|faults| Failure::config(faults.to_string()))?;
    if let Some(pairs) = args.pairs.and_then(|pairs| usize::try_from(pairs).ok()) {
        plan.pairs = pairs;
    }
    Ok(plan)
}

fn programs(args: &ExperimentArgs) -> anyhow::Result<Programs> {
    let server = std::env::current_exe().context("can't find this program")?;
    let bench = args.bench.clone().unwrap_or_else(|| server.with_file_name("corecast-bench"));
    if !bench.is_file() {
        let sentence =
            format!("{} is not there: build it, or name another one with --bench", bench.display());
        return Err(Failure::new(UNAVAILABLE, sentence).into());
    }
    if server.to_string_lossy().contains(char::is_whitespace) {
        let sentence = format!(
            "corecast-bench splits the server's command at blanks, and there is one in {}: move this program elsewhere",
            server.display()
        );
        return Err(Failure::new(FAILED, sentence).into());
    }
    Ok(Programs { bench, server })
}

fn out_folder(args: &ExperimentArgs) -> PathBuf {
    args.out.clone().unwrap_or_else(|| args.file.parent().unwrap_or(Path::new("")).join("runs"))
}

fn check_host_wide(plan: &Plan, is_allowed: bool) -> Result<(), Failure> {
    for side in [Side::A, Side::B] {
        let arm = side.of(&plan.arms);
        if arm.host && !is_allowed {
            let targets: Vec<String> = arm.host_wide().map(|knob| knob.target.to_string()).collect();
            let what = if targets.is_empty() {
                "what the whole host has once".to_owned()
            } else {
                targets.join(", ")
            };
            return Err(Failure::usage(format!(
                "arm {side} sets {what}, for everything on this host: allow it with --host"
            )));
        }
    }
    Ok(())
}

fn check_outstanding(outstanding: &Outstanding, place: &Place, journal: &Path) -> Result<(), Failure> {
    match outstanding.of_experiments {
        0 => Ok(()),
        count => Err(Failure::new(
            FAILED,
            format!(
                "an experiment was killed before it had put back {count} of this host's values: do so first, with `{} \
                 --experiments`",
                place.undo_command(journal)
            ),
        )),
    }
}

/// What `--dry-run` prints.
fn outline(plan: &Plan, programs: &Programs) -> String {
    let Plan { title, hypothesis, metric, pairs, discard, .. } = plan;
    let samples = plan.samples();
    let order: String = (0..8).map(|position| format!("{} ", Side::at(position))).collect();
    let least = (plan.duration + plan.warm_up).saturating_mul(u32::try_from(samples).unwrap_or(u32::MAX));
    let mut text = format!(
        "{title}\n  hypothesis  {hypothesis}\n  figure      {metric}, {} is better; what matters is more than {}\n  \
         samples     {samples}: {discard} that don't count, then {pairs} pairs as {order}...\n  time        more than {}\n",
        match plan.better {
            plan::Better::Lower => "lower",
            plan::Better::Higher => "higher",
        },
        percent(plan.margin),
        time_text(least),
    );
    for side in [Side::A, Side::B] {
        let arm = side.of(&plan.arms);
        let label = arm.label.as_deref().unwrap_or("corecast as it is");
        text.push_str(&format!("arm {side}: {label}\n"));
        for knob in &arm.knobs {
            let scope =
                if knob.is_of_network() { "in the sample's network namespace" } else { "for the whole host" };
            text.push_str(&format!("  {} = {} ({scope})\n", knob.target, knob.value));
        }
        for (name, value) in &arm.environment {
            text.push_str(&format!("  {name}={value}\n"));
        }
        let line = command_line(plan, arm, programs, Path::new("FOLDER"));
        text.push_str(&format!("  {}\n", line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")));
    }
    text
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
