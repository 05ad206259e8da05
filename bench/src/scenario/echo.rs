//! How long one connection waits for itself while a large room is being sent to.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{ECHO_BUSY_P50, ECHO_BUSY_P99, Outcome, progress, turns};
use crate::echo;
use crate::latency::Latencies;
use crate::peer::Contender;
use crate::sheet::Sheet;
use crate::stage::{Bench, Side, Stage};
use crate::sys;
use crate::tally::Seating;

/// Round trips of one connection by an open loop, while a room is sent to; those that began while deliveries of a
/// message were under way count apart, or a mostly idle server would look quick.
pub fn echo(bench: &Bench, clients: usize, rate: f64, bytes: usize, echo_rate: f64) -> Result<Outcome> {
    let title = format!("echo, beside 1 room x {clients} clients x {bytes} B, {rate}/s");
    let parameters = json!({"clients": clients, "rate": rate, "bytes": bytes, "echo_rate": echo_rate});
    let mut outcome = Outcome::new(title, parameters, "");
    let mut beds = Vec::new();
    for contender in bench.contenders() {
        if let Contender::Peer(peer) = contender
            && peer.access().echo_path.is_none()
        {
            outcome.notes.push(format!("{} is left out: it has no path that echoes", peer.name));
            continue;
        }
        outcome.meet(contender);
        match Bed::make(bench, contender, clients, bytes, &mut outcome) {
            Ok(bed) => beds.push(bed),
            Err(error) => outcome.fail(contender.name(), error)?,
        }
    }
    for bed in &mut beds {
        if let Err(error) = bed.side.measure_busy(rate, bench.common.warm_up_ns()) {
            outcome.fail(&bed.side.name, error)?;
        }
    }
    let mut sheet = Sheet::default();
    for name in [ECHO_BUSY_P50, ECHO_BUSY_P99, ALL_P50, ALL_P99] {
        sheet.declare(name, "ms");
    }
    let interval_ns = (1e9 / echo_rate.max(1e-3)) as u64;
    let (runs, duration_ns) = (bench.common.runs, bench.common.duration_ns());
    'runs: for run in 1..=runs {
        progress(&outcome.title, run, runs);
        for at in turns(beds.len(), run) {
            if sys::interrupted() {
                outcome.note_interrupt(run, runs);
                break 'runs;
            }
            let bed = &mut beds[at];
            if !outcome.is_out(&bed.side.name)
                && let Err(error) = bed.listen(rate, duration_ns, interval_ns, &mut sheet, &mut outcome)
            {
                outcome.fail(&bed.side.name, error)?;
            }
        }
    }
    outcome.add_figures(&sheet);
    outcome.add_load_figures();
    Ok(outcome)
}

const ALL_P50: &str = "echo p50";
const ALL_P99: &str = "echo p99";

/// A server with a large room.
struct Bed {
    // Receivers hang up before the server goes.
    side: Side,
    stage: Stage,
    path: String,
}

impl Bed {
    fn make(
        bench: &Bench,
        contender: Contender,
        clients: usize,
        bytes: usize,
        outcome: &mut Outcome,
    ) -> Result<Self> {
        let stage = bench.stage_of(contender)?;
        outcome.started(contender.name(), &stage.server.command);
        let seating = Seating { rooms: 1, rooms_per_connection: 1 };
        let side = bench.server_side(&stage, seating, clients, bytes)?;
        let path = stage.access.echo_path.clone().context("no path echoes")?;
        Ok(Self { side, stage, path: path.replace("{room}", "bench-echo") })
    }

    /// One window: messages to the room, and round trips beside them.
    fn listen(
        &mut self,
        rate: f64,
        duration_ns: u64,
        interval_ns: u64,
        sheet: &mut Sheet,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let stop = AtomicBool::new(false);
        let (side, address, path) = (&mut self.side, self.stage.server.address, &self.path);
        let (measured, echoes) = std::thread::scope(|scope| {
            let echo = scope.spawn(|| echo::run(address, path, interval_ns, &stop));
            let measured = side.measure_busy(rate, duration_ns);
            stop.store(true, Ordering::Relaxed);
            (measured, echo.join())
        });
        self.stage.server.check_alive()?;
        let (phase, busy) = measured?;
        let Ok(echoes) = echoes else { bail!("the echo thread panicked") };
        let echoes = echoes?;
        let (mut during, mut all) = (Latencies::new(), Latencies::new());
        for trip in &echoes.trips {
            all.record(trip.took_ns);
            if is_within(&busy, trip.intended_ns) {
                during.record(trip.took_ns);
            }
        }
        let (during, all) = (during.percentiles(), all.percentiles());
        let busy_ns: u64 = busy.iter().map(|(since, until)| until - since).sum();
        let busy_share = busy_ns as f64 / duration_ns as f64;
        let name = &self.side.name;
        if during.count > 0 {
            sheet.note(ECHO_BUSY_P50, "ms", name, during.p50_us / 1e3);
            sheet.note(ECHO_BUSY_P99, "ms", name, during.p99_us / 1e3);
        }
        sheet.note(ALL_P50, "ms", name, all.p50_us / 1e3);
        sheet.note(ALL_P99, "ms", name, all.p99_us / 1e3);
        if echoes.lost > 0 {
            outcome.add_flaw(name, format!("{} echoes never came back", echoes.lost));
        }
        if !echoes.ran_first {
            let note = "the echo thread may not preempt the receivers: its figures include them";
            outcome.notes.push(note.to_owned());
        }
        outcome.details.push(json!({
            "side": name, "during": during, "all": all, "lost": echoes.lost, "busy_share": busy_share,
            "ran_first": echoes.ran_first,
        }));
        outcome.phases.push(phase);
        Ok(())
    }
}

/// Whether `at_ns` lies in one of the intervals, which are in order and don't overlap.
fn is_within(intervals: &[(u64, u64)], at_ns: u64) -> bool {
    let after = intervals.partition_point(|(since, _)| *since <= at_ns);
    after > 0 && at_ns < intervals[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_inside_an_interval_or_not() {
        let intervals = [(10, 20), (30, 40)];
        let inside: Vec<u64> = (0..50).step_by(5).filter(|at| is_within(&intervals, *at)).collect();
        assert_eq!(inside, [10, 15, 30, 35]);
    }
}
