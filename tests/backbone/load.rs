//! The backbone under load: slow consumers, its line every 5 s, a stop in the middle of it all.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::backbone;
use crate::support::deadline::{SOON, eventually};
use crate::support::payload::payload;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::speaker::{Speaker, price};
use crate::support::swarm::{Phase, Swarm};
use crate::support::{heavy, on_both_drivers};

on_both_drivers!(
    a_consumer_that_stands_still_loses_the_oldest_and_after_more_than_five_is_closed,
    sigterm_under_load_says_1001_to_consumers_and_ingestors,
    whoever_asks_and_reads_no_answers_is_not_read_until_it_does,
);

fn a_consumer_that_stands_still_loses_the_oldest_and_after_more_than_five_is_closed(driver: Driver) {
    let _alone = heavy();
    let redis = Redis::start();
    let server = backbone(&redis).driver(driver).start();
    let swarm = Swarm::new();
    let healthy = join(&swarm, &server, HEALTHY, None);
    let stuck = join(&swarm, &server, 1, Some(4096)).start;
    swarm.stall(stuck);

    // Paced by the healthy ones: a burst that outran them would make them slow, too.
    let mut published = 0;
    while server.metrics().closed("slow_drops") == 0.0 {
        assert!(published < PUBLICATIONS_MAX, "it is not too slow after {published} x 16 KiB");
        let mut connection = redis.connect().expect("redis takes connections");
        let payloads = (published + 1..=published + BATCH).map(envelope);
        connection.publish_all("chat:events", payloads).expect("redis takes publications");
        published += BATCH;
        swarm.wait_each(healthy.clone(), "the healthy ones keep up", |member| {
            member.tally('P').is_exactly(1, published)
        });
    }
    swarm.resume(stuck);
    swarm.wait_each([stuck], "it is told 1013", |member| member.close_code == Some(1013));
    swarm.wait_each(healthy, "the others stay", |member| member.is_open());
    let (tally, page) = (swarm.look(stuck, |member| member.tally('P')), server.metrics());
    assert_eq!(tally.backwards, 0, "{tally:?}");
    assert!(tally.last < published, "{tally:?}");
    let lost = page.labelled("corecast_drops_total", "reason", "drop_oldest");
    assert!(lost > 5.0, "{}", page.show("corecast_drops_total"));
    assert_eq!(page.closed_as_slow(), 1.0, "{}", page.show("corecast_connections_closed_total"));
}

fn sigterm_under_load_says_1001_to_consumers_and_ingestors(driver: Driver) {
    let redis = Redis::start();
    let mut server = backbone(&redis).driver(driver).shards(2).drain(DRAIN).start();
    let swarm = Swarm::new();
    let consumers = join(&swarm, &server, 200, None);
    let ingestors = swarm.add_many(server.address(), "/ws/ingest", 4);
    swarm.wait_open();
    // One event each 5 ms, which is how often a condition is looked at.
    let mut events = 0;
    let mut feed = || {
        events += 1;
        let event = json!({ "type": "event", "room": "lobby", "data": events }).to_string();
        swarm.send_text(ingestors.start + events % ingestors.len(), event.as_bytes());
    };
    eventually(SOON, "the load is on", || {
        feed();
        consumers.clone().all(|member| swarm.look(member, |member| member.messages > 10))
    });

    server.signal(Signal::TERM);
    let took = eventually(SOON, "it ends", || {
        feed();
        !server.is_running()
    });

    assert_eq!(server.wait_exit(SOON).code(), Some(0));
    assert!(took < DRAIN + MARGIN, "the drain took {took:?}, {DRAIN:?} were allowed");
    swarm.wait_all("everybody was told", |member| member.close_code == Some(1001));
    swarm.wait_all("and ended", |member| matches!(member.phase(), Phase::Ended | Phase::Broken(_)));
}

fn whoever_asks_and_reads_no_answers_is_not_read_until_it_does(driver: Driver) {
    let server = Server::builder().preset("backbone").driver(driver).shards(1).start();
    let swarm = Swarm::new();
    let rude = join(&swarm, &server, 1, Some(4096)).start;
    let mut other = Speaker::in_room(server.address(), "lobby");
    swarm.stall(rude);
    for _ in 0..JOINS / 1000 {
        (0..1000).for_each(|_| swarm.send_text(rude, br#"{"type":"join","room":"lobby"}"#));
    }
    server.wait_metrics("it is not read any more", |page| page.sum("corecast_reads_paused_total") > 0.0);
    for number in 0..100 {
        other.say(&json!({ "type": "message", "room": "lobby", "data": number }));
        assert_eq!(other.hear_data("message", "lobby"), number);
    }
    let read = server.metrics().sum("corecast_messages_received_total");
    assert!(read < (JOINS / 2) as f64, "{read} of {JOINS} joins are answered to somebody who reads none");
    swarm.resume(rude);
    swarm.wait_each([rude], "each is answered, and what was said meanwhile is heard", |member| {
        member.messages == (1 + JOINS + 100) as u64
    });
}

#[test]
fn a_line_every_five_seconds_says_what_was_ingested_and_what_became_of_it() {
    let redis = Redis::start();
    let server = backbone(&redis).start();
    let mut members = [(), ()].map(|()| Speaker::in_room(server.address(), "BTC_USDT"));
    let mut feed = Speaker::ingestor(server.address());
    for number in 1..=3 {
        feed.say(&price("BTC_USDT", f64::from(number)));
        members.iter_mut().for_each(|member| drop(member.hear_data("price_update", "BTC_USDT")));
    }
    feed.say(&price("ETH_USDT", 1.0));
    let line = server.wait_log("a line with all of it", |line| line.contains("total_ingested=4"));
    for part in [
        "INFO",
        "report",
        "total_broadcast=3",
        "total_delivered=6",
        "total_dropped=0",
        "clients=3",
        "rooms=1",
    ] {
        assert!(line.contains(part), "{part:?} in {line:?}");
    }
}

/// Adds members that are in the room "lobby", the joined answer read.
#[track_caller]
fn join(
    swarm: &Swarm,
    server: &Server,
    count: usize,
    receive_bytes: Option<usize>,
) -> std::ops::Range<usize> {
    let first = swarm.len();
    for _ in 0..count {
        swarm.add_with(server.address(), "/ws", receive_bytes);
    }
    swarm.wait_open();
    let members = first..first + count;
    members.clone().for_each(|member| swarm.send_text(member, br#"{"type":"join","room":"lobby"}"#));
    swarm.wait_each(members.clone(), "each has joined", |member| member.messages == 1);
    members
}

/// A foreign publisher's envelope of 16 KiB.
fn envelope(sequence: u64) -> Vec<u8> {
    let data = String::from_utf8(payload('P', sequence, 16 * 1024)).expect("numbered payloads are text");
    json!({ "room": "lobby", "type": "tick", "data": data, "origin": "elsewhere" }).to_string().into_bytes()
}

const HEALTHY: usize = 9;
const BATCH: u64 = 32;
const PUBLICATIONS_MAX: u64 = 16_384;
/// Answers of some 200 bytes each: 20 MB, far beyond what the sockets' buffers hold.
const JOINS: usize = 100_000;
const DRAIN: Duration = Duration::from_secs(2);
/// For the farewell itself (a second of linger) and a busy machine.
const MARGIN: Duration = Duration::from_secs(4);
