//! What becomes of a change that is undone.

use host::Root;

use crate::tune::journal::{Change, JournalError};
use crate::tune::target::TargetError;

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its old value is back.
    Restored,
    /// It had its old value: the process ended before the write, or somebody put it back.
    AlreadyRestored,
    /// Somebody else has changed it since; it stays as it is.
    Alien {
        /// What it is.
        now: String,
    },
    /// The kernel doesn't take the old value, or doesn't have the parameter any more.
    Failed {
        /// The kernel's word.
        error: String,
    },
}

/// What became of all that was to be undone.
#[derive(Debug)]
pub struct Reverted {
    /// In the order in which it was tried, newest first.
    pub outcomes: Vec<(Change, Outcome)>,
    /// The first line of it that could not be noted down. Values are set back all the same: the journal may lie on a disk
    /// that takes no more.
    pub noted: Result<(), JournalError>,
}

impl Outcome {
    /// Whether the value is what it was before the change.
    pub fn is_restored(&self) -> bool {
        matches!(self, Self::Restored | Self::AlreadyRestored)
    }

    /// Undoes `change`; what somebody else has made of it only if `is_forced`.
    pub fn of_undoing(change: &Change, root: &Root, is_forced: bool) -> Self {
        match undo(change, root, is_forced) {
            Ok(outcome) => outcome,
            Err(error) => Self::Failed { error: error.to_string() },
        }
    }
}

fn undo(change: &Change, root: &Root, is_forced: bool) -> Result<Outcome, TargetError> {
    let now = change.target.read(root)?;
    if now == change.old {
        return Ok(Outcome::AlreadyRestored);
    }
    let is_ours = is_same(&now, &change.new) || change.found.as_ref() == Some(&now);
    if !is_ours && !is_forced {
        return Ok(Outcome::Alien { now });
    }
    change.target.write(root, &change.old)?;
    // The kernel may take a value and make another one of it.
    let now = change.target.read(root)?;
    Ok(match now == change.old {
        true => Outcome::Restored,
        false => Outcome::Failed { error: format!("it was set, and is {now:?} all the same") },
    })
}

/// Whether the kernel's spelling and ours are of one value: numbers and masks have zeros before them there, and masks of many
/// cores commas. Who was killed between setting a value and noting down how it reads has only his own spelling.
pub fn is_same(one: &str, other: &str) -> bool {
    one.split_whitespace().map(shortest).eq(other.split_whitespace().map(shortest))
}

/// `00000000,0000000F` and `0f` are `f`; what is no number stays as it is, and so does a list of ports (`80,443`).
fn shortest(word: &str) -> String {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_mask = word.split(',').skip(1).all(|group| group.len() == 8) && word.split(',').all(is_hex);
    match is_mask {
        true => word.replace(',', "").trim_start_matches('0').to_ascii_lowercase(),
        false => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_value_are_the_same_and_other_values_are_not() {
        for (one, other) in [
            ("1", "1"),
            ("1", "00000001"),
            ("00000000,0000000F", "f"),
            ("f,00000000", "F00000000"),
            ("0", "00000000,00000000"),
            ("04096 1 2", "4096\t1\t2"),
            ("performance", "performance"),
        ] {
            assert!(is_same(one, other) && is_same(other, one), "{one:?} {other:?}");
        }
        for (one, other) in
            [("1", "2"), ("1", "10"), ("80,443", "80443"), ("1", "1 1"), ("", "1"), ("always", "madvise")]
        {
            assert!(!is_same(one, other), "{one:?} {other:?}");
        }
    }
}
