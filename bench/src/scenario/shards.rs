//! The same load on one shard and on two.

use anyhow::Result;
use serde_json::json;

use super::{CPU_PER_DELIVERY, DELIVERIES, Outcome, crowd_json, crowd_text, cut_short, progress, seating};
use crate::cli::Crowd;
use crate::figure::Figure;
use crate::schedule::Load;
use crate::stage::Bench;
use crate::sys;

/// The same closed loop on one shard and on two. The second shard's core is the generator's first: on a host with two
/// cores they share it, and the figure says more about CPU per delivery than about deliveries.
pub fn second_shard(bench: &Bench, crowd: &Crowd, window: u64) -> Result<Outcome> {
    let seating = seating(crowd)?;
    let title = format!("second shard, {}, {window} under way", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "window": window});
    let mut outcome = Outcome::new(title, parameters, "");
    let one_core: Vec<_> = bench.common.server_cores.iter().copied().take(1).collect();
    let mut two_cores = one_core.clone();
    two_cores.extend(bench.common.generator_cores.iter().find(|core| !one_core.contains(core)));
    for (shards, cores) in [(1, one_core), (2, two_cores)] {
        let Some(mut stage) = cut_short(bench.stage(shards, &cores), &mut outcome)? else { break };
        outcome.server.clone_from(&stage.server.command);
        let side = bench.server_side(&stage, seating, crowd.clients, crowd.bytes);
        let Some(mut side) = cut_short(side, &mut outcome)? else { break };
        side.measure(Load::Closed { window, duration_ns: bench.common.warm_up_ns() })?;
        let (mut cpu, mut rate) = (Vec::new(), Vec::new());
        for run in 1..=bench.common.runs {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted at {shards} shards"));
                break;
            }
            progress(&format!("{}, shards: {shards}", outcome.title), run, bench.common.runs);
            let phase = side.measure(Load::Closed { window, duration_ns: bench.common.duration_ns() })?;
            stage.server.check_alive()?;
            cpu.push(phase.cpu_us_per_delivery);
            rate.push(phase.deliveries_per_second);
            outcome.phases.push(phase);
        }
        outcome.figures.push(Figure::new(format!("{CPU_PER_DELIVERY}, shards: {shards}"), "us", cpu));
        outcome.figures.push(Figure::new(format!("{DELIVERIES}, shards: {shards}"), "/s", rate));
    }
    Ok(outcome)
}
