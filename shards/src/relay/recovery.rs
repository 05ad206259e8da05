//! What newcomers get of a room's past: resume after a reconnect, and the log's publications for who asks for them.
//!
//! The answer goes down the same ring as the publications, so it ends exactly where live begins: the shard lets the newcomer
//! in when it takes the answer, and what the ring brings after it is all that comes later. A question is answered when the
//! ring has space for what it brings; until then it waits as the question that it is, and not as its answer.
//!
//! Recovered is who misses nothing: the epoch is the client's or the client names none, and the log holds everything after
//! the last that it has (FIELD section 5). Anybody else is told where the room stands, and that something is missing.

use super::recalls::Asked;
use super::{FIRST_OFFSET, LogRoom, Outlet, Relay, run_of};
use crate::command::{Down, Read, Reading, Recorded, Recover, Recovered, Since};
use crate::limits::READ_BYTES_MAX;
use crate::log::Past;
use crate::metrics::Recovery;
use crate::shard::Micros;

impl Relay {
    /// A newcomer asks; it is answered at once where its shard's ring has space.
    pub(super) fn recover(&mut self, shard: u16, recover: Recover, outlet: &mut impl Outlet, now: Micros) {
        if let Some(index) = self.find(&recover.room) {
            self.expire(index, now);
        }
        self.backlogs[usize::from(shard)].recovers.push_back(recover);
        self.pump(shard, outlet);
    }

    /// Answers the newcomers of a shard, in their order, as far as there is space.
    pub(super) fn answer_recovers(&mut self, shard: u16, outlet: &mut impl Outlet) {
        let at = usize::from(shard);
        while let Some(recover) = self.backlogs[at].recovers.front() {
            let ticket = recover.ticket;
            let index = self.find(&recover.room);
            let Some(room) = index.and_then(|index| self.rooms.at(index)) else {
                self.backlogs[at].recovers.pop_front();
                self.offer(shard, Down::Withdrawn { ticket }, outlet);
                continue;
            };
            // What the shard still lacks of the room would come after an answer that has it.
            if room.is_behind_on(shard) {
                return;
            }
            if let (Some(index), true) = (index, room.feed.is_some()) {
                let Some(recover) = self.backlogs[at].recovers.pop_front() else { return };
                match self.ask_stream(index, Asked::Recover(shard, Box::new(recover))) {
                    Err(Asked::Recover(_, recover)) => self.backlogs[at].recovers.push_front(*recover),
                    _ => continue,
                }
            }
            let Some(recover) = self.backlogs[at].recovers.front() else { return };
            let Some(room) = index.and_then(|index| self.rooms.at(index)) else { return };
            let epoch = room.epoch(self.epoch_base, run_of(&self.servers, room.source));
            let (first, is_whole) = room.past(recover.since, epoch);
            let bytes = room.log.as_ref().map_or(0, |log| log.past_bytes(first)) as usize;
            let backlog = &mut self.backlogs[at];
            let has_space = backlog.spill.is_empty()
                && backlog.has_space_for(bytes, || outlet.consumed_bytes(shard), &self.setup.engine);
            if !has_space {
                return;
            }
            let next = room.next;
            let past = room.log.as_ref().map_or_else(Past::default, |log| log.past(first));
            let Some(recover) = self.backlogs[at].recovers.pop_front() else { return };
            let outcome = match (recover.since, is_whole) {
                (Since::After { .. }, true) => Recovery::Whole,
                (Since::After { .. }, false) => Recovery::Lost,
                _ => Recovery::Newcomer,
            };
            let metrics = self.metrics();
            metrics.recoveries.add(outcome, 1);
            metrics.recovered_publications.add(past.len());
            let offset = past.first_offset().unwrap_or(next) - 1;
            let recovered = Recovered { recover, epoch, offset, is_whole, past };
            self.offer(shard, Down::Recovered(Box::new(recovered)), outlet);
        }
    }

    /// A question is taken back: where it waits for space it waits no more. One that has been answered was answered.
    pub(super) fn withdraw(&mut self, shard: u16, ticket: u64, outlet: &mut impl Outlet) {
        let recovers = &mut self.backlogs[usize::from(shard)].recovers;
        match recovers.iter().position(|recover| recover.ticket == ticket) {
            Some(at) => drop(recovers.remove(at)),
            None if self.withdraw_asked(shard, ticket) => {}
            None => return,
        }
        self.metrics().recovers_withdrawn.add(1);
        self.offer(shard, Down::Withdrawn { ticket }, outlet);
    }

    /// Reads a room's log for somebody who is no member of it.
    pub(super) fn read(&mut self, shard: u16, read: Read, outlet: &mut impl Outlet, now: Micros) {
        let index = self.find(&read.room).or_else(|| self.begin_stream(&read.room, now));
        let Some(index) = index.filter(|index| self.rooms.at(*index).is_some_and(|room| room.feed.is_some()))
        else {
            return self.read_log(shard, read, outlet, now);
        };
        if let Err(Asked::Read(_, read)) = self.ask_stream(index, Asked::Read(shard, Box::new(read))) {
            self.read_log(shard, *read, outlet, now);
        }
    }

    /// The same, of what the log holds.
    pub(super) fn read_log(&mut self, shard: u16, read: Read, outlet: &mut impl Outlet, now: Micros) {
        let index = self.find(&read.room);
        if let Some(index) = index {
            self.expire(index, now);
        }
        let Some(room) = index.and_then(|index| self.rooms.at(index)) else {
            let is_whole = matches!(
                read.since,
                Since::After { offset: 0, epoch: None } | Since::Oldest | Since::Last(_)
            );
            let reading = Reading { read, epoch: 0, offset: 0, newest: 0, is_whole, records: Vec::new() };
            return self.offer(shard, Down::Reading(Box::new(reading)), outlet);
        };
        let epoch = room.epoch(self.epoch_base, run_of(&self.servers, room.source));
        let since = match read.since {
            Since::Last(count) => Since::Last(count.min(read.limit as u64)),
            since => since,
        };
        let (first, is_whole) = room.past(since, epoch);
        // Of a stream that can't be read nobody knows what it holds.
        let is_known = room.feed.as_ref().is_none_or(|feed| feed.epoch.is_some() && feed.retry_at.is_none());
        let is_whole = is_whole && is_known;
        let (newest, mut records) = (room.next - 1, room.records_of(first, read.limit));
        let mut bytes = 0;
        let mut within = |record: &Recorded| {
            bytes += record.frame.len();
            bytes <= READ_BYTES_MAX
        };
        let fits = records.iter().take_while(|record| within(record)).count().max(1);
        records.truncate(fits);
        let offset = records.first().map_or(newest, |record| record.offset - 1);
        let reading = Reading { read, epoch, offset, newest, is_whole, records };
        self.offer(shard, Down::Reading(Box::new(reading)), outlet);
    }

    /// Forgets what is older than the room's class says. A log that a shard still needs is left as it is.
    pub(super) fn expire(&mut self, index: u32, now: Micros) {
        let Self { rooms, setup, log_bytes, .. } = self;
        let Some(room) = rooms.at_mut(index).filter(|room| !room.is_behind() && !room.keeps_recalled())
        else {
            return;
        };
        let oldest_kept = now.0.saturating_sub(setup.routes.class(room.class).history.age.as_micros() as u64);
        let Some(log) = &mut room.log else { return };
        while log.oldest().is_some_and(|oldest| oldest.arrived_micros < oldest_kept) {
            *log_bytes -= log.pop();
        }
    }
}

impl LogRoom {
    /// Number of the first publication that a newcomer gets of the past, and whether it misses none before it.
    fn past(&self, since: Since, epoch: u64) -> (u64, bool) {
        let oldest = self.log.as_ref().map_or(self.next, |log| log.first());
        match since {
            Since::After { epoch: wanted, offset } => {
                let is_same = wanted.is_none_or(|wanted| wanted == epoch);
                let is_held = (oldest..=self.next).contains(&(offset.saturating_add(1)));
                match is_same && is_held {
                    true => (offset + 1, true),
                    false => (self.next, false),
                }
            }
            Since::Oldest => (oldest, oldest == FIRST_OFFSET),
            Since::Last(count) => (oldest.max(self.next.saturating_sub(count)), true),
        }
    }

    /// The publications from `first` on, at most `limit` of them, the oldest.
    fn records_of(&self, first: u64, limit: usize) -> Vec<Recorded> {
        let Some(log) = &self.log else { return Vec::new() };
        let recorded = |offset| {
            let (record, after_break) = log.at(offset)?;
            let after_break = after_break && offset > log.first();
            Some(Recorded { offset, after_break, frame: record.frame.clone(), label: record.label.clone() })
        };
        (first..self.next).filter_map(recorded).take(limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::auth::Gate;
    use crate::command::{ConnectionId, RoomSlot, Up};
    use crate::config::{Config, History, RoomClass};
    use crate::metrics::{Identity, Metrics, Via};
    use crate::relay::BrokerState;
    use crate::setup::Setup;

    const SLOT: RoomSlot = RoomSlot { index: 0, generation: 0 };
    const TO: ConnectionId = ConnectionId { shard: 0, generation: 0, slot: 0 };
    const SECOND: u64 = 1_000_000;

    #[derive(Default)]
    struct Ring {
        down: Vec<Down>,
        is_full: bool,
    }

    impl Outlet for Ring {
        fn offer(&mut self, _shard: u16, command: Down) -> Result<(), Down> {
            if self.is_full {
                return Err(command);
            }
            self.down.push(command);
            Ok(())
        }

        fn consumed_bytes(&self, _shard: u16) -> u64 {
            0
        }
    }

    /// A room with a log of three publications, joined by a shard.
    fn world() -> (Relay, Ring, u64) {
        let history = History { frames: 3, age: Duration::from_secs(60), ..History::default() };
        let config = Config {
            rooms: vec![RoomClass { history, ..RoomClass::default() }],
            sources: vec![crate::config::Source::default()],
            ..Config::default()
        };
        let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
        let setup = Arc::new(Setup::new(&config, Gate::new(None, true), metrics));
        let (mut relay, mut ring) = (Relay::new(setup, BrokerState::Down, 1), Ring::default());
        relay.broker_up(0, &mut ring);
        relay.handle(0, Up::Join { slot: SLOT, name: "r".into() }, &mut ring, Micros(0));
        relay.confirmed(0, b"room:r", &mut ring);
        let epoch = match ring.down.as_slice() {
            [.., Down::Joined { epoch, head: FIRST_OFFSET, .. }] => *epoch,
            other => panic!("Joined is due: {other:?}"),
        };
        (relay, ring, epoch)
    }

    fn place(relay: &mut Relay, ring: &mut Ring, payload: &str, seconds: u64) {
        relay.place("r", payload.as_bytes(), Via::Source(0).into(), ring, Micros(seconds * SECOND));
    }

    /// Numbers of the publications, where they begin, whether nothing is missing.
    fn recover(relay: &mut Relay, ring: &mut Ring, since: Since, seconds: u64) -> (Vec<u64>, u64, bool) {
        let recover = Recover { to: TO, slot: SLOT, room: "r".into(), since, ticket: 1 };
        relay.handle(0, Up::Recover(Box::new(recover)), ring, Micros(seconds * SECOND));
        let Some(Down::Recovered(recovered)) = ring.down.pop() else { panic!("an answer is due") };
        let offsets = recovered.past.iter().map(|(offset, ..)| offset).collect();
        (offsets, recovered.offset, recovered.is_whole)
    }

    fn after(epoch: Option<u64>, offset: u64) -> Since {
        Since::After { epoch, offset }
    }

    #[test]
    fn recovered_is_who_has_the_epoch_and_misses_only_what_the_log_holds() {
        let (mut relay, mut ring, epoch) = world();
        for payload in ["1", "2", "3", "4"] {
            place(&mut relay, &mut ring, payload, 1);
        }
        let mut ask = |since| recover(&mut relay, &mut ring, since, 2);
        assert_eq!(ask(after(Some(epoch), 2)), (vec![3, 4], 2, true));
        assert_eq!(ask(after(None, 1)), (vec![2, 3, 4], 1, true), "an empty epoch is any");
        assert_eq!(ask(after(Some(epoch), 4)), (vec![], 4, true), "nothing was missed");
        assert_eq!(ask(after(Some(epoch), 0)), (vec![], 4, false), "the first has gone from the log");
        assert_eq!(ask(after(Some(epoch), 5)), (vec![], 4, false), "a number that is not there yet");
        assert_eq!(ask(after(Some(epoch), u64::MAX)), (vec![], 4, false));
        assert_eq!(ask(after(Some(epoch ^ 1), 2)), (vec![], 4, false), "another run of numbers");
        assert_eq!(ask(Since::Oldest), (vec![2, 3, 4], 1, false));
        assert_eq!(ask(Since::Last(2)), (vec![3, 4], 2, true));
        assert_eq!(ask(Since::Last(9)), (vec![2, 3, 4], 1, true));
    }

    #[test]
    fn a_break_of_the_broker_ends_the_epoch_and_shows_in_the_log() {
        let (mut relay, mut ring, epoch) = world();
        place(&mut relay, &mut ring, "1", 1);
        relay.broker_down(0, &mut ring);
        relay.broker_up(0, &mut ring);
        place(&mut relay, &mut ring, "2", 2);
        assert_eq!(recover(&mut relay, &mut ring, after(Some(epoch), 1), 3), (vec![], 2, false));
        let ask = Recover { to: TO, slot: SLOT, room: "r".into(), since: Since::Oldest, ticket: 1 };
        relay.handle(0, Up::Recover(Box::new(ask)), &mut ring, Micros(3 * SECOND));
        let Some(Down::Recovered(recovered)) = ring.down.pop() else { panic!("an answer is due") };
        let breaks: Vec<_> = recovered.past.iter().map(|(offset, after, _)| (offset, after)).collect();
        assert_eq!((breaks, recovered.epoch != epoch), (vec![(1, false), (2, true)], true));
    }

    #[test]
    fn what_is_older_than_the_class_keeps_is_not_recovered() {
        let (mut relay, mut ring, epoch) = world();
        place(&mut relay, &mut ring, "1", 1);
        place(&mut relay, &mut ring, "2", 50);
        assert_eq!(recover(&mut relay, &mut ring, after(Some(epoch), 0), 70), (vec![], 2, false));
        assert_eq!(recover(&mut relay, &mut ring, after(Some(epoch), 1), 70), (vec![2], 1, true));
    }

    #[test]
    fn a_question_waits_for_space_and_its_answer_is_as_new_as_its_place_on_the_ring() {
        let (mut relay, mut ring, epoch) = world();
        place(&mut relay, &mut ring, "1", 1);
        ring.is_full = true;
        place(&mut relay, &mut ring, "2", 1);
        let ask = Recover { to: TO, slot: SLOT, room: "r".into(), since: after(Some(epoch), 0), ticket: 1 };
        relay.handle(0, Up::Recover(Box::new(ask)), &mut ring, Micros(SECOND));
        assert!(relay.has_backlog());
        ring.is_full = false;
        ring.down.clear();
        relay.pump(0, &mut ring);
        match ring.down.as_slice() {
            [Down::Publication { offset: 2, .. }, Down::Recovered(recovered)] => {
                assert_eq!((recovered.past.len(), recovered.offset, recovered.is_whole), (2, 0, true));
            }
            other => panic!("the spill, then the answer: {other:?}"),
        }
        assert!(!relay.has_backlog());
    }

    #[test]
    fn a_question_that_was_taken_back_brings_no_past_and_is_answered_all_the_same() {
        let (mut relay, mut ring, _) = world();
        place(&mut relay, &mut ring, "1", 1);
        ring.is_full = true;
        place(&mut relay, &mut ring, "2", 1);
        for ticket in 1..=3 {
            let ask = Recover { to: TO, slot: SLOT, room: "r".into(), since: Since::Oldest, ticket };
            relay.handle(0, Up::Recover(Box::new(ask)), &mut ring, Micros(SECOND));
        }
        relay.handle(0, Up::Withdraw { ticket: 1 }, &mut ring, Micros(SECOND));
        relay.handle(0, Up::Withdraw { ticket: 3 }, &mut ring, Micros(SECOND));
        ring.is_full = false;
        ring.down.clear();
        relay.pump(0, &mut ring);
        let answers: Vec<(u64, bool)> = ring
            .down
            .iter()
            .filter_map(|down| match down {
                Down::Withdrawn { ticket } => Some((*ticket, false)),
                Down::Recovered(recovered) => Some((recovered.recover.ticket, true)),
                _ => None,
            })
            .collect();
        assert_eq!(answers, [(1, false), (3, false), (2, true)]);
        assert_eq!(relay.metrics().recovers_withdrawn.value(), 2);
        relay.handle(0, Up::Withdraw { ticket: 2 }, &mut ring, Micros(SECOND));
        assert_eq!(ring.down.len(), 4, "what was answered was answered");
    }
}
