//! Knobs of the whole host, set for one sample and put back after it, whatever ends the experiment.
//!
//! The journal on the disk knows of a value before it is set. It is reverted after each sample, when this is dropped, and
//! by a panic's hook (a release build aborts, so that nothing is dropped); after a kill -9 `corecast tune revert --experiments`
//! does it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use host::Root;

use super::arm::{Knob, SetKnob};
use crate::output::complain;
use crate::tune::identity::Identity;
use crate::tune::journal::{Change, Content, EXPERIMENT, Journal, JournalError, Part, SetError};
use crate::tune::outcome::{Outcome, Reverted};
use crate::tune::target::Target;

/// See the module.
pub struct HostKnobs {
    root: Root,
    /// On behalf of whom: `experiment NAME`.
    by: String,
    path: PathBuf,
    /// Opened with the first knob.
    journal: Arc<Mutex<Option<Held>>>,
    identity: Identity,
}

/// An open journal, and how many changes it held before ours: an applied profile stays as it is.
struct Held {
    journal: Journal,
    kept: usize,
}

/// Why knobs could not be set or put back.
#[derive(Debug, thiserror::Error)]
pub enum HostKnobsError {
    /// A value was not set.
    #[error(transparent)]
    Set(#[from] SetError),
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A value that is not as it was.
    #[error(
        "{target} could not be put back to {old:?}: {why}; `corecast tune revert --experiments --force` puts it back"
    )]
    NotReverted {
        /// Which.
        target: String,
        /// What it was before.
        old: String,
        /// What is in the way.
        why: String,
    },
}

impl HostKnobs {
    /// Nothing is set, and no journal made, before the first [`set`](Self::set).
    pub fn new(root: Root, path: &Path, identity: Identity, experiment: &str) -> Self {
        let by = format!("{EXPERIMENT}{experiment}");
        let knobs = Self { root, by, path: path.to_owned(), journal: Arc::default(), identity };
        knobs.revert_on_panic();
        knobs
    }

    /// Sets `knobs`, in order; what the kernel made of them.
    ///
    /// # Errors
    /// [`HostKnobsError::Set`]; those before it are set, and to be reverted.
    pub fn set(&self, knobs: &[Knob]) -> Result<Vec<SetKnob>, HostKnobsError> {
        let mut held = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let mut set = Vec::new();
        for knob in knobs {
            let held = match &mut *held {
                Some(held) => held,
                none => {
                    let journal = Journal::begin(&self.path, self.identity.clone())?;
                    let kept = journal.content().changes.len();
                    none.insert(Held { journal, kept })
                }
            };
            let found = held.journal.set(&self.root, &self.by, &knob.target, &knob.value)?;
            set.push(SetKnob { knob: knob.clone(), found });
        }
        Ok(set)
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// [`HostKnobsError::NotReverted`] for the first value that is not as it was; the others are.
    pub fn revert(&self) -> Result<(), HostKnobsError> {
        let mut held = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_mut().map_or(Ok(()), |held| held.revert(&self.root))
    }

    /// Hooks run before an abort, and before anything is unwound.
    fn revert_on_panic(&self) {
        let (journal, root) = (Arc::downgrade(&self.journal), self.root.clone());
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            told(panic);
            let Some(journal) = journal.upgrade() else { return };
            // Held by this thread if it is the journal that panics: what is on the disk is left to `corecast tune revert`.
            let mut held = match journal.try_lock() {
                Ok(held) => held,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if let Some(Err(error)) = held.as_mut().map(|held| held.revert(&root)) {
                complain!("corecast: {error}");
            }
        }));
    }
}

impl Drop for HostKnobs {
    fn drop(&mut self) {
        if let Err(error) = self.revert() {
            complain!("corecast: {error}");
        }
    }
}

impl Held {
    fn revert(&mut self, root: &Root) -> Result<(), HostKnobsError> {
        let Reverted { outcomes, noted } = self.journal.revert(root, Part::After(self.kept), false);
        let left = outcomes.into_iter().find_map(|(change, outcome)| {
            let why = match outcome {
                Outcome::Restored | Outcome::AlreadyRestored => return None,
                Outcome::Alien { now } => format!("somebody else has set it to {now:?} meanwhile"),
                Outcome::Failed { error } => error,
            };
            Some(HostKnobsError::NotReverted { target: change.target.to_string(), old: change.old, why })
        });
        left.map_or(Ok(()), Err)?;
        Ok(noted?)
    }
}

/// What the journal at `path` holds of this start of the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Changes of an experiment that was killed.
    pub of_experiments: usize,
    /// Changes that are meant to be there, of an applied profile.
    pub of_others: Vec<Applied>,
}

/// A value that a profile was applied with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Which.
    pub target: Target,
    /// What it is.
    pub value: String,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.target, self.value)
    }
}

impl Outstanding {
    /// Reads it; nothing is outstanding where there is no journal.
    ///
    /// # Errors
    /// A journal that can't be read.
    pub fn read(path: &Path, boot_id: &str) -> Result<Self, JournalError> {
        let Some(content) = Content::read(path)? else { return Ok(Self::default()) };
        if content.identity.as_ref().is_some_and(|identity| identity.boot_id != boot_id) {
            return Ok(Self::default());
        }
        let (experiments, others): (Vec<_>, Vec<_>) =
            content.outstanding().partition(|change| change.is_of_experiment());
        let applied = |change: &&Change| Applied {
            target: change.target.clone(),
            value: change.found.as_ref().unwrap_or(&change.new).clone(),
        };
        Ok(Self { of_experiments: experiments.len(), of_others: others.iter().map(applied).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::scratch::Scratch;

    const THP: &str = "sys/kernel/mm/transparent_hugepage/enabled";

    fn knob(value: &str) -> Knob {
        Knob { target: format!("/{THP}").parse().expect("a path"), value: value.to_owned() }
    }

    fn knobs(scratch: &Scratch) -> HostKnobs {
        let identity = Identity { boot_id: "boot".to_owned(), namespace_inode: 1, namespace_cookie: None };
        HostKnobs::new(scratch.root().clone(), &scratch.path("journal"), identity, "thp")
    }

    fn thp(scratch: &Scratch) -> String {
        std::fs::read_to_string(scratch.path(THP)).expect("it is there").trim().to_owned()
    }

    fn outstanding(scratch: &Scratch, boot_id: &str) -> Outstanding {
        Outstanding::read(&scratch.path("journal"), boot_id).expect("it can be read")
    }

    #[test]
    fn a_value_is_put_back_after_its_sample_and_may_be_set_again() {
        let scratch = Scratch::new("knobs-sample");
        scratch.write(THP, "madvise");
        let knobs = knobs(&scratch);
        for value in ["never", "always"] {
            knobs.set(&[knob(value)]).expect("it can be set");
            assert_eq!(thp(&scratch), value);
            knobs.revert().expect("it can be put back");
            assert_eq!(thp(&scratch), "madvise");
        }
        assert_eq!(outstanding(&scratch, "boot"), Outstanding::default());
    }

    #[test]
    fn an_end_without_a_word_puts_everything_back() {
        let scratch = Scratch::new("knobs-drop");
        scratch.write(THP, "madvise");
        let knobs = knobs(&scratch);
        knobs.set(&[knob("never")]).expect("it can be set");
        drop(knobs);
        assert_eq!(thp(&scratch), "madvise");
    }

    #[test]
    fn a_panic_puts_everything_back_before_anything_is_unwound() {
        let scratch = Scratch::new("knobs-panic");
        scratch.write(THP, "madvise");
        let knobs = knobs(&scratch);
        knobs.set(&[knob("never")]).expect("it can be set");
        std::thread::spawn(|| panic!("on purpose")).join().expect_err("it panics");
        // Nothing was dropped: `knobs` lives.
        assert_eq!(thp(&scratch), "madvise");
        drop(knobs);
    }

    #[test]
    fn what_a_killed_experiment_left_is_found_until_it_is_reverted_or_the_kernel_is_another_one() {
        let scratch = Scratch::new("knobs-killed");
        scratch.write(THP, "madvise");
        let knobs = knobs(&scratch);
        knobs.set(&[knob("never")]).expect("it can be set");
        assert_eq!(outstanding(&scratch, "boot"), Outstanding { of_experiments: 1, of_others: Vec::new() });
        assert_eq!(outstanding(&scratch, "another boot"), Outstanding::default());
        knobs.revert().expect("it can be put back");
        assert_eq!(outstanding(&scratch, "boot"), Outstanding::default());
    }

    #[test]
    fn an_applied_profile_stays_and_is_told() {
        let scratch = Scratch::new("knobs-profile");
        scratch.write(THP, "madvise");
        let identity = Identity { boot_id: "boot".to_owned(), namespace_inode: 1, namespace_cookie: None };
        let mut journal = Journal::begin(&scratch.path("journal"), identity).expect("it can be made");
        let Knob { target, value } = knob("always");
        journal.set(scratch.root(), "profile 100k", &target, &value).expect("it can be set");
        drop(journal);
        let knobs = knobs(&scratch);
        knobs.set(&[knob("never")]).expect("it can be set");
        knobs.revert().expect("it can be put back");
        assert_eq!(thp(&scratch), "always");
        let of_others = vec![Applied { target, value }];
        assert_eq!(outstanding(&scratch, "boot"), Outstanding { of_experiments: 0, of_others });
    }

    #[test]
    fn a_value_that_somebody_else_has_changed_meanwhile_stays_and_is_told() {
        let scratch = Scratch::new("knobs-alien");
        scratch.write(THP, "madvise");
        let knobs = knobs(&scratch);
        knobs.set(&[knob("never")]).expect("it can be set");
        scratch.write(THP, "always");
        let error = knobs.revert().expect_err("it is not as it was").to_string();
        assert!(
            error.contains("could not be put back to \"madvise\"") && error.contains("\"always\""),
            "{error}"
        );
        assert_eq!(thp(&scratch), "always");
    }
}
