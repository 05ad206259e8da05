//! Messages at a rate.

use anyhow::{Result, bail};
use serde_json::json;

use super::duel::Duel;
use super::{Outcome, crowd_json, crowd_text};
use crate::cli::Crowd;
use crate::schedule::Load;
use crate::stage::Bench;

/// Messages at a rate. The floor makes as many deliveries a second, each message to all sockets, `group` in one send.
pub fn fanout(bench: &Bench, crowd: &Crowd, rate: f64, group: u64) -> Result<Outcome> {
    if rate <= 0.0 || group == 0 {
        bail!("{rate} messages a second in groups of {group} never leave");
    }
    let mut duel = Duel::connect(bench, crowd)?;
    let title = format!("fanout, {}, {rate}/s in groups of {group}", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "rate": rate, "group": group});
    let mut outcome = Outcome::new(title, parameters, &duel.stage.server.command);
    let load = |duration_ns| Load::Open { rate, burst: group, duration_ns };
    duel.warm_up(bench, load(bench.common.warm_up_ns()))?;
    let duration_ns = bench.common.duration_ns();
    let members_share = f64::from(crowd.rooms_per_client) / f64::from(crowd.rooms);
    let floor = Load::Open { rate: rate * members_share, burst: group, duration_ns };
    duel.alternate(bench, load(duration_ns), floor, &mut outcome)?;
    outcome.add_load_figures();
    Ok(outcome)
}
