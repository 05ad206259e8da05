//! The preset `backbone`, as its users know it: rooms by message, events of ingestors, and what is refused.

mod join;
mod last_value;
mod load;
mod nodes;
mod programs;

use std::net::SocketAddr;

use redis_protocol::resp2::types::OwnedFrame;
use serde_json::{Value, json};

use crate::support::client::RawClient;
use crate::support::http;
use crate::support::on_both_drivers;
use crate::support::redis::{Connection, Redis};
use crate::support::scratch::Scratch;
use crate::support::server::{Driver, Server, ServerBuilder};
use crate::support::speaker::{Speaker, price};
use crate::support::tool::repository;
use crate::support::wire::{self, TEXT, masked};

on_both_drivers!(
    consumers_join_leave_and_speak_in_the_systems_own_forms,
    a_price_goes_to_the_room_of_its_instrument_as_it_was_written,
    what_breaks_a_rule_is_answered_by_the_name_of_the_field_and_goes_nowhere,
    what_is_no_message_costs_its_sender_an_error_and_nobody_else_anything,
);

/// `corecast serve --preset backbone` with one shard.
fn backbone(redis: &Redis) -> ServerBuilder {
    Server::builder().preset("backbone").redis(redis).shards(1)
}

fn consumers_join_leave_and_speak_in_the_systems_own_forms(driver: Driver) {
    let redis = Redis::start();
    let server = backbone(&redis).driver(driver).start();
    let [mut alice, mut bob] = [Speaker::consumer(server.address()), Speaker::consumer(server.address())];
    for speaker in [&mut alice, &mut bob] {
        speaker.join("lobby");
    }
    for data in [r#""hello""#, r#"{"price": 60214.30,  "list":[1,null]}"#, "7.50", r#""\"ä\"""#, "null"] {
        alice.say_text(&format!(r#"{{"type":"message","room":"lobby","data":{data}}}"#));
        for speaker in [&mut alice, &mut bob] {
            assert_eq!(speaker.hear_text(), format!(r#"{{"type":"message","room":"lobby","data":{data}}}"#));
        }
    }

    // Joining twice is joining once.
    bob.join("lobby");
    alice.say_text(r#"{"type":"leave","room":"lobby"}"#);
    assert_eq!(alice.hear_text(), r#"{"type":"left","room":"lobby","data":null}"#);
    let hello = json!({ "type": "message", "room": "lobby", "data": "while she is away" });
    bob.say(&hello);
    assert_eq!(bob.hear(), hello);
    // Who is not in a room neither hears it nor speaks in it, and can't leave it.
    assert_eq!(alice.refused(&hello, "not_joined"), "room");
    assert_eq!(alice.refused(&json!({ "type": "leave", "room": "lobby" }), "not_joined"), "room");
    alice.join("lobby");
    bob.say(&json!({ "type": "message", "room": "lobby", "data": "she is back" }));
    assert_eq!(alice.hear_data("message", "lobby"), "she is back");
    assert_eq!(bob.hear_data("message", "lobby"), "she is back");
}

fn a_price_goes_to_the_room_of_its_instrument_as_it_was_written(driver: Driver) {
    let redis = Redis::start();
    let server = backbone(&redis).driver(driver).start();
    let mut witness = witness(&redis);
    let mut bitcoin = Speaker::in_room(server.address(), "BTC_USDT");
    let mut ether = Speaker::in_room(server.address(), "ETH_USDT");
    let mut feed = Speaker::ingestor(server.address());
    let update =
        r#"{"type":"price_update","instrument":"BTC_USDT","price":60214.30,"ts":1710000000, "venue":"x"}"#;
    feed.say_text(update);
    assert_eq!(
        bitcoin.hear_text(),
        format!(r#"{{"type":"price_update","room":"BTC_USDT","data":{update}}}"#)
    );
    let envelope = envelope(&mut witness);
    assert_eq!((&envelope["room"], &envelope["type"]), (&"BTC_USDT".into(), &"price_update".into()));
    assert_eq!(envelope["data"]["venue"], "x");
    for name in ["origin", "instance_id"] {
        assert!(envelope[name].as_str().is_some_and(|name| !name.is_empty()), "{name}: {envelope}");
    }
    // A binary frame says the same as a text frame, and nobody else hears of either.
    feed.say_binary(price("ETH_USDT", 3000.5).to_string().as_bytes());
    assert_eq!(ether.hear_data("price_update", "ETH_USDT"), price("ETH_USDT", 3000.5));
}

fn what_breaks_a_rule_is_answered_by_the_name_of_the_field_and_goes_nowhere(driver: Driver) {
    let redis = Redis::start();
    let server = backbone(&redis).driver(driver).start();
    let mut witness = witness(&redis);
    let mut members = ["BTC", "lobby"].map(|room| Speaker::in_room(server.address(), room));
    let mut feed = Speaker::ingestor(server.address());
    let long = "r".repeat(256);
    let of_ingestors = [
        (json!({ "type": "join", "room": "BTC" }), "role", "type"),
        (json!({ "type": "leave", "room": "BTC" }), "role", "type"),
        (json!({ "type": "message", "room": "lobby", "data": 1 }), "role", "type"),
        (json!({ "type": "price_update", "price": 1, "ts": 1 }), "invalid", "instrument"),
        (
            json!({ "type": "price_update", "instrument": "B TC", "price": 1, "ts": 1 }),
            "invalid",
            "instrument",
        ),
        (json!({ "type": "price_update", "instrument": "BTC", "price": "1", "ts": 1 }), "invalid", "price"),
        (json!({ "type": "price_update", "instrument": "BTC", "price": -1, "ts": 1 }), "invalid", "price"),
        (json!({ "type": "price_update", "instrument": "BTC", "price": 0, "ts": 1 }), "invalid", "price"),
        (json!({ "type": "price_update", "instrument": "BTC", "price": 1, "ts": 0 }), "invalid", "ts"),
        (json!({ "type": "price_update", "instrument": "BTC", "price": 1 }), "invalid", "ts"),
        (json!({ "type": "event", "room": "BTC" }), "invalid", "data"),
        (json!({ "type": "event", "data": 1 }), "invalid", "room"),
        (json!({ "type": "event", "room": "BTC", "data": 1, "id": 7 }), "invalid", "id"),
        (json!({ "type": "event", "room": "a\u{1f}b", "data": 1 }), "invalid", "room"),
        (json!({ "type": "weather", "room": "BTC", "data": 1 }), "invalid", "type"),
    ];
    for (message, code, field) in &of_ingestors {
        assert_eq!(feed.refused(message, code), *field, "{message}");
    }
    let of_consumers = [
        (price("BTC", 1.0), "role", "type"),
        (json!({ "type": "event", "room": "lobby", "data": 1 }), "role", "type"),
        (json!({ "type": "message", "room": "attic", "data": 1 }), "not_joined", "room"),
        (json!({ "type": "message", "room": "lobby" }), "invalid", "data"),
        (json!({ "type": "message", "data": 1 }), "invalid", "room"),
        (json!({ "type": "join" }), "invalid", "room"),
        (json!({ "type": "join", "room": "" }), "invalid", "room"),
        (json!({ "type": "join", "room": 7 }), "invalid", "room"),
        (json!({ "type": "join", "room": "a\nb" }), "invalid", "room"),
        (json!({ "type": "join", "room": long }), "invalid", "room"),
        (json!({ "type": "leave", "room": null }), "invalid", "room"),
    ];
    for (message, code, field) in &of_consumers {
        assert_eq!(members[1].refused(message, code), *field, "{message}");
    }
    let refused = (of_ingestors.len() + of_consumers.len()) as f64;
    assert_eq!(server.metrics().sum("corecast_messages_refused_total"), refused);

    // Nobody has heard of any of it: the next thing there is to hear is what breaks no rule.
    assert_eq!(last_values(&redis), 0);
    feed.say(&price("BTC", 1.0));
    assert_eq!(members[0].hear_data("price_update", "BTC"), price("BTC", 1.0));
    members[1].say(&json!({ "type": "message", "room": "lobby", "data": "still here" }));
    assert_eq!(members[1].hear_data("message", "lobby"), "still here");
    assert_eq!(envelope(&mut witness)["data"], price("BTC", 1.0));
    assert_eq!(envelope(&mut witness)["data"], "still here");
}

fn what_is_no_message_costs_its_sender_an_error_and_nobody_else_anything(driver: Driver) {
    let redis = Redis::start();
    let server = backbone(&redis).driver(driver).arg("--message-bytes-max").arg("1MiB").start();
    let mut bystander = Speaker::in_room(server.address(), "lobby");
    let mut consumer = Speaker::in_room(server.address(), "lobby");
    let filler = "x".repeat((1 << 20) - 64);
    let fields: String = (0..200).map(|n| format!(",\"f{n}\":{n}")).collect();
    let nested = |levels: usize| ["[".repeat(levels), "]".repeat(levels)].concat();
    for (said, field) in [
        (String::new(), ""),
        ("hello".to_owned(), ""),
        ("[]".to_owned(), ""),
        ("{".to_owned(), ""),
        (r#"{"type":"message","room":"lobby","data":1}{}"#.to_owned(), ""),
        (r#"{"room":"lobby"}"#.to_owned(), "type"),
        (r#"{"type":7}"#.to_owned(), "type"),
        (format!(r#"{{"type":"{}"}}"#, "t".repeat(65)), "type"),
        (r#"{"type":"message","room":"lobby","data":1,"data":2}"#.to_owned(), "data"),
        (r#"{"type":"message","room":"attic","room":"lobby","data":1}"#.to_owned(), "room"),
        (r#"{"type":"message","r\u006fom":"attic","room":"lobby","data":1}"#.to_owned(), "room"),
        (format!(r#"{{"type":"message","room":"lobby","data":{}}}"#, nested(500_000)), ""),
        (format!(r#"{{"type":"message","room":"lobby","data":{}}}"#, nested(127)), ""),
        (format!(r#"{{"type":"message","room":"lobby","data":1{fields}}}"#), ""),
        (format!(r#"{{"type":"message","room":"{filler}","data":1}}"#), "room"),
        (format!(r#"{{"type":"{filler}"}}"#), "type"),
    ] {
        consumer.say_text(&said);
        let shown: String = said.chars().take(80).collect();
        assert_eq!(consumer.hear_refusal("invalid"), field, "{shown}");
    }
    consumer.say_binary(&[0xff, 0xfe]);
    assert_eq!(consumer.hear_refusal("invalid"), "");
    // What is long and deep within the bounds is taken.
    let largest = json!({ "type": "message", "room": "lobby", "data": filler });
    consumer.say(&largest);
    assert_eq!(bystander.hear(), largest);
    let deepest = format!(r#"{{"type":"message","room":"lobby","data":{}}}"#, nested(126));
    consumer.say_text(&deepest);
    assert_eq!(bystander.hear_text(), deepest);

    // Of a text frame that is no text, and of a message beyond the bound, nothing is read.
    for (frame, code) in [(masked(TEXT, &[b'{', 0xff]), 1007), (wire::header(TEXT, (1 << 20) + 1), 1009)] {
        let mut raw = RawClient::upgraded(server.address(), "/ws");
        raw.send(&frame);
        assert_eq!(raw.ending().code(), Some(code));
    }
    consumer.say(&json!({ "type": "message", "room": "lobby", "data": "after all that" }));
    assert_eq!(bystander.hear_data("message", "lobby"), "after all that");
}

#[test]
fn a_domain_in_a_file_judges_what_ingestors_send() {
    let redis = Redis::start();
    let file = repository("deploy/domains/sensors.json");
    let server = backbone(&redis).arg("--domain-files").arg(&file.to_string_lossy()).start();
    let mut consumer = Speaker::in_room(server.address(), "plant-7");
    let mut feed = Speaker::ingestor(server.address());
    let reading = |sensor: &str, value: f64| {
        let values = json!([{ "quantity": "temperature", "value": value }]);
        json!({
            "type": "sensor_reading", "site": "plant-7", "sensor": sensor, "at": "2026-03-01T12:00:00Z", "values": values,
        })
    };
    assert_eq!(feed.refused(&reading("t-1", -300.0), "invalid"), "values[0].value");
    assert_eq!(feed.refused(&reading("T 1", 21.5), "invalid"), "sensor");
    let mut without_site = reading("t-1", 21.5);
    without_site.as_object_mut().expect("a reading is an object").remove("site");
    assert_eq!(feed.refused(&without_site, "invalid"), "site");
    feed.say(&reading("t-1", 21.5));
    assert_eq!(consumer.hear_data("sensor_reading", "plant-7"), reading("t-1", 21.5));
    // The built-in domains are still there.
    feed.say(&price("plant-7", 1.0));
    assert_eq!(consumer.hear_data("price_update", "plant-7"), price("plant-7", 1.0));
}

#[test]
fn a_server_whose_domain_file_is_wrong_does_not_start() {
    let scratch = Scratch::new();
    let twice = scratch
        .write("twice.json", r#"{"name":"again","event_types":["price_update"],"room":"/r","schema":{}}"#);
    let broken = scratch.write("broken.json", "{");
    for (path, word) in
        [(twice, "price_update"), (broken, "broken.json"), (scratch.path("none.json"), "none.json")]
    {
        let server = Server::builder().preset("backbone").arg("--domain-files").arg(&path.to_string_lossy());
        let finished = server.start_in_vain();
        assert_eq!(finished.code(), Some(78), "{finished:?}");
        assert!(finished.stderr.contains(word), "{finished:?}");
    }
    let finished = Server::builder().preset("backbone").arg("--domains").arg("trading,nope").start_in_vain();
    assert_eq!(finished.code(), Some(2), "a flag that makes no sense: {finished:?}");
    assert!(finished.stderr.contains("--domains"), "{finished:?}");
}

#[test]
fn without_domains_ingestors_send_any_type_but_those_of_the_server() {
    let server = Server::builder()
        .config(
            r#"
            [[route]]
            path = "/ws"
            dialect = "json"

            [[route]]
            path = "/ws/ingest"
            dialect = "json"
            role = "ingestor"
            publish = "any"
            "#,
        )
        .start();
    let mut consumer = Speaker::in_room(server.address(), "lobby");
    let mut feed = Speaker::ingestor(server.address());
    for kind in ["joined", "left", "error"] {
        let forged = json!({ "type": kind, "room": "lobby", "data": null });
        assert_eq!(feed.refused(&forged, "invalid"), "type", "{kind}");
    }
    feed.say(&json!({ "type": "weather", "room": "lobby", "data": "rain" }));
    assert_eq!(consumer.hear_data("weather", "lobby"), "rain");
}

#[test]
fn a_connection_is_in_64_rooms_at_most_and_may_leave_one_for_another() {
    let server = Server::builder().preset("backbone").start();
    let mut consumer = Speaker::consumer(server.address());
    for room in 0..64 {
        consumer.join(&format!("r{room}"));
    }
    let one_more = json!({ "type": "join", "room": "r64" });
    assert_eq!(consumer.refused(&one_more, "too_many_rooms"), "room");
    consumer.join("r7");
    consumer.leave("r7");
    consumer.join("r64");
    assert_eq!(server.metrics().sum("corecast_subscriptions"), 64.0);
    consumer.hang_up();
    server.wait_metrics("its rooms are left", |page| page.sum("corecast_subscriptions") == 0.0);
}

#[test]
fn joins_and_leaves_that_overtake_their_answers_end_where_the_last_one_says() {
    let redis = Redis::start();
    let server = backbone(&redis).shards(2).start();
    let mut hasty = Speaker::consumer(server.address());
    for room in 0..1000 {
        for kind in ["join", "leave", "join", "join", "leave"] {
            hasty.say(&json!({ "type": kind, "room": format!("r{room}") }));
        }
    }
    hasty.say(&json!({ "type": "join", "room": "last" }));
    let (mut left, mut inside) = (0, None);
    loop {
        let frame = hasty.hear();
        match (frame["type"].as_str(), frame["room"].as_str()) {
            (Some("joined"), Some("last")) => break,
            (Some("joined"), Some(room)) => inside = Some(room.to_owned()),
            (Some("left"), Some(_)) => (left, inside) = (left + 1, None),
            _ => panic!("{frame}"),
        }
    }
    // A leave is always answered, a join unless it was taken back before.
    assert_eq!((left, inside), (2000, None));
    for room in ["r0", "r999", "last"] {
        redis.publish("chat:events", json!({ "room": room, "type": "note", "data": room }).to_string());
    }
    assert_eq!(hasty.hear_data("note", "last"), "last");
    assert_eq!(server.metrics().sum("corecast_subscriptions"), 1.0);

    // Whoever goes with joins unanswered leaves nothing behind.
    for _ in 0..20 {
        let mut hasty = Speaker::consumer(server.address());
        (0..64).for_each(|room| hasty.say(&json!({ "type": "join", "room": format!("q{room}") })));
    }
    server.wait_metrics("all of them are out", |page| {
        page.sum("corecast_websockets") == 1.0 && page.sum("corecast_subscriptions") == 1.0
    });
}

#[test]
fn ingestors_show_the_key_where_one_is_configured_and_consumers_never() {
    let scratch = Scratch::new();
    let key = scratch.write("key", "sesame\n");
    let server =
        Server::builder().preset("backbone").arg("--api-key-file").arg(&key.to_string_lossy()).start();
    for (header, status) in
        [("", 401), ("X-API-Key: other\r\n", 401), ("X-API-Key: \r\n", 401), ("X-API-Key: sesame\r\n", 101)]
    {
        assert_eq!(upgrade_status(server.address(), "/ws/ingest", header), status, "{header:?}");
    }
    assert_eq!(upgrade_status(server.address(), "/backbone/ws/ingest", ""), 401);
    assert_eq!(upgrade_status(server.address(), "/ws", ""), 101);
    // Its clients send one that nobody checks today.
    let open = Server::builder().preset("backbone").start();
    assert_eq!(upgrade_status(open.address(), "/ws/ingest", "X-API-Key: whatever\r\n"), 101);
}

#[test]
fn a_route_whose_publications_are_ignored_still_lets_its_consumers_join() {
    let server = Server::builder()
        .config("[[route]]\npath = \"/ws\"\ndialect = \"json\"\npublish = \"ignore\"\n")
        .start();
    let mut consumer = Speaker::in_room(server.address(), "lobby");
    consumer.say(&json!({ "type": "message", "room": "lobby", "data": "nobody hears this" }));
    consumer.leave("lobby");
    assert_eq!(server.metrics().sum("corecast_messages_ignored_total"), 1.0);
}

#[test]
fn its_variables_choose_port_and_redis() {
    let redis = Redis::start();
    let server = Server::builder()
        .preset("backbone")
        .listen_unsaid()
        .broker_unsaid()
        .env("PORT", "0")
        .env("REDIS_HOST", "127.0.0.1")
        .env("REDIS_PORT", &redis.address().port().to_string())
        .start();
    server.wait_broker(true);
    let mut consumer = Speaker::in_room(SocketAddr::from(([127, 0, 0, 1], server.address().port())), "lobby");
    redis.publish(
        "chat:events",
        r#"{"room":"lobby","type":"note","data":"by the variables","origin":"other"}"#,
    );
    assert_eq!(consumer.hear_data("note", "lobby"), "by the variables");
}

/// The status with which an upgrade with this header line is answered.
#[track_caller]
fn upgrade_status(address: SocketAddr, target: &str, header: &str) -> u16 {
    let request = wire::upgrade(address, target).replacen("\r\n\r\n", &format!("\r\n{header}\r\n"), 1);
    http::exchange(address, request.as_bytes()).expect("an answer").status
}

/// A subscriber of the system's channel.
#[track_caller]
fn witness(redis: &Redis) -> Connection {
    let mut witness = redis.connect().expect("redis takes connections");
    witness.command(&[b"SUBSCRIBE", b"chat:events"]).expect("redis takes a subscription");
    witness
}

/// The next envelope that a witness sees.
#[track_caller]
fn envelope(witness: &mut Connection) -> Value {
    match witness.answer().expect("a publication") {
        OwnedFrame::Array(parts) => match parts.into_iter().last() {
            Some(OwnedFrame::BulkString(payload)) => {
                serde_json::from_slice(&payload).expect("an envelope is JSON")
            }
            other => panic!("{other:?} where a payload was due"),
        },
        other => panic!("{other:?} where a message was due"),
    }
}

/// How many instruments have a last value.
#[track_caller]
fn last_values(redis: &Redis) -> usize {
    match redis.cli(&["KEYS", "last_price:*"]) {
        OwnedFrame::Array(keys) => keys.len(),
        other => panic!("KEYS answered {other:?}"),
    }
}
