//! What happens to a connection whose socket takes no more.
//!
//! It has its cursors, and what [`Stalled`] keeps. Frames are never torn: the rest of one goes first, then the lane of private
//! frames, then the rooms.

use bytes::Bytes;
use smallvec::SmallVec;

use super::forms::Told;
use super::stalled::{Past, Stalled};
use super::{Action, Micros, PAUSED_BY_LANE, Phase, Shard, Wire};
use crate::close::CloseReason;
use crate::command::ConnectionId;
use crate::config::Dialect;
use crate::dialect::{Gap, Lost};
use crate::metrics::{DropReason, GapReason, Label as _};

/// How far a send got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
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
        let is_leaving = connection.phase == Phase::Closing;
        connection.stalled = Some(Box::new(Stalled::new(now.ticks(), position, is_leaving)));
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
        let Some(mut stalled) = self.connections.at_mut(slot).and_then(|c| c.stalled.take()) else { return };
        stalled.leave(&mut self.kept);
        stalled.forget_past(None, &mut self.kept);
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
        let stalled = self.connection(id).and_then(|connection| connection.stalled.as_mut());
        if let Some(stalled) = stalled {
            stalled.moved = now.ticks();
            self.go_on(id, wire, now);
            self.keep_memory_budget(wire, now);
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
                    // It has what is left of its longer patience: what its socket took a moment ago it has not read yet.
                    return self.actions.push(Action::ShutdownWrite(id));
                }
                if connection.phase == Phase::Head {
                    // The next request has its time from here on.
                    connection.heard = now.ticks();
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
        match self.send_past(id, &mut budget, wire) {
            Sent::All => {}
            other => return other,
        }
        self.park_all(id);
        match self.send_untold(id, wire) {
            Sent::All => {}
            other => return other,
        }
        match self.send_parked(id, &mut budget, wire) {
            Sent::All => {}
            other => return other,
        }
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
                    let wire = entry.wire_for(dialect);
                    if !self.scratch.is_empty() && self.scratch.len() + wire.len() > budget {
                        break;
                    }
                    self.scratch.extend_from_slice(wire);
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

    /// Moves what conflating rooms owe a stalled connection to where the newest of each key stay.
    fn park_all(&mut self, id: ConnectionId) {
        let Some(connection) = self.connection(id).filter(|connection| connection.stalled.is_some()) else {
            return;
        };
        for subscription in connection.subscriptions.clone() {
            if self.conflates(subscription.room) {
                self.park(id, subscription.room, subscription.member);
            }
        }
    }

    /// Sends what waits of rooms' pasts, written in the connection's dialect as far as the budget goes.
    fn send_past(&mut self, id: ConnectionId, budget: &mut usize, wire: &mut impl Wire) -> Sent {
        loop {
            let Self { connections, rooms, scratch, kept, .. } = self;
            let Some(connection) = connections.at_mut(id.slot) else { return Sent::Broken };
            let (socket, dialect) = (connection.socket, connection.dialect);
            let Some(stalled) = connection.stalled.as_mut().filter(|s| !s.past.is_empty()) else {
                return Sent::All;
            };
            if *budget == 0 {
                return Sent::Short;
            }
            scratch.clear();
            // Where each publication ends, and whether it is one for this dialect.
            let mut ends: SmallVec<[(usize, bool); 16]> = SmallVec::new();
            'gathered: for Past { room, epoch, piece } in &stalled.past {
                let name = rooms.at(*room).map_or("", |room| room.plain_name());
                for (offset, after_break, record) in piece.iter() {
                    if after_break {
                        let lost = Lost::Unknown(offset - 1);
                        let gap = Gap { epoch: *epoch, lost, reason: GapReason::Broker.label() };
                        scratch.extend_from_slice(&crate::dialect::gap(dialect, name, &gap));
                    }
                    let (frame, label) = (record.frame.clone(), record.label.as_deref());
                    let told = Told { frame, epoch: *epoch, offset, label };
                    let (wire, is_replaced) = told.form(dialect, name);
                    scratch.extend_from_slice(&wire);
                    ends.push((scratch.len(), is_replaced));
                    if scratch.len() >= *budget {
                        break 'gathered;
                    }
                }
            }
            *budget = budget.saturating_sub(scratch.len());
            let taken = wire.send(socket, scratch);
            if taken < 0 {
                return Sent::Broken;
            }
            let taken = taken as usize;
            let (mut delivered, mut replaced, mut start) = (0, 0, 0);
            for (end, is_replaced) in ends {
                if taken <= start && end > start {
                    break;
                }
                stalled.pass_past(kept);
                replaced += u64::from(is_replaced);
                if taken < end {
                    // A notice before it may be torn as well: both go out as one rest.
                    let rest = Bytes::copy_from_slice(&scratch[start..end]);
                    stalled.hold_rest(rest, taken - start, !is_replaced, kept);
                    break;
                }
                delivered += u64::from(!is_replaced);
                start = end;
            }
            if delivered > 0 {
                stalled.drops_in_a_row = 0;
            }
            let complete = taken == scratch.len();
            let metrics = self.metrics();
            metrics.sends.add(1);
            metrics.sent_bytes.add(taken as u64);
            metrics.deliveries.add(delivered);
            metrics.drops.add(DropReason::TooLong, replaced);
            if !complete {
                return Sent::Short;
            }
        }
    }

    fn send_rest_and_lane(&mut self, id: ConnectionId, wire: &mut impl Wire) -> Sent {
        let lane_bytes_max = self.setup.engine.lane_bytes_max;
        loop {
            let Self { connections, kept, .. } = self;
            let Some(connection) = connections.at_mut(id.slot) else { return Sent::Broken };
            let socket = connection.socket;
            let Some(stalled) = connection.stalled.as_mut() else { return Sent::All };
            if stalled.rest.is_empty() {
                let next = match std::mem::take(&mut stalled.pong) {
                    pong if !pong.is_empty() => {
                        if !stalled.is_leaving {
                            kept.keep(&pong);
                        }
                        pong
                    }
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
                let rest = std::mem::take(&mut stalled.rest);
                if !stalled.is_leaving {
                    kept.let_go(&rest);
                }
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
        let Self { rooms, connections, setup, index, kept, .. } = self;
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
            let wire = entry.wire_for(dialect);
            let is_replaced = entry.forms.is_replaced_for(dialect);
            let is_delivery = !is_replaced && !entry.forms.is_gap;
            if entry.except == Some(id) {
                filtered += 1;
            } else if left >= wire.len() {
                left -= wire.len();
                replaced += u64::from(is_replaced);
                delivered += u64::from(is_delivery);
            } else {
                if left > 0 {
                    replaced += u64::from(is_replaced);
                    half = Some((wire.clone(), left, is_delivery));
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
                stalled.hold_rest(frame, sent, is_delivery, kept);
            }
        } else {
            debug_assert!(half.is_none(), "half a frame of a connection that is not stalled");
        }
        left
    }
}
