//! The table: every figure that corecast promises on one core, with what is due, in one command.

use std::time::Duration;

use anyhow::Result;

use crate::cli::{Common, Crowd, PublicationSource};
use crate::figure::{Figure, Target};
use crate::ingest::{self, Plan};
use crate::scenario::{self, Outcome};
use crate::stage::Bench;
use crate::sys;

/// The crowd of most rows.
pub const CROWD: Crowd = Crowd { clients: 1_000, rooms: 1, rooms_per_client: 1, bytes: 128 };
const WINDOWS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// A cost may rise by a quarter from a smaller window before it is called a cliff: twice the spread between windows of
/// one size on a shared machine.
pub const RISE_MAX: f64 = 1.25;

/// 200,000 publications a second on one core.
const RELAY_US_MAX: f64 = 5.0;
const INGEST_ROOMS: u32 = 100;
const INGEST_MEMBERS: u32 = 1;
/// No preset may cost the hot path anything: less than the spread between two windows.
const COST_OF_FIELD_MAX: f64 = 1.03;

/// One row: a scenario by its name, and the figures of it that are shown, each with its title and what is due.
pub type Row =
    (&'static str, fn(&Bench) -> Result<Outcome>, &'static [(&'static str, &'static str, Option<Target>)]);

const ROWS: &[Row] = &[
    (
        "one message a turn",
        |bench| scenario::fanout(bench, &CROWD, 100.0, 1),
        &[(
            scenario::CPU_PER_DELIVERY,
            "1 room x 1,000 clients, one message a turn: CPU per delivery",
            Some(Target::BelowFloor),
        )],
    ),
    (
        "back to back",
        |bench| scenario::burst(bench, &CROWD, 1_000),
        &[(
            scenario::CPU_PER_DELIVERY,
            "1,000 messages back to back to 1,000 clients: CPU per delivery",
            Some(Target::AtMost(0.40)),
        )],
    ),
    (
        "closed loop",
        |bench| scenario::saturate(&bench.shortened(3, 1_000), &CROWD, &WINDOWS),
        &[
            (
                "CPU per delivery, 64 under way",
                "closed loop, 64 under way, 1,000 clients: CPU per delivery",
                Some(Target::AtMost(0.20)),
            ),
            (
                scenario::WORST_RISE,
                "closed loop, 1 to 1,024 under way: worst rise from a smaller window",
                Some(Target::AtMost(RISE_MAX)),
            ),
        ],
    ),
    (
        "many rooms",
        |bench| {
            let crowd = Crowd { rooms: 10, rooms_per_client: 10, ..CROWD };
            scenario::fanout(bench, &crowd, 1_000.0, 10)
        },
        &[(
            scenario::CPU_PER_DELIVERY,
            "1,000 connections in 10 rooms each, all dirty: CPU per delivery",
            Some(Target::AtMost(0.6)),
        )],
    ),
    (
        "idle, 100 rooms",
        |bench| scenario::idle(&bench.shortened(2, 1_000), 19_000, 100),
        &[(
            scenario::BYTES_PER_CONNECTION,
            "19,000 idle in 100 rooms: user memory per connection",
            Some(Target::AtMost(600.0)),
        )],
    ),
    (
        "idle, rooms of one",
        |bench| scenario::idle(&bench.shortened(2, 1_000), 19_000, 19_000),
        &[(
            scenario::BYTES_PER_CONNECTION,
            "19,000 idle in a room each: user memory per connection",
            Some(Target::AtMost(800.0)),
        )],
    ),
    (
        "echo",
        |bench| scenario::echo(&bench.shortened(3, 4_000), 10_000, 10.0, 128, 500.0),
        &[(
            scenario::ECHO_BUSY_P50,
            "echo while a room of 10,000 is being sent to: p50",
            Some(Target::AtMost(3.0)),
        )],
    ),
    (
        "churn",
        |bench| scenario::churn(&bench.shortened(3, 1_000), 20_000, 64),
        &[(
            scenario::CPU_PER_HANDSHAKE,
            "20,000 handshakes and closes: CPU per handshake and close",
            Some(Target::AtMost(25.0)),
        )],
    ),
    (
        "ingest",
        |bench| {
            let (rooms, members) = (vec![INGEST_ROOMS], vec![INGEST_MEMBERS]);
            let source = PublicationSource::Replay;
            ingest::run(bench, &Plan { rooms, members, bytes: 64, publications: 300_000, source })
        },
        &[
            (
                "raw, pattern, 100 rooms x 1 members: relay CPU per publication",
                "64 B to 100 rooms of one, raw: relay CPU per publication",
                Some(Target::AtMost(RELAY_US_MAX)),
            ),
            (
                "field:data, pattern, 100 rooms x 1 members: relay CPU per publication",
                "64 B to 100 rooms of one, field:data: relay CPU per publication",
                Some(Target::AtMost(RELAY_US_MAX)),
            ),
        ],
    ),
    (
        "field:data beside raw",
        |bench| ingest::preset_cost(&bench.paired(), &CROWD, 3_200.0, 64),
        &[(
            ingest::COST_OF_FIELD,
            "1,000 clients, 64 messages at once: CPU per delivery, field:data over raw",
            Some(Target::AtMost(COST_OF_FIELD_MAX)),
        )],
    ),
    (
        "second shard",
        |bench| scenario::shards(&bench.shortened(3, 1_000), &CROWD, 64, &[1, 2]),
        &[
            ("deliveries, shards: 1", "closed loop, 64 under way, 1 shard: deliveries", None),
            ("deliveries, shards: 2", "closed loop, 64 under way, 2 shards: deliveries", None),
            ("CPU per delivery, shards: 2", "closed loop, 64 under way, 2 shards: CPU per delivery", None),
        ],
    ),
];

/// What a set of rows came to.
pub struct Measured {
    /// Of the rows that could be measured.
    pub outcomes: Vec<Outcome>,
    /// The table.
    pub figures: Vec<Figure>,
    /// Why rows could not be measured.
    pub failures: Vec<String>,
}

/// Runs all rows of the table.
pub fn run(bench: &Bench) -> Measured {
    measure(bench, ROWS.iter())
}

/// Runs rows. One that fails is an unmeasured figure with a note, and the others go on; an interrupt leaves out the rest.
pub fn measure<'a>(bench: &Bench, rows: impl ExactSizeIterator<Item = &'a Row>) -> Measured {
    let (mut outcomes, mut figures, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    let count = rows.len();
    for (place, (name, measure, shown)) in rows.enumerate() {
        if sys::interrupted() {
            failures.push(format!("{name}: left out, the run was interrupted"));
            continue;
        }
        eprintln!("-- row {} of {count}: {name}", place + 1);
        let outcome = measure(bench);
        for (figure, title, target) in *shown {
            let found = outcome.as_ref().ok().and_then(|outcome| outcome.figure(figure));
            let empty = || Figure::new("", "", Vec::new());
            let mut row = found.cloned().unwrap_or_else(empty);
            row.name = (*title).to_owned();
            row.target = *target;
            row.is_flawed = outcome.as_ref().is_ok_and(|outcome| !outcome.flaws().is_empty());
            figures.push(row);
        }
        match outcome {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failures.push(format!("{name}: {error:#}"));
            }
        }
    }
    Measured { outcomes, figures, failures }
}

impl Bench {
    /// The same with three times as many windows, each short: the median of pairs is as good as there are pairs.
    fn paired(&self) -> Bench {
        let runs = 3 * self.common.runs;
        self.with(Common { runs, duration: self.common.duration / 2, ..self.common.clone() })
    }

    /// The same with other windows, so that the table ends within minutes; fewer if fewer were asked for.
    fn shortened(&self, runs: usize, duration_ms: u64) -> Bench {
        let duration = Duration::from_millis(duration_ms);
        self.with(Common { runs: self.common.runs.min(runs), duration, ..self.common.clone() })
    }
}
