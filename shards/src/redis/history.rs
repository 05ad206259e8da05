//! What a client lacks, out of its stream: read backwards from where this node has come, and proved to be whole.
//!
//! The entries wanted are those with the numbers after the client's up to the head's. Numbers stand on no entry, so they are
//! counted backwards from the head: XREVRANGE gives as many entries as there are numbers, or those before were trimmed; and an
//! anchor *afterwards* says whether any was deleted from among them, which would make all counts before it wrong. What is
//! given is what is certain: the newest without a hole, as far back as there is something, and why it goes no further.

use super::SessionError;
use super::anchor::{Anchor, Position};
use super::entry::{EntryId, Fields};
use crate::limits::{HISTORY_PAGE_ENTRIES_MAX, STREAM_HISTORY_BYTES_MAX, STREAM_HISTORY_ENTRIES_MAX};
use crate::resp::{Node, Value};

/// One reading backwards.
#[derive(Debug)]
pub struct History {
    /// The newest that is wanted.
    head: Position,
    /// Entries that are still to be read.
    left: u64,
    /// The oldest that has been read.
    oldest: Option<EntryId>,
    /// Newest first.
    payloads: Vec<Box<[u8]>>,
    bytes: usize,
    bytes_max: usize,
    /// Entries of a page, as long as none was too long.
    page_entries_max: u64,
    /// Why it goes no further back than what has been read.
    lacks: Option<HistoryError>,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// The last payload's number, and the run of the numbers; the others count back from it.
    pub head: Position,
    /// Oldest first.
    pub payloads: Vec<Box<[u8]>>,
    /// Why these are fewer than were wanted.
    pub lacks: Option<HistoryError>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum HistoryStep {
    /// Ask for this many entries, newest first, up to this end.
    Page {
        /// `ID`, or `(ID` for what comes before it.
        end: String,
        /// How many.
        count: u64,
    },
    /// Ask for an anchor, and [`History::finish`] with it.
    Anchor,
}

/// Why what is wanted can't be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// The stream has no such number yet: the client's is of another stream.
    #[error("the offset is beyond the stream's end")]
    Beyond,
    /// More than is read for one client.
    #[error("more is missing than one client is given")]
    TooMuch,
    /// It has been trimmed.
    #[error("the stream doesn't hold all of it any more")]
    Trimmed,
    /// Entries among them were deleted.
    #[error("entries in it were deleted")]
    Deleted,
    /// Redis is away.
    #[error("redis is away")]
    Away,
    /// Redis doesn't let us read it.
    #[error("redis refused to read the stream")]
    Refused,
    /// The stream has been made anew or set back meanwhile.
    #[error("the stream is another")]
    Broken,
}

impl History {
    /// What comes after the number `after`, up to `head`.
    ///
    /// # Errors
    /// [`HistoryError`], where the numbers alone say that it can't be given.
    pub fn new(after: u64, head: Position, entries_max: u64, bytes_max: usize) -> Result<Self, HistoryError> {
        let left = head.number.checked_sub(after).ok_or(HistoryError::Beyond)?;
        if left > entries_max.min(STREAM_HISTORY_ENTRIES_MAX) {
            return Err(HistoryError::TooMuch);
        }
        let bytes_max = bytes_max.min(STREAM_HISTORY_BYTES_MAX);
        let page_entries_max = HISTORY_PAGE_ENTRIES_MAX;
        let (oldest, payloads) = (None, Vec::new());
        Ok(Self { head, left, oldest, payloads, bytes: 0, bytes_max, page_entries_max, lacks: None })
    }

    /// What to ask next.
    pub fn step(&self) -> HistoryStep {
        if self.left == 0 {
            return HistoryStep::Anchor;
        }
        let end = self.oldest.map_or_else(|| self.head.id.to_string(), |oldest| format!("({oldest}"));
        HistoryStep::Page { end, count: self.left.min(self.page_entries_max) }
    }

    /// Takes a page.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn take_page(&mut self, page: Node<'_, '_>) -> Result<(), SessionError> {
        let Value::Array(found) = page.value() else { return Err(wrong(page.value())) };
        let HistoryStep::Page { count, .. } = self.step() else { return Err(wrong(page.value())) };
        if found as u64 > count {
            return Err(wrong(page.value()));
        }
        let mut fields = Fields::default();
        for entry in page.items() {
            let id = entry.item(0).and_then(|id| EntryId::parse(id.text()?));
            let (Some(id), Some(names)) = (id, entry.item(1)) else { return Err(wrong(entry.value())) };
            if id > self.oldest.unwrap_or(self.head.id) || self.oldest == Some(id) {
                return Err(wrong(entry.value()));
            }
            fields.clear();
            let mut texts = names.items().map(|text| text.text());
            while let (Some(Some(name)), Some(Some(value))) = (texts.next(), texts.next()) {
                fields.push(name, value);
            }
            let payload = fields.payload().filter(|payload| self.bytes + payload.len() <= self.bytes_max);
            let Some(payload) = payload else {
                self.stop(HistoryError::TooMuch);
                return Ok(());
            };
            self.bytes += payload.len();
            self.payloads.push(payload.into());
            self.oldest = Some(id);
            self.left -= 1;
        }
        if (found as u64) < count {
            self.stop(HistoryError::Trimmed);
        }
        Ok(())
    }

    /// The page was longer than anything that is taken: a shorter one is asked for, as long as there is one.
    pub fn shorten_page(&mut self) {
        match self.left.min(self.page_entries_max) {
            0 | 1 => self.stop(HistoryError::TooMuch),
            count => self.page_entries_max = (count / 8).max(1),
        }
    }

    /// Goes no further back.
    pub fn stop(&mut self, lacks: HistoryError) {
        (self.left, self.lacks) = (0, Some(lacks));
    }

    /// What was read, the last of it with the head's number; an anchor that was taken after the last page proves it.
    ///
    /// # Errors
    /// [`HistoryError`]; nothing of it is certain.
    pub fn finish(self, anchor: &Anchor) -> Result<Past, HistoryError> {
        assert_eq!(self.left, 0, "a history is finished that lacks {} entries", self.left);
        if anchor.epoch != self.head.epoch {
            return Err(HistoryError::Broken);
        }
        if !self.fits(anchor) {
            return Err(HistoryError::Deleted);
        }
        // An entry deleted behind the head changes nothing; but only the newest deletion is known.
        match self.oldest {
            Some(oldest) if anchor.deleted > oldest => Err(HistoryError::Deleted),
            _ => {
                let payloads = self.payloads.into_iter().rev().collect();
                Ok(Past { head: self.head, payloads, lacks: self.lacks })
            }
        }
    }

    /// Whether its numbers are those of Redis, where the anchor can tell: a reader may have counted too few.
    fn fits(&self, anchor: &Anchor) -> bool {
        let before = self.head.number - self.payloads.len() as u64;
        let is_same_end = self.head.id != anchor.last || self.head.number == anchor.added;
        let is_at_start = anchor.length > 0 && self.oldest == Some(anchor.first);
        let start = anchor.start().filter(|_| is_at_start);
        is_same_end && start.is_none_or(|start| start.number == before)
    }
}

fn wrong(found: Value<'_>) -> SessionError {
    SessionError::WrongReply { what: "XREVRANGE".into(), found: found.describe(), expected: "entries" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Frame, Protocol};

    fn id(millis: u64) -> EntryId {
        EntryId { millis, sequence: 0 }
    }

    fn head() -> Position {
        Position { epoch: 1, number: 200, id: id(200) }
    }

    fn anchor(deleted: u64) -> Anchor {
        Anchor { epoch: 1, added: 250, length: 250, first: id(1), last: id(250), deleted: id(deleted) }
    }

    /// A page of these entries, each with its number as payload.
    fn page(ids: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator) -> String {
        let mut text = format!("*{}\r\n", ids.len());
        for millis in ids.rev() {
            let (id, payload) = (id(millis).to_string(), millis.to_string());
            let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
            text += &format!("*2\r\n{}*2\r\n{}{}", bulk(&id), bulk("data"), bulk(&payload));
        }
        text
    }

    fn take(history: &mut History, page: &str) -> Result<(), SessionError> {
        let frame = Frame::decode(Protocol::Resp3, page.as_bytes()).expect("a frame");
        history.take_page(frame.node())
    }

    fn numbers(past: &Past) -> Vec<u64> {
        let number = |payload: &[u8]| std::str::from_utf8(payload).expect("text").parse().expect("a number");
        past.payloads.iter().map(|payload| number(payload)).collect()
    }

    fn history(after: u64) -> History {
        History::new(after, head(), u64::MAX, usize::MAX).expect("it can be given")
    }

    #[test]
    fn pages_are_read_backwards_and_given_forwards() {
        let count = HISTORY_PAGE_ENTRIES_MAX + 10;
        let mut history = history(200 - count);
        let first = HistoryStep::Page { end: "200-0".into(), count: HISTORY_PAGE_ENTRIES_MAX };
        assert_eq!(history.step(), first);
        let end = 200 - HISTORY_PAGE_ENTRIES_MAX;
        assert_eq!(take(&mut history, &page((end as u32 + 1..201).map(u64::from))), Ok(()));
        assert_eq!(history.step(), HistoryStep::Page { end: format!("({}-0", end + 1), count: 10 });
        assert_eq!(take(&mut history, &page((end as u32 - 9..end as u32 + 1).map(u64::from))), Ok(()));
        assert_eq!(history.step(), HistoryStep::Anchor);
        let past = history.finish(&anchor(0)).expect("it is whole");
        assert_eq!((numbers(&past), past.lacks), ((200 - count + 1..=200).collect(), None));
    }

    #[test]
    fn who_lacks_nothing_is_given_nothing() {
        let history = history(200);
        assert_eq!(history.step(), HistoryStep::Anchor);
        assert_eq!(
            history.finish(&anchor(999)),
            Ok(Past { head: head(), payloads: Vec::new(), lacks: None })
        );
    }

    #[test]
    fn as_much_is_given_as_there_is() {
        let mut trimmed = history(190);
        assert_eq!(take(&mut trimmed, &page((192..201_u32).map(u64::from))), Ok(()));
        let past = trimmed.finish(&anchor(0)).expect("what is there is certain");
        assert_eq!((numbers(&past), past.lacks), ((192..=200).collect(), Some(HistoryError::Trimmed)));
        let mut long = History::new(190, head(), 10, 20).expect("ten may be given");
        assert_eq!(take(&mut long, &page((191..201_u32).map(u64::from))), Ok(()));
        let past = long.finish(&anchor(0)).expect("what is there is certain");
        assert_eq!((numbers(&past), past.lacks), ((195..=200).collect(), Some(HistoryError::TooMuch)));
    }

    #[test]
    fn a_page_that_is_too_long_is_asked_for_in_shorter_ones() {
        let mut history = history(180);
        let count = |history: &History| match history.step() {
            HistoryStep::Page { count, .. } => count,
            HistoryStep::Anchor => 0,
        };
        assert_eq!(count(&history), 20);
        history.shorten_page();
        assert_eq!(count(&history), 2);
        assert_eq!(take(&mut history, &page((199..201_u32).map(u64::from))), Ok(()));
        history.shorten_page();
        assert_eq!(count(&history), 1);
        assert_eq!(take(&mut history, &page((198..199_u32).map(u64::from))), Ok(()));
        history.shorten_page();
        let past = history.finish(&anchor(0)).expect("what was read is certain");
        assert_eq!((numbers(&past), past.lacks), (vec![198, 199, 200], Some(HistoryError::TooMuch)));
    }

    #[test]
    fn what_is_not_certain_is_not_given() {
        assert_eq!(History::new(201, head(), 10, 10).err(), Some(HistoryError::Beyond));
        assert_eq!(History::new(189, head(), 10, 10).err(), Some(HistoryError::TooMuch));
        let whole = || {
            let mut history = history(190);
            assert_eq!(take(&mut history, &page((191..201_u32).map(u64::from))), Ok(()));
            history
        };
        assert_eq!(whole().finish(&anchor(195)), Err(HistoryError::Deleted));
        assert!(whole().finish(&anchor(190)).is_ok(), "a deletion before the first says nothing");
        let trimmed = Anchor { first: id(191), length: 59, ..anchor(0) };
        assert_eq!(whole().finish(&trimmed), Err(HistoryError::Deleted), "the first is another number there");
        let fits = Anchor { length: 60, ..trimmed };
        assert!(whole().finish(&fits).is_ok());
        let end = Anchor { added: 201, last: id(200), ..anchor(0) };
        assert_eq!(whole().finish(&end), Err(HistoryError::Deleted), "the newest is another number there");
        let other = Anchor { epoch: 2, ..anchor(0) };
        assert_eq!(whole().finish(&other), Err(HistoryError::Broken));
    }

    #[test]
    fn nonsense_ends_the_session() {
        for nonsense in [":1\r\n", "*1\r\n:1\r\n", "*1\r\n*2\r\n$5\r\n999-0\r\n*0\r\n"] {
            assert!(take(&mut history(199), nonsense).is_err(), "{nonsense}");
        }
        let two = page((199..201_u32).map(u64::from));
        assert!(take(&mut history(199), &two).is_err(), "more than was asked for");
    }
}
