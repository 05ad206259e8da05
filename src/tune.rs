//! `corecast tune`: what the running kernel should be for corecast, why, and back again.
//!
//! Profiles and knobs are the files of `tuning/`. Only `apply`, `revert` and `experiment` (for the length of a sample) change
//! anything, and only the running kernel; what outlives a restart is printed by `export`. A network namespace is entered on a thread of its own, so that nothing
//! else of this process is in it.

mod apply;
mod args;
mod columns;
mod experiment;
mod explain;
mod export;
mod facts;
mod formula;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod identity;
mod journal;
mod knob;
mod outcome;
mod place;
mod plan;
mod profile;
mod revert;
#[cfg(test)]
mod scratch;
mod show;
mod status;
mod target;
mod transaction;

pub use args::{EXAMPLES, TuneArgs};

use std::path::PathBuf;
use std::process::ExitCode;

use host::Root;

use crate::exit::{Failure, UNAVAILABLE};
use crate::output::print;
use crate::tune::apply::Apply;
use crate::tune::args::{JournalFile, TuneCommand, Which};
use crate::tune::facts::facts;
use crate::tune::journal::Part;
use crate::tune::knob::Scope;
use crate::tune::place::Place;
use crate::tune::plan::{Plan, State};
use crate::tune::profile::Profile;
use crate::tune::revert::Revert;

/// Does what `args` say.
///
/// # Errors
/// A [`Failure`] with its exit code.
pub fn run(args: TuneArgs) -> anyhow::Result<ExitCode> {
    let root = Root::at(args.root);
    match args.command {
        TuneCommand::List { knobs, refused, form } => {
            let listed = match (knobs, refused) {
                (true, _) => explain::knobs(form.is_json()),
                (_, true) => explain::advice(form.is_json()),
                _ => explain::profiles(form.is_json()),
            };
            print(&listed.map_err(|error| Failure::config(error.to_string()))?)?;
            Ok(ExitCode::SUCCESS)
        }
        TuneCommand::Explain { name, form } => explain(&name, form.is_json()),
        TuneCommand::Plan { which, netns, all, form } => {
            let place = Place::open(root, netns.as_deref())?;
            plan(&place, &which, netns.is_some(), all, form.is_json())
        }
        TuneCommand::Apply { which, netns, host, dry_run, journal, form } => {
            let place = Place::open(root, netns.as_deref())?;
            let plan = make_plan(&place, &which)?;
            let how = Apply { is_of_host: host, is_dry: dry_run, is_json: form.is_json() };
            how.run(&place, &plan, &journal_path(&place, &journal))
        }
        TuneCommand::Revert { netns, journal, experiments, force, form } => {
            let place = Place::open(root, netns.as_deref())?;
            let part = if experiments { Part::OfExperiments } else { Part::Whole };
            let how = Revert { part, is_forced: force, is_json: form.is_json() };
            how.run(&place, &journal_path(&place, &journal))
        }
        TuneCommand::Status { netns, journal, form } => {
            let place = Place::open(root, netns.as_deref())?;
            status::run(&place, netns.is_some(), journal.file.as_deref(), form.is_json())
        }
        TuneCommand::Experiment(args) => experiment::run(&args, &root),
        TuneCommand::Export { which, form } => {
            let plan = make_plan(&Place::open(root, None)?, &which)?;
            let unreadable = |why| Failure::new(UNAVAILABLE, format!("{why}; nothing is exported"));
            print(&export::exported(&plan, form).map_err(unreadable)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What `plan` exits with where something would change, as diff(1) does.
const DIFFERS: u8 = 1;

fn explain(name: &str, is_json: bool) -> anyhow::Result<ExitCode> {
    let meaning = explain::meaning(name).map_err(|error| Failure::config(error.to_string()))?;
    let meaning = meaning.ok_or_else(|| {
        Failure::usage(format!(
            "found {name:?}, due a profile (`corecast tune list`), a knob (`corecast tune list --knobs`), or one that no \
             profile sets (`corecast tune list --refused`); of others nothing is said here"
        ))
    })?;
    print(&explain::explained(&meaning, is_json))?;
    Ok(ExitCode::SUCCESS)
}

fn plan(
    place: &Place,
    which: &Which,
    is_namespace: bool,
    all: bool,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut plan = make_plan(place, which)?;
    if is_namespace {
        plan.steps.retain(|step| step.scope == Scope::Network);
    }
    print(&if is_json { show::json(&plan) } else { show::table(&plan, all) })?;
    let is_unreadable = plan.steps.iter().any(|step| matches!(step.state, State::Unreadable { .. }));
    Ok(match plan.changes().next() {
        _ if is_unreadable => ExitCode::from(UNAVAILABLE),
        Some(_) => ExitCode::from(DIFFERS),
        None => ExitCode::SUCCESS,
    })
}

fn make_plan(place: &Place, which: &Which) -> anyhow::Result<Plan> {
    let profile = profile(which)?;
    let connections = which.connections.unwrap_or(profile.connections);
    let facts = facts(place.root(), connections)?;
    let plan = place.run(|root| Plan::make(profile, facts, root))?;
    Ok(plan.map_err(|error| Failure::config(error.to_string()))?)
}

fn profile(which: &Which) -> Result<Profile, Failure> {
    let config = |error: profile::ProfileError| Failure::config(error.to_string().trim_end().to_owned());
    if let Some(path) = &which.profile_file {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::file(format!("can't read {}", path.display()), &error))?;
        return Profile::of_file(path, &text).map_err(config);
    }
    let name = which.profile.as_deref().unwrap_or_default();
    Profile::built_in(name).map_err(config)?.ok_or_else(|| {
        let known = profile::names().collect::<Vec<_>>().join(", ");
        Failure::usage(format!("found the profile {name:?}, due one of {known}, or --profile-file FILE"))
    })
}

fn journal_path(place: &Place, journal: &JournalFile) -> PathBuf {
    journal.file.clone().unwrap_or_else(|| place.journal())
}
