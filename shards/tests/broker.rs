//! The link to Redis against a real redis-server and against a server that means harm, on both drivers.

#![cfg(feature = "net")]

mod support;

use std::cell::RefCell;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use shards::config::{RedisAddress, RedisTarget};
use shards::limits::{MIB, PAYLOAD_BYTES_MAX, PROBE_TIMEOUT, RESP_BULK_BYTES_MAX};
use shards::net::broker::{BrokerEvents, BrokerLink, Wants, start};
use shards::redis::{PublishError, Refused};
use support::Redis;

/// Everything that a link told, in order.
#[derive(Default)]
struct Recorder {
    told: Vec<Told>,
    /// Whether something was told after the last `batch_end`.
    has_unflushed: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Told {
    Up,
    Down(String),
    Confirmed(String),
    Lapsed(String),
    Refused(String),
    Message { pattern: Option<String>, channel: String, payload: Vec<u8> },
    Published(u64, Result<u64, PublishError>),
    Kept(String, bool),
    Fetched(String, Option<Vec<u8>>),
    ProbeSent(u64),
    Probe(u64),
}

impl Recorder {
    fn tell(&mut self, told: Told) {
        self.told.push(told);
        self.has_unflushed = true;
    }

    fn count(&self, is_meant: impl Fn(&Told) -> bool) -> usize {
        self.told.iter().filter(|told| is_meant(told)).count()
    }

    /// The last of what was told, messages aside, newest first.
    fn last_told(&self) -> Vec<&Told> {
        self.told.iter().rev().filter(|told| !matches!(told, Told::Message { .. })).take(20).collect()
    }

    fn ups(&self) -> usize {
        self.count(|told| *told == Told::Up)
    }

    fn downs(&self) -> usize {
        self.count(|told| matches!(told, Told::Down(_)))
    }

    fn confirmations(&self, channel: &str) -> usize {
        self.count(|told| matches!(told, Told::Confirmed(name) if name == channel))
    }

    fn has_message(&self, pattern: Option<&str>, channel: &str, payload: &[u8]) -> bool {
        let message = Told::Message {
            pattern: pattern.map(Into::into),
            channel: channel.into(),
            payload: payload.to_vec(),
        };
        self.told.contains(&message)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl BrokerEvents for Recorder {
    fn up(&mut self) {
        self.tell(Told::Up);
    }
    fn down(&mut self, reason: &str) {
        self.tell(Told::Down(reason.into()));
    }
    fn confirmed(&mut self, channel: &[u8]) {
        self.tell(Told::Confirmed(text(channel)));
    }
    fn lapsed(&mut self, channel: &[u8]) {
        self.tell(Told::Lapsed(text(channel)));
    }
    fn refused(&mut self, channel: &[u8], reason: &str) {
        self.tell(Told::Refused(format!("{}: {reason}", text(channel))));
    }
    fn message(&mut self, pattern: Option<&[u8]>, channel: &[u8], payload: &[u8]) {
        let pattern = pattern.map(text);
        self.tell(Told::Message { pattern, channel: text(channel), payload: payload.to_vec() });
    }
    fn published(&mut self, token: u64, result: Result<u64, PublishError>) {
        self.tell(Told::Published(token, result));
    }
    fn kept(&mut self, key: &str, is_kept: bool) {
        self.tell(Told::Kept(key.into(), is_kept));
    }
    fn fetched(&mut self, key: &str, value: Option<&[u8]>) {
        self.tell(Told::Fetched(key.into(), value.map(<[u8]>::to_vec)));
    }
    fn probe_sent(&mut self, number: u64) {
        self.tell(Told::ProbeSent(number));
    }
    fn probe_returned(&mut self, number: u64) {
        self.tell(Told::Probe(number));
    }
    fn batch_end(&mut self) {
        self.has_unflushed = false;
    }
}

/// A link and what it told.
struct Fixture {
    link: BrokerLink,
    recorder: Rc<RefCell<Recorder>>,
}

impl Fixture {
    fn start(target: RedisTarget, patterns: &[&str], channels: &[&str]) -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let recorder = Rc::new(RefCell::new(Recorder::default()));
        let wants = Wants { patterns: owned(patterns), channels: owned(channels), streams: false };
        let link = start(target, "node-1", &wants, recorder.clone());
        Self { link, recorder }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Recorder) -> bool) {
        self.until_link(what, |_| is_so(&self.recorder.borrow())).await;
    }

    async fn until_link(&self, what: &str, is_so: impl Fn(&BrokerLink) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_so(&self.link) {
            assert!(
                Instant::now() < deadline,
                "waited in vain until {what}; last reason {:?}, told last {:?}",
                self.link.last_reason(),
                self.recorder.borrow().last_told()
            );
            monoio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn up(&self) {
        self.until("the link is up", |told| told.ups() > told.downs()).await;
    }

    /// Publishes once and waits for both ends of it.
    async fn round_trip(&self, channel: &str, payload: &[u8]) {
        let token = self.recorder.borrow().told.len() as u64;
        self.link.publish(channel.as_bytes(), payload, token).expect("the link is up");
        self.until("a publication is answered", |told| {
            told.count(|told| matches!(told, Told::Published(answered, Ok(1..)) if *answered == token)) == 1
        })
        .await;
        self.until("it has come back", |told| told.has_message(Some("room:*"), channel, payload)).await;
    }

    async fn stop(&self) {
        self.link.shutdown();
        let stopped = monoio::time::timeout(Duration::from_secs(5), self.link.stopped()).await;
        assert!(stopped.is_ok(), "the link does not stop");
        assert!(!self.recorder.borrow().has_unflushed, "something was told without a batch_end");
        assert_eq!(self.link.publishes_inflight(), 0);
        assert!(!self.link.is_up());
    }
}

fn tcp(port: u16) -> RedisTarget {
    let address = RedisAddress::Tcp { host: "127.0.0.1".into(), port };
    RedisTarget { address, username: None, password: None, database: 0, tls: None }
}

/// Runs `test` on io_uring, where the kernel permits it, and on epoll.
fn on_both_drivers<F: Future<Output = ()>>(test: impl Fn() -> F) {
    if monoio::utils::detect_uring() {
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
            .enable_timer()
            .build()
            .expect("an io_uring runtime can be built")
            .block_on(test());
    } else {
        eprintln!("io_uring is not permitted here: epoll only");
    }
    monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
        .enable_timer()
        .build()
        .expect("an epoll runtime can be built")
        .block_on(test());
}

#[test]
fn publications_come_back_by_pattern_and_by_exact_channel() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &["events"]);
        assert_eq!(fixture.link.publish(b"room:a", b"early", 1), Err(Refused::Down));
        fixture.up().await;
        fixture.round_trip("room:a", b"hello").await;
        fixture.round_trip("room:a", b"\x00\xff\r\n$5\r\n").await;
        redis.publish("events", b"from outside");
        fixture
            .until("a fixed channel delivers", |told| told.has_message(None, "events", b"from outside"))
            .await;

        assert!(!fixture.link.subscribe(b"user:ann"));
        fixture.until("a channel is confirmed", |told| told.confirmations("user:ann") == 1).await;
        assert!(fixture.link.subscribe(b"user:ann"), "it is confirmed already");
        redis.publish("user:ann", b"for ann");
        fixture.until("it delivers", |told| told.has_message(None, "user:ann", b"for ann")).await;
        fixture.link.unsubscribe(b"user:ann");
        fixture
            .until_link("redis has nobody subscribed", |_| {
                redis.command(&[b"PUBSUB", b"NUMSUB", b"user:ann"]).ends_with(":0\r\n")
            })
            .await;
        assert_eq!(fixture.link.counters().publishes_refused, 1);
        fixture.stop().await;
    });
}

#[test]
fn values_are_kept_for_their_time_and_read_back_in_order() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        assert_eq!(fixture.link.keep("last:a", b"1", 30_000), Err(Refused::Down));
        assert_eq!(fixture.link.fetch("last:a"), Err(Refused::Down));
        fixture.up().await;
        fixture.link.fetch("last:a").expect("the link is up");
        fixture.link.keep("last:a", b"{\"price\": 60214.30}", 30_000).expect("the link is up");
        fixture.round_trip("room:a", b"in between").await;
        fixture.link.fetch("last:a").expect("the link is up");
        fixture.link.keep("last:b", b"short", 1).expect("the link is up");
        let fetched =
            |key: &str, value: Option<&[u8]>| Told::Fetched(key.to_owned(), value.map(<[u8]>::to_vec));
        let is_told = |wanted: Told| move |told: &Recorder| told.count(|told| *told == wanted) == 1;
        fixture.until("nothing was there at first", is_told(fetched("last:a", None))).await;
        let value: &[u8] = b"{\"price\": 60214.30}";
        fixture.until("the value is read back", is_told(fetched("last:a", Some(value)))).await;
        fixture.until("both are kept", is_told(Told::Kept("last:b".to_owned(), true))).await;
        let left: i64 =
            redis.command(&[b"PTTL", b"last:a"]).trim_matches([':', '\r', '\n']).parse().expect("ms");
        assert!((1..=30_000).contains(&left), "{left} ms left of 30 s");
        fixture
            .until_link("the short one has ended", |_| redis.command(&[b"EXISTS", b"last:b"]) == ":0\r\n")
            .await;
        fixture.stop().await;
    });
}

#[test]
fn a_key_of_another_type_or_too_long_a_value_is_none_and_costs_nobody_the_link() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        redis.command(&[b"LPUSH", b"last:list", b"x"]);
        // One SETRANGE makes 20 MiB without sending them.
        redis.command(&[b"SETRANGE", b"last:large", b"20971520", b"x"]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        fixture.link.fetch("last:list").expect("the link is up");
        fixture.link.fetch("last:large").expect("the link is up");
        for key in ["last:list", "last:large"] {
            let wanted = Told::Fetched(key.to_owned(), None);
            fixture.until("it is none", |told| told.count(|told| *told == wanted) == 1).await;
        }
        fixture.round_trip("room:a", b"after them").await;
        assert_eq!(fixture.recorder.borrow().downs(), 0);
        fixture.stop().await;
    });
}

#[test]
fn a_server_that_takes_no_writes_refuses_values_and_nothing_else() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        redis.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        fixture.link.keep("last:a", b"1", 30_000).expect("the link is up");
        let wanted = Told::Kept("last:a".to_owned(), false);
        fixture.until("the value is refused", |told| told.count(|told| *told == wanted) == 1).await;
        fixture.round_trip("room:a", b"goes on").await;
        fixture.stop().await;
    });
}

#[test]
fn a_burst_of_publications_keeps_its_order_and_the_probe_is_a_fence() {
    on_both_drivers(async || {
        const BURST: u64 = 20_000;
        let redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        for token in 0..BURST {
            let channel = format!("room:{}", token % 10);
            fixture
                .link
                .publish(channel.as_bytes(), token.to_string().as_bytes(), token)
                .expect("there is room");
        }
        assert_eq!(fixture.link.publishes_inflight(), BURST as usize);
        fixture
            .until("all are answered", |told| {
                told.count(|told| matches!(told, Told::Published(_, Ok(1)))) == BURST as usize
            })
            .await;
        let probes = fixture.recorder.borrow().count(|told| matches!(told, Told::Probe(_)));
        fixture
            .until("a probe sent later returns", |told| {
                told.count(|told| matches!(told, Told::Probe(_))) >= probes + 2
            })
            .await;
        fixture.stop().await;
        let recorder = fixture.recorder.borrow();
        let payloads: Vec<_> = recorder
            .told
            .iter()
            .filter_map(|told| match told {
                Told::Message { payload, .. } => Some(text(payload)),
                _ => None,
            })
            .collect();
        let expected: Vec<_> = (0..BURST).map(|token| token.to_string()).collect();
        assert!(payloads == expected, "{} of {BURST} came, or not in order", payloads.len());
        let answers: Vec<_> = recorder
            .told
            .iter()
            .filter_map(|told| match told {
                Told::Published(token, _) => Some(*token),
                _ => None,
            })
            .collect();
        assert!(answers.is_sorted(), "answers are not in order");
        let numbers =
            |probe: fn(&Told) -> Option<u64>| recorder.told.iter().filter_map(probe).collect::<Vec<_>>();
        let sent = numbers(|told| if let Told::ProbeSent(number) = told { Some(*number) } else { None });
        let returned = numbers(|told| if let Told::Probe(number) = told { Some(*number) } else { None });
        assert!(sent.is_sorted() && sent.starts_with(&returned), "sent {sent:?}, returned {returned:?}");
    });
}

#[test]
fn the_largest_publication_passes_and_a_larger_one_costs_nobody_the_link() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        let largest = vec![b'x'; PAYLOAD_BYTES_MAX];
        fixture.round_trip("room:a", &largest).await;
        redis.publish("room:a", &vec![b'y'; RESP_BULK_BYTES_MAX + 1]);
        fixture.until_link("it is skipped", |link| link.counters().subscriber.too_big == 1).await;
        fixture.round_trip("room:a", b"small").await;
        assert_eq!(fixture.recorder.borrow().downs(), 0);
        let held = fixture.link.counters().receive_buffer_bytes;
        assert!(held <= MIB, "{held} bytes are still held");
        fixture.stop().await;
    });
}

#[test]
fn a_password_is_given_and_a_missing_or_wrong_one_is_explained() {
    on_both_drivers(async || {
        let redis = Redis::start(&["requirepass secret"]);
        let with =
            |password: Option<&str>| RedisTarget { password: password.map(Into::into), ..tcp(redis.port) };
        let fixture = Fixture::start(with(Some("secret")), &["room:*"], &[]);
        fixture.up().await;
        fixture.round_trip("room:a", b"hello").await;
        fixture.stop().await;
        for (password, due) in
            [(None, "redis wants a password"), (Some("wrong"), "refused the user default or its password")]
        {
            let fixture = Fixture::start(with(password), &["room:*"], &[]);
            fixture.until_link("it says why", |link| link.last_reason().contains(due)).await;
            assert_eq!(fixture.recorder.borrow().ups(), 0);
            fixture.stop().await;
        }
    });
}

#[test]
fn an_acl_user_and_a_database_are_used_and_a_missing_rule_is_named() {
    on_both_drivers(async || {
        let redis = Redis::start(&[
            "user ann on >secret resetchannels &room:* &corecast:probe:* -@all +publish +subscribe +psubscribe +unsubscribe +select",
            "user bob on >secret resetchannels &room:* +@all",
        ]);
        let user = |name: &str| RedisTarget {
            username: Some(name.into()),
            password: Some("secret".into()),
            database: 3,
            ..tcp(redis.port)
        };
        let fixture = Fixture::start(user("ann"), &["room:*"], &[]);
        fixture.up().await;
        fixture.round_trip("room:a", b"hello").await;
        let clients = redis.command(&[b"CLIENT", b"LIST"]);
        let ours: Vec<_> = clients.lines().filter(|line| line.contains("name=corecast ")).collect();
        assert_eq!(ours.len(), 2, "{clients}");
        assert!(ours.iter().all(|line| line.contains(" user=ann ")), "{clients}");
        assert!(
            ours.iter().any(|line| line.contains(" db=3 ") && line.contains(" cmd=publish ")),
            "{clients}"
        );

        assert!(!fixture.link.subscribe(b"secret:1"));
        fixture
            .until("a forbidden channel is refused", |told| {
                told.count(|told| matches!(told, Told::Refused(text) if text.contains("secret:1: ") && text.contains("&secret:1"))) == 1
            })
            .await;
        fixture.link.publish(b"secret:1", b"x", u64::MAX).expect("the link is up");
        fixture
            .until("a forbidden publication is refused", |told| {
                told.count(|told| matches!(told, Told::Published(u64::MAX, Err(PublishError::Rejected(_)))))
                    == 1
            })
            .await;
        fixture.round_trip("room:a", b"still here").await;
        assert_eq!(fixture.recorder.borrow().downs(), 0);
        fixture.stop().await;

        let fixture = Fixture::start(user("bob"), &["room:*"], &[]);
        fixture
            .until_link("the rule is named", |link| link.last_reason().contains("&corecast:probe:*"))
            .await;
        fixture.stop().await;
    });
}

#[test]
fn a_unix_socket_serves_as_well() {
    on_both_drivers(async || {
        let mut redis = Redis::start(&[]);
        let target = RedisTarget { address: RedisAddress::Unix(redis.socket.clone()), ..tcp(0) };
        let fixture = Fixture::start(target, &["room:*"], &[]);
        fixture.up().await;
        fixture.round_trip("room:a", b"hello").await;
        redis.kill();
        fixture.until("the end is noticed", |told| told.downs() == 1).await;
        redis.start_again();
        fixture.up().await;
        fixture.round_trip("room:a", b"again").await;
        fixture.stop().await;
    });
}

#[test]
fn a_name_is_resolved_and_its_addresses_are_tried_in_turn() {
    on_both_drivers(async || {
        // Where localhost is ::1 first, the first attempt is refused: redis listens on 127.0.0.1 only.
        let redis = Redis::start(&[]);
        let at = |host: &str| RedisTarget {
            address: RedisAddress::Tcp { host: host.into(), port: redis.port },
            ..tcp(redis.port)
        };
        let fixture = Fixture::start(at("localhost"), &["room:*"], &[]);
        fixture.up().await;
        fixture.stop().await;
        let fixture = Fixture::start(at("no-such-host.invalid"), &["room:*"], &[]);
        fixture.until_link("it says why", |link| link.last_reason().contains("no-such-host.invalid")).await;
        fixture.stop().await;
    });
}

#[test]
fn a_server_without_hello_is_spoken_to_in_resp2() {
    on_both_drivers(async || {
        for config in
            [&["rename-command HELLO \"\""][..], &["rename-command HELLO \"\"", "requirepass secret"]]
        {
            let redis = Redis::start(config);
            let password = (config.len() == 2).then(|| "secret".to_string());
            let fixture =
                Fixture::start(RedisTarget { password, database: 2, ..tcp(redis.port) }, &["room:*"], &[]);
            fixture.up().await;
            fixture.round_trip("room:a", b"hello").await;
            fixture.link.subscribe(b"user:ann");
            fixture.until("a channel is confirmed", |told| told.confirmations("user:ann") == 1).await;
            redis.publish("user:ann", b"for ann");
            fixture.until("it delivers", |told| told.has_message(None, "user:ann", b"for ann")).await;
            fixture.stop().await;
        }
    });
}

#[test]
fn killed_clients_come_back_with_all_that_was_wanted() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        fixture.link.subscribe(b"user:ann");
        fixture.until("a channel is confirmed", |told| told.confirmations("user:ann") == 1).await;
        for (round, kind) in [b"pubsub".as_slice(), b"normal"].into_iter().enumerate() {
            redis.command(&[b"CLIENT", b"KILL", b"TYPE", kind]);
            fixture.until("the end is noticed", |told| told.downs() == round + 1).await;
            fixture.up().await;
            fixture.until("it is confirmed again", |told| told.confirmations("user:ann") == round + 2).await;
            fixture.round_trip("room:a", format!("round {round}").as_bytes()).await;
        }
        assert_eq!(fixture.link.counters().reconnects, 2);
        fixture.stop().await;
    });
}

#[test]
fn a_crash_answers_everything_under_way_once_and_a_restart_is_found() {
    on_both_drivers(async || {
        let mut redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        redis.signal("STOP");
        for token in 0..1_000 {
            fixture.link.publish(b"room:a", &[b'x'; 4_000], token).expect("the link is up");
        }
        monoio::time::sleep(Duration::from_millis(20)).await;
        redis.kill();
        fixture.until("the end is noticed", |told| told.downs() == 1).await;
        fixture
            .until("everything is answered", |told| {
                told.count(|told| matches!(told, Told::Published(..))) == 1_000
            })
            .await;
        {
            let recorder = fixture.recorder.borrow();
            let down_at =
                recorder.told.iter().position(|told| matches!(told, Told::Down(_))).expect("it was told");
            let answers: Vec<_> = recorder.told[down_at..]
                .iter()
                .filter_map(|told| match told {
                    Told::Published(token, Err(error)) => Some((*token, error.clone())),
                    _ => None,
                })
                .collect();
            assert_eq!(answers.len(), 1_000, "answers come after down, each an error");
            assert!(answers.iter().map(|(token, _)| *token).eq(0..1_000), "each once, in order");
            let unknown = answers.iter().filter(|(_, error)| *error == PublishError::Unknown).count();
            assert!(unknown > 0 && unknown < 1_000, "4 MB don't fit a socket: {unknown} were written");
            assert!(answers[unknown..].iter().all(|(_, error)| *error == PublishError::Unsent));
        }
        assert_eq!(fixture.link.publish(b"room:a", b"x", 0), Err(Refused::Down));
        fixture.until_link("it is refused", |link| link.last_reason().contains("Connection refused")).await;
        redis.start_again();
        fixture.up().await;
        fixture.round_trip("room:a", b"again").await;
        fixture.stop().await;
    });
}

#[test]
fn values_under_way_when_the_server_dies_are_never_answered() {
    on_both_drivers(async || {
        let mut redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        redis.signal("STOP");
        for key in 0..500 {
            fixture.link.keep(&format!("last:{key}"), &[b'x'; 8_000], 30_000).expect("the link is up");
            fixture.link.fetch(&format!("last:{key}")).expect("the link is up");
        }
        redis.kill();
        fixture.until("the end is noticed", |told| told.downs() == 1).await;
        assert_eq!(fixture.link.fetch("last:0"), Err(Refused::Down));
        redis.start_again();
        fixture.up().await;
        fixture.link.fetch("last:new").expect("the link is up");
        let wanted = Told::Fetched("last:new".to_owned(), None);
        fixture.until("the next question is", |told| told.count(|told| *told == wanted) == 1).await;
        let values = |told: &Told| matches!(told, Told::Kept(..) | Told::Fetched(..));
        assert_eq!(fixture.recorder.borrow().count(values), 1);
        fixture.stop().await;
    });
}

#[test]
fn a_stopped_server_is_given_up_by_the_probe_and_found_again() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        let stopped_at = Instant::now();
        redis.signal("STOP");
        fixture.link.publish(b"room:a", b"into the silence", 1).expect("nothing is known yet");
        fixture.until("the silence is noticed", |told| told.downs() == 1).await;
        let took = stopped_at.elapsed();
        assert!(took < PROBE_TIMEOUT + Duration::from_secs(3), "the silence was noticed after {took:?}");
        fixture
            .until("the fate is unknown", |told| {
                told.told.contains(&Told::Published(1, Err(PublishError::Unknown)))
            })
            .await;
        assert!(
            fixture
                .recorder
                .borrow()
                .told
                .iter()
                .any(|told| matches!(told, Told::Down(reason) if reason.contains("probe")))
        );
        redis.signal("CONT");
        fixture.up().await;
        fixture.round_trip("room:a", b"again").await;
        fixture.stop().await;
    });
}

#[test]
fn a_shutdown_ends_the_link_whatever_it_is_doing() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.stop().await;
        assert_eq!(fixture.recorder.borrow().ups(), 0, "it was stopped before it began");

        let fixture = Fixture::start(tcp(redis.port), &["room:*"], &[]);
        fixture.up().await;
        fixture.link.publish(b"room:a", b"x", 1).expect("the link is up");
        fixture.stop().await;
        assert_eq!(fixture.recorder.borrow().count(|told| matches!(told, Told::Published(..))), 1);

        let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let fixture = Fixture::start(tcp(nobody.expect("a port can be bound").port()), &[], &[]);
        fixture.until_link("it waits to try again", |link| link.counters().attempts_failed >= 3).await;
        fixture.stop().await;
    });
}

/// Calls back into the link from every callback.
struct Reentrant {
    link: Option<BrokerLink>,
    confirmed: usize,
}

impl Reentrant {
    fn use_link(&mut self) {
        let Some(link) = &self.link else { return };
        link.subscribe(b"user:ann");
        let _ = (link.publish(b"nobody", b"x", 1), link.is_up(), link.counters(), link.publishes_inflight());
    }
}

impl BrokerEvents for Reentrant {
    fn up(&mut self) {
        self.use_link();
    }
    fn down(&mut self, _: &str) {
        self.use_link();
    }
    fn confirmed(&mut self, _: &[u8]) {
        self.confirmed += 1;
        self.use_link();
    }
    fn lapsed(&mut self, _: &[u8]) {
        self.use_link();
    }
    fn refused(&mut self, _: &[u8], _: &str) {
        self.use_link();
    }
    fn message(&mut self, _: Option<&[u8]>, _: &[u8], _: &[u8]) {
        self.use_link();
    }
    fn published(&mut self, _: u64, _: Result<u64, PublishError>) {
        if let Some(link) = &self.link {
            link.unsubscribe(b"user:bob");
        }
    }
    fn kept(&mut self, _: &str, _: bool) {}
    fn fetched(&mut self, _: &str, _: Option<&[u8]>) {}
    fn probe_sent(&mut self, _: u64) {
        self.use_link();
    }
    fn probe_returned(&mut self, _: u64) {
        self.use_link();
    }
    fn batch_end(&mut self) {
        if let Some(link) = &self.link {
            link.subscribe(b"user:bob");
        }
    }
}

#[test]
fn the_link_may_be_used_from_inside_every_callback() {
    on_both_drivers(async || {
        let redis = Redis::start(&[]);
        let events = Rc::new(RefCell::new(Reentrant { link: None, confirmed: 0 }));
        let wants = Wants { patterns: vec!["room:*".into()], ..Wants::default() };
        let link = start(tcp(redis.port), "node-1", &wants, events.clone());
        events.borrow_mut().link = Some(link.clone());
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut was_killed = false;
        while events.borrow().confirmed < 6 || link.counters().reconnects == 0 {
            assert!(Instant::now() < deadline, "{} confirmations", events.borrow().confirmed);
            monoio::time::sleep(Duration::from_millis(5)).await;
            redis.publish("room:a", b"x");
            if link.is_up() && !std::mem::replace(&mut was_killed, true) {
                redis.command(&[b"CLIENT", b"KILL", b"TYPE", b"pubsub"]);
            }
        }
        link.shutdown();
        link.stopped().await;
        // The recorder holds the link, which holds the recorder in its tasks only while it runs.
        events.borrow_mut().link = None;
        drop(link);
        assert_eq!(Rc::strong_count(&events), 1, "a task of the link is still there");
    });
}

/// A server on a thread that behaves as its mode says, also towards connections it has accepted before.
struct Hostile {
    port: u16,
    mode: Arc<Mutex<Mode>>,
}

#[derive(Clone)]
enum Mode {
    /// Answers the first bytes with these, then nothing.
    Answer(Vec<u8>),
    /// Answers the first bytes with these, then ends the connection.
    AnswerAndClose(Vec<u8>),
    /// Answers the first bytes with the first, then repeats the second for as long as it is read.
    Flood(Vec<u8>, Vec<u8>),
    /// Passes everything to and from the sane server at this port.
    Sane(u16),
}

impl Hostile {
    fn start(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let mode = Arc::new(Mutex::new(mode));
        let shared = mode.clone();
        // The thread and its connections end with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mode = shared.lock().expect("no thread panics with it").clone();
                thread::spawn(move || behave(stream, mode));
            }
        });
        Self { port, mode }
    }

    fn become_sane(&self, port: u16) {
        *self.mode.lock().expect("no thread panics with it") = Mode::Sane(port);
    }
}

fn behave(mut stream: TcpStream, mode: Mode) {
    let mut request = [0; 4096];
    match mode {
        Mode::Answer(bytes) => {
            if stream.read(&mut request).is_ok() && stream.write_all(&bytes).is_ok() {
                // Until the other side gives up.
                while stream.read(&mut request).is_ok_and(|read| read > 0) {}
            }
        }
        Mode::AnswerAndClose(bytes) => {
            let _ = stream.read(&mut request).and_then(|_| stream.write_all(&bytes));
        }
        Mode::Flood(first, again) => {
            let _ = stream.read(&mut request).and_then(|_| stream.write_all(&first));
            let flood = again.repeat(64 * 1024 / again.len() + 1);
            while stream.write_all(&flood).is_ok() {}
        }
        Mode::Sane(port) => {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
            let (Ok(mut from), Ok(mut to)) = (server.try_clone(), stream.try_clone()) else { return };
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let mut server = server;
            let _ = std::io::copy(&mut stream, &mut server);
            let _ = server.shutdown(Shutdown::Both);
        }
    }
}

/// The link meets `mode` until `attempts` have failed for a reason that holds `due`, never holds much, and comes up as
/// soon as the server is sane.
async fn survives(name: &str, mode: Mode, attempts: u64, due: &str) {
    let redis = Redis::start(&[]);
    let hostile = Hostile::start(mode);
    let fixture = Fixture::start(tcp(hostile.port), &["room:*"], &[]);
    let held_max = std::cell::Cell::new(0);
    fixture
        .until_link(&format!("{name} has failed {attempts} times"), |link| {
            let counters = link.counters();
            held_max.set(held_max.get().max(counters.receive_buffer_bytes));
            counters.attempts_failed >= attempts
        })
        .await;
    let reason = fixture.link.last_reason();
    assert!(reason.contains(due), "{name}: {reason:?} where {due:?} was due");
    assert!(held_max.get() <= MIB, "{name}: {} bytes were held", held_max.get());
    assert_eq!(fixture.recorder.borrow().ups(), 0, "{name}");
    hostile.become_sane(redis.port);
    fixture.up().await;
    fixture.round_trip("room:a", b"sane again").await;
    fixture.stop().await;
}

/// A handshake that both connections accept, with what follows it.
fn after_hello(bytes: &[u8]) -> Vec<u8> {
    [b"%1\r\n+proto\r\n:3\r\n".as_slice(), bytes].concat()
}

#[test]
fn a_server_that_talks_nonsense_neither_crashes_nor_bloats_the_link() {
    on_both_drivers(async || {
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            (
                "another protocol",
                b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
                "is this port a Redis server's",
            ),
            ("tls", b"\x15\x03\x01\x00\x02\x02\x16".to_vec(), "is this port a Redis server's"),
            ("a null for hello", b"_\r\n".to_vec(), "null where a map was due"),
            ("a resp2 null for hello", b"$-1\r\n".to_vec(), "does not decode"),
            ("an integer for hello", b":1\r\n".to_vec(), "the integer 1 where a map was due"),
            ("unasked replies", after_hello(&b"+OK\r\n".repeat(1_000)), "no reply was due"),
            ("null replies", after_hello(&b"_\r\n".repeat(1_000)), ""),
            ("a null message", after_hello(b">3\r\n+message\r\n_\r\n_\r\n"), ""),
            ("an unasked subscription", after_hello(b">3\r\n+subscribe\r\n+x\r\n:1\r\n"), ""),
            ("two billion elements", after_hello(b"*2147483647\r\n"), "elements"),
            ("a map of two billion", b"%2147483647\r\n".to_vec(), "elements"),
            ("a string of 99 GB", after_hello(b"$99999999999\r\n"), "99999999999 bytes"),
            ("a string of 99 GB for hello", b"$99999999999\r\n".to_vec(), "99999999999 bytes"),
            (
                "a line of 64 MiB",
                after_hello(&[b"+".as_slice(), &vec![b'a'; 64 * MIB]].concat()),
                "RESP line of more",
            ),
            ("deep nesting", after_hello(&b"*1\r\n".repeat(10_000)), "nested deeper"),
        ];
        for (name, bytes, due) in cases {
            survives(name, Mode::Answer(bytes.clone()), 2, due).await;
            // Closing at once may overtake the reading of what came before.
            survives(name, Mode::AnswerAndClose(bytes), 2, "").await;
        }
    });
}

#[test]
fn a_server_that_closes_or_truncates_is_tried_again() {
    on_both_drivers(async || {
        survives("closing at once", Mode::AnswerAndClose(vec![]), 3, "closed the connection").await;
        let truncated = after_hello(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$17000000\r\nabc");
        survives("a truncated message", Mode::AnswerAndClose(truncated), 3, "").await;
    });
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    on_both_drivers(async || {
        survives("silence", Mode::Answer(vec![]), 1, "did not finish the handshake").await;
        survives("silence after hello", Mode::Answer(after_hello(b"")), 1, "did not finish the handshake")
            .await;
    });
}

#[test]
fn a_flood_of_unknown_pushes_is_given_up_in_time() {
    on_both_drivers(async || {
        let flood = Mode::Flood(after_hello(b""), b">2\r\n+invalidate\r\n_\r\n".to_vec());
        survives("a flood", flood, 1, "did not finish the handshake").await;
    });
}

#[test]
fn a_flood_inside_one_frame_is_skipped_and_given_up_in_time() {
    on_both_drivers(async || {
        let flood = Mode::Flood(after_hello(b"$500000000\r\n"), vec![b'a'; 4096]);
        survives("a huge frame", flood, 1, "").await;
    });
}
