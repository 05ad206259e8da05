//! Versus: the figures that servers are compared by, ours beside every peer in one run.

use anyhow::{Result, bail};
use serde_json::json;

use crate::cli::{Common, Crowd, ReceivingArgument};
use crate::figure::Target;
use crate::orders::Receiving;
use crate::scenario::{self, Outcome, SlowPlan};
use crate::stage::Bench;
use crate::table::{self, CROWD, Measured, RISE_MAX, Row};

/// A peer of this name makes the shares of it due.
const UWEBSOCKETS: &str = "uwebsockets";
/// 16 KiB x 100/s x 8 s = 13 MB for each that stops reading: beyond what TCP hides (some 4 MB).
const SLOW: SlowPlan =
    SlowPlan { clients: 200, stalled_every: 10, rate: 100.0, bytes: 16 * 1024, default_policy: false };
/// From one message a turn to more than any turn takes, in steps of eight (and the last of four).
const WINDOWS: [u64; 5] = [1, 8, 64, 256, 1024];

const fn of_uwebsockets(ratio: f64) -> Option<Target> {
    Some(Target::AtMostOfPeer { peer: UWEBSOCKETS, ratio })
}

pub(crate) const ROWS: &[Row] = &[
    (
        "single",
        |bench| scenario::fanout(&bench.share(3, 1.0), &CROWD, 100.0, 1),
        &[
            (scenario::CPU_PER_DELIVERY, "1 room x 1,000, 100/s: CPU per delivery", Some(Target::BelowFloor)),
            (
                scenario::CPU_PER_DELIVERY,
                "1 room x 1,000, 100/s: CPU per delivery, beside uWebSockets",
                of_uwebsockets(0.85),
            ),
            (scenario::LATENCY_P50, "1 room x 1,000, 100/s: p50", None),
            (scenario::LATENCY_P99, "1 room x 1,000, 100/s: p99", None),
        ],
    ),
    (
        "burst",
        |bench| scenario::burst(&bench.share(3, 1.0), &CROWD, 1_000),
        &[
            (
                scenario::CPU_PER_DELIVERY,
                "1,000 back to back x 1,000: CPU per delivery",
                Some(Target::AtMost(0.40)),
            ),
            (
                scenario::CPU_PER_DELIVERY,
                "1,000 back to back x 1,000: CPU per delivery, beside uWebSockets",
                of_uwebsockets(0.8),
            ),
            (scenario::DELIVERIES, "1,000 back to back x 1,000: deliveries", None),
        ],
    ),
    (
        "windows",
        |bench| scenario::saturate(&bench.share(2, 0.5), &CROWD, &WINDOWS),
        &[
            ("CPU per delivery, 1 under way", "1 under way x 1,000: CPU per delivery", None),
            ("CPU per delivery, 8 under way", "8 under way x 1,000: CPU per delivery", None),
            (
                "CPU per delivery, 64 under way",
                "64 under way x 1,000: CPU per delivery",
                Some(Target::AtMost(0.20)),
            ),
            (
                "CPU per delivery, 64 under way",
                "64 under way x 1,000: CPU per delivery, beside uWebSockets",
                of_uwebsockets(0.6),
            ),
            ("CPU per delivery, 256 under way", "256 under way x 1,000: CPU per delivery", None),
            ("CPU per delivery, 1024 under way", "1,024 under way x 1,000: CPU per delivery", None),
            ("deliveries, 64 under way", "64 under way x 1,000: deliveries", None),
            (
                scenario::WORST_RISE,
                "1 to 1,024 under way: worst rise from a smaller window",
                Some(Target::AtMost(RISE_MAX)),
            ),
        ],
    ),
    (
        "rooms",
        |bench| {
            let crowd = Crowd { clients: 10_000, rooms: 1_000, ..CROWD };
            scenario::fanout(&bench.share(3, 1.0), &crowd, 1_000.0, 1)
        },
        &[
            (
                scenario::CPU_PER_DELIVERY,
                "1,000 rooms x 10, 1/s each: CPU per delivery, beside uWebSockets",
                of_uwebsockets(0.9),
            ),
            (scenario::LATENCY_P99, "1,000 rooms x 10, 1/s each: p99", None),
        ],
    ),
    (
        "large-room",
        |bench| {
            let crowd = Crowd { clients: 10_000, ..CROWD };
            scenario::fanout(&bench.share(3, 1.0), &crowd, 10.0, 1)
        },
        &[
            (scenario::CPU_PER_DELIVERY, "1 room x 10,000, 10/s: CPU per delivery", None),
            (scenario::LATENCY_P99, "1 room x 10,000, 10/s: p99", None),
        ],
    ),
    (
        "large-frames",
        |bench| {
            let crowd = Crowd { bytes: 16 * 1024, ..CROWD };
            scenario::fanout(&bench.share(3, 1.0), &crowd, 10.0, 1)
        },
        &[
            (
                scenario::CPU_PER_DELIVERY,
                "16 KB x 1,000, 10/s: CPU per delivery, beside uWebSockets",
                of_uwebsockets(0.95),
            ),
            (scenario::LATENCY_P99, "16 KB x 1,000, 10/s: p99", None),
        ],
    ),
    (
        "idle",
        |bench| scenario::idle(&bench.share(1, 1.0), 19_000, 100),
        &[(
            scenario::BYTES_PER_CONNECTION,
            "19,000 idle in 100 rooms: user memory per connection",
            Some(Target::AtMost(600.0)),
        )],
    ),
    (
        "idle-own-rooms",
        |bench| scenario::idle(&bench.share(1, 1.0), 19_000, 19_000),
        &[(
            scenario::BYTES_PER_CONNECTION,
            "19,000 idle in a room each: user memory per connection",
            Some(Target::AtMost(800.0)),
        )],
    ),
    (
        "slow",
        |bench| scenario::slow(&bench.share(3, 4.0), &SLOW),
        &[
            (
                scenario::GROWN_BY_STALLED,
                "20 of 200 stop reading, 16 KB, 100/s: user memory grown, at its peak",
                Some(Target::AtMost(16.0)),
            ),
            (scenario::STALLED_CLOSED, "of these 20: closed", None),
            (scenario::STALLED_DELIVERED, "delivered to these 20, of what they were owed", None),
            (
                "user memory grown by the stalled, at its peak, drop-oldest",
                "the same, ours with drop-oldest: user memory grown, at its peak",
                Some(Target::AtMost(16.0)),
            ),
            (
                "delivered to the stalled, of what they were owed, drop-oldest",
                "ours with drop-oldest: delivered to these 20",
                None,
            ),
            (
                "user memory grown by the stalled, at its peak, keeping 64 MiB",
                "the same, ours keeping 64 MiB: user memory grown, at its peak",
                Some(Target::AtMost(16.0)),
            ),
            (
                "delivered to the stalled, of what they were owed, keeping 64 MiB",
                "ours keeping 64 MiB: delivered to these 20",
                None,
            ),
            (scenario::P99_ALL_READING, "p99, all 200 reading", None),
            (scenario::P99_SOME_STALLED, "p99 of the other 180, 20 stopped", None),
            (scenario::P99_RISE, "the same over that of all reading", Some(Target::AtMost(RISE_MAX))),
        ],
    ),
    (
        "churn",
        |bench| scenario::churn(&bench.share(3, 1.0), 20_000, 64),
        &[(
            scenario::CPU_PER_HANDSHAKE,
            "20,000 handshakes and closes: CPU per handshake and close",
            Some(Target::AtMost(25.0)),
        )],
    ),
    (
        "dirty-rooms",
        |bench| {
            let crowd = Crowd { rooms: 10, rooms_per_client: 10, ..CROWD };
            scenario::fanout(&bench.share(3, 1.0), &crowd, 1_000.0, 10)
        },
        &[(
            scenario::CPU_PER_DELIVERY,
            "1,000 connections in 10 rooms each, all dirty: CPU per delivery",
            Some(Target::AtMost(0.6)),
        )],
    ),
    (
        "echo",
        |bench| scenario::echo(&bench.share(3, 2.0), 10_000, 10.0, 128, 500.0),
        &[
            (
                scenario::ECHO_BUSY_P50,
                "echo while a room of 10,000 is being sent to: p50",
                Some(Target::AtMost(3.0)),
            ),
            (scenario::ECHO_BUSY_P99, "echo while a room of 10,000 is being sent to: p99", None),
        ],
    ),
    (
        "shards",
        |bench| scenario::shards(&bench.share(3, 0.5), &CROWD, 64, &[1, 2, 4, 8]),
        &[
            ("deliveries, shards: 1", "64 under way x 1,000, 1 shard: deliveries", None),
            ("deliveries, shards: 2", "64 under way x 1,000, 2 shards: deliveries", None),
            ("CPU per delivery, shards: 1", "64 under way x 1,000, 1 shard: CPU per delivery", None),
            ("CPU per delivery, shards: 2", "64 under way x 1,000, 2 shards: CPU per delivery", None),
        ],
    ),
    (
        "hop",
        hop,
        &[
            (scenario::LATENCY_P50, "Redis to one socket, 100/s, waiting receiver: p50", None),
            (scenario::LATENCY_P99, "Redis to one socket, 100/s, waiting receiver: p99", None),
        ],
    ),
];

/// Light load: what one message takes from the publisher to a client that waits for it in epoll. 1,000 messages a window at
/// 10 s, 6 to 14 ms apart: a p99 has ten beyond it, and each message finds everybody asleep.
fn hop(bench: &Bench) -> Result<Outcome> {
    let bench = bench.share(3, 5.0);
    let receivers = ReceivingArgument(Receiving::Epoll);
    let bench = bench.with(Common { receivers, ..bench.common.clone() });
    let crowd = Crowd { clients: 1, ..CROWD };
    let mut outcome = scenario::fanout(&bench, &crowd, 100.0, 1)?;
    outcome.title = format!("hop: {}, receivers wait in epoll", outcome.title);
    outcome.parameters["receivers"] = json!(bench.common.receiving_text());
    Ok(outcome)
}

/// Runs the rows called `names`, or all.
pub fn run(bench: &Bench, names: &[String]) -> Result<Measured> {
    if let Some(unknown) = names.iter().find(|name| !ROWS.iter().any(|(row, ..)| row == name)) {
        let known: Vec<_> = ROWS.iter().map(|(name, ..)| *name).collect();
        bail!("there is no row {unknown:?}: known are {}", known.join(", "));
    }
    let bench = &bench.with_whole_runs(!names.is_empty());
    let rows: Vec<_> =
        ROWS.iter().filter(|(row, ..)| names.is_empty() || names.iter().any(|name| name == row)).collect();
    Ok(table::measure(bench, rows.into_iter()))
}

impl Bench {
    /// The same with a share of the runs (fifths, but at least one; all of them where rows were picked) and windows of another
    /// length. What takes long, or says the same each time, is repeated less often.
    fn share(&self, fifths: usize, length: f64) -> Bench {
        let runs = match self.has_whole_runs {
            true => self.common.runs,
            false => (self.common.runs * fifths).div_ceil(5).max(1),
        };
        let duration = self.common.duration.mul_f64(length);
        self.with(Common { runs, duration, ..self.common.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_row_is_named_once_and_told_of_in_the_help() {
        let help =
            crate::cli::Cli::command().find_subcommand_mut("versus").unwrap().render_long_help().to_string();
        for (place, (name, _, shown)) in ROWS.iter().enumerate() {
            assert!(!ROWS[..place].iter().any(|(earlier, ..)| earlier == name), "{name}");
            assert!(help.contains(name), "{name} is not in --help");
            let mut titles: Vec<_> = shown.iter().map(|(_, title, _)| title).collect();
            titles.dedup();
            assert_eq!(titles.len(), shown.len(), "{name}");
        }
    }
}
