//! Instances and their Redis: what crosses it, what does not need it, and what comes back.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{backbone, envelope, witness};
use crate::support::on_both_drivers;
use crate::support::redis::Redis;
use crate::support::server::{Driver, Server};
use crate::support::speaker::{Speaker, price};
use crate::support::tool::ClosedPort;

on_both_drivers!(
    members_of_every_instance_hear_each_publication_once,
    an_instance_alone_goes_on_while_redis_is_dead_or_frozen_and_finds_the_others_again,
    a_subscription_that_breaks_repeats_nothing_where_it_was_published,
);

fn members_of_every_instance_hear_each_publication_once(driver: Driver) {
    let redis = Redis::start();
    let [first, second] = [(), ()].map(|()| backbone(&redis).driver(driver).shards(2).start());
    let mut members = [&first, &second].map(|server| Speaker::in_room(server.address(), "BTC_USDT"));
    let mut feed = Speaker::ingestor(second.address());
    for number in 1..=ROUNDS {
        members[0].say(&json!({ "type": "message", "room": "BTC_USDT", "data": number }));
        feed.say(&price("BTC_USDT", f64::from(number)));
    }
    for member in &mut members {
        let (mut messages, mut prices) = (Vec::new(), Vec::new());
        for _ in 0..2 * ROUNDS {
            let frame = member.hear();
            match frame["type"].as_str() {
                Some("message") => messages.push(frame["data"].as_f64().expect("a number was said")),
                Some("price_update") => {
                    prices.push(frame["data"]["price"].as_f64().expect("a price is a number"))
                }
                _ => panic!("{frame}"),
            }
        }
        let due: Vec<f64> = (1..=ROUNDS).map(f64::from).collect();
        assert_eq!((messages, prices), (due.clone(), due), "each once, and each publisher's in order");
    }
    // No second delivery is on its way: the next frame is the next publication.
    for server in [&first, &second] {
        server.wait_metrics("every echo came and was ignored", |page| {
            page.sum("corecast_echoes_ignored_total") == f64::from(ROUNDS)
        });
    }
    redis.publish("chat:events", r#"{"room":"BTC_USDT","type":"end","data":0}"#);
    members.iter_mut().for_each(|member| assert_eq!(member.hear_data("end", "BTC_USDT"), 0));
}

fn an_instance_alone_goes_on_while_redis_is_dead_or_frozen_and_finds_the_others_again(driver: Driver) {
    let mut redis = Redis::start();
    let [first, second] = [(), ()].map(|()| backbone(&redis).driver(driver).start());
    let mut here = Room::of(&first);
    let mut there = Speaker::in_room(second.address(), "BTC_USDT");
    for outage in [Outage::Dead, Outage::Frozen] {
        match outage {
            Outage::Dead => redis.kill9(),
            Outage::Frozen => redis.sigstop(),
        }
        // Before anybody has noticed, and after.
        let began = Instant::now();
        here.assert_routes();
        let took = began.elapsed();
        assert!(took < NOTICED_AFTER, "{outage:?}: two deliveries took {took:?}");
        first.wait_broker(false);
        second.wait_broker(false);
        here.assert_routes();
        // Rooms can be joined and left, too.
        here.consumer.leave("BTC_USDT");
        here.consumer.join("BTC_USDT");
        here.assert_routes();
        match outage {
            Outage::Dead => redis.restart(),
            Outage::Frozen => redis.sigcont(),
        }
        first.wait_broker(true);
        second.wait_broker(true);
        // What Redis had taken before it froze may come now, the others' and once; nothing of it comes here again.
        here.say("all are here again");
        assert_eq!(here.consumer.hear_data("message", "BTC_USDT"), "all are here again", "{outage:?}");
        while there.hear()["data"] != "all are here again" {}
    }
}

fn a_subscription_that_breaks_repeats_nothing_where_it_was_published(driver: Driver) {
    let redis = Redis::start();
    let server = backbone(&redis).driver(driver).start();
    let mut here = Room::of(&server);
    for number in 0..ROUNDS {
        here.consumer.say(&json!({ "type": "message", "room": "BTC_USDT", "data": number }));
        if number % 20 == 10 {
            redis.client_kill_pubsub();
        }
        assert_eq!(here.consumer.hear_data("message", "BTC_USDT"), number);
    }
    server.wait_broker(true);
    here.say("the end");
    assert_eq!(here.consumer.hear_data("message", "BTC_USDT"), "the end");
    let page = server.metrics();
    assert!(page.sum("corecast_broker_breaks_total") >= 1.0, "nothing broke: the story did not happen");
}

#[test]
fn an_instance_whose_redis_never_was_routes_and_says_so() {
    let nobody = ClosedPort::new();
    let url = format!("redis://{}", nobody.address());
    let server = Server::builder().preset("backbone").redis_url(&url).start();
    let mut here = Room::of(&server);
    here.assert_routes();
    let page = server.metrics();
    assert_eq!(page.sum("corecast_broker_up"), 0.0);
    assert!(page.sum("corecast_local_deliveries_total") >= 2.0);
    server.wait_log("the log says it", |line| line.contains("WARN") && line.contains("redis"));
    // Redis is no condition of its health.
    for page in ["/health", "/healthz", "/livez", "/readyz"] {
        assert_eq!(server.get(page).status, 200, "{page}");
    }
}

#[test]
fn publications_of_others_are_delivered_whoever_they_say_they_are() {
    let redis = Redis::start();
    let server = backbone(&redis).arg("--node-id").arg("n1").start();
    let mut member = Speaker::in_room(server.address(), "lobby");
    for (published, heard) in [
        (
            r#"{"room":"lobby","type":"price_update","data":{"price": 60214.30},"origin":"n2"}"#,
            r#"{"type":"price_update","room":"lobby","data":{"price": 60214.30}}"#,
        ),
        (r#"{"room":"lobby","type":"note","data":"hi"}"#, r#"{"type":"note","room":"lobby","data":"hi"}"#),
        (r#"{"room":"lobby","data":[1]}"#, r#"{"type":"message","room":"lobby","data":[1]}"#),
        (
            r#"{"instance_id":"x","origin":"n1","data":null,"type":"a\"b","room":"lob\u0062y"}"#,
            r#"{"type":"a\"b","room":"lobby","data":null}"#,
        ),
        (
            r#"{"room":"lobby","type":"octets","data":"/wA=","encoding":"base64","origin":"n2"}"#,
            r#"{"type":"octets","room":"lobby","data":"/wA=","encoding":"base64"}"#,
        ),
    ] {
        redis.publish("chat:events", published);
        assert_eq!(member.hear_text(), heard, "{published}");
    }
    // Its own name without an instance is somebody else of that name: its own envelopes have one.
    redis.publish("chat:events", r#"{"room":"lobby","type":"note","data":"namesake","origin":"n1"}"#);
    assert_eq!(member.hear_data("note", "lobby"), "namesake");
    redis.publish("chat:events", r#"{"room":"attic","type":"note","data":"elsewhere","origin":"n2"}"#);
    redis.publish("chat:events", r#"{"room":"lobby","type":"note","data":"next","origin":"n2"}"#);
    assert_eq!(member.hear_data("note", "lobby"), "next");
    assert_eq!(server.metrics().sum("corecast_echoes_ignored_total"), 0.0);
}

#[test]
fn two_instances_of_one_name_hear_each_other() {
    let redis = Redis::start();
    let [first, second] = [(), ()].map(|()| backbone(&redis).arg("--node-id").arg("same").start());
    let mut members = [&first, &second].map(|server| Speaker::in_room(server.address(), "lobby"));
    for speaking in 0..2 {
        members[speaking].say(&json!({ "type": "message", "room": "lobby", "data": speaking }));
        members.iter_mut().for_each(|member| assert_eq!(member.hear_data("message", "lobby"), speaking));
    }
    for server in [&first, &second] {
        server
            .wait_metrics("its own echo is ignored", |page| page.sum("corecast_echoes_ignored_total") == 1.0);
    }
}

#[test]
fn garbage_on_the_channel_is_counted_and_harms_nobody() {
    let redis = Redis::start();
    let server = backbone(&redis).start();
    let mut member = Speaker::in_room(server.address(), "lobby");
    let garbage: Vec<Vec<u8>> = [
        "",
        "nonsense",
        "{}",
        "[]",
        "null",
        r#"{"room":"lobby"}"#,
        r#"{"data":1}"#,
        r#"{"room":7,"data":1}"#,
        r#"{"room":"","data":1}"#,
        r#"{"room":"a\u001flobby","data":1}"#,
        r#"{"room":"lobby","data":1"#,
        r#"{"room":"lobby","data":1} and more"#,
        r#"{"room":"lobby","data":"not base64","encoding":"base64"}"#,
    ]
    .into_iter()
    .map(|text| text.as_bytes().to_vec())
    .chain([
        vec![0xff, 0x00],
        b"{\"room\":\"lobby\",\"data\":\"\xff\"}".to_vec(),
        format!(r#"{{"room":"{}","data":1}}"#, "r".repeat(256)).into_bytes(),
        "[".repeat(1 << 20).into_bytes(),
        format!(r#"{{"room":"lobby","data":{}"#, "[".repeat(1 << 20)).into_bytes(),
    ])
    .collect();
    for payload in &garbage {
        redis.publish("chat:events", payload);
    }
    redis.publish("chat:events", r#"{"room":"lobby","type":"note","data":"good"}"#);
    assert_eq!(member.hear_data("note", "lobby"), "good");
    let counted = server.metrics().labelled("corecast_publications_refused_total", "reason", "bad_room");
    assert_eq!(counted, garbage.len() as f64);
}

#[test]
fn what_is_posted_over_http_is_a_publication_like_others() {
    let redis = Redis::start();
    let [first, second] = [(), ()].map(|()| backbone(&redis).start());
    let mut members = [&first, &second].map(|server| Speaker::in_room(server.address(), "lobby"));
    let mut witness = witness(&redis);
    for (body, kind, data) in [
        (r#"{"type":"deployed","by":"ci"}"#, "deployed", json!({ "type": "deployed", "by": "ci" })),
        ("[1,2]", "message", json!([1, 2])),
        ("plain words", "message", json!("plain words")),
    ] {
        first.publish("lobby", body.as_bytes());
        members.iter_mut().for_each(|member| assert_eq!(member.hear_data(kind, "lobby"), data));
        assert_eq!(envelope(&mut witness)["type"], kind);
    }
}

#[test]
fn what_was_said_while_redis_was_away_stays_where_it_was_said() {
    let mut redis = Redis::start();
    let server = backbone(&redis).start();
    let mut here = Room::of(&server);
    redis.kill9();
    server.wait_broker(false);
    here.assert_routes();
    redis.restart();
    let mut witness = witness(&redis);
    server.wait_broker(true);
    here.say("the first that crosses again");
    assert_eq!(envelope(&mut witness)["data"], "the first that crosses again");
}

/// One room of one instance: who is in it, and who feeds it.
struct Room {
    consumer: Speaker,
    feed: Speaker,
    prices: f64,
}

impl Room {
    #[track_caller]
    fn of(server: &Server) -> Self {
        let consumer = Speaker::in_room(server.address(), "BTC_USDT");
        Self { consumer, feed: Speaker::ingestor(server.address()), prices: 0.0 }
    }

    fn say(&mut self, data: &str) {
        self.consumer.say(&json!({ "type": "message", "room": "BTC_USDT", "data": data }));
    }

    /// A message and a price arrive, once and in order.
    #[track_caller]
    fn assert_routes(&mut self) {
        self.say("hello");
        assert_eq!(self.consumer.hear_data("message", "BTC_USDT"), "hello");
        self.prices += 1.0;
        let update = price("BTC_USDT", self.prices);
        self.feed.say(&update);
        assert_eq!(self.consumer.hear_data("price_update", "BTC_USDT"), update);
    }
}

#[derive(Debug)]
enum Outage {
    Dead,
    Frozen,
}

const ROUNDS: u32 = 100;
/// Before a frozen Redis is given up (`PROBE_TIMEOUT` is 3 s), so that what was heard did not wait for that.
const NOTICED_AFTER: Duration = Duration::from_secs(2);
