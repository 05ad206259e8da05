//! Slow readers: what they lose is told, and in a conflating room the newest of each key arrives.

use super::*;
use crate::metrics::Cause;

fn class(policy: SlowPolicy, frames: usize, key: Option<&str>) -> RoomClass {
    let slow = Slow { policy, frames, ..Slow::default() };
    RoomClass { slow, conflate_key: key.map(str::to_owned), ..RoomClass::default() }
}

impl Bench {
    fn stuck_speaker(&mut self, socket: i32, room: &str) -> ConnectionId {
        let id = self.speaker(socket, "/json");
        self.say(socket, id, &format!(r#"{{"type":"join","room":"{room}"}}"#));
        self.answer_joins();
        self.wire.taken.clear();
        self.wire.space.insert(socket, 0);
        id
    }

    fn publish_prices(&mut self, prices: &[(&str, u32)]) {
        for (symbol, price) in prices {
            self.publish("a", &format!(r#"{{"symbol":"{symbol}","price":{price}}}"#));
            self.pass();
        }
    }

    fn settled(&mut self) {
        let ledger = self.shard.ledger();
        assert!(ledger.balances(), "{ledger:?}");
    }
}

#[test]
fn what_a_slow_reader_lost_is_one_gap_before_what_it_still_gets() {
    let mut bench =
        Bench::with(class(SlowPolicy::DropOldest { disconnect_after: 0 }, 2, None), EngineBounds::default());
    let id = bench.stuck_speaker(1, "a");
    for payload in ["1", "2", "3", "4", "5", "6", "7"] {
        bench.publish("a", payload);
        bench.pass();
        bench.sweep_after(Duration::from_secs(1));
        bench.settled();
    }
    bench.writable(id, usize::MAX);
    let due = [
        r#"{"type":"gap","room":"a","data":{"epoch":"1","from":1,"reason":"slow","to":5}}"#,
        r#"{"type":"message","room":"a","data":"6","offset":6}"#,
        r#"{"type":"message","room":"a","data":"7","offset":7}"#,
    ];
    assert_eq!(bench.numbered(1), due);
    assert_eq!(bench.shard.metrics().drops.value(DropReason::DropOldest), 5);
    bench.settled();
}

#[test]
fn a_conflating_room_gives_a_slow_reader_the_newest_of_each_key_in_order() {
    let mut bench = Bench::with(class(SlowPolicy::Conflate, 4, Some("symbol")), EngineBounds::default());
    let (stuck, quick) = (bench.member(1, &["a"]), bench.member(2, &["a"]));
    bench.wire.space.insert(1, 0);
    for round in 0..50 {
        bench.publish_prices(&[("BTC", round), ("ETH", round), ("SOL", 7)]);
        bench.sweep_after(Duration::from_secs(1));
        bench.settled();
    }
    assert!(
        bench.shard.window_bytes < 500,
        "the window is no longer than the limits: {}",
        bench.shard.window_bytes
    );
    bench.writable(stuck, usize::MAX);
    let due =
        [r#"{"symbol":"BTC","price":49}"#, r#"{"symbol":"ETH","price":49}"#, r#"{"symbol":"SOL","price":7}"#];
    let publications =
        |socket| bench.heard(socket).into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
    assert_eq!(publications(1), due, "but for pings");
    assert_eq!(publications(2).len(), 150, "who reads gets everything");
    let ledger = bench.shard.ledger();
    assert_eq!((ledger.conflated, ledger.delivered, ledger.pending), (147, 153, 0));
    assert_eq!(bench.shard.kept.bytes(), 0);
    bench.settled();
    let _ = quick;
}

#[test]
fn without_a_key_a_slow_reader_gets_the_newest_alone() {
    let mut bench = Bench::with(class(SlowPolicy::Conflate, 4, None), EngineBounds::default());
    let stuck = bench.member(1, &["a"]);
    bench.wire.space.insert(1, 0);
    for payload in ["1", "2", "3"] {
        bench.publish("a", payload);
        bench.pass();
    }
    bench.writable(stuck, usize::MAX);
    assert_eq!(bench.heard(1), ["3"]);
    bench.settled();
}

#[test]
fn more_keys_than_the_limits_allow_close_the_slow_reader() {
    let mut bench = Bench::with(class(SlowPolicy::Conflate, 4, Some("symbol")), EngineBounds::default());
    let stuck = bench.member(1, &["a"]);
    bench.wire.space.insert(1, 0);
    for symbol in ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"] {
        bench.publish_prices(&[(symbol, 1)]);
        bench.sweep_after(Duration::from_secs(1));
    }
    let reason = bench.shard.connection(stuck).and_then(|connection| connection.reason);
    assert_eq!(reason, Some(CloseReason::SlowFrames));
    bench.settled();
    assert_eq!(bench.shard.kept.bytes(), 0);
}

#[test]
fn a_reader_that_is_torn_in_the_middle_of_its_keys_gets_whole_frames_and_no_older_ones() {
    for space in 0..120 {
        let mut bench = Bench::with(class(SlowPolicy::Conflate, 4, Some("symbol")), EngineBounds::default());
        let stuck = bench.member(1, &["a"]);
        bench.wire.space.insert(1, 0);
        bench.publish_prices(&[("BTC", 1), ("ETH", 1), ("SOL", 1)]);
        bench.writable(stuck, space);
        bench.publish_prices(&[("ETH", 2), ("BTC", 2)]);
        bench.settled();
        bench.writable(stuck, usize::MAX);
        let heard = bench.heard(1);
        let last = |symbol: &str| heard.iter().rfind(|text| text.contains(symbol)).cloned();
        assert_eq!(last("BTC").as_deref(), Some(r#"{"symbol":"BTC","price":2}"#), "{space}: {heard:?}");
        assert_eq!(last("ETH").as_deref(), Some(r#"{"symbol":"ETH","price":2}"#), "{space}: {heard:?}");
        assert!(last("SOL").is_some() && !heard.contains(&"~".to_owned()), "{space}: {heard:?}");
        assert_eq!(bench.shard.ledger().pending, 0);
        bench.settled();
    }
}

#[test]
fn a_slow_reader_that_takes_its_close_frame_late_has_the_whole_of_its_patience_to_read_it() {
    let mut bench = Bench::with(class(SlowPolicy::Disconnect, 2, None), EngineBounds::default());
    let id = bench.member(1, &["a"]);
    bench.wire.space.insert(1, 3);
    bench.publish("a", "half of this");
    bench.pass();
    bench.shard.close(id, CloseReason::SlowFrames, &mut bench.wire, bench.now);
    bench.sweep_after(Duration::from_secs(1));
    bench.shard.actions.clear();
    bench.writable(id, usize::MAX);
    assert_eq!(bench.shard.actions, [Action::ShutdownWrite(id)]);
    bench.shard.actions.clear();
    bench.sweep_after(Duration::from_secs(3));
    assert_eq!(bench.shard.actions, [], "four of five seconds");
    bench.sweep_after(Duration::from_secs(2));
    assert_eq!(bench.shard.actions, [Action::Shutdown(id)]);
}

#[test]
fn a_break_stays_between_what_a_slow_reader_of_a_conflating_room_is_owed_before_and_after_it() {
    let mut bench = Bench::with(class(SlowPolicy::Conflate, 2, Some("symbol")), EngineBounds::default());
    let id = bench.speaker(1, "/json");
    bench.say(1, id, r#"{"type":"join","room":"a"}"#);
    for command in std::mem::take(&mut bench.shard.up) {
        if let Up::Join { slot, .. } = command {
            bench.handle(Down::Joined { slot, epoch: 1, head: 1, source: Some((0, 0)) });
        }
    }
    bench.wire.taken.clear();
    bench.wire.space.insert(1, 0);
    bench.publish_prices(&[("BTC", 1), ("ETH", 1)]);
    bench.handle(Down::SourceGap { source: 0, run: 1 });
    bench.publish_prices(&[("BTC", 2)]);
    bench.sweep_after(Duration::from_secs(2));
    bench.settled();
    bench.writable(id, usize::MAX);
    let heard: Vec<String> = bench.numbered(1).into_iter().filter(|text| !text.is_empty()).collect();
    let due = [r#""price":1},"offset":2}"#, r#""offset":2,"reason":"broker"}}"#, r#""price":2},"offset":3}"#];
    assert_eq!(heard.len(), 3, "{heard:?}");
    assert!(heard.iter().zip(due).all(|(text, due)| text.ends_with(due)), "{heard:?}");
    bench.settled();
}

#[test]
fn what_a_slow_reader_lost_before_a_break_is_told_with_the_run_that_it_was_of() {
    let mut bench =
        Bench::with(class(SlowPolicy::DropOldest { disconnect_after: 0 }, 2, None), EngineBounds::default());
    let id = bench.stuck_speaker(1, "a");
    for payload in ["1", "2", "3"] {
        bench.publish("a", payload);
        bench.pass();
    }
    // Another stream, whose numbers begin anew: 2 of that run is not what was lost.
    let slot = bench.room("a");
    bench.handle(Down::RoomGap { slot, epoch: 7, last: 0 });
    bench.pass();
    bench.sweep_after(Duration::from_secs(2));
    bench.writable(id, usize::MAX);
    let due = [
        r#"{"type":"gap","room":"a","data":{"epoch":"1","from":1,"reason":"slow","to":2}}"#,
        r#"{"type":"message","room":"a","data":"3","offset":3}"#,
        r#"{"type":"gap","room":"a","data":{"epoch":"7","offset":0,"reason":"broker"}}"#,
    ];
    assert_eq!(bench.numbered(1), due);
    bench.settled();
}

#[test]
fn a_key_is_the_same_however_its_text_is_escaped_and_is_no_number() {
    let hasher = foldhash::fast::RandomState::default();
    let key = |payload: &str| conflation_key(&hasher, Some("k"), payload.as_bytes());
    let one = key(r#"{"k":"1"}"#);
    assert_eq!(key(r#"{"k":"\u0031"}"#), one);
    assert_eq!(key(r#"{ "k" : "1" , "other": 2 }"#), one);
    assert_eq!(key(r#"{"k":"a\"b"}"#), key(r#"{"k":"a\u0022b"}"#));
    for other in [r#"{"k":1}"#, r#"{"k":"2"}"#, r#"{"k":"\"1\""}"#, r#"{"k":null}"#] {
        assert_ne!(key(other), one, "{other}");
    }
    assert_eq!((key("{}"), key("no object")), (0, 0), "superseded by nothing");
}

#[test]
fn keys_that_collide_in_one_process_do_not_in_the_next() {
    let hashed = |_| conflation_key(&foldhash::fast::RandomState::default(), Some("k"), br#"{"k":"a"}"#);
    let hashes: std::collections::BTreeSet<u64> = (0..4).map(hashed).collect();
    assert!(hashes.len() > 1, "whoever publishes could work out which keys supersede each other");
}

/// What the kernel says of somebody who doesn't read, and of somebody whose segments are lost.
const UNREAD: Tcp = Tcp { unsent_bytes: 20_000, ..NOTHING };
const LOST: Tcp = Tcp { unacked: 10, retransmits: 2, ..NOTHING };
const NOTHING: Tcp = Tcp {
    congestion_state: 0,
    retransmits: 0,
    segment_bytes: 1448,
    unacked: 0,
    lost: 0,
    retransmitted: 0,
    round_trip: Duration::ZERO,
    unsent_bytes: 0,
    busy: Duration::ZERO,
    window_limited: Duration::ZERO,
    buffer_limited: Duration::ZERO,
    window_bytes: None,
};

impl Bench {
    fn found(&self) -> [u64; 3] {
        let slow = &self.shard.metrics().slow;
        [Cause::Reader, Cause::Network, Cause::Unknown].map(|cause| slow.value(cause))
    }
}

#[test]
fn whoever_is_closed_for_being_slow_is_counted_with_what_held_it_up() {
    let mut bench = Bench::with(class(SlowPolicy::Disconnect, 2, None), EngineBounds::default());
    for socket in 1..=4 {
        bench.member(socket, &["a"]);
        bench.wire.space.insert(socket, if socket == 4 { usize::MAX } else { 0 });
    }
    bench.wire.tcp.extend([(1, UNREAD), (2, LOST), (4, LOST)]);
    for payload in ["1", "2", "3", "4", "5", "6", "7"] {
        bench.publish("a", payload);
        bench.pass();
        bench.sweep_after(Duration::from_secs(1));
    }
    assert_eq!(bench.shard.metrics().closed.value(CloseReason::SlowFrames), 3);
    assert_eq!(bench.found(), [1, 1, 1], "who reads is not among them");
}

#[test]
fn a_run_of_drops_is_counted_once_with_what_held_it_up() {
    let mut bench =
        Bench::with(class(SlowPolicy::DropOldest { disconnect_after: 0 }, 2, None), EngineBounds::default());
    let id = bench.member(1, &["a"]);
    bench.wire.tcp.insert(1, LOST);
    for run in 1..=2 {
        bench.wire.space.insert(1, 0);
        for payload in ["1", "2", "3", "4", "5", "6", "7"] {
            bench.publish("a", payload);
            bench.pass();
            bench.sweep_after(Duration::from_secs(1));
        }
        assert_eq!(bench.found(), [0, run, 0]);
        bench.writable(id, usize::MAX);
    }
}

#[test]
fn of_many_who_are_stuck_those_are_told_of_that_have_been_for_the_longest_time() {
    let mut patient = class(SlowPolicy::Disconnect, 1000, None);
    patient.slow.age = Duration::from_secs(3600);
    let mut bench = Bench::with(patient, EngineBounds::default());
    for socket in 1..=20 {
        bench.member(socket, &["a"]);
        bench.wire.tcp.insert(socket, Tcp { unsent_bytes: socket as u32, ..NOTHING });
    }
    for socket in 1..=20 {
        bench.wire.space.insert(21 - socket, 0);
        bench.publish("a", "x");
        bench.pass();
        bench.sweep_after(Duration::from_secs(1));
    }
    let slowest = bench.shard.slowest(&mut bench.wire, bench.now);
    let told: Vec<u32> = slowest.iter().filter_map(|one| one.tcp).map(|tcp| tcp.unsent_bytes).collect();
    let due: Vec<u32> = (5..=20).rev().collect();
    assert_eq!(told, due, "16 of 20, the worst first");
    assert_eq!((slowest[0].stuck, slowest[0].behind_bytes), (Duration::from_secs(20), 20 * 3));
    let page = crate::stats::page(bench.shard.setup(), &Report { slowest, ..Report::default() });
    let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    assert_eq!(page["slow"]["slowest"][15]["cause"], "reader");
    assert_eq!(page["slow"]["slowest"][15]["tcp"]["unsent_bytes"], 5);
}
