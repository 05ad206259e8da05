//! A shard alone, told by hand what the relay would say.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use domains::Registry;

use super::*;
use crate::auth::Gate;
use crate::config::{Config, Dialect, Role, RoomClass, Route, Slow, SlowPolicy, Template};
use crate::frame::Frame;
use crate::limits::{BODY_BYTES_PER_SECOND_MIN, EngineBounds};
use crate::metrics::{Identity, Metrics};

mod dialogue;
mod fuzz;
mod held;
mod memory;
mod mixed;
mod past;
mod slow;

/// Sockets by number: what they took, and how many bytes they take yet.
#[derive(Default)]
struct Sockets {
    taken: HashMap<i32, Vec<u8>>,
    space: HashMap<i32, usize>,
    broken: Vec<i32>,
    /// What the kernel would say of them.
    tcp: HashMap<i32, Tcp>,
}

impl Sockets {
    fn text(&self, socket: i32) -> String {
        String::from_utf8_lossy(self.taken.get(&socket).map_or(&[], |taken| taken)).into_owned()
    }
}

impl Wire for Sockets {
    fn send(&mut self, socket: i32, bytes: &[u8]) -> isize {
        if self.broken.contains(&socket) {
            return -1;
        }
        let space = self.space.entry(socket).or_insert(usize::MAX);
        let taken = bytes.len().min(*space);
        *space -= taken;
        self.taken.entry(socket).or_default().extend_from_slice(&bytes[..taken]);
        taken as isize
    }

    fn send_batch(&mut self, batch: &Batch, taken: &mut Vec<isize>) {
        for op in batch.ops() {
            let bytes: Vec<u8> = batch.slices(op).flatten().copied().collect();
            assert_eq!(bytes.len(), op.bytes);
            taken.push(self.send(op.socket, &bytes));
        }
    }

    fn tcp(&mut self, socket: i32) -> Option<Tcp> {
        self.tcp.get(&socket).copied()
    }
}

struct Bench {
    shard: Shard,
    wire: Sockets,
    now: Micros,
    offset: u64,
}

const SECOND: u64 = 1_000_000;

impl Bench {
    fn new() -> Self {
        Self::with(RoomClass::default(), EngineBounds::default())
    }

    fn with(class: RoomClass, engine: EngineBounds) -> Self {
        let json = Route { room: Template::default(), dialect: Dialect::Json, ..Route::default() };
        let consumers = Route { path: "/json".to_owned(), when_query: None, ..json.clone() };
        let ingestors = Route { path: "/ingest".to_owned(), role: Role::Ingestor, ..consumers.clone() };
        let lists = Route { separator: Some(','), ..Route::default() };
        let forbid = Some(":".to_owned());
        let strict = Route { path: "/strict".to_owned(), forbid: forbid.clone(), ..consumers.clone() };
        let strict_ingest = Route { path: "/strict-ingest".to_owned(), forbid, ..ingestors.clone() };
        let routes = vec![lists, consumers, ingestors, strict, strict_ingest];
        let config = Config { rooms: vec![class], routes, ..Config::default() };
        let metrics = Arc::new(Metrics::new(1, Identity::default(), false));
        let mut setup = Setup::new(&config, Gate::new(None, true), metrics);
        setup.engine = engine;
        setup.domains = Registry::built_in(&["trading", "chat"]).expect("they are built in");
        let shard = Shard::new(0, Arc::new(setup));
        Self { shard, wire: Sockets::default(), now: Micros(SECOND), offset: 1 }
    }

    /// A connection that has nothing but a socket.
    fn accept(&mut self, socket: i32) -> ConnectionId {
        self.shard.accept(socket, 0, self.now)
    }

    fn receive(&mut self, id: ConnectionId, input: &[u8]) -> Next {
        self.shard.receive(id, &mut input.to_vec(), &mut self.wire, self.now)
    }

    /// A WebSocket in these rooms, all of them live.
    fn member(&mut self, socket: i32, rooms: &[&str]) -> ConnectionId {
        let id = self.accept(socket);
        self.receive(id, &handshake(&rooms.join(",")));
        self.answer_joins();
        assert!(self.wire.text(socket).starts_with("HTTP/1.1 101 "), "{}", self.wire.text(socket));
        self.wire.taken.clear();
        self.shard.actions.clear();
        id
    }

    /// A WebSocket of the JSON dialect on that path, in no room.
    fn speaker(&mut self, socket: i32, path: &str) -> ConnectionId {
        let id = self.accept(socket);
        let request = String::from_utf8(handshake("")).expect("text").replace("/ws?room=", path);
        self.receive(id, request.as_bytes());
        assert!(self.wire.text(socket).starts_with("HTTP/1.1 101 "), "{}", self.wire.text(socket));
        self.wire.taken.clear();
        id
    }

    /// What a connection says, and what it hears of it before anything else happens.
    fn say(&mut self, socket: i32, id: ConnectionId, text: &str) -> Vec<String> {
        let before = self.heard(socket).len();
        self.receive(id, &masked(1, text.as_bytes()));
        self.heard(socket).split_off(before)
    }

    fn answer_joins(&mut self) {
        for command in std::mem::take(&mut self.shard.up) {
            if let Up::Join { slot, .. } = command {
                self.handle(Down::Joined { slot, epoch: 1, head: 1, source: None });
            }
        }
    }

    fn handle(&mut self, command: Down) {
        self.shard.handle(command, &mut self.wire, self.now);
    }

    fn room(&mut self, name: &str) -> RoomSlot {
        let index = self.shard.room_named(name);
        let generation = u32::from(self.shard.rooms.generation(index).expect("a room"));
        RoomSlot { index, generation }
    }

    fn publish(&mut self, room: &str, payload: &str) {
        self.publish_except(room, payload, None);
    }

    fn publish_except(&mut self, room: &str, payload: &str, except: Option<ConnectionId>) {
        let slot = self.room(room);
        let frame = Frame::data(payload.as_bytes()).expect("short");
        let (offset, arrived_micros) = (self.offset, self.now.0);
        self.offset += 1;
        self.handle(Down::Publication { slot, offset, arrived_micros, frame, except, label: None });
    }

    fn publish_labelled(&mut self, room: &str, kind: &str, payload: &str) {
        let slot = self.room(room);
        let frame = Frame::data(payload.as_bytes()).expect("short");
        let label = Some(Arc::new(Label { kind: kind.into(), is_json: true }));
        let (offset, arrived_micros) = (self.offset, self.now.0);
        self.offset += 1;
        self.handle(Down::Publication { slot, offset, arrived_micros, frame, except: None, label });
    }

    fn step(&mut self) -> Progress {
        self.shard.step(&mut self.wire, self.now)
    }

    fn pass(&mut self) {
        while self.step() == Progress::More {}
    }

    fn writable(&mut self, id: ConnectionId, space: usize) {
        let socket = self.shard.connection(id).expect("open").socket;
        self.wire.space.insert(socket, space);
        self.shard.writable(id, &mut self.wire, self.now);
    }

    /// The same as [`numbered`](Self::numbered) for tests that numbers don't concern: publications without theirs, answers
    /// to joins without data.
    fn heard(&self, socket: i32) -> Vec<String> {
        let plain = |text: String| {
            if text.starts_with(r#"{"type":"joined""#) {
                let data = text.find(r#""data":"#).expect("it has data");
                return format!("{}\"data\":null}}", &text[..data]);
            }
            match text.strip_suffix('}').and_then(|text| text.rsplit_once(r#","offset":"#)) {
                Some((text, number)) if number.bytes().all(|octet| octet.is_ascii_digit()) => {
                    format!("{text}}}")
                }
                _ => text,
            }
        };
        self.numbered(socket).into_iter().map(plain).collect()
    }

    /// Texts of the data frames that a socket took whole, `~` for a part of one at the end.
    fn numbered(&self, socket: i32) -> Vec<String> {
        let mut rest = self.wire.taken.get(&socket).map_or(&[][..], |taken| taken);
        let mut heard = Vec::new();
        while let [_, length, after @ ..] = rest {
            let (header, length) = match length {
                126 => (4, usize::from(u16::from_be_bytes([after[0], after[1]]))),
                _ => (2, usize::from(*length)),
            };
            let Some(payload) = rest.get(header..header + length) else { break };
            heard.push(String::from_utf8_lossy(payload).into_owned());
            rest = &rest[header + length..];
        }
        if !rest.is_empty() {
            heard.push("~".to_owned());
        }
        heard
    }

    fn sweep_after(&mut self, duration: Duration) {
        self.now.0 += duration.as_micros() as u64;
        self.shard.sweep(&mut self.wire, self.now);
    }
}

fn handshake(room: &str) -> Vec<u8> {
    format!(
        "GET /ws?room={room} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes()
}

fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = match payload.len() {
        short @ ..126 => vec![0x80 | opcode, 0x80 | short as u8],
        long => [&[0x80 | opcode, 0xfe], &(long as u16).to_be_bytes()[..]].concat(),
    };
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

fn slow(policy: SlowPolicy, frames: usize) -> RoomClass {
    RoomClass { slow: Slow { policy, frames, ..Slow::default() }, ..RoomClass::default() }
}

// ---- sending

#[test]
fn a_short_send_goes_on_where_it_stopped_wherever_that_is() {
    // Three frames of 2 + 3 bytes: inside a header, inside a payload, and at each border.
    for space in 0..15 {
        let mut bench = Bench::new();
        let id = bench.member(1, &["a"]);
        bench.wire.space.insert(1, space);
        for payload in ["one", "two", "six"] {
            bench.publish("a", payload);
        }
        bench.pass();
        assert_eq!(bench.shard.metrics().deliveries.value(), space as u64 / 5, "{space}");
        assert!(bench.shard.ledger().balances(), "{space}: {:?}", bench.shard.ledger());
        bench.writable(id, usize::MAX);
        assert_eq!(bench.heard(1), ["one", "two", "six"], "{space}");
        assert_eq!(bench.shard.metrics().deliveries.value(), 3, "{space}");
        bench.sweep_after(Duration::from_millis(100));
        assert_eq!(bench.shard.window_bytes, 0, "{space}");
    }
}

#[test]
fn a_send_of_several_rooms_goes_on_where_it_stopped_wherever_that_is() {
    for space in 0..20 {
        for more in 0..20 {
            let mut bench = Bench::new();
            let id = bench.member(1, &["a", "b"]);
            bench.member(2, &["b"]);
            bench.wire.space.insert(1, space);
            for (room, payload) in [("a", "one"), ("b", "two"), ("a", "six"), ("b", "ten")] {
                bench.publish(room, payload);
            }
            bench.pass();
            assert!(bench.shard.ledger().balances(), "{space}: {:?}", bench.shard.ledger());
            bench.writable(id, more);
            assert!(bench.shard.ledger().balances(), "{space}, {more}: {:?}", bench.shard.ledger());
            bench.writable(id, usize::MAX);
            assert_eq!(bench.heard(1), ["one", "six", "two", "ten"], "{space}, {more}");
            assert_eq!(bench.heard(2), ["two", "ten"], "{space}, {more}");
            assert_eq!(bench.shard.metrics().deliveries.value(), 6, "{space}, {more}");
        }
    }
}

#[test]
fn who_caught_up_while_the_pass_was_left_is_not_sent_to_twice() {
    let engine = EngineBounds { batch_sends_max: 1, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let first = bench.member(1, &["a", "b"]);
    bench.member(2, &["a"]);
    bench.member(3, &["a"]);
    bench.publish("a", "one");
    assert_eq!(bench.step(), Progress::More, "one send to a batch");
    // Collected by the pass, it stalls over a pong and is writable again before its turn comes.
    bench.wire.space.insert(1, 0);
    bench.receive(first, &masked(9, b"?"));
    bench.writable(first, usize::MAX);
    bench.pass();
    assert_eq!(bench.heard(1), ["?", "one"]);
    assert_eq!(bench.shard.metrics().deliveries.value(), 3);
    assert!(bench.shard.ledger().balances());
}

#[test]
fn a_turn_gathers_what_a_connection_is_owed_by_all_its_rooms() {
    let mut bench = Bench::new();
    bench.member(1, &["a", "b", "c"]);
    for room in ["c", "a", "b", "a"] {
        bench.publish(room, room);
    }
    let before = bench.shard.metrics().sends.value();
    bench.pass();
    assert_eq!(bench.shard.metrics().sends.value() - before, 1);
    assert_eq!(bench.heard(1), ["c", "a", "a", "b"]);
}

#[test]
fn who_is_left_out_of_one_room_still_gets_the_others() {
    let mut bench = Bench::new();
    let sender = bench.member(1, &["a", "b"]);
    bench.member(2, &["a"]);
    bench.publish("a", "1");
    bench.publish_except("a", "2", Some(sender));
    bench.publish("b", "3");
    bench.pass();
    let mut heard = bench.heard(1);
    heard.sort();
    assert_eq!(heard, ["1", "3"]);
    assert_eq!(bench.heard(2), ["1", "2"]);
    let ledger = bench.shard.ledger();
    assert_eq!((ledger.owed, ledger.delivered, ledger.filtered, ledger.pending), (5, 4, 1, 0));
}

// ---- slow readers

#[test]
fn one_short_send_is_not_slowness() {
    let mut bench = Bench::with(slow(SlowPolicy::Disconnect, 30), EngineBounds::default());
    let id = bench.member(1, &["a"]);
    bench.wire.space.insert(1, 0);
    for _ in 0..50 {
        bench.publish("a", "x");
        bench.pass();
    }
    bench.sweep_after(Duration::from_millis(900));
    assert!(bench.shard.connection(id).is_some_and(|c| c.reason.is_none()), "closed within the grace");
    bench.sweep_after(Duration::from_millis(200));
    assert_eq!(bench.shard.connection(id).and_then(|c| c.reason), Some(CloseReason::SlowFrames));
    assert_eq!(bench.shard.ledger(), Ledger { owed: 50, dropped: 50, ..Ledger::default() });
    bench.writable(id, usize::MAX);
    assert_eq!(&bench.wire.taken[&1][..4], [0x88, 13, 0x03, 0xf5], "1013");
}

#[test]
fn a_burst_of_more_than_twice_the_limits_is_slowness_at_once() {
    let mut bench = Bench::with(slow(SlowPolicy::Disconnect, 10), EngineBounds::default());
    let id = bench.member(1, &["a"]);
    bench.wire.space.insert(1, 0);
    for _ in 0..20 {
        bench.publish("a", "x");
        bench.pass();
    }
    assert!(bench.shard.connection(id).is_some_and(|c| c.reason.is_none()), "closed at twice the limit");
    bench.publish("a", "x");
    bench.pass();
    assert_eq!(bench.shard.connection(id).and_then(|c| c.reason), Some(CloseReason::SlowFrames));
}

#[test]
fn dropping_the_oldest_keeps_exactly_the_tail() {
    let mut bench =
        Bench::with(slow(SlowPolicy::DropOldest { disconnect_after: 0 }, 3), EngineBounds::default());
    let id = bench.member(1, &["a"]);
    bench.wire.space.insert(1, 1);
    for number in 0..10 {
        bench.publish("a", &format!("n{number}"));
        bench.pass();
    }
    bench.sweep_after(Duration::from_millis(1100));
    bench.writable(id, usize::MAX);
    assert_eq!(bench.heard(1), ["n0", "n7", "n8", "n9"], "the half-sent frame, and the last three");
    let ledger = bench.shard.ledger();
    assert_eq!((ledger.owed, ledger.delivered, ledger.dropped), (10, 4, 6));
    bench.sweep_after(Duration::from_millis(100));
    assert_eq!(bench.shard.window_bytes, 0);
}

#[test]
fn over_the_budget_of_the_shard_only_who_holds_windows_goes() {
    let engine = EngineBounds { window_bytes_max: 100, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let (far, near, other) = (bench.member(1, &["a"]), bench.member(2, &["a"]), bench.member(3, &["b"]));
    bench.member(4, &["a"]);
    bench.wire.space.extend([(1, 0), (2, 60), (3, 1)]);
    bench.publish("b", "half of it only");
    bench.publish("a", &"x".repeat(50));
    bench.publish("a", &"y".repeat(50));
    bench.pass();
    let reason = |bench: &mut Bench, id| bench.shard.connection(id).and_then(|c| c.reason);
    assert_eq!(reason(&mut bench, far), Some(CloseReason::SlowShardBudget));
    assert_eq!((reason(&mut bench, near), reason(&mut bench, other)), (None, None));
    assert!(bench.shard.window_bytes <= 100 && bench.shard.ledger().balances());
}

#[test]
fn of_thousands_that_stall_in_one_room_over_the_budget_those_furthest_behind_go_and_no_others() {
    const EACH: i32 = 1000;
    let engine = EngineBounds { window_bytes_max: 160, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let members: Vec<_> = (0..3 * EACH).map(|socket| bench.member(socket, &["a"])).collect();
    // A third takes nothing, a third the first publication, a third two of them: 52 bytes each on the wire.
    bench.wire.space.extend((0..3 * EACH).map(|socket| (socket, (socket % 3) as usize * 52)));
    for payload in ["x", "y", "z", "w"] {
        bench.publish("a", &payload.repeat(50));
        bench.pass();
    }
    for (socket, id) in members.into_iter().enumerate() {
        let reason = bench.shard.connection(id).and_then(|c| c.reason);
        assert_eq!(reason, (socket % 3 == 0).then_some(CloseReason::SlowShardBudget), "{socket}");
    }
    assert!(bench.shard.window_bytes <= 160 && bench.shard.ledger().balances());
}

#[test]
fn behind_a_full_socket_a_pong_replaces_the_one_before() {
    let mut bench = Bench::new();
    let id = bench.member(1, &["a"]);
    bench.wire.space.insert(1, 1);
    for ping in [b"1", b"2", b"3"] {
        bench.receive(id, &masked(9, ping));
    }
    bench.writable(id, usize::MAX);
    assert_eq!(bench.heard(1), ["1", "3"], "the one that had begun, and the last");
}

// ---- ends

#[test]
fn after_a_close_frame_the_socket_ends_within_a_second() {
    let mut bench = Bench::new();
    let id = bench.member(1, &["a"]);
    bench.shard.close(id, CloseReason::GoingAway, &mut bench.wire, bench.now);
    assert_eq!(bench.shard.actions, [Action::ShutdownWrite(id)]);
    bench.shard.actions.clear();
    bench.sweep_after(Duration::from_millis(900));
    assert_eq!(bench.shard.actions, []);
    bench.sweep_after(Duration::from_millis(200));
    assert_eq!(bench.shard.actions, [Action::Shutdown(id)]);
    bench.shard.release(id, bench.now);
    assert_eq!(bench.shard.metrics().closed.value(CloseReason::GoingAway), 1);
}

#[test]
fn a_socket_that_breaks_under_a_send_ends_its_connection_and_nobody_elses() {
    let mut bench = Bench::new();
    let (broken, _) = (bench.member(1, &["a"]), bench.member(2, &["a"]));
    bench.wire.broken.push(1);
    bench.publish("a", "x");
    bench.pass();
    assert_eq!(bench.heard(2), ["x"]);
    assert!(bench.shard.actions.contains(&Action::Shutdown(broken)));
    let ledger = bench.shard.ledger();
    assert_eq!((ledger.owed, ledger.delivered, ledger.dropped), (2, 1, 1));
}

// ---- handshakes and HTTP

#[test]
fn the_101_waits_for_joined_and_what_followed_the_handshake_is_read_then() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    let mut input = handshake("a");
    input.extend(masked(9, b"early"));
    assert_eq!(bench.receive(id, &input), Next::Pause);
    assert_eq!(bench.wire.text(1), "");
    bench.answer_joins();
    assert!(bench.shard.actions.contains(&Action::Resume(id)));
    assert!(bench.wire.text(1).ends_with("\r\n\r\n\u{fffd}\u{5}early"), "{:?}", bench.wire.text(1));
}

#[test]
fn what_a_live_room_gets_waits_for_the_101_that_waits_for_another_room() {
    let mut bench = Bench::new();
    bench.member(1, &["live"]);
    let id = bench.accept(2);
    assert_eq!(bench.receive(id, &handshake("live,new")), Next::Pause);
    bench.publish("live", "early");
    bench.pass();
    assert_eq!(bench.heard(1), ["early"]);
    assert_eq!(bench.wire.text(2), "");
    assert!(bench.shard.ledger().balances());
    bench.answer_joins();
    assert!(bench.wire.text(2).starts_with("HTTP/1.1 101 "), "{:?}", bench.wire.text(2));
    assert!(bench.wire.text(2).ends_with("\r\n\r\n\u{fffd}\u{5}early"), "{:?}", bench.wire.text(2));
    assert!(!bench.shard.actions.contains(&Action::AwaitWritable(id)));
    let ledger = bench.shard.ledger();
    assert_eq!((ledger.owed, ledger.delivered, ledger.pending), (2, 2, 0));
    assert_eq!(bench.shard.metrics().stalled.value(), 0);
}

#[test]
fn a_body_is_asked_for_once() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    let head = b"POST /publish?room=a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    for octet in head.chunks(1) {
        assert_eq!(bench.receive(id, octet), Next::Read);
    }
    assert_eq!(bench.wire.text(1), "HTTP/1.1 100 Continue\r\n\r\n");
    bench.receive(id, b"hel");
    assert_eq!(bench.receive(id, b"lo"), Next::Pause);
    assert_eq!(bench.wire.text(1), "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(matches!(&bench.shard.up[0], Up::Publish(publish) if publish.payload == "hello"));
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    let publish = "POST /publish?room=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";
    let get = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(bench.receive(id, [publish, get, publish].concat().as_bytes()), Next::Pause);
    assert_eq!((bench.shard.up.len(), bench.wire.text(1).len()), (1, 0));
    bench.handle(Down::Published { to: id, outcome: crate::command::Outcome::Nobody });
    assert_eq!(bench.shard.up.len(), 2, "the second publication is on its way");
    assert!(bench.shard.is_paused(id) && !bench.shard.actions.contains(&Action::Resume(id)));
    bench.handle(Down::Published { to: id, outcome: crate::command::Outcome::Nobody });
    let answers = bench.wire.text(1);
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    let ok = answers.find("ok\n").expect("the answer of /livez");
    assert!(answers[..ok].contains("nobody") && answers[ok..].contains("nobody"), "{answers}");
    assert!(bench.shard.actions.contains(&Action::Resume(id)));
}

fn head_of_a_body(body_bytes: usize) -> Vec<u8> {
    format!("POST /publish?room=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {body_bytes}\r\n\r\n")
        .into_bytes()
}

#[test]
fn a_body_has_a_time_of_its_own_that_begins_with_the_end_of_its_head() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    bench.sweep_after(Duration::from_secs(9));
    bench.receive(id, &head_of_a_body(5));
    bench.sweep_after(Duration::from_secs(9));
    assert_eq!(bench.receive(id, b"hello"), Next::Pause, "{}", bench.wire.text(1));
    bench.handle(Down::Published { to: id, outcome: crate::command::Outcome::Nobody });
    // The next request has its own times.
    bench.receive(id, b"POST /pub");
    bench.sweep_after(Duration::from_secs(9));
    assert!(bench.shard.connection(id).is_some_and(|c| c.reason.is_none()));
    bench.sweep_after(Duration::from_secs(2));
    assert_eq!(bench.shard.connection(id).and_then(|c| c.reason), Some(CloseReason::HandshakeTimeout));
}

#[test]
fn a_body_that_comes_slower_than_the_least_rate_is_answered_with_408_however_steadily_it_comes() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    bench.receive(id, &head_of_a_body(40 * BODY_BYTES_PER_SECOND_MIN));
    for _ in 0..49 {
        bench.receive(id, b"x");
        bench.sweep_after(Duration::from_secs(1));
    }
    assert_eq!(bench.wire.text(1), "", "10 s, and 40 s for as many times what a second brings at least");
    bench.receive(id, b"x");
    bench.sweep_after(Duration::from_secs(2));
    assert!(bench.wire.text(1).starts_with("HTTP/1.1 408 "), "{}", bench.wire.text(1));
    assert!(bench.wire.text(1).contains("Connection: close"), "{}", bench.wire.text(1));
    assert_eq!(bench.shard.connection(id).and_then(|c| c.reason), Some(CloseReason::HttpDone));
    assert_eq!(bench.shard.input_bytes, 0);
}

#[test]
fn a_body_over_the_bound_is_refused_before_it_comes() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    bench
        .receive(id, b"POST /publish?room=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777217\r\n\r\n");
    assert!(bench.wire.text(1).starts_with("HTTP/1.1 413 "), "{}", bench.wire.text(1));
    assert_eq!(bench.shard.actions, [Action::ShutdownWrite(id)]);
}

#[test]
fn who_may_not_publish_is_refused_before_its_body_comes() {
    for head in ["POST /ws?room=a", "POST /nowhere", "GET /livez", "POST /publish", "DELETE /publish?room=a"]
    {
        let mut bench = Bench::new();
        let id = bench.accept(1);
        let head = format!("{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n");
        bench.receive(id, head.as_bytes());
        assert!(bench.wire.text(1).starts_with("HTTP/1.1 4"), "{head}: {}", bench.wire.text(1));
        assert_eq!(bench.shard.actions, [Action::ShutdownWrite(id)], "{head}");
    }
}

#[test]
fn a_head_request_has_no_body_in_its_answer() {
    for path in ["/stats", "/livez", "/metrics", "/nowhere"] {
        let mut bench = Bench::new();
        let id = bench.accept(1);
        bench.receive(id, format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        if bench.wire.text(1).is_empty() {
            bench.handle(Down::Answer { to: id, report: Arc::new(Report::default()) });
        }
        let answer = bench.wire.text(1);
        assert!(answer.ends_with("\r\n\r\n") && answer.contains("Content-Length: "), "{path}: {answer}");
    }
}

#[test]
fn requests_behind_a_full_socket_wait() {
    let engine = EngineBounds { lane_bytes_max: 1000, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let id = bench.accept(1);
    bench.wire.space.insert(1, 0);
    let get = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(bench.receive(id, get.repeat(100).as_bytes()), Next::Pause);
    let lane_bytes = |bench: &mut Bench| {
        bench.shard.connection(id).and_then(|c| c.stalled.as_ref()).map_or(0, |s| s.lane_bytes())
    };
    assert!(lane_bytes(&mut bench) < 60_000, "{} bytes of answers wait", lane_bytes(&mut bench));
    for _ in 0..100 {
        bench.writable(id, usize::MAX);
    }
    assert_eq!(bench.wire.text(1).matches("HTTP/1.1 200 OK").count(), 100);
    assert!(!bench.shard.is_paused(id));
}

#[test]
fn publishers_are_not_read_while_the_way_to_the_relay_is_full_and_take_turns_afterwards() {
    let engine = EngineBounds { up_backlog_max: 10, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let ids: Vec<ConnectionId> = (1..=200).map(|socket| bench.member(socket, &["r"])).collect();
    let mut reads = vec![0; ids.len()];
    // All of them always have a buffer full of messages, and are run in the order in which they are woken.
    let burst = masked(1, b"x").repeat(100);
    let mut woken = ids.clone();
    for _ in 0..8 * ids.len() {
        for id in std::mem::take(&mut woken) {
            if bench.shard.may_be_read(id) {
                reads[ids.iter().position(|other| *other == id).expect("one of them")] += 1;
                assert_eq!(bench.receive(id, &burst), Next::Pause);
            }
        }
        let waiting = bench.shard.up.len();
        assert!(waiting <= 110, "{waiting} wait: the bound and what one read brings were due");
        bench.shard.up.clear();
        bench.shard.resume_publishers();
        let resumed = std::mem::take(&mut bench.shard.actions).into_iter();
        woken = resumed.filter_map(|a| if let Action::Resume(id) = a { Some(id) } else { None }).collect();
    }
    let (least, most) = (reads.iter().min(), reads.iter().max());
    assert!(least >= Some(&4), "somebody was read {least:?} times, another {most:?} times");
}

#[test]
fn a_drain_lets_those_who_have_just_come_ask() {
    let mut bench = Bench::new();
    let member = bench.member(1, &["r"]);
    let newcomer = bench.accept(2);
    assert_eq!(bench.shard.open_ids(bench.now), [member]);
    let later = Micros(bench.now.0 + CLOSE_LINGER.as_micros() as u64);
    assert_eq!(bench.shard.open_ids(later), [member, newcomer]);
}

#[test]
fn over_the_bound_of_the_admin_address_its_idlest_goes_once_and_nobody_who_asks() {
    let mut bench = Bench::new();
    let mut ids = Vec::new();
    for socket in 0..ADMIN_CONNECTIONS_MAX as i32 {
        assert!(bench.shard.may_accept_admin(&mut bench.wire, bench.now));
        bench.now.0 += SECOND;
        ids.push(bench.shard.accept(socket, ADMIN, bench.now));
    }
    // The first asks, and waits for its answer.
    bench.receive(ids[0], b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for _ in 0..3 {
        assert!(!bench.shard.may_accept_admin(&mut bench.wire, bench.now));
        assert_eq!(bench.shard.actions, [Action::ShutdownWrite(ids[1]), Action::Shutdown(ids[1])]);
    }
    bench.shard.release(ids[1], bench.now);
    assert!(bench.shard.may_accept_admin(&mut bench.wire, bench.now));
}

#[test]
fn rooms_that_are_left_before_they_are_live_are_no_more_than_the_bound_and_their_joined_finds_nobody() {
    let engine = EngineBounds { empty_rooms_max: 8, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let id = bench.speaker(1, "/json");
    for room in 0..200 {
        bench.say(1, id, &format!(r#"{{"type":"join","room":"r{room}"}}"#));
        bench.say(1, id, &format!(r#"{{"type":"leave","room":"r{room}"}}"#));
        bench.wire.taken.clear();
        assert!(bench.shard.metrics().rooms.value() <= 9);
    }
    let left = bench.shard.up.iter().filter(|command| matches!(command, Up::Leave { .. })).count();
    assert_eq!(left, 192, "a Leave for each Join whose room is gone");
    // The relay confirms them all the same: its answers were on the ring.
    bench.answer_joins();
    bench.sweep_after(Duration::from_secs(10));
    assert_eq!(bench.shard.metrics().rooms.value(), 0);
    bench.say(1, id, r#"{"type":"join","room":"r0"}"#);
    bench.answer_joins();
    assert_eq!(bench.heard(1), [r#"{"type":"joined","room":"r0","data":null}"#]);
}

#[test]
fn batches_that_take_too_long_become_smaller_and_grow_again() {
    let mut bench = Bench::new();
    for socket in 0..200 {
        bench.member(socket, &["a"]);
    }
    let steps = |bench: &mut Bench| {
        bench.publish("a", "x");
        let mut steps = 1;
        while bench.step() == Progress::More {
            steps += 1;
        }
        steps
    };
    assert_eq!(steps(&mut bench), 1);
    bench.shard.note_batch(Duration::from_millis(3));
    assert_eq!(steps(&mut bench), 2, "128 a batch");
    for _ in 0..9 {
        bench.shard.note_batch(Duration::from_millis(3));
    }
    assert_eq!(steps(&mut bench), 13, "16 a batch, and no smaller");
    for _ in 0..9 {
        bench.shard.note_batch(Duration::from_micros(100));
    }
    assert_eq!(steps(&mut bench), 1);
}

#[test]
fn how_long_is_too_long_for_a_batch_is_a_setting() {
    let engine = EngineBounds { pass_slice: Duration::from_millis(10), ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    for socket in 0..200 {
        bench.member(socket, &["a"]);
    }
    for (length, due) in [(9, Progress::Done), (11, Progress::More)] {
        bench.shard.note_batch(Duration::from_millis(length));
        bench.publish("a", "x");
        assert_eq!(bench.step(), due, "after {length} ms");
    }
}

#[test]
fn who_waits_too_long_for_a_room_is_given_up() {
    let mut bench = Bench::new();
    let id = bench.accept(1);
    assert_eq!(bench.receive(id, &handshake("a")), Next::Pause);
    bench.sweep_after(Duration::from_secs(5));
    assert!(bench.shard.connection(id).is_some_and(|c| c.reason.is_none()));
    bench.sweep_after(Duration::from_secs(6));
    assert_eq!(bench.shard.connection(id).and_then(|c| c.reason), Some(CloseReason::HandshakeTimeout));
    assert!(bench.shard.actions.contains(&Action::Resume(id)), "its reading goes on, to its end");
}
