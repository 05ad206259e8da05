//! The memory of a shard for slow readers: what all windows may hold and what connections may keep beside them, and who goes
//! where it is more.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::{Action, Micros, Shard, Wire};
use crate::close::CloseReason;
use crate::command::ConnectionId;

/// How many stalled members stand at a cursor of a room.
type Standing = HashMap<(u32, u64), u32, foldhash::fast::FixedState>;

impl Shard {
    /// While windows and connections hold more than a shard may, the connection furthest behind goes.
    ///
    /// Looked at after everything that makes them grow. What the windows hold for a pass that is due or under way is on its
    /// way out and does not count before the pass is over; it is what one turn took from the ring.
    pub(crate) fn keep_memory_budget(&mut self, wire: &mut impl Wire, now: Micros) {
        self.keep_budget(!self.has_dirty_rooms(), wire, now);
    }

    /// The same at the end of a pass.
    pub(crate) fn keep_memory_budget_after_pass(&mut self, wire: &mut impl Wire, now: Micros) {
        self.keep_budget(true, wire, now);
    }

    /// Nobody's distance changes by another's end, so one look at all of them is enough: thousands who stall in one room
    /// cost a sort, and a walk over the room's members for each place at which some of them stood.
    fn keep_budget(&mut self, with_windows: bool, wire: &mut impl Wire, now: Micros) {
        if !self.is_over_memory_budget(with_windows) {
            return;
        }
        let mut standing = self.places_taken();
        for id in self.furthest_behind() {
            if !self.is_over_memory_budget(with_windows) {
                return;
            }
            let places = self.places(id.slot);
            self.close(id, CloseReason::SlowShardBudget, wire, now);
            self.cut(id);
            for place in places {
                let Some(left) = standing.get_mut(&place) else { continue };
                *left -= 1;
                // Only the last to stand there can have kept what comes after it.
                if *left == 0 && self.rooms.at(place.0).is_some_and(|room| !room.in_pass) {
                    self.evict(place.0);
                }
            }
        }
    }

    fn is_over_memory_budget(&self, with_windows: bool) -> bool {
        let windows = if with_windows { self.window_bytes } else { 0 };
        windows + self.kept.bytes() > self.setup.engine.window_bytes_max as u64
    }

    /// A connection that is closing for want of memory gives back what is large and its own at once, and with it its Close
    /// frame, which would come behind it.
    fn cut(&mut self, id: ConnectionId) {
        let lane_bytes_max = self.setup.engine.lane_bytes_max;
        let stalled = self.connection(id).and_then(|connection| connection.stalled.as_mut());
        if stalled.is_some_and(|stalled| stalled.cut(lane_bytes_max)) {
            self.actions.push(Action::Shutdown(id));
        }
    }

    /// Stalled connections that memory is kept for, furthest behind first.
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
        let stalled = connection.stalled.as_ref();
        let kept = stalled.map_or(0, |stalled| stalled.past_bytes() + stalled.private_bytes());
        kept + behind.sum::<u64>()
    }
}
