//! A Redis that its sentinels watch: the server finds the primary, follows a failover at once, and says what it broke.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::client::Client;
use crate::support::consumer::{CHANNEL, Consumer, event};
use crate::support::deadline::{LONG, eventually};
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::program;
use crate::support::publisher::Publisher;
use crate::support::redis::text;
use crate::support::sentinel::Watched;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;

on_both_drivers!(
    a_primary_that_crashes_is_followed_to_its_replica_and_nobody_is_closed,
    a_primary_that_stands_still_is_left_at_the_sentinels_word_though_its_connections_are_open,
);

fn a_primary_that_crashes_is_followed_to_its_replica_and_nobody_is_closed(driver: Driver) {
    let mut watched = Watched::start();
    let server = start(&watched, driver);
    let swarm = lobby(&server);
    let publisher = Publisher::start(&watched.primary, &["room:lobby".to_owned()], 'P', 128, RATE);
    swarm.wait_all("the load is on", |member| member.tally('P').received >= 20);

    watched.primary.kill9();
    let killed = Instant::now();
    drop(publisher);
    server.wait_broker(false);
    swarm.send_text(0, &payload('O', 1, 64));
    swarm.wait_all("clients hear each other meanwhile", |member| member.tally('O').is_exactly(1, 1));
    watched.wait_promoted();
    let recovery = assert_followed(&watched, &server, &swarm);
    eprintln!(
        "{driver:?}: followed {recovery:?} after the promotion, {:?} after the crash",
        killed.elapsed()
    );
}

fn a_primary_that_stands_still_is_left_at_the_sentinels_word_though_its_connections_are_open(driver: Driver) {
    let watched = Watched::start();
    let server = start(&watched, driver);
    let swarm = lobby(&server);

    watched.primary.sigstop();
    let stopped = Instant::now();
    watched.wait_promoted();
    let recovery = assert_followed(&watched, &server, &swarm);
    eprintln!(
        "{driver:?}: followed {recovery:?} after the promotion, {:?} after the stop",
        stopped.elapsed()
    );
    server.wait_log("why the old connections were left", |line| {
        line.contains("its sentinels say that the primary is")
    });

    watched.primary.sigcont();
    eventually(LONG, "the old primary becomes a replica", || {
        // Becoming one it ends the connections of its clients, this one too.
        let answer =
            watched.primary.connect().and_then(|mut asking| asking.command(&[b"INFO", b"replication"]));
        answer.is_ok_and(|answer| text(&answer).contains("role:slave"))
    });
    watched.replica.publish("room:lobby", payload('S', 1, 64));
    swarm.wait_all("the new primary is heard as before", |member| member.tally('S').is_exactly(1, 1));
    assert_eq!(server.metrics().sum("corecast_broker_breaks_total"), 1.0);
    swarm.assert_all_open();
}

#[test]
fn sentinels_with_a_password_are_asked_and_one_that_is_away_is_passed_over() {
    let watched = Watched::start_with(Some("open-sesame"));
    let away = watched.url().replacen("sentinel://", "sentinel://127.0.0.1:1,", 1);
    let server = Server::builder().preset("event-fanout").redis_url(&away).shards(1).start();
    server.wait_broker(true);
    let mut client = Client::join(&server, "lobby");
    watched.primary.publish("room:lobby", "found");
    assert_eq!(client.next_text(), "found");
    assert!(!server.log().contains("open-sesame"), "the log shows the password");

    let published = program::run(&["publish", "--redis", &away, "--channel", "room:lobby", "by hand"]);
    assert_eq!(published.code(), Some(0), "{published:?}");
    assert_eq!(client.next_text(), "by hand");
    let doctor = program::run(&["doctor", "--redis", &away]);
    assert!(doctor.stdout.contains("3 of 4 sentinels say that orders is 127.0.0.1:"), "{doctor:?}");
}

#[test]
fn a_consumer_follows_a_failover_too() {
    let mut watched = Watched::start();
    let consumer = Consumer::spawn(&[], &["--redis", &watched.url()]);
    consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
    watched.primary.kill9();
    eventually(LONG, "it subscribes at the new primary", || watched.replica.subscribers(CHANNEL) == 1);
    watched.wait_promoted();
    watched.replica.publish(CHANNEL, event("demo.message", 1));
    consumer.wait_log("the event is logged", |line| line["msg"] == "event");
}

#[test]
fn a_name_that_no_sentinel_knows_is_told_in_the_log() {
    let watched = Watched::start();
    let url = watched.url().replace(Watched::NAME, "order");
    let server = Server::builder().preset("event-fanout").redis_url(&url).shards(1).start();
    server.wait_log("the wrong name is told", |line| {
        line.contains("it watches nothing named") && line.contains("correct the name in the URL")
    });
    assert_eq!(server.metrics().sum("corecast_broker_up"), 0.0);
    server.signal(Signal::TERM);
}

fn start(watched: &Watched, driver: Driver) -> Server {
    let server =
        Server::builder().preset("event-fanout").redis_url(&watched.url()).driver(driver).shards(1).start();
    server.wait_broker(true);
    server
}

fn lobby(server: &Server) -> Swarm {
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 20);
    swarm.wait_open();
    swarm
}

/// Waits until publications of the new primary arrive; the break was told and closed nobody. Returns how long it took.
#[track_caller]
fn assert_followed(watched: &Watched, server: &Server, swarm: &Swarm) -> Duration {
    let promoted = Instant::now();
    server.wait_metrics("the server is at the new primary", |page| {
        page.sum("corecast_broker_reconnects_total") == 1.0 && page.sum("corecast_broker_up") == 1.0
    });
    let recovery = promoted.elapsed();
    watched.replica.publish("room:lobby", payload('R', 1, 64));
    swarm.wait_all("the new primary is heard", |member| member.tally('R').is_exactly(1, 1));
    swarm.assert_all_open();
    assert!(recovery < RECOVERY_MAX, "the new primary was there for {recovery:?} before it was used");
    let page = server.metrics();
    assert_eq!(page.sum("corecast_broker_breaks_total"), 1.0, "{page:?}");
    let gaps = page.labelled("corecast_gaps_total", "reason", "broker");
    assert!(gaps >= 1.0, "a break of the broker is a gap in each of its rooms, {gaps} were counted");
    recovery
}

/// Publications a second.
const RATE: u32 = 100;
/// From a sentinel's naming the new primary to our using it. The others follow within the second between two of their
/// greetings, and which of them says it first is chance.
const RECOVERY_MAX: Duration = Duration::from_secs(2);
