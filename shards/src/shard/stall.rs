//! What happens to a connection whose socket takes no more.
//!
//! It keeps the rest of the frame being sent (a reference to the frame itself, never to a turn's concatenation), a lane
//! of private frames, and its cursors. Frames are never torn: the rest goes first, then the lane, then the rooms.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Action, Micros, PAUSED_BY_LANE, Phase, Shard, Wire, owed_from, ticks_in};
use crate::close::CloseReason;
use crate::command::ConnectionId;
use crate::config::{Dialect, SlowPolicy};
use crate::limits::{SLOW_BURST_FACTOR, SLOW_GRACE};
use crate::metrics::DropReason;

/// See the module.
#[derive(Debug, Default)]
pub struct Stalled {
    /// Frame in the middle of being sent, and how much of it went.
    rest: Bytes,
    rest_sent: usize,
    /// The rest is a publication: one delivery is booked when it is through.
    rest_is_delivery: bool,
    /// Answer to the last ping: at most one is owed (RFC 6455 section 5.5.3).
    pong: Bytes,
    /// Private frames that wait.
    lane: VecDeque<Bytes>,
    lane_bytes: usize,
    /// Tick since which it has not been at the head of all its rooms.
    since: u32,
    /// Index in the shard's list of stalled connections.
    position: u32,
    /// Drops without a delivery between them.
    drops_in_a_row: u32,
}

impl Stalled {
    /// Index in the shard's list of stalled connections.
    pub(crate) fn position(&self) -> usize {
        self.position as usize
    }

    /// Panics if an invariant is broken.
    pub(crate) fn check(&self) {
        assert_eq!(self.lane.iter().map(Bytes::len).sum::<usize>(), self.lane_bytes, "bytes in the lane");
        assert!(self.rest.is_empty() || self.rest_sent < self.rest.len(), "a rest of nothing");
        assert!(!self.rest_is_delivery || !self.rest.is_empty(), "a delivery of nothing is due");
    }

    /// Bytes in the lane.
    pub(crate) fn lane_bytes(&self) -> usize {
        self.lane_bytes
    }

    pub(crate) fn push_lane(&mut self, bytes: Bytes) {
        self.lane_bytes += bytes.len();
        self.lane.push_back(bytes);
    }

    /// Keeps what a socket did not take of a frame.
    pub(crate) fn hold_rest(&mut self, bytes: Bytes, sent: usize, is_delivery: bool) {
        debug_assert!(self.rest.is_empty(), "two frames half sent");
        debug_assert!(sent < bytes.len(), "a rest of nothing");
        (self.rest, self.rest_sent, self.rest_is_delivery) = (bytes, sent, is_delivery);
    }

    /// Whether a publication is half sent.
    pub(crate) fn owes_delivery(&self) -> bool {
        self.rest_is_delivery
    }

    /// The half-sent publication will count as dropped; its bytes still go out, so that the frame isn't torn.
    pub(crate) fn forget_delivery(&mut self) -> bool {
        std::mem::take(&mut self.rest_is_delivery)
    }
}

/// How far a send got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    All,
    Short,
    Broken,
}

impl Shard {
    /// Marks a connection as stalled and asks to be told when its socket takes bytes again.
    pub(crate) fn stall(&mut self, id: ConnectionId, now: Micros) {
        if self.hold_back(id, now) {
            self.metrics().stalls.add(1);
            self.actions.push(Action::AwaitWritable(id));
        }
    }

    /// Keeps what a connection is owed until its 101 has gone out: one of its rooms is live, another is not yet. Returns
    /// whether it was not held back before.
    pub(crate) fn hold_back(&mut self, id: ConnectionId, now: Micros) -> bool {
        let position = self.stalled.len() as u32;
        let Some(connection) = self.connection(id) else { return false };
        if connection.stalled.is_some() {
            return false;
        }
        connection.stalled = Some(Box::new(Stalled { since: now.ticks(), position, ..Stalled::default() }));
        self.stalled.push(id.slot);
        self.metrics().stalled.add(1);
        true
    }

    /// Answers a ping; behind a full socket the answer replaces the one before it.
    pub(crate) fn send_pong(&mut self, id: ConnectionId, pong: Bytes, wire: &mut impl Wire, now: Micros) {
        match self.connection(id).map(|c| c.stalled.as_mut()) {
            Some(Some(stalled)) => stalled.pong = pong,
            Some(None) => self.send_private(id.slot, pong, wire, now),
            None => {}
        }
    }

    /// Takes a connection off the list of stalled ones.
    pub(crate) fn unlist_stalled(&mut self, slot: u32) {
        let Some(stalled) = self.connections.at_mut(slot).and_then(|c| c.stalled.take()) else { return };
        self.stalled.swap_remove(stalled.position as usize);
        if let Some(moved) = self.stalled.get(stalled.position as usize).copied()
            && let Some(other) = self.connections.at_mut(moved).and_then(|c| c.stalled.as_mut())
        {
            other.position = stalled.position;
        }
        self.metrics().stalled.sub(1);
    }

    /// The socket of a stalled connection takes bytes again.
    pub fn writable(&mut self, id: ConnectionId, wire: &mut impl Wire, now: Micros) {
        if self.connection(id).is_some_and(|c| c.stalled.is_some()) {
            self.go_on(id, wire, now);
        }
        self.debug_check();
    }

    pub(crate) fn go_on(&mut self, id: ConnectionId, wire: &mut impl Wire, now: Micros) {
        match self.catch_up(id, wire, now) {
            Sent::Short => self.actions.push(Action::AwaitWritable(id)),
            Sent::Broken => self.close(id, CloseReason::PeerVanished, wire, now),
            Sent::All => {
                self.unlist_stalled(id.slot);
                let Some(connection) = self.connection(id) else { return };
                let closing = connection.phase == Phase::Closing;
                if closing {
                    return self.end_after_lane(id, now);
                }
                self.read_held(id, PAUSED_BY_LANE, wire, now);
            }
        }
    }

    /// Brings a connection that is not stalled, but left out of a shared buffer, to the head of its rooms.
    pub(crate) fn send_alone(&mut self, id: ConnectionId, wire: &mut impl Wire, now: Micros) {
        if self.connection(id).is_none_or(|c| c.stalled.is_some()) {
            return;
        }
        match self.catch_up(id, wire, now) {
            Sent::All => {}
            Sent::Short => self.stall(id, now),
            Sent::Broken => self.close(id, CloseReason::PeerVanished, wire, now),
        }
    }

    fn catch_up(&mut self, id: ConnectionId, wire: &mut impl Wire, now: Micros) -> Sent {
        match self.send_rest_and_lane(id, wire) {
            Sent::All => {}
            other => return other,
        }
        let mut budget = self.setup.engine.catchup_bytes_max;
        let mut subscription = 0;
        loop {
            let Some(connection) = self.connection(id) else { return Sent::Broken };
            let Some(at) = connection.subscriptions.get(subscription).copied() else { return Sent::All };
            let (socket, dialect) = (connection.socket, connection.dialect);
            let Some(room) = self.rooms.at(at.room) else { return Sent::Broken };
            let cursor = room.members[at.member as usize].cursor;
            if cursor == room.head {
                subscription += 1;
                continue;
            }
            if budget == 0 {
                return Sent::Short;
            }
            self.scratch.clear();
            let mut until = cursor;
            for entry in room.entries_from(cursor) {
                if entry.except != Some(id) {
                    let frame = entry.frame_for(dialect);
                    if !self.scratch.is_empty() && self.scratch.len() + frame.len() > budget {
                        break;
                    }
                    self.scratch.extend_from_slice(frame.wire());
                }
                until += 1;
            }
            budget = budget.saturating_sub(self.scratch.len());
            let taken = match self.scratch.len() {
                0 => 0,
                _ => {
                    self.metrics().sends.add(1);
                    wire.send(socket, &self.scratch)
                }
            };
            if taken < 0 {
                return Sent::Broken;
            }
            let complete = taken as usize == self.scratch.len();
            if !complete {
                self.stall(id, now);
            }
            self.move_cursor(id, at.room, at.member, until, taken as usize);
            if !complete {
                return Sent::Short;
            }
        }
    }

    fn send_rest_and_lane(&mut self, id: ConnectionId, wire: &mut impl Wire) -> Sent {
        let lane_bytes_max = self.setup.engine.lane_bytes_max;
        loop {
            let Some(connection) = self.connection(id) else { return Sent::Broken };
            let socket = connection.socket;
            let Some(stalled) = connection.stalled.as_mut() else { return Sent::All };
            if stalled.rest.is_empty() {
                let next = match std::mem::take(&mut stalled.pong) {
                    pong if !pong.is_empty() => pong,
                    _ => {
                        let Some(next) = stalled.lane.pop_front() else { return Sent::All };
                        stalled.lane_bytes -= next.len();
                        next
                    }
                };
                (stalled.rest, stalled.rest_sent, stalled.rest_is_delivery) = (next, 0, false);
            }
            let rest = &stalled.rest[stalled.rest_sent..];
            let taken = wire.send(socket, rest);
            if taken < 0 {
                return Sent::Broken;
            }
            stalled.rest_sent += taken as usize;
            let through = stalled.rest_sent == stalled.rest.len();
            let delivered = through && std::mem::take(&mut stalled.rest_is_delivery);
            if through {
                stalled.rest = Bytes::new();
                stalled.drops_in_a_row = if delivered { 0 } else { stalled.drops_in_a_row };
            }
            let is_open = connection.phase == Phase::Open;
            if is_open && connection.stalled.as_ref().is_some_and(|s| s.lane_bytes() <= lane_bytes_max) {
                self.resume(id, PAUSED_BY_LANE);
            }
            let metrics = self.metrics();
            metrics.sends.add(1);
            metrics.sent_bytes.add(taken as u64);
            metrics.deliveries.add(u64::from(delivered));
            if !through {
                return Sent::Short;
            }
        }
    }

    /// Books that `taken` bytes of the entries up to `until` reached `id`'s socket: whole frames are delivered, a half one
    /// becomes the rest, and the cursor stands behind it.
    pub(crate) fn move_cursor(
        &mut self,
        id: ConnectionId,
        room: u32,
        member: u32,
        until: u64,
        taken: usize,
    ) -> usize {
        let Self { rooms, connections, setup, index, .. } = self;
        let metrics = &setup.metrics.shards[*index as usize];
        let Some(room) = rooms.at_mut(room) else { return taken };
        let dialect = connections.at(id.slot).map_or(Dialect::Raw, |connection| connection.dialect);
        let mut cursor = room.members[member as usize].cursor;
        let mut left = taken;
        let (mut delivered, mut filtered, mut replaced) = (0, 0, 0);
        let mut half = None;
        for entry in room.entries_from(cursor) {
            if cursor == until {
                break;
            }
            let frame = entry.frame_for(dialect);
            if entry.except == Some(id) {
                filtered += 1;
            } else if left >= frame.len() {
                left -= frame.len();
                replaced += u64::from(entry.is_notice_for(dialect));
                delivered += u64::from(!entry.is_notice_for(dialect));
            } else {
                if left > 0 {
                    let is_notice = entry.is_notice_for(dialect);
                    replaced += u64::from(is_notice);
                    half = Some((frame.wire_bytes().clone(), left, !is_notice));
                    cursor += 1;
                    left = 0;
                }
                break;
            }
            cursor += 1;
        }
        room.members[member as usize].cursor = cursor;
        room.lagging |= cursor < room.head;
        metrics.deliveries.add(delivered);
        metrics.filtered.add(filtered);
        metrics.drops.add(DropReason::TooLong, replaced);
        metrics.sent_bytes.add((taken - left) as u64);
        if let Some(stalled) = connections.at_mut(id.slot).and_then(|c| c.stalled.as_mut()) {
            if delivered > 0 {
                stalled.drops_in_a_row = 0;
            }
            if let Some((frame, sent, is_delivery)) = half {
                stalled.hold_rest(frame, sent, is_delivery);
            }
        } else {
            debug_assert!(half.is_none(), "half a frame of a connection that is not stalled");
        }
        left
    }

    /// Limits of stalled connections, by the clock; a pass checks those of the rooms it visits.
    pub(crate) fn sweep_stalled(&mut self, wire: &mut impl Wire, now: Micros) {
        let ids: Vec<ConnectionId> = self.stalled.iter().filter_map(|slot| self.id_of(*slot)).collect();
        for id in ids {
            let Some(connection) = self.connection(id) else { continue };
            let subscriptions = connection.subscriptions.clone();
            for subscription in subscriptions {
                if !self.enforce_limits(id, subscription.room, subscription.member, wire, now) {
                    break;
                }
            }
        }
        self.evict_lagging();
    }

    /// Notes a room whose window outlives its pass.
    pub(crate) fn note_lagging(&mut self, index: u32) {
        if let Some(room) = self.rooms.at_mut(index)
            && room.lagging
            && !std::mem::replace(&mut room.listed, true)
        {
            self.lagging.push(index);
        }
    }

    /// Forgets what laggards have passed since the rooms' last pass.
    fn evict_lagging(&mut self) {
        for index in std::mem::take(&mut self.lagging) {
            let Some(room) = self.rooms.at_mut(index) else { continue };
            room.listed = false;
            if !room.in_pass {
                self.evict(index);
            }
            self.note_lagging(index);
        }
    }

    /// Applies the room class's policy to one stalled member. Returns whether it is still a member.
    ///
    /// One short send is not slowness: for the first [`SLOW_GRACE`] behind the head a connection may be
    /// [`SLOW_BURST_FACTOR`] times as far behind, so that a burst costs nobody who reads.
    pub(crate) fn enforce_limits(
        &mut self,
        id: ConnectionId,
        room_index: u32,
        member: u32,
        wire: &mut impl Wire,
        now: Micros,
    ) -> bool {
        let Some(connection) = self.connection(id) else { return true };
        let (Some(since), dialect) = (connection.stalled.as_ref().map(|s| s.since), connection.dialect)
        else {
            return true;
        };
        let in_grace = now.ticks().saturating_sub(since) < ticks_in(SLOW_GRACE);
        let factor = if in_grace { SLOW_BURST_FACTOR } else { 1 };
        let Some(room) = self.rooms.at(room_index) else { return false };
        let slow = self.setup.routes.class(room.class).slow;
        let cursor = room.members[member as usize].cursor;
        let is_over = |cursor: u64| {
            let oldest = room.entry(cursor)?;
            if room.head - cursor > slow.frames as u64 * factor {
                Some(CloseReason::SlowFrames)
            } else if room.bytes_from(cursor, dialect) > slow.bytes as u64 * factor {
                Some(CloseReason::SlowBytes)
            } else if now.0.saturating_sub(oldest.arrived_micros) > slow.age.as_micros() as u64 * factor {
                Some(CloseReason::SlowAge)
            } else {
                None
            }
        };
        let Some(reason) = is_over(cursor) else { return true };
        let disconnect_after = match slow.policy {
            SlowPolicy::Disconnect => {
                self.close(id, reason, wire, now);
                return false;
            }
            SlowPolicy::DropOldest { disconnect_after } => disconnect_after,
        };
        let mut kept = cursor + 1;
        while is_over(kept).is_some() {
            kept += 1;
        }
        let (owed_before, out_before) = owed_from(room, cursor, id);
        let (owed_after, out_after) = owed_from(room, kept, id);
        let dropped = owed_before - owed_after;
        if let Some(room) = self.rooms.at_mut(room_index) {
            room.members[member as usize].cursor = kept;
        }
        let metrics = self.metrics();
        metrics.drops.add(DropReason::DropOldest, dropped);
        metrics.filtered.add(out_before - out_after);
        let Some(stalled) = self.connection(id).and_then(|c| c.stalled.as_mut()) else { return true };
        stalled.drops_in_a_row = stalled.drops_in_a_row.saturating_add(dropped as u32);
        if disconnect_after > 0 && stalled.drops_in_a_row > disconnect_after {
            self.close(id, CloseReason::SlowDrops, wire, now);
            return false;
        }
        true
    }
}
