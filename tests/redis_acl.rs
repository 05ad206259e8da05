//! Users of Redis with limited rights: the documented one suffices, and each right that is missing is named with the rule
//! that gives it.

use redis_protocol::resp2::types::OwnedFrame;

use crate::support::client::Client;
use crate::support::metrics::Metrics;
use crate::support::program::run;
use crate::support::redis::Redis;
use crate::support::server::{Server, ServerBuilder};
use crate::support::tool::repository;

/// The words of the line in docs/OPERATIONS.md.
fn documented() -> Vec<String> {
    let text = std::fs::read_to_string(repository("docs/OPERATIONS.md")).expect("the document is there");
    let line = text.lines().find(|line| line.starts_with("ACL SETUSER corecast on >PASSWORD "));
    let line = line.expect("the document has the line for the user");
    line.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect()
}

/// Runs what an administrator types.
#[track_caller]
fn command(redis: &Redis, words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ok = OwnedFrame::SimpleString(b"OK".to_vec());
    assert_eq!(redis.cli(&words), ok, "{words:?}");
}

/// A Redis with the documented user, but for what `change` does to its rules.
fn redis_with(change: impl FnOnce(&mut Vec<String>)) -> Redis {
    let redis = Redis::start();
    let mut words = documented();
    change(&mut words);
    command(&redis, &words);
    redis
}

fn without(rule: &str) -> Redis {
    redis_with(|words| {
        let count = words.len();
        words.retain(|word| word != rule);
        assert_eq!(words.len(), count - 1, "{rule} is in the document's line");
    })
}

fn url(redis: &Redis) -> String {
    format!("redis://corecast:PASSWORD@{}", redis.address())
}

fn by_pattern(redis: &Redis) -> ServerBuilder {
    Server::builder().preset("event-fanout").redis_url(&url(redis)).shards(1)
}

fn on_demand(redis: &Redis) -> ServerBuilder {
    Server::builder().redis_url(&url(redis)).shards(1)
}

#[test]
fn the_documented_user_suffices() {
    let redis = redis_with(|_| {});
    for server in [by_pattern(&redis).start(), on_demand(&redis).start()] {
        server.wait_broker(true);
        let mut alice = Client::join(&server, "lobby");
        redis.publish("room:lobby", "from outside");
        assert_eq!(alice.next_text(), "from outside");
        let mut bob = Client::join(&server, "hall");
        bob.send_text("to all in the hall");
        assert_eq!(bob.next_text(), "to all in the hall");
        assert!(!server.log().contains("WARN"), "{}", server.log());
    }
    let OwnedFrame::Array(refusals) = redis.cli(&["ACL", "LOG"]) else { panic!("ACL LOG is a list") };
    assert!(refusals.is_empty(), "Redis refused something: {refusals:?}");
}

#[test]
fn each_right_that_is_missing_is_named_with_the_rule_that_gives_it() {
    for (rule, cure) in [
        ("+subscribe", "ACL SETUSER corecast +subscribe '&corecast:probe:*'"),
        ("&corecast:probe:*", "ACL SETUSER corecast +subscribe '&corecast:probe:*'"),
        ("+psubscribe", "ACL SETUSER corecast +psubscribe '&room:*'"),
        ("&room:*", "ACL SETUSER corecast +psubscribe '&room:*'"),
        ("+publish", "ACL SETUSER corecast +publish '&corecast:probe:*'"),
    ] {
        let redis = without(rule);
        let server = by_pattern(&redis).start();
        let line = server.wait_log(&format!("{rule} is missed"), |line| line.contains(cure));
        assert!(line.contains("redis is away") && line.contains("NOPERM"), "{line}");
        // What the line says is what helps.
        let words: Vec<String> = cure.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
        command(&redis, &words);
        server.wait_broker(true);
    }
}

#[test]
fn a_room_whose_channel_is_refused_costs_that_room_alone() {
    let redis =
        redis_with(|words| words.iter_mut().for_each(|word| *word = word.replace("&room:*", "&room:open")));
    let server = on_demand(&redis).start();
    server.wait_broker(true);
    let mut open = Client::join(&server, "open");
    let _closed = Client::join(&server, "closed");
    let cure = "ACL SETUSER corecast +subscribe '&room:closed'";
    server.wait_log("the refused channel is told", |line| {
        line.contains("a channel is not permitted") && line.contains(cure)
    });
    redis.publish("room:open", "still here");
    assert_eq!(open.next_text(), "still here");
    assert_eq!(server.metrics().sum("corecast_broker_up"), 1.0);
}

#[test]
fn a_publication_that_is_refused_is_told_and_counted() {
    // Only the probe may be published.
    let redis = redis_with(|words| {
        words.retain(|word| word != "+publish");
        words.push("(+publish &corecast:probe:*)".to_owned());
    });
    let server = by_pattern(&redis).start();
    server.wait_broker(true);
    let mut alice = Client::join(&server, "lobby");
    alice.send_text("hello?");
    server.wait_log("the refusal is told", |line| {
        line.contains("redis refuses publications of clients")
            && line.contains("ACL SETUSER corecast +publish '&room:*'")
    });
    let refused = |page: &Metrics| page.sum("corecast_publications_refused_total") == 1.0;
    server.wait_metrics("it is counted", refused);
    command(&redis, &["ACL", "SETUSER", "corecast", "+publish", "&room:*"].map(str::to_owned));
    alice.send_text("and now?");
    assert_eq!(alice.next_text(), "and now?");
}

#[test]
fn a_password_that_is_changed_is_told_when_the_connection_ends_and_taken_when_it_is_right_again() {
    let redis = redis_with(|_| {});
    let server = by_pattern(&redis).start();
    server.wait_broker(true);
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    command(&redis, &words("ACL SETUSER corecast resetpass >another"));
    assert!(matches!(redis.cli(&["CLIENT", "KILL", "USER", "corecast"]), OwnedFrame::Integer(2)));
    server.wait_log("the refused password is told", |line| {
        line.contains("WRONGPASS") && line.contains("ACL SETUSER corecast on >PASSWORD")
    });
    server.wait_broker(false);
    assert!(!server.log().contains(":PASSWORD@"), "the log shows the password: {}", server.log());
    command(&redis, &words("ACL SETUSER corecast >PASSWORD"));
    server.wait_broker(true);

    // Redis itself ends the connections of a user who loses a channel, or himself.
    command(&redis, &words("ACL SETUSER corecast resetchannels"));
    server.wait_log("the lost channel is told", |line| line.contains("+subscribe '&corecast:probe:*'"));
    command(&redis, &documented());
    server.wait_broker(true);
    assert_eq!(redis.cli(&["ACL", "DELUSER", "corecast"]), OwnedFrame::Integer(1));
    server.wait_broker(false);
    command(&redis, &documented());
    server.wait_broker(true);
}

#[test]
fn commands_and_doctor_name_the_rule_too() {
    let redis = redis_with(|_| {});
    let refused = run(&["publish", "--redis", &url(&redis), "--channel", "other", "hello"]);
    assert_eq!(refused.code(), Some(77), "{refused:?}");
    assert!(refused.stderr.contains("ACL SETUSER corecast +publish '&other'"), "{refused:?}");
    let doctor = run(&["doctor", "--preset", "event-fanout", "--redis", &url(&redis)]);
    assert!(doctor.stdout.contains("INFO or CONFIG GET are not"), "{doctor:?}");
    assert!(doctor.stdout.contains("ACL SETUSER corecast +info +config|get permits them"), "{doctor:?}");
    let doctor = run(&["doctor", "--preset", "backbone", "--redis", &url(&redis)]);
    assert!(doctor.stdout.contains("+get +set ~last_price:*"), "{doctor:?}");
}
