//! What happens to a connection whose socket takes no more.
//!
//! It keeps the rest of the frame being sent (a reference to the frame itself, never to a turn's concatenation), a lane
//! of private frames, and its cursors. Frames are never torn: the rest goes first, then the lane, then the rooms.

use std::collections::VecDeque;

use bytes::Bytes;
use smallvec::SmallVec;

use super::conflate::Parked;
use super::forms::Told;
use super::kept::{Buffer, Kept};
use super::slow::{Untold, joined};
use super::{Action, Micros, PAUSED_BY_LANE, Phase, Shard, Wire};
use crate::close::CloseReason;
use crate::command::ConnectionId;
use crate::config::Dialect;
use crate::dialect::{Gap, Lost};
use crate::log;
use crate::metrics::{DropReason, GapReason, Label as _};

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
    /// Publications of rooms' pasts that it is to get before the live ones.
    past: VecDeque<Past>,
    past_len: u64,
    /// What it is owed by conflating rooms.
    pub(super) parked: Option<Box<Parked>>,
    /// What it has lost and hasn't been told, at most once for each room.
    untold: Vec<Untold>,
    /// Tick since which it has not been at the head of all its rooms.
    since: u32,
    /// Tick at which its socket last took bytes, or had none to take.
    moved: u32,
    /// Index in the shard's list of stalled connections.
    position: u32,
    /// Drops without a delivery between them.
    drops_in_a_row: u32,
    /// Its connection is closing: what it still has to send is counted no more, as its end is a matter of seconds.
    is_leaving: bool,
}

impl Stalled {
    /// Index in the shard's list of stalled connections.
    pub(crate) fn position(&self) -> usize {
        self.position as usize
    }

    /// Panics if an invariant is broken.
    pub(crate) fn check(&self) {
        assert_eq!(self.lane.iter().map(Bytes::len).sum::<usize>(), self.lane_bytes, "bytes in the lane");
        let past_len = self.past.iter().map(|past| past.piece.len()).sum::<u64>();
        assert_eq!(past_len, self.past_len, "publications of the past");
        assert!(self.rest.is_empty() || self.rest_sent < self.rest.len(), "a rest of nothing");
        assert!(!self.rest_is_delivery || !self.rest.is_empty(), "a delivery of nothing is due");
    }

    /// Bytes in the lane.
    pub(crate) fn lane_bytes(&self) -> usize {
        self.lane_bytes
    }

    pub(crate) fn push_lane(&mut self, bytes: Bytes, kept: &mut Kept) {
        self.lane_bytes += bytes.len();
        if !self.is_leaving {
            kept.keep(&bytes);
        }
        self.lane.push_back(bytes);
    }

    /// Keeps what a socket did not take of a frame.
    pub(crate) fn hold_rest(&mut self, bytes: Bytes, sent: usize, is_delivery: bool, kept: &mut Kept) {
        debug_assert!(self.rest.is_empty(), "two frames half sent");
        debug_assert!(sent < bytes.len(), "a rest of nothing");
        if !self.is_leaving {
            kept.keep(&bytes);
        }
        (self.rest, self.rest_sent, self.rest_is_delivery) = (bytes, sent, is_delivery);
    }

    /// Its connection is closing: see [`Stalled::is_leaving`].
    pub(super) fn leave(&mut self, kept: &mut Kept) {
        if !std::mem::replace(&mut self.is_leaving, true) {
            std::iter::once(&self.rest).chain(&self.lane).for_each(|bytes| kept.let_go(bytes));
        }
    }

    /// Gives up the frame that is half sent and those behind it, if nobody else keeps it and it is larger than a lane may be:
    /// memory is wanted back at once. Returns whether it did, which tears the frame.
    pub(super) fn cut(&mut self, lane_bytes_max: usize) -> bool {
        debug_assert!(self.is_leaving, "cut, and yet to be sent to");
        let own = if self.rest.is_unique() { self.rest.len() } else { 0 };
        let is_large = own + self.lane_bytes > lane_bytes_max;
        if is_large {
            (self.rest, self.rest_sent) = (Bytes::new(), 0);
            self.lane = VecDeque::new();
            (self.lane_bytes, self.pong) = (0, Bytes::new());
        }
        is_large
    }

    /// Bytes that go out before anything else.
    pub(super) fn private_bytes(&self) -> u64 {
        if self.is_leaving { 0 } else { (self.rest.len() + self.lane_bytes) as u64 }
    }

    /// Queues publications of a room's past.
    pub(crate) fn push_past(&mut self, room: u32, epoch: u64, past: log::Past, kept: &mut Kept) {
        self.past_len += past.len();
        past.pieces.iter().for_each(|piece| kept.keep(&piece.page));
        self.past.extend(past.pieces.into_iter().map(|piece| Past { room, epoch, piece }));
    }

    /// Publications of the past that wait, and those that conflating rooms owe.
    pub(crate) fn past_len(&self) -> u64 {
        self.past_len + self.parked.as_ref().map_or(0, |parked| parked.len())
    }

    /// Bytes that they keep in memory, others' share of them included.
    pub(crate) fn past_bytes(&self) -> u64 {
        let past: u64 = self.past.iter().map(|past| past.piece.page.bytes()).sum();
        past + self.parked.as_ref().map_or(0, |parked| parked.bytes())
    }

    /// Every buffer that it keeps.
    pub(super) fn buffers(&self) -> impl Iterator<Item = Buffer> {
        let pages = self.past.iter().map(|past| Buffer::from(&past.piece.page));
        let parked = self.parked.iter().flat_map(|parked| parked.iter()).map(|item| Buffer::from(&item.wire));
        let private = std::iter::once(&self.rest).chain(&self.lane).filter(|_| !self.is_leaving);
        let private = private.map(Buffer::from);
        pages.chain(parked).chain(private)
    }

    /// Tick since which it has not been at the head of all its rooms.
    pub(super) fn since(&self) -> u32 {
        self.since
    }

    /// Tick at which its socket last took bytes.
    pub(super) fn moved(&self) -> u32 {
        self.moved
    }

    /// Whether publications of the past wait before the live ones.
    pub(super) fn has_past(&self) -> bool {
        !self.past.is_empty()
    }

    /// Drops without a delivery between them.
    pub(super) fn drops_in_a_row(&self) -> u32 {
        self.drops_in_a_row
    }

    /// Drops without a delivery between them, with these.
    pub(super) fn note_drops(&mut self, drops: u64) -> u32 {
        self.drops_in_a_row = self.drops_in_a_row.saturating_add(drops as u32);
        self.drops_in_a_row
    }

    /// What it has lost of a room is one piece, because nothing of the room was sent since.
    pub(super) fn note_untold(&mut self, untold: Untold) {
        match self.untold.iter_mut().find(|known| known.room == untold.room) {
            Some(known) => known.lost = joined(Some(known.lost), untold.lost),
            None => self.untold.push(untold),
        }
    }

    pub(super) fn take_untold(&mut self) -> Vec<Untold> {
        std::mem::take(&mut self.untold)
    }

    /// The oldest publication of the past is on its way.
    fn pass_past(&mut self, kept: &mut Kept) {
        let Some(Past { piece, .. }) = self.past.front_mut() else { return };
        (piece.from, piece.is_beginning) = (piece.from + 1, false);
        self.past_len -= 1;
        if piece.is_empty()
            && let Some(Past { piece, .. }) = self.past.pop_front()
        {
            kept.let_go(&piece.page);
        }
    }

    /// Gives up what waits of the past of one room, or of all. Returns how many publications these are.
    pub(crate) fn forget_past(&mut self, room: Option<u32>, kept: &mut Kept) -> u64 {
        let before = self.past_len();
        self.untold.retain(|untold| room.is_some_and(|room| untold.room != room));
        self.past.retain(|past| {
            let stays = room.is_some_and(|room| past.room != room);
            if !stays {
                kept.let_go(&past.piece.page);
            }
            stays
        });
        self.past_len = self.past.iter().map(|past| past.piece.len()).sum();
        if let Some(parked) = &mut self.parked {
            parked.forget(room, kept);
        }
        before - self.past_len()
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

/// Publications out of a room's log that one connection is to get.
#[derive(Debug)]
struct Past {
    room: u32,
    epoch: u64,
    /// Never empty.
    piece: log::Piece,
}

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
        connection.stalled = Some(Box::new(Stalled {
            since: now.ticks(),
            moved: now.ticks(),
            position,
            is_leaving: connection.phase == Phase::Closing,
            ..Stalled::default()
        }));
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
