//! The EventSource of a real browser, which comes back by itself (`scripts/test.sh browser`).

use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::deadline::SOON;
use crate::support::peer::{Peer, Runtime};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::server::{Server, ServerBuilder};

mod misses_nothing_of_a_log_when_its_connection_breaks {
    #[test]
    #[ignore = "wants Chromium: scripts/test.sh browser"]
    fn in_chromium() {
        super::misses_nothing_of_a_log_when_its_connection_breaks();
    }
}

mod goes_on_after_a_restart_and_is_told_that_the_log_went_with_the_process {
    #[test]
    #[ignore = "wants Chromium: scripts/test.sh browser"]
    fn in_chromium() {
        super::goes_on_after_a_restart_and_is_told_that_the_log_went_with_the_process();
    }
}

mod resumes_where_it_was_after_a_restart_when_a_stream_feeds_the_room {
    #[test]
    #[ignore = "wants Chromium: scripts/test.sh browser"]
    fn in_chromium() {
        super::resumes_where_it_was_after_a_restart_when_a_stream_feeds_the_room();
    }
}

fn misses_nothing_of_a_log_when_its_connection_breaks() {
    let redis = Redis::start();
    let server = rooms(&redis, PUBSUB).start();
    let proxy = Proxy::to(server.address());
    let mut page = listener(proxy.address());
    redis.publish("room:lobby", "L:1:");
    page.wait_for("publication", 1);
    for cut in 1..=3 {
        proxy.cut();
        page.wait_for("error", cut);
        redis.publish("room:lobby", format!("L:{}:", cut + 1));
        page.wait_for("publication", cut + 1);
    }
    assert!(page.tally('L').is_exactly(1, 4), "{:?}", page.events());
    assert_eq!(page.events_of("gap"), Vec::<Value>::new());
    never_gave_up(&page);
}

fn goes_on_after_a_restart_and_is_told_that_the_log_went_with_the_process() {
    let redis = Redis::start();
    let mut server = rooms(&redis, PUBSUB).start();
    let address = server.address();
    let mut page = listener(address);
    redis.publish("room:lobby", "L:1:");
    let before = page.wait_for("publication", 1);

    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    page.wait_for("error", 1);
    redis.publish("room:lobby", "L:2:");
    let _server = rooms(&redis, PUBSUB).listen(address).start();

    let gap = page.wait_for("gap", 1);
    assert_eq!([&gap["reason"], &gap["from"]], [&json!("not_recovered"), &Value::Null], "{gap}");
    redis.publish("room:lobby", "L:3:");
    let after = page.wait_for("publication", 2);
    assert_eq!(after["data"], "L:3:");
    assert_ne!(epoch(&before), epoch(&after), "another run of numbers");
    never_gave_up(&page);
}

fn resumes_where_it_was_after_a_restart_when_a_stream_feeds_the_room() {
    let redis = Redis::start();
    let mut server = rooms(&redis, STREAM).start();
    let address = server.address();
    let append = |number: u64| redis.cli(&["XADD", "room:lobby", "*", "data", &format!("L:{number}:")]);
    let mut page = listener(address);
    append(1);
    let before = page.wait_for("publication", 1);

    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    page.wait_for("error", 1);
    append(2);
    let _server = rooms(&redis, STREAM).listen(address).start();

    page.wait_for("publication", 2);
    append(3);
    let after = page.wait_for("publication", 3);
    assert!(page.tally('L').is_exactly(1, 3), "{:?}", page.events());
    assert_eq!(page.events_of("gap"), Vec::<Value>::new());
    assert_eq!(epoch(&before), epoch(&after), "the stream's own");
    never_gave_up(&page);
}

fn epoch(event: &Value) -> Option<&str> {
    event["id"].as_str().and_then(|id| id.split(':').next())
}

/// A page of Chromium that listens to the lobby, and is there.
#[track_caller]
fn listener(at: SocketAddr) -> Peer {
    let events = format!("http://{at}/sse?room=lobby");
    let mut page = Peer::start(Runtime::Chromium, &json!({ "events": events }));
    page.wait_for("open", 1);
    page
}

/// An EventSource gives up where it is answered with anything but a stream; who breaks off is come back to.
#[track_caller]
fn never_gave_up(page: &Peer) {
    let errors = page.events_of("error");
    assert!(errors.iter().all(|error| error["given_up"] == false), "{errors:?}");
}

/// Rooms that keep what was published, fed as `source` says.
fn rooms(redis: &Redis, source: &str) -> ServerBuilder {
    let config = CONFIG.replace("SOURCE", source);
    Server::builder().redis(redis).shards(1).config(&config)
}

const PUBSUB: &str = "psubscribe room:*";
const STREAM: &str = "stream room:*";
const CONFIG: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"

[[room]]
name = "*"
history = { frames = 1000, bytes = "8MiB", age = "5m" }

[[source]]
redis = "SOURCE"
room = "{1}"
"#;
