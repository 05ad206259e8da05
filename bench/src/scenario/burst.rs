//! Messages back to back.

use anyhow::Result;
use serde_json::json;

use super::contest::{Contest, FLOOR_GATHER, Loads, floor_gathered, note_gather};
use super::{Outcome, crowd_json, crowd_text};
use crate::cli::Crowd;
use crate::schedule::Load;
use crate::stage::Bench;

/// Messages back to back. The floor gathers ten a send.
pub fn burst(bench: &Bench, crowd: &Crowd, messages: u64) -> Result<Outcome> {
    let title = format!("burst, {}, {messages} back to back", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "messages": messages, "floor_gather": FLOOR_GATHER});
    let mut outcome = Outcome::new(title, parameters, "");
    let mut contest = Contest::connect(bench, crowd, 1, &mut outcome)?;
    note_gather(bench, &mut outcome);
    contest.warm_up(bench, Load::Burst { messages: messages.div_ceil(10) }, &mut outcome)?;
    let loads = Loads { server: Load::Burst { messages }, floor: Some(floor_gathered(bench)) };
    contest.alternate(bench, loads, &mut outcome)?;
    outcome.add_load_figures();
    Ok(outcome)
}
