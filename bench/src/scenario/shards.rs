//! The same load on one shard and on more.

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{CPU_PER_DELIVERY, DELIVERIES, Outcome, crowd_json, crowd_text, cut_short, progress, seating};
use crate::cli::{Common, Crowd};
use crate::figure::Figure;
use crate::schedule::Load;
use crate::stage::Bench;
use crate::sys;

/// The same closed loop on each of these numbers of shards. More shards take the generator's cores one after the other; where
/// none is left to it they share the last one, and the figure says more about CPU per delivery than about deliveries. More
/// shards than cores are left out.
pub fn shards(bench: &Bench, crowd: &Crowd, window: u64, shards_list: &[usize]) -> Result<Outcome> {
    if shards_list.is_empty() || shards_list.contains(&0) || window == 0 {
        bail!("a number of shards and a window of at least one are needed");
    }
    let title = format!("shards, {}, {window} under way", crowd_text(crowd));
    let parameters = json!({"crowd": crowd_json(crowd), "window": window, "shards": shards_list});
    let mut outcome = Outcome::new(title, parameters, "");
    let cores = Cores::of(&bench.common);
    for shards in shards_list {
        let Some((server_cores, generator_cores)) = cores.split(*shards) else {
            outcome.notes.push(format!("{shards} shards are left out: there are {} cores", cores.0.len()));
            continue;
        };
        if server_cores.iter().any(|core| generator_cores.contains(core)) {
            outcome.notes.push(format!(
                "{shards} shards: one shares its core with the generator, so that deliveries are no measure of them"
            ));
        }
        sys::pin_to(&generator_cores).with_context(|| format!("pinning to {generator_cores:?}"))?;
        let bench = bench.with(Common { server_cores, generator_cores, ..bench.common.clone() });
        let measured = measure(&bench, crowd, window, *shards, &mut outcome);
        if cut_short(measured, &mut outcome)?.is_none() || sys::interrupted() {
            break;
        }
    }
    sys::pin_to(&bench.common.generator_cores).context("pinning back")?;
    Ok(outcome)
}

fn measure(bench: &Bench, crowd: &Crowd, window: u64, shards: usize, outcome: &mut Outcome) -> Result<()> {
    let common = &bench.common;
    let mut stage = bench.stage(shards, &common.server_cores)?;
    outcome.server.clone_from(&stage.server.command);
    let mut side = bench.server_side(&stage, seating(crowd)?, crowd.clients, crowd.bytes)?;
    side.measure(Load::Closed { window, duration_ns: common.warm_up_ns() })?;
    let (mut cpu, mut rate) = (Vec::new(), Vec::new());
    for run in 1..=common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted at {shards} shards"));
            break;
        }
        progress(&format!("{}, shards: {shards}", outcome.title), run, common.runs);
        let mut phase = side.measure(Load::Closed { window, duration_ns: common.duration_ns() })?;
        stage.server.check_alive()?;
        phase.load += &format!(", shards: {shards}");
        cpu.push(phase.cpu_us_per_delivery);
        rate.push(phase.deliveries_per_second);
        outcome.phases.push(phase);
    }
    outcome.figures.push(Figure::new(format!("{CPU_PER_DELIVERY}, shards: {shards}"), "us", cpu));
    outcome.figures.push(Figure::new(format!("{DELIVERIES}, shards: {shards}"), "/s", rate));
    Ok(())
}

/// All cores of a run: the server's first, then the generator's.
struct Cores(Vec<usize>);

impl Cores {
    fn of(common: &Common) -> Self {
        let mut cores = common.server_cores.clone();
        cores.extend(common.generator_cores.iter().filter(|core| !common.server_cores.contains(core)));
        Self(cores)
    }

    /// Those of so many shards, and those of the generator beside them; `None` for more shards than cores.
    fn split(&self, shards: usize) -> Option<(Vec<usize>, Vec<usize>)> {
        let (server, rest) = self.0.split_at_checked(shards)?;
        let generator = if rest.is_empty() { &server[shards - 1..] } else { rest };
        Some((server.to_vec(), generator.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_take_cores_from_the_generator_until_it_has_none_of_its_own() {
        let cores = Cores(vec![2, 0, 1, 3]);
        assert_eq!(cores.split(1), Some((vec![2], vec![0, 1, 3])));
        assert_eq!(cores.split(3), Some((vec![2, 0, 1], vec![3])));
        assert_eq!(cores.split(4), Some((vec![2, 0, 1, 3], vec![3])));
        assert_eq!(cores.split(5), None);
    }
}
