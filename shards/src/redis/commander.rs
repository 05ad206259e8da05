//! The connection that publishes: pipelined commands, their answers in order, and the probe.
//!
//! Every PUBLISH has a token, and every token gets exactly one answer: from Redis, or when the connection ends, and then
//! whether Redis can have seen it. What is under way is bounded in number and bytes; at the bound publishing is refused.

use std::collections::VecDeque;
use std::time::Instant;

use super::handshake::Handshake;
use super::subscriber::probe_payload;
use super::{Outbox, SERVICE_CHANNEL_PREFIX, SessionError, channel_rule};
use crate::config::RedisTarget;
use crate::limits::{
    PAYLOAD_BYTES_MAX, PROBE_INTERVAL, PROBE_TIMEOUT, PUBLISH_INFLIGHT_BYTES_MAX, PUBLISH_INFLIGHT_MAX,
};
use crate::resp::{Frame, Value, excerpt};

/// The publishing session. One per link to Redis, for its whole life.
#[derive(Debug)]
pub struct Commander {
    handshake: Handshake,
    out: Outbox,
    user: String,
    probe_channel: String,
    run: u64,
    /// The server is a node of a cluster.
    is_sharded: bool,
    /// Commands whose answer is due, oldest first.
    inflight: VecDeque<Command>,
    publishes: usize,
    publish_bytes: usize,
    probe: Probe,
}

/// What a reply meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommanderEvent {
    /// Redis answered the publication of this token.
    Published {
        /// As it was given to [`Commander::publish`].
        token: u64,
        /// How many connections to this Redis server received it (no proof that nobody else did), or why it was refused.
        result: Result<u64, PublishError>,
    },
    /// Redis answered a [`Commander::keep`].
    Kept {
        /// As it was given.
        key: Box<str>,
        /// Whether Redis holds the value.
        result: Result<(), SessionError>,
    },
    /// Redis answered a [`Commander::fetch`].
    Fetched {
        /// As it was given.
        key: Box<str>,
        /// The value, or that there is none.
        result: Result<Option<bytes::Bytes>, SessionError>,
    },
    /// A node of a cluster did not take the probe: its slot has moved, or the cluster is down.
    ProbeRefused,
}

/// Why a publication has no answer from Redis, or a bad one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The connection ended before it was written: Redis has not seen it.
    #[error("the connection to redis ended before this was sent")]
    Unsent,
    /// The connection ended after it was written: Redis may have distributed it or not.
    #[error("the connection to redis ended before this was answered")]
    Unknown,
    /// Redis refused it.
    #[error("{0}")]
    Rejected(SessionError),
}

/// Why a publication was not taken at all. It has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no usable connection.
    #[error("redis is away")]
    Down,
    /// Too many, or too many bytes, are under way.
    #[error("more publications are on their way to redis than it answers")]
    Backlog,
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`].
    #[error("a publication of more than {PAYLOAD_BYTES_MAX} bytes")]
    TooBig,
}

#[derive(Debug)]
enum Command {
    Publish {
        token: u64,
        bytes: usize,
        /// Position of its first byte in all that was queued on this connection.
        at: u64,
    },
    Probe,
    Keep {
        key: Box<str>,
    },
    Fetch {
        key: Box<str>,
    },
}

/// When probes go out, and which are out.
#[derive(Debug, Default)]
struct Probe {
    /// When the next one is due; `None` before probing began.
    next_at: Option<Instant>,
    /// Number of the last one, over all connections, so that none is mistaken for another's.
    sent: u64,
    /// Those that have not come back, oldest first; a handful, as [`PROBE_TIMEOUT`] ends the session.
    out: VecDeque<(u64, Instant)>,
    /// When [`Commander::poll`] was last called.
    polled_at: Option<Instant>,
}

impl Commander {
    /// A session that isn't connected yet. `node_id` and `run` as for the subscriber.
    pub fn new(target: &RedisTarget, node_id: &str, run: u64) -> Self {
        Self::bare(target, format!("{SERVICE_CHANNEL_PREFIX}{node_id}"), run)
    }

    /// A session with a node of a cluster that isn't connected yet. The slot of `probe_channel` is that node's.
    pub fn sharded(target: &RedisTarget, probe_channel: &str, run: u64) -> Self {
        Self { is_sharded: true, ..Self::bare(target, probe_channel.to_owned(), run) }
    }

    fn bare(target: &RedisTarget, probe_channel: String, run: u64) -> Self {
        Self {
            handshake: Handshake::new(target, target.database),
            out: Outbox::default(),
            user: target.username.clone().unwrap_or_else(|| "default".into()),
            probe_channel,
            run,
            is_sharded: false,
            inflight: VecDeque::new(),
            publishes: 0,
            publish_bytes: 0,
            probe: Probe::default(),
        }
    }

    /// Begins on a fresh connection.
    pub fn begin(&mut self) {
        assert!(
            self.inflight.is_empty(),
            "a connection begins while commands of the last one are unanswered"
        );
        self.handshake.begin(&mut self.out);
    }

    /// Forgets the connection. Returns the token of every publication that has no answer, in order, and its fate.
    pub fn end(&mut self) -> Vec<(u64, PublishError)> {
        let taken = self.out.taken_bytes();
        let fate = |at| if at < taken { PublishError::Unknown } else { PublishError::Unsent };
        let unanswered = std::mem::take(&mut self.inflight)
            .into_iter()
            .filter_map(|command| match command {
                Command::Publish { token, at, .. } => Some((token, fate(at))),
                Command::Probe | Command::Keep { .. } | Command::Fetch { .. } => None,
            })
            .collect();
        self.handshake.reset();
        self.out.clear();
        (self.publishes, self.publish_bytes) = (0, 0);
        self.probe = Probe { sent: self.probe.sent, ..Probe::default() };
        unanswered
    }

    /// Whether commands can be sent.
    pub fn is_ready(&self) -> bool {
        self.handshake.is_done()
    }

    /// Publications that are under way.
    pub fn publishes_inflight(&self) -> usize {
        self.publishes
    }

    /// What is to be written now; empty when nothing is.
    pub fn take_output(&mut self) -> bytes::BytesMut {
        self.out.take()
    }

    /// Queues a publication. [`Published`](CommanderEvent::Published), or [`end`](Self::end), answers `token` later.
    ///
    /// Copies the payload once, into the buffer that is written to the socket.
    ///
    /// # Errors
    /// [`Refused`]; nothing was queued.
    pub fn publish(&mut self, channel: &[u8], payload: &[u8], token: u64) -> Result<(), Refused> {
        if !self.is_ready() {
            return Err(Refused::Down);
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Refused::TooBig);
        }
        let bytes = channel.len() + payload.len();
        if self.publishes == PUBLISH_INFLIGHT_MAX || self.publish_bytes + bytes > PUBLISH_INFLIGHT_BYTES_MAX {
            return Err(Refused::Backlog);
        }
        self.publishes += 1;
        self.publish_bytes += bytes;
        self.inflight.push_back(Command::Publish { token, bytes, at: self.out.queued_bytes });
        self.out.push(&[self.verb().as_bytes(), channel, payload]);
        Ok(())
    }

    /// Queues the write of a value that lives for `ttl_millis`. [`Kept`](CommanderEvent::Kept) answers it, or nothing does
    /// where the connection ends first. How many are under way is for the caller to bound.
    ///
    /// # Errors
    /// [`Refused::Down`]; nothing was queued.
    pub fn keep(&mut self, key: &str, value: &[u8], ttl_millis: u64) -> Result<(), Refused> {
        if !self.is_ready() {
            return Err(Refused::Down);
        }
        self.inflight.push_back(Command::Keep { key: key.into() });
        // PX: milliseconds (Redis 2.6.12).
        self.out.push(&[b"SET", key.as_bytes(), value, b"PX", ttl_millis.to_string().as_bytes()]);
        Ok(())
    }

    /// Queues the question for a value. [`Fetched`](CommanderEvent::Fetched) answers it, or nothing does where the connection
    /// ends first.
    ///
    /// # Errors
    /// [`Refused::Down`]; nothing was queued.
    pub fn fetch(&mut self, key: &str) -> Result<(), Refused> {
        if !self.is_ready() {
            return Err(Refused::Down);
        }
        self.inflight.push_back(Command::Fetch { key: key.into() });
        self.out.push(&[b"GET", key.as_bytes()]);
        Ok(())
    }

    /// Takes another channel for the probe, whose slot has moved. What was out there is forgotten;
    /// [`start_probing`](Self::start_probing) begins again.
    pub fn set_probe(&mut self, channel: &str) {
        channel.clone_into(&mut self.probe_channel);
        self.probe.out.clear();
        self.probe.next_at = None;
    }

    /// Begins to probe, now that the subscriber is ready to receive probes.
    pub fn start_probing(&mut self, now: Instant) {
        if self.probe.next_at.is_none() {
            self.probe.next_at = Some(now);
        }
    }

    /// Publishes the probe when it is due. Returns its number: it is behind every publication accepted so far.
    ///
    /// # Errors
    /// [`SessionError::ProbeLate`] when one hasn't come back for [`PROBE_TIMEOUT`].
    pub fn poll(&mut self, now: Instant) -> Result<Option<u64>, SessionError> {
        let Some(next_at) = self.probe.next_at else { return Ok(None) };
        let polled_at = self.probe.polled_at.replace(now).unwrap_or(now);
        if now.saturating_duration_since(polled_at) > 2 * PROBE_INTERVAL {
            // It was us who stood still (a stopped process, a suspended host): what came meanwhile is read first.
            self.probe.out.iter_mut().for_each(|(_, sent_at)| *sent_at = now);
        }
        if let Some((_, sent_at)) = self.probe.out.front() {
            let late = now.saturating_duration_since(*sent_at);
            if late >= PROBE_TIMEOUT {
                return Err(SessionError::ProbeLate { late });
            }
        }
        if now < next_at {
            return Ok(None);
        }
        self.probe.next_at = Some(now + PROBE_INTERVAL);
        self.probe.sent += 1;
        self.probe.out.push_back((self.probe.sent, now));
        self.inflight.push_back(Command::Probe);
        let payload = probe_payload(self.run, self.probe.sent);
        self.out.push(&[self.verb().as_bytes(), self.probe_channel.as_bytes(), payload.as_bytes()]);
        Ok(Some(self.probe.sent))
    }

    /// When [`poll`](Self::poll) has something to do; `None` before probing began.
    pub fn next_deadline(&self) -> Option<Instant> {
        let late_at = self.probe.out.front().map(|(_, sent_at)| *sent_at + PROBE_TIMEOUT);
        [self.probe.next_at, late_at].into_iter().flatten().min()
    }

    /// Notes that probe `number` has come back. False if it isn't one that is out on this connection.
    pub fn note_probe_returned(&mut self, number: u64) -> bool {
        let is_out = self.probe.out.iter().any(|(out, _)| *out == number);
        if is_out {
            // Redis keeps the order, so older ones that are still out were lost with what broke.
            self.probe.out.retain(|(out, _)| *out > number);
        }
        is_out
    }

    /// Takes one complete frame. `Ok(None)` where nobody waits for its meaning, unknown pushes included.
    ///
    /// # Errors
    /// The connection is of no use any more, see [`SessionError`].
    pub fn handle_frame(&mut self, bytes: &[u8]) -> Result<Option<CommanderEvent>, SessionError> {
        let frame = Frame::decode(self.handshake.protocol(), bytes)?;
        let reply = frame.value();
        if matches!(reply, Value::Push(_)) {
            return Ok(None);
        }
        if !self.handshake.is_done() {
            self.handshake.handle(&frame, &mut self.out)?;
            return Ok(None);
        }
        match self.inflight.pop_front() {
            Some(Command::Publish { token, bytes, .. }) => {
                self.publishes -= 1;
                self.publish_bytes -= bytes;
                let result = self.judge(self.verb(), "the room's channel", reply);
                match result {
                    Ok(receivers) => Ok(Some(CommanderEvent::Published { token, result: Ok(receivers) })),
                    Err(error @ SessionError::WrongReply { .. }) => {
                        // Its fate is unknown, like that of all others: end() must find it.
                        self.put_back(token, bytes);
                        Err(error)
                    }
                    Err(error) => Ok(Some(CommanderEvent::Published {
                        token,
                        result: Err(PublishError::Rejected(error)),
                    })),
                }
            }
            Some(Command::Probe) => {
                let what = format!("{} {}", self.verb(), self.probe_channel);
                match self.judge(&what, &self.probe_channel, reply) {
                    Ok(_) => Ok(None),
                    Err(SessionError::Moved { .. } | SessionError::NotNow(_)) if self.is_sharded => {
                        // The node lives, and has not this slot now, or the cluster has none: whoever knows the others decides.
                        self.probe.out.clear();
                        Ok(Some(CommanderEvent::ProbeRefused))
                    }
                    // Without the probe a dead subscription would look healthy: its refusal ends the session.
                    Err(error) => Err(error),
                }
            }
            Some(Command::Keep { key }) => {
                let result = match reply {
                    Value::Text(_) => Ok(()),
                    Value::Error(text) => Err(self.refusal("SET", &key, text)),
                    other => return Err(wrong_reply("SET", other, "OK")),
                };
                Ok(Some(CommanderEvent::Kept { key, result }))
            }
            Some(Command::Fetch { key }) => {
                let result = match reply {
                    Value::Text(value) => Ok(Some(bytes::Bytes::copy_from_slice(value))),
                    Value::Null => Ok(None),
                    Value::Error(text) => Err(self.refusal("GET", &key, text)),
                    other => return Err(wrong_reply("GET", other, "a string or nothing")),
                };
                Ok(Some(CommanderEvent::Fetched { key, result }))
            }
            None => Err(SessionError::Unasked(reply.describe())),
        }
    }

    /// A frame that was too long and has been skipped. A value may be that long, and is then none.
    ///
    /// # Errors
    /// No other reply that we ask for is long.
    pub fn handle_too_big(&mut self, bytes: u64) -> Result<Option<CommanderEvent>, SessionError> {
        match self.inflight.pop_front_if(|command| matches!(command, Command::Fetch { .. })) {
            Some(Command::Fetch { key }) => Ok(Some(CommanderEvent::Fetched { key, result: Ok(None) })),
            _ => Err(SessionError::Unasked(format!("a reply of {bytes} bytes"))),
        }
    }

    fn verb(&self) -> &'static str {
        if self.is_sharded { "SPUBLISH" } else { "PUBLISH" }
    }

    fn refusal(&self, command: &str, key: &str, text: &[u8]) -> SessionError {
        let rule = format!("+{} '~{key}'", command.to_ascii_lowercase());
        SessionError::from_reply(command, text, &self.user, &rule)
    }

    fn put_back(&mut self, token: u64, bytes: usize) {
        self.publishes += 1;
        self.publish_bytes += bytes;
        self.inflight.push_front(Command::Publish { token, bytes, at: 0 });
    }

    fn judge(&self, what: &str, channel: &str, reply: Value<'_>) -> Result<u64, SessionError> {
        match reply {
            Value::Integer(receivers) if receivers >= 0 => Ok(receivers as u64),
            Value::Error(text) => {
                let rule = channel_rule(&self.verb().to_ascii_lowercase(), channel);
                Err(SessionError::from_reply(what, text, &self.user, &rule))
            }
            other => Err(SessionError::WrongReply {
                what: excerpt(what.as_bytes()),
                found: other.describe(),
                expected: "the number of receivers",
            }),
        }
    }
}

fn wrong_reply(what: &str, found: Value<'_>, expected: &'static str) -> SessionError {
    SessionError::WrongReply { what: what.to_owned(), found: found.describe(), expected }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::{commands, target};
    use super::*;

    fn ready() -> Commander {
        let mut session = Commander::new(&target(None, None, 0), "node", 7);
        session.begin();
        assert_eq!(commands(&session.take_output()), ["HELLO 3 SETNAME corecast"]);
        assert_eq!(session.handle_frame(b"%1\r\n+proto\r\n:3\r\n"), Ok(None));
        assert!(session.is_ready());
        session
    }

    fn published(token: u64, receivers: u64) -> Result<Option<CommanderEvent>, SessionError> {
        Ok(Some(CommanderEvent::Published { token, result: Ok(receivers) }))
    }

    #[test]
    fn the_database_is_selected_before_anything_is_published() {
        let mut session = Commander::new(&target(None, Some("secret"), 5), "node", 7);
        session.begin();
        assert_eq!(commands(&session.take_output()), ["HELLO 3 AUTH default secret SETNAME corecast"]);
        assert_eq!(session.handle_frame(b"%1\r\n+proto\r\n:3\r\n"), Ok(None));
        assert_eq!(commands(&session.take_output()), ["SELECT 5"]);
        assert_eq!(session.publish(b"a", b"x", 1), Err(Refused::Down));
        assert_eq!(session.handle_frame(b"+OK\r\n"), Ok(None));
        assert_eq!(session.publish(b"a", b"x", 1), Ok(()));
        let mut refused = Commander::new(&target(None, None, 99), "node", 7);
        refused.begin();
        assert_eq!(refused.handle_frame(b"%1\r\n+proto\r\n:3\r\n"), Ok(None));
        let error =
            refused.handle_frame(b"-ERR DB index is out of range\r\n").expect_err("there is no such one");
        assert!(error.to_string().contains("SELECT of the database (ERR DB index"), "{error}");
    }

    #[test]
    fn publications_leave_together_and_are_answered_in_order() {
        let mut session = ready();
        for token in [10, 11, 12] {
            session.publish(b"room:a", b"hi", token).expect("there is room");
        }
        assert_eq!(commands(&session.take_output()), ["PUBLISH room:a hi"; 3]);
        assert_eq!(session.publishes_inflight(), 3);
        assert_eq!(session.handle_frame(b":2\r\n"), published(10, 2));
        assert_eq!(session.handle_frame(b">2\r\n+invalidate\r\n_\r\n"), Ok(None), "a push answers nothing");
        let event = session.handle_frame(b"-NOPERM No permissions to access a channel\r\n");
        let Ok(Some(CommanderEvent::Published { token: 11, result: Err(PublishError::Rejected(error)) })) =
            event
        else {
            panic!("{event:?}")
        };
        assert!(error.to_string().contains("+publish"), "{error}");
        assert_eq!(session.handle_frame(b":0\r\n"), published(12, 0));
        assert_eq!(session.publishes_inflight(), 0);
        assert!(session.handle_frame(b":0\r\n").is_err(), "nothing was asked");
    }

    #[test]
    fn values_share_the_pipeline_with_publications_and_are_answered_in_its_order() {
        let mut session = ready();
        session.keep("k", b"v", 30_000).expect("there is room");
        session.publish(b"room:a", b"hi", 1).expect("there is room");
        session.fetch("k").expect("there is room");
        assert_eq!(commands(&session.take_output()), ["SET k v PX 30000", "PUBLISH room:a hi", "GET k"]);
        let kept = CommanderEvent::Kept { key: "k".into(), result: Ok(()) };
        assert_eq!(session.handle_frame(b"+OK\r\n"), Ok(Some(kept)));
        assert_eq!(session.handle_frame(b":0\r\n"), published(1, 0));
        let fetched = |value: Option<&'static [u8]>| {
            let result = Ok(value.map(bytes::Bytes::from_static));
            Ok(Some(CommanderEvent::Fetched { key: "k".into(), result }))
        };
        assert_eq!(session.handle_frame(b"$1\r\nv\r\n"), fetched(Some(b"v")));
        for (reply, value) in [(b"_\r\n".as_slice(), None), (b"$0\r\n\r\n", Some(b"".as_slice()))] {
            session.fetch("k").expect("there is room");
            assert_eq!(session.handle_frame(reply), fetched(value));
        }
        session.fetch("k").expect("there is room");
        assert_eq!(session.handle_too_big(20 << 20), fetched(None), "a value that long is none");
        assert!(session.handle_too_big(20 << 20).is_err(), "nothing else is long");
    }

    #[test]
    fn what_redis_says_against_a_value_names_the_rule_and_ends_nothing() {
        let mut session = ready();
        session.keep("k", b"v", 1).expect("there is room");
        session.fetch("k").expect("there is room");
        let event = session.handle_frame(b"-NOPERM User x has no permissions to run the 'set' command\r\n");
        let Ok(Some(CommanderEvent::Kept { result: Err(error), .. })) = event else { panic!("{event:?}") };
        assert!(error.to_string().contains("+set '~k'"), "{error}");
        let event = session.handle_frame(b"-WRONGTYPE Operation against a key\r\n");
        assert!(matches!(event, Ok(Some(CommanderEvent::Fetched { result: Err(_), .. }))), "{event:?}");
        session.publish(b"room:a", b"hi", 1).expect("there is room");
        assert_eq!(session.handle_frame(b":0\r\n"), published(1, 0));
        type Ask = fn(&mut Commander) -> Result<(), Refused>;
        let asks: [Ask; 2] = [|session| session.keep("k", b"v", 1), |session| session.fetch("k")];
        for (ask, nonsense) in asks.into_iter().zip([b":1\r\n".as_slice(), b"*1\r\n:1\r\n"]) {
            let mut session = ready();
            ask(&mut session).expect("there is room");
            let error = session.handle_frame(nonsense).expect_err("this is no answer to it");
            assert!(matches!(error, SessionError::WrongReply { .. }), "{error}");
            assert!(session.end().is_empty(), "only publications are told the end");
        }
    }

    #[test]
    fn the_end_tells_what_redis_may_have_seen_from_what_it_has_not() {
        let mut session = ready();
        session.publish(b"a", b"1", 1).expect("there is room");
        session.publish(b"a", b"2", 2).expect("there is room");
        assert!(!session.take_output().is_empty());
        assert_eq!(session.handle_frame(b":1\r\n"), published(1, 1));
        session.publish(b"a", b"3", 3).expect("there is room");
        assert_eq!(session.end(), [(2, PublishError::Unknown), (3, PublishError::Unsent)]);
        assert_eq!(session.end(), [], "each is answered once");
        assert_eq!(session.publish(b"a", b"4", 4), Err(Refused::Down));
        session.begin();
        assert_eq!(commands(&session.take_output()), ["HELLO 3 SETNAME corecast"], "nothing old is sent");
    }

    #[test]
    fn a_wrong_reply_ends_the_session_and_its_publication_is_of_unknown_fate() {
        for reply in ["+OK\r\n", "_\r\n", ":-1\r\n", "*0\r\n", "#t\r\n", "%0\r\n"] {
            let mut session = ready();
            session.publish(b"a", b"1", 1).expect("there is room");
            session.take_output();
            let error = session.handle_frame(reply.as_bytes()).expect_err("it is no number of receivers");
            assert!(error.to_string().contains("where the number of receivers was due"), "{error}");
            assert_eq!(session.end(), [(1, PublishError::Unknown)]);
        }
    }

    #[test]
    fn what_is_under_way_is_bounded_in_number_and_bytes() {
        let mut session = ready();
        let payload = vec![b'x'; PAYLOAD_BYTES_MAX];
        assert_eq!(session.publish(b"a", &[&payload[..], b"x"].concat(), 0), Err(Refused::TooBig));
        assert_eq!(session.publish(b"a", &payload, 1), Ok(()));
        assert_eq!(session.publish(b"a", &payload, 2), Err(Refused::Backlog));
        assert_eq!(session.handle_frame(b":1\r\n"), published(1, 1));
        assert_eq!(session.publish(b"a", &payload, 3), Ok(()), "an answer makes room");
        session.end();

        let mut session = ready();
        for token in 0..PUBLISH_INFLIGHT_MAX as u64 {
            assert_eq!(session.publish(b"a", b"", token), Ok(()));
        }
        assert_eq!(session.publish(b"a", b"", 0), Err(Refused::Backlog));
    }

    #[test]
    fn a_probe_goes_out_each_interval_and_its_lateness_ends_the_session() {
        let start = Instant::now();
        let mut session = ready();
        assert_eq!(session.next_deadline(), None, "it waits for the subscriber");
        session.start_probing(start);
        assert_eq!(session.next_deadline(), Some(start));
        assert_eq!(session.poll(start), Ok(Some(1)));
        assert_eq!(session.poll(start), Ok(None), "the next is due an interval later");
        assert_eq!(commands(&session.take_output()), ["PUBLISH corecast:probe:node 0000000000000007:1"]);
        assert_eq!(session.next_deadline(), Some(start + PROBE_INTERVAL));
        assert!(session.note_probe_returned(1));
        assert!(!session.note_probe_returned(1), "it came back before");
        for second in 1..=2 {
            session.poll(start + second * PROBE_INTERVAL).expect("nothing is late");
        }
        session.poll(start + 3 * PROBE_INTERVAL).expect("probe 2 is two intervals old");
        assert!(session.note_probe_returned(3), "a later one proves the link; the older is written off");
        session.poll(start + PROBE_INTERVAL * 4).expect("probe 4 is one interval old");
        session.poll(start + PROBE_INTERVAL * 5).expect("probe 4 is two intervals old");
        let error = session.poll(start + 3 * PROBE_INTERVAL + PROBE_TIMEOUT).expect_err("probe 4 is late");
        assert_eq!(error, SessionError::ProbeLate { late: PROBE_TIMEOUT });
    }

    #[test]
    fn standing_still_ourselves_is_not_held_against_redis() {
        let start = Instant::now();
        let mut session = ready();
        session.start_probing(start);
        session.poll(start).expect("nothing is late");
        let woken = start + Duration::from_secs(3600);
        session.poll(woken).expect("what came meanwhile is read first");
        assert!(session.note_probe_returned(1));
    }

    #[test]
    fn a_refused_probe_ends_the_session_and_names_the_rule() {
        let mut session = ready();
        session.start_probing(Instant::now());
        session.poll(Instant::now()).expect("nothing is late");
        let error =
            session.handle_frame(b"-NOPERM No permissions to access a channel\r\n").expect_err("it is vital");
        assert!(error.to_string().contains("ACL SETUSER default +publish '&corecast:probe:*'"), "{error}");
    }

    #[test]
    fn a_probe_of_an_earlier_connection_proves_nothing() {
        let now = Instant::now();
        let mut session = ready();
        session.start_probing(now);
        session.poll(now).expect("nothing is late");
        session.end();
        session.begin();
        assert_eq!(session.handle_frame(b"%1\r\n+proto\r\n:3\r\n"), Ok(None));
        session.start_probing(now);
        session.poll(now).expect("nothing is late");
        assert!(!session.note_probe_returned(1));
        assert!(session.note_probe_returned(2));
    }
}
