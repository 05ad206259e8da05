//! `corecast tune apply`: which values of a plan are set, and where that takes a word.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use crate::exit::{Failure, UNAVAILABLE};
use crate::output::print;
use crate::signals;
use crate::tune::columns::columns;
use crate::tune::explain::document;
use crate::tune::knob::Scope;
use crate::tune::place::Place;
use crate::tune::plan::{Plan, State};
use crate::tune::target::Target;
use crate::tune::transaction::{Applied, transact};

/// How to apply a profile.
pub struct Apply {
    /// The host was said.
    pub is_of_host: bool,
    /// Only say what would be set.
    pub is_dry: bool,
    /// As JSON.
    pub is_json: bool,
}

impl Apply {
    /// Sets what `plan` would change in `place`, noted down in the journal at `path`.
    ///
    /// # Errors
    /// 2 where the host's own namespace was meant and not said, or said elsewhere; 69 for a value that can't be read; those of
    /// [`transact`].
    pub fn run(&self, place: &Place, plan: &Plan, path: &Path) -> anyhow::Result<ExitCode> {
        self.allow(place)?;
        let (values, left_out) = self.chosen(plan);
        if self.is_dry {
            return self.tell(place, "would be set", &self.differences(plan), &left_out, None);
        }
        self.require_readable(plan)?;
        let identity = place.identity()?;
        let stop = signals::patient_stop_flag()?;
        let by = &plan.profile.name;
        let applied = match values.is_empty() {
            true => Vec::new(),
            false => place.run(|root| transact(root, path, identity, by, &values, &stop))??,
        };
        self.tell(place, "set", &applied, &left_out, Some(path))
    }

    /// Whether this may be done at all.
    fn allow(&self, place: &Place) -> Result<(), Failure> {
        if self.is_of_host {
            return place.require_host();
        }
        if self.is_dry || !place.is_host() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{place} would be changed, and with it every program of this host: say --host if that is meant (it changes \
             what the whole host has once, too), or --netns NAME for another namespace (`ip netns add NAME`). --dry-run \
             says what it would be"
        )))
    }

    /// A value that can't be read may be one that its knob doesn't understand: then nothing is set.
    fn require_readable(&self, plan: &Plan) -> Result<(), Failure> {
        let unreadable = plan.steps.iter().find_map(|step| match &step.state {
            State::Unreadable { why } if self.reaches(step.scope) => Some(why),
            _ => None,
        });
        match unreadable {
            Some(why) => Err(Failure::new(UNAVAILABLE, format!("{why}; nothing is changed"))),
            None => Ok(()),
        }
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

    /// What would be set.
    fn differences(&self, plan: &Plan) -> Vec<Applied> {
        let reached = plan.changes().filter(|(step, ..)| self.reaches(step.scope));
        let applied = |(_, target, now, due): (_, &Target, &str, &str)| Applied {
            target: target.clone(),
            old: now.to_owned(),
            now: due.to_owned(),
        };
        reached.map(applied).collect()
    }

    fn tell(
        &self,
        place: &Place,
        done: &str,
        rows: &[Applied],
        left_out: &[String],
        journal: Option<&Path>,
    ) -> anyhow::Result<ExitCode> {
        if self.is_json {
            let row =
                |Applied { target, old, now }: &Applied| json!({"knob": target, "old": old, "now": now});
            let rows: Vec<_> = rows.iter().map(row).collect();
            let journal = journal.map(|path| path.display().to_string());
            print(&document(
                &json!({"dry_run": self.is_dry, "set": rows, "left_out": left_out, "journal": journal}),
            ))?;
            return Ok(ExitCode::SUCCESS);
        }
        let cells =
            |Applied { target, old, now }: &Applied| vec![target.to_string(), format!("{old} -> {now}")];
        let mut text = columns(&rows.iter().map(cells).collect::<Vec<_>>());
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
            let undo = place.undo_command(path);
            text += &format!("Noted down in {}. To undo it: {undo}\n", path.display());
        }
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
