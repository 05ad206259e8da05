//! How long one connection waits for itself while a large room is being sent to.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use serde_json::json;

use super::{ECHO_BUSY_P50, Outcome, progress};
use crate::echo;
use crate::figure::Figure;
use crate::latency::Latencies;
use crate::stage::Bench;
use crate::sys;
use crate::tally::Seating;

/// Round trips of one connection by an open loop, while a room is sent to; those that began while deliveries of a
/// message were under way count apart, or a mostly idle server would look quick.
pub fn echo(bench: &Bench, clients: usize, rate: f64, bytes: usize, echo_rate: f64) -> Result<Outcome> {
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let mut stage = bench.default_stage()?;
    let mut side = bench.server_side(&stage, seating, clients, bytes)?;
    let title = format!("echo, beside 1 room x {clients} clients x {bytes} B, {rate}/s");
    let parameters = json!({"clients": clients, "rate": rate, "bytes": bytes, "echo_rate": echo_rate});
    let mut outcome = Outcome::new(title, parameters, &stage.server.command);
    side.measure_busy(rate, bench.common.warm_up_ns())?;
    let interval_ns = (1e9 / echo_rate.max(1e-3)) as u64;
    let path = bench.common.echo_path.replace("{room}", "bench-echo");
    let (mut busy_p50, mut busy_p99, mut all_p50, mut all_p99) = (vec![], vec![], vec![], vec![]);
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let stop = AtomicBool::new(false);
        let (measured, echoes) = std::thread::scope(|scope| {
            let echo = scope.spawn(|| echo::run(stage.server.address, &path, interval_ns, &stop));
            let measured = side.measure_busy(rate, bench.common.duration_ns());
            stop.store(true, Ordering::Relaxed);
            (measured, echo.join())
        });
        stage.server.check_alive()?;
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
        let busy_share = busy_ns as f64 / bench.common.duration_ns() as f64;
        if during.count > 0 {
            busy_p50.push(during.p50_us / 1e3);
            busy_p99.push(during.p99_us / 1e3);
        }
        all_p50.push(all.p50_us / 1e3);
        all_p99.push(all.p99_us / 1e3);
        if echoes.lost > 0 {
            outcome.other_flaws.push(format!("run {run}: {} echoes never came back", echoes.lost));
        }
        if !echoes.ran_first {
            outcome
                .notes
                .push("the echo thread may not preempt the receivers: its figures include them".to_owned());
        }
        outcome.details.push(json!({
            "during": during, "all": all, "lost": echoes.lost, "busy_share": busy_share, "ran_first": echoes.ran_first,
        }));
        outcome.phases.push(phase);
    }
    outcome.figures.push(Figure::new(ECHO_BUSY_P50, "ms", busy_p50));
    outcome.figures.push(Figure::new("echo p99 while the room is being sent to", "ms", busy_p99));
    outcome.figures.push(Figure::new("echo p50", "ms", all_p50));
    outcome.figures.push(Figure::new("echo p99", "ms", all_p99));
    outcome.add_load_figures();
    Ok(outcome)
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
