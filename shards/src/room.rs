//! A room on a shard: the frames that some member has not passed, and how far each member is.
//!
//! Positions count the room's entries on this shard, from 0; they have no holes, so a position minus the window's base is
//! an index. The broker's offsets lie in the entries.
//!
//! Invariants, checked after every change in debug builds:
//! * every cursor lies in `base ..= head`;
//! * between passes every member that is not stalled is at `head`;
//! * a member's index changes only outside a pass: during one, leaving makes a tombstone.
//!
//! Forbidden: appending during a pass (the pass sends one buffer to everybody at `passed`).

use std::sync::Arc;

use smallvec::SmallVec;

use crate::config::Dialect;
use crate::window::{Entry, Window};

/// One connection's place in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Index of the connection, or [`TOMBSTONE`].
    pub slot: u32,
    /// Which of the connection's subscriptions this is.
    pub subscription: u32,
    /// Position of the next entry it is owed.
    pub cursor: u64,
}

/// See [`Room::source`].
pub const NO_SOURCE: u8 = u8::MAX;
/// A member that left during a pass.
pub const TOMBSTONE: u32 = u32::MAX;

/// Where a room is in its life on the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `Join` is on its way; members wait for their 101.
    Joining,
    /// Publications come.
    Live,
}

/// See the module.
#[derive(Debug)]
pub struct Room {
    /// Its name, shared with the relay's log.
    pub name: Arc<str>,
    /// Who reads it. Order of joining, but for the last taking the place of one that left.
    pub members: SmallVec<[Member; 1]>,
    window: Option<Box<Window>>,
    /// Position after the newest entry.
    pub head: u64,
    /// Position of the members that are not stalled.
    pub passed: u64,
    /// Members that left during the pass.
    tombstones: u32,
    /// Members of each dialect but the raw one, by [`Dialect::index`] less one.
    others: [u32; Dialect::COUNT - 1],
    /// Run of its publications' numbers; known when it is live.
    pub epoch: u64,
    /// Number of the newest publication; 0 before the first.
    pub last: u64,
    /// The run of its source that `epoch` belongs to.
    pub run: u16,
    /// Index of the source that feeds it, [`NO_SOURCE`] where none does.
    pub source: u8,
    /// When the last member left, in ticks of the shard's sweep.
    pub empty_since: u32,
    /// Index of its class.
    pub class: u8,
    /// See [`Stage`].
    pub stage: Stage,
    /// It is in the list of rooms that the next pass visits.
    pub dirty: bool,
    /// A pass is going through its members.
    pub in_pass: bool,
    /// Some member is behind `passed`.
    pub lagging: bool,
    /// It is in the shard's list of rooms with laggards.
    pub listed: bool,
}

impl Room {
    /// An empty room whose `Join` is to be sent.
    pub fn new(name: Arc<str>, class: u8) -> Self {
        Self {
            name,
            members: SmallVec::new(),
            window: None,
            head: 0,
            passed: 0,
            tombstones: 0,
            others: [0; Dialect::COUNT - 1],
            epoch: 0,
            last: 0,
            run: 0,
            source: NO_SOURCE,
            empty_since: 0,
            class,
            stage: Stage::Joining,
            dirty: false,
            in_pass: false,
            lagging: false,
            listed: false,
        }
    }

    /// What its members call it.
    pub fn plain_name(&self) -> &str {
        crate::route::plain_name(&self.name)
    }

    /// Members, tombstones left out.
    pub fn members_len(&self) -> usize {
        self.members.len() - self.tombstones as usize
    }

    /// Members of that dialect.
    pub fn speakers_len(&self, dialect: Dialect) -> usize {
        match dialect.index() {
            0 => self.members_len() - self.others.iter().sum::<u32>() as usize,
            index => self.others[index - 1] as usize,
        }
    }

    /// Whether a member speaks another dialect than the raw one.
    pub fn has_others(&self) -> bool {
        self.others != [0; Dialect::COUNT - 1]
    }

    fn count_other(&mut self, dialect: Dialect) -> Option<&mut u32> {
        dialect.index().checked_sub(1).map(|index| &mut self.others[index])
    }

    /// Lets a connection in at the head: it gets what is appended from now on. Returns the member's index.
    pub fn enter(&mut self, slot: u32, subscription: u32, dialect: Dialect) -> u32 {
        if let Some(others) = self.count_other(dialect) {
            *others += 1;
        }
        self.members.push(Member { slot, subscription, cursor: self.head });
        (self.members.len() - 1) as u32
    }

    /// Takes a member out. Returns its cursor, and the member that now has its index (so that its subscription can be told).
    pub fn leave(&mut self, index: u32, dialect: Dialect) -> (u64, Option<Member>) {
        if let Some(others) = self.count_other(dialect) {
            *others -= 1;
        }
        let index = index as usize;
        let cursor = self.members[index].cursor;
        if self.in_pass {
            self.members[index].slot = TOMBSTONE;
            self.tombstones += 1;
            return (cursor, None);
        }
        self.members.swap_remove(index);
        self.shrink();
        (cursor, self.members.get(index).copied())
    }

    /// Forgets the tombstones of a pass; calls `moved(member, new index)` for every member that got another index.
    pub fn compact(&mut self, mut moved: impl FnMut(Member, u32)) {
        debug_assert!(!self.in_pass, "compacting moves the members under a pass");
        let mut kept = 0;
        for index in 0..self.members.len() {
            let member = self.members[index];
            if member.slot == TOMBSTONE {
                continue;
            }
            if kept != index {
                self.members[kept] = member;
                moved(member, kept as u32);
            }
            kept += 1;
        }
        self.members.truncate(kept);
        self.tombstones = 0;
        self.shrink();
    }

    /// A room that had 10,000 members and has 10 gives the memory back.
    fn shrink(&mut self) {
        if self.members.spilled() && self.members.len() * 4 < self.members.capacity() {
            self.members.shrink_to_fit();
        }
    }

    /// Appends one entry for everybody who is in the room now.
    pub fn append(&mut self, entry: Entry, window: impl FnOnce() -> Box<Window>) {
        debug_assert!(!self.in_pass, "appending during a pass");
        self.window.get_or_insert_with(window).push(entry);
        self.head += 1;
    }

    /// Position of the oldest entry that is kept.
    pub fn base(&self) -> u64 {
        self.head - self.window.as_ref().map_or(0, |w| w.len() as u64)
    }

    /// The entries from `cursor` on.
    pub fn entries_from(&self, cursor: u64) -> impl DoubleEndedIterator<Item = &Entry> {
        debug_assert!(cursor >= self.base() && cursor <= self.head, "a cursor outside the window");
        let skip = (cursor - self.base()) as usize;
        self.window.iter().flat_map(move |w| w.range(skip))
    }

    /// The run of numbers of what stands before `cursor`: a break behind it is still to come.
    pub fn epoch_before(&self, cursor: u64) -> u64 {
        let mut gaps = self.entries_from(cursor).filter(|entry| entry.forms.is_gap);
        gaps.next().map_or(self.epoch, |gap| gap.key)
    }

    /// The entry at `cursor`, if there is one.
    pub fn entry(&self, cursor: u64) -> Option<&Entry> {
        self.window.as_ref()?.at((cursor - self.base()) as usize)
    }

    /// Whether every kept entry goes to everybody.
    pub fn is_uniform(&self) -> bool {
        self.window.as_ref().is_none_or(|w| w.is_uniform())
    }

    /// Whether some kept entry looks different to members of different dialects.
    pub fn is_mixed(&self) -> bool {
        self.window.as_ref().is_some_and(|w| w.is_mixed())
    }

    /// Of the entries from `cursor` on: those that are gaps, and so nobody's publication.
    pub fn gaps_from(&self, cursor: u64) -> u64 {
        match &self.window {
            Some(window) if window.has_gaps() => {
                self.entries_from(cursor).filter(|entry| entry.forms.is_gap).count() as u64
            }
            _ => 0,
        }
    }

    /// Of the entries from `cursor` on: those in whose place a member of that dialect gets a notice.
    pub fn replaced_from(&self, cursor: u64, dialect: Dialect) -> u64 {
        match &self.window {
            Some(window) if window.has_replaced() => {
                self.entries_from(cursor).filter(|entry| entry.forms.is_replaced_for(dialect)).count() as u64
            }
            _ => 0,
        }
    }

    /// Publications from `cursor` on.
    pub fn publications_from(&self, cursor: u64) -> u64 {
        self.head - cursor - self.gaps_from(cursor)
    }

    /// Bytes of the entries from `cursor` on as a member of that dialect gets them. What members of the others get is no
    /// debt of its.
    pub fn bytes_from(&self, cursor: u64, dialect: Dialect) -> u64 {
        self.window.as_ref().map_or(0, |w| w.bytes_from((cursor - self.base()) as usize, dialect))
    }

    /// Bytes of all kept entries, in every dialect they are kept in.
    pub fn window_bytes(&self) -> u64 {
        self.window.as_ref().map_or(0, |window| window.bytes())
    }

    /// Forgets what everybody has passed. Returns the emptied window, for reuse, and the bytes given up.
    pub fn evict(&mut self) -> (Option<Box<Window>>, u64) {
        let before = self.window_bytes();
        let mut cursors = self.members.iter().filter(|m| m.slot != TOMBSTONE).map(|m| m.cursor);
        let lowest = match (self.lagging, self.members.is_empty()) {
            (_, true) => self.head,
            (true, _) => cursors.clone().min().unwrap_or(self.head),
            (false, _) => self.passed,
        };
        debug_assert!(cursors.all(|cursor| cursor >= lowest), "a laggard nobody knows of");
        self.passed = self.passed.max(lowest);
        self.lagging = lowest < self.passed;
        let Some(window) = self.window.as_mut() else { return (None, 0) };
        let keep = (self.head - lowest) as usize;
        while window.len() > keep {
            window.pop();
        }
        if keep > 0 {
            return (None, before - self.window_bytes());
        }
        (self.window.take(), before)
    }

    /// Panics if an invariant is broken; debug builds call it after every change.
    pub fn check(&self) {
        let base = self.base();
        for member in self.members.iter().filter(|m| m.slot != TOMBSTONE) {
            assert!(
                member.cursor >= base && member.cursor <= self.head,
                "a cursor outside the window of {}",
                self.name
            );
            assert!(
                self.in_pass || self.lagging || member.cursor >= self.passed,
                "a laggard nobody knows of"
            );
        }
        assert!(self.passed <= self.head, "passed what is not there");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;
    use crate::window::Forms;

    fn room() -> Room {
        let mut room = Room::new("r".into(), 0);
        room.stage = Stage::Live;
        room
    }

    fn append(room: &mut Room, payload: &[u8]) {
        let wire = Frame::data(payload).expect("short").into_wire();
        let forms = Forms { wire, ..Forms::default() };
        room.append(Entry::new(forms, 0, 0, 0, None), Box::default);
    }

    #[test]
    fn a_newcomer_is_owed_only_what_comes_after_it() {
        let mut room = room();
        append(&mut room, b"before");
        room.enter(7, 0, Dialect::Raw);
        append(&mut room, b"after");
        let owed: Vec<&[u8]> =
            room.entries_from(room.members[0].cursor).map(|e| &e.forms.wire[2..]).collect();
        assert_eq!(owed, [b"after".as_slice()]);
    }

    #[test]
    fn a_laggard_keeps_just_what_it_is_owed() {
        let mut room = room();
        room.enter(1, 0, Dialect::Raw);
        room.enter(2, 0, Dialect::Raw);
        for payload in [b"1", b"2", b"3"] {
            append(&mut room, payload);
        }
        room.members[0].cursor = 1;
        room.members[1].cursor = 3;
        room.passed = 3;
        room.lagging = true;
        assert_eq!(room.evict().1, 3);
        assert_eq!((room.base(), room.bytes_from(1, Dialect::Raw)), (1, 6));
        room.members[0].cursor = 3;
        let (window, bytes) = room.evict();
        assert!(window.is_some() && bytes == 6 && !room.lagging && room.window_bytes() == 0);
        room.check();
    }

    #[test]
    fn leaving_during_a_pass_moves_nobody() {
        let mut room = room();
        for slot in 0..4 {
            room.enter(slot, slot, Dialect::Raw);
        }
        room.in_pass = true;
        assert_eq!(room.leave(1, Dialect::Raw).1, None);
        assert_eq!(room.members[3].slot, 3);
        room.in_pass = false;
        let mut moves = Vec::new();
        room.compact(|member, index| moves.push((member.slot, index)));
        assert_eq!(moves, [(2, 1), (3, 2)]);
        assert_eq!(room.leave(0, Dialect::Raw).1.map(|m| m.slot), Some(3));
    }

    #[test]
    fn a_room_of_one_is_small() {
        // DESIGN section 4: well under 200 B with the member inline and the window boxed.
        assert!(size_of::<Room>() <= 128, "{} B", size_of::<Room>());
    }
}
