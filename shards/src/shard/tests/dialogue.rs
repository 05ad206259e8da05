//! Connections of the JSON dialect, alone with a shard.

use serde_json::Value;

use super::*;
use crate::command::{Publish, Warm, Warmed};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Code and field of the one error among `heard`.
fn error(heard: &[String]) -> (String, String) {
    let [text] = heard else { panic!("one error is due: {heard:?}") };
    let error = json(text);
    assert_eq!(error["type"], "error", "{text}");
    let text = |name: &str| error["data"][name].as_str().unwrap_or_default().to_owned();
    (text("code"), text("field"))
}

fn published(shard: &mut Shard) -> Publish {
    match shard.up.pop_back() {
        Some(Up::Publish(publish)) => *publish,
        other => panic!("a publication is due: {other:?}"),
    }
}

const JOINED_A: &str = r#"{"type":"joined","room":"a","data":null}"#;

#[test]
fn a_join_is_answered_when_the_room_is_live_and_before_its_first_publication() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    assert!(bench.say(1, id, r#"{"type":"join","room":"a"}"#).is_empty(), "the relay has not answered");
    bench.publish("a", "too early");
    bench.answer_joins();
    assert_eq!(bench.heard(1), [JOINED_A]);
    bench.publish_labelled("a", "price_update", r#"{"price":1.50}"#);
    bench.publish("a", "plain \"text\"");
    bench.pass();
    let due = [
        JOINED_A,
        r#"{"type":"price_update","room":"a","data":{"price":1.50}}"#,
        r#"{"type":"message","room":"a","data":"plain \"text\""}"#,
    ];
    assert_eq!(bench.heard(1), due);
}

#[test]
fn a_second_member_of_a_live_room_is_in_at_once_and_joining_twice_is_joining() {
    let mut bench = Bench::new();
    bench.member(1, &["a"]);
    let id = bench.speaker(2, "/json");
    assert_eq!(bench.say(2, id, r#"{"type":"join","room":"a"}"#), [JOINED_A]);
    assert_eq!(bench.say(2, id, r#"{"type":"join","room":"a"}"#), [JOINED_A]);
    assert_eq!(bench.shard.metrics().subscriptions.value(), 2);
}

#[test]
fn each_dialect_hears_a_room_in_its_own_way_whatever_its_socket_takes() {
    for space in 0..160 {
        let mut bench = Bench::new();
        bench.member(1, &["a"]);
        let id = bench.speaker(2, "/json");
        bench.say(2, id, r#"{"type":"join","room":"a"}"#);
        bench.wire.taken.clear();
        bench.wire.space.insert(2, space);
        for payload in ["1", "2", "3"] {
            bench.publish("a", payload);
        }
        bench.pass();
        assert!(bench.shard.ledger().balances(), "{space}: {:?}", bench.shard.ledger());
        if bench.shard.connection(id).is_some_and(|c| c.stalled.is_some()) {
            bench.writable(id, usize::MAX);
        }
        assert_eq!(bench.heard(1), ["1", "2", "3"], "{space}");
        let due = ["1", "2", "3"].map(|n| format!(r#"{{"type":"message","room":"a","data":"{n}"}}"#));
        assert_eq!(bench.heard(2), due, "{space}");
        assert_eq!(bench.shard.metrics().deliveries.value(), 6, "{space}");
        bench.sweep_after(Duration::from_millis(100));
        assert_eq!(bench.shard.window_bytes, 0, "{space}");
    }
}

#[test]
fn who_leaves_one_room_stays_in_the_others_and_what_it_was_owed_is_counted() {
    let mut bench = Bench::new();
    bench.member(1, &["a", "b", "c"]);
    let id = bench.speaker(2, "/json");
    for room in ["a", "b", "c"] {
        bench.say(2, id, &format!(r#"{{"type":"join","room":"{room}"}}"#));
    }
    bench.publish("a", "lost");
    assert_eq!(
        bench.say(2, id, r#"{"type":"leave","room":"a"}"#),
        [r#"{"type":"left","room":"a","data":null}"#]
    );
    assert_eq!(bench.shard.metrics().drops.value(DropReason::Left), 1);
    bench.wire.taken.clear();
    for room in ["a", "b", "c"] {
        bench.publish(room, "x");
    }
    bench.pass();
    let mut heard = bench.heard(2);
    heard.sort();
    assert_eq!(heard, ["b", "c"].map(|room| format!(r#"{{"type":"message","room":"{room}","data":"x"}}"#)));
    assert_eq!(error(&bench.say(2, id, r#"{"type":"leave","room":"a"}"#)).0, "not_joined");
    assert!(bench.shard.ledger().balances());
}

#[test]
fn leaving_and_joining_between_two_batches_of_a_pass_is_neither_lost_nor_doubled() {
    let engine = EngineBounds { batch_sends_max: 1, ..EngineBounds::default() };
    for leave_after in 0..6 {
        let mut bench = Bench::with(RoomClass::default(), engine.clone());
        for socket in 1..4 {
            bench.member(socket, &["a", "b"]);
        }
        let id = bench.speaker(9, "/json");
        bench.say(9, id, r#"{"type":"join","room":"a"}"#);
        bench.say(9, id, r#"{"type":"join","room":"b"}"#);
        bench.wire.taken.clear();
        bench.publish("a", "1");
        bench.publish("b", "2");
        let mut steps = 0;
        let mut done = false;
        while !done {
            if steps == leave_after {
                bench.receive(id, &masked(1, br#"{"type":"leave","room":"a"}"#));
                bench.receive(id, &masked(1, br#"{"type":"join","room":"a"}"#));
            }
            done = bench.step() == Progress::Done;
            steps += 1;
        }
        let heard = bench.heard(9);
        let of = |payload: &str| {
            heard.iter().filter(|text| text.contains(&format!(r#""data":"{payload}""#))).count()
        };
        assert!(of("1") <= 1 && of("2") == 1, "{leave_after}: {heard:?}");
        let ledger = bench.shard.ledger();
        assert!(ledger.balances() && ledger.pending == 0, "{leave_after}: {ledger:?}");
    }
}

#[test]
fn a_message_goes_to_a_room_that_was_joined_and_to_no_other() {
    let mut bench = Bench::new();
    bench.member(1, &["a"]);
    let id = bench.speaker(2, "/json");
    let message = r#"{"type":"message","room":"a","data":{"n": 1.0}}"#;
    assert_eq!(error(&bench.say(2, id, message)).0, "not_joined");
    bench.say(2, id, r#"{"type":"join","room":"a"}"#);
    bench.say(2, id, message);
    let publish = published(&mut bench.shard);
    assert_eq!((&*publish.room, &publish.payload[..]), ("a", &br#"{"n": 1.0}"#[..]));
    assert_eq!(publish.label.as_deref(), Some(&Label { kind: "message".into(), is_json: true }));
    bench.say(2, id, r#"{"type":"message","room":"a","data":"h\u00e9"}"#);
    let publish = published(&mut bench.shard);
    assert_eq!((&publish.payload[..], publish.label.unwrap().is_json), ("hé".as_bytes(), false));
}

#[test]
fn ingestors_publish_events_without_joining_and_their_newest_is_kept() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/ingest");
    let event = r#"{"type":"price_update","instrument":"BTC_USDT","price":60214.30,"ts":1710000000}"#;
    assert!(bench.say(1, id, event).is_empty());
    let publish = published(&mut bench.shard);
    assert_eq!((&*publish.room, &publish.payload[..]), ("BTC_USDT", event.as_bytes()));
    assert_eq!(publish.keep.as_deref(), Some("BTC_USDT"));
    assert_eq!(&*publish.label.unwrap().kind, "price_update");
    for text in [
        r#"{"type":"join","room":"a"}"#,
        r#"{"type":"leave","room":"a"}"#,
        r#"{"type":"message","room":"a"}"#,
    ] {
        assert_eq!(error(&bench.say(1, id, text)).0, "role", "{text}");
    }
    assert!(bench.shard.up.is_empty(), "what is refused goes nowhere");
}

#[test]
fn a_wrong_event_is_answered_by_its_field_and_goes_nowhere() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/ingest");
    for (text, field) in [
        (r#"{"type":"price_update","instrument":"BTC","price":"60214","ts":1710000000}"#, "price"),
        (r#"{"type":"price_update","price":1,"ts":1710000000}"#, "instrument"),
        (r#"{"type":"price_update","instrument":"BTC","price":1}"#, "ts"),
        (r#"{"type":"nothing_known"}"#, "type"),
        (r#"{"instrument":"BTC"}"#, "type"),
        ("[]", ""),
        ("{", ""),
    ] {
        assert_eq!(error(&bench.say(1, id, text)), ("invalid".to_owned(), field.to_owned()), "{text}");
    }
    assert!(bench.shard.up.is_empty());
    assert_eq!(bench.shard.metrics().messages_refused.value(), 7);
    let consumer = bench.speaker(2, "/json");
    let event = r#"{"type":"price_update","instrument":"BTC_USDT","price":1,"ts":1710000000}"#;
    assert_eq!(error(&bench.say(2, consumer, event)), ("role".to_owned(), "type".to_owned()));
}

#[test]
fn a_connection_is_in_no_more_rooms_than_the_bound() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    let due = bench.shard.setup.bounds.rooms_per_connection_max;
    for room in 0..due {
        bench.say(1, id, &format!(r#"{{"type":"join","room":"r{room}"}}"#));
    }
    bench.answer_joins();
    assert_eq!(error(&bench.say(1, id, r#"{"type":"join","room":"one more"}"#)).0, "too_many_rooms");
    bench.say(1, id, r#"{"type":"leave","room":"r0"}"#);
    assert!(bench.say(1, id, r#"{"type":"join","room":"one more"}"#).is_empty(), "there is space again");
}

#[test]
fn a_last_value_comes_only_while_nothing_newer_was_published() {
    for newer in [false, true] {
        let mut bench = Bench::new();
        bench.member(1, &["a"]);
        let id = bench.speaker(2, "/json");
        bench.say(2, id, r#"{"type":"join","room":"a"}"#);
        let (slot, position) = (bench.room("a"), 0);
        if newer {
            bench.publish_labelled("a", "price_update", "{\"n\":2}");
        }
        let warm = Warm { to: id, slot, room: "a".into(), position };
        let label = Arc::new(Label { kind: "price_update".into(), is_json: true });
        let payload = Bytes::from_static(b"{\"n\":1}");
        bench.handle(Down::Warmed(Box::new(Warmed { warm, payload, label })));
        bench.pass();
        let n = if newer { 2 } else { 1 };
        let due = format!(r#"{{"type":"price_update","room":"a","data":{{"n":{n}}}}}"#);
        assert_eq!(bench.heard(2), [JOINED_A, &due]);
    }
}

#[test]
fn who_provokes_errors_and_does_not_read_them_is_not_read() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    bench.wire.space.insert(1, 0);
    let mut said = 0;
    while bench.receive(id, &masked(1, b"nonsense")) == Next::Read {
        said += 1;
        assert!(said < 10_000, "it is read for ever");
    }
    assert!(bench.shard.connection(id).is_some_and(|c| c.paused != 0));
}

#[test]
fn a_connection_that_closes_while_it_waits_for_a_room_leaves_nothing_behind() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    bench.say(1, id, r#"{"type":"join","room":"a"}"#);
    bench.say(1, id, r#"{"type":"join","room":"b"}"#);
    bench.say(1, id, r#"{"type":"leave","room":"b"}"#);
    bench.shard.close(id, CloseReason::GoingAway, &mut bench.wire, bench.now);
    bench.answer_joins();
    bench.shard.release(id, bench.now);
    assert_eq!(bench.shard.metrics().subscriptions.value(), 0);
    bench.sweep_after(Duration::from_secs(10));
    assert_eq!(bench.shard.metrics().rooms.value(), 0);
}

#[test]
fn who_joins_and_leaves_ever_new_rooms_makes_no_more_of_them_than_the_bound() {
    let engine = EngineBounds { empty_rooms_max: 8, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let id = bench.speaker(1, "/json");
    for room in 0..100 {
        bench.say(1, id, &format!(r#"{{"type":"join","room":"r{room}"}}"#));
        bench.answer_joins();
        bench.say(1, id, &format!(r#"{{"type":"leave","room":"r{room}"}}"#));
        assert!(bench.shard.metrics().rooms.value() <= 9);
    }
    bench.sweep_after(Duration::from_secs(10));
    assert_eq!(bench.shard.metrics().rooms.value(), 0);
}

#[test]
fn a_room_of_megabytes_is_refused_and_not_said_again() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    for kind in ["x", "join", "leave", "message"] {
        let text = format!(r#"{{"type":"{kind}","room":"{}","data":1}}"#, "a".repeat(60_000));
        let heard = bench.say(1, id, &text);
        assert!(heard.len() == 1 && heard[0].len() < 1000, "{kind}: {} bytes", heard[0].len());
    }
    // As long as a message may be at all.
    let mut text = br#"{"type":"x","room":""#.to_vec();
    text.resize(crate::limits::PAYLOAD_BYTES_MAX - 2, b'a');
    text.extend_from_slice(b"\"}");
    let (wire, now) = (&mut bench.wire, bench.now);
    bench.shard.dialogue(id, &text, wire, now);
    assert_eq!(bench.shard.metrics().messages_refused.value(), 5);
}

#[test]
fn the_errors_of_one_read_are_answered_together_and_beyond_a_bound_by_their_number() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    let sends = bench.shard.metrics().sends.value();
    let flood = masked(1, b"").repeat(10_000);
    bench.receive(id, &flood);
    let taken = bench.wire.taken[&1].len();
    assert!(taken < 16 * 1024, "{taken} bytes of answers");
    assert_eq!(bench.shard.metrics().sends.value() - sends, 1);
    let heard = bench.heard(1);
    assert_eq!(heard.len(), 33);
    assert!(heard[32].contains("9968 more messages"), "{}", heard[32]);
    assert_eq!(error(&bench.say(1, id, "[]")).0, "invalid", "the next read is answered as before");
}

#[test]
fn what_was_answered_before_a_close_goes_out_before_it() {
    let mut bench = Bench::new();
    let id = bench.speaker(1, "/json");
    let mut input = masked(1, b"nonsense");
    input.extend_from_slice(&masked(8, &1000u16.to_be_bytes()));
    bench.receive(id, &input);
    let taken = &bench.wire.taken[&1];
    assert!(taken.ends_with(&[0x88, 2, 3, 0xe8]), "the Close frame is the last");
    assert!(taken.len() > 100, "the error came before it");
}

#[test]
fn characters_that_a_route_forbids_are_forbidden_in_messages_too() {
    let mut bench = Bench::new();
    for (socket, path, text) in [
        (1, "/strict", r#"{"type":"join","room":"a:b"}"#),
        (2, "/strict-ingest", r#"{"type":"price_update","instrument":"a:b","price":1,"ts":1710000000}"#),
    ] {
        let id = bench.speaker(socket, path);
        assert_eq!(error(&bench.say(socket, id, text)).0, "invalid", "{text}");
        assert!(bench.shard.up.is_empty());
    }
}
