//! Step 4 of 5: what each connection is owed.
//!
//! A shard holds connections and rooms. Its runtime calls it with what happened ([`Shard::handle`] for commands from the
//! relay, `receive` for input, [`Shard::writable`], [`Shard::sweep`]) and with a [`Wire`] to send on; it answers with
//! [`Action`]s and [`Up`] commands. It never waits, never reads a clock, and knows a socket only as a number.
//!
//! The parts: this file owns the connections' membership and life; `shard/turn.rs` the pass that sends; `shard/stall.rs`
//! what happens to a connection whose socket takes no more (`shard/stalled.rs`: what is kept for it); `shard/inbound.rs` what clients say, `shard/dialogue.rs` what
//! those of the JSON dialect say, `shard/held.rs` how much of it may wait for its end, `shard/budget.rs`
//! how much slow readers may make it keep, `shard/kept.rs` what that is beside the windows.
//!
//! A connection that is not stalled stands at the head of all its rooms between passes, and nothing of it is half sent.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::arena::Arena;
use crate::close::CloseReason;
use crate::command::{ConnectionId, Down, Label, Ledger, Report, RoomSlot, Up};
use crate::config::{Dialect, SlowPolicy};
use crate::dialect::{Gap, Lost, Standing};
use crate::envelope;
use crate::frame::Frame;
use crate::limits::{ADMIN_CONNECTIONS_MAX, CLOSE_LINGER, ROOM_LINGER, SLOW_CLOSE_LINGER, TURN_COMMANDS_MAX};
use crate::metrics::{DropReason, GapReason, Label as _, ShardMetrics};
use crate::notice::Notice;
use crate::room::{NO_SOURCE, Room, Stage, TOMBSTONE};
use crate::session::Session;
use crate::setup::Setup;
use crate::tcp::Tcp;
use crate::window::{Entry, Forms, Window};

mod budget;
mod check;
mod conflate;
mod dialogue;
mod forms;
mod held;
mod inbound;
mod kept;
mod newcomers;
mod notices;
mod polls;
mod questions;
mod slow;
mod stall;
mod stalled;
mod survey;
#[cfg(test)]
mod tests;
mod turn;
mod wish;

pub use inbound::{ADMIN, Next};
pub use stalled::Stalled;
pub use turn::{Batch, Progress, SendOp};

/// Microseconds since the start of the process. The only time a shard knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Micros(pub u64);

/// Length of a tick of the sweep, in microseconds. 2^32 ticks are 13 years.
pub const TICK_MICROS: u64 = 100_000;
/// The sweep visits each connection once in this many ticks.
pub const SWEEP_TICKS: u32 = 10;

impl Micros {
    /// Ticks since the start.
    pub fn ticks(self) -> u32 {
        (self.0 / TICK_MICROS) as u32
    }
}

/// Ticks in a duration, at least one.
pub(crate) fn ticks_in(duration: std::time::Duration) -> u32 {
    (duration.as_micros() as u64).div_ceil(TICK_MICROS).clamp(1, u64::from(u32::MAX / 2)) as u32
}

/// How a shard sends. Nothing of it waits.
pub trait Wire {
    /// Sends what the socket takes of `bytes` now. Returns how many it took, 0 when it is full, -1 when it is broken.
    fn send(&mut self, socket: i32, bytes: &[u8]) -> isize;

    /// Sends every operation of `batch`; appends to `taken`, in their order, what [`send`](Self::send) would return.
    fn send_batch(&mut self, batch: &Batch, taken: &mut Vec<isize>);

    /// What the kernel says of a socket's TCP: a system call, for who asks why one is slow. `None` where it says nothing.
    fn tcp(&mut self, socket: i32) -> Option<Tcp> {
        let _no_kernel_here = socket;
        None
    }
}

/// What the runtime has to do for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Call [`Shard::writable`] once its socket takes bytes again.
    AwaitWritable(ConnectionId),
    /// Read it again.
    Resume(ConnectionId),
    /// Shut its socket down for writing; input goes on being read and thrown away.
    ShutdownWrite(ConnectionId),
    /// Shut its socket down altogether, so that reading ends.
    Shutdown(ConnectionId),
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// An HTTP request is due.
    Head,
    /// Its 101 waits for `Joined`.
    Joining,
    /// Its HTTP answer waits for the relay.
    Answering,
    /// A WebSocket.
    Open,
    /// Only its end is due; what it says is thrown away.
    Closing,
}

/// Not read because its 101 or its HTTP answer is due.
pub(crate) const PAUSED_BY_ANSWER: u8 = 1;
/// Not read because its lane holds too much.
pub(crate) const PAUSED_BY_LANE: u8 = 2;
/// Not read because there is no space on the way to the relay.
pub(crate) const PAUSED_BY_UP: u8 = 4;

/// One membership of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscription {
    /// Index of the room.
    pub room: u32,
    /// Index among the room's members.
    pub member: u32,
}

/// One socket and all that is known of it. Plain data: nothing of a connection lives on a future's stack.
#[derive(Debug)]
pub(crate) struct Connection {
    pub socket: i32,
    pub phase: Phase,
    /// Index of the listener, [`ADMIN`] for the admin address.
    pub listener: u8,
    /// How it is spoken to; [`Dialect::Echo`]: its messages come back to it.
    pub dialect: Dialect,
    pub publish: crate::config::Publish,
    pub hear_self: bool,
    /// See [`Routes::route`](crate::route::Routes::route).
    pub route: u16,
    /// A ping is on its way.
    pub pinged: bool,
    /// Why it is not read: [`PAUSED_BY_ANSWER`] and its like, 0 while it is.
    pub paused: u8,
    /// HTTP: the connection stays open after the answer.
    pub keep_alive: bool,
    /// Why it ends; set once.
    pub reason: Option<CloseReason>,
    /// Ticks of silence after which it is pinged; 0 never.
    pub ping: u32,
    /// Rooms whose `Joined` is due.
    pub joining: u16,
    /// Tick at which something was last heard; while in `Head`, tick of the accept.
    pub heard: u32,
    /// Index + 1 in the pass's collection, while it is there.
    pub collected: u32,
    pub subscriptions: SmallVec<[Subscription; 2]>,
    pub stalled: Option<Box<Stalled>>,
    /// Before the 101: input that is not a whole request yet, and the answer that is held back.
    pub pending: Option<Box<Pending>>,
    pub session: Session,
    /// Bytes that it has in [`Shard::input_bytes`].
    pub input_booked: u32,
    pub user: Option<Box<str>>,
    /// Tick of its 101.
    pub opened: u32,
}

/// See [`Connection::pending`].
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub input: Vec<u8>,
    pub reply: Vec<u8>,
    /// Room that a publish over HTTP named.
    pub room: Option<Arc<str>>,
    /// The request was a HEAD.
    pub head_only: bool,
    /// Rooms that it enters when the relay has said what came before.
    pub wishes: Vec<u32>,
    /// Where it stands in the room whose past it asked for.
    pub standing: Option<Standing>,
    /// Tick at which the body of the request in `input` has to be whole; `None` while its head isn't.
    pub body_due: Option<u32>,
}

/// See the module.
pub struct Shard {
    pub(crate) index: u16,
    pub(crate) setup: Arc<Setup>,
    pub(crate) connections: Arena<Connection>,
    pub(crate) rooms: Arena<Room>,
    names: HashTable<u32>,
    /// Of its own in each process: clients choose names and keys, and could choose those that collide under a known one.
    hasher: foldhash::fast::RandomState,
    /// Rooms with entries that no pass has visited.
    pub(crate) dirty: Vec<u32>,
    pub(crate) pass: turn::Pass,
    /// Connections whose socket takes no more; see `Stalled::position`.
    pub(crate) stalled: Vec<u32>,
    /// Rooms without members, oldest first; may hold rooms that have members again.
    empty: VecDeque<(u32, RoomSlot)>,
    /// Connections that are to be cut at a tick, oldest first.
    ending: VecDeque<(u32, ConnectionId)>,
    /// The same for stalled ones, which get longer.
    ending_stalled: VecDeque<(u32, ConnectionId)>,
    /// Windows to be used again.
    #[expect(clippy::vec_box, reason = "a room holds a box, which moves here and back without its content")]
    spare: Vec<Box<Window>>,
    /// Rooms with members behind the others, until a sweep finds none.
    pub(crate) lagging: Vec<u32>,
    pub(crate) window_bytes: u64,
    /// What connections keep beside the windows.
    pub(crate) kept: kept::Kept,
    /// Connections of the admin address, those that are ending included.
    admin: Vec<ConnectionId>,
    /// What connections hold of input that isn't whole.
    pub(crate) input_bytes: u64,
    pub(crate) scratch: Vec<u8>,
    swept_to: u32,
    /// Publishing connections that wait for space in `up` since they were read.
    pub(crate) waiting_up: Vec<ConnectionId>,
    /// Those that were not read for want of it, longest waiting first.
    pub(crate) unread_up: VecDeque<ConnectionId>,
    /// Those of them that were resumed last, and how many of these found the space taken and are first in line again.
    pub(crate) resumed_up: (Vec<ConnectionId>, usize),
    /// The present run of each source that has ever broken.
    runs: Vec<Option<u16>>,
    /// The room to go on with, while rooms are in a run that is over.
    settling: Option<u32>,
    /// Connections that wait to enter a room, because they asked for its past.
    wishers: newcomers::Wishers,
    /// Requests that wait for publications.
    polls: polls::Polls,
    /// To the read that is being taken.
    answers: dialogue::Answers,
    /// Taken by the runtime after each call.
    pub actions: Vec<Action>,
    /// Taken by the runtime after each call; empty but for what [`Noticed`](crate::notice::Noticed) asks for.
    pub notices: Vec<Notice>,
    /// Taken by the runtime after each call; what the ring has no space for stays.
    pub up: VecDeque<Up>,
}

/// Rooms that are told of a break in one turn: as many as a turn takes commands.
const SETTLED_ROOMS_MAX: u32 = TURN_COMMANDS_MAX as u32;
/// Windows kept for reuse: as many rooms as a turn commonly touches.
const SPARE_WINDOWS_MAX: usize = 256;

impl Shard {
    /// A shard without connections.
    pub fn new(index: u16, setup: Arc<Setup>) -> Self {
        Self {
            index,
            setup,
            connections: Arena::default(),
            rooms: Arena::default(),
            names: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            dirty: Vec::new(),
            pass: turn::Pass::default(),
            stalled: Vec::new(),
            empty: VecDeque::new(),
            ending: VecDeque::new(),
            ending_stalled: VecDeque::new(),
            spare: Vec::new(),
            lagging: Vec::new(),
            window_bytes: 0,
            kept: kept::Kept::default(),
            admin: Vec::new(),
            input_bytes: 0,
            scratch: Vec::new(),
            swept_to: 0,
            waiting_up: Vec::new(),
            unread_up: VecDeque::new(),
            resumed_up: (Vec::new(), 0),
            runs: Vec::new(),
            settling: None,
            wishers: newcomers::Wishers::default(),
            polls: polls::Polls::default(),
            answers: dialogue::Answers::default(),
            actions: Vec::new(),
            notices: Vec::new(),
            up: VecDeque::new(),
        }
    }

    /// This shard's numbers.
    pub fn metrics(&self) -> &ShardMetrics {
        &self.setup.metrics.shards[self.index as usize]
    }

    /// Whether the shards of the process have as many connections as it may have. What another shard accepts at this moment
    /// may go over it.
    pub fn is_process_full(&self) -> bool {
        let connections = self.setup.metrics.sum(|shard| shard.connections.value());
        connections >= self.setup.bounds.connections_max as u64
    }

    /// Whether the admin address may have one connection more. Where it may not, the one that has been idle longest is
    /// ended, unless one is ending already.
    pub fn may_accept_admin(&mut self, wire: &mut impl Wire, now: Micros) -> bool {
        if self.admin.len() < ADMIN_CONNECTIONS_MAX {
            return true;
        }
        let connections = self.admin.iter().filter_map(|id| Some((*id, self.connections.at(id.slot)?)));
        let is_ending = connections.clone().any(|(_, connection)| connection.phase == Phase::Closing);
        let idle = connections.filter(|(_, c)| c.phase == Phase::Head && c.pending.is_none());
        let idlest = idle.min_by_key(|(_, connection)| connection.heard).map(|(id, _)| id);
        if let Some(id) = idlest.filter(|_| !is_ending) {
            self.close(id, CloseReason::HttpDone, wire, now);
            // Nothing is on its way to it or from it that would have to be waited for.
            self.actions.push(Action::Shutdown(id));
        }
        false
    }

    /// Bytes of all windows.
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes
    }

    /// Bytes that connections keep beside them.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.bytes()
    }

    /// Questions for rooms' pasts that the relay has not answered.
    pub fn questions_len(&self) -> usize {
        self.wishers.questions.open_len()
    }

    /// Whether the server is leaving.
    pub fn is_draining(&self) -> bool {
        self.setup.is_draining()
    }

    /// Connections now, handshakes included.
    pub fn connections_len(&self) -> usize {
        self.connections.len()
    }

    /// Connections but those of the admin address.
    pub fn clients_len(&self) -> usize {
        self.connections.len() - self.admin.len()
    }

    /// What it shares with the other shards.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Connections that a drain has to close: not those that wait for an answer, nor those that are ending, nor, for
    /// [`CLOSE_LINGER`], those that have just come or been answered: what they ask is on its way and will be answered.
    pub fn open_ids(&self, now: Micros) -> Vec<ConnectionId> {
        let open = self.connections.iter().filter(|(_, c)| match c.phase {
            Phase::Open => true,
            Phase::Head => now.ticks().saturating_sub(c.heard) >= ticks_in(CLOSE_LINGER),
            Phase::Joining | Phase::Answering | Phase::Closing => false,
        });
        open.filter_map(|(slot, _)| self.id_of(slot)).collect()
    }

    pub(crate) fn id_of(&self, slot: u32) -> Option<ConnectionId> {
        let generation = self.connections.generation(slot)?;
        Some(ConnectionId { shard: self.index, generation, slot })
    }

    /// The connection of `id`, if it is still that one.
    pub(crate) fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        if id.shard != self.index || !self.connections.holds(id.slot, id.generation) {
            return None;
        }
        self.connections.at_mut(id.slot)
    }

    // ---- commands from the relay

    /// Takes one command. Publications are only appended; [`step`](Self::step) sends them. Not during a pass.
    pub fn handle(&mut self, command: Down, wire: &mut impl Wire, now: Micros) {
        debug_assert!(!self.pass.is_under_way(), "a command in the middle of a pass");
        self.take_command(command, wire, now);
        self.keep_memory_budget(wire, now);
        self.debug_check();
    }

    fn take_command(&mut self, command: Down, wire: &mut impl Wire, now: Micros) {
        match command {
            Down::Publication { slot, offset, arrived_micros, frame, except, label } => {
                self.metrics().publications.add(1);
                self.append(slot, offset, arrived_micros, frame, except, label.as_deref());
            }
            Down::Warmed(warmed) => self.warmed(*warmed, wire, now),
            Down::Joined { slot, epoch, head, source } => {
                self.begin_room(slot, epoch, head, source);
                self.joined(slot, wire, now);
            }
            Down::Recovered(recovered) => self.recovered(*recovered, wire, now),
            Down::Withdrawn { ticket } => self.answered(ticket),
            Down::Reading(reading) => self.reading(*reading, wire, now),
            Down::Gap { slot, from, to, reason } => self.gap(slot, from, to, reason, now),
            Down::SourceGap { source, run } => self.source_gap(source, run as u16),
            Down::RoomGap { slot, epoch, last } => self.room_gap(slot, epoch, last, now),
            Down::Published { to, outcome } => self.answer_publish(to, outcome, wire, now),
            Down::Ask { question } => {
                let report = Box::new(Report { ledger: self.ledger(), slowest: self.slowest(wire, now) });
                self.up.push_back(Up::Answer { question, report });
            }
            Down::Answer { to, report } => self.answer_stats(to, &report, wire, now),
            Down::Survey { question, wanted, seed, from } => self.survey(question, &wanted, seed, from, now),
            Down::Name { question, places } => self.name(question, &places),
            Down::Surveyed { to, survey } => self.answer_survey(to, survey.as_deref(), wire, now),
        }
    }

    fn room_of(&mut self, slot: RoomSlot) -> Option<&mut Room> {
        if !self.rooms.holds(slot.index, slot.generation as u16) {
            return None;
        }
        self.rooms.at_mut(slot.index)
    }

    fn append(
        &mut self,
        slot: RoomSlot,
        offset: u64,
        arrived_micros: u64,
        frame: Frame,
        except: Option<ConnectionId>,
        label: Option<&Label>,
    ) {
        // Left out are only members: an entry that leaves out somebody who is elsewhere would cost its room the shared buffer.
        let except = except.filter(|id| {
            id.shard == self.index
                && self.connections.holds(id.slot, id.generation)
                && self
                    .connections
                    .at(id.slot)
                    .is_some_and(|c| c.subscriptions.iter().any(|s| s.room == slot.index))
        });
        if self.settling.is_some() {
            self.settle(slot.index, Micros(arrived_micros));
        }
        let Self { rooms, setup, index, .. } = self;
        let metrics = &setup.metrics.shards[*index as usize];
        if !rooms.holds(slot.index, slot.generation as u16) {
            metrics.late.add(1);
            return;
        }
        let Some(room) = rooms.at_mut(slot.index) else { return };
        if room.stage != Stage::Live {
            metrics.late.add(1);
            return;
        }
        room.last = offset;
        if self.polls.are_for(slot.index) {
            self.ask_again(slot.index);
        }
        let Self { rooms, spare, dirty, window_bytes, setup, index, hasher, .. } = self;
        let metrics = &setup.metrics.shards[*index as usize];
        let Some(room) = rooms.at_mut(slot.index) else { return };
        let members = room.members_len() as u64;
        if members == 0 {
            return;
        }
        metrics.owed.add(members);
        let class = setup.routes.class(room.class);
        let key = match class.slow.policy {
            SlowPolicy::Conflate => conflation_key(hasher, class.conflate_key.as_deref(), frame.payload()),
            _ => 0,
        };
        let told = forms::Told { frame, epoch: room.epoch, offset, label };
        let forms = Forms::of(told, room);
        *window_bytes += forms.bytes();
        let window = || spare.pop().unwrap_or_default();
        room.append(Entry::new(forms, offset, key, arrived_micros, except), window);
        if !room.dirty {
            room.dirty = true;
            dirty.push(slot.index);
        }
    }

    /// What the relay said of a room that is about to be live.
    fn begin_room(&mut self, slot: RoomSlot, epoch: u64, head: u64, source: Option<(u8, u16)>) {
        let Some(room) = self.room_of(slot) else { return };
        (room.epoch, room.last) = (epoch, head - 1);
        (room.source, room.run) = source.unwrap_or((NO_SOURCE, 0));
    }

    /// Publications of a room never reached this shard.
    fn gap(&mut self, slot: RoomSlot, from: u64, to: u64, reason: GapReason, now: Micros) {
        let Some(room) = self.room_of(slot).filter(|room| room.stage == Stage::Live) else { return };
        room.last = to - 1;
        let lost = Lost::Range(from, to - 1);
        let gap = Gap { epoch: room.epoch, lost, reason: reason.label() };
        self.append_gap(slot.index, &gap, gap.epoch, now);
    }

    /// Tells the members of a room that can be told; `before` is the run of the numbers before it. Not during a pass.
    fn append_gap(&mut self, index: u32, gap: &Gap, before: u64, now: Micros) {
        let Self { rooms, spare, dirty, window_bytes, .. } = self;
        let Some(room) = rooms.at_mut(index) else { return };
        let told = room.speakers_len(Dialect::Json) + room.speakers_len(Dialect::Sse);
        if told == 0 {
            return;
        }
        let forms = Forms::gap(gap, room);
        *window_bytes += forms.bytes();
        let offset = gap.resumes_after();
        room.append(Entry::new(forms, offset, before, now.0, None), || spare.pop().unwrap_or_default());
        if !std::mem::replace(&mut room.dirty, true) {
            dirty.push(index);
        }
        self.metrics().gap_notices.add(told as u64);
    }

    /// A source broke and is back: its rooms are in another run, and their members are told; those that publications come
    /// for before them, and the others a batch at a time.
    fn source_gap(&mut self, source: u8, run: u16) {
        if self.runs.len() <= usize::from(source) {
            self.runs.resize(usize::from(source) + 1, None);
        }
        self.runs[usize::from(source)] = Some(run);
        self.settling = Some(0);
    }

    /// Brings a room into the present run of its source.
    pub(crate) fn settle(&mut self, index: u32, now: Micros) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let Some(run) = self.runs.get(usize::from(room.source)).copied().flatten() else { return };
        if run == room.run || room.stage != Stage::Live {
            return;
        }
        // Epochs of a room count the runs of its source.
        let before = room.epoch;
        room.epoch = before.wrapping_add(u64::from(run)).wrapping_sub(u64::from(room.run));
        room.run = run;
        self.tell_broken(index, before, now);
    }

    /// The channel of one room broke and is back.
    fn room_gap(&mut self, slot: RoomSlot, epoch: u64, last: u64, now: Micros) {
        // The epoch counts the present run of its source.
        self.settle(slot.index, now);
        let Some(room) = self.room_of(slot).filter(|room| room.stage == Stage::Live) else { return };
        let before = std::mem::replace(&mut room.epoch, epoch);
        room.last = last;
        self.tell_broken(slot.index, before, now);
    }

    /// Tells the members of a room in a new epoch that the broker lost an unknown number; `before` is the epoch before it.
    fn tell_broken(&mut self, index: u32, before: u64, now: Micros) {
        self.ask_again(index);
        let Some(room) = self.rooms.at(index) else { return };
        let lost = Lost::Unknown(room.last);
        let gap = Gap { epoch: room.epoch, lost, reason: GapReason::Broker.label() };
        self.append_gap(index, &gap, before, now);
    }

    /// Whether rooms are left that have not been looked at since a source broke.
    pub fn is_settling(&self) -> bool {
        self.settling.is_some()
    }

    /// The same for a batch of rooms, until all have been looked at. Not during a pass.
    pub fn settle_some(&mut self, now: Micros) {
        let Some(from) = self.settling.take() else { return };
        let to = (from + SETTLED_ROOMS_MAX).min(self.rooms.span());
        for index in from..to {
            self.settle(index, now);
        }
        self.settling = (to < self.rooms.span()).then_some(to);
    }

    // ---- joining and leaving

    /// Puts a connection into a room. Returns whether `Joined` must come first.
    pub(crate) fn join(&mut self, slot: u32, name: &str) -> bool {
        let room_index = self.room_named(name);
        let (Some(room), Some(connection)) = (self.rooms.at_mut(room_index), self.connections.at_mut(slot))
        else {
            return false;
        };
        let subscription = connection.subscriptions.len() as u32;
        let member = room.enter(slot, subscription, connection.dialect);
        connection.subscriptions.push(Subscription { room: room_index, member });
        let waits = room.stage == Stage::Joining;
        connection.joining += u16::from(waits);
        self.metrics().subscriptions.add(1);
        waits
    }

    fn room_named(&mut self, name: &str) -> u32 {
        use std::hash::BuildHasher as _;
        let hash = self.hasher.hash_one(name);
        let Self { rooms, names, hasher, .. } = self;
        if let Some(index) =
            names.find(hash, |index| rooms.at(*index).is_some_and(|room| &*room.name == name))
        {
            return *index;
        }
        let name: Arc<str> = name.into();
        let class = self.setup.routes.class_of(&name);
        let (index, generation) = rooms.insert(Room::new(name.clone(), class));
        names.insert_unique(hash, index, |index| {
            rooms.at(*index).map_or(0, |room| hasher.hash_one(&*room.name))
        });
        let slot = RoomSlot { index, generation: u32::from(generation) };
        self.up.push_back(Up::Join { slot, name });
        self.metrics().rooms.add(1);
        index
    }

    fn joined(&mut self, slot: RoomSlot, wire: &mut impl Wire, now: Micros) {
        let Some(room) = self.room_of(slot) else { return };
        assert!(room.stage == Stage::Joining, "the relay answered a Join of {} twice", room.name);
        room.stage = Stage::Live;
        let waiting: Vec<u32> = room.members.iter().map(|m| m.slot).collect();
        if waiting.is_empty() && !self.wishers.are_for(slot.index) && !self.polls.are_for(slot.index) {
            self.note_empty(slot.index, now);
        }
        self.ask_for_pasts(slot.index);
        self.ask_again(slot.index);
        let waiting: Vec<ConnectionId> = waiting.into_iter().filter_map(|slot| self.id_of(slot)).collect();
        for id in waiting {
            let Some(connection) = self.connection(id) else { continue };
            connection.joining -= 1;
            match connection.phase {
                Phase::Open => self.entered(id, slot.index, wire, now),
                _ if connection.joining == 0 => self.open(id, wire, now),
                _ => {}
            }
        }
    }

    /// Takes a connection out of all its rooms and books what it was owed.
    pub(crate) fn leave_rooms(&mut self, slot: u32, now: Micros) {
        let Some(id) = self.id_of(slot) else { return };
        self.forget_wishes(id, now);
        self.forget_poll(id, now);
        let Some(connection) = self.connections.at_mut(slot) else { return };
        let subscriptions = std::mem::take(&mut connection.subscriptions);
        let dialect = connection.dialect;
        connection.joining = 0;
        let (mut half_sent, mut past) = (false, 0);
        if let Some(stalled) = &mut connection.stalled {
            half_sent = stalled.forget_delivery();
            past = stalled.forget_past(None, &mut self.kept);
        }
        let mut dropped = u64::from(half_sent) + past;
        let mut filtered = 0;
        for subscription in &subscriptions {
            let Some(room) = self.rooms.at_mut(subscription.room) else { continue };
            let (cursor, moved) = room.leave(subscription.member, dialect);
            let (owed, left_out) = owed_from(room, cursor, id);
            dropped += owed;
            filtered += left_out;
            let emptied = room.members_len() == 0;
            if let Some(member) = moved
                && let Some(other) = self.connections.at_mut(member.slot)
            {
                other.subscriptions[member.subscription as usize].member = subscription.member;
            }
            if emptied {
                self.note_empty(subscription.room, now);
            }
        }
        let metrics = self.metrics();
        metrics.drops.add(DropReason::Closed, dropped);
        metrics.filtered.add(filtered);
        metrics.subscriptions.sub(subscriptions.len() as u64);
    }

    fn note_empty(&mut self, index: u32, now: Micros) {
        let Some(generation) = self.rooms.generation(index) else { return };
        let Some(room) = self.rooms.at_mut(index) else { return };
        room.empty_since = now.ticks();
        if !room.in_pass {
            self.evict(index);
        }
        let slot = RoomSlot { index, generation: u32::from(generation) };
        self.empty.push_back((now.ticks() + ticks_in(ROOM_LINGER), slot));
        if self.empty.len() > self.setup.engine.empty_rooms_max
            && let Some((_, oldest)) = self.empty.pop_front()
        {
            self.give_up(oldest, now.ticks());
        }
    }

    /// Forgets what all members of a room have passed.
    pub(crate) fn evict(&mut self, index: u32) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let (window, bytes) = room.evict();
        self.window_bytes -= bytes;
        if cfg!(debug_assertions) {
            room.check();
        }
        if let Some(window) = window
            && window.is_reusable()
            && self.spare.len() < SPARE_WINDOWS_MAX
        {
            self.spare.push(window);
        }
    }

    /// Gives up rooms that have been empty for [`ROOM_LINGER`], whether `Joined` has come for them or not.
    fn drop_empty_rooms(&mut self, tick: u32) {
        while let Some((due, slot)) = self.empty.front().copied() {
            if due > tick {
                return;
            }
            self.empty.pop_front();
            let Some(room) = self.room_of(slot) else { continue };
            if room.empty_since + ticks_in(ROOM_LINGER) <= tick {
                self.give_up(slot, tick);
            }
        }
    }

    /// Gives a room up unless somebody is in it or waits for it; one that a pass is about to visit waits for the next tick.
    /// One whose `Joined` is due goes as well: a broker that confirms nothing must not make every name that was left again
    /// a room for ever. The `Leave` follows its `Join` on the same ring, and a `Joined` under way meanwhile finds nobody.
    fn give_up(&mut self, slot: RoomSlot, tick: u32) {
        use std::hash::BuildHasher as _;
        let Some(room) = self.room_of(slot) else { return };
        if room.members_len() > 0 || self.wishers.are_for(slot.index) || self.polls.are_for(slot.index) {
            return;
        }
        let Some(room) = self.room_of(slot) else { return };
        if room.in_pass || room.dirty {
            return self.empty.push_back((tick + 1, slot));
        }
        let Some(room) = self.rooms.remove(slot.index) else { return };
        let hash = self.hasher.hash_one(&*room.name);
        if let Ok(found) = self.names.find_entry(hash, |index| *index == slot.index) {
            found.remove();
        }
        self.metrics().rooms.sub(1);
        self.up.push_back(Up::Leave { slot, name: room.name });
    }

    // ---- closing

    /// Ends a connection: a Close frame where its reason has a code, no more data, and the socket's end within
    /// [`CLOSE_LINGER`]. A second reason is ignored.
    pub fn close(&mut self, id: ConnectionId, reason: CloseReason, wire: &mut impl Wire, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        if connection.reason.is_some() {
            // Its last bytes can't be sent either: nobody needs to be patient with it.
            if reason == CloseReason::PeerVanished {
                self.actions.push(Action::Shutdown(id));
            }
            return;
        }
        connection.reason = Some(reason);
        let socket = connection.socket;
        self.metrics().closed.add(reason, 1);
        if reason.is_slow() {
            self.note_slow(socket, wire);
        }
        let Some(connection) = self.connection(id) else { return };
        let (was, is_stream) = (connection.phase, connection.dialect == Dialect::Sse);
        connection.phase = Phase::Closing;
        connection.session = Session::default();
        self.leave_open(id.slot, was, reason, now);
        let Self { connections, kept, .. } = self;
        let Some(connection) = connections.at_mut(id.slot) else { return };
        connection.pending = None;
        if let Some(stalled) = &mut connection.stalled {
            stalled.leave(kept);
        }
        self.book_input(id);
        if was == Phase::Joining {
            // Held back, not stalled: nothing of it is on its way.
            self.unlist_stalled(id.slot);
        }
        // A stream just ends: EventSource comes back by itself.
        if let (Phase::Open, Some(code), false) = (was, reason.code(), is_stream) {
            let mut close = Vec::with_capacity(4 + reason.name().len());
            crate::frame::encode_close(code, reason.name(), &mut close);
            self.send_private(id.slot, close.into(), wire, now);
        }
        self.send_answers(id.slot, wire, now);
        self.resume(id, u8::MAX);
        if reason == CloseReason::PeerVanished {
            self.actions.push(Action::Shutdown(id));
            return;
        }
        self.end_after_lane(id, now);
    }

    /// Takes reasons not to read a connection away; it is read again when that was the last one.
    pub(crate) fn resume(&mut self, id: ConnectionId, reasons: u8) {
        let Some(connection) = self.connection(id) else { return };
        let was_paused = connection.paused != 0;
        connection.paused &= !reasons;
        if was_paused && connection.paused == 0 {
            self.actions.push(Action::Resume(id));
        }
    }

    /// Shuts the socket down for writing once the lane is empty, and notes when patience ends.
    pub(crate) fn end_after_lane(&mut self, id: ConnectionId, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        if connection.stalled.is_some() {
            self.ending_stalled.push_back((now.ticks() + ticks_in(SLOW_CLOSE_LINGER), id));
        } else {
            self.actions.push(Action::ShutdownWrite(id));
            self.ending.push_back((now.ticks() + ticks_in(CLOSE_LINGER), id));
        }
    }

    /// The socket is about to be closed: the connection leaves the shard. The last call for an id.
    pub fn release(&mut self, id: ConnectionId, now: Micros) {
        let Some(connection) = self.connection(id) else { return };
        let was = connection.phase;
        self.leave_open(id.slot, was, CloseReason::PeerVanished, now);
        self.unlist_stalled(id.slot);
        let Some(connection) = self.connections.remove(id.slot) else { return };
        self.input_bytes -= u64::from(connection.input_booked);
        if connection.listener == ADMIN {
            self.admin.retain(|admin| *admin != id);
        }
        let metrics = self.metrics();
        metrics.connections.sub(1);
        if connection.reason.is_none() {
            // Between two requests a client may go as it likes.
            let between_requests = connection.phase == Phase::Head && connection.pending.is_none();
            let reason = if between_requests { CloseReason::HttpDone } else { CloseReason::PeerVanished };
            metrics.closed.add(reason, 1);
        }
        self.debug_check();
    }

    // ---- time

    /// Does what is due: pings, timeouts, limits of slow connections, empty rooms. Call it every tick or so; each call
    /// visits a share of the connections, all of them in [`SWEEP_TICKS`].
    pub fn sweep(&mut self, wire: &mut impl Wire, now: Micros) {
        let tick = now.ticks();
        for queue in [0, 1] {
            let queue_of = |shard: &mut Self| match queue {
                0 => std::mem::take(&mut shard.ending),
                _ => std::mem::take(&mut shard.ending_stalled),
            };
            let mut due = queue_of(self);
            while due.front().is_some_and(|(at, _)| *at <= tick) {
                let Some((_, id)) = due.pop_front() else { break };
                if self.connection(id).is_some() {
                    self.actions.push(Action::Shutdown(id));
                }
            }
            match queue {
                0 => self.ending = due,
                _ => self.ending_stalled = due,
            }
        }
        self.drop_empty_rooms(tick);
        self.sweep_polls(tick);
        self.sweep_stalled(wire, now);
        let span = self.connections.span();
        let share = span.div_ceil(SWEEP_TICKS).max(1);
        let from = if self.swept_to >= span { 0 } else { self.swept_to };
        let to = (from + share).min(span);
        for slot in from..to {
            self.sweep_connection(slot, wire, now);
        }
        self.swept_to = to;
        self.keep_memory_budget(wire, now);
        self.metrics().window_bytes.set(self.window_bytes);
        self.metrics().kept_bytes.set(self.kept.bytes());
        self.metrics().input_bytes.set(self.input_bytes);
        self.debug_check();
    }

    fn sweep_connection(&mut self, slot: u32, wire: &mut impl Wire, now: Micros) {
        let bounds = &self.setup.bounds;
        let (handshake, pong) = (ticks_in(bounds.handshake_timeout), ticks_in(bounds.pong_timeout));
        let Some(id) = self.id_of(slot) else { return };
        let Some(connection) = self.connections.at_mut(slot) else { return };
        let silent = now.ticks().saturating_sub(connection.heard);
        let body_due = connection.pending.as_ref().and_then(|pending| pending.body_due);
        // The answer before is still being taken, at whatever pace, or isn't.
        let answer_moved = connection.stalled.as_ref().map(|stalled| stalled.moved());
        let (silent, late) = match (connection.phase, answer_moved) {
            (Phase::Head, Some(moved)) => (now.ticks().saturating_sub(moved), CloseReason::AnswerUnread),
            _ => (silent, CloseReason::HandshakeTimeout),
        };
        if (connection.phase, connection.dialect) == (Phase::Open, Dialect::Sse) {
            // Nobody answers it: what is wrong with its socket, the send says.
            if connection.ping > 0 && silent >= connection.ping {
                connection.heard = now.ticks();
                self.send_private(slot, Bytes::from_static(crate::dialect::sse::PING), wire, now);
            }
            return;
        }
        match (connection.phase, body_due) {
            (Phase::Head, Some(due)) if now.ticks() >= due => self.give_up_body(id, wire, now),
            (Phase::Head, Some(_)) => {}
            // A broker that lives and never confirms a channel must not hold a socket for ever.
            (Phase::Head | Phase::Joining, _) if silent >= handshake => self.close(id, late, wire, now),
            (Phase::Open, _) if connection.ping > 0 && silent >= pong => {
                self.close(id, CloseReason::PongTimeout, wire, now)
            }
            (Phase::Open, _) if connection.ping > 0 && silent >= connection.ping && !connection.pinged => {
                connection.pinged = true;
                let mut frame = Vec::with_capacity(2);
                crate::frame::encode_ping(b"", &mut frame);
                self.send_private(slot, frame.into(), wire, now);
            }
            _ => {}
        }
    }

    // ---- private frames

    /// Sends bytes that only this connection gets, behind what it is being sent. Over
    /// [`LANE_BYTES_MAX`](crate::limits::LANE_BYTES_MAX) it is not read.
    pub(crate) fn send_private(&mut self, slot: u32, bytes: Bytes, wire: &mut impl Wire, now: Micros) {
        let Some(id) = self.id_of(slot) else { return };
        let lane_bytes_max = self.setup.engine.lane_bytes_max;
        if self.answers.slot == Some(slot) {
            return self.answers.frames.extend_from_slice(&bytes);
        }
        let Self { connections, kept, .. } = self;
        let Some(connection) = connections.at_mut(slot) else { return };
        if let Some(stalled) = &mut connection.stalled {
            stalled.push_lane(bytes, kept);
            if stalled.lane_bytes() > lane_bytes_max {
                connection.paused |= PAUSED_BY_LANE;
            }
            return;
        }
        let taken = wire.send(connection.socket, &bytes);
        self.metrics().sends.add(1);
        if taken == bytes.len() as isize {
            self.metrics().sent_bytes.add(bytes.len() as u64);
            return;
        }
        self.stall(id, now);
        if taken < 0 {
            self.close(id, CloseReason::PeerVanished, wire, now);
            return;
        }
        self.metrics().sent_bytes.add(taken as u64);
        let Self { connections, kept, .. } = self;
        if let Some(stalled) = connections.at_mut(slot).and_then(|c| c.stalled.as_mut()) {
            stalled.hold_rest(bytes, taken as usize, false, kept);
        }
    }

    // ---- the ledger

    /// Sums of this shard, between two calls.
    pub fn ledger(&self) -> Ledger {
        let metrics = self.metrics();
        let mut ledger = Ledger {
            owed: metrics.owed.value(),
            delivered: metrics.deliveries.value(),
            conflated: metrics.conflated.value(),
            filtered: metrics.filtered.value(),
            dropped: metrics.drops.total(),
            pending: 0,
        };
        // What leaves a member out and isn't booked yet stays in the sum until its cursor passes it: heads, not entries.
        let is_stalled = |slot| self.connections.at(slot).is_some_and(|c| c.stalled.is_some());
        for connection in self.stalled.iter().filter_map(|slot| self.connections.at(*slot)) {
            if let Some(stalled) = &connection.stalled {
                ledger.pending += u64::from(stalled.owes_delivery()) + stalled.past_len();
            }
            for subscription in &connection.subscriptions {
                let Some(room) = self.rooms.at(subscription.room) else { continue };
                ledger.pending += room.publications_from(room.members[subscription.member as usize].cursor);
            }
        }
        for room in self.dirty.iter().chain(self.pass.rooms()).filter_map(|index| self.rooms.at(*index)) {
            let members = room.members.iter().filter(|m| m.slot != TOMBSTONE && !is_stalled(m.slot));
            ledger.pending += members.map(|member| room.publications_from(member.cursor)).sum::<u64>();
        }
        ledger
    }
}

/// What a publication supersedes in a room that conflates: those of the same member `name`, or all where none is named. 0,
/// which supersedes nothing, where the payload has no such member.
///
/// `hasher` is of this process alone: two keys of one hash would supersede each other, and who publishes chooses the keys.
fn conflation_key(hasher: &foldhash::fast::RandomState, name: Option<&str>, payload: &[u8]) -> u64 {
    use std::hash::BuildHasher as _;
    let Some(name) = name else { return 1 };
    envelope::comparable_member(payload, name).map_or(0, |value| hasher.hash_one(&*value).max(1))
}

/// Of the entries from `cursor` on: how many `id` is owed, and how many leave it out.
pub(crate) fn owed_from(room: &Room, cursor: u64, id: ConnectionId) -> (u64, u64) {
    let all = room.publications_from(cursor);
    if room.is_uniform() {
        return (all, 0);
    }
    let left_out = room.entries_from(cursor).filter(|e| e.except == Some(id)).count() as u64;
    (all - left_out, left_out)
}
