//! The streams of the model's Redis: what is in them, what has not been read yet, and what may happen to them.

use std::collections::{BTreeMap, VecDeque};

use shards::redis::{Anchor, EntryId, HistoryError, Past, Position};

use crate::place_of;
use crate::random::Random;

#[derive(Debug, Clone)]
pub struct Entry {
    pub id: EntryId,
    /// How many had been added with it.
    pub number: u64,
    /// Run of the stream that it is of.
    pub epoch: u64,
    pub payload: Vec<u8>,
    /// It can't be a publication.
    pub is_too_long: bool,
}

impl Entry {
    /// Number of the publication that it is.
    pub fn publication(&self) -> usize {
        place_of(&self.payload).0
    }
}

#[derive(Debug, Default)]
pub struct Stream {
    pub epoch: u64,
    added: u64,
    last: EntryId,
    deleted: EntryId,
    pub entries: VecDeque<Entry>,
    /// What the driver has not handed out yet, gone or not.
    pub unread: VecDeque<Entry>,
    /// Redis doesn't let us near it.
    pub is_refused: bool,
}

impl Stream {
    pub fn anchor(&self) -> Anchor {
        Anchor {
            epoch: self.epoch,
            added: self.added,
            length: self.entries.len() as u64,
            first: self.entries.front().map_or(EntryId::ZERO, |entry| entry.id),
            last: self.last,
            deleted: self.deleted,
        }
    }

    /// What lies behind the number `after`, read backwards from where the driver has come.
    pub fn past(&self, after: u64, head: Position, random: &mut Random) -> Result<Past, HistoryError> {
        if self.is_refused || random.chance(2) {
            return Err(HistoryError::Refused);
        }
        let (mut left, mut lacks, mut oldest) = (head.number - after, None, None);
        let mut payloads = Vec::new();
        for entry in self.entries.iter().rev().filter(|entry| entry.id <= head.id) {
            if left == 0 {
                break;
            }
            if entry.is_too_long || random.chance(2) {
                (left, lacks) = (0, Some(HistoryError::TooMuch));
                break;
            }
            left -= 1;
            oldest = Some(entry.id);
            payloads.push(entry.payload.clone().into_boxed_slice());
        }
        if left > 0 {
            lacks = Some(HistoryError::Trimmed);
        }
        payloads.reverse();
        match oldest {
            _ if self.epoch != head.epoch => Err(HistoryError::Broken),
            Some(oldest) if self.deleted > oldest => Err(HistoryError::Deleted),
            _ => Ok(Past { head, payloads, lacks }),
        }
    }

    /// Gives up what has not been read and is behind a position, or of another run. Returns those publications.
    pub fn skip_to(&mut self, position: Position) -> Vec<usize> {
        let is_left = |entry: &Entry| entry.id > position.id && entry.epoch == position.epoch;
        let (left, skipped): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.unread).into_iter().partition(is_left);
        self.unread = left;
        skipped.iter().map(Entry::publication).collect()
    }

    /// Gives up what is no longer there and not on its way either.
    fn forget_lost(&mut self, sent: EntryId) -> Vec<usize> {
        let Self { entries, unread, .. } = self;
        let is_there = |entry: &Entry| entry.id <= sent || entries.iter().any(|other| other.id == entry.id);
        let (left, lost): (VecDeque<_>, VecDeque<_>) = std::mem::take(unread).into_iter().partition(is_there);
        *unread = left;
        lost.iter().map(Entry::publication).collect()
    }
}

/// All of them. A key that nobody has appended to is an empty stream.
#[derive(Debug, Default)]
pub struct Keys {
    streams: BTreeMap<Vec<u8>, Stream>,
    millis: u64,
    epochs: u64,
    /// Id of every publication that was ever appended.
    pub appended: BTreeMap<usize, EntryId>,
}

impl Keys {
    pub fn at(&mut self, key: &[u8]) -> &mut Stream {
        let Self { streams, epochs, .. } = self;
        streams.entry(key.to_vec()).or_insert_with(|| {
            *epochs += 1;
            Stream { epoch: FIRST_EPOCH + *epochs, ..Stream::default() }
        })
    }

    pub fn all(&self) -> impl Iterator<Item = (&Vec<u8>, &Stream)> {
        self.streams.iter()
    }

    pub fn append(&mut self, key: &[u8], payload: &[u8], is_too_long: bool) -> EntryId {
        self.millis += 1;
        let id = EntryId { millis: self.millis, sequence: 0 };
        let before = self.appended.insert(place_of(payload).0, id);
        assert_eq!(before, None, "appended twice: {}", String::from_utf8_lossy(payload));
        let stream = self.at(key);
        stream.added += 1;
        stream.last = id;
        let (number, epoch) = (stream.added, stream.epoch);
        let entry = Entry { id, number, epoch, payload: payload.to_vec(), is_too_long };
        stream.unread.push_back(entry.clone());
        stream.entries.push_back(entry);
        id
    }

    /// Something happens to a stream. What is on its way to a reader who follows it, up to and with `sent`, comes; `None`:
    /// nobody follows it. Returns publications of which a follower may hear nothing before it hears of later ones.
    pub fn disturb(&mut self, key: &[u8], sent: Option<EntryId>, random: &mut Random) -> Vec<usize> {
        self.epochs += 1;
        let epoch = FIRST_EPOCH + self.epochs;
        let stream = self.at(key);
        match random.below(10) {
            0..4 => {
                for _ in 0..random.below(stream.entries.len() + 1) {
                    stream.entries.pop_front();
                }
            }
            4..6 if !stream.entries.is_empty() => {
                let at = random.below(stream.entries.len());
                let entry = stream.entries.remove(at).expect("it is there");
                stream.deleted = stream.deleted.max(entry.id);
                let is_on_its_way = sent.is_some_and(|sent| entry.id <= sent);
                let unread = stream.unread.len();
                // Only a number that is missing at the stream's end will ever tell.
                stream.unread.retain(|other| other.id != entry.id || is_on_its_way);
                return if stream.unread.len() < unread { vec![entry.publication()] } else { Vec::new() };
            }
            6..8 if stream.added > 0 => {
                (stream.epoch, stream.added) = (epoch, 0);
                (stream.last, stream.deleted) = (EntryId::ZERO, EntryId::ZERO);
                stream.entries.clear();
            }
            // A replica that lacked the end takes over.
            8 if stream.entries.len() > 1 => {
                let lacks = 1 + random.below(stream.entries.len() - 1);
                stream.entries.truncate(stream.entries.len() - lacks);
                let newest = stream.entries.back().expect("one is left");
                (stream.epoch, stream.added, stream.last) = (epoch, newest.number, newest.id);
                stream.entries.iter_mut().for_each(|entry| entry.epoch = epoch);
                let Stream { entries, unread, .. } = stream;
                let is_there = |entry: &Entry| entries.iter().any(|other| other.id == entry.id);
                unread.iter_mut().filter(|entry| is_there(entry)).for_each(|entry| entry.epoch = epoch);
            }
            9 => stream.is_refused = true,
            _ => {}
        }
        sent.map(|sent| stream.forget_lost(sent)).unwrap_or_default()
    }
}

/// Nothing that the relay could make up.
const FIRST_EPOCH: u64 = 1 << 40;
