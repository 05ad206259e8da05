//! Newcomers of a room that asked for its past: resume after a reconnect, and the log's publications before the live ones.
//!
//! Such a connection is no member before the relay has answered. The answer comes down the ring that the publications come
//! down, so whoever enters when it is taken gets the past from it and everything later as a member, and nothing twice.
//! What it gets of the past waits as references to the log's frames, and is written in its dialect as its socket takes it.

use std::collections::HashMap;
use std::sync::Arc;

use super::questions::{Deferred, Questions};
use super::{Connection, Micros, Phase, Shard, Subscription, Wire};
use crate::command::{ConnectionId, Recover, Recovered, RoomSlot, Since, Up};
use crate::dialect::Standing;
use crate::log::Past;
use crate::room::Stage;

/// Connections that wait to enter, by room.
#[derive(Debug, Default)]
pub(crate) struct Wishers {
    by_room: HashMap<u32, Vec<Wisher>, foldhash::fast::FixedState>,
    tickets: u64,
    /// Of those whose room is live, and of those who have gone since.
    pub(super) questions: Questions,
}

/// Waits to enter a room.
#[derive(Debug, Clone, Copy)]
struct Wisher {
    id: ConnectionId,
    since: Since,
    /// See [`Recover::ticket`].
    ticket: u64,
}

impl Wishers {
    /// Whether somebody waits to enter that room.
    pub(crate) fn are_for(&self, room: u32) -> bool {
        !self.by_room.is_empty() && self.by_room.contains_key(&room)
    }

    fn push(&mut self, room: u32, id: ConnectionId, since: Since) -> Wisher {
        self.tickets += 1;
        let wisher = Wisher { id, since, ticket: self.tickets };
        self.by_room.entry(room).or_default().push(wisher);
        wisher
    }

    /// Who waits for the answer to that question, if it still does.
    fn awaiting(&self, room: u32, id: ConnectionId, ticket: u64) -> Option<Wisher> {
        self.of(room).iter().copied().find(|wisher| wisher.id == id && wisher.ticket == ticket)
    }

    /// Returns it if it waited.
    fn remove(&mut self, room: u32, id: ConnectionId) -> Option<Wisher> {
        let wishers = self.by_room.get_mut(&room)?;
        let at = wishers.iter().position(|wisher| wisher.id == id)?;
        let wisher = wishers.swap_remove(at);
        if wishers.is_empty() {
            self.by_room.remove(&room);
        }
        Some(wisher)
    }

    fn of(&self, room: u32) -> &[Wisher] {
        self.by_room.get(&room).map_or(&[], |wishers| wishers.as_slice())
    }
}

impl Connection {
    /// Rooms that it waits to enter.
    pub(crate) fn wishes(&self) -> &[u32] {
        self.pending.as_ref().map_or(&[], |pending| pending.wishes.as_slice())
    }
}

impl Shard {
    /// Has a connection enter a room once the relay has said what came before.
    pub(crate) fn join_since(&mut self, id: ConnectionId, name: &str, since: Since) {
        let index = self.room_named(name);
        let Some(connection) = self.connection(id) else { return };
        connection.joining += 1;
        connection.pending.get_or_insert_default().wishes.push(index);
        let wisher = self.wishers.push(index, id, since);
        if self.rooms.at(index).is_some_and(|room| room.stage == Stage::Live) {
            self.ask_for_past(index, wisher);
        }
    }

    fn ask_for_past(&mut self, index: u32, wisher: Wisher) {
        let (Some(room), Some(generation)) = (self.rooms.at(index), self.rooms.generation(index)) else {
            return;
        };
        let slot = RoomSlot { index, generation: u32::from(generation) };
        let Wisher { id: to, since, ticket } = wisher;
        let questions_max = self.setup.engine.questions_max;
        if !self.wishers.questions.open(Deferred { room: index, id: to, ticket }, questions_max) {
            return self.metrics().pasts_deferred.add(1);
        }
        let recover = Recover { to, slot, room: Arc::clone(&room.name), since, ticket };
        self.up.push_back(Up::Recover(Box::new(recover)));
    }

    /// The relay has answered a question: who waits with one asks it now.
    pub(crate) fn answered(&mut self, ticket: u64) {
        self.wishers.questions.close(ticket);
        let questions_max = self.setup.engine.questions_max;
        while let Some(Deferred { room, id, ticket }) = self.wishers.questions.take_deferred(questions_max) {
            if let Some(wisher) = self.wishers.awaiting(room, id, ticket) {
                self.ask_for_past(room, wisher);
            }
        }
    }

    /// A room has become live: who waits for its past asks for it now.
    pub(crate) fn ask_for_pasts(&mut self, index: u32) {
        for wisher in self.wishers.of(index).to_vec() {
            self.ask_for_past(index, wisher);
        }
    }

    /// The relay has answered: the connection is a member from here on.
    pub(crate) fn recovered(&mut self, recovered: Recovered, wire: &mut impl Wire, now: Micros) {
        let Recovered { recover, epoch, offset, is_whole, past } = recovered;
        let Recover { to: id, slot, since, ticket, .. } = recover;
        self.answered(ticket);
        let is_awaited = self.rooms.holds(slot.index, slot.generation as u16)
            && self.wishers.awaiting(slot.index, id, ticket).is_some();
        if !is_awaited {
            return;
        }
        self.forget_wish(id, slot.index);
        let Self { rooms, connections, .. } = self;
        let (Some(room), Some(connection)) = (rooms.at_mut(slot.index), connections.at_mut(id.slot)) else {
            return;
        };
        let subscription = connection.subscriptions.len() as u32;
        let member = room.enter(id.slot, subscription, connection.dialect);
        connection.subscriptions.push(Subscription { room: slot.index, member });
        let recovered = matches!(since, Since::After { .. }).then_some(is_whole);
        let standing = Standing { epoch, offset, recovered };
        let (phase, was_stalled) = (connection.phase, connection.stalled.is_some());
        let metrics = self.metrics();
        metrics.subscriptions.add(1);
        metrics.owed.add(past.len());
        match phase {
            Phase::Open => {
                self.tell_joined(id, slot.index, standing, wire, now);
                self.give_past(id, slot.index, epoch, past, now);
                // Whoever was stalled goes on when its socket takes bytes again.
                if !was_stalled {
                    self.go_on(id, wire, now);
                }
            }
            _ => {
                self.give_past(id, slot.index, epoch, past, now);
                let Some(connection) = self.connection(id) else { return };
                connection.pending.get_or_insert_default().standing = Some(standing);
                if connection.joining == 0 {
                    self.open(id, wire, now);
                }
            }
        }
    }

    /// Lets a connection wait no more for that room. Returns whether it did.
    pub(crate) fn forget_wish(&mut self, id: ConnectionId, room: u32) -> bool {
        let Some(Wisher { ticket, .. }) = self.wishers.remove(room, id) else { return false };
        if self.wishers.questions.is_open(ticket) {
            self.up.push_back(Up::Withdraw { ticket });
        }
        if let Some(connection) = self.connection(id) {
            connection.joining -= 1;
            if let Some(pending) = &mut connection.pending {
                pending.wishes.retain(|other| *other != room);
            }
        }
        true
    }

    /// The same for all rooms of a connection that ends.
    pub(crate) fn forget_wishes(&mut self, id: ConnectionId, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        for room in connection.wishes().to_vec() {
            self.forget_wish(id, room);
            if self.rooms.at(room).is_some_and(|room| room.members_len() == 0) {
                self.note_empty(room, now);
            }
        }
    }

    /// Queues publications of the past for a connection, behind what it is being sent.
    fn give_past(&mut self, id: ConnectionId, room: u32, epoch: u64, past: Past, now: Micros) {
        if past.is_empty() {
            return;
        }
        self.hold_back(id, now);
        let Self { connections, kept, .. } = self;
        if let Some(stalled) = connections.at_mut(id.slot).and_then(|connection| connection.stalled.as_mut())
        {
            stalled.push_past(room, epoch, past, kept);
        }
    }
}
