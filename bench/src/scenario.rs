//! The scenarios: what is connected, which load is put on, and which figures come of it. One file each.

mod account;
mod burst;
mod churn;
mod contest;
mod echo;
mod fanout;
mod floor;
mod idle;
mod saturate;
mod scale;
mod shards;
mod slow;
mod soak;
mod storm;

use std::collections::BTreeMap;

use anyhow::{Error, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

pub use self::burst::burst;
pub use self::churn::churn;
pub use self::echo::echo;
pub use self::fanout::fanout;
pub use self::floor::floor;
pub use self::idle::idle;
pub use self::saturate::saturate;
pub use self::scale::{ScalePlan, scale};
pub use self::shards::shards;
pub use self::slow::{SlowPlan, slow};
pub use self::soak::{SoakPlan, soak};
pub use self::storm::{StormPlan, storm};

use crate::cli::Crowd;
use crate::figure::Figure;
use crate::page::merged_doubts;
use crate::peer::{Contender, OURS};
use crate::phase::Phase;
use crate::process::Interrupted;
pub(crate) use crate::progress::window as progress;
use crate::sheet::Sheet;
use crate::sys;
use crate::tally::Seating;

/// What a scenario found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Its name and parameters, for people.
    pub title: String,
    /// As run.
    pub parameters: Value,
    /// Command of the server.
    pub server: String,
    /// The rows of its table.
    pub figures: Vec<Figure>,
    /// Every measured window, raw.
    pub phases: Vec<Phase>,
    /// What has no place in a phase, raw.
    pub details: Vec<Value>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// The other servers that took part.
    pub peers: Vec<PeerOutcome>,
    /// Flaws that no phase knows of.
    pub(crate) other_flaws: Vec<String>,
}

/// How a peer got through a scenario.
#[derive(Debug, Serialize)]
pub struct PeerOutcome {
    /// As on the command line.
    pub name: String,
    /// As run; empty if it never got ready.
    pub command: String,
    /// It failed, and was measured no further.
    pub is_out: bool,
    /// Flaws that no phase knows of.
    #[serde(skip)]
    other_flaws: Vec<String>,
}

impl Outcome {
    /// Nothing has been found yet.
    pub fn new(title: String, parameters: Value, server: &str) -> Self {
        Self {
            title,
            parameters,
            server: server.to_owned(),
            figures: Vec::new(),
            phases: Vec::new(),
            details: Vec::new(),
            notes: Vec::new(),
            peers: Vec::new(),
            other_flaws: Vec::new(),
        }
    }

    /// The figure called `name`.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    /// What was lost or damaged: a server that delivers less is cheaper.
    pub fn flaws(&self) -> Vec<String> {
        self.flaws_of(OURS)
    }

    /// The same for a side: ours, or a peer.
    pub fn flaws_of(&self, side: &str) -> Vec<String> {
        let peer = self.peers.iter().find(|peer| peer.name == side);
        let mut flaws = match peer {
            Some(peer) => peer.other_flaws.clone(),
            None => self.other_flaws.clone(),
        };
        for phase in self.phases.iter().filter(|phase| phase.side == side) {
            if phase.missing > 0 || phase.sent.stuck || !phase.counts.is_clean() {
                flaws.push(format!("deliveries were lost or damaged: {}", phase.load));
            }
        }
        flaws.dedup();
        flaws
    }

    /// Takes note of a contender that is about to start.
    pub(crate) fn meet(&mut self, contender: Contender) {
        let name = contender.name();
        if name != OURS && self.peer(name).is_none() {
            let (name, command, other_flaws) = (name.to_owned(), String::new(), Vec::new());
            self.peers.push(PeerOutcome { name, command, is_out: false, other_flaws });
        }
    }

    /// Takes note of the command by which a side runs.
    pub(crate) fn started(&mut self, side: &str, command: &str) {
        match self.peer(side) {
            Some(peer) => peer.command = command.to_owned(),
            None => self.server = command.to_owned(),
        }
    }

    /// Takes note of a flaw of a side's.
    pub(crate) fn add_flaw(&mut self, side: &str, flaw: String) {
        match self.peer(side) {
            Some(peer) => peer.other_flaws.push(flaw),
            None => self.other_flaws.push(flaw),
        }
    }

    /// A side can't go on. A peer's end is a flaw of that peer's and costs nobody else anything; ours, and the floor's,
    /// end the scenario. What only an interrupt has cut off is no fault of anybody's; a side that crashed meanwhile still has,
    /// and what was measured before is kept.
    pub(crate) fn fail(&mut self, side: &str, error: Error) -> Result<()> {
        self.fail_in(side, error, sys::interrupted())
    }

    fn fail_in(&mut self, side: &str, error: Error, is_interrupted: bool) -> Result<()> {
        if error.chain().any(|cause| cause.is::<Interrupted>()) {
            return Ok(());
        }
        let Some(peer) = self.peer(side) else {
            if !is_interrupted {
                return Err(error);
            }
            self.other_flaws.push(format!("{side}: {error:#}"));
            return Ok(());
        };
        eprintln!("{side} is out: {error:#}");
        peer.is_out = true;
        peer.other_flaws.push(format!("{error:#}"));
        Ok(())
    }

    /// Whether a peer has failed before.
    pub(crate) fn is_out(&self, side: &str) -> bool {
        self.peers.iter().any(|peer| peer.name == side && peer.is_out)
    }

    fn peer(&mut self, name: &str) -> Option<&mut PeerOutcome> {
        self.peers.iter_mut().find(|peer| peer.name == name)
    }

    /// Says that the run ended early.
    pub(crate) fn note_interrupt(&mut self, run: usize, runs: usize) {
        self.notes.push(format!("interrupted in run {run} of {runs}"));
    }

    /// The figures of a sheet, each side's beside the others'.
    pub(crate) fn add_figures(&mut self, sheet: &Sheet) {
        let of = |peer: &PeerOutcome| (peer.name.clone(), !self.flaws_of(&peer.name).is_empty());
        let peers: Vec<_> = self.peers.iter().map(of).collect();
        self.figures.extend(sheet.figures(&peers));
    }

    /// The figures that every load has.
    pub(crate) fn add_load_figures(&mut self) {
        type Column = (&'static str, &'static str, fn(&Phase) -> f64);
        let columns: [Column; 6] = [
            (CPU_PER_DELIVERY, "us", |phase| phase.cpu_us_per_delivery),
            (DELIVERIES, "/s", |phase| phase.deliveries_per_second),
            (LATENCY_P50, "us", |phase| phase.latency.p50_us),
            ("latency p90", "us", |phase| phase.latency.p90_us),
            (LATENCY_P99, "us", |phase| phase.latency.p99_us),
            ("latency p99.9", "us", |phase| phase.latency.p999_us),
        ];
        let mut sheet = Sheet::default();
        for (name, unit, value) in columns {
            sheet.declare(name, unit);
            for phase in &self.phases {
                sheet.note(name, unit, &phase.side, value(phase));
            }
        }
        // The longest of all runs: a median of maxima would be no maximum.
        sheet.declare(LATENCY_MAX, "us");
        let mut longest: BTreeMap<&str, f64> = BTreeMap::new();
        for phase in &self.phases {
            let of_side = longest.entry(&phase.side).or_default();
            *of_side = of_side.max(phase.latency.max_us);
        }
        for (side, max_us) in longest {
            sheet.note(LATENCY_MAX, "us", side, max_us);
        }
        self.add_figures(&sheet);
    }
}

/// Name of the figure that all scenarios with deliveries have.
pub const CPU_PER_DELIVERY: &str = "CPU per delivery";
/// Of [`idle`].
pub const BYTES_PER_CONNECTION: &str = "user memory per connection";
/// Of [`churn`].
pub const CPU_PER_HANDSHAKE: &str = "CPU per handshake and close";
/// Of [`echo`].
pub const ECHO_BUSY_P50: &str = "echo p50 while the room is being sent to";
/// Of [`echo`].
pub const ECHO_BUSY_P99: &str = "echo p99 while the room is being sent to";
/// Of [`saturate`].
pub const WORST_RISE: &str = "worst rise of CPU per delivery from a smaller window";
/// Of all loads.
pub const LATENCY_P50: &str = "latency p50";
/// Of all loads: the longest of all runs.
const LATENCY_MAX: &str = "latency max";
/// Of all loads.
pub const LATENCY_P99: &str = "latency p99";
/// Of [`slow`].
pub const P99_ALL_READING: &str = "p99 of the healthy, all reading";
/// Of [`slow`].
pub const P99_SOME_STALLED: &str = "p99 of the healthy, some stalled";
/// Of [`slow`].
pub const P99_RISE: &str = "p99 of the healthy, some stalled over all reading";
/// Of [`slow`].
pub const GROWN_BY_STALLED: &str = "user memory grown by the stalled, at its peak";
/// Of [`slow`].
pub const STALLED_CLOSED: &str = "stalled clients that were closed";
/// Of [`slow`].
pub const STALLED_DELIVERED: &str = "delivered to the stalled, of what they were owed";
/// Of [`saturate`] and [`shards`], and of all loads.
pub const DELIVERIES: &str = "deliveries";

/// Name of the figure of one window.
pub fn window_figure(window: u64) -> String {
    format!("{CPU_PER_DELIVERY}, {window} under way")
}

pub(crate) fn seating(crowd: &Crowd) -> Result<Seating> {
    if crowd.rooms == 0 || crowd.rooms_per_client == 0 || crowd.rooms_per_client > crowd.rooms {
        bail!("{} rooms per client of {} rooms is not possible", crowd.rooms_per_client, crowd.rooms);
    }
    if crowd.clients == 0 {
        bail!("no clients");
    }
    Ok(Seating { rooms: crowd.rooms, rooms_per_connection: crowd.rooms_per_client })
}

pub(crate) fn crowd_text(crowd: &Crowd) -> String {
    let Crowd { clients, rooms, rooms_per_client, bytes } = crowd;
    match (rooms, rooms_per_client) {
        (1, _) => format!("1 room x {clients} clients x {bytes} B"),
        (_, 1) => format!("{clients} clients in {rooms} rooms x {bytes} B"),
        _ => format!("{clients} clients in {rooms_per_client} of {rooms} rooms each x {bytes} B"),
    }
}

pub(crate) fn crowd_json(crowd: &Crowd) -> Value {
    json!({
        "clients": crowd.clients,
        "rooms": crowd.rooms,
        "rooms_per_client": crowd.rooms_per_client,
        "bytes": crowd.bytes,
    })
}

/// Tells what was doubted of windows (or what else `of` calls them), each doubt once, with how often.
pub(crate) fn tell_doubts(doubts: &[Vec<String>], of: &str, outcome: &mut Outcome) {
    let windows: Vec<_> = doubts.iter().map(|doubts| (OURS, doubts.as_slice())).collect();
    let told = merged_doubts(&windows, of).into_iter().map(|doubt| format!("doubt: {doubt}"));
    outcome.notes.extend(told);
}

/// What a run found; nothing, with a note, where it failed because somebody interrupted it, and with a flaw, where it failed
/// after somebody had.
pub(crate) fn cut_short<T>(found: Result<T>, outcome: &mut Outcome) -> Result<Option<T>> {
    match found {
        Err(error) if error.chain().any(|cause| cause.is::<Interrupted>()) => {
            outcome.notes.push(format!("{error:#}"));
            Ok(None)
        }
        Err(error) if sys::interrupted() => {
            outcome.other_flaws.push(format!("after the interrupt: {error:#}"));
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// Who is measured when in run `run` (from 1): each side comes first in its turn, so that what a first one meets, an idle
/// core or a busy one, meets all; and each comes behind each other one as often, so that nobody always follows the one that
/// leaves the caches worst. In as many runs as there are sides, or twice as many where they are odd.
///
/// Source: Williams, "Experimental designs balanced for the estimation of residual effects of treatments" (1949): 0, 1, n - 1,
/// 2, n - 2 and so on, all of it one further in each run; for odd n then the same backwards.
pub(crate) fn turns(sides: usize, run: usize) -> impl Iterator<Item = usize> {
    let is_backwards = sides % 2 == 1 && (run - 1) / sides % 2 == 1;
    (0..sides).map(move |place| {
        let place = if is_backwards { sides - 1 - place } else { place };
        let zigzag = if place % 2 == 1 { place.div_ceil(2) } else { (sides - place / 2) % sides };
        (zigzag + run - 1) % sides
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::FLOOR;

    #[test]
    fn every_side_comes_first_in_its_turn_and_once_a_run() {
        let order = |run| turns(3, run).collect::<Vec<_>>();
        assert_eq!([order(1), order(2), order(3), order(4)], [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]);
        for sides in 1..9 {
            let mut firsts: Vec<_> = (1..=sides).filter_map(|run| turns(sides, run).next()).collect();
            firsts.sort_unstable();
            assert!(firsts.into_iter().eq(0..sides));
        }
        assert_eq!(turns(0, 1).count(), 0);
    }

    #[test]
    fn every_side_comes_behind_every_other_one_as_often() {
        for sides in 2..9 {
            let runs = if sides % 2 == 0 { sides } else { 2 * sides };
            let mut neighbours = BTreeMap::new();
            for run in 1..=runs {
                let order: Vec<_> = turns(sides, run).collect();
                for pair in order.windows(2) {
                    *neighbours.entry((pair[0], pair[1])).or_insert(0) += 1;
                }
            }
            assert_eq!(neighbours.len(), sides * (sides - 1), "{sides}");
            assert!(neighbours.values().all(|times| *times == runs / sides), "{sides}: {neighbours:?}");
        }
    }

    #[test]
    fn a_peer_that_fails_is_out_and_ours_ends_the_scenario() {
        let mut outcome = Outcome::new(String::new(), Value::Null, "");
        let peer = toml::from_str("name = \"them\"\ncommand = \"x\"").unwrap();
        outcome.meet(Contender::Peer(&peer));
        outcome.fail("them", Error::msg("gone")).unwrap();
        assert!(outcome.is_out("them"));
        assert_eq!(outcome.flaws_of("them"), ["gone"]);
        assert!(outcome.flaws().is_empty(), "a peer's flaw is not ours");
        assert!(outcome.fail(OURS, Error::msg("gone")).is_err());
        assert!(outcome.fail(FLOOR, Error::msg("gone")).is_err());
        outcome.fail_in("them", Error::new(Interrupted).context("connecting"), true).unwrap();
        outcome.fail_in(OURS, Error::new(Interrupted).context("connecting"), true).unwrap();
        assert_eq!((outcome.flaws_of("them").len(), outcome.flaws().len()), (1, 0), "nobody's fault");
        outcome.fail_in("them", Error::msg("ended with signal 11"), true).unwrap();
        outcome.fail_in(OURS, Error::msg("ended with signal 11"), true).unwrap();
        assert_eq!(
            (outcome.flaws_of("them").len(), outcome.flaws().len()),
            (2, 1),
            "a crash is one at any time"
        );
        let mut sheet = Sheet::default();
        sheet.note("cost", "us", OURS, 1.0);
        outcome.add_figures(&sheet);
        assert!(outcome.figures[0].peer("them").unwrap().is_flawed);
    }
}
