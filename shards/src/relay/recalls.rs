//! The past of rooms that are fed by streams, where it reaches further back than their logs: it is read out of the stream.
//!
//! What is read goes into the room's log, in front of what is there, and stays for a few seconds: the question that caused it
//! is answered out of the log like any other, and so are those of all the others who come back after the same break. A room
//! has one reading under way at a time, from the oldest number that anybody waits for; a node has a bounded number of them.
//!
//! While a room waits, its log is kept from where the reading began, so that the two meet without a hole.

use std::collections::VecDeque;

use super::{BrokerCommand, FIRST_OFFSET, LogRoom, Outlet, Record, Relay, Server};
use crate::command::{Read, Recover, Since};
use crate::frame::Frame;
use crate::limits::{
    AHEAD_SWEEPS, NODE_LOG_BYTES_MAX, PAYLOAD_BYTES_MAX, RECALLED_KEPT, RECALLS_MAX,
    STREAM_HISTORY_ENTRIES_MAX,
};
use crate::log::Log;
use crate::metrics::RecallFate;
use crate::redis::{HistoryError, Past};
use crate::shard::Micros;

/// A question that waits for the stream.
#[derive(Debug)]
pub(super) enum Asked {
    /// Of a newcomer on this shard.
    Recover(u16, Box<Recover>),
    /// Of somebody who is no member, on this shard.
    Read(u16, Box<Read>),
}

/// One in its room.
#[derive(Debug)]
pub(super) struct Waiting {
    asked: Asked,
    /// Sweeps that have seen it ahead of the room, see [`Need::Ahead`].
    sweeps: u8,
}

impl Asked {
    fn since(&self) -> Since {
        match self {
            Self::Recover(_, recover) => recover.since,
            Self::Read(_, read) => match read.since {
                Since::Last(count) => Since::Last(count.min(read.limit as u64)),
                since => since,
            },
        }
    }

    /// It gets what can be had without waiting: that something is missing.
    fn give_up(&mut self) {
        let since = match self {
            Self::Recover(_, recover) => &mut recover.since,
            Self::Read(_, read) => &mut read.since,
        };
        if let Since::After { offset, .. } = since {
            *offset = NEVER;
        }
    }
}

/// Whether a question is to wait for the stream.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// The log answers it as well as anything could.
    Nothing,
    /// The numbers aren't known yet.
    Anchor,
    /// Everything behind this number.
    After(u64),
    /// The client comes from a node that has read further: this one gets there.
    Ahead,
}

/// More than any number: whoever asks for what comes after it has waited long enough.
const NEVER: u64 = u64::MAX;

impl Relay {
    /// Takes a question whose answer lies in the stream; gives it back where the log has it, or nobody.
    pub(super) fn ask_stream(&mut self, index: u32, asked: Asked) -> Result<(), Asked> {
        let Some(room) = self.rooms.at_mut(index) else { return Err(asked) };
        let need = room.need(asked.since());
        if is_hopeless(&self.servers, room) || need == Need::Nothing {
            return Err(asked);
        }
        let is_ahead = need == Need::Ahead;
        let Some(feed) = &mut room.feed else { return Err(asked) };
        feed.is_overtaken |= is_ahead;
        feed.asked.push_back(Waiting { asked, sweeps: 0 });
        self.list(index);
        self.follow(index);
        self.recall(index);
        Ok(())
    }

    /// Takes a question back that waits for its stream. Returns whether it did.
    pub(super) fn withdraw_asked(&mut self, shard: u16, ticket: u64) -> bool {
        let is_it = |waiting: &Waiting| match &waiting.asked {
            Asked::Recover(of, recover) => (*of, recover.ticket) == (shard, ticket),
            Asked::Read(..) => false,
        };
        let Self { rooms, servers, .. } = self;
        for (index, generation) in servers.iter().flat_map(|server| &server.streamed.listed) {
            let holds = rooms.holds(*index, *generation);
            let feed = rooms.at_mut(*index).filter(|_| holds).and_then(|room| room.feed.as_mut());
            let Some(feed) = feed else { continue };
            if let Some(at) = feed.asked.iter().position(is_it) {
                feed.asked.remove(at);
                return true;
            }
        }
        false
    }

    /// Answers what has waited for the stream and need not any more; the rest goes on waiting.
    pub(super) fn answer_asked(&mut self, index: u32, outlet: &mut impl Outlet, now: Micros) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let is_hopeless = is_hopeless(&self.servers, room);
        let Some(feed) = &mut room.feed else { return };
        let (mut waiting, mut answered) = (VecDeque::new(), Vec::new());
        let mut is_overtaken = false;
        for Waiting { mut asked, sweeps } in std::mem::take(&mut feed.asked) {
            let need = room.need(asked.since());
            let is_late = need == Need::Ahead && sweeps >= AHEAD_SWEEPS;
            if is_late {
                asked.give_up();
            }
            match is_hopeless || is_late || need == Need::Nothing {
                true => answered.push(asked),
                false => {
                    is_overtaken |= need == Need::Ahead;
                    waiting.push_back(Waiting { asked, sweeps });
                }
            }
        }
        if let Some(feed) = &mut room.feed {
            (feed.asked, feed.is_overtaken) = (waiting, is_overtaken);
        }
        let mut shards = Vec::new();
        for asked in answered {
            match asked {
                Asked::Recover(shard, recover) => {
                    self.backlogs[usize::from(shard)].recovers.push_back(*recover);
                    shards.push(shard);
                }
                Asked::Read(shard, read) => self.read_log(shard, *read, outlet, now),
            }
        }
        shards.dedup();
        for shard in shards {
            self.pump(shard, outlet);
        }
        self.recall(index);
    }

    /// A sweep has come by while streams are read: who is ahead of the room has waited once more.
    pub(super) fn note_sweep(&mut self, index: u32, outlet: &mut impl Outlet, now: Micros) {
        let Some(feed) = self.rooms.at_mut(index).and_then(|room| room.feed.as_mut()) else { return };
        if feed.is_overtaken {
            feed.asked.iter_mut().for_each(|waiting| waiting.sweeps = waiting.sweeps.saturating_add(1));
            self.answer_asked(index, outlet, now);
        }
    }

    /// Has the stream read back as far as the questions go, unless that is being done.
    fn recall(&mut self, index: u32) {
        let Some(generation) = self.rooms.generation(index) else { return };
        let Some(room) = self.rooms.at_mut(index).filter(|room| room.can_be_recalled()) else { return };
        let Some(after) = room.wanted_from() else { return };
        let Some(feed) = room.feed.as_mut().filter(|feed| !feed.is_recalling) else { return };
        let streamed = &mut self.servers[feed.server].streamed;
        if !streamed.is_up() {
            return;
        }
        if streamed.recalling.len() == RECALLS_MAX {
            if !streamed.recalls_due.contains(&(index, generation)) {
                streamed.recalls_due.push_back((index, generation));
            }
            return;
        }
        feed.is_recalling = true;
        streamed.recalls += 1;
        let token = streamed.recalls;
        streamed.recalling.insert(token, (index, generation));
        let command = BrokerCommand::Recall { token, stream: feed.stream.clone(), after };
        self.broker.push_back((feed.server, command));
    }

    /// Answer to [`BrokerCommand::Recall`].
    pub fn recalled(
        &mut self,
        server: usize,
        token: u64,
        result: Result<Past, HistoryError>,
        outlet: &mut impl Outlet,
        now: Micros,
    ) {
        let Some((index, generation)) = self.servers[server].streamed.recalling.remove(&token) else {
            return;
        };
        if self.rooms.holds(index, generation) {
            // Where Redis is away, or the stream is not followed yet, that is asked again when it is said where it stands.
            let is_to_be_repeated = result == Err(HistoryError::Away);
            self.take_past(index, result, now);
            // What was placed meanwhile is kept only for a past in front of it.
            self.release_log(index);
            self.list(index);
            if !is_to_be_repeated {
                self.answer_asked(index, outlet, now);
            }
            if self.log_bytes > NODE_LOG_BYTES_MAX {
                self.forget_recalled(now);
            }
        }
        while self.servers[server].streamed.recalling.len() < RECALLS_MAX
            && let Some((index, generation)) = self.servers[server].streamed.recalls_due.pop_front()
        {
            if self.rooms.holds(index, generation) {
                self.recall(index);
            }
        }
    }

    /// Puts what was read in front of the room's log.
    fn take_past(&mut self, index: u32, result: Result<Past, HistoryError>, now: Micros) {
        let Some(room) = self.rooms.at_mut(index) else { return };
        let (source, newest) = (room.source.map_or(0, |fed| usize::from(fed.source)), room.next - 1);
        let Some(feed) = &mut room.feed else { return };
        feed.is_recalling = false;
        let past = match result {
            Ok(past) if feed.epoch == Some(past.head.epoch) => past,
            // Asked again when Redis is back, or by whoever has waited too long. Or the numbers are of another run meanwhile.
            Err(HistoryError::Away) | Ok(_) => return,
            Err(_) => {
                // What is there can't be told from what is not.
                feed.gone = newest;
                return self.metrics().recalls.add(RecallFate::Nothing, 1);
            }
        };
        let head = past.head.number;
        let before = head - past.payloads.len() as u64;
        if past.lacks.is_some() {
            feed.gone = feed.gone.max(before);
        }
        feed.recalled_until = Some(Micros(now.0 + RECALLED_KEPT.as_micros() as u64));
        let fate = if past.lacks.is_some() { RecallFate::Part } else { RecallFate::Whole };
        self.metrics().recalls.add(fate, 1);
        let Some(room) = self.rooms.at(index) else { return };
        let first = room.log.as_ref().map_or(room.next, |log| log.first());
        if head + 1 < first {
            // So much came meanwhile that the log has lost the place where the two would meet.
            if let Some(feed) = self.rooms.at_mut(index).and_then(|room| room.feed.as_mut()) {
                feed.gone = newest;
            }
            return;
        }
        let oldest = room.log.as_ref().and_then(|log| log.oldest()).map_or(now.0, |r| r.arrived_micros);
        let mut records = Vec::new();
        for (number, payload) in (before + 1..first).zip(&past.payloads) {
            let (payload, label) = self.opened(source, index, payload);
            let frame = Frame::data(&payload).ok().filter(|_| payload.len() <= PAYLOAD_BYTES_MAX);
            let Some(frame) = frame else {
                // Nobody may be told that it has everything when it lacks this one.
                records.clear();
                if let Some(feed) = self.rooms.at_mut(index).and_then(|room| room.feed.as_mut()) {
                    feed.gone = feed.gone.max(number);
                }
                continue;
            };
            records.push(Record { frame, arrived_micros: oldest, except: None, label, run: 0 });
        }
        let Some(room) = self.rooms.at_mut(index) else { return };
        let log = room.log.get_or_insert_with(|| Box::new(Log::starting_at(first)));
        self.log_bytes += records.iter().map(|record| record.frame.len()).sum::<usize>();
        log.prepend(records);
    }

    /// Over the node's budget nothing is kept for those who ask next: they have it read once more.
    fn forget_recalled(&mut self, now: Micros) {
        let listed = self.servers.iter().flat_map(|server| &server.streamed.listed);
        for (index, generation) in listed.copied().collect::<Vec<_>>() {
            if !self.rooms.holds(index, generation) {
                continue;
            }
            let feed = self.rooms.at_mut(index).and_then(|room| room.feed.as_mut());
            if let Some(until) = feed.and_then(|feed| feed.recalled_until.as_mut()) {
                *until = now;
            }
            self.trim_recalled(index, now);
        }
    }

    /// Gives back what was kept for those who ask next, when their time is over.
    pub(super) fn trim_recalled(&mut self, index: u32, now: Micros) {
        let Self { rooms, setup, log_bytes, .. } = self;
        let Some(room) = rooms.at_mut(index) else { return };
        let Some(feed) = &mut room.feed else { return };
        if feed.recalled_until.is_none_or(|until| until > now) || !feed.asked.is_empty() {
            return;
        }
        feed.recalled_until = None;
        let history = setup.routes.class(room.class).history;
        if room.is_behind() {
            // A shard still needs it; the next publication cuts it.
            return;
        }
        let Some(log) = &mut room.log else { return };
        while log.len() > history.frames || log.bytes() > history.bytes {
            *log_bytes -= log.pop();
        }
        if log.is_empty() {
            room.log = None;
        }
    }
}

/// Whether the Redis of the room's stream has been away for so long that nobody waits for it.
fn is_hopeless(servers: &[Server], room: &LogRoom) -> bool {
    room.feed.as_ref().is_some_and(|feed| servers[feed.server].streamed.is_hopeless)
}

impl LogRoom {
    /// The oldest number that a question waits for.
    fn wanted_from(&self) -> Option<u64> {
        let asked = self.feed.as_ref()?.asked.iter();
        let wanted = asked.filter_map(|waiting| match self.need(waiting.asked.since()) {
            Need::After(after) => Some(after),
            Need::Nothing | Need::Anchor | Need::Ahead => None,
        });
        wanted.min()
    }

    /// What a question needs of the stream.
    fn need(&self, since: Since) -> Need {
        let Some(feed) = &self.feed else { return Need::Nothing };
        if feed.retry_at.is_some() {
            return Need::Nothing;
        }
        // Who isn't followed (any more) may have had entries since.
        let Some(epoch) = feed.epoch.filter(|_| self.subscribed) else { return Need::Anchor };
        let newest = self.next - 1;
        let held_after = self.log.as_ref().map_or(newest, |log| log.first() - 1);
        // What is certain to be in vain isn't asked for.
        let floor = feed.gone.max(newest.saturating_sub(STREAM_HISTORY_ENTRIES_MAX));
        match since {
            Since::After { epoch: Some(wanted), .. } if wanted != epoch => Need::Nothing,
            Since::After { epoch: Some(_), offset } if offset > newest && offset != NEVER => Need::Ahead,
            Since::After { offset, .. } if offset < held_after && offset >= floor => Need::After(offset),
            Since::After { .. } => Need::Nothing,
            Since::Oldest if held_after > floor && held_after >= FIRST_OFFSET => Need::After(floor),
            Since::Oldest => Need::Nothing,
            Since::Last(count) => match newest.saturating_sub(count).max(floor) {
                after if after < held_after => Need::After(after),
                _ => Need::Nothing,
            },
        }
    }
}
