//! Coming back: who was away gets what it missed, or is told that something is missing; in every dialect.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Client, RawClient};
use crate::support::http;
use crate::support::on_every_driver;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server, ServerBuilder};
use crate::support::speaker::Speaker;
use crate::support::wire;

on_every_driver!(
    a_client_of_the_json_dialect_gets_what_it_missed_and_then_what_is_live,
    a_raw_client_comes_back_to_its_place_by_its_url,
    an_event_source_comes_back_by_the_id_of_its_last_event,
    a_poll_waits_for_what_comes_next,
    a_poll_or_a_stream_whose_client_hangs_up_gives_its_descriptor_back_at_once,
    a_break_of_redis_is_told_and_ends_the_epoch,
);

const HISTORY: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"
publish = "any"

[[room]]
name = "*"
history = { frames = 4, bytes = "1MiB", age = "5m" }
"#;

fn with_history(driver: Driver) -> ServerBuilder {
    Server::builder().config(HISTORY).driver(driver).shards(2)
}

/// A connection of the JSON dialect on the plain path, by its subprotocol, in no room.
#[track_caller]
fn speaker(server: &Server) -> Speaker {
    Speaker::offering(server.address(), "/ws", "corecast.v1.json")
}

fn numbered(text: &str) -> (u64, String) {
    let frame: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    (frame["offset"].as_u64().unwrap_or_default(), frame["data"].as_str().unwrap_or_default().to_owned())
}

fn a_client_of_the_json_dialect_gets_what_it_missed_and_then_what_is_live(driver: Driver) {
    let server = with_history(driver).start();
    let mut first = speaker(&server);
    first.say(&json!({ "type": "join", "room": "lobby" }));
    let joined = first.hear();
    let epoch = joined["data"]["epoch"].as_str().expect("an epoch").to_owned();
    server.publish("lobby", b"1");
    assert_eq!(numbered(&first.hear_numbered()), (1, "1".to_owned()));
    first.hang_up();
    for payload in [b"2", b"3", b"4"] {
        server.publish("lobby", payload);
    }

    let mut back = speaker(&server);
    let resume = |offset: u64| json!({ "type": "join", "room": "lobby", "resume": { "epoch": epoch, "offset": offset } });
    back.say(&resume(1));
    assert_eq!(back.hear()["data"], json!({ "epoch": epoch, "offset": 1, "recovered": true }));
    server.publish("lobby", b"5");
    for offset in 2..=5 {
        assert_eq!(numbered(&back.hear_numbered()), (offset, offset.to_string()));
    }
    // Four are kept: who has none has missed the first for good.
    let mut late = speaker(&server);
    late.say(&resume(0));
    assert_eq!(late.hear()["data"], json!({ "epoch": epoch, "offset": 5, "recovered": false }));
    let mut newcomer = speaker(&server);
    newcomer.say(&json!({ "type": "join", "room": "lobby", "first": 2 }));
    assert_eq!(newcomer.hear()["data"]["offset"], 3);
    for offset in 4..=5 {
        assert_eq!(numbered(&newcomer.hear_numbered()), (offset, offset.to_string()));
    }
    assert_eq!(newcomer.refused(&json!({ "type": "join", "room": "x", "first": "all" }), "invalid"), "first");

    let page = server.metrics();
    assert_eq!(page.labelled("corecast_recoveries_total", "outcome", "whole"), 1.0);
    assert_eq!(page.labelled("corecast_recoveries_total", "outcome", "lost"), 1.0);
    let stats = server.stats();
    assert_eq!(stats["ledger"]["balances"], true, "{stats}");

    // Another run of the server has other numbers, whatever they are.
    let again = with_history(driver).start();
    let mut stranger = speaker(&again);
    stranger.say(&resume(0));
    assert_eq!(stranger.hear()["data"]["recovered"], false);
}

/// The answer to an upgrade, and the texts that follow it.
fn upgraded(server: &Server, target: &str, protocol: Option<&str>) -> (http::Response, RawClient) {
    let mut client = RawClient::open(server.address());
    let mut request = wire::upgrade(server.address(), target);
    if let Some(protocol) = protocol {
        request = request.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"));
    }
    client.send(request.as_bytes());
    let response = client.response();
    assert_eq!(response.status, 101, "{response:?}");
    (response, client)
}

fn a_raw_client_comes_back_to_its_place_by_its_url(driver: Driver) {
    let server = with_history(driver).start();
    let (response, mut first) = upgraded(&server, "/ws?room=lobby", Some("ws+meta.nchan"));
    assert_eq!(response.header("sec-websocket-protocol"), Some("ws+meta.nchan"));
    let epoch = response.header("corecast-epoch").expect("an epoch").to_owned();
    server.publish("lobby", b"one");
    let due = format!("id: {epoch}:1\ncontent-type: text/plain\n\none");
    assert_eq!(first.next_text(), due);
    drop(first);
    server.publish("lobby", b"two");

    let (response, mut back) = upgraded(&server, &format!("/ws?room=lobby&last_event_id={epoch}:1"), None);
    let told = |name: &str| response.header(name).map(str::to_owned);
    assert_eq!(told("corecast-recovered").as_deref(), Some("true"), "{response:?}");
    assert_eq!(told("corecast-offset").as_deref(), Some("1"));
    assert_eq!(back.next_text(), "two");
    let (response, _) = upgraded(&server, "/ws?room=lobby&epoch=0&offset=1", None);
    assert_eq!(response.header("corecast-recovered"), Some("false"));
    let refused = server.get("/ws?room=lobby&offset=x");
    assert!(refused.status >= 400, "{refused:?}");
}

/// Server-sent events, as they come.
struct Stream(BufReader<TcpStream>);

impl Stream {
    fn open(server: &Server, target: &str, last_event_id: Option<&str>) -> Self {
        let mut stream = http::connect(server.address()).expect("it listens");
        let id = last_event_id.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {}\r\n{id}\r\n", server.address()).expect("it reads");
        let mut stream = Self(BufReader::new(stream));
        let head = stream.block("\r\n");
        assert!(head[0].starts_with("HTTP/1.1 200 "), "{head:?}");
        assert!(head.contains(&"Content-Type: text/event-stream".to_owned()), "{head:?}");
        assert!(stream.block("\n")[0].starts_with("retry: "));
        stream
    }

    /// Lines up to an empty one.
    fn block(&mut self, ending: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line).expect("a line in time");
            assert!(read > 0, "the stream ended after {lines:?}");
            match line.strip_suffix(ending) {
                Some("") => return lines,
                Some(line) => lines.push(line.to_owned()),
                None => panic!("{line:?} doesn't end with {ending:?}"),
            }
        }
    }
}

fn an_event_source_comes_back_by_the_id_of_its_last_event(driver: Driver) {
    let server = with_history(driver).start();
    let mut stream = Stream::open(&server, "/sse?room=lobby", None);
    let start = stream.block("\n");
    let epoch = start[0].strip_prefix("id: ").and_then(|id| id.strip_suffix(":0")).expect("an id").to_owned();
    server.publish("lobby", b"one\ntwo");
    assert_eq!(
        stream.block("\n"),
        [format!("id: {epoch}:1"), "data: one".to_owned(), "data: two".to_owned()]
    );
    drop(stream);
    server.publish("lobby", b"three");
    let mut back = Stream::open(&server, "/sse?room=lobby", Some(&format!("{epoch}:1")));
    assert_eq!(back.block("\n"), [format!("id: {epoch}:1")]);
    assert_eq!(back.block("\n"), [format!("id: {epoch}:2"), "data: three".to_owned()]);
    let mut stranger = Stream::open(&server, "/sse?room=lobby", Some("1699:0"));
    assert_eq!(stranger.block("\n")[..2], [format!("id: {epoch}:2"), "event: gap".to_owned()]);
    server.wait_metrics("who has gone is no stream", |page| page.sum("corecast_event_streams") == 2.0);
}

fn a_poll_waits_for_what_comes_next(driver: Driver) {
    let server = with_history(driver).start();
    let read = |target: &str| -> Value {
        let response = server.get(target);
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_slice(&response.body).expect("JSON")
    };
    let began = Instant::now();
    let nothing = read("/poll?room=lobby&wait=100ms");
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert_eq!((&nothing["publications"], &nothing["offset"]), (&json!([]), &json!(0)), "{nothing}");
    let epoch = nothing["epoch"].as_str().expect("an epoch").to_owned();
    let polled = std::thread::scope(|scope| {
        let poll = scope.spawn(|| read(&format!("/poll?room=lobby&epoch={epoch}&offset=0&wait=10s")));
        server.wait_metrics("the poll's room is there", |page| page.sum("corecast_rooms") >= 1.0);
        server.publish("lobby", br#"{"type":"note","text":"hi"}"#);
        poll.join().expect("an answer")
    });
    let due = json!([{ "offset": 1, "type": "note", "data": { "type": "note", "text": "hi" } }]);
    assert_eq!((&polled["publications"], &polled["recovered"]), (&due, &json!(true)), "{polled}");
    for payload in [b"2", b"3"] {
        server.publish("lobby", payload);
    }
    let history = read("/history?room=lobby&since=1&limit=1");
    assert_eq!(
        history["publications"],
        json!([{ "offset": 2, "type": "message", "data": "2" }]),
        "{history}"
    );
    assert_eq!((&history["offset"], &history["newest"]), (&json!(2), &json!(3)));
    assert_eq!(read("/history?room=lobby&limit=2")["publications"][0]["offset"], 2);
    assert_eq!(read("/history?room=nobody")["publications"], json!([]));
    assert_eq!(server.get("/history?room=lobby&limit=0").status, 400);
    assert_eq!(server.get("/poll?room=lobby&wait=1h").status, 400);
    assert_eq!(server.get("/poll").status, 400);
}

fn a_poll_or_a_stream_whose_client_hangs_up_gives_its_descriptor_back_at_once(driver: Driver) {
    let server = with_history(driver).start();
    let asked = |target: &str| {
        let mut stream = http::connect(server.address()).expect("it listens");
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", server.address()).expect("it reads");
        stream
    };
    let rooms = ["quiet", "talking", "pipelined", "streamed"];
    let mut clients: Vec<TcpStream> =
        rooms[..3].iter().map(|room| asked(&format!("/poll?room={room}&wait=300s"))).collect();
    clients.push(asked("/sse?room=streamed"));
    server.wait_metrics("all wait", |page| page.sum("corecast_rooms") >= rooms.len() as f64);
    // Who is heard out of turn is answered in turn, and its hanging up is noticed behind what it said.
    clients[2].write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    clients[1].write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    server.publish("talking", b"1");
    let mut answered = BufReader::new(clients[1].try_clone().expect("a descriptor"));
    let mut line = String::new();
    while line != "ok\n" {
        line.clear();
        assert!(answered.read_line(&mut line).expect("two answers in time") > 0, "it ended early");
    }
    drop((answered, clients));
    server.wait_metrics("nobody waits for nobody", |page| {
        page.labelled("corecast_connections_closed_total", "reason", "peer_vanished") >= 3.0
            && page.sum("corecast_event_streams") == 0.0
            && page.sum("corecast_connections") <= 1.0
    });
}

fn a_break_of_redis_is_told_and_ends_the_epoch(driver: Driver) {
    let mut redis = Redis::start();
    let config = format!("{HISTORY}\n[[source]]\nredis = \"psubscribe room:*\"\nroom = \"{{1}}\"\n");
    let server = Server::builder().config(&config).redis(&redis).driver(driver).shards(1).start();
    server.wait_broker(true);
    let mut member = speaker(&server);
    member.say(&json!({ "type": "join", "room": "lobby" }));
    let epoch = member.hear()["data"]["epoch"].clone();
    let mut raw = Client::join(&server, "lobby");
    redis.publish("room:lobby", "1");
    assert_eq!(member.hear()["data"], "1");
    redis.kill9();
    server.wait_broker(false);
    redis.restart();
    server.wait_broker(true);
    let gap = member.hear();
    assert_eq!(
        (&gap["type"], &gap["data"]["reason"], &gap["data"]["offset"]),
        (&"gap".into(), &"broker".into(), &1.into()),
        "{gap}"
    );
    assert_ne!(gap["data"]["epoch"], epoch);
    redis.publish("room:lobby", "2");
    assert_eq!(numbered(&member.hear_numbered()), (2, "2".to_owned()));
    assert_eq!([raw.next_text(), raw.next_text()], ["1", "2"], "the raw dialect has no words for it");
    let mut back = speaker(&server);
    back.say(&json!({ "type": "join", "room": "lobby", "resume": { "epoch": epoch, "offset": 1 } }));
    assert_eq!(back.hear()["data"]["recovered"], false, "something may be missing between");
    assert_eq!(server.stats()["ledger"]["balances"], true);
}
