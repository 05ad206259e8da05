//! Memory of connections that do nothing.

use anyhow::{Context, Result};
use serde_json::json;

use super::{BYTES_PER_CONNECTION, Outcome, cut_short, progress, seating};
use crate::cli::Crowd;
use crate::figure::Figure;
use crate::stage::{Bench, settled_memory};
use crate::sys;

/// Memory per connection that does nothing: what the server has more than before its first connection.
pub fn idle(bench: &Bench, clients: usize, rooms: u32) -> Result<Outcome> {
    let crowd = Crowd { clients, rooms, rooms_per_client: 1, bytes: 0 };
    let seating = seating(&crowd)?;
    let title = format!("idle, {clients} connections in {rooms} rooms");
    let mut outcome = Outcome::new(title, json!({"clients": clients, "rooms": rooms}), "");
    let (mut per_connection, mut resident) = (Vec::new(), Vec::new());
    let (mut process, mut kernel) = (Vec::new(), Vec::new());
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let Some(mut stage) = cut_short(bench.default_stage(), &mut outcome)? else { break };
        let (mut receivers, meter) = bench.idle_receivers(&stage, seating, clients)?;
        outcome.server.clone_from(&stage.server.command);
        let before = settled_memory(&meter)?;
        let reading = meter.read()?;
        let connected = receivers.connect().context("connecting to the server");
        if cut_short(connected, &mut outcome)?.is_none() {
            break;
        }
        let after = settled_memory(&meter)?;
        // A server that sheds idle connections would look lean.
        let (counts, _) = receivers.end()?;
        if !counts.closes.is_empty() {
            outcome.other_flaws.push(format!("run {run}: idle connections were closed: {:?}", counts.closes));
        }
        let grown = |of: fn(&crate::measure::Memory) -> u64| {
            (of(&after) as f64 - of(&before) as f64) / clients as f64
        };
        per_connection.push(grown(|memory| memory.anonymous_bytes));
        resident.push(grown(|memory| memory.resident_bytes));
        process.push(after.resident_bytes as f64 / f64::from(1 << 20));
        kernel.push(grown(|memory| memory.slab_bytes));
        stage.server.check_alive()?;
        let used = meter.between(&reading, &meter.read()?);
        outcome
            .details
            .push(json!({"before": before, "after": after, "closes": counts.closes, "used": used}));
    }
    outcome.figures.push(Figure::new(BYTES_PER_CONNECTION, "B", per_connection));
    outcome.figures.push(Figure::new("resident memory per connection", "B", resident));
    outcome.figures.push(Figure::new("resident memory of the server", "MiB", process));
    outcome.figures.push(Figure::new("kernel memory per connection, both ends", "B", kernel));
    Ok(outcome)
}
