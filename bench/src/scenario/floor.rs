//! The plain `send()` loop alone.

use anyhow::{Result, bail};
use serde_json::json;

use super::{CPU_PER_DELIVERY, Outcome, progress};
use crate::figure::Figure;
use crate::schedule::Load;
use crate::stage::Bench;
use crate::sys;

/// The floor alone, at each width of gathering.
pub fn floor(bench: &Bench, clients: usize, rate: f64, bytes: usize, gather: &[u64]) -> Result<Outcome> {
    if rate <= 0.0 || gather.contains(&0) {
        bail!("{rate} messages a second in groups of {gather:?} never leave");
    }
    let mut side = bench.floor_side(clients, 1, bytes)?;
    let title = format!("floor, {clients} sockets x {bytes} B, {rate}/s");
    let parameters = json!({"clients": clients, "rate": rate, "bytes": bytes, "gather": gather});
    let mut outcome = Outcome::new(title, parameters, "");
    let load = |burst, duration_ns| Load::Open { rate, burst, duration_ns };
    side.measure(load(1, bench.common.warm_up_ns()))?;
    let mut by_width = vec![Vec::new(); gather.len()];
    'runs: for run in 1..=bench.common.runs {
        progress(&outcome.title, run, bench.common.runs);
        for (width, samples) in gather.iter().zip(&mut by_width) {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted in run {run} of {}", bench.common.runs));
                break 'runs;
            }
            let phase = side.measure(load(*width, bench.common.duration_ns()))?;
            samples.push(phase.cpu_us_per_delivery);
            outcome.phases.push(phase);
        }
    }
    for (width, samples) in gather.iter().zip(by_width) {
        let name = format!("{CPU_PER_DELIVERY}, {width} gathered");
        outcome.figures.push(Figure::new(name, "us", samples));
    }
    Ok(outcome)
}
