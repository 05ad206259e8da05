//! The promise behind `joined`: whatever is published afterwards arrives, in order, in each of thousands of rooms.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::backbone;
use crate::support::redis::Redis;
use crate::support::server::Driver;
use crate::support::speaker::Speaker;
use crate::support::{heavy, on_both_drivers};

on_both_drivers!(a_consumer_misses_nothing_that_is_published_after_it_was_told_that_it_joined);

fn a_consumer_misses_nothing_that_is_published_after_it_was_told_that_it_joined(driver: Driver) {
    let _alone = heavy();
    let redis = Redis::start();
    let server = backbone(&redis).driver(driver).shards(2).start();
    let address = server.address();
    let rounds = Rounds::default();
    let rooms: Vec<String> = (0..CONSUMERS).flat_map(own_rooms).chain(shared_rooms()).collect();
    thread::scope(|scope| {
        let feeds = [
            scope.spawn(|| feed_through_redis(&rounds, &rooms, &redis, address)),
            scope.spawn(|| feed_as_ingestor(&rounds, &rooms, address)),
        ];
        let consume = |number| {
            let rounds = &rounds;
            scope.spawn(move || Consumer::new(address, rounds).live(number))
        };
        let consumers: Vec<_> = (0..CONSUMERS).map(consume).collect();
        let heard: Vec<_> = consumers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        // Feeds end whatever became of the consumers, so that a failure is told and not waited for.
        rounds.stop.store(true, Ordering::SeqCst);
        let fed = feeds.map(thread::ScopedJoinHandle::join);
        let all_well = fed.iter().all(Result::is_ok) && heard.iter().all(Result::is_ok);
        assert!(all_well, "a publisher or a consumer failed, see above");
    });
    let page = server.metrics();
    assert_eq!(page.sum("corecast_gaps_total"), 0.0, "{}", page.show("corecast_gaps_total"));
    assert_eq!(page.closed_as_slow(), 0.0, "{}", page.show("corecast_connections_closed_total"));
}

/// How far the publishers are. In round N each publishes N to every room.
#[derive(Default)]
struct Rounds {
    /// Of each publisher the round that it has begun: what is above was certainly published later.
    started: [AtomicU64; 2],
    stop: AtomicBool,
}

impl Rounds {
    /// Has one publisher `publish` round after round to `rooms`, until it is stopped. A round ends when its last publication
    /// is heard in a room that nobody else is in, so that publishers don't outrun the server.
    fn run(
        &self,
        publisher: usize,
        rooms: &[String],
        address: SocketAddr,
        mut publish: impl FnMut(&[String], u64),
    ) {
        let pace = format!("pace-{publisher}");
        let mut pacer = Speaker::in_room(address, &pace);
        let rooms = [rooms, &[pace]].concat();
        let mut round = 0;
        while !self.stop.load(Ordering::SeqCst) {
            round += 1;
            self.started[publisher].store(round, Ordering::SeqCst);
            publish(&rooms, round);
            assert_eq!(number(&pacer.hear()), (publisher, round));
        }
    }
}

fn feed_through_redis(rounds: &Rounds, rooms: &[String], redis: &Redis, address: SocketAddr) {
    let mut connection = redis.connect().expect("redis takes connections");
    rounds.run(0, rooms, address, |rooms, round| {
        let payloads = rooms.iter().map(|room| {
            let envelope = json!({ "room": room, "type": "tick", "data": round, "origin": "elsewhere" });
            envelope.to_string().into_bytes()
        });
        connection.publish_all("chat:events", payloads).expect("redis takes publications");
    });
}

fn feed_as_ingestor(rounds: &Rounds, rooms: &[String], address: SocketAddr) {
    let mut feed = Speaker::ingestor(address);
    rounds.run(1, rooms, address, |rooms, round| {
        for room in rooms {
            feed.say(&json!({ "type": "event", "room": room, "data": round }));
        }
    });
}

/// Publisher and round of a publication.
#[track_caller]
fn number(frame: &Value) -> (usize, u64) {
    let (publisher, round) = match frame["type"].as_str() {
        Some("tick") => (0, &frame["data"]),
        Some("event") => (1, &frame["data"]["data"]),
        _ => panic!("{frame}"),
    };
    (publisher, round.as_u64().unwrap_or_else(|| panic!("no round in {frame}")))
}

/// A connection in many rooms, with its account of each.
struct Consumer<'a> {
    speaker: Speaker,
    rounds: &'a Rounds,
    /// Of each room and publisher the rounds that may come next.
    due: HashMap<String, [Due; 2]>,
    /// Joins and leaves that have not been answered.
    unanswered: usize,
}

#[derive(Debug, Clone, Copy)]
enum Due {
    /// The first: anything up to this.
    UpTo(u64),
    Exactly(u64),
}

impl<'a> Consumer<'a> {
    fn new(address: SocketAddr, rounds: &'a Rounds) -> Self {
        Self { speaker: Speaker::consumer(address), rounds, due: HashMap::new(), unanswered: 0 }
    }

    /// Joins its rooms, a few at once, leaves and joins some of them again, and hears three rounds of each after that.
    fn live(mut self, number: usize) {
        let rooms: Vec<String> = own_rooms(number).chain(shared_rooms()).collect();
        for some in rooms.chunks(JOINS_AT_ONCE) {
            self.ask("join", some);
        }
        for some in rooms.chunks(4 * JOINS_AT_ONCE) {
            self.ask("leave", &some[..JOINS_AT_ONCE]);
            self.ask("join", &some[..JOINS_AT_ONCE]);
        }
        let last = [0, 1].map(|publisher| self.rounds.started[publisher].load(Ordering::SeqCst) + 3);
        while !self.due.values().all(|due| has_heard(due, last)) {
            self.hear();
        }
    }

    /// Asks for each of `rooms` and hears until all are answered.
    fn ask(&mut self, kind: &str, rooms: &[String]) {
        for room in rooms {
            self.speaker.say(&json!({ "type": kind, "room": room }));
            self.unanswered += 1;
        }
        while self.unanswered > 0 {
            self.hear();
        }
    }

    fn hear(&mut self) {
        let frame = self.speaker.hear();
        let room = frame["room"].as_str().unwrap_or_else(|| panic!("no room in {frame}"));
        match frame["type"].as_str() {
            Some("joined") => {
                let due = [0, 1].map(|publisher| {
                    // Published after this moment, so after the answer.
                    Due::UpTo(self.rounds.started[publisher].load(Ordering::SeqCst) + 1)
                });
                assert!(self.due.insert(room.to_owned(), due).is_none(), "joined twice: {frame}");
                self.unanswered -= 1;
            }
            Some("left") => {
                assert!(self.due.remove(room).is_some(), "left without having been there: {frame}");
                self.unanswered -= 1;
            }
            _ => {
                let (publisher, round) = number(&frame);
                let due = self.due.get_mut(room).unwrap_or_else(|| panic!("not in this room: {frame}"));
                let due = &mut due[publisher];
                match *due {
                    Due::UpTo(latest) => assert!(round <= latest, "due was at most {latest}: {frame}"),
                    Due::Exactly(next) => assert_eq!(round, next, "out of order, lost or repeated: {frame}"),
                }
                *due = Due::Exactly(round + 1);
            }
        }
    }
}

/// Whether `last` of both publishers has come.
fn has_heard(due: &[Due; 2], last: [u64; 2]) -> bool {
    due.iter().zip(last).all(|(due, last)| matches!(due, Due::Exactly(next) if *next > last))
}

fn own_rooms(consumer: usize) -> impl Iterator<Item = String> {
    (0..OWN_ROOMS).map(move |room| format!("r{consumer}-{room}"))
}

/// Rooms that all of them are in.
fn shared_rooms() -> impl Iterator<Item = String> {
    (0..SHARED_ROOMS).map(|room| format!("shared-{room}"))
}

const CONSUMERS: usize = 40;
/// With the shared ones as many as a connection may be in: 64. In all 40 x 56 + 8 = 2,248 rooms.
const OWN_ROOMS: usize = 56;
const SHARED_ROOMS: usize = 8;
const JOINS_AT_ONCE: usize = 8;
