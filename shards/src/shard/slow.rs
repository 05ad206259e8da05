//! When a connection is too slow for a room, and what becomes of what it was owed.
//!
//! Only a stalled connection can be too slow. How far behind it may be is its room class's word; beyond that it is closed,
//! skips the oldest, or gets of each key the newest only. What it skips is counted, and told where its dialect has words.

use std::time::Duration;

use bytes::Bytes;

use super::conflate::Item;
use super::stall::Sent;
use super::{Micros, Phase, Shard, Subscription, Wire, owed_from, ticks_in};
use crate::close::CloseReason;
use crate::command::ConnectionId;
use crate::config::{Dialect, SlowPolicy};
use crate::dialect::{self, Gap, Lost};
use crate::limits::{SLOW_BURST_FACTOR, SLOW_GRACE, SLOWEST_MAX};
use crate::metrics::{Cause, DropReason, GapReason, Label as _};
use crate::tcp::Slowest;

/// Publications of a room that a connection won't get, and hasn't been told of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Untold {
    pub room: u32,
    pub lost: Lost,
}

/// Why a member's publications did not wait for it, on the wire.
const SLOW: &str = "slow";

impl Shard {
    /// Limits of stalled connections, by the clock; a pass checks those of the rooms it visits.
    pub(crate) fn sweep_stalled(&mut self, wire: &mut impl Wire, now: Micros) {
        let ids: Vec<ConnectionId> = self.stalled.iter().filter_map(|slot| self.id_of(*slot)).collect();
        for id in ids {
            let pong_timeout = ticks_in(self.setup.bounds.pong_timeout);
            let Some(connection) = self.connection(id) else { continue };
            // A stream has no pong to miss: a socket that takes nothing for so long has nobody behind it.
            let moved = connection.stalled.as_ref().map_or(now.ticks(), |stalled| stalled.moved());
            let is_dead = now.ticks().saturating_sub(moved) >= pong_timeout;
            if connection.dialect == Dialect::Sse && connection.phase == Phase::Open && is_dead {
                self.close(id, CloseReason::PongTimeout, wire, now);
                continue;
            }
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
        let dialect = connection.dialect;
        let Some(stalled) = connection.stalled.as_ref() else { return true };
        // What is live waits behind the past that it asked for, however steadily it reads.
        let (since, has_past) = (stalled.since(), stalled.has_past());
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
            } else if !has_past
                && now.0.saturating_sub(oldest.arrived_micros) > slow.age.as_micros() as u64 * factor
            {
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
            SlowPolicy::Conflate => {
                self.park(id, room_index, member);
                return self.keep_parked_bounds(id, room_index, wire, now);
            }
            SlowPolicy::DropOldest { disconnect_after } => disconnect_after,
        };
        let mut kept = cursor + 1;
        while is_over(kept).is_some() {
            kept += 1;
        }
        let dropped = self.skip(id, room_index, member, kept);
        let Some(connection) = self.connection(id) else { return true };
        let socket = connection.socket;
        if dropped > 0 && connection.stalled.as_ref().is_some_and(|stalled| stalled.drops_in_a_row() == 0) {
            self.note_slow(socket, wire);
        }
        let Some(stalled) = self.connection(id).and_then(|c| c.stalled.as_mut()) else { return true };
        if stalled.note_drops(dropped) > disconnect_after && disconnect_after > 0 {
            self.close(id, CloseReason::SlowDrops, wire, now);
            return false;
        }
        true
    }

    /// Counts why a connection is too slow.
    pub(super) fn note_slow(&mut self, socket: i32, wire: &mut impl Wire) {
        let cause = wire.tcp(socket).map_or(Cause::Unknown, |tcp| tcp.cause());
        self.metrics().slow.add(cause, 1);
    }

    /// The connections whose sockets have taken nothing for the longest time, at most [`SLOWEST_MAX`], the worst first.
    pub(super) fn slowest(&self, wire: &mut impl Wire, now: Micros) -> Vec<Slowest> {
        let stalled = self.stalled.iter().filter_map(|slot| {
            // Who is closed already waits for nothing but its end.
            let connection = self.connections.at(*slot).filter(|c| c.phase == Phase::Open)?;
            connection.stalled.as_ref().map(|stalled| (stalled.moved(), connection, stalled))
        });
        let mut stalled: Vec<_> = stalled.collect();
        if stalled.len() > SLOWEST_MAX {
            stalled.select_nth_unstable_by_key(SLOWEST_MAX, |(moved, ..)| *moved);
            stalled.truncate(SLOWEST_MAX);
        }
        stalled.sort_unstable_by_key(|(moved, ..)| *moved);
        let since = |tick: u32| {
            Duration::from_micros(u64::from(now.ticks().saturating_sub(tick)) * super::TICK_MICROS)
        };
        let told = stalled.into_iter().map(|(moved, connection, stalled)| {
            let of_rooms = connection.subscriptions.iter().filter_map(|at| {
                let room = self.rooms.at(at.room)?;
                let cursor = room.members.get(at.member as usize)?.cursor;
                Some(room.bytes_from(cursor, connection.dialect))
            });
            Slowest {
                shard: self.index,
                stuck: since(moved),
                behind: since(stalled.since()),
                behind_bytes: of_rooms.sum::<u64>() + stalled.past_bytes(),
                tcp: wire.tcp(connection.socket),
            }
        });
        told.collect()
    }

    /// Moves a member's cursor on, over what it won't get. Returns how many publications these are.
    fn skip(&mut self, id: ConnectionId, room_index: u32, member: u32, kept: u64) -> u64 {
        let Some(room) = self.rooms.at(room_index) else { return 0 };
        let cursor = room.members[member as usize].cursor;
        let (owed_before, out_before) = owed_from(room, cursor, id);
        let (owed_after, out_after) = owed_from(room, kept, id);
        let dropped = owed_before - owed_after;
        let skipped = room.entries_from(cursor).take((kept - cursor) as usize);
        let lost = skipped.filter(|entry| entry.except != Some(id)).fold(None, |lost, entry| {
            Some(joined(
                lost,
                if entry.forms.is_gap {
                    Lost::Unknown(entry.offset)
                } else {
                    Lost::Range(entry.offset, entry.offset)
                },
            ))
        });
        if let Some(room) = self.rooms.at_mut(room_index) {
            room.members[member as usize].cursor = kept;
        }
        let metrics = self.metrics();
        metrics.drops.add(DropReason::DropOldest, dropped);
        metrics.filtered.add(out_before - out_after);
        if let (Some(lost), Some(stalled)) = (lost, self.connection(id).and_then(|c| c.stalled.as_mut())) {
            stalled.note_untold(Untold { room: room_index, lost });
        }
        dropped
    }

    /// Tells a connection what it has lost since it was last told.
    pub(super) fn send_untold(&mut self, id: ConnectionId, wire: &mut impl Wire) -> Sent {
        let Some(connection) = self.connection(id) else { return Sent::Broken };
        let (socket, dialect) = (connection.socket, connection.dialect);
        let Some(stalled) = connection.stalled.as_mut() else { return Sent::All };
        let untold = stalled.take_untold();
        if untold.is_empty() || !matches!(dialect, Dialect::Json | Dialect::Sse) {
            return Sent::All;
        }
        let mut notices = Vec::new();
        for Untold { room, lost } in &untold {
            let of_connection = self.connections.at(id.slot).map(|connection| &connection.subscriptions);
            let place = of_connection.and_then(|all| all.iter().find(|at| at.room == *room)).copied();
            let (Some(Subscription { member, .. }), Some(room)) = (place, self.rooms.at(*room)) else {
                continue;
            };
            // Among what it skipped was the notice of a break, which says less than a range, and more.
            let reason = match lost {
                Lost::Range(..) => SLOW,
                Lost::Unknown(_) => GapReason::Broker.label(),
            };
            // It hears of a break that it has not come to yet, and of the new run, in its place.
            let epoch = room.epoch_before(room.members[member as usize].cursor);
            let gap = Gap { epoch, lost: *lost, reason };
            notices.extend_from_slice(&dialect::gap(dialect, room.plain_name(), &gap));
        }
        self.metrics().gap_notices.add(untold.len() as u64);
        self.send_or_hold(id, socket, notices.into(), wire)
    }

    /// Sends bytes that are no publication to a stalled connection, and keeps what its socket doesn't take.
    fn send_or_hold(&mut self, id: ConnectionId, socket: i32, bytes: Bytes, wire: &mut impl Wire) -> Sent {
        let taken = wire.send(socket, &bytes);
        if taken < 0 {
            return Sent::Broken;
        }
        let metrics = self.metrics();
        metrics.sends.add(1);
        metrics.sent_bytes.add(taken as u64);
        if taken as usize == bytes.len() {
            return Sent::All;
        }
        let Self { connections, kept, .. } = self;
        if let Some(stalled) = connections.at_mut(id.slot).and_then(|c| c.stalled.as_mut()) {
            stalled.hold_rest(bytes, taken as usize, false, kept);
        }
        Sent::Short
    }

    // ---- conflation

    /// Whether the class of a room conflates.
    pub(super) fn conflates(&self, room_index: u32) -> bool {
        let class = self.rooms.at(room_index).map(|room| self.setup.routes.class(room.class));
        class.is_some_and(|class| class.slow.policy == SlowPolicy::Conflate)
    }

    /// Moves all that a stalled member is owed by a conflating room out of the window, the newest of each key.
    pub(super) fn park(&mut self, id: ConnectionId, room_index: u32, member: u32) {
        let Self { rooms, connections, setup, index, kept, .. } = self;
        let metrics = &setup.metrics.shards[*index as usize];
        let (Some(room), Some(connection)) = (rooms.at_mut(room_index), connections.at_mut(id.slot)) else {
            return;
        };
        let dialect = connection.dialect;
        let Some(stalled) = connection.stalled.as_mut() else { return };
        let cursor = room.members[member as usize].cursor;
        if cursor == room.head {
            return;
        }
        let parked = stalled.parked.get_or_insert_default();
        for entry in room.entries_from(cursor) {
            let wire = entry.wire_for(dialect).clone();
            if entry.forms.is_gap {
                // It stays in its place among the publications.
                parked.push_notice(room_index, wire, kept);
            } else if entry.except == Some(id) {
                metrics.filtered.add(1);
            } else {
                let is_replaced = entry.forms.is_replaced_for(dialect);
                let item = Item { room: room_index, key: entry.key, wire, is_replaced, is_gap: false };
                metrics.conflated.add(u64::from(parked.push(item, kept)));
            }
        }
        let (head, is_empty) = (room.head, parked.first().is_none());
        room.members[member as usize].cursor = head;
        if is_empty {
            stalled.parked = None;
        }
    }

    /// As many keys as a room may be behind in publications may wait, and as many bytes.
    fn keep_parked_bounds(
        &mut self,
        id: ConnectionId,
        room_index: u32,
        wire: &mut impl Wire,
        now: Micros,
    ) -> bool {
        let Some(room) = self.rooms.at(room_index) else { return false };
        let slow = self.setup.routes.class(room.class).slow;
        let stalled = self.connection(id).and_then(|c| c.stalled.as_ref());
        let (count, bytes) = stalled
            .and_then(|stalled| stalled.parked.as_ref())
            .map_or((0, 0), |parked| parked.of_room(room_index));
        let reason = if count > slow.frames as u64 {
            CloseReason::SlowFrames
        } else if bytes > slow.bytes as u64 {
            CloseReason::SlowBytes
        } else {
            return true;
        };
        self.close(id, reason, wire, now);
        false
    }

    /// Sends what is parked, as far as the budget goes.
    pub(super) fn send_parked(&mut self, id: ConnectionId, budget: &mut usize, wire: &mut impl Wire) -> Sent {
        loop {
            let Self { connections, scratch, kept, .. } = self;
            let Some(connection) = connections.at_mut(id.slot) else { return Sent::Broken };
            let socket = connection.socket;
            let Some(stalled) = connection.stalled.as_mut() else { return Sent::All };
            let Some(parked) = stalled.parked.as_mut().filter(|parked| parked.first().is_some()) else {
                stalled.parked = None;
                return Sent::All;
            };
            if *budget == 0 {
                return Sent::Short;
            }
            scratch.clear();
            for item in parked.iter() {
                if !scratch.is_empty() && scratch.len() + item.wire.len() > *budget {
                    break;
                }
                scratch.extend_from_slice(&item.wire);
            }
            *budget = budget.saturating_sub(scratch.len());
            let sent = wire.send(socket, scratch);
            if sent < 0 {
                return Sent::Broken;
            }
            let (bytes, whole) = (sent as usize, sent as usize == scratch.len());
            let (mut left, mut delivered, mut replaced) = (bytes, 0, 0);
            let mut half = None;
            while left > 0
                && let Some(item) = parked.pop(kept)
            {
                replaced += u64::from(item.is_replaced);
                if left < item.wire.len() {
                    let is_delivery = item.is_delivery();
                    half = Some((item.wire, left, is_delivery));
                    break;
                }
                left -= item.wire.len();
                delivered += u64::from(item.is_delivery());
            }
            if let Some((wire, sent, is_delivery)) = half {
                stalled.hold_rest(wire, sent, is_delivery, kept);
            }
            let metrics = self.metrics();
            metrics.sends.add(1);
            metrics.sent_bytes.add(bytes as u64);
            metrics.deliveries.add(delivered);
            metrics.drops.add(DropReason::TooLong, replaced);
            if !whole {
                return Sent::Short;
            }
        }
    }
}

/// Two losses of a room, the second right behind the first.
pub(super) fn joined(first: Option<Lost>, second: Lost) -> Lost {
    match (first, second) {
        (None, second) => second,
        (Some(Lost::Range(from, _)), Lost::Range(_, to)) => Lost::Range(from, to),
        (Some(_), Lost::Range(_, to) | Lost::Unknown(to)) => Lost::Unknown(to),
    }
}
