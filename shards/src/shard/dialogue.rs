//! What connections of the JSON dialect say: joins, leaves, messages to rooms they are in, events of the domains.
//!
//! Whatever a message asks for that isn't done is answered with an error frame that names the field, what was found and
//! what was due; the connection goes on. What one read brought is answered in one private frame after the other, sent
//! together; of its errors the first [`ERRORS_ANSWERED_MAX`] are answered one by one and the rest by their number. A
//! connection that doesn't read its answers is not read.

use std::sync::Arc;

use bytes::Bytes;
use domains::{Chat, Domain as _, Event, Message, RESERVED_TYPES, Refusal};

use super::{Micros, Shard, Wire, owed_from, wish};
use crate::command::{ConnectionId, Label, Publish, RoomSlot, Since, Up, Warm, Warmed};
use crate::config::{self, Dialect, Role, Route};
use crate::dialect::{self, ErrorCode, Standing};
use crate::limits::ERRORS_ANSWERED_MAX;
use crate::metrics::DropReason;
use crate::room::Stage;
use crate::route::{full_name, plain_name};

/// Why a message went nowhere: code, room that it named, what was wrong.
type Unheard = (ErrorCode, String, Refusal);

/// Answers to one read of a connection.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Whose; `None` between reads.
    pub slot: Option<u32>,
    /// In their order, as they go to the socket.
    pub frames: Vec<u8>,
    errors: u64,
}

impl Shard {
    /// Takes one message of a connection of the JSON dialect.
    pub(crate) fn dialogue(&mut self, id: ConnectionId, text: &[u8], wire: &mut impl Wire, now: Micros) {
        if let Err((code, room, refusal)) = self.hear(id, text, wire, now) {
            self.metrics().messages_refused.add(1);
            self.answers.errors += 1;
            if self.answers.errors <= ERRORS_ANSWERED_MAX {
                let frame = dialect::error(code, &room, &refusal);
                self.send_private(id.slot, frame.wire_bytes().clone(), wire, now);
            }
        }
    }

    /// What a read of this connection brings is going to be answered together.
    pub(super) fn gather_answers(&mut self, slot: u32) {
        self.answers = Answers { slot: Some(slot), ..Answers::default() };
    }

    /// Sends the answers that were gathered for this connection; from now on each goes at once.
    pub(super) fn send_answers(&mut self, slot: u32, wire: &mut impl Wire, now: Micros) {
        if self.answers.slot != Some(slot) {
            return;
        }
        let Answers { mut frames, errors, .. } = std::mem::take(&mut self.answers);
        if let Some(more) = errors.checked_sub(ERRORS_ANSWERED_MAX).filter(|more| *more > 0) {
            frames.extend_from_slice(dialect::more_errors(more).wire());
        }
        if !frames.is_empty() {
            self.send_private(slot, frames.into(), wire, now);
        }
    }

    fn hear(
        &mut self,
        id: ConnectionId,
        text: &[u8],
        wire: &mut impl Wire,
        now: Micros,
    ) -> Result<(), Unheard> {
        let setup = Arc::clone(&self.setup);
        let Some(connection) = self.connection(id) else { return Ok(()) };
        let publish = connection.publish;
        let Some(route) = setup.routes.route(usize::from(connection.route)) else { return Ok(()) };
        let message = Message::parse(text).map_err(|refusal| (ErrorCode::Invalid, String::new(), refusal))?;
        // A name that is none is not said again: it may have megabytes.
        let named = || message.name("room").unwrap_or_default();
        let invalid = |refusal| (ErrorCode::Invalid, named(), refusal);
        let role = |expected: &str| (ErrorCode::Role, named(), message.refuse("type", expected));
        let space = route.space.as_str();
        match (message.event_type(), route.role) {
            ("ping", _) => {
                let pong = dialect::pong(message.raw("data"));
                self.send_private(id.slot, pong.into_wire(), wire, now);
                Ok(())
            }
            ("join", Role::Consumer) => {
                let room = message.name("room").map_err(invalid)?;
                not_forbidden(route, &message, "room", &room).map_err(invalid)?;
                if !route.joins_by_message() {
                    let refusal = message.refuse("type", "leave or message: this route joins by its URL");
                    return Err((ErrorCode::Role, room, refusal));
                }
                let since = wish::in_message(&message).map_err(invalid)?;
                self.join_by_message(id, &full_name(space, &room), since, wire, now)
            }
            ("leave", Role::Consumer) => {
                let room = message.name("room").map_err(invalid)?;
                self.leave_by_message(id, &full_name(space, &room), wire, now)
            }
            ("join" | "leave" | "message", Role::Ingestor) => {
                Err(role("an event: ingestors never join; joins, leaves and messages are for consumers"))
            }
            (_, Role::Ingestor) if publish == config::Publish::Ignore => self.ignored(),
            ("message", Role::Consumer) if publish == config::Publish::Ignore => self.ignored(),
            (_, Role::Ingestor) if publish == config::Publish::None => {
                let refusal = message.refuse("type", "nothing: this route lets nobody publish");
                Err((ErrorCode::PublishNotAllowed, named(), refusal))
            }
            (kind, Role::Ingestor) if !setup.domains.is_empty() && !setup.domains.knows(kind) => {
                Err(invalid(setup.domains.refuse_type(&message, dialect::PLAIN_KIND)))
            }
            (_, Role::Ingestor) => {
                let event = self.admit(&message).map_err(invalid)?;
                not_forbidden(route, &message, "", &event.room).map_err(invalid)?;
                let room: Arc<str> = full_name(space, &event.room).into();
                self.publish_event(id, room, event);
                Ok(())
            }
            ("message", Role::Consumer) => {
                let event = self.admit(&message).map_err(invalid)?;
                let room = full_name(space, &event.room);
                let room = self.room_joined(id, &room)?;
                if publish == config::Publish::None {
                    let refusal = message.refuse("type", "join or leave: this route lets nobody publish");
                    return Err((ErrorCode::PublishNotAllowed, event.room, refusal));
                }
                self.publish_event(id, room, event);
                Ok(())
            }
            (_, Role::Consumer) => {
                Err(role("join, leave or message: only ingestors may publish events of other types"))
            }
        }
    }

    fn ignored(&self) -> Result<(), Unheard> {
        self.metrics().messages_ignored.add(1);
        Ok(())
    }

    /// The event in a message, as its domain sees it. Where no domain is configured, and for messages between members, the
    /// form of `chat` is all that is due.
    fn admit(&self, message: &Message<'_>) -> Result<Event, Refusal> {
        let domains = &self.setup.domains;
        let kind = message.event_type();
        if RESERVED_TYPES.contains(&kind) {
            return Err(message.refuse("type", "a type that the protocol doesn't keep for itself"));
        }
        if domains.is_empty() || (kind == dialect::PLAIN_KIND && !domains.knows(kind)) {
            return Chat.admit(message);
        }
        domains.admit_message(message)
    }

    fn publish_event(&mut self, id: ConnectionId, room: Arc<str>, event: Event) {
        let Some(connection) = self.connection(id) else { return };
        let (user, except_sender) = (connection.user.clone(), !connection.hear_self);
        let keep = event.key.map(String::into_boxed_str);
        let (payload, is_json) = payload_of(event.data);
        let label = Some(Arc::new(Label { kind: event.event_type.into(), is_json }));
        let publish = Publish { room, payload, from: id, user, except_sender, answer: false, label, keep };
        self.up.push_back(Up::Publish(Box::new(publish)));
    }

    // ---- joining and leaving

    /// The name of a room that the connection is in, and that is live.
    fn room_joined(&self, id: ConnectionId, room: &str) -> Result<Arc<str>, Unheard> {
        let subscriptions = self.connections.at(id.slot).map(|c| c.subscriptions.as_slice());
        let rooms = subscriptions.unwrap_or_default().iter().filter_map(|s| self.rooms.at(s.room));
        let joined = rooms.filter(|known| known.stage == Stage::Live).find(|known| &*known.name == room);
        joined.map(|known| known.name.clone()).ok_or_else(|| not_joined(room))
    }

    fn join_by_message(
        &mut self,
        id: ConnectionId,
        room: &str,
        since: Option<Since>,
        wire: &mut impl Wire,
        now: Micros,
    ) -> Result<(), Unheard> {
        let due = self.setup.bounds.rooms_per_connection_max;
        let Some(connection) = self.connections.at(id.slot) else { return Ok(()) };
        let rooms = connection.subscriptions.len() + connection.wishes().len();
        // Who waits for the room's past still waits.
        if connection.wishes().iter().any(|index| self.is_named(*index, room)) {
            return Ok(());
        }
        let known = connection.subscriptions.iter().find(|s| self.is_named(s.room, room)).copied();
        if let Some(subscription) = known {
            // Joining twice is joining: whoever waits still waits, whoever is in is told so.
            if self.rooms.at(subscription.room).is_some_and(|room| room.stage == Stage::Live) {
                let mut standing = self.standing(subscription.room, now);
                // What is live has begun, so that what was missed can't come before it: recovered is who missed nothing.
                if let Some(Since::After { epoch, offset }) = since {
                    let is_same = epoch.is_none_or(|epoch| epoch == standing.epoch);
                    standing.recovered = Some(is_same && offset == standing.offset);
                }
                self.tell_joined(id, subscription.room, standing, wire, now);
            }
            return Ok(());
        }
        if rooms >= due {
            let expected = format!("a room that is joined already: a connection may be in {due}");
            let refusal = Refusal::new("room", &expected, &quoted(plain_name(room)));
            return Err((ErrorCode::TooManyRooms, plain_name(room).to_owned(), refusal));
        }
        if let Some(since) = since {
            // Those that it has given up again included: who joins and leaves in a loop is as patient as the relay is busy.
            if self.wishers.questions.len_of(id) >= due {
                let expected = format!(
                    "at most {due} rooms at a time, those that it has left again included, whose past a connection waits for"
                );
                let refusal = Refusal::new("resume", &expected, &quoted(plain_name(room)));
                return Err((ErrorCode::TooManyRooms, plain_name(room).to_owned(), refusal));
            }
            self.join_since(id, room, since);
            return Ok(());
        }
        if !self.join(id.slot, room)
            && let Some(last) = self.connections.at(id.slot).and_then(|c| c.subscriptions.last()).copied()
        {
            self.entered(id, last.room, wire, now);
        }
        Ok(())
    }

    fn leave_by_message(
        &mut self,
        id: ConnectionId,
        room: &str,
        wire: &mut impl Wire,
        now: Micros,
    ) -> Result<(), Unheard> {
        let Some(connection) = self.connections.at(id.slot) else { return Ok(()) };
        let at = connection.subscriptions.iter().position(|s| self.is_named(s.room, room));
        let wish = connection.wishes().iter().copied().find(|index| self.is_named(*index, room));
        match (at, wish) {
            (Some(at), _) => self.leave_room(id, at, now),
            (None, Some(index)) => {
                self.forget_wish(id, index);
                if self.rooms.at(index).is_some_and(|room| room.members_len() == 0) {
                    self.note_empty(index, now);
                }
            }
            (None, None) => return Err(not_joined(room)),
        }
        let frame = dialect::left(plain_name(room));
        self.send_private(id.slot, frame.wire_bytes().clone(), wire, now);
        Ok(())
    }

    fn is_named(&self, index: u32, name: &str) -> bool {
        self.rooms.at(index).is_some_and(|room| &*room.name == name)
    }

    /// Takes a connection out of the room of its subscription `at`, and books what it was owed.
    fn leave_room(&mut self, id: ConnectionId, at: usize, now: Micros) {
        let Some(connection) = self.connections.at_mut(id.slot) else { return };
        let subscription = connection.subscriptions.swap_remove(at);
        let dialect = connection.dialect;
        let moved = connection.subscriptions.get(at).copied();
        let Some(room) = self.rooms.at_mut(subscription.room) else { return };
        let was_joining = room.stage == Stage::Joining;
        let (cursor, took_its_place) = room.leave(subscription.member, dialect);
        let (owed, left_out) = owed_from(room, cursor, id);
        let emptied = room.members_len() == 0;
        if let Some(member) = took_its_place
            && let Some(other) = self.connections.at_mut(member.slot)
        {
            // Of the connection itself there is one member in a room, so this is somebody else's subscription.
            other.subscriptions[member.subscription as usize].member = subscription.member;
        }
        if let Some(moved) = moved
            && let Some(room) = self.rooms.at_mut(moved.room)
        {
            room.members[moved.member as usize].subscription = at as u32;
        }
        let mut past = 0;
        if let Some(connection) = self.connections.at_mut(id.slot) {
            connection.joining -= u16::from(was_joining);
            if let Some(stalled) = &mut connection.stalled {
                past = stalled.forget_past(Some(subscription.room), &mut self.kept);
            }
        }
        let metrics = self.metrics();
        metrics.drops.add(DropReason::Left, owed + past);
        metrics.filtered.add(left_out);
        metrics.subscriptions.sub(1);
        if emptied {
            self.note_empty(subscription.room, now);
        }
    }

    /// A connection has entered a live room after its 101: it is told, and asks for the room's last value.
    pub(crate) fn entered(&mut self, id: ConnectionId, room_index: u32, wire: &mut impl Wire, now: Micros) {
        let Some(generation) = self.rooms.generation(room_index) else { return };
        let Some(room) = self.rooms.at(room_index) else { return };
        let (name, position) = (room.name.clone(), room.head);
        let standing = self.standing(room_index, now);
        self.tell_joined(id, room_index, standing, wire, now);
        if self.setup.routes.keeps_last_value(&name) {
            let slot = RoomSlot { index: room_index, generation: u32::from(generation) };
            self.up.push_back(Up::Warm(Box::new(Warm { to: id, slot, room: name, position })));
        }
    }

    /// The same for all rooms that a connection of the JSON dialect joined with its handshake; `standing` is that in the
    /// room whose past it asked for.
    pub(crate) fn entered_all(
        &mut self,
        id: ConnectionId,
        standing: Option<Standing>,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        let Some(connection) = self.connection(id).filter(|c| c.dialect == Dialect::Json) else { return };
        let rooms: Vec<u32> = connection.subscriptions.iter().map(|s| s.room).collect();
        for room in rooms {
            match standing {
                Some(standing) => self.tell_joined(id, room, standing, wire, now),
                None => self.entered(id, room, wire, now),
            }
        }
    }

    /// Where a newcomer of a live room stands who gets nothing of its past.
    pub(crate) fn standing(&mut self, room_index: u32, now: Micros) -> Standing {
        // During a pass through it nothing can be appended; the gap follows it then.
        if self.rooms.at(room_index).is_some_and(|room| !room.in_pass) {
            self.settle(room_index, now);
        }
        let room = self.rooms.at(room_index);
        let (epoch, offset) = room.map_or((0, 0), |room| (room.epoch, room.last));
        Standing { epoch, offset, recovered: None }
    }

    /// Tells a connection of the JSON dialect that it is in a room.
    pub(crate) fn tell_joined(
        &mut self,
        id: ConnectionId,
        room_index: u32,
        standing: Standing,
        wire: &mut impl Wire,
        now: Micros,
    ) {
        let Some(room) = self.rooms.at(room_index) else { return };
        let frame = dialect::joined(room.plain_name(), standing);
        self.send_private(id.slot, frame.into_wire(), wire, now);
    }

    /// The last value of a room has come for a newcomer: it is sent unless something newer was published since.
    pub(crate) fn warmed(&mut self, warmed: Warmed, wire: &mut impl Wire, now: Micros) {
        let Warmed { warm, payload, label } = warmed;
        if self.connection(warm.to).is_none()
            || !self.rooms.holds(warm.slot.index, warm.slot.generation as u16)
        {
            return;
        }
        let Some(room) = self.rooms.at(warm.slot.index) else { return };
        let connection = self.connections.at(warm.to.slot);
        let is_member = connection.is_some_and(|c| c.subscriptions.iter().any(|s| s.room == warm.slot.index));
        if !is_member || room.head != warm.position {
            return self.metrics().warm_superseded.add(1);
        }
        let frame = dialect::publication(&label.kind, room.plain_name(), &payload, label.is_json, None);
        let Some(frame) = frame else { return self.metrics().warm_superseded.add(1) };
        self.metrics().warm_starts.add(1);
        self.send_private(warm.to.slot, frame.wire_bytes().clone(), wire, now);
    }
}

fn not_joined(room: &str) -> Unheard {
    let found = quoted(plain_name(room));
    let refusal = Refusal::new("room", "a room that this connection has joined", &found);
    (ErrorCode::NotJoined, plain_name(room).to_owned(), refusal)
}

/// A name in which the route allows every character.
fn not_forbidden(route: &Route, message: &Message<'_>, field: &str, room: &str) -> Result<(), Refusal> {
    let forbidden = route.forbid.as_deref().unwrap_or_default();
    if !room.contains(|c| forbidden.contains(c)) {
        return Ok(());
    }
    let expected = format!("a room's name without any of {}", quoted(forbidden));
    let found = message.raw(field).map_or_else(|| quoted(room), str::to_owned);
    Err(Refusal::new(field, &expected, &found))
}

/// A name as the JSON text that it was.
fn quoted(name: &str) -> String {
    serde_json::Value::from(name).to_string()
}

/// JSON text as a payload, and whether it is still JSON: a string is its content, so that members of the raw dialect get
/// text and not a literal.
fn payload_of(data: Bytes) -> (Bytes, bool) {
    if data.first() != Some(&b'"') {
        return (data, true);
    }
    match serde_json::from_slice::<String>(&data) {
        Ok(text) => (text.into(), false),
        // Half a surrogate pair: JSON, but no text.
        Err(_) => (data, true),
    }
}
