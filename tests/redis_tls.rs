//! Redis behind TLS: everything that works without it, the faults of the network, and what is said when it can't be.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::authority::{Authority, Identity};
use crate::support::client::Client;
use crate::support::consumer::{CHANNEL, Consumer, event};
use crate::support::deadline::{SOON, eventually_ok};
use crate::support::on_both_drivers;
use crate::support::program::run;
use crate::support::proxy::Proxy;
use crate::support::publisher::Publisher;
use crate::support::server::{Driver, Server};
use crate::support::swarm::Swarm;
use crate::support::tls_redis::TlsRedis;

on_both_drivers!(
    publications_of_every_size_travel_both_ways,
    a_crash_under_load_is_a_break_that_heals,
    a_hang_up_under_load_is_a_break_that_heals,
    a_redis_that_stands_still_for_a_second_loses_nothing,
    a_redis_that_is_silent_on_open_connections_is_found_out,
);

fn publications_of_every_size_travel_both_ways(driver: Driver) {
    let redis = TlsRedis::start();
    let server = redis.event_fanout(driver).start();
    server.wait_broker(true);
    let (mut alice, mut bob) = (Client::join(&server, "lobby"), Client::join(&server, "lobby"));
    // Around a record (16 KiB), around what is sealed at once (64 KiB), and far beyond both.
    for bytes in [1, 16_383, 16_384, 16_385, 65_000, 66_000, 300_000, 3_000_000] {
        let text: String = (0..bytes).map(|index| char::from(b'a' + (index % 23) as u8)).collect();
        redis.publish("room:lobby", &text);
        assert!(alice.next_text() == text && bob.next_text() == text, "{bytes} bytes from Redis");
    }
    for number in 0..200 {
        let text = format!("{number} {}", "x".repeat(number * 300));
        alice.send_text(&text);
        assert!(bob.next_text() == text, "message {number} of a client");
        assert!(alice.next_text() == text, "message {number} comes back");
    }
    assert_eq!(server.metrics().sum("corecast_broker_breaks_total"), 0.0);
}

fn a_crash_under_load_is_a_break_that_heals(driver: Driver) {
    let mut redis = TlsRedis::start();
    let server = redis.event_fanout(driver).start();
    let (swarm, publisher) = under_load(&redis, &server);
    redis.kill9();
    server.wait_broker(false);
    redis.restart();
    server.wait_broker(true);
    assert_flows(&swarm, publisher);
    assert_eq!(server.metrics().sum("corecast_broker_breaks_total"), 1.0);
}

fn a_hang_up_under_load_is_a_break_that_heals(driver: Driver) {
    let redis = TlsRedis::start();
    let server = redis.event_fanout(driver).start();
    let (swarm, publisher) = under_load(&redis, &server);
    for number in 1..=3 {
        assert_eq!(redis.client_kill_pubsub(), 1, "the server has one subscribing connection");
        server.wait_metrics("the subscription is back", |page| {
            page.sum("corecast_broker_reconnects_total") >= f64::from(number)
                && page.sum("corecast_broker_up") > 0.0
        });
    }
    assert_flows(&swarm, publisher);
}

fn a_redis_that_stands_still_for_a_second_loses_nothing(driver: Driver) {
    let redis = TlsRedis::start();
    let server = redis.event_fanout(driver).start();
    let (swarm, publisher) = under_load(&redis, &server);
    redis.sigstop();
    let stopped = Instant::now();
    // The length of the fault, not a wait for anything; the probe gives up after three seconds.
    thread::sleep(Duration::from_secs(1));
    redis.sigcont();
    if stopped.elapsed() > Duration::from_secs(2) {
        eprintln!("not told: this machine is too busy to tell a second from the probe's three");
        return;
    }
    assert_flows(&swarm, publisher);
    let tallies = swarm.map(|member| member.tally('P'));
    assert!(tallies.iter().all(|tally| tally.holes.is_empty()), "{tallies:?}");
    assert_eq!(server.metrics().sum("corecast_broker_breaks_total"), 0.0);
}

fn a_redis_that_is_silent_on_open_connections_is_found_out(driver: Driver) {
    let redis = TlsRedis::start();
    let proxy = Proxy::to(redis.second_address());
    let server = redis.event_fanout_at(&proxy.url().replace("redis://", "rediss://"), driver).start();
    server.wait_broker(true);
    let mut client = Client::join(&server, "lobby");
    proxy.fall_silent();
    let noticed = server.wait_broker(false);
    assert!(noticed < Duration::from_secs(8), "a silent Redis was trusted for {noticed:?}");
    client.send_text("anybody?");
    assert_eq!(client.next_text(), "anybody?", "clients hear each other meanwhile");
    proxy.speak();
    proxy.cut();
    server.wait_broker(true);
    redis.publish("room:lobby", "back");
    assert_eq!(client.next_text(), "back");
}

#[test]
fn a_redis_that_asks_for_a_certificate_gets_ours() {
    let redis = TlsRedis::start_with(&["--tls-auth-clients", "yes"]);
    let me = redis.authority.issue("me", &["corecast"]);
    let server = redis.event_fanout(Driver::IoUring);
    let server = server.arg("--redis-cert-file").arg(&me.cert).arg("--redis-key-file").arg(&me.key).start();
    server.wait_broker(true);
    let mut client = Client::join(&server, "lobby");
    redis.publish("room:lobby", "to whom I know");
    assert_eq!(client.next_text(), "to whom I know");
}

#[test]
fn old_redis_with_tls_1_2_alone_is_served() {
    let redis = TlsRedis::start_with(&["--tls-protocols", "TLSv1.2", "--tls-auth-clients", "yes"]);
    let me = redis.authority.issue("me", &["corecast"]);
    let builder = || redis.event_fanout(Driver::IoUring);
    let server =
        builder().arg("--redis-cert-file").arg(&me.cert).arg("--redis-key-file").arg(&me.key).start();
    server.wait_broker(true);
    let without = builder().start();
    assert_logged(&without, &["HandshakeFailure", "give --redis-cert-file and --redis-key-file"]);
}

#[test]
fn whatever_is_wrong_with_tls_is_told_once_with_its_cure() {
    let redis = TlsRedis::start_with(&["--tls-auth-clients", "optional"]);
    let strict = TlsRedis::start_with(&["--tls-auth-clients", "yes"]);
    let stranger = Authority::new("a stranger");
    let expired = {
        let authority = Authority::new("an authority that sleeps");
        let identity = authority.issue_expired("redis", &["127.0.0.1"]);
        TlsRedis::start_as(authority, &identity, &[])
    };
    let unknown = stranger.issue("me", &["corecast"]);
    let (ca, of_stranger) = (redis.authority.ca_file(), stranger.ca_file());
    let localhost = redis.tls_url().replace("127.0.0.1", "localhost");
    let plain_port = redis.url().replace("redis://", "rediss://");
    let plain_spoken = redis.tls_url().replace("rediss://", "redis://");
    let (url, strict_url, strict_ca) = (redis.tls_url(), strict.tls_url(), strict.authority.ca_file());
    let (expired_url, expired_ca) = (expired.tls_url(), expired.authority.ca_file());
    let by = |identity: &Identity| {
        vec![
            "--redis-cert-file".to_owned(),
            identity.cert.clone(),
            "--redis-key-file".to_owned(),
            identity.key.clone(),
        ]
    };
    for (what, url, ca, more, words) in [
        (
            "an unknown CA",
            &url,
            Some(&of_stranger),
            vec![],
            ["signed by a CA that is not trusted", "--redis-ca-file"],
        ),
        (
            "no CA",
            &url,
            None,
            vec![],
            ["signed by a CA that is not trusted, due one of this system's", "--redis-ca-file"],
        ),
        (
            "another name",
            &localhost,
            Some(&ca),
            vec![],
            ["is for 127.0.0.1, redis.example, due one for localhost", "--redis-server-name"],
        ),
        (
            "a certificate of old",
            &expired_url,
            Some(&expired_ca),
            vec![],
            ["has expired", "days ago: renew it"],
        ),
        (
            "a certificate that is missing",
            &strict_url,
            Some(&strict_ca),
            vec![],
            ["wants a client certificate", "--redis-cert-file"],
        ),
        (
            "a stranger's certificate",
            &strict_url,
            Some(&strict_ca),
            by(&unknown),
            ["refused the client certificate in", "tls-ca-cert-file"],
        ),
        (
            "a plain port",
            &plain_port,
            Some(&ca),
            vec![],
            ["a Redis without TLS answers there", "write redis://"],
        ),
        ("a TLS port", &plain_spoken, None, vec![], ["before it answered anything", "write rediss://"]),
    ] {
        let mut server = Server::builder().preset("event-fanout").redis_url(url).shards(1);
        if let Some(ca) = ca {
            server = server.arg("--redis-ca-file").arg(ca);
        }
        let server = more.iter().fold(server, |server, arg| server.arg(arg)).start();
        let line = server.wait_log(what, |line| words.iter().all(|word| line.contains(word)));
        assert!(line.contains("redis is away"), "{what}: {line}");
        assert_eq!(server.metrics().sum("corecast_broker_up"), 0.0, "{what}");
        // A few attempts later it has still been said once.
        server.wait_metrics("it is tried again", |page| {
            page.sum("corecast_broker_attempts_failed_total") >= 3.0
        });
        assert_eq!(server.log().matches("redis is away").count(), 1, "{what}: {}", server.log());
    }
}

#[test]
fn the_name_that_a_certificate_has_may_be_given() {
    let redis = TlsRedis::start();
    let server = redis.event_fanout(Driver::IoUring).arg("--redis-server-name").arg("redis.example").start();
    server.wait_broker(true);
}

#[test]
fn files_that_were_replaced_are_taken_at_the_next_connection() {
    let redis = TlsRedis::start_with(&["--tls-auth-clients", "yes"]);
    let stranger = Authority::new("a stranger");
    let me = stranger.issue("me", &["corecast"]);
    let builder = redis.event_fanout(Driver::IoUring);
    let server = builder.arg("--redis-cert-file").arg(&me.cert).arg("--redis-key-file").arg(&me.key).start();
    server.wait_log("the stranger is refused", |line| line.contains("refused the client certificate"));
    let known = redis.authority.issue("me", &["corecast"]);
    fs::copy(known.key, &me.key).expect("the key is replaced");
    fs::copy(known.cert, &me.cert).expect("the certificate is replaced");
    server.wait_broker(true);

    // Between two connections a file may be gone: that is told, and over when it is back.
    fs::remove_file(&me.key).expect("the key is there");
    redis.client_kill_pubsub();
    server.wait_log("the missing file is named", |line| {
        line.contains("me.key can't be read") && line.contains("--redis-key-file")
    });
    let known = redis.authority.issue("me", &["corecast"]);
    fs::copy(known.cert, &me.cert).expect("the certificate is replaced");
    fs::copy(known.key, &me.key).expect("the key is back");
    server.wait_broker(true);
}

#[test]
fn files_that_can_not_be_used_keep_the_server_from_starting() {
    let redis = TlsRedis::start();
    let me = redis.authority.issue("me", &["corecast"]);
    let ca = redis.authority.ca_file();
    for (cert, key, words) in [
        (me.cert.as_str(), "/nowhere/key", "/nowhere/key can't be read"),
        (&me.cert, &ca, "holds a certificate where a private key"),
        (&ca, &me.key, "is not that of the certificate in"),
    ] {
        let server = redis.event_fanout(Driver::IoUring);
        let ended =
            server.arg("--redis-cert-file").arg(cert).arg("--redis-key-file").arg(key).start_in_vain();
        assert_eq!(ended.code(), Some(78), "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
    }
}

#[test]
fn every_command_that_speaks_to_redis_speaks_tls() {
    let redis = TlsRedis::start();
    let flags = redis.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let published = run(&[&["publish", "--channel", "somewhere", "hello"], flags.as_slice()].concat());
    assert_eq!(published.code(), Some(0), "{published:?}");

    let handler = ["--handler", "*=exec:exit 1", "--attempts", "1", "--dead-letters", "stream:dead"];
    let variables =
        [("CORECAST_REDIS", redis.tls_url()), ("CORECAST_REDIS_CA_FILE", redis.authority.ca_file())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut consumer = Consumer::spawn(&variables, &handler);
    consumer.wait_log("it subscribes", |line| line["msg"] == "subscribed to redis");
    redis.publish(CHANNEL, event("order.paid", 1));
    let list = [&["dead-letters", "list", "stream:dead"], flags.as_slice()].concat();
    eventually_ok(SOON, "the letter is in the stream", || {
        let listed = run(&list);
        if listed.stdout.contains("order.paid") { Ok(()) } else { Err(format!("{listed:?}")) }
    });
    consumer.signal(rustix::process::Signal::TERM);
    assert_eq!(consumer.wait().code(), Some(0), "{}", consumer.file("log"));

    let doctor = run(&[&["doctor"], flags.as_slice()].concat());
    assert!(
        doctor.stdout.contains(&format!("{} answers the user default", redis.second_address())),
        "{doctor:?}"
    );
    let refused = run(&["doctor", "--redis", &redis.tls_url()]);
    assert!(refused.stdout.contains("signed by a CA that is not trusted"), "{refused:?}");
    assert!(refused.stdout.contains("--tls PING"), "{refused:?}");
    let refused = run(&["publish", "--redis", &redis.tls_url(), "--channel", "somewhere", "hello"]);
    assert_eq!(refused.code(), Some(69), "{refused:?}");
}

/// Ten members who hear a few hundred publications a second.
fn under_load(redis: &TlsRedis, server: &Server) -> (Swarm, Publisher) {
    server.wait_broker(true);
    let swarm = Swarm::new();
    swarm.add_many(server.address(), "/ws?room=lobby", 10);
    swarm.wait_open();
    let publisher = Publisher::start(redis, &["room:lobby".to_owned()], 'P', 512, 200);
    swarm.wait_all("the load is on", |member| member.tally('P').received >= 20);
    (swarm, publisher)
}

/// Everybody hears what is published from now on, nobody anything twice, and nobody was closed.
#[track_caller]
fn assert_flows(swarm: &Swarm, publisher: Publisher) {
    let mark = publisher.accepted() + 20;
    swarm.wait_all("publications flow", |member| member.tally('P').last > mark);
    let last = publisher.stop().last().expect("something was published").sequence;
    swarm.wait_all("the last has come", |member| member.tally('P').last == last);
    let tallies = swarm.map(|member| member.tally('P'));
    assert!(tallies.iter().all(|tally| tally.backwards == 0), "{tallies:?}");
    swarm.assert_all_open();
}

#[track_caller]
fn assert_logged(server: &Server, words: &[&str]) {
    server.wait_log(&words.join(", "), |line| words.iter().all(|word| line.contains(word)));
}
