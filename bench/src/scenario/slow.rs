//! What the others feel when some clients stop reading.

use anyhow::{Result, bail};
use serde_json::json;

use super::{Outcome, cut_short, progress};
use crate::figure::Figure;
use crate::schedule::Load;
use crate::stage::Bench;
use crate::sys;
use crate::tally::Seating;

/// A window with all clients reading, then one with some that don't, on one server.
pub fn slow(bench: &Bench, clients: usize, stalled_every: usize, rate: f64, bytes: usize) -> Result<Outcome> {
    if stalled_every < 2 {
        bail!("of every {stalled_every} clients one stops reading: nobody is left");
    }
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let title = format!("slow, 1 of {stalled_every} of {clients} clients stops reading, {bytes} B, {rate}/s");
    let parameters =
        json!({"clients": clients, "stalled_every": stalled_every, "rate": rate, "bytes": bytes});
    let mut outcome = Outcome::new(title, parameters, "");
    let load = |duration_ns| Load::Open { rate, burst: 1, duration_ns };
    let (mut p99_without, mut p99_with, mut grown, mut kernel) = (vec![], vec![], vec![], vec![]);
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let Some(mut stage) = cut_short(bench.default_stage(), &mut outcome)? else { break };
        outcome.server.clone_from(&stage.server.command);
        let side = bench.server_side(&stage, seating, clients, bytes);
        let Some(mut side) = cut_short(side, &mut outcome)? else { break };
        side.measure(load(bench.common.warm_up_ns()))?;
        let without = side.measure(load(bench.common.duration_ns()))?;
        let before = side.settled_memory()?;
        side.stall(stalled_every)?;
        let with = side.measure(load(bench.common.duration_ns()))?;
        let after = side.meter.memory()?;
        let ends = side.resume()?;
        stage.server.check_alive()?;
        p99_without.push(without.latency.p99_us / 1e3);
        p99_with.push(with.latency.p99_us / 1e3);
        let mebibytes = |of: u64, since: u64| (of as f64 - since as f64) / f64::from(1 << 20);
        grown.push(mebibytes(after.anonymous_bytes, before.anonymous_bytes));
        kernel.push(mebibytes(after.tcp_pages * 4096, before.tcp_pages * 4096));
        outcome.notes.push(format!(
            "run {run}: the stalled, once they read again: closed {:?}, missed {}, received {}",
            ends.closes, ends.gaps, ends.delivered
        ));
        outcome.details.push(json!({"before": before, "after": after, "resumed": ends}));
        outcome.phases.extend([without, with]);
    }
    outcome.figures.push(Figure::new("p99 of the healthy, all reading", "ms", p99_without));
    outcome.figures.push(Figure::new("p99 of the healthy, some stalled", "ms", p99_with));
    outcome.figures.push(Figure::new("user memory grown by the stalled", "MiB", grown));
    outcome.figures.push(Figure::new("kernel memory grown by the stalled", "MiB", kernel));
    Ok(outcome)
}
