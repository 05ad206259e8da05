//! What the others feel when some clients stop reading.

use anyhow::{Result, bail};
use serde_json::json;

use super::{GROWN_BY_STALLED, Outcome, P99_ALL_READING, P99_RISE, P99_SOME_STALLED, progress, turns};
use crate::peer::{Contender, OURS};
use crate::schedule::Load;
use crate::sheet::Sheet;
use crate::stage::Bench;
use crate::sys;
use crate::tally::Seating;

const KERNEL_GROWN: &str = "kernel memory grown by the stalled";

/// Who there is, what they are sent, and how many stop reading.
struct Plan {
    clients: usize,
    stalled_every: usize,
    rate: f64,
    bytes: usize,
}

/// A window with all clients reading, then one with some that don't, on one server.
pub fn slow(bench: &Bench, clients: usize, stalled_every: usize, rate: f64, bytes: usize) -> Result<Outcome> {
    if stalled_every < 2 {
        bail!("of every {stalled_every} clients one stops reading: nobody is left");
    }
    let title = format!("slow, 1 of {stalled_every} of {clients} clients stops reading, {bytes} B, {rate}/s");
    let parameters =
        json!({"clients": clients, "stalled_every": stalled_every, "rate": rate, "bytes": bytes});
    let plan = Plan { clients, stalled_every, rate, bytes };
    let mut outcome = Outcome::new(title, parameters, "");
    let mut sheet = Sheet::default();
    for (name, unit) in [(P99_ALL_READING, "ms"), (P99_SOME_STALLED, "ms"), (P99_RISE, "x")] {
        sheet.declare(name, unit);
    }
    for name in [GROWN_BY_STALLED, KERNEL_GROWN] {
        sheet.declare(name, "MiB");
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
                && let Err(error) = stall_some(bench, contender, &plan, run, &mut sheet, &mut outcome)
            {
                outcome.fail(contender.name(), error)?;
            }
        }
    }
    outcome.add_figures(&sheet);
    Ok(outcome)
}

/// Both windows on one fresh server.
fn stall_some(
    bench: &Bench,
    contender: Contender,
    plan: &Plan,
    run: usize,
    sheet: &mut Sheet,
    outcome: &mut Outcome,
) -> Result<()> {
    let name = contender.name();
    let load = |duration_ns| Load::Open { rate: plan.rate, burst: 1, duration_ns };
    let mut stage = bench.stage_of(contender)?;
    outcome.started(name, &stage.server.command);
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let mut side = bench.server_side(&stage, seating, plan.clients, plan.bytes)?;
    side.measure(load(bench.common.warm_up_ns()))?;
    let without = side.measure(load(bench.common.duration_ns()))?;
    let before = side.settled_memory()?;
    side.stall(plan.stalled_every)?;
    let with = side.measure(load(bench.common.duration_ns()))?;
    let after = side.meter.memory()?;
    let ends = side.resume()?;
    stage.server.check_alive()?;
    if sys::interrupted() {
        return Ok(());
    }
    sheet.note(P99_ALL_READING, "ms", name, without.latency.p99_us / 1e3);
    sheet.note(P99_SOME_STALLED, "ms", name, with.latency.p99_us / 1e3);
    sheet.note(P99_RISE, "x", name, with.latency.p99_us / without.latency.p99_us.max(1.0));
    let mebibytes = |of: u64, since: u64| (of as f64 - since as f64) / f64::from(1 << 20);
    sheet.note(GROWN_BY_STALLED, "MiB", name, mebibytes(after.anonymous_bytes, before.anonymous_bytes));
    sheet.note(KERNEL_GROWN, "MiB", name, mebibytes(after.tcp_pages * 4096, before.tcp_pages * 4096));
    let subject = if name == OURS { String::new() } else { format!("{name}, ") };
    outcome.notes.push(format!(
        "{subject}run {run}: the stalled, once they read again: closed {:?}, missed {}, received {}",
        ends.closes, ends.gaps, ends.delivered
    ));
    outcome.details.push(json!({"side": name, "before": before, "after": after, "resumed": ends}));
    outcome.phases.extend([without, with]);
    Ok(())
}
