//! The memory of a shard for slow readers: what all windows may hold, and who goes where they hold more.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::{Micros, Shard, Wire};
use crate::close::CloseReason;
use crate::command::ConnectionId;

/// How many stalled members stand at a cursor of a room.
type Standing = HashMap<(u32, u64), u32, foldhash::fast::FixedState>;

impl Shard {
    /// While the windows hold more than a shard may, the connection furthest behind goes.
    ///
    /// Nobody's distance changes by another's end, so one look at all of them is enough: thousands who stall in one room
    /// cost a sort, and a walk over the room's members for each place at which some of them stood.
    pub(crate) fn keep_window_budget(&mut self, wire: &mut impl Wire, now: Micros) {
        if !self.is_over_window_budget() {
            return;
        }
        let mut standing = self.places_taken();
        for id in self.furthest_behind() {
            if !self.is_over_window_budget() {
                return;
            }
            let places = self.places(id.slot);
            self.close(id, CloseReason::SlowShardBudget, wire, now);
            for place in places {
                let Some(left) = standing.get_mut(&place) else { continue };
                *left -= 1;
                // Only the last to stand there can have kept what comes after it.
                if *left == 0 {
                    self.evict(place.0);
                }
            }
        }
    }

    fn is_over_window_budget(&self) -> bool {
        self.window_bytes + self.past_bytes > self.setup.engine.window_bytes_max as u64
    }

    /// Stalled connections that windows are kept for, furthest behind first.
    fn furthest_behind(&self) -> Vec<ConnectionId> {
        let distances = self.stalled.iter().map(|slot| (self.bytes_behind(*slot), *slot));
        let mut behind: Vec<(u64, u32)> = distances.filter(|(bytes, _)| *bytes > 0).collect();
        behind.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        behind.into_iter().filter_map(|(_, slot)| self.id_of(slot)).collect()
    }

    fn places_taken(&self) -> Standing {
        let mut standing = Standing::default();
        for place in self.stalled.iter().flat_map(|slot| self.places(*slot)) {
            *standing.entry(place).or_default() += 1;
        }
        standing
    }

    /// Room and cursor of each membership of a connection.
    fn places(&self, slot: u32) -> Vec<(u32, u64)> {
        let Some(connection) = self.connections.at(slot) else { return Vec::new() };
        let places = connection.subscriptions.iter().filter_map(|subscription| {
            let room = self.rooms.at(subscription.room)?;
            Some((subscription.room, room.members[subscription.member as usize].cursor))
        });
        places.collect()
    }

    fn bytes_behind(&self, slot: u32) -> u64 {
        let Some(connection) = self.connections.at(slot) else { return 0 };
        let behind = connection.subscriptions.iter().filter_map(|subscription| {
            let room = self.rooms.at(subscription.room)?;
            Some(room.bytes_from(room.members[subscription.member as usize].cursor, connection.dialect))
        });
        let past = connection.stalled.as_ref().map_or(0, |stalled| stalled.past_bytes());
        past + behind.sum::<u64>()
    }
}
