//! The closed loop: as many messages as the server takes while so many are under way.

use anyhow::{Result, bail};
use serde_json::json;

use super::contest::{Contest, FLOOR_GATHER, Loads, floor_gathered, note_gather};
use super::{DELIVERIES, Outcome, WORST_RISE, crowd_json, crowd_text, progress, window_figure};
use crate::cli::Crowd;
use crate::figure::median;
use crate::peer::{FLOOR, OURS};
use crate::schedule::Load;
use crate::sheet::Sheet;
use crate::stage::Bench;

/// A closed loop at each window. The floor gathers ten a send.
pub fn saturate(bench: &Bench, crowd: &Crowd, windows: &[u64]) -> Result<Outcome> {
    if windows.is_empty() || windows.contains(&0) {
        bail!("a window of at least one message is needed");
    }
    let title = format!("saturate, {}", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "windows": windows, "floor_gather": FLOOR_GATHER});
    let mut outcome = Outcome::new(title, parameters, "");
    let mut contest = Contest::connect(bench, crowd, 1, &mut outcome)?;
    note_gather(bench, &mut outcome);
    let closed = |window, duration_ns| Load::Closed { window, duration_ns };
    contest.warm_up(bench, closed(windows[windows.len() / 2], bench.common.warm_up_ns()), &mut outcome)?;
    let runs = bench.common.runs;
    'runs: for run in 1..=runs {
        progress(&outcome.title, run, runs);
        for (place, window) in windows.iter().enumerate() {
            let server = closed(*window, bench.common.duration_ns());
            // The floor knows no window: once a run is as often as the others are measured at each.
            let floor = (place == 0).then(|| floor_gathered(bench));
            if !contest.round(run + place, Loads { server, floor }, &mut outcome)? {
                outcome.note_interrupt(run, runs);
                break 'runs;
            }
        }
    }
    let loads: Vec<_> = windows.iter().map(|window| closed(*window, bench.common.duration_ns())).collect();
    add_window_figures(&mut outcome, windows, &loads);
    Ok(outcome)
}

/// Each window's figures, then how much the worst of them costs beside a smaller one.
fn add_window_figures(outcome: &mut Outcome, windows: &[u64], loads: &[Load]) {
    let mut sheet = Sheet::default();
    let sides: Vec<&str> =
        std::iter::once(OURS).chain(outcome.peers.iter().map(|peer| peer.name.as_str())).collect();
    let mut medians = vec![Vec::new(); sides.len()];
    for (window, load) in windows.iter().zip(loads) {
        let (cost, rate, load) =
            (window_figure(*window), format!("{DELIVERIES}, {window} under way"), load.to_string());
        sheet.declare(&cost, "us");
        sheet.declare(&rate, "/s");
        for phase in outcome.phases.iter().filter(|phase| phase.side == FLOOR || phase.load == load) {
            sheet.note(&cost, "us", &phase.side, phase.cpu_us_per_delivery);
            sheet.note(&rate, "/s", &phase.side, phase.deliveries_per_second);
        }
        for (side, medians) in sides.iter().zip(&mut medians) {
            let of_side = outcome.phases.iter().filter(|phase| phase.side == **side && phase.load == load);
            medians.extend(median(&of_side.map(|phase| phase.cpu_us_per_delivery).collect::<Vec<_>>()));
        }
    }
    sheet.declare(WORST_RISE, "x");
    for (side, medians) in sides.iter().zip(&medians) {
        if let Some(rise) = worst_rise(medians) {
            sheet.note(WORST_RISE, "x", side, rise);
        }
    }
    outcome.add_figures(&sheet);
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
