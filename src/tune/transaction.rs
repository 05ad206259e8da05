//! Values that are set together: all of them or none.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use host::Root;

use crate::exit::{FAILED, Failure, NO_PERMISSION};
use crate::tune::identity::Identity;
use crate::tune::journal::{Change, Journal, JournalError, Part, SetError};
use crate::tune::outcome::{Outcome, Reverted};
use crate::tune::target::Target;

/// One value, set.
#[derive(Debug, PartialEq, Eq)]
pub struct Applied {
    /// Which.
    pub target: Target,
    /// Before.
    pub old: String,
    /// What it is now.
    pub now: String,
}

/// Sets `values` on behalf of `by`, each noted down in the journal at `path` before.
///
/// Where one is refused, or `stop` becomes true, those before it are undone. Acts in the network namespace of the calling
/// thread, which is to be `identity`'s.
///
/// # Errors
/// A [`Failure`] that says what was undone and what could not be: 77 where this user may not set a value, else 1.
pub fn transact(
    root: &Root,
    path: &Path,
    identity: Identity,
    by: &str,
    values: &[(Target, String)],
    stop: &AtomicBool,
) -> Result<Vec<Applied>, Failure> {
    let mut journal = Journal::begin(path, identity).map_err(journal_failure)?;
    let kept = journal.content().changes.len();
    for (target, value) in values {
        let failure = match journal.set(root, by, target, value) {
            Ok(_) if !stop.load(Ordering::Relaxed) => continue,
            Ok(_) => Failure::new(INTERRUPTED, "interrupted"),
            Err(error) => set_failure(&error),
        };
        return Err(rolled_back(failure, journal.revert(root, Part::After(kept), false), path));
    }
    let applied = journal.content().changes[kept..].iter().map(|change| Applied {
        target: change.target.clone(),
        old: change.old.clone(),
        now: change.found.clone().unwrap_or_else(|| change.new.clone()),
    });
    Ok(applied.collect())
}

/// As a shell tells of SIGINT.
const INTERRUPTED: u8 = 130;

fn set_failure(error: &SetError) -> Failure {
    let kind = match error {
        SetError::Target(error) => error.io().map(std::io::Error::kind),
        SetError::Journal(_) => None,
    };
    match kind {
        Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => {
            Failure::new(NO_PERMISSION, format!("{error}; it takes root, outside of a container"))
        }
        _ => Failure::new(FAILED, error.to_string()),
    }
}

/// `failure` with what became of the values before it.
fn rolled_back(mut failure: Failure, Reverted { outcomes, noted }: Reverted, path: &Path) -> Failure {
    let (undone, left): (Vec<_>, Vec<_>) = outcomes.iter().partition(|(_, outcome)| outcome.is_restored());
    failure.sentence += &match undone.len() {
        0 => "\nnothing is changed".to_owned(),
        1 => "\nwhat was set before has its old value again".to_owned(),
        count => format!("\nthe {count} that were set have their old values again"),
    };
    for (change, outcome) in &left {
        failure.sentence += &format!("\nbut {}", left_over(change, outcome));
    }
    if !left.is_empty() {
        failure.sentence += &format!("\nwhat is left is in {}: corecast tune revert", path.display());
    }
    if let Err(error) = noted {
        failure.sentence += &format!("\nthat could not be noted down: {error}");
    }
    failure
}

/// Why a change is not undone, and what it was.
pub fn left_over(change: &Change, outcome: &Outcome) -> String {
    let Change { target, old, new, .. } = change;
    match outcome {
        Outcome::Restored => format!("{target} is {old} again"),
        Outcome::AlreadyRestored => format!("{target} is {old} already"),
        Outcome::Alien { now } => format!(
            "{target} is {now}, which somebody else made of it: {new} was set here, {old} was before; it stays, unless \
             --force"
        ),
        Outcome::Failed { error } => format!("{target} is not {old} again: {error}"),
    }
}

/// A journal that can't be used.
pub fn journal_failure(error: JournalError) -> Failure {
    let code = match &error {
        JournalError::File { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
            NO_PERMISSION
        }
        _ => FAILED,
    };
    Failure::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::scratch::Scratch;

    fn identity() -> Identity {
        Identity { boot_id: "boot".to_owned(), namespace_inode: 7, namespace_cookie: None }
    }

    fn values(pairs: &[(&str, &str)]) -> Vec<(Target, String)> {
        pairs.iter().map(|(name, value)| (name.parse().expect("a name"), (*value).to_owned())).collect()
    }

    #[test]
    fn a_refusal_undoes_what_was_set_before_it_and_nothing_older() {
        let scratch = Scratch::new("transaction-refused");
        scratch.sysctl("net/core/somaxconn", "4096");
        scratch.sysctl("fs/nr_open", "1048576");
        let path = scratch.path("journal");
        let set = |pairs: &[(&str, &str)], stop: bool| {
            transact(scratch.root(), &path, identity(), "test", &values(pairs), &AtomicBool::new(stop))
        };
        let applied = set(&[("net.core.somaxconn", "5000")], false).expect("it is taken");
        assert_eq!((applied[0].old.as_str(), applied[0].now.as_str()), ("4096", "5000"));

        let both = [("net.core.somaxconn", "6000"), ("fs.nr_open", "2000000"), ("fs.absent", "1")];
        let failure = set(&both, false).expect_err("one is not there");
        assert_eq!(failure.code, FAILED);
        assert!(failure.sentence.ends_with("\nthe 2 that were set have their old values again"), "{failure}");
        let read = |name: &str| values(&[(name, "")])[0].0.read(scratch.root()).expect("it is there");
        assert_eq!([read("net.core.somaxconn"), read("fs.nr_open")], ["5000", "1048576"]);

        let failure = set(&both[..2], true).expect_err("it was stopped");
        assert_eq!(failure.code, INTERRUPTED);
        assert_eq!([read("net.core.somaxconn"), read("fs.nr_open")], ["5000", "1048576"]);
        let mut journal = Journal::open(&path).expect("it opens").expect("it is there");
        let reverted = journal.revert(scratch.root(), Part::Whole, false);
        assert_eq!(reverted.outcomes.len(), 1, "the older one");
        assert_eq!(read("net.core.somaxconn"), "4096");
    }
}
