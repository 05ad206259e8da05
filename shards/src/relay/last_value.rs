//! The newest event of each key, kept in Redis for newcomers.
//!
//! Written when an event is ingested, read when a connection joins a room, and nothing of it is remembered here: what
//! Redis lets end has ended. Of one key one write is under way at most; a newer value takes the place of the one that waits.
//! A write that could not be handed to the connection within its time is given up, and so is all that waits when Redis goes.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::{BrokerCommand, BrokerState, Outlet, Relay};
use crate::command::{Down, Warm, Warmed};
use crate::config::LastValue;
use crate::dialect::PLAIN_KIND;
use crate::envelope;
use crate::limits::{
    LAST_VALUE_BYTES_MAX, LAST_VALUE_KEYS_MAX, LAST_VALUE_WRITES_MAX, PAYLOAD_BYTES_MAX, ROOM_NAME_BYTES_MAX,
    WARMS_WAITING_MAX,
};
use crate::metrics::GivenUp;
use crate::route::plain_name;
use crate::shard::Micros;

/// What waits for Redis, and what is under way to it.
#[derive(Debug, Default)]
pub(super) struct LastValues {
    /// By key in Redis. In `queue` are those that wait and have no write under way.
    writes: HashMap<Box<str>, Write>,
    queue: VecDeque<Box<str>>,
    under_way: usize,
    /// Of the values that wait and of those under way: a connection that stands still holds those.
    bytes: usize,
    /// By key in Redis.
    questions: HashMap<Box<str>, Question>,
    /// In all questions.
    warms: usize,
}

#[derive(Debug)]
struct Write {
    /// Bytes of the value that is under way.
    under_way: Option<usize>,
    waiting: Option<Waiting>,
    ttl_millis: u64,
    timeout_micros: u64,
}

#[derive(Debug)]
struct Waiting {
    value: Bytes,
    since: Micros,
}

/// A GET that is under way. Who asks meanwhile asks again after it: its answer may be older than what they missed.
#[derive(Debug, Default)]
struct Question {
    under_way: Vec<Warm>,
    next: Vec<Warm>,
}

impl LastValues {
    /// Takes a value. `Err` says how many are not going to be written because of a bound: it, and the one that waited.
    fn offer(&mut self, key: Box<str>, value: Bytes, kept: &LastValue, now: Micros) -> Result<Taken, u64> {
        let waiting = Waiting { value, since: now };
        let bytes = waiting.value.len();
        if let Some(write) = self.writes.get_mut(&key) {
            let before = write.waiting.take();
            self.bytes -= before.as_ref().map_or(0, |before| before.value.len());
            if self.bytes + bytes > LAST_VALUE_BYTES_MAX {
                // The older one would only hide that there is a newer.
                return Err(1 + u64::from(before.is_some()));
            }
            self.bytes += bytes;
            write.waiting = Some(waiting);
            return Ok(if before.is_some() { Taken::InItsPlace } else { Taken::Behind });
        }
        if self.writes.len() >= LAST_VALUE_KEYS_MAX || self.bytes + bytes > LAST_VALUE_BYTES_MAX {
            return Err(1);
        }
        self.bytes += bytes;
        let (ttl_millis, timeout_micros) = (kept.ttl.as_millis() as u64, kept.timeout.as_micros() as u64);
        let write = Write { under_way: None, waiting: Some(waiting), ttl_millis, timeout_micros };
        self.queue.push_back(key.clone());
        self.writes.insert(key, write);
        Ok(Taken::Behind)
    }

    /// The next write that may go, and how many were given up because their time was over.
    fn next(&mut self, now: Micros) -> (Option<BrokerCommand>, u64) {
        let mut late = 0;
        while self.under_way < LAST_VALUE_WRITES_MAX
            && let Some(key) = self.queue.pop_front()
        {
            let Some(write) = self.writes.get_mut(&key).filter(|write| write.under_way.is_none()) else {
                continue;
            };
            let Some(Waiting { value, since }) = write.waiting.take() else {
                self.writes.remove(&key);
                continue;
            };
            if now.0.saturating_sub(since.0) > write.timeout_micros {
                late += 1;
                self.bytes -= value.len();
                self.writes.remove(&key);
                continue;
            }
            write.under_way = Some(value.len());
            self.under_way += 1;
            let ttl_millis = write.ttl_millis;
            return (Some(BrokerCommand::Keep { key, value, ttl_millis }), late);
        }
        (None, late)
    }

    /// Takes out what has waited too long although nothing may go, or behind a write of its key that isn't answered.
    fn expire(&mut self, now: Micros) -> u64 {
        let mut late = 0;
        let bytes = &mut self.bytes;
        self.writes.retain(|_, write| {
            let since = write.waiting.as_ref().map_or(now, |waiting| waiting.since);
            if now.0.saturating_sub(since.0) > write.timeout_micros {
                *bytes -= write.waiting.take().map_or(0, |waiting| waiting.value.len());
                late += 1;
            }
            write.under_way.is_some() || write.waiting.is_some()
        });
        self.queue.retain(|key| self.writes.contains_key(key));
        late
    }

    /// The value of `key` that is not on its way yet: what is under way before it is older.
    fn waiting(&self, key: &str) -> Option<&Bytes> {
        Some(&self.writes.get(key)?.waiting.as_ref()?.value)
    }

    /// Redis answered a write, or its connection did not take it.
    fn written(&mut self, key: &str) {
        let Some(write) = self.writes.get_mut(key) else { return };
        let Some(bytes) = write.under_way.take() else { return };
        self.bytes -= bytes;
        self.under_way -= 1;
        match write.waiting {
            Some(_) => self.queue.push_back(key.into()),
            None => drop(self.writes.remove(key)),
        }
    }

    /// Forgets everything. Returns the writes that are lost, or may be, and the questions that nobody answers.
    fn clear(&mut self) -> (u64, u64) {
        let waiting = self.writes.values().filter(|write| write.waiting.is_some()).count();
        let lost = ((waiting + self.under_way) as u64, self.warms as u64);
        *self = Self::default();
        lost
    }
}

/// What became of an offered value.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    /// It waits.
    Behind,
    /// It waits where an older one of its key did, which is not going to be written.
    InItsPlace,
}

impl Relay {
    /// Has an own publication written as the last value of `key`.
    pub(super) fn keep_last(&mut self, source: usize, key: &str, payload: &Bytes, now: Micros) {
        let setup = std::sync::Arc::clone(&self.setup);
        let Some(kept) = setup.routes.last_value(source) else { return };
        let (metrics, server) = (&setup.metrics.relay, setup.routes.server_of(source));
        if self.servers[server].state != BrokerState::Up {
            return metrics.last_values_given_up.add(GivenUp::BrokerDown, 1);
        }
        // A domain of one's own may name a key by any text.
        if key.len() > ROOM_NAME_BYTES_MAX {
            return metrics.last_values_given_up.add(GivenUp::Bound, 1);
        }
        let key = [&*kept.prefix, key].concat().into_boxed_str();
        match self.servers[server].last_values.offer(key, payload.clone(), kept, now) {
            Ok(Taken::Behind) => {}
            Ok(Taken::InItsPlace) => metrics.last_values_conflated.add(1),
            Err(values) => metrics.last_values_given_up.add(GivenUp::Bound, values),
        }
        self.write_last_values(server, now);
    }

    /// Gives up what has waited too long. For each tick.
    pub(super) fn expire_last_values(&mut self, now: Micros) {
        for server in 0..self.servers.len() {
            let late = self.servers[server].last_values.expire(now);
            self.metrics().last_values_given_up.add(GivenUp::Timeout, late);
            self.write_last_values(server, now);
        }
    }

    /// Hands on what may go.
    fn write_last_values(&mut self, server: usize, now: Micros) {
        let mut late = 0;
        loop {
            let (command, more) = self.servers[server].last_values.next(now);
            late += more;
            let Some(command) = command else { break };
            self.broker.push_back((server, command));
        }
        self.metrics().last_values_given_up.add(GivenUp::Timeout, late);
    }

    /// Redis answered the write of `key`: it holds the value, or it doesn't.
    pub fn kept(&mut self, server: usize, key: &str, is_kept: bool, now: Micros) {
        match is_kept {
            true => self.metrics().last_values_written.add(1),
            false => self.metrics().last_values_given_up.add(GivenUp::BrokerError, 1),
        }
        self.servers[server].last_values.written(key);
        self.write_last_values(server, now);
    }

    /// A connection has entered a room and asks for its last value. Where a newer one waits for its write, that is the answer:
    /// what Redis has now is older than what the newcomer may have missed.
    pub(super) fn warm(&mut self, warm: Warm, outlet: &mut impl Outlet) {
        let setup = std::sync::Arc::clone(&self.setup);
        let Some((source, _)) = setup.routes.channel_of_room(&warm.room) else { return };
        let Some(kept) = setup.routes.last_value(source) else { return };
        let server = setup.routes.server_of(source);
        if self.servers[server].state != BrokerState::Up
            || self.servers[server].last_values.warms >= WARMS_WAITING_MAX
        {
            return self.metrics().warms_unanswered.add(1);
        }
        let key = [&*kept.prefix, plain_name(&warm.room)].concat().into_boxed_str();
        if let Some(payload) = self.servers[server].last_values.waiting(&key).cloned() {
            let label = self.label_of_value(&payload);
            return self.tell(Warmed { warm, payload, label }, outlet);
        }
        self.servers[server].last_values.warms += 1;
        if let Some(question) = self.servers[server].last_values.questions.get_mut(&key) {
            return question.next.push(warm);
        }
        self.servers[server]
            .last_values
            .questions
            .insert(key.clone(), Question { under_way: vec![warm], next: Vec::new() });
        self.broker.push_back((server, BrokerCommand::Fetch { key }));
    }

    /// Redis answered a question: the value, or that there is none.
    pub fn fetched(&mut self, server: usize, key: &str, value: Option<&[u8]>, outlet: &mut impl Outlet) {
        let Some(question) = self.servers[server].last_values.questions.get_mut(key) else { return };
        let answered = std::mem::take(&mut question.under_way);
        question.under_way = std::mem::take(&mut question.next);
        match question.under_way.is_empty() {
            true => drop(self.servers[server].last_values.questions.remove(key)),
            false => self.broker.push_back((server, BrokerCommand::Fetch { key: key.into() })),
        }
        self.servers[server].last_values.warms -= answered.len();
        let Some(value) = value.filter(|value| value.len() <= PAYLOAD_BYTES_MAX) else {
            return self.metrics().warm_misses.add(answered.len() as u64);
        };
        let (payload, label) = (Bytes::copy_from_slice(value), self.label_of_value(value));
        for warm in answered {
            self.tell(Warmed { warm, payload: payload.clone(), label: label.clone() }, outlet);
        }
    }

    /// Tells a newcomer a value, unless its shard has no space: values must not heap up behind a slow one.
    fn tell(&mut self, warmed: Warmed, outlet: &mut impl Outlet) {
        let (shard, bytes) = (warmed.warm.to.shard, warmed.payload.len());
        let backlog = &mut self.backlogs[usize::from(shard)];
        if !backlog.has_space_for(bytes, || outlet.consumed_bytes(shard), &self.setup.engine) {
            return self.metrics().warms_unanswered.add(1);
        }
        self.metrics().warm_hits.add(1);
        self.offer(shard, Down::Warmed(Box::new(warmed)), outlet);
    }

    /// What a value is: an object says its type itself, a bare number of another system's is JSON as well.
    fn label_of_value(&mut self, value: &[u8]) -> std::sync::Arc<crate::command::Label> {
        if let Some(kind) = envelope::kind_of(value) {
            return self.label(&kind, true);
        }
        let is_json =
            value.first() != Some(&b'"') && serde_json::from_slice::<serde::de::IgnoredAny>(value).is_ok();
        self.label(PLAIN_KIND, is_json)
    }

    /// The server is away: what waits is given up, so that nothing old is written when it is back.
    pub(super) fn forget_last_values(&mut self, server: usize) {
        let (writes, warms) = self.servers[server].last_values.clear();
        let metrics = self.metrics();
        metrics.last_values_given_up.add(GivenUp::BrokerDown, writes);
        metrics.warms_unanswered.add(warms);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::auth::Gate;
    use crate::command::{ConnectionId, RoomSlot};
    use crate::config::{Config, RoomClass, Source};
    use crate::metrics::{Identity, Metrics};
    use crate::relay::tests::Ring;
    use crate::setup::Setup;

    /// A relay that is up and keeps the last values of its rooms; `backlog` bytes may wait for its shard.
    fn relay(backlog: usize) -> Relay {
        let source = Source { last_value: Some(KEPT()), ..Source::default() };
        let config = Config { rooms: vec![RoomClass::default()], sources: vec![source], ..Config::default() };
        let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
        let mut setup = Setup::new(&config, Gate::new(None, true), metrics);
        setup.engine.backlog_bytes_max = backlog;
        let mut relay = Relay::new(Arc::new(setup), BrokerState::Down, 0);
        relay.broker_up(0, &mut Ring::default());
        relay
    }

    fn newcomer(slot: u32) -> Warm {
        let to = ConnectionId { shard: 0, generation: 0, slot };
        Warm { to, slot: RoomSlot { index: 0, generation: 0 }, room: "a".into(), position: 0 }
    }

    fn given_up(relay: &Relay, reason: GivenUp) -> u64 {
        relay.metrics().last_values_given_up.value(reason)
    }

    /// Slot, payload and label of each value that went down.
    fn told(ring: &Ring) -> Vec<(u32, &str, &str, bool)> {
        let values = ring.0.iter().filter_map(|command| match command {
            Down::Warmed(warmed) => Some(&**warmed),
            _ => None,
        });
        values
            .map(|Warmed { warm, payload, label }| {
                let payload = std::str::from_utf8(payload).expect("text");
                (warm.to.slot, payload, &*label.kind, label.is_json)
            })
            .collect()
    }

    const KEPT: fn() -> LastValue = || LastValue {
        prefix: "last:".to_owned(),
        ttl: Duration::from_secs(30),
        timeout: Duration::from_millis(50),
    };

    fn offer(values: &mut LastValues, key: &str, value: &'static str, millis: u64) -> Result<Taken, u64> {
        values.offer(key.into(), Bytes::from_static(value.as_bytes()), &KEPT(), Micros(millis * 1000))
    }

    fn next(values: &mut LastValues, millis: u64) -> Option<(String, String)> {
        match values.next(Micros(millis * 1000)) {
            (Some(BrokerCommand::Keep { key, value, ttl_millis: 30_000 }), 0) => {
                Some((key.into(), String::from_utf8(value.to_vec()).expect("text")))
            }
            (None, 0) => None,
            other => panic!("{other:?}"),
        }
    }

    fn pair(key: &str, value: &str) -> Option<(String, String)> {
        Some((key.to_owned(), value.to_owned()))
    }

    #[test]
    fn of_one_key_one_write_is_under_way_and_the_newest_value_is_the_next() {
        let mut values = LastValues::default();
        assert_eq!(offer(&mut values, "a", "1", 0), Ok(Taken::Behind));
        assert_eq!(next(&mut values, 0), pair("a", "1"));
        assert_eq!(offer(&mut values, "a", "2", 1), Ok(Taken::Behind));
        assert_eq!(offer(&mut values, "a", "3", 2), Ok(Taken::InItsPlace));
        assert_eq!(next(&mut values, 2), None, "the first is not answered");
        values.written("a");
        assert_eq!(next(&mut values, 3), pair("a", "3"));
        values.written("a");
        assert!(values.writes.is_empty() && values.under_way == 0 && values.bytes == 0);
    }

    #[test]
    fn what_could_not_go_in_its_time_is_given_up() {
        let mut values = LastValues::default();
        for key in 0..LAST_VALUE_WRITES_MAX {
            assert_eq!(offer(&mut values, &key.to_string(), "x", 0), Ok(Taken::Behind));
            assert!(next(&mut values, 0).is_some());
        }
        assert_eq!(offer(&mut values, "late", "x", 0), Ok(Taken::Behind));
        assert_eq!(offer(&mut values, "later", "x", 40), Ok(Taken::Behind));
        assert_eq!(next(&mut values, 40), None, "too many are under way");
        assert_eq!(values.expire(Micros(51_000)), 1);
        assert_eq!(offer(&mut values, "0", "newer", 51), Ok(Taken::Behind));
        assert_eq!(values.expire(Micros(102_000)), 2, "what waits behind a write that isn't answered, too");
        assert!(values.queue.is_empty() && values.bytes == values.under_way, "one byte each is under way");
        values.written("0");
        assert_eq!(offer(&mut values, "later", "x", 102), Ok(Taken::Behind));
        assert_eq!(next(&mut values, 103), pair("later", "x"));
    }

    #[test]
    fn keys_and_bytes_have_bounds() {
        let mut values = LastValues::default();
        for key in 0..LAST_VALUE_KEYS_MAX {
            assert_eq!(offer(&mut values, &key.to_string(), "", 0), Ok(Taken::Behind));
        }
        assert_eq!(offer(&mut values, "one more", "", 0), Err(1));
        assert_eq!(offer(&mut values, "7", "newer", 0), Ok(Taken::InItsPlace));
        assert_eq!(values.clear().0, LAST_VALUE_KEYS_MAX as u64);
        let large = Bytes::from(vec![0; LAST_VALUE_BYTES_MAX]);
        assert!(values.offer("a".into(), large.clone(), &KEPT(), Micros(0)).is_ok());
        assert_eq!(values.offer("b".into(), large.clone(), &KEPT(), Micros(0)), Err(1));
        assert!(values.next(Micros(0)).0.is_some());
        assert_eq!(offer(&mut values, "b", "x", 0), Err(1), "what is under way counts");
        values.written("a");
        assert_eq!(offer(&mut values, "b", "x", 0), Ok(Taken::Behind));
        assert_eq!(offer(&mut values, "c", "x", 0), Ok(Taken::Behind));
        let too_large = values.offer("b".into(), large, &KEPT(), Micros(0));
        assert_eq!(too_large, Err(2), "so does what takes the place of another, which goes with it");
        assert_eq!(values.bytes, 1);
        assert_eq!(next(&mut values, 0), pair("c", "x"));
    }

    #[test]
    fn what_a_break_leaves_unanswered_is_lost_as_well_as_what_waits() {
        let mut values = LastValues::default();
        assert_eq!(offer(&mut values, "a", "1", 0), Ok(Taken::Behind));
        assert!(next(&mut values, 0).is_some());
        assert_eq!(offer(&mut values, "a", "2", 0), Ok(Taken::Behind));
        assert_eq!(offer(&mut values, "b", "1", 0), Ok(Taken::Behind));
        assert_eq!(values.clear(), (3, 0));
    }

    #[test]
    fn newcomers_share_a_question_but_not_one_that_was_asked_before_they_came() {
        let (mut relay, mut ring) = (relay(1 << 20), Ring::default());
        relay.warm(newcomer(1), &mut ring);
        relay.warm(newcomer(2), &mut ring);
        relay.warm(newcomer(3), &mut ring);
        let asked = |relay: &mut Relay| std::mem::take(&mut relay.broker).into_iter().collect::<Vec<_>>();
        let fetch = [(0, BrokerCommand::Fetch { key: "last:a".into() })];
        assert_eq!(asked(&mut relay), fetch);
        relay.fetched(0, "last:a", None, &mut ring);
        assert_eq!(asked(&mut relay), fetch, "for the second and the third");
        relay.fetched(0, "last:a", Some(br#"{"type":"price_update","price":1.50}"#), &mut ring);
        let value = r#"{"type":"price_update","price":1.50}"#;
        assert_eq!(told(&ring), [(2, value, "price_update", true), (3, value, "price_update", true)]);
        let metrics = relay.metrics();
        assert_eq!((metrics.warm_hits.value(), metrics.warm_misses.value()), (2, 1));
        assert!(relay.servers[0].last_values.questions.is_empty() && relay.servers[0].last_values.warms == 0);
    }

    #[test]
    fn a_value_that_waits_for_its_write_is_told_in_place_of_the_older_one() {
        let (mut relay, mut ring) = (relay(1 << 20), Ring::default());
        relay.keep_last(0, "a", &Bytes::from_static(b"1"), Micros(0));
        relay.keep_last(0, "a", &Bytes::from_static(b"2"), Micros(0));
        relay.warm(newcomer(1), &mut ring);
        assert_eq!(told(&ring), [(1, "2", PLAIN_KIND, true)]);
        assert_eq!((relay.servers[0].last_values.warms, relay.metrics().warm_hits.value()), (0, 1));
    }

    #[test]
    fn a_number_is_json_and_any_other_text_is_text() {
        for (value, is_json) in [("60214.30", true), ("null", true), ("up", false), ("\"up\"", false)] {
            let (mut relay, mut ring) = (relay(1 << 20), Ring::default());
            relay.warm(newcomer(1), &mut ring);
            relay.fetched(0, "last:a", Some(value.as_bytes()), &mut ring);
            assert_eq!(told(&ring), [(1, value, PLAIN_KIND, is_json)]);
        }
    }

    #[test]
    fn values_that_a_shard_has_no_space_for_are_not_heaped_up() {
        let (mut relay, mut ring) = (relay(10), Ring::default());
        for slot in 1..=3 {
            relay.warm(newcomer(slot), &mut ring);
            relay.fetched(0, "last:a", Some(b"12345678"), &mut ring);
        }
        assert_eq!(told(&ring).len(), 1);
        assert_eq!((relay.metrics().warm_hits.value(), relay.metrics().warms_unanswered.value()), (1, 2));
    }

    #[test]
    fn a_break_forgets_what_waits_and_nothing_is_kept_until_redis_is_back() {
        let (mut relay, mut ring) = (relay(1 << 20), Ring::default());
        let value = Bytes::from_static(b"1");
        relay.warm(newcomer(1), &mut ring);
        relay.keep_last(0, "a", &value, Micros(0));
        relay.keep_last(0, "a", &value, Micros(0));
        relay.broker_down(0, &mut ring);
        assert_eq!((given_up(&relay, GivenUp::BrokerDown), relay.metrics().warms_unanswered.value()), (2, 1));
        relay.keep_last(0, "a", &value, Micros(2));
        relay.warm(newcomer(2), &mut ring);
        assert_eq!((given_up(&relay, GivenUp::BrokerDown), relay.metrics().warms_unanswered.value()), (3, 2));
        relay.broker.clear();
        relay.broker_up(0, &mut ring);
        relay.write_last_values(0, Micros(3));
        assert!(relay.broker.is_empty(), "nothing old is written: {:?}", relay.broker);
        relay.keep_last(0, "a", &value, Micros(4));
        assert_eq!(relay.broker.len(), 1);
        relay.kept(0, "a", true, Micros(5));
        assert_eq!(relay.metrics().last_values_written.value(), 1);
    }
}
