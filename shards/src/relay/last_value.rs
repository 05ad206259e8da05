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
    /// Of the values that wait.
    bytes: usize,
    /// By key in Redis.
    questions: HashMap<Box<str>, Question>,
    /// In all questions.
    warms: usize,
}

#[derive(Debug)]
struct Write {
    is_under_way: bool,
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
    /// Takes a value; `Err` says why it is not going to be written.
    fn offer(
        &mut self,
        key: Box<str>,
        value: Bytes,
        kept: &LastValue,
        now: Micros,
    ) -> Result<Taken, GivenUp> {
        let waiting = Waiting { value, since: now };
        let bytes = waiting.value.len();
        if let Some(write) = self.writes.get_mut(&key) {
            let before = write.waiting.take();
            self.bytes -= before.as_ref().map_or(0, |before| before.value.len());
            if self.bytes + bytes > LAST_VALUE_BYTES_MAX {
                // The older one would only hide that there is a newer.
                return Err(GivenUp::Bound);
            }
            self.bytes += bytes;
            write.waiting = Some(waiting);
            return Ok(if before.is_some() { Taken::InItsPlace } else { Taken::Behind });
        }
        if self.writes.len() >= LAST_VALUE_KEYS_MAX || self.bytes + bytes > LAST_VALUE_BYTES_MAX {
            return Err(GivenUp::Bound);
        }
        self.bytes += bytes;
        let (ttl_millis, timeout_micros) = (kept.ttl.as_millis() as u64, kept.timeout.as_micros() as u64);
        let write = Write { is_under_way: false, waiting: Some(waiting), ttl_millis, timeout_micros };
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
            let Some(write) = self.writes.get_mut(&key).filter(|write| !write.is_under_way) else { continue };
            let Some(Waiting { value, since }) = write.waiting.take() else {
                self.writes.remove(&key);
                continue;
            };
            self.bytes -= value.len();
            if now.0.saturating_sub(since.0) > write.timeout_micros {
                late += 1;
                self.writes.remove(&key);
                continue;
            }
            write.is_under_way = true;
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
            write.is_under_way || write.waiting.is_some()
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
        let Some(write) = self.writes.get_mut(key).filter(|write| write.is_under_way) else { return };
        write.is_under_way = false;
        self.under_way -= 1;
        match write.waiting {
            Some(_) => self.queue.push_back(key.into()),
            None => drop(self.writes.remove(key)),
        }
    }

    /// Forgets everything. Returns the writes that are lost and the questions that nobody answers.
    fn clear(&mut self) -> (u64, u64) {
        let waiting = self.writes.values().filter(|write| write.waiting.is_some()).count() as u64;
        let lost = (waiting, self.warms as u64);
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
        let metrics = &setup.metrics.relay;
        if self.broker_state != BrokerState::Up {
            return metrics.last_values_given_up.add(GivenUp::BrokerDown, 1);
        }
        // A domain of one's own may name a key by any text.
        if key.len() > ROOM_NAME_BYTES_MAX {
            return metrics.last_values_given_up.add(GivenUp::Bound, 1);
        }
        let key = [&*kept.prefix, key].concat().into_boxed_str();
        match self.last_values.offer(key, payload.clone(), kept, now) {
            Ok(Taken::Behind) => {}
            Ok(Taken::InItsPlace) => metrics.last_values_conflated.add(1),
            Err(reason) => metrics.last_values_given_up.add(reason, 1),
        }
        self.write_last_values(now);
    }

    /// Gives up what has waited too long. For each tick.
    pub(super) fn expire_last_values(&mut self, now: Micros) {
        let late = self.last_values.expire(now);
        self.metrics().last_values_given_up.add(GivenUp::Timeout, late);
        self.write_last_values(now);
    }

    /// Hands on what may go.
    fn write_last_values(&mut self, now: Micros) {
        let mut late = 0;
        loop {
            let (command, more) = self.last_values.next(now);
            late += more;
            let Some(command) = command else { break };
            self.broker.push_back(command);
        }
        self.metrics().last_values_given_up.add(GivenUp::Timeout, late);
    }

    /// Redis answered the write of `key`: it holds the value, or it doesn't.
    pub fn kept(&mut self, key: &str, is_kept: bool, now: Micros) {
        match is_kept {
            true => self.metrics().last_values_written.add(1),
            false => self.metrics().last_values_given_up.add(GivenUp::BrokerError, 1),
        }
        self.last_values.written(key);
        self.write_last_values(now);
    }

    /// A connection has entered a room and asks for its last value. Where a newer one waits for its write, that is the answer:
    /// what Redis has now is older than what the newcomer may have missed.
    pub(super) fn warm(&mut self, warm: Warm, outlet: &mut impl Outlet) {
        let setup = std::sync::Arc::clone(&self.setup);
        let source = setup.routes.channel_of_room(&warm.room).map(|(source, _)| source);
        let Some(kept) = source.and_then(|source| setup.routes.last_value(source)) else { return };
        if self.broker_state != BrokerState::Up || self.last_values.warms >= WARMS_WAITING_MAX {
            return self.metrics().warms_unanswered.add(1);
        }
        let key = [&*kept.prefix, plain_name(&warm.room)].concat().into_boxed_str();
        if let Some(payload) = self.last_values.waiting(&key).cloned() {
            self.metrics().warm_hits.add(1);
            let (shard, label) = (warm.to.shard, self.label_of_value(&payload));
            return self.offer(shard, Down::Warmed(Box::new(Warmed { warm, payload, label })), outlet);
        }
        self.last_values.warms += 1;
        if let Some(question) = self.last_values.questions.get_mut(&key) {
            return question.next.push(warm);
        }
        self.last_values.questions.insert(key.clone(), Question { under_way: vec![warm], next: Vec::new() });
        self.broker.push_back(BrokerCommand::Fetch { key });
    }

    /// Redis answered a question: the value, or that there is none.
    pub fn fetched(&mut self, key: &str, value: Option<&[u8]>, outlet: &mut impl Outlet) {
        let Some(question) = self.last_values.questions.get_mut(key) else { return };
        let answered = std::mem::take(&mut question.under_way);
        question.under_way = std::mem::take(&mut question.next);
        match question.under_way.is_empty() {
            true => drop(self.last_values.questions.remove(key)),
            false => self.broker.push_back(BrokerCommand::Fetch { key: key.into() }),
        }
        self.last_values.warms -= answered.len();
        let metrics = self.metrics();
        let Some(value) = value.filter(|value| value.len() <= PAYLOAD_BYTES_MAX) else {
            return metrics.warm_misses.add(answered.len() as u64);
        };
        metrics.warm_hits.add(answered.len() as u64);
        let (payload, label) = (Bytes::copy_from_slice(value), self.label_of_value(value));
        for warm in answered {
            let (shard, payload, label) = (warm.to.shard, payload.clone(), label.clone());
            self.offer(shard, Down::Warmed(Box::new(Warmed { warm, payload, label })), outlet);
        }
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

    /// Redis is away: what waits is given up, so that nothing old is written when it is back.
    pub(super) fn forget_last_values(&mut self) {
        let (writes, warms) = self.last_values.clear();
        let metrics = self.metrics();
        metrics.last_values_given_up.add(GivenUp::BrokerDown, writes);
        metrics.warms_unanswered.add(warms);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEPT: fn() -> LastValue = || LastValue {
        prefix: "last:".to_owned(),
        ttl: Duration::from_secs(30),
        timeout: Duration::from_millis(50),
    };

    fn offer(values: &mut LastValues, key: &str, value: &'static str, millis: u64) -> Result<Taken, GivenUp> {
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
        assert!(values.queue.is_empty() && values.bytes == 0);
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
        assert_eq!(offer(&mut values, "one more", "", 0), Err(GivenUp::Bound));
        assert_eq!(offer(&mut values, "7", "newer", 0), Ok(Taken::InItsPlace));
        assert_eq!(values.clear().0, LAST_VALUE_KEYS_MAX as u64);
        let large = Bytes::from(vec![0; LAST_VALUE_BYTES_MAX]);
        assert!(values.offer("a".into(), large.clone(), &KEPT(), Micros(0)).is_ok());
        assert_eq!(values.offer("b".into(), large.clone(), &KEPT(), Micros(0)), Err(GivenUp::Bound));
        assert!(values.next(Micros(0)).0.is_some());
        assert_eq!(offer(&mut values, "c", "x", 0), Ok(Taken::Behind));
        assert_eq!(
            values.offer("a".into(), large, &KEPT(), Micros(0)),
            Err(GivenUp::Bound),
            "behind its own"
        );
        assert_eq!(values.bytes, 1);
    }
}
