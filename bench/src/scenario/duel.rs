//! The server's side and the floor's, measured in turn.

use anyhow::Result;

use super::{Outcome, progress, seating};
use crate::cli::Crowd;
use crate::schedule::Load;
use crate::stage::{Bench, Side, Stage};
use crate::sys;

/// Messages that the gathering floor puts into one send: where its price per delivery has become flat.
pub(super) const FLOOR_GATHER: u64 = 10;
/// Messages a second of the gathering floor.
const FLOOR_GATHER_RATE: f64 = 1_000.0;

/// The server's side, and the floor's, both connected, so that they can be measured in turn.
pub(super) struct Duel {
    // Before the stage: receivers hang up before the server goes, or its end would count as theirs.
    pub(super) server: Side,
    pub(super) floor: Option<Side>,
    pub(super) stage: Stage,
}

impl Duel {
    pub(super) fn connect(bench: &Bench, crowd: &Crowd) -> Result<Self> {
        let stage = bench.default_stage()?;
        let server = bench.server_side(&stage, seating(crowd)?, crowd.clients, crowd.bytes)?;
        let floor = match bench.common.no_floor {
            true => None,
            false => Some(bench.floor_side(crowd.clients, crowd.bytes)?),
        };
        Ok(Self { server, floor, stage })
    }

    pub(super) fn warm_up(&mut self, bench: &Bench, load: Load) -> Result<()> {
        self.server.measure(load)?;
        if let Some(floor) = &mut self.floor {
            let (rate, burst) = (FLOOR_GATHER_RATE, FLOOR_GATHER);
            floor.measure(Load::Open { rate, burst, duration_ns: bench.common.warm_up_ns() })?;
        }
        Ok(())
    }

    /// Floor, server, floor, server ...: what the machine does in the meantime hits both.
    pub(super) fn alternate(
        &mut self,
        bench: &Bench,
        server: Load,
        floor: Load,
        outcome: &mut Outcome,
    ) -> Result<()> {
        for run in 1..=bench.common.runs {
            if sys::interrupted() {
                outcome.notes.push(format!("interrupted after {} of {} runs", run - 1, bench.common.runs));
                return Ok(());
            }
            progress(&outcome.title, run, bench.common.runs);
            if let Some(side) = &mut self.floor {
                outcome.phases.push(side.measure(floor)?);
            }
            let phase = self.server.measure(server)?;
            // A window that was cut short is in the raw results like any other: its figures are per delivery.
            outcome.phases.push(phase);
            self.stage.server.check_alive()?;
        }
        Ok(())
    }
}

/// The floor at its cheapest.
pub(super) fn floor_gathered(bench: &Bench) -> Load {
    Load::Open { rate: FLOOR_GATHER_RATE, burst: FLOOR_GATHER, duration_ns: bench.common.duration_ns() }
}
