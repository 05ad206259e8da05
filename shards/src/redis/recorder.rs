//! The connection that keeps a stream's record: appends to it, says where it stands, and reads it back.
//!
//! It stands beside the reader, which can say nothing while it waits, and beside the commander, whose probe must not wait
//! behind a history of megabytes. What is under way is answered in order, each thing once: by Redis, or at the connection's
//! end. The scripts are loaded once per connection and called by their digests; a server that has forgotten one (SCRIPT
//! FLUSH) is sent it again, and an append that met with that has not been made.

use std::collections::VecDeque;
use std::time::Instant;

use super::append::{self, Append};
use super::handshake::Handshake;
use super::{
    ANCHOR_SCRIPT, Anchor, AnchorError, EntryId, History, HistoryError, HistoryStep, Outbox, Past, Position,
    PublishError, Refused, SessionError, anchor_words,
};
use crate::config::RedisTarget;
use crate::limits::{PAYLOAD_BYTES_MAX, PUBLISH_INFLIGHT_BYTES_MAX, PUBLISH_INFLIGHT_MAX, RECORDER_TIMEOUT};
use crate::resp::{Frame, Value, excerpt};

/// The recording session. One per link to Redis, for its whole life.
#[derive(Debug)]
pub struct Recorder {
    handshake: Handshake,
    out: Outbox,
    user: String,
    /// Digests of the scripts; `None` before Redis has told them.
    anchor_sha: Option<String>,
    append_sha: Option<String>,
    /// The append's script has been sent to a server that had forgotten it.
    is_reloading: bool,
    inflight: VecDeque<Asked>,
    appends: usize,
    append_bytes: usize,
    /// Since when the oldest command waits for its answer.
    waiting_since: Option<Instant>,
}

/// What an answer meant.
#[derive(Debug, PartialEq, Eq)]
pub enum RecorderEvent {
    /// Answer to [`Recorder::anchor`].
    Anchored {
        /// The stream's key.
        stream: Box<[u8]>,
        /// Where it stands.
        result: Result<Anchor, AnchorError>,
    },
    /// Answer to [`Recorder::recall`].
    Recalled {
        /// As it was given.
        token: u64,
        /// As much as there is.
        result: Result<Past, HistoryError>,
    },
    /// Answer to [`Recorder::append`].
    Appended {
        /// As it was given.
        token: u64,
        /// The entry's id, or why there is none.
        result: Result<EntryId, PublishError>,
    },
}

#[derive(Debug)]
enum Asked {
    Script(Script),
    /// Its answer says nothing.
    Unblock,
    Anchor {
        stream: Box<[u8]>,
        fresh: u64,
        known: Option<Position>,
    },
    Page(Box<Recall>),
    Proof(Box<Recall>, u64),
    Append {
        token: u64,
        bytes: usize,
        /// Position of its first byte in all that was queued on this connection.
        at: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    Anchor,
    Append,
}

/// A history that is being read.
#[derive(Debug)]
struct Recall {
    token: u64,
    stream: Box<[u8]>,
    history: History,
}

impl Recorder {
    /// A session that isn't connected yet.
    pub fn new(target: &RedisTarget) -> Self {
        Self {
            handshake: Handshake::new(target, target.database),
            out: Outbox::default(),
            user: target.username.clone().unwrap_or_else(|| "default".into()),
            anchor_sha: None,
            append_sha: None,
            is_reloading: false,
            inflight: VecDeque::new(),
            appends: 0,
            append_bytes: 0,
            waiting_since: None,
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

    /// Forgets the connection. Returns what has no answer: histories are not given, appends have the fate they may have.
    /// Anchors are asked for again by whoever wants them.
    pub fn end(&mut self) -> Vec<RecorderEvent> {
        let taken = self.out.taken_bytes();
        let unanswered = std::mem::take(&mut self.inflight).into_iter().filter_map(|asked| match asked {
            Asked::Append { token, at, .. } => {
                let fate = if at < taken { PublishError::Unknown } else { PublishError::Unsent };
                Some(RecorderEvent::Appended { token, result: Err(fate) })
            }
            Asked::Page(recall) | Asked::Proof(recall, _) => {
                Some(RecorderEvent::Recalled { token: recall.token, result: Err(HistoryError::Away) })
            }
            Asked::Script(_) | Asked::Unblock | Asked::Anchor { .. } => None,
        });
        let unanswered = unanswered.collect();
        self.handshake.reset();
        self.out.clear();
        (self.anchor_sha, self.append_sha, self.waiting_since) = (None, None, None);
        (self.appends, self.append_bytes, self.is_reloading) = (0, 0, false);
        unanswered
    }

    /// Whether commands can be sent.
    pub fn is_ready(&self) -> bool {
        self.anchor_sha.is_some() && self.append_sha.is_some()
    }

    /// Appends whose answer is due.
    pub fn appends_inflight(&self) -> usize {
        self.appends
    }

    /// What is to be written now; empty when nothing is.
    pub fn take_output(&mut self) -> bytes::BytesMut {
        self.out.take()
    }

    /// # Errors
    /// [`SessionError::ReadLate`] when Redis has answered nothing for [`RECORDER_TIMEOUT`] although it was asked.
    pub fn poll(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.inflight.is_empty() {
            self.waiting_since = None;
            return Ok(());
        }
        let late = now.saturating_duration_since(*self.waiting_since.get_or_insert(now));
        if late >= RECORDER_TIMEOUT { Err(SessionError::ReadLate { late }) } else { Ok(()) }
    }

    /// Whether an answer is due whose time [`poll`](Self::poll) has not begun to count.
    pub fn is_unwatched(&self) -> bool {
        self.waiting_since.is_none() && !self.inflight.is_empty()
    }

    /// When [`poll`](Self::poll) may have something to find late.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + RECORDER_TIMEOUT)
    }

    /// Asks where a stream stands; [`Anchored`](RecorderEvent::Anchored) answers. `fresh` is random, `known` what the caller
    /// has read up to.
    ///
    /// # Errors
    /// [`Refused::Down`]; nothing was queued.
    pub fn anchor(&mut self, stream: &[u8], fresh: u64, known: Option<Position>) -> Result<(), Refused> {
        self.ready()?;
        self.push_anchor(stream, fresh, known, true);
        self.inflight.push_back(Asked::Anchor { stream: stream.into(), fresh, known });
        Ok(())
    }

    /// Reads a history; [`Recalled`](RecorderEvent::Recalled) answers, or [`end`](Self::end). How many are under way is for the
    /// caller to bound.
    ///
    /// # Errors
    /// [`Refused::Down`]; nothing was queued.
    pub fn recall(&mut self, token: u64, stream: &[u8], history: History, fresh: u64) -> Result<(), Refused> {
        self.ready()?;
        self.go_on(Box::new(Recall { token, stream: stream.into(), history }), fresh);
        Ok(())
    }

    /// Appends an entry; [`Appended`](RecorderEvent::Appended) answers, or [`end`](Self::end). Copies the payload once.
    ///
    /// # Errors
    /// [`Refused`]; nothing was queued.
    pub fn append(&mut self, append: &Append<'_>, token: u64) -> Result<(), Refused> {
        self.ready()?;
        if append.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Refused::TooBig);
        }
        let bytes = append.stream.len() + append.payload.len();
        if self.appends == PUBLISH_INFLIGHT_MAX || self.append_bytes + bytes > PUBLISH_INFLIGHT_BYTES_MAX {
            return Err(Refused::Backlog);
        }
        self.appends += 1;
        self.append_bytes += bytes;
        self.inflight.push_back(Asked::Append { token, bytes, at: self.out.queued_bytes });
        let words = append.words(self.append_sha.as_deref());
        self.out.push_long(words.iter().map(Vec::as_slice));
        Ok(())
    }

    /// Ends the block of the connection that has this number.
    pub fn unblock(&mut self, client: u64) {
        if self.handshake.is_done() {
            self.out.push(&[b"CLIENT", b"UNBLOCK", client.to_string().as_bytes()]);
            self.inflight.push_back(Asked::Unblock);
        }
    }

    fn ready(&self) -> Result<(), Refused> {
        if self.is_ready() { Ok(()) } else { Err(Refused::Down) }
    }

    fn push_anchor(&mut self, stream: &[u8], fresh: u64, known: Option<Position>, by_digest: bool) {
        let sha = self.anchor_sha.as_deref().filter(|_| by_digest);
        let words = anchor_words(sha, stream, fresh, known);
        self.out.push_long(words.iter().map(Vec::as_slice));
    }

    /// Asks for the next page of a history, or for the proof that it is whole.
    fn go_on(&mut self, recall: Box<Recall>, fresh: u64) {
        match recall.history.step() {
            HistoryStep::Page { end, count } => {
                let count = count.to_string();
                let words: [&[u8]; 6] =
                    [b"XREVRANGE", &recall.stream, end.as_bytes(), b"-", b"COUNT", count.as_bytes()];
                self.out.push(&words);
                self.inflight.push_back(Asked::Page(recall));
            }
            HistoryStep::Anchor => {
                self.push_anchor(&recall.stream, fresh, None, true);
                self.inflight.push_back(Asked::Proof(recall, fresh));
            }
        }
    }

    /// Takes one complete frame. `fresh` is random, for an epoch that may be due.
    ///
    /// # Errors
    /// The connection is of no use any more, see [`SessionError`]. What had no answer is told by [`end`](Self::end).
    pub fn handle_frame(&mut self, bytes: &[u8], fresh: u64) -> Result<Option<RecorderEvent>, SessionError> {
        let frame = Frame::decode(self.handshake.protocol(), bytes)?;
        let reply = frame.value();
        if matches!(reply, Value::Push(_)) {
            return Ok(None);
        }
        self.waiting_since = None;
        if !self.handshake.is_done() {
            self.handshake.handle(&frame, &mut self.out)?;
            if self.handshake.is_done() {
                self.load(Script::Anchor);
                self.load(Script::Append);
            }
            return Ok(None);
        }
        let Some(asked) = self.inflight.pop_front() else {
            return Err(SessionError::Unasked(reply.describe()));
        };
        match asked {
            Asked::Script(script) => self.loaded(script, reply).map(|()| None),
            Asked::Unblock => Ok(None),
            Asked::Anchor { stream, fresh, known } if is_forgotten(reply) => {
                self.push_anchor(&stream, fresh, known, false);
                self.inflight.push_back(Asked::Anchor { stream, fresh, known });
                Ok(None)
            }
            Asked::Anchor { stream, .. } => {
                let result = Anchor::read(frame.node(), &stream, &self.user)?;
                Ok(Some(RecorderEvent::Anchored { stream, result }))
            }
            Asked::Page(recall) => self.take_page(recall, &frame, fresh),
            Asked::Proof(recall, fresh) if is_forgotten(reply) => {
                self.push_anchor(&recall.stream, fresh, None, false);
                self.inflight.push_back(Asked::Proof(recall, fresh));
                Ok(None)
            }
            Asked::Proof(recall, _) => {
                let Recall { token, stream, history } = *recall;
                let result = match Anchor::read(frame.node(), &stream, &self.user)? {
                    Ok(anchor) => history.finish(&anchor),
                    Err(_) => Err(HistoryError::Refused),
                };
                Ok(Some(RecorderEvent::Recalled { token, result }))
            }
            Asked::Append { token, bytes, .. } => match self.judge_append(reply, &frame) {
                Ok(result) => {
                    self.appends -= 1;
                    self.append_bytes -= bytes;
                    // Once for all that were on their way: they may be tens of thousands.
                    if is_forgotten(reply) && !std::mem::replace(&mut self.is_reloading, true) {
                        self.load(Script::Append);
                    }
                    Ok(Some(RecorderEvent::Appended { token, result }))
                }
                Err(error) => {
                    // Its fate is unknown, like that of all others: end() must find it.
                    self.inflight.push_front(Asked::Append { token, bytes, at: 0 });
                    Err(error)
                }
            },
        }
    }

    /// A frame that was too long and has been skipped. A page of a history may be: a shorter one is asked for.
    ///
    /// # Errors
    /// No other reply that we ask for is long.
    pub fn handle_too_big(&mut self, bytes: u64, fresh: u64) -> Result<Option<RecorderEvent>, SessionError> {
        match self.inflight.pop_front_if(|asked| matches!(asked, Asked::Page(_))) {
            Some(Asked::Page(mut recall)) => {
                recall.history.shorten_page();
                self.go_on(recall, fresh);
                Ok(None)
            }
            _ => Err(SessionError::Unasked(format!("a reply of {bytes} bytes"))),
        }
    }

    fn load(&mut self, script: Script) {
        let text = match script {
            Script::Anchor => ANCHOR_SCRIPT,
            Script::Append => append::SCRIPT,
        };
        self.out.push(&[b"SCRIPT", b"LOAD", text.as_bytes()]);
        self.inflight.push_back(Asked::Script(script));
    }

    fn loaded(&mut self, script: Script, reply: Value<'_>) -> Result<(), SessionError> {
        let digest = match reply {
            Value::Text(digest) => String::from_utf8_lossy(digest).into_owned(),
            Value::Error(text) => {
                return Err(SessionError::from_reply("SCRIPT LOAD", text, &self.user, "+script|load"));
            }
            other => return Err(wrong_reply("SCRIPT LOAD", other, "a digest")),
        };
        match script {
            Script::Anchor => self.anchor_sha = Some(digest),
            Script::Append => (self.append_sha, self.is_reloading) = (Some(digest), false),
        }
        Ok(())
    }

    fn take_page(
        &mut self,
        mut recall: Box<Recall>,
        frame: &Frame<'_>,
        fresh: u64,
    ) -> Result<Option<RecorderEvent>, SessionError> {
        if let Value::Error(text) = frame.value() {
            let error = SessionError::from_reply("XREVRANGE", text, &self.user, "+xrevrange");
            if !matches!(
                error,
                SessionError::NotPermitted { .. }
                    | SessionError::Rejected { .. }
                    | SessionError::Moved { .. }
            ) {
                return Err(error);
            }
            let result = Err(HistoryError::Refused);
            return Ok(Some(RecorderEvent::Recalled { token: recall.token, result }));
        }
        recall.history.take_page(frame.node())?;
        self.go_on(recall, fresh);
        Ok(None)
    }

    fn judge_append(
        &self,
        reply: Value<'_>,
        frame: &Frame<'_>,
    ) -> Result<Result<EntryId, PublishError>, SessionError> {
        match reply {
            // The payload is not kept here: whoever has it may come again, when the script has been sent anew.
            reply if is_forgotten(reply) => Ok(Err(PublishError::Unsent)),
            Value::Error(text) => {
                let rule = "~STREAM +evalsha +xadd +xtrim +time";
                let error = SessionError::from_reply("the append", text, &self.user, rule);
                Ok(Err(PublishError::Rejected(error)))
            }
            Value::Array(2) => {
                let id = frame.item(0).and_then(|id| match id {
                    Value::Text(id) => EntryId::parse(id),
                    _ => None,
                });
                id.map(Ok).ok_or_else(|| wrong_reply("the append", reply, "an id and a number"))
            }
            other => Err(wrong_reply("the append", other, "an id and a number")),
        }
    }
}

/// A server that has been told to forget its scripts.
fn is_forgotten(reply: Value<'_>) -> bool {
    matches!(reply, Value::Error(text) if text.starts_with(b"NOSCRIPT"))
}

fn wrong_reply(what: &str, found: Value<'_>, expected: &'static str) -> SessionError {
    SessionError::WrongReply { what: what.into(), found: excerpt(found.describe().as_bytes()), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::tests::{commands, target};

    const SHA: [&str; 2] = ["aaaa", "bbbb"];

    fn ready() -> Recorder {
        let mut recorder = Recorder::new(&target(None, None, 0));
        recorder.begin();
        assert_eq!(commands(&recorder.take_output()), ["HELLO 3 SETNAME corecast"]);
        assert_eq!(recorder.handle_frame(b"%1\r\n+proto\r\n:3\r\n", 0), Ok(None));
        let loads = commands(&recorder.take_output());
        assert!(loads.len() == 2 && loads.iter().all(|load| load.starts_with("SCRIPT LOAD --")), "{loads:?}");
        assert!(!recorder.is_ready());
        for sha in SHA {
            assert_eq!(recorder.handle_frame(format!("+{sha}\r\n").as_bytes(), 0), Ok(None));
        }
        assert!(recorder.is_ready());
        recorder
    }

    fn head(number: u64) -> Position {
        Position { epoch: 0xff, number, id: EntryId { millis: number, sequence: 0 } }
    }

    fn given(payloads: Vec<Box<[u8]>>, lacks: Option<HistoryError>) -> RecorderEvent {
        RecorderEvent::Recalled { token: 7, result: Ok(Past { head: head(3), payloads, lacks }) }
    }

    fn standing(added: u64) -> String {
        let ids = format!("$3\r\n1-0\r\n$3\r\n{added}-0\r\n$3\r\n0-0\r\n");
        format!("*6\r\n$16\r\n00000000000000ff\r\n:{added}\r\n:{added}\r\n{ids}")
    }

    #[test]
    fn a_stream_is_anchored_though_the_server_has_forgotten_the_script() {
        let mut recorder = ready();
        recorder.anchor(b"s", 1, Some(head(3))).expect("it is ready");
        let asked = commands(&recorder.take_output()).remove(0);
        let due = "EVALSHA aaaa 2 s corecast:epoch:{s} 0000000000000001 2592000 300 3 3-0 00000000000000ff";
        assert_eq!(asked, due);
        assert_eq!(recorder.handle_frame(b"-NOSCRIPT No matching script.\r\n", 0), Ok(None));
        let asked = commands(&recorder.take_output()).remove(0);
        assert!(asked.starts_with("EVAL --") && asked.ends_with("3 3-0 00000000000000ff"), "{asked}");
        let event = recorder.handle_frame(standing(5).as_bytes(), 0);
        let Ok(Some(RecorderEvent::Anchored { stream, result: Ok(anchor) })) = event else {
            panic!("{event:?}")
        };
        assert_eq!((&*stream, anchor.head()), (b"s".as_slice(), head(5)));
    }

    #[test]
    fn a_history_is_read_and_proved_before_it_is_given() {
        let mut recorder = ready();
        let history = History::new(1, head(3), 10, 1000).expect("it can be given");
        recorder.recall(7, b"s", history, 1).expect("it is ready");
        assert_eq!(commands(&recorder.take_output()), ["XREVRANGE s 3-0 - COUNT 2"]);
        let entry = |id: u64| format!("*2\r\n$3\r\n{id}-0\r\n*2\r\n+data\r\n$1\r\n{id}\r\n");
        let page = format!("*2\r\n{}{}", entry(3), entry(2));
        assert_eq!(recorder.handle_frame(page.as_bytes(), 9), Ok(None));
        let asked = commands(&recorder.take_output()).remove(0);
        assert!(asked.starts_with("EVALSHA aaaa 2 s ") && asked.contains("0000000000000009"), "{asked}");
        let payloads = vec![b"2".as_slice().into(), b"3".as_slice().into()];
        let recalled = given(payloads, None);
        assert_eq!(recorder.handle_frame(standing(3).as_bytes(), 0), Ok(Some(recalled)));
    }

    #[test]
    fn what_cannot_be_read_is_not_given_and_ends_nothing() {
        let mut recorder = ready();
        let ask = |recorder: &mut Recorder| {
            let history = History::new(1, head(3), 10, 1000).expect("it can be given");
            recorder.recall(7, b"s", history, 1).expect("it is ready");
        };
        let not = |error| Ok(Some(RecorderEvent::Recalled { token: 7, result: Err(error) }));
        ask(&mut recorder);
        assert_eq!(recorder.handle_frame(b"-NOPERM no\r\n", 0), not(HistoryError::Refused));
        ask(&mut recorder);
        recorder.take_output();
        assert_eq!(recorder.handle_too_big(99, 0), Ok(None));
        assert_eq!(commands(&recorder.take_output()), ["XREVRANGE s 3-0 - COUNT 1"]);
        assert_eq!(recorder.handle_too_big(99, 0), Ok(None));
        let nothing = |lacks| Ok(Some(given(Vec::new(), Some(lacks))));
        assert_eq!(recorder.handle_frame(standing(3).as_bytes(), 0), nothing(HistoryError::TooMuch));
        ask(&mut recorder);
        assert_eq!(recorder.handle_frame(b"*0\r\n", 0), Ok(None));
        assert_eq!(recorder.handle_frame(standing(3).as_bytes(), 0), nothing(HistoryError::Trimmed));
        ask(&mut recorder);
        assert_eq!(recorder.end(), [RecorderEvent::Recalled { token: 7, result: Err(HistoryError::Away) }]);
        assert!(recorder.handle_too_big(99, 0).is_err());
    }

    #[test]
    fn an_append_has_one_answer_and_the_end_tells_what_redis_may_have_seen() {
        let mut recorder = ready();
        let append = Append { stream: b"s", payload: b"hi", channel: None, trim: Default::default() };
        recorder.append(&append, 1).expect("there is room");
        assert_eq!(commands(&recorder.take_output()), ["EVALSHA bbbb 1 s hi    "]);
        let appended = |token, result| Ok(Some(RecorderEvent::Appended { token, result }));
        let id = EntryId { millis: 5, sequence: 1 };
        assert_eq!(recorder.handle_frame(b"*2\r\n$3\r\n5-1\r\n:-1\r\n", 0), appended(1, Ok(id)));
        for token in [2, 2] {
            recorder.append(&append, token).expect("there is room");
        }
        recorder.take_output();
        for token in [2, 2] {
            let forgotten = recorder.handle_frame(b"-NOSCRIPT No matching script.\r\n", 0);
            assert_eq!(forgotten, appended(token, Err(PublishError::Unsent)));
        }
        assert_eq!(commands(&recorder.take_output()).len(), 1, "it is sent anew, once for both");
        assert_eq!(recorder.handle_frame(b"+bbbb\r\n", 0), Ok(None));
        recorder.append(&append, 3).expect("there is room");
        let refused = recorder.handle_frame(b"-WRONGTYPE no stream\r\n", 0);
        let Ok(Some(RecorderEvent::Appended { result: Err(PublishError::Rejected(_)), .. })) = refused else {
            panic!("{refused:?}")
        };
        recorder.append(&append, 4).expect("there is room");
        recorder.take_output();
        recorder.append(&append, 5).expect("there is room");
        let told = |token, fate| RecorderEvent::Appended { token, result: Err(fate) };
        assert_eq!(recorder.end(), [told(4, PublishError::Unknown), told(5, PublishError::Unsent)]);
        assert_eq!(recorder.append(&append, 6), Err(Refused::Down));
    }

    #[test]
    fn nonsense_ends_the_session_and_leaves_the_append_of_unknown_fate() {
        let append = Append { stream: b"s", payload: b"hi", channel: None, trim: Default::default() };
        for nonsense in ["+OK\r\n", "*2\r\n:1\r\n:1\r\n", "*0\r\n", "_\r\n"] {
            let mut recorder = ready();
            recorder.append(&append, 1).expect("there is room");
            recorder.take_output();
            assert!(recorder.handle_frame(nonsense.as_bytes(), 0).is_err(), "{nonsense}");
            let unknown = RecorderEvent::Appended { token: 1, result: Err(PublishError::Unknown) };
            assert_eq!(recorder.end(), [unknown]);
        }
        assert!(ready().handle_frame(b":1\r\n", 0).is_err(), "nothing was asked");
    }

    #[test]
    fn a_server_that_answers_nothing_is_given_up() {
        let now = Instant::now();
        let mut recorder = ready();
        assert_eq!(recorder.poll(now), Ok(()));
        assert!(!recorder.is_unwatched());
        recorder.unblock(77);
        assert!(recorder.is_unwatched(), "somebody must look at the clock");
        assert_eq!(commands(&recorder.take_output()), ["CLIENT UNBLOCK 77"]);
        assert_eq!(recorder.poll(now + RECORDER_TIMEOUT), Ok(()), "it counts from the first look");
        assert!(recorder.poll(now + RECORDER_TIMEOUT * 2).is_err());
        assert_eq!(recorder.handle_frame(b":1\r\n", 0), Ok(None));
        assert_eq!(recorder.poll(now + RECORDER_TIMEOUT * 3), Ok(()));
    }
}
