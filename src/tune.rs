//! `corecast tune`: what the running kernel should be for corecast, why, and back again.
//!
//! Profiles and knobs are the files of `tuning/`. Only `apply` and `revert` change anything, and only the running kernel;
//! what outlives a restart is printed by `export`. A network namespace is entered on a thread of its own, so that nothing
//! else of this process is in it.

mod apply;
mod args;
mod columns;
mod explain;
mod export;
mod facts;
mod formula;
mod journal;
mod knob;
mod place;
mod plan;
mod profile;
mod revert;
#[cfg(test)]
mod scratch;
mod show;
mod status;
mod target;

pub use args::{EXAMPLES, TuneArgs};

use std::path::Path;
use std::process::ExitCode;

use host::Root;
use serde_json::json;

use crate::exit::{Failure, UNAVAILABLE};
use crate::output::print;
use crate::signals;
use crate::tune::apply::{Applied, apply};
use crate::tune::args::{JournalFile, TuneCommand, Which};
use crate::tune::explain::document;
use crate::tune::facts::facts;
use crate::tune::knob::Scope;
use crate::tune::place::Place;
use crate::tune::plan::{Plan, State};
use crate::tune::profile::Profile;
use crate::tune::target::Target;

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
            let how = Apply { is_of_host: host, is_dry: dry_run, is_json: form.is_json() };
            how.run(&place, &which, &journal)
        }
        TuneCommand::Revert { netns, journal, force, form } => {
            let place = Place::open(root, netns.as_deref())?;
            revert::run(&place, &journal_path(&place, &journal), force, form.is_json())
        }
        TuneCommand::Status { journal, form } => status::run(&root, journal.file.as_deref(), form.is_json()),
        TuneCommand::Export { which, form } => {
            let plan = make_plan(&Place::open(root, None)?, &which)?;
            print(&export::exported(&plan, form))?;
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

fn journal_path(place: &Place, journal: &JournalFile) -> std::path::PathBuf {
    journal.file.clone().unwrap_or_else(|| place.journal())
}

/// What a shell runs to undo what the journal at `path` says.
fn undo_command(place: &Place, path: &Path) -> String {
    let netns = place.name().map_or(String::new(), |name| format!(" --netns {name}"));
    let journal = match path == place.journal() {
        true => String::new(),
        false => format!(" --journal {}", path.display()),
    };
    format!("corecast tune revert{netns}{journal}")
}

/// How to apply a profile.
struct Apply {
    is_of_host: bool,
    is_dry: bool,
    is_json: bool,
}

impl Apply {
    fn run(&self, place: &Place, which: &Which, journal: &JournalFile) -> anyhow::Result<ExitCode> {
        let plan = make_plan(place, which)?;
        self.allow(place)?;
        let (values, left_out) = self.chosen(&plan);
        if self.is_dry {
            let would: Vec<_> = plan
                .changes()
                .filter(|(step, ..)| self.reaches(step.scope))
                .map(|(_, target, now, due)| (target.to_string(), now.to_owned(), due.to_owned()))
                .collect();
            return self.tell(place, "would be set", &would, &left_out, None);
        }
        let unreadable = plan.steps.iter().find_map(|step| match &step.state {
            State::Unreadable { why } if self.reaches(step.scope) => Some(why),
            _ => None,
        });
        if let Some(why) = unreadable {
            return Err(Failure::new(UNAVAILABLE, format!("{why}; nothing is changed")).into());
        }
        let path = journal_path(place, journal);
        let identity = place.identity()?;
        let stop = signals::stop_flag()?;
        let by = &plan.profile.name;
        let applied = match values.is_empty() {
            true => Vec::new(),
            false => place.run(|root| apply(root, &path, identity, by, &values, &stop))??,
        };
        let rows = |applied: Applied| (applied.target.to_string(), applied.old, applied.now);
        let rows: Vec<_> = applied.into_iter().map(rows).collect();
        self.tell(place, "set", &rows, &left_out, Some(&path))
    }

    /// Whether this may be done at all.
    fn allow(&self, place: &Place) -> Result<(), Failure> {
        if self.is_of_host || self.is_dry || !place.is_host() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{place} would be changed, and with it every program of this host: say --host if that is meant (it changes \
             what the whole host has once, too), or --netns NAME for another namespace (`ip netns add NAME`). --dry-run \
             says what it would be"
        )))
    }

    fn reaches(&self, scope: Scope) -> bool {
        scope == Scope::Network || (scope == Scope::Host && self.is_of_host)
    }

    /// What is set, and the names of what differs and is not.
    fn chosen(&self, plan: &Plan) -> (Vec<(Target, String)>, Vec<String>) {
        let (chosen, others): (Vec<_>, Vec<_>) =
            plan.changes().partition(|(step, ..)| self.reaches(step.scope));
        let values = chosen.into_iter().map(|(_, target, _, due)| (target.clone(), due.to_owned())).collect();
        (values, others.into_iter().map(|(step, ..)| step.name.clone()).collect())
    }

    fn tell(
        &self,
        place: &Place,
        done: &str,
        rows: &[(String, String, String)],
        left_out: &[String],
        journal: Option<&Path>,
    ) -> anyhow::Result<ExitCode> {
        if self.is_json {
            let rows: Vec<_> =
                rows.iter().map(|(knob, old, now)| json!({"knob": knob, "old": old, "now": now})).collect();
            let journal = journal.map(|path| path.display().to_string());
            print(&document(
                &json!({"dry_run": self.is_dry, "set": rows, "left_out": left_out, "journal": journal}),
            ))?;
            return Ok(ExitCode::SUCCESS);
        }
        let cells =
            |(knob, old, now): &(String, String, String)| vec![knob.clone(), format!("{old} -> {now}")];
        let mut text = columns::columns(&rows.iter().map(cells).collect::<Vec<_>>());
        text += &match rows.len() {
            0 => format!("Nothing to do in {place}.\n"),
            count => format!(
                "{count} {done} in {place}, until the kernel restarts; corecast tune export is for good.\n"
            ),
        };
        if !left_out.is_empty() {
            text +=
                &format!("Left out, because the whole host has it once (--host): {}.\n", left_out.join(", "));
        }
        if let Some(path) = journal.filter(|_| !rows.is_empty()) {
            let undo = undo_command(place, path);
            text += &format!("Noted down in {}. To undo it: {undo}\n", path.display());
        }
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
