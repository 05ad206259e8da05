//! `corecast publish --durable`: messages go into a stream, and into a channel in the same step where that is wanted.

use redis_protocol::resp2::types::OwnedFrame;
use serde_json::{Value, json};

use crate::support::program::{Finished, run};
use crate::support::redis::Redis;

#[track_caller]
fn publish(redis: &Redis, args: &[&str]) -> Finished {
    let url = redis.url();
    run(&[&["publish", "--durable", "--redis", &url], args].concat())
}

/// The fields of each entry, oldest first.
#[track_caller]
fn entries(redis: &Redis, stream: &str) -> Vec<Vec<String>> {
    let OwnedFrame::Array(entries) = redis.cli(&["XRANGE", stream, "-", "+"]) else { panic!("no entries") };
    let text = |frame: &OwnedFrame| match frame {
        OwnedFrame::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("{other:?} in an entry"),
    };
    let fields = |entry: &OwnedFrame| match entry {
        OwnedFrame::Array(parts) => match &parts[1] {
            OwnedFrame::Array(fields) => fields.iter().map(text).collect(),
            other => panic!("{other:?} in an entry"),
        },
        other => panic!("{other:?} in a stream"),
    };
    entries.iter().map(fields).collect()
}

#[test]
fn a_cluster_takes_no_stream_and_the_sentence_says_what_does() {
    let refused =
        run(&["publish", "--durable", "--redis", "redis+cluster://h:1", "--stream", "orders", "{}"]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("name the node that has the stream's slot"), "{refused:?}");
}

#[test]
fn a_message_is_appended_byte_for_byte_with_its_type_and_the_answer_has_its_id() {
    let redis = Redis::start();
    let event = r#"{"type":"order.paid","cents":5}"#;
    let published = publish(&redis, &["--stream", "orders", event]);
    assert_eq!(published.code(), Some(0), "{published:?}");
    let answer: Value = serde_json::from_str(&published.stdout).expect("one line of JSON");
    assert_eq!(answer["stream"], json!("orders"));
    assert!(answer["id"].as_str().is_some_and(|id| id.contains('-')), "{answer}");
    assert_eq!(answer.get("receivers"), None, "nothing was published");
    assert_eq!(publish(&redis, &["--stream", "orders", "hello", "--count", "2"]).code(), Some(0));
    let due = [vec!["data", event, "type", "order.paid"], vec!["data", "hello"], vec!["data", "hello"]];
    assert_eq!(entries(&redis, "orders"), due);
}

#[test]
fn who_may_not_trim_by_age_has_appended_nothing() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-xtrim"]);
    let url = redis.url().replace("redis://", "redis://app:secret@");
    let refused =
        run(&["publish", "--durable", "--redis", &url, "--stream", "orders", "--maxage", "24h", "hello"]);
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert_eq!(redis.cli(&["XLEN", "orders"]), OwnedFrame::Integer(0), "it says that it failed");
}

#[test]
fn who_hears_the_publication_finds_the_entry() {
    let redis = Redis::start();
    let mut listener = redis.connect().expect("redis takes connections");
    listener.command(&[b"SUBSCRIBE", b"room:lobby"]).expect("it subscribes");
    let published = publish(&redis, &["--also-publish", "--channel", "room:lobby", "hello"]);
    let answer: Value = serde_json::from_str(&published.stdout).expect("one line of JSON");
    assert_eq!(
        (&answer["channel"], &answer["receivers"]),
        (&json!("room:lobby"), &json!(1)),
        "{published:?}"
    );
    let heard = format!("{:?}", listener.answer().expect("it hears"));
    assert!(heard.contains(&format!("{:?}", b"hello")), "{heard}");
    assert_eq!(entries(&redis, "room:lobby"), [["data", "hello"]], "the stream has the channel's name");
}

#[test]
fn a_stream_keeps_about_as_much_as_it_is_told() {
    let redis = Redis::start();
    let args = ["--stream", "s", "--quiet", "--count", "1000"];
    assert_eq!(publish(&redis, &[&args[..], &["--maxlen", "200", "x"]].concat()).code(), Some(0));
    let OwnedFrame::Integer(length) = redis.cli(&["XLEN", "s"]) else { panic!("no length") };
    assert!((200..=300).contains(&length), "{length} entries are left: a node of the tree has 100");
    // Entries of 1970 are older than an hour; what is appended now is not.
    redis.cli(&["DEL", "s"]);
    for number in 1..=300 {
        redis.cli(&["XADD", "s", &format!("1-{number}"), "data", "old"]);
    }
    assert_eq!(publish(&redis, &["--stream", "s", "--maxage", "1h", "new"]).code(), Some(0));
    let left = entries(&redis, "s");
    assert!(
        left.len() <= 100 && left.last().is_some_and(|entry| entry == &["data", "new"]),
        "{}",
        left.len()
    );
}

#[test]
fn what_cannot_be_appended_ends_with_the_code_of_its_reason() {
    let redis = Redis::start();
    redis.cli(&["SET", "s", "a string"]);
    let wrong = publish(&redis, &["--stream", "s", "x"]);
    assert_eq!((wrong.code(), wrong.stderr.contains("WRONGTYPE")), (Some(1), true), "{wrong:?}");
    let rule = ["ACL", "SETUSER", "reader", "on", ">sesame", "+@all", "-eval", "-evalsha", "~*", "&*"];
    redis.cli(&rule);
    let url = format!("redis://reader:sesame@{}", redis.address());
    let refused = run(&["publish", "--durable", "--redis", &url, "--stream", "t", "x"]);
    assert_eq!((refused.code(), refused.stderr.contains("NOPERM")), (Some(77), true), "{refused:?}");
    for (args, part) in [
        (&["publish", "--durable", "x"][..], "--durable needs to know the stream"),
        (&["publish", "--stream", "s", "x"], "--durable"),
        (&["publish", "--maxlen", "5", "--room", "a", "x"], "--durable"),
        (&["publish", "--durable", "--also-publish", "--stream", "s", "x"], "--also-publish needs to know"),
    ] {
        let finished = run(args);
        assert_eq!(finished.code(), Some(2), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(part), "{args:?}: {finished:?}");
    }
}

#[test]
fn a_database_of_the_address_is_where_the_stream_is() {
    let redis = Redis::start();
    let url = format!("{}/3", redis.url());
    let published = run(&["publish", "--durable", "--redis", &url, "--stream", "s", "x"]);
    assert_eq!(published.code(), Some(0), "{published:?}");
    assert_eq!(redis.cli(&["EXISTS", "s"]), OwnedFrame::Integer(0));
    let mut other = redis.connect().expect("redis takes connections");
    other.command(&[b"SELECT", b"3"]).expect("there is a fourth database");
    assert_eq!(other.command(&[b"XLEN", b"s"]).expect("it is there"), OwnedFrame::Integer(1));
}
