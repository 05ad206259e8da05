//! Step 2 of 5: every publication's place in its room's log, one frame, and who is interested.
//!
//! A state machine without sockets: its driver tells it what the broker and the shards said and carries out what it asks
//! for ([`Relay::broker`], [`Outlet`]). It keeps the promise behind the 101: a shard is admitted to a room when the room's
//! source is confirmed, and from then on every publication goes to it, or is declared lost.
//!
//! Overload is not loss: what a ring has no space for waits in a spill, FIFO behind it; beyond the bound in bytes a room is
//! *behind* on that shard, its log keeps what comes, and the shard gets it (or a gap) when there is space.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::arena::Arena;
use crate::command::{ConnectionId, Down, Label, Outcome, Recover, Report, RoomSlot, Up};
use crate::frame::Frame;
use crate::limits::{
    EngineBounds, NODE_LOG_BYTES_MAX, PAYLOAD_BYTES_MAX, RECALLED_BYTES_MAX, RECALLED_FRAMES_MAX, ROOM_LINGER,
};
use crate::log::{Log, Record};
use crate::metrics::{GapReason, RefuseReason, RelayMetrics, Via};
use crate::redis::Trim;
use crate::setup::Setup;
use crate::shard::{Micros, ticks_in};

mod appends;
mod arrival;
mod last_value;
mod own;
mod recalls;
mod recovery;
mod servers;
mod streamed;
mod surveys;
#[cfg(test)]
mod tests;

pub use own::PublishFailure;
use servers::{Fed, Server, run_of};
use streamed::Feed;

/// The rings to the shards.
pub trait Outlet {
    /// Puts a command on the ring of a shard, or gives it back when the ring is full.
    fn offer(&mut self, shard: u16, command: Down) -> Result<(), Down>;

    /// Bytes of publications that the shard has taken since the start.
    fn consumed_bytes(&self, shard: u16) -> u64;

    /// A publication's payload and room are known, and it is placed next. For whoever measures.
    fn parsed(&mut self) {}
}

/// What a publication is besides its payload.
#[derive(Debug, Clone)]
pub struct Particulars {
    /// How it came in.
    pub via: Via,
    /// What dialects with an envelope say beside it.
    pub label: Option<Arc<Label>>,
    /// Who does not get it.
    pub except: Option<ConnectionId>,
}

impl From<Via> for Particulars {
    fn from(via: Via) -> Self {
        Self { via, label: None, except: None }
    }
}

/// What the broker's connection is to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerCommand {
    /// Subscribe a channel; [`Relay::confirmed`] follows when it holds.
    Subscribe(Box<[u8]>),
    /// Leave a channel.
    Unsubscribe(Box<[u8]>),
    /// Publish; [`Relay::published`] follows with the token, or [`Relay::refused`] at once.
    Publish {
        /// Number of the publication.
        token: u64,
        /// Where.
        channel: Box<[u8]>,
        /// What, in the form of its source.
        payload: Bytes,
    },
    /// Write a last value; [`Relay::kept`] follows.
    Keep {
        /// Key in Redis.
        key: Box<str>,
        /// What it holds.
        value: Bytes,
        /// Its time to live.
        ttl_millis: u64,
    },
    /// Read a last value; [`Relay::fetched`] follows.
    Fetch {
        /// Key in Redis.
        key: Box<str>,
    },
    /// Follow a stream; [`Relay::stream_anchored`] or [`Relay::stream_refused`] follows.
    Follow(Box<[u8]>),
    /// Follow it no more.
    Unfollow(Box<[u8]>),
    /// Read a stream back; [`Relay::recalled`] follows.
    Recall {
        /// Number of the question.
        token: u64,
        /// Key of the stream.
        stream: Box<[u8]>,
        /// Everything behind the entry of this number.
        after: u64,
    },
    /// Append to a stream; [`Relay::appended`] follows.
    Append {
        /// Number of the publication.
        token: u64,
        /// Key of the stream.
        stream: Box<[u8]>,
        /// What, in the form of its source.
        payload: Bytes,
        /// What the stream keeps afterwards.
        trim: Trim,
    },
}

/// A shard that has joined a room, and its name for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Interest {
    shard: u16,
    slot: RoomSlot,
}

/// A shard that a room is behind on: offsets from `from` on are still to go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Behind {
    shard: u16,
    from: u64,
}

/// The log of record of a room and who reads it.
#[derive(Debug)]
struct LogRoom {
    name: Arc<str>,
    next: u64,
    interest: SmallVec<[Interest; 1]>,
    log: Option<Box<Log>>,
    /// Rare: shards that wait for the source's confirmation, shards that are behind.
    exceptional: Option<Box<Exceptional>>,
    incarnation: u32,
    /// Tick of the last reader's leaving, or of a publication after it.
    idle_since: u32,
    /// It is among the idle rooms.
    listed_idle: bool,
    class: u8,
    /// What feeds it.
    source: Option<Fed>,
    /// Its channel is subscribed for its first reader and left after its last.
    on_demand: bool,
    /// On-demand sources: a publication has come while the broker was down, and its gap before it.
    is_returning: bool,
    /// On-demand sources: SUBSCRIBE has been asked for.
    subscribed: bool,
    /// On-demand sources: Redis has confirmed it, in the present run.
    confirmed: bool,
    /// It had lapsed since, which its members are told when it is confirmed again.
    has_lapsed: bool,
    /// Where a stream feeds it, which gives it its numbers.
    feed: Option<Box<Feed>>,
}

#[derive(Debug, Default)]
struct Exceptional {
    waiting: Vec<Interest>,
    behind: Vec<Behind>,
}

/// What waits behind one shard's ring.
#[derive(Debug, Default)]
struct Backlog {
    spill: VecDeque<Down>,
    offered_bytes: u64,
    /// What the shard had taken when it was last asked: it counts in memory of its own, and asking costs both sides.
    consumed_bytes: u64,
    /// Rooms that are behind on this shard, in the order in which they will be refilled.
    rooms: VecDeque<(u32, u16)>,
    /// Newcomers of the shard who wait for publications of the past, longest waiting first.
    recovers: VecDeque<Recover>,
}

/// Whether publications travel, and whether they do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerState {
    /// The local broker: publications have their place at once.
    Local,
    /// Redis, subscribed and proved alive.
    Up,
    /// Redis, away.
    Down,
}

/// A question to all shards.
#[derive(Debug)]
struct Question {
    number: u64,
    askers: Vec<ConnectionId>,
    missing: u16,
    report: Report,
}

/// See the module.
pub struct Relay {
    setup: Arc<Setup>,
    shards: u16,
    rooms: Arena<LogRoom>,
    names: HashTable<u32>,
    /// Of its own in each process: clients choose the names, and could choose those that collide under a known one.
    hasher: foldhash::fast::RandomState,
    /// What nobody outside knows, for hashes that have an order.
    secret: u64,
    backlogs: Vec<Backlog>,
    /// As the configuration lists them.
    servers: Vec<Server>,
    /// What every epoch counts from: tells this process's numbers from those of another, or of the one before.
    epoch_base: u64,
    incarnations: u32,
    /// Name of this run of the node, in envelopes: two nodes of one name, or two runs, don't take each other's for their own.
    instance_id: Box<str>,
    /// The labels used last.
    labels: Vec<Arc<Label>>,
    /// Rooms that had no readers, each once, by the tick at which to look whether they still have none.
    idle: BinaryHeap<Reverse<(u32, u32, u16)>>,
    log_bytes: usize,
    question: Option<Question>,
    questions: u64,
    surveys: surveys::Surveys,
    /// For the broker's connections, in order, each with the index of its server; taken by the driver after each call.
    pub broker: VecDeque<(usize, BrokerCommand)>,
}

impl Relay {
    /// A relay for the shards of `setup`; `broker_state` is that of each server. `epoch_base` is random per process.
    pub fn new(setup: Arc<Setup>, broker_state: BrokerState, epoch_base: u64) -> Self {
        let shards = setup.metrics.shards.len() as u16;
        let relay = Self {
            shards,
            rooms: Arena::default(),
            names: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            secret: foldhash::fast::RandomState::default().hash_one(epoch_base),
            backlogs: (0..shards).map(|_| Backlog::default()).collect(),
            servers: (0..setup.routes.servers_len()).map(|_| Server::new(broker_state)).collect(),
            epoch_base,
            incarnations: 0,
            instance_id: instance_id(setup.routes.node_id(), epoch_base),
            labels: Vec::new(),
            idle: BinaryHeap::new(),
            log_bytes: 0,
            question: None,
            questions: 0,
            surveys: surveys::Surveys::default(),
            broker: VecDeque::new(),
            setup,
        };
        for server in 0..relay.servers.len() {
            relay.metrics().broker_up.of(server).set(u64::from(broker_state != BrokerState::Down));
        }
        relay
    }

    /// The same with a secret that is known, so that a simulation replays.
    pub fn with_secret(self, secret: u64) -> Self {
        Self { secret, ..self }
    }

    fn metrics(&self) -> &RelayMetrics {
        &self.setup.metrics.relay
    }

    // ---- what the shards say

    /// Takes one command of a shard.
    pub fn handle(&mut self, shard: u16, command: Up, outlet: &mut impl Outlet, now: Micros) {
        match command {
            Up::Join { slot, name } => self.join(Interest { shard, slot }, name, outlet),
            Up::Leave { slot, name } => self.leave(Interest { shard, slot }, &name, now),
            Up::Recover(recover) => self.recover(shard, *recover, outlet, now),
            Up::Withdraw { ticket } => self.withdraw(shard, ticket, outlet),
            Up::Read(read) => self.read(shard, *read, outlet, now),
            Up::Publish(publish) => self.publish(*publish, outlet, now),
            Up::Warm(warm) => self.warm(*warm, outlet),
            Up::Ask { from } => self.ask(from, outlet),
            Up::Answer { question, report } => self.answer(question, *report, outlet),
            Up::Survey { from, wanted } => self.survey(from, wanted, outlet),
            Up::Surveyed { question, part } => self.surveyed(shard, question, &part, outlet),
            Up::Named { question, names } => self.named(shard, question, &names, outlet),
        }
    }

    fn join(&mut self, interest: Interest, name: Arc<str>, outlet: &mut impl Outlet) {
        let index = self.room_named(name);
        let Some(room) = self.rooms.at_mut(index) else { return };
        if room.feed.is_some() {
            return self.join_stream(index, interest, outlet);
        }
        let server = room.source.filter(|_| room.on_demand).map(|source| usize::from(source.server));
        let state = server.map_or(BrokerState::Local, |server| self.servers[server].state);
        if let Some(server) = server.filter(|_| state != BrokerState::Local && !room.subscribed) {
            room.subscribed = true;
            room.confirmed = false;
            let channel = self.setup.routes.channel_of_room(&room.name);
            let subscribe = |channel: Cow<'_, str>| BrokerCommand::Subscribe(channel.as_bytes().into());
            self.broker.extend(channel.map(|(_, channel)| (server, subscribe(channel))));
        }
        let waits = state == BrokerState::Up && !room.confirmed;
        if waits {
            room.exceptional.get_or_insert_default().waiting.push(interest);
        }
        if !waits {
            self.admit(index, interest, outlet);
        }
    }

    /// Sets the shard's interest and tells it where live begins. Everything placed from now on follows on its ring.
    fn admit(&mut self, index: u32, interest: Interest, outlet: &mut impl Outlet) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let (base, run) = (self.epoch_base, run_of(&self.servers, room.source));
        room.interest.push(interest);
        // What a break means for a stream, it says itself.
        let source = room.source.filter(|_| room.feed.is_none());
        let source = source.map(|Fed { source, .. }| (source, run as u16));
        let joined =
            Down::Joined { slot: interest.slot, epoch: room.epoch(base, run), head: room.next, source };
        self.offer(interest.shard, joined, outlet);
    }

    fn leave(&mut self, interest: Interest, name: &str, now: Micros) {
        let Some(index) = self.find(name) else { return };
        let Some(room) = self.rooms.at_mut(index) else { return };
        let before = room.readers_len();
        room.interest.retain(|other| *other != interest);
        if let Some(exceptional) = &mut room.exceptional {
            exceptional.waiting.retain(|other| *other != interest);
            exceptional.behind.retain(|behind| behind.shard != interest.shard);
        }
        assert!(room.readers_len() < before, "shard {} left {name}, which it was not in", interest.shard);
        room.tidy();
        let is_idle = room.is_idle();
        self.release_log(index);
        if is_idle {
            self.note_idle(index, now);
        }
    }

    /// Has the room forgotten when its time without readers is up.
    fn note_idle(&mut self, index: u32, now: Micros) {
        let Some(generation) = self.rooms.generation(index) else { return };
        let due = now.ticks() + self.linger_ticks(index);
        if let Some(room) = self.rooms.at_mut(index) {
            room.idle_since = now.ticks();
            if !std::mem::replace(&mut room.listed_idle, true) {
                self.idle.push(Reverse((due, index, generation)));
            }
        }
        if self.idle.len() > self.setup.engine.idle_rooms_max
            && let Some(Reverse((_, oldest, generation))) = self.idle.pop()
            && self.rooms.holds(oldest, generation)
            && let Some(room) = self.rooms.at_mut(oldest)
        {
            room.listed_idle = false;
            if room.is_idle() {
                self.remove_room(oldest);
            }
        }
    }

    fn linger_ticks(&self, index: u32) -> u32 {
        let history = self.rooms.at(index).map(|room| self.setup.routes.class(room.class).history);
        match history {
            Some(history) if history.frames > 0 => ticks_in(ROOM_LINGER.max(history.age)),
            _ => ticks_in(ROOM_LINGER),
        }
    }

    /// Forgets rooms that nobody reads and whose time is up. Call it every tick or so.
    pub fn sweep(&mut self, outlet: &mut impl Outlet, now: Micros) {
        self.expire_last_values(now);
        self.sweep_streamed(outlet, now);
        let tick = now.ticks();
        while let Some(Reverse((_, index, generation))) =
            self.idle.peek().copied().filter(|Reverse((due, ..))| *due <= tick)
        {
            self.idle.pop();
            if !self.rooms.holds(index, generation) {
                continue;
            }
            let linger = self.linger_ticks(index);
            let Some(room) = self.rooms.at_mut(index) else { continue };
            let due = room.idle_since + linger;
            room.listed_idle = room.is_idle() && due > tick;
            if room.listed_idle {
                self.idle.push(Reverse((due, index, generation)));
            } else if room.is_idle() {
                self.remove_room(index);
            }
        }
        for shard in 0..self.shards {
            self.pump(shard, outlet);
        }
        let metrics = self.metrics();
        metrics.log_rooms.set(self.rooms.len() as u64);
        metrics.log_bytes.set(self.log_bytes as u64);
        metrics.spill_items.set(self.backlogs.iter().map(|b| b.spill.len() as u64).sum());
    }

    fn remove_room(&mut self, index: u32) {
        let Some(room) = self.rooms.remove(index) else { return };
        self.log_bytes -= room.log.as_ref().map_or(0, |log| log.bytes());
        let hash = self.hasher.hash_one(&*room.name);
        if let Ok(found) = self.names.find_entry(hash, |other| *other == index) {
            found.remove();
        }
        if let Some(feed) = &room.feed {
            self.unfollow(feed, room.subscribed);
        } else if room.subscribed
            && let Some(Fed { server, .. }) = room.source
            && let Some((_, channel)) = self.setup.routes.channel_of_room(&room.name)
        {
            let command = BrokerCommand::Unsubscribe(channel.as_bytes().into());
            self.broker.push_back((usize::from(server), command));
        }
    }

    // ---- rooms

    fn find(&self, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.names.find(hash, |index| self.rooms.at(*index).is_some_and(|room| &*room.name == name)).copied()
    }

    /// Whether a shard is in the room or waits to be.
    fn has_readers(&self, name: &str) -> bool {
        self.find(name).and_then(|index| self.rooms.at(index)).is_some_and(|room| !room.is_idle())
    }

    /// Whether somebody reads the room whose on-demand channel isn't confirmed in the present run.
    fn has_unconfirmed_readers(&self, name: &str) -> bool {
        let room = self.find(name).and_then(|index| self.rooms.at(index));
        room.is_some_and(|room| room.on_demand && !room.confirmed && !room.interest.is_empty())
    }

    fn room_named(&mut self, name: Arc<str>) -> u32 {
        if let Some(index) = self.find(&name) {
            return index;
        }
        self.incarnations += 1;
        let routes = &self.setup.routes;
        let channel = routes.channel_of_room(&name);
        let source = channel.as_ref().map(|(source, _)| *source);
        let feed = channel.filter(|(source, _)| routes.is_stream(*source));
        let feed =
            feed.map(|(source, stream)| Box::new(Feed::new(routes.server_of(source), stream.as_bytes())));
        let room = LogRoom {
            next: FIRST_OFFSET,
            interest: SmallVec::new(),
            log: None,
            exceptional: None,
            incarnation: self.incarnations,
            idle_since: 0,
            listed_idle: false,
            class: self.setup.routes.class_of(&name),
            is_returning: false,
            on_demand: source.is_some_and(|source| self.setup.routes.is_on_demand(source)),
            source: source.map(|source| Fed {
                source: source as u8,
                server: self.setup.routes.server_of(source) as u8,
            }),
            subscribed: false,
            confirmed: false,
            has_lapsed: false,
            feed,
            name,
        };
        let hash = self.hasher.hash_one(&*room.name);
        let (index, _) = self.rooms.insert(room);
        let Self { rooms, names, hasher, .. } = self;
        names.insert_unique(hash, index, |index| {
            rooms.at(*index).map_or(0, |room| hasher.hash_one(&*room.name))
        });
        index
    }

    // ---- publications

    /// Whether a room that nobody is in gets a log.
    fn keeps_history_of(&self, room: &str) -> bool {
        let class = self.setup.routes.class(self.setup.routes.class_of(room));
        class.history.frames > 0 && self.rooms.len() < self.setup.engine.log_rooms_max
    }

    /// Gives a publication its place and sends it to every interested shard.
    pub fn place(
        &mut self,
        room: &str,
        payload: &[u8],
        particulars: Particulars,
        outlet: &mut impl Outlet,
        now: Micros,
    ) -> Outcome {
        let index = match self.find(room) {
            Some(index) => index,
            None if self.keeps_history_of(room) => {
                let index = self.room_named(room.into());
                self.note_idle(index, now);
                index
            }
            None => {
                outlet.parsed();
                self.metrics().publications_unrouted.add(1);
                return Outcome::Nobody;
            }
        };
        if self.rooms.at(index).is_some_and(|room| room.feed.is_some()) {
            // Its numbers are those of its stream's entries: nothing else can have one.
            self.metrics().refused.add(RefuseReason::BadRoom, 1);
            return Outcome::Refused;
        }
        self.place_in(index, payload, particulars, outlet, now)
    }

    fn place_in(
        &mut self,
        index: u32,
        payload: &[u8],
        particulars: Particulars,
        outlet: &mut impl Outlet,
        now: Micros,
    ) -> Outcome {
        let Particulars { via, label, except } = particulars;
        outlet.parsed();
        if payload.len() > PAYLOAD_BYTES_MAX {
            self.metrics().refused.add(RefuseReason::TooBig, 1);
            return Outcome::TooBig;
        }
        let Ok(frame) = Frame::data(payload) else {
            self.metrics().refused.add(RefuseReason::TooBig, 1);
            return Outcome::TooBig;
        };
        self.metrics().publications_received.add(via, 1);
        let generation = self.rooms.generation(index).unwrap_or_default();
        let Self { rooms, setup, backlogs, servers, epoch_base, .. } = self;
        let metrics = &setup.metrics.relay;
        let Some(room) = rooms.at_mut(index) else { return Outcome::Nobody };
        let offset = room.next;
        room.next += 1;
        // What a log is kept for is as recent as its last publication. But a channel that is subscribed on demand is fed
        // for as long as it is subscribed: only readers keep that.
        let history_frames = setup.routes.class(room.class).history.frames;
        if room.is_idle() && !room.subscribed && history_frames > 0 {
            room.idle_since = now.ticks();
        }
        let run = run_of(servers, room.source);
        // A break of the broker is none in the numbers of a stream.
        let record_run = if room.feed.is_some() { 0 } else { run as u16 };
        let (epoch, is_kept) = (room.epoch(*epoch_base, run), room.is_kept(history_frames));
        metrics.publications_broadcast.add(u64::from(!room.interest.is_empty()));
        for at in 0..room.interest.len() {
            let Interest { shard, slot } = room.interest[at];
            if room.is_behind_on(shard) {
                continue;
            }
            let backlog = &mut backlogs[shard as usize];
            if !backlog.has_space_for(frame.len(), || outlet.consumed_bytes(shard), &setup.engine) {
                room.exceptional.get_or_insert_default().behind.push(Behind { shard, from: offset });
                backlog.rooms.push_back((index, generation));
                continue;
            }
            let is_last = at + 1 == room.interest.len();
            if is_last && !is_kept && !room.is_behind() {
                // Nobody else wants the frame, and the first clone of one allocates.
                let command = Down::Publication { slot, offset, arrived_micros: now.0, frame, except, label };
                backlog.offer(shard, command, outlet, metrics);
                return Outcome::Placed { offset, epoch };
            }
            let (frame, label) = (frame.clone(), label.clone());
            let command = Down::Publication { slot, offset, arrived_micros: now.0, frame, except, label };
            backlog.offer(shard, command, outlet, metrics);
        }
        let record = Record { frame, arrived_micros: now.0, except, label, run: record_run };
        self.record(index, offset, record);
        Outcome::Placed { offset, epoch }
    }

    /// Puts a publication into its room's log, where the class or a shard that is behind needs it.
    fn record(&mut self, index: u32, offset: u64, record: Record) {
        let Self { rooms, setup, log_bytes, .. } = self;
        let Some(room) = rooms.at_mut(index) else { return };
        let history = setup.routes.class(room.class).history;
        let is_behind = room.is_behind();
        if !room.is_kept(history.frames) && !is_behind {
            return;
        }
        let is_recalled = room.keeps_recalled();
        let log = room.log.get_or_insert_with(|| Box::new(Log::starting_at(offset)));
        let oldest_kept = record.arrived_micros.saturating_sub(history.age.as_micros() as u64);
        *log_bytes += record.frame.len();
        log.push(record);
        let (frames_max, bytes_max) = match is_recalled {
            true => (history.frames.max(RECALLED_FRAMES_MAX), history.bytes.max(RECALLED_BYTES_MAX)),
            false => (history.frames, history.bytes),
        };
        while log.len() > 1
            && (log.bytes() > bytes_max
                || (!is_behind && log.len() > frames_max)
                || (!is_recalled && log.oldest().is_some_and(|oldest| oldest.arrived_micros < oldest_kept)))
        {
            *log_bytes -= log.pop();
        }
        if self.log_bytes > NODE_LOG_BYTES_MAX {
            self.cut_logs();
        }
    }

    /// Over the node's budget every log loses its oldest eighth: one walk over the rooms per 32 MiB of publications.
    fn cut_logs(&mut self) {
        for index in 0..self.rooms.span() {
            let Some(log) = self.rooms.at_mut(index).and_then(|room| room.log.as_mut()) else { continue };
            let kept = log.bytes() - log.bytes() / 8;
            while log.bytes() > kept {
                self.log_bytes -= log.pop();
            }
        }
    }

    // ---- backlogs

    /// Puts a command behind everything that goes to `shard`. Never dropped, whatever the bound.
    fn offer(&mut self, shard: u16, command: Down, outlet: &mut impl Outlet) {
        self.backlogs[shard as usize].offer(shard, command, outlet, &self.setup.metrics.relay);
    }

    /// Whether something waits behind a ring; the driver then calls [`pump`](Self::pump) again soon.
    pub fn has_backlog(&self) -> bool {
        let waits = |b: &Backlog| !b.spill.is_empty() || !b.rooms.is_empty() || !b.recovers.is_empty();
        self.backlogs.iter().any(waits)
    }

    /// Moves what waits for `shard` onto its ring: the spill first, then the rooms that are behind, from their logs.
    pub fn pump(&mut self, shard: u16, outlet: &mut impl Outlet) {
        let Self { rooms, backlogs, setup, .. } = self;
        let backlog = &mut backlogs[shard as usize];
        while let Some(command) = backlog.spill.pop_front() {
            if let Err(command) = outlet.offer(shard, command) {
                backlog.spill.push_front(command);
                return;
            }
        }
        let mut through = SmallVec::<[u32; 8]>::new();
        while let Some((index, generation)) = backlog.rooms.front().copied() {
            let is_that_room = rooms.holds(index, generation);
            if let Some(room) = rooms.at_mut(index).filter(|_| is_that_room) {
                if let Refill::NoSpace = room.refill(shard, backlog, outlet, setup) {
                    break;
                }
                through.push(index);
            }
            backlog.rooms.pop_front();
        }
        for index in through {
            self.release_log(index);
        }
        self.answer_recovers(shard, outlet);
    }

    /// Frees the log of a room whose class keeps none, once no shard is behind.
    fn release_log(&mut self, index: u32) {
        let Self { rooms, setup, log_bytes, .. } = self;
        if let Some(room) = rooms.at_mut(index)
            && !room.is_behind()
            && !room.is_kept(setup.routes.class(room.class).history.frames)
        {
            *log_bytes -= room.log.take().map_or(0, |log| log.bytes());
        }
    }

    /// Commands on the rings to all shards, as its driver sees them.
    pub fn note_ring_depth(&mut self, commands: usize) {
        self.metrics().ring_depth.set(commands as u64);
    }

    // ---- the ledger

    fn ask(&mut self, from: ConnectionId, outlet: &mut impl Outlet) {
        if let Some(question) = &mut self.question {
            question.askers.push(from);
            return;
        }
        self.questions += 1;
        let number = self.questions;
        self.question =
            Some(Question { number, askers: vec![from], missing: self.shards, report: Report::default() });
        for shard in 0..self.shards {
            self.offer(shard, Down::Ask { question: number }, outlet);
        }
    }

    fn answer(&mut self, number: u64, report: Report, outlet: &mut impl Outlet) {
        let Some(question) = self.question.as_mut().filter(|question| question.number == number) else {
            return;
        };
        question.report.add(report);
        question.missing -= 1;
        if question.missing > 0 {
            return;
        }
        let Some(question) = self.question.take() else { return };
        let report = Arc::new(question.report);
        for to in question.askers {
            self.offer(to.shard, Down::Answer { to, report: report.clone() }, outlet);
        }
    }
}

/// Number of a room's first publication: who has 0 has none, as Redis counts the entries of a stream.
pub const FIRST_OFFSET: u64 = 1;

/// The node's name and 64 random bits: nodes that were given one name must not take each other's for their own.
fn instance_id(node_id: &str, epoch_base: u64) -> Box<str> {
    let random = foldhash::fast::RandomState::default().hash_one(epoch_base);
    format!("{node_id}-{random:016x}").into()
}

/// Whether a room that was behind has caught up.
enum Refill {
    Through,
    NoSpace,
}

impl LogRoom {
    /// The run of the room's offsets: process, incarnation of the room, run of its source. Two processes count from random
    /// numbers of 64 bits, so that the epoch of one is none of the other's.
    fn epoch(&self, base: u64, run: u64) -> u64 {
        if let Some(epoch) = self.feed.as_ref().and_then(|feed| feed.epoch) {
            return epoch;
        }
        base.wrapping_add(u64::from(self.incarnation) << 16).wrapping_add(run & 0xffff)
    }

    fn is_idle(&self) -> bool {
        self.readers_len() == 0 && self.feed.as_ref().is_none_or(|feed| feed.asked.is_empty())
    }

    /// Whether its log is kept although no shard is behind.
    fn is_kept(&self, history_frames: usize) -> bool {
        history_frames > 0 || self.keeps_recalled()
    }

    /// Whether its log holds what was read back out of a stream, for those who ask next.
    fn keeps_recalled(&self) -> bool {
        self.feed.as_ref().is_some_and(|feed| feed.keeps_recalled())
    }

    fn is_fed_by(&self, server: usize) -> bool {
        self.source.is_some_and(|source| usize::from(source.server) == server)
    }

    /// Shards that are in the room or wait to be.
    fn readers_len(&self) -> usize {
        self.interest.len() + self.exceptional.as_ref().map_or(0, |e| e.waiting.len())
    }

    fn is_behind(&self) -> bool {
        self.exceptional.as_ref().is_some_and(|e| !e.behind.is_empty())
    }

    fn is_behind_on(&self, shard: u16) -> bool {
        self.exceptional.as_ref().is_some_and(|e| e.behind.iter().any(|behind| behind.shard == shard))
    }

    /// Gives the box of exceptions back when there are none.
    fn tidy(&mut self) {
        if self.exceptional.as_ref().is_some_and(|e| e.waiting.is_empty() && e.behind.is_empty()) {
            self.exceptional = None;
        }
    }

    /// Sends the shard what it lacks from the log, and a gap for what the log no longer holds.
    fn refill(
        &mut self,
        shard: u16,
        backlog: &mut Backlog,
        outlet: &mut impl Outlet,
        setup: &Setup,
    ) -> Refill {
        let metrics = &setup.metrics.relay;
        let Some(Interest { slot, .. }) =
            self.interest.iter().find(|interest| interest.shard == shard).copied()
        else {
            return Refill::Through;
        };
        let Some(exceptional) = self.exceptional.as_mut() else { return Refill::Through };
        let Some(at) = exceptional.behind.iter().position(|behind| behind.shard == shard) else {
            return Refill::Through;
        };
        if !backlog.spill.is_empty() {
            return Refill::NoSpace;
        }
        let behind = &mut exceptional.behind[at];
        let first = self.log.as_ref().map_or(self.next, |log| log.first());
        if first > behind.from {
            let (from, reason) = (behind.from, GapReason::ShardOverload);
            metrics.gaps.add(reason, first - from);
            backlog.offer(shard, Down::Gap { slot, from, to: first, reason }, outlet, metrics);
            behind.from = first;
        }
        while behind.from < self.next {
            let record = self.log.as_ref().and_then(|log| log.at(behind.from));
            let Some((record, _)) = record else { break };
            if !backlog.spill.is_empty()
                || !backlog.has_space_for(record.frame.len(), || outlet.consumed_bytes(shard), &setup.engine)
            {
                return Refill::NoSpace;
            }
            let command = Down::Publication {
                slot,
                offset: behind.from,
                arrived_micros: record.arrived_micros,
                frame: record.frame.clone(),
                except: record.except,
                label: record.label.clone(),
            };
            backlog.offer(shard, command, outlet, metrics);
            behind.from += 1;
        }
        exceptional.behind.swap_remove(at);
        self.tidy();
        Refill::Through
    }
}

impl Backlog {
    /// Whether a publication of `bytes` may go to the ring or its spill. One that is larger than the bound goes alone.
    ///
    /// `consumed_bytes` is asked only where what is known doesn't suffice.
    fn has_space_for(
        &mut self,
        bytes: usize,
        consumed_bytes: impl FnOnce() -> u64,
        bounds: &EngineBounds,
    ) -> bool {
        if self.spill.len() >= bounds.spill_items_max {
            return false;
        }
        let fits = |consumed_bytes: u64| {
            let outstanding = (self.offered_bytes - consumed_bytes) as usize;
            outstanding == 0 || outstanding + bytes <= bounds.backlog_bytes_max
        };
        if fits(self.consumed_bytes) {
            return true;
        }
        let consumed_bytes = consumed_bytes();
        let now_fits = fits(consumed_bytes);
        self.consumed_bytes = consumed_bytes;
        now_fits
    }

    fn offer(&mut self, shard: u16, command: Down, outlet: &mut impl Outlet, metrics: &RelayMetrics) {
        self.offered_bytes += command.backlog_bytes() as u64;
        if !self.spill.is_empty() {
            self.spill.push_back(command);
            return;
        }
        if let Err(command) = outlet.offer(shard, command) {
            metrics.ring_full.add(1);
            self.spill.push_back(command);
        }
    }
}
