//! A Redis Cluster: rooms by slot, slots that move, nodes that die.

use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::deadline::{LONG, eventually};
use crate::support::on_both_drivers;
use crate::support::payload::payload;
use crate::support::program;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;

on_both_drivers!(
    rooms_over_three_nodes_hear_what_is_published_anywhere_and_leave_nothing_behind,
    a_slot_that_moves_takes_its_rooms_along_and_leaves_the_others_alone,
    a_node_that_dies_breaks_its_rooms_alone_and_its_replica_takes_them_over,
    a_node_that_stands_still_is_left_for_its_replica_though_its_connections_are_open,
    a_cluster_that_is_gone_as_a_whole_is_one_break_that_heals,
);

fn rooms_over_three_nodes_hear_what_is_published_anywhere_and_leave_nothing_behind(driver: Driver) {
    let cluster = Cluster::start(3, false);
    let (server, other) = (start(&cluster, driver), start(&cluster, driver));
    let rooms: Vec<String> = (0..3).flat_map(|primary| cluster.rooms_of(primary, 4)).collect();
    let mut members: Vec<(Client, Client)> =
        rooms.iter().map(|room| (Client::join(&server, room), Client::join(&other, room))).collect();
    for (room, (here, there)) in rooms.iter().zip(&mut members) {
        assert_eq!(cluster.subscribers(room), 2, "{room}: behind a 101 the subscription stands");
        cluster.publish(room, format!("to {room}"));
        here.send_text(&format!("from {room}"));
        for member in [here, there] {
            let mut heard = [member.next_text(), member.next_text()];
            heard.sort();
            assert_eq!(heard, [format!("from {room}"), format!("to {room}")]);
        }
    }
    server.publish(&rooms[0], b"over HTTP");
    assert_eq!(members[0].1.next_text(), "over HTTP");
    let counted = server.metrics();
    assert_eq!(counted.sum("corecast_gaps_total"), 0.0, "{counted:?}");
    assert_eq!(counted.sum("corecast_echoes_missing_total"), 0.0, "{counted:?}");

    drop(members);
    eventually(LONG, "rooms without members are left", || {
        rooms.iter().all(|room| cluster.subscribers(room) == 0)
    });
}

fn a_slot_that_moves_takes_its_rooms_along_and_leaves_the_others_alone(driver: Driver) {
    let cluster = Cluster::start(3, false);
    let server = start(&cluster, driver);
    let moving = cluster.rooms_of(0, 1).remove(0);
    let staying: Vec<String> = (0..3).map(|primary| cluster.rooms_of(primary, 2).remove(1)).collect();
    let swarm = Swarm::new();
    for room in std::iter::once(&moving).chain(&staying) {
        swarm.add(server.address(), &format!("/ws?room={room}"));
    }
    swarm.wait_open();
    let publish_to_all = |sequence| {
        for room in std::iter::once(&moving).chain(&staying) {
            cluster.publish(room, payload('P', sequence, 64));
        }
    };
    publish_to_all(1);
    swarm.wait_all("before the move", |member| member.tally('P').last == 1);

    let mut sequence = 1;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let moved = Instant::now();
        cluster.migrate(&moving, from, to);
        eventually(LONG, "the room is subscribed at the new owner", || {
            cluster.nodes[to].shard_subscribers(&format!("room:{moving}")) == 1
        });
        assert!(moved.elapsed() < RECOVERY_MAX, "it took {:?}", moved.elapsed());
        // Told to the relay, too: what clients say next goes by Redis again.
        server.wait_metrics("the lapse is counted", |page| {
            page.labelled("corecast_gaps_total", "reason", "broker") >= (sequence) as f64
        });
        sequence += 1;
        publish_to_all(sequence);
        swarm.wait_all("after the move", |member| member.tally('P').last == sequence);
        swarm.send_text(0, &payload('O', sequence - 1, 64));
        swarm.wait_each([0], "own messages", |member| member.tally('O').is_exactly(1, sequence - 1));
    }
    swarm.wait_all("nothing was lost or repeated", |member| member.tally('P').is_exactly(1, sequence));
    swarm.assert_all_open();
    let page = server.metrics();
    assert_eq!(
        page.labelled("corecast_gaps_total", "reason", "broker"),
        3.0,
        "the others had none: {page:?}"
    );
    assert_eq!(page.sum("corecast_broker_breaks_total"), 0.0, "{page:?}");
}

fn a_node_that_dies_breaks_its_rooms_alone_and_its_replica_takes_them_over(driver: Driver) {
    let mut cluster = Cluster::start(3, true);
    let server = start(&cluster, driver);
    let swarm = Swarm::new();
    let (dying, living) = (cluster.rooms_of(0, 3), cluster.rooms_of(1, 3));
    for room in dying.iter().chain(&living) {
        swarm.add(server.address(), &format!("/ws?room={room}"));
    }
    swarm.wait_open();

    cluster.nodes[0].kill9();
    let killed = Instant::now();
    server.wait_metrics("its rooms have a gap", |page| {
        page.labelled("corecast_gaps_total", "reason", "broker") == dying.len() as f64
    });
    let late = format!("/ws?room={}", cluster.rooms_of(0, 4).remove(3));
    let newcomers = [swarm.add(server.address(), &late), swarm.add(server.address(), &late)];
    swarm.wait_open();
    swarm.send_text(newcomers[0], &payload('O', 1, 64));
    swarm.wait_each(newcomers, "who is there hears each other meanwhile", |member| {
        member.tally('O').is_exactly(1, 1)
    });
    for room in &living {
        cluster.publish(room, payload('L', 1, 64));
    }
    swarm.wait_each(3..6, "the other rooms go on", |member| member.tally('L').is_exactly(1, 1));

    let recovery = wait_taken_over(&cluster, &dying);
    eprintln!(
        "{driver:?}: followed {recovery:?} after the promotion, {:?} after the crash",
        killed.elapsed()
    );
    for room in &dying {
        cluster.publish(room, payload('R', 1, 64));
    }
    swarm.wait_each(0..3, "its rooms are heard again", |member| member.tally('R').is_exactly(1, 1));
    swarm.assert_all_open();
    let page = server.metrics();
    assert_eq!(page.sum("corecast_broker_up"), 1.0, "{page:?}");
    assert_eq!(page.sum("corecast_broker_breaks_total"), 0.0, "{page:?}");
}

fn a_node_that_stands_still_is_left_for_its_replica_though_its_connections_are_open(driver: Driver) {
    let cluster = Cluster::start(3, true);
    let server = start(&cluster, driver);
    let swarm = Swarm::new();
    let rooms = cluster.rooms_of(0, 3);
    for room in &rooms {
        swarm.add(server.address(), &format!("/ws?room={room}"));
    }
    swarm.wait_open();

    cluster.nodes[0].sigstop();
    let stopped = Instant::now();
    let recovery = wait_taken_over(&cluster, &rooms);
    eprintln!(
        "{driver:?}: followed {recovery:?} after the promotion, {:?} after the stop",
        stopped.elapsed()
    );
    for room in &rooms {
        cluster.publish_at(3, room, payload('R', 1, 64));
    }
    swarm.wait_all("its rooms are heard again", |member| member.tally('R').is_exactly(1, 1));

    cluster.nodes[0].sigcont();
    eventually(LONG, "the old primary becomes a replica", || cluster.role(0) == "slave");
    for room in &rooms {
        cluster.publish_at(3, room, payload('S', 1, 64));
    }
    swarm.wait_all("and that changes nothing", |member| member.tally('S').is_exactly(1, 1));
    swarm.assert_all_open();
    let page = server.metrics();
    assert_eq!(page.labelled("corecast_gaps_total", "reason", "broker"), rooms.len() as f64, "{page:?}");
    assert_eq!(page.sum("corecast_broker_breaks_total"), 0.0, "{page:?}");
}

fn a_cluster_that_is_gone_as_a_whole_is_one_break_that_heals(driver: Driver) {
    let mut cluster = Cluster::start(3, false);
    let server = start(&cluster, driver);
    let rooms: Vec<String> = (0..3).flat_map(|primary| cluster.rooms_of(primary, 2)).collect();
    let swarm = Swarm::new();
    for room in &rooms {
        swarm.add(server.address(), &format!("/ws?room={room}"));
    }
    swarm.wait_open();

    cluster.nodes.iter_mut().for_each(Redis::kill9);
    server.wait_broker(false);
    swarm.send_text(0, &payload('O', 1, 64));
    swarm.wait_each([0], "who is there is heard meanwhile", |member| member.tally('O').is_exactly(1, 1));
    cluster.nodes.iter_mut().for_each(Redis::restart);
    server.wait_broker(true);
    eventually(LONG, "every room is subscribed again", || {
        rooms.iter().all(|room| cluster.subscribers(room) == 1)
    });
    for room in &rooms {
        cluster.publish(room, payload('R', 1, 64));
    }
    swarm.wait_all("every room is heard again", |member| member.tally('R').is_exactly(1, 1));
    swarm.assert_all_open();
    let page = server.metrics();
    assert_eq!(page.sum("corecast_broker_breaks_total"), 1.0, "{page:?}");
    assert_eq!(page.sum("corecast_broker_reconnects_total"), 1.0, "{page:?}");
    let gaps = page.labelled("corecast_gaps_total", "reason", "broker");
    assert!(gaps >= rooms.len() as f64, "a gap in each room, {gaps} were counted");
}

/// Waits until the replica of the first primary is promoted and has the subscriptions; returns how long after.
#[track_caller]
fn wait_taken_over(cluster: &Cluster, rooms: &[String]) -> Duration {
    eventually(LONG, "the replica is promoted", || cluster.role(3) == "master");
    let promoted = Instant::now();
    eventually(LONG, "the replica has the subscriptions", || {
        rooms.iter().all(|room| cluster.nodes[3].shard_subscribers(&format!("room:{room}")) == 1)
    });
    let recovery = promoted.elapsed();
    assert!(recovery < RECOVERY_MAX, "the replica was there for {recovery:?} before it was used");
    recovery
}

#[test]
fn programs_publish_at_whoever_has_the_slot_and_the_doctor_looks_at_all() {
    let cluster = Cluster::start(3, false);
    let server = start(&cluster, Driver::IoUring);
    for primary in 0..3 {
        let room = cluster.rooms_of(primary, 1).remove(0);
        let mut member = Client::join(&server, &room);
        let channel = format!("room:{room}");
        let published =
            program::run(&["publish", "--redis", &cluster.url(), "--channel", &channel, "by hand"]);
        assert_eq!(published.code(), Some(0), "{published:?}");
        assert_eq!(member.next_text(), "by hand");
    }
    let doctor = program::run(&["doctor", "--redis", &cluster.url()]);
    assert!(doctor.stdout.contains("3 primaries have 16,384 slots"), "{doctor:?}");
    assert!(doctor.stdout.contains("SSUBSCRIBE room:corecast-doctor"), "{doctor:?}");
}

#[test]
fn what_would_flood_a_cluster_is_refused_with_what_to_do() {
    for preset in ["event-fanout", "workflow"] {
        let finished = program::run(&["check-config", "--preset", preset, "--redis", "redis+cluster://h:1"]);
        assert_eq!(finished.code(), Some(78), "{finished:?}");
        assert!(finished.stderr.contains("goes to every node of a cluster"), "{finished:?}");
    }
}

fn start(cluster: &Cluster, driver: Driver) -> Server {
    let server = Server::builder().redis_url(&cluster.url()).driver(driver).shards(1).start();
    server.wait_broker(true);
    server
}

/// From a slot's having a new owner to our hearing it there.
const RECOVERY_MAX: Duration = Duration::from_secs(2);
