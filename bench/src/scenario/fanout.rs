//! Messages at a rate.

use anyhow::{Result, bail};
use serde_json::json;

use super::contest::{Contest, Loads};
use super::{Outcome, crowd_json, crowd_text};
use crate::cli::Crowd;
use crate::schedule::Load;
use crate::stage::Bench;

/// Messages at a rate. The floor makes as many deliveries a second: where a connection is in one room, the same sends to the
/// sockets of each room in turn, and where it is in several, to all sockets, `group` in one send.
pub fn fanout(bench: &Bench, crowd: &Crowd, rate: f64, group: u64) -> Result<Outcome> {
    if rate <= 0.0 || group == 0 {
        bail!("{rate} messages a second in groups of {group} never leave");
    }
    let title = format!("fanout, {}, {rate}/s in groups of {group}", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "rate": rate, "group": group});
    let mut outcome = Outcome::new(title, parameters, "");
    let floor_rooms = if crowd.rooms_per_client == 1 { crowd.rooms } else { 1 };
    let mut contest = Contest::connect(bench, crowd, floor_rooms, &mut outcome)?;
    let load = |duration_ns| Load::Open { rate, burst: group, duration_ns };
    contest.warm_up(bench, load(bench.common.warm_up_ns()), &mut outcome)?;
    let duration_ns = bench.common.duration_ns();
    let members_share = f64::from(crowd.rooms_per_client) / f64::from(crowd.rooms);
    let floor_rate = if floor_rooms == crowd.rooms { rate } else { rate * members_share };
    let floor = Load::Open { rate: floor_rate, burst: group, duration_ns };
    contest.alternate(bench, Loads { server: load(duration_ns), floor: Some(floor) }, &mut outcome)?;
    outcome.add_load_figures();
    Ok(outcome)
}
