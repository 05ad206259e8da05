//! The scenarios: what is connected, which load is put on, and which figures come of it. One file each.

mod account;
mod burst;
mod churn;
mod duel;
mod echo;
mod fanout;
mod floor;
mod idle;
mod saturate;
mod scale;
mod second_shard;
mod slow;
mod soak;
mod storm;

use anyhow::{Result, bail};
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
pub use self::second_shard::second_shard;
pub use self::slow::slow;
pub use self::soak::{SoakPlan, soak};
pub use self::storm::{StormPlan, storm};

use crate::cli::Crowd;
use crate::figure::Figure;
use crate::stage::Phase;
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
    /// Flaws that no phase knows of.
    pub(crate) other_flaws: Vec<String>,
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
            other_flaws: Vec::new(),
        }
    }

    /// The figure called `name`.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }

    /// What was lost or damaged: a server that delivers less is cheaper.
    pub fn flaws(&self) -> Vec<String> {
        let mut flaws = self.other_flaws.clone();
        for phase in self.phases.iter().filter(|phase| phase.side == "server") {
            if phase.missing > 0 || phase.sent.stuck || !phase.counts.is_clean() {
                flaws.push(format!("deliveries were lost or damaged: {}", phase.load));
            }
        }
        flaws.dedup();
        flaws
    }

    fn samples(&self, side: &str, value: impl Fn(&Phase) -> f64) -> Vec<f64> {
        self.phases.iter().filter(|phase| phase.side == side).map(value).collect()
    }

    /// The figures that every load has.
    fn add_load_figures(&mut self) {
        let beside_floor = |name: &str, unit, value: fn(&Phase) -> f64| {
            Figure::new(name, unit, self.samples("server", value)).beside(self.samples("floor", value))
        };
        let figures = [
            beside_floor(CPU_PER_DELIVERY, "us", |phase| phase.cpu_us_per_delivery),
            beside_floor("deliveries", "/s", |phase| phase.deliveries_per_second),
            beside_floor("latency p50", "us", |phase| phase.latency.p50_us),
            beside_floor("latency p90", "us", |phase| phase.latency.p90_us),
            beside_floor("latency p99", "us", |phase| phase.latency.p99_us),
            beside_floor("latency p99.9", "us", |phase| phase.latency.p999_us),
            beside_floor("latency max", "us", |phase| phase.latency.max_us),
        ];
        self.figures.extend(figures);
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
/// Of [`saturate`].
pub const WORST_RISE: &str = "worst rise of CPU per delivery from a smaller window";
/// Of [`saturate`] and [`second_shard`].
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

/// What a run found; nothing, with a note, where it failed because somebody interrupted it.
pub(crate) fn cut_short<T>(found: Result<T>, outcome: &mut Outcome) -> Result<Option<T>> {
    match found {
        Err(error) if sys::interrupted() => {
            outcome.notes.push(format!("interrupted: {error:#}"));
            Ok(None)
        }
        found => found.map(Some),
    }
}

pub(crate) fn progress(title: &str, run: usize, runs: usize) {
    eprintln!("{title}: run {run} of {runs}");
}
