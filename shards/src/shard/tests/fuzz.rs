//! Both dialects in the same rooms, at random: whatever sockets take and whenever members come, leave, stall or close, each
//! hears what its memberships are due, in order, whole, and nothing of another room; and the ledger balances throughout.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;

const SEEDS: u64 = 300;
const STEPS: usize = 400;
const CONNECTIONS_MAX: usize = 8;
const ROOMS: [&str; 4] = ["a", "b", "c", "d"];

/// xorshift64: the same story for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % bound as u64) as usize
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// One stay in a room: the numbers of its publications, and whether it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stay {
    numbers: Vec<u32>,
    lasts: bool,
}

/// Stays by room, oldest first.
#[derive(Debug, Default)]
struct Stays(BTreeMap<String, Vec<Stay>>);

impl Stays {
    fn begin(&mut self, room: &str) {
        self.0.entry(room.to_owned()).or_default().push(Stay { numbers: Vec::new(), lasts: true });
    }

    /// The stay that lasts.
    fn now(&mut self, room: &str) -> Option<&mut Stay> {
        self.0.get_mut(room).and_then(|stays| stays.last_mut()).filter(|stay| stay.lasts)
    }

    /// A stay that ends before `joined` was said is one in which nothing was heard.
    fn end(&mut self, room: &str) {
        if self.now(room).is_none() {
            self.begin(room);
        }
        if let Some(stay) = self.now(room) {
            stay.lasts = false;
        }
    }
}

/// A connection, and what it is to hear.
struct Listener {
    id: ConnectionId,
    is_json: bool,
    is_closed: bool,
    due: Stays,
}

struct World {
    bench: Bench,
    random: Random,
    listeners: Vec<Listener>,
    /// Joins that the relay has not answered.
    joins: Vec<RoomSlot>,
    /// Connections that wait until their socket takes bytes.
    awaiting: Vec<ConnectionId>,
    number: u32,
    in_pass: bool,
    /// Nothing new happens any more.
    is_ending: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let engine = EngineBounds {
            batch_sends_max: 1 + random.below(3),
            catchup_bytes_max: 40 + random.below(200),
            lane_bytes_max: 1 << 20,
            ..EngineBounds::default()
        };
        let hour = Duration::from_secs(3600);
        let slow = Slow { policy: SlowPolicy::Disconnect, frames: 100_000, bytes: 1 << 30, age: hour };
        let bench = Bench::with(RoomClass { slow, ..RoomClass::default() }, engine);
        Self {
            bench,
            random,
            listeners: Vec::new(),
            joins: Vec::new(),
            awaiting: Vec::new(),
            number: 0,
            in_pass: false,
            is_ending: false,
        }
    }

    fn step(&mut self) {
        self.collect();
        let choice = if self.is_ending { 6 + self.random.below(3) } else { self.random.below(10) };
        match choice {
            0 if self.listeners.len() < CONNECTIONS_MAX => self.connect(),
            1 | 2 => self.join_or_leave(),
            3 if self.random.one_in(12) => self.close(),
            3..=5 if !self.in_pass => self.publish(),
            6 => self.in_pass = self.bench.step() == Progress::More,
            7 if !self.awaiting.is_empty() => {
                let at = self.random.below(self.awaiting.len());
                let id = self.awaiting.swap_remove(at);
                let space = if self.is_ending { usize::MAX } else { self.random.below(300) };
                self.writable(id, space);
            }
            8 if !self.joins.is_empty() && !self.in_pass => {
                let slot = self.joins.remove(0);
                self.bench.handle(Down::Joined { slot, epoch: 1, head: 1, source: None });
            }
            9 if !self.in_pass && self.random.one_in(4) => {
                self.bench.sweep_after(Duration::from_millis(100));
            }
            _ => {}
        }
        let ledger = self.bench.shard.ledger();
        assert!(ledger.balances(), "after choice {choice}: {ledger:?}");
    }

    /// What the shard asks of the relay and of its runtime.
    fn collect(&mut self) {
        for command in std::mem::take(&mut self.bench.shard.up) {
            if let Up::Join { slot, .. } = command {
                self.joins.push(slot);
            }
        }
        for action in std::mem::take(&mut self.bench.shard.actions) {
            if let Action::AwaitWritable(id) = action {
                self.awaiting.push(id);
            }
        }
    }

    fn writable(&mut self, id: ConnectionId, space: usize) {
        if self.bench.shard.connection(id).is_some() {
            self.bench.writable(id, space);
        }
    }

    /// Members of the raw dialect join with their handshake, those of the JSON dialect later.
    fn connect(&mut self) {
        let socket = self.listeners.len() as i32 + 1;
        let is_json = self.random.one_in(2);
        if self.random.one_in(2) {
            self.bench.wire.space.insert(socket, self.random.below(400));
        }
        let id = self.bench.accept(socket);
        let mut due = Stays::default();
        if is_json {
            let request = String::from_utf8(handshake("")).expect("text").replace("/ws?room=", "/json");
            self.bench.receive(id, request.as_bytes());
        } else {
            let mut rooms: Vec<&str> = ROOMS.into_iter().filter(|_| self.random.one_in(2)).collect();
            if rooms.is_empty() {
                rooms.push(ROOMS[0]);
            }
            rooms.iter().for_each(|room| due.begin(room));
            self.bench.receive(id, &handshake(&rooms.join(",")));
        }
        self.listeners.push(Listener { id, is_json, is_closed: false, due });
    }

    /// The index of somebody who is still there.
    fn somebody(&mut self) -> Option<usize> {
        let at = self.random.below(self.listeners.len().max(1));
        self.listeners.get(at).filter(|listener| !listener.is_closed).map(|_| at)
    }

    fn join_or_leave(&mut self) {
        let room = ROOMS[self.random.below(ROOMS.len())];
        let Some(listener) = self.somebody().map(|at| &mut self.listeners[at]).filter(|l| l.is_json) else {
            return;
        };
        let is_in = listener.due.now(room).is_some();
        if is_in {
            listener.due.end(room)
        } else {
            listener.due.begin(room)
        }
        let kind = if is_in { "leave" } else { "join" };
        let text = format!(r#"{{"type":"{kind}","room":"{room}"}}"#);
        let id = listener.id;
        self.bench.receive(id, &masked(1, text.as_bytes()));
    }

    fn close(&mut self) {
        let Some(at) = self.somebody() else { return };
        self.listeners[at].is_closed = true;
        let Bench { shard, wire, now, .. } = &mut self.bench;
        shard.close(self.listeners[at].id, CloseReason::GoingAway, wire, *now);
    }

    fn publish(&mut self) {
        let room = ROOMS[self.random.below(ROOMS.len())];
        let found = self.bench.shard.rooms.iter().find(|(_, known)| &*known.name == room);
        if found.is_none_or(|(_, known)| known.stage != Stage::Live) {
            return;
        }
        let except = if self.random.one_in(3) { self.somebody() } else { None };
        self.number += 1;
        for (at, listener) in self.listeners.iter_mut().enumerate() {
            if !listener.is_closed
                && except != Some(at)
                && let Some(stay) = listener.due.now(room)
            {
                stay.numbers.push(self.number);
            }
        }
        let text = format!("{room}:{}{}", self.number, ".".repeat(self.random.below(60)));
        let except = except.map(|at| self.listeners[at].id);
        self.bench.publish_except(room, &text, except);
    }

    /// Everybody is read, and every Join answered, until nothing is left to do.
    fn settle(&mut self) {
        self.bench.pass();
        self.collect();
        while !self.joins.is_empty() || !self.awaiting.is_empty() || self.bench.shard.has_dirty_rooms() {
            for slot in std::mem::take(&mut self.joins) {
                self.bench.handle(Down::Joined { slot, epoch: 1, head: 1, source: None });
            }
            for id in std::mem::take(&mut self.awaiting) {
                self.writable(id, usize::MAX);
            }
            self.bench.pass();
            self.collect();
        }
        let ledger = self.bench.shard.ledger();
        assert!(ledger.balances() && ledger.pending == 0, "at the end: {ledger:?}");
    }

    fn check(&mut self) {
        for (at, listener) in self.listeners.iter().enumerate().filter(|(_, l)| !l.is_closed) {
            let socket = at as i32 + 1;
            let taken = self.bench.wire.taken.get_mut(&socket).expect("an answer to its handshake");
            let end = taken.windows(4).position(|octets| octets == b"\r\n\r\n").expect("a whole 101");
            taken.drain(..end + 4);
            let texts = self.bench.heard(socket);
            let heard = if listener.is_json { heard_json(&texts) } else { heard_raw(&texts, &listener.due) };
            let (heard, due) = (&heard.0, &listener.due.0);
            assert_eq!(
                heard.keys().collect::<Vec<_>>(),
                due.keys().collect::<Vec<_>>(),
                "{socket}: {texts:?}"
            );
            for (room, due) in due {
                check_stays(&heard[room], due, &format!("socket {socket}, room {room}: {texts:?}"));
            }
        }
    }
}

/// Of a stay that lasts everything is heard; of one that ended what was sent until then.
fn check_stays(heard: &[Stay], due: &[Stay], whose: &str) {
    assert_eq!(heard.len(), due.len(), "stays of {whose}");
    for (heard, due) in heard.iter().zip(due) {
        assert_eq!(heard.lasts, due.lasts, "{whose}");
        let is_right =
            if due.lasts { heard.numbers == due.numbers } else { due.numbers.starts_with(&heard.numbers) };
        assert!(is_right, "heard {heard:?}, due {due:?}, {whose}");
    }
}

/// Adds `room:number...` to the stay in `room`.
fn add(stays: &mut Stays, room: &str, text: &str) {
    let (of, number) = text.split_once(':').expect("room and number");
    assert_eq!(of, room, "a publication of another room");
    let number = number.trim_end_matches('.').parse().expect("a number");
    let stay = stays.now(room).unwrap_or_else(|| panic!("{text} outside of a stay in {room}"));
    stay.numbers.push(number);
}

fn heard_raw(texts: &[String], due: &Stays) -> Stays {
    let mut stays = Stays::default();
    due.0.keys().for_each(|room| stays.begin(room));
    for text in texts {
        add(&mut stays, &text[..1], text);
    }
    stays
}

fn heard_json(texts: &[String]) -> Stays {
    let mut stays = Stays::default();
    for text in texts {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let room = value["room"].as_str().expect("a room");
        match value["type"].as_str() {
            Some("joined") => {
                assert!(stays.now(room).is_none(), "joined twice: {texts:?}");
                stays.begin(room);
            }
            Some("left") => stays.end(room),
            Some("message") => add(&mut stays, room, value["data"].as_str().expect("text")),
            _ => panic!("unexpected: {text}"),
        }
    }
    stays
}

/// Tells the seed of a story that panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

#[test]
fn whatever_happens_in_a_room_of_both_dialects_everybody_hears_what_is_due_and_nothing_else() {
    let mut heard = 0;
    for seed in 1..=SEEDS {
        let seed = Seed(seed);
        let mut world = World::new(seed.0);
        (0..STEPS).for_each(|_| world.step());
        world.is_ending = true;
        (0..STEPS).for_each(|_| world.step());
        world.settle();
        world.check();
        heard += world.bench.shard.metrics().deliveries.value();
    }
    assert!(heard > 10_000, "the stories are about something: {heard} deliveries");
}
