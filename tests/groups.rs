//! `corecast consume --stream`: members of a consumer group share a stream, and no entry is lost whoever dies.

use std::collections::BTreeSet;

use redis_protocol::resp2::types::OwnedFrame;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::consumer::{Consumer, event};
use crate::support::deadline::{LONG, SOON, eventually, eventually_ok};
use crate::support::program::run;
use crate::support::redis::Redis;

const STREAM: &str = "orders";

/// Writes what it gets to `got`.
const NOTE: &str = "*=exec:cat >> got";
/// The same, once its file `go` exists.
const GATED: &str = "*=exec:until [ -e go ]; do kill -0 $PPID || exit; sleep 0.01; done; cat >> got";

/// A member that is in the group.
#[track_caller]
fn member(redis: &Redis, name: &str, args: &[&str]) -> Consumer {
    let consumer = spawn(redis, name, args);
    wait_joined(&consumer, 1);
    consumer
}

#[track_caller]
fn spawn(redis: &Redis, name: &str, args: &[&str]) -> Consumer {
    let args = [&["--stream", STREAM, "--server-id", name, "--handler-timeout", "60s"], args].concat();
    Consumer::spawn(&[("REDIS_ADDR", &redis.address().to_string())], &args)
}

#[track_caller]
fn wait_joined(consumer: &Consumer, times: usize) {
    eventually_ok(SOON, "it has joined the group", || {
        match consumer.count_log("joined the consumer group") {
            joined if joined >= times => Ok(()),
            joined => Err(format!("{joined} times; {}", consumer.file("log"))),
        }
    });
}

/// Appends the events of these numbers.
#[track_caller]
fn append(redis: &Redis, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        redis.cli(&["XADD", STREAM, "*", "type", "order.paid", "data", &event("order.paid", number)]);
    }
}

/// Entries that were delivered and are not acknowledged.
#[track_caller]
fn pending(redis: &Redis) -> i64 {
    match redis.cli(&["XPENDING", STREAM, "corecast"]) {
        OwnedFrame::Array(parts) => match parts.first() {
            Some(OwnedFrame::Integer(count)) => *count,
            other => panic!("XPENDING answered {other:?}"),
        },
        other => panic!("XPENDING answered {other:?}"),
    }
}

#[track_caller]
fn wait_pending(redis: &Redis, due: i64) {
    eventually_ok(SOON, "as many are pending as should be", || match pending(redis) {
        found if found == due => Ok(()),
        found => Err(format!("{found} are pending, due {due}")),
    });
}

/// Numbers of the events that a member's handler has had, in order, each as often as it came.
#[track_caller]
fn handled(consumer: &Consumer) -> Vec<u64> {
    let text = consumer.file("got");
    let number = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        event["payload"]["counter"].as_u64().expect("a number")
    };
    let mut numbers: Vec<u64> =
        text.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// How often Redis has been sent a command.
#[track_caller]
fn calls(redis: &Redis, command: &str) -> u64 {
    let OwnedFrame::BulkString(info) = redis.cli(&["INFO", "commandstats"]) else { panic!("no INFO") };
    let info = String::from_utf8_lossy(&info).into_owned();
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()).map_or(0, |count| count.parse().expect("a count"))
}

#[test]
fn an_entry_is_acknowledged_when_its_handler_has_taken_it() {
    let redis = Redis::start();
    let mut consumer = member(&redis, "a", &["--handler", GATED, "--workers", "1"]);
    append(&redis, 1..=3);
    consumer.wait_metric("running", |running| running == 1.0);
    wait_pending(&redis, 3);
    consumer.create("go");
    wait_pending(&redis, 0);
    assert_eq!(handled(&consumer), [1, 2, 3]);
    let drained = consumer.drain();
    assert_eq!((&drained["processed"], &drained["stream"]), (&json!(3), &json!(STREAM)), "{drained}");
}

#[test]
fn a_group_begins_with_what_is_new_or_where_it_is_told() {
    let redis = Redis::start();
    append(&redis, 1..=3);
    let new = member(&redis, "a", &["--group", "new", "--handler", NOTE]);
    let all = member(&redis, "a", &["--group", "all", "--group-start", "0", "--handler", NOTE]);
    append(&redis, 4..=5);
    all.wait_metric("processed_total", |processed| processed == 5.0);
    new.wait_metric("processed_total", |processed| processed == 2.0);
    assert_eq!((handled(&all), handled(&new)), (vec![1, 2, 3, 4, 5], vec![4, 5]));
}

#[test]
fn members_share_the_entries_and_each_comes_once() {
    let redis = Redis::start();
    // A queue of 2 each: neither can take all of it before the other has any.
    let args = ["--handler", NOTE, "--workers", "1", "--queue", "2"];
    let members = ["a", "b"].map(|name| member(&redis, name, &args));
    append(&redis, 1..=60);
    eventually(LONG, "all are handled", || members.iter().map(|m| handled(m).len()).sum::<usize>() >= 60);
    let mut all: Vec<u64> = members.iter().flat_map(handled).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=60).collect::<Vec<_>>());
    assert!(members.iter().all(|member| !handled(member).is_empty()), "one had everything");
    wait_pending(&redis, 0);
}

#[test]
fn what_a_killed_member_had_is_taken_over_by_another() {
    let redis = Redis::start();
    let dying = member(&redis, "dying", &["--handler", GATED, "--workers", "2"]);
    append(&redis, 1..=20);
    dying.wait_metric("queued", |queued| queued == 18.0);
    dying.signal(Signal::KILL);
    let heir = member(&redis, "heir", &["--handler", NOTE, "--claim-idle", "1s"]);
    append(&redis, 21..=30);
    heir.wait_metric("processed_total", |processed| processed == 30.0);
    assert_eq!(handled(&heir), (1..=30).collect::<Vec<_>>());
    assert_eq!(heir.metrics().sum("corecast_consume_redelivered_total"), 20.0);
    wait_pending(&redis, 0);
}

#[test]
fn a_member_that_comes_back_after_a_kill_has_what_it_had_at_once() {
    let redis = Redis::start();
    let dying = member(&redis, "a", &["--handler", GATED, "--claim-idle", "1h"]);
    append(&redis, 1..=20);
    wait_pending(&redis, 20);
    dying.signal(Signal::KILL);
    let back = member(&redis, "a", &["--handler", NOTE, "--claim-idle", "1h"]);
    back.wait_metric("processed_total", |processed| processed == 20.0);
    assert_eq!(handled(&back), (1..=20).collect::<Vec<_>>());
}

#[test]
fn what_a_living_member_works_on_is_not_taken_over_however_long_it_takes() {
    let redis = Redis::start();
    let slow = member(&redis, "slow", &["--handler", GATED, "--claim-idle", "1s"]);
    append(&redis, 1..=3);
    wait_pending(&redis, 3);
    let other = member(&redis, "other", &["--handler", NOTE, "--claim-idle", "1s"]);
    // Each quarter of the second it says that it still has them; the other looks each half.
    let (began, looked) = (calls(&redis, "xclaim"), calls(&redis, "xautoclaim"));
    eventually(SOON, "three times as long has passed", || {
        calls(&redis, "xclaim") >= began + 12 && calls(&redis, "xautoclaim") >= looked + 6
    });
    slow.create("go");
    slow.wait_metric("processed_total", |processed| processed == 3.0);
    wait_pending(&redis, 0);
    assert_eq!((handled(&slow), handled(&other)), (vec![1, 2, 3], vec![]));
}

#[test]
fn redis_killed_and_started_again_with_its_file_costs_no_entry() {
    let mut redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut consumer = member(&redis, "a", &["--handler", NOTE, "--claim-idle", "1s"]);
    append(&redis, 1..=50);
    consumer.wait_metric("accepted_total", |accepted| accepted >= 1.0);
    redis.kill9();
    consumer.wait_log("the loss is said", |line| {
        line["msg"].as_str().is_some_and(|message| message.starts_with("lost redis"))
    });
    redis.restart();
    append(&redis, 51..=60);
    wait_joined(&consumer, 2);
    wait_pending(&redis, 0);
    eventually(SOON, "all are handled", || handled(&consumer).iter().collect::<BTreeSet<_>>().len() == 60);
    let numbers = handled(&consumer);
    assert_eq!(BTreeSet::from_iter(numbers.clone()), (1..=60).collect(), "at least once each");
    assert_eq!(numbers.len(), 60, "what is in its hands is not handled twice by the same process");
    assert_eq!(consumer.drain()["released"], json!(0));
}

#[test]
fn a_redis_that_came_back_empty_loses_nothing_that_is_appended_afterwards() {
    let mut redis = Redis::start();
    let consumer = member(&redis, "a", &["--handler", NOTE]);
    append(&redis, 1..=3);
    consumer.wait_metric("processed_total", |processed| processed == 3.0);
    redis.kill9();
    redis.restart();
    // Before the member is back, perhaps: a group that began at $ once more would miss these.
    append(&redis, 4..=9);
    consumer.wait_metric("processed_total", |processed| processed == 9.0);
    assert_eq!(handled(&consumer), (1..=9).collect::<Vec<_>>());
}

#[test]
fn a_group_that_somebody_removes_is_made_again_where_it_was() {
    let redis = Redis::start();
    let consumer = member(&redis, "a", &["--handler", NOTE]);
    append(&redis, 1..=3);
    consumer.wait_metric("processed_total", |processed| processed == 3.0);
    redis.cli(&["XGROUP", "DESTROY", STREAM, "corecast"]);
    append(&redis, 4..=6);
    consumer.wait_metric("processed_total", |processed| processed == 6.0);
    assert_eq!(handled(&consumer), (1..=6).collect::<Vec<_>>());
}

#[test]
fn sigterm_handles_what_it_has_acknowledges_it_and_takes_no_more() {
    let redis = Redis::start();
    let args = ["--handler", GATED, "--workers", "1", "--queue", "5", "--claim-idle", "1h"];
    let mut consumer = member(&redis, "a", &args);
    append(&redis, 1..=20);
    consumer.wait_metric("queued", |queued| queued == 5.0);
    consumer.signal(Signal::TERM);
    consumer.wait_log("it drains", |line| {
        line["msg"].as_str().is_some_and(|message| message.starts_with("draining"))
    });
    consumer.create("go");
    assert_eq!(consumer.wait().code(), Some(0));
    let had = handled(&consumer);
    assert_eq!(had, (1..=had.len() as u64).collect::<Vec<_>>());
    assert!((6..20).contains(&had.len()), "it had {had:?}");
    assert_eq!(pending(&redis), 0, "all that it took is acknowledged when it has ended");
}

#[test]
fn what_the_drain_has_no_time_for_is_not_acknowledged_and_anothers_at_once() {
    let redis = Redis::start();
    let args = ["--handler", "*=exec:sleep 600", "--workers", "2", "--drain", "100ms", "--claim-idle", "1h"];
    let mut leaving = member(&redis, "leaving", &args);
    append(&redis, 1..=9);
    leaving.wait_metric("queued", |queued| queued == 7.0);
    let drained = leaving.drain();
    assert_eq!(
        (&drained["released"], &drained["dead"], &drained["processed"]),
        (&json!(9), &json!(0), &json!(0))
    );
    assert_eq!((pending(&redis), leaving.count_log("dead letter")), (9, 0));
    let heir = member(&redis, "heir", &["--handler", NOTE, "--claim-idle", "1h"]);
    heir.wait_metric("processed_total", |processed| processed == 9.0);
    assert_eq!(handled(&heir), (1..=9).collect::<Vec<_>>());
    wait_pending(&redis, 0);
}

#[test]
fn what_failed_for_the_last_time_is_acknowledged_when_its_letter_is_kept() {
    let redis = Redis::start();
    let failing = "*=exec:[ -e go ] && cat >> got && exit 0; exit 1";
    let args = ["--handler", failing, "--dead-letters", "stream:dead"];
    let consumer = member(&redis, "a", &args);
    append(&redis, 1..=2);
    consumer.wait_metric("dead_total", |dead| dead == 2.0);
    wait_pending(&redis, 0);
    consumer.create("go");
    let replayed = run(&["dead-letters", "replay", "stream:dead", "--redis", &redis.url()]);
    assert!(replayed.stderr.starts_with("2 replayed, 0 unheard"), "{replayed:?}");
    consumer.wait_metric("processed_total", |processed| processed == 2.0);
    assert_eq!(handled(&consumer), [1, 2], "back in the stream they came from");
    assert_eq!(redis.cli(&["XLEN", "dead"]), OwnedFrame::Integer(0));
}

#[test]
fn a_letter_that_cannot_be_kept_leaves_its_entry_pending_to_be_tried_again() {
    let redis = Redis::start();
    // Redis takes no XADD to a key of another type.
    redis.cli(&["SET", "dead", "a string"]);
    let failing = "*=exec:[ -e go ] && cat >> got && exit 0; exit 1";
    let args = ["--handler", failing, "--dead-letters", "stream:dead", "--claim-idle", "1s"];
    let consumer = member(&redis, "a", &args);
    append(&redis, 1..=1);
    consumer.wait_metric("dead_unkept_total", |unkept| unkept >= 1.0);
    assert_eq!(pending(&redis), 1);
    consumer.create("go");
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
    wait_pending(&redis, 0);
}

#[test]
fn an_event_that_ends_its_consumers_becomes_a_dead_letter() {
    let redis = Redis::start();
    // What a crash in a handler does: the process is gone in the middle of it.
    let deadly = "*=exec:kill -KILL $PPID; sleep 600";
    let args = ["--handler", deadly, "--deliveries", "2", "--claim-idle", "1h", "--group-start", "0"];
    append(&redis, 1..=1);
    for _ in 0..2 {
        let mut victim = spawn(&redis, "a", &args);
        assert_eq!(victim.wait().code(), None, "{}", victim.file("log"));
    }
    let survivor = member(&redis, "a", &args);
    let letter = survivor.wait_log("a dead letter", |line| line["msg"] == "dead letter");
    assert_eq!(letter["reason"], "delivered 3 times without an end: its handler may end consumers");
    wait_pending(&redis, 0);
}

#[test]
fn what_is_no_event_or_has_no_handler_is_counted_and_acknowledged() {
    let redis = Redis::start();
    let consumer = member(&redis, "a", &["--handler", "order.paid=log"]);
    redis.cli(&["XADD", STREAM, "*", "type", "order.paid"]);
    redis.cli(&["XADD", STREAM, "*", "data", "not json"]);
    redis.cli(&["XADD", STREAM, "*", "data", &event("order.lost", 1)]);
    append(&redis, 1..=1);
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
    consumer.wait_metric("invalid_total", |invalid| invalid == 2.0);
    assert_eq!(consumer.metrics().labelled("corecast_consume_unknown_total", "type", "order.lost"), 1.0);
    let line = consumer.wait_log("the fault is named", |line| line["msg"] == "invalid event");
    assert!(line["error"].as_str().is_some_and(|error| error.contains("has no field \"data\"")), "{line}");
    wait_pending(&redis, 0);
}

#[test]
fn an_entry_that_is_deleted_while_it_is_pending_is_counted_as_missing() {
    let redis = Redis::start();
    let dying = member(&redis, "a", &["--handler", GATED]);
    append(&redis, 1..=2);
    wait_pending(&redis, 2);
    dying.signal(Signal::KILL);
    redis.cli(&["XTRIM", STREAM, "MAXLEN", "1"]);
    let back = member(&redis, "a", &["--handler", NOTE]);
    back.wait_metric("missing_total", |missing| missing == 1.0);
    back.wait_metric("processed_total", |processed| processed == 1.0);
    wait_pending(&redis, 0);
}

#[test]
fn a_key_that_is_no_stream_is_said_and_waited_for() {
    let redis = Redis::start();
    redis.cli(&["SET", STREAM, "a string"]);
    let consumer = spawn(&redis, "a", &["--handler", NOTE]);
    let line = consumer.wait_log("the refusal is said", |line| line["level"] == "ERROR");
    assert!(
        line["error"].as_str().is_some_and(|error| error.contains("refused XGROUP (WRONGTYPE")),
        "{line}"
    );
    assert_eq!(consumer.get("/healthz").status, 503);
    redis.cli(&["DEL", STREAM]);
    wait_joined(&consumer, 1);
    append(&redis, 1..=1);
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
}

#[test]
fn the_rules_of_the_manual_are_enough_to_append_and_to_consume() {
    let manual = include_str!("../docs/OPERATIONS.md").replace('\n', " ");
    let rules = |begin: &str, end: &str| {
        let from = manual.split_once(begin).expect("the manual names the rules").1;
        from.split_once(end).expect("they end").0.replace('`', "").replace("STREAM", STREAM)
    };
    let consumer_rules = rules("a consumer needs `", ", an appender");
    let appender_rules = rules("an appender `", " and for `--also-publish`");
    let redis = Redis::start();
    for (user, rules) in [("reader", consumer_rules), ("writer", appender_rules)] {
        let words = ["ACL", "SETUSER", user, "on", ">sesame"].into_iter().chain(rules.split(' '));
        redis.cli(&words.collect::<Vec<_>>());
    }
    let url = |user: &str| format!("redis://{user}:sesame@{}", redis.address());
    let args = ["--stream", STREAM, "--handler", NOTE, "--claim-idle", "1s"];
    let mut consumer = Consumer::spawn(&[("REDIS_URL", &url("reader"))], &args);
    wait_joined(&consumer, 1);
    let publish = ["publish", "--durable", "--stream", STREAM, "--maxlen", "5", "--maxage", "1h", "--redis"];
    let published = run(&[&publish[..], &[&url("writer"), &event("a", 1)]].concat());
    assert_eq!(published.code(), Some(0), "{published:?}");
    consumer.wait_metric("processed_total", |processed| processed == 1.0);
    eventually(SOON, "it has looked for what others left", || calls(&redis, "xautoclaim") >= 2);
    consumer.drain();
    assert_eq!(consumer.count_log("redis takes no acknowledgements: they are tried again"), 0);
    assert_eq!(pending(&redis), 0);
}

#[test]
fn flags_of_a_group_without_a_stream_and_those_of_a_channel_with_one_are_refused() {
    for (args, part) in [
        (&["--group", "g"][..], "--group is about a consumer group: name its stream with --stream"),
        (&["--stream", "s", "--channel", "c"], "cannot be used with"),
        (&["--stream", "s", "--when-full", "drop"], "cannot be used with"),
        (&["--stream", "s", "--group-start", "new"], "due $ (what is new), 0 (everything) or an entry's id"),
        (&["--stream", "s", "--claim-idle", "10ms"], "--claim-idle: found \"10ms\", due at least 1s"),
        (&["--stream", "s", "--deliveries", "0"], "--deliveries: found \"0\", due a whole number"),
    ] {
        let finished = run(&[&["consume"], args].concat());
        assert_eq!(finished.code(), Some(2), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(part), "{args:?}: {finished:?}");
    }
}
