//! The last price of an instrument: written where it is ingested, read for newcomers, gone after its time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use redis_protocol::resp2::types::OwnedFrame;
use serde_json::{Value, json};

use super::{backbone, last_values};
use crate::support::deadline::{SOON, eventually};
use crate::support::on_both_drivers;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::speaker::{Speaker, price};

on_both_drivers!(
    a_newcomer_of_any_instance_is_told_the_last_price,
    what_a_newcomer_hears_never_goes_back_in_time,
);

fn a_newcomer_of_any_instance_is_told_the_last_price(driver: Driver) {
    let redis = Redis::start();
    let [first, second] = [(), ()].map(|()| backbone(&redis).driver(driver).start());
    let mut resident = Speaker::in_room(first.address(), "BTC_USDT");
    let mut feed = Speaker::ingestor(first.address());
    for number in [1.0, 2.0] {
        feed.say(&price("BTC_USDT", number));
        assert_eq!(resident.hear_data("price_update", "BTC_USDT"), price("BTC_USDT", number));
    }
    wait_kept(&redis, "BTC_USDT", &price("BTC_USDT", 2.0));
    let left = milliseconds_left(&redis, "BTC_USDT");
    assert!((1..=30_000).contains(&left), "30 s were due, {left} ms are left");

    for server in [&first, &second] {
        let mut newcomer = Speaker::in_room(server.address(), "BTC_USDT");
        assert_eq!(newcomer.hear_data("price_update", "BTC_USDT"), price("BTC_USDT", 2.0));
        assert_eq!(server.metrics().sum("corecast_warm_starts_total"), 1.0);
        // Who joins again is told again; who joins another room is told nothing of this one.
        newcomer.leave("BTC_USDT");
        newcomer.join("BTC_USDT");
        assert_eq!(newcomer.hear_data("price_update", "BTC_USDT"), price("BTC_USDT", 2.0));
        newcomer.join("ETH_USDT");
    }
    // Residents are told nothing twice.
    feed.say(&price("BTC_USDT", 3.0));
    assert_eq!(resident.hear_data("price_update", "BTC_USDT"), price("BTC_USDT", 3.0));
}

/// Prices go up while newcomers come, so whatever is older than what they have heard shows.
fn what_a_newcomer_hears_never_goes_back_in_time(driver: Driver) {
    let redis = Redis::start();
    let [first, second] = [(), ()].map(|()| backbone(&redis).driver(driver).shards(2).start());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let feeding = scope.spawn(|| {
            let mut feed = Speaker::ingestor(first.address());
            let mut resident = Speaker::in_room(first.address(), "BTC_USDT");
            let mut number = 0.0;
            while !stop.load(Ordering::SeqCst) {
                number += 1.0;
                feed.say(&price("BTC_USDT", number));
                resident.hear_data("price_update", "BTC_USDT");
            }
        });
        let heard =
            scope.spawn(|| (0..NEWCOMERS).map(|_| [&first, &second].map(prices_heard)).collect::<Vec<_>>());
        let heard = heard.join();
        // The feed ends whatever became of the newcomers, so that a failure is told and not waited for.
        stop.store(true, Ordering::SeqCst);
        feeding.join().expect("the feed does not fail");
        for [here, there] in heard.expect("every newcomer hears prices") {
            assert!(here.windows(2).all(|pair| pair[0] < pair[1]), "where it is ingested: {here:?}");
            // Of another instance's prices the last value may be told before they have crossed.
            assert!(there[1..].windows(2).all(|pair| pair[0] < pair[1]), "elsewhere: {there:?}");
        }
    });
}

/// The first prices that a newcomer hears.
#[track_caller]
fn prices_heard(server: &Server) -> Vec<f64> {
    let mut newcomer = Speaker::in_room(server.address(), "BTC_USDT");
    let updates = (0..4).map(|_| newcomer.hear_data("price_update", "BTC_USDT"));
    updates.map(|update| update["price"].as_f64().expect("a price is a number")).collect()
}

#[test]
fn a_price_whose_time_is_over_is_told_to_nobody() {
    let redis = Redis::start();
    let config = r#"
        [[source]]
        redis = "subscribe chat:events"
        room = "{json.room}"
        deliver = "event"
        own = "origin"
        last_value = { prefix = "last_price:", ttl = "200ms" }
    "#;
    let server = backbone(&redis).config(config).start();
    let mut resident = Speaker::in_room(server.address(), "BTC_USDT");
    let mut feed = Speaker::ingestor(server.address());
    feed.say(&price("BTC_USDT", 1.0));
    assert_eq!(resident.hear_data("price_update", "BTC_USDT"), price("BTC_USDT", 1.0));
    eventually(SOON, "the price is kept for its time only", || last_values(&redis) == 0 && sets(&redis) > 0);
    // The instance has had the price, but a newcomer hears only what Redis still has.
    let mut newcomer = Speaker::in_room(server.address(), "BTC_USDT");
    feed.say(&price("BTC_USDT", 2.0));
    assert_eq!(newcomer.hear_data("price_update", "BTC_USDT"), price("BTC_USDT", 2.0));
}

#[test]
fn only_prices_are_kept_and_only_where_they_are_ingested() {
    let redis = Redis::start();
    let server = backbone(&redis).start();
    let mut member = Speaker::in_room(server.address(), "BTC_USDT");
    let mut feed = Speaker::ingestor(server.address());
    member.say(&json!({ "type": "message", "room": "BTC_USDT", "data": 1 }));
    member.hear_data("message", "BTC_USDT");
    feed.say(&json!({ "type": "event", "room": "BTC_USDT", "data": 1, "id": "BTC_USDT" }));
    member.hear_data("event", "BTC_USDT");
    assert_eq!(feed.refused(&price("BTC_USDT", -1.0), "invalid"), "price");
    let foreign =
        json!({ "room": "BTC_USDT", "type": "price_update", "data": price("BTC_USDT", 1.0), "origin": "o" });
    redis.publish("chat:events", foreign.to_string());
    member.hear_data("price_update", "BTC_USDT");
    // Writes are in order, so once this one is there all others would be.
    feed.say(&price("ETH_USDT", 1.0));
    wait_kept(&redis, "ETH_USDT", &price("ETH_USDT", 1.0));
    assert_eq!((last_values(&redis), sets(&redis)), (1, 1));
}

#[test]
fn without_redis_a_newcomer_joins_at_once_and_hears_what_comes() {
    let mut redis = Redis::start();
    let server = backbone(&redis).start();
    let mut feed = Speaker::ingestor(server.address());
    feed.say(&price("BTC_USDT", 1.0));
    wait_kept(&redis, "BTC_USDT", &price("BTC_USDT", 1.0));
    // Frozen before anybody has noticed, then dead.
    redis.sigstop();
    assert_routes(&server, &mut feed, 2.0);
    redis.sigcont();
    redis.kill9();
    assert_routes(&server, &mut feed, 3.0);
    server.wait_broker(false);
    assert_routes(&server, &mut feed, 4.0);
    redis.restart();
    server.wait_broker(true);
    feed.say(&price("BTC_USDT", 5.0));
    wait_kept(&redis, "BTC_USDT", &price("BTC_USDT", 5.0));
}

/// A newcomer joins and hears a price that is said after that.
#[track_caller]
fn assert_routes(server: &Server, feed: &mut Speaker, number: f64) {
    let mut newcomer = Speaker::in_room(server.address(), "BTC_USDT");
    feed.say(&price("BTC_USDT", number));
    // Redis may have answered for an earlier price before it was gone.
    while newcomer.hear_data("price_update", "BTC_USDT") != price("BTC_USDT", number) {}
}

/// Waits until Redis keeps `due` for `instrument`.
#[track_caller]
fn wait_kept(redis: &Redis, instrument: &str, due: &Value) {
    eventually(SOON, "the last price is kept", || {
        match redis.cli(&["GET", &format!("last_price:{instrument}")]) {
            OwnedFrame::BulkString(kept) => {
                serde_json::from_slice::<Value>(&kept).is_ok_and(|kept| kept == *due)
            }
            _ => false,
        }
    });
}

#[track_caller]
fn milliseconds_left(redis: &Redis, instrument: &str) -> i64 {
    match redis.cli(&["PTTL", &format!("last_price:{instrument}")]) {
        OwnedFrame::Integer(left) => left,
        other => panic!("PTTL answered {other:?}"),
    }
}

/// SET commands that this Redis has carried out.
#[track_caller]
fn sets(redis: &Redis) -> u64 {
    let OwnedFrame::BulkString(stats) = redis.cli(&["INFO", "commandstats"]) else { return 0 };
    let stats = String::from_utf8_lossy(&stats);
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_set:calls="));
    line.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().expect("calls are a number"))
}

const NEWCOMERS: usize = 50;
