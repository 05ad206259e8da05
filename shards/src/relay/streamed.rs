//! Rooms that are fed by streams: their numbers and epochs are the stream's, so every node gives a publication the same.
//!
//! Such a room has only the entries of its stream. Nothing else gets a number in it: own publications are appended
//! (`appends`), and while Redis is away there are none. What a break of the connection means the stream says when it is
//! anchored again: mostly nothing, because what was appended meanwhile is read then.
//!
//! | what is told | what it means for the room |
//! |---|---|
//! | anchored, for the first time | numbers go on behind that position; who waits for it enters |
//! | anchored again | nothing |
//! | entry | a publication, which has the number that was expected |
//! | gap | numbers are missing, which members are told |
//! | broken | another stream: a new epoch, which members are told |
//! | refused | the room has an epoch of this node and no publications; the stream is tried again |

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::appends::Appends;
use super::recalls::Waiting;
use super::{BrokerCommand, BrokerState, FIRST_OFFSET, Interest, LogRoom, Outlet, Particulars, Relay};
use crate::command::{ConnectionId, Down, Label};
use crate::config::Deliver;
use crate::dialect::PLAIN_KIND;
use crate::envelope;
use crate::limits::{STREAM_PATIENCE, STREAM_RETRY};
use crate::metrics::{GapReason, RefuseReason, Via};
use crate::redis::Position;
use crate::route::plain_name;
use crate::shard::Micros;

/// What a room knows of the stream that feeds it.
#[derive(Debug)]
pub(super) struct Feed {
    /// Index of the Redis that has the stream.
    pub server: usize,
    /// Key of the stream.
    pub stream: Box<[u8]>,
    /// Run of the stream's numbers; `None` before it has been anchored for the first time.
    pub epoch: Option<u64>,
    /// The stream is refused, and tried again at this time.
    pub retry_at: Option<Micros>,
    /// Questions for which the log doesn't reach far enough back, oldest first.
    pub asked: VecDeque<Waiting>,
    /// One of them is of a client that has more than the room.
    pub is_overtaken: bool,
    /// The stream is being read back, or waits for its turn.
    pub is_recalling: bool,
    /// What was read back stays in the log until then.
    pub recalled_until: Option<Micros>,
    /// No number up to this one can be had from the stream any more.
    pub gone: u64,
    /// It is among those that the sweep looks at.
    pub is_listed: bool,
}

impl Feed {
    pub(super) fn new(server: usize, stream: &[u8]) -> Self {
        Self {
            server,
            stream: stream.into(),
            epoch: None,
            retry_at: None,
            asked: VecDeque::new(),
            is_overtaken: false,
            is_recalling: false,
            recalled_until: None,
            gone: 0,
            is_listed: false,
        }
    }

    /// Whether the log is kept from where the reading back began.
    pub(super) fn keeps_recalled(&self) -> bool {
        self.is_recalling || self.recalled_until.is_some()
    }

    fn has_something_due(&self) -> bool {
        self.retry_at.is_some() || self.recalled_until.is_some() || !self.asked.is_empty()
    }
}

/// What the relay knows of the streams of one Redis.
#[derive(Debug, Default)]
pub(super) struct Streamed {
    /// Since when the streams can't be reached; `None` while they can, and before they could for the first time.
    away_since: Option<Micros>,
    was_up: bool,
    /// They have been away for so long that nobody is kept waiting for them any more.
    pub is_hopeless: bool,
    /// Rooms for which something is due at some time, each once.
    pub listed: Vec<(u32, u16)>,
    /// Rooms whose streams are being read back, by the number of the question.
    pub recalling: HashMap<u64, (u32, u16), foldhash::fast::FixedState>,
    /// Rooms that wait for their turn.
    pub recalls_due: VecDeque<(u32, u16)>,
    /// Number of the last question.
    pub recalls: u64,
    pub appends: Appends,
}

impl Streamed {
    pub(super) fn is_up(&self) -> bool {
        self.was_up && self.away_since.is_none()
    }
}

impl Relay {
    /// A shard joins such a room: at once where the numbers are known, else when they are.
    pub(super) fn join_stream(&mut self, index: u32, interest: Interest, outlet: &mut impl Outlet) {
        self.follow(index);
        let Some(room) = self.rooms.at_mut(index) else { return };
        let Some(feed) = &mut room.feed else { return };
        let server = &self.servers[feed.server];
        let is_hopeless = server.state == BrokerState::Local || server.streamed.is_hopeless;
        if feed.epoch.is_some() || feed.retry_at.is_some() || is_hopeless {
            return self.admit(index, interest, outlet);
        }
        room.exceptional.get_or_insert_default().waiting.push(interest);
        self.list(index);
    }

    /// Has the room's stream followed.
    pub(super) fn follow(&mut self, index: u32) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let Some(feed) = &room.feed else { return };
        if !std::mem::replace(&mut room.subscribed, true) {
            self.broker.push_back((feed.server, BrokerCommand::Follow(feed.stream.clone())));
        }
    }

    /// Somebody reads a room that nobody is in: it is followed for a while, where a stream feeds it.
    pub(super) fn begin_stream(&mut self, room: &str, now: Micros) -> Option<u32> {
        let (source, _) = self.setup.routes.channel_of_room(room)?;
        let has_space = self.rooms.len() < self.setup.engine.log_rooms_max;
        let state = self.servers[self.setup.routes.server_of(source)].state;
        if !self.setup.routes.is_stream(source) || !has_space || state == BrokerState::Local {
            return None;
        }
        let index = self.room_named(room.into());
        self.note_idle(index, now);
        self.follow(index);
        Some(index)
    }

    /// A room has gone; its stream may feed another.
    pub(super) fn unfollow(&mut self, feed: &Feed, was_followed: bool) {
        if was_followed && !self.is_followed(feed.server, &feed.stream) {
            self.broker.push_back((feed.server, BrokerCommand::Unfollow(feed.stream.clone())));
        }
    }

    /// Whether its entries come, or are to.
    pub(super) fn is_followed(&self, server: usize, stream: &[u8]) -> bool {
        let is_followed = |index| self.rooms.at(index).is_some_and(|room| room.subscribed);
        self.rooms_of(server, stream).iter().any(|(_, index)| is_followed(*index))
    }

    /// The rooms that a stream feeds, with the sources that say so.
    fn rooms_of(&self, server: usize, stream: &[u8]) -> SmallVec<[(usize, u32); 1]> {
        let rooms = self.setup.routes.rooms_of_stream(server, stream);
        let found = rooms.filter_map(|(source, name)| {
            let index = self.find(&name)?;
            let is_its_feed = self.rooms.at(index)?.feed.as_ref().is_some_and(|feed| *feed.stream == *stream);
            is_its_feed.then_some((source, index))
        });
        found.collect()
    }

    /// Has the sweep look at the room.
    pub(super) fn list(&mut self, index: u32) {
        let Some(generation) = self.rooms.generation(index) else { return };
        let Some(feed) = self.rooms.at_mut(index).and_then(|room| room.feed.as_mut()) else { return };
        if !std::mem::replace(&mut feed.is_listed, true) {
            self.servers[feed.server].streamed.listed.push((index, generation));
        }
    }

    // ---- what the connections say

    /// Streams are read again, each from where it had been read to as soon as it is anchored.
    pub fn streams_up(&mut self, server: usize) {
        let streamed = &mut self.servers[server].streamed;
        (streamed.away_since, streamed.is_hopeless, streamed.was_up) = (None, false, true);
        self.metrics().streams_up.of(server).set(1);
    }

    /// Their connections broke. Nothing is lost yet; what was under way is answered next.
    pub fn streams_down(&mut self, server: usize, now: Micros) {
        if self.servers[server].streamed.is_up() {
            self.metrics().stream_breaks.of(server).add(1);
        }
        self.servers[server].streamed.away_since.get_or_insert(now);
        self.metrics().streams_up.of(server).set(0);
    }

    /// A stream is followed from behind this position on.
    pub fn stream_anchored(
        &mut self,
        server: usize,
        stream: &[u8],
        position: Position,
        outlet: &mut impl Outlet,
        now: Micros,
    ) {
        for (_, index) in self.rooms_of(server, stream) {
            let Some(room) = self.rooms.at_mut(index) else { continue };
            let Some(feed) = &mut room.feed else { continue };
            feed.retry_at = None;
            let goes_on = feed.epoch == Some(position.epoch) && room.next == position.number + 1;
            if !goes_on {
                self.begin_run(index, position, outlet);
            }
            self.serve_waiting(index, outlet, now);
        }
    }

    /// An entry of a stream; `payload` is `None` where it is too long to be a publication.
    pub fn stream_entry(
        &mut self,
        server: usize,
        stream: &[u8],
        number: u64,
        payload: Option<&[u8]>,
        outlet: &mut impl Outlet,
        now: Micros,
    ) {
        let own = payload.and_then(|payload| self.servers[server].streamed.appends.returned(stream, payload));
        let own = own.unwrap_or_default();
        for (source, index) in self.rooms_of(server, stream) {
            let Some(room) = self.rooms.at(index) else { continue };
            let has_numbers = room.feed.as_ref().is_some_and(|feed| feed.epoch.is_some());
            if !has_numbers || room.next > number {
                continue;
            }
            // Those between were gone before they could be read.
            self.lose(index, number - 1, GapReason::Trimmed, outlet);
            if let Some(payload) = payload {
                let (payload, label) = self.opened(source, index, payload);
                let label = label.or_else(|| own.label.clone());
                let particulars = Particulars { via: Via::Source(source), label, except: own.except };
                self.place_in(index, &payload, particulars, outlet, now);
            } else {
                self.metrics().refused.add(RefuseReason::TooBig, 1);
            }
            let Some(room) = self.rooms.at(index) else { continue };
            // It is one that can't be shown, whatever the reason; its number is gone all the same.
            if room.next == number {
                self.lose(index, number, GapReason::TooBig, outlet);
            }
            let feed = self.rooms.at(index).and_then(|room| room.feed.as_ref());
            if feed.is_some_and(|feed| feed.is_overtaken) {
                self.answer_asked(index, outlet, now);
            }
        }
    }

    /// The numbers up to this position are gone, and what comes has those after it. After a break this is said where
    /// [`stream_anchored`](Self::stream_anchored) is otherwise.
    pub fn stream_gap(
        &mut self,
        server: usize,
        stream: &[u8],
        position: Position,
        outlet: &mut impl Outlet,
        now: Micros,
    ) {
        for (_, index) in self.rooms_of(server, stream) {
            let feed = self.rooms.at(index).and_then(|room| room.feed.as_ref());
            match feed.is_some_and(|feed| feed.epoch == Some(position.epoch)) {
                true => self.lose(index, position.number, GapReason::Trimmed, outlet),
                false => self.begin_run(index, position, outlet),
            }
            self.serve_waiting(index, outlet, now);
        }
    }

    /// It is another stream, or was set back: what comes has the numbers after this position.
    pub fn stream_broken(
        &mut self,
        server: usize,
        stream: &[u8],
        position: Position,
        outlet: &mut impl Outlet,
        now: Micros,
    ) {
        for (_, index) in self.rooms_of(server, stream) {
            self.begin_run(index, position, outlet);
            self.serve_waiting(index, outlet, now);
        }
    }

    /// Redis doesn't let us follow it; the log line says why.
    pub fn stream_refused(&mut self, server: usize, stream: &[u8], outlet: &mut impl Outlet, now: Micros) {
        for (_, index) in self.rooms_of(server, stream) {
            self.metrics().gaps.add(GapReason::Broker, 1);
            let Some(room) = self.rooms.at_mut(index) else { continue };
            room.subscribed = false;
            let Some(feed) = &mut room.feed else { continue };
            feed.retry_at = Some(Micros(now.0 + STREAM_RETRY.as_micros() as u64));
            self.list(index);
            self.serve_waiting(index, outlet, now);
        }
    }

    /// What is due by the clock.
    pub(super) fn sweep_streamed(&mut self, outlet: &mut impl Outlet, now: Micros) {
        for server in 0..self.servers.len() {
            self.sweep_streams_of(server, outlet, now);
        }
    }

    fn sweep_streams_of(&mut self, server: usize, outlet: &mut impl Outlet, now: Micros) {
        let streamed = &mut self.servers[server].streamed;
        streamed.appends.forget_late(now);
        // A process begins without them.
        let away_since = streamed.away_since.unwrap_or(Micros(0));
        let is_hopeless = !streamed.is_up() && now.0 > away_since.0 + STREAM_PATIENCE.as_micros() as u64;
        streamed.is_hopeless = is_hopeless;
        for (index, generation) in std::mem::take(&mut streamed.listed) {
            if !self.rooms.holds(index, generation) {
                continue;
            }
            if is_hopeless {
                self.serve_waiting(index, outlet, now);
            }
            if self.servers[server].streamed.is_up() {
                self.note_sweep(index, outlet, now);
            }
            let Some(room) = self.rooms.at_mut(index) else { continue };
            let waits = room.exceptional.as_ref().is_some_and(|exceptional| !exceptional.waiting.is_empty());
            let is_read = !room.interest.is_empty() || waits;
            let Some(feed) = &mut room.feed else { continue };
            feed.is_listed = false;
            if feed.retry_at.is_some_and(|at| at <= now) {
                feed.retry_at = None;
                if is_read {
                    self.follow(index);
                }
            }
            self.trim_recalled(index, now);
            let feed = self.rooms.at(index).and_then(|room| room.feed.as_ref());
            if waits || feed.is_some_and(|feed| feed.has_something_due()) {
                self.list(index);
            }
            // While a question waited it was not among the rooms that nobody reads.
            if self.rooms.at(index).is_some_and(|room| room.is_idle() && !room.listed_idle) {
                self.note_idle(index, now);
            }
        }
    }

    /// Where the numbers go on is known, or won't be for now: who waited for it enters, and is answered.
    fn serve_waiting(&mut self, index: u32, outlet: &mut impl Outlet, now: Micros) {
        self.admit_waiting(index, outlet);
        self.answer_asked(index, outlet, now);
    }

    // ---- numbers

    /// The room's numbers go on behind this position, of its epoch. Who is in the room already is told.
    fn begin_run(&mut self, index: u32, position: Position, outlet: &mut impl Outlet) {
        self.lose_behind(index, outlet);
        let Self { rooms, log_bytes, .. } = self;
        let Some(room) = rooms.at_mut(index) else { return };
        *log_bytes -= room.log.take().map_or(0, |log| log.bytes());
        room.next = position.number + FIRST_OFFSET;
        let Some(feed) = &mut room.feed else { return };
        (feed.epoch, feed.gone) = (Some(position.epoch), 0);
        let interest = room.interest.clone();
        self.metrics().gaps.add(GapReason::Broker, u64::from(!interest.is_empty()));
        for Interest { shard, slot } in interest {
            let gap = Down::RoomGap { slot, epoch: position.epoch, last: position.number };
            self.offer(shard, gap, outlet);
        }
    }

    /// The room's numbers up to and with `to` are gone; nothing is where it has come further, as with every entry but those
    /// behind a hole.
    fn lose(&mut self, index: u32, to: u64, reason: GapReason, outlet: &mut impl Outlet) {
        if self.rooms.at(index).is_none_or(|room| room.next > to) {
            return;
        }
        self.lose_behind(index, outlet);
        let Self { rooms, log_bytes, .. } = self;
        let Some(room) = rooms.at_mut(index) else { return };
        *log_bytes -= room.log.take().map_or(0, |log| log.bytes());
        let from = std::mem::replace(&mut room.next, to + 1);
        if let Some(feed) = &mut room.feed {
            feed.gone = to;
        }
        let interest = room.interest.clone();
        self.metrics().gaps.add(reason, to + 1 - from);
        for Interest { shard, slot } in interest {
            self.offer(shard, Down::Gap { slot, from, to: to + 1, reason }, outlet);
        }
    }

    /// What shards that are behind have not had is lost to them: the log that holds it has a hole next, or a gap is told
    /// that must not overtake it.
    pub(super) fn lose_behind(&mut self, index: u32, outlet: &mut impl Outlet) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let (next, interest) = (room.next, room.interest.clone());
        let behind = room.exceptional.as_mut().map(|e| std::mem::take(&mut e.behind)).unwrap_or_default();
        room.tidy();
        for super::Behind { shard, from } in behind {
            let Some(Interest { slot, .. }) = interest.iter().find(|interest| interest.shard == shard) else {
                continue;
            };
            let reason = GapReason::ShardOverload;
            self.metrics().gaps.add(reason, next - from);
            self.offer(shard, Down::Gap { slot: *slot, from, to: next, reason }, outlet);
        }
        // Nobody is behind any more: what is placed next may not be recorded, and a log has no holes.
        self.release_log(index);
    }

    /// What members get of an entry, and what dialects with an envelope say beside it.
    pub(super) fn opened<'p>(
        &mut self,
        source: usize,
        index: u32,
        payload: &'p [u8],
    ) -> (Cow<'p, [u8]>, Option<Arc<Label>>) {
        let setup = Arc::clone(&self.setup);
        let name = self.rooms.at(index).map(|room| Arc::clone(&room.name)).unwrap_or_default();
        match setup.routes.deliver(source) {
            Deliver::Event => match envelope::event(payload, None) {
                Some(event) => {
                    let label = self.label(event.kind.as_deref().unwrap_or(PLAIN_KIND), event.is_json);
                    (Cow::Owned(event.data.into_owned()), Some(label))
                }
                None => (Cow::Borrowed(payload), None),
            },
            deliver => (envelope::unwrap(deliver, plain_name(&name), payload), None),
        }
    }
}

/// What is known of an entry that this node has appended.
#[derive(Debug, Default)]
pub(super) struct OwnEntry {
    pub label: Option<Arc<Label>>,
    pub except: Option<ConnectionId>,
}

impl LogRoom {
    /// Whether its stream can be read back now.
    pub(super) fn can_be_recalled(&self) -> bool {
        self.feed.as_ref().is_some_and(|feed| feed.epoch.is_some() && feed.retry_at.is_none())
    }
}

#[cfg(test)]
mod tests;
