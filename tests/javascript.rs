//! The client of clients/javascript against the real server: each story is told in Node, and most in a page of Chromium
//! too (`scripts/test.sh browser`).

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::deadline::{LONG, SOON, eventually};
use crate::support::kernel::{Confinement, confine};
use crate::support::peer::{Peer, Runtime};
use crate::support::program::{self, Running};
use crate::support::proxy::Proxy;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::scratch::Scratch;
use crate::support::server::{Server, ServerBuilder};
use crate::support::tool;

/// Makes each story two tests. A browser is no part of most machines, so its tests run when they are asked for.
macro_rules! on_both_runtimes {
    ($($story:ident),+ $(,)?) => {$(
        mod $story {
            use crate::support::peer::Runtime;

            #[test]
            fn in_node() {
                super::$story(Runtime::Node);
            }

            #[test]
            #[ignore = "wants Chromium: scripts/test.sh browser"]
            fn in_chromium() {
                super::$story(Runtime::Chromium);
            }
        }
    )+};
}

on_both_runtimes! {
    a_client_whose_connection_breaks_misses_nothing_and_hears_nothing_twice,
    a_server_that_restarts_is_found_again_and_what_it_lost_is_a_gap,
    a_connection_that_fell_silent_is_noticed_and_made_anew,
    a_break_of_redis_is_a_gap_and_the_connection_stays,
    what_one_client_publishes_the_other_hears,
}

fn a_client_whose_connection_breaks_misses_nothing_and_hears_nothing_twice(runtime: Runtime) {
    let redis = Redis::start();
    let server = rooms(&redis).start();
    let proxy = Proxy::to(server.address());
    let mut peer = Peer::start(runtime, &plan(proxy.address(), &json!({})));
    assert_eq!(peer.wait_for("joined", 1)["recovered"], Value::Null);
    let load = Publisher::start(&redis, &["room:lobby".to_owned()], 'L', 64, RATE);
    for cut in 1..=CUTS {
        let seen = peer.tally('L').last;
        peer.wait("more comes", |events| publications(events) as u64 > seen);
        let accepted = load.accepted();
        proxy.cut();
        peer.wait_state("waiting", cut);
        eventually(LONG, "more is published", || load.accepted() > accepted + 3);
        let joined = peer.wait_for("joined", cut + 1);
        assert_eq!(joined["recovered"], true, "{joined}");
    }
    let last = load.stop().last().expect("publications were accepted").sequence;
    eventually(SOON, "the last one comes", || peer.tally('L').last == last);
    assert!(peer.tally('L').is_exactly(1, last), "{:?}, {last} were published", peer.tally('L'));
    assert_eq!(peer.events_of("gap"), Vec::<Value>::new());
}

fn a_server_that_restarts_is_found_again_and_what_it_lost_is_a_gap(runtime: Runtime) {
    let redis = Redis::start();
    let mut server = rooms(&redis).drain(Duration::from_millis(50)).start();
    let address = server.address();
    let mut peer = Peer::start(runtime, &plan(address, &json!({ "restartSpreadMs": 50 })));
    peer.wait_for("joined", 1);
    redis.publish("room:lobby", "L:1:");
    peer.wait_for("publication", 1);

    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    peer.wait_state("waiting", 1);
    let told = peer.events_of("state").into_iter().find(|change| change["state"] == "waiting");
    assert_eq!(told.expect("it waits")["code"], 1001);
    redis.publish("room:lobby", "L:2:");
    let _server = rooms(&redis).listen(address).start();

    assert_eq!(peer.wait_for("joined", 2)["recovered"], false, "its log went with the process");
    let gap = peer.wait_for("gap", 1);
    assert_eq!([&gap["reason"], &gap["from"]], [&json!("not_recovered"), &Value::Null]);
    redis.publish("room:lobby", "L:3:");
    peer.wait_for("publication", 2);
    assert_eq!(peer.tally('L').holes, [(2, 2)]);
}

fn a_connection_that_fell_silent_is_noticed_and_made_anew(runtime: Runtime) {
    let redis = Redis::start();
    let server = rooms(&redis).start();
    let proxy = Proxy::to(server.address());
    let options = json!({ "pingAfterMs": 200, "pongTimeoutMs": 200, "connectTimeoutMs": 1000 });
    let mut peer = Peer::start(runtime, &plan(proxy.address(), &options));
    peer.wait_for("joined", 1);
    // It is asked for a sign of life again and again, and gives it.
    server.wait_metrics("pings come", |page| page.sum("corecast_messages_received_total") >= 4.0);
    assert!(peer.events().iter().all(|event| event["state"] != "waiting"), "{:?}", peer.events());

    proxy.fall_silent();
    peer.wait_state("waiting", 1);
    redis.publish("room:lobby", "L:1:");
    proxy.speak();
    assert_eq!(peer.wait_for("joined", 2)["recovered"], true);
    peer.wait_for("publication", 1);
    let waits = peer.events_of("state").into_iter().find(|change| change["state"] == "waiting");
    assert_eq!(waits.expect("it waited")["reason"], "silent");
}

fn a_break_of_redis_is_a_gap_and_the_connection_stays(runtime: Runtime) {
    let redis = Redis::start();
    let server = rooms(&redis).start();
    let proxy = Proxy::to(server.address());
    let mut peer = Peer::start(runtime, &plan(proxy.address(), &json!({})));
    let before = peer.wait_for("joined", 1);
    redis.publish("room:lobby", "L:1:");
    peer.wait_for("publication", 1);

    assert_eq!(redis.client_kill_pubsub(), 1);
    let gap = peer.wait_for("gap", 1);
    assert_eq!([&gap["reason"], &gap["from"], &gap["to"]], [&json!("broker"), &Value::Null, &Value::Null]);
    assert_ne!(gap["epoch"], before["epoch"]);
    server.wait_broker(true);
    redis.publish("room:lobby", "L:2:");
    let publication = peer.wait_for("publication", 2);
    assert_eq!([&publication["epoch"], &publication["offset"]], [&gap["epoch"], &json!(2)]);

    // From where it stands in the new epoch it goes on after a reconnect.
    proxy.cut();
    assert_eq!(peer.wait_for("joined", 2)["recovered"], true);
    assert_eq!(peer.events_of("gap").len(), 1);
}

fn what_one_client_publishes_the_other_hears(runtime: Runtime) {
    let redis = Redis::start();
    let server = chat(&redis).start();
    let mut peers =
        [runtime, Runtime::Node].map(|runtime| Peer::start(runtime, &plan(server.address(), &json!({}))));
    for peer in &mut peers {
        peer.wait_for("joined", 1);
    }
    let said = json!({ "text": "grüße", "at": 1.5 });
    peers[0].tell(&json!({ "do": "publish", "room": "lobby", "data": said }));
    let heard = peers.each_mut().map(|peer| peer.wait_for("publication", 1));
    assert_eq!([&heard[0]["data"], &heard[1]["data"]], [&said, &said]);
    assert_eq!(heard[0]["offset"], 1);

    peers[0].tell(&json!({ "do": "leave", "room": "lobby" }));
    peers[0].wait_for("left", 1);
    peers[0].tell(&json!({ "do": "publish", "room": "lobby", "data": 2 }));
    assert_eq!(peers[0].wait_for("failed", 1)["code"], "not_joined");
    peers[1].tell(&json!({ "do": "publish", "room": "lobby", "data": 3 }));
    assert_eq!(peers[1].wait_for("publication", 2)["data"], 3);
    assert_eq!(peers[0].events_of("publication").len(), 1, "it left");
}

#[test]
fn a_newcomer_gets_what_it_wishes_of_the_past() {
    let redis = Redis::start();
    let server = rooms(&redis).start();
    let newcomer = |wish: Value| {
        let mut plan = plan(server.address(), &json!({}));
        plan["rooms"]["lobby"] = wish;
        let mut peer = Peer::start(Runtime::Node, &plan);
        peer.wait_for("joined", 1);
        peer
    };
    let mut first = newcomer(Value::Null);
    for number in 1..=5 {
        redis.publish("room:lobby", format!("L:{number}:"));
    }
    let epoch = first.wait_for("publication", 5)["epoch"].clone();
    let resume = json!({ "resume": { "epoch": epoch, "offset": 3 } });
    let wishes = [json!({ "first": "oldest" }), json!({ "first": 2 }), resume, json!({ "first": "newest" })];
    let mut peers = wishes.map(newcomer);
    redis.publish("room:lobby", "L:6:");
    for (peer, from) in peers.iter_mut().zip([1, 4, 4, 6]) {
        peer.wait_for("publication", 7 - from);
        assert!(peer.tally('L').is_exactly(from as u64, 6), "from {from}: {:?}", peer.tally('L'));
    }
    let recovered = peers.each_ref().map(|peer| peer.events_of("joined")[0]["recovered"].clone());
    assert_eq!(recovered, [Value::Null, Value::Null, json!(true), Value::Null]);
}

#[test]
fn the_example_of_the_readme_runs_as_it_stands() {
    let server = Server::builder().start();
    let folder = tool::repository("clients/javascript");
    let readme = fs::read_to_string(folder.join("README.md")).expect("a README");
    let example =
        readme.split("```js\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    assert_eq!(example.matches("//localhost:8080/").count(), 1);
    let scratch = Scratch::new();
    scratch.write("example.mjs", &example.replace("//localhost:8080/", &format!("//{}/", server.address())));
    fs::copy(folder.join("corecast.js"), scratch.path("corecast.js"))
        .expect("a scratch directory takes files");
    symlink(folder.join("node_modules"), scratch.path("node_modules")).expect("and links");
    let said = || program::text(&scratch.path("said"));

    let mut command = tool::command("node");
    let file = File::create(scratch.path("said")).expect("a scratch directory takes files");
    command
        .arg(scratch.path("example.mjs"))
        .stdout(file.try_clone().expect("a descriptor is left"))
        .stderr(file);
    confine(&mut command, Confinement::default());
    let mut node = Running(command.spawn().expect("node runs"));
    eventually(SOON, "it hears itself", || said().contains("1 { text: 'hello' }"));
    server.publish("lobby", br#"{"text":"bye"}"#);
    let status = node.wait(SOON, "it ends");
    assert!(status.success() && said().contains("2 { text: 'bye' }"), "{status}: {}", said());
}

/// Rooms of `room:*` that keep what was published, joined by message at `/live`.
fn rooms(redis: &Redis) -> ServerBuilder {
    Server::builder().redis(redis).shards(1).config(
        r#"
        [[route]]
        path = "/live"
        dialect = "json"

        [[room]]
        name = "*"
        history = { frames = 10000, bytes = "8MiB", age = "5m" }

        [[source]]
        redis = "psubscribe room:*"
        room = "{1}"
        "#,
    )
}

/// Rooms that their members publish to.
fn chat(redis: &Redis) -> ServerBuilder {
    Server::builder().redis(redis).shards(1).config(
        r#"
        [[route]]
        path = "/live"
        dialect = "json"
        publish = "member"

        [[source]]
        redis = "subscribe chat:events"
        room = "{json.room}"
        deliver = "event"
        own = "origin"
        "#,
    )
}

/// A client in the room `lobby` that is quick to come back.
fn plan(address: SocketAddr, options: &Value) -> Value {
    let mut all = json!({ "retryBaseMs": 20, "retryCapMs": 200 });
    let given = options.as_object().expect("options are an object").clone();
    all.as_object_mut().expect("so are these").extend(given);
    json!({ "url": format!("ws://{address}/live"), "options": all, "rooms": { "lobby": null } })
}

fn publications(events: &[Value]) -> usize {
    events.iter().filter(|event| event["event"] == "publication").count()
}

/// Publications a second.
const RATE: u32 = 100;
const CUTS: usize = 5;
