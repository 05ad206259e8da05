//! Memory of connections that do nothing.

use anyhow::{Context, Result};
use serde_json::json;

use super::{BYTES_PER_CONNECTION, Outcome, progress, seating, turns};
use crate::cli::Crowd;
use crate::measure::Memory;
use crate::peer::Contender;
use crate::sheet::Sheet;
use crate::stage::{Bench, settled_memory};
use crate::sys;

/// Memory per connection that does nothing: what the server has more than before its first connection.
pub fn idle(bench: &Bench, clients: usize, rooms: u32) -> Result<Outcome> {
    let crowd = Crowd { clients, rooms, rooms_per_client: 1, bytes: 0 };
    let title = format!("idle, {clients} connections in {rooms} rooms");
    let mut outcome = Outcome::new(title, json!({"clients": clients, "rooms": rooms}), "");
    let mut sheet = Sheet::default();
    for (name, unit) in [(BYTES_PER_CONNECTION, "B"), (RESIDENT, "B"), (PROCESS, "MiB"), (KERNEL, "B")] {
        sheet.declare(name, unit);
    }
    let contenders = bench.contenders();
    contenders.iter().for_each(|contender| outcome.meet(*contender));
    let runs = bench.common.runs;
    'runs: for run in 1..=runs {
        progress(&outcome.title, run, runs);
        for contender in turns(contenders.len(), run).map(|at| contenders[at]) {
            if sys::interrupted() {
                outcome.note_interrupt(run, runs);
                break 'runs;
            }
            if !outcome.is_out(contender.name())
                && let Err(error) = fill(bench, contender, &crowd, &mut sheet, &mut outcome)
            {
                outcome.fail(contender.name(), error)?;
            }
        }
    }
    outcome.add_figures(&sheet);
    Ok(outcome)
}

const RESIDENT: &str = "resident memory per connection";
const PROCESS: &str = "resident memory of the server";
const KERNEL: &str = "kernel memory per connection, both ends";

/// One fresh server, from empty to full.
fn fill(
    bench: &Bench,
    contender: Contender,
    crowd: &Crowd,
    sheet: &mut Sheet,
    outcome: &mut Outcome,
) -> Result<()> {
    let name = contender.name();
    let mut stage = bench.stage_of(contender)?;
    outcome.started(name, &stage.server.command);
    let (mut receivers, meter) = bench.idle_receivers(&stage, seating(crowd)?, crowd.clients)?;
    let before = settled_memory(&meter)?;
    let reading = meter.read()?;
    receivers.connect().context("connecting to the server")?;
    let after = settled_memory(&meter)?;
    // A server that sheds idle connections would look lean.
    let (counts, _) = receivers.end()?;
    if !counts.closes.is_empty() {
        outcome.add_flaw(name, format!("idle connections were closed: {:?}", counts.closes));
    }
    stage.server.check_alive()?;
    let used = meter.between(&reading, &meter.read()?);
    let grown = |of: fn(&Memory) -> u64| (of(&after) as f64 - of(&before) as f64) / crowd.clients as f64;
    sheet.note(BYTES_PER_CONNECTION, "B", name, grown(|memory| memory.anonymous_bytes));
    sheet.note(RESIDENT, "B", name, grown(|memory| memory.resident_bytes));
    sheet.note(PROCESS, "MiB", name, after.resident_bytes as f64 / f64::from(1 << 20));
    sheet.note(KERNEL, "B", name, grown(|memory| memory.slab_bytes));
    outcome
        .details
        .push(json!({"side": name, "before": before, "after": after, "closes": counts.closes, "used": used}));
    Ok(())
}
