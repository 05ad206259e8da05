//! `GET /history` and `GET /poll`: rooms' logs over plain HTTP.
//!
//! A reading is a question to the relay, which has the logs. A poll that finds nothing waits, as a number beside its room, and
//! asks again when something is published there; so the room has to be one that this shard has joined, for as long as
//! somebody waits. Nothing of a poll is on the path of a message but a look whether there are any.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::forms::said;
use super::{Micros, Phase, Shard, Wire, ticks_in};
use crate::command::{ConnectionId, Read, Reading, Recorded, Since, Up};
use crate::config::parse_duration;
use crate::dialect::{self, epoch_text};
use crate::limits::{PAYLOAD_BYTES_MAX, POLL_WAIT_DEFAULT, POLL_WAIT_MAX, READ_DEFAULT, READ_MAX};
use crate::request::{Head, HttpError};
use crate::room::Stage;
use crate::route::plain_name;

/// Waits for a publication.
#[derive(Debug, Clone)]
struct Poll {
    /// Index of its room.
    room: u32,
    read: Read,
    /// Tick at which it is answered with nothing.
    due: u32,
    /// The relay is asked.
    is_asked: bool,
}

/// Requests that wait; a connection has one at most.
#[derive(Debug, Default)]
pub(crate) struct Polls {
    by_slot: HashMap<u32, Poll, foldhash::fast::FixedState>,
    /// Slots of those of each room.
    by_room: HashMap<u32, Vec<u32>, foldhash::fast::FixedState>,
}

impl Polls {
    /// Whether somebody waits for something in that room.
    pub(crate) fn are_for(&self, room: u32) -> bool {
        !self.by_room.is_empty() && self.by_room.contains_key(&room)
    }
}

/// What a request for a room's log wants.
pub(super) struct Wanted {
    pub room: Arc<str>,
    pub since: Since,
    pub limit: usize,
    /// Ticks that it waits for something to come; `None` for a reading.
    pub wait: Option<u32>,
}

impl Wanted {
    /// Reads `?limit=` and, for a poll, `?wait=`; `since` is what the request says of where it stands.
    pub(super) fn of(
        head: &Head<'_>,
        room: Arc<str>,
        since: Option<Since>,
        is_poll: bool,
    ) -> Result<Self, HttpError> {
        let wrong = |name: &str, found: &str, due: String| {
            HttpError::new(400, format!("{name}: found {found:?}, due {due}"))
        };
        let limit = match head.query_value("limit")? {
            None => READ_DEFAULT,
            Some(text) => match text.parse() {
                Ok(limit @ 1..=READ_MAX) => limit,
                _ => return Err(wrong("limit", &text, format!("1 to {READ_MAX}"))),
            },
        };
        let wait = match head.query_value("wait")? {
            _ if !is_poll => None,
            None => Some(POLL_WAIT_DEFAULT),
            Some(text) => match parse_duration(&text).filter(|wait| *wait <= POLL_WAIT_MAX) {
                Some(wait) => Some(wait),
                None => {
                    let due = format!(
                        "a duration with its unit up to {} s, for example 25s",
                        POLL_WAIT_MAX.as_secs()
                    );
                    return Err(wrong("wait", &text, due));
                }
            },
        };
        let since = match since {
            Some(since) => since,
            None if is_poll => Since::Last(0),
            None => Since::Last(limit as u64),
        };
        Ok(Self { room, since, limit, wait: wait.map(ticks_in) })
    }
}

impl Shard {
    /// Asks for a reading, whose answer the connection waits for.
    pub(super) fn read_log(&mut self, id: ConnectionId, wanted: Wanted, now: Micros) {
        let Wanted { room, since, limit, wait } = wanted;
        let read = Read { to: id, room, since, limit };
        let Some(wait) = wait else { return self.up.push_back(Up::Read(Box::new(read))) };
        let index = self.room_named(&read.room);
        let is_live = self.rooms.at(index).is_some_and(|room| room.stage == Stage::Live);
        if is_live {
            self.up.push_back(Up::Read(Box::new(read.clone())));
        }
        // A tick that has begun is no whole one.
        let due = now.ticks() + wait + 1;
        let poll = Poll { room: index, read, due, is_asked: is_live };
        self.polls.by_slot.insert(id.slot, poll);
        self.polls.by_room.entry(index).or_default().push(id.slot);
    }

    /// Whether a connection waits for something to come.
    pub(super) fn is_polling(&self, id: ConnectionId) -> bool {
        self.polls.by_slot.get(&id.slot).is_some_and(|poll| poll.read.to == id)
    }

    /// Something was published in a room, or it has become live: who waits there asks again.
    pub(super) fn ask_again(&mut self, room: u32) {
        let Self { polls: Polls { by_slot, by_room }, up, .. } = self;
        for slot in by_room.get(&room).into_iter().flatten() {
            if let Some(poll) = by_slot.get_mut(slot).filter(|poll| !poll.is_asked) {
                poll.is_asked = true;
                up.push_back(Up::Read(Box::new(poll.read.clone())));
            }
        }
    }

    /// The relay has read a log. A poll that brings nothing waits on, from where the room stands now.
    pub(super) fn reading(&mut self, reading: Reading, wire: &mut impl Wire, now: Micros) {
        let id = reading.read.to;
        let is_draining = self.is_draining();
        let poll = self.polls.by_slot.get_mut(&id.slot).filter(|poll| poll.read.to == id);
        let Some(poll) = poll else { return self.answer_reading(id, &reading, wire, now) };
        if reading.records.is_empty() && reading.is_whole && now.ticks() < poll.due && !is_draining {
            poll.is_asked = false;
            // Of this run of numbers: a break of the broker while it waits is no silence.
            poll.read.since = Since::After { epoch: Some(reading.epoch), offset: reading.newest };
            return;
        }
        self.forget_poll(id, now);
        self.answer_reading(id, &reading, wire, now);
    }

    /// A poll is answered, or its connection ends.
    pub(super) fn forget_poll(&mut self, id: ConnectionId, now: Micros) {
        if self.polls.by_slot.get(&id.slot).is_none_or(|poll| poll.read.to != id) {
            return;
        }
        let Some(Poll { room, .. }) = self.polls.by_slot.remove(&id.slot) else { return };
        let Some(slots) = self.polls.by_room.get_mut(&room) else { return };
        slots.retain(|slot| *slot != id.slot);
        if slots.is_empty() {
            self.polls.by_room.remove(&room);
            if self.rooms.at(room).is_some_and(|room| room.members_len() == 0) {
                self.note_empty(room, now);
            }
        }
    }

    /// Polls whose time is up, or all when the server leaves, ask a last time, and are answered whatever comes.
    pub(super) fn sweep_polls(&mut self, tick: u32) {
        let is_draining = self.is_draining();
        let Self { polls, up, .. } = self;
        let is_due = |poll: &Poll| (poll.due <= tick || is_draining) && !poll.is_asked;
        let due = polls.by_slot.values_mut().filter(|poll| is_due(poll));
        for poll in due {
            poll.is_asked = true;
            up.push_back(Up::Read(Box::new(poll.read.clone())));
        }
    }

    fn answer_reading(&mut self, id: ConnectionId, reading: &Reading, wire: &mut impl Wire, now: Micros) {
        if self.connection(id).is_none_or(|connection| connection.phase != Phase::Answering) {
            return;
        }
        let Some((_, head_only)) = self.answering(id) else { return };
        self.finish_answer(id, 200, &body(reading), head_only, wire, now);
    }
}

/// `{"room","epoch","offset","recovered","publications":[{"offset","type","data"}]}`: `offset` is that of the last publication
/// in it, or where the room stands.
fn body(reading: &Reading) -> String {
    let Reading { read, epoch, offset, newest, is_whole, records } = reading;
    let room = serde_json::Value::from(plain_name(&read.room));
    let publications: Vec<String> = records.iter().map(publication).collect();
    let last = records.last().map_or(*offset, |record| record.offset);
    let epoch = if *epoch == 0 { String::new() } else { epoch_text(*epoch) };
    let start =
        json!({ "epoch": epoch, "offset": last, "newest": newest, "recovered": is_whole }).to_string();
    let publications = publications.join(",");
    format!("{{\"room\":{room},{},\"publications\":[{publications}]}}\n", &start[1..start.len() - 1])
}

/// As JSON a publication may be six times as long as it is: beyond this it is named and not shown, as in the JSON dialect.
const DATA_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 1024;

fn publication(record: &Recorded) -> String {
    let (kind, is_json) = said(record.label.as_deref(), record.frame.payload());
    let kind = serde_json::Value::from(&*kind);
    let is_too_long = dialect::data_bytes(record.frame.payload(), is_json) > DATA_BYTES_MAX;
    if is_too_long {
        return format!("{{\"offset\":{},\"type\":{kind},\"error\":\"too_long\"}}", record.offset);
    }
    let data = dialect::data(record.frame.payload(), is_json);
    let broken = if record.after_break { ",\"after_break\":true" } else { "" };
    format!("{{\"offset\":{},\"type\":{kind},\"data\":{data}{broken}}}", record.offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;

    #[test]
    fn what_would_be_far_longer_as_json_is_named_and_not_shown() {
        let shown = |payload: &[u8]| {
            let frame = Frame::data(payload).expect("it is short enough");
            let record = Recorded { offset: 7, after_break: false, frame, label: None };
            publication(&record)
        };
        let zeros = shown(&vec![0; PAYLOAD_BYTES_MAX / 4]);
        assert_eq!(zeros, r#"{"offset":7,"type":"message","error":"too_long"}"#);
        assert_eq!(shown(b"a\0"), r#"{"offset":7,"type":"message","data":"a\u0000"}"#);
        assert!(shown(&vec![b'a'; PAYLOAD_BYTES_MAX]).len() > PAYLOAD_BYTES_MAX);
    }
}
