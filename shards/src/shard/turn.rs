//! The pass: every connection is sent, in one operation, what the rooms it is in have got since the last pass.
//!
//! First the dirty rooms, one after the other: a member that has only this room gets the room's one shared buffer; a
//! member that has several is collected. Then the collected ones, each with the buffers of all its dirty rooms. A batch
//! holds up to [`BATCH_SENDS_MAX`](crate::limits::BATCH_SENDS_MAX) sends and fills across rooms.
//!
//! A pass may be left between two batches and taken up again ([`Progress::More`]). Meanwhile members may join (they stand
//! at the head and are passed over), leave (tombstones) and stall; commands from the relay may not be handled.

use std::ops::Range;

use bytes::Bytes;

use super::{Micros, Shard, Wire};
use crate::close::CloseReason;
use crate::command::ConnectionId;
use crate::config::Dialect;
use crate::metrics::DropReason;
use crate::room::{Room, TOMBSTONE};

/// 256 >> 4: sixteen sends are still one system call for sixteen.
const HALVINGS_MAX: u32 = 4;

/// Whether a pass is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Call [`Shard::step`] again, after others had their turn.
    More,
    /// Everybody who can be has been sent everything.
    Done,
}

/// What a room sends in this pass.
#[derive(Debug)]
enum Chunk {
    /// One frame, as it is.
    Frame(Bytes),
    /// Several, concatenated once, in the batch's arena.
    Arena(Range<usize>),
}

/// One send: the chunks of `shares`, in order, to `socket`.
#[derive(Debug, Clone, Copy)]
pub struct SendOp {
    /// Where to.
    pub socket: i32,
    /// Length of all chunks together.
    pub bytes: usize,
    slot: u32,
    shares_from: u32,
    shares: u32,
    /// Publications in it.
    frames: u32,
    /// Notices in it, each in the place of a publication.
    notices: u32,
}

/// What one connection is owed by one room.
#[derive(Debug, Clone, Copy)]
struct Share {
    room: u32,
    member: u32,
    chunk: u32,
    /// Where the cursor stood.
    from: u64,
}

/// Sends that leave together; the buffers lie in it.
#[derive(Debug, Default)]
pub struct Batch {
    ops: Vec<SendOp>,
    shares: Vec<Share>,
    chunks: Vec<Chunk>,
    arena: Vec<u8>,
}

impl Batch {
    /// The sends.
    pub fn ops(&self) -> &[SendOp] {
        &self.ops
    }

    /// The buffers of one send, in order. They stay where they are until the batch changes.
    pub fn slices(&self, op: &SendOp) -> impl ExactSizeIterator<Item = &[u8]> {
        let shares = &self.shares[op.shares_from as usize..(op.shares_from + op.shares) as usize];
        shares.iter().map(|share| match &self.chunks[share.chunk as usize] {
            Chunk::Frame(bytes) => bytes.as_ref(),
            Chunk::Arena(range) => &self.arena[range.clone()],
        })
    }

    /// Adds what everybody at `passed` who is spoken to in `dialect` is owed by `room`.
    fn chunk_of(&mut self, room: &Room, dialect: Dialect) {
        if room.head - room.passed == 1 {
            let wire = room.entry(room.passed).map(|e| e.wire_for(dialect).clone());
            return self.chunks.push(Chunk::Frame(wire.unwrap_or_default()));
        }
        let start = self.arena.len();
        for entry in room.entries_from(room.passed.max(room.base())) {
            self.arena.extend_from_slice(entry.wire_for(dialect));
        }
        self.chunks.push(Chunk::Arena(start..self.arena.len()));
    }

    fn chunk_len(&self, chunk: u32) -> usize {
        match &self.chunks[chunk as usize] {
            Chunk::Frame(bytes) => bytes.len(),
            Chunk::Arena(range) => range.len(),
        }
    }
}

#[cfg(test)]
impl Batch {
    /// Adds a send of `parts` to `socket`, for tests of what carries batches.
    pub(crate) fn push(&mut self, socket: i32, parts: &[&[u8]]) {
        let shares_from = self.shares.len() as u32;
        for part in parts {
            let chunk = self.chunks.len() as u32;
            self.chunks.push(Chunk::Frame(Bytes::copy_from_slice(part)));
            self.shares.push(Share { room: 0, member: 0, chunk, from: 0 });
        }
        let bytes = parts.iter().map(|part| part.len()).sum();
        self.ops.push(SendOp {
            socket,
            bytes,
            slot: 0,
            shares_from,
            shares: parts.len() as u32,
            frames: 1,
            notices: 0,
        });
    }
}

/// A share of a connection that has several rooms, until all of them have been visited.
#[derive(Debug, Clone, Copy)]
struct Link {
    share: Share,
    /// Index + 1 of the connection's next link, 0 at the end.
    next: u32,
}

/// A connection that is owed by one or more of the rooms it is in.
#[derive(Debug, Clone, Copy)]
struct Collected {
    id: ConnectionId,
    first: u32,
    last: u32,
}

/// Where a pass is. All of it is scratch that is used again by the next one.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    rooms: Vec<u32>,
    room_at: usize,
    member_at: usize,
    /// The current room has been entered, and its members get these chunks, by [`Dialect::index`].
    chunks: Option<[u32; Dialect::COUNT]>,
    /// Entries of it that are nobody's publication.
    gaps: u64,
    /// Entries in whose place the members of a dialect get a notice, by [`Dialect::index`].
    notices: [u64; Dialect::COUNT],
    excepted: Vec<ConnectionId>,
    links: Vec<Link>,
    collected: Vec<Collected>,
    collected_at: usize,
    alone: Vec<ConnectionId>,
    batch: Batch,
    taken: Vec<isize>,
    under_way: bool,
    /// Halvings of the batch, so that one takes no longer than [`PASS_SLICE`](crate::limits::PASS_SLICE).
    halvings: u32,
}

impl Pass {
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// The rooms that the pass visits.
    pub(crate) fn rooms(&self) -> &[u32] {
        &self.rooms
    }

    /// Panics if an invariant is broken.
    pub(crate) fn check(&self) {
        assert!(self.batch.ops.is_empty() && self.batch.shares.is_empty(), "a batch was not sent");
        assert!(
            self.room_at <= self.rooms.len() && self.collected_at <= self.collected.len(),
            "past the end"
        );
        let is_clear = self.rooms.is_empty() && self.collected.is_empty() && self.links.is_empty();
        assert!(self.under_way || (is_clear && self.alone.is_empty()), "a pass left something behind");
    }
}

impl Shard {
    /// Whether a pass would have something to do.
    pub fn has_dirty_rooms(&self) -> bool {
        !self.dirty.is_empty() || self.pass.under_way
    }

    /// Sends in the largest batch.
    pub fn batch_sends_max(&self) -> usize {
        self.setup.engine.batch_sends_max
    }

    /// Sends in the next batch.
    fn batch_sends(&self) -> usize {
        (self.setup.engine.batch_sends_max >> self.pass.halvings).max(1)
    }

    /// Tells how long the last batch took: large frames are sent in smaller batches, so that others on the thread wait no
    /// longer than [`PASS_SLICE`](crate::limits::PASS_SLICE) (256 sends of 128 B take 1 ms, of 16 KiB several).
    pub fn note_batch(&mut self, length: std::time::Duration) {
        let slice = self.setup.engine.pass_slice;
        let pass = &mut self.pass;
        if length > slice {
            pass.halvings = (pass.halvings + 1).min(HALVINGS_MAX);
        } else if length < slice / 3 {
            pass.halvings = pass.halvings.saturating_sub(1);
        }
    }

    /// Sends one batch. Begins a pass if none is under way.
    pub fn step(&mut self, wire: &mut impl Wire, now: Micros) -> Progress {
        if !self.pass.under_way {
            debug_assert!(self.pass.rooms.is_empty(), "a pass was not finished");
            std::mem::swap(&mut self.pass.rooms, &mut self.dirty);
            self.pass.under_way = true;
        }
        self.fill_from_rooms(wire, now);
        if self.pass.batch.ops.len() < self.batch_sends() {
            self.fill_from_collected();
        }
        self.flush(wire, now);
        let over =
            self.pass.room_at == self.pass.rooms.len() && self.pass.collected_at == self.pass.collected.len();
        match over {
            true => self.finish(wire, now),
            false => self.keep_memory_budget(wire, now),
        }
        self.debug_check();
        if over { Progress::Done } else { Progress::More }
    }

    fn fill_from_rooms(&mut self, wire: &mut impl Wire, now: Micros) {
        while self.pass.room_at < self.pass.rooms.len() {
            let room_index = self.pass.rooms[self.pass.room_at];
            let chunks = match self.pass.chunks {
                Some(chunks) => chunks,
                None => self.enter_room(room_index),
            };
            loop {
                if self.pass.batch.ops.len() >= self.batch_sends() {
                    return;
                }
                let Some(room) = self.rooms.at_mut(room_index) else { break };
                let Some(member) = room.members.get_mut(self.pass.member_at) else { break };
                let member_index = self.pass.member_at as u32;
                self.pass.member_at += 1;
                if member.slot == TOMBSTONE || member.cursor == room.head {
                    continue;
                }
                let Some(connection) = self.connections.at(member.slot) else { continue };
                let slot = member.slot;
                if connection.stalled.is_some() || member.cursor != room.passed {
                    room.lagging = true;
                    self.visit_laggard(slot, room_index, member_index, wire, now);
                    continue;
                }
                let spoken = connection.dialect.index();
                let chunk = chunks[spoken];
                let share = Share { room: room_index, member: member_index, chunk, from: member.cursor };
                if !self.pass.excepted.is_empty()
                    && let Some(generation) = self.connections.generation(slot)
                    && let id = (ConnectionId { shard: self.index, generation, slot })
                    && self.pass.excepted.contains(&id)
                {
                    room.lagging = true;
                    self.pass.alone.push(id);
                    continue;
                }
                if connection.subscriptions.len() > 1 {
                    self.collect(slot, share);
                    continue;
                }
                let notices = self.pass.notices[spoken];
                let batch = &mut self.pass.batch;
                let frames = room.head - member.cursor - self.pass.gaps - notices;
                member.cursor = room.head;
                let bytes = batch.chunk_len(chunk);
                if bytes == 0 {
                    continue;
                }
                batch.ops.push(SendOp {
                    socket: connection.socket,
                    bytes,
                    slot,
                    shares_from: batch.shares.len() as u32,
                    shares: 1,
                    frames: frames as u32,
                    notices: notices as u32,
                });
                batch.shares.push(share);
            }
            self.pass.chunks = None;
            self.pass.member_at = 0;
            self.pass.room_at += 1;
        }
    }

    /// Makes the room's shared buffer: what everybody at `passed` is owed. Where members are spoken to in several dialects
    /// it makes one for each.
    fn enter_room(&mut self, room_index: u32) -> [u32; Dialect::COUNT] {
        let Self { rooms, pass, .. } = self;
        let mut chunks = [pass.batch.chunks.len() as u32; Dialect::COUNT];
        pass.excepted.clear();
        (pass.gaps, pass.notices) = (0, [0; Dialect::COUNT]);
        if let Some(room) = rooms.at_mut(room_index) {
            room.in_pass = true;
            let from = room.passed.max(room.base());
            pass.gaps = room.gaps_from(from);
            if room.is_mixed() {
                let spoken = |dialect: &Dialect| room.speakers_len(*dialect) > 0;
                for dialect in Dialect::ALL.into_iter().filter(spoken) {
                    chunks[dialect.index()] = pass.batch.chunks.len() as u32;
                    pass.batch.chunk_of(room, dialect);
                }
            } else {
                pass.batch.chunk_of(room, Dialect::Raw);
            }
            if room.has_others() {
                for dialect in Dialect::ALL {
                    pass.notices[dialect.index()] = room.replaced_from(from, dialect);
                }
            }
            if !room.is_uniform() {
                pass.excepted.extend(room.entries_from(room.passed).filter_map(|e| e.except));
            }
        }
        pass.chunks = Some(chunks);
        chunks
    }

    /// A member that is behind: stalled ones are held to their limits, others are sent to alone after the pass.
    fn visit_laggard(&mut self, slot: u32, room: u32, member: u32, wire: &mut impl Wire, now: Micros) {
        let Some(id) = self.id_of(slot) else { return };
        if self.connections.at(slot).is_some_and(|c| c.stalled.is_none()) {
            self.pass.alone.push(id);
            return;
        }
        self.enforce_limits(id, room, member, wire, now);
    }

    fn collect(&mut self, slot: u32, share: Share) {
        let Some(id) = self.id_of(slot) else { return };
        let Self { connections, pass, .. } = self;
        let Some(connection) = connections.at_mut(slot) else { return };
        pass.links.push(Link { share, next: 0 });
        let link = pass.links.len() as u32;
        if connection.collected == 0 {
            pass.collected.push(Collected { id, first: link, last: link });
            connection.collected = pass.collected.len() as u32;
            return;
        }
        let collected = &mut pass.collected[connection.collected as usize - 1];
        pass.links[collected.last as usize - 1].next = link;
        collected.last = link;
    }

    fn fill_from_collected(&mut self) {
        while self.pass.collected_at < self.pass.collected.len()
            && self.pass.batch.ops.len() < self.batch_sends()
        {
            let Collected { id, first, .. } = self.pass.collected[self.pass.collected_at];
            self.pass.collected_at += 1;
            let Self { connections, rooms, pass, index, .. } = self;
            // The pass may have been left since: whoever closed is gone from its rooms, whoever stalled catches up alone.
            if id.shard != *index || !connections.holds(id.slot, id.generation) {
                continue;
            }
            let Some(connection) = connections.at_mut(id.slot) else { continue };
            connection.collected = 0;
            let (stalled, dialect) = (connection.stalled.is_some(), connection.dialect);
            let batch = &mut pass.batch;
            let shares_from = batch.shares.len();
            let (mut bytes, mut frames, mut notices) = (0, 0, 0);
            let mut next = first;
            while next != 0 {
                let link = pass.links[next as usize - 1];
                next = link.next;
                let Some(room) = rooms.at_mut(link.share.room) else { continue };
                let Some(member) = room.members.get(link.share.member as usize).copied() else { continue };
                // Whoever stalled and caught up meanwhile has got it.
                if member.slot != id.slot || member.cursor == room.head {
                    continue;
                }
                if stalled || member.cursor != link.share.from {
                    room.lagging = true;
                    continue;
                }
                let replaced = room.replaced_from(member.cursor, dialect);
                frames += (room.publications_from(member.cursor) - replaced) as u32;
                notices += replaced as u32;
                room.members[link.share.member as usize].cursor = room.head;
                bytes += batch.chunk_len(link.share.chunk);
                batch.shares.push(link.share);
            }
            let shares = (batch.shares.len() - shares_from) as u32;
            if bytes == 0 {
                batch.shares.truncate(shares_from);
            } else {
                let (socket, slot, shares_from) = (connection.socket, id.slot, shares_from as u32);
                batch.ops.push(SendOp { socket, bytes, slot, shares_from, shares, frames, notices });
            }
        }
    }

    fn flush(&mut self, wire: &mut impl Wire, now: Micros) {
        if self.pass.batch.ops.is_empty() {
            return;
        }
        self.pass.taken.clear();
        wire.send_batch(&self.pass.batch, &mut self.pass.taken);
        assert!(self.pass.taken.len() == self.pass.batch.ops.len(), "a send without a result");
        let (mut deliveries, mut notices, mut bytes, mut short) = (0u64, 0u64, 0u64, Vec::new());
        for (op, taken) in self.pass.batch.ops.iter().zip(&self.pass.taken) {
            if *taken == op.bytes as isize {
                deliveries += u64::from(op.frames);
                notices += u64::from(op.notices);
                bytes += op.bytes as u64;
            } else {
                short.push((*op, *taken));
            }
        }
        let metrics = self.metrics();
        metrics.sends.add(self.pass.batch.ops.len() as u64);
        metrics.deliveries.add(deliveries);
        metrics.drops.add(DropReason::TooLong, notices);
        metrics.sent_bytes.add(bytes);
        for (op, taken) in short {
            self.fell_short(op, taken, wire, now);
        }
        self.pass.batch.ops.clear();
        self.pass.batch.shares.clear();
    }

    /// Puts the cursors of a send that was not taken whole back to where it ended.
    fn fell_short(&mut self, op: SendOp, taken: isize, wire: &mut impl Wire, now: Micros) {
        let Some(id) = self.id_of(op.slot) else { return };
        self.stall(id, now);
        let mut left = taken.max(0) as usize;
        for at in op.shares_from..op.shares_from + op.shares {
            let share = self.pass.batch.shares[at as usize];
            let Some(room) = self.rooms.at_mut(share.room) else { continue };
            room.members[share.member as usize].cursor = share.from;
            let head = room.head;
            left = self.move_cursor(id, share.room, share.member, head, left);
        }
        if taken < 0 {
            self.close(id, CloseReason::PeerVanished, wire, now);
        }
    }

    fn finish(&mut self, wire: &mut impl Wire, now: Micros) {
        let rooms = std::mem::take(&mut self.pass.rooms);
        if self.setup.noticed.broadcasts {
            self.note_broadcasts(&rooms);
        }
        for room_index in &rooms {
            let Self { rooms, connections, setup, index, .. } = self;
            let Some(room) = rooms.at_mut(*room_index) else { continue };
            if let Some(oldest) = room.entry(room.passed.max(room.base())) {
                let age = std::time::Duration::from_micros(now.0.saturating_sub(oldest.arrived_micros));
                let publications = room.publications_from(room.passed.max(room.base()));
                setup.metrics.shards[*index as usize].delivery_seconds.record(age, publications);
            }
            room.in_pass = false;
            room.dirty = false;
            room.passed = room.head;
            room.compact(|member, moved_to| {
                if let Some(connection) = connections.at_mut(member.slot) {
                    connection.subscriptions[member.subscription as usize].member = moved_to;
                }
            });
        }
        let pass = &mut self.pass;
        pass.room_at = 0;
        pass.collected_at = 0;
        pass.collected.clear();
        pass.links.clear();
        pass.batch.chunks.clear();
        pass.batch.arena.clear();
        // 1 MiB: a turn's concatenation is bounded by TURN_BYTES_MAX, but for one publication larger than that.
        pass.batch.arena.shrink_to(1 << 20);
        pass.under_way = false;
        for id in std::mem::take(&mut pass.alone) {
            self.send_alone(id, wire, now);
        }
        for room_index in &rooms {
            self.evict(*room_index);
            self.note_lagging(*room_index);
        }
        self.pass.rooms = rooms;
        self.pass.rooms.clear();
        self.keep_memory_budget_after_pass(wire, now);
    }
}
