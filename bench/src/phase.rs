//! A measured window: its figures, and why they may not mean what they seem to.

use serde::Serialize;

use crate::latency::Percentiles;
use crate::measure::{BUSY_MAX, Memory, Used};
use crate::publisher::Sent;
use crate::tally::Counts;

/// The figures of one measured window.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    /// `server`, `floor`, or a peer's name.
    pub side: String,
    /// The load, in words.
    pub load: String,
    /// What left.
    pub sent: Sent,
    /// Copies owed to members that read.
    pub expected: u64,
    /// Of those, copies that did not arrive.
    pub missing: u64,
    /// What arrived.
    pub counts: Counts,
    /// From the intended time of sending to the receive call's return.
    pub latency: Percentiles,
    /// CPU.
    pub used: Used,
    /// The server's CPU time, user and system, over the deliveries.
    pub cpu_us_per_delivery: f64,
    /// Deliveries over the window.
    pub deliveries_per_second: f64,
    /// Of the server, at the end.
    pub memory: Memory,
    /// Why these figures may not mean what they seem to.
    pub doubts: Vec<String>,
}

/// What may have been the limit instead of the server, and what was lost or damaged.
pub fn doubts(used: &Used, counts: &Counts, sent: &Sent, missing: u64, side: &str) -> Vec<String> {
    /// One message may wait this long behind its due time before it is said.
    const LATE_SHOWN_US: f64 = 10_000.0;
    /// Time that the host may take from the server's cores before it is said.
    const STEAL_SHOWN: f64 = 0.02;
    let mut doubts = Vec::new();
    for (name, busy) in used.generator_busy.iter().filter(|(_, busy)| **busy > BUSY_MAX) {
        doubts.push(format!("{name} was {:.0} % busy: the generator may be the limit", busy * 100.0));
    }
    if used.generator_cores_busy > BUSY_MAX {
        let busy = used.generator_cores_busy * 100.0;
        doubts.push(format!("the generator's cores were {busy:.0} % busy: it may be the limit"));
    }
    if missing > 0 {
        doubts.push(format!("{missing} deliveries of the {side} are missing"));
    }
    if !counts.is_clean() {
        doubts.push(format!(
            "gaps {}, duplicates {}, out of order {}, wrong room {}, unreadable {}, closed {:?}",
            counts.gaps,
            counts.duplicates,
            counts.out_of_order,
            counts.wrong_room,
            counts.unreadable,
            counts.closes
        ));
    }
    if sent.stuck {
        doubts.push("the closed loop got stuck: a message that never became complete".to_owned());
    }
    if sent.late_max_us > LATE_SHOWN_US {
        doubts
            .push(format!("a message left {:.0} ms late (the latency includes it)", sent.late_max_us / 1e3));
    }
    if used.server_cores_steal_seconds > STEAL_SHOWN * used.seconds {
        let stolen = used.server_cores_steal_seconds / used.seconds * 100.0;
        doubts.push(format!("the host took {stolen:.0} % of the server's cores"));
    }
    doubts
}
