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
