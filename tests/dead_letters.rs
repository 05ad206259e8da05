//! `corecast dead-letters`: what `consume` gave up is listed, and goes back to its channel.

use std::fs;

use redis_protocol::resp2::types::OwnedFrame;
use serde_json::{Value, json};

use crate::support::consumer::{CHANNEL, Consumer, event, publish};
use crate::support::deadline::{SOON, eventually_ok};
use crate::support::program::{self, Finished, Running, run};
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;

/// Gives up all events until its file `go` exists, then writes them to `got`.
const HANDLER: &str = "*=exec:[ -e go ] || { echo not yet; exit 1; }; cat >> got";

/// A consumer that keeps dead letters in `place`, and has `letters` events there; with the name of the place from here.
fn with_dead_letters(redis: &Redis, place: &str, letters: u64) -> (Consumer, String) {
    let args = ["--handler", HANDLER, "--dead-letters", place, "--workers", "1", "--server-id", "server-1"];
    let consumer = Consumer::start(redis, &args);
    let place = match place.strip_prefix("file:") {
        Some(name) => format!("file:{}", consumer.path(name).display()),
        None => place.to_owned(),
    };
    publish(redis, "order.paid", letters);
    wait_count(redis, &place, letters);
    let metrics = consumer.metrics();
    let dead =
        [metrics.sum("corecast_consume_dead_total"), metrics.sum("corecast_consume_dead_unkept_total")];
    assert_eq!(dead, [letters as f64, 0.0], "{}", consumer.file("log"));
    (consumer, place)
}

#[track_caller]
fn dead_letters(redis: &Redis, args: &[&str]) -> Finished {
    let url = redis.url();
    run(&[&["dead-letters"], args, &["--redis", &url]].concat())
}

/// How many letters `list` finds in `place`.
#[track_caller]
fn count(redis: &Redis, place: &str) -> usize {
    let listed = dead_letters(redis, &["list", place]);
    assert_eq!(listed.code(), Some(0), "{listed:?}");
    listed.stdout.lines().count()
}

/// Returns once `list` finds so many letters in `place`.
#[track_caller]
fn wait_count(redis: &Redis, place: &str, letters: u64) {
    eventually_ok(SOON, "letters are where they should be", || match count(redis, place) as u64 {
        found if found == letters => Ok(()),
        found => Err(format!("{found} letters in {place}")),
    });
}

#[track_caller]
fn counters(consumer: &Consumer) -> Vec<u64> {
    let text = consumer.file("got");
    let number = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        event["payload"]["counter"].as_u64().expect("a number")
    };
    text.lines().map(number).collect()
}

#[test]
fn letters_in_a_file_are_listed_with_age_type_attempts_and_reason() {
    let redis = Redis::start();
    let (_consumer, place) = with_dead_letters(&redis, "file:dead.jsonl", 2);
    let listed = dead_letters(&redis, &["list", &place]);
    assert_eq!((listed.code(), listed.stderr.as_str()), (Some(0), "2 dead letters\n"), "{listed:?}");
    for part in ["s ago  order.paid  550e8400-", "  3 attempts  ", "exit status: 1: not yet"] {
        assert!(listed.stdout.lines().all(|line| line.contains(part)), "{part:?} in {listed:?}");
    }
    let listed = dead_letters(&redis, &["list", &place, "--json", "--limit", "1"]);
    let letter: Value = serde_json::from_str(listed.stdout.trim()).expect("one line of JSON");
    assert_eq!((&letter["at"], &letter["channel"]), (&json!("line 1"), &json!(CHANNEL)));
    assert_eq!((&letter["server_id"], &letter["attempts"]), (&json!("server-1"), &json!(3)));
    // Which of the two died first is chance: their waits are.
    let number = letter["event"]["payload"]["counter"].as_u64().expect("a number");
    assert_eq!(letter["event"], serde_json::from_str::<Value>(&event("order.paid", number)).expect("JSON"));
}

fn replayed_letters_reach_their_handler_and_are_gone(place: &str) {
    let redis = Redis::start();
    let (consumer, place) = with_dead_letters(&redis, place, 25);
    let dry = dead_letters(&redis, &["replay", &place, "--dry-run", "--type", "order.paid"]);
    assert_eq!((dry.code(), dry.stdout.lines().count()), (Some(0), 25), "{dry:?}");
    assert_eq!(count(&redis, &place), 25, "a dry run changes nothing");
    let other = dead_letters(&redis, &["replay", &place, "--type", "order.lost"]);
    assert!(other.stderr.starts_with("0 replayed"), "{other:?}");

    consumer.create("go");
    let some = dead_letters(&redis, &["replay", &place, "--limit", "5"]);
    assert_eq!((some.code(), some.stderr.starts_with("5 replayed")), (Some(0), true), "{some:?}");
    assert_eq!(count(&redis, &place), 20);
    let rest = dead_letters(&redis, &["replay", &place]);
    assert!(rest.stderr.starts_with("20 replayed, 0 unheard and kept, 0 unreadable"), "{rest:?}");
    assert_eq!(count(&redis, &place), 0);
    consumer.wait_metric("processed_total", |processed| processed == 25.0);
    let mut counters = counters(&consumer);
    counters.sort_unstable();
    assert_eq!(counters, (1..=25).collect::<Vec<_>>(), "each once");
}

#[test]
fn letters_replayed_from_a_file_reach_their_handler_and_are_gone() {
    replayed_letters_reach_their_handler_and_are_gone("file:dead.jsonl");
}

#[test]
fn letters_replayed_from_a_stream_reach_their_handler_and_are_gone() {
    replayed_letters_reach_their_handler_and_are_gone("stream:dead:letters");
}

#[test]
fn letters_that_die_again_are_there_again_once() {
    let redis = Redis::start();
    let (consumer, place) = with_dead_letters(&redis, "file:dead.jsonl", 3);
    let replayed = dead_letters(&redis, &["replay", &place]);
    assert!(replayed.stderr.starts_with("3 replayed"), "{replayed:?}");
    consumer.wait_metric("dead_total", |dead| dead == 6.0);
    wait_count(&redis, &place, 3);
}

fn letters_that_nobody_hears_stay(place: &str) {
    let redis = Redis::start();
    let (mut consumer, place) = with_dead_letters(&redis, place, 2);
    consumer.drain();
    let unheard = dead_letters(&redis, &["replay", &place]);
    assert_eq!(unheard.code(), Some(1), "{unheard:?}");
    assert!(unheard.stderr.contains("nobody is subscribed to the channel of 2 letters"), "{unheard:?}");
    assert_eq!(count(&redis, &place), 2);
    let forced = dead_letters(&redis, &["replay", &place, "--unheard-too"]);
    assert_eq!((forced.code(), count(&redis, &place)), (Some(0), 0), "{forced:?}");
}

#[test]
fn letters_of_a_file_that_nobody_hears_stay() {
    letters_that_nobody_hears_stay("file:dead.jsonl");
}

#[test]
fn letters_of_a_stream_that_nobody_hears_stay() {
    letters_that_nobody_hears_stay("stream:dead");
}

/// A letter as `consume` writes it, whose event goes to `channel`.
fn line(channel: &str, number: u64) -> String {
    let event = event("order.paid", number);
    format!(
        "{{\"died_at\":\"2026-02-22T10:00:00Z\",\"channel\":\"{channel}\",\"server_id\":\"s\",\"type\":\"order.paid\",\
         \"attempts\":3,\"reason\":\"r\",\"event\":{event}}}\n"
    )
}

#[test]
fn a_replay_that_redis_stops_has_removed_what_it_published_and_keeps_the_rest() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "replayer", "on", ">sesame", "+@all", "~*", &format!("&{CHANNEL}")]);
    let consumer = Consumer::start(&redis, &[]);
    let scratch = Scratch::new();
    let lines = [line(CHANNEL, 1), line(CHANNEL, 2), line("forbidden", 3), line(CHANNEL, 4)];
    let path = scratch.write("dead.jsonl", &lines.concat());
    let place = format!("file:{}", path.display());
    let url = format!("redis://replayer:sesame@{}", redis.address());
    let stopped = run(&["dead-letters", "replay", &place, "--redis", &url]);
    assert_eq!(stopped.code(), Some(77), "{stopped:?}");
    assert!(
        stopped.stderr.starts_with("2 replayed, 0 unheard and kept, 0 unreadable; the rest stays"),
        "{stopped:?}"
    );
    assert!(stopped.stderr.contains("refused PUBLISH (NOPERM"), "{stopped:?}");
    assert_eq!(fs::read_to_string(&path).expect("the file is there"), lines[2..].concat());
    consumer.wait_metric("processed_total", |processed| processed == 2.0);
}

#[test]
fn a_replay_that_is_killed_loses_no_letter_and_repeats_at_most_one() {
    const LETTERS: u64 = 5_000;
    let redis = Redis::start();
    let queue = LETTERS.to_string();
    let consumer = Consumer::start(&redis, &["--queue", &queue]);
    let scratch = Scratch::new();
    let lines: String = (1..=LETTERS).map(|number| line(CHANNEL, number)).collect();
    let place = format!("file:{}", scratch.write("dead.jsonl", &lines).display());
    let mut command = program::command();
    command.args(["dead-letters", "replay", &place, "--redis", &redis.url()]);
    let mut replay = Running(command.spawn().expect("the binary runs"));
    consumer.wait_metric("accepted_total", |accepted| accepted > 0.0);
    replay.kill();
    let left = count(&redis, &place) as u64;
    assert!(left > 0, "it was killed too late for this test to say anything");
    let rest = dead_letters(&redis, &["replay", &place]);
    assert!(rest.stderr.starts_with(&format!("{left} replayed")), "{rest:?}");
    let all = LETTERS as f64;
    consumer.wait_metric("processed_total", |processed| processed == all || processed == all + 1.0);
    assert_eq!(consumer.metrics().sum("corecast_consume_dropped_total"), 0.0);
}

#[test]
fn a_letter_that_cannot_be_read_is_named_and_kept() {
    let redis = Redis::start();
    let (consumer, place) = with_dead_letters(&redis, "file:dead.jsonl", 1);
    let path = consumer.path("dead.jsonl");
    let good = fs::read_to_string(&path).expect("the file is there");
    fs::write(&path, format!("{{\"half\": \n{good}")).expect("the file can be written");
    consumer.create("go");
    let replayed = dead_letters(&redis, &["replay", &place]);
    assert!(replayed.stderr.contains("line 1 stays: found no dead letter"), "{replayed:?}");
    assert!(replayed.stderr.contains("1 replayed, 0 unheard and kept, 1 unreadable"), "{replayed:?}");
    assert_eq!(fs::read_to_string(&path).expect("the file is there"), "{\"half\": \n");
}

#[test]
fn a_stream_out_of_reach_has_its_letters_in_the_log_and_counted() {
    let redis = Redis::start();
    // Redis takes no XADD to a key of another type.
    redis.cli(&["SET", "dead", "a string"]);
    let args = ["--handler", "*=exec:exit 1", "--dead-letters", "stream:dead"];
    let consumer = Consumer::start(&redis, &args);
    redis.publish(CHANNEL, event("a", 1));
    let letter = consumer.wait_log("the letter is in the log", |line| line["msg"] == "dead letter");
    assert_eq!(letter["event"]["payload"]["counter"], 1);
    consumer.wait_metric("dead_unkept_total", |unkept| unkept == 1.0);
}

#[test]
fn a_stream_entry_holds_the_event_and_what_became_of_it() {
    let redis = Redis::start();
    let _consumer = with_dead_letters(&redis, "stream:dead", 1);
    let OwnedFrame::Array(entries) = redis.cli(&["XRANGE", "dead", "-", "+"]) else { panic!("no entries") };
    let text = format!("{:?}", entries[0]);
    for name in ["event", "type", "reason", "attempts", "channel", "server_id", "died_at_ms"] {
        let bytes = format!("{:?}", name.as_bytes());
        assert!(text.contains(&bytes), "field {name} in {text}");
    }
}

#[test]
fn places_that_are_not_there_end_with_the_code_of_their_kind() {
    let absent = run(&["dead-letters", "list", "file:/nonexistent/dead.jsonl"]);
    assert_eq!(absent.code(), Some(69), "{absent:?}");
    let redis = run(&["dead-letters", "replay", "stream:dead", "--redis", "127.0.0.1:1"]);
    assert_eq!(redis.code(), Some(69), "{redis:?}");
    assert!(redis.stderr.starts_with("corecast: no Redis answers at 127.0.0.1:1"), "{redis:?}");
    for args in
        [&["dead-letters", "list"][..], &["dead-letters", "list", "log"], &["dead-letters", "list", "x"]]
    {
        let finished = run(args);
        assert_eq!(finished.code(), Some(2), "{finished:?}");
        assert!(finished.stderr.contains("file:PATH or stream:KEY"), "{finished:?}");
    }
}
