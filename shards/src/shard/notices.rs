//! What a shard has to tell of its WebSockets and broadcasts, where somebody listens.

use super::{Micros, Phase, Shard};
use crate::close::CloseReason;
use crate::command::ConnectionId;
use crate::config::Dialect;
use crate::notice::{Membership, Notice};

impl Shard {
    /// A connection has got its 101.
    pub(super) fn note_opened(&mut self, id: ConnectionId) {
        if !self.setup.noticed.connections {
            return;
        }
        let Some((membership, members)) = self.membership(id.slot) else { return };
        self.notices.push(Notice::Opened { id, membership, members });
    }

    /// Takes a connection that `was` in some phase out of its rooms; the end of a WebSocket is counted and noticed.
    pub(super) fn leave_open(&mut self, slot: u32, was: Phase, reason: CloseReason, now: Micros) {
        let ends = was == Phase::Open;
        let noticed = ends && self.setup.noticed.connections;
        // Before it leaves: afterwards nobody knows where it was.
        let left = if noticed { self.membership(slot) } else { None };
        self.leave_rooms(slot, now);
        let is_stream = self.connections.at(slot).is_some_and(|c| c.dialect == Dialect::Sse);
        let metrics = self.metrics();
        let open = if is_stream { &metrics.event_streams } else { &metrics.websockets };
        open.sub(u64::from(ends));
        if let Some((membership, members)) = left {
            let remaining = members.saturating_sub(1);
            self.notices.push(Notice::Closed { membership, reason, remaining });
        }
    }

    /// Where a connection is, and how many members its first room has.
    fn membership(&self, slot: u32) -> Option<(Membership, usize)> {
        let connection = self.connections.at(slot)?;
        let first = connection.subscriptions.first().and_then(|first| self.rooms.at(first.room));
        let membership = Membership {
            user: connection.user.clone(),
            room: first.map(|room| room.name.clone()),
            rooms: connection.subscriptions.len(),
            is_users_own: self.setup.routes.is_users_own(usize::from(connection.route)),
        };
        Some((membership, first.map_or(0, |room| room.members_len())))
    }

    /// A pass has been through `rooms`, whose publications it has not marked as passed yet.
    pub(super) fn note_broadcasts(&mut self, rooms: &[u32]) {
        for room in rooms.iter().filter_map(|index| self.rooms.at(*index)) {
            self.notices.push(Notice::Broadcast {
                room: room.name.clone(),
                publications: room.publications_from(room.passed.max(room.base())),
                members: room.members_len(),
            });
        }
    }
}
