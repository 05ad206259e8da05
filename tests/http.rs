//! Plain HTTP and the WebSocket handshake: what is answered, and what is refused with which status.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::client::{Client, RawClient};
use crate::support::deadline::SOON;
use crate::support::http;
use crate::support::scratch::Scratch;
use crate::support::server::{Driver, Server};
use crate::support::wire::{self, Frame};
use crate::support::{on_both_drivers, on_every_driver};

on_every_driver!(every_page_is_where_its_readers_look_for_it);
on_both_drivers!(
    each_rule_of_the_handshake_is_enforced,
    a_head_that_dribbles_in_is_cut_off_by_a_total_deadline,
    a_body_that_takes_longer_than_a_head_may_is_published,
    bytes_that_come_with_the_request_are_frames,
    publishing_over_http_reaches_the_room,
);

fn every_page_is_where_its_readers_look_for_it(driver: Driver) {
    let server = Server::builder().driver(driver).shards(2).start();
    for (page, content_type, part) in [
        ("/", "text/html", "WebSocket"),
        ("/healthz", "text/plain", "ok"),
        ("/health", "text/plain", "ok"),
        ("/livez", "text/plain", "ok"),
        ("/readyz", "text/plain", "ok"),
        ("/metrics", "text/plain", "corecast_connections"),
        ("/stats", "application/json", "{"),
    ] {
        let response = server.get(page);
        assert_eq!(response.status, 200, "{page}: {response:?}");
        assert!(
            response.header("content-type").is_some_and(|found| found.starts_with(content_type)),
            "{page}: {response:?}"
        );
        assert!(response.text().contains(part), "{page}: {response:?}");
        let head = http::request(server.address(), "HEAD", page, &[]).expect("HEAD is answered");
        assert_eq!((head.status, head.body.len()), (200, 0), "HEAD {page}");
        let refused = http::request(server.address(), "DELETE", page, &[]).expect("DELETE is answered");
        assert_eq!(refused.status, 405, "DELETE {page}");
        assert!(refused.header("allow").is_some_and(|allow| allow.contains("GET")), "{refused:?}");
    }
    assert_eq!(server.get("/nowhere").status, 404);
    let methods = http::request(server.address(), "OPTIONS", "*", &[]).expect("OPTIONS is answered");
    assert_eq!((methods.status, methods.header("allow")), (204, Some("GET, HEAD, POST, OPTIONS")));
    let stats = server.stats();
    assert!(stats.is_object(), "{stats}");
}

#[test]
fn an_admin_address_takes_the_counters_and_publishing_away_from_the_clients_port() {
    let server = Server::builder().admin().start();
    assert_ne!(server.address(), server.admin_address());
    for page in ["/metrics", "/stats"] {
        assert_eq!(server.get(page).status, 404, "{page} on the clients' port");
        let answer = http::request(server.admin_address(), "GET", page, &[]).expect("the admin port answers");
        assert_eq!(answer.status, 200, "{page} on the admin port");
    }
    let refused =
        http::post(server.address(), "/publish?room=lobby", &[], b"x").expect("the clients' port answers");
    assert_eq!(refused.status, 404);
    assert_eq!(server.get("/healthz").status, 200);
    let mut client = Client::join(&server, "lobby");
    server.publish("lobby", b"by the back door");
    assert_eq!(client.next_text(), "by the back door");
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let server = Server::builder().preset("event-fanout").start();
    let mut client = Client::join(&server, "lobby");
    client.send_text("something to count");
    client.next();
    let page = server.get("/metrics");
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = promtool.unwrap_or_else(|error| {
        panic!("cannot run promtool: {error}. It checks /metrics: install Debian's package `prometheus`")
    });
    let mut stdin = promtool.stdin.take().expect("stdin is a pipe");
    stdin.write_all(&page.body).expect("promtool reads its input");
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool ends with its input");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "promtool says: {said}");
}

fn publishing_over_http_reaches_the_room(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let mut client = Client::join(&server, "lobby");

    for number in 0..3 {
        let response = server.post("/publish?room=lobby", format!("line {number}").as_bytes());
        assert_eq!(response.status, 200, "{response:?}");
        let answer: serde_json::Value = serde_json::from_slice(&response.body).expect("the answer is JSON");
        assert!(answer["offset"].is_u64(), "{answer}");
        assert_eq!(client.next_text(), format!("line {number}"));
    }
    assert_eq!(server.post("/publish?room=empty", b"to nobody").status, 200);
    assert_eq!(server.post("/publish?room=empty", b"").status, 200);
    let unsaid = http::request(server.address(), "POST", "/publish?room=empty", &[]).expect("an answer");
    assert_eq!(unsaid.status, 411, "{unsaid:?}");
    assert_eq!(server.post("/publish", b"nowhere").status, 400);
    assert_eq!(server.post("/publish?room=", b"nowhere").status, 400);
    let refused = server.get("/publish?room=lobby");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")));
    // Judged by what is announced: the body is never sent.
    let announced = format!(
        "POST /publish?room=lobby HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
        server.address(),
        17 << 20
    );
    let refused = http::exchange(server.address(), announced.as_bytes()).expect("an answer");
    assert_eq!(refused.status, 413, "{refused:?}");
}

#[test]
fn a_page_that_dns_rebinding_brought_here_joins_and_publishes_nothing() {
    let server = Server::builder().start();
    let port = server.address().port();
    let upgrade = |host: &str| {
        let request = wire::upgrade(host, "/ws?room=lobby");
        let origin = format!("\r\nOrigin: http://{host}\r\nUpgrade");
        let request = request.replacen("\r\nUpgrade", &origin, 1);
        http::exchange(server.address(), request.as_bytes()).expect("an answer").status
    };
    assert_eq!(upgrade(&format!("evil.example:{port}")), 403);
    assert_eq!(upgrade(&format!("127.0.0.1:{port}")), 101);
}

#[test]
fn without_a_key_only_this_machine_may_publish() {
    let server = Server::builder().start();
    for (who, headers, status) in [
        ("a program on this machine", &[][..], 200),
        ("somebody behind a proxy", &["X-Forwarded-For: 203.0.113.7"], 403),
        ("somebody behind a proxy that speaks RFC 7239", &["Forwarded: for=203.0.113.7"], 403),
        ("a page of another site", &["Origin: https://example.com"], 403),
    ] {
        let answer = http::post(server.address(), "/publish?room=lobby", headers, b"x").expect("an answer");
        assert_eq!(answer.status, status, "{who}: {answer:?}");
        assert!(status == 200 || answer.text().contains("--api-key-file"), "the cure is missing: {answer:?}");
    }
}

#[test]
fn with_a_key_only_who_knows_it_may_publish() {
    let scratch = Scratch::new();
    let key = scratch.write("key", "open sesame\n");
    let key = key.to_str().expect("a scratch path is UTF-8");
    let server = Server::builder().arg("--api-key-file").arg(key).start();
    for (who, headers, status) in [
        ("nobody", &[][..], 401),
        ("a guesser", &["X-API-Key: sesame"], 401),
        ("a friend", &["X-API-Key: open sesame"], 200),
        ("a friend with a bearer token", &["Authorization: Bearer open sesame"], 200),
        ("a friend behind a proxy", &["X-API-Key: open sesame", "X-Forwarded-For: 203.0.113.7"], 200),
    ] {
        let answer = http::post(server.address(), "/publish?room=lobby", headers, b"x").expect("an answer");
        assert_eq!(answer.status, status, "{who}: {answer:?}");
    }
    assert_eq!(server.get("/metrics").status, 200, "counters alone are open");
}

fn each_rule_of_the_handshake_is_enforced(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let good = wire::upgrade(server.address(), "/ws?room=lobby");
    let with = |field: &str| good.replacen("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"), 1);
    let without = |name: &str| -> String {
        good.split_inclusive("\r\n").filter(|line| !line.starts_with(name)).collect()
    };
    let swap = |from: &str, to: &str| {
        assert!(good.contains(from), "{from:?} is not in the request");
        good.replacen(from, to, 1)
    };
    let room = |room: &str| swap("room=lobby", &format!("room={room}"));
    let key = |key: &str| swap(wire::KEY, key);
    let host = format!("Host: {}", server.address());
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("a correct request", good.clone(), &[101]),
        ("tokens in other cases", swap("Upgrade: websocket", "upgrade: WebSocket"), &[101]),
        ("a list in Connection", swap("Connection: Upgrade", "Connection: keep-alive, Upgrade"), &[101]),
        ("an empty body", with("Content-Length: 0"), &[101]),
        ("an origin of the same host", with(&format!("Origin: http://{}", server.address())), &[101]),
        ("an origin of another host", with("Origin: https://example.com"), &[403]),
        (
            "an origin that looks alike",
            with(&format!("Origin: http://{}.example.com", server.address())),
            &[403],
        ),
        ("POST", swap("GET", "POST"), &[405]),
        ("HTTP/1.0", swap("HTTP/1.1", "HTTP/1.0"), &[400, 505]),
        ("HTTP/2.0", swap("HTTP/1.1", "HTTP/2.0"), &[400, 505]),
        ("no Host", without("Host"), &[400]),
        ("two Hosts", with(&host), &[400]),
        ("no Upgrade", without("Upgrade"), &[400, 426]),
        ("another Upgrade", swap("Upgrade: websocket", "Upgrade: h2c"), &[400, 426]),
        ("no Connection", without("Connection"), &[400, 426]),
        ("a Connection without the token", swap("Connection: Upgrade", "Connection: close"), &[400, 426]),
        ("no key", without("Sec-WebSocket-Key"), &[400]),
        ("two keys", with(&format!("Sec-WebSocket-Key: {}", wire::KEY)), &[400]),
        ("a key of 15 bytes", key("AAAAAAAAAAAAAAAAAAAA"), &[400]),
        ("a key of 17 bytes", key("AAAAAAAAAAAAAAAAAAAAAAA="), &[400]),
        ("a key that is no base64", key("dGhlIHNhbXBsZSBub25j!!=="), &[400]),
        ("version 12", swap("Version: 13", "Version: 12"), &[426]),
        ("no version", without("Sec-WebSocket-Version"), &[400, 426]),
        ("a body", format!("{}hello", with("Content-Length: 5")), &[400]),
        ("a chunked body", with("Transfer-Encoding: chunked"), &[400]),
        ("two lengths", with("Content-Length: 0\r\nContent-Length: 0"), &[400]),
        ("a folded field", with("X-Folded: a\r\n b"), &[400]),
        ("a space before the colon", with("X-Spaced : a"), &[400]),
        ("bare line feeds", good.replace("\r\n", "\n"), &[400]),
        ("a head of 20 KiB", with(&format!("X-Long: {}", "a".repeat(20 * 1024))), &[431]),
        ("101 more fields", with("X-More: a\r\n".repeat(101).trim_end()), &[431]),
        ("another path", swap("/ws?", "/nowhere?"), &[404]),
        ("no room", swap("?room=lobby", ""), &[400]),
        ("an empty room", room(""), &[400]),
        ("two rooms", room("lobby&room=attic"), &[400]),
        ("a room of 255 bytes", room(&"r".repeat(255)), &[101]),
        ("a room of 256 bytes", room(&"r".repeat(256)), &[400]),
        ("a NUL in the room", room("a%00b"), &[400]),
        ("a line feed in the room", room("a%0Ab"), &[400]),
        ("a room that is no UTF-8", room("%FF"), &[400]),
        ("an unfinished escape", room("a%2"), &[400]),
        ("an escape that is none", room("%zz"), &[400]),
        ("a room in another script", room("%E6%88%BF%E9%97%B4"), &[101]),
        ("signs of Redis' patterns", room("%2A%3F%5B%5D%5C"), &[101]),
    ];
    let mut wrong = Vec::new();
    for (what, request, allowed) in &cases {
        match http::exchange(server.address(), request.as_bytes()) {
            Ok(response) if allowed.contains(&response.status) => {
                let said = response.text().trim();
                match response.status {
                    101 => {
                        assert_eq!(response.header("sec-websocket-accept"), Some(wire::ACCEPT), "{what}");
                        assert_eq!(response.header("content-length"), None, "{what}");
                        assert_eq!(response.header("sec-websocket-protocol"), None, "{what}");
                    }
                    426 => assert_eq!(response.header("sec-websocket-version"), Some("13"), "{what}"),
                    405 => assert_eq!(response.header("allow"), Some("GET"), "{what}"),
                    _ => assert!(!said.is_empty(), "{what}: no sentence says what is wrong"),
                }
            }
            other => wrong.push(format!("{what}: {other:?}, {allowed:?} was due")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    // After all of that the server is what it was.
    Client::join(&server, "lobby").leave();
}

fn bytes_that_come_with_the_request_are_frames(driver: Driver) {
    let server = Server::builder().driver(driver).start();
    let mut client = RawClient::open(server.address());
    let request = wire::upgrade(server.address(), "/ws?room=lobby");
    let frames = [
        wire::masked(wire::PING, b"early"),
        wire::masked(wire::TEXT, b"bird"),
        wire::masked(wire::TEXT, b"worm"),
    ];
    client.send(&[request.as_bytes(), &frames.concat()].concat());

    assert_eq!(client.response().status, 101);
    let mut heard = [client.next(), client.next(), client.next()];
    heard.sort_by_key(|frame| matches!(frame, Frame::Text(_)));
    assert_eq!(heard[0], Frame::Pong(b"early".to_vec()));
    assert_eq!(heard[1..], [Frame::Text(b"bird".to_vec()), Frame::Text(b"worm".to_vec())]);
}

fn a_head_that_dribbles_in_is_cut_off_by_a_total_deadline(driver: Driver) {
    let server = Server::builder().driver(driver).config("[bounds]\nhandshake_timeout = \"1s\"\n").start();
    let began = Instant::now();
    let mut dribbler = RawClient::open(server.address());
    let mut mute = RawClient::open(server.address());
    let request = wire::upgrade(server.address(), "/ws?room=lobby");

    // A byte every 50 ms: never idle for long, and never done within the deadline.
    let mut bytes = request.bytes();
    let cut_off = loop {
        let Some(byte) = bytes.next() else { break false };
        dribbler.send(&[byte]);
        if dribbler.has_ended_within(Duration::from_millis(50)) {
            break true;
        }
    };
    assert!(cut_off, "a head that took {:?} was accepted", began.elapsed());
    assert!(began.elapsed() >= Duration::from_secs(1), "it was cut off after {:?}", began.elapsed());
    assert!(mute.has_ended_within(SOON), "a connection without a word is kept for ever");
    server.wait_metrics("both are counted", |page| page.closed("handshake_timeout") == 2.0);
    // Who is in is not judged by it.
    Client::join(&server, "lobby").leave();
}

fn a_body_that_takes_longer_than_a_head_may_is_published(driver: Driver) {
    let server = Server::builder().driver(driver).config("[bounds]\nhandshake_timeout = \"500ms\"\n").start();
    let mut member = Client::join(&server, "lobby");
    let mut publisher = RawClient::open(server.address());
    let head = format!(
        "POST /publish?room=lobby HTTP/1.1\r\nHost: {}\r\nContent-Length: 40\r\n\r\n",
        server.address()
    );
    publisher.send(head.as_bytes());
    // A byte every 50 ms: 2 s, and a head would have had 500 ms and a sweep.
    for sent in 0..40 {
        assert!(!publisher.has_ended_within(Duration::from_millis(50)), "cut off after {sent} bytes");
        publisher.send(b"s");
    }
    assert_eq!(publisher.response().status, 200);
    assert_eq!(member.next_text(), "s".repeat(40));
}
