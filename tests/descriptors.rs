//! No more connections, for want of descriptors or by the operator's bound: accepting pauses, nothing spins, and it goes on
//! when somebody leaves.

use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::deadline::{LONG, eventually};
use crate::support::http;
use crate::support::metrics::Metrics;
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Member, Swarm};

on_both_drivers!(
    without_descriptors_accepting_pauses_without_spinning_and_recovers,
    at_the_bound_of_connections_newcomers_wait_until_somebody_leaves,
    clients_that_take_every_place_leave_redis_its_own,
    idle_connections_of_the_admin_address_keep_neither_redis_nor_a_scraper_waiting,
);

#[test]
fn the_soft_limit_rises_to_the_hard_one_and_the_first_line_says_how_many_fit() {
    let server = Server::builder().shards(1).descriptors(2048).descriptors_soft(64).start();
    let first = server.wait_log("a first line", |line| line.contains("serves"));
    // 24 for the process, 16 for its shard.
    assert!(first.contains("descriptors=2048") && first.contains("connections_max=2008"), "{first}");
    assert!(!server.log().contains("connections fit"), "{}", server.log());
    let small = Server::builder().shards(1).descriptors(DESCRIPTORS).start();
    let warned = small.wait_log("few fit", |line| line.contains("connections fit"));
    assert!(warned.contains("only 56 connections fit") && warned.contains("nofile"), "{warned}");
}

fn idle_connections_of_the_admin_address_keep_neither_redis_nor_a_scraper_waiting(driver: Driver) {
    let mut redis = Redis::start();
    let mut server = Server::event_fanout(&redis, driver).shards(1).admin().descriptors(64).start();
    let idle: Vec<_> = (0..64).map(|_| http::connect(server.admin_address())).collect();
    redis.kill9();
    redis.restart();
    server.wait_broker(true);
    let mut joined = Client::join(&server, "lobby");
    redis.publish("room:lobby", "there is a descriptor for Redis and one for a client");
    joined.next_text();
    assert!(server.is_running() && idle.iter().all(Result::is_ok));
}

fn clients_that_take_every_place_leave_redis_its_own(driver: Driver) {
    let mut redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).shards(1).descriptors(DESCRIPTORS).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", CLIENTS);
    let open = || swarm.count(Member::is_open);
    wait_steady(open);
    let inside = open();
    redis.kill9();
    redis.restart();
    eventually(LONG, "those inside hear Redis again", || {
        redis.publish("room:lobby", payload('P', 1, 32));
        swarm.count(|m| m.tally('P').received >= 1) >= inside
    });
    assert_eq!(open(), inside);
}

fn without_descriptors_accepting_pauses_without_spinning_and_recovers(driver: Driver) {
    let server =
        Server::builder().preset("event-fanout").driver(driver).shards(1).descriptors(DESCRIPTORS).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", CLIENTS);
    let open = || swarm.count(Member::is_open);
    wait_steady(open);
    assert!((10..CLIENTS).contains(&open()), "{} of {CLIENTS} clients got in", open());

    // Those inside are served as before.
    swarm.send_text(first_open(&swarm), &payload('P', 1, 32));
    let inside = open();
    eventually(LONG, "those inside hear each other", || {
        swarm.count(|m| m.tally('P').received == 1) >= inside
    });
    let used = cpu_used_over(&server, Duration::from_secs(1));
    assert!(used < Duration::from_millis(250), "waiting for descriptors took {used:?} of CPU in a second");

    // Whoever leaves makes room for one who waits.
    let mut let_in = 0;
    while let_in < CLIENTS {
        eventually(LONG, "somebody gets in", || open() > 0);
        swarm.vanish(first_open(&swarm));
        let_in += 1;
    }
    let (page, _) =
        server.wait_metrics("everybody has left", |page| page.sum("corecast_subscriptions") == 0.0);
    assert_eq!(page.sum("corecast_handshakes_total"), CLIENTS as f64);
    assert!(page.sum("corecast_accept_pauses_total") >= 1.0);
}

fn at_the_bound_of_connections_newcomers_wait_until_somebody_leaves(driver: Driver) {
    let bound = format!("[bounds]\nconnections_max = {BOUND}\n");
    let server = Server::builder().driver(driver).shards(1).admin().config(&bound).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 2 * BOUND);
    let open = || swarm.count(Member::is_open);
    let has_paused = |page: &Metrics| page.sum("corecast_accept_pauses_total") >= 1.0;
    server.wait_metrics("accepting pauses, and the admin address says so", has_paused);
    eventually(LONG, "as many as the bound allows are open", || open() == BOUND);
    let used = cpu_used_over(&server, Duration::from_secs(1));
    assert!(used < Duration::from_millis(250), "waiting at the bound took {used:?} of CPU in a second");
    assert_eq!(open(), BOUND);

    // Whoever leaves is followed by one who waits, to the last of them.
    for _ in 0..BOUND {
        swarm.vanish(first_open(&swarm));
        eventually(LONG, "who waited gets in", || open() == BOUND);
    }
}

fn first_open(swarm: &Swarm) -> usize {
    swarm.map(Member::is_open).iter().position(|open| *open).expect("somebody is open")
}

/// Waits until `count` has been the same for a while and isn't zero.
fn wait_steady(count: impl Fn() -> usize) {
    let mut last = (count(), Instant::now());
    eventually(LONG, "the number of open clients is steady", || {
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > 0 && last.1.elapsed() > Duration::from_millis(500)
    });
}

/// CPU time the server uses while `span` passes.
fn cpu_used_over(server: &Server, span: Duration) -> Duration {
    let (before, began) = (server.cpu_time(), Instant::now());
    eventually(LONG, "time passes", || began.elapsed() >= span);
    server.cpu_time() - before
}

/// What the process itself needs, and some clients.
const DESCRIPTORS: u64 = 96;
const CLIENTS: usize = 160;
/// Of connections, in the story of that bound.
const BOUND: usize = 8;
