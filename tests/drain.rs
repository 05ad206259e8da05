//! SIGTERM: everybody is told, nobody is reset, and the process is gone in time.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::deadline::{LONG, SOON, eventually};
use crate::support::http;
use crate::support::on_both_drivers;
use crate::support::publisher::Publisher;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::{Phase, Swarm};

on_both_drivers!(
    sigterm_under_load_says_1001_to_everybody_and_exits_0_within_the_drain,
    connections_queued_on_the_listener_at_sigterm_are_answered_not_reset,
    a_second_signal_stops_at_once,
    a_second_signal_is_obeyed_when_only_the_relay_is_left,
    a_reader_that_is_stuck_does_not_hold_up_the_drain,
    the_admin_address_answers_for_all_shards_until_the_last_client_is_gone,
);

#[test]
fn a_shard_that_hangs_does_not_keep_a_process_alive_that_nobody_watches() {
    let mut server = Server::builder().shards(2).drain(Duration::from_secs(1)).start();
    let hanging = server.stop_thread("shard-1");
    server.signal(Signal::TERM);
    server.wait_log("it gives the thread up", |line| line.contains("the drain is over and"));
    // A process is not gone before whoever traces one of its threads has looked.
    drop(hanging);
    assert_eq!(server.wait_exit(SOON).code(), Some(1));
    assert!(server.log().contains("shard-1"), "{}", server.log());
}

fn the_admin_address_answers_for_all_shards_until_the_last_client_is_gone(driver: Driver) {
    let hour = Duration::from_secs(3600);
    let mut server = Server::builder().driver(driver).shards(2).admin().drain(hour).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 40);
    swarm.wait_open();
    let asked =
        |target| http::request(server.admin_address(), "GET", target, &[]).map(|answer| answer.status);

    server.signal(Signal::TERM);
    eventually(SOON, "the public address refuses", || {
        http::connect(server.address()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    // Of an hour's drain each shard closes one in a tenth of a second, so when a round begins the last one has at least
    // a second to go.
    let mut rounds = 0;
    while swarm.count(|member| member.is_open()) > 20 {
        assert_eq!(asked("/readyz").expect("the admin address answers"), 503);
        for target in ["/livez", "/metrics", "/stats"] {
            assert_eq!(asked(target).expect("the admin address answers"), 200, "{target}");
        }
        assert_eq!(server.stats()["draining"], true);
        rounds += 1;
    }
    assert!(rounds > 0, "the drain was over at once");
    assert_eq!(server.wait_exit(LONG).code(), Some(0));
    assert_eq!(swarm.count(|member| member.close_code == Some(1001)), 40);
}

fn sigterm_under_load_says_1001_to_everybody_and_exits_0_within_the_drain(driver: Driver) {
    let redis = Redis::start();
    let mut server = Server::event_fanout(&redis, driver).shards(2).drain(DRAIN).start();
    let publisher = Publisher::start(&redis, &["room:lobby".to_owned()], 'P', 128, 200);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 500);
    swarm.wait_open();
    swarm.wait_all("the load is on", |member| member.tally('P').received >= 5);

    let began = Instant::now();
    server.signal(Signal::TERM);
    let status = server.wait_exit(SOON);
    let took = began.elapsed();

    assert_eq!(status.code(), Some(0), "{status}");
    assert!(took < DRAIN + MARGIN, "the drain took {took:?}, {DRAIN:?} were allowed");
    swarm.wait_all("everybody's TCP ended in order", |member| member.phase() == &Phase::Ended);
    assert_eq!(swarm.count(|member| member.close_code == Some(1001)), 500);
    let tallies = swarm.map(|member| member.tally('P'));
    let torn = tallies.iter().find(|tally| !tally.holes.is_empty() || tally.backwards > 0);
    assert_eq!(torn, None, "until its close a member hears everything in order");
    publisher.stop();
}

fn connections_queued_on_the_listener_at_sigterm_are_answered_not_reset(driver: Driver) {
    let mut server = Server::builder().preset("event-fanout").driver(driver).shards(2).drain(DRAIN).start();
    let swarm = Swarm::new();
    // While it stands still the kernel takes connections and requests on its behalf.
    server.signal(Signal::STOP);
    swarm.add_many(server.address(), "/ws?room=lobby", 100);
    server.signal(Signal::TERM);
    server.signal(Signal::CONT);

    let status = server.wait_exit(SOON);
    assert_eq!(status.code(), Some(0), "{status}");
    swarm.wait_all("everybody's TCP ended without a reset", |member| {
        matches!(member.phase(), Phase::Ended | Phase::Refused(_))
    });
    // Taken in and told to come back, or refused for now: both are answers.
    let answered = |phase: &Phase, code| *phase == Phase::Refused(503) || matches!(code, Some(1001 | 1012));
    let ends = swarm.map(|member| (member.phase().clone(), member.close_code));
    assert!(ends.iter().all(|(phase, code)| answered(phase, *code)), "{ends:?}");
}

#[test]
fn sighup_is_answered_in_the_log_and_ends_nothing() {
    let mut server = Server::builder().start();
    server.signal(Signal::HUP);
    server.wait_log("it says so", |line| line.contains("nothing is reloaded yet"));
    assert_eq!(server.get("/readyz").status, 200);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
}

#[test]
fn sigusr2_to_a_single_process_is_answered_in_the_log_and_ends_nothing() {
    let mut server = Server::builder().start();
    server.signal(Signal::USR2);
    server.wait_log("it says so", |line| line.contains("nothing is rolled without --processes"));
    assert_eq!(server.get("/readyz").status, 200);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
}

fn a_second_signal_stops_at_once(driver: Driver) {
    let hour = Duration::from_secs(3600);
    let mut server = Server::builder().preset("event-fanout").driver(driver).drain(hour).start();
    let swarm = Swarm::new();
    // One that will not answer its Close frame, so that the drain has somebody to wait for.
    swarm.add_many(server.address(), "/ws?room=lobby", 50);
    swarm.wait_open();
    swarm.stall(0);

    server.signal(Signal::TERM);
    eventually(SOON, "the drain has begun", || {
        swarm.count(|member| member.close_code.is_some()) > 0 || !server.is_running()
    });
    server.signal(Signal::INT);

    server.wait_exit(SOON);
}

/// Where there is one core only, the relay has no thread that could be stopped without its shard.
fn a_second_signal_is_obeyed_when_only_the_relay_is_left(driver: Driver) {
    let mut server = Server::builder().driver(driver).shards(1).start();
    if !server.threads().iter().any(|name| name == "relay") {
        eprintln!("not run: one core, so the relay shares its thread");
        return;
    }
    let stopped = server.stop_thread("relay");
    server.signal(Signal::TERM);
    eventually(SOON, "the shard has ended", || !server.threads().iter().any(|name| name == "shard-0"));
    server.signal(Signal::TERM);

    server.wait_log("the second signal is obeyed", |line| line.contains("ended by a second signal"));
    drop(stopped);
    assert_eq!(server.wait_exit(SOON).code(), Some(0));
}

fn a_reader_that_is_stuck_does_not_hold_up_the_drain(driver: Driver) {
    let redis = Redis::start();
    let mut server = Server::event_fanout(&redis, driver).drain(DRAIN).start();
    let swarm = Swarm::new();
    let stuck = swarm.add_with(server.address(), "/ws?room=lobby", Some(4096));
    let reading = swarm.add(server.address(), "/ws?room=lobby");
    swarm.wait_open();
    swarm.stall(stuck);
    redis.publish("room:lobby", vec![b'x'; 512 * 1024]);
    swarm.wait_each([reading], "the other one has it", |member| member.messages == 1);

    let began = Instant::now();
    server.signal(Signal::TERM);
    let status = server.wait_exit(SOON);

    assert_eq!(status.code(), Some(0), "{status}");
    let took = began.elapsed();
    assert!(took < DRAIN + MARGIN, "the drain took {took:?}, {DRAIN:?} were allowed");
    swarm.wait_each([reading], "the other one is told", |member| member.close_code == Some(1001));
}

const DRAIN: Duration = Duration::from_secs(2);
/// For the farewell itself (a second of linger) and a busy machine.
const MARGIN: Duration = Duration::from_secs(4);
