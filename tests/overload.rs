//! A shard that cannot keep up: what it misses is declared, and neither its members nor its siblings pay for it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::RawClient;
use crate::support::deadline::{LONG, eventually};
use crate::support::payload::payload;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;
use crate::support::{heavy, on_both_drivers, wire};

on_both_drivers!(
    a_shard_that_stands_still_misses_a_counted_gap_and_nobody_is_closed,
    whoever_sends_without_end_keeps_nobody_waiting,
);

fn a_shard_that_stands_still_misses_a_counted_gap_and_nobody_is_closed(driver: Driver) {
    let _alone = heavy();
    // Redis' own bound on what a subscriber may have outstanding is not the subject.
    let redis = Redis::start_with(&["--client-output-buffer-limit", "pubsub", "0", "0", "0"]);
    let server = Server::builder().redis(&redis).driver(driver).shards(2).config(PATIENT).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", MEMBERS);
    swarm.wait_open();

    let stopped = server.stop_thread("shard-1");
    let mut connection = redis.connect().expect("redis takes connections");
    let payloads = (1..=PUBLICATIONS).map(|sequence| payload('P', sequence, 16 * 1024));
    connection.publish_all("room:lobby", payloads).expect("redis takes publications");
    let unharmed = || swarm.count(|member| member.tally('P').is_exactly(1, PUBLICATIONS));
    eventually(LONG, "members of the other shard get everything meanwhile", || unharmed() > 0);
    assert!(unharmed() < MEMBERS, "the stopped shard has no members: the story did not happen");
    drop(stopped);

    redis.publish("room:lobby", payload('P', PUBLICATIONS + 1, 16));
    swarm.wait_all("everybody hears what comes afterwards", |m| m.tally('P').last == PUBLICATIONS + 1);
    swarm.assert_all_open();
    let tallies = swarm.map(|member| member.tally('P'));
    assert!(tallies.iter().all(|tally| tally.backwards == 0), "repeated or out of order: {tallies:?}");
    // The members of one shard miss the same, and exactly that is counted.
    let missing: BTreeSet<u64> =
        tallies.iter().map(|tally| tally.missing()).filter(|&missing| missing > 0).collect();
    assert_eq!(missing.len(), 1, "one gap was due, as the shard's backlog is bounded: {missing:?}");
    let page = server.metrics();
    let counted = page.labelled("corecast_gaps_total", "reason", "shard_overload");
    assert_eq!(counted, missing.into_iter().sum::<u64>() as f64, "{}", page.show("corecast_gaps_total"));
    assert!(page.sum("corecast_ring_full_total") >= 1.0);
}

fn whoever_sends_without_end_keeps_nobody_waiting(driver: Driver) {
    let _alone = heavy();
    let server = Server::builder().driver(driver).shards(1).start();
    let is_over = AtomicBool::new(false);
    let unasked = wire::masked(wire::PONG, &[b'x'; 100]).repeat(1000);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut flood = RawClient::upgraded(server.address(), "/ws?room=flood");
                while !is_over.load(Relaxed) {
                    flood.send(&unasked);
                }
            });
        }
        let mut other = RawClient::upgraded(server.address(), "/ws?room=lobby");
        let answered = (0..51).map(|_| {
            let began = Instant::now();
            other.send(&wire::masked(wire::PING, b"x"));
            assert_eq!(other.next(), wire::Frame::Pong(b"x".to_vec()));
            began.elapsed()
        });
        let mut took: Vec<Duration> = answered.collect();
        is_over.store(true, Relaxed);
        took.sort();
        // Of all but the slowest few, whom a busy machine may have kept waiting.
        assert!(took[45] < Duration::from_secs(1), "answers took {took:?}");
    });
}

/// 2^-15 that all of them are on one shard.
const MEMBERS: usize = 16;
/// 64 MiB in all, twice what may wait for a shard (`SHARD_BACKLOG_BYTES_MAX`).
const PUBLICATIONS: u64 = 4096;

/// Members may be far behind: what is judged here is the shard.
const PATIENT: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"

[[room]]
name = "*"
slow = { policy = "disconnect", frames = 100000, bytes = "64MiB", age = "60s" }

[[source]]
redis = "psubscribe room:*"
room = "{1}"
deliver = "raw"
"#;
