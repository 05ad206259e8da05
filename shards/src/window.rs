//! The entries of a room that some member has not passed: publications and gap notices, as each dialect says them.
//!
//! An entry's bytes are made once per shard and shared by every socket. A dialect that has no words for an entry gets no
//! bytes of it, and its members pass it all the same.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::command::ConnectionId;
use crate::config::Dialect;

/// What members get of one entry, in the dialects that are spoken in their room.
#[derive(Debug, Clone, Default)]
pub struct Forms {
    /// For members of every dialect that `others` doesn't name.
    pub wire: Bytes,
    /// For members of these.
    pub others: Vec<(Dialect, Bytes)>,
    /// Dialects whose members get a notice in the place of a publication that is too long for them: bits of
    /// [`Dialect::index`].
    pub replaced: u8,
    /// It is a gap notice, which nobody is owed and which counts as no delivery.
    pub is_gap: bool,
}

impl Forms {
    /// What goes out to a member of that dialect; empty where the dialect has no words for the entry.
    pub fn wire_for(&self, dialect: Dialect) -> &Bytes {
        self.others.iter().find(|(other, _)| *other == dialect).map_or(&self.wire, |(_, wire)| wire)
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        (self.wire.len() + self.others.iter().map(|(_, wire)| wire.len()).sum::<usize>()) as u64
    }

    /// Whether what a member of that dialect gets is a notice, and the publication lost to it.
    pub fn is_replaced_for(&self, dialect: Dialect) -> bool {
        self.replaced & dialect.bit() != 0
    }
}

/// One entry of a window.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What goes out.
    pub forms: Forms,
    /// The publication's number in the room; of a gap, that of the publication before it.
    pub offset: u64,
    /// Which publications it supersedes where its room's class conflates: a hash, 0 for none. Of a gap, the run of the
    /// numbers before it.
    pub key: u64,
    /// Microseconds after the start of the process.
    pub arrived_micros: u64,
    /// Who does not get it.
    pub except: Option<ConnectionId>,
    /// Bytes of all entries up to and with this one since the window began, as each dialect's members get them.
    ends: Ends,
}

/// By [`Dialect::index`].
type Ends = [u64; Dialect::COUNT];

impl Entry {
    /// An entry that is in no window yet.
    pub fn new(
        forms: Forms,
        offset: u64,
        key: u64,
        arrived_micros: u64,
        except: Option<ConnectionId>,
    ) -> Self {
        Self { forms, offset, key, arrived_micros, except, ends: Ends::default() }
    }

    /// See [`Forms::wire_for`].
    pub fn wire_for(&self, dialect: Dialect) -> &Bytes {
        self.forms.wire_for(dialect)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Window {
    entries: VecDeque<Entry>,
    /// Bytes of everything that it holds.
    bytes: u64,
    /// Bytes of all entries that it ever held.
    ends: Ends,
    /// Entries with several forms.
    mixed: u32,
    /// Entries with a notice in the place of a publication.
    replaced: u32,
    /// Entries that are gaps.
    gaps: u32,
    /// Entries that leave somebody out; while there are none, everybody at one position is owed the same bytes.
    excepts: u32,
}

impl Window {
    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all entries, in every form.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The entry `index` places behind the oldest.
    pub fn at(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// The entries from the one `index` places behind the oldest.
    pub fn range(&self, index: usize) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.range(index.min(self.entries.len())..)
    }

    /// Whether every entry goes to everybody.
    pub fn is_uniform(&self) -> bool {
        self.excepts == 0
    }

    /// Whether some entry looks different to members of different dialects.
    pub fn is_mixed(&self) -> bool {
        self.mixed > 0
    }

    /// Whether some entry is a gap.
    pub fn has_gaps(&self) -> bool {
        self.gaps > 0
    }

    /// Whether some entry is replaced by a notice for somebody.
    pub fn has_replaced(&self) -> bool {
        self.replaced > 0
    }

    /// Bytes of the entries from `index` on as a member of that dialect gets them.
    pub fn bytes_from(&self, index: usize, dialect: Dialect) -> u64 {
        self.entries.get(index).map_or(0, |entry| {
            self.ends[dialect.index()] - entry.ends[dialect.index()] + entry.wire_for(dialect).len() as u64
        })
    }

    /// Appends an entry.
    pub fn push(&mut self, mut entry: Entry) {
        self.count(&entry, 1);
        self.bytes += entry.forms.bytes();
        if entry.forms.others.is_empty() {
            let bytes = entry.forms.wire.len() as u64;
            self.ends.iter_mut().for_each(|end| *end += bytes);
        } else {
            for dialect in Dialect::ALL {
                self.ends[dialect.index()] += entry.wire_for(dialect).len() as u64;
            }
        }
        entry.ends = self.ends;
        self.entries.push_back(entry);
    }

    /// Forgets the oldest entry.
    pub fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.forms.bytes();
            self.count(&entry, u32::MAX);
        }
    }

    /// `by` is 1 or, for one less, the number that wraps to it.
    fn count(&mut self, entry: &Entry, by: u32) {
        let counts = [
            (&mut self.excepts, entry.except.is_some()),
            (&mut self.mixed, !entry.forms.others.is_empty()),
            (&mut self.replaced, entry.forms.replaced != 0),
            (&mut self.gaps, entry.forms.is_gap),
        ];
        for (count, _) in counts.into_iter().filter(|(_, counts)| *counts) {
            *count = count.wrapping_add(by);
        }
    }

    /// Whether it can be reused as it is and is not worth freeing.
    pub fn is_reusable(&self) -> bool {
        self.entries.is_empty() && self.entries.capacity() <= 64
    }
}
