//! The reading session against bytes, in one piece and in many.

use std::time::Duration;

use super::*;
use crate::redis::tests::{commands, target};
use crate::resp::Protocol;

/// What Redis sent and how a test reads it.
struct Redis {
    reader: Reader,
    inbox: Inbox,
    now: Instant,
}

/// An event that outlives the next call.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Entry(String, String, Option<String>),
    Answered,
    Refused(String, String),
}

fn told(event: ReaderEvent<'_>) -> Told {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match event {
        ReaderEvent::Entry { stream, id, payload } => {
            Told::Entry(text(stream), id.to_string(), payload.map(text))
        }
        ReaderEvent::Answered => Told::Answered,
        ReaderEvent::Refused { stream, reason } => Told::Refused(text(&stream), reason.to_string()),
    }
}

fn entry(stream: &str, id: &str, payload: &str) -> Told {
    Told::Entry(stream.to_owned(), id.to_owned(), Some(payload.to_owned()))
}

fn id(millis: u64) -> EntryId {
    EntryId { millis, sequence: 0 }
}

impl Redis {
    /// A session that has shaken hands in `protocol`, with these streams followed from their beginning.
    fn with(protocol: Protocol, streams: &[&str]) -> Self {
        let mut redis =
            Self { reader: Reader::new(&target(None, None, 0)), inbox: Inbox::new(), now: Instant::now() };
        streams.iter().for_each(|stream| redis.reader.follow(stream.as_bytes(), EntryId::ZERO));
        redis.connect(protocol);
        redis
    }

    fn connect(&mut self, protocol: Protocol) {
        self.inbox = Inbox::new();
        self.reader.begin();
        assert_eq!(self.sent(), ["HELLO 3 SETNAME corecast"]);
        let hello =
            if protocol == Protocol::Resp3 { "%1\r\n+proto\r\n:3\r\n" } else { "*2\r\n+proto\r\n:2\r\n" };
        assert_eq!(self.hear(hello), []);
        assert_eq!(self.sent(), ["CLIENT ID"]);
        assert_eq!(self.hear(":77\r\n"), []);
    }

    /// What the session says.
    fn sent(&mut self) -> Vec<String> {
        commands(&self.reader.take_output())
    }

    fn hear(&mut self, bytes: impl AsRef<[u8]>) -> Vec<Told> {
        self.try_hear(bytes).expect("the session goes on")
    }

    fn try_hear(&mut self, bytes: impl AsRef<[u8]>) -> Result<Vec<Told>, SessionError> {
        let mut buffer = self.inbox.take_buffer();
        buffer.extend_from_slice(bytes.as_ref());
        self.inbox.put_buffer(buffer);
        let mut all = Vec::new();
        while let Some(event) = self.reader.take_event(&mut self.inbox, self.now)? {
            all.push(told(event));
        }
        Ok(all)
    }
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// An entry's id and its fields.
type Sent<'s> = (&'s str, &'s [&'s str]);

/// An answer: streams with their entries.
fn answer(protocol: Protocol, streams: &[(&str, &[Sent<'_>])]) -> String {
    let (open, pair) = match protocol {
        Protocol::Resp3 => ("%", ""),
        Protocol::Resp2 => ("*", "*2\r\n"),
    };
    let mut text = format!("{open}{}\r\n", streams.len());
    for (stream, entries) in streams {
        text += &format!("{pair}{}*{}\r\n", bulk(stream), entries.len());
        for (id, fields) in *entries {
            text += &format!("*2\r\n{}*{}\r\n", bulk(id), fields.len());
            fields.iter().for_each(|field| text += &bulk(field));
        }
    }
    text
}

const BOTH: [Protocol; 2] = [Protocol::Resp2, Protocol::Resp3];

#[test]
fn entries_come_in_order_and_the_next_question_begins_behind_them() {
    for protocol in BOTH {
        let mut redis = Redis::with(protocol, &["orders"]);
        assert_eq!(redis.sent(), ["XREAD COUNT 128 BLOCK 1000 STREAMS orders 0-0"]);
        let entries: [Sent<'_>; 2] = [("1-0", &["data", "a"]), ("1-1", &["price", "5", "qty", "3"])];
        let heard = redis.hear(answer(protocol, &[("orders", &entries)]));
        let object = r#"{"price":"5","qty":"3"}"#;
        assert_eq!(heard, [entry("orders", "1-0", "a"), entry("orders", "1-1", object), Told::Answered]);
        assert_eq!(redis.sent(), ["XREAD COUNT 128 BLOCK 1000 STREAMS orders 1-1"]);
        let nothing = if protocol == Protocol::Resp3 { "_\r\n" } else { "*-1\r\n" };
        assert_eq!(redis.hear(nothing), [Told::Answered]);
        assert_eq!(redis.sent(), ["XREAD COUNT 128 BLOCK 1000 STREAMS orders 1-1"]);
        assert_eq!(redis.reader.counters().entries, 2);
    }
}

#[test]
fn an_answer_that_comes_in_pieces_says_the_same_wherever_it_is_cut() {
    let entries: [Sent<'_>; 3] =
        [("1-0", &["data", "pay\r\nload"]), ("2-0", &[]), ("3-0", &["a", "b", "data", "c"])];
    for protocol in BOTH {
        let text = answer(protocol, &[("x", &entries), ("y", &entries[..1])]);
        let whole = Redis::with(protocol, &["x", "y"]).hear(&text);
        assert_eq!(whole.len(), 5);
        for cut in 1..text.len() {
            let mut redis = Redis::with(protocol, &["x", "y"]);
            let mut heard = redis.hear(&text[..cut]);
            heard.extend(redis.hear(&text[cut..]));
            assert_eq!(heard, whole, "cut at {cut}");
        }
        let mut redis = Redis::with(protocol, &["x", "y"]);
        let heard: Vec<_> = text.as_bytes().iter().flat_map(|byte| redis.hear([*byte])).collect();
        assert_eq!(heard, whole, "byte by byte");
    }
}

#[test]
fn a_connection_that_breaks_in_an_answer_goes_on_behind_the_last_whole_entry() {
    let entries: [Sent<'_>; 2] = [("1-0", &["data", "a"]), ("2-0", &["data", "b"])];
    let text = answer(Protocol::Resp3, &[("orders", &entries)]);
    for cut in 0..text.len() {
        let mut redis = Redis::with(Protocol::Resp3, &["orders"]);
        let mut heard = redis.hear(&text[..cut]);
        redis.connect(Protocol::Resp2);
        let due = redis.reader.position(b"orders").expect("it is followed");
        assert_eq!(redis.sent(), [format!("XREAD COUNT 128 BLOCK 1000 STREAMS orders {due}")]);
        let rest: Vec<_> =
            entries.iter().filter(|(id, _)| EntryId::parse(id.as_bytes()) > Some(due)).copied().collect();
        heard.extend(redis.hear(answer(Protocol::Resp2, &[("orders", &rest)])));
        heard.retain(|told| *told != Told::Answered);
        assert_eq!(heard, [entry("orders", "1-0", "a"), entry("orders", "2-0", "b")], "cut at {cut}");
    }
}

#[test]
fn a_stream_that_is_followed_during_a_block_has_it_ended() {
    let mut redis = Redis::with(Protocol::Resp3, &["a"]);
    let now = redis.now;
    redis.sent();
    assert_eq!(redis.reader.take_unblock(now), None, "it waits for all there is");
    redis.reader.follow(b"b", id(5));
    assert_eq!(redis.reader.take_unblock(now), Some(77));
    assert_eq!(redis.reader.take_unblock(now), None, "it has just been said");
    assert_eq!(redis.reader.take_unblock(now + UNBLOCK_INTERVAL), Some(77), "it may have come too early");
    assert_eq!(redis.hear("_\r\n"), [Told::Answered]);
    let asked = redis.sent();
    assert!(asked[0].contains(" b ") && asked[0].contains("5-0"), "{asked:?}");
    assert_eq!(redis.reader.take_unblock(now + UNBLOCK_INTERVAL * 9), None);
    redis.reader.follow(b"c", id(5));
    assert_eq!(redis.hear("_\r\n"), [Told::Answered]);
    redis.reader.follow(b"d", id(5));
    assert_eq!(
        redis.reader.take_unblock(now + UNBLOCK_INTERVAL * 9),
        None,
        "the question is not yet written"
    );
}

#[test]
fn entries_of_a_stream_that_is_no_longer_followed_or_elsewhere_are_ignored() {
    let mut redis = Redis::with(Protocol::Resp3, &["a", "b"]);
    redis.sent();
    redis.reader.unfollow(b"a");
    redis.reader.follow(b"b", id(5));
    let entries: [Sent<'_>; 1] = [("1-0", &["data", "x"])];
    let heard = redis.hear(answer(Protocol::Resp3, &[("a", &entries), ("b", &entries)]));
    assert_eq!(heard, [Told::Answered]);
    assert_eq!(redis.sent(), ["XREAD COUNT 128 BLOCK 1000 STREAMS b 5-0"]);
    redis.reader.unfollow(b"b");
    assert_eq!(redis.hear("_\r\n"), [Told::Answered]);
    assert_eq!(redis.sent(), [""; 0], "there is nothing to read");
    redis.reader.follow(b"c", id(1));
    redis.reader.poll(redis.now).expect("nothing is late");
    assert_eq!(redis.sent(), ["XREAD COUNT 128 BLOCK 1000 STREAMS c 1-0"]);
}

#[test]
fn many_streams_share_the_bound_of_an_answer() {
    let names: Vec<String> = (0..500).map(|number| format!("s{number}")).collect();
    let streams: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut redis = Redis::with(Protocol::Resp3, &streams);
    let asked = redis.sent().remove(0);
    assert!(asked.starts_with("XREAD COUNT 2 BLOCK 1000 STREAMS s"), "{}", &asked[..60]);
    assert_eq!(asked.split(' ').count(), 6 + 2 * 500);
    // Those that have much are asked for much, however many are quiet beside them.
    let entries: [Sent<'_>; 1] = [("1-0", &["data", "x"])];
    redis.hear(answer(Protocol::Resp3, &[("s7", &entries)]));
    assert!(redis.sent()[0].starts_with("XREAD COUNT 128 "));
    let all: Vec<(&str, &[Sent<'_>])> = streams.iter().map(|stream| (*stream, &entries[..])).collect();
    redis.hear(answer(Protocol::Resp3, &all));
    assert!(redis.sent()[0].starts_with("XREAD COUNT 2 "));
    redis.hear("_\r\n");
    assert!(redis.sent()[0].starts_with("XREAD COUNT 128 "));
    redis.connect(Protocol::Resp3);
    assert!(redis.sent()[0].starts_with("XREAD COUNT 2 "), "after a break all may have much");
}

#[test]
fn a_stream_that_is_refused_is_found_among_the_others() {
    let refusals = [
        ("-WRONGTYPE Operation against a key holding the wrong kind of value\r\n", "XREAD bad"),
        ("-MOVED 866 10.0.0.2:6379\r\n", "XREAD bad"),
        (
            "-NOPERM this user has no permissions to access one of the keys\r\n",
            "ACL SETUSER default '~bad' +xread",
        ),
    ];
    for (refusal, part) in refusals {
        let mut redis = Redis::with(Protocol::Resp3, &["good", "bad", "fine"]);
        redis.sent();
        assert_eq!(redis.hear(refusal), []);
        for _ in 0..3 {
            let asked = redis.sent().remove(0);
            let heard = match asked.as_str() {
                "XREAD COUNT 1 STREAMS bad 0-0" => redis.hear(refusal),
                "XREAD COUNT 1 STREAMS good 0-0" => {
                    redis.hear(answer(Protocol::Resp3, &[("good", &[("1-0", &["data", "x"])])]))
                }
                "XREAD COUNT 1 STREAMS fine 0-0" => redis.hear("_\r\n"),
                other => panic!("asked {other}"),
            };
            if let [Told::Refused(stream, reason)] = heard.as_slice() {
                assert_eq!(stream, "bad");
                assert!(reason.contains(part), "{reason}");
            }
        }
        let asked = redis.sent().remove(0);
        assert!(asked.contains("BLOCK") && !asked.contains("bad") && asked.contains("1-0"), "{asked}");
        assert_eq!(redis.reader.streams_len(), 2);
    }
}

#[test]
fn errors_of_the_server_end_the_session() {
    for (text, part) in
        [("LOADING Redis is loading", "tried again"), ("NOAUTH Authentication required.", "password")]
    {
        let mut redis = Redis::with(Protocol::Resp3, &["a"]);
        let error = redis.try_hear(format!("-{text}\r\n")).expect_err("it can't go on");
        assert!(error.to_string().contains(part), "{error}");
    }
    for nonsense in [
        ":1\r\n",
        "*1\r\n",
        "%1\r\n:1\r\n",
        "%1\r\n+a\r\n:1\r\n",
        "%1\r\n+a\r\n*1\r\n*3\r\n",
        "%1\r\n+a\r\n*1\r\n*2\r\n+x\r\n",
        "%1\r\n+a\r\n*1\r\n*2\r\n+1-0\r\n*1\r\n",
        "%1\r\n+a\r\n*-1\r\n",
        "?",
    ] {
        let mut redis = Redis::with(Protocol::Resp3, &["a"]);
        assert!(redis.try_hear(nonsense).is_err(), "{nonsense:?}");
    }
    let mut redis = Redis::with(Protocol::Resp3, &[]);
    assert!(redis.try_hear("_\r\n").is_err(), "nothing was asked");
}

#[test]
fn a_push_in_between_says_nothing() {
    let mut redis = Redis::with(Protocol::Resp3, &["a"]);
    assert_eq!(redis.hear(">2\r\n+invalidate\r\n_\r\n"), []);
    assert_eq!(redis.hear("_\r\n"), [Told::Answered]);
}

#[test]
fn an_answer_that_does_not_come_ends_the_session_and_one_that_goes_on_does_not() {
    let mut redis = Redis::with(Protocol::Resp3, &["a"]);
    let start = redis.now;
    assert_eq!(redis.reader.next_deadline(), Some(start + READ_BLOCK + READ_TIMEOUT));
    redis.now = start + READ_BLOCK + READ_TIMEOUT / 2;
    assert_eq!(redis.hear("%1\r\n+a\r\n*1\r\n"), []);
    let late = start + READ_BLOCK + READ_TIMEOUT + Duration::from_millis(1);
    assert_eq!(redis.reader.poll(late), Ok(()), "it is on its way");
    let error = redis.reader.poll(redis.now + READ_BLOCK + READ_TIMEOUT).expect_err("it has stopped");
    assert_eq!(error, SessionError::ReadLate { late: READ_BLOCK + READ_TIMEOUT });
}

#[test]
fn an_entry_that_is_too_long_is_told_and_passed() {
    let mut redis = Redis::with(Protocol::Resp3, &["a"]);
    let long = "x".repeat(crate::limits::PAYLOAD_BYTES_MAX + 1);
    let longer = "y".repeat(crate::limits::RESP_FRAME_BYTES_MAX + 1);
    let entries: [Sent<'_>; 3] =
        [("1-0", &["data", &long]), ("2-0", &["data", &longer]), ("3-0", &["data", "short"])];
    let text = answer(Protocol::Resp3, &[("a", &entries)]);
    let mut heard = Vec::new();
    for piece in text.as_bytes().chunks(64 * 1024) {
        heard.extend(redis.hear(piece));
        assert!(redis.inbox.capacity() < 40 << 20, "{} bytes are held", redis.inbox.capacity());
    }
    let none = |id: &str| Told::Entry("a".to_owned(), id.to_owned(), None);
    assert_eq!(heard, [none("1-0"), none("2-0"), entry("a", "3-0", "short"), Told::Answered]);
    assert_eq!(redis.reader.counters(), ReaderCounters { entries: 3, too_big: 2 });
}
