//! What a slow reader of a conflating room is owed: of each key the newest publication, in the order in which they came.
//!
//! While a connection is behind, its debt in such rooms moves from their windows here, where a newer publication of a key
//! takes the place of the older one. So what a stuck reader can hold is bounded by the number of keys, and not by time; and
//! whoever reads on gets the newest of each key, none of them older than one that it has had.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::kept::Kept;

/// See the module. Of one connection.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    items: BTreeMap<u64, Item>,
    newest: HashMap<(u32, u64), u64, foldhash::fast::FixedState>,
    next: u64,
    bytes: u64,
    /// Of the items: notices of gaps.
    gaps: u64,
}

/// One publication, in the dialect of its connection.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Index of its room.
    pub room: u32,
    /// See [`Entry::key`](crate::window::Entry::key); one of 0 is superseded by nothing.
    pub key: u64,
    pub wire: Bytes,
    /// A notice in the place of a publication that is too long.
    pub is_replaced: bool,
    /// The notice of a gap, which stays where it is.
    pub is_gap: bool,
}

impl Item {
    /// Whether a publication goes out with it.
    pub(crate) fn is_delivery(&self) -> bool {
        !self.is_replaced && !self.is_gap
    }
}

impl Parked {
    /// Adds the newest publication of a key; returns whether it took the place of another.
    pub(crate) fn push(&mut self, item: Item, kept: &mut Kept) -> bool {
        kept.keep(&item.wire);
        let superseded = match item.key {
            0 => None,
            key => self.newest.insert((item.room, key), self.next),
        };
        let before = superseded.and_then(|at| self.items.remove(&at));
        if let Some(before) = &before {
            kept.let_go(&before.wire);
            self.bytes -= before.wire.len() as u64;
        }
        self.bytes += item.wire.len() as u64;
        self.items.insert(self.next, item);
        self.next += 1;
        before.is_some()
    }

    /// Adds the notice of a gap, where the dialect has words for it.
    pub(crate) fn push_notice(&mut self, room: u32, wire: Bytes, kept: &mut Kept) {
        if !wire.is_empty() {
            self.gaps += 1;
            self.push(Item { room, key: 0, wire, is_replaced: false, is_gap: true }, kept);
        }
    }

    /// The oldest.
    pub(crate) fn first(&self) -> Option<&Item> {
        self.items.values().next()
    }

    /// Takes the oldest out.
    pub(crate) fn pop(&mut self, kept: &mut Kept) -> Option<Item> {
        let (at, item) = self.items.pop_first()?;
        kept.let_go(&item.wire);
        if self.newest.get(&(item.room, item.key)) == Some(&at) {
            self.newest.remove(&(item.room, item.key));
        }
        self.bytes -= item.wire.len() as u64;
        self.gaps -= u64::from(item.is_gap);
        Some(item)
    }

    /// From the oldest to the newest.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    /// Publications.
    pub(crate) fn len(&self) -> u64 {
        self.items.len() as u64 - self.gaps
    }

    /// Bytes of them.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Publications and bytes of one room.
    pub(crate) fn of_room(&self, room: u32) -> (u64, u64) {
        let of = self.items.values().filter(|item| item.room == room);
        of.fold((0, 0), |(count, bytes), item| {
            (count + u64::from(!item.is_gap), bytes + item.wire.len() as u64)
        })
    }

    /// Forgets those of one room, or all.
    pub(crate) fn forget(&mut self, room: Option<u32>, kept: &mut Kept) {
        let stays = |other: u32| room.is_some_and(|room| room != other);
        self.items.retain(|_, item| {
            if !stays(item.room) {
                kept.let_go(&item.wire);
            }
            stays(item.room)
        });
        self.newest.retain(|(other, _), _| stays(*other));
        self.bytes = self.items.values().map(|item| item.wire.len() as u64).sum();
        self.gaps = self.items.values().filter(|item| item.is_gap).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(room: u32, key: u64, wire: &'static str) -> Item {
        Item { room, key, wire: Bytes::from_static(wire.as_bytes()), is_replaced: false, is_gap: false }
    }

    fn drained(parked: &mut Parked, kept: &mut Kept) -> Vec<String> {
        std::iter::from_fn(|| parked.pop(kept))
            .map(|item| String::from_utf8(item.wire.to_vec()).expect("text"))
            .collect()
    }

    #[test]
    fn of_each_key_the_newest_stays_in_the_order_in_which_they_came() {
        let (mut parked, mut kept) = (Parked::default(), Kept::default());
        let pushed =
            [item(1, 7, "a1"), item(1, 8, "b1"), item(1, 7, "a2"), item(2, 7, "other"), item(1, 0, "x")];
        let superseded: Vec<bool> = pushed.into_iter().map(|item| parked.push(item, &mut kept)).collect();
        assert_eq!(superseded, [false, false, true, false, false]);
        assert_eq!((parked.len(), parked.bytes(), parked.of_room(1)), (4, 10, (3, 5)));
        assert_eq!(drained(&mut parked, &mut kept), ["b1", "a2", "other", "x"]);
        assert_eq!((parked.len(), parked.bytes(), kept.bytes()), (0, 0, 0));
    }

    #[test]
    fn what_has_no_key_is_superseded_by_nothing() {
        let (mut parked, mut kept) = (Parked::default(), Kept::default());
        assert!(!parked.push(item(1, 0, "x1"), &mut kept) && !parked.push(item(1, 0, "x2"), &mut kept));
        assert_eq!(drained(&mut parked, &mut kept), ["x1", "x2"]);
    }

    #[test]
    fn a_room_that_is_left_is_forgotten_and_its_keys_begin_anew() {
        let (mut parked, mut kept) = (Parked::default(), Kept::default());
        parked.push(item(1, 7, "a"), &mut kept);
        parked.push(item(2, 7, "b"), &mut kept);
        parked.forget(Some(1), &mut kept);
        assert!(!parked.push(item(1, 7, "c"), &mut kept));
        assert_eq!(drained(&mut parked, &mut kept), ["b", "c"]);
    }
}
