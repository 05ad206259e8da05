//! Rows put together by name, at most [`SURVEY_NAMES_MAX`] names, and the busiest of them.

use std::cmp::Reverse;

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
        let mut sums: Vec<Sum> = Vec::with_capacity(self.table.len());
        sums.extend(&self.table);
        let rank = |sum: &Sum| (Reverse((sum.members, sum.stalled, sum.bytes_behind)), sum.hash);
        if sums.len() > list_max {
            sums.select_nth_unstable_by_key(list_max, rank);
            sums.truncate(list_max);
        }
        sums.sort_unstable_by_key(rank);
        sums
    }
}

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
