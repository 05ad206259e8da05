//! What Redis does to us: crashes, stands still, hangs up, falls silent, talks nonsense; and what clients notice.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::deadline::{LONG, eventually};
use crate::support::on_both_drivers;
use crate::support::payload::{Tally, payload};
use crate::support::proxy::Proxy;
use crate::support::publisher::{Accepted, Publisher};
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;

on_both_drivers!(
    a_crash_and_restart_under_load_closes_nobody_and_loses_only_what_redis_lost,
    standing_still_for_a_second_under_load_loses_nothing,
    standing_still_for_longer_than_the_probe_is_a_break_that_heals,
    hanging_up_on_subscribers_under_load_loses_less_than_a_second_and_repeats_nothing,
    what_clients_say_while_redis_hangs_up_arrives_exactly_once,
    a_redis_that_is_silent_on_open_connections_is_found_out,
    a_server_starts_without_redis_and_finds_it_when_it_comes,
);

fn a_crash_and_restart_under_load_closes_nobody_and_loses_only_what_redis_lost(driver: Driver) {
    let mut redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let (swarm, publisher) = lobby_under_load(&redis, &server);

    let killing = Instant::now();
    redis.kill9();
    server.wait_broker(false);
    let newcomer = swarm.add(server.address(), LOBBY);
    swarm.wait_open();
    say(&swarm, 1..=10);
    swarm.wait_each(0..MEMBERS, "clients hear each other without Redis", |m| m.tally('O').is_exactly(1, 10));
    redis.restart();
    let recovery = server.wait_broker(true);

    assert!(recovery < RECOVERY_MAX, "Redis was back for {recovery:?} before it was used");
    let accepted = finish(&swarm, publisher);
    let tally = assert_same_for_all(&swarm, 0..MEMBERS);
    assert_missing_only(&tally, &accepted, |publication| {
        // Acknowledged in the instant of its death: Redis may have told the publisher and not the subscriber.
        publication.receivers == 0 || publication.acknowledged + FLUSH > killing && publication.sent < killing
    });
    swarm.wait_each([newcomer], "who came meanwhile hears the room", |m| m.tally('P').last == tally.last);
    assert_own_messages_came_once(&swarm, 10);
    assert_break_is_told(&server, 1.0);
}

fn standing_still_for_a_second_under_load_loses_nothing(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let (swarm, publisher) = lobby_under_load(&redis, &server);

    redis.sigstop();
    let stopped = Instant::now();
    say(&swarm, 1..=10);
    // The length of the fault, not a wait for anything; the probe gives up after three seconds.
    thread::sleep(Duration::from_secs(1));
    redis.sigcont();
    if stopped.elapsed() > Duration::from_secs(2) {
        eprintln!("not told: this machine is too busy to tell a second from the probe's three");
        return;
    }

    let accepted = finish(&swarm, publisher);
    let tally = assert_same_for_all(&swarm, 0..MEMBERS);
    assert!(tally.holes.is_empty(), "missing: {:?}", tally.holes);
    assert_eq!(tally.last, accepted.last().expect("something was published").sequence);
    swarm.wait_all("what clients said arrives", |m| m.tally('O').is_exactly(1, 10));
    assert_eq!(server.metrics().sum("corecast_broker_breaks_total"), 0.0);
    swarm.assert_all_open();
}

fn standing_still_for_longer_than_the_probe_is_a_break_that_heals(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let (swarm, publisher) = lobby_under_load(&redis, &server);

    let stopped = Instant::now();
    redis.sigstop();
    server.wait_broker(false);
    let noticed = stopped.elapsed();
    say(&swarm, 1..=10);
    swarm.wait_all("clients hear each other meanwhile", |m| m.tally('O').is_exactly(1, 10));
    redis.sigcont();
    let continued = Instant::now();
    let recovery = server.wait_broker(true);

    assert!(noticed < Duration::from_secs(8), "a Redis that stood still was trusted for {noticed:?}");
    assert!(recovery < RECOVERY_MAX, "Redis was back for {recovery:?} before it was used");
    let accepted = finish(&swarm, publisher);
    let tally = assert_same_for_all(&swarm, 0..MEMBERS);
    assert_missing_only(&tally, &accepted, |publication| {
        // Handed to the connection that was given up, of which Redis hears when it has taken what waits before that.
        publication.receivers == 0
            || publication.acknowledged + FLUSH > stopped && publication.sent < continued + FLUSH
    });
    assert_own_messages_came_once(&swarm, 10);
    assert_break_is_told(&server, 1.0);
}

fn hanging_up_on_subscribers_under_load_loses_less_than_a_second_and_repeats_nothing(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let (swarm, publisher) = lobby_under_load(&redis, &server);

    let mut kills = Vec::new();
    for number in 1..=5 {
        let began = Instant::now();
        assert_eq!(redis.client_kill_pubsub(), 1, "the server has one subscribing connection");
        kills.push((began, Instant::now()));
        server.wait_metrics("the subscription is back", |page| {
            page.sum("corecast_broker_reconnects_total") >= f64::from(number)
                && page.sum("corecast_broker_up") > 0.0
        });
        let mark = publisher.accepted();
        swarm.wait_all("publications flow again", |m| m.tally('P').last > mark);
    }

    let accepted = finish(&swarm, publisher);
    let tally = assert_same_for_all(&swarm, 0..MEMBERS);
    assert_missing_only(&tally, &accepted, |publication| {
        let is_around = |&(began, ended): &(Instant, Instant)| {
            publication.acknowledged + FLUSH > began && publication.sent < ended
        };
        publication.receivers == 0 || kills.iter().any(is_around)
    });
    let missing_max = 5 * u64::from(RATE);
    assert!(tally.missing() < missing_max, "{} of {RATE} a second are missing", tally.missing());
    assert_break_is_told(&server, 5.0);
}

fn what_clients_say_while_redis_hangs_up_arrives_exactly_once(driver: Driver) {
    let redis = Redis::start();
    let server = Server::event_fanout(&redis, driver).start();
    let swarm = Swarm::new();
    swarm.add_many(server.address(), LOBBY, 10);
    swarm.wait_open();

    for sequence in 1..=300 {
        swarm.send_text(0, &payload('O', sequence, 64));
        if sequence % 50 == 25 {
            redis.client_kill_pubsub();
        }
        eventually(LONG, "what was said comes back", || {
            swarm.look(0, |member| member.tally('O').last) + UNDER_WAY_MAX >= sequence
        });
    }

    swarm.wait_all("everybody heard the last", |member| member.tally('O').last == 300);
    assert_own_messages_came_once(&swarm, 300);
}

fn a_redis_that_is_silent_on_open_connections_is_found_out(driver: Driver) {
    let redis = Redis::start();
    let proxy = Proxy::to(redis.address());
    let server = Server::builder().preset("event-fanout").redis_url(&proxy.url()).driver(driver).start();
    server.wait_broker(true);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), LOBBY, 10);
    swarm.wait_open();

    proxy.fall_silent();
    let noticed = server.wait_broker(false);
    assert!(noticed < Duration::from_secs(8), "a silent Redis was trusted for {noticed:?}");
    say(&swarm, 1..=10);
    swarm.wait_all("clients hear each other meanwhile", |m| m.tally('O').is_exactly(1, 10));

    proxy.speak();
    proxy.cut();
    server.wait_broker(true);
    redis.publish("room:lobby", payload('R', 1, 64));
    swarm.wait_all("Redis is heard again", |member| member.tally('R').is_exactly(1, 1));
    assert_own_messages_came_once(&swarm, 10);
}

fn a_server_starts_without_redis_and_finds_it_when_it_comes(driver: Driver) {
    let mut redis = Redis::start();
    redis.kill9();
    let server = Server::builder().preset("event-fanout").redis_url(&redis.url()).driver(driver).start();
    assert_eq!(server.metrics().sum("corecast_broker_up"), 0.0);
    let mut alice = Client::join(&server, "lobby");
    let mut bob = Client::join(&server, "lobby");

    alice.send_text("anybody there?");
    assert_eq!(bob.next_text(), "anybody there?");
    assert_eq!(alice.next_text(), "anybody there?");

    redis.restart();
    server.wait_broker(true);
    redis.publish("room:lobby", "me");
    assert_eq!(alice.next_text(), "me");
    assert_eq!(bob.next_text(), "me");
}

#[test]
fn whatever_an_impostor_says_the_server_lives_serves_and_stays_small() {
    let mebibyte = 1 << 20;
    let unasked = ">3\r\n$7\r\nmessage\r\n$10\r\nroom:lobby\r\n$5\r\nhello\r\n".repeat(1000);
    for (what, words) in [
        ("nothing", Vec::new()),
        ("no RESP at all", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("every byte there is", (0..=255).cycle().take(64 * 1024).collect()),
        ("an array of 2^31 - 1", b"*2147483647\r\n".to_vec()),
        ("an array of -2", b"*-2\r\n".to_vec()),
        ("a string of 2^63 - 1 bytes", b"$9223372036854775807\r\n".to_vec()),
        ("a length that is no number", b"$twelve\r\n".to_vec()),
        ("nulls", b"_\r\n$-1\r\n*-1\r\n".repeat(100)),
        ("answers to nothing", b"+OK\r\n".repeat(10_000)),
        ("pushes for nothing", unasked.into_bytes()),
        ("a line without an end", [b"+".as_slice(), &vec![b'a'; 64 * mebibyte]].concat()),
        ("half an answer", b"%7\r\n$6\r\nserver\r\n$5\r\nred".to_vec()),
        ("arrays in arrays", b"*1\r\n".repeat(100_000)),
        ("a refusal", b"-ERR max number of clients reached\r\n".to_vec()),
    ] {
        let impostor = Proxy::impostor(words);
        assert_survives(&impostor, what);
    }
}

#[test]
fn whatever_is_answered_to_commands_the_server_lives_serves_and_stays_small() {
    for (what, answers) in [
        ("OK to everything", vec!["+OK\r\n"]),
        ("an error to everything", vec!["-NOPERM this user has no permissions\r\n"]),
        ("a null to everything", vec!["$-1\r\n"]),
        ("RESP3 nulls", vec!["_\r\n"]),
        ("empty arrays and maps", vec!["*0\r\n", "%0\r\n"]),
        ("loading", vec!["-LOADING Redis is loading the dataset in memory\r\n"]),
        (
            "a subscription to something else",
            vec!["%0\r\n", ">3\r\n$9\r\nsubscribe\r\n$5\r\nother\r\n:1\r\n"],
        ),
    ] {
        let parrot = Proxy::parrot(answers.into_iter().map(|answer| answer.as_bytes().to_vec()).collect());
        assert_survives(&parrot, what);
    }
}

#[test]
fn every_way_to_reach_redis_works() {
    let redis = Redis::start();
    let guarded = Redis::start_with(&["--requirepass", "sesame street"]);
    guarded.cli(&["ACL", "SETUSER", "cast", "on", ">se:same@1", "~*", "&*", "+@all"]);
    let old = Redis::start_with(&["--rename-command", "HELLO", ""]);
    for (what, redis, url) in [
        ("a URL", &redis, redis.url()),
        ("host:port", &redis, redis.address().to_string()),
        ("a database", &redis, format!("{}/3", redis.url())),
        ("a unix socket", &redis, redis.unix_url()),
        ("a password", &guarded, format!("redis://:sesame%20street@{}", guarded.address())),
        ("an ACL user", &guarded, format!("redis://cast:se%3Asame%401@{}", guarded.address())),
        ("RESP2, where HELLO fails", &old, old.url()),
    ] {
        let server = Server::builder().preset("event-fanout").redis_url(&url).shards(1).start();
        eventually(LONG, &format!("{what}: {url} is reached"), || {
            server.metrics().sum("corecast_broker_up") == 1.0
        });
        let mut client = Client::join(&server, "lobby");
        redis.publish("room:lobby", what);
        assert_eq!(client.next_text(), what);
        client.send_text("and back");
        assert_eq!(client.next_text(), "and back", "{what}");
    }
}

#[test]
fn a_wrong_password_is_told_in_the_log_without_the_password() {
    let guarded = Redis::start_with(&["--requirepass", "sesame"]);
    let url = format!("redis://:open-barley@{}", guarded.address());
    let server = Server::builder().preset("event-fanout").redis_url(&url).start();
    eventually(LONG, "the refusal is logged", || server.log().contains("WRONGPASS"));
    assert_eq!(server.metrics().sum("corecast_broker_up"), 0.0);
    assert!(!server.log().contains("open-barley"), "the log shows the password");
}

/// Members of the lobby who hear [`RATE`] publications a second.
fn lobby_under_load(redis: &Redis, server: &Server) -> (Swarm, Publisher) {
    let swarm = Swarm::new();
    swarm.add_many(server.address(), LOBBY, MEMBERS);
    swarm.wait_open();
    let publisher = Publisher::start(redis, &["room:lobby".to_owned()], 'P', 128, RATE);
    swarm.wait_all("the load is on", |member| member.tally('P').received >= 20);
    (swarm, publisher)
}

/// The first member says `O:n` for each `n`.
fn say(swarm: &Swarm, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        swarm.send_text(0, &payload('O', number, 64));
    }
}

/// Lets publications flow for a moment longer, ends them, and waits until the last has come.
#[track_caller]
fn finish(swarm: &Swarm, publisher: Publisher) -> Vec<Accepted> {
    let mark = publisher.accepted() + 20;
    swarm.wait_each(0..MEMBERS, "publications flow", |member| member.tally('P').last > mark);
    let accepted = publisher.stop();
    let last = accepted.last().expect("something was published").sequence;
    swarm.wait_each(0..MEMBERS, "the last has come", |member| member.tally('P').last == last);
    swarm.assert_all_open();
    accepted
}

/// What every one of `members` received, in order and without repetition: the relay gives all of them the same.
#[track_caller]
fn assert_same_for_all(swarm: &Swarm, members: std::ops::Range<usize>) -> Tally {
    let tallies: Vec<Tally> = members.map(|index| swarm.look(index, |member| member.tally('P'))).collect();
    assert!(tallies.iter().all(|tally| *tally == tallies[0]), "members heard different things: {tallies:?}");
    assert_eq!(tallies[0].backwards, 0, "repeated or out of order: {:?}", tallies[0]);
    tallies[0].clone()
}

/// What is missing was never acknowledged, or `excused` says why it may be.
#[track_caller]
fn assert_missing_only(tally: &Tally, accepted: &[Accepted], excused: impl Fn(&Accepted) -> bool) {
    let missing: BTreeSet<u64> = tally.holes.iter().flat_map(|&(from, to)| from..=to).collect();
    let unexcused: Vec<_> =
        accepted.iter().filter(|one| missing.contains(&one.sequence) && !excused(one)).collect();
    assert!(unexcused.is_empty(), "Redis handed these to the server, and nobody got them: {unexcused:?}");
}

/// What the first member said came to each once, and nothing follows.
#[track_caller]
fn assert_own_messages_came_once(swarm: &Swarm, last: u64) {
    // A marker behind whatever could still come from Redis.
    swarm.send_text(0, b"the end");
    swarm.wait_all("the marker arrives", |member| member.others.iter().any(|other| other == b"the end"));
    let tallies = swarm.map(|member| member.tally('O'));
    let wrong = tallies.iter().find(|tally| tally.received != 0 && !tally.is_exactly(1, last));
    assert_eq!(wrong, None, "own messages are to arrive once and in order");
    swarm.assert_all_open();
}

#[track_caller]
fn assert_break_is_told(server: &Server, breaks: f64) {
    let page = server.metrics();
    assert_eq!(page.sum("corecast_broker_breaks_total"), breaks, "{page:?}");
    assert_eq!(page.sum("corecast_broker_reconnects_total"), breaks, "{page:?}");
    let gaps = page.labelled("corecast_gaps_total", "reason", "broker");
    assert!(gaps >= breaks, "a break of the broker is a gap in each of its rooms, {gaps} were counted");
}

/// A server whose Redis is `proxy` answers, routes between its clients, uses little memory and CPU.
#[track_caller]
fn assert_survives(proxy: &Proxy, what: &str) {
    let mut server = Server::builder().preset("event-fanout").redis_url(&proxy.url()).shards(1).start();
    eventually(LONG, &format!("{what}: the server connects"), || proxy.accepted() >= 1);
    let mut client = Client::join(&server, "lobby");
    for number in 0..10 {
        let text = format!("{what} {number}");
        client.send_text(&text);
        assert_eq!(client.next_text(), text);
    }
    assert_eq!(server.get("/healthz").status, 503, "{what}");
    let used = server.user_memory_bytes();
    assert!(used < 96 << 20, "{what}: the server holds {used} bytes");
    assert!(server.is_running(), "{what}: the server ended");
}

const LOBBY: &str = "/ws?room=lobby";
const MEMBERS: usize = 100;
/// Publications a second.
const RATE: u32 = 200;
/// From Redis' answering to our using it.
const RECOVERY_MAX: Duration = Duration::from_secs(2);
/// Redis answers a publisher and writes to its subscribers in one turn of its loop, in no order that it promises.
const FLUSH: Duration = Duration::from_millis(100);
/// Own messages that may be on their way at once.
const UNDER_WAY_MAX: u64 = 8;
