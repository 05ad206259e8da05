//! Rooms that are fed by streams: nothing is lost by whatever breaks, and every node gives a publication the same number.

use redis_protocol::resp2::types::OwnedFrame;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::deadline::{SOON, eventually};
use crate::support::on_every_driver;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server, ServerBuilder};
use crate::support::speaker::Speaker;

on_every_driver!(
    nothing_is_lost_while_redis_is_killed_hangs_and_breaks_its_connections,
    any_node_resumes_any_client_and_so_does_the_server_after_its_restart,
    what_is_published_is_in_the_stream_before_anybody_has_it,
);

const STREAMS: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"
publish = "any"

[[source]]
redis = "stream orders:*"
room = "{1}"
maxlen = 10000
"#;

fn durable(redis: &Redis) -> ServerBuilder {
    Server::builder().config(STREAMS).redis(redis).shards(2)
}

#[track_caller]
fn wait_streams(server: &Server) {
    server.wait_metrics("streams are read", |page| page.sum("corecast_streams_up") == 1.0);
}

fn add(redis: &Redis, stream: &str, payload: u64) -> String {
    match redis.cli(&["XADD", stream, "*", "data", &payload.to_string()]) {
        OwnedFrame::BulkString(id) => String::from_utf8(id).expect("an id is text"),
        other => panic!("XADD answered {other:?}"),
    }
}

/// A member of the room "a" that says its offsets.
struct Member(Speaker);

impl Member {
    /// Returns the answer's data too.
    #[track_caller]
    fn join(server: &Server, join: &Value) -> (Self, Value) {
        let mut speaker = Speaker::offering(server.address(), "/ws", "corecast.v1.json");
        speaker.say(join);
        let joined = speaker.hear();
        assert_eq!(joined["type"], "joined", "{joined}");
        (Self(speaker), joined["data"].clone())
    }

    /// The next frame must be the publication of this number, which is its payload.
    #[track_caller]
    fn hears(&mut self, number: u64) {
        let frame: Value = serde_json::from_str(&self.0.hear_numbered()).expect("JSON");
        let (offset, data) = (&frame["offset"], &frame["data"]);
        assert_eq!((offset, data), (&json!(number), &json!(number.to_string())), "{frame}");
    }
}

fn join(room: &str) -> Value {
    json!({ "type": "join", "room": room })
}

fn nothing_is_lost_while_redis_is_killed_hangs_and_breaks_its_connections(driver: Driver) {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let server = durable(&redis).driver(driver).start();
    let (mut member, joined) = Member::join(&server, &join("a"));
    let mut raw = Client::join(&server, "a");
    let mut number = 0;
    let mut round = |redis: &Redis, member: &mut Member| {
        for _ in 0..5 {
            number += 1;
            add(redis, "orders:a", number);
        }
        for due in number - 4..=number {
            member.hears(due);
            assert_eq!(raw.next_text(), due.to_string());
        }
    };
    round(&redis, &mut member);
    redis.kill9();
    server.wait_broker(false);
    redis.restart();
    round(&redis, &mut member);
    for kind in ["normal", "pubsub"] {
        redis.cli(&["CLIENT", "KILL", "TYPE", kind]);
        round(&redis, &mut member);
    }
    redis.cli(&["SCRIPT", "FLUSH"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    round(&redis, &mut member);
    redis.sigstop();
    server.wait_broker(false);
    redis.sigcont();
    round(&redis, &mut member);

    let (mut late, standing) = Member::join(
        &server,
        &json!({ "type": "join", "room": "a", "resume": { "epoch": joined["epoch"], "offset": 7 } }),
    );
    assert_eq!((&standing["recovered"], &standing["epoch"]), (&json!(true), &joined["epoch"]), "{standing}");
    (8..=number).for_each(|due| late.hears(due));
    let page = server.metrics();
    assert_eq!(page.sum("corecast_gaps_total"), 0.0, "nothing was lost");
    assert_eq!(server.stats()["ledger"]["balances"], true);
}

fn any_node_resumes_any_client_and_so_does_the_server_after_its_restart(driver: Driver) {
    let redis = Redis::start();
    for number in 1..=3 {
        add(&redis, "orders:a", number);
    }
    let first = durable(&redis).driver(driver).start();
    let (mut member, joined) = Member::join(&first, &join("a"));
    assert_eq!(joined["offset"], 3, "entries that were there count");
    add(&redis, "orders:a", 4);
    member.hears(4);
    let resume = json!({ "type": "join", "room": "a", "resume": { "epoch": joined["epoch"], "offset": 2 } });

    // Neither has been there before, and one has only just begun.
    let second = durable(&redis).driver(driver).start();
    let (mut elsewhere, standing) = Member::join(&second, &resume);
    assert_eq!((&standing["recovered"], &standing["offset"]), (&json!(true), &json!(2)), "{standing}");
    (3..=4).for_each(|due| elsewhere.hears(due));
    add(&redis, "orders:a", 5);
    for member in [&mut member, &mut elsewhere] {
        member.hears(5);
    }
    drop(first);
    for number in 6..=150 {
        add(&redis, "orders:a", number);
    }
    let again = durable(&redis).driver(driver).start();
    let (mut back, standing) = Member::join(&again, &resume);
    assert_eq!(standing["recovered"], true, "{standing}");
    (3..=150).for_each(|due| back.hears(due));

    let (mut newcomer, standing) =
        Member::join(&again, &json!({ "type": "join", "room": "a", "first": "oldest" }));
    assert_eq!(standing["offset"], 0, "{standing}");
    (1..=150).for_each(|due| newcomer.hears(due));
    let read = |target: &str| -> Value {
        let response = again.get(target);
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_slice(&response.body).expect("JSON")
    };
    // Somebody else's stream, which nobody is in.
    add(&redis, "orders:b", 1);
    add(&redis, "orders:b", 2);
    let history = read("/history?room=b&since=1");
    assert_eq!(
        history["publications"],
        json!([{ "offset": 2, "type": "message", "data": "2" }]),
        "{history}"
    );

    // What has been trimmed meanwhile is missing for certain, and said to be.
    redis.cli(&["XTRIM", "orders:a", "MAXLEN", "10"]);
    let third = durable(&redis).driver(driver).start();
    let (mut late, standing) = Member::join(&third, &resume);
    assert_eq!((&standing["recovered"], &standing["offset"]), (&json!(false), &json!(150)), "{standing}");
    let mut oldest = Member::join(&third, &json!({ "type": "join", "room": "a", "first": "oldest" })).0;
    (141..=150).for_each(|due| oldest.hears(due));
    add(&redis, "orders:a", 151);
    late.hears(151);
    redis.cli(&["DEL", "orders:a"]);
    add(&redis, "orders:a", 1);
    let mut gap = late.0.hear();
    if gap["type"] != "gap" {
        // It was read before anybody had looked whether it is still the same stream.
        gap = late.0.hear();
    }
    assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("gap"), &json!("broker")), "{gap}");
    assert_ne!(gap["data"]["epoch"], joined["epoch"]);
}

fn what_is_published_is_in_the_stream_before_anybody_has_it(driver: Driver) {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let server = durable(&redis).driver(driver).start();
    wait_streams(&server);
    let (mut member, _) = Member::join(&server, &join("a"));
    let posted = server.post("/publish?room=a&durable=1", b"1");
    assert_eq!(posted.status, 200, "{posted:?}");
    let body: Value = serde_json::from_slice(&posted.body).expect("JSON");
    assert!(body["id"].as_str().is_some_and(|id| id.contains('-')), "{body}");
    member.hears(1);
    let mut raw = Client::join(&server, "a");
    raw.send_text("2");
    member.hears(2);
    assert_eq!(redis.cli(&["XLEN", "orders:a"]), OwnedFrame::Integer(2));
    redis.cli(&["SCRIPT", "FLUSH"]);
    assert_eq!(server.post("/publish?room=a", b"3").status, 200, "the script is sent anew");
    member.hears(3);
    assert_eq!(server.post("/publish?room=a&durable=yes", b"x").status, 400);

    // Nothing else has a number in such a room.
    redis.publish("orders:a", "x");
    redis.publish("a", "x");
    redis.kill9();
    server.wait_broker(false);
    eventually(SOON, "what can't be kept is not taken", || {
        server.post("/publish?room=a", b"x").status == 503
    });
    redis.restart();
    wait_streams(&server);
    eventually(SOON, "it is taken again", || server.post("/publish?room=a", b"4").status == 200);
    member.hears(4);

    let plain = Server::builder().redis(&redis).start();
    let refused = plain.post("/publish?room=a&durable=1", b"x");
    assert_eq!(refused.status, 409, "{refused:?}");
    let said = String::from_utf8_lossy(&refused.body).into_owned();
    assert!(said.contains("room:a") && said.contains("keeps nothing"), "{said}");
}

#[test]
fn what_is_no_stream_is_told_and_tried_again() {
    let redis = Redis::start();
    redis.cli(&["SET", "orders:a", "text"]);
    let server = durable(&redis).start();
    wait_streams(&server);
    let (mut member, _) = Member::join(&server, &join("a"));
    let log = server.wait_log("it says why", |log| log.contains("can't be followed"));
    assert!(log.contains("orders:a"), "{log}");
    redis.cli(&["DEL", "orders:a"]);
    add(&redis, "orders:a", 1);
    let gap = member.0.hear();
    assert_eq!((&gap["type"], &gap["data"]["offset"]), (&json!("gap"), &json!(1)), "{gap}");
    add(&redis, "orders:a", 2);
    member.hears(2);
}

#[test]
fn entries_of_other_programs_are_read_back_however_many_fields_they_have() {
    let redis = Redis::start();
    let server = durable(&redis).start();
    wait_streams(&server);
    let fields = (0..120).flat_map(|field| [format!("f{field}"), field.to_string()]);
    let fields: Vec<String> = fields.collect();
    let command = ["XADD", "orders:a", "*"].into_iter().chain(fields.iter().map(String::as_str));
    let command: Vec<&str> = command.collect();
    (0..150).for_each(|_| drop(redis.cli(&command)));
    let (mut member, standing) =
        Member::join(&server, &json!({ "type": "join", "room": "a", "first": "oldest" }));
    assert_eq!(standing["offset"], 0, "{standing}");
    for number in 1..=150 {
        let frame: Value = serde_json::from_str(&member.0.hear_numbered()).expect("JSON");
        assert_eq!((&frame["offset"], &frame["data"]["f119"]), (&json!(number), &json!("119")), "{frame}");
    }
    assert_eq!(server.metrics().sum("corecast_stream_breaks_total"), 0.0);
}

#[test]
fn who_joins_before_redis_is_there_has_the_numbers_of_the_stream() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    add(&redis, "orders:a", 1);
    redis.kill9();
    let server = Server::builder().config(STREAMS).redis_url(&redis.url()).shards(2).start();
    let address = server.address();
    let joining = std::thread::spawn(move || {
        let mut speaker = Speaker::offering(address, "/ws", "corecast.v1.json");
        speaker.say(&join("a"));
        speaker.hear()
    });
    server.wait_metrics("it waits", |page| page.sum("corecast_rooms") == 1.0);
    redis.restart();
    let joined = joining.join().expect("an answer");
    assert_eq!(joined["data"]["offset"], 1, "{joined}");
    redis.kill9();
    server.wait_broker(false);
    let (_, standing) = Member::join(&server, &join("a"));
    assert_eq!(standing["offset"], 1, "whose numbers are known is joined at once");
}
