//! Numbers, epochs and histories of streams against a real Redis: what the pure core's tests can only suppose of it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use redis_protocol::resp2::encode;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};
use shards::config::{RedisAddress, RedisTarget};
use shards::limits::{READ_BLOCK, UNBLOCK_INTERVAL};
use shards::redis::{
    Anchor, EntryId, History, HistoryError, HistoryStep, Judgement, Position, Reader, ReaderEvent,
    anchor_words, epoch_key,
};
use shards::resp::{Frame, Inbox, Protocol};

use crate::support::deadline::SOON;
use crate::support::redis::Redis;

const STREAM: &str = "orders";

/// An answer as the core reads it.
fn with_frame<T>(answer: &OwnedFrame, read: impl FnOnce(&Frame<'_>) -> T) -> T {
    let mut bytes = vec![0; answer.encode_len(false)];
    encode::encode(&mut bytes, answer, false).expect("an answer can be written again");
    read(&Frame::decode(Protocol::Resp2, &bytes).expect("an answer is a frame"))
}

#[track_caller]
fn anchor_known(redis: &Redis, known: Option<Position>) -> Anchor {
    // Another one for each question, as nodes have.
    let fresh = Instant::now().elapsed().as_nanos() as u64 ^ known.map_or(7, |known| known.number) ^ random();
    let words = anchor_words(None, STREAM.as_bytes(), fresh, known);
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let answer = redis.connect().and_then(|mut connection| connection.command(&words)).expect("an answer");
    let read = with_frame(&answer, |frame| Anchor::read(frame.node(), STREAM.as_bytes(), "default"));
    read.expect("the connection is well").expect("the stream has numbers")
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[track_caller]
fn anchor(redis: &Redis) -> Anchor {
    anchor_known(redis, None)
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

#[test]
fn numbers_and_epoch_outlive_trims_and_deletions() {
    let redis = Redis::start();
    let empty = anchor(&redis);
    assert_eq!((empty.added, empty.last), (0, EntryId::ZERO));
    let ids = append(&redis, 1..=10);
    let full = anchor(&redis);
    assert_eq!((full.epoch, full.added, full.length), (empty.epoch, 10, 10));
    assert_eq!(full.start().map(|start| start.number), Some(0));
    redis.cli(&["XTRIM", STREAM, "MAXLEN", "4"]);
    let trimmed = anchor(&redis);
    assert_eq!((trimmed.epoch, trimmed.added, trimmed.length), (full.epoch, 10, 4));
    assert_eq!(trimmed.first.to_string(), ids[6]);
    assert_eq!(trimmed.start().map(|start| start.number), Some(6), "a trim is no deletion");
    redis.cli(&["XDEL", STREAM, &ids[7]]);
    let deleted = anchor(&redis);
    assert_eq!((deleted.epoch, deleted.added, deleted.length), (full.epoch, 10, 3));
    assert_eq!((deleted.deleted.to_string(), deleted.start()), (ids[7].clone(), None));
    redis.cli(&["XTRIM", STREAM, "MAXLEN", "0"]);
    let emptied = anchor(&redis);
    assert_eq!((emptied.epoch, emptied.head()), (full.epoch, full.head()));
    append(&redis, 11..=11);
    assert_eq!((anchor(&redis).epoch, anchor(&redis).added), (full.epoch, 11));
}

#[test]
fn a_stream_that_was_made_anew_or_set_back_has_a_new_epoch() {
    let redis = Redis::start();
    let mut epochs = vec![anchor(&redis).epoch];
    append(&redis, 1..=5);
    assert_eq!(anchor(&redis).epoch, epochs[0]);
    redis.cli(&["DEL", STREAM]);
    epochs.push(anchor(&redis).epoch);
    append(&redis, 1..=5);
    let before = anchor(&redis);
    assert_eq!(before.epoch, epochs[1], "an empty stream goes on");
    redis.cli(&["DEL", STREAM]);
    // Beyond where it was, before anybody looked; a millisecond later, which is what tells the two apart.
    for number in 1..=20 {
        let id = format!("{}-{number}", before.last.millis + 1);
        redis.cli(&["XADD", STREAM, &id, "data", "x"]);
    }
    epochs.push(anchor(&redis).epoch);
    redis.cli(&["XSETID", STREAM, "99999999999999-0"]);
    epochs.push(anchor(&redis).epoch);
    redis.cli(&["XSETID", STREAM, "99999999999999-0", "ENTRIESADDED", "20", "MAXDELETEDID", "0-0"]);
    assert_eq!(anchor(&redis).epoch, epochs[3]);
    let known = Position { number: 21, ..anchor(&redis).head() };
    epochs.push(anchor_known(&redis, Some(known)).epoch);
    let known = Position { epoch: known.epoch, ..anchor(&redis).head() };
    assert_eq!(
        anchor_known(&redis, Some(known)).epoch,
        epochs[4],
        "who speaks of another epoch says nothing"
    );
    let fewer = Position { number: 3, ..anchor(&redis).head() };
    assert_eq!(anchor_known(&redis, Some(fewer)).epoch, epochs[4], "who counted too few was overtaken");
    let key = String::from_utf8(epoch_key(STREAM.as_bytes())).expect("text");
    redis.cli(&["DEL", &key]);
    epochs.push(anchor(&redis).epoch);
    let mut unique = epochs.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), 6, "{epochs:x?}");
}

#[test]
fn an_epoch_is_kept_for_a_month_from_the_last_look() {
    let redis = Redis::start();
    anchor(&redis);
    let key = String::from_utf8(epoch_key(STREAM.as_bytes())).expect("text");
    let ttl = || match redis.cli(&["TTL", &key]) {
        OwnedFrame::Integer(seconds) => seconds,
        other => panic!("TTL answered {other:?}"),
    };
    assert!((200..=300).contains(&ttl()), "of a stream that nothing was ever appended to, some minutes");
    append(&redis, 1..=1);
    anchor(&redis);
    assert!((2_591_000..=2_592_000).contains(&ttl()));
    redis.cli(&["EXPIRE", &key, "1000"]);
    anchor(&redis);
    assert!(ttl() > 2_591_000);
}

/// The history of what comes after the number `after`.
#[track_caller]
fn history(redis: &Redis, after: u64, head: Position) -> Result<Vec<String>, HistoryError> {
    let mut history = History::new(after, head, 1000, 1 << 20)?;
    loop {
        match history.step() {
            HistoryStep::Page { end, count } => {
                let page = redis.cli(&["XREVRANGE", STREAM, &end, "-", "COUNT", &count.to_string()]);
                with_frame(&page, |frame| history.take_page(frame.node())).expect("a page");
            }
            HistoryStep::Anchor => {
                let past = history.finish(&anchor(redis))?;
                let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
                return Ok(past.payloads.iter().map(|payload| text(payload)).collect());
            }
        }
    }
}

#[test]
fn any_node_can_give_what_is_missing_and_none_gives_what_is_not_certain() {
    let redis = Redis::start();
    let ids = append(&redis, 1..=150);
    let head = anchor(&redis).head();
    append(&redis, 151..=160);
    let due: Vec<String> = (21..=150).map(|number: u64| number.to_string()).collect();
    assert_eq!(history(&redis, 20, head), Ok(due), "over several pages, and nothing behind the head");
    assert_eq!(history(&redis, 150, head), Ok(Vec::new()));
    assert_eq!(history(&redis, 151, head), Err(HistoryError::Beyond));
    redis.cli(&["XDEL", STREAM, &ids[100]]);
    assert_eq!(history(&redis, 20, head), Err(HistoryError::Deleted));
    assert_eq!(history(&redis, 101, head).map(|payloads| payloads.len()), Ok(49));
    redis.cli(&["XTRIM", STREAM, "MAXLEN", "50"]);
    let left = history(&redis, 101, head).map(|payloads| payloads.len());
    assert_eq!(left, Ok(40), "the newest without a hole");
    assert_eq!(history(&redis, 110, head).map(|payloads| payloads.len()), Ok(40));
    redis.cli(&["DEL", STREAM]);
    append(&redis, 1..=200);
    assert!(history(&redis, 140, head).is_err(), "the numbers are another stream's");
}

/// A reader on a socket.
struct Link {
    reader: Reader,
    inbox: Inbox,
    stream: TcpStream,
    /// Payloads by stream, as they came.
    heard: BTreeMap<String, Vec<String>>,
    answers: u64,
}

impl Link {
    #[track_caller]
    fn open(redis: &Redis, follow: &[&str]) -> Self {
        let address = RedisAddress::Tcp { host: "127.0.0.1".to_owned(), port: redis.address().port() };
        let target = RedisTarget { address, username: None, password: None, database: 0, tls: None };
        let mut reader = Reader::new(&target);
        follow.iter().for_each(|stream| reader.follow(stream.as_bytes(), EntryId::ZERO));
        let stream = Self::connect(redis, &mut reader);
        Self { reader, inbox: Inbox::new(), stream, heard: BTreeMap::new(), answers: 0 }
    }

    #[track_caller]
    fn connect(redis: &Redis, reader: &mut Reader) -> TcpStream {
        let stream = TcpStream::connect(redis.address()).expect("redis takes connections");
        stream.set_read_timeout(Some(UNBLOCK_INTERVAL)).expect("a time-out can be set");
        reader.begin();
        stream
    }

    fn reconnect(&mut self, redis: &Redis) {
        self.stream = Self::connect(redis, &mut self.reader);
        self.inbox = Inbox::new();
    }

    /// Reads until `is_enough`.
    #[track_caller]
    fn until(&mut self, redis: &Redis, is_enough: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_enough(self) {
            assert!(began.elapsed() < SOON, "it heard only {:?}", self.heard);
            let now = Instant::now();
            self.reader.poll(now).expect("redis is in time");
            self.stream.write_all(&self.reader.take_output()).expect("redis takes commands");
            if let Some(client) = self.reader.take_unblock(now) {
                redis.cli(&["CLIENT", "UNBLOCK", &client.to_string()]);
            }
            let mut chunk = [0; 4096];
            let received = match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                received => received.expect("redis answers"),
            };
            let mut buffer = self.inbox.take_buffer();
            assert!(received > 0, "redis has closed the connection");
            buffer.extend_from_slice(&chunk[..received]);
            self.inbox.put_buffer(buffer);
            while let Some(event) = self.reader.take_event(&mut self.inbox, now).expect("redis speaks RESP") {
                match event {
                    ReaderEvent::Entry { stream, payload, .. } => {
                        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                        let payload = text(payload.expect("it is short"));
                        self.heard.entry(text(stream)).or_default().push(payload);
                    }
                    ReaderEvent::Answered => self.answers += 1,
                    ReaderEvent::Refused { reason, .. } => panic!("{reason}"),
                }
            }
        }
    }

    fn count(&self, stream: &str) -> usize {
        self.heard.get(stream).map_or(0, Vec::len)
    }
}

#[test]
fn a_reader_goes_on_where_it_was_however_its_connection_ends() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut link = Link::open(&redis, &[STREAM]);
    append(&redis, 1..=300);
    link.until(&redis, |link| link.count(STREAM) >= 200);
    append(&redis, 301..=310);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    append(&redis, 311..=320);
    link.reconnect(&redis);
    link.until(&redis, |link| link.count(STREAM) >= 310);
    redis.kill9();
    redis.restart();
    append(&redis, 321..=330);
    link.reconnect(&redis);
    link.until(&redis, |link| link.count(STREAM) >= 330);
    let due: Vec<String> = (1..=330).map(|number: u64| number.to_string()).collect();
    assert_eq!(link.heard[STREAM], due, "each once, in order");
}

#[test]
fn a_stream_is_followed_at_once_though_the_reader_waits_for_others() {
    let redis = Redis::start();
    // A busy machine may take that long once, and not three times.
    let took = [(); 3].map(|()| {
        redis.cli(&["DEL", STREAM]);
        let mut link = Link::open(&redis, &["quiet"]);
        link.until(&redis, |link| link.answers >= 1);
        let began = Instant::now();
        append(&redis, 1..=1);
        for name in ["a", "b", "c", STREAM] {
            link.reader.follow(name.as_bytes(), EntryId::ZERO);
        }
        link.until(&redis, |link| link.count(STREAM) == 1);
        began.elapsed()
    });
    assert!(took.into_iter().any(|took| took < READ_BLOCK), "it waited for the block: {took:?}");
}

#[test]
fn who_was_overtaken_by_a_trim_learns_which_numbers_are_gone() {
    let redis = Redis::start();
    append(&redis, 1..=10);
    let here = anchor(&redis).head();
    append(&redis, 11..=30);
    redis.cli(&["XTRIM", STREAM, "MAXLEN", "5"]);
    let Judgement::Overtaken { from, to, position } = anchor_known(&redis, Some(here)).judge(here) else {
        panic!("nothing is said")
    };
    assert_eq!((from, to), (11, 25));
    let mut link = Link::open(&redis, &[]);
    link.reader.follow(STREAM.as_bytes(), position.id);
    link.until(&redis, |link| link.count(STREAM) == 5);
    assert_eq!(link.heard[STREAM], ["26", "27", "28", "29", "30"], "numbers and payloads agree again");
}
