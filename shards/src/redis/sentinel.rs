//! What sentinels say of where the primary is, without sockets or clocks: a session for each of them, and what follows from
//! all of them together.
//!
//! A session subscribes `+switch-master` and asks for the address in one write, so that no switch falls between the
//! two (a sentinel runs what came together without anything between). The question is repeated each second: it proves that the
//! sentinel lives, and shows what an operator changed without a switch.
//!
//! Sentinels may disagree: one that was cut off says what was true before. What one *changed its mind* to is newer than
//! what it said before, so a change moves the link at once; what one says first moves it only with a majority behind it.
//! Whoever is reached is asked for its role, so a wrong address costs an attempt, never a subscription to a replica.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::Instant;

use super::handshake::Handshake;
use super::{Outbox, SessionError};
use crate::config::{RedisAddress, RedisTarget, Sentinels, Server};
use crate::limits::{PROBE_INTERVAL, PROBE_TIMEOUT};
use crate::resp::{Frame, Inbox, Protocol, Received, Value, excerpt};

/// The session with one sentinel; begun anew for every connection.
#[derive(Debug)]
pub struct SentinelSession {
    handshake: Handshake,
    out: Outbox,
    primary: String,
    /// Questions whose answer is due, oldest first, and when they were put.
    asked: VecDeque<(Question, Instant)>,
    next_at: Instant,
}

/// What a sentinel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SentinelSays {
    /// The primary is there.
    Primary(Server),
    /// It watches nothing of this name.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Handshake,
    Address,
    Subscription,
    /// Where RESP2 is spoken nothing else may be asked beside a subscription.
    Ping,
}

impl SentinelSession {
    /// Begins on a fresh connection to one of `sentinels`.
    pub fn begin(sentinels: &Sentinels, server: &Server, now: Instant) -> Self {
        let target = RedisTarget {
            address: RedisAddress::Tcp { host: server.host.clone(), port: server.port },
            username: sentinels.username.clone(),
            password: sentinels.password.clone(),
            database: 0,
            tls: None,
        };
        let mut session = Self {
            handshake: Handshake::new(&target, 0),
            out: Outbox::default(),
            primary: sentinels.primary.clone(),
            asked: VecDeque::from([(Question::Handshake, now)]),
            next_at: now + PROBE_INTERVAL,
        };
        session.handshake.begin(&mut session.out);
        session
    }

    /// What is to be written now; empty when nothing is.
    pub fn take_output(&mut self) -> bytes::BytesMut {
        self.out.take()
    }

    /// Asks again when it is time.
    ///
    /// # Errors
    /// [`SessionError::SentinelLate`] when an answer has been due for [`PROBE_TIMEOUT`].
    pub fn poll(&mut self, now: Instant) -> Result<(), SessionError> {
        if let Some((_, at)) = self.asked.front() {
            let late = now.saturating_duration_since(*at);
            if late >= PROBE_TIMEOUT {
                return Err(SessionError::SentinelLate { late });
            }
        }
        if now >= self.next_at && self.handshake.is_done() {
            self.next_at = now + PROBE_INTERVAL;
            match self.handshake.protocol() {
                Protocol::Resp3 => self.ask_address(now),
                Protocol::Resp2 => {
                    self.asked.push_back((Question::Ping, now));
                    self.out.push(&[b"PING"]);
                }
            }
        }
        Ok(())
    }

    /// When [`poll`](Self::poll) has something to do.
    pub fn next_deadline(&self) -> Instant {
        let late_at = self.asked.front().map(|(_, at)| *at + PROBE_TIMEOUT);
        let next_at = Some(self.next_at).filter(|_| self.handshake.is_done());
        late_at.into_iter().chain(next_at).min().unwrap_or(self.next_at)
    }

    /// Takes one complete frame.
    ///
    /// # Errors
    /// The connection is of no use any more, see [`SessionError`].
    pub fn handle_frame(&mut self, bytes: &[u8], now: Instant) -> Result<Option<SentinelSays>, SessionError> {
        let frame = Frame::decode(self.handshake.protocol(), bytes)?;
        if !self.handshake.is_done() {
            if matches!(frame.value(), Value::Push(_)) {
                return Ok(None);
            }
            self.handshake.handle(&frame, &mut self.out)?;
            if self.handshake.is_done() {
                self.asked.clear();
                self.ask_address(now);
                self.asked.push_back((Question::Subscription, now));
                self.out.push(&[b"SUBSCRIBE", SWITCH_CHANNEL]);
            }
            return Ok(None);
        }
        match frame.item(0) {
            Some(Value::Text(b"message")) if frame.item(2).is_some() => Ok(self.switched(&frame)),
            Some(Value::Text(b"subscribe")) if frame.item(2).is_some() => {
                self.asked.retain(|(question, _)| *question != Question::Subscription);
                Ok(None)
            }
            _ if matches!(frame.value(), Value::Push(_)) => Ok(None),
            _ => self.answered(&frame),
        }
    }

    fn ask_address(&mut self, now: Instant) {
        self.asked.push_back((Question::Address, now));
        self.out.push(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self.primary.as_bytes()]);
    }

    /// `+switch-master`: name, old address and port, new address and port.
    fn switched(&self, frame: &Frame<'_>) -> Option<SentinelSays> {
        let Some(Value::Text(text)) = frame.item(2) else { return None };
        let words: Vec<&str> = std::str::from_utf8(text).ok()?.split(' ').collect();
        match words.as_slice() {
            [name, _, _, host, port] if **name == self.primary => {
                Some(SentinelSays::Primary(server(host, port)?))
            }
            _ => None,
        }
    }

    fn answered(&mut self, frame: &Frame<'_>) -> Result<Option<SentinelSays>, SessionError> {
        let reply = frame.value();
        let Some((question, _)) = self.asked.pop_front() else {
            return Err(SessionError::Unasked(reply.describe()));
        };
        let what = match question {
            Question::Address => "SENTINEL GET-MASTER-ADDR-BY-NAME",
            Question::Subscription | Question::Handshake => "SUBSCRIBE +switch-master",
            Question::Ping => "PING",
        };
        match (question, reply) {
            (_, Value::Error(text)) => Err(SessionError::from_reply(
                what,
                text,
                self.handshake.user(),
                "+sentinel|get-master-addr-by-name +subscribe '&+switch-master'",
            )),
            (Question::Ping, _) => Ok(None),
            (Question::Address, Value::Null) => Ok(Some(SentinelSays::Unknown)),
            (Question::Address, Value::Array(2)) => match (frame.item(0), frame.item(1)) {
                (Some(Value::Text(host)), Some(Value::Text(port))) => {
                    let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
                    let found = server(text(host), text(port));
                    found.map(|server| Some(SentinelSays::Primary(server))).ok_or_else(|| {
                        SessionError::WrongReply {
                            what: what.to_owned(),
                            found: format!("{:?} and {:?}", excerpt(host), excerpt(port)),
                            expected: "an address and a port",
                        }
                    })
                }
                _ => Err(wrong_reply(what, reply)),
            },
            _ => Err(wrong_reply(what, reply)),
        }
    }
}

fn server(host: &str, port: &str) -> Option<Server> {
    let port = port.parse().ok().filter(|&port| port > 0)?;
    (!host.is_empty()).then(|| Server { host: host.to_owned(), port })
}

fn wrong_reply(what: &str, found: Value<'_>) -> SessionError {
    SessionError::WrongReply {
        what: what.to_owned(),
        found: found.describe(),
        expected: "an address and a port",
    }
}

/// Where sentinels tell that a failover is through.
const SWITCH_CHANNEL: &[u8] = b"+switch-master";

/// What all sentinels of a primary have said.
#[derive(Debug, Default)]
pub struct Views {
    /// By sentinel.
    views: Vec<Option<View>>,
    changes: u64,
}

#[derive(Debug)]
struct View {
    primary: Server,
    /// Number of the change that brought it.
    changed: u64,
    /// The same sentinel had said another before.
    is_switch: bool,
}

impl Views {
    /// Of so many sentinels, none of which has said anything.
    pub fn new(sentinels: usize) -> Self {
        Self { views: (0..sentinels).map(|_| None).collect(), changes: 0 }
    }

    /// Notes what a sentinel says. Returns whether that is news.
    pub fn note(&mut self, sentinel: usize, primary: Server) -> bool {
        let view = &mut self.views[sentinel];
        if view.as_ref().is_some_and(|view| view.primary == primary) {
            return false;
        }
        self.changes += 1;
        let is_switch = view.is_some();
        *view = Some(View { primary, changed: self.changes, is_switch });
        true
    }

    /// Changes noted so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whom to try, in this order: what a sentinel changed its mind to, newest first, then by how many say so.
    pub fn candidates(&self) -> Vec<&Server> {
        let mut candidates: Vec<&Server> = Vec::new();
        for view in self.views.iter().flatten() {
            if !candidates.contains(&&view.primary) {
                candidates.push(&view.primary);
            }
        }
        candidates.sort_by_key(|server| std::cmp::Reverse((self.switched(server), self.votes(server))));
        candidates
    }

    /// Where the link has to go that went to `current` after `since` changes, if it has to.
    pub fn successor(&self, current: &Server, since: u64) -> Option<&Server> {
        let news =
            self.views.iter().flatten().filter(|view| view.changed > since && view.primary != *current);
        let newest = news.max_by_key(|view| (view.is_switch, view.changed))?;
        let is_decided = newest.is_switch || self.votes(&newest.primary) * 2 > self.views.len();
        is_decided.then_some(&newest.primary)
    }

    fn votes(&self, server: &Server) -> usize {
        self.views.iter().flatten().filter(|view| view.primary == *server).count()
    }

    fn switched(&self, server: &Server) -> u64 {
        let of = |view: &&View| view.primary == *server && view.is_switch;
        self.views.iter().flatten().filter(of).map(|view| view.changed).max().unwrap_or(0)
    }
}

/// Asks the sentinels one after the other, over connections that `open` makes, until one of them says where the primary is:
/// for programs that need it once. Blocks; `open` bounds how long a connection may say nothing.
///
/// # Errors
/// A sentence for whoever runs the program: what each of them said.
pub fn locate<S: Read + Write>(
    sentinels: &Sentinels,
    now: Instant,
    mut open: impl FnMut(&Server) -> io::Result<S>,
) -> Result<RedisAddress, String> {
    let mut said = Vec::new();
    for server in &sentinels.servers {
        let answer = open(server).and_then(|mut stream| ask(&mut stream, sentinels, server, now));
        match answer {
            Ok(SentinelSays::Primary(Server { host, port })) => return Ok(RedisAddress::Tcp { host, port }),
            Ok(SentinelSays::Unknown) => said.push(format!("{server} watches nothing of this name")),
            Err(error) => said.push(format!("{server}: {error}")),
        }
    }
    Err(format!("no sentinel says where {:?} is ({})", sentinels.primary, said.join("; ")))
}

fn ask(
    stream: &mut (impl Read + Write),
    sentinels: &Sentinels,
    server: &Server,
    now: Instant,
) -> io::Result<SentinelSays> {
    let mut session = SentinelSession::begin(sentinels, server, now);
    let mut inbox = Inbox::new();
    loop {
        stream.write_all(&session.take_output())?;
        let mut buffer = inbox.take_buffer();
        let held = buffer.len();
        buffer.resize(buffer.capacity(), 0);
        let read = stream.read(&mut buffer[held..]);
        buffer.truncate(held + *read.as_ref().unwrap_or(&0));
        inbox.put_buffer(buffer);
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        while let Some(received) = inbox.take_frame().map_err(io::Error::other)? {
            let Received::Frame(bytes) = received else {
                return Err(io::Error::other("a frame without end"));
            };
            if let Some(said) = session.handle_frame(bytes, now).map_err(io::Error::other)? {
                return Ok(said);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::commands;
    use super::*;

    fn at(port: u16) -> Server {
        Server { host: "10.0.0.1".to_owned(), port }
    }

    fn sentinels() -> Sentinels {
        Sentinels {
            servers: vec![at(1), at(2), at(3)],
            primary: "mine".into(),
            username: None,
            password: None,
            tls: false,
        }
    }

    /// One that has been greeted and asked.
    fn asked(now: Instant) -> SentinelSession {
        let mut session = SentinelSession::begin(&sentinels(), &at(1), now);
        assert_eq!(commands(&session.take_output()), ["HELLO 3 SETNAME corecast"]);
        assert_eq!(session.handle_frame(b"%1\r\n+proto\r\n:3\r\n", now), Ok(None));
        assert_eq!(
            commands(&session.take_output()),
            ["SENTINEL GET-MASTER-ADDR-BY-NAME mine", "SUBSCRIBE +switch-master"]
        );
        session
    }

    fn said(port: u16) -> Result<Option<SentinelSays>, SessionError> {
        Ok(Some(SentinelSays::Primary(at(port))))
    }

    const ANSWER: &[u8] = b"*2\r\n$8\r\n10.0.0.1\r\n$4\r\n6379\r\n";
    const SUBSCRIBED: &[u8] = b">3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n";

    fn switch(text: &str) -> String {
        let bytes = text.len();
        format!(">3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n${bytes}\r\n{text}\r\n")
    }

    #[test]
    fn the_address_is_asked_for_together_with_the_subscription_and_each_second() {
        let now = Instant::now();
        let mut session = asked(now);
        assert_eq!(session.handle_frame(ANSWER, now), said(6379));
        assert_eq!(session.handle_frame(SUBSCRIBED, now), Ok(None));
        assert_eq!(session.next_deadline(), now + PROBE_INTERVAL);
        assert_eq!(session.poll(now), Ok(()));
        assert!(session.take_output().is_empty());
        assert_eq!(session.poll(now + PROBE_INTERVAL), Ok(()));
        assert_eq!(commands(&session.take_output()), ["SENTINEL GET-MASTER-ADDR-BY-NAME mine"]);
        assert_eq!(session.handle_frame(ANSWER, now), said(6379));
    }

    #[test]
    fn a_switch_of_ours_is_told_and_one_of_another_is_not() {
        let now = Instant::now();
        let mut session = asked(now);
        session.handle_frame(ANSWER, now).expect("an answer");
        session.handle_frame(SUBSCRIBED, now).expect("a confirmation");
        assert_eq!(
            session.handle_frame(switch("mine 10.0.0.1 6379 10.0.0.1 7000").as_bytes(), now),
            said(7000)
        );
        for other in ["other 10.0.0.1 1 10.0.0.1 2", "mine", "", "mine a 1 b x", "mine a 1  2"] {
            assert_eq!(session.handle_frame(switch(other).as_bytes(), now), Ok(None), "{other:?}");
        }
    }

    #[test]
    fn before_redis_6_pings_prove_that_it_lives() {
        let now = Instant::now();
        let mut session = SentinelSession::begin(&sentinels(), &at(1), now);
        session.take_output();
        session.handle_frame(b"-ERR unknown command 'HELLO'\r\n", now).expect("RESP2 is spoken then");
        session.handle_frame(b"+OK\r\n", now).expect("the name");
        session.take_output();
        assert_eq!(session.handle_frame(ANSWER, now), said(6379));
        let subscribed = b"*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n";
        assert_eq!(session.handle_frame(subscribed, now), Ok(None));
        session.poll(now + PROBE_INTERVAL).expect("nothing is late");
        assert_eq!(commands(&session.take_output()), ["PING"]);
        assert_eq!(session.handle_frame(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", now), Ok(None));
        let message = switch("mine a 1 10.0.0.1 7000").replacen('>', "*", 1);
        assert_eq!(session.handle_frame(message.as_bytes(), now), said(7000));
    }

    #[test]
    fn one_that_does_not_answer_is_given_up() {
        let now = Instant::now();
        let mut session = SentinelSession::begin(&sentinels(), &at(1), now);
        assert_eq!(session.next_deadline(), now + PROBE_TIMEOUT);
        let late = SessionError::SentinelLate { late: PROBE_TIMEOUT };
        assert_eq!(session.poll(now + PROBE_TIMEOUT), Err(late.clone()));
        let mut session = asked(now);
        session.handle_frame(ANSWER, now).expect("an answer");
        assert_eq!(session.poll(now + PROBE_TIMEOUT), Err(late), "the subscription is not confirmed");
    }

    #[test]
    fn what_is_no_address_is_a_sentence() {
        let now = Instant::now();
        assert_eq!(asked(now).handle_frame(b"_\r\n", now), Ok(Some(SentinelSays::Unknown)));
        for wrong in [
            &b"*2\r\n$1\r\na\r\n$1\r\nx\r\n"[..],
            b"*2\r\n$0\r\n\r\n$1\r\n1\r\n",
            b"*2\r\n:1\r\n:2\r\n",
            b"*0\r\n",
            b"+OK\r\n",
            b"-NOPERM no\r\n",
        ] {
            assert!(asked(now).handle_frame(wrong, now).is_err(), "{:?}", excerpt(wrong));
        }
    }

    #[test]
    fn a_changed_mind_moves_the_link_and_a_first_word_needs_a_majority() {
        let mut views = Views::new(3);
        assert!(views.candidates().is_empty());
        assert!(views.note(0, at(1)));
        assert_eq!(views.candidates(), [&at(1)]);
        let since = views.changes();
        assert!(!views.note(0, at(1)), "the same again is no news");
        assert!(views.note(1, at(2)), "one that was cut off");
        assert_eq!(views.successor(&at(1), since), None, "one of three");
        assert!(views.note(2, at(2)));
        assert_eq!(views.successor(&at(1), since), Some(&at(2)), "two of three");
        assert_eq!(views.successor(&at(2), since), None);

        let since = views.changes();
        assert!(views.note(2, at(3)));
        assert_eq!(views.successor(&at(2), since), Some(&at(3)), "a switch");
        assert_eq!(views.candidates()[0], &at(3));
        assert_eq!(views.successor(&at(3), views.changes()), None, "what has been heard before moves nobody");
        assert_eq!(views.candidates().len(), 3, "the others are tried after it");
    }

    /// Answers each read with the next of its words.
    struct Scripted(VecDeque<&'static [u8]>);

    impl Read for Scripted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(words) = self.0.pop_front() else { return Ok(0) };
            buffer[..words.len()].copy_from_slice(words);
            Ok(words.len())
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn programs_take_the_word_of_the_first_that_knows() {
        const HELLO: &[u8] = b"%1\r\n+proto\r\n:3\r\n";
        let mut scripts = vec![vec![HELLO, ANSWER], vec![HELLO, b"_\r\n"], vec![HELLO]];
        let found = locate(&sentinels(), Instant::now(), |_| {
            Ok(Scripted(scripts.pop().expect("three sentinels").into()))
        });
        assert_eq!(found, Ok(RedisAddress::Tcp { host: "10.0.0.1".to_owned(), port: 6379 }));
        let refused = locate(&sentinels(), Instant::now(), |_| {
            Err::<Scripted, _>(io::ErrorKind::ConnectionRefused.into())
        });
        let sentence = refused.expect_err("nobody is there");
        assert!(sentence.contains("where \"mine\" is (10.0.0.1:1: connection refused; "), "{sentence}");
    }

    #[test]
    fn among_first_words_the_most_frequent_is_tried_first() {
        let mut views = Views::new(3);
        for (sentinel, port) in [(0, 9), (1, 7), (2, 7)] {
            views.note(sentinel, at(port));
        }
        assert_eq!(views.candidates(), [&at(7), &at(9)]);
    }
}
