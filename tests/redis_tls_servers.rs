//! Sentinels and clusters behind TLS: found, followed and told what is wrong, as without it.

use std::time::Instant;

use crate::support::authority::Authority;
use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::consumer::Consumer;
use crate::support::deadline::{LONG, eventually};
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::program;
use crate::support::sentinel::Watched;
use crate::support::server::{Driver, Server, ServerBuilder};
use crate::support::swarm::Swarm;

on_both_drivers!(
    a_primary_behind_tls_that_crashes_is_followed_at_the_word_of_sentinels_behind_tls,
    a_cluster_behind_tls_moves_a_slot_and_loses_a_node,
);

fn a_primary_behind_tls_that_crashes_is_followed_at_the_word_of_sentinels_behind_tls(driver: Driver) {
    let mut watched = Watched::start_tls(&[]);
    let server = event_fanout(&watched.tls_url(), watched.authority(), driver).start();
    server.wait_broker(true);
    let swarm = lobby(&server);
    watched.primary.publish("room:lobby", payload('P', 1, 64));
    swarm.wait_all("the primary is heard", |member| member.tally('P').is_exactly(1, 1));

    watched.primary.kill9();
    server.wait_broker(false);
    watched.wait_promoted();
    let promoted = Instant::now();
    server.wait_broker(true);
    eprintln!("{driver:?}: followed {:?} after the promotion", promoted.elapsed());
    watched.replica.publish("room:lobby", payload('R', 1, 64));
    swarm.wait_all("the new primary is heard", |member| member.tally('R').is_exactly(1, 1));
    swarm.send_text(0, &payload('O', 1, 64));
    swarm.wait_all("and hears us", |member| member.tally('O').is_exactly(1, 1));
    swarm.assert_all_open();
    assert_eq!(server.metrics().sum("corecast_broker_breaks_total"), 1.0);
}

fn a_cluster_behind_tls_moves_a_slot_and_loses_a_node(driver: Driver) {
    let mut cluster = Cluster::start_tls(3, true);
    let server = behind_tls(Server::builder(), &cluster.url(), cluster.authority()).driver(driver).start();
    server.wait_broker(true);
    let (moving, dying) = (cluster.rooms_of(0, 1).remove(0), cluster.rooms_of(1, 1).remove(0));
    let swarm = Swarm::new();
    for room in [&moving, &dying] {
        swarm.add(server.address(), &format!("/ws?room={room}"));
    }
    swarm.wait_open();
    cluster.migrate(&moving, 0, 2);
    eventually(LONG, "the room is subscribed at the new owner", || {
        cluster.nodes[2].shard_subscribers(&format!("room:{moving}")) == 1
    });
    cluster.publish(&moving, payload('P', 1, 64));
    swarm.wait_each([0], "the new owner is heard", |member| member.tally('P').is_exactly(1, 1));

    cluster.nodes[1].kill9();
    eventually(LONG, "the replica has the room", || {
        cluster.nodes[4].shard_subscribers(&format!("room:{dying}")) == 1
    });
    cluster.publish(&dying, payload('R', 1, 64));
    swarm.wait_each([1], "the replica is heard", |member| member.tally('R').is_exactly(1, 1));
    swarm.assert_all_open();
    assert_eq!(server.metrics().sum("corecast_broker_breaks_total"), 0.0);
}

#[test]
fn sentinels_without_tls_may_watch_a_redis_with_it() {
    let watched = Watched::start_tls(&[]);
    let url = format!("{}?sentinel_tls=no", watched.url().replacen("redis", "rediss", 1));
    let server = event_fanout(&url, watched.authority(), Driver::IoUring).start();
    server.wait_broker(true);
    let mut client = Client::join(&server, "lobby");
    watched.primary.publish("room:lobby", "found");
    assert_eq!(client.next_text(), "found");
}

#[test]
fn sentinels_and_what_they_watch_get_our_certificate_where_they_ask_for_one() {
    let watched = Watched::start_tls(&["--tls-auth-clients", "yes"]);
    let me = watched.authority().issue("me", &["corecast"]);
    let files = ["--redis-cert-file", &me.cert, "--redis-key-file", &me.key];
    let ca_file = watched.authority().ca_file();
    let url = watched.tls_url();
    let server = event_fanout(&url, watched.authority(), Driver::IoUring);
    let server = files.iter().fold(server, |server, flag| server.arg(flag)).start();
    server.wait_broker(true);
    let mut client = Client::join(&server, "lobby");
    watched.primary.publish("room:lobby", "to whom I know");
    assert_eq!(client.next_text(), "to whom I know");

    let flags = ["--redis", &url, "--redis-ca-file", &ca_file];
    let publish = ["publish", "--channel", "room:lobby", "by hand"];
    let published = program::run(&[&publish[..], &flags, &files].concat());
    assert_eq!(published.code(), Some(0), "{published:?}");
    assert_eq!(client.next_text(), "by hand");
    let consumer = Consumer::spawn(&[], &[&flags[..], &files].concat());
    consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
    let doctor = program::run(&[&["doctor"][..], &flags, &files].concat());
    assert!(doctor.stdout.contains("3 sentinels agree that orders is 127.0.0.1:"), "{doctor:?}");

    let without = event_fanout(&url, watched.authority(), Driver::IoUring).start();
    without.wait_log("what is missing is told", |line| {
        line.contains("a sentinel is not heard")
            && line.contains("give --redis-cert-file and --redis-key-file")
    });
}

#[test]
fn a_cluster_of_another_authority_or_without_tls_is_told_in_the_log() {
    let cluster = Cluster::start_tls(1, true);
    let stranger = Authority::new("a stranger");
    let server = behind_tls(Server::builder(), &cluster.url(), &stranger).start();
    server.wait_log("whom it doesn't trust", |line| {
        line.contains("no node of the cluster says who has which slot") && line.contains("--redis-ca-file")
    });
    let flags = ["--redis-ca-file", &stranger.ca_file()];
    let url = cluster.url();
    let doctor = program::run(&[&["doctor", "--redis", &url][..], &flags].concat());
    assert!(doctor.stdout.contains("no TLS with 127.0.0.1:"), "{doctor:?}");
    let flags = ["--redis-ca-file", &cluster.authority().ca_file()];
    let doctor = program::run(&[&["doctor", "--redis", &url][..], &flags].concat());
    assert!(doctor.stdout.contains("1 primaries have 16,384 slots"), "{doctor:?}");
}

fn event_fanout(url: &str, authority: &Authority, driver: Driver) -> ServerBuilder {
    behind_tls(Server::builder().preset("event-fanout").driver(driver), url, authority)
}

fn behind_tls(server: ServerBuilder, url: &str, authority: &Authority) -> ServerBuilder {
    server.redis_url(url).shards(1).arg("--redis-ca-file").arg(&authority.ca_file())
}

fn lobby(server: &Server) -> Swarm {
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 20);
    swarm.wait_open();
    swarm
}
