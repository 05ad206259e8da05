//! `corecast tune revert`: what a journal says, undone.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::exit::{FAILED, Failure};
use crate::output::{complain, print};
use crate::tune::columns::columns;
use crate::tune::explain::document;
use crate::tune::identity::{Identity, Kinship};
use crate::tune::journal::{Change, Content, Journal, JournalError, Part};
use crate::tune::outcome::{Outcome, Reverted};
use crate::tune::place::Place;
use crate::tune::transaction::{journal_failure, left_over};

/// How to undo.
pub struct Revert {
    /// What of it.
    pub part: Part,
    /// Also what somebody else has changed since.
    pub is_forced: bool,
    /// As JSON.
    pub is_json: bool,
}

impl Revert {
    /// Undoes what the journal at `path` says of `place`.
    ///
    /// # Errors
    /// 1 for a journal of another namespace, one that is damaged (unless forced) or in use, and one that can't be written;
    /// 77 where this user may not.
    pub fn run(&self, place: &Place, path: &Path) -> anyhow::Result<ExitCode> {
        let Some(mut journal) = Journal::open(path).map_err(journal_failure)? else {
            return self.nothing(&format!("there is no journal at {}", path.display()));
        };
        if let Some(why) = lost(journal.content(), path, place)? {
            return self.nothing(&why);
        }
        if let Some(line) = journal.content().corrupted.first().filter(|_| !self.is_forced) {
            return Err(
                journal_failure(JournalError::Corrupted { path: path.to_owned(), line: *line }).into()
            );
        }
        let Reverted { outcomes, noted } =
            place.run(|root| journal.revert(root, self.part, self.is_forced))?;
        let told = match (outcomes.is_empty(), self.part) {
            (true, Part::OfExperiments) => self.nothing("no experiment has left anything"),
            (true, _) => self.nothing("everything has its old value"),
            (false, _) => self.tell(&outcomes),
        };
        // After what became of the values, which matters more.
        noted.map_err(journal_failure)?;
        told
    }

    fn nothing(&self, why: &str) -> anyhow::Result<ExitCode> {
        print(&match self.is_json {
            true => document(&json!({"restored": [], "left": [], "why": why})),
            false => format!("Nothing is left to revert: {why}.\n"),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn tell(&self, outcomes: &[(Change, Outcome)]) -> anyhow::Result<ExitCode> {
        let (restored, left): (Vec<_>, Vec<_>) =
            outcomes.iter().partition(|(_, outcome)| outcome.is_restored());
        if self.is_json {
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
}

/// Why all that the journal at `path` says of `place` went without anybody's help; `None` where it did not.
fn lost(content: &Content, path: &Path, place: &Place) -> Result<Option<String>, Failure> {
    let Some(theirs) = &content.identity else { return Ok(None) };
    let ours = place.identity()?;
    Ok(match theirs.kinship(&ours) {
        Kinship::OtherBoot => Some(format!(
            "the kernel was started again since (it was {}, it is {}), and so has its own values",
            theirs.boot_id, ours.boot_id
        )),
        Kinship::Gone => Some("its network namespace is gone, and this one only has its number".to_owned()),
        Kinship::OtherNamespace if content.outstanding().next().is_none() => None,
        Kinship::OtherNamespace if theirs.is_gone(place.root()) => {
            Some("its network namespace is gone, and its values went with it".to_owned())
        }
        Kinship::OtherNamespace => return Err(other_namespace(path, theirs, place)),
        Kinship::Same => None,
    })
}

fn other_namespace(path: &Path, theirs: &Identity, place: &Place) -> Failure {
    let (path, theirs) = (path.display(), theirs.namespace_inode);
    Failure::new(
        FAILED,
        format!(
            "{path} holds changes of the network namespace {theirs}, found {place}: revert with --netns NAME or a process \
             in it"
        ),
    )
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
