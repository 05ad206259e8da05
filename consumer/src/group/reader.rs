//! The thread that reads: the group is joined, pages are asked for as the queue has room, entries become the consumer's.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use shards::redis::{EntryId, Reconnect};

use super::entry::{self, Content, DATA_FIELD, Entry};
use super::holdings::Read;
use super::{DeskState, Group, Phase, Shared, Ticket};
use crate::pool::{MessageError, OfferError, random};
use crate::redis::{Connection, RedisError, described};
use crate::throttle::{Throttle, Word};

/// The thread's own state.
pub(super) struct Reader<'s> {
    shared: &'s Shared,
    /// The newest entry that this member knows the group to have delivered.
    position: Option<EntryId>,
    /// `None` before the first attempt.
    was_up: Option<bool>,
    invalid: Throttle,
}

impl<'s> Reader<'s> {
    pub fn new(shared: &'s Shared) -> Self {
        Self { shared, position: None, was_up: None, invalid: Throttle::default() }
    }

    pub fn run(mut self) {
        let mut reconnect = Reconnect::new();
        while !self.is_stopping() {
            let began = Instant::now();
            let served = self.serve();
            self.shared.desk.lock().reader_client = None;
            self.invalid.rest().inspect(say_invalid);
            let Err(error) = served else { return };
            self.note_down(&error);
            reconnect.note_end(began, Instant::now());
            let wait = reconnect.next_wait(random());
            let state = self.shared.desk.lock();
            let is_reading = |state: &mut DeskState| state.phase == Phase::Reading;
            drop(self.shared.desk.due.wait_timeout_while(state, wait, is_reading));
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.desk.lock().phase != Phase::Reading
    }

    /// One connection, until it fails; `Ok` when the membership is to end.
    fn serve(&mut self) -> Result<(), RedisError> {
        let mut connection = Connection::open(&self.shared.target)?;
        self.join(&mut connection)?;
        loop {
            // Before the wait, which may be long, and only when there is something to say.
            self.invalid.due(Instant::now()).inspect(say_invalid);
            let Some(room) = self.shared.consumer.wait_for_room() else { return Ok(()) };
            let read = {
                let state = self.shared.desk.lock();
                if state.phase != Phase::Reading {
                    return Ok(());
                }
                state.holdings.next_read(room, Instant::now())
            };
            self.read(&mut connection, read)?;
        }
    }

    /// Makes the group where it isn't there. One that has gone since begins where this member knows it to have been, so that
    /// neither a Redis that came back empty nor a group that was removed costs an entry.
    fn join(&mut self, connection: &mut Connection) -> Result<(), RedisError> {
        let Group { stream, name, start, .. } = &self.shared.group;
        let start = self.position.map_or_else(|| start.to_string(), |position| position.to_string());
        let create: [&[u8]; 6] =
            [b"XGROUP", b"CREATE", stream.as_bytes(), name.as_bytes(), start.as_bytes(), b"MKSTREAM"];
        match connection.ask(&create) {
            Err(RedisError::Refused { text, .. }) if text.starts_with("BUSYGROUP") => {}
            created => drop(created?),
        }
        let groups = connection.ask(&[b"XINFO", b"GROUPS", stream.as_bytes()])?;
        self.position = self.position.max(entry::position_of(&groups, name));
        let client = connection.ask_number(&[b"CLIENT", b"ID"])?;
        let mut state = self.shared.desk.lock();
        state.reader_client = Some(client);
        state.holdings.begin(Instant::now());
        drop(state);
        self.note_up();
        Ok(())
    }

    fn read(&mut self, connection: &mut Connection, read: Read) -> Result<(), RedisError> {
        let Group { stream, name, consumer, claim_idle, .. } = &self.shared.group;
        let (stream, name, consumer) = (stream.as_bytes(), name.as_bytes(), consumer.as_bytes());
        let mut words: Vec<&[u8]> = Vec::new();
        let text = |number: u128| number.to_string().into_bytes();
        let (count, number, place);
        match read {
            Read::Own { after, count: own } => {
                (count, place) = (text(own as u128), after.to_string());
                words.extend([b"XREADGROUP".as_slice(), b"GROUP", name, consumer, b"COUNT", &count]);
                words.extend([b"STREAMS".as_slice(), stream, place.as_bytes()]);
            }
            Read::Claim { from, count: others } => {
                (count, number, place) =
                    (text(others as u128), text(claim_idle.as_millis()), from.to_string());
                words.extend([b"XAUTOCLAIM".as_slice(), stream, name, consumer, &number, place.as_bytes()]);
                words.extend([b"COUNT".as_slice(), &count]);
            }
            Read::New { count: new, block } => {
                // Zero would be for ever.
                (count, number) = (text(new as u128), text(block.as_millis().max(1)));
                words.extend([b"XREADGROUP".as_slice(), b"GROUP", name, consumer, b"COUNT", &count]);
                words.extend([b"BLOCK".as_slice(), &number, b"STREAMS", stream, b">"]);
            }
        }
        let Some(answer) = connection.ask_bounded(&words)? else {
            return self.read_too_long(connection, read);
        };
        let found = described(&answer);
        let page = match read {
            Read::Claim { .. } => entry::page_of_claim(answer),
            _ => entry::page_of_read(answer).map(|page| (EntryId::default(), page)),
        };
        let Some((next, page)) = page else {
            return Err(connection.unexpected(found, "a page of entries"));
        };
        let last = page.last().map(|entry| entry.id);
        let is_new = matches!(read, Read::New { .. });
        if is_new {
            self.position = self.position.max(last);
        }
        self.hand_over(connection, page, is_new)?;
        let mut state = self.shared.desk.lock();
        match read {
            Read::Own { .. } => state.holdings.read_own(last),
            Read::Claim { .. } => state.holdings.read_claimed(next, Instant::now()),
            Read::New { .. } => {}
        }
        Ok(())
    }

    /// An answer of more than 17 MiB came by and was not kept. One entry that is as long is no event: it is settled.
    fn read_too_long(&mut self, connection: &mut Connection, read: Read) -> Result<(), RedisError> {
        if let Read::Own { after, count: 1 } = read {
            let after_text = format!("({after}");
            let Group { stream, name, consumer, .. } = &self.shared.group;
            let question = [b"XPENDING".as_slice(), stream.as_bytes(), name.as_bytes()];
            let range = [after_text.as_bytes(), b"+", b"1", consumer.as_bytes()];
            let rows = connection.ask(&[&question[..], &range].concat())?;
            if let Some(&(id, _)) = entry::deliveries_of(&rows).as_deref().and_then(<[_]>::first) {
                self.shared.consumer.note_invalid();
                self.note_invalid(&format_args!("the entry {id} is longer than anything Redis may send us"));
                let mut state = self.shared.desk.lock();
                state.holdings.take(id);
                state.holdings.settle(id);
                state.holdings.read_own(Some(id));
                drop(state);
                self.shared.desk.due.notify_all();
                return Ok(());
            }
        }
        self.shared.desk.lock().holdings.read_too_long(read, Instant::now());
        Ok(())
    }

    fn hand_over(
        &mut self,
        connection: &mut Connection,
        page: Vec<Entry>,
        is_new: bool,
    ) -> Result<(), RedisError> {
        let taken: Vec<Entry> = {
            let mut state = self.shared.desk.lock();
            page.into_iter().filter(|entry| state.holdings.take(entry.id)).collect()
        };
        let deliveries = match (taken.first(), taken.last()) {
            (Some(first), Some(last)) if !is_new => self.deliveries(connection, first.id, last.id),
            _ => Ok(HashMap::new()),
        };
        // Taken is taken: what the count was asked for is settled or put down, whatever became of the question.
        let counted = deliveries.as_ref();
        for Entry { id, content } in taken {
            let ticket = Ticket { id, desk: Arc::clone(&self.shared.desk) };
            match (content, counted) {
                (Content::Gone, _) => {
                    self.shared.consumer.note_missing();
                    ticket.settle();
                }
                (_, Err(_)) => ticket.put_down(),
                (Content::Other, _) => {
                    self.shared.consumer.note_invalid();
                    self.note_invalid(&format_args!("the entry {id} has no field {DATA_FIELD:?}"));
                    ticket.settle();
                }
                (Content::Data(data), Ok(counts)) => {
                    let count = counts.get(&id).copied().unwrap_or(1);
                    self.offer(&data, ticket, is_new, count);
                }
            }
        }
        deliveries.map(drop)
    }

    /// How often the entries from `first` to `last` that are this member's have been delivered.
    fn deliveries(
        &self,
        connection: &mut Connection,
        first: EntryId,
        last: EntryId,
    ) -> Result<HashMap<EntryId, u64>, RedisError> {
        let Group { stream, name, consumer, .. } = &self.shared.group;
        let (first, last) = (first.to_string(), last.to_string());
        let question = [b"XPENDING".as_slice(), stream.as_bytes(), name.as_bytes()];
        let range = [first.as_bytes(), last.as_bytes(), ROWS, consumer.as_bytes()];
        let rows = connection.ask(&[&question[..], &range].concat())?;
        let rows = entry::deliveries_of(&rows);
        rows.map(|rows| rows.into_iter().collect()).ok_or_else(|| {
            connection
                .unexpected("something else".to_owned(), "rows of id, consumer, idle time and deliveries")
        })
    }

    fn offer(&mut self, data: &[u8], ticket: Ticket, is_new: bool, deliveries: u64) {
        let consumer = &self.shared.consumer;
        if !is_new {
            consumer.note_redelivered();
        }
        let offered = if deliveries > self.shared.group.deliveries_max {
            let reason =
                format!("delivered {deliveries} times without an end: its handler may end consumers");
            consumer.give_up(data, &ticket, reason)
        } else {
            consumer.offer_delivery(data, &ticket)
        };
        match offered {
            Ok(()) => {}
            Err(MessageError::Refused(OfferError::Stopped | OfferError::QueueFull { .. })) => {
                ticket.put_down();
            }
            Err(MessageError::Invalid(error)) => {
                self.note_invalid(&error);
                ticket.settle();
            }
            Err(MessageError::Refused(OfferError::UnknownType { kind, is_new })) => {
                // Once per name: what goes on is in the counters.
                if is_new {
                    tracing::warn!(
                        component = "member",
                        r#type = kind,
                        "no handler for this type of event: counted, not handled"
                    );
                }
                ticket.settle();
            }
        }
    }

    fn note_invalid(&mut self, error: &dyn fmt::Display) {
        self.invalid.note(error, Instant::now()).inspect(say_invalid);
    }

    fn note_up(&mut self) {
        self.shared.is_up.store(true, Ordering::Release);
        self.was_up = Some(true);
        let Group { name, consumer, .. } = &self.shared.group;
        tracing::info!(component = "member", group = name, consumer, "joined the consumer group");
    }

    fn note_down(&mut self, error: &RedisError) {
        self.shared.is_up.store(false, Ordering::Release);
        match self.was_up.replace(false) {
            None => {
                tracing::error!(component = "member", %error, "failed to join the consumer group: it is tried again")
            }
            Some(true) => {
                tracing::error!(component = "member", %error, "lost redis: what is appended waits in the stream");
            }
            Some(false) => tracing::debug!(component = "member", %error, "redis is still away"),
        }
    }
}

fn say_invalid(word: &Word) {
    tracing::warn!(component = "member", events = word.events, error = word.error, "invalid event");
}

/// Rows of delivery counts that are asked for: more than a page and a queue of the default length have.
const ROWS: &[u8] = b"1000";
