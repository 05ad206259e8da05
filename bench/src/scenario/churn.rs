//! Connections that come and go.

use anyhow::Result;
use serde_json::json;

use super::{CPU_PER_HANDSHAKE, Outcome, progress};
use crate::figure::Figure;
use crate::latency::Latencies;
use crate::stage::Bench;
use crate::sys;
use crate::tally::Seating;

/// Handshakes before the measured ones.
const CHURN_WARM_UP: usize = 2_000;

/// CPU per connection that comes and goes: TCP, upgrade, Close frames, end.
pub fn churn(bench: &Bench, handshakes: usize, parallel: usize) -> Result<Outcome> {
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let mut stage = bench.default_stage()?;
    let (mut receivers, meter) = bench.idle_receivers(&stage, seating, parallel)?;
    let title = format!("churn, {handshakes} handshakes, {parallel} at a time");
    let parameters = json!({"handshakes": handshakes, "parallel": parallel});
    let mut outcome = Outcome::new(title, parameters, &stage.server.command);
    receivers.churn(CHURN_WARM_UP, parallel)?;
    let (mut cpu, mut rate, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in 1..=bench.common.runs {
        if sys::interrupted() {
            outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
            break;
        }
        progress(&outcome.title, run, bench.common.runs);
        let before = meter.read()?;
        let dialed = receivers.churn(handshakes, parallel)?;
        stage.server.check_alive()?;
        let used = meter.between(&before, &meter.read()?);
        let mut latencies = Latencies::new();
        latencies.merge(&dialed.handshakes);
        let latency = latencies.percentiles();
        cpu.push(used.server_cpu_seconds * 1e6 / dialed.done.max(1) as f64);
        rate.push(dialed.done as f64 / used.seconds);
        p50.push(latency.p50_us);
        p99.push(latency.p99_us);
        if dialed.failed > 0 {
            outcome.other_flaws.push(format!("{} failed: {}", dialed.failed, dialed.errors.join("; ")));
        }
        outcome.details.push(json!({
            "done": dialed.done, "failed": dialed.failed, "errors": dialed.errors, "used": used, "latency": latency,
        }));
    }
    outcome.figures.push(Figure::new(CPU_PER_HANDSHAKE, "us", cpu));
    outcome.figures.push(Figure::new("handshakes and closes", "/s", rate));
    outcome.figures.push(Figure::new("handshake p50", "us", p50));
    outcome.figures.push(Figure::new("handshake p99", "us", p99));
    Ok(outcome)
}
