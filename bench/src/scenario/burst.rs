//! Messages back to back.

use anyhow::Result;
use serde_json::json;

use super::duel::{Duel, FLOOR_GATHER, floor_gathered};
use super::{Outcome, crowd_json, crowd_text};
use crate::cli::Crowd;
use crate::schedule::Load;
use crate::stage::Bench;

/// Messages back to back. The floor gathers ten a send.
pub fn burst(bench: &Bench, crowd: &Crowd, messages: u64) -> Result<Outcome> {
    let mut duel = Duel::connect(bench, crowd)?;
    let title = format!("burst, {}, {messages} back to back", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "messages": messages, "floor_gather": FLOOR_GATHER});
    let mut outcome = Outcome::new(title, parameters, &duel.stage.server.command);
    duel.warm_up(bench, Load::Burst { messages: messages.div_ceil(10) })?;
    duel.alternate(bench, Load::Burst { messages }, floor_gathered(bench), &mut outcome)?;
    outcome.add_load_figures();
    Ok(outcome)
}
