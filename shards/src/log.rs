//! The log of record of one room: its last publications, in order of their offsets.
//!
//! It is kept in pages, which whoever reads the past shares: an answer costs a reference for each page, however many
//! publications are in it, and a thousand readers of one past hold it once. A page never changes while somebody reads it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::command::{ConnectionId, Label, Recorded};
use crate::frame::Frame;

/// One publication in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Bytes of a publication in a log beside its frame: its record, and the header of the frame's shared buffer.
pub const RECORD_BYTES: usize = size_of::<Record>() + 32;

/// Publications of a page at most. A log of 100,000 is 390 pages, and what a reader of all of it is answered 390 references.
const PAGE_RECORDS_MAX: usize = 256;
/// A small log has small pages, so that what leaves it is freed: a quarter of its publications, and these at least.
const PAGE_RECORDS_MIN: usize = 4;
/// A page with so many bytes takes no more: what a reader pins beside what it wants is this and one frame at most.
const PAGE_BYTES_MAX: usize = 64 * 1024;
/// A page that is being read goes on as a copy while it is smaller than this, so that readers who come between publications
/// don't make each publication a page. 16 references are copied in 0.3 us.
const PAGE_COPIED_RECORDS_MAX: usize = 16;
/// See [`PAGE_COPIED_RECORDS_MAX`].
const PAGE_COPIED_BYTES_MAX: usize = 4 * 1024;

/// Publications that follow each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Offset of its first record.
    first: u64,
    records: Vec<Record>,
    /// Bytes of the frames in it.
    frames_bytes: usize,
    /// Its first record is the first after a break of the broker.
    begins_after_break: bool,
}

impl Page {
    /// Bytes that it holds, frames and bookkeeping.
    pub fn bytes(&self) -> u64 {
        (self.frames_bytes + self.records.len() * RECORD_BYTES) as u64
    }

    /// Number of the publication at `at`.
    pub fn offset(&self, at: u32) -> u64 {
        self.first + u64::from(at)
    }

    /// The publication at `at`, and whether it is the first after a break of the broker.
    pub fn at(&self, at: u32) -> Option<(&Record, bool)> {
        let record = self.records.get(at as usize)?;
        let after_break = match at.checked_sub(1).and_then(|before| self.records.get(before as usize)) {
            Some(before) => before.run != record.run,
            None => self.begins_after_break,
        };
        Some((record, after_break))
    }

    fn push(&mut self, record: Record) {
        self.frames_bytes += record.frame.len();
        self.records.push(record);
    }
}

/// The publications `from..to` of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Shared with the log and its other readers.
    pub page: Arc<Page>,
    /// Place of the first in the page.
    pub from: u32,
    /// Place behind the last.
    pub to: u32,
    /// Nothing is said of a break before the first: it begins what its reader gets.
    pub is_beginning: bool,
}

impl Piece {
    /// Publications in it.
    pub fn len(&self) -> u64 {
        u64::from(self.to - self.from)
    }

    /// Whether none is left in it.
    pub fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Its publications: number, whether it is the first after a break, what it is.
    pub fn iter(&self) -> impl Iterator<Item = (u64, bool, &Record)> {
        (self.from..self.to).filter_map(|at| {
            let (record, after_break) = self.page.at(at)?;
            let after_break = after_break && !(self.is_beginning && at == self.from);
            Some((self.page.offset(at), after_break, record))
        })
    }

    /// Bytes of its frames.
    pub fn frames_bytes(&self) -> u64 {
        self.iter().map(|(_, _, record)| record.frame.len() as u64).sum()
    }
}

/// Publications of a room's past, as its log holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// In order of the offsets; none is empty.
    pub pieces: Vec<Piece>,
}

impl Past {
    /// Publications in it.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(Piece::len).sum()
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Number of its first publication.
    pub fn first_offset(&self) -> Option<u64> {
        self.pieces.first().map(|piece| piece.page.offset(piece.from))
    }

    /// Its publications: number, whether it is the first after a break, what it is.
    pub fn iter(&self) -> impl Iterator<Item = (u64, bool, &Record)> {
        self.pieces.iter().flat_map(Piece::iter)
    }

    /// Bytes of what it keeps in memory, frames and bookkeeping.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.page.bytes()).sum()
    }
}

/// For a past that was read elsewhere. The numbers are without gaps.
impl From<Vec<Recorded>> for Past {
    fn from(records: Vec<Recorded>) -> Self {
        let (mut run, mut is_first_of_run) = (0, false);
        let first = records.first().map_or(0, |record| record.offset);
        if let Some(first) = records.first() {
            is_first_of_run = first.after_break;
        }
        let records = records.into_iter().enumerate().map(|(at, recorded)| {
            let Recorded { offset, after_break, frame, label } = recorded;
            debug_assert_eq!(first + at as u64, offset, "a past with a hole");
            run += u16::from(after_break && at > 0);
            Record { frame, arrived_micros: 0, except: None, label, run }
        });
        let mut pages = pages_of(first, records);
        if let Some(page) = pages.first_mut() {
            page.begins_after_break = is_first_of_run;
        }
        let piece = |page: Page| {
            let to = page.records.len() as u32;
            Piece { page: Arc::new(page), from: 0, to, is_beginning: false }
        };
        Past { pieces: pages.into_iter().map(piece).collect() }
    }
}

/// Full pages of records that follow each other, from this number on.
fn pages_of(first: u64, records: impl Iterator<Item = Record>) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    let is_full = |page: &Page| page.records.len() == PAGE_RECORDS_MAX || page.frames_bytes >= PAGE_BYTES_MAX;
    for (at, record) in records.enumerate() {
        if pages.last().is_none_or(is_full) {
            let before = pages.last().and_then(|page| page.records.last());
            let begins_after_break = before.is_some_and(|before| before.run != record.run);
            pages.push(Page { first: first + at as u64, begins_after_break, ..Page::default() });
        }
        if let Some(page) = pages.last_mut() {
            page.push(record);
        }
    }
    pages
}

/// See the module. The offset of the newest record is one less than the room's next offset.
#[derive(Debug, Default)]
pub struct Log {
    pages: VecDeque<Arc<Page>>,
    /// Records of the oldest page that the log has forgotten.
    forgotten: usize,
    len: usize,
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
        self.next - self.len as u64
    }

    /// Records kept.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the frames kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a record; returns its offset.
    pub fn push(&mut self, record: Record) -> u64 {
        self.bytes += record.frame.len();
        self.open_page(&record).push(record);
        self.len += 1;
        self.next += 1;
        self.next - 1
    }

    /// Puts records in front of the oldest: their numbers end where its begins.
    pub fn prepend(&mut self, records: Vec<Record>) {
        if self.forgotten > 0
            && let Some(page) = self.pages.pop_front()
        {
            // Pages hold what the log holds, but for the front of the first.
            let kept = page.records[self.forgotten..].iter().cloned();
            let kept = pages_of(page.first + self.forgotten as u64, kept);
            kept.into_iter().rev().for_each(|page| self.pages.push_front(Arc::new(page)));
            self.forgotten = 0;
        }
        let first = self.first() - records.len() as u64;
        self.len += records.len();
        self.bytes += records.iter().map(|record| record.frame.len()).sum::<usize>();
        let pages = pages_of(first, records.into_iter());
        pages.into_iter().rev().for_each(|page| self.pages.push_front(Arc::new(page)));
    }

    /// The page that the next record goes to.
    fn open_page(&mut self, record: &Record) -> &mut Page {
        let (next, len) = (self.next, self.len);
        let takes_more = |page: &mut Arc<Page>| {
            let (records, bytes) = (page.records.len(), page.frames_bytes);
            let records_max = (len / 4).clamp(PAGE_RECORDS_MIN, PAGE_RECORDS_MAX);
            let is_small = records < PAGE_COPIED_RECORDS_MAX && bytes < PAGE_COPIED_BYTES_MAX;
            let has_room = records < records_max && bytes < PAGE_BYTES_MAX;
            has_room && (is_small || Arc::get_mut(page).is_some())
        };
        if !self.pages.back_mut().is_some_and(takes_more) {
            let before = self.pages.back().and_then(|page| page.records.last());
            let begins_after_break = before.is_some_and(|before| before.run != record.run);
            let page = Page { first: next, begins_after_break, ..Page::default() };
            self.pages.push_back(Arc::new(page));
        }
        let last = self.pages.len() - 1;
        Arc::make_mut(&mut self.pages[last])
    }

    /// The record at `offset`, and whether it is the first after a break of the broker.
    pub fn at(&self, offset: u64) -> Option<(&Record, bool)> {
        if offset < self.first() {
            return None;
        }
        let page = self.pages.get(self.page_of(offset))?;
        page.at((offset - page.first) as u32)
    }

    /// Index of the page that holds `offset`.
    fn page_of(&self, offset: u64) -> usize {
        self.pages.partition_point(|page| page.first <= offset).saturating_sub(1)
    }

    /// The oldest record.
    pub fn oldest(&self) -> Option<&Record> {
        self.pages.front()?.records.get(self.forgotten)
    }

    /// Everything from `first` on. Costs a reference for each page.
    pub fn past(&self, first: u64) -> Past {
        let first = first.max(self.first());
        if first >= self.next {
            return Past::default();
        }
        let pages = self.pages.range(self.page_of(first)..);
        let piece = |page: &Arc<Page>| Piece {
            page: Arc::clone(page),
            from: first.saturating_sub(page.first) as u32,
            to: page.records.len() as u32,
            is_beginning: false,
        };
        Past { pieces: pages.map(piece).collect() }
    }

    /// What [`past`](Self::past) would hold, in bytes. Costs a look at each page.
    pub fn past_bytes(&self, first: u64) -> u64 {
        let first = first.max(self.first());
        if first >= self.next {
            return 0;
        }
        self.pages.range(self.page_of(first)..).map(|page| page.bytes()).sum()
    }

    /// Forgets the oldest record. Returns its bytes.
    ///
    /// Its frame is freed at once where nobody reads its page, and with the page otherwise.
    pub fn pop(&mut self) -> usize {
        let forgotten = self.forgotten;
        let Some(page) = self.pages.front_mut() else { return 0 };
        let Some(record) = page.records.get(forgotten) else { return 0 };
        let bytes = record.frame.len();
        if forgotten + 1 == page.records.len() {
            self.pages.pop_front();
            self.forgotten = 0;
        } else {
            if let Some(page) = Arc::get_mut(page) {
                page.records[forgotten].frame = Frame::freed();
                page.records[forgotten].label = None;
                page.frames_bytes -= bytes;
            }
            self.forgotten += 1;
        }
        self.len -= 1;
        self.bytes -= bytes;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload: &str, run: u16) -> Record {
        let frame = Frame::text(payload.as_bytes()).expect("short");
        Record { frame, arrived_micros: 0, except: None, label: None, run }
    }

    fn numbered(past: &Past) -> Vec<(u64, String)> {
        let text = |record: &Record| String::from_utf8(record.frame.payload().to_vec()).expect("text");
        past.iter().map(|(offset, _, record)| (offset, text(record))).collect()
    }

    #[test]
    fn offsets_stay_what_they_were_when_the_oldest_go() {
        let mut log = Log::starting_at(5);
        for payload in ["a", "b", "c"] {
            log.push(record(payload, 0));
        }
        assert_eq!((log.first(), log.pop(), log.first(), log.bytes()), (5, 3, 6, 6));
        assert!(log.at(5).is_none() && log.at(8).is_none());
        assert_eq!(log.at(7).map(|(r, _)| r.frame.payload()), Some(b"c".as_slice()));
    }

    #[test]
    fn a_past_is_what_the_log_holds_from_there_on_whatever_its_pages() {
        let mut log = Log::starting_at(1);
        let mut readers = Vec::new();
        for number in 1..=3000u64 {
            log.push(record(&number.to_string(), 0));
            if number % 7 == 0 {
                readers.push((log.first(), number, log.past(0)));
            }
            while log.len() > 500 {
                assert_eq!(
                    log.oldest().map(|r| r.frame.payload()),
                    log.at(log.first()).map(|(r, _)| r.frame.payload())
                );
                log.pop();
            }
            let from = number.saturating_sub(number % 600);
            let due: Vec<_> = (from.max(log.first())..=number).map(|n| (n, n.to_string())).collect();
            assert_eq!(numbered(&log.past(from)), due);
        }
        for (first, last, past) in readers {
            let due: Vec<_> = (first..=last).map(|n| (n, n.to_string())).collect();
            assert_eq!(numbered(&past), due, "what a reader holds doesn't change");
        }
        let pages = log.past(0).pieces.len();
        assert!(pages < 500 / 8, "{pages} pages of 500 publications");
    }

    #[test]
    fn what_is_put_in_front_meets_what_is_there() {
        for (popped, before) in [(0, 10), (2, 10), (2, 700), (5, 10), (0, 0)] {
            let mut log = Log::starting_at(1000);
            for number in 1000..1006 {
                log.push(record(&number.to_string(), 0));
            }
            let reader = log.past(0);
            for _ in 0..popped {
                log.pop();
            }
            let first = log.first();
            let records = (first - before..first).map(|number| record(&number.to_string(), 0));
            log.prepend(records.collect());
            log.push(record("1006", 0));
            let due: Vec<_> = (first - before..=1006).map(|n| (n, n.to_string())).collect();
            assert_eq!((numbered(&log.past(0)), log.len()), (due.clone(), due.len()), "{popped} {before}");
            let bytes = log.bytes();
            let given_back: usize = std::iter::from_fn(|| (!log.is_empty()).then(|| log.pop())).sum();
            assert_eq!(given_back, bytes, "{popped} {before}");
            assert_eq!(numbered(&reader).len(), 6, "what a reader holds doesn't change");
        }
    }

    #[test]
    fn a_long_log_is_read_by_its_pages() {
        let mut log = Log::starting_at(1);
        for number in 1..=100_000u64 {
            log.push(record("x", 0));
            if number % 100 == 0 {
                drop(log.past(0));
            }
        }
        assert!(log.past(0).pieces.len() < 500, "{}", log.past(0).pieces.len());
    }

    #[test]
    fn a_frame_that_nobody_reads_is_freed_when_it_is_forgotten() {
        let mut log = Log::starting_at(1);
        let (first, second) = (record("1", 0), record("2", 0));
        let seen = [first.frame.wire_bytes().clone(), second.frame.wire_bytes().clone()];
        log.push(first);
        log.push(second);
        log.pop();
        assert!(seen[0].is_unique() && !seen[1].is_unique());
    }

    #[test]
    fn a_break_is_before_the_first_publication_of_its_run_on_whatever_page() {
        let mut log = Log::starting_at(1);
        for number in 0..40 {
            log.push(record("x", number / 8));
        }
        let breaks: Vec<u64> =
            log.past(0).iter().filter(|(_, is, _)| *is).map(|(offset, ..)| offset).collect();
        assert_eq!(breaks, [9, 17, 25, 33]);
    }
}
