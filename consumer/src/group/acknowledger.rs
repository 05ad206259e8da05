//! The thread that tells Redis what is settled, what is still worked on, and at the end what is handed back.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use redis_protocol::resp2::types::OwnedFrame;
use shards::redis::{EntryId, Reconnect};

use super::holdings::{self, Say};
use super::{Group, Phase, Shared};
use crate::pool::random;
use crate::redis::{Connection, RedisError};

/// The thread's own state.
pub(super) struct Acknowledger<'s> {
    shared: &'s Shared,
    connection: Option<Connection>,
    reconnect: Reconnect,
    /// Not to be tried before.
    again_at: Option<Instant>,
    said_down: bool,
}

/// What it does next.
enum Errand {
    Say(Say),
    /// The reader waits for new entries, and is to end.
    Unblock(i64),
    HandBack(Vec<EntryId>),
    End,
}

impl<'s> Acknowledger<'s> {
    pub fn new(shared: &'s Shared) -> Self {
        let (connection, reconnect) = (None, Reconnect::new());
        Self { shared, connection, reconnect, again_at: None, said_down: false }
    }

    pub fn run(mut self) {
        loop {
            let errand = self.next_errand();
            let done = match &errand {
                Errand::End => return,
                Errand::Say(Say::Acknowledge(ids)) => self.acknowledge(ids),
                Errand::Say(Say::Keep(ids)) => self.claim(ids, None),
                Errand::HandBack(ids) => self.claim(ids, Some(HANDED_BACK)),
                Errand::Unblock(client) => {
                    self.ask(&[b"CLIENT", b"UNBLOCK", client.to_string().as_bytes()]).map(drop)
                }
            };
            match (done, errand) {
                (Ok(()), Errand::Say(Say::Acknowledge(ids))) => {
                    self.shared.desk.lock().holdings.acknowledged(&ids);
                    self.note_done();
                }
                (Ok(()), _) => self.note_done(),
                (Err(error), _) => self.note_failed(&error),
            }
        }
    }

    /// Waits for something to do.
    fn next_errand(&self) -> Errand {
        let desk = &self.shared.desk;
        let mut state = desk.lock();
        loop {
            let now = Instant::now();
            let is_resting = self.again_at.is_some_and(|again_at| now < again_at);
            let mut until = state.holdings.keep_at();
            match state.phase {
                Phase::Ending(deadline) if now >= deadline => return Errand::End,
                Phase::Ending(_) if state.holdings.is_settled() && !is_resting => {
                    let mut left = state.holdings.hand_back();
                    let now_left = left.len().min(holdings::IDS_MAX);
                    // What doesn't fit one command comes with the next.
                    left.drain(now_left..).for_each(|id| {
                        state.holdings.take(id);
                    });
                    return if left.is_empty() { Errand::End } else { Errand::HandBack(left) };
                }
                Phase::Ending(deadline) => until = until.min(deadline),
                Phase::Leaving | Phase::Reading => {}
            }
            if !is_resting {
                if let Some(say) = state.holdings.next_say(now) {
                    return Errand::Say(say);
                }
                if let (Phase::Leaving, Some(client)) = (state.phase, state.reader_client) {
                    // Once may be too early: the reader may be about to ask.
                    let waited = desk.due.wait_timeout(state, UNBLOCK_EVERY);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    if state.reader_client == Some(client) {
                        return Errand::Unblock(client);
                    }
                    continue;
                }
            }
            let until = self.again_at.filter(|_| is_resting).map_or(until, |again_at| until.max(again_at));
            let until = match state.phase {
                Phase::Ending(deadline) => until.min(deadline),
                _ => until,
            };
            let wait = until.saturating_duration_since(now).max(Duration::from_millis(1));
            state = desk.due.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn acknowledge(&mut self, ids: &[EntryId]) -> Result<(), RedisError> {
        let Group { stream, name, .. } = &self.shared.group;
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let mut words = vec![b"XACK".as_slice(), stream.as_bytes(), name.as_bytes()];
        words.extend(ids.iter().map(String::as_bytes));
        self.ask(&words).map(drop)
    }

    /// Has Redis count the entries' idle time anew, or from long ago. They are this member's, and not delivered once more.
    fn claim(&mut self, ids: &[EntryId], idle: Option<&[u8]>) -> Result<(), RedisError> {
        let Group { stream, name, consumer, .. } = &self.shared.group;
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let mut words =
            vec![b"XCLAIM".as_slice(), stream.as_bytes(), name.as_bytes(), consumer.as_bytes(), b"0"];
        words.extend(ids.iter().map(String::as_bytes));
        words.extend(idle.into_iter().flat_map(|idle| [b"IDLE".as_slice(), idle]));
        words.push(b"JUSTID");
        match self.ask(&words) {
            // The reader has found out too, and makes the group anew.
            Err(RedisError::Refused { text, .. }) if text.starts_with("NOGROUP") => Ok(()),
            claimed => claimed.map(drop),
        }
    }

    fn ask(&mut self, words: &[&[u8]]) -> Result<OwnedFrame, RedisError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.shared.target)?),
        };
        connection.ask(words)
    }

    fn note_done(&mut self) {
        (self.said_down, self.again_at) = (false, None);
        self.reconnect = Reconnect::new();
    }

    fn note_failed(&mut self, error: &RedisError) {
        self.connection = None;
        self.again_at = Some(Instant::now() + self.reconnect.next_wait(random()));
        if !std::mem::replace(&mut self.said_down, true) {
            tracing::warn!(component = "member", %error, "redis takes no acknowledgements: they are tried again");
        }
    }
}

/// How often the reader is woken that is to end.
const UNBLOCK_EVERY: Duration = Duration::from_millis(20);
/// A day in milliseconds: longer than anybody waits before taking over.
const HANDED_BACK: &[u8] = b"86400000";
