//! The closed loop: as many messages as the server takes while so many are under way.

use anyhow::{Result, bail};
use serde_json::json;

use super::duel::{Duel, FLOOR_GATHER, floor_gathered};
use super::{DELIVERIES, Outcome, WORST_RISE, crowd_json, crowd_text, progress, window_figure};
use crate::cli::Crowd;
use crate::figure::{Figure, median};
use crate::schedule::Load;
use crate::stage::Bench;
use crate::sys;

/// A closed loop at each window. The floor gathers ten a send.
pub fn saturate(bench: &Bench, crowd: &Crowd, windows: &[u64]) -> Result<Outcome> {
    if windows.is_empty() || windows.contains(&0) {
        bail!("a window of at least one message is needed");
    }
    let mut duel = Duel::connect(bench, crowd)?;
    let title = format!("saturate, {}", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "windows": windows, "floor_gather": FLOOR_GATHER});
    let mut outcome = Outcome::new(title, parameters, &duel.stage.server.command);
    let closed = |window, duration_ns| Load::Closed { window, duration_ns };
    duel.warm_up(bench, closed(windows[windows.len() / 2], bench.common.warm_up_ns()))?;
    let mut by_window = vec![(Vec::new(), Vec::new()); windows.len()];
    'runs: for run in 1..=bench.common.runs {
        progress(&outcome.title, run, bench.common.runs);
        if let Some(floor) = &mut duel.floor {
            outcome.phases.push(floor.measure(floor_gathered(bench))?);
        }
        for (window, samples) in windows.iter().zip(&mut by_window) {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted in run {run} of {}", bench.common.runs));
                break 'runs;
            }
            let phase = duel.server.measure(closed(*window, bench.common.duration_ns()))?;
            let is_stuck = phase.sent.stuck;
            samples.0.push(phase.cpu_us_per_delivery);
            samples.1.push(phase.deliveries_per_second);
            outcome.phases.push(phase);
            duel.stage.server.check_alive()?;
            if is_stuck {
                outcome.notes.push(format!("gave up at {window} under way: messages were lost"));
                break 'runs;
            }
        }
    }
    let floor = outcome.samples("floor", |phase| phase.cpu_us_per_delivery);
    let floor_rate = outcome.samples("floor", |phase| phase.deliveries_per_second);
    let medians: Vec<_> = by_window.iter().filter_map(|(cpu, _)| median(cpu)).collect();
    for (window, (cpu, rate)) in windows.iter().zip(by_window) {
        outcome.figures.push(Figure::new(window_figure(*window), "us", cpu).beside(floor.clone()));
        let name = format!("{DELIVERIES}, {window} under way");
        outcome.figures.push(Figure::new(name, "/s", rate).beside(floor_rate.clone()));
    }
    outcome.figures.push(Figure::new(WORST_RISE, "x", worst_rise(&medians).into_iter().collect()));
    Ok(outcome)
}

/// The largest ratio of a cost to the cheapest one before it: more messages under way may never cost more per delivery.
fn worst_rise(costs: &[f64]) -> Option<f64> {
    let mut cheapest = *costs.first().filter(|cost| **cost > 0.0)?;
    let mut worst: f64 = 1.0;
    for cost in costs {
        worst = worst.max(cost / cheapest);
        cheapest = cheapest.min(*cost);
    }
    Some(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cliff_is_measured_from_the_cheapest_smaller_window() {
        assert_eq!(worst_rise(&[4.0, 2.0, 1.0, 1.0]), Some(1.0));
        assert_eq!(worst_rise(&[4.0, 1.0, 2.0, 0.5]), Some(2.0));
        assert_eq!(worst_rise(&[]), None);
    }
}
