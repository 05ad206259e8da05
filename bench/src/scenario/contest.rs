//! The floor, our server and its peers, all connected, and measured in turn.

use anyhow::Result;

use super::{Outcome, progress, seating, turns};
use crate::cli::Crowd;
use crate::peer::{Contender, FLOOR, OURS};
use crate::schedule::Load;
use crate::stage::{Bench, Side, Stage};
use crate::sys;

/// Messages that the gathering floor puts into one send. A server that gathers hundreds where they lie ready is below it: it is
/// the price of a `send()` with ten, not of the least work.
pub(super) const FLOOR_GATHER: u64 = 10;
/// Messages a second of the gathering floor.
const FLOOR_GATHER_RATE: f64 = 1_000.0;

/// Sides that are measured in turn. Those that wait have nothing to do: each server has a Redis and receivers of its own.
pub(super) struct Contest {
    /// `None`: it failed and was ended.
    sides: Vec<Option<Connected>>,
}

struct Connected {
    // Before the stage: receivers hang up before the server goes, or its end would count as theirs.
    side: Side,
    /// Not of the floor.
    stage: Option<Stage>,
}

/// What the floor and the servers are given to do in a round.
#[derive(Clone, Copy)]
pub(super) struct Loads {
    /// Of all servers.
    pub(super) server: Load,
    /// Of the floor; `None` leaves it out of a round.
    pub(super) floor: Option<Load>,
}

impl Contest {
    /// Starts and connects everybody, the floor's sockets in `floor_rooms` rooms. A peer that can't be had is noted in
    /// `outcome`.
    pub(super) fn connect(
        bench: &Bench,
        crowd: &Crowd,
        floor_rooms: u32,
        outcome: &mut Outcome,
    ) -> Result<Self> {
        let seating = seating(crowd)?;
        let mut sides = Vec::new();
        if !bench.common.no_floor {
            let side = bench.floor_side(crowd.clients, floor_rooms, crowd.bytes)?;
            sides.push(Some(Connected { side, stage: None }));
        }
        for contender in bench.contenders() {
            if let Contender::Peer(peer) = contender
                && crowd.rooms_per_client > 1
                && peer.access().multi_room_path.is_none()
            {
                outcome.notes.push(format!(
                    "{} is left out: it has no path that puts a connection into several rooms",
                    peer.name
                ));
                continue;
            }
            outcome.meet(contender);
            eprintln!("{}: connecting to {}", outcome.title, contender.name());
            let connected = bench.stage_of(contender).and_then(|stage| {
                outcome.started(contender.name(), &stage.server.command);
                let side = bench.server_side(&stage, seating, crowd.clients, crowd.bytes)?;
                Ok(Connected { side, stage: Some(stage) })
            });
            match connected {
                Ok(connected) => sides.push(Some(connected)),
                Err(error) => outcome.fail(contender.name(), error)?,
            }
        }
        Ok(Self { sides })
    }

    /// An unmeasured round.
    pub(super) fn warm_up(&mut self, bench: &Bench, server: Load, outcome: &mut Outcome) -> Result<()> {
        let (rate, burst) = (FLOOR_GATHER_RATE, FLOOR_GATHER);
        let floor = Some(Load::Open { rate, burst, duration_ns: bench.common.warm_up_ns() });
        for at in 0..self.sides.len() {
            self.measure(at, Loads { server, floor }, outcome, false)?;
        }
        Ok(())
    }

    /// A round for each run of the command line: what the machine does in the meantime hits all sides.
    pub(super) fn alternate(&mut self, bench: &Bench, loads: Loads, outcome: &mut Outcome) -> Result<()> {
        let runs = bench.common.runs;
        for run in 1..=runs {
            progress(&outcome.title, run, runs);
            if !self.round(run, loads, outcome)? {
                outcome.note_interrupt(run, runs);
                break;
            }
        }
        Ok(())
    }

    /// One window of each side, in the order of `run`; says whether it came to its end or was interrupted.
    pub(super) fn round(&mut self, run: usize, loads: Loads, outcome: &mut Outcome) -> Result<bool> {
        for at in turns(self.sides.len(), run) {
            if sys::interrupted() {
                return Ok(false);
            }
            self.measure(at, loads, outcome, true)?;
        }
        Ok(!sys::interrupted())
    }

    fn measure(&mut self, at: usize, loads: Loads, outcome: &mut Outcome, keep: bool) -> Result<()> {
        let Some(Connected { side, stage }) = &mut self.sides[at] else { return Ok(()) };
        let name = side.name.clone();
        let load = if name == FLOOR { loads.floor } else { Some(loads.server) };
        let Some(load) = load else { return Ok(()) };
        let measured = side.measure(load);
        // The server's own end explains whatever else went wrong.
        let alive = stage.as_mut().map_or(Ok(()), |stage| stage.server.check_alive());
        match alive.and(measured) {
            Err(error) => {
                self.sides[at] = None;
                outcome.fail(&name, error)
            }
            // Of a window that an interrupt cut short, figures are per delivery; what left before it is owed as ever.
            Ok(phase) if sys::interrupted() && phase.sent.messages == 0 => Ok(()),
            Ok(phase) => {
                if phase.sent.stuck {
                    self.sides[at] = None;
                    let subject = if name == OURS { "gave up" } else { &format!("{name}: gave up") };
                    outcome.notes.push(format!("{subject} at {load}: messages were lost"));
                }
                if keep || phase.sent.stuck {
                    outcome.phases.push(phase);
                }
                Ok(())
            }
        }
    }
}

/// What to know of a floor that gathers.
pub(super) fn note_gather(bench: &Bench, outcome: &mut Outcome) {
    if !bench.common.no_floor {
        let note =
            format!("the floor is send() with {FLOOR_GATHER} messages gathered, however many servers gather");
        outcome.notes.push(note);
    }
}

/// The gathering floor.
pub(super) fn floor_gathered(bench: &Bench) -> Load {
    Load::Open { rate: FLOOR_GATHER_RATE, burst: FLOOR_GATHER, duration_ns: bench.common.duration_ns() }
}
