//! What the others feel when some clients stop reading, and what the server keeps for those.

use anyhow::{Result, bail};
use serde_json::json;

use super::{
    GROWN_BY_STALLED, Outcome, P99_ALL_READING, P99_RISE, P99_SOME_STALLED, STALLED_CLOSED,
    STALLED_DELIVERED, progress, turns,
};
use crate::peer::{Contender, OURS};
use crate::schedule::Load;
use crate::sheet::Sheet;
use crate::stage::{Bench, ROOMS, Stage};
use crate::sys;
use crate::tally::{Counts, Seating};

const KERNEL_GROWN: &str = "kernel memory grown by the stalled, at its peak";

/// Who there is, what they are sent, and how many stop reading.
#[derive(Debug, Clone, Copy)]
pub struct SlowPlan {
    /// Of one room.
    pub clients: usize,
    /// Every so many-th stops reading.
    pub stalled_every: usize,
    /// Messages a second.
    pub rate: f64,
    /// Payload bytes.
    pub bytes: usize,
    /// Ours is measured with its default alone.
    pub default_policy: bool,
}

/// What ours does with a reader that is too slow. A server that closes it is spared all that another keeps for it, so
/// neither proves anything about the other: ours is measured with each.
#[derive(Debug, Clone, Copy)]
struct Policy {
    /// Behind the names of its figures.
    suffix: &'static str,
    /// Behind the generator's own configuration.
    room_class: &'static str,
    /// What a reader misses was left out on purpose.
    drops: bool,
}

/// The default closes at 256 publications behind.
const DISCONNECT: Policy = Policy { suffix: "", room_class: "", drops: false };
const OTHER_POLICIES: [Policy; 2] = [
    Policy {
        suffix: ", drop-oldest",
        room_class: "[[room]]\nname = \"*\"\nslow = { policy = \"drop-oldest\" }\n",
        drops: true,
    },
    // As much as peers/README.md has uWebSockets keep: beyond what this scenario owes a client.
    Policy {
        suffix: ", keeping 64 MiB",
        room_class: "[[room]]\nname = \"*\"\nslow = { policy = \"disconnect\", frames = 1000000, bytes = \"64MiB\", \
                     age = \"1h\" }\n",
        drops: false,
    },
];

/// A window with all clients reading, then one with some that don't, on one server.
pub fn slow(bench: &Bench, plan: &SlowPlan) -> Result<Outcome> {
    let SlowPlan { clients, stalled_every, rate, bytes, default_policy } = *plan;
    if stalled_every < 2 {
        bail!("of every {stalled_every} clients one stops reading: nobody is left");
    }
    let title = format!("slow, 1 of {stalled_every} of {clients} clients stops reading, {bytes} B, {rate}/s");
    let parameters =
        json!({"clients": clients, "stalled_every": stalled_every, "rate": rate, "bytes": bytes});
    let mut outcome = Outcome::new(title, parameters, "");
    let contenders = bench.contenders();
    contenders.iter().for_each(|contender| outcome.meet(*contender));
    let mut sides: Vec<_> = contenders.iter().map(|contender| (*contender, DISCONNECT)).collect();
    // Only a server that takes the generator's configuration can be told another policy.
    if !default_policy
        && bench.common.attached()?.is_none()
        && bench.common.server_command()?.contains("{config}")
    {
        sides.splice(1..1, OTHER_POLICIES.map(|policy| (Contender::Ours, policy)));
    }
    let mut sheet = Sheet::default();
    for (_, policy) in sides.iter().filter(|(contender, _)| contender.name() == OURS) {
        declare(&mut sheet, *policy);
    }
    let runs = bench.common.runs;
    'runs: for run in 1..=runs {
        progress(&outcome.title, run, runs);
        for (contender, policy) in turns(sides.len(), run).map(|at| sides[at]) {
            if sys::interrupted() {
                outcome.note_interrupt(run, runs);
                break 'runs;
            }
            if !outcome.is_out(contender.name())
                && let Err(error) = stall_some(bench, contender, policy, plan, run, &mut sheet, &mut outcome)
            {
                outcome.fail(contender.name(), error)?;
            }
        }
    }
    outcome.add_figures(&sheet);
    Ok(outcome)
}

fn declare(sheet: &mut Sheet, policy: Policy) {
    let units = [
        (P99_ALL_READING, "ms"),
        (P99_SOME_STALLED, "ms"),
        (P99_RISE, "x"),
        (GROWN_BY_STALLED, "MiB"),
        (KERNEL_GROWN, "MiB"),
        (STALLED_CLOSED, ""),
        (STALLED_DELIVERED, "%"),
    ];
    for (name, unit) in units {
        sheet.declare(format!("{name}{}", policy.suffix), unit);
    }
}

/// Both windows on one fresh server.
fn stall_some(
    bench: &Bench,
    contender: Contender,
    policy: Policy,
    plan: &SlowPlan,
    run: usize,
    sheet: &mut Sheet,
    outcome: &mut Outcome,
) -> Result<()> {
    let name = contender.name();
    let load = |duration_ns| Load::Open { rate: plan.rate, burst: 1, duration_ns };
    let mut stage = stage(bench, contender, policy)?;
    if policy.suffix.is_empty() {
        outcome.started(name, &stage.server.command);
    }
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let mut side = bench.server_side(&stage, seating, plan.clients, plan.bytes)?;
    side.measure(load(bench.common.warm_up_ns()))?;
    // Looked at in both windows, so that looking costs both the same.
    let (mut without, _) = side.measure_with_peak(load(bench.common.duration_ns()))?;
    let before = side.settled_memory()?;
    let stalled = side.stall(plan.stalled_every)?;
    let (mut with, peak) = side.measure_with_peak(load(bench.common.duration_ns()))?;
    let after = side.meter.memory()?;
    let ends = side.resume()?;
    stage.server.check_alive()?;

    let Policy { suffix, drops, .. } = policy;
    without.load += &format!(", all reading{suffix}");
    with.load += &format!(", 1 of {} stalled{suffix}", plan.stalled_every);
    for damage in damages(&ends, drops) {
        outcome.add_flaw(name, format!("run {run}{suffix}: {damage}"));
    }
    let owed = with.sent.messages * stalled as u64;
    let (closed, delivered) = (ends.closes.values().sum::<u64>(), ends.delivered);
    if !sys::interrupted() {
        let mut note =
            |figure: &str, unit, sample| sheet.note(format!("{figure}{suffix}"), unit, name, sample);
        note(P99_ALL_READING, "ms", without.latency.p99_us / 1e3);
        note(P99_SOME_STALLED, "ms", with.latency.p99_us / 1e3);
        note(P99_RISE, "x", with.latency.p99_us / without.latency.p99_us.max(1.0));
        let mebibytes = |of: u64, since: u64| (of as f64 - since as f64) / f64::from(1 << 20);
        note(GROWN_BY_STALLED, "MiB", mebibytes(peak.anonymous_bytes, before.anonymous_bytes));
        note(KERNEL_GROWN, "MiB", mebibytes(peak.tcp_pages * 4096, before.tcp_pages * 4096));
        note(STALLED_CLOSED, "", closed as f64);
        note(STALLED_DELIVERED, "%", delivered as f64 / owed.max(1) as f64 * 100.0);
    }
    let subject = if name == OURS { String::new() } else { format!("{name}, ") };
    outcome.notes.push(format!(
        "{subject}run {run}{suffix}: the {stalled} stalled, once they read again: closed {:?}, missed {}, received \
         {delivered} of {owed}",
        ends.closes, ends.gaps,
    ));
    outcome.details.push(json!({
        "side": name, "policy": suffix.trim_start_matches(", "), "before": before, "peak": peak, "after": after,
        "stalled": stalled, "owed_to_the_stalled": owed, "resumed": ends,
    }));
    outcome.phases.extend([without, with].into_iter().filter(|phase| phase.sent.messages > 0));
    Ok(())
}

fn stage(bench: &Bench, contender: Contender, policy: Policy) -> Result<Stage> {
    if policy.room_class.is_empty() {
        return bench.stage_of(contender);
    }
    let common = &bench.common;
    bench.stage_with(common.shards, &common.server_cores, &format!("{ROOMS}\n{}", policy.room_class))
}

/// What is wrong with what the stalled received once they read again. Who was closed has missed what followed; who was not
/// has had everything, but where the server `drops` on purpose.
fn damages(ends: &Counts, drops: bool) -> Vec<String> {
    let mut damages = Vec::new();
    if !ends.is_undamaged() {
        let Counts { duplicates, out_of_order, wrong_room, unreadable, closes, .. } = ends;
        damages.push(format!(
            "the stalled received damage: duplicates {duplicates}, out of order {out_of_order}, wrong room {wrong_room}, \
             unreadable {unreadable}, closed {closes:?}"
        ));
    }
    if ends.gaps > 0 && !drops {
        damages.push(format!("the stalled missed {} without a word", ends.gaps));
    }
    damages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stalled_reader_gets_in_the_end_is_whole_whatever_it_was_not_sent() {
        let closed = |code: &str| [(code.to_owned(), 20)].into();
        let told = Counts { delivered: 9, closes: closed("1013"), ..Counts::default() };
        assert!(damages(&told, false).is_empty());
        let torn = Counts { closes: closed("broken: unknown opcode 0x7"), ..Counts::default() };
        let repeated = Counts { duplicates: 1, ..Counts::default() };
        let skipped = Counts { gaps: 3, ..Counts::default() };
        for (damaged, of_dropping) in [(torn, 1), (repeated, 1), (skipped, 0)] {
            assert_eq!((damages(&damaged, false).len(), damages(&damaged, true).len()), (1, of_dropping));
        }
    }

    #[test]
    fn the_experiment_about_slow_readers_asks_for_a_figure_that_there_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tuning/experiments/notsent-lowat.toml");
        let file: toml::Table = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut sheet = Sheet::default();
        declare(&mut sheet, DISCONNECT);
        let metric = file["metric"].as_str().unwrap();
        assert!(sheet.figures(&[]).iter().any(|figure| figure.name == metric), "{metric}");
    }

    #[test]
    fn the_figures_of_the_other_policies_are_called_as_the_table_asks_for_them() {
        let mut sheet = Sheet::default();
        OTHER_POLICIES.iter().for_each(|policy| declare(&mut sheet, *policy));
        let figures = sheet.figures(&[]);
        for (_, _, shown) in crate::versus::ROWS.iter().filter(|(row, ..)| *row == "slow") {
            let of_others =
                shown.iter().filter(|(name, ..)| name.contains("drop-oldest") || name.contains("keeping"));
            assert!(of_others.clone().count() >= 2);
            for (name, ..) in of_others {
                assert!(figures.iter().any(|figure| figure.name == *name), "{name}");
            }
        }
    }
}
