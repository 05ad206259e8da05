//! XREAD's answer, taken apart as it arrives: an entry at a time, nothing else held.
//!
//! In RESP3 it is a map of streams to their entries, in RESP2 an array of such pairs; each entry is its id and its fields.
//! An answer may be longer than any frame that is kept, so it never is one here: aggregates are opened, their values taken.

use std::rc::Rc;

use crate::redis::SessionError;
use crate::redis::entry::{EntryId, Fields};
use crate::resp::{Frame, Inbox, Opening, Protocol, Received, Value};

/// See the module. One for all answers of a connection.
#[derive(Debug, Default)]
pub(super) struct Answer {
    expect: Expect,
    /// Streams that it brings entries of.
    pub streams: u64,
    streams_left: u64,
    entries_left: u64,
    fields_left: u64,
    /// The stream whose entries come.
    pub stream: Rc<[u8]>,
    /// Of the entry that was last begun.
    pub id: EntryId,
    pub fields: Fields,
    /// The name of the field whose value comes.
    name: Vec<u8>,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Expect {
    #[default]
    Answer,
    /// RESP2: the pair of a stream and its entries.
    Pair,
    Stream,
    Entries,
    Entry,
    Id,
    Fields,
    Name,
    Value,
}

/// What a step came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are due.
    Starved,
    /// Something was taken that says nothing yet.
    On,
    /// An entry is complete.
    Entry,
    /// The answer is complete.
    Done,
    /// The answer is an error.
    Error(Vec<u8>),
}

impl Answer {
    /// Forgets what it was in the middle of.
    pub fn clear(&mut self) {
        (self.expect, self.streams_left, self.entries_left, self.fields_left) = (Expect::Answer, 0, 0, 0);
        self.streams = 0;
        self.fields.clear();
    }

    /// Takes the next part of it out of `inbox`.
    pub fn step(&mut self, inbox: &mut Inbox, protocol: Protocol) -> Result<Step, SessionError> {
        match self.expect {
            Expect::Answer => self.begin(inbox, protocol),
            Expect::Pair => self.open(inbox, |answer, values| {
                answer.expect = Expect::Stream;
                values == 2
            }),
            Expect::Entries => self.open(inbox, |answer, values| {
                answer.entries_left = values;
                answer.expect = Expect::Entry;
                true
            }),
            Expect::Entry if self.entries_left == 0 => self.next_stream(protocol),
            Expect::Entry => self.open(inbox, |answer, values| {
                answer.expect = Expect::Id;
                values == 2
            }),
            Expect::Fields => self.open_fields(inbox),
            Expect::Name if self.fields_left == 0 => {
                self.entries_left -= 1;
                self.expect = Expect::Entry;
                Ok(Step::Entry)
            }
            Expect::Stream | Expect::Id | Expect::Name | Expect::Value => self.take_text(inbox, protocol),
        }
    }

    fn begin(&mut self, inbox: &mut Inbox, protocol: Protocol) -> Result<Step, SessionError> {
        match inbox.take_opening()? {
            None => Ok(Step::Starved),
            Some(Opening::Aggregate { is_map, values }) if is_map == (protocol == Protocol::Resp3) => {
                (self.streams, self.streams_left) = (values, values);
                self.next_stream(protocol)
            }
            Some(Opening::Aggregate { values, .. }) => {
                Err(wrong(&format!("an aggregate of {values} values")))
            }
            Some(Opening::Other) => match inbox.take_frame()? {
                None => Ok(Step::Starved),
                Some(Received::TooBig { bytes }) => Err(wrong(&format!("{bytes} bytes"))),
                Some(Received::Frame(bytes)) => match Frame::decode(protocol, bytes)?.value() {
                    Value::Null => Ok(Step::Done),
                    Value::Push(_) => Ok(Step::On),
                    Value::Error(text) => Ok(Step::Error(text.to_vec())),
                    other => Err(wrong(&other.describe())),
                },
            },
        }
    }

    fn next_stream(&mut self, protocol: Protocol) -> Result<Step, SessionError> {
        let Some(left) = self.streams_left.checked_sub(1) else {
            self.expect = Expect::Answer;
            return Ok(Step::Done);
        };
        self.streams_left = left;
        self.expect = if protocol == Protocol::Resp2 { Expect::Pair } else { Expect::Stream };
        Ok(Step::On)
    }

    /// An aggregate of values for which `fits` says that they are as many as they should be.
    fn open(
        &mut self,
        inbox: &mut Inbox,
        fits: impl FnOnce(&mut Self, u64) -> bool,
    ) -> Result<Step, SessionError> {
        match inbox.take_opening()? {
            None => Ok(Step::Starved),
            Some(Opening::Aggregate { is_map: false, values }) if fits(self, values) => Ok(Step::On),
            found => Err(wrong(&format!("{found:?}"))),
        }
    }

    fn open_fields(&mut self, inbox: &mut Inbox) -> Result<Step, SessionError> {
        self.fields.clear();
        self.open(inbox, |answer, values| {
            answer.fields_left = values;
            answer.expect = Expect::Name;
            values % 2 == 0
        })
    }

    fn take_text(&mut self, inbox: &mut Inbox, protocol: Protocol) -> Result<Step, SessionError> {
        let bytes = match inbox.take_frame()? {
            None => return Ok(Step::Starved),
            Some(Received::Frame(bytes)) => bytes,
            // Only a field's value can be that long; a name that is would be one too many to keep.
            Some(Received::TooBig { bytes }) if self.expect != Expect::Value => {
                return Err(wrong(&format!("{bytes} bytes")));
            }
            Some(Received::TooBig { .. }) => {
                self.fields.push_too_long(&self.name);
                return Ok(self.end_value());
            }
        };
        let frame = Frame::decode(protocol, bytes)?;
        let Value::Text(text) = frame.value() else { return Err(wrong(&frame.value().describe())) };
        match self.expect {
            Expect::Stream => {
                if *self.stream != *text {
                    self.stream = text.into();
                }
                self.expect = Expect::Entries;
            }
            Expect::Id => {
                self.id = EntryId::parse(text).ok_or_else(|| wrong(&frame.value().describe()))?;
                self.expect = Expect::Fields;
            }
            Expect::Name => {
                self.name.clear();
                self.name.extend_from_slice(text);
                self.expect = Expect::Value;
            }
            _ => {
                self.fields.push(&self.name, text);
                return Ok(self.end_value());
            }
        }
        Ok(Step::On)
    }

    fn end_value(&mut self) -> Step {
        self.fields_left -= 2;
        self.expect = Expect::Name;
        Step::On
    }
}

fn wrong(found: &str) -> SessionError {
    SessionError::WrongReply {
        what: "XREAD".into(),
        found: crate::resp::excerpt(found.as_bytes()),
        expected: "streams with their entries",
    }
}
