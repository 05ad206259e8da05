//! Rooms whose members are spoken to in both dialects: each is held to what it itself is owed.

use super::*;

impl Bench {
    /// A member of the JSON dialect in a room, which is live.
    fn joiner(&mut self, socket: i32, room: &str) -> ConnectionId {
        let id = self.speaker(socket, "/json");
        self.say(socket, id, &format!(r#"{{"type":"join","room":"{room}"}}"#));
        self.answer_joins();
        self.wire.taken.clear();
        id
    }

    fn reason(&mut self, id: ConnectionId) -> Option<CloseReason> {
        self.shard.connection(id).and_then(|connection| connection.reason)
    }
}

#[test]
fn a_member_is_as_far_behind_in_bytes_as_it_would_be_without_the_other_dialect() {
    let slow = Slow { policy: SlowPolicy::Disconnect, frames: 1000, bytes: 3000, ..Slow::default() };
    for others in [false, true] {
        let class = RoomClass { slow, ..RoomClass::default() };
        let mut bench = Bench::with(class, EngineBounds::default());
        let raw = bench.member(1, &["a"]);
        if others {
            bench.joiner(2, "a");
        }
        bench.wire.space.insert(1, 0);
        // 504 B each, beyond the burst that is granted for the first second.
        for payload in ["x"; 5] {
            bench.publish("a", &payload.repeat(500));
            bench.pass();
        }
        bench.sweep_after(Duration::from_secs(2));
        assert_eq!(bench.reason(raw), None, "2,520 of 3,000 bytes behind, others: {others}");
        bench.publish("a", &"x".repeat(500));
        bench.pass();
        assert_eq!(bench.reason(raw), Some(CloseReason::SlowBytes), "3,024 bytes, others: {others}");
    }
}

#[test]
fn the_budget_of_the_shard_takes_who_is_owed_most_and_not_whose_room_holds_most() {
    let engine = EngineBounds { window_bytes_max: 400, ..EngineBounds::default() };
    let mut bench = Bench::with(RoomClass::default(), engine);
    let (near, far) = (bench.member(1, &["a"]), bench.member(2, &["b"]));
    bench.joiner(3, "a");
    bench.wire.space.extend([(1, 0), (2, 0)]);
    bench.publish("a", &"x".repeat(100));
    bench.publish("b", &"y".repeat(120));
    bench.publish("b", "z");
    bench.pass();
    assert_eq!((bench.reason(near), bench.reason(far)), (None, None), "102, 125 and the twin's bytes");
    bench.publish("b", &"y".repeat(60));
    bench.pass();
    assert_eq!((bench.reason(near), bench.reason(far)), (None, Some(CloseReason::SlowShardBudget)));
    assert!(bench.shard.window_bytes > 200, "both frames of the room are kept, and booked");
}

/// Too long for a frame once each quote has its backslash.
fn too_long() -> String {
    "\"".repeat(crate::limits::PAYLOAD_BYTES_MAX / 2 + 1)
}

const NOTICE: &str = r#"{"type":"error","room":"a","data":{"code":"too_long","message":"a publication is too long for this dialect","offset":1}}"#;

/// Delivered, and lost for their length.
fn outcome(bench: &Bench) -> (u64, u64) {
    let ledger = bench.shard.ledger();
    assert!(ledger.balances() && ledger.pending == 0, "{ledger:?}");
    assert_eq!(ledger.dropped, bench.shard.metrics().drops.value(DropReason::TooLong));
    (ledger.delivered, ledger.dropped)
}

#[test]
fn a_publication_too_long_for_the_dialect_is_a_drop_and_its_notice_no_delivery() {
    for (is_mixed, is_in_two_rooms) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut bench = Bench::new();
        let id = bench.joiner(1, "a");
        if is_in_two_rooms {
            bench.say(1, id, r#"{"type":"join","room":"b"}"#);
            bench.answer_joins();
            bench.wire.taken.clear();
        }
        if is_mixed {
            bench.member(2, &["a"]);
        }
        bench.publish("a", &too_long());
        bench.publish("a", "short");
        bench.pass();
        let due = [NOTICE, r#"{"type":"message","room":"a","data":"short"}"#];
        assert_eq!(bench.heard(1), due);
        assert_eq!(outcome(&bench), (1 + 2 * u64::from(is_mixed), 1), "{is_mixed} {is_in_two_rooms}");
    }
}

#[test]
fn a_notice_that_a_socket_takes_in_pieces_is_one_drop_wherever_it_was_cut() {
    let notice_bytes = NOTICE.len() + 2;
    for space in [0, 1, notice_bytes - 1, notice_bytes, notice_bytes + 1] {
        let mut bench = Bench::new();
        let id = bench.joiner(1, "a");
        bench.wire.space.insert(1, space);
        bench.publish("a", &too_long());
        bench.publish("a", "short");
        bench.pass();
        assert!(bench.shard.ledger().balances(), "{space}: {:?}", bench.shard.ledger());
        bench.writable(id, usize::MAX);
        assert_eq!(bench.heard(1).len(), 2, "{space}");
        assert_eq!(outcome(&bench), (1, 1), "{space}");
    }
}
