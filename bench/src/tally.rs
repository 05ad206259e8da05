//! What a receiver process knows about its deliveries: counted, in order, once, in the right room. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::latency::Latencies;
use crate::schedule;
use crate::stamp::Stamp;

/// Messages that may be under way while they are tracked: the longest burst and the widest window.
pub const TRACKED_MAX: u64 = 1 << 16;

/// Who is in which room: connection `c` of the run is in the `rooms_per_connection` rooms from `c * rooms_per_connection`
/// on, counted around. Every room has the same number of members, but for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seating {
    /// Rooms of the run.
    pub rooms: u32,
    /// Rooms that each connection is in; at most `rooms`.
    pub rooms_per_connection: u32,
}

impl Seating {
    /// The first room of a connection.
    pub fn first_room(&self, connection: usize) -> u32 {
        (connection as u64 * u64::from(self.rooms_per_connection) % u64::from(self.rooms)) as u32
    }

    /// All rooms of a connection.
    pub fn rooms_of(&self, connection: usize) -> impl Iterator<Item = u32> + use<> {
        let Self { rooms, rooms_per_connection } = *self;
        let first = self.first_room(connection);
        (0..rooms_per_connection).map(move |place| (first + place) % rooms)
    }

    /// Members of each room, of the connections given.
    pub fn members(&self, connections: impl Iterator<Item = usize>) -> Vec<u32> {
        let mut members = vec![0; self.rooms as usize];
        for room in connections.flat_map(|connection| self.rooms_of(connection)) {
            members[room as usize] += 1;
        }
        members
    }
}

/// What was counted since the measurement began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages that arrived, each once per connection and room, late ones included.
    pub delivered: u64,
    /// Messages that were passed over and have not arrived since.
    pub gaps: u64,
    /// Messages that had arrived before.
    pub duplicates: u64,
    /// Messages that arrived after a later one.
    pub out_of_order: u64,
    /// Messages of a room that the connection is not in.
    pub wrong_room: u64,
    /// Messages without a stamp.
    pub unreadable: u64,
    /// Payload bytes.
    pub bytes: u64,
    /// Pings, each answered.
    pub pings: u64,
    /// Connections that ended, by close code, `none` (TCP ended without a Close frame), or
    /// what was wrong with a frame.
    pub closes: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds another process's.
    pub fn merge(&mut self, other: &Counts) {
        self.delivered += other.delivered;
        self.gaps += other.gaps;
        self.duplicates += other.duplicates;
        self.out_of_order += other.out_of_order;
        self.wrong_room += other.wrong_room;
        self.unreadable += other.unreadable;
        self.bytes += other.bytes;
        self.pings += other.pings;
        for (code, count) in &other.closes {
            *self.closes.entry(code.clone()).or_default() += count;
        }
    }

    /// Whether every message that was seen was seen where, when and as often as it should.
    pub fn is_clean(&self) -> bool {
        self.gaps + self.duplicates + self.out_of_order + self.wrong_room + self.unreadable == 0
            && self.closes.is_empty()
    }
}

/// One connection's place in one room.
#[derive(Debug, Clone, Copy, Default)]
struct Seat {
    next: u32,
    /// Bit n: message `next - 1 - n` has arrived.
    arrived: u64,
}

/// The deliveries of one receiver process.
pub struct Tally {
    seating: Seating,
    seats: Vec<Seat>,
    /// Since the measurement began.
    pub counts: Counts,
    /// Since the measurement began, from the intended time of sending.
    pub latencies: Latencies,
    members: Vec<u32>,
    /// Messages up to this number have arrived at all members here, while they are tracked.
    complete: u64,
    /// Copies that have arrived of the messages from `complete` on, at their number modulo [`TRACKED_MAX`].
    copies: Option<Vec<u32>>,
}

impl Tally {
    /// For the connections `first..first + connections` of the run.
    pub fn new(seating: Seating, first: usize, connections: usize) -> Self {
        Self {
            seating,
            seats: vec![Seat::default(); connections * seating.rooms_per_connection as usize],
            counts: Counts::default(),
            latencies: Latencies::new(),
            members: seating.members(first..first + connections),
            complete: 0,
            copies: None,
        }
    }

    /// Forgets what was counted, not who has seen what. With `track`, completeness is counted from message `number` on.
    pub fn begin(&mut self, number: u64, track: bool) {
        self.counts = Counts::default();
        self.latencies.clear();
        self.complete = number;
        self.copies = track.then(|| vec![0; TRACKED_MAX as usize]);
    }

    /// Every message below this number has arrived at every member of this process.
    pub fn complete(&self) -> u64 {
        self.complete
    }

    /// Takes a message that `connection` (an index in this process, whose first room is `first_room`) received.
    pub fn take(&mut self, connection: usize, first_room: u32, prefix: &[u8], bytes: u64, now_ns: u64) {
        self.counts.bytes += bytes;
        let Some(stamp) = Stamp::read(prefix) else {
            self.counts.unreadable += 1;
            return;
        };
        let Seating { rooms, rooms_per_connection } = self.seating;
        let place = if stamp.room >= first_room {
            stamp.room - first_room
        } else {
            stamp.room.wrapping_add(rooms).wrapping_sub(first_room)
        };
        if stamp.room >= rooms || place >= rooms_per_connection {
            self.counts.wrong_room += 1;
            return;
        }
        let seat = &mut self.seats[connection * rooms_per_connection as usize + place as usize];
        if stamp.sequence == seat.next {
            seat.next = seat.next.wrapping_add(1);
            seat.arrived = seat.arrived << 1 | 1;
        } else if !seat.take_irregular(stamp.sequence, &mut self.counts) {
            return;
        }
        self.counts.delivered += 1;
        self.latencies.record(now_ns.saturating_sub(stamp.intended_ns));
        if self.copies.is_some() {
            self.track(schedule::number(stamp.room, stamp.sequence, rooms));
        }
    }

    fn track(&mut self, number: u64) {
        let Some(copies) = &mut self.copies else { return };
        if !(self.complete..self.complete + TRACKED_MAX).contains(&number) {
            return;
        }
        copies[(number % TRACKED_MAX) as usize] += 1;
        loop {
            let arrived = &mut copies[(self.complete % TRACKED_MAX) as usize];
            let (room, _) = schedule::place(self.complete, self.seating.rooms);
            // A room without members here would be complete without end: the scenario rules it out.
            if *arrived == 0 || *arrived < self.members[room as usize] {
                return;
            }
            *arrived = 0;
            self.complete += 1;
        }
    }
}

impl Seat {
    /// A message that is not the next one; says whether it counts as delivered.
    fn take_irregular(&mut self, sequence: u32, counts: &mut Counts) -> bool {
        if sequence > self.next {
            let skipped = sequence - self.next;
            counts.gaps += u64::from(skipped);
            self.arrived = self.arrived.checked_shl(skipped + 1).unwrap_or(0) | 1;
            self.next = sequence.wrapping_add(1);
            return true;
        }
        let behind = self.next - 1 - sequence;
        // Beyond 64 messages back nobody remembers what had arrived: it counts as a duplicate.
        match 1u64.checked_shl(behind) {
            Some(bit) if self.arrived & bit == 0 => {
                self.arrived |= bit;
                counts.out_of_order += 1;
                counts.gaps = counts.gaps.saturating_sub(1);
                true
            }
            _ => {
                counts.duplicates += 1;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp::{STAMP_BYTES, blank_payload};

    fn take(tally: &mut Tally, connection: usize, room: u32, sequence: u32) {
        let mut payload = blank_payload(STAMP_BYTES);
        Stamp { room, sequence, intended_ns: 1_000 }.write(&mut payload);
        let first_room = tally.seating.first_room(connection);
        tally.take(connection, first_room, &payload, payload.len() as u64, 5_000);
    }

    fn one_room(connections: usize) -> Tally {
        Tally::new(Seating { rooms: 1, rooms_per_connection: 1 }, 0, connections)
    }

    #[test]
    fn messages_in_order_are_only_deliveries() {
        let mut tally = one_room(1);
        (0..100).for_each(|sequence| take(&mut tally, 0, 0, sequence));
        assert_eq!(tally.counts.delivered, 100);
        assert!(tally.counts.is_clean());
    }

    #[test]
    fn a_skipped_message_is_a_gap_until_it_arrives_late() {
        let mut tally = one_room(1);
        [0, 1, 4].iter().for_each(|sequence| take(&mut tally, 0, 0, *sequence));
        assert_eq!((tally.counts.delivered, tally.counts.gaps), (3, 2));
        take(&mut tally, 0, 0, 3);
        assert_eq!((tally.counts.delivered, tally.counts.gaps, tally.counts.out_of_order), (4, 1, 1));
        take(&mut tally, 0, 0, 3);
        take(&mut tally, 0, 0, 4);
        assert_eq!((tally.counts.delivered, tally.counts.duplicates), (4, 2));
        take(&mut tally, 0, 0, 500);
        assert_eq!((tally.counts.gaps, tally.counts.duplicates), (496, 2));
    }

    #[test]
    fn a_message_of_another_room_is_told_apart() {
        let mut tally = Tally::new(Seating { rooms: 5, rooms_per_connection: 2 }, 0, 3);
        // Connection 2 is in rooms 4 and 0.
        take(&mut tally, 2, 4, 0);
        take(&mut tally, 2, 0, 0);
        take(&mut tally, 2, 1, 0);
        take(&mut tally, 2, 9, 0);
        assert_eq!((tally.counts.delivered, tally.counts.wrong_room), (2, 2));
    }

    #[test]
    fn a_message_is_complete_when_its_last_copy_is_there_and_those_before_it() {
        let mut tally = one_room(2);
        tally.begin(0, true);
        take(&mut tally, 0, 0, 0);
        take(&mut tally, 0, 0, 1);
        assert_eq!(tally.complete(), 0, "two copies of two messages at one member are no message at both");
        take(&mut tally, 1, 0, 0);
        assert_eq!(tally.complete(), 1);
        take(&mut tally, 1, 0, 1);
        assert_eq!(tally.complete(), 2);
    }

    #[test]
    fn every_room_is_seated_evenly() {
        let seating = Seating { rooms: 10, rooms_per_connection: 3 };
        assert_eq!(seating.members(0..100), vec![30; 10]);
        assert_eq!(seating.rooms_of(3).collect::<Vec<_>>(), [9, 0, 1]);
    }
}
