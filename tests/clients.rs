//! `corecast subscribe` and `corecast publish` as a user runs them, against stand-ins that speak each protocol's other side.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tungstenite::handshake::server::{Callback, ErrorResponse, Request, Response};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::support::tool::ClosedPort;

const DEADLINE: Duration = Duration::from_secs(20);

fn corecast(args: &[&str]) -> Command {
    let binary =
        std::env::var_os("CORECAST_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_corecast").into());
    let mut command = Command::new(binary);
    let variables = [
        "ADDR",
        "PORT",
        "REDIS_URL",
        "REDIS_ADDR",
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_PASSWORD",
        "CORECAST_API_KEY_FILE",
    ];
    variables.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    corecast(args).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Serves each connection that comes, in turn, by one of `scripts`; returns the port.
fn stand_in<F>(scripts: Vec<F>) -> (u16, JoinHandle<()>)
where
    F: FnOnce(TcpStream) + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        for script in scripts {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            script(stream);
        }
    });
    (port, server)
}

/// A WebSocket server that says `messages`, closes with `close`, and waits for the answer.
fn says(
    messages: Vec<Message>,
    close: Option<(u16, &'static str)>,
) -> impl FnOnce(TcpStream) + Send + Clone + 'static {
    move |stream| {
        let mut socket = tungstenite::accept(stream).unwrap();
        messages.into_iter().for_each(|message| socket.send(message).unwrap());
        if let Some((code, reason)) = close {
            socket.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).unwrap();
        }
        read_to_end(&mut socket);
    }
}

fn read_to_end(socket: &mut WebSocket<TcpStream>) {
    while socket.read().is_ok() {}
}

/// Answers one request per entry of `answers` on one connection; returns the port and, joined, the requests' text.
fn http_stand_in(answers: Vec<&'static str>) -> (u16, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let answer_one = |answer: &str| {
            let request = read_request(&mut reader);
            (&stream).write_all(answer.as_bytes()).unwrap();
            request
        };
        answers.into_iter().map(answer_one).collect()
    });
    (port, server)
}

fn read_request(reader: &mut impl BufRead) -> String {
    let mut request = String::new();
    let mut body_bytes = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            body_bytes = length.trim().parse().unwrap();
        }
        request.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; body_bytes];
    reader.read_exact(&mut body).unwrap();
    request + &text(&body)
}

#[test]
fn subscribe_prints_text_as_it_is_and_binary_as_hex() {
    let (port, server) = stand_in(vec![says(vec!["hällo".into(), vec![0u8, 255].into()], None)]);
    let url = format!("ws://127.0.0.1:{port}/ws");
    let output = run(&["subscribe", "--url", &url, "--room", "lobby", "--count", "2"]);
    server.join().unwrap();
    assert_eq!(text(&output.stdout), "hällo\n00ff\n");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn subscribe_asks_for_the_room_and_the_client_id_percent_encoded() {
    let (port, server) = http_stand_in(vec!["HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]);
    let address = format!("127.0.0.1:{port}");
    run(&["subscribe", "--url", &address, "--room", "a b&c", "--client-id", "é"]);
    let request = server.join().unwrap().remove(0);
    assert!(request.starts_with("GET /ws?room=a%20b%26c&client_id=%C3%A9 HTTP/1.1\r\n"), "{request}");
}

#[test]
fn subscribe_finds_the_presets_server_through_its_variable() {
    let (port, server) = stand_in(vec![says(vec!["x".into()], None)]);
    let output = corecast(&["subscribe", "--preset", "event-fanout", "--room", "a", "--count", "1"])
        .env("ADDR", format!("127.0.0.1:{port}"))
        .output()
        .unwrap();
    server.join().unwrap();
    assert_eq!(text(&output.stdout), "x\n", "{}", text(&output.stderr));
}

#[test]
fn subscribe_measures_latency_and_finds_gaps() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let numbered = |seq: u64| Message::from(format!(r#"{{"sequence":{seq},"published_at_ms":{now}}}"#));
    let (port, server) = stand_in(vec![says(vec![numbered(1), numbered(2), numbered(5)], None)]);
    let url = format!("ws://127.0.0.1:{port}/ws");
    let output = run(&["subscribe", "--url", &url, "--room", "a", "--count", "3", "--quiet"]);
    server.join().unwrap();
    let summary = text(&output.stderr);
    assert!(output.stdout.is_empty());
    assert!(summary.contains("received 3 messages"), "{summary}");
    assert!(summary.contains("latency of 3: p50") && summary.contains("stamps in milliseconds"), "{summary}");
    assert!(summary.contains("2 missing, 0 repeated"), "{summary}");
}

#[test]
fn subscribe_joins_several_rooms_with_a_connection_each() {
    let (port, server) = stand_in(vec![says(vec!["one".into()], Some((1000, ""))); 2]);
    let url = format!("ws://127.0.0.1:{port}/ws");
    let output = run(&["subscribe", "--url", &url, "--room", "a", "--room", "b"]);
    server.join().unwrap();
    assert_eq!(text(&output.stdout), "one\none\n");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn subscribe_says_what_a_close_code_means_and_fails() {
    let (port, server) = stand_in(vec![says(vec![], Some((1013, "slow_frames")))]);
    let url = format!("ws://127.0.0.1:{port}/ws");
    let output = run(&["subscribe", "--url", &url, "--room", "a"]);
    server.join().unwrap();
    let words = text(&output.stderr);
    assert!(
        words.contains("1013") && words.contains("slow_frames") && words.contains("read faster"),
        "{words}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn subscribe_comes_back_after_a_restart_when_asked() {
    let first = says(vec!["before".into()], Some((1012, "service_restart")));
    let second = says(vec!["after".into()], None);
    let boxed: Vec<Box<dyn FnOnce(TcpStream) + Send>> = vec![Box::new(first), Box::new(second)];
    let (port, server) = stand_in(boxed);
    let url = format!("ws://127.0.0.1:{port}/ws");
    let output =
        run(&["subscribe", "--url", &url, "--room", "a", "--reconnect", "--count", "2", "--timeout", "20s"]);
    server.join().unwrap();
    assert_eq!(text(&output.stdout), "before\nafter\n", "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn subscribe_without_a_server_exits_69_with_what_to_do() {
    let nobody = ClosedPort::new();
    let url = format!("ws://{}/ws", nobody.address());
    let output = run(&["subscribe", "--url", &url, "--room", "a"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("corecast serve"), "{}", text(&output.stderr));
}

#[test]
fn subscribe_passes_on_why_the_server_refused_the_join() {
    let refuse = |answer: &'static str| {
        let (port, server) = http_stand_in(vec![answer]);
        let output = run(&["subscribe", "--url", &format!("127.0.0.1:{port}"), "--room", "a"]);
        server.join().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, words) = refuse("HTTP/1.1 400 Bad Request\r\nContent-Length: 12\r\n\r\nmissing room");
    assert!(code == Some(1) && words.contains("missing room"), "{code:?} {words}");
    let (code, words) = refuse("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    assert!(code == Some(77) && words.contains("403"), "{code:?} {words}");
}

#[test]
fn subscribe_that_hears_too_little_in_time_fails() {
    let (port, server) = stand_in(vec![says(vec!["one".into()], None)]);
    let url = format!("ws://127.0.0.1:{port}/ws");
    let output = run(&["subscribe", "--url", &url, "--room", "a", "--count", "2", "--timeout", "300ms"]);
    server.join().unwrap();
    assert_eq!(text(&output.stdout), "one\n");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}

#[test]
fn an_interrupted_subscribe_says_goodbye_and_gives_its_summary() {
    let (port, server) = stand_in(vec![says(vec!["one".into()], None)]);
    let url = format!("ws://127.0.0.1:{port}/ws");
    let mut child = corecast(&["subscribe", "--url", &url, "--room", "a"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("received 1 message "), "{}", text(&output.stderr));
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n{\"room\":\"lobby\",\"offset\":1}";

#[test]
fn publish_posts_the_message_and_passes_the_answer_on() {
    let (port, server) = http_stand_in(vec![OK]);
    let output = run(&["publish", "--url", &format!("http://127.0.0.1:{port}"), "--room", "lo bby", "hello"]);
    let request = server.join().unwrap().remove(0);
    assert!(request.starts_with("POST /publish?room=lo%20bby HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\nhello"), "{request}");
    assert_eq!(text(&output.stdout), "{\"room\":\"lobby\",\"offset\":1}\n", "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn publish_sends_each_line_of_its_input_over_one_connection() {
    let (port, server) = http_stand_in(vec![OK, OK, OK]);
    let mut child = corecast(&["publish", "--url", &format!("127.0.0.1:{port}"), "--room", "lobby", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a\nb\nc\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let requests = server.join().unwrap();
    let bodies: Vec<_> = requests.iter().map(|request| request.rsplit("\r\n").next().unwrap()).collect();
    assert_eq!(bodies, ["a", "b", "c"]);
    assert_eq!(text(&output.stdout).lines().count(), 3);
}

#[test]
fn publish_numbers_and_stamps_what_it_repeats() {
    let (port, server) = http_stand_in(vec![OK, OK]);
    let url = format!("http://127.0.0.1:{port}");
    let output =
        run(&["publish", "--url", &url, "--room", "lobby", "--stamp", "--count", "2", "--rate", "1000"]);
    let requests = server.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for (index, request) in requests.iter().enumerate() {
        let body: Value = serde_json::from_str(request.rsplit("\r\n").next().unwrap()).unwrap();
        assert_eq!(body["seq"], index + 1);
        assert!(body["ts"].as_u64().is_some_and(|micros| micros > 1_600_000_000_000_000), "{body}");
    }
}

#[test]
fn publish_sends_the_key_of_its_file() {
    let path = std::env::temp_dir().join(format!("corecast-key-{}", std::process::id()));
    std::fs::write(&path, "s3cret\n").unwrap();
    let (port, server) = http_stand_in(vec![OK]);
    let url = format!("127.0.0.1:{port}");
    let output =
        run(&["publish", "--url", &url, "--room", "a", "--api-key-file", path.to_str().unwrap(), "x"]);
    std::fs::remove_file(&path).unwrap();
    let request = server.join().unwrap().remove(0);
    assert!(request.to_ascii_lowercase().contains("\r\nx-api-key: s3cret\r\n"), "{request}");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn publish_exits_by_whose_fault_it_is() {
    let refuse = |answer: &'static str| {
        let (port, server) = http_stand_in(vec![answer]);
        let output = run(&["publish", "--url", &format!("127.0.0.1:{port}"), "--room", "a", "x"]);
        server.join().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    for (answer, exit, word) in [
        ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 77, "--api-key-file"),
        ("HTTP/1.1 400 Bad Request\r\nContent-Length: 8\r\n\r\nbad room", 1, "bad room"),
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\nredis down", 69, "redis down"),
        ("nonsense\r\n\r\n", 69, "HTTP"),
    ] {
        let (code, words) = refuse(answer);
        assert!(code == Some(exit) && words.contains(word), "{answer:?}: {code:?} {words}");
    }
    let nobody = ClosedPort::new();
    let output = run(&["publish", "--url", &nobody.address().to_string(), "--room", "a", "x"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("corecast serve"), "{}", text(&output.stderr));
}

/// Answers one command per entry; the commands come back as their bulk strings joined by spaces.
fn redis_stand_in(answers: Vec<&'static str>) -> (u16, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let answer_one = |answer: &str| {
            let words: usize = lines.next().unwrap().unwrap()[1..].parse().unwrap();
            let command: Vec<String> =
                lines.by_ref().take(2 * words).skip(1).step_by(2).map(Result::unwrap).collect();
            (&stream).write_all(answer.as_bytes()).unwrap();
            command.join(" ")
        };
        answers.into_iter().map(answer_one).collect()
    });
    (port, server)
}

#[test]
fn publish_through_redis_authenticates_and_tells_the_receivers() {
    let (port, server) = redis_stand_in(vec!["+OK\r\n", ":2\r\n"]);
    let url = format!("redis://user:p%40ss@127.0.0.1:{port}");
    let output = run(&["publish", "--redis", &url, "--channel", "room:lobby", "hello"]);
    assert_eq!(server.join().unwrap(), ["AUTH user p@ss", "PUBLISH room:lobby hello"]);
    assert_eq!(
        text(&output.stdout),
        "{\"channel\":\"room:lobby\",\"receivers\":2}\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn publish_by_preset_puts_the_systems_envelope_on_its_channel() {
    let (port, server) = redis_stand_in(vec![":1\r\n"]);
    let output = corecast(&["publish", "--preset", "event-fanout", "--room", "lobby", "hello"])
        .env("REDIS_ADDR", format!("127.0.0.1:{port}"))
        .output()
        .unwrap();
    let command = server.join().unwrap().remove(0);
    let envelope = command.strip_prefix("PUBLISH room:lobby ").unwrap_or_else(|| panic!("{command}"));
    let envelope: Value = serde_json::from_str(envelope).unwrap();
    assert_eq!((&envelope["room"], &envelope["data"]), (&"lobby".into(), &"hello".into()));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn publish_through_redis_exits_by_whose_fault_it_is() {
    for (answer, exit) in [
        ("-NOAUTH Authentication required.\r\n", 77),
        ("-NOPERM no permissions\r\n", 77),
        ("-ERR nonsense\r\n", 1),
        ("+OK\r\n", 1),
        ("garbage\r\n", 69),
    ] {
        let (port, server) = redis_stand_in(vec![answer]);
        let url = format!("redis://127.0.0.1:{port}");
        let output = run(&["publish", "--redis", &url, "--channel", "c", "x"]);
        server.join().unwrap();
        assert_eq!(output.status.code(), Some(exit), "{answer:?}: {}", text(&output.stderr));
    }
    let nobody = ClosedPort::new();
    let url = format!("redis://{}", nobody.address());
    assert_eq!(run(&["publish", "--redis", &url, "--channel", "c", "x"]).status.code(), Some(69));
}

/// A WebSocket server that takes the upgrade, gives its head to `judge`, and then does as `script` says.
fn upgrades(
    judge: impl FnOnce(&Request) + Send + 'static,
    script: impl FnOnce(&mut WebSocket<TcpStream>) + Send + 'static,
) -> Box<dyn FnOnce(TcpStream) + Send> {
    Box::new(move |stream| {
        let mut socket = tungstenite::accept_hdr(stream, Judge(judge)).unwrap();
        script(&mut socket);
        read_to_end(&mut socket);
    })
}

struct Judge<F>(F);

impl<F: FnOnce(&Request)> Callback for Judge<F> {
    fn on_request(self, request: &Request, response: Response) -> Result<Response, ErrorResponse> {
        (self.0)(request);
        Ok(response)
    }
}

fn next_json(socket: &mut WebSocket<TcpStream>) -> Value {
    serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap()
}

#[test]
fn subscribe_joins_rooms_by_messages_and_tells_errors_from_messages() {
    let update = r#"{"type":"price_update","room":"BTC_USDT","data":{"price":1.5,"ts":1710000000}}"#;
    let (port, server) = stand_in(vec![upgrades(
        |request| assert_eq!(request.uri(), "/ws"),
        move |socket| {
            for room in ["BTC_USDT", "no such", "ETH_USDT"] {
                let join = next_json(socket);
                assert_eq!((&join["type"], &join["room"]), (&"join".into(), &room.into()), "{join}");
            }
            socket.send(r#"{"type":"error","room":"no such","error":"unknown room"}"#.into()).unwrap();
            socket.send(r#"{"type":"joined","room":"ETH_USDT","data":null}"#.into()).unwrap();
            socket.send(update.into()).unwrap();
        },
    )]);
    let url = format!("127.0.0.1:{port}");
    let output =
        run(&["subscribe", "--url", &url, "--rooms", "BTC_USDT,no such,ETH_USDT", "--count", "1", "--stats"]);
    server.join().unwrap();
    let words = text(&output.stderr);
    assert_eq!((text(&output.stdout), output.status.code()), (format!("{update}\n"), Some(0)), "{words}");
    assert!(words.contains("the server answered {\"type\":\"error\",\"room\":\"no such\""), "{words}");
    assert!(words.contains("received 1 message ") && words.contains("latency of 1"), "{words}");
}

#[test]
fn a_feed_sends_prices_with_its_key_and_comes_back_after_a_loss() {
    let path = std::env::temp_dir().join(format!("corecast-feed-key-{}", std::process::id()));
    std::fs::write(&path, "s3cret\n").unwrap();
    let judge = |request: &Request| {
        assert_eq!(request.uri(), "/ws/ingest");
        assert_eq!(request.headers()["x-api-key"], "s3cret");
    };
    let check = |update: &Value, instrument: &str| {
        assert_eq!((&update["type"], &update["instrument"]), (&"price_update".into(), &instrument.into()));
        assert!(update["price"].as_f64().is_some_and(|price| price > 1.0), "{update}");
        assert!(
            update["ts"].as_u64().is_some_and(|ts| (1_600_000_000..10_000_000_000).contains(&ts)),
            "{update}"
        );
        assert_eq!(update.as_object().unwrap().len(), 4, "{update}");
    };
    let first = upgrades(judge, move |socket| {
        check(&next_json(socket), "BTC_USDT");
        check(&next_json(socket), "X");
        socket.close(Some(CloseFrame { code: 1012.into(), reason: "service_restart".into() })).unwrap();
    });
    let second = upgrades(judge, move |socket| {
        next_json(socket);
        socket.send(r#"{"type":"error","error":"price is too high"}"#.into()).unwrap();
    });
    let (port, server) = stand_in(vec![first, second]);
    let url = format!("ws://127.0.0.1:{port}");
    let output = run(&[
        "publish",
        "--feed",
        "--url",
        &url,
        "--instruments",
        "BTC_USDT,X",
        "--interval",
        "50ms",
        "--count",
        "8",
        "--api-key-file",
        path.to_str().unwrap(),
    ]);
    std::fs::remove_file(&path).unwrap();
    server.join().unwrap();
    let words = text(&output.stderr);
    assert_eq!(text(&output.stdout).lines().count(), 8, "{words}");
    assert!(
        words.contains("closed by the server with 1012") && words.contains("connecting again"),
        "{words}"
    );
    assert!(
        words.contains("the server answered {\"type\":\"error\",\"error\":\"price is too high\"}"),
        "{words}"
    );
    assert!(words.contains("sent 8 prices over 2 connection(s)") && words.contains("1 error(s)"), "{words}");
    assert_eq!(output.status.code(), Some(1), "errors that the server answered are no success: {words}");
}

#[test]
fn a_feed_that_is_refused_ends_by_whose_fault_it_is() {
    let (port, server) = http_stand_in(vec!["HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"]);
    let output = run(&["publish", "--feed", "--url", &format!("127.0.0.1:{port}")]);
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(77), "{}", text(&output.stderr));
    let nobody = ClosedPort::new();
    let output = run(&["publish", "--feed", "--url", &nobody.address().to_string()]);
    assert_eq!(output.status.code(), Some(69), "{}", text(&output.stderr));
}

#[test]
fn contradictions_on_the_command_line_exit_2() {
    for args in [
        &["publish", "--room", "a", "--count", "2", "-"][..],
        &["publish", "--room", "a"],
        &["publish", "--redis", "h:1", "--room", "a", "x"],
        &["publish", "--url", "h:1", "--redis", "h:1", "--room", "a", "x"],
        &["publish", "--url", "https://h", "--room", "a", "x"],
        &["subscribe"],
        &["subscribe", "--room", "a", "--preset", "no-such"],
        &["subscribe", "--room", "a", "--timeout", "5"],
        &["subscribe", "--room", "a", "--rooms", "b"],
        &["subscribe", "--preset", "event-fanout"],
        &["subscribe", "--preset", "broadcaster", "--room", "a"],
        &["publish", "--type", "T", "hello"],
        &["publish", "--type", "T", "--demo"],
        &["publish", "--type", "T", "--stamp"],
        &["publish", "--type", "T", "--room", "a"],
        &["publish", "--type", "T", "--url", "h:1"],
        &["publish", "--source", "s", "--room", "a", "hello"],
        &["publish", "--demo", "--rate", "1", "--interval", "1s"],
        &["publish", "--feed", "--redis", "h:1"],
        &["publish", "--instruments", "X", "--demo"],
        &["publish", "--preset", "workflow", "hello"],
        // Nobody can join these.
        &["publish", "--preset", "workflow", "--room", "a:b", "hello"],
        &["publish", "--preset", "event-fanout", "--room", "", "hello"],
        &["publish", "--preset", "event-fanout", "--room", "a\tb", "hello"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
    }
}
