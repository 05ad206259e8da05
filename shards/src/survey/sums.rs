//! Rows put together by name, at most [`SURVEY_NAMES_MAX`] names, and the busiest of them.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use hashbrown::HashTable;

use super::{Place, Row};
use crate::limits::SURVEY_NAMES_MAX;

/// What the rows of one name come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    hash: u64,
    /// Of its first row.
    pub place: Place,
    /// Rows: members of the room, connections of the user.
    pub members: u32,
    /// Of these, connections whose socket takes no more for now.
    pub stalled: u32,
    /// Bytes of publications that they are owed.
    pub bytes_behind: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Sums {
    table: HashTable<Sum>,
    is_incomplete: bool,
}

impl Sums {
    /// With space for so many names, or for [`SURVEY_NAMES_MAX`]: a table that grows at 100,000 names moves them all at once,
    /// which takes 2 ms.
    pub fn with_capacity(names: usize) -> Self {
        Self { table: HashTable::with_capacity(names.min(SURVEY_NAMES_MAX)), is_incomplete: false }
    }

    /// Adds rows, each in constant time. A new name beyond the bound is left out.
    pub fn add(&mut self, rows: &[Row]) {
        for row in rows {
            if let Some(sum) = self.table.find_mut(row.hash, |sum| sum.hash == row.hash) {
                sum.members += 1;
                sum.stalled += u32::from(row.stalled);
                sum.bytes_behind += row.bytes_behind;
                continue;
            }
            if self.table.len() >= SURVEY_NAMES_MAX {
                self.is_incomplete = true;
                continue;
            }
            let sum = Sum {
                hash: row.hash,
                place: row.place,
                members: 1,
                stalled: u32::from(row.stalled),
                bytes_behind: row.bytes_behind,
            };
            self.table.insert_unique(row.hash, sum, |sum| sum.hash);
        }
    }

    /// Different names.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether no name was left out.
    pub fn is_complete(&self) -> bool {
        !self.is_incomplete
    }

    /// The `list_max` busiest, in order: most members, then most stalled ones, then most bytes behind. Where everybody has one
    /// connection, those in trouble come first.
    pub fn busiest(&self, list_max: usize) -> Vec<Sum> {
        // The least of those kept is on top, to be put out by a busier one.
        let mut kept: BinaryHeap<Reverse<Ranked>> =
            BinaryHeap::with_capacity(list_max.min(self.table.len()) + 1);
        for sum in &self.table {
            let ranked = Reverse(Ranked((sum.members, sum.stalled, sum.bytes_behind, sum.hash), *sum));
            if kept.len() < list_max {
                kept.push(ranked);
            } else if let Some(mut least) = kept.peek_mut()
                && ranked < *least
            {
                *least = ranked;
            }
        }
        kept.into_sorted_vec().into_iter().map(|Reverse(Ranked(_, sum))| sum).collect()
    }
}

/// A sum by its rank: members, stalled ones, bytes behind, and the hash, so that no two are equal.
#[derive(Debug)]
struct Ranked((u32, u32, u64, u64), Sum);

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Ranked {}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(hash: u64, stalled: bool, bytes_behind: u64) -> Row {
        Row { hash, place: Place { shard: 0, generation: 0, index: hash as u32 }, stalled, bytes_behind }
    }

    #[test]
    fn the_busiest_come_first_and_among_equals_those_in_trouble() {
        let mut sums = Sums::default();
        sums.add(&[row(1, false, 0), row(2, false, 0), row(3, true, 7), row(4, true, 9), row(2, true, 5)]);
        let order: Vec<u32> = sums.busiest(3).iter().map(|sum| sum.place.index).collect();
        assert_eq!(order, [2, 4, 3]);
        let first = sums.busiest(1)[0];
        assert_eq!((first.members, first.stalled, first.bytes_behind), (2, 1, 5));
        assert_eq!((sums.len(), sums.busiest(10).len(), sums.is_complete()), (4, 4, true));
    }

    #[test]
    fn names_beyond_the_bound_are_left_out_and_said_to_be() {
        let mut sums = Sums::default();
        let names = SURVEY_NAMES_MAX as u64;
        sums.add(&(0..names).map(|hash| row(hash, false, 0)).collect::<Vec<_>>());
        assert!(sums.is_complete());
        sums.add(&[row(names, false, 0), row(0, false, 0)]);
        assert_eq!(
            (sums.len(), sums.is_complete(), sums.busiest(1)[0].members),
            (SURVEY_NAMES_MAX, false, 2)
        );
    }
}
