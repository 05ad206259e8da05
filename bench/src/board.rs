//! Counters that receiver processes show while they run, in memory shared with the generator: nobody is asked, nobody waits.

use std::io;
use std::sync::atomic::Ordering;

use crate::sys::SharedCounters;

/// Deliveries since the measurement began.
pub const DELIVERED: usize = 0;
/// Every message below this number has arrived at every member of the process.
pub const COMPLETE: usize = 1;
/// Connections that are there.
pub const OPEN: usize = 2;
/// Connections that came back.
pub const BACK: usize = 3;
/// Of those, the ones that have heard something since.
pub const HEARD: usize = 4;
const COUNTERS: usize = 5;

/// The counters of all receiver processes of one server, and the generator's word that they should stop dialing.
pub struct Board {
    counters: SharedCounters,
    processes: usize,
}

impl Board {
    /// For so many processes, all zero.
    pub fn create(processes: usize) -> io::Result<Self> {
        Ok(Self { counters: SharedCounters::create(processes * COUNTERS + 1)?, processes })
    }

    /// That of the generator, in a receiver process.
    pub fn open(path: &str, processes: usize) -> io::Result<Self> {
        Ok(Self { counters: SharedCounters::open(path, processes * COUNTERS + 1)?, processes })
    }

    /// Where [`open`](Self::open) finds it.
    pub fn path(&self) -> String {
        self.counters.path()
    }

    /// Shows the counters of process `index`, in the order of their constants.
    pub fn show(&self, index: usize, values: [u64; COUNTERS]) {
        for (counter, value) in values.into_iter().enumerate() {
            self.counters.at(index * COUNTERS + counter).store(value, Ordering::Release);
        }
    }

    /// One counter of each process.
    pub fn of_each(&self, counter: usize) -> impl Iterator<Item = u64> {
        (0..self.processes)
            .map(move |index| self.counters.at(index * COUNTERS + counter).load(Ordering::Acquire))
    }

    /// What is being dialed is to be left as it is.
    pub fn stop(&self) {
        self.counters.at(self.processes * COUNTERS).store(1, Ordering::Release);
    }

    /// Whether [`stop`](Self::stop) was said.
    pub fn is_stopped(&self) -> bool {
        self.counters.at(self.processes * COUNTERS).load(Ordering::Acquire) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_shows_is_seen_by_who_opens_the_same_board() {
        let ours = Board::create(2).unwrap();
        let theirs = Board::open(&ours.path(), 2).unwrap();
        theirs.show(1, [1, 2, 3, 4, 5]);
        assert_eq!(ours.of_each(DELIVERED).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(ours.of_each(HEARD).sum::<u64>(), 5);
        assert!(!theirs.is_stopped());
        ours.stop();
        assert!(theirs.is_stopped());
        assert_eq!(ours.of_each(OPEN).sum::<u64>(), 3);
    }
}
