//! Who has ended and when it comes back: the other half of a storm, and of clients that come and go. Pure.

use serde::{Deserialize, Serialize};

use crate::dial::Dialed;
use crate::latency::{Latencies, LatencyPairs};
use crate::rhythm::Timetable;

/// How connections come back, as the generator orders it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Return {
    /// Who ends comes back after a time of its own, evenly spread from 0 to this.
    pub pace_ns: u64,
    /// An attempt that failed is repeated after this time.
    pub retry_ns: u64,
    /// When messages are due: who is back is owed those from its 101 on.
    pub timetable: Timetable,
}

/// What came of it, in one process or in all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Returned {
    /// Connections that ended, each time counted.
    pub ended: u64,
    /// Connections that came back.
    pub back: u64,
    /// Of those, the ones that have heard something since.
    pub heard: u64,
    /// Attempts.
    pub dialed: Dialed,
    /// From the end to the 101 of the return.
    pub away: LatencyPairs,
    /// From the 101 to the first delivery.
    pub firsts: LatencyPairs,
    /// CLOCK_MONOTONIC at the last return.
    pub last_back_ns: u64,
}

impl Returned {
    /// Adds another process's.
    pub fn merge(&mut self, other: Returned) {
        self.ended += other.ended;
        self.back += other.back;
        self.heard += other.heard;
        self.dialed.merge(other.dialed);
        self.away.extend(other.away);
        self.firsts.extend(other.firsts);
        self.last_back_ns = self.last_back_ns.max(other.last_back_ns);
    }
}

/// The connections of one process.
pub struct Comeback {
    pace_ns: u64,
    ended_ns: Vec<u64>,
    ended: u64,
    back: u64,
    away: Latencies,
    last_back_ns: u64,
}

impl Comeback {
    /// All `connections` are there.
    pub fn new(plan: &Return, connections: usize) -> Self {
        let ended_ns = vec![0; connections];
        Self { pace_ns: plan.pace_ns, ended_ns, ended: 0, back: 0, away: Latencies::new(), last_back_ns: 0 }
    }

    /// A connection has ended; returns when it comes back.
    pub fn end(&mut self, index: usize, now_ns: u64) -> u64 {
        self.ended += 1;
        self.ended_ns[index] = now_ns;
        // In 128 bits: an hour in nanoseconds times a million connections is beyond 64.
        let after_ns = u128::from(self.pace_ns) * index as u128 / self.ended_ns.len() as u128;
        now_ns + after_ns as u64
    }

    /// A connection has its 101 again.
    pub fn open(&mut self, index: usize, opened_ns: u64) {
        self.back += 1;
        self.away.record(opened_ns.saturating_sub(self.ended_ns[index]));
        self.last_back_ns = self.last_back_ns.max(opened_ns);
    }

    /// Connections that came back, each time counted.
    pub fn back(&self) -> u64 {
        self.back
    }

    /// All of it, with what others know.
    pub fn returned(&self, dialed: Dialed, heard: u64, firsts: LatencyPairs) -> Returned {
        let (ended, back, last_back_ns) = (self.ended, self.back, self.last_back_ns);
        Returned { ended, back, heard, dialed, away: self.away.pairs(), firsts, last_back_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rhythm::Rhythm;

    fn comeback(pace_ns: u64, connections: usize) -> Comeback {
        let timetable = Timetable { rhythm: Rhythm::steady(1.0), start_ns: 0, first: 0, rooms: 1 };
        Comeback::new(&Return { pace_ns, retry_ns: 1, timetable }, connections)
    }

    #[test]
    fn without_a_pace_all_come_back_at_once_and_with_one_they_are_spread_over_it() {
        let mut at_once = comeback(0, 4);
        assert!((0..4).all(|index| at_once.end(index, 50) == 50));
        let mut paced = comeback(4_000, 4);
        assert_eq!((0..4).map(|index| paced.end(index, 50)).collect::<Vec<_>>(), [50, 1_050, 2_050, 3_050]);
    }

    #[test]
    fn an_absence_lasts_from_the_end_to_the_101() {
        let mut comeback = comeback(0, 2);
        comeback.end(0, 1_000_000);
        comeback.end(1, 1_000_000);
        comeback.open(1, 3_000_000);
        comeback.open(0, 2_000_000);
        let returned = comeback.returned(Dialed::default(), 1, Vec::new());
        assert_eq!((returned.ended, returned.back, returned.last_back_ns), (2, 2, 3_000_000));
        let counted: u64 = returned.away.iter().map(|(_, count)| count).sum();
        assert_eq!(counted, 2);
    }
}
