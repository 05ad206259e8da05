//! What must be true of a shard between two calls. Debug builds look after each.

use super::{Phase, Shard};
use crate::config::Dialect;
use crate::room::{Stage, TOMBSTONE};

/// A look costs a walk over everything, so that with many connections or rooms each call would cost what all of them do.
const CHECKED_CONNECTIONS_MAX: usize = 256;
/// See [`CHECKED_CONNECTIONS_MAX`]; each room is looked for among the dirty ones, which may be all of them.
const CHECKED_ROOMS_MAX: usize = 256;

impl Shard {
    /// In debug builds: panics if an invariant is broken.
    pub(crate) fn debug_check(&self) {
        let is_small =
            self.connections.len() <= CHECKED_CONNECTIONS_MAX && self.rooms.len() <= CHECKED_ROOMS_MAX;
        if cfg!(debug_assertions) && is_small {
            self.check();
        }
    }

    /// Panics if an invariant is broken, with the sentence for the bug report.
    pub fn check(&self) {
        self.check_connections();
        self.check_rooms();
        self.pass.check();
    }

    fn check_connections(&self) {
        let mut stalled = 0;
        let mut input_bytes = 0;
        for (slot, connection) in self.connections.iter() {
            for (at, subscription) in connection.subscriptions.iter().enumerate() {
                let room = self.rooms.at(subscription.room).expect("a subscription to a room that is gone");
                let member = room.members[subscription.member as usize];
                assert_eq!(
                    (member.slot, member.subscription as usize),
                    (slot, at),
                    "a member of somebody else"
                );
            }
            assert_eq!(connection.input_booked, connection.input_bytes(), "input that isn't whole");
            input_bytes += u64::from(connection.input_booked);
            if let Some(held) = &connection.stalled {
                stalled += 1;
                assert_eq!(
                    self.stalled.get(held.position()),
                    Some(&slot),
                    "a stalled connection not in its place"
                );
                held.check();
            }
            let joining = connection
                .subscriptions
                .iter()
                .filter(|s| self.rooms.at(s.room).is_some_and(|room| room.stage == Stage::Joining));
            let waiting = joining.count() + connection.wishes().len();
            assert_eq!(waiting, usize::from(connection.joining), "rooms whose Joined or past is due");
            assert!(
                connection.joining == 0
                    || connection.phase == Phase::Joining
                    || connection.dialect == Dialect::Json,
                "a 101 before its Joined"
            );
            assert!(
                connection.phase != Phase::Closing || connection.subscriptions.is_empty(),
                "a closing connection is still in a room"
            );
            assert!(
                connection.phase != Phase::Closing || connection.reason.is_some(),
                "closing without a reason"
            );
        }
        assert_eq!(input_bytes, self.input_bytes, "input of all connections");
        assert_eq!(stalled, self.stalled.len(), "stalled connections in the list");
    }

    fn check_rooms(&self) {
        let mut window_bytes = 0;
        for (index, room) in self.rooms.iter() {
            room.check();
            window_bytes += room.window_bytes();
            let waits = self.dirty.contains(&index) || self.pass.rooms().contains(&index);
            assert_eq!(room.dirty, waits, "{} is dirty and no pass will visit it, or the reverse", room.name);
            assert_eq!(
                room.listed,
                self.lagging.contains(&index),
                "{} in the list of lagging rooms",
                room.name
            );
            assert!(!room.in_pass || self.pass.is_under_way(), "{} is in a pass that is over", room.name);
            for (at, member) in room.members.iter().enumerate().filter(|(_, m)| m.slot != TOMBSTONE) {
                let connection = self.connections.at(member.slot).expect("a member that is gone");
                let subscription = connection.subscriptions[member.subscription as usize];
                assert_eq!(
                    (subscription.room, subscription.member as usize),
                    (index, at),
                    "somebody else's member"
                );
                let is_behind = member.cursor < room.head && !room.dirty;
                assert!(
                    !is_behind || connection.stalled.is_some(),
                    "behind {}, and nothing to mend it",
                    room.name
                );
            }
        }
        assert_eq!(window_bytes, self.window_bytes, "bytes in windows");
        let stalled = self.connections.iter().filter_map(|(_, connection)| connection.stalled.as_ref());
        self.kept.check(stalled.flat_map(|stalled| stalled.buffers()));
    }
}
