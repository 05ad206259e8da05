//! Two shards and a relay, put together by hand, are asked who is connected.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use shards::auth::Gate;
use shards::command::{ConnectionId, Down, Up};
use shards::config::{Config, Route, Template, TemplatePart};
use shards::metrics::{Identity, Metrics, Via};
use shards::relay::{BrokerState, Outlet, Relay};
use shards::setup::Setup;
use shards::shard::{Batch, Micros, Shard, Wire};

const SECOND: u64 = 1_000_000;

/// What sockets took; those that are full take nothing.
#[derive(Default)]
struct Sockets {
    taken: HashMap<i32, Vec<u8>>,
    full: Vec<i32>,
}

impl Wire for Sockets {
    fn send(&mut self, socket: i32, bytes: &[u8]) -> isize {
        if self.full.contains(&socket) {
            return 0;
        }
        self.taken.entry(socket).or_default().extend_from_slice(bytes);
        bytes.len() as isize
    }

    fn send_batch(&mut self, batch: &Batch, taken: &mut Vec<isize>) {
        for op in batch.ops() {
            let bytes: Vec<u8> = batch.slices(op).flatten().copied().collect();
            taken.push(self.send(op.socket, &bytes));
        }
    }
}

#[derive(Default)]
struct Rings(Vec<VecDeque<Down>>);

impl Outlet for Rings {
    fn offer(&mut self, shard: u16, command: Down) -> Result<(), Down> {
        self.0[usize::from(shard)].push_back(command);
        Ok(())
    }

    fn consumed_bytes(&self, _shard: u16) -> u64 {
        0
    }
}

struct World {
    relay: Relay,
    shards: Vec<Shard>,
    rings: Rings,
    sockets: Sockets,
    next_socket: i32,
    now: Micros,
    /// Parts that went up.
    parts: usize,
}

impl World {
    fn new() -> Self {
        let template = |name: &str| Template { parts: vec![TemplatePart::Query(name.to_owned())] };
        let own = Route {
            when_query: Some("username".to_owned()),
            room: template("username"),
            user: Some(template("username")),
            space: "user".to_owned(),
            preset: Some("workflow".to_owned()),
            ..Route::default()
        };
        let named = Route { user: Some(template("client_id")), ..Route::default() };
        let config = Config { routes: vec![named, own], ..Config::default() };
        let metrics = Arc::new(Metrics::new(2, Identity::default(), false));
        let mut setup = Setup::new(&config, Gate::new(None, true), metrics);
        setup.engine.survey_units_max = 7;
        let setup = Arc::new(setup);
        Self {
            relay: Relay::new(setup.clone(), BrokerState::Local, 0),
            shards: (0..2).map(|index| Shard::new(index, setup.clone())).collect(),
            rings: Rings(vec![VecDeque::new(), VecDeque::new()]),
            sockets: Sockets::default(),
            next_socket: 10,
            now: Micros(SECOND),
            parts: 0,
        }
    }

    /// Carries commands until nobody has any.
    fn settle(&mut self) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            for (at, shard) in self.shards.iter_mut().enumerate() {
                while let Some(command) = self.rings.0[at].pop_front() {
                    shard.handle(command, &mut self.sockets, self.now);
                    moved = true;
                }
                while shard.has_dirty_rooms() {
                    shard.step(&mut self.sockets, self.now);
                }
                while let Some(command) = shard.up.pop_front() {
                    self.parts += usize::from(matches!(command, Up::Surveyed { .. }));
                    self.relay.handle(at as u16, command, &mut self.rings, self.now);
                    moved = true;
                }
            }
        }
    }

    fn say(&mut self, shard: usize, request: &str) -> (ConnectionId, i32) {
        self.next_socket += 1;
        let socket = self.next_socket;
        let id = self.shards[shard].accept(socket, 0, self.now);
        self.shards[shard].receive(id, &mut request.as_bytes().to_vec(), &mut self.sockets, self.now);
        (id, socket)
    }

    fn join(&mut self, shard: usize, query: &str) -> (ConnectionId, i32) {
        let joined = self.say(
            shard,
            &format!(
                "GET /ws?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            ),
        );
        self.settle();
        joined
    }

    fn ask(&mut self, query: &str) -> Value {
        let (_, socket) =
            self.say(1, &format!("GET /admin/stats{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        self.settle();
        self.answer(socket)
    }

    fn answer(&self, socket: i32) -> Value {
        let text = String::from_utf8_lossy(&self.sockets.taken[&socket]);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        serde_json::from_str(body).expect("the page is JSON")
    }
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array()
        .expect("a list")
        .iter()
        .map(|entry| entry[key].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn users_and_rooms_are_counted_once_over_all_shards_however_many_parts_it_takes() {
    let mut world = World::new();
    for number in 0..40 {
        world.join(number % 2, &format!("username=u{number:02}"));
    }
    for shard in [0, 1, 1] {
        world.join(shard, "username=alice");
    }
    for client in 0..5 {
        world.join(client % 2, &format!("room=alice&client_id=c{client}"));
    }
    let page = world.ask("?limit=3");
    assert_eq!([&page["connections"], &page["users"], &page["rooms"]], [48, 46, 42], "{page}");
    assert_eq!(page["complete"], true);
    assert_eq!(names(&page["busiest_rooms"], "room")[..2], ["alice", "alice"], "one a user's, one named");
    assert_eq!(names(&page["busiest_rooms"], "space")[..2], ["", "user"]);
    assert_eq!([&page["busiest_rooms"][0]["members"], &page["busiest_rooms"][1]["members"]], [5, 3]);
    assert_eq!(
        page["busiest_users"][0],
        json!({"username": "alice", "connections": 3, "stalled": 0, "bytes_behind": 0})
    );
    assert_eq!((names(&page["busiest_users"], "username").len(), page["stalled"] == 0), (3, true));
    assert_eq!(
        page["by_route"],
        json!([
            {"path": "/ws", "when_query": "room", "preset": null, "connections": 5},
            {"path": "/ws", "when_query": "username", "preset": "workflow", "connections": 43},
        ])
    );
    assert!(
        world.parts >= 2 * 2 * 24 / 7,
        "{} parts of 7 for 48 connections and as many memberships",
        world.parts
    );
}

#[test]
fn one_user_or_one_room_can_be_asked_for() {
    let mut world = World::new();
    for (shard, query) in
        [(0, "username=alice"), (1, "username=alice"), (0, "username=bob"), (1, "room=bob&client_id=alice")]
    {
        world.join(shard, query);
    }
    let alice = world.ask("?username=alice");
    assert_eq!([&alice["connections"], &alice["users"], &alice["rooms"]], [3, 1, 2], "{alice}");
    assert_eq!(alice["filter"], json!({"username": "alice"}));
    let bob = world.ask("?room=bob");
    assert_eq!([&bob["connections"], &bob["users"], &bob["rooms"]], [2, 2, 2], "{bob}");
    let both = world.ask("?room=bob&username=alice");
    assert_eq!([&both["connections"], &both["users"], &both["rooms"]], [1, 1, 1], "{both}");
    let nobody = world.ask("?username=ALICE");
    assert_eq!([&nobody["connections"], &nobody["users"], &nobody["rooms"]], [0, 0, 0], "{nobody}");
    assert_eq!(nobody["busiest_users"], json!([]));
}

#[test]
fn whoever_is_behind_is_listed_first_with_what_it_is_owed() {
    let mut world = World::new();
    for number in 0..20 {
        world.join(number % 2, &format!("username=u{number:02}"));
    }
    let (_, socket) = world.join(1, "username=stuck");
    world.sockets.full.push(socket);
    for _ in 0..2 {
        world.relay.place("user\u{1f}stuck", &[b'x'; 100], Via::Client.into(), &mut world.rings, world.now);
        world.settle();
    }
    let page = world.ask("?limit=1");
    assert_eq!(page["stalled"], 1, "{page}");
    let room = &page["busiest_rooms"][0];
    // Two of 100 B, each with a header of 2.
    let stuck = json!({"room": "stuck", "space": "user", "members": 1, "stalled": 1, "bytes_behind": 204});
    assert_eq!(room, &stuck);
}

#[test]
fn ages_and_uptime_are_seconds() {
    let mut world = World::new();
    world.join(0, "username=old");
    world.now = Micros(3_000 * SECOND);
    world.join(0, "username=young");
    world.now = Micros(3_030 * SECOND);
    let page = world.ask("");
    assert_eq!(page["uptime_seconds"], 3_030);
    let ages = json!({"under_1m": 1, "under_10m": 0, "under_1h": 1, "under_1d": 0, "older": 0, "oldest_seconds": 3_029});
    assert_eq!(page["ages"], ages);
}

#[test]
fn who_leaves_meanwhile_is_left_out_and_too_many_askers_are_sent_away() {
    let mut world = World::new();
    let (leaver, _) = world.join(0, "username=leaver");
    world.join(0, "username=stayer");
    let ask = "GET /admin/stats HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let askers: Vec<i32> = (0..70).map(|_| world.say(0, ask).1).collect();
    // Parts are answered, and then one of them goes before its name is asked for.
    while let Some(command) = world.shards[0].up.pop_front() {
        world.relay.handle(0, command, &mut world.rings, world.now);
    }
    for at in 0..2 {
        while let Some(command) = world.rings.0[at].pop_front() {
            world.shards[at].handle(command, &mut world.sockets, world.now);
        }
    }
    world.shards[0].release(leaver, world.now);
    world.settle();
    let first = world.answer(askers[0]);
    assert_eq!(names(&first["busiest_users"], "username"), ["stayer"], "{first}");
    let statuses: Vec<bool> =
        askers.iter().map(|socket| world.sockets.taken[socket].starts_with(b"HTTP/1.1 503 ")).collect();
    assert_eq!(statuses.iter().filter(|is_refused| **is_refused).count(), 70 - 65);
    assert_eq!(world.ask("")["users"], 1);
}
