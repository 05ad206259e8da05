//! `corecast tune revert`: what a journal says, undone.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::exit::{FAILED, Failure};
use crate::output::{complain, print};
use crate::tune::columns::columns;
use crate::tune::explain::document;
use crate::tune::journal::{Change, Identity, Journal, JournalError, Kinship, Outcome};
use crate::tune::place::Place;
use crate::tune::transaction::{journal_failure, left_over};

/// Undoes what the journal at `path` says of `place`.
///
/// # Errors
/// 1 for a journal of another namespace, one that is damaged (unless `is_forced`) or in use; 77 where this user may not.
pub fn run(place: &Place, path: &Path, is_forced: bool, is_json: bool) -> anyhow::Result<ExitCode> {
    let Some(mut journal) = Journal::open(path).map_err(journal_failure)? else {
        return nothing(&format!("there is no journal at {}", path.display()), is_json);
    };
    let content = journal.content();
    let ours = place.identity()?;
    if let Some(theirs) = &content.identity {
        match theirs.kinship(&ours) {
            Kinship::OtherBoot => {
                let why = format!(
                    "the kernel was started again since (it was {}, it is {}), and so has its own values",
                    theirs.boot_id, ours.boot_id
                );
                return nothing(&why, is_json);
            }
            Kinship::Gone => {
                return nothing("its network namespace is gone, and this one only has its number", is_json);
            }
            Kinship::OtherNamespace if content.outstanding().next().is_some() => {
                return Err(other_namespace(path, theirs, place).into());
            }
            Kinship::Same | Kinship::OtherNamespace => {}
        }
    }
    if let Some(line) = content.corrupted.first().filter(|_| !is_forced) {
        return Err(journal_failure(JournalError::Corrupted { path: path.to_owned(), line: *line }).into());
    }
    let outcomes = place.run(|root| journal.revert(root, is_forced))?.map_err(journal_failure)?;
    match outcomes.is_empty() {
        true => nothing("everything has its old value", is_json),
        false => tell(&outcomes, is_json),
    }
}

fn other_namespace(path: &Path, theirs: &Identity, place: &Place) -> Failure {
    let (path, theirs) = (path.display(), theirs.namespace_inode);
    Failure::new(
        FAILED,
        format!(
            "{path} holds changes of the network namespace {theirs}, found {place}: revert with --netns NAME or a process \
             in it. If that namespace is gone, its values are, and nothing is left to revert"
        ),
    )
}

fn nothing(why: &str, is_json: bool) -> anyhow::Result<ExitCode> {
    print(&match is_json {
        true => document(&json!({"restored": [], "left": [], "why": why})),
        false => format!("Nothing is left to revert: {why}.\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn tell(outcomes: &[(Change, Outcome)], is_json: bool) -> anyhow::Result<ExitCode> {
    let is_restored = |outcome: &Outcome| matches!(outcome, Outcome::Restored | Outcome::AlreadyRestored);
    let (restored, left): (Vec<_>, Vec<_>) = outcomes.iter().partition(|(_, outcome)| is_restored(outcome));
    if is_json {
        let of = |rows: &[&(Change, Outcome)]| -> Vec<Value> {
            rows.iter().map(|row| outcome_json(row)).collect()
        };
        print(&document(&json!({"restored": of(&restored), "left": of(&left)})))?;
    } else {
        let row = |(change, outcome): &&(Change, Outcome)| {
            let from = match outcome {
                Outcome::AlreadyRestored => "already",
                _ => change.found.as_ref().unwrap_or(&change.new),
            };
            vec![change.target.to_string(), format!("{from} -> {}", change.old)]
        };
        print(&columns(&restored.iter().map(row).collect::<Vec<_>>()))?;
    }
    for (change, outcome) in &left {
        complain!("corecast: {}", left_over(change, outcome));
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn outcome_json((change, outcome): &(Change, Outcome)) -> Value {
    let word = match outcome {
        Outcome::Restored => "restored",
        Outcome::AlreadyRestored => "already restored",
        Outcome::Alien { .. } => "changed by somebody else",
        Outcome::Failed { .. } => "failed",
    };
    json!({
        "knob": change.target, "old": change.old, "set": change.new, "by": change.by, "time": change.time, "outcome": word,
        "why": left_over(change, outcome),
    })
}
