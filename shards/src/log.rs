//! The log of record of one room: its last publications, in order of their offsets.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::command::{ConnectionId, Label};
use crate::frame::Frame;

/// One publication in a log.
#[derive(Debug, Clone)]
pub struct Record {
    /// What goes out.
    pub frame: Frame,
    /// Microseconds after the start of the process.
    pub arrived_micros: u64,
    /// Who does not get it.
    pub except: Option<ConnectionId>,
    /// What dialects with an envelope say beside it.
    pub label: Option<Arc<Label>>,
    /// The run of the room's source that it belongs to.
    pub run: u16,
}

/// See the module. The offset of the newest record is one less than the room's next offset.
#[derive(Debug, Default)]
pub struct Log {
    records: VecDeque<Record>,
    bytes: usize,
    next: u64,
}

impl Log {
    /// An empty log whose first record will have the offset `next`.
    pub fn starting_at(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// Offset of the oldest record that is kept; that of the next one when there is none.
    pub fn first(&self) -> u64 {
        self.next - self.records.len() as u64
    }

    /// Records kept.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of the frames kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a record; returns its offset.
    pub fn push(&mut self, record: Record) -> u64 {
        self.bytes += record.frame.len();
        self.records.push_back(record);
        self.next += 1;
        self.next - 1
    }

    /// Puts a record in front of the oldest; its offset is one less than that one's.
    pub fn push_front(&mut self, record: Record) {
        debug_assert!(self.first() > 1, "a record before the first of its room");
        self.bytes += record.frame.len();
        self.records.push_front(record);
    }

    /// The record at `offset`.
    pub fn at(&self, offset: u64) -> Option<&Record> {
        let index = offset.checked_sub(self.first())?;
        self.records.get(index as usize)
    }

    /// The oldest record.
    pub fn oldest(&self) -> Option<&Record> {
        self.records.front()
    }

    /// Forgets the oldest record. Returns its bytes.
    pub fn pop(&mut self) -> usize {
        let bytes = self.records.pop_front().map_or(0, |record| record.frame.len());
        self.bytes -= bytes;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_stay_what_they_were_when_the_oldest_go() {
        let mut log = Log::starting_at(5);
        for payload in [b"a", b"b", b"c"] {
            let frame = Frame::text(payload).expect("one byte");
            log.push(Record { frame, arrived_micros: 0, except: None, label: None, run: 0 });
        }
        assert_eq!((log.first(), log.pop(), log.first(), log.bytes()), (5, 3, 6, 6));
        assert!(log.at(5).is_none() && log.at(8).is_none());
        assert_eq!(log.at(7).map(|r| r.frame.payload()), Some(b"c".as_slice()));
    }
}
