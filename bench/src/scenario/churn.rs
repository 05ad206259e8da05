//! Connections that come and go.

use anyhow::Result;
use serde_json::json;

use super::{CPU_PER_HANDSHAKE, Outcome, progress, turns};
use crate::latency::Latencies;
use crate::measure::Meter;
use crate::peer::Contender;
use crate::receivers::Receivers;
use crate::sheet::Sheet;
use crate::stage::{Bench, Stage};
use crate::sys;
use crate::tally::Seating;

/// Handshakes before the measured ones.
const CHURN_WARM_UP: usize = 2_000;
const RATE: &str = "handshakes and closes";
const P50: &str = "handshake p50";
const P99: &str = "handshake p99";

/// A server that is come to and gone from.
struct Visited {
    name: String,
    receivers: Receivers,
    meter: Meter,
    stage: Stage,
}

/// CPU per connection that comes and goes: TCP, upgrade, Close frames, end.
pub fn churn(bench: &Bench, handshakes: usize, parallel: usize) -> Result<Outcome> {
    let title = format!("churn, {handshakes} handshakes, {parallel} at a time");
    let parameters = json!({"handshakes": handshakes, "parallel": parallel});
    let mut outcome = Outcome::new(title, parameters, "");
    let mut visited = Vec::new();
    for contender in bench.contenders() {
        outcome.meet(contender);
        match visit(bench, contender, parallel, &mut outcome) {
            Ok(one) => visited.push(one),
            Err(error) => outcome.fail(contender.name(), error)?,
        }
    }
    let mut sheet = Sheet::default();
    for (name, unit) in [(CPU_PER_HANDSHAKE, "us"), (RATE, "/s"), (P50, "us"), (P99, "us")] {
        sheet.declare(name, unit);
    }
    let runs = bench.common.runs;
    'runs: for run in 1..=runs {
        progress(&outcome.title, run, runs);
        for at in turns(visited.len(), run) {
            if sys::interrupted() {
                outcome.note_interrupt(run, runs);
                break 'runs;
            }
            let one = &mut visited[at];
            if !outcome.is_out(&one.name)
                && let Err(error) = one.churn(handshakes, parallel, &mut sheet, &mut outcome)
            {
                outcome.fail(&one.name, error)?;
            }
        }
    }
    outcome.add_figures(&sheet);
    Ok(outcome)
}

fn visit(bench: &Bench, contender: Contender, parallel: usize, outcome: &mut Outcome) -> Result<Visited> {
    let stage = bench.stage_of(contender)?;
    outcome.started(contender.name(), &stage.server.command);
    let seating = Seating { rooms: 1, rooms_per_connection: 1 };
    let (mut receivers, meter) = bench.idle_receivers(&stage, seating, parallel)?;
    receivers.churn(CHURN_WARM_UP, parallel)?;
    Ok(Visited { name: contender.name().to_owned(), receivers, meter, stage })
}

impl Visited {
    fn churn(
        &mut self,
        handshakes: usize,
        parallel: usize,
        sheet: &mut Sheet,
        outcome: &mut Outcome,
    ) -> Result<()> {
        self.meter.look_again();
        let before = self.meter.read()?;
        let dialed = self.receivers.churn(handshakes, parallel)?;
        self.stage.server.check_alive()?;
        let used = self.meter.between(&before, &self.meter.read()?);
        let mut latencies = Latencies::new();
        latencies.merge(&dialed.handshakes);
        let latency = latencies.percentiles();
        let name = &self.name;
        sheet.note(CPU_PER_HANDSHAKE, "us", name, used.server_cpu_seconds * 1e6 / dialed.done.max(1) as f64);
        sheet.note(RATE, "/s", name, dialed.done as f64 / used.seconds);
        sheet.note(P50, "us", name, latency.p50_us);
        sheet.note(P99, "us", name, latency.p99_us);
        if dialed.failed > 0 {
            outcome.add_flaw(name, format!("{} failed: {}", dialed.failed, dialed.errors.join("; ")));
        }
        outcome.details.push(json!({
            "side": name, "done": dialed.done, "failed": dialed.failed, "errors": dialed.errors, "used": used,
            "latency": latency,
        }));
        Ok(())
    }
}
