//! What a receiver process knows about its deliveries: counted, in order, once, in the right room. Pure.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, LatencyPairs};
use crate::rhythm::Timetable;
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

/// A connection that ends has been told of nothing that was due so shortly before: it was still under way, here, through the
/// server and in Redis. Beside it counts what the slowest delivery took that came meanwhile, for machines that are busy.
pub const UNDER_WAY: Duration = Duration::from_secs(1);

/// What was counted since the measurement began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages that arrived, each once per connection and room, late ones included.
    pub delivered: u64,
    /// Messages that were passed over and have not arrived since, and those that had been due for longer than they are
    /// [`UNDER_WAY`] when a connection ended without them.
    pub gaps: u64,
    /// Messages that a connection missed because it was not there: due after its end (or under way then) and before the 101
    /// with which it came back.
    #[serde(default)]
    pub absent: u64,
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
    /// The same of connections that read when they like.
    #[serde(default)]
    pub slow_closes: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds another process's.
    pub fn merge(&mut self, other: &Counts) {
        self.delivered += other.delivered;
        self.gaps += other.gaps;
        self.absent += other.absent;
        self.duplicates += other.duplicates;
        self.out_of_order += other.out_of_order;
        self.wrong_room += other.wrong_room;
        self.unreadable += other.unreadable;
        self.bytes += other.bytes;
        self.pings += other.pings;
        for (all, more) in [(&mut self.closes, &other.closes), (&mut self.slow_closes, &other.slow_closes)] {
            for (code, count) in more {
                *all.entry(code.clone()).or_default() += count;
            }
        }
    }

    /// Whether every message that was seen was seen where, when and as often as it should.
    pub fn is_clean(&self) -> bool {
        self.is_faithful() && self.closes.is_empty()
    }

    /// The same, whoever was closed: no connection missed anything while it was there.
    pub fn is_faithful(&self) -> bool {
        self.gaps == 0 && self.is_undamaged()
    }

    /// Whether what arrived was whole, in order, once and in the right room, whatever did not arrive.
    pub fn is_undamaged(&self) -> bool {
        let is_broken = |code: &String| code.starts_with(BROKEN);
        self.duplicates + self.out_of_order + self.wrong_room + self.unreadable == 0
            && !self.closes.keys().chain(self.slow_closes.keys()).any(is_broken)
    }
}

/// How the name of an end begins that came of a frame with something wrong in it.
pub const BROKEN: &str = "broken: ";

/// What is still open when nothing comes any more, of all connections of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Messages that connections have not had although they were there: lost without a word.
    pub missing: u64,
    /// Messages since their end that connections which are gone have not had, and since they are back before their 101.
    pub absent: u64,
}

impl Settled {
    /// Adds another process's.
    pub fn merge(&mut self, other: &Settled) {
        self.missing += other.missing;
        self.absent += other.absent;
    }
}

/// One connection's place in one room.
#[derive(Debug, Clone, Copy, Default)]
struct Seat {
    next: u32,
    /// The connection has come back and has heard nothing here since.
    is_new_life: bool,
    /// Bit n: message `next - 1 - n` has arrived.
    arrived: u64,
}

/// What is known of connections that end and come back.
struct Lives {
    timetable: Timetable,
    /// When each connection's last 101 came; 0: that of the beginning.
    opened_ns: Vec<u64>,
    /// Until when it was owed what was due, where its life has ended without a word from the server.
    ended_ns: Vec<Option<u64>>,
    /// What the slowest delivery took, in this measurement and in the one before.
    slowest_ns: [u64; 2],
    /// Came back and has heard nothing since.
    is_deaf: Vec<bool>,
    firsts: Latencies,
    heard: u64,
}

/// The deliveries of one receiver process.
pub struct Tally {
    seating: Seating,
    /// Number of the first connection within the run.
    first: usize,
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
    lives: Option<Lives>,
    /// Every so many-th connection reads when it likes: its latency says nothing of the server.
    untimed_every: Option<usize>,
}

impl Tally {
    /// For the connections `first..first + connections` of the run.
    pub fn new(seating: Seating, first: usize, connections: usize) -> Self {
        Self {
            seating,
            first,
            seats: vec![Seat::default(); connections * seating.rooms_per_connection as usize],
            counts: Counts::default(),
            latencies: Latencies::new(),
            members: seating.members(first..first + connections),
            complete: 0,
            copies: None,
            lives: None,
            untimed_every: None,
        }
    }

    /// From now on the latency of every so many-th connection is not counted.
    pub fn leave_untimed(&mut self, every: usize) {
        self.untimed_every = Some(every);
    }

    /// The first room of a connection, by its index in this process.
    pub fn first_room(&self, connection: usize) -> u32 {
        self.seating.first_room(self.first + connection)
    }

    /// Connections may end and come back from now on, while messages are due by `timetable`.
    pub fn expect_returns(&mut self, timetable: Timetable) {
        let connections = self.seats.len() / self.seating.rooms_per_connection as usize;
        self.lives = Some(Lives {
            timetable,
            opened_ns: vec![0; connections],
            ended_ns: vec![None; connections],
            slowest_ns: [0; 2],
            is_deaf: vec![false; connections],
            firsts: Latencies::new(),
            heard: 0,
        });
    }

    /// `connection` ended at `ended_ns` (or said goodbye then): what had been due for longer than it is under way was owed to
    /// it. Nothing was to who `was_told` by the server that it ends, and to who reads when it likes.
    pub fn part(&mut self, connection: usize, ended_ns: u64, was_told: bool) {
        let is_excused = was_told || self.reads_when_it_likes(connection);
        if let Some(lives) = &mut self.lives {
            lives.ended_ns[connection] = (!is_excused).then_some(ended_ns);
        }
    }

    /// `connection` had its 101 again at `opened_ns`: what is due after that it is owed.
    pub fn rejoin(&mut self, connection: usize, opened_ns: u64) {
        let first_room = self.first_room(connection);
        let Some(lives) = &mut self.lives else { return };
        let Seating { rooms, rooms_per_connection } = self.seating;
        let seats = &mut self.seats[connection * rooms_per_connection as usize..];
        for (place, seat) in (0..rooms_per_connection).zip(seats) {
            let lost = lives.lost_by_end(connection, (first_room + place) % rooms, seat);
            seat.lose(lost, &mut self.counts);
            seat.is_new_life = true;
        }
        lives.opened_ns[connection] = opened_ns;
        lives.ended_ns[connection] = None;
        lives.is_deaf[connection] = true;
    }

    /// Whether a connection is one of those whose latency is not counted.
    pub fn reads_when_it_likes(&self, connection: usize) -> bool {
        self.untimed_every.is_some_and(|every| connection.is_multiple_of(every))
    }

    /// A connection ended that had not said goodbye: `end` is the close code, or what there was instead.
    pub fn count_close(&mut self, connection: usize, end: String) {
        let closes = match self.reads_when_it_likes(connection) {
            true => &mut self.counts.slow_closes,
            false => &mut self.counts.closes,
        };
        *closes.entry(end).or_default() += 1;
    }

    /// Connections that came back and have heard something since, each time counted.
    pub fn heard(&self) -> u64 {
        self.lives.as_ref().map_or(0, |lives| lives.heard)
    }

    /// From a return's 101 to its first delivery.
    pub fn firsts(&self) -> LatencyPairs {
        self.lives.as_ref().map(|lives| lives.firsts.pairs()).unwrap_or_default()
    }

    /// Compares with the messages that each room has had; `is_open` tells which connections are there.
    pub fn settle(&self, heads: &[u32], is_open: impl Fn(usize) -> bool) -> Settled {
        let rooms_each = self.seating.rooms_per_connection as usize;
        let mut settled = Settled::default();
        for (at, seat) in self.seats.iter().enumerate() {
            let (connection, place) = (at / rooms_each, (at % rooms_each) as u32);
            let first_room = self.first_room(connection);
            let room = (first_room + place) % self.seating.rooms;
            let behind = heads.get(room as usize).map_or(0, |head| head.saturating_sub(seat.next));
            let owed = match &self.lives {
                Some(lives) if !is_open(connection) => {
                    let lost = lives.lost_by_end(connection, room, seat);
                    lost.end.saturating_sub(lost.start).min(behind)
                }
                None if !is_open(connection) => 0,
                Some(lives) if seat.is_new_life => {
                    let from = lives.timetable.first_owed(room, lives.opened_ns[connection]);
                    behind.saturating_sub(from.saturating_sub(seat.next))
                }
                _ => behind,
            };
            settled.missing += u64::from(owed);
            settled.absent += u64::from(behind - owed);
        }
        settled
    }

    /// Forgets what was counted, not who has seen what. With `track`, completeness is counted from message `number` on.
    pub fn begin(&mut self, number: u64, track: bool) {
        self.take_counted();
        self.complete = number;
        self.copies = track.then(|| vec![0; TRACKED_MAX as usize]);
    }

    /// What was counted, which begins again at zero.
    pub fn take_counted(&mut self) -> (Counts, LatencyPairs) {
        if let Some(lives) = &mut self.lives {
            lives.slowest_ns = [0, lives.slowest_ns[0]];
        }
        let latencies = self.latencies.pairs();
        self.latencies.clear();
        (std::mem::take(&mut self.counts), latencies)
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
        if let Some(lives) = self.lives.as_mut().filter(|lives| seat.is_new_life || lives.is_deaf[connection])
        {
            lives.hear(connection, now_ns);
            if seat.is_new_life {
                let owed = lives.timetable.first_owed(stamp.room, lives.opened_ns[connection]);
                seat.begin_life(stamp.sequence, owed, &mut self.counts);
            }
        }
        if stamp.sequence == seat.next {
            seat.next = seat.next.wrapping_add(1);
            seat.arrived = seat.arrived << 1 | 1;
        } else if !seat.take_irregular(stamp.sequence, &mut self.counts) {
            return;
        }
        self.counts.delivered += 1;
        if !self.reads_when_it_likes(connection) {
            let latency_ns = now_ns.saturating_sub(stamp.intended_ns);
            self.latencies.record(latency_ns);
            if let Some(lives) = &mut self.lives {
                lives.slowest_ns[0] = lives.slowest_ns[0].max(latency_ns);
            }
        }
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

impl Lives {
    /// The messages of `room` that `connection` was owed when its last life ended, and has not had.
    fn lost_by_end(&self, connection: usize, room: u32, seat: &Seat) -> Range<u32> {
        let Some(ended_ns) = self.ended_ns[connection] else { return 0..0 };
        let from = match seat.is_new_life {
            true => self.timetable.first_owed(room, self.opened_ns[connection]).max(seat.next),
            false => seat.next,
        };
        let [now_ns, before_ns] = self.slowest_ns;
        let under_way_ns = UNDER_WAY.as_nanos() as u64 + now_ns.max(before_ns);
        from..self.timetable.first_owed(room, ended_ns.saturating_sub(under_way_ns))
    }

    /// A delivery has come; the first one since the return is noted.
    fn hear(&mut self, connection: usize, now_ns: u64) {
        if std::mem::take(&mut self.is_deaf[connection]) {
            self.firsts.record(now_ns.saturating_sub(self.opened_ns[connection]));
            self.heard += 1;
        }
    }
}

impl Seat {
    /// A life has ended without these messages: those before them were missed by being away.
    fn lose(&mut self, lost: Range<u32>, counts: &mut Counts) {
        if lost.is_empty() {
            return;
        }
        counts.gaps += u64::from(lost.end - lost.start);
        counts.absent += u64::from(lost.start - self.next);
        (self.next, self.arrived) = (lost.end, 0);
    }

    /// The first message of a new life is `sequence`, and all from `owed` on were due after it began: those before were
    /// missed by being away, those from there on were lost.
    fn begin_life(&mut self, sequence: u32, owed: u32, counts: &mut Counts) {
        self.is_new_life = false;
        let skipped = sequence.saturating_sub(self.next);
        let lost = sequence.saturating_sub(owed.max(self.next)).min(skipped);
        counts.gaps += u64::from(lost);
        counts.absent += u64::from(skipped - lost);
        if skipped > 0 {
            (self.next, self.arrived) = (sequence, 0);
        }
    }

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
mod tests;
