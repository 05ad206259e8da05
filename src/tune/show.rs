//! A plan for people and programs to read.

use serde_json::{Value, json};

use crate::tune::columns::{columns, wrapped};
use crate::tune::explain::document;
use crate::tune::knob::Scope;
use crate::tune::plan::{Plan, State, Step};

/// `plan` as a table: what differs, or with `all` everything.
pub fn table(plan: &Plan, all: bool) -> String {
    let rows: Vec<_> = plan.steps.iter().filter(|step| all || is_told(step)).map(row).collect();
    let mut text = wrapped(&summary(plan), "");
    if rows.is_empty() {
        return text + "Nothing to do.\n";
    }
    let head = ["knob", "now", "due", "scope", ""].map(str::to_owned).to_vec();
    text += &columns(&[vec![head], rows].concat());
    if plan.changes().next().is_some() {
        text += NEXT;
    }
    text
}

/// What there is to do about it.
const NEXT: &str =
    "corecast tune explain KNOB says why; apply sets it until the kernel restarts, export for good.\n";

/// `plan` as JSON, with everything.
pub fn json(plan: &Plan) -> String {
    let facts = &plan.facts;
    let steps: Vec<Value> = plan.steps.iter().map(|step| step_json(plan, step)).collect();
    document(&json!({
        "profile": plan.profile.name,
        "connections": facts.connections,
        "memory_bytes": facts.memory_bytes,
        "cores": facts.cores,
        "connections_bytes": plan.connections_bytes(),
        "steps": steps,
    }))
}

fn is_told(step: &Step) -> bool {
    matches!(step.state, State::Differs { .. } | State::Unreadable { .. })
}

/// The arithmetic of memory, which no knob changes.
fn summary(plan: &Plan) -> String {
    let facts = &plan.facts;
    let (due, memory) = (plan.connections_bytes(), facts.memory_bytes);
    let verdict = match () {
        () if due > memory => ": more than there is",
        () if due > memory / 2 => ": more than half of it, before anything is sent",
        () => "",
    };
    format!(
        "{} for {} connections, which take {} idle, of {} memory{verdict}.",
        plan.profile.name,
        facts.connections,
        bytes(due),
        bytes(memory),
    )
}

fn row(step: &Step) -> Vec<String> {
    let (now, due, word) = match &step.state {
        State::Good { now } => (now.as_str(), now.as_str(), "as it should be".to_owned()),
        State::Differs { now, due } if step.scope == Scope::Service => {
            (now.as_str(), due.as_str(), "this shell's; set where corecast is started".to_owned())
        }
        State::Differs { now, due } => (now.as_str(), due.as_str(), String::new()),
        State::Absent => ("-", "-", "not there".to_owned()),
        State::Unreadable { why } => ("?", "?", why.clone()),
    };
    vec![step.name.clone(), now.to_owned(), due.to_owned(), step.scope.to_string(), word]
}

fn step_json(plan: &Plan, step: &Step) -> Value {
    let (state, now, due, why) = match &step.state {
        State::Good { now } => ("good", Some(now), Some(now), None),
        State::Differs { now, due } => ("differs", Some(now), Some(due), None),
        State::Absent => ("absent", None, None, None),
        State::Unreadable { why } => ("unreadable", None, None, Some(why)),
    };
    let reason = plan.profile.knobs.get(step.knob).map(|knob| &knob.reason);
    json!({
        "knob": step.name, "scope": step.scope, "state": state, "now": now, "due": due, "why": why, "reason": reason,
    })
}

/// `4.8 GiB`.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let exponent = (count.max(1).ilog2() / 10).min(4);
    match exponent {
        0 => format!("{count} B"),
        _ => format!(
            "{:.1} {}",
            count as f64 / f64::from(1_u32 << 10).powi(exponent as i32),
            units[exponent as usize]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let texts = [0, 1023, 1024, 50_000_000, 5_000_000_000, 1 << 50].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "47.7 MiB", "4.7 GiB", "1024.0 TiB"]);
    }
}
