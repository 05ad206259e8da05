//! The connection that reads streams: which are followed, how far each has been read, and their entries.
//!
//! It outlives connections: what is followed stays, each stream with the id of the last entry that was handed out, and a new
//! connection goes on behind it. So a break loses nothing that Redis still has.
//!
//! One XREAD with BLOCK for all streams is outstanding at any time. A blocked connection takes no other command, so a stream
//! that is to be followed from now on would wait for the block's end: the commander ends the block with CLIENT UNBLOCK
//! ([`Reader::take_unblock`]). That is preferred to a service stream that would be read along and appended to (a key of ours
//! in everybody's Redis, and the right to write), and to short blocks (a command for nothing every few milliseconds). Where
//! the right is missing, or the word comes too early, the block's own end ([`READ_BLOCK`]) does it later. A stream that is
//! not followed any more is ignored until then.
//!
//! The answer is at the same time the proof of life: one is due each [`READ_BLOCK`].

mod answer;

use std::rc::Rc;
use std::time::Instant;

use foldhash::{HashMap, HashMapExt};

use super::handshake::Handshake;
use super::{EntryId, Outbox, SessionError};
use crate::config::RedisTarget;
use crate::limits::{READ_BLOCK, READ_ENTRIES_MAX, READ_STREAM_ENTRIES_MAX, READ_TIMEOUT, UNBLOCK_INTERVAL};
use crate::resp::{Frame, Inbox, Received, Value, excerpt};
use answer::{Answer, Step};

/// The reading session. One per link to Redis, for its whole life.
#[derive(Debug)]
pub struct Reader {
    handshake: Handshake,
    out: Outbox,
    user: String,
    streams: HashMap<Rc<[u8]>, Followed>,
    answer: Answer,
    /// Redis' number for this connection.
    client: Option<u64>,
    asked: Option<Asked>,
    /// Streams that are asked for alone, because one of them made Redis refuse all.
    suspects: Vec<Rc<[u8]>>,
    unblocked_at: Option<Instant>,
    /// Streams that the last answer brought entries of; `None` before the first of a connection, when all may have many.
    busy: Option<usize>,
    counters: ReaderCounters,
}

/// What a reader has met with. Counted from the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReaderCounters {
    /// Entries handed out.
    pub entries: u64,
    /// Those of them that were too long to be.
    pub too_big: u64,
}

/// What came. Texts are borrowed from the session until its next call.
#[derive(Debug, PartialEq, Eq)]
pub enum ReaderEvent<'r> {
    /// An entry behind the last one of its stream.
    Entry {
        /// The stream's key.
        stream: &'r [u8],
        /// The entry's id.
        id: EntryId,
        /// What it is as a publication; `None` where that is too long.
        payload: Option<&'r [u8]>,
    },
    /// All that Redis had when it answered has been handed out.
    Answered,
    /// Redis doesn't let us read this stream. It isn't followed any more.
    Refused {
        /// The stream's key.
        stream: Rc<[u8]>,
        /// Found, and what to do.
        reason: SessionError,
    },
}

#[derive(Debug)]
struct Followed {
    /// Id of the last entry that was handed out, or where its reader began.
    last: EntryId,
    /// The outstanding XREAD has it.
    is_asked: bool,
}

/// An outstanding request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    ClientId { since: Instant },
    Read { since: Instant, is_suspect: bool },
}

impl Reader {
    /// A session that isn't connected yet.
    pub fn new(target: &RedisTarget) -> Self {
        Self {
            handshake: Handshake::new(target, target.database),
            out: Outbox::default(),
            user: target.username.clone().unwrap_or_else(|| "default".into()),
            streams: HashMap::new(),
            answer: Answer::default(),
            client: None,
            asked: None,
            suspects: Vec::new(),
            unblocked_at: None,
            busy: None,
            counters: ReaderCounters::default(),
        }
    }

    /// Begins on a fresh connection: the handshake, then all that is followed, from where each had come.
    pub fn begin(&mut self) {
        self.end();
        self.handshake.begin(&mut self.out);
    }

    /// Forgets the connection; what is followed stays.
    pub fn end(&mut self) {
        self.handshake.reset();
        self.out.clear();
        self.answer.clear();
        (self.client, self.asked, self.unblocked_at, self.busy) = (None, None, None, None);
        self.suspects.clear();
        self.streams.values_mut().for_each(|followed| followed.is_asked = false);
    }

    /// Follows a stream from behind the entry `last`. One that is followed already goes on from there.
    pub fn follow(&mut self, stream: &[u8], last: EntryId) {
        match self.streams.get_mut(stream) {
            // An answer that is under way began elsewhere: it is asked for anew.
            Some(followed) if followed.last != last => *followed = Followed { last, is_asked: false },
            Some(_) => {}
            None => drop(self.streams.insert(stream.into(), Followed { last, is_asked: false })),
        }
    }

    /// Doesn't follow a stream any more.
    pub fn unfollow(&mut self, stream: &[u8]) {
        self.streams.remove(stream);
    }

    /// Id of the last entry of a stream that was handed out, if it is followed.
    pub fn position(&self, stream: &[u8]) -> Option<EntryId> {
        self.streams.get(stream).map(|followed| followed.last)
    }

    /// Streams that are followed.
    pub fn streams_len(&self) -> usize {
        self.streams.len()
    }

    /// What was met with so far.
    pub fn counters(&self) -> ReaderCounters {
        self.counters
    }

    /// Whether it reads, or has nothing to read.
    pub fn is_ready(&self) -> bool {
        self.client.is_some()
    }

    /// What is to be written now; empty when nothing is.
    pub fn take_output(&mut self) -> bytes::BytesMut {
        self.out.take()
    }

    /// Asks for what is due.
    ///
    /// # Errors
    /// [`SessionError::ReadLate`] when Redis has not answered in time.
    pub fn poll(&mut self, now: Instant) -> Result<(), SessionError> {
        match self.asked {
            Some(Asked::ClientId { since } | Asked::Read { since, .. }) => {
                let late = now.saturating_duration_since(since);
                if late >= READ_BLOCK + READ_TIMEOUT { Err(SessionError::ReadLate { late }) } else { Ok(()) }
            }
            None if !self.handshake.is_done() => Ok(()),
            None if self.client.is_none() => {
                self.out.push(&[b"CLIENT", b"ID"]);
                self.asked = Some(Asked::ClientId { since: now });
                Ok(())
            }
            None => {
                self.read(now);
                Ok(())
            }
        }
    }

    /// When [`poll`](Self::poll) has something to find late.
    pub fn next_deadline(&self) -> Option<Instant> {
        let (Asked::ClientId { since } | Asked::Read { since, .. }) = self.asked?;
        Some(since + READ_BLOCK + READ_TIMEOUT)
    }

    /// Redis' number of this connection, if it is to be told CLIENT UNBLOCK now: it waits, and there is a stream that it
    /// doesn't wait for. Again after [`UNBLOCK_INTERVAL`], as long as that is so.
    pub fn take_unblock(&mut self, now: Instant) -> Option<u64> {
        let client = self.client?;
        let Some(Asked::Read { is_suspect: false, .. }) = self.asked else { return None };
        // What has not been written yet can't be waiting.
        if !self.out.buffer.is_empty() {
            return None;
        }
        let is_due = self.unblocked_at.is_none_or(|at| now.saturating_duration_since(at) >= UNBLOCK_INTERVAL);
        if !is_due || self.streams.values().all(|followed| followed.is_asked) {
            return None;
        }
        self.unblocked_at = Some(now);
        Some(client)
    }

    /// When [`take_unblock`](Self::take_unblock) may have to be asked again.
    pub fn unblock_deadline(&self) -> Option<Instant> {
        let Some(Asked::Read { is_suspect: false, .. }) = self.asked else { return None };
        let is_due = self.streams.values().any(|followed| !followed.is_asked);
        self.unblocked_at.filter(|_| is_due).map(|at| at + UNBLOCK_INTERVAL)
    }

    /// XREAD of all that is followed, or of one suspect.
    fn read(&mut self, now: Instant) {
        while let Some(suspect) = self.suspects.pop() {
            let Some(followed) = self.streams.get_mut(&suspect) else { continue };
            followed.is_asked = true;
            let last = followed.last.to_string();
            // No BLOCK: it is only asked whether it may be read.
            self.out.push(&[b"XREAD", b"COUNT", b"1", b"STREAMS", &suspect, last.as_bytes()]);
            self.asked = Some(Asked::Read { since: now, is_suspect: true });
            self.suspects.push(suspect);
            return;
        }
        if self.streams.is_empty() {
            return;
        }
        self.streams.values_mut().for_each(|followed| followed.is_asked = true);
        // Of all streams together about a bounded number, of each at least one. Who has nothing now has little in a moment.
        let busy = self.busy.unwrap_or(self.streams.len()).max(1);
        let count = (READ_ENTRIES_MAX / busy).clamp(1, READ_STREAM_ENTRIES_MAX).to_string();
        let block = READ_BLOCK.as_millis().to_string();
        let lasts: Vec<String> = self.streams.values().map(|followed| followed.last.to_string()).collect();
        let words: [&[u8]; 6] =
            [b"XREAD", b"COUNT", count.as_bytes(), b"BLOCK", block.as_bytes(), b"STREAMS"];
        let streams = self.streams.keys().map(|stream| &**stream);
        self.out.push_long(words.into_iter().chain(streams).chain(lasts.iter().map(String::as_bytes)));
        self.asked = Some(Asked::Read { since: now, is_suspect: false });
        self.unblocked_at = None;
    }

    /// The next thing that came; `None` when more bytes are due.
    ///
    /// # Errors
    /// The connection is of no use any more, see [`SessionError`].
    pub fn take_event(
        &mut self,
        inbox: &mut Inbox,
        now: Instant,
    ) -> Result<Option<ReaderEvent<'_>>, SessionError> {
        while !matches!(self.asked, Some(Asked::Read { .. })) {
            if !self.take_frame(inbox, now)? {
                return Ok(None);
            }
        }
        loop {
            match self.answer.step(inbox, self.handshake.protocol())? {
                Step::Starved => return Ok(None),
                Step::On => self.note_life(now),
                Step::Entry if self.advance() => return Ok(Some(self.entry())),
                Step::Entry => {}
                Step::Done => {
                    self.end_read(now);
                    return Ok(Some(ReaderEvent::Answered));
                }
                Step::Error(text) => match self.handle_error(&text, now)? {
                    Some(event) => return Ok(Some(event)),
                    None => return Ok(None),
                },
            }
        }
    }

    /// A frame of the handshake; false when more bytes are due.
    fn take_frame(&mut self, inbox: &mut Inbox, now: Instant) -> Result<bool, SessionError> {
        let bytes = match inbox.take_frame()? {
            None => return Ok(false),
            Some(Received::Frame(bytes)) => bytes,
            Some(Received::TooBig { bytes }) => {
                return Err(SessionError::Unasked(format!("a reply of {bytes} bytes")));
            }
        };
        let frame = Frame::decode(self.handshake.protocol(), bytes)?;
        match (frame.value(), self.asked) {
            (Value::Push(_), _) => {}
            (_, _) if !self.handshake.is_done() => self.handshake.handle(&frame, &mut self.out)?,
            (value, Some(Asked::ClientId { .. })) => {
                // Without a number nobody can be told to unblock it, and blocks end by themselves.
                let number =
                    if let Value::Integer(client) = value { u64::try_from(client).ok() } else { None };
                self.client = Some(number.unwrap_or_default());
                self.asked = None;
            }
            (value, _) => return Err(SessionError::Unasked(value.describe())),
        }
        self.poll(now)?;
        Ok(true)
    }

    /// The deadline of a long answer counts from its last sign of life.
    fn note_life(&mut self, now: Instant) {
        if let Some(Asked::Read { since, .. }) = &mut self.asked {
            *since = now;
        }
    }

    /// Moves the stream's place behind the entry that is complete; false where nobody wants it (any more).
    fn advance(&mut self) -> bool {
        let Some(followed) = self.streams.get_mut(&self.answer.stream) else { return false };
        if !followed.is_asked || self.answer.id <= followed.last {
            return false;
        }
        followed.last = self.answer.id;
        true
    }

    fn entry(&mut self) -> ReaderEvent<'_> {
        self.counters.entries += 1;
        self.counters.too_big += u64::from(self.answer.fields.payload().is_none());
        self.last_entry()
    }

    /// The entry that [`take_event`](Self::take_event) has just told, once more.
    pub(super) fn last_entry(&mut self) -> ReaderEvent<'_> {
        let Answer { stream, id, fields, .. } = &mut self.answer;
        ReaderEvent::Entry { stream, id: *id, payload: fields.payload() }
    }

    fn end_read(&mut self, now: Instant) {
        match self.asked {
            Some(Asked::Read { is_suspect: true, .. }) => drop(self.suspects.pop()),
            _ => self.busy = Some(self.answer.streams as usize),
        }
        self.asked = None;
        self.answer.clear();
        self.read(now);
    }

    /// Redis names no stream in what it says against one: then each is asked for alone, and who is refused is found.
    fn handle_error(
        &mut self,
        text: &[u8],
        now: Instant,
    ) -> Result<Option<ReaderEvent<'static>>, SessionError> {
        let Some(Asked::Read { is_suspect, .. }) = self.asked else {
            return Err(SessionError::Unasked(Value::Error(text).describe()));
        };
        let suspect = if is_suspect { self.suspects.last().cloned() } else { None };
        let what = match &suspect {
            Some(stream) => format!("XREAD {}", excerpt(stream)),
            None => "XREAD".to_owned(),
        };
        let rule = match &suspect {
            Some(stream) => format!("'~{}' +xread", excerpt(stream)),
            None => "+xread".to_owned(),
        };
        let reason = SessionError::from_reply(&what, text, &self.user, &rule);
        if !matches!(
            reason,
            SessionError::NotPermitted { .. } | SessionError::Rejected { .. } | SessionError::Moved { .. }
        ) {
            return Err(reason);
        }
        let refused = match suspect {
            Some(stream) => {
                self.streams.remove(&stream);
                Some(stream)
            }
            None => {
                self.suspects = self.streams.keys().cloned().collect();
                None
            }
        };
        self.end_read(now);
        Ok(refused.map(|stream| ReaderEvent::Refused { stream, reason }))
    }
}

#[cfg(test)]
mod tests;
