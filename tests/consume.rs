//! `corecast consume`: events of a Redis channel reach their handlers, and nothing is lost silently.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::consumer::{CHANNEL, Consumer, event, publish};
use crate::support::deadline::{SOON, eventually};
use crate::support::program::run;
use crate::support::redis::Redis;

/// Answers each POST with the next of `statuses`, the last again and again; hands on what was posted.
fn webhook(statuses: &'static [&'static str]) -> (String, Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("127.0.0.1 has a free port");
    let url = format!("http://{}/hook", listener.local_addr().expect("a bound socket has an address"));
    let (sender, posted) = channel();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = BufReader::new(stream.expect("a connection can be accepted"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert!(stream.read_line(&mut head).expect("a head is readable") > 0, "{head}");
            }
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ").and_then(|text| text.parse().ok())
            });
            let mut body = vec![0; length.unwrap_or_else(|| panic!("no length in {head}"))];
            stream.read_exact(&mut body).expect("a body follows");
            let status = statuses[number.min(statuses.len() - 1)];
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhm");
            stream.get_mut().write_all(answer.as_bytes()).expect("an answer is taken");
            if sender.send(format!("{head}{}", String::from_utf8_lossy(&body))).is_err() {
                return;
            }
        }
    });
    (url, posted)
}

#[test]
fn the_documents_subscriber_logs_with_the_documents_keys() {
    let redis = Redis::start();
    let address = redis.address().to_string();
    let variables =
        [("REDIS_ADDR", address.as_str()), ("CHANNEL_NAME", "events.prod"), ("SERVER_ID", "server-1")];
    let mut consumer = Consumer::spawn(&variables, &[]);
    let line = consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
    let keys: Vec<&str> = line.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["channel", "component", "level", "msg", "server_id", "time"]);
    assert_eq!((&line["channel"], &line["server_id"]), (&json!("events.prod"), &json!("server-1")));
    assert_eq!((&line["component"], &line["level"]), (&json!("subscriber"), &json!("INFO")));

    redis.publish("events.prod", event("demo.message", 1));
    let line = consumer.wait_log("the event is logged", |line| line["msg"] == "event");
    assert_eq!((&line["type"], &line["payload"]["counter"]), (&json!("demo.message"), &json!(1)));
    assert_eq!((&line["channel"], &line["server_id"]), (&json!("events.prod"), &json!("server-1")));
    consumer.drain();
}

#[test]
fn without_variables_it_reads_broadcast_events_as_unknown_server() {
    let redis = Redis::start();
    let consumer = Consumer::spawn(&[("REDIS_ADDR", ""), ("SERVER_ID", "")], &["--redis", &redis.url()]);
    let line = consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
    assert_eq!((&line["channel"], &line["server_id"]), (&json!(CHANNEL), &json!("unknown-server")));
}

#[test]
fn an_event_reaches_the_handler_of_its_type() {
    let redis = Redis::start();
    let (url, posted) = webhook(&["204 No Content"]);
    let webhook = format!("order.paid=webhook:{url}");
    let args = ["--handler", "demo.message=exec:cat >> got", "--handler", &webhook, "--handler", "*=log"];
    let mut consumer = Consumer::start(&redis, &args);
    for kind in ["demo.message", "order.paid", "another"] {
        redis.publish(CHANNEL, event(kind, 7));
    }
    let posted = posted.recv_timeout(SOON).expect("the webhook is called");
    assert!(posted.starts_with("POST /hook HTTP/1.1\r\n"), "{posted}");
    assert!(posted.to_ascii_lowercase().contains("content-type: application/json"), "{posted}");
    assert!(posted.ends_with(&event("order.paid", 7)), "byte for byte: {posted}");
    consumer.wait_log("the other one is logged", |line| line["type"] == "another");
    consumer.drain();
    assert_eq!(consumer.file("got"), format!("{}\n", event("demo.message", 7)));
}

#[test]
fn a_webhook_that_comes_back_gets_the_event_again() {
    let redis = Redis::start();
    let (url, posted) = webhook(&["503 Service Unavailable", "200 OK"]);
    let consumer = Consumer::start(&redis, &["--handler", &format!("*=webhook:{url}")]);
    redis.publish(CHANNEL, event("a", 1));
    for _ in 0..2 {
        posted.recv_timeout(SOON).expect("the webhook is called");
    }
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
    let metrics = consumer.metrics();
    assert_eq!(metrics.sum("corecast_consume_retried_total"), 1.0);
    assert_eq!(metrics.sum("corecast_consume_dead_total"), 0.0);
}

#[test]
fn a_failing_handler_has_three_attempts_and_then_the_event_is_in_the_log() {
    let redis = Redis::start();
    let mut consumer =
        Consumer::start(&redis, &["--handler", "*=exec:echo attempt >> attempts; echo oh no; exit 3"]);
    redis.publish(CHANNEL, event("a", 1));
    let letter = consumer.wait_log("a dead letter", |line| line["msg"] == "dead letter");
    assert_eq!((&letter["level"], &letter["attempts"]), (&json!("ERROR"), &json!(3)));
    assert_eq!(letter["reason"], "the command ended with exit status: 3: oh no");
    assert_eq!(letter["event"], serde_json::from_str::<Value>(&event("a", 1)).expect("JSON"));
    assert_eq!(consumer.file("attempts").lines().count(), 3);
    let drained = consumer.drain();
    assert_eq!((&drained["dead"], &drained["retried"]), (&json!(1), &json!(2)));
}

#[test]
fn a_handler_that_hangs_is_killed_and_fails() {
    let redis = Redis::start();
    let args = ["--handler", "*=exec:sleep 600", "--handler-timeout", "50ms", "--attempts", "1"];
    let consumer = Consumer::start(&redis, &args);
    redis.publish(CHANNEL, event("a", 1));
    let letter = consumer.wait_log("a dead letter", |line| line["msg"] == "dead letter");
    assert_eq!(letter["reason"], "the command was still running after 50ms and was killed");
}

#[test]
fn a_full_queue_drops_what_it_counts_and_says_so_once_a_second() {
    let redis = Redis::start();
    // One event in the worker's hands, five in the queue; the others find no room.
    let handler = "*=exec:until [ -e go ]; do kill -0 $PPID || exit; sleep 0.01; done";
    let mut consumer = Consumer::start(
        &redis,
        &["--workers", "1", "--queue", "5", "--handler", handler, "--handler-timeout", "60s"],
    );
    redis.publish(CHANNEL, event("a", 1));
    consumer.wait_metric("running", |running| running == 1.0);
    publish(&redis, "a", 50);
    consumer.wait_metric("dropped_total", |dropped| dropped == 45.0);
    consumer.wait_metric("queued", |queued| queued == 5.0);
    let line = consumer.wait_log("the drop is said", |line| line["msg"] == "event dropped");
    assert!(
        line["error"].as_str().is_some_and(|error| error.starts_with("the queue is full (5 events")),
        "{line}"
    );
    // 45 drops within the time of a few round trips: not a line each, and none left out.
    eventually(SOON, "every drop is said", || sum_of_events(&consumer, "event dropped") == 45);
    assert!(consumer.count_log("event dropped") < 10);
    consumer.create("go");
    assert_eq!(consumer.drain()["processed"], json!(6));
}

/// How many events the lines with this message speak of.
fn sum_of_events(consumer: &Consumer, message: &str) -> u64 {
    let lines = consumer.log().into_iter().filter(|line| line["msg"] == message);
    lines.map(|line| line["events"].as_u64().expect("a number of events")).sum()
}

#[test]
fn what_was_lost_a_moment_before_the_end_is_said_at_the_end() {
    let redis = Redis::start();
    let mut consumer = Consumer::start(&redis, &[]);
    for _ in 0..4 {
        redis.publish(CHANNEL, "not json");
    }
    consumer.wait_metric("invalid_total", |invalid| invalid == 4.0);
    consumer.drain();
    assert_eq!(sum_of_events(&consumer, "invalid event"), 4);
}

#[test]
fn with_when_full_block_everything_is_handled_and_nothing_dropped() {
    let redis = Redis::start();
    let args = ["--workers", "1", "--queue", "2", "--when-full", "block", "--handler", "*=exec:cat >> got"];
    let mut consumer = Consumer::start(&redis, &args);
    publish(&redis, "a", 40);
    consumer.wait_metric("processed_total", |processed| processed == 40.0);
    assert_eq!(consumer.drain()["dropped"], json!(0));
    assert_eq!(consumer.file("got").lines().count(), 40);
}

#[test]
fn unknown_types_are_counted_and_named_and_said_once() {
    let redis = Redis::start();
    let consumer = Consumer::start(&redis, &["--handler", "known=log"]);
    for kind in ["order.lost", "order.lost", "order.found", "known"] {
        redis.publish(CHANNEL, event(kind, 1));
    }
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
    let metrics = consumer.metrics();
    let named = |kind| metrics.labelled("corecast_consume_unknown_total", "type", kind);
    assert_eq!((named("order.lost"), named("order.found")), (2.0, 1.0));
    let said = consumer.log().into_iter().filter(|line| line["type"] == "order.lost").count();
    assert_eq!(said, 1);
}

#[test]
fn what_is_no_event_is_counted_with_the_field_that_is_wrong() {
    let redis = Redis::start();
    let consumer = Consumer::start(&redis, &[]);
    redis.publish(CHANNEL, event("a", 1).replace("2026-02-22T10:00:00Z", "yesterday"));
    let line = consumer.wait_log("the fault is named", |line| line["msg"] == "invalid event");
    let error = line["error"].as_str().expect("text");
    assert!(error.starts_with("field timestamp: found \"yesterday\", due an ISO 8601 time"), "{error}");
    redis.publish(CHANNEL, "\u{0}not json");
    consumer.wait_metric("invalid_total", |invalid| invalid == 2.0);
    redis.publish(CHANNEL, event("a", 2));
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
}

#[test]
fn sigterm_with_a_full_queue_handles_all_of_it() {
    let redis = Redis::start();
    let handler = "*=exec:until [ -e go ]; do kill -0 $PPID || exit; sleep 0.01; done; cat >> got";
    let args = ["--workers", "2", "--queue", "30", "--handler", handler, "--handler-timeout", "60s"];
    let mut consumer = Consumer::start(&redis, &args);
    publish(&redis, "in hand", 2);
    consumer.wait_metric("running", |running| running == 2.0);
    publish(&redis, "in the queue", 30);
    consumer.wait_metric("queued", |queued| queued == 30.0);
    consumer.signal(Signal::TERM);
    consumer.wait_log("it drains", |line| {
        line["msg"].as_str().is_some_and(|message| message.starts_with("draining"))
    });
    redis.publish(CHANNEL, event("late", 1));
    consumer.create("go");
    assert_eq!(consumer.wait().code(), Some(0));
    let got = consumer.file("got");
    assert_eq!(got.lines().count(), 32, "{got}");
    let drained = consumer.log().pop().expect("a last line");
    assert_eq!((&drained["processed"], &drained["dead"]), (&json!(32), &json!(0)), "{drained}");
}

#[test]
fn with_when_full_block_what_redis_still_holds_is_handled_before_the_end() {
    let redis = Redis::start();
    let handler = "*=exec:until [ -e go ]; do kill -0 $PPID || exit; sleep 0.01; done; cat >> got";
    let args = ["--workers", "1", "--queue", "1", "--when-full", "block", "--handler", handler];
    let mut consumer = Consumer::start(&redis, &[&args[..], &["--handler-timeout", "60s"]].concat());
    // About 140 KiB: more than the consumer reads at once.
    publish(&redis, "a", 600);
    consumer.wait_metric("queued", |queued| queued == 1.0);
    consumer.signal(Signal::TERM);
    consumer.wait_log("it drains", |line| {
        line["msg"].as_str().is_some_and(|message| message.starts_with("draining"))
    });
    consumer.create("go");
    assert_eq!(consumer.wait().code(), Some(0));
    assert_eq!(consumer.file("got").lines().count(), 600);
}

#[test]
fn a_redis_that_hangs_does_not_keep_it_from_ending() {
    let redis = Redis::start();
    let mut consumer = Consumer::start(&redis, &[]);
    redis.sigstop();
    let drained = consumer.drain();
    redis.sigcont();
    assert_eq!(drained["processed"], json!(0));
}

#[test]
fn variables_that_disagree_are_said_and_the_higher_wins() {
    let redis = Redis::start();
    let variables = [("REDIS_URL", redis.url()), ("REDIS_ADDR", "127.0.0.1:1".to_owned())];
    let consumer = Consumer::spawn(&variables.each_ref().map(|(name, value)| (*name, value.as_str())), &[]);
    consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
    let line = consumer.wait_log("the warning", |line| line["level"] == "WARN");
    let message = line["msg"].as_str().expect("text");
    assert!(message.starts_with("REDIS_URL (") && message.contains("wins over REDIS_ADDR ("), "{line}");
}

#[test]
fn what_the_drain_has_no_time_for_becomes_dead_letters() {
    let redis = Redis::start();
    let args =
        ["--workers", "1", "--drain", "100ms", "--handler", "*=exec:sleep 600", "--handler-timeout", "5m"];
    let mut consumer = Consumer::start(&redis, &args);
    publish(&redis, "a", 3);
    consumer.wait_metric("queued", |queued| queued == 2.0);
    let drained = consumer.drain();
    assert_eq!((&drained["dead"], &drained["processed"]), (&json!(3), &json!(0)));
    assert_eq!(consumer.count_log("dead letter"), 3);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let redis = Redis::start();
    let handler = "*=exec:echo $$ > pid; sleep 600";
    let args = ["--handler", handler, "--handler-timeout", "5m", "--drain", "5m"];
    let mut consumer = Consumer::start(&redis, &args);
    redis.publish(CHANNEL, event("a", 1));
    eventually(SOON, "the command runs", || consumer.file("pid").ends_with('\n'));
    consumer.signal(Signal::INT);
    consumer.wait_log("it drains", |line| {
        line["msg"].as_str().is_some_and(|message| message.starts_with("draining"))
    });
    consumer.signal(Signal::INT);
    assert_eq!(consumer.wait().code(), Some(130));
    let process = format!("/proc/{}", consumer.file("pid").trim());
    eventually(SOON, "its command has ended too", || !Path::new(&process).exists());
}

#[test]
fn it_comes_back_when_redis_does_and_says_each_change_once() {
    let mut redis = Redis::start();
    let mut consumer = Consumer::start(&redis, &[]);
    assert_eq!(consumer.get("/healthz").status, 200);
    redis.kill9();
    consumer.wait_log("the loss is said", |line| {
        line["msg"].as_str().is_some_and(|message| message.starts_with("lost redis"))
    });
    assert_eq!((consumer.get("/healthz").status, consumer.get("/healthz").text()), (503, "redis down"));
    redis.restart();
    eventually(SOON, "it subscribes again", || consumer.count_log("subscribed to redis") == 2);
    redis.publish(CHANNEL, event("a", 1));
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
    consumer.drain();
    let lost = |line: &Value| line["msg"].as_str().is_some_and(|message| message.starts_with("lost redis"));
    assert_eq!(consumer.log().iter().filter(|line| lost(line)).count(), 1);
}

#[test]
fn a_redis_that_is_not_there_yet_is_waited_for() {
    let mut redis = Redis::start();
    redis.kill9();
    let consumer = Consumer::spawn(&[("REDIS_URL", &redis.url())], &[]);
    let line = consumer.wait_log("the failure is said", |line| line["level"] == "ERROR");
    let message = line["msg"].as_str().expect("text");
    assert!(message.starts_with("failed to connect to redis"), "{line}");
    redis.restart();
    consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
}

#[test]
fn a_password_is_taken_from_its_variable_and_a_wrong_one_is_said() {
    let redis = Redis::start_with(&["--requirepass", "sesame"]);
    let address = redis.address().to_string();
    let variables = |password| [("REDIS_ADDR", address.as_str()), ("REDIS_PASSWORD", password)];
    let right = Consumer::spawn(&variables("sesame"), &[]);
    right.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
    let wrong = Consumer::spawn(&variables("open"), &[]);
    let line = wrong.wait_log("the refusal is said", |line| line["level"] == "ERROR");
    assert!(line["error"].as_str().is_some_and(|error| error.contains("refused AUTH (WRONGPASS")), "{line}");
    assert!(!right.file("log").contains("sesame") && !wrong.file("log").contains("\"open\""));
}

#[test]
fn promtool_finds_nothing_to_say_about_a_consumers_metrics() {
    let redis = Redis::start();
    let consumer = Consumer::start(&redis, &["--handler", "known=log"]);
    redis.publish(CHANNEL, event("a\\\"b", 1));
    consumer.wait_log("the type is unknown", |line| line["type"] == "a\\\"b");
    let page = consumer.get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
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

#[test]
fn flags_and_variables_without_sense_end_with_2_and_78() {
    for (args, part) in [
        (&["--workers", "0"][..], "--workers: found \"0\", due a whole number from 1 to 1024"),
        (&["--handler", "a=run"], "--handler: found \"a=run\", due TYPE=log"),
        (&["--handler", "a=log", "--handler", "a=log"], "two handlers for type \"a\""),
        (&["--dead-letters", "tape"], "--dead-letters: found \"tape\", due log, file:PATH or stream:KEY"),
        (&["--backoff", "5"], "--backoff: found \"5\", due a duration"),
        (&["--backoff", "10s", "--backoff-max", "1s"], "--backoff-max: found 1s, due no less than --backoff"),
        (&["--handler-timeout", "0s"], "--handler-timeout: found \"0s\", due more than nothing"),
        (&["--redis", "http://h"], "redis"),
        (&["--preset", "workflow"], "star"),
    ] {
        let finished = run(&[&["consume"], args].concat());
        assert_eq!(finished.code(), Some(2), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(part), "{args:?}: {finished:?}");
    }
    let mut consumer = Consumer::spawn(&[("CORECAST_QUEUE", "many")], &[]);
    assert_eq!(consumer.wait().code(), Some(78));
    assert!(consumer.file("log").contains("CORECAST_QUEUE: found \"many\", due a whole number"));
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("127.0.0.1 has a free port");
    let address = taken.local_addr().expect("a bound socket has an address").to_string();
    assert_eq!(run(&["consume", "--metrics", &address]).code(), Some(73));
}

#[test]
fn a_silent_redis_is_noticed_by_asking_and_given_up() {
    let redis = Redis::start();
    let consumer = Consumer::start(&redis, &[]);
    redis.sigstop();
    // TCP stays up: only the missing answer to PING tells.
    consumer.wait_log("the silence is noticed", |line| {
        line["error"].as_str().is_some_and(|error| error.contains("although it was asked"))
    });
    redis.sigcont();
    eventually(SOON, "it subscribes again", || consumer.count_log("subscribed to redis") == 2);
    eventually(SOON, "it alone is subscribed", || redis.subscribers(CHANNEL) == 1);
}
