//! The two sessions with Redis: whatever it answers, they neither panic nor grow, and keep their books.
//!
//! An input is a script (see [`script`](crate::script)): what Redis sends, what the relay asks for, and Redis answering as it
//! should, which is how an input gets beyond the handshake.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use shards::config::RedisTarget;
use shards::limits::SUBSCRIBE_INFLIGHT_MAX;
use shards::redis::{Commander, CommanderEvent, Subscriber, SubscriberEvent};
use shards::resp::{Inbox, Received};

use crate::script::{self, Step, push, steps};

/// Asks: `+` subscribes, `-` unsubscribes.
///
/// A channel has one request outstanding at most, is confirmed only while it is wanted, and is not subscribed twice.
pub(crate) fn subscriber(input: &[u8]) {
    for target in ["redis://r:1", "redis://user:secret@r:1/3"] {
        let target: RedisTarget = target.parse().expect("a good target");
        let mut subscriber = Subscriber::new(&target, NODE, RUN, &["room:*".into()], &["events".into()]);
        let mut wanted = BTreeSet::new();
        let mut line = Line::new();
        let mut asked: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        subscriber.begin();
        for step in steps(input) {
            match step {
                Step::Ask(b'+', channel) => {
                    wanted.insert(channel.to_vec());
                    let is_confirmed = subscriber.subscribe(channel);
                    assert!(!is_confirmed || !asked.contains_key(channel), "confirmed while it is asked for");
                }
                Step::Ask(_, channel) => {
                    wanted.remove(channel);
                    subscriber.unsubscribe(channel);
                }
                Step::Answer => line.send(&answers_of_subscriptions(&line.unanswered)),
                Step::Send(bytes) => line.send(bytes),
                Step::Reconnect => line.fail(),
            }
            line.is_broken |= hear_subscriber(&mut subscriber, &mut line.inbox, &mut wanted, &mut asked);
            if line.is_broken {
                subscriber.begin();
                line = Line::new();
                asked.clear();
            } else if matches!(step, Step::Answer) {
                line.unanswered.clear();
            }
            for command in line.read(|| subscriber.take_output()) {
                note_request(&command, &mut asked);
            }
            assert!(asked.len() <= SUBSCRIBE_INFLIGHT_MAX, "more requests than may be outstanding");
            // The probe's channel, the fixed ones, and those that wait for Redis to hear that nobody wants them.
            assert!(subscriber.topics() <= 3 + steps(input).count(), "topics beyond what was asked for");
        }
    }
}

/// Gives the session what has arrived; returns whether the connection is of no use any more.
fn hear_subscriber(
    subscriber: &mut Subscriber,
    inbox: &mut Inbox,
    wanted: &mut BTreeSet<Vec<u8>>,
    asked: &mut BTreeMap<Vec<u8>, Vec<u8>>,
) -> bool {
    loop {
        if let Some(event) = subscriber.take_publication(inbox) {
            assert!(
                matches!(event, None | Some(SubscriberEvent::Message { .. } | SubscriberEvent::Probe(_))),
                "{event:?} of a publication"
            );
            continue;
        }
        let frame = match inbox.take_frame() {
            Ok(Some(Received::Frame(frame))) => frame,
            Ok(Some(Received::TooBig { .. })) => {
                subscriber.handle_too_big();
                continue;
            }
            Ok(None) => return false,
            Err(_) => return true,
        };
        match subscriber.handle_frame(frame) {
            Ok(Some(SubscriberEvent::Confirmed { channel } | SubscriberEvent::Lapsed { channel })) => {
                assert!(
                    wanted.contains(channel) || channel == b"events",
                    "confirmed or lapsed, and nobody wants it"
                );
                asked.remove(channel);
            }
            Ok(Some(SubscriberEvent::Refused { channel, .. })) => {
                assert!(wanted.remove(&*channel), "refused, and nobody wanted it");
                asked.remove(&*channel);
            }
            Ok(Some(SubscriberEvent::Message { .. } | SubscriberEvent::Probe(_)) | None) => {}
            Ok(Some(event @ (SubscriberEvent::Moved { .. } | SubscriberEvent::ProbeMoved))) => {
                panic!("{event:?} of a server that is no node of a cluster")
            }
            Err(error) => {
                check_sentence(&error.to_string());
                return true;
            }
        }
    }
}

fn note_request(command: &[Vec<u8>], asked: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    if let [verb, name] = command
        && matches!(verb.as_slice(), b"SUBSCRIBE" | b"UNSUBSCRIBE")
    {
        let before = asked.insert(name.clone(), verb.clone());
        assert_ne!(before.as_ref(), Some(verb), "the same request twice without an answer between");
    }
}

fn answers_of_subscriptions(commands: &VecDeque<Vec<Vec<u8>>>) -> Vec<u8> {
    let answer = |command: &Vec<Vec<u8>>| match (command[0].as_slice(), command.get(1)) {
        (verb @ (b"SUBSCRIBE" | b"UNSUBSCRIBE" | b"PSUBSCRIBE"), Some(name)) => {
            push(&[&verb.to_ascii_lowercase(), name, b"1"])
        }
        _ => answer_of_handshake(command),
    };
    commands.iter().flat_map(answer).collect()
}

fn answer_of_handshake(command: &[Vec<u8>]) -> Vec<u8> {
    match command[0].as_slice() {
        b"HELLO" => b"%1\r\n+proto\r\n:3\r\n".to_vec(),
        b"AUTH" | b"CLIENT" | b"SELECT" => b"+OK\r\n".to_vec(),
        other => panic!("{other:?} is no command of a handshake"),
    }
}

/// Asks: `p` publishes, `k` keeps, `f` fetches, `t` lets the operand's length in tenths of a second pass, `b` has the oldest
/// probe come back.
///
/// Every publication has exactly one answer, and so has whatever else was asked while the connection lasts.
pub(crate) fn commander(input: &[u8]) {
    for target in ["redis://r:1", "redis://user:secret@r:1/3"] {
        let target: RedisTarget = target.parse().expect("a good target");
        let mut commander = Commander::new(&target, NODE, RUN);
        let mut line = Line::new();
        let mut now = Instant::now();
        let mut due = Due::default();
        commander.begin();
        commander.start_probing(now);
        for step in steps(input) {
            match step {
                Step::Ask(letter, operand) => due.ask(&mut commander, letter, operand, &mut now),
                Step::Answer => line.send(&answers_of_commands(&line.unanswered)),
                Step::Send(bytes) => line.send(bytes),
                Step::Reconnect => line.fail(),
            }
            line.is_broken |= due.hear(&mut commander, &mut line.inbox);
            if commander.is_ready() {
                match commander.poll(now) {
                    Ok(Some(probe)) => due.probes.push_back(probe),
                    Ok(None) => {}
                    Err(_) => line.fail(),
                }
            }
            assert!(
                !commander.is_ready() || commander.next_deadline().is_some(),
                "nobody asks for the next probe"
            );
            if line.is_broken {
                due.end(&mut commander);
                commander.begin();
                commander.start_probing(now);
                line = Line::new();
            } else if matches!(step, Step::Answer) {
                line.unanswered.clear();
            }
            let _ = line.read(|| commander.take_output());
            assert_eq!(
                commander.publishes_inflight(),
                due.tokens.len(),
                "publications under way, and answers due"
            );
        }
        due.end(&mut commander);
    }
}

fn answers_of_commands(commands: &VecDeque<Vec<Vec<u8>>>) -> Vec<u8> {
    let answer = |command: &Vec<Vec<u8>>| match command[0].as_slice() {
        b"PUBLISH" => b":1\r\n".to_vec(),
        b"SET" => b"+OK\r\n".to_vec(),
        b"GET" => b"$2\r\nhi\r\n".to_vec(),
        _ => answer_of_handshake(command),
    };
    commands.iter().flat_map(answer).collect()
}

/// What a commander owes.
#[derive(Debug, Default)]
struct Due {
    /// Tokens of publications, oldest first.
    tokens: VecDeque<u64>,
    /// Keys of what was kept or fetched, oldest first.
    keys: VecDeque<Box<str>>,
    probes: VecDeque<u64>,
    asked: u64,
}

impl Due {
    fn ask(&mut self, commander: &mut Commander, letter: u8, operand: &[u8], now: &mut Instant) {
        let key = String::from_utf8_lossy(operand);
        self.asked += 1;
        match letter {
            b'p' if commander.publish(b"room:a", operand, self.asked).is_ok() => {
                self.tokens.push_back(self.asked);
            }
            b'k' if commander.keep(&key, b"value", 1000).is_ok() => self.keys.push_back((*key).into()),
            b'f' if commander.fetch(&key).is_ok() => self.keys.push_back((*key).into()),
            b't' => *now += Duration::from_millis(100) * operand.len().min(1000) as u32,
            b'b' => {
                if let Some(probe) = self.probes.pop_front() {
                    commander.note_probe_returned(probe);
                }
            }
            _ => {}
        }
    }

    /// As [`hear_subscriber`].
    fn hear(&mut self, commander: &mut Commander, inbox: &mut Inbox) -> bool {
        loop {
            let frame = match inbox.take_frame() {
                Ok(Some(Received::Frame(frame))) => frame,
                Ok(Some(Received::TooBig { .. })) | Err(_) => return true,
                Ok(None) => return false,
            };
            match commander.handle_frame(frame) {
                Ok(Some(CommanderEvent::Published { token, .. })) => {
                    assert_eq!(self.tokens.pop_front(), Some(token), "an answer out of order");
                }
                Ok(Some(CommanderEvent::Kept { key, .. } | CommanderEvent::Fetched { key, .. })) => {
                    assert_eq!(self.keys.pop_front(), Some(key), "an answer out of order");
                }
                Ok(None) => {}
                Ok(Some(event @ CommanderEvent::ProbeRefused)) => {
                    panic!("{event:?} of a server that is no node of a cluster")
                }
                Err(error) => {
                    check_sentence(&error.to_string());
                    return true;
                }
            }
        }
    }

    fn end(&mut self, commander: &mut Commander) {
        let answered: Vec<u64> = commander.end().into_iter().map(|(token, _)| token).collect();
        assert_eq!(
            answered,
            Vec::from(std::mem::take(&mut self.tokens)),
            "each publication is answered once"
        );
        self.keys.clear();
        self.probes.clear();
    }
}

/// One connection, seen from Redis.
struct Line {
    inbox: Inbox,
    /// Commands that Redis has and has not answered by [`Step::Answer`].
    unanswered: VecDeque<Vec<Vec<u8>>>,
    is_broken: bool,
}

impl Line {
    fn new() -> Self {
        Self { inbox: Inbox::new(), unanswered: VecDeque::new(), is_broken: false }
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut buffer = self.inbox.take_buffer();
        buffer.extend_from_slice(bytes);
        self.inbox.put_buffer(buffer);
    }

    fn fail(&mut self) {
        self.is_broken = true;
    }

    /// The commands that a session has written since.
    fn read(&mut self, mut take: impl FnMut() -> bytes::BytesMut) -> Vec<Vec<Vec<u8>>> {
        let mut written = Vec::new();
        while let chunk = take()
            && !chunk.is_empty()
        {
            written.extend_from_slice(&chunk);
        }
        let commands = script::commands(&written);
        self.unanswered.extend(commands.iter().cloned());
        commands
    }
}

/// It ends in a log line.
fn check_sentence(sentence: &str) {
    assert!(!sentence.is_empty(), "an error without a word");
    assert!(!sentence.chars().any(char::is_control), "a control character in {sentence:?}");
    assert!(sentence.len() <= SENTENCE_BYTES_MAX, "an error of {} bytes", sentence.len());
}

/// Two excerpts of 200 characters, escaped, and a sentence around them.
const SENTENCE_BYTES_MAX: usize = 8 * 1024;
const NODE: &str = "node";
const RUN: u64 = 7;
