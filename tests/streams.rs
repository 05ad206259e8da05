//! Nodes that follow streams of a real Redis through its faults: what each hears, under which numbers, and what it is told
//! of what it doesn't hear.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use redis_protocol::resp2::types::OwnedFrame;
use shards::config::{RedisAddress, RedisTarget};
use shards::limits::UNBLOCK_INTERVAL;
use shards::redis::{Append, HistoryError, Past, Position, SessionError, Streams, StreamsEvent, Trim};
use shards::resp::Inbox;

use crate::support::deadline::SOON;
use crate::support::redis::Redis;

const STREAM: &str = "orders";

/// What a node was told of [`STREAM`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Anchored(u64),
    Entry(u64, String),
    Gap(u64, u64),
    Broken(u64),
    Recalled(Result<Vec<String>, HistoryError>),
    Appended(bool),
}

/// One node's sessions on sockets.
struct Node {
    streams: Streams,
    sockets: Option<[(TcpStream, Inbox); 2]>,
    told: Vec<Told>,
    epochs: Vec<u64>,
    random: u64,
}

impl Node {
    /// One that follows [`STREAM`], and is anchored.
    #[track_caller]
    fn follow(redis: &Redis) -> Self {
        let mut node = Self::start(redis);
        node.streams.follow(STREAM.as_bytes(), 1);
        node.until(|node| !node.told.is_empty());
        assert!(matches!(node.told[0], Told::Anchored(_)), "{:?}", node.told);
        node
    }

    #[track_caller]
    fn start(redis: &Redis) -> Self {
        let address = RedisAddress::Tcp { host: "127.0.0.1".to_owned(), port: redis.address().port() };
        let target = RedisTarget { address, username: None, password: None, database: 0, tls: None };
        let random = std::process::id().into();
        let mut node = Self {
            streams: Streams::new(&target),
            sockets: None,
            told: Vec::new(),
            epochs: Vec::new(),
            random,
        };
        node.connect(redis);
        node
    }

    #[track_caller]
    fn connect(&mut self, redis: &Redis) {
        self.disconnect();
        let connect = || {
            let stream = TcpStream::connect(redis.address()).expect("redis takes connections");
            stream.set_read_timeout(Some(UNBLOCK_INTERVAL)).expect("a time-out can be set");
            (stream, Inbox::new())
        };
        self.sockets = Some([connect(), connect()]);
        self.streams.begin();
    }

    fn disconnect(&mut self) {
        self.sockets = None;
        let unanswered: Vec<Told> =
            self.streams.end().into_iter().filter_map(|event| told(event).0).collect();
        self.told.extend(unanswered);
    }

    fn fresh(&mut self) -> u64 {
        // SplitMix64's increment: another number each time.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random
    }

    /// Does what a driver does until `is_enough`.
    #[track_caller]
    fn until(&mut self, is_enough: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_enough(self) {
            assert!(began.elapsed() < SOON, "it was told only {:?}", self.told);
            self.turn().expect("redis is well");
        }
    }

    fn turn(&mut self) -> Result<(), SessionError> {
        let (now, fresh) = (Instant::now(), self.fresh());
        self.streams.poll(now, fresh)?;
        let Some([(reader, entries), (recorder, records)]) = &mut self.sockets else { return Ok(()) };
        let outputs = [self.streams.take_reader_output(), self.streams.take_recorder_output()];
        for (socket, output) in [&mut *reader, &mut *recorder].into_iter().zip(outputs) {
            socket.write_all(&output).expect("redis takes commands");
        }
        receive(reader, entries);
        receive(recorder, records);
        while let Some(event) = self.streams.take_entry(entries, now)? {
            let (event, epoch) = told(event);
            self.told.extend(event);
            self.epochs.extend(epoch);
        }
        while let Some(received) = records.take_frame()? {
            if let Some(event) = self.streams.handle_record(received, now, fresh)? {
                let (event, epoch) = told(event);
                self.told.extend(event);
                self.epochs.extend(epoch);
            }
        }
        Ok(())
    }

    /// The entries that it heard, each with its number.
    fn entries(&self) -> Vec<(u64, String)> {
        let entry = |told: &Told| match told {
            Told::Entry(number, payload) => Some((*number, payload.clone())),
            _ => None,
        };
        self.told.iter().filter_map(entry).collect()
    }

    fn position(&self) -> Position {
        self.streams.position(STREAM.as_bytes()).expect("it is followed")
    }

    /// What comes after the number `after`.
    #[track_caller]
    fn recall(&mut self, after: u64) -> Result<Vec<String>, HistoryError> {
        let fresh = self.fresh();
        self.streams.recall(1, STREAM.as_bytes(), after, 1000, 1 << 20, fresh)?;
        let told = self.told.len();
        let answer = |node: &Self| {
            node.told[told..].iter().find_map(|told| match told {
                Told::Recalled(result) => Some(result.clone()),
                _ => None,
            })
        };
        self.until(|node| answer(node).is_some());
        answer(self).expect("it is there")
    }
}

/// An answer that doesn't come within a moment comes with a later turn.
fn receive(socket: &mut TcpStream, inbox: &mut Inbox) {
    let mut chunk = [0; 16 * 1024];
    match socket.read(&mut chunk) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        received => {
            let received = received.expect("redis answers");
            assert!(received > 0, "redis has closed the connection");
            let mut buffer = inbox.take_buffer();
            buffer.extend_from_slice(&chunk[..received]);
            inbox.put_buffer(buffer);
        }
    }
}

/// What is to be remembered of an event, and its epoch.
fn told(event: StreamsEvent<'_>) -> (Option<Told>, Option<u64>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match event {
        StreamsEvent::Anchored { position, .. } => {
            (Some(Told::Anchored(position.number)), Some(position.epoch))
        }
        StreamsEvent::Entry { number, payload, .. } => {
            (Some(Told::Entry(number, text(payload.expect("it is short")))), None)
        }
        StreamsEvent::Gap { from, position, .. } => (Some(Told::Gap(from, position.number)), None),
        StreamsEvent::Broken { position, .. } => (Some(Told::Broken(position.number)), Some(position.epoch)),
        StreamsEvent::Refused { reason, .. } => panic!("{reason}"),
        StreamsEvent::Recalled { result, .. } => {
            let texts = |past: Past| past.payloads.iter().map(|payload| text(payload)).collect();
            (Some(Told::Recalled(result.map(texts))), None)
        }
        StreamsEvent::Appended { result, .. } => (Some(Told::Appended(result.is_ok())), None),
    }
}

/// Appends entries whose payloads are these numbers.
#[track_caller]
fn append(redis: &Redis, numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    let id = |number: u64| match redis.cli(&["XADD", STREAM, "*", "data", &number.to_string()]) {
        OwnedFrame::BulkString(id) => String::from_utf8(id).expect("an id is text"),
        other => panic!("XADD answered {other:?}"),
    };
    numbers.map(id).collect()
}

fn numbered(numbers: std::ops::RangeInclusive<u64>) -> Vec<(u64, String)> {
    numbers.map(|number| (number, number.to_string())).collect()
}

#[test]
fn two_nodes_give_every_entry_one_number_and_either_resumes_the_others_clients() {
    let redis = Redis::start();
    append(&redis, 1..=5);
    let mut first = Node::follow(&redis);
    append(&redis, 6..=10);
    let mut second = Node::follow(&redis);
    append(&redis, 11..=20);
    first.until(|node| node.entries().len() == 15);
    second.until(|node| node.entries().len() == 10);
    assert_eq!((first.entries(), second.entries()), (numbered(6..=20), numbered(11..=20)));
    assert_eq!(first.position(), second.position());
    let due: Vec<String> = (13..=20).map(|number: u64| number.to_string()).collect();
    assert_eq!(second.recall(12), Ok(due));
}

#[test]
fn nothing_is_lost_or_told_twice_while_redis_is_killed_and_connections_break() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut node = Node::follow(&redis);
    for round in 0..3 {
        append(&redis, round * 20 + 1..=round * 20 + 10);
        node.until(|node| node.entries().len() as u64 > round * 20);
        if round == 1 {
            redis.kill9();
            redis.restart();
        }
        append(&redis, round * 20 + 11..=round * 20 + 20);
        node.connect(&redis);
        node.until(|node| node.entries().len() as u64 == round * 20 + 20);
    }
    assert_eq!(node.entries(), numbered(1..=60));
    assert!(!node.told.iter().any(|told| matches!(told, Told::Gap(..) | Told::Broken(_))), "{:?}", node.told);
    node.epochs.dedup();
    assert_eq!(node.epochs.len(), 1);
}

#[test]
fn what_was_trimmed_during_a_break_is_a_gap_with_its_numbers() {
    let redis = Redis::start();
    let mut node = Node::follow(&redis);
    append(&redis, 1..=5);
    node.until(|node| node.entries().len() == 5);
    node.disconnect();
    append(&redis, 6..=30);
    redis.cli(&["XTRIM", STREAM, "MAXLEN", "10"]);
    node.connect(&redis);
    node.until(|node| node.entries().len() == 15);
    assert!(node.told.contains(&Told::Gap(6, 20)), "{:?}", node.told);
    assert_eq!(node.entries()[5..], numbered(21..=30));
    let due: Vec<String> = (21..=30).map(|number: u64| number.to_string()).collect();
    assert_eq!(node.recall(15), Ok(due), "as much as there is");
}

#[test]
fn an_entry_that_was_deleted_before_it_was_read_is_found_missing_within_moments() {
    let redis = Redis::start();
    let mut node = Node::follow(&redis);
    append(&redis, 1..=2);
    node.until(|node| node.entries().len() == 2);
    // In one step of Redis: nobody can have read it.
    let script = "local id = redis.call('XADD', KEYS[1], '*', 'data', 'x'); redis.call('XDEL', KEYS[1], id)";
    redis.cli(&["EVAL", script, "1", STREAM]);
    append(&redis, 4..=4);
    node.until(|node| node.told.iter().any(|told| matches!(told, Told::Gap(..))));
    append(&redis, 5..=6);
    node.until(|node| node.entries().len() == 5);
    assert_eq!(node.entries()[3..], numbered(5..=6), "numbers and entries agree again");
    assert_eq!(node.position().number, 6);
}

#[test]
fn a_stream_that_is_made_anew_is_a_break_and_its_entries_are_heard() {
    let redis = Redis::start();
    append(&redis, 1..=3);
    let mut node = Node::follow(&redis);
    append(&redis, 4..=5);
    node.until(|node| node.entries().len() == 2);
    node.disconnect();
    redis.cli(&["DEL", STREAM]);
    append(&redis, 1..=20);
    node.connect(&redis);
    node.until(|node| node.entries().len() == 22);
    assert!(node.told.contains(&Told::Broken(0)), "{:?}", node.told);
    assert_eq!(node.entries()[2..], numbered(1..=20));
    assert_ne!(node.epochs[0], *node.epochs.last().expect("it was told one"));
}

#[test]
fn a_stream_that_is_made_anew_under_a_reader_is_noticed() {
    let redis = Redis::start();
    let mut node = Node::follow(&redis);
    append(&redis, 1..=5);
    node.until(|node| node.entries().len() == 5);
    redis.cli(&["DEL", STREAM]);
    append(&redis, 1..=2);
    node.until(|node| node.told.iter().any(|told| matches!(told, Told::Broken(_))));
    append(&redis, 3..=4);
    node.until(|node| node.entries().last() == Some(&(4, "4".to_owned())));
}

#[test]
fn an_append_is_an_entry_for_everybody_and_is_answered_once() {
    let redis = Redis::start();
    let mut node = Node::follow(&redis);
    let append = |payload: &'static [u8]| Append {
        stream: STREAM.as_bytes(),
        payload,
        channel: None,
        trim: Trim::default(),
    };
    node.streams.append(&append(b"1"), 1).expect("it is up");
    node.until(|node| node.told.contains(&Told::Appended(true)) && node.entries().len() == 1);
    redis.cli(&["SCRIPT", "FLUSH"]);
    node.streams.append(&append(b"x"), 2).expect("it is up");
    node.until(|node| node.told.contains(&Told::Appended(false)));
    node.streams.append(&append(b"2"), 3).expect("it is up");
    node.until(|node| node.entries().len() == 2);
    assert_eq!(node.entries(), numbered(1..=2), "what was told unsent was not appended");
}

#[test]
fn a_redis_that_stands_still_is_given_up_and_found_again_without_a_loss() {
    let redis = Redis::start();
    let mut node = Node::follow(&redis);
    append(&redis, 1..=3);
    node.until(|node| node.entries().len() == 3);
    redis.sigstop();
    let began = Instant::now();
    let error = loop {
        assert!(began.elapsed() < SOON, "it is not noticed");
        if let Err(error) = node.turn() {
            break error;
        }
    };
    assert!(matches!(error, SessionError::ReadLate { .. }), "{error}");
    redis.sigcont();
    node.connect(&redis);
    append(&redis, 4..=6);
    node.until(|node| node.entries().len() == 6);
    assert_eq!(node.entries(), numbered(1..=6));
}
