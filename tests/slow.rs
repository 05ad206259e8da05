//! Readers that stop reading: what they cost the others, and what becomes of them.

use crate::support::deadline::{LONG, eventually};
use crate::support::metrics::Metrics;
use crate::support::payload::payload;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Phase, Swarm};
use crate::support::{heavy, on_both_drivers};

on_both_drivers!(
    ten_percent_of_stalled_readers_cost_the_others_nothing_and_are_closed_with_1013,
    under_drop_oldest_received_and_dropped_make_up_all_that_was_published,
    a_reader_that_pauses_within_its_limits_misses_nothing,
);

fn ten_percent_of_stalled_readers_cost_the_others_nothing_and_are_closed_with_1013(driver: Driver) {
    let _alone = heavy();
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let swarm = Swarm::new();
    let healthy = swarm.add_many(server.address(), "/ws?room=lobby", HEALTHY);
    let stalled = add_with_small_buffers(&swarm, &server, STALLED);
    swarm.wait_open();
    stalled.clone().for_each(|member| swarm.stall(member));
    let before = server.user_memory_bytes();

    // Paced by the healthy ones: a burst that outran them would make them slow, too.
    let mut published = 0;
    let mut resumed = false;
    while published < PUBLICATIONS_MIN || !resumed {
        assert!(
            published < PUBLICATIONS_MAX,
            "nobody is too slow after {published} x 16 KiB: {}",
            closed(&server)
        );
        publish(&redis, published + 1, published + BATCH);
        published += BATCH;
        swarm.wait_each(healthy.clone(), "the healthy ones keep up", |m| {
            m.tally('P').is_exactly(1, published)
        });
        // Read on as soon as they are given up, to see what they are told.
        if !resumed && server.metrics().closed_as_slow() >= STALLED as f64 {
            stalled.clone().for_each(|member| swarm.resume(member));
            resumed = true;
        }
    }

    swarm.wait_each(stalled.clone(), "the stalled ones are told 1013", |m| m.close_code == Some(1013));
    swarm.wait_each(stalled, "and their TCP ends", |m| m.phase() == &Phase::Ended);
    let grown = server.user_memory_bytes().saturating_sub(before);
    assert!(grown <= 16 << 20, "user memory grew by {grown} bytes, 16 MiB are allowed");
    swarm.wait_each(healthy, "the healthy ones are open", |m| m.is_open());
    let page = server.metrics();
    assert_eq!(page.closed_as_slow(), STALLED as f64, "{}", page.show("corecast_connections_closed_total"));
    assert!(page.sum("dropped_messages") > 0.0, "event-fanout counts what slow clients did not get");
    assert_ledger_balances(&page);
}

fn under_drop_oldest_received_and_dropped_make_up_all_that_was_published(driver: Driver) {
    let _alone = heavy();
    let redis = Redis::start();
    let server = Server::builder().redis(&redis).driver(driver).shards(1).config(DROP_OLDEST).start();
    let swarm = Swarm::new();
    let healthy = swarm.add_many(server.address(), "/ws?room=lobby", HEALTHY);
    let stalled = add_with_small_buffers(&swarm, &server, STALLED);
    swarm.wait_open();
    stalled.clone().for_each(|member| swarm.stall(member));

    let mut published = 0;
    while published < PUBLICATIONS_MIN {
        publish(&redis, published + 1, published + BATCH);
        published += BATCH;
        swarm.wait_each(healthy.clone(), "the healthy ones keep up", |m| {
            m.tally('P').is_exactly(1, published)
        });
    }
    stalled.clone().for_each(|member| swarm.resume(member));

    swarm.wait_each(stalled.clone(), "the stalled ones get the tail", |m| m.tally('P').last == published);
    swarm.assert_all_open();
    let missing: u64 = swarm.map(|member| member.tally('P').missing()).iter().sum();
    assert!(missing > 0, "nobody fell behind: the story did not happen");
    for member in stalled {
        let tally = swarm.look(member, |m| m.tally('P'));
        assert_eq!(tally.backwards, 0, "{tally:?}");
        assert_eq!(tally.received + tally.missing(), published, "{tally:?}");
    }
    let (page, _) = server.wait_metrics("every delivery is booked", |page| {
        page.sum("corecast_deliveries_total") + page.sum("corecast_drops_total")
            == page.sum("corecast_owed_total")
    });
    assert_eq!(page.labelled("corecast_drops_total", "reason", "drop_oldest"), missing as f64);
    assert_eq!(page.sum("corecast_owed_total"), (published * (HEALTHY + STALLED) as u64) as f64);
}

fn a_reader_that_pauses_within_its_limits_misses_nothing(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let swarm = Swarm::new();
    let pausing = add_with_small_buffers(&swarm, &server, 1).start;
    let reading = swarm.add(server.address(), "/ws?room=lobby");
    swarm.wait_open();

    for round in 0..5 {
        swarm.stall(pausing);
        // 32 x 16 KiB are more than its buffers hold and an eighth of what the class allows it to be behind.
        publish(&redis, round * BATCH + 1, (round + 1) * BATCH);
        let all = (round + 1) * BATCH;
        swarm.wait_each([reading], "the other one has all", |m| m.tally('P').is_exactly(1, all));
        eventually(LONG, "the pausing one is stalled", || {
            server.metrics().sum("corecast_stalled_connections") == 1.0
        });
        swarm.resume(pausing);
        swarm.wait_each([pausing], "the pausing one caught up", |m| m.tally('P').is_exactly(1, all));
    }

    let page = server.metrics();
    assert_eq!(page.sum("corecast_drops_total"), 0.0);
    assert_ledger_balances(&page);
}

fn publish(redis: &Redis, from: u64, to: u64) {
    let payloads = (from..=to).map(|sequence| payload('P', sequence, 16 * 1024));
    let published = redis.connect().and_then(|mut connection| connection.publish_all("room:lobby", payloads));
    published.unwrap_or_else(|error| panic!("redis did not take {from} to {to}: {error}"));
}

/// Members whose kernel hides as little as it can of what they don't read.
fn add_with_small_buffers(swarm: &Swarm, server: &Server, count: usize) -> std::ops::Range<usize> {
    let first = swarm.len();
    for _ in 0..count {
        swarm.add_with(server.address(), "/ws?room=lobby", Some(4096));
    }
    first..first + count
}

#[track_caller]
fn assert_ledger_balances(page: &Metrics) {
    let [owed, delivered, dropped] =
        ["corecast_owed_total", "corecast_deliveries_total", "corecast_drops_total"]
            .map(|name| page.sum(name));
    assert_eq!(owed, delivered + dropped, "owed is not delivered + dropped");
}

fn closed(server: &Server) -> String {
    server.metrics().show("corecast_connections_closed_total")
}

const HEALTHY: usize = 54;
const STALLED: usize = 6;
/// Publications of 16 KiB between two looks: an eighth of the 256 that event-fanout allows anyone to be behind.
const BATCH: u64 = 32;
/// 6 MiB for each member: more than the kernel hides for one that does not read.
const PUBLICATIONS_MIN: u64 = 384;
/// 64 MiB for each member.
const PUBLICATIONS_MAX: u64 = 4096;

const DROP_OLDEST: &str = r#"
[[route]]
path = "/ws"
when_query = "room"
room = "{query.room}"
publish = "any"

[[room]]
name = "*"
slow = { policy = "drop-oldest", frames = 64, bytes = "1MiB", age = "60s" }

[[source]]
redis = "psubscribe room:*"
room = "{1}"
deliver = "raw"
"#;
