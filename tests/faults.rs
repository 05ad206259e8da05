//! Each fault of a Redis under load: 20 clients at 100 messages a second lose nothing that they are not told of, and of a
//! stream nothing at all; they keep their connections, and hear the room again within half a second of Redis' being back.
//!
//! `make faults` prints what these stories measure as the table of docs/FAULTS.md.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::deadline::{LONG, SOON, eventually, eventually_ok};
use crate::support::feed::{By, Feed};
use crate::support::payload;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::sentinel::Watched;
use crate::support::server::Server;

/// Makes each story (`fn(By)`) two tests: of a room that Pub/Sub feeds, and of one that a stream feeds.
macro_rules! by_either_source {
    ($($story:ident),+ $(,)?) => {$(
        mod $story {
            use crate::support::feed::By;

            #[test]
            fn by_pubsub() {
                super::$story(By::Publish);
            }

            #[test]
            fn by_stream() {
                super::$story(By::Append);
            }
        }
    )+};
}

by_either_source!(
    redis_stands_still_for_a_second,
    redis_stands_still_for_longer_than_the_probe_waits,
    redis_crashes_and_is_started_at_once,
    redis_crashes_and_is_away_for_a_while,
    redis_hangs_up,
    the_connection_to_redis_breaks,
    the_way_to_redis_falls_silent_with_its_connections_open,
);

fn redis_stands_still_for_a_second(by: By) {
    let redis = start(by);
    let load = Load::of(&redis, by, &redis.url());
    let stopped = Instant::now();
    redis.sigstop();
    passes(Duration::from_secs(1));
    redis.sigcont();
    let cost = load.judge("Redis stands still for 1 s (SIGSTOP)", Instant::now());
    // Unless this machine was away for so long that the probe gave Redis up.
    assert!(cost.is_nothing() || stopped.elapsed() > Duration::from_secs(3), "{cost:?}");
}

fn redis_stands_still_for_longer_than_the_probe_waits(by: By) {
    let redis = start(by);
    let load = Load::of(&redis, by, &redis.url());
    redis.sigstop();
    load.server.wait_broker(false);
    redis.sigcont();
    load.judge("Redis stands still until it is given up (3 s)", Instant::now());
}

fn redis_crashes_and_is_started_at_once(by: By) {
    let mut redis = start(by);
    let load = Load::of(&redis, by, &redis.url());
    redis.kill9();
    redis.restart();
    load.judge("Redis crashes and is started at once (kill -9)", Instant::now());
}

fn redis_crashes_and_is_away_for_a_while(by: By) {
    let mut redis = start(by);
    let load = Load::of(&redis, by, &redis.url());
    redis.kill9();
    passes(Duration::from_secs(3));
    redis.restart();
    load.judge("Redis crashes and is away for 3 s", Instant::now());
}

fn redis_hangs_up(by: By) {
    let redis = start(by);
    let load = Load::of(&redis, by, &redis.url());
    let killed = Instant::now();
    redis.client_kill_pubsub();
    if by == By::Append {
        redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    load.judge("Redis hangs up (CLIENT KILL)", killed);
}

fn the_connection_to_redis_breaks(by: By) {
    let redis = start(by);
    let proxy = Proxy::to(redis.address());
    let load = Load::of(&redis, by, &proxy.url());
    let cut = Instant::now();
    proxy.cut();
    load.judge("the connections to Redis break", cut);
}

fn the_way_to_redis_falls_silent_with_its_connections_open(by: By) {
    let redis = start(by);
    let proxy = Proxy::to(redis.address());
    let load = Load::of(&redis, by, &proxy.url());
    proxy.fall_silent();
    load.server.wait_broker(false);
    if by == By::Append {
        // They are connections of their own, and what was swallowed is lost to them.
        load.server
            .wait_metrics("its streams are given up too", |page| page.sum("corecast_streams_up") == 0.0);
    }
    proxy.speak();
    load.judge("the way to Redis is silent until it is given up (3 s)", Instant::now());
}

#[test]
fn redis_cuts_a_subscriber_that_falls_behind() {
    let redis = Redis::start_with(&["--client-output-buffer-limit", "pubsub", "64kb", "0", "0"]);
    let load = Load::of(&redis, By::Publish, &redis.url());
    load.server.signal(Signal::STOP);
    let mut connection = redis.connect().expect("redis takes connections");
    // More than the kernel holds for one connection; nobody is in that room.
    let ballast = vec![b'x'; 1 << 20];
    eventually(LONG, "redis has cut it", || {
        connection.publish("room:elsewhere", &ballast).expect("redis takes publications") == 0
    });
    load.server.signal(Signal::CONT);
    load.judge("Redis cuts the server off for its output limit", Instant::now());
}

#[test]
fn a_primary_crashes_and_its_sentinels_promote_the_replica() {
    let mut watched = Watched::start();
    let targets = [watched.primary.address(), watched.replica.address()];
    let feed = Feed::start(&targets, By::Publish, "room:lobby", RATE);
    let load = Load::with(feed, By::Publish, &watched.url());
    watched.primary.kill9();
    watched.wait_promoted();
    load.judge("the primary crashes, sentinels promote its replica", Instant::now());
}

#[test]
fn a_slot_of_a_cluster_moves() {
    let cluster = Cluster::start(3, false);
    let load = Load::of_cluster(&cluster);
    let owner = cluster.first_owner("lobby");
    let moved = Instant::now();
    cluster.migrate("lobby", owner, (owner + 1) % 3);
    load.judge("the room's slot moves to another node of a cluster", moved);
}

#[test]
fn a_node_of_a_cluster_crashes_and_its_replica_takes_over() {
    let mut cluster = Cluster::start(3, true);
    let load = Load::of_cluster(&cluster);
    let owner = cluster.first_owner("lobby");
    cluster.nodes[owner].kill9();
    eventually(LONG, "its replica takes over", || cluster.role(owner + 3) == "master");
    load.judge("the room's node of a cluster crashes, its replica takes over", Instant::now());
}

/// A Redis that loses nothing that it has taken, where that is asked of it.
#[track_caller]
fn start(by: By) -> Redis {
    match by {
        By::Append => Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]),
        By::Publish | By::ShardPublish => Redis::start(),
    }
}

/// Clients of a room that is published to.
struct Load {
    by: By,
    server: Server,
    /// What each heard; its connection is open until that is judged.
    listeners: Vec<JoinHandle<(Vec<Heard>, Client)>>,
    /// Number of the last publication that each heard.
    heard: Vec<Arc<AtomicU64>>,
    feed: Feed,
}

/// What a client heard, and when.
struct Heard {
    at: Instant,
    /// `None`: that something is missing.
    number: Option<u64>,
}

/// What a fault cost.
#[derive(Debug)]
struct Cost {
    /// Of each client.
    lost: Vec<u64>,
    /// Notices, at the client that had most.
    told: usize,
}

impl Load {
    #[track_caller]
    fn of(redis: &Redis, by: By, url: &str) -> Self {
        Self::with(Feed::start(&[redis.address()], by, "room:lobby", RATE), by, url)
    }

    #[track_caller]
    fn of_cluster(cluster: &Cluster) -> Self {
        let targets: Vec<_> = cluster.nodes.iter().map(Redis::address).collect();
        let feed = Feed::start(&targets, By::ShardPublish, "room:lobby", RATE);
        Self::with(feed, By::ShardPublish, &cluster.url())
    }

    /// Returns when every client hears the room.
    #[track_caller]
    fn with(feed: Feed, by: By, url: &str) -> Self {
        let subscribe = match by {
            By::Publish => "psubscribe room:*",
            By::ShardPublish => "subscribe room:{1}",
            By::Append => "stream room:*",
        };
        let config = CONFIG.replace("SUBSCRIBE", subscribe);
        let server = Server::builder().redis_url(url).shards(2).config(&config).start();
        server.wait_broker(true);
        let heard_last: Vec<Arc<AtomicU64>> = (0..CLIENTS).map(|_| Arc::default()).collect();
        let listeners = heard_last.iter().map(|last| {
            let last = Arc::clone(last);
            let mut client = Client::offering(server.address(), "/ws?room=lobby", "corecast.v1.json");
            let first =
                eventually_ok(LONG, "it hears the room", || heard(&client.next_text()).ok_or("not yet"));
            thread::spawn(move || {
                let mut all =
                    vec![Heard { at: Instant::now(), number: Some(first.expect("nothing is missing")) }];
                loop {
                    let text = client.next_text();
                    match heard(&text) {
                        Some(Some(END)) => return (all, client),
                        Some(number) => {
                            all.push(Heard { at: Instant::now(), number });
                            last.fetch_max(number.unwrap_or_default(), Ordering::Relaxed);
                        }
                        None => {}
                    }
                }
            })
        });
        let listeners = listeners.collect();
        Self { by, server, listeners, heard: heard_last, feed }
    }

    /// After a fault that was over at `back`: what it cost.
    ///
    /// # Panics
    /// When somebody lost something and was not told in its place, heard something twice, was closed, or did not hear the
    /// room soon enough.
    #[track_caller]
    fn judge(self, fault: &'static str, back: Instant) -> Cost {
        let since = self.feed.started();
        eventually(LONG, "somebody takes what is published", || self.feed.accepted() > since + 50);
        let all_heard = |number: u64| self.heard.iter().all(|last| last.load(Ordering::Relaxed) >= number);
        let more = self.feed.accepted();
        eventually(LONG, "the room is heard again", || all_heard(more));
        let accepted = self.feed.stop();
        let last = *accepted.last().expect("something was published");
        eventually(LONG, "and to the last", || all_heard(last));
        let server = self.server;
        let end = payload::payload('P', END, 32);
        eventually_ok(SOON, "the end is published", || {
            let posted = server.post("/publish?room=lobby", &end);
            if posted.status == 200 { Ok(()) } else { Err(format!("{posted:?}")) }
        });
        let listeners = self.listeners.into_iter().map(|client| client.join().expect("nobody is closed"));
        let (all, _open): (Vec<Vec<Heard>>, Vec<Client>) = listeners.unzip();

        let lost = all.iter().map(|heard| lost_and_told(fault, heard, &accepted)).collect::<Vec<_>>();
        let told = all.iter().map(|heard| heard.iter().filter(|one| one.number.is_none()).count()).max();
        // The first after the fault and after what was told of it, at the last client to hear it.
        let again = all.iter().map(|heard| {
            let told = heard.iter().rposition(|one| one.number.is_none()).unwrap_or(0);
            let first = heard[told..].iter().find(|one| one.at >= back && one.number.is_some());
            first.expect("the room went on").at - back
        });
        let again = again.max().expect("there are clients");
        let page = server.metrics();
        let closed = page.sum_where("corecast_connections_closed_total", "reason", |why| why != "http_done");
        let most = lost.iter().max().expect("there are clients");
        let published = accepted.len();
        let source = if self.by == By::Append { "stream" } else { "Pub/Sub" };
        println!(
            "| {fault} | {source} | {published} | {most} | {} | {} ms |",
            told.unwrap_or_default(),
            again.as_millis()
        );
        assert_eq!(closed, 0.0, "{fault}: {}", page.show("corecast_connections_closed_total"));
        assert!(again < AGAIN_MAX, "{fault}: the room was heard again after {again:?}");
        let cost = Cost { lost, told: told.unwrap_or_default() };
        assert!(self.by != By::Append || cost.is_nothing(), "{fault}, of a stream: {cost:?}");
        cost
    }
}

impl Cost {
    fn is_nothing(&self) -> bool {
        self.told == 0 && self.lost.iter().all(|lost| *lost == 0)
    }
}

/// How many of `accepted` a client did not get; for each hole it was told, before it heard what came after.
#[track_caller]
fn lost_and_told(fault: &str, heard: &[Heard], accepted: &BTreeSet<u64>) -> u64 {
    let (mut last, mut is_told, mut lost) = (None::<u64>, false, 0);
    for one in heard {
        let Some(number) = one.number else {
            is_told = true;
            continue;
        };
        if let Some(last) = last {
            assert!(number > last, "{fault}: {number} came after {last}");
            let missing = accepted.range(last + 1..number).count() as u64;
            assert!(
                missing == 0 || is_told,
                "{fault}: {missing} between {last} and {number} were lost without notice: {:?}",
                heard.iter().map(|one| one.number).collect::<Vec<_>>()
            );
            lost += missing;
        }
        (last, is_told) = (Some(number), false);
    }
    let missing = last.map_or(0, |last| accepted.range(last + 1..).count() as u64);
    assert_eq!(missing, 0, "{fault}: the last were lost");
    lost
}

/// A publication's number, or the notice that some are missing (`Some(None)`); `None` for whatever else comes.
fn heard(text: &str) -> Option<Option<u64>> {
    let frame: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"));
    if frame["type"] == json!("gap") {
        return Some(None);
    }
    payload::parse(frame["data"].as_str()?.as_bytes()).map(|(_, number)| Some(number))
}

/// The length of a fault, which is no wait for anything.
fn passes(time: Duration) {
    thread::sleep(time);
}

const CLIENTS: usize = 20;
/// Publications a second.
const RATE: u32 = 100;
/// The number of the last message, which ends the listeners.
const END: u64 = u64::MAX;
/// What is promised is half a second; the rest is for a machine with other work.
const AGAIN_MAX: Duration = Duration::from_secs(2);

const CONFIG: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"

[[source]]
redis = "SUBSCRIBE"
room = "{1}"
"#;
