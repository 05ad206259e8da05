//! Resume and the past of rooms, gaps, and the dialects that say where they stand.

use super::*;
use crate::command::{Recorded, Recover, Recovered, Since};

const EPOCH: u64 = 1;

impl Bench {
    /// The question for a room's past that the shard has asked, whatever it has taken back before.
    pub(super) fn asked(&mut self) -> Recover {
        loop {
            match self.shard.up.pop_front() {
                Some(Up::Recover(recover)) => return *recover,
                Some(Up::Withdraw { .. }) => {}
                other => panic!("a question is due: {other:?}"),
            }
        }
    }

    /// Answers with the publications of these numbers and payloads.
    fn answer(&mut self, recover: Recover, offset: u64, is_whole: bool, records: &[(u64, &str)]) {
        let recorded = |(offset, payload): &(u64, &str)| Recorded {
            offset: *offset,
            after_break: false,
            frame: Frame::data(payload.as_bytes()).expect("short"),
            label: None,
        };
        let past = records.iter().map(recorded).collect::<Vec<Recorded>>().into();
        self.handle(Down::Recovered(Box::new(Recovered { recover, epoch: EPOCH, offset, is_whole, past })));
    }

    /// A member of the JSON dialect that has said that it wants the past of a live room, and its question.
    pub(super) fn wisher(&mut self, socket: i32, room: &str, wish: &str) -> (ConnectionId, Recover) {
        let id = self.speaker(socket, "/json");
        self.say(socket, id, &format!(r#"{{"type":"join","room":"{room}",{wish}}}"#));
        self.answer_joins_but_questions();
        let asked = self.asked();
        (id, asked)
    }

    pub(super) fn answer_joins_but_questions(&mut self) {
        let (joins, rest): (Vec<Up>, Vec<Up>) =
            std::mem::take(&mut self.shard.up).into_iter().partition(|up| matches!(up, Up::Join { .. }));
        self.shard.up.extend(rest);
        for join in joins {
            let Up::Join { slot, .. } = join else { continue };
            self.handle(Down::Joined { slot, epoch: EPOCH, head: 1, source: Some((0, 0)) });
        }
    }

    pub(super) fn balance(&self) {
        let ledger = self.shard.ledger();
        assert!(ledger.balances(), "{ledger:?}");
    }
}

const RESUME: &str = r#""resume":{"epoch":"1","offset":2}"#;

#[test]
fn the_past_comes_between_the_answer_to_the_join_and_what_is_live() {
    let mut bench = Bench::new();
    bench.member(9, &["a"]);
    let (id, asked) = bench.wisher(1, "a", RESUME);
    assert_eq!(asked.since, Since::After { epoch: Some(1), offset: 2 });
    bench.publish("a", "in the past of the answer");
    bench.pass();
    assert!(bench.numbered(1).is_empty(), "it is no member yet");
    bench.answer(asked, 2, true, &[(3, "three"), (4, "four")]);
    bench.publish("a", "live");
    bench.pass();
    let due = [
        r#"{"type":"joined","room":"a","data":{"epoch":"1","offset":2,"recovered":true}}"#,
        r#"{"type":"message","room":"a","data":"three","offset":3}"#,
        r#"{"type":"message","room":"a","data":"four","offset":4}"#,
        r#"{"type":"message","room":"a","data":"live","offset":2}"#,
    ];
    assert_eq!(bench.numbered(1), due);
    bench.balance();
    assert_eq!(bench.say(1, id, r#"{"type":"leave","room":"a"}"#).len(), 1);
    assert_eq!(bench.shard.kept.bytes(), 0);
}

#[test]
fn who_cannot_be_recovered_is_told_where_the_room_stands() {
    let mut bench = Bench::new();
    let (_, asked) = bench.wisher(1, "a", RESUME);
    bench.answer(asked, 7, false, &[]);
    let due = r#"{"type":"joined","room":"a","data":{"epoch":"1","offset":7,"recovered":false}}"#;
    assert_eq!(bench.numbered(1), [due]);
}

#[test]
fn a_socket_that_takes_little_gets_the_past_whole_and_in_order_and_then_what_is_live() {
    for space in 0..300 {
        let mut bench = Bench::new();
        bench.member(9, &["a"]);
        let (id, asked) = bench.wisher(1, "a", r#""first":"oldest""#);
        bench.wire.space.insert(1, space);
        bench.answer(asked, 0, true, &[(1, "one"), (2, "two"), (3, "three")]);
        bench.publish("a", "live");
        bench.pass();
        bench.balance();
        bench.writable(id, 3);
        bench.balance();
        bench.writable(id, usize::MAX);
        let heard = bench.heard(1);
        let texts: Vec<&str> =
            heard[1..].iter().map(|text| text.split('"').nth_back(1).expect("data")).collect();
        assert_eq!(texts, ["one", "two", "three", "live"], "space {space}");
        bench.balance();
        assert_eq!((bench.shard.ledger().pending, bench.shard.kept.bytes()), (0, 0));
    }
}

#[test]
fn who_leaves_or_ends_before_the_answer_gets_nothing_and_its_room_goes() {
    let mut bench = Bench::new();
    let (id, asked) = bench.wisher(1, "a", RESUME);
    assert_eq!(bench.say(1, id, r#"{"type":"leave","room":"a"}"#).len(), 1);
    bench.answer(asked, 2, true, &[(3, "three")]);
    assert_eq!(bench.heard(1).len(), 1, "left, and nothing after it");
    let (id, asked) = bench.wisher(2, "b", RESUME);
    bench.shard.release(id, bench.now);
    bench.answer(asked, 2, true, &[(3, "three")]);
    bench.sweep_after(ROOM_LINGER + Duration::from_secs(1));
    assert_eq!(bench.shard.metrics().rooms.value(), 0);
    bench.balance();
}

#[test]
fn a_room_that_somebody_waits_for_does_not_go() {
    let mut bench = Bench::new();
    let first = bench.member(9, &["a"]);
    let (_, asked) = bench.wisher(1, "a", RESUME);
    bench.shard.release(first, bench.now);
    bench.sweep_after(ROOM_LINGER + Duration::from_secs(1));
    bench.answer(asked, 2, true, &[(3, "three")]);
    assert_eq!(bench.heard(1).len(), 2);
}

#[test]
fn what_of_the_past_a_member_never_takes_is_dropped_with_it() {
    let mut bench = Bench::new();
    let (id, asked) = bench.wisher(1, "a", r#""first":2"#);
    bench.wire.space.insert(1, 0);
    bench.answer(asked, 0, true, &[(1, "one"), (2, "two")]);
    bench.balance();
    assert_eq!(bench.shard.ledger().pending, 2);
    bench.shard.close(id, CloseReason::Internal, &mut bench.wire, bench.now);
    assert_eq!(bench.shard.metrics().drops.value(DropReason::Closed), 2);
    bench.balance();
}

#[test]
fn a_raw_client_is_told_in_its_101_and_gets_the_past_behind_it() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    let request = String::from_utf8(handshake("a")).expect("text");
    bench.receive(id, request.replace("room=a", "room=a&epoch=1&offset=1").as_bytes());
    bench.answer_joins_but_questions();
    assert!(bench.wire.text(1).is_empty(), "no 101 before the answer");
    let asked = bench.asked();
    bench.answer(asked, 1, true, &[(2, "two")]);
    let text = bench.wire.text(1);
    for due in
        ["HTTP/1.1 101 ", "\r\nCorecast-Epoch: 1\r\nCorecast-Offset: 1\r\nCorecast-Recovered: true\r\n\r\n"]
    {
        assert!(text.contains(due), "{due:?} in {text:?}");
    }
    assert!(text.ends_with("\r\n\r\n\u{fffd}\u{3}two"), "{text:?}");
}

#[test]
fn a_lost_range_is_told_to_who_can_be_told_before_what_follows_it() {
    let mut bench = Bench::new();
    bench.member(9, &["a"]);
    let _json = bench.speaker(1, "/json");
    bench.say(1, _json, r#"{"type":"join","room":"a"}"#);
    bench.wire.taken.clear();
    bench.publish("a", "1");
    let slot = bench.room("a");
    bench.handle(Down::Gap { slot, from: 2, to: 5, reason: GapReason::ShardOverload });
    bench.offset = 5;
    bench.publish("a", "5");
    bench.pass();
    let due = [
        r#"{"type":"message","room":"a","data":"1","offset":1}"#,
        r#"{"type":"gap","room":"a","data":{"epoch":"1","from":2,"reason":"shard_overload","to":4}}"#,
        r#"{"type":"message","room":"a","data":"5","offset":5}"#,
    ];
    assert_eq!(bench.numbered(1), due);
    assert_eq!(bench.numbered(9), ["1", "5"], "the raw dialect has no words for it");
    bench.balance();
    assert_eq!(bench.shard.ledger().delivered, 4);
}

#[test]
fn a_break_of_the_source_is_told_with_the_new_epoch_and_to_a_raw_only_room_costs_nothing() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    bench.say(1, id, r#"{"type":"join","room":"a"}"#);
    bench.answer_joins_but_questions();
    bench.member(9, &["quiet"]);
    bench.wire.taken.clear();
    bench.publish("a", "1");
    bench.pass();
    bench.handle(Down::SourceGap { source: 0, run: 3 });
    bench.publish("a", "2");
    bench.pass();
    bench.shard.settle_some(bench.now);
    bench.pass();
    let due = [
        r#"{"type":"message","room":"a","data":"1","offset":1}"#,
        r#"{"type":"gap","room":"a","data":{"epoch":"4","offset":1,"reason":"broker"}}"#,
        r#"{"type":"message","room":"a","data":"2","offset":2}"#,
    ];
    assert_eq!(bench.numbered(1), due, "before what follows the break, and once");
    bench.balance();
}

#[test]
fn a_break_is_told_in_a_room_where_nothing_else_happens() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    bench.say(1, id, r#"{"type":"join","room":"a"}"#);
    bench.answer_joins_but_questions();
    bench.handle(Down::SourceGap { source: 0, run: 1 });
    bench.shard.settle_some(bench.now);
    bench.pass();
    assert_eq!(bench.numbered(1).len(), 2);
    let standing = bench.say(1, id, r#"{"type":"join","room":"a"}"#);
    assert_eq!(standing.len(), 1);
    assert!(bench.numbered(1)[2].contains(r#""epoch":"2","offset":0"#), "{:?}", bench.numbered(1));
}

#[test]
fn a_break_of_one_rooms_channel_is_told_there_alone_after_one_of_its_source() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    bench.say(1, id, r#"{"type":"join","room":"a"}"#);
    bench.answer_joins_but_questions();
    bench.wire.taken.clear();
    bench.publish("a", "1");
    bench.pass();
    let slot = bench.room("a");
    bench.handle(Down::SourceGap { source: 0, run: 1 });
    bench.handle(Down::RoomGap { slot, epoch: 7, last: 1 });
    bench.publish("a", "2");
    bench.pass();
    bench.shard.settle_some(bench.now);
    bench.pass();
    let due = [
        r#"{"type":"message","room":"a","data":"1","offset":1}"#,
        r#"{"type":"gap","room":"a","data":{"epoch":"2","offset":1,"reason":"broker"}}"#,
        r#"{"type":"gap","room":"a","data":{"epoch":"7","offset":1,"reason":"broker"}}"#,
        r#"{"type":"message","room":"a","data":"2","offset":2}"#,
    ];
    assert_eq!(bench.numbered(1), due);
    bench.balance();
}

#[test]
fn a_ping_is_answered_with_its_data() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    let heard = bench.say(1, id, r#"{"type":"ping","data":{"at":1.50}}"#);
    assert_eq!(heard, [r#"{"type":"pong","room":"","data":{"at":1.50}}"#]);
    assert_eq!(bench.say(1, id, r#"{"type":"ping"}"#), [r#"{"type":"pong","room":"","data":null}"#]);
}

/// The handshake of `room` with a subprotocol.
fn offering(room: &str, protocol: &str) -> Vec<u8> {
    let request = String::from_utf8(handshake(room)).expect("text");
    request.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n")).into_bytes()
}

#[test]
fn a_subprotocol_chooses_the_dialect_of_a_raw_route() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    bench.receive(id, &offering("a", "foo, corecast.v1.json"));
    bench.answer_joins_but_questions();
    let head = bench.wire.text(1);
    assert!(head.contains("\r\nSec-WebSocket-Protocol: corecast.v1.json\r\n"), "{head}");
    let id = bench.accept(2);
    bench.receive(id, &offering("a", "ws+meta.nchan"));
    bench.wire.taken.clear();
    bench.publish("a", "hi");
    bench.pass();
    assert_eq!(bench.numbered(1), [r#"{"type":"message","room":"a","data":"hi","offset":1}"#]);
    assert_eq!(bench.numbered(2), ["id: 1:1\ncontent-type: text/plain\n\nhi"]);
    bench.balance();
}

#[test]
fn event_streams_number_their_events_and_tell_gaps() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    bench.receive(id, b"GET /sse?room=a HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1:0\r\n\r\n");
    bench.answer_joins_but_questions();
    let asked = bench.asked();
    assert_eq!(asked.since, Since::After { epoch: Some(1), offset: 0 });
    bench.answer(asked, 3, false, &[]);
    let head = bench.wire.text(1);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"), "{head}");
    let due = "id: 1:3\nevent: gap\ndata: {\"epoch\":\"1\",\"offset\":3,\"reason\":\"not_recovered\"}\n\n";
    assert!(head.ends_with(due), "{head}");
    bench.wire.taken.clear();
    bench.offset = 4;
    bench.publish("a", "one\ntwo");
    bench.pass();
    bench.sweep_after(Duration::from_secs(60));
    assert_eq!(bench.wire.text(1), "id: 1:4\ndata: one\ndata: two\n\n:\n\n");
    bench.shard.close(id, CloseReason::GoingAway, &mut bench.wire, bench.now);
    assert!(bench.wire.text(1).ends_with(":\n\n"), "a stream just ends");
    bench.balance();
}

#[test]
fn a_join_is_not_answered_with_the_answer_to_one_before_it() {
    let mut bench = Bench::new();
    bench.member(9, &["a"]);
    let (id, first) = bench.wisher(1, "a", r#""resume":{"epoch":"1","offset":8}"#);
    bench.say(1, id, r#"{"type":"leave","room":"a"}"#);
    bench.say(1, id, r#"{"type":"join","room":"a","resume":{"offset":0}}"#);
    let second = bench.asked();
    bench.answer(first, 8, true, &[(9, "nine")]);
    assert_eq!(bench.numbered(1).len(), 1, "its leave was answered, and nothing else");
    bench.answer(second, 0, true, &[(1, "one")]);
    assert!(bench.numbered(1)[1].contains(r#""offset":0,"recovered":true"#), "{:?}", bench.numbered(1));
}

#[test]
fn a_stream_whose_socket_takes_nothing_ends_though_it_has_no_pongs_to_miss() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    bench.receive(id, b"GET /sse?room=a&first=oldest HTTP/1.1\r\nHost: localhost\r\n\r\n");
    bench.answer_joins_but_questions();
    let asked = bench.asked();
    bench.wire.space.insert(1, 10);
    bench.answer(asked, 0, true, &[(1, "one")]);
    let reason = |bench: &mut Bench| bench.shard.connection(id).and_then(|connection| connection.reason);
    bench.sweep_after(Duration::from_secs(59));
    assert_eq!(reason(&mut bench), None);
    bench.sweep_after(Duration::from_secs(2));
    assert_eq!(reason(&mut bench), Some(CloseReason::PongTimeout));
    assert_eq!(bench.shard.kept.bytes(), 0);
}

#[test]
fn what_is_live_is_not_old_while_it_waits_behind_the_past() {
    let mut bench = Bench::new();
    bench.member(9, &["a"]);
    let (id, asked) = bench.wisher(1, "a", r#""first":"oldest""#);
    bench.wire.space.insert(1, 0);
    bench.answer(asked, 0, true, &[(1, "one")]);
    bench.publish("a", "live");
    bench.pass();
    bench.sweep_after(Duration::from_secs(15));
    assert_eq!(bench.shard.connection(id).and_then(|connection| connection.reason), None);
    bench.writable(id, usize::MAX);
    assert_eq!(bench.shard.ledger().pending, 0);
}

#[test]
fn who_joins_and_leaves_in_a_loop_has_its_questions_taken_back_and_asks_no_more_than_it_may() {
    let engine = EngineBounds { questions_max: 3, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    bench.member(9, &["a"]);
    let id = bench.speaker(1, "/json");
    let mut refused = 0;
    for _ in 0..100 {
        bench.say(1, id, r#"{"type":"join","room":"a","first":"oldest"}"#);
        refused += u32::from(bench.wire.text(1).contains("too_many_rooms"));
        if refused == 0 {
            bench.say(1, id, r#"{"type":"leave","room":"a"}"#);
        }
        bench.wire.taken.clear();
    }
    let rooms_max = bench.shard.setup.bounds.rooms_per_connection_max as u32;
    assert_eq!(refused, 100 - rooms_max, "those it gave up count until they are answered");
    let ups = std::mem::take(&mut bench.shard.up);
    let (mut asked, mut withdrawn) = (Vec::new(), Vec::new());
    for up in ups {
        match up {
            Up::Recover(recover) => asked.push(recover.ticket),
            Up::Withdraw { ticket } => withdrawn.push(ticket),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((asked.len(), &asked), (3, &withdrawn));
    assert_eq!(bench.shard.metrics().pasts_deferred.value(), u64::from(rooms_max) - 3);
    for ticket in withdrawn {
        bench.handle(Down::Withdrawn { ticket });
    }
    assert_eq!(bench.shard.questions_len(), 0, "whoever gave up is not asked for");
    bench.say(1, id, r#"{"type":"join","room":"a","first":"oldest"}"#);
    assert_eq!(bench.asked().since, Since::Oldest);
}

#[test]
fn who_resumes_a_room_that_it_is_in_already_is_told_whether_it_missed_something() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    bench.say(1, id, r#"{"type":"join","room":"a"}"#);
    bench.answer_joins_but_questions();
    bench.offset = 7;
    bench.publish("a", "seven");
    bench.pass();
    let cases = [
        (r#","resume":{"epoch":"1","offset":2}"#, r#","recovered":false"#),
        (r#","resume":{"epoch":"9","offset":7}"#, r#","recovered":false"#),
        (r#","resume":{"epoch":"1","offset":7}"#, r#","recovered":true"#),
        (r#","resume":{"offset":7}"#, r#","recovered":true"#),
        (r#","first":"oldest""#, ""),
        ("", ""),
    ];
    for (wish, recovered) in cases {
        bench.wire.taken.clear();
        bench.say(1, id, &format!(r#"{{"type":"join","room":"a"{wish}}}"#));
        let due = format!(r#"{{"type":"joined","room":"a","data":{{"epoch":"1","offset":7{recovered}}}}}"#);
        assert_eq!(bench.numbered(1), [due], "{wish}");
    }
    assert!(bench.shard.up.is_empty());
}

/// A long-poll of a room that stays quiet.
const POLL: &[u8] = b"GET /poll?room=quiet&wait=300s HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn a_poll_is_read_while_it_waits_so_that_its_clients_end_is_seen() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    assert_eq!(bench.receive(id, POLL), Next::Watch);
    let request = [b'x'; 1000];
    let reads = (0..100).take_while(|_| bench.receive(id, &request) == Next::Watch).count();
    assert!((10..20).contains(&reads), "as much as a head may have: {reads}");
    bench.shard.release(id, bench.now);
    assert_eq!(bench.shard.metrics().closed.value(CloseReason::PeerVanished), 1);
    bench.sweep_after(ROOM_LINGER + Duration::from_secs(1));
    assert_eq!(bench.shard.metrics().rooms.value(), 0, "nobody waits there any more");
    assert_eq!(bench.shard.input_bytes, 0);
}

#[test]
fn who_does_not_read_its_answer_ends_for_that_and_who_reads_it_slowly_does_not() {
    let mut bench = Bench::new();
    let reason = |bench: &mut Bench, id| bench.shard.connection(id).and_then(|connection| connection.reason);
    let [stuck, slow] = [1, 2].map(|socket| {
        let id = bench.accept(socket);
        bench.wire.space.insert(socket, 10);
        bench.receive(id, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        id
    });
    for _ in 0..4 {
        bench.sweep_after(Duration::from_secs(4));
        bench.writable(slow, 10);
    }
    assert_eq!(
        (reason(&mut bench, stuck), reason(&mut bench, slow)),
        (Some(CloseReason::AnswerUnread), None)
    );
    bench.writable(slow, usize::MAX);
    bench.sweep_after(Duration::from_secs(8));
    assert_eq!(
        reason(&mut bench, slow),
        None,
        "the time of its next request begins with the end of the answer"
    );
    bench.sweep_after(Duration::from_secs(4));
    assert_eq!(reason(&mut bench, slow), Some(CloseReason::HandshakeTimeout));
}
