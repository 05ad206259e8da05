//! The preset `event-fanout`, as the users of that system know it: its URLs, variables, payloads, pages and bounds.

use redis_protocol::resp2::types::OwnedFrame;
use tungstenite::Message;

use crate::support::client::{Client, RawClient};
use crate::support::deadline::{SOON, eventually};
use crate::support::http;
use crate::support::on_every_driver;
use crate::support::payload::payload;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;
use crate::support::wire::{self, Frame, TEXT, header};

on_every_driver!(
    members_receive_only_the_data_of_an_envelope_and_other_payloads_as_they_are,
    what_a_client_sends_leaves_as_an_envelope_and_comes_back_to_it,
    metrics_hold_rooms_clients_and_dropped_messages,
    pages_say_which_source_publications_came_through_and_where_the_relays_time_went,
);

fn members_receive_only_the_data_of_an_envelope_and_other_payloads_as_they_are(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let mut client = Client::connect(server.address(), "/ws?room=lobby&client_id=alice");
    for (sent, received) in [
        (r#"{"room":"lobby","from":"bob","data":"hello"}"#, "hello"),
        (r#"{"data":"no \"room\" \u00e4\ud83d\ude00","x":[1,{"data":"inner"}]}"#, "no \"room\" ä😀"),
        (r#"{"room":"lobby","from":"bob","data":""}"#, ""),
        (" {\"room\":\"lobby\",\"from\":\"bob\",\"data\":\"hi\"}\n", "hi"),
        // Not such an envelope: out they go as they are.
        ("plain words", "plain words"),
        (r#"{"room":"lobby","from":"bob","data":7}"#, r#"{"room":"lobby","from":"bob","data":7}"#),
        (r#"{"type":"tick"}"#, r#"{"type":"tick"}"#),
        (r#"{"data":"cut"#, r#"{"data":"cut"#),
        (r#"["data"]"#, r#"["data"]"#),
    ] {
        redis.publish("room:lobby", sent);
        assert_eq!(client.next(), Message::text(received), "{sent}");
    }
    let no_text = [0xFF, 0x00, 0x80, b'{'];
    redis.publish("room:lobby", no_text);
    assert_eq!(client.next(), Message::binary(no_text.to_vec()));
}

fn what_a_client_sends_leaves_as_an_envelope_and_comes_back_to_it(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let mut witness = redis.connect().expect("redis takes connections");
    witness.command(&[b"PSUBSCRIBE", b"room:*"]).expect("redis takes a subscription");
    let mut alice = Client::connect(server.address(), "/ws?room=lobby&client_id=alice");
    let mut nobody = Client::connect(server.address(), "/ws?room=lobby");

    alice.send_text("hello \"ä\"");
    let envelope: serde_json::Value =
        serde_json::from_slice(&pushed(witness.answer().expect("the publication")))
            .expect("an envelope is JSON");
    assert_eq!(envelope["room"], "lobby");
    assert_eq!(envelope["from"], "alice");
    assert_eq!(envelope["data"], "hello \"ä\"");
    for client in [&mut alice, &mut nobody] {
        assert_eq!(client.next_text(), "hello \"ä\"");
    }

    let no_text = vec![0xC3, 0x28, 0x00, 0xFF];
    nobody.send(Message::binary(no_text.clone()));
    assert_eq!(pushed(witness.answer().expect("the publication")), no_text);
    for client in [&mut alice, &mut nobody] {
        assert_eq!(client.next(), Message::binary(no_text.clone()));
    }
}

fn pages_say_which_source_publications_came_through_and_where_the_relays_time_went(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let mut client = Client::connect(server.address(), "/ws?room=lobby");
    for n in 0..3 {
        redis.publish("room:lobby", format!("{n}"));
        assert_eq!(client.next_text(), format!("{n}"));
    }
    let metrics = server.metrics();
    let received = |source| metrics.labelled("corecast_publications_received_total", "source", source);
    assert_eq!([received("psubscribe room:*"), received("client"), received("http")], [3.0, 0.0, 0.0]);
    assert_eq!(server.stats()["publications"]["by_source"]["psubscribe room:*"], 3);
    // What a client says comes back through the source and counts there; only its way up is the shard's.
    client.send_text("mine");
    assert_eq!(client.next_text(), "mine");
    eventually(SOON, "every stage of the relay has taken time", || {
        let metrics = server.metrics();
        let spent = |stage| metrics.labelled("corecast_relay_busy_seconds_total", "stage", stage);
        ["parse", "place", "offer", "commands"].into_iter().all(|stage| spent(stage) > 0.0)
    });
    let busy = &server.stats()["relay"]["busy_seconds"];
    assert!(busy["parse"].as_f64().is_some_and(|seconds| seconds > 0.0), "{busy}");
}

fn metrics_hold_rooms_clients_and_dropped_messages(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 3);
    swarm.add_many(server.address(), "/ws?room=attic", 2);
    swarm.wait_open();
    let page = server.get("/metrics");
    for name in ["rooms", "clients", "dropped_messages"] {
        for line in [format!("# HELP {name} "), format!("# TYPE {name} ")] {
            assert!(page.text().lines().any(|found| found.starts_with(&line)), "{line:?} is missing");
        }
    }
    let page = server.metrics();
    assert_eq!([page.sum("rooms"), page.sum("clients"), page.sum("dropped_messages")], [2.0, 5.0, 0.0]);

    // A reader that takes nothing is closed at its 256 messages, and what it didn't get is counted.
    let stuck = swarm.add_with(server.address(), "/ws?room=cellar", Some(4096));
    swarm.wait_open();
    swarm.stall(stuck);
    let mut connection = redis.connect().expect("redis takes connections");
    let payloads = (1..=512).map(|sequence| payload('P', sequence, 8 * 1024));
    connection.publish_all("room:cellar", payloads).expect("redis takes publications");
    server.wait_metrics("the stuck reader's messages are counted as dropped", |page| {
        page.sum("dropped_messages") > 0.0 && page.sum("clients") == 5.0
    });
}

#[test]
fn healthz_is_ok_while_redis_answers_and_503_redis_down_while_not() {
    let mut redis = Redis::start();
    let server = Server::builder().preset("event-fanout").redis(&redis).start();
    let health = server.get("/healthz");
    assert_eq!((health.status, health.text().trim()), (200, "ok"));
    redis.kill9();
    server.wait_broker(false);
    let health = server.get("/healthz");
    assert_eq!((health.status, health.text().trim()), (503, "redis down"));
    // A load balancer that asks this must not empty: clients are still served.
    assert_eq!(server.get("/readyz").status, 200);
    assert_eq!(server.get("/livez").status, 200);
    redis.restart();
    server.wait_broker(true);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_request_without_a_room_gets_400_missing_room() {
    let server = Server::builder().preset("event-fanout").start();
    for target in ["/ws", "/ws?client_id=alice", "/ws?Room=lobby"] {
        let answer = http::exchange(server.address(), wire::upgrade(server.address(), target).as_bytes());
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.text().trim()), (400, "missing room"), "{target}");
    }
}

#[test]
fn its_path_is_also_under_the_presets_name_and_any_origin_may_connect() {
    let server = Server::builder().preset("event-fanout").start();
    let mut plain = Client::connect(server.address(), "/ws?room=lobby");
    let mut named = Client::connect(server.address(), "/event-fanout/ws?room=lobby");
    plain.send_text("one room");
    assert_eq!(named.next_text(), "one room");
    let request = wire::upgrade(server.address(), "/ws?room=lobby");
    let request = request.replacen("\r\n\r\n", "\r\nOrigin: https://elsewhere.example\r\n\r\n", 1);
    assert_eq!(http::exchange(server.address(), request.as_bytes()).expect("an answer").status, 101);
}

#[test]
fn its_variables_choose_address_redis_and_password() {
    let redis = Redis::start_with(&["--requirepass", "sesame"]);
    let server = Server::builder()
        .preset("event-fanout")
        .listen_unsaid()
        .broker_unsaid()
        .env("ADDR", "127.0.0.1:0")
        .env("REDIS_ADDR", &redis.address().to_string())
        .env("REDIS_PASSWORD", "sesame")
        .start();
    server.wait_broker(true);
    let mut client = Client::join(&server, "lobby");
    redis.publish("room:lobby", "by the variables");
    assert_eq!(client.next_text(), "by the variables");
}

#[test]
fn messages_of_1_mib_are_taken_and_longer_ones_refused_with_1009() {
    let redis = Redis::start();
    let server = Server::builder().preset("event-fanout").redis(&redis).start();
    let mut client = RawClient::upgraded(server.address(), "/ws?room=lobby");
    let largest = vec![b'm'; 1 << 20];
    client.send(&wire::masked(TEXT, &largest));
    assert_eq!(client.next(), Frame::Text(largest));
    client.send(&header(TEXT, (1 << 20) + 1));
    assert_eq!(client.ending().code(), Some(1009));
}

#[test]
fn rooms_that_look_like_patterns_of_redis_are_rooms_like_others() {
    let redis = Redis::start();
    let server = Server::builder().preset("event-fanout").redis(&redis).start();
    let mut star = Client::connect(server.address(), "/ws?room=%2A");
    let mut lobby = Client::connect(server.address(), "/ws?room=lobby");
    redis.publish("room:lobby", "for the lobby");
    redis.publish("room:*", "for the star");
    assert_eq!(star.next_text(), "for the star");
    assert_eq!(lobby.next_text(), "for the lobby");
}

#[test]
fn publishing_over_http_goes_through_redis_and_tells_the_receivers() {
    let redis = Redis::start();
    let server = Server::builder().preset("event-fanout").redis(&redis).start();
    let mut client = Client::join(&server, "lobby");
    let response = server.post("/publish?room=lobby", b"posted");
    assert_eq!(response.status, 200, "{response:?}");
    let answer: serde_json::Value = serde_json::from_slice(&response.body).expect("the answer is JSON");
    assert_eq!(answer["receivers"], 1, "{answer}");
    assert_eq!(client.next_text(), "posted");
}

#[test]
fn a_room_that_everybody_left_is_gone() {
    let redis = Redis::start();
    let server = Server::builder().preset("event-fanout").redis(&redis).start();
    Client::join(&server, "lobby").leave();
    eventually(SOON, "no room is left", || server.metrics().sum("rooms") == 0.0);
}

/// The payload of a `pmessage`.
#[track_caller]
fn pushed(frame: OwnedFrame) -> Vec<u8> {
    match frame {
        OwnedFrame::Array(parts) => match parts.into_iter().last() {
            Some(OwnedFrame::BulkString(payload)) => payload,
            other => panic!("{other:?} where a payload was due"),
        },
        other => panic!("{other:?} where a pmessage was due"),
    }
}

#[test]
fn what_its_envelope_makes_too_long_is_413_and_not_to_be_tried_again() {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, Driver::Epoll).start();
    // A control character is six in JSON: 3 MiB become 18.
    let answer = server.post("/publish?room=lobby", &vec![1; 3 * 1024 * 1024]);
    assert_eq!(answer.status, 413, "{answer:?}");
    let refused = server.metrics().labelled("corecast_publications_refused_total", "reason", "too_big");
    assert_eq!(refused, 1.0);
}
